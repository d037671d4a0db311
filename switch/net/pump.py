"""One task reads for all plain-TCP connections, so that a pass of the scheduler is one turn.

Waking a task for each socket costs 20 µs and more a request. The pump waits, as one task, on an
epoll of its own that holds every socket it reads; when that becomes readable it reads from all
that are ready, gives the requests of all to the flows within one step, and settles once. Reading is
native, and so is the whole way of the common cash_out (`core_ext._lanes`): only what is left of a
read comes up here.

A connection may be *attended* to, while its own task waits, or *kept*, without any task. Both are
handed back whenever something has to be waited for: too many requests in flight, the end of the
stream, a sign-off.
"""

import math
from typing import Any, Protocol

import trio

from core_ext._lanes import Lane
from switch.node import Node, Step

LOOK_EVERY_S = 1.0


class Source(Protocol):
    """A connection that is read: of a session, or of a link.

    Attributes:
        heard_s: trio time of the last byte received.
    """

    heard_s: float


class Turn(Protocol):
    """What is done with the bytes of one read."""

    def pumped(self, step: Step, peer: Any, data: bytes | None) -> bool:
        """Take `data` (b"": the peer has ended; None: its session has them already).

        False: the peer's own task has to go on.
        """
        ...


class Kept(Protocol):
    """A connection without a task."""

    def pumped(self, step: Step, data: bytes | None, now_s: float) -> bool:
        """As `Turn.pumped`; False: it is handed back."""
        ...

    def handed_back(self) -> None:
        """See to it that somebody reads it, and drop it here."""
        ...

    def look(self, now_s: float) -> float:
        """Its time to be looked at has come; return the next one (trio's clock)."""
        ...


class _Attended:
    __slots__ = ("_lanes", "done", "fd", "peer", "rest", "turn")

    def __init__(self, lanes: Any, peer: Source, fd: int, turn: Turn) -> None:
        self._lanes = lanes
        self.peer = peer
        self.fd = fd
        self.turn = turn
        self.rest = b""
        self.done = trio.Event()

    def pumped(self, step: Step, data: bytes | None, now_s: float) -> bool:
        self.peer.heard_s = now_s
        return self.turn.pumped(step, self.peer, data)

    def handed_back(self) -> None:
        self.rest = self._lanes.remove(self.fd) or b""
        self.done.set()

    def look(self, now_s: float) -> float:
        return math.inf  # its own task looks after it


class Pump:
    """Reads for the connections given to it. `run` is its task."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lanes = node.lanes
        self._spin_us = node.config.node.spin_us

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            try:
                while True:
                    if not self._lanes.more and not await self._spin():
                        await trio.lowlevel.wait_readable(self._lanes.fileno())
                    self._pass()
                    await self._node.room()
            finally:
                trio.lowlevel.notify_closing(self._lanes.fileno())

    async def _spin(self) -> bool:
        """Look for work again and again without sleeping, everybody else's turns between; True
        where there is some.

        Waking a process that sleeps takes the system longer than a turn. Bounded in time and, for
        clocks that stand still, in turns, of which none is shorter than a microsecond.
        """
        until_s = trio.current_time() + self._spin_us / 1e6
        for _ in range(self._spin_us):
            await trio.lowlevel.checkpoint()
            self._lanes.begin()
            if self._lanes.more:
                return True
            if trio.current_time() >= until_s:
                break
        return False

    async def _look(self) -> None:
        """Look after the connections without a task: of ten thousand, a few hundred a second."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now_s = trio.current_time()
            for fd, source in self._lanes.due(now_s):
                self._lanes.look_at(fd, source, source.look(now_s))

    async def attend(self, peer: Source, fd: int, turn: Turn, lane: Lane | None = None) -> bytes:
        """Read for `peer` until `turn` hands it back to its own task. What is common of a `lane`
        may be decided and answered before `turn` hears of it.

        Returns what was read meanwhile and not given to `turn`; nothing but for some lanes.
        """
        attended = _Attended(self._lanes, peer, fd, turn)
        self._lanes.add(fd, attended, lane)
        try:
            await attended.done.wait()
        finally:
            self._lanes.remove(fd)
        return attended.rest

    def keep(self, kept: Kept, fd: int, lane: Lane, look_s: float) -> None:
        """Read for a connection without a task until it is dropped; look at it at `look_s`."""
        self._lanes.add(fd, kept, lane)
        self._lanes.look_at(fd, kept, look_s)

    def drop(self, fd: int) -> None:
        """Read no more for one that was kept. To be called before its socket is closed."""
        self._lanes.remove(fd)

    def _pass(self) -> None:
        node, lanes = self._node, self._lanes
        now_s = trio.current_time()
        lanes.begin()
        while True:
            step = node.begin()
            self._serve(step, now_s)
            node.end(step)
            if not lanes.more or node.crowded:  # what is not read yet is still readable later
                break
        node.settle()

    def _serve(self, step: Step, now_s: float) -> None:
        """Read from all that are ready, as long as the step has room for more requests."""
        node, lanes = self._node, self._lanes
        while not node.full:
            decide, before, heard = node.straight_ready(step), lanes.taken, lanes.heard
            found = lanes.next(decide, step.now_ns, step.mono_ns, now_s, node.requests_left)
            node.took(lanes.taken - before, lanes.heard - heard)
            if found is None:
                break
            source, data = found
            if not source.pumped(step, data, now_s):
                source.handed_back()
