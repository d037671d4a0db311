"""Who may try to sign on, and how often: lock-out of pairs, slowing of addresses.

A peer is never locked as a whole: its number is no secret, so anybody could lock it out. What is
locked is the pair of address and peer; an address that keeps failing is slowed down.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final, TypeVar

PAIR_FAILURES: Final = 5
ADDRESS_FAILURES: Final = 100
WINDOW_S: Final = 60.0
LOCK_S: Final = 60.0
SLOW_GAP_S: Final = 1.0
WAIT_S_MAX: Final = 10.0
"""A sign-on is due within ten seconds, so nobody is made to wait longer than that."""

_K = TypeVar("_K", bound=Hashable)


class _Failures:
    """Times of the latest failures of one pair or address, at most `limit` of them."""

    __slots__ = ("next_slot_s", "times", "until_s")

    def __init__(self, limit: int) -> None:
        self.times: deque[float] = deque(maxlen=limit)
        self.until_s = -math.inf
        self.next_slot_s = -math.inf

    def full(self, now_s: float) -> bool:
        """Whether `limit` failures lie within the window."""
        return len(self.times) == self.times.maxlen and now_s - self.times[0] < WINDOW_S


class SignOnGuard:
    """Counts failed sign-ons in memory of bounded size; owned by the accepting task.

    Args:
        now: monotonic clock, in seconds.
        entries_max: most pairs, and most addresses, remembered; beyond it the one that failed
            longest ago is forgotten.

    Attributes:
        locked: how many times a pair was locked.
    """

    def __init__(self, now: Callable[[], float], *, entries_max: int = 10_000) -> None:
        if entries_max < 1:
            raise ValueError("entries_max must be at least 1")
        self._now = now
        self._entries_max = entries_max
        self._pairs: OrderedDict[tuple[str, str], _Failures] = OrderedDict()
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()
        self.locked = 0

    def allowed(self, address: str, peer: str) -> bool:
        """False while this pair is locked: answer it like an unknown peer."""
        failures = self._pairs.get((address, peer))
        return failures is None or self._now() >= failures.until_s

    def wait_s(self, address: str) -> float:
        """Seconds to wait before this address' next sign-on is looked at; takes the turn.

        0 for an address in good standing; `math.inf` where the queue is so long that the sign-on
        would be overdue: close instead.
        """
        failures = self._addresses.get(address)
        now_s = self._now()
        if failures is None or not failures.full(now_s):
            return 0.0
        slot_s = max(now_s, failures.next_slot_s)
        if slot_s - now_s > WAIT_S_MAX:
            return math.inf
        failures.next_slot_s = slot_s + SLOW_GAP_S
        return slot_s - now_s

    def failed(self, address: str, peer: str) -> None:
        """Count one sign-on that was answered with the unauthenticated error."""
        now_s = self._now()
        self._entry(self._addresses, address, ADDRESS_FAILURES).times.append(now_s)
        pair = self._entry(self._pairs, (address, peer), PAIR_FAILURES)
        if now_s < pair.until_s:
            return  # tries during a lock do not make it longer
        pair.times.append(now_s)
        if pair.full(now_s):
            pair.until_s = now_s + LOCK_S
            pair.times.clear()
            self.locked += 1

    def _entry(self, table: OrderedDict[_K, _Failures], key: _K, limit: int) -> _Failures:
        failures = table.get(key)
        if failures is None:
            if len(table) >= self._entries_max:
                table.popitem(last=False)
            failures = table[key] = _Failures(limit)
        else:
            table.move_to_end(key)
        return failures

    def __len__(self) -> int:
        return len(self._pairs) + len(self._addresses)
