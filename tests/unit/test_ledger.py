"""The native ledger, case by case: what each command promises. The model test has the breadth."""

import datetime
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import core_ext._ledger as native
from core_ext._batch import Batch
from core_ext._journal import Journal, Reader
from core_ext._ledger import (
    ASK_NETWORK,
    AUTO_AFTER,
    CREDITS_MUST_NOT_EXCEED_DEBITS,
    DEBITS_MUST_NOT_EXCEED_CREDITS,
    FROZEN_CREDIT,
    FROZEN_DEBIT,
    FROZEN_HOLD,
    NO_LIMIT,
    POSITION,
    UNTIL_UNLOCKED,
    Ledger,
    NullSink,
)
from core_ext._sink import MemorySink
from core_ext.results import DE39, PRECEDENCE, Result

SECOND = 1_000_000_000
DAY_NS = 86_400 * SECOND
NOW = 1_790_000_000 * SECOND
TODAY = NOW // DAY_NS
I64_MAX = 2**63 - 1


def name(number: int, kind: int = 1) -> bytes:
    return number.to_bytes(8, "little") + kind.to_bytes(8, "little")


CARD, CLEARING, FEES, NET, ISSUER = (name(n) for n in range(1, 6))
H1, H2, H3 = (name(n, 2) for n in range(1, 4))
K1, K2 = (name(n, 3) for n in range(1, 3))


class Bank:
    """A ledger with a card (1000 on it) and its counter-accounts; one call applies one command."""

    def __init__(self, *, flags: int = DEBITS_MUST_NOT_EXCEED_CREDITS, **sizes: int) -> None:
        self.sink = MemorySink()
        self.ledger = Ledger(sink=self.sink, **sizes)
        self.batch = Batch()
        self.now = NOW
        self.do("create_account", CARD, ledger=600, code=1, flags=flags)
        self.do("create_account", CLEARING, ledger=600, code=2)
        self.do("create_account", FEES, ledger=600, code=3)
        assert self.do("transfer", CLEARING, CARD, 1000) == Result.DONE

    def do(self, method: str, *args: object, **kwargs: object) -> Result:
        self.batch.clear()
        getattr(self.batch, method)(*args, **kwargs)
        return self.apply()[0]

    def apply(self) -> list[Result]:
        results = [Result(r) for r in self.ledger.apply(self.batch, self.now)]
        assert self.ledger.check() == []
        return results

    def hold(self, hold: bytes = H1, amount: int = 100, **kwargs: object) -> Result:
        kwargs = {"debit": CARD, "credit": CLEARING, "day": TODAY, **kwargs}
        return self.do("hold", hold, amount=amount, **kwargs)

    def available(self, account: bytes = CARD) -> int:
        balance = self.ledger.balance(account)
        assert balance is not None
        return balance.available

    def state(self, hold: bytes = H1) -> str:
        view = self.ledger.hold(hold)
        assert view is not None
        return view.state


@pytest.fixture
def bank() -> Bank:
    return Bank()


# --- Results --------------------------------------------------------------------------------------


def test_every_result_has_its_place_and_its_de39():
    assert sorted(PRECEDENCE) == sorted(Result)
    assert set(DE39) == set(Result) - {Result.IN_DOUBT}
    assert Result.FUNDS_SHORT.key == "funds_short"


# --- Holds, captures, releases --------------------------------------------------------------------


def test_a_hold_lowers_available_at_once_and_the_other_side_cannot_spend_it(bank):
    assert bank.hold(amount=300) == Result.DONE
    assert bank.available() == 700
    clearing = bank.ledger.balance(CLEARING)
    assert (clearing.credits_pending, clearing.credits_posted) == (300, 0)
    assert bank.do("capture", H1) == Result.DONE
    assert bank.available() == 700
    assert bank.ledger.balance(CLEARING).credits_posted == 300
    assert bank.do("capture", H1) == Result.HOLD_CAPTURED
    assert bank.do("release", H1) == Result.HOLD_CAPTURED


def test_a_release_gives_it_back_once(bank):
    bank.hold()
    assert bank.do("release", H1) == Result.DONE
    assert bank.available() == 1000
    assert bank.do("release", H1) == Result.HOLD_RELEASED
    assert bank.do("capture", H1) == Result.HOLD_RELEASED


def test_funds_are_exact_to_the_unit(bank):
    assert bank.hold(H1, 1001) == Result.FUNDS_SHORT
    assert bank.hold(H2, 1000) == Result.DONE
    assert bank.hold(H3, 1) == Result.FUNDS_SHORT


def test_credit_limit_and_min_balance(bank):
    bank.do("set_limits", CARD, credit_limit=50)
    assert bank.hold(H1, 1051) == Result.CREDIT_LIMIT_REACHED
    bank.do("set_limits", CARD, credit_limit=0, min_balance=100)
    assert bank.hold(H1, 901) == Result.FUNDS_SHORT
    assert bank.hold(H1, 900) == Result.DONE


def test_a_lowered_credit_limit_stops_debits_and_is_sound(bank):
    bank.do("set_limits", CARD, credit_limit=500)
    bank.hold(H1, 1400)
    assert bank.do("set_limits", CARD, credit_limit=0) == Result.DONE
    assert bank.available() == -400
    assert bank.hold(H2, 1) == Result.FUNDS_SHORT
    assert bank.do("capture", H1) == Result.DONE


def test_several_captures_and_the_rest_released(bank):
    bank.hold(amount=100)
    assert bank.do("capture", H1, 30, final=False) == Result.DONE
    assert bank.do("capture", H1, 20, final=False) == Result.DONE
    assert bank.ledger.hold(H1)[:4] == ("open", 100, 50, 0)
    assert bank.available() == 900
    assert bank.do("capture", H1, 10) == Result.DONE
    assert bank.ledger.hold(H1)[:4] == ("captured", 100, 60, 40)
    assert bank.available() == 940


def test_a_capture_of_all_that_remains_is_final(bank):
    bank.hold(amount=100)
    bank.do("capture", H1, 60, final=False)
    bank.do("capture", H1, 40, final=False)
    assert bank.state() == "captured"


def test_tolerance_counts_over_all_captures_and_needs_funds(bank):
    bank.hold(H1, 100)
    assert bank.do("capture", H1, 111, tolerance=10) == Result.OVER_HOLD
    assert bank.do("capture", H1, 110, tolerance=10) == Result.DONE
    bank.hold(H2, 890)
    assert bank.do("capture", H2, 891, tolerance=10) == Result.FUNDS_SHORT
    assert bank.do("capture", H2) == Result.DONE


def test_increment_adds_to_an_open_hold(bank):
    bank.hold(amount=100)
    assert bank.do("increment", H1, 50) == Result.DONE
    assert bank.do("increment", H1, 851) == Result.FUNDS_SHORT
    assert bank.ledger.hold(H1).amount == 150
    assert bank.hold(amount=100) == Result.REPEATED
    bank.do("capture", H1)
    assert bank.do("increment", H1, 1) == Result.HOLD_CAPTURED
    assert bank.do("increment", H2, 1) == Result.HOLD_UNKNOWN


def test_the_same_hold_id_again_is_a_repeat_or_a_difference(bank):
    bank.hold()
    bank.now += SECOND
    assert bank.hold() == Result.REPEATED
    assert bank.batch.outcome(0).decided_ns == NOW
    assert bank.hold(amount=101) == Result.REPEATED_WITH_DIFFERENCE
    assert bank.available() == 900


def test_a_release_before_its_hold_leaves_a_tombstone(bank):
    assert bank.do("release", H1, tombstone=False) == Result.HOLD_UNKNOWN
    assert bank.ledger.hold(H1) is None
    assert bank.do("release", H1) == Result.ORIGINAL_UNKNOWN
    assert bank.state() == "tombstone"
    assert bank.do("release", H1) == Result.TOMBSTONED
    assert bank.hold() == Result.TOMBSTONED
    assert bank.do("capture", H1) == Result.TOMBSTONED


def test_refusals_by_shape(bank):
    other = name(77)
    bank.do("create_account", other, ledger=840, code=1)
    assert bank.hold(amount=0) == Result.AMOUNT_NOT_POSITIVE
    assert bank.hold(amount=-5) == Result.AMOUNT_NOT_POSITIVE
    assert bank.hold(credit=CARD) == Result.SAME_ACCOUNT_BOTH_SIDES
    assert bank.hold(credit=name(99)) == Result.ACCOUNT_UNKNOWN
    assert bank.hold(credit=other) == Result.CURRENCY_DIFFERS
    assert bank.hold(meters=[name(99)]) == Result.ACCOUNT_UNKNOWN
    assert bank.hold(meters=[FEES, FEES]) == Result.SAME_ACCOUNT_BOTH_SIDES
    assert bank.hold(deadline_ns=NOW - 1) == Result.TOO_LATE
    assert bank.hold(deadline_ns=NOW) == Result.DONE


def test_freezes_and_close(bank):
    for flag, result in (
        (FROZEN_DEBIT, Result.ACCOUNT_FROZEN_DEBIT),
        (FROZEN_HOLD, Result.ACCOUNT_FROZEN_HOLD),
    ):
        bank.do("freeze", CARD, flag)
        assert bank.hold() == result
        bank.do("unfreeze", CARD, flag)
    bank.do("freeze", CARD, FROZEN_CREDIT)
    assert bank.hold(H3, debit=CLEARING, credit=CARD) == Result.ACCOUNT_FROZEN_CREDIT
    assert bank.hold() == Result.DONE
    bank.do("freeze", CARD, FROZEN_DEBIT)
    assert bank.do("capture", H1) == Result.DONE  # what is held may be captured
    bank.do("close", CARD)
    assert bank.hold(H2) == Result.ACCOUNT_CLOSED
    assert bank.do("transfer", CLEARING, CARD, 1) == Result.ACCOUNT_CLOSED


def test_d24_a_deposit_cannot_be_credited_to_a_card_closed_in_between(bank):
    assert bank.hold(debit=CLEARING, credit=CARD, amount=70) == Result.DONE
    assert bank.available() == 1000  # pending credits never count
    bank.do("close", CARD)
    assert bank.do("capture", H1) == Result.ACCOUNT_CLOSED
    assert bank.do("release", H1) == Result.DONE


def test_overflow_is_a_result():
    bank = Bank(flags=0)
    assert bank.hold(H1, I64_MAX) == Result.DONE
    assert bank.hold(H2, 1) == Result.WOULD_OVERFLOW
    assert bank.do("increment", H1, 1) == Result.WOULD_OVERFLOW
    assert bank.do("transfer", CARD, CLEARING, I64_MAX) == Result.WOULD_OVERFLOW
    assert bank.available() == 1000 - I64_MAX
    assert bank.do("capture", H1) == Result.DONE
    assert bank.ledger.totals()[600][1] == I64_MAX + 1000


# --- Forced ---------------------------------------------------------------------------------------


def test_x137_a_forced_capture_posts_what_is_gone_and_is_listed(bank):
    bank.hold(amount=100)
    bank.do("release", H1)
    bank.hold(H2, 1000)
    assert bank.do("capture", H1, forced=True) == Result.DONE
    assert bank.available() == -100
    assert bank.ledger.forced() == [(H1, CARD, 100, NOW)]
    assert bank.do("capture", H1, forced=True) == Result.HOLD_CAPTURED
    assert bank.hold(H3, 1) == Result.FUNDS_SHORT
    assert bank.do("annul", H1) == Result.DONE
    assert bank.available() == 0


def test_a_forced_capture_of_an_unknown_hold_names_its_accounts(bank):
    assert bank.do("capture", H1, 10, forced=True) == Result.HOLD_UNKNOWN
    sides = {"debit": CARD, "credit": CLEARING, "forced": True}
    assert bank.do("capture", H1, **sides) == Result.AMOUNT_NOT_POSITIVE
    assert bank.do("capture", H1, 10, **sides) == Result.DONE
    assert bank.do("capture", H1, 10, **sides) == Result.HOLD_CAPTURED
    bank.do("release", H2)
    assert bank.do("capture", H2, 10, **sides) == Result.DONE  # a tombstone, but the cash is out
    assert [f[0] for f in bank.ledger.forced()] == [H1, H2]


def test_a_forced_capture_within_the_hold_is_an_ordinary_one(bank):
    bank.hold(amount=100)
    assert bank.do("capture", H1, forced=True) == Result.DONE
    assert bank.ledger.forced() == []
    assert not bank.ledger.hold(H1).forced


def test_a_forced_transfer_passes_funds_and_freezes(bank):
    bank.do("freeze", CARD, FROZEN_DEBIT)
    assert bank.do("transfer", CARD, CLEARING, 1200) == Result.ACCOUNT_FROZEN_DEBIT
    assert bank.do("transfer", CARD, CLEARING, 1200, forced=True) == Result.DONE
    assert bank.ledger.forced() == [(b"", CARD, 1200, NOW)]


# --- Annul ----------------------------------------------------------------------------------------


def test_annul_releases_what_is_open_and_compensates_what_is_captured(bank):
    bank.hold(H1)
    assert bank.do("annul", H1) == Result.DONE
    assert bank.state(H1) == "released"
    bank.hold(H2)
    bank.do("capture", H2)
    assert bank.do("annul", H2) == Result.DONE
    assert bank.state(H2) == "annulled"
    assert bank.do("annul", H2) == Result.ALREADY_REVERSED
    assert bank.available() == 1000
    card = bank.ledger.balance(CARD)
    assert (card.debits_posted, card.credits_posted) == (100, 1100)  # a new entry, none deleted


def test_d25_v08_an_annulled_deposit_needs_the_money_to_be_there_still(bank):
    bank.hold(H1, 500, debit=CLEARING, credit=CARD)
    bank.do("capture", H1)
    bank.hold(H2, 1100)
    assert bank.do("annul", H1) == Result.FUNDS_SHORT
    bank.do("release", H2)
    assert bank.do("annul", H1) == Result.DONE
    assert bank.available() == 1000


def test_annul_of_a_part(bank):
    bank.hold(amount=100)
    bank.do("capture", H1, 30, final=False)
    assert bank.do("annul", H1) == Result.DONE
    assert bank.ledger.hold(H1)[:4] == ("annulled", 100, 30, 70)
    assert bank.available() == 1000


# --- Chains ---------------------------------------------------------------------------------------


def chain_of_two(bank: Bank, amount: int, fee: int, **keys: bytes) -> list[Result]:
    bank.batch.clear()
    key = {"key": keys.get("first"), "digest": 1} if keys else {}
    fee_key = {"key": keys.get("second"), "digest": 1} if keys else {}
    bank.batch.hold(H1, CARD, CLEARING, amount, day=TODAY, linked=True, **key)
    bank.batch.hold(H2, CARD, FEES, fee, day=TODAY, metered=False, **fee_key)
    return bank.apply()


def test_linked_commands_succeed_or_fail_together(bank):
    assert chain_of_two(bank, 990, 11) == [Result.CHAIN_FAILED, Result.FUNDS_SHORT]
    assert bank.available() == 1000
    assert bank.ledger.hold(H1) is None
    assert chain_of_two(bank, 990, 10) == [Result.DONE, Result.DONE]


def test_linked_holds_are_captured_released_and_annulled_as_one(bank):
    chain_of_two(bank, 100, 5)
    assert bank.do("capture", H2) == Result.HOLD_UNKNOWN  # only the first is its name
    assert bank.do("capture", H1) == Result.DONE
    assert (bank.state(H1), bank.state(H2)) == ("captured", "captured")
    assert bank.ledger.hold(H2).head == H1
    assert bank.do("annul", H1) == Result.DONE
    assert (bank.state(H1), bank.state(H2)) == ("annulled", "annulled")
    assert bank.available() == 1000
    assert bank.available(FEES) == 0


def test_a_part_capture_leaves_the_linked_holds_until_the_final_one(bank):
    chain_of_two(bank, 100, 5)
    bank.do("capture", H1, 40, final=False)
    assert (bank.state(H1), bank.state(H2)) == ("open", "open")
    bank.do("capture", H1, 10, final=True)
    assert bank.ledger.hold(H2)[:4] == ("captured", 5, 5, 0)
    assert bank.available() == 1000 - 50 - 5


def test_the_keys_of_a_failed_chain_remember_it(bank):
    keys = {"first": K1, "second": K2}
    assert chain_of_two(bank, 990, 11, **keys) == [Result.CHAIN_FAILED, Result.FUNDS_SHORT]
    bank.do("transfer", CLEARING, CARD, 500)
    assert chain_of_two(bank, 990, 11, **keys) == [Result.REPEATED, Result.REPEATED]
    assert bank.batch.outcome(0).first == Result.CHAIN_FAILED
    assert bank.batch.outcome(1).first == Result.FUNDS_SHORT


def test_a_chain_is_one_record(bank):
    before = len(bank.sink.records)
    chain_of_two(bank, 100, 5)
    assert len(bank.sink.records) == before + 1


def test_what_a_chain_may_hold(bank):
    batch = Batch()
    batch.release(H1, linked=True)
    with pytest.raises(ValueError, match="linked to nothing"):
        bank.ledger.apply(batch, NOW)
    with pytest.raises(ValueError, match="part of a chain"):
        batch.tick()
    for _ in range(14):
        batch.release(H1, linked=True)
    with pytest.raises(ValueError, match="at most 16"):
        batch.release(H1, linked=True)
    batch.release(H1)
    assert len(batch) == 16


# --- Idempotency ----------------------------------------------------------------------------------


def test_a_key_gives_the_first_decision_for_ever(bank):
    assert bank.hold(key=K1, digest=5) == Result.DONE
    bank.now += SECOND
    assert bank.hold(key=K1, digest=5) == Result.REPEATED
    assert bank.batch.outcome(0) == (Result.REPEATED, Result.DONE, "", 0, NOW)
    assert bank.hold(key=K1, digest=6) == Result.REPEATED_WITH_DIFFERENCE
    assert bank.available() == 900


def test_a_decline_is_remembered_too(bank):
    records = len(bank.sink.records)
    assert bank.hold(amount=2000) == Result.FUNDS_SHORT
    assert len(bank.sink.records) == records  # no key, no change, no record
    assert bank.hold(amount=2000, key=K1, digest=1) == Result.FUNDS_SHORT
    assert len(bank.sink.records) == records + 1
    bank.do("transfer", CLEARING, CARD, 5000)
    assert bank.hold(amount=2000, key=K1, digest=1) == Result.REPEATED
    assert bank.batch.outcome(0).first == Result.FUNDS_SHORT


def test_beyond_the_horizon_a_key_is_expired_and_never_fresh(bank):
    bank.hold(H1, key=K1, digest=1)
    bank.do("transfer", CLEARING, CARD, 1, key=K2, digest=1)
    bank.now += 80 * 3600 * SECOND
    horizon = bank.now - 72 * 3600 * SECOND
    assert bank.do("forget", horizon) == Result.DONE
    assert bank.hold(H1, key=K1, digest=1) == Result.REPEATED  # its hold is open: it stays
    again = {"key": K2, "digest": 1, "key_ns": NOW}
    assert bank.do("transfer", CLEARING, CARD, 1, **again) == Result.KEY_EXPIRED
    assert bank.hold(H2, day=TODAY - 2) == Result.KEY_EXPIRED
    assert bank.hold(H2, day=TODAY + 3) == Result.DONE
    assert bank.ledger.horizon_ns == horizon


def test_forget_drops_closed_holds_whole_chains_and_idle_counters(bank):
    chain_of_two(bank, 100, 5)
    bank.do("release", H1)
    bank.hold(H3)
    bank.do("accept_step", K1, 7)
    bank.do("attempt", K2, limit=1, window_s=0, lock_s=10_000, row_limit=0)
    bank.now += 1000 * SECOND
    bank.do("forget", bank.now)
    counts = bank.ledger.counts()
    assert (counts["holds"], counts["holds_open"], counts["attempts"]) == (1, 1, 1)
    assert bank.ledger.last_step(K1) is None
    assert bank.ledger.locked_until(K2) == NOW // SECOND + 10_000  # a lock outlives it


def test_forget_is_bounded_and_says_so():
    bank = Bank()
    for start in range(0, 6000, 2000):
        bank.batch.clear()
        for n in range(start, start + 2000):
            bank.batch.release(name(n, 2), key=name(n, 3))
        bank.apply()
    bank.now += SECOND
    assert bank.do("forget", bank.now) == Result.PARTIAL
    assert bank.ledger.counts()["keys"] == 6000 - native.TICK_MAX
    results = [bank.do("forget", bank.now) for _ in range(3)]
    assert results == [Result.PARTIAL, Result.DONE, Result.DONE]
    assert bank.ledger.counts()["holds"] == bank.ledger.counts()["keys"] == 0


# --- Limits ---------------------------------------------------------------------------------------


def limited(windows: dict[tuple[str, str], tuple[int, int]], **operation: int) -> Bank:
    bank = Bank()
    assert bank.do("set_profile", 1, windows=windows, **operation) == Result.DONE
    assert bank.do("set_limits", CARD, profile=1) == Result.DONE
    return bank


def test_x008_minimum_maximum_and_multiple_of_one_operation():
    bank = limited({}, operation_min=50, operation_max=200, multiple=10)
    for amount in (40, 210, 55):
        assert bank.hold(amount=amount) == Result.AMOUNT_OVER_RANGE
        assert bank.batch.outcome(0).window == "operation"
    assert bank.hold(amount=200) == Result.DONE
    assert bank.do("increment", H1, 10) == Result.AMOUNT_OVER_RANGE


def test_l01_l02_a_limit_is_reserved_with_the_hold_and_given_back():
    bank = limited({("debit", "day"): (150, 0)})
    assert bank.hold(H1, 100) == Result.DONE
    assert bank.hold(H2, 51) == Result.LIMIT_AMOUNT
    assert bank.batch.outcome(0).window == "day"
    bank.do("release", H1)
    assert bank.hold(H2, 150) == Result.DONE
    assert bank.ledger.usage(CARD, "debit", "day", TODAY) == (150, 1)


def test_l03_given_back_to_the_original_date_the_next_day():
    bank = limited({("debit", "day"): (150, 0)})
    bank.hold(H1, 100)
    bank.hold(H2, 70, day=TODAY + 1)
    bank.do("capture", H1)
    bank.do("annul", H1)
    assert bank.ledger.usage(CARD, "debit", "day", TODAY) == (0, 0)
    assert bank.ledger.usage(CARD, "debit", "day", TODAY + 1) == (70, 1)


def test_a_partial_capture_gives_back_the_value_but_not_the_count():
    bank = limited({("debit", "day"): (150, 3)})
    bank.hold(H1, 100)
    bank.do("capture", H1, 40)
    assert bank.ledger.usage(CARD, "debit", "day", TODAY) == (40, 1)


def test_l04_calendar_months_and_weeks():
    first = (datetime.date(2026, 2, 1) - datetime.date(1970, 1, 1)).days  # a Sunday
    bank = limited({("debit", "month"): (100, 0), ("debit", "week"): (0, 1)})
    assert bank.hold(H1, 100, day=first - 1) == Result.DONE
    assert bank.hold(H2, 1, day=first) == Result.LIMIT_COUNT
    assert bank.batch.outcome(0).window == "week"
    assert bank.hold(H2, 100, day=first + 1) == Result.DONE
    assert bank.hold(H3, 1, day=first + 27) == Result.LIMIT_AMOUNT
    assert bank.batch.outcome(0).window == "month"


def test_the_night_counts_only_at_night():
    bank = limited({("debit", "night"): (100, 0)})
    assert bank.hold(H1, 300) == Result.DONE
    assert bank.hold(H2, 101, night=True) == Result.LIMIT_AMOUNT
    assert bank.hold(H2, 100, night=True) == Result.DONE


def test_a_date_before_both_kept_periods_is_closed():
    bank = limited({("debit", "day"): (1000, 0)})
    for n, hold in enumerate((H1, H2)):
        assert bank.hold(hold, 1, day=TODAY + n) == Result.DONE
    assert bank.hold(H3, 1, day=TODAY - 1) == Result.LIMIT_AMOUNT


def test_meters_are_checked_and_charged_without_money():
    bank = limited({("credit", "day"): (0, 1), ("debit", "day"): (120, 0)})
    terminal = name(50)
    bank.do("create_account", terminal, ledger=1, code=9, profile=1)
    bank.do("set_limits", CARD, profile=0)
    assert bank.hold(H1, 100, meters=(terminal,)) == Result.DONE
    assert bank.hold(H2, 21, meters=(FEES, terminal)) == Result.LIMIT_AMOUNT
    assert bank.batch.outcome(0).account == 3
    assert bank.hold(H2, 500, meters=(terminal,), meter_credit=True) == Result.DONE
    assert bank.hold(H3, 1, meters=(terminal,), meter_credit=True) == Result.LIMIT_COUNT
    assert bank.ledger.usage(terminal, "debit", "day", TODAY) == (100, 1)
    bank.do("release", H1)
    assert bank.ledger.usage(terminal, "debit", "day", TODAY) == (0, 0)


def test_fees_are_not_counted():
    bank = limited({("debit", "day"): (100, 1)}, multiple=50)
    assert chain_of_two(bank, 100, 7) == [Result.DONE, Result.DONE]
    assert bank.ledger.usage(CARD, "debit", "day", TODAY) == (100, 1)


def test_l06_net_debit_cap_and_payable_cap_are_exact():
    """cashier-domain.md §9: P + pending deposits + A <= cap; pending cash_out + A - P <= cap."""
    bank = Bank()
    flags = DEBITS_MUST_NOT_EXCEED_CREDITS | POSITION
    bank.do("create_account", NET, ledger=600, code=4, flags=flags, credit_limit=500)
    bank.do("create_account", ISSUER, ledger=600, code=5)
    bank.do("set_limits", NET, max_balance=300)
    deposit, cash_out = {"debit": NET, "credit": ISSUER}, {"debit": ISSUER, "credit": NET}
    assert bank.hold(H1, 501, **deposit) == Result.LIQUIDITY_SHORT
    assert bank.hold(H1, 500, **deposit) == Result.DONE
    assert bank.hold(H2, 1, **deposit) == Result.LIQUIDITY_SHORT
    assert bank.hold(H2, 301, **cash_out) == Result.LIQUIDITY_SHORT  # P is 0 until captured
    bank.do("capture", H1)
    assert bank.hold(H2, 801, **cash_out) == Result.LIQUIDITY_SHORT
    assert bank.hold(H2, 800, **cash_out) == Result.DONE


def test_balance_caps():
    bank = Bank()
    bank.do("set_limits", CARD, max_balance=1100)
    assert bank.hold(H1, 101, debit=CLEARING, credit=CARD) == Result.BALANCE_CAP_REACHED
    assert bank.hold(H1, 100, debit=CLEARING, credit=CARD) == Result.DONE  # pending counts here
    assert bank.hold(H2, 1, debit=CLEARING, credit=CARD) == Result.BALANCE_CAP_REACHED
    bank.do("release", H1)
    bank.do("set_limits", CARD, max_balance=NO_LIMIT)
    assert bank.hold(H2, 10**15, debit=CLEARING, credit=CARD) == Result.DONE
    debtor = name(60)
    bank.do("create_account", debtor, ledger=600, code=1, flags=CREDITS_MUST_NOT_EXCEED_DEBITS)
    assert bank.do("transfer", CLEARING, debtor, 1) == Result.BALANCE_CAP_REACHED


def test_a_profile_must_have_been_set(bank):
    assert bank.do("set_limits", CARD, profile=9) == Result.ACCOUNT_UNKNOWN
    result = bank.do("create_account", name(80), ledger=600, code=1, profile=9)
    assert result == Result.ACCOUNT_UNKNOWN


# --- Expiry ---------------------------------------------------------------------------------------


def test_only_auto_after_expires_only_by_tick_and_never_early(bank):
    bank.hold(H1, 1, policy=AUTO_AFTER, expires_after_s=10)
    bank.hold(H2, 1, policy=ASK_NETWORK, expires_after_s=10)
    bank.hold(H3, 1)
    bank.now = NOW + 10 * SECOND - 1
    bank.do("tick")
    assert bank.state(H1) == "open"
    bank.now += 1
    bank.do("tick")
    assert [bank.state(h) for h in (H1, H2, H3)] == ["expired", "open", "open"]
    assert bank.do("capture", H1) == Result.HOLD_EXPIRED
    assert bank.do("annul", H1) == Result.HOLD_EXPIRED
    assert bank.do("capture", H1, forced=True) == Result.DONE


def test_a_tick_is_bounded_and_says_so(bank):
    bank.batch.clear()
    for n in range(5000):
        bank.batch.hold(
            name(n, 2), CLEARING, CARD, 1, day=TODAY, policy=AUTO_AFTER, expires_after_s=1
        )
    bank.apply()
    bank.now += SECOND
    assert bank.do("tick") == Result.PARTIAL
    assert bank.ledger.counts()["holds_open"] == 5000 - native.TICK_MAX
    assert bank.do("tick") == Result.DONE


# --- Adjust ---------------------------------------------------------------------------------------


def test_c13_an_adjustment_needs_two_persons_and_passes_freezes(bank):
    who = {"reason": 3, "author": name(1, 9), "second": name(2, 9)}
    with pytest.raises(ValueError, match="two different persons"):
        bank.batch.adjust(CARD, CLEARING, 1, reason=3, author=name(1, 9), second=name(1, 9))
    bank.do("close", CARD)
    assert bank.do("adjust", CARD, CLEARING, 1001, **who) == Result.FUNDS_SHORT
    assert bank.do("adjust", CARD, CLEARING, 1000, **who) == Result.DONE
    data = bank.sink.records[-1][1]
    assert name(1, 9) in data
    assert name(2, 9) in data


# --- One-time codes -------------------------------------------------------------------------------


def test_a_step_is_accepted_once_and_only_upwards(bank):
    assert bank.ledger.last_step(K1) is None
    assert bank.do("accept_step", K1, 7) == Result.DONE
    assert bank.do("accept_step", K1, 7) == Result.REPEATED
    assert bank.do("accept_step", K1, 6) == Result.REPEATED
    assert bank.do("accept_step", K1, 8) == Result.DONE
    assert bank.ledger.last_step(K1) == 8


def test_t07_t08_three_wrong_codes_lock_and_five_in_a_row_lock_for_good(bank):
    rule = {"limit": 3, "window_s": 0, "lock_s": 900, "row_limit": 5}
    assert [bank.do("attempt", K1, **rule) for _ in range(3)][-1] == Result.LIMIT_COUNT
    until = bank.ledger.locked_until(K1)
    assert until == NOW // SECOND + 900
    bank.now = until * SECOND - 1
    assert bank.do("attempt", K1, **rule) == Result.LIMIT_COUNT
    assert bank.ledger.attempts(K1) == (0, 3)  # not counted while locked
    bank.now += 1
    assert bank.do("attempt", K1, **rule) == Result.DONE
    assert bank.do("attempt", K1, **rule) == Result.LIMIT_COUNT
    assert bank.ledger.locked_until(K1) == UNTIL_UNLOCKED
    bank.do("clear_attempts", K1, row=False)
    assert bank.ledger.locked_until(K1) == UNTIL_UNLOCKED
    bank.do("clear_attempts", K1)
    assert bank.ledger.locked_until(K1) == 0
    assert bank.do("attempt", K1, **rule) == Result.DONE


def test_a_lock_is_never_shorter_than_asked(bank):
    bank.now += 1
    bank.do("attempt", K1, limit=1, window_s=0, lock_s=10, row_limit=0)
    assert bank.ledger.locked_until(K1) == NOW // SECOND + 11


def test_a_window_begins_with_its_first_wrong_code(bank):
    rule = {"limit": 2, "window_s": 60, "lock_s": 900, "row_limit": 0}
    assert bank.do("attempt", K1, **rule) == Result.DONE
    bank.now += 60 * SECOND
    assert bank.do("attempt", K1, **rule) == Result.DONE
    bank.now += 60 * SECOND - 1
    assert bank.do("attempt", K1, **rule) == Result.LIMIT_COUNT


# --- Bounds and mistakes of the caller ------------------------------------------------------------


def test_full_tables_answer_overloaded_and_decide_nothing():
    bank = Bank(accounts_max=3, holds_max=2, keys_max=1, attempts_max=1)
    assert bank.do("create_account", name(9), ledger=600, code=1) == Result.OVERLOADED
    assert bank.hold(H1, key=K1) == Result.DONE
    assert bank.hold(H2, key=K2) == Result.OVERLOADED
    assert bank.hold(H1, key=K1) == Result.REPEATED
    assert bank.hold(H2) == Result.DONE
    assert bank.hold(H3) == Result.OVERLOADED
    assert bank.do("release", H3) == Result.OVERLOADED
    bank.do("accept_step", K1, 1)
    assert bank.do("accept_step", K2, 1) == Result.OVERLOADED


def test_a_refused_argument_leaves_the_batch_as_it_was():
    batch = Batch()
    hold = batch.hold
    for bad in (
        lambda: hold(b"short", CARD, CLEARING, 1, day=1),
        lambda: hold(H1, CARD, CLEARING, 1, day=-1),
        lambda: hold(H1, CARD, CLEARING, 1, day=1, policy=AUTO_AFTER),
        lambda: hold(H1, CARD, CLEARING, 1, day=1, meters=[name(n) for n in range(5)]),
        lambda: hold(H1, CARD, CLEARING, 1, day=1, key=b"short"),
        lambda: batch.create_account(CARD, ledger=1, code=1, flags=1 << 14),
        lambda: batch.freeze(CARD, 1),
        lambda: batch.capture(H1, debit=CARD),
        lambda: batch.set_profile(0),
    ):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(OverflowError):
        hold(H1, CARD, CLEARING, 2**63, day=1)
    with pytest.raises(TypeError):
        hold("text", CARD, CLEARING, 1, day=1)
    assert len(batch) == 0
    with pytest.raises(IndexError):
        batch.outcome(0)


def test_neither_can_be_pickled_and_no_repr_tells_anything():
    for thing in (Ledger(), Batch()):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        assert "object at" in repr(thing)


def test_published_sizes():
    assert native.ACCOUNT_BYTES == 96
    assert native.HOLD_BYTES == 128
    assert native.KEY_BYTES == 48
    assert native.ATTEMPT_BYTES == 64
    assert native.USAGE_BYTES == 256


# --- Journal and snapshot -------------------------------------------------------------------------


def story(bank: Bank) -> None:
    """A little of everything, so that records of all kinds exist."""
    bank.do("set_profile", 1, windows={("debit", "day"): (500, 5)}, version=4)
    bank.do("set_limits", CARD, profile=1, credit_limit=10, min_balance=1, max_balance=10**9)
    chain_of_two(bank, 100, 5, first=K1, second=K2)
    bank.do("increment", H1, 5)
    bank.do("capture", H1, 50, final=False)
    bank.do("capture", H1)
    bank.do("annul", H1)
    bank.hold(H3, 9, policy=AUTO_AFTER, expires_after_s=1)
    bank.now += SECOND
    bank.do("tick")
    bank.do("release", name(9, 2))
    bank.do("capture", name(8, 2), 5, forced=True, debit=CARD, credit=FEES)
    bank.do("adjust", CARD, FEES, 1, reason=1, author=K1, second=K2)
    bank.do("freeze", FEES, FROZEN_DEBIT)
    bank.do("close", FEES)
    bank.do("accept_step", K1, 5)
    bank.do("attempt", K2, limit=3, window_s=5, lock_s=5, row_limit=5)
    bank.do("clear_attempts", K2)
    bank.hold(name(7, 2), 9999, key=name(3, 3), digest=2)
    bank.do("forget", NOW - 1)
    bank.hold(name(6, 2), 9, meters=(CLEARING,))


def test_replay_gives_the_same_state(bank):
    story(bank)
    assert {kind for kind, _ in bank.sink.records} == set(range(1, 19))
    replica = Ledger()
    for kind, data in bank.sink.records:
        replica.replay_record(kind, data)
    assert replica.digest() == bank.ledger.digest()
    assert list(replica.dump()) == list(bank.ledger.dump())
    assert replica.check() == []


def test_a_hold_record_is_small(bank):
    bank.hold()
    kind, data = bank.sink.records[-1]
    assert (kind, len(data)) == (6, 81)
    bank.hold(H2, key=K1)
    assert len(bank.sink.records[-1][1]) == 105


def test_records_that_cannot_be_ours_are_refused_and_change_nothing(bank):
    story(bank)
    replica = Ledger()
    for kind, data in bank.sink.records[:-1]:
        replica.replay_record(kind, data)
    kind, last = bank.sink.records[-1]
    digest = replica.digest()
    bad = [(kind, last[:cut]) for cut in range(len(last))]
    bad += [(kind, last + b"\0"), (0, last), (63, last), (18, last), (1, last), (16, last)]
    bad += [(18, data[:-1]) for kind, data in bank.sink.records if kind == 18]
    for wrong_kind, data in bad:
        with pytest.raises(ValueError):
            replica.replay_record(wrong_kind, data)
        assert replica.digest() == digest
    assert replica.check() == []
    replica.replay_record(kind, last)
    with pytest.raises(ValueError, match="twice"):
        replica.replay_record(kind, last)


@given(st.data())
def test_altered_records_never_break_the_ledger(data):
    """Refused, or taken as another possible history; a broken invariant stops the ledger."""
    bank = Bank()
    story(bank)
    records = list(bank.sink.records)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(records) - 1))
        kind, body = records[at]
        place = data.draw(st.integers(0, len(body) - 1))
        byte = bytes([data.draw(st.integers(0, 255))])
        records[at] = (kind, body[:place] + byte + body[place + 1 :])
    replica = Ledger()
    for kind, body in records:
        try:
            replica.replay_record(kind, body)
        except ValueError:
            continue
        except AssertionError:
            return
    assert replica.check() == []
    copy = Ledger()
    copy.load(replica.dump())
    assert copy.digest() == replica.digest()


def test_a_dump_loads_into_an_empty_ledger_only(bank):
    story(bank)
    chunks = list(bank.ledger.dump())
    assert max(map(len, chunks)) <= 1 << 20
    copy = Ledger()
    copy.load(chunks)
    assert copy.digest() == bank.ledger.digest()
    with pytest.raises(ValueError, match="new ledger"):
        copy.load(chunks)
    with pytest.raises(ValueError, match="too much"):
        Ledger(accounts_max=2).load(chunks)


def test_a_damaged_dump_is_refused_and_leaves_it_empty(bank):
    story(bank)
    chunks = list(bank.ledger.dump())
    empty = Ledger()
    for index in range(len(chunks)):
        with pytest.raises(ValueError):
            empty.load(chunks[:index] + chunks[index + 1 :])
    for index, chunk in enumerate(chunks):
        for at in range(0, len(chunk), 7):
            bad = bytearray(chunk)
            bad[at] ^= 0x15
            try:
                empty.load([*chunks[:index], bytes(bad), *chunks[index + 1 :]])
            except ValueError:
                assert empty.counts()["accounts"] == empty.digest() == 0
            else:  # a byte that means nothing: padding, or the mark that a hold is in the heap
                assert empty.check() == []
                empty = Ledger()
    empty.load(chunks)
    assert empty.digest() == bank.ledger.digest()


def test_a_dump_notices_a_change(bank):
    dump = bank.ledger.dump()
    next(dump)
    bank.hold()
    with pytest.raises(RuntimeError, match="changed"):
        list(dump)


def test_a_full_journal_refuses_and_changes_nothing(tmp_path):
    """Nothing is sealed here: the open group grows to its limit and is then full."""
    journal = Journal(str(tmp_path), segment_bytes=1 << 20, group_bytes_max=1 << 14, direct=False)
    journal.start()
    ledger = Ledger(sink=journal)
    batch = Batch()
    batch.create_account(CARD, ledger=600, code=1)
    batch.create_account(CLEARING, ledger=600, code=1)
    for n in range(1000):
        batch.hold(name(n, 2), CARD, CLEARING, 1, day=TODAY, key=name(n, 3))
    results = ledger.apply(batch, NOW)
    fitted = results.index(Result.JOURNAL_FULL)
    assert 50 < fitted < 200
    assert set(results[:fitted]) == {Result.DONE}
    assert set(results[fitted:]) == {Result.JOURNAL_FULL}
    assert ledger.check() == []
    assert ledger.counts()["holds_open"] == fitted - 2 == ledger.counts()["keys"]
    assert batch.outcome(fitted).first == Result.JOURNAL_FULL
    journal.close()
    replica = Ledger()
    Reader(str(tmp_path)).replay([(1, 63, replica)])
    assert replica.digest() == ledger.digest()


def test_null_sink_counts():
    sink = NullSink()
    ledger, batch = Ledger(sink=sink), Batch()
    batch.create_account(CARD, ledger=600, code=1)
    ledger.apply(batch, NOW)
    assert (sink.records, sink.bytes_taken) == (1, 46)


def test_tables_and_indexes_grow_without_losing_anything():
    ledger, batch = Ledger(), Batch()
    for start in range(0, 60_000, 20_000):
        batch.clear()
        for n in range(start, start + 20_000):
            batch.create_account(name(n), ledger=600, code=1)
        assert set(ledger.apply(batch, NOW)) == {Result.DONE}
    assert ledger.check() == []
    assert all(ledger.balance(name(n)) for n in range(0, 60_000, 997))
    assert ledger.balance(name(60_001)) is None
    assert [id for id, _ in ledger.accounts()][:2] == [name(0), name(1)]


def test_room_can_be_made_ahead(bank):
    digest, before = bank.ledger.digest(), bank.ledger.counts()["bytes"]
    bank.ledger.reserve(accounts=100_000, holds=100_000)
    assert bank.ledger.digest() == digest
    assert bank.ledger.counts()["bytes"] > before + 2 * 8 * 100_000
    assert bank.ledger.check() == []
    with pytest.raises(ValueError, match="ever hold"):
        bank.ledger.reserve(keys=2_000_001)


def test_open_holds_and_totals(bank):
    chain_of_two(bank, 100, 5)
    assert {id for id, view in bank.ledger.open_holds()} == {H1, H2}
    assert bank.ledger.totals() == {600: (105, 1000, 105, 1000)}
