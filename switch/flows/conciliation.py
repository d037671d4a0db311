"""Daily files at the platform: what each line means for its operation, cases, and the deadline.

Once a network has neither confirmed nor reversed, its balanced file decides: a paid line captures,
an annulled one annuls, a refused one releases; no line releases after the grace time. What is
posted already is never moved by a file: a difference opens a case, which two persons close.

The comparison itself (`judge`) is pure and is used for previews as well. A file comes in pieces of
`LINES_MAX`, each its own step; every piece may come again.
"""

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from core_ext import Ledger, Records
from switch.calendar import Calendar, day_number
from switch.config import Config
from switch.flows import norms, persons
from switch.flows import operations as ops
from switch.flows.operations import Case, FileRecord, SicoopOperation
from switch.flows.registry import Network, Registry, Terminal, account_id
from switch.flows.sicoop import Sicoop
from switch.flows.states import (
    CAPTURADA,
    CONCILIADA,
    CONFIRMADA,
    CONFLICTO,
    RECHAZADA,
    RESPONDIDA,
    REVERSADA,
    REVERSANDO,
    TUMBA,
    VENCIDA,
)
from switch.flows.step import Step

LINES_MAX: Final = 32
"""Lines of one piece: what they change fits into a group of the journal with room to spare."""

WATCHED = b"conciliation-watched"

# What a line can come to.
AGREES = "agrees"
CONCILIATE = "conciliate"
CAPTURE = "capture"
RELEASE = "release"
ANNUL = "annul"
WAIT = "wait"
DIFFERS = "differs"

# Kinds of difference; the words are those of the people who work on them.
PAID_BY_RED = "pagada por red"
UNBACKED = "sin respaldo de red"
OTHER_AMOUNT = "monto distinto"
OTHER_KIND = "operacion distinta"
OTHER_COMMISSION = "comision distinta"
IN_CONFLICT = "en conflicto"
NOT_KNOWN = "desconocida en sicoop"
TWICE = "linea repetida"
OTHER_PLACE = "terminal o boca desconocida"
OTHER_AT_CEIBO = "ceibo distinto"
DISPUTED = "disputa"
PENDING = "sin linea, en espera"

CASE_DIFFERENCES: Final = frozenset(
    (PAID_BY_RED, UNBACKED, OTHER_AMOUNT, OTHER_KIND, OTHER_COMMISSION, IN_CONFLICT)
)
"""Those that people have to decide about; the others are reported only."""

_PAID = frozenset("RE")
_REFERENCE = re.compile("[0-9]{26}", re.ASCII)
_POSTED = frozenset((CAPTURADA, CONCILIADA))
_UNDONE = frozenset((REVERSADA, REVERSANDO, RECHAZADA, VENCIDA, TUMBA))
_KINDS = {"C": "cash_out", "D": "deposit"}


class FileLine(Struct, array_like=True, frozen=True, gc=False):
    """What a line of a file says about its operation; `state` empty: there is no line."""

    reference: str
    kind: str = ""
    operation: str = ""
    amount: int = 0
    state: str = ""
    commission: int = 0


class View(Struct, array_like=True, frozen=True, gc=False):
    """What sicoop says about it."""

    state: str
    kind: str
    operation: str
    amount: int
    commission: int
    owed: str = ""


class Verdict(Struct, array_like=True, frozen=True, gc=False):
    """What becomes of an operation, and how the two sides differ; empty: they do not."""

    action: str
    difference: str = ""
    state: str = ""  # at sicoop, once the action is done

    @property
    def is_case(self) -> bool:
        return self.difference in CASE_DIFFERENCES


def judge(line: FileLine, known: View | None) -> Verdict:
    """Hold a line against sicoop's operation of that reference. Pure."""
    if known is None:
        if line.state in _PAID:
            return Verdict(DIFFERS, PAID_BY_RED)
        return Verdict(AGREES, NOT_KNOWN if line.state == "A" else "")
    if known.state == CONFLICTO:
        return Verdict(DIFFERS, IN_CONFLICT, CONFLICTO)
    if line.state and known.state not in _UNDONE:
        other = _other(line, known)
        if other:
            return Verdict(DIFFERS, other, known.state)
    if line.state in _PAID:
        return _judge_paid(line, known)
    if known.state in _UNDONE:
        return Verdict(AGREES, state=known.state)
    if known.state == RESPONDIDA and not known.owed:
        decided = {"A": ANNUL, "N": RELEASE, "X": RELEASE}.get(line.state, WAIT)
        return Verdict(decided, "" if line.state else PENDING, known.state)
    if known.state == CONFIRMADA or known.state in _POSTED:
        if known.owed == "annul":
            return Verdict(WAIT, state=known.state)
        return Verdict(DIFFERS, UNBACKED, known.state)
    return Verdict(WAIT, state=known.state)


def _judge_paid(line: FileLine, known: View) -> Verdict:
    if known.state in _UNDONE:
        return Verdict(DIFFERS, PAID_BY_RED, known.state)
    other = "" if line.commission == known.commission else OTHER_COMMISSION
    if known.state == RESPONDIDA and not known.owed:
        return Verdict(CAPTURE, other, known.state)
    if known.state not in _POSTED:
        return Verdict(WAIT, state=known.state)
    if other:
        return Verdict(DIFFERS, other, known.state)
    return Verdict(CONCILIATE if known.state == CAPTURADA else AGREES, state=known.state)


def _other(line: FileLine, known: View) -> str:
    """How a line is about something else than the operation of its reference, or ''."""
    if line.operation and line.operation != known.operation:
        return OTHER_KIND
    if _KINDS[line.kind] != known.kind:
        return OTHER_KIND
    return OTHER_AMOUNT if line.amount != known.amount else ""


def view(operation: SicoopOperation) -> View:
    """An operation as `judge` takes it."""
    o = operation
    return View(o.state, o.kind, o.operation, o.amount, o.commission, o.owed)


class Refusal(ValueError):
    """A command that cannot be carried out as things are; nothing was changed."""


class Conciliation:
    """Files taken in, cases, and who has not sent his file. Methods of `commands` are commands."""

    def __init__(
        self, *, config: Config, registry: Registry, records: Records, ledger: Ledger,
        calendar: Calendar, sicoop: Sicoop,
    ) -> None:  # fmt: skip
        self._config = config
        self._registry = registry
        self._records = records
        self._ledger = ledger
        self._calendar = calendar
        self._sicoop = sicoop

    def reconfigure(self, config: Config) -> None:
        """Go on with another deadline and grace time."""
        self._config = config

    # ---- taking in a file

    def conciliation_begin(
        self, step: Step, network: str, business_date: str, version: int, sha256: str,
        details: int, cash_out: int, deposit: int, commission: int,
    ) -> dict[str, str]:  # fmt: skip
        """Announce a balanced file; `business_date` is yyyymmdd.

        `known`: it was taken in before and nothing waits; `again`: it was, and some of its
        operations waited; `new`; `replaces`: it takes the place of a lower version.
        """
        number, day = norms.network(network), self._day(business_date)
        if self._registry.network(number) is None:
            raise Refusal(f"network {number} is not known here")
        if day >= self._calendar.business(step.now_ns).number:
            raise Refusal(f"business date {business_date} has not ended")
        known = self.file(number, business_date)
        answer = self._begun(known, version, sha256)
        if answer == "known":
            return {"state": answer}
        if answer == "replaces":
            assert known is not None
            step.audit("operator", "conciliation.replace", _subject(known), "00",
                       f"version {known.version} by {version}")  # fmt: skip
        record = FileRecord(
            number, business_date, version, sha256, details, cash_out, deposit, commission
        )
        if known is not None and answer == "again":
            record = known
        record.state = "reading"
        record.counts = {}
        self._put(record)
        return {"state": answer}

    def _begun(self, known: FileRecord | None, version: int, sha256: str) -> str:
        if known is None:
            return "new"
        if version > known.version:
            return "replaces"
        if version < known.version:
            raise Refusal(f"version {known.version} has been taken in already")
        if sha256 != known.sha256:
            raise Refusal(
                f"version {version} was taken in with other content: a corrected file has a "
                "higher version"
            )
        waits = known.counts.get(WAIT, 0)
        return "known" if known.state == "done" and not waits else "again"

    def conciliation_lines(
        self, step: Step, network: str, business_date: str, version: int, lines: list[FileLine],
        views: list[View | None],
    ) -> list[Verdict]:  # fmt: skip
        """Judge a piece of the file that was announced and act upon it.

        Args:
            views: what the read model says, for operations whose records are forgotten here.
        """
        file = self._reading(network, business_date, version)
        return [
            self._take(step, file, line, seen)
            for line, seen in zip(_bounded(lines), views, strict=True)
        ]

    def conciliation_absent(
        self, step: Step, network: str, business_date: str, version: int, lines: list[FileLine],
        views: list[View | None],
    ) -> list[Verdict]:  # fmt: skip
        """The same for operations of the file's date that it has no line of."""
        file = self._reading(network, business_date, version)
        found = []
        for line, seen in zip(_bounded(lines), views, strict=True):
            if self._carried(file, line.reference):
                found.append(Verdict(AGREES, state=CONCILIADA))
            else:
                found.append(self._take(step, file, line, seen))
        return found

    def conciliation_end(
        self, step: Step, network: str, business_date: str, version: int, counts: dict[str, int],
    ) -> dict[str, int]:  # fmt: skip
        """The file is through; cases that an earlier version opened and this one did not are
        closed, a piece at a time: `more` is 1 while it has to be said again."""
        file = self._reading(network, business_date, version)
        corrected = 0
        for case in list(self.open_cases()):
            same = (case.network, case.business_date) == (file.network, file.business_date)
            if not same or not 0 < case.version < version:
                continue
            if corrected == LINES_MAX:
                return {"corrected": corrected, "more": 1}
            self._close(step, case, "corrected", f"by version {version}")
            corrected += 1
        file.state = "done"
        file.taken_ns = step.now_ns
        file.counts = counts
        file.graced = step.now_ns >= self.grace_ns(file)
        self._put(file)
        step.audit("operator", "conciliation.read", _subject(file), "00", f"version {version}")
        return {"corrected": corrected, "more": 0}

    def conciliation_refused(
        self, step: Step, network: str, business_date: str, version: int, reason: str
    ) -> dict[str, str]:
        """A file that was refused whole: nothing but an alarm comes of it."""
        subject = f"{norms.network(network)}:{business_date}"
        step.alarm("file_refused", subject, f"version {version}: {reason}")
        step.audit("operator", "conciliation.read", subject, "refused", reason)
        return {"state": "refused"}

    def conciliation_known(
        self, step: Step, network: str, places: list[tuple[str, str]]
    ) -> list[bool]:
        """Which pairs of terminal and branch the network has."""
        return [self._is_place(norms.network(network), *place) for place in places[:1000]]

    def conciliation_resend(
        self, step: Step, reference: str, what: str
    ) -> dict[str, str]:  # fmt: skip
        """Ask the issuer once more for what its books do not show."""
        operation = self._sicoop.find(reference)
        if operation is None or what != _decided(operation):
            raise Refusal(f"{what} is not what was decided about {reference}")
        return {"state": self._sicoop.resend(step, reference, what)}

    def _take(self, step: Step, file: FileRecord, line: FileLine, seen: View | None) -> Verdict:
        if line.reference[:4] != file.network or not _REFERENCE.fullmatch(line.reference):
            raise Refusal("a line names an operation of another network")
        known = self._sicoop.find(line.reference)
        alive = None if known is None else view(known)
        verdict = judge(line, alive or seen)
        if known is not None:
            verdict = self._act(step, file, line, verdict)
        if verdict.is_case:
            self._open_case(step, file, line, verdict, alive or seen)
        elif verdict.action != WAIT:
            case = self.case(line.reference)
            if case is not None and case.state == "open" and case.version:
                self._close(step, case, "corrected", f"by the file of {file.business_date}")
        return verdict

    def _act(self, step: Step, file: FileRecord, line: FileLine, verdict: Verdict) -> Verdict:
        action, reference = verdict.action, line.reference
        if action == WAIT and verdict.difference == PENDING and step.now_ns >= self.grace_ns(file):
            action, verdict = RELEASE, Verdict(RELEASE)
        if action in (CAPTURE, RELEASE, ANNUL):
            state = self._sicoop.decide(step, reference, action)
            step.audit("operator", f"conciliation.{action}", reference, "00", _subject(file))
            if state == CAPTURADA and not verdict.difference:
                state = self._sicoop.conciliate(step, reference)
            return Verdict(action, verdict.difference, state)
        if action == CONCILIATE:
            return Verdict(action, state=self._sicoop.conciliate(step, reference))
        return verdict

    def _carried(self, file: FileRecord, reference: str) -> bool:
        """True for an operation of the evening before that its own date's file had (K03)."""
        known = self._sicoop.find(reference)
        return (
            known is not None
            and known.state == CONCILIADA
            and known.business_date.replace("-", "") != file.business_date
        )

    def _reading(self, network: str, business_date: str, version: int) -> FileRecord:
        file = self.file(norms.network(network), business_date)
        if file is None or file.version != version or file.state != "reading":
            raise Refusal("that file was not announced: begin again")
        return file

    # ---- cases

    def case(self, reference: str) -> Case | None:
        found = self._records.get(ops.CASES, reference.encode())
        return None if found is None else ops.decode_case(found)

    def open_cases(self) -> Iterator[Case]:
        return (ops.decode_case(value) for _, value in self._records.open_items(ops.CASES))

    def case_dispute(
        self, step: Step, reference: str, author: str, reason: str
    ) -> dict[str, str]:  # fmt: skip
        """Somebody contests a registered operation (X143): a case, and nothing moves."""
        norms.parse_reference(reference)
        person, words = persons.name(author), persons.words(reason)
        operation = self._sicoop.find(reference)
        if operation is None:
            raise Refusal("there is no such operation here, or it is older than the retention")
        known = self.case(reference)
        if known is not None and known.state == "open":
            raise Refusal(f"a case of it is open: {known.difference}")
        self.put_case(
            Case(
                reference, operation.network, operation.business_date.replace("-", ""), DISPUTED,
                opened_ns=step.now_ns, sicoop_state=operation.state,
                sicoop_amount=operation.amount, reason=words,
            )
        )  # fmt: skip
        step.alarm("dispute", reference, words)
        step.audit(f"operator:{person}", "case.open", reference, "00", words)
        return {"reference": reference, "case": DISPUTED}

    def put_case(self, case: Case) -> None:
        self._records.put(
            ops.CASES, case.reference.encode(), ops.encode(case), open=case.state == "open"
        )

    def _open_case(
        self, step: Step, file: FileRecord, line: FileLine, verdict: Verdict, seen: View | None
    ) -> None:
        known = self.case(line.reference)
        if known is not None and known.state == "closed" and known.author:
            said = (known.difference, known.red_state, known.red_amount)
            if said == (verdict.difference, line.state, line.amount):
                return  # two persons have decided about just this
        if known is None or known.state != "open":
            step.alarm("conciliation_case", line.reference, verdict.difference)
        self.put_case(
            Case(
                line.reference, file.network, file.business_date, verdict.difference,
                opened_ns=known.opened_ns if known and known.state == "open" else step.now_ns,
                version=file.version, red_state=line.state, red_amount=line.amount,
                sicoop_state=verdict.state, sicoop_amount=0 if seen is None else seen.amount,
            )
        )  # fmt: skip

    def _close(self, step: Step, case: Case, outcome: str, reason: str) -> None:
        case.state, case.outcome, case.reason = "closed", outcome, reason
        case.closed_ns = step.now_ns
        self.put_case(case)
        step.audit("operator", "case.close", case.reference, "00", f"{outcome} {reason}")

    # ---- time

    def watch(self, step: Step) -> None:
        """What falls due by the clock: files that are late, and the grace time of those that came.

        Cheap where nothing is due; called about once a minute.
        """
        self._watch_deadline(step)
        for _, value in self._records.open_items(ops.FILES):
            file = ops.decode_file(value)
            if file.state == "done" and step.now_ns >= self.grace_ns(file):
                self._release_absent(step, file)

    def _watch_deadline(self, step: Step) -> None:
        today = self._calendar.local(step.now_ns)
        deadline = self._config.conciliation.deadline
        if step.now_ns < self._calendar.instant(today.number, deadline):
            return
        found = self._records.get(ops.META, WATCHED)
        if found is not None and int(found) >= today.number:
            return
        self._records.put(ops.META, WATCHED, b"%d" % today.number)
        if found is None:
            return  # a new node has no yesterday
        due, here = self._calendar.business_of(today.number - 1), self._played_here()
        for network in self._registry.all(Network):
            assert isinstance(network, Network)
            file = self.file(network.number, due.compact)
            if file is not None and file.state == "done":
                continue
            if self._is_expected(network, due.number, near=network.number in here):
                subject = f"{network.number}:{due.compact}"
                step.alarm("file_late", subject, f"not here at {deadline}")

    def _is_expected(self, network: Network, day: int, *, near: bool) -> bool:
        """Whether the file of a date is waited for (C06). `near`: its red is this process.

        Then its register has said all that its file could, but for operations that the network has
        asked for by other ways and that are still open.
        """
        if self._config.conciliation.late_alarm == "never" or not self._has_worked(network):
            return False
        if self._config.conciliation.late_alarm == "always" or not near:
            return True
        return any(
            o.network == network.number and o.state == RESPONDIDA and not o.owed
            and self.file_day(o.day, o.received_ns) <= day
            for o in self._sicoop.unfinished()
        )  # fmt: skip

    def _played_here(self) -> frozenset[str]:
        """Networks whose red is this process: their terminals sign on here."""
        if "red" not in self._config.node.roles:
            return frozenset()
        terminals = self._registry.all(Terminal)
        return frozenset(t.network for t in terminals if isinstance(t, Terminal) and t.keys)

    def _has_worked(self, network: Network) -> bool:
        name = f"sicoop:{network.currency}:net:{network.number}"
        balance = self._ledger.balance(account_id(name))
        return not network.disabled and balance is not None and any(
            (balance.debits_posted, balance.credits_posted, balance.debits_pending,
             balance.credits_pending)
        )  # fmt: skip

    def _release_absent(self, step: Step, file: FileRecord) -> None:
        """Release what the file has no line of; a bounded piece at a time."""
        released, more = 0, False
        for operation in self._sicoop.unfinished():
            if not self._is_absent(operation, file):
                continue
            if released == LINES_MAX:
                more = True  # next time
                break
            released += 1
            self._sicoop.decide(step, operation.reference, RELEASE)
            step.audit("node", "conciliation.release", operation.reference, "00", _subject(file))
        file.graced = not more
        file.counts[RELEASE] = file.counts.get(RELEASE, 0) + released
        file.counts[WAIT] = max(file.counts.get(WAIT, 0) - released, 0)
        self._put(file)

    def _is_absent(self, operation: SicoopOperation, file: FileRecord) -> bool:
        """Lines that decide have decided when they were read: what is still open has none."""
        if operation.network != file.network or operation.state != RESPONDIDA or operation.owed:
            return False
        case = self.case(operation.reference)
        if case is not None and case.state == "open":
            return False
        return self.file_day(operation.day, operation.received_ns) <= self._day(file.business_date)

    def file_day(self, day: int, received_ns: int) -> int:
        """Number of the date in whose file a network has an operation: one that it takes after its
        own closing time is in the next (K03)."""
        closes_ns = self._calendar.instant(day, self._config.conciliation.network_closes)
        return day if received_ns < closes_ns else day + 1

    def grace_ns(self, file: FileRecord) -> int:
        """When operations without a line are released, if nobody has spoken for them."""
        number = self._day(file.business_date) + 1
        return self._calendar.instant(number, self._config.conciliation.grace)

    # ---- pieces

    def file(self, network: str, business_date: str) -> FileRecord | None:
        found = self._records.get(ops.FILES, (network + business_date).encode())
        return None if found is None else ops.decode_file(found)

    def _put(self, file: FileRecord) -> None:
        key = (file.network + file.business_date).encode()
        is_open = file.state == "reading" or not file.graced
        self._records.put(ops.FILES, key, ops.encode(file), open=is_open)

    def _day(self, business_date: str) -> int:
        return day_number(norms.date(business_date))

    def _is_place(self, network: str, terminal: str, branch: str) -> bool:
        found = self._registry.terminal(terminal)
        known = found is not None and found.network == network
        return known and self._registry.branch(network, branch) is not None


def _decided(operation: SicoopOperation) -> str:
    """What the issuer was asked for in the end; '' while that is open."""
    if operation.state in _POSTED:
        return "capture"
    if operation.annulled:
        return "annul"
    return "release" if operation.state in _UNDONE else ""


def _bounded(lines: list[FileLine]) -> list[FileLine]:
    if len(lines) > LINES_MAX:
        raise Refusal(f"a piece has at most {LINES_MAX} lines")
    return lines


def _subject(file: FileRecord) -> str:
    return f"{file.network}:{file.business_date}"
