"""HTTP/1.1 to few servers, many times: connections that are kept, answers whole and bounded.

llhttp (httptools) reads answers. httpx's own pool looks at every connection for every request, and
its records of a request and an answer cost as much as the exchange; here connections are taken
again the newest first. Every wait is inside the budget of the caller, which has to set one; what is
cut short closes its connection, so an answer never meets another request.
"""

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import httptools
import httpx
import trio

RECEIVE_BYTES: Final = 65_536
HEAD_BYTES_MAX: Final = 65_536
PORTS: Final = {"http": 80, "https": 443}
_UNSAFE: Final = re.compile(r"[\x00\r\n]")
_TARGET: Final = re.compile(r"/[!-~]*")
Headers = Sequence[tuple[str, str]]


class Origin(NamedTuple):
    """A server. Fields: scheme: http or https."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, address: str) -> "Origin":
        """That of an address."""
        url = httpx.URL(address)
        return cls(url.scheme, url.host, url.port or PORTS[url.scheme])

    @property
    def authority(self) -> str:
        """What the header Host tells."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


class Answer(NamedTuple):
    """Status, headers by their names in lower case (of several of a name the last), and body."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Wire(Protocol):
    """A way to servers."""

    async def exchange(
        self, origin: Origin, method: str, target: str, headers: Headers, body: bytes
    ) -> Answer:
        """Make one exchange. Host and Content-Length are added to the headers.

        Args:
            target: path and query, encoded.

        Raises:
            httpx.TransportError: whatever the other side or the wire does.
        """

    async def aclose(self) -> None: ...


class Pool:
    """Connections to a few servers; a `Wire`.

    Args:
        connections_max: open at once, over all servers; one more waits.
        idle_s: a connection that was not used for so long is not used again.
        body_bytes_max: of an answer; a longer one is an error.
        context: how TLS is checked.
    """

    def __init__(
        self,
        *,
        connections_max: int,
        idle_s: float,
        body_bytes_max: int,
        context: Callable[[], ssl.SSLContext] = httpx.create_ssl_context,
    ) -> None:
        self._places = trio.Semaphore(connections_max)
        self._idle_s = idle_s
        self._body_bytes_max = body_bytes_max
        self._make_context = context
        self._context: ssl.SSLContext | None = None
        self._kept: dict[Origin, list[_Connection]] = {}

    async def exchange(
        self, origin: Origin, method: str, target: str, headers: Headers, body: bytes
    ) -> Answer:
        """See `Wire`."""
        data = _request(origin, method, target, headers, body)
        async with self._places:
            connection = await self._taken(origin)
            try:
                reading = await connection.exchange(data, self._body_bytes_max)
                if reading.headers.get(b"content-encoding", b"identity") != b"identity":
                    raise httpx.RemoteProtocolError("an encoding that was not asked for")
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                await connection.aclose()
                raise httpx.ReadError(type(error).__name__) from None
            except BaseException:
                await connection.aclose()
                raise
            if reading.reusable:
                connection.used_s = trio.current_time()
                self._kept.setdefault(origin, []).append(connection)
            else:
                await connection.aclose()
        return Answer(reading.status, reading.headers, bytes(reading.body))

    async def _taken(self, origin: Origin) -> "_Connection":
        """The connection used last, if it is still good, or a new one."""
        kept = self._kept.get(origin, [])
        while kept:
            connection = kept.pop()
            if connection.used_s + self._idle_s > trio.current_time() and connection.quiet:
                return connection
            await connection.aclose()
        scheme, host, port = origin
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise httpx.ConnectError(type(error).__name__) from None
        if scheme == "http":
            return _Connection(stream, stream)
        if self._context is None:
            self._context = self._make_context()
        secure = trio.SSLStream(stream, self._context, server_hostname=host, https_compatible=True)
        try:
            await secure.do_handshake()
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            if isinstance(error, trio.BrokenResourceError):
                raise httpx.ConnectError("TLS failed") from None
            raise
        return _Connection(stream, secure)

    async def aclose(self) -> None:
        for kept in self._kept.values():
            while kept:
                await kept.pop().aclose()


def _request(origin: Origin, method: str, target: str, headers: Headers, body: bytes) -> bytes:
    """The bytes of a request. Raises: httpx.LocalProtocolError, for what would be another one."""
    lines = [f"{method} {target} HTTP/1.1", f"host: {origin.authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method != "GET":
        lines.append(f"content-length: {len(body)}")
    if _TARGET.fullmatch(target) is None or any(map(_UNSAFE.search, lines)):
        raise httpx.LocalProtocolError("a target or header with blanks or line ends in it")
    lines += ("", "")
    try:
        return "\r\n".join(lines).encode("latin-1") + body
    except UnicodeEncodeError:
        raise httpx.LocalProtocolError("a header of other characters than headers have") from None


class _Connection:
    """One connection, for one exchange after the other."""

    def __init__(self, below: trio.SocketStream, stream: trio.abc.Stream) -> None:
        self._below = below
        self._stream = stream
        self.used_s = 0.0

    @property
    def quiet(self) -> bool:
        """False where the other side has said something unasked, its goodbye above all."""
        return not self._below.socket.is_readable()

    async def exchange(self, request: bytes, most: int) -> "_Reading":
        stream = self._stream
        await stream.send_all(request)
        reading = _Reading(most)
        while not reading.done:
            reading.take(await stream.receive_some(RECEIVE_BYTES))
        return reading

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class _Reading:
    """One answer on its way, as llhttp tells of it.

    Attributes:
        reusable: the answer has an end of its own, nothing follows, and the server stays.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        self._whole_head = False
        self._over = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.done = self.reusable = False

    def take(self, data: bytes | bytearray) -> None:
        """The next bytes; none: the server has ended the connection.

        Raises:
            httpx.RemoteProtocolError: no answer, or more of it than is taken.
        """
        if not data:
            self._at_end()
            return
        if not self._whole_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.done:  # what stands behind a whole answer ends the connection only
                raise httpx.RemoteProtocolError(type(error).__name__) from None
            self.reusable = False
        if self._over or (not self._whole_head and self._head_bytes > HEAD_BYTES_MAX):
            raise httpx.RemoteProtocolError("an answer beyond all measure")

    def _at_end(self) -> None:
        bounded = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if not self._whole_head or bounded:
            raise httpx.RemoteProtocolError("the connection ended before the answer")
        self.done = True

    # ---- called by httptools

    def on_message_begin(self) -> None:
        if self.done:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.done:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if not self.done:
            self.status = self._parser.get_status_code()
            self._whole_head = self.status >= 200

    def on_body(self, data: bytes) -> None:
        if self.done:
            return
        self._over |= len(self.body) + len(data) > self._most
        if not self._over:
            self.body += data

    def on_message_complete(self) -> None:
        if self._whole_head and not self.done:
            self.done, self.reusable = True, self._parser.should_keep_alive()
        elif not self.done:
            self.headers.clear()  # of an interim answer; another one follows


class PooledTransport(httpx.AsyncBaseTransport):
    """A `Pool` for a client of httpx; see there for its arguments."""

    def __init__(
        self,
        *,
        connections_max: int,
        idle_s: float,
        body_bytes_max: int,
        context: Callable[[], ssl.SSLContext] = httpx.create_ssl_context,
    ) -> None:
        self._pool = Pool(
            connections_max=connections_max, idle_s=idle_s, body_bytes_max=body_bytes_max,
            context=context,
        )  # fmt: skip

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one exchange.

        Raises:
            httpx.TransportError: whatever the other side or the wire does.
        """
        content = await request.aread()
        url = request.url
        origin = Origin(url.scheme, url.host, url.port or PORTS[url.scheme])
        own = ("host", "content-length", "transfer-encoding", "connection")
        headers = [pair for pair in request.headers.multi_items() if pair[0] not in own]
        answer = await self._pool.exchange(
            origin, request.method, url.raw_path.decode("ascii"), headers, content
        )
        return httpx.Response(
            answer.status, headers=list(answer.headers.items()), content=answer.body,
            request=request,
        )  # fmt: skip

    async def aclose(self) -> None:
        await self._pool.aclose()


class OverHttpx:
    """Any transport of httpx as a `Wire`, such as one to an application of the same process."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def exchange(
        self, origin: Origin, method: str, target: str, headers: Headers, body: bytes
    ) -> Answer:
        """See `Wire`."""
        url = f"{origin.scheme}://{origin.authority}{target}"
        request = httpx.Request(method, url, headers=list(headers), content=body or None)
        response = await self._transport.handle_async_request(request)
        content = await response.aread()
        pairs = [(name.lower(), value) for name, value in response.headers.raw]
        return Answer(response.status_code, dict(pairs), content)

    async def aclose(self) -> None:
        await self._transport.aclose()
