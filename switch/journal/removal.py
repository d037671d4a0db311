"""Removing large files beside a node that writes to the same disk.

Where a file system tells its disk what is free (`discard`), removing 32 MiB keeps the disk from
everything else for 8 ms here, and a gigabyte for a quarter of a second. So a file is cut from its
end, piece by piece: a group of the journal waits behind one piece, half a millisecond.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

PIECE_BYTES = 1 << 20
PAUSE_S = 0.002
GONE = ".gone"


def remove_gently(path: Path | str) -> None:
    """Remove a file in pieces. It loses its name at once, so that nobody takes it for a whole one.

    Whoever is killed meanwhile leaves a file that ends in `.gone`; see `clear_gone`.
    """
    gone = Path(f"{path}{GONE}")
    with suppress(FileNotFoundError):  # somebody else does the same
        os.rename(path, gone)
        _cut(gone)


def clear_gone(directory: Path) -> None:
    """Go on with what was left behind in a directory."""
    for path in directory.glob(f"*{GONE}"):
        with suppress(FileNotFoundError):
            _cut(path)


def _cut(path: Path) -> None:
    with open(path, "r+b") as file:
        left = file.seek(0, os.SEEK_END)
        while left > PIECE_BYTES:
            left -= PIECE_BYTES
            file.truncate(left)
            os.fsync(file.fileno())  # else a file system with a journal frees many pieces at once
            time.sleep(PAUSE_S)
    path.unlink()
