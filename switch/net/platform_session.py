"""One signed-on connection of red to its platform: what is in flight on it, and how it writes.

A turn's messages are sealed together and written at once; only when the socket is full, and for
TLS, does the connection's own task write. A platform that does not read is cut off at
`outbox_bytes_max`.
"""

import os
from typing import Any, Final

import trio

from core_ext._relay import PlatformLane
from protocols.messages import Message
from protocols.session import Initiator

READ_BYTES_MAX: Final = 65_536


class PlatformSession:
    """A connection as its link sees it, and the destination of answers to sicoop's questions.

    Attributes:
        number: of the session, never used twice within a link.
        pending: our requests without an answer, by id. unsent: those not yet written.
        last_id: the newest id given out.
        in_flight: sicoop's questions that have no answer.
        heard_s: trio time of the last byte received, by whomever.
        lane: reads and writes natively what is common, where there is a relay, else None.
        fd: the socket where it may be read and written directly, else -1.
        ended: the other side sends no more.
    """

    __slots__ = (
        "_flush_needed",
        "_heard_s",
        "_last_id",
        "_outbox",
        "_outbox_bytes_max",
        "_ready",
        "_room",
        "_writing",
        "address",
        "cancel_scope",
        "ended",
        "fd",
        "in_flight",
        "lane",
        "number",
        "opened_s",
        "pending",
        "session",
        "stream",
        "unsent",
    )

    def __init__(
        self,
        number: int,
        stream: trio.abc.Stream,
        session: Initiator,
        address: str,
        outbox_bytes_max: int,
    ) -> None:
        self.number = number
        self.stream = stream
        self.session = session
        self.address = address
        self.pending: dict[int, Any] = {}
        self.unsent: list[Any] = []
        self._last_id = 0
        self.lane: PlatformLane | None = None
        self.in_flight = 0
        self.opened_s = self._heard_s = trio.current_time()
        self.fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self.ended = False
        self.cancel_scope = trio.CancelScope()
        self._outbox = bytearray()
        self._outbox_bytes_max = outbox_bytes_max
        self._ready: list[Message] = []
        self._writing = False
        self._flush_needed = trio.Event()
        self._room = trio.Event()

    @property
    def usable(self) -> bool:
        """It takes requests."""
        return self.session.closing is None and not self.ended

    @property
    def heard_s(self) -> float:
        return self._heard_s if self.lane is None else max(self._heard_s, self.lane.heard_s)

    @heard_s.setter
    def heard_s(self, value: float) -> None:
        self._heard_s = value

    @property
    def last_id(self) -> int:
        return self._last_id if self.lane is None else self.lane.last_id

    @property
    def load(self) -> int:
        """Requests without an answer, those of the lane included."""
        return len(self.pending) + (0 if self.lane is None else self.lane.passing)

    def new_id(self) -> int:
        """The next number for a request of ours; the lane takes from the same ones."""
        if self.lane is not None:
            return self.lane.new_id()
        self._last_id += 1
        return self._last_id

    def told(self) -> None:
        """Tell the lane how much room is left to it."""
        if self.lane is not None:
            self.lane.others = len(self.pending)
            self.lane.wake()

    def released(self, data: bytes | None) -> None:
        """Messages of the lane have left, all but `data`; None: the connection is lost."""
        if data is None:
            self.cut("connection lost while writing")
        else:
            self.write(data)

    # ---- destination of the reply gate

    def ready(self, message: Message) -> None:
        """Take an answer that is durable."""
        self._ready.append(message)

    def flush(self) -> None:
        """Encode and write everything that is ready."""
        messages, self._ready = self._ready, []
        self.in_flight -= len(messages)
        self._room.set()
        self.write(self.session.encode(messages))

    # ---- writing

    def write(self, data: bytes) -> None:
        """Write through if the socket takes it; else leave it to the connection's task."""
        if not data:
            return
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
        if len(self._outbox) + len(data) > self._outbox_bytes_max:
            self.cut("does not read")
            return
        self._outbox += data
        if self.lane is not None:
            self.lane.direct = False
        self._flush_needed.set()

    def cut(self, reason: str) -> None:
        """End the connection now. What was in flight is unknown."""
        self.detach(reason)
        self.cancel_scope.cancel()

    def detach(self, reason: str = "ended") -> None:
        """Write nothing more: the number of a closed socket may be another connection's soon."""
        if self.session.closing is None:
            self.session.closing = reason
        self.fd = -1
        if self.lane is not None:
            self.lane.shut()
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
                if self.lane is not None:
                    self.lane.direct = not self._outbox
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

    async def room(self, in_flight_max: int) -> None:
        """Wait until fewer than `in_flight_max` questions are unanswered."""
        while self.in_flight >= in_flight_max:
            self._room = trio.Event()
            await self._room.wait()

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Return state and load, for people."""
        silent_s = now_s - self.heard_s
        return {
            "connection": self.number,
            "address": self.address,
            "direction": "out",
            "state": "UP" if self.usable else "DOWN",
            "in_flight": self.load,
            "asked": self.in_flight,
            "echoes_missed": int(silent_s > 1.25 * self.session.heartbeat_s),
            "up_s": round(now_s - self.opened_s, 3),
            "heard_s": round(silent_s, 3),
        }

    def take(self, data: bytes, limit: int) -> list[Any]:
        """Messages now complete; what the session itself owes is written at once."""
        messages = self.session.receive(data, limit)
        self.write(self.session.output())
        return messages
