"""PIN blocks of ISO 9564-1, formats 0, 2 and 3, for simulators and test hosts.

A clear PIN block exists only here and in the caller's hands; the switch itself passes DE52 through
untouched. Nothing of a PIN is in an exception's text.
"""

from typing import Final

from core_ext._mac import MacKey

BLOCK_BYTES: Final = 8
PIN_DIGITS_MIN: Final = 4
PIN_DIGITS_MAX: Final = 12
_PAN_DIGITS = 12
_FILL_3 = "ABCDEF"


def clear_block(format_: int, pin: str, pan: str = "", fill: bytes = b"") -> bytes:
    """The clear PIN block, eight bytes.

    Args:
        format_: 0 (bound to the card number), 2 (for chip cards) or 3 (as 0, with a random fill).
        pin: 4 to 12 digits.
        pan: whole card number with its check digit, at least 13 digits; formats 0 and 3.
        fill: at least as many random bytes as the fill has digits, ten at most; format 3.

    Raises:
        ValueError: an argument of another form.
    """
    if not (_digits(pin) and PIN_DIGITS_MIN <= len(pin) <= PIN_DIGITS_MAX):
        raise ValueError("a PIN has 4 to 12 digits")
    missing = 2 * BLOCK_BYTES - 2 - len(pin)
    if format_ in (0, 2):
        padding = "F" * missing
    elif format_ == 3:
        if len(fill) < missing:
            raise ValueError("too few random bytes for the fill")
        # 252 of the 256 values of a byte fall evenly on six digits; the rest is folded in.
        padding = "".join(_FILL_3[byte % 6] for byte in fill[:missing])
    else:
        raise ValueError("PIN blocks have format 0, 2 or 3")
    block = bytes.fromhex(f"{format_}{len(pin):X}{pin}{padding}")
    return block if format_ == 2 else _xor(block, _pan_block(pan))


def pin_of(block: bytes, pan: str = "") -> str:
    """The PIN of a clear block of any of the three formats.

    Raises:
        ValueError: no such block, or one that was made for another card number.
    """
    if len(block) != BLOCK_BYTES:
        raise ValueError("a PIN block has eight bytes")
    format_ = block[0] >> 4  # no card number reaches into the first byte
    if format_ not in (0, 2, 3):
        raise ValueError("PIN blocks have format 0, 2 or 3")
    text = (block if format_ == 2 else _xor(block, _pan_block(pan))).hex().upper()
    length = int(text[1], 16)
    pin, padding = text[2 : 2 + length], text[2 + length :]
    fill = _FILL_3 if format_ == 3 else "F"
    good = PIN_DIGITS_MIN <= length <= PIN_DIGITS_MAX and _digits(pin)
    if not good or any(digit not in fill for digit in padding):
        raise ValueError("not a PIN block for this card number")
    return pin


def encrypted(block: bytes, key: bytes) -> bytes:
    """A clear block under a PIN key: one block of triple DES, two or three keys (16, 24 bytes)."""
    if len(block) != BLOCK_BYTES:
        raise ValueError("a PIN block has eight bytes")
    # The CBC-MAC of a single block is its encryption.
    return MacKey("tdes-mac-1", key).mac(block)


def _pan_block(pan: str) -> bytes:
    if not _digits(pan) or len(pan) <= _PAN_DIGITS:
        raise ValueError("a card number has more than 12 digits")
    return bytes.fromhex("0000" + pan[-1 - _PAN_DIGITS : -1])


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
