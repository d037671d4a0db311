"""From results to the page: figures with goals, ceilings and peers, and tables of the parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]

OPEN_GOAL_RATE = 5000
COMPARED_MIN = 1000  # operations of a run whose cost is compared with another's


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the first table.

    Attributes:
        what: is measured.
        value: with its unit.
        beside: the ceiling or the peers of the same run, and the ratio to them.
        goal: what is wanted.
        reached: whether it is; None where there is no goal.
    """

    what: str
    value: str
    beside: str
    goal: str
    reached: bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a heading, with the commands that give them."""

    name: str
    heading: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    commands: list[str]


def count(value: float) -> str:
    """A number for people: thousands apart."""
    return f"{value:,.0f}".replace(",", " ")


def ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


# ---- figures with goals


def figures(results: Results) -> list[Figure]:
    """All figures of the parts that were measured."""
    found: list[Figure] = []
    for name, tell in _FIGURES.items():
        if name in results["parts"]:
            found += tell(results["parts"][name])
    return found


def _echo(run: dict[str, Any]) -> str:
    return f"echo {count(run['ceiling_rate_per_s'])}/s: {run['ratio']:.0%} of it"


def _cash_out(runs: list[dict[str, Any]]) -> list[Figure]:
    by = {run["connections"]: run for run in runs}
    found = []
    for n, run in by.items():
        rate, value = run["rate_per_s"], f"{count(run['rate_per_s'])}/s, p99 {ms(run['p99_ms'])}"
        what = f"durable cash_outs, {n} terminals in lock step"
        if n == 64:
            goal, reached = "≥ 50 000/s, ≥ 20 % of echo", rate >= 50_000 and run["ratio"] >= 0.2
            found.append(Figure(what, value, _echo(run), goal, reached))
        elif n == 1000 and 64 in by:
            goal, reached = "≥ 85 % of 64 terminals", rate >= 0.85 * by[64]["rate_per_s"]
            share = f"; {rate / by[64]['rate_per_s']:.0%} of 64 terminals"
            found.append(Figure(what, value, _echo(run) + share, goal, reached))
    return found


def _deep(run: dict[str, Any]) -> list[Figure]:
    value = f"{count(run['rate_per_s'])}/s, p99 {ms(run['p99_ms'])}"
    what = f"durable cash_outs, {run['connections']} connections × {run['depth']} deep"
    reached = run["rate_per_s"] >= 120_000
    return [Figure(what, value, _echo(run), "≥ 120 000/s", reached)]


def _link(run: dict[str, Any]) -> list[Figure]:
    value = f"{count(run['rate_per_s'])}/s, p99 {ms(run['p99_ms'])}"
    reached = run["rate_per_s"] >= 150_000 and run["p99_ms"] <= 2
    what = f"holds over one ISO 8583 link, {run['connections'] * run['depth']} in flight"
    return [Figure(what, value, _echo(run), "≥ 150 000/s, p99 ≤ 2 ms", reached)]


def _forward(run: dict[str, Any]) -> list[Figure]:
    value = f"{count(run['rate_per_s'])}/s, p99 {ms(run['p99_ms'])}"
    what = f"cash_outs forwarded to a remote platform, {run['connections']} terminals"
    return [Figure(what, value, _echo(run), "≥ 60 000/s", run["rate_per_s"] >= 60_000)]


def _open_loop(runs: list[dict[str, Any]]) -> list[Figure]:
    found = []
    for run in runs:
        rate = run["rate_wanted_per_s"]
        value = f"p50 {ms(run['p50_ms'])}, p99 {ms(run['p99_ms'])}, worst {ms(run['max_ms'])}"
        what = f"open loop at {count(rate)}/s" + (", main loop busy" if run["busy"] else "")
        goal, reached = "", None
        if rate == OPEN_GOAL_RATE:
            goal, reached = "p50 ≤ 0.6, p99 ≤ 3 ms", run["p50_ms"] <= 0.6 and run["p99_ms"] <= 3
        beside = f"echo p50 {ms(run['echo_p50_ms'])}, p99 {ms(run['echo_p99_ms'])}"
        found.append(Figure(what, value, beside, goal, reached))
    return found


def _snapshots(run: dict[str, Any]) -> list[Figure]:
    what = f"p99 at {count(run['rate_wanted_per_s'])}/s while snapshots are made"
    beside = f"without {ms(run['p99_without_ms'])}; {run['snapshots']} snapshots made"
    return [Figure(what, ms(run["p99_ms"]), beside, "≤ 10 ms", run["p99_ms"] <= 10)]


def _idle(run: dict[str, Any]) -> list[Figure]:
    each, ratio = run["bytes_each"], run["cpu_ratio"]
    without = " / ".join(f"{x:.1f}" for x in run["cpu_us_without"])
    return [
        Figure(
            f"memory of an idle connection, {count(run['idle'])} of them", f"{count(each)} B",
            "beyond the kernel's", "≤ 2 048 B", each <= 2048,
        ),
        Figure(
            f"cost of a cash_out beside {count(run['idle'])} idle connections",
            f"{run['cpu_us_beside']:.1f} µs of CPU, {ratio:.2f} ×",
            f"without, before / after: {without} µs", "≤ 1.2 ×",
            _enough(run["operations_min"], ratio <= 1.2),
        ),
    ]  # fmt: skip


def _enough(operations: int, reached: bool) -> bool | None:
    """Nothing can be said where there were few operations: CPU time comes in hundredths."""
    return reached if operations >= COMPARED_MIN else None


def _history(run: dict[str, Any]) -> list[Figure]:
    rows, ratio, recovery = run["rows"], run["cpu_ratio"], run["recovery"]
    past = rows[-1]["past_really"]
    return [
        Figure(
            f"cost of a cash_out after {count(past)} operations",
            f"{rows[-1]['server_cpu_us_per_operation']:.1f} µs of CPU, {ratio:.2f} ×",
            f"after {count(rows[0]['past_really'])}: "
            f"{rows[0]['server_cpu_us_per_operation']:.1f} µs", "≤ 1.5 ×",
            _enough(min(row["operations"] for row in rows), ratio <= 1.5),
        ),
        Figure(
            f"recovery of {count(recovery['records'])} records", f"{recovery['seconds']:.2f} s",
            f"{count(recovery['records_per_s'])} records/s; "
            f"10 M would take {recovery['ten_million_s']:.1f} s",
            "10 M in ≤ 10 s", recovery["ten_million_s"] <= 10,
        ),
    ]  # fmt: skip


def _past(run: dict[str, Any]) -> list[Figure]:
    last = run["rows"][-1]
    ratio = max(run["cash_out_ratio"], run["deposit_ratio"])
    return [
        Figure(
            f"deciding an operation after {count(last['past'])}",
            f"{last['cash_out_us']:.1f} µs a cash_out, {ratio:.2f} ×",
            f"{last['bytes_each']:.0f} bytes of memory each", "≤ 1.5 × after 50 M", None,
        )
    ]  # fmt: skip


def _accounts(rows: list[dict[str, float]]) -> list[Figure]:
    first, last = rows[0], rows[-1]
    ratio = last["hold_ns"] / first["hold_ns"]
    return [
        Figure(
            f"a hold in the ledger with {count(last['accounts'])} accounts",
            f"{last['hold_ns']:.0f} ns, {ratio:.2f} ×",
            f"with {count(first['accounts'])}: {first['hold_ns']:.0f} ns", "≤ 1.5 ×", ratio <= 1.5,
        )
    ]  # fmt: skip


def _switch_job(run: dict[str, Any]) -> list[Figure]:
    rows = {row["name"]: row for row in run["rows"]}
    others = ", ".join(
        f"{name} {count(row['rate_per_s'])}/s ({row['troncal_times_as_fast']:.2f} ×)"
        for name, row in rows.items()
        if name != "troncal"
    )
    value = f"{count(rows['troncal']['rate_per_s'])}/s"
    return [Figure("durable cash_outs beside plain servers that write nothing", value, others, "",
                   None)]  # fmt: skip


_FIGURES: dict[str, Callable[[Any], list[Figure]]] = {
    "cash_out": _cash_out,
    "deep": _deep,
    "link": _link,
    "forward": _forward,
    "open_loop": _open_loop,
    "snapshots": _snapshots,
    "idle": _idle,
    "history": _history,
    "past": _past,
    "accounts": _accounts,
    "switch_job": _switch_job,
}


# ---- tables of the parts


def tables(results: Results) -> list[Table]:
    """A table for each part that was measured."""
    found = []
    for name, (heading, note, tell) in _TABLES.items():
        if name in results["parts"]:
            columns, rows = tell(results["parts"][name])
            found.append(Table(name, heading, note, columns, rows, results["commands"][name]))
    return found


Told = tuple[tuple[str, ...], list[tuple[str, ...]]]

_LATENCIES = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "p9999_ms", "max_ms")
_LATENCY_COLUMNS = ("p50 ms", "p90", "p99", "p99.9", "p99.99", "worst")


def _latencies(run: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{run[name]:.2f}" for name in _LATENCIES)


def _load_table(runs: Any) -> Told:
    rows: list[tuple[str, ...]] = [
        (
            f"{run['connections']} × {run['depth']}", count(run["rate_per_s"]), *_latencies(run),
            f"{run['server_cpu_us_per_operation']:.1f}", count(run["ceiling_rate_per_s"]),
            f"{run['ratio']:.2f}",
        )
        for run in (runs if isinstance(runs, list) else [runs])
    ]  # fmt: skip
    head = ("connections × depth", "a second", *_LATENCY_COLUMNS)
    return (*head, "CPU µs each", "echo a second", "ratio"), rows


def _open_table(runs: list[dict[str, Any]]) -> Told:
    rows: list[tuple[str, ...]] = [
        (
            count(run["rate_wanted_per_s"]), "yes" if run["busy"] else "no", *_latencies(run),
            ", ".join(f"{p['ms']:.1f} at {p['at_s']:.1f} s" for p in run["pauses"][:3]),
            f"{run['lag_p99_ms']:.2f} / {run['lag_max_ms']:.2f}",
            f"{run['echo_p99_ms']:.2f} / {run['echo_max_ms']:.2f}",
            f"{run['server_cpu_us_per_operation']:.1f}",
        )
        for run in runs
    ]  # fmt: skip
    return (
        "a second", "busy", *_LATENCY_COLUMNS, "longest pauses, ms", "client late p99 / worst",
        "echo p99 / worst", "CPU µs each",
    ), rows  # fmt: skip


def _snapshot_table(run: dict[str, Any]) -> Told:
    rows: list[tuple[str, ...]] = [(name, *_latencies(run[name])) for name in ("without", "with")]
    return ("snapshots", *_LATENCY_COLUMNS), rows


def _idle_table(run: dict[str, Any]) -> Told:
    rows: list[tuple[str, ...]] = [
        (count(number), f"{grown / 1e6:.2f}", count(grown / number) if number else "")
        for number, grown in run["memory"]
    ]
    return ("idle connections", "MB more", "bytes each"), rows


def _history_table(run: dict[str, Any]) -> Told:
    rows: list[tuple[str, ...]] = [
        (
            count(row["past_really"]), f"{row['server_cpu_us_per_operation']:.1f}",
            count(row["rate_per_s"]), *_latencies(row), f"{row['memory_bytes'] / 1e6:,.0f}",
        )
        for row in run["rows"]
    ]  # fmt: skip
    return ("past operations", "CPU µs each", "a second", *_LATENCY_COLUMNS, "node MB"), rows


def _past_table(run: dict[str, Any]) -> Told:
    rows: list[tuple[str, ...]] = [
        (
            count(row["past"]), f"{row['cash_out_us']:.2f}", f"{row['deposit_us']:.2f}",
            f"{row['bytes_each']:.0f}",
        )
        for row in run["rows"]
    ]  # fmt: skip
    return ("past operations", "cash_out µs", "deposit µs", "bytes each"), rows


def _accounts_table(rows: list[dict[str, float]]) -> Told:
    return ("accounts", "hold ns", "best", "capture ns", "best", "bytes each"), [
        (
            count(row["accounts"]), f"{row['hold_ns']:.0f}", f"{row['hold_best_ns']:.0f}",
            f"{row['capture_ns']:.0f}", f"{row['capture_best_ns']:.0f}",
            f"{row['bytes_per_account']:.0f}",
        )
        for row in rows
    ]  # fmt: skip


def _job_table(run: dict[str, Any]) -> Told:
    rows: list[tuple[str, ...]] = [
        (
            row["name"], count(row["rate_per_s"]), f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}",
            f"{row['server_cpu_us_per_operation']:.1f}", f"{row['troncal_times_as_fast']:.2f}",
        )
        for row in run["rows"]
    ]  # fmt: skip
    rows += [(name, "not measured: " + reason, "", "", "", "") for name, reason in
             run["missing"].items()]  # fmt: skip
    head = ("server", "a second", "p50 ms", "p99 ms", "CPU µs each", "troncal is … times as fast")
    return head, rows


def _codec_table(run: dict[str, Any]) -> Told:
    medians = {(row["codec"], row["case"]): row["median_per_s"] for row in run["rows"]}
    rows: list[tuple[str, ...]] = [
        (
            row["case"], row["codec"], count(row["median_per_s"]), count(row["best_per_s"]),
            f"{medians['troncal', row['case']] / row['median_per_s']:.1f}",
        )
        for row in sorted(run["rows"], key=lambda row: str(row["case"]))
    ]  # fmt: skip
    rows += [("", name, "not measured: not installed", "", "") for name in run["missing"]]
    return ("case", "codec", "median /s", "best /s", "troncal is … times as fast"), rows


def _foreign_table(run: dict[str, Any]) -> Told:
    rows: list[tuple[str, ...]] = [
        (
            row["case"], row["name"], count(row["median_per_s"]),
            f"{row['troncal_times_as_fast']:.2f}",
        )
        for row in run["rows"]
    ]  # fmt: skip
    rows += [("", name, "not measured: " + why, "") for name, why in run["missing"].items()]
    return ("case", "codec", "median /s", "troncal is … times as fast"), rows


def _commit_table(run: dict[str, Any]) -> Told:
    rows: list[tuple[str, ...]] = [
        (
            row["name"], count(row["records_per_s"]), str(row.get("p50_ms", "")),
            str(row.get("p99_ms", "")), str(row.get("max_ms", "")),
            f"{row['journal_times_as_fast']:.2f}",
        )
        for row in run["rows"]
    ]  # fmt: skip
    rows += [(name, "not measured: " + why, "", "", "", "") for name, why in
             run["missing"].items()]  # fmt: skip
    head = ("store", "records/s", "p50 ms", "p99 ms", "worst ms")
    return (*head, "the journal is … times as fast"), rows


_CLOSED = (
    "All three roles in one process, MAC on, code verified, a card for every operation, every "
    "answer durable. Closed loop by a native client on the same CPUs; the echo is the same client "
    "with the same frames against a bare native epoll echo, in the same run."
)
_TABLES: dict[str, tuple[str, str, Callable[[Any], Told]]] = {
    "cash_out": ("cash_out, terminals in lock step", _CLOSED, _load_table),
    "deep": ("cash_out, pipelined", _CLOSED, _load_table),
    "link": (
        "Holds over one ISO 8583 link",
        "ceibo alone; each hold with AES-CMAC and a sealed one-time code, decided and durable "
        "before its 0110 leaves.",
        _load_table,
    ),
    "forward": (
        "The forwarding hop",
        "terminal → red → remote platform → red → terminal. The platform is a native process that "
        "approves; each cash_out is two requests to it, and durable at red before the first "
        "leaves and before the terminal is answered. MACs on both hops. One more process shares "
        "the CPUs, and the echo has one hop where this has two.",
        _load_table,
    ),
    "open_loop": (
        "Latency at a given rate, open loop",
        "Requests are due at fixed instants, and each latency counts from the instant when its "
        "request was due. Busy: another process asks for /metrics and signs on and off without "
        "pause. “Client late” is how long after its instant a request left the client, which is "
        "part of all latencies and no fault of the switch.",
        _open_table,
    ),
    "snapshots": (
        "Snapshots under load",
        "One snapshot after the other, open loop.",
        _snapshot_table,
    ),
    "idle": (
        "Idle connections",
        "Anonymous memory of the node while silent terminals sign on.",
        _idle_table,
    ),
    "history": (
        "Past operations",
        "One node, filled with deposits between the measurements.",
        _history_table,
    ),
    "past": (
        "Past operations, the state alone",
        "CPU time of deciding, in this process, without network; those before it are deposits. "
        "Memory bounds how many there can be: what did not fit was left out.",
        _past_table,
    ),
    "accounts": (
        "Accounts",
        "The ledger alone: batches of 1024 commands on random pairs of accounts, records encoded.",
        _accounts_table,
    ),
    "switch_job": (
        "The same job on trio, asyncio and uvloop",
        "The peers read a frame, verify its MAC, look an account up, move the amount and answer "
        "with a MAC. They verify no code, hold and capture nothing, recognise no repeat and write "
        "nothing to disk; troncal does all of that. 64 terminals in lock step.",
        _job_table,
    ),
    "codec": (
        "ISO 8583 beside codecs of Python",
        "A message of 17 elements, 181 bytes; one thread.",
        _codec_table,
    ),
    "codecs": (
        "ISO 8583 beside codecs of other languages",
        "The same message; theirs called from their own language, ours from Python. decode: ours "
        "checks the whole message and makes its elements only when they are asked for.",
        _foreign_table,
    ),
    "group_commit": (
        "Group commit",
        "Groups of 256 records of 200 bytes, each durable before the next begins, on one disk.",
        _commit_table,
    ),
}
