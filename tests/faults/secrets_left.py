"""What processes leave behind, searched for what must not be there.

Keys and seeds may stand nowhere but in the master key's own file, in no form; card numbers, CVVs
and one-time codes nowhere at all; documents, phones and names only in the journal and its
snapshots, which hold the operations themselves, and never in what people and other programs read:
logs, the read model, metrics, what commands print.
"""

import base64
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from switch.ops.keys import base32

JOURNAL = ("journal", "snapshot")  # beginnings of directory and file names that hold operations
CODE_BEGINS = (b"\xa6", b'"', b"'", b"=", b" ", b">")
CODE_ENDS = (b'"', b"'", b",", b" ", b"\n", b"<", b"&")


def forms(secret: bytes) -> set[bytes]:
    """All the ways in which bytes are usually written."""
    text = {secret.hex(), secret.hex().upper(), base32(secret)}
    for encoded in (base64.b64encode(secret), base64.urlsafe_b64encode(secret)):
        text.add(encoded.decode().rstrip("="))
    return {secret, *(form.encode() for form in text)}


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def is_read(path: Path, directory: Path) -> bool:
    """Whether people or other programs read it, so that nobody may be named in it."""
    parts = path.relative_to(directory).parts
    return not any(part.startswith(JOURNAL) for part in parts)


def keys_left(directory: Path, secrets: Iterable[bytes], master: Iterable[bytes] = ()) -> list[str]:
    """Files with a key or seed in them; `master` keys may stand in files of their own."""
    searched = {form for secret in secrets for form in forms(secret)}
    kept = {form for secret in master for form in forms(secret)}
    found = []
    for path in files(directory):
        data = path.read_bytes()
        if any(form in data for form in searched):
            found.append(f"{path.name}: a key")
        if not path.name.startswith("master.key") and any(form in data for form in kept):
            found.append(f"{path.name}: the master key")
    return found


def texts_left(directory: Path, everywhere: Iterable[str], read: Iterable[str]) -> list[str]:
    """Files with one of these texts in them; those of `read` may stand in the journal."""
    nowhere, not_read = [t.encode() for t in everywhere], [t.encode() for t in read]
    found = []
    for path in files(directory):
        data = path.read_bytes()
        texts = nowhere + (not_read if is_read(path, directory) else [])
        found += [f"{path.name}: {text.decode()[:4]}…" for text in texts if text in data]
    return found


def codes_left(directory: Path, codes: Iterable[str]) -> list[str]:
    """Files with one of these codes as a value of its own; six digits may also be part of others.

    In the read model every value of every table is looked at.
    """
    codes = set(codes)
    written = [begin + code.encode() for code in codes for begin in CODE_BEGINS[:1]]
    quoted = [
        begin + code.encode() + end
        for code in codes for begin in CODE_BEGINS[1:] for end in CODE_ENDS
    ]  # fmt: skip
    found = []
    for path in files(directory):
        data = path.read_bytes()
        binary = not is_read(path, directory)
        if any(text in data for text in (written if binary else quoted)):
            found.append(f"{path.name}: a code")
        if path.suffix == ".sqlite" and codes & set(_values(path)):
            found.append(f"{path.name}: a code")
    return found


def _values(path: Path) -> Iterator[str]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        for table in tables:
            for row in db.execute(f"SELECT * FROM {table}"):
                yield from (str(value) for value in row)
    finally:
        db.close()
