"""What authorisers say, and what shops are told of it: codes, dates, kinds of payment, elements."""

import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from core_ext import Result
from protocols.webpay.pairs import parse_pairs
from switch.config import ConfigError, load
from switch.flows.webpay_authorisers import _refused, respuesta_of
from switch.flows.webpay_dates import Dates
from switch.sections.webpay import DEBIT_BANKS, Webpay
from tests.webpay_house import BAD_CARD, Acquirer, Bank, Page, acquiring, card, toml, until

SANTIAGO = ZoneInfo("America/Santiago")


def result(page: Page) -> dict[str, str]:
    return dict(parse_pairs(page.payment.message))


async def decided(acquirer: Acquirer, code: str = "", **more: str) -> Page:
    """A payment whose bank has answered so, to its end."""
    bank = acquirer.bank
    bank.auto = False
    page = await acquirer.paid()
    await until(lambda: bank.asked)
    bank._unanswered.clear()
    bank.answer(0, code, **more)
    bank.auto = True
    bank.flush()
    await page.ended()
    return page


# ---- DE39

USUAL = {
    "00": 0, "01": -1, "02": -1, "03": -8, "04": -1, "05": -1, "07": -1, "12": -3, "13": -3,
    "14": -1, "19": -2, "25": -3, "30": -3, "41": -1, "43": -1, "51": -1, "54": -1, "57": -1,
    "58": -8, "61": -7, "62": -1, "65": -7, "68": -2, "75": -1, "91": -2, "92": -2, "94": -3,
    "96": -2, "A1": -1, "ZZ": -1,
}  # fmt: skip


def test_the_usual_map_of_codes() -> None:
    assert {code: respuesta_of(code, {}) for code in USUAL} == USUAL
    assert respuesta_of("51", {"51": -6}) == -6


@pytest.mark.parametrize("code", ["08", "10", "11", "16"])
async def test_approvals_that_cannot_be_told_are_undone(tmp_path: Path, code: str) -> None:
    async with acquiring(tmp_path, authoriser="bank") as acquirer:
        page = await decided(acquirer, code)
        assert (page.state, page.payment.respuesta) == ("DECLINED", -1)
        await until(lambda: page.payment.reversal == "done")
        (reversal,) = acquirer.bank.sent("0420")
        assert reversal["37"] == acquirer.bank.sent("0200")[0]["37"]
        assert acquirer.lines() == [("ACK", "-1")]


async def test_a_map_of_ones_own(tmp_path: Path) -> None:
    section = 'respuesta_map = { "51" = -6, "00" = -1 }'
    async with acquiring(tmp_path, authoriser="bank", section=section) as acquirer:
        page = await decided(acquirer, "51")
        assert page.payment.respuesta == -6
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    async with acquiring(fresh, authoriser="bank", section=section, bank=Bank()) as acquirer:
        page = await decided(acquirer, "00")  # an approval that is not to be told is undone
        assert (page.payment.respuesta, page.payment.reversal) == (-1, "done")


@pytest.mark.parametrize("entry", ['"05" = 0', '"51" = -4', '"51" = -5', '"51" = 1', '"5" = -1'])
def test_a_map_that_cannot_be_meant_stops_the_start(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "troncal.toml"
    path.write_text(toml(section=f"respuesta_map = {{ {entry} }}"))
    with pytest.raises(ConfigError, match="respuesta_map"):
        load(path, environ={})


def test_refusals_of_our_own_ledger() -> None:
    limits = (Result.LIMIT_AMOUNT, Result.LIMIT_COUNT)
    assert [_refused(limit, "month") for limit in limits] == [-6, -6]
    for window in ("day", "", "week"):
        assert [_refused(limit, window) for limit in limits] == [-7, -7]
    assert _refused(Result.AMOUNT_OVER_RANGE, "") == -7
    assert [_refused(r, "") for r in (Result.OVERLOADED, Result.JOURNAL_FULL)] == [-2, -2]


async def test_a_card_with_too_little_or_without_an_account_is_declined(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        page = await acquirer.form(TBK_MONTO="1000000100")  # 10 000 001 pesos of 10 000 000
        await page.pay(card())
        await page.ended()
        other = await acquirer.paid("OC2", with_card=card("4111111111111111"))
        await other.ended()
        assert [p.payment.respuesta for p in (page, other)] == [-1, -1]
        assert acquirer.lines() == [("ACK", "-1")] * 2
        assert (acquirer.charged(), acquirer.held()) == (0, 0)


# ---- what the shop is told


@pytest.mark.parametrize("mode", ["kcc60", "direct"])
async def test_a_credit_decline_carries_one_payment_and_no_code(tmp_path: Path, mode: str) -> None:
    async with acquiring(tmp_path, authoriser="bank", mode=mode) as acquirer:
        page = await acquirer.paid(with_card=card(BAD_CARD, choice=("VC", 6)))
        await page.ended()
        told = result(page)
    assert (told["TBK_TIPO_PAGO"], told["TBK_NUMERO_CUOTAS"]) == ("VN", "0")
    assert told["TBK_CODIGO_AUTORIZACION"] == "000000"
    assert (told["TBK_FINAL_NUMERO_TARJETA"], told["TBK_MONTO"]) == ("0568", "1000000")


async def test_a_debit_decline_carries_debit(tmp_path: Path) -> None:
    async with acquiring(tmp_path, authoriser="bank") as acquirer:
        page = await acquirer.paid(with_card=card(BAD_CARD, kind="D"))
        await page.authenticate("TSY")
        await page.ended()
        told = result(page)
    assert (told["TBK_TIPO_PAGO"], told["TBK_VCI"], told["TBK_RESPUESTA"]) == ("VD", "TSY", "-1")


async def test_an_approval_carries_what_the_bank_says(tmp_path: Path) -> None:
    async with acquiring(tmp_path, authoriser="bank") as acquirer:
        page = await decided(acquirer, "00", **{"15": "0102", "38": "7A1xYz", "48.25": "TSY"})
        told = result(page)
        local = acquirer.flow.dates.local(page.payment.received_ns)
    assert told["TBK_CODIGO_AUTORIZACION"] == "7A1xYz"
    assert told["TBK_FECHA_CONTABLE"] == "0102"
    assert told["TBK_VCI"] == "TSY"  # in place of what we sent
    assert told["TBK_FECHA_TRANSACCION"] == f"{local:%m%d}"
    assert told["TBK_HORA_TRANSACCION"] == f"{local:%H%M%S}"
    assert list(told) == [
        "TBK_ORDEN_COMPRA", "TBK_TIPO_TRANSACCION", "TBK_RESPUESTA", "TBK_MONTO",
        "TBK_CODIGO_AUTORIZACION", "TBK_FINAL_NUMERO_TARJETA", "TBK_FECHA_CONTABLE",
        "TBK_FECHA_TRANSACCION", "TBK_HORA_TRANSACCION", "TBK_ID_SESION", "TBK_ID_TRANSACCION",
        "TBK_TIPO_PAGO", "TBK_NUMERO_CUOTAS", "TBK_VCI",
    ]  # fmt: skip


async def test_a_shop_without_a_session_is_told_null(tmp_path: Path) -> None:
    async with acquiring(tmp_path, section='vci_not_tried = "A"') as acquirer:
        page = await acquirer.form(TBK_ID_SESION="", TBK_MONTO="10000.00")
        await page.pay(card())
        await page.ended()
        told = result(page)
        assert (told["TBK_ID_SESION"], told["TBK_MONTO"], told["TBK_VCI"]) == (
            "null", "10000.00", "A",
        )  # fmt: skip
        assert acquirer.charged() == 10_000


# ---- the bank's elements


async def test_everything_that_a_purchase_tells_its_bank(tmp_path: Path) -> None:
    bank = Bank()
    async with acquiring(tmp_path, authoriser="bank", bank=bank) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ERR")
        page = await acquirer.paid(with_card=card(choice=("VC", 6)))
        await page.ended()
        local = acquirer.flow.dates.local(page.payment.sent_ns)
        (asked,), (undone,) = bank.sent("0200"), bank.sent("0420")
        debit = await acquirer.paid("OC2", with_card=card(kind="D", bank="itau"))
        await debit.authenticate("TSY")
        await debit.ended()
        by_debit = bank.sent("0200")[1]
    assert {name: asked[name] for name in ("2", "3", "4", "14", "18", "22", "32", "49")} == {
        "2": "4051885600446623", "3": "000000", "4": "000000010000", "14": "3012", "18": "5999",
        "22": "812", "32": "0011", "49": "152",
    }  # fmt: skip
    assert (asked["13"], asked["12"]) == (f"{local:%m%d}", f"{local:%H%M%S}")
    assert (asked["37"], asked["42"].strip()) == (page.payment.operation, "597026007976")
    assert len(asked["37"]) == 12
    assert {name: asked[f"48.{name}"] for name in ("20", "21", "23", "24", "25")} == {
        "20": "C", "21": "06", "23": "OC1", "24": "123", "25": "NP",
    }  # fmt: skip
    assert asked.get("48.22", "") == ""
    assert (undone["2"], undone["4"], undone["25"], undone["32"]) == (
        asked["2"], asked["4"], "22", "0011",
    )  # fmt: skip
    assert "48.24" not in dict(undone.items())
    assert (by_debit["48.20"], by_debit["48.22"], by_debit["48.25"]) == ("D", "itau", "TSY")
    assert by_debit["37"] != asked["37"]
    assert not {"14", "48.24"} & set(dict(by_debit.items()))


@pytest.mark.parametrize(("code", "note"), [("25", "original_not_found"), ("96", "check")])
async def test_WP_21_a_reversal_that_is_acknowledged_otherwise_is_marked(
    tmp_path: Path, code: str, note: str
) -> None:
    bank = Bank()
    async with acquiring(tmp_path, authoriser="bank", bank=bank) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ERR")
        bank.auto = False
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.answer(0)
        await until(lambda: bank.sent("0420"))
        bank.answer(1, code)
        payment = await page.ended()
        assert (payment.state, payment.reversal_code, payment.reversal_note) == (
            "REVERSED", code, note,
        )  # fmt: skip
        assert acquirer.node.alarms[f"webpay_reversal_{note}"] == 1


# ---- dates


def at(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).replace(tzinfo=SANTIAGO).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("moment", "date"),
    [
        ("2026-09-16T17:59", "0916"),  # a Wednesday, before the cut-off
        ("2026-09-16T18:00", "0917"),
        ("2026-09-17T18:00", "0921"),  # Friday is a holiday, then the week-end
        ("2026-09-19T10:00", "0919"),  # a Saturday before the cut-off: its own date
        ("2026-09-19T20:00", "0921"),
        ("2026-12-31T23:59", "0101"),
    ],
)
def test_the_accounting_date_where_the_bank_tells_none(moment: str, date: str) -> None:
    dates = Dates(Webpay(accounting_cutoff="18:00", holidays=("2026-09-18",)))
    assert dates.accounting(at(moment)) == date
    assert Dates(Webpay()).accounting(at(moment)) == moment[5:7] + moment[8:10]


def test_dates_are_those_of_Santiago_in_summer_and_winter() -> None:
    dates = Dates(Webpay())
    utc = datetime.datetime(2026, 1, 1, 2, 30, 15, tzinfo=datetime.UTC)
    assert dates.date_and_time(int(utc.timestamp()) * 10**9) == ("1231", "233015")
    winter = utc.replace(month=7)
    assert dates.date_and_time(int(winter.timestamp()) * 10**9) == ("0630", "223015")


@pytest.mark.parametrize(
    ("month_day", "moment", "year"),
    [
        ("0101", "2026-12-31T23:00", 2027), ("1231", "2027-01-01T00:10", 2026),
        ("0916", "2026-09-16T12:00", 2026), ("0229", "2027-03-01T12:00", 2028),
        ("9999", "2026-09-16T12:00", 2026),
    ],
)  # fmt: skip
def test_the_year_of_a_date_is_the_nearest(month_day: str, moment: str, year: int) -> None:
    assert Dates(Webpay()).year_of(month_day, at(moment)) == year


# ---- the form of the third generation


def test_the_banks_of_the_debit_form() -> None:
    assert [bank.name for bank in DEBIT_BANKS] == [
        "Santander (Banco Santander y Banefe)", "BBVA", "Corpbanca", "BCI (BCI y Tbanc)",
        "Banco Falabella", "Banco Itaú", "Banco de Chile / Edwards Citi", "BancoEstado",
        "Banco BICE", "Banco Securyte",
    ]  # fmt: skip
