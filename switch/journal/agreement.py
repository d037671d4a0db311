"""Do three data directories tell one story? `red`, `sicoop` and `ceibo` apart, held together.

Each directory is sound by itself (`verify`); here every operation is followed through all three:
what red registered is captured at sicoop and at ceibo, what it refused is not, nobody owes anybody
a message, no hold is open, and sums and positions agree. Nothing is written; the directories may be
those of running nodes, but what is on its way between them then looks unfinished.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from switch.config import Config
from switch.flows import operations as ops
from switch.flows.operations import CeiboHold, RedOperation, SicoopOperation
from switch.flows.registry import account_id
from switch.flows.states import (
    ACTIVA,
    ANULADA,
    CAPTURADA,
    CONCILIADA,
    CONFIRMADA,
    ENTREGADA,
    INICIADA,
    LIBERADA,
    REGISTRADA,
    REVERSADA,
)
from switch.journal.store import State

PROBLEMS_MAX = 100

_PAID = (REGISTRADA, ENTREGADA)
_POSTED = (CAPTURADA, CONCILIADA)
_NOT_POSTED = ("", "RECHAZADA", "VENCIDA", "REVERSADA", "TUMBA")
_NOT_HELD = ("", "RECHAZADA", "LIBERADA", "TUMBA")
_UNDECIDED = ("RECIBIDA", "ENVIADA", "RESERVADA", "RESPONDIDA", CONFIRMADA, "REVERSANDO")

T = TypeVar("T")


class Agreement(msgspec.Struct):
    """What the three say together.

    Fields:
        problems: where they differ, at most PROBLEMS_MAX; `problem_count` says how many.
        operations: red's register by state. unfinished: debts and undecided operations, by role.
        amounts: registered at red, captured at sicoop and at ceibo, by role and kind; annulled
            ones left out. holds_open: at ceibo.
        position: P of all networks at sicoop; what it must be by red's register comes second.
        money_check: Σ debits − Σ credits over the books, by role; all 0.
    """

    problems: list[str] = msgspec.field(default_factory=list)
    problem_count: int = 0
    operations: dict[str, int] = msgspec.field(default_factory=dict)
    unfinished: dict[str, int] = msgspec.field(default_factory=dict)
    amounts: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    holds_open: int = 0
    position: tuple[int, int] = (0, 0)
    money_check: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problem_count

    @property
    def finished(self) -> bool:
        """Nobody owes anything, and nothing is undecided."""
        return not self.holds_open and not any(self.unfinished.values())

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


def agreement(red: Config, sicoop: Config, ceibo: Config) -> Agreement:
    """Read the three directories as they are on disk now, and compare them.

    Raises:
        Corruption, SnapshotError, StateError: one of them is damaged.
    """
    return compare(_state(red), _state(sicoop), _state(ceibo))


def compare(red: State, sicoop: State, ceibo: State) -> Agreement:
    """The same of states in memory; one that plays several roles is given for each of them."""
    return _Comparison(red, sicoop, ceibo).made()


def _state(config: Config) -> State:
    state = State(config, config.data)
    state.recover(live=True)
    return state


class _Comparison:
    def __init__(self, red: State, sicoop: State, ceibo: State) -> None:
        self._states = {"red": red, "sicoop": sicoop, "ceibo": ceibo}
        self._red = {r.reference: r for r in _all(red, ops.RED_OPERATIONS, ops.decode_red)}
        self._sicoop = {
            s.reference: s for s in _all(sicoop, ops.SICOOP_OPERATIONS, ops.decode_sicoop)
        }
        self._ceibo = {
            c.network + c.operation: c for c in _all(ceibo, ops.CEIBO_HOLDS, ops.decode_ceibo)
        }
        self._found = Agreement()
        self._unfinished: Counter[str] = Counter({"red": 0, "sicoop": 0, "ceibo": 0})

    def made(self) -> Agreement:
        found = self._found
        states: Counter[str] = Counter()
        for red in self._red.values():
            if red.owed or red.state == INICIADA:
                self._late("red", red.reference, red.owed or red.state)
            if red.kind != "annul":
                states[red.state] += 1
                self._follow(red)
        for sicoop in self._sicoop.values():
            self._look_at(sicoop)
        for key, ceibo in self._ceibo.items():
            if ceibo.state == ACTIVA:
                found.holds_open += 1
                found.problem(f"ceibo {key}: the hold is open")
        found.operations = dict(sorted(states.items()))
        found.unfinished = dict(self._unfinished)
        self._sums()
        return found

    def _late(self, role: str, name: str, what: str) -> None:
        self._unfinished[role] += 1
        self._found.problem(f"{role} {name}: {what} is unfinished")

    def _follow(self, red: RedOperation) -> None:
        """One operation of red through the other two."""
        sicoop = self._sicoop.get(red.reference)
        at_sicoop = "" if sicoop is None else sicoop.state
        ceibo = self._ceibo_of(sicoop)
        at_ceibo = "" if ceibo is None else ceibo.state
        compensated = ceibo is not None and ceibo.compensated
        if red.state in _PAID:
            good = at_sicoop in _POSTED and at_ceibo == CAPTURADA and not compensated
        elif red.state == ANULADA:
            undone = at_ceibo == LIBERADA or (at_ceibo == CAPTURADA and compensated)
            good = at_sicoop == REVERSADA and undone
        elif red.state == INICIADA:
            return  # told already
        else:
            good = at_sicoop in _NOT_POSTED and (at_ceibo in _NOT_HELD or compensated)
        if not good:
            text = f"red {red.state}, sicoop {at_sicoop or '-'}, ceibo {at_ceibo or '-'}"
            self._found.problem(f"{red.reference}: {text}")
            return
        for role, other in (("sicoop", sicoop), ("ceibo", ceibo)):
            if red.state in _PAID and other is not None and other.amount != red.amount:
                self._found.problem(f"{red.reference}: red {red.amount}, {role} {other.amount}")

    def _look_at(self, sicoop: SicoopOperation) -> None:
        if sicoop.owed or sicoop.state in _UNDECIDED:
            self._late("sicoop", sicoop.reference, sicoop.owed or sicoop.state)
        if sicoop.reference not in self._red and sicoop.state not in _NOT_POSTED:
            self._found.problem(f"{sicoop.reference}: sicoop {sicoop.state}, unknown at red")

    def _ceibo_of(self, sicoop: SicoopOperation | None) -> CeiboHold | None:
        if sicoop is None or not sicoop.operation:
            return None
        return self._ceibo.get(sicoop.network + sicoop.operation)

    def _sums(self) -> None:
        amounts = {role: {"cash_out": 0, "deposit": 0} for role in self._states}
        for red in self._red.values():
            if red.state in _PAID and red.kind != "annul":
                amounts["red"][red.kind] += red.amount
        for sicoop in self._sicoop.values():
            if sicoop.state in _POSTED:
                amounts["sicoop"][sicoop.kind] += sicoop.amount
        for ceibo in self._ceibo.values():
            if ceibo.state == CAPTURADA and not ceibo.compensated:
                amounts["ceibo"][ceibo.kind] += ceibo.amount
        self._found.amounts = amounts
        if not amounts["red"] == amounts["sicoop"] == amounts["ceibo"]:
            self._found.problem(f"sums differ: {amounts}")
        for role, state in self._states.items():
            off = _imbalance(state)
            self._found.money_check[role] = off
            if off:
                self._found.problem(f"{role}: the books are off by {off}")
        self._found.position = (self._position(), self._expected_position())
        if self._found.position[0] != self._found.position[1]:
            self._found.problem(f"position and register differ: {self._found.position}")

    def _position(self) -> int:
        """P over all networks: positive means that they owe."""
        total = 0
        ledger = self._states["sicoop"].ledger
        for network, currency in {(s.network, s.currency) for s in self._sicoop.values()}:
            balance = ledger.balance(account_id(f"sicoop:{currency}:net:{network}"))
            if balance is not None:
                total += balance.debits_posted - balance.credits_posted
        return total

    def _expected_position(self) -> int:
        total = 0
        for red in self._red.values():
            if red.state in _PAID and red.kind != "annul":
                sign = 1 if red.kind == "deposit" else -1
                total += sign * red.amount - red.commission
        return total


def _all(state: State, space: int, decode: Callable[[bytes], T]) -> Iterator[T]:
    return (decode(value) for _, value in state.records.items(space))


def _imbalance(state: State) -> int:
    posted = pending = 0
    for (
        debits_pending,
        debits_posted,
        credits_pending,
        credits_posted,
    ) in state.ledger.totals().values():
        posted += debits_posted - credits_posted
        pending += debits_pending - credits_pending
    return abs(posted) + abs(pending) + len(state.ledger.check())
