"""How hard the property tests try, and where tests keep their files, for the whole suite.

`TRONCAL_FUZZ=1` is the long profile of `make fuzz`; a greater number multiplies it. Without it the
suite stays short. A failure is printed with what reproduces it.
"""

import os
import tempfile
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


@pytest.fixture(autouse=True)
def plain_logging() -> None:
    """A command run in this process before may have left its level, or a stream that is closed."""
    structlog.reset_defaults()


MEMORY = Path("/dev/shm")
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
    with tempfile.TemporaryDirectory(prefix="troncal-test-", dir=MEMORY) as directory:
        yield Path(directory)


def _memory_is_ample() -> bool:
    if not MEMORY.is_dir():
        return False
    memory = os.statvfs(MEMORY)
    return memory.f_bavail * memory.f_frsize >= MEMORY_FREE_BYTES_MIN
