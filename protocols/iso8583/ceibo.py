"""The `ceibo` dialect's meaning: issuer messages (sicoop to ceibo) as data elements, and back.

Pure functions. What is sent comes out as an MTI and a mapping of elements without DE7 and DE11,
which belong to the link; what was received comes out as one of the issuer messages, checked field
by field. A field at fault raises `ElementFault` with the element and the code to answer.

    0100/0110 hold      0220(0221)/0230 capture      0420(0421)/0430 release, annulment (DE25 = 17)
    0600/0610 status of a hold, from either side; the holder of a card (DE3 = 330000)
"""

import re
import unicodedata
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

from protocols.codes import CODES, key_of_host_code
from protocols.currencies import BY_NUMBER, CURRENCIES
from protocols.iso8583.dialect import Message
from protocols.iso8583.times import day_number, instant_ns, month_day
from protocols.iso8583.tokens import TokenOpener
from protocols.messages import (
    CardChoice,
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
    IssuerState,
    IssuerStatus,
    Kind,
)

IssuerRequest = IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder | IssuerStatus
Elements = dict[str, object]

PROCESSING: Final[dict[Kind, str]] = {"cash_out": "010000", "deposit": "210000"}
PROCESSING_HOLDER: Final = "330000"
REASONS: Final = {
    "": "00",
    "annulment": "17",
    "timeout": "21",
    "registration_failed": "22",
    "cancelled": "23",
}
"""DE25 of a release; a capture has 00."""

FEE_MAX: Final = 99_999_999
"""DE28 and DE30 have eight digits."""

_KIND_OF: Final[dict[str, Kind]] = {code: kind for kind, code in PROCESSING.items()}
_REASON_OF: Final = {code: reason for reason, code in REASONS.items()}
_APPROVED = "00"
_NOT_FOUND = "25"
_UNKNOWN_STATES = frozenset(("", "DESCONOCIDA"))
_LEDGER_BALANCE, _AVAILABLE_BALANCE = "01", "02"
_BALANCE_CHARS = 20
_DE48_CHARS_MAX = 999
_NO_KEY = TokenOpener(())
_TAG_HEAD_CHARS = 5

_DOCUMENT = re.compile(r"(?:CI[0-9]{5,8}|RUC[0-9]{6,8}-[0-9]|PAS[0-9A-Z]{5,12})\Z", re.ASCII)
_PHONE = re.compile(r"\+[1-9][0-9]{7,14}\Z", re.ASCII)


class ElementFault(ValueError):
    """A received element cannot be taken. The text names it and never quotes its value.

    Attributes:
        element: "4", "48.03"; "mti" for a message type that has no meaning here.
        code: for DE39: 30, or 12 and 13 where the form is good but not the meaning; 63 for a
            one-time code that no key of the link opens.
    """

    def __init__(self, element: str, code: str = "30") -> None:
        super().__init__(f"element {element} cannot be taken")
        self.element = element
        self.code = code


class Balances(NamedTuple):
    """DE54: minor units; the available balance may differ from the ledger's by what is held."""

    ledger: int
    available: int
    currency: str


class Original(NamedTuple):
    """DE90: which message is meant. DE37 decides; zeros are not known and not compared."""

    mti: str = "0100"
    stan: str = "000000"
    sent: str = "0000000000"
    network: str = "0000"


# ---- requests, outward


def hold_elements(
    m: IssuerHold, *, token_hex: str = "", local: str = "", balances: bool = False
) -> tuple[str, Elements]:
    """0100 of a hold.

    Args:
        token_hex: the one-time code as sealed for this operation; none for a deposit.
        local: MMDDhhmmss of the local time now (`times.transmission_time`); "": not told.
        balances: ask for DE54 in the answer.
    """
    tags: dict[str, object] = {}
    if isinstance(m.document, str):
        tags["01"] = m.document_type + m.document
    else:
        tags["02"] = m.phone
    if token_hex:
        tags["03"] = token_hex
    tags["04"] = m.cashier
    if isinstance(m.card, str):
        tags["05"] = m.card
    if isinstance(m.depositor, str):
        tags["06"] = m.depositor
    if balances:
        tags["09"] = "1"
    elements: Elements = {
        "3": PROCESSING[m.kind],
        "4": f"{m.amount:012}",
        "15": month_day(m.day),
        "32": m.network,
        "37": m.operation,
        "41": m.terminal,
        "42": f"{m.branch:15}",
        "48": tags,
        "49": CURRENCIES[m.currency].number,
    }
    if local:
        elements["12"], elements["13"] = local[4:], local[:4]
    return "0100", elements


def capture_elements(
    m: IssuerCapture, *, repeat: bool = False, original: Original | None = None
) -> tuple[str, Elements]:
    """0220 of a capture, 0221 where it may have been sent before."""
    return "0221" if repeat else "0220", _decision(m, "00", original)


def release_elements(
    m: IssuerRelease, *, repeat: bool = False, original: Original | None = None
) -> tuple[str, Elements]:
    """0420 of a release or annulment, 0421 where it may have been sent before."""
    return "0421" if repeat else "0420", _decision(m, REASONS[m.reason], original)


def holder_elements(m: IssuerHolder) -> tuple[str, Elements]:
    """0600 for the holder of a document or telephone number."""
    known = isinstance(m.document, str)
    tags = {"01": f"{m.document_type}{m.document}"} if known else {"02": m.phone}
    return "0600", {"3": PROCESSING_HOLDER, "32": m.network, "48": tags}


def status_elements(m: IssuerStatus) -> tuple[str, Elements]:
    """0600 for the state of a hold, or of an operation at sicoop."""
    return "0600", {"32": m.network, "37": m.operation}


def request_elements(
    m: IssuerRequest, *, token_hex: str = "", local: str = "", repeat: bool = False
) -> tuple[str, Elements]:
    """MTI and elements of any issuer request; see the functions above."""
    match m:
        case IssuerHold():
            return hold_elements(m, token_hex=token_hex, local=local)
        case IssuerCapture():
            return capture_elements(m, repeat=repeat)
        case IssuerRelease():
            return release_elements(m, repeat=repeat)
        case IssuerHolder():
            return holder_elements(m)
        case IssuerStatus():
            return status_elements(m)


def _decision(m: IssuerCapture | IssuerRelease, reason: str, original: Original | None) -> Elements:
    elements: Elements = {
        "3": PROCESSING[m.kind],
        "4": f"{m.amount:012}",
        "25": reason,
        "32": m.network,
        "37": m.operation,
        "90": original_data(original or Original(network=m.network)),
    }
    if m.currency:
        elements["49"] = CURRENCIES[m.currency].number
    return elements


def original_data(original: Original) -> str:
    """DE90, 42 digits."""
    text = f"{original.mti}{original.stan}{original.sent}{original.network:0>11}{'0' * 11}"
    assert len(text) == 42, "a part of DE90 has another length"
    return text


# ---- requests, inward


def issuer_request(
    message: Message, *, now_ns: int, opener: TokenOpener | None = None
) -> IssuerRequest:
    """What a received request means.

    Args:
        now_ns: dates without a year are the ones nearest to it.
        opener: opens the one-time code of a cash_out; without one no cash_out can be taken.

    Raises:
        ElementFault: an element is missing, of another form, or says nothing we know.
    """
    sent_ns(message, now_ns)
    match message.mti:
        case "0100":
            return _hold(message, now_ns, opener)
        case "0220" | "0221":
            if message.get("25", "00") != "00":
                raise ElementFault("25")
            network, operation, kind, amount, currency = _decided(message)
            return IssuerCapture(network, operation, kind, amount, currency)
        case "0420" | "0421":
            reason = _REASON_OF.get(message.get("25", "00"))
            if reason is None:
                raise ElementFault("25")
            network, operation, kind, amount, currency = _decided(message)
            return IssuerRelease(network, operation, kind, amount, reason, currency)
        case "0600" if "3" in message:
            if message["3"] != PROCESSING_HOLDER:
                raise ElementFault("3", "12")
            type_, document, phone = _person(_tags(message))
            return IssuerHolder(type_, document, phone, _network(message))
        case "0600":
            return IssuerStatus(_network(message), _operation(message))
        case _:
            raise ElementFault("mti", "12")


def sent_ns(message: Message, now_ns: int) -> int:
    """The instant of DE7 nearest to `now_ns`. Raises: ElementFault."""
    try:
        return instant_ns(_needed(message, "7"), now_ns)
    except ValueError:
        raise ElementFault("7") from None


def asks_balances(message: Message) -> bool:
    """The sender of a hold wants DE54 in its answer."""
    return bool(message.get("48.09", "") == "1")


def is_repeat(message: Message) -> bool:
    """The sender says that it may have sent this before (0221, 0421)."""
    return bool(message.mti[3] == "1")


def original(message: Message) -> Original | None:
    """DE90 of a capture or release, where it is there. Raises: ElementFault."""
    text = message.get("90", "")
    if not text:
        return None
    if len(text) != 42 or not _is_number(text):
        raise ElementFault("90")
    return Original(text[:4], text[4:10], text[10:20], text[27:31])


def _hold(message: Message, now_ns: int, opener: TokenOpener | None) -> IssuerHold:
    kind = _kind(message)
    operation = _operation(message)
    tags = _tags(message)  # once: a composite is decoded whole, whichever of its parts is asked for
    type_, document, phone = _person(tags)
    try:
        day = day_number(_needed(message, "15"), now_ns)
    except ValueError:
        raise ElementFault("15") from None
    token: str | UnsetType = UNSET
    card: str | UnsetType = UNSET
    depositor: str | UnsetType = UNSET
    if kind == "cash_out":
        for tag in ("05", "06"):
            if tag in tags:
                raise ElementFault("48." + tag)
        token = _token(_tag(tags, "03"), operation, opener)
    else:
        if "03" in tags:
            raise ElementFault("48.03")
        card = _tag(tags, "05") or UNSET
        depositor = _tag(tags, "06") or UNSET
        if depositor is not UNSET and not _DOCUMENT.match(depositor):
            raise ElementFault("48.06")
    return IssuerHold(
        _digits(message, "32", 4),
        operation,
        kind,
        _amount(message),
        _currency(message),
        _digits(message, "41", 8),
        _up_to_six(_needed(message, "42"), "42"),
        _up_to_six(_tag(tags, "04"), "48.04"),
        day,
        type_,
        document,
        phone,
        token,
        card,
        depositor,
    )


def _decided(message: Message) -> tuple[str, str, Kind, int, str]:
    original(message)
    kind = _kind(message)
    return (
        _network(message), _operation(message), kind, _amount(message), _currency(message)
    )  # fmt: skip


def _token(sealed: str, operation: str, opener: TokenOpener | None) -> str:
    try:
        token = (opener or _NO_KEY).open(sealed, operation)
    except ValueError:
        raise ElementFault("48.03") from None
    if token is None:
        raise ElementFault("48.03", "63")
    return token


def _tags(message: Message) -> dict[str, object]:
    tags = message.get("48", {})
    if not isinstance(tags, dict):
        raise ElementFault("48")
    return tags


def _tag(tags: dict[str, object], tag: str) -> str:
    """A tag that may stand once only; "" where it is not there."""
    text = tags.get(tag, "")
    if not isinstance(text, str):
        raise ElementFault("48." + tag)
    return text


def _person(tags: dict[str, object]) -> tuple[str, str | UnsetType, str | UnsetType]:
    """Document type, document and telephone number; exactly one of the last two."""
    document, phone = _tag(tags, "01"), _tag(tags, "02")
    if bool(document) == bool(phone):
        raise ElementFault("48.01")
    if phone:
        if not _PHONE.match(phone):
            raise ElementFault("48.02")
        return "CI", UNSET, phone
    if not _DOCUMENT.match(document):
        raise ElementFault("48.01")
    type_ = "CI" if document[0] == "C" else document[:3]
    return type_, document[len(type_) :], UNSET


def _kind(message: Message) -> Kind:
    kind = _KIND_OF.get(_needed(message, "3"))
    if kind is None:
        raise ElementFault("3", "12")
    return kind


def _amount(message: Message) -> int:
    amount = int(_digits(message, "4", 12))
    if amount == 0:
        raise ElementFault("4", "13")
    return amount


def _currency(message: Message) -> str:
    currency = BY_NUMBER.get(_needed(message, "49"))
    if currency is None:
        raise ElementFault("49")
    return currency.code


def _network(message: Message) -> str:
    return _digits(message, "32", 4)


def _operation(message: Message) -> str:
    return _digits(message, "37", 12)


def _up_to_six(text: str, element: str) -> str:
    text = text.rstrip(" ")
    if not 1 <= len(text) <= 6 or not _is_number(text):
        raise ElementFault(element)
    return text.zfill(6)


def _digits(message: Message, element: str, digits: int) -> str:
    text = _needed(message, element)
    if len(text) != digits or not (text.isdigit() and text.isascii()):
        raise ElementFault(element)
    return text


def _needed(message: Message, element: str) -> str:
    text = message.get(element, None)
    if not isinstance(text, str):
        raise ElementFault(element)
    return text


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


# ---- answers, outward


def answer_elements(
    request: Message,
    answer: IssuerAnswer | HolderAnswer | IssuerState,
    *,
    balances: Balances | None = None,
    day: int = 0,
) -> Elements:
    """What the answer to `request` says beyond what it echoes.

    Args:
        day: business date of the hold; 0: as the request says. A repeat on another date gets the
            first answer, and with it the date of the first.
    """
    match answer:
        case IssuerAnswer():
            return _decision_answer(request, answer, balances, day)
        case HolderAnswer():
            return _holder_answer(answer)
        case IssuerState():
            return state_elements(answer.state)


def fault_elements(fault: ElementFault) -> Elements:
    """The answer to a request that raised."""
    return {"39": fault.code}


def state_elements(state: str) -> Elements:
    """0610 of a status inquiry; 25 for a state of nothing."""
    if state in _UNKNOWN_STATES:
        return {"39": _NOT_FOUND}
    return {"39": _APPROVED, "48": {"10": state}}


def _decision_answer(
    request: Message, answer: IssuerAnswer, balances: Balances | None, day: int
) -> Elements:
    elements: Elements = {"39": answer.code}
    mti = request.mti
    if answer.authorization and mti != "0420" and mti != "0421":
        elements["38"] = answer.authorization
    if mti != "0100":
        return elements
    told = month_day(day) if day else request.get("15", "")
    if told:
        elements["15"] = told
    if answer.fee:
        elements["28"] = _signed(answer.fee)
    if answer.commission:
        elements["30"] = _signed(answer.commission)
    if answer.name:
        elements["48"] = {"11": ascii_text(answer.name)}
    if balances is not None:
        elements["54"] = balances_text(balances)
    return elements


def _holder_answer(answer: HolderAnswer) -> Elements:
    if answer.code != _APPROVED:
        return {"39": answer.code}
    name = ascii_text(answer.name) if isinstance(answer.name, str) else ""
    tags: dict[str, object] = {"11": name} if name else {}
    room = _DE48_CHARS_MAX - (len(name) + _TAG_HEAD_CHARS if name else 0)
    cards = []
    for choice in answer.cards if isinstance(answer.cards, list) else ():
        text = f"{choice.card},{ascii_text(choice.label)}"
        room -= len(text) + _TAG_HEAD_CHARS
        if room < 0:  # the element is full: the holder's other cards cannot be told
            break
        cards.append(text)
    if cards:
        tags["12"] = cards
    return {"39": _APPROVED, "48": tags} if tags else {"39": _APPROVED}


def balances_text(balances: Balances) -> str:
    """DE54: account type, amount type, currency, sign and amount, twice."""
    number = CURRENCIES[balances.currency].number
    return "".join(
        f"00{kind}{number}{'D' if amount < 0 else 'C'}{abs(amount):012}"
        for kind, amount in (
            (_LEDGER_BALANCE, balances.ledger),
            (_AVAILABLE_BALANCE, balances.available),
        )
    )


def ascii_text(text: str) -> str:
    """Text in the characters of an ASCII dialect: accents dropped, what remains foreign a dot."""
    if text.isascii():
        return text
    bare = unicodedata.normalize("NFKD", text)
    kept = (c for c in bare if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "." for c in kept)


def _signed(amount: int) -> str:
    assert 0 < amount <= FEE_MAX, "fees have at most eight digits"
    return f"D{amount:08}"


# ---- answers, inward


def issuer_answer(message: Message) -> IssuerAnswer | HolderAnswer | IssuerState:
    """What a received answer means; codes that are in no table of ours are declines (05).

    Raises:
        ElementFault: it cannot be understood, so it decides nothing.
    """
    code = _needed(message, "39")
    match message.mti:
        case "0110" | "0230" | "0430":
            key = key_of_host_code(code)
            return IssuerAnswer(
                CODES[key].code,
                key,
                message.get("38", ""),
                _fee(message, "28"),
                _fee(message, "30"),
                message.get("48.11", ""),
            )
        case "0610" if message.get("3", "") == PROCESSING_HOLDER:
            return _holder_told(message, code)
        case "0610":
            state = message.get("48.10", "")
            if code == _APPROVED and not state:
                raise ElementFault("48.10")
            return IssuerState(code, state if code == _APPROVED else "")
        case _:
            raise ElementFault("mti", "12")


def read_balances(message: Message) -> Balances | None:
    """DE54 of an answer, where it is there. Raises: ElementFault."""
    text = message.get("54", "")
    if not text:
        return None
    found: dict[str, int] = {}
    currency = ""
    for start in range(0, len(text), _BALANCE_CHARS):
        part = text[start : start + _BALANCE_CHARS]
        unit = BY_NUMBER.get(part[4:7])
        good = len(part) == _BALANCE_CHARS and part[7] in "CD" and _is_number(part[8:])
        if not good or unit is None or currency not in ("", unit.code):
            raise ElementFault("54")
        currency = unit.code
        found[part[2:4]] = -int(part[8:]) if part[7] == "D" else int(part[8:])
    ledger, available = found.get(_LEDGER_BALANCE), found.get(_AVAILABLE_BALANCE)
    if ledger is None or available is None:
        raise ElementFault("54")
    return Balances(ledger, available, currency)


def _holder_told(message: Message, code: str) -> HolderAnswer:
    if code != _APPROVED:
        return HolderAnswer(CODES[key_of_host_code(code)].code)
    given = message.get("48.12", [])
    cards = []
    for text in [given] if isinstance(given, str) else given:
        card, comma, label = text.partition(",")
        if not card or not comma:
            raise ElementFault("48.12")
        cards.append(CardChoice(card, label))
    return HolderAnswer(_APPROVED, name=message.get("48.11", UNSET), cards=cards)


def _fee(message: Message, element: str) -> int:
    text = message.get(element, "")
    if not text:
        return 0
    if len(text) != 9 or text[0] != "D" or not _is_number(text[1:]):
        raise ElementFault(element)
    return int(text[1:])
