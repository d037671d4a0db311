"""kill -9 at random moments, again and again: nothing told is lost, nothing is done twice.

`TRONCAL_KILLS=50` is the long run; `TRONCAL_SEED` repeats the choices of one (not its timing).
"""

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from core_ext import Reader
from core_ext._journal import Position, segment_path
from protocols.session import PeerKey
from switch.journal import snapshot
from switch.journal.projector import Projector
from switch.journal.verify import verify
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal, tcp
from tests.faults.cashiers import PAID, Broken, Cashier, Traces
from tests.faults.process import BALANCE, SERVE, NodeProcess, Site, available, position, provision

KILLS = int(os.environ.get("TRONCAL_KILLS", "4"))
SEED = int(os.environ.get("TRONCAL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
TERMINALS = 5
CASHIERS = 4  # at each terminal
CARDS = 3  # of each cashier
WORK_S = (0.05, 1.2)  # between being ready and being killed
START_S = 1.0
STARTS_KILLED = 0.15
TORN = 0.3
SNAPSHOTS = 0.25
ANSWERED_S = 600.0  # a machine may stand still; a node that hangs is found by the test's own end

pytestmark = pytest.mark.disk


@dataclass
class Figures:
    """What happened, for the report."""

    kills: int = 0
    killed_starting: int = 0
    torn: int = 0
    snapshots: int = 0
    start_s: list[float] = field(default_factory=list)


class Shop:
    """A terminal with its cashiers, over all lives of the node."""

    def __init__(self, number: str, key: PeerKey, cashiers: list[Cashier]) -> None:
        self.number, self.cashiers = number, cashiers
        self._key = key

    async def open(self, address: tuple[str, int], *, final: bool = False) -> None:
        """One life: settle what the last one left, then work until the node is gone."""
        async with trio.open_nursery() as nursery:
            terminal = Terminal(self.number, self._key, tcp(*address), timeout_s=ANSWERED_S)
            try:
                await terminal.sign_on(nursery)
            except (OSError, SignOnFailed):
                if final:
                    raise
                return
            async with trio.open_nursery() as working:
                for cashier in self.cashiers:
                    working.start_soon(self._one, cashier, terminal, final)
            await terminal.aclose()

    async def _one(self, cashier: Cashier, terminal: Terminal, final: bool) -> None:
        if final:
            await cashier.settle_all(terminal)
            return
        try:
            await cashier.settle(terminal)
            await cashier.work(terminal)
        except OutcomeUnknown as unknown:
            if "no answer within" in str(unknown):
                raise Broken("a living node answers in time") from unknown


class Matrix:
    """The node's lives, and the end of each."""

    def __init__(self, site: Site, program: Sequence[str] = SERVE) -> None:
        self.site = site
        self._program = program
        self.figures = Figures()
        self._chance = random.Random(f"{SEED} matrix")
        cards = iter(site.cards)
        self.cashiers: list[Cashier] = []
        self._shops: list[Shop] = []
        for terminal in site.terminals:
            traces = Traces()
            group = [
                Cashier(
                    f"{len(self.cashiers) + place + 1:06d}", traces,
                    [next(cards) for _ in range(CARDS)], f"{SEED} {terminal.number} {place}",
                )
                for place in range(CASHIERS)
            ]  # fmt: skip
            self.cashiers += group
            self._shops.append(Shop(terminal.number, terminal.key, group))

    async def live_and_die(self, times: int) -> None:
        """So many lives, each ended by SIGKILL."""
        for _ in range(times):
            await self._live_and_die()

    async def _live_and_die(self) -> None:
        node = self.site.start(program=self._program)
        self.figures.kills += 1
        try:
            if self._chance.random() < STARTS_KILLED:
                self.figures.killed_starting += 1
                await trio.sleep(self._chance.uniform(0, START_S))
                return
            self.figures.start_s.append(await node.wait_ready())
            async with trio.open_nursery() as nursery:
                for shop in self._shops:
                    nursery.start_soon(shop.open, node.terminals)
                nursery.start_soon(self._kill_later, node)
        finally:
            node.end()
            self._tear()

    async def _kill_later(self, node: NodeProcess) -> None:
        async with trio.open_nursery() as nursery:
            if self._chance.random() < SNAPSHOTS or not self.figures.snapshots:
                nursery.start_soon(self._snapshot)
            await trio.sleep(self._chance.uniform(*WORK_S))
        assert node.returncode is None, f"it ended by itself:\n{node.tail()}"
        node.kill()

    async def _snapshot(self) -> None:
        command = [sys.executable, "-m", "switch", "snapshot", "-c", str(self.site.file)]
        await trio.run_process(command, stdout=subprocess.DEVNULL)
        self.figures.snapshots += 1

    def _tear(self) -> None:
        """Leave half a group at the end now and then, as a power cut does."""
        if self._chance.random() >= TORN:
            return
        journal = str(self.site.config.data / "journal")
        start = None
        for path in snapshot.files(self.site.config.data)[:1]:
            head = snapshot.inspect(path)  # what is before it may be pruned
            start = Position(head.seq, head.chain, head.segment, head.offset)
        reader = Reader(journal, position=start)
        while reader.next() is not None:
            pass
        end = reader.position
        reader.close()
        room = self.site.config.journal.segment_bytes - end.offset
        if not end.segment or room < 8192:
            return
        size = self._chance.randrange(1, 8192)
        with open(segment_path(journal, end.segment), "r+b") as file:
            file.seek(end.offset)
            file.write(b"TRNCJRN1"[: min(size, 8)] + self._chance.randbytes(max(size - 8, 0)))
        self.figures.torn += 1

    async def live_and_stop(self) -> None:
        """The last life: everybody settles everything; then SIGTERM."""
        node = self.site.start()
        try:
            await node.wait_ready()
            async with trio.open_nursery() as nursery:
                for shop in self._shops:
                    nursery.start_soon(partial(shop.open, node.terminals, final=True))
            assert await trio.to_thread.run_sync(node.stop) == 0, node.tail()
        finally:
            node.end()

    # ---- what must hold at the end

    def check_books(self) -> None:
        """Balances against the plain sum of what was told."""
        operations = [o for cashier in self.cashiers for o in cashier.operations]
        node = self.site.open()
        try:
            assert node.store.ledger.check() == []
            assert node.money_check() == {"posted": 0, "pending": 0}
            for card in self.site.cards:
                effect = sum(o.effect for o in operations if o.card is card)
                found = available(node, card.card)
                if found != BALANCE + effect:
                    raise Broken(f"{card.card}: has {found}, was told of {BALANCE + effect}")
            assert position(node) == sum(o.effect for o in operations)
        finally:
            node.store.commit()
            node.close()

    def check_directory(self) -> None:
        """What `troncal verify` says, and what it counts."""
        report = verify(self.site.config, self.site.config.data)
        assert report.ok, report.problems
        assert report.holds_open == 0
        operations = [o for cashier in self.cashiers for o in cashier.operations]
        states = Counter(next(iter(o.states)) for o in operations)
        assert report.operations == dict(sorted(states.items()))
        paid = [o for o in operations if o.states <= PAID]
        assert sum(report.registered_amount.values()) == sum(abs(o.effect) for o in paid)

    def check_read_model(self) -> None:
        """The projector was left behind in every life; caught up, it says the same."""
        projector = Projector(self.site.config, self.site.config.data)
        projector.catch_up()
        projector.close()
        query = "SELECT trace, terminal, state FROM register WHERE kind != 'annul'"
        with contextlib.closing(sqlite3.connect(projector.path)) as db:
            found = {(trace, terminal): state for trace, terminal, state in db.execute(query)}
        known = {
            (o.request.trace, shop.number): next(iter(o.states))
            for shop in self._shops for cashier in shop.cashiers for o in cashier.operations
        }  # fmt: skip
        assert found == known

    def report(self, seconds: float) -> str:
        recoveries = [e for e in self.site.log_lines() if e["event"] == "recovered"]
        records = sum(e["records"] for e in recoveries)
        spent = sum(e["seconds"] for e in recoveries)
        starts = sorted(self.figures.start_s)
        answers = sum(c.answers for c in self.cashiers)
        return (
            f"seed {SEED}: {self.figures.kills} kills ({self.figures.killed_starting} while "
            f"starting), {self.figures.torn} torn ends, {self.figures.snapshots} snapshots; "
            f"{sum(len(c.operations) for c in self.cashiers)} operations, {answers} answers, "
            f"{sum(c.unanswered for c in self.cashiers)} requests without one, "
            f"{sum(c.resent for c in self.cashiers)} resent, "
            f"{sum(c.repeats for c in self.cashiers)} repeats; "
            f"{records} records recovered in {spent:.2f} s ({records / spent:,.0f} a second), "
            f"ready after {starts[len(starts) // 2]:.2f} s (median); {seconds:.0f} s in all"
        )


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_kill_matrix(tmp_path: Path) -> None:
    print(f"TRONCAL_SEED={SEED}")
    began = time.monotonic()
    matrix = Matrix(provision(tmp_path, terminals=TERMINALS, cards=TERMINALS * CASHIERS * CARDS))
    await matrix.live_and_die(times=KILLS)
    await matrix.live_and_stop()
    matrix.check_directory()
    matrix.check_books()
    matrix.check_read_model()
    matrix.site.check_log()
    matrix.site.check_files()
    print(matrix.report(time.monotonic() - began))
    assert sum(cashier.answers for cashier in matrix.cashiers) > 100


# A node that answers at once and writes later: what the matrix is there to find.
CANARY = """
import time
from switch.journal.gate import ReplyGate
from switch.journal.store import Store
from switch.__main__ import main

sealed_s = 0.0
seal = Store.seal

def late(store):
    global sealed_s
    if time.monotonic() - sealed_s > 0.3:
        sealed_s = time.monotonic()
        seal(store)

def at_once(gate, seq, to, message, *_):
    to.ready(message)
    to.flush()

Store.seal, ReplyGate.hold = late, at_once
main()
"""


async def test_the_matrix_finds_answers_that_are_not_durable(tmp_path: Path) -> None:
    site = provision(tmp_path, terminals=1, cards=CASHIERS * CARDS)
    matrix = Matrix(site, program=("-c", CANARY))
    with pytest.raises(ExceptionGroup) as found:
        await matrix.live_and_die(times=5)
    assert found.value.split(Broken)[1] is None, "and nothing else is wrong"
