"""One accepted connection: its session, what waits to be written, and the write-through.

An answer is written at once, without waiting, by whoever releases it; only when the socket is full
does the connection's own task take over (and TLS, which cannot be written without waiting). A
peer that does not read is cut off at `outbox_bytes_max`.
"""

import os
from typing import Any

import trio

from core_ext._lanes import TerminalLane
from protocols.messages import Message
from protocols.session import Acceptor
from protocols.session.vocabulary import REPLIES


class Peer:
    """A connection as the switch sees it. Owned by its task; written to from any turn.

    Attributes:
        name: number of the signed-on peer, "" before.
        in_flight: requests taken that have no answer yet.
        heard_s: trio time of the last byte received.
        fd: the socket where it may be read and written directly, else -1.
        ended: the peer sends no more.
        barred: it is disabled; its session ends with its next request.
        asked: what we have asked it and it has not answered: reference by id.
        waited: its sign-on has had its turn, where its address is slowed.
    """

    __slots__ = (
        "_finishing",
        "_flush_needed",
        "_outbox",
        "_outbox_bytes_max",
        "_ready",
        "_room",
        "_writing",
        "address",
        "asked",
        "barred",
        "cancel_scope",
        "ended",
        "fd",
        "lane",
        "name",
        "opened_s",
        "session",
        "stream",
        "waited",
    )

    def __init__(
        self, stream: trio.abc.Stream, session: Acceptor, *, address: str, outbox_bytes_max: int
    ) -> None:
        self.stream = stream
        self.session = session
        self.address = address
        self.name = ""
        self.asked: dict[int, str] = {}
        self.opened_s = trio.current_time()
        self.cancel_scope = trio.CancelScope()
        self._finishing = False
        self.ended = False
        self.waited = False
        self.barred = False
        self.fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self.lane = TerminalLane(self, session.channel, self.fd)
        self.lane.heard_s = self.opened_s
        self._outbox = bytearray()
        self._outbox_bytes_max = outbox_bytes_max
        self._ready: list[Message] = []
        self._writing = False
        self._flush_needed = trio.Event()
        self._room = trio.Event()

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
        self._room.set()
        if data is None:
            self.cut("connection lost while writing")
        else:
            self.write(data)

    # ---- destination of the reply gate

    def ready(self, message: Message) -> None:
        self._ready.append(message)

    def flush(self) -> None:
        """Encode and write everything that is ready."""
        messages, self._ready = self._ready, []
        self.in_flight -= sum(type(message) in REPLIES for message in messages)
        self._room.set()
        self.write(self.session.encode(messages))

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
            self.cut("does not read its answers")
            return
        self._outbox += data
        self.lane.direct = False
        self._flush_needed.set()

    def cut(self, reason: str) -> None:
        """End the connection now. What was in flight is unknown to the peer."""
        self.detach(reason)
        self.cancel_scope.cancel()

    def detach(self, reason: str = "ended") -> None:
        """Write nothing more: the number of a closed socket may be another connection's soon."""
        if self.session.closing is None:
            self.session.closing = reason
        self.fd = -1
        self.lane.close()

    # ---- the connection's own tasks

    async def write_behind(self) -> None:
        """Send what could not be written through; one task for each connection that needs it."""
        while True:
            await self._flush_needed.wait()
            self._flush_needed = trio.Event()
            self._writing = True
            try:
                while self._outbox:
                    data = bytes(self._outbox)
                    self._outbox.clear()
                    await self.stream.send_all(data)
            finally:
                self._writing = False
                self.lane.direct = not self._outbox
            self._room.set()

    async def read(self, bytes_max: int = 65536) -> bytes:
        """What the network brought; b"" at its end.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the connection is lost.
        """
        if self.fd < 0:
            data = bytes(await self.stream.receive_some(bytes_max))
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

    async def room(self, in_flight_max: int) -> None:
        """Wait until fewer than `in_flight_max` requests are unanswered."""
        while self.in_flight >= in_flight_max:
            self._room = trio.Event()
            await self._room.wait()

    async def drained(self) -> None:
        """Wait until everything taken is answered and written."""
        while self.in_flight or self._outbox or self._writing:
            self._room = trio.Event()
            await self._room.wait()

    @property
    def idle(self) -> bool:
        return not (self.in_flight or self._outbox or self._writing)

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
