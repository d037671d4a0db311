"""Limits: dated units, rules of a business date, the version, contradictions."""

import datetime
import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch import config, limits
from switch.limits import AMOUNT_MAX, DeclarationRow, LimitRow, OperationRule, UnitRow

DAY = datetime.date(2026, 11, 22)
WAGES = "wage = [{ from = 2025-07-01, pyg = 300 }, { from = 2024-07-01, pyg = 200 }]"


class Rows(msgspec.Struct, frozen=True):
    """A configuration with nothing but limits."""

    units: dict[str, tuple[UnitRow, ...]] = {}
    limits: dict[str, LimitRow] = {}
    declarations: dict[str, DeclarationRow] = {}


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], config.Config]:
    def load(text: str) -> config.Config:
        path = tmp_path / "troncal.toml"
        path.write_text(text)
        return config.load(path, environ={})

    return load


Load = Callable[[str], config.Config]


def test_fresh_configuration(load: Load) -> None:
    """The rows of a fresh init: 40 daily wages of 107,627, 10,000 dollars at 7,000."""
    got = limits.resolve(load(config.default_toml()), DAY)
    assert got.operation == dict.fromkeys(limits.KINDS, OperationRule(1000, 5_000_000, 1000))
    assert got.tiers == {}
    (month,) = got.windows
    assert (month.name, month.scope, month.kind, month.window, month.tier) == (
        "card_month",
        "card",
        "cash_out",
        "month",
        "basic",
    )
    assert (month.max_amount, month.max_count) == (40 * 107_627, 0)
    (cash,) = got.declarations
    assert (cash.name, cash.scope, cash.kind, cash.window) == (
        "cash",
        "depositor",
        "deposit",
        "day",
    )
    assert cash.threshold == 70_000_000
    assert got.caps("card", "basic") == {("debit", "month"): (4_305_080, 0)}
    assert got.caps("card") == got.caps("terminal") == {}


@pytest.mark.parametrize(
    ("date", "value"),
    [
        ("2024-06-30", 200),  # before the first row the first counts: never no limit
        ("2024-07-01", 200),
        ("2025-06-30", 200),
        ("2025-07-01", 300),
        ("2030-01-01", 300),
    ],
)
def test_newest_row_not_after_the_date_counts(load: Load, date: str, value: int) -> None:
    row = '[limits]\na = { scope = "card", window = "day", max = "10 wage" }'
    got = limits.resolve(load(f"[units]\n{WAGES}\n{row}"), datetime.date.fromisoformat(date))
    assert [rule.max_amount for rule in got.windows] == [10 * value] * 2


def test_no_rows_no_limits_but_the_width_of_the_field(load: Load) -> None:
    got = limits.resolve(load(""), DAY)
    assert got.operation["cash_out"] == OperationRule(1, AMOUNT_MAX, 1)
    assert (got.windows, got.declarations) == ((), ())


def test_any_stands_for_each_kind_and_rows_add_up_to_the_strictest(load: Load) -> None:
    got = limits.resolve(
        load(
            """
[business]
tiers = ["basic", "full"]
[limits]
a = { scope = "card", window = "operation", min = "100 PYG", max = "900 PYG" }
b = { scope = "card", kind = "deposit", window = "operation", max = "5000 PYG", multiple = "4 PYG" }
c = { scope = "person", kind = "deposit", window = "operation", multiple = "6 PYG" }
d = { scope = "card", kind = "cash_out", window = "operation", max = "500 PYG", tier = "basic" }
e = { scope = "card", window = "day", max = "2000 PYG", max_count = 5 }
f = { scope = "card", kind = "cash_out", window = "day", max_count = 3, tier = "basic" }
g = { scope = "card", kind = "cash_out", window = "day", max = "9000 PYG", tier = "full" }
h = { scope = "terminal", window = "night", max_count = 9 }
i = { scope = "branch", kind = "deposit", window = "calendar_week", max = "1 PYG" }
[declarations]
x = { scope = "depositor", window = "night", kind = "any", threshold = "7 PYG" }
"""
        ),
        DAY,
    )
    assert got.operation == {
        "cash_out": OperationRule(100, 900, 1),
        "deposit": OperationRule(100, 900, 12),
    }
    assert got.rule("cash_out", "basic") == OperationRule(100, 500, 1)
    assert got.rule("cash_out", "full") == got.rule("cash_out") == got.operation["cash_out"]
    assert got.caps("card", "basic") == {
        ("debit", "day"): (2000, 3),
        ("credit", "day"): (2000, 5),
    }
    assert got.caps("card", "full")["debit", "day"] == (2000, 5)
    assert got.caps("terminal") == {("debit", "night"): (0, 9), ("credit", "night"): (0, 9)}
    assert got.caps("branch") == {("credit", "week"): (1, 0)}
    assert got.caps("branch", debit="deposit") == {("debit", "week"): (1, 0)}
    assert [(rule.kind, rule.window) for rule in got.declarations] == [
        ("cash_out", "night"),
        ("deposit", "night"),
    ]


def test_version_changes_with_what_is_in_force_and_with_nothing_else(load: Load) -> None:
    row = '[limits]\na = { scope = "card", window = "day", max = "10 wage" }'
    ours = load(f"[units]\n{WAGES}\n{row}")
    unused = load(f"[units]\n{WAGES}\nother = [{{ from = 2020-01-01, pyg = 1 }}]\n{row}")
    plain = load('[limits]\na = { scope = "card", window = "day", max = "3000 PYG" }')
    tight = load('[limits]\na = { scope = "card", window = "day", max = "2999 PYG" }')
    versions = [limits.resolve(c, DAY).version for c in (ours, unused, plain, tight)]
    assert versions[0] == versions[1] == versions[2] != versions[3]
    before = limits.resolve(ours, datetime.date(2025, 6, 30)).version
    assert before != versions[0] == limits.resolve(ours, datetime.date(2025, 7, 1)).version
    assert len(before) == 12
    assert int(before, 16) >= 0


def test_version_is_the_same_in_every_build(load: Load) -> None:
    """It is stored with operations for years, so a change of its making must be noticed."""
    assert limits.resolve(load(config.default_toml()), DAY).version == "fcb6d035cf50"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('a = { scope = "card", window = "day", max = "1 x" }', "limits.a.max", "unknown"),
        ('a = { scope = "card", window = "day", max = "-1 PYG" }', "limits.a.max", "expected"),
        ('a = { scope = "card", window = "day", max = "1.5 PYG" }', "limits.a.max", "expected"),
        ('a = { scope = "card", window = "day", max = "PYG" }', "limits.a.max", "expected"),
        ('a = { scope = "card", window = "year", max = "1 PYG" }', "limits.a.window", "expected"),
        ('a = { scope = "till", window = "day", max = "1 PYG" }', "limits.a.scope", "expected"),
        ('a = { scope = "card", window = "day" }', "limits.a", "bounds nothing"),
        ('a = { scope = "card", window = "operation" }', "limits.a", "bounds nothing"),
        (
            'a = { scope = "card", window = "day", min = "1 PYG", max = "1 PYG" }',
            "limits.a.min",
            "no meaning",
        ),
        (
            'a = { scope = "card", window = "operation", max = "9 PYG", max_count = 1 }',
            "limits.a.max_count",
            "no meaning",
        ),
        (
            'a = { scope = "card", window = "operation", min = "9 PYG", max = "8 PYG" }',
            "limits.a",
            "min 9 is above max 8",
        ),
        (
            'a = { scope = "card", window = "operation", max = "8 PYG", multiple = "9 PYG" }',
            "limits.a",
            "no amount",
        ),
        (
            'a = { scope = "card", window = "day", max = "1 PYG", tier = "gold" }',
            "limits.a.tier",
            "unknown",
        ),
        (
            'a = { scope = "branch", window = "day", max = "1 PYG", tier = "basic" }',
            "limits.a.tier",
            "no meaning",
        ),
        (
            'a = { scope = "card", window = "day", max = "99999999999999999999 PYG" }',
            "limits.a.max",
            "is more than",
        ),
        (
            'a = { scope = "card", window = "operation", max = "8 PYG" }\n'
            'b = { scope = "person", window = "operation", min = "9 PYG" }',
            "limits",
            "together allow no cash_out",
        ),
        (
            'a = { scope = "card", window = "operation", max = "8 PYG" }\n'
            'b = { scope = "card", window = "operation", min = "9 PYG", tier = "basic" }',
            "limits",
            "together allow no cash_out for the tier basic",
        ),
        ('a = { scope = "card", max = "1 PYG" }', "limits.a.window", "is missing"),
        (
            '[declarations]\nx = { scope = "depositor", window = "day", threshold = "1 y" }',
            "declarations.x.threshold",
            "unknown",
        ),
        ("[units]\nx = []", "units.x", "has no row"),
        ("[units]\nPYG = [{ from = 2024-01-01, pyg = 1 }]", "units.PYG", "cannot be the name"),
        (
            "[units]\nx = [{ from = 2024-01-01, pyg = 1 }, { from = '2024-01-01', pyg = 2 }]",
            "units.x",
            "two rows from 2024-01-01",
        ),
    ],
)
def test_mistakes(load: Load, text: str, where: str, what: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        load("[limits]\n" + text)
    mistake = caught.value.mistakes[0]
    assert mistake.where == where
    assert what in mistake.what


def test_a_contradiction_that_comes_with_a_later_row_is_found_today(load: Load) -> None:
    row = 'a = { scope = "card", window = "operation", min = "1 wage", max = "250 PYG" }'
    with pytest.raises(config.ConfigError, match="from 2025-07-01 on"):
        load(f"[units]\n{WAGES}\n[limits]\n{row}")


rules = st.builds(
    OperationRule, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 6])
)


@given(rules, rules)
def test_two_rules_together_allow_what_both_allow(
    first: OperationRule, other: OperationRule
) -> None:
    both = first.and_also(other)
    allowed = [a for a in range(1, 60) if first.allows(a) and other.allows(a)]
    assert allowed == [a for a in range(1, 60) if both.allows(a)]
    assert both.satisfiable == bool(allowed)


amounts = st.integers(1, 50).map("{} PYG".format) | st.integers(1, 50).map("{} u".format)
window_rows = st.builds(
    LimitRow,
    scope=st.sampled_from(["card", "person"]),
    window=st.sampled_from(["day", "calendar_month"]),
    kind=st.sampled_from(["cash_out", "deposit", "any"]),
    max=amounts,
    max_count=st.integers(0, 5),
    tier=st.sampled_from(["", "basic"]),
)


@given(st.lists(window_rows, max_size=6))
def test_caps_are_the_strictest_of_the_rows_that_apply(rows: list[LimitRow]) -> None:
    """Against the definition written out: every row, kind by kind."""
    source = Rows(
        units={"u": (UnitRow(DAY, 3),)}, limits={f"r{i}": row for i, row in enumerate(rows)}
    )
    got = limits.resolve(source, DAY)
    windows = (("day", "day"), ("calendar_month", "month"))
    for scope, tier, kind, (window, name) in itertools.product(
        ("card", "person"), ("", "basic"), limits.KINDS, windows
    ):
        hit = [
            row
            for row in rows
            if (row.scope, row.window) == (scope, window)
            and row.kind in (kind, "any")
            and row.tier in ("", tier)
        ]
        side = "debit" if kind == "cash_out" else "credit"
        amount, count = got.caps(scope, tier).get((side, name), (0, 0))
        assert amount == min((limits.amount_of(r.max, source, DAY) for r in hit), default=0)
        assert count == min((r.max_count for r in hit if r.max_count), default=0)


def test_amounts() -> None:
    source = Rows(units={"u": (UnitRow(DAY, 3),), "none": ()})
    assert [limits.amount_of(t, source, DAY) for t in ("", "0 PYG", "7 PYG", "1_000 u")] == [
        0,
        0,
        7,
        3000,
    ]
    for text in ("7", "PYG", "7PYG", "7 PYG "):
        with pytest.raises(ValueError, match="no amount"):
            limits.amount_of(text, source, DAY)
    for text in ("1 none", "1 other"):
        with pytest.raises(LookupError):
            limits.amount_of(text, source, DAY)
