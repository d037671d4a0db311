"""The confirmation number: twelve characters that people can read out, copy and check.

2 for the application's number, 3 for the day, 6 for the scrambled sequence of that day, 1 check
character. It is neither a secret nor a proof of identity; scrambling only hides how many payments
an application takes.
"""

import hmac
import re
from datetime import UTC, date, datetime
from typing import Final

from protocols.cip.identifiers import ALPHABET, base32

APP_NO_MAX: Final = 1023
DAY_MAX: Final = 32767
SEQUENCE_MAX: Final = (1 << 30) - 1
_ROUNDS: Final = 4
_EPOCH: Final = date(2020, 1, 1)
_VALUES: Final = {character: value for value, character in enumerate(ALPHABET)}
_READ_AS: Final = str.maketrans({"I": "1", "L": "1", "O": "0", " ": None, "-": None, "\t": None})
_FORM: Final = re.compile(r"[0-9A-HJKMNP-TV-Z]{12}")


def day_number(at_ns: int) -> int:
    """Days since 2020-01-01 of an instant, by its UTC date."""
    return (datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).date() - _EPOCH).days


def make_code(key: bytes, app_no: int, day: int, sequence: int) -> str:
    """Return the number in its stored form, twelve characters without hyphens.

    Args:
        key: of the scrambling, 32 bytes.
        app_no: 0..1023. day: see `day_number`, 0..32767. sequence: 1..2³⁰-1.

    Raises:
        ValueError: one of them is out of range.
    """
    if not (0 <= app_no <= APP_NO_MAX and 0 <= day <= DAY_MAX and 1 <= sequence <= SEQUENCE_MAX):
        raise ValueError("application, day or sequence out of range")
    left, right = sequence >> 15, sequence & 0x7FFF
    place = app_no.to_bytes(2, "big") + day.to_bytes(2, "big")
    for number in range(_ROUNDS):
        text = bytes((number,)) + place + right.to_bytes(2, "big")
        mixed = hmac.digest(key, text, "sha256")
        left, right = right, left ^ (int.from_bytes(mixed[:2], "big") & 0x7FFF)
    body = base32(app_no, 2) + base32(day, 3) + base32(left << 15 | right, 6)
    return body + check_code(body)


def check_code(body: str) -> str:
    """The check character of eleven characters: c = 2·(c xor v) in GF(2⁵), x⁵ + x² + 1."""
    check = 0
    for character in body:
        check = (check ^ _VALUES[character]) << 1
        if check & 32:
            check ^= 0b100101
    return ALPHABET[check]


def normalise_code(text: str) -> str:
    """What somebody typed, in the stored form; whether it is a number says `is_code`."""
    return text.upper().translate(_READ_AS)


def is_code(text: str) -> bool:
    """True for twelve characters whose last one checks the others."""
    return _FORM.fullmatch(text) is not None and check_code(text[:11]) == text[11]


def shown_code(code: str) -> str:
    """4-4-4, as people read it."""
    return f"{code[:4]}-{code[4:8]}-{code[8:]}"
