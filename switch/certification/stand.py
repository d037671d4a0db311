"""What cases work with: expectations that are recorded, budgets for every wait, tills, lanes.

A lane has two tills of its own, so that several cases run at once and none sees the terminals of
another. A case that fails ends with its first failed check; all others go on.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import trio
from msgspec import UNSET, Struct

from protocols.codes import CODES, answer_text
from protocols.messages import Annul, Answer, CashOut, Deposit, LastOperation
from protocols.session import TERMINAL, PeerKey
from switch.certification.line import Connect, Line, NoAnswer, NoSession
from switch.certification.platform import Entry, Platform, Script
from switch.certification.report import CaseReport, Check, Exchange
from switch.ops.masking import masked_text

EXCHANGES_MAX: Final = 200
CHARS_MAX: Final = 300
QUESTIONS_FROM: Final = 900_001
"""Numbers of questions, which use up no trace, from here on."""

TRACE_LAST: Final = 899_999
QUIET_S: Final = 1.5
"""How long nothing must come where nothing may come any more."""


class Times(Struct, frozen=True):
    """Budgets of the candidate, seconds.

    Fields:
        terminal: it answers a terminal within this. platform: it waits so long for its platform.
        issuer: a platform waits so long for its issuer. confirm: it asks after this for the state
            of what was not confirmed.
        slack: for the way, the disk, and a machine that is busy.
    """

    terminal: float = 30.0
    platform: float = 25.0
    issuer: float = 15.0
    confirm: float = 60.0
    slack: float = 5.0

    @property
    def answer(self) -> float:
        """Longest wait for an answer to a terminal."""
        return self.terminal + self.slack

    @property
    def undone(self) -> float:
        """Longest wait for a reversal or a confirmation to come again after one that was lost."""
        return self.platform + 4 + self.slack

    @property
    def case(self) -> float:
        """Longest that a case takes."""
        return 3 * (self.terminal + self.slack) + self.confirm + 60


class Failed(Exception):
    """A check that did not hold; it is recorded already."""


class NotPlayed(Exception):
    """A case that could not be played, and why."""


class Terminal(Struct):
    """A terminal of the candidate that we may be."""

    number: str
    key: PeerKey
    version: int = 1

    def __repr__(self) -> str:
        return f"Terminal({self.number})"


class Till(Line):
    """A terminal with a cashier, who counts his traces."""

    def __init__(self, terminal: Terminal, connect: Connect) -> None:
        super().__init__(
            f"till {terminal.number}", TERMINAL, terminal.number, terminal.key, connect,
            key_version=terminal.version,
        )  # fmt: skip
        self._trace = 0
        self._question = QUESTIONS_FROM

    def next_trace(self) -> int:
        self._trace = self._trace % TRACE_LAST + 1
        return self._trace

    def next_question(self) -> int:
        self._question += 1
        return self._question

    async def begin(self, nursery: trio.Nursery, wait_s: float) -> None:
        """Sign on, and go on behind the newest trace of this terminal.

        Raises: NoSession, NoAnswer.
        """
        await self.open(nursery)
        if not self._trace:
            answer = await self.ask(LastOperation(trace=self.next_question()), wait_s)
            if isinstance(answer, Answer) and isinstance(answer.original, int):
                self._trace = answer.original


class Operation:
    """A cash_out or a deposit of a case, and what the till was told."""

    def __init__(self, till: Till, request: CashOut | Deposit) -> None:
        self.till = till
        self.request = request

    @property
    def kind(self) -> str:
        return "cash_out" if isinstance(self.request, CashOut) else "deposit"

    @property
    def refused(self) -> str:
        """The instruction with which no cash moves."""
        return "NO_ENTREGUE" if self.kind == "cash_out" else "NO_RECIBA"

    @property
    def refused_later(self) -> str:
        return "NO_ENTREGUE" if self.kind == "cash_out" else "DEVUELVA"

    @property
    def moved(self) -> str:
        """The instruction to move the cash."""
        return "ENTREGUE" if self.kind == "cash_out" else "RECIBA"


class Case:
    """One case while it is played.

    Attributes:
        till, other: terminals of this lane alone.
        platform: ours, where a network is the candidate.
        network: our session, where a platform is.
    """

    def __init__(self, report: CaseReport, lane: "Lane") -> None:
        self.report = report
        self.times = lane.stand.times
        self.stand = lane.stand
        self._lane = lane
        self._began_s = trio.current_time()
        for line in lane.lines:
            line.record = self.record

    @property
    def platform(self) -> Platform:
        return self.stand.platform

    @property
    def till(self) -> Till:
        return self._till(0)

    @property
    def other(self) -> Till:
        return self._till(1)

    def _till(self, number: int) -> Till:
        found = self._lane.lines[number]
        assert isinstance(found, Till), "the lane of a network has tills"
        return found

    async def open(self) -> None:
        """Both tills have a session. Raises: NoSession, NoAnswer."""
        for till in (self.till, self.other):
            await till.begin(self.stand.nursery, self.times.answer)

    def record(self, way: str, message: dict[str, Any]) -> None:
        if len(self.report.exchanges) < EXCHANGES_MAX:
            at_ms = int((trio.current_time() - self._began_s) * 1000)
            self.report.exchanges.append(Exchange(at_ms, way, message))

    async def beside(self, *parts: Callable[[], Awaitable[None]]) -> None:
        """Play parts of the case at once; the first that fails ends it. Raises as they do."""
        try:
            async with trio.open_nursery() as nursery:
                for part in parts:
                    nursery.start_soon(part)
        except BaseExceptionGroup as group:
            known, others = group.split((Failed, NotPlayed, NoAnswer, NoSession))
            if others is not None or known is None:
                raise
            raise _first(known) from None

    # ---- expectations

    def expect(self, what: str, expected: Any, came: Any) -> None:
        """Raises: Failed: they are not equal."""
        self._check(what, _text(expected), _text(came), expected == came)

    def holds(self, what: str, true: bool, came: Any = None) -> None:
        """Raises: Failed: it is not so."""
        self._check(what, "yes", _text(came) if came is not None else _text(true), true)

    def form(self, what: str, true: bool) -> None:
        """What goes without saying, and is recorded only where it is not so. Raises: Failed."""
        if not true:
            self._check(what, "yes", "no", False)

    def _check(self, what: str, expected: str, came: str, ok: bool) -> None:
        self.report.checks.append(Check(what, expected, came, ok))
        if not ok:
            raise Failed(f"{what}: expected {expected}, came {came}")

    # ---- at the till

    def cash_out(
        self, till: Till | None = None, *, amount: int = 50_000, token: str = "004512",
        document: str = "4567890", trace: int = 0,
    ) -> Operation:  # fmt: skip
        till = till or self.till
        return Operation(
            till,
            CashOut(
                trace=trace or till.next_trace(), cashier=self.stand.cashier, document=document,
                token=token, amount=amount, currency="PYG",
            ),
        )  # fmt: skip

    def deposit(
        self, till: Till | None = None, *, amount: int = 50_000, document: str = "4567890",
        card: str = "",
    ) -> Operation:  # fmt: skip
        till = till or self.till
        return Operation(
            till,
            Deposit(
                trace=till.next_trace(), cashier=self.stand.cashier, document=document,
                card=card or UNSET, amount=amount, currency="PYG",
            ),
        )  # fmt: skip

    def script(self, operation: Operation, **values: Any) -> None:
        """What our platform does to it."""
        script = Script(**values)
        self.platform.write(operation.till.peer, operation.request.trace, script, self.record)

    async def send(self, operation: Operation, **script: Any) -> Answer:
        """Send it with a script, and wait for the answer. Raises: Failed."""
        self.script(operation, **script)
        return await self.again(operation)

    async def again(self, operation: Operation) -> Answer:
        """Send the same request once more."""
        return await self.ask(operation.till, operation.request)

    async def ask(self, till: Till, request: Any) -> Answer:
        try:
            answer = await till.ask(request, self.times.answer)
        except NoAnswer as none:
            self._check(f"answer to {till.name}", "an answer", str(none), False)
        self.form("the answer is an `answer`", isinstance(answer, Answer))
        assert isinstance(answer, Answer)
        return answer

    async def query(self, operation: Operation, till: Till | None = None) -> Answer:
        """QUERY: what must the cashier do now?"""
        asked = till or operation.till
        return await self.ask(
            asked,
            LastOperation(
                trace=asked.next_question(), original=operation.request.trace,
                kind=operation.kind,  # type: ignore[arg-type]
            ),
        )  # fmt: skip

    async def annul(self, operation: Operation, till: Till | None = None, **more: Any) -> Answer:
        return await self.ask(till or operation.till, self.annulment(operation, till, **more))

    def annulment(self, operation: Operation, till: Till | None = None, **more: Any) -> Annul:
        values: dict[str, Any] = {
            "trace": (till or operation.till).next_trace(), "cashier": self.stand.cashier,
            "original": operation.request.trace, "supervisor": self.stand.supervisor,
            "business_date": self.platform.today,
        }  # fmt: skip
        return Annul(**(values | more))

    # ---- what the till must be told

    def paid(self, operation: Operation, answer: Answer, *, duplicate: bool = False) -> None:
        self.told(answer, "00", "APROBADA", "REGISTRADA", operation.moved)
        self.expect("text", answer_text("APROBADA", operation.kind), answer.text)
        self.expect("amount", operation.request.amount, answer.amount)
        self.expect("duplicate", duplicate, answer.duplicate is True)
        entry = self.entry(operation)
        self.expect("operation number", entry.operation, answer.operation)
        self.expect("authorization", entry.authorization, answer.authorization)

    def declined(self, operation: Operation, answer: Answer, code: str, key: str) -> None:
        """A business decline: registered, told in the words of the table, no cash."""
        self.told(answer, code, key, "RECHAZO_REGISTRADO", operation.refused)
        self.expect("text", CODES[key].text, answer.text)

    def failed(self, operation: Operation, answer: Answer) -> None:
        """An error: no cash, and a reversal."""
        self.holds("code is 91 or 96", answer.code in ("91", "96"), answer.code)
        self.expect("instruction", operation.refused, answer.instruction)
        self.expect("state", "ERROR", answer.state)

    def told(self, answer: Answer, code: str, key: str, state: str, instruction: str) -> None:
        self.expect("code", code, answer.code)
        self.expect("key", key, answer.key)
        self.expect("state", state, answer.state)
        self.expect("instruction", instruction, answer.instruction)

    async def stays(self, operation: Operation, state: str, instruction: str) -> Answer:
        """QUERY says so."""
        answer = await self.query(operation)
        self.expect("QUERY: state", state, answer.state)
        self.expect("QUERY: instruction", instruction, answer.instruction)
        return answer

    # ---- at our platform

    def entry(self, operation: Operation) -> Entry:
        """Raises: Failed: nothing of it came."""
        found = self.platform.entry(operation.till.peer, operation.request.trace)
        if found is None:
            self._check("the operation reached the platform", "yes", "no", False)
        assert found is not None
        return found

    def unseen(self, operation: Operation) -> None:
        """Nothing of it came."""
        found = self.platform.entry(operation.till.peer, operation.request.trace)
        self.holds("nothing reached the platform", found is None)

    async def comes(
        self, operation: Operation, what: str, times: int = 1, wait_s: float = 0
    ) -> Entry:
        """A message about it comes so often within its budget. Raises: Failed."""
        till, trace = operation.till.peer, operation.request.trace

        def there() -> bool:
            found = self.platform.entry(till, trace)
            return found is not None and found.count(what) >= times

        await self.platform.until(there, wait_s or self.times.undone)
        found = self.platform.entry(till, trace)
        count = 0 if found is None else found.count(what)
        self.holds(f"`{what}` came {times} time(s)", count >= times, count)
        assert found is not None
        return found

    async def reaches(self, operation: Operation, state: str) -> Entry:
        """Our platform has it in this state in time. Raises: Failed."""
        till, trace = operation.till.peer, operation.request.trace

        def there() -> bool:
            found = self.platform.entry(till, trace)
            return found is not None and found.state == state

        await self.platform.until(there, self.times.undone)
        entry = self.entry(operation)
        self.expect("state at the platform", state, entry.state)
        return entry

    async def no_more(self, operation: Operation, *kinds: str, quiet_s: float = QUIET_S) -> None:
        """Nothing more of these kinds comes about it for a while. Raises: Failed."""
        entry = self.entry(operation)
        before = [entry.count(kind) for kind in kinds]
        await trio.sleep(quiet_s)
        for kind, count in zip(kinds, before, strict=True):
            self.expect(f"`{kind}` messages afterwards", count, entry.count(kind))

    def never(self, operation: Operation, *kinds: str) -> None:
        entry = self.entry(operation)
        for kind in kinds:
            self.expect(f"`{kind}` messages", 0, entry.count(kind))


Play = Callable[[Any], Awaitable[None]]


class Pack(Struct):
    """One case of the pack.

    Fields:
        alone: it breaks connections, so no other may run beside it.
        group: cases of one group are played one after the other, in their order.
    """

    id: str
    title: str
    play: Play
    alone: bool = False
    group: str = ""


class Lane:
    """Sessions of its own, two tills or one of a network; cases one after the other."""

    def __init__(self, stand: "Stand", lines: tuple[Line, ...]) -> None:
        self.stand = stand
        self.lines = lines

    async def play(self, pack: Pack, report: CaseReport) -> None:
        """Play one case; whatever happens, it ends in a verdict."""
        stand = self.stand
        began_s = trio.current_time()
        report.began_s = round(began_s - stand.began_s, 3)
        report.verdict, report.reason = "failed", f"not over within {stand.times.case:g} s"
        with trio.move_on_after(stand.times.case):
            case = stand.case(report, self)
            try:
                await case.open()
                await pack.play(case)
                report.verdict, report.reason = "passed", ""
            except NotPlayed as why:
                report.verdict, report.reason = "not played", str(why)
            except (Failed, NoAnswer, NoSession) as why:
                report.reason = masked_text(str(why), CHARS_MAX)
        report.seconds = round(trio.current_time() - began_s, 3)
        stand.progress(report)


class Stand:
    """What all cases of a run share.

    Args:
        terminals: two for each lane.
        cashier, supervisor: as the candidate knows them.
        progress: told of each case as it ends.
    """

    def __init__(
        self, *, times: Times, connect: Connect, terminals: Sequence[Terminal],
        platform: Platform | None, progress: Callable[[CaseReport], None], cashier: str = "1",
        supervisor: str = "9", extra: Any = None,
    ) -> None:  # fmt: skip
        self.times = times
        self._platform = platform
        self.progress = progress
        self.cashier = cashier.zfill(6)
        self.supervisor = supervisor.zfill(6)
        self.extra = extra
        self.began_s = trio.current_time()
        self.wall_s = time.time()
        pairs = list(zip(terminals[::2], terminals[1::2], strict=False))
        self.lanes = [Lane(self, (Till(one, connect), Till(two, connect))) for one, two in pairs]
        self.nursery: trio.Nursery

    @property
    def platform(self) -> Platform:
        """Ours, where a network is the candidate."""
        assert self._platform is not None, "a platform is certified without ours"
        return self._platform

    def case(self, report: CaseReport, lane: Lane) -> Case:
        return Case(report, lane)

    async def run(self, packs: Sequence[Pack], reports: Sequence[CaseReport]) -> None:
        """Play all: side by side what can be, then groups, then what breaks connections."""
        todo = list(zip(packs, reports, strict=True))
        async with trio.open_nursery() as self.nursery:
            lists = [[(p, r)] for p, r in todo if not p.alone and not p.group]
            for group in sorted({p.group for p, _ in todo if p.group}):
                lists.append([(p, r) for p, r in todo if p.group == group])
            async with trio.open_nursery() as lanes:
                for lane in self.lanes:
                    lanes.start_soon(_work_off, lane, lists)
            for pack, report in todo:
                if pack.alone:
                    await self.lanes[0].play(pack, report)
            self.nursery.cancel_scope.cancel()


async def _work_off(lane: Lane, waiting: list[list[tuple[Pack, CaseReport]]]) -> None:
    """Take what waits, the last first: groups are long."""
    while waiting:
        for pack, report in waiting.pop():
            await lane.play(pack, report)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _text(value: Any) -> str:
    if value is UNSET or value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return masked_text(text or '""', CHARS_MAX)
