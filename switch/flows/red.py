"""The network's back-end: takes requests of terminals, registers operations, instructs cashiers.

Cash moves only on ENTREGUE or RECIBA, and these are said only of a REGISTRADA. What red registered
is the authority for everybody else; what it started and could not finish, it reverses.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

from msgspec import UNSET, UnsetType

from core_ext import Ledger, Records
from core_ext._mac import MacKey
from protocols.codes import CODES, KEY_OF_CODE, answer_text
from protocols.messages import (
    DEVUELVA,
    NO_ENTREGUE,
    Annul,
    AnnulRegistered,
    Answer,
    CashOut,
    Confirm,
    Delivered,
    Deposit,
    Error,
    Hold,
    Holder,
    HolderAnswer,
    LastOperation,
    NetworkAnswer,
    NetworkHolder,
    NetworkRequest,
    Notice,
    Reverse,
    ShiftClose,
    ShiftOpen,
    SignOff,
    Status,
    StatusAnswer,
    TerminalRequest,
)
from switch.calendar import Calendar, day_date
from switch.config import Config
from switch.flows import norms, ticket
from switch.flows import operations as ops
from switch.flows.answers import (
    about,
    bad_field,
    identity_fields,
    key_of,
    optional,
    plain,
    refused,
)
from switch.flows.deadlines import is_stuck, may_be_annulled, retry_after_s
from switch.flows.fingerprint import Fingerprint
from switch.flows.norms import FieldError
from switch.flows.operations import RedOperation
from switch.flows.probing import Probing
from switch.flows.registry import Registry, Terminal
from switch.flows.shifts import Shifts
from switch.flows.states import (
    ANULADA,
    DESCONOCIDA,
    ENTREGADA,
    ERROR,
    INICIADA,
    NOTHING,
    RECHAZADA,
    RECHAZO_REGISTRADO,
    RED,
    REGISTRADA,
    move,
)
from switch.flows.step import Origin, Step

REPEAT_OVER_MIDNIGHT_NS = 600 * 1_000_000_000  # rule R7: the last ten minutes of the day before
ASKERS_MAX = 4096  # holder questions that wait for a platform in another process
LOOK_BACK_DAYS = 4  # `original` names the newest operation with that trace, retention 72 h

_SIMILAR = Notice("Operación similar pendiente.", "warning")
_AWAY = Notice("Servicio en mantenimiento.", "warning")
_AGAIN = frozenset(("68", "91", "96"))  # answers of a platform that decide nothing: ask again
_ACCEPTED = frozenset(("00", "21", "25"))

TerminalAnswer = Answer | HolderAnswer | Error

NOT_SENT = NetworkAnswer(0, "91", UNSET, "EMISOR_NO_DISPONIBLE")
"""Stands for the answer of a sicoop that could not be reached, certain that nothing was sent."""


class Platform(Protocol):
    """The way to sicoop. None: the answer comes later, through `Red.on_platform_answer`.

    Attributes:
        forwards: the way itself sends again what is owed until it is answered; else the flow does.
    """

    @property
    def forwards(self) -> bool: ...

    def ask(
        self, step: Step, network: str, message: NetworkRequest, *, key: str = ""
    ) -> NetworkAnswer | StatusAnswer | HolderAnswer | None: ...


class Red:
    """red's decisions. `ask` takes a terminal's request and answers, or None: later."""

    spaces = (ops.RED_OPERATIONS,)

    def __init__(
        self,
        *,
        config: Config,
        registry: Registry,
        records: Records,
        ledger: Ledger,
        calendar: Calendar,
        fingerprint: Fingerprint,
        shifts: Shifts,
        platform: Platform,
        ticket_key: MacKey,
    ) -> None:
        self._config = config
        self._registry = registry
        self._records = records
        self._calendar = calendar
        self._fingerprint = fingerprint
        self._shifts = shifts
        self._platform = platform
        self._ticket_key = ticket_key
        self._table = ops.Table(records, ops.RED_OPERATIONS, ops.decode_red, _is_open)
        self.flush = self._table.flush
        self._waiting: dict[str, list[tuple[Origin | None, int]]] = {}
        self._inquired: set[str] = set()  # started by an earlier process; sicoop is asked about
        self.probing = Probing(config=config, ledger=ledger)
        self._askers: dict[str, tuple[Terminal, Origin | None, int | UnsetType]] = {}  # of `holder`
        self._asked = 0
        self._heading = lru_cache(maxsize=65536)(self._make_heading)

    def ask(
        self, step: Step, terminal: Terminal, message: TerminalRequest, origin: Origin | None = None
    ) -> TerminalAnswer | None:
        """Handle one request of a signed-on terminal."""
        try:
            match message:
                case CashOut() | Deposit():
                    return self._operation(step, terminal, message, origin)
                case Delivered():
                    return self._delivered(step, terminal, message)
                case LastOperation():
                    return self._last_operation(step, terminal, message)
                case Annul():
                    return self._annul(step, terminal, message, origin)
                case Holder():
                    return self._holder(step, terminal, message, origin)
                case ShiftOpen():
                    return self._shifts.open(step, terminal, message)
                case ShiftClose():
                    return self._shifts.close(step, terminal, message)
                case SignOff():
                    return plain("APROBADA", trace=message.trace)
        except FieldError as bad:
            return bad_field(message, bad.field)

    def state(self, reference: str) -> str:
        """State of a registered operation, for status inquiries of sicoop."""
        operation = self._load(reference)
        return DESCONOCIDA if operation is None else operation.state

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration; what is decided already stays as it is."""
        self._config = config
        self.probing.reconfigure(config)
        self._heading.cache_clear()

    def attach(self, platform: Platform) -> None:
        """Make known a platform in another process."""
        self._platform = platform

    def debt(self, key: str) -> tuple[str, Confirm | Reverse | AnnulRegistered] | None:
        """What sicoop is still asked for under the key of a record, with the network that asks;
        None: nothing."""
        operation = self._load(key)
        if operation is None or not operation.owed:
            return None
        return operation.network, _debt(operation)

    @property
    def platform(self) -> Platform:
        """The way to sicoop that is in use."""
        return self._platform

    def first_answer(self, reference: str) -> Answer:
        """The answer to who asked for an operation that was just registered."""
        operation = self._load(reference)
        assert operation is not None, "an operation that was just registered"
        return self._first_answer(operation)

    def unfinished(self) -> Iterator[RedOperation]:
        """What a stop left open, each as it stands when its turn comes."""
        return self._table.open()

    def recover(self, step: Step, operation: RedOperation) -> None:
        """Finish one of them: whatever is not registered is reversed (rule R5, X122)."""
        if operation.state == INICIADA and operation.kind != "annul":
            self._recover_started(step, operation)
        if operation.owed:
            self._settle(step, operation)
        self._store(operation)

    def _recover_started(self, step: Step, operation: RedOperation) -> None:
        """A decline that could not be stored is registered now (X012); all else is an error."""
        answer = self._platform.ask(
            step, operation.network, Status(0, operation.reference), key=operation.reference
        )
        if answer is None and self._platform.forwards:  # it will say, or be silent
            self._inquired.add(operation.reference)
            step.arm("red", "status", operation.reference, self._config.budgets.red_s)
        elif isinstance(answer, StatusAnswer):
            self._conclude_started(step, operation, answer.state, answer.code)
        else:
            self._conclude_started(step, operation, DESCONOCIDA, UNSET)

    def _conclude_started(
        self, step: Step, operation: RedOperation, state: str, code: str | UnsetType
    ) -> None:
        if state == RECHAZADA:
            operation.code = optional(code) or "05"
            operation.key = KEY_OF_CODE.get(operation.code, "NO_APROBADA")
            self._move(operation, "declined", step)
        else:
            self._fail(step, operation, "ERROR", "timeout")

    def on_platform_state(
        self, step: Step, reference: str, state: str, code: str | UnsetType
    ) -> None:
        """State at a sicoop in another process of what a stop left open; DESCONOCIDA where it does
        not say: then it is reversed there. A terminal may have sent it again meanwhile."""
        if reference not in self._inquired:
            return
        self._inquired.discard(reference)
        step.disarm("red", "status", reference)
        operation = self._load(reference)
        if operation is None or operation.state != INICIADA:
            return
        self._conclude_started(step, operation, state, code)
        if operation.owed:
            self._settle(step, operation)
        self._store(operation)
        self._reply_all(step, operation)

    # ---- cash_out and deposit

    def _operation(
        self, step: Step, terminal: Terminal, m: CashOut | Deposit, origin: Origin | None
    ) -> Answer | None:
        operation = self._opened(step, terminal, m)
        known = self._known(step, operation.reference, operation.fingerprint)
        if known is not None:
            return self._repeat(known, operation, origin)
        refusal = self._not_admitted(step, terminal, operation)
        if refusal:
            return refused(refusal, operation.kind, trace=m.trace, state=DESCONOCIDA)
        self._warn_of_similar(step, operation, origin)
        self._move(operation, "started", step)
        request = Hold(
            id=0,
            reference=operation.reference,
            kind=operation.kind,  # type: ignore[arg-type]
            branch=operation.branch,
            cashier=operation.cashier,
            amount=operation.amount,
            currency=operation.currency,
            sent_at="",
            document_type=m.document_type,
            **identity_fields(operation.document),
            token=m.token if isinstance(m, CashOut) else UNSET,
            card=m.card if isinstance(m, Deposit) else UNSET,
            depositor=operation.depositor or UNSET,
            declaration=operation.declaration or UNSET,
        )
        answer = self._platform.ask(step, terminal.network, request, key=operation.reference)
        if answer is None:
            self._waiting[operation.reference] = [(origin, m.trace)]
            self._store(operation)
            self._note_newest(operation, step)
            step.arm("red", "hold", operation.reference, self._config.budgets.red_s)
            return None
        assert isinstance(answer, NetworkAnswer)
        self._decide(step, operation, answer)
        self._note_newest(operation, step)
        self._tell_of_maintenance(step, operation, origin)
        return self._first_answer(operation)

    def adopt(
        self, step: Step, reference: str, origin: Origin | None, trace: int, asked_ns: int
    ) -> None:
        """Go on with an operation that was started natively (`core_ext._relay`) in the step of
        `asked_ns`: its platform has been asked, or is about to be."""
        self._waiting[reference] = [(origin, trace)]
        waited_s = (step.mono_ns - asked_ns) / 1_000_000_000
        step.arm("red", "hold", reference, self._config.budgets.red_s - waited_s)

    def _opened(self, step: Step, terminal: Terminal, m: CashOut | Deposit) -> RedOperation:
        """The operation as asked for, every field in its normal form. Raises FieldError."""
        kind = "cash_out" if isinstance(m, CashOut) else "deposit"
        identity = norms.identity(m.document_type, optional(m.document), optional(m.phone))
        cashier = norms.cashier(m.cashier)
        branch = norms.branch(m.branch) if isinstance(m.branch, str) else terminal.branch
        norms.currency(m.currency)
        token = card = depositor = ""
        declaration: dict[str, str] = {}
        if isinstance(m, CashOut):
            token = self._token(m.token)
        else:
            if isinstance(m.token, str):
                raise FieldError("token")
            card = m.card if isinstance(m.card, str) else ""
            if isinstance(m.depositor, str):
                depositor = "".join(norms.depositor(m.depositor))
            if isinstance(m.declaration, dict):
                declaration = norms.declaration(m.declaration)
        day = self._calendar.local(step.now_ns)
        declared = (kind, cashier, *identity, token, m.amount, m.currency, branch, card, depositor,
                    declaration)  # fmt: skip
        return RedOperation(
            reference=f"{terminal.network}{terminal.number}{day.compact}{m.trace:06d}",
            kind=kind,
            network=terminal.network,
            terminal=terminal.number,
            branch=branch,
            cashier=cashier,
            trace=m.trace,
            amount=m.amount,
            currency=m.currency,
            document=identity,
            fingerprint=self._fingerprint(*declared),
            received_ns=step.now_ns,
            state=NOTHING,
            depositor=depositor,
            declaration=declaration,
        )

    def _token(self, token: str) -> str:
        """A code of a length that no mode uses is a format error, whoever it is said to be of."""
        if len(token) not in (self._config.tokens.digits, 8):
            raise FieldError("token")
        return token

    def _known(self, step: Step, reference: str, fingerprint: int) -> RedOperation | None:
        """The request that has this key, or had it before midnight with the same body (rule R7)."""
        known = self._load(reference)
        if known is not None:
            return known
        day = self._calendar.local(step.now_ns)
        if step.now_ns - day.start_ns >= REPEAT_OVER_MIDNIGHT_NS:
            return None
        before = day_date(day.number - 1).strftime("%Y%m%d")
        known = self._load(f"{reference[:12]}{before}{reference[20:]}")
        if known is None or known.fingerprint != fingerprint:
            return None
        return known if day.start_ns - known.received_ns <= REPEAT_OVER_MIDNIGHT_NS else None

    def _warn_of_similar(self, step: Step, operation: RedOperation, origin: Origin | None) -> None:
        """Warn where the same was typed again with a new trace while the first is open (I05)."""
        newest = self._records.get(ops.RED_NEWEST, operation.terminal.encode())
        before = None if newest is None else self._load(newest.decode())
        if before is None or before.state != INICIADA or origin is None:
            return
        typed = (operation.kind, operation.document, operation.amount)
        if (before.kind, before.document, before.amount) == typed:
            step.reply(origin, _SIMILAR)

    def _repeat(
        self, known: RedOperation, asked: RedOperation, origin: Origin | None
    ) -> Answer | None:
        if known.fingerprint != asked.fingerprint:
            state = self._meant(known).state
            return refused("DUPLICADO_DISTINTO", asked.kind, trace=asked.trace, state=state)
        if known.state == INICIADA:
            # Of an operation from before a restart the first asker is gone; he was the first still.
            waiting = self._waiting.setdefault(known.reference, [(None, known.trace)])
            waiting.append((origin, asked.trace))
            return None
        return self._answer(known, asked.trace, duplicate=True)

    def _not_admitted(self, step: Step, terminal: Terminal, operation: RedOperation) -> str:
        if not step.admitting:
            return "ERROR"
        if self._shifts.may_work(step, terminal, operation.cashier):
            return ""
        step.audit(operation.cashier, operation.kind, operation.reference, "58", "no shift", True)
        return "NO_HABILITADO"

    def on_platform_answer(
        self,
        step: Step,
        reference: str,
        answer: NetworkAnswer | HolderAnswer,
        what: str = "hold",
    ) -> None:
        """An answer of a sicoop in another process: to a `hold`, to what was owed to it, or to a
        `holder` under the key of the question.

        That of a hold counts for nothing after the deadline. That of an `annul` comes under the
        reference of what is annulled.
        """
        if isinstance(answer, HolderAnswer):
            self._answer_holder(step, reference, answer)
            return
        operation = self._load(reference)
        if what == "annul" and operation is not None:
            operation = self._load(operation.annulment)
        if operation is None or (what == "hold" and operation.state != INICIADA):
            step.alarm("late_answer", reference)
            return
        if what == "hold":
            step.disarm("red", "hold", reference)
            self._decide(step, operation, answer)
            self._reply_all(step, operation)
        elif operation.owed == what:
            self._paid(step, operation, answer)
            self._store(operation)
            if not operation.owed:
                self._reply_all(step, operation)

    def on_deadline(self, step: Step, kind: str, reference: str) -> None:
        """sicoop did not answer in time.

        A hold: no cash, and whatever it did is to be undone. An annulment: the terminal is told
        that it goes on. What is owed is sent again.
        """
        if kind == "holder":
            self._answer_holder(step, reference, HolderAnswer("91"))
            return
        operation = self._load(reference)
        if operation is None:
            return
        if kind == "owed":
            if operation.owed:
                self._settle(step, operation)
                self._store(operation)
                if not operation.owed:
                    self._reply_all(step, operation)
        elif operation.state == INICIADA:
            if kind == "status":
                self.on_platform_state(step, reference, DESCONOCIDA, UNSET)
                return
            if kind == "hold":
                step.disarm("red", "hold", reference)
                self._fail(step, operation, "EMISOR_NO_DISPONIBLE", "timeout")
                self._settle(step, operation)
                self._store(operation)
            self._reply_all(step, operation)

    def _decide(self, step: Step, operation: RedOperation, answer: NetworkAnswer) -> None:
        """Register what sicoop decided, approvals and declines alike."""
        operation.code = answer.code
        operation.key = key_of(answer, operation.kind)
        operation.field = optional(answer.field) or ""
        operation.operation = optional(answer.operation) or ""
        operation.business_date = optional(answer.business_date) or ""
        if answer.code == "00":
            operation.authorization = optional(answer.authorization) or ""
            operation.fee = answer.fee if isinstance(answer.fee, int) else 0
            operation.commission = answer.commission if isinstance(answer.commission, int) else 0
            operation.name = optional(answer.name) or ""
            operation.registered_ns = step.now_ns
            operation.owed = "confirm"
            self._move(operation, "approved", step)
            self._shifts.moved(operation, operation.cashier, 1)
            self._settle(step, operation)
        elif answer is NOT_SENT or operation.key == "MANTENIMIENTO":  # nothing to undo (X105)
            self._move(operation, "failed", step)
        elif answer.code == "21":  # it came after its own reversal: there is nothing left to undo
            operation.code, operation.key = CODES["ERROR"].code, "ERROR"
            self._move(operation, "failed", step)
        else:
            self._move(operation, "declined", step)
        self._store(operation)

    def _fail(self, step: Step, operation: RedOperation, key: str, reason: str) -> None:
        operation.code, operation.key = CODES[key].code, key
        operation.owed, operation.reason = "reverse", reason
        self._move(operation, "failed", step)

    # ---- what is owed to sicoop: sent again until it is acknowledged (rule R2)

    def _settle(self, step: Step, operation: RedOperation) -> None:
        answer = self._platform.ask(
            step, operation.network, _debt(operation), key=operation.reference
        )
        if answer is None:
            self._again(step, operation)
        else:
            assert isinstance(answer, NetworkAnswer)
            self._paid(step, operation, answer)

    def _again(self, step: Step, operation: RedOperation) -> None:
        if self._platform.forwards:
            return
        operation.attempts += 1
        if is_stuck(operation.attempts):
            step.alarm("owed_stuck", operation.reference, operation.owed)
        step.arm("red", "owed", operation.reference, retry_after_s(operation.attempts))

    def _paid(self, step: Step, operation: RedOperation, answer: NetworkAnswer) -> None:
        if answer.code in _AGAIN:
            self._again(step, operation)
            return
        if operation.attempts:
            step.disarm("red", "owed", operation.reference)
        if operation.kind == "annul":
            original = self._original(operation)
            self._conclude(step, operation, original, key_of(answer, original.kind))
            return
        if answer.code not in _ACCEPTED:
            step.alarm("owed_refused", operation.reference, f"{operation.owed} {answer.code}")
        operation.owed = ""

    # ---- annulment

    def _annul(
        self, step: Step, terminal: Terminal, m: Annul, origin: Origin | None
    ) -> Answer | None:
        record = self._annulment(step, terminal, m)
        known = self._known(step, record.reference, record.fingerprint)
        if known is not None:
            return self._repeat_annul(known, record, origin)
        original = self._find(terminal, m.original, step.now_ns)
        if original is None or original.kind == "annul":
            step.audit(record.cashier, "annul", record.reference, "25", "unknown original", True)
            return _unknown(m.trace, m.original)
        if original.annulment:
            return about(original, "EN_PROCESO", trace=m.trace)
        cancels = original.state == INICIADA
        if not cancels and (refusal := self._not_admitted(step, terminal, record)):
            return about(original, refusal, trace=m.trace)
        record.original, record.amount = original.reference, original.amount
        record.currency, record.document = original.currency, original.document
        record.business_date = original.business_date
        if cancels:
            self._cancel(step, original)
            self._conclude(step, record, original, "APROBADA")
        elif key := self._annul_refusal(step, terminal, m, record.cashier, original):
            self._conclude(step, record, original, key)
        else:
            record.owed, original.annulment = "annul", record.reference
            self._store(original)
            self._settle(step, record)
        self._store(record)
        self._note_newest(record, step)  # its trace is used up as well (I09)
        if record.owed:
            self._waiting[record.reference] = [(origin, m.trace)]
            step.arm("red", "annul", record.reference, self._config.budgets.red_s)
            return None
        return self._annul_answer(record, m.trace, duplicate=False)

    def _annulment(self, step: Step, terminal: Terminal, m: Annul) -> RedOperation:
        """The annulment as asked for; what is annulled is not yet known. Raises FieldError."""
        cashier = norms.cashier(m.cashier)
        supervisor = norms.supervisor(m.supervisor) if isinstance(m.supervisor, str) else ""
        date = norms.date(m.business_date) if isinstance(m.business_date, str) else ""
        day = self._calendar.local(step.now_ns)
        record = RedOperation(
            reference=f"{terminal.network}{terminal.number}{day.compact}{m.trace:06d}",
            kind="annul",
            network=terminal.network,
            terminal=terminal.number,
            branch=terminal.branch,
            cashier=cashier,
            trace=m.trace,
            amount=0,
            currency="",
            document=("", ""),
            fingerprint=self._fingerprint(
                "annul", cashier, m.original, supervisor, m.supervisor_code, str(date)
            ),
            received_ns=step.now_ns,
            state=NOTHING,
            supervisor=supervisor,
        )
        self._move(record, "started", step)
        return record

    def _repeat_annul(
        self, known: RedOperation, asked: RedOperation, origin: Origin | None
    ) -> Answer | None:
        if known.fingerprint != asked.fingerprint:
            meant = self._meant(known)
            return refused("DUPLICADO_DISTINTO", meant.kind, trace=asked.trace, state=meant.state)
        if known.reference in self._waiting:
            self._waiting[known.reference].append((origin, asked.trace))
            return None
        return self._annul_answer(known, asked.trace, duplicate=True)

    def _cancel(self, step: Step, original: RedOperation) -> None:
        """Cancel at the counter (X014): the request is still on its way."""
        step.disarm("red", "hold", original.reference)
        self._fail(step, original, "ERROR", "cancelled")
        self._settle(step, original)
        self._store(original)
        self._reply_all(step, original)

    def _annul_refusal(
        self, step: Step, terminal: Terminal, m: Annul, cashier: str, original: RedOperation
    ) -> str:
        """Key of what is decided without sicoop, or ''. Raises FieldError."""
        if original.state == ANULADA:
            return "APROBADA"
        if original.state not in (REGISTRADA, ENTREGADA):
            return "NO_ANULABLE"
        if not isinstance(m.supervisor, str):
            raise FieldError("supervisor")
        if not isinstance(m.business_date, str):
            raise FieldError("business_date")
        date = norms.date(m.business_date).isoformat()
        refusal = self._shifts.supervisor_refusal(step, terminal, cashier, m)
        if refusal:
            return refusal
        if date != original.business_date:
            return "OPERACION_NO_VALIDA"
        in_time = may_be_annulled(self._calendar, self._config, original.business_date, step.now_ns)
        return "" if in_time else "FUERA_DE_PLAZO"

    def _conclude(self, step: Step, record: RedOperation, original: RedOperation, key: str) -> None:
        """The outcome of an annulment; the original is changed only for APROBADA."""
        record.code, record.key, record.owed = CODES[key].code, key, ""
        record.registered_ns = step.now_ns
        approved = key == "APROBADA"
        self._move(record, "approved" if approved else "declined", step)
        step.disarm("red", "annul", record.reference)
        step.audit(record.cashier, "annul", original.reference, record.code, key)
        original.annulment = ""
        if approved and original.state in (REGISTRADA, ENTREGADA):
            # Cash that came back is in the till of now, cash that never left in that of then.
            till = record.cashier if original.delivered_ns else original.cashier
            self._shifts.moved(original, till, -1)
            original.annulled_ns, original.supervisor = step.now_ns, record.supervisor
            if original.owed == "confirm":  # there is nothing left to confirm
                original.owed = ""
                step.disarm("red", "owed", original.reference)
            self._move(original, "annulled", step)
        self._store(original)

    def _original(self, record: RedOperation) -> RedOperation:
        original = self._load(record.original)
        assert original is not None, "an annulment keeps the reference of its original"
        return original

    def _meant(self, known: RedOperation) -> RedOperation:
        """The operation whose cash a record is about: of an annulment, what it annuls."""
        return self._original(known) if known.kind == "annul" else known

    def _annul_answer(
        self, record: RedOperation, trace: int | UnsetType, *, duplicate: bool
    ) -> Answer:
        original = self._original(record)
        if record.state == INICIADA:
            return about(original, "EN_PROCESO", trace=trace, duplicate=duplicate)
        if record.key != "APROBADA" or original.state == ERROR:
            return about(original, record.key, trace=trace, duplicate=duplicate)
        return about(
            original,
            "APROBADA",
            trace=trace,
            duplicate=duplicate,
            ticket=self._ticket(original, record, duplicate),
        )

    # ---- questions and marks

    def _delivered(self, step: Step, terminal: Terminal, m: Delivered) -> Answer:
        operation = self._find(terminal, m.original, step.now_ns)
        if operation is None or operation.kind == "annul":
            return _unknown(m.trace, m.original)
        if operation.state == ENTREGADA:
            return about(operation, "APROBADA", trace=m.trace, duplicate=True)
        if operation.state != REGISTRADA or operation.annulment:
            return about(operation, "OPERACION_NO_VALIDA", trace=m.trace)
        operation.delivered_ns = step.now_ns
        self._move(operation, "delivered", step)
        self._store(operation)
        return about(operation, "APROBADA", trace=m.trace)

    def _last_operation(self, step: Step, terminal: Terminal, m: LastOperation) -> Answer:
        """The state of now. By default that of the newest: where that is an annulment, of what it
        annuls, under the annulment's trace, after which a terminal without a counter goes on."""
        if isinstance(m.original, int):
            operation = self._find(terminal, m.original, step.now_ns)
        else:
            newest = self._records.get(ops.RED_NEWEST, terminal.number.encode())
            operation = None if newest is None else self._load(newest.decode())
        if operation is None:
            return _unknown(m.trace, m.original, m.kind)
        trace = operation.trace
        if not isinstance(m.original, int):
            operation = self._meant(operation)
        return self._answer(operation, m.trace, duplicate=True, original=trace)

    def _holder(
        self, step: Step, terminal: Terminal, m: Holder, origin: Origin | None
    ) -> HolderAnswer | None:
        identity = norms.identity(m.document_type, optional(m.document), optional(m.phone))
        if len(self._askers) >= ASKERS_MAX or not step.admitting:  # what cannot be counted neither
            return HolderAnswer("91", m.trace)
        if self.probing.is_locked(step, terminal):
            return HolderAnswer("05", m.trace)  # for the known as well, or it would still tell
        request = NetworkHolder(0, m.document_type, **identity_fields(identity))
        self._asked += 1
        key = f"holder-{self._asked}"
        answer = self._platform.ask(step, terminal.network, request, key=key)
        if answer is None:
            self._askers[key] = (terminal, origin, m.trace)
            step.arm("red", "holder", key, self._config.budgets.red_s)
            return None
        assert isinstance(answer, HolderAnswer)
        return self._told_holder(step, terminal, answer, m.trace)

    def _answer_holder(self, step: Step, key: str, answer: HolderAnswer) -> None:
        """Who the holder is, from another process; after the deadline nobody waits for it."""
        step.disarm("red", "holder", key)
        asker = self._askers.pop(key, None)
        if asker is None:
            return
        terminal, origin, trace = asker
        # Others may have been asked about meanwhile: whoever is told last is told no more than 05.
        locked = self.probing.is_locked(step, terminal)
        told = HolderAnswer("05", trace) if locked else self._told_holder(
            step, terminal, answer, trace
        )  # fmt: skip
        if origin is not None:
            step.reply(origin, told)

    def _told_holder(
        self, step: Step, terminal: Terminal, answer: HolderAnswer, trace: int | UnsetType
    ) -> HolderAnswer:
        if answer.code == CODES["NO_APROBADA"].code:
            self.probing.asked_in_vain(step, terminal)
        return HolderAnswer(answer.code, trace, name=answer.name, cards=answer.cards)

    def _find(self, terminal: Terminal, trace: int, now_ns: int) -> RedOperation | None:
        """The terminal's newest operation with that trace."""
        prefix = terminal.network + terminal.number
        today = self._calendar.local(now_ns)
        for back in range(LOOK_BACK_DAYS):
            date = today.compact if not back else day_date(today.number - back).strftime("%Y%m%d")
            found = self._load(f"{prefix}{date}{trace:06d}")
            if found is not None:
                return found
        return None

    # ---- answers

    def _first_answer(self, operation: RedOperation) -> Answer:
        return self._answer(operation, operation.trace, duplicate=False)

    def _answer(
        self,
        operation: RedOperation,
        trace: int | UnsetType,
        *,
        duplicate: bool,
        original: int | None = None,
    ) -> Answer:
        if operation.kind == "annul":
            return self._annul_answer(operation, trace, duplicate=duplicate)
        undecided = operation.state == INICIADA or operation.annulment
        return about(
            operation,
            "EN_PROCESO" if undecided else operation.key,
            trace=trace,
            duplicate=duplicate,
            later=duplicate,
            original=original,
            ticket=self._ticket(operation, None, duplicate),
        )

    def _reply_all(self, step: Step, operation: RedOperation) -> None:
        """Answer everybody who waits for this operation; the first asker is no duplicate."""
        waiting = self._waiting.pop(operation.reference, [])
        for position, (origin, trace) in enumerate(waiting):
            if origin is not None:
                self._tell_of_maintenance(step, operation, origin)
                step.reply(origin, self._answer(operation, trace, duplicate=position > 0))

    def _tell_of_maintenance(
        self, step: Step, operation: RedOperation, origin: Origin | None
    ) -> None:
        if operation.key == "MANTENIMIENTO" and origin is not None:
            step.reply(origin, _AWAY)

    def _ticket(
        self, operation: RedOperation, annulment: RedOperation | None, duplicate: bool
    ) -> list[str] | None:
        terminal = self._registry.terminal(operation.terminal)
        if terminal is None or not terminal.ticket:
            return None
        if annulment is None and operation.state not in (REGISTRADA, ENTREGADA):
            return self._declined_ticket(operation, duplicate)
        printed = annulment or operation
        state = "REGISTRADA" if annulment is None else "ANULADA"
        hhmmss = self._calendar.local_time(printed.registered_ns)
        date = printed.business_date
        cashier = self._registry.cashier(printed.network, printed.cashier)
        return ticket.compose(
            ticket.TicketData(
                self._heading(operation.terminal, operation.branch),
                operation.kind,  # type: ignore[arg-type]
                date,
                hhmmss,
                printed.cashier,
                printed.trace,
                operation.amount,
                state=state,  # type: ignore[arg-type]
                operation=operation.operation if annulment is None else "",
                authorization=operation.authorization,
                document=operation.document,
                holder=operation.name,
                cashier_name=cashier.name if cashier else "",
                fee=operation.fee,
                currency=operation.currency,
                annuls="" if annulment is None else operation.operation,
                control=ticket.control(
                    self._ticket_key,
                    kind=operation.kind,
                    reference=operation.reference,
                    operation=operation.operation,
                    authorization=operation.authorization,
                    amount=operation.amount,
                    currency=operation.currency,
                    business_date=date,
                    hhmmss=hhmmss,
                    state=state,
                ),
                duplicate=duplicate,
            )
        )

    def _declined_ticket(self, operation: RedOperation, duplicate: bool) -> list[str] | None:
        """Declines print nothing unless configured."""
        if not self._config.red.ticket_declines or operation.state != RECHAZO_REGISTRADO:
            return None
        return ticket.compose(
            ticket.TicketData(
                self._heading(operation.terminal, operation.branch),
                operation.kind,  # type: ignore[arg-type]
                self._calendar.business(operation.received_ns).iso,
                self._calendar.local_time(operation.received_ns),
                operation.cashier,
                operation.trace,
                operation.amount,
                state="RECHAZO_REGISTRADO",
                document=operation.document,
                currency=operation.currency,
                duplicate=duplicate,
            )
        )

    def _make_heading(self, terminal: str, branch: str) -> ticket.Heading:
        red = self._config.red
        return ticket.heading(
            company=red.company, ruc=red.ruc, address=red.address, branch=branch, terminal=terminal
        )

    # ---- pieces

    def _note_newest(self, operation: RedOperation, step: Step) -> None:
        self._records.put(
            ops.RED_NEWEST, operation.terminal.encode(), operation.reference.encode(),
            stamp=step.now_ns,
        )  # fmt: skip

    def _move(self, operation: RedOperation, event: str, step: Step) -> None:
        operation.state = move(RED, operation.state, event)
        operation.history.append((operation.state, step.now_ns))

    def _load(self, reference: str) -> RedOperation | None:
        found = self._table.get(reference.encode())
        if found is not None and found.kind == "annul" and self._load(found.original) is None:
            return None  # forgotten with what it annulled, a moment before its own time
        return found

    def _store(self, operation: RedOperation) -> None:
        self._table.put(operation.reference.encode(), operation, operation.received_ns)


def _debt(operation: RedOperation) -> Confirm | Reverse | AnnulRegistered:
    """The message by which sicoop is asked for what `owed` names."""
    o = operation
    match o.owed:
        case "confirm":
            return Confirm(0, o.reference, "")
        case "reverse":
            return Reverse(0, o.reference, o.amount, o.reason)  # type: ignore[arg-type]
        case _:
            return AnnulRegistered(0, o.original, o.amount, o.supervisor)


def _unknown(trace: int | UnsetType, original: int | UnsetType, kind: str = "cash_out") -> Answer:
    """No such operation: nothing may be handed over, and a deposit goes back to its owner."""
    return Answer(
        CODES["ORIGINAL_NO_ENCONTRADO"].code,
        "ORIGINAL_NO_ENCONTRADO",
        answer_text("ORIGINAL_NO_ENCONTRADO"),
        trace=trace,
        instruction=NO_ENTREGUE if kind == "cash_out" else DEVUELVA,
        state=DESCONOCIDA,
        original=original,
    )


def _is_open(operation: RedOperation) -> bool:
    return bool(operation.owed) or operation.state == INICIADA
