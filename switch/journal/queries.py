"""Questions to the read model. Read-only, masked, bounded."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from switch.flows.operations import SHIFT_DIFFERENCE

FILE_NAME: Final = "read.sqlite"
ROWS_MAX = 100_000


def seen_seq(directory: Path) -> int:
    """The record up to which the journal of a data directory surely was durable once: the read
    model has taken in groups behind it. 0 where there is no read model, or none that can be read.
    """
    path = directory / FILE_NAME
    if not path.exists():
        return 0
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            row = db.execute("SELECT seq FROM seen").fetchone()
        finally:
            db.close()
    except sqlite3.Error:
        return 0  # not made yet, or damaged: it is made anew, and proves nothing
    return 0 if row is None else int(row[0])


_HOLD = "LEFT JOIN holds h ON h.id = {0}.network || {0}.operation"

# Operations as three kinds of node know them, with the same columns: those of red's register;
# those that came over a network's session, with no red in this process; those that came over a
# host's link, with no sicoop in it.
_SOURCES = {
    "register": (
        "SELECT r.reference, r.operation, r.kind, r.network, r.terminal, r.branch, r.cashier,"
        " r.trace, r.amount, r.currency, r.document, r.state, r.code, r.key, r.authorization,"
        " r.business_date, r.fee, r.commission, r.received_ns, r.owed, r.original, r.supervisor,"
        " p.state AS sicoop, h.state AS ceibo, h.card AS card FROM register r"
        f" LEFT JOIN platform p ON p.reference = r.reference {_HOLD.format('r')} WHERE 1"
    ),
    "platform": (
        "SELECT p.reference, p.operation, p.kind, p.network, p.terminal, p.branch, p.cashier,"
        " CAST(substr(p.reference, 21) AS INTEGER) AS trace, p.amount, p.currency, '' AS document,"
        " '' AS state, p.code, p.key, p.authorization, p.business_date, p.fee, p.commission,"
        " p.received_ns, p.owed, '' AS original, '' AS supervisor, p.state AS sicoop,"
        f" h.state AS ceibo, h.card AS card FROM platform p {_HOLD.format('p')}"
        " WHERE p.alone = 1 AND NOT EXISTS (SELECT 1 FROM register WHERE reference = p.reference)"
    ),
    "holds": (
        "SELECT '' AS reference, h.operation, h.kind, h.network, h.terminal, h.branch,"
        " '' AS cashier, 0 AS trace, h.amount, h.currency, '' AS document, '' AS state, h.code,"
        " h.key, h.authorization, h.business_date, h.fee, h.commission,"
        " h.created_ns AS received_ns, '' AS owed, '' AS original, '' AS supervisor,"
        " '' AS sicoop, h.state AS ceibo, h.card AS card FROM holds h"
        " WHERE h.alone = 1 AND NOT EXISTS (SELECT 1 FROM platform"
        " WHERE operation = h.operation AND network = h.network)"
    ),
}
_STATES = {
    "register": "? IN (r.state, p.state, h.state)",
    "platform": "? IN (p.state, h.state)",
    "holds": "h.state = ?",
}
_ALIASES = {"register": "r", "platform": "p", "holds": "h"}


def operations(
    path: Path, *, state: str | None = None, terminal: str | None = None, limit: int = 50,
    since_ns: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """The newest operations first, at most `limit` (1..100000); `state` is that of any role."""
    limit = max(1, min(limit, ROWS_MAX))
    with _open(path) as db:
        rows = [
            row
            for source in _SOURCES
            for row in db.execute(*_newest(source, state, terminal, since_ns, limit))
        ]
    rows.sort(key=lambda row: int(row["received_ns"]), reverse=True)
    return [dict(row) for row in rows[:limit]]


def _newest(
    source: str, state: str | None, terminal: str | None, since_ns: int, limit: int
) -> tuple[str, list[int | str]]:
    alias = _ALIASES[source]
    stamp = "created_ns" if source == "holds" else "received_ns"
    sql = f"{_SOURCES[source]} AND {alias}.{stamp} >= ?"
    values: list[int | str] = [since_ns]
    if state is not None:
        sql += f" AND {_STATES[source]}"
        values.append(state)
    if terminal is not None:
        sql += f" AND {alias}.terminal = ?"
        values.append(terminal)
    return f"{sql} ORDER BY {alias}.{stamp} DESC LIMIT ?", [*values, limit]


def operation(path: Path, number: str) -> dict[str, Any] | None:
    """One operation by its reference (26 digits) or number (12), with its time line."""
    column = "reference" if len(number) == 26 else "operation"
    with _open(path) as db:
        for source, sql in _SOURCES.items():
            if source == "holds" and column == "reference":
                continue  # ceibo is not told it
            row = db.execute(f"{sql} AND {_ALIASES[source]}.{column} = ?", (number,)).fetchone()
            if row is not None:
                break
        else:
            return None
        found = dict(row)
        found["timeline"] = _timeline(db, row)
        annulments = f"{_SOURCES['register']} AND r.original = ?"
        found["annulments"] = [
            dict(other)
            for other in (db.execute(annulments, (row["reference"],)) if row["reference"] else ())
        ]
        case = _case(db, row["reference"]) if row["reference"] else None
        if case is not None:
            found["case"] = case
    return found


def owed(path: Path, limit: int = 1000) -> list[dict[str, Any]]:
    """What red and sicoop still owe the next role until it has acknowledged it, oldest first."""
    sql = (
        "SELECT * FROM (SELECT 'red' AS role, reference, operation, kind, amount, currency, state,"
        " owed, '' AS reason, '' AS issuer, received_ns FROM register WHERE owed <> ''"
        " UNION ALL SELECT 'sicoop', reference, operation, kind, amount, currency, state, owed,"
        " reason, issuer, received_ns FROM platform WHERE owed <> '')"
        " ORDER BY received_ns LIMIT ?"
    )
    with _open(path) as db:
        return [dict(row) for row in db.execute(sql, (max(1, min(limit, ROWS_MAX)),))]


def notices(path: Path, card: str, limit: int = 100) -> list[dict[str, Any]]:
    """What a card's holder was told in the app, newest first."""
    sql = (
        "SELECT at_ns, what, branch, amount FROM notices WHERE card = ? ORDER BY at_ns DESC LIMIT ?"
    )
    with _open(path) as db:
        return [dict(row) for row in db.execute(sql, (card, max(1, min(limit, ROWS_MAX))))]


def till_counts(
    path: Path, *, differing: bool = False, limit: int = 50, since_ns: int = 0
) -> list[dict[str, Any]]:
    """Counts of tills at the end of shifts (arqueos), the newest first: by how much each was above
    what it should have been, in minor units; `differing`: only those that were not right."""
    sql = (
        "SELECT at_ns, terminal, cashier, difference FROM (SELECT seq, at_ns, subject AS terminal,"
        f" who AS cashier, CAST(substr(reason, {len(SHIFT_DIFFERENCE) + 1}) AS INTEGER)"
        " AS difference FROM audit WHERE what = 'shift_close' AND outcome = '00' AND at_ns >= ?)"
        f"{' WHERE difference <> 0' if differing else ''} ORDER BY seq DESC LIMIT ?"
    )
    with _open(path) as db:
        return [dict(row) for row in db.execute(sql, (since_ns, _limit(limit)))]


def _timeline(db: sqlite3.Connection, row: sqlite3.Row) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    # Of holds with the same number from several hosts, that of our own sicoop has the short id.
    hold = "SELECT history FROM holds WHERE network = ? AND operation = ? ORDER BY length(id)"
    for role, sql, keys in (
        ("red", "SELECT history FROM register WHERE reference = ?", (row["reference"],)),
        ("sicoop", "SELECT history FROM platform WHERE reference = ?", (row["reference"],)),
        ("ceibo", hold, (row["network"], row["operation"])),
    ):
        found = db.execute(sql, keys).fetchone()
        if found is not None:
            entries += _history(role, found["history"])
    # Roles of one process share instants; a stable sort keeps each role's own order.
    return sorted(entries, key=lambda entry: int(entry["at_ns"]))


def _history(role: str, blob: bytes) -> list[dict[str, Any]]:
    pairs = msgspec.msgpack.decode(blob, type=list[tuple[str, int]])
    return [{"at_ns": at_ns, "role": role, "state": state} for state, at_ns in pairs]


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection for one question."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    try:
        yield db
    finally:
        db.close()


# ---- conciliation, and what needs people


def files(path: Path, limit: int = 50) -> list[dict[str, Any]]:
    """Daily files that were taken in, the newest date first."""
    with _open(path) as db:
        rows = db.execute(
            "SELECT * FROM files ORDER BY business_date DESC, network LIMIT ?", (_limit(limit),)
        )
        return [dict(row) | {"counts": msgspec.msgpack.decode(row["counts"])} for row in rows]


def cases(path: Path, limit: int = 50, *, everything: bool = False) -> list[dict[str, Any]]:
    """Cases, the newest first; closed ones only where asked."""
    which = "" if everything else " WHERE state = 'open'"
    with _open(path) as db:
        sql = f"SELECT * FROM cases{which} ORDER BY opened_ns DESC, reference LIMIT ?"
        return [dict(row) for row in db.execute(sql, (_limit(limit),))]


def windows(path: Path, limit: int = 50) -> list[dict[str, Any]]:
    """Settlement windows, the newest first, with their positions."""
    with _open(path) as db:
        rows = db.execute(
            "SELECT * FROM windows ORDER BY closed_ns DESC, number DESC LIMIT ?", (_limit(limit),)
        )
        return [dict(row) | {"positions": msgspec.msgpack.decode(row["positions"])} for row in rows]


def adjustments(path: Path, limit: int = 50) -> list[dict[str, Any]]:
    """Manual corrections, the newest first."""
    with _open(path) as db:
        sql = "SELECT * FROM adjustments ORDER BY number DESC LIMIT ?"
        return [dict(row) for row in db.execute(sql, (_limit(limit),))]


_STUCK = """
SELECT 'red' AS role, reference, operation, network, kind, amount, currency, state,
    'owes ' || owed AS why, received_ns FROM register WHERE owed <> '' AND received_ns < :before
UNION ALL
SELECT 'red', reference, operation, network, kind, amount, currency, state, 'in doubt', received_ns
    FROM register WHERE state = 'INICIADA' AND owed = '' AND received_ns < :before
UNION ALL
SELECT 'sicoop', reference, operation, network, kind, amount, currency, state, 'owes ' || owed,
    received_ns FROM platform WHERE owed <> '' AND received_ns < :before
UNION ALL
SELECT 'sicoop', reference, operation, network, kind, amount, currency, state,
    CASE state WHEN 'CONFLICTO' THEN 'conflict' WHEN 'CONFIRMADA' THEN 'capture refused'
        ELSE 'unconfirmed' END, received_ns FROM platform
    WHERE owed = '' AND received_ns < :before AND state IN ('RESPONDIDA', 'CONFLICTO', 'CONFIRMADA',
        'ENVIADA', 'RECIBIDA', 'RESERVADA')
UNION ALL
SELECT 'ceibo', '', h.operation, h.network, h.kind, h.amount, h.currency, h.state, 'orphan hold',
    h.created_ns FROM holds h WHERE h.state = 'ACTIVA' AND h.created_ns < :before
    AND NOT EXISTS (SELECT 1 FROM platform p WHERE p.operation = h.operation
        AND p.network = h.network AND (p.owed <> '' OR p.state IN ('RESPONDIDA', 'CONFLICTO',
        'CONFIRMADA', 'ENVIADA', 'RESERVADA')))
UNION ALL
SELECT 'case', reference, '', network, '', red_amount, '', sicoop_state, difference, opened_ns
    FROM cases WHERE state = 'open'
ORDER BY received_ns LIMIT :limit
"""


def stuck(path: Path, before_ns: int, limit: int = 1000) -> list[dict[str, Any]]:
    """What does not end by itself, or not soon: debts, conflicts, holds that nobody decides, and
    open cases; those from before an instant, the oldest first."""
    with _open(path) as db:
        values = {"before": before_ns, "limit": _limit(limit)}
        return [dict(row) for row in db.execute(_STUCK, values)]


def _case(db: sqlite3.Connection, reference: str) -> dict[str, Any] | None:
    row = db.execute("SELECT * FROM cases WHERE reference = ?", (reference,)).fetchone()
    return None if row is None else dict(row)


def _limit(limit: int) -> int:
    return max(1, min(limit, ROWS_MAX))
