"""`demo`: everything at once on loopback: a node, terminals, cards, real traffic, and a check.

Nothing is faked between the terminals and the disk: the node is a process of its own that was made
with `init`, the terminals speak the framed protocol over TCP, and every answer is durable. At the
end the data directory is verified, and what the terminals were told must be what is in it.
"""

import re
import shutil
import sys
import tempfile
import urllib.request
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import trio
from rich.console import Console
from rich.table import Table

from protocols.session import PeerKey
from switch import admin
from switch.cli import setup
from switch.cli.base import Call, Command, cell
from switch.cli.demo_cashiers import (
    AMOUNT_STEP,
    AMOUNT_STEPS,
    BRANCHES,
    DOCUMENT_FIRST,
    NET_DEBIT_CAP,
    NETWORK,
    TERMINAL_FIRST,
    DemoCard,
    Tally,
    World,
    cards_wanted,
    shown_traffic,
)
from switch.cli.provision import opened
from switch.cli.serving import serving, wait_for_interrupt
from switch.config import LISTENERS, Config
from switch.journal import verify as checks
from switch.ops.keys import from_base32
from switch.provisioning import Provisioning


class Result(msgspec.Struct):
    """The result of a demo, as `--json` prints it. Amounts in guaranies, times in milliseconds."""

    ok: bool
    terminals: int
    seconds: float
    operations: int
    operations_per_s: float
    requests: int
    approved: int
    declined: dict[str, int]
    delivered: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    durable_groups: int
    durable_records: int
    money_check: dict[str, int]
    registered_amount: dict[str, int]
    metrics: str
    verified_records: int
    verified_records_per_s: int
    problems: list[str]


@click.command(cls=Command)
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=10.0, show_default=True)
@click.option("--terminals", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--keep", is_flag=True, help="Keep node and directory afterwards, until Ctrl-C.")
@click.option("--apart", is_flag=True, help="red, sicoop and ceibo as three processes.")
@click.option("--webpay", is_flag=True, help="A shop in the browser; with --keep people buy.")
@click.option("--transfiya", is_flag=True, help="Two banks, and TransfiYa's network between them.")
@click.option("--cip", is_flag=True, help="A site that takes payments in the three modes of CIP.")
@click.pass_obj
def demo(
    call: Call, seconds: float, terminals: int, keep: bool, apart: bool, webpay: bool,
    transfiya: bool, cip: bool,
) -> None:  # fmt: skip
    """Show everything on loopback: a node, terminals, cards, cash-outs and deposits.

    Exit code 0: every answer was the expected one, and `verify` finds what the terminals were told.
    With --apart: and the three processes tell one story, to the last guaraní. With --webpay: what
    holders saw, the Bitácora, the shops' orders and the issuer's books agree. With --transfiya: the
    network's book, its conciliation and both banks' ledgers agree, reversals included. With --cip:
    what the site was told, its customers saw and the report holds are the same payments.
    """
    if call.config_path is not None:
        raise click.UsageError("demo makes a configuration of its own; it takes no -c")
    directory = Path(tempfile.mkdtemp(prefix="troncal-demo-"))
    console = Console(stderr=True)
    good = False
    try:  # each kind brings much with it, and is imported only where it is asked for
        if webpay:
            from switch.cli import demo_webpay

            good = demo_webpay.run(call, directory, seconds, keep, console)
        elif transfiya:
            from switch.cli import demo_transfiya

            good = demo_transfiya.run(call, directory, seconds, console)
        elif cip:
            from switch.cli import demo_cip

            good = demo_cip.run(call, directory, seconds, keep, console)
        elif apart:
            from switch.cli import demo_apart

            good = demo_apart.run(call, directory, terminals, seconds, keep, console)
        else:
            with console.status("making terminals and cards"):
                world = prepare(directory, terminals, seconds)
            result = trio.run(_perform, world, seconds, keep, console)
            call.answer(result, lambda: print_result(result))
            good = result.ok
    finally:
        if good and not keep:
            shutil.rmtree(directory)
        else:
            console.print(f"kept: {directory}", highlight=False)
    if not good:
        raise click.exceptions.Exit(1)


# ---- before


def prepare(directory: Path, terminals: int, seconds: float) -> World:
    """Make a node's directory with a network, branches, terminals and cards."""
    listeners = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS}
    config = setup.make(directory, node_name="demo", red_company="RED DEMO S.A.", **listeners)
    cards, poor, uses = cards_wanted(terminals, seconds, config.tokens.step_s)
    return trio.run(_provision, config, terminals, cards, poor, uses)


async def _provision(config: Config, terminals: int, cards: int, poor: int, uses: int) -> World:
    async with opened(config) as node:
        desk = Provisioning(node)
        step = node.begin()
        desk.call(step, "network_add", {"number": NETWORK, "net_debit_cap": NET_DEBIT_CAP})
        keys = []
        for index in range(terminals):
            number = f"{TERMINAL_FIRST + index:08d}"
            branch = f"{17 + index % BRANCHES}"
            answer = desk.call(
                step, "terminal_add", {"number": number, "network": NETWORK, "branch": branch}
            )
            keys.append((number, PeerKey(bytes.fromhex(answer["key"]), answer["mac"])))
        node.end(step)
        made: list[DemoCard] = []
        balance = AMOUNT_STEP * AMOUNT_STEPS[1] * uses
        for index in range(cards + poor):
            document = str(DOCUMENT_FIRST + index)
            step = node.begin()
            answer = desk.call(
                step, "card_add",
                {"document": document, "name": f"PERSONA {index}", "token_mode": "totp",
                 "balance": balance if index < cards else 0},
            )  # fmt: skip
            node.end(step)
            made.append(DemoCard(document, from_base32(answer["seed"])))
            if node.store.journal.open_bytes > node.store.open_bytes_max:
                node.store.commit()
    receivers = [card.document for card in made[:cards]]
    return World(config, keys, deque(made[:cards]), deque(made[cards:]), receivers)


# ---- the node


class Running:
    """A node that serves: where it listens, and how it ended."""

    def __init__(self, process: trio.Process, ready: dict[str, list[Any]]) -> None:
        self.process = process
        self.terminals: tuple[str, int] = (ready["terminals"][0], ready["terminals"][1])
        host, port = ready["ops"]
        self.metrics = f"http://{host}:{port}/metrics"


@asynccontextmanager
async def running(config: Config, log: Path) -> AsyncIterator[Running]:
    """Run `troncal serve` until the end of the block, then stop it with SIGTERM.

    Raises:
        CliError: it did not start, or did not exit with 0; with the end of its log.
    """
    command = [sys.executable, "-m", "switch", "serve", "-c", str(config.path)]
    for name in LISTENERS:  # said here as well: the environment may know other addresses
        command += ["--listen", f"{name}=127.0.0.1:0"]
    async with serving(command, log) as (process, ready):
        yield Running(process, ready)


async def _groups(url: str) -> int:
    """Durable groups, as the node tells its monitoring."""

    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=5) as response:
            return str(response.read().decode())

    text = await trio.to_thread.run_sync(fetch)
    found = re.search(r"^troncal_journal_groups(?:_total)? ([0-9.e+]+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


async def _perform(world: World, seconds: float, keep: bool, console: Console) -> Result:
    tally = Tally()
    async with running(world.config, world.config.path.parent / "serve.log") as node:
        console.print(f"metrics: {node.metrics}", highlight=False)
        await shown_traffic(world, node.terminals, seconds, tally)
        status = await admin.call(world.config.data, "status", {})
        groups = await _groups(node.metrics)
        if keep:
            await _wait_for_interrupt(world.config, node, console)
    with console.status("verifying"):
        report = checks.verify(world.config, world.config.data)
    return _result(world, tally, status, groups, node.metrics, report)


async def _wait_for_interrupt(config: Config, node: Running, console: Console) -> None:
    host, port = node.terminals
    console.print(f"the node goes on: terminals at {host}:{port}, {node.metrics}", highlight=False)
    console.print(f"configuration: {config.path}; Ctrl-C ends it", highlight=False)
    await wait_for_interrupt()


# ---- after


def _result(
    world: World, tally: Tally, status: dict[str, Any], groups: int, metrics: str,
    report: checks.Report,
) -> Result:  # fmt: skip
    problems = _problems(tally, status, report)
    percentile = tally.latency.percentile
    return Result(
        ok=not problems,
        terminals=len(world.terminals),
        seconds=round(tally.seconds, 3),
        operations=tally.operations,
        operations_per_s=round(tally.operations / tally.seconds, 1),
        requests=tally.requests,
        approved=tally.approved.total(),
        declined=dict(sorted(tally.declined.items())),
        delivered=tally.delivered,
        p50_ms=round(percentile(50) / 1e6, 3),
        p99_ms=round(percentile(99) / 1e6, 3),
        p999_ms=round(percentile(99.9) / 1e6, 3),
        durable_groups=groups,
        durable_records=status["durable_seq"],
        money_check=status["money_check"],
        registered_amount=report.registered_amount,
        metrics=metrics,
        verified_records=report.records,
        verified_records_per_s=report.records_per_s,
        problems=problems,
    )


def _problems(tally: Tally, status: dict[str, Any], report: checks.Report) -> list[str]:
    """Everything that is not as it must be."""
    problems = [f"{count} × {what}" for what, count in sorted(tally.unexpected.items())]
    if tally.unknown:
        problems.append(f"{tally.unknown} requests without an answer")
    if not tally.operations:
        problems.append("no operation was made")
    if any(status["money_check"].values()):
        problems.append(f"the books do not balance: {status['money_check']}")
    problems += [f"verify: {problem}" for problem in report.problems]
    registered = sum(report.operations.get(state, 0) for state in ("REGISTRADA", "ENTREGADA"))
    if registered != tally.approved.total():
        problems.append(f"{tally.approved.total()} approved, but {registered} registered")
    if report.operations.get("ENTREGADA", 0) != tally.delivered:
        problems.append(f"{tally.delivered} delivered, but {report.operations} in the register")
    for kind, amount in report.registered_amount.items():
        if amount != tally.amounts[kind]:
            problems.append(f"{kind}: {tally.amounts[kind]} approved, {amount} registered")
    return problems


def print_result(result: Result) -> None:
    table = Table(title="Result", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    rows: list[tuple[str, str]] = [
        ("terminals", cell(result.terminals)),
        ("operations", f"{cell(result.operations)} in {result.seconds:.1f} s"),
        ("a second", f"{result.operations_per_s:.0f}"),
        ("approved", cell(result.approved)),
        *((f"declined {code}", cell(count)) for code, count in result.declined.items()),
        ("delivered", cell(result.delivered)),
        ("latency p50 / p99 / p99.9",
         f"{result.p50_ms:.2f} / {result.p99_ms:.2f} / {result.p999_ms:.2f} ms"),
        ("durable commits", f"{cell(result.durable_groups)} groups"),
        ("durable records", cell(result.durable_records)),
        *((f"registered {kind}", f"Gs. {cell(sum_)}")
          for kind, sum_ in result.registered_amount.items()),
        ("Σ debits − Σ credits", cell(sum(map(abs, result.money_check.values())))),
        ("verified", f"{cell(result.verified_records)} records, "
                     f"{cell(result.verified_records_per_s)} a second"),
        ("metrics", result.metrics),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    for problem in result.problems:
        click.echo(click.style("wrong: ", fg="red") + problem, err=True)
    if result.ok:
        click.echo(click.style("all good", fg="green", bold=True))
