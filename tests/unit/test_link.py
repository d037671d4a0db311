"""A link on streams of memory and a clock of our own: states, time-outs, echoes, pauses, queue."""

import itertools
from typing import Any

import pytest
import trio
import trio.testing

from protocols.iso8583.connection import Cutover, KeyChanged, Received
from switch.config import LinkAddress
from switch.flows.step import Step
from switch.net.line import Line
from switch.net.link import INBOUND_MAX, HostReply, HostRequest
from switch.net.link_state import State
from switch.net.originals import ORIGINALS_MAX, Originals
from tests.hosts import WALL_NS, Bench, FakeHost, Session, approve, hold, keys, release


def never(session: Session, received: Received) -> None:
    """A host that takes requests and says nothing."""


class Later:
    """A host that answers when the test says so, in any order, as often as it likes."""

    def __init__(self) -> None:
        self.taken: list[tuple[Session, Received]] = []

    def __call__(self, session: Session, received: Received) -> None:
        self.taken.append((session, received))

    async def answer(self, *which: int, code: str = "00", **instead: str) -> None:
        for index in which:
            session, received = self.taken[index]
            session.answer(received, {"39": code}, **instead)
        for session in {id(s): s for s, _ in self.taken}.values():
            await session.write()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Any, host: FakeHost) -> Bench:
    return Bench(nursery, {"a:1": host})


# ---- life ----------------------------------------------------------------------------------------


async def test_it_signs_on_and_carries_requests(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    assert bench.link.request("0100", hold(1), token=1) == "down", "before anything is up"
    await bench.up()
    assert bench.events == ["up"]
    assert bench.link.state is State.UP
    assert bench.ask(1, 2, 3) == ["", "", ""]
    assert await bench.answered(1, 2, 3) == ["00", "00", "00"]
    sent = [e.message for e in host.sessions[0].messages if isinstance(e, Received)]
    assert len({m["11"] for m in sent}) == 3
    assert {m["7"] for m in sent} == {"1122150000"}
    assert bench.counts == {"requests": 3, "answers": 3, "refused_down": 1, "connects": 1}
    assert bench.link.latency.count == 3


async def test_what_follows_a_request_names_it_in_de90(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    """By STAN and DE7, as often as it is sent; what this process has not sent it cannot name."""
    await bench.up()
    bench.ask(1)
    await bench.answered(1)
    for token, mti, about in ((10, "0420", 1), (11, "0421", 1), (12, "0420", 2)):
        assert bench.link.request(mti, release(about), token=token) == ""
        bench.link.flush()
        await trio.testing.wait_all_tasks_blocked()
    sent = [e.message for e in host.sessions[0].messages if isinstance(e, Received)]
    original = sent[0]
    named = f"0100{original['11']}{original['7']}" + "0" * 22
    assert [m["90"] for m in sent[1:]] == [named, named, "0" * 42]
    assert original["11"] not in {m["11"] for m in sent[1:]}


async def test_the_memory_of_originals_is_bounded() -> None:
    originals = Originals()
    for number in range(ORIGINALS_MAX + 2):
        originals.note("0100", {"32": "0012", "37": f"{number:012}", "11": "000007", "7": "1" * 10})
    originals.note("0800", {"11": "000009", "7": "1" * 10})
    about = [{"32": "0012", "37": f"{n:012}", "90": "0100" + "0" * 38} for n in (0, ORIGINALS_MAX)]
    assert originals.complete(about[0]) == about[0]
    assert originals.complete(about[1])["90"] == "0100000007" + "1" * 10 + "0" * 22
    named = about[1] | {"90": "0100000003" + "2" * 10 + "0" * 22}
    assert originals.complete(named) == named, "what is named already stays"


async def test_one_write_for_a_turn(autojump_clock: Any, bench: Bench, host: FakeHost) -> None:
    await bench.up()
    reads = host.sessions[0].reads
    bench.ask(*range(100))
    await bench.answered(*range(100))
    assert host.sessions[0].reads == reads + 1


async def test_connecting_and_signing_on_are_states(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    host = FakeHost()
    host.silent = True
    bench = Bench(nursery, {"a:1": host}, sign_on_s=10)
    assert bench.dialer is not None
    bench.dialer.delay_s = 4
    await trio.testing.wait_all_tasks_blocked()
    assert bench.link.state is State.CONNECTING
    await trio.sleep(5)
    assert bench.link.state is State.SIGNING_ON
    assert bench.link.request("0100", hold(1), token=1) == "down"
    await trio.sleep(5.1)
    assert bench.link.state is State.DOWN, "connecting and signing on take 10 s together"
    bench.dialer.delay_s = 1000
    await trio.sleep(5)
    assert bench.link.state is State.CONNECTING
    await trio.sleep(10)
    assert bench.counts["connects_failed"] >= 1


async def test_a_refused_sign_on_is_tried_again(nursery: trio.Nursery, autojump_clock: Any) -> None:
    stranger = FakeHost(host_keys=keys(bytes(16)))
    bench = Bench(nursery, {"a:1": stranger})
    await trio.sleep(100)
    assert not bench.link.up
    assert stranger.accepted > 5
    assert bench.dialer is not None
    bench.dialer.hosts["a:1"] = FakeHost()
    await bench.up()


async def test_stop_signs_off_after_the_last_answer(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    later = Later()
    host = FakeHost(later)
    bench = Bench(nursery, {"a:1": host})
    await bench.up()
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    session = host.sessions[0]
    bench.link.stop()
    assert bench.link.request("0100", hold(2), token=2) == "down"
    await trio.sleep(1)
    assert not bench.ended.is_set()
    await later.answer(0)
    await bench.ended.wait()
    assert bench.owner.answers[1]["39"] == "00"
    assert not session.connection.signed_on
    assert type(session.messages[-1]).__name__ == "SignedOff"


async def test_stop_does_not_wait_longer_than_a_budget(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    bench = Bench(nursery, {"a:1": FakeHost(never)})
    await bench.up()
    bench.ask(1, budget_s=7)
    began = trio.current_time()
    bench.link.stop()
    await bench.ended.wait()
    assert bench.owner.lost == {1: "timeout"}
    assert trio.current_time() - began == pytest.approx(7, abs=0.01)


@pytest.mark.parametrize("when", ["dialling", "signing on", "pausing"])
async def test_stop_while_connecting(nursery: trio.Nursery, autojump_clock: Any, when: str) -> None:
    host = FakeHost()
    host.silent = True
    bench = Bench(nursery, {} if when == "pausing" else {"a:1": host},
                  connect=(LinkAddress("a:1"),), backoff_min_s=20)  # fmt: skip
    assert bench.dialer is not None
    bench.dialer.delay_s = 1000 if when == "dialling" else 0
    await trio.sleep(5)
    began = trio.current_time()
    bench.link.stop()
    await bench.ended.wait()
    assert trio.current_time() - began <= 1


async def test_cancelled_everything_in_flight_has_its_end(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    bench = Bench(nursery, {"a:1": FakeHost(never)}, max_in_flight=2, node=None)
    await bench.up()
    bench.ask(1, 2, 3)
    bench.scope.cancel()
    await bench.ended.wait()
    assert bench.owner.lost == {1: "lost", 2: "lost", 3: "unsent"}
    assert bench.node.open == 0


# ---- answers -------------------------------------------------------------------------------------


async def test_p06_a_host_that_never_answers(nursery: trio.Nursery, autojump_clock: Any) -> None:
    bench = Bench(nursery, {"a:1": FakeHost(never)}, answer_s=15)
    await bench.up()
    bench.ask(1)
    await trio.sleep(5)
    bench.ask(2, budget_s=2)
    assert await bench.answered(2) == ["timeout"]
    assert trio.current_time() == pytest.approx(7, abs=0.001)
    assert await bench.answered(1) == ["timeout"]
    assert trio.current_time() == pytest.approx(15, abs=0.001)
    assert bench.counts["timeouts"] == 2
    assert bench.link.snapshot()["connections"][0]["in_flight"] == 0


async def test_p04_a_late_answer_is_counted_and_never_acted_upon(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    later = Later()
    bench = Bench(nursery, {"a:1": FakeHost(later)}, answer_s=10)
    await bench.up()
    bench.ask(1)
    assert await bench.answered(1) == ["timeout"]
    await trio.sleep(3)
    await later.answer(0)
    assert bench.owner.lost == {1: "timeout"}
    assert bench.owner.answers == {}
    assert bench.counts["late"] == 1
    (stray,) = bench.link.explain()
    assert (stray["kind"], stray["request"], stray["code"]) == ("late", "expired", "00")
    assert stray["after_s"] == pytest.approx(13, abs=0.01)


async def test_a_second_answer_changes_nothing(nursery: trio.Nursery, autojump_clock: Any) -> None:
    later = Later()
    bench = Bench(nursery, {"a:1": FakeHost(later)})
    await bench.up()
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    await later.answer(0, code="51")
    await later.answer(0, code="00")
    await later.answer(0, 0, code="00")
    assert bench.owner.answers[1]["39"] == "51"
    assert bench.counts["second"] == 3


@pytest.mark.parametrize(
    ("instead", "differs"),
    [
        ({"e11": "999999"}, ["11"]),
        ({"e41": "00000009"}, ["41"]),
        ({"e37": "000000000009"}, ["37"]),
        ({"e7": "1122145959"}, ["7"]),
    ],
)
async def test_an_answer_to_something_else_is_not_taken(
    nursery: trio.Nursery, autojump_clock: Any, instead: dict[str, str], differs: list[str]
) -> None:
    """Right key or wrong, whatever the host echoes must be what was sent."""
    later = Later()
    bench = Bench(nursery, {"a:1": FakeHost(later)})
    await bench.up()
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    await later.answer(0, **instead)
    assert bench.owner.answers == {}
    assert bench.counts["unmatched"] == 1
    (stray,) = bench.link.explain()
    assert stray["kind"] == "unmatched"
    assert stray["differs"] == differs
    assert stray["nearest"]["37"] == "000000000001"
    await later.answer(0)
    assert bench.owner.answers[1]["39"] == "00"


async def test_answers_out_of_order_find_who_asked(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    later = Later()
    bench = Bench(nursery, {"a:1": FakeHost(later)})
    await bench.up()
    bench.ask(*range(50))
    await trio.testing.wait_all_tasks_blocked()
    await later.answer(*reversed(range(50)))
    assert {t: int(m["37"]) for t, m in bench.owner.answers.items()} == {n: n for n in range(50)}


async def test_strays_are_kept_in_a_ring(nursery: trio.Nursery, autojump_clock: Any) -> None:
    later = Later()
    bench = Bench(nursery, {"a:1": FakeHost(later)})
    await bench.up()
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    await later.answer(*[0] * 301)
    assert len(bench.link.explain()) == 200
    assert bench.counts["second"] == 300


async def test_an_owner_may_ask_again_within_an_answer(autojump_clock: Any, bench: Bench) -> None:
    """As store-and-forward does; what it asks leaves in the same turn."""

    def again(step: Step, token: Any, received: Received) -> None:
        if token < 1000:
            assert bench.link.request("0420", release(token), token=token + 1000) == ""

    bench.owner.on_answered = again
    await bench.up()
    bench.ask(1, 2)
    assert await bench.answered(1001, 1002) == ["00", "00"]


async def test_what_does_not_fit_the_dialect_is_our_fault(
    autojump_clock: Any, bench: Bench
) -> None:
    await bench.up()
    with pytest.raises(ValueError, match="element 4"):
        bench.link.request("0100", {**hold(1), "4": object()}, token=1)
    assert bench.link.in_flight == 0
    bench.ask(1)
    assert await bench.answered(1) == ["00"]


# ---- silence -------------------------------------------------------------------------------------


async def test_silence_is_asked_into(autojump_clock: Any, bench: Bench, host: FakeHost) -> None:
    await bench.up()
    await trio.sleep(200)
    assert bench.counts["echoes"] == 6
    assert bench.link.up
    assert "echoes_missed" not in bench.counts


async def test_p01_connected_but_silent(autojump_clock: Any, bench: Bench, host: FakeHost) -> None:
    """One missed echo: no new work; three: the connection is ended, and made again."""
    await bench.up()
    host.silent = True
    bench.ask(1, budget_s=60)
    began = trio.current_time()
    await bench.owner.until(lambda: not bench.link.up)
    assert trio.current_time() - began == pytest.approx(45, abs=0.01)
    assert bench.link.state is State.DEGRADED
    assert bench.link.request("0100", hold(2), token=2) == "down"
    assert await bench.answered(1) == ["timeout"]
    await trio.sleep(74.9 - (trio.current_time() - began))
    assert len(bench.link._lines) == 1
    await trio.sleep(0.2)
    assert not bench.link._lines
    host.silent = False
    await bench.up()
    bench.ask(3)
    assert await bench.answered(3) == ["00"]


async def test_a_time_out_in_silence_is_doubt_enough(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    host.silent = True
    bench.ask(1, budget_s=2)
    began = trio.current_time()
    await bench.owner.until(lambda: not bench.link.up)
    assert trio.current_time() - began == pytest.approx(17, abs=0.01)


async def test_a_degraded_connection_comes_back(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    host.silent = True
    await bench.owner.until(lambda: not bench.link.up)
    host.silent = False
    await bench.up()
    assert bench.events == ["up", "down", "up"]
    assert host.accepted == 1, "by its answer to the second echo, not by a new connection"


async def test_garbage_and_half_frames_are_no_signs_of_life(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    host.silent = True

    async def trickle() -> None:
        await host.sessions[0].stream.send_all(b"\x00")
        await trio.sleep(20)
        await host.sessions[0].stream.send_all(b"\x40")

    bench.nursery.start_soon(trickle)
    await bench.owner.until(lambda: not bench.link.up)
    assert bench.link.state is State.DEGRADED


async def test_forged_messages_are_no_signs_of_life(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    host.silent = True
    stranger = FakeHost(host_keys=keys(bytes(16)))

    async def forge() -> None:
        (session,) = host.sessions
        other = Session(stranger, session.stream).connection
        while True:
            other._initiator = True
            other.echo()
            await session.write(other.output())
            await trio.sleep(5)

    bench.nursery.start_soon(forge)
    await bench.owner.until(lambda: not bench.link.up)
    assert trio.current_time() == pytest.approx(45, abs=0.01)
    assert bench.counts["mac_failures"] >= 8
    assert bench.node.alarms[0] == ("link_mac", "ceibo")
    assert len(bench.node.alarms) <= 5, "a minute"


# ---- what hosts do -------------------------------------------------------------------------------


async def test_garbage_ends_the_connection_and_only_that(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    host.script = never
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    await host.sessions[0].stream.send_all(b"\xff" * 50_000)
    assert await bench.answered(1) == ["lost"]
    await bench.up()
    assert host.accepted == 2


async def test_a_wrong_mac_is_an_alarm_and_no_answer(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    def forged(session: Session, received: Received) -> None:
        approve(session, received)
        data = session.connection.output()
        session.host.nursery_write = data[:-1] + bytes([data[-1] ^ 1])  # type: ignore[attr-defined]

    host.script = forged
    await bench.up()
    bench.ask(1, budget_s=3)
    await trio.testing.wait_all_tasks_blocked()
    await host.sessions[0].write(host.nursery_write)  # type: ignore[attr-defined]
    assert await bench.answered(1) == ["timeout"]
    assert bench.counts["mac_failures"] == 1
    assert bench.node.alarms == [("link_mac", "ceibo")]


async def test_a_lost_connection_makes_only_its_own_unknown(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """P05."""
    host = FakeHost(never)
    bench = Bench(nursery, {"a:1": host}, connections=2)
    await bench.up()
    await trio.sleep(1)
    assert bench.ask(*range(10)) == [""] * 10
    await trio.testing.wait_all_tasks_blocked()
    first, second = host.sessions
    ours = {int(e.message["37"]) for e in first.messages if isinstance(e, Received)}
    assert len(ours) == 5, "least loaded first"
    await first.stream.aclose()
    assert set(await bench.answered(*ours)) == {"lost"}
    assert set(bench.owner.lost) == ours
    assert bench.link.up
    assert "down" not in bench.events
    for event in second.messages:
        if isinstance(event, Received):
            approve(second, event)
    await second.write()
    await bench.owner.until(lambda: len(bench.owner.answers) == 5)


async def test_p02_nothing_waits_for_a_link_that_is_down(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    host.script = never
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.dialer is not None
    bench.dialer.hosts.clear()
    await host.sessions[0].stream.aclose()
    began = trio.current_time()
    assert await bench.answered(1) == ["lost"]
    assert bench.ask(2, 3) == ["down", "down"]
    assert trio.current_time() == began
    assert bench.events == ["up", "down", "lost"]
    assert bench.counts["refused_down"] == 2


async def test_a_flood_of_unsolicited_messages(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    """Requests nobody expects are the owner's to answer; answers to nothing are counted."""
    await bench.up()
    host.script = never
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    session = host.sessions[0]
    (request,) = (e for e in session.messages if isinstance(e, Received))
    for n in range(2000):
        session.answer(request, {"39": "00"}, e11=f"{900_000 + n}")
    session.answer(request, {"39": "00"})
    await session.write()
    assert await bench.answered(1) == ["00"]
    assert bench.counts["unmatched"] == 2000
    assert bench.node.steps < 2000


async def test_a_host_that_signs_off_is_dialled_again(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    host.script = never
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    session = host.sessions[0]
    session.connection._initiator = True  # as a host that does what only the dialling side may
    session.connection.sign_off()
    await session.write()
    assert await bench.answered(1) == ["lost"]
    await bench.owner.until(lambda: host.accepted == 2 and bench.link.up)


async def test_asking_again_in_the_turn_in_which_the_host_signs_off(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    later = Later()
    host = FakeHost(later)
    bench = Bench(nursery, {"a:1": host})

    def again(step: Step, token: Any, received: Received) -> None:
        assert bench.link.request("0420", release(9), token=9) == ""

    bench.owner.on_answered = again
    await bench.up()
    bench.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    (session, received) = later.taken[0]
    session.answer(received, {"39": "00"})
    session.connection._initiator = True
    session.connection.sign_off()
    await session.write()
    assert await bench.answered(1, 9) == ["00", "unsent"]


async def test_answers_before_garbage_in_one_read_count(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    later = Later()
    host = FakeHost(later)
    bench = Bench(nursery, {"a:1": host})
    bench.node.requests_max = 3
    await bench.up()
    bench.ask(*range(10))
    await trio.testing.wait_all_tasks_blocked()
    for session, received in later.taken:
        session.answer(received, {"39": "00"})
    (session,) = host.sessions
    await session.write(session.connection.output() + b"\xff" * 20_000)
    assert set(await bench.answered(*range(10))) == {"00"}
    await bench.owner.until(lambda: not bench.link.up)


# ---- several connections and addresses -----------------------------------------------------------


async def test_priorities_then_weights(nursery: trio.Nursery, autojump_clock: Any) -> None:
    first, heavy, spare = FakeHost(never), FakeHost(never), FakeHost(never)
    connect = (
        LinkAddress("first:1", weight=1),
        LinkAddress("heavy:1", weight=3),
        LinkAddress("spare:1", priority=1),
    )
    hosts = {"first:1": first, "heavy:1": heavy, "spare:1": spare}
    bench = Bench(nursery, hosts, connect=connect)
    await trio.sleep(1)
    bench.ask(*range(40))
    await trio.testing.wait_all_tasks_blocked()
    assert (first.received, heavy.received, spare.received) == (10, 30, 0)
    assert bench.dialer is not None
    del bench.dialer.hosts["first:1"], bench.dialer.hosts["heavy:1"]
    for host in (first, heavy):
        await host.sessions[0].stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert len(bench.owner.lost) == 40
    bench.ask(100, 101)
    await trio.testing.wait_all_tasks_blocked()
    assert spare.received == 2
    bench.dialer.hosts["first:1"] = first
    await trio.sleep(60)
    bench.ask(102)
    await trio.testing.wait_all_tasks_blocked()
    assert first.received == 11, "the lowest priority that is up is used alone"


async def test_p03_half_open_one_tries_at_a_time(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    bench = Bench(nursery, {}, connect=(LinkAddress("a:1"),), connections=8)
    assert bench.dialer is not None
    bench.dialer.delay_s = 1
    await trio.sleep(300)
    assert bench.dialer.dialling_most == 1
    tries = [at for at, _ in bench.dialer.tried]
    gaps = [b - a - 1 for a, b in itertools.pairwise(tries)]
    assert gaps[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6], abs=0.001)
    assert max(gaps) == pytest.approx(30, abs=0.001)
    bench.dialer.hosts["a:1"] = FakeHost()
    await bench.up()
    await trio.sleep(2)
    assert len(bench.link.snapshot()["connections"]) == 8, "the others follow once it works"
    assert bench.dialer.dialling_most == 7


async def test_p03_a_flapping_host_is_left_alone_longer_and_longer(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    host = FakeHost()
    bench = Bench(nursery, {"a:1": host}, backoff_min_s=1, backoff_max_s=16)
    assert bench.dialer is not None
    for _ in range(8):
        await bench.up()
        await trio.sleep(0.5)
        await host.sessions[0].stream.aclose()
        await bench.owner.until(lambda: not bench.link.up)
    tries = [at for at, _ in bench.dialer.tried]
    gaps = [b - a - 0.5 for a, b in itertools.pairwise(tries)]
    assert gaps[:7] == pytest.approx([1, 2, 4, 8, 16, 16, 16], abs=0.01)
    await bench.up()
    await trio.sleep(16)
    await host.sessions[0].stream.aclose()
    await bench.owner.until(lambda: not bench.link.up)
    began = trio.current_time()
    await bench.up()
    assert trio.current_time() - began == pytest.approx(1, abs=0.01), "it was stable"


# ---- room ----------------------------------------------------------------------------------------


async def test_more_than_in_flight_is_queued_then_refused(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    later = Later()
    host = FakeHost(later)
    bench = Bench(nursery, {"a:1": host}, max_in_flight=3, queue_max=2)
    await bench.up()
    assert bench.ask(*range(7)) == ["", "", "", "", "", "full", "full"]
    await trio.testing.wait_all_tasks_blocked()
    assert (host.received, bench.link.queued) == (3, 2)
    await later.answer(1)
    assert (host.received, bench.link.queued) == (4, 1)
    assert bench.ask(8) == [""]
    await later.answer(0, 2, 3)
    assert [int(r.message["37"]) for _, r in later.taken] == [0, 1, 2, 3, 4, 8]
    assert bench.counts["refused_full"] == 2


async def test_what_waits_too_long_never_leaves(nursery: trio.Nursery, autojump_clock: Any) -> None:
    later = Later()
    host = FakeHost(later)
    bench = Bench(nursery, {"a:1": host}, max_in_flight=1)
    await bench.up()
    bench.ask(1, budget_s=20)
    bench.ask(2, budget_s=5)
    bench.ask(3, budget_s=20)
    assert await bench.answered(2) == ["unsent"]
    assert trio.current_time() == pytest.approx(5, abs=0.01)
    await later.answer(0)
    await later.answer(1)
    assert [int(r.message["37"]) for _, r in later.taken] == [1, 3]
    assert bench.owner.answers.keys() == {1, 3}


async def test_the_queue_fails_at_once_when_the_link_goes_down(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    host = FakeHost(never)
    bench = Bench(nursery, {"a:1": host}, max_in_flight=1)
    await bench.up()
    bench.ask(1, 2, 3)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.dialer is not None
    bench.dialer.hosts.clear()
    await host.sessions[0].stream.aclose()
    assert await bench.answered(1, 2, 3) == ["lost", "unsent", "unsent"]


async def test_what_waits_for_one_address_goes_to_the_other_when_it_fails(
    autojump_clock: Any, nursery: trio.Nursery
) -> None:
    first, spare = FakeHost(never), FakeHost()
    connect = (LinkAddress("first:1"), LinkAddress("spare:1", priority=1))
    bench = Bench(nursery, {"first:1": first, "spare:1": spare}, connect=connect, max_in_flight=1)
    await trio.sleep(1)
    bench.ask(1, 2, 3)
    await trio.testing.wait_all_tasks_blocked()
    await first.sessions[0].stream.aclose()
    assert await bench.answered(1, 2, 3) == ["lost", "00", "00"]


async def test_a_host_that_does_not_read_is_cut_off(
    nursery: trio.Nursery, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("switch.net.line.OUTBOX_BYTES_MAX", 2_000)
    host = FakeHost(never)
    bench = Bench(nursery, {"a:1": host})
    await bench.up()
    (line,) = bench.link._lines.values()
    stream: Any = line.stream

    async def stuck() -> None:
        await trio.sleep_forever()

    stream.send_stream.send_all_hook = stuck
    bench.ask(0)
    await trio.testing.wait_all_tasks_blocked()
    bench.ask(*range(1, 60))
    assert set(await bench.answered(*range(60))) == {"lost"}
    await bench.owner.until(lambda: "down" in bench.events)


async def test_a_destination_of_the_gate(autojump_clock: Any, bench: Bench) -> None:
    """A request that became durable when the link was down, or full, was certainly not sent."""
    bench.link.ready(HostRequest("0100", hold(1), 1))
    bench.link.flush()
    assert await bench.answered(1) == ["unsent"]
    await bench.up()
    with_budget = HostRequest("0100", hold(2), 2, 5.0)
    step = bench.node.begin()
    step.send(bench.link, with_budget)
    bench.node.end(step)
    assert await bench.answered(2) == ["00"]


# ---- STAN and DE7 --------------------------------------------------------------------------------


async def test_a_stan_in_flight_is_passed_over_when_they_wrap(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    later = Later()
    host = FakeHost(later)
    bench = Bench(nursery, {"a:1": host}, chance=lambda: 1.0)
    await bench.up()  # the sign-on took 999,999
    bench.ask(1)
    for _ in range(999_996):
        bench.link._pending.next_stan(7)
    await trio.sleep(1)
    bench.ask(2, 3, 4)
    await trio.testing.wait_all_tasks_blocked()
    stans = [received.message["11"] for _, received in later.taken]
    assert stans == ["000001", "999998", "999999", "000002"]


async def test_stan_and_de7_are_unique_across_seconds_and_clock_steps(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    clock = bench.node.clock
    token = 0
    for offset_s in (0, 0.9, 1.1, -5, 30, -29, 3600, -3600, 0):
        clock.offset_ns = int(offset_s * 1e9)
        for _ in range(20):
            token += 1
            bench.ask(token)
    await bench.answered(*range(1, token + 1))
    sent = [e.message for e in host.sessions[0].messages if isinstance(e, Received)]
    assert len({(m["7"], m["11"]) for m in sent}) == token


async def test_a_clock_set_back_a_little_is_waited_for(
    autojump_clock: Any, bench: Bench, host: FakeHost
) -> None:
    await bench.up()
    clock = bench.node.clock
    for number, offset_s in enumerate((0, -30, -61)):
        clock.offset_ns = int(offset_s * 1e9)
        bench.ask(number)
        await bench.answered(number)
    sent = [e.message["7"] for e in host.sessions[0].messages if isinstance(e, Received)]
    assert WALL_NS % 86_400_000_000_000 == 15 * 3_600_000_000_000
    assert sent == ["1122150000", "1122150000", "1122145859"]


async def test_times_run_on_the_monotonic_clock(nursery: trio.Nursery, autojump_clock: Any) -> None:
    """K04."""
    bench = Bench(nursery, {"a:1": FakeHost(never)})
    await bench.up()
    bench.ask(1, budget_s=5)
    bench.node.clock.offset_ns = -3600 * 10**9
    began = trio.current_time()
    assert await bench.answered(1) == ["timeout"]
    assert trio.current_time() - began == pytest.approx(5, abs=0.01)


async def test_without_a_stan_in_the_key_one_at_a_time(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """A duplicate key in flight is refused."""
    later = Later()
    bench = Bench(nursery, {"a:1": FakeHost(later)}, match=("class", "37"))
    await bench.up()
    assert [bench.link.request("0100", hold(1), token=t) for t in (1, 2)] == ["", "full"]
    bench.link.flush()
    await trio.testing.wait_all_tasks_blocked()
    await later.answer(0)
    assert bench.link.request("0100", hold(1), token=3) == ""


# ---- the host asks -------------------------------------------------------------------------------


class Caller:
    """A host that dials us, with a link of its own for that."""

    def __init__(self, nursery: trio.Nursery, bench: Bench) -> None:
        self.far = Bench(nursery, {}, connect=(LinkAddress("us:1"),), max_in_flight=300)
        assert self.far.dialer is not None
        self.far.dialer.hosts["us:1"] = self  # type: ignore[assignment]
        self.bench = bench

    async def serve(self, stream: trio.abc.Stream) -> None:
        await self.bench.link.accept(stream, address="far:1")


@pytest.fixture
async def inbound(nursery: trio.Nursery, autojump_clock: Any) -> Bench:
    """A link that is only dialled, which approves what it is asked."""
    bench = Bench(nursery, {})

    def reply(step: Step, received: Received, origin: Line) -> None:
        step.reply(origin, HostReply(received, {"39": "00"}, "00"))

    bench.owner.reply = reply
    return bench


async def test_a_host_that_dials_us(
    autojump_clock: Any, nursery: trio.Nursery, inbound: Bench
) -> None:
    caller = Caller(nursery, inbound)
    await caller.far.up()
    assert inbound.link.up
    assert caller.far.ask(*range(200)) == [""] * 200
    assert set(await caller.far.answered(*range(200))) == {"00"}
    assert inbound.counts == {"asked": 200, "connects": 1}
    assert inbound.ask(1000) == [""], "and we may ask as well"
    await caller.far.owner.until(lambda: caller.far.owner.requests)
    (received, origin) = caller.far.owner.requests[0]
    with_step = caller.far.node.begin()
    with_step.reply(origin, HostReply(received, {"39": "25"}))
    caller.far.node.end(with_step)
    assert await inbound.answered(1000) == ["25"]


async def test_requests_of_a_host_are_bounded_by_back_pressure(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    bench = Bench(nursery, {}, max_in_flight=10)
    caller = Caller(nursery, bench)
    await caller.far.up()
    caller.far.ask(*range(10))
    await trio.testing.wait_all_tasks_blocked()
    for n in range(10, 40):
        caller.far.ask(n)
        await trio.testing.wait_all_tasks_blocked()
    held = len(bench.owner.requests)
    assert held < 25, "nothing more is read while ten are unanswered"
    while len(caller.far.owner.answers) < 40:
        for received, origin in bench.owner.requests:
            origin.ready(HostReply(received, {"39": "00"}))
            origin.flush()
        bench.owner.requests.clear()
        await trio.testing.wait_all_tasks_blocked()
    assert set(await caller.far.answered(*range(40))) == {"00"}


async def test_more_than_a_step_holds_is_taken_in_several(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    bench = Bench(nursery, {}, node=None)
    bench.node.requests_max = 7
    sizes: list[int] = []

    def reply(step: Step, received: Received, origin: Line) -> None:
        if sizes and sizes[-1] == id(step):
            pass
        sizes.append(id(step))
        step.reply(origin, HostReply(received, {"39": "00"}))

    bench.owner.reply = reply
    caller = Caller(nursery, bench)
    await caller.far.up()
    steps = bench.node.steps
    caller.far.ask(*range(100))
    assert set(await caller.far.answered(*range(100))) == {"00"}
    assert bench.node.steps - steps >= 100 / 7


async def test_a_caller_that_does_not_sign_on_is_ended(
    autojump_clock: Any, nursery: trio.Nursery, inbound: Bench
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(inbound.link.accept, theirs)
    await trio.testing.wait_all_tasks_blocked()
    assert inbound.link.state is State.SIGNING_ON
    assert await ours.receive_some() == b""
    assert trio.current_time() == pytest.approx(10, abs=0.01)


async def test_a_caller_that_falls_silent_is_ended(
    autojump_clock: Any, nursery: trio.Nursery, inbound: Bench
) -> None:
    caller = Caller(nursery, inbound)
    await caller.far.up()
    began = trio.current_time()
    await trio.sleep(500)
    assert inbound.link.up, "its echoes keep it"
    caller.far.scope.cancel()
    await caller.far.ended.wait()
    host = FakeHost()
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(inbound.link.accept, theirs)
    session = Session(host, ours)
    session.connection._initiator = True
    session.connection.sign_on()
    await session.write()
    await inbound.up()
    began = trio.current_time()
    await inbound.owner.until(lambda: not inbound.link.up)
    assert trio.current_time() - began == pytest.approx(60, abs=0.01)
    await trio.testing.wait_all_tasks_blocked()
    while await ours.receive_some():
        pass
    assert trio.current_time() - began == pytest.approx(120, abs=1.1)


async def test_a_caller_that_signs_off_and_on_again(
    autojump_clock: Any, nursery: trio.Nursery, inbound: Bench
) -> None:
    """What was in flight is lost, and takes no room away from what follows."""
    host = FakeHost()
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(inbound.link.accept, theirs)
    session = Session(host, ours)
    session.connection._initiator = True
    session.connection.sign_on()
    await session.write()
    await inbound.up()
    inbound.ask(*range(256))
    session.connection.sign_off()
    await session.write()
    assert set(await inbound.answered(*range(256))) == {"lost"}
    assert inbound.link.state is State.SIGNING_ON
    assert inbound.ask(1000) == ["down"]
    session.connection.sign_on()
    await session.write()
    await inbound.owner.until(lambda: inbound.link.up)
    assert inbound.ask(*range(1000, 1256)) == [""] * 256
    assert inbound.link.queued == 0
    await trio.sleep(20)
    assert inbound.link.state is State.UP, "its time to sign on is no more of interest"


async def test_callers_are_bounded(
    autojump_clock: Any, nursery: trio.Nursery, inbound: Bench
) -> None:
    ends = []
    for _ in range(INBOUND_MAX + 1):
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(inbound.link.accept, theirs)
        await trio.testing.wait_all_tasks_blocked()
        ends.append(ours)
    assert await ends[-1].receive_some() == b""
    assert trio.current_time() < 1


async def test_a_new_key_is_stored_before_the_host_is_told(
    autojump_clock: Any, nursery: trio.Nursery, inbound: Bench
) -> None:
    caller = Caller(nursery, inbound)
    await caller.far.up()
    stored: list[str] = []
    node = inbound.node
    settle, node.settle = node.settle, lambda: None  # type: ignore[method-assign]
    (line,) = caller.far.link._lines.values()
    line.connection.exchange_key("mac", bytes(range(50, 66)))
    line.write_out()
    await trio.testing.wait_all_tasks_blocked()
    events = [e for what, e in inbound.owner.told if what == "event"]
    assert [type(e) for e in events] == [KeyChanged]
    caller.far.ask(1)
    await trio.testing.wait_all_tasks_blocked()
    assert caller.far.owner.answers == {}, "nothing leaves while the key is not durable"
    stored.append("mac")
    node.settle = settle  # type: ignore[method-assign]
    node.settle()
    assert await caller.far.answered(1) == ["00"]
    told = [e for what, e in caller.far.owner.told if what == "event"]
    assert [(e.kind, e.ours) for e in told] == [("mac", True)]
    caller.far.ask(2)
    assert await caller.far.answered(2) == ["00"]


async def test_a_cutover_reaches_the_owner(
    autojump_clock: Any, nursery: trio.Nursery, inbound: Bench
) -> None:
    caller = Caller(nursery, inbound)
    await caller.far.up()
    (line,) = caller.far.link._lines.values()
    line.connection.cutover("1123")
    line.write_out()
    await trio.testing.wait_all_tasks_blocked()
    (event,) = [e for what, e in inbound.owner.told if what == "event"]
    assert isinstance(event, Cutover)


async def test_snapshot_and_explain_are_plain(autojump_clock: Any, bench: Bench) -> None:
    await bench.up()
    bench.ask(1)
    await bench.answered(1)
    shown = bench.link.snapshot()
    assert (shown["link"], shown["state"], shown["up"]) == ("ceibo", "UP", True)
    assert shown["counters"]["answers"] == 1
    assert shown["addresses"][0]["signed_on"] == 1
    assert shown["connections"][0]["direction"] == "out"
    assert shown["certificate_expires_s"] is None
