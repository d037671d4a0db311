"""The native load client against a small responder of ours and against its own echo server."""

import hashlib
import hmac
import json
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from bench.load._client import Load, Report, echo_server
from core_ext._mac import MacKey

KEY = bytes(range(32))
Reply = Callable[[list[dict[str, int]]], list[bytes]]


def tag(direction: int, counter: int, payload: bytes) -> bytes:
    prefix = struct.pack(">BQ", direction, counter)
    return hmac.new(KEY, prefix + payload, hashlib.sha256).digest()[:8]


def payloads(count: int, *, padding: int = 0) -> list[bytes]:
    return [
        json.dumps(
            {"op": "cash_out", "trace": i + 1, "token": "004512", "branch": "7" * padding},
            separators=(",", ":"),
        ).encode()
        for i in range(count)
    ]


def answer(trace: int, code: str = "00") -> bytes:
    return json.dumps(
        {"op": "answer", "trace": trace, "code": code}, separators=(",", ":")
    ).encode()


class Responder:
    """Checks every frame of the client and answers with what `reply` makes of the requests."""

    def __init__(self, reply: Reply, *, received: int = 1, sent: int = 1, cut: int = 1 << 16):
        self.client, self.server = socket.socketpair()
        self.reply = reply
        self.received, self.sent = received, sent
        self.cut = cut
        self.problems: list[str] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def seal(self, payload: bytes) -> bytes:
        frame = struct.pack(">H", len(payload) + 8) + payload + tag(2, self.sent, payload)
        self.sent += 1
        return frame

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), self.cut):
            self.server.sendall(data[start : start + self.cut])

    def _serve(self) -> None:
        buffered = b""
        with self.server:
            while data := self.server.recv(1 << 16):
                buffered += data
                requests = []
                while len(buffered) >= 2:
                    end = 2 + int.from_bytes(buffered[:2], "big")
                    if len(buffered) < end:
                        break
                    payload, mac = buffered[2 : end - 8], buffered[end - 8 : end]
                    if mac != tag(1, self.received, payload):
                        self.problems.append("bad MAC")
                    self.received += 1
                    requests.append(json.loads(payload))
                    buffered = buffered[end:]
                for out in self.reply(requests):
                    if out == b"":
                        return
                    self.send(out if out[:1] != b"{" else self.seal(out))

    def close(self) -> None:
        self.client.close()
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert self.problems == []


@pytest.fixture
def responder() -> Iterator[Callable[..., Responder]]:
    made: list[Responder] = []

    def make(reply: Reply, **options: int) -> Responder:
        made.append(Responder(reply, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def load(*responders: Responder, depth: int = 1, verify: bool = True, limit: int = 8192) -> Load:
    return Load(
        [r.client.fileno() for r in responders],
        [MacKey("hmac-sha256", KEY) for _ in responders],
        sent=[r.received for r in responders],
        received=[r.sent for r in responders],
        depth=depth,
        verify=verify,
        frame_bytes_max=limit,
    )


def approve(requests: list[dict[str, int]]) -> list[bytes]:
    return [answer(r["trace"]) for r in requests]


def test_every_request_is_answered_once(responder: Callable[..., Responder]) -> None:
    peers = [responder(approve) for _ in range(4)]
    report = load(*peers).run(payloads(500), 10)
    assert report.exhausted
    assert (report.latency.count, report.in_time, report.errors) == (500, 500, 0)
    assert report.codes == {"00": 500}
    assert sum(r.received - 1 for r in peers) == 500
    latency = report.latency
    assert 0 < latency.percentile(50) <= latency.percentile(99) <= latency.max
    assert report.rate_per_s == pytest.approx(500e9 / report.elapsed_ns)
    assert 0 < report.elapsed_ns < 10_000_000_000


def test_counters_go_on_from_run_to_run(responder: Callable[..., Responder]) -> None:
    peer = responder(approve, received=7, sent=3)
    client = load(peer)
    for _ in range(3):
        assert client.run(payloads(5), 10).codes == {"00": 5}
    assert (peer.received, peer.sent) == (22, 18)


def test_the_time_ends_a_run_that_repeats(responder: Callable[..., Responder]) -> None:
    report = load(responder(approve)).run(payloads(3), 0.05, repeat=True)
    assert not report.exhausted
    assert report.latency.count > 3
    assert report.elapsed_ns == 50_000_000
    assert report.latency.count - report.in_time <= 1


def test_pipelined_answers_come_in_any_order(responder: Callable[..., Responder]) -> None:
    shuffle = random.Random(7).shuffle

    def reply(requests: list[dict[str, int]]) -> list[bytes]:
        shuffle(requests)
        return [answer(r["trace"], "00" if r["trace"] % 5 else "51") for r in requests]

    report = load(responder(reply), depth=16).run(payloads(400), 10)
    assert report.codes == {"00": 320, "51": 80}
    assert report.errors == 0


@pytest.mark.parametrize("cut", [1, 2, 3, 17])
def test_answers_cut_anywhere(responder: Callable[..., Responder], cut: int) -> None:
    report = load(responder(approve, cut=cut), depth=4).run(payloads(40), 10)
    assert report.codes == {"00": 40}
    assert report.errors == 0


def test_long_frames_fill_the_socket(responder: Callable[..., Responder]) -> None:
    """64 frames of 8 kB are more than the socket takes at once: the rest follows when it can."""
    peer = responder(approve)
    peer.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    report = load(peer, depth=64).run(payloads(300, padding=8000), 20)
    assert report.codes == {"00": 300}
    assert report.bytes_sent > 300 * 8000


def test_frames_that_answer_nothing(responder: Callable[..., Responder]) -> None:
    def reply(requests: list[dict[str, int]]) -> list[bytes]:
        extra = [b'{"op":"notice","text":"hola","level":"info"}', b'{"op":"error","code":"30"}']
        return [*extra, answer(999_999), *approve(requests)]

    report = load(responder(reply)).run(payloads(2), 10)
    assert report.codes == {"00": 2}
    assert (report.unasked, report.unmatched, report.errors) == (4, 2, 2)
    assert report.complaints == {"30": 2}


def test_an_answer_without_code_is_malformed(responder: Callable[..., Responder]) -> None:
    report = load(responder(lambda r: [b'{"op":"answer","trace":1,"code":"0"}'])).run(
        payloads(1), 10
    )
    assert (report.latency.count, report.malformed, report.codes) == (1, 1, {})


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (struct.pack(">H", 8) + bytes(8), "bad_frames"),
        (struct.pack(">H", 101) + bytes(101), "bad_frames"),
        (struct.pack(">H", 20) + bytes(20), "bad_macs"),
        (b"", "unanswered"),
    ],
    ids=["too short", "too long", "bad MAC", "closed"],
)
def test_a_bad_answer_costs_the_connection(
    responder: Callable[..., Responder], frame: bytes, field: str
) -> None:
    bad, good = responder(lambda r: [frame]), responder(approve)
    report = load(bad, good, limit=100).run(payloads(20), 10)
    assert getattr(report, field) == 1
    assert (report.lost, report.unanswered) == (1, 1)
    assert report.codes == {"00": 19}


def test_silence_is_counted_when_the_drain_is_over(responder: Callable[..., Responder]) -> None:
    client = load(responder(lambda r: []))
    report = client.run(payloads(2), 0.02, drain_s=0.02)
    assert (report.latency.count, report.unanswered, report.lost) == (0, 1, 1)
    assert client.run(payloads(1), 1).latency.count == 0


def echo_run(connections: int, depth: int, count: int) -> tuple[Report, int]:
    echoed: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    stop, stopper = os.pipe()
    server = threading.Thread(
        target=lambda: echoed.append(echo_server(listener.fileno(), stop)), daemon=True
    )
    server.start()
    sockets = [socket.create_connection(listener.getsockname()) for _ in range(connections)]
    try:
        client = Load(
            [s.fileno() for s in sockets],
            [MacKey("hmac-sha256", KEY)] * connections,
            sent=[1] * connections,
            received=[1] * connections,
            depth=depth,
            verify=True,
            echo=True,
        )
        report = client.run(payloads(count), 20)
    finally:
        os.close(stopper)
        server.join(60)
        for s in (*sockets, listener):
            s.close()
        os.close(stop)
    assert not server.is_alive()
    return report, echoed[0]


@pytest.mark.parametrize(("connections", "depth"), [(1, 1), (64, 1), (8, 64)])
def test_echo(connections: int, depth: int) -> None:
    report, echoed = echo_run(connections, depth, 2000)
    assert (report.latency.count, report.errors, report.codes) == (2000, 0, {})
    assert echoed == report.bytes_sent == report.bytes_received


def test_arguments_are_checked(responder: Callable[..., Responder]) -> None:
    peer = responder(approve)
    fds, keys = [peer.client.fileno()], [MacKey("hmac-sha256", KEY)]
    with pytest.raises(ValueError, match="needs a connection"):
        Load([], [], sent=[], received=[])
    with pytest.raises(ValueError, match="zip"):
        Load(fds, keys, sent=[], received=[1])
    with pytest.raises(ValueError, match="depth"):
        Load(fds, keys, sent=[1], received=[1], depth=0)
    with pytest.raises(ValueError, match="frame_bytes_max"):
        Load(fds, keys, sent=[1], received=[1], frame_bytes_max=65536)
    with pytest.raises(ValueError, match="echo"):
        Load(fds, keys, sent=[1], received=[2], echo=True)
    with pytest.raises(TypeError):
        Load(fds, [KEY], sent=[1], received=[1])  # type: ignore[list-item]
    client = Load(fds, keys, sent=[1], received=[1], frame_bytes_max=64)
    for bad in ([], [b'{"op":"echo"}'], payloads(1, padding=60)):
        with pytest.raises(ValueError):
            client.run(bad, 1)
    with pytest.raises(ValueError, match="seconds"):
        client.run(payloads(1), 0)
