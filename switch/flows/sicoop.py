"""The platform between networks and issuer: one hold per reference, in its own book as well.

    cash_out   Dr issuer   Cr net     the network will be owed the amount
    deposit    Dr net      Cr issuer  the network will owe it; its net debit cap is the limit

Until it has answered (RESPONDIDA) sicoop may release by itself; afterwards only the network's word
decides. A reversal without original leaves a tombstone. Contradictions are never resolved here.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Protocol

import msgspec
from msgspec import UNSET

from core_ext import Batch, Ledger, Records, Result
from core_ext._ledger import DEBITS_MUST_NOT_EXCEED_CREDITS, NO_LIMIT, POSITION
from core_ext.results import Balance
from protocols.codes import CODES
from protocols.messages import (
    AnnulRegistered,
    Confirm,
    Hold,
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
    NetworkAnswer,
    NetworkHolder,
    NetworkRequest,
    Reverse,
    Status,
    StatusAnswer,
)
from switch.calendar import Calendar, day_date, day_number
from switch.config import Config
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.cash_watch import CashWatch
from switch.flows.deadlines import is_stuck, may_be_annulled, retry_after_s
from switch.flows.fingerprint import Fingerprint
from switch.flows.limit_book import LimitBook, ledger_number, meter_id
from switch.flows.network import normalised
from switch.flows.norms import FieldError, parse_reference
from switch.flows.operations import SicoopOperation
from switch.flows.registry import Network, Registry, account_id
from switch.flows.states import (
    CAPTURADA,
    CONCILIADA,
    CONFIRMADA,
    CONFLICTO,
    DESCONOCIDA,
    ENTREGADA,
    ENVIADA,
    ERROR,
    NOTHING,
    RECHAZADA,
    RECHAZO_REGISTRADO,
    RECIBIDA,
    REGISTRADA,
    RESERVADA,
    RESPONDIDA,
    REVERSADA,
    REVERSANDO,
    SICOOP,
    TUMBA,
    VENCIDA,
    move,
)
from switch.flows.step import Origin, Step

BOOK = 2  # of sicoop, within one currency
ACCOUNT_NET = 20
ACCOUNT_ISSUER = 21
ACCOUNT_SETTLEMENT = 22

CEIBO = "ceibo"  # the issuer of this process, as the link to it would be called
ASK_NETWORK = 1
OPERATION_COUNTER = b"operation"
ALARM_PERCENT = (80, 90, 100)
NETWORKS_MAX = 10_000  # their numbers have four digits

_BY_RESULT: dict[Result, str] = {
    Result.LIQUIDITY_SHORT: "LIMITE_RED",
    Result.LIMIT_AMOUNT: "LIMITE_MONTO",
    Result.LIMIT_COUNT: "LIMITE_CANTIDAD",
    Result.OVERLOADED: "EMISOR_NO_DISPONIBLE",
    Result.WOULD_OVERFLOW: "ERROR",
    Result.JOURNAL_FULL: "ERROR",
    Result.FENCED: "ERROR",
}
_OPEN = frozenset((RECIBIDA, ENVIADA, RESERVADA, RESPONDIDA, CONFIRMADA, CONFLICTO))
_SHUT = frozenset((RECHAZADA, VENCIDA, TUMBA, REVERSADA, REVERSANDO))
_UNDONE = frozenset((TUMBA, REVERSADA, REVERSANDO))
_UNANSWERED = frozenset((RECIBIDA, ENVIADA, RESERVADA))
_SETTLED = frozenset((CONFIRMADA, CAPTURADA, CONCILIADA))
_AGAIN = frozenset(("68", "91", "96"))  # answers of an issuer that decide nothing: ask again
_RELEASED = frozenset(("00", "21", "25"))
_TOLD_REASONS = frozenset(("timeout", "registration_failed", "cancelled"))
# What red's word about an operation that it neither confirmed nor reversed comes to (X138).
_PAID_OUT = frozenset((REGISTRADA, ENTREGADA))
_GIVEN_UP = frozenset((ERROR, RECHAZO_REGISTRADO, DESCONOCIDA))
UNCONFIRMED_ALARMS_S = (300, 3600)  # X139: the network is out of reach and nobody confirms
ASKERS_MAX = 4096  # holder questions that wait for an issuer in another process

_About = Hold | Confirm | Reverse | AnnulRegistered | Status  # requests with a reference

Near = Callable[[Step, str, NetworkAnswer | HolderAnswer, str], None]
"""(step, key, answer, what): tell the red of this process an answer that was not ready."""


class Issuer(Protocol):
    """The ways to the issuers, each by the name of its link; "" is the ceibo of this process.

    Attributes:
        closed: maintenance was announced: new operations are refused.
    """

    @property
    def closed(self) -> bool: ...

    def choose(
        self, step: Step, operation: str, network: str, amount: int = 0, currency: str = ""
    ) -> str:
        """The way of a new operation of this kind."""
        ...

    def forwards(self, link: str) -> bool:
        """True: the way itself sends again what is owed until it is answered; else the flow."""
        ...

    def ask(
        self,
        step: Step,
        message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder,
        key: str = "",
        link: str = "",
    ) -> IssuerAnswer | HolderAnswer | None:
        """None: the answer comes later, under the `key` of the question."""
        ...


class Networks(Protocol):
    """The way to networks in other processes, for what sicoop asks by itself."""

    def ask(self, step: Step, network: str, message: Status) -> bool:
        """False: that network cannot be reached now. Answers: `Sicoop.on_network_state`."""
        ...


class Sicoop:
    """sicoop's decisions. `ask` takes a network's request and answers, or None: later.

    Attributes:
        alarmed: by number of network, the step of its net debit cap that the newest deposit
            reached, in percent; the native core reads it as well.
    """

    spaces = (ops.SICOOP_OPERATIONS, ops.SICOOP_BY_OPERATION)
    forwards = False  # as the platform of a red in this process: what is owed it answers at once

    def __init__(
        self,
        *,
        config: Config,
        registry: Registry,
        records: Records,
        ledger: Ledger,
        calendar: Calendar,
        limits: LimitBook,
        fingerprint: Fingerprint,
        issuer: Issuer,
    ) -> None:
        self._config = config
        self._registry = registry
        self._records = records
        self._ledger = ledger
        self._calendar = calendar
        self._limits = limits
        self._fingerprint = fingerprint
        self._issuer = issuer
        self._batch = Batch()
        self._table = ops.Table(records, ops.SICOOP_OPERATIONS, ops.decode_sicoop, _is_open)
        self._nets: dict[str, bytes] = {}
        self._waiting: dict[str, list[tuple[Origin | None, int]]] = {}
        self._near: Near | None = None
        self._networks: Networks | None = None
        self._askers: dict[str, tuple[Origin | None, int, str]] = {}  # of a `holder`, by our key
        self._asked = 0
        self._unconfirmed: dict[str, int] = {}  # seconds of the last alarm, by reference
        self._watch = CashWatch(config.watch)
        self.alarmed = bytearray(NETWORKS_MAX)  # by number: percentage of its cap last reached

    def ask(
        self,
        step: Step,
        network: str,
        message: NetworkRequest,
        origin: Origin | None = None,
        key: str = "",
    ) -> NetworkAnswer | StatusAnswer | HolderAnswer | None:
        """Handle one request of the network whose session it came through.

        With an `origin` it comes from another process: its fields are brought into their normal
        form first, and its clock must agree with ours. Without one, `key` is what the red of this
        process will know a later answer by.
        """
        try:
            if origin is not None:
                message = normalised(message)
            if isinstance(message, NetworkHolder):
                return self._holder(step, network, message, origin, key)
            return self._handle(step, network, message, origin)
        except FieldError as bad:
            reference = getattr(message, "reference", UNSET)
            return NetworkAnswer(message.id, "30", reference, "FORMATO", field=bad.field)

    def flush(self) -> None:
        """Write what this step has changed. The way from a number to its operation lasts as long
        as that is open: an issuer that asks about an old hold is told its state, not that nobody
        knows of it (K08)."""
        for operation in self._table.changed():
            if not operation.held:
                continue
            key, is_open = operation.operation.encode(), _is_open(operation)
            meta = self._records.meta(ops.SICOOP_BY_OPERATION, key)
            if meta is not None and meta[0] != is_open:
                self._records.put(
                    ops.SICOOP_BY_OPERATION, key, operation.reference.encode(), open=is_open,
                    stamp=meta[1],
                )  # fmt: skip
        self._table.flush()

    def _handle(
        self, step: Step, network: str, message: _About, origin: Origin | None
    ) -> NetworkAnswer | StatusAnswer | None:
        if message.reference[:4] != network:
            step.audit(network, "reference", message.reference, "63", "other network", True)
            return NetworkAnswer(message.id, "63", message.reference, "SEGURIDAD")
        match message:
            case Hold() if origin is not None and not self._clock_agrees(step, message):
                step.alarm("clock_of_network", network)
                now = norms.instant_text(step.now_ns // 1_000_000)
                return NetworkAnswer(
                    message.id, "A5", message.reference, "HORA_NO_VALIDA", time=now
                )
            case Hold():
                return self._hold(step, network, message, origin)
            case Confirm():
                return self._confirm(step, message)
            case Reverse():
                return self._reverse(step, message)
            case AnnulRegistered():
                return self._annul(step, message, origin)
            case Status():
                return self._status(message)

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration; what is decided already stays as it is."""
        self._config = config
        self._watch.reconfigure(config.watch)

    def attach(
        self,
        near: Near | None = None,
        *,
        issuer: Issuer | None = None,
        networks: Networks | None = None,
    ) -> None:
        """Make known the red of this process, which asks without an origin; an issuer, and
        networks, in others."""
        self._near = near or self._near
        self._issuer = issuer or self._issuer
        self._networks = networks or self._networks

    @property
    def issuer(self) -> Issuer:
        """The way to ceibo that is in use."""
        return self._issuer

    def reference_of(self, operation: str) -> str | None:
        """Reference of an operation's number, for answers of an issuer in another process."""
        found = self._records.get(ops.SICOOP_BY_OPERATION, operation.encode())
        return None if found is None else found.decode()

    def state_of(self, network: str, operation: str) -> str:
        """State of an operation by its number, for an issuer that asks; "" where it is not known
        under that network."""
        reference = self.reference_of(operation)
        found = None if reference is None else self._load(reference)
        return "" if found is None or found.network != network else found.state

    def debt(self, reference: str) -> IssuerCapture | IssuerRelease | None:
        """What the issuer is still asked for about an operation; None: nothing."""
        operation = self._load(reference)
        return None if operation is None or not operation.owed else _debt(operation)

    def unfinished(self) -> Iterator[SicoopOperation]:
        """What a stop left open, each as it stands when its turn comes."""
        return self._table.open()

    def recover(self, step: Step, operation: SicoopOperation, at_red: str) -> None:
        """Finish one of them. `at_red` is its state in the register of a red in this process.

        Until RESPONDIDA sicoop releases on its own authority; a RESPONDIDA that red registered is
        captured, one that red gave up is released; without a red here it waits, unchanged, and its
        network is asked.
        """
        if operation.state in (RECIBIDA, ENVIADA):
            self._time_out(step, operation)
        elif operation.state == RESERVADA:
            self._undo(step, operation, "timeout")
        elif operation.owed:
            self._pay(step, operation)
        elif operation.state == CONFLICTO:
            return  # two persons decide
        elif operation.state == CONFIRMADA:
            self._owe(step, operation, "capture")
        elif at_red in (REGISTRADA, ENTREGADA):
            self._move(operation, "confirmed", step)
            self._capture_own(step, operation)
            self._owe(step, operation, "capture")
        elif at_red in (ERROR, RECHAZO_REGISTRADO):
            self._undo(step, operation, "registration_failed")
        else:
            if operation.state == RESPONDIDA:
                self._expect_confirmation(step, operation)
            return
        self._store(operation)

    def _clock_agrees(self, step: Step, m: Hold) -> bool:
        off_ms = abs(norms.instant_ms(m.sent_at) - step.now_ns // 1_000_000)
        return off_ms <= self._config.session.clock_tolerance_s * 1000

    # ---- hold

    def _hold(
        self, step: Step, network: str, m: Hold, origin: Origin | None
    ) -> NetworkAnswer | None:
        # A repeat has another id and another moment, whoever sends it.
        bare = m if origin is None else msgspec.structs.replace(m, id=0, sent_at="")
        fingerprint = self._fingerprint(bare)
        known = self._load(m.reference)
        if known is not None:
            return self._repeat(known, m, fingerprint, origin)
        if self._too_old(step, m.reference):
            step.audit(network, "hold", m.reference, "94", "older than the retention", True)
            return NetworkAnswer(m.id, "94", m.reference, "DUPLICADO_DISTINTO")
        if not step.admitting:
            return NetworkAnswer(m.id, "96", m.reference, "ERROR")
        day = self._calendar.business(step.now_ns)
        operation = SicoopOperation(
            reference=m.reference,
            network=network,
            operation="",
            kind=m.kind,
            amount=m.amount,
            currency=m.currency,
            terminal=m.reference[4:12],
            branch=m.branch,
            cashier=m.cashier,
            fingerprint=fingerprint,
            received_ns=step.now_ns,
            business_date=day.iso,
            day=day.number,
            state=NOTHING,
            limits_version=self._limits.version,
        )
        if isinstance(m.depositor, str):
            operation.depositor = m.depositor
        if isinstance(m.declaration, dict):
            operation.declaration = m.declaration
        self._move(operation, "received", step)
        refusal = self._refusal(step, operation, m)
        if refusal:
            return self._declined(step, operation, m.id, refusal)
        return self._forward(step, operation, m, origin)

    def _repeat(
        self, known: SicoopOperation, m: Hold, fingerprint: int, origin: Origin | None
    ) -> NetworkAnswer | None:
        if known.state in _UNDONE:
            return NetworkAnswer(m.id, "21", m.reference, "YA_REVERSADA", duplicate=True)
        if known.fingerprint != fingerprint:
            return NetworkAnswer(m.id, "94", m.reference, "DUPLICADO_DISTINTO")
        if known.state == CONFLICTO:
            return NetworkAnswer(m.id, "A3", m.reference, "CONFLICTO", duplicate=True)
        if known.state in (RECIBIDA, ENVIADA):
            self._wait(m.reference, origin, m.id)
            return None
        return _answer(known, m.id, duplicate=True)

    def _too_old(self, step: Step, reference: str) -> bool:
        """True for a reference whose outcome may be forgotten already: never run as new (I08).

        Raises:
            FieldError: a date that has not come yet.
        """
        today = self._calendar.local(step.now_ns)
        if reference[12:20] == today.compact:
            return False
        number = day_number(norms.date(reference[12:20], "reference"))
        if number > today.number + 1:
            raise FieldError("reference")
        retention_ns = self._config.journal.retention_h * 3_600_000_000_000
        started_ns = self._calendar.instant(number, "00:00")
        return number < today.number - 1 and started_ns < step.now_ns - retention_ns

    def _refusal(self, step: Step, operation: SicoopOperation, m: Hold) -> str:
        """Key of the reason why this hold is not even tried, or ''."""
        if not self._enabled(operation):
            step.audit(operation.network, "hold", m.reference, "58", "disabled", True)
            return "NO_HABILITADO"
        if self._issuer.closed:
            return "MANTENIMIENTO"
        network = self._registry.network(operation.network)
        assert network is not None, "enabled networks exist"
        if network.currency != m.currency:
            return "OPERACION_NO_VALIDA"
        if not self._limits.limits.rule(m.kind).allows(m.amount):
            return "MONTO_NO_VALIDO"
        if m.kind == "deposit":
            if network.net_debit_cap == 0:
                return "LIMITE_RED"
            if self._declaration_missing(step, operation, m):
                return "FALTA_DECLARACION"
        return ""

    def _enabled(self, operation: SicoopOperation) -> bool:
        network = self._registry.network(operation.network)
        terminal = self._registry.terminal(operation.terminal)
        branch = self._registry.branch(operation.network, operation.branch)
        if network is None or network.disabled or branch is None or branch.disabled:
            return False
        if terminal is None or terminal.disabled or terminal.network != operation.network:
            return False
        cashier = self._registry.cashier(operation.network, operation.cashier)
        if cashier is None:
            return self._config.node.cashiers == "open"
        return not cashier.disabled

    def _declaration_missing(self, step: Step, operation: SicoopOperation, m: Hold) -> bool:
        """Cash over a threshold needs its origin declared, sum over the window included (D19).

        Sums that stay just below it are told, or have to be declared as well (D20).
        """
        if isinstance(m.declaration, dict) and m.declaration.get("origin"):
            return False
        counters = {
            scope: meter_id(scope, subject, m.kind)
            for scope, subject, _ in _subjects(operation, m)
            if subject
        }
        counters["network"] = self.net_account(operation.network, m.currency, step.now_ns)
        for rule in self._limits.limits.declarations:
            counter = counters.get(rule.scope)
            if rule.kind != m.kind or counter is None:
                continue
            so_far, count = self._limits.usage(
                counter, rule.scope, m.kind, rule.window, operation.day
            )
            if so_far + m.amount >= rule.threshold:
                return True
            if self._watch.is_structured(so_far, count, m.amount, rule.threshold):
                step.alarm("structuring", operation.reference, f"{count + 1} in a {rule.window}")
                if self._watch.must_declare:
                    return True
        return False

    def _watch_cash(self, step: Step, operation: SicoopOperation, m: Hold) -> None:
        """The same money in and out at one branch within minutes (D22), many persons at one
        terminal, much money at night."""
        persons = self._watch.crowd(m, operation.terminal, step.now_ns)
        if persons:
            step.alarm("many_persons", operation.terminal, f"{persons}, {operation.reference}")
        if self._watch.is_large(m.amount) and self._calendar.is_night(step.now_ns):
            step.alarm("night_use", operation.reference, str(m.amount))
        reference = self._watch.opposite(m, operation.network, step.now_ns)
        other = self._load(reference) if reference else None
        if other is not None and other.state in (RESPONDIDA, *_SETTLED):
            step.alarm("cash_loop", operation.reference, f"after {reference}")

    def _forward(
        self, step: Step, operation: SicoopOperation, m: Hold, origin: Origin | None
    ) -> NetworkAnswer | None:
        operation.operation = self._next_operation(step.now_ns)
        operation.issuer = self._issuer.choose(
            step, m.kind, operation.network, m.amount, m.currency
        )
        result = self._reserve(step, operation, m)
        if result != Result.DONE:
            return self._declined(
                step, operation, m.id, _BY_RESULT.get(Result(result), "NO_APROBADA")
            )
        operation.held = True
        self._watch_cash(step, operation, m)
        self._move(operation, "sent", step)
        self._records.put(
            ops.SICOOP_BY_OPERATION, operation.operation.encode(), m.reference.encode(),
            stamp=step.now_ns,
        )  # fmt: skip
        answer = self._issuer.ask(
            step,
            IssuerHold(
                network=operation.network,
                operation=operation.operation,
                kind=m.kind,
                amount=m.amount,
                currency=m.currency,
                terminal=operation.terminal,
                branch=m.branch,
                cashier=m.cashier,
                day=operation.day,
                document_type=m.document_type,
                document=m.document,
                phone=m.phone,
                token=m.token,
                card=m.card,
                depositor=m.depositor,
            ),
            m.reference,
            operation.issuer,
        )
        if answer is None:
            self._wait(m.reference, origin, m.id)
            self._store(operation)
            step.arm("sicoop", "hold", m.reference, self._config.budgets.sicoop_s)
            return None
        assert isinstance(answer, IssuerAnswer)
        return self._decide(step, operation, m.id, answer, far=origin is not None)

    def _reserve(self, step: Step, operation: SicoopOperation, m: Hold) -> int:
        net = self.net_account(operation.network, m.currency, step.now_ns)
        issuer = self._issuer_account(operation, step.now_ns)
        debit, credit = (issuer, net) if m.kind == "cash_out" else (net, issuer)
        meters = self._meters(operation, m)
        if meters is None:
            return Result.OVERLOADED
        batch = self._batch
        batch.clear()
        batch.hold(
            _hold_id(operation.operation), debit, credit, m.amount, day=operation.day,
            night=self._limits.is_night(step.now_ns), policy=ASK_NETWORK, meters=meters,
            meter_credit=m.kind == "deposit",
        )  # fmt: skip
        result = self._ledger.apply(batch, step.now_ns)[0]
        if m.kind == "deposit":
            self._watch_cap(step, operation.network, net)
        return result

    def _meters(self, operation: SicoopOperation, m: Hold) -> tuple[bytes, ...] | None:
        if not self._limits.counts(m.kind):
            return ()
        return self._limits.meters(*_subjects(operation, m), kind=m.kind)

    def on_issuer_answer(
        self, step: Step, reference: str, answer: IssuerAnswer, what: str = "hold"
    ) -> None:
        """An answer of an issuer in another process, to a `hold` or to what was owed to it.

        That of a hold counts for nothing after the deadline.
        """
        operation = self._load(reference)
        if operation is None or (what == "hold" and operation.state != ENVIADA):
            step.alarm("late_answer", reference)
            return
        if what == "hold":
            step.disarm("sicoop", "hold", reference)
            first = self._waiting.get(reference, [(None, 0)])[0]
            self._decide(step, operation, 0, answer, far=first[0] is not None)
            self._tell_waiting(step, operation)
        elif operation.owed == what:
            self._paid(step, operation, answer)
            self._store(operation)

    def on_deadline(self, step: Step, kind: str, reference: str) -> None:
        """The issuer did not answer in time: refuse and undo a hold, send again what is owed. Or
        the network did not confirm: ask it."""
        if kind == "holder":
            self.on_holder_answer(step, reference, HolderAnswer("91"))
            return
        operation = self._load(reference)
        if operation is None:
            return
        if kind == "owed" and operation.owed:
            self._pay(step, operation)
            self._store(operation)
        elif kind == "hold" and operation.state == ENVIADA:
            step.disarm("sicoop", "hold", reference)
            self._time_out(step, operation)
            self._store(operation)
            self._tell_waiting(step, operation)
        elif kind == "confirm" and operation.state == RESPONDIDA:
            self._ask_network(step, operation)

    def _time_out(self, step: Step, operation: SicoopOperation) -> None:
        """No answer: the network gets a decline, and the issuer a release in any case."""
        operation.code, operation.key = "91", "EMISOR_NO_DISPONIBLE"
        operation.reason = "timeout"
        self._move(operation, "timed_out", step)
        self._release_own(step, operation)
        if operation.operation:
            self._owe(step, operation, "release")

    def _wait(self, reference: str, origin: Origin | None, request: int) -> None:
        self._waiting.setdefault(reference, []).append((origin, request))

    def _tell_waiting(self, step: Step, operation: SicoopOperation, what: str = "hold") -> None:
        """Answer everybody who asked for this operation; the first asker is no duplicate."""
        waiting = self._waiting.pop(operation.reference, ())
        for position, (origin, request) in enumerate(waiting):
            if what == "hold":
                answer = _answer(operation, request, duplicate=position > 0)
            else:
                key = "APROBADA" if operation.annulled else "NO_ANULABLE"
                answer = NetworkAnswer(request, CODES[key].code, operation.reference, key)
            if origin is not None:
                step.reply(origin, answer)
            elif self._near is not None:
                self._near(step, operation.reference, answer, what)

    def _decide(
        self,
        step: Step,
        operation: SicoopOperation,
        request: int,
        answer: IssuerAnswer,
        *,
        far: bool,
    ) -> NetworkAnswer:
        operation.code, operation.key = answer.code, answer.key
        operation.name = answer.name
        if answer.code != "00":
            self._release_own(step, operation)
            self._move(operation, "declined", step)
        else:
            operation.authorization = answer.authorization
            operation.fee, operation.commission = answer.fee, answer.commission
            self._move(operation, "approved", step)
            self._move(operation, "answered", step)
            if far:
                self._expect_confirmation(step, operation)
        self._store(operation)
        return _answer(operation, request)

    def _declined(
        self, step: Step, operation: SicoopOperation, request: int, key: str
    ) -> NetworkAnswer:
        operation.key = key
        operation.code = CODES[key].code
        if key == "LIMITE_RED":
            step.alarm("network_cap", operation.network, operation.kind)
        self._move(operation, "declined", step)
        self._store(operation)
        return _answer(operation, request)

    # ---- what follows the answer

    def _confirm(self, step: Step, m: Confirm) -> NetworkAnswer:
        operation = self._load(m.reference)
        if operation is None:
            return _plain(m, "ORIGINAL_NO_ENCONTRADO")
        if operation.state in _SETTLED:
            return _answer(operation, m.id, duplicate=True)
        if operation.annulled:  # the annulment has overtaken it: there is nothing left to capture
            return _plain(m, "APROBADA", duplicate=True)
        if operation.state == CONFLICTO:
            return _plain(m, "CONFLICTO")
        if operation.state in _UNANSWERED:  # its network cannot know what it confirms
            step.alarm("confirmed_unanswered", m.reference)
            return _plain(m, "EN_PROCESO")
        if operation.state != RESPONDIDA:
            return self._contradiction(step, operation, m, "confirm")
        step.disarm("sicoop", "confirm", m.reference)
        self._confirmed(step, operation)
        return _answer(operation, m.id)

    def _confirmed(self, step: Step, operation: SicoopOperation) -> None:
        self._move(operation, "confirmed", step)
        self._capture_own(step, operation)
        if operation.owed != "annul":
            self._owe(step, operation, "capture")
        self._store(operation)

    # ---- a network that neither confirms nor reverses (T_CONFIRM; X118, X138, X139)

    def _expect_confirmation(self, step: Step, operation: SicoopOperation) -> None:
        step.arm("sicoop", "confirm", operation.reference, self._config.budgets.confirm_s)

    def _ask_network(self, step: Step, operation: SicoopOperation) -> None:
        """Ask for the state in its register, again and again; the hold is kept meanwhile."""
        age_s = (step.now_ns - operation.history[-1][1]) // 1_000_000_000
        told_s = self._unconfirmed.get(operation.reference, 0)
        for alarm_s in UNCONFIRMED_ALARMS_S:
            if told_s < alarm_s <= age_s:
                step.alarm("unconfirmed", operation.reference, f"for {alarm_s} s")
                self._unconfirmed[operation.reference] = alarm_s
        if self._networks is not None:
            self._networks.ask(step, operation.network, Status(0, operation.reference))
        self._expect_confirmation(step, operation)

    def on_network_state(self, step: Step, network: str, reference: str, state: str) -> None:
        """The network's word about an operation that it was asked for: it is the authority."""
        operation = self._load(reference)
        if operation is None or operation.state != RESPONDIDA or operation.network != network:
            return
        if state in _PAID_OUT:
            step.disarm("sicoop", "confirm", reference)
            self._confirmed(step, operation)
        elif state in _GIVEN_UP:
            self._undo(step, operation, "registration_failed")
            self._store(operation)

    # ---- what is owed to the issuer: sent again until it has answered

    def _owe(self, step: Step, operation: SicoopOperation, what: str) -> None:
        operation.owed, operation.attempts = what, 0
        self._pay(step, operation)

    def _pay(self, step: Step, operation: SicoopOperation) -> None:
        debt = _debt(operation)
        answer = self._issuer.ask(step, debt, operation.reference, operation.issuer)
        if answer is None:
            self._again(step, operation)
        else:
            assert isinstance(answer, IssuerAnswer)
            self._paid(step, operation, answer)

    def _again(self, step: Step, operation: SicoopOperation) -> None:
        if self._issuer.forwards(operation.issuer):
            return
        operation.attempts += 1
        if is_stuck(operation.attempts):
            step.alarm("owed_stuck", operation.reference, operation.owed)
        step.arm("sicoop", "owed", operation.reference, retry_after_s(operation.attempts))

    def _paid(self, step: Step, operation: SicoopOperation, answer: IssuerAnswer) -> None:
        """Take the issuer's answer to what is owed."""
        if answer.code in _AGAIN:
            self._again(step, operation)
            return
        if operation.attempts:
            step.disarm("sicoop", "owed", operation.reference)
        what, operation.owed = operation.owed, ""
        match what:
            case "capture" if answer.code == "00":
                self._captured(step, operation)
            case "annul":
                self._annul_decided(step, operation, answer)
            case "release":
                if operation.state == REVERSANDO:
                    self._move(operation, "released", step)
                if answer.code not in _RELEASED:
                    step.alarm("release_refused", operation.operation, answer.code)
            case _:
                step.alarm("capture_refused", operation.operation, answer.code)

    def _undo(self, step: Step, operation: SicoopOperation, reason: str) -> None:
        """Reverse a hold: our own book at once, the issuer's as soon as it can be told."""
        operation.reason = reason
        if operation.state == RESPONDIDA:
            step.disarm("sicoop", "confirm", operation.reference)
        self._move(operation, "reversed", step)
        self._release_own(step, operation)
        self._owe(step, operation, "release")

    def _reverse(self, step: Step, m: Reverse) -> NetworkAnswer:
        operation = self._load(m.reference)
        if operation is None:
            return self._entomb(step, m)
        if operation.amount != m.amount:
            step.alarm("reversal_amount_differs", m.reference)
            return _plain(m, "DUPLICADO_DISTINTO")
        if operation.state in _SETTLED:
            return self._contradiction(step, operation, m, "reverse")
        if operation.state == CONFLICTO:
            return _plain(m, "CONFLICTO")
        if operation.state in _SHUT:
            return _plain(m, "YA_REVERSADA")
        if operation.state == ENVIADA:
            step.disarm("sicoop", "hold", m.reference)
            self._waiting.pop(m.reference, None)  # the original's answer is suppressed
        self._undo(step, operation, m.reason)
        self._store(operation)
        return _plain(m, "APROBADA")

    def _annul(self, step: Step, m: AnnulRegistered, origin: Origin | None) -> NetworkAnswer | None:
        operation = self._load(m.reference)
        if operation is None:
            step.audit(m.reference[:4], "annul", m.reference, "25", "unknown", True)
            return _plain(m, "ORIGINAL_NO_ENCONTRADO")
        if operation.annulled:
            return _plain(m, "APROBADA", duplicate=True)
        if operation.owed != "annul":
            refusal = self._annul_refusal(step, operation, m)
            if refusal:
                step.audit(m.supervisor, "annul", m.reference, CODES[refusal].code, refusal)
                return _plain(m, refusal)
            self._owe(step, operation, "annul")
            self._store(operation)
        if operation.owed == "annul":
            self._wait(m.reference, origin, m.id)
            return None
        return _plain(m, "APROBADA" if operation.annulled else "NO_ANULABLE")

    def _annul_refusal(self, step: Step, operation: SicoopOperation, m: AnnulRegistered) -> str:
        """Key of the reason why this operation cannot be annulled any more, or ''."""
        if operation.amount != m.amount:
            return "NO_ANULABLE"
        if operation.state == CONFLICTO:
            return "CONFLICTO"
        if operation.state not in (RESPONDIDA, CONFIRMADA, CAPTURADA, CONCILIADA):
            return "NO_ANULABLE"
        if any(state == CONFLICTO for state, _ in operation.history):
            return "NO_ANULABLE"  # people have settled it
        in_time = may_be_annulled(
            self._calendar, self._config, operation.business_date, step.now_ns
        )
        if operation.state == CONCILIADA or not in_time:
            return "FUERA_DE_PLAZO"
        return ""

    def _annul_decided(self, step: Step, operation: SicoopOperation, answer: IssuerAnswer) -> None:
        """The issuer has undone it, or cannot: then it stays as it was, for people to settle."""
        if operation.annulled:
            pass  # only the issuer had missed it
        elif answer.code in ("00", "21"):
            self._compensate_own(step, operation)
            operation.annulled = True
            self._move(operation, "annulled", step)
        else:
            step.alarm("dispute", operation.reference, f"annulment refused with {answer.code}")
            if operation.state == CONFIRMADA:
                self._owe(step, operation, "capture")
        self._tell_waiting(step, operation, "annul")

    def _contradiction(
        self, step: Step, operation: SicoopOperation, m: Confirm | Reverse, what: str
    ) -> NetworkAnswer:
        step.alarm("conflict", operation.reference, f"{what} in {operation.state}")
        if not operation.owed:  # a release that is still owed goes out again as it went out before
            operation.reason = what
        self._move(operation, "contradicted", step)
        self._store(operation)
        return _plain(m, "CONFLICTO")

    def _entomb(self, step: Step, m: Reverse) -> NetworkAnswer:
        parts = parse_reference(m.reference)
        terminal = self._registry.terminal(parts.terminal)
        if terminal is None or terminal.network != parts.network:
            step.audit(parts.network, "reverse", m.reference, "25", "not its terminal", True)
        tomb = SicoopOperation(
            m.reference, parts.network, "", "cash_out", m.amount, "", parts.terminal, "", "", 0,
            step.now_ns, "", 0, NOTHING, code="25", key="ORIGINAL_NO_ENCONTRADO", reason=m.reason,
        )  # fmt: skip
        self._move(tomb, "reversed", step)
        self._store(tomb)
        return _plain(m, "ORIGINAL_NO_ENCONTRADO")

    # ---- the word of a daily file, and of two persons

    def find(self, reference: str) -> SicoopOperation | None:
        """An operation as it stands, to be read only."""
        return self._load(reference)

    def decide(self, step: Step, reference: str, outcome: str) -> str:
        """Decide an operation that its network neither confirmed nor reversed: `capture`,
        `release` or `annul`. Any other stays as it is. Returns the state it has now."""
        operation = self._load(reference)
        assert operation is not None, "the caller has looked"
        if operation.state == RESPONDIDA:
            if outcome == "capture":
                step.disarm("sicoop", "confirm", reference)
                self._confirmed(step, operation)
            elif outcome == "release":
                self._undo(step, operation, "registration_failed")
            elif operation.owed != "annul":
                self._owe(step, operation, "annul")
            self._store(operation)
        return operation.state

    def conciliate(self, step: Step, reference: str) -> str:
        """red's file and this one agree about an operation. Returns the state it has now."""
        operation = self._load(reference)
        assert operation is not None, "the caller has looked"
        if operation.state == CAPTURADA and not operation.owed:
            self._move(operation, "conciliated", step)
            self._store(operation)
        return operation.state

    def resend(self, step: Step, reference: str, what: str) -> str:
        """Ask the issuer for something once more, as its books do not show it."""
        operation = self._load(reference)
        assert operation is not None, "the caller has looked"
        if not operation.owed:
            self._owe(step, operation, what)
            self._store(operation)
        return operation.state

    def is_posted(self, operation: SicoopOperation) -> bool | None:
        """True: captured in our own book; False: undone there; None: it is forgotten or never was.

        For operations in conflict, whose state no longer tells.
        """
        hold = self._ledger.hold(_hold_id(operation.operation)) if operation.operation else None
        if hold is None or not operation.held:
            return None
        return {"captured": True, "released": False, "annulled": False}.get(hold.state)

    def resolve(self, step: Step, reference: str, outcome: str) -> str:
        """Two persons have decided about a contradiction. Returns the state it has now.

        Args:
            outcome: `uphold` what is posted, `leave` what is undone, `annul` what is posted,
                `capture` what is undone; the last two once the issuer has agreed.
        """
        operation = self._load(reference)
        assert operation is not None, "the caller has looked"
        if operation.state != CONFLICTO:
            if not operation.owed:
                operation.reason = "resolved"
            self._move(operation, "contradicted", step)
        if outcome in ("uphold", "leave"):
            self._move(operation, "upheld" if outcome == "uphold" else "left", step)
        else:
            self._owe(step, operation, outcome)
        self._store(operation)
        return operation.state

    def _captured(self, step: Step, operation: SicoopOperation) -> None:
        if operation.state == CONFLICTO:
            if self.is_posted(operation):  # only the issuer was behind: people have yet to decide
                return
            self._capture_anew(step, operation)
        if operation.state in (CONFIRMADA, CONFLICTO):
            self._move(operation, "captured", step)

    def _capture_anew(self, step: Step, operation: SicoopOperation) -> None:
        """Post what was undone: the cash had moved after all."""
        net = self.net_account(operation.network, operation.currency, step.now_ns)
        issuer = self._issuer_account(operation, step.now_ns)
        debit, credit = (issuer, net) if operation.kind == "cash_out" else (net, issuer)
        batch = self._batch
        batch.clear()
        batch.capture(
            _hold_id(operation.operation), operation.amount, forced=True, debit=debit, credit=credit
        )
        self._commission(batch, step, operation)
        operation.annulled = False
        self._apply(step, "capture")

    def _status(self, m: Status) -> StatusAnswer:
        operation = self._load(m.reference)
        if operation is None:
            return StatusAnswer(m.id, DESCONOCIDA, m.reference)
        if not operation.code:
            return StatusAnswer(m.id, operation.state, m.reference)
        return StatusAnswer(m.id, operation.state, m.reference, operation.code)

    def _holder(
        self, step: Step, network: str, m: NetworkHolder, origin: Origin | None, near_key: str
    ) -> HolderAnswer | None:
        if len(self._askers) >= ASKERS_MAX:
            return HolderAnswer("91", id=m.id)
        self._asked += 1
        key = f"holder-{self._asked}"
        asked = IssuerHolder(m.document_type, m.document, m.phone, network)
        link = self._issuer.choose(step, "holder", network)
        answer = self._issuer.ask(step, asked, key, link)
        if isinstance(answer, HolderAnswer):
            return msgspec.structs.replace(answer, id=m.id)
        self._askers[key] = (origin, m.id, near_key)
        step.arm("sicoop", "holder", key, self._config.budgets.sicoop_s)
        return None

    def on_holder_answer(self, step: Step, key: str, answer: HolderAnswer) -> None:
        """An issuer in another process has said who the holder is; after its deadline nobody
        waits for that any more."""
        origin, request, near_key = self._askers.pop(key, (None, 0, ""))
        step.disarm("sicoop", "holder", key)
        answer = msgspec.structs.replace(answer, id=request)
        if origin is not None:
            step.reply(origin, answer)
        elif self._near is not None and near_key:
            self._near(step, near_key, answer, "holder")

    # ---- the book of sicoop

    def net_account(self, network: str, currency: str, now_ns: int) -> bytes:
        """Position of a network; its credit limit is the net debit cap. Made on first use."""
        account = self._nets.get(network + currency)
        if account is None:
            account = account_id(f"sicoop:{currency}:net:{network}")
            if self._ledger.balance(account) is None:
                self.set_caps(self._registry.network(network), currency, now_ns)
            self._nets[network + currency] = account
        return account

    def position(self, network: Network) -> Balance | None:
        """The network's position account as it stands; None before its first use."""
        return self._ledger.balance(account_id(f"sicoop:{network.currency}:net:{network.number}"))

    def set_caps(self, network: Network | None, currency: str, now_ns: int) -> None:
        """Make the position account of a network, or bring its caps to what the registry says."""
        assert network is not None, "holds are made for known networks only"
        account = account_id(f"sicoop:{currency}:net:{network.number}")
        batch = Batch()
        if self._ledger.balance(account) is None:
            batch.create_account(
                account, ledger=ledger_number(currency, BOOK), code=ACCOUNT_NET,
                flags=DEBITS_MUST_NOT_EXCEED_CREDITS | POSITION,
                credit_limit=network.net_debit_cap,
            )  # fmt: skip
        batch.set_limits(
            account,
            credit_limit=network.net_debit_cap,
            max_balance=network.payable_cap or NO_LIMIT,
            profile=self._limits.profile("network"),
        )
        results = self._ledger.apply(batch, now_ns)
        assert all(r == Result.DONE for r in results), f"caps refused: {results}"

    def _issuer_account(self, operation: SicoopOperation, now_ns: int) -> bytes:
        currency, issuer = operation.currency, operation.issuer or CEIBO
        return self._limits.account(
            f"sicoop:{currency}:issuer:{issuer}", currency, BOOK, ACCOUNT_ISSUER, now_ns
        )

    def _watch_cap(self, step: Step, network: str, account: bytes) -> None:
        """Alarm once each time the position crosses 80, 90 and 100 % of its cap."""
        balance = self._ledger.balance(account)
        if balance is None or balance.credit_limit <= 0:
            return
        used = balance.debits_posted - balance.credits_posted + balance.debits_pending
        percent = used * 100 // balance.credit_limit
        reached = max((p for p in ALARM_PERCENT if percent >= p), default=0)
        if reached > self.alarmed[int(network)]:
            step.alarm("position", network, f"{reached} % of the net debit cap")
        self.alarmed[int(network)] = reached

    def _capture_own(self, step: Step, operation: SicoopOperation) -> None:
        batch = self._batch
        batch.clear()
        batch.capture(_hold_id(operation.operation))
        self._commission(batch, step, operation)
        self._apply(step, "capture")

    def _release_own(self, step: Step, operation: SicoopOperation) -> None:
        if not operation.held:
            return
        self._batch.clear()
        self._batch.release(_hold_id(operation.operation))
        self._apply(step, "release")

    def _compensate_own(self, step: Step, operation: SicoopOperation) -> None:
        """Undo in our own book. What comes back from a network is owed, whatever its cap."""
        batch = self._batch
        batch.clear()
        commission = operation.commission if operation.state != RESPONDIDA else 0
        missing, cap = 0, 0
        if operation.kind == "cash_out" and operation.state != RESPONDIDA:
            net = self.net_account(operation.network, operation.currency, step.now_ns)
            balance = self._ledger.balance(net)
            assert balance is not None, "the position of a network that has operations"
            cap = balance.credit_limit
            missing = operation.amount + commission - balance.available
        if missing > 0:
            batch.set_limits(net, credit_limit=cap + missing, linked=True)
        batch.annul(_hold_id(operation.operation), linked=missing > 0 or commission > 0)
        if commission:
            self._commission(batch, step, operation, back=True, linked=missing > 0)
        if missing > 0:
            batch.set_limits(net, credit_limit=cap)
        self._apply(step, "annulment")

    def _commission(
        self, batch: Batch, step: Step, operation: SicoopOperation, back: bool = False,
        linked: bool = False,
    ) -> None:  # fmt: skip
        if operation.commission:
            issuer = self._issuer_account(operation, step.now_ns)
            net = self.net_account(operation.network, operation.currency, step.now_ns)
            debit, credit = (net, issuer) if back else (issuer, net)
            batch.transfer(debit, credit, operation.commission, linked=linked)

    def _apply(self, step: Step, what: str) -> None:
        results = self._ledger.apply(self._batch, step.now_ns)
        assert not any(results), f"{what} refused by our own book: {results}"

    # ---- pieces

    def _next_operation(self, now_ns: int) -> str:
        """Twelve digits that only grow, also when clocks step back: YY DDD and a running number.

        The record is the only counter there is, as the native core counts by it as well.
        """
        found = self._records.get(ops.META, OPERATION_COUNTER)
        last = 0 if found is None else int(found)
        number = max(last + 1, first_operation(self._calendar.business(now_ns).number))
        self._records.put(ops.META, OPERATION_COUNTER, b"%012d" % number)
        return f"{number:012d}"

    def _move(self, operation: SicoopOperation, event: str, step: Step) -> None:
        operation.state = move(SICOOP, operation.state, event)
        self._unconfirmed.pop(operation.reference, None)
        operation.history.append((operation.state, step.now_ns))

    def _load(self, reference: str) -> SicoopOperation | None:
        return self._table.get(reference.encode())

    def _store(self, operation: SicoopOperation) -> None:
        self._table.put(operation.reference.encode(), operation, operation.received_ns)


@lru_cache(maxsize=8)
def first_operation(day: int) -> int:
    """Lowest number of an operation of a business date: YY DDD and 1."""
    date = day_date(day)
    return (date.year % 100 * 1000 + date.timetuple().tm_yday) * 10_000_000 + 1


def _is_open(operation: SicoopOperation) -> bool:
    return bool(operation.owed) or operation.state in _OPEN


def _subjects(operation: SicoopOperation, m: Hold) -> tuple[tuple[str, str, str], ...]:
    """Whom limits and thresholds count here: (scope, id, tier), four at most.

    Cards and persons are ceibo's; a network is counted on its position account.
    """
    depositor = ""
    if m.kind == "deposit":
        own = f"{m.document_type}{m.document}" if isinstance(m.document, str) else f"TEL{m.phone}"
        depositor = operation.depositor or own
    return (
        ("terminal", operation.terminal, ""),
        ("cashier", operation.network + operation.cashier, ""),
        ("branch", operation.network + operation.branch, ""),
        ("depositor", depositor, ""),
    )


def _answer(operation: SicoopOperation, request: int, duplicate: bool = False) -> NetworkAnswer:
    if operation.code != "00":
        return NetworkAnswer(
            request, operation.code, operation.reference, operation.key,
            operation=operation.operation or UNSET, business_date=operation.business_date,
            duplicate=duplicate,
        )  # fmt: skip
    return NetworkAnswer(
        request, operation.code, operation.reference, operation.key, operation.operation,
        operation.authorization, operation.business_date, operation.fee, operation.commission,
        duplicate, operation.name or UNSET,
    )  # fmt: skip


def _debt(operation: SicoopOperation) -> IssuerCapture | IssuerRelease:
    """The message by which the issuer is asked for what `owed` names."""
    o = operation
    if o.owed == "capture":
        return IssuerCapture(o.network, o.operation, o.kind, o.amount, o.currency)
    # A contradiction is a reason that no issuer knows.
    reason = o.reason if o.reason in _TOLD_REASONS else ""
    if o.owed == "annul":
        reason = "annulment"
    return IssuerRelease(o.network, o.operation, o.kind, o.amount, reason, o.currency)


def _plain(
    m: Confirm | Reverse | AnnulRegistered, key: str, duplicate: bool = False
) -> NetworkAnswer:
    return NetworkAnswer(m.id, CODES[key].code, m.reference, key, duplicate=duplicate)


def _hold_id(operation: str) -> bytes:
    """Ids of sicoop's own holds end in letters, so that they never meet those of an issuer."""
    return operation.encode() + b"SICO"
