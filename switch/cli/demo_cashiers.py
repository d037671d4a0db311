"""Cashiers at work: who is served, what they ask, and what each answer must be."""

import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from core_ext import Histogram
from core_ext._mac import totp
from protocols.messages import (
    ENTREGUE,
    RECIBA,
    Answer,
    CashOut,
    Delivered,
    Deposit,
    HolderAnswer,
    LastOperation,
    TerminalRequest,
)
from protocols.session import PeerKey
from switch.cli.base import CliError, progress
from switch.config import Config, Tokens
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal, tcp

NETWORK: Final = "0012"
BRANCHES: Final = 4
NET_DEBIT_CAP: Final = 100_000_000_000
TERMINAL_FIRST: Final = 1
DOCUMENT_FIRST: Final = 1_000_000
AMOUNT_STEP: Final = 1_000
AMOUNT_STEPS: Final = (10, 200)  # 10 000 to 200 000 guaranies

RATE_TERMINAL: Final = 25.0
"""Operations a second of one terminal: far above a cashier, far below what the switch can do."""

RATE_MAX: Final = 1_000.0
"""Operations a second of all terminals: they share the machine with the node."""

STEPS_AT_ONCE: Final = 3
"""Codes of one card that are good at one moment: of the step before, this one and the next."""

CARD_USES_MAX: Final = 20
"""Times a card is used at most, so that no monthly limit ends the demo."""

WRONG_PER_TERMINAL: Final = 8
"""Wrong codes: below what locks a terminal (20), for few terminals below the network's alarm."""

# Shares of what terminals do, as upper bounds of one draw.
MIX: Final = (("cash_out", 0.60), ("short", 0.65), ("wrong", 0.70), ("deposit", 1.0))
ASK_SHARE: Final = 0.05


@dataclass
class DemoCard:
    """A card as its holder has it."""

    document: str
    seed: bytes
    step: int = 0  # of the newest code used
    uses: int = 0


@dataclass
class World:
    """What was provisioned. `poor` are cards without funds; `receivers` documents for deposits."""

    config: Config
    terminals: list[tuple[str, PeerKey]]
    cards: deque[DemoCard]
    poor: deque[DemoCard]
    receivers: list[str]


@dataclass
class Tally:
    """What the terminals saw."""

    requests: int = 0
    operations: int = 0
    approved: Counter[str] = field(default_factory=Counter)  # by kind
    amounts: Counter[str] = field(default_factory=Counter)  # approved, by kind
    declined: Counter[str] = field(default_factory=Counter)  # "51 FONDOS" and so on
    delivered: int = 0
    asked: int = 0
    unknown: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0


def cards_wanted(terminals: int, seconds: float, step_s: int) -> tuple[int, int, int]:
    """Cards with funds, cards without, and how often each is used."""
    operations = seconds * min(RATE_TERMINAL * terminals, RATE_MAX)
    uses = min(STEPS_AT_ONCE + int(seconds) // step_s, CARD_USES_MAX)
    cards = int(operations * MIX[0][1] * 1.1 / uses) + terminals
    poor = int(operations * 0.06 / uses) + (WRONG_PER_TERMINAL + 1) * terminals
    return cards, poor, uses


class Cashier:
    """One cashier at one terminal: draws what comes next, and knows what the answer must be."""

    def __init__(self, number: int, terminal: Terminal, world: World, tally: Tally) -> None:
        self._terminal = terminal
        self._world = world
        self._tally = tally
        self._chance = random.Random(number)
        self._cashier = str(number + 1)
        self._trace = 0
        self._wrong = 0

    async def work(self, until: float, interval_s: float) -> None:
        """One operation after the other until `until`, at most one each `interval_s`."""
        due = trio.current_time() + self._chance.random() * interval_s
        while due < until:
            await trio.sleep_until(due)
            due = max(due + interval_s, trio.current_time())
            await self._operation()

    async def _operation(self) -> None:
        draw = self._chance.random()
        what = next(name for name, bound in MIX if draw < bound)
        amount = AMOUNT_STEP * self._chance.randint(*AMOUNT_STEPS)
        self._trace += 1
        if what == "wrong":
            self._wrong += 1
            # A terminal with too many wrong codes would be locked, and rightly so.
            what = "wrong" if self._wrong <= WRONG_PER_TERMINAL else "cash_out"
        card = None if what == "deposit" else self._card(what)
        if card is None:
            answer = await self._deposit(amount)
        else:
            answer = await self._cash_out(what, card, amount)
        if answer is None:
            return
        if answer.code == "00":
            await self._deliver()
        if self._chance.random() < ASK_SHARE:
            await self._ask(answer)

    def _card(self, what: str) -> DemoCard | None:
        """A card that has a code left for now; None where all are used up."""
        cards = self._world.cards if what == "cash_out" else self._world.poor
        now = int(time.time()) // self._world.config.tokens.step_s
        if not cards or (what != "wrong" and cards[0].step > now):
            return None
        return cards.popleft()

    async def _cash_out(self, what: str, card: DemoCard, amount: int) -> Answer | None:
        token = self._code(card, what)
        request = CashOut(
            trace=self._trace, cashier=self._cashier, document=card.document, token=token,
            amount=amount, currency="PYG",
        )  # fmt: skip
        expected = {"cash_out": "00", "short": "51", "wrong": "55"}[what]
        answer = await self._measured(request, expected)
        # A card with a wrong try has done its part: three of them would lock it.
        if what != "wrong" and card.uses < CARD_USES_MAX:
            (self._world.cards if what == "cash_out" else self._world.poor).append(card)
        self._count("cash_out", amount, answer)
        return answer

    async def _deposit(self, amount: int) -> Answer | None:
        document = self._chance.choice(self._world.receivers)
        request = Deposit(
            trace=self._trace, cashier=self._cashier, document=document, amount=amount,
            currency="PYG",
        )  # fmt: skip
        answer = await self._measured(request, "00")
        self._count("deposit", amount, answer)
        return answer

    def _code(self, card: DemoCard, what: str) -> str:
        tokens: Tokens = self._world.config.tokens
        now = int(time.time()) // tokens.step_s
        if what == "wrong":
            right = _totp(card.seed, now, tokens)
            return f"{(int(right) + 1) % 10**tokens.digits:0{tokens.digits}d}"
        card.step = max(card.step + 1, now - 1)
        card.uses += 1
        return _totp(card.seed, card.step, tokens)

    async def _measured(self, request: TerminalRequest, expected: str) -> Answer | None:
        began = time.perf_counter_ns()
        answer = await self._request(request, expected)
        if answer is not None:
            self._tally.latency.record(time.perf_counter_ns() - began)
        return answer

    async def _deliver(self) -> None:
        answer = await self._request(Delivered(original=self._trace), "00")
        self._tally.delivered += answer is not None

    async def _ask(self, before: Answer) -> None:
        """Asked again, nobody may be told to pay again."""
        self._tally.asked += 1
        answer = await self._request(LastOperation(original=self._trace), before.code)
        if answer is not None and answer.instruction in (ENTREGUE, RECIBA):
            self._tally.unexpected[f"last_operation {answer.instruction}"] += 1

    async def _request(self, request: TerminalRequest, expected: str) -> Answer | None:
        self._tally.requests += 1
        try:
            answer: Answer | HolderAnswer = await self._terminal.request(request)
        except OutcomeUnknown:
            self._tally.unknown += 1
            return None
        assert isinstance(answer, Answer)
        if answer.code != expected:
            name = type(request).__name__
            self._tally.unexpected[f"{name} {answer.code} {answer.key}, not {expected}"] += 1
        return answer

    def _count(self, kind: str, amount: int, answer: Answer | None) -> None:
        self._tally.operations += 1
        if answer is None:
            return
        if answer.code == "00":
            self._tally.approved[kind] += 1
            self._tally.amounts[kind] += amount
        else:
            self._tally.declined[f"{answer.code} {answer.key}"] += 1


def _totp(seed: bytes, step: int, tokens: Tokens) -> str:
    return totp(
        seed, step * tokens.step_s, step_s=tokens.step_s, digits=tokens.digits,
        algorithm=tokens.algorithm,
    )  # fmt: skip


async def traffic(
    world: World, address: tuple[str, int], seconds: float, tally: Tally, told: Callable[[], None]
) -> None:
    """Let all terminals work for a while; `told` is called now and then."""
    interval_s = max(1 / RATE_TERMINAL, len(world.terminals) / RATE_MAX)
    terminals = [Terminal(number, key, tcp(*address)) for number, key in world.terminals]
    async with trio.open_nursery() as sessions:
        for terminal in terminals:
            try:
                await terminal.sign_on(sessions)
            except (SignOnFailed, OSError) as error:
                raise CliError(f"terminal {terminal.number} cannot sign on: {error}") from None
        began = trio.current_time()
        until = began + seconds
        async with trio.open_nursery() as working:
            for index, terminal in enumerate(terminals):
                cashier = Cashier(index, terminal, world, tally)
                working.start_soon(cashier.work, until, interval_s)
            while trio.current_time() < until:
                await trio.sleep(0.1)
                told()
        tally.seconds = trio.current_time() - began
        for terminal in terminals:
            await terminal.aclose()


async def shown_traffic(
    world: World, address: tuple[str, int], seconds: float, tally: Tally
) -> None:
    """`traffic` with a progress bar."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[operations]} operations, {task.fields[approved]} approved"),
    )  # fmt: skip
    began = time.monotonic()
    with progress(*columns) as bar:
        task = bar.add_task("traffic", total=seconds, operations=0, approved=0)

        def told() -> None:
            bar.update(
                task, completed=time.monotonic() - began, operations=tally.operations,
                approved=tally.approved.total(),
            )  # fmt: skip

        await traffic(world, address, seconds, tally, told)
