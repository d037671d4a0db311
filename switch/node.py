"""The node: state, flows and gate put together. Synchronous; everything is driven from outside.

A turn is: begin a step, give requests to the flows, end the step. Ending it writes what must be
kept and holds the answers in the gate; `settle` then hands the group to the flusher.
"""

from collections import deque
from pathlib import Path
from typing import Any

import trio

from core_ext import Batch, Counters, Histogram, Result, Wheel
from core_ext._journal import JournalFull
from core_ext._mac import MacKey, SeedVault
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
from switch.flows.answers import plain, refused
from switch.flows.ceibo import Ceibo
from switch.flows.fingerprint import Fingerprint
from switch.flows.limit_book import LimitBook
from switch.flows.red import Red
from switch.flows.registry import Registry, Terminal
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
    Disarm,
    Reply,
    Step,
)
from switch.flows.tokens import TokenDesk
from switch.journal.gate import Destination, ReplyGate
from switch.journal.records import AlarmRecord, NoticeRecord
from switch.journal.store import REQUEST_BYTES_MAX, StateError, Store
from switch.ops.audit import encode, from_effect
from switch.ops.keys import MasterKey
from switch.ops.logs import logger

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
FORGET_EVERY_NS = 60 * 1_000_000_000
FORGET_COUNT = 20_000
MASTER_KEY_CHECK = b"master_key"
# Requests that write nothing while no new work is admitted: holds are refused, repeats are told.
QUESTIONS = frozenset(
    (CashOut, Deposit, LastOperation, Holder, SignOff, Hold, Status, NetworkHolder)
)

log = logger("node")


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
        self._due: deque[tuple[str, str, str]] = deque()
        self._progress = trio.Event()
        # Of one read. A step that is nearly full takes in one more read, so twice that many.
        self.requests_max = self.store.step_bytes_max // REQUEST_BYTES_MAX
        self._asked = 0
        self._admitting = self._concluding = True
        self.turned = trio.Event()
        self._build()

    def _build(self) -> None:
        store, master, config = self.store, self.master, self.config
        self.registry = Registry(store.records)
        self.vault = SeedVault(master.subkey("card-seeds"))
        fingerprint_key = master.subkey("fingerprint")
        fingerprint = Fingerprint(fingerprint_key)
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
        self.ceibo = Ceibo(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            desk=self.desk,
            limits=self.limits,
            fingerprint=fingerprint,
            authorization_key=fingerprint_key,
        )
        self.sicoop = Sicoop(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            calendar=self.calendar,
            limits=self.limits,
            fingerprint=fingerprint,
            issuer=self.ceibo,
        )
        self.shifts = Shifts(
            config=config,
            registry=self.registry,
            records=store.records,
            ledger=store.ledger,
            vault=self.vault,
        )
        self.red = Red(
            config=config,
            registry=self.registry,
            records=store.records,
            calendar=self.calendar,
            fingerprint=fingerprint,
            shifts=self.shifts,
            platform=self.sicoop,
            ticket_key=MacKey("hmac-sha256", master.subkey("ticket")),
        )
        self._deadlines = {"red": self.red.on_deadline, "sicoop": self.sicoop.on_deadline}

    def open(self) -> None:
        """Recover the state and finish what a stop left open.

        Raises:
            Corruption, SnapshotError, StateError: damage; nothing was changed.
            JournalFull: no room for what has to be finished.
        """
        self.store.open()
        if not self.store.concluding:
            self.store.close()
            raise JournalFull("no room for the conclusion of open work")
        self._check_master_key()
        self._finish_open_work()

    def _finish_open_work(self) -> None:
        """Conclude what a stop left open, in as many steps as groups have room for."""
        step = self.begin()
        for number, started in enumerate(self.red.unfinished(), 1):
            self.red.recover(step, started)
            step = self._next_step(step, number)
        for number, held in enumerate(self.sicoop.unfinished(), 1):
            self.sicoop.recover(step, held, self.red.state(held.reference))
            step = self._next_step(step, number)
        self.end(step)

    def _next_step(self, step: Step, number: int) -> Step:
        if number % self.requests_max:
            return step
        self.end(step)
        self.store.commit()
        return self.begin()

    def close(self) -> None:
        self.store.close()

    def _check_master_key(self) -> None:
        """Refuse another master key than the one this state was sealed under."""
        records, own = self.store.records, self.master.check_value.encode()
        known = records.get(ops.META, MASTER_KEY_CHECK)
        if known is None:
            records.put(ops.META, MASTER_KEY_CHECK, own)
        elif known != own:
            raise StateError(
                f"the master key is not the one of {self.store.directory}: "
                f"its check value is {own.decode()}, the data's {known.decode()}"
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
            return Step(now_ns, self.clock.mono_ns(), False)
        if now_ns >= self._day_end_ns or now_ns < self._day_end_ns - 3 * 86_400 * TICK_NS:
            self.limits.refresh(now_ns)
            self._day_end_ns = self.calendar.business(now_ns).end_ns
        return Step(now_ns, self.clock.mono_ns(), admitting)

    @property
    def full(self) -> bool:
        """True when the step has as many requests as its group surely holds."""
        return self._asked >= self.requests_max

    def terminal_request(
        self, step: Step, terminal: Terminal, message: Any, origin: Destination
    ) -> None:
        """One request of a signed-on terminal; its answer goes into the gate at the step's end."""
        self.counters.add(REQUESTS)
        self._asked += 1
        if not self._concluding and type(message) not in QUESTIONS:
            self.counters.add(FULL)
            step.reply(origin, _no_room(message))
            return
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

    def end(self, step: Step) -> None:
        """Carry out the effects of a step and let the journal have its group."""
        self.red.flush()
        self.sicoop.flush()
        self.ceibo.flush()
        replies = []
        for effect in step.effects:
            if type(effect) is Reply:
                replies.append(effect)
            else:
                self._carry_out(effect, step)
        journal = self.store.journal
        seq = journal.next_seq - 1
        for reply in replies:
            self._count_answer(reply.message)
            self.gate.hold(seq, reply.origin, reply.message, step.mono_ns)  # type: ignore[arg-type]
        self.counters.add(TURNS)
        self.turned.set()

    def settle(self) -> None:
        """Hand over what is open if the flusher is free, and let out what is durable.

        Called once after all turns of one pass of the scheduler, so that requests which came
        together share a group and each connection gets one write.
        """
        journal = self.store.journal
        if journal.open_count and self.store.flushed:
            self.store.seal()
            self.counters.add(GROUPS)
        if self.gate:
            self.gate.release(journal.durable_seq, self.clock.mono_ns(), self.latency)

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
        return self._wheel.next_ns

    def run_timers(self) -> None:
        """Call all that is due."""
        while self.run_due():
            pass

    def run_due(self) -> bool:
        """Call what is due, as much as one step holds; True: there is more.

        Then the journaled tick of the ledger and bounded forgetting.
        """
        step = self.begin()
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
        for space in self.red.spaces + self.sicoop.spaces + self.ceibo.spaces:
            self.store.records.forget(space, before_ns, max_count=FORGET_COUNT)

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

    def _count_answer(self, message: Message) -> None:
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
