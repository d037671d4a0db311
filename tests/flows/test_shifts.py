"""Cashiers at work: shifts, till counts, second signatures (wire specification, section 3)."""

import pytest
from msgspec import UNSET

from protocols.messages import ShiftClose, ShiftOpen
from tests.flows.conftest import Build
from tests.house import NETWORK, OTHER_TERMINAL, TERMINAL, House

A = 150_000
CASHIER = "000345"
LISTED = '[node]\ncashiers = "listed"\n'


@pytest.fixture
def listed(build: Build) -> House:
    return build(toml=LISTED)


def close(house: House, counted: int, terminal: str = TERMINAL, cashier: str = CASHIER) -> object:
    return house.ask(ShiftClose(cashier=cashier, counted=counted), terminal)


def test_cashier_must_be_listed_and_within_a_shift(listed: House) -> None:
    assert listed.cash_out(A).code == "58"
    seed = listed.staff(CASHIER)
    refused = listed.cash_out(A)
    assert (refused.code, refused.instruction, refused.state) == (
        "58", "NO_ENTREGUE", "DESCONOCIDA",
    )  # fmt: skip
    assert listed.deposit(A).instruction == "NO_RECIBA"
    assert listed.security_events() == [("cash_out", "58")] * 2 + [("deposit", "58")]
    opened = listed.open_shift(CASHIER, seed)
    assert (opened.code, opened.instruction, opened.state) == ("00", UNSET, UNSET)
    assert listed.cash_out(A).code == "00"


def test_annulment_needs_the_shift_too(listed: House) -> None:
    seeds = {n: listed.staff(n, supervisor=n == "000900") for n in (CASHIER, "000900")}
    listed.open_shift(CASHIER, seeds[CASHIER])
    listed.cash_out(A)
    close(listed, 0)
    refused = listed.annul(1, supervisor_code=listed.staff_code(seeds["000900"]))
    assert (refused.code, refused.instruction) == ("58", "ENTREGUE")


def test_shift_ends_by_itself(listed: House) -> None:
    listed.open_shift(CASHIER, listed.staff(CASHIER))
    listed.clock.advance(12 * 3600 - 1)
    assert listed.cash_out(A).code == "00"
    listed.clock.advance(1)
    assert listed.cash_out(A).code == "58"


def test_shift_is_one_at_one_till(listed: House) -> None:
    seed = listed.staff(CASHIER)
    listed.open_shift(CASHIER, seed)
    assert listed.cash_out(A, terminal=OTHER_TERMINAL).code == "58"
    listed.clock.advance(60)
    assert listed.open_shift(CASHIER, seed, terminal=OTHER_TERMINAL).code == "58"
    assert close(listed, 0, OTHER_TERMINAL).code == "12"
    assert close(listed, 0).code == "00"
    assert listed.open_shift(CASHIER, seed, terminal=OTHER_TERMINAL).code == "00"
    assert listed.cash_out(A, terminal=OTHER_TERMINAL).code == "00"


def test_who_may_not_open(listed: House) -> None:
    seed = listed.staff(CASHIER)
    elsewhere = listed.staff("000346", branch="000018")
    assert listed.open_shift("000346", elsewhere).code == "58"
    assert listed.ask(ShiftOpen(cashier="999", cashier_code="123456")).code == "58"
    listed.do("cashier_enable", number=CASHIER, network=NETWORK, enable=False)
    assert listed.open_shift(CASHIER, seed).code == "58"
    assert listed.security_events() == [("shift_open", "NO_HABILITADO")] * 3


def test_cashier_disabled_during_his_shift(listed: House) -> None:
    listed.open_shift(CASHIER, listed.staff(CASHIER))
    listed.do("cashier_enable", number=CASHIER, network=NETWORK, enable=False)
    assert listed.cash_out(A).code == "58"


def test_code_of_the_cashier(listed: House) -> None:
    seed = listed.staff(CASHIER)
    short = listed.ask(ShiftOpen(cashier=CASHIER, cashier_code="12345678", trace=1))
    assert (short.code, short.field, short.instruction) == ("30", "cashier_code", UNSET)
    assert listed.open_shift(CASHIER, seed).code == "00"
    close(listed, 0)
    used = listed.open_shift(CASHIER, seed)
    assert (used.code, used.key) == ("55", "CODIGO_USADO")
    codes = [listed.ask(ShiftOpen(cashier=CASHIER, cashier_code="000000")).code for _ in range(3)]
    assert codes == ["55", "55", "75"]
    listed.clock.advance(60)
    assert listed.open_shift(CASHIER, seed).code == "75"
    listed.clock.advance(900)
    assert listed.open_shift(CASHIER, seed).code == "00"


def test_wrong_codes_of_a_cashier_lock_no_card(listed: House) -> None:
    listed.staff(CASHIER)
    other = listed.staff("000346")
    for _ in range(3):
        listed.ask(ShiftOpen(cashier=CASHIER, cashier_code="000000"))
    listed.open_shift("000346", other)
    assert listed.cash_out(A, cashier="346").code == "00"


def test_till_count(listed: House) -> None:
    seeds = {n: listed.staff(n, supervisor=n == "000900") for n in (CASHIER, "000900")}
    listed.open_shift(CASHIER, seeds[CASHIER], float=500_000)
    listed.cash_out(A)
    listed.deposit(250_000)
    listed.cash_out(A, token="000000")
    listed.annul(2, supervisor_code=listed.staff_code(seeds["000900"]))
    answer = close(listed, 340_000)
    assert (answer.expected, answer.difference) == (350_000, -10_000)
    assert "till_difference" in listed.alarms()
    assert close(listed, 0).code == "12"


def test_fee_moves_no_cash(build: Build) -> None:
    house = build(toml=LISTED + "[fees]\ncash_out = 2500\n")
    house.open_shift(CASHIER, house.staff(CASHIER), float=500_000)
    house.cash_out(A)
    assert close(house, 350_000).difference == 0


def test_cash_that_comes_back_is_in_the_till_of_now(listed: House) -> None:
    seeds = {n: listed.staff(n, supervisor=n == "000900") for n in (CASHIER, "000346", "000900")}
    listed.open_shift(CASHIER, seeds[CASHIER], float=500_000)
    listed.cash_out(A)
    listed.delivered(1)
    assert close(listed, 350_000).difference == 0
    listed.open_shift("000346", seeds["000346"], float=100_000)
    code = listed.staff_code(seeds["000900"])
    assert listed.annul(1, cashier="346", supervisor_code=code).instruction == "RECIBA"
    assert close(listed, 250_000, cashier="346").difference == 0


def test_open_cashiers_may_keep_shifts_without_being_listed(house: House) -> None:
    opened = house.ask(ShiftOpen(cashier="777", cashier_code="123456", float=1_000))
    assert opened.code == "00"
    house.cash_out(A, cashier="777")
    answer = close(house, 0, cashier="777")
    assert (answer.expected, answer.difference) == (1_000 - A, A - 1_000)


def test_shift_survives_a_restart(listed: House) -> None:
    listed.open_shift(CASHIER, listed.staff(CASHIER), float=10_000)
    listed.reopen()
    assert listed.cash_out(A).code == "00"
    assert close(listed, 0).expected == 10_000 - A
