"""A processor's client of another make: ISO 8583 in the `ceibo` dialect over a plain socket.

It shares no line with the switch. Messages are laid out by pyiso8583 from a table typed from the
description of the dialect; MACs, sealed codes and wrapped keys are made by `cryptography`. Every
answer that it takes is held against the rules of the dialect: who echoes what, what may stand
beside it, where the MAC stands, and under which key.
"""

import contextlib
import datetime
import os
import re
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any, Final

import iso8583
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

UTC = datetime.UTC
Elements = dict[str, Any]
NETWORK, TERMINAL, BRANCH, CASHIER = "0012", "00001234", "000017", "000045"
CASH_OUT, DEPOSIT, HOLDER = "010000", "210000", "330000"
SIGN_ON, SIGN_OFF, KEY_EXCHANGE, CUTOVER, ECHO = "001", "002", "101", "201", "301"
NORMAL, ANNULMENT, TIMEOUT, FAILED, CANCELLED = "00", "17", "21", "22", "23"
MAC_BYTES: Final = 8
SECONDS: Final = 30.0

ECHOED: Final = ("3", "4", "7", "11", "37", "41", "49", "70")
ADDED: Final = {
    "0110": {"15", "28", "30", "38", "39", "48", "54"},
    "0230": {"38", "39"},
    "0430": {"39"},
    "0610": {"39", "48"},
    "0810": {"39"},
}
"""What an answer has beside what it echoes and its MAC."""
REFUSALS: Final = frozenset(("12", "30", "63"))
"""Of the message itself: with these there is nothing in an answer but the code and the echoes."""


def _text(length: int, prefix: int = 0) -> dict[str, Any]:
    return {
        "data_enc": "ascii", "len_enc": "ascii", "len_type": prefix, "max_len": length, "desc": "",
    }  # fmt: skip


def _octets(length: int) -> dict[str, Any]:
    return {"data_enc": "b", "len_enc": "b", "len_type": 0, "max_len": length, "desc": ""}


SPEC: Final[dict[str, dict[str, Any]]] = {
    "h": _octets(0), "t": _text(4), "p": _octets(8), "1": _octets(8),
    "3": _text(6), "4": _text(12), "7": _text(10), "11": _text(6), "12": _text(6), "13": _text(4),
    "15": _text(4), "25": _text(2), "28": _text(9), "30": _text(9), "32": _text(4, 2),
    "37": _text(12), "38": _text(6), "39": _text(2), "41": _text(8), "42": _text(15),
    "48": _text(999, 3), "49": _text(3), "54": _text(120, 3), "64": _octets(8), "70": _text(3),
    "90": _text(42), "128": _octets(8),
}  # fmt: skip


# --- pieces of messages --------------------------------------------------------------------------


def tlv(tags: dict[str, Any]) -> str:
    """DE48: tag of two characters, length of three digits, value; a list repeats its tag."""
    pairs = [
        (tag, value)
        for tag, values in tags.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return "".join(f"{tag}{len(value):03}{value}" for tag, value in pairs)


def tags_of(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    at = 0
    while at < len(text):
        tag, length = text[at : at + 2], int(text[at + 2 : at + 5])
        at += 5 + length
        assert at <= len(text), "a tag reaches beyond its element"
        found.setdefault(tag, []).append(text[at - length : at])
    return found


def mac(key: bytes, data: bytes) -> bytes:
    maker = CMAC(AES(key))
    maker.update(data)
    return maker.finalize()[:MAC_BYTES]


def check_value(key: bytes) -> str:
    """The first three bytes of the key's CMAC over a zero block, in hex."""
    return mac(key, bytes(16))[:3].hex().upper()


def sealed(key: bytes, token: str, operation: str) -> str:
    """Tag 03: nonce, code under AES-256-GCM with DE37 as additional data, and tag, in hex."""
    nonce = os.urandom(12)
    return (nonce + AESGCM(key).encrypt(nonce, token.encode(), operation.encode())).hex().upper()


def key_tags(zone_key: bytes, kind: str, key: bytes) -> dict[str, str]:
    """DE48 of a key exchange."""
    wrapped = aes_key_wrap(zone_key, key).hex().upper()
    return {"30": kind, "31": wrapped, "32": check_value(key)}


def utc(away_s: float = 0) -> str:
    """DE7 of now, or of a moment away from it."""
    return f"{datetime.datetime.now(UTC) + datetime.timedelta(seconds=away_s):%m%d%H%M%S}"


def original(stan: str = "", sent: str = "", network: str = NETWORK) -> str:
    """DE90 of a hold."""
    return f"0100{stan or '0' * 6}{sent or '0' * 10}{network.zfill(11)}{'0' * 11}"


def decision(operation: str, kind: str, amount: int, reason: str = NORMAL, **changes: Any) -> Any:
    """Elements of a 0220 or a 0420; `de49="840"` changes one, None leaves it out."""
    elements: Elements = {
        "3": kind, "4": f"{amount:012}", "25": reason, "32": NETWORK, "37": operation,
        "49": "600", "90": original(),
    }  # fmt: skip
    return changed(elements, changes)


def changed(elements: Elements, changes: dict[str, Any]) -> Elements:
    """Apply changes such as `de4=None` or `tag04="1"`."""
    elements = dict(elements)
    for name, value in changes.items():
        if name.startswith("tag"):
            elements["48"] = {**elements.get("48", {}), name[3:]: value}
        else:
            elements[name.removeprefix("de")] = value
    if isinstance(elements.get("48"), dict):
        elements["48"] = {tag: v for tag, v in elements["48"].items() if v is not None}
    return {name: value for name, value in elements.items() if value is not None}


def framed(body: bytes) -> bytes:
    return struct.pack(">H", len(body)) + body


# --- the connection ------------------------------------------------------------------------------


class Ended(Exception):
    """The other side closed the connection."""


class Keys:
    """The keys of a link, as `troncal host rotate` prints them; MAC keys are the client's own."""

    def __init__(self, made: dict[str, str]) -> None:
        self.mac = bytes.fromhex(made["mac_key"])
        self.data = bytes.fromhex(made["data_key"])
        self.zone = bytes.fromhex(made["zone_key"])


class IsoClient:
    """One connection. `ask` sends a request and returns its answer, which must keep the rules."""

    def __init__(
        self,
        address: tuple[str, int],
        keys: Keys,
        *,
        seconds: float = SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.keys = keys
        self.socket = socket.create_connection(address, seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=address[0])
        self.aside: list[Elements] = []  # requests of the other side, in order
        self._rest = b""
        self._stan = 0

    def __enter__(self) -> "IsoClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # bytes

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_body(self) -> bytes:
        """The next message as it came. Raises: Ended."""
        while (length := self._length()) is None or len(self._rest) < 2 + length:
            try:
                data = self.socket.recv(65_536)
            except ConnectionError:
                data = b""
            if not data:
                assert not self._rest, "closed in the midst of a message"
                raise Ended
            self._rest += data
        body, self._rest = self._rest[2 : 2 + length], self._rest[2 + length :]
        return body

    def _length(self) -> int | None:
        return struct.unpack(">H", self._rest[:2])[0] if len(self._rest) >= 2 else None

    def silent(self, seconds: float = 0.1) -> bool:
        """Say whether nothing comes, no end either."""
        return not self._rest and not select.select([self.socket], [], [], seconds)[0]

    def ends(self) -> bool:
        """Say whether the connection ends, with nothing more said."""
        try:
            self.read_body()
        except Ended:
            return True
        return False

    # messages

    def message(self, mti: str, elements: Elements) -> Elements:
        """A request with DE7 and a new DE11, unless it says others."""
        self._stan = self._stan % 999_999 + 1
        return changed({"t": mti, "7": utc(), "11": f"{self._stan:06}"} | elements, {})

    def body(self, message: Elements, *, key: bytes | None = None) -> bytes:
        """Lay a message out, with its MAC in 64, or in 128 where anything stands behind 64."""
        message = {k: tlv(v) if isinstance(v, dict) else v for k, v in message.items()}
        place = "128" if any(name.isdigit() and int(name) > 64 for name in message) else "64"
        whole, _ = iso8583.encode({**message, place: "00" * MAC_BYTES}, SPEC)
        covered = bytes(whole[:-MAC_BYTES])
        return covered + mac(key or self.keys.mac, covered)

    def send(self, message: Elements, *, key: bytes | None = None) -> None:
        self.send_bytes(framed(self.body(message, key=key)))

    def receive(self, *, key: bytes | None = None) -> Elements:
        """The next message, its MAC good under `key` (default: ours). Raises: Ended."""
        return self.read(self.read_body(), key=key)

    def read(self, body: bytes, *, key: bytes | None = None) -> Elements:
        assert mac(key or self.keys.mac, body[:-MAC_BYTES]) == body[-MAC_BYTES:], "MAC of an answer"
        message, _ = iso8583.decode(body, SPEC)
        last = "128" if any(name.isdigit() and int(name) > 64 for name in message) else "64"
        assert last in message, "the MAC is not in the last element of the bitmaps"
        assert bool(body[4] & 0x80) == (last == "128"), "a second bitmap without need"
        found = {k: v for k, v in message.items() if k not in ("h", "p", "1", "64", "128")}
        if "48" in found:
            found["48"] = tags_of(found["48"])
        return found

    def answer_to(self, request: Elements, *, key: bytes | None = None) -> Elements:
        """The next answer, held against its request; requests on the way are put aside."""
        while True:
            answer = self.receive(key=key)
            if answer["t"][2] in "13":
                check(request, answer)
                return answer
            self.aside.append(answer)

    def answers_to(self, requests: list[Elements]) -> list[Elements]:
        """The answers of many requests, which may come in any order, in that of the requests."""
        waiting = {request["11"]: request for request in requests}
        found: dict[str, Elements] = {}
        while waiting:
            answer = self.receive()
            if answer["t"][2] not in "13":
                self.aside.append(answer)
                continue
            check(waiting.pop(answer["11"]), answer)
            found[answer["11"]] = answer
        return [found[request["11"]] for request in requests]

    def ask(self, mti: str, elements: Elements, *, key: bytes | None = None) -> Elements:
        """Send a request under `key`; its answer must come under the same."""
        message = self.message(mti, elements)
        self.send(message, key=key)
        return self.answer_to(message, key=key)

    def code(self, mti: str, elements: Elements) -> str:
        """DE39 of the answer."""
        return str(self.ask(mti, elements)["39"])

    # the dialect

    def manage(self, function: str, **changes: Any) -> str:
        return self.code("0800", changed({"70": function}, changes))

    def sign_on(self) -> "IsoClient":
        assert self.manage(SIGN_ON) == "00"
        return self

    def hold(
        self, operation: str, document: str, amount: int, token: str = "", **changes: Any
    ) -> Elements:
        """Elements of a 0100: of a cash_out where there is a code, else of a deposit."""
        local = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=-3)))
        elements: Elements = {
            "3": CASH_OUT if token else DEPOSIT, "4": f"{amount:012}", "12": f"{local:%H%M%S}",
            "13": f"{local:%m%d}", "15": f"{local:%m%d}", "32": NETWORK, "37": operation,
            "41": TERMINAL, "42": BRANCH.ljust(15), "49": "600",
            "48": {"01": f"CI{document}", "04": CASHIER},
        }  # fmt: skip
        if token:
            elements["48"]["03"] = sealed(self.keys.data, token, operation)
        return changed(elements, changes)

    def state(self, operation: str, network: str = NETWORK) -> str:
        """State of a hold by 0600; "" where it is not known."""
        answer = self.ask("0600", {"32": network, "37": operation})
        if answer["39"] == "25":
            assert "48" not in answer
            return ""
        assert answer["39"] == "00"
        assert set(answer["48"]) == {"10"}
        (state,) = answer["48"]["10"]
        assert state in ("ACTIVA", "CAPTURADA", "LIBERADA", "TUMBA")
        return str(state)


def check(request: Elements, answer: Elements) -> None:
    """Hold an answer against its request and against the rules of the dialect."""
    mti, code = request["t"], answer["39"]
    assert answer["t"] == f"{mti[:2]}{int(mti[2]) + 1}0"
    for element in ECHOED:
        given = request.get(element)
        assert answer.get(element) == given, f"DE{element} is not echoed as it came"
    others = set(answer) - {"t", *ECHOED}
    assert "39" in others
    assert re.fullmatch("[0-9A-Z]{2}", code)
    assert others <= ADDED[answer["t"]], others
    if code in REFUSALS:
        assert others == {"39"}
    if answer["t"] in ("0110", "0230"):
        assert ("38" in answer) == (code == "00"), "an approval, and nothing else, has a number"
        assert re.fullmatch("[0-9A-Z]{6}", answer.get("38", "000000"))
    for element in ("28", "30"):
        fee = answer.get(element, "D00000001")
        assert re.fullmatch("D[0-9]{8}", fee)
        assert int(fee[1:]) > 0, "a fee of nothing is not told"
    if answer["t"] == "0110" and code not in REFUSALS | {"13", "A5"}:
        assert answer.get("15") == request["15"], "the business date comes back"


def balances(text: str) -> dict[str, int]:
    """DE54: amounts by type, 01 ledger and 02 available."""
    assert text
    assert len(text) % 20 == 0
    found = {}
    for part in re.findall(".{20}", text):
        match = re.fullmatch(r"([0-9]{2})([0-9]{2})600([CD])([0-9]{12})", part)
        assert match, "a part of DE54 has another form"
        _account, kind, sign, amount = match.groups()
        found[kind] = -int(amount) if sign == "D" else int(amount)
    return found


@contextlib.contextmanager
def signed_on(address: tuple[str, int], keys: Keys, **options: Any) -> Iterator[IsoClient]:
    with IsoClient(address, keys, **options) as client:
        yield client.sign_on()
