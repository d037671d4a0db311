"""How many holds a second ceibo decides over one ISO 8583 link, each durable before its answer.

A node with the role `ceibo` alone is a process; the native client in this process is the host
`sicoop` on one or more connections, with `in_flight` requests unanswered over all of them. Requests
are 0100 of the `ceibo` dialect with a sealed one-time code and a MAC, all made beforehand; a card
makes one cash_out in each step of its code, so there is a card for every operation. Then the same
client sends the same messages to a bare echo process.
"""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from bench.load._client import Load
from bench.load.directory import AMOUNT, BRANCH, CASHIER, NETWORK, add_cards, filled
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
from core_ext._mac import MacKey, totp
from protocols.iso8583.ceibo import hold_elements
from protocols.iso8583.connection import Connection, SignedOn
from protocols.iso8583.dialect import Dialect
from protocols.iso8583.framing import Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.times import transmission_time
from protocols.iso8583.tokens import TokenSealer
from protocols.messages import IssuerHold
from switch.node import Node
from switch.provisioning import Provisioning

HOST = "sicoop"
TERMINAL = "00000017"
STANS = 1_000_000
HOLDS_PER_S = 60_000  # made by default for each second of load
HOLDS_MAX = 3_000_000
MAC_BYTES = 8
PREPARED_A_STEP = 10_000
IN_FLIGHT_MAX = 1024


def run(
    in_flight: int = 100,
    seconds: float = 10.0,
    *,
    connections: int = 1,
    holds: int | None = None,
    verify: bool = False,
    pin: bool = False,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure one link on this machine; the answer is what `troncal bench link --json` prints.

    Args:
        in_flight: requests unanswered at any moment, over all connections.
        seconds: of measurement, after one second of warming up; at most 90.
        connections: of the host.
        holds: how many at most; by default 60 000 a second.
        verify: check the MAC of every answer, at the cost of the client's CPU.
        pin: node (and echo) on the first CPU, client on the last.
        directory: where the temporary data directory is made: its disk is the one measured.
        say: told about progress.

    Raises:
        BenchError: the node did not start, or refused the host.
        ValueError: an argument is out of range.
    """
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"seconds must be in 0..{SECONDS_MAX:g}")
    depth = in_flight // connections
    if not 1 <= depth <= IN_FLIGHT_MAX:
        raise ValueError(f"1 to {IN_FLIGHT_MAX} requests may be in flight on a connection")
    wanted = holds if holds is not None else int((seconds + WARM_UP_S) * HOLDS_PER_S)
    wanted = min(max(wanted, in_flight), HOLDS_MAX)
    allow_files(connections + 200)
    cpus = sorted(os.sched_getaffinity(0))
    server_cpu = cpus[0] if pin else None
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        say(f"making {wanted} cards")
        config, keys, cards = provision(Path(root), wanted)
        if pin:
            stack.enter_context(pinned(cpus[-1]))
        with serve(config, cpu=server_cpu, roles="ceibo") as node:
            say(f"making {wanted} requests")
            messages = requests(cards, keys)
            say(f"measuring {seconds:g} s")
            with _signed_on(node.address("ceibo"), keys, connections) as sockets:
                result = measure(
                    sockets, messages, seconds, key=_mac_key(keys), depth=depth, verify=verify,
                    cpu_s=node.cpu_s,
                )  # fmt: skip
        say("measuring the ceiling")
        sample = messages[: max(1000, in_flight)]
        result |= ceiling(
            connections, sample, max(seconds / 3, 0.2), depth=depth, cpu=server_cpu, iso=True
        )
    ratio = result["rate_per_s"] / result["ceiling_rate_per_s"]
    return result | {"ratio": round(ratio, 4)}


def provision(directory: Path, cards: int) -> tuple[Path, dict[str, str], list[tuple[str, bytes]]]:
    """A data directory with a host and funded cards: configuration, the host's keys, cards."""

    def fill(node: Node) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
        step = node.begin()
        keys = Provisioning(node).host_add(step, HOST, "ceibo", "aes-cmac")
        node.end(step)
        node.store.commit()
        return keys, add_cards(node, cards)

    config, made = filled(directory, fill)
    return config, *made


def requests(cards: Sequence[tuple[str, bytes]], keys: dict[str, str]) -> list[bytes]:
    """One 0100 for each card with the code of this moment, as the body of a frame."""
    dialect = Dialect.load("ceibo")
    sealer = TokenSealer(bytes.fromhex(keys["data_key"]), start=0, count=len(cards))
    signer = _mac_key(keys)
    messages: list[bytes] = []
    for first in range(0, len(cards), PREPARED_A_STEP):
        now_s = int(time.time())
        sent, day = transmission_time(now_s * 10**9), now_s // 86_400
        bodies = [
            dialect.encode_for_mac(_hold(number, document, totp(seed, now_s), sealer, sent, day))
            for number, (document, seed) in enumerate(
                cards[first : first + PREPARED_A_STEP], first + 1
            )
        ]
        tags = signer.mac_many(bodies, MAC_BYTES)
        messages += [body + tag for body, tag in zip(bodies, tags, strict=True)]
    return messages


def _hold(
    number: int, document: str, token: str, sealer: TokenSealer, sent: str, day: int
) -> dict[str, object]:
    operation = f"{number:012d}"
    hold = IssuerHold(
        network=NETWORK, operation=operation, kind="cash_out", amount=AMOUNT, currency="PYG",
        terminal=TERMINAL, branch=BRANCH, cashier=CASHIER, day=day, document_type="CI",
        document=document,
    )  # fmt: skip
    mti, elements = hold_elements(hold, token_hex=sealer.seal(token, operation))
    return {"mti": mti, "7": sent, "11": f"{number % STANS:06d}", **elements}


def measure(
    sockets: Sequence[socket.socket],
    messages: list[bytes],
    seconds: float,
    *,
    key: MacKey,
    depth: int,
    verify: bool = False,
    warm_up_s: float = WARM_UP_S,
    cpu_s: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Load signed-on connections; see `run` for the arguments. `cpu_s` reads the node's CPU."""
    load = Load(
        [one.fileno() for one in sockets],
        [key] * len(sockets),
        sent=[0] * len(sockets),
        received=[0] * len(sockets),
        depth=depth,
        verify=verify,
        iso=True,
    )
    return loaded(
        load, messages, seconds, connections=len(sockets), depth=depth, warm_up_s=warm_up_s,
        cpu_s=cpu_s,
    )  # fmt: skip


def sign_on(address: Address, keys: dict[str, str]) -> socket.socket:
    """Open one connection. Raises BenchError where it is refused, OSError where nobody is there."""
    stans = count(1)
    connection = Connection(
        Dialect.load("ceibo"),
        Framing(),
        HostKeys([(1, _mac_key(keys))]),
        initiator=True,
        wall_ns=time.time_ns,
        next_stan=lambda: f"{next(stans):06d}",
    )
    peer = socket.create_connection(address, timeout=30)
    try:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sign_on()
        peer.sendall(connection.output())
        data = peer.recv(65_536)
        events = connection.receive(data) if data else []
        if not any(isinstance(event, SignedOn) for event in events):
            raise BenchError(f"the host was refused: {events or 'closed'}")
        peer.settimeout(None)
        return peer
    except BaseException:
        peer.close()
        raise


@contextmanager
def _signed_on(
    address: Address, keys: dict[str, str], connections: int
) -> Iterator[list[socket.socket]]:
    sockets: list[socket.socket] = []
    try:
        for _ in range(connections):
            sockets.append(sign_on(address, keys))
        yield sockets
    finally:
        for one in sockets:
            one.close()


def _mac_key(keys: dict[str, str]) -> MacKey:
    return MacKey("aes-cmac", bytes.fromhex(keys["mac_key"]))
