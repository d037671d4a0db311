"""Connections and turns on memory streams and a clock of our own: deadlines, writes, back-pressure.

The node behind the driver is a stub that answers when told to; sessions, gate and streams are real.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from core_ext import Histogram
from protocols.messages import (
    Answer,
    Echo,
    EchoAnswer,
    LastOperation,
    SignOff,
    Status,
    StatusAnswer,
)
from protocols.session import NETWORK, TERMINAL, Initiator, PeerKey, SignOnGuard
from switch.config import Session
from switch.flows.step import Send, Step
from switch.journal.gate import ReplyGate
from switch.net.driver import ASKED_MAX, Driver
from switch.net.peer import Peer

KEYS = {f"{number:08d}": PeerKey(bytes([number]) * 32) for number in range(1, 6)}
CONFIG = Session(max_in_flight=8, outbox_bytes_max=65_536)
Stream = trio.StapledStream[Any, Any]


class StubClock:
    def wall_ns(self) -> int:
        return 1_795_359_600_000_000_000


class StubConfig:
    session = CONFIG


class StubNode:
    """Takes requests, and answers them when a test says so."""

    config = StubConfig()
    clock = StubClock()
    requests_max = 100

    def __init__(self) -> None:
        self.gate = ReplyGate()
        self.requests: list[tuple[Peer, Any]] = []
        self.turns: list[int] = []
        self.seq = 0
        self._before = 0

    def begin(self) -> "StubNode":
        self._before = len(self.requests)
        return self

    def end(self, step: object) -> None:
        self.turns.append(len(self.requests) - self._before)

    async def room(self) -> None:
        await trio.lowlevel.checkpoint()

    def handle(self, step: object, peer: Peer, message: Any) -> None:
        self.requests.append((peer, message))

    def answer(self, count: int | None = None, text: str = "") -> None:
        """Answer the oldest requests, as one durable group."""
        taken, self.requests[:count] = self.requests[:count], []
        for peer, message in taken:
            self.seq += 1
            self.gate.hold(self.seq, peer, Answer("00", "APROBADA", text, message.trace), 0)
        self.gate.release(self.seq, 0, Histogram())


class Bench:
    """A driver that is running, and clients for it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.node = StubNode()
        self.nursery = nursery
        self.guard = SignOnGuard(trio.current_time)
        self.driver = Driver(
            self.node,  # type: ignore[arg-type]
            name="terminals",
            vocabulary=TERMINAL,
            authenticate=lambda number, version: KEYS.get(number) if version == 1 else None,
            handle=self.node.handle,
            sessions_max=1,
            guard=self.guard,
        )
        nursery.start_soon(self.driver.sweep)

    def connect(
        self, number: str = "00000001", key: PeerKey | None = None,
        pair: Callable[[], tuple[Stream, Stream]] = trio.testing.memory_stream_pair,
    ) -> "Client":  # fmt: skip
        ours, theirs = pair()
        self.nursery.start_soon(self.driver.serve, theirs)
        return Client(ours, theirs, number, key or KEYS[number])

    async def signed_on(self, number: str = "00000001", **options: Any) -> "Client":
        client = self.connect(number, **options)
        await client.sign_on()
        return client


class Client:
    """The other end."""

    def __init__(self, stream: Stream, theirs: Stream, number: str, key: PeerKey) -> None:
        self.stream, self.theirs = stream, theirs
        self.session = Initiator(vocabulary=TERMINAL, peer=number, key=key, nonce=bytes(16))

    async def sign_on(self) -> None:
        await self.stream.send_all(self.session.sign_on())
        while not self.session.signed_on and self.session.closing is None:
            self.session.receive(bytes(await self.stream.receive_some(65_536)))

    async def ask(self, *traces: int) -> None:
        """Send requests in one write."""
        await self.send(*(LastOperation(trace=trace) for trace in traces))

    async def send(self, *messages: Any) -> None:
        await self.stream.send_all(self.session.encode(list(messages)))

    async def heard(self) -> list[Any]:
        """What one read brings; [] at the end."""
        data = bytes(await self.stream.receive_some(1 << 20))
        return self.session.receive(data) if data else []

    async def ended(self) -> bool:
        return not await self.stream.receive_some(65_536)


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    return Bench(nursery)


@asynccontextmanager
async def lasts(seconds: float, *, slack: float = 1.0) -> AsyncIterator[None]:
    """The block takes so long by trio's clock; sweeps come once a second."""
    began = trio.current_time()
    yield
    assert seconds <= trio.current_time() - began <= seconds + slack


# ---- deadlines -----------------------------------------------------------------------------------


async def test_a_connection_that_does_not_sign_on(autojump_clock: Any, bench: Bench) -> None:
    silent, half = bench.connect(), bench.connect()
    await half.stream.send_all(half.session.sign_on()[:20])
    async with lasts(CONFIG.sign_on_s):
        assert await silent.ended()
    assert await half.ended()
    await trio.testing.wait_all_tasks_blocked()
    assert not bench.driver.peers


async def test_silence_is_asked_into_and_then_ended(autojump_clock: Any, bench: Bench) -> None:
    client = await bench.signed_on()
    assert client.session.heartbeat_s == 30
    began = trio.current_time()
    data = bytes(await client.stream.receive_some(65_536))
    assert 30 <= trio.current_time() - began <= 31
    assert client.session.receive(data) == []
    assert client.session.output(), "an echo is owed its answer"
    async with lasts(30):
        assert await client.ended()
    assert not bench.driver.peers


async def test_a_peer_that_answers_echoes_stays(autojump_clock: Any, bench: Bench) -> None:
    client = await bench.signed_on()
    for _ in range(5):
        assert await client.heard() == []
        await client.stream.send_all(client.session.output())
    assert trio.current_time() >= 150
    await client.send(Echo(trace=7))
    data = bytes(await client.stream.receive_some(65_536))
    assert client.session.receive(data) == []
    assert bench.node.requests == []
    assert len(bench.driver.peers) == 1


async def test_half_frames_are_signs_of_life_of_a_kind(autojump_clock: Any, bench: Bench) -> None:
    """Every byte heard counts; a frame that never ends is bounded by its length, not by time."""
    client = await bench.signed_on()
    await client.send(Echo())
    await client.heard()
    frame = client.session.encode([LastOperation(trace=1)])
    for at in range(5):
        await trio.sleep(50)
        await client.stream.send_all(frame[at : at + 1])
    assert len(bench.driver.peers) == 1


async def test_bytes_are_no_proof_of_a_session(autojump_clock: Any, bench: Bench) -> None:
    """Whoever has recorded a sign-on can replay it; without the key it does not hold for long."""
    client = await bench.signed_on()
    async with lasts(CONFIG.sign_on_s + 2 * CONFIG.heartbeat_s), trio.open_nursery() as nursery:

        async def trickle() -> None:
            await client.stream.send_all(b"\x01")
            while True:
                await client.stream.send_all(b"\x00")
                await trio.sleep(5)

        nursery.start_soon(trickle)
        assert await client.ended()
        nursery.cancel_scope.cancel()


async def test_a_lock_ends_after_a_minute(autojump_clock: Any, bench: Bench) -> None:
    for _ in range(5):
        client = bench.connect(key=KEYS["00000002"])
        await client.sign_on()
        assert client.session.code == "63"
    assert bench.guard.locked == 1
    await trio.sleep(59)
    assert not (await bench.signed_on()).session.signed_on
    assert (await bench.signed_on("00000002")).session.signed_on
    await trio.sleep(1)
    assert (await bench.signed_on()).session.signed_on


async def test_a_slowed_address_waits_for_its_turn(autojump_clock: Any, bench: Bench) -> None:
    for number in range(100):
        bench.guard.failed("memory", f"{number:08d}")
    first = await bench.signed_on()
    async with lasts(1, slack=0.1):
        second = await bench.signed_on("00000002")
    assert first.session.signed_on
    assert second.session.signed_on


async def test_a_slowed_address_pays_once_for_a_sign_on_in_pieces(
    autojump_clock: Any, bench: Bench
) -> None:
    for number in range(100):
        bench.guard.failed("memory", f"{number:08d}")
    await bench.signed_on("00000002")
    client = bench.connect()
    sign_on = client.session.sign_on()
    async with lasts(1, slack=0.5):
        for at in range(0, len(sign_on), 10):
            await client.stream.send_all(sign_on[at : at + 10])
            await trio.testing.wait_all_tasks_blocked()
        client.session.receive(bytes(await client.stream.receive_some(65_536)))
    assert client.session.signed_on


# ---- turns and writes ----------------------------------------------------------------------------


def count_writes(client: Client) -> list[int]:
    """Sizes of what the driver writes to this client from now on."""
    writes: list[int] = []
    stream = client.theirs.send_stream
    put = stream.send_all

    async def counting(data: bytes) -> None:
        writes.append(len(data))
        await put(data)

    stream.send_all = counting
    return writes


async def test_one_read_is_one_turn_and_one_write(bench: Bench) -> None:
    clients = [await bench.signed_on(f"{number:08d}") for number in (1, 2, 3)]
    writes = [count_writes(client) for client in clients]
    for client in clients:
        await client.ask(*range(1, 9))
    await trio.testing.wait_all_tasks_blocked()
    assert bench.node.turns == [8, 8, 8]
    bench.node.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert [len(sizes) for sizes in writes] == [1, 1, 1]
    for client in clients:
        assert [answer.trace for answer in await client.heard()] == list(range(1, 9))


async def test_no_more_is_read_than_may_be_in_flight(bench: Bench) -> None:
    client = await bench.signed_on()
    await client.ask(*range(1, 31))
    for taken in (8, 16, 24, 30):
        await trio.testing.wait_all_tasks_blocked()
        assert bench.driver.peers
        assert len(bench.node.requests) == min(8, taken), "as many as may be in flight"
        if taken < 24:
            await client.ask(1000 + taken)  # stays outside
        bench.node.answer()
    await trio.testing.wait_all_tasks_blocked()
    while bench.node.requests:
        bench.node.answer()
        await trio.testing.wait_all_tasks_blocked()
    answers: list[Any] = []
    while len(answers) < 32:
        answers += await client.heard()
    assert [answer.trace for answer in answers] == [*range(1, 31), 1008, 1016]


async def test_answers_in_any_number_make_room(bench: Bench) -> None:
    client = await bench.signed_on()
    await client.ask(*range(1, 13))
    await trio.testing.wait_all_tasks_blocked()
    bench.node.answer(1)
    await trio.testing.wait_all_tasks_blocked()
    assert [message.trace for _, message in bench.node.requests] == list(range(2, 10))


async def test_a_peer_that_does_not_read_is_cut_off(bench: Bench) -> None:
    client = await bench.signed_on(pair=trio.testing.lockstep_stream_pair)

    async def ask(first: int) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await client.ask(*range(first, first + 8))

    for first in range(1, 1000, 8):
        bench.nursery.start_soon(ask, first)
        await trio.testing.wait_all_tasks_blocked()
        bench.node.answer(text="x" * 2000)
        await trio.testing.wait_all_tasks_blocked()
        if not bench.driver.peers:
            break
    # What is on its way in one write, and as much behind it.
    assert CONFIG.outbox_bytes_max < first * 2000 < 3 * CONFIG.outbox_bytes_max


async def test_bad_requests_are_answered_without_the_node(bench: Bench) -> None:
    client = await bench.signed_on()
    frames = b"".join(
        client.session._channel.seal([b'{"op":"cash_out","trace":%d}' % trace])
        for trace in range(1, 100)
    )
    await client.stream.send_all(frames)
    answers: list[Any] = []
    while len(answers) < 99:
        answers += await client.heard()
    assert {answer.code for answer in answers} == {"30"}
    assert bench.node.requests == []


# ---- ends ----------------------------------------------------------------------------------------


async def test_a_half_closed_peer_gets_its_answers(autojump_clock: Any, bench: Bench) -> None:
    client = await bench.signed_on()
    await client.ask(1, 2)
    await client.stream.send_eof()
    await trio.sleep(3)
    bench.node.answer()
    assert [answer.trace for answer in await client.heard()] == [1, 2]
    assert await client.ended()


async def test_a_half_closed_peer_is_not_waited_for_for_ever(
    autojump_clock: Any, bench: Bench
) -> None:
    client = await bench.signed_on()
    await client.ask(1)
    await client.stream.send_eof()
    async with lasts(CONFIG.drain_s):
        assert await client.ended()
    bench.node.answer()
    assert not bench.driver.peers


async def test_nothing_is_read_behind_a_sign_off(bench: Bench) -> None:
    client = await bench.signed_on()
    await client.send(LastOperation(trace=1), SignOff(trace=2), LastOperation(trace=3))
    await trio.testing.wait_all_tasks_blocked()
    assert [message.trace for _, message in bench.node.requests] == [1, 2]
    bench.node.answer()
    assert [answer.trace for answer in await client.heard()] == [1, 2]
    assert await client.ended()


async def test_a_second_session_displaces_the_first_once_proved(bench: Bench) -> None:
    first = await bench.signed_on()
    await first.ask(1)
    second = await bench.signed_on()
    await trio.testing.wait_all_tasks_blocked()
    assert len(bench.driver.peers) == 2, "a sign-on may be a replay"
    await second.ask(2)
    await trio.testing.wait_all_tasks_blocked()
    assert await first.ended()
    bench.node.answer()
    assert [answer.trace for answer in await second.heard()] == [2]
    assert len(bench.driver.peers) == 1


async def test_idle_connections_end_at_once_and_busy_ones_with_their_answers(
    autojump_clock: Any, bench: Bench
) -> None:
    idle, busy = await bench.signed_on("00000001"), await bench.signed_on("00000002")
    await busy.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    bench.driver.finish()
    assert await idle.ended()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.driver.finished)
        await trio.sleep(2)
        await busy.ask(2)
        await trio.sleep(2)
        assert bench.driver.peers
        bench.node.answer(1)
    assert [answer.trace for answer in await busy.heard()] == [1]
    assert await busy.ended()


async def test_finished_waits_for_as_long_as_it_is_let(autojump_clock: Any, bench: Bench) -> None:
    busy = await bench.signed_on()
    await busy.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    bench.driver.finish()
    async with lasts(10, slack=0.1):
        with trio.move_on_after(10):
            await bench.driver.finished()
    assert len(bench.driver.peers) == 1


def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    for end in (ours, theirs):
        end.setblocking(False)
    return (
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)),
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)),
    )


async def until(condition: Callable[[], object]) -> None:
    """Real sockets need real time."""
    with trio.fail_after(120):
        while not condition():  # noqa: ASYNC110 (nothing signals it)
            await trio.sleep(0.001)


async def test_an_answer_for_a_connection_that_is_gone_goes_nowhere(bench: Bench) -> None:
    """The number of its socket may be another connection's by then."""
    client = await bench.signed_on(pair=tcp_pair)  # type: ignore[arg-type]
    await client.ask(1)
    await until(lambda: bench.node.requests)
    (peer,) = bench.driver.peers
    number = peer.fd
    assert peer.tending is not None
    peer.tending.cancel_scope.cancel()  # as at the end of a drain: from outside, not cut
    await until(lambda: client.theirs.socket.fileno() < 0)  # type: ignore[attr-defined]
    reading, writing = socket.socketpair()
    with reading, writing:
        assert number in (reading.fileno(), writing.fileno()), "the number is in use again"
        bench.node.answer()
        for end in (reading, writing):
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(100)
    await client.stream.aclose()


async def test_the_last_word_is_not_overtaken_by_a_reset(bench: Bench) -> None:
    """Closing over unread bytes resets, and a reset throws away what the peer has not read."""
    client = await bench.signed_on(pair=tcp_pair)  # type: ignore[arg-type]
    junk = b"\xff" * 200_000
    await client.stream.send_all(junk)
    await trio.sleep(0.05)
    await client.stream.send_all(junk)
    assert [error.code for error in await client.heard()] == ["30"]
    assert await client.ended()
    await client.stream.aclose()
    await until(lambda: not bench.driver.peers)


async def test_too_many_connections(bench: Bench) -> None:
    bench.driver._config = msgspec.structs.replace(CONFIG, connections_max=2)
    clients = [await bench.signed_on(f"{number:08d}") for number in (1, 2)]
    refused = bench.connect("00000003")
    assert await refused.ended()
    assert bench.driver.refused == 1
    await clients[0].ask(1)
    await trio.testing.wait_all_tasks_blocked()
    bench.node.answer()
    assert len(await clients[0].heard()) == 1


async def test_echoes_confirm_a_session(bench: Bench) -> None:
    first = await bench.signed_on()
    second = await bench.signed_on()
    await first.send(EchoAnswer())
    await second.send(Echo(trace=1))
    await trio.testing.wait_all_tasks_blocked()
    assert await first.ended()
    assert len(bench.driver.peers) == 1


# ---- what we ask


class _Asking:
    """A sicoop's listener, with one network that answers what it is asked."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.bench = Bench(nursery)
        self.told: list[tuple[str, str, str]] = []
        self.bench.driver = Driver(
            self.bench.node,  # type: ignore[arg-type]
            name="sicoop",
            vocabulary=NETWORK,
            authenticate=lambda number, version: KEYS["00000001"],
            handle=self.bench.node.handle,
            sessions_max=8,
            guard=self.bench.guard,
            on_state=lambda step, *values: self.told.append(values),
        )

    async def network(self) -> Client:
        client = self.bench.connect("0012", KEYS["00000001"])
        client.session = Initiator(
            vocabulary=NETWORK, peer="0012", key=KEYS["00000001"], nonce=bytes(16)
        )
        await client.sign_on()
        await client.send(Echo(id=1))
        await client.heard()
        return client

    def ask(self, reference: str) -> bool:
        step = Step(0, 0)
        asked = self.bench.driver.ask(step, "0012", Status(0, reference))
        for effect in step.effects:
            assert isinstance(effect, Send)
            effect.to.ready(effect.message)  # type: ignore[attr-defined]
            effect.to.flush()  # type: ignore[attr-defined]
        return asked


REFERENCE = "0012" + "0" * 22


async def test_a_network_is_asked_and_answers(nursery: trio.Nursery) -> None:
    place = _Asking(nursery)
    assert not place.ask(REFERENCE), "no session, nobody to ask"
    client = await place.network()
    assert place.ask(REFERENCE)
    (question,) = await client.heard()
    assert (type(question), question.reference) == (Status, REFERENCE)
    await client.send(
        StatusAnswer(question.id + 7, "ERROR", REFERENCE),  # to nothing we asked
        StatusAnswer(question.id, "REGISTRADA", REFERENCE),
        StatusAnswer(question.id, "ERROR", REFERENCE),  # a second time
    )
    await trio.testing.wait_all_tasks_blocked()
    assert place.told == [("0012", REFERENCE, "REGISTRADA")]


async def test_an_answer_about_something_else_decides_nothing(nursery: trio.Nursery) -> None:
    place = _Asking(nursery)
    client = await place.network()
    place.ask(REFERENCE)
    (question,) = await client.heard()
    await client.send(StatusAnswer(question.id, "ERROR", "0013" + "0" * 22))
    await trio.testing.wait_all_tasks_blocked()
    assert place.told == []


async def test_questions_that_nobody_answers_are_forgotten(nursery: trio.Nursery) -> None:
    place = _Asking(nursery)
    await place.network()
    for number in range(ASKED_MAX + 10):
        assert place.ask(f"0012{number:022}")
    (peer,) = place.bench.driver.peers
    assert len(peer.asked) == ASKED_MAX
