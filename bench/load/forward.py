"""How many operations a second a switch passes on: terminal → red → remote platform → back.

A node with the role `red` alone is a process; the native client is 64 terminals, and a native
platform in a process of its own approves what it is asked (`_platform`). For each cash_out there
are two requests to the platform, the hold and, once it is registered, its confirmation; the
operation is durable at red before the hold leaves, and again before the terminal is answered.
MACs are checked and made on both hops.
"""

import json
import os
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes
from typing import Any

import msgspec

from bench.load import traffic
from bench.load._client import Load
from bench.load._platform import approve
from bench.load.cash_out import driven, frame_of, signed_on
from bench.load.directory import BRANCH, NETWORK, filled
from bench.load.server import (
    SECONDS_MAX,
    WARM_UP_S,
    BenchError,
    Say,
    allow_files,
    ceiling,
    in_python,
    loaded,
    pinned,
    serve,
    told_line,
)
from core_ext._frames import session_key
from core_ext._mac import MacKey
from protocols.session import NETWORK as VOCABULARY
from protocols.session import Acceptor, PeerKey
from switch.node import Node
from switch.provisioning import Provisioning

REQUESTS = 200_000  # distinct payloads; they go round
SEEDLESS = bytes(32)  # the platform looks at no code
UP_S = 20.0

PLATFORM = """\
import sys
from bench.load.forward import platform
platform(int(sys.argv[1]), int(sys.argv[2]))
"""


def run(
    connections: int = 64,
    seconds: float = 10.0,
    *,
    depth: int = 1,
    sessions: int = 1,
    verify: bool = False,
    pin: bool = False,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure the hop on this machine; the answer is what `troncal bench forward --json` prints.

    Args:
        connections: terminals, each with one connection.
        seconds: of measurement, after one second of warming up; at most 90.
        depth: requests in flight on each connection.
        sessions: connections between red and the platform.
        verify: check the MAC of every answer, at the cost of the client's CPU.
        pin: node (and echo) on the first CPU, client and platform on the last.
        directory: where the temporary data directory is made: its disk is the one measured.
        say: told about progress.

    Raises:
        BenchError: a process did not start, or red and platform did not find each other.
        ValueError: an argument is out of range.
    """
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"seconds must be in 0..{SECONDS_MAX:g}")
    if not 1 <= connections <= 10_000:
        raise ValueError("connections must be in 1..10000")
    allow_files(connections + 200)
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[0] if pin else None
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        say(f"making {connections} terminals")
        config, key, terminals = provision(
            Path(root), connections, listener.getsockname(), sessions
        )
        if pin:
            stack.enter_context(pinned(cpus[-1]))
        with (
            _platform(listener, key, sessions) as approved,
            serve(config, cpu=cpu, roles="red") as node,
        ):
            say("signing on")
            with signed_on(node.address("terminals"), terminals) as signed:
                load = driven(signed, depth=depth, verify=verify)
                _wait_until_up(load)
                say(f"measuring {seconds:g} s")
                payloads = requests(REQUESTS)
                result = loaded(
                    load, payloads, seconds, connections=connections, depth=depth,
                    cpu_s=node.cpu_s, repeat=True, warm_up_s=WARM_UP_S,
                )  # fmt: skip
        say("measuring the ceiling")
        result |= ceiling(connections, payloads[:1000], max(seconds / 3, 0.2), depth=depth, cpu=cpu)
    if approved["bad"] or approved["strange"]:
        raise BenchError(f"the platform did not understand red: {approved}")
    ratio = result["rate_per_s"] / result["ceiling_rate_per_s"]
    return result | {"platform": approved, "ratio": round(ratio, 4)}


def provision(
    directory: Path, terminals: int, platform_at: tuple[str, int], sessions: int
) -> tuple[Path, bytes, list[tuple[str, bytes]]]:
    """A red with terminals: its configuration, the network's key, number and key of each."""

    def fill(node: Node) -> tuple[bytes, list[tuple[str, bytes]]]:
        provisioning, step = Provisioning(node), node.begin()
        key = bytes.fromhex(provisioning.network_add(step, NETWORK)["key"])
        made = [
            provisioning.terminal_add(step, f"{number:08d}", NETWORK, BRANCH, ticket=False)
            for number in range(1, terminals + 1)
        ]
        node.end(step)
        node.store.commit()
        return key, [(answer["peer"], bytes.fromhex(answer["key"])) for answer in made]

    host, port = platform_at
    config, made = filled(
        directory, fill, node_roles=("red",), platform_connect=(f"{host}:{port}",),
        platform_sessions=sessions,
    )  # fmt: skip
    return config, *made


def requests(count: int) -> list[bytes]:
    """cash_outs of so many people; the terminals count their traces themselves."""
    now_s = int(time.time())
    return [traffic.cash_out((str(10_000_000 + i), SEEDLESS), now_s) for i in range(count)]


def _wait_until_up(load: Load) -> None:
    """Until an operation gets through to the platform and back. Raises BenchError."""
    deadline_s = time.monotonic() + UP_S
    one = requests(1)
    codes: dict[str, int] = {}
    while codes != {"00": 1}:
        if time.monotonic() > deadline_s:
            raise BenchError(f"red and the platform do not find each other: {codes}")
        time.sleep(0.02)
        codes = load.run(one, 5).codes


# ---- the platform --------------------------------------------------------------------------------


@contextmanager
def _platform(listener: socket.socket, key: bytes, sessions: int) -> Iterator[dict[str, int]]:
    """The platform as a process while the block lasts; what it counted stands in the dict after."""
    counted: dict[str, int] = {}
    process = in_python(
        PLATFORM, listener.fileno(), sessions, pass_fds=[listener.fileno()],
        told=key.hex().encode() + b"\n",
    )  # fmt: skip
    try:
        yield counted
    finally:
        said, _ = process.communicate()  # the end of its stdin ends it
    if process.returncode:
        raise BenchError(f"the platform ended with {process.returncode}")
    counted |= json.loads(said)


def platform(listen_fd: int, sessions: int) -> None:
    """Accept so many sessions of a network, approve until stdin ends, tell what was counted."""
    key = bytes.fromhex(told_line())
    print("ready", flush=True)
    date = datetime.now(UTC).date().isoformat().encode()
    fds: list[int] = []
    keys: list[MacKey] = []
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(fileno=listen_fd))
        while len(fds) < sessions:
            if 0 in select.select([0, listen_fd], [], [])[0]:
                break
            connection = stack.enter_context(listener.accept()[0])
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keys.append(_accepted(connection, key))
            fds.append(connection.fileno())
        nothing = {"holds": 0, "others": 0, "strange": 0, "bad": 0}
        counted = approve(fds, keys, 0, date) if len(fds) == sessions else nothing
    print(json.dumps(counted), flush=True)


def _accepted(connection: socket.socket, key: bytes) -> MacKey:
    """Sign one network on; the key of its session."""
    nonce = token_bytes(16)
    acceptor = Acceptor(
        vocabulary=VOCABULARY,
        authenticate=lambda peer, version: PeerKey(key) if peer == NETWORK else None,
        nonce=nonce,
        now_iso=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        heartbeat_s=3600,
    )
    frame = frame_of(connection)
    decode = msgspec.json.decode if frame[2:3] == b"{" else msgspec.msgpack.decode
    acceptor.receive(frame)
    connection.sendall(acceptor.output())
    if not acceptor.signed_on:
        raise BenchError(f"red was refused: {acceptor.closing}")
    client_nonce = bytes.fromhex(decode(frame[2:-8])["nonce"])
    return MacKey("hmac-sha256", session_key(key, client_nonce, nonce))
