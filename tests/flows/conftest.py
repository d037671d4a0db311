"""Houses and worlds for the acceptance cases, in both layouts; each is checked for soundness when
its test is over.

Tests of a module `test_cases_*` run once with all roles in one process and once with the roles
apart, unless their mark `layouts` names the one that they are about. All others run in one process.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apart import Apart
from tests.house import House
from tests.layouts import APART, LAYOUTS, TOGETHER, Joined, Spread, office_of
from tests.offices import Office

Build = Callable[..., House]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layout" not in metafunc.fixturenames or "test_cases_" not in metafunc.module.__name__:
        return
    mark = metafunc.definition.get_closest_marker("layouts")
    metafunc.parametrize("layout", LAYOUTS if mark is None else mark.args, scope="function")


@pytest.fixture
def layout() -> str:
    """`together` or `apart`: how the roles of this run are spread over processes."""
    return TOGETHER


@pytest.fixture
def build(layout: str, tmp_path: Path) -> Iterator[Build]:
    """Build a house with other settings than the usual ones."""
    houses: list[House] = []

    def make(**values: Any) -> House:
        directory = tmp_path / str(len(houses))
        directory.mkdir()
        houses.append((Spread if layout == APART else House)(directory, **values))
        return houses[-1]

    yield make
    for house in houses:
        house.sound()
        house.close()


@pytest.fixture
def house(build: Build) -> House:
    """A house as a fresh init leaves it."""
    return build()


@pytest.fixture
def office(house: House) -> Office:
    """The back office of the house."""
    return office_of(house)


@pytest.fixture
def world(layout: str, tmp_path: Path) -> Iterator[Apart]:
    """Three roles and the ways between them in the hands of a test."""
    found = (Joined if layout == TOGETHER else Apart)(tmp_path)
    yield found
    found.close()
