"""The life of one connection of a link, as a table; when to ask into silence; when to try again.

    DOWN ──dial──► CONNECTING ──opened──► SIGNING_ON ──signed on──► UP ──missed──► DEGRADED
      └──────────opened (they dialled)────────┘  ▲                   ▲ └──────heard─────┘
                                                 └────signed off─────┘   closed: DOWN, from anywhere

Pure: instants and chance are given. Source: section 5 of the ISO 8583 specification.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Final, Literal

MISSED_MAX: Final = 3
"""Echoes without an answer, in a row, that end a connection; one degrades it."""


class State(IntEnum):
    """Of a connection; of a link it is the highest of its connections'."""

    DOWN = 0
    CONNECTING = 1
    SIGNING_ON = 2
    DEGRADED = 3
    UP = 4


Event = Literal["dial", "opened", "signed_on", "signed_off", "missed", "heard", "closed"]

TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.DOWN, "dial"): State.CONNECTING,
    (State.DOWN, "opened"): State.SIGNING_ON,
    (State.DOWN, "closed"): State.DOWN,
    (State.CONNECTING, "opened"): State.SIGNING_ON,
    (State.CONNECTING, "closed"): State.DOWN,
    (State.SIGNING_ON, "signed_on"): State.UP,
    (State.SIGNING_ON, "signed_off"): State.SIGNING_ON,
    (State.SIGNING_ON, "missed"): State.SIGNING_ON,
    (State.SIGNING_ON, "heard"): State.SIGNING_ON,
    (State.SIGNING_ON, "closed"): State.DOWN,
    (State.UP, "signed_on"): State.UP,
    (State.UP, "signed_off"): State.SIGNING_ON,
    (State.UP, "missed"): State.DEGRADED,
    (State.UP, "heard"): State.UP,
    (State.UP, "closed"): State.DOWN,
    (State.DEGRADED, "signed_on"): State.UP,
    (State.DEGRADED, "signed_off"): State.SIGNING_ON,
    (State.DEGRADED, "missed"): State.DEGRADED,
    (State.DEGRADED, "heard"): State.UP,
    (State.DEGRADED, "closed"): State.DOWN,
}


def after(state: State, event: Event) -> State:
    """Return the state that follows. Raises: KeyError for what cannot happen there: our fault."""
    return TRANSITIONS[state, event]


class Silence:
    """Whether the other side is still there: echoes into silence, and how many were missed.

    Args:
        interval_s: of silence, after which to ask.
        answer_s: how long an answer may take; then it is missed and asked for again.
        asks: False for connections that the host began: it asks, and we count its silence.
        now_s: when the connection was opened.
    """

    __slots__ = ("_answer_s", "_asking", "_asks", "_interval_s", "misses", "next_s")

    def __init__(self, interval_s: float, answer_s: float, *, asks: bool, now_s: float) -> None:
        self._interval_s = interval_s
        self._answer_s = min(answer_s, interval_s)
        self._asks = asks
        self._asking = False
        self.misses = 0
        self.next_s = now_s
        self.heard(now_s)

    def heard(self, now_s: float) -> bool:
        """Note a sign of life; True if it had been missed."""
        missed, self.misses = self.misses, 0
        self._asking = False
        # The host's own echo is due after one interval: missed is what is later by another.
        self.next_s = now_s + self._interval_s * (1 if self._asks else 2)
        return missed > 0

    def doubt(self, now_s: float) -> None:
        """Ask at once: something else was not answered in time."""
        if self._asks and not self._asking:
            self.next_s = now_s

    def check(self, now_s: float) -> Literal["", "echo", "missed", "close"]:
        """Say what to do now: send an echo, note that one was missed (and send another), or end."""
        if now_s < self.next_s:
            return ""
        if self._asks and not self._asking:
            self._asking = True
            self.next_s = now_s + self._answer_s
            return "echo"
        self.misses += 1
        self.next_s = now_s + (self._answer_s if self._asks else self._interval_s)
        return "close" if self.misses >= MISSED_MAX else "missed"


class Backoff:
    """Pauses between tries: doubled each time up to a maximum, and a random half less.

    Args:
        chance: a number in 0..1, for the jitter.
    """

    __slots__ = ("_chance", "_max_s", "_min_s", "_tries")

    def __init__(self, min_s: float, max_s: float, chance: Callable[[], float]) -> None:
        self.between(min_s, max_s)
        self._chance = chance
        self._tries = 0

    def between(self, min_s: float, max_s: float) -> None:
        """Go on with other bounds; the tries made count on."""
        self._min_s = min_s
        self._max_s = max(min_s, max_s)

    @property
    def stable_s(self) -> float:
        """A connection that was up so long was a success, whatever ended it."""
        return self._max_s

    def next_s(self) -> float:
        """Return the pause before the next try."""
        pause_s = min(self._min_s * 2.0 ** min(self._tries, 60), self._max_s)
        self._tries += 1
        return pause_s * (1 - self._chance() / 2)

    def ended(self, up_s: float) -> None:
        """A connection has ended that was up for `up_s`: begin anew only if it was stable."""
        if up_s >= self.stable_s:
            self._tries = 0
