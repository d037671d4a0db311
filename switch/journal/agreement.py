"""Do three data directories tell one story? `red`, `sicoop` and `ceibo` apart, held together.

Each directory is sound by itself (`verify`); here every operation is followed through all three:
what red registered is captured at sicoop and at ceibo, what it refused is not, nobody owes anybody
a message, no hold is open, and sums and positions agree. Operations with an open case, or with one
that two persons have closed, are told apart: their end is what people decide. Nothing is written;
the directories may be those of running nodes, but what is on its way between them then looks
unfinished.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
    CONFLICTO,
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
        amounts: registered at red, captured at sicoop and at the issuers (ceibo and others), by
            role and kind; annulled ones left out. holds_open: at ceibo.
        disputed: operations in a case; they stand in none of the other figures but `operations`.
        position: P of all networks at sicoop; what it must be comes second: by red's register, by
            what sicoop has posted of disputed ones, by adjustments and settlements.
        money_check: Σ debits − Σ credits over the books, by role; all 0.
    """

    problems: list[str] = msgspec.field(default_factory=list)
    problem_count: int = 0
    operations: dict[str, int] = msgspec.field(default_factory=dict)
    unfinished: dict[str, int] = msgspec.field(default_factory=dict)
    amounts: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    holds_open: int = 0
    disputed: int = 0
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


def agreement(red: Config, sicoop: Config, ceibo: Config, *issuers: Config) -> Agreement:
    """Read the directories as they are on disk now, and compare them.

    `issuers`: others that sicoop sends operations to beside `ceibo`; a hold is at one of them.

    Raises:
        Corruption, SnapshotError, StateError: one of them is damaged.
    """
    return compare(_state(red), _state(sicoop), _state(ceibo), *map(_state, issuers))


def compare(red: State, sicoop: State, ceibo: State, *issuers: State) -> Agreement:
    """The same of states in memory; one that plays several roles is given for each of them."""
    return _Comparison(red, sicoop, ceibo, issuers).made()


def _state(config: Config) -> State:
    state = State(config, config.data)
    state.recover(live=True)
    return state


class _Comparison:
    def __init__(
        self, red: State, sicoop: State, ceibo: State, issuers: Sequence[State] = ()
    ) -> None:
        self._found = Agreement()
        self._states = {"red": red, "sicoop": sicoop, "ceibo": ceibo}
        self._states |= {f"issuer {n}": state for n, state in enumerate(issuers, 2)}
        self._red = {r.reference: r for r in _all(red, ops.RED_OPERATIONS, ops.decode_red)}
        self._sicoop = {
            s.reference: s for s in _all(sicoop, ops.SICOOP_OPERATIONS, ops.decode_sicoop)
        }
        self._disputed = self._cases(sicoop) | self._cases(ceibo)
        self._ceibo: dict[str, CeiboHold] = {}
        for issuer in (ceibo, *issuers):
            self._add_holds(issuer)
        self._unfinished: Counter[str] = Counter({"red": 0, "sicoop": 0, "ceibo": 0})

    def _cases(self, state: State) -> frozenset[str]:
        """References, and names of holds, that people decide or have decided about."""
        found = set()
        for case in _all(state, ops.CASES, ops.decode_case):
            if case.state == "open" or case.author:
                found.add(case.reference)
                known = self._sicoop.get(case.reference)
                if known is not None and known.operation:
                    found.add(known.network + known.operation)
        return frozenset(found)

    def _add_holds(self, issuer: State) -> None:
        """Numbers are sicoop's, so that two issuers have none in common but where one was asked in
        vain: there a tombstone may stand beside the hold."""
        for hold in _all(issuer, ops.CEIBO_HOLDS, ops.decode_ceibo):
            key = hold.network + hold.operation
            other = self._ceibo.get(key)
            if other is None or other.state in _NOT_HELD:
                self._ceibo[key] = hold
            elif hold.state not in _NOT_HELD:
                self._found.problem(f"{key}: held at two issuers")

    def made(self) -> Agreement:
        found = self._found
        states: Counter[str] = Counter()
        for red in self._red.values():
            if red.owed or red.state == INICIADA:
                self._late("red", red.reference, red.owed or red.state)
            if red.kind != "annul":
                states[red.state] += 1
                if red.reference not in self._disputed:
                    self._follow(red)
        for sicoop in self._sicoop.values():
            self._look_at(sicoop)
        for key, ceibo in self._ceibo.items():
            if ceibo.state == ACTIVA and key not in self._disputed:
                found.holds_open += 1
                found.problem(f"ceibo {key}: the hold is open")
        found.operations = dict(sorted(states.items()))
        found.unfinished = dict(self._unfinished)
        found.disputed = sum(s in self._disputed for s in {*self._red, *self._sicoop})
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
        disputed = sicoop.reference in self._disputed
        if sicoop.owed or (sicoop.state in _UNDECIDED and not disputed):
            self._late("sicoop", sicoop.reference, sicoop.owed or sicoop.state)
        if disputed:
            return
        if sicoop.reference not in self._red and sicoop.state not in _NOT_POSTED:
            self._found.problem(f"{sicoop.reference}: sicoop {sicoop.state}, unknown at red")

    def _ceibo_of(self, sicoop: SicoopOperation | None) -> CeiboHold | None:
        if sicoop is None or not sicoop.operation:
            return None
        return self._ceibo.get(sicoop.network + sicoop.operation)

    def _sums(self) -> None:
        roles = ("red", "sicoop", "ceibo")
        amounts = {role: {"cash_out": 0, "deposit": 0} for role in roles}
        for red in self._red.values():
            if red.state in _PAID and self._counts(red):
                amounts["red"][red.kind] += red.amount
        for sicoop in self._sicoop.values():
            if sicoop.state in _POSTED and sicoop.reference not in self._disputed:
                amounts["sicoop"][sicoop.kind] += sicoop.amount
        for key, ceibo in self._ceibo.items():
            if ceibo.state == CAPTURADA and not ceibo.compensated and key not in self._disputed:
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
            if red.state in _PAID and self._counts(red):
                total += _owed_by(red)
        for sicoop in self._sicoop.values():
            if sicoop.reference in self._disputed and _is_posted(sicoop):
                total += _owed_by(sicoop)
        platform = self._states["sicoop"]
        for made in _all(platform, ops.ADJUSTMENTS, ops.decode_adjustment):
            if made.account.startswith("net:"):
                total += made.amount if made.direction == "debit" else -made.amount
        for window in _all(platform, ops.WINDOWS, ops.decode_window):
            settled = (p for p in window.positions if p.settled_ns and p.name.startswith("net:"))
            total -= sum(p.amount for p in settled)
        return total

    def _counts(self, red: RedOperation) -> bool:
        return red.kind != "annul" and red.reference not in self._disputed


def _owed_by(o: RedOperation | SicoopOperation) -> int:
    """What its network owes by a posted operation."""
    return (o.amount if o.kind == "deposit" else -o.amount) - o.commission


def _is_posted(sicoop: SicoopOperation) -> bool:
    """In sicoop's book; of one in conflict its history tells."""
    states = [state for state, _ in sicoop.history if state != CONFLICTO] or [""]
    state = states[-1] if sicoop.state == CONFLICTO else sicoop.state
    return state in (*_POSTED, CONFIRMADA)


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
