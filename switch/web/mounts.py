"""One HTTP listener for several applications: who gets a request, and how much of each is taken.

The listener's own bounds (`edge.HttpLimits`) hold for all; a mount may be narrower. The longest
prefix decides; a request target in absolute form counts by its path, because old clients send it.
"""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refused = Callable[[Scope, int], tuple[bytes, bytes]]

_TEXT = b"text/plain; charset=utf-8"


@dataclass(slots=True)
class MountCounts:
    """What one mount has seen, for metrics."""

    requests: int = 0
    refused: int = 0
    too_large: int = 0
    timeouts: int = 0


class Mount:
    """An application under path prefixes, which it gets whole (no `root_path` is split off).

    Args:
        name: for metrics.
        prefixes: each begins with "/" and ends without; "" takes all.
        body_bytes_max: body of a request; a longer one is answered 413.
        requests_max: requests under way; one more is answered 503.
        request_s: time until the answer begins; then 503.
        refused: type and body of the answer to what is not even handed to the application, by its
            scope and status, where it is another than a line of text.
    """

    def __init__(
        self,
        name: str,
        prefixes: Sequence[str],
        app: App,
        *,
        body_bytes_max: int = 32 << 10,
        requests_max: int = 256,
        request_s: float = 30.0,
        refused: Refused | None = None,
    ) -> None:
        self.name = name
        self._refused = refused
        self.prefixes = tuple(prefixes)
        self.counts = MountCounts()
        self._app = app
        self._body_bytes_max = body_bytes_max
        self._requests_max = requests_max
        self._request_s = request_s
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.counts.requests += 1
        if self._under_way >= self._requests_max:
            self.counts.refused += 1
            await self._refuse(scope, send, 503, b"too many requests at once\n")
            return
        self._under_way += 1
        try:
            await self._bounded(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._body(receive)
        if body is None:
            self.counts.too_large += 1
            await self._refuse(scope, send, 413, b"body too large\n")
            return
        exchange = _Exchange(body, receive, send, self._request_s)
        with exchange.deadline:
            await self._app(scope, exchange.receive, exchange.send)
        if exchange.deadline.cancelled_caught and not exchange.started:
            self.counts.timeouts += 1
            await self._refuse(scope, send, 503, b"no answer in time\n")

    async def _refuse(self, scope: Scope, send: Send, status: int, text: bytes) -> None:
        kind, body = _TEXT, text
        if self._refused is not None:
            kind, body = self._refused(scope, status)
        more = ((b"retry-after", b"1"),) if status == 503 else ()
        await _answer(send, status, body, *more, kind=kind)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body, read before the application begins; None: it is too long."""
        parts, size = [], 0
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return b""  # gone: the application finds out by itself
            part = event.get("body", b"")
            size += len(part)
            if size > self._body_bytes_max:
                return None
            parts.append(part)
            if not event.get("more_body", False):
                return b"".join(parts)


class _Exchange:
    """One request whose body is here, and its answer."""

    def __init__(self, body: bytes, receive: Receive, send: Send, request_s: float) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self.started = False
        self.deadline = trio.CancelScope(deadline=trio.current_time() + request_s)

    async def receive(self) -> Event:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.started = True
            self.deadline.deadline = float("inf")  # from here on the edge bounds each write
        await self._send(event)


class Mounts:
    """The application of the listener: hands each request to its mount, others get 404."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self.mounts = tuple(mounts)
        pairs = [(prefix, mount) for mount in mounts for prefix in mount.prefixes]
        assert len({prefix for prefix, _ in pairs}) == len(pairs), "a prefix has two mounts"
        self._pairs = sorted(pairs, key=lambda pair: -len(pair[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        path = scope["path"] = path_of(scope["path"])
        for prefix, mount in self._pairs:
            if path == prefix or path.startswith(prefix + "/"):
                await mount(scope, receive, send)
                return
        await _answer(send, 404, b"not found\n")


def path_of(target: str) -> str:
    """The path of a request target in origin or absolute form; "/" where it has none."""
    for scheme in ("http://", "https://"):
        if target[: len(scheme)].lower() == scheme:
            _, slash, path = target[len(scheme) :].partition("/")
            return slash + path or "/"
    return target


async def _live(receive: Receive, send: Send) -> None:
    """Start and end with the listener; applications here have no lifespan of their own."""
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def _answer(
    send: Send, status: int, text: bytes, *more: tuple[bytes, bytes], kind: bytes = _TEXT
) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(text)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
