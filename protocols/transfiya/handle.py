"""Handles: the network's names of keys, Base58Check with version 0x87, so they begin with `w`."""

import re
from hashlib import sha256

try:
    from Crypto.Hash import RIPEMD160
except ModuleNotFoundError as error:  # pragma: no cover - said plainly, for a partial install
    raise ModuleNotFoundError(
        "protocols.transfiya needs pycryptodome (RIPEMD-160): pip install 'troncal[transfiya]'"
    ) from error

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGIT = {letter: value for value, letter in enumerate(_ALPHABET)}
_VERSION = 0x87
_HASH_BYTES = 20
_SHAPE = re.compile(r"[1-9A-HJ-NP-Za-km-z]{26,35}", re.ASCII)
_EMPTY = "9c1185a5c5e9fc54612808977ee8f548b2258d31"


def ripemd160(data: bytes) -> bytes:
    """The digest; OpenSSL builds without it are no hindrance."""
    digest: bytes = RIPEMD160.new(data).digest()
    return digest


def self_test() -> None:
    """See that RIPEMD-160 works as published.

    Raises:
        RuntimeError: it does not.
    """
    if ripemd160(b"").hex() != _EMPTY:
        raise RuntimeError("RIPEMD-160 fails its self-test")


def _check(payload: bytes) -> bytes:
    return sha256(sha256(payload).digest()).digest()[:4]


def handle_of(public: bytes) -> str:
    """Return the handle of a public key.

    Args:
        public: exactly the bytes that are printed; compressed and uncompressed forms of one key
            have different handles.
    """
    payload = bytes((_VERSION,)) + ripemd160(sha256(public).digest())
    number = int.from_bytes(payload + _check(payload), "big")
    letters = []
    while number:
        number, digit = divmod(number, 58)
        letters.append(_ALPHABET[digit])
    return "".join(reversed(letters))


def hash160_of(handle: str) -> bytes | None:
    """Return the 20 bytes inside a handle, or None where checksum or version are not right."""
    number = 0
    for letter in handle:
        digit = _DIGIT.get(letter)
        if digit is None:
            return None
        number = number * 58 + digit
    size = 1 + _HASH_BYTES + 4
    if number >= 1 << 8 * size:
        return None
    data = number.to_bytes(size, "big")
    if data[0] != _VERSION or _check(data[:-4]) != data[-4:]:
        return None
    return data[1:-4]


def has_shape(text: object) -> bool:
    """True for text that may be a handle; received ones may carry a wrong checksum."""
    return isinstance(text, str) and _SHAPE.fullmatch(text) is not None
