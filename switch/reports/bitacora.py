"""The Bitácora's files, made from durable records: every line once, whatever happens in between.

Each payment that is decided leaves one record with a number of its own, in the order of the
journal; the files are a projection of these. A line is appended and on disk before its number is
noted. A stop in between is found at the next start by what is in the file beyond the noted length:
a part of what comes next is completed; anything else is not ours: the file is moved aside, and made
again from the journal.
"""

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from core_ext import Reader
from protocols.webpay import bitacora
from protocols.webpay.pairs import parse_pairs
from switch.flows.webpay_records import LINES, Line, decode_line
from switch.journal.records import parse_put
from switch.sections.webpay import Files

CURSOR: Final = "bitacora.sqlite"
RECORD_PUT: Final = 64
BATCH_LINES: Final = 1024
CONFLICTS_MAX: Final = 10_000

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS cursor (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, bytes INTEGER) STRICT, WITHOUT ROWID;
"""


class BitacoraWriter:
    """Writes lines in the order of their numbers. One thread at a time.

    Args:
        top: the directory of the files.

    Attributes:
        number: of the newest line on disk.
        counts: lines written since the start, by prefix.

    Raises:
        OSError, sqlite3.Error: the directory or the cursor cannot be used.
    """

    def __init__(self, data: Path, top: Path, files: Files) -> None:
        self._journal = str(data / "journal")
        self._top = top
        self._files = files
        self._told: list[tuple[str, str]] = []
        top.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._db = sqlite3.connect(data / CURSOR, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)
        self._lengths: dict[str, int] = dict(self._db.execute("SELECT path, bytes FROM files"))
        row = self._db.execute("SELECT number FROM cursor").fetchone()
        self.number: int = 0 if row is None else row[0]
        self.counts: dict[str, int] = {}

    def close(self) -> None:
        self._db.close()

    def told(self) -> list[tuple[str, str]]:
        """Files that were not as they were left, since the last time: what of them, and which."""
        told, self._told = self._told, []
        return told

    def write(self, lines: Iterable[Line]) -> None:
        """Write those of these lines that are not on disk yet.

        Args:
            lines: durable; in any order, but with none missing between them and `number`.

        Raises:
            OSError: a file cannot be written, such as on a full disk: given again, they go on.
        """
        new = {line.number: line for line in lines if line.number > self.number}
        todo = [new[number] for number in sorted(new)]
        for at in range(0, len(todo), BATCH_LINES):
            self._batch(todo[at : at + BATCH_LINES])

    def _batch(self, lines: Sequence[Line]) -> None:
        pending: dict[str, list[bytes]] = {}
        for line in lines:
            path, text = self._line(line)
            pending.setdefault(path, []).append(text)
        lengths = {path: self._append(path, b"".join(texts)) for path, texts in pending.items()}
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", lengths.items())
        self._db.execute("INSERT OR REPLACE INTO cursor VALUES (1, ?)", (lines[-1].number,))
        self._db.execute("COMMIT")
        self._lengths |= lengths
        self.number = lines[-1].number
        for line in lines:
            self.counts[line.prefix] = self.counts.get(line.prefix, 0) + 1

    def _line(self, line: Line) -> tuple[str, bytes]:
        """The file of a line, and its text."""
        pairs = parse_pairs(line.message)
        text = bitacora.line(
            line.prefix, line.merchant, pairs, line.signature.hex(), self._files.style
        )
        name = bitacora.file_name(pairs)
        if self._files.layout == "flat":
            return name, text
        return f"{line.merchant}/{line.year:04}/{name}", text

    # ---- one file

    def _append(self, path: str, text: bytes) -> int:
        """Make the file go on with `text`, once, behind what was noted of it; its length then."""
        noted = self._lengths.get(path, 0)
        file = self._top / path
        size = file.stat().st_size if file.exists() else 0
        extra = b""
        if size < noted:
            noted = self._rebuild(path, noted)
        elif size > noted:
            with file.open("rb") as known:
                known.seek(noted)
                extra = known.read()
            if not (text.startswith(extra) or extra.startswith(text)):
                self._set_aside(path, noted)
                extra = b""
        if not extra.startswith(text):
            _write(file, text[len(extra) :])
        return noted + len(text)

    def _set_aside(self, path: str, noted: int) -> None:
        """Keep a file with lines that are not ours under another name, and make it again.

        What the journal does not hold any more is taken over as it stood there.
        """
        file = self._top / path
        other = next(
            name
            for number in range(1, CONFLICTS_MAX)
            if not (name := file.with_name(f"{file.name}.conflict-{number}")).exists()
        )
        with file.open("rb") as known:
            ours = known.read(noted)
        file.rename(other)
        held = self._held(path, noted)
        _write(file, held if len(held) == noted else ours)
        self._told.append(("webpay_bitacora_conflict", path))

    def _rebuild(self, path: str, noted: int) -> int:
        """A file that is gone, or shorter than it was: made again from what the journal holds."""
        file = self._top / path
        text = self._held(path, noted)
        file.unlink(missing_ok=True)
        _write(file, text)
        self._told.append(("webpay_bitacora_rebuilt", path))
        return len(text)

    def _held(self, path: str, noted: int) -> bytes:
        """The first `noted` bytes of a file by the journal, as far as it still goes back."""
        text = b""
        reader = Reader(self._journal)
        while len(text) < noted and (group := reader.next()) is not None:
            for kind, payload in group.records():
                if kind != RECORD_PUT or payload[0] != LINES:
                    continue
                line = decode_line(parse_put(payload)[2])
                where, one = self._line(line)
                # Later ones are still to be written, though the journal has them already.
                text += one if where == path and line.number <= self.number else b""
        reader.close()
        return text[:noted]


def _write(file: Path, text: bytes) -> None:
    """Append and bring to disk, the directory's entry too where the file is new."""
    new = not file.exists()
    if new:
        file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with file.open("ab") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    if new:
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
