"""red's way to a sicoop elsewhere: nobody gets another's answer, and nothing unknown looks known.

The other side is the real acceptor of the session protocol, on memory streams and on sockets, and
answers when and what a test says. The node behind the link only counts its turns.
"""

import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from protocols.messages import (
    Confirm,
    Hold,
    HolderAnswer,
    NetworkAnswer,
    NetworkHolder,
    Status,
    StatusAnswer,
)
from protocols.session import NETWORK, Acceptor, PeerKey
from switch.config import Platform, Session
from switch.net.platform import PlatformLink
from switch.net.pump import Pump
from tests.house import House

NUMBER = "0012"
KEY = PeerKey(bytes(range(32)))
NEWER = PeerKey(bytes(range(1, 33)))
WALL_NS = 1_795_359_600_000_000_000
HERE = "127.0.0.1:7002"
THERE = "127.0.0.2:7002"
SETTINGS = Platform(connect=(HERE,), backoff_min_s=1.0, backoff_max_s=8.0)


class StubClock:
    def wall_ns(self) -> int:
        return WALL_NS

    def mono_ns(self) -> int:
        return int(trio.current_time() * 1e9)


class StubStep:
    def __init__(self, mono_ns: int, alarms: list[str]) -> None:
        self.now_ns, self.mono_ns = WALL_NS, mono_ns
        self._alarms = alarms

    def alarm(self, name: str, subject: str, detail: str = "") -> None:
        self._alarms.append(name)


class StubConfig:
    def __init__(self, session: Session) -> None:
        self.session = session

    def file(self, name: str) -> Path:
        return Path(name)


class StubNode:
    """Counts steps, and insists that each is ended before the next begins."""

    full = crowded = False

    def __init__(self, session: Session, requests_max: int = 100) -> None:
        self.config = StubConfig(session)
        self.clock = StubClock()
        self.requests_max = requests_max
        self.open = 0
        self.steps = 0
        self.alarms: list[str] = []

    def begin(self) -> StubStep:
        assert self.open == 0, "a step within a step"
        self.open = 1
        self.steps += 1
        return StubStep(self.clock.mono_ns(), self.alarms)

    def end(self, step: StubStep) -> None:
        self.open = 0

    def settle(self) -> None:
        pass

    async def room(self) -> None:
        await trio.lowlevel.checkpoint()


class Owner:
    """The handler: keeps what it is told, and that it is told once."""

    def __init__(self, node: StubNode) -> None:
        self.node = node
        self.told: dict[Any, Any] = {}
        self.events: list[str] = []
        self.questions: list[tuple[Status, Any]] = []

    def on_answer(self, step: Any, token: Any, message: Any) -> None:
        self._once(token, message)

    def on_lost(self, step: Any, token: Any, reason: str) -> None:
        self._once(token, reason)

    def on_request(self, step: Any, message: Status, origin: Any) -> None:
        assert self.node.open
        self.questions.append((message, origin))

    def on_up(self, step: Any) -> None:
        assert self.node.open
        self.events.append("up")

    def on_down(self, step: Any) -> None:
        assert self.node.open
        self.events.append("down")

    def _once(self, token: Any, what: Any) -> None:
        assert self.node.open, "told within a step"
        assert token not in self.told, "told twice"
        self.told[token] = what


class Sicoop:
    """One accepted connection: takes what comes, answers when told to."""

    def __init__(
        self, stream: trio.abc.Stream, keys: dict[int, PeerKey], heartbeat_s: int,
        time: str = "2026-11-22T15:00:00.000Z",
    ) -> None:  # fmt: skip
        self.stream = stream
        self.session = Acceptor(
            vocabulary=NETWORK, authenticate=lambda peer, version: keys.get(version),
            nonce=bytes(16), now_iso=lambda: time, heartbeat_s=heartbeat_s,
        )  # fmt: skip
        self.requests: list[Any] = []
        self.reads = 0
        self.silent = False
        self.ended = trio.Event()
        self.sending = trio.Lock()

    async def run(self) -> None:
        try:
            while self.session.closing is None:
                data = bytes(await self.stream.receive_some(1 << 20))
                if not data:
                    break
                self.requests += self.session.receive(data)
                self.reads += 1
                if not self.silent:
                    await self.say()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ended.set()
            await trio.aclose_forcefully(self.stream)

    async def say(self, *messages: Any) -> None:
        async with self.sending:  # sealed in the order of sending
            if messages:
                await self.stream.send_all(self.session.encode(list(messages)))
            await self.stream.send_all(self.session.output())

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Bench:
    """A link that runs, and the sicoops that it connects to."""

    def __init__(
        self, nursery: trio.Nursery, *, session: Session | None = None,
        settings: Platform = SETTINGS, addresses: tuple[str, ...] = (HERE,),
        keys: list[tuple[int, PeerKey]] | None = None, known: dict[int, PeerKey] | None = None,
        queue_max: int = 4, heartbeat_s: int = 30, requests_max: int = 100,
    ) -> None:  # fmt: skip
        self.nursery = nursery
        self.node = StubNode(session or Session(max_in_flight=8), requests_max)
        self.owner = Owner(self.node)
        self.known = {1: KEY} if known is None else known
        self.time = "2026-11-22T15:00:00.000Z"
        self.heartbeat_s = heartbeat_s
        self.refusing: set[str] = set()
        self.accept_silently = False
        self.tries: list[tuple[float, str]] = []
        self.peers: list[Sicoop] = []
        self.nonces = itertools.count()
        self.link = PlatformLink(
            NUMBER, msgspec.structs.replace(settings, connect=addresses),
            self.node, self.owner,  # type: ignore[arg-type]
            keys=lambda: keys or [(1, KEY)], chance=random.Random(7).random,
            dial=self.connect, queue_max=queue_max,
            nonce=lambda: next(self.nonces).to_bytes(16, "big"),
        )  # fmt: skip
        nursery.start_soon(self.link.run)

    async def connect(self, address: str) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.tries.append((trio.current_time(), address))
        if address in self.refusing:
            raise ConnectionRefusedError
        ours, theirs = trio.testing.memory_stream_pair()
        peer = Sicoop(theirs, self.known, self.heartbeat_s, self.time)
        if not self.accept_silently:
            self.peers.append(peer)
            self.nursery.start_soon(peer.run)
        return ours

    async def up(self, sessions: int = 1) -> Sicoop:
        await until(lambda: len(self.link.snapshot()["connections"]) >= sessions)
        return self.peers[-1]

    async def ask(self, *tokens: str, budget_s: float = 25.0) -> None:
        for token in tokens:
            assert self.link.request(status(token), token=token, budget_s=budget_s) == ""
        self.link.flush()
        await trio.testing.wait_all_tasks_blocked(0.001)


def reference(token: str) -> str:
    return f"{NUMBER}00000001{20261122}{int(token):06d}"


def status(token: str) -> Status:
    return Status(0, reference(token))


def answer(request: Any, state: str = "CAPTURADA") -> StatusAnswer:
    return StatusAnswer(request.id, state, request.reference)


def hold(token: str, **fields: Any) -> Hold:
    values: dict[str, Any] = {"document": "4567890", "token": "004512", "cashier": "345"}
    values |= {"branch": "17", "amount": 1000, "currency": "PYG", "sent_at": ""} | fields
    return Hold(id=0, reference=reference(token), kind="cash_out", **values)


@pytest.fixture
def clock(autojump_clock: Any) -> Any:
    return autojump_clock


@pytest.fixture
def make(nursery: trio.Nursery) -> Callable[..., Bench]:
    return lambda **options: Bench(nursery, **options)


async def until(done: Callable[[], bool]) -> None:
    """Look again and again; on the jumping clock that costs nothing."""
    with trio.fail_after(120):
        while not done():  # noqa: ASYNC110
            await trio.sleep(0.02)


# ---- requests and their answers ------------------------------------------------------------------


async def test_answers_in_any_order_reach_who_asked(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1", "2", "3")
    assert [r.reference for r in peer.requests] == [reference(n) for n in "123"]
    assert len({r.id for r in peer.requests}) == 3
    for request in reversed(peer.requests):
        await peer.say(answer(request, f"S{request.reference[-1]}"))
    await until(lambda: len(bench.owner.told) == 3)
    assert {n: bench.owner.told[n].state for n in "123"} == {"1": "S1", "2": "S2", "3": "S3"}
    assert bench.link.in_flight == 0


async def test_requests_of_one_turn_leave_in_one_write(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    before = peer.reads
    await bench.ask("1", "2", "3", "4", "5")
    assert (len(peer.requests), peer.reads) == (5, before + 1)


async def test_a_hold_is_stamped_when_it_leaves(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    bench.link.request(hold("1"), token="1", budget_s=25)
    bench.link.request(Confirm(0, reference("2"), "then"), token="2", budget_s=25)
    bench.link.flush()
    await until(lambda: len(peer.requests) == 2)
    assert peer.requests[0].sent_at == "2026-11-22T15:00:00.000Z"
    assert peer.requests[1].registered_at == "then"


async def test_the_same_answer_twice_is_told_once(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    await peer.say(answer(peer.requests[0]), answer(peer.requests[0], "OTRA"))
    await until(lambda: bench.link.counters.as_dict()["late"] == 1)
    assert bench.owner.told["1"].state == "CAPTURADA"
    assert bench.link.strays[0]["what"] == "late"


@pytest.mark.parametrize("wrong", [
    lambda r: NetworkAnswer(r.id, "00", reference("9"), "APROBADA"),
    lambda r: HolderAnswer("00", id=r.id),
    lambda r: StatusAnswer(r.id + 1000, "CAPTURADA", r.reference),
    lambda r: StatusAnswer(0, "CAPTURADA", r.reference),
    lambda r: StatusAnswer(-1, "CAPTURADA", r.reference),
])  # fmt: skip
async def test_an_answer_that_does_not_fit_decides_nothing(
    clock: Any, make: Any, wrong: Any
) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    await peer.say(wrong(peer.requests[0]))
    await until(lambda: bench.link.counters.as_dict()["unmatched"] == 1)
    assert bench.owner.told == {}
    await peer.say(answer(peer.requests[0]))
    await until(lambda: "1" in bench.owner.told)
    assert bench.owner.told["1"].state == "CAPTURADA"


async def test_ids_of_an_ended_session_mean_nothing_in_the_next(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    old = peer.requests[0]
    await peer.close()
    await until(lambda: bench.owner.told.get("1") == "lost")
    await until(lambda: bench.link.up)
    newer = bench.peers[-1]
    await bench.ask("2")
    assert newer.requests[0].id == old.id, "each session counts from the beginning"
    await newer.say(StatusAnswer(old.id, "REVERSADA", old.reference))
    await newer.say(answer(newer.requests[0]))
    await until(lambda: "2" in bench.owner.told)
    assert bench.owner.told["2"].state == "CAPTURADA"
    assert bench.link.counters.as_dict()["unmatched"] == 1


async def test_refusals_answer_any_request(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    bench.link.request(NetworkHolder(0, "CI", "4567890"), token="2", budget_s=25)
    bench.link.flush()
    await until(lambda: len(peer.requests) == 2)
    for request in peer.requests:
        await peer.say(NetworkAnswer(request.id, "30", key="FORMATO", field="document"))
    await until(lambda: len(bench.owner.told) == 2)
    assert {told.code for told in bench.owner.told.values()} == {"30"}


async def test_an_unreadable_answer_leaves_the_outcome_unknown(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    await peer.say(msgspec.structs.replace(answer(peer.requests[0]), state=7))
    await until(lambda: "1" in bench.owner.told)
    assert bench.owner.told == {"1": "lost"}
    assert bench.link.up


# ---- time ----------------------------------------------------------------------------------------


async def test_no_answer_in_time_and_then_a_late_one(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    began = trio.current_time()
    await bench.ask("1", budget_s=25)
    await bench.ask("2", budget_s=40)
    await until(lambda: "1" in bench.owner.told)
    assert 25 <= trio.current_time() - began <= 26
    assert bench.owner.told == {"1": "timeout"}
    await peer.say(answer(peer.requests[0]), answer(peer.requests[1]))
    await until(lambda: "2" in bench.owner.told)
    assert bench.owner.told["1"] == "timeout"
    assert (bench.link.counters.as_dict()["late"], bench.link.counters.as_dict()["timeouts"]) == (
        1,
        1,
    )


async def test_silence_is_asked_into_and_then_the_session_ends(clock: Any, make: Any) -> None:
    bench = make(heartbeat_s=10)
    peer = await bench.up()
    peer.silent = True
    began = trio.current_time()
    await bench.ask("1", budget_s=60)
    await until(lambda: bench.link.state == "DEGRADED")
    assert 10 <= trio.current_time() - began <= 14
    await until(lambda: "1" in bench.owner.told)
    assert 19.9 <= trio.current_time() - began <= 21
    assert bench.owner.told["1"] == "lost"


async def test_echoes_keep_a_quiet_session(clock: Any, make: Any) -> None:
    bench = make(heartbeat_s=10)
    await bench.up()
    await trio.sleep(100)
    assert (bench.link.state, bench.link.counters.as_dict()["connects"]) == ("UP", 1)


# ---- up and down ---------------------------------------------------------------------------------


async def test_down_refuses_at_once_and_up_is_told(clock: Any, make: Any) -> None:
    bench = make()
    bench.refusing.add(HERE)
    await trio.sleep(3)
    assert bench.link.request(status("1"), token="1", budget_s=25) == "down"
    assert (bench.owner.events, bench.link.state) == ([], "DOWN")
    bench.refusing.clear()
    peer = await bench.up()
    assert bench.owner.events == ["up"]
    bench.refusing.add(HERE)
    await peer.close()
    await until(lambda: bench.owner.events == ["up", "down"])
    assert bench.link.request(status("1"), token="1", budget_s=25) == "down"
    assert bench.owner.told == {}


async def test_pauses_double_with_jitter_up_to_the_longest(clock: Any, make: Any) -> None:
    bench = make()
    bench.refusing.add(HERE)
    await trio.sleep(60)
    times = [at for at, _ in bench.tries]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, whole in zip(pauses, [1, 2, 4, 8, 8, 8, 8], strict=False):
        assert whole / 2 <= pause <= whole + 0.1
    assert len(set(pauses)) == len(pauses), "jitter"


async def test_a_flapping_platform_is_probed_more_and_more_slowly(clock: Any, make: Any) -> None:
    bench = make(settings=msgspec.structs.replace(SETTINGS, sessions=4))
    for _ in range(4):
        await until(lambda: bench.link.up)
        for peer in bench.peers:
            await peer.close()
        await until(lambda: not bench.link.up)
    bench.accept_silently = True
    tries = len(bench.tries)
    await trio.sleep(30)
    # One probe at a time, though four sessions are wanted: each hangs for 10 s.
    assert len(bench.tries) - tries <= 4


async def test_the_next_address_takes_over_without_a_pause(clock: Any, make: Any) -> None:
    bench = make(addresses=(HERE, THERE))
    peer = await bench.up()
    bench.refusing.add(HERE)
    began = trio.current_time()
    await peer.close()
    await until(lambda: len(bench.peers) == 2)
    assert bench.tries[-1][1] == THERE
    assert trio.current_time() - began <= SETTINGS.backoff_min_s + 0.5


async def test_a_sign_on_without_an_answer_ends_in_time(clock: Any, make: Any) -> None:
    bench = make(addresses=(HERE, THERE))
    bench.accept_silently = True
    await trio.sleep(9.9)
    assert len(bench.tries) == 1
    bench.accept_silently = False
    await until(lambda: bench.link.up)
    assert bench.tries[1] == (10.0, THERE)


async def test_a_dead_session_makes_only_its_own_requests_unknown(clock: Any, make: Any) -> None:
    bench = make(settings=msgspec.structs.replace(SETTINGS, sessions=2))
    await bench.up(2)
    await bench.ask("1", "2", "3", "4")
    first, second = bench.peers
    assert (len(first.requests), len(second.requests)) == (2, 2), "least loaded first"
    await first.close()
    await until(lambda: len(bench.owner.told) == 2)
    for request in second.requests:
        await second.say(answer(request))
    await until(lambda: len(bench.owner.told) == 4)
    lost = {f"{int(r.reference[-6:])}" for r in first.requests}
    assert {token for token, told in bench.owner.told.items() if told == "lost"} == lost
    assert bench.owner.events == ["up"]


# ---- bounds --------------------------------------------------------------------------------------


async def test_in_flight_and_queue_are_bounded(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask(*map(str, range(1, 13)))
    assert (len(peer.requests), bench.link.snapshot()["queue"]) == (8, 4)
    assert bench.link.request(status("13"), token="13", budget_s=25) == "full"
    assert bench.link.counters.as_dict()["refused_full"] == 1
    await peer.say(*map(answer, peer.requests[:3]))
    await until(lambda: len(peer.requests) == 11)
    assert [int(r.reference[-6:]) for r in peer.requests] == list(range(1, 12)), "in order"
    await bench.ask("14")
    await until(lambda: len(bench.owner.told) == 3)
    assert bench.link.snapshot()["queue"] == 2


async def test_what_never_left_is_told_so(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask(*map(str, range(1, 9)))
    await bench.ask("9", budget_s=5)
    await until(lambda: "9" in bench.owner.told)
    assert bench.owner.told == {"9": "unsent"}
    await bench.ask("10")
    await peer.close()
    await until(lambda: len(bench.owner.told) == 10)
    assert bench.owner.told["10"] == "unsent"
    assert {bench.owner.told[str(n)] for n in range(1, 9)} == {"lost"}


async def test_many_losses_are_told_in_steps_of_bounded_size(clock: Any, make: Any) -> None:
    bench = make(session=Session(max_in_flight=64), requests_max=10)
    peer = await bench.up()
    await bench.ask(*map(str, range(1, 61)))
    steps = bench.node.steps
    await peer.close()
    await until(lambda: len(bench.owner.told) == 60)
    assert bench.node.steps - steps >= 6


async def test_a_hold_that_makes_too_long_a_frame_never_leaves(clock: Any, make: Any) -> None:
    bench = make(session=Session(max_in_flight=8, frame_bytes_max=2048))
    await bench.up()
    declaration = {f"line{n}": "é" * 200 for n in range(8)}
    request = hold("1", declaration=declaration)
    assert bench.link.request(request, token="1", budget_s=25) == "too_long"
    assert bench.link.request(hold("2", declaration={"origin": "x"}), token="2", budget_s=25) == ""


# ---- the session ---------------------------------------------------------------------------------


async def test_63_is_the_end_of_the_connection_and_no_answer(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    peer.session._refuse_peer("test")
    await peer.stream.send_all(peer.session.output())
    await until(lambda: "1" in bench.owner.told)
    assert bench.owner.told["1"] == "lost"
    await until(lambda: bench.link.up)
    assert bench.link.counters.as_dict()["connects"] == 2


async def test_a_garbled_answer_is_the_end_of_the_connection(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    frame = bytearray(peer.session.encode([answer(peer.requests[0])]))
    frame[-1] ^= 1
    await peer.stream.send_all(bytes(frame))
    await until(lambda: "1" in bench.owner.told)
    assert bench.owner.told["1"] == "lost"


async def test_a_refused_key_is_followed_by_the_one_before(clock: Any, make: Any) -> None:
    bench = make(keys=[(2, NEWER), (1, KEY)], known={1: KEY})
    peer = await bench.up()
    assert peer.session.key_version == 1
    assert bench.link.counters.as_dict()["connects_failed"] == 1


@pytest.mark.parametrize(("time", "alarms"), [
    ("2026-11-22T15:00:01.900Z", []), ("2026-11-22T15:00:02.100Z", ["clock_of_platform"]),
    ("2026-11-22T14:59:50.000Z", ["clock_of_platform"]), ("yesterday", []),
])  # fmt: skip
async def test_clocks_that_differ_are_told_of(
    clock: Any, make: Any, time: str, alarms: list[str]
) -> None:
    bench = make()
    bench.time = time
    await bench.up()
    assert bench.node.alarms == alarms


async def test_questions_of_the_platform_are_answered(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await peer.say(Status(5, reference("1")), Status(6, reference("2")))
    await until(lambda: len(bench.owner.questions) == 2)
    for question, origin in bench.owner.questions:
        origin.ready(StatusAnswer(question.id, "REGISTRADA", question.reference))
    bench.owner.questions[0][1].flush()
    await until(lambda: len(peer.requests) == 2)
    assert [(a.id, a.state) for a in peer.requests] == [(5, "REGISTRADA"), (6, "REGISTRADA")]


async def test_questions_beyond_the_limit_wait(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await peer.say(*(Status(n, reference(str(n))) for n in range(1, 9)))
    await until(lambda: len(bench.owner.questions) == 8)
    await peer.say(Status(9, reference("9")))
    await trio.sleep(5)
    assert len(bench.owner.questions) == 8
    question, origin = bench.owner.questions[0]
    origin.ready(StatusAnswer(question.id, "ERROR"))
    origin.flush()
    await until(lambda: len(bench.owner.questions) == 9)


async def test_close_waits_for_what_is_in_flight(clock: Any, make: Any) -> None:
    bench = make()
    peer = await bench.up()
    await bench.ask("1")
    closed = trio.Event()

    async def close() -> None:
        await bench.link.close()
        closed.set()

    bench.nursery.start_soon(close)
    await trio.sleep(2)
    assert not closed.is_set()
    await peer.say(answer(peer.requests[0]))
    await closed.wait()
    assert bench.owner.told["1"].state == "CAPTURADA"
    await peer.ended.wait()
    assert bench.link.request(status("2"), token="2", budget_s=25) == "down"
    await trio.sleep(30)
    assert len(bench.tries) == 1


# ---- whatever a platform does --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_back_nobody_gets_anothers_answer(
    clock: Any, make: Any, seed: int
) -> None:
    """Answers late, twice, mixed up, of the wrong kind, under other ids, and cut connections."""
    chance = random.Random(seed)
    bench = make(
        settings=msgspec.structs.replace(SETTINGS, sessions=3, backoff_min_s=0.1),
        session=Session(max_in_flight=16), queue_max=16,
    )  # fmt: skip
    asked = accepted = 0
    for _ in range(60):
        for _ in range(chance.randrange(8)):
            asked += 1
            token = str(asked)
            refused = bench.link.request(status(token), token=token, budget_s=chance.uniform(1, 9))
            accepted += not refused
        bench.link.flush()
        await trio.sleep(chance.uniform(0, 0.5))
        for peer in bench.peers:
            await _misbehave(peer, chance)
    await trio.sleep(60)
    assert len(bench.owner.told) == accepted > 50
    for token, told in bench.owner.told.items():
        if isinstance(told, str):
            assert told in ("timeout", "lost", "unsent")
        else:
            assert told.state == f"S{reference(token)}"
    assert bench.link.in_flight == bench.link.queued == 0
    figures = bench.link.counters.as_dict()
    ends = ("answers", "timeouts", "lost", "unsent")
    assert sum(figures[name] for name in ends) == accepted == figures["requests"]


async def _misbehave(peer: Sicoop, chance: random.Random) -> None:
    if peer.ended.is_set() or not peer.requests:
        return
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for request in chance.sample(peer.requests, min(4, len(peer.requests))):
            right = answer(request, f"S{request.reference}")
            other = chance.choice(peer.requests)
            said: list[Any] = chance.choice([
                [right], [right], [right], [right, right], [],
                [StatusAnswer(other.id, right.state, right.reference), right],
                [HolderAnswer("00", id=request.id)],
                [StatusAnswer(request.id + chance.randrange(99, 999), right.state)],
            ])  # fmt: skip
            await peer.say(*said)
        if chance.random() < 0.05:
            await peer.close()


# ---- sockets -------------------------------------------------------------------------------------


async def test_over_sockets_the_pump_reads(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The same link as a node has it: plain TCP, read by the pump, 300 requests over 2 sessions."""
    house = House(tmp_path)
    node = house.node
    told: dict[str, Any] = {}

    class Keeper(Owner):
        def _once(self, token: Any, what: Any) -> None:
            assert token not in told, "told twice"
            told[token] = what

        def on_up(self, step: Any) -> None:
            pass

    pump = Pump(node)
    nursery.start_soon(pump.run)
    peers: list[Sicoop] = []

    async def accept(stream: trio.abc.Stream) -> None:
        peers.append(Sicoop(stream, {1: KEY}, 30))
        await peers[-1].run()

    serve: Callable[..., Awaitable[Any]] = trio.serve_tcp
    listeners = await nursery.start(serve, accept, 0)
    port = listeners[0].socket.getsockname()[1]
    settings = Platform(connect=(f"127.0.0.1:{port}",), sessions=2)
    owner = Keeper(StubNode(Session()))
    link = PlatformLink(NUMBER, settings, node, owner, keys=lambda: [(1, KEY)], pump=pump)
    nursery.start_soon(link.run)
    with trio.fail_after(120):
        await until(lambda: len(link.snapshot()["connections"]) == 2)
        for number in range(1, 301):
            assert link.request(status(str(number)), token=str(number), budget_s=20) == ""
        link.flush()
        while len(told) < 300:
            for peer in peers:
                taken, peer.requests = peer.requests, []
                random.Random(number).shuffle(taken)
                await peer.say(*(answer(r, f"S{r.reference}") for r in taken))
            await trio.sleep(0.001)
    assert all(answer.state == f"S{reference(token)}" for token, answer in told.items())
    assert {peer.session.encoding for peer in peers} == {"msgpack"}
    assert link.counters.as_dict()["answers"] == 300
    nursery.cancel_scope.cancel()
    house.close()
