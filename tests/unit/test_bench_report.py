"""The page of figures: what it says of results, and that it is whole by itself."""

import copy
import importlib.util
import json
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench.peers import codecs, group_commit
from bench.report import runs, tables
from bench.report.__main__ import main
from bench.report.page import render

LATENCY = {
    "p50_ms": 0.4, "p90_ms": 0.6, "p99_ms": 1.5, "p999_ms": 2.5, "p9999_ms": 4.0, "max_ms": 7.25,
}  # fmt: skip


def closed(connections: int, rate: float, ratio: float, depth: int = 1) -> dict[str, Any]:
    return {
        "connections": connections, "depth": depth, "rate_per_s": rate, **LATENCY,
        "server_cpu_us_per_operation": 9.5, "ceiling_rate_per_s": rate / ratio, "ratio": ratio,
    }  # fmt: skip


def opened(rate: float, busy: bool) -> dict[str, Any]:
    return {
        "rate_wanted_per_s": rate, "busy": busy, **LATENCY, "echo_p50_ms": 0.05,
        "echo_p99_ms": 0.2, "echo_max_ms": 0.9, "lag_p99_ms": 0.02, "lag_max_ms": 0.3,
        "pauses": [{"at_s": 1.5, "ms": 7.25}], "server_cpu_us_per_operation": 30.0,
    }  # fmt: skip


PARTS: dict[str, Any] = {
    "cash_out": [closed(16, 40_000, 0.3), closed(64, 61_000, 0.25), closed(1000, 50_000, 0.24)],
    "deep": closed(16, 130_000, 0.1, 16),
    "link": closed(1, 160_000, 0.2, 100),
    "forward": closed(64, 30_000, 0.12),
    "open_loop": [opened(r, b) for r in (1000, 5000) for b in (False, True)],
    "snapshots": {
        "rate_wanted_per_s": 5000.0, "snapshots": 3, "p99_ms": 4.0, "p99_without_ms": 3.0,
        "with": LATENCY, "without": LATENCY,
    },
    "idle": {
        "idle": 10_000, "bytes_each": 3000, "memory": [(0, 0), (10_000, 30_000_000)],
        "cpu_us_beside": 10.0, "cpu_us_without": [9.0, 11.0], "cpu_ratio": 1.0,
        "operations_min": 5000,
    },
    "history": {
        "rows": [
            {**closed(64, 60_000, 0.3), "past_really": past, "memory_bytes": 10**9,
             "operations": 5000}
            for past in (0, 1_000_000)
        ],
        "cpu_ratio": 1.0,
        "recovery": {
            "records": 10_000_000, "seconds": 6.0, "records_per_s": 1_666_667, "ten_million_s": 6.0,
        },
    },
    "past": {
        "rows": [
            {"past": float(past), "cash_out_us": 9.5, "deposit_us": 9.0, "bytes_each": 1400.0}
            for past in (0, 10_000_000)
        ],
        "left_out": [], "cash_out_ratio": 1.0, "deposit_ratio": 1.0,
    },
    "accounts": [
        {"accounts": n, "hold_ns": 150.0 * k, "hold_best_ns": 140.0, "capture_ns": 120.0,
         "capture_best_ns": 100.0, "bytes_per_account": 110.0}
        for n, k in ((1000, 1), (5_000_000, 2))
    ],
    "switch_job": {
        "rows": [
            {"name": name, "rate_per_s": rate, "p50_ms": 1.0, "p99_ms": 2.0,
             "server_cpu_us_per_operation": 20.0, "troncal_times_as_fast": 60_000 / rate}
            for name, rate in (("trio", 25_000.0), ("troncal", 60_000.0), ("echo", 200_000.0))
        ],
        "missing": {"uvloop": "not installed"},
    },
    "codec": {
        "rows": [
            {"codec": name, "case": "turn", "median_per_s": rate, "best_per_s": rate}
            for name, rate in (("troncal", 900_000), ("pyiso8583", 9000))
        ],
        "missing": ["py8583"],
    },
    "codecs": {
        "rows": [{"case": "turn", "name": "troncal", "median_per_s": 900_000,
                  "troncal_times_as_fast": 1.0}],
        "missing": {"jPOS (Java)": "no mvn <apt install maven>"},
    },
    "group_commit": {
        "rows": [{"name": "journal", "records_per_s": 800_000, "p50_ms": 0.3, "p99_ms": 0.7,
                  "max_ms": 3.0, "journal_times_as_fast": 1.0}],
        "missing": {"PostgreSQL": "no initdb"},
    },
}  # fmt: skip


def results(**parts: Any) -> dict[str, Any]:
    return {
        "machine": runs.machine(None) | {"load_after": [0.1, 0.1, 0.1]},
        "parts": parts,
        "commands": {name: [f"command of {name}"] for name in PARTS},
        "failed": {},
        "took_s": 180,
    }


ALL = results(**PARTS)


class _Page(HTMLParser):
    """Collects headings, and everything that would be fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        outside = values.get("src") or (values.get("href") if tag in ("link", "script") else None)
        if outside:
            self.fetched.append(outside)


def test_every_part_of_a_run_has_its_place() -> None:
    names = [part.name for part in runs.parts(runs.QUICK, None, print)]
    assert set(names) == set(PARTS)
    assert {table.name for table in tables.tables(ALL)} == set(PARTS)
    for table in tables.tables(ALL):
        assert table.rows, table.name
        assert all(len(row) == len(table.columns) for row in table.rows), table.name
        assert table.commands == [f"command of {table.name}"]


def test_goals_are_judged() -> None:
    reached = {figure.what: figure.reached for figure in tables.figures(ALL)}
    assert reached == {
        "durable cash_outs, 64 terminals in lock step": True,
        "durable cash_outs, 1000 terminals in lock step": False,
        "durable cash_outs, 16 connections × 16 deep": True,
        "holds over one ISO 8583 link, 100 in flight": True,
        "cash_outs forwarded to a remote platform, 64 terminals": False,
        "open loop at 1 000/s": None,
        "open loop at 1 000/s, main loop busy": None,
        "open loop at 5 000/s": True,
        "open loop at 5 000/s, main loop busy": True,
        "p99 at 5 000/s while snapshots are made": True,
        "memory of an idle connection, 10 000 of them": False,
        "cost of a cash_out beside 10 000 idle connections": True,
        "cost of a cash_out after 1 000 000 operations": True,
        "recovery of 10 000 000 records": True,
        "deciding an operation after 10 000 000": None,
        "a hold in the ledger with 5 000 000 accounts": False,
        "durable cash_outs beside plain servers that write nothing": None,
    }
    slow = copy.deepcopy(PARTS["cash_out"])
    slow[1]["ratio"] = 0.19
    assert tables.figures(results(cash_out=slow))[0].reached is False


def test_the_page_is_whole_by_itself() -> None:
    page, markdown = render(ALL)
    found = _Page()
    found.feed(page)
    assert found.fetched == []
    assert found.tags.count("h2") == len(PARTS)
    assert "&lt;apt install maven&gt;" in page, "what tools say is escaped"
    for name in PARTS:
        assert f"command of {name}" in page
        assert f"    command of {name}" in markdown
    assert "missed" in markdown
    if importlib.util.find_spec("matplotlib"):
        assert found.tags.count("svg") == 8, "three parts have too little to draw, or no plot"
    else:
        assert "pip install" in page


def test_what_failed_is_told(tmp_path: Path) -> None:
    broken = results(deep=PARTS["deep"]) | {"failed": {"link": "BenchError: no <host>"}}
    page, markdown = render(broken)
    assert "link could not be measured: BenchError: no &lt;host&gt;" in page
    assert "link could not be measured: BenchError: no <host>" in markdown
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(broken))
    assert main(["--results", str(earlier), "--output", str(tmp_path)]) == 1
    assert (tmp_path / "report.html").read_text() == page
    assert (tmp_path / "report.md").read_text() == markdown


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(profile: Any, directory: Any, say: Any) -> list[runs.Part]:
        def bad() -> Any:
            raise OSError(28, "No space left on device")

        return [runs.Part("a", ("x",), bad), runs.Part("b", ("y",), lambda: 7)]

    monkeypatch.setattr(runs, "parts", parts)
    said: list[str] = []
    found = runs.everything(runs.QUICK, None, said.append)
    assert found["parts"] == {"b": 7}
    assert list(found["failed"]) == ["a"]
    assert "No space" in found["failed"]["a"]


def test_a_run_that_was_cut_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def parts(profile: Any, directory: Any, say: Any) -> list[runs.Part]:
        def measured(name: str) -> Any:
            ran.append(name)
            if name == "deep" and ran.count(name) == 1:
                raise KeyboardInterrupt
            return PARTS[name]

        return [
            runs.Part(name, (f"command of {name}",), partial(measured, name))
            for name in ("cash_out", "deep", "link")
        ]

    monkeypatch.setattr(runs, "parts", parts)
    given = ["--quick", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        main(given)
    kept = json.loads((tmp_path / "report.json").read_text())
    assert list(kept["parts"]) == ["cash_out"]
    assert "command of cash_out" in (tmp_path / "report.md").read_text()
    assert main([*given, "--resume"]) == 0
    assert ran == ["cash_out", "deep", "deep", "link"]
    assert list(json.loads((tmp_path / "report.json").read_text())["parts"]) == [
        "cash_out", "deep", "link",
    ]  # fmt: skip
    assert main(given) == 0, "without --resume all is measured again"
    assert ran.count("cash_out") == 2


def test_missing_tools_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = codecs.run(1, 0.01, cache=tmp_path / "cache")
    assert set(found["missing"]) == set(codecs.PEERS)
    assert "no java" in found["missing"]["jPOS (Java)"]
    assert {row["name"] for row in found["rows"]} == {"troncal"}

    def none() -> Path:
        raise group_commit.Missing("no initdb (apt install postgresql)")

    monkeypatch.setattr(group_commit, "binaries", none)
    told = group_commit.run(5, tmp_path)
    assert "initdb" in told["missing"]["PostgreSQL"]
    assert {row["name"] for row in told["rows"]} >= {"journal", "sqlite WAL FULL"}
