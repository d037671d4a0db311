"""The node: state, flows and gate put together. Synchronous; everything is driven from outside.

A turn is: begin a step, give requests to the flows, end the step. Ending it writes what must be
kept and holds the answers in the gate; `settle` then hands the group to the flusher.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio

from core_ext import Batch, Counters, Histogram, Result, Wheel
from core_ext._journal import JournalFailed, JournalFull
from core_ext._lanes import Lanes
from core_ext._mac import SeedVault
from core_ext._relay import Relay
from protocols.messages import (
    Annul,
    CashOut,
    Delivered,
    Deposit,
    Hold,
    Holder,
    LastOperation,
    Message,
    NetworkAnswer,
    NetworkHolder,
    SignOff,
    Status,
)
from switch.calendar import Calendar
from switch.clock import Clock
from switch.config import Config
from switch.flows import operations as ops
from switch.flows import ticket
from switch.flows.answers import plain, refused
from switch.flows.ceibo import Ceibo
from switch.flows.conciliation import Conciliation
from switch.flows.fingerprint import Fingerprint
from switch.flows.issuers import MAINTENANCE, Issuers, Near
from switch.flows.limit_book import LimitBook
from switch.flows.operations import CeiboHold
from switch.flows.platform_port import Platforms
from switch.flows.product import BankWay, ProductFlow
from switch.flows.red import Red
from switch.flows.registry import Registry, Terminal
from switch.flows.remote import LINK
from switch.flows.resolutions import Resolutions
from switch.flows.settlement import Settlement
from switch.flows.shifts import Shifts
from switch.flows.sicoop import Sicoop
from switch.flows.step import (
    ALARM_RECORD,
    AUDIT_RECORD,
    NOTICE_RECORD,
    Alarm,
    AppNotice,
    Arm,
    Audit,
    Call,
    Disarm,
    Refusal,
    Reply,
    Send,
    Step,
)
from switch.flows.straight import StraightThrough
from switch.flows.tokens import TokenDesk
from switch.journal.gate import Destination, ReplyGate
from switch.journal.records import AlarmRecord, NoticeRecord
from switch.journal.store import REQUEST_BYTES_MAX, StateError, Store
from switch.ops.audit import encode, from_effect
from switch.ops.keys import RETAINED, MasterKey
from switch.ops.logs import logger
from switch.ops.rotation import CHECK, UNDER_WAY, retained
from switch.simulators.issuer import ROLE as SIMULATOR
from switch.simulators.issuer import Later, MagicCeibo, MagicWay

COUNTERS = (
    "requests",
    "answers",
    "turns",
    "groups",
    "late_answers",
    "alarms",
    "audit_events",
    "refused_full",
)
REQUESTS, ANSWERS, TURNS, GROUPS, LATE, ALARMS, AUDITS, FULL = range(8)
ALARM_NAMES_MAX = 200
TICK_NS = 1_000_000_000
CLOCK_JUMP_NS = 2 * TICK_NS  # a wall clock that jumps by more was off by more, or is now
FORGET_EVERY_NS = 60 * 1_000_000_000
FORGET_COUNT = 20_000
# Requests that write nothing while no new work is admitted: holds are refused, repeats are told.
QUESTIONS = frozenset(
    (CashOut, Deposit, LastOperation, Holder, SignOff, Hold, Status, NetworkHolder)
)

log = logger("node")
T = TypeVar("T")


class Desk(Protocol):
    """What ceibo is to one host in another process."""

    def watches(self, hold: CeiboHold) -> bool: ...

    def watch(self, step: Step, hold: CeiboHold) -> None: ...

    def on_deadline(self, step: Step, network: str, operation: str) -> None: ...

    def adopt(
        self,
        step: Step,
        undecided: Callable[[int, int, int], list[tuple[bytes, int]]],
        is_armed: Callable[[str, str, str], bool],
    ) -> None: ...


class Node:
    """One process's roles on one durable state. `open` before use; single-threaded."""

    def __init__(self, config: Config, master: MasterKey, clock: Clock, directory: Path) -> None:
        self.config = config
        self.clock = clock
        self.master = master
        self.store = Store(config, directory)
        self.gate = ReplyGate()
        self.counters = Counters(COUNTERS)
        self.latency = Histogram()
        self.codes: dict[str, int] = {}
        self.alarms: dict[str, int] = {}
        self.calendar = Calendar(
            config.node.zone,
            config.business.cut_off,
            (config.business.night_from, config.business.night_until),
        )
        self._wheel = Wheel()
        self._timers: dict[tuple[str, str, str], int] = {}
        self._timer_keys: dict[int, tuple[str, str, str]] = {}
        self._next_timer = 1
        self._day_end_ns = 0
        self._forgotten_ns = 0
        self._ahead_ns: int | None = None  # of the monotonic clock, when timers last ran
        self._due: deque[tuple[str, str, str]] = deque()
        self._progress = trio.Event()
        # Of one read. A step that is nearly full takes in one more read, so twice that many.
        self.requests_max = self.store.step_bytes_max // REQUEST_BYTES_MAX
        self._asked = 0
        self._admitting = self._concluding = True
        self.turned = trio.Event()
        self.products: list[ProductFlow] = []
        self.banks: dict[str, BankWay] = {}  # by link
        self._services: dict[str, Destination] = {}
        self._failed: BaseException | None = None
        self._build()

    def _build(self) -> None:
        store, master, config = self.store, self.master, self.config
        self.registry = Registry(store.records)
        self.vault = SeedVault(master.subkey("card-seeds"))
        fingerprint_key = master.subkey("fingerprint")
        fingerprint = self.fingerprint = Fingerprint(fingerprint_key)
        self.limits = LimitBook(
            config=config, calendar=self.calendar, ledger=store.ledger, records=store.records
        )
        self.desk = TokenDesk(
            config=config.tokens,
            ledger=store.ledger,
            records=store.records,
            vault=self.vault,
            vale_key=master.subkey("vale"),
            fingerprint_key=fingerprint_key,
        )
        simulator = config.node.simulator
        self.ceibo = (MagicCeibo if simulator else Ceibo)(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            desk=self.desk,
            limits=self.limits,
            fingerprint=fingerprint,
            authorization_key=fingerprint_key,
        )
        self.later = Later()  # of the simulator profile only
        near: Near | None = self.ceibo if "ceibo" in config.node.roles else None
        if near is not None and isinstance(self.ceibo, MagicCeibo):
            near = MagicWay(self.ceibo, self.later)
        self.issuers = Issuers(near, self.calendar, config.issuer.link)
        self.platforms = Platforms()
        self.desks: dict[str, Desk] = {}  # by host
        self.sicoop = Sicoop(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            calendar=self.calendar,
            limits=self.limits,
            fingerprint=fingerprint,
            issuer=self.issuers,
        )
        if isinstance(near, MagicWay):
            near.attach(self.sicoop)
        self._build_red(config, fingerprint_key)
        self._deadlines = {
            "red": self.red.on_deadline,
            "sicoop": self.sicoop.on_deadline,
            "ceibo": self._ask_about_hold,
            SIMULATOR: self.later.on_deadline,
            LINK: _nothing,  # the step that it begins sends what is due
        }

    def _build_red(self, config: Config, fingerprint_key: bytes) -> None:
        """Make red with its platform, and the straight way through all three."""
        store, master, roles = self.store, self.master, config.node.roles
        self.shifts = Shifts(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            vault=self.vault,
        )
        ticket_key = ticket.control_key(master.subkey("ticket"))
        self.red = Red(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            calendar=self.calendar,
            fingerprint=self.fingerprint,
            shifts=self.shifts,
            platform=self.sicoop if "sicoop" in roles else self.platforms,
            ticket_key=ticket_key,
        )
        if "red" in roles:
            self.sicoop.attach(self.red.on_platform_answer)
        self.conciliation = Conciliation(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            calendar=self.calendar,
            sicoop=self.sicoop,
        )
        self.settlement = Settlement(
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            limits=self.limits,
            sicoop=self.sicoop,
        )
        self.resolutions = Resolutions(
            records=store.records,
            sicoop=self.sicoop,
            ceibo=self.ceibo,
            conciliation=self.conciliation,
            roles=roles,
        )
        self.straight = StraightThrough(
            config=config,
            records=store.records,
            ledger=store.ledger,
            calendar=self.calendar,
            limits=self.limits,
            vault=self.vault,
            fingerprint_key=fingerprint_key,
            ticket_key=ticket_key,
            red=self.red,
            sicoop=self.sicoop,
            ceibo=self.ceibo,
        )
        self.lanes = Lanes(self.straight.core, store.journal, self.latency)
        self.relay = Relay(self.lanes, store.records, config.tokens.digits)
        self.lanes.set_forwarder(self.relay)
        self.straight.attach(self.relay)

    def attach(self, flow: ProductFlow, service: Destination) -> None:
        """Play a product: called by what `open` is given to prepare, with the state recovered.

        Args:
            service: takes the product's calls (`Call`), each once its step is durable.
        """
        assert flow.role not in self._services, f"{flow.role} is attached already"
        self.products.append(flow)
        self._services[flow.role] = service
        self._deadlines[flow.role] = flow.on_deadline

    def reconfigure(self, config: Config) -> None:
        """Judge by another configuration from the next step on: the one place where it changes.

        Nothing under way is judged anew. What is built from keys that need a restart stays as it
        is; `switch.reload` lets none of them through.
        """
        self.config = config
        for part in (
            self.limits, self.ceibo, self.sicoop, self.red, self.shifts, self.straight,
            self.conciliation,
        ):  # fmt: skip
            part.reconfigure(config)
        for product in self.products:
            product.reconfigure(config)
        self.issuers.reconfigure(config.issuer.link)
        self._day_end_ns = 0  # the next step brings limits and the ledger's profiles with it

    def open(self, prepare: Callable[[], None] | None = None, *, conclude: bool = True) -> None:
        """Recover the state and finish what a stop left open.

        Args:
            prepare: called before that, with the registry as it is: attaches the ports to roles in
                other processes, so that what is owed to them is found again.
            conclude: False leaves open work as it is, for tools that only change the registry.

        Raises:
            Corruption, SnapshotError, StateError: damage; nothing was changed.
            JournalFull: no room for what has to be finished.
        """
        self.store.open()
        if not self.store.concluding:
            self.store.close()
            raise JournalFull("no room for the conclusion of open work")
        try:
            self._check_master_key()
            rebuild = self._take_retained_keys()
        except BaseException:
            self.store.close()
            raise
        if rebuild:
            self._build()
        self.issuers.closed = self.registry.flag(MAINTENANCE)
        if prepare is not None:
            prepare()
        if conclude:
            self._finish_open_work()

    def _finish_open_work(self) -> None:
        """Conclude what a stop left open, in as many steps as groups have room for."""
        roles = self.config.node.roles
        self._recovering(True)
        step = self.begin()
        for number, started in enumerate(self.red.unfinished() if "red" in roles else (), 1):
            self.red.recover(step, started)
            step = self._next_step(step, number)
        for number, held in enumerate(self.sicoop.unfinished() if "sicoop" in roles else (), 1):
            at_red = self.red.state(held.reference) if "red" in roles else ""
            self.sicoop.recover(step, held, at_red)
            step = self._next_step(step, number)
        for number, hold in enumerate(self.ceibo.undecided() if self.desks else (), 1):
            for desk in self.desks.values():
                if desk.watches(hold):
                    desk.watch(step, hold)
            step = self._next_step(step, number)
        for product in self.products:
            for number, work in enumerate(product.unfinished(), 1):
                product.adopt(step, work)
                step = self._next_step(step, number)
        self.end(step)
        self._recovering(False)

    def _recovering(self, now: bool) -> None:
        """What is owed from before may have been sent already: it goes out as a repeat."""
        for issuer in self.issuers.ports.values():
            issuer.recovering = now
        for platform in self.platforms.ports.values():
            platform.recovering = now

    def _next_step(self, step: Step, number: int) -> Step:
        if number % self.requests_max:
            return step
        self.end(step)
        self.store.commit()
        return self.begin()

    def close(self) -> None:
        self.store.close()

    def _take_retained_keys(self) -> bool:
        """Take the keys that outlived a rotation of the master key; True where there are some."""
        found = False
        for purpose in RETAINED:
            sealed = self.store.records.get(ops.META, retained(purpose))
            if sealed is not None:
                self.master.retain(purpose, sealed)
                found = True
        return found

    def _check_master_key(self) -> None:
        """Refuse another master key than the one this state was sealed under."""
        records, own = self.store.records, self.master.check_value.encode()
        if records.get(ops.META, UNDER_WAY) is not None:
            raise StateError(
                f"a rotation of the master key of {self.store.directory} was cut short: "
                "`troncal key rotate-master` goes on with it",
                "give that command again, with the node stopped",
            )
        known = records.get(ops.META, CHECK)
        if known is None:
            records.put(ops.META, CHECK, own)
        elif known != own:
            raise StateError(
                f"the master key is not the one of {self.store.directory}: "
                f"its check value is {own.decode()}, the data's {known.decode()}",
                "put the right key there: `troncal key check` tells a key's check value",
            )

    # ---- turns

    def begin(self) -> Step:
        """Start a step: its time, and whether new work may be taken."""
        now_ns = self.clock.wall_ns()
        self._asked = 0
        admitting = self.store.admitting
        if admitting is not self._admitting:
            self._admitting = admitting
            room_bytes = self.store.journal.room_bytes
            log.warning("disk_has_room" if admitting else "disk_full", room_bytes=room_bytes)
        self._concluding = admitting or self.store.concluding
        if not self._concluding:
            return Step(now_ns, self.clock.mono_ns(), False, False)
        if now_ns >= self._day_end_ns or now_ns < self._day_end_ns - 3 * 86_400 * TICK_NS:
            self.limits.refresh(now_ns)
            self._day_end_ns = self.calendar.business(now_ns).end_ns
        return Step(now_ns, self.clock.mono_ns(), admitting)

    @property
    def full(self) -> bool:
        """True when the step has as many requests as its group surely holds."""
        return self._asked >= self.requests_max

    @property
    def requests_left(self) -> int:
        """How many more requests this step surely holds."""
        return self.requests_max - self._asked

    def straight_ready(self, step: Step) -> bool:
        """True where the common request may be decided natively in this step."""
        return self.config.node.straight_through and self.straight.ready(step)

    def took(self, count: int, heard: int = 0) -> None:
        """So many requests were decided or passed on natively, and so many answers of platforms
        taken; what they are told waits in the lanes."""
        if count:
            self.counters.add(REQUESTS, count)
        self._asked += count + heard

    def terminal_request(
        self, step: Step, terminal: Terminal, message: Any, origin: Destination
    ) -> None:
        """One request of a signed-on terminal; its answer goes into the gate at the step's end."""
        self.counters.add(REQUESTS)
        self._asked += 1
        for passing in self.relay.of_terminal(terminal.number):
            self.platforms.adopt(step, passing)
        if not self._concluding and type(message) not in QUESTIONS:
            self.counters.add(FULL)
            step.reply(origin, _no_room(message))
            return
        answer: Message | None = None
        kind = type(message)
        if (kind is CashOut or kind is Deposit) and self.config.node.straight_through:
            answer = self.straight.ask(step, terminal, message)
        if answer is None:
            answer = self.red.ask(step, terminal, message, origin)
        if answer is not None:
            step.reply(origin, answer)

    def network_request(self, step: Step, network: str, message: Any, origin: Destination) -> None:
        """One request of a network's session."""
        self.counters.add(REQUESTS)
        self._asked += 1
        if not self._concluding and type(message) not in QUESTIONS:
            self.counters.add(FULL)
            step.reply(origin, NetworkAnswer(message.id, "96", message.reference, "ERROR"))
            return
        answer = self.sicoop.ask(step, network, message, origin)
        if answer is not None:
            step.reply(origin, answer)

    def taken(self, *, request: bool) -> None:
        """Count one message of a link against what the step's group has room for."""
        self._asked += 1
        if request:
            self.counters.add(REQUESTS)

    def end(self, step: Step) -> None:
        """Carry out the effects of a step and let the journal have its group."""
        self.issuers.forward(step)
        self.platforms.forward(step)
        for bank in self.banks.values():
            bank.forward(step)
        for product in self.products:
            product.flush()
        self.red.flush()
        self.sicoop.flush()
        self.ceibo.flush()
        leaving: list[Reply | Send | Call] = []
        for effect in step.effects:
            if type(effect) is Reply or type(effect) is Send or type(effect) is Call:
                leaving.append(effect)
            else:
                self._carry_out(effect, step)
        journal, hold = self.store.journal, self.gate.hold
        seq = journal.next_seq - 1
        for effect in leaving:
            if isinstance(effect, Reply):
                self._count_answer(effect.message)
                hold(seq, effect.origin, effect.message, step.mono_ns)  # type: ignore[arg-type]
            elif isinstance(effect, Call):
                hold(seq, self._services[effect.product], effect, -1)
            else:
                hold(seq, effect.to, effect.message, -1)  # type: ignore[arg-type]
        self.counters.add(TURNS)
        self.turned.set()

    async def perform(self, do: Callable[[Step], T]) -> T:
        """Run `do` in a step of its own; return its value once that is durable.

        For whoever may wait, such as an HTTP handler: what it then tells is never taken back.

        Raises:
            Refusal: by `do`, which has changed nothing; also told only once all is durable that
                it may have been decided by.
            JournalFull: there is no room for anything; `do` was not called.
            Cancelled: the journal failed, and with it the node. Any other exception of `do` is a
                mistake of ours, and stops the node before the step is written.
        """
        await self.room()
        step = self.begin()
        self.taken(request=True)
        if not self._concluding:
            self.end(step)
            raise JournalFull("no room for another step")
        refusal: Refusal | None = None
        try:
            value = do(step)
        except Refusal as error:
            refusal = error
        except JournalFailed:  # the node ends with its journal, and whoever waits with the node
            await trio.sleep_forever()
        except BaseException as error:
            self._failed = error
            self.turned.set()
            raise
        waiter = _Waiter()
        step.send(waiter, None)
        self.end(step)
        await waiter.durable.wait()
        if refusal is not None:
            raise refusal
        return value

    def settle(self) -> None:
        """Hand over what is open if the flusher is free, and let out what is durable.

        Called once after all turns of one pass of the scheduler, so that requests which came
        together share a group and each connection gets one write.
        """
        if self._failed is not None:
            raise RuntimeError("a step failed halfway, nothing of it is written") from self._failed
        journal = self.store.journal
        if journal.open_count and self.store.flushed:
            self.store.seal()
            self.counters.add(GROUPS)
        if self.gate:
            self.gate.release(journal.durable_seq, self.clock.mono_ns(), self.latency)
        if self.lanes.held:
            self._release_lanes(journal.durable_seq)

    def _release_lanes(self, durable_seq: int) -> None:
        """Let out what was decided natively and is durable: approvals all."""
        clock = self.clock
        count, left = self.lanes.release(durable_seq, clock.mono_ns(), clock.wall_ns())
        if count:
            self.counters.add(ANSWERS, count)
            self.codes["00"] = self.codes.get("00", 0) + count
        for owner, data in left:
            owner.released(data)

    def on_durable(self) -> None:
        """The flusher has made progress: let answers out, hand over what has gathered since."""
        journal = self.store.journal
        journal.clear_event()
        if journal.failure:
            raise OSError(f"journal failed, nothing more is acknowledged: {journal.failure}")
        self.settle()
        self._progress.set()

    @property
    def crowded(self) -> bool:
        """True while the open group should be let go before more requests are taken."""
        return self.store.journal.open_bytes > self.store.open_bytes_max

    async def room(self) -> None:
        """Wait while the open group is so large that no more requests should be read."""
        while self.crowded:
            if self._progress.is_set():  # else others wait for it already
                self._progress = trio.Event()
            await self._progress.wait()

    # ---- time

    def next_deadline_ns(self) -> int | None:
        wheel_ns, relay_ns = self._wheel.next_ns, self.relay.next_ns
        if wheel_ns is None or relay_ns is None:
            return relay_ns if wheel_ns is None else wheel_ns
        return min(wheel_ns, relay_ns)

    def run_timers(self) -> None:
        """Call all that is due."""
        while self.run_due():
            pass

    def run_due(self) -> bool:
        """Call what is due, as much as one step holds; True: there is more.

        Then the journaled tick of the ledger and bounded forgetting.
        """
        self._watch_passing()
        step = self.begin()
        if self._concluding:
            self._watch_clock(step)
            for desk in self.desks.values():
                desk.adopt(step, self.straight.core.issuer.undecided, self._is_armed)
        for timer in self._wheel.advance(step.mono_ns):
            key = self._timer_keys.pop(timer)
            del self._timers[key]
            self._due.append(key)
        if self._concluding:
            for _ in range(min(len(self._due), self.requests_max)):
                role, kind, name = self._due.popleft()
                self._deadlines[role](step, kind, name)
            self._forget(step)
        self.end(step)
        return self._concluding and bool(self._due)

    def _watch_passing(self) -> None:
        """Take over what has been on its way natively for long: its times are ours from now on."""
        aged = self.relay.aged(self.clock.mono_ns())
        if aged:
            step = self.begin()
            for passing in aged:
                self.platforms.adopt(step, passing)
            self.end(step)

    def _watch_clock(self, step: Step) -> None:
        """Alarm where the wall clock has jumped: it was off before, or is now, and with it the
        windows of codes (K07). A clock that is slewed is being put right, and not told of."""
        ahead_ns = step.now_ns - step.mono_ns
        jumped_ns = ahead_ns - (ahead_ns if self._ahead_ns is None else self._ahead_ns)
        self._ahead_ns = ahead_ns
        if abs(jumped_ns) > CLOCK_JUMP_NS:
            step.alarm("clock_stepped", "node", f"{jumped_ns / TICK_NS:+.1f} s")

    def _forget(self, step: Step) -> None:
        """Drop what is older than the retention, a bounded piece at a time."""
        if step.mono_ns - self._forgotten_ns < FORGET_EVERY_NS:
            return
        self._forgotten_ns = step.mono_ns
        before_ns = step.now_ns - self.config.journal.retention_h * 3_600_000_000_000
        batch = Batch()
        batch.tick()
        batch.forget(before_ns)
        self.store.ledger.apply(batch, step.now_ns)
        products = [space for product in self.products for space in product.spaces]
        for space in (*self.red.spaces, *self.sicoop.spaces, *self.ceibo.spaces, *products):
            self.store.records.forget(space, before_ns, max_count=FORGET_COUNT)
        if "sicoop" in self.config.node.roles:
            self.conciliation.watch(step)

    def _carry_out(self, effect: Any, step: Step) -> None:
        match effect:
            case Arm():
                self._arm((effect.role, effect.kind, effect.key), effect.at_ns)
            case Disarm():
                timer = self._timers.pop((effect.role, effect.kind, effect.key), None)
                if timer is not None:
                    del self._timer_keys[timer]
                    self._wheel.cancel(timer)
            case Audit():
                self._audit(effect, step)
            case Alarm():
                self._alarm(effect, step)
            case AppNotice():
                self.store.append(
                    NOTICE_RECORD,
                    NoticeRecord(step.now_ns, effect.card, effect.what, effect.branch),
                )

    def _is_armed(self, role: str, kind: str, name: str) -> bool:
        return (role, kind, name) in self._timers

    def _arm(self, key: tuple[str, str, str], at_ns: int) -> None:
        timer = self._timers.get(key)
        if timer is None:
            timer = self._timers[key] = self._next_timer
            self._timer_keys[timer] = key
            self._next_timer += 1
        self._wheel.arm(timer, at_ns)

    def _audit(self, effect: Audit, step: Step) -> None:
        self.counters.add(AUDITS)
        if self._concluding:
            self.store.journal.append(AUDIT_RECORD, encode(from_effect(effect, step.now_ns)))
        if effect.security:
            log.warning("security", what=effect.what, who=effect.who, outcome=effect.outcome)

    def _alarm(self, effect: Alarm, step: Step) -> None:
        self.counters.add(ALARMS)
        if effect.name == "late_answer":
            self.counters.add(LATE)
        if effect.name in self.alarms or len(self.alarms) < ALARM_NAMES_MAX:
            self.alarms[effect.name] = self.alarms.get(effect.name, 0) + 1
        if self._concluding:
            self.store.append(
                ALARM_RECORD, AlarmRecord(step.now_ns, effect.name, effect.subject, effect.detail)
            )
        log.warning("alarm", alarm=effect.name, subject=effect.subject, detail=effect.detail)

    def _ask_about_hold(self, step: Step, kind: str, name: str) -> None:
        """The time of a hold that a host has not decided: its desk asks about it."""
        link, network, operation = name.split("|")
        desk = self.desks.get(link)
        if desk is not None:
            desk.on_deadline(step, network, operation)

    def _count_answer(self, message: object) -> None:
        self.counters.add(ANSWERS)
        code = getattr(message, "code", None)
        if isinstance(code, str):
            self.codes[code] = self.codes.get(code, 0) + 1

    # ---- for operators

    def money_check(self) -> dict[str, int]:
        """Σ debits − Σ credits over all ledgers, posted and pending: both are 0 at all times."""
        posted = pending = 0
        for (
            debits_pending,
            debits_posted,
            credits_pending,
            credits_posted,
        ) in self.store.ledger.totals().values():
            posted += debits_posted - credits_posted
            pending += debits_pending - credits_pending
        return {"posted": posted, "pending": pending}


class _Waiter:
    """Who waits for a step to be durable: a destination of the reply gate."""

    __slots__ = ("durable",)

    def __init__(self) -> None:
        self.durable = trio.Event()

    def ready(self, message: object) -> None:
        self.durable.set()

    def flush(self) -> None:
        """The event is all there is."""


def _nothing(step: Step, kind: str, key: str) -> None:
    """A timer whose step is all that is wanted."""


def _no_room(message: Any) -> Message:
    """For acts of a terminal when the disk is full, the reserve included."""
    if isinstance(message, Delivered | Annul):
        return refused("ERROR", "cash_out", trace=message.trace, original=message.original)
    return plain("ERROR", trace=message.trace)


def expect_done(results: list[int], what: str) -> None:
    """For commands of our own making: anything but done is our mistake."""
    bad = [Result(r).name for r in results if r != Result.DONE]
    assert not bad, f"{what}: {bad}"


__all__ = ["Node", "Step", "expect_done"]
