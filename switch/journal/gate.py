"""The reply gate: no byte that reveals a decision leaves before that decision is durable."""

from collections import deque
from typing import Protocol

from core_ext import Histogram
from protocols.messages import Message


class Destination(Protocol):
    """Where answers go: a connection."""

    def ready(self, message: Message) -> None:
        """Take a message whose decision is durable; written at the end of the release."""

    def flush(self) -> None:
        """Write all that is ready, in one go."""


class ReplyGate:
    """Answers in the order of their decisions, each held until its sequence is durable."""

    def __init__(self) -> None:
        self._held: deque[tuple[int, Destination, Message, int]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, seq: int, to: Destination, message: Message, at_ns: int) -> None:
        """Keep an answer that reveals decisions up to `seq`, which never decreases.

        `at_ns` is when its request was taken, on the monotonic clock.
        """
        self._held.append((seq, to, message, at_ns))

    def release(self, durable_seq: int, now_ns: int, latency: Histogram) -> int:
        """Let out every answer up to `durable_seq`: one write per destination. Returns how many.

        `latency` takes how long each was on its way, until now.
        """
        held = self._held
        destinations: dict[Destination, None] = {}
        released = 0
        while held and held[0][0] <= durable_seq:
            _, to, message, at_ns = held.popleft()
            latency.record(max(now_ns - at_ns, 0))
            to.ready(message)
            destinations[to] = None
            released += 1
        for to in destinations:
            to.flush()
        return released
