"""What is to be paid, with what: read from what a site sent or a customer typed, checked field by
field, so that the answer can name every mistake at once.

Card numbers, verification values and one-time codes live in `Instrument` only, which never shows
them; stored and shown is `masked_instrument`.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta, Struct

from protocols.messages import AMOUNT_MAX

ITEMS_MAX: Final = 100
FIELDS_MAX: Final = 64
TEXT_MAX: Final = 200
PARAMETERS_MAX: Final = 1000
DEPTH_MAX: Final = 6
SECRET_FIELDS: Final = ("cvv", "token")  # leave no trace, not even in a hash
REFERENCE: Final = "client_ref"

InstrumentType = Literal["card", "account", "dimo", "ledger"]
INSTRUMENT_TYPES: Final = ("card", "account", "dimo", "ledger")

REQUIRED: Final = "required"
INVALID: Final = "invalid"
TOO_LONG: Final = "too_long"
RANGE: Final = "out_of_range"
EXPIRED: Final = "expired"
SUM: Final = "sum_differs"
NOT_ALLOWED: Final = "not_allowed"
TAKEN: Final = "taken"

_WORD = re.compile(r"[\w.-]{1,64}")
_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]{2,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DECIMAL = re.compile(r"[0-9]{1,15}")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")


class FieldFault(NamedTuple):
    """One field that cannot be taken: its dotted name, and why, as a stable word."""

    name: str
    reason: str


class FieldRule(Struct, frozen=True):
    """One field of an application's schema.

    A name without a dot is a custom field; `payer.email` and the like make a part of the payer
    required; `items` asks for items; `client_ref` lets customers type the reference where the site
    gives none.
    """

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9_.]{0,31}\Z",
            description="its name, in lower case; payer.email and the like, items, or client_ref",
            extra={"form": "1 to 32 small letters, digits, '_' or '.'"},
        ),
    ]
    label: Annotated[str, Meta(max_length=64, description="what customers read")] = ""
    type: Annotated[
        Literal["text", "number", "email", "date"], Meta(description="what may stand in it")
    ] = "text"
    required: Annotated[bool, Meta(description="it must be filled in")] = False
    max: Annotated[int, Meta(ge=1, le=TEXT_MAX, description="longest text, in characters")] = 64
    pattern: Annotated[
        str, Meta(max_length=200, description="regular expression of the whole text; empty: any")
    ] = ""

    @property
    def is_custom(self) -> bool:
        return "." not in self.name and self.name not in ("items", REFERENCE)


class AmountRule(Struct, frozen=True):
    """What amounts are taken, in minor units."""

    currency: Annotated[
        str,
        Meta(
            pattern=r"^[A-Z]{3}\Z", description="ISO 4217", extra={"form": "three capital letters"}
        ),
    ] = "PYG"
    min: Annotated[int, Meta(ge=1, le=AMOUNT_MAX, description="least amount, minor units")] = 1
    max: Annotated[int, Meta(ge=1, le=AMOUNT_MAX, description="largest amount, minor units")] = (
        5_000_000
    )


class FeeRule(Struct, frozen=True):
    """What the customer pays beside the amount: a fixed part, and basis points of the amount."""

    fixed: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="of every payment, minor units")
    ] = 0
    basis_points: Annotated[
        int, Meta(ge=0, le=10_000, description="hundredths of a percent of the amount")
    ] = 0

    def fee(self, amount: int) -> int:
        """Minor units; half a unit and more is rounded up."""
        return self.fixed + (amount * self.basis_points + 5_000) // 10_000


class Item(Struct, frozen=True, array_like=True):
    code: str
    amount: int
    account: str = ""


class Payer(Struct, frozen=True, array_like=True):
    name: str = ""
    email: str = ""
    phone: str = ""
    document: str = ""

    def __repr__(self) -> str:
        return "Payer(***)"


class Instrument(Struct, frozen=True):
    """What is paid with. `expiry` is MM/YY; which of the rest count depends on `type`."""

    type: InstrumentType
    pan: str = ""
    expiry: str = ""
    cvv: str = ""
    name: str = ""
    bank: str = ""
    number: str = ""
    holder: str = ""
    document: str = ""
    phone: str = ""
    token: str = ""
    account: str = ""

    def __repr__(self) -> str:
        return f"Instrument({self.type}, ***)"


class Transaction(Struct, frozen=True):
    """A payment as it was asked for, checked; `amount` without fee, minor units."""

    amount: int
    currency: str
    instrument: Instrument
    items: tuple[Item, ...] = ()
    payer: Payer = Payer()
    custom: dict[str, str] = {}


def masked_instrument(instrument: Instrument) -> str:
    """First six and last four of a card; last four of anything else."""
    match instrument.type:
        case "card":
            pan = instrument.pan
            return pan[:6] + "*" * max(len(pan) - 10, 0) + pan[-4:]
        case "account":
            shown = instrument.number
        case "dimo":
            shown = instrument.document or instrument.phone
        case _:
            shown = instrument.account
    kept = min(4, len(shown) // 2)
    return "*" * (len(shown) - kept) + shown[len(shown) - kept :]


def body_hash(key: bytes, transaction: Mapping[str, Any]) -> bytes:
    """HMAC-SHA-256 of the transaction as it was sent, `cvv` and `token` left out.

    Raises:
        ValueError: something in it has no JSON form.
    """
    kept = {name: value for name, value in transaction.items() if name not in SECRET_FIELDS}
    instrument = kept.get("instrument")
    if isinstance(instrument, Mapping):
        kept["instrument"] = {
            name: value for name, value in instrument.items() if name not in SECRET_FIELDS
        }
    text = json.dumps(
        kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def unflatten(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A form's dotted names as the nested object of the JSON body.

    Numbers as names make lists; what is called `amount` or `sent_at_ms` and is decimal becomes a
    number, since a form has only text.

    Raises:
        ValueError: a name contradicts another, or there are too many or too deep.
    """
    root: dict[str, Any] = {}
    for count, (name, value) in enumerate(pairs, 1):
        path = name.split(".")
        if count > PARAMETERS_MAX or len(path) > DEPTH_MAX or not all(path):
            raise ValueError("too many parameters, or a name that cannot be one")
        place = root
        for part in path[:-1]:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name} contradicts another parameter")  # noqa: TRY004
            place = inner
        if path[-1] in place:
            raise ValueError(f"{name} is given twice")
        number = path[-1] == "amount" and _DECIMAL.fullmatch(value) is not None
        place[path[-1]] = int(value) if number else value
    return {name: _as_lists(value) for name, value in root.items()}


def _as_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {name: _as_lists(entry) for name, entry in value.items()}
    if inner and set(inner) == {str(place) for place in range(len(inner))}:
        return [inner[str(place)] for place in range(len(inner))]
    return inner


def read_transaction(
    data: Any,
    *,
    amount: AmountRule,
    fields: Iterable[FieldRule],
    instruments: Iterable[str],
    year_month: tuple[int, int],
) -> tuple[Transaction | None, list[FieldFault]]:
    """Check everything that can be checked of a transaction by itself.

    Args:
        data: the decoded `transaction`; unknown names are ignored.
        instruments: types that the application's source takes.
        year_month: now, for the expiry of cards.

    Returns:
        The transaction and no fault, or None and every fault that was found.
    """
    if not isinstance(data, Mapping):
        return None, [FieldFault("transaction", REQUIRED)]
    reader = _Reader(year_month)
    value = reader.amount(data.get("amount"), "amount", amount.min, amount.max)
    if reader.text(data, "currency", 3, required=True) not in ("", amount.currency):
        reader.fault("currency", NOT_ALLOWED)
    items = reader.items(data.get("items"))
    if items and sum(item.amount for item in items) != value:
        reader.fault("items", SUM)
    payer = reader.payer(data.get("payer"))
    instrument = reader.instrument(data.get("instrument"), tuple(instruments))
    custom = reader.custom(data.get("custom"), fields, payer, items)
    if reader.faults or instrument is None:
        return None, reader.faults
    return Transaction(value, amount.currency, instrument, items, payer, custom), []


class _Reader:
    """Reads parts of a transaction and gathers what is wrong with them."""

    def __init__(self, year_month: tuple[int, int]) -> None:
        self.faults: list[FieldFault] = []
        self._year_month = year_month

    def fault(self, name: str, reason: str) -> None:
        self.faults.append(FieldFault(name, reason))

    def amount(self, value: Any, name: str, low: int, high: int) -> int:
        if value is None:
            self.fault(name, REQUIRED)
        elif not isinstance(value, int) or isinstance(value, bool):
            self.fault(name, INVALID)
        elif not low <= value <= high:
            self.fault(name, RANGE)
        else:
            return value
        return 0

    def text(
        self, data: Mapping[str, Any], name: str, length: int, *, where: str = "",
        required: bool = False,
    ) -> str:  # fmt: skip
        value = data.get(name)
        if value is None or value == "":
            if required:
                self.fault(where + name, REQUIRED)
            return ""
        if not isinstance(value, str) or _CONTROL.search(value) or not _encodes(value):
            self.fault(where + name, INVALID)
        elif len(value) > length:
            self.fault(where + name, TOO_LONG)
        else:
            return value.strip()
        return ""

    def items(self, data: Any) -> tuple[Item, ...]:
        if data is None:
            return ()
        if not isinstance(data, list) or len(data) > ITEMS_MAX:
            self.fault("items", INVALID)
            return ()
        found = []
        for place, entry in enumerate(data):
            where = f"items.{place}."
            if not isinstance(entry, Mapping):
                self.fault(f"items.{place}", INVALID)
                continue
            code = self.text(entry, "code", 32, where=where, required=True)
            value = self.amount(entry.get("amount"), where + "amount", 1, AMOUNT_MAX)
            found.append(Item(code, value, self.text(entry, "account", 64, where=where)))
        return tuple(found)

    def payer(self, data: Any) -> Payer:
        if data is None:
            return Payer()
        if not isinstance(data, Mapping):
            self.fault("payer", INVALID)
            return Payer()
        email = self.text(data, "email", 254, where="payer.")
        if email and not _EMAIL.fullmatch(email):
            self.fault("payer.email", INVALID)
        return Payer(
            self.text(data, "name", 100, where="payer."),
            email,
            self.text(data, "phone", 32, where="payer."),
            self.text(data, "document", 32, where="payer."),
        )

    def instrument(self, data: Any, allowed: tuple[str, ...]) -> Instrument | None:
        if not isinstance(data, Mapping):
            self.fault("instrument", REQUIRED)
            return None
        kind = data.get("type")
        if kind not in INSTRUMENT_TYPES:
            self.fault("instrument.type", REQUIRED if kind is None else INVALID)
            return None
        if kind not in allowed:
            self.fault("instrument.type", NOT_ALLOWED)
            return None
        return getattr(self, f"_{kind}")(data)  # type: ignore[no-any-return]

    def _digits(self, data: Mapping[str, Any], name: str, low: int, high: int) -> str:
        value = self.text(data, name, 64, where="instrument.", required=True)
        value = value.replace(" ", "").replace("-", "") if name == "pan" else value
        if value and not (value.isascii() and value.isdigit() and low <= len(value) <= high):
            self.fault(f"instrument.{name}", INVALID)
            return ""
        return value

    def _card(self, data: Mapping[str, Any]) -> Instrument:
        pan = self._digits(data, "pan", 12, 19)
        if pan and not luhn(pan):
            self.fault("instrument.pan", INVALID)
        expiry = self.text(data, "expiry", 5, where="instrument.", required=True)
        if expiry and not re.fullmatch(r"(0[1-9]|1[0-2])/[0-9]{2}", expiry):
            self.fault("instrument.expiry", INVALID)
        elif expiry and (2000 + int(expiry[3:]), int(expiry[:2])) < self._year_month:
            self.fault("instrument.expiry", EXPIRED)
        cvv = self._digits(data, "cvv", 3, 4)
        name = self.text(data, "name", 100, where="instrument.")
        return Instrument("card", pan=pan, expiry=expiry, cvv=cvv, name=name)

    def _account(self, data: Mapping[str, Any]) -> Instrument:
        return Instrument(
            "account",
            bank=self.text(data, "bank", 32, where="instrument.", required=True),
            number=self._digits(data, "number", 4, 28),
            holder=self.text(data, "holder", 100, where="instrument.", required=True),
        )

    def _dimo(self, data: Mapping[str, Any]) -> Instrument:
        document = self.text(data, "document", 12, where="instrument.")
        phone = self.text(data, "phone", 20, where="instrument.")
        if not document and not phone:
            self.fault("instrument.document", REQUIRED)
        elif document and len(document) < 5:
            self.fault("instrument.document", INVALID)
        elif not document and len(phone) < 6:
            self.fault("instrument.phone", INVALID)
        token = self._digits(data, "token", 6, 8)
        return Instrument("dimo", document=document, phone=phone, token=token)

    def _ledger(self, data: Mapping[str, Any]) -> Instrument:
        account = self.text(data, "account", 64, where="instrument.", required=True)
        if account and not _WORD.fullmatch(account):
            self.fault("instrument.account", INVALID)
        return Instrument("ledger", account=account)

    def custom(
        self, data: Any, fields: Iterable[FieldRule], payer: Payer, items: tuple[Item, ...]
    ) -> dict[str, str]:
        """The fields that the schema knows; a name it does not know is ignored."""
        given: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
        if data is not None and not isinstance(data, Mapping):
            self.fault("custom", INVALID)
        found = {}
        for rule in fields:
            if rule.name == "items":
                if rule.required and not items:
                    self.fault("items", REQUIRED)
            elif rule.name == REFERENCE:
                continue  # no part of the transaction: it names the payment
            elif rule.name.startswith("payer."):
                if rule.required and not getattr(payer, rule.name[6:], ""):
                    self.fault(rule.name, REQUIRED)
            else:
                value = self.text(
                    given, rule.name, rule.max, where="custom.", required=rule.required
                )
                if value and not fits(rule, value):
                    self.fault(f"custom.{rule.name}", INVALID)
                if value:
                    found[rule.name] = value
        return found


def fits(rule: FieldRule, value: str) -> bool:
    """Tell whether a text is of the type and pattern of a field."""
    match rule.type:
        case "number":
            well = value.isascii() and value.isdigit()
        case "email":
            well = _EMAIL.fullmatch(value) is not None
        case "date":
            well = _DATE.fullmatch(value) is not None
        case _:
            well = True
    return well and (not rule.pattern or re.fullmatch(rule.pattern, value) is not None)


def luhn(digits: str) -> bool:
    """The check digit of card numbers, ISO/IEC 7812-1."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _encodes(text: str) -> bool:
    """False for lone surrogates, which JSON can say and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
