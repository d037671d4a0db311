"""TransfiYa with the accounts behind a bank link: one 0200 per item, and 0420 until it is taken."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trio.testing import MockClock as Clock

from switch import config as configuration
from switch.simulators.transfiya import Fault
from tests.transfiya_house import ANA, LUIS, OPENING, House
from tests.webpay_house import BANK, Bank, Ways

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


# Named by every test itself: only so the runner takes it as the clock.
@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def core() -> Bank:
    bank = Bank()
    bank.code = "00"
    return bank


@pytest.fixture
async def house(tmp_path: Path, clock: Clock, core: Bank) -> AsyncIterator[House]:
    """Rojo's accounts are behind a link, verde's in the ledger."""
    whole = House(tmp_path)
    rojo = whole.rojo
    path = rojo.directory / "troncal.toml"
    path.write_text(rojo.text + f'core = "iso8583"\nlink = "{BANK}"\nhold = false\n')
    rojo.config = configuration.load(path, environ={})
    rojo.ways = lambda node: Ways(node, core)
    whole.of_ledgers = (whole.verde,)
    async with whole.running(clock) as running:
        yield running


def even(house: House, paid_minor: int) -> None:
    assert house.verde.balance("luis") == OPENING + paid_minor
    assert house.network.balances[house.rojo.signer("settlement")] == -paid_minor
    house.check_even(breaches=False)


async def test_a_debit_over_the_link(house: House, core: Bank, clock: Clock) -> None:
    transfer = await house.pay("100.00")
    assert transfer.status == "COMPLETED"
    [asked] = core.sent("0200")
    assert (asked["3"], asked["4"], asked["49"], asked["102"]) == (
        "000000", "000000010000", "170", "ana",
    )  # fmt: skip
    [upload] = [o for o in house.network.actions.values() if o["labels"]["type"] == "UPLOAD"]
    assert upload["labels"]["tx_id"] == asked["37"] == "000000000001"
    even(house, 10_000)


async def test_a_refund_over_the_link(house: House, core: Bank, clock: Clock) -> None:
    house.network.faults.append(Fault("tag", "refuse", skip=1, value=123))
    transfer = await house.pay("100.00")
    assert transfer.status == "REJECTED"
    debit, credit = core.sent("0200")
    assert (credit["3"], credit["4"], credit["103"]) == ("210000", "000000010000", "ana")
    assert debit["37"] != credit["37"]
    even(house, 0)


@pytest.mark.parametrize(("code", "told"), [("51", 314), ("14", 307), ("61", 314)])
async def test_a_decline_over_the_link(
    house: House, core: Bank, code: str, told: int, clock: Clock
) -> None:
    core.code = code
    transfer = await house.pay("100.00")
    assert (transfer.status, transfer.error["code"]) == ("REJECTED", told)
    assert not core.sent("0420")
    even(house, 0)


async def test_ty_35_no_answer_to_the_0200(house: House, core: Bank, clock: Clock) -> None:
    core.auto = False
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: len(core.sent("0200")) == 1)
    core.lose()
    await house.until(lambda: len(core.sent("0420")) == 1)
    core.lose()
    await house.until(lambda: len(core.sent("0421")) >= 1)
    core.answer(code="00")
    await house.settle()
    assert transfer.status == "REJECTED"
    assert len(core.sent("0200")) == 1
    assert core.sent("0420")[0]["37"] == core.sent("0200")[0]["37"]
    item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
    assert item is not None
    assert (item.state, item.reason) == ("FAILED", "core-unknown")
    even(house, 0)


async def test_ty_36_an_approval_after_the_0420(house: House, core: Bank, clock: Clock) -> None:
    core.auto = False
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: len(core.sent("0200")) == 1)
    core.lose()
    await house.until(lambda: len(core.sent("0420")) == 1)
    core.answer(place=0, code="00")  # the approval, after all
    await house.pause(1.0)
    item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
    assert item is not None
    assert item.state == "FAILING"
    assert house.rojo.node.alarms["late_answer"] == 1
    core.answer(place=1, code="00")
    await house.settle()
    assert transfer.status == "REJECTED"
    assert len(core.sent("0200")) == 1
    even(house, 0)


async def test_ty_35_the_link_is_down(house: House, core: Bank, clock: Clock) -> None:
    core.up = False
    transfer = await house.pay("100.00")
    assert transfer.status == "REJECTED"
    assert not core.asked
    even(house, 0)


async def test_ty_35_a_crash_while_the_question_is_out(
    house: House, core: Bank, clock: Clock
) -> None:
    """After the start nobody knows what became of it: it is undone, and never asked again."""
    core.auto = False
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: len(core.sent("0200")) == 1)
    house.rojo.crash()
    core.auto = True
    core._unanswered.clear()
    await house.restart(house.rojo)
    await house.settle()
    assert transfer.status == "REJECTED"
    assert len(core.sent("0200")) == 1
    assert len(core.sent("0420", "0421")) >= 1
    even(house, 0)


async def test_ty_50_thirteen_digits_have_no_form(house: House, core: Bank, clock: Clock) -> None:
    transfer = await house.pay("10000000000.00")
    assert transfer.status == "REJECTED"
    assert transfer.error["message"].startswith("amount-invalid")
    assert not core.asked
    even(house, 0)
