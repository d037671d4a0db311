"""What the ports to roles in other processes have in common.

A port stands where a flow would call the next role directly. What leaves through it passes the
reply gate first: a request is durable before it is sent, because whoever sent it owes its outcome.
What is owed, the flows keep in their records; when it is sent again is kept by `Debts`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from switch.flows.step import Arm, Step

LINK = "link"  # the role of timers that belong to ports
DUE = "due"
UNSENT = "unsent"  # of `on_lost`: it never left this process, so that nothing is owed

# Codes of a host that are no decision about what it was asked: it could not take the message, or
# not now. What is owed is sent again, and an operator is told.
NO_DECISION = frozenset(("12", "30", "63", "68", "91", "96", "A5"))


class Turns(Protocol):
    """The node, for what a port finds out between two steps."""

    def begin(self) -> Step: ...

    def end(self, step: Step) -> None: ...

    def taken(self, *, request: bool) -> None:
        """Count one message of the step against what its group has room for."""


class Wire(Protocol):
    """A link to an ISO 8583 host."""

    @property
    def up(self) -> bool: ...

    def request(
        self, mti: str, elements: Mapping[str, object], *, token: Any, budget_s: float
    ) -> str:
        """Send with the next `flush`. "" or why it is refused: nothing was sent then."""
        ...

    def flush(self) -> None: ...


class Debts(Protocol):
    """When what is owed is sent, and again: a window of keys in flight, one message per key.

    Instants are of the monotonic clock.
    """

    @property
    def next_ns(self) -> int | None: ...

    def __contains__(self, key: str) -> bool: ...

    def owe(self, key: str, now_ns: int, *, sent: int = 0) -> None:
        """`sent`: attempts that an earlier process may have made."""

    def owe_sent(self, key: str, owed_ns: int) -> None:
        """A debt since then, whose first message has left already."""

    def paid(self, key: str, now_ns: int) -> None: ...

    def failed(self, key: str, now_ns: int) -> bool:
        """True once, when it has failed so often that an operator must be told."""
        ...

    def unsent(self, key: str, now_ns: int) -> None: ...

    def up(self, now_ns: int) -> None: ...

    def down(self) -> None: ...

    def due(self, now_ns: int) -> list[tuple[str, int]]:
        """Keys to be sent now, each with the number of the attempt; above 1 it is a repeat."""
        ...


class Outgoing:
    """A request on its way through the reply gate; `what` and `key` tell the port what it is."""

    __slots__ = ("elements", "key", "mti", "what")

    def __init__(self, what: str, key: str, mti: str, elements: Mapping[str, object]) -> None:
        self.what = what
        self.key = key
        self.mti = mti
        self.elements = elements


class AlarmClock:
    """Makes sure that a step begins when something is due; the step's end then sends it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._at_ns: int | None = None

    def set(self, step: Step, at_ns: int | None) -> None:
        if at_ns is not None and at_ns != self._at_ns:
            step.effects.append(Arm(LINK, DUE, self._name, at_ns))
        self._at_ns = at_ns
