"""The way from products to a bank: questions once, debts until they are acknowledged."""

from pathlib import Path

import pytest

from switch.config import LinkSettings
from tests.webpay_house import Bank, Shop, acquiring, until


@pytest.mark.parametrize(
    ("form", "code", "again"),
    [("0420", "96", False), ("0420", "00", False), ("0400", "25", False), ("0400", "96", True)],
)
async def test_what_acknowledges_a_reversal(
    tmp_path: Path, form: str, code: str, again: bool
) -> None:
    """A 0430 with any code; a 0410 with 00, 21 or 25 only."""
    bank, shop = Bank(), Shop("kcc60")
    shop.script = shop.answer("ERR")
    async with acquiring(tmp_path, authoriser="bank", bank=bank, shop=shop) as acquirer:
        bank.port.settings = LinkSettings(institution="0011", reversal=form)  # type: ignore[arg-type]
        bank.auto = False
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.answer(0)
        await until(lambda: bank.sent(form))
        bank.answer(1, code)
        assert page.state == ("REVERSING" if again else "REVERSED")
        if again:
            bank.auto = True
            await until(lambda: bank.sent("0401"))
        payment = await page.ended("REVERSED")
        assert payment.reversal_note == ("" if code == "00" or again else payment.reversal_note)
        assert bank.sent(form)[0]["32"] == "0011"


async def test_a_reversal_that_never_left_goes_as_the_first(tmp_path: Path) -> None:
    bank, shop = Bank(), Shop("kcc60")
    shop.script = shop.answer("ERR")
    async with acquiring(tmp_path, authoriser="bank", bank=bank, shop=shop) as acquirer:
        bank.auto = False
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.up = False
        bank.answer(0)
        await page.ended("REVERSING")
        bank.up = bank.auto = True
        await page.ended("REVERSED")
        assert len(bank.sent("0420")) == 1
        assert bank.sent("0421") == []


async def test_two_decimals_at_a_host_that_counts_so(tmp_path: Path) -> None:
    bank = Bank()
    async with acquiring(tmp_path, authoriser="bank", bank=bank) as acquirer:
        bank.port.settings = LinkSettings(institution="0011", de4_exponent=2)
        page = await acquirer.paid()
        await page.ended("CONFIRMED")
        assert bank.sent("0200")[0]["4"] == "000001000000"


async def test_an_answer_that_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    bank = Bank()
    bank.auto = False
    async with acquiring(tmp_path, authoriser="bank", bank=bank) as acquirer:
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.auto = True
        bank._unanswered.clear()
        bank.answer(0, "00", **{"37": "000000000099"})
        payment = await page.ended()
        assert (payment.respuesta, payment.reversal) == (-2, "done")
        assert acquirer.node.alarms["answer_unreadable"] == 1
