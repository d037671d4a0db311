"""A whole switch in one process for tests: real core, journal and flows; only the clock is ours.

`House` provisions a network with terminals and cards, plays terminals without sockets, and checks
the end states of the acceptance specification (section 5): cash told, available balance, hold at
the issuer, the network's position, red's register, all books balanced.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from core_ext._mac import totp
from protocols.messages import Answer, CashOut, Deposit
from switch.config import Config, load
from switch.flows import operations as ops
from switch.flows.operations import RedOperation
from switch.flows.registry import account_id
from switch.node import Node
from switch.ops.keys import MasterKey, from_base32
from switch.provisioning import Provisioning

NOON_NS = 1_795_359_600 * 1_000_000_000  # 2026-11-22 15:00:00 UTC, noon in Asunción
NETWORK = "0012"
TERMINAL = "00001234"
OTHER_TERMINAL = "00001235"
BRANCH = "000017"
DOCUMENT = "4567890"
MASTER = MasterKey(bytes(range(32)))


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_ns: int = NOON_NS) -> None:
        self.now_ns = now_ns
        self.up_ns = 1_000_000_000

    def wall_ns(self) -> int:
        return self.now_ns

    def mono_ns(self) -> int:
        return self.up_ns

    def advance(self, seconds: float) -> None:
        """Both clocks go on."""
        self.now_ns += int(seconds * 1e9)
        self.up_ns += int(seconds * 1e9)

    def step(self, seconds: float) -> None:
        """Only the wall clock jumps."""
        self.now_ns += int(seconds * 1e9)


@dataclass
class Holder:
    """One provisioned card and what its holder knows."""

    card: str
    seed: bytes
    document: str


class Told:
    """A destination of the reply gate that keeps what it was told."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def ready(self, message: Any) -> None:
        self.messages.append(message)

    def flush(self) -> None:
        pass


def configuration(directory: Path, toml: str = "") -> Config:
    """The configuration of a fresh init, with changes on top; small journal segments."""
    text = toml
    if "[journal]" not in text:
        text += "\n[journal]\nsegment_bytes = 4194304\ngroup_bytes_max = 524288\nreserve_bytes = 65536\n"
    path = directory / "troncal.toml"
    path.write_text(DEFAULT_LIMITS + text)
    return load(path, environ={})


DEFAULT_LIMITS = """
[units]
py_daily_wage = [{ from = "2024-07-01", pyg = 107627 }]
usd = [{ from = "2026-01-01", pyg = 7000 }]
[limits]
card_month = { scope = "card", kind = "cash_out", window = "calendar_month", max = "40 py_daily_wage", tier = "basic" }
operation = { scope = "card", kind = "any", window = "operation", min = "1000 PYG", max = "5000000 PYG", multiple = "1000 PYG" }
[declarations]
cash = { scope = "depositor", window = "day", threshold = "10000 usd" }
"""


class House:
    """A running node with one network, two terminals and one card, and hands to work it."""

    def __init__(self, directory: Path, *, toml: str = "", net_debit_cap: int = 100_000_000,
                 payable_cap: int = 0, balance: int = 1_000_000) -> None:  # fmt: skip
        self.directory = directory
        self.clock = ManualClock()
        self.config = configuration(directory, toml)
        self.node = Node(self.config, MASTER, self.clock, directory / "data")
        self.node.open()
        self._trace = 0
        self._documents = 4_567_890
        self.do("network_add", number=NETWORK, net_debit_cap=net_debit_cap, payable_cap=payable_cap)
        for terminal in (TERMINAL, OTHER_TERMINAL):
            self.do("terminal_add", number=terminal, network=NETWORK, branch=BRANCH)
        self.holder = self.add_card(document=DOCUMENT, balance=balance)

    def close(self) -> None:
        self.node.store.commit()
        self.node.close()

    def reopen(self) -> None:
        """Stop in good order and start again: recovery is the only way in."""
        self.close()
        self.node = Node(self.config, MASTER, self.clock, self.directory / "data")
        self.node.open()

    def crash(self) -> None:
        """Lose what is not durable, then recover."""
        self.node.store.journal.close(flush=False)
        self.node = Node(self.config, MASTER, self.clock, self.directory / "data")
        self.node.open()

    # ---- hands

    def do(self, command: str, **values: Any) -> Any:
        """Run a provisioning command, durable on return."""
        step = self.node.begin()
        answer = Provisioning(self.node).call(step, command, values)
        self.node.end(step)
        self.node.store.commit()
        self.node.on_durable()
        return answer

    def add_card(self, *, document: str = "", balance: int = 1_000_000, **values: Any) -> Holder:
        if not document:
            self._documents += 1
            document = str(self._documents)
        made = self.do(
            "card_add", document=document, name="ANA MARIA ROJAS", balance=balance, **values
        )
        return Holder(made["card"], from_base32(made["seed"]), document)

    def code(self, holder: Holder | None = None, *, at_s: int | None = None) -> str:
        """The holder's present code, as his app shows it."""
        moment = self.clock.now_ns // 1_000_000_000 if at_s is None else at_s
        return totp((holder or self.holder).seed, moment)

    def trace(self) -> int:
        self._trace += 1
        return self._trace

    def ask(self, message: Any, terminal: str = TERMINAL) -> Any:
        """Send one request of a terminal and return its answer once that is durable."""
        return self.ask_all([message], terminal)[0]

    def ask_all(self, messages: list[Any], terminal: str = TERMINAL) -> list[Any]:
        """Requests of one read: one turn, one group. Answers in the order of the gate."""
        told = Told()
        record = self.node.registry.terminal(terminal)
        assert record is not None
        step = self.node.begin()
        for message in messages:
            self.node.terminal_request(step, record, message, told)
        self.node.end(step)
        self.settle()
        return told.messages

    def settle(self) -> None:
        """Let everything become durable and every answer out."""
        self.node.store.commit()
        self.node.on_durable()

    def cash_out(self, amount: int = 150_000, *, holder: Holder | None = None, token: str = "",
                 trace: int = 0, terminal: str = TERMINAL, **fields: Any) -> Answer:  # fmt: skip
        holder = holder or self.holder
        values: dict[str, Any] = {"document": holder.document, "cashier": "000345"} | fields
        message = CashOut(
            trace=trace or self.trace(), token=token or self.code(holder), amount=amount,
            currency="PYG", **values,
        )  # fmt: skip
        answer = self.ask(message, terminal)
        assert isinstance(answer, Answer)
        return answer

    def deposit(self, amount: int = 150_000, *, holder: Holder | None = None, trace: int = 0,
                terminal: str = TERMINAL, **fields: Any) -> Answer:  # fmt: skip
        holder = holder or self.holder
        values: dict[str, Any] = {"document": holder.document, "cashier": "000345"} | fields
        message = Deposit(
            trace=trace or self.trace(), amount=amount, currency="PYG", **values
        )
        answer = self.ask(message, terminal)
        assert isinstance(answer, Answer)
        return answer

    # ---- eyes

    def available(self, holder: Holder | None = None) -> int:
        return int(self.do("card_show", card=(holder or self.holder).card)["available"])

    def position(self) -> int:
        """P: positive means that the network owes."""
        balance = self.node.store.ledger.balance(account_id(f"sicoop:PYG:net:{NETWORK}"))
        assert balance is not None
        return balance.debits_posted - balance.credits_posted

    def register(self, trace: int, terminal: str = TERMINAL, date: str = "") -> RedOperation | None:
        """red's record of a trace of today."""
        day = date or self.node.calendar.local(self.clock.now_ns).compact
        found = self.node.store.records.get(
            ops.RED_OPERATIONS, f"{NETWORK}{terminal}{day}{trace:06d}".encode()
        )
        return None if found is None else ops.decode_red(found)

    def states(self, trace: int, terminal: str = TERMINAL, date: str = "") -> tuple[str, str, str]:
        """States of an operation at red, sicoop and ceibo; '' where there is nothing."""
        day = date or self.node.calendar.local(self.clock.now_ns).compact
        reference = f"{NETWORK}{terminal}{day}{trace:06d}"
        records = self.node.store.records
        red = records.get(ops.RED_OPERATIONS, reference.encode())
        sicoop = records.get(ops.SICOOP_OPERATIONS, reference.encode())
        operation = "" if sicoop is None else ops.decode_sicoop(sicoop).operation
        ceibo = records.get(ops.CEIBO_HOLDS, (NETWORK + operation).encode()) if operation else None
        return (
            "" if red is None else ops.decode_red(red).state,
            "" if sicoop is None else ops.decode_sicoop(sicoop).state,
            "" if ceibo is None else ops.decode_ceibo(ceibo).state,
        )

    def sound(self) -> None:
        """All books balance, and a replay of the journal gives this very state."""
        assert self.node.money_check() == {"posted": 0, "pending": 0}
        assert self.node.store.ledger.check() == []

    def kinds_of_records(self) -> list[int]:
        """Kinds of all records written so far, for the absence of some."""
        from core_ext import Reader

        reader = Reader(str(self.directory / "data" / "journal"))
        kinds: list[int] = []
        while (group := reader.next()) is not None:
            kinds += [kind for kind, _ in group.records()]
        reader.close()
        return kinds


def builtins(message: Any) -> dict[str, Any]:
    """A message as a mapping without absent fields."""
    found = msgspec.to_builtins(message)
    assert isinstance(found, dict)
    return found
