"""TransfiYa in the read model: one row per piece of work, entries of profile v2 among them.

Handles and accounts are masked; what the network may be asked about (reference, action or entry,
`tx_id`) is here in full.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from switch.flows.operations import encode
from switch.flows.transfiya_records import ENTRIES, ITEMS, PREFIX, Entry, Item
from switch.journal.projections import Projection

_SCHEMA = """
CREATE TABLE IF NOT EXISTS transfiya_items (
    id TEXT PRIMARY KEY, bank TEXT, kind TEXT, purpose TEXT, tx_ref TEXT, user TEXT, symbol TEXT,
    amount TEXT, minor INTEGER, state TEXT, reason TEXT, code INTEGER, action_id TEXT, core TEXT,
    arrived_ns INTEGER, deadline_ns INTEGER, accepted_ns INTEGER, unmade INTEGER, late INTEGER,
    flagged INTEGER, history BLOB) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS transfiya_by_time ON transfiya_items (arrived_ns);
CREATE INDEX IF NOT EXISTS transfiya_by_reference ON transfiya_items (tx_ref);
CREATE INDEX IF NOT EXISTS transfiya_by_action ON transfiya_items (action_id);
CREATE INDEX IF NOT EXISTS transfiya_by_state ON transfiya_items (state, arrived_ns);
CREATE INDEX IF NOT EXISTS transfiya_proven ON transfiya_items (bank, accepted_ns)
    WHERE accepted_ns > 0;
"""

_decode = msgspec.msgpack.Decoder(Item).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode


def masked(handle: str) -> str:
    """A handle as it may be shown: its first six and last four characters."""
    return f"{handle[:6]}…{handle[-4:]}" if len(handle) > 10 else "…"


def _rows(space: int, key: bytes, value: bytes) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    name = key.hex()
    if space == ENTRIES:
        e = _decode_entry(value)
        history = [(state.upper(), at_ns) for state, at_ns in e.history]
        yield "transfiya_items", name, (
            name, e.bank, e.schema.upper(), PREFIX, e.intent, f"…{e.account[-4:]}", e.currency,
            str(e.minor), e.minor, e.state.upper(), e.reason, 0, e.handle, e.core, e.arrived_ns,
            0, 0, False, False, False, encode(history),
        )  # fmt: skip
        return
    i = _decode(value)
    row = (
        name, i.bank, i.kind, i.purpose, i.tx_ref, masked(i.user), i.symbol, i.amount, i.minor,
        i.state, i.reason, i.code, i.action_id, i.core, i.arrived_ns, i.deadline_ns,
        i.accepted_ns, i.unmade, i.late, i.flagged, encode(i.history),
    )  # fmt: skip
    yield "transfiya_items", name, row


PROJECTION = Projection(
    schema=_SCHEMA, columns={"transfiya_items": 21}, spaces=frozenset((ITEMS, ENTRIES)), rows=_rows
)
