"""TransfiYa's durable records: pieces of work, signers, keys, and raw bodies as they came.

Keys of the record store have at most 32 bytes, so names are kept as digests; each record holds its
name in full. New fields go to the end, with a default.
"""

from collections.abc import Iterator
from hashlib import blake2b
from types import MappingProxyType

import msgspec
from msgspec import Struct

from core_ext import Records
from switch.flows.states import Moves

# Spaces of the record store, part of the journal format.
ITEMS = 70
BODIES = 71
SIGNERS = 72
KEYS = 73
MARKS = 74
ENTRIES = 75

BODY_CHUNK_BYTES = 60_000

RECEIVED = "RECEIVED"
CREATED = "CREATED"
ANSWERED = "ANSWERED"
RESERVED = "RESERVED"
TAGGED = "TAGGED"
SIGNED = "SIGNED"
ACCEPTED = "ACCEPTED"
POSTED = "POSTED"
DONE = "DONE"
FAILING = "FAILING"
FAILED = "FAILED"
PARKED = "PARKED"
OFFERED = "OFFERED"

# Of the core: what its phases come to, or that their ends are told later.
CORE_DONE = "done"
LATER = "later"
POSTING = "posting"  # the second phase is under way
UNDOING = "undoing"  # likewise what takes the first one back

# Of entries (profile v2).
PREFIX = "v2"
ENTRY_PREPARED = "prepared"
ENTRY_PARKED = "parked"

ENDED = frozenset((DONE, FAILED, PARKED))
BEFORE_SIGNED = frozenset((RECEIVED, CREATED, ANSWERED, RESERVED, TAGGED))
PROVEN = frozenset((ACCEPTED, POSTED, DONE))

UPLOAD = "UPLOAD"
DOWNLOAD = "DOWNLOAD"
SIGN = "SIGN"
ACCEPT = "ACCEPT"
TRANSFER = "TRANSFER"

# Of all kinds; a kind that skips a state has no event for it.
MOVES: Moves = MappingProxyType(
    {
        ("", "received"): RECEIVED,
        (RECEIVED, "created"): CREATED,
        (RECEIVED, "answered"): ANSWERED,  # SIGN: the received action is the answer
        (RECEIVED, "offered"): OFFERED,  # ACCEPT of a request: the customer decides
        (RECEIVED, "done"): DONE,
        (RECEIVED, "failed"): FAILED,
        (RECEIVED, "parked"): PARKED,
        (OFFERED, "decided"): RECEIVED,
        (OFFERED, "failed"): FAILED,
        (CREATED, "answered"): ANSWERED,
        (CREATED, "failed"): FAILED,
        (CREATED, "failing"): FAILING,
        (ANSWERED, "reserved"): RESERVED,
        (ANSWERED, "signed"): SIGNED,
        (ANSWERED, "failing"): FAILING,
        (RESERVED, "tagged"): TAGGED,
        (RESERVED, "failing"): FAILING,
        (TAGGED, "signed"): SIGNED,
        (TAGGED, "failing"): FAILING,
        (SIGNED, "signed"): SIGNED,  # anew: another random, another expiry
        (SIGNED, "accepted"): ACCEPTED,
        (SIGNED, "failing"): FAILING,
        (ACCEPTED, "posted"): POSTED,
        (ACCEPTED, "done"): DONE,
        (POSTED, "done"): DONE,
        (FAILING, "failed"): FAILED,
    }
)


class Item(Struct, array_like=True):
    """A piece of work towards the network: a debit, a credit, a refund, a signature, an answer.

    Fields:
        key: KIND/tx_ref/party. user: handle of the customer whose money or name it is.
        amount: text as received; sent on verbatim. minor: the same in minor units.
        source, target: parties of the action that is created for it.
        main_id, main_status: of the main action, as it came.
        action_id, created: the action made for it, raw; of SIGN and ACCEPT what was received.
        core: the core's reference, told to the network as tx_id.
        iou: the exact bytes that prove it. fresh: they were signed a second time.
        sent: they may have left. accepted_ns: when the answer to them came.
        heard_ns: when the last answer of the network came.
        reason: why it failed; detail: one word more. silent: the network knows already.
        unmade: it failed before an action was made for it, so another delivery begins anew.
        released, told: what an item that fails has behind it.
        core_state: of the core's phases, where their ends come later. core_ref: its number of ours.
        held: the first phase was a hold, so there is a second.
    """

    bank: str
    key: str
    kind: str
    purpose: str
    tx_ref: str
    user: str
    symbol: str
    amount: str
    minor: int
    source: str
    target: str
    arrived_ns: int
    deadline_ns: int
    state: str = ""
    main_id: str = ""
    main_status: str = ""
    action_id: str = ""
    created: bytes = b""
    core: str = ""
    iou: bytes = b""
    fresh: bool = False
    sent: bool = False
    expiry_ns: int = 0
    accepted_ns: int = 0
    heard_ns: int = 0
    reason: str = ""
    code: int = 0
    silent: bool = False
    unmade: bool = False
    released: bool = False
    told: bool = False
    refusals: int = 0
    late: bool = False
    flagged: bool = False
    answer: bytes = b""
    core_state: str = ""
    core_ref: str = ""
    history: list[tuple[str, int]] = msgspec.field(default_factory=list)
    held: bool = False

    @property
    def id(self) -> str:
        """Name within the process: bank and key."""
        return f"{self.bank}|{self.key}"

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Entry(Struct, array_like=True):
    """One entry of an intent at this bank.

    Fields:
        hash: of the record that prepared it; another one under the same handle is refused.
        intent, intent_hash: what the proof is about. proof: the bytes that tell `state`.
        told: the ledger has taken them. core, core_state: its number there, and which phase is
            under way.
    """

    bank: str
    handle: str
    schema: str
    state: str
    intent: str
    intent_hash: str
    arrived_ns: int
    hash: str = ""
    account: str = ""
    currency: str = ""
    minor: int = 0
    core: str = ""
    reason: str = ""
    proof: bytes = b""
    told: bool = False
    refusals: int = 0
    history: list[tuple[str, int]] = msgspec.field(default_factory=list)
    core_state: str = ""

    @property
    def id(self) -> str:
        return f"{PREFIX}|{self.bank}|{self.handle}"

    @property
    def open(self) -> bool:
        """It owes a proof, or money is held for it, or the core works on it."""
        if self.core_state in (LATER, POSTING, UNDOING):
            return True
        return (not self.told and self.state != ENTRY_PARKED) or self.state == ENTRY_PREPARED


class SignerRecord(Struct, array_like=True):
    """A customer's signer: whose account moves, and which key signs.

    Fields:
        handle: of its public key. account: name of the account at the bank.
        status: active, inactive or closed. alias: how the network's users know the customer.
        known: the network has it.
    """

    bank: str
    handle: str
    account: str
    currency: str
    status: str
    key: str
    alias: str = ""
    known: bool = False


class KeyRecord(Struct, array_like=True):
    """A signing key; its secret is sealed under the master key."""

    name: str
    public: bytes
    handle: str
    sealed: bytes
    added_ns: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(Item).decode
_decode_signer = msgspec.msgpack.Decoder(SignerRecord).decode
_decode_key = msgspec.msgpack.Decoder(KeyRecord).decode


def name_key(*names: str) -> bytes:
    """The key of a record, from its names."""
    return blake2b("\0".join(names).encode(), digest_size=16).digest()


class Items:
    """Pieces of work by their id; unfinished ones are kept decoded."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._live: dict[str, Item] = {}
        self._dirty: dict[str, Item] = {}
        self._by_transfer: dict[tuple[str, str], set[str]] = {}

    def get(self, bank: str, key: str) -> Item | None:
        return self.named(f"{bank}|{key}")

    def named(self, item_id: str) -> Item | None:
        found = self._live.get(item_id)
        if found is not None:
            return found
        raw = self._records.get(ITEMS, name_key(item_id))
        return None if raw is None else _decode_item(raw)

    def put(self, item: Item) -> None:
        """Keep it from now on, and write it at the end of the step."""
        item_id = item.id
        self._dirty[item_id] = self._live[item_id] = item
        self._by_transfer.setdefault((item.bank, item.tx_ref), set()).add(item_id)

    def of_transfer(self, bank: str, tx_ref: str) -> list[Item]:
        """Unfinished items of a transfer, in a fixed order."""
        return [self._live[name] for name in sorted(self._by_transfer.get((bank, tx_ref), ()))]

    def live(self) -> list[Item]:
        return list(self._live.values())

    def stored(self) -> Iterator[Item]:
        """All items of the store, finished ones until they are forgotten."""
        for _, raw in self._records.items(ITEMS):
            yield _decode_item(raw)

    def unfinished(self) -> list[Item]:
        """Read at the start: what a stop left open, the oldest first."""
        found = [_decode_item(raw) for _, raw in self._records.open_items(ITEMS)]
        for item in found:
            self._live[item.id] = item
            self._by_transfer.setdefault((item.bank, item.tx_ref), set()).add(item.id)
        return sorted(found, key=lambda item: (item.arrived_ns, item.id))

    def flush(self) -> None:
        put = self._records.put
        for item_id, item in self._dirty.items():
            put(
                ITEMS, name_key(item_id), _encode(item), open=not item.ended,
                stamp=item.arrived_ns,
            )  # fmt: skip
            if item.ended:
                self._drop(item_id, item)
        self._dirty.clear()

    def _drop(self, item_id: str, item: Item) -> None:
        self._live.pop(item_id, None)
        same = self._by_transfer.get((item.bank, item.tx_ref))
        if same is not None:
            same.discard(item_id)
            if not same:
                del self._by_transfer[item.bank, item.tx_ref]


def put_body(records: Records, name: str, body: bytes, stamp: int) -> None:
    """Keep a received body as it came, in as many records as it needs."""
    for at in range(0, max(len(body), 1), BODY_CHUNK_BYTES):
        number = at // BODY_CHUNK_BYTES
        key = name_key(name) + bytes((number,))
        records.put(BODIES, key, body[at : at + BODY_CHUNK_BYTES], stamp=stamp)


def get_body(records: Records, name: str) -> bytes:
    """A received body, empty where it was forgotten."""
    parts = []
    for number in range(256):
        part = records.get(BODIES, name_key(name) + bytes((number,)))
        if part is None:
            break
        parts.append(part)
    return b"".join(parts)


class Directory:
    """Signers of the banks' customers, and the keys' sealed records. All are kept in memory."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._signers: dict[tuple[str, str], SignerRecord] | None = None

    def _all(self) -> dict[tuple[str, str], SignerRecord]:
        if self._signers is None:
            found = (_decode_signer(raw) for _, raw in self._records.items(SIGNERS))
            self._signers = {(one.bank, one.handle): one for one in found}
        return self._signers

    def signer(self, bank: str, handle: str) -> SignerRecord | None:
        return self._all().get((bank, handle))

    def signers(self, bank: str = "") -> list[SignerRecord]:
        """Those of one bank, or of all."""
        return [one for one in self._all().values() if bank in ("", one.bank)]

    def put_signer(self, signer: SignerRecord) -> None:
        self._all()[signer.bank, signer.handle] = signer
        key = name_key(signer.bank, signer.handle)
        self._records.put(SIGNERS, key, _encode(signer))

    def key(self, name: str) -> KeyRecord | None:
        raw = self._records.get(KEYS, name_key(name))
        return None if raw is None else _decode_key(raw)

    def signing_keys(self) -> list[KeyRecord]:
        return [_decode_key(raw) for _, raw in self._records.items(KEYS)]

    def put_key(self, key: KeyRecord) -> None:
        self._records.put(KEYS, name_key(key.name), _encode(key))


def key_owner(name: str) -> str:
    """Whose secret a key is, in the seal."""
    return f"transfiya:{name}"
