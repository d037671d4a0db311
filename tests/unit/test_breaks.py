"""Breaks of work that may wait, and files removed in pieces."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from core_ext._breaks import Breaks, taken
from switch.journal import removal
from switch.journal.removal import GONE, PIECE_BYTES, clear_gone, remove_gently

pytestmark = pytest.mark.timed
SPENT_S = 0.1


def spend() -> None:
    until_s = time.thread_time() + SPENT_S
    while time.thread_time() < until_s:
        pass


def test_breaks_come_while_entered_and_not_after() -> None:
    before = taken()
    with Breaks(work_us=500, rest_us=50):
        spend()
    found = taken() - before
    # 200 where the timer is exact; a timer that comes late makes them fewer, never more.
    assert 10 <= found <= 230
    spend()
    assert taken() - before == found


def test_breaks_count_cpu_time_and_not_sleep() -> None:
    before = taken()
    with Breaks(work_us=1000):
        time.sleep(0.05)
    assert taken() - before <= 3


def test_breaks_come_in_native_code() -> None:
    db = sqlite3.connect(":memory:")
    before = taken()
    with Breaks(work_us=500, rest_us=50):
        count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200000)"
        assert db.execute(f"{count} SELECT count(*) FROM n").fetchone() == (200_000,)
    db.close()
    assert taken() - before >= 5


def test_who_enters_meanwhile_leaves_those_of_the_first_alone() -> None:
    with Breaks(work_us=500, rest_us=50):
        with Breaks(work_us=1_000_000):
            before = taken()
            spend()
        within = taken()
        assert within > before
        spend()
        assert taken() > within


def test_breaks_end_with_an_exception() -> None:
    with pytest.raises(KeyError), Breaks(work_us=500):
        raise KeyError("work")
    before = taken()
    spend()
    assert taken() == before


@pytest.mark.parametrize("values", [{"work_us": 49}, {"rest_us": 0}, {"work_us": 1_000_001}])
def test_breaks_have_bounds(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="work_us"):
        Breaks(**values)


def test_a_file_is_cut_piece_by_piece_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sizes = tmp_path / "snapshot-1.trn", []
    path.write_bytes(bytes(3 * PIECE_BYTES + 5))

    def seen(_pause_s: float) -> None:
        sizes.append([(p.name, p.stat().st_size // PIECE_BYTES) for p in tmp_path.iterdir()])

    monkeypatch.setattr(removal.time, "sleep", seen)
    remove_gently(path)
    name = f"snapshot-1.trn{GONE}"
    assert sizes == [[(name, 2)], [(name, 1)], [(name, 0)]]
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_behind_is_removed_later(tmp_path: Path) -> None:
    (tmp_path / f"journal-000000000001.seg{GONE}").write_bytes(bytes(100))
    (tmp_path / "journal-000000000002.seg").write_bytes(bytes(100))
    clear_gone(tmp_path)
    assert os.listdir(tmp_path) == ["journal-000000000002.seg"]


def test_a_file_that_another_has_removed_is_no_error(tmp_path: Path) -> None:
    remove_gently(tmp_path / "gone-already")
