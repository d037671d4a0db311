"""Both layouts behind one face, so that an acceptance case is written once and run in each.

`Spread` is three nodes that look like one `House`; `Joined` is one node that looks like `Apart`.
Within one process roles call each other. There a message is "lost" or "late" where the way between
two roles answers later instead of at once, as ways to other processes do; what a stop loses is lost
for all three roles.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from protocols.messages import (
    AnnulRegistered,
    Confirm,
    Hold,
    IssuerCapture,
    IssuerHold,
    IssuerRelease,
    Reverse,
    Status,
    StatusAnswer,
)
from switch.config import Budgets
from switch.flows.platform_port import PlatformPort
from switch.flows.registry import account_id
from switch.net.saf import StoreAndForward
from switch.ops.audit import AuditEvent
from tests.apart import Apart, Flight, Hop, SessionHop, deliver, only
from tests.house import NETWORK, TERMINAL, House, Told, Turn
from tests.offices import Office

TOGETHER, APART = "together", "apart"
LAYOUTS = (TOGETHER, APART)
_ROLES = ("red", "sicoop", "ceibo")
_WHATS = {
    Hold: ("hold",), Confirm: ("confirm",), Reverse: ("reverse",), AnnulRegistered: ("annul",),
    IssuerHold: ("hold",), IssuerCapture: ("capture",), IssuerRelease: ("release", "annul"),
}  # fmt: skip
_AT_SICOOP = ("maintenance", "conciliation_", "window_", "resolve", "case_")


# ---- three nodes as one house --------------------------------------------------------------------


class HeldWay:
    """The hop of a `Spread` whose messages of some kinds are carried by hand; the same face as
    `DeferredPlatform` and `DeferredIssuer`."""

    def __init__(self, world: Apart, hop: Hop, kinds: tuple[type, ...]) -> None:
        self._world = world
        self._hop = hop
        self._whats = {what for kind in kinds for what in _WHATS[kind]}
        self._before = len(hop.history)
        hop.policy = lambda flight: "hold" if flight.what in self._whats else "deliver"

    @property
    def sent(self) -> list[Flight]:
        return [f for f in self._hop.history[self._before :] if f.what in self._whats]

    def process(self, index: int = -1) -> Any:
        """The far side decides; who asked is not told yet."""
        flight = self.sent[index]
        self._hop.process(flight)
        self._world.run()
        answer = flight.answer
        elements = getattr(answer, "elements", None)
        return answer if elements is None else SimpleNamespace(code=elements["39"])

    def tell(self, index: int = -1) -> None:
        self._hop.tell(self.sent[index])
        self._world.run()

    def deliver(self, index: int = -1) -> Any:
        answer = self.process(index)
        self.tell(index)
        return answer


class _Ledgers:
    """The ledger of whoever keeps the account, the card's issuer or sicoop."""

    def __init__(self, world: Apart) -> None:
        self._ceibo = world.ceibo.node.store.ledger
        self._sicoop = world.sicoop.node.store.ledger
        names = ("net:0012", "net:0013", "net:0099", "issuer:ceibo")
        self._here = {account_id(f"sicoop:PYG:{name}") for name in names}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ceibo, name)  # holds, codes, tries and usage of cards

    def balance(self, account: bytes) -> Any:
        return (self._sicoop if account in self._here else self._ceibo).balance(account)

    def counts(self) -> dict[str, int]:
        first, second = self._sicoop.counts(), self._ceibo.counts()
        return {name: first[name] + second[name] for name in first}

    def totals(self) -> dict[Any, Any]:
        both = enumerate((self._sicoop, self._ceibo))
        return {(i, book): sums for i, ledger in both for book, sums in ledger.totals().items()}

    def digest(self) -> Any:
        return self._sicoop.digest(), self._ceibo.digest()


class _Nodes:
    """Each part of a node as the role that has it knows it."""

    def __init__(self, world: Apart) -> None:
        red, sicoop, ceibo = world.red.node, world.sicoop.node, world.ceibo.node
        self._world = world
        self.red, self.sicoop, self.ceibo = red.red, sicoop.sicoop, ceibo.ceibo
        self.calendar = red.calendar
        self.registry, self.vault, self.desk = ceibo.registry, ceibo.vault, ceibo.desk
        self.limits, self.conciliation = sicoop.limits, sicoop.conciliation
        self.issuers, self.config = sicoop.issuers, sicoop.config
        self.store = SimpleNamespace(
            ledger=_Ledgers(world),
            records=SimpleNamespace(
                digest=lambda: [h.node.store.records.digest() for h in world.houses.values()]
            ),
        )

    @property
    def alarms(self) -> dict[str, int]:
        """Of all three; the links count answers that nobody waited for."""
        found: dict[str, int] = {}
        for house in self._world.houses.values():
            for name, count in house.node.alarms.items():
                found[name] = found.get(name, 0) + count
        if self._world.late:
            found["late_answer"] = found.get("late_answer", 0) + self._world.late
        return found


class _Wide(Apart):
    """Three nodes of several networks: each has a session of its own."""

    def add_network(self, network: str) -> None:
        hop = SessionHop(self, network)
        hop.port = PlatformPort(
            network, node=self.red.node, red=self.red.node.red, debts=StoreAndForward(),
            budgets=Budgets(),
        )  # fmt: skip
        hop.port.attach(hop)
        self.red.node.platforms.ports[network] = hop.port
        hop.up = True
        self.hops = (*self.hops, hop)
        with self.red.step() as step:
            hop.port.on_up(step)


class Spread(House):
    """red, sicoop and ceibo apart, with the hands and eyes of a house: each hand works at the role
    that a person of that trade works at, each eye looks where the truth is kept."""

    def __init__(self, directory: Path, **values: Any) -> None:
        self.directory = directory
        self.world = _Wide(directory / "nodes", **values)
        self.clock = self.world.clock
        self.config = self.world.sicoop.config
        self.notices = self.world.red.notices
        self.holder = self.world.ceibo.holder
        self._start = {self.holder.card: self.holder.balance}
        self._start_position = 0
        self._trace, self._documents = 0, 4_600_000
        self._projector = None

    @property
    def node(self) -> Any:  # type: ignore[override]
        return _Nodes(self.world)

    # ---- lives

    def close(self) -> None:
        self.world.close()

    def _all(self) -> list[Any]:
        return [self.world.houses[role] for role in _ROLES]

    def crash(self) -> None:
        """All three are killed, and come back."""
        for role in _ROLES:
            self.world.kill(role)
        for hop in self.world.hops:
            hop.policy = deliver
        for role in reversed(_ROLES):
            self.world.start(role)
        self.world.connect()

    def reopen(self, toml: str | None = None, limits: str = "") -> None:
        for hop in self.world.hops:
            self.world.disconnect(hop)
            hop.policy = deliver
        for house in self._all():
            house.reopen(toml, limits)
        self.config = self.world.sicoop.config
        self.world.connect()

    # ---- hands

    def step(self) -> Turn:
        """A turn of the issuer."""
        return self.world.ceibo.step()

    def do_all(self, commands: Iterable[tuple[str, dict[str, Any]]]) -> list[Any]:
        found = []
        for command, values in commands:
            found.append(self._do(command, values))
            self.world.run()
        return found

    def _do(self, command: str, values: dict[str, Any]) -> Any:
        world = self.world
        at_ceibo = str(values.get("account", "")).startswith("card:") or (
            command == "resolve" and "network" in values
        )
        if command.startswith("card_") or at_ceibo:
            return world.ceibo.do(command, **values)
        if command.startswith(_AT_SICOOP):
            return world.sicoop.do(command, **values)
        answer, *_ = [house.do(command, **values) for house in self._all()]
        if command == "network_add":
            world.add_network(values["number"])
        return answer

    def send(self, requests: list[tuple[str, Any]]) -> list[Told]:
        found = self.world.red.send(requests)
        self.world.run()
        return found

    def network(self, message: Any, number: str = NETWORK) -> Told:
        told = self.world.sicoop.network(message, number)
        self.world.run()
        return told

    def defer_platform(self, *kinds: type) -> Any:
        return HeldWay(self.world, self.world.sessions, kinds or (Hold,))

    def defer_issuer(self, *kinds: type) -> Any:
        return HeldWay(self.world, self.world.holds, kinds)

    def pass_time(self, seconds: float) -> None:
        """In pieces, so that what falls due on the way is sent and answered meanwhile."""
        self.world.pass_time(seconds, max(1.0, seconds / 100))

    def settle(self) -> None:
        self.world.settle()

    # ---- eyes

    def position(self) -> int:
        return self.world.sicoop.position()

    def reserved(self) -> int:
        return self.world.sicoop.reserved()

    def register(self, trace: int, terminal: str = TERMINAL, date: str = "") -> Any:
        return self.world.red.register(trace, terminal, date)

    def at_sicoop(self, reference: str) -> Any:
        return self.world.sicoop.at_sicoop(reference)

    def at_ceibo(self, operation: str) -> Any:
        return self.world.ceibo.at_ceibo(operation)

    def app(self, card: str) -> list[tuple[str, int, str]]:
        return self.world.ceibo.app(card)

    def read_model(self) -> Path:
        return self.world.sicoop.read_model()

    def audit(self) -> list[AuditEvent]:
        return sorted(
            (event for house in self._all() for event in house.audit()), key=lambda e: e.at_ns
        )

    def sound(self) -> None:
        for house in self._all():
            house.sound()


class SpreadOffice(Office):
    """Conciliation with the roles apart: files are made where their role is, taken in at sicoop."""

    def __init__(self, house: Spread) -> None:
        super().__init__(house.world.sicoop)
        self._spread = house

    def make(self, role: Any = "red", **values: Any) -> Path:
        other = Office(self._spread.world.houses[role])
        other.directory = self.directory
        return other.make(role, **values)

    def read(self, path: Path, **values: Any) -> dict[str, Any]:
        try:
            return super().read(path, **values)
        finally:
            self._spread.world.run()

    def open_cases(self) -> dict[str, str]:
        """Of sicoop, and of ceibo under the names of its holds."""
        return super().open_cases() | Office(self._spread.world.ceibo).open_cases()

    def resolve(self, reference: str, outcome: str, **fields: Any) -> Any:
        office = Office(self._spread)
        return office.resolve(reference, outcome, **fields)


def office_of(house: House) -> Office:
    """The back office of a house of either layout."""
    return SpreadOffice(house) if isinstance(house, Spread) else Office(house)


def nodes_of(house: House) -> dict[str, House]:
    """The house of each role: three of them, or one three times."""
    return dict(house.world.houses) if isinstance(house, Spread) else dict.fromkeys(_ROLES, house)


def all_of(house: House) -> list[House]:
    """Every house there is, once."""
    return list(dict.fromkeys(nodes_of(house).values()))


@contextmanager
def stopped(house: House) -> Iterator[None]:
    """Everything ended in good order, and started again afterwards."""
    if isinstance(house, Spread):
        for hop in house.world.hops:
            house.world.disconnect(hop)
    for node in all_of(house):
        node.close()
    yield
    for node in all_of(house):
        node.open()
    if isinstance(house, Spread):
        house.world.connect()


def silence(house: House) -> None:
    """The networks do not answer what sicoop asks them by itself."""
    if isinstance(house, Spread):
        house.world.status.policy = only("status", "hold")


# ---- one node as three ---------------------------------------------------------------------------


class CallHop(Hop):
    """The calls of one role to another in one process; `policy` says which are answered at once."""

    def taken(self, step: Any, what: str, token: Any, message: Any) -> Any:
        """Answer at once, or later, or never, as the policy has it."""
        flight = Flight(what, token, message, self.now_ns + 25 * 10**9)
        self.history.append(flight)
        if self.policy(flight) == "deliver":
            flight.seen = flight.told = True
            flight.answer = self._call(step, flight)
            return flight.answer
        self.flights.append(flight)
        return None

    def lose(self, flight: Flight, reason: str = "lost") -> None:
        """Nobody is told: the asking role watches its own time."""
        if flight in self.flights:
            self.flights.remove(flight)

    def expire(self) -> None:
        for flight in list(self.flights):
            if flight.deadline_ns <= self.now_ns and flight.seen:
                self.lose(flight)

    def _hear(self, step: Any, flight: Flight, origin: Any) -> None:
        flight.answer = self._call(step, flight)

    def _call(self, step: Any, flight: Flight) -> Any:
        raise NotImplementedError


class PlatformCalls(CallHop):
    """red calls sicoop."""

    forwards = False

    def ask(self, step: Any, network: str, message: Any, *, key: str = "") -> Any:
        what = "annul" if isinstance(message, AnnulRegistered) else str(_tag(message))
        return self.taken(step, what, (network, key), message)

    def _call(self, step: Any, flight: Flight) -> Any:
        network, key = flight.token
        sicoop = self._world.houses["sicoop"].node.sicoop
        return sicoop.ask(step, network, flight.message, key=key)

    def _answered(self, step: Any, flight: Flight) -> None:
        if not isinstance(flight.answer, StatusAnswer):
            red = self._world.houses["red"].node.red
            red.on_platform_answer(step, flight.message.reference, flight.answer, flight.what)


class IssuerCalls(CallHop):
    """sicoop calls ceibo."""

    @property
    def closed(self) -> bool:
        return bool(self._world.houses["sicoop"].node.issuers.closed)

    def choose(self, *_: Any, **__: Any) -> str:
        return ""

    def forwards(self, link: str) -> bool:
        return False

    def ask(self, step: Any, message: Any, key: str = "", link: str = "") -> Any:
        annuls = getattr(message, "reason", "") == "annulment"
        what = "annul" if annuls else str(_tag(message)).removeprefix("issuer_")
        return self.taken(step, what, (what, key), message)

    def _call(self, step: Any, flight: Flight) -> Any:
        return self._world.houses["ceibo"].node.ceibo.ask(step, flight.message)

    def _answered(self, step: Any, flight: Flight) -> None:
        sicoop = self._world.houses["sicoop"].node.sicoop
        reference = sicoop.reference_of(flight.message.operation)
        assert reference is not None
        sicoop.on_issuer_answer(step, reference, flight.answer, flight.what)


class _NetworkElsewhere(Hop):
    """What sicoop asks of networks by itself: only those in other processes are asked."""

    def ask(self, step: Any, network: str, message: Status) -> bool:
        self.history.append(Flight("status", network, message, self.now_ns))
        return True


def _tag(message: Any) -> Any:
    return type(message).__struct_config__.tag


class Joined(Apart):
    """red, sicoop and ceibo in one process, with the face of `Apart`: what stops one stops all."""

    def __init__(self, directory: Path, **values: Any) -> None:
        super().__init__(directory, _ROLES, **values)

    def _make_hops(self) -> None:
        self.sessions = PlatformCalls(self, "red", "sicoop")
        self.holds = IssuerCalls(self, "sicoop", "ceibo")
        self.status = _NetworkElsewhere(self, "sicoop", "red")
        self.hops = (self.sessions, self.holds)

    def attach(self, roles: tuple[str, ...], node: Any) -> None:
        node.red.attach(self.sessions)
        node.sicoop.attach(node.red.on_platform_answer, issuer=self.holds, networks=self.status)

    @property
    def late(self) -> int:
        return int(self.red.node.alarms.get("late_answer", 0))

    def connect(self) -> None:
        for hop in self.hops:
            hop.up = True
        self.run()

    def start(self, role: str) -> None:
        super().start(role)
        self.connect()
