"""Keys that must be erasable: one per payment, in a file of slots beside the journal.

What is in the journal stays there. So a card number that a pending reversal may need is stored
sealed under a key of its own, which is nowhere but here and is overwritten when the payment is
over; the sealed number then is noise for ever.

    slot: 16 bytes of the payment's name, hashed · 32 bytes of key · 16 of zeros; all zero: free

The key alone opens nothing either: the one that seals is derived from it and from the node's.
"""

import os
from hashlib import blake2b
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SLOT_BYTES: Final = 64
SLOTS_MAX: Final = 1 << 20
_NAME_BYTES: Final = 16
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_FREE: Final = bytes(SLOT_BYTES)


class DataKeysFull(Exception):
    """There are as many unfinished payments as there are slots."""


class DataKeys:
    """The file, open. One owner; its calls that write may run in a thread, one at a time.

    Args:
        node_key: 32 bytes; what is sealed opens with it only.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, node_key: bytes) -> None:
        self._node_key = node_key
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._keys: dict[bytes, tuple[int, bytes]] = {}
        self._free: list[int] = []
        self._slots = 0
        data = os.pread(self._fd, SLOT_BYTES * SLOTS_MAX, 0)
        for at in range(0, len(data) // SLOT_BYTES * SLOT_BYTES, SLOT_BYTES):
            slot = data[at : at + SLOT_BYTES]
            number = at // SLOT_BYTES
            self._slots = number + 1
            if slot == _FREE:
                self._free.append(number)
            else:
                name, key = slot[:_NAME_BYTES], slot[_NAME_BYTES : _NAME_BYTES + _KEY_BYTES]
                self._keys[name] = (number, key)

    def __len__(self) -> int:
        return len(self._keys)

    def close(self) -> None:
        os.close(self._fd)

    def seal(self, owner: str, secret: bytes) -> bytes:
        """Make a key for `owner`, durable, and seal `secret` under it.

        Raises:
            DataKeysFull, OSError: there is no key, and nothing is sealed.
        """
        name, key = _name(owner), os.urandom(_KEY_BYTES)
        if name not in self._keys:
            if not self._free and self._slots >= SLOTS_MAX:
                raise DataKeysFull
            number = self._free.pop() if self._free else self._slots
            self._slots = max(self._slots, number + 1)
            self._write(number, name + key)
            os.fdatasync(self._fd)
            self._keys[name] = (number, key)
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher(name).encrypt(nonce, secret, owner.encode())

    def open(self, owner: str, sealed: bytes) -> bytes | None:
        """What was sealed; None: its key is erased."""
        name = _name(owner)
        if name not in self._keys or len(sealed) <= _NONCE_BYTES:
            return None
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher(name).decrypt(nonce, rest, owner.encode())
        except InvalidTag:
            return None

    def erase(self, owner: str) -> None:
        """Overwrite the key of `owner`; one that is not there is no error."""
        found = self._keys.pop(_name(owner), None)
        if found is not None:
            self._write(found[0], b"")
            os.fdatasync(self._fd)
            self._free.append(found[0])

    def keep_only(self, owners: set[str]) -> int:
        """Erase all other keys, such as those of payments that ended while the node did."""
        kept = {_name(owner) for owner in owners}
        gone = [name for name in self._keys if name not in kept]
        for name in gone:
            number, _ = self._keys.pop(name)
            self._write(number, b"")
            self._free.append(number)
        if gone:
            os.fdatasync(self._fd)
        return len(gone)

    def _write(self, number: int, content: bytes) -> None:
        data = content.ljust(SLOT_BYTES, b"\0")
        written = os.pwrite(self._fd, data, number * SLOT_BYTES)
        if written != SLOT_BYTES:
            raise OSError("a slot was written in part")

    def _cipher(self, name: bytes) -> AESGCM:
        return AESGCM(blake2b(self._keys[name][1], key=self._node_key, digest_size=32).digest())


def _name(owner: str) -> bytes:
    return blake2b(owner.encode(), digest_size=_NAME_BYTES).digest()
