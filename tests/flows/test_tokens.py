"""Codes beyond the acceptance cases: other settings, several cards, mixed modes."""

import pytest

from core_ext._mac import ocra, totp
from switch.flows.tokens import OCRA_SUITE, ocra_question
from tests.flows.conftest import Build
from tests.house import Holder, House

A = 150_000


def now_s(house: House) -> int:
    return house.clock.now_ns // 1_000_000_000


@pytest.mark.parametrize("digits", [6, 7, 8])
@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_digits_and_algorithm_are_configured(build: Build, digits: int, algorithm: str) -> None:
    house = build(toml=f'[tokens]\ndigits = {digits}\nalgorithm = "{algorithm}"\n')
    code = totp(house.holder.seed, now_s(house), digits=digits, algorithm=algorithm)
    assert house.cash_out(A, token=code).code == "00"


def test_length_of_a_step_is_configured(build: Build) -> None:
    house = build(toml="[tokens]\nstep_s = 30\n")
    code = totp(house.holder.seed, now_s(house) - 90, step_s=30)
    assert house.cash_out(A, token=code).key == "CODIGO_VENCIDO"
    code = totp(house.holder.seed, now_s(house) - 60, step_s=30)
    assert house.cash_out(A, token=code).code == "00"


def mixed(house: House) -> dict[str, Holder]:
    return {
        mode: house.add_card(document="7000001", token_mode=mode)
        for mode in ("totp", "ocra", "vale")
    }


def test_one_person_with_cards_of_every_mode(house: House) -> None:
    cards = mixed(house)
    question = ocra_question("cash_out", A)
    codes = {
        "totp": house.code(cards["totp"]),
        "ocra": ocra(
            OCRA_SUITE, cards["ocra"].seed, question=question, timestep=now_s(house) // 60
        ),
        "vale": house.do("card_voucher", card=cards["vale"].card, amount=A)["code"],
    }
    for mode, code in codes.items():
        assert house.cash_out(A, holder=cards[mode], token=code).code == "00"
        assert house.available(cards[mode]) == 1_000_000 - A
        assert house.cash_out(A, holder=cards[mode], token=code).key == "CODIGO_USADO"


def test_blocked_card_among_others_is_not_tried(house: House) -> None:
    second = house.add_card(document=house.holder.document)
    house.do("card_enable", card=second.card, enable=False)
    assert house.cash_out(A, token=house.code(second)).key == "CODIGO"
    assert house.cash_out(A).code == "00"


def test_used_code_of_one_card_does_not_hide_the_other(house: House) -> None:
    second = house.add_card(document=house.holder.document)
    assert house.cash_out(A).code == "00"
    assert house.cash_out(A, token=house.code(second)).code == "00"
    assert house.cash_out(A).key == "CODIGO_USADO"


def test_a_step_ahead_uses_up_the_present_one(house: House) -> None:
    assert house.cash_out(A, token=house.code(at_s=now_s(house) + 60)).code == "00"
    assert house.cash_out(A).key == "CODIGO_USADO"
    house.clock.advance(60)
    assert house.cash_out(A).key == "CODIGO_USADO"
    house.clock.advance(60)
    assert house.cash_out(A).code == "00"


def test_last_step_survives_a_restart(house: House) -> None:
    code = house.code()
    house.cash_out(A, token=code)
    house.crash()
    assert house.cash_out(A, token=code).key == "CODIGO_USADO"


def test_lock_after_one_wrong_code_if_so_configured(build: Build) -> None:
    house = build(toml="[tokens]\nattempts_card = 1\nlock_s = 60\n")
    assert house.cash_out(A, token=house.wrong_code()).code == "75"
    house.clock.advance(60)
    assert house.cash_out(A).code == "00"
