"""The payment application: what happens to a payment, from its first word to its confirmation.

One payment is one record; a step that changes it writes it once, with its codes, its event and all
that is owed because of it. What the source decides is asked for under `source_ref`, which is
durable before anything leaves this process; an answer that does not come makes the payment PENDING,
and from then on it is only inquired about, never submitted again.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from core_ext import Records
from protocols.cip.transaction import Instrument, Transaction, masked_instrument
from switch.config import Config
from switch.flows import cip_records as rec
from switch.flows.cip_adjustments import CipAdjustments
from switch.flows.cip_book import Chance, CipBook, CipRefusal, Vault
from switch.flows.cip_changes import CipChanges
from switch.flows.cip_counts import CipCounts
from switch.flows.cip_fresh import Fresh
from switch.flows.cip_records import (
    CREATED,
    PENDING,
    RUNNING,
    SUBMITTED,
    VOIDED,
    Adjustment,
    Application,
    Change,
    Confirmation,
    Context,
    Event,
    Owed,
    Payment,
    ReportRun,
    Session,
    User,
)
from switch.flows.cip_reports import CipReports
from switch.flows.cip_sessions import CipSessions
from switch.flows.cip_sources import (
    ROLE,
    SIMULATED_TIMER,
    Approved,
    Declined,
    Outcome,
    Source,
    Undone,
    Unknown,
)
from switch.flows.operations import Table
from switch.flows.step import Step
from switch.sections.cip import Cip

SECOND_NS: Final = 1_000_000_000
INQUIRE_AT_S: Final = (2, 4, 8, 15, 30, 60)
INQUIRE_EVERY_S: Final = 300
ALARM_AT_S: Final = 300
WEBHOOK_AFTER_S: Final = (2, 5, 15, 60, 300, 900, 1800, 3600)
WEBHOOK_UNTIL_NS: Final = 86_400 * SECOND_NS
EVENTS_MAX: Final = 200
REFUNDS_MAX: Final = 50

# The step of the text at which each thing happens, by mode.
STEP_AUTHENTICATED: Final = {"gateway": 5, "partial": 4, "full": 2}
STEP_SUBMITTED: Final = {"gateway": 6, "partial": 6, "full": 5}
STEP_SOURCE: Final = {"gateway": 7, "partial": 7, "full": 6}
STEP_UPDATED: Final = {"gateway": 8, "partial": 8, "full": 7}
STEP_TOLD: Final = {"gateway": 9, "partial": 9, "full": 8}


class CipFlow:
    """Payments of all applications. `sources` is filled by who builds it, before open work is
    taken up."""

    role = ROLE
    # Payments and their references are kept; what only opened a door is not.
    spaces: Sequence[int] = (
        rec.SESSIONS, rec.COOKIES, rec.NONCES, rec.FAILURES, rec.UNLOCKS,
    )  # fmt: skip

    def __init__(self, *, section: Cip, records: Records, vault: Vault, chance: Chance) -> None:
        self.section = section
        self._records = records
        self.book = CipBook(records, vault, chance)
        self.sources: dict[str, Source] = {}
        self.counts = CipCounts()
        self.fresh = Fresh()
        self._table = Table(records, rec.PAYMENTS, rec.decode_payment, lambda p: p.is_open)
        self.sessions = CipSessions(records, self.book, section.session, self._session_expired)
        self.reports = CipReports(records, self.book, self)
        self.adjustments = CipAdjustments(records, self)
        self.changes = CipChanges(records, self.book)

    # ---- for the node

    def unfinished(self) -> Iterator[Any]:
        yield from self.book.applications()
        yield from self._table.open()
        yield from self.adjustments.unfinished()
        yield from self.sessions.unfinished()
        yield from self.reports.unfinished()
        yield from self.changes.unfinished()

    def adopt(self, step: Step, work: Any) -> None:
        match work:
            case Application():
                self._arm_report(step, work)
            case Session():
                self.sessions.adopt(step, work)
            case ReportRun():
                self.reports.states["BUILT"] += 1
                step.call(ROLE, "report", work.id)
            case Adjustment():
                self.adjustments.adopt(step, work)
            case Change():
                self.changes.adopt(step, work)
            case Payment():
                self._adopt_payment(step, work)

    def on_deadline(self, step: Step, kind: str, key: str) -> None:
        match kind:
            case "budget":
                self.on_source(step, key, Unknown())
            case "inquire":
                self._inquire(step, key)
            case "session":
                self.sessions.on_deadline(step, key)
            case "change":
                self.changes.on_deadline(step, key)
            case "webhook":
                step.call(ROLE, "webhook", key)
            case "report":
                self._report_hour(step, key)
            case "report_again":
                step.call(ROLE, "report", key)
            case _:
                assert kind == SIMULATED_TIMER, kind
                self.sources["simulator"].on_deadline(step, key)

    def flush(self) -> None:
        self.fresh.note(payment.id for payment in self._table.changed())
        self._table.flush()
        self.adjustments.flush()

    def reconfigure(self, config: Config) -> None:
        self.section = config.cip
        self.sessions.times = config.cip.session

    # ---- finding

    def payment(self, payment_id: str) -> Payment | None:
        return self._table.get(rec.name_key(payment_id))

    def stored(self, most: int) -> list[tuple[int, bytes]] | None:
        """All payments, adjustments and runs as they are stored, with their spaces; None: there
        are more than `most`."""
        spaces = (rec.PAYMENTS, rec.ADJUSTMENTS, rec.RUNS)
        if sum(self._records.count(space) for space in spaces) > most:
            return None
        return [(space, value) for space in spaces for _, value in self._records.items(space)]

    def by_reference(self, application_id: str, client_ref: str) -> Payment | None:
        found = self._records.get(rec.BY_REFERENCE, _reference(application_id, client_ref))
        return None if found is None else self.payment(found.decode())

    def application_of(self, payment: Payment) -> Application:
        found = self.book.application(payment.application)
        assert found is not None, "applications are never deleted"
        return found

    def source_of(self, application: Application) -> Source:
        return self.sources[application.source]

    # ---- a payment begins

    def pay(
        self, step: Step, application: Application, client_ref: str, transaction: Transaction,
        body_hash: bytes, *, user: User, steps: Mapping[int, int], request_id: str,
    ) -> tuple[Payment, bool]:  # fmt: skip
        """Gateway: create and submit a payment whose reference is new.

        Raises:
            CipRefusal: there is no room.
        """
        self._admit(step)
        payment = self._create(step, application, "gateway", client_ref, user.id)
        payment.body_hash = body_hash
        payment.request_id = request_id
        payment.steps.update(steps)
        self._submit(step, payment, application, transaction)
        return payment, False

    def repeat(
        self, application: Application, client_ref: str, body_hash: bytes
    ) -> tuple[Payment, bool]:
        """Gateway: the payment that a reference names already, for the same request.

        Raises:
            CipRefusal: the reference is another payment's.
        """
        known = self.by_reference(application.id, client_ref)
        if known is None or known.body_hash != body_hash:
            self.counts.conflicts += 1
            raise CipRefusal("client_ref_conflict", 409)
        self.counts.replays += 1
        return known, True

    def open_context(
        self, step: Step, application: Application, context: Context, context_hash: bytes
    ) -> tuple[Session, str]:
        """Partial, signed: the payment is CREATED with its session.

        Raises:
            CipRefusal: the reference is known with other fields, or no longer open.
        """
        known = self.by_reference(application.id, context.client_ref)
        if known is None:
            self._admit(step)
            session, address = self.sessions.issue(step, application, context, context_hash)
            payment = self._create(step, application, "partial", context.client_ref, "")
            payment.amount, payment.currency = context.amount, context.currency
            payment.session = session.id
            session.payment = payment.id
            self.sessions.put(step, session)
            return session, address
        before = self.sessions.get(known.session)
        if known.status != CREATED or before is None or before.context_hash != context_hash:
            self.counts.conflicts += 1
            raise CipRefusal("client_ref_conflict", 409)
        return before, self.sessions.renew_address(step, before)

    def keep_form(
        self, step: Step, session: Session, application: Application, transaction: Transaction,
        client_ref: str = "",
    ) -> Payment:  # fmt: skip
        """Partial and full: the customer's form can be paid. Its payment is CREATED with the first
        such form, and follows the ones after it until it is submitted.

        Args:
            client_ref: as the customer typed it; "": the session's, or one is made.

        Raises:
            CipRefusal: there is no room, or the reference is another payment's.
        """
        known = self.payment(session.payment) if session.payment else None
        if known is not None and known.status != CREATED:
            return known
        other = self.by_reference(application.id, client_ref) if client_ref else None
        if other is not None and other.id != session.payment:
            self.counts.conflicts += 1
            raise CipRefusal("client_ref_conflict", 409)
        if known is None:
            self._admit(step)
            known = self._create(step, application, session.kind, client_ref, session.user)
            session.payment = known.id
            self.sessions.put(step, session)
        elif client_ref and client_ref != known.client_ref:
            # Nothing was ever asked for under the first one, so it is free again.
            self._records.delete(rec.BY_REFERENCE, _reference(application.id, known.client_ref))
            known.client_ref = client_ref
            key = _reference(application.id, client_ref)
            self._records.put(rec.BY_REFERENCE, key, known.id.encode())
        known.session = session.id
        known.created_by = session.user
        self._describe(known, application, transaction)
        self.put(step, known)
        return known

    def fail_form(self, step: Step, session: Session) -> None:
        """What the site signed cannot be paid any more, and the customer cannot mend it."""
        payment = self.payment(session.payment) if session.payment else None
        if payment is not None and payment.status == CREATED:
            self._move(step, payment, "failed", ROLE, "invalid")
            self.put(step, payment)
        self.sessions.close(step, session)

    def submit_form(
        self, step: Step, session: Session, application: Application, transaction: Transaction,
        steps: Mapping[int, int],
    ) -> Payment:  # fmt: skip
        """Partial and full: the customer pays. Once per session: later calls tell the payment.

        Raises:
            CipRefusal: there is no room, or the session's payment was cancelled or has expired.
        """
        known = self.payment(session.payment) if session.payment else None
        if known is None or known.status == CREATED:
            self._admit(step)
            known = self.keep_form(step, session, application, transaction)
        if known.status != CREATED:
            return known
        known.steps.update(steps)
        self.sessions.touch(step, session, page=True)
        self._submit(step, known, application, transaction)
        return known

    def cancel(self, step: Step, session: Session) -> None:
        """The customer does not want to pay; a payment that was submitted goes on."""
        payment = self.payment(session.payment) if session.payment else None
        if payment is not None and payment.status == CREATED:
            self._move(step, payment, "cancelled", session.user or "customer")
            self.put(step, payment)
        self.sessions.close(step, session)

    def _session_expired(self, step: Step, session: Session) -> None:
        payment = self.payment(session.payment) if session.payment else None
        if payment is not None and payment.status == CREATED:
            self._move(step, payment, "failed", ROLE, "expired")
            self.put(step, payment)

    def _admit(self, step: Step) -> None:
        if not step.admitting:
            raise CipRefusal("overloaded", 503, "no room for new work")

    def _create(
        self, step: Step, application: Application, mode: str, client_ref: str, user: str
    ) -> Payment:
        name = self.book.identifier("pay_", step.now_ns)
        payment = Payment(name, application.id, mode, client_ref or name[4:])
        payment.created_ns = step.now_ns
        payment.created_by = user
        payment.currency = application.amount.currency
        payment.source = application.source
        key = _reference(application.id, payment.client_ref)
        self._records.put(rec.BY_REFERENCE, key, name.encode())
        self._move(step, payment, "created", user)
        return payment

    def _submit(
        self, step: Step, payment: Payment, application: Application, transaction: Transaction
    ) -> None:
        self._describe(payment, application, transaction)
        payment.business_day = self.day(application, step.now_ns)
        source = self.source_of(application)
        payment.source_ref = source.reference(step, payment, application)
        self._records.put(rec.BY_SOURCE, payment.source_ref.encode(), payment.id.encode())
        payment.steps[STEP_SUBMITTED[payment.mode]] = step.now_ns
        self._move(step, payment, "submitted", payment.created_by)
        self.put(step, payment)
        outcome = self._ask(step, source, payment, application, transaction.instrument)
        if outcome is None:
            step.arm(ROLE, "budget", payment.id, self.section.budget.source_s)
        else:
            self.on_source(step, payment.id, outcome)

    def _describe(
        self, payment: Payment, application: Application, transaction: Transaction
    ) -> None:
        """What is to be paid, and with what; the instrument masked."""
        payment.amount, payment.currency = transaction.amount, transaction.currency
        payment.fee = application.fee.fee(transaction.amount)
        payment.items, payment.payer = transaction.items, transaction.payer
        payment.custom = transaction.custom
        payment.instrument_type = transaction.instrument.type
        payment.instrument = masked_instrument(transaction.instrument)
        payment.source = application.source

    def _ask(
        self, step: Step, source: Source, payment: Payment, application: Application,
        instrument: Instrument,
    ) -> Outcome | None:  # fmt: skip
        if not source.ready(application):
            return Declined("technical")  # certain that nothing was sent
        return source.authorise(step, payment, application, instrument)

    # ---- what the source says

    def on_source(self, step: Step, payment_id: str, outcome: Outcome) -> None:
        """An answer to the question, or to an inquiry; or no answer within the budget."""
        payment = self.payment(payment_id)
        assert payment is not None, "only payments are asked about"
        if payment.status not in RUNNING:
            self._contradiction(step, payment, outcome)
            return
        late = payment.status == PENDING
        step.disarm(ROLE, "budget", payment.id)
        self.counts.source(payment.source, type(outcome).__name__, self._asked_ns(step, payment))
        match outcome:
            case Approved() if payment.undoing:
                self._undo(step, payment)
            case Approved() if late and self.application_of(payment).late_approval == "void":
                payment.source_code = outcome.code
                self._undo(step, payment)
            case Approved():
                self._confirm(step, payment, outcome.code)
            case Declined():
                self._end_pending(step, payment)
                payment.reason = outcome.reason
                self._move(step, payment, "declined", payment.source, outcome.reason)
            case Undone():
                if not late:
                    self._move(step, payment, "unanswered", payment.source)
                self._voided(step, payment)
            case Unknown():
                self._unanswered(step, payment)
        self.put(step, payment)

    def on_undone(self, step: Step, payment_id: str) -> None:
        """The source has acknowledged that it gave back what it may have taken."""
        payment = self.payment(payment_id)
        if payment is not None and payment.status == PENDING and payment.undoing:
            self._voided(step, payment)
            self.put(step, payment)

    def on_settled(self, step: Step, payment_id: str) -> None:
        """The source has acknowledged the registration."""
        payment = self.payment(payment_id)
        if payment is None:
            return
        for owed in payment.outbox:
            if owed.kind == "settle" and owed.is_open:
                owed.done_ns, owed.last = step.now_ns, "acknowledged"
                self.counts.owed[owed.kind] -= 1
                self.put(step, payment)

    def on_adjusted(self, step: Step, adjustment_id: str, outcome: Outcome) -> None:
        self.adjustments.on_source(step, adjustment_id, outcome)

    def _confirm(self, step: Step, payment: Payment, source_code: str) -> None:
        """Codes, payment, event and what is owed: one record."""
        application = self.application_of(payment)
        self._end_pending(step, payment)
        payment.steps[STEP_SOURCE[payment.mode]] = step.now_ns
        payment.source_code = source_code
        self.write_codes(step, payment, application, "payment", source_code, payment.amount)
        self._move(step, payment, "approved", payment.source, amount=payment.amount)
        event = payment.events[-1]
        event.what = "payment"
        event.number = self.reports.number(
            application, payment, len(payment.events) - 1, step.now_ns
        )
        payment.steps[STEP_UPDATED[payment.mode]] = step.now_ns
        source = self.source_of(application)
        if source.two_phase:
            self.owe(step, payment, "settle", "payment")
            self.put(step, payment)
            if source.settle(step, payment):
                self.on_settled(step, payment.id)

    def write_codes(
        self, step: Step, payment: Payment, application: Application, confirms: str,
        source_code: str, amount: int,
    ) -> str:  # fmt: skip
        """Both confirmations of a payment, void or refund; returns our own."""
        code = self.book.new_code(application, step.now_ns)
        for kind, text in ((rec.KIND_CIP, code), (rec.KIND_SOURCE, source_code)):
            payment.confirmations.append(
                Confirmation(
                    text, kind, confirms, payment.id, amount, payment.currency,
                    payment.payer_reference, step.now_ns,
                )
            )  # fmt: skip
        self._records.put(rec.CODES, code.encode(), payment.id.encode())
        return code

    def _unanswered(self, step: Step, payment: Payment) -> None:
        if payment.status == SUBMITTED:
            self._move(step, payment, "unanswered", payment.source)
            self.counts.pending[payment.id] = step.now_ns
        application = self.application_of(payment)
        if payment.undoing:
            return
        if self.source_of(application).can_inquire(application):
            self._arm_inquiry(step, payment)
        else:
            self._undo(step, payment)

    def give_back(self, step: Step, payment_id: str) -> None:
        """The source has told that a PENDING payment can only be undone."""
        payment = self.payment(payment_id)
        if payment is not None and payment.status == PENDING and not payment.undoing:
            self._undo(step, payment)
            self.put(step, payment)

    def _undo(self, step: Step, payment: Payment) -> None:
        """Ask the source to give back; the payment is VOIDED once that is acknowledged."""
        if not payment.undoing:
            payment.undoing = True
            self.event(step, payment, "undoing", payment.source)
        self.put(step, payment)
        if self.source_of(self.application_of(payment)).undo(step, payment):
            self._voided(step, payment)
        else:  # acknowledged later; asked for again, should that be forgotten
            step.arm(ROLE, "inquire", payment.id, INQUIRE_EVERY_S)

    def _voided(self, step: Step, payment: Payment) -> None:
        if payment.status == VOIDED:
            return
        self._end_pending(step, payment)
        payment.undoing = False
        self._move(step, payment, "undone", payment.source)

    def _end_pending(self, step: Step, payment: Payment) -> None:
        self.counts.pending.pop(payment.id, None)
        step.disarm(ROLE, "inquire", payment.id)

    def _contradiction(self, step: Step, payment: Payment, outcome: Outcome) -> None:
        """The source says something about a payment that is decided: people must see it."""
        agreed = (isinstance(outcome, Approved) and payment.status in rec.PAID) or (
            isinstance(outcome, Declined | Undone) and payment.status not in rec.PAID
        )
        if agreed or isinstance(outcome, Unknown):
            return
        step.alarm("cip_late_answer", payment.id, type(outcome).__name__.lower())

    # ---- inquiries

    def _inquire(self, step: Step, payment_id: str) -> None:
        payment = self.payment(payment_id)
        if payment is None or payment.status != PENDING:
            return
        payment.inquiries += 1
        application = self.application_of(payment)
        source = self.source_of(application)
        if payment.undoing:
            if source.undo(step, payment, again=True):
                self._voided(step, payment)
            else:
                step.arm(ROLE, "inquire", payment.id, INQUIRE_EVERY_S)
            self.put(step, payment)
            return
        outcome = source.inquire(step, payment) if source.ready(application) else Unknown()
        self.counts.inquired(payment.source, outcome)
        if step.now_ns - self._pending_ns(payment) >= ALARM_AT_S * SECOND_NS:
            step.alarm("cip_pending", payment.id, f"inquiry {payment.inquiries}")
        if outcome is None:
            self._arm_inquiry(step, payment)
            self.put(step, payment)
        else:
            self.on_source(step, payment_id, outcome)

    def _arm_inquiry(self, step: Step, payment: Payment) -> None:
        since_s = (step.now_ns - self._pending_ns(payment)) / SECOND_NS
        at_s = next((s for s in INQUIRE_AT_S if s > since_s + 0.05), since_s + INQUIRE_EVERY_S)
        step.arm(ROLE, "inquire", payment.id, at_s - since_s)

    def _pending_ns(self, payment: Payment) -> int:
        instants = (e.at_ns for e in payment.events if e.what == "unanswered")
        return next(instants, payment.created_ns)

    def _asked_ns(self, step: Step, payment: Payment) -> int:
        return step.now_ns - payment.steps.get(STEP_SUBMITTED[payment.mode], step.now_ns)

    # ---- what is owed

    def owe(self, step: Step, payment: Payment, kind: str, subject: str) -> None:
        """Put an entry into the payment's outbox."""
        if kind == "settle":
            name = f"set_{payment.id[4:]}"
        else:
            name = self.book.identifier("evt_", step.now_ns)
        payment.outbox.append(Owed(name, kind, subject, step.now_ns))
        self.counts.owed[kind] += 1
        if kind == "webhook":
            step.call(ROLE, "webhook", f"{payment.id}|{name}")

    def owed(self, key: str) -> tuple[Payment, Owed] | None:
        """The webhook behind a call's key; None: it is done."""
        payment_id, _, name = key.partition("|")
        payment = self.payment(payment_id)
        if payment is None:
            return None
        found = next((o for o in payment.outbox if o.id == name and o.is_open), None)
        return None if found is None else (payment, found)

    def on_webhook(self, step: Step, key: str, acknowledged: bool, told: str) -> None:
        """How an attempt ended; retried with growing pauses for a day."""
        found = self.owed(key)
        if found is None:
            return
        payment, owed = found
        owed.attempts += 1
        owed.last = told
        self.counts.webhooks[told] = self.counts.webhooks.get(told, 0) + 1
        if acknowledged:
            owed.done_ns = step.now_ns
        elif step.now_ns - owed.since_ns > WEBHOOK_UNTIL_NS:
            owed.abandoned = True
            step.alarm("cip_webhook_abandoned", payment.id, owed.subject)
        else:
            after_s = WEBHOOK_AFTER_S[min(owed.attempts, len(WEBHOOK_AFTER_S)) - 1]
            step.arm(ROLE, "webhook", key, after_s)
        self.counts.owed[owed.kind] -= not owed.is_open
        self.put(step, payment)

    # ---- reports

    def _report_hour(self, step: Step, application_id: str) -> None:
        application = self.book.application(application_id)
        if application is not None:
            self._arm_report(step, application)

    def _arm_report(self, step: Step, application: Application) -> None:
        """Make the run of an hour that has passed, and wait for the next one."""
        missed = self.reports.missed_cut_ns(application, step.now_ns)
        if missed:
            self.reports.cut(step, application, missed)
        at_ns = self.reports.next_cut_ns(application, step.now_ns)
        if at_ns:
            after_s = max((at_ns - step.now_ns) / SECOND_NS, 0.001)
            step.arm(ROLE, "report", application.id, after_s)

    def applications_changed(self, step: Step, application: Application) -> None:
        """Its report hours may be others."""
        step.disarm(ROLE, "report", application.id)
        self._arm_report(step, application)
        source = self.sources.get(application.source)
        if source is not None:
            source.ready(application)  # one that needs a way of its own opens it now

    # ---- common

    def note_told(self, step: Step, payment_id: str, told_ns: int) -> None:
        """When the confirmation went on its way (9; 8 in full mode)."""
        payment = self.payment(payment_id)
        if payment is not None and STEP_TOLD[payment.mode] not in payment.steps:
            payment.steps[STEP_TOLD[payment.mode]] = told_ns
            self.put(step, payment)
            self.counts.told(payment, self.section.budget)

    def day(self, application: Application, now_ns: int) -> int:
        """The application's date as days since 1970-01-01."""
        moment = datetime.fromtimestamp(now_ns // SECOND_NS, self.book.zone(application))
        return moment.date().toordinal() - 719_163

    def put(self, step: Step, payment: Payment) -> None:
        self._table.put(payment.id.encode(), payment, step.now_ns)

    def event(
        self, step: Step, payment: Payment, what: str, actor: str, detail: str = "", amount: int = 0
    ) -> None:
        assert len(payment.events) < EVENTS_MAX, "events of a payment are bounded"
        payment.events.append(Event(step.now_ns, what, actor, detail, amount))

    def _move(
        self, step: Step, payment: Payment, what: str, actor: str, detail: str = "",
        amount: int = 0,
    ) -> None:  # fmt: skip
        payment.status = rec.MOVES[payment.status, what]
        if what == "failed":
            payment.reason = detail
        self.event(step, payment, what, actor, detail, amount)
        self.after_move(step, payment)

    def after_move(self, step: Step, payment: Payment) -> None:
        """Count, tell who waits, and owe the webhook of the new status."""
        self.counts.moved(payment)
        self.put(step, payment)
        if payment.status not in (CREATED, SUBMITTED):
            step.call(ROLE, "settled", payment.id)
            if self.application_of(payment).webhook_url:
                self.owe(step, payment, "webhook", payment.status)

    def _adopt_payment(self, step: Step, payment: Payment) -> None:
        """After a restart: what was submitted may have happened; it is asked about at once."""
        for owed in payment.outbox:
            self.counts.owed[owed.kind] += owed.is_open
        if payment.status == SUBMITTED:
            self._move(step, payment, "unanswered", ROLE, "restart")
            self.put(step, payment)
        if payment.status == PENDING:
            self.counts.pending[payment.id] = self._pending_ns(payment)
            self._inquire_or_undo(step, payment)
        elif payment.status == CREATED and not self._has_session(payment):
            self._move(step, payment, "failed", ROLE, "expired")
        for owed in payment.outbox:
            if owed.is_open and owed.kind == "webhook":
                step.call(ROLE, "webhook", f"{payment.id}|{owed.id}")
            elif owed.is_open and owed.kind == "settle":
                source = self.source_of(self.application_of(payment))
                if source.settle(step, payment):
                    self.on_settled(step, payment.id)

    def _inquire_or_undo(self, step: Step, payment: Payment) -> None:
        application = self.application_of(payment)
        if not self.source_of(application).can_inquire(application):
            payment.undoing = True
        step.arm(ROLE, "inquire", payment.id, 0.0)
        self.put(step, payment)

    def _has_session(self, payment: Payment) -> bool:
        session = self.sessions.get(payment.session) if payment.session else None
        return session is not None and session.is_open


def _reference(application_id: str, client_ref: str) -> bytes:
    return rec.pair(application_id, client_ref)
