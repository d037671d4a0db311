"""Where the customers' money is: a hold that an accepted proof turns into a posting.

A capture comes only after the network took the proof, and a hold cannot fail to be captured, so an
answer that is lost anywhere never costs money. Operation ids follow from the item, so repeats are
known by the ledger.
"""

from hashlib import sha256
from typing import Final, Protocol

from core_ext import Batch, Ledger, Result
from core_ext._ledger import DEBITS_MUST_NOT_EXCEED_CREDITS, NEVER_AUTO
from switch.calendar import Calendar
from switch.flows.limit_book import ledger_number
from switch.flows.registry import account_id
from switch.flows.step import Step
from switch.flows.transfiya_records import CORE_DONE, UPLOAD, Item, SignerRecord

BOOK: Final = 4
ACCOUNT_CUSTOMER: Final = 41
ACCOUNT_SETTLEMENT: Final = 42
ACCOUNT_FUNDING: Final = 43

DONE: Final = CORE_DONE

_INACTIVE = frozenset(
    (
        Result.ACCOUNT_UNKNOWN,
        Result.ACCOUNT_CLOSED,
        Result.ACCOUNT_FROZEN_DEBIT,
        Result.ACCOUNT_FROZEN_CREDIT,
        Result.ACCOUNT_FROZEN_HOLD,
    )
)
_FUNDS = frozenset((Result.FUNDS_SHORT, Result.CREDIT_LIMIT_REACHED))
_LIMITS = frozenset(
    (
        Result.AMOUNT_OVER_RANGE,
        Result.BALANCE_CAP_REACHED,
        Result.LIQUIDITY_SHORT,
        Result.LIMIT_AMOUNT,
        Result.LIMIT_COUNT,
    )
)


class Core(Protocol):
    """A bank's core. Each act is `done`, `later` (its end is told by a step of its own), or the
    reason why not."""

    def refusal(self, item: Item, signer: SignerRecord) -> str:
        """A reason the core can tell at once; empty: none."""

    def reserve(self, step: Step, item: Item, signer: SignerRecord) -> str:
        """Phase 1; sets `item.core`, the reference."""

    def post(self, step: Step, item: Item) -> str:
        """Phase 2, once the network has taken the proof: never refused."""

    def undo(self, step: Step, item: Item) -> str:
        """Undo phase 1, whatever it did: never refused."""

    def adopt(self, step: Step, item: Item) -> str:
        """After a start: a reason why the item cannot go on, or empty."""


def customer_account(bank: str, account: str) -> bytes:
    """Id of a customer's account in the ledger."""
    return account_id(f"transfiya:{bank}:account:{account}")


def settlement_account(bank: str, currency: str) -> bytes:
    """Id of the account that stands for the bank's balance in the network, with opposite sign."""
    return account_id(f"transfiya:{bank}:{currency}:settlement")


def operation_id(bank: str, key: str, act: str) -> bytes:
    """Id of one act in the ledger: the same for every repeat."""
    return sha256(f"tfy1/{bank}/{key}/{act}".encode()).digest()[:16]


class LedgerCore:
    """Accounts in the switch's own ledger."""

    def __init__(self, bank: str, ledger: Ledger, calendar: Calendar) -> None:
        self._bank = bank
        self._ledger = ledger
        self._calendar = calendar
        self._known: set[bytes] = set()

    def open_account(self, account: str, currency: str, balance_minor: int, now_ns: int) -> None:
        """Make a customer's account, with a balance out of the bank's funds; for operators."""
        customer = customer_account(self._bank, account)
        self._ensure(customer, currency, ACCOUNT_CUSTOMER, now_ns, DEBITS_MUST_NOT_EXCEED_CREDITS)
        if balance_minor:
            funding = account_id(f"transfiya:{self._bank}:{currency}:funding")
            self._ensure(funding, currency, ACCOUNT_FUNDING, now_ns)
            batch = Batch()
            batch.transfer(funding, customer, balance_minor)
            result = self._ledger.apply(batch, now_ns)[0]
            assert result == Result.DONE, f"funding refused: {Result(result).name}"

    def balance(self, account: str) -> int:
        """What stands on a customer's account, posted; minor units."""
        found = self._ledger.balance(customer_account(self._bank, account))
        return 0 if found is None else found.credits_posted - found.debits_posted

    def settlement(self, currency: str) -> int:
        """What the bank owes the network (positive) or has there (negative); minor units."""
        found = self._ledger.balance(settlement_account(self._bank, currency))
        return 0 if found is None else found.credits_posted - found.debits_posted

    def refusal(self, item: Item, signer: SignerRecord) -> str:
        found = self._ledger.balance(customer_account(self._bank, signer.account))
        if found is None:
            return "account-unknown"
        if item.kind == UPLOAD and found.available < item.minor:
            return "funds-insufficient"
        return ""

    def reserve(self, step: Step, item: Item, signer: SignerRecord) -> str:
        customer = customer_account(self._bank, signer.account)
        settlement = settlement_account(self._bank, signer.currency)
        self._ensure(settlement, signer.currency, ACCOUNT_SETTLEMENT, step.now_ns)
        debit, credit = (customer, settlement) if item.kind == UPLOAD else (settlement, customer)
        hold = operation_id(self._bank, item.key, "hold")
        batch = Batch()
        batch.hold(
            hold, debit, credit, item.minor, key=hold, digest=item.minor, policy=NEVER_AUTO,
            day=self._calendar.business(step.now_ns).number, metered=False,
        )  # fmt: skip
        result = self._apply(batch, step)
        item.core = hold.hex()
        if result == Result.DONE:
            return DONE
        if result in _INACTIVE:
            return "account-inactive"
        if result in _FUNDS:
            return "funds-insufficient"
        return "limit-exceeded" if result in _LIMITS else "core-refused"

    def post(self, step: Step, item: Item) -> str:
        batch = Batch()
        batch.capture(
            operation_id(self._bank, item.key, "hold"),
            key=operation_id(self._bank, item.key, "capture"), digest=item.minor,
        )  # fmt: skip
        result = self._apply(batch, step)
        assert result == Result.DONE, f"a hold could not be captured: {result.name}"
        return DONE

    def undo(self, step: Step, item: Item) -> str:
        """A hold that was never made leaves a tombstone: it cannot be made later."""
        batch = Batch()
        batch.release(
            operation_id(self._bank, item.key, "hold"),
            key=operation_id(self._bank, item.key, "release"), digest=item.minor,
        )  # fmt: skip
        result = self._apply(batch, step)
        assert result in (Result.DONE, Result.ORIGINAL_UNKNOWN, Result.TOMBSTONED), result.name
        return DONE

    def adopt(self, step: Step, item: Item) -> str:
        return ""  # the ledger knows every repeat

    def _apply(self, batch: Batch, step: Step) -> Result:
        result = Result(self._ledger.apply(batch, step.now_ns)[0])
        return batch.outcome(0).first if result == Result.REPEATED else result

    def _ensure(
        self, account: bytes, currency: str, code: int, now_ns: int, flags: int = 0
    ) -> None:
        if account in self._known or self._ledger.balance(account) is not None:
            self._known.add(account)
            return
        batch = Batch()
        batch.create_account(
            account, ledger=ledger_number(currency, BOOK), code=code, flags=flags
        )  # fmt: skip
        result = self._ledger.apply(batch, now_ns)[0]
        assert result == Result.DONE, f"account could not be made: {Result(result).name}"
        self._known.add(account)
