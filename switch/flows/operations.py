"""The durable records of operations, one form per role, and the spaces they live in.

Each is stored whole under its key whenever it changes; the journal keeps every version, the record
store the newest. They are array-like MessagePack: new fields go to the end, with a default, so that
old journals stay readable. No record holds a token, in clear or as a digest that could be guessed.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from core_ext import Records
from protocols.messages import Kind

# Spaces of the record store. Numbers are part of the journal format: never reused.
NETWORKS = 1
BRANCHES = 2
TERMINALS = 3
CASHIERS = 4
PERSONS = 5
CARDS = 6
PERSON_BY_DOCUMENT = 7
PERSONS_BY_PHONE = 8
HOSTS = 9
META = 10
RED_OPERATIONS = 20
RED_NEWEST = 21
SHIFTS = 22
SICOOP_OPERATIONS = 30
SICOOP_BY_OPERATION = 31
CEIBO_HOLDS = 40
VOUCHERS = 41
FILES = 50
CASES = 51
WINDOWS = 52
ADJUSTMENTS = 53

# `CeiboHold.internal` of a deposit whose card was closed before its money came: it waits, and then
# it is the card's after all, or another account's.
IN_SUSPENSE = "en suspenso"
FROM_SUSPENSE = "from suspense"
ADJUSTED = "adjusted from suspense"

SHIFT_DIFFERENCE = "difference "  # how the reason of an audited `shift_close` begins


class RedOperation(Struct, array_like=True, gc=False):
    """red's register. `reference` is its key; `fingerprint` a keyed digest of the declared body.

    `owed` names what red still owes sicoop (`confirm`, `reverse`, `annul`) until acknowledged;
    while it is set the record is open, so that recovery finds it without a search. `document` holds
    the type and the identifier as typed (document, or phone with type `TEL`).
    """

    reference: str
    kind: str
    network: str
    terminal: str
    branch: str
    cashier: str
    trace: int
    amount: int
    currency: str
    document: tuple[str, str]
    fingerprint: int
    received_ns: int
    state: str
    code: str = ""
    key: str = ""
    operation: str = ""
    authorization: str = ""
    business_date: str = ""
    fee: int = 0
    commission: int = 0
    name: str = ""
    registered_ns: int = 0
    delivered_ns: int = 0
    annulled_ns: int = 0
    owed: str = ""
    reason: str = ""
    attempts: int = 0
    supervisor: str = ""
    original: str = ""  # of an annulment: reference of the operation it undid
    depositor: str = ""
    declaration: dict[str, str] = msgspec.field(default_factory=dict)
    field: str = ""
    history: list[tuple[str, int]] = msgspec.field(default_factory=list)
    annulment: str = ""  # reference of the annulment that is under way


class SicoopOperation(Struct, array_like=True, gc=False):
    """sicoop's side of an operation; `operation` is its number, 12 digits, and names the holds."""

    reference: str
    network: str
    operation: str
    kind: Kind
    amount: int
    currency: str
    terminal: str
    branch: str
    cashier: str
    fingerprint: int
    received_ns: int
    business_date: str
    day: int
    state: str
    code: str = ""
    key: str = ""
    authorization: str = ""
    fee: int = 0
    commission: int = 0
    name: str = ""
    limits_version: str = ""
    owed: str = ""
    reason: str = ""
    attempts: int = 0
    annulled: bool = False
    held: bool = False  # the hold in sicoop's own book stands or stood
    depositor: str = ""
    declaration: dict[str, str] = msgspec.field(default_factory=dict)
    history: list[tuple[str, int]] = msgspec.field(default_factory=list)
    issuer: str = ""  # link of the issuer it went to; empty: the ceibo of this process


class CeiboHold(Struct, array_like=True, gc=False):
    """ceibo's side: the decision about one hold, and what became of it.

    `link` is the host that asked for it, empty where that is the sicoop of this process. `firsts`
    holds, per kind of message, what its repeats are compared in, and its first answer's code.
    """

    network: str
    operation: str
    kind: Kind
    amount: int
    currency: str
    fingerprint: int
    created_ns: int
    day: int
    state: str
    code: str = ""
    key: str = ""
    card: str = ""
    person: str = ""
    authorization: str = ""
    fee: int = 0
    commission: int = 0
    name: str = ""
    terminal: str = ""
    branch: str = ""
    compensated: bool = False
    forced: bool = False
    token_step: int = 0
    internal: str = ""  # the exact reason, for audit and the app, never for the till
    history: list[tuple[str, int]] = msgspec.field(default_factory=list)
    link: str = ""
    firsts: dict[str, tuple[int, str]] = msgspec.field(default_factory=dict)
    balances: tuple[int, ...] = ()  # ledger and available, where the answer told them


class Shift(Struct, array_like=True):
    """A cashier's shift; `expected` is the cash that should be in the till."""

    network: str
    cashier: str
    terminal: str
    opened_ns: int
    float_: int = 0
    expected: int = 0
    operations: int = 0
    closed_ns: int = 0
    counted: int = 0


class Voucher(Struct, array_like=True):
    """A one-time voucher (mode `vale`), stored under the HMAC of its code only."""

    card: str
    amount: int
    exact: bool
    expires_ns: int
    state: str = "active"  # active, redeemed, expired, cancelled
    hold: bytes = b""  # ledger id of the hold placed at issue, empty where none is
    channels: tuple[str, ...] = ("cash_out",)


class FileRecord(Struct, array_like=True):
    """A daily file at sicoop, the version in force; its key is network and date.

    `business_date` is yyyymmdd. `state`: `reading`, then `done`. `counts`: what its lines came to.
    `graced`: the grace time is over and what it has no line of is released.
    """

    network: str
    business_date: str
    version: int
    sha256: str
    details: int
    cash_out: int
    deposit: int
    commission: int
    state: str = "reading"
    taken_ns: int = 0
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    graced: bool = False


class Case(Struct, array_like=True):
    """A difference that people decide about, or what two persons decided; its key is the reference.

    `version`: of the file that opened it, 0: none did. `state`: open or closed. `evidence` names
    the attached file, which is kept under its SHA-256.
    """

    reference: str
    network: str
    business_date: str
    difference: str
    state: str = "open"
    opened_ns: int = 0
    version: int = 0
    red_state: str = ""
    red_amount: int = 0
    sicoop_state: str = ""
    sicoop_amount: int = 0
    outcome: str = ""
    closed_ns: int = 0
    author: str = ""
    second: str = ""
    reason: str = ""
    evidence: str = ""
    evidence_sha256: str = ""


class WindowPosition(Struct, array_like=True):
    """What one network owes (positive) or is owed by a window, and when that was settled.

    `debits`, `credits`: of the window, settlements and what came before left out.
    """

    name: str  # `net:0012` or `issuer:ceibo`
    amount: int
    debits: int
    credits: int
    settled_ns: int = 0
    bank: str = ""
    author: str = ""
    second: str = ""


class Window(Struct, array_like=True):
    """A settlement window. `state`: CLOSED, PENDING_SETTLEMENT, SETTLED; the newest is followed by
    an open one, which has no record. Its positions sum to zero. `totals`, `settled`: debits and
    credits of the accounts when it was closed, and those of all settlements until then."""

    number: int
    currency: str
    closed_ns: int
    state: str
    positions: list[WindowPosition]
    opened_ns: int = 0
    totals: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)
    settled: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)


class Adjustment(Struct, array_like=True):
    """A manual correction: a new balanced entry that two persons answer for."""

    number: int
    at_ns: int
    account: str  # `net:0012` or `card:card-000001`
    amount: int
    direction: str  # credit or debit of that account
    currency: str
    author: str
    second: str
    reason: str
    evidence: str
    evidence_sha256: str
    reference: str = ""


T = TypeVar("T")


class Table(Generic[T]):
    """The operations of one role: read through, written once at the end of a step.

    Several moves of one operation within a step leave nothing outside, so they become one record.
    `flush` at the step's end is part of the step: a step that fails stops the node.
    """

    def __init__(
        self,
        records: Records,
        space: int,
        decode: Callable[[bytes], T],
        is_open: Callable[[T], bool],
    ) -> None:
        self._records = records
        self._space = space
        self._decode = decode
        self._is_open = is_open
        self._dirty: dict[bytes, tuple[T, int]] = {}

    def get(self, key: bytes) -> T | None:
        """The operation as it stands, changes of this step included."""
        dirty = self._dirty.get(key)
        if dirty is not None:
            return dirty[0]
        found = self._records.get(self._space, key)
        return None if found is None else self._decode(found)

    def put(self, key: bytes, operation: T, stamp: int) -> None:
        self._dirty[key] = (operation, stamp)

    def open(self) -> Iterator[T]:
        """Operations that are not finished, each as it stands when its turn comes."""
        keys = [key for key, _ in self._records.open_items(self._space)]
        for key in dict.fromkeys((*keys, *self._dirty)):
            operation = self.get(key)
            if operation is not None and self._is_open(operation):
                yield operation

    def changed(self) -> Iterator[T]:
        """What this step has changed so far."""
        return (operation for operation, _ in self._dirty.values())

    def flush(self) -> None:
        if not self._dirty:
            return
        put, space, is_open = self._records.put, self._space, self._is_open
        for key, (operation, stamp) in self._dirty.items():
            put(space, key, encode(operation), open=is_open(operation), stamp=stamp)
        self._dirty.clear()


encode = msgspec.msgpack.Encoder().encode
decode_red = msgspec.msgpack.Decoder(RedOperation).decode
decode_sicoop = msgspec.msgpack.Decoder(SicoopOperation).decode
decode_ceibo = msgspec.msgpack.Decoder(CeiboHold).decode
decode_shift = msgspec.msgpack.Decoder(Shift).decode
decode_voucher = msgspec.msgpack.Decoder(Voucher).decode
decode_file = msgspec.msgpack.Decoder(FileRecord).decode
decode_case = msgspec.msgpack.Decoder(Case).decode
decode_window = msgspec.msgpack.Decoder(Window).decode
decode_adjustment = msgspec.msgpack.Decoder(Adjustment).decode
