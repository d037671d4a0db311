"""Business dates: cut-offs, Paraguay's change of zone rules, clocks that step back."""

import datetime
import io
import struct
import zoneinfo
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch import calendar
from switch.calendar import NS, Calendar, business_date

ASUNCION = "America/Asuncion"
HOUR = 3600 * NS


def instant(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp()) * NS


def rules(footer: str) -> bytes:
    """Make a zone of one rule for all time: a TZif file with nothing but its footer."""
    head = struct.pack(">4sc15x6I", b"TZif", b"2", 0, 0, 0, 0, 1, 4)
    body = struct.pack(">iBB4s", -4 * 3600, 0, 0, b"-04\0")
    return head + body + head + body + f"\n{footer}\n".encode()


OLD_DATA = rules("<-04>4<-03>,M10.1.0/0,M3.4.0/0")
OLD_RULES = zoneinfo.ZoneInfo.from_file(io.BytesIO(OLD_DATA), key=ASUNCION)


@pytest.mark.parametrize(
    ("moment", "cut_off", "expected"),
    [
        ("2026-11-22T23:59:58-03:00", "24:00", "2026-11-22"),
        ("2026-11-23T00:00:00-03:00", "24:00", "2026-11-23"),
        ("2026-11-23T02:59:59+00:00", "24:00", "2026-11-22"),
        ("2026-11-23T03:00:00+00:00", "24:00", "2026-11-23"),
        ("2026-07-01T02:59:59+00:00", "24:00", "2026-06-30"),  # winter, UTC-3 all year
        ("2026-07-01T03:00:00+00:00", "24:00", "2026-07-01"),
        ("2024-07-01T03:59:59+00:00", "24:00", "2024-06-30"),  # winter, still UTC-4
        ("2024-07-01T04:00:00+00:00", "24:00", "2024-07-01"),
        ("2026-11-22T19:59:59-03:00", "20:00", "2026-11-22"),
        ("2026-11-22T20:00:00-03:00", "20:00", "2026-11-23"),
        ("2026-12-31T20:00:00-03:00", "20:00", "2027-01-01"),
        ("2026-11-22T12:00:00-03:00", "12:00", "2026-11-23"),
    ],
)
def test_business_date(moment: str, cut_off: str, expected: str) -> None:
    day = business_date(instant(moment), ASUNCION, cut_off)
    assert (day.iso, day.compact) == (expected, expected.replace("-", ""))
    assert day.date == datetime.date.fromisoformat(expected)
    assert day.number == calendar.day_number(day.date)
    assert day.start_ns <= instant(moment) < day.end_ns


def test_old_rules_move_midnight_and_are_found_out() -> None:
    """K06: with a database from before 2025a the same instant would fall on another date."""
    midnight = instant("2026-07-01T03:30:00+00:00")
    assert business_date(midnight, OLD_RULES).iso == "2026-06-30"
    assert business_date(midnight, ASUNCION).iso == "2026-07-01"
    assert calendar.is_stale(OLD_RULES, ASUNCION)
    assert not calendar.is_stale(calendar.load_zone(ASUNCION), ASUNCION)
    assert not calendar.is_stale(calendar.load_zone("UTC"), "UTC")


def test_system_database_does_not_go_before_ours(tmp_path: Path) -> None:
    """An old system database is on the path first, and yet is not asked."""
    (tmp_path / "America").mkdir()
    (tmp_path / "America" / "Asuncion").write_bytes(OLD_DATA)
    zoneinfo.reset_tzpath([str(tmp_path)])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        assert calendar.is_stale(zoneinfo.ZoneInfo(ASUNCION), ASUNCION)
        zone = calendar.load_zone(ASUNCION)
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
    assert not calendar.is_stale(zone, ASUNCION)


def test_days_of_the_last_changes_are_23_and_25_hours_long() -> None:
    ours = Calendar(ASUNCION)
    spring = ours.local(instant("2024-10-06T12:00:00-03:00"))
    autumn = ours.local(instant("2024-03-23T12:00:00-03:00"))
    usual = ours.local(instant("2026-10-04T12:00:00-03:00"))
    lengths = [(day.end_ns - day.start_ns) // HOUR for day in (spring, autumn, usual)]
    assert lengths == [23, 25, 24]
    assert spring.start_ns == instant("2024-10-06T04:00:00+00:00")  # 00:00 was skipped


def test_clock_that_steps_back_over_midnight_gets_the_earlier_day() -> None:
    ours = Calendar(ASUNCION)
    after, before = instant("2026-11-23T00:00:01-03:00"), instant("2026-11-22T23:59:59-03:00")
    got = [ours.business(now).iso for now in (before, after, before, after)]
    assert got == ["2026-11-22", "2026-11-23"] * 2
    assert [ours.local_time(now) for now in (after, before)] == ["000001", "235959"]


@given(
    st.lists(st.integers(0, 2_500_000_000 * NS), min_size=1, max_size=20),
    st.sampled_from(["24:00", "20:00", "12:00", "23:30"]),
    st.sampled_from([ASUNCION, "UTC", "Pacific/Apia", "Australia/Lord_Howe", "Africa/Monrovia"]),
)
def test_answers_depend_on_the_instant_alone(moments: list[int], cut_off: str, zone: str) -> None:
    """Whatever was asked before: the cached answer is the fresh one, and its interval holds it."""
    ours = Calendar(zone, cut_off, ("22:00", "06:00"))
    for now in moments:
        fresh = Calendar(zone, cut_off, ("22:00", "06:00"))
        day = ours.business(now)
        assert day == fresh.business(now) == ours.business_of(day.number)
        assert day.start_ns <= now < day.end_ns
        assert ours.local(now) == fresh.local(now)
        assert ours.is_night(now) == fresh.is_night(now)
        wall = datetime.datetime.fromtimestamp(now // NS, ours.zone)
        assert ours.local(now).date == wall.date()
        assert ours.local_time(now) == wall.strftime("%H%M%S")
        assert ours.is_night(now) == (wall.hour >= 22 or wall.hour < 6)


@pytest.mark.parametrize(
    ("night", "time", "expected"),
    [
        (("22:00", "06:00"), "22:00", True),
        (("22:00", "06:00"), "05:59", True),
        (("22:00", "06:00"), "06:00", False),
        (("01:00", "05:00"), "00:59", False),
        (("01:00", "05:00"), "01:00", True),
        (("20:00", "24:00"), "23:59", True),
        (("20:00", "24:00"), "00:00", False),
        (("06:00", "06:00"), "06:00", False),
    ],
)
def test_night(night: tuple[str, str], time: str, expected: bool) -> None:
    now = instant(f"2026-11-22T{time}:00-03:00")
    assert Calendar(ASUNCION, night=night).is_night(now) is expected


def test_instants_of_a_day() -> None:
    ours = Calendar(ASUNCION, "20:00")
    number = calendar.day_number(datetime.date(2026, 11, 22))
    assert ours.instant(number, "20:00") == ours.business_of(number).end_ns
    assert ours.instant(number, "24:00") == instant("2026-11-23T00:00:00-03:00")
    assert ours.instant(number, "00:00") == instant("2026-11-22T00:00:00-03:00")


@pytest.mark.parametrize("zone", ["America/Asuncio", "../etc/passwd", "/etc/localtime", ""])
def test_unknown_zone(zone: str) -> None:
    with pytest.raises(ValueError, match="unknown time zone"):
        calendar.load_zone(zone)


@pytest.mark.parametrize("cut_off", ["11:59", "24:01", "8:00", "", "20:00\n"])
def test_bad_cut_off(cut_off: str) -> None:
    with pytest.raises(ValueError, match="cut-off"):
        Calendar("UTC", cut_off)
