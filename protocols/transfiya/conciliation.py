"""The network's conciliation of a day against a bank's own proven movements.

The network's answer is not published; what is read here is one line per completed action, as
`action;reference;type;amount;tx_id`, alone or as the text of a record, or a list of actions.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from protocols.transfiya.amount import AmountError, to_minor

MOVEMENTS: Final = ("UPLOAD", "DOWNLOAD")
_FIELD: Final = re.compile(r"[\x21-\x3a\x3c-\x7e]{0,64}")


class ConciliationError(ValueError):
    """What came is no conciliation; the message tells which line is not understood."""


class Line(Struct, frozen=True, order=True):
    """One completed movement. Fields: amount: decimal text. tx_id: the bank's own reference."""

    action_id: str
    tx_ref: str
    kind: str
    amount: str
    tx_id: str


class Difference(Struct, frozen=True):
    """What the two sides do not agree about.

    Fields:
        kind: missing_here, missing_there, or differs. what: the fields that differ.
    """

    kind: str
    action_id: str
    tx_ref: str
    what: str = ""
    here: str = ""
    there: str = ""


def lines_of(value: Any) -> list[Line]:
    """The movements that an answer tells, sorted.

    Raises:
        ConciliationError: not of a form that is known.
    """
    if isinstance(value, dict):
        value = value.get("text", value.get("entities"))
    if isinstance(value, str):
        rows = [row.split(";") for row in value.splitlines() if row]
    elif isinstance(value, list):
        rows = [_row(one) for one in value if _is_movement(one)]
    else:
        raise ConciliationError("neither text nor a list of actions")
    return sorted(_line(number, row) for number, row in enumerate(rows, 1))


def _labels(action: Any) -> dict[str, Any]:
    found = action.get("labels") if isinstance(action, dict) else None
    return found if isinstance(found, dict) else {}


def _is_movement(action: Any) -> bool:
    labels = _labels(action)
    return labels.get("status") == "COMPLETED" and labels.get("type") in MOVEMENTS


def _row(action: Any) -> list[Any]:
    labels = _labels(action)
    return [
        action.get("action_id"), labels.get("tx_ref"), labels.get("type"), action.get("amount"),
        labels.get("tx_id", ""),
    ]  # fmt: skip


def _line(number: int, row: list[Any]) -> Line:
    texts = [one for one in row if isinstance(one, str) and _FIELD.fullmatch(one)]
    if len(row) != 5 or len(texts) != 5 or texts[2] not in MOVEMENTS or not texts[0]:
        raise ConciliationError(f"line {number} is not action;reference;type;amount;tx_id")
    return Line(*texts)


def compare(here: Iterable[Line], there: Iterable[Line], exponent: int) -> list[Difference]:
    """What one side has and the other has not, or has otherwise; amounts count by their value."""
    ours, theirs = ({one.action_id: one for one in lines} for lines in (here, there))
    found = []
    for action_id in sorted(ours.keys() | theirs.keys()):
        our, their = ours.get(action_id), theirs.get(action_id)
        if our is None and their is not None:
            found.append(_alone("missing_here", their))
        elif their is None and our is not None:
            found.append(_alone("missing_there", our))
        elif our is not None and their is not None:
            found += _between(our, their, exponent)
    return found


def _alone(kind: str, line: Line) -> Difference:
    shown = f"{line.kind} {line.amount} {line.tx_id}"
    here, there = ("", shown) if kind == "missing_here" else (shown, "")
    return Difference(kind, line.action_id, line.tx_ref, here=here, there=there)


def _between(our: Line, their: Line, exponent: int) -> list[Difference]:
    pairs = {
        "tx_ref": (our.tx_ref, their.tx_ref),
        "type": (our.kind, their.kind),
        "amount": (_value(our.amount, exponent), _value(their.amount, exponent)),
        "tx_id": (our.tx_id, their.tx_id),
    }
    names = [name for name, (one, other) in pairs.items() if one != other]
    if not names:
        return []
    here, there = (" ".join(str(pairs[n][side]) for n in names) for side in (0, 1))
    return [Difference("differs", our.action_id, our.tx_ref, ", ".join(names), here, there)]


def _value(amount: str, exponent: int) -> int | str:
    try:
        return to_minor(amount, exponent)
    except AmountError:
        return amount
