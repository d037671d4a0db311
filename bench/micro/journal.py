"""What group commit costs: the journal beside what one would use instead.

    python -m bench.micro.journal [--directory D] [--groups N] [--json]

Every row writes groups of 256 records of 200 bytes, one group after the other, each durable before
the next one begins, as a caller sees it: p50 and p99 are of whole groups, from the first record to
the news that it is durable. "pipelined" keeps the journal's buffers full instead.

    journal             O_DIRECT|O_DSYNC into zero-written segments, eventfd, poll
    journal, fallback   the same through the page cache and fdatasync
    append + fdatasync  one write and one fdatasync on a growing file
    sqlite              WAL, synchronous=FULL, one transaction and executemany per group

The directory must be on the file system in question; a temporary one beside the sources otherwise.
The machine's name, load and CPU count are part of the result: figures of a busy machine are none.
"""

import argparse
import json
import os
import platform
import select
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_ext._journal import Journal, Reader

RECORDS = 256
RECORD_BYTES = 200
PAYLOAD = bytes(range(RECORD_BYTES))


def percentile(values: list[int], q: float) -> float:
    """The nearest-rank percentile, in milliseconds from nanoseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1e6


def row(name: str, groups: int, total_s: float, times_ns: list[int], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "groups": groups,
        "records_per_s": round(groups * RECORDS / total_s),
    }
    if times_ns:
        found["p50_ms"] = round(percentile(times_ns, 0.50), 3)
        found["p99_ms"] = round(percentile(times_ns, 0.99), 3)
        found["max_ms"] = round(max(times_ns) / 1e6, 3)
    return {**found, **more}


def timed(groups: int, commit: Callable[[], None]) -> tuple[float, list[int]]:
    """Commit so many groups after a tenth as many to warm up; total seconds and each one's time."""
    for _ in range(groups // 10):
        commit()
    times = []
    begin = time.perf_counter_ns()
    for _ in range(groups):
        start = time.perf_counter_ns()
        commit()
        times.append(time.perf_counter_ns() - start)
    return (time.perf_counter_ns() - begin) / 1e9, times


def bench_journal(directory: str, groups: int, *, direct: bool, name: str) -> dict[str, Any]:
    journal = Journal(directory, direct=direct)
    journal.start()
    poll = select.poll()
    poll.register(journal.fileno(), select.POLLIN)

    def commit() -> None:
        append = journal.append
        for _ in range(RECORDS):
            append(200, PAYLOAD)
        seq = journal.seal()
        while journal.durable_seq < seq:
            poll.poll(1000)
            journal.clear_event()

    total_s, times = timed(groups, commit)
    direct = journal.direct
    journal.close()
    if journal.failure is not None:
        raise SystemExit(journal.failure)
    return row(name, groups, total_s, times, direct=direct)


def bench_pipelined(directory: str, groups: int) -> list[dict[str, Any]]:
    """All buffers under way all the time; then the same journal read back."""
    journal = Journal(directory)
    journal.start()
    append = journal.append
    poll = select.poll()
    poll.register(journal.fileno(), select.POLLIN)
    begin = time.perf_counter_ns()
    for _ in range(groups):
        for _ in range(RECORDS):
            append(200, PAYLOAD)
        journal.seal()
        while journal.open_count:
            poll.poll(1000)
            journal.clear_event()
            journal.seal()
    seq = journal.next_seq - 1
    while journal.durable_seq < seq:
        poll.poll(1000)
        journal.clear_event()
    total_s = (time.perf_counter_ns() - begin) / 1e9
    journal.close()
    written = row("journal, pipelined", groups, total_s, [])
    begin = time.perf_counter_ns()
    count = Reader(directory).replay([])
    total_s = (time.perf_counter_ns() - begin) / 1e9
    if count != seq:
        raise SystemExit(f"{count} records read, {seq} written")
    return [written, row("journal, read and verified", groups, total_s, [])]


def bench_append(directory: str, groups: int) -> dict[str, Any]:
    fd = os.open(Path(directory) / "append.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def commit() -> None:
        os.write(fd, b"".join([PAYLOAD for _ in range(RECORDS)]))
        os.fdatasync(fd)

    total_s, times = timed(groups, commit)
    os.close(fd)
    return row("append + fdatasync", groups, total_s, times)


def bench_sqlite(directory: str, groups: int) -> dict[str, Any]:
    base = sqlite3.connect(Path(directory) / "base.sqlite", isolation_level=None)
    base.execute("pragma journal_mode = wal")
    base.execute("pragma synchronous = full")
    base.execute("create table record (seq integer primary key, payload blob not null)")

    def commit() -> None:
        base.execute("begin immediate")
        base.executemany(
            "insert into record (payload) values (?)", [(PAYLOAD,) for _ in range(RECORDS)]
        )
        base.execute("commit")

    total_s, times = timed(groups, commit)
    base.close()
    return row("sqlite WAL FULL", groups, total_s, times)


def run(directory: str | None, groups: int) -> dict[str, Any]:
    """All rows, each in a directory of its own that is gone afterwards."""
    benches: list[Callable[[str], dict[str, Any] | list[dict[str, Any]]]] = [
        lambda d: bench_journal(d, groups, direct=True, name="journal"),
        lambda d: bench_journal(d, groups, direct=False, name="journal, fallback"),
        lambda d: bench_pipelined(d, groups),
        lambda d: bench_append(d, groups),
        lambda d: bench_sqlite(d, groups),
    ]
    parent = directory or str(Path(__file__).resolve().parent)
    rows: list[dict[str, Any]] = []
    for bench in benches:
        where = tempfile.mkdtemp(prefix="bench-journal-", dir=parent)
        try:
            found = bench(where)
        finally:
            shutil.rmtree(where)
        rows += found if isinstance(found, list) else [found]
    return {
        "records_per_group": RECORDS,
        "record_bytes": RECORD_BYTES,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.micro.journal", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--directory", help="where to write; must exist")
    parser.add_argument("--groups", type=int, default=4000, help="timed groups a row (4000)")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    given = parser.parse_args(arguments)
    result = run(given.directory, given.groups)
    if given.json:
        print(json.dumps(result))
        return 0
    print(
        f"{RECORDS} records of {RECORD_BYTES} bytes a group; {result['machine']}, "
        f"{result['cpus']} CPUs, load {result['load_1m']}\n"
    )
    print(f"{'':<28}{'records/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    for each in result["rows"]:
        times = "".join(f"{each.get(key, ''):>9}" for key in ("p50_ms", "p99_ms", "max_ms"))
        print(f"{each['name']:<28}{each['records_per_s']:>12,}{times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
