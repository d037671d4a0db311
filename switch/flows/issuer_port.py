"""The way from sicoop to a ceibo in another process: its messages as ISO 8583 over one link.

A hold leaves once its operation is durable, and is answered through `Sicoop.on_issuer_answer`; a
link that is down declines it at once, certain that nothing was sent. Captures, releases and
annulments are owed until the issuer has decided about them, one message per operation at a time.
"""

from collections.abc import Callable

import msgspec

from protocols.iso8583.ceibo import (
    ElementFault,
    holder_elements,
    issuer_answer,
    issuer_request,
    request_elements,
    state_elements,
)
from protocols.iso8583.connection import Event, Received, SignedOn
from protocols.iso8583.reply import key_told, reply
from protocols.messages import (
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
    IssuerStatus,
)
from switch.calendar import Calendar
from switch.config import Budgets
from switch.flows.issuers import UNAVAILABLE
from switch.flows.nonces import NonceBook
from switch.flows.remote import (
    NO_DECISION,
    UNSENT,
    AlarmClock,
    Debts,
    Outgoing,
    Turns,
    Wire,
)
from switch.flows.sicoop import Sicoop
from switch.flows.step import Origin, Step

HOLD = "hold"
HOLDER = "holder"

Token = tuple[str, str, str]  # what was asked, the flow's key, the operation's number


class IssuerPort:
    """One issuer behind a link; also the link's handler, and a destination of the gate."""

    def __init__(
        self,
        *,
        name: str,
        node: Turns,
        sicoop: Sicoop,
        debts: Debts,
        nonces: NonceBook,
        calendar: Calendar,
        budgets: Budgets,
        answer_s: float,
        events: Callable[[Step, str, Event], None],
    ) -> None:
        self.name = name
        self._events = events
        self._node = node
        self._sicoop = sicoop
        self._debts = debts
        self._nonces = nonces
        self._calendar = calendar
        self._budgets = budgets
        self._answer_s = answer_s
        self._wire: Wire | None = None
        self._unsent: list[Outgoing] = []
        self._alarm_clock = AlarmClock(name)
        self.recovering = False
        self.stopping = False

    def reconfigure(self, budgets: Budgets, answer_s: float) -> None:
        """Wait otherwise for the answers of what is sent from now on."""
        self._budgets, self._answer_s = budgets, answer_s

    def attach(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def up(self) -> bool:
        return self._wire is not None and self._wire.up

    # ---- for sicoop

    def ask(
        self,
        step: Step,
        message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder,
        key: str,
    ) -> IssuerAnswer | HolderAnswer | None:
        match message:
            case IssuerHold():
                return self._hold(step, message, key) if self.up else UNAVAILABLE
            case IssuerHolder():
                if not self.up:
                    return HolderAnswer("91")
                step.send(self, Outgoing(HOLDER, key, *holder_elements(message)))
            case _:
                self._debts.owe(key, step.mono_ns, sent=int(self.recovering))
        return None

    def _hold(self, step: Step, m: IssuerHold, key: str) -> IssuerAnswer | None:
        sealed = ""
        if isinstance(m.token, str):
            try:
                sealed = self._nonces.seal(step, m.token, m.operation)
            except LookupError:
                step.alarm("no_data_key", self.name)
                return UNAVAILABLE
        now = self._calendar.local(step.now_ns).compact[4:] + self._calendar.local_time(step.now_ns)
        mti, elements = request_elements(m, token_hex=sealed, local=now)
        step.send(self, Outgoing(HOLD, key, mti, elements))
        return None

    def forward(self, step: Step) -> None:
        """Send what is owed and due; called at the end of each step."""
        for key, attempt in self._debts.due(step.mono_ns):
            message = self._sicoop.debt(key)
            if message is None:
                self._debts.paid(key, step.mono_ns)
                continue
            what = _what(message)
            mti, elements = request_elements(message, repeat=attempt > 1)
            step.send(self, Outgoing(what, key, mti, elements))
        self._alarm_clock.set(step, self._debts.next_ns)

    # ---- destination of the reply gate: what arrives here is durable

    def ready(self, message: Outgoing) -> None:
        budget_s = self._answer_s
        if message.what in (HOLD, HOLDER):
            budget_s = self._budgets.sicoop_s
        operation = str(message.elements.get("37", ""))
        token = (message.what, message.key, operation)
        assert self._wire is not None, "nothing is sent before the link is known"
        try:
            refused = self._wire.request(
                message.mti, message.elements, token=token, budget_s=budget_s
            )
        except ValueError:  # a field that the dialect has no form for, such as a made-up card
            refused = "form"
        if refused:
            self._unsent.append(message)

    def flush(self) -> None:
        assert self._wire is not None
        self._wire.flush()
        if not self._unsent:
            return
        unsent, self._unsent = self._unsent, []
        step = self._node.begin()
        for message in unsent:
            self.on_lost(step, (message.what, message.key, ""), UNSENT)
        self._node.end(step)

    # ---- handler of the link

    def on_answer(self, step: Step, token: Token, received: Received) -> None:
        """The issuer has answered; each request at most once."""
        what, key, operation = token
        message = received.message
        self._node.taken(request=False)
        try:
            answer = issuer_answer(message)
            if isinstance(answer, IssuerAnswer) and (known := key_told(message, answer.code)):
                answer = msgspec.structs.replace(answer, key=known)
        except ElementFault:
            answer = None
        if answer is None or message.get("37", operation) != operation:
            step.alarm("answer_unreadable", key, what)
            self.on_lost(step, token, "garbled")
        elif what == HOLDER:
            told = answer if isinstance(answer, HolderAnswer) else HolderAnswer("91")
            self._sicoop.on_holder_answer(step, key, told)
        elif not isinstance(answer, IssuerAnswer):
            self.on_lost(step, token, "garbled")
        elif what == HOLD:
            self._sicoop.on_issuer_answer(step, key, answer)
        else:
            self._owed_answered(step, what, key, answer, str(message.get("39", "")))

    def _owed_answered(
        self, step: Step, what: str, key: str, answer: IssuerAnswer, code: str
    ) -> None:
        if code in NO_DECISION:
            self._failed(step, what, key)
            return
        self._debts.paid(key, step.mono_ns)
        self._sicoop.on_issuer_answer(step, key, answer, what)
        if key not in self._debts and self._sicoop.debt(key) is not None:
            self._debts.owe(key, step.mono_ns)  # another debt than the one that was answered

    def _failed(self, step: Step, what: str, key: str) -> None:
        if self._debts.failed(key, step.mono_ns):
            step.alarm("owed_stuck", key, what)

    def on_lost(self, step: Step, token: Token, reason: str) -> None:
        """No answer will come. What may have had an effect is of unknown outcome: it is undone."""
        what, key, _ = token
        self._node.taken(request=False)
        if what == HOLDER:
            self._sicoop.on_holder_answer(step, key, HolderAnswer("91"))
        elif what != HOLD and reason == UNSENT:
            self._debts.unsent(key, step.mono_ns)
        elif what != HOLD:
            self._failed(step, what, key)
        elif reason == UNSENT:
            self._sicoop.on_issuer_answer(step, key, UNAVAILABLE)
        else:
            # Perhaps the issuer holds the amount, and nobody knows (P06): it is released.
            step.alarm("orphan_hold", key, reason)
            self._sicoop.on_deadline(step, HOLD, key)

    def on_request(self, step: Step, received: Received, origin: Origin) -> None:
        """The issuer asks for the state of an operation."""
        self._node.taken(request=True)
        try:
            request = issuer_request(received.message, now_ns=step.now_ns)
            if not isinstance(request, IssuerStatus):
                raise ElementFault("mti", "12")
        except ElementFault as fault:
            step.reply(origin, reply(received, {"39": fault.code}))
            return
        state = self._sicoop.state_of(request.network, request.operation)
        step.reply(origin, reply(received, state_elements(state)))

    def on_event(self, step: Step, event: Event) -> None:
        """Network management that is more than a sign of life."""
        self._events(step, self.name, event)

    def on_up(self, step: Step) -> None:
        self._debts.up(step.mono_ns)
        self._events(step, self.name, SignedOn())

    def on_down(self, step: Step) -> None:
        self._debts.down()
        if not self.stopping:
            step.alarm("link_down", self.name)


def _what(message: IssuerCapture | IssuerRelease) -> str:
    """What is owed, by the name that sicoop keeps it under."""
    if isinstance(message, IssuerCapture):
        return "capture"
    return "annul" if message.reason == "annulment" else "release"
