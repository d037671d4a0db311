"""What a snapshot costs those who are served meanwhile: an open loop while snapshots are made.

The node has a large state and so little journal between two snapshots that one follows the other;
the same load is set against a node that makes none. A snapshot is made by a follower process, which
takes memory bandwidth, a CPU and the disk from the node; it is watched by its `.part` file.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.load import open_loop
from bench.load.cash_out import Provisioned
from bench.load.server import BenchError, Say, ServerProcess

EVERY_BYTES = 4 << 20
NEVER_BYTES = 1 << 40
LOOK_S = 0.02


def run(
    rate_per_s: float = 5000.0,
    seconds: float = 20.0,
    *,
    connections: int = 64,
    cards: int = 200_000,
    verify: bool = False,
    pin: bool = False,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure both; the answer is what `troncal bench snapshots --json` prints.

    Args:
        cards: in the state, each with an account and a holder, beside what the load leaves.

    The others are those of `open_loop.run`. Raises BenchError too where no snapshot was made.
    """
    found: dict[str, Any] = {}
    for name, every in (("without", NEVER_BYTES), ("with", EVERY_BYTES)):
        say(f"{name} snapshots")
        found[name] = open_loop.run(
            rate_per_s, connections, seconds, verify=verify, pin=pin, directory=directory,
            beside=_watched, cards=cards, say=say, journal_snapshot_every_bytes=every,
        )  # fmt: skip
    if not found["with"]["snapshots"]:
        raise BenchError("no snapshot was made in that time")
    return {
        "rate_wanted_per_s": rate_per_s,
        "cards": cards,
        "snapshots": found["with"]["snapshots"],
        "snapshot_s": found["with"]["snapshot_s"],
        "p99_ms": found["with"]["p99_ms"],
        "p99_without_ms": found["without"]["p99_ms"],
        **found,
    }


@contextmanager
def _watched(node: ServerProcess, made: Provisioned) -> Iterator[dict[str, Any]]:
    """How many snapshots are made while the block lasts, and for how long one is under way."""
    data = made.config.parent / "data"
    seen: dict[str, Any] = {"snapshots": 0, "snapshot_s": 0.0}
    over = threading.Event()

    def watch() -> None:
        known = set(data.glob("snapshot-*.trn"))
        last_s = time.monotonic()
        while not over.wait(LOOK_S):
            now_s = time.monotonic()
            if any(data.glob("snapshot-*.part")):
                seen["snapshot_s"] = round(seen["snapshot_s"] + now_s - last_s, 3)
            last_s = now_s
            fresh = set(data.glob("snapshot-*.trn")) - known
            seen["snapshots"] += len(fresh)
            known |= fresh

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
