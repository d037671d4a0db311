"""TransfiYa in storms: calls lost, late, twice and answered with nonsense, and banks that are gone
at any of their durable steps, while transfers go both ways.

A seed decides what happens. Then all is well again: every transfer has one end, and the books of
both banks, their customers and the network's settlement must say the same. `TRONCAL_SEED` is the
first of the seeds; `TRONCAL_FUZZ=1` runs many more.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocols.transfiya import to_minor
from switch.flows.transfiya import TransfiyaFlow
from switch.flows.transfiya_core import DONE, LedgerCore
from tests.conftest import FUZZ
from tests.faults.steady import Trace, steady
from tests.faults.test_transfiya_load import storm
from tests.transfiya_house import ANA, LUIS, OPENING, BankHouse, House

FIRST = int(os.environ.get("TRONCAL_SEED", "0"))
STORMS = 50 * FUZZ if FUZZ else 3
CANARY_SEEDS = 8
TRANSFERS = 10
CRASHES = 3
FINAL = ("COMPLETED", "REJECTED", "ERROR")
TOLD = "transfiya_transfer_error"  # the alarm that comes with every ERROR

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


async def crashed(house: House, bank: BankHouse, draw: random.Random, alarms: set[str]) -> None:
    """The bank is gone at one of its next steps, and is there again a little later."""
    bank.crash_at = (bank.steps + draw.randrange(1, 12), draw.choice(("before", "after")))
    await house.until(lambda: not bank.up or house.settled())
    bank.crash_at = None
    if not bank.up:
        await bank.stopped()
        alarms |= set(bank.node.alarms)
        await house.pause(draw.random() * 3)
        await house.restart(bank)


async def steady_storm(directory: Path, seed: int, clock: trio.testing.MockClock) -> Trace:
    """One storm in which only the seed decides; what happened."""
    with steady(seed) as trace:
        await run(directory, seed, clock)
    return trace


async def run(directory: Path, seed: int, clock: trio.testing.MockClock) -> int:
    """One storm, judged; how many transfers were paid."""
    draw = random.Random(seed)
    async with House(directory, seed=seed).running(clock) as house:
        storm(house, draw, TRANSFERS)
        begun, alarms = [], set[str]()
        for number in range(TRANSFERS):
            ways = (ANA, LUIS) if draw.random() < 0.6 else (LUIS, ANA)
            amount = f"{draw.randrange(1, 500)}.{draw.randrange(100):02d}"
            begun.append(house.network.begin(*ways, amount))
            if number % (TRANSFERS // CRASHES) == 1:
                await crashed(house, draw.choice(house.banks), draw, alarms)
            elif draw.random() < 0.5:
                await house.pause(draw.random() * 2)
        await house.pause(20.0)
        house.network.faults.clear()
        await house.settle(20_000)
        house.check_even(breaches=False)
        for bank in house.banks:
            alarms |= set(bank.node.alarms)
        for transfer in begun:
            assert transfer.status in FINAL, transfer.history
            source = house.ana if transfer.source == ANA else house.luis
            target = house.luis if transfer.source == ANA else house.ana
            moved = proven(house, transfer.tx_ref)
            if transfer.status == "COMPLETED":
                assert moved == {("UPLOAD", source): 1, ("DOWNLOAD", target): 1}
            elif transfer.status == "REJECTED":
                given_back = {("UPLOAD", source): 1, ("DOWNLOAD", source): 1}
                assert moved in ({}, given_back), transfer.history
            else:
                assert TOLD in alarms
        assert house.rojo.balance("ana") == OPENING + booked(house, house.ana)
        assert house.verde.balance("luis") == OPENING + booked(house, house.luis)
        return sum(transfer.status == "COMPLETED" for transfer in begun)


def proven(house: House, tx_ref: str) -> Counter[tuple[str, str]]:
    """How often the network has a bank's signature for money of a transfer, by side and person."""
    return Counter(
        (one["labels"]["type"], _person(one))
        for one in _completed(house)
        if one["labels"]["tx_ref"] == tx_ref
    )


def booked(house: House, person: str) -> int:
    """What the network has proof of, for one account, in minor units."""
    sign = {"UPLOAD": -1, "DOWNLOAD": 1}
    return sum(
        sign[one["labels"]["type"]] * to_minor(one["amount"], 2)
        for one in _completed(house)
        if _person(one) == person
    )


def _person(action: dict[str, Any]) -> str:
    """An upload goes from a bank to the network for somebody, a download back."""
    found: str = action["target" if action["labels"]["type"] == "UPLOAD" else "source"]
    return found


def _completed(house: House) -> list[Any]:
    return [
        one
        for one in house.network.actions.values()
        if one["labels"]["type"] in ("UPLOAD", "DOWNLOAD")
        and one["labels"]["status"] == "COMPLETED"
    ]


@pytest.mark.parametrize("seed", range(FIRST, FIRST + STORMS))
async def test_a_storm_leaves_one_end_for_each_transfer_and_all_money(
    tmp_path: Path, clock: trio.testing.MockClock, seed: int
) -> None:
    await steady_storm(tmp_path, seed, clock)


# What a mistake would look like, and where the money has to show it.
CANARIES: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "a restart forgets what was begun": (TransfiyaFlow, "adopt", lambda *_: None),
    "what is given up stays held": (LedgerCore, "undo", lambda *_: DONE),
}


@pytest.mark.parametrize("canary", sorted(CANARIES))
async def test_planted_bugs_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: trio.testing.MockClock, canary: str
) -> None:
    owner, name, mistake = CANARIES[canary]
    monkeypatch.setattr(owner, name, mistake)
    for seed in range(CANARY_SEEDS):
        directory = tmp_path / str(seed)
        directory.mkdir()
        try:
            await run(directory, seed, clock)
        except (AssertionError, ExceptionGroup):
            return
    raise RuntimeError("no storm has found it")
