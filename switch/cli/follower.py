"""`project`: the read model's follower, which every node has beside it."""

import os
import signal
from pathlib import Path
from typing import Final

import click
import trio

from switch.cli.base import Call, CliError, Command
from switch.cli.questions import master_key
from switch.config import Config
from switch.journal.projector import Projector

JOURNAL: Final = "journal"
PARENT_CHECK_S: Final = 1.0


def existing_directory(config: Config) -> Path:
    """The data directory. Raises: CliError where there is none."""
    directory = config.data
    if not (directory / JOURNAL).is_dir():
        raise CliError(
            f"there is no journal in {directory}",
            "`troncal init` makes one; or the volume it is on is not mounted",
        )
    return directory


@click.command(cls=Command, hidden=True)
@click.option("--follow", is_flag=True, help="Go on until SIGTERM, or until the parent ends.")
@click.option("--parent", type=int, default=os.getppid, help="Process to end with.")
@click.pass_obj
def project(call: Call, follow: bool, parent: int) -> None:
    """Bring the read model up to the journal's end; `serve` runs this with --follow."""
    config = call.config()
    projector = Projector(config, existing_directory(config), master_key(config))
    try:
        if follow:
            trio.run(_follow, projector, parent)
        else:
            call.fields({"records": projector.catch_up()})
    finally:
        projector.close()


async def _follow(projector: Projector, parent: int) -> None:
    stop = trio.Event()

    async def obey() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                stop.set()

    async def mind_parent() -> None:
        # A node that is killed cannot end us, and the next one brings a second follower.
        while os.getppid() == parent and not stop.is_set():
            with trio.move_on_after(PARENT_CHECK_S):
                await stop.wait()
        stop.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey)
        nursery.start_soon(mind_parent)
        await projector.follow(stop)
        nursery.cancel_scope.cancel()
