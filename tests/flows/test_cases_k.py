"""Group K: clocks and dates (acceptance specification, section 6)."""

import json
from pathlib import Path

from protocols.messages import Confirm
from tests.house import TERMINAL, House

A = 150_000
CASES = Path(__file__).parents[1] / "vectors" / "cashier_failures.json"
WHOLE_GROUPS = {"X0", "V", "I", "T", "L"}
SINGLE = {*(f"D{n:02d}" for n in (*range(1, 7), *range(15, 20))), "K01", "K02", "K04"}


def test_K01_terminal_clock_wrong_by_hours(house: House) -> None:
    answer = house.cash_out(A, local_time="2026-11-21T03:00:00")
    assert (answer.code, answer.business_date) == ("00", "2026-11-22")
    assert any("22/11/2026" in line and "12:00:00" in line for line in answer.ticket)
    house.expect_end(1, "E1", A)


def test_K02_hold_before_and_registration_after_midnight(house: House) -> None:
    house.clock.advance(12 * 3600 - 2)  # 23:59:58
    port = house.defer_platform()
    trace = house.trace()
    told = house.send([(TERMINAL, house.request(trace, A))])[0]
    port.process()
    house.clock.advance(5)  # 00:00:03
    port.tell()
    answer = told.answer
    assert (answer.code, answer.business_date) == ("00", "2026-11-22")
    red = house.register(trace, date="20261122")
    sicoop = house.at_sicoop(house.reference(trace, date="20261122"))
    assert red is not None
    assert sicoop is not None
    assert red.business_date == sicoop.business_date == "2026-11-22"
    assert (red.state, sicoop.state) == ("REGISTRADA", "CAPTURADA")
    day = house.node.calendar.business(house.clock.now_ns).number - 1
    assert house.node.store.ledger.usage(house.account(), "debit", "day", day) == (A, 1)
    house.expect_end(trace, "E1", A, date="20261122")


def test_K02_confirmed_the_next_day_by_a_network_elsewhere(house: House) -> None:
    house.clock.advance(12 * 3600 - 2)
    reference = house.reference(1)
    hold = house.network(house.hold(reference, A)).answer
    house.clock.advance(5)
    confirmed = house.network(Confirm(2, reference, "")).answer
    assert hold.business_date == confirmed.business_date == "2026-11-22"


def test_K04_clock_steps_back(house: House) -> None:
    first = house.cash_out(A)
    house.clock.step(-3600)
    second = house.cash_out(A)  # the code of an hour ago is of an earlier step
    assert second.key == "CODIGO_USADO"
    house.clock.step(3660)
    third = house.cash_out(A)
    assert third.code == "00"
    assert first.operation < third.operation
    house.expect_ends([(1, "E1", A), (2, "E2", A), (3, "E1", A)])


def test_K04_numbers_grow_over_a_step_to_yesterday(house: House) -> None:
    other = house.add_card()
    first = house.cash_out(A)
    house.clock.step(-86_400)
    second = house.cash_out(A, holder=other)
    assert second.code == "00"
    assert second.business_date == "2026-11-21"
    assert first.operation < second.operation


def test_K04_time_outs_run_on_the_monotonic_clock(house: House) -> None:
    port = house.defer_platform()
    told = house.send([(TERMINAL, house.request(house.trace(), A))])[0]
    house.clock.step(-3600)
    house.pass_time(24)
    house.clock.step(7200)
    house.pass_time(0)
    assert told.messages == []
    house.clock.step(-3600)
    house.pass_time(1)
    assert (told.answer.code, told.answer.instruction) == ("91", "NO_ENTREGUE")
    port.process()
    house.expect_end(1, "E3", A)


def test_K04_locks_end_on_time_though_the_clock_stepped(house: House) -> None:
    for _ in range(3):
        house.cash_out(A, token=house.wrong_code())
    house.clock.step(-60)
    assert house.cash_out(A).code == "75"
    house.clock.step(60 + 900)
    assert house.cash_out(A).code == "00"


def test_every_case_of_these_groups_is_named_by_a_test() -> None:
    cases = json.loads(CASES.read_text())
    wanted = {c["id"] for c in cases if c["group"] in WHOLE_GROUPS or c["id"] in SINGLE}
    assert len(wanted) == 14 + 9 + 13 + 24 + 10 + 11 + 3
    names = "".join(path.read_text() for path in Path(__file__).parent.glob("test_cases_*.py"))
    missing = {case for case in wanted if f"_{case}_" not in names}
    assert not missing
