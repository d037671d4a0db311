"""`bench`: figures of this machine. What is measured, and how, stands in the bench package."""

from pathlib import Path
from typing import Any

import click

from switch.cli.base import Call, CliError, Group, print_fields


@click.group(cls=Group)
def bench() -> None:
    """Measure this machine; each on a data directory of its own."""


@bench.command("cash-out")
@click.option("--connections", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 90), default=10.0, show_default=True)
@click.option(
    "--depth", type=click.IntRange(1, 1024), default=1, show_default=True,
    help="Requests in flight on each connection.",
)  # fmt: skip
@click.option("--cards", type=click.IntRange(1), help="Operations at most; else 40000 a second.")
@click.option("--verify", "check_macs", is_flag=True, help="Check the MAC of every answer.")
@click.option("--pin", is_flag=True, help="Node on the first CPU, client on the last.")
@click.option(
    "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data directory is made; its disk is the one measured.",
)  # fmt: skip
@click.pass_obj
def bench_cash_out(
    call: Call, connections: int, seconds: float, depth: int, cards: int | None, check_macs: bool,
    pin: bool, directory: Path | None,
) -> None:  # fmt: skip
    """cash_outs a second, each durable before it is answered, and their latency.

    Progress goes to stderr; with --json the result is the last line on stdout.
    """
    # Imported late: only this command needs the load generator.
    from bench.load.cash_out import run
    from bench.load.server import BenchError

    result: dict[str, Any]
    try:
        result = run(
            connections, seconds, depth=depth, cards=cards, verify=check_macs, pin=pin,
            directory=directory, say=lambda text: click.echo(text, err=True),
        )  # fmt: skip
    except BenchError as error:
        raise CliError(str(error)) from None
    call.answer(result, lambda: print_fields(result))


@bench.command("link")
@click.option(
    "--in-flight", type=click.IntRange(1, 1024), default=100, show_default=True,
    help="Requests unanswered at any moment, over all connections.",
)  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 90), default=10.0, show_default=True)
@click.option("--holds", type=click.IntRange(1), help="At most; else 60000 a second.")
@click.option("--verify", "check_macs", is_flag=True, help="Check the MAC of every answer.")
@click.option("--pin", is_flag=True, help="Node on the first CPU, client on the last.")
@click.option(
    "--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data directory is made; its disk is the one measured.",
)  # fmt: skip
@click.pass_obj
def bench_link(
    call: Call, in_flight: int, connections: int, seconds: float, holds: int | None,
    check_macs: bool, pin: bool, directory: Path | None,
) -> None:  # fmt: skip
    """Holds a second over one ISO 8583 link, each decided by ceibo and durable, MAC on.

    Progress goes to stderr; with --json the result is the last line on stdout.
    """
    from bench.load.link import run
    from bench.load.server import BenchError

    result: dict[str, Any]
    try:
        result = run(
            in_flight, seconds, connections=connections, holds=holds, verify=check_macs, pin=pin,
            directory=directory, say=lambda text: click.echo(text, err=True),
        )  # fmt: skip
    except BenchError as error:
        raise CliError(str(error)) from None
    call.answer(result, lambda: print_fields(result))
