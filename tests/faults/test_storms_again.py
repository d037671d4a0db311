"""The same seed is the same storm: of each product, and of the cashiers' simulation.

Two runs are compared by the hash of what happened, group by group of each journal, and that of the
simulation also between processes whose dictionaries hash otherwise.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.faults import test_cip_storms, test_transfiya_storms, test_webpay_storms
from tests.faults.steady import Trace

SEED = 3
Run = Callable[[Path], Awaitable[Trace]]


def again(run: Callable[[Path, trio.testing.MockClock], Awaitable[Trace]], *, jumps: bool) -> Trace:
    """One run from the beginning of its clock. `jumps`: it passes by itself."""
    clock = trio.testing.MockClock(autojump_threshold=0 if jumps else float("inf"))
    with tempfile.TemporaryDirectory() as directory:
        return trio.run(run, Path(directory), clock, clock=clock)


def test_cip() -> None:
    def run(source: str) -> Trace:
        return again(lambda d, _: test_cip_storms.steady_storm(d, source, SEED), jumps=True)

    for source in ("bank", "dimo"):
        compare(run(source), run(source))


def test_webpay() -> None:
    def run(way: str) -> Trace:
        return again(lambda d, c: test_webpay_storms.steady_storm(d, way, SEED, c), jumps=False)

    for way in test_webpay_storms.WAYS:
        compare(run(way), run(way))


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_transfiya() -> None:
    def run() -> Trace:
        return again(lambda d, c: test_transfiya_storms.steady_storm(d, SEED, c), jumps=False)

    compare(run(), run())


def compare(one: Trace, other: Trace) -> None:
    assert len(one.groups) > 20
    assert one.groups == other.groups
    assert one.hash == other.hash


PRINTED = "from tests.sim.__main__ import fingerprint; print(fingerprint({seed}))"


def test_the_simulation_in_two_processes() -> None:
    """Dictionaries and sets of the one are in another order than those of the other."""
    found = {
        subprocess.run(
            [sys.executable, "-c", PRINTED.format(seed=SEED)], capture_output=True, text=True,
            check=True, env=os.environ | {"PYTHONHASHSEED": hashes},
        ).stdout
        for hashes in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().strip()) == 64
