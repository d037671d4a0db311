"""Files that are late, what is undone on a later date, and cases beside registers that differ."""

from pathlib import Path

import pytest

from protocols.messages import Confirm, Reverse
from switch.journal.agreement import compare
from switch.reports.daily_file import DailyFile, Detail
from tests.apart import Apart, deliver, only
from tests.flows.conftest import Build
from tests.house import BRANCH, House
from tests.offices import DATE, DAY_S, ENCLOSED, SIGNED, Office, after_grace, next_morning

A = 150_000
NEXT = "20261123"


def late_alarms(house: House) -> int:
    return house.node.alarms.get("file_late", 0)


def unconfirmed(house: House, trace: int) -> str:
    """Held for a session of the network that then falls silent."""
    reference = house.reference(trace)
    assert house.network(house.hold(reference, A)).answer.code == "00"
    return reference


# ---- the alarm


@pytest.mark.parametrize(
    ("setting", "open_", "alarms"),
    [("auto", False, 0), ("auto", True, 1), ("always", False, 1), ("never", True, 0)],
)
def test_C06_alarm_of_a_network_played_here(
    build: Build, setting: str, open_: bool, alarms: int
) -> None:
    """Its register is in this process: a file is missed only where something waits for it."""
    house = build(toml=f'[conciliation]\nlate_alarm = "{setting}"\n')
    house.pass_time(60)
    house.cash_out(A, trace=1)
    house.clock.advance(60)
    if open_:
        unconfirmed(house, 2)
    next_morning(house)
    assert late_alarms(house) == 0
    after_grace(house)
    house.pass_time(120)
    assert late_alarms(house) == alarms


def test_C06_alarm_of_a_network_elsewhere(build: Build) -> None:
    """Its terminals sign on at a red of its own, so its file is always waited for."""
    house = build()
    house.do("network_add", number="0013", net_debit_cap=10_000_000)
    house.do(
        "terminal_add", number="00009999", network="0013", branch=BRANCH, known_only=True
    )  # fmt: skip
    house.pass_time(60)
    reference = "0013" + "00009999" + DATE + "000001"
    assert house.network(house.hold(reference, A), "0013").answer.code == "00"
    assert house.network(Confirm(2, reference, ""), "0013").answer.code == "00"
    after_grace(house)
    after_grace(house)
    house.pass_time(120)
    assert late_alarms(house) == 1


# ---- rule R14: the files of both days


def lines(house: House, role: str, date: str) -> dict[str, Detail]:
    path = Office(house).make(role, date=date)  # type: ignore[arg-type]
    return {detail.reference: detail for _, detail in DailyFile(path).details()}


def test_R14_a_late_reversal_is_in_the_files_of_both_days(tmp_path: Path) -> None:
    world = Apart(tmp_path)
    try:
        world.sessions.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
        world.status.policy = only("status", "hold")
        world.deposit(1, A)
        world.pass_time(25)
        original = world.sicoop.reference(1)
        world.clock.advance(DAY_S)
        world.sessions.policy = deliver
        world.pass_time(70)
        assert world.deposit(2, A).answer.code == "00"
        other = world.sicoop.reference(2)
        for date in (DATE, NEXT):
            found = lines(world.sicoop, "sicoop", date)[original]
            assert (found.state, found.business_date, found.amount) == ("X", DATE, A)
        today = lines(world.sicoop, "sicoop", NEXT)
        assert set(today) == {original, other}
        assert today[other].business_date == NEXT
        # No file of ours says that it was paid, and taking them in changes nothing.
        office = Office(world.sicoop)
        told = office.read(office.make("sicoop", version=2, date=DATE))
        assert told["differences"] == {}
    finally:
        world.close()


def test_R14_an_error_after_midnight_is_in_the_files_of_both_days(tmp_path: Path) -> None:
    """red gives up at 00:00:15 what it received at 23:59:50."""
    world = Apart(tmp_path)
    try:
        calendar = world.red.node.calendar
        midnight_ns = calendar.business(world.clock.now_ns).end_ns
        world.pass_time((midnight_ns - world.clock.now_ns) / 1e9 - 10, 600)
        world.sessions.policy = lambda flight: "drop_answer" if flight.what == "hold" else "deliver"
        world.deposit(1, A)
        world.pass_time(30)
        original = world.red.reference(1, date=DATE)
        found = [lines(world.red, "red", date)[original] for date in (DATE, NEXT)]
        assert [(line.state, line.business_date) for line in found] == [("X", DATE)] * 2
    finally:
        world.close()


# ---- three books and a case


def test_cases_are_told_apart_from_what_does_not_agree(house: House) -> None:
    """A conflict, adjusted and settled money: the registers differ as two persons want it."""
    state = house.node.store
    house.cash_out(A, trace=1)
    house.clock.advance(60)
    reference = unconfirmed(house, 2)
    house.network(Confirm(2, reference, ""))
    assert not compare(state, state, state).ok  # red knows nothing of it, and nobody has said so
    house.network(Reverse(3, reference, A, "timeout"))
    found = compare(state, state, state)
    assert not found.ok
    assert found.disputed == 0
    house.do("case_dispute", reference=reference, author="ana", reason="not in the register")
    found = compare(state, state, state)
    assert (found.problems, found.disputed) == ([], 1)
    assert found.position == (-2 * A, -2 * A)
    house.do("resolve", reference=reference, outcome="annul", signature=SIGNED)
    house.pass_time(60)
    found = compare(state, state, state)
    assert (found.problems, found.disputed, found.position) == ([], 1, (-A, -A))
    house.do(
        "conciliation_adjust", account="net:0012", amount=1000, direction="debit",
        signature=ENCLOSED,
    )  # fmt: skip
    assert compare(state, state, state).position == (1000 - A, 1000 - A)
    house.do("window_close")
    house.do("window_issue", number=1)
    house.do("window_settle", number=1, name="net:0012", bank="bcp", signature=SIGNED)
    found = compare(state, state, state)
    assert (found.problems, found.position) == ([], (0, 0))
