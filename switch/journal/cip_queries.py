"""Questions of the service desk to the payment application's read model. Read-only, bounded."""

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from protocols.cip.confirmation import normalise_code, shown_code
from protocols.cip.records import COLUMNS, decimal
from protocols.currencies import CURRENCIES
from switch.journal.projections.cip import PROJECTION

ROWS_MAX: Final = 50_000
PAGE_ROWS: Final = 50
YEAR_FIRST: Final = 2000
YEAR_LAST: Final = 2200

FILTERS: Final = (
    "from", "until", "application", "status", "mode", "source", "amount_min", "amount_max",
    "client_ref", "confirmation", "payer", "user", "run",
)  # fmt: skip
"""Names of filters; `from` and `until` are dates of the application's zone, both included; `user`
is whoever made the payment or did something about it."""

ACCESS_FILTERS: Final = ("from", "until", "user", "what", "subject")

_RUN: Final = (
    "(SELECT r.id FROM cip_runs r WHERE r.application = p.application AND r.repeats = ''"
    " AND p.number BETWEEN r.first AND r.last AND p.number > 0)"
)


_WITH_FRESH: Final = (
    "(SELECT * FROM cip_payments WHERE payment_id NOT IN (SELECT payment_id FROM fresh)"
    " UNION ALL SELECT * FROM fresh)"
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


Tables = Mapping[str, Sequence[tuple[Any, ...]]]
"""Rows by table, where there is no read model yet: the same questions are asked of them."""


def payments(
    path: Path, application: str, zone: ZoneInfo, filters: Mapping[str, str], *,
    limit: int = PAGE_ROWS, offset: int = 0, fresh: Sequence[tuple[Any, ...]] = (),
    instead: Tables | None = None,
) -> tuple[list[Row], Totals]:  # fmt: skip
    """Rows, newest first, and the totals of the whole filter.

    Args:
        application: whose; "": everybody's.
        fresh: rows of `cip_payments` that the model may not have yet; they stand for its own.
        instead: what is asked in place of a model that does not exist.

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
    table = _WITH_FRESH if fresh else "cip_payments"
    sql = (
        f"SELECT {columns}, {_RUN} FROM {table} p WHERE {where}"
        " ORDER BY p.created_ns DESC, p.payment_id DESC LIMIT ? OFFSET ?"
    )
    sums = (
        "SELECT count(*), coalesce(sum(p.status IN ('CONFIRMED', 'REFUNDED')), 0),"
        " coalesce(sum(CASE WHEN p.status IN ('CONFIRMED', 'REFUNDED') THEN p.amount END), 0),"
        " coalesce(sum(CASE WHEN p.status IN ('CONFIRMED', 'REFUNDED') THEN p.fee END), 0),"
        f" coalesce(sum(p.refunded), 0) FROM {table} p WHERE {where}"
    )
    db = _opened(path, instead)
    try:
        _add_fresh(db, fresh)
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


def position(path: Path) -> int:
    """The journal's sequence number up to which the read model has come; 0: not begun.

    Raises:
        sqlite3.OperationalError: there is no read model yet.
    """
    found = _read(path, "SELECT seq FROM progress", ())
    return int(found[0][0]) if found else 0


def is_missing(error: sqlite3.OperationalError) -> bool:
    """True where there is no read model, or not yet one with these tables."""
    text = str(error)
    return text.startswith(("unable to open", "no such table", "no such column"))


def _opened(path: Path, instead: Tables | None) -> sqlite3.Connection:
    """The read model, read-only; or one in memory, of the rows that are given."""
    if instead is None:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db = sqlite3.connect(":memory:")
    db.executescript(PROJECTION.schema)
    for table, rows in instead.items():
        marks = ", ".join("?" * PROJECTION.columns[table])
        db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    db.commit()
    return db


def _add_fresh(db: sqlite3.Connection, fresh: Sequence[tuple[Any, ...]]) -> None:
    """A table of this connection only, and in memory."""
    if fresh:
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("CREATE TEMP TABLE fresh AS SELECT * FROM cip_payments LIMIT 0")
        marks = ", ".join("?" * len(fresh[0]))
        db.executemany(f"INSERT INTO fresh VALUES ({marks})", fresh)
        db.execute("CREATE UNIQUE INDEX temp.fresh_names ON fresh (payment_id)")
        db.commit()


class Access(msgspec.Struct, frozen=True):
    """One entry of the audit trail about an application."""

    at_ns: int
    who: str
    what: str
    subject: str
    outcome: str
    reason: str
    second: str


def access(
    path: Path, application: str, zone: ZoneInfo, filters: Mapping[str, str], *,
    limit: int = PAGE_ROWS, offset: int = 0, instead: Tables | None = None,
) -> list[Access]:  # fmt: skip
    """Who did or saw what, newest first; one row more than `limit` where there are more.

    The trail is in the read model alone: without one (`instead`) nothing can be told yet.

    What operators did on the command line is there too, under their own name.

    Raises:
        FilterError, sqlite3.OperationalError: as `payments`.
    """
    parts = [
        "(instr(who, ?) = 1 OR (who = 'operator' AND what LIKE 'cip.%'"
        " AND (subject = ? OR instr(subject, ?) = 1)))"
    ]
    values: list[str | int] = [f"{application}:", application, f"{application}:"]
    for name, text in filters.items():
        match name:
            case "from":
                parts.append("at_ns >= ?")
                values.append(_day_ns(text, zone, name))
            case "until":
                parts.append("at_ns < ?")
                values.append(_day_ns(text, zone, name, days=1))
            case "user":
                parts.append("who IN (?, ?)")
                values += [f"{application}:{text}", text]
            case "what" | "subject":
                parts.append(f"instr({name}, ?) > 0")
                values.append(text)
            case _:
                raise FilterError(name)
    sql = (
        "SELECT at_ns, who, what, subject, outcome, reason, second FROM audit"
        f" WHERE {' AND '.join(parts)} ORDER BY seq DESC LIMIT ? OFFSET ?"
    )
    if instead is not None:
        return []
    found = _read(path, sql, (*values, min(limit, ROWS_MAX) + 1, offset))
    return [Access(*row) for row in found]


class YearRow(msgspec.Struct, frozen=True):
    """All events of one kind in a year, in one currency; minor units."""

    kind: str
    currency: str
    count: int
    amount: int
    fees: int


def yearly(
    path: Path, application: str, zone: ZoneInfo, year: int, *, instead: Tables | None = None
) -> list[YearRow]:
    """The yearly summary per kind: payments, voids, refunds, as reports have them.

    Args:
        year: of the application's zone, YEAR_FIRST to YEAR_LAST.

    Raises:
        sqlite3.OperationalError: there is no read model yet.
    """
    start, end = (
        int(datetime(y, 1, 1, tzinfo=zone).timestamp()) * 1_000_000_000 for y in (year, year + 1)
    )
    sql = (
        "SELECT 'payment', currency, count(*), sum(amount), sum(fee) FROM cip_payments"
        " WHERE application = :app AND confirmed_ns >= :start AND confirmed_ns < :end"
        " GROUP BY currency UNION ALL "
        "SELECT a.kind, p.currency, count(*), sum(a.amount), 0 FROM cip_adjustments a"
        " JOIN cip_payments p ON p.payment_id = a.payment_id"
        " WHERE a.application = :app AND a.status = 'DONE' AND a.done_ns >= :start"
        " AND a.done_ns < :end GROUP BY a.kind, p.currency"
    )
    found = _read(path, sql, {"app": application, "start": start, "end": end}, instead)
    order = ("payment", "void", "refund")
    return sorted(
        (YearRow(*row) for row in found), key=lambda row: (order.index(row.kind), row.currency)
    )


def local_year(ns: int, zone: ZoneInfo) -> int:
    return datetime.fromtimestamp(ns // 1_000_000_000, zone).year


def _read(path: Path, sql: str, values: Any, instead: Tables | None = None) -> list[Any]:
    db = _opened(path, instead)
    try:
        return db.execute(sql, values).fetchall()
    finally:
        db.close()


def adjustments(
    path: Path, application: str, status: str, *, instead: Tables | None = None
) -> list[dict[str, Any]]:
    """Voids and refunds in one state, oldest first."""
    db = _opened(path, instead)
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
    parts = ["p.application = ?"] if application else ["1 = 1"]
    found: list[str | int] = [application] if application else []
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
                parts.append("(p.created_by = ? OR instr(' ' || p.actors || ' ', ?) > 0)")
                found += [text, f" {text} "]
            case "run":
                parts.append(f"{_RUN} = ?")
                found.append(text)
            case "application" | "status" | "mode" | "source" | "client_ref":
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
