"""What goes over the admin socket of a running node, and the side that asks.

Light on purpose: a command that only asks a node loads this, and nothing of the node.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

SOCKET_NAME: Final = "admin.sock"
READ_BYTES: Final = 1 << 20


class ProvisioningError(Exception):
    """A command that cannot be carried out; nothing was changed. `hint` says what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class Request(msgspec.Struct, frozen=True):
    command: str
    values: dict[str, Any] = {}


class Response(msgspec.Struct, frozen=True, omit_defaults=True):
    ok: Any = None
    error: str = ""
    hint: str = ""


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Yield another name of a socket: one may have 107 bytes, a data directory has any length."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connected(directory: Path) -> socket.socket | None:
    """A connection to the node that runs on a data directory; None: nobody does.

    Raises:
        PermissionError: it belongs to another user.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with short_name(directory / SOCKET_NAME) as name:
            stream.connect(name)
    except (FileNotFoundError, ConnectionRefusedError):
        stream.close()
        return None
    except BaseException:
        stream.close()
        raise
    return stream


def asked(stream: socket.socket, command: str, values: dict[str, Any]) -> Response:
    """Put one command, and wait until the node has carried it out or refused it.

    Raises:
        ConnectionError: the node went away first.
    """
    stream.sendall(msgspec.json.encode(Request(command, values)) + b"\n")
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        data = stream.recv(READ_BYTES)
        if not data:
            raise ConnectionAbortedError("the node closed the admin socket")
        buffer += data
    return msgspec.json.decode(buffer, type=Response)
