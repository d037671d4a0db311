"""A bank's core behind a link: TransfiYa's movements as messages of the `bank` dialect.

Two phases are 0100 and then 0220, which is owed until the bank takes it; one phase is one 0200 that
books at once. Either question is asked once per item and never again. What has no answer, or an
approval that came too late, is undone by 0420 and 0421 until the bank takes that.
"""

from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from core_ext import Records
from protocols.iso8583.bank import BankAnswer, Credit, Purchase, Reversal
from protocols.iso8583.ceibo import Original
from protocols.iso8583.dialect import Message
from protocols.messages import AMOUNT_MAX
from switch.flows.bank_port import ADVICE, QUESTION, Owed
from switch.flows.step import Step
from switch.flows.transfiya_core import DONE
from switch.flows.transfiya_jobs import ROLE
from switch.flows.transfiya_records import (
    ANSWERED,
    LATER,
    MARKS,
    POSTING,
    UNDOING,
    UPLOAD,
    Directory,
    Item,
    SignerRecord,
    name_key,
)

OPERATION_MAX: Final = 999_999_999_999
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


class Movement(NamedTuple):
    """What a core moves, of whatever profile.

    Fields:
        state: `core_state` of its record. account: whose. held: it was asked for by 0100.
    """

    state: str
    operation: str
    minor: int
    currency: str
    account: str
    is_debit: bool
    held: bool

    def message(self, *, hold: bool = False) -> Purchase | Credit:
        if self.is_debit:
            return Purchase(
                operation=self.operation, amount=self.minor, currency=self.currency,
                account_from=self.account, hold=hold,
            )  # fmt: skip
        return Credit(
            operation=self.operation, amount=self.minor, currency=self.currency,
            account_to=self.account, hold=hold,
        )  # fmt: skip

    def reversal(self) -> Reversal:
        return Reversal(
            operation=self.operation, amount=self.minor, currency=self.currency,
            is_credit=not self.is_debit, original=Original(mti="0100" if self.held else "0200"),
        )  # fmt: skip


class Work(Protocol):
    """Whose work a core's movements are: a profile's. Names are of its own choice."""

    def movement(self, name: str) -> Movement | None:
        """What is under way in the core, None where nothing is."""

    def core_answered(self, step: Step, name: str, result: str) -> None:
        """Phase 1 is `done`, or refused for a reason."""

    def core_lost(self, step: Step, name: str) -> None:
        """Phase 1 has no answer: nobody knows what it did."""

    def core_posted(self, step: Step, name: str) -> None: ...

    def core_undone(self, step: Step, name: str) -> None: ...


class BankClients:
    """What all our banks are to the ports: asks, and takes answers; one for the whole product."""

    role: str = ROLE

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        """By profile."""
        self.late = 0
        self._names: dict[str, tuple[str, str]] = {}

    def enter(self, profile: str, name: str) -> str:
        """The key of a movement for the port, which knows it from now on."""
        key = blake2b(f"{profile}|{name}".encode(), digest_size=12).hexdigest()
        self._names[key] = (profile, name)
        return key

    def _find(self, key: str) -> tuple[Work, str, Movement] | None:
        profile, name = self._names.get(key, ("", ""))
        work = self.works.get(profile)
        movement = work.movement(name) if work is not None else None
        return (work, name, movement) if work is not None and movement is not None else None

    # ---- BankClient

    def owed(self, key: str) -> Owed | None:
        found = self._find(key)
        if found is None:
            return None
        movement = found[2]
        if movement.state == UNDOING:
            return movement.reversal()
        return movement.message() if movement.state == POSTING else None

    def on_bank_answer(
        self, step: Step, what: str, key: str, answer: BankAnswer, message: Message
    ) -> None:
        found = self._find(key)
        state = found[2].state if found is not None else ""
        if what == QUESTION:
            if found is None or state != LATER:
                self.late += 1  # its reversal is on its way: what it says has no effect
                step.alarm("late_answer", key)
                return
            found[0].core_answered(
                step, found[1], DONE if answer.code == "00" else _reason(answer)
            )  # fmt: skip
        elif found is not None and what == ADVICE and state == POSTING:
            if answer.code != "00":  # it holds the money and has our word: a person must look
                step.alarm("transfiya_capture_refused", found[2].operation, answer.host_code)
            found[0].core_posted(step, found[1])
        elif found is not None and what != ADVICE and state == UNDOING:
            found[0].core_undone(step, found[1])
        self._forget(key)

    def on_bank_lost(self, step: Step, key: str, reason: str) -> None:
        found = self._find(key)
        if found is None or found[2].state != LATER:
            return
        if reason == "unsent":
            found[0].core_answered(step, found[1], "core-unreachable")
        else:
            found[0].core_lost(step, found[1])
        self._forget(key)

    def _forget(self, key: str) -> None:
        """Names of what waits for nothing are not kept; it is entered again before it does."""
        found = self._find(key)
        if found is None or found[2].state not in (LATER, POSTING, UNDOING):
            self._names.pop(key, None)


class BankCore:
    """One bank's core behind a link; see `transfiya_core.Core`.

    Args:
        hold: a debit has two phases. profile: whose items these are; in v2 all have two.
        budget_s: until the answer to a question.
    """

    def __init__(
        self,
        bank: str,
        port: Port,
        clients: BankClients,
        records: Records,
        budget_s: float,
        *,
        hold: bool,
        profile: str = "v1",
    ) -> None:
        self._bank = bank
        self._port = port
        self._clients = clients
        self._records = records
        self._budget_s = budget_s
        self._hold = hold
        self._profile = profile

    def refusal(self, item: Item, signer: SignerRecord) -> str:
        return "amount-invalid" if item.minor > AMOUNT_MAX else ""

    def reserve(self, step: Step, item: Item, signer: SignerRecord) -> str:
        item.core = item.core_ref = self._next_operation(step)
        item.held = self._profile == "v2" or (self._hold and item.kind == UPLOAD)
        movement = Movement(
            LATER, item.core_ref, item.minor, signer.currency, signer.account,
            item.kind == UPLOAD, item.held,
        )  # fmt: skip
        message = movement.message(hold=item.held)
        try:
            asked = self._port.ask(step, self._clients, self._key(item), message, self._budget_s)
        except ValueError:
            return "amount-invalid"  # finer than the host's decimal places
        return LATER if asked else "core-unreachable"

    def _next_operation(self, step: Step) -> str:
        """Our own numbers for DE37, journaled with the step that sends them."""
        key = name_key("operation", self._bank)
        known = self._records.get(MARKS, key)
        number = (int(known) if known else 0) % OPERATION_MAX + 1
        # The newest number must outlive the retention of what it stands beside.
        self._records.put(MARKS, key, b"%d" % number, open=True, stamp=step.now_ns)
        return f"{number:012d}"

    def _key(self, item: Item) -> str:
        return self._clients.enter(self._profile, item.id)

    def post(self, step: Step, item: Item) -> str:
        if not item.held:
            return DONE  # the 0200 was the booking
        item.core_state = POSTING
        self._port.owe(step, self._clients, self._key(item))
        return LATER

    def undo(self, step: Step, item: Item) -> str:
        if item.core_state != UNDOING:
            item.core_state = UNDOING
            self._port.owe(step, self._clients, self._key(item))
        return LATER

    def adopt(self, step: Step, item: Item) -> str:
        """A question that may have left is never asked again; what is owed goes out as a repeat."""
        if item.core_state == POSTING or (item.core_state == UNDOING and not item.released):
            self._port.owe(step, self._clients, self._key(item), sent=True)
        return "core-unknown" if item.core_state == LATER else ""


class ItemWork:
    """Movements of the items of profile v1. Names are their ids."""

    def __init__(self, machine: "Moving", directory: Directory) -> None:
        self._machine = machine
        self._directory = directory

    def movement(self, name: str) -> Movement | None:
        item = self._machine.unfinished(name)
        if item is None or item.released or not item.core_ref:
            return None
        signer = self._directory.signer(item.bank, item.user)
        assert signer is not None, "signers are never taken away"
        # Given up already, an answer is too late for it, also before its reversal is owed.
        asked = item.core_state != LATER or item.state == ANSWERED
        return Movement(
            item.core_state if asked else "", item.core_ref, item.minor, signer.currency,
            signer.account, item.kind == UPLOAD, item.held,
        )  # fmt: skip

    def _item(self, name: str) -> Item:
        item = self._machine.unfinished(name)
        assert item is not None, "its movement was found"
        return item

    def core_answered(self, step: Step, name: str, result: str) -> None:
        item = self._item(name)
        self._machine.reserved(step, item, result)
        self._machine.go(step, item)

    def core_lost(self, step: Step, name: str) -> None:
        item = self._item(name)
        self._machine.fail(step, item, "core-unknown")
        self._machine.go(step, item)

    def core_posted(self, step: Step, name: str) -> None:
        item = self._item(name)
        self._machine.posted(step, item)
        self._machine.go(step, item)

    def core_undone(self, step: Step, name: str) -> None:
        item = self._item(name)
        self._machine.undone(step, item)
        self._machine.go(step, item)


class Moving(Protocol):
    """The part of `transfiya_steps.Machine` that is used."""

    def unfinished(self, item_id: str) -> Item | None: ...

    def reserved(self, step: Step, item: Item, result: str) -> None: ...

    def fail(self, step: Step, item: Item, reason: str, *, silent: bool = False) -> None: ...

    def posted(self, step: Step, item: Item) -> None: ...

    def undone(self, step: Step, item: Item) -> None: ...

    def go(self, step: Step, item: Item) -> None: ...


def _reason(answer: BankAnswer) -> str:
    if answer.code in _INACTIVE:
        return "account-inactive"
    return _REASONS.get(answer.key) or _BY_CODE.get(answer.code, "core-refused")
