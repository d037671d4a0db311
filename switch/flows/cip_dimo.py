"""The Dimo source: the payment application in red's place before sicoop.

It has a network number of its own and one virtual terminal per application. The customer's code
proves the card, the atomic update is the registration, and a time-out is always a reversal: sicoop
is never inquired about a hold. No cash instruction and no ticket come of it.
"""

from typing import Any, Final, Protocol

from msgspec import UNSET

from protocols.cip.transaction import Instrument
from protocols.messages import Confirm, Hold, NetworkAnswer, NetworkRequest, Reverse
from switch.calendar import Calendar
from switch.flows import cip_records as rec
from switch.flows import norms
from switch.flows.cip_book import CipBook
from switch.flows.cip_records import SUBMITTED, Adjustment, Payment
from switch.flows.cip_sources import (
    AUTHENTICATION,
    FUNDS,
    INSTRUMENT,
    LIMIT,
    NOT_ALLOWED,
    TECHNICAL,
    Answers,
    Approved,
    Declined,
    Outcome,
)
from switch.flows.registry import Registry
from switch.flows.step import Origin, Step
from switch.sections.cip import Cip

TRACE_MAX: Final = 999_999
CASHIER: Final = "000001"

REASONS: Final = {
    "51": FUNDS, "55": AUTHENTICATION, "75": AUTHENTICATION, "14": INSTRUMENT, "61": LIMIT,
    "65": LIMIT, "13": LIMIT, "57": NOT_ALLOWED, "58": NOT_ALLOWED, "62": LIMIT, "05": NOT_ALLOWED,
}  # fmt: skip
REVERSED: Final = frozenset(("00", "21", "25"))  # 25: unknown, and entombed by this very word


class Platform(Protocol):
    """sicoop in this process."""

    def ask(
        self, step: Step, network: str, message: NetworkRequest, origin: Origin | None = None
    ) -> Any: ...


class Turns(Protocol):
    """What begins and ends steps."""

    def begin(self) -> Step: ...

    def end(self, step: Step) -> None: ...


class Payments(Answers, Protocol):
    """The flow, as far as this source reads it."""

    section: Cip

    def payment(self, payment_id: str) -> Payment | None: ...

    def give_back(self, step: Step, payment_id: str) -> None: ...


class DimoSource:
    """Cards of issuers behind sicoop, proved by the holder's one-time code."""

    two_phase = True
    can_void = can_refund = False
    instruments: tuple[str, ...] = ("dimo",)

    def __init__(
        self, *, platform: Platform | None, registry: Registry, calendar: Calendar,
        book: CipBook, flow: Payments, node: Turns,
    ) -> None:  # fmt: skip
        self._platform = platform
        self._registry = registry
        self._calendar = calendar
        self._book = book
        self._flow = flow
        self._node = node
        self._asked: dict[int, str] = {}  # request to payment, while its answer is awaited
        self._id = 0
        self._later = _Later(self)

    def ready(self, application: rec.Application) -> bool:
        """sicoop is played here, and knows our network and the application's terminal."""
        network = self._flow.section.network
        terminal = self._registry.terminal(application.terminal)
        return (
            self._platform is not None
            and bool(network)
            and self._registry.network(network) is not None
            and terminal is not None
            and terminal.network == network
        )

    def can_inquire(self, application: rec.Application) -> bool:
        return False

    def reference(self, step: Step, payment: Payment, application: rec.Application) -> str:
        if not self.ready(application):
            return payment.id  # it will be declined without being asked
        date = self._calendar.local(step.now_ns).compact
        number = self._book.count(f"dimo:{application.terminal}:{date}")
        assert number <= TRACE_MAX, "a virtual terminal has a million traces a day"
        network = self._flow.section.network
        return norms.compose_reference(network, application.terminal, date, number)

    def authorise(
        self, step: Step, payment: Payment, application: rec.Application, instrument: Instrument
    ) -> Outcome | None:
        assert self._platform is not None, "asked only when ready"
        terminal = self._registry.terminal(application.terminal)
        assert terminal is not None, "asked only when ready"
        self._id += 1
        hold = Hold(
            id=self._id,
            reference=payment.source_ref,
            kind="cash_out",
            branch=terminal.branch,
            cashier=CASHIER,
            document=instrument.document or UNSET,
            phone=UNSET if instrument.document else instrument.phone or UNSET,
            token=instrument.token,
            amount=payment.total,
            currency=payment.currency,
            sent_at=norms.instant_text(step.now_ns // 1_000_000),
        )
        self._asked[self._id] = payment.id
        answer = self._platform.ask(step, self._flow.section.network, hold, self._later)
        if answer is None:
            return None
        del self._asked[self._id]
        return _outcome(answer)

    def inquire(self, step: Step, payment: Payment) -> Outcome | None:
        raise AssertionError("a time-out is reversed, not inquired about")

    def settle(self, step: Step, payment: Payment) -> bool:
        """Confirm: the payment is registered."""
        assert self._platform is not None, "only what was asked is settled"
        self._id += 1
        at = norms.instant_text(payment.confirmed_ns // 1_000_000)
        answer = self._platform.ask(
            step, payment.source_ref[:4], Confirm(self._id, payment.source_ref, at), None
        )
        if answer.code != "00":
            step.alarm("cip_settle_refused", payment.id, answer.code)
        return True

    def undo(self, step: Step, payment: Payment, *, again: bool = False) -> bool:
        """Reverse; for a hold that never arrived it leaves a tombstone."""
        assert self._platform is not None, "only what was asked is undone"
        self._id += 1
        reverse = Reverse(self._id, payment.source_ref, payment.total, "timeout")
        answer = self._platform.ask(step, payment.source_ref[:4], reverse, None)
        if answer.code not in REVERSED:
            step.alarm("cip_undo_refused", payment.id, answer.code)
            return False
        return True

    def refund(
        self, step: Step, payment: Payment, adjustment: Adjustment, *, again: bool = False
    ) -> Outcome | None:
        return Declined(NOT_ALLOWED)

    def on_deadline(self, step: Step, payment_id: str) -> None:
        """It has no timers."""

    def on_answers(self, answers: list[NetworkAnswer]) -> None:
        """Answers that sicoop gave later, and that are durable."""
        step = self._node.begin()
        for answer in answers:
            payment_id = self._asked.pop(answer.id, "")
            payment = self._flow.payment(payment_id) if payment_id else None
            # What was given up is reversed already: its answer decides nothing any more.
            if payment is not None and payment.status == SUBMITTED:
                self._flow.on_source(step, payment.id, _outcome(answer))
        self._node.end(step)


class _Later:
    """Destination of the reply gate for answers that come in a later step."""

    def __init__(self, source: DimoSource) -> None:
        self._source = source
        self._answers: list[NetworkAnswer] = []

    def ready(self, message: NetworkAnswer) -> None:
        self._answers.append(message)

    def flush(self) -> None:
        answers, self._answers = self._answers, []
        self._source.on_answers(answers)


def _outcome(answer: NetworkAnswer) -> Outcome:
    if answer.code == "00":
        authorization = answer.authorization
        return Approved(authorization if isinstance(authorization, str) else answer.code)
    return Declined(REASONS.get(answer.code, TECHNICAL))
