"""`bench`: figures of this machine. What is measured, and how, stands in the bench package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from switch.cli.base import Call, CliError, Group, print_fields

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(cls=Group)
def bench() -> None:
    """Measure this machine; each on a data directory of its own.

    Progress goes to stderr; with --json the result is the last line on stdout.
    """


def _common(seconds: float, seconds_max: float) -> Callable[[Command], Command]:
    """The options that all scenarios have."""
    options = [
        click.option(
            "--seconds", type=click.FloatRange(0.1, seconds_max), default=seconds,
            show_default=True, help="Of measurement, after one second of warming up.",
        ),
        click.option("--pin", is_flag=True, help="Node on the first CPU, client on the last."),
        click.option("--verify", is_flag=True, help="Check the MAC of every answer."),
        click.option(
            "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Where the data directory is made; its disk is the one measured.",
        ),
    ]  # fmt: skip

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _measured(call: Call, run: Callable[..., dict[str, Any]], **arguments: Any) -> None:
    """Run a scenario and answer with its figures. Raises: CliError where it could not be made."""
    from bench.load.server import BenchError

    try:
        result = run(**arguments, say=lambda text: click.echo(text, err=True))
    except (BenchError, ValueError) as error:
        raise CliError(str(error)) from None
    call.answer(result, lambda: print_fields(result))


# What measures is imported late: only these commands need the load generator.


@bench.command("cash-out")
@click.option("--connections", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option(
    "--depth", type=click.IntRange(1, 1024), default=1, show_default=True,
    help="Requests in flight on each connection.",
)  # fmt: skip
@click.option("--cards", type=click.IntRange(1), help="Operations at most; else 40000 a second.")
@_common(10.0, 90.0)
@click.pass_obj
def bench_cash_out(call: Call, /, **arguments: Any) -> None:
    """cash_outs a second, each durable before it is answered, and their latency."""
    from bench.load.cash_out import run

    _measured(call, run, **arguments)


@bench.command("open-loop")
@click.option(
    "--rate", "rate_per_s", type=click.FloatRange(0.1, 500_000), default=5000.0, show_default=True,
    help="Requests due a second, over all connections.",
)  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option(
    "--depth", type=click.IntRange(1, 1024), default=16, show_default=True,
    help="Requests in flight on each connection; more wait in the client, and count.",
)  # fmt: skip
@click.option(
    "--mix", default="cash_out=1", show_default=True,
    help="Shares of cash_out, deposit, confirm, last_operation and holder.",
)  # fmt: skip
@click.option("--poisson", is_flag=True, help="Random pauses between requests, not equal ones.")
@click.option("--busy", is_flag=True, help="Keep the node's main loop busy with other work.")
@_common(10.0, 60.0)
@click.pass_obj
def bench_open_loop(call: Call, /, **arguments: Any) -> None:
    """Latency at a given rate, counted from the instant when each request was due."""
    from bench.load.open_loop import run

    _measured(call, run, **arguments)


@bench.command("forward")
@click.option("--connections", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option(
    "--depth", type=click.IntRange(1, 1024), default=1, show_default=True,
    help="Requests in flight on each connection.",
)  # fmt: skip
@click.option(
    "--sessions", type=click.IntRange(1, 64), default=1, show_default=True,
    help="Connections to the remote platform.",
)  # fmt: skip
@_common(10.0, 90.0)
@click.pass_obj
def bench_forward(call: Call, /, **arguments: Any) -> None:
    """cash_outs that a red passes on to a remote platform, durable before each step."""
    from bench.load.forward import run

    _measured(call, run, **arguments)


@bench.command("idle")
@click.option(
    "--idle", type=click.IntRange(1, 10_000), default=10_000, show_default=True,
    help="Terminals that are signed on and silent.",
)  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 1000), default=64, show_default=True)
@click.option("--depth", type=click.IntRange(1, 1024), default=1, show_default=True)
@_common(5.0, 30.0)
@click.pass_obj
def bench_idle(call: Call, /, **arguments: Any) -> None:
    """What idle connections cost: memory each, and time for the others."""
    from bench.load.idle import run

    _measured(call, run, **arguments)


@bench.command("history")
@click.option(
    "--operations", type=click.IntRange(0, 50_000_000), multiple=True,
    default=(0, 10_000, 100_000, 1_000_000), show_default=True,
    help="Past operations at a measurement; may be given several times.",
)  # fmt: skip
@click.option(
    "--records", type=click.IntRange(0), default=0, show_default=True,
    help="Recover from at least so many records of journal.",
)  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 1000), default=64, show_default=True)
@_common(3.0, 30.0)
@click.pass_obj
def bench_history(call: Call, /, **arguments: Any) -> None:
    """What past operations cost, and recovery after a kill."""
    from bench.load.history import run

    _measured(call, run, **arguments)


@bench.command("snapshots")
@click.option(
    "--rate", "rate_per_s", type=click.FloatRange(0.1, 500_000), default=5000.0, show_default=True,
    help="Requests due a second, over all connections.",
)  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option(
    "--cards", type=click.IntRange(1), default=200_000, show_default=True,
    help="Cards in the state, at least.",
)  # fmt: skip
@_common(20.0, 60.0)
@click.pass_obj
def bench_snapshots(call: Call, /, **arguments: Any) -> None:
    """Latency at a given rate while snapshots are made, and without."""
    from bench.load.snapshots import run

    _measured(call, run, **arguments)


@bench.command("link")
@click.option(
    "--in-flight", type=click.IntRange(1, 1024), default=100, show_default=True,
    help="Requests unanswered at any moment, over all connections.",
)  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--holds", type=click.IntRange(1), help="At most; else 60000 a second.")
@_common(10.0, 90.0)
@click.pass_obj
def bench_link(call: Call, /, **arguments: Any) -> None:
    """Holds a second over one ISO 8583 link, each decided by ceibo and durable, MAC on."""
    from bench.load.link import run

    _measured(call, run, **arguments)


@bench.command("webpay")
@click.option("--payments", type=click.IntRange(1, 100_000), default=200, show_default=True)
@click.option(
    "--at-once", type=click.IntRange(1, 1000), default=32, show_default=True,
    help="Payments under way; 200 shows what a rush does.",
)  # fmt: skip
@click.option(
    "--mode", type=click.Choice(["kcc60", "direct"]), default="kcc60", show_default=True,
    help="A kit at the shop (three private operations), or its closing page alone (two).",
)  # fmt: skip
@click.option(
    "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data directory is made; its disk is the one measured.",
)  # fmt: skip
@click.pass_obj
def bench_webpay(call: Call, /, **arguments: Any) -> None:
    """Webpay payments a second with keys of 4096 bits, against what the machine's RSA allows."""
    from bench.load.webpay import run

    _measured(call, run, **arguments)


@bench.command("cip")
@click.option("--customers", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option(
    "--spread", "spread_s", type=click.FloatRange(0, 60), default=5.0, show_default=True,
    help="Seconds over which they begin.",
)  # fmt: skip
@click.option(
    "--mode", "modes", type=click.Choice(("gateway", "partial", "full")), multiple=True,
    default=("gateway", "partial", "full"), show_default=True, help="Each by itself; repeatable.",
)  # fmt: skip
@click.option(
    "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data directory is made; its disk is the one measured.",
)  # fmt: skip
@click.pass_obj
def bench_cip(call: Call, /, **arguments: Any) -> None:
    """Customers who pay at once, with default settings: times per mode and step, hash, desk."""
    from bench.load.cip import run

    _measured(call, run, **arguments)


@bench.command("transfiya")
@click.option(
    "--rate", "rate_per_s", type=click.FloatRange(1, 10_000), default=200.0, show_default=True,
    help="Calls due a second.",
)  # fmt: skip
@click.option(
    "--endpoint", type=click.Choice(("credit", "debit")), default="credit", show_default=True,
    help="Which call falls due.",
)  # fmt: skip
@click.option(
    "--at-once", type=click.IntRange(1, 1000), default=32, show_default=True,
    help="Whole transfers under way in the second part.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(0.5, 300), default=10.0, show_default=True,
    help="Of each of the two measurements.",
)  # fmt: skip
@click.option("--pin", is_flag=True, help="Node on the first CPU, network on the last.")
@click.option(
    "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data directory is made; its disk is the one measured.",
)  # fmt: skip
@click.pass_obj
def bench_transfiya(call: Call, /, **arguments: Any) -> None:
    """TransfiYa's synchronous answer at a given rate, and whole transfers a second."""
    from bench.load.transfiya import run

    _measured(call, run, **arguments)
