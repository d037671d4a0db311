"""The native ISO 8583 codec against the plain-Python one, on random dialects and messages."""

import os
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols.iso8583 import Dialect, FormatError
from tests.models import iso8583 as oracle
from tests.models.iso_strategies import dialects, messages, written

FUZZ = int(os.environ.get("TRONCAL_FUZZ", "0") or 0)
EXAMPLES = settings(max_examples=3000 * FUZZ if FUZZ else 50, deadline=None)


@st.composite
def dialects_and_messages(draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = draw(dialects())
    return spec, draw(messages(spec))


def agrees(spec: dict[str, Any], dialect: Dialect, data: bytes) -> None:
    """Both take a message, with the same values and back to the same bytes, or neither does."""
    try:
        expected: dict[str, Any] | None = oracle.decode(spec, data)
    except oracle.Refused:
        expected = None
    (found,) = dialect.decode_many([data])
    if expected is None:
        assert isinstance(found, FormatError), "only the oracle refuses it"
        assert 0 <= found.offset <= len(data)
        sound(found)
        return
    assert not isinstance(found, FormatError), f"only the oracle takes it: {found}"
    assert found.to_dict() == expected
    assert dialect.encode(found) == data
    assert found.replaced({}) == data
    for key, value in expected.items():
        assert found[key] == value


def sound(error: FormatError) -> None:
    assert set(error.partial) <= {"mti", "7", "11", "37", "41"}
    assert str(error).endswith(error.reason)


@EXAMPLES
@given(dialects_and_messages())
def test_messages_are_written_and_read_as_by_the_oracle(case: Any) -> None:
    spec, message = case
    dialect = Dialect.from_dict(written(spec))
    expected = oracle.encode(spec, message)
    assert dialect.encode(message) == expected
    agrees(spec, dialect, expected)


@EXAMPLES
@given(dialects_and_messages(), st.data())
def test_damaged_messages_are_refused_as_by_the_oracle(case: Any, data: st.DataObject) -> None:
    spec, message = case
    dialect = Dialect.from_dict(written(spec))
    wire = oracle.encode(spec, message)
    assume(wire)
    for _ in range(8):
        at = data.draw(st.integers(0, len(wire) - 1))
        match data.draw(st.sampled_from(["cut", "flip", "byte", "insert", "remove", "swap"])):
            case "cut":
                damaged = wire[:at]
            case "flip":
                bit = 1 << data.draw(st.integers(0, 7))
                damaged = wire[:at] + bytes([wire[at] ^ bit]) + wire[at + 1 :]
            case "byte":
                damaged = wire[:at] + data.draw(st.binary(min_size=1, max_size=1)) + wire[at + 1 :]
            case "insert":
                damaged = wire[:at] + data.draw(st.binary(min_size=1, max_size=3)) + wire[at:]
            case "remove":
                damaged = wire[:at] + wire[at + 1 :]
            case _:
                damaged = wire[:at] + wire[at : at + 2][::-1] + wire[at + 2 :]
        agrees(spec, dialect, damaged)


@EXAMPLES
@given(dialects(), st.binary(max_size=200))
def test_arbitrary_bytes(spec: dict[str, Any], data: bytes) -> None:
    agrees(spec, Dialect.from_dict(written(spec)), data)


@EXAMPLES
@given(dialects_and_messages(), st.data())
def test_elements_are_spliced_as_if_all_were_encoded(case: Any, data: st.DataObject) -> None:
    """A changed message, made from the received bytes, is that made from all its values."""
    spec, message = case
    dialect = Dialect.from_dict(written(spec))
    received = dialect.decode(oracle.encode(spec, message))
    other = data.draw(messages(spec))
    changes = {key: value for key, value in other.items() if value is not True}
    present = [key for key, value in received.items() if value is not True]
    dropped = [key for key in present if data.draw(st.booleans())]
    kept = {key: value for key, value in received.to_dict().items() if key not in dropped}
    try:
        expected = dialect.encode({**kept, **changes})
    except FormatError:
        pytest.fail("what was received can be encoded")
    found = received.replaced(changes, drop=dropped)
    assert dialect.decode(found).items() >= dialect.decode(expected).items()
