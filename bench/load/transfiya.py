"""TransfiYa's bank side under load: how soon a call is answered, and how many transfers it bears.

The node is a process of its own with two banks on its ledger; this process is the network, without
latency (`transfiya_peer`). First calls fall due at a fixed rate, whether or not the ones before
are answered (an open loop): the latency of a call counts from the instant when it was due, until
its answer, which is durable, is here whole; behind each come the four calls of its asynchronous
part. Then so many whole transfers are under way at any moment: debit, signature, credit.

All is checked after the run: each call ended well and once, and every IOU by `check_iou`.
"""

import os
import secrets
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from bench.load.server import BenchError, Say, ServerProcess, pinned, serve
from bench.load.transfiya_peer import Bank, Peer, PeerError, encode
from core_ext import Histogram
from protocols.transfiya import SigningKey, check_iou, decode, handle_of
from switch import config as configs
from switch.clock import SystemClock
from switch.flows.transfiya_records import Directory
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.products.transfiya_enrolment import add_key, add_signer

BANKS: Final = ("rojo", "verde")
CUSTOMERS: Final = 200
OPENING_MINOR: Final = 10**12
AMOUNT: Final = "100.00"
WARM_UP_S: Final = 2.0
DRAIN_S: Final = 60.0
CONNECTIONS_MAX: Final = 256
MARKS: Final = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9), ("max", 100.0))

_BANK_TOML: Final = """
[[transfiya.bank]]
id = "{bank}"
network_url = "http://127.0.0.1:{port}/v1"
token_url = "http://127.0.0.1:{port}/oauth/token"
client_id = "file:client.secret"
client_secret = "file:client.secret"
api_key = "file:client.secret"
inbound_auth = "oauth2+api_key"
inbound_client_id = "file:client.secret"
inbound_client_secret = "file:client.secret"
inbound_api_key = "file:client.secret"
bank_signer = "{signer}"
bank_signer_key = "keystore:{bank}"
"""


@dataclass
class World:
    """What was made before the run: the node's configuration, the secret, handles by bank."""

    config: Path
    secret: str = field(repr=False)
    customers: dict[str, list[str]]


def run(
    rate_per_s: float = 200.0,
    seconds: float = 10.0,
    *,
    endpoint: str = "credit",
    at_once: int = 32,
    pin: bool = False,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure; the answer is what `troncal bench transfiya --json` prints.

    Args:
        rate_per_s: calls due a second. seconds: of each of the two measurements.
        endpoint: credit or debit, in the open loop. at_once: transfers under way in the second.
        pin: node on the first CPU, network on the last.
        directory: where the data directory is made: its disk is the one measured.

    Raises:
        BenchError: the node did not start, or something did not end as it must.
    """
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        root = Path(
            stack.enter_context(tempfile.TemporaryDirectory("-bench", "troncal-", directory))
        )
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        say(f"making {len(BANKS) * CUSTOMERS} customers")
        world = make(root, listening.getsockname()[1])
        if pin:
            stack.enter_context(pinned(cpus[-1]))
        node = stack.enter_context(
            serve(world.config, cpu=cpus[0] if pin else None, roles="transfiya")
        )
        load = _Load(world, node, say)
        try:
            return trio.run(load.measure, listening, rate_per_s, seconds, endpoint, at_once)
        except* (PeerError, OSError, trio.TooSlowError) as errors:
            raise BenchError(str(errors.exceptions[0])) from None


def make(directory: Path, port: int) -> World:
    """A data directory with two banks and their customers."""
    keys = {bank: secrets.token_bytes(32) for bank in BANKS}
    secret = secrets.token_hex(24)
    (directory / "client.secret").write_text(secret)
    text = configs.default_toml(
        node_roles=("transfiya",), ledger_records_bytes_max=4 << 30, ledger_holds_max=4_000_000,
        ledger_keys_max=8_000_000,
    )  # fmt: skip
    for bank, key in keys.items():
        signer = handle_of(SigningKey(key).public)
        text += _BANK_TOML.format(bank=bank, port=port, signer=signer)
    file = directory / "troncal.toml"
    file.write_text(text)
    config = configs.load(file, environ={})
    master = MasterKey.create(config.file(config.node.master_key_file))
    customers: dict[str, list[str]] = {bank: [] for bank in BANKS}

    async def fill() -> None:
        node = Node(config, master, SystemClock(), config.data)
        node.open(conclude=False)
        known = Directory(node.store.records)
        for bank, key in keys.items():
            step = node.begin()
            add_key(node, step, known, bank, key, allow_short=False)
            for number in range(CUSTOMERS):
                name = f"{bank}-{number}"
                own = secrets.token_bytes(32)
                add_key(node, step, known, name, own, allow_short=False)
                signer = add_signer(
                    node, step, known, bank=bank, account=name, key=name,
                    balance_minor=OPENING_MINOR, known=True,
                )  # fmt: skip
                customers[bank].append(signer.handle)
            node.end(step)
            node.store.commit()
        node.close()

    trio.run(fill)
    return World(file, secret, customers)


class _Load:
    """The two measurements, on one node."""

    def __init__(self, world: World, node: ServerProcess, say: Say) -> None:
        self._world = world
        self._node = node
        self._say = say
        self._peer = Peer(time.time_ns)
        self._banks = {
            bank: Bank(node.address("http"), f"/transfiya/{bank}", world.secret) for bank in BANKS
        }
        self._begun: set[str] = set()
        self._number = 0
        self._refused: list[str] = []

    async def measure(
        self, listening: socket.socket, rate_per_s: float, seconds: float, endpoint: str,
        at_once: int,
    ) -> dict[str, Any]:  # fmt: skip
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening.dup()))
        async with trio.open_nursery() as nursery:
            await nursery.start(self._peer.serve, [listener])
            for bank in self._banks.values():
                await bank.authorise(self._world.secret, self._world.secret)
            self._say("warming up")
            await self._due(endpoint, rate_per_s, WARM_UP_S)
            self._say(f"{rate_per_s:g} calls a second, {seconds:g} s")
            before_s, calls = self._node.cpu_s(), self._peer.calls
            answers, lag = await self._due(endpoint, rate_per_s, seconds)
            spent_s, calls = self._node.cpu_s() - before_s, self._peer.calls - calls
            self._say(f"{at_once} transfers at once, {seconds:g} s")
            before_s = self._node.cpu_s()
            whole = await self._transfers(at_once, seconds)
            transfer_cpu_s = self._node.cpu_s() - before_s
            nursery.cancel_scope.cancel()
        self._check()
        return {
            "endpoint": endpoint,
            "rate_per_s": rate_per_s,
            "calls": answers.count,
            **{f"answer_{name}_ms": _ms(answers, q) for name, q in MARKS},
            "client_lag_p99_ms": _ms(lag, 99.0),
            "node_cpu_ms_per_call": round(1000 * spent_s / max(answers.count, 1), 3),
            "node_cpu": round(spent_s / seconds, 3),
            "network_calls_per_call": round(calls / max(answers.count, 1), 2),
            "at_once": at_once,
            "transfers": whole.count,
            "transfers_per_s": round(whole.count / seconds, 1),
            **{f"transfer_{name}_ms": _ms(whole, q) for name, q in MARKS},
            "node_cpu_ms_per_transfer": round(1000 * transfer_cpu_s / max(whole.count, 1), 3),
            "ious_checked": len(self._peer.ious),
            "cores": len(os.sched_getaffinity(0)),
        }

    def _main(self, kind: str, status: str) -> dict[str, Any]:
        """A main action between customers whose turn it is."""
        self._number += 1
        number = self._number
        tx_ref = f"bench-{number}"
        source, target = (self._world.customers[bank][number % CUSTOMERS] for bank in BANKS)
        self._begun.add(tx_ref)
        return self._peer.main(tx_ref, kind, source, target, AMOUNT, status)

    async def _due(
        self, endpoint: str, rate_per_s: float, seconds: float
    ) -> tuple[Histogram, Histogram]:
        """Calls at fixed instants, and the end of all that they began; latencies and lag."""
        answers, lag = Histogram(), Histogram()
        places = trio.CapacityLimiter(CONNECTIONS_MAX)
        bank = self._banks["verde" if endpoint == "credit" else "rojo"]
        status = "COMPLETED" if endpoint == "credit" else "PENDING"
        began_s = trio.current_time()

        async def call(due_s: float, main: dict[str, Any]) -> None:
            async with places:
                http, _ = await bank.call(endpoint, encode(main))
            answers.record(int((trio.current_time() - due_s) * 1e9))
            if http != 200:
                self._refused.append(f"{endpoint} was answered {http}")

        async with trio.open_nursery() as nursery:
            for number in range(int(rate_per_s * seconds)):
                due_s = began_s + number / rate_per_s
                await trio.sleep_until(due_s)
                lag.record(int(max(trio.current_time() - due_s, 0.0) * 1e9))
                nursery.start_soon(call, due_s, self._main("SEND", status))
        with trio.move_on_after(DRAIN_S):
            await self._peer.has_ended(len(self._begun))
        return answers, lag

    async def _transfers(self, at_once: int, seconds: float) -> Histogram:
        """Whole transfers, the next when one has ended; how long each took."""
        times = Histogram()
        end_s = trio.current_time() + seconds

        async def work() -> None:
            while trio.current_time() < end_s:
                began_s = trio.current_time()
                await self._transfer()
                if trio.current_time() <= end_s:
                    times.record(int((trio.current_time() - began_s) * 1e9))

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
        return times

    async def _transfer(self) -> None:
        """Debit, signature on the main action, credit; each with the word of the bank."""
        main = self._main("SEND", "PENDING")
        tx_ref, peer = main["labels"]["tx_ref"], self._peer
        for name, endpoint, awaited in (
            ("rojo", "debit", tx_ref), ("rojo", "action", main["action_id"]),
            ("verde", "credit", tx_ref),
        ):  # fmt: skip
            event = peer.until(awaited)
            http, body = await self._banks[name].call(endpoint, encode(main))
            if http != 200:
                raise PeerError(f"{endpoint} was answered {http}: {body[:200]!r}")
            with trio.fail_after(DRAIN_S):
                await event.wait()

    def _check(self) -> None:
        """Raises: BenchError, for anything that did not end as it must."""
        peer = self._peer
        bad = [f"{ref}: {word}" for ref, words in peer.ends.items() for word in words if word]
        lost = len(self._begun) - len(peer.ends)
        wrong = [
            name for name, iou in peer.ious.items()
            if check_iou(decode(iou), peer.actions[name]) != "ok"
        ]  # fmt: skip
        found = self._refused + bad + wrong + peer.strange
        if found or lost:
            raise BenchError(f"{len(found)} failures, {lost} without an end; {found[:3]}")


def _ms(histogram: Histogram, q: float) -> float:
    return round(histogram.percentile(q) / 1e6, 2)
