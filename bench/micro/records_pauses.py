"""The longest single put while a record store grows: `python -m bench.micro.records_pauses`.

Every put is timed by itself, from the first record to the last, and so is a call that does nothing:
what that shows is the machine's own pauses. By the clock they count in full; by CPU time of the
thread (the second table) others that take the CPU do not. `--holds` does the same for a ledger that
places holds with keys, one command a call.
"""

import argparse
import gc
import json
import sys
import time
from array import array
from collections.abc import Callable

from core_ext import Batch, Ledger, Records
from core_ext._ledger import NullSink

NOW = 1_790_000_000_000_000_000
DAY = NOW // 86_400_000_000_000
CLOCKS = {"by the clock": time.perf_counter_ns, "by CPU time": time.thread_time_ns}
PARTS = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "p99.999": 0.99999}
SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835  # odd, so all keys differ

Call = Callable[[int, bytes], object]


def key(number: int) -> bytes:
    return (number * SPREAD % 2**128).to_bytes(16, "little")


def nothing() -> Call:
    return lambda number, key: None


def puts(value_bytes: int) -> Call:
    records, value = Records(bytes_max=1 << 35), bytes(value_bytes)

    def put(number: int, key: bytes) -> None:
        records.put(1, key, value)

    return put


def holds(count: int) -> Call:
    ledger, batch = Ledger(holds_max=count, keys_max=count, sink=NullSink()), Batch()
    accounts = [number.to_bytes(16, "little") for number in range(1001)]
    for account in accounts:
        batch.create_account(account, ledger=600, code=1)
    assert not any(ledger.apply(batch, NOW))

    def hold(number: int, key: bytes) -> None:
        at = number % 1000
        batch.clear()
        batch.hold(key, accounts[at], accounts[at + 1], 5, day=DAY, key=key)
        ledger.apply(batch, NOW)

    return hold


def run(call: Call, count: int, clock: Callable[[], int]) -> "array[int]":
    """Nanoseconds of each call, sorted."""
    took = array("q", bytes(8 * count))
    for number in range(count):
        name = key(number)
        began = clock()
        call(number, name)
        took[number] = clock() - began
    return array("q", sorted(took))


def row(took: "array[int]") -> dict[str, float]:
    out = {name: round(took[int(len(took) * part)] / 1000, 2) for name, part in PARTS.items()}
    out["longest"] = round(took[-1] / 1000, 1)
    out["above 1 ms"] = sum(one > 1_000_000 for one in took[-10_000:])
    return out


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--value-bytes", type=int, default=200)
    parser.add_argument("--holds", type=int, default=0, help="so many holds with keys as well")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    subjects: list[tuple[str, int, Callable[[], Call]]] = [
        ("nothing", chosen.records, nothing),
        ("put", chosen.records, lambda: puts(chosen.value_bytes)),
    ]
    if chosen.holds:
        subjects.append(("hold", chosen.holds, lambda: holds(chosen.holds)))
    gc.disable()
    for title, clock in CLOCKS.items():
        rows = {name: row(run(make(), count, clock)) for name, count, make in subjects}
        if chosen.json:
            sys.stdout.write(json.dumps({title: rows}) + "\n")
            continue
        columns = [*PARTS, "longest", "above 1 ms"]
        sys.stdout.write(f"{chosen.records:,} calls, us {title}\n{'':>10}")
        sys.stdout.write("".join(f"{column:>12}" for column in columns) + "\n")
        for name, figures in rows.items():
            cells = "".join(f"{figures[column]:>12}" for column in columns)
            sys.stdout.write(f"{name:>10}{cells}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
