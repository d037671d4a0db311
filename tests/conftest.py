"""How hard the property tests try, and where tests keep their files, for the whole suite.

`TRONCAL_FUZZ=1` is the long profile of `make fuzz`; a greater number multiplies it. Without it the
suite stays short. A failure is printed with what reproduces it.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

# All cores are busy here: read models would wait for idle time that does not come, and tests for
# read models.
os.environ.setdefault("TRONCAL_NODE_FOLLOWERS", "equal")

FUZZ = int(os.environ.get("TRONCAL_FUZZ", "0") or 0)
# Timing on a shared machine says nothing about the code, so no deadline and no health check of it.
common = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", common, max_examples=60, stateful_step_count=30)
settings.register_profile("fuzz", common, max_examples=1000 * max(FUZZ, 1), stateful_step_count=100)
settings.load_profile("fuzz" if FUZZ else "short")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "layouts(*names): how an acceptance case is run: `together` in one process, `apart` in"
        " three; without it in both, where the test has the choice",
    )


# Kinds whose processes, browsers and clocks share the machine with what runs beside them.
SHARED = {"e2e", "faults", "interop"}
LONG = ("TRONCAL_FUZZ", "TRONCAL_TORTURE", "TRONCAL_TORTURE_S")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may be starved by its neighbours is tried once more, and told as a rerun.

    Never what is the same each time, nor a long run, whose only failure is what it looks for.
    """
    if any(os.environ.get(name) for name in LONG):
        return
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if not SHARED.isdisjoint(item.path.parts) or marks & {"alone", "timed"}:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True)
def plain_logging() -> None:
    """A command run in this process before may have left its level, or a stream that is closed."""
    structlog.reset_defaults()


MEMORY = Path("/dev/shm")
REMOVE_S = 60
MEMORY_FREE_BYTES_MIN = 2 << 30


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """pytest's own; in memory where no disk is proved, so that no test waits for its neighbour's.

    On the disk stay what is marked `disk` or `alone`, and nodes that serve a whole module.
    """
    marks = {mark.name for mark in request.node.iter_markers()}
    if marks & {"disk", "alone"} or not _memory_is_ample():
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="troncal-test-", dir=MEMORY))
    try:
        yield directory
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    """Followers of a node that was killed write on until they notice, which is soon."""
    until = time.monotonic() + REMOVE_S
    while True:
        try:
            shutil.rmtree(directory)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def _memory_is_ample() -> bool:
    if not MEMORY.is_dir():
        return False
    memory = os.statvfs(MEMORY)
    return memory.f_bavail * memory.f_frsize >= MEMORY_FREE_BYTES_MIN
