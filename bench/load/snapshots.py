"""What a snapshot costs those who are served meanwhile: an open loop while snapshots are made.

The node has a large state, and one snapshot is made after the other; the same load is set against a
node for which none is made. A snapshot is made by a process of its own, with the very command that
the node gives when its journal has grown; it takes memory bandwidth, an idle CPU and the disk.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.load import open_loop
from bench.load.cash_out import Provisioned
from bench.load.server import BenchError, Say, ServerProcess
from switch.app import FOLLOWER, WAYS

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
    for name, beside in (("without", None), ("with", _made)):
        say(f"{name} snapshots")
        found[name] = open_loop.run(
            rate_per_s, connections, seconds, verify=verify, pin=pin, directory=directory,
            beside=beside, cards=cards, say=say, journal_snapshot_every_bytes=NEVER_BYTES,
        )  # fmt: skip
    if not found["with"]["snapshots"] and not found["with"]["snapshot_s"]:
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
def _made(node: ServerProcess, made: Provisioned) -> Iterator[dict[str, Any]]:
    """Make snapshots while the block lasts; how many, and for how long one was written."""
    data = made.config.parent / "data"
    # As the node runs it.
    command = [*WAYS["nice"], *FOLLOWER, "snapshot", "--json"]
    seen: dict[str, Any] = {"snapshots": 0, "snapshot_s": 0.0}
    over = threading.Event()

    def work() -> None:
        last_s = time.monotonic()
        process = None
        while not over.wait(LOOK_S):
            if process is None or process.poll() is not None:
                seen["snapshots"] += process is not None and process.returncode == 0
                process = subprocess.Popen(
                    [*command, "-c", str(made.config)], stdout=subprocess.DEVNULL
                )
            now_s = time.monotonic()
            if any(data.glob("snapshot-*.part")):
                seen["snapshot_s"] = round(seen["snapshot_s"] + now_s - last_s, 3)
            last_s = now_s
        if process is not None:
            process.kill()
            process.wait()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield seen
    finally:
        over.set()
        worker.join()
