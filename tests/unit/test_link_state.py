"""The life of a connection as a table, echoes into silence, pauses between tries."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.net.link_state import MISSED_MAX, TRANSITIONS, Backoff, Silence, State, after

EVENTS = ("dial", "opened", "signed_on", "signed_off", "missed", "heard", "closed")


def test_every_state_can_be_left_and_closed_from():
    for state in State:
        assert after(state, "closed") is State.DOWN
        assert any(after(s, e) is state for s, e in TRANSITIONS), "it can be reached"


def test_up_is_reached_by_sign_on_only_or_by_being_heard_again():
    into_up = {(s, e) for (s, e), to in TRANSITIONS.items() if to is State.UP and s is not to}
    assert into_up == {
        (State.SIGNING_ON, "signed_on"),
        (State.DEGRADED, "signed_on"),
        (State.DEGRADED, "heard"),
    }


def test_what_cannot_happen_is_our_fault():
    impossible = set(itertools.product(State, EVENTS)) - set(TRANSITIONS)
    assert (State.DOWN, "signed_on") in impossible
    assert (State.CONNECTING, "heard") in impossible
    for state, event in impossible:
        with pytest.raises(KeyError):
            after(state, event)


def test_silence_is_asked_into_degrades_and_ends():
    silence = Silence(30, 10, asks=True, now_s=0)
    assert [silence.check(s) for s in (0, 29.9)] == ["", ""]
    assert silence.check(30) == "echo"
    assert silence.check(39) == ""
    assert silence.check(40) == "missed"
    assert silence.misses == 1
    assert silence.check(50) == "missed"
    assert silence.check(60) == "close"
    assert silence.misses == MISSED_MAX


def test_a_sign_of_life_begins_anew():
    silence = Silence(30, 10, asks=True, now_s=0)
    assert silence.check(30) == "echo"
    assert not silence.heard(31)
    assert silence.next_s == 61
    assert silence.check(61) == "echo"
    assert silence.check(71) == "missed"
    assert silence.heard(72), "it had been missed"
    assert not silence.heard(73)


def test_doubt_asks_at_once_but_not_twice():
    silence = Silence(30, 10, asks=True, now_s=0)
    silence.doubt(5)
    assert silence.check(5) == "echo"
    silence.doubt(6)
    assert silence.check(6) == ""
    assert silence.check(15) == "missed"


def test_a_host_that_asks_itself_is_missed_an_interval_later():
    silence = Silence(30, 10, asks=False, now_s=0)
    silence.doubt(1)
    assert silence.check(59) == ""
    assert [silence.check(s) for s in (60, 90, 120)] == ["missed", "missed", "close"]


def test_an_answer_is_not_awaited_longer_than_the_interval():
    silence = Silence(1, 15, asks=True, now_s=0)
    assert [silence.check(s) for s in (1, 2, 3, 4)] == ["echo", "missed", "missed", "close"]


@given(st.lists(st.tuples(st.floats(0, 60), st.booleans()), max_size=60), st.booleans())
def test_it_never_closes_what_was_heard_within_the_interval(steps, asks):
    silence, now_s, heard_s = Silence(30, 10, asks=asks, now_s=0), 0.0, 0.0
    for pause_s, heard in steps:
        now_s += pause_s
        if heard:
            silence.heard(now_s)
            heard_s = now_s
        act = silence.check(now_s)
        if act == "close":
            assert now_s - heard_s > 30
            return
        assert silence.next_s > now_s - 1e-9


def test_pauses_double_to_a_maximum_with_jitter():
    backoff = Backoff(0.2, 30, lambda: 0.0)
    pauses = [backoff.next_s() for _ in range(10)]
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert pauses[-2:] == [30, 30]
    jittered = Backoff(0.2, 30, lambda: 1.0)
    assert [jittered.next_s() for _ in range(3)] == [0.1, 0.2, 0.4]


def test_only_a_stable_connection_begins_anew():
    backoff = Backoff(1, 8, lambda: 0.0)
    for _ in range(3):
        backoff.next_s()
    backoff.ended(7.9)
    assert backoff.next_s() == 8
    backoff.ended(8)
    assert backoff.next_s() == 1


def test_pauses_never_overflow():
    backoff = Backoff(0.2, 30, lambda: 0.0)
    assert [backoff.next_s() for _ in range(5000)][-1] == 30
