"""A daily file held against the books of sicoop, and these against ceibo's: every difference.

The lines go into a table on disk that lasts as long as the comparison; the read model is attached
to it, so that both sides are gone through in step and nothing holds a day in memory.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from switch.calendar import Calendar, day_date, day_number
from switch.flows import norms
from switch.flows.conciliation import (
    AGREES,
    DIFFERS,
    OTHER_AT_CEIBO,
    OTHER_PLACE,
    TWICE,
    WAIT,
    FileLine,
    Verdict,
    View,
    judge,
)
from switch.reports.daily_file import DailyFile, Trailer

BATCH: Final = 5000

_TABLES = """
CREATE TEMP TABLE lines (
    reference TEXT PRIMARY KEY, kind TEXT, operation TEXT, amount INTEGER, state TEXT,
    commission INTEGER, branch TEXT, line INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE twice (reference TEXT, line INTEGER, same INTEGER);
CREATE TEMP TABLE places (terminal TEXT, branch TEXT, PRIMARY KEY (terminal, branch)) WITHOUT ROWID;
"""
_VIEW = "p.state, p.kind, p.operation, p.amount, p.commission, p.owed"
_LINES = f"""
SELECT l.reference, l.kind, l.operation, l.amount, l.state, l.commission, {_VIEW}
FROM lines l LEFT JOIN m.platform p ON p.reference = l.reference ORDER BY l.reference
"""
# A network that closes before midnight has the operations of its evening in the next file.
_ABSENT = f"""
SELECT p.reference, {_VIEW} FROM m.platform p
WHERE p.network = :network AND ((p.business_date = :date AND p.received_ns < :closes)
    OR (p.business_date = :before AND p.received_ns >= :closed))
AND NOT EXISTS (SELECT 1 FROM lines WHERE reference = p.reference) ORDER BY p.reference
"""
_HOLDS = """
SELECT p.reference, p.operation, p.state, p.amount, p.annulled, p.owed, h.state AS ceibo,
    h.amount AS held, h.compensated
FROM m.platform p LEFT JOIN m.holds h ON h.id = p.network || p.operation
WHERE p.network = :network AND p.business_date = :date AND p.operation <> '' AND p.issuer = ''
ORDER BY p.reference
"""
_ISSUER_FILE = """
SELECT p.reference, p.operation, p.state, p.amount, p.annulled, p.owed,
    CASE l.state WHEN 'R' THEN 'CAPTURADA' WHEN 'E' THEN 'CAPTURADA' WHEN 'A' THEN 'CAPTURADA'
        WHEN 'X' THEN 'LIBERADA' WHEN 'N' THEN 'RECHAZADA' END AS ceibo,
    l.amount AS held, l.state = 'A' AS compensated
FROM m.platform p LEFT JOIN lines l ON l.reference = p.network || p.operation
WHERE p.network = :network AND p.business_date = :date AND p.operation <> ''
    AND p.issuer IN ('', :issuer) ORDER BY p.reference
"""
_POSTED = frozenset(("CAPTURADA", "CONCILIADA"))
_OPEN = frozenset(("RECIBIDA", "ENVIADA", "RESERVADA", "RESPONDIDA", "CONFIRMADA", "CONFLICTO"))


class Difference(Struct, frozen=True):
    """One row of the report; `action`: what was, or would be, done about it."""

    difference: str
    reference: str
    operation: str = ""
    line: int = 0
    red_state: str = ""
    sicoop_state: str = ""
    ceibo_state: str = ""
    red_amount: int = 0
    sicoop_amount: int = 0
    ceibo_amount: int = 0
    action: str = ""


class Item(Struct, frozen=True):
    """A line (`state` empty: there is none) with what the read model knows of its operation."""

    line: FileLine
    known: View | None


class Comparison:
    """One file against the books; `close` after use.

    Args:
        path: of the read model, which must be up to date.
        issuer: name of the issuer whose file it is: its lines are known by the operation's number.
            Empty: it is red's.

    Raises:
        FileRefused: the file is malformed or not balanced.
    """

    def __init__(
        self, path: Path, file: DailyFile, calendar: Calendar, *, network_closes: str = "24:00",
        issuer: str = "",
    ) -> None:  # fmt: skip
        self.file = file
        # No name: a file of its own that is gone with the connection, so that a day may be large.
        self._db = sqlite3.connect("", isolation_level=None, uri=True)
        self._db.row_factory = sqlite3.Row
        self._db.execute("ATTACH ? AS m", (f"file:{path}?mode=ro",))
        self._db.executescript(_TABLES)
        self._values = self._window(calendar, network_closes) | {"issuer": issuer}
        try:
            self._load(bool(issuer))
        except BaseException:
            self.close()
            raise
        assert file.trailer is not None, "a file that was read to its end"
        self.trailer: Trailer = file.trailer

    def close(self) -> None:
        self._db.close()

    def _window(self, calendar: Calendar, closes: str) -> dict[str, str | int]:
        date = self.file.header.business_date
        number = day_number(norms.date(date))
        return {
            "network": self.file.header.network,
            "date": day_date(number).isoformat(),
            "before": day_date(number - 1).isoformat(),
            "closes": calendar.instant(number, closes),
            "closed": calendar.instant(number - 1, closes),
        }

    def _load(self, issuer: bool) -> None:
        self._db.execute("BEGIN")
        for number, d in self.file.details():
            key = d.reference[:4] + d.operation if issuer else d.reference
            row = (key, d.kind, d.operation, d.amount, d.state, d.commission, d.branch, number)
            done = self._db.execute("INSERT OR IGNORE INTO lines VALUES (?,?,?,?,?,?,?,?)", row)
            if not done.rowcount:
                self._repeated(row)
            elif not issuer:
                place = (d.reference[4:12], d.branch)
                self._db.execute("INSERT OR IGNORE INTO places VALUES (?, ?)", place)
        self._db.execute("COMMIT")

    def _repeated(self, row: tuple[str | int, ...]) -> None:
        """The first line of a reference counts; whether the other says the same is told."""
        first = self._db.execute("SELECT * FROM lines WHERE reference = ?", row[:1]).fetchone()
        same = tuple(first)[:-1] == row[:-1]
        self._db.execute("INSERT INTO twice VALUES (?, ?, ?)", (row[0], row[-1], same))

    # ---- what there is

    def lines(self) -> Iterator[Item]:
        """Every line, once, in the order of references."""
        for row in self._db.execute(_LINES):
            line = FileLine(*row[:6])
            yield Item(line, View(*row[6:]) if row[6] is not None else None)

    def absent(self) -> Iterator[Item]:
        """Operations that the file should have a line of, and has none."""
        for row in self._db.execute(_ABSENT, self._values):
            yield Item(FileLine(row[0]), View(*row[1:]))

    def repeated(self) -> Iterator[Difference]:
        """Lines whose reference came before (C05)."""
        for row in self._db.execute("SELECT * FROM twice ORDER BY line"):
            action = "counted once" if row["same"] else "counted once; the first line counts"
            yield Difference(TWICE, row["reference"], line=row["line"], action=action)

    def places(self) -> Iterator[list[tuple[str, str]]]:
        """Pairs of terminal and branch that the file names, in pieces."""
        cursor = self._db.execute("SELECT terminal, branch FROM places ORDER BY 1, 2")
        while rows := cursor.fetchmany(500):
            yield [tuple(row) for row in rows]

    def at_place(self, terminal: str, branch: str) -> Iterator[Difference]:
        """Lines of a terminal or branch that is not known (C15)."""
        start = self.file.header.network + terminal
        sql = (
            "SELECT * FROM lines WHERE reference >= ? AND reference < ? AND branch = ?"
            " ORDER BY reference"
        )
        for row in self._db.execute(sql, (start, start + ":", branch)):
            yield Difference(
                OTHER_PLACE, row["reference"], row["operation"], row["line"], row["state"],
                red_amount=row["amount"],
            )  # fmt: skip

    def at_ceibo(self, *, issuer_file: bool = False) -> Iterator[tuple[Difference, str]]:
        """Where ceibo's books differ from sicoop's, and what to ask it for once more (C11)."""
        sql = _ISSUER_FILE if issuer_file else _HOLDS
        for r in self._db.execute(sql, self._values):
            wanted = _wanted(r)
            if wanted is None:
                continue
            yield Difference(
                OTHER_AT_CEIBO, r["reference"], r["operation"], sicoop_state=r["state"],
                ceibo_state=r["ceibo"] or "", sicoop_amount=r["amount"],
                ceibo_amount=r["held"] or 0, action=f"{wanted} again" if wanted else "",
            ), wanted  # fmt: skip


def preview(comparison: Comparison) -> Iterator[Difference]:
    """What reading the file would come to, without doing anything."""
    for items in (comparison.lines(), comparison.absent()):
        for item in items:
            found = difference(item, judge(item.line, item.known))
            if found is not None:
                yield found


def difference(item: Item, verdict: Verdict) -> Difference | None:
    """A row of the report; None where there is nothing to tell."""
    if not verdict.difference and verdict.action in (AGREES, WAIT, "conciliate"):
        return None
    line, known = item.line, item.known
    return Difference(
        verdict.difference, line.reference, known.operation if known else line.operation,
        red_state=line.state, sicoop_state=verdict.state or (known.state if known else ""),
        red_amount=line.amount, sicoop_amount=known.amount if known else 0,
        action="" if verdict.action in (AGREES, DIFFERS, WAIT) else verdict.action,
    )  # fmt: skip


def _wanted(r: sqlite3.Row) -> str | None:
    """What ceibo is asked for once more; '' where asking cannot help; None: both agree."""
    state, ceibo = r["state"], r["ceibo"]
    if r["owed"] or state in _OPEN:
        return None  # under way
    captured = ceibo == "CAPTURADA" and not r["compensated"]
    if state in _POSTED:
        if captured:
            return None if r["held"] == r["amount"] else ""
        return "capture"
    if captured:
        return "annul" if r["annulled"] else "release"
    return "release" if ceibo == "ACTIVA" else None
