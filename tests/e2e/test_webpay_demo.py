"""`troncal demo --webpay` and the bench: everything at once, as processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_the_demonstration_ends_with_books_that_agree() -> None:
    command = [sys.executable, "-m", "switch", "demo", "--webpay", "--seconds", "0.5", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert (result["ok"], result["problems"]) == (True, [])
    assert result["payments"] == result["lines"] == sum(result["outcomes"].values())
    assert set(result["outcomes"]) == {
        "paid", "declined", "rejected by the shop", "shop broke off",
    }  # fmt: skip
    assert result["charged"] > 0
    assert result["reversed"] > 0
