"""Store-and-forward: order, window, attempts, and that nothing is ever dropped."""

from hypothesis import given
from hypothesis import strategies as st

from switch.net.saf import FAST_S, StoreAndForward

S = 1_000_000_000


def saf(**options: object) -> StoreAndForward:
    return StoreAndForward(up=True, **options)  # type: ignore[arg-type]


def test_r01_resent_with_back_off_until_acknowledged():
    queue = saf()
    queue.owe("a", 0)
    now, sent = 0, []
    for attempt in range(1, 10):
        assert queue.due(now) == [("a", attempt)]
        sent.append(now // S)
        assert queue.due(now + 3600 * S) == [], "in flight"
        queue.failed("a", now)
        assert queue.due(queue.next_ns - 1) == []
        now = queue.next_ns
    assert sent == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    queue.due(now)
    queue.paid("a", now)
    assert (queue.depth, queue.next_ns, queue.in_flight) == (0, None, 0)


def test_r05_six_quick_attempts_then_stuck_and_slow_for_ever():
    queue = saf()
    queue.owe("a", 0)
    alarms, now = [], 0
    for attempt in range(1, 30):
        assert queue.due(now) == [("a", attempt)]
        if queue.failed("a", now):
            alarms.append(attempt)
        now = queue.next_ns
    assert alarms == [len(FAST_S) + 1]
    assert queue.stuck == 1
    assert queue.snapshot(now)["debts"][0]["stuck"]
    queue.due(now)
    queue.paid("a", now)
    assert queue.stuck == 0


def test_r13_one_stuck_key_holds_up_nobody():
    queue = saf(window=2)
    queue.owe("stuck", 0)
    for number in range(10):
        queue.owe(f"{number}", 0)
    done, now = [], 0
    while len(done) < 10:
        now += S // 10
        for key, _ in queue.due(now):
            if key == "stuck":
                queue.failed(key, now)
            else:
                queue.paid(key, now)
                done.append(key)
    assert done == [f"{number}" for number in range(10)]
    assert "stuck" in queue


def test_debts_of_one_key_go_one_after_the_other():
    queue = saf()
    queue.owe("a", 0)  # a capture
    assert queue.due(0) == [("a", 1)]
    queue.owe("a", 1)  # its annulment
    assert queue.due(100 * S) == []
    queue.failed("a", 100 * S)
    assert queue.due(101 * S) == [("a", 2)], "the capture again"
    queue.paid("a", 101 * S)
    assert queue.due(101 * S) == [("a", 1)], "now the annulment, for the first time"
    queue.paid("a", 101 * S)
    assert queue.depth == 0


def test_down_stops_all_and_up_makes_all_due_the_oldest_first():
    queue = saf(window=3)
    for number in range(6):
        queue.owe(f"{number}", number)
    for key, _ in queue.due(10):
        queue.failed(key, 10)
    queue.down()
    assert queue.due(10**15) == []
    assert queue.next_ns is None
    queue.owe("6", 20)
    queue.up(30)
    assert queue.due(30) == [("0", 2), ("1", 2), ("2", 2)]
    for number in range(3):
        queue.paid(f"{number}", 30)
    assert [key for key, _ in queue.due(30)] == ["3", "4", "5"]


def test_what_is_in_flight_when_the_link_comes_up_is_not_sent_twice():
    queue = saf()
    queue.owe("a", 0)
    queue.due(0)
    queue.down()
    queue.up(1)
    assert queue.due(1) == []
    queue.failed("a", 1)
    assert queue.due(1 + S) == [("a", 2)]


def test_r12_after_a_restart_everything_is_a_repeat():
    queue = StoreAndForward()
    for number in range(1000):
        queue.owe(f"{number}", 5 * S, owed_ns=number, sent=1)
    assert queue.due(5 * S) == []
    assert queue.oldest_ns == 0
    queue.up(6 * S)
    seen = []
    while queue.depth:
        for key, attempt in queue.due(6 * S):
            assert attempt == 2
            queue.paid(key, 6 * S)
            seen.append(key)
    assert seen == [f"{number}" for number in range(1000)]


def test_what_was_not_sent_was_no_attempt():
    queue = saf()
    queue.owe("a", 0)
    for _ in range(20):
        assert queue.due(queue.next_ns) == [("a", 1)]
        queue.unsent("a", queue.next_ns or 0)
    assert queue.stuck == 0
    assert queue.next_ns == S // 10, "soon, but not at once: the link may be full"


def test_r02_an_acknowledgement_of_nothing_is_no_error():
    queue = saf()
    queue.paid("unknown", 0)
    queue.owe("a", 0)
    queue.paid("a", 0)  # by an answer that came before it was sent again
    assert queue.due(10**12) == []
    assert not queue.failed("a", 0)
    queue.unsent("a", 0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("owe"), st.integers(0, 5)),
            st.tuples(st.just("settle"), st.sampled_from(["paid", "failed", "unsent"])),
            st.tuples(st.just("link"), st.booleans()),
            st.tuples(st.just("wait"), st.integers(0, 70)),
        ),
        max_size=150,
    ),
    st.integers(1, 4),
)
def test_nothing_is_dropped_or_sent_twice_at_once(steps, window):
    queue, now, up = saf(window=window), 0, True
    owed: dict[str, int] = {}
    flying: list[str] = []
    for what, value in steps:
        now += 1
        if what == "owe":
            queue.owe(f"{value}", now)
            owed[f"{value}"] = owed.get(f"{value}", 0) + 1
        elif what == "settle" and flying:
            key = flying.pop(0)
            getattr(queue, value)(key, now)
            if value == "paid":
                owed[key] -= 1
                if not owed[key]:
                    del owed[key]
        elif what == "link":
            up = value
            if up:
                queue.up(now)
            else:
                queue.down()
        elif what == "wait":
            now += value * S
        for key, attempt in queue.due(now):
            assert up
            assert key not in flying
            assert key in owed
            assert attempt >= 1
            flying.append(key)
        assert len(flying) == queue.in_flight <= window
        assert queue.depth == len(owed)
        assert all(key in queue for key in owed)
        if up and len(flying) < min(window, len(owed)):
            assert queue.next_ns is not None, "what waits has its time"
            assert queue.next_ns <= now + 60 * S
    queue.up(now)
    for _ in range(3 * len(steps) + 10):
        for key in flying:
            queue.paid(key, now)
        flying = [key for key, _ in queue.due(now)]
    assert queue.depth == 0, "a host that answers gets everything"


def test_a_long_queue_stays_cheap():
    queue = saf(window=256)
    for number in range(20_000):
        queue.owe(f"{number}", number)
    paid = 0
    while queue.depth:
        for key, _ in queue.due(20_000):
            queue.paid(key, 20_000)
            paid += 1
            assert queue.oldest_ns is None or queue.oldest_ns <= 20_000
    assert paid == 20_000
