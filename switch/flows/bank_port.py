"""The way from products to a bank: its questions and debts as ISO 8583 (`bank`) over one link.

A question (0200, or 0100 for a hold) leaves once its step is durable and is answered to its client,
once; a link that is down refuses it at once, certain that nothing was sent. Reversals and advices
are owed until the bank acknowledges them, across restarts, one message per operation at a time. An
inquiry (0600) asks what became of a question; one without an answer is nobody's debt: its client
asks again.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from protocols.iso8583.bank import (
    BankAnswer,
    BankMessage,
    Credit,
    Purchase,
    Reversal,
    bank_answer,
    request_elements,
)
from protocols.iso8583.ceibo import ElementFault, issuer_answer, status_elements
from protocols.iso8583.connection import Event, Received, SignedOn
from protocols.iso8583.dialect import Message
from protocols.iso8583.reply import reply
from protocols.messages import IssuerState, IssuerStatus
from switch.config import LinkSettings
from switch.flows.remote import (
    NO_DECISION,
    UNSENT,
    AlarmClock,
    Debts,
    Outgoing,
    Turns,
    Wire,
)
from switch.flows.step import Origin, Step

QUESTION: Final = "question"
REVERSAL: Final = "reversal"
ADVICE: Final = "advice"
INQUIRY: Final = "inquiry"

# A 0410 acknowledges with these; a 0430 with whatever it says.
_REVERSED: Final = frozenset(("00", "21", "25"))
_NO_FORM: Final = "form"

Token = tuple[str, str, str, str]  # the client's role, what was asked, its key, DE37
Owed = Reversal | Purchase | Credit


class BankClient(Protocol):
    """A product that asks a bank. Keys are its own: short texts without "|"."""

    @property
    def role(self) -> str: ...

    def owed(self, key: str) -> Owed | None:
        """What it owes the bank under a key, read from its records; None: nothing any more.

        A `Reversal` goes as 0420 (0400), anything else as an advice, 0220.
        """

    def on_bank_answer(
        self, step: Step, what: str, key: str, answer: BankAnswer, message: Message
    ) -> None:
        """The bank has answered a question, or acknowledged what was owed; once each."""

    def on_bank_lost(self, step: Step, key: str, reason: str) -> None:
        """A question has no answer: "timeout", "lost", "garbled": its outcome is unknown.

        "unsent": it never left.
        """


class BankInquirer(BankClient, Protocol):
    """A product that asks a bank what became of its questions."""

    def on_bank_state(self, step: Step, key: str, code: str, state: str) -> None:
        """The bank's answer to an inquiry: its DE39, and the state of the operation (tag 10)."""


class BankPort:
    """One bank behind a link; also the link's handler, and a destination of the gate.

    Attributes:
        settings: of the link; DE32, exponent, form of reversals, time for an answer.
    """

    def __init__(
        self,
        *,
        name: str,
        node: Turns,
        debts: Debts,
        settings: LinkSettings,
        events: Callable[[Step, str, Event], None],
    ) -> None:
        self.name = name
        self.settings = settings
        self.late = 0
        self._node = node
        self._debts = debts
        self._events = events
        self._clients: dict[str, BankClient] = {}
        self._inquirers: dict[str, BankInquirer] = {}
        self._wire: Wire | None = None
        self._unsent: list[Outgoing] = []
        self._alarm_clock = AlarmClock(f"bank:{name}")

    def attach(self, wire: Wire | None) -> None:
        self._wire = wire

    def add(self, client: BankClient) -> None:
        """Let a product ask this bank."""
        self._clients[client.role] = client

    @property
    def up(self) -> bool:
        return self._wire is not None and self._wire.up

    # ---- for products

    def ask(
        self,
        step: Step,
        client: BankClient,
        key: str,
        message: Purchase | Credit,
        budget_s: float,
        *,
        local: str = "",
    ) -> bool:
        """Send a 0200 or 0100 when the step is durable; False: the link is down, nothing is sent.

        Args:
            local: MMDDhhmmss of the local time (DE13, DE12); "": not told.

        Raises:
            ValueError: its amount has no form at this bank.
        """
        if not self.up:
            return False
        mti, elements = self._elements(message, local=local)
        name = f"{client.role}|{key}"
        step.send(self, _Question(QUESTION, name, mti, elements, budget_s))
        return True

    def inquire(
        self, step: Step, client: BankInquirer, key: str, operation: str, budget_s: float
    ) -> None:
        """Ask by 0600 what became of an operation (DE37); of what has no answer nothing is told."""
        self._inquirers[client.role] = client
        asked = IssuerStatus(self.settings.institution, operation)
        mti, elements = status_elements(asked)
        step.send(self, _Question(INQUIRY, f"{client.role}|{key}", mti, elements, budget_s))

    def owe(self, step: Step, client: BankClient, key: str, *, sent: bool = False) -> None:
        """What `client.owed(key)` tells is owed from now on. `sent`: it may have left before."""
        self._debts.owe(f"{client.role}|{key}", step.mono_ns, sent=int(sent))

    def forward(self, step: Step) -> None:
        """Send what is owed and due; called at the end of each step."""
        for name, attempt in self._debts.due(step.mono_ns):
            message = self._owed(name)
            if message is None:
                self._debts.paid(name, step.mono_ns)
                continue
            what = REVERSAL if isinstance(message, Reversal) else ADVICE
            mti, elements = self._elements(message, advice=what == ADVICE, repeat=attempt > 1)
            step.send(self, Outgoing(what, name, mti, elements))
        self._alarm_clock.set(step, self._debts.next_ns)

    def _owed(self, name: str) -> Owed | None:
        role, _, key = name.partition("|")
        client = self._clients.get(role)
        return None if client is None else client.owed(key)

    def _elements(
        self,
        message: BankMessage,
        *,
        advice: bool = False,
        repeat: bool = False,
        local: str = "",
    ) -> tuple[str, dict[str, object]]:
        settings = self.settings
        return request_elements(
            message,  # type: ignore[arg-type]
            institution=settings.institution,
            exponent=settings.exponent,
            advice=advice,
            repeat=repeat,
            reversal=settings.reversal,
            local=local,
        )

    # ---- destination of the reply gate: what arrives here is durable

    def ready(self, message: Outgoing) -> None:
        role, _, key = message.key.partition("|")
        token = (role, message.what, key, str(message.elements.get("37", "")))
        budget_s = message.budget_s if isinstance(message, _Question) else self.settings.answer_s
        refused = _NO_FORM
        if self._wire is None:
            refused = "down"
        else:
            with contextlib.suppress(ValueError):  # a field that the dialect has no form for
                refused = self._wire.request(
                    message.mti, message.elements, token=token, budget_s=budget_s
                )
        if refused:
            self._unsent.append(message)

    def flush(self) -> None:
        if self._wire is not None:
            self._wire.flush()
        if not self._unsent:
            return
        unsent, self._unsent = self._unsent, []
        step = self._node.begin()
        for message in unsent:
            role, _, key = message.key.partition("|")
            self.on_lost(step, (role, message.what, key, ""), UNSENT)
        self._node.end(step)

    # ---- handler of the link

    def on_answer(self, step: Step, token: Token, received: Received) -> None:
        role, what, key, operation = token
        message = received.message
        self._node.taken(request=False)
        if what == INQUIRY:
            self._told_state(step, token, message)
            return
        try:
            answer = bank_answer(message)
        except ElementFault:
            answer = None
        if answer is None or message.get("37", operation) != operation:
            step.alarm("answer_unreadable", f"{role}:{key}", what)
            self.on_lost(step, token, "garbled")
            return
        name = f"{role}|{key}"
        if what != QUESTION:
            if not _acknowledges(what, message.mti, answer.host_code):
                self._failed(step, what, name)
                return
            self._debts.paid(name, step.mono_ns)
        self._clients[role].on_bank_answer(step, what, key, answer, message)
        if what != QUESTION and name not in self._debts and self._owed(name) is not None:
            self._debts.owe(name, step.mono_ns)  # another debt than the one that was answered

    def _told_state(self, step: Step, token: Token, message: Message) -> None:
        role, what, key, operation = token
        try:
            told = issuer_answer(message)
        except ElementFault:
            told = None
        if not isinstance(told, IssuerState) or message.get("37", operation) != operation:
            step.alarm("answer_unreadable", f"{role}:{key}", what)
            return
        self._inquirers[role].on_bank_state(step, key, told.code, told.state)

    def _failed(self, step: Step, what: str, name: str) -> None:
        if self._debts.failed(name, step.mono_ns):
            step.alarm("owed_stuck", name, what)

    def on_lost(self, step: Step, token: Token, reason: str) -> None:
        role, what, key, _ = token
        self._node.taken(request=False)
        if what == QUESTION:
            self._clients[role].on_bank_lost(step, key, reason)
        elif what == INQUIRY:
            return
        elif reason == UNSENT:
            self._debts.unsent(f"{role}|{key}", step.mono_ns)
        else:
            self._failed(step, what, f"{role}|{key}")

    def on_request(self, step: Step, received: Received, origin: Origin) -> None:
        """A bank asks us nothing."""
        self._node.taken(request=True)
        step.reply(origin, reply(received, {"39": "12"}))

    def on_event(self, step: Step, event: Event) -> None:
        self._events(step, self.name, event)

    def on_up(self, step: Step) -> None:
        self._debts.up(step.mono_ns)
        self._events(step, self.name, SignedOn())

    def on_down(self, step: Step) -> None:
        self._debts.down()
        step.alarm("link_down", self.name)


class _Question(Outgoing):
    """A 0200, 0100 or 0600, with the time its answer is waited for."""

    __slots__ = ("budget_s",)

    def __init__(self, what: str, key: str, mti: str, elements: Any, budget_s: float) -> None:
        super().__init__(what, key, mti, elements)
        self.budget_s = budget_s


def _acknowledges(what: str, mti: str, code: str) -> bool:
    if what == ADVICE:
        return code not in NO_DECISION
    return mti == "0430" or code in _REVERSED
