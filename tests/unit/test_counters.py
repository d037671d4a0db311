"""Counters and histograms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ext._counters import Counters, Histogram

VALUES = st.lists(
    st.one_of(
        st.integers(0, 300),
        st.integers(0, 10**7),
        st.integers(0, 2**42 - 1),
        st.builds(lambda p, d: max(0, 2**p + d), st.integers(0, 41), st.integers(-1, 1)),
    ),
    min_size=1,
    max_size=200,
)


def nearest_rank(values, q):
    ordered = sorted(values)
    return ordered[max(1, math.ceil(q / 100 * len(ordered))) - 1]


@given(VALUES, st.sampled_from([0, 1, 25, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_never_low_and_less_than_one_percent_high(values, q):
    histogram = Histogram()
    histogram.record_many(values)
    exact = nearest_rank(values, q)
    assert exact <= histogram.percentile(q) <= exact + exact / 128
    assert histogram.count == len(values)
    assert histogram.sum == sum(values)
    assert histogram.max == max(values) == histogram.percentile(100)


@given(VALUES)
def test_scrape_buckets_are_exact(values):
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    buckets = histogram.buckets()
    assert len(buckets) == 56
    assert [upper for upper, _ in buckets] == sorted({upper for upper, _ in buckets})
    for upper, cumulative in buckets:
        assert cumulative == sum(value <= upper for value in values)


@given(VALUES, VALUES)
def test_merging_is_recording_both(first, second):
    one, other, both = Histogram(), Histogram(), Histogram()
    one.record_many(first)
    other.record_many(second)
    both.record_many(first + second)
    one.merge(other)
    assert one.buckets() == both.buckets()
    assert (one.count, one.sum, one.max) == (both.count, both.sum, both.max)
    for q in (1, 50, 99):
        assert one.percentile(q) == both.percentile(q)


def test_every_small_value_has_its_own_bucket():
    for value in range(256):
        histogram = Histogram()
        histogram.record(value)
        histogram.record(10**9)
        assert histogram.percentile(50) == value


def test_out_of_range_and_negative_values():
    histogram = Histogram()
    assert (histogram.percentile(50), histogram.max, histogram.count) == (0, 0, 0)
    histogram.record(-5)
    assert histogram.percentile(100) == 0
    histogram.record(2**62)
    assert histogram.max == 2**62 == histogram.percentile(99)
    assert histogram.buckets()[-1] == (2**38 * 3 // 4 - 1, 1)
    histogram.reset()
    assert (histogram.count, histogram.sum, histogram.max) == (0, 0, 0)
    assert histogram.buckets()[-1][1] == 0
    for bad in (-0.1, 100.1, float("nan")):
        with pytest.raises(ValueError):
            histogram.percentile(bad)


def test_counters():
    counters = Counters(("frames", "bad_macs"))
    counters.add(0)
    counters.add(1, 41)
    counters.add(1)
    assert counters.as_dict() == {"frames": 1, "bad_macs": 42}
    assert counters.get(1) == 42
    assert counters.names == ("frames", "bad_macs")
    for index in (-1, 2):
        with pytest.raises(IndexError):
            counters.add(index)
        with pytest.raises(IndexError):
            counters.get(index)
    with pytest.raises(OverflowError):
        counters.add(0, -1)
    assert counters.get(0) == 1


@pytest.mark.parametrize(
    ("names", "error"), [((), ValueError), (("a", "a"), ValueError), ((1,), TypeError)]
)
def test_counter_names(names, error):
    with pytest.raises(error):
        Counters(names)
