"""Four processes under kills, stops and partitions, then compared; see `tests.faults.torture`.

`TRONCAL_TORTURE_S=600` is the long run (`make torture`), `TRONCAL_SEED` repeats the choices of one,
though not its timing.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.faults.torture import torture

SECONDS = float(os.environ.get("TRONCAL_TORTURE_S", "40"))
SEED = int(os.environ.get("TRONCAL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
ROUND_S = 15.0


@pytest.mark.timeout(240 + 2 * SECONDS)
async def test_nothing_told_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    print(f"TRONCAL_SEED={SEED}")
    began = time.monotonic()
    async with torture(tmp_path, SEED) as world:
        try:
            await world.run(SECONDS, ROUND_S)
            await world.finish()
        finally:
            print("\n".join(world.weather.log[-40:]))
            print(world.report(time.monotonic() - began))
        assert len(world.operations) > 10 * SECONDS
        assert world.figures.faults.total() > SECONDS / 4
