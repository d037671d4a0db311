"""Another master key: everything sealed is sealed anew, on a stopped data directory.

    1  the new key has a file of its own, durable
    2  its check value is noted in the data: from here on no node starts on them
    3  peer keys, keys of hosts and seeds are sealed under it, in groups of the journal
    4  its check value becomes that of the data, and the note goes; the key store's files follow
    5  its file takes the place of the old one, which is kept under another name

Cut short anywhere, the same command goes on: a blob is opened under the old key or, where that was
reached already, under the new one. Keys of `RETAINED` purposes stay and are sealed themselves.
Older segments and backups hold blobs under the old key, so it is kept with them.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from core_ext._mac import SeedVault
from switch.config import Config
from switch.flows import cip_records
from switch.flows import operations as ops
from switch.flows.registry import Card, Cashier, Host, Network, PeerKeyRecord, Registry, Terminal
from switch.flows.shifts import staff_aad
from switch.flows.transfiya_records import Directory, key_owner
from switch.journal.store import StateError, Store
from switch.ops.host_keys import key_sets
from switch.ops.keys import ENVIRONMENT, RETAINED, MasterKey, MasterKeyError, Purpose, UnsealError

CHECK = b"master_key"  # in the record store: check value of the key that the data are sealed under
UNDER_WAY = b"master_rotation"  # the check value of the one that is about to follow it
COMMIT_EVERY = 200  # entities between two commits

Sealer = Callable[[bytes], bytes]


def retained(purpose: Purpose) -> bytes:
    """Key in the record store of a purpose's key that outlived a rotation."""
    return f"retained:{purpose}".encode()


def new_key_path(config: Config) -> Path:
    """Where the new key waits until it takes the old one's place."""
    path = config.file(config.node.master_key_file)
    return path.with_name(path.name + ".new")


def rotate(config: Config, told: Callable[[int], None] = lambda count: None) -> dict[str, str]:
    """Rotate the master key of a stopped data directory, or go on with a rotation cut short.

    Args:
        told: called with the number of entities sealed anew since.

    Returns:
        Check values `from` and `to`, and the file that now holds the key, `key`; `kept` is that of
        the old one, empty where it came by the environment.

    Raises:
        MasterKeyError: a key file is missing, or cannot be used.
        StateError: the data are sealed under neither key.
        BlockingIOError: a node, or another command, has the directory.
    """
    path, new_path = config.file(config.node.master_key_file), new_key_path(config)
    old = MasterKey.load(path)
    store = Store(config, config.data)
    store.open()
    try:
        known = (store.records.get(ops.META, CHECK) or old.check_value.encode()).decode()
        new = _new_key(new_path, begun=store.records.get(ops.META, UNDER_WAY) is not None)
        if known == old.check_value:
            _Rotation(store, old, new).run(told)
        elif known != new.check_value:
            raise StateError(
                f"the data are sealed under the master key {known}, which is neither the present "
                f"one ({old.check_value}) nor the new one ({new.check_value})"
            )
        # Last: until the key's file is in its place no node starts, and a repeat comes here again.
        from switch.ops.key_store import KeyStore  # with all that reads keys of others

        KeyStore(config.data / "keys", old).reseal(new)
    finally:
        store.close()
    kept = "" if ENVIRONMENT in os.environ else str(_take_place(path, new_path, old))
    holder = new_path if ENVIRONMENT in os.environ else path
    return {"from": old.check_value, "to": new.check_value, "key": str(holder), "kept": kept}


def _new_key(path: Path, *, begun: bool) -> MasterKey:
    if path.exists():
        return MasterKey.load(path, {})
    if begun:
        raise MasterKeyError(
            f"a rotation was begun, and {path} is missing", "bring the file back, then try again"
        )
    return MasterKey.create(path)


def _take_place(path: Path, new_path: Path, old: MasterKey) -> Path:
    """Put the new key's file in the old one's place; a stop in between is mended by a repeat."""
    kept = path.with_name(f"{path.name}.{old.check_value}")
    if not kept.exists():
        os.link(path, kept)
    os.replace(new_path, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return kept


class _Rotation:
    """Seals the secrets of one open store anew."""

    def __init__(self, store: Store, old: MasterKey, new: MasterKey) -> None:
        self._store = store
        self._records = store.records
        self._registry = Registry(store.records)
        self._old, self._new = old, new
        self._old_vault = SeedVault(old.subkey("card-seeds"))
        self._new_vault = SeedVault(new.subkey("card-seeds"))

    def run(self, told: Callable[[int], None]) -> None:
        self._records.put(ops.META, UNDER_WAY, self._new.check_value.encode())
        self._store.commit()
        count = 0
        for entity in self._entities():
            self._registry.put(entity)
            count += 1
            if count % COMMIT_EVERY == 0:
                self._store.commit()
                told(COMMIT_EVERY)
        for key, sealed in list(self._records.items(cip_records.SECRETS)):
            again = self._resealed(sealed, "product-keys", key.decode())
            self._records.put(cip_records.SECRETS, key, again)
        signing = Directory(self._records)
        for own in signing.signing_keys():
            own.sealed = self._resealed(own.sealed, "peer-keys", key_owner(own.name))
            signing.put_key(own)
        for purpose in RETAINED:
            self._retain(purpose)
        self._records.put(ops.META, CHECK, self._new.check_value.encode())
        self._records.delete(ops.META, UNDER_WAY)
        self._store.commit()
        told(count % COMMIT_EVERY)

    def _entities(self) -> Iterator[Network | Terminal | Host | Cashier | Card]:
        """Yield every entity with a secret, its secrets sealed under the new key."""
        for kind, role in ((Network, "network"), (Terminal, "terminal")):
            for peer in self._registry.all(kind):
                assert isinstance(peer, Network | Terminal)
                self._peer_keys(peer.keys, f"{role}:{peer.number}")
                yield peer
        for host in self._registry.all(Host):
            assert isinstance(host, Host)
            for purpose, records in key_sets(host):
                self._peer_keys(records, f"host:{host.name}:{purpose}")
            yield host
        for cashier in self._registry.all(Cashier):
            assert isinstance(cashier, Cashier)
            cashier.seed = self._seed(cashier.seed, staff_aad(cashier))
            yield cashier
        for card in self._registry.all(Card):
            assert isinstance(card, Card)
            card.seed = self._seed(card.seed, card.id.encode())
            yield card

    def _peer_keys(self, records: list[PeerKeyRecord], owner: str) -> None:
        for record in records:
            name = f"{owner}:{record.version}"
            record.sealed = self._resealed(record.sealed, "peer-keys", name)

    def _resealed(self, sealed: bytes, purpose: Purpose, owner: str) -> bytes:
        try:
            clear = self._old.open(sealed, purpose=purpose, owner=owner)
        except UnsealError:
            clear = self._new.open(sealed, purpose=purpose, owner=owner)
        return self._new.seal(clear, purpose=purpose, owner=owner)

    def _seed(self, sealed: bytes, aad: bytes) -> bytes:
        if not sealed:
            return sealed
        try:
            clear = self._old_vault.unseal(sealed, aad)
        except ValueError:
            clear = self._new_vault.unseal(sealed, aad)
        return self._new_vault.seal(clear, aad)

    def _retain(self, purpose: Purpose) -> None:
        key, owner = retained(purpose), f"retained:{purpose}"
        present = self._records.get(ops.META, key)
        sealed = (
            self._new.seal_subkey(self._old, purpose)
            if present is None
            else self._resealed(present, "peer-keys", owner)
        )
        self._records.put(ops.META, key, sealed)
