"""Business dates and local time: pure functions of an instant, a zone and a cut-off.

Nothing here reads a clock; the instant is always given, in nanoseconds since 1970-01-01 UTC. UTC
is what is stored; a date is derived. Zone rules change (Paraguay stays at UTC-3 all year since
October 2024), so the rules come from the ``tzdata`` distribution first and from the system only
where that lacks the zone: an old system database must not move midnight by an hour (K06).
"""

import datetime
import importlib.resources
import re
import zoneinfo

import msgspec

NS = 1_000_000_000
_QUARTER_NS = 900 * NS  # no zone has changed its offset off a quarter of an hour since 1973
_EPOCH = datetime.date(1970, 1, 1)
_UTC = datetime.UTC
_ONE_DAY = datetime.timedelta(days=1)
_CUT_OFF = re.compile(r"(1[2-9]|2[0-3]):[0-5][0-9]|24:00")
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]|24:00")


class Day(msgspec.Struct, frozen=True, gc=False):
    """One day of a calendar, with the instants it covers.

    Fields:
        number: days since 1970-01-01, as the ledger counts them.
        start_ns, end_ns: the half-open interval of instants; 23, 24 or 25 hours long.
        iso: ``2026-11-22``. compact: ``20261122``, as references carry it.
    """

    number: int
    start_ns: int
    end_ns: int
    iso: str
    compact: str

    @property
    def date(self) -> datetime.date:
        return day_date(self.number)


def day_number(date: datetime.date) -> int:
    """Return days since 1970-01-01."""
    return (date - _EPOCH).days


def day_date(number: int) -> datetime.date:
    """Return the date of a day number."""
    return _EPOCH + datetime.timedelta(days=number)


def minutes_of(text: str) -> int:
    """Return the minutes since midnight of ``HH:MM`` (00:00 to 24:00).

    Raises:
        ValueError: the text has another form.
    """
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no time of day from 00:00 to 24:00")
    return int(text[:2]) * 60 + int(text[3:])


def load_zone(name: str) -> zoneinfo.ZoneInfo:
    """Return the rules of a zone, from the ``tzdata`` distribution where it has them.

    Raises:
        ValueError: no such zone.
    """
    if not _ZONE_NAME.fullmatch(name):
        raise ValueError(f"unknown time zone {name!r}")
    resource = importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    if resource.is_file():
        with resource.open("rb") as file:
            return zoneinfo.ZoneInfo.from_file(file, key=name)
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {name!r}") from error


def is_stale(zone: datetime.tzinfo, name: str) -> bool:
    """Tell whether the rules are older than Paraguay's change to UTC-3 all year (tzdata 2025a)."""
    if name != "America/Asuncion":
        return False
    winter = datetime.datetime(2025, 7, 1, 12, tzinfo=zone)
    return winter.utcoffset() != datetime.timedelta(hours=-3)


class Calendar:
    """Dates and times of one zone. One owner, no locks; about 0.1 µs a call within one day.

    The last answers are kept with the interval they hold for, so that a call normally is two
    comparisons. The answer depends on the instant alone: a clock that steps back over midnight
    gets the earlier day again (K04).

    Args:
        zone: time zone name, or its rules.
        cut_off: when a business date ends, ``12:00`` to ``24:00`` local time; what comes later
            belongs to the next date.
        night: start and end of the night window, ``("22:00", "06:00")``; equal: no night.

    Raises:
        ValueError: unknown zone, or a time of another form.
    """

    __slots__ = (
        "_business",
        "_cut_off_minutes",
        "_local",
        "_night",
        "_quarter_end_ns",
        "_quarter_offset_ns",
        "_quarter_start_ns",
        "zone",
    )

    def __init__(
        self,
        zone: str | datetime.tzinfo,
        cut_off: str = "24:00",
        night: tuple[str, str] = ("00:00", "00:00"),
    ) -> None:
        if not _CUT_OFF.fullmatch(cut_off):
            raise ValueError(f"cut-off {cut_off!r} is no time from 12:00 to 24:00")
        self.zone = load_zone(zone) if isinstance(zone, str) else zone
        self._cut_off_minutes = minutes_of(cut_off)
        self._night = (minutes_of(night[0]) % 1440, minutes_of(night[1]) % 1440)
        self._quarter_start_ns = self._quarter_end_ns = self._quarter_offset_ns = 0
        self._local = self._business = Day(0, 0, 0, "", "")

    def local(self, now_ns: int) -> Day:
        """Return the local calendar day of an instant."""
        day = self._local
        if not day.start_ns <= now_ns < day.end_ns:
            day = self._local = self._find(now_ns, 1440)
        return day

    def business(self, now_ns: int) -> Day:
        """Return the business day of an instant: the local day moved by the cut-off."""
        day = self._business
        if not day.start_ns <= now_ns < day.end_ns:
            day = self._business = self._find(now_ns, self._cut_off_minutes)
        return day

    def business_of(self, number: int) -> Day:
        """Return a business day by its number, to ask when it started or ends."""
        return self._day(number, self._cut_off_minutes)

    def instant(self, number: int, time: str) -> int:
        """Return the instant of a local time of day on a day: ``24:00`` is the next midnight."""
        return self._boundary(number, minutes_of(time))

    def is_night(self, now_ns: int) -> bool:
        """Tell whether an instant falls into the night window, which may pass midnight."""
        start, end = self._night
        if start == end:
            return False
        minute = self._local_ns(now_ns) // (60 * NS) % 1440
        if start < end:
            return start <= minute < end
        return minute >= start or minute < end

    def local_time(self, now_ns: int) -> str:
        """Return the local time of day as ``hhmmss``."""
        second = self._local_ns(now_ns) // NS % 86400
        return f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}"

    def utc_offset_ns(self, now_ns: int) -> int:
        """Return local time less UTC; it holds for the instant's quarter of an hour."""
        return self._local_ns(now_ns) - now_ns

    def _local_ns(self, now_ns: int) -> int:
        """Shift an instant by the offset in force, kept per quarter of an hour."""
        if not self._quarter_start_ns <= now_ns < self._quarter_end_ns:
            start_ns = now_ns - now_ns % _QUARTER_NS
            moment = datetime.datetime.fromtimestamp(start_ns // NS, self.zone)
            offset = moment.utcoffset()
            assert offset is not None
            self._quarter_offset_ns = round(offset.total_seconds()) * NS
            self._quarter_start_ns, self._quarter_end_ns = start_ns, start_ns + _QUARTER_NS
        return now_ns + self._quarter_offset_ns

    def _find(self, now_ns: int, end_minutes: int) -> Day:
        """Find the day whose interval holds the instant, starting from the local date."""
        moment = datetime.datetime.fromtimestamp(now_ns // NS, self.zone)
        day = self._day(day_number(moment.date()), end_minutes)
        while now_ns < day.start_ns:
            day = self._day(day.number - 1, end_minutes)
        while now_ns >= day.end_ns:
            day = self._day(day.number + 1, end_minutes)
        return day

    def _day(self, number: int, end_minutes: int) -> Day:
        iso = day_date(number).isoformat()
        return Day(
            number,
            self._boundary(number - 1, end_minutes),
            self._boundary(number, end_minutes),
            iso,
            iso.replace("-", ""),
        )

    def _boundary(self, number: int, minutes: int) -> int:
        """Return the instant a day ends.

        A time that the zone skips counts by the offset before the jump; of one that comes twice
        the first counts.
        """
        date = day_date(number) + (_ONE_DAY if minutes == 1440 else datetime.timedelta())
        hour, minute = divmod(minutes % 1440, 60)
        wall = datetime.datetime(date.year, date.month, date.day, hour, minute, tzinfo=self.zone)
        return int(wall.astimezone(_UTC).timestamp()) * NS


def business_date(now_ns: int, zone: str | datetime.tzinfo, cut_off: str = "24:00") -> Day:
    """Return the business day of one instant; keep a ``Calendar`` where it is asked often."""
    return Calendar(zone, cut_off).business(now_ns)
