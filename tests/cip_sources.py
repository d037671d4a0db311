"""The payment application before each of its sources, for cases that hold whatever the source is.

A `Place` is a house whose application has one source, with what a payment looks like there and how
often the source has taken the money. `silent` makes the source decide and not tell.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core_ext._mac import totp
from protocols.iso8583 import bank, ceibo
from protocols.iso8583.connection import Received
from protocols.iso8583.dialect import Dialect, Message
from protocols.messages import Hold, IssuerState
from switch.config import LinkSettings
from switch.flows.bank_port import BankPort
from switch.net.saf import StoreAndForward
from switch.node import Node
from switch.ops.keys import from_base32
from switch.simulators.book import Book
from tests.cip_house import CipHouse

AMOUNT = 150_000
OPENING = 500_000
BANK = "banco1"
INSTITUTION = "0011"
NETWORK, TERMINAL = "0077", "00007701"


class Place:
    """One source. `ends`: what becomes of a payment whose answer never came."""

    name = ""
    ends = "CONFIRMED"

    def __init__(self, directory: Path, **values: Any) -> None:
        self.house = self.open(directory, values)

    def open(self, directory: Path, values: dict[str, Any]) -> CipHouse:
        raise NotImplementedError

    def body(self, client_ref: str = "INV-1", amount: int = AMOUNT, **more: Any) -> dict[str, Any]:
        """A payment that the source takes."""
        return self.house.body(client_ref, amount, **more)

    def poor(self, client_ref: str = "INV-1") -> dict[str, Any]:
        """One that it declines for want of funds."""
        return self.body(client_ref, AMOUNT + 51)

    def mute(self, client_ref: str = "INV-1") -> dict[str, Any]:
        """One that it takes, where it is `silent`."""
        return self.body(client_ref)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It decides, and nobody hears of it."""
        yield

    def charges(self) -> int:
        """How often it has the money of a payment."""
        raise NotImplementedError


class AtSimulator(Place):
    name = "simulator"

    def open(self, directory: Path, values: dict[str, Any]) -> CipHouse:
        return CipHouse(directory, **values)

    def mute(self, client_ref: str = "INV-1") -> dict[str, Any]:
        return self.body(client_ref, AMOUNT + 73)

    def charges(self) -> int:
        return self.house.charges()


class _AtCard(Place):
    """A card of this node's own core."""

    card: dict[str, Any]

    def poor(self, client_ref: str = "INV-1") -> dict[str, Any]:
        return self.body(client_ref, OPENING + 1)

    def charges(self) -> int:
        node = self.house.node
        account = node.registry.card(self.card["card"]).account
        count, rest = divmod(OPENING - node.store.ledger.balance(account).available, AMOUNT)
        assert rest == 0
        return count


class AtLedger(_AtCard):
    name = "ledger"

    def open(self, directory: Path, values: dict[str, Any]) -> CipHouse:
        house = CipHouse(directory, source="ledger", **values)
        self.card = house.command("card_add", document="4567890", balance=OPENING)
        return house

    def body(self, client_ref: str = "INV-1", amount: int = AMOUNT, **more: Any) -> dict[str, Any]:
        value = self.house.body(client_ref, amount, **more)
        value["transaction"]["instrument"] = {"type": "ledger", "account": self.card["card"]}
        return value


class AtDimo(_AtCard):
    name = "dimo"
    ends = "VOIDED"

    def open(self, directory: Path, values: dict[str, Any]) -> CipHouse:
        house = CipHouse(
            directory, toml=f'[cip]\nnetwork = "{NETWORK}"\nbranch = "1"', source="dimo",
            terminal=TERMINAL, **values,
        )  # fmt: skip
        house.command("network_add", number=NETWORK, name="CIP")
        house.command("terminal_add", number=TERMINAL, network=NETWORK, branch="1")
        self.card = house.command("card_add", document="4567890", balance=OPENING)
        return house

    def body(self, client_ref: str = "INV-1", amount: int = AMOUNT, **more: Any) -> dict[str, Any]:
        value = self.house.body(client_ref, amount, **more)
        token = totp(from_base32(self.card["seed"]), self.house.clock.now_ns // 1_000_000_000)
        value["transaction"]["instrument"] = {
            "type": "dimo", "document": "4567890", "token": token,
        }  # fmt: skip
        return value

    @contextmanager
    def silent(self) -> Iterator[None]:
        source = self.house.flow.sources["dimo"]
        told, source._platform = source._platform, _Unheard(source._platform)  # type: ignore
        yield
        source._platform = told  # type: ignore[attr-defined]


class _Unheard:
    """sicoop, whose answers to holds get lost."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def ask(self, step: Any, network: str, message: Any, origin: Any = None) -> Any:
        answer = self._platform.ask(step, network, message, origin)
        return None if isinstance(message, Hold) else answer


class AtBank(Place):
    name = "bank"

    def open(self, directory: Path, values: dict[str, Any]) -> CipHouse:
        self.bank = Bank()
        house = CipHouse(directory, ways=self.bank.ways, source="bank", bank=BANK, **values)
        house.restart()  # links are opened at the start
        return house

    @contextmanager
    def silent(self) -> Iterator[None]:
        self.bank.is_silent = True
        yield
        self.bank.is_silent = False

    def charges(self) -> int:
        return sum(entry.state == "CAPTURADA" for entry in self.bank.book.entries.values())


class Bank:
    """A bank at the far end of its port: honest books, and answers as told.

    Attributes:
        is_deaf: messages do not arrive. is_silent: they do, and their answers get lost.
        status: DE39 of every inquiry's answer; "": what the book says.
        asked: what arrived or got lost, decoded.
    """

    def __init__(self) -> None:
        self.book = Book()
        self.up = True
        self.is_deaf = self.is_silent = False
        self.status = ""
        self.asked: list[Message] = []
        self.port: BankPort
        self._dialect = Dialect.load("bank")
        self._node: Node
        self._unanswered: list[tuple[Any, dict[str, object]]] = []
        self.lost: list[tuple[Any, dict[str, object]]] = []

    def ways(self, node: Node) -> "Bank":
        self._node = node
        self._unanswered.clear()
        return self

    def bank(self, name: str) -> BankPort:
        assert name == BANK
        self.port = BankPort(
            name=name, node=self._node, debts=StoreAndForward(up=True),
            settings=LinkSettings(institution=INSTITUTION), events=lambda *event: None,
        )  # fmt: skip
        self.port.attach(self)
        self._node.banks[name] = self.port
        return self.port

    def request(
        self, mti: str, elements: Mapping[str, object], *, token: Any, budget_s: float
    ) -> str:
        if not self.up:
            return "down"
        whole = {"mti": mti, **elements, "7": "1122120000", "11": f"{len(self.asked) + 1:06}"}
        message = self._dialect.decode(self._dialect.encode(whole))
        self.asked.append(message)
        if not self.is_deaf:
            answer = (token, self._decide(message))
            (self.lost if self.is_silent else self._unanswered).append(answer)
        return ""

    def flush(self) -> None:
        due, self._unanswered = self._unanswered, []
        for token, elements in due:
            self.answer(token, elements)

    def answer(self, token: Any, elements: Mapping[str, object]) -> None:
        answer = self._dialect.decode(self._dialect.encode(elements))
        step = self._node.begin()
        self.port.on_answer(step, token, Received(answer, is_request=False))
        self._node.end(step)

    def sent(self, *mtis: str) -> list[Message]:
        return [message for message in self.asked if message.mti in mtis]

    def _decide(self, message: Message) -> dict[str, object]:
        """The answer's elements; the book is what it is after this."""
        final = "10" if message.mti[2] == "0" else "30"
        echoed = {n: message[n] for n in ("3", "4", "7", "11", "37", "49") if n in message}
        told: dict[str, object] = {"mti": message.mti[:2] + final, **echoed}
        key = message["37"]
        if message.mti == "0600":
            entry = self.book.get(key)
            state = IssuerState("00", "" if entry is None else entry.state)
            return told | (
                {"39": self.status} if self.status else ceibo.answer_elements(message, state)
            )
        asked = bank.bank_request(message)
        if isinstance(asked, bank.Reversal):
            entry = self.book.get(key)
            if entry is not None and entry.state == "CAPTURADA":
                entry.state = "ACTIVA"
            return told | {"39": self.book.release(key, "purchase", asked.amount)}
        code = "51" if asked.amount % 100 == 51 else "00"
        code = self.book.hold(
            key, kind="purchase", amount=asked.amount, document="", body=(asked.amount,), code=code
        )
        if code == "00":
            self.book.capture(key, asked.amount)
            told |= {"38": "154935"}
        return told | {"39": code}


PLACES = {place.name: place for place in (AtSimulator, AtLedger, AtDimo, AtBank)}
