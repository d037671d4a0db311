"""The acquirer's side of Webpay: a payment from the shop's request to its end.

    CREATED ─► FORM ─► PAYING ─► AUTHORISING ─► DECIDING ─► CONFIRMED
       └────────┴─────────┴► ABORTED               ├──────► DECLINED, DECLINED_UNACKED
                                                   └──────► REVERSING ─► REVERSED

A sale stands only if the shop accepts it within 30 s of the authorisation; anything else undoes it.
Every step is durable before its effect: a page, the 0200, the first byte to the shop, the final
page, a capture or reversal, a line of the Bitácora. What a stop interrupted ends against the sale,
and the shop is not told again: what it was told before the stop, nobody knows.

Synchronous. RSA, the notification and the pages are the service's; it calls with a step, and gets
its orders as calls: `sign`, `notify`, `line`, `erase`.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from msgspec import Struct

from core_ext import Histogram, Records
from protocols.currencies import CURRENCIES
from protocols.iso8583.bank import BankAnswer, Reversal
from protocols.iso8583.dialect import Message
from protocols.webpay import messages
from protocols.webpay.decision import Decision, ShopAnswer, decide, recovered
from protocols.webpay.fields import PaymentRequest, Refusal, de4_amount, refusal
from protocols.webpay.pairs import join_pairs
from switch.config import Config
from switch.flows import step as steps
from switch.flows import webpay_records as rec
from switch.flows.bank_port import QUESTION
from switch.flows.operations import Table
from switch.flows.remote import UNSENT
from switch.flows.step import Step
from switch.flows.webpay_authorisers import (
    ERROR,
    RETRY,
    Authoriser,
    BankAuthoriser,
    LedgerAuthoriser,
    Secret,
    Verdict,
    reversal_of,
)
from switch.flows.webpay_dates import Dates
from switch.flows.webpay_records import Line, Order, Payment, move, note
from switch.sections.webpay import Merchant

ROLE: Final = "webpay"
SIGN: Final = "sign"
NOTIFY: Final = "notify"
ERASE: Final = "erase"
LINE: Final = "line"
FORM_TIMER: Final = "form"
HOLDER_TIMER: Final = "holder"
SIGN_TIMER: Final = "sign"
ACK_TIMER: Final = "ack"

TRIES_MAX: Final = 3
EARLIER_MAX: Final = 16  # payments of an order that a shop may ask for, beside the newest
SIGN_AGAIN_S: Final = 5.0  # a signature that has not come by then is asked for again
ACK_GRACE_S: Final = 10.0  # an answer that was in time may take this long to be opened

NOBODY_KNOWS: Final = "21"  # DE25 of a reversal
REFUSED: Final = "22"
_REASONS: Final = {"REJECTED": REFUSED, "BAD_ANSWER": REFUSED}
_GO_ON: Final = frozenset(("NP", "A"))
_NOTES: Final = {"25": "original_not_found"}

Signer = Callable[[str, bytes, str], bytes]
"""(key id, message, version) to a signature."""


class Full(steps.Refusal):
    """There is no room for new work."""


class Received(NamedTuple):
    """A payment request was taken, or is one that was taken before.

    Attributes:
        entry: number of the cookie to be given; 0: none, the payment has gone on.
    """

    payment: str
    entry: int
    payable: bool


class Choice(NamedTuple):
    """What a holder chose, and what is kept of the card."""

    kind: str
    pay_type: str
    instalments: int
    bank: str
    pan_masked: str
    pan_hash: bytes
    pan_sealed: bytes


class Vault(Protocol):
    """Opens card numbers that pending reversals need."""

    def open(self, payment: str, sealed: bytes) -> str:
        """The number; empty where its key is gone."""


class _Live(Struct, gc=False):
    """What is in memory only: gone with the process, as it must be."""

    secret: Secret | None = None
    t0_ns: int = 0
    verdict: Verdict | None = None


class WebpayFlow:
    """All payments of a node.

    Args:
        vault: opens card numbers for reversals.
        sign: signs at once, for the few payments that a stop left behind.
        told: of every event of a payment, for the log.
        renew: the configuration was read again; reads the keys again.

    Attributes:
        outcomes: finished payments by outcome and cause. recoveries: taken up at the start, by
            state. late_acks, replays: seen since. auth_times: of authorisers, by their names.
        lines_wait: lines of the Bitácora cannot be written for now, and none may be forgotten.
    """

    role = ROLE

    def __init__(
        self,
        *,
        config: Config,
        records: Records,
        vault: Vault,
        sign: Signer,
        ledger: LedgerAuthoriser,
        told: Callable[[Payment, str], None],
        renew: Callable[[], None],
    ) -> None:
        self._told = told
        self._renew = renew
        self._section = config.webpay
        self._limits = config.webpay.limits
        self._records = records
        self._vault = vault
        self._sign = sign
        self.ledger = ledger
        self._authorisers: dict[str, Authoriser] = {"ledger": ledger}
        self._payments = Table(records, rec.PAYMENTS, rec.decode_payment, lambda p: p.is_open)
        self._orders = Table(records, rec.ORDERS, rec.decode_order, lambda order: False)
        self._live: dict[str, _Live] = {}
        self._timers = {
            FORM_TIMER: self._form_expired,
            HOLDER_TIMER: self._holder_late,
            SIGN_TIMER: self._sign_again,
            ACK_TIMER: self._ack_late,
        }
        self.dates = Dates(config.webpay)
        self.outcomes: dict[tuple[str, ...], int] = {}
        self.recoveries: dict[str, int] = {}
        self.auth_times: dict[tuple[str, ...], Histogram] = {}
        self.late_acks = 0
        self.replays = 0
        self.lines_wait = True

    @property
    def spaces(self) -> tuple[int, ...]:
        """Spaces whose records may be forgotten when they are old; lines once they are written."""
        known = (rec.PAYMENTS, rec.REQUESTS)
        return known if self.lines_wait else (*known, rec.LINES)

    def add_authoriser(self, name: str, authoriser: Authoriser) -> None:
        """Let merchants with this `authoriser` sell."""
        self._authorisers[name] = authoriser

    def reconfigure(self, config: Config) -> None:
        """Nothing of these sections changes under traffic, but the keys they name do."""
        self._renew()

    def flush(self) -> None:
        self._payments.flush()
        self._orders.flush()

    def on_deadline(self, step: Step, kind: str, key: str) -> None:
        payment = self.payment(key)
        if payment is not None:
            self._timers[kind](step, payment)

    # ---- what is so

    def payment(self, name: str) -> Payment | None:
        """A payment as it stands, changes of the present step included."""
        return self._payments.get(name.encode())

    def open_payments(self) -> Iterable[Payment]:
        """All that something is still to be done about."""
        return self._payments.open()

    def of_order(self, merchant: str, order: str) -> list[Payment]:
        """The payments of an order, the newest first, as far as they are kept."""
        known = self._orders.get(_order_key(merchant, order))
        if known is None:
            return []
        names = (known.payment, *reversed(known.earlier))
        return [found for name in names if (found := self.payment(name)) is not None]

    def t0_ns(self, name: str) -> int | None:
        """When its result was known, on the monotonic clock; None: not in this process, or not
        yet."""
        live = self._live.get(name)
        return None if live is None or live.verdict is None else live.t0_ns

    def result_message(self, name: str) -> bytes:
        """The result of a payment whose authoriser has spoken: to be signed."""
        live = self._live[name]
        assert live.verdict is not None, "there is a verdict"
        return self._message(self._known(name), live.verdict)

    # ---- the request

    def receive(
        self, step: Step, request: PaymentRequest, digest: bytes, name: str, keys: rec.KeyNames
    ) -> Received | Refusal:
        """Take a request whose checks have passed.

        Args:
            digest: SHA-256 of the decoded wire: the same request again is no new payment.
            name: for the new payment; random.
            keys: versions that it was sealed for and by.

        Raises:
            Full: no room for it.
        """
        known = self._records.get(rec.REQUESTS, digest)
        before = None if known is None else self.payment(known.decode())
        if before is not None:
            return self._again(step, before)
        if not step.admitting:
            raise Full("no room for a new payment")
        merchant = self._section.merchant[request.merchant]
        if not self._may_be_paid(step, merchant, request):
            return refusal("DUPLICATE_ORDER")
        minor = de4_amount(request.hundredths, CURRENCIES[merchant.currency].exponent)
        assert minor is not None, "the grammar of amounts has none that are not whole"
        payment = Payment(
            id=name, merchant=request.merchant, key_id=request.key_id, order=request.order,
            session=request.session, tx_id=request.tx_id, amount=request.amount,
            hundredths=request.hundredths, minor=minor, currency=merchant.currency,
            url_ok=request.url_ok, url_fail=request.url_fail, fixed=request.fixed,
            request_digest=digest, received_ns=step.now_ns,
            expires_ns=step.now_ns + self._limits.form_ttl_s * 1_000_000_000,
            authoriser=merchant.authoriser, keys=keys,
        )  # fmt: skip
        self._move(step, payment, "CREATED")
        self._put(step, payment)
        self._records.put(rec.REQUESTS, digest, name.encode(), stamp=step.now_ns)
        self._note_order(step, payment)
        step.arm(ROLE, FORM_TIMER, name, self._limits.form_ttl_s)
        return Received(name, 1, True)

    def _again(self, step: Step, payment: Payment) -> Received:
        """The same request: before payment the form with a new cookie, then only for its holder."""
        if payment.state not in rec.PAYABLE:
            return Received(payment.id, 0, False)
        payment.entries += 1
        self._put(step, payment)
        return Received(payment.id, payment.entries, True)

    def _may_be_paid(self, step: Step, merchant: Merchant, request: PaymentRequest) -> bool:
        """Whether an order may be tried by another request; one at its form gives way."""
        policy = merchant.order_policy
        known = self._orders.get(_order_key(request.merchant, request.order))
        if known is None or policy == "any":
            return True
        before = self.payment(known.payment)
        if policy == "unique" or known.paid:
            return False
        if before is None:
            return True
        if before.state in rec.PAYABLE:
            self._abort(step, before, "superseded")
            return True
        return before.state not in (rec.PAYING, rec.AUTHORISING, rec.DECIDING, rec.CONFIRMED)

    def redeem(self, step: Step, name: str) -> Received | None:
        """The browser brings a token, which counts once, and while the form may be shown."""
        payment = self.payment(name)
        if payment is None or payment.token_used or payment.state not in rec.PAYABLE:
            return None
        if step.now_ns >= payment.expires_ns:
            return None
        payment.token_used = True
        self._put(step, payment)
        return Received(name, payment.entries, True)

    # ---- the holder

    def show(self, step: Step, name: str) -> None:
        """The form is about to be shown for the first time."""
        payment = self._known(name)
        if payment.state == rec.CREATED:
            self._move(step, payment, "SHOWN")
            self._put(step, payment)

    def mistake(self, step: Step, name: str) -> None:
        """The form was filled in wrongly; the third time ends it."""
        payment = self._known(name)
        if payment.state != rec.FORM:
            return
        payment.tries += 1
        if payment.tries >= TRIES_MAX:
            self._abort(step, payment, "bad_input")
        else:
            self._put(step, payment)

    def cancel(self, step: Step, name: str) -> None:
        """The holder does not want to pay."""
        payment = self._known(name)
        if payment.state in rec.PAYABLE:
            self._abort(step, payment, "cancelled")

    def abort(self, step: Step, name: str) -> None:
        """What could not be written down when it was wanted: nothing was sent."""
        payment = self._known(name)
        if payment.state in (rec.FORM, rec.PAYING):
            self._abort(step, payment, "no_room")

    def pay(self, step: Step, name: str, choice: Choice, secret: Secret) -> bool:
        """The holder pays. False: not any more, somebody was quicker."""
        payment = self._known(name)
        if payment.state != rec.FORM or step.now_ns >= payment.expires_ns:
            return False
        if not step.admitting:
            self._abort(step, payment, "no_room")
            return False
        payment.kind, payment.pay_type = choice.kind, choice.pay_type
        payment.instalments, payment.bank = choice.instalments, choice.bank
        payment.pan_masked, payment.pan_hash = choice.pan_masked, choice.pan_hash
        payment.pan_sealed = choice.pan_sealed
        self._move(step, payment, "PAY_SUBMITTED")
        step.disarm(ROLE, FORM_TIMER, name)
        self._live[name] = _Live(secret=secret)
        if self.authenticates(payment):
            self._put(step, payment)
            step.arm(ROLE, HOLDER_TIMER, name, self._limits.holder_auth_s)
        else:
            payment.vci = self._section.vci_not_tried
            self._authorise(step, payment)
        return True

    def authenticates(self, payment: Payment) -> bool:
        """Whether the holder is to be asked by the bank: 1G forms never do, debit always does."""
        if self._section.merchant[payment.merchant].form == "1G":
            return False
        return payment.kind == "D" or self._section.holder_auth == "all"

    def authenticated(self, step: Step, name: str, outcome: str) -> bool:
        """What the holder's bank says: TSY, or why not. False: nobody waits for it any more.

        A credit card goes on where its bank does not take part (NP) or could only try (A); a debit
        card must have succeeded.
        """
        payment = self._known(name)
        if payment.state != rec.PAYING:
            return False
        step.disarm(ROLE, HOLDER_TIMER, name)
        payment.vci = outcome
        if outcome != "TSY" and not (payment.kind == "C" and outcome in _GO_ON):
            self._take_verdict(step, payment, Verdict(-1))
        elif not step.admitting:
            self._abort(step, payment, "no_room")
        else:
            self._authorise(step, payment)
        return True

    # ---- authorisation

    def _authorise(self, step: Step, payment: Payment) -> None:
        """AUTH_SENT, and in the same step what it announces."""
        live = self._live[payment.id]
        secret, live.secret = live.secret, None
        assert secret is not None, "whoever pays has a card"
        payment.operation = f"{self._next_number(b'operation'):012}"
        payment.sent_ns = step.now_ns
        self._move(step, payment, "AUTH_SENT")
        self._put(step, payment)
        local = f"{self.dates.local(step.now_ns):%m%d%H%M%S}"
        authoriser = self._authorisers.get(payment.authoriser)
        if authoriser is None:  # a merchant whose bank is not known to the registry
            step.alarm("no_way_to_bank", payment.authoriser)
            self._take_verdict(step, payment, Verdict(RETRY))
            return
        verdict = authoriser.authorise(step, payment, secret, local)
        if verdict is not None:
            self._take_verdict(step, payment, verdict)

    def on_bank_answer(
        self, step: Step, what: str, key: str, answer: BankAnswer, message: Message
    ) -> None:
        """A 0210, or the acknowledgement of a reversal."""
        payment = self._known(key)
        if what != QUESTION:
            self._reversed(step, payment, answer.host_code)
            return
        authoriser = self._authorisers[payment.authoriser]
        assert isinstance(authoriser, BankAuthoriser), "only banks answer"
        verdict = authoriser.verdict(payment, answer, message, self._section.respuesta_map)
        self._take_verdict(step, payment, verdict)

    def on_bank_lost(self, step: Step, key: str, reason: str) -> None:
        """There is no answer: nobody knows what the bank did, but for what was never sent."""
        self._take_verdict(step, self._known(key), Verdict(RETRY, reversal=reason != UNSENT))

    def _take_verdict(self, step: Step, payment: Payment, verdict: Verdict) -> None:
        """t0: the result is known. It is signed next, and then written down."""
        live = self._live.setdefault(payment.id, _Live())
        if payment.state == rec.AUTHORISING:
            times = self.auth_times.setdefault((payment.authoriser,), Histogram())
            times.record(max(step.now_ns - payment.sent_ns, 0))
        live.secret, live.t0_ns, live.verdict = None, step.mono_ns, verdict
        payment.vci = verdict.vci or payment.vci
        payment.accounting_date = verdict.accounting_date or self.dates.accounting(step.now_ns)
        self._put(step, payment)
        self._ask_signature(step, payment)

    def _ask_signature(self, step: Step, payment: Payment) -> None:
        step.call(ROLE, SIGN, payment.id)
        step.arm(ROLE, SIGN_TIMER, payment.id, SIGN_AGAIN_S)

    def _message(self, payment: Payment, verdict: Verdict) -> bytes:
        """The result, in the bytes that are signed."""
        date, time = self.dates.date_and_time(payment.received_ns)
        debit = payment.kind == "D"
        approved = verdict.respuesta == 0
        told = approved or debit  # a declined credit card shows one payment
        fields = messages.ResultFields(
            order=payment.order, respuesta=verdict.respuesta, amount=payment.amount,
            auth_code=verdict.auth_code, last4=payment.last4,
            accounting_date=payment.accounting_date, tx_date=date, tx_time=time,
            session=payment.session, tx_id=payment.tx_id,
            pay_type=payment.pay_type if told else "VN",
            instalments=payment.instalments if told else 0, vci=payment.vci,
        )  # fmt: skip
        return join_pairs(messages.result_pairs(fields))

    def signed(self, step: Step, name: str, message: bytes, signature: bytes) -> None:
        """The result has its signature: AUTH_RESULT, and then the shop is told."""
        payment, live = self._known(name), self._live.get(name)
        if payment.state not in (rec.PAYING, rec.AUTHORISING) or live is None:
            return
        verdict = live.verdict
        assert verdict is not None, "what is signed is a verdict"
        step.disarm(ROLE, SIGN_TIMER, name)
        self._result(step, payment, verdict, message, signature)
        elapsed_s = (step.mono_ns - live.t0_ns) / 1e9
        left_s = max(self._limits.ack_timeout_ms / 1000 - elapsed_s, 0.0)
        step.arm(ROLE, ACK_TIMER, name, left_s + ACK_GRACE_S)
        step.call(ROLE, NOTIFY, name)

    def _result(
        self, step: Step, payment: Payment, verdict: Verdict, message: bytes, signature: bytes
    ) -> None:
        payment.respuesta, payment.auth_code = verdict.respuesta, verdict.auth_code
        payment.message, payment.signature = message, signature
        self._move(step, payment, "AUTH_RESULT")
        self._put(step, payment)
        if verdict.reversal:
            self._order_reversal(step, payment, NOBODY_KNOWS, sent=False)

    # ---- the shop's answer

    def answered(
        self, step: Step, name: str, answer: ShopAnswer, elapsed_ms: float | None, digest: bytes
    ) -> Decision | None:
        """What the shop has said, or that it has not. None: it was decided before.

        Args:
            elapsed_ms: from t0 to the last byte of its answer; None: there was none.
            digest: SHA-256 of a sealed reply; empty: it was not sealed.
        """
        payment = self._known(name)
        if payment.state != rec.DECIDING:
            return None
        if digest and not self._is_new(step, payment, digest):
            answer = "BAD"
        decision = decide(
            payment.respuesta, answer, elapsed_ms, limit_ms=self._limits.ack_timeout_ms
        )
        payment.elapsed_ms = -1 if elapsed_ms is None else int(elapsed_ms)
        payment.answer_digest = digest
        self._conclude(step, payment, decision)
        return decision

    def _is_new(self, step: Step, payment: Payment, digest: bytes) -> bool:
        """Honest replies never repeat: their keys are random."""
        known = self._records.get(rec.REPLIES, digest)
        if known is None:
            self._records.put(rec.REPLIES, digest, payment.id.encode(), stamp=step.now_ns)
            return True
        self.replays += 1
        step.alarm("webpay_reply_replayed", payment.merchant, payment.shown)
        return False

    def late(self, step: Step, name: str, digest: bytes) -> None:
        """An ACK that came after the decision: kept, and nothing else changes."""
        payment = self._known(name)
        if payment.late_ack or payment.state in (rec.DECIDING, rec.CONFIRMED):
            return
        if digest and not self._is_new(step, payment, digest):
            return
        payment.late_ack = True
        self.late_acks += 1
        self._note(step, payment, "LATE_ACK")
        self._put(step, payment)

    def _conclude(self, step: Step, payment: Payment, decision: Decision) -> None:
        """DECIDED: what follows from it is ordered in the same step."""
        payment.prefix, payment.outcome = decision.prefix, decision.outcome
        payment.cause = decision.cause
        self._move(step, payment, decision.outcome)
        self._put(step, payment)
        step.disarm(ROLE, ACK_TIMER, payment.id)
        self._live.pop(payment.id, None)
        self._write_line(step, payment)
        if decision.charged:
            self._note_paid(step, payment)
            self._authorisers[payment.authoriser].capture(step, payment)
        if decision.reversal:
            reason = _REASONS.get(decision.cause, NOBODY_KNOWS)
            self._order_reversal(step, payment, reason, sent=False)
        self._count(decision.outcome, decision.cause)
        self._let_go(step, payment)

    def _write_line(self, step: Step, payment: Payment) -> None:
        line = Line(
            number=self._next_number(b"line"), merchant=payment.merchant, prefix=payment.prefix,
            message=payment.message, signature=payment.signature,
            year=self.dates.year_of(payment.accounting_date, payment.received_ns),
        )  # fmt: skip
        self._records.put(rec.LINES, payment.id.encode(), rec.encode(line), stamp=step.now_ns)
        step.call(ROLE, LINE, payment.id)

    def line(self, name: str) -> Line | None:
        """The line of a payment that is decided."""
        value = self._records.get(rec.LINES, name.encode())
        return None if value is None else rec.decode_line(value)

    def lines_after(self, number: int) -> list[str]:
        """Payments with a line of a higher number, in the order of their lines; at the start."""
        kept = ((rec.decode_line(v).number, key) for key, v in self._records.items(rec.LINES))
        return [key.decode() for found, key in sorted(kept) if found > number]

    @property
    def newest_line(self) -> int:
        """Number of the newest line there is to write."""
        return int(self._records.get(rec.NUMBERS, b"line") or b"0")

    # ---- reversal

    def _order_reversal(self, step: Step, payment: Payment, reason: str, *, sent: bool) -> None:
        payment.reversal, payment.reversal_reason = rec.OWED, reason
        self._put(step, payment)
        self._reverse(step, payment, sent=sent)

    def _reverse(self, step: Step, payment: Payment, *, sent: bool) -> None:
        authoriser = self._authorisers.get(payment.authoriser)
        if authoriser is None:  # owed to a bank that is not in the registry any more
            step.alarm("no_way_to_bank", payment.authoriser, payment.shown)
        elif authoriser.reverse(step, payment, sent=sent):
            self._reversed(step, payment, "00")

    def owed(self, key: str) -> Reversal | None:
        """The reversal a bank is owed; None: it has acknowledged it."""
        payment = self.payment(key)
        if payment is None or payment.reversal != rec.OWED:
            return None
        return reversal_of(payment, self._vault.open(payment.id, payment.pan_sealed))

    def _reversed(self, step: Step, payment: Payment, code: str) -> None:
        """REVERSAL_DONE: the authoriser has acknowledged, whatever it found."""
        if payment.reversal != rec.OWED:
            return
        payment.reversal, payment.reversal_code = rec.DONE, code
        if code != "00":
            payment.reversal_note = _NOTES.get(code, "check")
            step.alarm("webpay_reversal_" + payment.reversal_note, payment.shown, code)
        if payment.state == rec.REVERSING:
            self._move(step, payment, "REVERSAL_DONE")
        else:
            self._note(step, payment, "REVERSAL_DONE")
        self._put(step, payment)
        self._let_go(step, payment)

    def _let_go(self, step: Step, payment: Payment) -> None:
        """The key of a card number is erased as soon as nothing may need the number."""
        if payment.pan_sealed and not payment.is_open:
            step.call(ROLE, ERASE, payment.id)

    # ---- times

    def _form_expired(self, step: Step, payment: Payment) -> None:
        if payment.state in rec.PAYABLE:
            self._abort(step, payment, "expired")

    def _holder_late(self, step: Step, payment: Payment) -> None:
        self.authenticated(step, payment.id, "TO")

    def _sign_again(self, step: Step, payment: Payment) -> None:
        if payment.state in (rec.PAYING, rec.AUTHORISING) and self.t0_ns(payment.id) is not None:
            self._ask_signature(step, payment)

    def _ack_late(self, step: Step, payment: Payment) -> None:
        """Whatever became of the notification: it is over. A result without its signature by now
        is signed late: its shop is not told any more."""
        live = self._live.get(payment.id)
        if payment.state == rec.DECIDING:
            self.answered(step, payment.id, "NONE", None, b"")
        elif live is not None and live.verdict is not None and payment.is_open:
            step.alarm("webpay_result_unsigned", payment.merchant, payment.shown)
            step.call(ROLE, SIGN, payment.id)
            step.arm(ROLE, ACK_TIMER, payment.id, ACK_GRACE_S)

    def _abort(self, step: Step, payment: Payment, cause: str) -> None:
        payment.cause = cause
        self._move(step, payment, "ABORTED")
        self._put(step, payment)
        self._live.pop(payment.id, None)
        for timer in (FORM_TIMER, HOLDER_TIMER):
            step.disarm(ROLE, timer, payment.id)
        self._count(rec.ABORTED, cause)
        self._let_go(step, payment)

    # ---- after a stop

    def unfinished(self) -> Iterable[Payment]:
        return list(self._payments.open())

    def adopt(self, step: Step, work: Payment) -> None:
        """Take a payment up again: before the authorisation it goes on or is given up, after it
        nothing stands that was not decided."""
        payment = self._known(work.id)
        state = payment.state
        self.recoveries[state] = self.recoveries.get(state, 0) + 1
        if state in rec.PAYABLE:
            left_s = (payment.expires_ns - step.now_ns) / 1e9
            step.arm(ROLE, FORM_TIMER, payment.id, max(left_s, 0.0))
        elif state == rec.PAYING:
            self._abort(step, payment, "recovery")
        elif state == rec.AUTHORISING:
            self._undo_unknown(step, payment)
        elif state == rec.DECIDING:
            if payment.reversal == rec.OWED:
                self._reverse(step, payment, sent=True)
            self._conclude(step, payment, recovered(payment.respuesta))
        else:
            self._reverse(step, payment, sent=True)

    def _undo_unknown(self, step: Step, payment: Payment) -> None:
        """The 0200 may have left: its result is an error, and it is undone, all in one step."""
        verdict = Verdict(ERROR, reversal=True)
        payment.accounting_date = payment.accounting_date or self.dates.accounting(step.now_ns)
        message = self._message(payment, verdict)
        signature = self._sign(payment.key_id, message, payment.keys[0])
        self._result(step, payment, verdict, message, signature)
        self._conclude(step, payment, recovered(ERROR))

    # ---- inside

    def _known(self, name: str) -> Payment:
        payment = self.payment(name)
        assert payment is not None, "a payment that somebody speaks of is there"
        return payment

    def _move(self, step: Step, payment: Payment, event: str) -> None:
        move(payment, event, step.now_ns)
        self._told(payment, event)

    def _note(self, step: Step, payment: Payment, event: str) -> None:
        note(payment, event, step.now_ns)
        self._told(payment, event)

    def _put(self, step: Step, payment: Payment) -> None:
        self._payments.put(payment.id.encode(), payment, step.now_ns)

    def _note_order(self, step: Step, payment: Payment) -> None:
        key = _order_key(payment.merchant, payment.order)
        before = self._orders.get(key)
        order = Order(payment.id)
        if before is not None:
            earlier = (*before.earlier, before.payment)[-EARLIER_MAX:]
            order = Order(payment.id, before.paid, earlier)
        self._orders.put(key, order, step.now_ns)

    def _note_paid(self, step: Step, payment: Payment) -> None:
        key = _order_key(payment.merchant, payment.order)
        order = self._orders.get(key)
        assert order is not None, "a payment has its order"
        order.paid = True
        self._orders.put(key, order, step.now_ns)

    def _next_number(self, what: bytes) -> int:
        """One after the other for ever."""
        number = int(self._records.get(rec.NUMBERS, what) or b"0") + 1
        self._records.put(rec.NUMBERS, what, str(number).encode())
        return number

    def _count(self, outcome: str, cause: str) -> None:
        self.outcomes[outcome, cause] = self.outcomes.get((outcome, cause), 0) + 1


def _order_key(merchant: str, order: str) -> bytes:
    return f"{merchant}|{order}".encode()
