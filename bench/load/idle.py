"""What terminals cost that only keep their connection: memory each, and time for the others.

The same terminals are loaded three times, before the idle ones sign on, beside them, and after they
have left, so that a machine that changes its speed meanwhile shows. Memory is what the node asked
for itself (anonymous), so the kernel's buffers of sockets are not in it.
"""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.load import cash_out
from bench.load.server import (
    SECONDS_MAX,
    BenchError,
    Say,
    allow_files,
    ceiling,
    loaded,
    pinned,
    serve,
)

IDLE_MAX = 10_000
STEPS = 10  # at which memory is looked at
CARDS_PER_S = 40_000


def run(
    idle: int = IDLE_MAX,
    connections: int = 64,
    seconds: float = 5.0,
    *,
    depth: int = 1,
    verify: bool = False,
    pin: bool = False,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure; the answer is what `troncal bench idle --json` prints.

    Args:
        idle: terminals that are signed on and silent.
        connections: terminals under load.
        seconds: of each of the three measurements.

    The others are those of `cash_out.run`, and so is what it raises.
    """
    if not 0 < seconds * 3 <= SECONDS_MAX:
        raise ValueError(f"three times the seconds must be in 0..{SECONDS_MAX:g}")
    if not 1 <= connections + idle <= IDLE_MAX + 1000 or idle < 1:
        raise ValueError("there may be 1 to 10000 idle connections")
    each = int((seconds + 1) * CARDS_PER_S)
    allow_files(connections + idle + 200)
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[0] if pin else None
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        say(f"making {connections + idle} terminals and {3 * each} cards")
        made = cash_out.provision(Path(root), connections + idle, 3 * each)
        if pin:
            stack.enter_context(pinned(cpus[-1]))
        with serve(made.config, cpu=cpu) as node:
            address = node.address("terminals")
            active = stack.enter_context(cash_out.signed_on(address, made.terminals[:connections]))
            load = cash_out.driven(active, depth=depth, verify=verify)

            def measured(turn: int) -> dict[str, Any]:
                # The codes of this moment: signing on takes its time.
                payloads = cash_out.fresh(made.cards[turn * each : (turn + 1) * each])
                return loaded(
                    load, payloads, seconds, connections=connections, depth=depth,
                    cpu_s=node.cpu_s,
                )  # fmt: skip

            say("measuring without")
            before = measured(0)
            empty_bytes = node.memory_bytes()
            say(f"signing on {idle}")
            memory = [(0, 0)]
            with ExitStack() as silent:
                for first in range(0, idle, step := max(1, -(-idle // STEPS))):
                    some = made.terminals[connections + first : connections + first + step]
                    silent.enter_context(cash_out.signed_on(address, some))
                    grown = node.memory_bytes() - empty_bytes
                    memory.append((min(first + step, idle), grown))
                say("measuring beside them")
                beside = measured(1)
            say("measuring after")
            after = measured(2)
        echo = ceiling(connections, cash_out.fresh(made.cards[:1000]), seconds / 3, depth=depth)
    return _told(idle, memory, before, beside, after) | echo


def _told(
    idle: int, memory: list[tuple[int, int]], before: dict[str, Any], beside: dict[str, Any],
    after: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    cpu, rate = "server_cpu_us_per_operation", "rate_per_s"
    errors = before["errors"] + beside["errors"] + after["errors"]
    if errors:
        raise BenchError(f"{errors} requests were not answered")
    return {
        "idle": idle,
        "connections": before["connections"],
        "depth": before["depth"],
        "bytes_each": round(memory[-1][1] / idle),
        "memory": memory,
        "operations_min": min(run["operations"] for run in (before, beside, after)),
        "cpu_us_without": [before[cpu], after[cpu]],
        "cpu_us_beside": beside[cpu],
        # Beside the cheaper of the two: what comes first also pays for a node that is still cold.
        "cpu_ratio": round(beside[cpu] / max(min(before[cpu], after[cpu]), 0.01), 3),
        "rates_without_per_s": [before[rate], after[rate]],
        "rate_per_s": beside[rate],
        "rate_ratio": round(2 * beside[rate] / (before[rate] + after[rate]), 3),
        "p99_ms": beside["p99_ms"],
    }
