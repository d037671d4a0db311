"""Who of the pump's sockets is due to be looked at, against a dictionary."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_ext._lanes import Lanes
from tests.house import House


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[Lanes]:
    house = House(tmp_path)
    yield house.node.lanes
    house.close()


@pytest.fixture
def numbers() -> Iterator[list[int]]:
    """Descriptors that an epoll takes, some of them far apart."""
    pipes = [os.pipe() for _ in range(20)]
    far = [os.dup2(pipes[i][0], 300 + 37 * i) for i in range(10)]
    yield [*(reading for reading, _ in pipes), *far]
    for fd in (*far, *(end for pipe in pipes for end in pipe)):
        os.close(fd)


@pytest.mark.parametrize("seed", range(20))
def test_random_looks(lanes: Lanes, numbers: list[int], seed: int) -> None:
    dice = random.Random(seed)
    sources: dict[int, object] = {}
    looks: dict[int, float] = {}
    now_s = 0.0
    for _ in range(500):
        fd = dice.choice(numbers)
        match dice.randrange(4):
            case 0 if fd not in sources:
                sources[fd] = source = object()
                lanes.add(fd, source)
            case 1:
                known = sources.pop(fd, None)
                looks.pop(fd, None)
                assert lanes.remove(fd) == (None if known is None else b"")
            case 2:
                at_s = now_s + dice.uniform(-1, 5)
                lanes.look_at(fd, sources.get(fd, lanes), at_s)
                lanes.look_at(fd, numbers, 0.0)  # of somebody else: of no effect
                if fd in sources:
                    looks[fd] = at_s
            case 3:
                now_s += dice.uniform(0, 1)
                due = sorted(fd for fd, at_s in looks.items() if at_s <= now_s)
                assert lanes.due(now_s) == [(fd, sources[fd]) for fd in due]
                for one in due:
                    del looks[one]
    for fd in sources:
        lanes.remove(fd)
    assert lanes.due(float("inf")) == []


def test_numbers_that_are_none(lanes: Lanes) -> None:
    with pytest.raises(ValueError, match="not negative"):
        lanes.add(-1, object())
    with pytest.raises(OSError, match="Bad file"):
        lanes.add(4000, object())
    for fd in (-1, 4000, 1 << 30):
        assert lanes.remove(fd) is None
        lanes.look_at(fd, lanes, 0.0)
    assert lanes.due(float("inf")) == []
