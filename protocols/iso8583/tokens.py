"""One-time codes under way (DE48 tag 03): AES-256-GCM under the data key of a link.

    tag 03 = hex of nonce, 12 bytes | sealed code, as long as the code | tag, 16 bytes

The additional data are the 12 digits of DE37, so that a sealed code cannot be moved to another
operation. The nonce is a counter that never repeats under one key: the caller keeps a durable
start number and reserves a block of numbers before any of it is used. The receiver takes any nonce.
"""

from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
CODE_DIGITS_MIN: Final = 6
CODE_DIGITS_MAX: Final = 8
NONCE_BLOCK: Final = 1 << 20
"""Numbers to be reserved at a time: one durable write for a million codes."""

_BYTES_MIN = NONCE_BYTES + CODE_DIGITS_MIN + TAG_BYTES
_BYTES_MAX = NONCE_BYTES + CODE_DIGITS_MAX + TAG_BYTES


class NoncesUsedUp(Exception):
    """The reserved numbers have all been used: reserve more before the next code is sealed."""


class TokenSealer:
    """Seals codes under one data key.

    Args:
        data_key: 32 bytes.
        start: first number that was never used under this key, and is durably reserved.
        count: how many are reserved.

    Attributes:
        next: the number of the next nonce.
        stop: the first number that is not reserved.
    """

    __slots__ = ("_seal", "next", "stop")

    def __init__(self, data_key: bytes, start: int, count: int = NONCE_BLOCK) -> None:
        if len(data_key) != 32:
            raise ValueError("a data key has 32 bytes")
        if start < 0 or count < 0:
            raise ValueError("nonces are counted from 0")
        self._seal = AESGCM(data_key).encrypt
        self.next = start
        self.stop = start + count

    @property
    def left(self) -> int:
        """Reserved numbers that are still free."""
        return self.stop - self.next

    def reserved(self, stop: int) -> None:
        """Numbers below `stop` have been durably reserved."""
        self.stop = max(self.stop, stop)

    def seal(self, token: str, operation: str) -> str:
        """Tag 03 for a code.

        Args:
            token: 6 to 8 digits.
            operation: DE37, 12 digits.

        Raises:
            NoncesUsedUp: nothing was sealed.
        """
        assert len(operation) == 12, "DE37 has 12 digits"
        if self.next >= self.stop:
            raise NoncesUsedUp
        nonce = self.next.to_bytes(NONCE_BYTES, "big")
        self.next += 1
        return (nonce + self._seal(nonce, token.encode(), operation.encode())).hex().upper()


class TokenOpener:
    """Opens codes sealed under any of the data keys given; make a new one when they change.

    Args:
        data_keys: 32 bytes each, newest first.
    """

    __slots__ = ("_open",)

    def __init__(self, data_keys: Iterable[bytes]) -> None:
        self._open = [AESGCM(key).decrypt for key in data_keys]

    def open(self, sealed_hex: str, operation: str) -> str | None:
        """The code in tag 03 of the operation with this DE37; None where no key opens it.

        Raises:
            ValueError: not hexadecimal, another length, or something else than a code inside. The
                text says nothing about the value.
        """
        try:
            sealed = bytes.fromhex(sealed_hex)
        except ValueError:
            raise ValueError("a sealed code is hexadecimal") from None
        if not _BYTES_MIN <= len(sealed) <= _BYTES_MAX:
            raise ValueError("a sealed code has another length")
        nonce, text = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        for decrypt in self._open:
            try:
                token = decrypt(nonce, text, operation.encode())
            except InvalidTag:
                continue
            if not token.isdigit():
                raise ValueError("a code has digits only")
            return token.decode()
        return None
