"""Two banks and TransfiYa's network in one process: real nodes, journals and HTTP applications.

Only the wires and the clock are ours: calls go from application to application, and time stands
still until everything that can happen without it has happened. A node can be crashed before or
after any of its steps and opened again on what was durable.
"""

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
import trio.testing

from protocols.transfiya import SigningKey, handle_of
from switch.config import load
from switch.flows.transfiya import TransfiyaFlow
from switch.flows.transfiya_core import LedgerCore
from switch.flows.transfiya_records import Directory, Item
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.products import Product
from switch.products.transfiya import build
from switch.products.transfiya_enrolment import add_key, add_signer
from switch.simulators.transfiya import BankEntry, Dropped, Network, Transfer
from switch.web.mounts import Mounts

MASTER = MasterKey(bytes(range(32)))
START_NS = 1_768_478_400 * 1_000_000_000  # 2026-01-15 12:00:00 UTC
OPENING = 10_000_000  # minor units
ANA, LUIS = "$573001234567", "$573007654321"

TOML = """
[node]
roles = ["transfiya"]
data = "data"
[journal]
segment_bytes = 4194304
group_bytes_max = 1048576
reserve_bytes = 65536
[ledger]
accounts_max = 10000
holds_max = 20000
keys_max = 100000
records_bytes_max = 67108864
[transfiya]
calls_max = 1024
{section}
[[transfiya.bank]]
id = "{bank}"
network_url = "http://127.0.0.1/v1"
token_url = "http://127.0.0.1/oauth/token"
client_id = "file:id"
client_secret = "file:secret"
api_key = "file:secret"
inbound_auth = "none"
bank_signer = "{signer}"
bank_signer_key = "keystore:settlement"
{more}
"""


class TrioClock:
    """The wall clock of a node, moved by trio's; `offset_s` is how wrong it is."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def wall_ns(self) -> int:
        return START_NS + int((trio.current_time() + self.offset_s) * 1e9)

    def mono_ns(self) -> int:
        return int(trio.current_time() * 1e9)


class Crash(BaseException):
    """The process is gone."""


class BankHouse:
    """One bank: a node that plays it, its customers, and its wire to the network."""

    def __init__(self, directory: Path, bank: str, network: Network, more: str, section: str):
        self.bank = bank
        self.network = network
        self.directory = directory / bank
        self.directory.mkdir(parents=True)
        self.clock = TrioClock()
        self.draw = random.Random(bank).randbytes
        self.keys: dict[str, SigningKey] = {
            "settlement": SigningKey(random.Random(f"{bank}-settlement").randbytes(32))
        }
        (self.directory / "id").write_text(f"{bank}-id")
        (self.directory / "secret").write_text(f"{bank}-secret")
        self.text = TOML.format(
            bank=bank, signer=self.signer("settlement"), more=more, section=section
        )
        (self.directory / "troncal.toml").write_text(self.text)
        self.config = load(self.directory / "troncal.toml", environ={})
        self.node: Node
        self.product: Product
        self.flow: TransfiyaFlow
        self.up = False
        self.steps = 0
        self.crash_at: tuple[int, str] | None = None
        self.crashed = trio.Event()
        self.may_fail = False
        self.failure = ""
        self._scope: trio.CancelScope | None = None
        self._stopped = trio.Event()
        self.customers: dict[str, str] = {}
        self.ways: Callable[[Node], Any] | None = None
        self._enrol()
        settlement = self.signer("settlement")
        network.add_bank(
            BankEntry(
                bank, settlement, f"http://127.0.0.1/transfiya/{bank}",
                client_id=f"{bank}-id", client_secret=f"{bank}-secret", api_key=f"{bank}-secret",
            )
        )  # fmt: skip

    def signer(self, name: str) -> str:
        return handle_of(self.keys[name].public)

    # ---- set-up on a stopped node

    def _enrol(self) -> None:
        def do(node: Node, directory: Directory) -> None:
            step = node.begin()
            secret = random.Random(f"{self.bank}-settlement").randbytes(32)
            add_key(node, step, directory, "settlement", secret, allow_short=False)
            node.end(step)

        self.offline(do)

    def offline(self, do: Callable[[Node, Directory], None]) -> None:
        """Change a stopped bank's data."""
        node = Node(self.config, MASTER, _Standing(), self.config.data)
        node.open(conclude=False)
        do(node, Directory(node.store.records))
        node.store.commit()
        node.close()

    def add(self, name: str, alias: str, balance_minor: int = OPENING, **more: Any) -> str:
        """A customer with an account, known to the network under an alias; returns the handle."""
        secret = random.Random(f"{self.bank}-{name}").randbytes(32)
        self.keys[name] = SigningKey(secret)
        handle = self.signer(name)
        link = more.pop("link", "ASK")
        known = more.pop("known", True)

        def do(node: Node, directory: Directory) -> None:
            step = node.begin()
            add_key(node, step, directory, name, secret, allow_short=False)
            add_signer(
                node, step, directory, bank=self.bank, account=name, key=name, alias=alias,
                balance_minor=balance_minor, known=known, **more,
            )  # fmt: skip
            node.end(step)

        self.offline(do)
        self.customers[name] = handle
        if known:
            self.network.add_customer(self.bank, handle, alias, link)
        return handle

    # ---- running

    def open(self) -> None:
        """Recover, as at a start."""
        self.node = node = Node(self.config, MASTER, self.clock, self.config.data)

        def prepare() -> None:
            wire = httpx.ASGITransport(_NetworkWire(self.network))
            remotes = self.ways(node) if self.ways is not None else None
            self.product = build(node, remotes, draw=self.draw, transport=wire)
            flow = self.product.flow
            assert isinstance(flow, TransfiyaFlow)
            self.flow = flow
            node.attach(flow, self.product.service)

        node.open(prepare)
        perform = node.perform

        async def counted(do: Callable[[Any], Any]) -> Any:
            self.steps += 1
            number = self.steps
            if self.crash_at == (number, "before"):
                self.crash()
                await trio.sleep_forever()
            value = await perform(do)
            if self.crash_at == (number, "after"):
                self.crash()
                await trio.sleep_forever()
            return value

        node.perform = counted  # type: ignore[method-assign,assignment]
        self.app = Mounts(self.product.mounts)
        self.up = True

    def crash(self) -> None:
        """Nothing of this process goes on; what was handed to the disk may be durable."""
        assert self._scope is not None
        self.up = False
        self._scope.cancel()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Play the bank until it is cancelled or crashes."""
        self._stopped = trio.Event()
        self.open()
        node = self.node

        async def gate() -> None:
            while True:
                await trio.lowlevel.wait_readable(node.store.journal.fileno())
                node.on_durable()

        async def settle() -> None:
            while True:
                await node.turned.wait()
                node.turned = trio.Event()
                node.settle()

        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(gate)
                nursery.start_soon(settle)
                await nursery.start(self.product.service.run)
                node.settle()
                task_status.started()
        except* OSError as failed:
            if not self.may_fail:
                raise
            self.failure = str(failed.exceptions[0])
        finally:
            self.up = False
            node.close()
            self._stopped.set()

    @property
    def quiet(self) -> bool:
        """Nothing waits for the disk."""
        return not self.up or (self.node.store.flushed and not self.node.gate)

    async def stopped(self) -> None:
        await self._stopped.wait()

    # ---- what it came to

    def item(self, kind: str, tx_ref: str, party: str) -> Item | None:
        return self.flow.items.get(self.bank, f"{kind}/{tx_ref}/{party}")

    @property
    def core(self) -> LedgerCore:
        core = self.flow.shared.banks[self.bank].core
        assert isinstance(core, LedgerCore)
        return core

    def balance(self, name: str) -> int:
        return self.core.balance(name)

    def open_holds(self) -> int:
        return sum(1 for _ in self.node.store.ledger.open_holds())


class _Standing:
    """A clock for set-up, before there is any trio."""

    def wall_ns(self) -> int:
        return START_NS

    def mono_ns(self) -> int:
        return 0


class House:
    """rojo and verde, with a customer each, and the network between them."""

    def __init__(
        self, directory: Path, *, more: str = "", section: str = "", seed: int = 1
    ) -> None:
        self.network = Network(
            lambda: START_NS + int(trio.current_time() * 1e9), random.Random(seed)
        )
        self._transports: dict[str, httpx.AsyncBaseTransport] = {}
        self.network._transports = self._transports
        self.rojo = BankHouse(directory, "rojo", self.network, more, section)
        self.verde = BankHouse(directory, "verde", self.network, more, section)
        self.of_ledgers = self.banks = (self.rojo, self.verde)
        self.ana = self.rojo.add("ana", ANA)
        self.luis = self.verde.add("luis", LUIS)
        for bank in self.banks:
            self._transports[bank.bank] = httpx.ASGITransport(_Wire(bank))
        self._nursery: trio.Nursery | None = None
        self._clock: trio.testing.MockClock

    @asynccontextmanager
    async def running(self, clock: trio.testing.MockClock) -> Any:
        self._clock = clock
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.network.run)
            for bank in self.banks:
                await nursery.start(bank.run)
            yield self
            nursery.cancel_scope.cancel()

    async def restart(self, bank: BankHouse) -> None:
        assert self._nursery is not None
        await bank.stopped()
        await self._nursery.start(bank.run)

    async def until(self, done: Callable[[], bool], limit_s: float = 900.0) -> None:
        """Let things happen; move the clock only when nothing happens without that."""
        end_s = trio.current_time() + limit_s
        while not done():
            await trio.testing.wait_all_tasks_blocked()
            if done():
                return
            if all(bank.quiet for bank in self.banks):
                if trio.current_time() >= end_s:
                    raise AssertionError(f"not in {limit_s} s: {self.state()}")
                self._jump(end_s)
            else:
                await trio.to_thread.run_sync(time.sleep, 0.0003)

    def _jump(self, end_s: float) -> None:
        """Go to the next instant at which something is due."""
        waits_s = [trio.lowlevel.current_statistics().seconds_to_next_deadline]
        for bank in self.banks:
            due_ns = bank.node.next_deadline_ns() if bank.up else None
            if due_ns is not None:
                waits_s.append(due_ns / 1e9 - trio.current_time())
        waits_s.append(end_s - trio.current_time())
        self._clock.jump(max(min(waits_s), 0.001))
        for bank in self.banks:
            if bank.up:
                bank.node.run_timers()

    async def during(self, act: Awaitable[Any]) -> Any:
        """Await something while time passes."""
        result: list[Any] = []

        async def run() -> None:
            result.append(await act)

        assert self._nursery is not None
        self._nursery.start_soon(run)
        await self.until(lambda: bool(result))
        return result[0]

    def settled(self) -> bool:
        """Every transfer has its end and no bank has work left."""
        return all(one.ended.is_set() for one in self.network.transfers.values()) and all(
            not bank.up or not bank.flow.items.live() for bank in self.banks
        )

    async def settle(self, limit_s: float = 3000.0) -> None:
        await self.until(self.settled, limit_s)
        await self.pause(1.0)
        await self.until(self.settled, limit_s)

    async def pause(self, seconds: float) -> None:
        """Let that much time pass."""
        end_s = trio.current_time() + seconds
        await self.until(lambda: trio.current_time() >= end_s, seconds + 1)

    async def pay(self, amount: str = "100.00", kind: str = "SEND", **more: Any) -> Transfer:
        """A transfer from Ana to Luis, to its end."""
        source, target = more.pop("source", ANA), more.pop("target", LUIS)
        transfer = self.network.begin(source, target, amount, kind, **more)
        await self.settle()
        return transfer

    def state(self) -> dict[str, Any]:
        return {
            "transfers": [(t.tx_ref, t.status, t.phase, t.error) for t in
                          self.network.transfers.values()][-3:],
            "items": [
                (bank.bank, item.key, item.state, item.reason)
                for bank in self.banks if bank.up
                for item in bank.flow.items.live()
            ][:6],
            "breaches": self.network.breaches[-5:],
        }  # fmt: skip

    def check_even(self, *, breaches: bool = True) -> None:
        """All items ended, no open hold, books agree, each key captured at most once."""
        if breaches:
            assert self.network.breaches == []
        assert sum(self.network.balances.values()) == 0
        for bank in self.banks:
            for item in bank.flow.items.stored():
                assert item.state in ("DONE", "FAILED"), (item.key, item.state)
        for bank in self.of_ledgers:
            assert bank.open_holds() == 0
            assert bank.node.money_check() == {"posted": 0, "pending": 0}
            there = self.network.balances[bank.signer("settlement")]
            assert there == -bank.core.settlement("COP"), bank.bank
            customers = sum(bank.balance(name) for name in bank.customers)
            assert customers + bank.core.settlement("COP") == OPENING * len(bank.customers)


class _NetworkWire:
    """The network's application; what it drops looks as on a wire."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._network(scope, receive, send)
        except Dropped:
            raise httpx.ReadError("dropped") from None


class _Wire:
    """A bank's application; a bank that is down refuses the connection."""

    def __init__(self, bank: BankHouse) -> None:
        self._bank = bank

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._bank.up:
            raise httpx.ConnectError("down")
        with trio.CancelScope() as scope_of_call:
            watcher = self._bank._scope
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await self._bank.stopped()
                    scope_of_call.cancel()

                nursery.start_soon(watch)
                await self._bank.app(scope, receive, send)
                nursery.cancel_scope.cancel()
            del watcher
        if scope_of_call.cancelled_caught:
            raise httpx.ReadError("the bank is gone")
