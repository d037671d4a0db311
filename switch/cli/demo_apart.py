"""`demo --apart`: red, sicoop and ceibo as three processes, the same traffic, and one story.

Terminals speak to red; red reaches sicoop over the framed session, sicoop reaches ceibo over
ISO 8583. At the end the three data directories are verified one by one and held together: what
the terminals were told, red registered, sicoop and ceibo captured, and nobody owes anything.
"""

import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import trio
from rich.console import Console
from rich.table import Table

from protocols.messages import Holder
from switch.cli import demo_cashiers as cashiers
from switch.cli.apart import LISTENER, ROLES, Apart, prepare
from switch.cli.base import Call, CliError, cell
from switch.cli.serving import serving, wait_for_interrupt
from switch.journal import verify as checks
from switch.journal.agreement import Agreement, agreement
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal, tcp

UP_S: Final = 30.0
SETTLE_S: Final = 30.0
POLL_S: Final = 0.25


class Process(msgspec.Struct):
    """One of the three: who it is, where it is reached, and what it recorded."""

    role: str
    pid: int
    address: str
    directory: str
    metrics: str
    records: int = 0


class Result(msgspec.Struct):
    """The result, as `--json` prints it. Amounts in guaranies, times in milliseconds."""

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
    processes: list[Process]
    amounts: dict[str, dict[str, int]]
    position: int
    holds_open: int
    unfinished: dict[str, int]
    money_check: dict[str, int]
    problems: list[str]


def run(
    call: Call, directory: Path, terminals: int, seconds: float, keep: bool, console: Console
) -> bool:
    """Do all of it; True when everything was as it must be."""
    with console.status("making three nodes, terminals and cards"):
        apart, world = trio.run(_prepare, directory, terminals, seconds)
    result = trio.run(_perform, apart, world, seconds, keep, console)
    call.answer(result, lambda: _print(result))
    return result.ok


async def _prepare(directory: Path, terminals: int, seconds: float) -> tuple[Apart, cashiers.World]:
    # Steps are as long everywhere; the default of a new configuration.
    cards, poor, uses = cashiers.cards_wanted(terminals, seconds, 60)
    balance = cashiers.AMOUNT_STEP * cashiers.AMOUNT_STEPS[1] * uses
    balances = {
        str(cashiers.DOCUMENT_FIRST + index): balance if index < cards else 0
        for index in range(cards + poor)
    }
    apart = await prepare(
        directory, network=cashiers.NETWORK, terminals=terminals, branches=cashiers.BRANCHES,
        cards=balances, net_debit_cap=cashiers.NET_DEBIT_CAP,
    )  # fmt: skip
    made = [cashiers.DemoCard(card.document, card.seed) for card in apart.cards]
    world = cashiers.World(
        apart.configs["ceibo"], [(t.number, t.key) for t in apart.terminals],
        deque(made[:cards]), deque(made[cards:]), [card.document for card in made[:cards]],
    )  # fmt: skip
    return apart, world


async def _perform(
    apart: Apart, world: cashiers.World, seconds: float, keep: bool, console: Console
) -> Result:
    tally = cashiers.Tally()
    async with _all_serving(apart) as processes:
        console.print(_processes_table(processes))
        with console.status("waiting until the three have found each other"):
            await _connected(apart, world)
        await cashiers.shown_traffic(world, apart.addresses["red"], seconds, tally)
        with console.status("waiting until nobody owes anybody anything"):
            await _settled(apart)
        if keep:
            console.print("the three go on; Ctrl-C ends them", highlight=False)
            await wait_for_interrupt()
    with console.status("verifying"):
        reports = {r: checks.verify(c, c.data) for r, c in apart.configs.items()}
        found = agreement(**apart.configs)
    for process in processes:
        process.records = reports[process.role].last_seq
    return _result(world, tally, processes, reports, found)


@asynccontextmanager
async def _all_serving(apart: Apart) -> AsyncIterator[list[Process]]:
    """All three, from the issuer on; stopped the other way round, so that work can be finished."""
    processes = []
    async with AsyncExitStack() as stack:
        for role in reversed(ROLES):
            process, ready = await stack.enter_async_context(
                serving(apart.command(role), apart.log(role))
            )
            host, port = ready[LISTENER[role]]
            ops_host, ops_port = ready["ops"]
            where = str(apart.configs[role].path.parent)
            metrics = f"http://{ops_host}:{ops_port}/metrics"
            processes.append(Process(role, process.pid, f"{host}:{port}", where, metrics))
        yield processes[::-1]


async def _connected(apart: Apart, world: cashiers.World) -> None:
    """Wait until a question of a terminal gets through to ceibo and back. Raises: CliError."""
    number, key = world.terminals[0]
    terminal = Terminal(number, key, tcp(*apart.addresses["red"]))
    document = random.Random(1).choice(world.receivers)
    with trio.move_on_after(UP_S):
        async with trio.open_nursery() as nursery:
            await terminal.sign_on(nursery)
            answer: Any = None
            while answer is None or answer.code == "91":
                try:
                    answer = await terminal.request(Holder(document=document))
                except (OutcomeUnknown, SignOnFailed) as error:
                    raise CliError(f"red does not answer: {error}") from None
                await trio.sleep(POLL_S)
            await terminal.aclose()
            if answer.code == "00":
                return
    raise CliError("the three processes do not reach each other", _tails(apart))


async def _settled(apart: Apart) -> None:
    """Wait until all debts are paid; what is left after that is told by the comparison."""
    with trio.move_on_after(SETTLE_S):
        finished = False
        while not finished:
            await trio.sleep(POLL_S)
            finished = (await trio.to_thread.run_sync(_agreement, apart)).finished


def _agreement(apart: Apart) -> Agreement:
    return agreement(**apart.configs)


def _tails(apart: Apart) -> str:
    lines = []
    for role in ROLES:
        last = apart.log(role).read_text(errors="replace").splitlines()[-5:]
        lines += [f"{role}: {line}" for line in last]
    return "\n".join(lines)


# ---- after


def _result(
    world: cashiers.World, tally: cashiers.Tally, processes: list[Process],
    reports: dict[str, checks.Report], found: Agreement,
) -> Result:  # fmt: skip
    problems = [f"{count} × {what}" for what, count in sorted(tally.unexpected.items())]
    if tally.unknown:
        problems.append(f"{tally.unknown} requests without an answer")
    if not tally.operations:
        problems.append("no operation was made")
    for role, report in reports.items():
        problems += [f"verify {role}: {problem}" for problem in report.problems]
    problems += found.problems
    told = {kind: tally.amounts[kind] for kind in ("cash_out", "deposit")}
    if found.amounts["red"] != told:
        problems.append(f"terminals were told of {told}, red registered {found.amounts['red']}")
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
        processes=processes,
        amounts=found.amounts,
        position=found.position[0],
        holds_open=found.holds_open,
        unfinished=found.unfinished,
        money_check=found.money_check,
        problems=problems,
    )


def _processes_table(processes: list[Process]) -> Table:
    table = Table(title="Processes", title_justify="left")
    for column in ("role", "pid", "address", "metrics", "directory"):
        table.add_column(column, overflow="fold")
    for p in processes:
        table.add_row(p.role, str(p.pid), p.address, p.metrics, p.directory)
    return table


def _print(result: Result) -> None:
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
        *((f"{kind}: {role}", f"Gs. {cell(sums[kind])}")
          for kind in ("cash_out", "deposit") for role, sums in result.amounts.items()),
        ("position of the network", f"Gs. {cell(result.position)}"),
        ("Σ debits − Σ credits", cell(sum(map(abs, result.money_check.values())))),
        ("open holds", cell(result.holds_open)),
        ("unfinished debts", cell(sum(result.unfinished.values()))),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    out = Console(highlight=False)
    out.print(_processes_table(result.processes))
    out.print(table)
    for problem in result.problems:
        click.echo(click.style("wrong: ", fg="red") + problem, err=True)
    if result.ok:
        click.echo(click.style("all good", fg="green", bold=True))
