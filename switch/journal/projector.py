"""The read model: SQLite, fed from the journal, for every list, page and report.

A follower in a process of its own: it reads durable groups only, writes them with its own position
in one transaction, and can be thrown away and rebuilt at any time. Never on the answer's path.

Rows hold what is searched for, and the record itself for everything else. Documents and phones are
masked here already: whoever may open the read model does not see them.
"""

import contextlib
import sqlite3
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import trio

from core_ext import Reader
from core_ext._breaks import Breaks
from core_ext._journal import Position
from switch.calendar import day_date
from switch.config import Config
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.operations import CeiboHold, FileRecord, RedOperation, SicoopOperation, Window
from switch.flows.states import ACTIVA, CAPTURADA, ERROR, LIBERADA, REVERSADA
from switch.flows.step import ALARM_RECORD, AUDIT_RECORD, NOTICE_RECORD
from switch.journal import queries
from switch.journal.checkpoints import Checkpoints
from switch.journal.projections import projections
from switch.journal.records import AlarmRecord, NoticeRecord, parse_put
from switch.ops.audit import decode as decode_audit
from switch.ops.keys import MasterKey, UnsealError
from switch.ops.rotation import retained
from switch.reports.daily_file import document_hash, network_key

FILE_NAME = queries.FILE_NAME
SCHEMA_VERSION = 6
BATCH_RECORDS = 20_000
POLL_S = 0.1
RECORD_PUT = 64
_CONCILIATION_KEY = retained("conciliation")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS progress (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER, seq INTEGER, chain BLOB, segment INTEGER, offset INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS seen (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS register (
    reference TEXT PRIMARY KEY, operation TEXT, kind TEXT, network TEXT, terminal TEXT, branch TEXT,
    cashier TEXT, trace INTEGER, amount INTEGER, currency TEXT, document TEXT, state TEXT,
    code TEXT, key TEXT, authorization TEXT, business_date TEXT, fee INTEGER, commission INTEGER,
    received_ns INTEGER, owed TEXT, original TEXT, supervisor TEXT, history BLOB,
    registered_ns INTEGER, document_hash TEXT, undone_ns INTEGER)
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS register_by_time ON register (received_ns);
CREATE INDEX IF NOT EXISTS register_by_terminal ON register (terminal, received_ns);
CREATE INDEX IF NOT EXISTS register_by_operation ON register (operation);
CREATE INDEX IF NOT EXISTS register_by_date ON register (network, business_date, reference);
CREATE INDEX IF NOT EXISTS register_undone ON register (network, undone_ns) WHERE undone_ns > 0;
CREATE INDEX IF NOT EXISTS register_owing ON register (received_ns) WHERE owed <> '';
CREATE TABLE IF NOT EXISTS platform (
    reference TEXT PRIMARY KEY, operation TEXT, kind TEXT, network TEXT, terminal TEXT, branch TEXT,
    cashier TEXT, amount INTEGER, currency TEXT, state TEXT, code TEXT, key TEXT,
    authorization TEXT, business_date TEXT, fee INTEGER, commission INTEGER, received_ns INTEGER,
    owed TEXT, reason TEXT, attempts INTEGER, annulled INTEGER, limits_version TEXT, issuer TEXT,
    history BLOB, undone_ns INTEGER, alone INTEGER)
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS platform_by_operation ON platform (operation);
CREATE INDEX IF NOT EXISTS platform_by_date ON platform (network, business_date, reference);
CREATE INDEX IF NOT EXISTS platform_undone ON platform (network, undone_ns) WHERE undone_ns > 0;
CREATE INDEX IF NOT EXISTS platform_alone ON platform (received_ns) WHERE alone = 1;
CREATE INDEX IF NOT EXISTS platform_owing ON platform (received_ns) WHERE owed <> '';
CREATE TABLE IF NOT EXISTS holds (
    id TEXT PRIMARY KEY, operation TEXT, network TEXT, terminal TEXT, branch TEXT, card TEXT,
    kind TEXT, amount INTEGER, currency TEXT, state TEXT, code TEXT, key TEXT, authorization TEXT,
    business_date TEXT, internal TEXT, fee INTEGER, commission INTEGER, forced INTEGER,
    compensated INTEGER, link TEXT, created_ns INTEGER, history BLOB, alone INTEGER)
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_by_operation ON holds (operation);
CREATE INDEX IF NOT EXISTS holds_by_date ON holds (network, business_date, operation);
CREATE INDEX IF NOT EXISTS holds_active ON holds (created_ns) WHERE state = 'ACTIVA';
CREATE INDEX IF NOT EXISTS holds_alone ON holds (created_ns) WHERE alone = 1;
CREATE TABLE IF NOT EXISTS notices (
    id TEXT PRIMARY KEY, at_ns INTEGER, card TEXT, what TEXT, branch TEXT, amount INTEGER)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY, at_ns INTEGER, who TEXT, what TEXT, subject TEXT, reason TEXT,
    outcome TEXT, second TEXT, security INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS alarms (
    seq INTEGER PRIMARY KEY, at_ns INTEGER, name TEXT, subject TEXT, detail TEXT) STRICT;
CREATE TABLE IF NOT EXISTS files (
    network TEXT, business_date TEXT, version INTEGER, sha256 TEXT, details INTEGER,
    cash_out INTEGER, deposit INTEGER, commission INTEGER, state TEXT, taken_ns INTEGER,
    counts BLOB, PRIMARY KEY (network, business_date)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cases (
    reference TEXT PRIMARY KEY, network TEXT, business_date TEXT, difference TEXT, state TEXT,
    opened_ns INTEGER, version INTEGER, red_state TEXT, red_amount INTEGER, sicoop_state TEXT,
    sicoop_amount INTEGER, outcome TEXT, closed_ns INTEGER, author TEXT, second TEXT, reason TEXT,
    evidence TEXT, evidence_sha256 TEXT) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cases_open ON cases (opened_ns) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS windows (
    number INTEGER, currency TEXT, state TEXT, opened_ns INTEGER, closed_ns INTEGER,
    positions BLOB, PRIMARY KEY (number, currency)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adjustments (
    number INTEGER PRIMARY KEY, at_ns INTEGER, account TEXT, amount INTEGER, direction TEXT,
    currency TEXT, author TEXT, second TEXT, reason TEXT, evidence TEXT, evidence_sha256 TEXT,
    reference TEXT) STRICT;
CREATE TABLE IF NOT EXISTS sealed (name TEXT PRIMARY KEY, value BLOB) STRICT;
"""

_COLUMNS = {
    "register": 26, "platform": 25, "holds": 22, "notices": 6, "audit": 9, "alarms": 5, "files": 11,
    "cases": 18, "windows": 6, "adjustments": 12, "sealed": 2,
}  # fmt: skip
# The last column of these tells that the role before it is played by another process: only then do
# lists have to look for them. Tables are written in the order above, so that it is known.
_ALONE = {
    "platform": "NOT EXISTS (SELECT 1 FROM register WHERE reference = ?1)",
    "holds": "NOT EXISTS (SELECT 1 FROM platform WHERE operation = ?2 AND network = ?3)",
}
_KEEP_FIRST = frozenset(("notices", "audit", "alarms"))


class Projector:
    """Brings the read model of a data directory up to the journal's durable end.

    Args:
        master: for the keyed hash by which daily files name persons; None: rows have none, and no
            file can be made of them.
    """

    def __init__(self, config: Config, directory: Path, master: MasterKey | None = None) -> None:
        self.path = directory / FILE_NAME
        self._master = master
        self._document_key = lru_cache(maxsize=1024)(self._make_document_key)
        self._journal = str(directory / "journal")
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._projections = projections(config)
        self._by_space = {space: p for p in self._projections for space in p.spaces}
        self._columns = dict(_COLUMNS)
        for projection in self._projections:
            self._columns |= projection.columns
        self._checkpoints = Checkpoints(self._db, self.path)
        self._drop_if_older()
        self._db.executescript(_SCHEMA)
        for projection in self._projections:
            self._db.executescript(projection.schema)
        self._retain(self._db.execute("SELECT value FROM sealed").fetchone())
        position = self._position()
        if position is None and master is not None:
            self._look_ahead()
        self._begun_at = position  # as the tables say; who finds another one there is not alone
        self._before_seq = 0  # last record before the newest group that was read
        self._reader = Reader(self._journal, position=position, gently=True)
        self._rows: dict[str, dict[Any, tuple[Any, ...]]] = {name: {} for name in self._columns}
        self._handlers: dict[int, Callable[[int, bytes], None]] = {
            RECORD_PUT: self._put,
            AUDIT_RECORD: self._audit,
            ALARM_RECORD: self._alarm,
            NOTICE_RECORD: self._notice,
        }

    def close(self) -> None:
        self._reader.close()
        self._checkpoints.close()

    def catch_up(self) -> int:
        """Read all that is durable; returns how many records there were."""
        total = 0
        while count := self._batch():
            total += count
        return total

    async def follow(self, stop: trio.Event) -> None:
        """Catch up again and again until `stop` is set, with breaks for who shares the CPU."""
        breaks = Breaks()
        while not stop.is_set():
            with breaks:
                count = self._batch()
            if count < BATCH_RECORDS:  # many small transactions write the same pages often
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
            self._before_seq = group.first_seq - 1
        if count:
            self._write()
        return count

    def _write(self) -> None:
        position = self._reader.position
        self._db.execute("BEGIN IMMEDIATE")
        if self._position() != self._begun_at:
            self._begin_again()
            return
        for table, rows in self._rows.items():
            if rows:
                verb = "INSERT OR IGNORE" if table in _KEEP_FIRST else "INSERT OR REPLACE"
                values = [f"?{place}" for place in range(1, self._columns[table] + 1)]
                values += [_ALONE[table]] if table in _ALONE else []
                sql = f"{verb} INTO {table} VALUES ({', '.join(values)})"
                self._db.executemany(sql, rows.values())
                rows.clear()
        self._db.execute(
            "INSERT OR REPLACE INTO progress VALUES (1, ?, ?, ?, ?, ?)",
            (SCHEMA_VERSION, position.seq, position.chain, position.segment, position.offset),
        )
        # The newest group may be read before it is durable; those before it are: one is written
        # at a time.
        self._db.execute("INSERT OR REPLACE INTO seen VALUES (1, ?)", (self._before_seq,))
        self._db.execute("COMMIT")
        self._checkpoints.committed()
        self._begun_at = position

    def _begin_again(self) -> None:
        """Another process has written meanwhile, such as the projector of a node that was killed:
        our rows may be older than its. Go on from where it is."""
        self._db.execute("ROLLBACK")
        for rows in self._rows.values():
            rows.clear()
        self._begun_at = self._position()
        self._reader.close()
        self._reader = Reader(self._journal, position=self._begun_at, gently=True)

    def _drop_if_older(self) -> None:
        """Begin anew where the tables are those of another version of this file."""
        try:
            row = self._db.execute("SELECT version FROM progress").fetchone()
        except sqlite3.OperationalError:
            return  # none yet
        if row is not None and row[0] != SCHEMA_VERSION:
            for table in (*self._columns, "progress"):
                self._db.execute(f"DROP TABLE IF EXISTS {table}")

    def _position(self) -> Position | None:
        row = self._db.execute("SELECT seq, chain, segment, offset FROM progress").fetchone()
        return None if row is None else Position(*row)

    # ---- records to rows

    def _put(self, seq: int, payload: bytes) -> None:
        space, key, value = parse_put(payload)
        if space == ops.RED_OPERATIONS:
            red = ops.decode_red(value)
            self._rows["register"][key] = _register_row(red, self._document_hash(red))
        elif space == ops.SICOOP_OPERATIONS:
            self._rows["platform"][key] = _platform_row(ops.decode_sicoop(value))
        elif space == ops.CEIBO_HOLDS:
            hold = ops.decode_ceibo(value)
            self._rows["holds"][key] = _hold_row(hold)
            self._tell_holder(hold)
        elif space == ops.CASES:
            case = ops.decode_case(value)
            self._rows["cases"][key] = msgspec.structs.astuple(case)
        elif space == ops.FILES:
            self._rows["files"][key] = _file_row(ops.decode_file(value))
        elif space == ops.WINDOWS:
            self._rows["windows"][key] = _window_row(ops.decode_window(value))
        elif space == ops.ADJUSTMENTS:
            self._rows["adjustments"][key] = msgspec.structs.astuple(ops.decode_adjustment(value))
        elif space == ops.META and key == _CONCILIATION_KEY:
            self._rows["sealed"][key] = ("conciliation", value)
            self._retain((value,))
        elif space in self._by_space:
            for table, name, row in self._by_space[space].rows(space, key, value):
                self._rows[table][name] = row

    def _retain(self, row: tuple[bytes] | None) -> None:
        """The conciliation key outlives a rotation of the master key."""
        if row is None or self._master is None:
            return
        # What an earlier rotation kept is sealed under a key that is gone: the newest counts.
        with contextlib.suppress(UnsealError):
            self._master.retain("conciliation", row[0])
            self._document_key.cache_clear()

    def _look_ahead(self) -> None:
        """Before a first pass: operations of before a rotation are hashed with the same key."""
        reader, newest = Reader(self._journal), b""
        while (group := reader.next()) is not None:
            for kind, payload in group.records():
                if kind == RECORD_PUT and payload[0] == ops.META:
                    _, key, value = parse_put(payload)
                    newest = value if key == _CONCILIATION_KEY else newest
        reader.close()
        self._retain((newest,) if newest else None)

    def _document_hash(self, o: RedOperation) -> str:
        if self._master is None or not o.document[1]:
            return ""
        return document_hash(self._document_key(o.network), *o.document)

    def _make_document_key(self, network: str) -> bytes:
        assert self._master is not None, "the caller has looked"
        return network_key(self._master.subkey("conciliation"), network)

    def _tell_holder(self, hold: CeiboHold) -> None:
        """The holder's app is told of every outcome, with the figures the till never sees.

        Of a deposit in suspense that is not approved: so far the money is nobody's.
        """
        if hold.internal in (ops.IN_SUSPENSE, ops.ADJUSTED):
            return
        what = {ACTIVA: "", CAPTURADA: "approved", LIBERADA: "released"}.get(hold.state, "declined")
        if hold.compensated:
            what = "annulled"
        if not what or not hold.card:
            return
        identity = f"{_name(hold)}:{what}"
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


def _register_row(o: RedOperation, hashed: str) -> tuple[Any, ...]:
    document = norms.mask_identity(o.document)
    return (
        o.reference, o.operation, o.kind, o.network, o.terminal, o.branch, o.cashier, o.trace,
        o.amount, o.currency, document, o.state, o.code, o.key, o.authorization, o.business_date,
        o.fee, o.commission, o.received_ns, o.owed, o.original, o.supervisor, ops.encode(o.history),
        o.registered_ns, hashed, _undone_ns(o.history, ERROR),
    )  # fmt: skip


def _file_row(f: FileRecord) -> tuple[Any, ...]:
    return (
        f.network, f.business_date, f.version, f.sha256, f.details, f.cash_out, f.deposit,
        f.commission, f.state, f.taken_ns, ops.encode(f.counts),
    )  # fmt: skip


def _window_row(w: Window) -> tuple[Any, ...]:
    return (
        w.number, w.currency, w.state, w.opened_ns, w.closed_ns, ops.encode(w.positions),
    )  # fmt: skip


def _platform_row(o: SicoopOperation) -> tuple[Any, ...]:
    return (
        o.reference, o.operation, o.kind, o.network, o.terminal, o.branch, o.cashier, o.amount,
        o.currency, o.state, o.code, o.key, o.authorization, o.business_date, o.fee, o.commission,
        o.received_ns, o.owed, o.reason, o.attempts, o.annulled, o.limits_version, o.issuer,
        ops.encode(o.history), _undone_ns(o.history, REVERSADA),
    )  # fmt: skip


def _undone_ns(history: list[tuple[str, int]], state: str) -> int:
    """When an operation came to the state in which it is undone; 0: it is not."""
    return history[-1][1] if history and history[-1][0] == state else 0


def _name(hold: CeiboHold) -> str:
    """A hold among those of all hosts; those of sicoop, near or far, go by their number alone."""
    prefix = "" if hold.link in ("", "sicoop") else hold.link + ":"
    return f"{prefix}{hold.network}{hold.operation}"


def _hold_row(h: CeiboHold) -> tuple[Any, ...]:
    date = day_date(h.day).isoformat() if h.day else ""
    return (
        _name(h), h.operation, h.network, h.terminal, h.branch, h.card, h.kind, h.amount,
        h.currency, h.state, h.code, h.key, h.authorization, date, h.internal, h.fee, h.commission,
        h.forced, h.compensated, h.link, h.created_ns, ops.encode(h.history),
    )  # fmt: skip
