"""How many cash_outs a second a node takes, each durable before it is answered, and how fast.

A node of its own in a directory of its own is a process; the native client in this process holds
one signed-on terminal for each connection and keeps `depth` requests in flight on each. Then the
same client sends the same frames, for a third as long, to a bare echo process: what the machine
gives at best. A card makes one cash_out in each step of its code, so there is a card for every
operation, and the codes of all are computed beforehand.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import IO, Any

import trio

from bench.load._client import Load, Report
from core_ext._frames import session_key
from core_ext._mac import MacKey, totp
from protocols.session import TERMINAL, Initiator, PeerKey
from switch import config as configs
from switch.clock import SystemClock
from switch.node import Node
from switch.ops.keys import MasterKey, from_base32
from switch.provisioning import Provisioning

NETWORK = "0012"
BRANCH = "000017"
AMOUNT = 50_000
BALANCE = 1_000_000
DOCUMENT_FIRST = 10_000_000
CARDS_MAX = 999_999  # traces are 1..999999, and each card is used once
CARDS_PER_S = 20_000  # cards made by default for each second of load
CARDS_A_STEP = 1000  # cards made between two syncs of the journal
SECONDS_MAX = 90.0  # codes are good for two steps of 60 s after their own
READY_S = 120.0
STOP_S = 30.0
WARM_UP_S = 1.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Say = Callable[[str], None]
Address = tuple[str, int]


class BenchError(Exception):
    """The run could not be made; says which part failed."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A data directory ready to serve.

    Attributes:
        config: the configuration file.
        terminals: number and secret key of each.
        cards: document of the holder and seed of each.
    """

    config: Path
    terminals: list[tuple[str, bytes]]
    cards: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-on connection; both counters of its frames stand at 1."""

    socket: socket.socket
    key: MacKey


def run(
    connections: int = 64,
    seconds: float = 10.0,
    *,
    depth: int = 1,
    cards: int | None = None,
    verify: bool = False,
    pin: bool = False,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure one node on this machine; the answer is what `troncal bench cash-out --json` prints.

    Args:
        connections: terminals, each with one connection.
        seconds: of measurement, after one second of warming up; at most 90.
        depth: requests in flight on each connection.
        cards: how many, so how many operations at most; by default 20 000 a second.
        verify: check the MAC of every answer, at the cost of the client's CPU.
        pin: node (and echo) on the first CPU, client on the last.
        directory: where the temporary data directory is made: its disk is the one measured.
        say: told about progress.

    Raises:
        BenchError: the node did not start, or refused a terminal.
        ValueError: an argument is out of range.
    """
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"seconds must be in 0..{SECONDS_MAX:g}")
    if not 1 <= connections <= 10_000:
        raise ValueError("connections must be in 1..10000")
    wanted = cards if cards is not None else int((seconds + WARM_UP_S) * CARDS_PER_S)
    wanted = min(max(wanted, connections * depth), CARDS_MAX)
    _allow_files(connections + 200)
    cpus = sorted(os.sched_getaffinity(0))
    server_cpu = cpus[0] if pin else None
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        say(f"making {connections} terminals and {wanted} cards")
        provisioned = provision(Path(root), connections, wanted)
        if pin:
            stack.enter_context(_pinned(cpus[-1]))
        with serve(provisioned.config, cpu=server_cpu) as node:
            say("signing on")
            with _signed_on(node.terminals, provisioned.terminals) as sessions:
                payloads = requests(provisioned.cards, int(time.time()))
                say(f"measuring {seconds:g} s")
                result = measure(
                    sessions, payloads, seconds, depth=depth, verify=verify, cpu_s=node.cpu_s
                )
        say("measuring the ceiling")
        sample = payloads[: max(1000, connections * depth)]
        result |= ceiling(connections, sample, max(seconds / 3, 0.2), depth=depth, cpu=server_cpu)
    ratio = result["rate_per_s"] / result["ceiling_rate_per_s"]
    return result | {"ratio": round(ratio, 4)}


def _allow_files(wanted: int) -> None:
    """Raise this process's limit of open files, which the node and the echo inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(f"{wanted} open files are needed, the limit is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def provision(directory: Path, terminals: int, cards: int) -> Provisioned:
    """Make a configuration, a master key and a data directory with terminals and funded cards."""
    file = directory / "troncal.toml"
    file.write_text(configs.default_toml(), encoding="utf-8")
    config = configs.load(file, environ={})
    master = MasterKey.create(config.file(config.node.master_key_file))

    async def fill() -> Provisioned:
        node = Node(config, master, SystemClock(), config.data)
        node.open()
        try:
            return Provisioned(file, _terminals(node, terminals), _cards(node, cards))
        finally:
            node.close()

    return trio.run(fill)


def _terminals(node: Node, count: int) -> list[tuple[str, bytes]]:
    provisioning = Provisioning(node)
    step = node.begin()
    provisioning.network_add(step, NETWORK)
    made = [
        provisioning.terminal_add(step, f"{number:08d}", NETWORK, BRANCH, ticket=False)
        for number in range(1, count + 1)
    ]
    node.end(step)
    node.store.commit()
    return [(answer["peer"], bytes.fromhex(answer["key"])) for answer in made]


def _cards(node: Node, count: int) -> list[tuple[str, bytes]]:
    provisioning = Provisioning(node)
    cards = []
    for first in range(0, count, CARDS_A_STEP):
        step = node.begin()
        for index in range(first, min(first + CARDS_A_STEP, count)):
            document = str(DOCUMENT_FIRST + index)
            answer = provisioning.card_add(step, document, balance=BALANCE, token_mode="totp")
            cards.append((document, from_base32(answer["seed"])))
        node.end(step)
        node.store.commit()
    return cards


def requests(cards: Sequence[tuple[str, bytes]], now_s: int) -> list[bytes]:
    """One cash_out for each card, as the payload of a frame, with the code of this moment."""
    return [
        b'{"op":"cash_out","trace":%d,"cashier":"000345","document":"%b","token":"%b",'
        b'"amount":%d,"currency":"PYG"}'
        % (trace, document.encode(), totp(seed, now_s).encode(), AMOUNT)
        for trace, (document, seed) in enumerate(cards, 1)
    ]


def measure(
    sessions: Sequence[Session],
    payloads: list[bytes],
    seconds: float,
    *,
    depth: int = 1,
    verify: bool = False,
    warm_up_s: float = WARM_UP_S,
    cpu_s: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Load signed-on sessions; see `run` for the arguments. `cpu_s` reads the node's CPU time."""
    load = Load(
        [session.socket.fileno() for session in sessions],
        [session.key for session in sessions],
        sent=[1] * len(sessions),
        received=[1] * len(sessions),
        depth=depth,
        verify=verify,
    )
    warm_up_share = warm_up_s / (warm_up_s + seconds)
    first = payloads[: int(len(payloads) * warm_up_share)]
    errors = load.run(first, warm_up_s).errors if first else 0
    before_s = cpu_s() if cpu_s else 0.0
    report = load.run(payloads[len(first) :], seconds)
    spent_s = cpu_s() - before_s if cpu_s else None
    figures = _figures(report, len(sessions), depth, spent_s)
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
        **_percentiles(report),
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


def _percentiles(report: Report, prefix: str = "") -> dict[str, float]:
    marks = (("p50", 50.0), ("p99", 99.0), ("p999", 99.9), ("max", 100.0))
    return {f"{prefix}{name}_ms": round(report.latency.percentile(q) / 1e6, 3) for name, q in marks}


# ---- the node ------------------------------------------------------------------------------------


class ServerProcess:
    """A running `troncal serve`."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready: dict[str, Any]) -> None:
        self._process = process
        self.terminals: Address = (ready["terminals"][0], ready["terminals"][1])

    def cpu_s(self) -> float:
        """User and system time of the process so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_bytes()
        fields = stat.rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@contextmanager
def serve(config: Path, *, cpu: int | None = None) -> Iterator[ServerProcess]:
    """Run a node on free ports of the loopback until the block ends.

    Raises:
        BenchError: it did not get ready, or did not end by itself; with the end of its log.
    """
    command = [sys.executable, "-m", "switch", "serve", "-c", str(config)]
    for listener in ("terminals", "sicoop", "ceibo", "http", "ops"):
        command += ["--listen", f"{listener}=127.0.0.1:0"]
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


def sign_on(address: Address, number: str, key: bytes) -> Session:
    """Open one session. Raises BenchError where it is refused, OSError where nobody is there."""
    nonce = token_bytes(16)
    initiator = Initiator(vocabulary=TERMINAL, peer=number, key=PeerKey(key), nonce=nonce)
    connection = socket.create_connection(address, timeout=30)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(initiator.sign_on())
        frame = _frame(connection)
        initiator.receive(frame)
        if not initiator.signed_on:
            raise BenchError(f"terminal {number}: {initiator.closing}")
        server_nonce = bytes.fromhex(json.loads(frame[2:-8])["nonce"])
        secret = session_key(key, nonce, server_nonce)
        connection.settimeout(None)
        return Session(connection, MacKey("hmac-sha256", secret))
    except BaseException:
        connection.close()
        raise


def _frame(connection: socket.socket) -> bytes:
    """Exactly one frame: nothing that follows it may be taken from the socket."""
    frame = connection.recv(2, socket.MSG_WAITALL)
    if len(frame) == 2:
        frame += connection.recv(int.from_bytes(frame, "big"), socket.MSG_WAITALL)
    return frame


@contextmanager
def _signed_on(address: Address, terminals: Sequence[tuple[str, bytes]]) -> Iterator[list[Session]]:
    sessions: list[Session] = []
    try:
        for number, key in terminals:
            sessions.append(sign_on(address, number, key))
        yield sessions
    finally:
        for session in sessions:
            session.socket.close()


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
        )
        load.run(payloads, min(seconds, 0.5), repeat=True)
        report = load.run(payloads, seconds, repeat=True)
    if report.errors or not report.in_time:
        raise BenchError(f"the echo failed: {report.errors} errors, {report.lost} lost")
    return {"ceiling_rate_per_s": round(report.rate_per_s, 1), **_percentiles(report, "ceiling_")}


def _keep_on(process: "subprocess.Popen[bytes]", cpu: int | None) -> None:
    """Pin a process that has just started; the threads it makes later stay there too."""
    if cpu is not None:
        os.sched_setaffinity(process.pid, {cpu})


@contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """This thread on one CPU while the block lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
