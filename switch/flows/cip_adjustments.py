"""Voids and refunds: asked for once, approved by another person at the desk, done by the source."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from core_ext import Records
from switch.flows import cip_records as rec
from switch.flows.cip_book import CipRefusal
from switch.flows.cip_records import CONFIRMED, Adjustment, Application, Payment
from switch.flows.cip_sources import Approved, Declined, Outcome
from switch.flows.operations import Table
from switch.flows.step import Step

if TYPE_CHECKING:
    from switch.flows.cip import CipFlow

VOID: Final = "void"
REFUND: Final = "refund"
ADJUSTMENTS_MAX: Final = 50  # of one payment

REQUESTED: Final = "REQUESTED"
RUNNING: Final = "RUNNING"
DONE: Final = "DONE"
REFUSED: Final = "REFUSED"
REJECTED: Final = "REJECTED"


class CipAdjustments:
    """All of them; `flow` has the payments they change."""

    def __init__(self, records: Records, flow: "CipFlow") -> None:
        self._records = records
        self._flow = flow
        self._table = Table(records, rec.ADJUSTMENTS, rec.decode_adjustment, lambda a: a.is_open)

    def get(self, adjustment_id: str) -> Adjustment | None:
        return self._table.get(rec.name_key(adjustment_id))

    def of(self, payment: Payment) -> list[Adjustment]:
        """Those of a payment, by the names its events mention."""
        names = [event.detail for event in payment.events if event.what.endswith("_asked")]
        return [found for name in names if (found := self.get(name)) is not None]

    def unfinished(self) -> Iterator[Adjustment]:
        return self._table.open()

    def flush(self) -> None:
        self._table.flush()

    def ask(
        self, step: Step, application: Application, payment: Payment, kind: str, client_ref: str,
        amount: int, by: str, *, approved: bool,
    ) -> tuple[Adjustment, bool]:  # fmt: skip
        """Ask for a void or refund; True beside one that was asked for already.

        Args:
            amount: of a refund, minor units; a void takes all, fee included.
            approved: no second person is needed: the site's own machine asks.

        Raises:
            CipRefusal: `wrong_state`, `invalid_fields`, or the reference is another one's.
        """
        key = rec.pair(application.id, client_ref)
        found = self._records.get(rec.BY_ADJUSTMENT, key)
        known = None if found is None else self.get(found.decode())
        if known is not None:
            same = (known.payment_id, known.kind, known.amount) == (
                payment.id, kind, payment.amount if kind == VOID else amount,
            )  # fmt: skip
            if not same:
                raise CipRefusal("client_ref_conflict", 409)
            return known, True
        self._check(step, application, payment, kind, amount)
        if not step.admitting:
            raise CipRefusal("overloaded", 503, "no room for new work")
        adjustment = Adjustment(
            self._flow.book.identifier("adj_", step.now_ns), application.id, payment.id, kind,
            client_ref, payment.amount if kind == VOID else amount, REQUESTED, by, step.now_ns,
        )  # fmt: skip
        self._records.put(rec.BY_ADJUSTMENT, key, adjustment.id.encode())
        self._flow.event(step, payment, f"{kind}_asked", by, adjustment.id, adjustment.amount)
        self._flow.put(step, payment)
        self._put(step, adjustment)
        if approved:
            self._run(step, application, payment, adjustment, by)
        return adjustment, False

    def approve(self, step: Step, adjustment: Adjustment, by: str) -> None:
        """The second person agrees.

        Raises:
            CipRefusal: it is the same person, or nothing waits to be approved.
        """
        payment = self._flow.payment(adjustment.payment_id)
        assert payment is not None, "adjustments name payments"
        self._second(step, adjustment, by)
        application = self._flow.application_of(payment)
        self._check(step, application, payment, adjustment.kind, adjustment.amount, adjustment)
        self._run(step, application, payment, adjustment, by)

    def reject(self, step: Step, adjustment: Adjustment, by: str) -> None:
        """The second person does not agree. Raises: CipRefusal, as `approve`."""
        self._second(step, adjustment, by)
        adjustment.status, adjustment.approved_by = REJECTED, by
        adjustment.done_ns = step.now_ns
        self._put(step, adjustment)

    def _second(self, step: Step, adjustment: Adjustment, by: str) -> None:
        if adjustment.status != REQUESTED:
            raise CipRefusal("wrong_state", 409, "it is decided already")
        if adjustment.requested_by == by:
            step.audit(
                f"{adjustment.application}:{by}", "cip_approve", adjustment.id, "refused",
                "same person", security=True,
            )  # fmt: skip
            raise CipRefusal("not_allowed", 403, "who asked for it may not approve it")

    def _check(
        self, step: Step, application: Application, payment: Payment, kind: str, amount: int,
        own: Adjustment | None = None,
    ) -> None:  # fmt: skip
        source = self._flow.source_of(application)
        able = source.can_void if kind == VOID else source.can_refund
        others = [
            a for a in self.of(payment)
            if a.status in (REQUESTED, RUNNING) and (own is None or a.id != own.id)
        ]  # fmt: skip
        if payment.status != CONFIRMED or not able or len(self.of(payment)) > ADJUSTMENTS_MAX:
            raise CipRefusal("wrong_state", 409)
        if kind == VOID:
            number = next(e.number for e in payment.events if e.what == "payment")
            if (
                payment.refunded
                or others
                or payment.business_day != self._flow.day(application, step.now_ns)
                or self._flow.reports.is_transmitted(application.id, number)
            ):
                raise CipRefusal("wrong_state", 409)
        elif any(a.kind == VOID for a in others):
            raise CipRefusal("wrong_state", 409)
        elif not 0 < amount <= payment.amount - payment.refunded - sum(a.amount for a in others):
            raise CipRefusal("invalid_fields", 422, "amount")

    def _run(
        self, step: Step, application: Application, payment: Payment, adjustment: Adjustment,
        by: str,
    ) -> None:  # fmt: skip
        adjustment.status, adjustment.approved_by = RUNNING, by
        self._put(step, adjustment)
        step.audit(
            f"{application.id}:{adjustment.requested_by}", f"cip_{adjustment.kind}", payment.id,
            "00", adjustment.id,
            second=by if by != adjustment.requested_by else "",
        )  # fmt: skip
        outcome = self._flow.source_of(application).refund(step, payment, adjustment)
        if outcome is not None:
            self.on_source(step, adjustment.id, outcome)

    def on_source(self, step: Step, adjustment_id: str, outcome: Outcome) -> None:
        """What the source has decided about it."""
        adjustment = self.get(adjustment_id)
        if adjustment is None or adjustment.status != RUNNING:
            return
        payment = self._flow.payment(adjustment.payment_id)
        assert payment is not None, "adjustments name payments"
        if isinstance(outcome, Approved):
            self._done(step, payment, adjustment, outcome.code)
        elif isinstance(outcome, Declined):
            adjustment.status, adjustment.reason = REFUSED, outcome.reason
            adjustment.done_ns = step.now_ns
            self._flow.event(
                step, payment, f"{adjustment.kind}_refused", payment.source, outcome.reason
            )
            self._flow.put(step, payment)
        else:
            step.alarm("cip_adjustment_open", adjustment.id, payment.id)
        self._put(step, adjustment)

    def _done(self, step: Step, payment: Payment, adjustment: Adjustment, code: str) -> None:
        flow = self._flow
        application = flow.application_of(payment)
        adjustment.status, adjustment.done_ns = DONE, step.now_ns
        adjustment.source = code
        adjustment.cip = flow.write_codes(
            step, payment, application, adjustment.id, code, adjustment.amount
        )
        flow.event(
            step, payment, adjustment.kind, adjustment.approved_by, adjustment.id,
            adjustment.amount,
        )  # fmt: skip
        payment.events[-1].number = flow.reports.number(
            application, payment, len(payment.events) - 1, step.now_ns
        )
        if adjustment.kind == VOID:
            payment.status = rec.MOVES[payment.status, "voided"]
        else:
            payment.refunded += adjustment.amount
            if payment.refunded == payment.amount:
                payment.status = rec.MOVES[payment.status, "refunded"]
        flow.after_move(step, payment)

    def adopt(self, step: Step, adjustment: Adjustment) -> None:
        """After a restart: the source is asked again under the same name."""
        payment = self._flow.payment(adjustment.payment_id)
        assert payment is not None, "adjustments name payments"
        application = self._flow.application_of(payment)
        outcome = self._flow.source_of(application).refund(step, payment, adjustment, again=True)
        if outcome is not None:
            self.on_source(step, adjustment.id, outcome)

    def _put(self, step: Step, adjustment: Adjustment) -> None:
        self._table.put(adjustment.id.encode(), adjustment, step.now_ns)
