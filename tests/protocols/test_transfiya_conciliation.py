"""The network's conciliation: read strictly, compared by action, amounts by their value."""

from typing import Any

import pytest

from protocols.transfiya.conciliation import ConciliationError, Difference, Line, compare, lines_of

ONE = Line("a-1", "tx-1", "UPLOAD", "100.00", "hold-1")
TWO = Line("a-2", "tx-1", "DOWNLOAD", "100.00", "hold-2")
TEXT = "a-2;tx-1;DOWNLOAD;100.00;hold-2\na-1;tx-1;UPLOAD;100.00;hold-1\n"


def action(line: Line, status: str = "COMPLETED") -> dict[str, Any]:
    labels = {"type": line.kind, "status": status, "tx_ref": line.tx_ref, "tx_id": line.tx_id}
    return {"action_id": line.action_id, "amount": line.amount, "labels": labels}


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        {"text": TEXT},
        [action(ONE), action(TWO), action(Line("a-3", "t", "UPLOAD", "1", ""), "PENDING")],
        {"entities": [action(TWO), action(ONE), action(Line("a-3", "t", "SEND", "1", ""))]},
    ],
    ids=["text", "record", "list", "entities"],
)
def test_all_forms_tell_the_same(value: Any) -> None:
    assert lines_of(value) == [ONE, TWO]


def test_nothing_is_a_day_without_movements() -> None:
    assert lines_of("") == lines_of([]) == lines_of({"text": ""}) == []


@pytest.mark.parametrize(
    "value",
    [
        None, 7, {}, {"text": 7}, "a;b", "a;b;SEND;1.00;c", ";t;UPLOAD;1.00;c",
        "a;t;UPLOAD;1.00;c;d", f"a;{'t' * 65};UPLOAD;1.00;c", "a;t\u00e9;UPLOAD;1.00;c",
        [{"action_id": 7, "amount": "1", "labels": {"type": "UPLOAD", "status": "COMPLETED"}}],
    ],
)  # fmt: skip
def test_what_is_no_conciliation(value: Any) -> None:
    with pytest.raises(ConciliationError):
        lines_of(value)


def test_differences() -> None:
    assert compare([ONE, TWO], [TWO, ONE], 2) == []
    assert compare([Line("a-1", "tx-1", "UPLOAD", "100.0", "hold-1")], [ONE], 2) == []
    assert compare([ONE], [TWO], 2) == [
        Difference("missing_there", "a-1", "tx-1", here="UPLOAD 100.00 hold-1"),
        Difference("missing_here", "a-2", "tx-1", there="DOWNLOAD 100.00 hold-2"),
    ]
    other = Line("a-1", "tx-1", "UPLOAD", "100.01", "hold-9")
    assert compare([ONE], [other], 2) == [
        Difference("differs", "a-1", "tx-1", "amount, tx_id", "10000 hold-1", "10001 hold-9")
    ]
