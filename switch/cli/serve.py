"""`serve`: run a node until it is told to stop."""

import os
import signal
from collections.abc import AsyncIterator
from typing import get_args

import click
import msgspec
import structlog
import trio

from core_ext import Reader
from switch.app import App, Ready
from switch.cli.base import Call, CliError, Command
from switch.cli.follower import JOURNAL, existing_directory
from switch.cli.provision import node_answers
from switch.config import LISTENERS, Config, Role, parse_address
from switch.journal import snapshot
from switch.ops import logs
from switch.ops.hardening import wipe_freed_memory
from switch.ops.keys import MasterKey

ROLES = get_args(Role)

log = structlog.get_logger("troncal")


def _roles(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> list[str]:
    roles = [role.strip() for role in (value or "").split(",") if role.strip()]
    if value is not None and not roles:
        raise click.BadParameter(f"name one at least of {', '.join(ROLES)}")
    for role in roles:
        if role not in ROLES:
            raise click.BadParameter(f"{role!r} is none of {', '.join(ROLES)}")
    return roles


def _listeners(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, equals, address = value.partition("=")
        if not equals or name not in LISTENERS:
            raise click.BadParameter(f"{value!r}: NAME is one of {', '.join(LISTENERS)}")
        try:
            parse_address(address)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        found[name] = address
    return found


@click.command(cls=Command)
@click.option("--roles", metavar="ROLE,…", callback=_roles, help="Play these roles only.")
@click.option(
    "--listen", "listeners", metavar="NAME=HOST:PORT", multiple=True, callback=_listeners,
    help="Another address for a listener; port 0 takes a free one. Repeatable.",
)  # fmt: skip
@click.pass_obj
def serve(call: Call, roles: list[str], listeners: dict[str, str]) -> None:
    """Run the switch. SIGTERM drains (at most 10 s) and exits 0; a second signal exits at once.
    SIGHUP reads the configuration again, as `troncal reload` does.

    Prints one line, `ready {…}` with the addresses, once all listeners are open. Logs go to stderr.
    """
    options = {f"listen.{name}": address for name, address in listeners.items()}
    if roles:
        options["node.roles"] = ",".join(roles)
    config = call.config(options)
    check_storage(config)
    if config.webpay.wipe_memory:
        wipe_freed_memory()
    logs.configure(config.node.log_level)
    trio.run(run, config)


def check_storage(config: Config) -> None:
    """A node goes on from its own storage and never begins an empty one by itself: where there is
    none, a volume is not mounted, or files are gone.

    Raises: CliError, Corruption.
    """
    directory = existing_directory(config)
    if snapshot.files(directory):
        return  # recovery begins there, and finds out by itself
    reader = Reader(str(directory / JOURNAL))
    try:
        is_empty = reader.next() is None
    finally:
        reader.close()
    if is_empty and not node_answers(config):
        raise CliError(
            f"the journal in {directory} holds nothing, not even what `troncal init` writes",
            "segments are missing: put them back, or `troncal restore` a backup into another "
            "directory",
        )


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, and return once all is drained and durable."""
    app = App(config, MasterKey.load(config.file(config.node.master_key_file)))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, app, signals)
            await app.run(on_ready=_say_ready)
            nursery.cancel_scope.cancel()


async def _obey(app: App, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            app.hang_up()
            continue
        if app.stop.is_set():
            # Whoever asks twice does not want to wait: the journal makes this safe at any time.
            os._exit(128 + number)
        log.info("stopping", signal=signal.Signals(number).name)
        app.stop.set()


def _say_ready(addresses: Ready) -> None:
    click.echo(f"ready {msgspec.json.encode(addresses).decode()}")
