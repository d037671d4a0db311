"""Persons, cards, networks, branches, terminals, cashiers and hosts: who may do what.

Stored in the record store, so every change is journaled; few and often-used entities are kept
decoded. Keys and seeds are stored sealed under the master key only.
"""

from hashlib import blake2b
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from core_ext import Records
from switch.flows import operations as ops


class PeerKeyRecord(Struct, array_like=True):
    """One version of a peer's secret, sealed. `until_ns` 0: no end; else the overlap's end.

    `used_from_ns`, of a host's key that was made here: until then the one before it is used for
    what we send, unless the host has used this one. Accepted it is from the start. 0: used at once.
    """

    version: int
    sealed: bytes
    algorithm: str
    added_ns: int
    until_ns: int = 0
    used_from_ns: int = 0


class Network(Struct, array_like=True):
    number: str
    name: str = ""
    disabled: bool = False
    keys: list[PeerKeyRecord] = msgspec.field(default_factory=list)
    net_debit_cap: int = 0  # minor units; 0: no deposits
    payable_cap: int = 0  # minor units; 0: none
    currency: str = "PYG"


class Branch(Struct, array_like=True):
    network: str
    number: str
    name: str = ""
    disabled: bool = False


class Terminal(Struct, array_like=True):
    number: str
    network: str
    branch: str
    disabled: bool = False
    keys: list[PeerKeyRecord] = msgspec.field(default_factory=list)
    ticket: bool = True


class Cashier(Struct, array_like=True):
    """`seed` is the sealed secret of the cashier's own one-time codes (shift, supervisor)."""

    network: str
    number: str
    branch: str
    name: str = ""
    supervisor: bool = False
    disabled: bool = False
    seed: bytes = b""


class Person(Struct, array_like=True):
    id: str
    document_type: str
    document: str
    name: str = ""
    phones: list[str] = msgspec.field(default_factory=list)
    cards: list[str] = msgspec.field(default_factory=list)
    default_card: str = ""


class Card(Struct, array_like=True):
    """A prepaid card. `state`: active, blocked or closed; `kinds`: what it may be used for."""

    id: str
    person: str
    account: bytes
    currency: str
    seed: bytes = b""
    mode: str = "totp"
    state: str = "active"
    tier: str = "basic"
    kinds: tuple[str, ...] = ("cash_out", "deposit")
    expires: str = ""  # YYYY-MM-DD, last good day
    label: str = ""
    created_ns: int = 0


OWN_DIALECT = "ceibo"
"""What issuers and their clients speak; a bank's host is no client of ceibo."""


class Host(Struct, array_like=True):
    """An ISO 8583 peer: a processor's client or a bank, with its sealed keys by purpose.

    `proved`: it has signed on, or answered our sign-on, so it has keys that we have too.
    """

    name: str
    dialect: str
    mac: str
    listen: str = ""
    connect: str = ""
    disabled: bool = False
    mac_keys: list[PeerKeyRecord] = msgspec.field(default_factory=list)
    data_keys: list[PeerKeyRecord] = msgspec.field(default_factory=list)
    zone_keys: list[PeerKeyRecord] = msgspec.field(default_factory=list)
    proved: bool = False

    @property
    def is_own(self) -> bool:
        """It speaks as issuers and their clients do; banks do not, and are only dialled."""
        return self.dialect == OWN_DIALECT or self.dialect.endswith(".toml")


Entity = Network | Branch | Terminal | Cashier | Person | Card | Host

_SPACES: dict[type, int] = {
    Network: ops.NETWORKS,
    Branch: ops.BRANCHES,
    Terminal: ops.TERMINALS,
    Cashier: ops.CASHIERS,
    Person: ops.PERSONS,
    Card: ops.CARDS,
    Host: ops.HOSTS,
}
_DECODERS: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in _SPACES
}
_E = TypeVar("_E", Network, Branch, Terminal, Cashier, Person, Card, Host)
_phones = msgspec.msgpack.Decoder(list[str])


def account_id(name: str) -> bytes:
    """The 16-byte id of a ledger account, from its name such as `card:card-000042`."""
    return blake2b(name.encode(), digest_size=16).digest()


class Registry:
    """All entities, by their natural keys. Changes go through `put`, so that they are journaled."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._terminals: dict[str, Terminal | None] = {}
        self._networks: dict[str, Network | None] = {}
        self._branches: dict[str, Branch | None] = {}
        self._cashiers: dict[str, Cashier | None] = {}

    # Few entities, asked for on every message: kept decoded. An unknown key is never cached, so
    # that nobody can fill the tables with made-up numbers.

    def terminal(self, number: str) -> Terminal | None:
        found = self._terminals.get(number)
        if found is None and (found := self._load(Terminal, number)) is not None:
            self._terminals[number] = found
        return found

    def network(self, number: str) -> Network | None:
        found = self._networks.get(number)
        if found is None and (found := self._load(Network, number)) is not None:
            self._networks[number] = found
        return found

    def branch(self, network: str, number: str) -> Branch | None:
        key = network + number
        found = self._branches.get(key)
        if found is None and (found := self._load(Branch, key)) is not None:
            self._branches[key] = found
        return found

    def cashier(self, network: str, number: str) -> Cashier | None:
        key = network + number
        found = self._cashiers.get(key)
        if found is None and (found := self._load(Cashier, key)) is not None:
            self._cashiers[key] = found
        return found

    def person(self, person: str) -> Person | None:
        return self._load(Person, person)

    def card(self, card: str) -> Card | None:
        return self._load(Card, card)

    def host(self, name: str) -> Host | None:
        return self._load(Host, name)

    def person_by_document(self, document_type: str, document: str) -> Person | None:
        found = self._records.get(ops.PERSON_BY_DOCUMENT, _index(document_type + document))
        return None if found is None else self.person(found.decode())

    def persons_by_phone(self, phone: str) -> list[Person]:
        """Every person with that number: a phone names one person only if there is just one."""
        found = self._records.get(ops.PERSONS_BY_PHONE, _index(phone))
        if found is None:
            return []
        return [p for p in map(self.person, _phones.decode(found)) if p is not None]

    def put(self, entity: Entity) -> None:
        """Store an entity, new or changed, with its indexes."""
        kind = type(entity)
        key = _key(entity)
        self._records.put(_SPACES[kind], key.encode(), ops.encode(entity))
        if isinstance(entity, Terminal):
            self._terminals[key] = entity
        elif isinstance(entity, Network):
            self._networks[key] = entity
        elif isinstance(entity, Branch):
            self._branches[key] = entity
        elif isinstance(entity, Cashier):
            self._cashiers[key] = entity
        elif isinstance(entity, Person):
            self._index_person(entity)

    def all(self, kind: type[Entity]) -> list[Entity]:
        """Every entity of one kind, for lists and exports; not for the answer's path."""
        decode = _DECODERS[kind].decode
        return [decode(value) for _, value in self._records.items(_SPACES[kind])]

    def next_number(self, name: str) -> int:
        """Count up a durable counter."""
        key = name.encode()
        found = self._records.get(ops.META, key)
        number = 1 if found is None else int(found) + 1
        self._records.put(ops.META, key, b"%d" % number)
        return number

    def flag(self, name: str) -> bool:
        """A durable switch; off where it was never set."""
        return self._records.get(ops.META, name.encode()) == b"1"

    def put_flag(self, name: str, on: bool) -> None:
        self._records.put(ops.META, name.encode(), b"1" if on else b"0")

    def _load(self, kind: type[_E], key: str) -> _E | None:
        found = self._records.get(_SPACES[kind], key.encode())
        if found is None:
            return None
        entity: _E = _DECODERS[kind].decode(found)
        return entity

    def _index_person(self, person: Person) -> None:
        self._records.put(
            ops.PERSON_BY_DOCUMENT,
            _index(person.document_type + person.document),
            person.id.encode(),
        )
        for phone in person.phones:
            key = _index(phone)
            found = self._records.get(ops.PERSONS_BY_PHONE, key)
            ids = [] if found is None else _phones.decode(found)
            if person.id not in ids:
                ids.append(person.id)
                self._records.put(ops.PERSONS_BY_PHONE, key, ops.encode(ids))


def _index(text: str) -> bytes:
    raw = text.encode()
    return raw if len(raw) <= 32 else blake2b(raw, digest_size=32).digest()


def _key(entity: Entity) -> str:
    match entity:
        case Terminal() | Network():
            return entity.number
        case Branch() | Cashier():
            return entity.network + entity.number
        case Host():
            return entity.name
        case _:
            return entity.id
