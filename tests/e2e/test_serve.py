"""A live node and peers that do everything wrong: whatever they do, the others are served.

One node serves the whole file. In front of every test a terminal of good manners is signed on, and
after it that terminal must be served as before, on the same session. At the end the node drains,
exits with 0, and its log is searched for what must never be in one.
"""

import contextlib
import datetime
import http.client
import random
import secrets
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocols.codes import CODES
from tests.faults.process import SMALL, NodeProcess, Site, provision
from tests.faults.wire import NOBODY, Wire, framed, tag

SESSION = """
[session]
frame_bytes_max = 2048
max_in_flight = 16
outbox_bytes_max = 65536
sign_on_s = 3
heartbeat_s = 240
connections_max = 2500
"""
MAX_IN_FLIGHT = 16
GOOD, BAD, OTHER, CMAC = 0, 1, 2, 3
UNKNOWN = "99999999"
ERROR_63 = {"op": "error", "code": "63"}


class Place:
    """The node of this file, and hands to reach it."""

    def __init__(self, site: Site, node: NodeProcess) -> None:
        self.site, self.node = site, node
        self.tokens: list[str] = []
        self._traces = iter(range(1, 1_000_000))
        self._cards = iter(site.cards)

    def wire(self, index: int = BAD, **options: Any) -> Wire:
        terminal = self.site.terminals[index]
        options = {"algorithm": terminal.key.algorithm, "number": terminal.number} | options
        key = options.pop("key", terminal.key.key)
        return Wire(self.node.terminals, key=key, **options)

    def signed_on(self, index: int = BAD, **options: Any) -> Wire:
        wire = self.wire(index, **options)
        answer = wire.sign_on()
        assert answer is not None
        assert answer["code"] == "00", answer
        return wire

    def deposit(self, **fields: Any) -> dict[str, Any]:
        return {
            "op": "deposit", "trace": next(self._traces), "cashier": "345", "currency": "PYG",
            "document": self.site.cards[0].document, "amount": 1000,
        } | fields  # fmt: skip

    def cash_out(self, **fields: Any) -> dict[str, Any]:
        card = next(self._cards)
        code = card.next_code(time.time())
        assert code is not None
        self.tokens.append(code)
        return {
            "op": "cash_out", "trace": next(self._traces), "cashier": "345", "currency": "PYG",
            "document": card.document, "token": code, "amount": 50_000,
        } | fields  # fmt: skip

    def connections(self) -> int:
        """Terminals connected, as the node's metrics have it."""
        client = http.client.HTTPConnection(*self.node.addresses["ops"], timeout=120)
        client.request("GET", "/metrics")
        text = client.getresponse().read().decode()
        client.close()
        (line,) = (
            line for line in text.splitlines()
            if line.startswith('troncal_connections{listener="terminals"}')
        )  # fmt: skip
        return int(float(line.split()[-1]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("serve")
    site = provision(directory, terminals=8, cards=60, toml=SMALL + SESSION, macs={4: "aes-cmac"})
    node = site.start()
    node.ready()
    found = Place(site, node)
    try:
        yield found
        assert node.stop() == 0
        site.check_log(found.tokens)
    finally:
        node.end()


@pytest.fixture(scope="module")
def good(place: Place) -> Iterator[Wire]:
    """A terminal of good manners, on one session from the first test to the last."""
    with place.signed_on(GOOD, source="127.0.0.200") as wire:
        yield wire


@pytest.fixture(autouse=True)
def _served_as_before(place: Place, good: Wire) -> Iterator[None]:
    yield
    answer = good.ask(place.deposit())
    assert (answer["code"], answer["instruction"]) == ("00", "RECIBA")
    assert good.ask({"op": "echo"}) == {"op": "echo_answer"}
    assert place.node.returncode is None


# ---- sign-on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"\xff" * 70_000,
    bytes(100),
    random.Random(1).randbytes(3000),
    random.Random(2).randbytes(200_000),
])  # fmt: skip
def test_garbage(place: Place, garbage: bytes) -> None:
    with place.wire(source="127.0.0.2") as wire:
        try:
            wire.raw(garbage)
            answer = wire.receive()
        except ConnectionError:
            answer = None
        if answer is not None:
            assert answer["op"] == "error"
            assert answer["code"] in ("30", "63")
            assert wire.ended()


@pytest.mark.parametrize(("size", "code"), [(0, "30"), (8, "30"), (2049, "30"), (65535, "30")])
def test_bad_length_before_sign_on(place: Place, size: int, code: str) -> None:
    with place.wire(source="127.0.0.2") as wire:
        wire.raw(struct.pack(">H", size) + bytes(min(size, 600)))
        answer = wire.receive()
        assert answer == {"op": "error", "code": code, "field": "length"}
        assert not wire.proved
        assert wire.ended()


@pytest.mark.parametrize("size", [0, 1, 8, 2049, 65535])
def test_bad_length_after_sign_on(place: Place, size: int) -> None:
    with place.signed_on() as wire:
        message = place.deposit()
        # What came whole before the bad frame is served first.
        wire.raw(wire.frame(message) + struct.pack(">H", size) + bytes(min(size, 600)))
        answers = [wire.receive(), wire.receive()]
        assert {"op": "error", "code": "30", "field": "length"} in answers
        assert wire.ended()


def test_silence_and_half_frames_end_in_time(place: Place) -> None:
    with place.wire(source="127.0.0.2") as silent, place.wire(source="127.0.0.2") as half:
        half.raw(b"\x00\x80{" + b" " * 40)
        began = time.monotonic()
        assert silent.ended()
        assert half.ended()
        assert 2.5 < time.monotonic() - began < 120


def test_half_frame_after_sign_on_then_gone(place: Place) -> None:
    for size in (1, 2, 3, 40):
        with place.signed_on() as wire:
            wire.raw(wire.frame(place.deposit())[:size])


def test_unknown_peer_wrong_key_and_wrong_key_version_look_alike(place: Place) -> None:
    wrong = {
        "unknown": {"number": UNKNOWN},
        "key": {"key": secrets.token_bytes(32)},
        "nobody": {"number": UNKNOWN, "key": b"k" * 32},
        "cmac": {"algorithm": "aes-cmac"},
    }
    for source, options in enumerate(wrong.values(), 10):
        with place.wire(source=f"127.0.0.{source}", **options) as wire:
            assert wire.sign_on() == ERROR_63
            assert not wire.proved
            assert wire.ended()
    with place.wire(source="127.0.0.15") as wire:
        assert wire.sign_on(key=2) == ERROR_63
        assert wire.ended()


def test_wrong_version(place: Place) -> None:
    with place.wire() as wire:
        assert wire.sign_on(version=2) == {"op": "error", "code": "12"}
        assert wire.proved
        assert wire.ended()


@pytest.mark.parametrize("fields", [{"nonce": "00"}, {"nonce": 7}, {"op": "echo"}, {"peer": 17}])
def test_malformed_sign_on(place: Place, fields: dict[str, Any]) -> None:
    with place.wire(source="127.0.0.3") as wire:
        answer = wire.sign_on(**fields)
        assert answer is not None
        assert answer["op"] == "error"
        assert answer["code"] in ("12", "30", "63")
        assert wire.ended()


def test_overlong_sign_on(place: Place) -> None:
    with place.wire(source="127.0.0.3") as wire:
        assert wire.sign_on(filler="x" * 600) == ERROR_63
        assert wire.ended()


def test_requests_before_sign_on(place: Place) -> None:
    with place.wire(source="127.0.0.3") as wire:
        wire.send(place.deposit())
        assert wire.receive() == ERROR_63
        assert wire.ended()


def test_five_failures_lock_the_pair_and_nobody_else(place: Place) -> None:
    for _ in range(5):
        with place.wire(OTHER, source="127.0.0.20", key=secrets.token_bytes(32)) as wire:
            assert wire.sign_on() == ERROR_63
    with place.wire(OTHER, source="127.0.0.20") as wire:  # now with the right key
        assert wire.sign_on() == ERROR_63
    with place.signed_on(OTHER, source="127.0.0.21") as wire:
        assert wire.ask({"op": "echo"}) == {"op": "echo_answer"}
    with place.signed_on(BAD, source="127.0.0.20") as wire:
        assert wire.ask({"op": "echo"}) == {"op": "echo_answer"}


def test_a_hundred_failures_slow_their_address_only(place: Place) -> None:
    for number in range(100):
        with place.wire(source="127.0.0.30", number=f"{50_000_000 + number}") as wire:
            wire.sign_on()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(place.wire(source="127.0.0.30")) for _ in range(5)]
        for wire in waiting:
            wire.send({"op": "sign_on", "peer": wire.number, "nonce": "0" * 32, "version": 1})
        began = time.monotonic()
        with place.signed_on(BAD, source="127.0.0.31") as wire:
            assert wire.ask({"op": "echo"}) == {"op": "echo_answer"}
        # One a second; who would have to wait until his sign-on is overdue is not kept.
        ends = [wire.receive() for wire in waiting]
        # In three seconds three or four; fewer where the machine took its time to connect them.
        assert 1 <= sum(end is not None for end in ends) <= 4
        assert time.monotonic() - began > 1.5


# ---- within a session ----------------------------------------------------------------------------


def test_wrong_mac(place: Place) -> None:
    with place.signed_on(source="127.0.0.4") as wire:
        good, bad = wire.frame(place.deposit()), wire.frame(place.deposit())
        wire.raw(good + bad[:-1] + bytes([bad[-1] ^ 1]))
        answers = [wire.receive(), wire.receive()]
        assert ERROR_63 in answers, "good frames in front of a bad one are answered, if in time"
        assert wire.ended()


def test_replayed_frame(place: Place) -> None:
    with place.signed_on(source="127.0.0.4") as wire:
        message = place.deposit()
        frame = wire.frame(message)
        wire.raw(frame)
        answer = wire.receive()
        assert answer is not None
        assert answer["code"] == "00"
        wire.raw(frame)
        assert wire.receive() == ERROR_63
        assert wire.ended()
    with place.signed_on(source="127.0.0.4") as wire:
        again = wire.ask(message)
        assert again["duplicate"] is True
        assert again["operation"] == answer["operation"]


def test_replayed_session(place: Place) -> None:
    """All bytes of a session once more: they open nothing, and end nobody's session."""
    with place.signed_on() as wire:
        assert wire.ask(place.deposit())["code"] == "00"
        with place.wire(source="127.0.0.5") as replay:
            replay.raw(wire.sent_bytes)
            answer = replay.receive()
            assert answer is not None
            assert answer["op"] == "sign_on_answer"
            last = replay.socket.recv(4096)
            assert b'"63"' in last
        assert wire.ask({"op": "echo"}) == {"op": "echo_answer"}


def test_a_second_session_ends_the_first_with_its_first_good_frame(place: Place) -> None:
    with place.signed_on() as first:
        assert first.ask({"op": "echo"}) == {"op": "echo_answer"}
        with place.signed_on() as second:
            assert first.ask({"op": "echo"}) == {"op": "echo_answer"}, "a sign-on ends nothing yet"
            assert second.ask({"op": "echo"}) == {"op": "echo_answer"}
            assert first.ended()
            assert second.ask(place.deposit())["code"] == "00"


def test_every_split_point(place: Place) -> None:
    with place.wire() as wire:
        nonce = secrets.token_bytes(16)
        sign_on = wire.frame(
            {"op": "sign_on", "peer": wire.number, "nonce": nonce.hex(), "version": 1}
        )
        for at in range(len(sign_on)):
            wire.raw(sign_on[at : at + 1])
        assert wire.signed_on(nonce) is not None
        messages = [place.deposit(), place.cash_out()]
        data = b"".join(map(wire.frame, messages))
        for at in range(len(data)):
            wire.raw(data[at : at + 1])
        assert [wire.receive()["code"] for _ in messages] == ["00", "00"]  # type: ignore[index]


@pytest.mark.layouts("together")
def test_P11_more_requests_than_may_be_in_flight(place: Place) -> None:
    messages = [place.deposit() for _ in range(MAX_IN_FLIGHT * 30)]
    with place.signed_on() as wire:
        wire.send(*messages)
        answers = [wire.receive() for _ in messages]
        assert {a["trace"] for a in answers if a} == {m["trace"] for m in messages}
        assert {a["code"] for a in answers if a} == {"00"}


def test_a_peer_that_never_reads_is_cut_off(place: Place) -> None:
    with place.signed_on(receive_bytes=4096) as wire:
        message = place.deposit()
        wire.socket.settimeout(120)
        with pytest.raises(ConnectionError):
            wire.send_for_ever(message)


def test_reset_in_the_middle(place: Place) -> None:
    messages = []
    for size in (0, 1, 30, 10_000):
        messages.append(place.deposit())
        wire = place.signed_on()
        wire.raw(wire.frame(messages[-1]) + wire.frame(place.deposit())[:size])
        wire.reset()
    with place.signed_on() as wire:
        for message in messages:  # whatever became of it, it happens once
            answer = wire.ask(message)
            assert answer["code"] == "00"
            assert wire.ask(message)["operation"] == answer["operation"]


def test_connections_opened_and_dropped(place: Place) -> None:
    before = place.connections()
    for batch in range(4):
        sockets = []
        for _ in range(500):
            plain = socket.socket()
            plain.bind((f"127.0.0.{40 + batch}", 0))
            plain.connect(place.node.terminals)
            sockets.append(plain)
        for number, plain in enumerate(sockets):
            if number % 3 == 0:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif number % 3 == 1:
                plain.send(b"\x00")
            plain.close()
    for _ in range(1200):
        if place.connections() <= before:
            break
        time.sleep(0.1)
    assert place.connections() <= before


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_encodings(place: Place, encoding: str) -> None:
    other = {"json": "msgpack", "msgpack": "json"}[encoding]
    with place.signed_on(encoding=encoding) as wire:
        message = place.cash_out()
        answer = wire.ask(message)
        assert (answer["code"], answer["instruction"]) == ("00", "ENTREGUE")
        wire.encoding = other  # a reply follows its request
        again = wire.ask(message)
        assert again["duplicate"] is True
        assert again["operation"] == answer["operation"]
        assert wire.ask({"op": "echo"}) == {"op": "echo_answer"}


def test_aes_cmac(place: Place) -> None:
    with place.signed_on(CMAC) as wire:
        answer = wire.ask(place.cash_out())
        assert (answer["code"], answer["instruction"]) == ("00", "ENTREGUE")
        marked = wire.ask({"op": "delivered", "original": answer["trace"], "trace": 9})
        assert (marked["state"], marked["instruction"]) == ("ENTREGADA", "NO_ENTREGUE")


def test_sign_off_and_half_close(place: Place) -> None:
    with place.signed_on() as wire:
        wire.send(place.deposit(), {"op": "sign_off"})
        codes = [wire.receive(), wire.receive()]
        assert [answer["code"] for answer in codes if answer] == ["00", "00"]
        assert wire.ended()
    with place.signed_on() as wire:
        wire.send(*(place.deposit() for _ in range(10)))
        wire.socket.shutdown(socket.SHUT_WR)
        assert [wire.receive()["code"] for _ in range(10)] == ["00"] * 10  # type: ignore[index]
        assert wire.ended()


BAD_PAYLOADS = [
    (b"{", "payload"), (b"[]", "payload"), (b"{}", "op"), (b'{"op":7}', "op"), (b"\x80", "op"),
    (b"\xff\xfe", "payload"), (b'{"op":"annul","trace":1,"cashier":"\xff"}', "payload"),
    (b"\xde", "payload"), (b'{"a":' * 400, "payload"),
    (b'{"op":"deposit","trace":1,"amount":' + b"9" * 900, "payload"),
]  # fmt: skip


def test_payloads_that_are_no_messages(place: Place) -> None:
    with place.signed_on() as wire:
        for payload, field in BAD_PAYLOADS:
            wire.raw(wire.seal(payload))
            answer = wire.receive()
            assert answer is not None
            assert (answer["code"], answer["field"]) == ("30", field), payload
        assert wire.ask(place.deposit())["code"] == "00"


WORDS: dict[str, list[Any]] = {
    "op": [
        "cash_out", "deposit", "holder", "annul", "last_operation", "delivered", "shift_open",
        "shift_close", "echo", "nonsense", "answer", "hold",
    ],
    "trace": [1, 2, 3, 999_999, 0, -1, "1", None],
    "original": [1, 2, 3, 4, 5, 999_999, "1"],
    "kind": ["cash_out", "deposit", "annul"],
    "cashier": ["1", "000345", "٣", "1234567", 5, ""],
    "supervisor": ["900900", "1", "000001", "x"],
    "supervisor_code": ["123456", "12", "１２３４５６"],
    "cashier_code": ["123456", "12345678"],
    "counted": [0, 5, 10**12, -1],
    "float": [0, 10**12, 1.5],
    "document_type": ["CI", "RUC", "PAS", "DNI"],
    "document": ["4000000", "80000000-0", "AB12345", "٤٥٦٧٨٩٠", "4000000\x00", "=1+1()", ""],
    "phone": ["+595981123456", "0981123456", "+1", "🙂🙂🙂🙂🙂🙂"],
    "token": ["000000", "123456", "12345678", "1234567", "abcdef", 123456],
    "card": ["", "card-000001", "x" * 32],
    "amount": [1, 1000, 999_999_999_999, 10**12, 0, -5, 1.5, "1000", 2**63, 2**64],
    "currency": ["PYG", "USD", "pyg", "XXX"],
    "business_date": ["2026-11-22", "20261122", "2026-02-30", "0000-00-00", "99999999"],
    "branch": ["17", "000017", "999999", "x"],
    "local_time": ["2026-11-22T13:00:00", "x" * 40],
    "depositor": ["CI4567890", "XX1234567", "CI", "RUC80000000-0"],
    "declaration": [{}, {"origin": "sale"}, {"x": "y" * 200}, {"a": 1}, []],
}  # fmt: skip


def test_any_words_in_any_order_are_answered(place: Place) -> None:
    """Authentic nonsense, in its hundreds: each gets one answer with a code that exists."""
    chance = random.Random(20261122)
    with place.signed_on(5) as wire:
        for _ in range(1500):
            names = chance.sample(sorted(WORDS), chance.randrange(0, len(WORDS)))
            message = {name: chance.choice(WORDS[name]) for name in ["op", *names]}
            if chance.random() < 0.7:
                message |= {"trace": chance.randrange(1, 50), "cashier": "345", "currency": "PYG"}
                message |= {"document": "4000000", "document_type": "CI", "amount": 1000}
                message.pop("phone", None)
            wire.raw(wire.seal(msgspec.json.encode(message)))
            answer = wire.receive()
            assert answer is not None, message
            assert answer.get("code", "00") in {row.code for row in CODES.values()}, message


WORDS_OF_A_NETWORK: dict[str, list[Any]] = {
    "op": ["hold", "confirm", "reverse", "annul", "status", "holder", "echo", "cash_out", "x"],
    "id": [0, 1, 2, 2**63 - 1, 2**63, -1, "1"],
    "reference": ["x", "9" * 26, "0012" + "0" * 22, ""],
    "kind": ["cash_out", "deposit", "x"],
    "branch": ["000017", "17", "999999", ""],
    "cashier": ["345", "000345", "x"],
    "document_type": ["CI", "RUC", "X"],
    "document": ["4000000", "4000001", "80000000-0", "x" * 12],
    "phone": ["+595981123456", "0981"],
    "token": ["000000", "12345678", "1234567"],
    "card": ["card-000001", ""],
    "depositor": ["CI4567890", "X"],
    "declaration": [{"origin": "sale"}, {}],
    "amount": [1000, 5000, 0, 999_999_999_999, 10**12],
    "currency": ["PYG", "USD", "xx"],
    "registered_at": ["2026-11-22T00:00:00.000Z", "x"],
    "reason": ["timeout", "registration_failed", "cancelled", "x"],
    "supervisor": ["900900", "1", "x"],
    "state": ["REGISTRADA", "ERROR", "zzz"],
    "sent_at": ["nonsense", "0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z", ""],
}  # fmt: skip


def test_any_words_of_a_network_are_answered(place: Place) -> None:
    chance = random.Random(20261123)
    now = datetime.datetime.now(datetime.UTC)
    day = (now - datetime.timedelta(hours=3)).strftime("%Y%m%d")
    network = place.site.network
    with Wire(place.node.addresses["sicoop"], network.number, network.key.key) as wire:
        assert wire.sign_on()["code"] == "00"  # type: ignore[index]
        for number in range(1500):
            names = chance.sample(sorted(WORDS_OF_A_NETWORK), chance.randrange(0, 21))
            message = {name: chance.choice(WORDS_OF_A_NETWORK[name]) for name in ["op", *names]}
            if chance.random() < 0.7:
                terminal = chance.randrange(1, 10)
                message |= {"id": number, "kind": chance.choice(["cash_out", "deposit"])}
                message |= {"reference": f"0012{terminal:08d}{day}{chance.randrange(30):06d}"}
                message |= {"branch": "000017", "cashier": "345", "document": "4000001"}
                message |= {"document_type": "CI", "currency": "PYG", "reason": "timeout"}
                message |= {"sent_at": f"{now:%Y-%m-%dT%H:%M:%S.000Z}", "supervisor": "900900"}
                message.pop("phone", None)
            if chance.random() < 0.1:  # answers to nothing we asked: never answered, never counted
                wire.send({"op": "status_answer", "id": number, "state": "x", "reference": "y"})
            wire.raw(wire.seal(msgspec.json.encode(message)))
            answer = wire.receive()
            assert answer is not None, message
            assert answer.get("code", "00") in {row.code for row in CODES.values()}, message
        wire.send({"op": "echo"})
        assert wire.receive() == {"op": "echo_answer"}, "one answer for each request"


# ---- TLS -----------------------------------------------------------------------------------------


def _certificate(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def test_tls(tmp_path: Path) -> None:
    _certificate(tmp_path)
    toml = SMALL + SESSION + '[tls.terminals]\ncert = "cert.pem"\nkey = "key.pem"\n'
    site = provision(tmp_path, terminals=8, cards=5, toml=toml, macs={4: "aes-cmac"})
    node = site.start()
    try:
        node.ready()
        there = Place(site, node)
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        with there.signed_on(GOOD, tls=context) as good:
            assert good.ask(there.cash_out())["instruction"] == "ENTREGUE"
            with there.wire(BAD) as plain:
                assert plain_is_refused(plain)
            with there.wire(BAD) as torn:
                torn.raw(b"\x16\x03\x01\x02\x00")
                torn.reset()
            with pytest.raises(ssl.SSLCertVerificationError):
                there.wire(BAD, tls=ssl.create_default_context())
            messages = [there.deposit() for _ in range(MAX_IN_FLIGHT * 10)]
            good.send(*messages)
            answers = [good.receive() for _ in messages]
            assert {answer["code"] for answer in answers if answer} == {"00"}
            node.signal(signal.SIGTERM)
            assert good.ended()
        assert node.wait() == 0
        site.check_log(there.tokens)
    finally:
        node.end()


def plain_is_refused(wire: Wire) -> bool:
    """A peer without TLS gets no session."""
    try:
        wire.send({"op": "sign_on", "peer": wire.number, "nonce": "0" * 32, "version": 1})
        while wire.socket.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.layouts("together")
def test_P12_sigterm_lets_work_in_flight_be_answered(tmp_path: Path) -> None:
    site = provision(tmp_path, terminals=8, cards=60, toml=SMALL + SESSION)
    node = site.start()
    try:
        node.ready()
        there = Place(site, node)
        wires = [there.signed_on(index) for index in range(8)]
        sent = [[there.deposit() for _ in range(MAX_IN_FLIGHT * 4)] for _ in wires]
        told: list[dict[str, Any]] = []
        for wire, messages in zip(wires, sent, strict=True):
            wire.send(*messages[:MAX_IN_FLIGHT])
        for wire in wires:  # each of them is at work when the signal comes
            first = wire.receive()
            assert first is not None
            told.append(first)
        for wire, messages in zip(wires, sent, strict=True):
            wire.send(*messages[MAX_IN_FLIGHT:])
        node.signal(signal.SIGTERM)
        for wire in wires:
            with wire:
                while (answer := wire.receive()) is not None:
                    told.append(answer)
        assert node.wait() == 0
        assert {answer["code"] for answer in told} == {"00"}
        _nothing_else_happened(site, sent, told)
    finally:
        node.end()


def _nothing_else_happened(
    site: Site, sent: list[list[dict[str, Any]]], told: list[dict[str, Any]]
) -> None:
    """After a drain, what was not answered was not done."""
    node = site.start()
    try:
        node.ready()
        there = Place(site, node)
        known = {answer["trace"]: answer["operation"] for answer in told}
        done = {}
        for index, messages in enumerate(sent):
            with there.signed_on(index) as wire:
                for message in messages:
                    trace = message["trace"]
                    asked = {"op": "last_operation", "original": trace, "kind": "deposit"}
                    answer = wire.ask(asked)
                    if answer["code"] == "00":
                        done[trace] = answer["operation"]
        assert done == known
        assert node.stop() == 0
    finally:
        node.end()


def test_a_second_node_is_refused(place: Place) -> None:
    second = place.site.start()
    assert second.wait() == 1
    assert "another process uses this data directory" in second.tail()


FEW_FILES = """
import resource
from switch.__main__ import main
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
main()
"""


def test_the_usual_limit_of_files_does_not_limit_connections(tmp_path: Path) -> None:
    site = provision(tmp_path, terminals=8, cards=5, toml=SMALL + SESSION)
    node = site.start(program=("-c", FEW_FILES))
    try:
        node.ready()
        there = Place(site, node)
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(there.wire(BAD))
            with there.signed_on(GOOD) as good:
                assert good.ask(there.cash_out())["instruction"] == "ENTREGUE"
        assert node.stop() == 0
        site.check_log()
    finally:
        node.end()


def test_a_forged_error_ends_nothing_but_its_connection(place: Place) -> None:
    """A peer that sends an `error` of its own, authentic or not, harms itself at most."""
    with place.signed_on() as wire:
        wire.send({"op": "error", "code": "63"})
        assert wire.ended()
    with place.signed_on() as wire:
        payload = b'{"op":"error","code":"63"}'
        wire.raw(framed(payload, tag("hmac-sha256", NOBODY, 1, wire.sent, payload)))
        assert wire.receive() == ERROR_63
        assert wire.ended()
