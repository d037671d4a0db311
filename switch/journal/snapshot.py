"""Snapshots: the whole state in one file, so that recovery need not start at the first record.

    magic 8 · header length 4 · header (MessagePack) · sections · SHA-256 of all before it

A section is a sequence of chunks, each 4 bytes of length and its bytes, ended by a zero length.
Sections are the ledger and the record store. Files are written beside their final name, synced and
renamed; two generations are kept. A snapshot is made by a follower, never by the live node (see
docs/decisions/0002).
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from core_ext import Ledger, Records
from core_ext._journal import Position
from switch.journal.removal import clear_gone, remove_gently

MAGIC = b"TRNCSNP1"
GENERATIONS = 2
READ_BYTES = 256 * 1024
# Made durable as it is written: a group of the journal waits behind so much of it, not behind all.
SYNC_BYTES = 512 * 1024


class SnapshotError(Exception):
    """A snapshot file cannot be used; says which and why."""


class Header(msgspec.Struct, frozen=True):
    """Where in the journal the state stands, and what it must digest to."""

    seq: int
    chain: bytes
    segment: int
    offset: int
    ledger_digest: int
    records_digest: int


def files(directory: Path) -> list[Path]:
    """Snapshots of a data directory, newest first."""
    return sorted(directory.glob("snapshot-*.trn"), reverse=True)


def sequence(path: Path) -> int:
    """The journal sequence a snapshot file stands at, from its name."""
    return int(path.stem.partition("-")[2])


def age_s(directory: Path, now_ns: int) -> float:
    """Seconds since the newest snapshot was written; 0 where there is none."""
    found = files(directory)
    return max(now_ns / 1e9 - found[0].stat().st_mtime, 0.0) if found else 0.0


def write(directory: Path, position: Position, ledger: Ledger, records: Records) -> Path:
    """Write a snapshot of state at a journal position; returns its path once it is durable."""
    header = Header(
        position.seq, position.chain, position.segment, position.offset, ledger.digest(),
        records.digest(),
    )  # fmt: skip
    path = directory / f"snapshot-{position.seq:020d}.trn"
    partial = path.with_suffix(".part")
    _clear_partial(directory)
    clear_gone(directory)
    with open(partial, "wb", opener=_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            _write_all(file, header, (ledger.dump(), records.dump()))
            os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)  # of a full disk, above all
            raise
        partial.rename(path)
    _sync_directory(directory)
    for old in files(directory)[GENERATIONS:]:
        remove_gently(old)
    return path


def load_newest(
    directory: Path, ledger: Ledger, records: Records, *, gently: bool = False
) -> Header | None:
    """Load the newest snapshot into empty state; None where there is none.

    Args:
        gently: read no further ahead than asked, as a node is writing to the same disk.

    Raises:
        SnapshotError: the newest is damaged. The older generation is there for `restore`; falling
            back silently could hide a failing disk.
    """
    found = files(directory)
    return load(found[0], ledger, records, gently=gently) if found else None


def load(path: Path, ledger: Ledger, records: Records, *, gently: bool = False) -> Header:
    """Load one snapshot file into empty state, checking its hash and digests."""
    with open(path, "rb") as file:
        if gently:  # checking its hash brings it into memory, in the pieces that are asked for
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        header = _checked_header(path, file)
        try:
            ledger.load(_chunks(file))
            records.load(_chunks(file))
        except ValueError as error:
            raise SnapshotError(f"{path}: {error}") from error
    if (ledger.digest(), records.digest()) != (header.ledger_digest, header.records_digest):
        raise SnapshotError(f"{path}: the state in it is not the state it was made of")
    return header


def inspect(path: Path) -> Header:
    """Return the header of a snapshot file whose hash is right, without loading its state."""
    with open(path, "rb") as file:
        return _checked_header(path, file)


def _checked_header(path: Path, file: BinaryIO) -> Header:
    """Check the hash of the whole file; it is left standing behind the header."""
    _check_hash(path, file)
    file.seek(len(MAGIC))
    size = int.from_bytes(file.read(4))
    return msgspec.msgpack.decode(file.read(size), type=Header)


def _write_all(file: BinaryIO, header: Header, sections: Iterable[Iterator[bytes]]) -> None:
    digest = hashlib.sha256()
    unsynced = 0

    def put(data: bytes) -> None:
        nonlocal unsynced
        for at in range(0, len(data), SYNC_BYTES):
            piece = memoryview(data)[at : at + SYNC_BYTES]
            digest.update(piece)
            file.write(piece)
            unsynced += len(piece)
            if unsynced >= SYNC_BYTES:
                file.flush()
                os.fdatasync(file.fileno())
                unsynced = 0

    raw = msgspec.msgpack.encode(header)
    put(MAGIC)
    put(len(raw).to_bytes(4))
    put(raw)
    for section in sections:
        for chunk in section:
            put(len(chunk).to_bytes(4))
            put(chunk)
        put(bytes(4))
    file.write(digest.digest())
    file.flush()


def _clear_partial(directory: Path) -> None:
    """Remove what killed makers left behind; one that is at work has its file locked."""
    for path in directory.glob("snapshot-*.part"):
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink(missing_ok=True)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while size := int.from_bytes(file.read(4)):
        chunk = file.read(size)
        if len(chunk) != size:
            raise ValueError("the file ends within a chunk")
        yield chunk


def _check_hash(path: Path, file: BinaryIO) -> None:
    left = os.fstat(file.fileno()).st_size - 32
    digest = hashlib.sha256()
    if left < len(MAGIC) or file.read(len(MAGIC)) != MAGIC:
        raise SnapshotError(f"{path}: not a snapshot")
    digest.update(MAGIC)
    left -= len(MAGIC)
    while left > 0:
        data = file.read(min(left, READ_BYTES))
        digest.update(data)
        left -= len(data)
    if file.read(32) != digest.digest():
        raise SnapshotError(f"{path}: damaged, its hash does not match")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
