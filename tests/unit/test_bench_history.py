"""The scenario that measures past operations, on a small scale."""

from pathlib import Path

import pytest

from bench.micro import history_scale


def test_past_operations_are_made_natively_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_scale, "_free_bytes", lambda: 10_000 * history_scale.BYTES_EACH)
    found = history_scale.run((0, 400, 1_000_000), 48, directory=tmp_path)
    assert [row["past"] for row in found["rows"]] == [0, 400]
    assert found["left_out"] == [1_000_000]
    assert all(row["cash_out_us"] > 0 and row["deposit_us"] > 0 for row in found["rows"])


@pytest.mark.parametrize("past", [(), (-1,), (1_000_000,)])
def test_what_cannot_be_measured_is_said(
    past: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_scale, "_free_bytes", lambda: 1 << 20)
    with pytest.raises(ValueError, match="past operations"):
        history_scale.run(past)
