"""TransfiYa on a disk that is full or fails: what cannot be kept is not begun, and not claimed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock as Clock

from switch.flows.transfiya_records import put_body
from switch.journal import store
from switch.simulators.transfiya import Fault
from tests.transfiya_house import ANA, LUIS, OPENING, BankHouse, House

DISK_BYTES = 3 << 20
BODY_BYTES = 50_000
BODIES_MAX = 400

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


# Named by every test itself: only so the runner takes it as the clock.
@pytest.fixture
def clock() -> Clock:
    return Clock()


def on_a_bad_disk(bank: BankHouse, monkeypatch: Any, **fault: int) -> Callable[[], None]:
    """Have a bank's journal fail as told from its next start on, until this is taken back."""
    good, opened = store.Journal, bank.open

    def open_on_it() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store, "Journal", partial(good, **fault))
            opened()

    def take_back() -> None:
        bank.open = opened  # type: ignore[method-assign]

    bank.open = open_on_it  # type: ignore[method-assign]
    return take_back


async def fill(house: House, bank: BankHouse) -> None:
    """Write something else until there is no room for new work."""
    node, number = bank.node, 0
    while node.store.admitting:
        number += 1
        name = f"filler-{number}"
        await house.during(
            node.perform(
                lambda step, name=name: put_body(  # type: ignore[misc]
                    node.store.records, name, bytes(BODY_BYTES), step.now_ns
                )
            )
        )
        assert number < BODIES_MAX, "the disk never was full"


async def test_ty_57_a_full_disk(tmp_path: Path, clock: Clock, monkeypatch: Any) -> None:
    """New calls are refused before anything leaves; what was begun goes on to its end."""
    house = House(tmp_path)
    take_back = on_a_bad_disk(house.verde, monkeypatch, fail_after_bytes=DISK_BYTES)
    async with house.running(clock):
        network = house.network
        network.faults.append(Fault("tag", "delay", skip=1, value=4.0))
        begun = network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: network.calls["tag"] == 2)
        await fill(house, house.verde)
        calls = dict(network.calls)
        main = {**begun.main, "labels": {**begun.main["labels"], "tx_ref": "new-1"}}
        for endpoint in ("debit", "credit", "action", "status"):
            http, body = await house.during(network.call_bank("verde", endpoint, main))
            assert http == 503
            assert body["error"]["code"] == 314
            assert body["error"]["message"].startswith("out-of-service")
        left = {name for name, n in network.calls.items() if n != calls.get(name, 0)}
        assert not [name for name in left if not name.startswith("to:")]
        assert house.verde.item("DOWNLOAD", "new-1", house.luis) is None
        await house.settle()
        assert begun.status == "COMPLETED"
        refused = await house.pay()
        assert refused.status == "REJECTED"
        take_back()
        house.verde.crash()
        await house.restart(house.verde)
        assert (await house.pay()).status == "COMPLETED"
        house.check_even(breaches=False)
        assert house.rojo.balance("ana") == OPENING - 20_000


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 7, 8])
async def test_ty_57_a_disk_that_fails(
    tmp_path: Path, clock: Clock, monkeypatch: Any, at: int
) -> None:
    """The bank stops with what it could not keep: nobody was told of it, nothing had left."""
    house = House(tmp_path)
    house.verde.may_fail = True
    take_back = on_a_bad_disk(house.verde, monkeypatch, fail_sync_at=at)
    async with house.running(clock):
        network = house.network
        transfer = network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: not house.verde.up or house.settled())
        assert not house.verde.up, "the disk was to fail during the transfer"
        await house.verde.stopped()
        assert "journal failed" in house.verde.failure
        take_back()
        house.verde.open()
        kept = {item.kind: item for item in house.verde.flow.items.stored()}
        created = [
            1
            for name, _, value in network.log
            if name == "create" and value["target"] == house.verde.signer("settlement")
        ]
        credit = kept.get("DOWNLOAD")
        if created:
            assert credit is not None, "its taking in was durable before it left"
        if network.calls["to:credit:200"]:
            assert credit is not None
            assert credit.answer
        if network.calls["to:status:200"]:
            assert "ACCEPT" in kept
        house.verde.node.close()
        house.verde.up = False
        await house.restart(house.verde)
        await house.settle()
        assert transfer.status in ("COMPLETED", "REJECTED")
        paid = 10_000 if transfer.status == "COMPLETED" else 0
        assert house.verde.balance("luis") == OPENING + paid
        house.check_even(breaches=False)
