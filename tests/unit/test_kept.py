"""Connections that the pump keeps without a task: what each of them still has to get.

Sockets, pump, session and node are real; what takes minutes runs on a clock that jumps.
"""

import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from protocols.messages import Delivered, Echo, EchoAnswer, LastOperation, SignOff
from protocols.session import TERMINAL as VOCABULARY
from protocols.session import Initiator, PeerKey, SignOnGuard
from switch.net import driver as driver_module
from switch.net.driver import Driver
from switch.net.peer import Peer
from switch.net.pump import Pump
from tests.house import OTHER_TERMINAL, TERMINAL, House

KEY = PeerKey(bytes(range(32)))
KEPT_BYTES_MAX = 1400  # of objects; 256 more of the key's states lie in locked memory


@pytest.fixture
def hasty_clock() -> trio.testing.MockClock:
    """Jumps where nothing happens, but leaves the kernel its time to deliver."""
    return trio.testing.MockClock(autojump_threshold=0.01)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


class Place:
    """A node that serves terminals on a real socket."""

    def __init__(self, house: House, nursery: trio.Nursery) -> None:
        self.house, self.node, self.nursery = house, house.node, nursery
        self.pump = Pump(house.node)
        self.driver = Driver(
            house.node,
            name="terminals",
            vocabulary=VOCABULARY,
            authenticate=lambda number, version: KEY,
            handle=self._handle,
            sessions_max=1,
            guard=SignOnGuard(trio.current_time),
            pump=self.pump,
            straight=True,
        )
        self.sweeping = trio.CancelScope()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._clients: list[Client] = []
        for task in (self._sweep, self.pump.run, self._gate, self._settle):
            nursery.start_soon(task)

    def _handle(self, step: Any, peer: Peer, message: Any) -> None:
        terminal = self.node.registry.terminal(peer.name)
        assert terminal is not None
        self.node.terminal_request(step, terminal, message, peer)

    async def _sweep(self) -> None:
        with self.sweeping:
            await self.driver.sweep()

    async def _gate(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.node.store.journal.fileno())
            self.node.on_durable()

    async def _settle(self) -> None:
        while True:
            await self.node.turned.wait()
            self.node.turned = trio.Event()
            self.node.settle()

    async def signed_on(self, number: str = TERMINAL, *, proved: bool = True) -> "Client":
        ours = socket.create_connection(self._server.getsockname())
        theirs, _ = self._server.accept()
        for end in (ours, theirs):
            end.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        self.nursery.start_soon(self.driver.serve, stream)
        client = Client(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), number)
        self._clients.append(client)
        await client.sign_on()
        if proved:
            await client.send(Echo(trace=1))
            client.session.receive(await client.read())
        await trio.testing.wait_all_tasks_blocked()
        return client

    @property
    def kept(self) -> list[Peer]:
        return [peer for peer in self.driver.peers if peer.tending is None]

    def close(self) -> None:
        self._server.close()
        for client in self._clients:
            client.stream.socket.close()


class Client:
    """The other end."""

    def __init__(self, stream: trio.SocketStream, number: str) -> None:
        self.stream = stream
        self.session = Initiator(vocabulary=VOCABULARY, peer=number, key=KEY, nonce=bytes(16))

    async def sign_on(self) -> None:
        await self.stream.send_all(self.session.sign_on())
        while not self.session.signed_on:
            self.session.receive(await self.read())

    async def read(self) -> bytes:
        return bytes(await self.stream.receive_some(1 << 20))

    async def send(self, *messages: Any) -> None:
        await self.stream.send_all(self.session.encode(list(messages)))

    async def answers(self, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            data = await self.read()
            assert data, "the connection ended"
            found += self.session.receive(data)
        return found


@pytest.fixture
async def place(house: House, nursery: trio.Nursery) -> Any:
    place = Place(house, nursery)
    await trio.testing.wait_all_tasks_blocked()
    yield place
    place.close()


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def until(condition: Callable[[], object]) -> None:
    """Real sockets need real time."""
    with trio.fail_after(120):
        while not condition():  # noqa: ASYNC110 (nothing signals it)
            await trio.sleep(0.001)


async def test_a_signed_on_connection_needs_no_task(place: Place) -> None:
    before = tasks()
    client = await place.signed_on()
    await until(lambda: tasks() == before)
    assert len(place.kept) == 1
    for trace in (1, 2):
        await client.send(LastOperation(trace=trace))
        (answer,) = await client.answers(1)
        assert answer.trace == trace
    assert len(place.kept) == 1
    assert tasks() == before
    await client.stream.aclose()
    await until(lambda: not place.driver.peers)
    assert not place.driver._sessions


async def test_requests_decided_natively_are_answered(place: Place) -> None:
    client, house = await place.signed_on(), place.house
    for trace in (1, 2):  # the flows make the accounts with the first, and tell with the second
        house.cash_out(trace=trace)
        house.clock.advance(120)
    await client.send(house.request(3, 10_000))
    (answer,) = await client.answers(1)
    assert (answer.code, place.node.lanes.taken) == ("00", 1)
    await client.send(Delivered(trace=4, original=3))
    (answer,) = await client.answers(1)
    assert (answer.code, place.node.lanes.taken) == ("00", 2)
    assert len(place.kept) == 1


async def test_what_it_weighs(place: Place) -> None:
    await place.signed_on()
    (peer,) = place.kept
    driver, node = place.driver, place.node
    shared = {id(one) for one in (driver, node, place.pump, VOCABULARY, peer.address)}
    seen: dict[int, Any] = {}

    def walk(one: Any) -> None:
        if id(one) in shared or id(one) in seen or isinstance(one, type) or callable(one):
            return
        seen[id(one)] = one
        for inner in gc.get_referents(one):
            walk(inner)

    walk(peer)
    sizes = {type(one).__name__: one.__sizeof__() + 16 for one in seen.values()}
    total = sum(one.__sizeof__() + 16 for one in seen.values())
    assert {"Peer", "Acceptor", "Channel", "MacKey", "TerminalLane"} <= set(sizes)
    assert total <= KEPT_BYTES_MAX, sizes


# ---- what needs a task


async def test_more_than_may_be_in_flight_waits_in_a_task(place: Place) -> None:
    place.driver._config = msgspec.structs.replace(place.driver._config, max_in_flight=4)
    client = await place.signed_on()
    await client.send(*(LastOperation(trace=trace) for trace in range(1, 31)))
    answers = await client.answers(30)
    assert [answer.trace for answer in answers] == list(range(1, 31))
    (peer,) = place.driver.peers
    assert peer.tending is not None, "it stays for a while: bursts come in pairs"


async def test_the_task_ends_when_it_is_needed_no_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "KEEP_AFTER_S", 0.01)
    place.driver._config = msgspec.structs.replace(place.driver._config, max_in_flight=4)
    client = await place.signed_on()
    before = tasks()
    for first in (1, 31):
        await client.send(*(LastOperation(trace=trace) for trace in range(first, first + 30)))
        answers = await client.answers(30)
        assert [answer.trace for answer in answers] == list(range(first, first + 30))
        await until(lambda: place.kept)
        await until(lambda: tasks() == before)


def fill(peer: Peer) -> int:
    """Fill the socket towards a peer that does not read."""
    filled = 0
    while True:
        try:
            filled += os.write(peer.fd, bytes(65_536))
        except BlockingIOError:
            return filled


async def test_a_full_socket_is_written_by_a_task(place: Place) -> None:
    client = await place.signed_on()
    (peer,) = place.kept
    filled = fill(peer)
    await client.send(LastOperation(trace=1))
    await until(lambda: peer.tending is not None)
    left = filled
    while left:
        left -= len(await client.stream.receive_some(left))
    (answer,) = await client.answers(1)
    assert answer.trace == 1


async def test_a_kept_connection_that_does_not_read_is_cut_off(place: Place) -> None:
    await place.signed_on()
    (peer,) = place.kept
    fill(peer)
    peer.write(bytes(place.driver._config.outbox_bytes_max + 1))
    await until(lambda: not place.driver.peers)
    assert peer.fd == -1


async def test_a_sign_off_is_answered_and_ends_it(place: Place) -> None:
    client = await place.signed_on()
    await client.send(LastOperation(trace=1), SignOff(trace=2))
    assert [answer.trace for answer in await client.answers(2)] == [1, 2]
    assert not await client.read()
    await until(lambda: not place.driver.peers)


async def test_a_half_closed_one_gets_what_it_is_owed(place: Place) -> None:
    client = await place.signed_on()
    await client.send(*(LastOperation(trace=trace) for trace in range(1, 9)))
    await client.stream.send_eof()
    assert [answer.trace for answer in await client.answers(8)] == list(range(1, 9))
    assert not await client.read()
    await until(lambda: not place.driver.peers)


async def test_a_wrong_mac_is_told_and_closes(place: Place) -> None:
    client = await place.signed_on()
    frame = bytearray(client.session.encode([LastOperation(trace=1)]))
    frame[-1] ^= 1
    await client.stream.send_all(frame)
    error = await client.read()
    assert b'"63"' in error
    assert not await client.read()
    await client.stream.aclose()
    await until(lambda: not place.driver.peers)
    assert place.node.alarms == {"session_mac": 1}


async def test_a_wrong_mac_whose_answer_cannot_be_written_is_told_too(place: Place) -> None:
    client = await place.signed_on()
    (peer,) = place.kept
    frame = bytearray(client.session.encode([LastOperation(trace=1)]))
    frame[-1] ^= 1
    # The end of writing on our side makes the answer fail as a vanished peer's does.
    with socket.socket(fileno=os.dup(peer.fd)) as other:
        other.shutdown(socket.SHUT_WR)
    await client.stream.send_all(frame)
    await until(lambda: not place.driver.peers)
    await until(lambda: place.node.alarms == {"session_mac": 1})


# ---- ends without a task


async def test_a_reset_ends_it(place: Place) -> None:
    client = await place.signed_on()
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await client.stream.aclose()
    await until(lambda: not place.driver.peers)


async def test_a_newer_session_displaces_a_kept_one(place: Place) -> None:
    first = await place.signed_on()
    second = await place.signed_on(proved=False)
    assert len(place.driver.peers) == 2, "a sign-on may be a replay"
    await second.send(Echo(trace=1))
    assert not await first.read()
    assert len(place.driver.peers) == 1


async def test_a_barred_one_is_refused_once_and_closed(place: Place) -> None:
    client, other = await place.signed_on(), await place.signed_on(OTHER_TERMINAL)
    place.driver.bar(lambda name: name == TERMINAL)
    await client.send(LastOperation(trace=1))
    await client.answers(1)
    assert not await client.read()
    await other.send(LastOperation(trace=1))
    await other.answers(1)


async def test_finish_ends_idle_ones_at_once(place: Place) -> None:
    client = await place.signed_on()
    place.driver.finish()
    assert not await client.read()
    with trio.fail_after(120):
        await place.driver.finished()


async def test_the_end_of_the_sweep_closes_all(place: Place) -> None:
    """So does a node whose time to drain is over, and one that is cancelled."""
    client, other = await place.signed_on(), await place.signed_on(OTHER_TERMINAL)
    (peer, _) = place.kept
    place.driver.tend(peer)
    place.sweeping.cancel()
    assert not await client.read()
    assert not await other.read()
    await until(lambda: not place.driver.peers)
    third = await place.signed_on()
    (peer,) = place.driver.peers
    assert peer.tending is not None, "where nobody sweeps, it keeps its task"
    await third.send(LastOperation(trace=1))
    await third.answers(1)


async def test_nothing_is_left_of_a_closed_one(place: Place) -> None:
    client = await place.signed_on()
    (peer,) = place.kept
    fd, lane = peer.fd, peer.lane
    await client.stream.aclose()
    await until(lambda: not place.driver.peers)
    assert (lane.fd, lane.owner, lane.attended) == (-1, None, False)
    assert place.node.lanes.remove(fd) is None


# ---- silence


async def test_silence_is_asked_into_and_then_ended(hasty_clock: Any, place: Place) -> None:
    client = await place.signed_on()
    began = trio.current_time()
    data = await client.read()
    assert 30 <= trio.current_time() - began <= 31
    assert client.session.receive(data) == []
    assert client.session.output(), "an echo is owed its answer"
    assert len(place.kept) == 1
    assert not await client.read()
    assert 60 <= trio.current_time() - began <= 61
    assert not place.driver.peers


async def test_one_that_answers_echoes_stays(hasty_clock: Any, place: Place) -> None:
    client = await place.signed_on()
    for _ in range(5):
        assert client.session.receive(await client.read()) == []
        await client.stream.send_all(client.session.output())
    assert trio.current_time() >= 150
    assert len(place.kept) == 1


async def test_one_that_is_heard_of_is_not_asked(hasty_clock: Any, place: Place) -> None:
    client = await place.signed_on()
    for _ in range(10):
        await trio.sleep(25)
        await client.send(EchoAnswer())
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(BlockingIOError):
        os.read(client.stream.socket.fileno(), 1)
    assert len(place.kept) == 1


async def test_a_sign_on_that_is_not_proved_does_not_hold(hasty_clock: Any, place: Place) -> None:
    """Whoever replays a sign-on can send bytes, but no good frame."""
    client = await place.signed_on(proved=False)
    assert len(place.kept) == 1
    began = trio.current_time()
    await client.stream.send_all(b"\x01")
    for _ in range(13):
        await trio.sleep(5)
        await client.stream.send_all(b"\x00")
    assert place.driver.peers
    await trio.sleep(10)
    assert not place.driver.peers
    assert trio.current_time() - began <= 76


# ---- spinning


async def test_spinning_finds_work_without_sleeping(tmp_path: Path) -> None:
    house = House(tmp_path, toml="[node]\nspin_us = 1000\n")
    reading, writing = socket.socketpair()
    with reading, writing:
        house.node.lanes.add(reading.fileno(), reading)
        pump = Pump(house.node)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                writing.send(b"x")

            nursery.start_soon(send)
            assert await pump._spin()
        house.node.lanes.remove(reading.fileno())
    house.close()


@pytest.mark.parametrize("spin_us", [0, 1000])
async def test_spinning_ends(
    mock_clock: trio.testing.MockClock, tmp_path: Path, spin_us: int
) -> None:
    """Also where the clock stands still."""
    house = House(tmp_path, toml=f"[node]\nspin_us = {spin_us}\n")
    assert not await Pump(house.node)._spin()
    assert trio.current_time() == 0
    house.close()


async def test_requests_are_answered_by_one_that_spins(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    house = House(tmp_path, toml="[node]\nspin_us = 500\n")
    place = Place(house, nursery)
    client = await place.signed_on()
    for trace in range(1, 6):
        await client.send(LastOperation(trace=trace))
        (answer,) = await client.answers(1)
        assert answer.trace == trace
    place.close()
    house.close()
    nursery.cancel_scope.cancel()
