"""All processes under kills, stops and partitions, then compared; see `tests.faults.torture`.

`TRONCAL_TORTURE_S=600` is the long run (`make torture`), `TRONCAL_SEED` repeats the choices of one,
though not its timing.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.faults.torture import torture

SECONDS = float(os.environ.get("TRONCAL_TORTURE_S", "8"))
SEED = int(os.environ.get("TRONCAL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
ROUND_S = min(15.0, SECONDS)


@pytest.mark.alone
@pytest.mark.timeout(240 + 2 * SECONDS)
async def test_nothing_told_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    print(f"TRONCAL_SEED={SEED}")
    began = time.monotonic()
    async with torture(tmp_path, SEED) as world:
        findings = 1
        try:
            await world.run(SECONDS, ROUND_S)
            await world.finish()
            findings = 0
        finally:
            seconds = time.monotonic() - began
            print("\n".join(world.weather.log[-40:]))
            print(world.report(seconds))
            print(world.row(seconds, findings))
        # Ten times less than on a machine of its own: that anything was tried at all.
        assert len(world.operations) > SECONDS
        assert world.figures.faults.total() > SECONDS / 10


# A sicoop that forgets over a restart what it owes to the issuers: money told as paid is not taken.
FORGETS = """
from switch.__main__ import main
from switch.flows.sicoop import Sicoop

Sicoop.unfinished = lambda sicoop: iter(())
main()
"""


@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.skipif("TRONCAL_TORTURE_S" not in os.environ, reason="part of `make torture`")
async def test_a_role_that_forgets_what_it_owes_is_found_out(tmp_path: Path) -> None:
    async with torture(tmp_path, SEED, program={"sicoop": ("-c", FORGETS)}) as world:
        with pytest.raises((AssertionError, ExceptionGroup)) as found:
            await world.lose("sicoop")
        if isinstance(found.value, ExceptionGroup):
            assert found.value.split(AssertionError)[1] is None, "and nothing else is wrong"


# A payment application that takes a reversal for done before its bank has heard of it.
CARELESS = """
from switch.__main__ import main
from switch.flows.cip_bank import BankSource

BankSource.undo = lambda *_, again=False: True
main()
"""


@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.skipif("TRONCAL_TORTURE_S" not in os.environ, reason="part of `make torture`")
async def test_a_reversal_taken_for_done_is_found_out_at_the_bank(tmp_path: Path) -> None:
    even = SEED * 2  # what is unknown is undone
    async with torture(tmp_path, even, program={"cip": ("-c", CARELESS)}) as world:
        with pytest.raises(
            (AssertionError, ExceptionGroup), match=r"VOIDED, at the bank|Exceptions"
        ):
            await world.mute_bank()
