"""Plots of the report as SVG text, drawn with matplotlib (the extra `bench`)."""

import importlib
import io
import re
from collections.abc import Callable
from typing import Any

Plot = Callable[[Any, Any], bool]
"""Draws a part's results on axes; False where there is too little to draw."""

OURS, ECHO, OTHER, WORST = "#1f6feb", "#8b949e", "#d29922", "#cf222e"


class NoPlots(Exception):
    """matplotlib is not installed."""


def plots(results: dict[str, Any]) -> dict[str, list[str]]:
    """SVG texts by the name of the part they belong to. Raises NoPlots."""
    try:
        matplotlib = importlib.import_module("matplotlib")
        figure = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise NoPlots("no plots: pip install 'troncal[bench]'") from None
    found: dict[str, list[str]] = {}
    settings = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    for name, draw in _PLOTS:
        part = results["parts"].get(name)
        if part is None:
            continue
        with matplotlib.rc_context({**settings, "svg.hashsalt": f"{name} {len(found)}"}):
            canvas = figure(figsize=(5.2, 3.2), layout="constrained")
            axes = canvas.add_subplot()
            if draw(axes, part):
                axes.grid(True, alpha=0.25, which="both", linewidth=0.5)
                axes.spines[["top", "right"]].set_visible(False)
                for axis in (axes.xaxis, axes.yaxis):
                    if axis.get_scale() == "log":
                        axis.set_major_formatter(lambda value, _: f"{value:,g}")
                        axis.set_minor_formatter(lambda value, _: "")
                found.setdefault(name, []).append(_svg(canvas))
    return found


def _svg(canvas: Any) -> str:
    text = io.StringIO()
    canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # From the element on: a page has no room for a prolog of its own inside.
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)


def _throughput(axes: Any, runs: list[dict[str, Any]]) -> bool:
    if len(runs) < 2:
        return False
    xs = [run["connections"] for run in runs]
    axes.plot(xs, [run["ceiling_rate_per_s"] for run in runs], "o--", color=ECHO, label="bare echo")
    axes.plot(xs, [run["rate_per_s"] for run in runs], "o-", color=OURS, label="durable cash_outs")
    axes.set(xscale="log", xlabel="connections in lock step", ylabel="a second", ylim=(0, None))
    axes.set_title("Throughput against connections")
    axes.legend(frameon=False)
    return True


def _latency(busy: bool) -> Plot:
    def draw(axes: Any, runs: list[dict[str, Any]]) -> bool:
        runs = [run for run in runs if run["busy"] == busy]
        if len(runs) < 2:
            return False
        xs = [run["rate_wanted_per_s"] for run in runs]
        lines = (
            ("max_ms", "worst", WORST, ":"), ("p999_ms", "p99.9", OTHER, "-"),
            ("p99_ms", "p99", OURS, "-"), ("p50_ms", "p50", "#2da44e", "-"),
            ("echo_p99_ms", "bare echo p99", ECHO, "--"),
        )  # fmt: skip
        for key, label, color, style in lines:
            axes.plot(xs, [run[key] for run in runs], f"o{style}", color=color, label=label, ms=4)
        axes.set(xscale="log", yscale="log", xlabel="requests due a second", ylabel="ms")
        axes.set_title("Latency against load" + (", main loop busy" if busy else ""))
        axes.legend(frameon=False, fontsize=7)
        return True

    return draw


def _memory(axes: Any, run: dict[str, Any]) -> bool:
    xs = [number for number, _ in run["memory"]]
    axes.plot(xs, [grown / 1e6 for _, grown in run["memory"]], "o-", color=OURS, label="the switch")
    axes.plot(xs, [number * 2048 / 1e6 for number in xs], "--", color=ECHO, label="2 kB each")
    axes.set(xlabel="idle connections", ylabel="MB more")
    axes.set_title("Memory against connections")
    axes.legend(frameon=False)
    return len(xs) > 1


def _past(axes: Any, run: dict[str, Any]) -> bool:
    rows = run["rows"]
    xs = [max(row["past_really"], 1) for row in rows]
    ys = [row["server_cpu_us_per_operation"] for row in rows]
    axes.plot(xs, ys, "o-", color=OURS)
    axes.axhline(1.5 * ys[0], color=ECHO, linestyle="--", label="1.5 × the first")
    axes.set(xscale="log", xlabel="past operations", ylabel="µs of CPU", ylim=(0, None))
    axes.set_title("Cost of a cash_out against history")
    axes.legend(frameon=False)
    return len(rows) > 1


def _accounts(axes: Any, rows: list[dict[str, float]]) -> bool:
    xs = [row["accounts"] for row in rows]
    axes.plot(xs, [row["hold_ns"] for row in rows], "o-", color=OURS, label="hold, median")
    axes.plot(xs, [row["capture_ns"] for row in rows], "o-", color=OTHER, label="capture, median")
    axes.axhline(1.5 * rows[0]["hold_ns"], color=ECHO, linestyle="--", label="1.5 × the first hold")
    axes.set(xscale="log", xlabel="accounts", ylabel="ns", ylim=(0, None))
    axes.set_title("Cost in the ledger against accounts")
    axes.legend(frameon=False, fontsize=7)
    return len(rows) > 1


def _bars(axes: Any, names: list[str], values: list[float], ours: str, title: str) -> bool:
    colors = [OURS if name == ours else ECHO for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="a second", xlim=(0, max(values) * 1.2))
    axes.set_title(title)
    return len(names) > 1


def _job(axes: Any, run: dict[str, Any]) -> bool:
    rows = run["rows"]
    note = {"troncal": "troncal (durable)", "echo": "bare native echo"}
    names = [note.get(row["name"], row["name"]) for row in rows]
    rates = [row["rate_per_s"] for row in rows]
    return _bars(axes, names, rates, "troncal (durable)", "The same job, 64 terminals")


def _codec(axes: Any, run: dict[str, Any]) -> bool:
    rows = [row for row in run["rows"] if row["case"] == "turn"]
    rates = [float(row["median_per_s"]) for row in rows]
    title = "ISO 8583: decode and answer, one thread"
    return _bars(axes, [row["codec"] for row in rows], rates, "troncal", title)


def _foreign(axes: Any, run: dict[str, Any]) -> bool:
    rows = [row for row in run["rows"] if row["case"] == "turn"]
    rates = [float(row["median_per_s"]) for row in rows]
    title = "ISO 8583: decode and answer, one thread"
    return _bars(axes, [row["name"] for row in rows], rates, "troncal", title)


def _commit(axes: Any, run: dict[str, Any]) -> bool:
    rows = [row for row in run["rows"] if "p50_ms" in row]
    rates = [float(row["records_per_s"]) for row in rows]
    title = "Durable records, groups of 256"
    return _bars(axes, [row["name"] for row in rows], rates, "journal", title)


_PLOTS: tuple[tuple[str, Plot], ...] = (
    ("cash_out", _throughput),
    ("open_loop", _latency(busy=False)),
    ("open_loop", _latency(busy=True)),
    ("idle", _memory),
    ("history", _past),
    ("accounts", _accounts),
    ("switch_job", _job),
    ("codec", _codec),
    ("codecs", _foreign),
    ("group_commit", _commit),
)
