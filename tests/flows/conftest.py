"""Houses for the acceptance cases: each is checked for soundness when its test is over."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house import House

Build = Callable[..., House]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Build a house with other settings than the usual ones."""
    houses: list[House] = []

    def make(**values: Any) -> House:
        directory = tmp_path / str(len(houses))
        directory.mkdir()
        houses.append(House(directory, **values))
        return houses[-1]

    yield make
    for house in houses:
        house.sound()
        house.close()


@pytest.fixture
def house(build: Build) -> House:
    """A house as a fresh init leaves it."""
    return build()
