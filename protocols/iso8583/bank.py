"""The `bank` dialect's meaning: purchases, credits, reversals and advices, to and from elements.

    0200/0210  purchase or debit (DE3 = 000000), credit to an account (DE3 = 210000)
    0100/0110  the same, set aside only: a 0220 books it, a reversal lets go of it
    0220(0221)/0230  advice: it has happened, book it
    0400, 0420(0421)/0410, 0430  reversal

Pure functions, as in `ceibo.py`; holds, status and network management of that dialect hold here
too. DE7 and DE11 belong to the link. DE52 and DE55 are passed through as they are. A card's
verification value (tag 24) lives in the message only: it is shown and stored nowhere.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from protocols.codes import CODES, key_of_host_code
from protocols.currencies import BY_NUMBER, CURRENCIES
from protocols.iso8583.ceibo import ElementFault, Elements, Original, original, original_data
from protocols.iso8583.dialect import Message
from protocols.messages import AMOUNT_MAX

PROCESSING_PURCHASE: Final = "000000"
PROCESSING_CREDIT: Final = "210000"
ENTRY_E_COMMERCE: Final = "812"
REASON_NORMAL: Final = "00"

CardType = Literal["", "C", "D"]
Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]

_MASKED = frozenset(
    (
        "pan",
        "expiry",
        "track2",
        "verification_value",
        "vci",
        "pin_block",
        "chip",
        "account_from",
        "account_to",
    )
)


class BankMessage(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Base; its repr masks all that names a card or an account."""

    def __repr__(self) -> str:
        shown = []
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if value not in ("", b"", 0, None):
                shown.append(f"{field}=***" if field in _MASKED else f"{field}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


class Card(BankMessage, frozen=True):
    """What a message says about the card and how it was read.

    Fields:
        pan: DE2. expiry: DE14, YYMM. entry_mode: DE22. track2: DE35. card_type: credit or debit.
        verification_value: tag 24. vci: tag 25, the host's word on the holder's authentication.
        pin_block, chip: DE52, DE55, untouched.
    """

    pan: str = ""
    expiry: str = ""
    entry_mode: str = ""
    track2: str = ""
    card_type: CardType = ""
    verification_value: str = ""
    vci: str = ""
    pin_block: bytes = b""
    chip: bytes = b""


class Shop(BankMessage, frozen=True):
    """Where it happens: DE18, DE41, DE42, DE43."""

    category: str = ""
    terminal: str = ""
    merchant: str = ""
    name_and_place: str = ""


class Purchase(BankMessage, frozen=True):
    """0200, or as an advice 0220: take `amount` from a card or account.

    Fields:
        operation: DE37, 12 digits. amount: minor units. account_from: DE102.
        instalments: tag 21, 0 for none. bank_code: tag 22. order: tag 23.
        hold: 0100, the first of two phases.
    """

    operation: str
    amount: Amount
    currency: str
    card: Card = Card()
    shop: Shop = Shop()
    account_from: str = ""
    instalments: int = 0
    bank_code: str = ""
    order: str = ""
    hold: bool = False


class Credit(BankMessage, frozen=True):
    """0200 (`hold`: 0100) with DE3 = 210000: give `amount` to an account (DE103) or card."""

    operation: str
    amount: Amount
    currency: str
    account_to: str = ""
    card: Card = Card()
    shop: Shop = Shop()
    bank_code: str = ""
    hold: bool = False


class Reversal(BankMessage, frozen=True):
    """0420 (0421, 0400): undo the operation, whatever it may have done.

    Fields:
        is_credit: the original was a credit. reason: DE25. original: DE90; DE37 decides.
        pan: DE2, where it is known still.
    """

    operation: str
    amount: Amount
    currency: str
    is_credit: bool = False
    reason: str = REASON_NORMAL
    original: Original = Original(mti="0200")
    terminal: str = ""
    pan: str = ""


class BankAnswer(BankMessage, frozen=True):
    """A host's answer: its own code (DE39), and ours for it."""

    code: str
    key: str
    host_code: str
    authorization: str = ""
    vci: str = ""


BankRequest = Purchase | Credit | Reversal

_CARD: Final = {
    "2": "pan",
    "14": "expiry",
    "22": "entry_mode",
    "35": "track2",
    "52": "pin_block",
    "55": "chip",
    "48.20": "card_type",
    "48.24": "verification_value",
    "48.25": "vci",
}
_SHOP: Final = {"18": "category", "41": "terminal", "42": "merchant", "43": "name_and_place"}
_PADDED: Final = {"42": 15, "43": 40}
_BYTES: Final = frozenset(("52", "55"))


# ---- outward


def request_elements(
    m: BankRequest,
    *,
    institution: str,
    exponent: int | None = None,
    advice: bool = False,
    repeat: bool = False,
    reversal: Literal["0420", "0400"] = "0420",
    local: str = "",
) -> tuple[str, Elements]:
    """MTI and elements.

    Args:
        institution: DE32, as configured for the link.
        exponent: decimal places of DE4 at this host, where they are not the currency's own.
        advice: 0220 for a purchase or credit that has already happened.
        repeat: it may have been sent before: 0221, 0421, 0401.
        reversal: the message this host takes reversals as.
        local: MMDDhhmmss of the local time (DE13, DE12); "": not told.

    Raises:
        ValueError: the amount cannot be written with so few decimal places.
    """
    elements: Elements = {
        "3": PROCESSING_PURCHASE,
        "4": amount_text(m.amount, m.currency, exponent),
        "32": institution,
        "37": m.operation,
        "49": CURRENCIES[m.currency].number,
    }
    if local:
        elements["12"], elements["13"] = local[4:], local[:4]
    tags: dict[str, object] = {}
    if isinstance(m, Reversal):
        if m.is_credit:
            elements["3"] = PROCESSING_CREDIT
        elements["25"] = m.reason
        elements["90"] = original_data(m.original._replace(network=institution))
        _put(elements, "41", m.terminal)
        _put(elements, "2", m.pan)
        return reversal[:3] + "1" if repeat else reversal, elements
    _write(m.card, _CARD, elements, tags)
    _write(m.shop, _SHOP, elements, tags)
    _put(tags, "22", m.bank_code)
    if isinstance(m, Credit):
        elements["3"] = PROCESSING_CREDIT
        _put(elements, "103", m.account_to)
    else:
        _put(elements, "102", m.account_from)
        _put(tags, "23", m.order)
        if m.instalments:
            tags["21"] = f"{m.instalments:02}"
    if tags:
        elements["48"] = tags
    if advice:
        return "0221" if repeat else "0220", elements
    return "0100" if m.hold else "0200", elements


def answer_elements(answer: BankAnswer) -> Elements:
    """What a host's answer says beyond what it echoes."""
    elements: Elements = {"39": answer.host_code}
    _put(elements, "38", answer.authorization)
    if answer.vci:
        elements["48"] = {"25": answer.vci}
    return elements


def amount_text(amount: int, currency: str, exponent: int | None = None) -> str:
    """DE4, with the currency's decimal places or those of the host."""
    own = CURRENCIES[currency].exponent
    scale: int = 10 ** abs(own - (own if exponent is None else exponent))
    fewer = exponent is not None and exponent < own
    scaled, rest = divmod(amount, scale) if fewer else (amount * scale, 0)
    if rest or not 0 < scaled <= AMOUNT_MAX:
        raise ValueError("the amount does not fit the decimal places of the host")
    return f"{scaled:012}"


def _write(
    part: Card | Shop, names: Mapping[str, str], elements: Elements, tags: dict[str, object]
) -> None:
    for element, name in names.items():
        value = getattr(part, name)
        if value:
            if element in _PADDED:
                value = value.ljust(_PADDED[element])
            if element.startswith("48."):
                tags[element[3:]] = value
            else:
                elements[element] = value


def _put(elements: dict[str, object], name: str, value: str) -> None:
    if value:
        elements[name] = value


# ---- inward


def bank_request(message: Message, *, exponent: int | None = None) -> BankRequest:
    """What a received request means; for hosts of our own, and simulators.

    Raises:
        ElementFault: an element is missing, of another form, or says nothing we know.
    """
    mti = message.mti
    if mti not in ("0100", "0200", "0220", "0221", "0400", "0401", "0420", "0421"):
        raise ElementFault("mti", "12")
    processing = _text(message, "3")
    if processing not in (PROCESSING_PURCHASE, PROCESSING_CREDIT):
        raise ElementFault("3", "12")
    is_credit = processing == PROCESSING_CREDIT
    currency = BY_NUMBER.get(_text(message, "49"))
    if currency is None:
        raise ElementFault("49")
    amount = _amount(message, currency.exponent, exponent)
    common: dict[str, Any] = {
        "operation": _operation(message),
        "amount": amount,
        "currency": currency.code,
    }
    if mti[1] == "4":
        return Reversal(
            **common,
            is_credit=is_credit,
            reason=message.get("25", REASON_NORMAL),
            original=original(message) or Original(mti="0000"),
            terminal=message.get("41", ""),
            pan=message.get("2", ""),
        )
    card, shop = Card(**_read(message, _CARD)), Shop(**_read(message, _SHOP))
    bank_code = message.get("48.22", "")
    if is_credit:
        account = message.get("103", "")
        if not account and not card.pan:
            raise ElementFault("103")
        return Credit(
            **common, account_to=account, card=card, shop=shop, bank_code=bank_code,
            hold=mti == "0100",
        )  # fmt: skip
    account = message.get("102", "")
    if not (account or card.pan or card.track2):
        raise ElementFault("2")
    instalments = message.get("48.21", "00")
    if not instalments.isdigit():
        raise ElementFault("48.21")
    return Purchase(
        **common,
        card=card,
        shop=shop,
        account_from=account,
        instalments=int(instalments),
        bank_code=bank_code,
        order=message.get("48.23", ""),
        hold=mti == "0100",
    )


def bank_answer(message: Message) -> BankAnswer:
    """What a host's answer means; codes that are in no table of ours are declines (05).

    Raises:
        ElementFault: without DE39 it decides nothing; nor does another message type.
    """
    if message.mti not in ("0110", "0210", "0230", "0410", "0430"):
        raise ElementFault("mti", "12")
    code = _text(message, "39")
    key = key_of_host_code(code)
    return BankAnswer(
        code=CODES[key].code,
        key=key,
        host_code=code,
        authorization=message.get("38", ""),
        vci=message.get("48.25", ""),
    )


def _read(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for element, name in names.items():
        value = message.get(element, None)
        if value is not None:
            found[name] = value.rstrip(" ") if element in _PADDED else value
    if found.get("card_type", "") not in ("", "C", "D"):
        raise ElementFault("48.20")
    return found


def _amount(message: Message, own: int, exponent: int | None) -> int:
    text = _text(message, "4")
    if len(text) != 12 or not (text.isascii() and text.isdigit()):
        raise ElementFault("4")
    scale: int = 10 ** abs(own - (own if exponent is None else exponent))
    fewer = exponent is not None and exponent < own
    amount, rest = (int(text) * scale, 0) if fewer else divmod(int(text), scale)
    if rest or not 0 < amount <= AMOUNT_MAX:
        raise ElementFault("4", "13")
    return amount


def _operation(message: Message) -> str:
    text = _text(message, "37")
    if len(text) != 12 or not (text.isascii() and text.isdigit()):
        raise ElementFault("37")
    return text


def _text(message: Message, element: str) -> str:
    text = message.get(element, None)
    if not isinstance(text, str):
        raise ElementFault(element)
    return text
