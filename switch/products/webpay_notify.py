"""Telling shops how payments ended, within the 30 s that count.

The clock runs from t0, the moment the result was known. An answer counts by the instant of its last
byte; opening and checking it may end later. What comes afterwards is looked at only to be noted.
"""

import hashlib
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import trio

from core_ext import Histogram
from core_ext._journal import JournalFull
from protocols.webpay import messages, shopform
from protocols.webpay.decision import ShopAnswer
from protocols.webpay.fields import DEFAULT_PORTS
from protocols.webpay.pairs import parse_pairs
from protocols.webpay.seal import SealError, decoded
from switch.config import Config
from switch.flows.step import Step
from switch.flows.webpay import WebpayFlow
from switch.flows.webpay_records import Payment
from switch.net.raw_http import Delivery
from switch.node import Node
from switch.ops.logs import logger
from switch.products.webpay_keys import Rsa
from switch.sections.webpay import Merchant

SHOWN_BYTES: Final = 80
PRINT_DIGITS: Final = 16
"""Of a key's fingerprint: longer ones would be masked, as keys are."""

FULL_PAUSE_S: Final = 0.5

T = TypeVar("T")

log = logger("webpay")


class Told(NamedTuple):
    """What an answer comes to, and the digest of a sealed one."""

    answer: ShopAnswer
    digest: bytes = b""


class Notifier:
    """Posts results to kits and closing pages.

    Attributes:
        seal_failures: replies that did not open, by merchant.
        times: from t0 to the answer, by mode and answer. margins: limit minus that, of ACKs.
    """

    def __init__(self, config: Config, node: Node, flow: WebpayFlow, rsa: Rsa) -> None:
        self._section = config.webpay
        self._limit_s = config.webpay.limits.ack_timeout_ms / 1000
        self._node = node
        self._flow = flow
        self._rsa = rsa
        self._tls = {code: _context(config, m) for code, m in config.webpay.merchant.items()}
        self._nursery: trio.Nursery | None = None
        self._watched = 0
        self.seal_failures: dict[str, int] = {}
        self.times: dict[tuple[str, ...], Histogram] = {}
        self.margins = Histogram()

    def watch_in(self, nursery: trio.Nursery) -> None:
        """Where answers that are late are waited for."""
        self._nursery = nursery

    async def notify(self, name: str) -> None:
        """Tell the shop of a payment, once, and let the flow decide by what it says."""
        payment = self._flow.payment(name)
        t0_ns = self._flow.t0_ns(name)
        if payment is None or t0_ns is None or payment.merchant not in self._section.merchant:
            return  # decided meanwhile
        merchant = self._section.merchant[payment.merchant]
        t0_s = t0_ns / 1e9
        delivery, request = await self._delivery(merchant, payment)
        watching = False
        try:
            await delivery.run(request, until_s=t0_s + self._limit_s)
            ended_s = delivery.ended_s
            told = Told("NONE") if ended_s is None else await self._told(payment, delivery)
            # To the microsecond: the last digits of a float would make 30 s a little more.
            elapsed_ms = None if ended_s is None else round((ended_s - t0_s) * 1e6) / 1000
            self._measure(merchant, told, trio.current_time() - t0_s, elapsed_ms)
            await self._report(payment, merchant, told, elapsed_ms, delivery)
            watching = await self._afterwards(payment, told, delivery, elapsed_ms)
        finally:
            if not watching:
                with trio.CancelScope(shield=True):
                    await delivery.aclose()

    def _measure(
        self, merchant: Merchant, told: Told, waited_s: float, elapsed_ms: float | None
    ) -> None:
        found = self.times.setdefault((merchant.notify_mode, told.answer), Histogram())
        found.record(max(int(waited_s * 1e9), 0))
        if told.answer == "ACK" and elapsed_ms is not None:
            self.margins.record(int(max(self._limit_s - elapsed_ms / 1000, 0) * 1e9))

    async def _report(
        self,
        payment: Payment,
        merchant: Merchant,
        told: Told,
        elapsed_ms: float | None,
        delivery: Delivery,
    ) -> None:
        if told.answer != "ACK":
            answer = delivery.answer
            ours, theirs = self._rsa.fingerprints(payment.key_id, payment.merchant, payment.keys)
            log.warning(
                "notification_failed", payment=payment.shown, merchant=payment.merchant,
                answer=told.answer, phase=delivery.phase, address=_address(merchant),
                error=delivery.error, status=answer.status, elapsed_ms=elapsed_ms,
                begins=_printable(bytes(answer.raw[:SHOWN_BYTES])),
                signed_by=ours[:PRINT_DIGITS], sealed_for=theirs[:PRINT_DIGITS],
            )  # fmt: skip
        do = partial(
            self._flow.answered, name=payment.id, answer=told.answer, elapsed_ms=elapsed_ms,
            digest=told.digest,
        )  # fmt: skip
        await persist(self._node, do)

    # ---- out

    async def _delivery(self, merchant: Merchant, payment: Payment) -> tuple[Delivery, bytes]:
        pairs = parse_pairs(payment.message)
        if merchant.notify_mode == "kcc60":
            wire = await self._rsa.envelope(
                payment.merchant, payment.message, payment.signature, payment.keys[1]
            )
            body = shopform.notification_body(wire, payment.merchant)
            url = merchant.notify_url
            request = shopform.notification_request(url, body, target=merchant.target)
            address, port = merchant.notify_ip, merchant.notify_port
        else:
            url = merchant.direct.closing_url
            body = shopform.closing_body(
                pairs, payment.signature.hex(), encoding=merchant.direct.encoding,
                merchant=payment.merchant if merchant.direct.send_code else "",
            )  # fmt: skip
            request = shopform.closing_request(url, body, encoding=merchant.direct.encoding)
            address, port = _host_and_port(url)
        delivery = Delivery(
            address, port, tls=self._tls[payment.merchant],
            server_name=urlsplit(url).hostname or "",
        )  # fmt: skip
        return delivery, request

    # ---- in

    async def _told(self, payment: Payment, delivery: Delivery) -> Told:
        """What an answer that has ended says."""
        if delivery.is_none:
            return Told("NONE")
        merchant = self._section.merchant[payment.merchant]
        if merchant.notify_mode == "direct":
            return Told(_word(merchant, delivery))
        body = bytes(delivery.answer.body).strip(b" \t\r\n")
        if not delivery.answer.whole:
            return Told("BAD")
        try:
            opened = await self._rsa.open(payment.key_id, payment.merchant, body)
        except SealError:
            count = self.seal_failures.get(payment.merchant, 0) + 1
            self.seal_failures[payment.merchant] = count
            return Told("BAD")
        digest = hashlib.sha256(decoded(body)).digest()
        return Told(messages.reply_text(opened.message), digest)

    async def _afterwards(
        self, payment: Payment, told: Told, delivery: Delivery, elapsed_ms: float | None
    ) -> bool:
        """Note an answer that is late; True: it is still waited for, elsewhere."""
        if elapsed_ms is not None:
            if elapsed_ms > self._limit_s * 1000:
                await self._note(payment, told)
            return False
        full = self._watched >= self._section.limits.notifications_max
        if self._nursery is None or full or not delivery.is_open:
            return False
        self._watched += 1
        self._nursery.start_soon(self._note_late, delivery, payment)
        return True

    async def _note_late(self, delivery: Delivery, payment: Payment) -> None:
        try:
            if await delivery.watch(self._section.limits.late_watch_s):
                await self._note(payment, await self._told(payment, delivery))
        finally:
            self._watched -= 1
            with trio.CancelScope(shield=True):
                await delivery.aclose()

    async def _note(self, payment: Payment, told: Told) -> None:
        if told.answer == "ACK":
            late = partial(self._flow.late, name=payment.id, digest=told.digest)
            await persist(self._node, late)


async def persist(node: Node, do: Callable[[Step], T]) -> T:
    """Run what must be written down, as soon as the journal has room for it."""
    while True:
        try:
            return await node.perform(do)
        except JournalFull:
            await trio.sleep(FULL_PAUSE_S)


def _word(merchant: Merchant, delivery: Delivery) -> ShopAnswer:
    """What a closing page says; by the old rule what is not accepted is rejected."""
    rule = merchant.direct.answer_match
    verdict = shopform.verdict(delivery.answer, rule)
    if verdict == "ACCEPTED":
        return "ACK"
    return "ERR" if verdict in ("REJECTED", "NOT_ACCEPTED") else "BAD"


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]


def _address(merchant: Merchant) -> str:
    if merchant.notify_mode == "kcc60":
        return f"{merchant.notify_ip}:{merchant.notify_port}"
    host, port = _host_and_port(merchant.direct.closing_url)
    return f"{host}:{port}"


def _context(config: Config, merchant: Merchant) -> ssl.SSLContext | None:
    """TLS towards a shop, where its address asks for it; further roots as configured."""
    kit = merchant.notify_mode == "kcc60"
    url = merchant.notify_url if kit else merchant.direct.closing_url
    if urlsplit(url).scheme != "https":
        return None
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if merchant.direct.ca:
        context.load_verify_locations(config.file(merchant.direct.ca))
    return context


def _printable(data: bytes) -> str:
    """Bytes of a stranger, for a log: printable ASCII, all else escaped."""
    return "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else f"\\x{b:02x}" for b in data)
