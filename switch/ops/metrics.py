"""Metrics in the text format of Prometheus, read from native counters when somebody asks.

Nothing is counted here: the data plane counts in `core_ext._counters` (an integer addition), and a
scrape reads the integers. There is no registry and no global state; a node has one `Metrics`.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

PREFIX = "troncal_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAMILIES_MAX = 500
SERIES_MAX = 1000
"""Series of one family; more are left out and counted in `troncal_metrics_series_dropped_total`."""

LATENCY_BOUNDS_NS = tuple(
    mantissa * 10**exponent for exponent in range(5, 11) for mantissa in (1, 2, 5)
)
"""Upper bounds of histogram buckets, 100 µs to 50 s: the native ones are too fine to store."""

TURN_S = 0.0002  # at most, and one family, of a page before others have their turn

_NAME = re.compile(r"^[a-z][a-z0-9_]*\Z")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Number = int | float
Series = Mapping[tuple[str, ...], Number]


class CounterBlock(Protocol):
    """A block of native counters (`core_ext._counters.Counters`)."""

    def as_dict(self) -> Mapping[str, int]: ...


class LatencyHistogram(Protocol):
    """A native histogram of nanoseconds (`core_ext._counters.Histogram`)."""

    @property
    def count(self) -> int: ...

    @property
    def sum(self) -> int: ...

    def buckets(self) -> Iterable[tuple[int, int]]: ...


class Metrics:
    """Everything a node shows to its monitoring. Names are given without the `troncal_` prefix.

    Sources are added while the node is built and read at each `exposition()`, in the thread that
    owns them. A source that raises is left out of that exposition and counted, so that one broken
    gauge does not blind the operator.

    Raises (all `add_…`): ValueError for a name that is no metric name, is used already, or is one
    too many (`FAMILIES_MAX`).
    """

    def __init__(self) -> None:
        self._families: dict[str, Callable[[], Metric]] = {}
        self._counter_blocks: dict[str, tuple[CounterBlock, str]] = {}
        self._failures = 0
        self._dropped = 0

    def add_counters(self, prefix: str, block: CounterBlock, help_text: str) -> None:
        """Each counter of a block as `troncal_<prefix>_<name>_total`."""
        self._check(prefix)
        self._counter_blocks[prefix] = (block, help_text)

    def add_counter(
        self,
        name: str,
        help_text: str,
        read: Callable[[], Number | Series],
        labels: Sequence[str] = (),
    ) -> None:
        """A number that only grows, or one for each tuple of label values."""
        self._add(name, lambda: self._filled(CounterMetricFamily, name, help_text, labels, read()))

    def add_gauge(
        self,
        name: str,
        help_text: str,
        read: Callable[[], Number | Series],
        labels: Sequence[str] = (),
    ) -> None:
        """A number that goes up and down, or one for each tuple of label values."""
        self._add(name, lambda: self._filled(GaugeMetricFamily, name, help_text, labels, read()))

    def add_histogram(self, name: str, help_text: str, histogram: LatencyHistogram) -> None:
        """A latency histogram as `troncal_<name>_seconds`."""
        self._add(f"{name}_seconds", lambda: _histogram(f"{name}_seconds", help_text, histogram))

    def add_histograms(
        self,
        name: str,
        help_text: str,
        read: Callable[[], Mapping[str, LatencyHistogram] | Mapping[tuple[str, ...], Any]],
        *labels: str,
    ) -> None:
        """Several of one kind, by the value of their label; by a tuple where there are more."""
        whole = f"{name}_seconds"

        def collect() -> Metric:
            family = HistogramMetricFamily(PREFIX + whole, help_text, labels=labels)
            for values, histogram in list(read().items())[:SERIES_MAX]:
                known = [values] if isinstance(values, str) else list(values)
                family.add_metric(known, _folded(histogram), histogram.sum / 1e9)
            return family

        self._add(whole, collect)

    def add_process(self) -> None:
        """Memory, CPU time, open files and start time of this process, from /proc."""
        self.add_gauge("process_resident_bytes", "Resident memory.", resident_bytes)
        self.add_counter("process_cpu_seconds", "User and system CPU time.", time.process_time)
        self.add_gauge("process_open_files", "Open file descriptors.", open_files)
        self.add_gauge(
            "process_start_time_seconds", "Start of the process, Unix time.", start_time_s
        )

    def add_loop(self, loop: "LoopClock") -> None:
        """How busy the event loop is: at 1.0 the node is at its limit."""
        self.add_counter("loop_busy_seconds", "Time spent outside of waiting.", loop.busy_s)
        self.add_counter("loop_turns", "Passes of the event loop.", lambda: loop.turns)
        self.add_gauge("loop_busy_ratio", "Busy share since the last scrape.", loop.ratio)
        self.add_gauge(
            "loop_longest_turn_seconds", "Longest pass since the last scrape.", loop.longest_s
        )

    def exposition(self) -> bytes:
        """The whole text, in the order in which sources were added. `CONTENT_TYPE` is its type."""
        return b"".join(self.pieces())

    async def exposition_in_turns(self) -> bytes:
        """As `exposition`, with everybody else's turns in between.

        All of it takes above a millisecond, in which no terminal would be answered.
        """
        text, began_s = [], time.perf_counter()
        for piece in self.pieces():
            text.append(piece)
            if time.perf_counter() - began_s >= TURN_S:
                await trio.lowlevel.checkpoint()
                began_s = time.perf_counter()
        return b"".join(text)

    def pieces(self) -> Iterable[bytes]:
        """The text of one family after the other."""
        return (generate_latest(_Alone(family)) for family in self.collect())

    def collect(self) -> Iterable[Metric]:
        """All families with their present values; the interface `generate_latest` asks for."""
        yield from self._collect_blocks()
        for read in list(self._families.values()):
            try:
                family = read()
            except Exception:
                self._failures += 1
                continue
            yield family
        for name, text, value in (
            ("metrics_failures", "Sources that raised when they were read.", self._failures),
            ("metrics_series_dropped", "Series beyond the limit of a family.", self._dropped),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value=value)

    def _collect_blocks(self) -> Iterable[Metric]:
        for prefix, (block, help_text) in self._counter_blocks.items():
            try:
                values = block.as_dict()
            except Exception:
                self._failures += 1
                continue
            for name, value in values.items():
                yield CounterMetricFamily(f"{PREFIX}{prefix}_{name}", help_text, value=value)

    def _add(self, name: str, read: Callable[[], Metric]) -> None:
        self._check(name)
        self._families[name] = read

    def _check(self, name: str) -> None:
        if not _NAME.match(name) or name.startswith(PREFIX) or name.endswith("_total"):
            raise ValueError(f"{name!r} is no metric name (neither prefix nor _total belong to it)")
        if name in self._families or name in self._counter_blocks:
            raise ValueError(f"metric {name!r} exists already")
        if len(self._families) + len(self._counter_blocks) >= FAMILIES_MAX:
            raise ValueError(f"more than {FAMILIES_MAX} metrics")

    def _filled(
        self,
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        help_text: str,
        labels: Sequence[str],
        value: Number | Series,
    ) -> Metric:
        filled = family(PREFIX + name, help_text, labels=labels)
        if not isinstance(value, Mapping):
            filled.add_metric((), value)
            return filled
        for index, (key, number) in enumerate(value.items()):
            if index == SERIES_MAX:
                self._dropped += len(value) - SERIES_MAX
                break
            filled.add_metric(key, number)
        return filled


def _histogram(name: str, help_text: str, histogram: LatencyHistogram) -> Metric:
    return HistogramMetricFamily(
        PREFIX + name, help_text, buckets=_folded(histogram), sum_value=histogram.sum / 1e9
    )


def _folded(histogram: LatencyHistogram) -> list[tuple[str, float]]:
    """Fold the fine native buckets into ours.

    A native bucket that a bound cuts counts for the next one, so a share is never overstated.
    """
    folded: list[tuple[str, float]] = []
    below = 0
    native = iter(histogram.buckets())
    pending = next(native, None)
    for bound_ns in LATENCY_BOUNDS_NS:
        while pending is not None and pending[0] <= bound_ns:
            below = pending[1]
            pending = next(native, None)
        folded.append((str(bound_ns / 1e9), below))
    folded.append(("+Inf", histogram.count))
    return folded


class _Alone:
    """One family, as `generate_latest` asks for them."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


class LoopClock(trio.abc.Instrument):
    """Measures the event loop: time waiting for I/O against time working.

    Costs two clock readings a pass, not a task step. Install with
    `trio.lowlevel.add_instrument`.

    Attributes:
        turns: passes so far.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock_ns = clock_ns
        self._woke_ns = clock_ns()
        self._busy_ns = 0
        self._longest_ns = 0
        self._asked_ns = self._woke_ns
        self._asked_busy_ns = 0
        self.turns = 0

    def before_io_wait(self, timeout: float) -> None:
        """The loop has nothing left to do."""
        turn_ns = self._clock_ns() - self._woke_ns
        self._busy_ns += turn_ns
        self._longest_ns = max(self._longest_ns, turn_ns)
        self.turns += 1

    def after_io_wait(self, timeout: float) -> None:
        """Something is ready."""
        self._woke_ns = self._clock_ns()

    def busy_s(self) -> float:
        """Seconds of work so far, the present turn not included."""
        return self._busy_ns / 1e9

    def ratio(self) -> float:
        """Share of work, 0..1, since the last call."""
        now_ns = self._clock_ns()
        passed_ns = now_ns - self._asked_ns
        busy_ns = self._busy_ns - self._asked_busy_ns
        self._asked_ns, self._asked_busy_ns = now_ns, self._busy_ns
        return min(1.0, busy_ns / passed_ns) if passed_ns > 0 else 0.0

    def longest_s(self) -> float:
        """The longest turn since the last call, in seconds."""
        longest_ns, self._longest_ns = self._longest_ns, 0
        return longest_ns / 1e9


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE_BYTES


def open_files() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd")) - 1  # the listing itself holds one


def start_time_s() -> float:
    """When this process started, in Unix time."""
    with open("/proc/self/stat", "rb") as stat:
        # The name, in brackets, may hold blanks and brackets: count from the last bracket.
        started_ticks = int(stat.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", "rb") as stat:
        booted = next(line for line in stat if line.startswith(b"btime "))
    return int(booted.split()[1]) + started_ticks / _TICKS_PER_S
