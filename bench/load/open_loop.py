"""How long a node keeps terminals waiting at a given rate: an open loop.

Requests are due at instants fixed beforehand, whatever the node does, and each latency counts from
the instant when its request was due: where the node stops for a moment, all that fell due meanwhile
shows how long it waited. A closed loop would have sent nothing meanwhile, and so have left the
pause out of its percentiles ("coordinated omission").

The same client with the same instants is then set against a bare echo process.
"""

import json
import os
import select
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.load import cash_out, traffic
from bench.load._client import Load, Report
from bench.load.cash_out import Provisioned
from bench.load.server import (
    BenchError,
    Say,
    ServerProcess,
    allow_files,
    echoing,
    figures,
    in_python,
    percentiles,
    pinned,
    serve,
    told_line,
)

WARM_UP_S = 1.0
SECONDS_MAX = 60.0  # and the codes are good for two steps of 60 s after their own
RATE_MAX = 500_000
DEPTH = 16
PAUSES = 5  # worst tenths of a second that are told

Beside = Callable[[ServerProcess, Provisioned], AbstractContextManager[dict[str, Any]]]

BUSY = """\
import sys
from bench.load.open_loop import keep_busy
keep_busy(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
"""


def run(
    rate_per_s: float = 5000.0,
    connections: int = 64,
    seconds: float = 10.0,
    *,
    depth: int = DEPTH,
    mix: str = traffic.CASH_OUT_ONLY,
    poisson: bool = False,
    busy: bool = False,
    verify: bool = False,
    pin: bool = False,
    directory: Path | None = None,
    beside: Beside | None = None,
    cards: int = 0,
    say: Say = lambda text: None,
    **values: Any,
) -> dict[str, Any]:
    """Measure one node; the answer is what `troncal bench open-loop --json` prints.

    Args:
        rate_per_s: requests due a second, over all connections, in turn.
        connections: terminals, each with one connection.
        seconds: of measurement, after one second of warming up; at most 60.
        depth: requests a connection may have unanswered; more wait in the client, and count.
        mix: of operations, see `traffic`.
        poisson: random pauses between instants, instead of equal ones.
        busy: a further process asks for `/metrics` without pause, and another terminal signs on
            and off without pause, so that the node's main loop has other work all the time.
        verify: check the MAC of every answer, at the cost of the client's CPU.
        pin: node (and echo) on the first CPU, client on the last.
        directory: where the temporary data directory is made: its disk is the one measured.
        beside: what is done, or watched, beside the load; its figures come into the answer.
        cards: at least so many, beyond those that the load uses up.
        say: told about progress.
        values: of the node's configuration, as `directory.filled` takes them.

    Raises:
        BenchError: the node did not start, or refused a terminal.
        ValueError: an argument is out of range.
    """
    _check(rate_per_s, connections, seconds)
    warm, count = int(rate_per_s * WARM_UP_S), int(rate_per_s * seconds)
    cards = max(cards, traffic.cards_needed(mix, warm + count))
    beside = beside or (_busy if busy else _alone)
    allow_files(connections + 200)
    cpu = min(os.sched_getaffinity(0)) if pin else None
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        say(f"making {connections} terminals and {cards} cards")
        # One terminal more, for whoever keeps the node busy.
        made = cash_out.provision(Path(root), connections + 1, cards, **values)
        if pin:
            stack.enter_context(pinned(max(os.sched_getaffinity(0))))
        with serve(made.config, cpu=cpu) as node:
            say("signing on")
            address = node.address("terminals")
            with cash_out.signed_on(address, made.terminals[:-1]) as sessions:
                load = cash_out.driven(sessions, depth=depth, verify=verify)
                payloads = traffic.requests(made.cards, mix, warm + count)
                say(f"measuring {seconds:g} s at {rate_per_s:g} a second")
                with beside(node, made) as seen:
                    result = measure(
                        load, payloads, rate_per_s, seconds, poisson=poisson, node=node
                    )
                result |= seen
        say("measuring the echo")
        result |= _echo(connections, payloads, rate_per_s, seconds / 3, poisson, depth, cpu)
    return {
        "connections": connections, "depth": depth, "mix": mix, "poisson": poisson, "busy": busy,
    } | result  # fmt: skip


def _check(rate_per_s: float, connections: int, seconds: float) -> None:
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"seconds must be in 0..{SECONDS_MAX:g}")
    if not 1 <= connections <= 10_000:
        raise ValueError("connections must be in 1..10000")
    if not 0 < rate_per_s <= RATE_MAX or rate_per_s * seconds < 1:
        raise ValueError(f"the rate must be in 0..{RATE_MAX}, and one request must fall due")


def measure(
    load: Load,
    payloads: list[bytes],
    rate_per_s: float,
    seconds: float,
    *,
    poisson: bool = False,
    warm_up_s: float = WARM_UP_S,
    node: ServerProcess | None = None,
) -> dict[str, Any]:
    """Load signed-on sessions at that rate, after a warm-up with the first payloads."""
    warm = int(rate_per_s * warm_up_s)
    errors = 0
    if warm:
        errors = load.run_open(payloads[:warm], rate_per_s, warm_up_s, poisson=poisson).errors
    before_s = node.cpu_s() if node else 0.0
    report = load.run_open(payloads[warm:], rate_per_s, seconds, poisson=poisson)
    spent_s = node.cpu_s() - before_s if node else None
    found = figures(report, spent_s)
    return found | open_figures(report, rate_per_s) | {"errors": found["errors"] + errors}


def open_figures(report: Report, rate_per_s: float) -> dict[str, Any]:
    """What only an open loop has."""
    worst = sorted(
        ((worst_ns, tenth) for tenth, (_, worst_ns) in enumerate(report.timeline)), reverse=True
    )
    return {
        "rate_wanted_per_s": rate_per_s,
        "due": report.due,
        "backlog_max": report.backlog_max,
        # How late the client itself was; its own fault, and part of all latencies.
        "lag_p99_ms": round(report.lag.percentile(99) / 1e6, 3),
        "lag_max_ms": round(report.lag.max / 1e6, 3),
        "pauses": [
            {"at_s": tenth / 10, "ms": round(worst_ns / 1e6, 3)}
            for worst_ns, tenth in worst[:PAUSES]
            if worst_ns
        ],
    }


def _echo(
    connections: int, payloads: list[bytes], rate_per_s: float, seconds: float, poisson: bool,
    depth: int, cpu: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The same instants against a bare echo: what the machine and the client add by themselves."""
    seconds = max(seconds, 0.2, 1 / rate_per_s)
    with echoing(connections, depth=depth, cpu=cpu) as load:
        load.run_open(payloads, rate_per_s, seconds, poisson=poisson, repeat=True)
        report = load.run_open(payloads, rate_per_s, seconds, poisson=poisson, repeat=True)
    if report.errors:
        raise BenchError(f"the echo failed: {report.errors} errors, {report.lost} lost")
    return percentiles(report, "echo_")


# ---- other work for the main loop ----------------------------------------------------------------


@contextmanager
def _alone(node: ServerProcess, made: Provisioned) -> Iterator[dict[str, Any]]:
    yield {}


@contextmanager
def _busy(node: ServerProcess, made: Provisioned) -> Iterator[dict[str, Any]]:
    """A process that keeps the node's main loop busy while the block lasts; what it did."""
    (host, port), (ops_host, ops_port) = node.address("terminals"), node.address("ops")
    number, key = made.terminals[-1]
    done: dict[str, Any] = {}
    arguments = [host, port, ops_host, ops_port, number]
    process = in_python(BUSY, *arguments, told=key.hex().encode() + b"\n")
    try:
        yield done
    finally:
        said, _ = process.communicate()  # the end of its stdin ends it
        done |= json.loads(said or b"{}")
    if process.returncode or not done.get("metrics_pages"):
        raise BenchError(f"nobody kept the node busy: it ended with {process.returncode}")


def keep_busy(host: str, port: int, ops_host: str, ops_port: int, number: str) -> None:
    """Ask for metrics, and sign on and off, in turn, until stdin ends; then tell how often.

    The terminal's key is the first line of stdin.
    """
    key = bytes.fromhex(told_line())
    done = {"metrics_pages": 0, "sign_ons": 0}
    ops = HTTPConnection(ops_host, ops_port, timeout=30)
    while not select.select([0], [], [], 0)[0]:
        ops.request("GET", "/metrics")
        if ops.getresponse().read():
            done["metrics_pages"] += 1
        cash_out.sign_on((host, port), number, key).socket.close()
        done["sign_ons"] += 1
        if done["sign_ons"] == 1:
            print("ready", flush=True)
    ops.close()
    print(json.dumps(done), flush=True)
