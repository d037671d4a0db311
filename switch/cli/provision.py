"""How a command reaches a data directory: through the node that runs on it, or by itself.

A running node answers on the admin socket of its directory. Where nobody does, the command opens
the directory as a node would (recovery included), does its work and makes it durable. Whichever it
is, an answer means that the change is on disk.
"""

import errno
import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import trio

from switch.admin import SOCKET_NAME, Request, Response
from switch.cli.base import CliError
from switch.clock import SystemClock
from switch.config import Config
from switch.node import Node
from switch.ops import logs
from switch.ops.keys import MasterKey
from switch.provisioning import Provisioning, ProvisioningError

LOCK_WAIT_S: Final = 10.0
"""How long a command waits for another one that has the directory."""

LOCK_PAUSE_S: Final = 0.05
CONNECTIONS: Final = 8
"""Of a bulk command to a running node: that many changes share one durable group."""

BATCH: Final = 500
"""Commands on a stopped directory between two commits, at most."""

Command = tuple[str, dict[str, Any]]
Carry = Callable[[str, dict[str, Any]], Awaitable[Any]]


class _Stderr(io.StringIO):
    """Whatever stderr is at the moment: stdout has the result, and nothing else."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class Refusal(msgspec.Struct, frozen=True):
    """Why one command of many was not carried out."""

    reason: str
    hint: str = ""


def provision(config: Config, command: str, **values: Any) -> Any:
    """Carry out one command.

    Raises:
        ProvisioningError: refused; nothing was changed.
        CliError, OSError, StateError: the directory cannot be used.
    """
    (answer,) = provision_all(config, [(command, values)])
    if isinstance(answer, Refusal):
        raise ProvisioningError(answer.reason, answer.hint)
    return answer


def provision_all(
    config: Config, commands: Sequence[Command], progress: Callable[[int], None] = lambda n: None
) -> list[Any]:
    """Carry out many commands; a `Refusal` stands where one was refused.

    Args:
        progress: called with the number of commands that have become durable since.
    """
    return trio.run(_provision_all, config, commands, progress)


def ask_node(config: Config, command: str, **values: Any) -> Any:
    """Ask the node that runs on the data directory what only a running one knows.

    Raises:
        ProvisioningError: refused.
        CliError: no node runs there.
    """
    if not node_answers(config):
        raise CliError(f"no node runs on {config.data}", f"troncal serve -c {config.path}")
    (answer,) = trio.run(_through, config.data / SOCKET_NAME, [(command, values)], lambda n: None)
    if isinstance(answer, Refusal):
        raise ProvisioningError(answer.reason, answer.hint)
    return answer


def node_answers(config: Config) -> bool:
    """Tell whether a node runs on the data directory."""
    return trio.run(_answers, config.data / SOCKET_NAME)


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Node]:
    """The node of a stopped data directory, in this process; durable at the end.

    Open work stays as it is: to conclude it is for the node, which has the links to do it with.

    Raises:
        BlockingIOError: another process has the directory.
    """
    if not structlog.is_configured():
        logs.configure("warning", stream=_Stderr())
    master = MasterKey.load(config.file(config.node.master_key_file))
    node = Node(config, master, SystemClock(), config.data)
    node.open(conclude=False)  # what is open is finished by `serve`, with the roles it plays
    try:
        yield node
        node.store.commit()
    finally:
        node.close()


@asynccontextmanager
async def commands(config: Config) -> AsyncIterator[Carry]:
    """Carry out commands one after the other, each durable when it is answered.

    Raises:
        BlockingIOError: another process has the directory, and no node answers for it.
    """
    path = config.data / SOCKET_NAME
    if await _answers(path):
        stream = await trio.open_unix_socket(str(path))
        async with stream:

            async def ask(command: str, values: dict[str, Any]) -> Any:
                try:
                    return _told(await _ask(stream, command, values))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise CliError(
                        "the node went away before it answered", "give the command again"
                    ) from None

            yield ask
        return
    async with opened(config) as node:
        provisioning = Provisioning(node)

        async def carry_out(command: str, values: dict[str, Any]) -> Any:
            await trio.lowlevel.checkpoint()
            step = node.begin()
            try:
                answer = provisioning.call(step, command, msgspec.to_builtins(values))
            finally:
                node.end(step)
                node.store.commit()
            return msgspec.to_builtins(answer)

        yield carry_out


def _told(answer: Any) -> Any:
    if isinstance(answer, Refusal):
        raise ProvisioningError(answer.reason, answer.hint)
    return answer


async def _provision_all(
    config: Config, commands: Sequence[Command], progress: Callable[[int], None]
) -> list[Any]:
    path = config.data / SOCKET_NAME
    if not path.parent.is_dir():
        raise CliError(f"there is no data directory {path.parent}", "`troncal init` makes one")
    give_up_at = trio.current_time() + LOCK_WAIT_S
    while True:
        if await _answers(path):
            return await _through(path, commands, progress)
        try:
            return await _by_itself(config, commands, progress)
        except BlockingIOError:
            if trio.current_time() >= give_up_at:
                raise
        await trio.sleep(LOCK_PAUSE_S)


async def _by_itself(
    config: Config, commands: Sequence[Command], progress: Callable[[int], None]
) -> list[Any]:
    answers: list[Any] = []
    told = 0
    async with opened(config) as node:
        provisioning = Provisioning(node)
        for command, values in commands:
            step = node.begin()
            try:
                answers.append(provisioning.call(step, command, values))
            except ProvisioningError as error:
                answers.append(Refusal(str(error), error.hint))
            node.end(step)
            full = node.store.journal.open_bytes > node.store.open_bytes_max
            if full or len(answers) - told == BATCH:
                node.store.commit()
                progress(len(answers) - told)
                told = len(answers)
    progress(len(answers) - told)
    return answers


async def _answers(path: Path) -> bool:
    try:
        stream = await trio.open_unix_socket(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError as error:
        if error.errno == errno.EACCES:
            raise CliError(f"{path} belongs to another user", "run as the node's user") from None
        raise
    await stream.aclose()
    return True


async def _through(
    path: Path, commands: Sequence[Command], progress: Callable[[int], None]
) -> list[Any]:
    """Over a few connections at once, each taking the next command as it gets free."""
    answers: list[Any] = [None] * len(commands)
    waiting = iter(range(len(commands)))

    async def work() -> None:
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            for position in waiting:
                answers[position] = await _ask(stream, *commands[position])
                progress(1)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(min(CONNECTIONS, len(commands))):
                nursery.start_soon(work)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        raise CliError(
            "the node went away before it answered: the change may have been made or not",
            "look with the `list` or `show` command before trying again",
        ) from None
    return answers


async def _ask(stream: trio.SocketStream, command: str, values: dict[str, Any]) -> Any:
    await stream.send_all(msgspec.json.encode(Request(command, values)) + b"\n")
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        data = await stream.receive_some(1 << 20)
        if not data:
            raise trio.BrokenResourceError("closed by the node")
        buffer += data
    response = msgspec.json.decode(buffer, type=Response)
    return Refusal(response.error, response.hint) if response.error else response.ok
