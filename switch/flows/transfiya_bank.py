"""A bank's core behind a link: TransfiYa's movements as messages of the `bank` dialect.

One 0200 per item and never a second one: it is the booking, so there is no second phase. What has
no answer, or an approval that came too late, is undone by 0420 and 0421 until the bank takes it.
"""

from hashlib import blake2b
from typing import Final, Protocol

from core_ext import Records
from protocols.iso8583.bank import BankAnswer, Credit, Purchase, Reversal
from protocols.iso8583.ceibo import Original
from protocols.iso8583.dialect import Message
from protocols.messages import AMOUNT_MAX
from switch.flows.bank_port import QUESTION, Owed
from switch.flows.step import Step
from switch.flows.transfiya_core import DONE, LATER
from switch.flows.transfiya_jobs import ROLE, BankSide
from switch.flows.transfiya_records import (
    ANSWERED,
    FAILING,
    MARKS,
    UPLOAD,
    Item,
    Items,
    SignerRecord,
    name_key,
)
from switch.flows.transfiya_steps import Machine

OPERATION_MAX: Final = 999_999_999_999
UNDOING: Final = "undoing"
_REASONS: Final = {
    "funds_short": "funds-insufficient",
    "account_unknown": "account-inactive",
    "account_closed": "account-inactive",
    "account_frozen_debit": "account-inactive",
    "limit_amount": "limit-exceeded",
    "limit_count": "limit-exceeded",
}
_BY_CODE: Final = {"51": "funds-insufficient", "61": "limit-exceeded", "65": "limit-exceeded"}
_INACTIVE: Final = frozenset(("14", "62", "78", "45", "46"))


class Port(Protocol):
    """The part of `BankPort` that is used."""

    def ask(
        self, step: Step, client: "BankClients", key: str, message: Purchase | Credit,
        budget_s: float,
    ) -> bool: ...  # fmt: skip

    def owe(self, step: Step, client: "BankClients", key: str, *, sent: bool = False) -> None: ...


class BankClients:
    """What all our banks are to the ports: asks, and takes answers; one for the whole product."""

    role: str = ROLE

    def __init__(self, items: Items) -> None:
        self._items = items
        self.machine: Machine
        self.banks: dict[str, BankSide] = {}
        self.late = 0

    def item(self, key: str) -> Item | None:
        """The unfinished item behind a key."""
        return next((one for one in self._items.live() if key_of(one) == key), None)

    def owed(self, key: str) -> Owed | None:
        item = self.item(key)
        if item is None or item.state != FAILING or item.released or not item.core_ref:
            return None
        return Reversal(
            operation=item.core_ref, amount=item.minor, currency=self._currency(item),
            is_credit=item.kind != UPLOAD, original=Original(mti="0200"),
        )  # fmt: skip

    def _currency(self, item: Item) -> str:
        return self.banks[item.bank].settings.symbols[item.symbol].currency

    def on_bank_answer(
        self, step: Step, what: str, key: str, answer: BankAnswer, message: Message
    ) -> None:
        item = self.item(key)
        if what != QUESTION:
            if item is not None and not item.released:
                self.machine.undone(step, item)
                self.machine.go(step, item)
            return
        if item is None or item.state != ANSWERED or item.core_state != LATER:
            self.late += 1  # its reversal is on its way: what it says has no effect
            step.alarm("late_answer", key)
            return
        self.machine.reserved(step, item, DONE if answer.code == "00" else _reason(answer))
        self.machine.go(step, item)

    def on_bank_lost(self, step: Step, key: str, reason: str) -> None:
        item = self.item(key)
        if item is None or item.state != ANSWERED or item.core_state != LATER:
            return
        if reason == "unsent":
            self.machine.reserved(step, item, "core-unreachable")
        else:
            self.machine.fail(step, item, "core-unknown")
        self.machine.go(step, item)


class BankCore:
    """One bank's core behind a link; see `transfiya_core.Core`."""

    def __init__(
        self, bank: str, port: Port, clients: BankClients, records: Records, budget_s: float
    ) -> None:
        self._bank = bank
        self._port = port
        self._clients = clients
        self._records = records
        self._budget_s = budget_s

    def refusal(self, item: Item, signer: SignerRecord) -> str:
        return "amount-invalid" if item.minor > AMOUNT_MAX else ""

    def reserve(self, step: Step, item: Item, signer: SignerRecord) -> str:
        item.core = item.core_ref = self._next_operation(step)
        message: Purchase | Credit
        if item.kind == UPLOAD:
            message = Purchase(
                operation=item.core_ref, amount=item.minor, currency=signer.currency,
                account_from=signer.account,
            )  # fmt: skip
        else:
            message = Credit(
                operation=item.core_ref, amount=item.minor, currency=signer.currency,
                account_to=signer.account,
            )  # fmt: skip
        asked = self._port.ask(step, self._clients, key_of(item), message, self._budget_s)
        return LATER if asked else "core-unreachable"

    def _next_operation(self, step: Step) -> str:
        """Our own numbers for DE37, journaled with the step that sends them."""
        key = name_key("operation", self._bank)
        known = self._records.get(MARKS, key)
        number = (int(known) if known else 0) % OPERATION_MAX + 1
        # The newest number must outlive the retention of what it stands beside.
        self._records.put(MARKS, key, b"%d" % number, open=True, stamp=step.now_ns)
        return f"{number:012d}"

    def post(self, step: Step, item: Item) -> str:
        return DONE  # the 0200 was the booking

    def undo(self, step: Step, item: Item) -> str:
        if item.core_state != UNDOING:
            item.core_state = UNDOING
            self._port.owe(step, self._clients, key_of(item))
        return LATER

    def adopt(self, step: Step, item: Item) -> str:
        """A question that may have left is never asked again; a reversal goes out as a repeat."""
        if item.state == FAILING and not item.released and item.core_state == UNDOING:
            self._port.owe(step, self._clients, key_of(item), sent=True)
        return "core-unknown" if item.core_state == LATER else ""


def key_of(item: Item) -> str:
    """A short name of an item for the port."""
    return blake2b(item.id.encode(), digest_size=12).hexdigest()


def _reason(answer: BankAnswer) -> str:
    if answer.code in _INACTIVE:
        return "account-inactive"
    return _REASONS.get(answer.key) or _BY_CODE.get(answer.code, "core-refused")
