"""Group K: clocks and dates (acceptance specification, section 6)."""

import datetime
import struct
import zoneinfo
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.messages import Confirm
from switch.calendar import Calendar
from switch.clock import iso_ms
from tests.house import TERMINAL, House
from tests.layouts import all_of, office_of

A = 150_000


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
    # One item of conciliation, in the file of the hold's date.
    house.pass_time(3600)
    office = office_of(house)
    files = [office.make(date=date) for date in ("20261122", "20261123")]
    reference = house.reference(trace, date="20261122").encode()
    assert [path.read_bytes().count(reference) for path in files] == [1, 0]
    assert office.read(files[0])["counts"] == {"conciliate": 1}
    assert house.states(trace, date="20261122")[1] == "CONCILIADA"


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


def test_K05_signed_time_outside_the_tolerance(house: House) -> None:
    """Refused with the server's time, before anything exists; the next good one is taken."""
    for off_s in (61, -61):
        sent_at = iso_ms(house.clock.now_ns + off_s * 10**9)
        answer = house.network(house.hold(house.reference(1), A, sent_at=sent_at)).answer
        assert (answer.code, answer.key) == ("A5", "HORA_NO_VALIDA")
        assert answer.time == iso_ms(house.clock.now_ns)
    assert house.node.alarms["clock_of_network"] == 2
    assert house.states(1) == ("", "", "")
    house.expect_end(1, "E0", A)
    sent_at = iso_ms(house.clock.now_ns - 59 * 10**9)
    assert house.network(house.hold(house.reference(1), A, sent_at=sent_at)).answer.code == "00"


# Paraguay before October 2024: UTC-4, an hour ahead in summer; laid out as in RFC 8536.
_HEAD = struct.pack(">4sc15x6l", b"TZif", b"2", 0, 0, 0, 0, 1, 4)
_BODY = struct.pack(">lbb4s", -14_400, 0, 0, b"-04\0")
OLD_RULES = _HEAD + _BODY + _HEAD + _BODY + b"\n<-04>4<-03>,M10.1.0/0,M3.4.0/0\n"


@pytest.fixture(params=["new", "old"])
def system_rules(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The system's time zone data; "old": from before the change, and first on the path."""
    if request.param == "old":
        (tmp_path / "America").mkdir()
        (tmp_path / "America" / "Asuncion").write_bytes(OLD_RULES)
        zoneinfo.reset_tzpath([str(tmp_path)])
        zoneinfo.ZoneInfo.clear_cache()
    yield request.param
    zoneinfo.reset_tzpath()
    zoneinfo.ZoneInfo.clear_cache()


def test_K06_stale_zone_data(system_rules: str, house: House) -> None:
    """An old database of the system would move midnight by an hour; ours comes with the program.
    What is stored is UTC in both cases."""
    moment = datetime.datetime(2026, 7, 1, 3, 30, tzinfo=datetime.UTC)
    house.clock.now_ns = int(moment.timestamp()) * 10**9
    system = Calendar(zoneinfo.ZoneInfo("America/Asuncion"))
    wrong = {"old": "2026-06-30", "new": "2026-07-01"}
    assert system.business(house.clock.now_ns).iso == wrong[system_rules]
    answer = house.cash_out(A)
    assert (answer.code, answer.business_date) == ("00", "2026-07-01")
    red = house.register(1)
    assert red is not None
    assert red.registered_ns == house.clock.now_ns
    house.expect_end(1, "E1", A)


@pytest.mark.parametrize("off_s", [-3, 3, 3600])
def test_K07_server_clock_off_by_more_than_two_seconds(house: House, off_s: int) -> None:
    """It is told once each time the clock jumps; what is under way ends as it should."""
    house.pass_time(1)
    assert "clock_stepped" not in house.alarms()
    house.cash_out(A)
    house.clock.step(off_s)
    house.pass_time(1)
    nodes = len(all_of(house))
    assert house.node.alarms["clock_stepped"] == nodes
    house.clock.step(-off_s)
    house.pass_time(1)
    house.pass_time(60)
    assert house.node.alarms["clock_stepped"] == 2 * nodes
    house.expect_end(1, "E1", A)


def test_K07_a_clock_that_is_slewed_is_no_alarm(house: House) -> None:
    for _ in range(10):
        house.clock.step(0.5)
        house.pass_time(60)
    assert "clock_stepped" not in house.alarms()
