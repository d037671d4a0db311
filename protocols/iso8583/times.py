"""Dates and times of ISO 8583 messages, which have no year: DE7, DE12, DE13, DE15.

A date without a year means the one nearest to a given now. Instants are nanoseconds since
1970-01-01 UTC, days are counted from there.
"""

import datetime
from functools import lru_cache
from typing import Final

NS: Final = 1_000_000_000
_DAY_NS = 86_400 * NS
_EPOCH = datetime.date(1970, 1, 1)
_UTC = datetime.UTC


def transmission_time(wall_ns: int) -> str:
    """DE7 of an instant: MMDDhhmmss in UTC.

    With an instant moved by a zone's offset it is local time: DE13 and DE12 in one.
    """
    return _transmission_time(wall_ns // NS)


@lru_cache(maxsize=64)  # of one second, nearly always
def _transmission_time(second: int) -> str:
    at = datetime.datetime.fromtimestamp(second, _UTC)
    return f"{at.month:02}{at.day:02}{at.hour:02}{at.minute:02}{at.second:02}"


def instant_ns(text: str, near_ns: int) -> int:
    """The instant of a DE7 in the year that brings its day nearest to that of `near_ns`.

    Raises:
        ValueError: not MMDDhhmmss, or no such date or time.
    """
    return _instant_ns(text, near_ns // _DAY_NS)


@lru_cache(maxsize=64)  # of one second, nearly always; a day more or less decides nothing
def _instant_ns(text: str, near: int) -> int:
    if len(text) != 10 or not _is_number(text):
        raise ValueError("a transmission time is written MMDDhhmmss")
    hour, minute, second = int(text[4:6]), int(text[6:8]), int(text[8:])
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError("no such time of day")
    in_day_ns = (hour * 3600 + minute * 60 + second) * NS
    return _day_number(text[:4], near) * _DAY_NS + in_day_ns


@lru_cache(maxsize=64)
def month_day(day: int) -> str:
    """MMDD of a day counted from 1970-01-01."""
    date = _EPOCH + datetime.timedelta(days=day)
    return f"{date.month:02}{date.day:02}"


def day_number(text: str, near_ns: int) -> int:
    """The day of an MMDD that is nearest to the day of `near_ns`, counted from 1970-01-01.

    Raises:
        ValueError: not MMDD, or no such day in the years around.
    """
    return _day_number(text, near_ns // _DAY_NS)


@lru_cache(maxsize=64)
def _day_number(text: str, near: int) -> int:
    if len(text) != 4 or not _is_number(text):
        raise ValueError("a date is written MMDD")
    year = (_EPOCH + datetime.timedelta(days=near)).year
    found = []
    for candidate in (year - 1, year, year + 1):
        try:
            date = datetime.date(candidate, int(text[:2]), int(text[2:]))
        except ValueError:
            continue
        found.append((date - _EPOCH).days)
    if not found:
        raise ValueError("no such day")
    return min(found, key=lambda day: abs(day - near))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
