"""red, sicoop, ceibo and banks as real processes, mistreated under load; then all are compared.

A `Torture` runs in rounds. While a round lasts, cashiers work at their terminals and a `Weather`
does what its seed says: processes are killed, stopped and let go on, ended and started again; lines
are cut, reset, refused, left hanging, slowed, and made into black holes in one way or in both. Then
everything is healed: all must be up again in bounded time, every cashier settles what he has open,
and the registers, the ledgers and the cards of all processes must say what the cashiers were told.

There are two banks. One is a second issuer, with cards of its own, which sicoop sends the larger
amounts to. The other is a host of the `bank` dialect, behind a payment application with sites of
its own (`tests.faults.payments`); its book is compared as well.
"""

import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import trio

from protocols.messages import Answer, HolderAnswer, TerminalRequest
from protocols.session import PeerKey
from switch.cli import setup
from switch.cli.apart import LISTENER, Apart, free_port, prepare
from switch.cli.apart import Card as MadeCard
from switch.cli.provision import opened
from switch.config import LISTENERS, Config
from switch.flows import operations as ops
from switch.flows.operations import RedOperation
from switch.flows.registry import account_id
from switch.journal.agreement import Agreement
from switch.journal.store import State
from switch.journal.verify import Report, verify
from switch.ops.keys import from_base32
from switch.provisioning import Provisioning
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal, tcp
from tests.faults import payments
from tests.faults.apart import AGREED_S, BALANCE, BOTH, LINK, NETWORK, SHORT, Relay, Three
from tests.faults.cashiers import NOTHING, PAID, Broken, Cashier, Operation, Traces
from tests.faults.process import Card
from tests.faults.secrets_left import keys_left, texts_left

ROLES = ("ceibo", "bank", "sicoop", "red")
PAYMENTS = ("host", "cip")  # of the payment application: its bank, and itself
ALL = PAYMENTS + ROLES
BANK = "bank"
BANK_FROM = 40_000  # amounts from here on go to the bank
TERMINALS = 4
CASHIERS = 3  # at each terminal: two have cards of ceibo, one of the bank
CARDS = 5  # of each cashier
SITES = 3
PACE_S = 0.12  # between two requests of a cashier, at most
FAULTS_MAX = 4  # at a time
BLACKOUTS = 0.04  # of all faults: the power goes for everybody
LONG_S = 7.0  # longer than every budget
LIVE_S = 60.0  # until everybody is served again once the faults have ended, beside any load
ANSWERED_S = SHORT["budgets_terminal_s"] + 6.0  # red's budget, and a machine with other work
LAG_S = 1.5  # a harness that stood still for so long cannot judge times
SEEN_AFTER_S = 2.0  # until the effects of a fault that has ended are over, for whoever waits

BANK_LINK = LINK.replace("links.ceibo", f"links.{BANK}")
ROUTES = f"""
[[routes]]
to = "{BANK}"
operations = ["cash_out", "deposit"]
amount_min = {BANK_FROM}
"""


# ---- the processes -------------------------------------------------------------------------------


class WithBanks(Apart):
    """Three roles, a bank, and a payment application with the host of its bank.

    `program` runs a role otherwise than `python -m switch` does.
    """

    program: dict[str, tuple[str, ...]]
    house: payments.House

    def command(self, role: str) -> list[str]:
        program = self.program.get(role, ("-m", "switch"))
        if role in PAYMENTS:
            return self.house.command(role, program)
        python, *_ = super().command("ceibo")
        config = self.configs[role]
        command = [python, *program, "serve", "-c", str(config.path)]
        host, port = self.addresses[role]
        own = LISTENER.get(role, "ceibo")
        for name in LISTENERS:
            address = f"{host}:{port}" if name == own else "127.0.0.1:0"
            command += ["--listen", f"{name}={address}"]
        return command

    def log(self, role: str) -> Path:
        return self.house.log(role) if role in PAYMENTS else super().log(role)


class Lines:
    """The lines between the processes, by the side that is dialled."""

    def __init__(self) -> None:
        self.relays = {role: Relay() for role in ALL}

    def __getitem__(self, role: str) -> Relay:
        return self.relays[role]

    async def run(self, apart: WithBanks, nursery: trio.Nursery) -> None:
        for role, relay in self.relays.items():
            relay.target = (apart.addresses | apart.house.addresses)[role]
            await nursery.start(relay.run)

    def heal(self) -> None:
        for relay in self.relays.values():
            relay.resume()


@asynccontextmanager
async def provisioned(
    directory: Path,
    *,
    terminals: int = TERMINALS,
    cards: int = TERMINALS * CASHIERS * CARDS,
    inquiry: bool = True,
    program: dict[str, tuple[str, ...]] | None = None,
) -> AsyncIterator[tuple[Three, Lines, list[MadeCard]]]:
    """All processes with relays before each, not started; and the bank's cards."""
    lines = Lines()
    apart = await prepare(
        directory, network=NETWORK, terminals=terminals, branches=2,
        cards={str(4_000_000 + index): BALANCE for index in range(cards)},
        net_debit_cap=900_000_000_000, values=SHORT, toml={"sicoop": LINK + BANK_LINK + ROUTES},
        sicoop_at=[lines["sicoop"].address], ceibo_at=lines["ceibo"].address,
    )  # fmt: skip
    whole = WithBanks(**{name: getattr(apart, name) for name in apart.__dataclass_fields__})
    whole.program = program or {}
    whole.house = await payments.prepared(directory, lines["host"].address, inquiry=inquiry)
    bank_cards = await _add_bank(whole, directory, lines[BANK].address, cards)
    found = Three(whole)
    try:
        yield found, lines, bank_cards
    finally:
        await found.aclose()


async def _add_bank(
    apart: Apart, directory: Path, address: tuple[str, int], cards: int
) -> list[MadeCard]:
    def make() -> Config:
        common = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS} | SHORT
        return setup.make(directory / BANK, node_name=BANK, node_roles=("ceibo",), **common)

    apart.configs[BANK] = await trio.to_thread.run_sync(make)
    apart.addresses[BANK] = ("127.0.0.1", free_port())
    where = f"{address[0]}:{address[1]}"
    async with opened(apart.configs["sicoop"]) as node:
        step = node.begin()
        made = Provisioning(node).call(
            step, "host_add", {"name": BANK, "dialect": "ceibo", "connect": where}
        )
        node.end(step)
    keys = {name: made[name] for name in ("mac_key", "data_key", "zone_key")}
    apart.host_keys |= {f"{BANK}_{name}": key for name, key in keys.items()}
    found = []
    async with opened(apart.configs[BANK]) as node:
        desk, step = Provisioning(node), node.begin()
        desk.call(step, "host_rotate", {"name": setup.HOST, "keys": keys})
        for index in range(cards):
            document = str(5_000_000 + index)
            answer = desk.call(
                step, "card_add",
                {"document": document, "name": f"CLIENTE {index}", "token_mode": "totp",
                 "balance": BALANCE},
            )  # fmt: skip
            found.append(MadeCard(answer["card"], document, from_base32(answer["seed"])))
        node.end(step)
    return found


# ---- weather -------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What happened, for the report."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    live_s: list[float] = field(default_factory=list)
    starts: int = 0
    longest_wait_s: float = 0.0


class Weather:
    """Faults at moments and of kinds that its seed decides; a target has one at a time."""

    def __init__(self, found: Three, lines: Lines, figures: Figures) -> None:
        self._found = found
        self._lines = lines
        self._figures = figures
        self._busy: set[str] = set()
        self._chance = random.Random()
        self._disturbed: list[list[float]] = []  # spans in which red need not answer terminals
        self.log: list[str] = []
        self._of_processes = (
            self._kill, self._kill, self._kill_starting, self._freeze, self._restart,
        )  # fmt: skip
        self._of_lines = (
            self._cut, self._reset, self._refuse, self._black_hole, self._half_open, self._vanish,
            self._slow, self._hang,
        )  # fmt: skip

    async def storm(self, seed: str, seconds: float) -> None:
        """Faults for so long; when it returns every process runs and every line passes."""
        self._chance = random.Random(seed)
        until_s = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            while (left_s := until_s - trio.current_time()) > 0:
                await trio.sleep(min(self._chance.uniform(0.1, 1.9), left_s))
                self._strike(nursery)
        self._lines.heal()

    def _strike(self, nursery: trio.Nursery) -> None:
        chance = self._chance
        roles = [role for role in ALL if role not in self._busy]
        lines = [role for role in ALL if f"{role} line" not in self._busy]
        if len(self._busy) >= FAULTS_MAX or not lines:
            return
        if len(roles) == len(ALL) and chance.random() < BLACKOUTS:
            role, kind, target = "red", self._blackout, "all"
            self._busy |= set(ALL)
        elif chance.random() < 0.45:
            role = chance.choice(roles)
            kind = chance.choice(self._of_processes)
            target = role
        else:
            role = chance.choice(lines)
            kind = chance.choice(self._of_lines)
            target = f"{role} line"
        if target != "all":
            self._busy.add(target)
        # Drawn now, so that the order in which faults end changes nothing.
        lengths = (chance.uniform(0, 0.6), chance.uniform(0.5, 3), LONG_S)
        (lasts_s,) = chance.choices(lengths, (5, 4, 1))
        nursery.start_soon(self._fault, kind, role, target, lasts_s)

    async def _fault(
        self, kind: Callable[[str, float], Awaitable[None]], role: str, target: str, lasts_s: float
    ) -> None:
        name = kind.__name__.removeprefix("_")
        self._figures.faults[name] += 1
        self.log.append(f"{trio.current_time():.2f} {name} {target} {lasts_s:.2f}")
        span = [trio.current_time(), float("inf")]
        if role == "red":
            self._disturbed.append(span)
        try:
            await kind(role, lasts_s)
        finally:
            span[1] = trio.current_time() + SEEN_AFTER_S
            self._busy -= set(ALL) if target == "all" else {target}

    def excuse(self, from_s: float, until_s: float) -> None:
        self._disturbed.append([from_s, until_s])

    def is_excused(self, from_s: float) -> bool:
        """Whether anything has come between red and its terminals since."""
        return any(until_s > from_s for _, until_s in self._disturbed)

    # ---- of processes

    async def _kill(self, role: str, lasts_s: float) -> None:
        await self._killed(role)
        await trio.sleep(lasts_s)
        await self._started(role)

    async def _kill_starting(self, role: str, lasts_s: float) -> None:
        await self._killed(role)
        await self._found.spawn(role)
        await trio.sleep(min(lasts_s, 1.5))
        await self._found.kill(role)
        await self._started(role)

    async def _blackout(self, role: str, lasts_s: float) -> None:
        """The power goes, for all of them; they come back in any order."""
        for each in ALL:
            await self._killed(each)
        await trio.sleep(min(lasts_s, 1.0))
        for each in self._chance.sample(ALL, len(ALL)):
            await self._found.spawn(each)
        for each in ALL:
            await self._found.wait_ready(each)
        self._figures.starts += len(ALL)

    async def _killed(self, role: str) -> None:
        assert self._found.alive(role), f"{role} ended by itself:\n{self._found.tail(role)}"
        await self._found.kill(role)

    async def _freeze(self, role: str, lasts_s: float) -> None:
        assert self._found.alive(role), f"{role} ended by itself:\n{self._found.tail(role)}"
        self._found.signal(role, signal.SIGSTOP)
        await trio.sleep(lasts_s)
        self._found.signal(role, signal.SIGCONT)

    async def _restart(self, role: str, lasts_s: float) -> None:
        code = await self._found.stop(role)
        assert code == 0, f"{role} ended with {code}:\n{self._found.tail(role)}"
        await trio.sleep(lasts_s)
        await self._started(role)

    async def _started(self, role: str) -> None:
        self._figures.starts += 1
        await self._found.start(role)

    # ---- of lines

    async def _cut(self, role: str, lasts_s: float) -> None:
        self._lines[role].cut()

    async def _reset(self, role: str, lasts_s: float) -> None:
        self._lines[role].reset()

    async def _refuse(self, role: str, lasts_s: float) -> None:
        self._lines[role].refuse()
        await trio.sleep(lasts_s)
        self._lines[role].resume()

    async def _black_hole(self, role: str, lasts_s: float) -> None:
        """Nothing comes through; afterwards what was sent arrives late."""
        self._lines[role].hold(*BOTH)
        await trio.sleep(lasts_s)
        self._lines[role].release()

    async def _half_open(self, role: str, lasts_s: float) -> None:
        """One side hears the other, which hears nothing."""
        self._lines[role].hold(BOTH[int(lasts_s * 1e6) % 2])
        await trio.sleep(lasts_s)
        if int(lasts_s * 1e6) % 4 < 2:
            self._lines[role].reset()
        self._lines[role].release()

    async def _vanish(self, role: str, lasts_s: float) -> None:
        """What is sent is lost for good, with the connections it was on."""
        self._lines[role].mode = "silent"
        await trio.sleep(lasts_s)
        self._lines[role].reset()
        self._lines[role].mode = "pass"

    async def _slow(self, role: str, lasts_s: float) -> None:
        self._lines[role].delay_s = 0.02 + lasts_s / 8
        await trio.sleep(lasts_s)
        self._lines[role].delay_s = 0.0

    async def _hang(self, role: str, lasts_s: float) -> None:
        """Who connects is left alone; old connections are lost."""
        self._lines[role].mode = "hang"
        self._lines[role].cut()
        await trio.sleep(lasts_s)
        self._lines[role].cut()
        self._lines[role].mode = "pass"


# ---- terminals -----------------------------------------------------------------------------------


class Resting(OutcomeUnknown):
    """The round is over: nothing was sent."""


class Shop:
    """A terminal and its cashiers, over all that happens to its line."""

    def __init__(
        self, torture: "Torture", number: str, key: PeerKey, cashiers: list[Cashier]
    ) -> None:
        self._torture = torture
        self.number, self._key = number, key
        self._chance = random.Random(f"{torture.seed} {number} pace")
        self._terminal: Terminal | None = None
        self.cashiers = cashiers

    async def work(self) -> None:
        """Until the round is over: sign on, settle, work; again whenever the session is lost."""
        while self._torture.phase == "work":
            async with trio.open_nursery() as nursery:
                if await self._sign_on(nursery):
                    async with trio.open_nursery() as working:
                        for cashier in self.cashiers:
                            working.start_soon(self._work, cashier)
                    await self._sign_off()
            await trio.sleep(0.05)

    async def _work(self, cashier: Cashier) -> None:
        try:
            await cashier.settle(self, sample=3)
            await cashier.work(self)
        except OutcomeUnknown:
            if self._torture.phase == "work":
                await self._sign_off()  # whoever waits at this terminal has to begin anew

    async def settle(self, *, everything: bool) -> None:
        """In good weather: each operation comes to its end, and is what was told before; and both
        issuers serve everybody again."""
        async with trio.open_nursery() as nursery:
            with trio.fail_after(LIVE_S):
                while not await self._sign_on(nursery):  # noqa: ASYNC110 (nothing signals it)
                    await trio.sleep(0.05)
            async with trio.open_nursery() as settling:
                for cashier in self.cashiers:
                    settling.start_soon(self._settle, cashier, everything)
            await self._sign_off()

    async def _settle(self, cashier: Cashier, everything: bool) -> None:
        await cashier.approved(self, LIVE_S)
        if everything:
            await cashier.settle_all(self)
        else:
            await cashier.settle(self)

    async def request(self, message: TerminalRequest) -> Answer | HolderAnswer:
        if self._torture.phase == "work":
            await trio.sleep(self._chance.uniform(0, PACE_S))
        if self._torture.phase == "rest":
            raise Resting("resting")
        terminal, began_s = self._terminal, trio.current_time()
        if terminal is None:
            raise OutcomeUnknown("no session")
        try:
            answer = await terminal.request(message)
        except OutcomeUnknown as unknown:
            weather = self._torture.weather
            if "no answer within" in str(unknown) and not weather.is_excused(began_s):
                told = f"{self.number}: {type(message).__name__}: {unknown}, and red was well"
                raise Broken(told) from unknown
            raise
        took_s = trio.current_time() - began_s
        if not self._torture.weather.is_excused(began_s):
            figures = self._torture.figures
            figures.longest_wait_s = max(figures.longest_wait_s, took_s)
        return answer

    async def _sign_on(self, nursery: trio.Nursery) -> bool:
        address = self._torture.lines["red"].address
        terminal = Terminal(self.number, self._key, tcp(*address), timeout_s=ANSWERED_S)
        try:
            await terminal.sign_on(nursery)
        except (OSError, SignOnFailed):
            return False
        self._terminal = terminal
        return True

    async def _sign_off(self) -> None:
        terminal, self._terminal = self._terminal, None
        if terminal is not None:
            await terminal.aclose()


# ---- all of it -----------------------------------------------------------------------------------


class Torture:
    """Rounds of faults, each followed by a comparison of everything with everything.

    Attributes:
        phase: "work", "rest" (cashiers stop) or "settle".
    """

    def __init__(
        self, found: Three, lines: Lines, bank_cards: Sequence[MadeCard], seed: int
    ) -> None:
        self.found, self.lines, self.seed = found, lines, seed
        assert isinstance(found.apart, WithBanks)
        self.apart = found.apart
        self.sites = payments.Sites(self.apart.house, lines["cip"].address, seed)
        self.figures = Figures()
        self.weather = Weather(found, lines, self.figures)
        self.phase: Literal["work", "rest", "settle"] = "rest"
        cards = {False: iter(found.apart.cards), True: iter(bank_cards)}
        self._at_bank = {card.document for card in bank_cards}
        self.shops = []
        for terminal in found.apart.terminals:
            traces, cashiers = Traces(), []
            for place in range(CASHIERS):
                bank = place == CASHIERS - 1
                own = [next(cards[bank]) for _ in range(CARDS)]
                cashiers.append(
                    Cashier(
                        f"{place + 1:06d}", traces,
                        [Card(c.card, c.document, c.seed) for c in own],
                        f"{seed} {terminal.number} {place}",
                        thousands=(range(40, 90), range(40, 99)) if bank
                        else (range(10, 39), range(1, 39)),
                        too_much=4_000_000 if bank else 0,
                    )
                )  # fmt: skip
            self.shops.append(Shop(self, terminal.number, terminal.key, cashiers))

    @property
    def operations(self) -> list[tuple[str, Operation]]:
        """Every operation there was, with its terminal."""
        return [
            (shop.number, operation)
            for shop in self.shops for cashier in shop.cashiers
            for operation in cashier.operations
        ]  # fmt: skip

    async def run(self, seconds: float, round_s: float) -> None:
        """Rounds for so long; the processes run before and after."""
        until_s = trio.current_time() + seconds
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await self._round(round_s)
                nursery.cancel_scope.cancel()
            if trio.current_time() >= until_s:
                return

    async def _round(self, seconds: float) -> None:
        self.figures.rounds += 1
        self.phase = "work"
        async with trio.open_nursery() as working:
            for shop in self.shops:
                working.start_soon(shop.work)
            for _ in range(SITES):
                working.start_soon(self.sites.work, lambda: self.phase == "work")
            await self.weather.storm(f"{self.seed} {self.figures.rounds}", seconds)
            self.phase = "rest"
        began_s = trio.current_time()
        await self._settled(everything=False)
        self.figures.live_s.append(trio.current_time() - began_s)
        await self._compared()

    async def lose(self, role: str) -> None:
        """A round with one planned fault: a role dies while nothing reaches the issuers, so that it
        owes them something for certain; compared soon after."""
        self.phase = "work"
        async with trio.open_nursery() as working:
            for shop in self.shops:
                working.start_soon(shop.work)
            await trio.sleep(3)
            self.lines["ceibo"].hold(*BOTH)
            self.lines[BANK].hold(*BOTH)
            await trio.sleep(1)
            await self.found.kill(role)
            self.lines.heal()
            await self.found.start(role)
            self.phase = "rest"
        await self._settled(everything=False)
        await self._compared(within_s=10.0)

    async def mute_bank(self) -> None:
        """A round with one planned fault: the bank hears of payments, and is not heard."""
        self.phase = "work"
        async with trio.open_nursery() as working:
            for _ in range(SITES):
                working.start_soon(self.sites.work, lambda: self.phase == "work")
            await trio.sleep(3)
            self.lines["host"].hold("back")
            await trio.sleep(3)
            self.lines["host"].reset()
            self.lines.heal()
            self.phase = "rest"
        await self._settled(everything=False)
        await self._compared()

    async def _settled(self, *, everything: bool) -> None:
        self.phase = "settle"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(self.sites.settle, everything=everything))
            for shop in self.shops:
                nursery.start_soon(partial(shop.settle, everything=everything))

    async def finish(self) -> None:
        """Ask for everything once more, compare, and end the processes in good order."""
        await self._settled(everything=True)
        await self._compared()
        for role in reversed(ALL):
            code = await self.found.stop(role)
            assert code == 0, f"{role} ended with {code}:\n{self.found.tail(role)}"
        for role, config in self._configs.items():
            report = await trio.to_thread.run_sync(_verified, config)
            assert report.ok, (role, report.problems)
            assert report.holds_open == 0, role
        for role in ALL:
            assert "Traceback" not in self.found.apart.log(role).read_text(), role
        await trio.to_thread.run_sync(self._look_for_secrets)

    @property
    def _configs(self) -> dict[str, Config]:
        """Of everybody with a data directory; the bank's host has its book instead."""
        return self.found.apart.configs | {"cip": self.apart.house.config}

    def _look_for_secrets(self) -> None:
        """Keys are in no file, and card numbers in none of the payment application. (Documents
        have the digits of too many numbers here.)"""
        apart = self.apart
        keys = [
            bytes.fromhex(v) for v in (*apart.host_keys.values(), *self.apart.house.keys.values())
        ]
        keys += [apart.network_key.key, *(terminal.key.key for terminal in apart.terminals)]
        for config in self._configs.values():
            assert keys_left(config.path.parent, keys) == []
        assert texts_left(self.apart.house.config.path.parent, [payments.PAN], []) == []

    async def _watch(self) -> None:
        """Find out when this process itself stood still."""
        while True:
            before_s = trio.current_time()
            await trio.sleep(0.1)
            if trio.current_time() - before_s > LAG_S:
                self.weather.excuse(before_s, trio.current_time() + SEEN_AFTER_S)

    # ---- what must hold

    async def _compared(self, within_s: float = AGREED_S) -> None:
        agreed = await self.found.agreed(within_s)
        await trio.to_thread.run_sync(self._compare, agreed)

    def _compare(self, agreed: Agreement) -> None:
        """Raises Broken, where what was told is not what is."""
        self._compare_register()
        self._compare_cards()
        self.sites.compare()
        paid = {"cash_out": 0, "deposit": 0}
        for _, operation in self.operations:
            if operation.states <= PAID:
                paid[operation.kind] += operation.request.amount
        for role, amounts in agreed.amounts.items():
            if amounts != paid:
                raise Broken(f"{role} has {amounts}, cashiers were told of {paid}")
        if agreed.holds_open or any(agreed.money_check.values()):
            raise Broken(f"{agreed.holds_open} holds are open; {agreed.money_check}")

    def _compare_register(self) -> None:
        """red has registered what was told, each once, and nothing else."""
        state = _state(self.found.apart.configs["red"])
        register: dict[tuple[str, int], RedOperation] = {}
        for _, value in state.records.items(ops.RED_OPERATIONS):
            red = ops.decode_red(value)
            if red.kind != "annul":
                assert (red.terminal, red.trace) not in register
                register[red.terminal, red.trace] = red
        for number, operation in self.operations:
            found = register.pop((number, operation.request.trace), None)
            has = NOTHING if found is None else found.state
            if {has} != operation.states:
                name = f"{number} {operation.kind} {operation.request.trace}"
                raise Broken(f"{name}: red has {has!r}, told {sorted(operation.states)}")
            if found is not None and found.amount != operation.request.amount:
                raise Broken(f"{number} {operation.request.trace}: another amount")
        if register:
            raise Broken(f"nobody asked for {sorted(register)}")

    def _compare_cards(self) -> None:
        """Each card has what cashiers were told about it, to the guaraní."""
        effects: Counter[tuple[bool, str]] = Counter()
        for _, operation in self.operations:
            card = operation.card
            effects[card.document in self._at_bank, card.card] += operation.effect
        ledgers = {
            bank: _state(self.found.apart.configs[BANK if bank else "ceibo"]).ledger
            for bank in (True, False)
        }
        for (bank, name), effect in effects.items():
            balance = ledgers[bank].balance(account_id(f"card:{name}"))
            assert balance is not None
            if balance.available != BALANCE + effect:
                had = f"has {balance.available}, was told of {BALANCE + effect}"
                raise Broken(f"{name} of {'the bank' if bank else 'ceibo'}: {had}")

    def row(self, seconds: float, findings: int) -> str:
        """The run as a line of the table in docs/reliability.md."""
        figures, cashiers = self.figures, self._cashiers
        faults = figures.faults
        cells = (
            f"seed {self.seed}", figures.rounds, f"{seconds:,.0f}", self._kills,
            faults["freeze"], faults["restart"], self._partitions, f"{len(self.operations):,}",
            f"{len(self.sites.bills):,}",
            f"{sum(c.answers for c in cashiers) + self.sites.answers:,}",
            sum(c.unanswered for c in cashiers) + self.sites.unanswered, findings,
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"

    @property
    def _cashiers(self) -> list[Cashier]:
        return [cashier for shop in self.shops for cashier in shop.cashiers]

    @property
    def _kills(self) -> int:
        faults = self.figures.faults
        return faults["kill"] + 2 * faults["kill_starting"] + len(ALL) * faults["blackout"]

    @property
    def _partitions(self) -> int:
        return sum(self.figures.faults[name] for name in LINE_FAULTS)

    def report(self, seconds: float) -> str:
        figures, cashiers, sites = self.figures, self._cashiers, self.sites
        faults = figures.faults
        states = Counter(next(iter(o.states)) or "unknown" for _, o in self.operations)
        return "\n".join(
            (
                f"seed {self.seed}: {figures.rounds} rounds in {seconds:.0f} s: {self._kills} "
                f"kills, {faults['freeze']} stops (SIGSTOP), {faults['restart']} restarts, "
                f"{self._partitions} faults of lines",
                f"faults: {dict(sorted(faults.items()))}",
                f"{len(self.operations)} operations {dict(sorted(states.items()))}, "
                f"{sum(c.answers for c in cashiers)} answers, "
                f"{sum(c.unanswered for c in cashiers)} requests without one, "
                f"{sum(c.resent for c in cashiers)} resent, "
                f"{sum(c.repeats for c in cashiers)} repeats",
                f"{len(sites.bills)} payments {sites.ends}, {sites.answers} answers, "
                f"{sites.unanswered} requests without one, {sites.repeats} repeats",
                f"settled after faults in {max(figures.live_s, default=0.0):.1f} s at most; "
                f"longest answer in good weather for red {figures.longest_wait_s:.1f} s",
            )
        )


LINE_FAULTS = ("cut", "reset", "refuse", "black_hole", "half_open", "vanish", "slow", "hang")


def _state(config: Config) -> State:
    state = State(config, config.data)
    state.recover(live=True)
    return state


def _verified(config: Config) -> Report:
    return verify(config, config.data)


@asynccontextmanager
async def torture(
    directory: Path, seed: int, *, program: dict[str, tuple[str, ...]] | None = None
) -> AsyncIterator[Torture]:
    """Everything up and running; gone at the end, however it went.

    Of an even seed the bank behind the payment application cannot be asked what became of a
    payment: what is unknown is undone.
    """
    async with (
        provisioned(directory, inquiry=bool(seed % 2), program=program) as made_of,
        trio.open_nursery() as nursery,
    ):
        found, lines, bank_cards = made_of
        made = Torture(found, lines, bank_cards, seed)
        await lines.run(made.apart, nursery)
        await found.start(*ALL)
        yield made
        nursery.cancel_scope.cancel()
