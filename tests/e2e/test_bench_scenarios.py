"""The scenarios against real nodes, in small: what they tell is what happened."""

import os
from pathlib import Path
from typing import Any

import pytest

from bench.load import forward, history, idle, open_loop, traffic

LONG = "TRONCAL_FUZZ" in os.environ


def sound(figures: dict[str, Any]) -> None:
    assert (figures["errors"], figures["declined"]) == (0, 0)
    assert figures["codes"] == {"00": figures["operations"]}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p9999_ms"] <= figures["max_ms"]


def test_open_loop_with_a_busy_loop(tmp_path: Path) -> None:
    figures = open_loop.run(
        200, 3, 0.5, mix="cash_out=1", poisson=True, busy=True, verify=True, directory=tmp_path
    )
    sound(figures)
    assert figures["due"] == figures["operations"] > 50
    assert figures["metrics_pages"] > 0
    assert figures["sign_ons"] > 0
    assert 0 < figures["echo_p50_ms"] <= figures["echo_max_ms"]
    assert figures["pauses"][0]["ms"] == figures["max_ms"]
    assert list(tmp_path.iterdir()) == []


def test_a_day_at_the_counter(tmp_path: Path) -> None:
    """Deposits count against what the network may owe; marks name what was paid before."""
    figures = open_loop.run(200, 2, 0.5, mix=traffic.COUNTER, verify=True, directory=tmp_path)
    assert figures["errors"] == 0
    # A mark before there is a payment, or for one that it was given already: 25 or a repeat.
    assert set(figures["codes"]) <= {"00", "25"}
    assert figures["codes"]["00"] >= 80


def test_the_forwarding_hop(tmp_path: Path) -> None:
    figures = forward.run(4, 0.3, depth=2, verify=True, directory=tmp_path)
    sound(figures)
    platform = figures["platform"]
    assert platform["holds"] > figures["operations"] > 0
    assert platform["others"] >= figures["operations"], "what was registered is confirmed"
    assert (platform["strange"], platform["bad"]) == (0, 0)


@pytest.mark.skipif(not LONG, reason="TRONCAL_FUZZ=1")
@pytest.mark.timeout(300)
def test_idle_and_history(tmp_path: Path) -> None:
    silent = idle.run(50, 2, 0.3, verify=True, directory=tmp_path)
    assert [number for number, _ in silent["memory"]] == list(range(0, 51, 5))
    assert silent["cpu_us_beside"] > 0
    past = history.run((0, 2000), 2, 0.3, directory=tmp_path)
    assert [row["past"] for row in past["rows"]] == [0, 2000]
    assert past["rows"][1]["past_really"] >= 2000
    # Seven records or so for each of the cards, and for each operation.
    assert past["recovery"]["records"] > 2000
