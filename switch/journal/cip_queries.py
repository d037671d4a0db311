"""Questions of the service desk to the payment application's read model. Read-only, bounded."""

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from protocols.cip.confirmation import normalise_code, shown_code
from protocols.cip.records import COLUMNS, decimal
from protocols.currencies import CURRENCIES

ROWS_MAX: Final = 50_000
PAGE_ROWS: Final = 50
DAY_NS: Final = 86_400 * 1_000_000_000

FILTERS: Final = (
    "from", "until", "status", "mode", "source", "amount_min", "amount_max", "client_ref",
    "confirmation", "payer", "user", "run",
)  # fmt: skip
"""Names of filters; `from` and `until` are dates of the application's zone, both included."""

_RUN: Final = (
    "(SELECT r.id FROM cip_runs r WHERE r.application = p.application AND r.repeats = ''"
    " AND p.number BETWEEN r.first AND r.last AND p.number > 0)"
)


class Row(msgspec.Struct, frozen=True):
    """A payment as view and CSV show it."""

    payment_id: str
    application: str
    mode: str
    client_ref: str
    status: str
    amount: int
    fee: int
    currency: str
    cip: str
    source_code: str
    source: str
    instrument_type: str
    instrument: str
    payer_name: str
    payer_reference: str
    created_ns: int
    confirmed_ns: int
    refunded: int
    created_by: str
    custom: dict[str, str]
    run: str


class Totals(msgspec.Struct, frozen=True):
    """Of all rows of a filter; amounts count what is confirmed, minor units."""

    count: int
    confirmed: int
    amount: int
    fees: int
    refunded: int


class FilterError(ValueError):
    """A filter's value that says nothing; names the filter."""


def payments(
    path: Path, application: str, zone: ZoneInfo, filters: Mapping[str, str], *,
    limit: int = PAGE_ROWS, offset: int = 0,
) -> tuple[list[Row], Totals]:  # fmt: skip
    """Rows, newest first, and the totals of the whole filter.

    Raises:
        FilterError: a filter cannot be read.
        sqlite3.OperationalError: there is no read model yet.
    """
    where, values = _where(application, zone, filters)
    names = (
        "payment_id", "application", "mode", "client_ref", "status", "amount", "fee", "currency",
        "cip", "source_code", "source", "instrument_type", "instrument", "payer_name",
        "payer_reference", "created_ns", "confirmed_ns", "refunded", "created_by", "custom",
    )  # fmt: skip
    columns = ", ".join(f"p.{name}" for name in names)
    sql = (
        f"SELECT {columns}, {_RUN} FROM cip_payments p WHERE {where}"
        " ORDER BY p.created_ns DESC, p.payment_id DESC LIMIT ? OFFSET ?"
    )
    sums = (
        "SELECT count(*), coalesce(sum(p.status IN ('CONFIRMED', 'REFUNDED')), 0),"
        " coalesce(sum(CASE WHEN p.status IN ('CONFIRMED', 'REFUNDED') THEN p.amount END), 0),"
        " coalesce(sum(CASE WHEN p.status IN ('CONFIRMED', 'REFUNDED') THEN p.fee END), 0),"
        f" coalesce(sum(p.refunded), 0) FROM cip_payments p WHERE {where}"
    )
    uri = f"file:{path}?mode=ro"
    db = sqlite3.connect(uri, uri=True)
    try:
        db.execute("BEGIN")  # rows and totals of one moment
        found = db.execute(sql, (*values, min(limit, ROWS_MAX), offset)).fetchall()
        totals = db.execute(sums, values).fetchone()
    finally:
        db.close()
    rows = []
    for row in found:
        values_of: dict[str, Any] = dict(zip(names, row, strict=False))
        values_of["custom"] = msgspec.msgpack.decode(values_of["custom"], type=dict[str, str])
        rows.append(Row(**values_of, run=row[-1] or ""))
    return rows, Totals(*totals)


def adjustments(path: Path, application: str, status: str) -> list[dict[str, Any]]:
    """Voids and refunds in one state, oldest first."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    try:
        found = db.execute(
            "SELECT * FROM cip_adjustments WHERE application = ? AND status = ?"
            " ORDER BY requested_ns LIMIT ?",
            (application, status, ROWS_MAX),
        ).fetchall()
    finally:
        db.close()
    return [dict(row) for row in found]


def csv_row(row: Row, zone: ZoneInfo, fields: tuple[str, ...]) -> list[str | int]:
    """The cells of a payment, in the order of `COLUMNS`, then the schema's fields."""
    currency = CURRENCIES.get(row.currency)
    return [
        row.payment_id, row.client_ref, row.application, row.mode, row.status, row.amount,
        decimal(row.amount, currency.exponent if currency else 0), row.currency, row.fee,
        shown_code(row.cip) if row.cip else "", row.source_code, row.source, row.instrument_type,
        row.instrument, row.payer_name, row.payer_reference, utc_text(row.created_ns),
        utc_text(row.confirmed_ns), local_text(row.confirmed_ns, zone), row.refunded, row.run,
        *(row.custom.get(name, "") for name in fields),
    ]  # fmt: skip


def csv_totals(totals: Totals, fields: tuple[str, ...]) -> list[str | int]:
    """The line of totals: sums of what is confirmed, under their columns."""
    cells: list[str | int] = [""] * (len(COLUMNS) + len(fields))
    cells[0] = "TOTAL"
    cells[COLUMNS.index("client_ref")] = totals.count
    cells[COLUMNS.index("amount_minor")] = totals.amount
    cells[COLUMNS.index("fee_minor")] = totals.fees
    cells[COLUMNS.index("refunded_minor")] = totals.refunded
    return cells


def utc_text(ns: int) -> str:
    if not ns:
        return ""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns // 1_000_000 % 1000:03d}Z"


def local_text(ns: int, zone: ZoneInfo) -> str:
    """Local time with its offset, as `2026-01-01 09:00:00 -03:00`."""
    if not ns:
        return ""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, zone)
    return moment.isoformat(sep=" ")[:19] + " " + moment.isoformat()[19:]


def _where(
    application: str, zone: ZoneInfo, filters: Mapping[str, str]
) -> tuple[str, list[str | int]]:
    parts, values = ["p.application = ?"], [application]
    found: list[str | int] = list(values)
    for name, text in filters.items():
        text = text.strip()
        if not text:
            continue
        match name:
            case "from":
                parts.append("p.created_ns >= ?")
                found.append(_day_ns(text, zone, name))
            case "until":
                parts.append("p.created_ns < ?")
                found.append(_day_ns(text, zone, name, days=1))
            case "amount_min" | "amount_max":
                if not (text.isascii() and text.isdigit() and len(text) < 15):
                    raise FilterError(name)
                parts.append("p.amount " + (">= ?" if name == "amount_min" else "<= ?"))
                found.append(int(text))
            case "confirmation":
                parts.append("(p.cip = ? OR instr(' ' || p.codes || ' ', ?) > 0)")
                found += [normalise_code(text), f" {text} "]
            case "payer":
                parts.append("instr(p.payer_search, ?) > 0")
                found.append(text.casefold())
            case "user":
                parts.append("p.created_by = ?")
                found.append(text)
            case "run":
                parts.append(f"{_RUN} = ?")
                found.append(text)
            case "status" | "mode" | "source" | "client_ref":
                parts.append(f"p.{name} = ?")
                found.append(text)
            case _:
                raise FilterError(name)
    return " AND ".join(parts), found


def _day_ns(text: str, zone: ZoneInfo, name: str, days: int = 0) -> int:
    try:
        day = datetime.strptime(text, "%Y-%m-%d").date()
        start = datetime.fromordinal(day.toordinal() + days).replace(tzinfo=zone)
    except (ValueError, OverflowError):
        raise FilterError(name) from None
    return int(start.timestamp()) * 1_000_000_000
