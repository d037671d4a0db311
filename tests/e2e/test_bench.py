"""The load scenario against a real node, in small."""

import json
from pathlib import Path

from bench.load.cash_out import run


def test_cash_out(tmp_path: Path) -> None:
    said: list[str] = []
    figures = run(4, 1.5, depth=2, cards=600, verify=True, directory=tmp_path, say=said.append)
    assert figures["operations"] > 0
    assert figures["codes"] == {"00": figures["operations"]}
    assert (figures["connections"], figures["errors"], figures["declined"]) == (4, 0, 0)
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]
    assert 0 < figures["rate_per_s"] < figures["ceiling_rate_per_s"]
    assert 0 < figures["ratio"] < 1
    assert figures["server_cpu_s"] >= 0
    assert json.loads(json.dumps(figures)) == figures
    assert len(said) == 4
    assert list(tmp_path.iterdir()) == []
