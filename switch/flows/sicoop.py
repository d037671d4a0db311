"""The platform between networks and issuer: one hold per reference, in its own book as well.

    cash_out   Dr issuer   Cr net     the network will be owed the amount
    deposit    Dr net      Cr issuer  the network will owe it; its net debit cap is the limit

Until it has answered (RESPONDIDA) sicoop may release by itself; afterwards only the network's word
decides. A reversal without original leaves a tombstone. Contradictions are never resolved here.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from core_ext import Batch, Ledger, Records, Result
from core_ext._ledger import DEBITS_MUST_NOT_EXCEED_CREDITS, NO_LIMIT, POSITION, Balance
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
from switch.calendar import Calendar, day_date
from switch.config import Config
from switch.flows import operations as ops
from switch.flows.fingerprint import Fingerprint
from switch.flows.limit_book import LimitBook, ledger_number
from switch.flows.norms import parse_reference
from switch.flows.operations import SicoopOperation
from switch.flows.registry import Network, Registry, account_id
from switch.flows.states import (
    CAPTURADA,
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

ASK_NETWORK = 1
OPERATION_COUNTER = b"operation"
ALARM_PERCENT = (80, 90, 100)

_BY_RESULT: dict[Result, str] = {
    Result.LIQUIDITY_SHORT: "LIMITE_RED",
    Result.LIMIT_AMOUNT: "LIMITE_MONTO",
    Result.LIMIT_COUNT: "LIMITE_CANTIDAD",
    Result.OVERLOADED: "EMISOR_NO_DISPONIBLE",
    Result.WOULD_OVERFLOW: "ERROR",
    Result.JOURNAL_FULL: "ERROR",
    Result.FENCED: "ERROR",
}
_OPEN = frozenset((RECIBIDA, ENVIADA, RESERVADA, RESPONDIDA, CONFIRMADA))
_SHUT = frozenset((RECHAZADA, VENCIDA, TUMBA, REVERSADA, REVERSANDO))


class Issuer(Protocol):
    """The way to ceibo. None: the answer comes later, through `Sicoop.on_issuer_answer`."""

    def ask(
        self, step: Step, message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder
    ) -> IssuerAnswer | HolderAnswer | None: ...


class Sicoop:
    """sicoop's decisions. `ask` takes a network's request and answers, or None: later."""

    spaces = (ops.SICOOP_OPERATIONS, ops.SICOOP_BY_OPERATION)

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
        self.flush = self._table.flush
        self._last_operation = 0
        self._nets: dict[str, bytes] = {}
        self._waiting: dict[str, tuple[Origin | None, int]] = {}
        self._alarmed: dict[str, int] = {}  # network -> highest percentage already told

    def ask(
        self, step: Step, network: str, message: NetworkRequest, origin: Origin | None = None
    ) -> NetworkAnswer | StatusAnswer | HolderAnswer | None:
        """Handle one request of the network whose session it came through."""
        if isinstance(message, NetworkHolder):
            return self._holder(step, message)
        if message.reference[:4] != network:
            step.audit(network, "reference", message.reference, "63", "other network", True)
            return NetworkAnswer(message.id, "63", message.reference, "SEGURIDAD")
        match message:
            case Hold():
                return self._hold(step, network, message, origin)
            case Confirm():
                return self._confirm(step, message)
            case Reverse():
                return self._reverse(step, message)
            case AnnulRegistered():
                return self._annul(step, message)
            case Status():
                return self._status(message)

    def recover(self, step: Step, state_at_red: Callable[[str], str]) -> None:
        """Finish what a stop left open. `state_at_red` asks the register of a red in this process.

        Until RESPONDIDA sicoop releases on its own authority; a RESPONDIDA that red registered is
        captured, one that red does not know is released; without a red here it waits.
        """
        for operation in self._table.open():
            if operation.state in (RECIBIDA, ENVIADA, RESERVADA):
                self._move(operation, "reversed", step)
                self._release_own(step, operation)
                self._release_issuer(step, operation, "timeout")
                self._move(operation, "released", step)
            elif operation.state == CONFIRMADA:
                self._ask_capture(step, operation)
            elif operation.state == RESPONDIDA:
                self._recover_answered(step, operation, state_at_red(operation.reference))
            elif operation.owed == "release":
                self._release_issuer(step, operation, operation.reason or "timeout")
            self._store(operation)

    def _recover_answered(self, step: Step, operation: SicoopOperation, at_red: str) -> None:
        if at_red in (REGISTRADA, ENTREGADA):
            self._move(operation, "confirmed", step)
            self._capture_own(step, operation)
            self._ask_capture(step, operation)
        elif at_red in (ERROR, RECHAZO_REGISTRADO):
            self._move(operation, "reversed", step)
            self._release_own(step, operation)
            self._release_issuer(step, operation, "registration_failed")
            self._move(operation, "released", step)

    # ---- hold

    def _hold(
        self, step: Step, network: str, m: Hold, origin: Origin | None
    ) -> NetworkAnswer | None:
        fingerprint = self._fingerprint(
            m.kind, m.branch, m.cashier, m.document_type, m.document, m.phone, m.token, m.card,
            m.depositor, m.declaration, m.amount, m.currency,
        )  # fmt: skip
        known = self._load(m.reference)
        if known is not None:
            return self._repeat(known, m, fingerprint, origin)
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
        if known.state == TUMBA:
            return NetworkAnswer(m.id, "21", m.reference, "YA_REVERSADA", duplicate=True)
        if known.fingerprint != fingerprint:
            return NetworkAnswer(m.id, "94", m.reference, "DUPLICADO_DISTINTO")
        if known.state in (RECIBIDA, ENVIADA):
            # The first is still under way: its answer goes to whoever asked last.
            self._waiting[m.reference] = (origin, m.id)
            return None
        return _answer(known, m.id, duplicate=True)

    def _refusal(self, step: Step, operation: SicoopOperation, m: Hold) -> str:
        """Key of the reason why this hold is not even tried, or ''."""
        if not self._enabled(operation):
            step.audit(operation.network, "hold", m.reference, "58", "disabled", True)
            return "NO_HABILITADO"
        network = self._registry.network(operation.network)
        assert network is not None, "enabled networks exist"
        if network.currency != m.currency:
            return "OPERACION_NO_VALIDA"
        if not self._limits.limits.rule(m.kind).allows(m.amount):
            return "MONTO_NO_VALIDO"
        if m.kind == "deposit":
            if network.net_debit_cap == 0:
                return "LIMITE_RED"
            if self._declaration_missing(operation, m):
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

    def _declaration_missing(self, operation: SicoopOperation, m: Hold) -> bool:
        """Cash over a threshold needs its origin declared, sum over the window included (D19)."""
        if isinstance(m.declaration, dict) and m.declaration.get("origin"):
            return False
        subjects = {scope: subject for scope, subject, _ in _subjects(operation, m)}
        for rule in self._limits.limits.declarations:
            subject = subjects.get(rule.scope, "")
            if rule.kind != m.kind or not subject:
                continue
            so_far = 0
            if rule.window != "operation":
                so_far = self._limits.usage(
                    rule.scope, subject, m.kind, rule.window, operation.day
                )
            if so_far + m.amount >= rule.threshold:
                return True
        return False

    def _forward(
        self, step: Step, operation: SicoopOperation, m: Hold, origin: Origin | None
    ) -> NetworkAnswer | None:
        operation.operation = self._next_operation(step.now_ns)
        result = self._reserve(step, operation, m)
        if result != Result.DONE:
            if result == Result.LIQUIDITY_SHORT:
                step.alarm("network_cap", operation.network, operation.kind)
            return self._declined(
                step, operation, m.id, _BY_RESULT.get(Result(result), "NO_APROBADA")
            )
        operation.held = True
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
        )
        if answer is None:
            self._waiting[m.reference] = (origin, m.id)
            self._store(operation)
            step.arm("sicoop", "hold", m.reference, self._config.budgets.sicoop_s)
            return None
        assert isinstance(answer, IssuerAnswer)
        return self._decide(step, operation, m.id, answer)

    def _reserve(self, step: Step, operation: SicoopOperation, m: Hold) -> int:
        net = self.net_account(operation.network, m.currency, step.now_ns)
        issuer = self._issuer_account(m.currency, step.now_ns)
        debit, credit = (issuer, net) if m.kind == "cash_out" else (net, issuer)
        batch = self._batch
        batch.clear()
        batch.hold(
            _hold_id(operation.operation), debit, credit, m.amount, day=operation.day,
            night=self._limits.is_night(step.now_ns), policy=ASK_NETWORK,
            meters=self._meters(operation, m),
            meter_credit=m.kind == "deposit",
        )  # fmt: skip
        result = self._ledger.apply(batch, step.now_ns)[0]
        if m.kind == "deposit":
            self._watch_cap(step, operation.network, net)
        return result

    def _meters(self, operation: SicoopOperation, m: Hold) -> tuple[bytes, ...]:
        if not self._limits.counts(m.kind):
            return ()
        return self._limits.meters(*_subjects(operation, m), kind=m.kind)

    def on_issuer_answer(self, step: Step, reference: str, answer: IssuerAnswer) -> None:
        """A late answer of an issuer in another process. After the deadline it counts for nothing."""
        operation = self._load(reference)
        if operation is None or operation.state != ENVIADA:
            step.alarm("late_answer", reference)
            return
        step.disarm("sicoop", "hold", reference)
        origin, request = self._waiting.pop(reference, (None, 0))
        reply = self._decide(step, operation, request, answer)
        if origin is not None:
            step.reply(origin, reply)

    def on_deadline(self, step: Step, kind: str, reference: str) -> None:
        """The issuer did not answer in time: refuse, and undo whatever it may have done."""
        operation = self._load(reference)
        if operation is None or operation.state != ENVIADA:
            return
        origin, request = self._waiting.pop(reference, (None, 0))
        self._release_own(step, operation)
        operation.code, operation.key = "91", "EMISOR_NO_DISPONIBLE"
        self._move(operation, "timed_out", step)
        self._release_issuer(step, operation, "timeout")
        self._store(operation)
        if origin is not None:
            step.reply(origin, _answer(operation, request))

    def _decide(
        self, step: Step, operation: SicoopOperation, request: int, answer: IssuerAnswer
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
        self._store(operation)
        return _answer(operation, request)

    def _declined(
        self, step: Step, operation: SicoopOperation, request: int, key: str
    ) -> NetworkAnswer:
        operation.key = key
        operation.code = CODES[key].code
        self._move(operation, "declined", step)
        self._store(operation)
        return _answer(operation, request)

    # ---- what follows the answer

    def _confirm(self, step: Step, m: Confirm) -> NetworkAnswer:
        operation = self._load(m.reference)
        if operation is None:
            return _plain(m, "ORIGINAL_NO_ENCONTRADO")
        if operation.state in (CONFIRMADA, CAPTURADA):
            return _answer(operation, m.id, duplicate=True)
        if operation.state == CONFLICTO:
            return _plain(m, "CONFLICTO")
        if operation.state != RESPONDIDA:
            return self._contradiction(step, operation, m, "confirm")
        self._move(operation, "confirmed", step)
        self._capture_own(step, operation)
        self._ask_capture(step, operation)
        self._store(operation)
        return _answer(operation, m.id)

    def _ask_capture(self, step: Step, operation: SicoopOperation) -> None:
        answer = self._issuer.ask(
            step,
            IssuerCapture(
                operation.network, operation.operation, operation.kind, operation.amount
            ),
        )
        operation.owed = "capture"
        if answer is not None:
            self._captured(step, operation, answer)

    def _captured(
        self, step: Step, operation: SicoopOperation, answer: IssuerAnswer | HolderAnswer
    ) -> None:
        operation.owed = ""
        if answer.code == "00":
            self._move(operation, "captured", step)
        else:
            step.alarm("capture_refused", operation.operation, answer.code)

    def _reverse(self, step: Step, m: Reverse) -> NetworkAnswer:
        operation = self._load(m.reference)
        if operation is None:
            return self._entomb(step, m)
        if operation.amount != m.amount:
            step.alarm("reversal_amount_differs", m.reference)
            return _plain(m, "DUPLICADO_DISTINTO")
        if operation.state in (CONFIRMADA, CAPTURADA):
            return self._contradiction(step, operation, m, "reverse")
        if operation.state == CONFLICTO:
            return _plain(m, "CONFLICTO")
        if operation.state in _SHUT:
            return _plain(m, "YA_REVERSADA")
        self._waiting.pop(m.reference, None)
        operation.reason = m.reason
        self._move(operation, "reversed", step)
        self._release_own(step, operation)
        self._release_issuer(step, operation, m.reason)
        self._move(operation, "released", step)
        self._store(operation)
        return _plain(m, "APROBADA")

    def _annul(self, step: Step, m: AnnulRegistered) -> NetworkAnswer:
        operation = self._load(m.reference)
        if operation is None:
            step.audit(m.reference[:4], "annul", m.reference, "25", "unknown", True)
            return _plain(m, "ORIGINAL_NO_ENCONTRADO")
        if operation.annulled:
            return _plain(m, "APROBADA", duplicate=True)
        if operation.amount != m.amount:
            return _plain(m, "NO_ANULABLE")
        if operation.business_date != self._calendar.business(step.now_ns).iso:
            return _plain(m, "FUERA_DE_PLAZO")
        if operation.state not in (RESPONDIDA, CONFIRMADA, CAPTURADA):
            return _plain(m, "NO_ANULABLE")
        answer = self._issuer.ask(
            step,
            IssuerRelease(
                operation.network, operation.operation, operation.kind, operation.amount,
                "annulment",
            ),
        )  # fmt: skip
        assert answer is not None, "an annulment of an issuer elsewhere is not yet routed"
        if answer.code not in ("00", "21"):
            return _plain(m, "NO_ANULABLE")
        self._compensate_own(step, operation)
        operation.annulled = True
        self._move(operation, "annulled", step)
        self._store(operation)
        return _plain(m, "APROBADA")

    def _contradiction(
        self, step: Step, operation: SicoopOperation, m: Confirm | Reverse, what: str
    ) -> NetworkAnswer:
        step.alarm("conflict", operation.reference, f"{what} in {operation.state}")
        operation.reason = what
        self._move(operation, "contradicted", step)
        self._store(operation)
        return _plain(m, "CONFLICTO")

    def _entomb(self, step: Step, m: Reverse) -> NetworkAnswer:
        parts = parse_reference(m.reference)
        tomb = SicoopOperation(
            m.reference, parts.network, "", "cash_out", m.amount, "", parts.terminal, "", "", 0,
            step.now_ns, "", 0, NOTHING, code="25", key="ORIGINAL_NO_ENCONTRADO", reason=m.reason,
        )  # fmt: skip
        self._move(tomb, "reversed", step)
        self._store(tomb)
        return _plain(m, "ORIGINAL_NO_ENCONTRADO")

    def _status(self, m: Status) -> StatusAnswer:
        operation = self._load(m.reference)
        if operation is None:
            return StatusAnswer(m.id, DESCONOCIDA, m.reference)
        if not operation.code:
            return StatusAnswer(m.id, operation.state, m.reference)
        return StatusAnswer(m.id, operation.state, m.reference, operation.code)

    def _holder(self, step: Step, m: NetworkHolder) -> HolderAnswer:
        answer = self._issuer.ask(step, IssuerHolder(m.document_type, m.document, m.phone))
        if not isinstance(answer, HolderAnswer):
            return HolderAnswer("91", id=m.id)
        return HolderAnswer(answer.code, id=m.id, name=answer.name, cards=answer.cards)

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
        )
        results = self._ledger.apply(batch, now_ns)
        assert all(r == Result.DONE for r in results), f"caps refused: {results}"

    def _issuer_account(self, currency: str, now_ns: int) -> bytes:
        return self._limits.account(
            f"sicoop:{currency}:issuer:ceibo", currency, BOOK, ACCOUNT_ISSUER, now_ns
        )

    def _watch_cap(self, step: Step, network: str, account: bytes) -> None:
        """Alarm once each time the position crosses 80, 90 and 100 % of its cap."""
        balance = self._ledger.balance(account)
        if balance is None or balance.credit_limit <= 0:
            return
        used = balance.debits_posted - balance.credits_posted + balance.debits_pending
        percent = used * 100 // balance.credit_limit
        reached = max((p for p in ALARM_PERCENT if percent >= p), default=0)
        if reached > self._alarmed.get(network, 0):
            step.alarm("position", network, f"{reached} % of the net debit cap")
        self._alarmed[network] = reached

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
        batch = self._batch
        batch.clear()
        batch.annul(_hold_id(operation.operation))
        if operation.state != RESPONDIDA:
            self._commission(batch, step, operation, back=True)
        self._apply(step, "annulment")

    def _commission(
        self, batch: Batch, step: Step, operation: SicoopOperation, back: bool = False
    ) -> None:
        if operation.commission:
            issuer = self._issuer_account(operation.currency, step.now_ns)
            net = self.net_account(operation.network, operation.currency, step.now_ns)
            debit, credit = (net, issuer) if back else (issuer, net)
            # What comes back from a network is owed, whatever its cap.
            batch.transfer(debit, credit, operation.commission, forced=back)

    def _apply(self, step: Step, what: str) -> None:
        results = self._ledger.apply(self._batch, step.now_ns)
        assert all(r == Result.DONE for r in results), f"{what} refused by our own book: {results}"

    def _release_issuer(self, step: Step, operation: SicoopOperation, reason: str) -> None:
        answer = self._issuer.ask(
            step,
            IssuerRelease(
                operation.network, operation.operation, operation.kind, operation.amount, reason
            ),
        )
        operation.owed = "release" if answer is None else ""

    # ---- pieces

    def _next_operation(self, now_ns: int) -> str:
        """Twelve digits that only grow, also when clocks step back: YY DDD and a running number."""
        if not self._last_operation:
            found = self._records.get(ops.META, OPERATION_COUNTER)
            self._last_operation = 0 if found is None else int(found)
        first = _first_operation(self._calendar.business(now_ns).number)
        number = self._last_operation = max(self._last_operation + 1, first)
        self._records.put(ops.META, OPERATION_COUNTER, b"%012d" % number)
        return f"{number:012d}"

    def _move(self, operation: SicoopOperation, event: str, step: Step) -> None:
        operation.state = move(SICOOP, operation.state, event)
        operation.history.append((operation.state, step.now_ns))

    def _load(self, reference: str) -> SicoopOperation | None:
        return self._table.get(reference.encode())

    def _store(self, operation: SicoopOperation) -> None:
        self._table.put(operation.reference.encode(), operation, operation.received_ns)


@lru_cache(maxsize=8)
def _first_operation(day: int) -> int:
    date = day_date(day)
    return (date.year % 100 * 1000 + date.timetuple().tm_yday) * 10_000_000 + 1


def _is_open(operation: SicoopOperation) -> bool:
    return bool(operation.owed) or operation.state in _OPEN


def _subjects(operation: SicoopOperation, m: Hold) -> tuple[tuple[str, str, str], ...]:
    """Whom limits and thresholds count here: (scope, id, tier). Cards and persons are ceibo's."""
    depositor = ""
    if m.kind == "deposit":
        own = f"{m.document_type}{m.document}" if isinstance(m.document, str) else f"TEL{m.phone}"
        depositor = operation.depositor or own
    return (
        ("terminal", operation.terminal, ""),
        ("cashier", operation.network + operation.cashier, ""),
        ("branch", operation.network + operation.branch, ""),
        ("network", operation.network, ""),
        ("depositor", depositor, ""),
    )


def _answer(operation: SicoopOperation, request: int, duplicate: bool = False) -> NetworkAnswer:
    if operation.code != "00":
        return NetworkAnswer(
            request, operation.code, operation.reference, operation.key,
            operation=operation.operation, business_date=operation.business_date,
            duplicate=duplicate,
        )  # fmt: skip
    return NetworkAnswer(
        request, operation.code, operation.reference, operation.key, operation.operation,
        operation.authorization, operation.business_date, operation.fee, operation.commission,
        duplicate, operation.name,
    )  # fmt: skip


def _plain(
    m: Confirm | Reverse | AnnulRegistered, key: str, duplicate: bool = False
) -> NetworkAnswer:
    return NetworkAnswer(m.id, CODES[key].code, m.reference, key, duplicate=duplicate)


def _hold_id(operation: str) -> bytes:
    """Ids of sicoop's own holds end in letters, so that they never meet those of an issuer."""
    return operation.encode() + b"SICO"
