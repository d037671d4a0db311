"""Payloads of frames, decided without Python: what a terminal is told is the same, byte for byte.

The same twins as in `test_straight`, one of them behind a lane: a socket, a session's channel, the
native reading of JSON and MessagePack, the gate of native answers, the ticket.
"""

import json
import random
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core_ext._frames import Channel
from core_ext._lanes import TerminalLane
from core_ext._mac import MacKey
from protocols.messages import CashOut, Delivered, Deposit, Echo, EchoAnswer
from protocols.session import TERMINAL as VOCABULARY
from protocols.session.vocabulary import DECODE_ERRORS, decoder, encoder, encoding_of
from tests.conftest import FUZZ
from tests.house import TERMINAL, House, Told
from tests.twins import PLAIN_TERMINAL, Pair, Traffic

ROUNDS = 1500 * FUZZ if FUZZ else 120
KEY = MacKey("hmac-sha256", bytes(range(32)))


class Owner:
    """What a connection is to its lane."""

    def __init__(self) -> None:
        self.released_data: list[bytes | None] = []

    def released(self, data: bytes | None) -> None:
        self.released_data.append(data)


class Line:
    """A signed-on terminal of a house, with a socket between."""

    def __init__(self, house: House, terminal: str, in_flight_max: int = 64) -> None:
        self.house, self.terminal = house, terminal
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        self.owner = Owner()
        self.channel, self.client = Channel(2), Channel(1)
        for channel in (self.channel, self.client):
            channel.rekey(KEY)
        self.lane = TerminalLane(self.owner, self.channel, self.near.fileno())
        self.lane.name(terminal, in_flight_max)
        house.node.lanes.add(self.near.fileno(), self, self.lane)
        self.told: list[Told] = []

    def send(self, payloads: list[bytes]) -> None:
        self.far.sendall(self.client.seal(payloads))

    def received(self) -> list[bytes]:
        """Payloads of the answers that have come, natively decided ones first."""
        while select.select([self.far], [], [], 0)[0]:
            data = self.far.recv(65_536)
            if not data:
                break
            self.client.push(data)
        answers = self.client.take(10_000)
        assert not self.client.fault
        told, self.told = self.told, []
        return answers + [payload(m) for one in told for m in one.messages]

    def close(self) -> None:
        self.house.node.lanes.remove(self.near.fileno())
        self.lane.close()
        self.near.close()
        self.far.close()


def payload(message: Any, encoding: Any = "json") -> bytes:
    return encoder(encoding)(message)


def decoded(data: bytes) -> Any:
    """What the general decoder makes of a payload; None where it is no good message."""
    try:
        return decoder(VOCABULARY, "acceptor", encoding_of(data))(data)
    except DECODE_ERRORS:
        return None


def work(house: House, decide: bool = True) -> None:
    """One pass of the pump, as it makes it, and everything durable."""
    node, lanes = house.node, house.node.lanes
    lanes.begin()
    while True:
        step = node.begin()
        while not node.full:
            before, ready = lanes.taken, decide and node.straight_ready(step)
            found = lanes.next(ready, step.now_ns, step.mono_ns, 1.0, node.requests_left)
            node.took(lanes.taken - before)
            if found is None:
                break
            line, data = found
            if data:
                line.channel.push(data)
            if data != b"":
                answer_in_python(house, step, line)
        node.end(step)
        if not lanes.more:
            break
    house.settle()


def answer_in_python(house: House, step: Any, line: Line) -> None:
    terminal = house.node.registry.terminal(line.terminal)
    assert terminal is not None
    for data in line.channel.take(1000):
        message = decoded(data)
        if message is not None:
            line.told.append(Told(house.notices))
            house.node.terminal_request(step, terminal, message, line.told[-1])


def reference(house: House, terminal: str, payloads: list[bytes]) -> list[bytes]:
    """What the flows alone say, in the encoding of each request."""
    asked = [(data, decoded(data)) for data in payloads]
    asked = [(data, message) for data, message in asked if message is not None]
    tolds = house.send([(terminal, message) for _, message in asked])
    return [
        payload(m, encoding_of(data) if type(message) in (CashOut, Deposit) else "json")
        for told, (data, message) in zip(tolds, asked, strict=True)
        for m in told.messages
    ]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.compare()
    for house in made.houses:
        house.sound()
        house.close()


Connect = Callable[..., Line]


@pytest.fixture
def connect(pair: Pair) -> Iterator[Connect]:
    lines: list[Line] = []

    def make(terminal: str = PLAIN_TERMINAL, **values: Any) -> Line:
        lines.append(Line(pair.straight, terminal, **values))
        return lines[-1]

    yield make
    for line in lines:
        line.close()


def exchange(pair: Pair, line: Line, payloads: list[bytes]) -> list[bytes]:
    """The same payloads to both houses; what was said is the same, whatever its order."""
    line.send(payloads)
    work(pair.straight)
    said = line.received()
    # Answers of Python are compared as JSON: the session, not the lane, would choose.
    expected = reference(pair.flows, line.terminal, payloads)
    assert sorted(map(meaning, said)) == sorted(map(meaning, expected))
    return said


def meaning(data: bytes) -> bytes:
    if data[:1] == b"{":
        return data
    return payload(decoded_answer(data))


def decoded_answer(data: bytes) -> Any:
    return decoder(VOCABULARY, "initiator", encoding_of(data))(data)


def warm(pair: Pair, line: Line) -> None:
    """The flows make the accounts of a network with its first operation, and tell of them with its
    second."""
    for holder in pair.holders[7:9]:
        exchange(pair, line, [payload(pair.cash_out(holder))])
    assert pair.straight.node.lanes.taken == 0


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("terminal", [TERMINAL, PLAIN_TERMINAL])
def test_answers_are_the_same_bytes(
    pair: Pair, connect: Connect, encoding: Any, terminal: str
) -> None:
    line = connect(terminal)
    warm(pair, line)
    taken = pair.straight.node.lanes.taken
    for amount, fields in (
        (150_000, {}),
        (1_000, {"cashier": "777"}),  # has a name on the ticket
        (1_000_000, {"branch": "17"}),
        (50_000, {"document": None, "phone": "0981000001"}),
    ):
        pair.advance(61)
        holder = pair.holders[9] if "phone" in fields else pair.holders[3]
        message = pair.cash_out(holder, amount=amount, **fields)
        line.send([payload(message, encoding)])
        work(pair.straight)
        [said] = line.received()
        [expected] = reference(pair.flows, terminal, [payload(message, encoding)])
        assert said == expected
    assert pair.straight.node.lanes.taken == taken + 4, pair.straight.node.straight.core.counts


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_mark_of_delivery_is_the_same_bytes(pair: Pair, connect: Connect, encoding: Any) -> None:
    line = connect()
    warm(pair, line)
    message = pair.cash_out(pair.holders[3])
    exchange(pair, line, [payload(message)])
    first, second = pair.cash_out(pair.holders[4]), pair.cash_out(pair.holders[5])
    exchange(pair, line, [payload(first), payload(second)])
    taken = pair.straight.node.lanes.taken
    for count, mark in enumerate(
        (
            Delivered(original=message.trace),
            Delivered(original=first.trace, trace=first.trace),
            Delivered(original=second.trace, trace=pair.straight.trace()),
        ),
        taken + 1,
    ):
        pair.advance(7)
        line.send([payload(mark, encoding)])
        work(pair.straight)
        [said] = line.received()
        [told] = pair.flows.ask_all([mark], line.terminal)
        assert said == payload(told, encoding)
        assert pair.straight.node.lanes.taken == count
    for mark in (Delivered(original=first.trace), Delivered(original=999_999)):
        exchange(pair, line, [payload(mark)])  # again, and nothing that is known
    assert pair.straight.node.lanes.taken == taken + 3


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("terminal", [TERMINAL, PLAIN_TERMINAL])
def test_answers_to_deposits_are_the_same_bytes(
    pair: Pair, connect: Connect, encoding: Any, terminal: str
) -> None:
    line = connect(terminal)
    warm(pair, line)
    taken = pair.straight.node.lanes.taken
    ways: list[dict[str, Any]] = [
        {},
        {"cashier": "777", "depositor": "CI1234567"},
        {"branch": "17", "card": pair.holders[3].card},
        {"document": None, "phone": "0981000001"},
    ]
    for count, fields in enumerate(ways, 1):
        holder = pair.holders[9] if "phone" in fields else pair.holders[3]
        message = deposit(pair, holder.document, **fields)
        line.send([payload(message, encoding)])
        work(pair.straight)
        [said] = line.received()
        [expected] = reference(pair.flows, terminal, [payload(message, encoding)])
        assert said == expected
        mark = Delivered(original=message.trace)
        line.send([payload(mark, encoding)])
        work(pair.straight)
        [told] = pair.flows.ask_all([mark], line.terminal)
        assert line.received() == [payload(told, encoding)]
        counts = pair.straight.node.straight.core.deposit_counts
        assert pair.straight.node.lanes.taken == taken + 2 * count, counts


def deposit(pair: Pair, person: str, **fields: Any) -> Deposit:
    values: dict[str, Any] = {
        "trace": pair.straight.trace(), "cashier": "345", "document": person,
        "amount": 20_000, "currency": "PYG",
    } | fields  # fmt: skip
    return Deposit(**{name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_an_echo_is_answered_and_no_request(pair: Pair, connect: Connect, encoding: Any) -> None:
    line = connect()
    node = pair.straight.node
    echoes = [
        Echo(), Echo(trace=7), Echo(id=0), Echo(trace=999_999, id=12), Echo(id=2**39),
    ]  # fmt: skip
    line.send([payload(echo, encoding) for echo in echoes])
    line.send([payload(EchoAnswer(trace=3), encoding)])
    work(pair.straight)
    assert line.received() == [payload(EchoAnswer(e.trace, e.id), encoding) for e in echoes]
    assert (node.lanes.taken, node.lanes.held, line.lane.in_flight) == (0, 0, 0)
    assert not node.codes


def test_an_echo_that_is_not_plain_is_left_to_the_session(pair: Pair, connect: Connect) -> None:
    line = connect()
    lanes = pair.straight.node.lanes
    for odd in (
        b'{"op":"echo","trace":0}', b'{"op":"echo","trace":1000000}', b'{"op":"echo","id":-1}',
        b'{"op":"echo","id":9223372036854775807}', b'{"op":"echo","note":1}',
        b'{"op":"echo","amount":5}', b'{"op":"echo","id":"5"}', b'{"op":"echo_answer","token":"1"}',
        msgspec.msgpack.encode({"op": "echo", "id": 2**63}),
        msgspec.msgpack.encode({"op": "echo", "trace": "7"}),
    ):  # fmt: skip
        line.send([odd])
        lanes.begin()
        assert lanes.next(True, pair.straight.clock.now_ns, 0, 1.0, 100) == (line, None), odd
        assert line.channel.take() == [odd]
        assert lanes.next(True, pair.straight.clock.now_ns, 0, 1.0, 100) is None


def test_random_traffic_as_payloads(pair: Pair, connect: Connect) -> None:
    traffic = Traffic(pair, 7)
    pick = random.Random(7)
    lines = {terminal: connect(terminal) for terminal in set(Traffic.TERMINALS)}
    for _ in range(ROUNDS):
        terminal = pick.choice(Traffic.TERMINALS)
        requests = [traffic.request()[1] for _ in range(pick.choice((1, 1, 2, 5)))]
        exchange(pair, lines[terminal], [payload(m) for m in requests])
        if pick.random() < 0.6:
            pair.advance(pick.choice((1, 31, 61, 61)))
        if pick.random() < 0.02:
            pair.do("card_fund", card=pick.choice(pair.holders).card, amount=1_000_000)
    assert pair.straight.node.lanes.taken > min(ROUNDS / 8, 100)


def test_what_is_not_plain_is_left_alone_and_means_the_same(pair: Pair, connect: Connect) -> None:
    """Every spelling of a request, good or bad: where it is taken, it was a good one."""
    line = connect()
    warm(pair, line)
    pick = random.Random(1)
    for _ in range(ROUNDS):
        pair.advance(61)
        holder = pick.choice(pair.holders[3:7])
        asked = pair.cash_out(holder, amount=1_000)
        if pick.random() < 0.4:
            fields = json.loads(payload(deposit(pair, holder.document, amount=1_000)))
        else:
            fields = json.loads(payload(asked))
        exchange(pair, line, [spelled(pick, fields)])
        if pick.random() < 0.05:
            pair.do("card_fund", card=holder.card, amount=1_000_000)
    assert pair.straight.node.lanes.taken > min(ROUNDS / 10, 100)


def spelled(pick: random.Random, fields: dict[str, Any]) -> bytes:
    """One payload out of a good cash_out, with some oddity or none."""
    items = list(fields.items())
    pick.shuffle(items)
    change = pick.choice(CHANGES)
    change(pick, items)
    if pick.random() < 0.3 and not any(isinstance(value, Raw) for _, value in items):
        return msgspec.msgpack.encode(dict(items))
    blank = pick.choice(("", "", " ", "\n\t "))
    body = f",{blank}".join(
        f"{json.dumps(k)}{blank}:{blank}{v if isinstance(v, Raw) else json.dumps(v)}"
        for k, v in items
    )
    text = f"{blank}{{{blank}{body}{blank}}}{blank}"
    if pick.random() < 0.15:
        at = pick.randrange(len(text))
        text = text[:at] + pick.choice(("", "x", '"', "\\", "}", "é", "0", "\x00")) + text[at + 1 :]
    data = text.encode()
    return data if data[:1] == b"{" else b"{" + data


class Raw(str):
    """A JSON value as it stands."""


Items = list[tuple[str, Any]]


def _nothing(pick: random.Random, items: Items) -> None:
    pass


def _other_value(pick: random.Random, items: Items) -> None:
    at = pick.randrange(len(items))
    values: list[Any] = [
        0, -1, 1, 999_999, 1_000_000, 10**12, 10**12 - 1, 1.5, True, None, "", "x", "1", "é",
        "1234567", "a" * 41, [], {}, Raw("1e3"), Raw("007"), Raw("1000.0"), Raw('"\\u0031"'),
        Raw("00"), Raw("NaN"),
    ]  # fmt: skip
    items[at] = (items[at][0], pick.choice(values))


def _one_less(pick: random.Random, items: Items) -> None:
    del items[pick.randrange(len(items))]


def _one_twice(pick: random.Random, items: Items) -> None:
    items.append(pick.choice(items))


def _unknown(pick: random.Random, items: Items) -> None:
    items.insert(
        pick.randrange(len(items)), (pick.choice(("note", "Trace", "")), pick.choice((1, "x")))
    )


MORE = (
    ("local_time", "2026-11-22T12:00:00"), ("local_time", "x" * 41), ("branch", "17"),
    ("branch", "000017"), ("phone", "0981000001"), ("document_type", "CI"),
    ("document_type", "PAS"), ("branch", ""), ("card", "card-000004"), ("card", ""),
    ("depositor", "CI1234567"), ("depositor", "CI123"), ("depositor", "RUC800000-1"),
    ("declaration", {"origin": "venta"}), ("id", 5), ("token", "123456"), ("original", 3),
)  # fmt: skip


def _more(pick: random.Random, items: Items) -> None:
    items.append(pick.choice(MORE))


CHANGES = (_nothing, _nothing, _nothing, _other_value, _other_value, _one_less, _one_twice,
           _unknown, _more, _more)  # fmt: skip


def test_no_more_are_taken_than_may_be_in_flight(pair: Pair, connect: Connect) -> None:
    line = connect(in_flight_max=2)
    warm(pair, line)
    messages = [payload(pair.cash_out(pair.holders[i])) for i in (3, 4, 5)]
    line.send(messages)
    node = pair.straight.node
    step = node.begin()
    node.lanes.begin()
    found = node.lanes.next(node.straight_ready(step), step.now_ns, step.mono_ns, 1.0, 100)
    assert found == (line, None)
    assert (node.lanes.held, line.lane.in_flight) == (2, 2)
    answer_in_python(pair.straight, step, line)
    node.end(step)
    pair.straight.settle()
    assert line.lane.in_flight == 0
    said = line.received()
    assert sorted(said) == sorted(reference(pair.flows, line.terminal, messages))


def test_nothing_leaves_before_it_is_durable(pair: Pair, connect: Connect) -> None:
    line = connect()
    warm(pair, line)
    node = pair.straight.node
    message = payload(pair.cash_out(pair.holders[3]))
    line.send([message])
    step = node.begin()
    node.lanes.begin()
    assert node.lanes.next(node.straight_ready(step), step.now_ns, step.mono_ns, 1.0, 100) is None
    node.end(step)
    assert node.lanes.held == 1
    assert node.lanes.release(node.store.journal.durable_seq, step.mono_ns, 0) == (0, [])
    assert line.received() == []
    pair.straight.settle()
    assert line.received() == reference(pair.flows, line.terminal, [message])


def test_a_peer_that_does_not_read_gets_the_rest_from_its_owner(
    pair: Pair, connect: Connect
) -> None:
    line = connect(TERMINAL)
    warm(pair, line)
    line.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    total, count = 0, 0
    while not line.owner.released_data and count < 200:
        count += 1
        pair.advance(61)
        for house in pair.houses:
            house.do("card_fund", card=pair.holders[3].card, amount=10_000)
        message = payload(pair.cash_out(pair.holders[3], amount=1_000))
        line.send([message])
        work(pair.straight)
        total += len(reference(pair.flows, line.terminal, [message])[0]) + 10
    [rest] = line.owner.released_data
    assert rest
    line.lane.direct = False  # as its owner says until that is written
    come = b""
    while select.select([line.far], [], [], 0)[0]:
        come += line.far.recv(65_536)
    assert len(come) + len(rest) == total
    line.client.push(come + rest)
    assert len(line.client.take(1000)) == count
    pair.advance(61)
    message = payload(pair.cash_out(pair.holders[4], amount=1_000))
    line.send([message])
    work(pair.straight)
    [_, behind] = line.owner.released_data
    assert behind is not None
    line.client.push(behind)
    assert line.client.take() == reference(pair.flows, line.terminal, [message])


def test_a_lost_connection_loses_its_answer_and_nothing_else(pair: Pair, connect: Connect) -> None:
    gone, stays = connect(), connect(TERMINAL)
    warm(pair, stays)
    first = payload(pair.cash_out(pair.holders[3]))
    second = payload(pair.cash_out(pair.holders[4]))
    node = pair.straight.node
    step = node.begin()
    for line, message in ((gone, first), (stays, second)):
        line.send([message])
        node.lanes.begin()
        ready = node.straight_ready(step)
        assert node.lanes.next(ready, step.now_ns, step.mono_ns, 1.0, 100) is None
    node.end(step)
    gone.close()
    pair.straight.settle()
    reference(pair.flows, gone.terminal, [first])
    assert stays.received() == reference(pair.flows, stays.terminal, [second])
    assert (gone.lane.in_flight, node.lanes.held) == (0, 0)


def test_a_bad_frame_and_an_end_are_handed_back(pair: Pair, connect: Connect) -> None:
    line = connect()
    warm(pair, line)
    lanes = pair.straight.node.lanes
    good = line.client.seal([payload(pair.cash_out(pair.holders[3]))])
    line.far.sendall(good[:-1] + bytes([good[-1] ^ 1]))
    lanes.begin()
    assert lanes.next(True, pair.straight.clock.now_ns, 0, 1.0, 100) == (line, None)
    assert line.channel.take() == []
    assert line.channel.fault == 3
    assert lanes.next(True, pair.straight.clock.now_ns, 0, 1.0, 100) is None
    line.far.close()
    lanes.begin()
    assert lanes.next(True, pair.straight.clock.now_ns, 0, 1.0, 100) == (line, b"")
    assert lanes.taken == 0


def test_frames_in_pieces(pair: Pair, connect: Connect) -> None:
    line = connect()
    warm(pair, line)
    messages = [payload(pair.cash_out(pair.holders[i])) for i in (3, 4)]
    stream = line.client.seal(messages)
    for byte in stream:
        line.far.sendall(bytes([byte]))
        work(pair.straight)
    assert line.received() == reference(pair.flows, line.terminal, messages)
    assert pair.straight.node.lanes.taken == 2


def test_a_lane_that_was_handed_back_is_read_by_python(pair: Pair, connect: Connect) -> None:
    line = connect()
    warm(pair, line)
    line.lane.hand_back()
    message = payload(pair.cash_out(pair.holders[3]))
    line.send([message])
    work(pair.straight)
    assert line.received() == reference(pair.flows, line.terminal, [message])
    assert pair.straight.node.lanes.taken == 0


def test_a_step_takes_no_more_than_it_has_room_for(pair: Pair, connect: Connect) -> None:
    line, other = connect(), connect(TERMINAL)
    warm(pair, line)
    node = pair.straight.node
    first = payload(pair.cash_out(pair.holders[3]))
    second = payload(pair.cash_out(pair.holders[4]))
    line.send([first])
    other.send([second])
    step = node.begin()
    node.lanes.begin()
    ready = node.straight_ready(step)
    assert node.lanes.next(ready, step.now_ns, step.mono_ns, 1.0, 1) is None
    assert (node.lanes.held, node.lanes.more) == (1, True)
    assert node.lanes.next(ready, step.now_ns, step.mono_ns, 1.0, 1) is None
    assert (node.lanes.held, node.lanes.more) == (2, False)
    node.end(step)
    pair.straight.settle()
    said = sorted(line.received() + other.received())
    expected = reference(pair.flows, line.terminal, [first])
    expected += reference(pair.flows, other.terminal, [second])
    assert said == sorted(expected)


def test_limits_of_a_lane() -> None:
    with pytest.raises(ValueError, match="8 digits"):
        TerminalLane(None, Channel(2), -1).name("123", 1)
