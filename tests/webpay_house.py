"""An acquirer in one process for tests: real journal, flow, keys and sockets; the clock is trio's.

Shops are servers of ours whose answers a test writes; the bank is the end of a link, where a test
sees every message decoded and answers it, loses it, or lets it be answered by itself.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPrivateNumbers,
    RSAPublicNumbers,
    rsa_crt_dmp1,
    rsa_crt_dmq1,
    rsa_crt_iqmp,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from protocols.iso8583.connection import Received
from protocols.iso8583.dialect import Dialect, Message
from protocols.webpay import bitacora, seal
from protocols.webpay.mac import payment_mac
from protocols.webpay.pairs import join_pairs
from switch import config as configuration
from switch.clock import SystemClock
from switch.flows import webpay_records as rec
from switch.flows.bank_port import BankPort
from switch.flows.webpay_records import Payment
from switch.net.saf import StoreAndForward
from switch.node import Node
from switch.ops.key_store import KeyStore
from switch.ops.keys import MasterKey
from switch.products import webpay
from switch.products.webpay_service import WebpayService
from switch.web.webpay import Entered, Refused, View
from switch.web.webpay_form import Card

MASTER = MasterKey(bytes(range(32)))
CODE = "597026007976"
GOOD_CARD = "4051885600446623"
BAD_CARD = "5186059559590568"
BANK = "emisor1"
VECTORS = Path(__file__).parent / "vectors" / "webpay.json"
KEY_SECONDS_MAX = 30.0

Fields = dict[str, str]
Script = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@cache
def key(name: str) -> RSAPrivateKey:
    """A private key of the vectors."""
    found = json.loads(VECTORS.read_text())["keys"][name]
    n, e, d, p, q = (int(found[part], 16) for part in "nedpq")
    return RSAPrivateNumbers(
        p, q, d, rsa_crt_dmp1(d, p), rsa_crt_dmq1(d, q), rsa_crt_iqmp(p, q), RSAPublicNumbers(e, n)
    ).private_key(unsafe_skip_rsa_key_validation=True)


def private_pem(name: str) -> bytes:
    return key(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def stored_keys() -> dict[str, bytes]:
    """The files of a key store with the acquirer's key and the shop's."""
    with tempfile.TemporaryDirectory() as directory:
        store = KeyStore(Path(directory), MASTER)
        store.add("webpay-101", private_pem("sim_webpay_4096"))
        store.add("shop", public_pem("merchant_test_2048"))
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def public_pem(name: str) -> bytes:
    return key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def toml(
    *, mode: str = "kcc60", authoriser: str = "ledger", port: int = 1, limits: str = "",
    section: str = "", merchant: str = "", bank_port: int | None = 1,
    closing: str = "", direct: str = "",
) -> str:  # fmt: skip
    """The configuration of an acquirer with one shop on this machine.

    Args:
        closing: URL of the closing page; else that of the shop. direct: more of its settings.
        bank_port: of who asks holders' banks; None: `section` has it, or there is none.
    """
    listeners = "\n".join(f'{name} = "127.0.0.1:0"' for name in configuration.LISTENERS)
    asks = f'authentication = {{ bank_url = "http://127.0.0.1:{bank_port}/autenticar" }}'
    asks = "" if bank_port is None else asks
    way = "ledger" if authoriser == "ledger" else f"bank:{BANK}"
    return f"""
[listen]
{listeners}
[journal]
segment_bytes = 4_194_304
group_bytes_max = 524_288
reserve_bytes = 524_288
[ledger]
accounts_max = 1000
holds_max = 10_000
keys_max = 40_000
records_bytes_max = 33_554_432
[webpay]
allow = {{ private = true }}
{asks}
limits = {{ {limits} }}
{section}
[webpay.merchant."{CODE}"]
name = "Tienda de prueba"
key = "shop"
authoriser = "{way}"
instalments = ["VN-0", "SI-3", "VC-6", "VC-12"]
notify_mode = "{mode}"
notify_url = "http://127.0.0.1:{port}/cgi-bin/tbk_bp_resultado.cgi"
notify_ip = "127.0.0.1"
notify_port = {port}
direct = {{ closing_url = "{closing or f"http://127.0.0.1:{port}/xt_compra"}"{direct} }}
return_hosts = ["example.cl", "example.cl:8443"]
api_key = "env:WEBPAY_TEST_KEY"
{merchant}
"""


def request_pairs(order: str, port: int, **changes: str) -> list[tuple[str, str]]:
    """The pairs of a payment request, as the kit writes them; without checksum yet."""
    fields = {
        "TBK_TIPO_TRANSACCION": "TR_NORMAL",
        "TBK_CODIGO_COMERCIO": CODE,
        "TBK_ID_TRANSACCION": f"{time.perf_counter_ns() % 10**10}",
        "TBK_URL_CGI_COMERCIO": f"http://127.0.0.1:{port}/cgi-bin/tbk_bp_resultado.cgi",
        "TBK_SERVIDOR_COMERCIO": "127.0.0.1",
        "TBK_PUERTO_COMERCIO": str(port),
        "TBK_VERSION_KCC": "6.0",
        "TBK_KEY_ID": "101",
        "PARAMVERIFCOM": "1",
        "TBK_MAC": "",
        "TBK_MONTO": "1000000",
        "TBK_ORDEN_COMPRA": order,
        "TBK_ID_SESION": "S1",
        "TBK_URL_EXITO": "http://example.cl/exito?a=1",
        "TBK_URL_FRACASO": "http://example.cl/fracaso",
    } | changes
    return [(name, value) for name, value in fields.items() if value is not None]


def sealed_request(pairs: list[tuple[str, str]], *, mac: str = "", signer: str = "") -> Fields:
    """The clear fields of a request, its checksum made and its pairs sealed by the shop."""
    code = dict(pairs)["TBK_CODIGO_COMERCIO"]
    right = mac or payment_mac(pairs, code)
    whole = [(name, right if name == "TBK_MAC" else value) for name, value in pairs]
    wire = seal.seal_wire(
        join_pairs(whole), key(signer or "merchant_test_2048"),
        key("sim_webpay_4096").public_key(), aes_key=os.urandom(32), iv=os.urandom(16),
    )  # fmt: skip
    return {
        "TBK_PARAM": wire.decode("ascii"),
        "TBK_VERSION_KCC": "6.0",
        "TBK_CODIGO_COMERCIO": CODE,
        "TBK_KEY_ID": "101",
    }


def card(
    pan: str = GOOD_CARD, *, kind: str = "C", choice: tuple[str, int] = ("VN", 0), bank: str = ""
) -> Card:
    if kind == "D":
        return Card("D", pan, "", "", "VD", 0, bank or "bbva")
    return Card("C", pan, "3012", "123", *choice, bank="")


async def pause() -> None:
    """Let real time pass a little, whatever the clock of the test does."""
    await trio.to_thread.run_sync(time.sleep, 0.002)


async def until(good: Callable[[], Any]) -> Any:
    """Wait, in real time, until something is so."""
    end = time.monotonic() + KEY_SECONDS_MAX
    while not (found := good()):
        assert time.monotonic() < end, "it never came"
        await pause()
    return found


class Bank:
    """The far end of a link to a bank, seen from its port.

    Attributes:
        auto: answer purchases by the card, and reversals with 00.
        asked: all messages, decoded, with their tokens.
    """

    def __init__(self) -> None:
        self._dialect = Dialect.load("bank")
        self.up = True
        self.auto = True
        self.code = ""
        self.asked: list[tuple[Message, Any]] = []
        self._unanswered: list[int] = []
        self.node: Node
        self.port: BankPort

    def request(
        self, mti: str, elements: Mapping[str, object], *, token: Any, budget_s: float
    ) -> str:
        if not self.up:
            return "down"
        whole = {"mti": mti, **elements, "7": "1122120000", "11": f"{len(self.asked) + 1:06}"}
        self.asked.append((self._dialect.decode(self._dialect.encode(whole)), token))
        self._unanswered.append(len(self.asked) - 1)
        return ""

    def flush(self) -> None:
        if self.auto:
            due, self._unanswered = self._unanswered, []
            for place in due:
                self.answer(place)

    def sent(self, *mtis: str) -> list[Message]:
        """Messages of these types, in order."""
        return [message for message, _ in self.asked if message.mti in mtis]

    def answer(self, place: int = -1, code: str = "", **more: str) -> None:
        """Answer a message: a purchase by its card, unless a code is given."""
        message, token = self.asked[place]
        code = code or self.code if message.mti in ("0200", "0100") else code
        if not code:
            declined = message.mti == "0200" and message["2"] == BAD_CARD
            code = "05" if declined else "00"
        elements: dict[str, object] = {
            "mti": message.mti[:2] + ("10" if message.mti[2] == "0" else "30"),
            "3": message["3"], "4": message["4"], "7": message["7"], "11": message["11"],
            "37": message["37"], "39": code, "49": message["49"],
        }  # fmt: skip
        if message.mti == "0200":
            elements["15"] = "1123"
            if code == "00":
                elements["38"] = "154935"
        answer = self._dialect.decode(self._dialect.encode(elements | more))
        step = self.node.begin()
        self.port.on_answer(step, token, Received(answer, is_request=False))
        self.node.end(step)

    def lose(self, place: int = -1, reason: str = "timeout") -> None:
        """No answer will come."""
        step = self.node.begin()
        self.port.on_lost(step, self.asked[place][1], reason)
        self.node.end(step)


class Ways:
    """The remote side of a node: one bank."""

    def __init__(self, node: Node, bank: Bank) -> None:
        self._node = node
        self._bank = bank

    def bank(self, name: str) -> BankPort:
        if name != BANK:
            raise LookupError(name)
        settings = configuration.LinkSettings(institution="0011")
        port = BankPort(
            name=name, node=self._node, debts=StoreAndForward(up=True), settings=settings,
            events=lambda step, name, event: None,
        )  # fmt: skip
        port.attach(self._bank)
        self._node.banks[name] = port
        self._bank.node, self._bank.port = self._node, port
        return port


class Shop:
    """A shop's server. `script` answers each request; `requests` has all that came, whole."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.requests: list[bytes] = []
        self.script: Script = self.accept
        self.port = 0
        self.listeners: list[trio.SocketListener] = []

    async def listen(self) -> None:
        self.listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = self.listeners[0].socket.getsockname()[1]

    async def serve(self) -> None:
        try:
            await trio.serve_listeners(self._one, self.listeners)
        except* trio.ClosedResourceError:
            pass  # a test has taken the shop away

    async def _one(self, stream: trio.SocketStream) -> None:
        data = b""
        try:
            while b"\r\n\r\n" not in data or len(data) < _whole(data):
                part = await stream.receive_some(65536)
                if not part:
                    return
                data += part
            self.requests.append(data)
            await self.script(stream, data)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    def body(self, word: str, *, signer: str = "") -> bytes:
        """What says ACK or ERR in this mode."""
        if self.mode == "direct":
            return {"ACK": b"ACEPTADO", "ERR": b"RECHAZADO"}.get(word, word.encode())
        return seal.seal_wire(
            word.encode(), key(signer or "merchant_test_2048"),
            key("sim_webpay_4096").public_key(), aes_key=os.urandom(32), iv=os.urandom(16),
        )  # fmt: skip

    def answer(self, word: str, *, after_s: float = 0.0) -> Script:
        """Say a word, framed by its length."""

        async def script(stream: trio.SocketStream, data: bytes) -> None:
            if after_s:
                await trio.sleep(after_s)
            await stream.send_all(framed(self.body(word)))

        return script

    async def accept(self, stream: trio.SocketStream, data: bytes) -> None:
        await self.answer("ACK")(stream, data)

    async def silent(self, stream: trio.SocketStream, data: bytes) -> None:
        await trio.sleep_forever()


def framed(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _whole(data: bytes) -> int:
    head, _, _ = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(head) + 4 + int(line.split(b":")[1])
    return 0


class Acquirer:
    """A node that plays Webpay, with one shop and one bank."""

    def __init__(self, directory: Path, shop: Shop, bank: Bank, text: str) -> None:
        self.directory, self.shop, self.bank = directory, shop, bank
        path = directory / "troncal.toml"
        path.write_text(text)
        os.environ["WEBPAY_TEST_KEY"] = "la-clave"
        self.config = configuration.load(path, environ={})
        keys = self.config.data / "keys"
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in stored_keys().items():
            (keys / name).write_bytes(content)
        self.node = Node(self.config, MASTER, SystemClock(), self.config.data)
        self.node.open(self._prepare)
        self.flow.ledger.open_card(
            self.service.pan_hash(GOOD_CARD), "CLP", 0 if self._has_card else 10_000_000,
            self.node.clock.wall_ns(),
        )  # fmt: skip

    def _prepare(self) -> None:
        self._has_card = next(iter(self.node.store.records.items(rec.CARDS)), None) is not None
        self.product = webpay.build(self.node, Ways(self.node, self.bank))  # type: ignore[arg-type]
        self.node.attach(self.product.flow, self.product.service)
        assert isinstance(self.product.service, WebpayService)
        self.service = self.product.service
        self.flow: Any = self.product.flow

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """What an app runs for a node."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._gate)
            nursery.start_soon(self._settle)
            nursery.start_soon(self._timers)
            await nursery.start(self.service.run)
            task_status.started()

    async def _gate(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.node.store.journal.fileno())
            self.node.on_durable()

    async def _settle(self) -> None:
        while True:
            await self.node.turned.wait()
            self.node.turned = trio.Event()
            self.node.settle()

    async def _timers(self) -> None:
        while True:
            self.node.run_timers()
            await trio.sleep(0.05)

    # ---- one payment

    async def enter(self, order: str = "OC1", **changes: Any) -> Entered | Refused:
        return await self.service.enter(
            sealed_request(request_pairs(order, self.shop.port, **changes)), "127.0.0.1"
        )

    async def form(self, order: str = "OC1", **changes: Any) -> "Page":
        entered = await self.enter(order, **changes)
        assert isinstance(entered, Entered), entered
        page = Page(self, entered.page_id, entered.cookie)
        await self.service.shown(page.page_id)
        return page

    async def paid(self, order: str = "OC1", *, with_card: Card | None = None) -> "Page":
        page = await self.form(order)
        await page.pay(with_card or card())
        return page

    # ---- what became of it

    def lines(self) -> list[tuple[str, str]]:
        """Prefix and TBK_RESPUESTA of every line on disk."""
        top = self.config.file(self.config.webpay.bitacora.dir)
        found = []
        for path in sorted(top.rglob("*.log")):
            parsed = bitacora.parse(path.read_bytes(), key("sim_webpay_4096").public_key())
            assert not parsed.skipped
            assert all(record.mac == "ok" for record in parsed.records)
            found += [(r.prefix, r.value("respuesta") or "") for r in parsed.records]
        return found

    def charged(self) -> int:
        """What merchants have by our own ledger; minor units."""
        from switch.flows.registry import account_id

        found = self.node.store.ledger.balance(account_id(f"webpay:CLP:merchant:{CODE}"))
        return 0 if found is None else found.credits_posted

    def held(self) -> int:
        """What is held on the card by our own ledger."""
        from switch.flows.registry import account_id

        name = f"webpay:CLP:card:{self.service.pan_hash(GOOD_CARD).hex()}"
        found = self.node.store.ledger.balance(account_id(name))
        return 0 if found is None else found.debits_pending

    def payments(self) -> list[Payment]:
        """All of them, as they stand."""
        names = [name for name, _ in self.node.store.records.items(rec.PAYMENTS)]
        return [self.flow.payment(name.decode()) for name in names]

    def unfinished(self) -> list[Payment]:
        return [payment for payment in self.payments() if payment.is_open]

    def summary(self) -> dict[str, Any]:
        """What became of everything, for another process."""
        return {
            "states": [p.state for p in self.payments()],
            "causes": [p.cause for p in self.payments()],
            "lines": self.lines(),
            "charged": self.charged(),
            "held": self.held(),
            "keys": self.keys_left(),
            "alarms": dict(self.node.alarms),
        }

    def keys_left(self) -> int:
        """Keys of card numbers that are not erased."""
        return len(self.service._data_keys)

    def close(self) -> None:
        self.node.store.commit()
        self.node.settle()
        assert self.node.store.ledger.check() == []
        self.node.close()


class Page:
    """A cardholder before one payment."""

    def __init__(self, acquirer: Acquirer, page_id: str, cookie: str) -> None:
        self.acquirer = acquirer
        self.page_id = page_id
        self.cookie = cookie

    @property
    def view(self) -> View:
        found = self.acquirer.service.view(self.page_id, self.cookie)
        assert found is not None, "the page is there"
        return found

    @property
    def payment(self) -> Payment:
        found: Payment = self.acquirer.flow.payment(self.page_id[:32])
        return found

    @property
    def state(self) -> str:
        return self.payment.state

    async def pay(self, with_card: Card) -> None:
        await self.acquirer.service.pay(self.page_id, self.view.nonce, with_card)

    async def authenticate(self, outcome: str) -> None:
        """Its bank has said so."""
        await self.acquirer.service._authenticated(self.payment.id, outcome)

    async def ended(self, *states: str) -> Payment:
        """Wait until it is in one of these states, or in any final one; and its line on disk."""
        wanted = states or tuple(rec.FINAL)
        await until(lambda: self.state in wanted)
        flow, service = self.acquirer.flow, self.acquirer.service
        await until(lambda: service._writer.number == flow.newest_line)
        return self.payment


@asynccontextmanager
async def acquiring(
    directory: Path, *, mode: str = "kcc60", authoriser: str = "ledger", shop: Shop | None = None,
    bank: Bank | None = None, **settings: Any,
) -> AsyncIterator[Acquirer]:  # fmt: skip
    """An acquirer that runs, with its shop."""
    shop = shop or Shop(mode)
    if not shop.listeners:
        await shop.listen()
    text = toml(mode=mode, authoriser=authoriser, port=shop.port, **settings)
    acquirer = Acquirer(directory, shop, bank or Bank(), text)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.serve)
        await nursery.start(acquirer.run)
        try:
            yield acquirer
        finally:
            nursery.cancel_scope.cancel()
    acquirer.close()


def digest(wire: bytes) -> bytes:
    return hashlib.sha256(seal.decoded(wire)).digest()


__all__ = ["Acquirer", "Bank", "Page", "Shop", "acquiring", "card", "partial", "until"]
