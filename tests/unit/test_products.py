"""Products beside the cashier roles: steps that are waited for, calls, timers, adoption, mounts."""

import datetime
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypercorn.typing import Scope

from core_ext._journal import JournalFull
from switch import config as configuration
from switch.app import App
from switch.clock import SystemClock
from switch.config import Config
from switch.flows.step import Call, Refusal, Step
from switch.net.calls import Calls
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.products import Product
from switch.web.mounts import Mount, Mounts, path_of

MASTER = MasterKey(bytes(range(32)))
SPACE = 250


class Taken(Refusal):
    """A name that somebody has already."""


class Guestbook:
    """A small product: guests are noted, greeted by a call, and forgotten when their time is up."""

    role = "cip"
    spaces = (SPACE,)

    def __init__(self, node: Node) -> None:
        self._records = node.store.records
        self._dirty: dict[bytes, bytes] = {}
        self.seen: list[str] = []

    def note(self, step: Step, name: str) -> int:
        if self._records.get(SPACE, name.encode()) is not None:
            raise Taken(name)
        self._dirty[name.encode()] = b"noted"
        step.call(self.role, "greet", name)
        step.arm(self.role, "leave", name, 30.0)
        return len(name)

    def greeted(self, step: Step, name: str) -> None:
        self._dirty[name.encode()] = b"greeted"

    def state(self, name: str) -> bytes | None:
        return self._records.get(SPACE, name.encode())

    def unfinished(self) -> Iterable[bytes]:
        return [key for key, _ in self._records.open_items(SPACE)]

    def adopt(self, step: Step, work: bytes) -> None:
        self.seen.append(f"adopted {work.decode()}")
        step.call(self.role, "greet", work.decode())

    def on_deadline(self, step: Step, kind: str, key: str) -> None:
        self.seen.append(f"{kind} {key}")
        self._dirty[key.encode()] = b"left"

    def flush(self) -> None:
        for key, value in self._dirty.items():
            self._records.put(SPACE, key, value, open=value == b"noted", stamp=1)
        self._dirty.clear()

    def reconfigure(self, config: Config) -> None:
        pass


class Service:
    """Takes calls and keeps them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def ready(self, message: Call) -> None:
        self.calls.append(message)

    def flush(self) -> None:
        pass


def load(directory: Path, more: str = "") -> Config:
    path = directory / "troncal.toml"
    listeners = "\n".join(f'{name} = "127.0.0.1:0"' for name in configuration.LISTENERS)
    path.write_text(f"""
[listen]
{listeners}
[journal]
segment_bytes = 1_048_576
group_bytes_max = 262_144
reserve_bytes = 65_536
[ledger]
accounts_max = 1000
holds_max = 1000
keys_max = 1000
records_bytes_max = 1_048_576
{more}""")
    return configuration.load(path, environ={})


Opened = Callable[[], tuple[Node, Guestbook, Service]]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    config = load(tmp_path)

    def make() -> tuple[Node, Guestbook, Service]:
        node = Node(config, MASTER, SystemClock(), tmp_path / "data")
        flow, service = Guestbook(node), Service()
        node.open(lambda: node.attach(flow, service))
        return node, flow, service

    return make


async def running(node: Node, do: Callable[[], Any]) -> None:
    """Run `do` beside what lets a node make progress."""

    async def gate() -> None:
        while True:
            await trio.lowlevel.wait_readable(node.store.journal.fileno())
            node.on_durable()

    async def settle() -> None:
        while True:
            await node.turned.wait()
            node.turned = trio.Event()
            node.settle()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate)
        nursery.start_soon(settle)
        await do()
        nursery.cancel_scope.cancel()


async def test_perform_returns_when_the_step_is_durable(opened: Opened) -> None:
    node, flow, service = opened()

    async def act() -> None:
        assert await node.perform(partial(flow.note, name="ana")) == 3
        assert node.store.journal.durable_seq == node.store.journal.next_seq - 1
        assert service.calls == [Call("cip", "greet", "ana")]
        with pytest.raises(Taken, match="ana"):
            await node.perform(partial(flow.note, name="ana"))
        assert len(service.calls) == 1

    await running(node, act)
    node.close()


async def test_a_call_waits_for_its_step(opened: Opened) -> None:
    node, flow, service = opened()
    step = node.begin()
    flow.note(step, "ana")
    node.end(step)
    assert service.calls == []
    node.store.commit()
    node.settle()
    assert [call.key for call in service.calls] == ["ana"]
    node.close()


async def test_a_step_that_fails_halfway_stops_the_node(opened: Opened) -> None:
    node, _, _ = opened()

    def broken(step: Step) -> None:
        raise KeyError("our mistake")

    async def act() -> None:
        with pytest.raises(KeyError):
            await node.perform(broken)
        await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="failed halfway")):
        await running(node, act)
    node.close()


async def test_perform_tells_that_there_is_no_room(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, flow, _ = opened()
    monkeypatch.setattr(type(node.store), "concluding", False)
    monkeypatch.setattr(type(node.store), "admitting", False)
    with pytest.raises(JournalFull):
        await node.perform(partial(flow.note, name="ana"))
    assert flow.state("ana") is None
    node.close()


async def test_open_work_is_adopted_and_its_timers_run(opened: Opened) -> None:
    node, flow, _ = opened()
    step = node.begin()
    flow.note(step, "ana")
    node.end(step)
    assert any(key == ("cip", "leave", "ana") for key in node._timers)
    node.store.commit()
    node.close()
    node, flow, service = opened()
    assert flow.seen == ["adopted ana"]
    node.store.commit()
    node.settle()
    assert [call.key for call in service.calls] == ["ana"]
    node._arm(("cip", "leave", "ana"), node.clock.mono_ns())
    node.run_timers()
    assert flow.seen == ["adopted ana", "leave ana"]
    assert flow.state("ana") == b"left"
    node.close()


# ---- calls


async def test_calls_are_bounded_and_one_at_a_time_per_key() -> None:
    running_now: list[str] = []
    most: list[int] = []
    gates = {name: trio.Event() for name in "abc"}

    async def act(key: str) -> None:
        running_now.append(key)
        most.append(len(running_now))
        await gates[key].wait()
        running_now.remove(key)

    calls = Calls({"go": act}, concurrent_max=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        for key in "aabc":
            calls.ready(Call("cip", "go", key))
        calls.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(running_now) == ["a", "b"]
        assert calls.waiting == 1
        calls.ready(Call("cip", "go", "a"))  # while it runs: once more afterwards
        gates["a"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(running_now) == ["b", "c"]
        gates["b"].set()
        gates["c"].set()
        await trio.testing.wait_all_tasks_blocked()
        calls.stop()
    assert max(most) == 2
    assert calls.counters.as_dict() == {"ordered": 5, "merged": 1, "done": 4, "failed": 0}


async def test_an_act_of_the_callers_own_is_the_call_of_that_name() -> None:
    """It begins at once, and only where that call neither runs nor waits, and there is a place."""
    done: list[str] = []
    gate = trio.Event()

    async def act(key: str) -> None:
        done.append(f"ordered {key}")

    async def own() -> None:
        done.append("begun")
        await gate.wait()

    calls = Calls({"go": act}, concurrent_max=1)
    assert not calls.begin("go", "a", own), "before it runs"
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        assert calls.begin("go", "a", own)
        assert not calls.begin("go", "a", own), "runs already"
        assert not calls.begin("go", "b", own), "no place"
        calls.ready(Call("transfiya", "go", "a"))
        calls.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["begun"]
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["begun", "ordered a"]
        calls.stop()
        assert not calls.begin("go", "c", own), "stopping"
    assert calls.counters.as_dict() == {"ordered": 2, "merged": 0, "done": 2, "failed": 0}


async def test_nothing_begins_once_the_calls_are_gone() -> None:
    """A handler may still be there, and what it wanted to begin is found at the next start."""

    async def act(key: str) -> None:
        raise AssertionError(key)

    async def own() -> None:
        raise AssertionError("begun")

    calls = Calls({"go": act}, concurrent_max=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        nursery.cancel_scope.cancel()
    assert not calls.begin("go", "a", own)
    calls.spawn(own)
    assert calls.running == 0


async def test_a_call_that_fails_harms_no_other() -> None:
    done: list[str] = []

    async def act(key: str) -> None:
        if key == "bad":
            raise OSError("no route")
        done.append(key)

    calls = Calls({"go": act}, concurrent_max=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        calls.ready(Call("cip", "go", "bad"))
        calls.ready(Call("cip", "go", "good"))
        calls.flush()
        await trio.testing.wait_all_tasks_blocked()
        calls.stop()
    assert done == ["good"]
    assert calls.counters.as_dict()["failed"] == 1


# ---- mounts


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    text = f"{scope['path']} {len(body)}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text})


def test_the_path_of_a_request_target() -> None:
    assert path_of("/a/b") == "/a/b"
    assert path_of("http://shop:80/a/b") == "/a/b"
    assert path_of("HTTPS://shop") == "/"


async def ask(app: Any, path: str, body: bytes = b"") -> tuple[int, str]:
    """One request to an application: status and text of its answer."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await app({"type": "http", "path": path}, receive, send)
    text = b"".join(event.get("body", b"") for event in sent)
    return sent[0]["status"], text.decode()


async def test_the_longest_prefix_decides() -> None:
    async def other(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    mounts = Mounts([Mount("a", ["/a"], echo, body_bytes_max=4), Mount("ab", ["/a/b"], other)])
    assert await ask(mounts, "/a/x", b"1234") == (200, "/a/x 4")
    assert (await ask(mounts, "http://switch/a/x"))[1] == "/a/x 0"
    assert (await ask(mounts, "/a/b/c"))[0] == 201
    assert (await ask(mounts, "/ax"))[0] == 404
    assert (await ask(mounts, "/a", b"12345"))[0] == 413
    assert mounts.mounts[0].counts.too_large == 1


async def test_a_mount_refuses_more_than_it_takes_at_once() -> None:
    release = trio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await echo(scope, receive, send)

    mount = Mount("slow", [""], slow, requests_max=1)
    answers: list[int] = []

    async def one() -> None:
        answers.append((await ask(Mounts([mount]), "/x"))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert (await ask(Mounts([mount]), "/x"))[0] == 503
        release.set()
    assert answers == [200]


async def test_an_app_serves_what_its_products_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composed as in `serve`: listener, service in the lasting nursery, ordered end."""
    greeted = trio.Event()

    def build(node: Node, remotes: Any) -> list[Product]:
        flow = Guestbook(node)

        async def greet(name: str) -> None:
            await node.perform(partial(flow.greeted, name=name))
            greeted.set()

        async def web(scope: Any, receive: Any, send: Any) -> None:
            length = await node.perform(partial(flow.note, name="ana"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(length).encode()})

        calls = Calls({"greet": greet}, concurrent_max=4)
        return [Product(flow=flow, service=calls, mounts=[Mount("book", ["/book"], web)])]

    monkeypatch.setattr("switch.app.build", build)
    app = App(load(tmp_path), MASTER, followers=False)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(partial(app.run, on_ready=lambda addresses: None))
        host, port = addresses["http"]
        async with httpx.AsyncClient(timeout=120) as client:
            answer = await client.get(f"http://{host}:{port}/book/sign")
            assert (answer.status_code, answer.text) == (200, "3")
            assert (await client.get(f"http://{host}:{port}/other")).status_code == 404
        with trio.fail_after(120):
            await greeted.wait()
        app.stop.set()
    assert app.products[0].flow.state("ana") == b"greeted"  # type: ignore[attr-defined]


def certificate(directory: Path) -> None:
    """A certificate for this machine, signed by itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(private.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(private, SHA256())
    )  # fmt: skip
    (directory / "cert.pem").write_bytes(built.public_bytes(Encoding.PEM))
    (directory / "key.pem").write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "good"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
async def test_WP_48_no_handshake_below_TLS_1_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion, good: bool
) -> None:
    def build(node: Node, remotes: Any) -> list[Product]:
        calls = Calls({}, concurrent_max=1)
        return [Product(flow=Guestbook(node), service=calls, mounts=[Mount("echo", [""], echo)])]

    certificate(tmp_path)
    monkeypatch.setattr("switch.app.build", build)
    config = load(tmp_path, '[tls.http]\ncert = "cert.pem"\nkey = "key.pem"\n')
    app = App(config, MASTER, followers=False)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(partial(app.run, on_ready=lambda addresses: None))
        stream = await trio.open_tcp_stream(*addresses["http"])
        tls = trio.SSLStream(stream, client, server_hostname="localhost", https_compatible=True)
        if good:
            await tls.do_handshake()
            await tls.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await tls.receive_some(4096)).startswith(b"HTTP/1.1 200")
        else:
            with pytest.raises(trio.BrokenResourceError):
                await tls.do_handshake()
        await trio.aclose_forcefully(stream)
        app.stop.set()
