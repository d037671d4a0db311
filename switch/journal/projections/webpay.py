"""Webpay in the read model: one row per payment. Nothing of a card but its ends."""

from collections.abc import Iterator
from typing import Any

from switch.flows.operations import encode
from switch.flows.webpay_records import PAYMENTS, Payment, decode_payment
from switch.journal.projections import Projection

_SCHEMA = """
CREATE TABLE IF NOT EXISTS webpay_payments (
    id TEXT PRIMARY KEY, merchant TEXT, order_number TEXT, tx_id TEXT, amount TEXT,
    hundredths INTEGER, currency TEXT, state TEXT, cause TEXT, respuesta INTEGER, prefix TEXT,
    outcome TEXT, auth_code TEXT, card TEXT, kind TEXT, pay_type TEXT, instalments INTEGER,
    authoriser TEXT, operation TEXT, reversal TEXT, reversal_code TEXT, reversal_note TEXT,
    late_ack INTEGER, elapsed_ms INTEGER, received_ns INTEGER, history BLOB)
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS webpay_by_order ON webpay_payments (merchant, order_number);
CREATE INDEX IF NOT EXISTS webpay_by_time ON webpay_payments (received_ns);
CREATE INDEX IF NOT EXISTS webpay_owing ON webpay_payments (received_ns) WHERE reversal = 'owed';
"""


def _row(p: Payment) -> tuple[Any, ...]:
    return (
        p.id, p.merchant, p.order, p.tx_id, p.amount, p.hundredths, p.currency, p.state, p.cause,
        p.respuesta, p.prefix, p.outcome, p.auth_code, p.pan_masked, p.kind, p.pay_type,
        p.instalments, p.authoriser, p.operation, p.reversal, p.reversal_code, p.reversal_note,
        p.late_ack, p.elapsed_ms, p.received_ns, encode(p.history),
    )  # fmt: skip


def _rows(space: int, key: bytes, value: bytes) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    yield "webpay_payments", key, _row(decode_payment(value))


PROJECTION = Projection(
    schema=_SCHEMA, columns={"webpay_payments": 26}, spaces=frozenset((PAYMENTS,)), rows=_rows
)
