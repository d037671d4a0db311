"""How many cash_outs a second a node takes, each durable before it is answered, and how fast.

A node of its own in a directory of its own is a process; the native client in this process holds
one signed-on terminal for each connection and keeps `depth` requests in flight on each. Then the
same client sends the same frames, for a third as long, to a bare echo process: what the machine
gives at best. A card makes one cash_out in each step of its code, so there is a card for every
operation, and the codes of all are computed beforehand.
"""

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import Any

from bench.load import traffic
from bench.load._client import Load
from bench.load.directory import BRANCH, NETWORK, add_cards, filled
from bench.load.server import (
    SECONDS_MAX,
    WARM_UP_S,
    Address,
    BenchError,
    Say,
    allow_files,
    ceiling,
    loaded,
    pinned,
    serve,
)
from core_ext._frames import session_key
from core_ext._mac import MacKey
from protocols.session import TERMINAL, Initiator, PeerKey
from switch.node import Node
from switch.provisioning import Provisioning

CARDS_MAX = 5_000_000  # each card is used once
TRACE_MAX = 999_999
NET_DEBIT_CAP = 10**12
CARDS_PER_S = 40_000  # cards made by default for each second of load


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
        cards: how many, so how many operations at most; by default 40 000 a second.
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
    allow_files(connections + 200)
    cpus = sorted(os.sched_getaffinity(0))
    server_cpu = cpus[0] if pin else None
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        say(f"making {connections} terminals and {wanted} cards")
        provisioned = provision(Path(root), connections, wanted)
        if pin:
            stack.enter_context(pinned(cpus[-1]))
        with serve(provisioned.config, cpu=server_cpu) as node:
            say("signing on")
            with signed_on(node.address("terminals"), provisioned.terminals) as sessions:
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


def provision(directory: Path, terminals: int, cards: int, **values: Any) -> Provisioned:
    """Make a configuration, a master key and a data directory with terminals and funded cards.

    Args:
        values: of the configuration, as `directory.filled` takes them.
    """

    def fill(node: Node) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
        return _terminals(node, terminals), add_cards(node, cards)

    config, made = filled(directory, fill, **values)
    return Provisioned(config, *made)


def _terminals(node: Node, count: int) -> list[tuple[str, bytes]]:
    provisioning = Provisioning(node)
    step = node.begin()
    # Deposits count against what the network may owe.
    provisioning.network_add(step, NETWORK, net_debit_cap=NET_DEBIT_CAP)
    made = [
        provisioning.terminal_add(step, f"{number:08d}", NETWORK, BRANCH, ticket=False)
        for number in range(1, count + 1)
    ]
    node.end(step)
    node.store.commit()
    return [(answer["peer"], bytes.fromhex(answer["key"])) for answer in made]


def requests(cards: Sequence[tuple[str, bytes]], now_s: int) -> list[bytes]:
    """One cash_out for each card, as the payload of a frame, with the code of this moment.

    Where there are more of them than traces, every terminal counts its own (trace 0)."""
    counted = len(cards) <= TRACE_MAX
    return [
        traffic.cash_out(card, now_s, trace if counted else 0)
        for trace, card in enumerate(cards, 1)
    ]


def fresh(cards: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """One cash_out for each card with the code of this moment; terminals count their traces."""
    now_s = int(time.time())
    return [traffic.cash_out(card, now_s) for card in cards]


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
    return loaded(
        driven(sessions, depth=depth, verify=verify), payloads, seconds,
        connections=len(sessions), depth=depth, warm_up_s=warm_up_s, cpu_s=cpu_s,
    )  # fmt: skip


def driven(sessions: Sequence[Session], *, depth: int = 1, verify: bool = False) -> Load:
    """The native client over new sessions."""
    return Load(
        [session.socket.fileno() for session in sessions],
        [session.key for session in sessions],
        sent=[1] * len(sessions),
        received=[1] * len(sessions),
        depth=depth,
        verify=verify,
    )


def sign_on(address: Address, number: str, key: bytes) -> Session:
    """Open one session. Raises BenchError where it is refused, OSError where nobody is there."""
    nonce = token_bytes(16)
    initiator = Initiator(vocabulary=TERMINAL, peer=number, key=PeerKey(key), nonce=nonce)
    connection = socket.create_connection(address, timeout=30)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(initiator.sign_on())
        frame = frame_of(connection)
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


def frame_of(connection: socket.socket) -> bytes:
    """Exactly one frame: nothing that follows it may be taken from the socket."""
    frame = connection.recv(2, socket.MSG_WAITALL)
    if len(frame) == 2:
        frame += connection.recv(int.from_bytes(frame, "big"), socket.MSG_WAITALL)
    return frame


@contextmanager
def signed_on(address: Address, terminals: Sequence[tuple[str, bytes]]) -> Iterator[list[Session]]:
    """A session for each terminal while the block lasts. Raises as `sign_on`."""
    sessions: list[Session] = []
    try:
        for number, key in terminals:
            sessions.append(sign_on(address, number, key))
        yield sessions
    finally:
        for session in sessions:
            session.socket.close()
