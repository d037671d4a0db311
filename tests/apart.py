"""Roles in nodes of their own, and the hops between them in the hands of a test.

Each node is a `House` with its own journal and its own life; `Hop` carries what they say to each
other. Between sicoop and ceibo that is real ISO 8583: laid out, MACed and cut into bytes by the
same connections that serve sockets. A test decides of every message whether it arrives, when, and
whether its answer does; left alone, everything is delivered at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from protocols.iso8583.connection import Connection, Received
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.times import transmission_time
from protocols.messages import Answer, Message, NetworkRequest, Status, StatusAnswer
from protocols.session import NETWORK as VOCABULARY
from protocols.session.vocabulary import decoder, encoder
from switch.clock import iso_ms
from switch.config import Budgets, LinkSettings
from switch.flows import operations as ops
from switch.flows.issuer_desk import IssuerDesk
from switch.flows.issuer_port import IssuerPort
from switch.flows.nonces import NonceBook
from switch.flows.platform_port import PlatformPort
from switch.flows.registry import account_id
from switch.net.saf import StoreAndForward
from switch.node import Node
from tests.house import (
    ENDS,
    MASTER,
    NETWORK,
    TERMINAL,
    House,
    ManualClock,
    Told,
    configuration,
)

LINK = "ceibo"
HOST = "sicoop"
NS = 1_000_000_000
ROUNDS_MAX = 1000

Policy = Callable[["Flight"], str]


def deliver(_: "Flight") -> str:
    """Everything arrives, and so does every answer."""
    return "deliver"


def only(what: str, fate: str) -> Policy:
    """This fate for one kind of message; the others are delivered."""
    return lambda flight: fate if flight.what == what else "deliver"


class Flight:
    """One request under way.

    Attributes:
        what: `hold`, `capture`, `release`, `annul`, `holder`, `state`; of a session the tag.
        message: as sent; bytes, or a session's message.
        answer: once the far side has given one; None also where it never saw the request.
    """

    def __init__(self, what: str, token: Any, message: Any, deadline_ns: int) -> None:
        self.what = what
        self.token = token
        self.message = message
        self.deadline_ns = deadline_ns
        self.answer: Any = None
        self.told = False  # the asking side knows its end
        self.seen = False  # the far side has been given it


class _Catch:
    """A destination that keeps the one answer to a flight."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight

    def ready(self, message: Any) -> None:
        self._flight.answer = message

    def flush(self) -> None:
        pass


class Hop:
    """One direction between two nodes: the asking one's wire, and the far one's ear."""

    def __init__(self, world: "Apart", near: str, far: str) -> None:
        self._world = world
        self.near, self.far = near, far
        self.up = False
        self.flights: list[Flight] = []
        self.history: list[Flight] = []
        self.policy: Policy = deliver

    # ---- as the port sees it

    def flush(self) -> None:
        pass

    def _taken(self, flight: Flight) -> str:
        if not self.up:
            return "down"
        self.flights.append(flight)
        self.history.append(flight)
        return ""

    @property
    def now_ns(self) -> int:
        return self._world.clock.mono_ns()

    # ---- in the hands of a test

    def process(self, flight: Flight) -> Any:
        """The far side gets the request and decides; nobody is told yet."""
        house = self._world.houses[self.far]
        flight.seen = True
        with house.step() as step:
            self._hear(step, flight, _Catch(flight))
        self._world.settle()
        return flight.answer

    def tell(self, flight: Flight) -> None:
        """The answer reaches who asked, if it still waits for it."""
        if flight.answer is None or not self._world.alive(self.near):
            return
        if flight.told:  # a link drops what nobody waits for
            self._world.count_late()
            return
        self._end(flight)
        with self._world.houses[self.near].step() as step:
            self._answered(step, flight)
        self._world.settle()

    def lose(self, flight: Flight, reason: str = "lost") -> None:
        """Whoever asked learns that there will be no answer."""
        if flight.told or not self._world.alive(self.near):
            return
        self._end(flight)
        with self._world.houses[self.near].step() as step:
            self._lost(step, flight, reason)
        self._world.settle()

    def _end(self, flight: Flight) -> None:
        flight.told = True
        if flight in self.flights:
            self.flights.remove(flight)

    def expire(self) -> None:
        for flight in list(self.flights):
            if flight.deadline_ns <= self.now_ns:
                self.lose(flight, "timeout")

    def run(self) -> bool:
        """Carry what the policy lets through; True if anything moved."""
        moved = False
        for flight in list(self.flights):
            fate = self.policy(flight)
            if fate == "hold" or flight.told:
                continue
            if fate in ("deliver", "drop_answer") and not flight.seen:
                if not self._world.alive(self.far):
                    continue
                self.process(flight)
                moved = True
            if fate == "deliver" and flight.answer is not None:
                self.tell(flight)
                moved = True
        return moved

    def sent(self, what: str) -> list[Flight]:
        """All flights of a kind so far."""
        return [flight for flight in self.history if flight.what == what]

    def _hear(self, step: Any, flight: Flight, origin: _Catch) -> None:
        raise NotImplementedError

    def _answered(self, step: Any, flight: Flight) -> None:
        raise NotImplementedError

    def _lost(self, step: Any, flight: Flight, reason: str) -> None:
        raise NotImplementedError


class IssuerHop(Hop):
    """sicoop asks ceibo, over ISO 8583; `back` is the other direction of the same connection."""

    def __init__(self, world: "Apart") -> None:
        super().__init__(world, "sicoop", "ceibo")
        self.dialect = Dialect.load("ceibo")
        self._framing = Framing.from_dict({})
        self._keys = [bytes(range(16)), bytes(range(32)), bytes(range(1, 33))]
        self.port: IssuerPort | None = None
        self.desk: IssuerDesk | None = None
        self._stan = 0
        self.client = self.server = self._connection(True)

    def keys(self) -> HostKeys:
        mac, data, zone = self._keys
        return HostKeys.of("aes-cmac", [(1, mac)], [(1, data)], [(1, zone)])

    def _connection(self, initiator: bool) -> Connection:
        return Connection(
            self.dialect, self._framing, self.keys(), initiator=initiator,
            wall_ns=self._world.clock.wall_ns, next_stan=self.next_stan,
        )  # fmt: skip

    def next_stan(self) -> str:
        self._stan = self._stan % 999_999 + 1
        return f"{self._stan:06}"

    def connect(self) -> None:
        """A new connection, signed on."""
        self.client, self.server = self._connection(True), self._connection(False)
        self.client.sign_on()
        self.server.receive(self.client.output())
        self.client.receive(self.server.output())
        assert self.client.signed_on
        assert self.server.signed_on
        self.up = True

    def request(self, mti: str, elements: Any, *, token: Any, budget_s: float) -> str:
        if not self.up:
            return "down"
        now_s = self._world.clock.wall_ns() // NS
        own = {**elements, "7": transmission_time(now_s * NS), "11": self.next_stan()}
        self.client.request(mti, own)
        deadline_ns = self.now_ns + int(budget_s * NS)
        return self._taken(Flight(token[0], token, self.client.output(), deadline_ns))

    def _hear(self, step: Any, flight: Flight, origin: _Catch) -> None:
        assert self.desk is not None
        for event in self.server.receive(flight.message):
            assert isinstance(event, Received), event
            self.desk.on_request(step, event, origin)

    def _answered(self, step: Any, flight: Flight) -> None:
        assert self.port is not None
        self.server.answer(flight.answer.received, flight.answer.elements)
        for event in self.client.receive(self.server.output()):
            assert isinstance(event, Received), event
            self.port.on_answer(step, flight.token, event)

    def _lost(self, step: Any, flight: Flight, reason: str) -> None:
        assert self.port is not None
        self.port.on_lost(step, flight.token, reason)


class InquiryHop(Hop):
    """ceibo asks sicoop, over the same connection."""

    def __init__(self, world: "Apart", way: IssuerHop) -> None:
        super().__init__(world, "ceibo", "sicoop")
        self._way = way

    def request(self, mti: str, elements: Any, *, token: Any, budget_s: float) -> str:
        if not self._way.up:
            return "down"
        own = {**elements, "7": transmission_time(self._world.clock.wall_ns())}
        self._way.server.request(mti, own | {"11": self._way.next_stan()})
        deadline_ns = self.now_ns + int(budget_s * NS)
        return self._taken(Flight("state", token, self._way.server.output(), deadline_ns))

    def _hear(self, step: Any, flight: Flight, origin: _Catch) -> None:
        assert self._way.port is not None
        for event in self._way.client.receive(flight.message):
            assert isinstance(event, Received), event
            self._way.port.on_request(step, event, origin)

    def _answered(self, step: Any, flight: Flight) -> None:
        assert self._way.desk is not None
        self._way.client.answer(flight.answer.received, flight.answer.elements)
        for event in self._way.server.receive(self._way.client.output()):
            assert isinstance(event, Received), event
            self._way.desk.on_answer(step, flight.token, event)

    def _lost(self, step: Any, flight: Flight, reason: str) -> None:
        assert self._way.desk is not None
        self._way.desk.on_lost(step, flight.token, reason)


class SessionHop(Hop):
    """red asks sicoop, over its session: what leaves is encoded, and decoded where it arrives."""

    def __init__(self, world: "Apart", network: str = NETWORK) -> None:
        super().__init__(world, "red", "sicoop")
        self.network = network
        self.port: PlatformPort | None = None
        self._id = 0

    def request(self, message: NetworkRequest, *, token: Any, budget_s: float) -> str:
        if not self.up:
            return "down"
        self._id += 1
        changes: dict[str, Any] = {"id": self._id}
        if token[0] == "hold":
            changes["sent_at"] = self._world.iso()
        whole = msgspec.structs.replace(message, **changes)
        payload = encoder("msgpack")(whole)
        return self._taken(Flight(token[0], token, payload, self.now_ns + int(budget_s * NS)))

    def decoded(self, flight: Flight) -> Message:
        return decoder(VOCABULARY, "acceptor", "msgpack")(flight.message)

    def _hear(self, step: Any, flight: Flight, origin: _Catch) -> None:
        node = self._world.houses["sicoop"].node
        node.network_request(step, self.network, self.decoded(flight), origin)

    def _answered(self, step: Any, flight: Flight) -> None:
        assert self.port is not None
        payload = encoder("msgpack")(flight.answer)
        answer = decoder(VOCABULARY, "initiator", "msgpack")(payload)
        self.port.on_answer(step, flight.token, answer)

    def _lost(self, step: Any, flight: Flight, reason: str) -> None:
        assert self.port is not None
        self.port.on_lost(step, flight.token, reason)


class StatusHop(Hop):
    """sicoop asks red for a state; also what sicoop knows networks by."""

    def __init__(self, world: "Apart", way: SessionHop) -> None:
        super().__init__(world, "sicoop", "red")
        self._way = way

    def ask(self, step: Any, network: str, message: Status) -> bool:
        assert network == NETWORK
        if not self._way.up:
            return False
        step.send(self, message)
        return True

    def ready(self, message: Status) -> None:
        self.up = self._way.up
        self._taken(Flight("status", None, message, self.now_ns + 25 * NS))

    def _hear(self, step: Any, flight: Flight, origin: _Catch) -> None:
        assert self._way.port is not None
        self._way.port.on_request(step, flight.message, origin)

    def _answered(self, step: Any, flight: Flight) -> None:
        assert isinstance(flight.answer, StatusAnswer)
        sicoop = self._world.houses["sicoop"].node.sicoop
        reference = flight.message.reference
        sicoop.on_network_state(step, NETWORK, reference, flight.answer.state)

    def _lost(self, step: Any, flight: Flight, reason: str) -> None:
        pass


class RoleHouse(House):
    """A node that plays some of the roles; its ports are attached again at every start."""

    def __init__(
        self, world: "Apart", roles: tuple[str, ...], directory: Path, **values: Any
    ) -> None:
        self._world = world
        self.roles = roles
        toml = self._with_roles(values.pop("toml", ""))
        super().__init__(directory, toml=toml, clock=world.clock, **values)

    def _with_roles(self, toml: str) -> str:
        listed = ", ".join(f'"{role}"' for role in self.roles)
        own = f"[node]\nroles = [{listed}]\n"
        return toml.replace("[node]\n", own) if "[node]\n" in toml else f"{toml}\n{own}"

    def reopen(self, toml: str | None = None, limits: str = "") -> None:
        self.close()
        if toml is not None or limits:
            self.config = configuration(self.directory, self._with_roles(toml or ""), limits)
        self.open()

    def open(self) -> None:
        self.node = Node(self.config, MASTER, self.clock, self.directory / "data")
        self.node.open(lambda: self._world.attach(self.roles, self.node))


class Apart:
    """The nodes. Terminals are at `red`, cards and codes at `ceibo`.

    Args:
        together: roles that share a node; the others have one each.
    """

    def __init__(self, directory: Path, together: tuple[str, ...] = (), **values: Any) -> None:
        self.clock = ManualClock()
        self._late = 0
        self._make_hops()
        self.houses: dict[str, RoleHouse] = {}
        self._down: set[str] = set()
        for role in ("ceibo", "sicoop", "red"):
            if role in self.houses:
                continue
            roles = together if role in together else (role,)
            place = directory / "-".join(roles)
            place.mkdir(parents=True)
            house = RoleHouse(self, roles, place, **values)
            self.houses |= dict.fromkeys(roles, house)
        self.red, self.sicoop, self.ceibo = (self.houses[r] for r in ("red", "sicoop", "ceibo"))
        self.holder = self.ceibo.holder
        self.connect()

    def _make_hops(self) -> None:
        self.holds: Any = IssuerHop(self)
        self.inquiries: Any = InquiryHop(self, self.holds)
        self.sessions: Any = SessionHop(self)
        self.status: Any = StatusHop(self, self.sessions)
        self.hops: tuple[Hop, ...] = (self.sessions, self.holds, self.inquiries, self.status)

    @property
    def late(self) -> int:
        """Answers that came when nobody waited for them any more."""
        return self._late

    def count_late(self) -> None:
        self._late += 1

    def iso(self) -> str:
        return iso_ms(self.clock.wall_ns())

    # ---- lives

    def attach(self, roles: tuple[str, ...], node: Node) -> None:
        """Make the ports of a node that is being started."""
        if "sicoop" in roles and "ceibo" not in roles:
            keys = self.holds.keys()
            self.holds.port = IssuerPort(
                name=LINK, node=node, sicoop=node.sicoop, debts=StoreAndForward(),
                nonces=NonceBook(LINK, node.store.records, keys), calendar=node.calendar,
                budgets=node.config.budgets, answer_s=15.0, events=_no_event,
            )  # fmt: skip
            self.holds.port.attach(self.holds)
            node.issuers.ports[LINK] = self.holds.port
        if "sicoop" in roles and "red" not in roles:
            node.sicoop.attach(networks=self.status)
        if "ceibo" in roles and "sicoop" not in roles:
            self.holds.desk = IssuerDesk(
                link=HOST, node=node, ceibo=node.ceibo, fingerprint=node.fingerprint,
                keys=self.holds.keys(), settings=LinkSettings(), events=_no_event,
            )  # fmt: skip
            self.holds.desk.attach(self.inquiries)
            node.desks[HOST] = self.holds.desk
        if "red" in roles and "sicoop" not in roles:
            self.sessions.port = PlatformPort(
                NETWORK, node=node, red=node.red, debts=StoreAndForward(), budgets=Budgets()
            )
            self.sessions.port.attach(self.sessions)
            node.platforms.ports[NETWORK] = self.sessions.port

    def alive(self, role: str) -> bool:
        return role not in self._down

    def connect(self) -> None:
        """Bring up what is down between living nodes."""
        holds, sessions = self.holds, self.sessions
        if holds.port is not None and not {"sicoop", "ceibo"} & self._down and not holds.up:
            holds.connect()
            self.inquiries.up = True
            with self.sicoop.step() as step:
                holds.port.on_up(step)
        if sessions.port is not None and not {"red", "sicoop"} & self._down and not sessions.up:
            sessions.up = self.status.up = True
            with self.red.step() as step:
                sessions.port.on_up(step)
        self.run()

    def disconnect(self, hop: Hop) -> None:
        """The connection is lost: what was in flight over it is unknown."""
        if not hop.up:
            return
        hop.up = False
        for flight in list(hop.flights):
            self.lose(hop, flight)
        port = hop.port if isinstance(hop, IssuerHop | SessionHop) else None
        if port is not None and self.alive(hop.near):
            with self.houses[hop.near].step() as step:
                port.on_down(step)
        self.settle()

    def lose(self, hop: Hop, flight: Flight) -> None:
        if self.alive(hop.near):
            hop.lose(flight)
        elif flight in hop.flights:
            hop.flights.remove(flight)
            flight.told = True

    def kill(self, role: str) -> None:
        """A hard kill: what is not durable is gone, and so are its connections; roles of one node
        stop together."""
        house = self.houses[role]
        house.kill()
        self._down |= set(house.roles)
        for hop in self.hops:
            if {hop.near, hop.far} & set(house.roles):
                self.disconnect(hop)

    def start(self, role: str) -> None:
        """Start a role again; links come up after it."""
        self._down -= set(self.houses[role].roles)
        self.houses[role].open()
        self.settle()

    def restart(self, role: str) -> None:
        """Hard kill and start, everything reconnected."""
        self.kill(role)
        self.start(role)
        self.connect()

    def close(self) -> None:
        for house in self._living():
            house.close()

    def _living(self) -> list[RoleHouse]:
        living = [house for role, house in self.houses.items() if role not in self._down]
        return list(dict.fromkeys(living))

    # ---- time

    def settle(self) -> None:
        """All that is decided becomes durable and leaves its node."""
        for house in self._living():
            while True:
                house.settle()
                if not house.node.gate and not house.node.store.journal.open_count:
                    break

    def run(self) -> None:
        """Carry messages until nothing moves."""
        self.settle()
        for _ in range(ROUNDS_MAX):
            moved = False
            for hop in self.hops:
                moved = hop.run() or moved
            if not moved:
                return
        raise AssertionError("messages without end")

    def pass_time(self, seconds: float, most_s: float = 1.0) -> None:
        """Let time go by in small steps, with timers, time-outs and messages as they fall due."""
        left = seconds
        while left > 0:
            piece = min(left, most_s)
            self.clock.advance(piece)
            left -= piece
            for house in self._living():
                house.node.run_timers()
            self.settle()
            for hop in self.hops:
                hop.expire()
            self.run()

    # ---- terminals

    def send(self, message: Any, terminal: str = TERMINAL) -> Told:
        """A request of a terminal; what it is told comes later."""
        told = self.red.send([(terminal, message)])[0]
        self.run()
        return told

    def cash_out(self, trace: int, amount: int, **fields: Any) -> Told:
        values = {"token": self.ceibo.code(), "document": self.holder.document} | fields
        return self.send(self.red.request(trace, amount, **values))

    def deposit(self, trace: int, amount: int, **fields: Any) -> Told:
        values = {"document": self.holder.document} | fields
        return self.send(self.red.request(trace, amount, kind="deposit", **values))

    def operation(self, kind: str, trace: int, amount: int) -> Told:
        return (self.cash_out if kind == "cash_out" else self.deposit)(trace, amount)

    def query(self, trace: int, kind: str = "cash_out") -> Answer:
        return self.red.query(trace, kind)

    # ---- ends

    def states(self, trace: int) -> tuple[str, str, str]:
        """States at red, sicoop and ceibo; "" where there is nothing."""
        red = self.red.register(trace)
        sicoop = self.sicoop.at_sicoop(self.sicoop.reference(trace))
        operation = "" if sicoop is None else sicoop.operation
        ceibo = self.ceibo.at_ceibo(operation) if operation else None
        return (
            "" if red is None else red.state,
            "" if sicoop is None else sicoop.state,
            "" if ceibo is None else ceibo.state,
        )

    def owed(self) -> int:
        """How much anybody still owes to anybody."""
        return sum(
            house.node.store.records.open_count(space)
            for house in self._living()
            for space in (ops.RED_OPERATIONS, ops.SICOOP_OPERATIONS)
        )

    def expect_end(self, trace: int, end: str, amount: int, *, kind: str = "cash_out") -> None:
        """The end state of one operation, the only one so far, at all three; nothing is owed."""
        expected = ENDS[end]
        red, sicoop, ceibo = self.states(trace)
        hold = self._hold(trace)
        if hold is not None and hold.compensated:
            ceibo = "compensated"
        if not ceibo and sicoop == "TUMBA":
            ceibo = "TUMBA"  # it never got as far as the issuer
        assert red in expected.red, f"{end}: red has {red}"
        assert ceibo in expected.ceibo, f"{end}: ceibo has {ceibo}"
        moved = self.ceibo.available() - self.holder.balance
        assert moved == expected.user * amount, f"{end}: the card has {moved}"
        assert self.sicoop.position() == expected.position * amount, f"{end}: position"
        self._check_pending(end, amount if end[1] == "5" else 0, kind)
        self._check_app(end, ceibo)
        if end[1] != "5":
            assert self.owed() == 0, f"{end}: something is owed; {red} {sicoop} {ceibo}"
            told = self.query(trace, kind)
            paid = {"cash_out": ("ENTREGUE",), "deposit": ("RECIBA",)}[kind]
            assert (told.instruction in paid) == (end[1] == "1"), told
        for house in self._living():
            house.sound()

    def _check_pending(self, end: str, held: int, kind: str) -> None:
        """What is held in the ledgers of ceibo and of sicoop: all of it while open, else nothing;
        of a deposit that is the credit that waits, and the room taken of the network's cap."""
        out = kind == "cash_out"
        net = account_id(f"sicoop:PYG:net:{NETWORK}")
        for house, account, expected in (
            (self.ceibo, self.ceibo.account(), (held, 0) if out else (0, held)),
            (self.sicoop, net, (0, held) if out else (held, 0)),
        ):
            found = house.node.store.ledger.balance(account)
            assert found is not None
            pending = found.debits_pending, found.credits_pending
            assert pending == expected, f"{end}: pending at {house.roles}: {pending}"

    def _check_app(self, end: str, ceibo: str) -> None:
        """Rule R12: the user is told what became of his money, and nothing that did not happen."""
        whats = {what for what, _, _ in self.ceibo.app(self.holder.card)}
        due = {"CAPTURADA": "approved", "LIBERADA": "released", "compensated": "annulled"}
        assert due.get(ceibo, "") in {"", *whats}, f"{end}: the app was told {whats}"
        assert "approved" not in whats or ceibo in ("CAPTURADA", "compensated"), f"{end}: {whats}"

    def _hold(self, trace: int) -> Any:
        sicoop = self.sicoop.at_sicoop(self.sicoop.reference(trace))
        return (
            None
            if sicoop is None or not sicoop.operation
            else self.ceibo.at_ceibo(sicoop.operation)
        )


def _no_event(*_: Any) -> None:
    pass
