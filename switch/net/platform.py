"""The way from a `red` to a `sicoop` in another process, over the framed session.

A `PlatformLink` is one network's way: one session or several to the first address that answers,
kept up by itself. Requests of all terminals share them. Each gets an `id` of its connection when it
is given to one, and only the answer with that id on that connection, of the kind that was asked
for and about the same reference, ever reaches who asked; whatever else comes is counted.

A request that got no answer in time, or whose connection ended, is of unknown outcome: that is
what `on_lost` says, and what to do about it is the business of the flows. While no session is up,
requests are refused at once: certain that nothing was sent.

Turns are as everywhere: plain TCP is read by the pump, TLS by the session's own task; all that
one turn has to say to one connection leaves in one write.
"""

import contextlib
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec
import trio
from msgspec import UNSET

from core_ext import Counters, Histogram, Wheel
from core_ext._relay import PlatformLane, Relay
from protocols.messages import (
    Error,
    Hold,
    HolderAnswer,
    Message,
    NetworkAnswer,
    NetworkHolder,
    NetworkRequest,
    Status,
    StatusAnswer,
)
from protocols.session import NETWORK, BadRequest, Initiator, PeerKey
from protocols.session.vocabulary import encoder
from switch.clock import iso_ms
from switch.config import Platform
from switch.journal.gate import Destination
from switch.net.dial import Dialer, DialError
from switch.net.link_state import Backoff
from switch.net.platform_session import PlatformSession
from switch.net.pump import Pump
from switch.node import Node, Step
from switch.ops.logs import RateLimit, logger

log = logger("platform")

QUEUE_MAX: Final = 1024
"""Requests that wait for room in a session; one more is refused."""

STRAYS_KEPT: Final = 200
"""Answers without a request that are remembered for `troncal links explain`."""

CLOCK_OFF_S: Final = 2.0
"""Clocks of two servers that differ by more are worth an alarm."""

CERTIFICATE_ALARM_S: Final = 30 * 86_400
"""A certificate that expires within this raises an alarm, once a day (case P09)."""

_TICK_S: Final = 0.25
_FRAME_ROOM: Final = 64  # of a frame, for its MAC and what is filled in when it leaves
_MONO_NS: Final = 1_000_000_000

COUNTERS: Final = (
    "requests",
    "answers",
    "timeouts",
    "lost",
    "unsent",
    "late",
    "unmatched",
    "refused_down",
    "refused_full",
    "asked",
    "connects",
    "connects_failed",
    "connections_lost",
)
(
    REQUESTS, ANSWERS, TIMEOUTS, LOST, UNSENT, LATE, UNMATCHED, REFUSED_DOWN, REFUSED_FULL, ASKED,
    CONNECTS, CONNECTS_FAILED, CONNECTIONS_LOST,
) = range(len(COUNTERS))  # fmt: skip
_REASONS: Final = {"timeout": TIMEOUTS, "lost": LOST, "unsent": UNSENT}

Dial = Callable[[str], Awaitable[trio.abc.Stream]]
Keys = Callable[[], Sequence[tuple[int, PeerKey]]]


class Handler(Protocol):
    """What the link tells its owner, each within a step that ends soon after."""

    def on_answer(self, step: Step, token: Any, message: Message) -> None:
        """sicoop answered the request that `token` was given with; once at most."""

    def on_lost(self, step: Step, token: Any, reason: str) -> None:
        """There will be no answer. Once at most, and never beside `on_answer`.

        `reason`: "timeout" and "lost" (the connection ended, or the answer was unreadable): the
        outcome is unknown. "unsent": it never left this process.
        """

    def on_request(self, step: Step, message: Status, origin: Destination) -> None:
        """sicoop asks; the answer goes to `origin` through the reply gate."""

    def on_up(self, step: Step) -> None:
        """The first session is up: what is owed may be sent."""

    def on_down(self, step: Step) -> None:
        """No session is up any more."""

    def adopt(self, step: Step, passing: Any) -> None:
        """An operation that was on its way natively is Python's from now on."""


class _Request:
    """A request that somebody waits for."""

    __slots__ = ("deadline_ns", "id", "message", "number", "sent_ns", "session", "token")

    def __init__(self, number: int, message: NetworkRequest, token: Any, deadline_ns: int) -> None:
        self.number = number
        self.message = message
        self.token = token
        self.deadline_ns = deadline_ns
        self.session: PlatformSession | None = None
        self.id = 0
        self.sent_ns = 0

    def is_answered_by(self, answer: Message) -> bool:
        """Whether kind and reference of an answer fit; a refusal may come for anything."""
        asked = type(self.message)
        if asked is NetworkHolder:
            return type(answer) in (HolderAnswer, NetworkAnswer)
        if asked is Status:
            fits = type(answer) in (StatusAnswer, NetworkAnswer)
        else:
            fits = type(answer) is NetworkAnswer
        reference = getattr(answer, "reference", UNSET)
        return fits and reference in (UNSET, self.message.reference)  # type: ignore[union-attr]


class PlatformLink:
    """The sessions of one network with `sicoop`. `run` is its task.

    Args:
        network: our number, four digits.
        settings: addresses in `connect`, in the order in which they are tried.
        node: begins and ends the steps in which the handler is called.
        keys: our keys for sicoop as (version, key), newest first; asked at each sign-on. Where one
            is refused the next try takes the next, so that a rotation may reach us first.
        pump: reads for plain-TCP sessions; without it each is read by its own task.
        chance: numbers in 0..1, for the jitter of the pauses.
        dial: opens the transport, by default as `settings` say.
        nonce: 16 new random bytes at each call.
        relay: passes on common operations natively, over plain-TCP sessions; None: nobody does.

    Attributes:
        counters, latency: see COUNTERS; nanoseconds from sending to the answer.
        strays: the newest answers that belonged to no request.

    Raises:
        OSError, ValueError: certificates or keys that cannot be read.
    """

    def __init__(
        self,
        network: str,
        settings: Platform,
        node: Node,
        handler: Handler,
        *,
        keys: Keys,
        pump: Pump | None = None,
        chance: Callable[[], float] = random.random,
        dial: Dial | None = None,
        queue_max: int = QUEUE_MAX,
        nonce: Callable[[], bytes] = lambda: os.urandom(16),
        relay: Relay | None = None,
    ) -> None:
        assert settings.connect, "a platform in another process has an address"
        self.network = network
        self._addresses = settings.connect
        self._dialer = Dialer(settings.tls, node.config.file) if dial is None else None
        self._dial: Dial = dial or self._dialer_open
        self._node = node
        self._handler = handler
        self._keys = keys
        self._key_index = 0
        self._settings = settings
        self._config = node.config.session
        self._pump = pump
        self._queue_max = queue_max
        self._nonce = nonce
        self._relay = relay if pump is not None else None
        self._backoff = Backoff(settings.backoff_min_s, settings.backoff_max_s, chance)
        self._try_at_s = 0.0
        self._next_address = 0
        self._certificate_at_s = 0.0
        self._opening = trio.Lock()
        self._phase = "DOWN"
        self._opened = 0
        self._stopping = False
        self._sessions: dict[PlatformSession, None] = {}
        self._dirty: dict[PlatformSession, None] = {}
        self._requests: dict[int, _Request] = {}
        self._queue: deque[_Request] = deque()
        self._orphans: deque[tuple[_Request, str]] = deque()
        self._told_up = False
        self._wheel = Wheel()
        self._last_number = 0
        self._work = trio.Event()
        self._frame_bytes_max = self._config.frame_bytes_max
        self.counters = Counters(COUNTERS)
        self.latency = Histogram()
        self.strays: deque[dict[str, Any]] = deque(maxlen=STRAYS_KEPT)
        self.last_failure = ""
        self._log_limit = RateLimit()

    # ---- for the flows

    @property
    def up(self) -> bool:
        """At least one session takes requests."""
        if not self._stopping:
            for session in self._sessions:  # asked for three times an operation, so not by `any`
                if session.usable:
                    return True
        return False

    @property
    def state(self) -> str:
        """DOWN, CONNECTING, SIGNING_ON, UP, or DEGRADED: an echo is without its answer."""
        usable = [session for session in self._sessions if session.usable]
        if not usable:
            return self._phase
        now_s = trio.current_time()
        silent = all(
            now_s - session.heard_s > 1.25 * session.session.heartbeat_s for session in usable
        )
        return "DEGRADED" if silent else "UP"

    @property
    def queued(self) -> int:
        """Requests that wait for room in a session."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        return sum(session.load for session in self._sessions)

    def request(self, message: NetworkRequest, *, token: Any, budget_s: float) -> str:
        """Send a request with the next `flush`; its `id` and `sent_at` are filled in then.

        To be called only when the step that decided to send it is durable: from a destination of
        the reply gate. The token comes back in exactly one of `on_answer` and `on_lost`.

        Returns:
            "" or why it is refused, certain that nothing leaves: "down", "full", "too_long".
        """
        if not self.up:
            self.counters.add(REFUSED_DOWN)
            return "down"
        if type(message) is Hold and message.declaration is not UNSET and self._too_long(message):
            return "too_long"
        session = self._with_room()
        if session is None and len(self._queue) >= self._queue_max:
            self.counters.add(REFUSED_FULL)
            return "full"
        self._last_number += 1
        deadline_ns = self._node.clock.mono_ns() + int(budget_s * _MONO_NS)
        request = _Request(self._last_number, message, token, deadline_ns)
        self._requests[request.number] = request
        self._wheel.arm(request.number, deadline_ns)
        self.counters.add(REQUESTS)
        if session is None:
            self._queue.append(request)
        else:
            self._assign(session, request)
        return ""

    def adopt(self, message: NetworkRequest, passing: Any, *, token: Any, budget_s: float) -> None:
        """Wait for the answer of a request that has left natively, over a session of ours."""
        session: PlatformSession = passing.session
        self._last_number += 1
        deadline_ns = passing.ready_ns + int(budget_s * _MONO_NS)
        request = _Request(self._last_number, message, token, deadline_ns)
        request.session, request.id, request.sent_ns = session, passing.id, passing.sent_ns
        self._requests[request.number] = request
        self._wheel.arm(request.number, deadline_ns)
        session.pending[request.id] = request
        session.told()

    def flush(self) -> None:
        """Write what was requested: one write for each connection."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        now_ns = self._node.clock.mono_ns()
        sent_at = iso_ms(self._node.clock.wall_ns())
        for session in dirty:
            unsent, session.unsent = session.unsent, []
            messages: list[Message] = []
            for request in unsent:
                if request.session is not session:
                    continue  # given up before it left
                request.sent_ns = now_ns
                messages.append(_stamped(request.message, request.id, sent_at))
            if messages:
                session.write(session.session.encode(messages))

    def snapshot(self) -> dict[str, Any]:
        """The link as operators see it, in the form of the other links; no secrets."""
        now_s = trio.current_time()
        latency = self.latency
        return {
            "link": f"platform-{self.network}",
            "state": self.state,
            "up": self.up,
            "in_flight": self.in_flight,
            "queue": self.queued,
            "latency_ms": {
                "count": latency.count,
                "p50": latency.percentile(50) / 1e6,
                "p99": latency.percentile(99) / 1e6,
                "max": latency.max / 1e6,
            },
            "certificate_expires_s": self.certificate_expires_s(),
            "last_failure": self.last_failure,
            "addresses": [{"address": address} for address in self._addresses],
            "connections": [session.snapshot(now_s) for session in self._sessions],
            "counters": self.counters.as_dict(),
        }

    # ---- its tasks

    async def run(self) -> None:
        """Keep the sessions up until cancelled, or `close`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            for _ in range(self._settings.sessions):
                nursery.start_soon(self._keep_session)

    async def close(self) -> None:
        """Take no more requests, wait for the answers of those in flight, close.

        Bounded by the budgets of what is in flight; put a shorter time around it where need be.
        """
        try:
            while self._requests or any(s.in_flight or s.load for s in self._sessions):
                self._refill()
                self.flush()
                await trio.sleep(0.01)
        finally:
            self._stopping = True
            for session in list(self._sessions):
                session.cut("shutdown")

    async def _keep_session(self) -> None:
        while not self._stopping:
            async with self._opening:
                # One probe at a time: a host that comes back is not run over.
                await trio.sleep_until(self._try_at_s)
                opened = await self._open()
            if opened is None:
                continue
            session, first = opened
            began_s = trio.current_time()
            await self._serve(session, first)
            self._backoff.ended(trio.current_time() - began_s)
            self._pause()

    def _pause(self) -> None:
        self._try_at_s = trio.current_time() + self._backoff.next_s()

    async def _open(self) -> tuple[PlatformSession, list[Any]] | None:
        """Connect and sign on at the next address; a pause follows a whole round of failures."""
        where = self._addresses[self._next_address]
        failure = ""
        self._phase = "CONNECTING"
        with trio.move_on_after(self._config.sign_on_s):
            try:
                found = await self._sign_on(where)
            except DialError as error:
                found = str(error)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                found = type(error).__name__
            if isinstance(found, tuple):
                self._next_address = 0
                self.last_failure = ""
                return found
            failure = found or "refused"
        self._phase = "DOWN"
        self.counters.add(CONNECTS_FAILED)
        self._failed(where, failure or f"no session within {self._config.sign_on_s} s")
        return None

    def _failed(self, where: str, failure: str) -> None:
        if failure != self.last_failure:
            log.warning("platform_unreachable", network=self.network, address=where, reason=failure)
        self.last_failure = failure
        self._next_address = (self._next_address + 1) % len(self._addresses)
        if self._next_address == 0:
            self._pause()

    async def _dialer_open(self, address: str) -> trio.abc.Stream:
        assert self._dialer is not None
        return await self._dialer.open(address)

    def certificate_expires_s(self) -> float | None:
        """Seconds until the first certificate of this link expires; None where there is none."""
        until_s = None if self._dialer is None else self._dialer.certificates_until_s
        return None if until_s is None else until_s - self._node.clock.wall_ns() / 1e9

    async def _sign_on(self, where: str) -> tuple[PlatformSession, list[Any]] | str:
        """A new session with what came behind its sign-on, or why there is none."""
        keys = self._keys()
        if not keys:
            return "no key for this network"
        version, key = keys[self._key_index % len(keys)]
        stream = await self._dial(where)
        session = Initiator(
            vocabulary=NETWORK, peer=self.network, key=key, key_version=version,
            nonce=self._nonce(), encoding="msgpack", frame_bytes_max=self._frame_bytes_max,
        )  # fmt: skip
        self._phase = "SIGNING_ON"
        try:
            await stream.send_all(session.sign_on())
            while not session.signed_on:
                data = bytes(await stream.receive_some(65_536))
                first = session.receive(data)
                if session.closing is not None or not data:
                    if session.code == "63":  # perhaps the other side has another of our keys
                        self._key_index += 1
                    await trio.aclose_forcefully(stream)
                    return session.closing or "closed at sign-on"
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return self._signed_on(stream, session, where), first

    def _signed_on(
        self, stream: trio.abc.Stream, session: Initiator, where: str
    ) -> PlatformSession:
        self._opened += 1
        opened = PlatformSession(
            self._opened, stream, session, where, self._config.outbox_bytes_max
        )
        if self._relay is not None and opened.fd >= 0:
            opened.lane = PlatformLane(
                opened, session.channel, opened.fd, relay=self._relay, network=self.network,
                in_flight_max=self._config.max_in_flight, counters=self.counters,
                requests=REQUESTS, answers=ANSWERS, latency=self.latency,
            )  # fmt: skip
        return opened

    async def _serve(self, session: PlatformSession, first: list[Any]) -> None:
        """One session from its sign-on to its end."""
        self._began(session)
        log.info("platform_session", network=self.network, address=session.address)
        try:
            with session.cancel_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(session.write_behind)
                    self._up(session, first)
                    await self._read(session)
                    nursery.cancel_scope.cancel()
        finally:
            self._ended(session)
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await _close(session.stream)
        log.info(
            "platform_session_ended", network=self.network, address=session.address,
            reason=session.session.closing or "",
        )  # fmt: skip

    def _began(self, session: PlatformSession) -> None:
        self.counters.add(CONNECTS)
        self._sessions[session] = None
        if session.lane is not None:
            session.lane.open()

    async def _read(self, session: PlatformSession) -> None:
        most = self._config.max_in_flight
        while session.usable:
            if self._pump is not None and session.fd >= 0:
                await self._pump.attend(session, session.fd, self, session.lane)
            else:
                data = await session.read()
                session.ended = not data
                await self._node.room()
                self._turn(session, data)
            while session.usable and (session.session.more or session.in_flight >= most):
                # Questions beyond our own limit wait in their socket.
                await session.room(most)
                await self._node.room()
                self._turn(session, b"")
        session.detach("connection lost")

    # ---- turns

    def _up(self, session: PlatformSession, first: list[Any]) -> None:
        step = self._node.begin()
        if not self._told_up:
            self._told_up = True
            self._handler.on_up(step)
        self._check_clock(step, session)
        self._messages(step, session, first)
        self._node.end(step)
        self._refill()
        self.flush()

    def _turn(self, session: PlatformSession, data: bytes) -> None:
        """The turn of a session that the pump does not read for."""
        messages = session.take(data, self._node.requests_max)
        if messages:
            step = self._node.begin()
            self._messages(step, session, messages)
            self._node.end(step)
        self._refill()
        self.flush()

    def pumped(self, step: Step, peer: PlatformSession, data: bytes | None) -> bool:
        """The turn of one session within a pass of the pump; False: its own task goes on."""
        if data == b"":
            peer.ended = True
            return False
        # Where the lane goes on behind what it has left, that is one message.
        resumes = data is None and peer.lane is not None and peer.lane.resumes
        limit = 1 if resumes else self._node.requests_max
        self._messages(step, peer, peer.take(data or b"", limit))
        self._refill()
        self.flush()
        full = peer.in_flight >= self._config.max_in_flight
        return peer.usable and not (full or (peer.session.more and not resumes))

    def _messages(self, step: Step, session: PlatformSession, messages: list[Any]) -> None:
        for message in messages:
            kind = type(message)
            if kind is NetworkAnswer or kind is StatusAnswer or kind is HolderAnswer:
                self._answer(step, session, message)
            elif kind is Status:
                self.counters.add(ASKED)
                session.in_flight += 1
                self._handler.on_request(step, message, session)
            elif kind is BadRequest:
                self._unreadable(step, session, message)
            elif kind is Error:
                log.warning("platform_error", network=self.network, code=message.code[:2])

    def _answer(self, step: Step, session: PlatformSession, message: Any) -> None:
        request = self._asked(step, session, message.id)
        if request is None or not request.sent_ns or not request.is_answered_by(message):
            self._stray(session, message, request)
            return
        del session.pending[message.id], self._requests[request.number]
        self._wheel.cancel(request.number)
        session.told()
        self.counters.add(ANSWERS)
        self.latency.record(max(step.mono_ns - request.sent_ns, 0))
        self._handler.on_answer(step, request.token, message)

    def _asked(self, step: Step, session: PlatformSession, id_: int) -> _Request | None:
        """The request of a session that has this id, taken over from the lane if need be."""
        if session.lane is not None and id_ > 0:
            passing = session.lane.of_id(id_)
            if passing is not None:
                self._handler.adopt(step, passing)
        return session.pending.get(id_)

    def _unreadable(self, step: Step, session: PlatformSession, bad: BadRequest) -> None:
        """An authentic answer that makes no sense: its request has no other answer to hope for."""
        request = None
        if bad.op != "status":
            request = self._asked(step, session, -1 if bad.id is None else bad.id)
        if request is None:
            return
        self.counters.add(UNMATCHED)
        self._forget(request)
        self.counters.add(LOST)
        self._handler.on_lost(step, request.token, "lost")

    def _stray(self, session: PlatformSession, message: Any, request: _Request | None) -> None:
        """Count an answer that nobody waits for; it decides nothing."""
        known = 0 < message.id <= session.last_id
        late = request is None and known
        self.counters.add(LATE if late else UNMATCHED)
        reference = getattr(message, "reference", UNSET)
        stray = {
            "at": iso_ms(self._node.clock.wall_ns()),
            "what": "late" if late else "unmatched",
            "answer": str(type(message).__struct_config__.tag),
            "id": message.id,
            "reference": "" if reference is UNSET else str(reference)[:26],
            "differs": "" if request is None else "kind or reference",
        }
        self.strays.append(stray)
        held_back = self._log_limit.admit(session.address, trio.current_time())
        if held_back is not None:
            log.warning("platform_stray_answer", network=self.network, held_back=held_back, **stray)

    def _check_clock(self, step: Step, session: PlatformSession) -> None:
        """Tell of clocks that differ (K07): holds are refused where it is a minute (A5)."""
        own = iso_ms(self._node.clock.wall_ns())
        off_s = _seconds_between(own, session.session.server_time)
        if off_s is not None and abs(off_s) > CLOCK_OFF_S:
            step.alarm("clock_of_platform", self.network, f"{off_s:+.1f} s")

    def _check_certificate(self) -> None:
        """Tell once a day of a certificate that expires soon (P09)."""
        left_s, now_s = self.certificate_expires_s(), trio.current_time()
        if left_s is None or left_s >= CERTIFICATE_ALARM_S or now_s < self._certificate_at_s:
            return
        self._certificate_at_s = now_s + 86_400
        step = self._node.begin()
        days = int(left_s // 86_400)
        step.alarm("certificate_expires", f"platform-{self.network}", f"in {days} days")
        self._node.end(step)

    # ---- what is in flight

    def _with_room(self) -> PlatformSession | None:
        """The least loaded session that may take one more, or None; nobody overtakes the queue."""
        if self._queue:
            return None
        return self._least_loaded()

    def _least_loaded(self) -> PlatformSession | None:
        least: PlatformSession | None = None
        for session in self._sessions:
            if (least is None or session.load < least.load) and session.usable:
                least = session
        if least is None or least.load >= self._config.max_in_flight:
            return None
        return least

    def _assign(self, session: PlatformSession, request: _Request) -> None:
        request.session = session
        request.id = session.new_id()
        session.pending[request.id] = request
        session.told()
        session.unsent.append(request)
        self._dirty[session] = None

    def _refill(self) -> None:
        """Give the queue to sessions that have room again."""
        while self._queue:
            session = self._least_loaded()
            if session is None:
                return
            request = self._queue.popleft()
            if request.number in self._requests:
                self._assign(session, request)

    def _forget(self, request: _Request) -> None:
        self._requests.pop(request.number, None)
        self._wheel.cancel(request.number)
        if request.session is not None:
            request.session.pending.pop(request.id, None)
            request.session.told()
            request.session = None

    def _ended(self, session: PlatformSession) -> None:
        """The end of a session: the outcome of what was in flight on it is unknown."""
        session.detach()
        if session.lane is not None:
            self._take_over(session.lane.all_of())
        self.counters.add(CONNECTIONS_LOST)
        self._sessions.pop(session, None)
        self._dirty.pop(session, None)
        for request in list(session.pending.values()):
            self._forget(request)
            self._orphans.append((request, "lost" if request.sent_ns else "unsent"))
        if not any(other.usable for other in self._sessions):
            self._phase = "DOWN"
            while self._queue:
                request = self._queue.popleft()
                if request.number in self._requests:
                    self._forget(request)
                    self._orphans.append((request, "unsent"))
        self._work.set()

    def _take_over(self, passing: list[Any]) -> None:
        """What was on its way natively over a session that has ended is Python's."""
        if passing:
            step = self._node.begin()
            for one in passing:
                self._handler.adopt(step, one)
            self._node.end(step)

    # ---- time

    async def _keep_time(self) -> None:
        """Deadlines, echoes into silence, and telling who lost what; in steps of bounded size."""
        while True:
            with trio.move_on_after(_TICK_S):
                await self._work.wait()
            self._work = trio.Event()
            now_s = trio.current_time()
            for session in list(self._sessions):
                session.write(session.session.silence(now_s - session.heard_s))
                if session.session.closing:
                    session.cut(session.session.closing)
            self._check_certificate()
            self._expire()
            await self._tell()

    def _expire(self) -> None:
        for number in self._wheel.advance(self._node.clock.mono_ns()):
            request = self._requests.get(number)
            if request is None:
                continue
            reason = "timeout" if request.sent_ns else "unsent"
            self._forget(request)
            self._orphans.append((request, reason))

    async def _tell(self) -> None:
        while self._orphans:
            step = self._node.begin()
            for _ in range(min(len(self._orphans), self._node.requests_max)):
                request, reason = self._orphans.popleft()
                self.counters.add(_REASONS[reason])
                self._handler.on_lost(step, request.token, reason)
            self._node.end(step)
            await self._node.room()
        if self._told_up and not any(session.usable for session in self._sessions):
            self._told_up = False
            step = self._node.begin()
            self._handler.on_down(step)
            self._node.end(step)
        self._refill()
        self.flush()

    def _too_long(self, message: Hold) -> bool:
        """Whether a hold would make a longer frame than sicoop takes: only declarations can."""
        return len(encoder("msgpack")(message)) + _FRAME_ROOM > self._frame_bytes_max


async def _close(stream: trio.abc.Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.aclose()


def _stamped(message: NetworkRequest, id_: int, sent_at: str) -> Message:
    if type(message) is Hold:
        return msgspec.structs.replace(message, id=id_, sent_at=sent_at)
    return msgspec.structs.replace(message, id=id_)


def _seconds_between(ours: str, theirs: str) -> float | None:
    """How far another clock is ahead; None where its text is none of ours."""
    try:
        return (datetime.fromisoformat(theirs) - datetime.fromisoformat(ours)).total_seconds()
    except (ValueError, TypeError):
        return None
