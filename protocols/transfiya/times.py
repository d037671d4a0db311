"""Time stamps: ISO 8601 with milliseconds. Instants are UTC nanoseconds inside."""

import re
from datetime import UTC, datetime, timedelta, timezone

_EXACT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", re.ASCII)
_ZONE = re.compile(r"([+-])([0-9]{2}):([0-9]{2})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000


def _to_ms(text: str) -> int:
    """Whole milliseconds since 1970; what is finer is cut off.

    Raises:
        ValueError: no instant, or without a zone.
    """
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("a time without zone")
    return (when - _EPOCH) // _MILLISECOND


def js_iso(when: str | int) -> str:
    """Return an instant as JavaScript's toISOString does: UTC, three digits, `Z`.

    Args:
        when: ISO 8601 text with a zone, or milliseconds since 1970.

    Raises:
        ValueError: no instant, or without a zone.
    """
    ms = when if isinstance(when, int) else _to_ms(when)
    whole = _EPOCH + timedelta(milliseconds=ms)
    return whole.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def instant_ns(text: str) -> int:
    """Return an instant in nanoseconds since 1970, to the millisecond.

    Raises:
        ValueError: no instant, or without a zone.
    """
    return _to_ms(text) * MILLISECOND_NS


def is_exact(text: object) -> bool:
    """True for an instant in the one form that hashes are made of."""
    if not isinstance(text, str) or _EXACT.fullmatch(text) is None:
        return False
    try:
        _to_ms(text)
    except ValueError:
        return False
    return True


def utc_text(now_ns: int) -> str:
    """An instant in the form for hashes."""
    return js_iso(now_ns // MILLISECOND_NS)


def zone_of(text: str) -> timezone:
    """Return the zone of an offset such as `-05:00`.

    Raises:
        ValueError: no offset, or none of less than a day.
    """
    match = _ZONE.fullmatch(text)
    if match is None:
        raise ValueError("an offset looks like -05:00")
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-offset if match[1] == "-" else offset)


def label_text(now_ns: int, zone: timezone) -> str:
    """An instant in the form of labels: milliseconds and the zone's offset."""
    when = _EPOCH + timedelta(milliseconds=now_ns // MILLISECOND_NS)
    return when.astimezone(zone).isoformat(timespec="milliseconds")
