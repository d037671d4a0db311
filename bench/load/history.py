"""What past operations cost: a cash_out measured again and again while their number grows.

One node; between two measurements deposits of a load of their own fill its history, so that they
stand in memory and in the journal as any other. Then what recovery costs: the node is killed, and
its whole journal is replayed in this process, without any snapshot.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.load import cash_out, traffic
from bench.load._client import Load
from bench.load.server import (
    BenchError,
    Say,
    ServerProcess,
    allow_files,
    ceiling,
    loaded,
    pinned,
    serve,
)
from switch import config as configs
from switch.journal.store import State

OPERATIONS_MAX = 50_000_000
CARDS_PER_S = 40_000
FILLERS = 16  # terminals
FILLING_DEPTH = 32
FILLING_S = 5.0
DEPOSITS = 100_000  # distinct payloads; they go round
NEVER_BYTES = 1 << 40


def run(
    operations: Sequence[int] = (0, 10_000, 100_000, 1_000_000),
    connections: int = 64,
    seconds: float = 3.0,
    *,
    records: int = 0,
    verify: bool = False,
    pin: bool = False,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure; the answer is what `troncal bench history --json` prints.

    Args:
        operations: past operations at each measurement, rising, at most 50 million.
        connections: terminals under load, in lock step while they are measured.
        seconds: of each measurement.
        records: go on filling until the journal has so many, before recovery is measured.

    The others are those of `cash_out.run`, and so is what it raises.
    """
    marks = sorted(operations)
    if not marks or not marks[0] >= 0 or marks[-1] > OPERATIONS_MAX:
        raise ValueError(f"past operations are 0..{OPERATIONS_MAX}")
    if not 0 < seconds <= 30:
        raise ValueError("seconds must be in 0..30")
    each = int((seconds + 1) * CARDS_PER_S)
    allow_files(connections + 200)
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        say(f"making {connections} terminals and {each * len(marks)} cards")
        made = cash_out.provision(
            Path(root), connections + FILLERS, each * len(marks),
            journal_snapshot_every_bytes=NEVER_BYTES,
        )  # fmt: skip
        if pin:
            stack.enter_context(pinned(cpus[-1]))
        with serve(made.config, cpu=cpus[0] if pin else None) as node:
            filling = _Filling(node, made, connections, verify, stack)
            rows = []
            for turn, past in enumerate(marks):
                filling.until_operations(past, say)
                say(f"measuring after {past} operations")
                cards = made.cards[turn * each : (turn + 1) * each]
                rows.append(filling.measured(past, cash_out.fresh(cards), seconds))
            filling.until_records(records, say)
            node.kill()
        echo = ceiling(connections, cash_out.fresh(made.cards[:1000]), seconds / 3)
        say("recovering")
        recovery = recovered(made.config)
    first = rows[0]["server_cpu_us_per_operation"]
    return {
        "rows": rows,
        "cpu_ratio": round(rows[-1]["server_cpu_us_per_operation"] / max(first, 0.01), 3),
        "filled_per_s": filling.rate_per_s,
        "recovery": recovery,
    } | echo


class _Filling:
    """A node with its terminals signed on, and how to give it a past."""

    def __init__(
        self, node: ServerProcess, made: cash_out.Provisioned, connections: int, verify: bool,
        stack: ExitStack,
    ) -> None:  # fmt: skip
        self._node = node
        self._connections = connections
        signed = stack.enter_context(cash_out.signed_on(node.address("terminals"), made.terminals))
        # Traces belong to a terminal, so those that fill are others than those that are measured.
        self._load: Load = cash_out.driven(signed[:connections], verify=verify)
        self._filler: Load = cash_out.driven(signed[connections:], depth=FILLING_DEPTH)
        self._deposits = traffic.requests(made.cards, "deposit=1", DEPOSITS)
        self._past = 0
        self._spent_s = 0.0
        self._filled = 0

    @property
    def rate_per_s(self) -> float:
        """Deposits a second while filling; 0 where none were needed."""
        return round(self._filled / self._spent_s, 1) if self._filled else 0.0

    def until_operations(self, past: int, say: Say) -> None:
        if self._past < past:
            say(f"filling up to {past} operations")
        while self._past < past:
            self._fill(past - self._past)

    def until_records(self, records: int, say: Say) -> None:
        name = "troncal_journal_records_total"
        while (found := self._node.metric(name)) < records:
            say(f"filling: {found:.0f} of {records} records")
            self._fill(OPERATIONS_MAX)

    def _fill(self, at_most: int) -> None:
        """Deposits for some seconds, or so many and some in flight. Raises BenchError."""
        began = time.monotonic()
        some = self._deposits[:at_most]
        report = self._filler.run(some, FILLING_S, repeat=len(some) == len(self._deposits))
        if report.errors or set(report.codes) != {"00"}:
            raise BenchError(f"deposits failed: {report.codes}, {report.errors} errors")
        self._spent_s += time.monotonic() - began
        self._filled += report.latency.count
        self._past += report.latency.count

    def measured(self, past: int, payloads: list[bytes], seconds: float) -> dict[str, Any]:
        before = self._past
        found = loaded(
            self._load, payloads, seconds, connections=self._connections, depth=1,
            cpu_s=self._node.cpu_s,
        )  # fmt: skip
        if found["errors"] or found["declined"]:
            raise BenchError(f"cash_outs failed: {found['codes']}, {found['errors']} errors")
        self._past += found["operations"]
        memory = self._node.memory_bytes()
        return {"past": past, "past_really": before, "memory_bytes": memory} | found


def recovered(config_file: Path) -> dict[str, Any]:
    """Replay a journal as a start does, in this process; how much it was and how long it took."""
    config = configs.load(config_file, environ={})
    state = State(config, config.data)
    cpu_s = time.process_time()
    state.recover()
    spent_s = time.process_time() - cpu_s
    recovery = state.recovery
    return {
        "records": recovery.records,
        "journal_bytes": recovery.journal_bytes,
        "seconds": round(recovery.seconds, 3),
        "cpu_s": round(spent_s, 3),
        "records_per_s": round(recovery.rate_per_s),
        "ten_million_s": round(1e7 / max(recovery.rate_per_s, 1), 2),
        "digests_checked": state.digests_checked,
    }
