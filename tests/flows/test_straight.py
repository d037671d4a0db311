"""The straight way and the flows come to the same: answers, records, ledger, audit trail."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from switch.flows.tokens import lock_key
from tests.conftest import FUZZ
from tests.house import DEFAULT_LIMITS, TERMINAL
from tests.twins import METERED, NIGHT, PLAIN_TERMINAL, TIERS, Pair, built, drive

SEEDS = range(4 * FUZZ if FUZZ else 2)
TURNS = 400 if FUZZ else 60
Build = Callable[..., Pair]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    yield from built(tmp_path, Pair)


SETTINGS = {
    "usual": {},
    "night": {"limits": DEFAULT_LIMITS + NIGHT, "toml": '[business]\nnight_from = "11:00"\n'
              'night_until = "12:30"\n'},
    "tiers": {"limits": DEFAULT_LIMITS + TIERS, "toml": '[business]\ntiers = ["basic", "gold"]\n'},
    "cut_off": {"toml": '[business]\ncut_off = "18:00"\n'},
    "windows": {"toml": "[tokens]\nback = 0\nforward = 0\nmax_cards = 3\nocra_above = 1000000\n"},
}  # fmt: skip
LEFT_ALONE = {
    "fee": {"toml": "[fees]\ncash_out = 2500\n"},
    "commission": {"toml": "[commissions]\ncash_out = 1200\n"},
    "listed": {"toml": '[node]\ncashiers = "listed"\n'},
    "metered": {"limits": DEFAULT_LIMITS + METERED},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_random_traffic_comes_to_the_same(build: Build, name: str, seed: int) -> None:
    pair = build(**SETTINGS[name])
    drive(pair, seed, TURNS)
    assert pair.decided > TURNS / 12, pair.straight.node.straight.core.counts


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_the_configuration_makes_unusual_is_left_to_the_flows(build: Build, name: str) -> None:
    pair = build(**LEFT_ALONE[name])
    drive(pair, 1, TURNS // 3)
    assert pair.decided == 0


def test_the_common_one_takes_the_straight_way(build: Build) -> None:
    pair = build()
    for _ in range(3):  # the first one of a network makes its accounts
        for holder in pair.holders[3:6]:
            pair.advance(61)
            for terminal in (TERMINAL, PLAIN_TERMINAL):
                pair.turn([(terminal, pair.cash_out(holder))])
                pair.advance(61)
    assert pair.decided == 17
    assert pair.straight.node.codes == {"00": 18}


def test_a_repeat_within_one_turn_is_found(build: Build) -> None:
    """Also where the first one is decided by the flows, whose records are written at the end."""
    pair = build()
    first = pair.cash_out(pair.holders[3])  # by the flows: there is no account yet
    told = pair.turn([(PLAIN_TERMINAL, first), (PLAIN_TERMINAL, first)])
    assert [answer.duplicate for [answer] in told] == [False, True]
    second = pair.cash_out(pair.holders[4])
    told = pair.turn([(PLAIN_TERMINAL, second), (PLAIN_TERMINAL, second)])
    assert [answer.duplicate for [answer] in told] == [False, True]
    assert pair.decided == 1


def test_nothing_is_decided_while_there_is_no_room(build: Build) -> None:
    pair = build()
    pair.turn([(PLAIN_TERMINAL, pair.cash_out(pair.holders[3]))])
    message = pair.cash_out(pair.holders[4])
    for house in pair.houses:
        step = house.node.begin()
        step.admitting = False
        terminal = house.node.registry.terminal(PLAIN_TERMINAL)
        assert terminal is not None
        assert house.node.straight.ask(step, terminal, message) is None
        house.node.end(step)
    assert pair.decided == 0


def test_a_locked_card_and_a_locked_till_are_left_to_the_flows(build: Build) -> None:
    pair = build()
    holder = pair.holders[3]
    pair.turn([(PLAIN_TERMINAL, pair.cash_out(pair.holders[5]))])
    for _ in range(3):
        wrong = pair.straight.wrong_code(holder)
        pair.turn([(PLAIN_TERMINAL, pair.cash_out(holder, token=wrong))])
    [[told]] = pair.turn([(PLAIN_TERMINAL, pair.cash_out(holder))])
    assert told.code == "75"
    assert pair.straight.node.store.ledger.locked_until(lock_key("card", holder.card))
    assert pair.decided == 0


def test_a_crash_after_straight_ones_loses_nothing_that_was_told(build: Build) -> None:
    pair = build()
    for holder in pair.holders[3:6]:
        pair.turn([(PLAIN_TERMINAL, pair.cash_out(holder))])
    last = pair.cash_out(pair.holders[6])
    [[told]] = pair.turn([(PLAIN_TERMINAL, last)])
    for house in pair.houses:
        house.crash()
    pair.compare()
    [[again]] = pair.turn([(PLAIN_TERMINAL, last)])
    assert (again.operation, again.authorization) == (told.operation, told.authorization)
    assert again.duplicate
