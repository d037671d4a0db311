"""Which connection takes the next request, and who may dial an address now.

The addresses of a link have a priority and a weight. Of the lowest priority that has a connection
UP, the one with the least in flight by weight takes the request; higher ones are not used
meanwhile. An address of which no connection is signed on is half open: one tries at a time, and the
others follow when it has succeeded.
"""

from collections.abc import Iterable, Sequence

import trio

from switch.config import LinkAddress
from switch.net.line import Line
from switch.net.link_state import State


class Site:
    """One address of a host.

    Attributes:
        rank: its index in the settings.
        connections: how many are kept to it.
        dialling: how many of them are being opened now.
        signed_on: numbers of those that are signed on.
    """

    def __init__(self, rank: int, settings: LinkAddress, connections: int) -> None:
        self.rank = rank
        self.address = settings.address
        self.priority = settings.priority
        self.weight = settings.weight
        self.connections = settings.connections or connections
        self.dialling = 0
        self.signed_on: set[int] = set()
        self._probe: object = None
        self._changed = trio.Event()

    async def admitted(self, who: object) -> None:
        """Wait until `who` may dial: the address works, or it is the one that finds out."""
        while not self.signed_on and self._probe is not None and self._probe is not who:
            await self._changed.wait()
        if not self.signed_on:
            self._probe = who

    def opened(self, number: int) -> None:
        """A connection has signed on: everybody may."""
        self.signed_on.add(number)
        self._probe = None
        self._change()

    def done(self, who: object) -> None:
        """`who` has failed and paused, or has ended: another may find out."""
        if self._probe is who:
            self._probe = None
            self._change()

    def closed(self, number: int) -> None:
        self.signed_on.discard(number)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Pool:
    """The connections that take requests now.

    Args:
        sites: of the link, by rank.
        in_flight_max: of each connection.
    """

    def __init__(self, sites: Sequence[Site], in_flight_max: int) -> None:
        self._sites = sites
        self.in_flight_max = in_flight_max
        self._lines: list[tuple[Line, int]] = []

    @property
    def up(self) -> bool:
        """Some connection is UP."""
        return bool(self._lines)

    def refresh(self, lines: Iterable[Line]) -> None:
        """Look at the states of all connections again."""
        usable = [line for line in lines if line.state is State.UP]
        lowest = min((self._priority(line) for line in usable), default=0)
        self._lines = [
            (line, self._weight(line)) for line in usable if self._priority(line) == lowest
        ]

    def choose(self) -> Line | None:
        """Return the least loaded; None where all have as much in flight as they may.

        A state may be older than its connection by the turn in progress: one that has signed off
        in it takes nothing more.
        """
        best: Line | None = None
        least = 0.0
        for line, weight in self._lines:
            if line.in_flight < self.in_flight_max and line.connection.signed_on:
                load = line.in_flight / weight
                if best is None or load < least:
                    best, least = line, load
        return best

    def _priority(self, line: Line) -> int:
        return 0 if line.inbound else self._sites[line.rank].priority

    def _weight(self, line: Line) -> int:
        return 1 if line.inbound else self._sites[line.rank].weight
