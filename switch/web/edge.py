"""Hosts an ASGI application with Hypercorn's trio worker, inside our nursery and on our listener.

Hypercorn parses HTTP; accepting, limits and shutdown are ours, because its own serving function
bounds neither connections nor bodies, takes no open listener of trio, and writes to a peer that
does not read under a shield that no cancellation opens. So every connection here is a
`_BoundedStream`, and the application runs behind `_Bounded`.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("troncal.http")

_WRITE_BYTES_MAX = 64 << 10
_STREAM = "troncal.stream"  # in the state of a connection, where requests find it again
TLS_STREAM = "troncal.tls"  # likewise, where there is TLS
_BODY_TOO_LARGE = b"body too large\n"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: 0\r\n\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one HTTP listener takes. Times in seconds.

    Attributes:
        connections_max: open connections; one more is answered 503 and closed.
        body_bytes_max: body of a request; a longer one is answered 413.
        header_bytes_max: request line and headers; longer ones are answered 431 or 400.
        request_s: from the head of a request to the head of its answer; beyond it 503.
        idle_s: a connection without request, also before its first; this bounds slow headers.
        write_s: until a peer has taken the next 64 KiB; beyond it the connection is closed.
        drain_s: running requests at shutdown.
        streams_max: concurrent requests of one HTTP/2 connection.
    """

    connections_max: int = 512
    body_bytes_max: int = 1 << 20
    header_bytes_max: int = 16 << 10
    request_s: float = 30.0
    idle_s: float = 15.0
    write_s: float = 20.0
    drain_s: float = 10.0
    streams_max: int = 32


@dataclass(slots=True)
class HttpCounts:
    """What one HTTP listener has seen, for metrics."""

    connections: int = 0
    accepted: int = 0
    refused: int = 0
    requests: int = 0
    too_large: int = 0
    timeouts: int = 0
    failures: int = 0


async def serve_http(
    app: App,
    listener: trio.SocketListener,
    *,
    stop: trio.Event,
    limits: HttpLimits | None = None,
    counts: HttpCounts | None = None,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, then close the listener and give running requests `drain_s`.

    `task_status.started()` is called once the application's own start-up is through. No error of a
    peer and none of a request leaves this function; those of the application are logged to
    `troncal.http` and answered 500.

    Args:
        app: the ASGI application; WebSockets are refused.
        listener: open already; owned from here on, and closed when serving ends.
        tls: serve HTTPS with this context.

    Raises:
        ExceptionGroup: of Hypercorn's LifespanFailureError, where the start-up of `app` failed.
    """
    limits = limits or HttpLimits()
    hosted = _Hosted(app, limits, counts if counts is not None else HttpCounts(), tls)
    async with listener, trio.open_nursery() as around:
        await around.start(hosted.lifespan.handle_lifespan)
        await hosted.lifespan.wait_for_startup()
        await trio.lowlevel.checkpoint()  # a start-up that failed cancels us here
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(
                        trio.serve_listeners,
                        hosted.connection,
                        [listener],
                        handler_nursery=connections,
                    )
                )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await listener.aclose()
            await hosted.context.terminated.set()  # idle connections close, busy ones after this
            connections.cancel_scope.deadline = trio.current_time() + limits.drain_s
            around.start_soon(hosted.cut_at, connections.cancel_scope.deadline)
        await hosted.lifespan.wait_for_shutdown()
        around.cancel_scope.cancel()


class _Hosted:
    """An application with what all its connections share."""

    def __init__(
        self, app: App, limits: HttpLimits, counts: HttpCounts, tls: ssl.SSLContext | None
    ) -> None:
        self._limits = limits
        self._counts = counts
        self._tls = tls
        self._config = _config(limits)
        # Hypercorn's types say TypedDict for what its own lifespan fills as a plain dict.
        self._state = cast(Any, {})
        self._app = ASGIWrapper(cast(Any, _Bounded(app, limits, counts)))
        self._open: set[_BoundedStream] = set()
        self.context = WorkerContext(None)
        self.lifespan = Lifespan(self._app, self._config, self._state)

    async def connection(self, stream: trio.SocketStream) -> None:
        """One connection from accept to close. Never raises for a peer, nor for a bug it meets."""
        if len(self._open) >= self._limits.connections_max:
            self._counts.refused += 1
            await _refuse(stream, self._tls)
            return
        self._counts.accepted += 1
        bounded = _BoundedStream(stream, self._limits.write_s)
        transport: trio.abc.Stream = bounded
        state = {**self._state, _STREAM: bounded}
        if self._tls is not None:
            transport = trio.SSLStream(bounded, self._tls, server_side=True, https_compatible=True)
            state[TLS_STREAM] = transport
        self._open.add(bounded)
        self._counts.connections = len(self._open)
        try:
            # Hypercorn's annotation knows TLS streams only; it tells them apart by their methods.
            await _Server(
                self._app,
                self._config,
                self.context,
                ConnectionState(state),
                cast(Any, transport),
            ).run()
        except* Exception:
            self._counts.failures += 1
            log.exception("HTTP connection failed")
        finally:
            self._open.discard(bounded)
            self._counts.connections = len(self._open)
            await trio.aclose_forcefully(stream)

    async def cut_at(self, deadline: float) -> None:
        """End writes that cancellation cannot reach, once the drain is over."""
        await trio.sleep_until(deadline)
        for bounded in self._open:
            bounded.cut()


def _config(limits: HttpLimits) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    config.alpn_protocols = ["http/1.1"]
    config.h11_max_incomplete_size = limits.header_bytes_max
    config.h2_max_header_list_size = limits.header_bytes_max
    config.h2_max_concurrent_streams = limits.streams_max
    config.keep_alive_timeout = limits.idle_s
    config.ssl_handshake_timeout = limits.idle_s
    return config


async def _refuse(stream: trio.SocketStream, tls: ssl.SSLContext | None) -> None:
    try:
        if tls is None:
            # A fresh socket takes these few bytes at once; a second is for the absurd.
            with trio.move_on_after(1):
                await stream.send_all(_FULL)
    except trio.BrokenResourceError:
        pass
    finally:
        await trio.aclose_forcefully(stream)


class _Server(TCPServer):
    """One connection; bytes behind its last request are ignored.

    Old kits write CR LF behind a body, beyond their Content-Length. h11 takes that for a mistake,
    and Hypercorn would answer it with 400 in place of the application.
    """

    async def _read_data(self) -> None:
        inner = self.protocol.protocol
        if isinstance(inner, H11Protocol):
            most = self.config.h11_max_incomplete_size
            inner.connection = _Connection(h11.SERVER, max_incomplete_event_size=most)
        await super()._read_data()


class _Connection(h11.Connection):
    """HTTP/1 as it is read, but for what nobody asked after `Connection: close` or in HTTP/1.0."""

    def next_event(self) -> Any:
        if self.their_state is h11.MUST_CLOSE and self.trailing_data[0]:
            return h11.NEED_DATA
        return super().next_event()


class _BoundedStream(trio.abc.HalfCloseableStream):
    """A TCP stream whose writes end: a peer that reads nothing for `write_s` is gone."""

    def __init__(self, stream: trio.SocketStream, write_s: float) -> None:
        self._stream = stream
        self._write_s = write_s
        self._writing: trio.CancelScope | None = None
        self._gathered: bytearray | None = None
        self.broken = False

    def cut(self) -> None:
        """No byte more: the write under way fails, and so does every later one."""
        self.broken = True
        if self._writing is not None:
            self._writing.cancel()

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket, of which Hypercorn wants the addresses."""
        return self._stream.socket

    @asynccontextmanager
    async def gathering(self) -> AsyncIterator[None]:
        """Make one write of those in here, as far as they are small: head and body of an answer.

        What the peer does with it shows as it does in a write: `broken`, and to who reads.
        """
        if self._gathered is not None:  # a stream of HTTP/2 beside one that gathers already
            yield
            return
        self._gathered = bytearray()
        try:
            yield
        finally:
            await self._let_go()  # nothing, where the connection was closed in between

    async def _let_go(self) -> None:
        data, self._gathered = self._gathered, None
        if data:
            with suppress(trio.BrokenResourceError):
                await self._write(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._gathered is not None:
            if len(self._gathered) + len(data) <= _WRITE_BYTES_MAX:
                self._gathered += data
                return
            data, self._gathered = self._gathered + data, bytearray()
        await self._write(data)

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                if self.broken:
                    raise trio.BrokenResourceError("the connection was cut")
                # Too slow, or cut: both cancel this scope.
                with trio.fail_after(self._write_s) as self._writing:
                    await self._stream.send_all(rest[:_WRITE_BYTES_MAX])
                rest = rest[_WRITE_BYTES_MAX:]
        except (trio.TooSlowError, trio.BrokenResourceError) as error:
            self.broken = True
            # Also wakes the task that reads: nothing else would end this connection.
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the peer takes nothing") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._let_go()
        await self._stream.send_eof()

    async def aclose(self) -> None:
        try:
            await self._let_go()
        finally:
            await self._stream.aclose()


class _Over(Exception):
    """The exchange is over while the application works on it: body too large, or peer gone."""


class _Bounded:
    """ASGI middleware: size of bodies, time to an answer, no WebSockets."""

    def __init__(self, app: App, limits: HttpLimits, counts: HttpCounts) -> None:
        self._app = app
        self._limits = limits
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._counts.requests += 1
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _declared_bytes(scope) > self._limits.body_bytes_max:
            self._counts.too_large += 1
            await _answer(send, 413, _BODY_TOO_LARGE)
            return
        exchange = _Exchange(scope["state"][_STREAM], self._limits, self._counts, receive, send)
        with exchange.deadline:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except* _Over:
                pass
        if exchange.deadline.cancelled_caught:
            self._counts.timeouts += 1
            if not exchange.started:
                await _answer(send, 503, b"no answer in time\n")


class _Exchange:
    """One request and its answer, between the server and the application."""

    def __init__(
        self,
        stream: _BoundedStream,
        limits: HttpLimits,
        counts: HttpCounts,
        receive: Receive,
        send: Send,
    ) -> None:
        self._stream = stream
        self._counts = counts
        self._receive = receive
        self._send = send
        self._room_bytes = limits.body_bytes_max
        self._head: Event | None = None
        self.started = False
        self.deadline = trio.CancelScope(deadline=trio.current_time() + limits.request_s)

    async def receive(self) -> Event:
        event = await self._receive()
        self._room_bytes -= len(event.get("body", b""))
        if self._room_bytes < 0:
            self._counts.too_large += 1
            # Answered here: a framework would turn the exception into a 500 of its own.
            if not self.started:
                self.started = True
                await _answer(self._send, 413, _BODY_TOO_LARGE)
            raise _Over
        return event

    async def send(self, event: Event) -> None:
        if self._room_bytes < 0:
            return  # what the application makes of the exception comes too late
        if self._stream.broken:
            raise _Over  # or an answer without end would go on being made for nobody
        if event["type"] == "http.response.start":
            self.started = True
            self.deadline.deadline = float("inf")  # from here on each write has its own limit
            if any(name == b"content-length" for name, _ in event.get("headers", ())):
                self._head = event  # its body follows at once: one write for both
                return
        # With its last piece an answer is over, and who makes it may be cancelled for that while it
        # is still written and the connection made ready for the next. Writes have their own end.
        with trio.CancelScope(shield=not event.get("more_body", False)):
            head, self._head = self._head, None
            if head is None:
                await self._send(event)
                return
            async with self._stream.gathering():
                await self._send(head)
                await self._send(event)


def _declared_bytes(scope: Scope) -> int:
    """The content length a request declares, 0 where it declares none that is a number."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:19])
    return 0


async def _answer(send: Send, status: int, text: bytes) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
