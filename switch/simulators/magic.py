"""Magic amounts and documents: what a simulated issuer does is chosen by what it is asked.

The last two digits of an amount choose the response code, a document from 9000001 to 9000020 a
behaviour (cashier domain, section 10). Pure functions: the simulators use them, and so does the
`ceibo` of a node with `simulator = true`. Nowhere else do these values mean anything.
"""

from enum import IntEnum
from typing import Final

from switch.simulators.rules import Fault

DOCUMENT_FIRST: Final = 9_000_001
LATE_S: Final = 20.0
"""Seconds after which an answer is surely late: T_HOLD is 15."""

DOWN_S: Final = 2.0
"""How long a simulated issuer is away when it stops or refuses connections."""

HOLDER: Final = "A*** M*** ROJAS"
"""The masked name of everybody who has a card."""

# Codes an issuer declines with. Those that mean something else between the roles (21, 25, 30, 63,
# 94 and the like) are no decline, so they are among the undefined ones.
_DECLINES = frozenset((5, 12, 13, 14, 51, 55, 57, 58, 61, 62, 65, 75, 91, 96))


class Magic(IntEnum):
    """Last two digits of a magic document."""

    SLOW = 1
    APPROVES_LATE = 2
    REQUEST_SWALLOWED = 3
    ANSWER_SWALLOWED = 4
    STOPS_BEFORE = 5
    STOPS_AFTER = 6
    DECLINES_LATE = 7
    REFUSES_CONNECTION = 8
    ANSWERS_TWICE = 9
    OUT_OF_ORDER = 10
    GARBAGE = 11
    UNKNOWN_PERSON = 12
    TWO_CARDS_DIFFERENT_CODES = 13
    TWO_CARDS_SAME_CODE = 14
    BLOCKED_CARD = 15
    LOCKED_CHANNEL = 16
    CAPTURES_FAIL = 17
    RELEASES_FAIL = 18
    HOLD_LOST = 19
    NEVER_POSTED = 20


_DECLINED: Final = {
    Magic.DECLINES_LATE: "05",
    Magic.TWO_CARDS_SAME_CODE: "55",
    Magic.BLOCKED_CARD: "05",
    Magic.LOCKED_CHANNEL: "75",
}
_FAILS: Final = {
    # behaviour: (message, how many of its tries fail)
    Magic.CAPTURES_FAIL: ("capture", 3),
    Magic.RELEASES_FAIL: ("release", 8),
}


def magic(document: str | None) -> Magic | None:
    """The behaviour that a document number stands for, or None."""
    if document is None or len(document) != 7 or not document.isdigit():
        return None
    number = int(document) - DOCUMENT_FIRST + 1
    return Magic(number) if 1 <= number <= len(Magic) else None


def code_of_amount(amount: int) -> str:
    """The response code that the last two digits of an amount choose; 00 approves."""
    digits = amount % 100
    if digits == 0:
        return "00"
    return f"{digits:02}" if digits in _DECLINES else "05"


def code_of_document(document: str | None, kind: str) -> str:
    """The code that a magic document is declined with whatever the amount; "" for none."""
    found = magic(document)
    if found is None:
        return ""
    if found is Magic.UNKNOWN_PERSON:
        return "55" if kind == "cash_out" else "05"
    return _DECLINED.get(found, "")


def decision(document: str | None, kind: str, amount: int) -> str:
    """The code of a hold."""
    return code_of_document(document, kind) or code_of_amount(amount)


def fault(
    document: str | None, operation: str, tries: int = 0, *, late_s: float = LATE_S
) -> Fault | None:
    """What goes wrong with one message about a person with a magic document.

    Args:
        operation: `hold`, `capture` or `release`.
        tries: how often this message has come for this hold before.
        late_s: a delay that the asker surely does not wait for.
    """
    found = magic(document)
    if found is None:
        return None
    if found in _FAILS:
        wanted, count = _FAILS[found]
        return Fault("decline", "96") if operation == wanted and tries < count else None
    if operation != "hold":
        return None
    match found:
        case Magic.SLOW:
            return Fault("delay", "5")
        case Magic.APPROVES_LATE | Magic.DECLINES_LATE:
            return Fault("late", f"{late_s:g}")
        case Magic.REQUEST_SWALLOWED:
            return Fault("drop")
        case Magic.ANSWER_SWALLOWED:
            return Fault("swallow")
        case Magic.STOPS_BEFORE:
            return Fault("stop_before", f"{DOWN_S:g}")
        case Magic.STOPS_AFTER:
            return Fault("stop_after", f"{DOWN_S:g}")
        case Magic.REFUSES_CONNECTION:
            return Fault("refuse", f"{DOWN_S:g}")
        case Magic.ANSWERS_TWICE:
            return Fault("duplicate")
        case Magic.OUT_OF_ORDER:
            return Fault("out_of_order")
        case Magic.GARBAGE:
            return Fault("garbage")
    return None


def loses_hold(document: str | None) -> bool:
    """The hold is gone when its capture comes, which is then posted by force."""
    return magic(document) is Magic.HOLD_LOST


def never_posts(document: str | None) -> bool:
    """The credit of a deposit goes to suspense instead of the card."""
    return magic(document) is Magic.NEVER_POSTED
