"""Cashiers at work: shifts, till counts (arqueo) and the supervisor's second signature.

Where cashiers are `listed`, only those added may work, each within a shift opened with his own
one-time code, and a supervisor signs with his. Where they are `open`, a number is enough.
"""

from core_ext import Batch, Ledger, Records, Result
from core_ext._mac import SeedVault
from protocols.messages import Annul, Answer, ShiftClose, ShiftOpen
from switch.config import Config
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.answers import plain
from switch.flows.norms import FieldError
from switch.flows.operations import SHIFT_DIFFERENCE, RedOperation, Shift
from switch.flows.registry import Cashier, Registry, Terminal
from switch.flows.step import Step
from switch.flows.tokens import IN_WINDOW, lock_key

HOUR_NS = 3_600_000_000_000


class Shifts:
    """Who may work now, and what should be in each till."""

    def __init__(
        self, *, config: Config, registry: Registry, records: Records, ledger: Ledger,
        vault: SeedVault,
    ) -> None:  # fmt: skip
        self._config = config
        self._registry = registry
        self._records = records
        self._ledger = ledger
        self._vault = vault

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration; what is decided already stays as it is."""
        self._config = config

    @property
    def listed(self) -> bool:
        return self._config.node.cashiers == "listed"

    def may_work(self, step: Step, terminal: Terminal, cashier: str) -> bool:
        """True where cashiers are open, or this one is listed and within a shift at this till."""
        if not self.listed:
            return True
        known = self._registry.cashier(terminal.network, cashier)
        if known is None or known.disabled:
            return False
        shift = self._load(terminal.network, cashier)
        if shift is None or shift.terminal != terminal.number:
            return False
        return self._is_open(shift, step.now_ns)

    def moved(self, operation: RedOperation, cashier: str, sign: int) -> None:
        """Count cash that an operation (or, with sign -1, its annulment) moves at a till.

        A fee is taken from the card, so it moves no cash.
        """
        shift = self._load(operation.network, cashier)
        if shift is None or shift.closed_ns:
            return
        out = operation.kind == "cash_out"
        shift.expected += sign * (-operation.amount if out else operation.amount)
        shift.operations += sign
        self._store(shift)

    def open(self, step: Step, terminal: Terminal, m: ShiftOpen) -> Answer:
        number = norms.cashier(m.cashier)
        cashier = self._registry.cashier(terminal.network, number)
        refusal = self._opening_refusal(step, terminal, number, cashier, m.cashier_code)
        step.audit(number, "shift_open", terminal.number, refusal or "00", security=bool(refusal))
        if refusal:
            return plain(refusal, trace=m.trace)
        float_ = m.float if isinstance(m.float, int) else 0
        self._store(Shift(terminal.network, number, terminal.number, step.now_ns, float_, float_))
        return plain("APROBADA", trace=m.trace)

    def close(self, step: Step, terminal: Terminal, m: ShiftClose) -> Answer:
        number = norms.cashier(m.cashier)
        shift = self._load(terminal.network, number)
        if shift is None or shift.closed_ns or shift.terminal != terminal.number:
            return plain("OPERACION_NO_VALIDA", trace=m.trace)
        shift.closed_ns, shift.counted = step.now_ns, m.counted
        self._store(shift)
        difference = m.counted - shift.expected
        step.audit(number, "shift_close", terminal.number, "00", f"{SHIFT_DIFFERENCE}{difference}")
        if difference:
            step.alarm("till_difference", terminal.number, f"cashier {number}: {difference}")
        answer = plain("APROBADA", trace=m.trace)
        return Answer(
            answer.code, answer.key, answer.text, trace=m.trace, expected=shift.expected,
            difference=difference,
        )  # fmt: skip

    def supervisor_refusal(self, step: Step, terminal: Terminal, cashier: str, m: Annul) -> str:
        """Key of the reason why this supervisor may not sign, or ''. Raises FieldError."""
        assert isinstance(m.supervisor, str), "the caller has checked that there is one"
        number = norms.supervisor(m.supervisor)
        if number == cashier:
            return self._refused(step, number, "same person")
        known = self._registry.cashier(terminal.network, number)
        if known is not None and known.disabled:
            return self._refused(step, number, "disabled")
        if not self.listed:
            return ""
        if known is None or not known.supervisor:
            return self._refused(step, number, "no supervisor")
        if not isinstance(m.supervisor_code, str):
            raise FieldError("supervisor_code")
        return self._check_code(step, known, m.supervisor_code, "supervisor_code")

    def _opening_refusal(
        self, step: Step, terminal: Terminal, number: str, cashier: Cashier | None, code: str
    ) -> str:
        if cashier is None:
            return "NO_HABILITADO" if self.listed else ""
        if cashier.disabled or cashier.branch != terminal.branch:
            return "NO_HABILITADO"
        shift = self._load(terminal.network, number)
        elsewhere = shift is not None and shift.terminal != terminal.number
        if shift is not None and elsewhere and self._is_open(shift, step.now_ns):
            return "NO_HABILITADO"
        return self._check_code(step, cashier, code, "cashier_code")

    def _check_code(self, step: Step, cashier: Cashier, code: str, field: str) -> str:
        """The cashier's own one-time code: right, unused, and not locked. Raises FieldError."""
        c = self._config.tokens
        if len(code) != c.digits:
            raise FieldError(field)
        now_s = step.now_ns // 1_000_000_000
        key = lock_key("staff", cashier.network + cashier.number)
        [(verdict, used_step)] = self._vault.match(
            [cashier.seed], [staff_aad(cashier)], code, mode="totp", now_s=now_s, digits=c.digits,
            algorithm=c.algorithm, step_s=c.step_s, back=c.back, forward=c.forward, probe=c.probe,
            pad_to=1,
        )  # fmt: skip
        if self._ledger.locked_until(key) > now_s:
            return "CODIGO_BLOQUEADO"
        batch = Batch()
        if verdict == IN_WINDOW:
            batch.accept_step(key, used_step)
            if self._ledger.apply(batch, step.now_ns)[0] == Result.DONE:
                batch.clear()
                batch.clear_attempts(key)
                self._ledger.apply(batch, step.now_ns)
                return ""
            return "CODIGO_USADO"
        batch.attempt(key, limit=c.attempts_card, window_s=0, lock_s=c.lock_s, row_limit=c.row_max)
        locked = self._ledger.apply(batch, step.now_ns)[0] != Result.DONE
        return "CODIGO_BLOQUEADO" if locked else "CODIGO"

    def _refused(self, step: Step, number: str, why: str) -> str:
        step.audit(number, "supervise", "", "58", why, True)
        return "NO_HABILITADO"

    def _is_open(self, shift: Shift, now_ns: int) -> bool:
        ends_ns = shift.opened_ns + self._config.node.shift_hours * HOUR_NS
        return not shift.closed_ns and now_ns < ends_ns

    def _load(self, network: str, cashier: str) -> Shift | None:
        found = self._records.get(ops.SHIFTS, (network + cashier).encode())
        return None if found is None else ops.decode_shift(found)

    def _store(self, shift: Shift) -> None:
        self._records.put(ops.SHIFTS, (shift.network + shift.cashier).encode(), ops.encode(shift))


def staff_aad(cashier: Cashier) -> bytes:
    """What a cashier's sealed seed is bound to, so that it opens for nobody else."""
    return f"cashier:{cashier.network}{cashier.number}".encode()
