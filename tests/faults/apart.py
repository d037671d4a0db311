"""red, sicoop and ceibo as real processes, lines between them that fail on demand, and tills.

Time budgets are short, so that what takes half a minute in service takes seconds here; their order
is the same. `Three` starts and kills the processes; `Relay` is a line that goes silent, is cut or
refuses; `Till` is a terminal whose cashier remembers what he was told.
"""

import contextlib
import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.messages import (
    Annul,
    Answer,
    CashOut,
    Delivered,
    Deposit,
    Holder,
    LastOperation,
    TerminalRequest,
)
from switch.cli.apart import Apart, free_port, prepare
from switch.config import Config
from switch.flows import operations as ops
from switch.flows.operations import RedOperation, SicoopOperation
from switch.journal.agreement import Agreement, agreement
from switch.journal.store import State
from switch.simulators.host import IsoHost
from switch.simulators.rules import Rule, Rules
from switch.simulators.server import Server
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal, tcp
from tests.faults.process import Card

NETWORK = "0012"
BALANCE = 1_000_000
READY_S = 60.0
STOP_S = 120.0
AGREED_S = 120.0

# 30, 25, 15 and 8 seconds in service.
SHORT: dict[str, Any] = {
    "budgets_terminal_s": 6,
    "budgets_red_s": 4,
    "budgets_sicoop_s": 2,
    "budgets_ceibo_s": 1,
    "budgets_confirm_s": 2,
    "session_heartbeat_s": 1,
    "session_sign_on_s": 2,
    "session_drain_s": 5,
    "platform_backoff_min_s": 0.05,
    "platform_backoff_max_s": 0.3,
    "journal_segment_bytes": 1 << 21,
    "journal_group_bytes_max": 1 << 19,
    "journal_reserve_bytes": 1 << 16,
    "tokens_attempts_terminal": 10_000,
    "tokens_attempts_cashier": 10_000,
}
LINK = """
[links.ceibo]
echo_interval_s = 0.5
answer_s = 2
sign_on_s = 1
backoff_min_s = 0.05
backoff_max_s = 0.3
"""


class Three:
    """The processes of an `Apart`."""

    def __init__(self, apart: Apart) -> None:
        self.apart = apart
        self._running: dict[str, trio.Process] = {}
        self.ready: dict[str, dict[str, Any]] = {}

    @property
    def red(self) -> tuple[str, int]:
        return self.apart.addresses["red"]

    async def start(self, *roles: str) -> None:
        """Start roles, and wait until each listens. Raises: EOFError with the end of its log."""
        for role in roles:
            await self.spawn(role)
        for role in roles:
            await self.wait_ready(role)

    async def spawn(self, role: str) -> None:
        """Start a role; it is not ready yet."""
        assert role not in self._running, f"{role} runs"
        self._running[role] = await self.apart.start(role)

    async def wait_ready(self, role: str) -> None:
        """Wait until a spawned role listens. Raises: EOFError with the end of its log."""
        line = b""
        process = self._running[role]
        assert process.stdout is not None
        with trio.move_on_after(READY_S):
            while not line.endswith(b"\n"):
                data = bytes(await process.stdout.receive_some(4096))
                if not data:
                    break
                line += data
        if not line.startswith(b"ready "):
            raise EOFError(f"{role} did not start:\n{self.tail(role)}")
        self.ready[role] = msgspec.json.decode(line[6:])

    async def kill(self, role: str) -> None:
        """SIGKILL, and nothing else."""
        process = self._running.pop(role)
        process.kill()
        await process.wait()

    def signal(self, role: str, number: int = signal.SIGTERM) -> None:
        self._running[role].send_signal(number)

    async def stop(self, role: str) -> int:
        """SIGTERM, and the exit code."""
        self.signal(role)
        return await self.ended(role)

    async def ended(self, role: str) -> int:
        """The exit code of a role that was told to end."""
        process = self._running.pop(role)
        with trio.fail_after(STOP_S):
            return int(await process.wait())

    def alive(self, role: str) -> bool:
        return role in self._running and self._running[role].poll() is None

    async def aclose(self) -> None:
        """Make sure that all are gone, however the test went."""
        with trio.CancelScope(shield=True):
            for process in self._running.values():
                if process.poll() is None:
                    process.kill()
                await process.wait()
            self._running.clear()

    def tail(self, role: str) -> str:
        return self.apart.log(role).read_text(errors="replace")[-4000:]

    def log(self, role: str) -> list[dict[str, Any]]:
        """Every line of a role's log that is JSON."""
        lines = self.apart.log(role).read_text(errors="replace").splitlines()
        return [msgspec.json.decode(line) for line in lines if line.startswith("{")]

    def events(self, role: str, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log(role) if line.get("event") == event]

    def alarms(self, role: str, name: str) -> int:
        return sum(line.get("alarm") == name for line in self.events(role, "alarm"))

    async def metric(self, role: str, name: str) -> float:
        """The sum of a metric over its labels, or the one with these labels."""
        host, port = self.ready[role]["ops"]
        stream = await trio.open_tcp_stream(host, port)
        text = b""
        async with stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while data := await stream.receive_some(65_536):
                text += data
        found = 0.0
        for line in text.decode().splitlines():
            if line.startswith(name) and line[len(name)] in "{ ":
                found += float(line.rsplit(" ", 1)[1])
        return found

    # ---- what must hold

    async def agreed(self, within_s: float = AGREED_S) -> Agreement:
        """The three tell one story and nobody owes anything, soon. Raises: AssertionError."""
        found = Agreement()
        configs = dict(self.apart.configs)
        red, sicoop = configs.pop("red"), configs.pop("sicoop")
        with trio.move_on_after(within_s):
            while True:
                found = await trio.to_thread.run_sync(agreement, red, sicoop, *configs.values())
                if found.ok and found.finished:
                    break
                await trio.sleep(0.2)
        assert found.ok, "\n".join([*found.problems, *map(self.tail, self.apart.configs)])
        return found

    def at_red(self) -> dict[int, RedOperation]:
        """red's register by trace."""
        found = _records(self.apart.configs["red"], ops.RED_OPERATIONS, ops.decode_red)
        return {red.trace: red for red in found if red.kind != "annul"}

    def at_sicoop(self) -> dict[int, SicoopOperation]:
        """sicoop's operations by trace."""
        found = _records(self.apart.configs["sicoop"], ops.SICOOP_OPERATIONS, ops.decode_sicoop)
        return {int(operation.reference[-6:]): operation for operation in found}


def _records(config: Config, space: int, decode: Callable[[bytes], Any]) -> list[Any]:
    state = State(config, config.data)
    state.recover(live=True)
    return [decode(value) for _, value in state.records.items(space)]


@asynccontextmanager
async def three(directory: Path, *, start: Sequence[str] = ("ceibo", "sicoop", "red"),
                terminals: int = 1, cards: int = 40, values: Mapping[str, Any] | None = None,
                toml: Mapping[str, str] | None = None, **options: Any
                ) -> AsyncIterator[Three]:  # fmt: skip
    """Three provisioned roles with short budgets, the named ones running."""
    apart = await prepare(
        directory, network=NETWORK, terminals=terminals, branches=1,
        cards={str(4_000_000 + index): BALANCE for index in range(cards)},
        net_debit_cap=900_000_000_000, values=SHORT | dict(values or {}),
        toml={"sicoop": LINK} | dict(toml or {}), **options,
    )  # fmt: skip
    found = Three(apart)
    try:
        await found.start(*start)
        yield found
    finally:
        await found.aclose()


# ---- a line --------------------------------------------------------------------------------------


Way = Literal["there", "back"]
BOTH: tuple[Way, ...] = ("there", "back")


class Relay:
    """A line between two roles, in this process; what it does to its bytes can be changed.

    Attributes:
        mode: "pass", "silent" (bytes vanish, both ways, and connections stay), "hang" (new
            connections are accepted and left alone, old ones go on), or "refuse".
        delay_s: that everything takes longer, each way.
        opened: connections so far. hanging: connections that are left alone now, and the most.
    """

    def __init__(self) -> None:
        self.address = ("127.0.0.1", free_port())
        self.target: tuple[str, int] = ("", 0)
        self.mode = "pass"
        self.delay_s = 0.0
        self.opened = 0
        self.hanging_most = 0
        self._hanging: set[trio.SocketStream] = set()
        self._lines: dict[trio.CancelScope, list[trio.SocketStream]] = {}
        self._listening: trio.CancelScope | None = None
        self._resume = trio.Event()
        self._held: set[Way] = set()
        self._released = trio.Event()

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        started = False
        while True:
            listeners = await trio.open_tcp_listeners(self.address[1], host=self.address[0])
            if not started:
                task_status.started()
                started = True
            with trio.CancelScope() as self._listening:
                async with trio.open_nursery() as lines:
                    await trio.serve_listeners(self._line, listeners, handler_nursery=lines)
            await self._resume.wait()

    def cut(self, count: int | None = None) -> None:
        """End connections now: the oldest `count`, or all."""
        for line in list(self._lines)[:count]:
            line.cancel()

    def reset(self) -> None:
        """End all connections with RST, and lose what is on its way."""
        for streams in self._lines.values():
            for stream in streams:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.cut()

    @property
    def open(self) -> int:
        return len(self._lines)

    @property
    def hanging(self) -> int:
        """Connections left alone whose end has not come, whether it was read here or not."""
        return sum(not _has_ended(stream) for stream in self._hanging)

    def refuse(self) -> None:
        """Cut everything, and let nobody connect."""
        self.mode = "refuse"
        self._resume = trio.Event()
        if self._listening is not None:
            self._listening.cancel()

    def hold(self, *ways: Way) -> None:
        """A black hole: nothing comes through these ways any more, the end of a connection neither.

        It is kept, as by a network that sends again: `release` lets it go on, late.
        """
        self._held |= set(ways or BOTH)

    def release(self) -> None:
        self._held.clear()
        self._released.set()
        self._released = trio.Event()

    def resume(self) -> None:
        """All is as it should be again; connections stay."""
        self.mode, self.delay_s = "pass", 0.0
        self.release()
        self._resume.set()

    async def _line(self, stream: trio.SocketStream) -> None:
        self.opened += 1
        with trio.CancelScope() as scope:
            self._lines[scope] = [stream]
            try:
                if self.mode == "hang":
                    await self._hang(stream)
                else:
                    await self._pass(stream, scope)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                del self._lines[scope]
                await trio.aclose_forcefully(stream)

    async def _hang(self, stream: trio.SocketStream) -> None:
        self._hanging.add(stream)
        self.hanging_most = max(self.hanging, self.hanging_most)
        try:
            while await stream.receive_some(65_536):
                pass
        finally:
            self._hanging.discard(stream)

    async def _pass(self, stream: trio.SocketStream, line: trio.CancelScope) -> None:
        async with await trio.open_tcp_stream(*self.target) as other, trio.open_nursery() as both:
            self._lines[line].append(other)
            both.start_soon(self._copy, "there", stream, other, both.cancel_scope)
            both.start_soon(self._copy, "back", other, stream, both.cancel_scope)

    async def _copy(
        self, way: Way, source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope
    ) -> None:
        data = b"more"
        while data:
            try:
                data = bytes(await source.receive_some(65_536))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if self.delay_s:
                await trio.sleep(self.delay_s)
            while way in self._held:
                await self._released.wait()
            if data and self.mode != "silent":
                try:
                    await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
        scope.cancel()


def _has_ended(stream: trio.SocketStream) -> bool:
    """Whether the other side has closed, as far as the kernel knows."""
    with socket.socket(fileno=os.dup(stream.socket.fileno())) as same:
        try:
            return same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


# ---- a simulated issuer --------------------------------------------------------------------------


class Issuer:
    """`sim ceibo` in this process, with the keys of an `Apart`; its book is the judge."""

    def __init__(self, apart: Apart, *rules: Rule, late_s: float = 4.0) -> None:
        keys = {name: bytes.fromhex(value) for name, value in apart.host_keys.items()}
        host_keys = HostKeys.of(
            "aes-cmac", [(1, keys["mac_key"])], [(1, keys["data_key"])], [(1, keys["zone_key"])]
        )
        self.host = IsoHost(
            "ceibo", Dialect.load("ceibo"), Framing(), host_keys, Rules(list(rules)), late_s=late_s
        )
        self.server = Server(self.host.converse)
        self.host.stop = self.server.stop
        self._address = apart.addresses["ceibo"]

    async def listen(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.server.listen, *self._address)

    def states(self) -> Counter[str]:
        return Counter(entry.state for entry in self.host.book.entries.values())

    async def settled(self, states: Mapping[str, int], within_s: float = 120.0) -> None:
        """Wait until the book has so many holds in each state. Raises: AssertionError."""
        with trio.move_on_after(within_s):
            while self.states() != Counter(states):  # noqa: ASYNC110 (nothing signals it)
                await trio.sleep(0.05)
        assert self.states() == Counter(states)


# ---- a till --------------------------------------------------------------------------------------


@dataclass
class Till:
    """A terminal with one cashier, who asks until he knows.

    Attributes:
        told: what he was told at last, by trace. amounts: of what he may move, by trace; negative
            for a deposit.
    """

    terminal: Terminal
    cards: list[Card]
    nursery: trio.Nursery
    told: dict[int, Answer] = field(default_factory=dict)
    amounts: dict[int, int] = field(default_factory=dict)
    trace: int = 0
    cashier: str = "345"

    @property
    def paid(self) -> dict[str, int]:
        """What he was told to move, by kind."""
        found = {"cash_out": 0, "deposit": 0}
        for trace, answer in self.told.items():
            if answer.state in ("REGISTRADA", "ENTREGADA"):
                amount = self.amounts[trace]
                found["cash_out" if amount > 0 else "deposit"] += abs(amount)
        return found

    def request(self, kind: str, amount: int, document: str = "") -> CashOut | Deposit:
        """A new request, with the next good code of a card."""
        self.trace += 1
        self.amounts[self.trace] = amount if kind == "cash_out" else -amount
        values: dict[str, Any] = {
            "trace": self.trace, "cashier": self.cashier, "amount": amount, "currency": "PYG",
        }  # fmt: skip
        if kind == "deposit":
            return Deposit(document=document or self.cards[0].document, **values)
        for card in self.cards:
            code = card.next_code(time.time())
            if code is not None:
                self.cards.append(self.cards.pop(self.cards.index(card)))
                return CashOut(document=document or card.document, token=code, **values)
        raise AssertionError("no card has a code left")

    async def ask(self, request: TerminalRequest) -> Answer:
        """One answer, the first that comes; sends it again where none came."""
        with trio.fail_after(120):
            while True:
                try:
                    answer = await self.terminal.request(request)
                    assert isinstance(answer, Answer)
                    return answer
                except OutcomeUnknown:
                    await self.signed_on()

    async def known(self, request: CashOut | Deposit, answer: Answer) -> Answer:
        """Go on asking until the answer is definite, and remember it."""
        kind = "deposit" if isinstance(request, Deposit) else "cash_out"
        with trio.fail_after(120):
            while answer.state in ("INICIADA", "DESCONOCIDA") and answer.code not in _DEFINITE:
                await trio.sleep(0.1)
                query = LastOperation(original=request.trace, kind=kind)  # type: ignore[arg-type]
                answer = await self.ask(query)
                if answer.code == "25":
                    answer = await self.ask(request)  # nobody knows of it: the trace is free
        before = self.told.get(request.trace)
        assert before is None or before.state == answer.state, f"told {before}, then {answer}"
        self.told[request.trace] = answer
        return answer

    async def cash_out(self, amount: int = 50_000, document: str = "") -> Answer:
        request = self.request("cash_out", amount, document)
        return await self.known(request, await self.ask(request))

    async def deposit(self, amount: int = 30_000, document: str = "") -> Answer:
        request = self.request("deposit", amount, document)
        return await self.known(request, await self.ask(request))

    async def delivered(self) -> Answer:
        answer = await self.ask(Delivered(original=self.trace))
        self.told[self.trace] = answer
        return answer

    async def annul(self, original: int) -> Answer:
        self.trace += 1
        date = self.told[original].business_date
        assert isinstance(date, str)
        request = Annul(
            trace=self.trace, cashier=self.cashier, original=original, supervisor="900900",
            business_date=date,
        )  # fmt: skip
        answer = await self.ask(request)
        with trio.fail_after(60):
            while answer.code == "09":
                await trio.sleep(0.1)
                answer = await self.ask(request)
        self.told[original] = answer
        return answer

    async def holder(self, document: str) -> str:
        """Code of a question for the holder; it changes nothing anywhere."""
        with contextlib.suppress(OutcomeUnknown):
            return (await self.terminal.request(Holder(document=document))).code
        await self.signed_on()
        return "91"

    async def signed_on(self) -> None:
        """Sign on, as often as it takes."""
        while not self.terminal.signed_on:
            try:
                if self.terminal.sessions:
                    await self.terminal.reconnect()
                else:
                    await self.terminal.sign_on(self.nursery)
            except (OSError, SignOnFailed):
                await trio.sleep(0.05)


_DEFINITE = ("91", "96", "94")


async def till(three: Three, nursery: trio.Nursery, index: int = 0, cards: Sequence[Card] = ()
               ) -> Till:  # fmt: skip
    """A till that is signed on, once its requests get through to ceibo."""
    entry = three.apart.terminals[index]
    terminal = Terminal(entry.number, entry.key, tcp(*three.red), timeout_s=8)
    own = list(cards) or [Card(c.card, c.document, c.seed) for c in three.apart.cards]
    found = Till(terminal, own, nursery)
    await found.signed_on()
    return found


async def through(till: Till, within_s: float = 120.0) -> None:
    """Wait until a question gets through to the issuer and back. Raises: trio.TooSlowError."""
    document = till.cards[0].document
    with trio.fail_after(within_s):
        while await till.holder(document) == "91":  # noqa: ASYNC110 (nothing signals it)
            await trio.sleep(0.05)
