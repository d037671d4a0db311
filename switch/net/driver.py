"""The connections of one listener: signing on, turns, silence, ends.

A turn takes all that one read brought, without an `await` per message; the answers leave when their
group is durable, from the gate's task, in one write per connection.

A connection begins with a task, which signs it on. Where the pump reads for it, the task then ends:
socket and session are kept without one (1.2 kB where a task takes 12), until something has to be
waited for: a socket that takes no more, too many requests in flight, a sign-off, answers owed at
the end of the stream. Then it gets a task again, for as long as that goes on. Others (TLS, memory
streams) keep their task, which reads.
"""

import contextlib
import math
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import trio
from msgspec import UNSET

from protocols.messages import SignOff, Status, StatusAnswer
from protocols.session import BAD_MAC, Acceptor, PeerKey, SignOnGuard, Vocabulary
from switch.clock import iso_ms
from switch.config import Session
from switch.net.peer import Peer, Tending, address_of
from switch.net.pump import Pump
from switch.node import Node, Step
from switch.ops.logs import RateLimit, logger

log = logger("net")

LINGER_S = 1.0
KEEP_AFTER_S = 2.0  # a task that had something to wait for ends when it had nothing for so long
ASKED_MAX = 256  # questions of ours to one session; beyond it the oldest is forgotten

Handle = Callable[[Any, Peer, Any], None]
"""(step, peer, message): give one request to its flow."""


class Driver:
    """Serves the connections of one listener.

    Args:
        vocabulary: what its peers speak.
        authenticate: (peer, key version) to key, None for unknown or disabled.
        handle: gives one request to its flow; answers come back through the gate.
        sessions_max: sessions of one peer at a time; one more closes the oldest.
        pump: reads for the plain-TCP connections among them; the others are read by their tasks.
        straight: the pump may decide their common requests by itself.
        on_state: (step, peer, reference, state) of what was asked with `ask`.
    """

    def __init__(
        self,
        node: Node,
        *,
        name: str,
        vocabulary: Vocabulary,
        authenticate: Callable[[str, int], PeerKey | None],
        handle: Handle,
        sessions_max: int,
        guard: SignOnGuard,
        pump: Pump | None = None,
        straight: bool = False,
        on_state: Callable[[Step, str, str, str], None] | None = None,
    ) -> None:
        self._on_state = on_state
        self._node = node
        self._name = name
        self._vocabulary = vocabulary
        self._authenticate = authenticate
        self._handle = handle
        self._answered = frozenset(vocabulary.requests["acceptor"])
        self._sessions_max = sessions_max
        self._guard = guard
        self._pump = pump
        self._straight = straight
        self._config = node.config.session
        self._sessions: dict[str, tuple[Peer, ...]] = {}  # oldest first
        self._nursery: trio.Nursery | None = None
        self._tended: dict[Peer, None] = {}
        self.peers: dict[Peer, None] = {}
        self.accepted = 0
        self.refused = 0
        self.sign_ons_refused = 0
        self._log_limit = RateLimit()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end. Never raises for anything a peer does."""
        self.accepted += 1
        if len(self.peers) >= self._config.connections_max:
            self.refused += 1
            await trio.aclose_forcefully(stream)
            return
        peer = self._peer(stream)
        self.peers[peer] = None
        assert peer.tending is not None, "a connection begins with a task"
        await self._tend(peer, peer.tending, keep=True)

    async def _tend(self, peer: Peer, tending: Tending, *, keep: bool = False) -> None:
        """The task of a connection: to its end, or until it is kept without one."""
        self._tended[peer] = None
        try:
            with tending.cancel_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_behind, peer, tending)
                    await self._read(peer, tending, keep)
                    nursery.cancel_scope.cancel()
        finally:
            if not tending.released:
                self._tended.pop(peer, None)
                self._forget(peer)
                self._tell_of_tampering(peer)
                peer.detach()
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await self._close(tending.stream)
                self._log_end(peer)

    def _log_end(self, peer: Peer) -> None:
        log.debug("closed", listener=self._name, peer=peer.name, reason=peer.session.closing or "")

    # ---- connections without a task

    def _keep(self, peer: Peer, stream: trio.SocketStream) -> None:
        """Take the socket out of its stream, and let the pump have it; the task may end."""
        assert self._pump is not None
        assert peer.tending is not None
        peer.tending.released = True
        peer.tending = None
        self._tended.pop(peer, None)
        # The number stays open: only the objects around it go.
        self._pump.keep(peer, stream.socket.detach(), peer.lane, self._look_again_s(peer, 0.0))

    def tend(self, peer: Peer) -> None:
        """Give it a task, which reads what is still held first."""
        assert self._nursery is not None
        assert self._pump is not None
        self._pump.drop(peer.fd)
        own = trio.socket.from_stdlib_socket(socket.socket(fileno=peer.fd))
        peer.tending = Tending(trio.SocketStream(own))
        self._tended[peer] = None
        self._nursery.start_soon(self._tend, peer, peer.tending)

    def look(self, peer: Peer, now_s: float) -> float:
        """See to one that is kept without a task; the trio time at which to do so again."""
        self._look(peer, now_s)
        return self._look_again_s(peer, now_s)

    def _look_again_s(self, peer: Peer, now_s: float) -> float:
        if peer.session.closing:
            return math.inf
        heartbeat_s = peer.session.heartbeat_s
        # While an echo is without answer, every second: the session is to know of the answer.
        again_s = max(peer.heard_s + heartbeat_s, now_s + 1)
        return again_s if peer.session.confirmed else min(again_s, peer.opened_s + self._unproved_s)

    def close(self, peer: Peer, fd: int) -> None:
        """The end of one that is kept without a task."""
        assert self._pump is not None
        self._pump.drop(fd)
        with contextlib.suppress(OSError):  # of a connection that is broken already
            os.close(fd)
        self._forget(peer)
        self._log_end(peer)
        if peer.session.closing == BAD_MAC and self._nursery is not None:
            self._nursery.start_soon(self._report, peer)  # not within the turn that found it

    async def _report(self, peer: Peer) -> None:
        self._tell_of_tampering(peer)

    def _tell_of_tampering(self, peer: Peer) -> None:
        """A frame with a wrong MAC in a session that was proved: somebody is on the line (S02)."""
        if not peer.session.confirmed or peer.session.closing != BAD_MAC:
            return
        step = self._node.begin()
        step.alarm("session_mac", peer.name, f"listener {self._name}")
        step.audit(peer.name, "session", peer.name, "63", BAD_MAC, security=True)
        self._node.end(step)

    async def sweep(self) -> None:
        """Once a second: echo into silence, end what is dead or does not sign on.

        The tasks of connections that get one again live in it, so it runs as long as there are any;
        without it, every connection keeps its task.
        """
        async with trio.open_nursery() as self._nursery:
            try:
                while True:
                    await trio.sleep(1)
                    now_s = trio.current_time()
                    for peer in list(self._tended):
                        self._look(peer, now_s)
            finally:
                self._nursery.cancel_scope.cancel()
                for peer in [one for one in self.peers if one not in self._tended]:
                    peer.cut("shutdown")
                self._nursery = None

    @property
    def _unproved_s(self) -> float:
        return self._config.sign_on_s + 2 * self._config.heartbeat_s

    def _look(self, peer: Peer, now_s: float) -> None:
        """Echo into its silence; end it where that lasts, or where it does not sign on."""
        age_s = now_s - peer.opened_s
        if peer.session.signed_on:
            # Bytes without a good frame are no proof: whoever replays a sign-on has them.
            if not peer.session.confirmed and age_s >= self._unproved_s:
                peer.cut("sign-on not proved in time")
            peer.write(peer.session.silence(now_s - peer.heard_s))
            if peer.session.closing:
                peer.cut(peer.session.closing)
        elif age_s >= self._config.sign_on_s:
            peer.cut("no sign-on in time")

    def reconfigure(self, config: Session) -> None:
        """Go on with other bounds; what a peer was told at its sign-on stays as it is."""
        self._config = config

    def bar(self, is_meant: Callable[[str], bool]) -> None:
        """End the sessions of peers that may work no more, by name: each of them is told so by the
        refusal of its next request (case X010), and closed after it."""
        for name, sessions in self._sessions.items():
            if is_meant(name):
                for peer in sessions:
                    peer.bar()

    def finish(self) -> None:
        """Stop reading everywhere; connections end once their answers are out."""
        for peer in list(self.peers):
            peer.finishing = True
            if peer.idle:
                peer.cut("shutdown")

    async def finished(self) -> None:
        """Wait until every connection has got its answers and is gone."""
        while self.peers:
            for peer in list(self.peers):
                if peer.idle:
                    peer.cut("shutdown")
            await trio.sleep(0.01)

    # ---- what we ask

    def ask(self, step: Step, number: str, message: Status) -> bool:
        """Ask a signed-on peer, over its newest session; False where it has none.

        The answer goes to `on_state` with the reference that was asked about.
        """
        sessions = self._sessions.get(number)
        if not sessions:
            return False
        peer = sessions[-1]
        id_ = peer.session.new_id()
        if len(peer.asked) >= ASKED_MAX:
            del peer.asked[next(iter(peer.asked))]
        peer.asked[id_] = message.reference
        step.send(peer, msgspec.structs.replace(message, id=id_))
        return True

    # ---- one connection

    async def _read(self, peer: Peer, tending: Tending, keep: bool) -> None:
        most = self._config.max_in_flight
        session = peer.session
        try:
            while session.closing is None and not (peer.finishing or peer.ended):
                if session.signed_on and (peer.in_flight >= most or session.more):
                    await peer.has_room(tending, most)
                    await self._node.room()
                    self._turn(peer, b"", most)
                elif session.signed_on and self._pump is not None and peer.fd >= 0:
                    if keep and self._nursery is not None and not tending.unsent:
                        assert isinstance(tending.stream, trio.SocketStream), "it has a socket"
                        self._keep(peer, tending.stream)
                        return
                    with trio.move_on_after(KEEP_AFTER_S) as quiet:
                        await self._pump.attend(peer, peer.fd, self, peer.lane)
                    keep = quiet.cancelled_caught
                else:
                    data = await peer.read(tending)
                    peer.ended = not data
                    if data:
                        await self._node.room()
                        await self._read_turn(peer, tending, data, most)
            # A peer that only half-closed, or signed off, still gets what it is owed.
            with trio.move_on_after(self._config.drain_s):
                await peer.drained(tending)
            if session.closing and not peer.ended:
                await self._linger(tending.stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            session.closing = session.closing or "connection lost"

    async def _read_turn(self, peer: Peer, tending: Tending, data: bytes, most: int) -> None:
        if peer.session.signed_on:
            self._turn(peer, data, most)
        else:
            await self._sign_on_turn(peer, tending, data, most)

    async def _linger(self, stream: trio.abc.Stream) -> None:
        """Let the last frame be read: closing over unread bytes resets, which overtakes it."""
        if isinstance(stream, trio.SocketStream):
            with trio.move_on_after(LINGER_S):
                await stream.send_eof()
                while await stream.receive_some(65_536):
                    pass

    async def _sign_on_turn(self, peer: Peer, tending: Tending, data: bytes, limit: int) -> None:
        # A sign-on may come in pieces; it waits for its turn once.
        wait_s = 0.0 if tending.waited else self._guard.wait_s(peer.address)
        tending.waited = True
        if wait_s > self._config.sign_on_s:
            peer.session.closing = "too many failed sign-ons from this address"
            return
        if wait_s:
            await trio.sleep(wait_s)
        self._turn(peer, data, limit)
        if peer.session.refused:
            self._guard.failed(peer.address, peer.session.claimed_peer)
            self.sign_ons_refused += 1
            held_back = self._log_limit.admit(peer.address, trio.current_time())
            if held_back is not None:
                log.warning(
                    "sign_on_refused", listener=self._name, address=peer.address,
                    held_back=held_back,
                )  # fmt: skip

    def _turn(self, peer: Peer, data: bytes, most: int) -> None:
        """Everything of one read: decode, decide, and hold the answers."""
        messages = self._decoded(peer, data, most)
        if messages:
            step = self._node.begin()
            self._requests(step, peer, messages)
            self._node.end(step)

    def pumped(self, step: Step, peer: Peer, data: bytes | None) -> bool:
        """The turn of one peer within a pass of the pump; False where its own task must go on."""
        if data == b"":
            peer.ended = True
            return False
        most = self._config.max_in_flight
        self._requests(step, peer, self._decoded(peer, data or b"", most))
        session = peer.session
        return not (session.closing or session.more or peer.finishing or peer.in_flight >= most)

    def _decoded(self, peer: Peer, data: bytes, most: int) -> list[Any]:
        session = peer.session
        was_confirmed = session.confirmed
        messages = peer.take(data, max(min(most - peer.in_flight, self._node.requests_max), 1))
        if session.confirmed and not was_confirmed:
            self._confirmed(peer)
        return messages

    def _requests(self, step: Step, peer: Peer, messages: list[Any]) -> None:
        handle = self._handle
        for message in messages:
            if type(message) not in self._answered:
                if type(message) is StatusAnswer:
                    self._told(step, peer, message)
                continue  # a BadRequest is answered already; other answers are to nothing we asked
            peer.in_flight += 1
            handle(step, peer, message)
            if peer.barred or type(message) is SignOff:
                peer.finishing = True
                break

    def _told(self, step: Step, peer: Peer, message: StatusAnswer) -> None:
        reference = peer.asked.pop(message.id, "")
        if reference and message.reference in (reference, UNSET) and self._on_state is not None:
            self._on_state(step, peer.name, reference, message.state)

    async def _write_behind(self, peer: Peer, tending: Tending) -> None:
        try:
            await peer.write_behind(tending)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            peer.cut("connection lost while writing")

    async def _close(self, stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.aclose()

    # ---- sessions

    def _peer(self, stream: trio.abc.Stream) -> Peer:
        address = address_of(stream)

        def authenticate(number: str, version: int) -> PeerKey | None:
            if not self._guard.allowed(address, number):
                return None
            return self._authenticate(number, version)

        session = Acceptor(
            vocabulary=self._vocabulary,
            authenticate=authenticate,
            nonce=os.urandom(16),
            now_iso=lambda: iso_ms(self._node.clock.wall_ns()),
            frame_bytes_max=self._config.frame_bytes_max,
            heartbeat_s=self._config.heartbeat_s,
        )
        return Peer(
            stream, session, self, address=address, outbox_bytes_max=self._config.outbox_bytes_max
        )

    def _confirmed(self, peer: Peer) -> None:
        """The peer has proved that it is no replay: now it counts, and may displace the oldest."""
        peer.name = peer.session.peer
        if self._straight:
            json = peer.session.encoding == "json"
            peer.lane.name(peer.name, self._config.max_in_flight, json)
        sessions = (*self._sessions.get(peer.name, ()), peer)
        self._sessions[peer.name] = sessions[-self._sessions_max :]
        for oldest in sessions[: -self._sessions_max]:
            oldest.cut("displaced by a newer session")

    def _forget(self, peer: Peer) -> None:
        self.peers.pop(peer, None)
        sessions = self._sessions.get(peer.name, ())
        left = tuple(one for one in sessions if one is not peer)
        if left:
            self._sessions[peer.name] = left
        elif sessions:
            del self._sessions[peer.name]
