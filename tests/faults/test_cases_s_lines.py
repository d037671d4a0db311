"""Group S on real lines, in both layouts: strangers, tampering, garbage, and what logs say.

One set of processes serves a whole layout; each test leaves them as it found them.
"""

import json
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from switch.cli.apart import ROLES, prepare
from tests.faults.process import SMALL, Card, PeerEntry, provision
from tests.faults.wire import Wire
from tests.layouts import APART, LAYOUTS

ERROR_63 = {"op": "error", "code": "63"}
UNKNOWN = {"terminals": "99999999", "sicoop": "9999"}
CARDS = 6
PHONE = "0981234567"
DEBUG = '[node]\nlog_level = "debug"\n'


class Front:
    """Running processes: where terminals and networks connect, and what they have logged.

    Attributes:
        addresses: of the listeners for `terminals` and of `sicoop` for networks.
        peers: a good peer of each.
    """

    def __init__(self, processes: list[subprocess.Popen[bytes]], logs: list[Path]) -> None:
        self.processes, self._logs = processes, logs
        self.addresses: dict[str, tuple[str, int]] = {}
        self.peers: dict[str, PeerEntry] = {}
        self.cards: list[Card] = []
        self._traces = iter(range(1, 1000))

    def wire(self, where: str, *, number: str = "", key: bytes = b"", source: str) -> Wire:
        good = self.peers[where]
        return Wire(
            self.addresses[where], number or good.number, key or good.key.key, source=source
        )

    def signed_on(self, where: str, source: str) -> Wire:
        wire = self.wire(where, source=source)
        answer = wire.sign_on()
        assert answer is not None
        assert answer["code"] == "00", answer
        return wire

    def deposit(self, **fields: Any) -> dict[str, Any]:
        return {
            "op": "deposit", "trace": next(self._traces), "cashier": "345", "currency": "PYG",
            "document": self.cards[0].document, "amount": 1000,
        } | fields  # fmt: skip

    def cash_out(self) -> dict[str, Any]:
        card = self.cards.pop()
        code = card.next_code(time.time())
        return self.deposit(op="cash_out", document=card.document, token=code, amount=50_000)

    def serves(self) -> None:
        """A terminal of good manners is served."""
        with self.signed_on("terminals", "127.0.0.200") as wire:
            assert wire.ask(self.deposit())["instruction"] == "RECIBA"

    def log(self) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in self._logs)

    def alarms(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in self._logs:
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.startswith("{") and line.endswith("\n"):  # not one that is being written
                    found.append(json.loads(line))
        return [line for line in found if line.get("alarm") == name]


def ready(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    word, _, text = process.stdout.readline().partition(b" ")
    assert word == b"ready", log.read_text()[-3000:]
    return dict(json.loads(text))


def together(directory: Path) -> Front:
    site = provision(directory, terminals=1, cards=CARDS, toml=SMALL + DEBUG)
    node = site.start()
    node.ready()
    front = Front([node._process], [site.log])
    front.addresses = {name: node.addresses[name] for name in ("terminals", "sicoop")}
    front.peers = {"terminals": site.terminals[0], "sicoop": site.network}
    front.cards = site.cards
    return front


def apart(directory: Path) -> Front:
    async def make() -> Any:
        return await prepare(
            directory, network="0012", terminals=1, branches=1, net_debit_cap=900_000_000,
            cards={str(4_000_000 + index): 1_000_000 for index in range(CARDS)},
            values={"journal_segment_bytes": 1 << 21, "journal_group_bytes_max": 1 << 19,
                    "journal_reserve_bytes": 1 << 16, "node_log_level": "debug",
                    "tokens_attempts_terminal": 10_000},
        )  # fmt: skip

    made = trio.run(make)
    front = Front([], [made.log(role) for role in ROLES])
    for role in ("ceibo", "sicoop", "red"):
        with made.log(role).open("ab") as errors:
            front.processes.append(
                subprocess.Popen(made.command(role), stdout=subprocess.PIPE, stderr=errors)
            )
    for role, process in zip(("ceibo", "sicoop", "red"), front.processes, strict=True):
        ready(process, made.log(role))
    front.addresses = {"terminals": made.addresses["red"], "sicoop": made.addresses["sicoop"]}
    front.peers = {
        "terminals": PeerEntry(made.terminals[0].number, made.terminals[0].key),
        "sicoop": PeerEntry("0012", made.network_key),
    }
    front.cards = [Card(card.card, card.document, card.seed) for card in made.cards]
    give_up_at = time.monotonic() + 60
    with front.signed_on("terminals", "127.0.0.199") as wire:  # until the links are up
        while wire.ask(front.deposit())["code"] == "91":
            assert time.monotonic() < give_up_at, front.log()[-3000:]
            time.sleep(0.1)  # each try uses up a trace, and there are 999
    return front


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def front(layout: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp(layout)
    found = (apart if layout == APART else together)(directory)
    try:
        yield found
        for process in found.processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(120) for process in found.processes] == [0] * len(found.processes)
        assert "Traceback" not in found.log()
    finally:
        for process in found.processes:
            if process.poll() is None:
                process.kill()
            process.wait(120)
            if process.stdout is not None:
                process.stdout.close()


@pytest.mark.parametrize("where", ["terminals", "sicoop"])
def test_S01_strangers_are_refused(front: Front, where: str) -> None:
    """Unknown peer, wrong key, wrong version of a key: one answer, that proves nothing; what they
    ask for is not even read."""
    strangers: list[dict[str, Any]] = [
        {"number": UNKNOWN[where]}, {"key": secrets.token_bytes(32)},
        {"number": UNKNOWN[where], "key": secrets.token_bytes(32)},
    ]  # fmt: skip
    for source, options in enumerate(strangers, 10):
        with front.wire(where, source=f"127.0.0.{source}", **options) as wire:
            assert wire.sign_on() == ERROR_63
            assert not wire.proved
            assert wire.ended()
    with front.wire(where, key=secrets.token_bytes(32), source="127.0.0.23") as wire:
        # Under a good key these fields would be answered 30: nobody looks at them before.
        assert wire.sign_on(nonce=7, version="one") == ERROR_63
        assert wire.ended()
    with front.wire(where, source="127.0.0.20") as wire:
        assert wire.sign_on(key=2) == ERROR_63
        assert wire.ended()
    with front.wire(where, source="127.0.0.21") as wire:
        deposit = front.deposit()
        wire.send(deposit)
        assert wire.receive() == ERROR_63
        assert wire.ended()
    with front.signed_on("terminals", "127.0.0.22") as wire:  # E0
        asked = {"op": "last_operation", "original": deposit["trace"], "kind": "deposit"}
        assert wire.ask(asked)["code"] == "25"
    front.serves()


def test_S02_a_wrong_mac_inside_a_session(front: Front) -> None:
    """Refused, closed, told to people; nothing of the frame was acted upon."""
    before = len(front.alarms("session_mac"))
    with front.signed_on("terminals", "127.0.0.30") as wire:
        assert wire.ask(front.deposit())["code"] == "00"
        deposit = front.deposit()
        frame = wire.frame(deposit)
        wire.raw(frame[:-1] + bytes([frame[-1] ^ 1]))
        assert wire.receive() == ERROR_63
        assert wire.ended()
    with front.signed_on("terminals", "127.0.0.30") as wire:  # E0
        asked = {"op": "last_operation", "original": deposit["trace"], "kind": "deposit"}
        assert wire.ask(asked)["code"] == "25"
    give_up_at = time.monotonic() + 60
    while len(front.alarms("session_mac")) == before:
        assert time.monotonic() < give_up_at, "no alarm"
        time.sleep(0.02)
    assert front.alarms("session_mac")[-1]["subject"] == front.peers["terminals"].number
    front.serves()


NESTED = [b'{"op":"deposit","declaration":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
          for depth in (10, 1000)]  # fmt: skip
BAD_PAYLOADS = [
    b"{", b"[]", b"null", b"\xff\xfe", b'{"op":"deposit","document":"\xc3\x28"}',
    b'{"op":"deposit","trace":1,"amount":' + b"9" * 900 + b"}", *NESTED,
]  # fmt: skip


def test_S04_malformed_messages(front: Front) -> None:
    """30 for each that is authentic; the connection goes on, the process as well."""
    with front.signed_on("terminals", "127.0.0.40") as wire:
        for payload in BAD_PAYLOADS:
            wire.raw(wire.seal(payload))
            answer = wire.receive()
            assert answer is not None
            assert answer["code"] == "30", payload[:40]
        assert wire.ask(front.deposit())["code"] == "00"
        wire.raw(b"\xff\xff" + bytes(600))  # longer than a frame may be: that ends the connection
        assert wire.receive() == {"op": "error", "code": "30", "field": "length"}
        assert wire.ended()
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 70_000, bytes(100)):
        with front.wire("terminals", source="127.0.0.41") as wire:
            try:
                wire.raw(garbage)
                while (answer := wire.receive()) is not None:
                    assert answer["code"] in ("30", "63")
            except ConnectionError:
                pass
    front.serves()


def test_S06_people_and_cards_are_masked_in_logs(front: Front) -> None:
    """At the most talkative level, after good and bad requests."""
    with front.signed_on("terminals", "127.0.0.60") as wire:
        out = front.cash_out()
        assert wire.ask(out)["instruction"] == "ENTREGUE"
        assert wire.ask(front.deposit(depositor="CI7654321"))["code"] == "00"
        by_phone = front.deposit(phone=PHONE)
        del by_phone["document"]
        assert wire.ask(by_phone)["code"] == "05"
        assert wire.ask(front.deposit(document=out["document"] + "x"))["code"] == "30"
        assert wire.ask({"op": "holder", "trace": 999, "document": out["document"]})["code"] == "00"
    front.serves()
    text = front.log()
    assert text
    people = [card.document for card in front.cards] + [out["document"], "7654321", PHONE[1:]]
    names = ("ANA MARIA", "PERSONA")  # of the holders, together and apart
    for word in (*people, *(card.card for card in front.cards), *names):
        assert word not in text, word
    assert f'"{out["token"]}"' not in text
