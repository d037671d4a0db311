"""`demo --transfiya`: two banks as processes of their own, and the simulated network between them.

Transfers begin at a steady rate, some of which must fail and come back. At the end the network's
book, its conciliation text, and what the banks' directories hold must agree.
"""

import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from rich.console import Console

from switch.cli import setup
from switch.cli.base import Call, print_fields, print_table
from switch.cli.provision import opened
from switch.cli.serving import serving
from switch.config import LISTENERS, Config, load
from switch.flows.transfiya_core import LedgerCore
from switch.flows.transfiya_records import Items
from switch.provisioning import Provisioning
from switch.simulators.transfiya import BankEntry, Network
from switch.web.edge import serve_http

BANKS: Final = ("rojo", "verde")
CUSTOMERS: Final = 10
OPENING: Final = 100_000_000
RATE_PER_S: Final = 8.0
DRAIN_S: Final = 60.0
BLOCKED_SHARE: Final = 0.08

BANK_TOML: Final = """
[[transfiya.bank]]
id = "{bank}"
network_url = "http://127.0.0.1:{port}/v1"
token_url = "http://127.0.0.1:{port}/oauth/token"
client_id = "file:network.id"
client_secret = "file:network.secret"
inbound_auth = "oauth2"
inbound_client_id = "file:network.id"
inbound_client_secret = "file:network.secret"
bank_signer = "{signer}"
"""


@dataclass
class DemoBank:
    """One bank of the demo: its directory, its customers, what the network calls it with."""

    name: str
    config: Config
    signer: str
    secret: str
    customers: dict[str, str] = field(default_factory=dict)  # alias → handle


class Result(msgspec.Struct):
    """What the demo came to."""

    ok: bool
    seconds: float
    transfers: dict[str, int]
    transfers_per_s: float
    answer_p50_ms: float
    answer_p99_ms: float
    balances: list[dict[str, Any]]
    table: list[dict[str, Any]]
    problems: list[str]


def run(call: Call, directory: Path, seconds: float, console: Console) -> bool:
    """Run the demo; True where all agrees."""
    result: Result = trio.run(_perform, directory, seconds, console)
    call.answer(msgspec.to_builtins(result), lambda: _print(result))
    return result.ok


async def _make(directory: Path, name: str, number: int, port: int) -> DemoBank:
    listeners = {f"listen_{one}": "127.0.0.1:0" for one in LISTENERS}
    make = partial(
        setup.make, directory / name, node_name=name, node_roles=("transfiya",), **listeners
    )
    config = await trio.to_thread.run_sync(make)  # it runs a loop of its own
    secret = random.SystemRandom().randbytes(24).hex()
    for file, text in (("network.id", f"{name}-client"), ("network.secret", secret)):
        (config.path.parent / file).write_text(text)
    async with opened(config) as node:
        desk = Provisioning(node)
        step = node.begin()
        settlement = desk.call(step, "transfiya_key_new", {"name": "settlement"})
        node.end(step)
    with config.path.open("a") as toml:
        toml.write(BANK_TOML.format(bank=name, port=port, signer=settlement["handle"]))
    bank = DemoBank(name, load(config.path), settlement["handle"], secret)
    async with opened(bank.config) as node:
        desk = Provisioning(node)
        step = node.begin()
        for index in range(CUSTOMERS):
            account = f"{name}-{index}"
            alias = f"$57300{number}{index:06d}"
            desk.call(step, "transfiya_key_new", {"name": account})
            signer = desk.call(
                step, "transfiya_signer_add",
                {"bank": name, "account": account, "key": account, "alias": alias,
                 "balance": OPENING, "known": True},
            )  # fmt: skip
            bank.customers[alias] = signer["handle"]
            if index == CUSTOMERS - 1:  # trusted by the network, closed at the bank
                closed = {"bank": name, "handle": signer["handle"], "status": "closed"}
                desk.call(step, "transfiya_signer_set", closed)
        node.end(step)
    return bank


async def _perform(directory: Path, seconds: float, console: Console) -> Result:
    network = Network(time.time_ns, random.Random(7))
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    with console.status("making two banks"):
        banks = [await _make(directory, name, n, port) for n, name in enumerate(BANKS, 1)]
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        nursery.start_soon(_serve, network, listener, stop)
        async with AsyncExitStack() as stack:
            for bank in banks:
                await _join(stack, directory, bank, network)
            with console.status(f"{RATE_PER_S:g} transfers a second"):
                began_s = trio.current_time()
                await _transfer(network, banks, seconds)
                with trio.move_on_after(DRAIN_S):
                    for transfer in list(network.transfers.values()):
                        await transfer.ended.wait()
                    await trio.sleep(1.0)
                elapsed_s = trio.current_time() - began_s
        stop.set()
        nursery.cancel_scope.cancel()
    return await _judge(network, banks, elapsed_s)


async def _serve(network: Network, listener: trio.SocketListener, stop: trio.Event) -> None:
    await serve_http(network, listener, stop=stop)


async def _join(stack: AsyncExitStack, directory: Path, bank: DemoBank, network: Network) -> None:
    """Start a bank's process and tell the network of it and its customers."""
    command = [sys.executable, "-m", "switch", "serve", "-c", str(bank.config.path)]
    log = directory / f"{bank.name}.log"
    _, ready = await stack.enter_async_context(serving(command, log))
    host, port = ready["http"]
    network.add_bank(
        BankEntry(
            bank.name, bank.signer, f"http://{host}:{port}/transfiya/{bank.name}", auth="oauth2",
            client_id=f"{bank.name}-client", client_secret=bank.secret,
            own_client_id=f"{bank.name}-client", own_client_secret=bank.secret,
        )
    )  # fmt: skip
    for index, (alias, handle) in enumerate(bank.customers.items()):
        network.add_customer(bank.name, handle, alias, "TRUST" if index % 2 else "ASK")


async def _transfer(network: Network, banks: list[DemoBank], seconds: float) -> None:
    """Begin transfers at a steady rate; some are refused and must come back."""
    draw = random.Random(1)
    blocked = "$573000000000"
    network.add_customer("verde", next(iter(banks[1].customers.values())), blocked, "BLOCK")
    end_s = trio.current_time() + seconds
    while trio.current_time() < end_s:
        source, target = draw.sample(banks, 2)
        payers = list(source.customers)[: CUSTOMERS - 1]
        payer, payee = draw.choice(payers), draw.choice(list(target.customers))
        if source.name == "rojo" and draw.random() < BLOCKED_SHARE:
            payee = blocked
        amount = f"{draw.randrange(1, 2000)}.{draw.randrange(100):02d}"
        kind = draw.choice(["SEND", "SEND", "SENDMOL"])
        network.begin(payer, payee, amount, kind)
        await trio.sleep(1.0 / RATE_PER_S)


async def _judge(network: Network, banks: list[DemoBank], elapsed_s: float) -> Result:
    """Compare the network's book with the banks' directories, action by action."""
    problems = list(network.breaches)
    balances = []
    for bank in banks:
        async with opened(bank.config) as node:
            core = LedgerCore(bank.name, node.store.ledger, node.calendar)
            settlement = core.settlement("COP")
            there = network.balances[bank.signer]
            held = sum(1 for _ in node.store.ledger.open_holds())
            items = [i for i in Items(node.store.records).stored() if i.core and i.accepted_ns]
            told = sorted(f"{i.action_id};{i.tx_ref};{i.kind};{i.core}" for i in items)
            balances.append(
                {"bank": bank.name, "at the network": there, "settlement": settlement,
                 "open holds": held, "proven": len(told)}
            )  # fmt: skip
            if there != -settlement:
                problems.append(f"{bank.name}: {there} at the network, {settlement} here")
            if held:
                problems.append(f"{bank.name}: {held} open holds")
            if told != _conciliation(network, bank.name):
                problems.append(f"{bank.name}: the conciliation differs")
    transfers = list(network.transfers.values())
    states = Counter(one.status for one in transfers)
    problems += [f"{one.tx_ref} is {one.status}" for one in transfers if one.status == "ERROR"]
    problems += [f"{one.tx_ref} has no end" for one in transfers if not one.ended.is_set()]
    sync = network.answers["debit"]
    sync.merge(network.answers["credit"])
    table = Counter((one.kind, one.status, _why(one.error)) for one in transfers)
    return Result(
        ok=not problems and states["COMPLETED"] > 0,
        seconds=round(elapsed_s, 2),
        transfers=dict(states),
        transfers_per_s=round(states["COMPLETED"] / elapsed_s, 1),
        answer_p50_ms=round(sync.percentile(50) / 1e6, 2),
        answer_p99_ms=round(sync.percentile(99) / 1e6, 2),
        balances=balances,
        table=[
            {"kind": kind, "end": end, "because of": why, "transfers": count}
            for (kind, end, why), count in sorted(table.items())
        ],
        problems=problems,
    )


def _why(error: dict[str, Any]) -> str:
    return str(error.get("message", "")).partition(":")[0]


def _conciliation(network: Network, bank: str) -> list[str]:
    """The network's conciliation text, without amounts, as the banks' items are written."""
    lines = [line.split(";") for line in network.conciliation(bank).splitlines()]
    return sorted(f"{one[0]};{one[1]};{one[2]};{one[4]}" for one in lines)


def _print(result: Result) -> None:
    print_table(result.table, "Transfers")
    print_table(result.balances, "Balances, minor units")
    print_fields(
        {
            "seconds": f"{result.seconds:.1f}",
            "completed per second": f"{result.transfers_per_s:.1f}",
            "answer p50": f"{result.answer_p50_ms:.1f} ms",
            "answer p99": f"{result.answer_p99_ms:.1f} ms",
            "all agrees": result.ok,
            "problems": result.problems[:10],
        }
    )
