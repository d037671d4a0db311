"""The read model: SQLite, fed from the journal, for every list, page and report.

A follower in a process of its own: it reads durable groups only, writes them with its own position
in one transaction, and can be thrown away and rebuilt at any time. Never on the answer's path.

Rows hold what is searched for, and the record itself for everything else. Documents and phones are
masked here already: whoever may open the read model does not see them.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from core_ext import Reader
from core_ext._journal import Position
from switch.config import Config
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.operations import CeiboHold, RedOperation, SicoopOperation
from switch.flows.states import ACTIVA, CAPTURADA, LIBERADA
from switch.flows.step import ALARM_RECORD, AUDIT_RECORD, NOTICE_RECORD
from switch.journal.records import AlarmRecord, NoticeRecord, parse_put
from switch.ops.audit import decode as decode_audit

FILE_NAME = "read.sqlite"
SCHEMA_VERSION = 1
BATCH_RECORDS = 20_000
POLL_S = 0.1
RECORD_PUT = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS progress (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER, seq INTEGER, chain BLOB, segment INTEGER, offset INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS register (
    reference TEXT PRIMARY KEY, operation TEXT, kind TEXT, network TEXT, terminal TEXT, branch TEXT,
    cashier TEXT, trace INTEGER, amount INTEGER, currency TEXT, document TEXT, state TEXT,
    code TEXT, key TEXT, authorization TEXT, business_date TEXT, fee INTEGER, commission INTEGER,
    received_ns INTEGER, owed TEXT, original TEXT, supervisor TEXT, history BLOB)
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS register_by_time ON register (received_ns);
CREATE INDEX IF NOT EXISTS register_by_terminal ON register (terminal, received_ns);
CREATE INDEX IF NOT EXISTS register_by_operation ON register (operation);
CREATE TABLE IF NOT EXISTS platform (
    reference TEXT PRIMARY KEY, operation TEXT, state TEXT, code TEXT, owed TEXT, reason TEXT,
    business_date TEXT, annulled INTEGER, limits_version TEXT, history BLOB)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (
    id TEXT PRIMARY KEY, card TEXT, kind TEXT, amount INTEGER, currency TEXT, state TEXT, code TEXT,
    internal TEXT, fee INTEGER, commission INTEGER, forced INTEGER, compensated INTEGER,
    created_ns INTEGER, history BLOB) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notices (
    id TEXT PRIMARY KEY, at_ns INTEGER, card TEXT, what TEXT, branch TEXT, amount INTEGER)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY, at_ns INTEGER, who TEXT, what TEXT, subject TEXT, reason TEXT,
    outcome TEXT, second TEXT, security INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS alarms (
    seq INTEGER PRIMARY KEY, at_ns INTEGER, name TEXT, subject TEXT, detail TEXT) STRICT;
"""

_COLUMNS = {
    "register": 23, "platform": 10, "holds": 14, "notices": 6, "audit": 9, "alarms": 5,
}  # fmt: skip
_KEEP_FIRST = frozenset(("notices", "audit", "alarms"))


class Projector:
    """Brings the read model of a data directory up to the journal's durable end."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._journal = str(directory / "journal")
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)
        self._reader = Reader(self._journal, position=self._position())
        self._rows: dict[str, dict[Any, tuple[Any, ...]]] = {name: {} for name in _COLUMNS}
        self._handlers: dict[int, Callable[[int, bytes], None]] = {
            RECORD_PUT: self._put,
            AUDIT_RECORD: self._audit,
            ALARM_RECORD: self._alarm,
            NOTICE_RECORD: self._notice,
        }

    def close(self) -> None:
        self._reader.close()
        self._db.close()

    def catch_up(self) -> int:
        """Read all that is durable; returns how many records there were."""
        total = 0
        while count := self._batch():
            total += count
        return total

    async def follow(self, stop: trio.Event) -> None:
        """Catch up again and again until `stop` is set."""
        while not stop.is_set():
            if not self._batch():
                with trio.move_on_after(POLL_S):
                    await stop.wait()
            await trio.lowlevel.checkpoint()

    def _batch(self) -> int:
        """One transaction: at most BATCH_RECORDS records, or what there is."""
        count = 0
        while count < BATCH_RECORDS and (group := self._reader.next()) is not None:
            for place, (kind, payload) in enumerate(group.records()):
                handler = self._handlers.get(kind)
                if handler is not None:
                    handler(group.first_seq + place, payload)
            count += group.count
        if count:
            self._write()
        return count

    def _write(self) -> None:
        position = self._reader.position
        self._db.execute("BEGIN IMMEDIATE")
        for table, rows in self._rows.items():
            if rows:
                verb = "INSERT OR IGNORE" if table in _KEEP_FIRST else "INSERT OR REPLACE"
                marks = ",".join("?" * _COLUMNS[table])
                self._db.executemany(f"{verb} INTO {table} VALUES ({marks})", rows.values())
                rows.clear()
        self._db.execute(
            "INSERT OR REPLACE INTO progress VALUES (1, ?, ?, ?, ?, ?)",
            (SCHEMA_VERSION, position.seq, position.chain, position.segment, position.offset),
        )
        self._db.execute("COMMIT")

    def _position(self) -> Position | None:
        row = self._db.execute(
            "SELECT version, seq, chain, segment, offset FROM progress"
        ).fetchone()
        if row is None:
            return None
        if row[0] != SCHEMA_VERSION:
            for table in (*_COLUMNS, "progress"):
                self._db.execute(f"DROP TABLE {table}")
            self._db.executescript(_SCHEMA)
            return None
        return Position(*row[1:])

    # ---- records to rows

    def _put(self, seq: int, payload: bytes) -> None:
        space, key, value = parse_put(payload)
        if space == ops.RED_OPERATIONS:
            self._rows["register"][key] = _register_row(ops.decode_red(value))
        elif space == ops.SICOOP_OPERATIONS:
            self._rows["platform"][key] = _platform_row(ops.decode_sicoop(value))
        elif space == ops.CEIBO_HOLDS:
            hold = ops.decode_ceibo(value)
            self._rows["holds"][key] = _hold_row(hold)
            self._tell_holder(hold)

    def _tell_holder(self, hold: CeiboHold) -> None:
        """The holder's app is told of every outcome, with the figures the till never sees."""
        what = {ACTIVA: "", CAPTURADA: "approved", LIBERADA: "released"}.get(hold.state, "declined")
        if hold.compensated:
            what = "annulled"
        if not what or not hold.card:
            return
        identity = f"{hold.network}{hold.operation}:{what}"
        at_ns = hold.history[-1][1]
        self._rows["notices"].setdefault(
            identity, (identity, at_ns, hold.card, what, hold.branch, hold.amount)
        )

    def _audit(self, seq: int, payload: bytes) -> None:
        e = decode_audit(payload)
        self._rows["audit"][seq] = (
            seq, e.at_ns, e.who, e.what, e.subject, e.reason, e.outcome, e.second, e.security,
        )  # fmt: skip

    def _alarm(self, seq: int, payload: bytes) -> None:
        a = msgspec.msgpack.decode(payload, type=AlarmRecord)
        self._rows["alarms"][seq] = (seq, a.at_ns, a.name, a.subject, a.detail)

    def _notice(self, seq: int, payload: bytes) -> None:
        n = msgspec.msgpack.decode(payload, type=NoticeRecord)
        identity = f"{seq}:{n.what}"
        self._rows["notices"][identity] = (identity, n.at_ns, n.card, n.what, n.branch, 0)


def projected_seq(directory: Path) -> int:
    """Last record the read model of a data directory has taken in; 0 where there is none."""
    path = directory / FILE_NAME
    if not path.exists():
        return 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        row = db.execute("SELECT seq FROM progress").fetchone()
    except sqlite3.OperationalError:
        return 0  # not made yet
    finally:
        db.close()
    return 0 if row is None else int(row[0])


def _register_row(o: RedOperation) -> tuple[Any, ...]:
    document = norms.mask_identity(o.document)
    return (
        o.reference, o.operation, o.kind, o.network, o.terminal, o.branch, o.cashier, o.trace,
        o.amount, o.currency, document, o.state, o.code, o.key, o.authorization, o.business_date,
        o.fee, o.commission, o.received_ns, o.owed, o.original, o.supervisor, ops.encode(o.history),
    )  # fmt: skip


def _platform_row(o: SicoopOperation) -> tuple[Any, ...]:
    return (
        o.reference, o.operation, o.state, o.code, o.owed, o.reason, o.business_date, o.annulled,
        o.limits_version, ops.encode(o.history),
    )  # fmt: skip


def _hold_row(h: CeiboHold) -> tuple[Any, ...]:
    return (
        h.network + h.operation, h.card, h.kind, h.amount, h.currency, h.state, h.code, h.internal,
        h.fee, h.commission, h.forced, h.compensated, h.created_ns, ops.encode(h.history),
    )  # fmt: skip
