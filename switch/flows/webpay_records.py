"""The durable records of Webpay, and the states of a payment with the only moves between them.

No record holds a card number, an expiry or a verification value: of a number its ends, a keyed hash
for matching, and, while a reversal may need it, itself sealed under a key that is kept elsewhere
and erased afterwards.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

# Spaces of the record store. Numbers are part of the journal format: never reused.
PAYMENTS: Final = 60
ORDERS: Final = 61
REQUESTS: Final = 62
REPLIES: Final = 63
NUMBERS: Final = 64
CARDS: Final = 65
LINES: Final = 66

CREATED: Final = "CREATED"
FORM: Final = "FORM"
PAYING: Final = "PAYING"
AUTHORISING: Final = "AUTHORISING"
DECIDING: Final = "DECIDING"
CONFIRMED: Final = "CONFIRMED"
DECLINED: Final = "DECLINED"
DECLINED_UNACKED: Final = "DECLINED_UNACKED"
REVERSING: Final = "REVERSING"
REVERSED: Final = "REVERSED"
ABORTED: Final = "ABORTED"

FINAL: Final = frozenset((CONFIRMED, DECLINED, DECLINED_UNACKED, REVERSED, ABORTED))
PAYABLE: Final = frozenset((CREATED, FORM))

MOVES: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("", "CREATED"): CREATED,
        (CREATED, "SHOWN"): FORM,
        (CREATED, "ABORTED"): ABORTED,
        (FORM, "ABORTED"): ABORTED,
        (FORM, "PAY_SUBMITTED"): PAYING,
        (PAYING, "ABORTED"): ABORTED,
        (PAYING, "AUTH_SENT"): AUTHORISING,
        (PAYING, "AUTH_RESULT"): DECIDING,
        (AUTHORISING, "AUTH_RESULT"): DECIDING,
        (DECIDING, "CONFIRMED"): CONFIRMED,
        (DECIDING, "DECLINED"): DECLINED,
        (DECIDING, "DECLINED_UNACKED"): DECLINED_UNACKED,
        (DECIDING, "REVERSED"): REVERSING,
        (REVERSING, "REVERSAL_DONE"): REVERSED,
    }
)
"""Events are those of the journal; an outcome names what DECIDED has decided."""

OWED: Final = "owed"
DONE: Final = "done"


KeyNames = tuple[str, str]
"""Versions of keys, ours and the merchant's: those a request was sealed for and by."""


class Payment(Struct, array_like=True, gc=False):
    """One payment, from the request of its shop to its end.

    Attributes:
        id: of the record; tells nothing about the addresses of its pages.
        amount: as the shop wrote it. hundredths: the same. minor: in the unit that is authorised.
        entries: cookies given out. tries: wrong inputs.
        kind: "C", "D". pan_masked, pan_hash, pan_sealed: see above.
        message, signature: the result, once it is known and signed.
        answer_digest: of the shop's sealed reply.
        reversal: "", "owed" or "done". reversal_reason: DE25. reversal_code: DE39 of its end;
            reversal_note: `original_not_found` or `check` where that was not 00.
        history: events and their instants.
        keys: versions of the keys of its request; its result is signed and sealed by the same.
    """

    id: str
    merchant: str
    key_id: str
    order: str
    session: str
    tx_id: str
    amount: str
    hundredths: int
    minor: int
    currency: str
    url_ok: str
    url_fail: str
    fixed: tuple[int, int] | None
    request_digest: bytes
    received_ns: int
    expires_ns: int
    authoriser: str
    state: str = ""
    entries: int = 1
    tries: int = 0
    token_used: bool = False
    kind: str = ""
    pay_type: str = ""
    instalments: int = 0
    bank: str = ""
    pan_masked: str = ""
    pan_hash: bytes = b""
    pan_sealed: bytes = b""
    operation: str = ""
    sent_ns: int = 0
    vci: str = ""
    respuesta: int = 0
    auth_code: str = ""
    accounting_date: str = ""
    message: bytes = b""
    signature: bytes = b""
    prefix: str = ""
    outcome: str = ""
    cause: str = ""
    elapsed_ms: int = -1
    answer_digest: bytes = b""
    reversal: str = ""
    reversal_reason: str = ""
    reversal_code: str = ""
    reversal_note: str = ""
    late_ack: bool = False
    history: list[tuple[str, int]] = msgspec.field(default_factory=list)
    keys: KeyNames = ("", "")

    def __repr__(self) -> str:
        return f"Payment({self.id}, {self.merchant}, {self.order!r}, {self.state})"

    @property
    def shown(self) -> str:
        """Its name for logs and alarms, in groups: whole it would be masked, as a key's hex is."""
        name = self.id
        return "-".join((name[:8], name[8:12], name[12:16], name[16:20], name[20:]))

    @property
    def last4(self) -> str:
        return self.pan_masked[-4:]

    @property
    def is_open(self) -> bool:
        """True while something is to be done about it."""
        return self.state not in FINAL or self.reversal == OWED


class Order(Struct, array_like=True, gc=False):
    """What is known of a merchant's order: its newest payment, and whether it was ever paid.

    `earlier`: payments before the newest, the oldest first; as many as are told to the shop.
    """

    payment: str
    paid: bool = False
    earlier: tuple[str, ...] = ()


class Line(Struct, array_like=True, gc=False):
    """One line of the Bitácora: written when the payment is decided, and never again.

    `number`: one after the other, in the order of the decisions. `year`: of the directory; that of
    the accounting date.
    """

    number: int
    merchant: str
    prefix: str
    message: bytes
    signature: bytes
    year: int


class LedgerCard(Struct, array_like=True, gc=False):
    """A card that our own ledger authorises, under the keyed hash of its number."""

    currency: str
    account: bytes


def move(payment: Payment, event: str, now_ns: int) -> None:
    """Move a payment; an event its state does not allow is our own mistake, and stops the node."""
    payment.state = MOVES[payment.state, event]
    payment.history.append((event, now_ns))


def note(payment: Payment, event: str, now_ns: int) -> None:
    """Keep an event that moves nothing."""
    payment.history.append((event, now_ns))


encode = msgspec.msgpack.Encoder().encode
decode_payment = msgspec.msgpack.Decoder(Payment).decode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_line = msgspec.msgpack.Decoder(Line).decode
decode_card = msgspec.msgpack.Decoder(LedgerCard).decode
