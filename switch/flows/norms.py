"""Domain values in their one normal form: documents, phones, cashiers, dates, references, amounts.

Every function takes what a peer or an operator typed and returns the form that is stored and
compared, or raises `FieldError` with the name of the field. Nothing is guessed: a document with a
blank or a dot in it is refused, not cleaned, so that two spellings never name one operation.

The last part masks values for people and logs. A masked value is for reading only; it is never
compared and never stored in place of the value.
"""

import datetime
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from protocols.currencies import BY_NUMBER, CURRENCIES, Currency

AMOUNT_MAX: Final = 999_999_999_999
"""DE4 has twelve digits."""

DECLARATION_FIELDS: Final = (
    "name",
    "occupation",
    "address",
    "document",
    "phone",
    "nationality",
    "origin",
    "amount_in_words",
)
"""What a declaration of the origin of funds may say (D19)."""

DECLARATION_CHARS_MAX: Final = 200
"""Longest value of a declaration's field, in characters."""

FORMS: Final = {
    "network": "four digits",
    "terminal": "eight digits",
    "branch": "one to six digits",
    "cashier": "one to six digits",
    "supervisor": "one to six digits",
    "operation": "twelve digits",
    "reference": "26 digits: network, terminal, date, trace",
    "trace": "1 to 999999",
    "token": "six to eight digits",
    "document_type": "CI, RUC or PAS",
    "document": "CI: 5 to 8 digits; RUC: 6 to 8 digits, a hyphen and its check digit; PAS: 5 to "
    "12 letters or digits",
    "phone": "as +595981123456 or 0981123456",
    "depositor": "type and number of a document, as CI4567890",
    "currency": "a code of ISO 4217, as PYG",
    "amount": "1 to 999999999999, in minor units",
    "business_date": "as 2026-11-22 or 20261122",
}
"""What each field looks like, for people who typed it wrong."""

PHONE: Final = "TEL"
"""Type of an identity given by telephone number instead of a document."""


class FieldError(ValueError):
    """A value does not have the form its field demands.

    Carries the name of the field, which the peer may be told (code 30), and never the value: it
    may be a document or a one-time code, and exceptions end up in logs.

    Attributes:
        field: name of the field, as in the message.
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"not a valid value for {told_with_form(field)}")
        self.field = field


def told_with_form(field: str, between: str = ": ") -> str:
    """The name of a field and what it looks like, where that is known."""
    form = FORMS.get(field, "")
    return f"{field}{between}{form}" if form else field


# ---- numbers of peers and people -----------------------------------------------------------------


def _is_digits(value: object, low: int, high: int) -> bool:
    # isdigit() alone also holds for superscripts and Arabic digits, which a peer may refuse.
    return (
        isinstance(value, str) and low <= len(value) <= high and value.isascii() and value.isdigit()
    )


def zero_filled(value: str, field: str) -> str:
    """Return a number of 1 to 6 digits as six digits: cashier, supervisor or branch.

    Raises:
        FieldError: not 1 to 6 digits.
    """
    if not _is_digits(value, 1, 6):
        raise FieldError(field)
    return value.zfill(6)


def cashier(value: str) -> str:
    """Return the cashier's number as six digits. Raises: FieldError."""
    return zero_filled(value, "cashier")


def supervisor(value: str) -> str:
    """Return the supervisor's number as six digits. Raises: FieldError."""
    return zero_filled(value, "supervisor")


def branch(value: str) -> str:
    """Return the number of the branch (boca) as six digits. Raises: FieldError."""
    return zero_filled(value, "branch")


def network(value: str) -> str:
    """Return a network's peer id, exactly four digits. Raises: FieldError."""
    if not _is_digits(value, 4, 4):
        raise FieldError("network")
    return value


def terminal(value: str) -> str:
    """Return a terminal's peer id, exactly eight digits. Raises: FieldError."""
    if not _is_digits(value, 8, 8):
        raise FieldError("terminal")
    return value


def operation(value: str) -> str:
    """Return the number sicoop gave an operation, exactly twelve digits. Raises: FieldError."""
    if not _is_digits(value, 12, 12):
        raise FieldError("operation")
    return value


def trace(value: int, field: str = "trace") -> int:
    """Return a terminal's trace, 1 to 999 999. Raises: FieldError."""
    # A bool is an int to Python, but no peer means 1 when it says true.
    if type(value) is not int or not 1 <= value <= 999_999:
        raise FieldError(field)
    return value


def token(value: str) -> str:
    """Return a one-time code: a string of 6 to 8 digits, leading zeros kept (T14).

    Raises:
        FieldError: another form; that is no attempt (T19).
    """
    if not _is_digits(value, 6, 8):
        raise FieldError("token")
    return value


# ---- persons -------------------------------------------------------------------------------------

_PASSPORT = re.compile(r"[0-9A-Za-z]{5,12}", re.ASCII)
_E164 = re.compile(r"\+[1-9][0-9]{7,14}", re.ASCII)
_LOCAL_MOBILE = re.compile(r"09[0-9]{8}", re.ASCII)
_PARAGUAY_MOBILE_CHARS = len("+5959") + 8


def ruc_check_digit(base: str) -> int:
    """Return the check digit of a Paraguayan taxpayer number (RUC).

    Modulo 11 as published by the tax administration: weights 2 to 11 from the right, starting
    again at 2; 11 minus the remainder, and 0 where the remainder is 0 or 1.

    Args:
        base: the digits before the hyphen.
    """
    total = sum(int(digit) * (2 + place % 10) for place, digit in enumerate(reversed(base)))
    remainder = total % 11
    return 11 - remainder if remainder > 1 else 0


def document(document_type: str | None, value: str, field: str = "document") -> tuple[str, str]:
    """Return (type, number) of a document; the type is CI where none is given.

    CI: 5 to 8 digits. RUC: 6 to 8 digits, a hyphen and the right check digit. PAS: 5 to 12 letters
    or digits, stored in upper case.

    Raises:
        FieldError: the type is unknown (`document_type`) or the number has another form (`field`).
    """
    kind = "CI" if document_type is None else document_type
    if kind == "CI":
        if _is_digits(value, 5, 8):
            return kind, value
    elif kind == "RUC":
        if isinstance(value, str):
            base, hyphen, check = value.partition("-")
            if (
                hyphen
                and _is_digits(base, 6, 8)
                and _is_digits(check, 1, 1)
                and int(check) == ruc_check_digit(base)
            ):
                return kind, value
    elif kind == "PAS":
        if isinstance(value, str) and _PASSPORT.fullmatch(value):
            return kind, value.upper()
    else:
        raise FieldError("document_type")
    raise FieldError(field)


def phone(value: str, field: str = "phone") -> str:
    """Return a telephone number in E.164 form; a local mobile `09…` becomes `+5959…`.

    Raises:
        FieldError: neither E.164 (8 to 15 digits after the plus) nor `09` and eight digits.
    """
    if isinstance(value, str):
        if _LOCAL_MOBILE.fullmatch(value):
            return "+595" + value[1:]
        if _E164.fullmatch(value):
            # A digit too few or too many would be someone else's number, or nobody's.
            if value.startswith("+5959") and len(value) != _PARAGUAY_MOBILE_CHARS:
                raise FieldError(field)
            return value
    raise FieldError(field)


def identity(
    document_type: str | None, document_number: str | None, phone_number: str | None
) -> tuple[str, str]:
    """Return who is meant as (type, number): a document, or (`TEL`, E.164 number).

    Raises:
        FieldError: `document` where both or neither are given, else the field at fault.
    """
    if (document_number is None) == (phone_number is None):
        raise FieldError("document")
    if document_number is not None:
        return document(document_type, document_number)
    assert phone_number is not None
    return PHONE, phone(phone_number)


def depositor(value: str) -> tuple[str, str]:
    """Return (type, number) of a depositor written as one word, such as `CI4567890` (D21).

    Raises:
        FieldError: no known type in front, or a wrong number after it.
    """
    if isinstance(value, str):
        for kind in ("CI", "RUC", "PAS"):
            if value.startswith(kind):
                return document(kind, value[len(kind) :], "depositor")
    raise FieldError("depositor")


def declaration(value: Mapping[str, str]) -> dict[str, str]:
    """Return the known fields of a declaration of origin that are not blank, in fixed order.

    Unknown fields are ignored, as everywhere in the session protocol.

    Raises:
        FieldError: a known field is no string, is too long or holds control characters.
    """
    if not isinstance(value, Mapping):
        raise FieldError("declaration")
    kept: dict[str, str] = {}
    for name in DECLARATION_FIELDS:
        text = value.get(name, "")
        if not isinstance(text, str) or len(text) > DECLARATION_CHARS_MAX:
            raise FieldError("declaration")
        text = text.strip()
        if not text.isprintable():
            raise FieldError("declaration")
        if text:
            kept[name] = text
    return kept


# ---- money ---------------------------------------------------------------------------------------


def currency(value: str) -> Currency:
    """Return the currency of an alphabetic code. Raises: FieldError."""
    found = CURRENCIES.get(value) if isinstance(value, str) else None
    if found is None:
        raise FieldError("currency")
    return found


def currency_by_number(value: str) -> Currency:
    """Return the currency of a numeric code, three digits as in DE49. Raises: FieldError."""
    found = BY_NUMBER.get(value) if isinstance(value, str) else None
    if found is None:
        raise FieldError("currency")
    return found


def amount(value: int, field: str = "amount") -> int:
    """Return an amount in minor units, 1 to twelve digits. Raises: FieldError."""
    if type(value) is not int or not 1 <= value <= AMOUNT_MAX:
        raise FieldError(field)
    return value


def amount_text(value: int, code: str = "PYG") -> str:
    """Return an amount for people: `Gs. 150.000`, `US$ 1.234,05`; the sign goes before the figure.

    Raises:
        FieldError: the currency is not in the table.
    """
    unit = currency(code)
    sign = "-" if value < 0 else ""
    if not unit.exponent:
        return f"{unit.symbol} {sign}{abs(value):,}".replace(",", ".")
    whole, minor = divmod(abs(value), 10**unit.exponent)
    grouped = f"{whole:,}".replace(",", ".")
    return f"{unit.symbol} {sign}{grouped},{minor:0{unit.exponent}d}"


# ---- dates and instants --------------------------------------------------------------------------

_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MS = datetime.timedelta(milliseconds=1)


def date(value: str, field: str = "business_date") -> datetime.date:
    """Return a date written `20261122` or `2026-11-22`.

    Raises:
        FieldError: another form, or no such day.
    """
    if isinstance(value, str):
        if len(value) == 10 and value[4] == "-" and value[7] == "-":
            value = value[:4] + value[5:7] + value[8:]
        if _is_digits(value, 8, 8):
            try:
                return _day(value)
            except ValueError:
                raise FieldError(field) from None
    raise FieldError(field)


# Nearly every date is today's or yesterday's.
@lru_cache(maxsize=64)
def _day(date8: str) -> datetime.date:
    return datetime.date(int(date8[:4]), int(date8[4:6]), int(date8[6:]))


def instant_ms(value: str, field: str = "sent_at") -> int:
    """Return an ISO 8601 instant as milliseconds since 1970-01-01 UTC, fractions cut off.

    Raises:
        FieldError: another form, no zone, or no such time.
    """
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise FieldError(field)
    try:
        return (datetime.datetime.fromisoformat(value) - _EPOCH) // _MS
    except (ValueError, OverflowError):
        raise FieldError(field) from None


def instant_text(ms: int) -> str:
    """Return milliseconds since 1970-01-01 UTC as `2026-11-22T13:00:00.000Z`."""
    text = (_EPOCH + ms * _MS).isoformat(timespec="milliseconds")
    return text[:23] + "Z"


# ---- the reference -------------------------------------------------------------------------------


class Reference(NamedTuple):
    """The parts of the idempotency key of an operation between red and sicoop.

    Attributes:
        network: four digits.
        terminal: eight digits.
        date: day of receipt at red in red's zone, `20261122`.
        trace: 1 to 999 999.
    """

    network: str
    terminal: str
    date: str
    trace: int

    def __str__(self) -> str:
        return compose_reference(self.network, self.terminal, self.date, self.trace)


def compose_reference(network: str, terminal: str, date8: str, trace: int) -> str:
    """Return the 26 digits network(4) terminal(8) date(8) trace(6), from normalised parts.

    For every operation, so the parts are not examined again: they come from the session (peer ids),
    the calendar and a decoded message.
    """
    reference = f"{network}{terminal}{date8}{trace:06d}"
    assert len(reference) == 26, "a part of the reference is not in its normal form"
    return reference


def parse_reference(value: str) -> Reference:
    """Return the parts of a reference.

    Raises:
        FieldError: not 26 digits, no such day, or trace 0.
    """
    if not _is_digits(value, 26, 26):
        raise FieldError("reference")
    date8 = value[12:20]
    date(date8, "reference")
    return Reference(value[:4], value[4:12], date8, trace(int(value[20:]), "reference"))


# ---- masks ---------------------------------------------------------------------------------------


def mask_document(value: str) -> str:
    """Return `****` and the last three characters; nothing of a value of four or fewer."""
    return "****" + value[-3:] if len(value) > 4 else "****"


def mask_phone(value: str) -> str:
    """Return `****` and the last three digits."""
    return mask_document(value)


def mask_identity(identity: tuple[str, str]) -> str:
    """Return the type and the masked number: `CI ****456`."""
    return f"{identity[0]} {mask_document(identity[1])}"


def mask_name(value: str) -> str:
    """Return a name that its bearer recognises and a stranger does not learn: `AN*** GO***`.

    Two letters of each word of four or more letters, one of a shorter one, at most four words; the
    number of stars says nothing about the length. A masked name stays as it is.
    """
    return " ".join(_mask_word(word) for word in value.split()[:4])


def _mask_word(word: str) -> str:
    if len(word) <= 5 and word.endswith("***"):
        return word
    return (word[:2] if len(word) > 3 else word[:1]).upper() + "***"


def mask_pan(value: str) -> str:
    """Return the first six and the last four digits of a card number, the rest as stars.

    Anything but 13 to 19 digits is masked whole.
    """
    if not _is_digits(value, 13, 19):
        return "****"
    return f"{value[:6]}{'*' * (len(value) - 10)}{value[-4:]}"
