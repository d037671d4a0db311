"""Who authorises a payment: a bank behind a link, or our own ledger. One form for both.

    authorise   answers at once (`Verdict`), or later to the flow
    capture     a sale that stands
    reverse     undo, whatever the first did: never refused, in the end always acknowledged

All three only order what is durable with the step.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from core_ext import Batch, Ledger, Records, Result
from core_ext._ledger import DEBITS_MUST_NOT_EXCEED_CREDITS, NEVER_AUTO
from protocols.iso8583.bank import (
    ENTRY_E_COMMERCE,
    BankAnswer,
    Card,
    Purchase,
    Reversal,
    Shop,
    amount_text,
)
from protocols.iso8583.ceibo import Original
from protocols.iso8583.dialect import Message
from switch.flows.bank_port import BankClient, BankPort
from switch.flows.limit_book import ledger_number
from switch.flows.registry import account_id
from switch.flows.step import Step
from switch.flows.webpay_records import CARDS, LedgerCard, Payment, decode_card, encode

BOOK: Final = 6
ACCOUNT_CARD: Final = 61
ACCOUNT_MERCHANT: Final = 62
ACCOUNT_FUNDING: Final = 63

RETRY: Final = -2
ERROR: Final = -3
VCI_MAX: Final = 4
DECLINED: Final = -1

USUAL_MAP: Final[Mapping[str, int]] = {
    "00": 0,
    **dict.fromkeys(("19", "68", "91", "92", "96"), RETRY),
    **dict.fromkeys(("12", "13", "25", "30", "94"), ERROR),
    **dict.fromkeys(("61", "65"), -7),
    **dict.fromkeys(("03", "58"), -8),
}
"""TBK_RESPUESTA by DE39; any other code is a decline."""

UNREPORTABLE: Final = frozenset(("08", "10", "11", "16"))
"""Approvals of a kind that a result cannot tell: declined, and reversed."""


class Secret(NamedTuple):
    """A card as its holder typed it: in memory only, until its message is written."""

    pan: str
    expiry: str  # YYMM
    cvv: str

    def __repr__(self) -> str:
        return "Secret(***)"


class Verdict(NamedTuple):
    """What an authoriser has said.

    Attributes:
        reversal: its hold may stand, and must be undone.
        accounting_date: MMDD; empty: not told.
        vci: empty: not told.
    """

    respuesta: int
    auth_code: str = ""
    accounting_date: str = ""
    vci: str = ""
    reversal: bool = False


class Authoriser(Protocol):
    """One way to authorise payments."""

    def authorise(self, step: Step, payment: Payment, secret: Secret, local: str) -> Verdict | None:
        """None: the verdict comes later. `local`: MMDDhhmmss of the bank's zone."""

    def capture(self, step: Step, payment: Payment) -> None:
        """The sale stands."""

    def reverse(self, step: Step, payment: Payment, *, sent: bool) -> bool:
        """Undo; True: it is done already. `sent`: it may have been asked for before."""


def respuesta_of(code: str, overrides: Mapping[str, int]) -> int:
    """TBK_RESPUESTA of a host's code."""
    return overrides.get(code, USUAL_MAP.get(code, DECLINED))


class BankAuthoriser:
    """A bank behind a link; its reversals are repeated until it acknowledges them."""

    def __init__(
        self, port: BankPort, client: BankClient, *, timeout_s: float, mcc: Mapping[str, str]
    ) -> None:
        self._port = port
        self._client = client
        self._timeout_s = timeout_s
        self._mcc = mcc

    def authorise(self, step: Step, payment: Payment, secret: Secret, local: str) -> Verdict | None:
        credit = payment.kind == "C"
        card = Card(
            pan=secret.pan,
            expiry=secret.expiry if credit else "",
            entry_mode=ENTRY_E_COMMERCE,
            card_type="C" if credit else "D",
            verification_value=secret.cvv if credit else "",
            vci=payment.vci,
        )
        message = Purchase(
            operation=payment.operation,
            amount=payment.minor,
            currency=payment.currency,
            card=card,
            shop=Shop(category=self._mcc[payment.merchant], merchant=payment.merchant),
            instalments=payment.instalments,
            bank_code=payment.bank,
            order=payment.order,
        )
        try:
            asked = self._port.ask(
                step, self._client, payment.id, message, self._timeout_s, local=local
            )
        except ValueError:
            return Verdict(ERROR)  # the amount has no form at this bank
        return None if asked else Verdict(RETRY)

    def verdict(
        self,
        payment: Payment,
        answer: BankAnswer,
        message: Message,
        overrides: Mapping[str, int],
    ) -> Verdict:
        """What a 0210 comes to; an approval that cannot be reported as it is will be undone."""
        code = answer.host_code
        date = message.get("15", "")
        asked = amount_text(payment.minor, payment.currency, self._port.settings.exponent)
        respuesta = respuesta_of(code, overrides)
        auth_code = ""
        if code in UNREPORTABLE:
            respuesta, undo = DECLINED, True
        elif code == "00" and message.get("4", asked) != asked:
            respuesta, undo = ERROR, True
        else:
            undo = code == "00" and respuesta != 0
            given = "".join(c for c in answer.authorization if c.isascii() and c.isalnum())
            auth_code = given[:6].rjust(6, "0")
        accounting = date if len(date) == 4 and date.isdigit() else ""
        return Verdict(respuesta, auth_code, accounting, answer.vci[:VCI_MAX], undo)

    def capture(self, step: Step, payment: Payment) -> None:
        """A 0210 needs no further word."""

    def reverse(self, step: Step, payment: Payment, *, sent: bool) -> bool:
        self._port.owe(step, self._client, payment.id, sent=sent)
        return False


def reversal_of(payment: Payment, pan: str) -> Reversal:
    """The message that undoes a payment at its bank."""
    return Reversal(
        operation=payment.operation,
        amount=payment.minor,
        currency=payment.currency,
        reason=payment.reversal_reason,
        original=Original(mti="0200"),
        pan=pan,
    )


class LedgerAuthoriser:
    """Cards whose accounts are in our own ledger: a hold that waits for ever, then one posting."""

    def __init__(self, ledger: Ledger, records: Records) -> None:
        self._ledger = ledger
        self._records = records
        self._known: set[bytes] = set()

    def open_card(self, pan_hash: bytes, currency: str, balance_minor: int, now_ns: int) -> None:
        """Make the account of a card, with a balance out of the house's funds; for operators."""
        account = account_id(f"webpay:{currency}:card:{pan_hash.hex()}")
        self._ensure(account, currency, ACCOUNT_CARD, now_ns, DEBITS_MUST_NOT_EXCEED_CREDITS)
        self._records.put(CARDS, pan_hash, encode(LedgerCard(currency, account)))
        if balance_minor:
            funding = account_id(f"webpay:{currency}:funding")
            self._ensure(funding, currency, ACCOUNT_FUNDING, now_ns)
            batch = Batch()
            batch.transfer(funding, account, balance_minor)
            result = self._apply(batch, now_ns)
            assert result == Result.DONE, f"funding refused: {result.name}"

    def authorise(self, step: Step, payment: Payment, secret: Secret, local: str) -> Verdict | None:
        value = self._records.get(CARDS, payment.pan_hash)
        card = None if value is None else decode_card(value)
        if card is None or card.currency != payment.currency:
            return Verdict(DECLINED)
        merchant = account_id(f"webpay:{payment.currency}:merchant:{payment.merchant}")
        self._ensure(merchant, payment.currency, ACCOUNT_MERCHANT, step.now_ns)
        hold = hold_id(payment.id)
        batch = Batch()
        batch.hold(
            hold, card.account, merchant, payment.minor, key=hold, digest=payment.minor,
            policy=NEVER_AUTO, day=step.now_ns // 86_400_000_000_000,
        )  # fmt: skip
        result = self._apply(batch, step.now_ns)
        if result == Result.DONE:
            return Verdict(0, auth_code=_auth_code(payment.operation))
        return Verdict(_refused(result, batch.outcome(0).window))

    def capture(self, step: Step, payment: Payment) -> None:
        hold = hold_id(payment.id)
        batch = Batch()
        batch.capture(hold, key=_act_id(payment.id, "capture"), digest=payment.minor)
        result = self._apply(batch, step.now_ns)
        assert result == Result.DONE, f"a hold could not be captured: {result.name}"

    def reverse(self, step: Step, payment: Payment, *, sent: bool) -> bool:
        """A hold that was never made leaves a tombstone: it cannot be made later."""
        batch = Batch()
        batch.release(hold_id(payment.id), key=_act_id(payment.id, "release"), digest=payment.minor)
        result = self._apply(batch, step.now_ns)
        allowed = (Result.DONE, Result.ORIGINAL_UNKNOWN, Result.TOMBSTONED)
        assert result in allowed, f"a hold could not be released: {result.name}"
        return True

    def _apply(self, batch: Batch, now_ns: int) -> Result:
        result = Result(self._ledger.apply(batch, now_ns)[0])
        return batch.outcome(0).first if result == Result.REPEATED else result

    def _ensure(
        self, account: bytes, currency: str, code: int, now_ns: int, flags: int = 0
    ) -> None:
        if account in self._known or self._ledger.balance(account) is not None:
            self._known.add(account)
            return
        batch = Batch()
        batch.create_account(account, ledger=ledger_number(currency, BOOK), code=code, flags=flags)
        if self._apply(batch, now_ns) == Result.DONE:
            self._known.add(account)


def hold_id(payment: str) -> bytes:
    """Id of a payment's hold in the ledger."""
    return _act_id(payment, "hold")


def _act_id(payment: str, act: str) -> bytes:
    return account_id(f"webpay:{payment}:{act}")


def _auth_code(operation: str) -> str:
    """Six digits that the operation's number gives; the ledger knows no other name for it."""
    return operation[-6:]


def _refused(result: Result, window: str) -> int:
    if result in (Result.LIMIT_AMOUNT, Result.LIMIT_COUNT):
        return -6 if window == "month" else -7
    if result == Result.AMOUNT_OVER_RANGE:
        return -7
    return RETRY if result in (Result.OVERLOADED, Result.JOURNAL_FULL) else DECLINED
