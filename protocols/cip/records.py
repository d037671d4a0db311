"""The files of the payment application: CSV for the service desk, and transmitted reports.

RFC 4180: commas, CRLF, UTF-8. A text cell that a spreadsheet would take for a formula gets an
apostrophe in front; numbers stay numbers.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

REPORT_VERSION: Final = 1
PAYMENT: Final = "payment"
VOID: Final = "void"
REFUND: Final = "refund"
_RISKY: Final = ("=", "+", "-", "@", "\t", "\r")

COLUMNS: Final = (
    "payment_id", "client_ref", "application_id", "mode", "status", "amount_minor", "amount",
    "currency", "fee_minor", "cip_confirmation", "source_confirmation", "source",
    "instrument_type", "instrument_masked", "payer_name", "payer_reference", "created_utc",
    "confirmed_utc", "confirmed_local", "refunded_minor", "report_run",
)  # fmt: skip
"""Of the service desk's CSV; the fields of the application's schema follow."""

NUMERIC: Final = frozenset(("amount_minor", "amount", "fee_minor", "refunded_minor"))


def safe_cell(text: str) -> str:
    """The text, so that no spreadsheet computes it."""
    return "'" + text if text.startswith(_RISKY) else text


def csv_lines(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | int]],
    totals: Sequence[str | int] | None = None,
) -> Iterator[bytes]:
    """Heading, rows and the optional line of totals, each with its CRLF."""
    numeric = [name in NUMERIC for name in columns]
    yield csv_line([safe_cell(name) for name in columns])
    for row in rows:
        yield csv_line(
            [
                str(cell) if is_number else safe_cell(str(cell))
                for cell, is_number in zip(row, numeric, strict=False)
            ]
        )
    if totals is not None:
        yield csv_line([str(cell) for cell in totals])


def csv_line(cells: Sequence[str | int]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue().encode("utf-8", "replace")


def decimal(amount_minor: int, exponent: int) -> str:
    """An amount with its currency's decimal places and a point, as `1500.00`."""
    sign = "-" if amount_minor < 0 else ""
    digits = str(abs(amount_minor)).rjust(exponent + 1, "0")
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]}" if exponent else sign + digits


class ReportLine(NamedTuple):
    """One event of a report. `cip`, `source`: the confirmations of that event."""

    kind: str
    payment_id: str
    client_ref: str
    cip: str
    source: str
    amount_minor: int
    fee_minor: int
    currency: str
    event_utc: str


class ReportHead(NamedTuple):
    """What a report is about; instants as ISO 8601, UTC."""

    application: str
    from_utc: str
    to_utc: str
    run: str
    sequence: int
    generated_utc: str


def detail_bytes(lines: Iterable[ReportLine]) -> bytes:
    """The D lines with their CRLF: what the hash of a report is made of."""
    return b"".join(
        csv_line(["D", *(safe_cell(c) if isinstance(c, str) else c for c in line)])
        for line in lines
    )


def report(head: ReportHead, lines: Sequence[ReportLine]) -> tuple[bytes, str]:
    """The whole file and its content hash, which a repeat has too."""
    details = detail_bytes(lines)
    digest = hashlib.sha256(details).hexdigest()
    counts = [sum(line.kind == kind for line in lines) for kind in (PAYMENT, VOID, REFUND)]
    fees = sum(line.fee_minor for line in lines if line.kind == PAYMENT)
    heading = csv_line(
        [
            "H", REPORT_VERSION, head.application, head.from_utc, head.to_utc, head.run,
            head.sequence, head.generated_utc,
        ]
    )  # fmt: skip
    totals = csv_line(["T", len(lines), *counts, fees, digest])
    return heading + details + totals, digest
