"""The in-flight table against one of plain lists; then what it is for."""

import gc
import pickle
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ext._pending import Pending, PendingFull
from tests.models.pending import PlainPending

MATCH, CHECK = ("class", "11", "41"), ("7", "37")
PARTS = st.tuples(
    st.sampled_from(["1", "4"]),
    st.sampled_from(["000001", "000002", "999999"]),
    st.sampled_from([None, "00000001", "0000000"]),
    st.sampled_from([None, "1122071500", "1122071501"]),
    st.sampled_from([None, "000000000001"]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PARTS, st.integers(0, 40)),
        st.tuples(st.just("take"), PARTS, st.just(0)),
        st.tuples(st.just("withdraw"), PARTS, st.just(0)),
        st.tuples(st.just("expire"), st.none(), st.integers(0, 30)),
        st.tuples(st.just("lose"), st.none(), st.integers(0, 2)),
    ),
    max_size=80,
)


@given(STEPS, st.integers(1, 6), st.sampled_from([0, 1, 3, 50]), st.integers(1, 3))
def test_it_does_what_plain_lists_do(steps, in_flight_max, remembered_max, groups):
    table = Pending(MATCH, CHECK, in_flight_max=in_flight_max, remembered_max=remembered_max)
    plain = PlainPending(len(MATCH), in_flight_max, remembered_max, 999_999)
    now = 0
    for number, (what, parts, value) in enumerate(steps):
        now += 1
        if what == "add":
            stan = table.next_stan(number // 3 + 1)
            assert stan == plain.next_stan(number // 3 + 1)
            fields = {"sent_ns": now, "deadline_ns": now + value, "group": number % groups}
            expected = plain.add(parts, number, stan=stan, **fields)
            if expected is None:
                with pytest.raises(PendingFull):
                    table.add(parts, number, stan=stan, **fields)
            else:
                assert table.add(parts, number, stan=stan, **fields) == expected
        elif what == "take":
            assert table.fate(parts) == plain.fate(parts)
            assert table.take(parts, now) == plain.take(parts, now)
            check_nearest(table, plain, parts)
        elif what == "withdraw":
            assert table.withdraw(parts, now) == plain.take(parts, now, "withdrawn")
        elif what == "expire":
            now += value
            assert table.expire(now) == plain.expire(now)
        else:
            assert table.lose(value, now) == plain.lose(value, now)
        assert len(table) == len(plain.flying)
        assert table.remembered == len(plain.remembered)
        assert table.next_ns == min((r.at_ns for r in plain.flying), default=None)
        assert table.oldest_ns == (plain.flying[0].sent_ns if plain.flying else None)


def check_nearest(table, plain, parts):
    found, expected = table.nearest(parts), plain.nearest(parts)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found[0] == expected[0]
        differing = zip(table.names, found[0], parts, strict=True)
        assert found[1] == tuple(n for n, a, b in differing if b is not None and a != b)


def test_growth_keeps_everything():
    table = Pending(("11",), in_flight_max=5000, remembered_max=5000)
    for number in range(5000):
        assert table.add((f"{number:06}",), number, sent_ns=0, deadline_ns=number)
    with pytest.raises(PendingFull):
        table.add(("x",), 0, sent_ns=0, deadline_ns=0)
    assert table.take(("004999",), 1) == (4999, 0, 0)
    assert [token for token, _, _ in table.expire(2500)] == list(range(2501))
    assert [table.take((f"{n:06}",), 1)[0] for n in range(2501, 4999)] == list(range(2501, 4999))
    assert table.remembered == 5000
    assert table.fate(("000007",)) == ("expired", 0, 2500)


def test_a_second_answer_is_told_from_an_unmatched_one():
    table = Pending(MATCH, CHECK)
    parts = ("1", "000001", "00000001", "1122071500", None)
    table.add(parts, "t", sent_ns=5, deadline_ns=100)
    assert table.take(parts, 7) == ("t", 0, 5)
    assert table.take(parts, 8) is None
    assert table.fate(parts) == ("answered", 5, 7)
    assert table.fate(("1", "000002", "00000001", None, None)) is None


def test_a_checked_part_that_differs_is_no_answer():
    """The key alone would do, but DE7 says that it is the answer to an older request."""
    table = Pending(MATCH, CHECK)
    parts = ("1", "000001", "00000001", "1122071500", "000000000001")
    table.add(parts, "t", sent_ns=5, deadline_ns=100)
    stale = ("1", "000001", "00000001", "1122071400", "000000000001")
    assert table.take(stale, 7) is None
    assert table.fate(stale) is None
    assert table.nearest(stale) == (parts, ("7",), 5)
    assert table.take(("1", "000001", "00000001", None, None), 8) == ("t", 0, 5)


def test_a_key_is_refused_while_its_answer_may_still_come():
    table = Pending(("11",), remembered_max=2)

    def add(stan: str) -> bool:
        return table.add((stan,), stan, sent_ns=0, deadline_ns=10)

    assert add("1")
    assert not add("1")
    table.expire(10)
    assert not add("1")  # late answers are still due
    assert add("2")
    table.lose(0, 11)
    assert not add("2")
    assert add("3")
    table.take(("3",), 12)  # this makes three remembered: the oldest is forgotten
    assert add("3")  # answered: nothing more is due
    assert add("1")


def test_stans_go_in_turn_and_wrap_around_the_busy_ones():
    table = Pending(("11",), first_stan=999_998)
    assert [table.next_stan(1) for _ in range(4)] == [999_998, 999_999, 1, 2]
    table.add(("3",), "slow", sent_ns=0, deadline_ns=10, stan=3)
    assert table.next_stan(1) == 4
    for _ in range(5, 999_998):
        table.next_stan(1)
    assert table.next_stan(1) == 0, "all were given out in this second"
    assert table.next_stan(2) == 999_998
    assert [table.next_stan(2) for _ in range(5)] == [999_999, 1, 2, 4, 5]
    table.expire(10)
    with pytest.raises(ValueError, match="STAN"):
        table.add(("4",), "other", sent_ns=0, deadline_ns=10, stan=3)


def test_an_answered_stan_is_free_again():
    table = Pending(("11",))
    table.add(("1",), "t", sent_ns=0, deadline_ns=10, stan=1)
    table.take(("1",), 1)
    assert table.add(("1",), "t", sent_ns=0, deadline_ns=10, stan=1)


def test_expiring_goes_by_deadline_and_stops_at_a_limit():
    table = Pending(("11",))
    for stan, deadline_ns in ((1, 30), (2, 10), (3, 20), (4, 10)):
        table.add((str(stan),), stan, sent_ns=0, deadline_ns=deadline_ns)
    assert [t for t, _, _ in table.expire(25, 2)] == [2, 4]
    assert [t for t, _, _ in table.expire(25, 2)] == [3]
    assert table.expire(25) == []
    assert table.next_ns == 30


def test_tokens_are_let_go():
    class Token:
        pass

    table = Pending(("11",))
    token = Token()
    seen = weakref.ref(token)
    table.add(("1",), token, sent_ns=0, deadline_ns=1)
    del token
    assert seen() is not None
    table.expire(1)
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize(
    ("match", "check"), [((), ()), (("a", "a"), ()), (("a",), ("a",)), (tuple("abcdefghi"), ())]
)
def test_a_key_has_a_few_distinct_parts(match, check):
    with pytest.raises(ValueError, match="parts"):
        Pending(match, check)


def test_bad_arguments():
    table = Pending(("11", "41"))
    for parts in (("1",), ("1", "2", "3"), ("1", "x" * 41), ("é" * 21, "1")):
        with pytest.raises(ValueError, match="key"):
            table.add(parts, 0, sent_ns=0, deadline_ns=0)
    table.add(("1", None), 0, sent_ns=0, deadline_ns=0)
    for ask in (lambda p: table.take(p, 0), table.fate, table.nearest):
        assert ask(("1", "x" * 41)) is None, "what a peer sent is never an error"
    table.expire(0)
    with pytest.raises(TypeError):
        table.take(("1", 2), 0)
    for stan in (1_000_000, 2**31):
        with pytest.raises(ValueError, match="STAN"):
            table.add(("1", "2"), 0, sent_ns=0, deadline_ns=0, stan=stan)
    for limits in ({"in_flight_max": 0}, {"remembered_max": 2_000_000}, {"first_stan": 0}):
        with pytest.raises(ValueError, match="is"):
            Pending(("11",), **limits)
    with pytest.raises(ValueError, match="second"):
        table.next_stan(0)
    with pytest.raises(TypeError):
        pickle.dumps(table)
    assert len(table) == 0
