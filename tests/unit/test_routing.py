"""The router against a reading of the rules one by one, and what load says about bad rules."""

import datetime
import random
import time
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switch import routing
from switch.calendar import day_number, minutes_of
from switch.limits import AMOUNT_MAX
from switch.routing import Route, RouteKey, Router

HOSTS = ("a", "b", "c")
TIMES = ("00:00", "06:00", "12:30", "22:00")

bins = st.sampled_from(("4", "45", "4507", "45070001", "450-459", "5100-5599", "0", "9"))
routes = st.builds(
    Route,
    to=st.lists(st.sampled_from(HOSTS), min_size=1, max_size=2, unique=True).map(tuple),
    operations=st.sets(st.sampled_from(routing.OPERATIONS), max_size=3).map(tuple),
    networks=st.sets(st.sampled_from(("0012", "0034")), max_size=2).map(tuple),
    bins=st.sets(bins, max_size=3).map(tuple),
    banks=st.sets(st.sampled_from(("001", "002")), max_size=2).map(tuple),
    amount_min=st.sampled_from((0, 1, 100, 101)),
    amount_max=st.sampled_from((100, 101, 5000, AMOUNT_MAX)),
    currencies=st.sets(st.sampled_from(("PYG", "USD")), max_size=2).map(tuple),
    from_=st.sampled_from(TIMES),
    until=st.sampled_from((*TIMES, "24:00")),
    days=st.sets(st.sampled_from(routing.WEEKDAYS), max_size=3).map(tuple),
)
keys = st.builds(
    RouteKey,
    operation=st.sampled_from(routing.OPERATIONS),
    network=st.sampled_from(("", "0012", "0034", "0056")),
    bin=st.sampled_from(("", "45070001", "45070002", "45999999", "46000000", "51000000")),
    bank=st.sampled_from(("", "001", "002", "003")),
    amount=st.sampled_from((0, 1, 99, 100, 101, 102, 5000, 5001, AMOUNT_MAX)),
    currency=st.sampled_from(("PYG", "USD", "EUR")),
    week_minute=st.integers(0, routing.WEEK_MINUTES - 1),
)


def takes(route: Route, key: RouteKey) -> bool:
    """The oracle: each condition as the documentation words it."""
    day, minute = divmod(key.week_minute, 1440)
    start, end = minutes_of(route.from_), minutes_of(route.until)
    in_time = start <= minute < end if start < end else minute >= start or minute < end
    return (
        (not route.operations or key.operation in route.operations)
        and (not route.networks or key.network in route.networks)
        and (not route.banks or key.bank in route.banks)
        and (not route.currencies or key.currency in route.currencies)
        and (not route.days or routing.WEEKDAYS[day] in route.days)
        and (not route.bins or any(_in_range(key.bin, text) for text in route.bins))
        and route.amount_min <= key.amount <= route.amount_max
        and in_time
    )


def _in_range(digits: str, text: str) -> bool:
    low, _, high = text.partition("-")
    return bool(digits) and low <= digits[: len(low)] and digits[: len(low)] <= (high or low)


def first(rules: Sequence[Route], key: RouteKey) -> int:
    return next((i for i, route in enumerate(rules) if takes(route, key)), -1)


def told(rules: Sequence[Route]) -> list[tuple[int, str, str]]:
    """Number, key and text of every finding, lines being 100, 200 …"""
    return [
        (int(where[1].strip("[]")), where[2] if len(where) > 2 else "", what)
        for where, what, _ in routing.findings(rules, lambda n: 100 * (n + 1))
    ]


# ---- choosing


@given(st.lists(routes, max_size=8), st.lists(keys, min_size=1, max_size=20))
def test_the_router_is_the_rules_read_one_by_one(rules: list[Route], asked: list[RouteKey]) -> None:
    rules = [rule for rule in rules if not told([rule])]
    router = Router(rules, default=("z",))
    for key in asked:
        number = first(rules, key)
        assert router.match(key) == number
        assert router.choose(key) == (("z",) if number < 0 else rules[number].to)
        assert router.timed or router.match(key) == router.match(
            msgspec.structs.replace(key, week_minute=0)
        )


@given(st.lists(routes, max_size=6), keys)
def test_the_explanation_agrees(rules: list[Route], key: RouteKey) -> None:
    rules = [rule for rule in rules if not told([rule])]
    steps = Router(rules).explain(key)
    number = first(rules, key)
    assert [step for step, _ in steps] == list(range(len(rules) if number < 0 else number + 1))
    for step, unmet in steps:
        assert bool(unmet) is not takes(rules[step], key)


def test_no_rule_no_way() -> None:
    assert Router().choose(RouteKey("cash_out")) == ()
    assert Router([Route(("a",), networks=("0012",))]).choose(RouteKey("cash_out", "0013")) == ()


def test_time_passes_midnight_on_the_days_named() -> None:
    router = Router([Route(("night",), from_="22:00", until="06:00", days=("fri",))])
    friday = day_number(datetime.date(2026, 11, 20))
    taken = [
        (day, hour)
        for day in range(-1, 2)
        for hour in range(24)
        if router.choose(
            RouteKey("debit", week_minute=routing.week_minute(friday + day, hour * 60))
        )
    ]
    assert taken == [(0, hour) for hour in (0, 1, 2, 3, 4, 5, 22, 23)]


def test_a_long_prefix_goes_before_a_short_one_only_by_its_place() -> None:
    rules = [Route(("long",), bins=("450799",)), Route(("short",), bins=("4",))]
    router = Router(rules)
    assert router.choose(RouteKey("debit", bin="45079901")) == ("long",)
    assert router.choose(RouteKey("debit", bin="45079801")) == ("short",)
    assert router.choose(RouteKey("debit", bin="50000000")) == ()
    assert [number for number, _, _ in told(rules[::-1])] == [1]


@pytest.mark.timed
def test_choosing_among_many_rules_is_fast() -> None:
    """The budget is 2 us; ten times that here, for a busy machine and an unoptimised Python."""
    source = random.Random(7)
    rules = [
        Route(
            (source.choice(HOSTS),), operations=(source.choice(routing.OPERATIONS),),
            networks=(f"{source.randrange(10_000):04d}",), bins=(f"{number:06d}",),
            amount_min=source.randrange(1000), from_="06:00", until="22:00",
        )
        for number in range(routing.ROUTES_MAX - 1)
    ]  # fmt: skip
    router = Router([*rules, Route(("z",))])
    key = RouteKey("debit", "0012", "45079901", "001", 5000, "PYG", 3000)
    assert router.choose(key) == ("z",)
    best_ns = min(_timed_ns(router, key) for _ in range(5))
    assert best_ns < 20_000


def _timed_ns(router: Router, key: RouteKey) -> float:
    began_ns = time.thread_time_ns()
    for _ in range(500):
        router.choose(key)
    return (time.thread_time_ns() - began_ns) / 500


# ---- what can be wrong with rules


@settings(deadline=None)
@given(st.lists(routes, min_size=2, max_size=6), st.lists(keys, min_size=20, max_size=60))
def test_what_is_called_unreachable_never_matches(
    rules: list[Route], asked: list[RouteKey]
) -> None:
    found = told(rules)
    broken = {number for number, key, _ in found if key}
    sound = [rule for number, rule in enumerate(rules) if number not in broken]
    unreachable = {number for number, key, _ in told(sound) if not key}
    for key in asked:
        assert first(sound, key) not in unreachable


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_unreachable_is_told_exactly(data: st.DataObject) -> None:
    """On a small universe every key can be tried, so none may be missed either."""
    small = st.builds(
        Route,
        to=st.sampled_from((("a",), ("b",))),
        operations=st.sets(st.sampled_from(routing.OPERATIONS), max_size=6).map(tuple),
        networks=st.sampled_from(((), ("0012",))),
        amount_min=st.sampled_from((0, 2)),
        amount_max=st.sampled_from((1, 3, AMOUNT_MAX)),
        days=st.sampled_from(((), ("mon",), routing.WEEKDAYS[1:])),
    )
    rules = data.draw(st.lists(small, min_size=2, max_size=7))
    rules = [rule for rule in rules if not told([rule])]
    reached = {
        first(rules, RouteKey(operation, network, amount=amount, week_minute=1440 * day))
        for operation in routing.OPERATIONS
        for network in ("0012", "0013")
        for amount in (0, 1, 2, 3, 4)
        for day in (0, 1)
    }
    assert {number for number, _, _ in told(rules)} == set(range(len(rules))) - reached


def test_every_bad_rule_is_named_with_the_rule_that_hides_it() -> None:
    rules = [
        Route(("a",), amount_max=10, operations=("debit",)),
        Route(("a",), amount_max=10, operations=("debit",)),
        Route(("b",), amount_max=10, operations=("debit",)),
        Route(("b",), amount_min=2, amount_max=9, operations=("debit",)),
        Route(("b",)),
        Route(("c",), networks=("0012",)),
    ]
    assert told(rules) == [
        (1, "", "is the rule at line 100 again"),
        (2, "", "contradicts the rule at line 100: the same conditions, another host"),
        (3, "", "can never match: the rule at line 100 takes all of it"),
        (5, "", "can never match: the rule at line 500 takes all of it"),
    ]


def test_rules_that_cover_one_together() -> None:
    rules = [
        Route(("a",), operations=("cash_out", "deposit", "holder")),
        Route(("b",), networks=("0099",)),
        Route(("c",), operations=("purchase", "debit", "credit")),
        Route(("d",), amount_max=10),
    ]
    ((number, _, what),) = told(rules)
    assert number == 3
    assert "lines 100, 300 take all of it together" in what


def test_a_broken_rule_hides_no_other() -> None:
    rules = [Route(("a",), amount_min=5, amount_max=4), Route(("b",), amount_max=4)]
    assert [(number, key) for number, key, _ in told(rules)] == [(0, "amount_min")]


def test_a_rule_by_card_says_nothing_of_operations_without_one() -> None:
    rules = [Route(("a",), bins=("0-9",)), Route(("b",))]
    assert told(rules) == []
    assert Router(rules).choose(RouteKey("cash_out")) == ("b",)


@pytest.mark.timed
def test_many_rules_are_checked_in_time() -> None:
    source = random.Random(3)
    rules = [
        Route(
            ("a",), networks=tuple({f"{source.randrange(50):04d}" for _ in range(5)}),
            amount_min=source.randrange(0, 500), amount_max=source.randrange(500, 1000),
            days=tuple(set(source.choices(routing.WEEKDAYS, k=3))),
            bins=tuple({str(source.randrange(1, 99)) for _ in range(4)}),
        )
        for _ in range(routing.ROUTES_MAX)
    ]  # fmt: skip
    began = time.thread_time()
    told(rules)
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("hosts", [(), ("a",), ("a", "b")])
def test_missing_hosts(hosts: tuple[str, ...]) -> None:
    rules = [Route(("a", "b")), Route(("b",))]
    found = [(where, what) for where, what, _ in routing.missing_hosts(rules, hosts)]
    wanted = [("[0]", "a"), ("[0]", "b"), ("[1]", "b")]
    assert found == [
        (("routes", rule, "to"), f"there is no host {name}")
        for rule, name in wanted
        if name not in hosts
    ]
