"""Planted bugs, at least one for each rule of the acceptance specification (section 2).

Each takes the place of one function of the switch in this process only. A simulation that does not
find every one of them within a bounded number of schedules is not worth its time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from protocols.messages import IssuerAnswer
from switch.flows import answers
from switch.flows.ceibo import Ceibo
from switch.flows.red import Red
from switch.flows.sicoop import Sicoop
from switch.flows.states import ENVIADA, ERROR, INICIADA, RESPONDIDA, REVERSANDO
from switch.flows.tokens import TokenDesk
from switch.journal.gate import ReplyGate
from switch.journal.projector import Projector
from switch.net.saf import StoreAndForward
from switch.node import Node

Plant = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Canary:
    """One bug: `plant` makes the wrong function of the right one.

    Attributes:
        first: the seed to begin with, of one that few schedules find.
    """

    rule: str
    name: str
    owner: Any
    attribute: str
    plant: Plant
    first: int = 0

    def __str__(self) -> str:
        return f"{self.rule} {self.name}"

    @contextmanager
    def planted(self) -> Iterator[None]:
        right = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, self.plant(right))
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, right)


def _unknown_means_yes(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(operation: Any, *, later: bool) -> Any:
        if operation.state == INICIADA and later:
            return "ENTREGUE" if operation.kind == "cash_out" else "RECIBA"
        return right(operation, later=later)

    return wrong


def _given_up(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: StoreAndForward, key: str, now_ns: int) -> bool:
        self.paid(key, now_ns)
        return False

    return wrong


def _nothing_found(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: iter(())


def _no_deadline(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, step: Any, kind: str, reference: str) -> None:
        if kind != "hold":
            right(self, step, kind, reference)

    return wrong


def _late_is_good(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Red, step: Any, reference: str, answer: Any, what: str = "hold") -> None:
        operation = self._load(reference)
        if operation is not None and what == "hold" and operation.state == ERROR:
            operation.state, operation.owed = INICIADA, ""
            self._store(operation)
        right(self, step, reference, answer, what)

    return wrong


def _late_issuer_is_good(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Sicoop, step: Any, reference: str, answer: Any, what: str = "hold") -> None:
        operation = self._load(reference)
        if operation is not None and what == "hold" and operation.state == REVERSANDO:
            operation.state, operation.owed = ENVIADA, ""
            self._store(operation)
        right(self, step, reference, answer, what)

    return wrong


def _let_out_early(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: ReplyGate, seq: int, to: Any, message: object, at_ns: int) -> None:
        right(self, 0, to, message, at_ns)

    return wrong


def _released_at_start(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Sicoop, step: Any, operation: Any, at_red: str) -> None:
        if operation.state == RESPONDIDA:
            self._undo(step, operation, "timeout")
            self._store(operation)
        else:
            right(self, step, operation, at_red)

    return wrong


def _never_known(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, step, reference, fingerprint: None


def _no_tombstone(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, step: Any, m: Any, *rest: Any) -> Any:
        kept, self._store = self._store, lambda *_: None
        try:
            return right(self, step, m, *rest)
        finally:
            self._store = kept

    return wrong


def _no_tombstone_at_all(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: IssuerAnswer("25", "ORIGINAL_NO_ENCONTRADO")


def _forgotten_at_once(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Node, step: Any) -> None:
        right(self, step)
        for space in self.red.spaces:
            self.store.records.forget(space, step.now_ns, max_count=1000)

    return wrong


def _freed_in_doubt(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Sicoop, step: Any, operation: Any) -> None:
        self._undo(step, operation, "timeout")
        self._store(operation)

    return wrong


def _always_wait(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(operation: Any, *, later: bool) -> Any:
        return "ESPERE" if operation.state == ERROR else right(operation, later=later)

    return wrong


def _nothing(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_, **__: None


CANARIES = (
    Canary("R1", "unknown means yes", answers, "instruction", _unknown_means_yes),
    Canary("R2", "a debt given up after its first failure", StoreAndForward, "failed", _given_up),
    Canary("R2", "debts not found again after a restart", Sicoop, "unfinished", _nothing_found),
    Canary("R3", "red waits for ever", Red, "on_deadline", _no_deadline),
    Canary("R4", "a late approval acted upon", Red, "on_platform_answer", _late_is_good, 240),
    Canary("R4", "a late approval passed on", Sicoop, "on_issuer_answer", _late_issuer_is_good),
    Canary("R5", "answers let out before they are durable", ReplyGate, "hold", _let_out_early),
    Canary("R6", "sicoop releases what it answered", Sicoop, "recover", _released_at_start),
    Canary("R7", "a repeat runs as new", Red, "_known", _never_known),
    Canary("R7", "a code is good twice", TokenDesk, "accept", _nothing),
    Canary("R8", "no tombstone at sicoop", Sicoop, "_entomb", _no_tombstone),
    Canary("R8", "no tombstone at ceibo", Ceibo, "_entomb", _no_tombstone_at_all),
    Canary("R9", "what is done is forgotten", Node, "_forget", _forgotten_at_once),
    Canary("R10", "an unknown cash_out is freed", Sicoop, "_ask_network", _freed_in_doubt),
    Canary("R11", "no definite instruction", answers, "instruction", _always_wait),
    Canary("R12", "the holder's app is not told", Projector, "_tell_holder", _nothing),
)
