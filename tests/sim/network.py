"""Links between roles in different nodes: real ports and codecs, simulated wires.

A link is one connection at a time. Every message on it has fates of its own: it is lost, comes
once or twice, in time or late. A partition swallows everything, half-open is one direction only;
either is noticed when it has lasted as long as missed echoes take. A connection that ends takes
the answers under way with it; requests may still have reached the other side.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from protocols.iso8583.connection import Connection, Received
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.times import transmission_time
from protocols.messages import NetworkRequest, Status, StatusAnswer
from protocols.session import NETWORK as VOCABULARY
from protocols.session.vocabulary import decoder, encoder
from switch.clock import iso_ms
from switch.config import LinkSettings
from switch.flows.issuer_desk import IssuerDesk
from switch.flows.issuer_port import IssuerPort
from switch.flows.nonces import NonceBook
from switch.flows.platform_port import PlatformPort
from switch.flows.step import Step
from switch.net.saf import StoreAndForward
from switch.routing import Route, Router
from tests.house import NETWORK
from tests.sim.faults import BANK, BANK_FROM, NS

if TYPE_CHECKING:
    from tests.sim.world import Place, World

SILENCE_S = 60.0  # until a dead connection is noticed by its echoes
HOST = "sicoop"
ROUTES = (Route((BANK,), operations=("cash_out", "deposit"), amount_min=BANK_FROM),)
DIALECT = Dialect.load("ceibo")
FRAMING = Framing.from_dict({})
KEYS = (bytes(range(16)), bytes(range(32)), bytes(range(1, 33)))
UNDONE = ("00", "21", "25")
HELD = ("ENVIADA", "RESERVADA", "RESPONDIDA", "CONFIRMADA", "CAPTURADA")


class Finding(Exception):
    """Something that must not be."""


class Flight:
    """One request under way; `answered` once its sender knows how it ended."""

    __slots__ = ("back", "epoch", "number", "payload", "token", "what")

    def __init__(
        self, number: int, what: str, token: Any, payload: Any, epoch: int, back: bool
    ) -> None:
        self.number = number
        self.what = what
        self.token = token
        self.payload = payload
        self.epoch = epoch
        self.back = back


class Answering:
    """Destination of the far node's gate for the answer to one flight."""

    def __init__(self, link: "Link", flight: Flight) -> None:
        self._link = link
        self._flight = flight

    def ready(self, message: Any) -> None:
        self._link.answered(self._flight, message)

    def flush(self) -> None:
        pass


class Backwards:
    """The same connection as the far side sees it: it asks the near one."""

    def __init__(self, link: "Link") -> None:
        self._link = link

    @property
    def up(self) -> bool:
        return self._link.up

    def flush(self) -> None:
        pass

    # ISO 8583: ceibo asks sicoop for a state.

    def request(self, mti: str, elements: Any, *, token: Any, budget_s: float) -> str:
        assert isinstance(self._link, IssuerLink)
        return self._link.inquire(mti, elements, token, budget_s)

    # Session: sicoop asks red; also what sicoop knows networks by.

    def ask(self, step: Step, network: str, message: Status) -> bool:
        assert network == NETWORK
        if not self._link.up:
            return False
        step.send(self, message)
        return True

    def ready(self, message: Status) -> None:
        if self._link.up:
            self._link.send("status", None, message, 25.0, back=True)


class Link:
    """What both kinds of links have in common."""

    def __init__(self, world: "World", name: str, near: str, far: str) -> None:
        self.world = world
        self.name = name
        self.near, self.far = near, far
        self.up = False
        self.epoch = 0
        self.swallowed: set[str] = set()  # directions: there, back
        self.muted: set[tuple[str, str]] = set()  # kinds of requests, and directions
        self.sent: list[Flight] = []  # everything that ever left, to be played again
        self.backwards = Backwards(self)
        self._waiting: dict[int, Flight] = {}
        self._dead: set[str] = set()  # keys whose undoing was acknowledged
        self._number = 0
        self._connecting = False

    @property
    def port(self) -> Any:
        raise NotImplementedError

    def attach(self, place: "Place") -> None:
        """Make the ports of a node that is being started."""
        raise NotImplementedError

    # ---- lives

    def connect(self) -> None:
        """Come up as soon as both sides live and reach one another."""
        if self._connecting or self.up or not self.world.apart(self.near, self.far):
            return
        self._connecting = True
        chance = self.world.weather.chance(f"connect {self.name}")
        self.world.time.after(int(chance.choice((0.05, 0.2, 1.5)) * NS), self._try)

    def _try(self) -> None:
        self._connecting = False
        near, far = self.world.places[self.near], self.world.places[self.far]
        if not near.alive or not far.alive or self.swallowed:
            self.connect()
            return
        self.epoch += 1
        self.up = True
        self.world.note(f"{self.name} is up")
        self.made()
        near.turn(self.port.on_up)
        if far.alive:
            far.turn(self.far_up)

    def cut(self, why: str) -> None:
        """The connection ends, and both sides know."""
        if not self.up:
            return
        self.world.note(f"{self.name} is down: {why}")
        self.up = False
        waiting, self._waiting = self._waiting, {}
        near, far = self.world.places[self.near], self.world.places[self.far]
        if near.alive:
            near.turn(self.port.on_down)
        if far.alive:
            far.turn(self.far_down)
        for flight in waiting.values():
            self._lose(flight, "lost")
        self.connect()

    def gone(self, place: "Place") -> None:
        """A node has died; whoever was connected to it finds out."""
        if place in (self.world.places[self.near], self.world.places[self.far]):
            self.cut(f"{place.name} is gone")

    def swallow(self, directions: set[str], for_s: float) -> None:
        """Nothing gets through in these directions for a while; nobody is told at first."""
        self.world.note(f"{self.name} swallows {' and '.join(sorted(directions))}")
        self.swallowed |= directions
        epoch = self.epoch
        if for_s > SILENCE_S:
            self.world.time.after(int(SILENCE_S * NS), lambda: self._silent(epoch))
        self.world.time.after(int(for_s * NS), self.heal)

    def _silent(self, epoch: int) -> None:
        if epoch == self.epoch and self.swallowed:
            self.cut("silence")

    def mute(self, what: str, direction: str, for_s: float) -> None:
        """Only one kind of message, or the answers to it, is lost for a while."""
        self.world.note(f"{self.name}: every {what} is lost on its way {direction}")
        self.muted.add((what, direction))
        self.world.time.after(int(for_s * NS), lambda: self.muted.discard((what, direction)))

    def heal(self) -> None:
        self.swallowed.clear()
        self.connect()

    def made(self) -> None:
        """A connection is new."""

    def far_up(self, step: Step) -> None:
        """The far side's handler, if it has one."""

    def far_down(self, step: Step) -> None:
        """The far side's handler, if it has one."""

    def flush(self) -> None:
        """Everything has left with `request`."""

    # ---- messages

    def send(
        self, what: str, token: Any, payload: Any, budget_s: float, *, back: bool = False
    ) -> str:
        """A request leaves one side for the other."""
        if not self.up:
            return "down"
        self._number += 1
        flight = Flight(self._number, what, token, payload, self.epoch, back)
        self._waiting[flight.number] = flight
        self.sent.append(flight)
        self.world.note(f"{self.name}: {what} {self.about(flight)} leaves")
        self.carry(flight, back, lambda: self._arrive(flight))
        self.world.time.after(int(budget_s * NS), lambda: self._expire(flight))
        return ""

    def carry(self, flight: Flight, back: bool, deliver: Callable[[], None]) -> None:
        """Put a message on the wire; its fates are drawn now, its direction is looked at later."""
        direction = "back" if back else "there"
        fates = self.world.weather.fates(f"{self.name} {direction}")
        if not fates:
            self.world.note(f"{self.name}: a message about {self.about(flight)} is lost")
        for delay_ns in fates:
            self.world.time.after(delay_ns, lambda: self._come(flight, direction, deliver))

    def _come(self, flight: Flight, direction: str, deliver: Callable[[], None]) -> None:
        if direction in self.swallowed or (flight.what, direction) in self.muted:
            self.world.note(f"{self.name}: a message about {self.about(flight)} is swallowed")
        else:
            deliver()

    def _arrive(self, flight: Flight) -> None:
        """The request has got to the other side; that its connection is gone shows in the answer.

        A message of an old connection cannot come over a new one, but what had arrived may be read
        late: half of them are.
        """
        place = self.world.places[self.near if flight.back else self.far]
        if not place.alive:
            return
        if flight.epoch != self.epoch and self.world.weather.chance("old").random() < 0.5:
            return
        self.world.note(f"{self.name}: {flight.what} {self.about(flight)} arrives")
        place.turn(lambda step: self.hear(step, flight, Answering(self, flight)))

    def again(self, flight: Flight) -> None:
        """The same request comes once more, long after; nobody waits for the answer."""
        place = self.world.places[self.near if flight.back else self.far]
        old = Flight(-1, flight.what, flight.token, flight.payload, -1, flight.back)
        place.turn(lambda step: self.hear(step, old, Answering(self, old)))

    def answered(self, flight: Flight, message: Any) -> None:
        """The far node lets an answer out."""
        if not flight.back:
            self._watch(flight, message)
        if flight.epoch != self.epoch or not self.up:
            return
        payload = self.encoded(flight, message)
        self.carry(flight, not flight.back, lambda: self._told(flight, payload))

    def _watch(self, flight: Flight, message: Any) -> None:
        """No hold is ever granted once its undoing was acknowledged."""
        key, code = self.outcome(flight, message)
        self.world.note(f"{self.name}: {flight.what} {self.about(flight)} is answered {code}")
        if flight.what in ("reverse", "release") and code in UNDONE:
            self._dead.add(key)
        elif flight.what == "hold" and key in self._dead and self.held(key):
            raise Finding(f"{self.name}: a hold was granted after its reversal: {key}")

    def _told(self, flight: Flight, payload: Any) -> None:
        if flight.epoch != self.epoch or self._waiting.pop(flight.number, None) is None:
            return
        place = self.world.places[self.far if flight.back else self.near]
        place.turn(lambda step: self.tell(step, flight, payload))

    def _expire(self, flight: Flight) -> None:
        if self._waiting.pop(flight.number, None) is not None:
            self.world.note(f"{self.name}: {flight.what} {self.about(flight)} has no answer")
            self._lose(flight, "timeout")

    def _lose(self, flight: Flight, reason: str) -> None:
        place = self.world.places[self.far if flight.back else self.near]
        if place.alive:
            place.turn(lambda step: self.lost(step, flight, reason))

    # ---- what the kinds of links differ in

    def about(self, flight: Flight) -> str:
        """What a message is about, for the trace."""
        raise NotImplementedError

    def hear(self, step: Step, flight: Flight, origin: Answering) -> None:
        raise NotImplementedError

    def encoded(self, flight: Flight, message: Any) -> Any:
        raise NotImplementedError

    def outcome(self, flight: Flight, message: Any) -> tuple[str, str]:
        """(key, code) of an answer."""
        raise NotImplementedError

    def held(self, key: str) -> bool:
        """The far side holds something for this key, or has captured it."""
        raise NotImplementedError

    def tell(self, step: Step, flight: Flight, payload: Any) -> None:
        raise NotImplementedError

    def lost(self, step: Step, flight: Flight, reason: str) -> None:
        raise NotImplementedError


class SessionLink(Link):
    """red's sessions with sicoop; payloads are encoded messages."""

    _port: PlatformPort | None = None

    @property
    def port(self) -> PlatformPort:
        assert self._port is not None
        return self._port

    def attach(self, place: "Place") -> None:
        node = place.node
        if "sicoop" in place.roles and "red" not in place.roles:
            node.sicoop.attach(networks=self.backwards)
        if "red" in place.roles and "sicoop" not in place.roles:
            self._port = PlatformPort(
                NETWORK, node=node, red=node.red, debts=StoreAndForward(),
                budgets=node.config.budgets,
            )  # fmt: skip
            self._port.attach(self)
            node.platforms.ports[NETWORK] = self._port

    def request(self, message: NetworkRequest, *, token: Any, budget_s: float) -> str:
        changes: dict[str, Any] = {"id": self._number + 1}
        if token[0] == "hold":
            wall_ns = self.world.places[self.near].clock.wall_ns()
            changes["sent_at"] = iso_ms(wall_ns)
        payload = encoder("msgpack")(msgspec.structs.replace(message, **changes))
        return self.send(token[0], token, payload, budget_s)

    def about(self, flight: Flight) -> str:
        reference: str = flight.payload.reference if flight.back else flight.token[2]
        return reference[-6:]

    def hear(self, step: Step, flight: Flight, origin: Answering) -> None:
        if flight.back:
            self.port.on_request(step, flight.payload, origin)
            return
        message = decoder(VOCABULARY, "acceptor", "msgpack")(flight.payload)
        self.world.places[self.far].node.network_request(step, NETWORK, message, origin)

    def encoded(self, flight: Flight, message: Any) -> Any:
        return encoder("msgpack")(message)

    def outcome(self, flight: Flight, message: Any) -> tuple[str, str]:
        return flight.token[2], getattr(message, "code", "")

    def held(self, key: str) -> bool:
        found = self.world.places[self.far].node.sicoop.find(key)
        return found is not None and found.state in HELD

    def tell(self, step: Step, flight: Flight, payload: Any) -> None:
        if flight.back:
            told = msgspec.msgpack.decode(payload, type=StatusAnswer)
            sicoop = self.world.places[self.far].node.sicoop
            sicoop.on_network_state(step, NETWORK, flight.payload.reference, told.state)
            return
        answer = decoder(VOCABULARY, "initiator", "msgpack")(payload)
        self.port.on_answer(step, flight.token, answer)

    def lost(self, step: Step, flight: Flight, reason: str) -> None:
        if not flight.back:
            self.port.on_lost(step, flight.token, reason)


class IssuerLink(Link):
    """sicoop's link with an issuer; payloads are ISO 8583, laid out and MACed by connections."""

    _port: IssuerPort | None = None
    _desk: IssuerDesk | None = None
    _stan = 0

    @property
    def port(self) -> IssuerPort:
        assert self._port is not None
        return self._port

    @property
    def desk(self) -> IssuerDesk:
        assert self._desk is not None
        return self._desk

    def attach(self, place: "Place") -> None:
        node = place.node
        if self.near in place.roles and self.far not in place.roles:
            keys = _keys()
            self._port = IssuerPort(
                name=self.far, node=node, sicoop=node.sicoop, debts=StoreAndForward(),
                nonces=NonceBook(self.far, node.store.records, keys), calendar=node.calendar,
                budgets=node.config.budgets, answer_s=15.0, events=_no_event,
            )  # fmt: skip
            self._port.attach(self)
            node.issuers.ports[self.far] = self._port
            if self.far == BANK:
                node.issuers.router = Router(ROUTES)
        if self.far in place.roles and self.near not in place.roles:
            self._desk = IssuerDesk(
                link=HOST, node=node, ceibo=node.ceibo, fingerprint=node.fingerprint,
                keys=_keys(), settings=LinkSettings(), events=_no_event,
            )  # fmt: skip
            self._desk.attach(self.backwards)
            node.desks[HOST] = self._desk

    def made(self) -> None:
        self._client, self._server = self._connection(True), self._connection(False)
        self._client.sign_on()
        self._server.receive(self._client.output())
        self._client.receive(self._server.output())

    def _connection(self, initiator: bool) -> Connection:
        clock = self.world.places[self.near if initiator else self.far].clock
        return Connection(
            DIALECT, FRAMING, _keys(), initiator=initiator, wall_ns=clock.wall_ns,
            next_stan=self._next_stan,
        )  # fmt: skip

    def _next_stan(self) -> str:
        self._stan = self._stan % 999_999 + 1
        return f"{self._stan:06}"

    def far_up(self, step: Step) -> None:
        self.desk.on_up(step)

    def far_down(self, step: Step) -> None:
        self.desk.on_down(step)

    def request(self, mti: str, elements: Any, *, token: Any, budget_s: float) -> str:
        if not self.up:
            return "down"
        now_ns = self.world.places[self.near].clock.wall_ns()
        own = {**elements, "7": transmission_time(now_ns), "11": self._next_stan()}
        self._client.request(mti, own)
        return self.send(token[0], token, self._client.output(), budget_s)

    def inquire(self, mti: str, elements: Any, token: Any, budget_s: float) -> str:
        if not self.up:
            return "down"
        now_ns = self.world.places[self.far].clock.wall_ns()
        own = {**elements, "7": transmission_time(now_ns), "11": self._next_stan()}
        self._server.request(mti, own)
        return self.send("state", token, self._server.output(), budget_s, back=True)

    def about(self, flight: Flight) -> str:
        return flight.token[-6:] if flight.back else f"{flight.token[1][-6:]} ({flight.token[2]})"

    def hear(self, step: Step, flight: Flight, origin: Answering) -> None:
        ear = self._client if flight.back else self._server
        for event in ear.receive(flight.payload):
            assert isinstance(event, Received), event
            (self.port if flight.back else self.desk).on_request(step, event, origin)

    def encoded(self, flight: Flight, message: Any) -> Any:
        mouth = self._client if flight.back else self._server
        mouth.answer(message.received, message.elements)
        return mouth.output()

    def outcome(self, flight: Flight, message: Any) -> tuple[str, str]:
        return flight.token[2], str(message.elements.get("39", ""))

    def held(self, key: str) -> bool:
        state = self.world.places[self.far].node.ceibo.state(NETWORK, key, HOST)
        return state in ("ACTIVA", "CAPTURADA")

    def tell(self, step: Step, flight: Flight, payload: Any) -> None:
        ear = self._server if flight.back else self._client
        for event in ear.receive(payload):
            assert isinstance(event, Received), event
            (self.desk if flight.back else self.port).on_answer(step, flight.token, event)

    def lost(self, step: Step, flight: Flight, reason: str) -> None:
        (self.desk if flight.back else self.port).on_lost(step, flight.token, reason)


def _keys() -> HostKeys:
    mac, data, zone = KEYS
    return HostKeys.of("aes-cmac", [(1, mac)], [(1, data)], [(1, zone)])


def _no_event(*_: Any) -> None:
    pass
