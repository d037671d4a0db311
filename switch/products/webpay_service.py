"""Webpay between its flow and the world: what the pages ask for, and what the flow has ordered.

Everything that changes something goes through a step and returns once that is durable. Card numbers
are here in memory only, sealed before the flow sees what is kept of them.
"""

import hashlib
import hmac
import secrets
import sqlite3
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import trio

from core_ext._journal import JournalFull
from protocols.webpay import messages
from protocols.webpay.fields import (
    PaymentRequest,
    Profile,
    check_clear,
    check_message,
    refusal,
)
from protocols.webpay.fields import Refusal as Wrong
from protocols.webpay.pairs import parse_pairs
from protocols.webpay.seal import SealError, decoded
from switch.config import Config
from switch.flows import webpay_records as rec
from switch.flows.step import Call, Step
from switch.flows.webpay import ERASE, LINE, NOTIFY, SIGN, Choice, Received, WebpayFlow
from switch.flows.webpay_authorisers import Secret
from switch.flows.webpay_records import Payment
from switch.net.calls import Calls
from switch.node import Node
from switch.ops.data_keys import DataKeys
from switch.ops.logs import logger
from switch.products.webpay_holders import HolderBanks
from switch.products.webpay_keys import Rsa
from switch.products.webpay_notify import Notifier, persist
from switch.provisioning_webpay import pan_hash, pan_key
from switch.reports.bitacora import BitacoraWriter
from switch.web.webpay import Entered, Outcome, Refused, View
from switch.web.webpay_form import Card

RSA_QUEUE_MAX: Final = 1024
LINES_WAIT_S: Final = 5.0  # until a disk that was full is tried again
CLOSE_S: Final = 1.0
SWITCH_S: Final = 0.0005
"""A busy event loop lets a thread go on after this, which has to tell what its private operation
gave. Python's own 5 ms are as long as the operation, and come up to nine times a payment: in three
alternating pairs, 32 payments at once, this made 1.2 to 2 times as many."""

CLEAR: Final = b"<html><body>\nERROR=%d\nTOKEN=%s\n</body></html>\n"
COOKIES_MAX: Final = 8
_NAME_DIGITS: Final = 32
_ENDED: Final = frozenset(
    (rec.DECLINED, rec.DECLINED_UNACKED, rec.REVERSING, rec.REVERSED, rec.ABORTED)
)

log = logger("webpay")
T = TypeVar("T")


class WebpayService:
    """The acquirer as its pages see it (`switch.web.webpay.Acquirer`), and the flow's service.

    Args:
        data_keys: seal card numbers for reversals. writer: of the Bitácora's files.
        api_keys: (merchant, key) of status queries. banks: ask holders' banks.

    Attributes:
        requests: payment requests by the tag of the check that refused them, or `OK`.
        seal_failures: requests that did not open, by merchant.
    """

    def __init__(
        self,
        *,
        config: Config,
        node: Node,
        flow: WebpayFlow,
        rsa: Rsa,
        data_keys: DataKeys,
        writer: BitacoraWriter,
        api_keys: tuple[tuple[str, str], ...],
        banks: HolderBanks,
    ) -> None:
        self._section = config.webpay
        self._node = node
        self._flow = flow
        self._rsa = rsa
        self._data_keys = data_keys
        self._writer = writer
        self._api_keys = api_keys
        self._banks = banks
        debit = config.webpay.debit_banks
        self._debit_banks = tuple((bank.id, bank.name) for bank in debit if banks.asks(bank.id))
        self._asking: set[str] = set()  # payments whose holder's bank has been asked just now
        self._profiles = {code: _profile(code, m) for code, m in config.webpay.merchant.items()}
        root = node.master.subkey("fingerprint")
        self._pages_key = hmac.digest(root, b"webpay-pages", "sha256")
        self._pan_key = pan_key(root)
        self._one_writer = trio.CapacityLimiter(1)
        self._disk = trio.CapacityLimiter(1)
        # Payments whose line is durable and not on disk: first those that a stop left over. What
        # is concluded after this comes as a call, when it is durable.
        self._lines = flow.lines_after(writer.number)
        self._lines_due = trio.Event()
        self.notifier = Notifier(config, node, flow, rsa)
        limits = config.webpay.limits
        self._quick = Calls({SIGN: self._sign, ERASE: self._erase}, concurrent_max=RSA_QUEUE_MAX)
        self._shops = Calls({NOTIFY: self.notifier.notify}, concurrent_max=limits.notifications_max)
        self.requests: dict[str, int] = {}
        self.seal_failures: dict[str, int] = {}

    # ---- requests of shops

    async def enter(self, fields: Mapping[str, str], source: str) -> Entered | Refused:
        """Take the request a browser brings."""
        found, _ = await self._receive(fields, source)
        if isinstance(found, Wrong):
            return Refused(found.tag, found.error)
        cookie = self._cookie(found.payment, found.entry) if found.entry else ""
        return Entered(self._page_id(found.payment), cookie, found.payable)

    async def validate(self, fields: Mapping[str, str], source: str) -> tuple[bytes, str]:
        """Take the request a kit brings: the body of the answer, and the tag of a refusal."""
        found, keys = await self._receive(fields, source)
        code, key_id = fields.get("TBK_CODIGO_COMERCIO", ""), fields.get("TBK_KEY_ID", "")
        if isinstance(found, Wrong):
            if self._is_clear(found, fields):
                return CLEAR % (found.error, messages.NO_TOKEN.encode()), found.tag
            reply = messages.token_reply(found.error)
            return await self._rsa.seal(key_id, code, reply, keys), found.tag
        reply = messages.token_reply(0, self._token(found.payment))
        return await self._rsa.seal(key_id, code, reply, keys), ""

    def _is_clear(self, wrong: Wrong, fields: Mapping[str, str]) -> bool:
        """Whether nothing may be sealed yet: nobody has proved who he is."""
        if wrong.tag == "SEAL":
            return True
        return isinstance(check_clear(fields, self._profiles), Wrong)

    async def redeem(self, token: str, version: str) -> Entered | Refused:
        """The browser brings the token of its kit."""
        wrong = Refused("VERSION", 12) if version != "6.0" else Refused("SEAL", 1)
        name = self._named("token", token)
        if version != "6.0" or name is None:
            return wrong
        found = await self._node.perform(partial(self._flow.redeem, name=name))
        if found is None:
            return Refused("DUPLICATE_ORDER", 21)
        return Entered(self._page_id(name), self._cookie(name, found.entry), True)

    async def _receive(
        self, fields: Mapping[str, str], source: str
    ) -> tuple[Received | Wrong, rec.KeyNames]:
        """What becomes of a request, and the keys that an answer to it is sealed with."""
        found, keys = await self._checked(fields)
        if not isinstance(found, Wrong):
            request, digest = found
            do = partial(
                self._flow.receive, request=request, digest=digest, name=secrets.token_hex(16),
                keys=keys,
            )  # fmt: skip
            answer: Received | Wrong = await self._node.perform(do)
        else:
            answer = found
        tag = answer.tag if isinstance(answer, Wrong) else "OK"
        self.requests[tag] = self.requests.get(tag, 0) + 1
        if isinstance(answer, Wrong):
            code = fields.get("TBK_CODIGO_COMERCIO", "")
            known = code if code in self._profiles else "unknown"
            log.warning("request_refused", tag=tag, merchant=known, source=source)
        return answer, keys

    async def _checked(
        self, fields: Mapping[str, str]
    ) -> tuple[tuple[PaymentRequest, bytes] | Wrong, rec.KeyNames]:
        """The checks in their order; the seal costs a private operation, whatever it is worth."""
        profile = check_clear(fields, self._profiles)
        if isinstance(profile, Wrong):
            return profile, ("", "")
        try:
            wire = fields.get("TBK_PARAM", "").encode("latin-1")
        except UnicodeEncodeError:
            wire = b""
        try:
            opened = await self._rsa.open(fields["TBK_KEY_ID"], profile.code, wire)
        except SealError:
            self.seal_failures[profile.code] = self.seal_failures.get(profile.code, 0) + 1
            return refusal("SEAL"), ("", "")
        request = check_message(fields, opened.message, profile)
        if isinstance(request, Wrong):
            return request, opened.keys
        return (request, hashlib.sha256(decoded(wire)).digest()), opened.keys

    # ---- pages

    def view(self, page_id: str, cookie: str) -> View | None:
        """What a page shows; None: there is no such payment, or the cookie is not its."""
        name = self._named("page", page_id)
        payment = None if name is None else self._flow.payment(name)
        if payment is None or not self._is_cookie(payment, cookie):
            return None
        merchant = self._section.merchant.get(payment.merchant)
        if merchant is None:
            return None
        return View(
            state=payment.state, shop=merchant.name, merchant=payment.merchant,
            order=payment.order, amount_hundredths=payment.hundredths, currency=payment.currency,
            nonce=self._nonce(payment), kinds=self._kinds(payment), choices=self._choices(payment),
            banks=self._debit_banks,
            tries=payment.tries, authenticating=self._is_authenticating(payment),
            bank=self._bank_name(payment.bank), cause=payment.cause,
            respuesta=str(payment.respuesta) if payment.message else "",
            return_url=_return_url(payment), session=payment.session,
            expires_in_s=max((payment.expires_ns - self._node.clock.wall_ns()) // 10**9, 0),
            pay_type=payment.pay_type, instalments=payment.instalments,
            auth_code=payment.auth_code, last4=payment.last4,
            paid_at=f"{self._flow.dates.local(payment.received_ns):%d-%m-%Y %H:%M}",
            today=self._flow.dates.local(self._node.clock.wall_ns()).date(),
        )  # fmt: skip

    async def shown(self, page_id: str) -> None:
        name = self._named("page", page_id)
        if name is not None:
            await self._node.perform(partial(self._flow.show, name=name))

    async def pay(self, page_id: str, nonce: str, card: Card) -> None:
        """Pay, if the nonce is that of the form as it stands and nobody was quicker."""
        payment = self._of_page(page_id, nonce)
        if payment is None or payment.state != rec.FORM:
            return
        if not self._is_offered(payment, card):
            await self._node.perform(partial(self._flow.mistake, name=payment.id))
            return
        name = payment.id
        pan = card.pan.encode()
        seal = partial(self._data_keys.seal, name, pan)
        choice = Choice(
            kind=card.kind, pay_type=card.pay_type, instalments=card.instalments, bank=card.bank,
            pan_masked=f"{card.pan[:6]}{'*' * (len(card.pan) - 10)}{card.pan[-4:]}",
            pan_hash=self.pan_hash(card.pan),
            pan_sealed=await trio.to_thread.run_sync(seal, limiter=self._one_writer),
        )  # fmt: skip
        secret = Secret(card.pan, card.expiry, card.cvv)
        do = partial(self._flow.pay, name=name, choice=choice, secret=secret)
        try:
            paid = await self._node.perform(do)
        except JournalFull:
            self._quick.spawn(partial(self._give_up, name))
            raise
        current = self._flow.payment(name)
        if not paid and (current is None or not current.pan_sealed):
            await self._erase(name)

    async def _give_up(self, name: str) -> None:
        """Nothing was sent, and the journal had no room to say so: it says so when it has."""
        await persist(self._node, partial(self._flow.abort, name=name))
        await self._erase(name)

    async def bad_input(self, page_id: str, nonce: str) -> None:
        await self._with(page_id, nonce, self._flow.mistake)

    async def cancel(self, page_id: str, nonce: str) -> None:
        await self._with(page_id, nonce, self._flow.cancel)

    async def identify(self, page_id: str, nonce: str, rut: str, password: str) -> None:
        """Ask the holder's bank, once at a time, and go on with what it says."""
        payment = self._of_page(page_id, nonce)
        if payment is None or not self._is_authenticating(payment):
            return
        self._asking.add(payment.id)
        try:
            outcome = await self._banks.ask(payment, rut, password)
            await self._authenticated(payment.id, outcome)
        finally:
            self._asking.discard(payment.id)

    async def leave_bank(self, page_id: str, nonce: str) -> None:
        """The holder does not want to say who it is."""
        payment = self._of_page(page_id, nonce)
        if payment is not None and self._is_authenticating(payment):
            await self._authenticated(payment.id, "ABO")

    async def _authenticated(self, name: str, outcome: Outcome) -> None:
        try:
            await self._node.perform(partial(self._flow.authenticated, name=name, outcome=outcome))
        except JournalFull:
            self._quick.spawn(partial(self._give_up, name))
            raise

    async def _with(self, page_id: str, nonce: str, do: Callable[[Step, str], None]) -> None:
        payment = self._of_page(page_id, nonce)
        if payment is not None:
            name = payment.id
            await self._node.perform(lambda step: do(step, name))

    def status(self, api_key: str, order: str) -> list[dict[str, Any]] | None:
        """What became of an order, for the shop whose key this is; None: it is nobody's."""
        found = None
        for code, key in self._api_keys:  # all of them: how long it takes tells nothing
            if hmac.compare_digest(key.encode(), api_key.encode()):
                found = code
        if found is None:
            return None
        return [_told(payment) for payment in self._flow.of_order(found, order)]

    # ---- what is offered

    def _kinds(self, payment: Payment) -> tuple[str, ...]:
        merchant = self._section.merchant[payment.merchant]
        asked = self._section.holder_auth != "none" and bool(self._debit_banks)
        debit = merchant.form == "3G" and asked
        return ("C", "D") if debit and payment.fixed is None else ("C",)

    def _choices(self, payment: Payment) -> tuple[str, ...]:
        if payment.fixed is not None:
            return (f"CI-{payment.fixed[0]}",)
        return self._section.merchant[payment.merchant].instalments

    def _is_offered(self, payment: Payment, card: Card) -> bool:
        if card.kind not in self._kinds(payment):
            return False
        if card.kind == "D":
            return any(name == card.bank for name, _ in self._debit_banks)
        return f"{card.pay_type}-{card.instalments}" in self._choices(payment)

    def _bank_name(self, name: str) -> str:
        return next((b.name for b in self._section.debit_banks if b.id == name), "")

    def _is_authenticating(self, payment: Payment) -> bool:
        """Whether the holder may say who it is: not twice at once, as of two windows."""
        waits = payment.state == rec.PAYING and self._flow.t0_ns(payment.id) is None
        return waits and payment.id not in self._asking

    # ---- names that nobody can guess

    def pan_hash(self, pan: str) -> bytes:
        """By what a card is known again."""
        return pan_hash(self._pan_key, pan)

    def _mac(self, what: str, name: str, *more: object) -> str:
        text = "|".join(str(part) for part in (what, name, *more))
        return hmac.digest(self._pages_key, text.encode(), "sha256").hex()

    def _page_id(self, name: str) -> str:
        return name + self._mac("page", name)[:_NAME_DIGITS]

    def _token(self, name: str) -> str:
        return name + self._mac("token", name)[:_NAME_DIGITS]

    def _named(self, what: str, text: str) -> str | None:
        """The payment a page id or token names; None: it is none of ours."""
        name, mac = text[:_NAME_DIGITS].lower(), text[_NAME_DIGITS:].lower()
        right = self._mac(what, name)[:_NAME_DIGITS]
        return name if hmac.compare_digest(mac.encode(), right.encode()) else None

    def _cookie(self, name: str, entry: int) -> str:
        return f"{entry}.{self._mac('cookie', name, entry)}"

    def _is_cookie(self, payment: Payment, cookie: str) -> bool:
        entry, _, _ = cookie.partition(".")
        number = int(entry) if entry.isascii() and entry.isdigit() and len(entry) < 7 else 0
        right = self._cookie(payment.id, number)
        good = hmac.compare_digest(cookie.encode(), right.encode())
        return good and max(payment.entries - COOKIES_MAX, 0) < number <= payment.entries

    def _nonce(self, payment: Payment) -> str:
        """One per form as it stands: whatever is done to the payment makes another one."""
        return self._mac("nonce", payment.id, payment.state, payment.tries, len(payment.history))

    def _of_page(self, page_id: str, nonce: str) -> Payment | None:
        """The payment of a page, if the nonce is that of its form as it stands."""
        name = self._named("page", page_id)
        payment = None if name is None else self._flow.payment(name)
        if payment is None:
            return None
        right = self._nonce(payment)
        return payment if hmac.compare_digest(nonce.encode(), right.encode()) else None

    # ---- what the flow has ordered

    def ready(self, message: Call) -> None:
        if message.kind == LINE:
            self._lines.append(message.key)
            self._lines_due.set()
        else:
            (self._shops if message.kind == NOTIFY else self._quick).ready(message)

    def flush(self) -> None:
        self._quick.flush()
        self._shops.flush()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled, or until what is under way has ended after `stop`."""
        open_ones = {p.id for p in self._flow.open_payments()}
        await trio.to_thread.run_sync(self._data_keys.keep_only, open_ones)
        before_s = sys.getswitchinterval()
        if self._profiles:
            sys.setswitchinterval(SWITCH_S)
        try:
            async with trio.open_nursery() as lasting:
                self.notifier.watch_in(lasting)
                lasting.start_soon(self._write_lines)
                task_status.started()
                async with trio.open_nursery() as work:
                    work.start_soon(self._quick.run)
                    work.start_soon(self._shops.run)
                lasting.cancel_scope.cancel()
        finally:
            sys.setswitchinterval(before_s)
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._banks.aclose()
        await self._write_once()

    def stop(self) -> None:
        """Begin nothing more: who pays now waits for the next start."""
        self._quick.stop()
        self._shops.stop()

    async def _sign(self, name: str) -> None:
        payment = self._flow.payment(name)
        if payment is None or self._flow.t0_ns(name) is None:
            return
        message = self._flow.result_message(name)
        signature = await self._rsa.sign(payment.key_id, message, payment.keys[0])
        do = partial(self._flow.signed, name=name, message=message, signature=signature)
        await persist(self._node, do)

    async def _erase(self, name: str) -> None:
        erase = partial(self._data_keys.erase, name)
        await trio.to_thread.run_sync(erase, limiter=self._one_writer)

    # ---- Bitácora

    async def _write_lines(self) -> None:
        self._lines_due.set()
        while True:
            await self._lines_due.wait()
            self._lines_due = trio.Event()
            try:
                await self._write_once()
            except (OSError, sqlite3.Error) as error:
                self._flow.lines_wait = True
                log.error("bitacora_failed", error=type(error).__name__)
                await trio.sleep(LINES_WAIT_S)
                self._lines_due.set()

    async def _write_once(self) -> None:
        """Write all lines that are durable and not on disk yet."""
        names = list(self._lines)
        lines = [line for name in names if (line := self._flow.line(name)) is not None]
        if names:
            with trio.CancelScope(shield=True):
                write = partial(self._writer.write, lines)
                await trio.to_thread.run_sync(write, limiter=self._disk)
        self._flow.lines_wait = False
        told = self._writer.told()
        if told:
            await persist(self._node, partial(_alarm, told=told))
        del self._lines[: len(names)]


def _alarm(step: Step, told: list[tuple[str, str]]) -> None:
    for what, path in told:
        step.alarm(what, path)


def _profile(code: str, m: Any) -> Profile:
    return Profile(
        code=code, currency=m.currency, active=m.active, key_ids=tuple(m.key_ids),
        return_hosts=tuple(m.return_hosts), notify_url=m.notify_url, notify_ip=m.notify_ip,
        notify_port=m.notify_port, fixed_instalments=m.fixed_instalments,
    )  # fmt: skip


def _return_url(payment: Payment) -> str:
    if payment.state == rec.CONFIRMED:
        return payment.url_ok
    return payment.url_fail if payment.state in _ENDED else ""


def _told(payment: Payment) -> dict[str, Any]:
    """A payment as its shop may know it."""
    pairs = dict(parse_pairs(payment.message)) if payment.message else {}
    return {
        "order": payment.order,
        "state": payment.state,
        "cause": payment.cause,
        "late_ack": payment.late_ack,
        "result": pairs,
        "tbk_mac": payment.signature.hex(),
    }
