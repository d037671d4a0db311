"""Questions to the read model. Read-only, masked, bounded."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

ROWS_MAX = 100_000

_OPERATION = (
    "SELECT r.*, p.state AS sicoop, h.state AS ceibo, h.card AS card FROM register r "
    "LEFT JOIN platform p USING (reference) LEFT JOIN holds h ON h.id = r.network || r.operation "
)


def operations(
    path: Path, *, state: str | None = None, terminal: str | None = None, limit: int = 50,
    since_ns: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """The newest operations first, at most `limit` (1..100000); `state` is that of any role."""
    where: list[str] = ["r.received_ns >= ?"]
    values: list[int | str] = [since_ns]
    if state is not None:
        where.append("? IN (r.state, p.state, h.state)")
        values.append(state)
    if terminal is not None:
        where.append("r.terminal = ?")
        values.append(terminal)
    sql = f"{_OPERATION} WHERE {' AND '.join(where)} ORDER BY r.received_ns DESC LIMIT ?"
    with _open(path) as db:
        rows = db.execute(sql, (*values, max(1, min(limit, ROWS_MAX)))).fetchall()
    return [_shown(row) for row in rows]


def operation(path: Path, number: str) -> dict[str, Any] | None:
    """One operation by its reference (26 digits) or number (12), with its time line."""
    column = "reference" if len(number) == 26 else "operation"
    with _open(path) as db:
        row = db.execute(f"{_OPERATION} WHERE r.{column} = ?", (number,)).fetchone()
        if row is None:
            return None
        found = _shown(row)
        found["timeline"] = _timeline(db, row)
        found["annulments"] = [
            _shown(r) for r in db.execute(f"{_OPERATION} WHERE r.original = ?", (row["reference"],))
        ]
    return found


def notices(path: Path, card: str, limit: int = 100) -> list[dict[str, Any]]:
    """What a card's holder was told in the app, newest first."""
    sql = (
        "SELECT at_ns, what, branch, amount FROM notices WHERE card = ? ORDER BY at_ns DESC LIMIT ?"
    )
    with _open(path) as db:
        return [dict(row) for row in db.execute(sql, (card, max(1, min(limit, ROWS_MAX))))]


def _timeline(db: sqlite3.Connection, row: sqlite3.Row) -> list[dict[str, Any]]:
    entries = _history("red", row["history"])
    for role, sql, key in (
        ("sicoop", "SELECT history FROM platform WHERE reference = ?", row["reference"]),
        ("ceibo", "SELECT history FROM holds WHERE id = ?", row["network"] + row["operation"]),
    ):
        found = db.execute(sql, (key,)).fetchone()
        if found is not None:
            entries += _history(role, found["history"])
    # Roles of one process share instants; a stable sort keeps each role's own order.
    return sorted(entries, key=lambda entry: int(entry["at_ns"]))


def _history(role: str, blob: bytes) -> list[dict[str, Any]]:
    pairs = msgspec.msgpack.decode(blob, type=list[tuple[str, int]])
    return [{"at_ns": at_ns, "role": role, "state": state} for state, at_ns in pairs]


def _shown(row: sqlite3.Row) -> dict[str, Any]:
    return {key: row[key] for key in row.keys() if key != "history"}  # noqa: SIM118


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection for one question."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    try:
        yield db
    finally:
        db.close()
