"""What a command costs as the number of accounts grows: `python -m bench.micro.ledger_scale`.

For each size: open the accounts, then holds on random pairs of them in batches (`--batch`), then
their captures in another random order, then all is forgotten. That is done twice and the second
time is measured: entries given back are taken again, from wherever they lie, as in a node that has
run for a while. With `--fresh` the first time is measured, where the tables grow and the machine
has to find memory for them. Records are encoded and handed to a native sink that drops them
(`NullSink`), or not encoded at all (`none`). Only `Ledger.apply` is timed: filling a batch is the
caller's cost and is given apart. Figures are ns a command, median and best of the batches; `--cpu`
takes the thread's CPU time instead of the clock, for a machine that others use as well.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from core_ext._batch import Batch
from core_ext._ledger import ACCOUNT_BYTES, HOLD_BYTES, KEY_BYTES, Ledger, NullSink
from core_ext.results import Result

BATCH = 1024
HOLDS = 524_288  # a measurement
SIZES = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
NOW = 1_790_000_000_000_000_000
DAY = NOW // 86_400_000_000_000

Clock = Callable[[], int]  # nanoseconds


def account(number: int) -> bytes:
    return number.to_bytes(16, "little")


def hold_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def timed(ledger: Ledger, batch: Batch, clock: Clock) -> float:
    """Nanoseconds a command of one applied batch; every command must have been done."""
    began = clock()
    results = ledger.apply(batch, NOW)
    took = clock() - began
    assert not any(results), f"refused: {sorted(set(results))}"
    return took / len(batch)


def forget_all(ledger: Ledger) -> None:
    batch = Batch()
    batch.forget(NOW + 1)
    while ledger.apply(batch, NOW)[0] == Result.PARTIAL:
        pass
    assert ledger.counts()["holds"] == ledger.counts()["keys"] == 0


def run(
    numbers: Sequence[range], ledger: Ledger, fill: Callable[[Batch, range], None], clock: Clock
) -> tuple[float, float, float]:
    """Ns a command over so many batches: median and best of applying, median of filling."""
    batch = Batch()
    applied, filled = [], []
    for held in numbers:
        batch.clear()
        began = time.perf_counter_ns()
        fill(batch, held)
        filled.append((time.perf_counter_ns() - began) / len(held))
        applied.append(timed(ledger, batch, clock))
    return statistics.median(applied), min(applied), statistics.median(filled)


def measure(
    size: int,
    *,
    each: int = BATCH,
    holds: int = HOLDS,
    sink: bool = True,
    keys: bool = False,
    fresh: bool = False,
    clock: Clock = time.perf_counter_ns,
    seed: int = 1,
) -> dict[str, float]:
    """One row of the table."""
    draw = random.Random(seed)
    ledger = Ledger(
        accounts_max=size,
        holds_max=holds,
        keys_max=holds,
        sink=NullSink() if sink else None,
    )
    batch = Batch()
    began = time.perf_counter_ns()
    for start in range(0, size, BATCH):
        batch.clear()
        for number in range(start, min(start + BATCH, size)):
            batch.create_account(account(number), ledger=600, code=1)
        assert not any(ledger.apply(batch, NOW))
    opened = (time.perf_counter_ns() - began) / size
    empty = ledger.counts()["bytes"]

    def place(batch: Batch, held: range) -> None:
        for at in held:
            debit = draw.randrange(size)
            credit = (debit + draw.randrange(1, size)) % size
            key = hold_id(at) if keys else None
            batch.hold(hold_id(at), account(debit), account(credit), 5, day=DAY, key=key, digest=1)

    order = list(range(holds))
    draw.shuffle(order)

    def capture(batch: Batch, held: range) -> None:
        for at in held:
            batch.capture(hold_id(order[at]))

    numbers = [range(start, min(start + each, holds)) for start in range(0, holds, each)]
    if not fresh:
        run(numbers, ledger, place, clock)
        run(numbers, ledger, capture, clock)
        forget_all(ledger)
    hold_ns, hold_best, fill_ns = run(numbers, ledger, place, clock)
    capture_ns, capture_best, _ = run(numbers, ledger, capture, clock)
    return {
        "accounts": size,
        "hold_ns": round(hold_ns, 1),
        "hold_best_ns": round(hold_best, 1),
        "capture_ns": round(capture_ns, 1),
        "capture_best_ns": round(capture_best, 1),
        "fill_hold_ns": round(fill_ns, 1),
        "open_account_with_fill_ns": round(opened, 1),
        "bytes_per_account": round(empty / size, 1),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=BATCH, help="commands a batch")
    parser.add_argument("--holds", type=int, default=HOLDS, help="holds a measurement")
    parser.add_argument("--accounts-max", type=int, default=SIZES[-1])
    parser.add_argument("--no-sink", action="store_true", help="apply without encoding records")
    parser.add_argument("--keys", action="store_true", help="every hold brings an idempotency key")
    parser.add_argument("--fresh", action="store_true", help="measure while the tables grow")
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of the clock")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    gc.disable()
    rows = [
        measure(
            size,
            each=chosen.batch,
            holds=chosen.holds,
            sink=not chosen.no_sink,
            keys=chosen.keys,
            fresh=chosen.fresh,
            clock=time.thread_time_ns if chosen.cpu else time.perf_counter_ns,
            seed=chosen.seed,
        )
        for size in SIZES
        if size <= chosen.accounts_max
    ]
    if chosen.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    with_sink = "no sink" if chosen.no_sink else "records encoded into a native sink"
    sys.stdout.write(
        f"batches of {chosen.batch}, {with_sink}; "
        f"bytes: account {ACCOUNT_BYTES}, hold {HOLD_BYTES}, key {KEY_BYTES}, and their indexes\n"
        f"{'accounts':>10} {'hold ns':>9} {'best':>7} {'capture ns':>11} {'best':>7} "
        f"{'filling ns':>11} {'bytes/acct':>11}\n"
    )
    for row in rows:
        sys.stdout.write(
            f"{row['accounts']:>10} {row['hold_ns']:>9} {row['hold_best_ns']:>7} "
            f"{row['capture_ns']:>11} {row['capture_best_ns']:>7} "
            f"{row['fill_hold_ns']:>11} {row['bytes_per_account']:>11}\n"
        )
    if len(rows) > 1:
        ratio = rows[-1]["hold_ns"] / rows[0]["hold_ns"]
        best = rows[-1]["hold_best_ns"] / rows[0]["hold_best_ns"]
        sys.stdout.write(f"hold, largest against smallest: {ratio:.2f} x, best {best:.2f} x\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
