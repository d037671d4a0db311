"""Client certificates of a site's machines, over real TLS; customers need none."""

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from switch.web.edge import serve_http
from tests.cip_house import APP, CipHouse

PAYMENTS = "/cip/v1/gateway/payments"


def certificate(path: Path, name: str) -> str:
    """A new key with its own signature on it, in one PEM file; its SHA-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now + hour)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip
    return sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(tmp_path)
    yield found
    found.close()


@asynccontextmanager
async def served(house: CipHouse, directory: Path) -> AsyncIterator[str]:
    """The house's pages over TLS that asks for certificates and demands none."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(directory / "server.pem")
    for name in ("site", "other"):
        server.load_verify_locations(directory / f"{name}.pem")
    server.verify_mode = ssl.CERT_OPTIONAL
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    stop = trio.Event()
    async with house.running(), trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await serve_http(
                house.product.mounts[0], listener, stop=stop, tls=server, task_status=task_status
            )

        await nursery.start(serve)
        yield f"https://127.0.0.1:{port}"
        stop.set()


async def test_an_application_may_demand_a_certificate_of_its_machines(
    house: CipHouse, tmp_path: Path
) -> None:
    prints = {name: certificate(tmp_path / f"{name}.pem", name) for name in
              ("server", "site", "other")}  # fmt: skip

    def client(url: str, name: str = "") -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
        if name:
            context.load_cert_chain(tmp_path / f"{name}.pem")
        return httpx.AsyncClient(base_url=url, verify=context, trust_env=False, timeout=120)

    async with (
        served(house, tmp_path) as url, client(url) as bare, client(url, "site") as own,
        client(url, "other") as other,
    ):  # fmt: skip
        assert (await house.pay(bare, "INV-0")).status_code == 201  # nothing is demanded yet
        house.command("cip_app_set", id=APP, values={"certificates": [prints["site"]]})
        assert (await house.pay(own, "INV-1")).status_code == 201
        for stranger in (bare, other):
            refused = await house.pay(stranger, "INV-2")
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "authentication_failed"
            opened = await stranger.post("/cip/v1/partial/sessions", json=house.context("P-1"))
            assert opened.status_code == 401
            assert (await stranger.get(f"/pay/{APP}")).status_code == 303  # a customer
        assert (
            await own.post("/cip/v1/partial/sessions", json=house.context("P-1"))
        ).status_code == 201
        assert [p.client_ref for p in house.payments() if p.mode == "gateway"] == [
            "INV-0", "INV-1",
        ]  # fmt: skip
