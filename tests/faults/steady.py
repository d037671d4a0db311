"""Storms in which nothing decides but the seed: the same seed is the same run, to the last record.

What decides besides, in a process with trio, a journal and HTTP applications, is taken away while a
storm lasts: the order in which trio runs tasks that are ready is drawn from the seed, work for
other threads is done at once and here, a group of the journal is on disk as soon as it is handed
over, connections are in memory, nothing is collected but by counts of references, random bytes come
from the seed, and the time of day is trio's.

`Trace` is what happened: the digest of the whole state at each group of each journal, in order.
"""

import gc
import os
import random
import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any
from unittest.mock import patch

import trio
import trio.testing

from switch.clock import SystemClock
from switch.flows.operations import CARDS
from switch.journal.store import Store

# All but cards: their seeds are sealed natively, with a random number that only the kernel knows.
SPACES = [space for space in range(256) if space != CARDS]
START_NS = 1_768_478_400 * 1_000_000_000  # 2026-01-15 12:00:00 UTC
FIRST_PORT = 40_001
_RUN = trio._core._run  # where its scheduler keeps what it draws from


View = Callable[[Store], Iterable[tuple[int, bytes, bytes]]]


def everything(store: Store) -> Iterator[tuple[int, bytes, bytes]]:
    """All records: space, key, value."""
    for space in SPACES:
        for key, value in store.records.items(space):
            yield space, key, value


class Trace:
    """What happened, group by group. `view`: the records that count."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.groups: list[str] = []

    def add(self, store: Store) -> None:
        records = sha256()
        for space, key, value in self._view(store):
            records.update(b"%d %b %b\n" % (space, key, value))
        seq = store.journal.next_seq - 1
        self.groups.append(f"{seq} {store.ledger.digest():x} {records.hexdigest()}")

    @property
    def hash(self) -> str:
        return sha256("\n".join(self.groups).encode()).hexdigest()


class _Disk:
    """Journals that are durable at once; who waits for one to be is woken in the same order."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._done: dict[int, trio.Event] = {}
        self._seal = Store.seal

    def seal(self, store: Store) -> None:
        journal = store.journal
        if not journal.open_count:
            return
        self._seal(store)
        last = journal.next_seq - 1 - journal.open_count
        while (journal.durable_seq < last or journal.busy) and not journal.failure:
            select.select([journal.fileno()], [], [], 0.001)
            time.sleep(0)
        self._trace.add(store)
        self._event(journal.fileno()).set()

    def _event(self, fileno: int) -> trio.Event:
        return self._done.setdefault(fileno, trio.Event())

    async def wait(self, fileno: Any) -> None:
        await self._event(fileno).wait()
        del self._done[fileno]


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    """A port of this process; it is its own socket, as far as anybody asks for a name."""

    def __init__(self, port: int) -> None:
        self.socket = self
        self._name = ("127.0.0.1", port)
        self._come, self._coming = trio.open_memory_channel[trio.abc.Stream](1000)
        self.is_open = True

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def connect(self) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        self._come.send_nowait(far)
        return near

    async def accept(self) -> trio.abc.Stream:
        return await self._coming.receive()

    async def aclose(self) -> None:
        self.is_open = False
        await trio.lowlevel.checkpoint()


class _Net:
    """Ports of this process, numbered as they are opened."""

    def __init__(self) -> None:
        self._ports: dict[int, _Listener] = {}

    async def listen(self, port: int, **_: Any) -> list[_Listener]:
        await trio.lowlevel.checkpoint()
        number = port or FIRST_PORT + len(self._ports)
        self._ports[number] = _Listener(number)
        return [self._ports[number]]

    async def dial(self, host: str, port: int, **_: Any) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        found = self._ports.get(port)
        if found is None or not found.is_open:
            raise OSError("nobody listens there")
        return found.connect()


async def _at_once(
    sync: Callable[..., Any], *args: Any, limiter: trio.CapacityLimiter | None = None, **_: Any
) -> Any:
    """In place of `trio.to_thread.run_sync`; who sleeps there lets all happen that can."""
    if sync is time.sleep:
        await trio.testing.wait_all_tasks_blocked()
        return None
    if limiter is None:
        await trio.lowlevel.checkpoint()
        return sync(*args)
    async with limiter:
        return sync(*args)


@contextmanager
def steady(seed: int | str, view: View = everything) -> Iterator[Trace]:
    """Nothing but the seed decides until the end of the block; gives what happens."""
    trace, net = Trace(view), _Net()
    disk = _Disk(trace)
    drawn = random.Random(f"{seed} bytes").randbytes
    kept = _RUN._r.getstate()
    _RUN._r.seed(f"{seed} tasks")
    gc.collect()
    gc.disable()  # an asynchronous generator that is collected makes a task, at any moment
    try:
        with (
            patch.object(_RUN, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            patch.object(trio.to_thread, "run_sync", _at_once),
            patch.object(trio.lowlevel, "wait_readable", disk.wait),
            patch.object(Store, "seal", lambda store: disk.seal(store)),
            patch.object(trio, "open_tcp_listeners", net.listen),
            patch.object(trio, "open_tcp_stream", net.dial),
            patch.object(SystemClock, "wall_ns", lambda clock: START_NS + clock.mono_ns()),
            patch.object(os, "urandom", drawn),
            patch.object(random, "_urandom", drawn),
        ):
            yield trace
    finally:
        gc.enable()
        _RUN._r.setstate(kept)
