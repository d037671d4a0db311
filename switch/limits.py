"""Limits as dated configuration: which rules hold on a business date.

A limit is never a constant. It is a row of the configuration, its amount counted in a unit whose
value has a date (``40 py_daily_wage``), because the law writes it so: BCP Resolution 9, Acta 41 of
5 September 2024 caps basic accounts at 40 minimum daily wages a calendar month. ``resolve`` turns
the rows into plain integers for one business date; the result has a short version, stored with
every operation, so that a later change of rules never re-judges an old one (L05).

Pure: no clock, no file. Whether a cap is passed is decided in the ledger, in one step with the
hold; here it is only said how much it is.
"""

import datetime
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

AMOUNT_MAX = 999_999_999_999  # n12, the widest amount an ISO 8583 field 4 carries
SUM_MAX = 2**62 - 1  # what a window may add up to; the ledger's counters are 64 bits
CURRENCY = "PYG"

Scope = Literal["card", "person", "depositor", "terminal", "cashier", "branch", "network"]
DeclarationScope = Literal["depositor", "terminal", "cashier", "branch", "network"]
Kind = Literal["cash_out", "deposit"]
Window = Literal["operation", "day", "night", "calendar_week", "calendar_month"]
SumWindow = Literal["day", "night", "calendar_week", "calendar_month"]
KINDS: tuple[Kind, ...] = ("cash_out", "deposit")
TIERED_SCOPES = ("card", "person")

# The ledger's names for the windows it counts in.
LEDGER_WINDOWS = {
    "day": "day",
    "night": "night",
    "calendar_week": "week",
    "calendar_month": "month",
}
_AMOUNT = re.compile(r"([0-9][0-9_]*) +([A-Za-z][A-Za-z0-9_]*)")

Amount = Annotated[
    str,
    Meta(
        pattern=r"^[0-9][0-9_]* +[A-Za-z][A-Za-z0-9_]*\Z",
        extra={"form": 'a whole number and a unit, as "1000 PYG" or "40 py_daily_wage"'},
    ),
]
Date = Annotated[datetime.date, Meta(description="first business date the value holds for")]


class UnitRow(msgspec.Struct, frozen=True):
    """What one unit is worth from a date on.

    Fields:
        valid_from: ``from`` in the file: first business date.
        pyg: guaraníes.
    """

    valid_from: Date = msgspec.field(name="from")
    pyg: Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]


class LimitRow(msgspec.Struct, frozen=True):
    """One limit as configured (cashier-domain §6).

    Fields:
        scope: whose operations are counted together.
        kind: ``any`` stands for two rows, one for each kind, each with its own count.
        window: ``operation`` bounds each amount; the others bound sums over time.
        max, min, multiple: amounts; the last two for the window ``operation`` only.
        max_count: number of operations in the window; 0: not bounded.
        tier: customer tier the row is for; empty: all. For scopes card and person only.
    """

    scope: Scope
    window: Window
    kind: Literal["cash_out", "deposit", "any"] = "any"
    max: Amount = ""
    min: Amount = ""
    multiple: Amount = ""
    max_count: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    tier: str = ""


class DeclarationRow(msgspec.Struct, frozen=True):
    """When the origin of funds must be declared (BCP Resolution 2, Acta 3 of 19 January 2010).

    Fields:
        scope: whose operations are added up.
        window: over what time; a single operation that reaches the threshold does so in any.
        threshold: from this sum on, the one that reaches it included.
        kind: by default deposits: the cash that comes in.
    """

    scope: DeclarationScope
    window: SumWindow
    threshold: Amount
    kind: Literal["cash_out", "deposit", "any"] = "deposit"


class OperationRule(msgspec.Struct, frozen=True):
    """Bounds of one amount: ``min`` ≤ amount ≤ ``max``, a multiple of ``multiple``. PYG units."""

    min: int = 1
    max: int = AMOUNT_MAX
    multiple: int = 1

    def allows(self, amount: int) -> bool:
        """Tell whether an amount keeps the rule (X008: else 13, and nothing is held)."""
        return self.min <= amount <= self.max and amount % self.multiple == 0

    def and_also(self, other: "OperationRule") -> "OperationRule":
        """Return the rule that holds when both do."""
        return OperationRule(
            max(self.min, other.min),
            min(self.max, other.max),
            math.lcm(self.multiple, other.multiple),
        )

    @property
    def satisfiable(self) -> bool:
        """Tell whether any amount at all keeps the rule."""
        return self.max // self.multiple * self.multiple >= max(self.min, 1)


class WindowRule(msgspec.Struct, frozen=True):
    """A cap over a window, resolved to integers; ``window`` as the ledger names it. 0: no cap."""

    name: str
    scope: Scope
    kind: Kind
    window: str
    max_amount: int
    max_count: int
    tier: str


class DeclarationRule(msgspec.Struct, frozen=True):
    """A declaration threshold, resolved to an integer; ``window`` as the ledger names it."""

    name: str
    scope: DeclarationScope
    kind: Kind
    window: str
    threshold: int


class Limits(msgspec.Struct, frozen=True):
    """All rules of one business date.

    Fields:
        operation: the rule for one amount by kind, for every card whatever its tier.
        tiers: further rules for one amount, by (kind, tier).
        windows: caps over time. declarations: thresholds.
        version: 12 hex digits, the digest of all of the above; it changes when a rule or a value
            in force changes, and with nothing else.
    """

    operation: dict[str, OperationRule]
    tiers: dict[tuple[str, str], OperationRule]
    windows: tuple[WindowRule, ...]
    declarations: tuple[DeclarationRule, ...]
    version: str

    def rule(self, kind: str, tier: str = "") -> OperationRule:
        """Return the rule for one amount on a card of a tier."""
        common = self.operation[kind]
        own = self.tiers.get((kind, tier))
        return common if own is None else common.and_also(own)

    def caps(
        self, scope: str, tier: str = "", debit: str = "cash_out"
    ) -> dict[tuple[str, str], tuple[int, int]]:
        """Return the strictest caps of a scope as the ledger's profiles take them.

        Args:
            scope: whose account the profile is for.
            tier: the customer's tier; rules without one hold too.
            debit: the kind that the account is debited by; the other kind credits it.

        Returns:
            ``{("debit", "month"): (max_amount, max_count)}``; 0 stands for no cap.
        """
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for rule in self.windows:
            if rule.scope != scope or rule.tier not in ("", tier):
                continue
            key = ("debit" if rule.kind == debit else "credit", rule.window)
            amount, count = found.get(key, (0, 0))
            found[key] = (_tighter(amount, rule.max_amount), _tighter(count, rule.max_count))
        return found


class Source(Protocol):
    """What is needed of a configuration."""

    @property
    def units(self) -> Mapping[str, tuple[UnitRow, ...]]: ...
    @property
    def limits(self) -> Mapping[str, LimitRow]: ...
    @property
    def declarations(self) -> Mapping[str, DeclarationRow]: ...


def _tighter(first: int, second: int) -> int:
    """Return the lower of two caps, 0 standing for none."""
    return min(first, second) if first and second else first or second


def kinds_of(kind: str) -> tuple[Kind, ...]:
    """Return the kinds a row is for."""
    return tuple(k for k in KINDS if kind in (k, "any"))


def unit_value(rows: Iterable[UnitRow], business_date: datetime.date) -> int:
    """Return a unit's value on a date: the newest row not after it.

    Before the first row the first one counts: a limit that exists is never skipped because its
    unit has no value yet.
    """
    ordered = sorted(rows, key=lambda row: row.valid_from)
    valid = [row for row in ordered if row.valid_from <= business_date]
    return (valid[-1] if valid else ordered[0]).pyg


def amount_of(text: str, source: Source, business_date: datetime.date) -> int:
    """Return an amount like ``40 py_daily_wage`` in guaraníes; 0 for an empty text.

    Raises:
        ValueError: it has another form. LookupError: its unit is unknown or has no row.
    """
    if not text:
        return 0
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no amount")
    count, unit = int(found[1].replace("_", "")), found[2]
    if unit == CURRENCY:
        return count
    rows = source.units.get(unit, ())
    if not rows:
        raise LookupError(f"unit {unit} has no value")
    return count * unit_value(rows, business_date)


def _operation_rule(row: LimitRow, source: Source, day: datetime.date) -> OperationRule:
    return OperationRule(
        amount_of(row.min, source, day) or 1,
        min(amount_of(row.max, source, day) or AMOUNT_MAX, AMOUNT_MAX),
        amount_of(row.multiple, source, day) or 1,
    )


def resolve(source: Source, business_date: datetime.date) -> Limits:
    """Return the rules in force on a business date.

    The configuration was checked when it was loaded, so nothing can fail here; the cost is some
    ten microseconds a row, paid when the date changes.
    """
    operation: dict[str, OperationRule] = {kind: OperationRule() for kind in KINDS}
    tiers: dict[tuple[str, str], OperationRule] = {}
    windows: list[WindowRule] = []
    for name, row in source.limits.items():
        if row.window == "operation":
            rule = _operation_rule(row, source, business_date)
            for kind in kinds_of(row.kind):
                if row.tier:
                    key = (kind, row.tier)
                    tiers[key] = tiers.get(key, OperationRule()).and_also(rule)
                else:
                    operation[kind] = operation[kind].and_also(rule)
            continue
        amount, window = amount_of(row.max, source, business_date), LEDGER_WINDOWS[row.window]
        windows += (
            WindowRule(name, row.scope, kind, window, amount, row.max_count, row.tier)
            for kind in kinds_of(row.kind)
        )
    declarations = [
        DeclarationRule(
            name,
            row.scope,
            kind,
            LEDGER_WINDOWS[row.window],
            amount_of(row.threshold, source, business_date),
        )
        for name, row in source.declarations.items()
        for kind in kinds_of(row.kind)
    ]
    version = _digest((operation, sorted(tiers.items()), windows, declarations))
    return Limits(operation, tiers, tuple(windows), tuple(declarations), version)


def _digest(rules: object) -> str:
    return hashlib.sha256(json.dumps(msgspec.to_builtins(rules)).encode()).hexdigest()[:12]


Finding = tuple[tuple[str, ...], str, str]
"""Where, what, hint."""


def findings(source: Source, known_tiers: Iterable[str]) -> Iterator[Finding]:
    """Check what no single value shows: units, tiers, contradictions on any date they may arise."""
    yield from _unit_findings(source)
    tiers = list(known_tiers)
    sound = True
    for name, row in source.limits.items():
        for finding in _row_findings(("limits", name), row, source, tiers):
            sound = False
            yield finding
    for name, declaration in source.declarations.items():
        where = ("declarations", name, "threshold")
        for finding in _amount_findings(where, declaration.threshold, source):
            sound = False
            yield finding
    if sound:
        yield from _dated_findings(source)


def _unit_findings(source: Source) -> Iterator[Finding]:
    for unit, rows in source.units.items():
        where = ("units", unit)
        if unit == CURRENCY or not _AMOUNT.fullmatch(f"1 {unit}"):
            yield where, "cannot be the name of a unit", "letters, digits and _, but not PYG"
        if not rows:
            yield where, "has no row", '[{ from = "2024-07-01", pyg = 107627 }]'
        dates = [row.valid_from for row in rows]
        for date in sorted({d for d in dates if dates.count(d) > 1}):
            yield where, f"has two rows from {date}", "keep one"


def _amount_findings(where: tuple[str, ...], text: str, source: Source) -> Iterator[Finding]:
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2] == CURRENCY:
        return
    if found[2] not in source.units:
        known = ", ".join([CURRENCY, *source.units])
        yield where, f'unit "{found[2]}" is unknown', f"known: {known}"
    elif not source.units[found[2]]:
        yield where, f'unit "{found[2]}" has no row', f"give it one in [units] {found[2]}"


def _row_findings(
    where: tuple[str, ...], row: LimitRow, source: Source, tiers: list[str]
) -> Iterator[Finding]:
    for key in ("max", "min", "multiple"):
        yield from _amount_findings((*where, key), getattr(row, key), source)
    if row.window == "operation":
        if row.max_count:
            yield (*where, "max_count"), "has no meaning for one operation", "choose a window"
        if not (row.max or row.min or row.multiple):
            yield where, "bounds nothing", "give max, min or multiple"
    else:
        for key in ("min", "multiple"):
            if getattr(row, key):
                hint = 'use window = "operation"'
                yield (*where, key), f"has no meaning for the window {row.window}", hint
        if not (row.max or row.max_count):
            yield where, "bounds nothing", "give max or max_count"
    if row.tier and row.scope not in TIERED_SCOPES:
        hint = "leave it out, or use scope card or person"
        yield (*where, "tier"), f"has no meaning for the scope {row.scope}", hint
    if row.tier and row.tier not in tiers:
        hint = f"known in business.tiers: {', '.join(tiers)}"
        yield (*where, "tier"), f'tier "{row.tier}" is unknown', hint


def _dated_findings(source: Source) -> Iterator[Finding]:
    """Resolve the rules on every date on which a unit changes, and look for contradictions."""
    dates = {row.valid_from for rows in source.units.values() for row in rows}
    seen: set[tuple[str, ...]] = set()
    for day in sorted(dates) or [datetime.date(1970, 1, 1)]:
        for where, what, hint in _findings_on(source, day):
            if where not in seen:
                seen.add(where)
                yield where, what + (f" from {day} on" if dates else ""), hint


def _findings_on(source: Source, day: datetime.date) -> Iterator[Finding]:
    for name, row in source.limits.items():
        if row.window == "operation":
            rule = _operation_rule(row, source, day)
            if rule.min > rule.max:
                yield ("limits", name), f"min {rule.min} is above max {rule.max}", "swap them"
            elif not rule.satisfiable:
                what = f"no amount from {rule.min} to {rule.max} is a multiple of {rule.multiple}"
                yield ("limits", name), what, "raise max or lower multiple"
        elif amount_of(row.max, source, day) > SUM_MAX:
            yield ("limits", name, "max"), f"is more than {SUM_MAX}", "leave it out for no cap"
    found = resolve(source, day)
    for kind, tier in itertools.chain(((kind, "") for kind in KINDS), found.tiers):
        if not found.rule(kind, tier).satisfiable:
            whose = f" for the tier {tier}" if tier else ""
            what = f"the rows for one operation together allow no {kind}{whose}"
            yield ("limits",), what, "compare their min, max and multiple"
