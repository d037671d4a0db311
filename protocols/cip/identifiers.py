"""Identifiers that sort by the time they were made: a prefix and 26 characters of Crockford base32.

48 bits are the milliseconds since 1970, 80 bits are random, as in ULID.
"""

import re
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RANDOM_BYTES: Final = 10
_TIME_MAX: Final = 1 << 48
_FORM: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def identifier(prefix: str, at_ns: int, chance: bytes) -> str:
    """Return `prefix` and 26 characters.

    Args:
        at_ns: UTC, nanoseconds since 1970.
        chance: RANDOM_BYTES bytes from the system's generator.

    Raises:
        ValueError: another number of bytes, or a time out of range.
    """
    at_ms = at_ns // 1_000_000
    if len(chance) != RANDOM_BYTES or not 0 <= at_ms < _TIME_MAX:
        raise ValueError("an identifier takes 48 bits of time and 80 random ones")
    value = at_ms << 80 | int.from_bytes(chance, "big")
    return prefix + base32(value, 26)


def is_identifier(text: str, prefix: str) -> bool:
    return text.startswith(prefix) and _FORM.fullmatch(text, len(prefix)) is not None


def base32(value: int, characters: int) -> str:
    """The lowest `5 * characters` bits of `value`, highest first."""
    return "".join(ALPHABET[value >> 5 * place & 31] for place in reversed(range(characters)))
