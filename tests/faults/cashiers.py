"""Cashiers under faults: they work, remember every word they were told, and hold the node to it.

A `Cashier` works one after the other on operations of its own; several share a terminal. It keeps
for every operation which states it may be in by all that was asked and told (`Operation.states`):
a request without an answer widens that set, an answer narrows it to one, and whatever the node says
later must lie within. That set is the whole model: it needs no idea of how the node works. Where
roles are apart an answer may also say that nothing is decided yet; then he goes on asking.
"""

import random
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import trio
from msgspec import UNSET

from protocols.messages import (
    Annul,
    Answer,
    CashOut,
    Delivered,
    Deposit,
    HolderAnswer,
    LastOperation,
    TerminalRequest,
)
from tests.faults.process import Card

NOTHING = ""
REGISTRADA = "REGISTRADA"
ENTREGADA = "ENTREGADA"
ANULADA = "ANULADA"
RECHAZO_REGISTRADO = "RECHAZO_REGISTRADO"
ERROR = "ERROR"
INICIADA = "INICIADA"
DECIDED = frozenset((REGISTRADA, RECHAZO_REGISTRADO, ERROR))
PAID = frozenset((REGISTRADA, ENTREGADA))

# What the cashier must be told, by kind and state; the later word where it differs from the first.
LATER = {
    ("cash_out", NOTHING): {"NO_ENTREGUE"},
    ("cash_out", ERROR): {"NO_ENTREGUE"},
    ("cash_out", RECHAZO_REGISTRADO): {"NO_ENTREGUE"},
    ("cash_out", REGISTRADA): {"ENTREGUE"},
    ("cash_out", ENTREGADA): {"NO_ENTREGUE"},
    ("cash_out", ANULADA): {"NO_ENTREGUE", "RECIBA"},
    ("deposit", NOTHING): {"DEVUELVA"},
    ("deposit", ERROR): {"DEVUELVA"},
    ("deposit", RECHAZO_REGISTRADO): {"DEVUELVA"},
    ("deposit", REGISTRADA): {"RECIBA"},
    ("deposit", ENTREGADA): {"NO_RECIBA"},
    ("deposit", ANULADA): {"NO_RECIBA", "DEVUELVA"},
}
FIRST = LATER | {
    ("deposit", ERROR): {"NO_RECIBA"},
    ("deposit", RECHAZO_REGISTRADO): {"NO_RECIBA"},
}
NO_CASH = {"cash_out": "NO_ENTREGUE", "deposit": "NO_RECIBA"}
UNDECIDED_S = 30.0
"""A network that is up again tells within this what became of an operation (rule R11)."""
ASK_AGAIN_S = 0.15
FACTS = ("operation", "authorization", "business_date", "amount", "fee")


class Ask(Protocol):
    """The way to the node. Raises OutcomeUnknown where no answer came."""

    async def request(self, message: TerminalRequest) -> Answer | HolderAnswer: ...


class Broken(AssertionError):
    """The node told somebody two things, or did something twice."""


@dataclass
class Operation:
    """One cash_out or deposit, as the cashier knows it.

    Attributes:
        states: what it may be now; "" stands for: the node knows nothing of it.
        marked: the delivery mark is set; None: perhaps.
        told: the first answer about it.
        owed: what the cashier sent about it and has no answer to.
    """

    request: CashOut | Deposit
    card: Card
    states: set[str] = field(default_factory=lambda: {NOTHING})
    marked: bool | None = False
    told: Answer | None = None
    owed: Delivered | Annul | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "cash_out" if isinstance(self.request, CashOut) else "deposit"

    @property
    def settled(self) -> bool:
        return self.told is not None and len(self.states) == 1

    @property
    def effect(self) -> int:
        """What it did to the card's balance."""
        assert len(self.states) == 1, "only of settled operations"
        if not self.states <= PAID:
            return 0
        return -self.request.amount if self.kind == "cash_out" else self.request.amount

    def expect(self, *, sent: set[str]) -> None:
        """A request that may lead to these states is about to leave."""
        self.states |= sent

    def take(self, answer: Answer, *, first: bool = False) -> bool:
        """Judge what was told, and narrow what may be; False: nothing is decided. Raises: Broken.

        What is undecided moves no cash, and was never decided before.
        """
        if answer.key == "EN_PROCESO":
            self._wait(answer)
            return False
        state = NOTHING if answer.code == "25" else answer.state
        if state not in self.states:
            raise Broken(f"{self._name}: may be {sorted(self.states)}, told {answer!r}")
        assert isinstance(state, str)
        expected = (FIRST if first else LATER)[self.kind, state]
        if state == ANULADA and self.marked is not None:
            cash_out = self.kind == "cash_out"
            marked = {"RECIBA"} if cash_out else {"DEVUELVA"}
            expected = marked if self.marked else expected - marked
        if answer.instruction not in expected:
            raise Broken(f"{self._name}: {state} must be {expected}, told {answer!r}")
        self.states = {state}
        if state == ENTREGADA:
            self.marked = True
        elif state == REGISTRADA:
            self.marked = False
        if state != NOTHING:
            self._compare(answer)
            self.told = self.told or answer
        return True

    def _wait(self, answer: Answer) -> None:
        if answer.state == INICIADA:
            good = not self.states.isdisjoint(DECIDED) and self.told is None
            expected = "ESPERE"
            self.states.discard(NOTHING)
        else:  # its annulment is on the way
            good = answer.state in self.states and ANULADA in self.states
            expected = NO_CASH[self.kind]
        if not good or answer.instruction != expected:
            raise Broken(f"{self._name}: may be {sorted(self.states)}, told {answer!r}")

    def _compare(self, answer: Answer) -> None:
        """Numbers on a receipt never change."""
        for name in FACTS:
            value = getattr(answer, name)
            if value is UNSET:
                continue
            if self.facts.setdefault(name, value) != value:
                raise Broken(f"{self._name}: {name} was {self.facts[name]}, told {answer!r}")

    @property
    def _name(self) -> str:
        return f"{self.kind} {self.request.trace}"


class Traces:
    """Numbers of one terminal."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        self._last += 1
        return self._last


class Cashier:
    """Works at a terminal, one request at a time.

    Args:
        number: six digits.
        traces: of the terminal, shared with its other cashiers.
        cards: nobody else uses them, so that order is known.
        thousands: amounts of cash_outs and deposits, in 1000; `too_much`: sometimes asked for.

    Attributes:
        operations: all of them, in order.
        answers, unanswered, repeats, resent: counts.
    """

    def __init__(
        self, number: str, traces: Traces, cards: list[Card], seed: str, *,
        thousands: tuple[range, range] = (range(10, 60), range(1, 90)), too_much: int = 4_000_000,
    ) -> None:  # fmt: skip
        self._number = number
        self._thousands = thousands
        self._too_much = too_much
        self._traces = traces
        self._cards = cards
        self._chance = random.Random(seed)
        self._touched: dict[int, Operation] = {}
        self.operations: list[Operation] = []
        self.answers = self.unanswered = self.repeats = self.resent = 0

    # ---- after a restart

    async def settle(self, node: Ask, *, sample: int = 30) -> None:
        """Ask after all that was touched since the last time, and a sample of the rest."""
        older = self._chance.sample(self.operations, min(sample, len(self.operations)))
        for operation in [*self._touched.values(), *older]:
            await self._settle_one(node, operation)
            self._touched.pop(operation.request.trace, None)

    async def settle_all(self, node: Ask) -> None:
        """Ask after every operation there ever was; none is left open."""
        for operation in self.operations:
            await self._settle_one(node, operation)
        self._touched.clear()

    async def _settle_one(self, node: Ask, operation: Operation) -> None:
        # Half of those without an answer are sent again without asking first.
        if operation.told is not None or self._chance.random() < 0.5:
            await self._query(node, operation)
        until_s = trio.current_time() + UNDECIDED_S
        while operation.told is None:
            self.resent += 1
            await self._submit(node, operation)
            if operation.told is None:  # it took no new work just then
                if trio.current_time() > until_s:
                    raise Broken(f"{operation.request.trace} is taken by nobody")
                await trio.sleep(ASK_AGAIN_S)
        if operation.owed is not None:
            self.resent += 1
            await self._act(node, operation, operation.owed)
        assert operation.settled, "settled once asked and resent"

    async def approved(self, node: Ask, within_s: float) -> None:
        """Make deposits until one is taken. Raises: Broken where none is in time."""
        until_s = trio.current_time() + within_s
        while True:
            operation = Operation(self._deposit(card := self._chance.choice(self._cards)), card)
            self.operations.append(operation)
            await self._submit(node, operation)
            if operation.states == {REGISTRADA}:
                return
            if trio.current_time() > until_s:
                raise Broken(f"nobody is served: {operation.told!r}")
            await trio.sleep(ASK_AGAIN_S)

    # ---- work

    async def work(self, node: Ask) -> None:
        """Go on until the node is gone: ends with OutcomeUnknown."""
        actions = (
            self._new,
            self._deliver,
            self._annul,
            self._repeat,
            self._differ,
            self._query_one,
        )
        weights = (60, 14, 8, 7, 4, 7)
        while True:
            (action,) = self._chance.choices(actions, weights)
            await action(node)

    async def _new(self, node: Ask) -> None:
        card = self._chance.choice(self._cards)
        code = card.next_code(time.time()) if self._chance.random() < 0.7 else None
        request = self._deposit(card) if code is None else self._cash_out(card, code)
        operation = Operation(request, card)
        self.operations.append(operation)
        await self._submit(node, operation)

    def _cash_out(self, card: Card, code: str) -> CashOut:
        amount = self._chance.choice(self._thousands[0]) * 1000
        if self._too_much and self._chance.random() < 0.05:
            amount = self._too_much
        return CashOut(
            trace=self._traces.next(), cashier=self._number, document=card.document, token=code,
            amount=amount, currency="PYG",
        )  # fmt: skip

    def _deposit(self, card: Card) -> Deposit:
        return Deposit(
            trace=self._traces.next(), cashier=self._number, document=card.document,
            amount=self._chance.choice(self._thousands[1]) * 1000, currency="PYG",
        )  # fmt: skip

    async def _deliver(self, node: Ask) -> None:
        operation = self._one({REGISTRADA})
        if operation is None:
            return
        await self._act(node, operation, Delivered(original=operation.request.trace))
        if operation.states != {ENTREGADA}:
            raise Broken(f"the delivery mark of {operation.request.trace} was refused")

    async def _annul(self, node: Ask) -> None:
        operation = self._one(set(PAID))
        if operation is None:
            return
        request = Annul(
            trace=self._traces.next(), cashier=self._number, original=operation.request.trace,
            supervisor="900900", business_date=operation.facts["business_date"],
        )  # fmt: skip
        for _ in range(self._chance.choice((1, 1, 2))):
            await self._act(node, operation, request)

    async def _act(self, node: Ask, operation: Operation, request: Delivered | Annul) -> None:
        """Mark or annul, for the first time or again. The node may refuse; then nothing changes."""
        operation.owed = request
        if isinstance(request, Annul):
            operation.expect(sent={ANULADA})
        elif REGISTRADA in operation.states:
            operation.expect(sent={ENTREGADA})
            operation.marked = None
        await self._until_told(node, operation, request)
        operation.owed = None

    async def _repeat(self, node: Ask) -> None:
        operation = self._one(None)
        if operation is None:
            return
        self.repeats += 1
        await self._submit(node, operation)

    async def _differ(self, node: Ask) -> None:
        """The same trace for something else: refused, and nothing changes."""
        operation = self._one(None)
        if operation is None:
            return
        amount = operation.request.amount + 1000
        request = msgspec.structs.replace(operation.request, amount=amount)
        answer = await self._request(node, operation, request)
        told = {"cash_out": "NO_ENTREGUE", "deposit": "NO_RECIBA"}[operation.kind]
        if (answer.code, answer.instruction) != ("94", told):
            raise Broken(f"another body for {operation.request.trace} was not refused: {answer!r}")

    async def _query_one(self, node: Ask) -> None:
        operation = self._one(None)
        if operation is not None:
            await self._query(node, operation)

    def _one(self, states: set[str] | None) -> Operation | None:
        """One of the last settled operations, in one of these states; None: in any."""
        recent = [o for o in self.operations[-40:] if o.settled]
        found = [o for o in recent if states is None or o.states <= states]
        return self._chance.choice(found) if found else None

    # ---- requests

    async def _query(self, node: Ask, operation: Operation) -> None:
        question = LastOperation(original=operation.request.trace, kind=operation.kind)  # type: ignore[arg-type]
        answer = await self._until_told(node, operation, question)
        if answer.original != operation.request.trace:
            raise Broken(f"asked for {operation.request.trace}, told {answer!r}")

    async def _submit(self, node: Ask, operation: Operation) -> None:
        """Send the operation itself, for the first time or again."""
        maybe_first = NOTHING in operation.states
        surely_first = operation.states == {NOTHING}
        if maybe_first:
            operation.expect(sent=set(DECIDED))
        answer = await self._request(node, operation, operation.request)
        if answer.key == "EN_PROCESO":
            operation.take(answer)
            await self._query(node, operation)
            return
        if answer.state == "DESCONOCIDA" and maybe_first:  # it takes no new work: nothing was done
            operation.states = {NOTHING} if surely_first else operation.states
            return
        first = answer.duplicate is False
        if (first and not maybe_first) or (surely_first and not first):
            raise Broken(f"done {'twice' if first else 'before it was asked'}: {answer!r}")
        operation.states.discard(NOTHING)
        operation.take(answer, first=first)

    async def _until_told(
        self, node: Ask, operation: Operation, request: TerminalRequest
    ) -> Answer:
        """Ask until something is decided."""
        until_s = trio.current_time() + UNDECIDED_S
        while not operation.take(answer := await self._request(node, operation, request)):
            if trio.current_time() > until_s:
                raise Broken(f"no end of {operation.request.trace}: {answer!r}")
            await trio.sleep(ASK_AGAIN_S)
        return answer

    async def _request(self, node: Ask, operation: Operation, request: TerminalRequest) -> Answer:
        self._touched[operation.request.trace] = operation
        self.unanswered += 1
        answer = await node.request(request)
        self.unanswered -= 1
        self.answers += 1
        assert isinstance(answer, Answer)
        return answer
