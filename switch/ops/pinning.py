"""Keeping the loop on one CPU, for machines that set cores aside."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pinned(cpu: int) -> Iterator[tuple[str, ...]]:
    """Run the calling thread on one CPU while the block lasts; -1: wherever the system likes.

    Threads and processes that it starts meanwhile inherit the CPU. Those that were there before,
    such as the journal's writer, stay where they may be: beside the loop is where they should run.

    Yields:
        What goes before the command of a process that is to run anywhere.

    Raises:
        OSError: this process may not run on that CPU.
    """
    if cpu < 0:
        yield ()
        return
    before = os.sched_getaffinity(0)
    allowed = ",".join(map(str, sorted(before)))
    if cpu not in before:
        raise OSError(errno.EINVAL, f"node.cpu = {cpu}: this process may run on CPUs {allowed}")
    os.sched_setaffinity(0, {cpu})
    try:
        yield ("taskset", "--cpu-list", allowed)
    finally:
        os.sched_setaffinity(0, before)
