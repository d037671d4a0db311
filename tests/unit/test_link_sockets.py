"""A link on real sockets: read by the pump, cut at any byte, and over TLS."""

import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from protocols.iso8583.connection import Received
from switch.config import LinkAddress, LinkTls
from switch.flows.step import Step
from switch.net.dial import Dialer
from switch.net.line import Line
from switch.net.link import HostReply
from switch.net.link_state import State
from switch.node import TURNS, Node
from tests.hosts import WALL_NS, Bench, FakeHost, Session, approve, keys, live_node

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
async def live(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Node]:
    async with live_node(tmp_path) as node:
        yield node
        nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()


# ---- plain TCP, read by the pump -----------------------------------------------------------------


async def test_the_pump_reads(nursery: trio.Nursery, live: Node) -> None:
    host = FakeHost()
    address, _ = await host.listen(nursery)
    bench = Bench(nursery, connect=(LinkAddress(address),), node=live)
    await bench.up()
    for start in range(0, 1000, 100):
        bench.ask(*range(start, start + 100))
        assert set(await bench.answered(*range(start, start + 100))) == {"00"}
    assert host.sessions[0].reads <= 12, "one write for each hundred"
    bench.link.stop()
    await bench.ended.wait()
    nursery.cancel_scope.cancel()


async def test_a_host_that_goes_away_and_comes_back(nursery: trio.Nursery, live: Node) -> None:
    host = FakeHost(lambda session, received: None)
    address, scope = await host.listen(nursery)
    bench = Bench(
        nursery, connect=(LinkAddress(address),), node=live, backoff_min_s=0.01, backoff_max_s=0.05
    )
    await bench.up()
    bench.ask(1, 2)
    await bench.owner.until(lambda: not bench.link.queued)
    scope.cancel()
    assert await bench.answered(1, 2) == ["lost", "lost"]
    assert bench.ask(3) == ["down"]
    again = FakeHost()
    await again.listen(nursery, int(address.rpartition(":")[2]))
    await bench.up()
    bench.ask(4)
    assert await bench.answered(4) == ["00"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cut", [1, 2, 3, 30, -1])
async def test_half_an_answer_and_then_nothing(nursery: trio.Nursery, live: Node, cut: int) -> None:
    async def half(session: Session, received: Received) -> None:
        approve(session, received)
        await session.write(session.connection.output()[:cut])
        await session.stream.aclose()

    host = FakeHost(half)
    address, _ = await host.listen(nursery)
    bench = Bench(nursery, connect=(LinkAddress(address),), node=live)
    await bench.up()
    bench.ask(1)
    assert await bench.answered(1) == ["lost"]
    assert bench.owner.answers == {}
    nursery.cancel_scope.cancel()


async def test_answers_in_single_bytes(nursery: trio.Nursery, live: Node) -> None:
    async def slowly(session: Session, received: Received) -> None:
        approve(session, received)
        for byte in session.connection.output():
            await session.write(bytes([byte]))

    host = FakeHost(slowly)
    address, _ = await host.listen(nursery)
    bench = Bench(nursery, connect=(LinkAddress(address),), node=live)
    await bench.up()
    bench.ask(1, 2, 3)
    assert await bench.answered(1, 2, 3) == ["00", "00", "00"]
    nursery.cancel_scope.cancel()


async def test_a_host_that_does_not_read_is_cut_off(
    nursery: trio.Nursery, live: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel's buffer fills, then ours, which is bounded; others are not held up."""
    monkeypatch.setattr("switch.net.line.OUTBOX_BYTES_MAX", 100_000)
    stuck = trio.Event()

    async def hang(session: Session, received: Received) -> None:
        await stuck.wait()

    host = FakeHost(hang)
    address, _ = await host.listen(nursery)
    bench = Bench(nursery, connect=(LinkAddress(address),), node=live, max_in_flight=65_536)
    await bench.up()
    token = 0
    while bench.link.up and token < 60_000:
        bench.ask(*range(token, token + 500))
        token += 500
        await trio.lowlevel.checkpoint()
    assert not bench.link.up
    await bench.owner.until(lambda: bench.owner.ended >= bench.counts["requests"])
    assert set(bench.owner.lost.values()) <= {"lost", "unsent"}
    nursery.cancel_scope.cancel()


async def test_inbound_read_by_the_pump(nursery: trio.Nursery, live: Node) -> None:
    """The host dials us; a hundred of its requests are answered in one write."""
    bench = Bench(nursery, {}, node=live)

    def reply(step: Step, received: Received, origin: Line) -> None:
        step.reply(origin, HostReply(received, {"39": "00"}, "00"))

    bench.owner.reply = reply
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, bench.link.accept, listeners)
    port = listeners[0].socket.getsockname()[1]
    far = Bench(nursery, connect=(LinkAddress(f"127.0.0.1:{port}"),))
    await far.up()
    turns = live.counters.get(TURNS)
    for start in range(0, 2000, 100):
        far.ask(*range(start, start + 100))
        assert set(await far.answered(*range(start, start + 100))) == {"00"}
    assert live.counters.get(TURNS) - turns < 2000 / live.requests_max + 100
    nursery.cancel_scope.cancel()


# ---- TLS -----------------------------------------------------------------------------------------


class Authority:
    """Issues certificates, and writes them where a configuration finds them."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key.public_key(), 3650 * DAY, authority=True)
        self.ca = str(directory / f"{name}.pem")
        Path(self.ca).write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, lasts: datetime.timedelta,
        names: list[x509.GeneralName] | None = None, *, authority: bool = False,
    ) -> x509.Certificate:  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 400 * DAY)
            .not_valid_after(NOW + lasts)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str, lasts: datetime.timedelta = 365 * DAY) -> tuple[str, str]:
        """Files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if name == "host":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        certificate = self._sign(subject, key.public_key(), lasts, names)
        cert, private = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(cert), str(private)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def tls_host(
    nursery: trio.Nursery, certificate: tuple[str, str], client_ca: str = ""
) -> tuple[str, FakeHost]:
    host = FakeHost()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, host.serve, listeners)
    port = listeners[0].transport_listener.socket.getsockname()[1]
    return f"127.0.0.1:{port}", host


def tls_bench(nursery: trio.Nursery, address: str, *, sign_on_s: float = 10.0, **tls: str) -> Bench:
    return Bench(
        nursery, connect=(LinkAddress(address),), tls=LinkTls(**tls), sign_on_s=sign_on_s,
        backoff_min_s=0.01, backoff_max_s=0.02,
    )  # fmt: skip


async def test_tls(nursery: trio.Nursery, authority: Authority) -> None:
    address, _ = await tls_host(nursery, authority.issue("host"))
    bench = tls_bench(nursery, address, ca=authority.ca)
    await bench.up()
    bench.ask(*range(300))
    assert set(await bench.answered(*range(300))) == {"00"}
    left_s = bench.link.certificate_expires_s()
    assert left_s is not None
    wall_s = WALL_NS / 1e9 + trio.current_time()
    assert left_s == pytest.approx((NOW + 365 * DAY).timestamp() - wall_s, abs=2)
    bench.link.stop()
    await bench.ended.wait()
    nursery.cancel_scope.cancel()


async def test_mutual_tls(nursery: trio.Nursery, authority: Authority) -> None:
    address, _ = await tls_host(nursery, authority.issue("host"), authority.ca)
    cert, key = authority.issue("us", 40 * DAY)
    stranger = tls_bench(nursery, address, ca=authority.ca)
    bench = tls_bench(nursery, address, ca=authority.ca, cert=cert, key=key)
    await bench.up()
    bench.ask(1)
    assert await bench.answered(1) == ["00"]
    left_s = bench.link.certificate_expires_s()
    assert left_s is not None
    wall_s = WALL_NS / 1e9 + trio.current_time()
    assert left_s < 41 * 86_400 + NOW.timestamp() - wall_s, "ours is the first to expire"
    assert not stranger.link.up
    nursery.cancel_scope.cancel()


async def in_vain(bench: Bench, what: str = "connects_failed", tries: int = 3) -> None:
    """Wait until that has happened so often, and the link is not up."""
    with trio.fail_after(120):
        while bench.counts.get(what, 0) < tries:  # noqa: ASYNC110 (nothing signals it)
            await trio.sleep(0.005)
    assert not bench.link.up


async def failed_reason(bench: Bench) -> str:
    """Wait for a few tries in vain; what was logged about them."""
    with capture_logs() as logged:
        await in_vain(bench)
    assert bench.link.state in (State.DOWN, State.CONNECTING)
    assert not bench.link.up
    return str(logged)


async def test_p09_an_expired_certificate_is_refused(
    nursery: trio.Nursery, authority: Authority
) -> None:
    address, host = await tls_host(nursery, authority.issue("host", -DAY))
    bench = tls_bench(nursery, address, ca=authority.ca)
    assert "expired" in await failed_reason(bench)
    assert not any(session.connection.signed_on for session in host.sessions)
    nursery.cancel_scope.cancel()


async def test_an_unknown_authority_is_refused(
    nursery: trio.Nursery, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    address, _ = await tls_host(nursery, other.issue("host"))
    bench = tls_bench(nursery, address, ca=authority.ca)
    assert "certificate" in await failed_reason(bench)
    nursery.cancel_scope.cancel()


async def test_another_name_is_refused(nursery: trio.Nursery, authority: Authority) -> None:
    address, _ = await tls_host(nursery, authority.issue("elsewhere"))
    bench = tls_bench(nursery, address, ca=authority.ca)
    assert "127.0.0.1" in await failed_reason(bench)
    named = tls_bench(nursery, address, ca=authority.ca, server_name="elsewhere")
    await named.up()
    nursery.cancel_scope.cancel()


async def test_p09_an_alarm_thirty_days_ahead(nursery: trio.Nursery, authority: Authority) -> None:
    # The wall clock of the tests is fixed: the certificate ends 20 days after it.
    ends = datetime.datetime.fromtimestamp(WALL_NS / 1e9 + trio.current_time(), datetime.UTC)
    lasts = ends + 20 * DAY - NOW
    if lasts < DAY:
        pytest.skip("the fixed clock of the tests lies too far back")
    address, _ = await tls_host(nursery, authority.issue("host", lasts))
    bench = tls_bench(nursery, address, ca=authority.ca)
    await bench.up()
    bench.ask(1)
    await bench.answered(1)
    assert bench.node.alarms == [("certificate_expires", "ceibo")]
    nursery.cancel_scope.cancel()


async def test_tls_that_the_host_does_not_speak(
    nursery: trio.Nursery, authority: Authority
) -> None:
    host = FakeHost()
    address, _ = await host.listen(nursery)
    bench = tls_bench(nursery, address, ca=authority.ca, sign_on_s=0.1)
    await in_vain(bench)
    nursery.cancel_scope.cancel()


def test_certificates_that_cannot_be_read_are_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        Dialer(LinkTls(ca=str(tmp_path / "missing.pem")), Path)
    (tmp_path / "bad.pem").write_text("no certificate")
    bad = str(tmp_path / "bad.pem")
    for tls in (LinkTls(ca=bad), LinkTls(cert=bad, key=bad)):
        with pytest.raises(ValueError, match=re.escape(bad)):
            Dialer(tls, Path)


async def test_keys_of_another_host(nursery: trio.Nursery) -> None:
    host = FakeHost(host_keys=keys(bytes(16)))
    address, _ = await host.listen(nursery)
    bench = Bench(nursery, connect=(LinkAddress(address),), sign_on_s=0.2)
    await in_vain(bench, "connects", 2)
    assert host.received == 0
    nursery.cancel_scope.cancel()
