"""Does the simulation find what it is for? Each planted bug must be caught, and soon.

Most need fewer than 20 schedules. The rarest, a late approval that red acts upon, needs some 250
from seed 0, and begins shortly before.
"""

import pytest

from tests.sim.canaries import CANARIES, Canary
from tests.sim.faults import plan
from tests.sim.schedule import Verdict, simulator

RULES = {f"R{number}" for number in range(1, 13)}
WITHIN = 300  # schedules


def test_every_rule_has_a_canary() -> None:
    assert {canary.rule for canary in CANARIES} == RULES


@pytest.mark.parametrize("canary", CANARIES, ids=str)
def test_planted_bug_is_found(canary: Canary) -> None:
    with simulator() as simulated, canary.planted():
        for seed in range(canary.first, canary.first + WITHIN):
            # What the app was told is in the read models, which few schedules look at.
            thorough = True if canary.rule == "R12" else None
            if simulated.run(plan(seed), thorough=thorough).finding:
                return
    pytest.fail(f"{WITHIN} schedules have not found: {canary}")


def test_what_fails_is_made_shorter() -> None:
    canary = next(c for c in CANARIES if c.rule == "R9")
    with simulator() as simulated, canary.planted():
        found: Verdict = next(
            verdict for seed in range(100) if (verdict := simulated.run(plan(seed))).finding
        )
        shortest = simulated.shorter(found)
    assert shortest.finding
    assert len(shortest.plan.errands) < len(found.plan.errands)
    assert len(shortest.trace) < len(found.trace)
