"""Lines of the kit's event log, `TBK_EVNyyyymmdd.log`: eleven columns of fixed width.

Codes in their texts, as kit 6.0.2 wrote them: 42 the shop cannot be reached, 45 it was too late,
46 it did not accept, 59 no closing page is configured, 283 the token reply is not readable, 440,
442, 447, 450 the code is missing, no TBK_PARAM, not readable, another code.
"""

import re
from typing import Final

from msgspec import Struct, structs

LINE_CHARACTERS: Final = 215
CAUSES: Final = ("42", "45", "46")
"""Codes that say why a line of the Bitácora begins with ERR."""

_WIDTHS: Final = (10, 12, 3, 10, 40, 14, 6, 15, 3, 20, 72)
_CODE: Final = re.compile(r"(?:^|\()([0-9]{2,3})\)?$", re.ASCII)


class Event(Struct, frozen=True, kw_only=True):
    """One event. `date` is DDMMYYYY, `time` HHMMSS."""

    tx_id: str = ""
    pid: str = ""
    blank: str = ""
    module: str = ""
    detail: str = ""
    date: str = ""
    time: str = ""
    ip: str = ""
    state: str = ""
    merchant: str = ""
    text: str = ""

    @property
    def code(self) -> str:
        """The code its text ends in; empty where there is none."""
        found = _CODE.search(self.text)
        return found[1] if found else ""


def event_line(event: Event) -> bytes:
    """Write an event: 215 characters and LF. What is too long for its column is cut."""
    values = list(structs.astuple(event))
    values[1] = values[1].rjust(_WIDTHS[1])
    values[8] = values[8].rjust(2)
    cells = (f"{value[:width]:<{width}}" for value, width in zip(values, _WIDTHS, strict=True))
    return (";".join(_safe(cell) for cell in cells) + "\n").encode("latin-1")


def parse_event(line: bytes) -> Event | None:
    """Read a line; None where it has not eleven columns. Widths are not insisted on."""
    cells = line.decode("latin-1").rstrip("\r\n").split(";", len(_WIDTHS) - 1)
    if len(cells) != len(_WIDTHS):
        return None
    return Event(**dict(zip(Event.__struct_fields__, (c.strip() for c in cells), strict=True)))


def causes(data: bytes) -> dict[str, str]:
    """Why orders ended in ERR by an event log: code 42, 45 or 46 by order, the last one counts."""
    found: dict[str, str] = {}
    for line in data.split(b"\n"):
        event = parse_event(line)
        if event is not None and event.module == "resultado" and event.code in CAUSES:
            found[event.detail] = event.code
    return found


def _safe(cell: str) -> str:
    """A cell that ends no line and no column, whatever came from outside."""
    return "".join(c if " " <= c <= "\xff" and c != ";" else " " for c in cell)
