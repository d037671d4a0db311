"""Connections to a network: kept, bounded, never shared between an answer and another request."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from switch.web.wire import HEAD_BYTES_MAX, Origin, Pool, PooledTransport

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


class Server:
    """Answers as told; counts connections and requests."""

    def __init__(self, *answers: bytes, pause_s: float = 0.0, ends: bool = False) -> None:
        self._answers = list(answers)
        self._pause_s = pause_s
        self._ends = ends  # closes behind each answer
        self.connections = 0
        self.requests: list[bytes] = []

    async def __call__(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        buffer = b""
        try:
            while data := await stream.receive_some(65_536):
                buffer += data
                head, end, body = buffer.partition(b"\r\n\r\n")
                at = head.lower().find(b"content-length: ")
                length = int(head[at + 16 :].split(b"\r\n")[0]) if at >= 0 else 0
                if not end or len(body) < length:
                    continue
                buffer = b""
                self.requests.append(head)
                await trio.sleep(self._pause_s)
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                if not answer:
                    return
                await stream.send_all(answer)
                if self._ends:
                    return
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1/action"
        nursery.cancel_scope.cancel()


def answer(body: bytes = b"{}", more: bytes = b"") -> bytes:
    return OK + more + b"content-length: %d\r\n\r\n" % len(body) + body


@asynccontextmanager
async def pool(**more: Any) -> AsyncIterator[PooledTransport]:
    values = {"connections_max": 2, "idle_s": 10.0, "body_bytes_max": 1000} | more
    transport = PooledTransport(**values)
    try:
        yield transport
    finally:
        await transport.aclose()


async def ask(transport: PooledTransport, url: str, body: bytes = b"{}") -> httpx.Response:
    request = httpx.Request("POST", url, content=body)
    return await transport.handle_async_request(request)


async def test_a_connection_is_used_again() -> None:
    server = Server(answer(b'{"a": 1}'))
    async with serving(server) as url, pool() as transport:
        for _ in range(5):
            response = await ask(transport, url)
            assert (response.status_code, response.content) == (200, b'{"a": 1}')
        assert (server.connections, len(server.requests)) == (1, 5)


async def test_chunks_and_bodies_without_length() -> None:
    chunked = OK + b"transfer-encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n"
    async with serving(Server(chunked)) as url, pool() as transport:
        assert (await ask(transport, url)).content == b"[1,2]"


async def test_what_the_server_closes_is_not_used() -> None:
    """Closed while idle, by its own word, and too long ago."""
    server = Server(answer(more=b"connection: close\r\n"))
    async with serving(server) as url, pool() as transport:
        await ask(transport, url)
        await ask(transport, url)
        assert server.connections == 2
    server = Server(answer(), b"")
    async with serving(server) as url, pool() as transport:
        await ask(transport, url)
        with pytest.raises(httpx.TransportError):
            await ask(transport, url)
        assert server.connections == 1
    server = Server(answer())
    async with serving(server) as url, pool(idle_s=0.0) as transport:
        await ask(transport, url)
        await ask(transport, url)
        assert server.connections == 2


async def test_what_stands_behind_an_answer_is_never_another_one() -> None:
    """Neither a second answer that nobody asked for, nor what is no HTTP at all."""
    server = Server(answer(b'{"a": 1}') + answer(b'{"b": 2}'), answer(b"[]") + b"nonsense")
    async with serving(server) as url, pool() as transport:
        assert (await ask(transport, url)).content == b'{"a": 1}'
        assert (await ask(transport, url)).content == b"[]"
        assert (await ask(transport, url)).content == b"[]"
        assert server.connections == 3


async def test_interim_answers_and_bodies_that_end_with_the_connection() -> None:
    class Closing(Server):
        async def __call__(self, stream: trio.abc.Stream) -> None:
            self.connections += 1
            await stream.receive_some(65_536)
            await stream.send_all(self._answers[0])
            await stream.aclose()

    interim = b"HTTP/1.1 103 Early Hints\r\nx-minka-warning: a\r\n\r\n"
    async with serving(Closing(interim + OK + b"\r\n[1]")) as url, pool() as transport:
        for _ in range(2):
            response = await ask(transport, url)
            assert (response.status_code, response.content) == (200, b"[1]")
            assert "x-minka-warning" not in response.headers


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("/v1/a b", "x"), ("/v1\r\nx: y", "x"), ("v1", "x"), ("/v1", "x\r\ny: z"),
        ("/v1", "x\0"), ("/v1", "\u20ac"),
    ],
    ids=repr,
)  # fmt: skip
async def test_nothing_is_smuggled_into_a_request(target: str, value: str) -> None:
    server = Server(answer())
    async with serving(server) as url:
        wire = Pool(connections_max=1, idle_s=1.0, body_bytes_max=10)
        with pytest.raises(httpx.LocalProtocolError):
            await wire.exchange(Origin.of(url), "GET", target, [("x-api-key", value)], b"")
        assert server.connections == 0


CUT_OFF = OK + b"content-length: 10\r\n\r\n{}"


@pytest.mark.parametrize(
    "wrong",
    [
        OK + b"x: " + bytes(HEAD_BYTES_MAX).replace(b"\0", b"a"),
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        answer(bytes(1001)),
        answer(more=b"content-encoding: gzip\r\n"),
        b"nonsense\r\n\r\n",
        CUT_OFF,
        b"",
    ],
    ids=["head too long", "two lengths", "too long", "encoded", "no HTTP", "cut off", "nothing"],
)
async def test_what_is_no_answer(wrong: bytes) -> None:
    server = Server(wrong, ends=wrong == CUT_OFF)  # else it only ends where the client ends it
    async with serving(server) as url, pool() as transport:
        with pytest.raises(httpx.TransportError):
            await ask(transport, url)
        server._answers = [answer()]
        assert (await ask(transport, url)).status_code == 200
        assert server.connections == 2, "what was broken is not used again"


async def test_a_call_that_is_given_up_closes_its_connection() -> None:
    server = Server(answer(b'{"late": 1}'), answer(b'{"mine": 1}'), pause_s=0.2)
    async with serving(server) as url, pool() as transport:
        with trio.move_on_after(0.05) as budget:
            await ask(transport, url)
        assert budget.cancelled_caught
        assert (await ask(transport, url)).content == b'{"mine": 1}'
        assert server.connections == 2


async def test_no_more_connections_than_allowed() -> None:
    server = Server(answer(), pause_s=0.05)
    async with serving(server) as url, pool() as transport, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(ask, transport, url)
    assert (server.connections, len(server.requests)) == (2, 6)


async def test_nobody_there() -> None:
    async with serving(Server(answer())) as url:
        pass
    async with pool() as transport:
        with pytest.raises(httpx.ConnectError):
            await ask(transport, url)


async def test_tls_is_checked(tmp_path: Path) -> None:
    """A certificate that is trusted, and one that is not."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    await trio.run_process(["openssl", *words], capture_stderr=True)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(cert, key)
    server = Server(answer())

    async def secure(stream: trio.SocketStream) -> None:
        try:
            await server(trio.SSLStream(stream, ours, server_side=True, https_compatible=True))
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, secure, 0, host="127.0.0.1"))
        url = f"https://localhost:{listeners[0].socket.getsockname()[1]}/v1/action"
        trusting = partial(ssl.create_default_context, cafile=str(cert))
        async with pool(context=trusting) as transport:
            assert (await ask(transport, url)).status_code == 200
            assert (await ask(transport, url)).status_code == 200
            assert server.connections == 1
        async with pool() as transport:
            with pytest.raises(httpx.ConnectError):
                await ask(transport, url)
        nursery.cancel_scope.cancel()
