"""TransfiYa: a bank's process is gone before or after each of its durable steps, and comes back.

The steps of a transfer are counted in an undisturbed run; then each of them is the last thing the
process does, once before it is written and once after. The end must always be the same.
"""

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocols.transfiya import encode
from switch.simulators.transfiya import Fault
from tests.transfiya_house import ANA, LUIS, OPENING, BankHouse, House

HUNDRED = 10_000
# Steps of one side: taken in, answered, reserved, tagged and signed, proven and posted, done; the
# source bank has the signature on the main action besides, the target bank the offer.
STEPS_MAX = 16

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


def bank_of(house: House, name: str) -> BankHouse:
    return house.rojo if name == "rojo" else house.verde


async def crashed_transfer(
    house: House, name: str, number: int, when: str, *, reverse: bool = False
) -> str:
    """A transfer during which a bank dies at one of its steps, and is there again a second later;
    returns its end."""
    bank = bank_of(house, name)
    if reverse:
        house.network.faults.append(Fault("prove", "refuse", skip=2, count=2, value=123))
    bank.crash_at = (bank.steps + number, when)
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: not bank.up or house.settled())
    bank.crash_at = None
    if not bank.up:
        await bank.stopped()
        await house.pause(1.0)
        await house.restart(bank)
    await house.settle()
    return transfer.status


def check(house: House, paid: int) -> None:
    """All is even; money has moved once for each transfer that is complete."""
    house.check_even(breaches=False)
    assert house.rojo.balance("ana") == OPENING - paid * HUNDRED
    assert house.verde.balance("luis") == OPENING + paid * HUNDRED
    proven: dict[tuple[str, str, str], int] = {}
    for action in house.network.actions.values():
        labels = action["labels"]
        if labels["type"] in ("UPLOAD", "DOWNLOAD") and labels["status"] == "COMPLETED":
            key = (labels["tx_ref"], action["source"], action["target"])
            proven[key] = proven.get(key, 0) + 1
    assert set(proven.values()) <= {1}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["rojo", "verde"])
async def test_ty_17_to_ty_25_crash_at_each_step(
    tmp_path: Path, clock: Any, name: str, when: str
) -> None:
    async with House(tmp_path).running(clock) as house:
        for number in range(1, STEPS_MAX + 1):
            status = await crashed_transfer(house, name, number, when)
            assert status == "COMPLETED", (number, house.state())
            check(house, number)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_ty_17_to_ty_25_crash_during_a_reversal(
    tmp_path: Path, clock: Any, when: str
) -> None:
    async with House(tmp_path).running(clock) as house:
        for number in range(5, 18):
            status = await crashed_transfer(house, "rojo", number, when, reverse=True)
            assert status == "REJECTED", (number, house.state())
            check(house, 0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("number", "state"),
    [(3, "RESERVED"), (4, "SIGNED"), (5, "POSTED")],  # 1: taken in, 2: answered
    ids=["ty_20_phase_1", "ty_21_put", "ty_24_capture"],
)
async def test_crash_at_the_core_and_at_the_tag(
    tmp_path: Path, clock: Any, number: int, state: str, when: str
) -> None:
    """One hold, one tx_id, one capture; whether the step was written or not."""
    async with House(tmp_path).running(clock) as house:
        bank = house.rojo
        bank.crash_at = (number, when)
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: not bank.up)
        bank.crash_at = None
        await bank.stopped()
        bank.open()
        stored = bank.item("UPLOAD", transfer.tx_ref, house.ana)
        assert stored is not None
        assert (stored.state == state) is (when == "after"), stored.history
        held = bank.open_holds()
        assert held == int(stored.state in ("RESERVED", "SIGNED"))
        bank.node.close()
        bank.up = False
        await house.restart(bank)
        await house.settle()
        assert transfer.status == "COMPLETED"
        check(house, 1)
        ended = bank.item("UPLOAD", transfer.tx_ref, house.ana)
        assert ended is not None
        assert [name for name, _ in ended.history].count("POSTED") == 1
        action = house.network.actions[ended.action_id]
        assert action["labels"]["tx_id"] == ended.core
        tags = [v["labels"]["tx_id"] for name, path, v in house.network.log
                if name == "tag" and ended.action_id in path]  # fmt: skip
        assert set(tags) == {ended.core}


async def test_ty_18_one_action_is_created(tmp_path: Path, clock: Any) -> None:
    """It dies while the create call is on its way: the action that was made is adopted."""
    async with House(tmp_path).running(clock) as house:
        house.network.faults.append(Fault("create", "slow", value=2.0))
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: house.network.calls["create"] == 1)
        await house.pause(0.5)
        house.rojo.crash()
        await house.restart(house.rojo)
        await house.settle()
        check(house, int(transfer.status == "COMPLETED"))
        [upload] = [o for o in house.network.actions.values() if o["labels"]["type"] == "UPLOAD"]
        item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
        assert item is not None
        assert item.action_id == upload["action_id"], "adopted"
        assert transfer.status == "COMPLETED"


@pytest.mark.parametrize("gone", [True, False])
async def test_ty_19_nobody_got_the_answer(tmp_path: Path, clock: Any, gone: bool) -> None:
    """Answered durably, and dead before the bytes left: the transfer's own state decides."""
    async with House(tmp_path).running(clock) as house:
        house.network.faults.append(Fault("create", "delay", value=1.0))
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: house.network.calls["create"] == 1)
        house.rojo.crash_at = (house.rojo.steps + 1, "after")
        await house.until(lambda: not house.rojo.up)
        house.rojo.crash_at = None
        await house.rojo.stopped()
        if gone:
            transfer.main["labels"]["status"] = "REJECTED"
            house.network.continue_s = 1.0
            await house.pause(30.0)
        await house.restart(house.rojo)
        await house.settle()
        item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
        if gone:
            assert transfer.status == "REJECTED"
            assert item is None or item.state == "FAILED"
            assert house.rojo.balance("ana") == OPENING
            house.check_even(breaches=False)
        else:
            assert transfer.status == "COMPLETED"
            check(house, 1)


async def test_ty_22_the_same_iou_is_sent(tmp_path: Path, clock: Any) -> None:
    """Signed durably, and dead before it left: the same bytes go out."""
    async with House(tmp_path).running(clock) as house:
        house.network.faults.append(Fault("tag", "delay", value=1.0))
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: house.network.calls["tag"] == 1)
        house.rojo.crash_at = (house.rojo.steps + 1, "after")
        await house.until(lambda: not house.rojo.up)
        house.rojo.crash_at = None
        await house.rojo.stopped()
        house.rojo.open()
        stored = house.rojo.flow.items.get("rojo", f"UPLOAD/{transfer.tx_ref}/{house.ana}")
        assert stored is not None
        assert stored.state == "SIGNED"
        iou = stored.iou
        house.rojo.node.close()
        house.rojo.up = False
        await house.restart(house.rojo)
        await house.settle()
        assert transfer.status == "COMPLETED"
        check(house, 1)
        first = next(value for name, _, value in house.network.log if name == "prove")
        assert encode(first) == iou
        # What an earlier process has signed is looked at before it leaves.
        assert house.rojo.flow.shared.counts["iou_check", "ok"] == 1


async def test_ty_23_the_proof_arrived_and_nobody_knows(tmp_path: Path, clock: Any) -> None:
    async with House(tmp_path).running(clock) as house:
        house.network.faults.append(Fault("prove", "slow", value=1.0))
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: len(house.network.ious) == 1)
        house.rojo.crash()
        await house.restart(house.rojo)
        await house.settle()
        check(house, int(transfer.status == "COMPLETED"))
        assert transfer.status == "COMPLETED"
        assert house.network.calls["get"] >= 1
