"""What the ledger may answer: one fixed vocabulary, its precedence and its DE39 values.

Where several refusals would be true, the first of `PRECEDENCE` is given, so the same command on the
same state always gets the same answer. Source: ledger specification, "Results".
"""

from collections.abc import Mapping
from enum import IntEnum, unique
from types import MappingProxyType
from typing import NamedTuple


@unique
class Result(IntEnum):
    """Outcome of one command. The numbers are journaled: never renumber, only append."""

    DONE = 0
    REPEATED = 1  # same key, same digest: `Outcome.first` holds the first result
    PARTIAL = 2  # tick, forget: bounded work done, more is due; give the command again
    REPEATED_WITH_DIFFERENCE = 3  # same key, another digest
    KEY_EXPIRED = 4  # the key is older than the horizon of `forget`
    IN_DOUBT = 5  # never decided by the core and never answered; a journal back end's state
    AMOUNT_NOT_POSITIVE = 6
    AMOUNT_OVER_RANGE = 7  # off the profile's operation minimum, maximum or multiple
    CURRENCY_DIFFERS = 8  # the two accounts are not of one ledger
    SAME_ACCOUNT_BOTH_SIDES = 9  # also a meter named twice
    ACCOUNT_UNKNOWN = 10  # also a limit profile that was never set
    ACCOUNT_CLOSED = 11
    ACCOUNT_FROZEN_DEBIT = 12
    ACCOUNT_FROZEN_CREDIT = 13
    ACCOUNT_FROZEN_HOLD = 14
    FUNDS_SHORT = 15
    CREDIT_LIMIT_REACHED = 16  # funds_short of an account that has a credit limit
    BALANCE_CAP_REACHED = 17
    LIQUIDITY_SHORT = 18  # net debit cap or payable cap of a POSITION account
    WOULD_OVERFLOW = 19
    LIMIT_AMOUNT = 20  # `Outcome.window` names the window
    LIMIT_COUNT = 21  # likewise; of `attempt`: this try locked the key, or it is locked
    HOLD_UNKNOWN = 22
    HOLD_CAPTURED = 23
    HOLD_RELEASED = 24
    HOLD_EXPIRED = 25
    OVER_HOLD = 26
    TOMBSTONED = 27
    ORIGINAL_UNKNOWN = 28  # release of an unknown hold; remembered as a tombstone
    ALREADY_REVERSED = 29
    OVER_ORIGINAL = 30  # given by roles that see a reversal above its original
    CHAIN_FAILED = 31  # another command of the linked chain was refused
    NOT_OWNER = 32  # given by the partition layer
    FENCED = 33  # given by the partition layer
    JOURNAL_FULL = 34
    OVERLOADED = 35  # a table is at its maximum
    TOO_LATE = 36  # the deadline passed before the decision; nothing applied

    @property
    def key(self) -> str:
        """Return the name as the specification writes it, in lower case."""
        return self.name.lower()


PRECEDENCE: tuple[Result, ...] = (
    Result.NOT_OWNER,
    Result.FENCED,
    Result.JOURNAL_FULL,
    Result.IN_DOUBT,
    Result.REPEATED,
    Result.REPEATED_WITH_DIFFERENCE,
    Result.KEY_EXPIRED,
    Result.OVERLOADED,  # no room for the key; where there is none for the hold: after TOMBSTONED
    Result.TOMBSTONED,
    Result.TOO_LATE,
    Result.HOLD_UNKNOWN,
    Result.ORIGINAL_UNKNOWN,
    Result.HOLD_CAPTURED,
    Result.HOLD_RELEASED,
    Result.HOLD_EXPIRED,
    Result.ALREADY_REVERSED,
    Result.AMOUNT_NOT_POSITIVE,
    Result.OVER_HOLD,
    Result.OVER_ORIGINAL,
    Result.SAME_ACCOUNT_BOTH_SIDES,
    Result.ACCOUNT_UNKNOWN,
    Result.CURRENCY_DIFFERS,
    Result.ACCOUNT_CLOSED,
    Result.ACCOUNT_FROZEN_DEBIT,
    Result.ACCOUNT_FROZEN_CREDIT,
    Result.ACCOUNT_FROZEN_HOLD,
    Result.AMOUNT_OVER_RANGE,
    Result.CREDIT_LIMIT_REACHED,
    Result.FUNDS_SHORT,
    Result.LIQUIDITY_SHORT,
    Result.BALANCE_CAP_REACHED,
    Result.WOULD_OVERFLOW,
    Result.LIMIT_AMOUNT,
    Result.LIMIT_COUNT,
    Result.CHAIN_FAILED,
    Result.PARTIAL,
    Result.DONE,
)

DE39: Mapping[Result, str] = MappingProxyType(
    {
        Result.DONE: "00",
        Result.REPEATED: "00",
        Result.PARTIAL: "10",
        Result.REPEATED_WITH_DIFFERENCE: "94",
        Result.KEY_EXPIRED: "94",
        Result.AMOUNT_NOT_POSITIVE: "13",
        Result.AMOUNT_OVER_RANGE: "13",
        Result.CURRENCY_DIFFERS: "12",
        Result.SAME_ACCOUNT_BOTH_SIDES: "12",
        Result.ACCOUNT_UNKNOWN: "14",
        Result.ACCOUNT_CLOSED: "78",
        Result.ACCOUNT_FROZEN_DEBIT: "62",
        Result.ACCOUNT_FROZEN_CREDIT: "62",
        Result.ACCOUNT_FROZEN_HOLD: "62",
        Result.FUNDS_SHORT: "51",
        Result.CREDIT_LIMIT_REACHED: "51",
        Result.BALANCE_CAP_REACHED: "61",
        Result.LIQUIDITY_SHORT: "62",
        Result.WOULD_OVERFLOW: "96",
        Result.LIMIT_AMOUNT: "61",
        Result.LIMIT_COUNT: "65",
        Result.HOLD_UNKNOWN: "25",
        Result.HOLD_CAPTURED: "A3",
        Result.HOLD_RELEASED: "21",
        Result.HOLD_EXPIRED: "21",
        Result.OVER_HOLD: "61",
        Result.TOMBSTONED: "21",
        Result.ORIGINAL_UNKNOWN: "25",
        Result.ALREADY_REVERSED: "21",
        Result.OVER_ORIGINAL: "61",
        Result.CHAIN_FAILED: "12",
        Result.NOT_OWNER: "91",
        Result.FENCED: "96",
        Result.JOURNAL_FULL: "96",
        Result.OVERLOADED: "91",
        Result.TOO_LATE: "68",
    }
)
"""DE39 of each result, before a role maps further; IN_DOUBT has none, as it is never answered."""


class Outcome(NamedTuple):
    """One decision in full, from `Batch.outcome`.

    Fields:
        result: what `apply` returned for the command.
        first: for REPEATED and REPEATED_WITH_DIFFERENCE the result of the original decision, else
            `result` itself.
        window: 'operation', 'day', 'night', 'week' or 'month' for LIMIT_AMOUNT and LIMIT_COUNT of
            a profile; '' otherwise.
        account: which account the limit belongs to: 0 debit, 1 credit, 2.. the meters in order.
        decided_ns: time of the original decision, as given to `apply`.
    """

    result: Result
    first: Result
    window: str
    account: int
    decided_ns: int


class Balance(NamedTuple):
    """An account as it stands; amounts in minor units.

    `available` = credits_posted - debits_posted - debits_pending + credit_limit, the only number a
    rule may read; pending credits never count.
    """

    debits_pending: int
    debits_posted: int
    credits_pending: int
    credits_posted: int
    credit_limit: int
    available: int
    ledger: int
    code: int
    flags: int
    profile: int
    min_balance: int
    max_balance: int


class HoldView(NamedTuple):
    """A hold as it stands.

    Fields:
        state: 'open', 'captured', 'released', 'expired', 'annulled' or 'tombstone'.
        amount, captured, released: minor units; captured may exceed amount by the tolerance of its
            capture, or where it was forced.
        debit, credit: account ids; b"" in a tombstone.
        day: business date, days since 1970-01-01.
        policy: 0 never-auto, 1 ask-network, 2 auto-after.
        created_ns, expires_ns, closed_ns: injected time; 0 where it does not apply.
        head: id of the first hold of its chain, its own id when alone.
        forced: a forced posting was made for it.
    """

    state: str
    amount: int
    captured: int
    released: int
    debit: bytes
    credit: bytes
    day: int
    policy: int
    code: int
    created_ns: int
    expires_ns: int
    closed_ns: int
    head: bytes
    forced: bool
