"""Hosts that answer out of order, late, twice, with another's STAN; a long queue after an outage.

Whatever the interleaving: an answer reaches who asked for it, once, or nobody. Every request is
marked, every answer carries the mark of the request it was made for.
"""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocols.iso8583.connection import Received
from switch.config import LinkAddress
from switch.flows.step import Step
from switch.net.link_state import State
from switch.net.saf import StoreAndForward
from tests.conftest import FUZZ
from tests.hosts import NS, Bench, FakeHost, Session, live_node, release

INTERLEAVINGS = 1000
SEEDS = range(10)
CPU_S_MAX = 5.0
LEFT_OUT = ("3", "4", "7", "37", "49")  # by a host that echoes only what it must


def mark_of(message: Any) -> str:
    """What tells requests apart although traces, amounts and cards are the same."""
    return f"{int(message['37']) * 7 % 1_000_000:06}"


def mark(session: Session, received: Received) -> None:
    """Answer at once."""
    session.answer(received, {"39": "00", "38": mark_of(received.message)})


class Disorder:
    """A host that keeps requests, and answers some of them some time, somehow."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.host = FakeHost(self.take)
        self.taken: list[Received] = []
        self.kept: list[Received] = []  # answered once already, or left behind

    def take(self, session: Session, received: Received) -> None:
        self.taken.append(received)

    async def answer_some(self) -> None:
        """Answer a random choice, in random order, over any connection, some twice."""
        self.random.shuffle(self.taken)
        count = self.random.randint(0, len(self.taken))
        now, self.taken = self.taken[:count], self.taken[count:]
        again = [r for r in self.kept if self.random.random() < 0.2]
        self.kept = (self.kept + now)[-40:]
        for received in self.random.sample(now + again, len(now) + len(again)):
            self.answer(received)
        for session in list(self.host.sessions):
            await session.write()
        await trio.testing.wait_all_tasks_blocked()

    def answer(self, received: Received) -> None:
        session = self.random.choice(self.host.sessions)
        elements: dict[str, object] = {"39": "00", "38": mark_of(received.message)}
        others = [r for r in self.taken + self.kept if r is not received]
        confusion = self.random.random()
        if confusion < 0.2 and others:  # another request's STAN
            stan = self.random.choice(others).message["11"]
            session.answer(received, elements, e11=stan)
        elif confusion < 0.3:  # nothing echoed but what the key is made of
            body = received.message.answer(elements, drop=LEFT_OUT, mac=True)
            keys = session.connection.keys
            assert keys is not None
            session.connection._queue(body, keys.signing_key(), b"")
        else:
            session.answer(received, elements)


@pytest.mark.parametrize("seed", SEEDS)
async def test_nobody_ever_gets_anothers_answer(
    nursery: trio.Nursery, autojump_clock: Any, seed: int
) -> None:
    """Two terminals, the same trace, amounts and card, asking at once, a hundred times a seed."""
    chance = random.Random(seed)
    disorder = Disorder(seed)
    bench = Bench(
        nursery, {"a:1": disorder.host}, connections=2, late_keep=64, max_in_flight=8,
        chance=chance.random,
    )  # fmt: skip
    await bench.up()
    await trio.sleep(1)
    marks: dict[int, str] = {}
    for _ in range(INTERLEAVINGS // len(SEEDS)):
        for terminal in chance.sample([1, 2] * chance.randint(1, 4), k=chance.randint(1, 2)):
            for _ in range(chance.randint(1, 3)):
                token = len(marks) + 1
                marks[token] = mark_of({"37": f"{token:012}"})
                bench.ask(token, terminal=terminal, budget_s=chance.choice([0.5, 2, 10]))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(chance.randint(1, 3)):
            await disorder.answer_some()
            await trio.sleep(chance.choice([0, 0.1, 1, 3]))
    await trio.sleep(11)
    wrong = {t: m["38"] for t, m in bench.owner.answers.items() if m["38"] != marks[t]}
    assert wrong == {}
    assert bench.owner.answers.keys() | bench.owner.lost.keys() == marks.keys(), "each has its end"
    counts = bench.counts
    assert len(bench.owner.answers) > 50
    for kind in ("late", "second", "unmatched", "timeouts"):
        assert counts[kind] > 0, f"the disorder was not {kind}"
    assert "format_errors" not in counts
    assert "mac_failures" not in counts
    assert len(bench.link._pending) == 0
    assert all(line.in_flight == 0 for line in bench.link._lines.values())


async def test_a_stan_does_not_come_back_while_its_late_answer_may(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """All STANs go round while one answer is late, and the host echoes only STAN and terminal."""
    disorder = Disorder(1)
    bench = Bench(nursery, {"a:1": disorder.host})
    await bench.up()
    bench.ask(1, budget_s=1)
    assert await bench.answered(1) == ["timeout"]
    (late,) = disorder.taken
    for second in range(2):
        for _ in range(999_990 if second else 5):
            bench.link._pending.next_stan(1_000_000 + second)
    await trio.sleep(1)
    asked = range(2, 30)
    bench.ask(*asked)
    await trio.testing.wait_all_tasks_blocked()
    stans = {received.message["11"] for received in disorder.taken[1:]}
    assert len(stans) == len(asked)
    assert late.message["11"] not in stans
    (session,) = disorder.host.sessions
    keys = session.connection.keys
    assert keys is not None
    body = late.message.answer({"39": "00", "38": "000000"}, drop=LEFT_OUT, mac=True)
    session.connection._queue(body, keys.signing_key(), b"")
    await session.write()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.owner.answers == {}
    assert bench.counts["late"] == 1


class Chaos(Disorder):
    """A host that also hangs, hangs up, sends garbage, signs off, and goes away."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.bench: Bench | None = None

    async def disturb(self) -> None:
        assert self.bench is not None
        dialer = self.bench.dialer
        assert dialer is not None
        sessions = list(self.host.sessions)
        match self.random.choice(["", "hang", "close", "garbage", "half", "sign off", "gone"]):
            case "hang":
                self.host.silent = not self.host.silent
            case "close" if sessions:
                await self.random.choice(sessions).stream.aclose()
            case "garbage" if sessions:
                noise = self.random.randbytes(self.random.randint(1, 3000))
                await self.random.choice(sessions).write(noise)
            case "half" if sessions:
                session = self.random.choice(sessions)
                for received in self.taken[:3]:
                    session.answer(received, {"39": "00", "38": mark_of(received.message)})
                data = session.connection.output()
                await session.write(data[: self.random.randint(0, len(data))])
                await session.stream.aclose()
            case "sign off" if sessions:
                session = self.random.choice(sessions)
                session.connection._initiator = True
                session.connection.sign_off()
                await session.write()
            case "gone":
                if dialer.hosts:
                    dialer.hosts.clear()
                else:
                    dialer.hosts["a:1"] = self.host


@pytest.mark.parametrize("seed", range(20 if not FUZZ else 500 * FUZZ))
async def test_whatever_a_host_does_each_request_ends_once(
    nursery: trio.Nursery, autojump_clock: Any, seed: int
) -> None:
    """`Owner` checks that no end comes twice; here that all come, and that the link recovers."""
    chance = random.Random(seed)
    chaos = Chaos(seed)
    bench = chaos.bench = Bench(
        nursery, {"a:1": chaos.host}, connections=chance.randint(1, 3), late_keep=32,
        max_in_flight=4, queue_max=6, echo_interval_s=5, answer_s=3, chance=chance.random,
        backoff_min_s=0.1, backoff_max_s=2,
    )  # fmt: skip
    bench.node.requests_max = chance.choice([1, 3, 51])
    marks: dict[int, str] = {}
    refused = 0
    for _ in range(60):
        for _ in range(chance.randint(0, 6)):
            token = len(marks) + refused + 1
            if bench.ask(token, terminal=chance.randint(1, 2), budget_s=chance.choice([1, 5])) == [
                ""
            ]:
                marks[token] = mark_of({"37": f"{token:012}"})
            else:
                refused += 1
        await trio.sleep(chance.choice([0, 0, 0.2, 2]))
        if chance.random() < 0.4:
            await chaos.disturb()
        if chaos.host.sessions:
            await chaos.answer_some()
        for line in bench.link._lines.values():
            assert 0 <= line.in_flight <= 4
        assert bench.link.in_flight == sum(x.in_flight for x in bench.link._lines.values())
        assert bench.link.queued <= 6
    assert bench.dialer is not None
    bench.dialer.hosts["a:1"] = chaos.host
    chaos.host.silent = False
    chaos.host.script = mark
    await trio.sleep(60)
    assert bench.owner.answers.keys() | bench.owner.lost.keys() == marks.keys()
    assert all(m["38"] == marks[t] for t, m in bench.owner.answers.items())
    assert bench.link.state is State.UP
    ups = [what for what in bench.events if what in ("up", "down")]
    assert ups == ["up", "down"] * (len(ups) // 2) + ["up"], "told in turn"
    bench.ask(10_000)
    assert await bench.answered(10_000) == ["00"]


# ---- store-and-forward over a link ---------------------------------------------------------------


class Debtor:
    """Owes releases, and pays them over a link as sicoop does."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.bench = bench
        self.saf = StoreAndForward(window=256)
        self.paid_up = trio.Event()
        self.sent: dict[str, list[str]] = {}
        owner = bench.owner
        owner.on_ready = self.on_up
        owner.on_answered = self.on_answered
        owner.on_gone = self.on_gone
        for number in range(1, count + 1):
            self.saf.owe(f"{number}", self.now_ns)

    @property
    def now_ns(self) -> int:
        return int(trio.current_time() * NS)

    def on_up(self, step: Step) -> None:
        self.saf.up(self.now_ns)
        self.forward()

    def on_answered(self, step: Step, token: Any, received: Received) -> None:
        self.bench.owner.answers.clear()  # a debt is asked for until it is paid
        self.saf.paid(token, self.now_ns)
        if not self.saf.depth:
            self.paid_up.set()
        self.forward()

    def on_gone(self, step: Step, token: Any, reason: str) -> None:
        self.bench.owner.lost.clear()
        if not self.bench.link.up:
            self.saf.down()
        if reason == "unsent":
            self.saf.unsent(token, self.now_ns)
        else:
            self.saf.failed(token, self.now_ns)

    def forward(self) -> None:
        for key, attempt in self.saf.due(self.now_ns):
            mti = "0421" if attempt > 1 else "0420"
            if self.bench.link.request(mti, release(int(key)), token=key):
                self.saf.unsent(key, self.now_ns)
            else:
                self.sent.setdefault(key, []).append(mti)


class Releases:
    """A host that releases, and remembers how often it was asked."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}
        self.die_after = 0
        self.died = trio.Event()

    async def __call__(self, session: Session, received: Received) -> None:
        message = received.message
        self.seen.setdefault(message["37"], []).append(message.mti)
        if self.die_after and len(self.seen) >= self.die_after:
            self.die_after = 0
            self.died.set()
            await session.stream.aclose()
        session.answer(received, {"39": "00"})


async def test_r12_ten_thousand_owed_reversals_drain_in_five_seconds(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """After an outage: the host was away, comes up, dies once in between, and gets all of them.

    In five seconds of a processor: what else the machine does is no part of it.
    """
    async with live_node(tmp_path) as node:
        releases = Releases()
        host = FakeHost(releases)
        address, scope = await host.listen(nursery)
        port = int(address.rpartition(":")[2])
        scope.cancel()
        bench = Bench(
            nursery, connect=(LinkAddress(address),), backoff_min_s=0.02, backoff_max_s=0.1,
            node=node,
        )  # fmt: skip
        debtor = Debtor(bench, 10_000)
        await trio.sleep(0.1)
        assert not bench.link.up
        releases.die_after = 4_000
        await host.listen(nursery, port)
        began = time.process_time()
        with trio.fail_after(120):
            await debtor.paid_up.wait()
        took_s = time.process_time() - began
        assert debtor.saf.depth == 0
        assert len(releases.seen) == 10_000
        assert releases.died.is_set()
        repeated = [mtis for mtis in releases.seen.values() if len(mtis) > 1]
        assert all(mtis[0] == "0420" and set(mtis[1:]) == {"0421"} for mtis in repeated)
        assert 1 <= len(repeated) <= 256, "only what was in flight when it died"
        assert all(mtis[0] == "0420" for mtis in debtor.sent.values())
        assert took_s < CPU_S_MAX, f"{took_s:.2f} s"
        nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
