"""The open loop of the native client: instants, latencies from them, numbers filled in, mixes."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bench.load import open_loop, traffic
from bench.load._client import Load, Report
from bench.load.server import echoing
from bench.peers.job import KEY, Session, Table
from core_ext._mac import MacKey, totp

RATE = 400.0
CARDS = [(str(10_000_000 + i), bytes([i]) * 32) for i in range(40)]


class Peer:
    """Answers with the job of the peers, and stops for a while before one of its reads."""

    def __init__(self, stall_at: int = -1, stall_s: float = 0.0) -> None:
        self.client, self.server = socket.socketpair()
        self.requests: list[dict[str, object]] = []
        self._stall = stall_at, stall_s
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        session, reads = Session(Table(100)), 0
        with self.server:
            while data := self.server.recv(1 << 16):
                if reads == self._stall[0]:
                    time.sleep(self._stall[1])
                reads += 1
                self.server.sendall(session.receive(data))

    def close(self) -> None:
        self.client.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(*arguments: float) -> Peer:
        made.append(Peer(*arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def load(*peers: Peer, depth: int = 1) -> Load:
    return Load(
        [one.client.fileno() for one in peers],
        [MacKey("hmac-sha256", KEY) for _ in peers],
        sent=[0] * len(peers), received=[0] * len(peers), depth=depth, verify=True,
    )  # fmt: skip


def payloads(count: int) -> list[bytes]:
    return traffic.requests([*CARDS] * (count // len(CARDS) + 1), "cash_out=1", count)


def test_every_arrival_is_answered(peer: Callable[..., Peer]) -> None:
    report = load(peer(), peer(), peer()).run_open(payloads(200), RATE, 0.5)
    assert (report.due, report.latency.count, report.errors) == (200, 200, 0)
    assert report.codes == {"00": 200}
    assert report.elapsed_ns == 500_000_000
    assert report.lag.count == 200
    assert sum(answers for answers, _ in report.timeline) == 200
    assert max(worst for _, worst in report.timeline) == report.worst_ns == report.latency.max
    assert report.worst_at_ns < 500_000_000


def test_a_pause_is_in_the_latency_of_all_that_fell_due(peer: Callable[..., Peer]) -> None:
    """A closed loop would have seen one slow answer; 0.25 s at 400 a second delay a hundred."""
    stalled = peer(20, 0.25)
    report = load(stalled, depth=1).run_open(payloads(200), RATE, 0.5)
    assert (report.latency.count, report.errors) == (200, 0)
    assert report.latency.percentile(75) > 100_000_000
    assert report.backlog_max >= 40
    assert report.worst_ns >= 240_000_000
    closed = load(peer(20, 0.25)).run(payloads(200), 5)
    assert closed.latency.percentile(95) < 100_000_000


def test_poisson_has_the_rate_and_is_repeatable(peer: Callable[..., Peer]) -> None:
    one = load(peer(), depth=8).run_open(payloads(200), RATE, 0.5, poisson=True, seed=7)
    assert one.errors == 0
    assert 150 < one.latency.count == one.due <= 200
    tenths = [answers for answers, _ in one.timeline]
    two = load(peer(), depth=8).run_open(payloads(200), RATE, 0.5, poisson=True, seed=7)
    assert [answers for answers, _ in two.timeline] == tenths
    assert len(set(tenths)) > 1, "equal pauses would give forty in each tenth"


def test_a_lost_connection_is_told(peer: Callable[..., Peer]) -> None:
    lost = peer()
    lost.server.shutdown(socket.SHUT_RDWR)
    report = load(lost, peer()).run_open(payloads(100), RATE, 0.25)
    assert report.lost == 1
    assert report.unanswered == 50
    assert report.codes == {"00": 50}


def test_arguments(peer: Callable[..., Peer]) -> None:
    client = load(peer())
    with pytest.raises(ValueError, match="payload for each arrival"):
        client.run_open(payloads(3), RATE, 0.5)
    with pytest.raises(ValueError, match="rate times seconds"):
        client.run_open(payloads(3), 0.1, 1)
    with pytest.raises(ValueError, match="seconds"):
        client.run_open(payloads(3), RATE, 0)
    with pytest.raises(ValueError, match="no trace"):
        client.run_open([b"{}"], 10, 0.1)
    assert client.run_open(payloads(1), RATE, 0.1, repeat=True).errors == 0


def test_numbers_are_filled_in() -> None:
    """Traces count by connection over runs, and `original` is the last approved payment."""
    seen: list[dict[str, int]] = []

    class Told(Session):
        __slots__ = ()

        def receive(self, data: bytes) -> bytes:
            seen.append(json.loads(data[2:-8]))
            return super().receive(data)

    client, server = socket.socketpair()

    def serve() -> None:
        session = Told(Table(100))
        with server:
            while data := server.recv(1 << 16):
                request = json.loads(data[2:-8])
                if request["op"] == "cash_out":
                    server.sendall(session.receive(data))
                else:
                    seen.append(request)
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    key = MacKey("hmac-sha256", KEY)
    driven = Load([client.fileno()], [key], sent=[0], received=[0])
    assert driven.run(payloads(11), 5).codes == {"00": 11}
    asked = b'{"op":"delivered","trace":0,"original":0}'
    assert driven.run([asked], 1, drain_s=0.2).unanswered == 1
    thread.join(60)
    client.close()
    assert [request["trace"] for request in seen] == list(range(1, 13))
    assert seen[-1] == {"op": "delivered", "trace": 12, "original": 11}


def test_the_echo_in_an_open_loop() -> None:
    with echoing(3, depth=4) as driven:
        report = driven.run_open(payloads(40), 200, 0.2)
    assert (report.latency.count, report.errors) == (40, 0)
    figures = open_loop.open_figures(report, 200)
    assert figures["due"] == 40
    assert figures["pauses"][0]["ms"] == pytest.approx(report.worst_ns / 1e6, abs=0.001)


def test_mixes() -> None:
    assert traffic.shares("cash_out=2, confirm") == {"cash_out": 2.0, "confirm": 1.0}
    for wrong in ("", "cash=1", "cash_out=0", "cash_out=-1", "cash_out=1,cash_out=1", "holder=x"):
        with pytest.raises(ValueError):
            traffic.shares(wrong)
    kinds = traffic.kinds(traffic.COUNTER, 1000)
    assert 350 < kinds.count("cash_out") < 450
    assert kinds == traffic.kinds(traffic.COUNTER, 1000)
    assert traffic.cards_needed("deposit=1", 50) == 1
    assert traffic.cards_needed("cash_out=1", 50) == 50
    with pytest.raises(ValueError, match="fewer cards"):
        traffic.requests(CARDS, "cash_out=1", 41)
    made = [json.loads(p) for p in traffic.requests(CARDS, traffic.COUNTER, 80)]
    assert {one["op"] for one in made} == {
        "cash_out", "deposit", "delivered", "last_operation", "holder",
    }  # fmt: skip
    taken = [one["document"] for one in made if one["op"] == "cash_out"]
    assert len(set(taken)) == len(taken), "a card makes one cash_out in a step of its code"
    code = json.loads(traffic.cash_out(CARDS[3], 1_700_000_000))["token"]
    assert code == totp(CARDS[3][1], 1_700_000_000)


def test_a_report_without_a_run() -> None:
    empty = Report(0.25)
    assert empty.timeline == [(0, 0)] * 3
    assert (empty.rate_per_s, empty.errors, empty.worst_ns) == (0.0, 0, 0)
