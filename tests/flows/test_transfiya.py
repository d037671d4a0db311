"""TransfiYa's flows against the simulated network: each case of the acceptance list by its name."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from tests.transfiya_house import House


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


@pytest.fixture
async def house(tmp_path: Path, clock: trio.testing.MockClock) -> AsyncIterator[House]:
    async with House(tmp_path).running(clock) as running:
        yield running


async def test_ty_06_send_between_two_banks(house: House) -> None:
    transfer = await house.pay("100.00")
    assert transfer.status == "COMPLETED", house.state()
    house.check_even()
