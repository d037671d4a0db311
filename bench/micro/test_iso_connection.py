"""An ISO 8583 connection: a read of 64 messages in, 64 answers out, MACs included.

Divide by `extra_info["messages"]`. Run alone on a quiet machine:
`python -m pytest bench/micro/test_iso_connection.py --benchmark-enable`.
"""

from typing import Any

import pytest

from protocols.iso8583.ceibo import hold_elements, issuer_answer, issuer_request
from protocols.iso8583.connection import Connection, Event, Received
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.tokens import TokenOpener, TokenSealer
from protocols.messages import IssuerHold

BATCH = 64
NOW_NS = 1_767_268_800_000_000_000
LINK = {"7": "0101120000", "11": "000042"}
OPERATION = "260010000123"
DATA = bytes(32)
SEALED = TokenSealer(DATA, 0).seal("012345", OPERATION)
HOLD = IssuerHold(
    network="0012",
    operation=OPERATION,
    kind="cash_out",
    amount=150_000,
    currency="PYG",
    terminal="00001234",
    branch="000017",
    cashier="000045",
    day=20_454,
    document_type="CI",
    document="4567890",
)
ELEMENTS = {**LINK, **hold_elements(HOLD, token_hex=SEALED, local="0101090000")[1]}
APPROVED = {"15": "0101", "38": "A7K2Q9", "39": "00"}


def pair() -> tuple[Connection, Connection]:
    """Both ends, signed on."""
    ends = [
        Connection(
            Dialect.load("ceibo"),
            Framing.from_dict({}),
            HostKeys.of("aes-cmac", [(1, bytes(16))]),
            initiator=initiator,
            wall_ns=lambda: NOW_NS,
            next_stan=lambda: "000001",
        )
        for initiator in (True, False)
    ]
    ours, theirs = ends
    ours.sign_on()
    theirs.receive(ours.output())
    ours.receive(theirs.output())
    return ours, theirs


def ask(ours: Connection) -> bytes:
    for _ in range(BATCH):
        ours.request("0100", ELEMENTS)
    return ours.output()


def reply(theirs: Connection, events: list[Event]) -> bytes:
    for event in events:
        assert isinstance(event, Received)
        theirs.answer(event, APPROVED)
    return theirs.output()


@pytest.mark.benchmark(group="64 messages")
def test_requests_out(benchmark: Any) -> None:
    benchmark.extra_info["messages"] = BATCH
    ours, _ = pair()
    assert benchmark(ask, ours)


@pytest.mark.benchmark(group="64 messages")
def test_requests_in(benchmark: Any) -> None:
    benchmark.extra_info["messages"] = BATCH
    ours, theirs = pair()
    assert len(benchmark(theirs.receive, ask(ours))) == BATCH


@pytest.mark.benchmark(group="64 messages")
def test_answers_out(benchmark: Any) -> None:
    benchmark.extra_info["messages"] = BATCH
    ours, theirs = pair()
    assert benchmark(reply, theirs, theirs.receive(ask(ours)))


@pytest.mark.benchmark(group="64 messages")
def test_answers_in(benchmark: Any) -> None:
    benchmark.extra_info["messages"] = BATCH
    ours, theirs = pair()
    data = reply(theirs, theirs.receive(ask(ours)))
    assert len(benchmark(ours.receive, data)) == BATCH


@pytest.mark.benchmark(group="1 message")
def test_a_hold_becomes_elements(benchmark: Any) -> None:
    assert benchmark(hold_elements, HOLD, token_hex=SEALED, local="0101090000")


@pytest.mark.benchmark(group="1 message")
def test_a_message_becomes_a_hold(benchmark: Any) -> None:
    ours, theirs = pair()
    (event, *_) = theirs.receive(ask(ours))
    assert isinstance(event, Received)
    opener = TokenOpener([DATA])
    assert benchmark(issuer_request, event.message, now_ns=NOW_NS, opener=opener)


@pytest.mark.benchmark(group="1 message")
def test_a_message_becomes_an_answer(benchmark: Any) -> None:
    ours, theirs = pair()
    (event, *_) = ours.receive(reply(theirs, theirs.receive(ask(ours))))
    assert isinstance(event, Received)
    assert benchmark(issuer_answer, event.message)
