"""HTTP/1.1 to few servers, many times: a transport for httpx by h11.

httpx's own pool looks at every connection for every request. Here connections are kept and taken
again the newest first, and bodies are whole and bounded. Every wait is inside the budget of the
caller, which has to set one; what is cut short closes its connection, so an answer never meets
another request.
"""

import ssl
from collections.abc import Callable
from typing import Final

import h11
import httpx
import trio

RECEIVE_BYTES: Final = 65_536
PORTS: Final = {"http": 80, "https": 443}
Origin = tuple[str, str, int]


class PooledTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 to a few origins.

    Args:
        connections_max: open at once, over all origins; one more waits.
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

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one exchange.

        Raises:
            httpx.TransportError: whatever the other side or the wire does.
        """
        content = await request.aread()
        origin = _origin(request.url)
        async with self._places:
            connection = await self._taken(origin)
            try:
                response = await connection.exchange(request, content, self._body_bytes_max)
            except (h11.RemoteProtocolError, ssl.SSLError) as error:
                await connection.aclose()
                raise httpx.RemoteProtocolError(str(error), request=request) from None
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                await connection.aclose()
                raise httpx.ReadError(type(error).__name__, request=request) from None
            except BaseException:
                await connection.aclose()
                raise
            if connection.reusable:
                connection.used_s = trio.current_time()
                self._kept.setdefault(origin, []).append(connection)
            else:
                await connection.aclose()
        return response

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


class _Connection:
    """One connection, for one exchange after the other."""

    def __init__(self, below: trio.SocketStream, stream: trio.abc.Stream) -> None:
        self._below = below
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self.used_s = 0.0

    @property
    def quiet(self) -> bool:
        """False where the other side has said something unasked, its goodbye above all."""
        return not self._below.socket.is_readable()

    @property
    def reusable(self) -> bool:
        return self._http.our_state is h11.IDLE

    async def exchange(self, request: httpx.Request, content: bytes, most: int) -> httpx.Response:
        http = self._http
        head = h11.Request(
            method=request.method, target=request.url.raw_path, headers=request.headers.raw
        )
        out = http.send(head) or b""
        if content:
            out += http.send(h11.Data(data=content)) or b""
        out += http.send(h11.EndOfMessage()) or b""
        await self._stream.send_all(out)
        answer: h11.Response | None = None
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await self._stream.receive_some(RECEIVE_BYTES)))
            elif isinstance(event, h11.Response):
                answer = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise h11.RemoteProtocolError("a body beyond all measure")
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise h11.RemoteProtocolError("the connection ended before the answer")
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
        assert answer is not None, "a body follows its head"
        headers = list(answer.headers)
        if any(name == b"content-encoding" and value != b"identity" for name, value in headers):
            raise h11.RemoteProtocolError("an encoding that was not asked for")
        return httpx.Response(
            answer.status_code, headers=headers, content=bytes(body), request=request
        )

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port or PORTS[url.scheme]
