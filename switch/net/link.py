"""A link: one remote ISO 8583 host, over all its connections.

The link gives every request its STAN and DE7, sends it over the least loaded connection that is UP
and hands the answer back to who asked, matched by `match` and by whatever else the host echoes. A
request ends exactly once: answered, or lost, which says why:

    timeout   no answer within the budget             } the outcome is unknown
    lost      its connection ended before the answer  }
    unsent    it never left: the queue took too long, or no connection was UP any more

An answer that nobody waits for (late, second, unmatched) is counted and kept for `explain`; nothing
is ever done about it. With no connection UP requests are refused at once. Turns are as for
sessions: all complete messages of one read are handled in one step, and one write per connection
ends the turn. Plain TCP is read by the pump, TLS by the connection's own task.

Source: section 5 of the ISO 8583 specification; cases P01 to P07 of the acceptance specification.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio
from msgspec import Struct, structs

from core_ext import Counters, Histogram
from core_ext._desk import HostLane
from protocols.iso8583.connection import (
    Connection,
    Cutover,
    EchoAnswered,
    Event,
    ExchangeRefused,
    KeyChanged,
    Received,
    Refused,
    SignedOff,
    SignedOn,
    SignOnRefused,
)
from protocols.iso8583.reply import HostReply
from switch.config import LinkSettings
from switch.net.dial import Dialer, DialError
from switch.net.in_flight import InFlight
from switch.net.line import KeyStored, Line
from switch.net.link_pool import Pool, Site
from switch.net.link_state import Backoff, Silence, State
from switch.net.originals import Originals
from switch.net.pump import Pump
from switch.node import Node, Step
from switch.ops.logs import RateLimit, logger

log = logger("link")

INBOUND_MAX: Final = 64
"""Connections that a host may have open to us."""

CERTIFICATE_ALARM_S: Final = 30 * 86_400
"""A certificate that expires within this raises an alarm, once a day (case P09)."""

_NS: Final = 1_000_000_000
_SIGN_OFF_S: Final = 1.0
_IDLE_S: Final = 3600.0
_NEVER_NS: Final = 1 << 62

COUNTERS: Final = (
    "requests",
    "answers",
    "timeouts",
    "lost",
    "unsent",
    "late",
    "second",
    "unmatched",
    "refused_down",
    "refused_full",
    "asked",
    "mac_failures",
    "format_errors",
    "early",
    "echoes",
    "echoes_missed",
    "connects",
    "connects_failed",
    "connections_lost",
    "sign_ons_refused",
)
(
    REQUESTS, ANSWERS, TIMEOUTS, LOST, UNSENT, LATE, SECOND, UNMATCHED, REFUSED_DOWN, REFUSED_FULL,
    ASKED, MAC_FAILURES, FORMAT_ERRORS, EARLY, ECHOES, ECHOES_MISSED, CONNECTS, CONNECTS_FAILED,
    CONNECTIONS_LOST, SIGN_ONS_REFUSED,
) = range(len(COUNTERS))  # fmt: skip
_REFUSALS: Final = {"63": MAC_FAILURES, "30": FORMAT_ERRORS, "12": EARLY}
_STRAYS: Final = {"late": LATE, "second": SECOND, "unmatched": UNMATCHED}


class HostRequest(Struct, frozen=True, gc=False):
    """A request on its way to the link through the reply gate: durable before it leaves (rule R5).

    Fields as of `Link.request`. What would be refused there ends as `on_lost(..., "unsent")`.
    """

    mti: str
    elements: Mapping[str, object]
    token: object
    budget_s: float = 0.0


class Handler(Protocol):
    """What a link tells its owner, each within a step that ends soon after."""

    def on_answer(self, step: Step, token: Any, received: Received) -> None:
        """The host answered the request that `token` was given with; once at most."""

    def on_lost(self, step: Step, token: Any, reason: str) -> None:
        """There will be no answer: "timeout", "lost" or "unsent". Once, never beside `on_answer`.

        The outcome is unknown, but for "unsent".
        """

    def on_request(self, step: Step, received: Received, origin: Line) -> None:
        """The host asks; a `HostReply` goes to `origin` through the reply gate (`step.reply`).

        Every one must be answered, or given up with `origin.dropped()`: so many are taken at once,
        and no more.
        """

    def on_event(self, step: Step, event: Event) -> None:
        """A cutover, a new key (to be stored in this step), or an exchange that failed."""

    def on_up(self, step: Step) -> None:
        """The first connection is UP: what is owed may be sent."""

    def on_down(self, step: Step) -> None:
        """No connection is UP any more."""


class _Queued:
    """A request that waits for room."""

    __slots__ = ("deadline_ns", "elements", "mti", "token")

    def __init__(
        self, mti: str, elements: Mapping[str, object], token: object, deadline_ns: int
    ) -> None:
        self.mti = mti
        self.elements = elements
        self.token = token
        self.deadline_ns = deadline_ns


class Link:
    """The way to one host. `run` is its task; everything else is called from turns.

    Args:
        name: of the host in the registry.
        settings: addresses in `connect`; none where the host only dials us.
        make_connection: a sans-I/O connection; its argument says whether we dial. It takes its
            STANs from `next_stan`.
        pump: reads for the plain-TCP connections; without one their tasks do.
        dialer: opens connections; default: over TCP, with TLS as configured.
        make_lane: of a connection that the pump reads; None where nothing is decided natively.
        chance: numbers in 0..1, for the jitter of pauses and the first STAN.

    Raises:
        OSError, ValueError: certificates or keys that cannot be read.
    """

    def __init__(
        self,
        name: str,
        settings: LinkSettings,
        make_connection: Callable[[bool], Connection],
        node: Node,
        handler: Handler,
        *,
        pump: Pump | None = None,
        dialer: Dialer | None = None,
        make_lane: Callable[[Line], HostLane | None] = lambda line: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.settings = settings
        self._make_connection = make_connection
        self._node = node
        self._handler = handler
        self._pump = pump
        self._make_lane = make_lane
        self._chance = chance
        self._dialer = dialer or Dialer(settings.tls, node.config.file)
        self._sites = [
            Site(rank, address, settings.connections)
            for rank, address in enumerate(settings.connect)
        ]
        self._pool = Pool(self._sites, settings.max_in_flight)
        self._lines: dict[int, Line] = {}
        self._lines_made = 0
        connections = sum(site.connections for site in self._sites) + INBOUND_MAX
        self._flight = InFlight(
            settings.match,
            node.clock,
            requests_max=connections * settings.max_in_flight,
            remembered_max=settings.late_keep,
            first=chance(),
        )
        self._pending = self._flight.pending
        self._originals = Originals()
        self._queue: deque[_Queued] = deque()
        self._queue_due_ns = _NEVER_NS  # none of it expires before
        self._dirty: dict[Line, None] = {}
        self._given_up: deque[tuple[object, str]] = deque()  # to be told by the next tick
        self._certificate_s = 0.0  # when it was last looked at
        self._up = False
        self._stopping = False
        self._stop = trio.Event()
        self._drained = trio.Event()
        self._wake = trio.Event()
        self._planned_s = 0.0
        self.counters = Counters(COUNTERS)
        self.latency = Histogram()
        self._log_limit = RateLimit()
        self._alarm_limit = RateLimit()

    # ---- requests of ours

    @property
    def up(self) -> bool:
        """A connection is UP: requests are taken."""
        return self._up and not self._stopping

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def state(self) -> State:
        """That of the connection that is furthest."""
        states = [line.state for line in self._lines.values()]
        if any(site.dialling for site in self._sites):
            states.append(State.CONNECTING)
        return max(states, default=State.DOWN)

    def reconfigure(self, settings: LinkSettings) -> None:
        """Go on with other bounds and times; addresses and the match key stay as they are."""
        self.settings = structs.replace(
            settings, connect=self.settings.connect, match=self.settings.match
        )
        self._pool.in_flight_max = settings.max_in_flight

    def request(
        self, mti: str, elements: Mapping[str, object], *, token: object, budget_s: float = 0.0
    ) -> str:
        """Send a request; `flush` writes it. Its end is told to the handler with `token`.

        Args:
            elements: all but MTI, MAC, DE7 and DE11, which are the link's.
            budget_s: how long its answer is waited for, the queue included; 0: `answer_s`.

        Returns:
            "" when it is on its way or queued; else why it is refused, certain that nothing was
            sent: "down" or "full".

        Raises:
            ValueError: it does not fit the dialect. Nothing was sent.
        """
        if not self._up or self._stopping:
            self.counters.add(REFUSED_DOWN)
            return "down"
        now_ns = _now_ns()
        deadline_ns = now_ns + int((budget_s or self.settings.answer_s) * _NS)
        line = None if self._queue else self._pool.choose()
        if line is not None:
            return self._send(line, mti, elements, token, now_ns, deadline_ns)
        if len(self._queue) >= self.settings.queue_max:
            self.counters.add(REFUSED_FULL)
            return "full"
        self._queue.append(_Queued(mti, elements, token, deadline_ns))
        self._queue_due_ns = min(self._queue_due_ns, deadline_ns)
        self._expect(deadline_ns / _NS)
        return ""

    def flush(self) -> None:
        """Write what was requested: one write per connection."""
        dirty, self._dirty = self._dirty, {}
        for line in dirty:
            line.write_out()

    def ready(self, message: HostRequest) -> None:
        """Take a request whose reason is durable: the link is a destination of the reply gate."""
        refused = self.request(
            message.mti, message.elements, token=message.token, budget_s=message.budget_s
        )
        if refused:
            self._give_up(message.token, "unsent")

    def rekey_lanes(self) -> None:
        """The keys may be others by now: let nothing be decided under those before."""
        for line in self._lines.values():
            _rekey(line)

    def next_stan(self) -> str:
        """A STAN that is free, for what a connection itself asks (sign-on, echo)."""
        return self._flight.next_stan()

    def _send(
        self,
        line: Line,
        mti: str,
        elements: Mapping[str, object],
        token: object,
        now_ns: int,
        deadline_ns: int,
    ) -> str:
        elements = self._originals.complete(elements)
        own = self._flight.depart(
            mti, elements, token, sent_ns=now_ns, deadline_ns=deadline_ns, connection=line.number
        )
        if own is None:
            self.counters.add(REFUSED_FULL)
            return "full"
        try:
            line.connection.request(mti, own)
        except ValueError:
            self._flight.withdraw(mti, own, now_ns)
            raise
        self._originals.note(mti, own)
        line.in_flight += 1
        self._dirty[line] = None
        self.counters.add(REQUESTS)
        self._expect(deadline_ns / _NS)
        return ""

    def _send_queued(self) -> None:
        now_ns = _now_ns()
        while self._queue and (line := self._pool.choose()) is not None:
            queued = self._queue.popleft()
            if queued.deadline_ns <= now_ns:
                self._give_up(queued.token, "unsent")
                continue
            fields = (queued.mti, queued.elements, queued.token, now_ns, queued.deadline_ns)
            try:
                refused = self._send(line, *fields)
            except ValueError:
                log.error("request_does_not_fit", link=self.name, mti=queued.mti)
                refused = "full"
            if refused:
                self._give_up(queued.token, "unsent")

    def _give_up(self, token: object, reason: str) -> None:
        self._given_up.append((token, reason))
        self._wake.set()

    # ---- turns

    def pumped(self, step: Step, line: Line, data: bytes | None) -> bool:
        """The turn of one connection within a pass of the pump; False where its task must go on."""
        assert data is not None, "a lane hands back the bytes themselves"
        if not data:
            line.ended = True
            return False
        self._take(step, line, line.connection.receive(data))
        self._turned(line)
        if line.lane is not None:
            _rekey(line)
            line.lane.ready = line.clear
        return not (
            line.connection.closing or line.backlog or line.asked >= self.settings.max_in_flight
        )

    def _turn(self, line: Line, data: bytes) -> None:
        """Everything of one read, as far as one step holds it."""
        events = line.connection.receive(data) if data else []
        step = self._node.begin()
        self._take(step, line, events)
        self._node.end(step)
        self._turned(line)

    def _turned(self, line: Line) -> None:
        if self._queue:
            self._send_queued()
        line.write_out()
        self.flush()
        if self._stopping:
            self._note_drained()

    def _take(self, step: Step, line: Line, events: Sequence[Event]) -> None:
        """Hand on what came, at most as much as one step holds; the rest stays in the backlog."""
        most = max(self._node.requests_max, 1)
        if line.backlog or len(events) > most:
            line.backlog.extend(events)
            backlog = line.backlog
            events = [backlog.popleft() for _ in range(min(most, len(backlog)))]
        now_ns = _now_ns()
        alive = line.connection.heard_echo()
        for event in events:
            if type(event) is Received:
                alive = True
                if event.is_request:
                    self._asked(step, line, event)
                else:
                    self._answered(step, line, event, now_ns)
            else:
                alive = self._managed(step, line, event) or alive
        if alive and line.silence.heard(now_ns / _NS) and line.move("heard"):
            self._refresh(step)

    def _asked(self, step: Step, line: Line, received: Received) -> None:
        self.counters.add(ASKED)
        if received.message.mti[2] in "02":  # to notifications there is no answer
            line.asked += 1
        self._handler.on_request(step, received, line)

    def _answered(self, step: Step, line: Line, received: Received, now_ns: int) -> None:
        ended = self._flight.arrive(received.message, now_ns)
        if ended is None:
            self._stray(line, received, now_ns)
            return
        token, number, sent_ns = ended
        self._lines[number].in_flight -= 1
        self.counters.add(ANSWERS)
        self.latency.record(now_ns - sent_ns)
        self._handler.on_answer(step, token, received)

    def _managed(self, step: Step, line: Line, event: Event) -> bool:
        """What the connection did by itself; True if it proves that the host is there."""
        match event:
            case SignedOn():
                self._signed_on(step, line)
            case SignedOff():
                self._signed_off(step, line)
            case EchoAnswered():
                pass
            case Refused():
                self._refused(step, line, event)
                return False
            case SignOnRefused():
                self.counters.add(SIGN_ONS_REFUSED)
                log.warning("sign_on_refused", link=self.name, code=event.code)
                return False
            case KeyChanged():
                if not event.ours:
                    line.hold()
                    step.send(line, KeyStored())
                self._handler.on_event(step, event)
            case Cutover() | ExchangeRefused():
                self._handler.on_event(step, event)
        return True

    def _signed_on(self, step: Step, line: Line) -> None:
        line.sign_on_by_s = float("inf")
        if not line.inbound:
            self._sites[line.rank].opened(line.number)
        if line.move("signed_on"):
            log.info("connection_up", link=self.name, address=line.address, number=line.number)
            self._refresh(step)
        self._look_at_certificates(step)

    def _signed_off(self, step: Step, line: Line) -> None:
        """The host is leaving: its answers would not be taken any more, and we dial anew."""
        line.sign_on_by_s = trio.current_time() + self.settings.sign_on_s
        self._expect(line.sign_on_by_s)
        self._lose(line)
        if line.move("signed_off"):
            self._refresh(step)
        if not line.inbound and line.connection.closing is None:
            line.connection.closing = "signed off"

    def _refused(self, step: Step, line: Line, event: Refused) -> None:
        self.counters.add(_REFUSALS.get(event.code, FORMAT_ERRORS))
        now_s = trio.current_time()
        if event.code == "63" and self._alarm_limit.admit("63", now_s) is not None:
            step.alarm("link_mac", self.name, f"{event.mti} {event.reason}")
        held_back = self._log_limit.admit(event.code, now_s)
        if held_back is not None:
            log.warning(
                "message_refused", link=self.name, address=line.address, code=event.code,
                mti=event.mti, element=event.element, reason=event.reason, held_back=held_back,
            )  # fmt: skip

    def _stray(self, line: Line, received: Received, now_ns: int) -> None:
        """An answer that nobody waits for."""
        kind, stray = self._flight.stray(received.message, line.number, now_ns)
        self.counters.add(_STRAYS[kind])
        held_back = self._log_limit.admit(kind, now_ns / _NS)
        if held_back is not None:
            log.warning("stray_answer", link=self.name, held_back=held_back, **stray)

    # ---- states

    def _refresh(self, step: Step) -> None:
        """A connection's state has changed: see what that makes of the link."""
        self._pool.refresh(self._lines.values())
        was_up, self._up = self._up, self._pool.up
        if self._up and not was_up:
            log.info("link_up", link=self.name)
            self._handler.on_up(step)
        elif was_up and not self._up:
            log.warning("link_down", link=self.name)
            while self._queue:
                self._give_up(self._queue.popleft().token, "unsent")
            self._handler.on_down(step)

    def _lose(self, line: Line) -> None:
        """What is in flight over a connection will not be answered."""
        for token, _, _ in self._pending.lose(line.number, _now_ns()):
            line.in_flight -= 1
            self._give_up(token, "lost")

    def _look_at_certificates(self, step: Step) -> None:
        left_s = self.certificate_expires_s()
        now_s = trio.current_time()
        if left_s is None or left_s >= CERTIFICATE_ALARM_S:
            return
        if not self._certificate_s or now_s - self._certificate_s >= 86_400:
            self._certificate_s = now_s
            step.alarm("certificate_expires", self.name, f"in {int(left_s // 86_400)} days")

    def certificate_expires_s(self) -> float | None:
        """Seconds until the first certificate of this link expires; None without TLS."""
        until_s = self._dialer.certificates_until_s
        return None if until_s is None else until_s - self._node.clock.wall_ns() / _NS

    # ---- time

    def _expect(self, at_s: float) -> None:
        """Something is due then: the timekeeper must not sleep longer."""
        if at_s < self._planned_s:
            self._planned_s = at_s
            self._wake.set()

    async def _keep_time(self) -> None:
        while True:
            while self._tick():
                await trio.lowlevel.checkpoint()
                await self._node.room()
            self._planned_s = self._next_s()
            if not self._wake.is_set():
                # A microsecond more, so that rounding never wakes it too early.
                with trio.move_on_at(self._planned_s + 1e-6):
                    await self._wake.wait()
            self._wake = trio.Event()

    def _next_s(self) -> float:
        next_s = trio.current_time() + _IDLE_S
        if (next_ns := self._pending.next_ns) is not None:
            next_s = min(next_s, next_ns / _NS)
        if self._queue:
            next_s = min(next_s, self._queue_due_ns / _NS)
        for line in self._lines.values():
            next_s = min(next_s, line.silence.next_s, line.sign_on_by_s)
        return next_s

    def _tick(self) -> bool:
        """Do what is due, as much as one step holds; True: there is more."""
        now_ns = _now_ns()
        most = max(self._node.requests_max, 1)
        if self._queue:
            self._expire_queue(now_ns)
        for token, number, sent_ns in self._pending.expire(now_ns, most):
            line = self._lines[number]
            line.in_flight -= 1
            if line.heard_s <= sent_ns / _NS:  # nothing at all since
                line.silence.doubt(now_ns / _NS)
            self._given_up.append((token, "timeout"))
        step = None
        for line in list(self._lines.values()):
            if (now_ns / _NS) >= min(line.silence.next_s, line.sign_on_by_s):
                step = step or self._node.begin()
                self._look_after(step, line, now_ns / _NS)
        if self._given_up:
            step = step or self._node.begin()
            for _ in range(min(most, len(self._given_up))):
                self._tell(step, *self._given_up.popleft())
        if step is not None:
            self._look_at_certificates(step)
            self._node.end(step)
        if self._queue:
            self._send_queued()
        self.flush()
        if self._stopping:
            self._note_drained()
        next_ns = self._pending.next_ns
        return bool(self._given_up) or (next_ns is not None and next_ns <= now_ns)

    def _tell(self, step: Step, token: object, reason: str) -> None:
        self.counters.add({"timeout": TIMEOUTS, "lost": LOST, "unsent": UNSENT}[reason])
        self._handler.on_lost(step, token, reason)

    def _expire_queue(self, now_ns: int) -> None:
        if now_ns < self._queue_due_ns:
            return
        waiting, self._queue, self._queue_due_ns = self._queue, deque(), _NEVER_NS
        for queued in waiting:
            if queued.deadline_ns <= now_ns:
                self._given_up.append((queued.token, "unsent"))
            else:
                self._queue.append(queued)
                self._queue_due_ns = min(self._queue_due_ns, queued.deadline_ns)

    def _look_after(self, step: Step, line: Line, now_s: float) -> None:
        """A connection has been silent, or has not signed on in time."""
        self._note_lane(line)
        if now_s >= line.sign_on_by_s:
            line.cut("no sign-on in time")
            line.sign_on_by_s = float("inf")
            return
        act = line.silence.check(now_s)
        if act == "":
            return
        if act != "echo":
            self.counters.add(ECHOES_MISSED)
            if line.move("missed"):
                log.warning("connection_degraded", link=self.name, address=line.address)
                self._refresh(step)
        if act == "close":
            line.silence.next_s = float("inf")
            line.cut("silent")
        elif line.connection.signed_on and not line.inbound:
            self.counters.add(ECHOES)
            line.connection.echo()
            self._dirty[line] = None

    # ---- tasks

    async def run(self) -> None:
        """Keep the connections up until `stop`, then sign off and return.

        When cancelled instead, connections end at once, and what was in flight is lost.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                for site in self._sites:
                    for _ in range(site.connections):
                        nursery.start_soon(self._keep, site)
                await self._stop.wait()
                await self._finish()
                nursery.cancel_scope.cancel()
        finally:
            for line in list(self._lines.values()):
                line.cut("shutdown")
            while self._given_up:
                step = self._node.begin()
                for _ in range(min(max(self._node.requests_max, 1), len(self._given_up))):
                    self._tell(step, *self._given_up.popleft())
                self._node.end(step)

    def stop(self) -> None:
        """Refuse requests from now on; `run` ends once all in flight has its end."""
        self._stopping = True
        while self._queue:
            self._give_up(self._queue.popleft().token, "unsent")
        for line in self._lines.values():
            if line.lane is not None:
                line.lane.retire()
        self._stop.set()
        self._note_drained()

    def _note_drained(self) -> None:
        if not (len(self._pending) or any(line.owes for line in self._lines.values())):
            self._drained.set()

    async def _finish(self) -> None:
        await self._drained.wait()
        for line in self._lines.values():
            if not line.inbound and line.connection.signed_on:
                line.connection.sign_off()
                line.write_out()
        with trio.move_on_after(_SIGN_OFF_S):
            async with trio.open_nursery() as nursery:
                for line in self._lines.values():
                    if not line.inbound:
                        nursery.start_soon(line.closed.wait)

    async def _keep(self, site: Site) -> None:
        """One outgoing connection, again and again."""
        who = object()
        backoff = Backoff(self.settings.backoff_min_s, self.settings.backoff_max_s, self._chance)
        while not self._stopping:
            backoff.between(self.settings.backoff_min_s, self.settings.backoff_max_s)
            try:
                await site.admitted(who)
                backoff.ended(await self._attempt(site))
                if not self._stopping:
                    await trio.sleep(backoff.next_s())
            finally:
                site.done(who)

    async def _attempt(self, site: Site) -> float:
        """Connect, sign on, and serve until the end; return how long it was up, in seconds."""
        sign_on_by_s = trio.current_time() + self.settings.sign_on_s
        stream: trio.abc.Stream | None = None
        reason = "no connection in time"
        site.dialling += 1
        try:
            with trio.move_on_at(sign_on_by_s):
                stream = await self._dialer.open(site.address)
        except DialError as error:
            reason = str(error)
        finally:
            site.dialling -= 1
        if stream is None:
            self.counters.add(CONNECTS_FAILED)
            held_back = self._log_limit.admit(site.address, trio.current_time())
            if held_back is not None:
                log.warning(
                    "connect_failed", link=self.name, address=site.address, reason=reason,
                    held_back=held_back,
                )  # fmt: skip
            return 0.0
        self.counters.add(CONNECTS)
        connection = self._make_connection(True)
        line = self._line(stream, connection, site.rank, site.address, sign_on_by_s)
        line.move("dial")
        line.move("opened")
        connection.sign_on()
        await self._serve(line)
        return trio.current_time() - line.up_s if line.up_s else 0.0

    async def accept(
        self,
        stream: trio.abc.Stream,
        connection: Connection | None = None,
        events: Sequence[Event] = (),
        *,
        address: str = "",
    ) -> None:
        """Serve a connection that the host opened, to its end. Never raises for what a host does.

        Args:
            connection: the one that has read its first message already, to find out whose it is;
                default: a new one.
            events: what it has received.
        """
        inbound = sum(line.inbound for line in self._lines.values())
        if self._stopping or inbound >= INBOUND_MAX:
            await trio.aclose_forcefully(stream)
            return
        self.counters.add(CONNECTS)
        sign_on_by_s = trio.current_time() + self.settings.sign_on_s
        connection = connection or self._make_connection(False)
        line = self._line(stream, connection, -1, address, sign_on_by_s)
        line.move("opened")
        line.backlog.extend(events)
        await self._serve(line)

    def _line(
        self,
        stream: trio.abc.Stream,
        connection: Connection,
        rank: int,
        address: str,
        sign_on_by_s: float,
    ) -> Line:
        self._lines_made += 1
        silence = Silence(
            self.settings.echo_interval_s,
            self.settings.answer_s,
            asks=rank >= 0,
            now_s=trio.current_time(),
        )
        return Line(
            self._lines_made, stream, connection, silence, rank=rank, address=address,
            sign_on_by_s=sign_on_by_s,
        )  # fmt: skip

    async def _serve(self, line: Line) -> None:
        self._lines[line.number] = line
        self._expect(min(line.sign_on_by_s, line.silence.next_s))
        try:
            with line.cancel_scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(line.write_behind)
                    line.write_out()
                    await self._read(line)
                    nursery.cancel_scope.cancel()
        finally:
            self._end(line)
            with trio.CancelScope(shield=True):
                await _close(line.stream)

    async def _read(self, line: Line) -> None:
        most = self.settings.max_in_flight
        connection, pump, node = line.connection, self._pump, self._node
        while True:
            if line.backlog:  # to its end, even where the rest of that read ends the connection
                await trio.lowlevel.checkpoint()
                await node.room()
                self._turn(line, b"")
            elif connection.closing is not None or line.ended:
                break
            elif line.asked >= most:
                await line.room(most)
            elif pump is not None and line.fd >= 0 and connection.signed_on:
                rest = await pump.attend(line, line.fd, self, self._lane(line))
                if rest:
                    self._turn(line, rest)
            else:
                data = await line.read()
                line.ended = not data
                if data:
                    await node.room()
                    self._turn(line, data)
        with trio.move_on_after(_SIGN_OFF_S):
            await line.drained()

    def _lane(self, line: Line) -> HostLane | None:
        """The lane of a connection that is about to be read by the pump."""
        if line.lane is None and not self._stopping:
            line.lane = self._make_lane(line)
            line.on_released = self._released
        if line.lane is not None:
            line.lane.ready = line.clear
        return line.lane

    def _released(self) -> None:
        if self._stopping:
            self._note_drained()

    def _note_lane(self, line: Line) -> None:
        """Take over what a lane has heard and counted."""
        lane = line.lane
        if lane is not None:
            self.counters.add(ASKED, lane.taken - line.counted)
            line.counted = lane.taken
            if lane.heard_s > line.heard_s:
                line.heard_s = lane.heard_s
                line.silence.heard(lane.heard_s)

    def _end(self, line: Line) -> None:
        """The connection is over: what was in flight over it is unknown, and only that."""
        self._note_lane(line)
        del self._lines[line.number]
        self._dirty.pop(line, None)
        if not line.inbound:
            self._sites[line.rank].closed(line.number)
        reason = line.connection.closing or "ended by the host"
        line.detach()
        line.closed.set()
        self._lose(line)
        line.move("closed")
        if line.up_s and not self._stopping:
            self.counters.add(CONNECTIONS_LOST)
        log.info("connection_ended", link=self.name, address=line.address, reason=reason)
        step = self._node.begin()
        self._refresh(step)
        self._node.end(step)
        if self._queue:  # another address may take it now
            self._send_queued()
        self.flush()
        if self._stopping:
            self._note_drained()

    # ---- for people

    def snapshot(self) -> dict[str, Any]:
        """Return state, load and counts, for `troncal links` and the metrics."""
        now_s = trio.current_time()
        for line in self._lines.values():
            self._note_lane(line)
        latency = self.latency
        oldest_ns = self._pending.oldest_ns
        return {
            "link": self.name,
            "state": self.state.name,
            "up": self.up,
            "in_flight": len(self._pending),
            "oldest_s": 0.0 if oldest_ns is None else round(now_s - oldest_ns / _NS, 3),
            "queue": len(self._queue),
            "match": list(self.settings.match),
            "latency_ms": {
                "count": latency.count,
                "p50": latency.percentile(50) / 1e6,
                "p99": latency.percentile(99) / 1e6,
                "max": latency.max / 1e6,
            },
            "certificate_expires_s": self.certificate_expires_s(),
            "addresses": [
                {
                    "address": site.address,
                    "priority": site.priority,
                    "weight": site.weight,
                    "connections": site.connections,
                    "dialling": site.dialling,
                    "signed_on": len(site.signed_on),
                }
                for site in self._sites
            ],
            "connections": [line.snapshot(now_s) for line in self._lines.values()],
            "counters": self.counters.as_dict(),
        }

    def explain(self) -> list[dict[str, Any]]:
        """Return the last answers that nobody waited for, the newest first.

        Each with what became of its request, or with the request in flight that is nearest to it
        and the elements in which they differ.
        """
        return list(reversed(self._flight.strays))


async def identified(
    stream: trio.abc.Stream, connection: Connection, *, within_s: float
) -> list[Event]:
    """Read until the first message has told whose connection it is (`connection.keys`).

    What it is answered is still in its output, and `Link.accept` goes on from here.

    Returns:
        What has come so far. `connection.proved` is False where nobody was recognised in time, or
        the first message was no good one; the caller closes the stream.
    """
    events: list[Event] = []
    with trio.move_on_after(within_s):
        while not (connection.proved or connection.closing or _failed(connection)):
            try:
                data = bytes(await stream.receive_some(65_536))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                break
            if not data:
                break
            events += connection.receive(data)
    return events


def _failed(connection: Connection) -> bool:
    return connection.mac_failures + connection.format_errors > 0


def _rekey(line: Line) -> None:
    keys = line.connection.keys
    if line.lane is not None and keys is not None:
        line.lane.rekey(keys.signing_key(), keys.data_keys[0])


async def _close(stream: trio.abc.Stream) -> None:
    with trio.move_on_after(_SIGN_OFF_S):
        try:
            await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def _now_ns() -> int:
    return int(trio.current_time() * _NS)


__all__ = ["COUNTERS", "Handler", "HostReply", "HostRequest", "Line", "Link", "identified"]
