"""The program as a stranger meets it: the command line, the wire, and nothing of the inside.

What is demanded here was read out of the descriptions of the protocol and of the domain; the peers
are those of `wire_client`, which shares no line with the switch. One node with open cashiers serves
most of the file; every test takes persons, and terminals where it counts, of its own.
"""

import csv
import datetime
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from tests.e2e.wire_client import (
    ERROR_63,
    NOBODY,
    SERVER,
    STEP_S,
    Ended,
    Message,
    Node,
    Peer,
    framed,
    ocra,
    pack,
    run,
    tag,
    told,
    totp,
    wrong,
)

ZONE = ZoneInfo("America/Asuncion")
CAP_0, CAP_1M, CAP_BIG = "0001", "0002", "0003"
CAP = 1_000_000
FRESH = 1100
BALANCE = 10_000_000
# Number of the terminal: network, branch, MAC.
TERMINALS = {
    "00000001": (CAP_BIG, "17", "hmac-sha256"),
    "00000002": (CAP_BIG, "17", "aes-cmac"),
    "00000003": (CAP_BIG, "18", "hmac-sha256"),
    "00000004": (CAP_BIG, "18", "hmac-sha256"),
    "00000005": (CAP_1M, "19", "hmac-sha256"),
    "00000006": (CAP_0, "20", "hmac-sha256"),
    "00000007": (CAP_BIG, "21", "hmac-sha256"),
}
MAIN, CMAC, OTHER_BRANCH, WRONG_CODES, CAPPED, NO_DEPOSITS, SPRAYED = TERMINALS
TEXTS = {
    "NO_APROBADA": ("05", "Operación no aprobada."),
    "OPERACION_NO_VALIDA": ("12", "Operación no válida."),
    "MONTO_NO_VALIDO": ("13", "Monto no permitido."),
    "ORIGINAL_NO_ENCONTRADO": ("25", "No existe."),
    "FONDOS": ("51", "Operación no aprobada."),
    "CODIGO": ("55", "Documento o código no válido."),
    "CODIGO_VENCIDO": ("55", "Código vencido: genere otro."),
    "CODIGO_USADO": ("55", "Código ya usado: genere otro."),
    "CODIGO_AMBIGUO": ("55", "Código no único: genere otro."),
    "USE_DOCUMENTO": ("55", "Use el documento."),
    "NO_HABILITADO": ("58", "Servicio no habilitado en esta boca."),
    "LIMITE_MONTO": ("61", "Límite excedido."),
    "LIMITE_RED": ("62", "Límite de la red alcanzado."),
    "CODIGO_BLOQUEADO": ("75", "Canal bloqueado: use la app."),
    "DUPLICADO_DISTINTO": ("94", "Operación duplicada con otros datos."),
    "FUERA_DE_PLAZO": ("A1", "Fuera de plazo."),
    "NO_ANULABLE": ("A2", "No se puede anular."),
    "FALTA_DECLARACION": ("A4", "Complete la declaración de origen de fondos."),
}
APPROVED = {
    "op", "trace", "code", "key", "text", "instruction", "state", "operation", "authorization",
    "business_date", "amount", "fee", "duplicate", "ticket",
}  # fmt: skip


class Person(NamedTuple):
    document: str
    seed: str


class Place:
    """A provisioned directory, its node, and hands to reach it."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "troncal.toml"
        self.made = {"init": told("init", directory)}
        self.keys: dict[str, str] = {}
        self.fresh: Iterator[Person] = iter(())
        self.traces = iter(range(1, 900_000))
        self.open = ExitStack()
        self.node: Node

    def add(self, *words: object) -> Any:
        """Run a provisioning command; the node may run or not."""
        answer = told(*words, config=self.config)
        self.made[" ".join(map(str, words[:2]))] = answer
        if "peer" in answer:
            self.keys[answer["peer"]] = answer["key"]
        return answer

    def start(self) -> None:
        self.node = Node(self.config)

    def terminal(self, number: str = MAIN, **options: Any) -> Peer:
        """A signed-on terminal; it is closed at the end of the test."""
        algorithm = TERMINALS[number][2] if number in TERMINALS else "hmac-sha256"
        options = {"algorithm": algorithm} | options
        return self.raw(number, **options).sign_on()

    def raw(self, number: str, *, listener: str = "terminals", **options: Any) -> Peer:
        key = options.pop("key", None) or self.keys[number]
        return self.open.enter_context(self.node.peer(listener, number, key, **options))

    def network(self, number: str = CAP_BIG) -> "Network":
        return Network(self.raw(number, listener="sicoop").sign_on())

    def cash_out(self, who: Person | None = None, **fields: Any) -> Message:
        """A cash_out with a new trace, of a new person unless it says who."""
        who = who or next(self.fresh)
        return {
            "op": "cash_out",
            "trace": next(self.traces),
            "cashier": "000345",
            "document": who.document,
            "token": totp(who.seed),
            "amount": 150_000,
            "currency": "PYG",
        } | fields

    def deposit(self, who: Person | None = None, **fields: Any) -> Message:
        request = self.cash_out(who, op="deposit", **fields)
        if "token" not in fields:
            del request["token"]
        return request

    def card_file(self, path: Path, persons: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Import cards; return what the command wrote about them, in their order."""
        names = list(dict.fromkeys(name for person in persons for name in person))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(persons)
        kept = path.with_suffix(".out")
        answer = told("card", "import", path, "--output", kept, config=self.config)
        assert answer == {"imported": len(persons), "failed": []}
        with kept.open(newline="") as file:
            return list(csv.DictReader(file))


def today() -> str:
    return datetime.datetime.now(ZONE).date().isoformat()


def utc(off_s: float = 0) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=off_s)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def step_now() -> int:
    return int(time.time()) // STEP_S


@pytest.fixture(scope="module")
def module_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("open") / "node"
    place = Place(directory)
    place.add("network", "add", CAP_0)
    place.add("network", "add", CAP_1M, "--name", "Red Dos", "--net-debit-cap", CAP)
    place.add("network", "add", CAP_BIG, "--net-debit-cap", 10**11)
    rows = place.card_file(
        directory / "fresh.csv",
        [{"document": str(1_000_000 + n), "balance": BALANCE} for n in range(FRESH)],
    )
    place.fresh = iter([Person(str(1_000_000 + n), r["seed"]) for n, r in enumerate(rows)])
    place.start()

    def add(number: str) -> None:
        network, branch, mac = TERMINALS[number]
        words = ["terminal", "add", number, "--network", network, "--branch", branch, "--mac", mac]
        place.add(*words, *(["--no-ticket"] if number == NO_DEPOSITS else []))

    with ThreadPoolExecutor(3) as hands:  # on the running node, and at once
        list(hands.map(add, TERMINALS))
    yield place
    assert place.node.stop() == 0


@pytest.fixture
def place(module_place: Place) -> Iterator[Place]:
    with module_place.open:
        yield module_place


# --- what every answer must be -------------------------------------------------------------------


def check_ticket(lines: list[str], answer: Message, *wanted: str, last: str = "ORIGINAL") -> None:
    assert all(len(line) <= 40 and line.isascii() for line in lines), lines
    assert lines[-1][:8] == "Control "
    assert len(lines[-1]) == 40
    assert lines[-1].endswith(" " + last)
    code = lines[-1][8:16]
    assert len(code) == 8
    assert code == code.upper()
    int(code, 16)
    text = "\n".join(lines)
    amount = f"Gs. {answer['amount']:,}".replace(",", ".")
    for piece in (answer["operation"], answer["authorization"], amount, *wanted):
        assert piece in text, (piece, text)


def check_approved(answer: Message, request: Message) -> None:
    cash_out = request["op"] == "cash_out"
    assert set(answer) == APPROVED
    assert answer["op"] == "answer"
    assert (answer["code"], answer["key"], answer["trace"]) == ("00", "APROBADA", request["trace"])
    assert answer["instruction"] == ("ENTREGUE" if cash_out else "RECIBA")
    assert answer["text"] == ("Entregue el efectivo." if cash_out else "Reciba el efectivo.")
    assert answer["state"] == "REGISTRADA"
    assert len(answer["operation"]) == 12
    assert answer["operation"].isdigit()
    assert len(answer["authorization"]) == 6
    assert answer["authorization"].isalnum()
    assert answer["business_date"] == today()
    assert (answer["amount"], answer["fee"]) == (request["amount"], 0)
    assert answer["duplicate"] is False
    title = "EXTRACCION - TARJETA DIMO" if cash_out else "DEPOSITO - TARJETA DIMO"
    moved = "Efectivo entregado al titular." if cash_out else "Efectivo recibido del depositante."
    masked = f"CI ****{request['document'][-3:]}" if "document" in request else ""
    check_ticket(answer["ticket"], answer, title, moved, masked, f"{request['trace']:06}")


def check_declined(answer: Message, request: Message, key: str) -> None:
    code, text = TEXTS[key]
    assert (answer["code"], answer["key"], answer["text"]) == (code, key, text)
    assert answer["trace"] == request["trace"]
    assert answer["instruction"] == ("NO_RECIBA" if request["op"] == "deposit" else "NO_ENTREGUE")
    assert answer["state"] == "RECHAZO_REGISTRADO"
    assert answer["duplicate"] is False
    assert not {"authorization", "ticket", "field"} & set(answer)


def query(peer: Peer, original: int, **fields: Any) -> tuple[str, str, str]:
    """Ask what to do now: (code, state, instruction)."""
    answer = peer.ask({"op": "last_operation", "original": original} | fields)
    assert answer["original"] == original
    assert {"code", "key", "text"} <= set(answer)
    return answer["code"], answer["state"], answer["instruction"]


def annul(place: Place, operation: Message, /, **fields: Any) -> Message:
    request = {
        "op": "annul",
        "trace": next(place.traces),
        "cashier": "345",
        "original": operation["trace"],
        "supervisor": "346",
        "business_date": today(),
    } | fields
    return {name: value for name, value in request.items() if value is not None}


# --- provisioning --------------------------------------------------------------------------------


def test_what_provisioning_prints(place: Place) -> None:
    init = place.made["init"]
    assert Path(init["config"]) == place.config
    assert place.config.exists()
    assert place.config.with_name("data").is_dir()
    assert set(place.made["network add"]) == {"peer", "key"}
    assert set(place.made["terminal add"]) == {"peer", "key", "mac"}
    assert place.made["terminal add"]["mac"] == TERMINALS[place.made["terminal add"]["peer"]][2]
    assert all(len(bytes.fromhex(key)) == 32 for key in place.keys.values())
    assert len(set(place.keys.values())) >= len(TERMINALS) + 3
    card = place.add("card", "add", "--document", "4123456", "--name", "Ana", "--balance", 5000)
    assert set(card) == {"card", "seed", "otpauth"}
    assert card["otpauth"].startswith("otpauth://totp/")
    assert f"secret={card['seed']}" in card["otpauth"]
    code = told("card", "code", "--seed", card["seed"], "--at", 1_795_327_648)
    assert code["code"] == totp(card["seed"], 1_795_327_648 // STEP_S)
    host = place.add("host", "add", "banco", "--dialect", "bank", "--mac", "retail")
    assert set(host) == {"host", "mac_key", "data_key", "zone_key"}
    assert [len(host[key]) for key in ("mac_key", "data_key", "zone_key")] == [32, 64, 64]


def test_usage_is_2_and_failure_is_1(place: Place, tmp_path: Path) -> None:
    for code, words in [
        (2, ["nothing"]),
        (2, ["network", "add", "12"]),
        (2, ["card", "add", "--document", "1"]),
        (1, ["network", "add", CAP_0]),
        (1, ["init", str(place.config.parent)]),
        (1, ["serve"]),  # a node runs there already
        (1, ["verify", "-c", str(tmp_path / "none.toml")]),
    ]:
        done = run(*words, config=place.config)
        assert (done.returncode, done.stdout) == (code, ""), words
        assert "rror: " in done.stderr
        assert "Traceback" not in done.stderr


def test_check_config_names_the_line(place: Place, tmp_path: Path) -> None:
    assert told("check-config", config=place.config)["ok"] is True
    bad = tmp_path / "bad.toml"
    text = place.config.read_text()
    bad.write_text(
        text.replace("heartbeat_s = 30", "heartbeat_s = 0").replace("red_s = 25", "red_s = 31")
    )
    lines = bad.read_text().splitlines()
    done = run("check-config", "-c", bad, "--json")
    assert done.returncode == 1
    found = {mistake["line"] for mistake in json.loads(done.stdout)["mistakes"]}
    assert found == {lines.index("heartbeat_s = 0") + 1, lines.index("red_s = 31") + 1}
    people = run("check-config", "-c", bad)
    assert people.returncode == 1
    assert f"{bad}:{lines.index('red_s = 31') + 1}:" in people.stderr


# --- the session ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [MAIN, CMAC])
@pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])
def test_session_in_both_macs_and_encodings(place: Place, number: str, packed: bool) -> None:
    peer = place.terminal(number, packed=packed)
    assert set(peer.answer) == {"op", "code", "nonce", "client_nonce", "heartbeat", "time"}
    assert (peer.answer["code"], peer.answer["heartbeat"]) == ("00", 30)
    moment = datetime.datetime.strptime(peer.answer["time"], "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs(moment.timestamp() - time.time()) < 30
    assert len(bytes.fromhex(peer.answer["nonce"])) == 16
    assert peer.ask({"op": "echo"}) == {"op": "echo_answer"}
    assert peer.ask({"op": "echo", "trace": 7, "more": [None]}) == {"op": "echo_answer", "trace": 7}
    request = place.cash_out(local_time="2001-01-01T00:00:00-03:00")  # K01: information only
    check_approved(peer.ask(request), request)
    off = peer.ask({"op": "sign_off"})
    assert (off["op"], off["code"]) == ("answer", "00")
    peer.expect_end()


def test_a_reply_has_the_encoding_of_its_request(place: Place) -> None:
    peer = place.terminal()
    for message in ({"op": "echo"}, {"op": "holder"}, {"op": "holder", "trace": 3}, {"op": "x"}):
        peer.send(message)
        as_json = peer.next()
        peer.packed = True
        peer.send_bytes(peer.frame(pack(message)))
        assert peer.next() == as_json
        peer.packed = False
    for garbage in (b"\x01\x02", b"[]", b" {}", b"{", b'{"op":"echo","x":' + b"[" * 5000):
        peer.send_bytes(peer.frame(garbage))
        assert peer.next() == {"op": "error", "code": "30", "field": "payload"}
    assert peer.ask({"op": "echo"}) == {"op": "echo_answer"}


def test_frames_may_come_in_any_pieces(place: Place) -> None:
    peer = place.raw(MAIN)
    nonce = bytes(range(16))
    for byte in peer.sign_on_frame(nonce):
        peer.send_bytes(bytes([byte]))
    peer.answer = peer.read()
    peer.rekey(nonce)
    for byte in peer.frame(b'{"op":"echo","trace":5}'):
        peer.send_bytes(bytes([byte]))
    assert peer.next() == {"op": "echo_answer", "trace": 5}


def test_200_requests_in_one_write(place: Place) -> None:
    """More than max_in_flight (64): the rest waits in the socket, nothing is lost or refused."""
    peer = place.terminal()
    requests = {r["trace"]: r for r in (place.cash_out() for _ in range(200))}
    peer.send_bytes(b"".join(peer.frame(peer.encode(r)) for r in requests.values()))
    answers = {answer["trace"]: answer for answer in (peer.next() for _ in requests)}
    assert set(answers) == set(requests)
    for trace, request in requests.items():
        check_approved(answers[trace], request)
    assert len({answer["operation"] for answer in answers.values()}) == 200
    assert peer.silent()


@pytest.mark.parametrize("signed_on", [False, True])
def test_a_length_out_of_range_ends_the_connection(place: Place, signed_on: bool) -> None:
    for head in (b"\x00\x08" + b"x" * 8, b"\x20\x01" + b"x" * 8193):
        peer = place.raw(MAIN)
        if signed_on:
            peer.sign_on()
        peer.send_bytes(head)
        payload, mac = peer.read_frame()
        assert json.loads(payload) == {"op": "error", "code": "30", "field": "length"}
        signed = (peer.algorithm, peer.key) if signed_on else ("hmac-sha256", NOBODY)
        assert mac == tag(*signed, SERVER, peer.received, payload)
        peer.expect_end()


def test_sign_ons_that_are_no_good(place: Place) -> None:
    """Another version and a bad field are told under the peer's own key."""
    good = {"op": "sign_on", "peer": CMAC, "key": 1, "nonce": "00" * 16, "version": 1}
    for change, answer in [
        ({"version": 2}, {"op": "error", "code": "12"}),
        ({"op": "echo"}, {"op": "error", "code": "12"}),
        ({"nonce": "zz"}, {"op": "error", "code": "30", "field": "nonce"}),
        ({"nonce": None}, {"op": "error", "code": "30", "field": "nonce"}),
    ]:
        peer = place.raw(CMAC, algorithm="aes-cmac")
        peer.send({k: v for k, v in (good | change).items() if v is not None})
        assert peer.read() == answer
        peer.expect_end()


def test_what_proves_nothing_gets_63(place: Place) -> None:
    """Byte for byte the same, whatever was wrong; S01, S02, I11."""
    right = place.keys[OTHER_BRANCH]
    for number, key, options in [
        ("99999999", right, {}),
        (OTHER_BRANCH, "00" * 32, {}),
        (OTHER_BRANCH, right, {"key_number": 2}),
        (OTHER_BRANCH, right, {"algorithm": "aes-cmac"}),
    ]:
        peer = place.raw(number, key=key, **options)
        peer.send_bytes(peer.sign_on_frame(bytes(16)))
        peer.read_63()
    long = place.raw(OTHER_BRANCH)
    long.send_bytes(long.sign_on_frame(bytes(16), more="x" * 512))
    long.read_63()
    packed = place.raw(CMAC, key="00" * 32, packed=True)
    packed.send_bytes(packed.sign_on_frame(bytes(16)))
    payload, mac = packed.read_frame()
    assert framed(payload, mac).hex() == "001a82a26f70a56572726f72a4636f6465a23633bd6a7f4dd6bf62c9"
    for number in (MAIN, CMAC):
        peer = place.terminal(number)
        assert peer.ask({"op": "echo"}) == {"op": "echo_answer"}
        frame = peer.frame(b'{"op":"echo"}')
        peer.send_bytes(frame)
        assert peer.next() == {"op": "echo_answer"}
        peer.send_bytes(frame)  # replayed
        peer.read_63()
        peer = place.terminal(number)
        frame = peer.frame(b'{"op":"echo"}')
        peer.send_bytes(frame[:-1] + bytes([frame[-1] ^ 1]))
        peer.read_63()


def test_five_bad_sign_ons_lock_the_pair_only(place: Place) -> None:
    """Sessions of the locked peer go on, and other peers of that address sign on."""
    before = place.terminal(OTHER_BRANCH)
    assert before.ask({"op": "echo"}) == {"op": "echo_answer"}
    while True:  # other tests may have failed under this number already
        peer = place.raw(OTHER_BRANCH, key="00" * 32)
        peer.send_bytes(peer.sign_on_frame(bytes(16)))
        peer.read_63()
        peer = place.raw(OTHER_BRANCH)
        peer.send_bytes(peer.sign_on_frame(bytes(16)))
        payload, _ = peer.read_frame()
        if payload == ERROR_63:
            break
    assert before.ask({"op": "echo"}) == {"op": "echo_answer"}
    assert place.terminal(WRONG_CODES).ask({"op": "echo"}) == {"op": "echo_answer"}


def test_a_new_session_displaces_with_its_first_good_frame(place: Place) -> None:
    old = place.terminal()
    assert old.ask({"op": "echo"}) == {"op": "echo_answer"}
    new = place.terminal()
    assert old.ask({"op": "echo"}) == {"op": "echo_answer"}
    assert new.ask({"op": "echo"}) == {"op": "echo_answer"}
    old.expect_end()


def test_a_network_has_eight_sessions(place: Place) -> None:
    peers = [place.raw(CAP_0, listener="sicoop").sign_on() for _ in range(9)]
    for peer in peers[:8]:
        assert peer.ask({"op": "echo", "id": 1}) == {"op": "echo_answer", "id": 1}
    assert peers[8].ask({"op": "echo"}) == {"op": "echo_answer"}
    peers[0].expect_end()
    assert peers[1].ask({"op": "echo"}) == {"op": "echo_answer"}


def test_two_keys_of_one_terminal(place: Place) -> None:
    """Rotation with overlap, on the running node."""
    answer = place.add("terminal", "add", "00000070", "--network", CAP_BIG, "--branch", "70")
    first = answer["key"]
    second = told("terminal", "rotate", "00000070", config=place.config)["key"]
    assert first != second
    for number, key in ((1, first), (2, second)):
        peer = place.raw("00000070", key=key, key_number=number).sign_on()
        assert peer.ask({"op": "echo"}) == {"op": "echo_answer"}
    told("terminal", "disable", "00000070", config=place.config)
    refused = peer.ask(request := place.cash_out())
    check_declined(refused, request, "NO_HABILITADO")  # X010
    peer.expect_end()
    late = place.raw("00000070", key=first)
    late.send_bytes(late.sign_on_frame(bytes(16)))
    late.read_63()


# --- cash_out ------------------------------------------------------------------------------------


def test_cash_out_and_what_a_query_says_of_it(place: Place) -> None:
    """Section 4 of the failure rules, the column of cash_out; X001, X125, X128, V01, V03."""
    peer = place.terminal()
    request = place.cash_out()
    first = peer.ask(request)
    check_approved(first, request)
    asked = peer.ask({"op": "last_operation", "original": request["trace"], "trace": 9})
    assert set(asked) == APPROVED | {"original"}
    assert (asked["trace"], asked["original"], asked["duplicate"]) == (9, request["trace"], True)
    assert (asked["state"], asked["instruction"]) == ("REGISTRADA", "ENTREGUE")
    check_ticket(asked["ticket"], first, last="DUPLICADO")
    assert asked["ticket"][-1][:16] == first["ticket"][-1][:16]
    assert peer.ask({"op": "last_operation"})["operation"] == first["operation"]

    marked = peer.ask({"op": "delivered", "original": request["trace"]})
    assert (marked["code"], marked["state"]) == ("00", "ENTREGADA")
    assert (marked["instruction"], marked["text"]) == ("NO_ENTREGUE", "Ya entregada.")
    assert peer.ask({"op": "delivered", "original": request["trace"]})["duplicate"] is True
    assert query(peer, request["trace"]) == ("00", "ENTREGADA", "NO_ENTREGUE")
    again = peer.ask(request)
    assert (again["duplicate"], again["instruction"]) == (True, "NO_ENTREGUE")

    undo = annul(place, request)
    annulled = peer.ask(undo)
    assert (annulled["code"], annulled["state"]) == ("00", "ANULADA")
    assert (annulled["instruction"], annulled["original"]) == ("RECIBA", request["trace"])
    check_ticket(annulled["ticket"], annulled, "ANULACION EXTRACCION", "Anula operacion")
    assert annulled["ticket"][-1] != first["ticket"][-1]
    repeated = peer.ask(undo | {"supervisor": "000346"})
    assert (repeated["duplicate"], repeated["instruction"]) == (True, "RECIBA")
    assert query(peer, request["trace"]) == ("00", "ANULADA", "RECIBA")

    request = place.cash_out()
    check_approved(peer.ask(request), request)
    assert peer.ask(annul(place, request))["instruction"] == "NO_ENTREGUE"
    assert query(peer, request["trace"]) == ("00", "ANULADA", "NO_ENTREGUE")

    request = place.cash_out(amount=1500)
    check_declined(peer.ask(request), request, "MONTO_NO_VALIDO")
    assert query(peer, request["trace"]) == ("13", "RECHAZO_REGISTRADO", "NO_ENTREGUE")
    marked = peer.ask({"op": "delivered", "original": request["trace"]})
    assert (marked["code"], marked["instruction"]) == ("12", "NO_ENTREGUE")
    assert query(peer, 999_999) == ("25", "DESCONOCIDA", "NO_ENTREGUE")
    assert query(peer, 999_999, kind="deposit") == ("25", "DESCONOCIDA", "DEVUELVA")
    assert peer.ask({"op": "delivered", "original": 999_999})["code"] == "25"


def test_the_same_trace_again(place: Place) -> None:
    """I02, I03, K01: same body, stored answer; another body, 94 and the original untouched."""
    peer = place.terminal()
    request = place.cash_out()
    first = peer.ask(request)
    check_approved(first, request)
    for change in (
        {},
        {"cashier": "345"},
        {"local_time": "2026-01-01T10:00:00-03:00"},
        {"document_type": "CI"},
        {"unheard_of": {"a": [1]}},
    ):
        again = peer.ask(request | change)
        assert again["duplicate"] is True
        fixed = ("code", "state", "instruction", "operation", "authorization", "amount", "trace")
        assert [again[name] for name in fixed] == [first[name] for name in fixed]
        check_ticket(again["ticket"], first, last="DUPLICADO")
    for change in (
        {"amount": 151_000},
        {"token": wrong(request["token"])},
        {"cashier": "346"},
        {"document": next(place.fresh).document},
        {"branch": "18"},
    ):
        other = peer.ask(request | change)
        assert (other["code"], other["text"]) == TEXTS["DUPLICADO_DISTINTO"]
        assert (other["instruction"], other["state"]) == ("NO_ENTREGUE", "REGISTRADA")
        assert "operation" not in other
    deposit = peer.ask({k: v for k, v in request.items() if k != "token"} | {"op": "deposit"})
    assert (deposit["code"], deposit["instruction"]) == ("94", "NO_RECIBA")
    assert peer.ask(annul(place, request, trace=request["trace"]))["code"] == "94"
    assert query(peer, request["trace"]) == ("00", "REGISTRADA", "ENTREGUE")
    both = [peer.frame(peer.encode(r)) for r in [place.cash_out()] * 2]  # I01, I04
    peer.send_bytes(b"".join(both))
    answers = [peer.next(), peer.next()]
    assert sorted(answer["duplicate"] for answer in answers) == [False, True]
    assert answers[0]["operation"] == answers[1]["operation"]


BAD_FIELDS: list[tuple[str, list[Any]]] = [
    ("amount", [0, -1, 1.5, 150_000.0, "150000", True, 10**12, 10**30, None]),
    ("currency", ["pyg", "Gs", 600, None]),
    ("token", ["12345", "123456789", "12345a", "１２３４５６", "123456\n", 123456, None]),
    ("document", ["1234", "123456789", "12a4567", " 4567890", 4567890, None]),
    ("document_type", ["XX", "ci", 1]),
    ("cashier", ["", "1234567", "x", 345, None]),
    ("branch", ["", "1234567", 17]),
    ("local_time", [5]),
]


def test_format_errors_leave_the_trace_free(place: Place) -> None:
    """X007, T19: 30 and the field in an answer where the trace can be read; no attempt."""
    peer = place.terminal()
    who = next(place.fresh)
    request = place.cash_out(who)
    for field, values in BAD_FIELDS:
        for value in values:
            changed = {k: v for k, v in (request | {field: value}).items() if v is not None}
            answer = peer.ask(changed)
            assert set(answer) == {"op", "trace", "code", "key", "text", "instruction", "field"}
            assert (answer["code"], answer["key"], answer["field"]) == ("30", "FORMATO", field)
            assert answer["text"].startswith("Dato no válido: ")
            assert answer["instruction"] == "NO_ENTREGUE"
    for trace in (0, 1_000_000, "7", 1.0, True, None):
        answer = peer.ask(request | {"trace": trace})
        assert answer == {"op": "error", "code": "30", "field": "trace"}
    both = peer.ask(request | {"phone": "0981123456"})
    assert (both["code"], both["field"]) == ("30", "document")
    neither = {k: v for k, v in request.items() if k != "document"}
    assert peer.ask(neither)["field"] == "document"
    for phone in ("12", "981123456", "+12", "+5959811234567"):
        assert peer.ask(neither | {"phone": phone})["field"] == "phone"
    unknown = peer.ask({"op": "pay", "trace": 4})
    assert (unknown["code"], unknown["trace"]) == ("12", 4)
    check_approved(peer.ask(request), request)


def test_amounts_and_limits(place: Place) -> None:
    """X002, X008, X009, L02, L04, T15: 40 daily wages are 4,305,080 PYG."""
    peer = place.terminal()
    for amount in (1, 999, 1001, 5_001_000, 999_999_999_999):
        request = place.cash_out(amount=amount)
        check_declined(peer.ask(request), request, "MONTO_NO_VALIDO")
    request = place.cash_out(currency="USD")
    check_declined(peer.ask(request), request, "OPERACION_NO_VALIDA")

    who, step = next(place.fresh), step_now()
    request = place.cash_out(who, amount=4_306_000, token=totp(who.seed, step - 1))
    check_declined(peer.ask(request), request, "LIMITE_MONTO")
    used = place.cash_out(who, amount=1000, token=totp(who.seed, step - 1))
    check_declined(peer.ask(used), used, "CODIGO_USADO")
    request = place.cash_out(who, amount=4_305_000, token=totp(who.seed, step))
    check_approved(peer.ask(request), request)
    more = place.cash_out(who, amount=1000, token=totp(who.seed, step + 1))
    check_declined(peer.ask(more), more, "LIMITE_MONTO")
    assert peer.ask(annul(place, request))["code"] == "00"

    card = place.add("card", "add", "--document", "4200001", "--balance", 100_000)
    poor = Person("4200001", card["seed"])
    request = place.cash_out(poor, amount=101_000, token=totp(poor.seed, step))
    check_declined(peer.ask(request), request, "FONDOS")
    request = place.cash_out(poor, amount=100_000, token=totp(poor.seed, step + 1))
    check_approved(peer.ask(request), request)
    left = told("card", "show", card["card"], config=place.config)
    assert (left["balance"], left["available"], left["held"]) == (0, 0, 0)


def test_codes_of_a_card(place: Place) -> None:
    """T01 to T06, T13, T14: the window is two steps back and one on."""
    peer = place.terminal(WRONG_CODES)
    who, other, step = next(place.fresh), next(place.fresh), step_now()
    for token, key in [
        (totp(who.seed, step - 1), ""),
        (totp(who.seed, step - 1), "CODIGO_USADO"),
        (totp(who.seed, step - 2), "CODIGO_USADO"),
        (totp(who.seed, step - 8), "CODIGO_VENCIDO"),
        (totp(who.seed, step), ""),
        (totp(other.seed, step), "CODIGO"),
        (wrong(*(totp(who.seed, step, away=n) for n in range(-18, 19))), "CODIGO"),
        (totp(who.seed, step + 1), ""),
    ]:
        request = place.cash_out(who, token=token)
        answer = peer.ask(request)
        if key:
            check_declined(answer, request, key)
        else:
            check_approved(answer, request)


def test_the_third_wrong_code_locks(place: Place) -> None:
    """T07, X003: known or not, the third is already 75, and then even a right code is."""
    peer = place.terminal(WRONG_CODES)
    known = next(place.fresh)
    for who in (known, Person("9999991", known.seed)):
        bad = wrong(*(totp(known.seed, away=n) for n in range(-18, 19)))
        for token, key in [
            (bad, "CODIGO"),
            (bad, "CODIGO"),
            (bad, "CODIGO_BLOQUEADO"),
            (totp(known.seed), "CODIGO_BLOQUEADO"),
        ]:
            request = place.cash_out(who, token=token)
            answer = peer.ask(request)
            check_declined(answer, request, key)
            assert len(answer["operation"]) == 12


def test_who_tries_many_documents_is_locked(place: Place) -> None:
    """T10: twenty wrong codes lock terminal and cashier; other terminals go on."""
    peer, who = place.terminal(SPRAYED), next(place.fresh)
    for n in range(20):
        request = place.cash_out(Person(str(8_000_000 + n), who.seed), cashier="900")
        check_declined(peer.ask(request), request, "CODIGO")
    request = place.cash_out(who)
    check_declined(peer.ask(request), request, "CODIGO_BLOQUEADO")
    other = place.terminal()
    request = place.cash_out(who, cashier="900")
    check_declined(other.ask(request), request, "CODIGO_BLOQUEADO")
    request = place.cash_out(who)
    check_approved(other.ask(request), request)


def test_several_cards_and_telephones(place: Place) -> None:
    """X004, X005, D04, I12."""
    seed, double, blocked, twin, phones = (next(place.fresh).seed for _ in range(5))
    rows = place.card_file(
        place.config.with_name("several.csv"),
        [
            {"document": "4300001", "balance": 1_000_000, "seed": seed, "name": "Eva Núñez"},
            {"document": "4300001", "balance": 1_000_000, "default": "yes"},
            {"document": "4300002", "balance": 1_000_000, "seed": double},
            {"document": "4300002", "balance": 1_000_000, "seed": double},
            {"document": "4300003", "balance": 1_000_000, "seed": blocked},
            {"document": "4300004", "balance": 1_000_000, "seed": twin, "phone": "0982000001"},
            {"document": "4300005", "balance": 1_000_000, "phone": "+595982000001"},
            {"document": "4300006", "balance": 1_000_000, "seed": phones, "phone": "0982000002"},
            {"document": "4300007"},
            {"document": "4300007"},
        ],
    )
    cards = [row["card"] for row in rows]
    peer = place.terminal()
    request = place.cash_out(Person("4300001", rows[0]["seed"]))
    check_approved(peer.ask(request), request)
    assert told("card", "show", cards[0], config=place.config)["available"] == 850_000
    request = place.cash_out(Person("4300002", double))
    check_declined(peer.ask(request), request, "CODIGO_AMBIGUO")
    told("card", "disable", cards[4], config=place.config)
    request = place.cash_out(Person("4300003", blocked))
    check_declined(peer.ask(request), request, "NO_APROBADA")
    request = place.deposit(Person("4300003", blocked))
    check_declined(peer.ask(request), request, "NO_APROBADA")

    def by_phone(phone: str, **fields: Any) -> Message:
        request = place.cash_out(Person("", phones), phone=phone, **fields)
        del request["document"]
        return request

    request = by_phone("0982000001", token=totp(twin))
    check_declined(peer.ask(request), request, "USE_DOCUMENTO")
    request = by_phone("0982000002")
    check_approved(first := peer.ask(request), request)
    again = peer.ask(request | {"phone": "+595982000002"})
    assert (again["operation"], again["duplicate"]) == (first["operation"], True)

    to_default, to_card = (place.deposit(Person("4300001", seed)) for _ in range(2))
    to_card["card"] = cards[0]
    check_approved(peer.ask(to_default), to_default)
    check_approved(peer.ask(to_card), to_card)
    assert told("card", "show", cards[1], config=place.config)["available"] == 1_150_000
    guess = place.deposit(Person("4300007", seed))
    check_declined(peer.ask(guess), guess, "NO_APROBADA")
    foreign = place.deposit(Person("4300007", seed), card=cards[0])
    check_declined(peer.ask(foreign), foreign, "NO_APROBADA")

    holder = peer.ask({"op": "holder", "document": "4300001", "trace": 5})
    assert set(holder) == {"op", "code", "trace", "name", "cards"}
    assert (holder["op"], holder["code"], holder["trace"]) == ("holder_answer", "00", 5)
    assert "Núñez" not in holder["name"]
    assert "*" in holder["name"]
    assert {card["card"] for card in holder["cards"]} == set(cards[:2])
    assert all(set(card) == {"card", "label"} for card in holder["cards"])
    unknown = peer.ask({"op": "holder", "document": "9999992"})
    assert unknown == {"op": "holder_answer", "code": "05"}
    assert peer.ask({"op": "holder"}) == {"op": "error", "code": "30", "field": "document"}
    bad = peer.ask({"op": "holder", "document": "1", "trace": 6})
    assert (bad["op"], bad["code"], bad["trace"]) == ("answer", "30", 6)
    assert bad["field"] == "document"


def test_codes_bound_to_the_amount_and_vouchers(place: Place) -> None:
    """T17, T18, T24."""
    peer = place.terminal(WRONG_CODES)
    seeds = [next(place.fresh).seed for _ in range(2)]
    rows = place.card_file(
        place.config.with_name("modes.csv"),
        [
            {"document": "4400001", "balance": 1_000_000, "seed": seeds[0], "token_mode": "ocra"},
            {"document": "4400002", "balance": 1_000_000, "seed": seeds[1], "token_mode": "vale"},
        ],
    )
    who = Person("4400001", seeds[0])
    for token, key in [
        (ocra(who.seed, "cash_out", 151_000), "CODIGO"),
        (ocra(who.seed, "deposit", 150_000), "CODIGO"),
        (ocra(who.seed, "cash_out", 150_000), ""),
    ]:
        request = place.cash_out(who, token=token)
        answer = peer.ask(request)
        if key:
            check_declined(answer, request, key)
        else:
            check_approved(answer, request)
    vale = told("card", "voucher", rows[1]["card"], "--amount", 150_000, config=place.config)
    who = Person("4400002", seeds[1])
    request = place.cash_out(who, token=vale["code"], amount=151_000)
    check_declined(peer.ask(request), request, "CODIGO")
    request = place.cash_out(who, token=vale["code"])
    check_approved(peer.ask(request), request)
    request = place.cash_out(who, token=vale["code"])
    check_declined(peer.ask(request), request, "CODIGO_USADO")


def test_who_may_annul_what(place: Place) -> None:
    """V05, V09: refused, and the operation stays as it was."""
    peer, other = place.terminal(), place.terminal(WRONG_CODES)
    request = place.cash_out()
    check_approved(peer.ask(request), request)
    for field in ("supervisor", "business_date"):
        answer = peer.ask(annul(place, request, **{field: None}))
        assert (answer["code"], answer["field"]) == ("30", field)
    for change, code in [
        ({"supervisor": "345"}, "58"),
        ({"original": 888_888}, "25"),
        ({"business_date": "2026-01-01"}, "12"),
    ]:
        undo = annul(place, request, **change)
        answer = peer.ask(undo)
        assert (answer["code"], answer["trace"]) == (code, undo["trace"])
        assert answer["original"] == undo["original"]
    assert other.ask(annul(place, request))["code"] == "25"
    assert query(peer, request["trace"]) == ("00", "REGISTRADA", "ENTREGUE")
    declined = place.cash_out(amount=1)
    peer.ask(declined)
    assert peer.ask(annul(place, declined))["code"] == "A2"
    dated = annul(place, request, business_date=today().replace("-", ""))
    assert peer.ask(dated)["state"] == "ANULADA"
    again = peer.ask(annul(place, request))
    assert (again["code"], again["state"]) == ("00", "ANULADA")
    marked = peer.ask({"op": "delivered", "original": request["trace"]})
    assert (marked["code"], marked["state"], marked["instruction"]) == (
        "12", "ANULADA", "NO_ENTREGUE",
    )  # fmt: skip


# --- deposit -------------------------------------------------------------------------------------


def test_deposit_and_what_a_query_says_of_it(place: Place) -> None:
    """Section 4 of the failure rules, the column of deposit; D01, D08, D17, D18, D21, D25."""
    peer = place.terminal(packed=True)
    who = next(place.fresh)
    request = place.deposit(who, depositor="CI4567891")
    first = peer.ask(request)
    check_approved(first, request)
    assert query(peer, request["trace"]) == ("00", "REGISTRADA", "RECIBA")
    again = peer.ask(request)
    assert (again["duplicate"], again["instruction"]) == (True, "RECIBA")
    marked = peer.ask({"op": "delivered", "original": request["trace"]})
    assert (marked["instruction"], marked["text"]) == ("NO_RECIBA", "Ya recibida.")
    assert query(peer, request["trace"]) == ("00", "ENTREGADA", "NO_RECIBA")
    annulled = peer.ask(annul(place, request))
    assert (annulled["code"], annulled["instruction"]) == ("00", "DEVUELVA")
    check_ticket(annulled["ticket"], annulled, "ANULACION DEPOSITO", "Anula operacion")
    assert query(peer, request["trace"]) == ("00", "ANULADA", "DEVUELVA")

    request = place.deposit(who)
    check_approved(peer.ask(request), request)
    assert peer.ask(annul(place, request))["instruction"] == "NO_RECIBA"
    assert query(peer, request["trace"]) == ("00", "ANULADA", "NO_RECIBA")

    request = place.deposit(Person("9999993", who.seed))
    check_declined(peer.ask(request), request, "NO_APROBADA")
    assert query(peer, request["trace"]) == ("05", "RECHAZO_REGISTRADO", "DEVUELVA")
    assert peer.ask(request)["instruction"] == "DEVUELVA"
    for field, value in [
        ("token", "123456"),
        ("depositor", "4567891"),
        ("declaration", {"name": 5}),
        ("declaration", "x"),
    ]:
        answer = peer.ask(place.deposit(who, **{field: value}))
        assert (answer["code"], answer["field"]) == ("30", field)
        assert answer["instruction"] == "NO_RECIBA"


def test_a_spent_deposit_cannot_be_annulled(place: Place) -> None:
    """V08, D02."""
    card = place.add("card", "add", "--document", "4200002", "--name", "José Ríos")
    who, peer = Person("4200002", card["seed"]), place.terminal()
    request = place.deposit(who)
    check_approved(answer := peer.ask(request), request)
    assert any(line.startswith("Titular ") and "***" in line for line in answer["ticket"])
    assert "Ríos" not in "\n".join(answer["ticket"])
    spent = place.cash_out(who, amount=100_000)
    check_approved(peer.ask(spent), spent)
    refused = peer.ask(annul(place, request))
    assert (refused["code"], refused["key"]) == ("A2", "NO_ANULABLE")
    assert query(peer, request["trace"]) == ("00", "REGISTRADA", "RECIBA")


def test_the_cap_of_a_network(place: Place) -> None:
    """D06, L06: met exactly it is allowed; 0, which is the default, allows no deposit at all."""
    peer = place.terminal(CAPPED)
    request = place.deposit(amount=CAP)
    check_approved(peer.ask(request), request)
    over = place.deposit(amount=1000)
    check_declined(peer.ask(over), over, "LIMITE_RED")
    assert query(peer, over["trace"]) == ("62", "RECHAZO_REGISTRADO", "DEVUELVA")
    out = place.cash_out()
    check_approved(peer.ask(out), out)  # D23: cash_out goes on, and makes room
    check_approved(peer.ask(fits := place.deposit(amount=150_000)), fits)
    assert peer.ask(annul(place, request))["code"] == "00"
    check_approved(peer.ask(fits := place.deposit(amount=1_000_000)), fits)

    peer = place.terminal(NO_DEPOSITS)
    none = place.deposit(amount=1000)
    check_declined(peer.ask(none), none, "LIMITE_RED")
    out = peer.ask(place.cash_out())
    assert (out["code"], "ticket" in out) == ("00", False)  # this terminal prints none


def test_the_origin_of_much_cash_is_declared(place: Place) -> None:
    """D19: 70,000,000 PYG within a day, the operation that reaches them included."""
    peer = place.terminal()
    who = next(place.fresh)
    for _ in range(13):
        request = place.deposit(who, amount=5_000_000)
        check_approved(peer.ask(request), request)
    request = place.deposit(who, amount=5_000_000)
    check_declined(peer.ask(request), request, "FALTA_DECLARACION")
    below = place.deposit(who, amount=4_999_000)
    check_approved(peer.ask(below), below)
    names = ("name", "occupation", "address", "document", "phone", "nationality", "origin",
             "amount_in_words")  # fmt: skip
    declared = place.deposit(who, amount=5_000_000, declaration=dict.fromkeys(names, "x"))
    check_approved(peer.ask(declared), declared)


# --- health --------------------------------------------------------------------------------------


def test_health_and_metrics(place: Place) -> None:
    peer = place.terminal()
    request = place.cash_out()
    check_approved(peer.ask(request), request)
    assert place.node.get("/healthz")[0] == 200
    assert place.node.get("/readyz")[0] == 200
    status, text = place.node.get("/metrics")
    assert status == 200
    samples = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert samples
    assert all(line.startswith("troncal_") for line in samples)
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert all(name.startswith("troncal_") for name in names)


# --- the hop between a network and the platform --------------------------------------------------


class Network:
    """A network's own back-end on the platform's listener."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.ids = iter(range(1, 1_000_000))
        self.day = datetime.datetime.now(ZONE).strftime("%Y%m%d")

    def ask(self, op: str, key: str | None, **fields: Any) -> Message:
        message = {"op": op, "id": next(self.ids), "reference": key} | fields
        answer = self.peer.ask({k: v for k, v in message.items() if v is not None})
        assert answer["id"] == message["id"]
        return answer

    def reference(self, trace: int, network: str = CAP_BIG, terminal: str = MAIN) -> str:
        return f"{network}{terminal}{self.day}{trace:06}"

    def hold(self, key: str, who: Person, **fields: Any) -> Message:
        body = {
            "reference": key,
            "kind": "cash_out",
            "branch": "17",
            "cashier": "345",
            "document": who.document,
            "token": totp(who.seed),
            "amount": 150_000,
            "currency": "PYG",
            "sent_at": utc(),
        }
        return self.ask("hold", None, **(body | fields))

    def codes(self, *asked: tuple[str, str, dict[str, Any]]) -> list[str]:
        return [self.ask(op, reference, **fields)["code"] for op, reference, fields in asked]

    def state(self, reference: str) -> str:
        answer = self.ask("status", reference)
        assert answer["op"] == "status_answer"
        return str(answer["state"])


def test_hold_confirm_and_annul_of_a_network(place: Place) -> None:
    net, who = place.network(), next(place.fresh)
    one = net.reference(900_001)
    token = totp(who.seed)
    held = net.hold(one, who, token=token)
    assert held["op"] == "answer"
    assert (held["code"], held["duplicate"], held["fee"], held["commission"]) == ("00", False, 0, 0)
    assert (len(held["operation"]), len(held["authorization"])) == (12, 6)
    assert held["business_date"] == today()
    assert all(value != "" for value in held.values())
    assert net.state(one) == "RESPONDIDA"
    again = net.hold(one, who, token=token, sent_at=utc(-30))
    assert (again["duplicate"], again["operation"]) == (True, held["operation"])
    assert net.hold(one, who, token=token, amount=151_000)["code"] == "94"
    first, second = (net.ask("confirm", one, registered_at=utc()) for _ in range(2))
    assert (first["code"], second["code"]) == ("00", "00")
    assert net.state(one) == "CAPTURADA"
    amount = {"amount": 150_000}
    assert net.codes(
        ("annul", one, {"amount": 1000, "supervisor": "346"}),
        ("annul", one, amount | {"supervisor": "346"}),
        ("annul", one, amount | {"supervisor": "346"}),
        ("annul", net.reference(900_099), amount | {"supervisor": "346"}),
        ("confirm", net.reference(900_099), {"registered_at": utc()}),
    ) == ["A2", "00", "00", "25", "25"]
    declined = net.hold(net.reference(900_002), who, token=token)
    assert (declined["code"], declined["key"]) == ("55", "CODIGO_USADO")
    assert net.state(net.reference(900_002)) == "RECHAZADA"
    late = net.hold(net.reference(900_003), who, amount=1500)
    assert late["code"] == "13"
    assert "operation" not in late


def test_reversals_of_a_network(place: Place) -> None:
    """R02, R04, R07, R08, R09, R10: 00, then 21; without original 25 and a tombstone."""
    net = place.network()
    one, two, three = (net.reference(trace) for trace in (910_001, 910_002, 910_003))
    amount = {"amount": 150_000, "reason": "timeout"}
    who, other = next(place.fresh), next(place.fresh)
    token = totp(who.seed)
    assert net.hold(one, who, token=token)["code"] == "00"
    assert net.codes(
        ("reverse", one, {"amount": 1000, "reason": "timeout"}),
        ("reverse", one, amount),
        ("reverse", one, amount | {"reason": "registration_failed"}),
    ) == ["94", "00", "21"]
    assert net.state(one) == "REVERSADA"
    assert net.hold(one, who, token=token)["code"] == "21"
    confirm = {"registered_at": utc()}
    assert net.ask("confirm", one, **confirm)["code"] == "A3"
    assert net.state(one) == "CONFLICTO"

    assert net.codes(("reverse", two, amount), ("reverse", two, amount)) == ["25", "21"]
    assert net.state(two) == "TUMBA"
    assert net.hold(two, other)["code"] == "21"

    assert net.hold(three, other)["code"] == "00"
    assert net.codes(
        ("confirm", three, confirm),
        ("reverse", three, amount),
        ("confirm", three, confirm),
        ("annul", three, {"amount": 150_000, "supervisor": "346"}),
    ) == ["00", "A3", "A3", "A3"]
    assert net.state(three) == "CONFLICTO"


def test_what_a_network_may_not(place: Place) -> None:
    """I08, K05, R11, X010, and format errors under the request's id."""
    net, who = place.network(), next(place.fresh)
    foreign = net.reference(920_001, CAP_1M, CAPPED)
    assert net.hold(foreign, who)["code"] == "63"
    assert (
        net.codes(
            ("status", foreign, {}),
            ("reverse", foreign, {"amount": 1000, "reason": "timeout"}),
            ("confirm", foreign, {"registered_at": utc()}),
        )
        == ["63"] * 3
    )
    assert net.hold(net.reference(920_002, terminal=CAPPED), who)["code"] == "58"
    assert net.hold(net.reference(920_003), who, branch="77")["code"] == "58"
    for off in (-62, 62):
        refused = net.hold(net.reference(920_004), who, sent_at=utc(off))
        assert refused["code"] == "A5"
        assert refused["time"][:16] == utc()[:16]
    old = f"{CAP_BIG}{MAIN}20260101000001"
    assert net.hold(old, who)["code"] == "94"
    good = net.reference(920_005)
    for fields, field in [
        ({"sent_at": "now"}, "sent_at"),
        ({"sent_at": None}, "sent_at"),
        ({"token": None}, "token"),
        ({"kind": "deposit"}, "token"),
        ({"kind": "loan"}, "kind"),
        ({"reference": "123"}, "reference"),
        ({"reference": f"{CAP_BIG}{MAIN}20260230000001"}, "reference"),
    ]:
        refused = net.hold(good, who, **fields)
        assert (refused["op"], refused["code"], refused["field"]) == ("answer", "30", field)
    assert net.ask("holder", None, document="1")["field"] == "document"
    assert net.ask("holder", None, document=who.document)["op"] == "holder_answer"
    assert net.ask("nothing", None)["code"] == "12"
    assert net.peer.ask({"op": "status", "reference": good}) == {
        "op": "error", "code": "30", "field": "id",
    }  # fmt: skip
    assert net.state(net.reference(929_999)) == "DESCONOCIDA"
    assert net.hold(good, who)["code"] == "00"


def test_a_pending_deposit_cannot_be_spent(place: Place) -> None:
    """D01, D15: spendable only once the network has confirmed."""
    card = place.add("card", "add", "--document", "4200003")
    net, who = place.network(), Person("4200003", card["seed"])
    one, step = net.reference(930_001), step_now()
    held = net.hold(one, who, kind="deposit", token=None)
    assert held["code"] == "00"
    spend = net.hold(net.reference(930_002), who, token=totp(who.seed, step - 1))
    assert spend["code"] == "51"
    assert told("card", "show", card["card"], config=place.config)["available"] == 0
    assert net.ask("confirm", one, registered_at=utc())["code"] == "00"
    spend = net.hold(net.reference(930_003), who, token=totp(who.seed, step))
    assert spend["code"] == "00"


# --- operators -----------------------------------------------------------------------------------


def test_metrics_after_an_answer_without_a_code(place: Place) -> None:
    net = place.network()
    assert net.state(net.reference(940_001)) == "DESCONOCIDA"
    assert place.node.get("/metrics")[0] == 200


def eventually(look: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait for the read model, which follows behind."""
    until = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def test_questions_about_operations(place: Place) -> None:
    peer = place.terminal()
    request = place.cash_out()
    check_approved(answer := peer.ask(request), request)
    listed = told(
        "operations", "--terminal", MAIN, "--state", "registrada", "--limit", 1, config=place.config
    )
    assert listed[0]["operation"] == answer["operation"]
    assert request["document"] not in json.dumps(listed)
    for number in (listed[0]["reference"], answer["operation"]):
        shown = told("operation", number, config=place.config)
        assert shown["reference"] == listed[0]["reference"]
        assert (shown["state"], shown["amount"]) == ("REGISTRADA", request["amount"])
        steps = [(entry["role"], entry["state"]) for entry in shown["timeline"]]
        for step in [
            ("red", "INICIADA"),
            ("sicoop", "RESPONDIDA"),
            ("red", "REGISTRADA"),
            ("sicoop", "CAPTURADA"),
        ]:
            assert step in steps
    assert run("operation", "9" * 26, config=place.config).returncode == 1


# --- stops ---------------------------------------------------------------------------------------


def test_sigkill_takes_back_nothing_that_was_told(place: Place, tmp_path: Path) -> None:
    """X125, X126, T07: two terminals in full work, kill -9, restart, ask about every one."""
    requests = {number: [place.cash_out() for _ in range(250)] for number in (MAIN, CMAC)}
    answered: dict[str, list[Message]] = {MAIN: [], CMAC: []}

    def work(number: str, peer: Peer) -> None:
        try:
            for request in requests[number]:
                answered[number].append(peer.ask(request))
        except (Ended, OSError):
            pass

    peers = [place.terminal(number, packed=number == CMAC) for number in requests]
    workers = [
        threading.Thread(target=work, args=(n, p)) for n, p in zip(requests, peers, strict=True)
    ]
    for worker in workers:
        worker.start()
    eventually(lambda: min(map(len, answered.values())) > 20)
    assert place.node.stop(signal.SIGKILL) == -signal.SIGKILL
    for worker in workers:
        worker.join()
    assert told("verify", config=place.config)["ok"] is True
    place.start()
    for number, answers in answered.items():
        peer = place.terminal(number)
        for request, answer in zip(requests[number], answers, strict=False):
            check_approved(answer, request)
            now = peer.ask({"op": "last_operation", "original": request["trace"]})
            for name in ("code", "state", "instruction", "operation", "authorization", "amount"):
                assert now[name] == answer[name]
        request = requests[number][len(answers)] if len(answers) < 250 else requests[number][-1]
        asked = query(peer, request["trace"])
        again = peer.ask(request | {"local_time": utc()})
        if asked[1] == "REGISTRADA":  # decided, but the answer was lost on the way
            assert (again["duplicate"], again["instruction"]) == (True, "ENTREGUE")
        else:
            assert asked == ("25", "DESCONOCIDA", "NO_ENTREGUE")
            assert again["duplicate"] is False


def test_backup_restore_and_the_next_day(place: Place, tmp_path: Path) -> None:
    """A copy of the running node, restored elsewhere, tells the same; SIGTERM ends with 0."""
    peer = place.terminal()
    request = place.cash_out()
    check_approved(answer := peer.ask(request), request)
    copy, config = tmp_path / "copy", place.config
    assert set(told("backup", copy, config=config)) >= {"files", "bytes", "last_seq"}
    there = tmp_path / "there"
    told("init", there)
    shutil.rmtree(there / "data")
    shutil.copy(config.with_name("master.key"), there)
    told("restore", copy, config=there / "troncal.toml")
    assert place.node.stop() == 0
    report = told("verify", config=config)
    assert report["ok"] is True
    assert report["money_check"] == {"posted": 0, "pending": 0}
    place.node = Node(there / "troncal.toml")
    again = place.terminal().ask(request)
    assert (again["operation"], again["duplicate"]) == (answer["operation"], True)
    assert place.node.stop() == 0
    place.start()
    assert place.terminal().ask(request)["operation"] == answer["operation"]


def test_no_secret_is_stored_in_clear(place: Place) -> None:
    """S09, T21."""
    seeds = [place.made["card add"]["seed"], next(place.fresh).seed]
    secrets = [seed.encode() for seed in seeds]
    for key in place.keys.values():
        secrets += [key.encode(), bytes.fromhex(key)]
    files = [path for path in place.config.with_name("data").rglob("*") if path.is_file()]
    for path in [*files, place.node.log]:
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path


# --- listed cashiers -----------------------------------------------------------------------------


def test_listed_cashiers_work_in_shifts(tmp_path: Path) -> None:
    """S03, V02, V09, X141: codes of cashier and supervisor, the count of the till, and A1."""
    place = Place(tmp_path / "listed")
    text = place.config.read_text()
    assert 'cashiers = "open"' in text
    place.config.write_text(
        text.replace('cashiers = "open"', 'cashiers = "listed"').replace(
            'annul_until = ""', 'annul_until = "00:00"'
        )
    )
    place.add("network", "add", CAP_BIG, "--net-debit-cap", 10**9)
    place.add("terminal", "add", MAIN, "--network", CAP_BIG, "--branch", "17")
    at = ("--network", CAP_BIG, "--branch", "17")
    cashier = place.add("cashier", "add", "345", *at, "--name", "Ana")
    boss = place.add("cashier", "add", "346", *at, "--supervisor")
    card = place.add("card", "add", "--document", "4567890", "--balance", BALANCE)
    place.start()
    with place.open:
        shifts(place, Person("4567890", card["seed"]), cashier["seed"], boss["seed"])
    assert place.node.stop() == 0


def shifts(place: Place, who: Person, cashier: str, boss: str) -> None:
    peer, step = place.terminal(), step_now()
    opening = {"op": "shift_open", "cashier": "345", "float": 500_000, "trace": 1}

    def open_with(code: str, **fields: Any) -> str:
        return str(peer.ask(opening | {"cashier_code": code} | fields)["key"])

    assert peer.ask(place.cash_out(who))["key"] == "NO_HABILITADO"
    assert open_with(totp(cashier, step), cashier="999") == "NO_HABILITADO"
    assert open_with(wrong(totp(cashier, step))) == "CODIGO"
    assert open_with(totp(cashier, step)) == "APROBADA"
    assert open_with(totp(cashier, step)) == "CODIGO_USADO"
    out, paid_in = place.cash_out(who), place.deposit(who, amount=1_000_000)
    check_approved(peer.ask(out), out)
    check_approved(peer.ask(paid_in), paid_in)
    assert peer.ask(place.deposit(who, cashier="346"))["key"] == "NO_HABILITADO"
    for code, key in [
        (None, "FORMATO"),
        (wrong(totp(boss, step)), "CODIGO"),
        (totp(boss, step), "FUERA_DE_PLAZO"),
        (totp(boss, step), "CODIGO_USADO"),
    ]:
        answer = peer.ask(annul(place, out, supervisor_code=code))
        assert answer["key"] == key
    assert peer.ask(annul(place, out, supervisor="777", supervisor_code="123456"))["code"] == "58"
    assert query(peer, out["trace"]) == ("00", "REGISTRADA", "ENTREGUE")
    closing = {"op": "shift_close", "cashier": "345", "counted": 1_300_000, "trace": 2}
    closed = peer.ask(closing)
    assert (closed["code"], closed["trace"]) == ("00", 2)
    assert (closed["expected"], closed["difference"]) == (1_350_000, -50_000)
    (count,) = told("tills", "--differing", config=place.config)
    assert (count["terminal"], count["cashier"], count["difference"]) == (MAIN, "000345", -50_000)
    assert peer.ask(closing)["code"] == "12"
    assert peer.ask(place.deposit(who))["key"] == "NO_HABILITADO"
    bare = {"op": "shift_close", "cashier": "345"}
    assert peer.ask(bare) == {"op": "error", "code": "30", "field": "counted"}


# --- measurement ---------------------------------------------------------------------------------


def test_bench_reports_in_json() -> None:
    bench = run("bench", "cash-out", "--connections", 8, "--seconds", 2, "--cards", 4000, "--json")
    assert bench.returncode == 0, bench.stderr
    result = json.loads(bench.stdout.splitlines()[-1])
    assert (result["connections"], result["errors"]) == (8, 0)
    assert result["operations"] > 0
    assert result["rate_per_s"] > 0
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["p999_ms"]
