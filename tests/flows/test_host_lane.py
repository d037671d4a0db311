"""Holds of an ISO 8583 host, decided without Python: every frame is answered with the same bytes.

The twins of `test_straight` as issuers of a sicoop in another process; one answers behind a lane.
"""

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import UNSET

from core_ext._desk import HostLane
from protocols.iso8583.ceibo import (
    capture_elements,
    hold_elements,
    release_elements,
    status_elements,
)
from protocols.iso8583.connection import Connection, Received
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.times import transmission_time
from protocols.messages import IssuerCapture, IssuerHold, IssuerRelease, IssuerStatus
from switch.config import LinkSettings
from switch.flows import operations as ops
from switch.flows.ceibo import SICOOP
from switch.flows.issuer_desk import IssuerDesk
from switch.flows.step import Arm
from tests.conftest import FUZZ
from tests.house import BRANCH, NETWORK, TERMINAL, Holder, House
from tests.twins import OTHER_TERMINAL, PHONE, Pair

ROUNDS = 1500 * FUZZ if FUZZ else 150
DIALECT = Dialect.load("ceibo")
MAC, DATA = bytes(range(16)), bytes(range(32))
OTHER_DATA = bytes(range(1, 33))


class Desk:
    """A house's desk for the host `sicoop`, with one connection, signed on; no socket yet."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.keys = HostKeys.of("aes-cmac", [(1, MAC)], [(1, OTHER_DATA), (2, DATA)])
        self.desk = IssuerDesk(
            link=SICOOP, node=house.node, ceibo=house.node.ceibo,
            fingerprint=house.node.fingerprint, keys=self.keys, settings=LinkSettings(),
            events=lambda step, link, event: None,
        )  # fmt: skip
        self.connection = self._connection(False)
        self.replies: list[Any] = []

    def _connection(self, initiator: bool) -> Connection:
        return Connection(
            DIALECT, Framing(), self.keys, initiator=initiator,
            wall_ns=self.house.clock.wall_ns, next_stan=lambda: "999999",
        )  # fmt: skip

    def sign_on(self) -> None:
        client = self._connection(True)
        client.sign_on()
        self.connection.receive(client.output())
        self.connection.output()
        assert self.connection.signed_on

    # a destination of the gate
    def ready(self, message: Any) -> None:
        self.connection.answer(message.received, message.elements)

    def flush(self) -> None:
        pass

    def take(self, step: Any, data: bytes) -> None:
        for event in self.connection.receive(data):
            if isinstance(event, Received):
                self.desk.on_request(step, event, self)


class Line(Desk):
    """The same behind a lane."""

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        self.left: list[bytes | None] = []
        self.lane: HostLane = house.node.straight.host_lane(
            self, self.near.fileno(), layout=DIALECT, key=self.keys.signing_key(),
            data_key=self.keys.data_keys[0], link=SICOOP, clock_tolerance_s=60,
        )  # fmt: skip
        house.node.lanes.add(self.near.fileno(), self, self.lane)

    def sign_on(self) -> None:
        super().sign_on()
        self.lane.ready = True

    def released(self, data: bytes | None) -> None:
        self.left.append(data)

    def work(self) -> bytes:
        """One pass of the pump; what was written, natively decided answers first."""
        node, lanes = self.house.node, self.house.node.lanes
        lanes.begin()
        while True:
            step = node.begin()
            while not node.full:
                before, ready = lanes.taken, node.straight_ready(step)
                found = lanes.next(ready, step.now_ns, step.mono_ns, 1.0, node.requests_left)
                node.took(lanes.taken - before)
                if found is None:
                    break
                _, data = found
                assert data
                self.take(step, data)
                clear = self.connection.signed_on and not self.connection.pending_bytes
                self.lane.ready = clear
            node.end(step)
            if not lanes.more:
                break
        self.house.settle()
        return self.received() + self.connection.output()

    def received(self) -> bytes:
        data = b""
        while True:
            try:
                data += self.far.recv(1 << 20)
            except BlockingIOError:
                return data

    def close(self) -> None:
        self.house.node.lanes.remove(self.near.fileno())
        self.lane.close()
        self.near.close()
        self.far.close()


class Hosts:
    """The twins' desks, and requests for them."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.line, self.reference = Line(pair.straight), Desk(pair.flows)
        self.line.sign_on()
        self.reference.sign_on()
        self._number = 990_000_000_000
        self._stan = 0

    @property
    def taken(self) -> int:
        """How many were decided in the lane."""
        return self.line.lane.taken

    def number(self) -> str:
        self._number += 1
        return str(self._number)

    def frame(self, mti: str, elements: dict[str, object], *, sent: str = "", mac: bytes = MAC
              ) -> bytes:  # fmt: skip
        self._stan += 1
        now_ns = self.pair.straight.clock.now_ns
        own = {"mti": mti, "7": sent or transmission_time(now_ns), "11": f"{self._stan:06}"}
        keys = HostKeys.of("aes-cmac", [(1, mac)])
        body = DIALECT.encode_for_mac({**own, **elements})
        sealed = DIALECT.sealed([body], [keys.signing_key().mac(body)[:8]])
        return Framing().wrapped([], sealed)

    def hold(self, holder: Holder, *, number: str = "", token: str = "", data_key: bytes = DATA,
             **fields: Any) -> bytes:  # fmt: skip
        number = number or self.number()
        house = self.pair.straight
        token = token or house.code(holder)
        sealed = bytes(12) + AESGCM(data_key).encrypt(bytes(12), token.encode(), number.encode())
        day = house.node.calendar.business(house.clock.now_ns).number
        values: dict[str, Any] = {
            "network": NETWORK, "operation": number, "kind": "cash_out", "amount": 50_000,
            "currency": "PYG", "terminal": TERMINAL, "branch": BRANCH, "cashier": "000345",
            "day": day, "document_type": "CI", "document": holder.document, "token": token,
        } | fields  # fmt: skip
        mti, elements = hold_elements(IssuerHold(**values), token_hex=sealed.hex())
        return self.frame(mti, elements)

    def exchange(self, data: bytes) -> list[bytes]:
        """The same bytes to both; the same frames back, in whatever order."""
        self.line.far.sendall(data)
        said = self.line.work()
        with self.pair.flows.step() as step:
            self.reference.take(step, data)
        expected = self.reference.connection.output()
        assert sorted(frames(said)) == sorted(frames(expected))
        return frames(said)

    def answer(self, data: bytes) -> Any:
        [frame] = self.exchange(data)
        return DIALECT.decode(frame[2:])


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        n = 2 + int.from_bytes(data[:2])
        found.append(data[:n])
        data = data[n:]
    return found


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.compare()
    made.compare_trails()
    for house in made.houses:
        house.sound()
        house.close()


@pytest.fixture
def hosts(pair: Pair) -> Iterator[Hosts]:
    made = Hosts(pair)
    made.answer(made.hold(pair.holders[8]))  # makes the account, of which the lane is told then
    assert made.taken == 0
    yield made
    made.line.close()


def test_a_common_hold_is_decided_in_the_lane(pair: Pair, hosts: Hosts) -> None:
    for count, fields in enumerate(
        ({}, {"amount": 1_000, "branch": "17"}, {"document": UNSET, "phone": PHONE}), 1
    ):
        pair.advance(61)
        holder = pair.holders[9] if "phone" in fields else pair.holders[3]
        answer = hosts.answer(hosts.hold(holder, **fields))
        assert (answer.mti, answer["39"], len(answer["38"])) == ("0110", "00", 6)
        assert hosts.taken == count


def test_capture_and_release_of_what_the_lane_granted(pair: Pair, hosts: Hosts) -> None:
    first, second = hosts.number(), hosts.number()
    for holder, number in ((pair.holders[3], first), (pair.holders[4], second)):
        assert hosts.answer(hosts.hold(holder, number=number))["39"] == "00"
    capture = capture_elements(IssuerCapture(NETWORK, first, "cash_out", 50_000, "PYG"))
    release = release_elements(IssuerRelease(NETWORK, second, "cash_out", 50_000, "timeout", "PYG"))
    assert hosts.answer(hosts.frame(*capture))["39"] == "00"
    assert hosts.answer(hosts.frame(*release))["39"] == "00"
    state = hosts.answer(hosts.frame(*status_elements(IssuerStatus(NETWORK, first))))
    assert state["48.10"] == "CAPTURADA"
    assert hosts.taken == 4


def decided(hosts: Hosts, what: str, number: str, **fields: Any) -> bytes:
    values = {"network": NETWORK, "operation": number, "kind": "cash_out", "amount": 50_000}
    values |= {"currency": "PYG"} | fields
    repeat = values.pop("repeat", False)
    if what == "capture":
        return hosts.frame(*capture_elements(IssuerCapture(**values), repeat=repeat))
    values["reason"] = "annulment" if what == "annul" else "cancelled"
    return hosts.frame(*release_elements(IssuerRelease(**values), repeat=repeat))


@pytest.mark.parametrize(
    ("first", "second", "code", "taken"),
    [
        ({"what": "capture"}, {"what": "capture"}, "00", 2),
        ({"what": "capture"}, {"what": "capture", "amount": 60_000}, "94", 2),
        ({"what": "capture"}, {"what": "release"}, "A3", 2),
        ({"what": "capture"}, {"what": "annul"}, "00", 2),
        ({"what": "release"}, {"what": "release"}, "00", 2),
        ({"what": "release"}, {"what": "capture"}, "21", 2),
        ({"what": "release"}, {"what": "annul"}, "21", 2),
        ({"what": "annul"}, {"what": "release"}, "21", 1),
        ({"what": "capture", "amount": 49_000}, {"what": "capture"}, "00", 2),
        ({"what": "capture", "currency": "USD"}, {"what": "release"}, "00", 2),
        ({"what": "capture", "repeat": True}, {"what": "capture"}, "00", 1),
    ],
)
def test_decisions_one_after_another(
    pair: Pair, hosts: Hosts, first: dict[str, Any], second: dict[str, Any], code: str, taken: int
) -> None:
    number = hosts.number()
    assert hosts.answer(hosts.hold(pair.holders[3], number=number))["39"] == "00"
    hosts.exchange(decided(hosts, number=number, **first))
    pair.advance(7)
    assert hosts.answer(decided(hosts, number=number, **second))["39"] == code
    assert hosts.taken == taken


def test_a_repeat_gets_the_first_answer_and_another_body_94(pair: Pair, hosts: Hosts) -> None:
    number = hosts.number()
    first = hosts.answer(hosts.hold(pair.holders[3], number=number))
    again = hosts.answer(hosts.hold(pair.holders[3], number=number))
    assert (again["39"], again["38"]) == ("00", first["38"])
    assert hosts.answer(hosts.hold(pair.holders[3], number=number, amount=60_000))["39"] == "94"
    assert hosts.answer(hosts.hold(pair.holders[3], number=number, cashier="1"))["39"] == "94"
    assert hosts.taken == 1


ODD: list[Callable[[Hosts, Pair], bytes]] = [
    lambda hosts, pair: hosts.hold(pair.holders[3], token="000000"),
    lambda hosts, pair: hosts.hold(pair.holders[3], token="12345678"),
    lambda hosts, pair: hosts.hold(pair.holders[3], data_key=OTHER_DATA),
    lambda hosts, pair: hosts.hold(pair.holders[3], data_key=bytes(32)),
    lambda hosts, pair: hosts.hold(pair.holders[3], amount=1),
    lambda hosts, pair: hosts.hold(pair.holders[3], amount=4_000_000),
    lambda hosts, pair: hosts.hold(pair.holders[3], currency="USD"),
    lambda hosts, pair: hosts.hold(pair.holders[3], document="9999999"),
    lambda hosts, pair: hosts.hold(pair.holders[3], document="12"),
    lambda hosts, pair: hosts.hold(pair.holders[3], day=20_000),
    lambda hosts, pair: hosts.hold(pair.holders[3], cashier="ABC"),
    lambda hosts, pair: hosts.hold(pair.holders[12]),
    lambda hosts, pair: hosts.hold(pair.holders[3], terminal=OTHER_TERMINAL, cashier="7"),
    lambda hosts, pair: hosts.frame("0100", {"3": "010000"}),
    lambda hosts, pair: hosts.frame("0200", {"3": "010000"}),
    lambda hosts, pair: hosts.frame("0800", {"70": "301"}),
    lambda hosts, pair: hosts.frame("0800", {"70": "301"}, mac=bytes(16)),
    lambda hosts, pair: b"\x00\x05abcde",
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_what_is_not_common_is_answered_by_python(pair: Pair, hosts: Hosts, number: int) -> None:
    hosts.exchange(ODD[number](hosts, pair))
    assert hosts.taken <= 1


@pytest.mark.parametrize("off_s", [-3600, -62, -60, -1, 1, 59, 62, 86_400 * 200])
def test_the_clock_of_the_host(pair: Pair, hosts: Hosts, off_s: int) -> None:
    now_ns = pair.straight.clock.now_ns
    hold = hosts.hold(pair.holders[3])
    decoded = dict(DIALECT.decode(hold[2:]).items())
    sent = transmission_time(now_ns + off_s * 1_000_000_000)
    elements = {k: v for k, v in decoded.items() if k not in ("7", "11", "64")}
    answer = hosts.answer(hosts.frame("0100", elements, sent=sent))
    assert answer["39"] == ("00" if abs(off_s) <= 60 else "A5")


def test_random_traffic_of_a_host(pair: Pair, hosts: Hosts) -> None:
    pick = random.Random(3)
    numbers = [hosts.number() for _ in range(ROUNDS)]
    for _ in range(ROUNDS):
        sent = b""
        for _ in range(pick.choice((1, 1, 3, 8))):
            number, way = pick.choice(numbers), pick.random()
            holder = pick.choice(pair.holders)
            if way < 0.6:
                sent += hosts.hold(holder, number=number, amount=pick.choice((1_000, 50_000, 999)))
            elif way < 0.75:
                capture = IssuerCapture(NETWORK, number, "cash_out", 50_000, "PYG")
                sent += hosts.frame(*capture_elements(capture, repeat=pick.random() < 0.2))
            elif way < 0.85:
                release = IssuerRelease(NETWORK, number, "cash_out", 1_000, "timeout", "PYG")
                sent += hosts.frame(*release_elements(release))
            elif way < 0.95:
                sent += pick.choice(ODD[:-1])(hosts, pair)
            else:
                sent += hosts.frame(*status_elements(IssuerStatus(NETWORK, number)))
        hosts.exchange(sent)
        pair.advance(pick.choice((1, 31, 61)))
        if pick.random() < 0.05:
            card = pick.choice(pair.holders).card
            pair.do("card_unlock", card=card)
            pair.do("card_fund", card=card, amount=500_000)
    assert hosts.taken > min(ROUNDS / 8, 100)


def test_bytes_in_pieces(pair: Pair, hosts: Hosts) -> None:
    data = b"".join(hosts.hold(pair.holders[i]) for i in (3, 4))
    data += hosts.frame("0800", {"70": "301"}) + hosts.hold(pair.holders[5])
    said = b""
    for byte in data:
        hosts.line.far.sendall(bytes([byte]))
        said += hosts.line.work()
    with pair.flows.step() as step:
        hosts.reference.take(step, data)
    expected = hosts.reference.connection.output()
    assert sorted(frames(said)) == sorted(frames(expected))
    assert hosts.taken == 3


def test_another_key_from_one_message_to_the_next(pair: Pair, hosts: Hosts) -> None:
    new = bytes(range(7, 23))
    for desk in (hosts.line, hosts.reference):
        desk.keys.add("mac", new)
    hold = hosts.hold(pair.holders[3])
    assert hosts.answer(hold)["39"] == "00"  # still under the key before
    hosts.line.lane.rekey(hosts.line.keys.signing_key(), DATA)
    decoded = dict(DIALECT.decode(hosts.hold(pair.holders[4])[2:]).items())
    elements = {k: v for k, v in decoded.items() if k not in ("7", "11", "64")}
    taken = hosts.taken
    assert hosts.answer(hosts.frame("0100", elements, mac=new))["39"] == "00"
    assert hosts.taken == taken + 1
    hosts.line.lane.retire()
    assert hosts.answer(hosts.hold(pair.holders[5]))["39"] == "00"
    assert hosts.taken == taken + 1


def test_holds_that_nobody_decides_are_taken_up_in_time(pair: Pair, hosts: Hosts) -> None:
    pair.advance(61)
    number = hosts.number()
    hosts.answer(hosts.hold(pair.holders[3], number=number))
    house = pair.straight
    undecided = house.node.straight.core.issuer.undecided
    now_ns = house.clock.now_ns
    assert undecided(0, now_ns, 100)[-1][0] != (NETWORK + number).encode()
    assert undecided(0, now_ns + 1, 100)[-1] == ((NETWORK + number).encode(), now_ns)
    armed: list[str] = []
    with house.step() as step:
        step.now_ns += 601 * 1_000_000_000
        hosts.line.desk.adopt(step, undecided, lambda *key: key[2].endswith("1"))
        armed = [effect.key for effect in step.effects if isinstance(effect, Arm)]
        step.effects.clear()
    assert f"{SICOOP}|{NETWORK}|{number}" in armed
    assert all(not key.endswith("1") for key in armed)
    with house.step() as step:
        step.now_ns += 602 * 1_000_000_000
        hosts.line.desk.adopt(step, undecided, lambda *key: False)
        assert step.effects == []
    record = house.node.store.records.get(ops.CEIBO_HOLDS, (NETWORK + number).encode())
    assert record is not None
    assert ops.decode_ceibo(record).link == SICOOP
