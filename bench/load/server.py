"""What all load scenarios share: a node as a process of its own, figures of a run, the ceiling.

The ceiling is the same client with the same frames against a bare echo process: what this machine
gives at best, in the same run.
"""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from secrets import token_bytes
from typing import IO, Any

from bench.load._client import Load, Report
from core_ext._mac import MacKey

READY_S = 120.0
STOP_S = 30.0
SETTLE_S = 60.0
SETTLE_LOOK_S = 0.25
WARM_UP_S = 1.0
SECONDS_MAX = 90.0  # codes are good for two steps of 60 s after their own
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MARKS = (
    ("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9), ("p9999", 99.99), ("max", 100.0),
)  # fmt: skip

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
    repeat: bool = False,
) -> dict[str, Any]:
    """Figures of one run after a warm-up. `cpu_s` reads the node's CPU time; with `repeat` the
    payloads begin again when they run out."""
    warm_up_share = warm_up_s / (warm_up_s + seconds)
    first = payloads[: int(len(payloads) * warm_up_share)]
    errors = load.run(first, warm_up_s, repeat=repeat).errors if first else 0
    before_s = cpu_s() if cpu_s else 0.0
    report = load.run(payloads[len(first) :], seconds, repeat=repeat)
    spent_s = cpu_s() - before_s if cpu_s else None
    found = {"connections": connections, "depth": depth} | figures(report, spent_s)
    # What went wrong while warming up is left out of the latencies, but not out of the answer.
    return found | {"errors": report.errors + errors}


def figures(report: Report, server_cpu_s: float | None) -> dict[str, Any]:
    """What every scenario tells of a run; `server_cpu_s` is what the node spent on it."""
    answered = sum(report.codes.values())
    found: dict[str, Any] = {
        "seconds": round(report.elapsed_ns / 1e9, 3),
        "operations": report.latency.count,
        "rate_per_s": round(report.rate_per_s, 1),
        **percentiles(report),
        "worst_at_s": round(report.worst_at_ns / 1e9, 3),
        "errors": report.errors,
        "declined": answered - report.codes.get("00", 0),
        "codes": report.codes,
        "exhausted": report.exhausted,
        "client_cpu": round(report.cpu_ns / max(report.elapsed_ns, 1), 3),
    }
    if report.complaints:
        found["complaints"] = report.complaints
    if server_cpu_s is not None:
        found["server_cpu_s"] = round(server_cpu_s, 3)
        found["server_cpu_us_per_operation"] = round(
            server_cpu_s * 1e6 / max(report.latency.count, 1), 1
        )
    return found


def percentiles(report: Report, prefix: str = "") -> dict[str, float]:
    """p50 to p99.99 and the longest, in milliseconds."""
    return {f"{prefix}{name}_ms": round(report.latency.percentile(q) / 1e6, 3) for name, q in MARKS}


# ---- the node ------------------------------------------------------------------------------------


class ServerProcess:
    """A running `troncal serve`."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready: dict[str, Any]) -> None:
        self.pid = process.pid
        self._ready = ready
        self.killed = False

    def address(self, listener: str) -> Address:
        """Where it listens. Raises BenchError for a listener that it has not opened."""
        if listener not in self._ready:
            raise BenchError(f"the node has not opened {listener}")
        host, port = self._ready[listener]
        return host, port

    def cpu_s(self) -> float:
        """User and system time of the process so far."""
        return cpu_s_of(self.pid)

    def settle(self) -> None:
        """Wait until its followers have caught up with what was provisioned: they share the CPUs.

        At most SETTLE_S: on a busy machine the run begins anyway.
        """
        deadline_s = time.monotonic() + SETTLE_S
        spent_s = self._followers_cpu_s()
        while time.monotonic() < deadline_s:
            time.sleep(SETTLE_LOOK_S)
            before_s, spent_s = spent_s, self._followers_cpu_s()
            if spent_s - before_s < SETTLE_LOOK_S / 10:
                return

    def _followers_cpu_s(self) -> float:
        found = 0.0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):  # tasks and processes may end while we look
                for child in (task / "children").read_text().split():
                    found += cpu_s_of(int(child))
        return found

    def metric(self, name: str) -> float:
        """One of its metrics now, by its name in `/metrics`. Raises BenchError: there is none."""
        host, port = self.address("ops")
        page = HTTPConnection(host, port, timeout=30)
        page.request("GET", "/metrics")
        text = page.getresponse().read().decode()
        page.close()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        if found is None:
            raise BenchError(f"the node has no metric {name}")
        return float(found[1])

    def kill(self) -> None:
        """End it at once, as a lost machine would; `serve` then does not wait for a good end."""
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)

    def memory_bytes(self) -> int:
        """Its private memory that is not of files: what it asked for itself."""
        # Not `smaps_rollup`: a node is not dumpable, which closes that file to its own user.
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE)
        assert found, "the status of any Linux since 4.5 tells it"
        return int(found[1]) * 1024


def cpu_s_of(pid: int) -> float:
    """User and system time of a process so far. Raises OSError where there is none."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
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
            node = ServerProcess(process, _ready(process, process.stdout, log))
            node.settle()
            yield node
            if node.killed:
                process.wait(STOP_S)
                return
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
print("ready", flush=True)
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
    with echoing(connections, depth=depth, cpu=cpu, iso=iso) as load:
        load.run(payloads, min(seconds, 0.5), repeat=True)
        report = load.run(payloads, seconds, repeat=True)
    if report.errors or not report.in_time:
        raise BenchError(f"the echo failed: {report.errors} errors, {report.lost} lost")
    return {"ceiling_rate_per_s": round(report.rate_per_s, 1), **percentiles(report, "ceiling_")}


@contextmanager
def echoing(
    connections: int, *, depth: int = 1, cpu: int | None = None, iso: bool = False
) -> Iterator[Load]:
    """The native client over connections to a bare echo process, which ends with the block."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        listener.setblocking(False)
        number = listener.fileno()
        process = stack.enter_context(
            # The end of its stdin, or ours, ends the echo.
            in_python(ECHO, number, pass_fds=[number])
        )
        _keep_on(process, cpu)
        address = listener.getsockname()
        sockets = [stack.enter_context(connected(address)) for _ in range(connections)]
        yield Load(
            [one.fileno() for one in sockets],
            [MacKey("hmac-sha256", token_bytes(32)) for _ in sockets],
            sent=[1] * connections,
            received=[1] * connections,
            depth=depth,
            echo=True,
            iso=iso,
        )


def in_python(
    code: str, *arguments: object, pass_fds: Sequence[int] = (), told: bytes = b""
) -> "subprocess.Popen[bytes]":
    """A process of this Python that finds what we find, once it has said that it is ready.

    The end of its stdin, and so ours, is to end it. Raises BenchError where it does not get ready.

    Args:
        told: written to its stdin first; for what must not stand in a command line.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=pass_fds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    if told:
        process.stdin.write(told)
        process.stdin.flush()
    with _Deadline(process, READY_S):
        line = process.stdout.readline()
    if line != b"ready\n":
        process.kill()
        process.wait()
        raise BenchError(f"a process did not get ready: it said {line!r}")
    return process


def told_line() -> str:
    """The line that `in_python` was told, in the process that it started.

    Unbuffered: the end of stdin must be seen by whoever polls it later.
    """
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or b"\n"
    return line.decode().strip()


def connected(address: Address) -> socket.socket:
    """A plain connection as terminals have it. Raises OSError where nobody is there."""
    one = socket.create_connection(address, timeout=30)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.settimeout(None)
    return one


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
