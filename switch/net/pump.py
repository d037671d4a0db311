"""One task reads for all plain-TCP connections, so that a pass of the scheduler is one turn.

Waking a task for each socket costs 20 µs and more a request. The pump waits, as one task, on an
epoll of its own that holds every socket it attends; when that becomes readable it reads from all
that are ready, gives the requests of all to the flows within one step, and settles once.

A connection's own task still signs it on, and takes over again whenever something has to be waited
for: too many requests in flight, the end of the stream, a sign-off.
"""

import os
import select
from typing import Protocol

import trio

from switch.net.peer import Peer
from switch.node import Node, Step

PASS_MAX = 1024  # sockets served in one pass; the rest is still readable in the next
READ_BYTES_MAX = 16_384


class Turn(Protocol):
    """What is done with the bytes of one read."""

    def pumped(self, step: Step, peer: Peer, data: bytes) -> bool:
        """Take `data` (b"": the peer has ended). False: the peer's own task has to go on."""
        ...


class _Attended:
    __slots__ = ("done", "peer", "turn")

    def __init__(self, peer: Peer, turn: Turn) -> None:
        self.peer = peer
        self.turn = turn
        self.done = trio.Event()


class Pump:
    """Reads for the connections attended to. `run` is its task."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._epoll = select.epoll()
        self._attended: dict[int, _Attended] = {}

    async def run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._pass()
                await self._node.room()
        finally:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()

    async def attend(self, peer: Peer, fd: int, turn: Turn) -> None:
        """Read for `peer` until `turn` hands it back to its own task."""
        attended = self._attended[fd] = _Attended(peer, turn)
        self._epoll.register(fd, select.EPOLLIN)
        try:
            await attended.done.wait()
        finally:
            self._release(fd)

    def _release(self, fd: int) -> None:
        if self._attended.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def _pass(self) -> None:
        node = self._node
        now_s = trio.current_time()
        step = node.begin()
        for fd, _ in self._epoll.poll(0, PASS_MAX):
            attended = self._attended.get(fd)
            if attended is None:
                continue
            try:
                data = os.read(fd, READ_BYTES_MAX)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            attended.peer.heard_s = now_s
            if not attended.turn.pumped(step, attended.peer, data):
                self._release(fd)
                attended.done.set()
            if node.full:
                node.end(step)
                if node.crowded:
                    break
                step = node.begin()
        else:
            node.end(step)
        node.settle()
