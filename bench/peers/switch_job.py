"""The same job on trio, asyncio and uvloop, beside the switch: `python -m bench.peers.switch_job`.

Each peer is a process that does `bench.peers.job` for every connection, as its library's own
documentation would have it: a task per connection with trio, a protocol with asyncio and uvloop.
The native client of `bench.load` drives all of them, and the switch, in the same way, one after the
other, in rounds; then a bare native echo. The peers do less (see `job`): above all nothing that
they say is on a disk when they say it.
"""

import argparse
import asyncio
import importlib.util
import json
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import trio

from bench.load import cash_out, traffic
from bench.load._client import Load
from bench.load.server import (
    BenchError,
    Say,
    allow_files,
    connected,
    cpu_s_of,
    echoing,
    figures,
    in_python,
    loaded,
    serve,
)
from bench.peers.job import ACCOUNTS, DOCUMENT_FIRST, KEY, Session, Table
from core_ext._mac import MacKey

READ_BYTES = 65_536
PEERS = ("trio", "asyncio", "uvloop")
CARDS_PER_S = 40_000
CODE = """\
import sys
from bench.peers.switch_job import peer
peer(sys.argv[1], int(sys.argv[2]))
"""


# ---- the peers -----------------------------------------------------------------------------------


def peer(name: str, listen_fd: int) -> None:
    """Serve as that peer until stdin ends."""
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    table = Table()
    print("ready", flush=True)  # connections wait in the listener until we take them
    if name == "trio":
        trio.run(_trio, listener, table)
    elif name == "asyncio":
        asyncio.run(_asyncio(listener, table))
    else:
        uvloop = importlib.import_module("uvloop")
        uvloop.run(_asyncio(listener, table))


async def _trio(listener: socket.socket, table: Table) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        session = Session(table)
        async for data in stream:
            if out := session.receive(bytes(data)):
                await stream.send_all(out)

    async def until_stdin_ends() -> None:
        await trio.lowlevel.wait_readable(0)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_stdin_ends)
        taken = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        await trio.serve_listeners(handle, [taken])


class _Protocol(asyncio.Protocol):
    def __init__(self, table: Table) -> None:
        self._session = Session(table)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's

    def data_received(self, data: bytes) -> None:
        if out := self._session.receive(data):
            self._transport.write(out)


async def _asyncio(listener: socket.socket, table: Table) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(0, over.set)
    async with await loop.create_server(lambda: _Protocol(table), sock=listener):
        await over.wait()
        loop.remove_reader(0)


# ---- measuring them ------------------------------------------------------------------------------


def installed() -> dict[str, str]:
    """Why a peer is not measured, by its name; those that are not named are here."""
    return {
        name: "not installed (pip install uvloop)"
        for name in PEERS
        if importlib.util.find_spec(name) is None
    }


def run(
    connections: int = 64,
    seconds: float = 5.0,
    *,
    depth: int = 1,
    rounds: int = 1,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Every peer, the switch, and the echo, for so many seconds in each of the rounds.

    Returns rows with the median rate of each, and the ratio of the switch to it.
    """
    missing = installed()
    allow_files(connections + 200)
    payloads = requests()
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(rounds):
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            name: _as_peer(name, connections, depth, payloads, seconds)
            for name in PEERS
            if name not in missing
        }
        ways["troncal"] = lambda: _troncal(connections, depth, seconds, directory)
        ways["echo"] = lambda: _echo(connections, depth, payloads, seconds)
        for name, measure in ways.items():
            say(f"round {turn + 1} of {rounds}: {name}")
            found.setdefault(name, []).append(measure())
    return _told(found, missing) | {"connections": connections, "depth": depth, "rounds": rounds}


def requests() -> list[bytes]:
    """cash_outs for every account of the peers' table, with codes that they do not look at."""
    cards = ((str(DOCUMENT_FIRST + i), bytes(32)) for i in range(ACCOUNTS))
    return [traffic.cash_out(card, 0) for card in cards]


def _times(ours: float, theirs: float) -> float:
    return round(ours / theirs, 3) if theirs else 0.0


def _told(found: dict[str, list[dict[str, Any]]], missing: dict[str, str]) -> dict[str, Any]:
    def median(name: str, figure: str) -> float:
        return statistics.median(float(row.get(figure, 0)) for row in found[name])

    ours = median("troncal", "rate_per_s")
    rows = [
        {
            "name": name,
            "rate_per_s": median(name, "rate_per_s"),
            "p50_ms": median(name, "p50_ms"),
            "p99_ms": median(name, "p99_ms"),
            "server_cpu_us_per_operation": median(name, "server_cpu_us_per_operation"),
            "troncal_times_as_fast": _times(ours, median(name, "rate_per_s")),
        }
        for name in found
    ]
    return {"rows": rows, "missing": missing}


def _as_peer(
    name: str, connections: int, depth: int, payloads: list[bytes], seconds: float
) -> Callable[[], dict[str, Any]]:
    def measure() -> dict[str, Any]:
        with _serving(name, connections) as (sockets, pid):
            key = MacKey("hmac-sha256", KEY)
            load = Load(
                [one.fileno() for one in sockets], [key] * connections,
                sent=[0] * connections, received=[0] * connections, depth=depth,
            )  # fmt: skip
            result = loaded(
                load, payloads, seconds, connections=connections, depth=depth, repeat=True,
                cpu_s=lambda: cpu_s_of(pid),
            )  # fmt: skip
        if result["errors"] or result["declined"]:
            raise BenchError(f"{name} failed: {result['codes']}, {result['errors']} errors")
        return result

    return measure


@contextmanager
def _serving(name: str, connections: int) -> Iterator[tuple[list[socket.socket], int]]:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        number = listener.fileno()
        process = stack.enter_context(in_python(CODE, name, number, pass_fds=[number]))
        address = listener.getsockname()
        yield [stack.enter_context(connected(address)) for _ in range(connections)], process.pid


def _troncal(
    connections: int, depth: int, seconds: float, directory: Path | None
) -> dict[str, Any]:
    cards = int((seconds + 1) * CARDS_PER_S)
    with tempfile.TemporaryDirectory("-bench", "troncal-", directory) as root:
        made = cash_out.provision(Path(root), connections, cards)
        with (
            serve(made.config) as node,
            cash_out.signed_on(node.address("terminals"), made.terminals) as sessions,
        ):
            payloads = cash_out.fresh(made.cards)
            return cash_out.measure(sessions, payloads, seconds, depth=depth, cpu_s=node.cpu_s)


def _echo(connections: int, depth: int, payloads: list[bytes], seconds: float) -> dict[str, Any]:
    with echoing(connections, depth=depth) as load:
        load.run(payloads, 0.5, repeat=True)
        return figures(load.run(payloads, seconds, repeat=True), None)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = run(
        options.connections, options.seconds, depth=options.depth, rounds=options.rounds,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{'':10}{'a second':>12}{'p50 ms':>10}{'p99 ms':>10}{'CPU us':>10}{'troncal is':>14}")
    for row in result["rows"]:
        print(
            f"{row['name']:10}{row['rate_per_s']:>12,.0f}{row['p50_ms']:>10.3f}"
            f"{row['p99_ms']:>10.3f}{row['server_cpu_us_per_operation']:>10.1f}"
            f"{row['troncal_times_as_fast']:>11.2f} x"
        )
    for name, reason in result["missing"].items():
        print(f"{name}: not measured: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
