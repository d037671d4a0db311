"""The two clocks of a node: wall time for people and codes, monotonic time for deadlines."""

import time
from datetime import UTC, datetime
from typing import Protocol

import trio


class Clock(Protocol):
    def wall_ns(self) -> int:
        """UTC, nanoseconds since 1970. May step in both directions."""

    def mono_ns(self) -> int:
        """Monotonic, nanoseconds, of trio's clock."""


class SystemClock:
    """The machine's wall clock beside trio's clock."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def mono_ns(self) -> int:
        return int(trio.current_time() * 1_000_000_000)


def iso_ms(ns: int) -> str:
    """UTC, ISO 8601 with milliseconds, as `2026-11-22T13:00:00.000Z`."""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns // 1_000_000 % 1000:03d}Z"
