"""The exposition of metrics, read back with prometheus-client's own parser."""

import os
import time
from collections.abc import Iterator

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from switch.ops.metrics import (
    LATENCY_BOUNDS_NS,
    SERIES_MAX,
    TURN_S,
    LoopClock,
    Metrics,
    open_files,
    resident_bytes,
    start_time_s,
)

Key = tuple[str, tuple[tuple[str, str], ...]]


def read(metrics: Metrics) -> dict[Key, float]:
    text = metrics.exposition().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return read(metrics)[name, tuple(sorted(labels.items()))]


class Block:
    def __init__(self, **values: int) -> None:
        self.values = values

    def as_dict(self) -> dict[str, int]:
        return self.values


class Latencies:
    """What a native histogram offers: upper bounds of its own, cumulative."""

    count = 10
    sum = 3_000_000_000

    def buckets(self) -> Iterator[tuple[int, int]]:
        yield from ((90_000, 1), (150_000, 4), (210_000, 5), (1_000_000, 7), (70_000_000_000, 10))


def test_a_block_of_counters_is_read_at_each_scrape() -> None:
    block = Block(frames=3, bad_macs=0)
    metrics = Metrics()
    metrics.add_counters("session", block, "Frames of sessions.")
    assert value(metrics, "troncal_session_frames_total") == 3
    block.values["frames"] = 4
    assert value(metrics, "troncal_session_frames_total") == 4
    assert value(metrics, "troncal_session_bad_macs_total") == 0


def test_gauges_and_counters_with_labels() -> None:
    metrics = Metrics()
    metrics.add_gauge("saf_depth", "Waiting.", lambda: {("sicoop",): 2, ("ceibo",): 0}, ["link"])
    metrics.add_counter("answers", "By code.", lambda: {("00", "cash_out"): 9}, ["code", "kind"])
    assert value(metrics, "troncal_saf_depth", link="sicoop") == 2
    assert value(metrics, "troncal_answers_total", code="00", kind="cash_out") == 9


def test_a_histogram_is_folded_without_overstating() -> None:
    metrics = Metrics()
    metrics.add_histogram("cash_out", "From frame to answer.", Latencies())
    values = read(metrics)

    def below(bound: str) -> float:
        return values["troncal_cash_out_seconds_bucket", (("le", bound),)]

    assert [below(le) for le in ("0.0001", "0.0002", "0.0005", "0.001", "50.0")] == [1, 4, 5, 7, 7]
    assert below("+Inf") == values["troncal_cash_out_seconds_count", ()] == 10
    assert values["troncal_cash_out_seconds_sum", ()] == 3.0
    assert LATENCY_BOUNDS_NS[0] == 100_000
    assert LATENCY_BOUNDS_NS[-1] == 50_000_000_000


def test_a_broken_source_hides_nothing_else() -> None:
    def broken() -> int:
        raise RuntimeError("no journal yet")

    metrics = Metrics()
    metrics.add_gauge("broken", "Raises.", broken)
    metrics.add_gauge("sound", "One.", lambda: 1)
    assert value(metrics, "troncal_sound") == 1
    assert value(metrics, "troncal_metrics_failures_total") == 2
    assert ("troncal_broken", ()) not in read(metrics)


def test_series_are_bounded() -> None:
    metrics = Metrics()
    metrics.add_gauge("wide", "Too many.", lambda: {(str(i),): i for i in range(1500)}, ["peer"])
    values = read(metrics)
    assert sum(name == "troncal_wide" for name, _ in values) == SERIES_MAX
    assert values["troncal_metrics_series_dropped_total", ()] == 500


@pytest.mark.parametrize("name", ["", "Upper", "a-b", "1a", "troncal_x", "x_total", "a\n", "used"])
def test_names_are_checked(name: str) -> None:
    metrics = Metrics()
    metrics.add_gauge("used", "Once.", lambda: 1)
    with pytest.raises(ValueError, match="metric"):
        metrics.add_gauge(name, "Bad name.", lambda: 1)


def test_every_name_has_our_prefix() -> None:
    metrics = Metrics()
    metrics.add_process()
    metrics.add_loop(LoopClock())
    metrics.add_counters("net", Block(turns=1), "Turns.")
    names = {name for name, _ in read(metrics)}
    assert len(names) == 11
    assert all(name.startswith("troncal_") for name in names)


def test_process_figures() -> None:
    assert 1 << 20 < resident_bytes() < 1 << 36
    before = open_files()
    read_end, write_end = os.pipe()
    assert open_files() == before + 2
    os.close(read_end)
    os.close(write_end)
    assert 0 < time.time() - start_time_s() < 86_400


def test_loop_clock() -> None:
    now_ns = 0
    clock = LoopClock(lambda: now_ns)
    for busy_ns, idle_ns in ((3_000_000, 1_000_000), (1_000_000, 5_000_000)):
        now_ns += busy_ns
        clock.before_io_wait(1.0)
        now_ns += idle_ns
        clock.after_io_wait(1.0)
    assert clock.turns == 2
    assert clock.busy_s() == 0.004
    assert clock.ratio() == 0.4
    assert clock.longest_s() == 0.003
    assert clock.longest_s() == 0.0
    assert clock.ratio() == 0.0


async def test_loop_clock_as_an_instrument() -> None:
    clock = LoopClock()
    trio.lowlevel.add_instrument(clock)
    try:
        await trio.sleep(0.01)
        await trio.sleep(0.01)
    finally:
        trio.lowlevel.remove_instrument(clock)
    assert clock.turns >= 2
    assert 0 <= clock.ratio() <= 1


def test_histograms_of_one_kind_are_told_apart_by_their_label() -> None:
    metrics = Metrics()
    ways = {"bank": Latencies()}
    metrics.add_histograms("link_answer", "From request to answer.", lambda: ways, "link")
    ways["ceibo"] = Latencies()  # read at each scrape: links come and go
    for link in ways:
        assert value(metrics, "troncal_link_answer_seconds_count", link=link) == 10
        assert value(metrics, "troncal_link_answer_seconds_bucket", link=link, le="+Inf") == 10
        assert value(metrics, "troncal_link_answer_seconds_sum", link=link) == 3.0


@pytest.mark.timed
async def test_others_have_their_turns_while_a_page_is_made() -> None:
    metrics, turns, over = Metrics(), 0, False

    def slow() -> int:
        until_s = time.perf_counter() + 2 * TURN_S
        while time.perf_counter() < until_s:
            pass
        return 1

    for number in range(10):
        metrics.add_gauge(f"slow_{number}", "Takes its time.", slow)

    async def count() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        text = await metrics.exposition_in_turns()
        over = True
    assert turns >= 9  # in the last pass either may come first
    assert text == metrics.exposition()
