"""Group L: limits and ledger (acceptance specification, section 6)."""

from core_ext import Batch, Result
from protocols.messages import Confirm, IssuerHold, Reverse
from switch.flows.registry import account_id
from tests.flows.conftest import Build
from tests.house import NETWORK, OTHER_TERMINAL, TERMINAL, House

A = 150_000
DAY_S = 86_400


def cap(window: str = "day", maximum: int = 200_000, kind: str = "cash_out") -> str:
    return (
        f'[limits.cap]\nscope = "card"\nkind = "{kind}"\nwindow = "{window}"\n'
        f'max = "{maximum} PYG"\n'
    )


def usage(house: House, window: str, date_back: int = 0) -> tuple[int, int]:
    day = house.node.calendar.business(house.clock.now_ns).number - date_back
    return house.node.store.ledger.usage(house.account(), "debit", window, day)


def test_L01_two_cash_outs_race_across_the_daily_limit(build: Build) -> None:
    house = build(limits=cap())
    now_s = house.clock.now_ns // 10**9
    told = house.turn(
        [
            (TERMINAL, house.request(1, A, token=house.code(at_s=now_s - 60))),
            (OTHER_TERMINAL, house.request(1, A, token=house.code())),
        ]
    )
    assert [answers[0].code for answers in told] == ["00", "61"]
    house.expect_end(1, "E1", A)
    house.expect_end(1, "E2", A, terminal=OTHER_TERMINAL)


def test_L01_limit_is_taken_with_the_hold(build: Build) -> None:
    """While the first only holds, the second finds the limit used already."""
    house = build(limits=cap())
    assert house.network(house.hold(house.reference(1), A)).answer.code == "00"
    house.clock.advance(60)
    assert house.network(house.hold(house.reference(2), A)).answer.code == "61"
    assert usage(house, "day") == (A, 1)


def test_L02_reversal_gives_the_limit_back(build: Build) -> None:
    house = build(limits=cap())
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    assert house.network(Reverse(2, reference, A, "timeout")).answer.code == "00"
    assert usage(house, "day") == (0, 0)
    assert house.states(1)[1:] == ("REVERSADA", "LIBERADA")
    assert (house.available(), house.position()) == (house.holder.balance, 0)
    house.clock.advance(60)
    assert house.cash_out(A, trace=2).code == "00"
    house.expect_end(2, "E1", A)


def test_L02_release_gives_the_limit_back(build: Build) -> None:
    """ceibo held, its answer was lost, and sicoop released by itself."""
    house = build(limits=cap())
    port = house.defer_issuer(IssuerHold)
    told = house.send([(TERMINAL, house.request(house.trace(), A))])[0]
    port.process()
    assert usage(house, "day") == (A, 1)
    house.pass_time(15)
    assert told.answer.code == "91"
    assert usage(house, "day") == (0, 0)
    house.expect_end(1, "E2", A)


def test_L02_annulment_gives_the_limit_back(build: Build) -> None:
    house = build(limits=cap())
    house.cash_out(A)
    house.annul(1)
    assert usage(house, "day") == (0, 0)
    house.expect_end(1, "E4", A)


def test_L03_reversal_on_the_next_day(build: Build) -> None:
    """22 November, a Sunday, and 30 November, a Monday: other day, week and month follow."""
    house = build(limits=cap("calendar_month", 200_000))
    house.clock.advance(8 * DAY_S)
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    house.clock.advance(DAY_S)
    assert house.cash_out(A).code == "00"
    assert house.network(Reverse(2, reference, A, "timeout")).answer.code == "00"
    assert house.states(1, date="20261130")[1:] == ("REVERSADA", "LIBERADA")
    assert (house.available(), house.position()) == (house.holder.balance - A, -A)
    assert usage(house, "day") == (A, 1)
    assert usage(house, "day", date_back=1) == (0, 0)
    assert usage(house, "month") == (A, 1)
    assert usage(house, "month", date_back=1) == (0, 0)
    house.clock.advance(60)
    assert house.cash_out(A).code == "61"  # nothing was given back to the new month


def test_L04_monthly_limit_is_one_of_the_calendar_month(build: Build) -> None:
    house = build(limits=cap("calendar_month", 200_000))
    house.clock.advance(8 * DAY_S)  # 30 November
    house.cash_out(A)
    house.clock.advance(60)
    assert house.cash_out(A).code == "61"
    house.expect_ends([(1, "E1", A), (2, "E2", A)])
    house.clock.advance(DAY_S)
    assert house.cash_out(A).code == "00"
    house.expect_end(3, "E1", A)


def test_L04_limit_of_a_fresh_init(build: Build) -> None:
    """Forty minimum daily wages in a calendar month."""
    house = build(balance=10_000_000)
    assert house.cash_out(40 * 107_627 - 40 * 107_627 % 1_000).code == "00"
    house.clock.advance(60)
    assert house.cash_out(1_000).code == "61"


DATED = """
[units]
unit = [{ from = "2026-01-01", pyg = 100000 }, { from = "2026-11-23", pyg = 200000 }]
[limits.cap]
scope = "card"
kind = "cash_out"
window = "day"
max = "1 unit"
"""


def test_L05_value_at_the_time_of_the_hold_counts(build: Build) -> None:
    house = build(limits=DATED)
    assert house.cash_out(A).code == "61"
    house.clock.advance(12 * 3600 - 60)
    before = house.network(house.hold(house.reference(7), 100_000)).answer
    old = house.node.limits.version
    house.clock.advance(120)
    house.network(Confirm(2, house.reference(7, date="20261122"), ""))
    assert house.cash_out(A).code == "00"
    new = house.node.limits.version
    assert old != new
    first = house.at_sicoop(house.reference(7, date="20261122"))
    second = house.at_sicoop(house.reference(house.last_trace))
    assert first is not None
    assert second is not None
    assert (first.limits_version, second.limits_version) == (old, new)
    assert (first.state, first.business_date) == ("CAPTURADA", before.business_date)


def test_L05_changed_by_configuration_while_a_hold_is_open(build: Build) -> None:
    house = build(limits=cap("day", 200_000))
    house.network(house.hold(house.reference(7), A))
    house.reopen(limits=cap("day", 100_000))
    house.clock.advance(60)
    assert house.cash_out(1_000).code == "61"
    assert house.network(Confirm(2, house.reference(7), "")).answer.code == "00"
    house.reopen(limits=cap("day", 400_000))
    house.clock.advance(60)
    assert house.cash_out(250_000).code == "00"


EXACT = '[limits.operation]\nscope = "card"\nkind = "any"\nwindow = "operation"\nmin = "1 PYG"\n'


def test_L06_net_debit_cap_is_exact(build: Build) -> None:
    house = build(limits=EXACT, net_debit_cap=100_000)
    assert house.deposit(99_999).code == "00"
    assert house.deposit(2).code == "62"
    assert house.deposit(1).code == "00"
    assert house.deposit(1).code == "62"
    house.expect_ends([(1, "F1", 99_999), (2, "F2", 2), (3, "F1", 1), (4, "F2", 1)])


def test_L06_pending_deposits_count(build: Build) -> None:
    house = build(limits=EXACT, net_debit_cap=100_000)
    house.network(house.hold(house.reference(1), 99_999, kind="deposit"))
    assert house.network(house.hold(house.reference(2), 2, kind="deposit")).answer.code == "62"
    assert house.network(house.hold(house.reference(3), 1, kind="deposit")).answer.code == "00"


def test_L06_payable_cap_is_exact(build: Build) -> None:
    house = build(limits=EXACT, payable_cap=100_000)
    assert house.cash_out(100_000).code == "00"
    house.clock.advance(60)
    assert house.cash_out(1).code == "62"
    house.expect_ends([(1, "E1", 100_000), (2, "E2", 1)])


def test_L07_every_entry_balances_and_nothing_is_deleted(house: House) -> None:
    ledger = house.node.store.ledger
    house.cash_out(A)
    house.annul(1)
    house.deposit(A)
    house.network(house.hold(house.reference(9), A, kind="deposit"))
    house.network(Reverse(2, house.reference(9), A, "cancelled"))
    for debits_pending, debits, credits_pending, credits in ledger.totals().values():
        assert (debits_pending, debits) == (credits_pending, credits)
    clearing = ledger.balance(account_id("ceibo:PYG:clearing:sicoop"))
    assert clearing is not None
    # The cash_out, its compensation and the deposit are three postings; none of them is gone.
    assert (clearing.debits_posted, clearing.credits_posted) == (2 * A, A)
    assert ledger.counts()["holds"] == 6
    history = [house.at_ceibo(house.at_sicoop(house.reference(t)).operation).history
               for t in (1, 3, 9)]  # fmt: skip
    assert [[state for state, _ in states] for states in history] == [
        ["ACTIVA", "CAPTURADA", "COMPENSADA"], ["ACTIVA", "CAPTURADA"], ["ACTIVA", "LIBERADA"],
    ]  # fmt: skip


def test_L08_available_is_never_negative(house: House) -> None:
    for amount in (1_000_000, 1_000, 1_000):
        house.cash_out(amount)
        house.clock.advance(60)
    assert house.available() == 0
    batch = Batch()
    batch.transfer(house.account(), account_id("ceibo:PYG:clearing:sicoop"), 1)
    with house.step() as step:
        assert house.node.store.ledger.apply(batch, step.now_ns) == [Result.FUNDS_SHORT]
    house.expect_ends([(1, "E1", 1_000_000), (2, "E2", 1_000), (3, "E2", 1_000)])


def test_L08_X137_only_a_forced_capture_overdraws(house: House) -> None:
    """X137: the hold was dropped by mistake, its money was spent, and now the cash is out."""
    reference = house.reference(1)
    answer = house.network(house.hold(reference, A)).answer
    batch = Batch()
    batch.release((NETWORK + answer.operation).encode())
    with house.step() as step:
        assert house.node.store.ledger.apply(batch, step.now_ns) == [Result.DONE]
    house.clock.advance(60)
    assert house.cash_out(1_000_000, trace=2).code == "00"
    assert house.network(Confirm(2, reference, "")).answer.code == "00"
    assert house.available() == -A
    [(_, account, amount, _)] = house.node.store.ledger.forced()
    assert (account, amount) == (house.account(), A)
    assert "overdraft_exception" in house.alarms()
    assert house.at_ceibo(answer.operation).forced
    house.clock.advance(60)
    assert house.cash_out(1_000, trace=3).code == "51"


FEES = "[fees]\ncash_out = 2500\n[commissions]\ncash_out = 700\ndeposit = 300\n"


def booked(house: House, name: str) -> int:
    balance = house.node.store.ledger.balance(account_id(f"ceibo:PYG:{name}"))
    return 0 if balance is None else balance.credits_posted - balance.debits_posted


def test_L09_fee_and_commission_are_posted_with_the_operation(build: Build) -> None:
    house = build(toml=FEES)
    answer = house.cash_out(A)
    assert (answer.fee, answer.amount) == (2_500, A)
    assert house.available() == 1_000_000 - A - 2_500
    assert house.position() == -A - 700
    assert (booked(house, "fee_income"), booked(house, "commission_expense")) == (2_500, -700)
    assert any(line.split() == ["Comision", "Gs.", "2.500"] for line in answer.ticket)
    house.expect_end(1, "E1", A)
    house.deposit(A)
    assert house.position() == -A - 700 + A - 300
    house.expect_end(2, "F1", A)


def test_L09_undone_with_it(build: Build) -> None:
    house = build(toml=FEES)
    house.cash_out(A)
    house.annul(1)
    house.deposit(A)
    house.annul(3)
    assert (booked(house, "fee_income"), booked(house, "commission_expense")) == (0, 0)
    assert booked(house, "clearing:sicoop") == 0
    house.expect_ends([(1, "E4", A), (3, "F4", A)])


def test_L09_released_with_it(build: Build) -> None:
    house = build(toml=FEES)
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    assert house.available() == 1_000_000 - A - 2_500
    house.network(Reverse(2, reference, A, "timeout"))
    assert house.available() == 1_000_000
    assert (booked(house, "fee_income"), booked(house, "commission_expense")) == (0, 0)


def test_L09_fee_is_part_of_what_must_be_covered(build: Build) -> None:
    house = build(toml=FEES)
    assert house.cash_out(998_000).code == "51"
    house.clock.advance(60)
    assert house.cash_out(997_000).code == "00"
    house.expect_ends([(1, "E2", 998_000), (2, "E1", 997_000)])


def test_L09_forced_capture_takes_the_fee_too(build: Build) -> None:
    house = build(toml=FEES)
    reference = house.reference(1)
    answer = house.network(house.hold(reference, A)).answer
    batch = Batch()
    batch.release((NETWORK + answer.operation).encode())
    with house.step() as step:
        house.node.store.ledger.apply(batch, step.now_ns)
    house.network(Confirm(2, reference, ""))
    assert house.available() == 1_000_000 - A - 2_500
    assert booked(house, "fee_income") == 2_500


def test_L09_annulment_beyond_the_cap_brings_the_commission_back(build: Build) -> None:
    house = build(toml=FEES, net_debit_cap=100_000)
    house.cash_out(A)
    house.deposit(250_000)
    assert house.annul(1).code == "00"
    assert house.position() == 250_000 - 300
    house.expect_ends([(1, "E4", A), (2, "F1", 250_000)])


def test_L10_zero_fee_makes_no_entry(house: House) -> None:
    house.cash_out(A)
    assert house.node.store.ledger.balance(account_id("ceibo:PYG:fee_income")) is None
    assert house.node.store.ledger.balance(account_id("ceibo:PYG:commission_expense")) is None
    assert house.node.store.ledger.counts()["holds"] == 2  # one in each book
    house.expect_end(1, "E1", A)


def test_L10_amounts_are_integers(house: House) -> None:
    answer = house.cash_out(A)
    balance = house.node.store.ledger.balance(house.account())
    assert balance is not None
    for figure in (answer.amount, answer.fee, *balance):
        assert type(figure) is int
