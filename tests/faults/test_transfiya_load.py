"""TransfiYa: very many transfers at once under random faults and kills; no money is lost or made.

`TRONCAL_TORTURE=1` runs the large profiles.
"""

import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio.testing

from core_ext import Reader
from switch.flows.step import ALARM_RECORD
from switch.journal.records import AlarmRecord
from switch.simulators.transfiya import Fault, Transfer
from tests.transfiya_house import ANA, LUIS, BankHouse, House

LARGE = os.environ.get("TRONCAL_TORTURE") == "1"
CALLS = ("create", "tag", "prove", "continue", "accept", "get", "find")
OURS = ("debit", "credit", "action", "status")

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


def storm(house: House, draw: random.Random, count: int) -> None:
    """Random faults, each once or twice, at random calls."""
    house.network.answer_s = 600.0
    for _ in range(count):
        skip = draw.randrange(count * 2)
        if draw.random() < 0.35:
            kind = draw.choice(["duplicate", "delay", "lose"])
            value = draw.choice([0.0, 0.2, 3.0, 9.0])
            house.network.faults.append(Fault(draw.choice(OURS), kind, 1, skip, value))
            continue
        kind = draw.choice(
            ["drop", "lose", "delay", "slow", "garbage", "status", "forbidden", "refuse"]
        )
        value = {"delay": 2.0, "slow": 7.0, "status": 503, "refuse": 123}.get(kind)
        call = draw.choice(CALLS)
        house.network.faults.append(Fault(call, kind, draw.choice((1, 1, 2)), skip, value))


def alarms(bank: BankHouse) -> set[str]:
    """Transfers that people were told of, in all lives of a bank."""
    reader, found = Reader(str(bank.config.data / "journal")), set()
    while (group := reader.next()) is not None:
        for kind, payload in group.records():
            if kind == ALARM_RECORD:
                alarm = msgspec.msgpack.decode(payload, type=AlarmRecord)
                if alarm.name == "transfiya_transfer_error":
                    found.add(alarm.subject)
    reader.close()
    return found


def credited(house: House) -> list[Transfer]:
    """Transfers whose credit is proven: those that are complete, and those that the network gave up
    too late, which stay as they are."""
    found = []
    for transfer in house.network.transfers.values():
        action = house.network._action_of(transfer, "DOWNLOAD", house.luis, "COMPLETED")
        assert (action is not None) or transfer.status != "COMPLETED"
        assert action is None or transfer.status in ("COMPLETED", "ERROR")
        if action is not None:
            found.append(transfer)
    return found


async def test_ty_63_random_transfers_faults_and_kills(tmp_path: Path, clock: Any) -> None:
    draw = random.Random(63)
    count = 1000 if LARGE else 60
    async with House(tmp_path, seed=63).running(clock) as house:
        storm(house, draw, count // 2)
        kills = [draw.randrange(count) for _ in range(count // 20)]
        for number in range(count):
            amount = f"{draw.randrange(1, 500)}.{draw.randrange(100):02d}"
            house.network.begin(ANA, LUIS, amount)
            if draw.random() < 0.2:
                await house.pause(draw.random())
            if number in kills:
                bank = draw.choice(house.banks)
                bank.crash()
                await bank.stopped()
                await house.pause(draw.random() * 3)
                await house.restart(bank)
        await house.pause(20.0)
        house.network.faults.clear()
        await house.settle(20_000)
        house.check_even(breaches=False)
        alarmed = {name for bank in house.banks for name in alarms(bank)}
        for transfer in house.network.transfers.values():
            # A refusal in the middle of a reversal stays as it is: people are told.
            known = transfer.status == "ERROR" and transfer.tx_ref in alarmed
            assert transfer.status in ("COMPLETED", "REJECTED") or known, transfer.history
        done = credited(house)
        paid_minor = sum(transfer.minor for transfer in done)
        assert house.network.balances[house.verde.signer("settlement")] == paid_minor
        assert len(done) > count // 3


async def test_many_at_once(tmp_path: Path, clock: Any) -> None:
    """All begin at the same moment; calls are repeated, late and lost, and tokens end."""
    count = 500 if LARGE else 120
    draw = random.Random(500)
    async with House(tmp_path, seed=500).running(clock) as house:
        storm(house, draw, count // 2)
        house.network.token_s = 5
        for number in range(count):
            house.network.begin(ANA, LUIS, f"{number % 97 + 1}.00")
        await house.settle(20_000)
        house.check_even(breaches=False)
        done = credited(house)
        paid_minor = sum(transfer.minor for transfer in done)
        assert house.network.balances[house.verde.signer("settlement")] == paid_minor
        credits = [
            item for item in house.verde.flow.items.stored()
            if item.purpose == "credit" and item.state == "DONE"
        ]  # fmt: skip
        assert len(credits) == len({item.tx_ref for item in credits}) == len(done)
        assert len(done) > count // 2
