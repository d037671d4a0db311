"""docs/cases.md says what the tests are, and no acceptance case is without one."""

import subprocess
import sys

import pytest

from tests.cases import ROOT, ids, vectors


@pytest.mark.timeout(600)  # a second collection of the suite
def test_the_table_is_current_and_no_case_is_without_a_test() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.cases", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_there_are_198_cases() -> None:
    known = [case["id"] for case in vectors()]
    assert len(known) == len(set(known)) == 198


def test_ids_in_names() -> None:
    assert ids("test_X001_X002_what") == ["X001", "X002"]
    assert ids("test_X106_lost[D07_deposit-apart]") == ["X106", "D07"]
    assert ids("test_R05_stuck[together]") == ["R05"]
    assert ids("test_iso8583_S0[AES-P256]") == []
