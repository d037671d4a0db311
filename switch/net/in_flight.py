"""What a link has asked and not heard about: STANs, DE7, keys, and answers that nobody waits for.

An answer belongs to a request if all parts of `match` are the same and whatever else of STAN, DE7,
DE37 and DE41 the host echoes as well. A STAN is given out again only when no answer to it can come
any more, and never twice in the same second, so that STAN and DE7 together are unique on the link.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Literal

from core_ext._pending import Pending, PendingFull
from protocols.iso8583.dialect import Message
from protocols.iso8583.times import transmission_time
from switch.clock import Clock

STRAYS_MAX: Final = 200
"""Answers that nobody waited for which are kept to be explained."""

_NS: Final = 1_000_000_000
_CLOCK_BACK_S: Final = 60  # a clock set back by less is waited for: DE7 never steps back for it
_STAN_TRIES: Final = 8
_REQUESTS_MAX: Final = 500_000
_REMEMBERED_MAX: Final = 400_000  # with the requests in flight less than there are STANs
_CHECKED: Final = ("7", "11", "37", "41")

Stray = Literal["late", "second", "unmatched"]


class InFlight:
    """The requests of one link that have no answer yet.

    Args:
        match: parts of the key: "class" of the MTI, data elements.
        requests_max: at once.
        remembered_max: ended requests by which late and second answers are known.
        first: in 0..1, where in their range the STANs begin.

    Attributes:
        pending: the table; instants are of the monotonic clock.
        strays: the last answers that nobody waited for.
    """

    def __init__(
        self,
        match: tuple[str, ...],
        clock: Clock,
        *,
        requests_max: int,
        remembered_max: int,
        first: float,
    ) -> None:
        self._clock = clock
        self._names = (*match, *(name for name in _CHECKED if name not in match))
        self._second = 0
        self.pending = Pending(
            match,
            self._names[len(match) :],
            in_flight_max=min(requests_max, _REQUESTS_MAX),
            remembered_max=min(remembered_max, _REMEMBERED_MAX),
            first_stan=1 + int(first * 999_998),
        )
        self.strays: deque[dict[str, Any]] = deque(maxlen=STRAYS_MAX)

    def __len__(self) -> int:
        return len(self.pending)

    # ---- out

    def next_stan(self) -> str:
        """A STAN for what a connection asks by itself (sign-on, echo)."""
        stan = self.pending.next_stan(self._now_second())
        assert stan, "more STANs in one second than there are"
        return f"{stan:06}"

    def depart(
        self,
        mti: str,
        elements: Mapping[str, object],
        token: object,
        *,
        sent_ns: int,
        deadline_ns: int,
        connection: int,
    ) -> dict[str, object] | None:
        """Number a request and put it in flight.

        Returns:
            Its elements with DE7 and DE11. None where too many are in flight, or, with a `match`
            without DE11, one with the same key.
        """
        second = self._now_second()
        own: dict[str, object] = {**elements, "7": transmission_time(second * _NS)}
        for _ in range(_STAN_TRIES):
            stan = self.pending.next_stan(second)
            if not stan:
                return None
            own["11"] = f"{stan:06}"
            try:
                if self.pending.add(
                    self._parts(mti, own), token, sent_ns=sent_ns, deadline_ns=deadline_ns,
                    stan=stan, group=connection,
                ):  # fmt: skip
                    return own
            except PendingFull:
                return None
        return None

    def withdraw(self, mti: str, own: Mapping[str, object], now_ns: int) -> None:
        """A request that `depart` has numbered was not sent after all."""
        self.pending.withdraw(self._parts(mti, own), now_ns)

    # ---- in

    def arrive(self, message: Message, now_ns: int) -> tuple[Any, int, int] | None:
        """End the request that an answer belongs to: (token, connection, sent_ns), or None."""
        return self.pending.take(self._parts_of(message), now_ns)

    def stray(self, message: Message, connection: int, now_ns: int) -> tuple[Stray, dict[str, Any]]:
        """Say what an answer is that `arrive` knows nothing of, and keep that.

        Returns:
            Its kind, and: the parts it is known by; what became of its request, or else the request
            in flight that is nearest to it and the parts in which they differ.
        """
        parts = self._parts_of(message)
        fate = self.pending.fate(parts)
        kind: Stray = "unmatched"
        found: dict[str, Any] = {
            "kind": kind,
            "at_ns": self._clock.wall_ns(),
            "connection": connection,
            "mti": message.mti,
            "code": message.get("39"),
            "answer": dict(zip(self._names, parts, strict=True)),
        }
        if fate is not None:
            found["kind"] = kind = "late" if fate[0] in ("expired", "lost") else "second"
            found["request"] = fate[0]
            found["after_s"] = (now_ns - fate[1]) / _NS
        elif (nearest := self.pending.nearest(parts)) is not None:
            found["nearest"] = dict(zip(self._names, nearest[0], strict=True))
            found["differs"] = list(nearest[1])
            found["nearest_after_s"] = (now_ns - nearest[2]) / _NS
        self.strays.append(found)
        return kind, found

    # ---- inside

    def _parts(self, mti: str, own: Mapping[str, object]) -> tuple[str | None, ...]:
        return tuple(
            [
                mti[1] if n == "class" else None if (v := own.get(n)) is None else str(v)
                for n in self._names
            ]
        )

    def _parts_of(self, message: Message) -> tuple[str | None, ...]:
        return tuple([message.mti[1] if n == "class" else message.get(n) for n in self._names])

    def _now_second(self) -> int:
        """The second of DE7. It waits for a clock that was set back a little."""
        second = self._clock.wall_ns() // _NS
        if 0 < self._second - second <= _CLOCK_BACK_S:
            return self._second
        self._second = second
        return second
