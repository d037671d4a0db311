"""Store-and-forward: which of the things owed to a host are sent next, and when again.

The debts themselves are durable and kept by the flows; this is the schedule of their sending, made
anew from them at every start. A key is one operation: what is owed under it goes one at a time and
in order, while different operations never wait for one another. Nothing is ever dropped; a debt
ends only when it is paid.

    owe ──► ready ──due──► in flight ──paid──► gone (or ready with the next debt of its key)
              ▲                └─failed─► waiting: 1, 2, 4, 8, 16, 32 s, then every 60 s (stuck)
              └──────── its time, or the link is up again

Sans-I/O: instants are given, in nanoseconds of any one clock. Sources: rule R2 and cases R01, R05,
R12, R13 of the acceptance specification, section 5 of the ISO 8583 specification.
"""

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

WINDOW: Final = 256
"""Debts in flight at most: the default of a connection's unanswered requests."""

FAST_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
SLOW_S: Final = 60.0
UNSENT_S: Final = 0.1  # until a full link is tried again

_NS: Final = 1_000_000_000


class _Debts:
    """What is owed under one key."""

    __slots__ = ("attempts", "count", "due_ns", "flying", "order", "owed_ns", "stuck")

    def __init__(self, order: int, owed_ns: int, attempts: int) -> None:
        self.order = order
        self.owed_ns = owed_ns
        self.attempts = attempts  # of the first of them
        self.count = 1
        self.due_ns = 0
        self.flying = False
        self.stuck = False


class StoreAndForward:
    """The schedule of one link's debts. One owner thread.

    Args:
        window: debts in flight at most.
        fast_s: pauses after each of the first attempts; when all are used up, the debt is stuck.
        slow_s: the pause after every later one, for ever.
        up: the link is up.
    """

    def __init__(
        self,
        *,
        window: int = WINDOW,
        fast_s: Sequence[float] = FAST_S,
        slow_s: float = SLOW_S,
        up: bool = False,
    ) -> None:
        if window < 1:
            raise ValueError("window must be positive")
        self._window = window
        self._pauses_ns = tuple(int(s * _NS) for s in fast_s)
        self._slow_ns = int(slow_s * _NS)
        self._up = up
        self._debts: OrderedDict[str, _Debts] = OrderedDict()
        self._schedule: list[tuple[int, int, str]] = []  # (due, order, key); may be outdated
        self._flying = 0
        self._order = 0
        self._stuck = 0
        self.paid_count = 0
        self.failed_count = 0

    # ---- what is owed

    def owe(self, key: str, now_ns: int, *, owed_ns: int | None = None, sent: int = 0) -> None:
        """Take on a debt, which is durable already.

        Args:
            key: the operation. Owed again under it, it goes after what is owed before.
            owed_ns: since when; default: now.
            sent: attempts known or supposed, of which nothing is known but that the host may have
                got them: 1 for everything found at a start, so that it goes out as a repeat.
        """
        known = self._debts.get(key)
        if known is not None:
            known.count += 1
            return
        self._order += 1
        debts = _Debts(self._order, now_ns if owed_ns is None else owed_ns, sent)
        self._debts[key] = debts
        self._plan(key, debts, now_ns)

    def owe_sent(self, key: str, owed_ns: int) -> None:
        """Take on a debt since then, whose first message has left already."""
        assert key not in self._debts, "what left for a key is of its first debt"
        self.owe(key, owed_ns)
        debts = self._debts[key]
        debts.flying = True
        debts.attempts = 1
        self._flying += 1

    def paid(self, key: str, now_ns: int) -> None:
        """The first debt of a key is acknowledged; a key that owes nothing is no error (R02)."""
        debts = self._debts.get(key)
        if debts is None:
            return
        self.paid_count += 1
        self._land(debts)
        self._unstick(debts)
        debts.count -= 1
        if not debts.count:
            del self._debts[key]
            return
        debts.attempts = 0
        debts.owed_ns = now_ns
        self._debts.move_to_end(key)
        self._plan(key, debts, now_ns)

    def failed(self, key: str, now_ns: int) -> bool:
        """An attempt had no answer, or none that decides; True once, when the debt is stuck."""
        debts = self._debts.get(key)
        if debts is None or not debts.flying:
            return False
        self.failed_count += 1
        self._land(debts)
        fast = debts.attempts <= len(self._pauses_ns)
        pause_ns = self._pauses_ns[debts.attempts - 1] if fast else self._slow_ns
        self._plan(key, debts, now_ns + pause_ns)
        newly = debts.attempts == len(self._pauses_ns) + 1 and not debts.stuck
        if newly:
            debts.stuck = True
            self._stuck += 1
        return newly

    def unsent(self, key: str, now_ns: int, *, after_s: float = UNSENT_S) -> None:
        """It was not sent after all (no room, link down): that was no attempt."""
        debts = self._debts.get(key)
        if debts is None or not debts.flying:
            return
        self._land(debts)
        debts.attempts -= 1
        self._plan(key, debts, now_ns + int(after_s * _NS))

    # ---- when

    def up(self, now_ns: int) -> None:
        """The link is up: all that waits for its time is due now, the longest owed first."""
        self._up = True
        self._schedule.clear()
        for key, debts in self._debts.items():
            if not debts.flying:
                debts.due_ns = now_ns
                self._schedule.append((debts.due_ns, debts.order, key))
        heapq.heapify(self._schedule)

    def down(self) -> None:
        """The link is down: nothing is due until it is up. `failed` tells what was in flight."""
        self._up = False

    def due(self, now_ns: int) -> list[tuple[str, int]]:
        """Take what is to be sent now, as far as the window has room: [(key, attempt)].

        The attempt counts from 1; from 2 on it is a repeat. Each counts as in flight until `paid`,
        `failed` or `unsent`.
        """
        found: list[tuple[str, int]] = []
        while self._up and self._flying < self._window:
            debts = self._first()
            if debts is None or debts.due_ns > now_ns:
                break
            _, _, key = heapq.heappop(self._schedule)
            debts.flying = True
            debts.attempts += 1
            self._flying += 1
            found.append((key, debts.attempts))
        return found

    @property
    def next_ns(self) -> int | None:
        """When to ask `due` again; None while nothing can become due by time alone."""
        if not self._up or self._flying >= self._window:
            return None
        first = self._first()
        return None if first is None else first.due_ns

    # ---- how much

    def __contains__(self, key: str) -> bool:
        return key in self._debts

    @property
    def depth(self) -> int:
        """Operations that owe something."""
        return len(self._debts)

    @property
    def in_flight(self) -> int:
        return self._flying

    @property
    def stuck(self) -> int:
        """Operations whose quick attempts are used up: an operator must look."""
        return self._stuck

    @property
    def oldest_ns(self) -> int | None:
        """Since when the longest owed debt is owed; None while there is none."""
        return next(iter(self._debts.values())).owed_ns if self._debts else None

    def snapshot(self, now_ns: int, *, count_max: int = 100) -> dict[str, Any]:
        """Return depth, age and the longest owed keys, for people."""
        oldest_ns = self.oldest_ns
        listed: list[dict[str, Any]] = []
        for key, debts in self._debts.items():
            if len(listed) >= count_max:
                break
            listed.append(
                {
                    "key": key,
                    "attempts": debts.attempts,
                    "age_s": max(now_ns - debts.owed_ns, 0) / _NS,
                    "in_flight": debts.flying,
                    "stuck": debts.stuck,
                }
            )
        return {
            "up": self._up,
            "depth": self.depth,
            "in_flight": self._flying,
            "stuck": self._stuck,
            "oldest_s": 0.0 if oldest_ns is None else max(now_ns - oldest_ns, 0) / _NS,
            "paid": self.paid_count,
            "failed": self.failed_count,
            "debts": listed,
        }

    # ---- inside

    def _plan(self, key: str, debts: _Debts, due_ns: int) -> None:
        debts.due_ns = due_ns
        heapq.heappush(self._schedule, (due_ns, debts.order, key))

    def _land(self, debts: _Debts) -> None:
        if debts.flying:
            debts.flying = False
            self._flying -= 1

    def _unstick(self, debts: _Debts) -> None:
        if debts.stuck:
            debts.stuck = False
            self._stuck -= 1

    def _first(self) -> _Debts | None:
        """The earliest of those that wait; drops what is outdated in the schedule."""
        while self._schedule:
            due_ns, order, key = self._schedule[0]
            debts = self._debts.get(key)
            if (
                debts is not None
                and not debts.flying
                and (debts.due_ns, debts.order)
                == (
                    due_ns,
                    order,
                )
            ):
                return debts
            heapq.heappop(self._schedule)
        return None
