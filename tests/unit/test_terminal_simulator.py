"""The terminal simulator over memory streams, against the accepting side of the session."""

import itertools
from collections.abc import Callable

import pytest
import trio
import trio.testing

from protocols.messages import (
    Answer,
    CashOut,
    Error,
    Holder,
    HolderAnswer,
    LastOperation,
    Notice,
    SignOff,
)
from protocols.session import TERMINAL, Acceptor, BadRequest, PeerKey
from switch.simulators.faults import Faults, FaultyStream
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal

KEY = PeerKey(bytes(range(32)))


def cash_out(trace: int) -> CashOut:
    return CashOut(
        trace=trace, cashier="345", token="004512", amount=1000, currency="PYG", document="4567890"
    )


def approve(requests: list[object]) -> list[object]:
    return [
        HolderAnswer(code="00", trace=r.trace)
        if isinstance(r, Holder)
        else Answer(code="00", key="APROBADA", text="", trace=r.trace)
        for r in requests
        if not isinstance(r, BadRequest)
    ]


class Host:
    """Accepts sessions of a terminal and answers by `reply`."""

    def __init__(self, nursery: trio.Nursery, reply: Callable[[list[object]], list[object]]):
        self.nursery = nursery
        self.reply = reply
        self.faults: dict[str, Faults] = {}
        self.key: PeerKey | None = KEY
        self.mute = False
        self.requests: list[object] = []
        self.streams: list[trio.abc.Stream] = []
        self.sessions: list[Acceptor] = []
        self.faulty: list[FaultyStream] = []
        self._seeds = itertools.count()

    async def connect(self) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        self.streams.append(server)
        self.nursery.start_soon(self._serve, server)
        self.faulty.append(FaultyStream(client, seed=next(self._seeds), **self.faults))
        return self.faulty[-1]

    async def _serve(self, stream: trio.abc.Stream) -> None:
        session = Acceptor(
            vocabulary=TERMINAL,
            authenticate=lambda peer, version: self.key,
            nonce=bytes(16),
            now_iso=lambda: "2026-11-22T13:00:00.000Z",
            heartbeat_s=30,
        )
        self.sessions.append(session)
        try:
            async with stream:
                while data := await stream.receive_some(65536):
                    messages = session.receive(bytes(data))
                    self.requests += messages
                    if self.mute:
                        continue
                    answers = self.reply(messages) if messages else []
                    out = session.output() + (session.encode(answers) if answers else b"")
                    if out:
                        await stream.send_all(out)
                    if session.closing is not None:
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def say(self, message: object) -> None:
        await self.streams[-1].send_all(self.sessions[-1].encode([message]))
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def host(nursery: trio.Nursery) -> Host:
    return Host(nursery, approve)


@pytest.fixture
async def terminal(host: Host, nursery: trio.Nursery) -> Terminal:
    one = Terminal("00000017", KEY, host.connect)
    await one.sign_on(nursery)
    return one


async def test_request_and_answer(host: Host, terminal: Terminal) -> None:
    answer = await terminal.request(cash_out(1))
    assert isinstance(answer, Answer)
    assert (answer.code, answer.trace) == ("00", 1)
    assert terminal.server_time == "2026-11-22T13:00:00.000Z"
    assert host.sessions[0].peer == "00000017"


async def test_pipelined_requests_are_matched_by_trace(host: Host, terminal: Terminal) -> None:
    """Answers come in reverse order once all requests are there."""
    collected: list[object] = []

    def reply(messages: list[object]) -> list[object]:
        collected.extend(messages)
        return approve(collected[::-1]) if len(collected) == 20 else []

    host.reply = reply
    answers = {}

    async def ask(trace: int) -> None:
        answers[trace] = await terminal.request(cash_out(trace))

    async with trio.open_nursery() as asking:
        for trace in range(1, 21):
            asking.start_soon(ask, trace)
    assert {trace: answer.trace for trace, answer in answers.items()} == {
        trace: trace for trace in range(1, 21)
    }


async def test_no_more_than_the_agreed_number_in_flight(host: Host, nursery: trio.Nursery) -> None:
    terminal = Terminal("00000017", KEY, host.connect, in_flight_max=3)
    await terminal.sign_on(nursery)
    host.mute = True
    async with trio.open_nursery() as asking:
        for trace in range(1, 6):
            asking.start_soon(terminal.request, cash_out(trace))
        await trio.testing.wait_all_tasks_blocked()
        assert len(host.requests) == 3
        asking.cancel_scope.cancel()


async def test_a_request_without_trace_is_given_one(host: Host, terminal: Terminal) -> None:
    await terminal.request(LastOperation())
    answer = await terminal.request(Holder(document="4567890"))
    assert isinstance(answer, HolderAnswer)
    assert [r.trace for r in host.requests] == [999_998, 999_997]


async def test_the_same_trace_twice_at_once(terminal: Terminal, host: Host) -> None:
    host.mute = True
    async with trio.open_nursery() as asking:
        asking.start_soon(terminal.request, cash_out(7))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ValueError, match="trace 7"):
            await terminal.request(cash_out(7))
        asking.cancel_scope.cancel()


async def test_X102_no_answer_in_time(
    host: Host, terminal: Terminal, autojump_clock: trio.testing.MockClock
) -> None:
    host.mute = True
    started = trio.current_time()
    with pytest.raises(OutcomeUnknown, match="30 s"):
        await terminal.request(cash_out(1))
    assert trio.current_time() - started == 30
    host.mute = False
    await host.say(Answer(code="00", key="APROBADA", text="", trace=1))
    assert terminal.late == 1
    assert (await terminal.request(cash_out(2))).code == "00"


async def test_X101_no_link_before_sending(nursery: trio.Nursery) -> None:
    async def refused() -> trio.abc.Stream:
        raise ConnectionRefusedError

    terminal = Terminal("00000017", KEY, refused)
    with pytest.raises(ConnectionRefusedError):
        await terminal.sign_on(nursery)
    with pytest.raises(OutcomeUnknown, match="never signed on"):
        await terminal.request(cash_out(1))
    assert (terminal.sessions, terminal.signed_on) == (0, False)


async def test_what_the_peer_says_unasked(host: Host, terminal: Terminal) -> None:
    await host.say(Notice(text="Servicio en mantenimiento.", level="info"))
    await host.say(Error(code="30", field="op"))
    assert [notice.level for notice in terminal.notices] == ["info"]
    assert list(terminal.errors) == ["30"]
    assert terminal.signed_on


async def test_the_end_of_a_session_leaves_requests_unknown(host: Host, terminal: Terminal) -> None:
    host.mute = True
    failures = []

    async def ask(trace: int) -> None:
        with pytest.raises(OutcomeUnknown) as caught:
            await terminal.request(cash_out(trace))
        failures.append(str(caught.value))

    async with trio.open_nursery() as asking:
        asking.start_soon(ask, 1)
        asking.start_soon(ask, 2)
        await trio.testing.wait_all_tasks_blocked()
        await host.streams[0].aclose()
    assert failures == ["closed by the peer"] * 2
    assert not terminal.signed_on
    with pytest.raises(OutcomeUnknown, match="closed by the peer"):
        await terminal.request(cash_out(3))


async def test_reconnect(host: Host, terminal: Terminal) -> None:
    await terminal.request(cash_out(1))
    await terminal.reconnect()
    await terminal.request(cash_out(2))
    assert (terminal.sessions, len(host.sessions)) == (2, 2)
    await terminal.sign_off()
    assert isinstance(host.requests[-1], SignOff)
    assert (terminal.signed_on, terminal.ended) == (False, "closed by ourselves")


async def test_sign_on_refused(host: Host, nursery: trio.Nursery) -> None:
    host.key = None
    with pytest.raises(SignOnFailed) as caught:
        await Terminal("00000017", KEY, host.connect).sign_on(nursery)
    assert caught.value.code == "63"


async def test_sign_on_not_answered(
    host: Host, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    host.mute = True
    started = trio.current_time()
    with pytest.raises(SignOnFailed):
        await Terminal("00000017", KEY, host.connect).sign_on(nursery)
    assert trio.current_time() - started == 10


async def test_heartbeat(
    host: Host, terminal: Terminal, autojump_clock: trio.testing.MockClock
) -> None:
    """An echo after 30 s of silence keeps the session; two silent heartbeats end it."""
    await trio.sleep(100)
    assert terminal.signed_on
    host.mute = True
    await trio.sleep(100)
    assert (terminal.signed_on, terminal.ended) == (False, "silent for two heartbeats")


async def test_echo(host: Host, terminal: Terminal, autojump_clock: trio.testing.MockClock) -> None:
    assert await terminal.echo() == 0
    host.mute = True
    with pytest.raises(OutcomeUnknown):
        await terminal.echo()


async def test_an_unreadable_answer(host: Host, terminal: Terminal) -> None:
    host.reply = lambda requests: [Answer(code=7, key="X", text="", trace=1)]  # type: ignore[arg-type]
    with pytest.raises(OutcomeUnknown, match="field code"):
        await terminal.request(cash_out(1))


async def test_a_cancelled_send_ends_the_session(host: Host, terminal: Terminal) -> None:
    """Half a frame may be out: nothing sent after it would be understood."""
    stuck = trio.testing.memory_stream_pair()[0]
    stuck.send_stream.send_all_hook = trio.sleep_forever
    terminal._stream = stuck
    with trio.move_on_after(0.01):
        await terminal.request(cash_out(1))
    assert terminal.ended == "cancelled while sending"


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "struck"),
    [
        ({"sending": Faults(garble=1)}, "garble"),
        ({"sending": Faults(close=1)}, "close"),
        ({"sending": Faults(half=1)}, "half"),
        ({"receiving": Faults(garble=1)}, "received_garble"),
        ({"receiving": Faults(close=1)}, "received_close"),
        ({"receiving": Faults(half=1)}, "received_half"),
    ],
)
async def test_faults_that_break_a_session(
    host: Host,
    nursery: trio.Nursery,
    faults: dict[str, Faults],
    struck: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    host.faults = faults
    with pytest.raises(SignOnFailed):
        await Terminal("00000017", KEY, host.connect).sign_on(nursery)
    assert host.faulty[0].struck == {struck: 1}


async def faulty_pair(**faults: Faults) -> tuple[FaultyStream, trio.abc.Stream]:
    client, server = trio.testing.memory_stream_pair()
    return FaultyStream(client, seed=1, **faults), server


async def test_drop_and_duplicate() -> None:
    stream, peer = await faulty_pair(sending=Faults(drop=0.5, duplicate=0.5))
    for i in range(20):
        await stream.send_all(bytes([i]))
    received = bytes(await peer.receive_some())
    assert stream.struck["drop"] + stream.struck["duplicate"] == 20
    assert len(received) == 2 * stream.struck["duplicate"]

    stream, peer = await faulty_pair(receiving=Faults(duplicate=1))
    await peer.send_all(b"abc")
    assert await stream.receive_some() == b"abc"
    assert await stream.receive_some() == b"abc"
    await peer.send_all(b"d")
    assert await stream.receive_some() == b"d"


async def test_delay(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = await faulty_pair(sending=Faults(delay=1, delay_s=7))
    started = trio.current_time()
    await stream.send_all(b"abc")
    assert trio.current_time() - started == 7
    assert await peer.receive_some() == b"abc"


async def test_equal_seeds_strike_alike() -> None:
    runs = []
    for _ in range(2):
        stream, peer = await faulty_pair(sending=Faults(drop=0.2, garble=0.2, duplicate=0.2))
        for i in range(100):
            await stream.send_all(bytes([i] * 3))
        runs.append((stream.struck, bytes(await peer.receive_some())))
    assert runs[0] == runs[1]
    assert set(runs[0][0]) == {"drop", "garble", "duplicate"}


@pytest.mark.parametrize("shares", [{"drop": -0.1}, {"drop": 0.6, "close": 0.6}, {"delay_s": -1}])
def test_shares_are_checked(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Faults(**shares)
