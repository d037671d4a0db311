"""SQLite beside a node that writes to the same disk: as safe as ever, and durable in pieces.

With `synchronous = NORMAL` SQLite hands megabytes to the disk in one go at each checkpoint, twice:
the log, then the tables. A group of the journal that comes then waits behind them, some ten
milliseconds. Here SQLite itself makes nothing durable while it is at work. What it would do is done
in the same order, but piece by piece: the log, before its pages go to the tables; then the tables,
before the next transaction may overwrite the log.

One writer at a time is meant. A second one (of a node that was killed and started again) might
overwrite the log a moment too early: that counts only if the machine loses power in that moment.
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

from core_ext._breaks import write_out

CHANGES: Final = 2_000
"""Rows written from one checkpoint to the next: some megabytes of log."""


class Checkpoints:
    """Takes over the durability of a connection that writes.

    Args:
        db: in autocommit mode, no transaction open. path: of its file.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._made_at = 0
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA wal_autocheckpoint = 0")

    def committed(self) -> None:
        """Behind each transaction: makes a checkpoint when enough has gathered."""
        if self._db.total_changes - self._made_at >= CHANGES:
            self.make()

    def make(self) -> None:
        """Make all that was committed durable, in the tables as far as readers let it.

        Raises:
            OSError: the disk failed; nobody was promised anything.
        """
        self._made_at = self._db.total_changes
        _write_out(Path(f"{self._path}-wal"))
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        _write_out(self._path)

    def close(self) -> None:
        """Close the connection; SQLite itself makes durable what is left."""
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.close()


def _write_out(path: Path) -> None:
    with open(path, "rb") as file:
        write_out(file.fileno(), os.fstat(file.fileno()).st_size)
