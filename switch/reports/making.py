"""The daily file as each role has it, read from the read model in the order of references.

red tells what it registered, sicoop what it captured or undid, ceibo what it decided about holds.
What is not decided yet has no line: a line is a word that the other side acts upon. What was undone
on a later date stands in the files of both, each time with the operation's own date (rule R14).
"""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from switch.calendar import Calendar, Day
from switch.reports.daily_file import Detail

Role = Literal["red", "sicoop", "ceibo"]

NO_DOCUMENT: Final = "0" * 16
NO_CASHIER: Final = "000000"

_KINDS = {"cash_out": "C", "deposit": "D"}
_RED = {
    "REGISTRADA": "R", "ENTREGADA": "E", "ANULADA": "A", "RECHAZO_REGISTRADO": "N", "ERROR": "X"
}  # fmt: skip
_SICOOP = {
    "CONFIRMADA": "R", "CAPTURADA": "R", "CONCILIADA": "R", "RECHAZADA": "N", "VENCIDA": "N",
    "REVERSANDO": "X", "REVERSADA": "X",
}  # fmt: skip
_CEIBO = {"CAPTURADA": "R", "LIBERADA": "X", "RECHAZADA": "N"}
_OTHER = re.compile(r"[^0-9A-Za-z]", re.ASCII)

_OF_RED = """
SELECT reference, kind, operation, document_hash, amount, state, authorization, registered_ns,
    received_ns, branch, cashier, fee, commission, business_date
FROM (
    SELECT * FROM register WHERE network = :network AND business_date = :date
    UNION ALL
    SELECT * FROM register INDEXED BY register_by_time WHERE network = :network
        AND business_date = '' AND received_ns >= :start AND received_ns < :end
    UNION ALL
    SELECT * FROM register WHERE network = :network
        AND undone_ns > 0 AND undone_ns >= :start AND undone_ns < :end
        AND business_date < :date AND (business_date <> '' OR received_ns < :start)
) WHERE kind <> 'annul' ORDER BY reference
"""
_OF_SICOOP = """
SELECT reference, kind, operation, amount, state, annulled, authorization, received_ns, branch,
    cashier, fee, commission, business_date
FROM platform WHERE network = :network AND (business_date = :date
    OR (undone_ns > 0 AND undone_ns >= :start AND undone_ns < :end AND business_date < :date))
ORDER BY reference
"""
_OF_CEIBO = """
SELECT terminal, kind, operation, amount, state, compensated, authorization, created_ns, branch,
    fee, commission
FROM holds WHERE network = :network AND business_date = :date AND link IN ('', 'sicoop')
ORDER BY operation
"""


class NotReady(ValueError):
    """The read model cannot give this file."""


def details(
    path: Path, role: Role, network: str, day: Day, calendar: Calendar
) -> Iterator[Detail]:  # fmt: skip
    """Yield the operations of a network and business date, one at a time.

    Args:
        path: of the read model, which must be up to date.

    Raises:
        NotReady: rows without the hash of their document.
    """
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    values = {
        "network": network, "date": day.iso, "start": day.start_ns, "end": day.end_ns
    }  # fmt: skip
    try:
        if role == "red":
            yield from _of_red(db.execute(_OF_RED, values), calendar)
        elif role == "sicoop":
            yield from _of_sicoop(db.execute(_OF_SICOOP, values), calendar)
        else:
            yield from _of_ceibo(db.execute(_OF_CEIBO, values), network, day, calendar)
    finally:
        db.close()


def _of_red(rows: sqlite3.Cursor, calendar: Calendar) -> Iterator[Detail]:
    for r in rows:
        state = _RED.get(r["state"])
        if state is None:
            continue
        if not r["document_hash"]:
            raise NotReady("the read model was made without the master key")
        at = calendar.local_time(r["registered_ns"] or r["received_ns"])
        yield Detail(
            r["reference"], _KINDS[r["kind"]], r["operation"], r["document_hash"], r["amount"],
            state, _plain(r["authorization"]), _date(r, calendar), at, r["branch"],
            r["cashier"] or NO_CASHIER, r["fee"], r["commission"],
        )  # fmt: skip


def _of_sicoop(rows: sqlite3.Cursor, calendar: Calendar) -> Iterator[Detail]:
    for r in rows:
        state = "A" if r["annulled"] else _SICOOP.get(r["state"])
        if state is None:
            continue
        yield Detail(
            r["reference"], _KINDS[r["kind"]], r["operation"], NO_DOCUMENT, r["amount"], state,
            _plain(r["authorization"]), _date(r, calendar), calendar.local_time(r["received_ns"]),
            r["branch"], r["cashier"] or NO_CASHIER, r["fee"], r["commission"],
        )  # fmt: skip


def _of_ceibo(
    rows: sqlite3.Cursor, network: str, day: Day, calendar: Calendar
) -> Iterator[Detail]:  # fmt: skip
    """ceibo is told neither trace nor cashier: its lines are matched by the operation's number."""
    for r in rows:
        state = "A" if r["compensated"] else _CEIBO.get(r["state"])
        if state is None:
            continue
        reference = f"{network}{r['terminal'] or '0' * 8}{day.compact}000000"
        yield Detail(
            reference, _KINDS[r["kind"]], r["operation"], NO_DOCUMENT, r["amount"], state,
            _plain(r["authorization"]), day.compact, calendar.local_time(r["created_ns"]),
            r["branch"] or "0" * 6, NO_CASHIER, r["fee"], r["commission"],
        )  # fmt: skip


def _date(r: sqlite3.Row, calendar: Calendar) -> str:
    """An operation's own business date, yyyymmdd; that of its receipt where it never got one."""
    own: str = r["business_date"]
    return own.replace("-", "") or calendar.business(r["received_ns"]).compact


def _plain(authorization: str) -> str:
    """Issuers may put blanks or dashes into it."""
    return _OTHER.sub("", authorization)[:6]
