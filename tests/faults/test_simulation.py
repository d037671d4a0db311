"""The deterministic simulation, briefly: `make sim` runs it for as long as one likes."""

import os
from collections.abc import Iterator

import pytest

from tests.conftest import FUZZ
from tests.sim.faults import LAYOUTS, ROLES, Plan, plan
from tests.sim.schedule import Simulator, simulator

FIRST = int(os.environ.get("TRONCAL_SEED", "0"))
PIECES = 6
SCHEDULES = 500 * FUZZ if FUZZ else 10  # of each piece


@pytest.fixture(scope="module")
def simulated() -> Iterator[Simulator]:
    with simulator() as found:
        yield found


@pytest.mark.parametrize("piece", range(PIECES))
def test_nothing_is_wrong_after_any_storm(simulated: Simulator, piece: int) -> None:
    """A failure says the seed: `make sim SEED=n SECONDS=0` shows what happened."""
    first = FIRST + piece * SCHEDULES
    found = {
        seed: verdict.finding
        for seed in range(first, first + SCHEDULES)
        if (verdict := simulated.run(plan(seed))).finding
    }
    assert found == {}


def test_a_seed_is_all_there_is_to_a_schedule(simulated: Simulator) -> None:
    schedule = plan(7)
    assert schedule == plan(7)
    first, second = simulated.run(schedule), simulated.run(schedule)
    assert len(first.trace) > 20
    assert first.trace == second.trace
    assert first.hash == second.hash


def test_schedules_are_of_every_kind() -> None:
    """Every layout, every disturbance and every crash comes up within a few hundred seeds."""
    plans = [plan(seed) for seed in range(300)]
    assert {p.layout for p in plans} == set(LAYOUTS)
    struck = [d for p in plans for d in p.disturbances]
    assert {d.what for d in struck} == {
        "crash", "partition", "half_open", "cut", "stall", "clock", "mute",
    }  # fmt: skip
    assert {d.how for d in struck if d.what == "crash"} == {"lost", "torn", "written"}
    assert any(p.rates["lose"] for p in plans)
    assert any(p.rates["twice"] for p in plans)
    of_bank = [d.what for p in plans for d in p.disturbances if d.target == "bank"]
    assert {"crash", "partition", "cut", "stall"} <= set(of_bank)
    assert {p.layout for p in plans if p.bank} == set(LAYOUTS)


def test_money_is_taken_and_given_at_both_issuers(simulated: Simulator) -> None:
    """With all roles in one process too, where disks are verified: what went to the bank is not
    missed at the ceibo of that process."""
    plans = [p for p in map(plan, range(300)) if p.bank]
    whole = [p for p in plans if p.layout == ROLES][:3]
    verdicts = [simulated.run(p, thorough=True) for p in whole]
    verdicts += [simulated.run(p) for p in plans[:8]]
    assert {v.finding for v in verdicts} == {""}
    traces = [v.trace for v in verdicts]
    for link in ("issuer", "bank"):
        assert any(f"{link}: capture" in line for trace in traces for line in trace)


def test_most_operations_end_as_they_should_where_nothing_goes_wrong(simulated: Simulator) -> None:
    """Else the storms would prove little."""
    schedule = plan(3)
    calm = Plan(3, (), schedule.errands, (), dict.fromkeys(schedule.rates, 0.0))
    verdict = simulated.run(calm, thorough=True)
    assert verdict.finding == ""
    assert any("cash moves" in line for line in verdict.trace)
