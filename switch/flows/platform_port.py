"""The way from red to a sicoop in another process: one port for each network of ours.

A hold leaves once its operation is durable. A link that is down refuses it at once, certain that
nothing was sent: then nothing is owed either. Confirmations, reversals and annulments are owed
until sicoop has decided about them, one message per operation at a time.
"""

from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import UNSET

from protocols.messages import (
    AnnulRegistered,
    Confirm,
    Hold,
    HolderAnswer,
    Message,
    NetworkAnswer,
    NetworkHolder,
    NetworkRequest,
    Reverse,
    Status,
    StatusAnswer,
)
from switch.config import Budgets
from switch.flows.red import NOT_SENT, Red
from switch.flows.remote import NO_DECISION, UNSENT, AlarmClock, Debts, Turns
from switch.flows.states import DESCONOCIDA
from switch.flows.step import Origin, Step

HOLD = "hold"
HOLDER = "holder"
STATUS = "status"
_UNREACHABLE = HolderAnswer("91")

Token = tuple[str, str, str]  # what was asked, our key, the reference it is about


class Passing(NamedTuple):
    """An operation that was on its way natively and is handed over, as `core_ext._relay` has it.

    `confirms`: it is registered, and sicoop is to be told; else `hold` is the message that asks.
    `session`, `id`: by which the message leaves, or has left. Instants are of the monotonic clock:
    of its step; of the moment it was durable, and in which it left, 0 while neither.
    """

    network: str
    reference: str
    confirms: bool
    origin: Origin | None
    trace: int
    hold: bytes
    session: Any
    id: int
    asked_ns: int
    ready_ns: int
    sent_ns: int

    def __repr__(self) -> str:
        return f"Passing({self.reference})"  # the hold has a code in it


class SessionWire(Protocol):
    """The sessions of one network with sicoop."""

    @property
    def up(self) -> bool: ...

    def request(self, message: NetworkRequest, *, token: Any, budget_s: float) -> str:
        """Send with the next `flush`. "" or why it is refused: nothing was sent then."""
        ...

    def adopt(
        self, message: NetworkRequest, passing: Passing, *, token: Any, budget_s: float
    ) -> None:
        """Wait for the answer of a request that has left natively."""
        ...

    def flush(self) -> None: ...


class _Outgoing:
    """A request on its way through the reply gate."""

    __slots__ = ("message", "token")

    def __init__(self, token: Token, message: NetworkRequest) -> None:
        self.token = token
        self.message = message


class Platforms:
    """red's platform where it is played elsewhere: the port of each network."""

    forwards = True

    def __init__(self) -> None:
        self.ports: dict[str, PlatformPort] = {}

    def ask(
        self, step: Step, network: str, message: NetworkRequest, *, key: str = ""
    ) -> NetworkAnswer | StatusAnswer | HolderAnswer | None:
        port = self.ports.get(network)
        if port is not None:
            return port.ask(step, message, key)
        if isinstance(message, Hold):
            return NOT_SENT
        return _UNREACHABLE if isinstance(message, NetworkHolder) else None

    def adopt(self, step: Step, given: tuple[Any, ...]) -> None:
        """Go on with an operation that the native relay hands over; see `Passing`."""
        self.ports[given[0]].adopt(step, given)

    def forward(self, step: Step) -> None:
        for port in self.ports.values():
            port.forward(step)


class PlatformPort:
    """The sicoop of one network; also its link's handler, and a destination of the gate."""

    def __init__(
        self, network: str, *, node: Turns, red: Red, debts: Debts, budgets: Budgets
    ) -> None:
        self.network = network
        self._node = node
        self._red = red
        self._debts = debts
        self._budget_s = budgets.red_s
        self._wire: SessionWire | None = None
        self._unsent: list[_Outgoing] = []
        self._waiting: dict[str, Status] = {}  # questions of recovery, until the link is up
        self._alarm_clock = AlarmClock(f"platform-{network}")
        self.recovering = False
        self.stopping = False

    def reconfigure(self, budgets: Budgets) -> None:
        """Wait otherwise for the answers of what is sent from now on."""
        self._budget_s = budgets.red_s

    def attach(self, wire: SessionWire) -> None:
        self._wire = wire

    @property
    def up(self) -> bool:
        return self._wire is not None and self._wire.up

    # ---- for red

    def ask(
        self, step: Step, message: NetworkRequest, key: str
    ) -> NetworkAnswer | StatusAnswer | HolderAnswer | None:
        match message:
            case Hold():
                if not self.up:
                    return NOT_SENT
                self._send(step, HOLD, key, message.reference, message)
            case NetworkHolder():
                if not self.up:
                    return _UNREACHABLE
                self._send(step, HOLDER, key, "", message)
            case Status():
                if self.up:
                    self._send(step, STATUS, key, message.reference, message)
                else:
                    self._waiting[key] = message
            case _:
                self._debts.owe(key, step.mono_ns, sent=int(self.recovering))
        return None

    def _send(
        self, step: Step, what: str, key: str, reference: str, message: NetworkRequest
    ) -> None:
        step.send(self, _Outgoing((what, key, reference), message))

    def adopt(self, step: Step, given: tuple[Any, ...]) -> None:
        """Go on with an operation that was on its way natively: in memory all is as it would be
        had it been ours from the beginning, and its record is the same anyway."""
        passing = Passing(*given)
        key, message = passing.reference, _message(passing)
        token = ("confirm" if passing.confirms else HOLD, key, key)
        if not passing.confirms:
            self._red.adopt(step, key, passing.origin, passing.trace, passing.asked_ns)
        if passing.sent_ns:
            assert self._wire is not None, "it has left by it"
            if passing.confirms:
                self._debts.owe_sent(key, passing.asked_ns)
            self._wire.adopt(message, passing, token=token, budget_s=self._budget_s)
        elif passing.confirms:
            self._debts.owe(key, step.mono_ns)
        else:
            step.send(self, _Outgoing(token, message))

    def forward(self, step: Step) -> None:
        """Send what is owed and due; called at the end of each step."""
        if self._waiting and self.up:
            waiting, self._waiting = self._waiting, {}
            for key, question in waiting.items():
                self._send(step, STATUS, key, question.reference, question)
        for key, _ in self._debts.due(step.mono_ns):
            debt = self._red.debt(key)
            if debt is None:
                self._debts.paid(key, step.mono_ns)
            else:
                message = debt[1]
                self._send(step, _what(message), key, message.reference, message)
        self._alarm_clock.set(step, self._debts.next_ns)

    # ---- destination of the reply gate: what arrives here is durable

    def ready(self, message: _Outgoing) -> None:
        assert self._wire is not None, "nothing is sent before the link is known"
        if self._wire.request(message.message, token=message.token, budget_s=self._budget_s):
            self._unsent.append(message)

    def flush(self) -> None:
        assert self._wire is not None
        self._wire.flush()
        if not self._unsent:
            return
        unsent, self._unsent = self._unsent, []
        step = self._node.begin()
        for message in unsent:
            self.on_lost(step, message.token, UNSENT)
        self._node.end(step)

    # ---- handler of the link

    def on_answer(self, step: Step, token: Token, message: Message) -> None:
        """sicoop has answered; each request at most once."""
        what, key, reference = token
        self._node.taken(request=False)
        if what == STATUS:
            state = message.state if isinstance(message, StatusAnswer) else DESCONOCIDA
            code = message.code if isinstance(message, StatusAnswer) else UNSET
            self._red.on_platform_state(step, key, state, code)
        elif what == HOLDER:
            told = message if isinstance(message, HolderAnswer) else _UNREACHABLE
            self._red.on_platform_answer(step, key, told, HOLDER)
        elif not isinstance(message, NetworkAnswer):
            self.on_lost(step, token, "garbled")
        elif what == HOLD:
            self._red.on_platform_answer(step, key, message)
        elif message.code in NO_DECISION:
            self._failed(step, what, key)
        else:
            self._debts.paid(key, step.mono_ns)
            self._red.on_platform_answer(step, reference, message, what)
            if key not in self._debts and self._red.debt(key) is not None:
                self._debts.owe(key, step.mono_ns)

    def _failed(self, step: Step, what: str, key: str) -> None:
        if self._debts.failed(key, step.mono_ns):
            step.alarm("owed_stuck", key, what)

    def on_lost(self, step: Step, token: Token, reason: str) -> None:
        """No answer will come. A hold that left is of unknown outcome: it is reversed."""
        what, key, _ = token
        self._node.taken(request=False)
        if what == HOLDER:
            self._red.on_platform_answer(step, key, _UNREACHABLE, HOLDER)
        elif what == STATUS:
            self._red.on_platform_state(step, key, DESCONOCIDA, UNSET)
        elif what == HOLD and reason == UNSENT:
            self._red.on_platform_answer(step, key, NOT_SENT)
        elif what == HOLD:
            self._red.on_deadline(step, HOLD, key)
        elif reason == UNSENT:
            self._debts.unsent(key, step.mono_ns)
        else:
            self._failed(step, what, key)

    def on_request(self, step: Step, message: Status, origin: Origin) -> None:
        """sicoop asks for the state of an operation in our register."""
        self._node.taken(request=True)
        own = message.reference[:4] == self.network
        state = self._red.state(message.reference) if own else DESCONOCIDA
        step.reply(origin, StatusAnswer(message.id, state, message.reference))

    def on_up(self, step: Step) -> None:
        self._debts.up(step.mono_ns)

    def on_down(self, step: Step) -> None:
        self._debts.down()
        if not self.stopping:
            step.alarm("link_down", f"platform-{self.network}")


def _message(passing: Passing) -> Hold | Confirm:
    if passing.confirms:
        return Confirm(passing.id, passing.reference, "")
    return msgspec.msgpack.decode(passing.hold, type=Hold)


def _what(message: NetworkRequest) -> str:
    """What is owed, by the name that red keeps it under."""
    match message:
        case Confirm():
            return "confirm"
        case Reverse():
            return "reverse"
        case _:
            assert isinstance(message, AnnulRegistered), "nothing else is owed"
            return "annul"
