"""Listeners for ISO 8583 hosts that dial us.

One listener may serve several hosts: whose connection it is, the MAC key tells that verifies its
first message. From then on it is the link's, and counts as one of its host's: those who prove
nothing keep nobody out. A connection ends whose first message no key verifies or cannot be read,
or that says nothing in time. It is answered 63 or 30 where the listener has one host; among
several there is no key that the stranger could know.
"""

import contextlib
from collections.abc import Callable, Sequence

import trio

from protocols.iso8583.connection import Connection
from protocols.iso8583.keys import HostKeys
from switch.net.link import Link, identified
from switch.net.peer import address_of
from switch.ops.logs import RateLimit, logger

log = logger("hosts")

LINGER_S = 1.0


class HostListener:
    """Accepts the connections of one listener and hands each to its host's link.

    Args:
        make_connection: a sans-I/O connection that knows the keys of the hosts given.
        hosts: (keys, link) of all who may dial this listener; asked at each connection.
        stranger: told of an address, now and then, whose messages no key verified, and why.
        sign_on_s: how long a connection may take to say whose it is.

    Attributes:
        accepted, refused: connections; refused are those that no key knew, or one too many.
    """

    def __init__(
        self,
        name: str,
        make_connection: Callable[[list[HostKeys]], Connection],
        hosts: Callable[[], Sequence[tuple[HostKeys, Link]]],
        stranger: Callable[[str, str], None],
        *,
        sign_on_s: float,
        connections_max: int,
    ) -> None:
        self._name = name
        self._make_connection = make_connection
        self._hosts = hosts
        self._stranger = stranger
        self._sign_on_s = sign_on_s
        self._connections_max = connections_max
        self._open = 0
        self._log_limit = RateLimit()
        self.accepted = 0
        self.refused = 0

    @property
    def open(self) -> int:
        """Connections now."""
        return self._open

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end. Never raises for anything a host does."""
        self.accepted += 1
        hosts = list(self._hosts())
        if self._open >= self._connections_max or not hosts:
            self.refused += 1
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            await self._serve(stream, hosts)
        finally:
            self._open -= 1

    async def _serve(self, stream: trio.abc.Stream, hosts: Sequence[tuple[HostKeys, Link]]) -> None:
        address = address_of(stream)
        connection = self._make_connection([keys for keys, _ in hosts])
        events = await identified(stream, connection, within_s=self._sign_on_s)
        for keys, link in hosts:
            if connection.proved and keys is connection.keys:
                await link.accept(stream, connection, events, address=address)
                return
        self.refused += 1
        reason = connection.closing or _why(connection)
        held_back = self._log_limit.admit(address, trio.current_time())
        if held_back is not None:
            log.warning(
                "unknown_host", listener=self._name, address=address,
                reason=reason, held_back=held_back,
            )  # fmt: skip
            if connection.mac_failures:
                self._stranger(address, reason)
        with trio.move_on_after(LINGER_S):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(connection.output())
        await trio.aclose_forcefully(stream)


def _why(connection: Connection) -> str:
    if connection.mac_failures:
        return "wrong MAC"
    return "malformed" if connection.format_errors else "no message in time"
