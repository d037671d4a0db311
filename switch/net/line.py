"""One connection of a link: what is to be written, how loaded it is, and its life.

All that a turn has to say is put into the sans-I/O connection first and written in one go at the
turn's end, by whoever ends it; only when the socket is full, and for TLS, does the connection's own
task write. A host that does not read is cut off at `OUTBOX_BYTES_MAX`.
"""

import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio
from msgspec import Struct

from core_ext._desk import HostLane
from protocols.iso8583.connection import Connection, Event
from protocols.iso8583.reply import HostReply
from switch.net.link_state import Event as Change
from switch.net.link_state import Silence, State, after

OUTBOX_BYTES_MAX: Final = 4 << 20
"""Of a host that does not read: `max_in_flight` messages of the longest kind twice over."""

READ_BYTES_MAX: Final = 65_536


class KeyStored(Struct, frozen=True, gc=False):
    """Passes the reply gate once a new key is durable: now the host may be told that we have it."""


class Line:
    """A connection as its link sees it, and the destination of answers to the host's requests.

    Attributes:
        number: of the connection, never used twice within a link.
        rank: index of its address in the link's settings; -1: the host dialled us.
        in_flight: our requests that have no answer.
        asked: the host's requests that have no answer.
        stale: answers that were durable too late to be sent.
        heard_s: trio time of the last byte received.
        up_s: trio time since when it has been UP; 0 before.
        fd: the socket where it may be read and written directly, else -1.
        ended: the host sends no more.
        gone: nothing more is written to it.
        backlog: what one read brought beyond what one step holds.
        sign_on_by_s: trio time by which it must have signed on.
        lane: decides the host's common requests before anybody hears of them; None: nothing does.
        counted: messages taken by the lane that are in the link's counters.
        on_released: told when answers of the lane have left, where it reports.
    """

    __slots__ = (
        "_flush_needed",
        "_held",
        "_outbox",
        "_ready",
        "_room",
        "_writing",
        "address",
        "asked",
        "backlog",
        "cancel_scope",
        "closed",
        "connection",
        "counted",
        "ended",
        "fd",
        "gone",
        "heard_s",
        "in_flight",
        "lane",
        "number",
        "on_released",
        "opened_s",
        "rank",
        "sign_on_by_s",
        "silence",
        "stale",
        "state",
        "stream",
        "up_s",
    )

    def __init__(
        self,
        number: int,
        stream: trio.abc.Stream,
        connection: Connection,
        silence: Silence,
        *,
        rank: int,
        address: str,
        sign_on_by_s: float,
    ) -> None:
        self.number = number
        self.stream = stream
        self.connection = connection
        self.silence = silence
        self.rank = rank
        self.address = address
        self.sign_on_by_s = sign_on_by_s
        self.state = State.DOWN
        self.in_flight = 0
        self.asked = 0
        self.stale = 0
        self.opened_s = self.heard_s = trio.current_time()
        self.up_s = 0.0
        self.cancel_scope = trio.CancelScope()
        self.closed = trio.Event()
        self.ended = False
        self.gone = False
        self.backlog: deque[Event] = deque()
        self.fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self.lane: HostLane | None = None
        self.counted = 0
        self.on_released: Callable[[], None] = lambda: None
        self._outbox = bytearray()
        self._ready: list[HostReply] = []
        self._held = 0
        self._writing = False
        self._flush_needed = trio.Event()
        self._room = trio.Event()

    @property
    def inbound(self) -> bool:
        """The host dialled us."""
        return self.rank < 0

    def move(self, change: Change) -> bool:
        """Take a change of state; True if the state is another now."""
        before, self.state = self.state, after(self.state, change)
        if self.state is State.UP and not self.up_s:
            self.up_s = trio.current_time()
        return self.state is not before

    # ---- destination of the reply gate

    def ready(self, message: HostReply | KeyStored) -> None:
        """Take an answer that is durable."""
        if type(message) is KeyStored:
            self._held -= 1
        else:
            assert type(message) is HostReply
            if 0 < message.until_ns < trio.current_time() * 1e9:
                self.stale += 1
                self.dropped()
            else:
                self._ready.append(message)

    def flush(self) -> None:
        """Encode, MAC and write everything that is ready."""
        replies, self._ready = self._ready, []
        if self.gone:
            return  # what it asked will be asked again
        answer = self.connection.answer
        for reply in replies:
            answer(reply.received, reply.elements)
        if replies:
            self.dropped(len(replies))
        self.write_out()

    def dropped(self, count: int = 1) -> None:
        """So many requests of the host are answered, or will get no answer."""
        self.asked -= count
        self._room.set()

    def hold(self) -> None:
        """Write nothing until `KeyStored` comes through the gate."""
        self._held += 1

    # ---- the lane

    def released(self, data: bytes | None) -> None:
        """Answers of the lane have left, all but `data`; None: the connection is lost."""
        self._room.set()
        if data is None:
            self.cut("connection lost while writing")
        elif data:
            self._write(data)
        self.on_released()

    @property
    def owes(self) -> bool:
        """The host waits for an answer."""
        return bool(self.asked or (self.lane is not None and self.lane.in_flight))

    def _let_lane_write(self, may: bool) -> None:
        if self.lane is not None:
            self.lane.direct = may

    @property
    def clear(self) -> bool:
        """Nothing of a message is held, so that the lane may take the next one."""
        return self.connection.signed_on and not self.connection.pending_bytes

    # ---- writing

    def write_out(self) -> None:
        """Write what the connection has to say, unless it is held."""
        if not self._held and not self.gone:
            data = self.connection.output()
            if data:
                self._write(data)

    def _write(self, data: bytes) -> None:
        """Write through if the socket takes it; else leave it to the connection's task."""
        if self.fd >= 0 and not self._outbox and not self._writing:
            try:
                sent = os.write(self.fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.cut("connection lost while writing")
                return
            if sent == len(data):
                return
            data = data[sent:]
        if len(self._outbox) + len(data) > OUTBOX_BYTES_MAX:
            self.cut("does not read")
            return
        self._outbox += data
        self._let_lane_write(False)
        self._flush_needed.set()

    def cut(self, reason: str) -> None:
        """End the connection now; what was in flight is unknown."""
        self.detach(reason)
        self.cancel_scope.cancel()

    def detach(self, reason: str = "ended") -> None:
        """Write nothing more: the number of a closed socket may be another connection's soon."""
        if self.connection.closing is None:
            self.connection.closing = reason
        self.fd = -1
        self.gone = True
        if self.lane is not None:
            self.lane.close()

    # ---- the connection's own tasks

    async def write_behind(self) -> None:
        """Send what could not be written through."""
        try:
            while True:
                await self._flush_needed.wait()
                self._flush_needed = trio.Event()
                self._writing = True
                while self._outbox:
                    data = bytes(self._outbox)
                    self._outbox.clear()
                    await self.stream.send_all(data)
                self._writing = False
                self._let_lane_write(True)
                self._room.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.cut("connection lost while writing")
        finally:
            self._writing = False

    async def read(self) -> bytes:
        """What the network brought; b"" at its end, a lost connection included."""
        try:
            data = bytes(await self.stream.receive_some(READ_BYTES_MAX))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
        self.heard_s = trio.current_time()
        return data

    async def room(self, asked_max: int) -> None:
        """Wait until fewer than `asked_max` of the host's requests are unanswered."""
        while self.asked >= asked_max:
            self._room = trio.Event()
            await self._room.wait()

    async def drained(self) -> None:
        """Wait until everything is written."""
        while self._outbox or self._writing:
            self._room = trio.Event()
            await self._room.wait()

    # ---- for people

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Return state and load."""
        return {
            "connection": self.number,
            "address": self.address,
            "direction": "in" if self.inbound else "out",
            "state": self.state.name,
            "in_flight": self.in_flight,
            "asked": self.asked,
            "stale": self.stale,
            "echoes_missed": self.silence.misses,
            "up_s": round(now_s - self.up_s, 3) if self.up_s else 0.0,
            "heard_s": round(now_s - self.heard_s, 3),
        }
