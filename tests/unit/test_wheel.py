"""The timer wheel against a heap."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ext._wheel import Wheel, WheelFull
from tests.models.wheel import PlainWheel

MS = 1_000_000
# Near and far, on and beside the edges of ticks, slots and levels.
DELAYS = st.one_of(
    st.integers(0, 200 * MS),
    st.integers(0, 3 * 86_400_000 * MS),
    st.integers(0, 2**62),
    st.builds(
        lambda power, units, off: max(0, 64**power * units * MS + off),
        st.integers(0, 4),
        st.integers(1, 64),
        st.integers(-1, 1),
    ),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.integers(0, 40), DELAYS),
        st.tuples(st.just("cancel"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("advance"), st.just(0), DELAYS),
        st.tuples(st.just("sleep"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@given(STEPS, st.sampled_from([1, 7, MS, 1000 * MS]), st.integers(0, 2**61))
def test_it_does_what_a_heap_does(steps, tick_ns, now):
    wheel, plain = Wheel(tick_ns), PlainWheel()
    assert wheel.advance(now) == []
    for what, timer, delay in steps:
        if what == "arm":
            deadline = min(now + delay, 2**63 - 1)
            wheel.arm(timer, deadline)
            plain.arm(timer, deadline)
        elif what == "cancel":
            assert wheel.cancel(timer) == plain.cancel(timer)
        else:
            now = min(now + delay, 2**63 - 1)
            if what == "sleep" and wheel.next_ns is not None:
                now = max(now, wheel.next_ns)
            assert wheel.advance(now) == plain.advance(now)
        assert len(wheel) == len(plain.armed)
        assert (wheel.next_ns is None) == (not plain.armed)
        if plain.armed:
            assert wheel.next_ns <= min(plain.armed.values())
    assert sorted(wheel.advance(2**63 - 1)) == sorted(plain.armed)
    assert wheel.next_ns is None


def test_sleeping_until_next_ns_always_gets_there():
    """Even where the earliest was cancelled, waking at `next_ns` makes progress."""
    wheel = Wheel()
    wheel.advance(5 * MS)
    for i in range(50):
        wheel.arm(i, 10**12 + i * 10**9)
    for i in range(49):
        assert wheel.cancel(i)
    now, wakes = 5 * MS, 0
    due: list[int] = []
    while not due:
        now = max(now + 1, wheel.next_ns)
        due = wheel.advance(now)
        wakes += 1
        assert wakes < 20
    assert (due, now) == ([49], 10**12 + 49 * 10**9)


def test_next_ns_is_exact_without_cancellation():
    wheel = Wheel()
    wheel.advance(123_456_789)
    wheel.arm(1, 10**15 + 7)
    wheel.arm(2, 10**15 + 3)
    assert wheel.next_ns == 10**15 + 3
    assert wheel.advance(10**15 + 2) == []
    assert wheel.next_ns == 10**15 + 3
    assert wheel.advance(10**15 + 3) == [2]
    assert wheel.next_ns == 10**15 + 7


def test_never_early_and_not_a_tick_late():
    wheel = Wheel(MS)
    wheel.arm(1, 10 * MS + 500)
    assert wheel.advance(10 * MS + 499) == []
    assert wheel.advance(10 * MS + 500) == [1]


def test_rearming_replaces():
    wheel = Wheel()
    wheel.arm(1, 5 * MS)
    wheel.arm(1, 50 * MS)
    assert len(wheel) == 1
    assert wheel.advance(20 * MS) == []
    wheel.arm(1, 21 * MS)
    assert wheel.advance(21 * MS) == [1]
    assert wheel.advance(99 * MS) == []


def test_past_deadlines_are_due_at_once_and_a_clock_may_fall_back():
    wheel = Wheel()
    wheel.advance(1000 * MS)
    wheel.arm(1, 3)
    assert wheel.next_ns == 3
    assert wheel.advance(2) == []
    assert wheel.advance(3) == [1]
    wheel.arm(2, 1500 * MS)
    assert wheel.advance(10 * MS) == []
    assert wheel.advance(1500 * MS) == [2]


def test_order_of_equal_deadlines_is_by_id():
    wheel = Wheel()
    for timer in (5, 2**64 - 1, 9, 0):
        wheel.arm(timer, 7 * MS)
    assert wheel.advance(7 * MS) == [0, 5, 9, 2**64 - 1]


def test_many_timers_come_out_in_order():
    wheel = Wheel()
    deadlines = {i: (i * 2_654_435_761) % (3600 * 10**9) for i in range(20_000)}
    for timer, deadline in deadlines.items():
        wheel.arm(timer, deadline)
    due = [timer for now in range(0, 3601 * 10**9, 40 * 10**9) for timer in wheel.advance(now)]
    assert due == sorted(deadlines, key=lambda timer: (deadlines[timer], timer))
    assert len(wheel) == 0


def test_the_limit_is_kept_and_changes_nothing():
    wheel = Wheel(timers_max=3)
    for timer in range(3):
        wheel.arm(timer, MS)
    with pytest.raises(WheelFull):
        wheel.arm(3, MS)
    wheel.arm(2, 2 * MS)
    assert wheel.advance(MS) == [0, 1]
    wheel.arm(3, 2 * MS)
    assert wheel.advance(2 * MS) == [2, 3]


@pytest.mark.parametrize("bad", [0, -1])
def test_a_tick_is_positive(bad):
    with pytest.raises(ValueError):
        Wheel(bad)


def test_bad_arguments():
    wheel = Wheel()
    with pytest.raises(ValueError):
        wheel.arm(1, -1)
    for timer in (-1, 2**64):
        with pytest.raises(OverflowError):
            wheel.arm(timer, 1)
    with pytest.raises(OverflowError):
        wheel.arm(1, 2**63)
    with pytest.raises(ValueError):
        Wheel(timers_max=0)
    with pytest.raises(TypeError):
        pickle.dumps(wheel)
    assert len(wheel) == 0
