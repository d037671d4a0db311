"""The read model: operations as nodes of one, two or three roles know them, and what is owed."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from switch.cli import setup
from switch.config import Config, load
from switch.flows import operations as ops
from switch.flows.operations import CeiboHold, RedOperation, SicoopOperation
from switch.journal import projector, queries
from switch.journal.projector import Projector
from switch.node import Node
from switch.ops.keys import MasterKey
from tests.house import House, ManualClock

SMALL = {
    "journal_segment_bytes": 1 << 20,
    "journal_group_bytes_max": 1 << 16,
    "journal_reserve_bytes": 1 << 16,
}
DAY = 20_779  # 2026-11-22


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    setup.make(directory, **SMALL)
    return directory


@pytest.fixture
def config(template: Path, tmp_path: Path) -> Config:
    shutil.copytree(template, tmp_path / "n")
    return load(tmp_path / "n" / "troncal.toml", environ={})


class Writer:
    """Puts records of operations as the flows do, and brings the read model up to them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        master = MasterKey.load(config.file(config.node.master_key_file), {})
        self.node = Node(config, master, ManualClock(), config.data)
        self.node.open()
        self._projector: Projector | None = None

    def put(self, *operations: RedOperation | SicoopOperation | CeiboHold) -> None:
        step = self.node.begin()
        records = self.node.store.records
        for o in operations:
            match o:
                case RedOperation():
                    records.put(ops.RED_OPERATIONS, o.reference.encode(), ops.encode(o))
                case SicoopOperation():
                    records.put(ops.SICOOP_OPERATIONS, o.reference.encode(), ops.encode(o))
                case CeiboHold():
                    key = (o.network + o.operation).encode()
                    records.put(ops.CEIBO_HOLDS, key, ops.encode(o))
        self.node.end(step)
        self.node.store.commit()

    @property
    def path(self) -> Path:
        if self._projector is None:
            self._projector = Projector(self.config, self.config.data)
        self._projector.catch_up()
        return self._projector.path

    def close(self) -> None:
        if self._projector is not None:
            self._projector.close()
        self.node.close()


@pytest.fixture
def writer(config: Config) -> Iterator[Writer]:
    writer = Writer(config)
    yield writer
    writer.close()


def reference(trace: int) -> str:
    return f"00120000001720261122{trace:06d}"


def red(trace: int, **changes: Any) -> RedOperation:
    values: dict[str, Any] = {
        "reference": reference(trace), "kind": "cash_out", "network": "0012",
        "terminal": "00000017", "branch": "000017", "cashier": "000045", "trace": trace,
        "amount": 1000, "currency": "PYG", "document": ("CI", "4567890"), "fingerprint": 1,
        "received_ns": trace, "state": "REGISTRADA", "operation": f"26326{trace:07d}",
        "history": [("INICIADA", trace), ("REGISTRADA", trace + 5)],
    }  # fmt: skip
    return RedOperation(**values | changes)


def sicoop(trace: int, **changes: Any) -> SicoopOperation:
    values: dict[str, Any] = {
        "reference": reference(trace), "network": "0012", "operation": f"26326{trace:07d}",
        "kind": "cash_out", "amount": 1000, "currency": "PYG", "terminal": "00000017",
        "branch": "000017", "cashier": "000045", "fingerprint": 1, "received_ns": trace,
        "business_date": "2026-11-22", "day": DAY, "state": "CONFIRMADA",
        "history": [("RECIBIDA", trace + 1), ("CONFIRMADA", trace + 4)],
    }  # fmt: skip
    return SicoopOperation(**values | changes)


def ceibo(trace: int, **changes: Any) -> CeiboHold:
    values: dict[str, Any] = {
        "network": "0012", "operation": f"26326{trace:07d}", "kind": "cash_out", "amount": 1000,
        "currency": "PYG", "fingerprint": 1, "created_ns": trace, "day": DAY, "state": "CAPTURADA",
        "card": "card-000001", "terminal": "00000017", "branch": "000017",
        "history": [("ACTIVA", trace + 2), ("CAPTURADA", trace + 6)],
    }  # fmt: skip
    return CeiboHold(**values | changes)


def states(rows: list[dict[str, Any]]) -> list[tuple[int, str, str | None, str | None]]:
    return [(row["received_ns"], row["state"], row["sicoop"], row["ceibo"]) for row in rows]


def test_every_role_is_listed_once(writer: Writer) -> None:
    """All roles here; sicoop and ceibo here; ceibo alone; red with the rest elsewhere."""
    writer.put(red(1), sicoop(1), ceibo(1))
    writer.put(sicoop(2), ceibo(2))
    writer.put(ceibo(3))
    writer.put(red(4))
    rows = queries.operations(writer.path)
    assert states(rows) == [
        (4, "REGISTRADA", None, None),
        (3, "", "", "CAPTURADA"),
        (2, "", "CONFIRMADA", "CAPTURADA"),
        (1, "REGISTRADA", "CONFIRMADA", "CAPTURADA"),
    ]
    assert len({tuple(row) for row in rows}) == 1, "one set of columns, for tables and exports"
    assert rows[2]["trace"] == 2
    assert rows[1]["business_date"] == "2026-11-22"
    assert rows[0]["document"] == "CI ****890"


def test_the_role_before_may_come_later(writer: Writer) -> None:
    """An operation that was projected alone is not listed twice when red's record follows."""
    writer.put(ceibo(1))
    assert len(queries.operations(writer.path)) == 1
    writer.put(sicoop(1))
    assert len(queries.operations(writer.path)) == 1
    writer.put(red(1))
    assert states(queries.operations(writer.path)) == [(1, "REGISTRADA", "CONFIRMADA", "CAPTURADA")]


def test_filters_and_limit_hold_for_all(writer: Writer) -> None:
    writer.put(*(sicoop(n, state="RESPONDIDA") for n in range(1, 6)))
    writer.put(sicoop(6, terminal="00000018"), ceibo(7, state="LIBERADA"), red(8))
    path = writer.path
    assert [r["received_ns"] for r in queries.operations(path, limit=3)] == [8, 7, 6]
    assert len(queries.operations(path, state="RESPONDIDA")) == 5
    assert len(queries.operations(path, state="LIBERADA")) == 1
    assert [r["received_ns"] for r in queries.operations(path, terminal="00000018")] == [6]
    assert [r["received_ns"] for r in queries.operations(path, since_ns=7)] == [8, 7]


@pytest.mark.parametrize("number", [reference(2), "263260000002"])
def test_one_operation_of_a_networks_session(writer: Writer, number: str) -> None:
    writer.put(sicoop(2), ceibo(2))
    found = queries.operation(writer.path, number)
    assert found is not None
    assert [(e["role"], e["state"]) for e in found["timeline"]] == [
        ("sicoop", "RECIBIDA"),
        ("ceibo", "ACTIVA"),
        ("sicoop", "CONFIRMADA"),
        ("ceibo", "CAPTURADA"),
    ]
    assert found["annulments"] == []
    assert queries.operation(writer.path, "9" * len(number)) is None


def test_one_operation_of_a_ceibo_alone(writer: Writer) -> None:
    writer.put(ceibo(3))
    found = queries.operation(writer.path, "263260000003")
    assert found is not None
    assert [e["role"] for e in found["timeline"]] == ["ceibo", "ceibo"]
    assert found["card"] == "card-000001"


def test_what_is_owed(writer: Writer) -> None:
    writer.put(red(1, owed="confirm"), sicoop(1), red(2))
    writer.put(sicoop(3, owed="release", reason="timeout", issuer="ceibo"))
    told = [(r["role"], r["owed"], r["issuer"]) for r in queries.owed(writer.path)]
    assert told == [("red", "confirm", ""), ("sicoop", "release", "ceibo")]
    writer.put(red(1), sicoop(3))
    assert queries.owed(writer.path) == []


def test_a_read_model_of_another_version_is_made_anew(config: Config) -> None:
    with contextlib.closing(sqlite3.connect(config.data / projector.FILE_NAME)) as db:
        db.execute("CREATE TABLE progress (one INTEGER, version INTEGER, seq INTEGER)")
        db.execute("CREATE TABLE platform (reference TEXT PRIMARY KEY)")
        db.execute("INSERT INTO progress VALUES (1, 1, 5)")
        db.commit()
    writer = Writer(config)
    try:
        writer.put(sicoop(1))
        assert len(queries.operations(writer.path)) == 1
    finally:
        writer.close()


def test_lists_do_not_read_what_other_roles_know(writer: Writer) -> None:
    """In a node of all roles, nothing is searched for operations of others: there are none."""
    writer.put(*(o for n in range(1, 50) for o in (red(n), sicoop(n), ceibo(n))))
    with contextlib.closing(sqlite3.connect(writer.path)) as db:
        for table in ("platform", "holds"):
            assert db.execute(f"SELECT count(*) FROM {table} WHERE alone = 1").fetchone() == (0,)
            sql, values = queries._newest(table, None, None, 0, 50)
            plan = " ".join(str(row) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
            assert f"{table}_alone" in plan


def test_two_projectors_never_put_older_rows_over_newer_ones(tmp_path: Path) -> None:
    """That of a killed node may still be writing when the next one's has begun."""
    house = House(tmp_path)
    house.cash_out(50_000, trace=1)
    house.node.store.commit()
    config, data = house.node.config, house.node.config.data
    slow, quick = Projector(config, data), Projector(config, data)
    try:
        while slow._reader.next() is not None:  # it has read so far, and not written yet
            pass
        for kind in ("register", "platform", "holds"):
            slow._rows[kind].clear()
        quick.catch_up()
        assert slow._reader.position == quick._begun_at
        house.cash_out(50_000, trace=2)
        house.node.store.commit()
        slow._write()  # of what it had read: not alone any more
        assert slow._begun_at == quick._begun_at
        assert slow.catch_up() > 0
        assert quick.catch_up() > 0
        assert slow._position() == quick._begun_at
        count = slow._db.execute("SELECT count(*) FROM register").fetchone()
        assert count == (2,)
    finally:
        slow.close()
        quick.close()
        house.close()
