"""A node that keeps its loop on one CPU."""

import os
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
import trio

from switch.app import App
from switch.config import load
from switch.ops.pinning import pinned
from tests.house import MASTER

NOWHERE = 4095


def test_a_thread_stays_on_its_cpu_and_others_do_not() -> None:
    before = os.sched_getaffinity(0)
    cpu = max(before)
    seen: list[set[int]] = []
    go, done = threading.Event(), threading.Event()

    def other() -> None:
        go.wait()
        seen.append(os.sched_getaffinity(0))
        done.set()

    threading.Thread(target=other).start()
    with pinned(cpu) as anywhere:
        assert os.sched_getaffinity(0) == {cpu}
        go.set()
        done.wait()
        told = subprocess.run(
            [*anywhere, "grep", "Cpus_allowed_list", "/proc/self/status"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    assert seen == [before], "a thread that was there before runs anywhere"
    assert _numbers(told.stdout.split()[1]) == before
    assert os.sched_getaffinity(0) == before


def _numbers(ranges: str) -> set[int]:
    found: set[int] = set()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_nothing_is_pinned_by_default() -> None:
    before = os.sched_getaffinity(0)
    with pinned(-1) as anywhere:
        assert os.sched_getaffinity(0) == before
    assert anywhere == ()


def test_a_cpu_that_is_not_ours() -> None:
    with (
        pytest.raises(OSError, match=r"node\.cpu = 4095: this process may run on CPUs"),
        pinned(NOWHERE),
    ):
        pass


def _app(directory: Path, toml: str) -> App:
    path = directory / "troncal.toml"
    listen = "".join(
        f'{name} = "127.0.0.1:0"\n' for name in ("terminals", "sicoop", "ceibo", "ops")
    )
    path.write_text(f"[node]\n{toml}\n[listen]\n{listen}")
    return App(load(path, environ={}), MASTER, followers=False)


async def test_a_node_runs_on_its_cpu(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    cpu = max(before)
    app = _app(tmp_path, f"cpu = {cpu}")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(app.run, on_ready=lambda addresses: None))
        assert os.sched_getaffinity(0) == {cpu}
        app.stop.set()
    assert os.sched_getaffinity(0) == before


async def test_a_node_does_not_start_on_a_cpu_that_is_not_there(tmp_path: Path) -> None:
    app = _app(tmp_path, f"cpu = {NOWHERE}")
    with pytest.raises(OSError, match=r"node\.cpu"):
        await app.run(on_ready=lambda addresses: None)
