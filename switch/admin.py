"""The admin socket: provisioning commands on a running node, over a Unix socket of its owner.

One JSON object a line each way: `{"command": "terminal_add", "values": {…}}` is answered by
`{"ok": …}` or `{"error": "…", "hint": "…"}`, once what it changed is durable. Who may open the
socket file may do everything, so its mode is 0600.
"""

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from switch.admin_socket import SOCKET_NAME, ProvisioningError, Request, Response, short_name
from switch.config import ConfigError
from switch.flows.registry import Entity
from switch.flows.step import Step
from switch.node import Node
from switch.provisioning import QUESTIONS, Provisioning

LINE_BYTES_MAX = 1 << 16
CONNECTIONS_MAX = 16


Handler = Callable[[Step, dict[str, Any]], Any]
"""A command that is no provisioning: (step, values) to what is answered once that is durable.

Raises: ProvisioningError, ConfigError: refused, and nothing was changed.
"""


class _Pending:
    """A destination of the reply gate that only wants to know when its change is durable."""

    def __init__(self) -> None:
        self.durable = trio.Event()

    def ready(self, message: Any) -> None:
        pass

    def flush(self) -> None:
        self.durable.set()


class AdminServer:
    """Serves the admin socket of a data directory.

    Args:
        changed: told of every entity that a command stored, once that is durable: whoever keeps
            sessions or links with it acts on it.
        handlers: commands beside those of provisioning, by name; names in `questions` change
            nothing, so they are answered on a full disk as well.
    """

    def __init__(
        self,
        node: Node,
        directory: Path,
        *,
        changed: Callable[[Entity], None] | None = None,
        handlers: Mapping[str, Handler] | None = None,
        questions: frozenset[str] = frozenset(),
    ) -> None:
        self._node = node
        self._provisioning = Provisioning(node)
        self._path = directory / SOCKET_NAME
        self._limit = trio.CapacityLimiter(CONNECTIONS_MAX)
        self._changed = changed
        self._handlers = dict(handlers or {})
        self._questions = QUESTIONS | questions

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self._path.unlink(missing_ok=True)
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            with short_name(self._path) as path:
                await listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(CONNECTIONS_MAX)
        task_status.started()
        try:
            await trio.serve_listeners(self._serve_one, [trio.SocketListener(listener)])
        finally:
            self._path.unlink(missing_ok=True)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        try:
            async with self._limit, stream:
                buffer = b""
                while data := await stream.receive_some(LINE_BYTES_MAX):
                    buffer += data
                    while b"\n" in buffer:
                        line, _, buffer = buffer.partition(b"\n")
                        response = await self._respond(line)
                        await stream.send_all(msgspec.json.encode(response) + b"\n")
                    if len(buffer) > LINE_BYTES_MAX:
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _respond(self, line: bytes) -> Response:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Response(error=f"not a request: {error}")
        step = self._node.begin()
        if not step.admitting and request.command not in self._questions:
            return Response(
                error="there is no room for changes: the disk is full, or the record store",
                hint="see operations.md, When the disk is full",
            )
        changed: list[Entity] = []
        try:
            handler = self._handlers.get(request.command)
            if handler is not None:
                answer = handler(step, request.values)
            else:
                answer = self._provisioning.call(step, request.command, request.values)
                changed = self._provisioning.changed
        except ProvisioningError as error:
            self._node.end(step)
            return Response(error=str(error), hint=error.hint)
        except ConfigError as error:
            self._node.end(step)
            return Response(error=str(error), hint="nothing was applied")
        pending = _Pending()
        step.reply(pending, None)
        self._node.end(step)
        await pending.durable.wait()
        if self._changed is not None:
            for entity in changed:
                self._changed(entity)
        return Response(ok=answer)


async def call(directory: Path, command: str, values: dict[str, Any]) -> Any:
    """Run a command on the node that owns `directory`.

    Raises:
        ProvisioningError: refused, with its hint.
        OSError: no node is running there.
    """
    with short_name(directory / SOCKET_NAME) as path:
        stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(msgspec.json.encode(Request(command, values)) + b"\n")
        buffer = b""
        while not buffer.endswith(b"\n"):
            data = await stream.receive_some(1 << 20)
            if not data:
                raise OSError("the node closed the admin socket")
            buffer += data
    response = msgspec.json.decode(buffer, type=Response)
    if response.error:
        raise ProvisioningError(response.error, response.hint)
    return response.ok
