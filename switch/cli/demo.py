"""`demo`: everything at once on loopback: a node, terminals, cards, real traffic, and a check.

Nothing is faked between the terminals and the disk: the node is a process of its own that was made
with `init`, the terminals speak the framed protocol over TCP, and every answer is durable. At the
end the data directory is verified, and what the terminals were told must be what is in it.
"""

import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec
import trio
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from core_ext import Histogram
from core_ext._mac import totp
from protocols.messages import (
    ENTREGUE,
    RECIBA,
    Answer,
    CashOut,
    Delivered,
    Deposit,
    HolderAnswer,
    LastOperation,
    TerminalRequest,
)
from protocols.session import PeerKey
from switch import admin
from switch.cli import setup
from switch.cli.base import Call, CliError, Command, cell, progress
from switch.cli.provision import opened
from switch.config import LISTENERS, Config, Tokens
from switch.journal import verify as checks
from switch.ops.keys import from_base32
from switch.provisioning import Provisioning
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal, tcp

NETWORK: Final = "0012"
BRANCHES: Final = 4
NET_DEBIT_CAP: Final = 100_000_000_000
TERMINAL_FIRST: Final = 1
DOCUMENT_FIRST: Final = 1_000_000
AMOUNT_STEP: Final = 1_000
AMOUNT_STEPS: Final = (10, 200)  # 10 000 to 200 000 guaranies

RATE_TERMINAL: Final = 25.0
"""Operations a second of one terminal: far above a cashier, far below what the switch can do."""

RATE_MAX: Final = 1_000.0
"""Operations a second of all terminals: they share the machine with the node."""

STEPS_AT_ONCE: Final = 3
"""Codes of one card that are good at one moment: of the step before, this one and the next."""

CARD_USES_MAX: Final = 20
"""Times a card is used at most, so that no monthly limit ends the demo."""

WRONG_PER_TERMINAL: Final = 8
"""Wrong codes: below what locks a terminal (20), for few terminals below the network's alarm."""

# Shares of what terminals do, as upper bounds of one draw.
MIX: Final = (("cash_out", 0.60), ("short", 0.65), ("wrong", 0.70), ("deposit", 1.0))
ASK_SHARE: Final = 0.05
READY_S: Final = 60.0
STOP_S: Final = 20.0


@dataclass
class DemoCard:
    """A card as its holder has it."""

    document: str
    seed: bytes
    step: int = 0  # of the newest code used
    uses: int = 0


@dataclass
class World:
    """What was provisioned. `poor` are cards without funds; `receivers` documents for deposits."""

    config: Config
    terminals: list[tuple[str, PeerKey]]
    cards: deque[DemoCard]
    poor: deque[DemoCard]
    receivers: list[str]


@dataclass
class Tally:
    """What the terminals saw."""

    requests: int = 0
    operations: int = 0
    approved: Counter[str] = field(default_factory=Counter)  # by kind
    amounts: Counter[str] = field(default_factory=Counter)  # approved, by kind
    declined: Counter[str] = field(default_factory=Counter)  # "51 FONDOS" and so on
    delivered: int = 0
    asked: int = 0
    unknown: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0


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
    try:
        if webpay:
            from switch.cli import demo_webpay  # which imports this module

            good = demo_webpay.run(call, directory, seconds, keep, console)
        elif transfiya:
            from switch.cli import demo_transfiya  # which imports this module

            good = demo_transfiya.run(call, directory, seconds, console)
        elif cip:
            from switch.cli import demo_cip  # which imports this module

            good = demo_cip.run(call, directory, seconds, keep, console)
        elif apart:
            from switch.cli import demo_apart  # which imports this module

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


def cards_wanted(terminals: int, seconds: float, step_s: int) -> tuple[int, int, int]:
    """Cards with funds, cards without, and how often each is used."""
    operations = seconds * min(RATE_TERMINAL * terminals, RATE_MAX)
    uses = min(STEPS_AT_ONCE + int(seconds) // step_s, CARD_USES_MAX)
    cards = int(operations * MIX[0][1] * 1.1 / uses) + terminals
    poor = int(operations * 0.06 / uses) + (WRONG_PER_TERMINAL + 1) * terminals
    return cards, poor, uses


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


@asynccontextmanager
async def serving(
    command: list[str], log: Path
) -> AsyncIterator[tuple[trio.Process, dict[str, list[Any]]]]:
    """Run one `troncal serve` until the end of the block; the process, and where it listens.

    Raises:
        CliError: as `running`.
    """
    # Not the terminal's process group: Ctrl-C is ours to handle.
    with _writing(log) as errors:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process, await _ready(process, log)
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_S):
            await process.wait()
        if process.returncode != 0:
            raise CliError(f"the node ended with {process.returncode}\n{_tail(log)}")
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
                await process.wait()


def _writing(path: Path) -> BinaryIO:
    return open(path, "wb")


async def _ready(process: trio.Process, log: Path) -> dict[str, list[Any]]:
    assert process.stdout is not None
    line = b""
    with trio.move_on_after(READY_S):
        while not line.endswith(b"\n"):
            data = await process.stdout.receive_some(65536)
            if not data:
                break
            line += bytes(data)
    if not (line.startswith(b"ready ") and line.endswith(b"\n")):
        raise CliError(f"the node did not start\n{_tail(log)}")
    ready: dict[str, list[Any]] = msgspec.json.decode(line[6:])
    return ready


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


async def _groups(url: str) -> int:
    """Durable groups, as the node tells its monitoring."""

    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=5) as response:
            return str(response.read().decode())

    text = await trio.to_thread.run_sync(fetch)
    found = re.search(r"^troncal_journal_groups(?:_total)? ([0-9.e+]+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


# ---- the traffic


class Cashier:
    """One cashier at one terminal: draws what comes next, and knows what the answer must be."""

    def __init__(self, number: int, terminal: Terminal, world: World, tally: Tally) -> None:
        self._terminal = terminal
        self._world = world
        self._tally = tally
        self._chance = random.Random(number)
        self._cashier = str(number + 1)
        self._trace = 0
        self._wrong = 0

    async def work(self, until: float, interval_s: float) -> None:
        """One operation after the other until `until`, at most one each `interval_s`."""
        due = trio.current_time() + self._chance.random() * interval_s
        while due < until:
            await trio.sleep_until(due)
            due = max(due + interval_s, trio.current_time())
            await self._operation()

    async def _operation(self) -> None:
        draw = self._chance.random()
        what = next(name for name, bound in MIX if draw < bound)
        amount = AMOUNT_STEP * self._chance.randint(*AMOUNT_STEPS)
        self._trace += 1
        if what == "wrong":
            self._wrong += 1
            # A terminal with too many wrong codes would be locked, and rightly so.
            what = "wrong" if self._wrong <= WRONG_PER_TERMINAL else "cash_out"
        card = None if what == "deposit" else self._card(what)
        if card is None:
            answer = await self._deposit(amount)
        else:
            answer = await self._cash_out(what, card, amount)
        if answer is None:
            return
        if answer.code == "00":
            await self._deliver()
        if self._chance.random() < ASK_SHARE:
            await self._ask(answer)

    def _card(self, what: str) -> DemoCard | None:
        """A card that has a code left for now; None where all are used up."""
        cards = self._world.cards if what == "cash_out" else self._world.poor
        now = int(time.time()) // self._world.config.tokens.step_s
        if not cards or (what != "wrong" and cards[0].step > now):
            return None
        return cards.popleft()

    async def _cash_out(self, what: str, card: DemoCard, amount: int) -> Answer | None:
        token = self._code(card, what)
        request = CashOut(
            trace=self._trace, cashier=self._cashier, document=card.document, token=token,
            amount=amount, currency="PYG",
        )  # fmt: skip
        expected = {"cash_out": "00", "short": "51", "wrong": "55"}[what]
        answer = await self._measured(request, expected)
        # A card with a wrong try has done its part: three of them would lock it.
        if what != "wrong" and card.uses < CARD_USES_MAX:
            (self._world.cards if what == "cash_out" else self._world.poor).append(card)
        self._count("cash_out", amount, answer)
        return answer

    async def _deposit(self, amount: int) -> Answer | None:
        document = self._chance.choice(self._world.receivers)
        request = Deposit(
            trace=self._trace, cashier=self._cashier, document=document, amount=amount,
            currency="PYG",
        )  # fmt: skip
        answer = await self._measured(request, "00")
        self._count("deposit", amount, answer)
        return answer

    def _code(self, card: DemoCard, what: str) -> str:
        tokens: Tokens = self._world.config.tokens
        now = int(time.time()) // tokens.step_s
        if what == "wrong":
            right = _totp(card.seed, now, tokens)
            return f"{(int(right) + 1) % 10**tokens.digits:0{tokens.digits}d}"
        card.step = max(card.step + 1, now - 1)
        card.uses += 1
        return _totp(card.seed, card.step, tokens)

    async def _measured(self, request: TerminalRequest, expected: str) -> Answer | None:
        began = time.perf_counter_ns()
        answer = await self._request(request, expected)
        if answer is not None:
            self._tally.latency.record(time.perf_counter_ns() - began)
        return answer

    async def _deliver(self) -> None:
        answer = await self._request(Delivered(original=self._trace), "00")
        self._tally.delivered += answer is not None

    async def _ask(self, before: Answer) -> None:
        """Asked again, nobody may be told to pay again."""
        self._tally.asked += 1
        answer = await self._request(LastOperation(original=self._trace), before.code)
        if answer is not None and answer.instruction in (ENTREGUE, RECIBA):
            self._tally.unexpected[f"last_operation {answer.instruction}"] += 1

    async def _request(self, request: TerminalRequest, expected: str) -> Answer | None:
        self._tally.requests += 1
        try:
            answer: Answer | HolderAnswer = await self._terminal.request(request)
        except OutcomeUnknown:
            self._tally.unknown += 1
            return None
        assert isinstance(answer, Answer)
        if answer.code != expected:
            name = type(request).__name__
            self._tally.unexpected[f"{name} {answer.code} {answer.key}, not {expected}"] += 1
        return answer

    def _count(self, kind: str, amount: int, answer: Answer | None) -> None:
        self._tally.operations += 1
        if answer is None:
            return
        if answer.code == "00":
            self._tally.approved[kind] += 1
            self._tally.amounts[kind] += amount
        else:
            self._tally.declined[f"{answer.code} {answer.key}"] += 1


def _totp(seed: bytes, step: int, tokens: Tokens) -> str:
    return totp(
        seed, step * tokens.step_s, step_s=tokens.step_s, digits=tokens.digits,
        algorithm=tokens.algorithm,
    )  # fmt: skip


async def traffic(
    world: World, address: tuple[str, int], seconds: float, tally: Tally, told: Callable[[], None]
) -> None:
    """Let all terminals work for a while; `told` is called now and then."""
    interval_s = max(1 / RATE_TERMINAL, len(world.terminals) / RATE_MAX)
    terminals = [Terminal(number, key, tcp(*address)) for number, key in world.terminals]
    async with trio.open_nursery() as sessions:
        for terminal in terminals:
            try:
                await terminal.sign_on(sessions)
            except (SignOnFailed, OSError) as error:
                raise CliError(f"terminal {terminal.number} cannot sign on: {error}") from None
        began = trio.current_time()
        until = began + seconds
        async with trio.open_nursery() as working:
            for index, terminal in enumerate(terminals):
                cashier = Cashier(index, terminal, world, tally)
                working.start_soon(cashier.work, until, interval_s)
            while trio.current_time() < until:
                await trio.sleep(0.1)
                told()
        tally.seconds = trio.current_time() - began
        for terminal in terminals:
            await terminal.aclose()


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


async def shown_traffic(
    world: World, address: tuple[str, int], seconds: float, tally: Tally
) -> None:
    """`traffic` with a progress bar."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[operations]} operations, {task.fields[approved]} approved"),
    )  # fmt: skip
    began = time.monotonic()
    with progress(*columns) as bar:
        task = bar.add_task("traffic", total=seconds, operations=0, approved=0)

        def told() -> None:
            bar.update(
                task, completed=time.monotonic() - began, operations=tally.operations,
                approved=tally.approved.total(),
            )  # fmt: skip

        await traffic(world, address, seconds, tally, told)


async def _wait_for_interrupt(config: Config, node: Running, console: Console) -> None:
    host, port = node.terminals
    console.print(f"the node goes on: terminals at {host}:{port}, {node.metrics}", highlight=False)
    console.print(f"configuration: {config.path}; Ctrl-C ends it", highlight=False)
    await wait_for_interrupt()


async def wait_for_interrupt() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


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
