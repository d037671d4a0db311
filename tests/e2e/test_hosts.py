"""ceibo as a host of another make meets it: ISO 8583 over a socket, and the command line.

What is demanded here was read out of the description of the dialect. The client is `host_client`,
which shares no line with the switch.
"""

import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from tests.e2e.host_client import CASH_OUT, DEPOSIT, NETWORK, Host, mac, transmission_time
from tests.e2e.wire_client import Node, run, told, totp

A = 150_000
ANNULMENT, TIMEOUT = "17", "21"
NOBODY = {"mac_key": "0" * 32, "data_key": "0" * 64, "zone_key": "0" * 64}
LINKS = "\n[links.sicoop]\nhold_ask_after_s = 1\n"


class Place:
    """A ceibo by itself, its keys, and people with cards."""

    def __init__(self, directory: Path, toml: str = "") -> None:
        assert run("init", directory).returncode == 0
        self.config = directory / "troncal.toml"
        self.config.write_text(self.config.read_text() + toml)
        self.keys = told("host", "rotate", "sicoop", "-c", self.config)
        self._documents = itertools.count(3_000_001)
        self._numbers = itertools.count(1)
        self.node = Node(self.config, "--roles", "ceibo")

    def end(self, *, kill: bool = False) -> None:
        """Stop the node; it must drain and exit with 0 unless it is killed."""
        assert self.node.stop(signal.SIGKILL if kill else signal.SIGTERM) == (-9 if kill else 0)

    def restart(self, *, kill: bool = False) -> None:
        self.end(kill=kill)
        self.node = Node(self.config, "--roles", "ceibo")

    def host(self, **options: Any) -> Host:
        return Host(self.node.listeners["ceibo"], self.keys, **options)

    def admin(self, command: str, **values: Any) -> Any:
        """A provisioning command over the running node's socket, as the command line does it."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(120)
            wire.connect(str(self.config.parent / "data" / "admin.sock"))
            wire.sendall(json.dumps({"command": command, "values": values}).encode() + b"\n")
            answer = json.loads(wire.makefile().readline())
        assert "ok" in answer, answer
        return answer["ok"]

    def card(self, balance: int = 1_000_000) -> tuple[str, dict[str, Any]]:
        document = str(next(self._documents))
        made = self.admin("card_add", document=document, balance=balance, name="ANA MARIA ROJAS")
        return document, made

    def number(self) -> str:
        return f"26326{next(self._numbers):07}"

    def available(self, card: str) -> int:
        return int(self.admin("card_show", card=card)["available"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("ceibo"))
    yield found
    found.end()


@pytest.fixture
def host(place: Place) -> Iterator[Host]:
    with place.host() as found:
        found.sign_on()
        yield found


def test_cash_out_from_hold_to_capture(place: Place, host: Host) -> None:
    document, card = place.card()
    number = place.number()
    answer = host.ask("0100", host.hold(number, document, A, totp(card["seed"])))
    assert answer["39"] == "00"
    assert len(answer["38"]) == 6
    assert answer["15"] == answer["7"][:4] or answer["15"]
    assert host.state(number) == "ACTIVA"
    assert place.available(card["card"]) == 1_000_000 - A
    captured = host.ask("0220", host.decision(number, CASH_OUT, A))
    assert (captured["39"], captured["38"]) == ("00", answer["38"])
    assert host.state(number) == "CAPTURADA"
    for again in ("0220", "0221"):
        repeat = host.ask(again, host.decision(number, CASH_OUT, A))
        assert (repeat["39"], repeat["38"]) == ("00", answer["38"])
    assert place.available(card["card"]) == 1_000_000 - A


def test_deposit_and_its_release(place: Place, host: Host) -> None:
    document, card = place.card()
    number = place.number()
    assert host.ask("0100", host.hold(number, document, A))["39"] == "00"
    assert place.available(card["card"]) == 1_000_000
    for mti in ("0420", "0421", "0420"):
        assert host.ask(mti, host.decision(number, DEPOSIT, A, TIMEOUT))["39"] == "00"
    assert host.state(number) == "LIBERADA"
    assert host.ask("0220", host.decision(number, DEPOSIT, A))["39"] == "21"


def test_annulment_of_open_and_of_captured_holds(place: Place, host: Host) -> None:
    document, card = place.card()
    captured, still_open = place.number(), place.number()
    for number in (captured, still_open):
        assert host.ask("0100", host.hold(number, document, A))["39"] == "00"
    assert host.ask("0220", host.decision(captured, DEPOSIT, A))["39"] == "00"
    assert place.available(card["card"]) == 1_000_000 + A
    for number in (captured, still_open):
        for mti in ("0420", "0421"):
            assert host.ask(mti, host.decision(number, DEPOSIT, A, ANNULMENT))["39"] == "00"
    assert place.available(card["card"]) == 1_000_000
    assert (host.state(captured), host.state(still_open)) == ("CAPTURADA", "LIBERADA")


def test_release_without_original_leaves_a_tombstone(place: Place, host: Host) -> None:
    document, card = place.card()
    number = place.number()
    assert host.state(number) == ""
    for mti in ("0420", "0421"):
        assert host.ask(mti, host.decision(number, CASH_OUT, A, TIMEOUT))["39"] == "25"
    assert host.state(number) == "TUMBA"
    assert host.ask("0100", host.hold(number, document, A, totp(card["seed"])))["39"] == "21"
    assert place.available(card["card"]) == 1_000_000


def test_release_after_capture_is_a_contradiction(place: Place, host: Host) -> None:
    document, _ = place.card()
    number = place.number()
    host.ask("0100", host.hold(number, document, A))
    host.ask("0220", host.decision(number, DEPOSIT, A))
    assert host.ask("0420", host.decision(number, DEPOSIT, A, TIMEOUT))["39"] == "A3"
    assert host.state(number) == "CAPTURADA"


def test_repeated_holds_are_compared(place: Place, host: Host) -> None:
    document, card = place.card()
    number, code = place.number(), totp(card["seed"])
    first = host.ask("0100", host.hold(number, document, A, code))
    assert first["39"] == "00"
    # Another nonce, another time, another day of business: still the same request.
    again = host.ask("0100", host.hold(number, document, A, code, de15="1231", de12="000000"))
    assert {k: first[k] for k in ("38", "39")} == {k: again[k] for k in ("38", "39")}
    others: dict[str, Any] = {
        "amount": host.hold(number, document, A + 1000, code),
        "document": host.hold(number, "3999999", A, code),
        "code": host.hold(number, document, A, "000000"),
        "terminal": host.hold(number, document, A, code, de41="00000018"),
        "branch": host.hold(number, document, A, code, de42="000018".ljust(15)),
        "cashier": host.hold(number, document, A, code, tag04="000346"),
        "kind": host.hold(number, document, A),
    }
    for what, elements in others.items():
        assert host.ask("0100", elements)["39"] == "94", what
    assert place.available(card["card"]) == 1_000_000 - A
    differs = host.decision(number, CASH_OUT, A + 1)
    assert host.ask("0220", differs)["39"] == "94"
    assert host.ask("0220", host.decision(number, CASH_OUT, A))["39"] == "00"


def test_another_network_has_numbers_of_its_own(place: Place, host: Host) -> None:
    document, _ = place.card()
    number = place.number()
    assert host.ask("0100", host.hold(number, document, A))["39"] == "00"
    other = host.hold(number, document, A, de32="0013")
    assert host.ask("0100", other)["39"] == "00"
    assert host.ask("0220", host.decision(number, DEPOSIT, A) | {"32": "0013"})["39"] == "00"
    assert host.state(number) == "ACTIVA"


def test_declines(place: Place, host: Host) -> None:
    document, card = place.card(balance=A)
    wrong = "000000" if totp(card["seed"]) != "000000" else "000001"
    assert host.ask("0100", host.hold(place.number(), document, A, wrong))["39"] == "55"
    assert host.ask("0100", host.hold(place.number(), "3999999", A, wrong))["39"] == "55"
    declined = host.hold(place.number(), document, A + 1000, totp(card["seed"]))
    assert host.ask("0100", declined)["39"] == "51"
    assert host.ask("0100", declined)["39"] == "51"
    assert host.state(declined["37"]) == ""
    assert place.available(card["card"]) == A


def test_balances_where_they_are_asked_for(place: Place, host: Host) -> None:
    document, card = place.card()
    elements = host.hold(place.number(), document, A, totp(card["seed"]), tag09="1")
    answers = [host.ask("0100", elements) for _ in range(2)]
    ledger, available = f"0001600C{1_000_000:012}", f"0002600C{1_000_000 - A:012}"
    assert [answer["54"] for answer in answers] == [ledger + available] * 2
    plain = host.ask("0100", host.hold(place.number(), document, A))
    assert "54" not in plain


def test_holder(place: Place, host: Host) -> None:
    document, card = place.card()
    asked = {"3": "330000", "32": NETWORK, "48": {"01": f"CI{document}"}}
    tags = host.ask("0600", asked)["48"]
    assert tags["12"][0].startswith(card["card"] + ",")
    assert "ROJAS" not in tags["11"][0]
    assert host.ask("0600", asked | {"48": {"01": "CI3999999"}})["39"] == "05"


def test_transmission_time_that_is_off(place: Place, host: Host) -> None:
    document, _ = place.card()
    for away_s, code in ((-63, "A5"), (63, "A5"), (-50, "00"), (50, "00")):
        elements = host.hold(place.number(), document, 1000, de7=transmission_time(away_s))
        assert host.ask("0100", elements)["39"] == code
    # Only holds are refused for it: what undoes them never is.
    late = host.decision(place.number(), DEPOSIT, A, TIMEOUT) | {"7": transmission_time(-600)}
    assert host.ask("0420", late)["39"] == "25"


def test_nothing_before_sign_on(place: Place) -> None:
    document, _ = place.card()
    with place.host() as host:
        number = place.number()
        assert host.ask("0100", host.hold(number, document, A))["39"] == "12"
        assert host.ask("0420", host.decision(number, DEPOSIT, A))["39"] == "12"
        host.sign_on()
        assert host.state(number) == ""
        assert host.manage("301")["39"] == "00"
        assert host.manage("002")["39"] == "00"
        assert host.ask("0600", {"32": NETWORK, "37": number})["39"] == "12"


def test_wrong_mac_changes_nothing(place: Place, host: Host) -> None:
    document, card = place.card()
    number = place.number()
    message = host.message("0100", host.hold(number, document, A, totp(card["seed"])))
    host.send(message, key=bytes(16))
    answer = host.receive()
    assert answer is not None
    assert answer["39"] == "63"
    assert host.state(number) == ""


def test_code_under_another_data_key(place: Place, host: Host) -> None:
    document, card = place.card()
    host.data_key = bytes(32)
    number = place.number()
    assert host.ask("0100", host.hold(number, document, A, totp(card["seed"])))["39"] == "63"
    assert host.state(number) == ""


def test_format_errors(place: Place, host: Host) -> None:
    document, _ = place.card()
    for change in ({"de4": None}, {"de49": "999"}, {"de48": {"01": "XX1", "04": "000345"}},
                   {"de15": "1340"}):  # fmt: skip
        elements = host.hold(place.number(), document, A, **change)
        assert host.ask("0100", elements)["39"] == "30", change
    assert host.ask("0100", host.hold(place.number(), document, A, de4="0" * 12))["39"] == "13"
    body = host.encoded(host.message("0100", host.hold(place.number(), document, A)))
    bad = bytearray(body)
    bad[bad.index(b"600", 100)] = 0xFF
    host.send_bytes(bytes(bad))
    answer = host.receive()
    assert answer is not None
    assert answer["39"] == "30"
    assert host.manage("301")["39"] == "00"


@pytest.mark.parametrize("kind", ["mac", "data"])
def test_key_exchange(place: Place, kind: str) -> None:
    document, card = place.card()
    size = 16 if kind == "mac" else 32
    key = os.urandom(size)
    with place.host() as host:
        host.sign_on()
        tags = {
            "30": kind, "31": aes_key_wrap(host.zone_key, key).hex().upper(),
            "32": mac_check(key),
        }  # fmt: skip
        assert host.manage("101", **{"48": tags})["39"] == "00"
        place.keys[f"{kind}_key"] = key.hex()
        setattr(host, f"{kind}_key", key)
        hold = host.hold(place.number(), document, A, totp(card["seed"]))
        assert host.ask("0100", hold)["39"] == "00"
        wrong = tags | {"32": "000000"}
        assert host.manage("101", **{"48": wrong})["39"] == "63"
    place.restart()  # it was stored
    with place.host() as host:
        host.sign_on()
        assert host.state(hold["37"]) == "ACTIVA"


def mac_check(key: bytes) -> str:
    return mac(key, bytes(16))[:3].hex().upper()


def test_pipelined_in_one_write(place: Place, host: Host) -> None:
    document, _ = place.card()
    numbers = [place.number() for _ in range(100)]
    messages = [host.message("0100", host.hold(n, document, 1000)) for n in numbers]
    bodies = [host.encoded(m) for m in messages]
    host._socket.sendall(b"".join(len(b).to_bytes(2, "big") + b for b in bodies))
    answers = [host.receive() for _ in bodies]
    assert {a["11"]: a["39"] for a in answers if a} == {m["11"]: "00" for m in messages}


def test_bytes_one_by_one_and_strangers(place: Place, host: Host) -> None:
    body = host.encoded(host.message("0800", {"70": "301"}))
    for byte in len(body).to_bytes(2, "big") + body:
        host._socket.sendall(bytes([byte]))
        time.sleep(0.001)
    assert host.receive() is not None
    for junk in (b"\x00\x00", b"\xff\xff" + bytes(200), b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(place.node.listeners["ceibo"], 60) as stranger:
            stranger.sendall(junk)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(4096):
                pass
    assert host.manage("301")["39"] == "00"


def test_nothing_is_lost_with_a_kill(place: Place) -> None:
    document, card = place.card()
    numbers = [place.number() for _ in range(3)]
    with place.host() as host:
        host.sign_on()
        for number in numbers:
            host.ask("0100", host.hold(number, document, A))
        host.ask("0220", host.decision(numbers[1], DEPOSIT, A))
        host.ask("0420", host.decision(numbers[2], DEPOSIT, A, TIMEOUT))
    place.restart(kill=True)
    with place.host() as host:
        host.sign_on()
        assert [host.state(n) for n in numbers] == ["ACTIVA", "CAPTURADA", "LIBERADA"]
        assert host.ask("0221", host.decision(numbers[1], DEPOSIT, A))["39"] == "00"
        assert host.ask("0421", host.decision(numbers[2], DEPOSIT, A, TIMEOUT))["39"] == "00"
    assert place.available(card["card"]) == 1_000_000 + A


def test_tokens_are_in_no_file(place: Place) -> None:
    document, card = place.card()
    code = totp(card["seed"])
    with place.host() as host:
        host.sign_on()
        hold = host.hold(place.number(), document, A, code)
        assert host.ask("0100", hold)["39"] == "00"
    sealed = hold["48"]["03"].encode()
    for path in place.config.parent.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert sealed not in data, path
            assert sealed.lower() not in data, path
            assert b"CI" + document.encode() + b"03" not in data, path


class TestAskNetwork:
    """A hold that nobody decides is asked about; the other side's word decides."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        found = Place(tmp_path / "d", LINKS)
        yield found
        found.end()

    @pytest.mark.parametrize(
        ("told_state", "state"),
        [("REVERSADA", "LIBERADA"), ("CAPTURADA", "CAPTURADA"), ("RESPONDIDA", "ACTIVA"),
         ("", "LIBERADA")],
    )  # fmt: skip
    def test_state_of_sicoop_decides(
        self, place: Place, host: Host, told_state: str, state: str
    ) -> None:
        document, _ = place.card()
        number = place.number()
        assert host.ask("0100", host.hold(number, document, A))["39"] == "00"
        question = host.receive()
        assert question is not None
        assert (question["t"], question["37"], question["32"]) == ("0600", number, NETWORK)
        answer = {"t": "0610", "7": question["7"], "11": question["11"], "37": number, "39": "00"}
        if told_state:
            answer["48"] = f"10{len(told_state):03}{told_state}"
        else:
            answer["39"] = "25"
        host.send(answer)
        assert host.state(number) == state


def _echo_on(host: Host) -> None:
    """Echo until the connection is over: what was on its way to it is still answered."""
    for _ in range(1000):
        host.manage("301")


def test_two_hosts_at_one_listener(tmp_path: Path) -> None:
    """The MAC key tells whose a connection is; their holds are apart, whatever their numbers."""
    place = Place(tmp_path / "d")
    other = place.admin("host_add", name="other", dialect="ceibo")
    address = place.node.listeners["ceibo"]
    document, card = place.card()
    number = place.number()
    with place.host() as one, Host(address, other) as two:
        one.sign_on()
        two.sign_on()
        assert one.ask("0100", one.hold(number, document, A))["39"] == "00"
        assert two.state(number) == ""
        assert two.ask("0420", two.decision(number, DEPOSIT, A, TIMEOUT))["39"] == "25"
        assert one.state(number) == "ACTIVA"
        assert two.ask("0100", two.hold(place.number(), document, A))["39"] == "00"
        stranger = Host(address, NOBODY)
        stranger.send(stranger.message("0800", {"70": "001"}))
        assert stranger.receive() is None
        stranger.close()
        place.admin("host_enable", name="other", enable=False)
        with pytest.raises((AssertionError, OSError)):
            _echo_on(two)
        assert one.ask("0220", one.decision(number, DEPOSIT, A))["39"] == "00"
    with Host(address, other) as gone, pytest.raises((AssertionError, OSError)):
        gone.sign_on()
    assert place.available(card["card"]) == 1_000_000 + A
    place.restart()
    with place.host() as one:
        one.sign_on()
        assert one.state(number) == "CAPTURADA"
    place.end()


def test_all_roles_and_a_host_in_one_process(tmp_path: Path) -> None:
    place = Place(tmp_path / "d")
    place.end()
    place.node = Node(place.config)
    assert {"terminals", "sicoop", "ceibo"} <= set(place.node.listeners)
    document, _ = place.card()
    with place.host() as host:
        host.sign_on()
        number = place.number()
        assert host.ask("0100", host.hold(number, document, A))["39"] == "00"
        assert host.state(number) == "ACTIVA"
        status, body = place.node.get("/readyz")
        assert status == 200, body
        assert 'troncal_link_up{link="sicoop"} 1.0' in place.node.get("/metrics")[1]
    (link,) = told("links", "-c", place.config)
    assert link["link"] == "sicoop"
    assert place.node.stop() == 0
    assert run("verify", "-c", place.config).returncode == 0


def test_a_listener_of_its_own_needs_tls_outside_loopback(tmp_path: Path) -> None:
    assert run("init", tmp_path / "d").returncode == 0
    config = tmp_path / "d" / "troncal.toml"
    told("host", "add", "out", "--dialect", "ceibo", "--listen", "0.0.0.0:7999", "-c", config)
    done = run("serve", "--roles", "ceibo", "-c", config)
    assert done.returncode == 1
    assert "host out" in done.stderr
    assert "TLS" in done.stderr
