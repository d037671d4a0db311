"""Vouchers (mode `vale`) beyond case T24: their issue, and the hold that may be made with it."""

import pytest

from switch.admin_socket import ProvisioningError
from tests.flows.conftest import Build
from tests.house import Holder, House

A = 150_000


@pytest.fixture
def vale(house: House) -> Holder:
    return house.add_card(token_mode="vale")


def issue(house: House, holder: Holder, amount: int = A, **values: object) -> str:
    return str(house.do("card_voucher", card=holder.card, amount=amount, **values)["code"])


def test_codes_have_eight_digits_and_differ(house: House, vale: Holder) -> None:
    codes = {issue(house, vale) for _ in range(20)}
    assert len(codes) == 20
    assert all(len(code) == 8 and code.isdigit() for code in codes)


def test_two_vouchers_in_one_minute(house: House, vale: Holder) -> None:
    """They have no step, so a card may redeem several."""
    codes = [issue(house, vale), issue(house, vale)]
    assert [house.cash_out(A, holder=vale, token=code).code for code in codes] == ["00", "00"]
    house.expect_ends([(1, "E1", A), (2, "E1", A)], holder=vale)


def test_survives_a_restart(house: House, vale: Holder) -> None:
    code = issue(house, vale, hold=True)
    house.reopen()
    assert house.available(vale) == 1_000_000 - A
    assert house.cash_out(A, holder=vale, token=code).code == "00"
    house.expect_end(1, "E1", A, holder=vale)


def test_wrong_voucher_codes_lock_the_card(house: House, vale: Holder) -> None:
    codes = [house.cash_out(A, holder=vale, token="00000000").code for _ in range(3)]
    assert codes == ["55", "55", "75"]
    assert house.cash_out(A, holder=vale, token=issue(house, vale)).code == "75"


def test_only_cards_of_this_mode_have_them(house: House) -> None:
    with pytest.raises(ProvisioningError, match="no vouchers"):
        issue(house, house.holder)


@pytest.mark.parametrize("values", [{"amount": 0}, {"amount": A, "seconds": 0}])
def test_values_out_of_range(house: House, vale: Holder, values: dict[str, int]) -> None:
    with pytest.raises(ProvisioningError):
        issue(house, vale, **values)


def test_hold_needs_the_balance(house: House, vale: Holder) -> None:
    with pytest.raises(ProvisioningError, match="does not cover"):
        issue(house, vale, 1_001_000, hold=True)
    assert house.available(vale) == 1_000_000


def test_hold_keeps_the_money_from_other_vouchers(house: House, vale: Holder) -> None:
    held = issue(house, vale, 900_000, hold=True)
    free = issue(house, vale, 200_000)
    assert house.cash_out(200_000, holder=vale, token=free).code == "51"
    assert house.cash_out(900_000, holder=vale, token=held).code == "00"
    house.expect_ends([(1, "E2", 200_000), (2, "E1", 900_000)], holder=vale)


def test_hold_covers_the_fee(build: Build) -> None:
    house = build(toml="[fees]\ncash_out = 2500\n")
    holder = house.add_card(token_mode="vale", balance=A + 2_500)
    code = issue(house, holder, hold=True)
    assert house.available(holder) == 0
    assert house.cash_out(A, holder=holder, token=code).code == "00"
    house.expect_end(1, "E1", A, holder=holder)


def test_less_than_the_maximum_frees_the_rest(house: House, vale: Holder) -> None:
    code = issue(house, vale, 500_000, maximum=True, hold=True)
    assert house.cash_out(A, holder=vale, token=code).code == "00"
    house.expect_end(1, "E1", A, holder=vale)


def test_hold_of_an_issue_uses_no_limit(build: Build) -> None:
    limits = '[limits.day]\nscope = "card"\nkind = "cash_out"\nwindow = "day"\nmax = "200000 PYG"\n'
    house = build(limits=limits)
    holder = house.add_card(token_mode="vale")
    code = issue(house, holder, hold=True)
    assert house.cash_out(A, holder=holder, token=code).code == "00"
    assert house.cash_out(A, holder=holder, token=issue(house, holder)).code == "61"


def test_declined_operation_gives_the_hold_back(house: House, vale: Holder) -> None:
    code = issue(house, vale, hold=True)
    house.do("card_enable", card=vale.card, enable=False)
    assert house.cash_out(A, holder=vale, token=code).code == "05"
    house.do("card_enable", card=vale.card, enable=True)
    assert house.available(vale) == 1_000_000
    assert house.cash_out(A, holder=vale, token=code).key == "CODIGO_USADO"


def test_cancel_once(house: House, vale: Holder) -> None:
    code = issue(house, vale)
    house.do("card_voucher_cancel", card=vale.card, code=code)
    with pytest.raises(ProvisioningError, match="cancelled"):
        house.do("card_voucher_cancel", card=vale.card, code=code)
    with pytest.raises(ProvisioningError, match="no such voucher"):
        house.do("card_voucher_cancel", card=vale.card, code="00000000")
