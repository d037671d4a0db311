"""Who authorises the money: the simulated source and the local ledger; what a source is.

A source decides at once or says later, through `Answers.on_source`. A call that leaves this process
does so when the step is durable, so the payment with its `source_ref` is on disk before.
"""

from hashlib import blake2b
from typing import Final, Protocol

from msgspec import Struct

from core_ext import Batch, Ledger, Records, Result
from protocols.cip.identifiers import base32
from protocols.cip.transaction import Instrument
from switch.flows import cip_records as rec
from switch.flows.cip_records import Adjustment, Payment, Simulated
from switch.flows.limit_book import LimitBook, ledger_number
from switch.flows.registry import Registry
from switch.flows.step import Step

FUNDS: Final = "funds"
INSTRUMENT: Final = "instrument"
LIMIT: Final = "limit"
AUTHENTICATION: Final = "authentication"
NOT_ALLOWED: Final = "not_allowed"
TECHNICAL: Final = "technical"
REASONS: Final = (FUNDS, INSTRUMENT, LIMIT, AUTHENTICATION, NOT_ALLOWED, TECHNICAL)

ROLE: Final = "cip"
SIMULATED_TIMER: Final = "simulated"


class Approved(Struct, frozen=True):
    """The source took the money, or holds it; `code` is its own, kept as given."""

    code: str


class Declined(Struct, frozen=True):
    """The source will not; one of REASONS."""

    reason: str


class Undone(Struct, frozen=True):
    """The source never had it, or has undone it, and will not take it any more."""


class Unknown(Struct, frozen=True):
    """No answer that decides anything."""


Outcome = Approved | Declined | Undone | Unknown


class Answers(Protocol):
    """Where a source's later answers go."""

    def on_source(self, step: Step, payment_id: str, outcome: Outcome) -> None: ...

    def on_undone(self, step: Step, payment_id: str) -> None: ...

    def on_settled(self, step: Step, payment_id: str) -> None: ...

    def on_adjusted(self, step: Step, adjustment_id: str, outcome: Outcome) -> None: ...


class Source(Protocol):
    """A source application.

    Attributes:
        two_phase: what it approved is only held until `settle`.
        can_void, can_refund: what it can be asked for.
        instruments: types it takes.
    """

    two_phase: bool
    can_void: bool
    can_refund: bool
    instruments: tuple[str, ...]

    def ready(self, application: rec.Application) -> bool:
        """Tell whether it can be asked now."""

    def can_inquire(self, application: rec.Application) -> bool:
        """Tell whether it can be asked what became of a payment; else a time-out is undone."""

    def reference(self, step: Step, payment: Payment, application: rec.Application) -> str:
        """The name under which the source is asked, made before the call."""

    def authorise(
        self, step: Step, payment: Payment, application: rec.Application, instrument: Instrument
    ) -> Outcome | None:
        """Ask for the money; None: the answer comes later, or never."""

    def inquire(self, step: Step, payment: Payment) -> Outcome | None:
        """Ask what became of it; None: later."""

    def settle(self, step: Step, payment: Payment) -> bool:
        """Tell that it is registered; False: the acknowledgement comes later."""

    def undo(self, step: Step, payment: Payment, *, again: bool = False) -> bool:
        """Give back whatever it may have taken; False: the acknowledgement comes later.

        Args:
            again: it was asked to before, perhaps by the process before this one.
        """

    def refund(
        self, step: Step, payment: Payment, adjustment: Adjustment, *, again: bool = False
    ) -> Outcome | None:
        """Give back a part of what was taken, or for a void all of it; None: later."""

    def on_deadline(self, step: Step, payment_id: str) -> None:
        """The time of a timer of its own has come."""


class SimulatedSource:
    """Chosen by the application; the amount's last two digits decide."""

    two_phase = False
    can_void = can_refund = True
    instruments: tuple[str, ...] = ("card", "account", "dimo", "ledger")

    DECLINES: Final = {
        51: FUNDS, 14: INSTRUMENT, 61: LIMIT, 55: AUTHENTICATION, 57: NOT_ALLOWED, 96: TECHNICAL,
    }  # fmt: skip
    AFTER_S: Final = {71: 2, 72: 8}
    SILENT: Final = {73: "approved", 74: "declined"}
    NEVER_KNOWN: Final = 75

    def __init__(self, records: Records, answers: Answers) -> None:
        self._records = records
        self._answers = answers

    def ready(self, application: rec.Application) -> bool:
        return True

    def can_inquire(self, application: rec.Application) -> bool:
        return True

    def reference(self, step: Step, payment: Payment, application: rec.Application) -> str:
        return payment.id

    def authorise(
        self, step: Step, payment: Payment, application: rec.Application, instrument: Instrument
    ) -> Outcome | None:
        ending = payment.amount % 100
        if ending == self.NEVER_KNOWN:
            return None
        if ending in self.DECLINES:
            self._put(step, payment, Simulated("declined", payment.total))
            return Declined(self.DECLINES[ending])
        if ending in self.SILENT:
            self._put(step, payment, Simulated(self.SILENT[ending], payment.total, _code(payment)))
            return None
        if ending in self.AFTER_S:
            after_s = self.AFTER_S[ending]
            due = step.now_ns + after_s * 1_000_000_000
            self._put(
                step, payment, Simulated("working", payment.total, _code(payment), due_ns=due)
            )
            step.arm(ROLE, SIMULATED_TIMER, payment.id, after_s)
            return None
        self._put(step, payment, Simulated("approved", payment.total, _code(payment)))
        return Approved(_code(payment))

    def inquire(self, step: Step, payment: Payment) -> Outcome | None:
        known = self._get(payment.source_ref)
        if known is None:
            return Undone() if self.undo(step, payment) else None
        if known.state == "working":
            if step.now_ns < known.due_ns:
                return Unknown()
            known.state = "approved"
            self._put(step, payment, known)
        if known.state == "approved":
            return Approved(known.code)
        return Undone() if known.state == "voided" else Declined(NOT_ALLOWED)

    def settle(self, step: Step, payment: Payment) -> bool:
        return True

    def undo(self, step: Step, payment: Payment, *, again: bool = False) -> bool:
        """A request it has never seen is remembered too, so that it cannot come later."""
        known = self._get(payment.source_ref) or Simulated("voided", payment.total)
        known.state = "voided"
        self._put(step, payment, known)
        return True

    def refund(
        self, step: Step, payment: Payment, adjustment: Adjustment, *, again: bool = False
    ) -> Outcome | None:
        known = self._get(payment.source_ref)
        if known is None or known.state != "approved":
            return Declined(NOT_ALLOWED)
        if adjustment.kind == "void":
            self.undo(step, payment)
        else:
            known.refunded += adjustment.amount
            self._put(step, payment, known)
        return Approved(_code_of(adjustment.id))

    def on_deadline(self, step: Step, payment_id: str) -> None:
        known = self._get(payment_id)
        if known is None or known.state != "working":
            return
        known.state = "approved"
        self._records.put(rec.SIMULATED, payment_id.encode(), rec.encode(known))
        self._answers.on_source(step, payment_id, Approved(known.code))

    def _get(self, reference: str) -> Simulated | None:
        found = self._records.get(rec.SIMULATED, reference.encode())
        return None if found is None else rec.decode_simulated(found)

    def _put(self, step: Step, payment: Payment, known: Simulated) -> None:
        self._records.put(rec.SIMULATED, payment.source_ref.encode(), rec.encode(known))


class LedgerSource:
    """Cards of this node's own core: held, captured once the payment is registered.

    An application gathers on an account of its own in the cards' ledger; `account` names a card.
    """

    two_phase = True
    can_void = can_refund = True
    instruments: tuple[str, ...] = ("ledger",)
    BOOK: Final = 1  # that of the cards
    ACCOUNT_APPLICATION: Final = 30

    _REASONS: Final = {
        Result.FUNDS_SHORT: FUNDS,
        Result.CREDIT_LIMIT_REACHED: FUNDS,
        Result.LIMIT_AMOUNT: LIMIT,
        Result.LIMIT_COUNT: LIMIT,
        Result.ACCOUNT_UNKNOWN: INSTRUMENT,
        Result.ACCOUNT_CLOSED: INSTRUMENT,
        Result.CURRENCY_DIFFERS: INSTRUMENT,
        Result.ACCOUNT_FROZEN_DEBIT: NOT_ALLOWED,
        Result.ACCOUNT_FROZEN_HOLD: NOT_ALLOWED,
    }

    def __init__(self, ledger: Ledger, limits: LimitBook, registry: Registry) -> None:
        self._ledger = ledger
        self._limits = limits
        self._registry = registry

    def ready(self, application: rec.Application) -> bool:
        return True

    def can_inquire(self, application: rec.Application) -> bool:
        return True

    def reference(self, step: Step, payment: Payment, application: rec.Application) -> str:
        return payment.id

    def authorise(
        self, step: Step, payment: Payment, application: rec.Application, instrument: Instrument
    ) -> Outcome | None:
        card = self._registry.card(instrument.account)
        if card is None or card.state != "active" or card.currency != payment.currency:
            return Declined(INSTRUMENT)
        batch = Batch()
        batch.hold(
            _hold(payment), card.account, self._account(payment, step.now_ns), payment.total,
            day=payment.business_day, metered=False,
        )  # fmt: skip
        result = Result(self._ledger.apply(batch, step.now_ns)[0])
        if result != Result.DONE:
            return Declined(self._REASONS.get(result, TECHNICAL))
        return Approved(_code(payment))

    def inquire(self, step: Step, payment: Payment) -> Outcome | None:
        hold = self._ledger.hold(_hold(payment))
        if hold is not None and hold.state in ("open", "captured"):
            return Approved(_code(payment))
        return Undone() if self.undo(step, payment) else None

    def settle(self, step: Step, payment: Payment) -> bool:
        batch = Batch()
        batch.capture(_hold(payment), payment.total)
        result = Result(self._ledger.apply(batch, step.now_ns)[0])
        if result not in (Result.DONE, Result.HOLD_CAPTURED):
            step.alarm("cip_settle_refused", payment.id, result.key)
        return True

    def undo(self, step: Step, payment: Payment, *, again: bool = False) -> bool:
        batch = Batch()
        batch.release(_hold(payment))
        self._ledger.apply(batch, step.now_ns)
        return True

    def refund(
        self, step: Step, payment: Payment, adjustment: Adjustment, *, again: bool = False
    ) -> Outcome | None:
        hold = self._ledger.hold(_hold(payment))
        if hold is None or hold.state != "captured":
            return Declined(NOT_ALLOWED)
        batch = Batch()
        amount = payment.total if adjustment.kind == "void" else adjustment.amount
        batch.transfer(hold.credit, hold.debit, amount)
        result = Result(self._ledger.apply(batch, step.now_ns)[0])
        if result != Result.DONE:
            return Declined(self._REASONS.get(result, TECHNICAL))
        return Approved(_code_of(adjustment.id))

    def on_deadline(self, step: Step, payment_id: str) -> None:
        """It has no timers."""

    def _account(self, payment: Payment, now_ns: int) -> bytes:
        assert ledger_number(payment.currency, self.BOOK)
        return self._limits.account(
            f"cip:{payment.application}:{payment.currency}", payment.currency, self.BOOK,
            self.ACCOUNT_APPLICATION, now_ns,
        )  # fmt: skip


def _hold(payment: Payment) -> bytes:
    return blake2b(f"cip:{payment.id}".encode(), digest_size=16).digest()


def _code(payment: Payment) -> str:
    return _code_of(payment.id)


def _code_of(text: str) -> str:
    """Six characters, as a source's own confirmation."""
    return base32(int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big"), 6)
