"""An outage of ceibo: thousands of reversals pile up at sicoop, and drain once the link is up.

sicoop and ceibo are real processes with real journals. The line between them runs through the test,
which keeps every byte with its time: what was sent, how it was marked and how long it took is read
off the wire, and what became of the holds in ceibo's own books. `TRONCAL_TORTURE=1`: the 10,000 of
the acceptance, in 5 s.
"""

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from protocols.iso8583.dialect import Dialect, Message
from switch import admin
from switch.cli.apart import Apart, prepare
from switch.clock import iso_ms
from switch.flows import operations as ops
from switch.journal.store import State
from switch.journal.verify import verify
from switch.net.saf import WINDOW
from tests.faults.apart import NETWORK, Relay, Three
from tests.faults.wire import Wire

TORTURE = bool(os.environ.get("TRONCAL_TORTURE"))
COUNT = 10_000 if TORTURE else 1_500
WHOLE = pytest.mark.skipif(not TORTURE, reason="with TRONCAL_TORTURE=1")
ASKED_BEFORE = COUNT * 2 // 3  # what is asked before the first kill
DRAIN_S = 5.0
STOP_AT = COUNT * 3 // 4  # answers before the second kill; beyond `ASKED_BEFORE`, which goes first
PERSONS = 20
AMOUNT = 1_000
IN_FLIGHT = 64  # of one session, as configured by default
LINK = "[links.ceibo]\nbackoff_min_s = 0.02\nbackoff_max_s = 0.2\n"


# ---- the line between sicoop and ceibo -----------------------------------------------------------


class Seen(NamedTuple):
    """One message on the line."""

    at_s: float
    mti: str
    number: str  # DE37
    code: str


class Tape:
    """One direction of one connection: its messages, each with the time of its last byte."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, bytes]] = []
        self._held = b""

    def add(self, data: bytes) -> None:
        now_s, data, at = time.monotonic(), self._held + data, 0
        while at + 2 <= len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2])
            if end > len(data):
                break
            self.messages.append((now_s, data[at + 2 : end]))
            at = end
        self._held = data[at:]

    def seen(self) -> list[Seen]:
        """All of it, decoded."""
        dialect = Dialect.load("ceibo")
        decoded = dialect.decode_many([data for _, data in self.messages])
        return [
            Seen(at_s, one.mti, one.get("37", ""), one.get("39", ""))
            for (at_s, _), one in zip(self.messages, decoded, strict=True)
            if isinstance(one, Message)
        ]


class Tap(Relay):
    """A line that remembers what passed; tapes are (asked, answered) of one connection each.

    `stop_at`: after so many answers over one connection no more come through; 0: all do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tapes: list[tuple[Tape, Tape]] = []
        self.stop_at = 0

    async def _pass(self, stream: trio.SocketStream, line: trio.CancelScope) -> None:
        async with await trio.open_tcp_stream(*self.target) as other, trio.open_nursery() as both:
            self._lines[line].append(other)
            asked, answered = Tape(), Tape()
            self.tapes.append((asked, answered))
            there, back = _Taped(stream, asked), _Taped(other, answered, self)
            both.start_soon(self._copy, "there", there, other, both.cancel_scope)
            both.start_soon(self._copy, "back", back, stream, both.cancel_scope)

    async def answered(self, count: int) -> None:
        """Wait until ceibo has answered so often over the newest connection."""
        with trio.fail_after(60):
            while not self.tapes or len(self.tapes[-1][1].messages) < count:  # noqa: ASYNC110
                await trio.sleep(0.002)

    def drained_s(self) -> float:
        """How long connections took from their sign-on to their last answer, all together."""
        total = 0.0
        for _, answered in self.tapes:
            seen = answered.seen()
            ends = [one.at_s for one in seen if one.mti == "0430"]
            if ends:
                total += ends[-1] - next(one.at_s for one in seen if one.mti == "0810")
        return total


class _Taped(trio.abc.ReceiveStream):
    def __init__(self, stream: trio.SocketStream, tape: Tape, tap: Tap | None = None) -> None:
        self._stream, self._tape, self._tap = stream, tape, tap

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        self._tape.add(data)
        tap = self._tap
        if tap is not None and tap.stop_at and len(self._tape.messages) >= tap.stop_at:
            tap.hold("back")
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


# ---- the network's session -----------------------------------------------------------------------


class Network:
    """A network without a red: it asks, and keeps the code of each answer by `id`."""

    def __init__(self, apart: Apart) -> None:
        self._apart = apart
        self.codes: dict[int, str] = {}
        self._date = time.strftime("%Y%m%d", time.gmtime(time.time() - 3 * 3600))

    def reference(self, number: int) -> str:
        return f"{NETWORK}00000001{self._date}{number:06}"

    def hold(self, number: int) -> dict[str, Any]:
        person = self._apart.cards[number % PERSONS].document
        return {
            "op": "hold", "id": number, "reference": self.reference(number), "kind": "deposit",
            "branch": "17", "cashier": "000345", "document": person, "amount": AMOUNT,
            "currency": "PYG", "sent_at": iso_ms(time.time_ns()),
        }  # fmt: skip

    def reversal(self, number: int) -> dict[str, Any]:
        return {
            "op": "reverse", "id": number, "reference": self.reference(number), "amount": AMOUNT,
            "reason": "timeout",
        }  # fmt: skip

    async def ask(self, make: Any, last: int = COUNT) -> None:
        """Ask about all up to `last` that has no answer yet, until it has or the session ends."""
        numbers = [number for number in range(1, last + 1) if number not in self.codes]
        await trio.to_thread.run_sync(self._converse, make, numbers, abandon_on_cancel=True)

    def _converse(self, make: Any, numbers: list[int]) -> None:
        wire = Wire(self._apart.addresses["sicoop"], NETWORK, self._apart.network_key.key)
        with wire:
            assert wire.sign_on() is not None
            waiting, sent = 0, 0
            try:
                while waiting or sent < len(numbers):
                    if waiting <= IN_FLIGHT // 2:
                        some = numbers[sent : sent + IN_FLIGHT // 2]
                        wire.send(*map(make, some))
                        waiting, sent = waiting + len(some), sent + len(some)
                    told = wire.receive()
                    if told is None:
                        return
                    if told["op"] == "answer":
                        self.codes[told["id"]] = told["code"]
                        waiting -= 1
            except ConnectionError:
                return


# ---- the story -----------------------------------------------------------------------------------


async def _saf(three: Three) -> dict[str, Any]:
    (row,) = await admin.call(three.apart.configs["sicoop"].data, "links", {})
    found = row["saf"]
    assert isinstance(found, dict)
    return found


async def _drained(three: Three) -> None:
    with trio.fail_after(60):
        while (await _saf(three))["depth"]:  # noqa: ASYNC110 (nothing signals it)
            await trio.sleep(0.05)


async def _prepared(directory: Path, tap: Tap) -> Three:
    apart = await prepare(
        directory, network=NETWORK, terminals=1, branches=1, net_debit_cap=10**12,
        cards={str(4_000_000 + index): 0 for index in range(PERSONS)}, toml={"sicoop": LINK},
        ceibo_at=tap.address,
    )  # fmt: skip
    tap.target = apart.addresses["ceibo"]
    return Three(apart)


async def _held(three: Three, network: Network) -> None:
    """Make all holds, once sicoop reaches ceibo."""
    with trio.fail_after(30):
        while not (await _saf(three))["up"]:  # noqa: ASYNC110
            await trio.sleep(0.02)
    await network.ask(network.hold)
    assert set(network.codes.values()) == {"00"}
    assert len(network.codes) == COUNT
    network.codes.clear()


async def _killed_while_reversing(three: Three, network: Network) -> None:
    """What sicoop acknowledged before the kill is owed afterwards; the rest is asked again.

    However late the kill comes, a third is not asked before it and so is no repeat afterwards.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.ask, network.reversal, ASKED_BEFORE)
        with trio.fail_after(60):
            while len(network.codes) < COUNT // 2:  # noqa: ASYNC110 (a thread fills it)
                await trio.sleep(0.002)
        await three.kill("sicoop")
    acknowledged = len(network.codes)
    assert COUNT // 2 <= acknowledged <= ASKED_BEFORE, "killed in the middle"
    assert set(network.codes.values()) == {"00"}
    await three.start("sicoop")
    assert acknowledged <= (await _saf(three))["depth"] <= acknowledged + IN_FLIGHT
    await network.ask(network.reversal)
    assert len(network.codes) == COUNT
    assert set(network.codes.values()) <= {"00", "21"}, "21: it was durable and not acknowledged"


def _check_wire(tap: Tap, repeats_from: int | None) -> None:
    """All releases arrived, and what may have been there before says so.

    Args:
        repeats_from: from this connection on sicoop cannot know what has arrived; None: it can.
    """
    asked: dict[str, list[str]] = defaultdict(list)
    told: dict[str, set[str]] = defaultdict(set)
    for index, (questions, answers) in enumerate(tap.tapes):
        releases = [one for one in questions.seen() if one.mti in ("0420", "0421")]
        for one in releases:
            asked[one.number].append(one.mti)
        if repeats_from is not None and index >= repeats_from:
            assert {one.mti for one in releases} <= {"0421"}
        for one in answers.seen():
            if one.mti == "0430":
                told[one.number].add(one.code)
    assert len(asked) == len(told) == COUNT
    assert set(map(frozenset, told.values())) == {frozenset(["00"])}
    assert {mtis[0] for mtis in asked.values()} == {"0420", "0421"}, "0421: owed before a restart"
    assert all(set(mtis[1:]) <= {"0421"} for mtis in asked.values())
    repeated = sum(len(mtis) > 1 for mtis in asked.values())
    if repeats_from is None:
        assert repeated == 0
    else:
        assert 0 < repeated <= WINDOW, "at most what was in flight"


def _check_books(apart: Apart) -> None:
    """At both: each operation undone, once, and nothing open."""
    holds = _records(apart, "ceibo", ops.CEIBO_HOLDS, ops.decode_ceibo)
    assert len(holds) == COUNT
    assert {tuple(state for state, _ in hold.history) for hold in holds} == {("ACTIVA", "LIBERADA")}
    operations = _records(apart, "sicoop", ops.SICOOP_OPERATIONS, ops.decode_sicoop)
    assert len(operations) == COUNT
    assert {(o.state, o.owed) for o in operations} == {("REVERSADA", "")}
    for role in ("sicoop", "ceibo"):
        config = apart.configs[role]
        report = verify(config, config.data)
        assert report.ok, report.problems


def _records(apart: Apart, role: str, space: int, decode: Any) -> list[Any]:
    config = apart.configs[role]
    state = State(config, config.data)
    state.recover()
    return [decode(value) for _, value in state.records.items(space)]


async def _killed_while_draining(three: Three, tap: Tap) -> int:
    """How many connections there have been before sicoop was killed."""
    await tap.answered(STOP_AT)
    await three.kill("sicoop")
    tap.stop_at = 0
    tap.release()
    connections = len(tap.tapes)
    await three.start("sicoop")
    left = await _saf(three)
    assert 0 < left["depth"] + left["paid"] <= COUNT // 4 + 2 * WINDOW, "killed in the middle"
    return connections


@pytest.mark.timeout(300)
@pytest.mark.parametrize("killed", [True, pytest.param(False, marks=WHOLE)])
async def test_R12_queued_releases_drain(
    tmp_path: Path, nursery: trio.Nursery, killed: bool
) -> None:
    """None lost, none done twice, repeats marked, in 5 s of a link that is up.

    `killed`: sicoop is, a second time, while it drains.
    """
    tap = Tap()
    await nursery.start(tap.run)
    three = await _prepared(tmp_path, tap)
    network = Network(three.apart)
    repeats_from = None
    try:
        await three.start("ceibo", "sicoop")
        await _held(three, network)
        await three.kill("ceibo")
        await _killed_while_reversing(three, network)
        assert (await _saf(three))["depth"] == COUNT
        tap.tapes.clear()
        tap.stop_at = STOP_AT if killed else 0
        await three.start("ceibo")
        if killed:
            repeats_from = await _killed_while_draining(three, tap)
        await _drained(three)
        took_s = tap.drained_s()
        print(f"{COUNT} releases drained in {took_s:.2f} s of a link that was up")
        assert [await three.stop(role) for role in ("sicoop", "ceibo")] == [0, 0]
    finally:
        await three.aclose()
    _check_wire(tap, repeats_from)
    _check_books(three.apart)
    assert took_s < DRAIN_S
    nursery.cancel_scope.cancel()
