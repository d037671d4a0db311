"""A read model whose durability is ours: what is in the tables, and when."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_ext._breaks import write_out
from switch.journal.checkpoints import CHANGES, Checkpoints


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(tmp_path / "read.sqlite", isolation_level=None)
    yield made
    made.close()


def write(db: sqlite3.Connection, count: int) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS t (i INTEGER)")
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO t VALUES (?)", ((i,) for i in range(count)))
    db.execute("COMMIT")


def rows_without_log(tmp_path: Path) -> int:
    """How many rows the tables hold by themselves."""
    alone = tmp_path / "alone.sqlite"
    shutil.copyfile(tmp_path / "read.sqlite", alone)
    db = sqlite3.connect(alone)
    try:
        return int(db.execute("SELECT count(*) FROM t").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0
    finally:
        db.close()


def test_the_tables_get_it_once_enough_has_gathered(tmp_path: Path, db: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(db, tmp_path / "read.sqlite")
    write(db, CHANGES - 1)
    checkpoints.committed()
    assert rows_without_log(tmp_path) == 0
    write(db, 1)
    checkpoints.committed()
    assert rows_without_log(tmp_path) == CHANGES
    write(db, 1)
    checkpoints.committed()
    assert rows_without_log(tmp_path) == CHANGES, "counted anew"


def test_a_reader_keeps_its_view_and_the_tables_get_it_later(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    checkpoints = Checkpoints(db, tmp_path / "read.sqlite")
    write(db, 5)
    reader = sqlite3.connect(tmp_path / "read.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (5,)
    write(db, 5)
    checkpoints.make()
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (5,)
    reader.execute("COMMIT")
    checkpoints.make()
    assert rows_without_log(tmp_path) == 10
    reader.close()


def test_the_end_leaves_one_whole_file(tmp_path: Path, db: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(db, tmp_path / "read.sqlite")
    write(db, 7)
    checkpoints.close()
    assert not (tmp_path / "read.sqlite-wal").exists()
    assert rows_without_log(tmp_path) == 7


def test_what_cannot_be_written_out_is_an_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="fdatasync"):
        write_out(writing, 10)
    os.close(reading)
    os.close(writing)
    with (tmp_path / "file").open("wb") as file, pytest.raises(ValueError, match="piece_bytes"):
        write_out(file.fileno(), 10, 0)
