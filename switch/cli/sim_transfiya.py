"""`sim transfiya`: the network as a process of its own, for a bank that is being set up.

It plays every call strictly, drives the transfers it is asked for, does to calls what faults say,
and tells at the end what came of everything.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from switch.cli.base import Call, CliError, Command, cell, print_json
from switch.config import Address, parse_address

SHOW_S: Final = 0.5
DRAIN_S: Final = 900.0
AMOUNT_MINOR_MAX: Final = 200_000
LISTED_MAX: Final = 50


def _parsed(read: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], list[Any]]:
    def parse(
        _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
    ) -> list[Any]:
        # The protocol's libraries are an extra, so this is imported when it is used.
        from switch.simulators import transfiya_world as world

        try:
            return [getattr(world, read)(value) for value in values]
        except world.WorldError as error:
            raise click.BadParameter(str(error)) from None

    return parse


def _address(_ctx: click.Context, _parameter: click.Parameter, value: str) -> Address:
    try:
        return parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


class Wishes(msgspec.Struct, kw_only=True):
    """What the command was told."""

    listen: Address
    banks: tuple[Path, ...]
    faults: list[Any]
    transfers: list[tuple[str, str, str, str]]
    count: int
    rate_per_s: float
    until_done: bool
    seed: int
    expired_iou: str
    reversal: str
    noise: bool
    duplicates: str
    nonces: bool
    ecdsa: bool
    token_s: int
    clock_offset_s: float
    continue_s: float
    answer_s: float


@click.command("transfiya", cls=Command)
@click.option(
    "--listen",
    callback=_address,
    default="127.0.0.1:8090",
    show_default=True,
    metavar="HOST:PORT",
    help="Where banks call; port 0: a free one.",
)
@click.option(
    "--bank",
    "banks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    required=True,
    metavar="FILE",
    help="What `transfiya export` printed; repeatable.",
)
@click.option(
    "--transfer",
    "transfers",
    multiple=True,
    callback=_parsed("read_transfer"),
    metavar="SOURCE,TARGET,AMOUNT[,KIND]",
    help="Drive this one; aliases or handles, KIND is SEND, SENDMOL or REQUEST.",
)
@click.option(
    "--count",
    type=click.IntRange(0, 1_000_000),
    default=0,
    show_default=True,
    help="Drive so many between customers drawn by lot.",
)
@click.option(
    "--rate",
    "rate_per_s",
    type=click.FloatRange(0.01, 10_000),
    default=2.0,
    show_default=True,
    help="Transfers begun a second.",
)
@click.option("--until-done", is_flag=True, help="End when all of them have ended.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    callback=_parsed("read_fault"),
    metavar="ENDPOINT:KIND[=VALUE][,count=N][,skip=N][,after=S][,tx=REF]",
    help="Mistreat calls: prove:lose, create:status=503,count=3, credit:duplicate=2, "
    "continue:drop, credit:mark=ERROR, debit:undo. Repeatable.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of what is left to chance.")
@click.option(
    "--expired-iou",
    type=click.Choice(("reject", "refuse")),
    default="reject",
    show_default=True,
    help="An IOU after its end: action REJECTED, or HTTP 400.",
)
@click.option(
    "--reversal",
    type=click.Choice(("main", "reject")),
    default="main",
    show_default=True,
    help="What is told for a refund: the main action, or the REJECT.",
)
@click.option(
    "--duplicates",
    type=click.Choice(("allow", "refuse")),
    default="allow",
    show_default=True,
    help="A second equal action; refused with 122.",
)
@click.option("--noise", is_flag=True, help="Unknown fields at every level of every message.")
@click.option("--nonces/--no-nonces", default=True, show_default=True, help="Nonces are unique.")
@click.option("--ecdsa/--no-ecdsa", default=True, show_default=True, help="Old keys are taken.")
@click.option(
    "--token-life",
    "token_s",
    type=click.IntRange(1, 86_400),
    default=3600,
    show_default=True,
    help="Seconds until a token is worth nothing more.",
)
@click.option(
    "--clock-offset",
    "clock_offset_s",
    type=float,
    default=0.0,
    show_default=True,
    help="Seconds by which this network's clock is wrong.",
)
@click.option(
    "--continue-limit",
    "continue_s",
    type=click.FloatRange(0.1, 3600),
    default=480.0,
    show_default=True,
    help="Seconds a bank has until /continue.",
)
@click.option("--answer-limit", "answer_s", type=click.FloatRange(0.1, 86_400), default=43_200.0,
              show_default=True, help="Seconds a customer has to accept.")  # fmt: skip
@click.pass_context
def sim_transfiya(ctx: click.Context, /, **values: Any) -> None:
    """Be TransfiYa's network until SIGTERM or Ctrl-C; then tell what came of every transfer.

    Faults at the banks' calls (create, find, get, tag, prove, continue, accept, reject, signer,
    transfer, search, conciliation, token, or * for all): drop, lose, delay, slow, status, refuse,
    deny, garbage, forbidden, expired, amount, bare, restart. At ours (debit, credit, action,
    status): lose, delay, duplicate, other, swap, mark, stop, undo. Exit code 1: a call broke a
    rule, or, with --until-done, a transfer has no end.
    """
    call: Call = ctx.obj
    if not trio.run(_play, call, Wishes(**values)):
        ctx.exit(1)


def _network(wishes: Wishes) -> Any:
    from switch.simulators.transfiya import Network
    from switch.simulators.transfiya_world import WorldError, join, read_bank

    network = Network(time.time_ns, random.Random(wishes.seed))
    for file in wishes.banks:
        try:
            join(network, read_bank(file.read_bytes()))
        except WorldError as error:
            hint = "`troncal transfiya export BANK` makes it"
            raise CliError(f"{file}: {error}", hint) from None
    for source, target, *_ in wishes.transfers:
        for name in (source, target):
            if name not in network.wallets and name not in network.signers:
                raise CliError(f"no bank has a customer {name}", "see `transfiya signer list`")
    network.faults += wishes.faults
    network.expired_iou, network.reversal_form = wishes.expired_iou, wishes.reversal
    network.noise, network.refuse_duplicates = wishes.noise, wishes.duplicates == "refuse"
    network.enforce_nonces, network.accept_ecdsa = wishes.nonces, wishes.ecdsa
    network.token_s, network.clock_offset_s = wishes.token_s, wishes.clock_offset_s
    network.continue_s = network.refund_s = wishes.continue_s
    network.answer_s = wishes.answer_s
    return network


async def _play(call: Call, wishes: Wishes) -> bool:
    """Run the network until it is told to stop; True where nothing was wrong."""
    from switch.web.edge import serve_http

    network = _network(wishes)
    address = wishes.listen
    [listener, *_] = await trio.open_tcp_listeners(address.port, host=address.host)
    host, port = listener.socket.getsockname()[:2]
    done = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            stop = trio.Event()
            await nursery.start(partial(serve_http, network, listener, stop=stop))
            click.echo(f"ready {msgspec.json.encode({'transfiya': [host, port]}).decode()}")
            if not call.json:
                nursery.start_soon(_show, network)
            nursery.start_soon(_drive, network, wishes, done)

            async def until_done() -> None:
                await done.wait()
                if wishes.until_done:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(until_done)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    ended = all(one.ended.is_set() for one in network.transfers.values())
    report = _report(network)
    if call.json:
        print_json(report)
    else:
        console = Console(stderr=True)
        console.print(_table(network))
        for breach, count in Counter(network.breaches).items():
            console.print(f"broke a rule: {breach} ({count})", markup=False)
    return not network.breaches and (ended or not wishes.until_done)


async def _drive(network: Any, wishes: Wishes, done: trio.Event) -> None:
    """Begin what was asked for, and wait for the ends."""
    aliases = list(network.wallets)
    if wishes.count and len(aliases) < 2:
        raise CliError("two customers are needed for transfers by lot", "`transfiya signer add`")
    asked = list(wishes.transfers)
    for _ in range(wishes.count):
        source, target = network.rng.sample(aliases, 2)
        minor = network.rng.randrange(100, AMOUNT_MINOR_MAX)
        asked.append((source, target, f"{minor // 100}.{minor % 100:02d}", "SEND"))
    began_s = trio.current_time()
    begun = []
    for number, (source, target, amount, kind) in enumerate(asked):
        await trio.sleep_until(began_s + number / wishes.rate_per_s)
        begun.append(network.begin(source, target, amount, kind))
    with trio.move_on_after(DRAIN_S):
        for transfer in begun:
            await transfer.ended.wait()
        await network.settled()  # the word on their end is on its way to the banks
    done.set()


def _report(network: Any) -> dict[str, Any]:
    """Everything the network knows, for programs."""
    answers = {
        endpoint: {
            "count": histogram.count,
            "p50_ms": round(histogram.percentile(50) / 1e6, 2),
            "p99_ms": round(histogram.percentile(99) / 1e6, 2),
        }
        for endpoint, histogram in sorted(network.answers.items())
    }
    listed = [
        {
            "tx_ref": one.tx_ref, "kind": one.kind, "amount": one.amount, "status": one.status,
            "phase": one.phase, "error": one.error.get("message", ""), "ended": one.ended.is_set(),
        }
        for one in network.transfers.values()
    ]  # fmt: skip
    found: dict[str, Any] = network.report()
    return found | {
        "calls": dict(network.calls), "faults": dict(network.struck), "answers": answers,
        "transfers_listed": listed,
    }  # fmt: skip


async def _show(network: Any) -> None:
    with Live(_table(network), console=Console(stderr=True), auto_refresh=False) as live:
        while True:
            await trio.sleep(SHOW_S)
            live.update(_table(network), refresh=True)


def _table(network: Any) -> Table:
    """Transfers by their end, answers of the banks, balances, faults, broken rules."""
    table = Table(title="TransfiYa simulator", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    transfers = list(network.transfers.values())
    ends = Counter((one.kind, one.status, _why(one)) for one in transfers)
    for (kind, status, why), count in sorted(ends.items())[:LISTED_MAX]:
        table.add_row(f"{kind} {status}{why}", cell(count))
    for endpoint, histogram in sorted(network.answers.items()):
        ms = " / ".join(f"{histogram.percentile(q) / 1e6:.1f}" for q in (50, 99))
        table.add_row(f"/{endpoint}, p50 / p99 in ms", f"{cell(histogram.count)}: {ms}")
    for bank in network.banks.values():
        table.add_row(f"balance of {bank.id}, minor units", cell(network.balances[bank.signer]))
    for fault, count in sorted(network.struck.items()):
        table.add_row(f"fault {fault}", cell(count))
    table.add_row("rules broken", cell(len(network.breaches)))
    return table


def _why(transfer: Any) -> str:
    word = str(transfer.error.get("message", "")).partition(":")[0]
    return f", {word}" if word and transfer.status != "COMPLETED" else ""
