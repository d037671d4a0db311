"""Webpay over real sockets, without a browser: tokens, status for shops, old TLS (WP-48)."""

import datetime
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from protocols.webpay import mac, messages, seal, shopform
from switch.cli import setup
from switch.cli.webpay_world import CODE_FIRST, Plan, World, node, running
from switch.config import LISTENERS, load
from switch.products.webpay_shop import ORDERS
from switch.simulators.webpay_merchant import KIT_PATH
from switch.simulators.webpay_people import Holder, credit_card
from switch.web.webpay_orders import Orders
from switch.web.webpay_shop import MerchantKit, PaymentForm
from tests.e2e.webpay_world import keys
from tests.webpay_shops import APPROVED_PAN, CVV, DECLINED_PAN

pytestmark = pytest.mark.timeout(240)
API_KEY = "una-llave-larga-de-prueba"
PREFIX = "/filtroUnificado"


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("WEBPAY_TEST_API_KEY", API_KEY)
    plan = Plan(more='api_key = "env:WEBPAY_TEST_API_KEY"')
    async with running(tmp_path / "node", [plan], keys()) as found:
        yield found


async def test_wp_48_a_kits_token_opens_the_form_once(world: World) -> None:
    shop = world.shops[0].merchant
    form = dict((await shop.payment(await shop.new_order("590000"))).fields)
    async with httpx.AsyncClient(base_url=world.url, timeout=120) as kit:
        reply = await kit.post(f"{PREFIX}/bp_validacion.cgi", data=form)
        opened = seal.open_wire(
            reply.content, keys().shop, keys().webpay.public_key(), spare_key=bytes(32)
        )
        found = messages.parse_token_reply(opened.message)
        assert found is not None
        error, token = found
        assert (error, len(token)) == (0, 64)
        fields = {"TBK_TOKEN": token, "TBK_VERSION_KCC": "6.0"}
        first = await kit.get(f"{PREFIX}/bp_revision.cgi", params=fields)
        assert (first.status_code, first.headers["location"][:13]) == (303, "/webpay/pago/")
        page = await kit.get(first.headers["location"])
        assert "Pague su compra" in page.text
        second = await kit.post(f"{PREFIX}/bp_revision.cgi", data=fields)
        assert second.status_code == 400
        wrong = await kit.get(f"{PREFIX}/bp_revision.cgi", params={**fields, "TBK_TOKEN": "0" * 64})
        assert wrong.status_code == 400
        bad = await kit.post(f"{PREFIX}/bp_validacion.cgi", data={**form, "TBK_PARAM": "AAAA"})
        assert (bad.status_code, "ERROR=1\nTOKEN=" + "0" * 64 in bad.text) == (200, True)


async def test_wp_35_every_damaged_wire_has_the_same_answer(world: World) -> None:
    shop = world.shops[0].merchant
    form = dict((await shop.payment(await shop.new_order("590000"))).fields)
    wire = form["TBK_PARAM"]
    damaged = ["", "x", wire[:-10], wire[:700] + ("A" if wire[700] != "A" else "B") + wire[701:],
               shop._other_kit.seal_message(b"A=1")]  # type: ignore[union-attr]  # fmt: skip
    answers = set()
    async with httpx.AsyncClient(base_url=world.url, timeout=120) as browser:
        for text in damaged:
            data = {**form, "TBK_PARAM": text}
            answer = await browser.post(f"{PREFIX}/bp_revision.cgi", data=data)
            answers.add((answer.status_code, answer.content))
    assert len(answers) == 1
    ((status, body),) = answers
    assert (status, b"<!-- Codigo Error: 1 -->" in body) == (400, True)


async def test_a_shop_asks_what_became_of_its_order(world: World) -> None:
    shop = world.shops[0].merchant
    order = await shop.new_order("590000")
    async with Holder(world.url, shop) as holder:
        page = await holder.pay(order, credit_card(APPROVED_PAN, CVV))
    assert "Pago aprobado" in page
    path = "/api/webpay/v1/transactions"
    async with httpx.AsyncClient(base_url=world.url, timeout=120) as client:
        headers = {"authorization": f"Bearer {API_KEY}"}
        answer = await client.get(path, params={"order": order}, headers=headers)
        refused = await client.get(path, params={"order": order})
    (known,) = answer.json()["transactions"]
    assert (known["state"], refused.status_code) == ("CONFIRMED", 401)
    assert APPROVED_PAN not in answer.text


class OwnShop:
    """A shop whose kit the node serves: it shares the data base of orders with it."""

    def __init__(self, world: World, kit: MerchantKit) -> None:
        self.orders = Orders(world.config.data / ORDERS)
        self.kit = kit

    async def payment(self, number: str, **other: str) -> PaymentForm:
        start = partial(
            self.kit.start_order, self.orders, number,
            success="http://127.0.0.1:1/exito", failure="http://127.0.0.1:1/fracaso",
        )  # fmt: skip
        return await trio.to_thread.run_sync(start)


async def test_the_node_is_the_kit_of_a_shop_and_its_acquirer(tmp_path: Path) -> None:
    """Both sides in one process: the acquirer notifies the kit over its own HTTP listener."""

    def amend(text: str) -> str:
        found = re.search(r'http = "127.0.0.1:([0-9]+)"', text)
        assert found is not None
        notify = f'"http://127.0.0.1:{found[1]}{KIT_PATH}"'
        text = re.sub(r'notify_url = "http://127[^"]*"', f"notify_url = {notify}", text)
        text = re.sub(r"notify_port = [1-9][0-9]*", f"notify_port = {found[1]}", text)
        text = re.sub(r"return_hosts = .*", 'return_hosts = ["127.0.0.1:1"]', text)
        return text + (
            f'\n[webpay_shop."{CODE_FIRST}"]\nkey = "merchant-shops"\nnotify_url = {notify}\n'
            f'notify_ip = "127.0.0.1"\nnotify_port = {found[1]}\n'
        )

    async with running(tmp_path / "node", [Plan()], keys(), amend=amend) as world:
        (shop,) = world.config.webpay_shop.values()
        settings = msgspec.structs.replace(
            world.shops[0].merchant.kit.settings,
            notify_url=shop.notify_url,
            notify_port=shop.notify_port,
        )
        kit = MerchantKit(settings, keys().shop, keys().webpay.public_key(), wall_ns=time.time_ns)
        own = OwnShop(world, kit)
        for number, pan, state in (("A1", APPROVED_PAN, "PAID"), ("A2", DECLINED_PAN, "DECLINED")):
            own.orders.create(kit.merchant, number, "590000")
            async with Holder(world.url, own) as holder:
                page = await holder.pay(number, credit_card(pan, CVV))
            assert ("Pago aprobado" in page) == (state == "PAID")
            order = own.orders.order(kit.merchant, number)
            assert order is not None
            assert order.state == state
        await _an_old_kit_asks(world, own)
        config = world.config
    files = sorted(config.file(config.webpay.bitacora.dir).rglob("tbk_bitacora_*.log"))
    assert len(files) == 2, "the acquirer's and the shop's own"
    assert files[0].read_bytes() == files[1].read_bytes()


async def _an_old_kit_asks(world: World, own: OwnShop) -> None:
    """HTTP/1.0 without Host, every byte percent-encoded, CR LF behind the announced length."""
    own.orders.create(own.kit.merchant, "A3", "590000")
    pairs = messages.result_pairs(messages.ResultFields(
        order="A3", respuesta=0, amount="590000", auth_code="154935", last4="6623",
        accounting_date="1122", tx_date="1122", tx_time="120000", session="S1", tx_id="77",
        pay_type="VN", instalments=0, vci="TSY",
    ))  # fmt: skip
    address = [*httpx.URL(world.url).netloc.decode().split(":")]
    signature = await trio.to_thread.run_sync(mac.sign_mac, pairs, keys().webpay)
    for text, word in ((signature, b"ACEPTADO"), ("0" * 1024, b"RECHAZADO")):
        body = shopform.closing_body(pairs, text, encoding="kcc")
        request = shopform.closing_request(f"{world.url}/xt_compra", body, encoding="kcc")
        assert b"Host" not in request
        found = await trio.to_thread.run_sync(answered, address, request)
        head, _, said = found.partition(b"\r\n\r\n")
        assert (said, b" 200" in head.partition(b"\r\n")[0]) == (word, True)
        assert f"content-length: {len(word)}".encode() in head.lower()
        assert b"connection: close" in head.lower()
    order = own.orders.order(own.kit.merchant, "A3")
    assert order is not None
    assert order.state == "PAID"


# ---- TLS


def certificate(directory: Path) -> tuple[Path, Path]:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )  # fmt: skip
    cert, private = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return cert, private


def client_hello(version: bytes) -> bytes:
    """The first message of a client that knows nothing newer than `version`."""
    suites = bytes.fromhex("c013c014c009c00a002f0035000a")
    body = version + bytes(32) + b"\0" + len(suites).to_bytes(2, "big") + suites + b"\1\0"
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def answered(address: list[Any], data: bytes) -> bytes:
    with socket.create_connection((address[0], address[1]), 10) as connection:
        connection.settimeout(120)
        connection.sendall(data)
        found = b""
        try:
            while piece := connection.recv(4096):
                found += piece
        except ConnectionResetError:
            pass
    return found


async def test_wp_48_old_tls_is_refused_and_pages_are_for_tls_only_then(tmp_path: Path) -> None:
    cert, private = certificate(tmp_path)
    listeners = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS}
    make = partial(setup.make, tmp_path / "node", node_roles=("webpay",), **listeners)
    made = await trio.to_thread.run_sync(make)
    text = made.path.read_text() + f'\n[tls.http]\ncert = "{cert}"\nkey = "{private}"\n'
    made.path.write_text(text)
    async with node(load(made.path)) as (_, ready):
        for version in (b"\x03\x01", b"\x03\x02"):
            found = await trio.to_thread.run_sync(answered, ready["http"], client_hello(version))
            # Closed, or an alert (21) first; never a handshake (22).
            assert found[:1] in (b"", b"\x15")
        context = ssl.create_default_context(cafile=str(cert))
        url = f"https://localhost:{ready['http'][1]}"
        async with httpx.AsyncClient(verify=context, base_url=url, timeout=120) as browser:
            answer = await browser.post(f"{PREFIX}/bp_revision.cgi", data={"TBK_PARAM": "x"})
            nobody = {
                "TBK_PARAM": "x", "TBK_VERSION_KCC": "6.0", "TBK_KEY_ID": "101",
                "TBK_CODIGO_COMERCIO": "597026007976",
            }  # fmt: skip
            unknown = await browser.post(f"{PREFIX}/bp_revision.cgi", data=nobody)
    assert (answer.status_code, "<!-- Codigo Error: 12 -->" in answer.text) == (400, True)
    # A fresh node has no merchant and no key, and says so of every request.
    assert (unknown.status_code, "<!-- Codigo Error: 14 -->" in unknown.text) == (400, True)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
