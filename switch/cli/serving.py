"""A node as a process of its own, for as long as a block lasts."""

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import trio

from switch.cli.base import CliError

READY_S: Final = 60.0
STOP_S: Final = 20.0


@asynccontextmanager
async def serving(
    command: list[str], log: Path
) -> AsyncIterator[tuple[trio.Process, dict[str, list[Any]]]]:
    """Run one `troncal serve` until the end of the block; the process, and where it listens.

    Raises:
        CliError: it did not start, or did not exit with 0; with the end of its log.
    """
    # Not the terminal's process group: Ctrl-C is ours to handle.
    with log_file(log) as errors:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process, await ready_line(process, log)
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


def log_file(path: Path) -> BinaryIO:
    return open(path, "wb")


async def ready_line(process: trio.Process, log: Path) -> dict[str, list[Any]]:
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


async def wait_for_interrupt() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return
