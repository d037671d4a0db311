"""Amounts are decimal text on the wire and integers in minor units inside."""

import re

_AMOUNT = re.compile(r"(0|[1-9][0-9]{0,14})(?:\.([0-9]{1,18}))?", re.ASCII)


class AmountError(ValueError):
    """The text is no amount of that currency. It is never quoted."""


def to_minor(text: object, exponent: int) -> int:
    """Return an amount in minor units, above 0.

    Args:
        text: as received; anything but text is no amount.
        exponent: decimal places of the currency; more places must be zeros.

    Raises:
        AmountError: anything that is not exactly such an amount.
    """
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise AmountError("no amount")
    fraction = match[2] or ""
    if fraction[exponent:].strip("0"):
        raise AmountError("finer than the currency's minor unit")
    minor = int(match[1] + fraction[:exponent].ljust(exponent, "0"))
    if minor == 0:
        raise AmountError("zero")
    return minor


def is_amount(text: object) -> bool:
    """True for text of the form; its value may be 0."""
    return isinstance(text, str) and _AMOUNT.fullmatch(text) is not None
