"""The listener for hosts: whose connection it is, and what becomes of those of nobody."""

from typing import Any

import pytest
import trio
import trio.testing

from protocols.iso8583.connection import Connection
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.reply import HostReply
from switch.flows.step import Step
from switch.net.hosts import HostListener
from tests.hosts import CEIBO, FRAMING, Bench, keys


class Place:
    """A listener for some hosts, and those who dial it."""

    def __init__(self, nursery: trio.Nursery, *known: HostKeys, **options: Any) -> None:
        self.nursery = nursery
        self.links = [Bench(nursery, {}, link_keys=k) for k in known]
        self.strangers: list[tuple[str, str]] = []
        for bench in self.links:
            bench.owner.reply = approve
        self.listener = HostListener(
            "ceibo", self.connection,
            lambda: [(bench.keys, bench.link) for bench in self.links],
            lambda address, reason: self.strangers.append((address, reason)),
            **({"sign_on_s": 10, "connections_max": 4} | options),
        )  # fmt: skip
        self.stan = 0

    def connection(self, candidates: list[HostKeys], initiator: bool = False) -> Connection:
        return Connection(
            CEIBO, FRAMING, candidates, initiator=initiator,
            wall_ns=self.links[0].node.clock.wall_ns, next_stan=self.next_stan,
        )  # fmt: skip

    def next_stan(self) -> str:
        self.stan += 1
        return f"{self.stan:06}"

    async def dial(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.listener.serve, ours)
        await trio.testing.wait_all_tasks_blocked()
        return theirs


def approve(step: Step, received: Any, origin: Any) -> None:
    step.reply(origin, HostReply(received, {"39": "00"}, "00"))


async def talk(stream: trio.abc.Stream, connection: Connection) -> list[Any]:
    """Write what there is to say, and take what comes back; [] where it was closed."""
    await stream.send_all(connection.output())
    await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(1):
        return list(connection.receive(bytes(await stream.receive_some(65_536))))
    return []


async def signed_on(place: Place, own: HostKeys) -> tuple[trio.abc.Stream, Connection]:
    stream, connection = await place.dial(), place.connection([own], True)
    connection.sign_on()
    await talk(stream, connection)
    return stream, connection


@pytest.mark.parametrize("index", [0, 1])
async def test_the_key_tells_whose_it_is(
    nursery: trio.Nursery, autojump_clock: Any, index: int
) -> None:
    secrets = [bytes([n]) * 16 for n in range(2)]
    place = Place(nursery, *(keys(secret) for secret in secrets))
    stream, connection = await signed_on(place, keys(secrets[index]))
    assert connection.signed_on
    assert [bench.link.up for bench in place.links] == [index == 0, index == 1]
    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert place.listener.open == 0


async def test_a_key_that_nobody_has(nursery: trio.Nursery, autojump_clock: Any) -> None:
    place = Place(nursery, keys(bytes([1]) * 16), keys(bytes([2]) * 16))
    _, connection = await signed_on(place, keys(bytes(16)))
    assert not connection.signed_on
    assert not any(bench.link.up for bench in place.links)
    assert place.listener.refused == 1
    assert len(place.strangers) == 1


async def test_a_single_host_is_told_of_its_wrong_key(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    place = Place(nursery, keys())
    stream, wrong = await place.dial(), place.connection([keys(bytes(16))], True)
    wrong.sign_on()
    await stream.send_all(wrong.output())
    await trio.testing.wait_all_tasks_blocked()
    answer = CEIBO.decode(bytes(await stream.receive_some(65_536))[2:])
    assert (answer.mti, answer["39"]) == ("0810", "63")
    assert await stream.receive_some(100) == b""
    assert (place.listener.refused, len(place.strangers)) == (1, 1)
    assert not place.links[0].link.up


async def test_silence_ends_a_connection(nursery: trio.Nursery, autojump_clock: Any) -> None:
    place = Place(nursery, keys(bytes([1]) * 16), keys(bytes([2]) * 16))
    stream = await place.dial()
    await stream.send_all(b"\x00")
    began = trio.current_time()
    assert await stream.receive_some(100) == b""
    assert trio.current_time() - began == pytest.approx(10)
    assert place.strangers == []


async def test_one_connection_too_many(nursery: trio.Nursery, autojump_clock: Any) -> None:
    place = Place(nursery, keys(), connections_max=1)
    first, _ = await signed_on(place, keys())
    second = await place.dial()
    assert await second.receive_some(100) == b""
    assert (place.listener.accepted, place.listener.refused) == (2, 1)
    await first.aclose()


async def test_nobody_is_known_here(nursery: trio.Nursery, autojump_clock: Any) -> None:
    place = Place(nursery, keys())
    place.links.clear()
    stream = await place.dial()
    assert await stream.receive_some(100) == b""


async def test_an_answer_that_took_too_long_is_not_sent(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """T_WORK: whoever asked has given up by then, or is about to."""
    place = Place(nursery, keys())
    bench = place.links[0]
    until: list[float] = [trio.current_time() + 8]

    def late(step: Step, received: Any, origin: Any) -> None:
        step.reply(origin, HostReply(received, {"39": "00"}, "00", int(until[0] * 1e9)))

    bench.owner.reply = late
    stream, connection = await signed_on(place, keys())
    for waited_s, answers in ((7, 1), (9, 0)):
        await trio.sleep(waited_s)
        connection.request("0600", {"7": "1122150000", "11": "000900", "32": "0012",
                                    "37": "000000000001"})  # fmt: skip
        assert len(await talk(stream, connection)) == answers
    (line,) = bench.link.snapshot()["connections"]
    assert (line["stale"], line["asked"]) == (1, 0)
