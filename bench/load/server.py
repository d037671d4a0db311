"""What all load scenarios share: a node as a process of its own, figures of a run, the ceiling.

The ceiling is the same client with the same frames against a bare echo process: what this machine
gives at best, in the same run.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_bytes
from typing import IO, Any

from bench.load._client import Load, Report
from core_ext._mac import MacKey

READY_S = 120.0
STOP_S = 30.0
WARM_UP_S = 1.0
SECONDS_MAX = 90.0  # codes are good for two steps of 60 s after their own
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Say = Callable[[str], None]
Address = tuple[str, int]


class BenchError(Exception):
    """The run could not be made; says which part failed."""


def loaded(
    load: Load,
    payloads: list[bytes],
    seconds: float,
    *,
    connections: int,
    depth: int,
    warm_up_s: float = WARM_UP_S,
    cpu_s: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Figures of one run after a warm-up. `cpu_s` reads the node's CPU time."""
    warm_up_share = warm_up_s / (warm_up_s + seconds)
    first = payloads[: int(len(payloads) * warm_up_share)]
    errors = load.run(first, warm_up_s).errors if first else 0
    before_s = cpu_s() if cpu_s else 0.0
    report = load.run(payloads[len(first) :], seconds)
    spent_s = cpu_s() - before_s if cpu_s else None
    figures = _figures(report, connections, depth, spent_s)
    # What went wrong while warming up is left out of the latencies, but not out of the answer.
    return figures | {"errors": report.errors + errors}


def _figures(
    report: Report, connections: int, depth: int, server_cpu_s: float | None
) -> dict[str, Any]:
    answered = sum(report.codes.values())
    figures: dict[str, Any] = {
        "connections": connections,
        "depth": depth,
        "seconds": round(report.elapsed_ns / 1e9, 3),
        "operations": report.latency.count,
        "rate_per_s": round(report.rate_per_s, 1),
        **percentiles(report),
        "errors": report.errors,
        "declined": answered - report.codes.get("00", 0),
        "codes": report.codes,
        "exhausted": report.exhausted,
        "client_cpu": round(report.cpu_ns / max(report.elapsed_ns, 1), 3),
    }
    if report.complaints:
        figures["complaints"] = report.complaints
    if server_cpu_s is not None:
        figures["server_cpu_s"] = round(server_cpu_s, 3)
        figures["server_cpu_us_per_operation"] = round(
            server_cpu_s * 1e6 / max(report.latency.count, 1), 1
        )
    return figures


def percentiles(report: Report, prefix: str = "") -> dict[str, float]:
    marks = (("p50", 50.0), ("p99", 99.0), ("p999", 99.9), ("max", 100.0))
    return {f"{prefix}{name}_ms": round(report.latency.percentile(q) / 1e6, 3) for name, q in marks}


# ---- the node ------------------------------------------------------------------------------------


class ServerProcess:
    """A running `troncal serve`."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready: dict[str, Any]) -> None:
        self._process = process
        self._ready = ready

    def address(self, listener: str) -> Address:
        """Where it listens. Raises BenchError for a listener that it has not opened."""
        if listener not in self._ready:
            raise BenchError(f"the node has not opened {listener}")
        host, port = self._ready[listener]
        return host, port

    def cpu_s(self) -> float:
        """User and system time of the process so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_bytes()
        fields = stat.rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@contextmanager
def serve(config: Path, *, cpu: int | None = None, roles: str = "") -> Iterator[ServerProcess]:
    """Run a node on free ports of the loopback until the block ends.

    Args:
        roles: separated by commas; "": those of the configuration.

    Raises:
        BenchError: it did not get ready, or did not end by itself; with the end of its log.
    """
    command = [sys.executable, "-m", "switch", "serve", "-c", str(config)]
    for listener in ("terminals", "sicoop", "ceibo", "http", "ops"):
        command += ["--listen", f"{listener}=127.0.0.1:0"]
    if roles:
        command += ["--roles", roles]
    log = config.parent / "serve.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        try:
            _keep_on(process, cpu)
            assert process.stdout is not None
            yield ServerProcess(process, _ready(process, process.stdout, log))
            process.send_signal(signal.SIGTERM)
            if process.wait(STOP_S):
                raise BenchError(f"the node ended with {process.returncode}\n{_tail(log)}")
        except subprocess.TimeoutExpired:
            raise BenchError(f"the node did not stop within {STOP_S:g} s\n{_tail(log)}") from None
        finally:
            if process.poll() is None:
                process.kill()


def _ready(process: "subprocess.Popen[bytes]", stdout: IO[bytes], log: Path) -> dict[str, Any]:
    """Wait for the `ready` line."""
    timer = _Deadline(process, READY_S)
    with timer:
        line = stdout.readline()
    word, _, text = line.partition(b" ")
    if word != b"ready":
        said = f"it said {line[:200]!r}" if line else "it said nothing"
        raise BenchError(f"the node did not get ready: {said}\n{_tail(log)}")
    ready: dict[str, Any] = json.loads(text)
    return ready


class _Deadline:
    """Kills a process that keeps us waiting, so that reading from it ends."""

    def __init__(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        self._timer = threading.Timer(seconds, process.kill)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def allow_files(wanted: int) -> None:
    """Raise this process's limit of open files, which the node and the echo inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(f"{wanted} open files are needed, the limit is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# ---- the ceiling ---------------------------------------------------------------------------------

ECHO = """\
import sys
from bench.load._client import echo_server
echo_server(int(sys.argv[1]), 0)
"""


def ceiling(
    connections: int,
    payloads: list[bytes],
    seconds: float,
    *,
    depth: int = 1,
    cpu: int | None = None,
    iso: bool = False,
) -> dict[str, Any]:
    """The same client and the same frames against a bare echo in a process of its own."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        listener.setblocking(False)
        number = listener.fileno()
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", ECHO, str(number)],
                pass_fds=[number],
                stdin=subprocess.PIPE,  # its end, or ours, ends the echo
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        )
        _keep_on(process, cpu)
        sockets = [
            stack.enter_context(socket.create_connection(listener.getsockname(), timeout=30))
            for _ in range(connections)
        ]
        for one in sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        load = Load(
            [one.fileno() for one in sockets],
            [MacKey("hmac-sha256", token_bytes(32)) for _ in sockets],
            sent=[1] * connections,
            received=[1] * connections,
            depth=depth,
            echo=True,
            iso=iso,
        )
        load.run(payloads, min(seconds, 0.5), repeat=True)
        report = load.run(payloads, seconds, repeat=True)
    if report.errors or not report.in_time:
        raise BenchError(f"the echo failed: {report.errors} errors, {report.lost} lost")
    return {"ceiling_rate_per_s": round(report.rate_per_s, 1), **percentiles(report, "ceiling_")}


def _keep_on(process: "subprocess.Popen[bytes]", cpu: int | None) -> None:
    """Pin a process that has just started; the threads it makes later stay there too."""
    if cpu is not None:
        os.sched_setaffinity(process.pid, {cpu})


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """This thread on one CPU while the block lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
