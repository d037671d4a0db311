"""`troncal demo --webpay` and the bench: everything at once, as processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.load import webpay
from tests.e2e.webpay_world import keys

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


@pytest.mark.parametrize("mode", ["kcc60", "direct"])
def test_the_measurement_counts_only_payments_that_stand(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webpay, "rsa_ceiling", lambda: 200.0)  # which takes ten seconds
    figures = webpay.run(
        payments=6, at_once=3, mode=mode, directory=tmp_path, keys=keys(), say=lambda text: None
    )
    assert (figures["mode"], figures["payments"]) == (mode, 6)
    assert figures["private_operations_per_payment"] == (3 if mode == "kcc60" else 2)
    for name in ("payments_per_s", "page_p99_ms", "notify_p99_ms", "sign_mean_ms"):
        assert figures[name] > 0, name
    assert list(tmp_path.iterdir()) == []
