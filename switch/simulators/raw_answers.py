"""A small HTTP server whose answers are made byte by byte, so that they can be as broken as real
ones: without length, with bare line feeds, late, cut short, twice, or not HTTP at all."""

import contextlib
import struct
from collections.abc import Awaitable, Callable
from socket import SO_LINGER, SOL_SOCKET
from typing import Annotated, Final, Literal

import trio
from msgspec import Meta, Struct

from switch.web.mounts import path_of

HEAD_BYTES_MAX: Final = 16 << 10
BODY_BYTES_MAX: Final = 64 << 10
REQUEST_S: Final = 30.0
SILENCE_S: Final = 180.0
"""How long a connection that is never answered is kept open."""

Framing = Literal["length", "chunked", "close", "lf_only", "none"]
Milliseconds = Annotated[int, Meta(ge=0, le=180_000)]


class Delay(Struct, frozen=True, forbid_unknown_fields=True):
    """Pauses before parts of an answer, in milliseconds."""

    headers: Milliseconds = 0
    body: Milliseconds = 0
    last_byte: Milliseconds = 0


class Manner(Struct, frozen=True, kw_only=True):
    """How an answer is sent."""

    delay: Delay = Delay()
    drip_ms: int = 0
    close: Literal["", "before", "in_headers", "in_body"] = ""
    status: int = 200
    framing: Framing = "length"


class RawRequest(Struct, frozen=True):
    """One request as it came. The path is that of a target in either form."""

    method: str
    path: str
    body: bytes
    version: str


class RawAnswer(Struct, frozen=True):
    """What is said: bodies one after the other, each an answer of its own; None: silence."""

    bodies: tuple[bytes, ...] | None
    manner: Manner = Manner()


Handle = Callable[[RawRequest], Awaitable[RawAnswer]]


async def converse(stream: trio.SocketStream, handle: Handle) -> None:
    """Take one request of a connection, answer it as `handle` says, and close."""
    try:
        answer: RawAnswer | None = None
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(REQUEST_S):
                request = await read_request(stream)
                answer = None if request is None else await handle(request)
            if answer is not None:
                await _answer(stream, answer)
    finally:
        await trio.aclose_forcefully(stream)


async def read_request(stream: trio.abc.ReceiveStream) -> RawRequest | None:
    """Read one request, HTTP/1.0 or 1.1 with a length; None: closed, or too much of anything."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some(4096)
        data += bytes(piece)
        if not piece or len(data) > HEAD_BYTES_MAX:
            return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3:
        return None
    length = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length" and value.strip().isdigit():
            length = int(value)
    if length > BODY_BYTES_MAX:
        return None
    while len(body) < length:
        piece = await stream.receive_some(65536)
        if not piece:
            return None
        body += bytes(piece)
    path = path_of(parts[1]).partition("?")[0]
    return RawRequest(parts[0], path, body[:length], parts[2])


def render(body: bytes, status: int = 200, framing: Framing = "length") -> tuple[bytes, bytes]:
    """Return head and body of an answer as they go over the wire."""
    kind = "Content-Type: text/html"
    match framing:
        case "none":
            return b"", body
        case "lf_only":
            return f"HTTP/1.0 {status} OK\n{kind}\n\n".encode(), body
        case "close":
            return f"HTTP/1.1 {status} OK\r\n{kind}\r\nConnection: close\r\n\r\n".encode(), body
        case "chunked":
            head = f"HTTP/1.1 {status} OK\r\n{kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            return head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        case "length":
            length = f"Content-Length: {len(body)}"
            whole = f"HTTP/1.1 {status} OK\r\n{kind}\r\n{length}\r\nConnection: close\r\n\r\n"
            return whole.encode(), body


async def _answer(stream: trio.SocketStream, answer: RawAnswer) -> None:
    manner = answer.manner
    if answer.bodies is None:
        with trio.move_on_after(SILENCE_S):
            while await stream.receive_some(4096):
                pass
        return
    await trio.sleep(manner.delay.headers / 1000)
    if manner.close == "before":
        _reset(stream)
        return
    for number, body in enumerate(answer.bodies):
        head, rest = render(body, manner.status, manner.framing)
        if number == 0:
            await _first(stream, head, rest, manner)
        else:
            await stream.send_all(head + rest)
    await stream.send_eof()
    # Until the peer has closed too: a close with unread bytes would throw our last ones away.
    with trio.move_on_after(1):
        while await stream.receive_some(4096):
            pass


async def _first(stream: trio.SocketStream, head: bytes, body: bytes, manner: Manner) -> None:
    if manner.close == "in_headers":
        head, body = head[: len(head) // 2], b""
    await _drip(stream, head, manner.drip_ms)
    await trio.sleep(manner.delay.body / 1000)
    if manner.close == "in_body":
        body = body[: len(body) // 2]
    if manner.delay.last_byte and body:
        await _drip(stream, body[:-1], manner.drip_ms)
        await trio.sleep(manner.delay.last_byte / 1000)
        body = body[-1:]
    await _drip(stream, body, manner.drip_ms)


async def _drip(stream: trio.SocketStream, data: bytes, pause_ms: int) -> None:
    if not pause_ms:
        if data:
            await stream.send_all(data)
        return
    for place in range(len(data)):
        await stream.send_all(data[place : place + 1])
        await trio.sleep(pause_ms / 1000)


def _reset(stream: trio.SocketStream) -> None:
    """Make the close that follows a reset, as of a process that died."""
    stream.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
