"""Acceptance cases R01 to R14: reversals and store-and-forward, with the roles apart."""

from contextlib import closing
from pathlib import Path

import pytest

from protocols.messages import Confirm, IssuerRelease, Reverse
from switch.journal import queries
from switch.reports.daily_file import DailyFile
from tests.apart import Apart, Flight, deliver, only
from tests.house import NETWORK, TERMINAL, House, Told
from tests.layouts import APART, Joined
from tests.offices import DATE, Office

A = 150_000
DAY_S = 86_400
STUCK_S = 63 + 6 * 15  # six quick attempts, each after its pause and without an answer


def timed_out(world: Apart) -> None:
    """red has given up a hold that sicoop holds, and owes its reversal."""
    world.sessions.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    world.cash_out(1, A)
    world.pass_time(25)
    assert world.states(1) == ("ERROR", "RESPONDIDA", "ACTIVA")


def test_R01_reversal_lost(world: Apart, layout: str) -> None:
    """Nothing but the reversal undoes it: the inquiry of T_CONFIRM has no answer either."""
    timed_out(world)
    world.status.policy = only("status", "hold")
    world.pass_time(100)
    assert len(world.sessions.sent("reverse")) > 1
    world.kill("red")
    world.sessions.policy = only("", "")
    world.start("red")
    if layout == APART:
        assert world.states(1) == ("ERROR", "RESPONDIDA", "ACTIVA")
        assert world.owed() == 2  # red its reversal, sicoop its decision
    world.connect()
    if layout == APART:
        assert world.sessions.sent("reverse")[-1].answer.code == "00"
    world.expect_end(1, "E3", A)


def test_R02_ack_of_a_reversal_lost(world: Apart) -> None:
    timed_out(world)
    world.sessions.policy = only("reverse", "drop_answer")
    world.pass_time(60)
    assert world.states(1) == ("ERROR", "REVERSADA", "LIBERADA")
    world.sessions.policy = only("", "")
    world.pass_time(60)
    _, *again = world.sessions.sent("reverse")
    assert {flight.answer.code for flight in again if flight.answer} >= {"21"}
    world.expect_end(1, "E3", A)


def test_R03_acknowledged_before_ceibo_is_reached(world: Apart, layout: str) -> None:
    timed_out(world)
    if layout == APART:
        world.disconnect(world.holds)
    world.holds.policy = only("release", "hold")
    world.sessions.policy = only("", "")
    world.pass_time(40)
    assert world.red.register(1).owed == ""  # type: ignore[union-attr]
    assert world.states(1) == ("ERROR", "REVERSANDO", "ACTIVA")
    world.holds.policy = only("", "")
    world.restart("sicoop")
    world.connect()
    world.expect_end(1, "E3", A)


def test_R03_no_acknowledgement_before_it_is_durable(world: Apart, layout: str) -> None:
    """sicoop has decided and stops before that is durable: red was told nothing, and asks again."""
    timed_out(world)
    node, told = world.sicoop.node, Told()
    step = node.begin()
    reverse = Reverse(1, world.sicoop.reference(1), A, "timeout")
    node.network_request(step, NETWORK, reverse, told)
    node.end(step)
    assert world.states(1)[1] in ("REVERSANDO", "REVERSADA")
    assert told.messages == []
    world.kill("sicoop")
    world.start("sicoop")
    if layout == APART:
        assert world.states(1) == ("ERROR", "RESPONDIDA", "ACTIVA")
    world.sessions.policy = deliver
    world.connect()
    world.expect_end(1, "E3", A)


def test_R04_release_for_an_unknown_hold(world: Apart) -> None:
    world.holds.policy = only("hold", "hold")
    world.cash_out(1, A)
    world.pass_time(15)
    (release,) = world.holds.sent("release")
    assert release.answer.code == "25"
    assert world.states(1)[2] == "TUMBA"
    world.expect_end(1, "E2", A)


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_R04_reversal_of_what_nobody_knows(house: House, kind: str) -> None:
    """A tombstone, acknowledged; the original that comes later holds nothing."""
    reference = house.reference(1)
    assert house.network(Reverse(1, reference, A, "timeout")).answer.code == "25"
    late = house.network(house.hold(reference, A, kind=kind)).answer
    assert (late.code, late.key) == ("21", "YA_REVERSADA")
    assert house.states(1) == ("", "TUMBA", "")
    house.expect_end(1, "E0" if kind == "cash_out" else "F0", A)


def test_R05_ceibo_keeps_failing_the_release(world: Apart, layout: str) -> None:
    """Between processes an attempt ends with its time-out, so there are fewer of them."""
    by_now, an_hour = (7, range(45, 50)) if layout == APART else (8, range(58, 62))
    timed_out(world)
    world.holds.policy = only("release", "hold")
    world.sessions.policy = deliver
    world.pass_time(40)
    assert world.states(1) == ("ERROR", "REVERSANDO", "ACTIVA")
    assert "owed_stuck" not in world.sicoop.alarms()
    world.pass_time(STUCK_S + 20)
    assert "owed_stuck" in world.sicoop.alarms()
    before = len(world.holds.sent("release"))
    assert before in range(by_now - 2, by_now + 2)
    (row,) = queries.stuck(world.sicoop.read_model(), world.clock.now_ns)
    assert (row["reference"], row["why"]) == (world.sicoop.reference(1), "owes release")
    world.pass_time(3600)  # slow, for ever
    assert len(world.holds.sent("release")) - before in an_hour
    world.holds.policy = only("", "")
    world.pass_time(80)
    assert world.sicoop.node.alarms["owed_stuck"] == 1
    world.expect_end(1, "E3", A)


def test_R06_reversal_while_the_hold_is_in_flight(world: Apart) -> None:
    world.holds.policy = only("hold", "hold")
    told = world.cash_out(1, A)
    (hold,) = world.holds.sent("hold")
    world.holds.process(hold)
    reference = world.sicoop.reference(1)
    assert world.sicoop.network(Reverse(1, reference, A, "timeout")).answer.code == "00"
    world.holds.tell(hold)  # an approval, of which nobody hears any more
    world.run()
    assert told.messages == []
    assert world.states(1)[1:] == ("REVERSADA", "LIBERADA")  # by then, and not by red's own
    world.pass_time(25)
    assert told.answer.instruction == "NO_ENTREGUE"
    world.expect_end(1, "E3", A)


def test_R07_original_after_its_reversal(world: Apart) -> None:
    world.sessions.policy = only("hold", "hold")
    world.cash_out(1, A)
    world.pass_time(25)
    (late,) = world.sessions.sent("hold")
    assert world.sessions.process(late).code == "21"
    world.expect_end(1, "E3", A)


def test_R08_reversal_with_another_amount(world: Apart) -> None:
    world.sessions.policy = only("confirm", "hold")
    world.cash_out(1, A)
    reference = world.sicoop.reference(1)
    assert world.sicoop.network(Reverse(1, reference, A + 1, "timeout")).answer.code == "94"
    assert "reversal_amount_differs" in world.sicoop.alarms()
    assert world.states(1) == ("REGISTRADA", "RESPONDIDA", "ACTIVA")
    world.sessions.policy = deliver
    world.run()
    world.expect_end(1, "E1", A)  # it goes on as if nothing had been said


@pytest.mark.parametrize("case", ["R09", "R10"])
def test_R09_R10_contradictions(world: Apart, case: str) -> None:
    world.sessions.policy = only("confirm", "hold")
    world.cash_out(1, A)
    reference = world.sicoop.reference(1)
    confirm, reverse = Confirm(1, reference, ""), Reverse(2, reference, A, "timeout")
    first, second = (confirm, reverse) if case == "R09" else (reverse, confirm)
    assert world.sicoop.network(first).answer.code == "00"
    world.run()
    before = world.ceibo.available(), world.sicoop.position()
    assert world.sicoop.network(second).answer.code == "A3"
    held = "CAPTURADA" if case == "R09" else "LIBERADA"
    for seconds in (0, 200):  # nothing is undone or posted by itself, later neither
        world.pass_time(seconds)
        world.run()
        assert (world.ceibo.available(), world.sicoop.position()) == before
        assert world.states(1) == ("REGISTRADA", "CONFLICTO", held)
    assert "conflict" in world.sicoop.alarms()
    # E5: on the list of what two persons have to decide.
    stuck = queries.stuck(world.sicoop.read_model(), world.clock.now_ns + 1)
    assert (reference, "conflict") in {(row["reference"], row["why"]) for row in stuck}


def test_R11_reversal_by_another_network_or_terminal(house: House) -> None:
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    house.do("network_add", number="0099")
    assert house.network(Reverse(2, reference, A, "timeout"), "0099").answer.code == "63"
    assert house.security_events()[-1] == ("reference", "63")
    # The terminal is part of the reference: another one's names another operation.
    other = house.reference(1, "00001235")
    assert house.network(Reverse(3, other, A, "timeout")).answer.code == "25"
    assert house.at_sicoop(other).state == "TUMBA"  # type: ignore[union-attr]
    assert house.security_events()[-1] == ("reference", "63"), "both are tills of one network"
    nowhere = house.reference(1, "00009993")
    assert house.network(Reverse(4, nowhere, A, "timeout")).answer.code == "25"
    assert house.security_events()[-1] == ("reverse", "25")
    assert house.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
    assert (house.available(), house.position()) == (house.holder.balance - A, 0)


def test_R12_queued_reversals_over_a_hard_kill(world: Apart, layout: str) -> None:
    """All are delivered after the restart, each as a repeat, each with one effect."""
    count = 1000
    world.holds.policy = only("release", "hold")
    for start in range(0, count, 500):
        numbers = range(start + 1, start + 501)
        with world.sicoop.step() as step:
            for number in numbers:
                hold = world.sicoop.hold(world.sicoop.reference(number), 1000, kind="deposit")
                world.sicoop.node.network_request(step, NETWORK, hold, _Nobody())
        world.run()
        with world.sicoop.step() as step:
            for number in numbers:
                reference = world.sicoop.reference(number)
                world.sicoop.node.network_request(
                    step, NETWORK, Reverse(number, reference, 1000, "timeout"), _Nobody()
                )
    assert world.sicoop.reserved() == 0
    assert world.owed() == count
    world.kill("sicoop")
    world.holds.history.clear()
    if layout == APART:
        world.start("sicoop")
        assert world.owed() == count
    world.holds.policy = only("", "")
    if layout == APART:
        world.connect()
        assert {flight.message[2:6] for flight in world.holds.history} == {b"0421"}
    else:
        world.start("sicoop")
    assert len(world.holds.sent("release")) == count
    _each_is_undone_once(world, count)


def test_R12_reversals_of_red_over_a_hard_kill(world: Apart, layout: str) -> None:
    """The same for what red owes: 1000 holds that it gave up, and could tell nobody of."""
    count, batch = 1000, 100
    world.sessions.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    for start in range(1, count + 1, batch):
        numbers = range(start, start + batch)
        requests = [world.red.request(number, 1000, kind="deposit") for number in numbers]
        world.red.send([(TERMINAL, request) for request in requests])
        world.pass_time(1)
    world.pass_time(25)
    for number in (1, count):
        assert world.states(number) == ("ERROR", "RESPONDIDA", "ACTIVA")
    assert world.sicoop.reserved() == count * 1000
    world.kill("red")
    world.sessions.history.clear()
    world.sessions.policy = deliver
    world.start("red")
    world.connect()
    if layout == APART:
        assert len(world.sessions.sent("reverse")) == count
    assert {world.states(number)[0] for number in range(1, count + 1)} == {"ERROR"}
    _each_is_undone_once(world, count)


def _each_is_undone_once(world: Apart, count: int) -> None:
    assert world.owed() == 0
    for number in range(1, count + 1):
        operation = world.sicoop.at_sicoop(world.sicoop.reference(number))
        assert operation is not None
        hold = world.ceibo.at_ceibo(operation.operation)
        assert hold is not None
        assert operation.state == "REVERSADA"
        assert [state for state, _ in hold.history] == ["ACTIVA", "LIBERADA"]
    assert world.ceibo.available() == world.holder.balance
    assert (world.sicoop.reserved(), world.sicoop.position()) == (0, 0)
    world.sicoop.sound()
    world.ceibo.sound()


class _Nobody:
    def ready(self, message: object) -> None:
        pass

    def flush(self) -> None:
        pass


def test_R13_one_key_stuck_in_the_queue(world: Apart) -> None:
    stuck: list[str] = []

    def policy(flight: Flight) -> str:
        if flight.what == "hold":
            return "drop_answer"
        if flight.what == "release":
            stuck[:] = stuck or [flight.token[1]]
            return "hold" if flight.token[1] == stuck[0] else "deliver"
        return "deliver"

    world.holds.policy = policy
    for trace in (1, 2, 3):
        world.deposit(trace, A)
    world.pass_time(30)
    assert [world.states(trace)[2] for trace in (1, 2, 3)] == ["ACTIVA", "LIBERADA", "LIBERADA"]
    assert world.owed() == 1
    world.holds.policy = deliver
    world.pass_time(80)
    assert world.owed() == 0
    assert {world.states(trace)[1:] for trace in (1, 2, 3)} == {("VENCIDA", "LIBERADA")}
    assert world.ceibo.available() == world.holder.balance
    assert (world.sicoop.reserved(), world.sicoop.position()) == (0, 0)


def test_R14_reversal_on_the_next_business_date(tmp_path: Path, layout: str) -> None:
    """It gives back what the original has taken of its own day, and stands in that day's file."""
    rows = '[limits.net]\nscope = "network"\nkind = "deposit"\nwindow = "day"\nmax = "200000 PYG"\n'
    with closing((Apart if layout == APART else Joined)(tmp_path, limits=rows)) as world:
        world.sessions.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
        world.status.policy = only("status", "hold")
        world.deposit(1, A)
        world.pass_time(25)
        original = world.sicoop.reference(1)
        day = world.sicoop.node.calendar.business(world.clock.now_ns).number
        world.clock.advance(DAY_S)
        world.sessions.policy = only("reverse", "hold")
        assert world.deposit(2, A).answer.code == "00"  # of its own day
        assert (_taken(world, day), _taken(world, day + 1)) == (A, A)
        world.sessions.policy = deliver
        world.pass_time(70)
        found = world.sicoop.at_sicoop(original)
        assert found is not None
        assert (found.state, found.business_date) == ("REVERSADA", "2026-11-22")
        assert (_taken(world, day), _taken(world, day + 1)) == (0, A)
        # Nothing was given back to the new day.
        assert world.deposit(3, A).answer.code == "61"
        for house, role in ((world.sicoop, "sicoop"), (world.red, "red")):
            lines = DailyFile(Office(house).make(role, date=DATE)).details()  # type: ignore[arg-type]
            assert [(line.reference, line.state) for _, line in lines] == [(original, "X")]


def _taken(world: Apart, day: int) -> int:
    """What the network has taken of a day's limit."""
    node = world.sicoop.node
    account = node.sicoop.net_account(NETWORK, "PYG", world.clock.now_ns)
    return node.store.ledger.usage(account, "debit", "day", day)[0]


@pytest.mark.layouts("apart")
def test_V07_debts_of_one_operation_keep_their_order(world: Apart) -> None:
    """An annulment waits for the capture that is under way: never both, never the wrong one."""
    world.holds.policy = only("capture", "hold")
    world.cash_out(1, A)
    told = world.send(world.red.annulment(1, trace=2))
    assert world.holds.sent("annul") == []
    assert told.messages == []
    world.holds.policy = only("", "")
    world.run()
    assert told.answer.code == "00"
    assert [f.what for f in world.holds.history] == ["hold", "capture", "annul"]
    world.expect_end(1, "E4", A)


@pytest.mark.layouts("apart")
def test_release_is_no_repeat_the_first_time(world: Apart) -> None:
    world.holds.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    world.cash_out(1, A)
    world.pass_time(40)
    texts = [f.message[2:6] for f in world.holds.sent("release")]
    assert texts[0] == b"0420"
    assert set(texts[1:]) == {b"0421"}
    assert isinstance(world.sicoop.node.sicoop.debt(world.sicoop.reference(1)), IssuerRelease)
