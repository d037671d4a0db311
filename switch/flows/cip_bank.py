"""The bank source: a purchase over an ISO 8583 link, undone by reversals until acknowledged.

What became of a purchase without an answer is asked by 0600; a bank that has none of it, or does
not know it, owes us a reversal: it is sent until the bank acknowledges it, so nobody is charged for
what nobody confirmed. A late 0210 decides nothing: only the answer to an inquiry does.
"""

from collections.abc import Callable
from typing import Final

from protocols.cip.transaction import Instrument
from protocols.iso8583.bank import (
    ENTRY_E_COMMERCE,
    BankAnswer,
    Card,
    Purchase,
    Reversal,
    Shop,
)
from protocols.iso8583.dialect import Message
from switch.flows import cip_records as rec
from switch.flows.bank_port import QUESTION, REVERSAL, BankPort
from switch.flows.cip_book import CipBook
from switch.flows.cip_dimo import REASONS, Payments
from switch.flows.cip_records import PENDING, SUBMITTED, Adjustment, Payment
from switch.flows.cip_sources import (
    NOT_ALLOWED,
    ROLE,
    TECHNICAL,
    Approved,
    Declined,
    Outcome,
    Undone,
    Unknown,
)
from switch.flows.step import Step

PORTS_MAX: Final = 64
UNSENT: Final = "unsent"
INQUIRY_S: Final = 10.0  # the next one leaves after 2 s already: they do not wait for each other

# The state of an operation as a bank tells it (tag 10), and what it means for the payment.
TAKEN: Final = frozenset(("ACTIVA", "CAPTURADA"))
GIVEN_BACK: Final = frozenset(("LIBERADA", "TUMBA"))
REJECTED: Final = "RECHAZADA"
# 25: the bank does not know it, and it must not come later; 12: it cannot be asked at all.
UNDO: Final = frozenset(("25", "12"))
ADJUSTMENT: Final = "adj_"


class BankSource:
    """Banks behind links, each application with its own.

    Args:
        find: the way to a bank by the name of its host. Raises LookupError: there is none.
        adjustment: a void by its id.
    """

    role = ROLE
    two_phase = False
    can_void = True
    can_refund = False  # a credit names the card, and no card number is kept
    instruments: tuple[str, ...] = ("card", "account")

    def __init__(
        self,
        *,
        find: Callable[[str], BankPort],
        book: CipBook,
        flow: Payments,
        adjustment: Callable[[str], Adjustment | None],
    ) -> None:
        self._find = find
        self._book = book
        self._flow = flow
        self._adjustment = adjustment
        self._ports: dict[str, BankPort] = {}
        self._owing: set[str] = set()

    def prepare(self) -> None:
        """Open the ways of all applications; before links run."""
        for application in self._book.applications():
            if application.source == "bank":
                self._open(application)

    def _open(self, application: rec.Application) -> BankPort | None:
        """The way of an application, opened at its first use; None: there is no such host yet."""
        port = self._ports.get(application.bank)
        if port is None and application.bank:
            try:
                port = self._find(application.bank)
            except LookupError:
                return None  # told as a source that is down, until the host is added
            port.add(self)
            self._ports[application.bank] = port
        return port

    def ready(self, application: rec.Application) -> bool:
        port = self._open(application)
        return port is not None and port.up and bool(port.settings.institution)

    def can_inquire(self, application: rec.Application) -> bool:
        return application.bank_inquiry

    def reference(self, step: Step, payment: Payment, application: rec.Application) -> str:
        return f"{self._book.count('bank-reference') % 10**12:012}"

    def authorise(
        self, step: Step, payment: Payment, application: rec.Application, instrument: Instrument
    ) -> Outcome | None:
        card, account = Card(entry_mode=ENTRY_E_COMMERCE), ""
        if instrument.type == "card":
            card = Card(
                pan=instrument.pan,
                expiry=instrument.expiry[3:] + instrument.expiry[:2],
                entry_mode=ENTRY_E_COMMERCE,
                verification_value=instrument.cvv,
            )
        else:
            account = instrument.number
        purchase = Purchase(
            operation=payment.source_ref,
            amount=payment.total,
            currency=payment.currency,
            card=card,
            shop=Shop(name_and_place=application.name.encode("ascii", "replace").decode()[:40]),
            account_from=account,
            bank_code=instrument.bank if account else "",
        )
        port = self._ports[application.bank]
        try:
            sent = port.ask(step, self, payment.id, purchase, self._flow.section.budget.source_s)
        except ValueError:
            sent = False
        return None if sent else Declined(TECHNICAL)

    def inquire(self, step: Step, payment: Payment) -> Outcome | None:
        port = self._port(payment)
        if port is not None:
            budget_s = min(port.settings.answer_s, INQUIRY_S)
            port.inquire(step, self, payment.id, payment.source_ref, budget_s)
        return None

    def settle(self, step: Step, payment: Payment) -> bool:
        return True

    def undo(self, step: Step, payment: Payment, *, again: bool = False) -> bool:
        port = self._port(payment)
        if port is not None and payment.id not in self._owing:
            self._owing.add(payment.id)
            port.owe(step, self, payment.id, sent=again)
        return False

    def refund(
        self, step: Step, payment: Payment, adjustment: Adjustment, *, again: bool = False
    ) -> Outcome | None:
        port = self._port(payment)
        if port is None or adjustment.kind != "void":
            return Declined(NOT_ALLOWED)
        port.owe(step, self, adjustment.id, sent=again)
        return None

    def on_deadline(self, step: Step, payment_id: str) -> None:
        """It has no timers."""

    # ---- client of the port

    def owed(self, key: str) -> Reversal | None:
        """The reversal owed for a payment that is undone, or for a void."""
        payment_id = key
        if key.startswith(ADJUSTMENT):
            adjustment = self._adjustment(key)
            if adjustment is None or not adjustment.is_open:
                return None
            payment_id = adjustment.payment_id
        payment = self._flow.payment(payment_id)
        if payment is None or (payment_id == key and not payment.undoing):
            return None
        return Reversal(
            operation=payment.source_ref, amount=payment.total, currency=payment.currency
        )

    def on_bank_answer(
        self, step: Step, what: str, key: str, answer: BankAnswer, message: Message
    ) -> None:
        if what == REVERSAL:
            self._owing.discard(key)
            if key.startswith(ADJUSTMENT):
                code = answer.authorization or message.get("37", key[-12:])
                self._flow.on_adjusted(step, key, Approved(code))
            else:
                self._flow.on_undone(step, key)
        elif what == QUESTION:
            payment = self._flow.payment(key)
            if payment is None or payment.status != SUBMITTED:
                return  # given up: its reversal is owed, whatever this says
            outcome: Outcome = Declined(REASONS.get(answer.code, TECHNICAL))
            if answer.code == "00":
                outcome = Approved(answer.authorization or payment.source_ref)
            self._flow.on_source(step, key, outcome)

    def on_bank_state(self, step: Step, key: str, code: str, state: str) -> None:
        payment = self._flow.payment(key)
        if payment is None or payment.status != PENDING or payment.undoing:
            return  # decided since
        if code in UNDO:
            self._flow.give_back(step, key)
        elif state in TAKEN:
            self._flow.on_source(step, key, Approved(payment.source_ref))
        elif state in GIVEN_BACK:
            self._flow.on_source(step, key, Undone())
        elif state == REJECTED:
            self._flow.on_source(step, key, Declined(NOT_ALLOWED))

    def on_bank_lost(self, step: Step, key: str, reason: str) -> None:
        payment = self._flow.payment(key)
        if payment is not None and payment.status == SUBMITTED:
            outcome: Outcome = Declined(TECHNICAL) if reason == UNSENT else Unknown()
            self._flow.on_source(step, key, outcome)

    def _port(self, payment: Payment) -> BankPort | None:
        application = self._book.application(payment.application)
        return None if application is None else self._ports.get(application.bank)
