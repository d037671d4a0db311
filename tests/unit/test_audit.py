"""The audit trail's events: masked when made, bounded, and read back as written."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.flows.step import Audit
from switch.ops import audit
from switch.ops.audit import AuditEvent

EVENT = audit.event(
    at_ns=1795352400000000000,
    who="cashier:000345",
    what="annul",
    subject="00120000123420260101000123",
    reason="cliente se retiró",
    outcome="done",
    detail={"document": "4123456", "amount_minor": 150_000, "token": "004512"},
    second="cashier:000346",
)


def test_details_are_masked_by_name() -> None:
    assert EVENT.detail == {"document": "****456", "amount_minor": 150_000, "token": "[masked]"}


def test_texts_are_masked_by_pattern_and_bounded() -> None:
    event = audit.event(
        at_ns=1,
        who="operator:ana",
        what="data.unmask",
        subject="card:000042",
        reason="token=004512\n" + "x" * 1000,
        outcome="done",
    )
    assert event.subject == "card:000042"
    assert "004512" not in event.reason
    assert "\n" not in event.reason
    assert len(event.reason) == audit.TEXT_CHARS_MAX


def test_payload_is_a_fixed_format() -> None:
    payload = audit.encode(EVENT)
    assert msgspec.msgpack.decode(payload) == [
        1795352400000000000,
        "cashier:000345",
        "annul",
        "00120000123420260101000123",
        "cliente se retiró",
        "done",
        {"document": "****456", "amount_minor": 150_000, "token": "[masked]"},
        "cashier:000346",
        False,
    ]
    assert audit.decode(payload) == EVENT
    assert audit.KIND == 200


def test_older_records_stay_readable() -> None:
    payload = msgspec.msgpack.encode([1, "a", "b", "c", "d", "e"])
    assert audit.decode(payload) == AuditEvent(1, "a", "b", "c", "d", "e")


def test_effects_of_flows_become_events() -> None:
    effect = Audit("0012", "hold", "00120000123420260101000123", "58", "disabled", True)
    event = audit.from_effect(effect, 7)
    assert (event.at_ns, event.who, event.what, event.outcome) == (7, "0012", "hold", "58")
    assert event.reason == "disabled"
    assert event.security


@pytest.mark.parametrize(
    "wrong",
    [{"who": ""}, {"what": ""}, {"second": "a"}, {"detail": {str(n): n for n in range(9)}}],
)
def test_r10_incomplete_events_are_refused(wrong) -> None:
    fields = {"at_ns": 1, "who": "a", "what": "b", "subject": "c", "outcome": "done"}
    with pytest.raises(ValueError, match=r"audit event|two persons"):
        audit.event(**{**fields, **wrong})


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_value_error(payload) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(audit.decode(payload), AuditEvent)


def test_too_long_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="too long"):
        audit.decode(bytes(audit.PAYLOAD_BYTES_MAX + 1))


@given(
    st.text(min_size=1),
    st.text(),
    st.dictionaries(
        st.text(), st.one_of(st.text(), st.integers(), st.booleans(), st.none()), max_size=8
    ),
)
def test_every_event_reads_back_within_its_bounds(who, text, detail) -> None:
    event = audit.event(
        at_ns=2**63 - 1,
        who=who,
        what="x",
        subject=text,
        reason=text,
        outcome=text,
        detail=detail,
    )
    payload = audit.encode(event)
    assert len(payload) <= audit.PAYLOAD_BYTES_MAX
    assert audit.decode(payload) == event


def test_the_widest_event_fits() -> None:
    wide = "\U0001f600" * 500
    event = audit.event(
        at_ns=1,
        who=wide,
        what=wide,
        subject=wide,
        reason=wide,
        outcome=wide,
        second=wide[:400],
        detail={f"{n}{wide}": wide for n in range(audit.DETAIL_ITEMS_MAX)},
    )
    assert audit.decode(audit.encode(event)) == event
