"""A simulated peer's sockets: it listens or dials, and can be away for a while.

What is said on a connection is the business of a `Peer`: `IsoHost` and `SicoopSimulator` make one
for each. When one of them wants the whole peer to stop, all connections end, and nothing is
accepted until it comes back, with its memory as it was: as a host that restarts.
"""

import contextlib
import random
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from switch.simulators.outlet import Outlet

CONNECTIONS_MAX: Final = 1000
REDIAL_S: Final = 0.2
READ_BYTES_MAX: Final = 65_536


class Conversation(Protocol):
    """One connection of a simulated peer."""

    def begin(self) -> None:
        """Say what has to be said first."""

    def receive(self, data: bytes) -> None:
        """Take what one read brought, and answer."""

    def tick(self) -> None:
        """About once a second."""


Converse = Callable[[Outlet, bool], Conversation]
"""(outlet, we connected): what one connection says."""


class Server:
    """Listens at one address, or keeps one connection to another; with absences.

    Args:
        tls: of those who connect; None: plain TCP.

    Attributes:
        address: where it listens, once `run` has started.
        connections: open now. accepted: so far.
    """

    def __init__(
        self, converse: Converse, *, seed: int = 1, tls: ssl.SSLContext | None = None
    ) -> None:
        self._converse = converse
        self._tls = tls
        self._chance = random.Random(f"{seed} bytes")
        self._away = trio.Event()
        self._away_s = 0.0
        self._life: trio.CancelScope | None = None
        self.address: tuple[str, int] = ("", 0)
        self.connections = 0
        self.accepted = 0
        self.absences = 0

    def stop(self, seconds: float) -> None:
        """End all connections now, and be away for so long."""
        self._away_s = seconds
        self.absences += 1
        if self._life is not None:
            self._life.cancel()

    async def listen(
        self, host: str, port: int, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept connections until cancelled. Raises: OSError: the address cannot be had."""
        started = False
        while True:
            listeners = await trio.open_tcp_listeners(port, host=host)
            name = listeners[0].socket.getsockname()
            # The same port after an absence, also where the system had chosen it.
            self.address, port = (name[0], name[1]), name[1]
            if not started:
                task_status.started(self.address)
                started = True
            with trio.CancelScope() as self._life:
                if self._tls is None:
                    await trio.serve_listeners(self._accept, listeners)
                else:
                    secured = [trio.SSLListener(one, self._tls) for one in listeners]
                    await trio.serve_listeners(self._accept, secured)
            await trio.sleep(self._away_s)

    async def dial(self, host: str, port: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep one connection to `host`, until cancelled."""
        task_status.started()
        while True:
            with trio.CancelScope() as self._life, contextlib.suppress(OSError):
                stream = await trio.open_tcp_stream(host, port)
                await self._serve(stream, initiator=True)
            pause_s, self._away_s = self._away_s, 0.0
            await trio.sleep(max(pause_s, REDIAL_S))

    async def _accept(self, stream: trio.abc.Stream) -> None:
        if self.connections >= CONNECTIONS_MAX:
            await trio.aclose_forcefully(stream)
            return
        await self._serve(stream, initiator=False)

    async def _serve(self, stream: trio.abc.Stream, *, initiator: bool) -> None:
        self.accepted += 1
        self.connections += 1
        try:
            async with trio.open_nursery() as nursery:
                outlet = Outlet(stream, nursery, self._chance)
                conversation = self._converse(outlet, initiator)
                nursery.start_soon(outlet.run)
                nursery.start_soon(_tick, conversation)
                conversation.begin()
                await _read(stream, conversation)
                nursery.cancel_scope.cancel()
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)


async def _read(stream: trio.abc.Stream, conversation: Conversation) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := bytes(await stream.receive_some(READ_BYTES_MAX)):
            conversation.receive(data)


async def _tick(conversation: Conversation) -> None:
    while True:
        await trio.sleep(1)
        conversation.tick()
