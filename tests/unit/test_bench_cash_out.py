"""The scenario around the native client: requests, sign-on, figures, ceiling and provisioning."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from secrets import token_bytes

import msgspec
import pytest

from bench.load import cash_out
from bench.load.cash_out import measure, provision, requests, sign_on
from bench.load.server import BenchError, ceiling
from core_ext._mac import totp
from protocols.messages import Answer, CashOut, Message
from protocols.session import TERMINAL, Acceptor, PeerKey

KEYS = {f"{number:08d}": token_bytes(32) for number in range(1, 5)}


class Host:
    """Accepts terminals over TCP, a thread each, and approves all but every tenth trace."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.threads: list[threading.Thread] = []
        self.acceptor = threading.Thread(target=self._accept, daemon=True)
        self.acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        session = Acceptor(
            vocabulary=TERMINAL,
            authenticate=lambda peer, version: PeerKey(KEYS[peer]) if peer in KEYS else None,
            nonce=token_bytes(16),
            now_iso=lambda: "2026-11-22T13:00:00.000Z",
        )
        with connection:
            while data := connection.recv(65536):
                answers: list[Message] = [
                    Answer(code="51" if r.trace % 10 == 0 else "00", key="", text="", trace=r.trace)
                    for r in session.receive(data)
                ]
                connection.sendall(session.output() + (session.encode(answers) if answers else b""))
                if session.closing is not None:
                    return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.acceptor.join(60)
        for thread in self.threads:
            thread.join(60)


@pytest.fixture
def host() -> Iterator[Host]:
    one = Host()
    yield one
    one.close()


CARDS = [(str(10_000_000 + i), bytes([i % 251] * 32)) for i in range(400)]


def test_requests_are_cash_outs_with_their_codes() -> None:
    payloads = requests(CARDS, 1_700_000_000)
    messages = [msgspec.json.decode(payload, type=CashOut) for payload in payloads]
    assert [message.trace for message in messages] == list(range(1, 401))
    for message, (document, seed) in zip(messages, CARDS, strict=True):
        assert message.document == document
        assert message.token == totp(seed, 1_700_000_000)


def test_sign_on_and_measure(host: Host) -> None:
    sessions = [sign_on(host.address, number, key) for number, key in KEYS.items()]
    try:
        figures = measure(
            sessions, requests(CARDS, 0), 5, depth=2, verify=True, cpu_s=iter((1.0, 3.0)).__next__
        )
    finally:
        for session in sessions:
            session.socket.close()
    warm_up = int(400 / 6)
    assert figures["operations"] == 400 - warm_up
    assert figures["declined"] == 40 - warm_up // 10
    assert (figures["errors"], figures["exhausted"]) == (0, True)
    assert figures["server_cpu_s"] == 2.0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"] <= figures["max_ms"]
    assert figures["rate_per_s"] > 0


def test_a_refused_sign_on(host: Host) -> None:
    with pytest.raises(BenchError, match="63"):
        sign_on(host.address, "00000099", bytes(32))
    with pytest.raises(BenchError, match="00000001"):
        sign_on(host.address, "00000001", bytes(32))


def test_ceiling() -> None:
    figures = ceiling(4, requests(CARDS, 0), 0.2, depth=4)
    assert figures["ceiling_rate_per_s"] > 1000
    assert 0 < figures["ceiling_p50_ms"] <= figures["ceiling_p999_ms"]


def test_provision(tmp_path: Path) -> None:
    made = provision(tmp_path, 3, 5)
    assert made.config == tmp_path / "troncal.toml"
    assert [number for number, _ in made.terminals] == ["00000001", "00000002", "00000003"]
    assert len({key for _, key in made.terminals} | {seed for _, seed in made.cards}) == 8
    assert [document for document, _ in made.cards] == [str(10_000_000 + i) for i in range(5)]


def test_a_node_that_does_not_start(tmp_path: Path) -> None:
    broken = tmp_path / "troncal.toml"
    broken.write_text("nonsense =", encoding="utf-8")
    with pytest.raises(BenchError, match="did not get ready"), cash_out.serve(broken):
        raise AssertionError("must not be served")


@pytest.mark.parametrize(("connections", "seconds"), [(0, 1.0), (1, 0.0), (1, 91.0), (10_001, 1.0)])
def test_arguments_are_checked(connections: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        cash_out.run(connections, seconds)
