"""How a command reaches a data directory: through the node that runs on it, or by itself.

A running node answers on the admin socket of its directory. Where nobody does, the command opens
the directory as a node would (recovery included), does its work and makes it durable. Whichever it
is, an answer means that the change is on disk.
"""

import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from switch.admin_socket import (
    READ_BYTES,
    SOCKET_NAME,
    ProvisioningError,
    Request,
    Response,
    asked,
    connected,
    short_name,
)
from switch.cli.base import CliError
from switch.config import Config

# The node and its loop are imported where a command needs them: most only ask one that runs.
if TYPE_CHECKING:
    import trio

    from switch.node import Node

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
    found, answer = _asked_once(config, command, values)
    if not found:
        (answer,) = provision_all(config, [(command, values)])
    return _told(answer)


def provision_all(
    config: Config, commands: Sequence[Command], progress: Callable[[int], None] = lambda n: None
) -> list[Any]:
    """Carry out many commands; a `Refusal` stands where one was refused.

    Args:
        progress: called with the number of commands that have become durable since.
    """
    import trio

    return trio.run(_provision_all, config, commands, progress)


def ask_node(config: Config, command: str, **values: Any) -> Any:
    """Ask the node that runs on the data directory what only a running one knows.

    Raises:
        ProvisioningError: refused.
        CliError: no node runs there.
    """
    found, answer = _asked_once(config, command, values)
    if not found:
        raise CliError(f"no node runs on {config.data}", f"troncal serve -c {config.path}")
    return _told(answer)


def node_answers(config: Config) -> bool:
    """Tell whether a node runs on the data directory."""
    return _answers(config.data)


def _answers(directory: Path) -> bool:
    stream = _connected(directory)
    if stream is not None:
        stream.close()
    return stream is not None


def _connected(directory: Path) -> Any:
    try:
        return connected(directory)
    except PermissionError:
        path = directory / SOCKET_NAME
        raise CliError(f"{path} belongs to another user", "run as the node's user") from None


def _asked_once(config: Config, command: str, values: dict[str, Any]) -> tuple[bool, Any]:
    """Whether a node runs on the data directory, and its answer."""
    stream = _connected(config.data)
    if stream is None:
        return False, None
    with stream:
        try:
            return True, _answer(asked(stream, command, values))
        except OSError:
            raise _went_away() from None


def _went_away() -> CliError:
    return CliError(
        "the node went away before it answered: the change may have been made or not",
        "look with the `list` or `show` command before trying again",
    )


def _answer(response: Response) -> Any:
    return Refusal(response.error, response.hint) if response.error else response.ok


@asynccontextmanager
async def opened(config: Config) -> "AsyncIterator[Node]":
    """The node of a stopped data directory, in this process; durable at the end.

    Open work stays as it is: to conclude it is for the node, which has the links to do it with.

    Raises:
        BlockingIOError: another process has the directory.
    """
    import structlog

    from switch.clock import SystemClock
    from switch.node import Node
    from switch.ops import logs
    from switch.ops.keys import MasterKey

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
    import trio

    if _answers(config.data):
        async with await _open(config.data) as stream:

            async def ask(command: str, values: dict[str, Any]) -> Any:
                try:
                    return _told(await _ask(stream, command, values))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise CliError(
                        "the node went away before it answered", "give the command again"
                    ) from None

            yield ask
        return
    from switch.provisioning import Provisioning

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
    import trio

    if not (config.data / "journal").is_dir():
        raise CliError(f"there is no journal in {config.data}", "`troncal init` makes one")
    give_up_at = trio.current_time() + LOCK_WAIT_S
    while True:
        if _answers(config.data):
            return await _through(config.data, commands, progress)
        try:
            return await _by_itself(config, commands, progress)
        except BlockingIOError:
            if trio.current_time() >= give_up_at:
                raise
        await trio.sleep(LOCK_PAUSE_S)


async def _by_itself(
    config: Config, commands: Sequence[Command], progress: Callable[[int], None]
) -> list[Any]:
    from switch.provisioning import Provisioning

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


async def _open(directory: Path) -> "trio.SocketStream":
    import trio

    with short_name(directory / SOCKET_NAME) as name:
        return await trio.open_unix_socket(name)


async def _through(
    directory: Path, commands: Sequence[Command], progress: Callable[[int], None]
) -> list[Any]:
    """Over a few connections at once, each taking the next command as it gets free."""
    import trio

    answers: list[Any] = [None] * len(commands)
    waiting = iter(range(len(commands)))

    async def work() -> None:
        async with await _open(directory) as stream:
            for position in waiting:
                answers[position] = await _ask(stream, *commands[position])
                progress(1)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(min(CONNECTIONS, len(commands))):
                nursery.start_soon(work)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        raise _went_away() from None
    return answers


async def _ask(stream: "trio.SocketStream", command: str, values: dict[str, Any]) -> Any:
    import trio

    await stream.send_all(msgspec.json.encode(Request(command, values)) + b"\n")
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        data = await stream.receive_some(READ_BYTES)
        if not data:
            raise trio.BrokenResourceError("closed by the node")
        buffer += data
    return _answer(msgspec.json.decode(buffer, type=Response))
