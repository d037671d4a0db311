"""The payment application's world in a thread of its own, beside a browser in the main one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from switch.cli.cip_world import World, prepare, running

START_S = 120.0


@contextmanager
def threaded(
    directory: Path, settings: dict[str, Any] | None = None, **values: Any
) -> Iterator[World]:
    """Run node and site until the end of the block."""
    prepared = prepare(directory, settings, **values)
    ready = threading.Event()
    found: list[Any] = []
    failed: list[BaseException] = []

    async def live() -> None:
        stop = trio.Event()
        async with running(prepared) as world:
            found.extend((world, trio.lowlevel.current_trio_token(), stop))
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="cip-world")
    thread.start()
    try:
        assert ready.wait(START_S), "the world does not start"
        if failed:
            raise failed[0]
        yield found[0]
    finally:
        if found:
            trio.from_thread.run_sync(found[2].set, trio_token=found[1])
        thread.join(START_S)
    if failed:
        raise failed[0]
