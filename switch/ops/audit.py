"""The audit trail: who did what to which subject, why, and how it ended. Pure.

An event is a journal record of kind 200: as durable as the operation it belongs to, in the hash
chain, never changed. It holds nothing that has to be hidden later: texts are masked and bounded
when the event is made.

    payload  MessagePack array: at_ns, who, what, subject, reason, outcome, detail, second, security
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from switch.flows.step import AUDIT_RECORD, Audit
from switch.ops.masking import masked, masked_text

KIND: Final = AUDIT_RECORD
PAYLOAD_BYTES_MAX: Final = 8192
"""No event is longer encoded; a journal record of this kind that is, is not ours."""

TEXT_CHARS_MAX: Final = 120
DETAIL_ITEMS_MAX: Final = 8
DETAIL_CHARS_MAX: Final = 80

Scalar = str | int | float | bool | None


class AuditEvent(msgspec.Struct, frozen=True, array_like=True):
    """One event. New fields go to the end, with a default, so that old journals stay readable.

    Fields:
        at_ns: wall clock, nanoseconds since 1970-01-01 UTC.
        who: `role:number` of the person or peer, such as `cashier:000345`, `operator:ana`.
        what: identifier of the act, such as `annul`, `terminal.disable`, `data.unmask`.
        subject: what it was done to: a reference, an operation, `terminal:00000017`.
        reason: as given by `who`; empty where none is asked for.
        outcome: `done`, `refused`, or a response code.
        detail: further facts, masked.
        second: the other person of an act that needs two.
        security: shown among the security events.
    """

    at_ns: int
    who: str
    what: str
    subject: str
    reason: str
    outcome: str
    detail: dict[str, Scalar] = msgspec.field(default_factory=dict)
    second: str = ""
    security: bool = False


def event(
    *,
    at_ns: int,
    who: str,
    what: str,
    subject: str,
    outcome: str,
    reason: str = "",
    detail: Mapping[str, Scalar] | None = None,
    second: str = "",
    security: bool = False,
) -> AuditEvent:
    """Make an event: texts masked by pattern and bounded, details masked by name as well.

    Raises:
        ValueError: `who` or `what` is missing, or the second person is the first.
    """
    if not who or not what:
        raise ValueError("an audit event says who did what")
    if second and second == who:
        raise ValueError("an act of two persons needs two")
    return AuditEvent(
        at_ns=at_ns,
        who=_text(who),
        what=_text(what),
        subject=_text(subject),
        reason=_text(reason),
        outcome=_text(outcome),
        detail=_detail(detail or {}),
        second=_text(second),
        security=security,
    )


def from_effect(effect: Audit, at_ns: int) -> AuditEvent:
    """Make the event of an `Audit` effect of a flow."""
    return event(
        at_ns=at_ns,
        who=effect.who,
        what=effect.what,
        subject=effect.subject,
        outcome=effect.outcome,
        reason=effect.reason,
        second=effect.second,
        security=effect.security,
    )


def encode(event: AuditEvent) -> bytes:
    """Return the payload of the journal record, at most PAYLOAD_BYTES_MAX bytes."""
    payload = _encode(event)
    assert len(payload) <= PAYLOAD_BYTES_MAX, "an audit event outgrew its bounds"
    return payload


def decode(payload: bytes) -> AuditEvent:
    """Read the payload of a journal record of kind 200.

    Raises:
        ValueError: it is none.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError("audit record too long")
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError("not an audit record") from None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AuditEvent).decode


def _text(text: str) -> str:
    return masked_text(text, TEXT_CHARS_MAX)


def _detail(detail: Mapping[str, Scalar]) -> dict[str, Scalar]:
    if len(detail) > DETAIL_ITEMS_MAX:
        raise ValueError(f"an audit event has at most {DETAIL_ITEMS_MAX} details")
    shown: dict[str, Scalar] = {}
    for key, value in detail.items():
        item = masked(key, value)
        shown[masked_text(key, 32)] = (
            masked_text(item, DETAIL_CHARS_MAX) if isinstance(item, str) else item
        )
    return shown
