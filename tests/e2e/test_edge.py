"""HTTP over real sockets: hosting, limits, shutdown, and the ops application."""

import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from switch.ops.health import Health, ops_app
from switch.ops.metrics import CONTENT_TYPE, Metrics
from switch.web.edge import App, HttpCounts, HttpLimits, Receive, Scope, Send, serve_http


class Edge:
    """A served application, and a client for it."""

    def __init__(self, client: httpx.AsyncClient, address: tuple[str, int]) -> None:
        self.client = client
        self.address = address
        self.stop = trio.Event()
        self.stopped = trio.Event()
        self.counts = HttpCounts()


@contextlib.asynccontextmanager
async def edge(
    app: App, limits: HttpLimits | None = None, tls: ssl.SSLContext | None = None, **client: Any
) -> AsyncIterator[Edge]:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    address = listener.socket.getsockname()
    scheme = "http" if tls is None else "https"
    base_url = f"{scheme}://127.0.0.1:{address[1]}"
    async with (
        trio.open_nursery() as nursery,
        httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=60, **client) as http,
    ):
        served = Edge(http, address)

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await serve_http(
                app,
                listener,
                stop=served.stop,
                limits=limits,
                counts=served.counts,
                tls=tls,
                task_status=task_status,
            )
            served.stopped.set()

        await nursery.start(partial(serve))
        yield served
        served.stop.set()
        with trio.fail_after(120):
            await served.stopped.wait()


async def hello(request: Request) -> Response:
    return PlainTextResponse("hola")


async def measure(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await trio.sleep_forever()


async def broken(request: Request) -> Response:
    raise RuntimeError("a bug of ours")


async def flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends without end, as fast as the peer takes it."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})


def application() -> Starlette:
    return Starlette(
        routes=[
            Route("/", hello),
            Route("/measure", measure, methods=["POST"]),
            Route("/broken", broken),
        ]
    )


async def test_requests_share_a_connection() -> None:
    async with edge(application()) as served:
        for _ in range(3):
            response = await served.client.get("/")
            assert (response.status_code, response.text) == (200, "hola")
        assert "server" not in response.headers
        assert (served.counts.accepted, served.counts.requests) == (1, 3)
        assert (await served.client.get("/missing")).status_code == 404


async def test_a_file_is_sent_whole(tmp_path: Path) -> None:
    """Its head and its body come apart, its task ends with its last piece, and its connection is
    idle then: a stop does not wait for it."""
    for size in (0, 1, 5000, 200_000):
        (tmp_path / f"{size}.css").write_bytes(bytes(size))
    app = Starlette(routes=[Mount("/", StaticFiles(directory=tmp_path))])
    async with edge(app, HttpLimits(drain_s=300)) as served:
        for size in (0, 1, 5000, 200_000):
            response = await served.client.get(f"/{size}.css")
            assert (response.status_code, len(response.content)) == (200, size)
        assert served.counts.accepted == 1


async def test_nothing_is_written_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    async with edge(application()) as served:
        await served.client.get("/")
        assert (await served.client.get("/broken")).status_code == 500
        assert (await served.client.get("/")).status_code == 200
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("size", [0, 999, 1000])
async def test_bodies_up_to_the_limit(size: int) -> None:
    async with edge(application(), HttpLimits(body_bytes_max=1000)) as served:
        response = await served.client.post("/measure", content=bytes(size))
        assert response.text == str(size)


async def test_a_declared_body_over_the_limit() -> None:
    async with edge(application(), HttpLimits(body_bytes_max=1000)) as served:
        response = await served.client.post("/measure", content=bytes(1001))
        assert response.status_code == 413
        assert served.counts.too_large == 1
        assert (await served.client.get("/")).status_code == 200


async def test_a_chunked_body_over_the_limit() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(300)

    async with edge(application(), HttpLimits(body_bytes_max=1000)) as served:
        response = await served.client.post("/measure", content=chunks())
        assert (response.status_code, response.text) == (413, "body too large\n")
        assert (served.counts.too_large, served.counts.failures) == (1, 0)


async def test_long_headers_are_refused() -> None:
    async with edge(application(), HttpLimits(header_bytes_max=2000)) as served:
        stream = await trio.open_tcp_stream(*served.address)
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"y" * 3000)
            answer = await _read_all(stream)
        assert answer.startswith(b"HTTP/1.1 431 ")


async def test_no_answer_in_time() -> None:
    async with edge(never, HttpLimits(request_s=0.05)) as served:
        response = await served.client.get("/")
        assert response.status_code == 503
        assert served.counts.timeouts == 1


async def test_one_connection_too_many() -> None:
    async with edge(application(), HttpLimits(connections_max=1)) as served:
        await served.client.get("/")  # its connection stays open
        stream = await trio.open_tcp_stream(*served.address)
        async with stream:
            answer = await _read_all(stream)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert (served.counts.connections, served.counts.refused) == (1, 1)
        assert (await served.client.get("/")).status_code == 200


async def test_an_idle_connection_and_a_slow_head_are_closed() -> None:
    async with edge(application(), HttpLimits(idle_s=0.05)) as served:
        for beginning in (b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: "):
            stream = await trio.open_tcp_stream(*served.address)
            async with stream:
                if beginning:
                    await stream.send_all(beginning)
                with trio.fail_after(120):
                    await _read_all(stream)


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxx" * 9],
)
async def test_garbage_hurts_nobody_else(garbage: bytes) -> None:
    async with edge(application()) as served:
        stream = await trio.open_tcp_stream(*served.address)
        async with stream:
            await stream.send_all(garbage)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_eof()
                await _read_all(stream)
        assert (await served.client.get("/")).text == "hola"


@pytest.mark.parametrize(
    "head",
    [b"POST /measure HTTP/1.0", b"POST /measure HTTP/1.1\r\nHost: x\r\nConnection: close"],
    ids=["1.0", "1.1"],
)
async def test_what_stands_behind_the_last_request_is_ignored(head: bytes) -> None:
    """Kits of 2010 write CR LF behind a body, which its length does not count."""
    kind = b"Content-Type: application/octet-stream"
    request = b"\r\n".join((head, kind, b"Content-Length: 5", b"", b"abcde"))
    async with (
        edge(application()) as served,
        await trio.open_tcp_stream(*served.address) as stream,
    ):
        await stream.send_all(request + b"\r\n")
        answer = await _read_all(stream)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"5")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_web_socket_is_refused() -> None:
    async with edge(application()) as served:
        headers = {
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        assert (await served.client.get("/", headers=headers)).status_code == 403


async def test_a_peer_that_does_not_read_is_cut_off() -> None:
    async with edge(flood, HttpLimits(write_s=0.05)) as served:
        stream = await trio.open_tcp_stream(*served.address)
        async with stream:
            await stream.send_all(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: served.counts.accepted == 1 and served.counts.connections == 0)


async def test_shutdown_lets_running_requests_finish() -> None:
    entered, leave = trio.Event(), trio.Event()

    async def slow(request: Request) -> Response:
        entered.set()
        await leave.wait()
        return PlainTextResponse("done")

    answers = []
    async with edge(Starlette(routes=[Route("/slow", slow)])) as served:

        async def ask() -> None:
            answers.append((await served.client.get("/slow")).text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await entered.wait()
            served.stop.set()
            await trio.sleep(0.02)
            with pytest.raises(OSError):
                await trio.open_tcp_stream(*served.address)
            assert not served.stopped.is_set()
            leave.set()
    assert answers == ["done"]


@pytest.mark.parametrize("app", [never, flood])
async def test_shutdown_has_an_end(app: App) -> None:
    """Neither a request without end nor a write nobody reads holds a node up."""
    async with edge(app, HttpLimits(drain_s=0.1)) as served:
        stream = await trio.open_tcp_stream(*served.address)
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: served.counts.requests == 1)
            await trio.sleep(0.05)  # time for the flood to fill the socket
            served.stop.set()
            with trio.fail_after(120):
                await served.stopped.wait()


async def test_start_up_and_shutdown_of_the_application() -> None:
    events = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        events.append("up")
        yield
        events.append("down")

    async with edge(Starlette(routes=[Route("/", hello)], lifespan=lifespan)) as served:
        assert events == ["up"]
        await served.client.get("/")
    assert events == ["up", "down"]


async def test_a_failing_start_up_is_reported() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no templates")
        yield

    with pytest.raises(ExceptionGroup):
        async with edge(Starlette(lifespan=lifespan)):
            raise AssertionError("must not have started")


def certificate(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server context with a new key for 127.0.0.1, and a client context that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + cert.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cafile=str(path))
    return server, client


async def test_https(tmp_path: Path) -> None:
    server, client = certificate(tmp_path)
    async with edge(application(), tls=server, verify=client) as served:
        response = await served.client.get("/")
        assert (response.text, response.http_version) == ("hola", "HTTP/1.1")
        stream = await trio.open_tcp_stream(*served.address)
        async with stream:  # plain HTTP at a TLS port
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                await _read_all(stream)
        assert (await served.client.get("/")).status_code == 200


# ---- the ops application -------------------------------------------------------------------------


class Node:
    failure: str | None = None
    recovered = True
    listening = True
    room_bytes = 1 << 20
    draining = False

    def health(self) -> Health:
        return Health(
            journal_failure=lambda: self.failure,
            recovered=lambda: self.recovered,
            listeners_open=lambda: self.listening,
            journal_room_bytes=lambda: self.room_bytes,
            room_bytes_min=1 << 16,
            draining=lambda: self.draining,
        )


async def test_metrics_over_http() -> None:
    metrics = Metrics()
    metrics.add_process()
    async with edge(ops_app(metrics, Node().health())) as served:
        response = await served.client.get("/metrics")
        assert response.headers["content-type"] == CONTENT_TYPE
        assert b"\ntroncal_process_resident_bytes " in response.content
        assert (await served.client.post("/metrics")).status_code == 405


async def test_a_sound_node_is_alive_and_ready() -> None:
    async with edge(ops_app(Metrics(), Node().health())) as served:
        for path in ("/healthz", "/readyz"):
            response = await served.client.get(path)
            assert response.status_code == 200
            assert response.json()["status"] == "ok"
            assert set(response.json()["checks"].values()) == {"ok"}
            assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("field", "value", "check", "alive"),
    [
        ("failure", "ENOSPC", "journal", False),
        ("recovered", False, "recovery", True),
        ("listening", False, "listeners", True),
        ("room_bytes", 100, "journal_room", True),
        ("draining", True, "drain", True),
    ],
)
async def test_what_is_wrong_is_said(field: str, value: object, check: str, alive: bool) -> None:
    node = Node()
    setattr(node, field, value)
    async with edge(ops_app(Metrics(), node.health())) as served:
        assert (await served.client.get("/healthz")).status_code == (200 if alive else 503)
        response = await served.client.get("/readyz")
        assert response.status_code == 503
        body = response.json()
        assert body["status"] == "failed"
        assert [name for name, result in body["checks"].items() if result != "ok"] == [check]


async def until(happened: Callable[[], bool]) -> None:
    """Wait at most 120 s for something that only the server's counts tell."""
    with trio.fail_after(120):
        while not happened():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def _read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    while part := await stream.receive_some():
        data += part
    return data
