"""Questions about TransfiYa's work to the read model. Read-only, bounded."""

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from protocols.transfiya.conciliation import Line

ROWS_MAX: Final = 1000
LINES_MAX: Final = 1_000_000
_LOOKED_UP: Final = 500  # action ids of one query

_history: Final = msgspec.msgpack.Decoder(list[tuple[str, int]]).decode
_SHOWN: Final = (
    "bank", "kind", "purpose", "tx_ref", "user", "amount", "state", "reason", "action_id", "core",
    "arrived_ns", "accepted_ns", "late", "flagged",
)  # fmt: skip


def _ask(path: Path, sql: str, values: Sequence[Any]) -> list[Any]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        return db.execute(sql, values).fetchall()


def items(
    path: Path, *, bank: str = "", state: str = "", tx_ref: str = "", limit: int = ROWS_MAX
) -> list[dict[str, Any]]:
    """Pieces of work, the newest first; parties are masked."""
    rows = _ask(
        path,
        f"SELECT {', '.join(_SHOWN)} FROM transfiya_items WHERE (?1 = '' OR bank = ?1)"
        " AND (?2 = '' OR state = ?2) AND (?3 = '' OR tx_ref = ?3)"
        " ORDER BY arrived_ns DESC LIMIT ?4",
        (bank, state.upper(), tx_ref, limit),
    )
    found = [dict(row) for row in rows]
    for row in found:
        row["late"], row["flagged"] = bool(row["late"]), bool(row["flagged"])
    return found


def transfer(path: Path, bank: str, tx_ref: str) -> list[dict[str, Any]]:
    """All work on one transfer, the oldest first, each with its time line."""
    rows = _ask(
        path,
        f"SELECT {', '.join(_SHOWN)}, history FROM transfiya_items"
        " WHERE (?1 = '' OR bank = ?1) AND tx_ref = ?2 ORDER BY arrived_ns LIMIT ?3",
        (bank, tx_ref, ROWS_MAX),
    )
    found = []
    for row in rows:
        one = dict(row)
        one["history"] = [{"state": s, "at_ns": at_ns} for s, at_ns in _history(row["history"])]
        found.append(one)
    return found


_LINE: Final = "SELECT action_id, tx_ref, kind, amount, core, accepted_ns FROM transfiya_items"


def proven(path: Path, bank: str, from_ns: int, until_ns: int) -> list[tuple[Line, int]]:
    """What was proven by a bank in a span of time, with the instant of each proof."""
    rows = _ask(
        path,
        f"{_LINE} WHERE bank = ?1 AND accepted_ns >= ?2 AND accepted_ns < ?3 AND accepted_ns > 0"
        " AND kind IN ('UPLOAD', 'DOWNLOAD') LIMIT ?4",
        (bank, from_ns, until_ns, LINES_MAX),
    )
    return [(Line(*row[:5]), row[5]) for row in rows]


def proven_actions(path: Path, bank: str, action_ids: Iterable[str]) -> list[Line]:
    """Which of these actions were proven by a bank, whenever that was."""
    wanted, found = list(action_ids), []
    for at in range(0, len(wanted), _LOOKED_UP):
        some = wanted[at : at + _LOOKED_UP]
        rows = _ask(
            path,
            f"{_LINE} WHERE bank = ? AND accepted_ns > 0"
            f" AND action_id IN ({', '.join('?' * len(some))})",
            (bank, *some),
        )
        found += [Line(*row[:5]) for row in rows]
    return found
