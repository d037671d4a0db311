"""What a bank does with a call to `/debit` or `/credit`: create an action, repeat, or refuse."""

import re
from typing import Any, Protocol

from msgspec import Struct

from protocols.transfiya.amount import AmountError, to_minor
from protocols.transfiya.types import Action

DEBIT = "debit"
CREDIT = "credit"
REFUND = "refund"
UPLOAD = "UPLOAD"
DOWNLOAD = "DOWNLOAD"
SEND = "SEND"
SENDMOL = "SENDMOL"
REQUEST = "REQUEST"
REJECT = "REJECT"
MAIN_TYPES = frozenset((SEND, SENDMOL, REQUEST))

_TX_REF = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_DEBITABLE = frozenset(("PENDING", "INITIATED", "ACCEPTED"))
_PROVEN_OR_NEAR = frozenset(("SIGNED", "ACCEPTED", "POSTED", "DONE"))
_BEFORE_SIGNED = frozenset(("RECEIVED", "CREATED", "ANSWERED", "RESERVED", "TAGGED"))


class Item(Protocol):
    """A piece of work the bank has already taken on."""

    @property
    def amount(self) -> str: ...

    @property
    def symbol(self) -> str: ...

    @property
    def state(self) -> str: ...


class Bank(Protocol):
    """What the decision has to know of the bank."""

    @property
    def bank_signer(self) -> str: ...

    def owns(self, handle: str) -> bool:
        """True for a signer of one of the bank's customers."""
        ...

    def exponent(self, symbol: str) -> int | None:
        """Decimal places of a symbol, None where the bank does not know it."""
        ...

    def item(self, key: str) -> Item | None:
        """The item of that key; one that failed before its action was created does not count."""
        ...


class Create(Struct, frozen=True):
    """Take the work on.

    Fields:
        side: whose side of the main action is debited or credited: `source` or `target`.
        purpose: debit, credit or refund.
        key: KIND/tx_ref/user.
        minor: the amount in minor units.
        source, target: parties of the action to create.
    """

    side: str
    purpose: str
    key: str
    kind: str
    tx_ref: str
    user: str
    symbol: str
    amount: str
    minor: int
    source: str
    target: str

    def body(self) -> dict[str, Any]:
        """The action to create, without its two time stamps."""
        return {
            "source": self.source,
            "target": self.target,
            "symbol": self.symbol,
            "amount": self.amount,
            "labels": {"type": self.kind, "tx_ref": self.tx_ref},
        }


class Duplicate(Struct, frozen=True):
    """Asked before: the stored answer again."""

    key: str


class Refuse(Struct, frozen=True):
    """Not taken. `key` is the item it is about, `failing` a debit that must not go on."""

    reason: str
    key: str = ""
    failing: str = ""


Decision = Create | Duplicate | Refuse


def is_tx_ref(text: object) -> bool:
    """True for a transfer's reference: opaque text of a safe alphabet."""
    return isinstance(text, str) and _TX_REF.fullmatch(text) is not None


def key_of(kind: str, tx_ref: str, party: str) -> str:
    """The key of a piece of work."""
    return f"{kind}/{tx_ref}/{party}"


def decide(endpoint: str, main: Action, bank: Bank) -> Decision:
    """Decide about a main action that came to `debit` or `credit`, by its state, not its type."""
    tx_ref, status = main.labels.tx_ref, main.labels.status
    if not isinstance(tx_ref, str) or not is_tx_ref(tx_ref):
        return Refuse("tx-ref-invalid")
    rejects = main.labels.type == REJECT
    if endpoint == DEBIT:
        if status not in _DEBITABLE or rejects:
            return Refuse("state-not-debitable")
        side, purpose, kind = "source", DEBIT, UPLOAD
    elif status == "COMPLETED":
        side, purpose, kind = "target", REFUND if rejects else CREDIT, DOWNLOAD
    elif status == "REJECTED" and not rejects:
        side, purpose, kind = "source", REFUND, DOWNLOAD
    else:
        return Refuse("state-not-creditable")
    user = main.signer(side)
    if user is None:
        return Refuse("snapshot-missing")
    return _create(main, bank, side, purpose, kind, tx_ref, user)


def _create(
    main: Action, bank: Bank, side: str, purpose: str, kind: str, tx_ref: str, user: str
) -> Decision:
    exponent = bank.exponent(main.symbol) if main.symbol is not None else None
    if main.symbol is None or exponent is None:
        return Refuse("symbol-unknown")
    try:
        minor = to_minor(main.amount, exponent)
    except AmountError:
        return Refuse("amount-invalid")
    if not bank.owns(user):
        return Refuse("customer-unknown")
    key = key_of(kind, tx_ref, user)
    known = bank.item(key)
    if known is not None:
        same = known.amount == main.amount and known.symbol == main.symbol
        return Duplicate(key) if same else Refuse("duplicate-mismatch", key)
    if purpose == REFUND:
        refusal = _refund_fault(bank, key_of(UPLOAD, tx_ref, user), main.symbol, exponent, minor)
        if refusal is not None:
            return refusal
    upload = kind == UPLOAD
    return Create(
        side=side,
        purpose=purpose,
        key=key,
        kind=kind,
        tx_ref=tx_ref,
        user=user,
        symbol=main.symbol,
        amount=main.amount,
        minor=minor,
        source=bank.bank_signer if upload else user,
        target=user if upload else bank.bank_signer,
    )


def _refund_fault(
    bank: Bank, debit_key: str, symbol: str, exponent: int, minor: int
) -> Refuse | None:
    """Money goes back only where it was taken; a debit not yet proven must stop instead."""
    debit = bank.item(debit_key)
    if debit is not None and debit.state in _BEFORE_SIGNED:
        return Refuse("no-matching-debit", failing=debit_key)
    if debit is None or debit.state not in _PROVEN_OR_NEAR or debit.symbol != symbol:
        return Refuse("no-matching-debit")
    return None if to_minor(debit.amount, exponent) == minor else Refuse("no-matching-debit")
