"""Operations passed on to a sicoop elsewhere, with and without Python: all is the same.

Twins with the role red alone. Both have the real link, port and session towards a sicoop that a
test plays; terminals are sockets, too. One of them passes common operations on natively. After
every turn what terminals and sicoop were told is the same, and so is every record; and whenever a
test likes, all that is under way is handed over, and then memory is the same as well.
"""

import random
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from core_ext._frames import Channel
from core_ext._lanes import TerminalLane
from core_ext._mac import MacKey
from core_ext._relay import instant
from protocols.messages import (
    Annul,
    CashOut,
    Confirm,
    Delivered,
    Deposit,
    Hold,
    LastOperation,
    NetworkAnswer,
)
from protocols.session import NETWORK as VOCABULARY
from protocols.session import TERMINAL as TERMINALS
from protocols.session import Acceptor, Initiator, PeerKey
from protocols.session.vocabulary import decoder, encoder, encoding_of
from switch.clock import iso_ms
from switch.config import Platform
from switch.flows.platform_port import PlatformPort
from switch.net.platform import PlatformLink
from switch.net.platform_session import PlatformSession
from switch.net.pump import Pump
from switch.net.saf import StoreAndForward
from tests.conftest import FUZZ
from tests.house import BRANCH, NETWORK, NOON_NS, TERMINAL, House
from tests.twins import PLAIN_TERMINAL, Pair

ROUNDS = 3000 * FUZZ if FUZZ else 100
KEY = MacKey("hmac-sha256", bytes(range(32)))
PEER_KEY = PeerKey(bytes(range(32)))
PLAIN = (PLAIN_TERMINAL, "00001241", "00001242")
ALONE = '[node]\nroles = ["red"]\n'


class Till:
    """A signed-on terminal of a house: as its driver has it, a lane and an origin of answers."""

    def __init__(self, house: House, terminal: str, encoding: Any) -> None:
        self.house, self.terminal, self.encoding = house, terminal, encoding
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        self.channel, self.client = Channel(2), Channel(1)
        for channel in (self.channel, self.client):
            channel.rekey(KEY)
        self.lane = TerminalLane(self, self.channel, self.near.fileno())
        self.lane.name(terminal, 64, encoding == "json")
        house.node.lanes.add(self.near.fileno(), self, self.lane)
        self._ready: list[Any] = []

    def send(self, *messages: Any) -> None:
        self.far.sendall(self.client.seal([encoder(self.encoding)(m) for m in messages]))

    def received(self) -> list[bytes]:
        return read(self.far, self.client)

    def pumped(self, step: Any, data: bytes | None) -> None:
        if data:
            self.channel.push(data)
        terminal = self.house.node.registry.terminal(self.terminal)
        assert terminal is not None
        for payload in self.channel.take(1000):
            message = decoder(TERMINALS, "acceptor", encoding_of(payload))(payload)
            self.lane.in_flight += 1
            self.house.node.terminal_request(step, terminal, message, self)

    def ready(self, message: Any) -> None:
        self._ready.append(message)

    def flush(self) -> None:
        ready, self._ready = self._ready, []
        self.lane.in_flight -= sum(str(type(m).__struct_config__.tag) != "notice" for m in ready)
        if self.lane.fd >= 0:
            self.near.sendall(self.channel.seal([encoder(self.encoding)(m) for m in ready]))

    def released(self, data: bytes | None) -> None:
        raise AssertionError("a socket of a test has room")

    def close(self) -> None:
        self.house.node.lanes.remove(self.near.fileno())
        self.lane.close()
        self.near.close()
        self.far.close()


class Way:
    """One session of a house with a sicoop that is played here."""

    def __init__(self, side: "Side") -> None:
        self.side = side
        node = side.house.node
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        initiator = Initiator(
            vocabulary=VOCABULARY, peer=NETWORK, key=PEER_KEY, nonce=bytes(16), encoding="msgpack"
        )
        acceptor = Acceptor(
            vocabulary=VOCABULARY, authenticate=lambda *_: PEER_KEY, nonce=bytes(range(16)),
            now_iso=lambda: iso_ms(side.house.clock.wall_ns()),
        )  # fmt: skip
        acceptor.receive(initiator.sign_on())
        initiator.receive(acceptor.output())
        assert initiator.signed_on
        self.sicoop = acceptor.channel
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.near))
        self.session: PlatformSession = side.link._signed_on(stream, initiator, "there")
        side.link._began(self.session)
        self.fd = self.session.fd
        self.ended = False
        node.lanes.add(self.fd, self, self.session.lane)

    def pumped(self, step: Any, data: bytes | None) -> None:
        self.side.link.pumped(step, self.session, data)
        assert self.session.usable

    def go_on(self) -> None:
        """What its own task does after the pump."""
        while not self.ended and self.session.session.more:
            self.side.link._turn(self.session, b"")

    def received(self) -> list[bytes]:
        return read(self.far, self.sicoop)

    def say(self, *payloads: bytes) -> None:
        self.far.sendall(self.sicoop.seal(list(payloads)))

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.side.house.node.lanes.remove(self.fd)
            self.side.link._ended(self.session)
            self.near.close()
            self.far.close()


class Side:
    """One house, with its link to sicoop and its terminals."""

    def __init__(self, house: House, sessions: int, encoding: Any) -> None:
        self.house = house
        node = house.node
        self.debts = StoreAndForward(window=node.config.session.max_in_flight)
        self.port = PlatformPort(
            NETWORK, node=node, red=node.red, debts=self.debts, budgets=node.config.budgets
        )
        self.link = PlatformLink(
            NETWORK, Platform(connect=("127.0.0.1:1",)), node, self.port, keys=list,
            pump=Pump(node), relay=node.relay,
        )  # fmt: skip
        self.port.attach(self.link)
        node.platforms.ports[NETWORK] = self.port
        self.ways = [Way(self) for _ in range(sessions)]
        with house.step() as step:
            self.port.on_up(step)
        self.tills = {number: Till(house, number, encoding) for number in (*PLAIN, TERMINAL)}

    def work(self, decide: bool = True) -> None:
        """Passes of the pump, as it makes them, and everything durable, until nothing moves."""
        house, node, lanes = self.house, self.house.node, self.house.node.lanes
        for _ in range(8):
            lanes.begin()
            while True:
                step = node.begin()
                while not node.full:
                    taken, heard = lanes.taken, lanes.heard
                    ready = decide and node.straight_ready(step)
                    found = lanes.next(ready, step.now_ns, step.mono_ns, 1.0, node.requests_left)
                    node.took(lanes.taken - taken, lanes.heard - heard)
                    if found is None:
                        break
                    found[0].pumped(step, found[1])
                node.end(step)
                if not lanes.more:
                    break
            for way in self.ways:
                way.go_on()
            house.settle()

    def time(self) -> None:
        """What the clock brings, as the tasks of node and link would have it."""
        self.house.node.run_timers()
        self.link._expire()
        while self.link._orphans:
            step = self.house.node.begin()
            request, reason = self.link._orphans.popleft()
            self.port.on_lost(step, request.token, reason)
            self.house.node.end(step)
        self.house.node.run_timers()
        self.house.settle()

    def take_over(self) -> None:
        """Python goes on with all that is under way."""
        step = self.house.node.begin()
        for passing in self.house.node.relay.aged(1 << 62):
            self.house.node.platforms.adopt(step, passing)
        self.house.node.end(step)
        self.house.settle()

    @property
    def memory(self) -> Any:
        """What Python keeps of operations that are under way."""
        red, node = self.house.node.red, self.house.node
        waiting = {
            reference: [(getattr(origin, "terminal", None), trace) for origin, trace in askers]
            for reference, askers in red._waiting.items()
        }
        requests = sorted(
            (r.token, bool(r.sent_ns), r.deadline_ns, msgspec.structs.replace(r.message, id=0))
            for r in self.link._requests.values()
        )
        debts = self.debts.snapshot(node.clock.mono_ns())
        # Native ones are counted by the relay, and enter the schedule when they are handed over.
        del debts["paid"], debts["oldest_s"]
        debts["debts"].sort(key=lambda debt: debt["key"])
        return waiting, requests, debts, sorted(node._timers)

    def close(self) -> None:
        for till in self.tills.values():
            till.close()
        for way in self.ways:
            way.end()


def read(end: socket.socket, channel: Channel) -> list[bytes]:
    while select.select([end], [], [], 0)[0]:
        data = end.recv(65_536)
        if not data:
            break
        channel.push(data)
    found = channel.take(100_000)
    assert not channel.fault
    return found


class Hops(Pair):
    """The twins, each with its own sicoop."""

    def __init__(
        self, directory: Path, *, sessions: int = 1, encoding: Any = "json", toml: str = ALONE
    ) -> None:
        super().__init__(directory, toml=toml)
        self.sides = tuple(Side(house, sessions, encoding) for house in self.houses)
        self.native, self.python = self.sides

    def _provision(self, house: House) -> list[Any]:
        for number in PLAIN[1:]:
            house.do("terminal_add", number=number, network=NETWORK, branch=BRANCH, ticket=False)
        return super()._provision(house)

    def send(self, terminal: str, *messages: Any) -> None:
        for side in self.sides:
            side.tills[terminal].send(*messages)

    def work(self, decide: bool = True) -> list[list[Any]]:
        """Let both work; what either hop was told is the same. What sicoop was asked, by house.

        `decide`: False: this time nothing is decided natively.
        """
        for side in self.sides:
            side.work(decide)
        for number in self.native.tills:
            first, second = (sorted(side.tills[number].received()) for side in self.sides)
            assert first == second, number
        asked = [
            [
                (way, decoded(p))
                for way in side.ways
                if not way.ended
                for p in way.received()
                if b"echo_answer" not in p
            ]
            for side in self.sides
        ]
        first, second = (sorted(plain(m) for _, m in one) for one in asked)
        assert first == second
        return asked

    def answer(self, asked: list[list[Any]], answers: Callable[[Any], list[bytes]]) -> None:
        """Both sicoops say the same about what they were asked, each under its own numbers."""
        for one in asked:
            for way, message in sorted(one, key=lambda each: plain(each[1])):
                said = answers(message)
                if said and not way.ended:
                    way.say(*said)

    def settle(self) -> list[list[Any]]:
        """Approve everything until nobody asks any more."""
        asked = self.work()
        while any(asked):
            self.answer(asked, approve)
            asked = self.work()
        return asked

    def time(self) -> None:
        for side in self.sides:
            side.time()

    def take_over(self) -> None:
        """Hand over what is under way; now even memory is the same."""
        for side in self.sides:
            side.take_over()
        first, second = (side.memory for side in self.sides)
        assert first == second

    def compare(self) -> None:
        super().compare()
        first, second = (side.link.counters.as_dict() for side in self.sides)
        assert first == second
        first, second = (side.house.node.counters.as_dict() for side in self.sides)
        assert {n: first[n] for n in ("requests", "answers", "alarms")} == {
            n: second[n] for n in ("requests", "answers", "alarms")
        }

    @property
    def passed(self) -> int:
        counts = self.straight.node.relay.counts
        return counts["cash_out"]["passed"] + counts["deposit"]["passed"]


def decoded(payload: bytes) -> Any:
    return decoder(VOCABULARY, "acceptor", "msgpack")(payload)


def plain(message: Any) -> bytes:
    """A request without its number, which is each session's own."""
    return encoder("msgpack")(msgspec.structs.replace(message, id=0))


def answer_to(m: Any, code: str = "00", **fields: Any) -> bytes:
    values: dict[str, Any] = {}
    if type(m) is Hold and code == "00":
        number = int(m.reference[4:12]) * 1_000_000 + int(m.reference[20:])
        values = {
            "operation": f"{number % 10**12:012}", "authorization": "A1B2C3", "fee": 0,
            "business_date": "2026-11-22", "commission": 0, "duplicate": False,
        }  # fmt: skip
    values |= {"reference": m.reference} | fields
    return encoder("msgpack")(NetworkAnswer(m.id, code, **values))


def approve(m: Any) -> list[bytes]:
    return [answer_to(m)]


Make = Callable[..., Hops]


@pytest.fixture
async def make(tmp_path: Path) -> Any:
    made: list[Hops] = []

    def hops(**values: Any) -> Hops:
        place = tmp_path / str(len(made))
        place.mkdir()
        made.append(Hops(place, **values))
        return made[-1]

    try:
        yield hops
        for one in made:
            one.compare()
            one.compare_trails()
    finally:
        for one in made:
            for side in one.sides:
                side.close()
            for house in one.houses:
                house.close()


def deposit(hops: Hops, **fields: Any) -> Deposit:
    values: dict[str, Any] = {
        "trace": hops.straight.trace(), "cashier": "345", "amount": 70_000, "currency": "PYG",
        "document": hops.holders[0].document,
    } | fields  # fmt: skip
    return Deposit(**{name: value for name, value in values.items() if value is not None})


# ---- one way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("terminal", [TERMINAL, PLAIN_TERMINAL])
async def test_every_byte_is_the_same(make: Make, encoding: Any, terminal: str) -> None:
    """Terminal to sicoop and back, its confirmation included; no Python takes part."""
    hops = make(encoding=encoding)
    holder = hops.holders[0]
    for message in (
        hops.cash_out(holder),
        hops.cash_out(holder, branch="17", cashier="777", amount=1_000),
        hops.cash_out(holder, document=None, phone="0981000001"),
        hops.cash_out(holder, token="12345678", local_time="2026-11-22T12:00:00-03:00"),
        deposit(hops),
        deposit(hops, depositor="CI1234567", card="card-000001"),
        deposit(hops, document=None, phone="+595981000001"),
    ):
        hops.send(terminal, message)
        first, second = hops.work()
        assert [m for _, m in first] == [m for _, m in second]
        assert isinstance(first[0][1], Hold)
        hops.compare()
        hops.answer([first, second], lambda m: [answer_to(m, name="Má*** Ñ***", fee=7)])
        first, second = hops.work()
        assert [m for _, m in first] == [m for _, m in second]
        assert isinstance(first[0][1], Confirm)
        hops.compare()
        hops.answer([first, second], approve)
        hops.work()
        hops.compare()
        hops.send(terminal, Delivered(original=message.trace))
        hops.work()
        hops.compare()
        hops.advance(3)
    assert hops.passed == 7, hops.straight.node.relay.counts
    assert hops.straight.node.relay.confirmed == 7
    assert hops.python.debts.paid_count == 7
    assert hops.native.debts.paid_count == 0


async def test_a_hold_tells_when_it_left(make: Make) -> None:
    for ns in (0, 951_782_399_999_000_000, NOON_NS, NOON_NS + 999_999, 4_102_444_799_123_456_789):
        assert instant(ns) == iso_ms(ns)
    hops = make()
    hops.advance(0.25)
    hops.send(PLAIN_TERMINAL, hops.cash_out(hops.holders[0]))
    [[(_, asked)], _] = hops.work()
    assert asked.sent_at == iso_ms(NOON_NS + 250_000_000)


async def test_what_is_not_plain_is_left_to_the_flows(make: Make) -> None:
    hops = make()
    holder = hops.holders[0]
    for terminal, message in (
        (PLAIN_TERMINAL, hops.cash_out(holder, token="1234567")),
        (PLAIN_TERMINAL, hops.cash_out(holder, document_type="PAS", document="AB12345")),
        (PLAIN_TERMINAL, hops.cash_out(holder, document="45678-X")),
        (PLAIN_TERMINAL, hops.cash_out(holder, amount=999)),
        (PLAIN_TERMINAL, deposit(hops, declaration={"origen": "sueldo"})),
    ):
        hops.send(terminal, message)
        hops.settle()
        hops.advance(3)
    assert hops.passed == 0
    assert hops.python.link.counters.as_dict()["requests"] > 0


async def test_the_same_typed_again_is_warned_of(make: Make) -> None:
    """I05: the newest operation is found by its record, whoever has started it."""
    hops = make()
    first, again = hops.cash_out(hops.holders[0]), hops.cash_out(hops.holders[0])
    other = hops.cash_out(hops.holders[0], amount=51_000)
    hops.send(PLAIN_TERMINAL, first)
    hops.work()
    for message in (again, other):
        for side in hops.sides:
            side.tills[PLAIN_TERMINAL].send(message)
            side.work()
        [said, expected] = [side.tills[PLAIN_TERMINAL].received() for side in hops.sides]
        assert said == expected
        assert len(said) == (message is again)
    for side in hops.sides:
        assert len(side.ways[0].received()) == 2
    hops.take_over()


ODD: list[Callable[[Any], list[bytes]]] = [
    lambda m: [answer_to(m, "51")],
    lambda m: [answer_to(m, "55", key="CODIGO")],
    lambda m: [answer_to(m, "21")],
    lambda m: [answer_to(m, "96", key="MANTENIMIENTO")],
    lambda m: [answer_to(m, key="APROBADA", time="2026-11-22T15:00:00.000Z")],
    lambda m: [answer_to(m, key="CODIGO")],
    lambda m: [answer_to(m, name="José Ñandú")],
    lambda m: [answer_to(m, name="Ł***")],
    lambda m: [answer_to(m, operation=msgspec.UNSET)],
    lambda m: [answer_to(m, authorization='A"B')],
    lambda m: [answer_to(m, fee=-1)],
    lambda m: [answer_to(m, fee=5_000, commission=120, duplicate=True)],
    lambda m: [answer_to(m, field="amount")],
    lambda m: [answer_to(m, reference=msgspec.UNSET)],
    lambda m: [answer_to(m, reference="0" * 26), answer_to(m)],
    lambda m: [answer_to(m), answer_to(m)],
    lambda m: [answer_to(msgspec.structs.replace(m, id=m.id + 5000)), answer_to(m)],
    lambda m: [encoder("json")(decoder(VOCABULARY, "initiator", "msgpack")(answer_to(m)))],
    lambda m: [encoder("msgpack")({"op": "answer", "id": m.id, "code": 7})],
    lambda m: [encoder("msgpack")({"op": "answer", "id": m.id, "code": "00", "x": 1})],
    lambda m: [b"\x81\xa2op\xa4echo", answer_to(m)],
]


@pytest.mark.parametrize("early", [True, False])
async def test_every_answer_means_the_same(make: Make, early: bool) -> None:
    """To a hold, or to the confirmation of one that was approved."""
    hops = make()
    for odd in ODD:
        hops.send(PLAIN_TERMINAL, hops.cash_out(hops.holders[0]))
        asked = hops.work()
        if not early:
            hops.answer(asked, approve)
            asked = hops.work()
        hops.answer(asked, odd)
        hops.work()
        hops.compare()
        hops.take_over()
        hops.settle()
        for seconds in (1.2, 26, 9):
            hops.advance(seconds)
            hops.time()
            hops.settle()
        hops.compare()
    assert hops.passed == len(ODD)


@pytest.mark.parametrize("event", ["silence", "end", "annul", "repeat", "query", "delivered"])
async def test_python_takes_over_at_any_moment(make: Make, event: str) -> None:
    """Nobody has been asked yet; the hold has left; it is approved; the confirmation has left."""
    hops = make()
    for phase in range(4):
        _interrupt(hops, phase, event)
        hops.take_over()
        assert hops.passed == phase + 1
        assert hops.straight.node.relay.count == 0


def _interrupt(hops: Hops, phase: int, event: str) -> None:
    for side in hops.sides:
        side.ways = [Way(side) if way.ended else way for way in side.ways]
    message = hops.cash_out(hops.holders[0])
    hops.send(PLAIN_TERMINAL, message)
    if phase:
        asked = hops.work()
        if phase >= 2:
            hops.answer(asked, approve)
        if phase == 3:
            hops.work()
    else:
        for side in hops.sides:
            read_only(side)
    if event == "silence":
        hops.advance(0.6)
    elif event == "end":
        for side in hops.sides:
            side.ways[0].end()
    elif event == "annul":
        date = hops.straight.node.calendar.business(hops.straight.clock.now_ns).iso
        hops.send(PLAIN_TERMINAL, Annul(
            trace=hops.straight.trace(), cashier="000345", original=message.trace,
            supervisor="000900", business_date=date,
        ))  # fmt: skip
    elif event == "repeat":
        hops.send(PLAIN_TERMINAL, message)
    elif event == "query":
        hops.send(PLAIN_TERMINAL, LastOperation())
    else:
        hops.send(PLAIN_TERMINAL, Delivered(original=message.trace))
    hops.time()
    hops.work()
    hops.compare()
    hops.take_over()
    for seconds in (0.6, 23.7, 0.2, 26, 3):  # 25 s after it was asked nobody waits any more
        hops.advance(seconds)
        hops.time()
        hops.settle()
        hops.compare()


def read_only(side: Side) -> None:
    """A pass that decides and makes nothing durable."""
    node, lanes = side.house.node, side.house.node.lanes
    step = node.begin()
    lanes.begin()
    while found := lanes.next(node.straight_ready(step), step.now_ns, step.mono_ns, 1.0, 100):
        found[0].pumped(step, found[1])
    node.took(lanes.taken - node.counters.as_dict()["requests"] if lanes.taken else 0)
    node.end(step)


async def test_more_than_fit_wait_in_order(make: Make) -> None:
    """A session takes so many requests at once; the others follow as answers come."""
    hops = make(toml=ALONE + "[session]\nmax_in_flight = 3\n")
    messages = [hops.cash_out(hops.holders[0], amount=1000 * n) for n in range(1, 9)]
    for till, part in zip(PLAIN, (messages[:3], messages[3:6], messages[6:]), strict=True):
        hops.send(till, *part)
    asked = hops.work()
    assert [len(one) for one in asked] == [3, 3]
    rounds = 0
    while any(asked):
        assert max(len(one) for one in asked) <= 3
        hops.answer(asked, approve)
        asked = hops.work()
        rounds += 1
    assert rounds >= 5
    assert hops.passed == 8
    hops.take_over()


async def test_of_two_sessions_the_lighter_one_is_taken(make: Make) -> None:
    hops = make(sessions=2)
    for till in PLAIN:
        hops.send(till, hops.cash_out(hops.holders[0]), hops.cash_out(hops.holders[1]))
    asked = hops.work()
    native = hops.native.ways
    assert [sum(way is one for way, _ in asked[0]) for one in native] == [3, 3]
    for side in hops.sides:
        side.ways[0].end()
    hops.time()
    hops.settle()
    hops.take_over()


# ---- all ways ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
async def test_random_traffic_is_the_same(make: Make, seed: int) -> None:
    pick = random.Random(seed)
    hops = make(sessions=1, encoding=pick.choice(("json", "msgpack")))
    sent: list[tuple[str, Any]] = []
    late: list[list[list[Any]]] = []
    for number in range(ROUNDS):
        for _ in range(pick.choice((1, 1, 2, 4))):
            terminal, message = request(hops, pick, sent)
            hops.send(terminal, message)
            sent.append((terminal, message))
        # One kind of socket at a time: which is read first is chance.
        asked = hops.work(pick.random() > 0.1)
        if late and pick.random() < 0.2:
            hops.answer(late.pop(0), approve)
            late.append(hops.work())
        for _ in range(2):
            if pick.random() < 0.15:
                late.append(asked)
                break
            hops.answer(asked, pick.choice(ODD) if pick.random() < 0.2 else approve)
            asked = hops.work(pick.random() > 0.1)
        if pick.random() < 0.5:
            hops.advance(pick.choice((0.1, 0.3, 0.6, 2, 7, 27)))
        hops.time()
        if pick.random() < 0.05:
            for side in hops.sides:
                side.ways[0].end()
                side.ways = [Way(side)]
            hops.time()
            late.clear()
        if pick.random() < 0.1:
            hops.settle()
            hops.take_over()
        if number % 10 == 9:
            hops.compare()
    hops.settle()
    assert hops.passed > ROUNDS // 3, hops.straight.node.relay.counts


def request(hops: Hops, pick: random.Random, sent: list[tuple[str, Any]]) -> tuple[str, Any]:
    terminal = pick.choice((*PLAIN, *PLAIN, TERMINAL))
    kind = pick.random()
    if kind < 0.6 or not sent:
        amount = pick.choice((1_000, 50_000, 50_000, 150_000, 999, 5_000_000))
        fields: dict[str, Any] = {"amount": amount}
        if pick.random() < 0.1:
            fields |= {"document_type": "RUC", "document": "80012345-6"}
        if pick.random() < 0.1:
            fields["cashier"] = pick.choice(("777", "1", "000000"))
        return terminal, hops.cash_out(pick.choice(hops.holders[:9]), **fields)
    if kind < 0.75:
        return terminal, deposit(hops, amount=pick.choice((1_000, 70_000)))
    terminal, message = pick.choice(sent[-9:])
    if kind < 0.8:
        return terminal, message
    if not isinstance(message, CashOut | Deposit):
        return terminal, LastOperation()
    if kind < 0.9:
        return terminal, Delivered(original=message.trace)
    if kind < 0.94:
        return terminal, LastOperation(original=message.trace)
    date = hops.straight.node.calendar.business(hops.straight.clock.now_ns).iso
    return terminal, Annul(
        trace=hops.straight.trace(), cashier="000345", original=message.trace,
        supervisor="000900", business_date=date,
    )  # fmt: skip
