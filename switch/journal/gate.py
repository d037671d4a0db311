"""The reply gate: no byte that reveals a decision leaves before that decision is durable.

Answers pass it, and so do requests to roles in other processes: what they ask for is owed from the
moment they leave.
"""

from collections import deque
from typing import Any, Protocol

from core_ext import Histogram


class Destination(Protocol):
    """Where messages go: a connection, or the port to a role in another process."""

    def ready(self, message: Any) -> None:
        """Take a message whose decision is durable; written at the end of the release."""

    def flush(self) -> None:
        """Write all that is ready, in one go."""


class ReplyGate:
    """Messages in the order of their decisions, each held until its sequence is durable."""

    def __init__(self) -> None:
        self._held: deque[tuple[int, Destination, object, int]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, seq: int, to: Destination, message: object, at_ns: int) -> None:
        """Keep a message that reveals decisions up to `seq`, which never decreases.

        `at_ns` is when the request it answers was taken, on the monotonic clock; -1: it answers
        none, and is not measured.
        """
        self._held.append((seq, to, message, at_ns))

    def release(self, durable_seq: int, now_ns: int, latency: Histogram) -> int:
        """Let out everything up to `durable_seq`: one write per destination. Returns how many.

        `latency` takes how long each answer was on its way, until now.
        """
        held = self._held
        destinations: dict[Destination, None] = {}
        released = 0
        while held and held[0][0] <= durable_seq:
            _, to, message, at_ns = held.popleft()
            if at_ns >= 0:
                latency.record(max(now_ns - at_ns, 0))
            to.ready(message)
            destinations[to] = None
            released += 1
        for to in destinations:
            to.flush()
        return released
