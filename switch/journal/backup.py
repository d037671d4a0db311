"""Copies of a data directory: consistent, complete, provable; of a running node, too.

A backup is a directory of the same form (`journal/`, `snapshot-*.trn`, `keys/`), with a manifest
that names its end and the SHA-256 of every file. Only whole groups are copied: of the last
segment no byte beyond the group that was last when the copy got there. The key pairs of products
come along, their private parts sealed. The master key is not in it, and without that key a backup
says nothing to anybody: keep it elsewhere.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from core_ext import Reader
from core_ext._journal import Position, segment_first_seq, segment_numbers, segment_path
from switch.journal import snapshot

MANIFEST: Final = "manifest.json"
JOURNAL: Final = "journal"
KEYS: Final = "keys"
FORM: Final = 1
COPY_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


class BackupError(Exception):
    """A backup could not be made or cannot be used. `hint` says what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class File(msgspec.Struct, frozen=True):
    """One file of a backup; `name` is relative, with `/`."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds.

    Fields:
        form: version of this form.
        made_ns: when, UTC.
        first_seq, last_seq: records in its journal.
        chain: SHA-256 of its last group, hex: names this history and no other.
    """

    form: int
    made_ns: int
    first_seq: int
    last_seq: int
    chain: str
    files: list[File]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def backup(
    directory: Path, target: Path, *, now_ns: int, progress: Progress = lambda done, total: None
) -> Manifest:
    """Copy the durable state of a data directory into a new or empty directory.

    Raises:
        BackupError: there is nothing to copy, the target is not empty, or the source changed.
        Corruption, SnapshotError: the source is damaged; a copy of damage is no backup.
    """
    _need_empty(target, "choose another target")
    journal = str(directory / JOURNAL)
    if not segment_numbers(journal):
        raise BackupError(f"there is no journal in {directory}", "is this the data directory?")
    snapshots = snapshot.files(directory)
    for path in snapshots:
        snapshot.inspect(path)
    # Snapshots first: the journal then reaches beyond all of them.
    first, end = _walk(journal)
    parts = [(path, path.name, path.stat().st_size) for path in snapshots]
    parts += _segments(journal, first, end)
    parts += _keys(directory)
    total = sum(size for _, _, size in parts)
    done = 0
    made: list[File] = []
    (target / JOURNAL).mkdir(mode=0o700, parents=True)
    for source, name, size in parts:
        (target / name).parent.mkdir(mode=0o700, exist_ok=True)
        made.append(File(name, size, _copy(source, target / name, size)))
        done += size
        progress(done, total)
    first_seq = segment_first_seq(journal, first) or 1
    manifest = Manifest(FORM, now_ns, first_seq, end.seq, end.chain.hex(), made)
    _write(target / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    _sync_directories(target)
    return manifest


def restore(
    source: Path, directory: Path, *, progress: Progress = lambda done, total: None
) -> Manifest:
    """Copy a backup into a new or empty data directory, checking every byte against the manifest.

    Raises:
        BackupError: no backup, a file of it is missing or changed, or the directory is not empty.
            What was copied until then is removed.
    """
    manifest = read_manifest(source)
    _need_empty(directory, "move it away, or name another in the configuration")
    existed = directory.exists()
    (directory / JOURNAL).mkdir(mode=0o700, parents=True)
    os.chmod(directory, 0o700)
    made: list[Path] = []
    done = 0
    try:
        for file in manifest.files:
            made.append(directory / file.name)
            made[-1].parent.mkdir(mode=0o700, exist_ok=True)
            if _copy(source / file.name, made[-1], file.bytes) != file.sha256:
                raise BackupError(f"{source / file.name} is not what the manifest says")
            done += file.bytes
            progress(done, manifest.bytes)
        _sync_directories(directory)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        for name in (JOURNAL, KEYS):
            if (directory / name).is_dir():
                (directory / name).rmdir()
        if not existed:
            directory.rmdir()
        raise
    return manifest


def read_manifest(source: Path) -> Manifest:
    """Read and check a backup's manifest. Raises: BackupError."""
    try:
        manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BackupError(f"{source} is no backup: it has no {MANIFEST}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupError(f"{source / MANIFEST}: {error}") from None
    if manifest.form != FORM:
        raise BackupError(f"{source}: form {manifest.form} is not known to this version")
    for file in manifest.files:
        # A manifest may come from anywhere: it must not name files outside its directory.
        parts = file.name.split("/")
        expected = (len(parts) == 2 and parts[0] in (JOURNAL, KEYS)) or len(parts) == 1
        if not expected or not all(p and not p.startswith(".") and "\0" not in p for p in parts):
            raise BackupError(f"{source / MANIFEST} names a file that is none of a backup")
    return manifest


# ---- pieces


def _need_empty(directory: Path, hint: str) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BackupError(f"{directory} is not empty", hint)


def _walk(journal: str) -> tuple[int, Position]:
    """Check every group up to the present end; returns the first segment and that end."""
    first = segment_numbers(journal)[0]
    first_seq = segment_first_seq(journal, first)
    start = None
    if first_seq > 1:
        # What led here is gone; the first group's own word for it is all there is.
        start = Position(first_seq - 1, _previous_chain(journal, first), first, 0)
    reader = Reader(journal, position=start)
    try:
        while reader.next() is not None:
            pass
        return first, reader.position
    finally:
        reader.close()


def _previous_chain(journal: str, segment: int) -> bytes:
    with open(segment_path(journal, segment), "rb") as file:
        return file.read(80)[48:80]


def _segments(journal: str, first: int, end: Position) -> list[tuple[Path, str, int]]:
    """(file, name in the backup, bytes to copy) of each segment up to the end."""
    found = []
    for number in segment_numbers(journal):
        if not first <= number <= end.segment:
            continue
        path = Path(segment_path(journal, number))
        size = end.offset if number == end.segment else path.stat().st_size
        if size:
            found.append((path, f"{JOURNAL}/{path.name}", size))
    return found


def _keys(directory: Path) -> list[tuple[Path, str, int]]:
    """As `_segments`, of the key store; what a write has left half done is no key."""
    paths = sorted(
        path
        for suffix in ("key", "pub", "periods")
        for path in (directory / KEYS).glob(f"*.{suffix}")
    )
    return [(path, f"{KEYS}/{path.name}", path.stat().st_size) for path in paths]


def _copy(source: Path, target: Path, size: int) -> str:
    """Copy the first `size` bytes, durably; returns their SHA-256."""
    digest = hashlib.sha256()
    left = size
    try:
        with open(source, "rb") as reading, open(target, "xb", opener=_private) as writing:
            while left:
                data = reading.read(min(left, COPY_BYTES))
                if not data:
                    raise BackupError(
                        f"{source} is shorter than it should be",
                        "was it deleted meanwhile? try again",
                    )
                digest.update(data)
                writing.write(data)
                left -= len(data)
            writing.flush()
            os.fsync(writing.fileno())
    except FileNotFoundError:
        raise BackupError(
            f"{source} is gone", "segments were deleted meanwhile? try again"
        ) from None
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb", opener=_private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directories(directory: Path) -> None:
    for path in (directory / JOURNAL, directory / KEYS, directory, directory.parent):
        if not path.is_dir():
            continue
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
