"""One accepted connection: its session, what waits to be written, and the write-through.

An answer is written at once, without waiting, by whoever releases it; only when the socket is full
does a task of the connection's own take over (and for TLS, which cannot be written without
waiting). A peer that does not read is cut off at `outbox_bytes_max`.

A connection that the pump reads needs no task, no stream and no buffers as long as nothing has to
be waited for: it is kept as this object, its session and its socket. What it needs beyond, while
a task tends it, is in `Tending`.
"""

import os
import sys
from typing import Any, Protocol

import trio

from core_ext._lanes import TerminalLane
from protocols.messages import Message
from protocols.session import Acceptor
from protocols.session.vocabulary import REPLIES
from switch.node import Step


class Keeper(Protocol):
    """Who has the connections, those without a task among them."""

    def tend(self, peer: "Peer") -> None:
        """Give it a task; `peer.tending` is set when this returns."""

    def pumped(self, step: Step, peer: "Peer", data: bytes | None) -> bool:
        """Take what the pump read for it; False: it needs a task."""

    def look(self, peer: "Peer", now_s: float) -> float:
        """See to its silence; return the trio time at which to do so again."""

    def close(self, peer: "Peer", fd: int) -> None:
        """End it: there is no task that would."""


class Tending:
    """What a connection has only while a task tends it.

    Attributes:
        waited: its sign-on has had its turn, where its address is slowed.
        released: it needs the task no more; socket and session live on without.
    """

    __slots__ = (
        "cancel_scope",
        "flush_needed",
        "outbox",
        "released",
        "room",
        "stream",
        "waited",
        "writing",
    )

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.cancel_scope = trio.CancelScope()
        self.outbox = bytearray()
        self.writing = False
        self.flush_needed = trio.Event()
        self.room = trio.Event()
        self.waited = False
        self.released = False

    @property
    def unsent(self) -> bool:
        """Something of ours waits for room in the socket, or is on its way there."""
        return bool(self.outbox or self.writing)


class Peer:
    """A connection as the switch sees it. Written to from any turn.

    Attributes:
        name: number of the signed-on peer, "" before.
        tending: of its task; None while it has none.
        in_flight: requests taken that have no answer yet.
        heard_s: trio time of the last byte received.
        fd: the socket where it may be read and written directly, else -1.
        ended: the peer sends no more.
        barred: it is disabled; its session ends with its next request.
    """

    __slots__ = (
        "_asked",
        "_finishing",
        "_keeper",
        "_outbox_bytes_max",
        "_ready",
        "address",
        "barred",
        "ended",
        "lane",
        "name",
        "opened_s",
        "session",
        "tending",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        session: Acceptor,
        keeper: Keeper,
        *,
        address: str,
        outbox_bytes_max: int,
    ) -> None:
        self.session = session
        self._keeper = keeper
        self.address = sys.intern(address)  # thousands may share one
        self.name = ""
        self.opened_s = trio.current_time()
        self.ended = False
        self.barred = False
        fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self.lane = TerminalLane(self, session.channel, fd)
        self.lane.heard_s = self.opened_s
        self.tending: Tending | None = Tending(stream)
        self._finishing = False
        self._asked: dict[int, str] | None = None
        self._ready: list[Message] | None = None
        self._outbox_bytes_max = outbox_bytes_max

    @property
    def fd(self) -> int:
        return self.lane.fd

    @property
    def in_flight(self) -> int:
        return self.lane.in_flight

    @in_flight.setter
    def in_flight(self, value: int) -> None:
        self.lane.in_flight = value

    @property
    def heard_s(self) -> float:
        return self.lane.heard_s

    @heard_s.setter
    def heard_s(self, value: float) -> None:
        self.lane.heard_s = value

    @property
    def asked(self) -> dict[int, str]:
        """What we have asked it and it has not answered: reference by id."""
        if self._asked is None:
            self._asked = {}
        return self._asked

    @property
    def finishing(self) -> bool:
        return self._finishing

    @finishing.setter
    def finishing(self, value: bool) -> None:
        self._finishing = value
        if value:
            self.lane.hand_back()

    def bar(self) -> None:
        """One more request is taken, to be refused."""
        self.barred = True
        self.lane.hand_back()

    def released(self, data: bytes | None) -> None:
        """Answers of the lane have left, all but `data`; None: the connection is lost."""
        self._tell_of_room()
        if data is None:
            self.cut("connection lost while writing")
        else:
            self.write(data)

    # ---- source of the pump, while it has no task

    def pumped(self, step: Step, data: bytes | None, now_s: float) -> bool:
        """Take what was read; False: it has to be handed back."""
        return self._keeper.pumped(step, self, data)

    def handed_back(self) -> None:
        """Give it a task, unless its turn has ended it, or has done so already."""
        if self.tending is None and self.fd >= 0:
            if self.ended and self.idle:
                self.cut("ended")
            else:
                self._keeper.tend(self)

    def look(self, now_s: float) -> float:
        """See to its silence; when to do so again."""
        return self._keeper.look(self, now_s)

    # ---- destination of the reply gate

    def ready(self, message: Message) -> None:
        if self._ready is None:
            self._ready = []
        self._ready.append(message)

    def flush(self) -> None:
        """Encode and write everything that is ready."""
        messages, self._ready = self._ready or [], None
        for message in messages:
            if type(message) in REPLIES:
                self.lane.in_flight -= 1
        self._tell_of_room()
        self.write(self.session.encode(messages))

    def _tell_of_room(self) -> None:
        if self.tending is not None:
            self.tending.room.set()

    def write(self, data: bytes) -> None:
        """Write through if the socket takes it; else leave it to the connection's task."""
        if not data:
            return
        fd, tending = self.fd, self.tending
        if fd >= 0 and (tending is None or not tending.unsent):
            try:
                sent = os.write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.cut("connection lost while writing")
                return
            if sent == len(data):
                return
            data = data[sent:]
        if tending is None:
            if fd < 0:
                return  # closed: nobody reads it any more
            self._keeper.tend(self)
            tending = self.tending
            assert tending is not None, "tend gives it a task"
        if len(tending.outbox) + len(data) > self._outbox_bytes_max:
            self.cut("does not read its answers")
            return
        tending.outbox += data
        self.lane.direct = False
        tending.flush_needed.set()

    def cut(self, reason: str) -> None:
        """End the connection now. What was in flight is unknown to the peer."""
        fd = self.fd
        self.detach(reason)
        if self.tending is not None:
            self.tending.cancel_scope.cancel()
        elif fd >= 0:
            self._keeper.close(self, fd)

    def detach(self, reason: str = "ended") -> None:
        """Write nothing more: the number of a closed socket may be another connection's soon."""
        if self.session.closing is None:
            self.session.closing = reason
        self.lane.close()

    # ---- the connection's own tasks

    async def write_behind(self, tending: Tending) -> None:
        """Send what could not be written through; one task for each connection that is tended."""
        while True:
            await tending.flush_needed.wait()
            tending.flush_needed = trio.Event()
            tending.writing = True
            try:
                while tending.outbox:
                    data = bytes(tending.outbox)
                    tending.outbox.clear()
                    await tending.stream.send_all(data)
            finally:
                tending.writing = False
                self.lane.direct = not tending.outbox
            tending.room.set()

    async def read(self, tending: Tending, bytes_max: int = 65536) -> bytes:
        """What the network brought; b"" at its end.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the connection is lost.
        """
        if self.fd < 0:
            data = bytes(await tending.stream.receive_some(bytes_max))
        else:
            # Peers mostly wait for an answer before they send again, so trying to receive first,
            # as streams do, would mostly fail: 5 µs saved for each request.
            data = await self._read_raw(bytes_max)
        self.heard_s = trio.current_time()
        return data

    async def _read_raw(self, bytes_max: int) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            try:
                return os.read(self.fd, bytes_max)
            except BlockingIOError:
                continue  # readiness is a hint
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def has_room(self, tending: Tending, in_flight_max: int) -> None:
        """Wait until fewer than `in_flight_max` requests are unanswered."""
        while self.in_flight >= in_flight_max:
            tending.room = trio.Event()
            await tending.room.wait()

    async def drained(self, tending: Tending) -> None:
        """Wait until everything taken is answered and written."""
        while self.in_flight or tending.unsent:
            tending.room = trio.Event()
            await tending.room.wait()

    @property
    def idle(self) -> bool:
        return not (self.in_flight or (self.tending is not None and self.tending.unsent))

    def take(self, data: bytes, limit: int | None) -> list[Any]:
        """Messages now complete; what the session itself owes is written at once."""
        messages = self.session.receive(data, limit)
        output = self.session.output()
        if output:
            self.write(output)
        return messages


def address_of(stream: trio.abc.Stream) -> str:
    """Where a connection comes from, for logs and for what is counted by address."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if isinstance(transport, trio.SocketStream):
        try:
            return str(transport.socket.getpeername()[0])
        except OSError:
            return "gone"
    return "memory"
