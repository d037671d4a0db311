"""A node with `simulator = true`, as a processor of another make meets it over a socket.

What each magic value does is held against the flows in `tests/flows/test_simulator_profile.py`;
here it is the wire: answers that come twice, late or not at all, and connections that end.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.iso_client import DEPOSIT, TIMEOUT, Elements, IsoClient, decision, signed_on
from tests.e2e.test_iso_host import Place

A = 150_000
MAGIC = (3, 4, 6, 9, 10, 11)


class Simulated(Place):
    """With a card for each magic document that approves, and some for everybody else."""

    def documents(self, count: int) -> list[str]:
        return super().documents(count) + [str(9_000_000 + number) for number in MAGIC]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """All roles in one process, so that the native way would be open."""
    directory: Path = tmp_path_factory.mktemp("simulated") / "node"
    found = Simulated(directory, "", (("simulator = false", "simulator = true"),), people=4)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def client(place: Place) -> Iterator[IsoClient]:
    with signed_on(place.address, place.keys) as found:
        yield found


def send(place: Place, client: IsoClient, number: int, amount: int = A) -> Elements:
    hold = client.hold(place.number(), str(9_000_000 + number), amount)
    message = client.message("0100", hold)
    client.send(message)
    return message


def undo(client: IsoClient, message: Elements) -> Any:
    return client.code("0420", decision(message["37"], DEPOSIT, A, TIMEOUT))


@pytest.mark.parametrize(("digits", "code"), [(0, "00"), (51, "51"), (75, "75"), (98, "05")])
def test_amounts(place: Place, client: IsoClient, digits: int, code: str) -> None:
    """A cash_out with a good code: the native way would know of its code only."""
    person = place.person()
    hold = client.hold(place.number(), person.document, A + digits, person.code)
    assert client.code("0100", hold) == code


def test_unknown_person(place: Place, client: IsoClient) -> None:
    assert client.answer_to(send(place, client, 12))["39"] == "05"


def test_answered_twice(place: Place, client: IsoClient) -> None:
    message = send(place, client, 9)
    first = client.answer_to(message)
    assert first["39"] == "00"
    assert client.answer_to(message) == first
    assert undo(client, message) == "00"


@pytest.mark.parametrize(("number", "found"), [(3, "25"), (4, "00")])
def test_not_answered(place: Place, client: IsoClient, number: int, found: str) -> None:
    message = send(place, client, number)
    assert client.silent(0.3)
    assert undo(client, message) == found


def test_out_of_order(place: Place, client: IsoClient) -> None:
    first = send(place, client, 10)
    second = send(place, client, 12)
    assert client.answer_to(second)["39"] == "05"
    assert client.answer_to(first)["39"] == "00"


def test_garbage(place: Place, client: IsoClient) -> None:
    """An answer without the one element that would make it one."""
    message = send(place, client, 11)
    answer = client.receive()
    assert (answer["t"], answer["37"]) == ("0110", message["37"])
    assert "39" not in answer
    assert undo(client, message) == "00"


def test_stops_and_comes_back(place: Place) -> None:
    """The hold stands; for two seconds every request ends its connection."""
    with signed_on(place.address, place.keys) as client:
        message = send(place, client, 6)
        assert client.ends()
    with signed_on(place.address, place.keys) as client:
        client.send(client.message("0600", {"32": message["32"], "37": message["37"]}))
        assert client.ends()
    for _ in range(40):
        with signed_on(place.address, place.keys) as client:
            if client.silent(0.1):
                client.send(client.message("0600", {"32": message["32"], "37": message["37"]}))
                if not client.ends():
                    break
    with signed_on(place.address, place.keys) as client:
        assert client.state(message["37"]) == "ACTIVA"
        assert undo(client, message) == "00"
    place.serves()
