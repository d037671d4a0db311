"""TransfiYa over a bank link in two phases, v1 and v2: 0100, then 0220 or 0420, until taken."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trio.testing import MockClock as Clock

from switch import config as configuration
from switch.simulators.transfiya import Fault
from tests.flows.test_transfiya_v2 import AMOUNT, LedgerHouse, call, record_of
from tests.flows.test_transfiya_v2 import ANA as ANA_2
from tests.flows.test_transfiya_v2 import LUIS as LUIS_2
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
    return Bank()


def behind_a_link(house: House, core: Bank) -> None:
    """Rojo's accounts are behind a link, verde's in the ledger."""
    rojo = house.rojo
    path = rojo.directory / "troncal.toml"
    path.write_text(path.read_text() + f'core = "iso8583"\nlink = "{BANK}"\n')
    rojo.config = configuration.load(path, environ={})
    rojo.ways = lambda node: Ways(node, core)
    house.of_ledgers = (house.verde,)


@pytest.fixture
async def house(tmp_path: Path, clock: Clock, core: Bank) -> AsyncIterator[House]:
    whole = House(tmp_path)
    behind_a_link(whole, core)
    async with whole.running(clock) as running:
        yield running


def even(house: House, paid_minor: int) -> None:
    assert house.verde.balance("luis") == OPENING + paid_minor
    assert house.network.balances[house.rojo.signer("settlement")] == -paid_minor
    house.check_even(breaches=False)


async def test_ty_06_a_debit_in_two_phases(house: House, core: Bank, clock: Clock) -> None:
    transfer = await house.pay("100.00")
    assert transfer.status == "COMPLETED"
    [hold], [capture] = core.sent("0100"), core.sent("0220", "0221")
    for asked in (hold, capture):
        assert (asked["3"], asked["4"], asked["49"], asked["102"], asked["32"]) == (
            "000000", "000000010000", "170", "ana", "0011",
        )  # fmt: skip
    [upload] = [o for o in house.network.actions.values() if o["labels"]["type"] == "UPLOAD"]
    assert upload["labels"]["tx_id"] == hold["37"] == capture["37"] == "000000000001"
    assert not core.sent("0200", "0420", "0421")
    even(house, 10_000)


async def test_ty_33_ty_34_a_hold_is_declined(house: House, core: Bank, clock: Clock) -> None:
    core.code = "51"
    transfer = await house.pay("100.00")
    assert (transfer.status, transfer.error["code"]) == ("REJECTED", 314)
    assert transfer.error["message"].startswith("funds-insufficient")
    assert [one.mti for one, _ in core.asked] == ["0100"]
    even(house, 0)


async def test_ty_26_a_refused_proof_lets_go_of_the_hold(
    house: House, core: Bank, clock: Clock
) -> None:
    house.network.faults.append(Fault("prove", "refuse", count=2, value=123))
    transfer = await house.pay("100.00")
    assert transfer.status == "REJECTED"
    assert [one.mti for one, _ in core.asked] == ["0100", "0420"]
    undone = core.sent("0420")[0]
    assert undone["37"] == core.sent("0100")[0]["37"]
    assert undone["90"][:4] == "0100"
    even(house, 0)


async def test_ty_35_no_answer_to_the_0100(house: House, core: Bank, clock: Clock) -> None:
    core.auto = False
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: len(core.sent("0100")) == 1)
    core.lose()
    await house.until(lambda: len(core.sent("0420")) == 1)
    core.answer(place=0, code="00")  # the approval, after all: it has no effect
    core.lose()
    await house.until(lambda: len(core.sent("0421")) >= 1)
    core.answer(code="25")
    await house.settle()
    assert transfer.status == "REJECTED"
    assert len(core.sent("0100")) == 1
    assert not core.sent("0200", "0220")
    assert house.rojo.node.alarms["late_answer"] == 1
    item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
    assert item is not None
    assert (item.state, item.reason) == ("FAILED", "core-unknown")
    even(house, 0)


async def test_ty_24_the_capture_is_repeated_until_it_is_taken(
    house: House, core: Bank, clock: Clock
) -> None:
    """The network's proof stands, so nothing takes the money back; /continue waits for it."""
    core.auto = False
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: len(core.sent("0100")) == 1)
    core.answer(code="00")
    await house.until(lambda: len(core.sent("0220")) == 1)
    core.lose()
    await house.until(lambda: len(core.sent("0221")) == 1)
    item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
    assert item is not None
    assert item.state == "ACCEPTED"
    assert not [what for what, *_ in house.network.log if what == "continue"]
    core.answer(code="96")  # no decision: it goes out again
    await house.until(lambda: len(core.sent("0221")) == 2)
    core.answer(code="00")
    await house.settle()
    assert transfer.status == "COMPLETED"
    assert not core.sent("0420", "0421")
    even(house, 10_000)


@pytest.mark.parametrize("stage", ["held", "captured"])
async def test_ty_20_ty_24_a_crash_in_a_phase(
    house: House, core: Bank, stage: str, clock: Clock
) -> None:
    """A question is never asked again, what is owed goes out as a repeat."""
    core.auto = False
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: len(core.sent("0100")) == 1)
    if stage == "captured":
        core.answer(code="00")
        await house.until(lambda: len(core.sent("0220")) == 1)
    house.rojo.crash()
    core.auto = True
    core._unanswered.clear()
    await house.restart(house.rojo)
    await house.settle()
    assert len(core.sent("0100")) == 1
    if stage == "held":
        assert transfer.status == "REJECTED"
        assert core.sent("0420", "0421")
        assert not core.sent("0220", "0221")
    else:
        assert transfer.status == "COMPLETED"
        assert len(core.sent("0221")) == 1
        assert not core.sent("0420", "0421")
    even(house, 10_000 if stage == "captured" else 0)


async def test_ty_17_ty_25_a_crash_at_each_step(house: House, core: Bank, clock: Clock) -> None:
    """One hold and one capture per item, or one hold and its end, whatever step is the last."""
    paid = 0
    for number in range(1, 12):
        for when in ("before", "after"):
            rojo = house.rojo
            begun = len(core.sent("0100"))
            rojo.crash_at = (rojo.steps + number, when)
            transfer = house.network.begin(ANA, LUIS, "100.00")
            await house.until(lambda rojo=rojo: not rojo.up or house.settled())
            rojo.crash_at = None
            if not rojo.up:
                await rojo.stopped()
                core._unanswered.clear()
                await house.restart(rojo)
            await house.settle()
            assert len(core.sent("0100")) <= begun + 1
            assert transfer.status in ("COMPLETED", "REJECTED")
            paid += 10_000 if transfer.status == "COMPLETED" else 0
            even(house, paid)
    captured = {one["37"] for one in core.sent("0220", "0221")}
    undone = {one["37"] for one in core.sent("0420", "0421")}
    returned = {one["37"] for one in core.sent("0200")}
    assert len(captured) == paid // 10_000 + len(returned)
    assert not captured & undone
    assert {one["37"] for one in core.sent("0100")} <= captured | undone


# ---- profile v2


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock, core: Bank) -> AsyncIterator[LedgerHouse]:
    whole = LedgerHouse(tmp_path)
    behind_a_link(whole, core)
    async with whole.running(clock) as running:
        yield running


def settled(house: LedgerHouse, paid_minor: int) -> None:
    """Verde's ledger has the money or not, and nothing is open at rojo."""
    assert house.ledger.breaches == []
    assert house.verde.balance("luis2") == OPENING + paid_minor
    assert house.verde.open_holds() == 0
    for bank in house.banks:
        assert not [e for e in bank.flow.entries.stored() if e.open]


async def test_ty_65_prepare_and_commit_over_a_link(
    ledger: LedgerHouse, core: Bank, clock: Clock
) -> None:
    assert await ledger.send() == "completed"
    [hold], [capture] = core.sent("0100"), core.sent("0220")
    assert (hold["3"], hold["4"], hold["102"]) == ("000000", f"{AMOUNT:012}", "ana2")
    assert (capture["37"], capture["4"], capture["102"]) == (hold["37"], hold["4"], "ana2")
    words = {s: w for (n, s), w in ledger.ledger.words.items() if n[:3] == "deb"}
    assert words["prepared"]["coreId"] == words["committed"]["coreId"] == hold["37"]
    settled(ledger, AMOUNT)


async def test_ty_65_a_credit_over_a_link(ledger: LedgerHouse, core: Bank, clock: Clock) -> None:
    """Set aside at prepare, given at commit."""
    ended = await ledger.during(ledger.ledger.transfer(("verde", LUIS_2), ("rojo", ANA_2), AMOUNT))
    assert ended == "completed"
    assert [(one.mti, one["3"], one["103"]) for one, _ in core.asked] == [
        ("0100", "210000", "ana2"), ("0220", "210000", "ana2"),
    ]  # fmt: skip
    settled(ledger, -AMOUNT)


async def test_ty_65_a_decline_over_a_link(ledger: LedgerHouse, core: Bank, clock: Clock) -> None:
    core.code = "51"
    assert await ledger.send() == "rejected"
    [word] = [w for (_, status), w in ledger.ledger.words.items() if status == "failed"]
    assert word["reason"] == "bridge.account-insufficient-balance"
    await ledger.pause(5.0)
    assert [one.mti for one, _ in core.asked] == ["0100"]
    settled(ledger, 0)


async def test_ty_65_abort_lets_go_of_the_hold(
    ledger: LedgerHouse, core: Bank, clock: Clock
) -> None:
    prepare, abort = record_of(ledger), record_of(ledger, act="abort")
    assert await call(ledger, "debits", prepare) == 202
    await ledger.until(lambda: ("deb-1", "prepared") in ledger.ledger.words)
    core.auto = False
    assert await call(ledger, "debits/deb-1/abort", abort) == 202
    await ledger.until(lambda: len(core.sent("0420")) == 1)
    assert await call(ledger, "debits/deb-1/abort", abort) == 202  # again, while it is under way
    await ledger.pause(0.1)
    assert ("deb-1", "aborted") not in ledger.ledger.words, "told only when the core has done it"
    core.lose()
    await ledger.until(lambda: len(core.sent("0421")) == 1)
    core.answer(code="00")
    await ledger.pause(2.0)
    assert [status for _, status in ledger.ledger.words] == ["prepared", "aborted"]
    assert await call(ledger, "debits", prepare) == 202
    await ledger.pause(2.0)
    assert len(core.sent("0100")) == 1
    settled(ledger, 0)


async def test_ty_65_abort_while_the_core_is_asked(
    ledger: LedgerHouse, core: Bank, clock: Clock
) -> None:
    core.auto = False
    assert await call(ledger, "debits", record_of(ledger)) == 202
    await ledger.until(lambda: len(core.sent("0100")) == 1)
    assert await call(ledger, "debits", record_of(ledger)) == 202
    assert await call(ledger, "debits/deb-1/abort", record_of(ledger, act="abort")) == 202
    await ledger.until(lambda: len(core.sent("0420")) == 1)
    core.answer(place=0, code="00")  # too late
    core.answer(place=1, code="00")
    await ledger.pause(2.0)
    assert [status for _, status in ledger.ledger.words] == ["aborted"]
    assert len(core.sent("0100")) == 1
    assert ledger.rojo.node.alarms["late_answer"] == 1
    settled(ledger, 0)


async def test_ty_65_no_answer_to_the_0100(ledger: LedgerHouse, core: Bank, clock: Clock) -> None:
    """Told as failed at once; undone until the core takes it, and only then is it over."""
    core.auto = False
    assert await call(ledger, "debits", record_of(ledger)) == 202
    await ledger.until(lambda: len(core.sent("0100")) == 1)
    core.lose()
    await ledger.until(lambda: ("deb-1", "failed") in ledger.ledger.words)
    assert ledger.ledger.words["deb-1", "failed"]["reason"] == "bridge.core-unreachable"
    await ledger.until(lambda: len(core.sent("0420")) == 1)
    assert await call(ledger, "debits/deb-1/abort", record_of(ledger, act="abort")) == 202
    await ledger.pause(0.1)
    assert ("deb-1", "aborted") not in ledger.ledger.words
    core.answer(code="25")
    await ledger.until(lambda: ("deb-1", "aborted") in ledger.ledger.words)
    await ledger.pause(1.0)
    settled(ledger, 0)


async def test_ty_65_the_link_is_down(ledger: LedgerHouse, core: Bank, clock: Clock) -> None:
    core.up = False
    assert await ledger.send() == "rejected"
    await ledger.pause(5.0)
    assert not core.asked
    settled(ledger, 0)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_ty_65_a_crash_at_each_step_over_a_link(
    ledger: LedgerHouse, core: Bank, when: str, clock: Clock
) -> None:
    rojo, paid = ledger.rojo, 0
    for number in range(1, 9):
        rojo.crash_at = (rojo.steps + number, when)
        ended: list[str] = []

        async def transfer(ended: list[str] = ended) -> None:
            ended.append(await ledger.ledger.transfer(("rojo", ANA_2), ("verde", LUIS_2), AMOUNT))

        assert ledger._nursery is not None
        ledger._nursery.start_soon(transfer)
        await ledger.until(lambda ended=ended: bool(ended) or not rojo.up)
        rojo.crash_at = None
        if not rojo.up:
            await rojo.stopped()
            core._unanswered.clear()
            await ledger.pause(0.5)
            await ledger.restart(rojo)
        await ledger.until(lambda ended=ended: bool(ended))
        await ledger.pause(20.0)
        paid += AMOUNT if ended == ["completed"] else 0
        settled(ledger, paid)
    held = {one["37"] for one in core.sent("0100")}
    captured = {one["37"] for one in core.sent("0220", "0221")}
    undone = {one["37"] for one in core.sent("0420", "0421")}
    assert len(captured) == paid // AMOUNT
    assert held == captured | undone
    assert not captured & undone
    assert len(core.sent("0100")) == len(held)
