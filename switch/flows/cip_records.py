"""The durable records of the payment application, and the spaces they live in.

A payment is stored whole under its id whenever it changes: codes, events and what is owed (webhook,
settle) stand in the same record, so one journal record holds all that an update changes. Array-like
MessagePack; new fields go to the end, with a default.
"""

from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

from protocols.cip.transaction import AmountRule, FeeRule, FieldRule, Item, Payer

# Spaces of the record store. Numbers are part of the journal format: never reused.
APPLICATIONS: Final = 100
USERS: Final = 101
PAYMENTS: Final = 102
BY_REFERENCE: Final = 103  # application and client_ref to payment
SESSIONS: Final = 104
COOKIES: Final = 105  # hash of a cookie's or address's secret to session
NONCES: Final = 106
CODES: Final = 107  # confirmation to payment
ADJUSTMENTS: Final = 108
BY_ADJUSTMENT: Final = 109  # application and client_ref of a void or refund
RUNS: Final = 110
REPORTABLE: Final = 111  # application and number to (payment, event)
COUNTERS: Final = 112
FAILURES: Final = 113
BY_SOURCE: Final = 114  # source_ref to payment
SIMULATED: Final = 115  # the book of the simulated source
SECRETS: Final = 116  # signing keys and the node's own, sealed, by owner
CHANGES: Final = 117  # acts that wait for a second person
UNLOCKS: Final = 118  # hash of a mailed link's secret to the user it unlocks

KEY_BYTES_MAX: Final = 32  # of the record store
MODES: Final = ("gateway", "partial", "full")
USER_KINDS: Final = ("machine", "customer", "clerk", "approver", "auditor", "admin")
DESK_KINDS: Final = ("clerk", "approver", "auditor", "admin")

NOTHING: Final = ""
CREATED: Final = "CREATED"
SUBMITTED: Final = "SUBMITTED"
CONFIRMED: Final = "CONFIRMED"
DECLINED: Final = "DECLINED"
PENDING: Final = "PENDING"
VOIDED: Final = "VOIDED"
REFUNDED: Final = "REFUNDED"
CANCELLED: Final = "CANCELLED"
FAILED: Final = "FAILED"
STATUSES: Final = (
    CREATED, SUBMITTED, CONFIRMED, DECLINED, PENDING, VOIDED, REFUNDED, CANCELLED, FAILED,
)  # fmt: skip

MOVES: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        (NOTHING, "created"): CREATED,
        (CREATED, "submitted"): SUBMITTED,
        (CREATED, "cancelled"): CANCELLED,
        (CREATED, "failed"): FAILED,
        (SUBMITTED, "approved"): CONFIRMED,
        (SUBMITTED, "declined"): DECLINED,
        (SUBMITTED, "unanswered"): PENDING,
        (PENDING, "approved"): CONFIRMED,
        (PENDING, "declined"): DECLINED,
        (PENDING, "undone"): VOIDED,
        (CONFIRMED, "voided"): VOIDED,
        (CONFIRMED, "refunded"): REFUNDED,
    }
)
"""The only moves of a payment; another one is a mistake of ours and stops the node."""

RUNNING: Final = frozenset((SUBMITTED, PENDING))
PAID: Final = frozenset((CONFIRMED, VOIDED, REFUNDED))

KIND_CIP: Final = "CIP"
KIND_SOURCE: Final = "SOURCE"


class SigningKey(Struct, array_like=True):
    """One key of an application, by id; its secret is sealed in SECRETS. `until_ns` 0: no end."""

    id: str
    from_ns: int
    until_ns: int = 0

    def holds(self, now_ns: int) -> bool:
        return self.from_ns <= now_ns and (not self.until_ns or now_ns < self.until_ns)


class Application(Struct, array_like=True):
    id: str
    app_no: int
    name: str
    modes: tuple[str, ...]
    variants: tuple[str, ...] = ("p0", "p1")
    source: str = "simulator"
    late_approval: str = "confirm"
    return_urls: tuple[str, ...] = ()
    default_return_url: str = ""
    timezone: str = "UTC"
    report_hours: tuple[str, ...] = ()
    amount: AmountRule = AmountRule()
    fee: FeeRule = FeeRule()
    fields: tuple[FieldRule, ...] = ()
    keys: list[SigningKey] = msgspec.field(default_factory=list)
    webhook_url: str = ""
    report_url: str = ""
    report_folder: str = ""
    csv_totals: bool = False
    bank: str = ""
    terminal: str = ""
    addresses: tuple[str, ...] = ()
    disabled: bool = False
    created_ns: int = 0
    bank_inquiry: bool = True
    certificates: tuple[str, ...] = ()
    machine_passwords: bool = True


class User(Struct, array_like=True):
    """`hashes`: the present password's first, then those before it. `epoch` ends all that was
    verified before: it grows with each change of password or state."""

    application: str
    id: str
    kind: str
    hashes: list[str] = msgspec.field(default_factory=list)
    disabled: bool = False
    epoch: int = 1
    created_ns: int = 0
    email: str = ""

    def __repr__(self) -> str:
        return f"User({self.application!r}, {self.id!r}, {self.kind!r})"


class Failures(Struct, array_like=True):
    """Wrong passwords of one user in a row, of a machine from one address."""

    count: int = 0
    locked_until_ns: int = 0


class Unlock(Struct, array_like=True):
    """Whom a mailed link unlocks, and how long."""

    application: str
    user: str
    until_ns: int


class Confirmation(Struct, array_like=True):
    """One code and all that it confirms."""

    code: str
    kind: str  # CIP or SOURCE
    confirms: str  # payment, void or refund
    payment_id: str
    amount: int
    currency: str
    payer_reference: str
    at_ns: int


class Event(Struct, array_like=True):
    """One change of a payment; `number` is its place among the application's reported events."""

    at_ns: int
    what: str
    actor: str
    detail: str = ""
    amount: int = 0
    number: int = 0


class Owed(Struct, array_like=True):
    """One entry of the outbox, kept until acknowledged: a webhook, or a settle or undo to the
    source. `subject`: status for a webhook, adjustment for an undo."""

    id: str
    kind: str  # webhook, settle, undo
    subject: str
    since_ns: int
    attempts: int = 0
    done_ns: int = 0
    last: str = ""  # how the newest attempt ended
    abandoned: bool = False

    @property
    def is_open(self) -> bool:
        return not self.done_ns and not self.abandoned


class Payment(Struct, array_like=True):
    id: str
    application: str
    mode: str
    client_ref: str
    status: str = NOTHING
    amount: int = 0
    fee: int = 0
    currency: str = ""
    body_hash: bytes = b""
    items: tuple[Item, ...] = ()
    payer: Payer = Payer()
    instrument_type: str = ""
    instrument: str = ""  # masked
    custom: dict[str, str] = msgspec.field(default_factory=dict)
    created_ns: int = 0
    created_by: str = ""
    source: str = ""
    source_ref: str = ""
    reason: str = ""
    confirmations: list[Confirmation] = msgspec.field(default_factory=list)
    refunded: int = 0
    events: list[Event] = msgspec.field(default_factory=list)
    steps: dict[int, int] = msgspec.field(default_factory=dict)  # step of the text to its instant
    outbox: list[Owed] = msgspec.field(default_factory=list)
    inquiries: int = 0
    session: str = ""
    business_day: int = 0  # of the application's zone, days since 1970-01-01
    undoing: bool = False
    source_code: str = ""
    request_id: str = ""  # of the first request, so that repeats are answered alike

    @property
    def total(self) -> int:
        return self.amount + self.fee

    @property
    def payer_reference(self) -> str:
        return self.payer.document or self.client_ref

    def code(self, kind: str, confirms: str = "payment") -> str:
        """Its confirmation of that kind; "" while there is none."""
        for confirmation in self.confirmations:
            if confirmation.kind == kind and confirmation.confirms == confirms:
                return confirmation.code
        return ""

    @property
    def confirmed_ns(self) -> int:
        return next((c.at_ns for c in self.confirmations if c.confirms == "payment"), 0)

    @property
    def is_open(self) -> bool:
        """True while something is still to be done about it."""
        return (
            self.status in (CREATED, SUBMITTED, PENDING)
            or self.undoing
            or any(owed.is_open for owed in self.outbox)
        )


class Context(Struct, array_like=True):
    """What a site signed: shown to the customer read-only."""

    client_ref: str = ""
    amount: int = 0
    currency: str = ""
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    return_url: str = ""


class Session(Struct, array_like=True):
    """A customer's or a desk user's session. `id` is public and opens nothing.

    `state`: issued (address given out), login, open, closed, expired. `cookie` and `address` are
    hashes; `page` is the version of the form that may be sent.
    """

    id: str
    kind: str  # partial, full, desk
    application: str
    state: str
    created_ns: int
    seen_ns: int
    cookie: bytes = b""
    address: bytes = b""
    address_until_ns: int = 0
    context: Context = msgspec.field(default_factory=Context)
    context_hash: bytes = b""
    signed: bool = False
    user: str = ""
    user_kind: str = ""
    page: int = 1
    payment: str = ""
    entered_ns: int = 0
    authenticated_ns: int = 0

    @property
    def is_open(self) -> bool:
        return self.state in ("issued", "login", "open")


class Adjustment(Struct, array_like=True):
    """A void or refund. `status`: REQUESTED, REJECTED, RUNNING, DONE, REFUSED."""

    id: str
    application: str
    payment_id: str
    kind: str
    client_ref: str
    amount: int
    status: str
    requested_by: str
    requested_ns: int
    approved_by: str = ""
    done_ns: int = 0
    cip: str = ""
    source: str = ""
    reason: str = ""

    @property
    def is_open(self) -> bool:
        return self.status == "RUNNING"


class ReportRun(Struct, array_like=True):
    """One report: the events from `first` to `last` of an application. The marks of the events are
    this interval, so run and marks are one record.

    `repeats`: the run whose lines are sent again. `state`: BUILT, SENT, ACKED, REJECTED.
    """

    id: str
    application: str
    sequence: int
    from_ns: int
    cut_ns: int
    generated_ns: int
    first: int
    last: int
    state: str = "BUILT"
    sha256: str = ""
    lines: int = 0
    repeats: str = ""
    attempts: int = 0
    last_try: str = ""

    @property
    def is_open(self) -> bool:
        return self.state in ("BUILT", "SENT")


class Reportable(Struct, array_like=True):
    """Where a reported event stands."""

    payment: str
    event: int
    at_ns: int


class Change(Struct, array_like=True):
    """An administrator's act that a second one must approve: keys and return addresses."""

    id: str
    application: str
    what: str
    values: dict[str, str]
    requested_by: str
    requested_ns: int
    approved_by: str = ""
    state: str = "REQUESTED"


class Simulated(Struct, array_like=True):
    """One request at the simulated source. `state`: working until `due_ns`, approved, declined,
    voided."""

    state: str
    amount: int
    code: str = ""
    refunded: int = 0
    due_ns: int = 0


def pair(first: str, second: str) -> bytes:
    """The key of two names, such as an application and its reference: 32 bytes at most."""
    raw = f"{first}\n{second}".encode("utf-8", "surrogatepass")
    return blake2b(raw, digest_size=KEY_BYTES_MAX).digest()


def name_key(name: str) -> bytes:
    """The key of a name that somebody may have made up: one that no record can have is its hash."""
    raw = name.encode("utf-8", "surrogatepass")
    return raw if len(raw) <= KEY_BYTES_MAX else blake2b(raw, digest_size=KEY_BYTES_MAX).digest()


encode = msgspec.msgpack.Encoder().encode
decode_application = msgspec.msgpack.Decoder(Application).decode
decode_user = msgspec.msgpack.Decoder(User).decode
decode_failures = msgspec.msgpack.Decoder(Failures).decode
decode_unlock = msgspec.msgpack.Decoder(Unlock).decode
decode_payment = msgspec.msgpack.Decoder(Payment).decode
decode_session = msgspec.msgpack.Decoder(Session).decode
decode_adjustment = msgspec.msgpack.Decoder(Adjustment).decode
decode_run = msgspec.msgpack.Decoder(ReportRun).decode
decode_reportable = msgspec.msgpack.Decoder(Reportable).decode
decode_change = msgspec.msgpack.Decoder(Change).decode
decode_simulated = msgspec.msgpack.Decoder(Simulated).decode
