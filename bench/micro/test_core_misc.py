"""Micro-benchmarks of the records, the wheel, the counters and the journal's encoding.

    python -m pytest bench/micro/test_core_misc.py --benchmark-enable --benchmark-disable-gc

Each round does `BATCH` operations; divide by it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from core_ext._counters import Counters, Histogram
from core_ext._journal import Journal, Reader
from core_ext._records import Records
from core_ext._sink import MemorySink
from core_ext._wheel import Wheel

BATCH = 1000
KEYS = [i.to_bytes(16, "little") for i in range(20_000)]
VALUE = bytes(range(200))


@pytest.fixture
def journal() -> Iterator[Journal]:
    directory = tempfile.mkdtemp(prefix="troncal-bench-")
    journal = Journal(directory)
    journal.start()
    yield journal
    journal.close()
    shutil.rmtree(directory)


@pytest.mark.benchmark(group="journal")
def test_append(benchmark: Any, journal: Journal) -> None:
    benchmark.extra_info["operations"] = BATCH

    def work() -> None:
        append = journal.append
        for _ in range(BATCH):
            append(200, VALUE)
        journal.seal()

    def drain() -> None:
        while journal.busy or journal.open_count:
            journal.seal()

    benchmark.pedantic(work, setup=drain, rounds=200)


@pytest.mark.benchmark(group="records")
def test_put_with_journal(benchmark: Any, journal: Journal) -> None:
    """Replacing one of 20,000 records; the goal is 0.5 microseconds."""
    benchmark.extra_info["operations"] = BATCH
    records = Records(journal)
    for key in KEYS:
        records.put(1, key, VALUE)
        journal.seal()

    def work() -> None:
        put = records.put
        for key in KEYS[:BATCH]:
            put(1, key, VALUE, open=True, stamp=7)
        journal.seal()

    def drain() -> None:
        while journal.busy or journal.open_count:
            journal.seal()

    benchmark.pedantic(work, setup=drain, rounds=200)


@pytest.mark.benchmark(group="records")
def test_put_and_forget(benchmark: Any) -> None:
    """New records all the time, as many forgotten."""
    benchmark.extra_info["operations"] = BATCH
    records = Records()
    for key in KEYS:
        records.put(1, key, VALUE)

    def work() -> None:
        put = records.put
        for key in KEYS[:BATCH]:
            put(2, key, VALUE, stamp=7)
        assert records.forget(2, 8, BATCH) == BATCH

    benchmark(work)


@pytest.mark.benchmark(group="records")
def test_get(benchmark: Any) -> None:
    benchmark.extra_info["operations"] = BATCH
    records = Records()
    for key in KEYS:
        records.put(1, key, VALUE)

    def work() -> None:
        get = records.get
        for key in KEYS[:BATCH]:
            get(1, key)

    benchmark(work)


@pytest.mark.benchmark(group="records")
def test_replay_into_records(benchmark: Any) -> None:
    """100,000 puts over 20,000 keys, read from disk, verified and applied."""
    benchmark.extra_info["operations"] = 100_000
    directory = tempfile.mkdtemp(prefix="troncal-bench-")
    try:
        journal = Journal(directory)
        journal.start()
        records = Records(journal)
        for i in range(100_000):
            records.put(1, KEYS[i % len(KEYS)], VALUE, stamp=i)
            if i % 256 == 255:
                journal.seal()
        journal.close()

        def work() -> None:
            again = Records()
            assert Reader(directory).replay([(64, 95, again)], upto_seq=100_000) == 100_000
            assert again.digest() == records.digest()

        benchmark.pedantic(work, rounds=10, warmup_rounds=1)
    finally:
        shutil.rmtree(directory)


@pytest.mark.benchmark(group="records")
def test_put_with_memory_sink(benchmark: Any) -> None:
    benchmark.extra_info["operations"] = BATCH
    sink = MemorySink()
    records = Records(sink)

    def work() -> None:
        sink.records.clear()
        put = records.put
        for key in KEYS[:BATCH]:
            put(1, key, VALUE)

    benchmark(work)


@pytest.mark.benchmark(group="wheel")
@pytest.mark.parametrize("armed", [0, 100_000])
def test_arm_and_cancel(benchmark: Any, armed: int) -> None:
    benchmark.extra_info["operations"] = BATCH
    wheel = Wheel()
    for i in range(armed):
        wheel.arm(1 << 32 | i, 10**12 + i)

    def work() -> None:
        arm, cancel = wheel.arm, wheel.cancel
        for i in range(BATCH):
            arm(i, 30_000_000_000 + i)
        for i in range(BATCH):
            cancel(i)

    benchmark(work)


@pytest.mark.benchmark(group="wheel")
def test_expire(benchmark: Any) -> None:
    """Timers armed for 30 s and swept every millisecond."""
    benchmark.extra_info["operations"] = BATCH
    wheel = Wheel()
    now = 0

    def work() -> None:
        nonlocal now
        for i in range(BATCH):
            wheel.arm(i, now + 30_000_000_000 + 1000 * i)
        now += 30_002_000_000
        assert len(wheel.advance(now)) == BATCH

    benchmark(work)


@pytest.mark.benchmark(group="wheel")
def test_idle_sweep(benchmark: Any) -> None:
    """A turn with 100,000 timers armed and none due."""
    wheel = Wheel()
    for i in range(100_000):
        wheel.arm(i, 10**15 + i * 1_000_000)
    now = 0

    def work() -> None:
        nonlocal now
        now += 100_000
        wheel.advance(now)

    benchmark(work)


@pytest.mark.benchmark(group="counters")
def test_add(benchmark: Any) -> None:
    benchmark.extra_info["operations"] = BATCH
    counters = Counters(("frames", "bytes"))

    def work() -> None:
        add = counters.add
        for _ in range(BATCH):
            add(1, 200)

    benchmark(work)


@pytest.mark.benchmark(group="counters")
def test_record(benchmark: Any) -> None:
    benchmark.extra_info["operations"] = BATCH
    histogram = Histogram()

    def work() -> None:
        record = histogram.record
        for i in range(BATCH):
            record(i * 1009)

    benchmark(work)


@pytest.mark.benchmark(group="counters")
def test_scrape(benchmark: Any) -> None:
    histogram = Histogram()
    histogram.record_many(range(0, 10**9, 10**5))
    benchmark(lambda: (histogram.buckets(), histogram.percentile(99.9)))
