"""Both ends of an ISO 8583 link for tests: a link whose owner writes all down, and a host.

Connections, codec, MACs, link and gate are the real ones. The node behind the link is the real one
where sockets are read by the pump (`live_node`); else one that only keeps books. A `FakeHost`
answers as its script says. Streams are of memory (with a mock clock: time is what a test says) or
of sockets.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing

from core_ext import Histogram
from protocols.iso8583.connection import Connection, Received
from protocols.iso8583.dialect import Dialect, Framing, Message
from protocols.iso8583.keys import HostKeys
from switch.clock import SystemClock
from switch.config import LinkAddress, LinkSettings
from switch.flows.step import Alarm, Reply, Send, Step
from switch.journal.gate import ReplyGate
from switch.net.dial import Dialer, DialError
from switch.net.line import Line
from switch.net.link import Link
from switch.net.pump import Pump
from switch.node import Node as RealNode
from tests.house import MASTER, configuration

CEIBO = Dialect.load("ceibo")
FRAMING = CEIBO.framing or Framing()
WALL_NS = 1_795_359_600_000_000_000
NS = 1_000_000_000
Script = Callable[["Session", Received], Any]


def keys(mac: bytes = bytes(range(16))) -> HostKeys:
    return HostKeys.of("aes-cmac", [(1, mac)], [(1, bytes(32))], [(1, bytes(range(32)))])


def hold(reference: int, terminal: int = 1, amount: int = 150_000) -> dict[str, object]:
    """Elements of a 0100 without those that are the link's."""
    return {
        "3": "010000",
        "4": f"{amount:012}",
        "32": "0007",
        "37": f"{reference:012}",
        "41": f"{terminal:08}",
        "49": "600",
    }


def release(reference: int) -> dict[str, object]:
    return {
        "3": "010000", "4": f"{150_000:012}", "25": "21", "32": "0007", "37": f"{reference:012}",
        "49": "600", "90": "0" * 42,
    }  # fmt: skip


class Clock:
    """Wall clock that goes with trio's; `offset_ns` steps it."""

    def __init__(self) -> None:
        self.offset_ns = 0

    def wall_ns(self) -> int:
        return WALL_NS + int(trio.current_time() * NS) + self.offset_ns


class Config:
    def file(self, name: str) -> Path:
        return Path(name)


class Node:
    """Keeps books of steps; effects pass a real gate and are durable at once."""

    config = Config()

    def __init__(self, requests_max: int = 51) -> None:
        self.clock = Clock()
        self.requests_max = requests_max
        self.gate = ReplyGate()
        self.steps = 0
        self.alarms: list[tuple[str, str]] = []
        self.open = 0
        self.full = self.crowded = False

    def begin(self) -> Step:
        self.open += 1
        assert self.open == 1, "steps do not nest"
        return Step(self.clock.wall_ns(), int(trio.current_time() * NS))

    def end(self, step: Step) -> None:
        self.open -= 1
        self.steps += 1
        for effect in step.effects:
            if isinstance(effect, Alarm):
                self.alarms.append((effect.name, effect.subject))
            elif isinstance(effect, Reply):
                self.gate.hold(0, effect.origin, effect.message, 0)  # type: ignore[arg-type]
            elif isinstance(effect, Send):
                self.gate.hold(0, effect.to, effect.message, -1)  # type: ignore[arg-type]
        self.settle()

    def settle(self) -> None:
        self.gate.release(0, 0, Histogram())

    async def room(self) -> None:
        pass


@asynccontextmanager
async def live_node(directory: Path) -> AsyncIterator[RealNode]:
    """A node with its journal and the two tasks that let out what is durable."""
    node = RealNode(configuration(directory, "", ""), MASTER, SystemClock(), directory / "data")
    node.open()
    journal = node.store.journal

    async def gate() -> None:
        while True:
            await trio.lowlevel.wait_readable(journal.fileno())
            node.on_durable()

    async def settle() -> None:
        while True:
            await node.turned.wait()
            node.turned = trio.Event()
            node.settle()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate)
            nursery.start_soon(settle)
            yield node
            nursery.cancel_scope.cancel()
    finally:
        node.close()


class Owner:
    """The handler of a link: what it was told, in order, and who waits for what."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.answers: dict[Any, Message] = {}
        self.lost: dict[Any, str] = {}
        self.requests: list[tuple[Received, Line]] = []
        self.reply: Callable[[Step, Received, Line], None] | None = None
        self.on_answered: Callable[[Step, Any, Received], None] | None = None
        self.on_gone: Callable[[Step, Any, str], None] | None = None
        self.on_ready: Callable[[Step], None] | None = None
        self.changed = trio.Event()

    def _note(self, what: str, token: Any = None) -> None:
        self.told.append((what, token))
        self.changed.set()
        self.changed = trio.Event()

    def _once(self, token: Any) -> None:
        assert token not in self.answers, f"{token} has ended before: answered"
        assert token not in self.lost, f"{token} has ended before: lost"

    def on_answer(self, step: Step, token: Any, received: Received) -> None:
        self._once(token)
        self.answers[token] = received.message
        self._note("answer", token)
        if self.on_answered is not None:
            self.on_answered(step, token, received)

    def on_lost(self, step: Step, token: Any, reason: str) -> None:
        self._once(token)
        self.lost[token] = reason
        self._note(reason, token)
        if self.on_gone is not None:
            self.on_gone(step, token, reason)

    def on_request(self, step: Step, received: Received, origin: Line) -> None:
        self.requests.append((received, origin))
        self._note("request", received.message.mti)
        if self.reply is not None:
            self.reply(step, received, origin)

    def on_event(self, step: Step, event: Any) -> None:
        self._note("event", event)

    def on_up(self, step: Step) -> None:
        self._note("up")
        if self.on_ready is not None:
            self.on_ready(step)

    def on_down(self, step: Step) -> None:
        self._note("down")

    @property
    def ended(self) -> int:
        return len(self.answers) + len(self.lost)

    async def until(self, true: Callable[[], Any]) -> None:
        while not true():
            await self.changed.wait()


def approve(session: "Session", received: Received) -> None:
    session.answer(received, {"39": "00"})


class Session:
    """One connection at the host's end."""

    def __init__(self, host: "FakeHost", stream: trio.abc.Stream) -> None:
        self.host = host
        self.stream = stream
        self.connection = Connection(
            CEIBO, FRAMING, host.keys, initiator=False, wall_ns=host.wall_ns,
            next_stan=host.next_stan,
        )  # fmt: skip
        self.messages: list[Any] = []
        self.reads = 0
        self._writing = trio.Lock()  # the test and the script may both write

    def answer(self, received: Received, elements: Mapping[str, object], **instead: str) -> None:
        """Answer, where asked for with other elements than the request's own (`e11="000007"`)."""
        if instead:
            changed = {name[1:]: value for name, value in instead.items()}
            data = received.message.replaced(changed)
            message = CEIBO.decode(data)
            received = Received(message, True, received.key_version, received.header)
        self.connection.answer(received, elements)

    async def write(self, data: bytes | None = None) -> None:
        data = self.connection.output() if data is None else data
        if data:
            try:
                async with self._writing:
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def serve(self) -> None:
        host = self.host
        try:
            while self.connection.closing is None:
                data = bytes(await self.stream.receive_some(65_536))
                if not data:
                    break
                self.reads += 1
                if host.silent:
                    continue
                for event in self.connection.receive(data):
                    self.messages.append(event)
                    if isinstance(event, Received):
                        host.received += 1
                        done = host.script(self, event)
                        if done is not None:
                            await done
                await self.write()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            host.sessions.remove(self)
            await trio.aclose_forcefully(self.stream)


class FakeHost:
    """A host that accepts connections and answers by its script.

    Attributes:
        silent: reads, and says nothing at all.
    """

    def __init__(self, script: Script = approve, host_keys: HostKeys | None = None) -> None:
        self.script = script
        self.keys = host_keys or keys()
        self.clock = Clock()
        self.silent = False
        self.sessions: list[Session] = []
        self.accepted = 0
        self.received = 0
        self._stans = itertools.count(1)

    def wall_ns(self) -> int:
        return self.clock.wall_ns()

    def next_stan(self) -> str:
        return f"{next(self._stans) % 1_000_000:06}"

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.accepted += 1
        session = Session(self, stream)
        self.sessions.append(session)
        await session.serve()

    async def listen(self, nursery: trio.Nursery, port: int = 0) -> tuple[str, trio.CancelScope]:
        """Listen on a real socket; returns the address and what ends it all."""
        scope = trio.CancelScope()
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")

        async def run(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            with scope:
                task_status.started()
                await trio.serve_listeners(self.serve, listeners)

        await nursery.start(run)
        name = listeners[0].socket.getsockname()
        return f"127.0.0.1:{name[1]}", scope


class MemoryDialer(Dialer):
    """Reaches hosts by their address over streams of memory."""

    def __init__(self, nursery: trio.Nursery, hosts: Mapping[str, FakeHost]) -> None:
        super().__init__(None, Path)
        self._nursery = nursery
        self.hosts = dict(hosts)
        self.tried: list[tuple[float, str]] = []
        self.dialling = self.dialling_most = 0
        self.delay_s = 0.0

    async def open(self, address: str) -> trio.abc.Stream:
        self.tried.append((trio.current_time(), address))
        self.dialling += 1
        self.dialling_most = max(self.dialling_most, self.dialling)
        try:
            await trio.sleep(self.delay_s)
        finally:
            self.dialling -= 1
        host = self.hosts.get(address)
        if host is None:
            raise DialError("refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(host.serve, theirs)
        return ours


class Bench:
    """A link with its owner, running."""

    def __init__(
        self,
        nursery: trio.Nursery,
        hosts: Mapping[str, FakeHost] | None = None,
        *,
        node: Any = None,
        link_keys: HostKeys | None = None,
        chance: Callable[[], float] = lambda: 0.0,
        **settings: Any,
    ) -> None:
        self.nursery = nursery
        self.node: Any = node or Node()
        self.owner = Owner()
        self.keys = link_keys or keys()
        self.dialer = None if hosts is None else MemoryDialer(nursery, hosts)
        self.pump = Pump(self.node) if isinstance(self.node, RealNode) else None
        if hosts is not None and "connect" not in settings:
            settings["connect"] = tuple(LinkAddress(address) for address in hosts)
        self.link = Link(
            "ceibo",
            LinkSettings(**settings),
            self.make_connection,
            self.node,
            self.owner,
            pump=self.pump,
            dialer=self.dialer,
            chance=chance,
        )
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        nursery.start_soon(self._run)
        if self.pump is not None:
            nursery.start_soon(self.pump.run)

    async def _run(self) -> None:
        with self.scope:
            await self.link.run()
        self.ended.set()

    def make_connection(self, initiator: bool) -> Connection:
        return Connection(
            CEIBO, FRAMING, self.keys, initiator=initiator, wall_ns=self.node.clock.wall_ns,
            next_stan=lambda: self.link.next_stan(),
        )  # fmt: skip

    async def up(self) -> None:
        await self.owner.until(lambda: self.link.up)

    def ask(self, *tokens: int, budget_s: float = 0.0, terminal: int = 1) -> list[str]:
        """Request holds with these numbers, as one turn does."""
        refused = [
            self.link.request("0100", hold(n, terminal), token=n, budget_s=budget_s) for n in tokens
        ]
        self.link.flush()
        return refused

    async def answered(self, *tokens: int) -> list[str]:
        """Wait for these to end; their codes, or the reasons they were lost for."""
        owner = self.owner
        await owner.until(lambda: all(t in owner.answers or t in owner.lost for t in tokens))
        return [owner.answers[t]["39"] if t in owner.answers else owner.lost[t] for t in tokens]

    @property
    def counts(self) -> dict[str, int]:
        return {name: n for name, n in self.link.counters.as_dict().items() if n}

    @property
    def events(self) -> list[str]:
        return [what for what, _ in self.owner.told]
