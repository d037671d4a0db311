"""Transfers that our own customers begin: one for each reference, whatever is lost on the way."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock

from switch.flows.transfiya_records import Item
from switch.simulators.transfiya import Fault
from tests.transfiya_house import ANA, LUIS, OPENING, House

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


# Named by every test itself: only so the runner takes it as the clock.
@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def house(tmp_path: Path, clock: Clock) -> AsyncIterator[House]:
    async with House(tmp_path).running(clock) as running:
        yield running


async def begin(house: House, reference: str = "app-1", **more: Any) -> str | None:
    values = {"source": ANA, "target": LUIS, "symbol": "$tin", "amount": "5.00"} | more
    flow = house.rojo.flow
    found: str | None = await house.during(
        house.rojo.node.perform(lambda step: flow.start_transfer(step, "rojo", reference, **values))
    )
    return found


def own(house: House, reference: str = "app-1") -> Item:
    item = house.rojo.item("TRANSFER", reference, ANA)
    assert item is not None
    return item


def moved(house: House, amount_minor: int) -> None:
    assert house.rojo.balance("ana") == OPENING - amount_minor
    assert house.verde.balance("luis") == OPENING + amount_minor


async def test_it_is_begun_once_for_each_reference(house: House, clock: Clock) -> None:
    first = await begin(house)
    assert first == await begin(house)
    await house.settle()
    assert first == await begin(house), "also when it has ended"
    assert house.network.calls["transfer"] == 1
    [transfer] = house.network.transfers.values()
    assert (own(house).state, own(house).action_id) == ("DONE", transfer.tx_ref)
    assert transfer.status == "COMPLETED"
    moved(house, 500)
    house.check_even()


@pytest.mark.parametrize(
    "wrong",
    [{"amount": "5,00"}, {"amount": "0.00"}, {"symbol": "$usd"}, {"kind": "GIFT"},
     {"reference": "a/b"}],
    ids=str,
)  # fmt: skip
async def test_what_is_no_transfer(house: House, wrong: dict[str, str], clock: Clock) -> None:
    assert await begin(house, **wrong) is None
    assert not list(house.rojo.flow.items.stored())


async def test_its_answer_is_lost(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("transfer", "lose"))
    await begin(house)
    await house.settle()
    assert own(house).state == "DONE"
    assert (house.network.calls["transfer"], len(house.network.transfers)) == (1, 1)
    moved(house, 500)
    house.check_even()


async def test_nobody_knows_whether_it_was_begun(house: House, clock: Clock) -> None:
    """It is looked for, parked, and told of without the customer's phone; not begun again."""
    house.network.faults.append(Fault("transfer", "drop"))
    with capture_logs() as lines:
        await begin(house)
        await house.pause(600.0)
    assert (own(house).state, own(house).reason) == ("PARKED", "transfer-unknown")
    assert not house.network.transfers
    assert house.network.calls["search"] == 1
    [alarm] = [one for one in lines if one.get("alarm") == "transfiya_parked"]
    assert alarm["subject"] == "app-1"
    assert ANA not in repr(lines)
    assert await begin(house) == own(house).id
    await house.pause(60.0)
    assert not house.network.transfers
    moved(house, 0)


async def test_it_is_refused(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("transfer", "refuse", value=112))
    await begin(house)
    await house.settle()
    item = own(house)
    assert (item.state, item.reason, item.code) == ("FAILED", "transfer-refused", 112)
    moved(house, 0)


@pytest.mark.parametrize("done", [True, False])
async def test_a_crash_while_it_is_on_its_way(house: House, done: bool, clock: Clock) -> None:
    """Found, it is told as begun; else a person must look. Never is it begun again."""
    house.network.faults.append(Fault("transfer", "slow" if done else "delay", value=5.0))
    await begin(house)
    await house.until(lambda: house.network.calls["transfer"] == 1)
    await house.pause(0.5)
    house.rojo.crash()
    await house.restart(house.rojo)
    await house.pause(60.0)
    assert own(house).state == ("DONE" if done else "PARKED")
    assert (house.network.calls["transfer"], len(house.network.transfers)) == (1, int(done))
    moved(house, 500 * done)
