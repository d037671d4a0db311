"""`python -m tests.sim --seed N --seconds N`: schedule after schedule until the time is up.

Exit code 1 on a finding, with the seed and the shortest trace that still shows it. With
`--seconds 0` only the schedule of that seed is run, and what happened in it is printed.
"""

import argparse
import logging
import os
import secrets
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from hashlib import sha256

import structlog

from tests.sim.faults import plan
from tests.sim.schedule import Verdict, simulator

PIECE = 50  # schedules a worker runs before it reports
SEED_MAX = 10**9


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="first seed; none: any")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    seed = secrets.randbelow(SEED_MAX) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    if asked.seconds <= 0:
        return _one(seed)
    return _many(seed, asked.seconds, asked.workers)


def _one(seed: int) -> int:
    _quiet()
    with simulator() as simulated:
        verdict = simulated.run(plan(seed), thorough=True)
        print("\n".join(verdict.trace))
        if not verdict.finding:
            print("nothing is wrong")
            return 0
        _tell(verdict, simulated.shorter(verdict))
    return 1


def fingerprint(first: int, count: int = 10) -> str:
    """What these schedules came to, as one hash: the same wherever they are run."""
    _quiet()
    with simulator() as simulated:
        runs = [simulated.run(plan(seed)).hash for seed in range(first, first + count)]
    return sha256("\n".join(runs).encode()).hexdigest()


def _many(first: int, seconds: float, workers: int) -> int:
    began = time.monotonic()
    count, seed = 0, first
    with ProcessPoolExecutor(workers, initializer=_quiet) as pool:
        running: set[Future[tuple[int, int | None]]] = set()
        found: int | None = None
        while found is None and (running or time.monotonic() - began < seconds):
            while len(running) < workers and time.monotonic() - began < seconds:
                running.add(pool.submit(_piece, seed))
                seed += PIECE
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for ended in done:
                number, bad = ended.result()
                count += number
                found = bad if found is None else found
    passed = time.monotonic() - began
    print(f"{count} schedules in {passed:.0f} s, {count / passed * 60:.0f} a minute")
    return 0 if found is None else _one(found)


def _piece(first: int) -> tuple[int, int | None]:
    """Run some; how many it were, and the seed of the first that failed."""
    with simulator() as simulated:
        for seed in range(first, first + PIECE):
            if simulated.run(plan(seed)).finding:
                return seed - first + 1, seed
    return PIECE, None


def _quiet() -> None:
    """Alarms are part of every storm."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _tell(verdict: Verdict, shortest: Verdict) -> None:
    print(f"\nseed {verdict.plan.seed}: {verdict.finding}\n\nThe shortest that still fails:")
    print(f"  layout {'-'.join(shortest.plan.layout) or 'apart'}, rates {shortest.plan.rates}")
    for errand in shortest.plan.errands:
        print(f"  {errand}")
    for disturbance in shortest.plan.disturbances:
        print(f"  {disturbance}")
    print("\n".join(shortest.trace))
    print(f"{shortest.finding}\n\nAgain: make sim SEED={verdict.plan.seed} SECONDS=0")


if __name__ == "__main__":
    sys.exit(main())
