"""The payment application's tables: payments, adjustments and report runs.

Card numbers are masked before they reach the journal already; names and documents of payers are
here in clear, because the service desk looks for them: each view of them is in the audit trail.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from switch.flows import cip_records as rec
from switch.flows.cip_records import Adjustment, Payment, ReportRun
from switch.journal.projections import Projection

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cip_payments (
    payment_id TEXT PRIMARY KEY, application TEXT, mode TEXT, client_ref TEXT, status TEXT,
    amount INTEGER, fee INTEGER, currency TEXT, cip TEXT, source_code TEXT, source TEXT,
    instrument_type TEXT, instrument TEXT, payer_name TEXT, payer_reference TEXT,
    created_ns INTEGER, confirmed_ns INTEGER, refunded INTEGER, number INTEGER, created_by TEXT,
    reason TEXT, custom BLOB, payer_search TEXT, codes TEXT, actors TEXT)
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cip_payments_by_time ON cip_payments (application, created_ns);
CREATE INDEX IF NOT EXISTS cip_payments_by_reference ON cip_payments (application, client_ref);
CREATE INDEX IF NOT EXISTS cip_payments_by_number ON cip_payments (application, number);
CREATE TABLE IF NOT EXISTS cip_adjustments (
    id TEXT PRIMARY KEY, application TEXT, payment_id TEXT, kind TEXT, client_ref TEXT,
    amount INTEGER, status TEXT, requested_by TEXT, requested_ns INTEGER, approved_by TEXT,
    done_ns INTEGER, cip TEXT, source_code TEXT, reason TEXT) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cip_adjustments_by_state ON cip_adjustments (application, status);
CREATE TABLE IF NOT EXISTS cip_runs (
    id TEXT PRIMARY KEY, application TEXT, sequence INTEGER, from_ns INTEGER, cut_ns INTEGER,
    generated_ns INTEGER, first INTEGER, last INTEGER, state TEXT, sha256 TEXT, lines INTEGER,
    repeats TEXT, attempts INTEGER, last_try TEXT) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cip_runs_by_number ON cip_runs (application, first);
"""

Row = tuple[str, Any, tuple[Any, ...]]


def _rows(space: int, key: bytes, value: bytes) -> Iterable[Row]:
    if space == rec.PAYMENTS:
        yield "cip_payments", key, payment_row(rec.decode_payment(value))
    elif space == rec.ADJUSTMENTS:
        adjustment: Adjustment = rec.decode_adjustment(value)
        yield "cip_adjustments", key, msgspec.structs.astuple(adjustment)
    else:
        run: ReportRun = rec.decode_run(value)
        yield "cip_runs", key, msgspec.structs.astuple(run)


def payment_row(p: Payment) -> tuple[Any, ...]:
    """A payment's row of `cip_payments`."""
    number = next((event.number for event in p.events if event.what == "payment"), 0)
    search = " ".join((p.payer.name, p.payer.email, p.payer.phone, p.payer.document)).casefold()
    return (
        p.id, p.application, p.mode, p.client_ref, p.status, p.amount, p.fee, p.currency,
        p.code("CIP"), p.code("SOURCE"), p.source, p.instrument_type, p.instrument, p.payer.name,
        p.payer_reference, p.created_ns, p.confirmed_ns, p.refunded, number, p.created_by, p.reason,
        rec.encode(p.custom), search, " ".join(c.code for c in p.confirmations),
        " ".join(sorted({event.actor for event in p.events if event.actor})),
    )  # fmt: skip


PROJECTION = Projection(
    schema=_SCHEMA,
    columns={"cip_payments": 25, "cip_adjustments": 14, "cip_runs": 14},
    spaces=frozenset((rec.PAYMENTS, rec.ADJUSTMENTS, rec.RUNS)),
    rows=_rows,
)
