"""One task reads for all plain-TCP connections, so that a pass of the scheduler is one turn.

Waking a task for each socket costs 20 µs and more a request. The pump waits, as one task, on an
epoll of its own that holds every socket it attends; when that becomes readable it reads from all
that are ready, gives the requests of all to the flows within one step, and settles once. Reading is
native, and so is the whole way of the common cash_out (`core_ext._lanes`): only what is left of a
read comes up here.

A connection's own task still signs it on, and takes over again whenever something has to be waited
for: too many requests in flight, the end of the stream, a sign-off.
"""

from typing import Any, Protocol

import trio

from core_ext._lanes import Lane
from switch.node import Node, Step


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


class _Attended:
    __slots__ = ("done", "fd", "peer", "rest", "turn")

    def __init__(self, peer: Source, fd: int, turn: Turn) -> None:
        self.peer = peer
        self.fd = fd
        self.turn = turn
        self.rest = b""
        self.done = trio.Event()


class Pump:
    """Reads for the connections attended to. `run` is its task."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lanes = node.lanes

    async def run(self) -> None:
        try:
            while True:
                if not self._lanes.more:
                    await trio.lowlevel.wait_readable(self._lanes.fileno())
                self._pass()
                await self._node.room()
        finally:
            trio.lowlevel.notify_closing(self._lanes.fileno())

    async def attend(self, peer: Source, fd: int, turn: Turn, lane: Lane | None = None) -> bytes:
        """Read for `peer` until `turn` hands it back to its own task. What is common of a `lane`
        may be decided and answered before `turn` hears of it.

        Returns what was read meanwhile and not given to `turn`; nothing but for some lanes.
        """
        attended = _Attended(peer, fd, turn)
        self._lanes.add(fd, attended, lane)
        try:
            await attended.done.wait()
        finally:
            self._lanes.remove(fd)
        return attended.rest

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
            decide, before = node.straight_ready(step), lanes.taken
            found = lanes.next(decide, step.now_ns, step.mono_ns, now_s, node.requests_left)
            node.took(lanes.taken - before)
            if found is None:
                break
            attended, data = found
            attended.peer.heard_s = now_s
            if not attended.turn.pumped(step, attended.peer, data):
                attended.rest = lanes.remove(attended.fd) or b""
                attended.done.set()
