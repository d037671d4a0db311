"""What sicoop has an eye on in cash operations beside limits: patterns that people should look at.

Four of them: many deposits that together stay just below the threshold of a declaration (D20), cash
that goes in and out for one person at one branch within minutes (D22), many persons at one terminal
in a short time, large amounts at night. They are told as alarms; none is an offence, so nothing is
refused but what the configuration says.
"""

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from protocols.messages import Hold
from switch.config import Watch

SEEN_MAX: Final = 65_536  # persons at branches that are remembered; the oldest go first
TERMINALS_MAX: Final = 16_384  # terminals whose persons are remembered, likewise
NS: Final = 1_000_000_000


class _Seen(Struct, frozen=True, gc=False):
    kind: str
    reference: str
    at_ns: int


class CashWatch:
    """Remembers who moved cash where. In memory only: after a restart it begins anew."""

    def __init__(self, settings: Watch) -> None:
        self._settings = settings
        self._seen: OrderedDict[tuple[str, str, str], _Seen] = OrderedDict()
        self._persons: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()  # by terminal

    def reconfigure(self, settings: Watch) -> None:
        """Go on by other settings."""
        self._settings = settings

    @property
    def must_declare(self) -> bool:
        """The pattern of D20 asks for a declaration of origin instead of an alarm only."""
        return self._settings.structuring == "declare"

    def is_structured(self, sum_before: int, count_before: int, amount: int, threshold: int
                      ) -> bool:  # fmt: skip
        """Whether a deposit makes up such a pattern with those of its window before it.

        Args:
            sum_before, count_before: of the window so far; amounts in minor units.
            threshold: from which sum on the origin has to be declared.
        """
        total = sum_before + amount
        percent = self._settings.structuring_percent
        return (
            self._settings.structuring != "off"
            and count_before + 1 >= self._settings.structuring_count
            and threshold * percent <= total * 100 < threshold * 100
        )

    def opposite(self, m: Hold, network: str, now_ns: int) -> str:
        """Take note of a cash operation. The reference of the newest one that went the other way
        for the same person at the same branch, within the time configured; or ''."""
        if not self._settings.loop_minutes:
            return ""
        key = (network, str(m.branch), _person(m))
        before = self._seen.pop(key, None)
        self._seen[key] = _Seen(m.kind, m.reference, now_ns)
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        if before is None or before.kind == m.kind:
            return ""
        within_ns = self._settings.loop_minutes * 60 * NS
        return before.reference if now_ns - before.at_ns <= within_ns else ""

    def crowd(self, m: Hold, terminal: str, now_ns: int) -> int:
        """Take note of who is at a terminal. How many persons were within the time configured,
        where this one makes them as many as are to be told; else 0. Once told they begin anew."""
        most = self._settings.terminal_persons
        if not most:
            return 0
        persons = self._persons.pop(terminal, None) or OrderedDict()
        self._persons[terminal] = persons
        if len(self._persons) > TERMINALS_MAX:
            self._persons.popitem(last=False)
        since_ns = now_ns - self._settings.terminal_minutes * 60 * NS
        while persons and next(iter(persons.values())) < since_ns:
            persons.popitem(last=False)
        person = _person(m)
        persons.pop(person, None)
        persons[person] = now_ns
        count = len(persons)
        if count < most:
            return 0
        persons.clear()
        return count

    def is_large(self, amount: int) -> bool:
        """An amount that is to be told when it moves at night."""
        return 0 < self._settings.night_amount <= amount


def _person(m: Hold) -> str:
    return f"{m.document_type}{m.document}" if isinstance(m.document, str) else str(m.phone)
