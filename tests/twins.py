"""Two houses that start from the same data directory, and random traffic that goes through both.

One decides common operations natively, the other never; they must say the same and stay the same,
byte for byte.
"""

import copy
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from msgspec import structs

from protocols.messages import Annul, CashOut, Delivered, Deposit, LastOperation
from switch.flows import operations as ops
from switch.node import Node
from tests.house import (
    BRANCH,
    MASTER,
    NETWORK,
    OTHER_TERMINAL,
    TERMINAL,
    Holder,
    House,
    ManualClock,
    builtins,
    configuration,
)

PLAIN_TERMINAL = "00001240"  # prints no ticket
OTHER_NETWORK = "0013"
OTHER_NETWORKS_TERMINAL = "00002001"
PHONE, SHARED_PHONE = "+595981000001", "+595981000002"
SPACES = {
    name: value for name, value in vars(ops).items() if name.isupper() and isinstance(value, int)
}
NIGHT = """
[limits.night]
scope = "card"
kind = "cash_out"
window = "night"
max = "400000 PYG"
"""
TIERS = """
[limits.gold]
scope = "card"
kind = "cash_out"
window = "operation"
max = "300000 PYG"
tier = "gold"
"""
METERED = """
[limits.terminal_day]
scope = "terminal"
kind = "cash_out"
window = "day"
max = "2000000 PYG"
"""


class Pair:
    """The two houses, and the hands that work both."""

    def __init__(self, directory: Path, *, toml: str = "", limits: str = "") -> None:
        for name in ("straight", "flows"):
            (directory / name).mkdir()
        self.straight = House(directory / "straight", toml=toml, limits=limits)
        self.holders = self._provision(self.straight)
        self.straight.close()
        shutil.copytree(directory / "straight" / "data", directory / "flows" / "data")
        self.flows = copy.copy(self.straight)
        self.flows.directory = directory / "flows"
        self.flows.clock = ManualClock()
        off = toml if "[node]" in toml else f"[node]\n{toml}"
        off = off.replace("[node]", "[node]\nstraight_through = false")
        self.flows.config = configuration(self.flows.directory, off, limits)
        for house in self.houses:
            house.notices = []
            house.node = Node(house.config, MASTER, house.clock, house.directory / "data")
            house.node.open()

    @property
    def houses(self) -> tuple[House, House]:
        return self.straight, self.flows

    def _provision(self, house: House) -> list[Holder]:
        house.do("terminal_add", number=PLAIN_TERMINAL, network=NETWORK, branch=BRANCH,
                 ticket=False)  # fmt: skip
        house.do("network_add", number=OTHER_NETWORK)
        house.do("terminal_add", number=OTHER_NETWORKS_TERMINAL, network=OTHER_NETWORK,
                 branch="000021", ticket=False)  # fmt: skip
        holders = [house.holder, *(house.add_card(balance=2_000_000) for _ in range(6))]
        tiers = house.config.business.tiers
        several = holders[1].document
        holders += [house.add_card(document=several) for _ in range(2)]
        holders.append(house.add_card(phone=PHONE))
        holders += [house.add_card(phone=SHARED_PHONE) for _ in range(2)]
        holders.append(house.add_card(token_mode="ocra"))
        holders += [house.add_card(tier=tiers[-1]), house.add_card(expires="2026-11-22")]
        holders.append(house.add_card(kinds=["deposit"]))
        house.do("cashier_add", number="000777", network=NETWORK, branch=BRANCH, name="ANA R.")
        return holders

    def advance(self, seconds: float) -> None:
        for house in self.houses:
            house.clock.advance(seconds)

    def do(self, command: str, **values: Any) -> None:
        first, second = (house.do(command, **values) for house in self.houses)
        assert first == second

    def turn(self, requests: list[tuple[str, Any]]) -> list[list[Any]]:
        """The same requests to both, in one step each; what was said is the same, and returned."""
        first, second = (house.turn(requests) for house in self.houses)
        for (terminal, message), one, other in zip(requests, first, second, strict=True):
            assert [builtins(m) for m in one] == [builtins(m) for m in other], (terminal, message)
        return first

    def compare(self) -> None:
        """Both houses are the same: ledger, every record of every space, alarms, audit trail."""
        one, other = (house.node for house in self.houses)
        for name, space in SPACES.items():
            if space < 100:
                first, second = (
                    {key: (value, node.store.records.meta(space, key))
                     for key, value in node.store.records.items(space)}
                    for node in (one, other)
                )  # fmt: skip
                assert first == second, name
        assert one.store.records.digest() == other.store.records.digest()
        assert one.store.ledger.digest() == other.store.ledger.digest()
        assert one.alarms == other.alarms
        assert one.codes == other.codes

    def compare_trails(self) -> None:
        first, second = (house.audit() for house in self.houses)
        assert first == second

    @property
    def decided(self) -> int:
        """How many were decided natively."""
        assert self.flows.node.straight.core.counts["decided"] == 0
        return int(self.straight.node.straight.core.counts["decided"])

    def cash_out(self, holder: Holder, **fields: Any) -> CashOut:
        values: dict[str, Any] = {
            "trace": self.straight.trace(), "cashier": "345", "document": holder.document,
            "token": self.straight.code(holder), "amount": 50_000, "currency": "PYG",
        } | fields  # fmt: skip
        return CashOut(**{name: value for name, value in values.items() if value is not None})


class Traffic:
    """Random requests of several terminals, most of them usual ones, from one seed."""

    TERMINALS = (TERMINAL, OTHER_TERMINAL, PLAIN_TERMINAL, PLAIN_TERMINAL, OTHER_NETWORKS_TERMINAL)
    AMOUNTS = (
        1_000, 50_000, 50_000, 150_000, 150_000, 300_000, 301_000, 400_000, 999, 1_500, 0 + 1,
        5_000_000, 5_001_000, 2_000_000, 1_950_000,
    )  # fmt: skip

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.random = random.Random(seed)
        self.sent: list[tuple[str, Any]] = []

    def requests(self) -> list[tuple[str, Any]]:
        return [self.request() for _ in range(self.random.choice((1, 1, 2, 3, 6)))]

    def request(self) -> tuple[str, Any]:
        pick = self.random
        terminal = pick.choice(self.TERMINALS)
        kind = pick.random()
        request: tuple[str, Any]
        if kind < 0.72 or not self.sent:
            request = terminal, self.cash_out()
        elif kind < 0.78:
            request = terminal, self.deposit()
        elif kind < 0.85:
            return self.again()
        elif kind < 0.90:
            return self.about(*pick.choice(self.sent))
        else:
            return terminal, LastOperation()
        self.sent.append(request)
        return request

    def cash_out(self) -> CashOut:
        pick, pair = self.random, self.pair
        holder = pick.choice(pair.holders)
        fields: dict[str, Any] = {"amount": pick.choice(self.AMOUNTS)}
        now_s = pair.straight.clock.now_ns // 1_000_000_000
        token = pick.random()
        if token < 0.06:
            fields["token"] = pair.straight.wrong_code(holder)
        elif token < 0.2:
            steps = pick.choice((-9, -3, -2, -1, 1, 2, 20))
            fields["token"] = pair.straight.code(holder, at_s=now_s + 60 * steps)
        elif token < 0.22:
            fields["token"] = "12345678"
        elif token < 0.24:
            fields["token"] = "1234567"
        person = pick.random()
        if holder in pair.holders[9:12] and person < 0.8:
            phone = PHONE if holder is pair.holders[9] else SHARED_PHONE
            fields |= {"document": None, "phone": phone.replace("+595", pick.choice(("0", "+595")))}
        elif person < 0.03:
            fields["document"] = pick.choice(("123", "9999999", "AB12345", "45678901", "4567-90"))
        elif person < 0.06:
            fields |= {"document_type": pick.choice(("CI", "RUC", "PAS"))}
        elif person < 0.08:
            fields |= {"phone": PHONE}
        place = pick.random()
        if place < 0.1:
            fields["cashier"] = pick.choice(("1", "000777", "777", "000000", "345678"))
        elif place < 0.16:
            fields["branch"] = pick.choice(("17", BRANCH, "21", "000099"))
        elif place < 0.18:
            fields["currency"] = pick.choice(("USD", "XXX"))
        elif place < 0.25:
            fields["local_time"] = "2026-11-22T12:00:00-03:00"
        return pair.cash_out(holder, **fields)

    def deposit(self) -> Deposit:
        holder = self.random.choice(self.pair.holders)
        return Deposit(
            trace=self.pair.straight.trace(), cashier="345", document=holder.document,
            amount=self.random.choice(self.AMOUNTS), currency="PYG",
        )  # fmt: skip

    def again(self) -> tuple[str, Any]:
        """The same once more, the same with another amount, or from another terminal."""
        terminal, message = self.random.choice(self.sent[-8:])
        way = self.random.random()
        if way < 0.2:
            return self.random.choice(self.TERMINALS), message
        if way < 0.4:
            message = structs.replace(message, amount=77_000)
        return terminal, message

    def about(self, terminal: str, message: Any) -> tuple[str, Any]:
        way = self.random.random()
        if way < 0.4:
            return terminal, Delivered(original=message.trace)
        if way < 0.6:
            return terminal, LastOperation(original=message.trace)
        date = self.pair.straight.node.calendar.business(self.pair.straight.clock.now_ns).iso
        return terminal, Annul(
            trace=self.pair.straight.trace(), cashier="000345", original=message.trace,
            supervisor="000900", business_date=date,
        )  # fmt: skip


P = TypeVar("P", bound="Pair")


def built(directory: Path, kind: type[P]) -> Iterator[Callable[..., P]]:
    """For a fixture: what makes pairs. At its end all that were made must agree and be sound."""
    pairs: list[P] = []

    def make(**values: Any) -> P:
        place = directory / str(len(pairs))
        place.mkdir()
        pairs.append(kind(place, **values))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.compare()
        pair.compare_trails()
        for house in pair.houses:
            house.sound()
            house.close()


def drive(pair: Pair, seed: int, turns: int, traffic: Traffic | None = None) -> None:
    """Random traffic with time going by, at midnight too; things disabled and enabled between."""
    traffic = traffic or Traffic(pair, seed)
    pick = traffic.random
    for number in range(turns):
        pair.turn(traffic.requests())
        event = pick.random()
        if event < 0.5:
            pair.advance(pick.choice((0.5, 7, 31, 61, 61, 130)))
        elif event < 0.55:
            enable = pick.random() < 0.7
            command, values = pick.choice(
                (
                    ("terminal_enable", {"number": PLAIN_TERMINAL}),
                    ("branch_enable", {"number": BRANCH, "network": NETWORK}),
                    ("network_enable", {"number": OTHER_NETWORK}),
                    ("cashier_enable", {"number": "000777", "network": NETWORK}),
                    ("card_enable", {"card": pick.choice(pair.holders).card}),
                )
            )
            pair.do(command, **values, enable=enable)
            pair.do(command, **values, enable=True)
        elif event < 0.58:
            pair.do("card_unlock", card=pick.choice(pair.holders).card)
        elif event < 0.60:
            pair.do("card_fund", card=pick.choice(pair.holders).card, amount=500_000)
        elif event < 0.62:
            to_midnight_s = 86_400 - (pair.straight.clock.now_ns // 10**9 - 3 * 3600) % 86_400
            pair.advance(to_midnight_s - 60)
        if number % 20 == 19:
            pair.compare()
