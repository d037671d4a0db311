"""The calls of a product: what its flow wants done outside, run in a nursery of bounded width.

`Calls` is the destination of the effect `Call` in the reply gate, so that a call begins only when
the step that ordered it is durable. It is not a queue to be trusted: what is in it dies with the
process, and the flow's `adopt` orders again what may be repeated.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio

from core_ext import Counters
from switch.ops.logs import logger

log = logger("calls")

Act = Callable[[str], Awaitable[None]]

COUNTERS = ("ordered", "merged", "done", "failed")
ORDERED, MERGED, DONE, FAILED = range(len(COUNTERS))


class Order(Protocol):
    """An order for a call; `Call` of the flows."""

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> str: ...


class Calls:
    """Runs calls, at most `concurrent_max` at once, in the order in which they became durable.

    One (kind, key) runs once at a time: ordered again while it waits, it is one call; ordered again
    while it runs, it runs once more afterwards.

    Args:
        acts: per kind, what is to be done; takes the key, has budgets of its own, and reports to
            the flow through `Node.perform`. An exception of it ends the call alone, counted and
            logged by its type.
    """

    def __init__(self, acts: Mapping[str, Act], *, concurrent_max: int) -> None:
        self._acts = dict(acts)
        self._concurrent_max = concurrent_max
        self._waiting: deque[tuple[str, str]] = deque()
        self._known: set[tuple[str, str]] = set()
        self._running: set[tuple[str, str]] = set()
        self._again: set[tuple[str, str]] = set()
        self._wake = trio.Event()
        self._stopping = False
        self._nursery: trio.Nursery | None = None
        self.counters = Counters(COUNTERS)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    # ---- destination of the reply gate

    def ready(self, order: Order) -> None:
        self.counters.add(ORDERED)
        call = (order.kind, order.key)
        assert order.kind in self._acts, f"no act for {order.kind}"
        if call in self._running:
            self._again.add(call)
        elif call in self._known:
            self.counters.add(MERGED)
        else:
            self._known.add(call)
            self._waiting.append(call)

    def flush(self) -> None:
        self._wake.set()

    def begin(self, kind: str, key: str, act: Callable[[], Awaitable[None]]) -> bool:
        """Run an act of the caller's own as the call (kind, key), at once; see `Calls`.

        False: that call runs or waits already, or there is no place for another: it is to be
        ordered instead.
        """
        call = (kind, key)
        nursery = self._nursery
        if (
            nursery is None
            or self._stopping
            or call in self._running
            or call in self._known
            or len(self._running) >= self._concurrent_max
        ):
            return False
        self.counters.add(ORDERED)
        self._running.add(call)
        nursery.start_soon(self._run, call, act)
        return True

    # ---- running

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Run calls until cancelled, or until what runs has ended after `stop`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while not self._stopping:
                    while self._waiting and len(self._running) < self._concurrent_max:
                        call = self._waiting.popleft()
                        self._known.discard(call)
                        self._running.add(call)
                        nursery.start_soon(self._run, call)
                    await self._wake.wait()
                    self._wake = trio.Event()
            finally:
                self._nursery = None  # what runs still goes on; nothing new may come to it

    def spawn(self, act: Callable[[], Awaitable[None]]) -> None:
        """Run something of the product's own beside its calls; before `run` nothing happens."""
        if self._nursery is not None and not self._stopping:
            self._nursery.start_soon(act)

    def stop(self) -> None:
        """Begin no more calls; those under way go on."""
        self._stopping = True
        self._wake.set()

    async def _run(
        self, call: tuple[str, str], act: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        kind, key = call
        try:
            await (self._acts[kind](key) if act is None else act())
            self.counters.add(DONE)
        except Exception as error:
            # Its text may hold what the peer sent; the type and the place are ours.
            self.counters.add(FAILED)
            log.error("call_failed", kind=kind, error=type(error).__name__, at=_place(error))
        finally:
            self._running.discard(call)
            if call in self._again:
                self._again.discard(call)
                self._known.add(call)
                self._waiting.append(call)
            self._wake.set()


def _place(error: BaseException) -> str:
    """File and line where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
