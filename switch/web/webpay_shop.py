"""The merchant side: what the old kit did on a shop's server, as a library and an ASGI app.

`MerchantKit` makes payment requests, opens results, decides as the closing page must, seals the
reply, and writes the merchant's own Bitácora and event log. `shop_app` serves
`tbk_bp_resultado.cgi` for many merchants in one process. Calls of the kit block (4096-bit keys,
files): give them a thread.
"""

import os
import secrets
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import httpx
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from protocols.webpay import bitacora, events, fields, mac, pairs, seal, shopform
from protocols.webpay.keyring import Ring
from switch.web.mounts import App
from switch.web.requests import BadForm, absolute_form, body_of, form_of, unique_pairs
from switch.web.webpay_orders import BUDGET_S, Check, OrderError, Orders, Verdict

KCC_VERSION: Final = "6.0"
KIT_NAMES: Final = frozenset((
    "TBK_CODIGO_COMERCIO", "TBK_ID_TRANSACCION", "TBK_URL_CGI_COMERCIO", "TBK_SERVIDOR_COMERCIO",
    "TBK_PUERTO_COMERCIO", "TBK_VERSION_KCC", "TBK_KEY_ID", "PARAMVERIFCOM", "TBK_MAC",
))  # fmt: skip
"""Fields the kit writes itself; a shop that posts one is refused."""

TX_ID_MODULUS: Final = 10**10
ROWS_MAX: Final = 500
FILE_BYTES_MAX: Final = 64 << 20
NOTIFICATION_BYTES_MAX: Final = 64 << 10

Pairs = tuple[tuple[str, str], ...]


class ShopError(ValueError):
    """A payment request that Webpay would refuse. Says the rule, never a value.

    Attributes:
        tag: the rule, as the acquirer names it.
    """

    def __init__(self, tag: str) -> None:
        super().__init__(f"the payment request breaks rule {tag}")
        self.tag = tag


class PaymentForm(Struct, frozen=True):
    """What the browser posts to Webpay: hidden fields in order."""

    fields: tuple[tuple[str, str], ...]
    tx_id: str


class ShopResult(Struct, frozen=True):
    """One result as it came out of its seal: its pairs in order and its signature, in hex."""

    pairs: Pairs
    mac: str

    @property
    def values(self) -> dict[str, str]:
        return dict(self.pairs)

    @property
    def order(self) -> str:
        return self.values.get("TBK_ORDEN_COMPRA", "")


class ShopSettings(Struct, frozen=True, kw_only=True):
    """What a kit is told about its merchant.

    Attributes:
        notify_url: where Webpay reaches this kit; its host, address and port go into each request.
        directory: of Bitácora and event log.
        style, layout: of the Bitácora.
    """

    merchant: str
    name: str = ""
    currency: str = "CLP"
    key_id: str = "101"
    notify_url: str
    notify_ip: str
    notify_port: int
    directory: Path
    style: Literal["seed", "kcc602"] = "seed"
    layout: Literal["dated", "flat"] = "dated"
    timezone: str = "America/Santiago"
    acquirer_url: str = ""
    closing: str = "store"


class MerchantKit:
    """The kit of one merchant.

    Args:
        settings: the merchant.
        key: its private key; with all its versions where it is rotated.
        webpay_key: the acquirer's public key of `key_id`; likewise.
        wall_ns: nanoseconds since 1970, UTC.
    """

    def __init__(
        self,
        settings: ShopSettings,
        key: RSAPrivateKey | Ring[RSAPrivateKey],
        webpay_key: RSAPublicKey | Ring[RSAPublicKey],
        *,
        wall_ns: Callable[[], int],
    ) -> None:
        self.settings = settings
        self._own = key if isinstance(key, Ring) else Ring.of(key)
        self._webpay = webpay_key if isinstance(webpay_key, Ring) else Ring.of(webpay_key)
        self._wall_ns = wall_ns
        self._zone = ZoneInfo(settings.timezone)
        self._writing = threading.Lock()
        self._last_tx_id = 0

    def __repr__(self) -> str:
        return f"MerchantKit({self.merchant})"

    @property
    def merchant(self) -> str:
        return self.settings.merchant

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Towards the shop's own closing page; its roots take longer to read than a result."""
        return ssl.create_default_context()

    @property
    def name(self) -> str:
        return self.settings.name or self.settings.merchant

    def renew(self, key: Ring[RSAPrivateKey], webpay_key: Ring[RSAPublicKey]) -> None:
        """Go on with keys that were read again."""
        self._own, self._webpay = key, webpay_key

    # ---- a payment request

    def start(self, posted: Sequence[tuple[str, str]]) -> PaymentForm:
        """Seal a payment request.

        Args:
            posted: the shop's fields in its order, `TBK_TIPO_TRANSACCION` first as a rule.

        Raises:
            ShopError: what Webpay would refuse, `#` in a value above all.
        """
        if not posted or any(name in KIT_NAMES for name, _ in posted):
            raise ShopError("UNKNOWN_NAME")
        if any("#" in value or "#" in name for name, value in posted):
            raise ShopError("PAIRS")
        settings, tx_id = self.settings, self._next_tx_id()
        own = (
            ("TBK_CODIGO_COMERCIO", settings.merchant),
            ("TBK_ID_TRANSACCION", tx_id),
            ("TBK_URL_CGI_COMERCIO", settings.notify_url),
            ("TBK_SERVIDOR_COMERCIO", settings.notify_ip),
            ("TBK_PUERTO_COMERCIO", str(settings.notify_port)),
            ("TBK_VERSION_KCC", KCC_VERSION),
            ("TBK_KEY_ID", settings.key_id),
            ("PARAMVERIFCOM", "1"),
        )
        unsigned = (posted[0], *own, *posted[1:])
        signature = mac.payment_mac(unsigned, settings.merchant)
        signed = (posted[0], *own, ("TBK_MAC", signature), *posted[1:])
        message = self._checked(signed)
        wire = self.seal_message(message)
        clear = (
            ("TBK_PARAM", wire),
            ("TBK_VERSION_KCC", KCC_VERSION),
            ("TBK_CODIGO_COMERCIO", settings.merchant),
            ("TBK_KEY_ID", settings.key_id),
        )
        return PaymentForm(clear, tx_id)

    def start_order(
        self, orders: Orders, number: str, *, success: str, failure: str,
        other: Mapping[str, str] | None = None,
    ) -> PaymentForm:  # fmt: skip
        """Seal the request of a stored order, which is SENT from then on.

        Args:
            success, failure: addresses to which the browser comes back.
            other: further fields, as instalments that the shop fixes.

        Raises:
            ShopError: as `start`; the order is REFUSED then.
            OrderError: unknown order, or paid.
        """
        order = orders.order(self.merchant, number)
        if order is None:
            raise OrderError("the order is unknown")
        posted = [
            ("TBK_TIPO_TRANSACCION", "TR_NORMAL"),
            ("TBK_MONTO", order.amount),
            ("TBK_ORDEN_COMPRA", order.number),
            ("TBK_ID_SESION", order.session),
            ("TBK_URL_EXITO", success),
            ("TBK_URL_FRACASO", failure),
            *(other or {}).items(),
        ]
        try:
            form = self.start(posted)
        except ShopError:
            orders.refuse(self.merchant, number)
            raise
        orders.send(self.merchant, number, form.tx_id)
        return form

    def _checked(self, signed: Pairs) -> bytes:
        """Apply the acquirer's own rules. Return the message."""
        message = "#".join(f"{name}={value}" for name, value in signed)
        try:
            data = message.encode("ascii")
        except UnicodeEncodeError:
            raise ShopError("PAIRS") from None
        settings, values = self.settings, dict(signed)
        hosts = [
            urlsplit(values.get(name, "")).netloc.rpartition("@")[2]
            for name in ("TBK_URL_EXITO", "TBK_URL_FRACASO")
        ]
        profile = fields.Profile(
            code=settings.merchant,
            currency=settings.currency,
            key_ids=(settings.key_id,),
            notify_url=settings.notify_url,
            notify_ip=settings.notify_ip,
            notify_port=settings.notify_port,
            return_hosts=tuple(hosts),
            fixed_instalments=True,
        )
        clear = {
            "TBK_VERSION_KCC": KCC_VERSION,
            "TBK_CODIGO_COMERCIO": settings.merchant,
            "TBK_KEY_ID": settings.key_id,
        }
        checked = fields.check_request(clear, data, {settings.merchant: profile})
        if isinstance(checked, fields.Refusal):
            raise ShopError(checked.tag)
        return data

    def _next_tx_id(self) -> str:
        """Centiseconds, as the kit's; never twice the same of one process."""
        now = self._wall_ns() // 10_000_000
        with self._writing:
            self._last_tx_id = max(now, self._last_tx_id + 1)
            return str(self._last_tx_id % TX_ID_MODULUS or 1)

    # ---- a result

    def open_result(self, wire: str) -> ShopResult | None:
        """Open a notification; None: not sealed by Webpay for this merchant, or unreadable."""
        now_ns = self._wall_ns()
        owns = [version.key for version in self._own.accepted(now_ns)]
        peers = [version.key for version in self._webpay.accepted(now_ns)]
        try:
            opened, _, _ = seal.open_with(
                wire.encode("latin-1", "replace"), owns, peers, spare_key=secrets.token_bytes(32)
            )
            found = pairs.parse_pairs(opened.message)
        except (seal.SealError, pairs.PairsError):
            return None
        return ShopResult(found, opened.signature.hex())

    def closing_check(
        self,
        result: ShopResult,
        orders: Orders,
        *,
        clock: Callable[[], float],
        budget_s: float = BUDGET_S,
        skip: Iterable[Check] = (),
        before_commit: Callable[[], None] | None = None,
    ) -> Verdict:
        """Say whether a result is accepted, as the shop's closing page must; durable on return.

        Args:
            clock: seconds, monotonic; the budget counts from now on.
            skip, before_commit: of simulated shops (`Orders.decide`).
        """
        until_s = clock() + budget_s
        signers = self._webpay.accepted(self._wall_ns())
        good = any(mac.verify_mac(result.pairs, result.mac, signer.key) for signer in signers)
        return orders.decide(
            self.merchant, result.values, result.mac, mac_good=good, clock=clock,
            budget_s=until_s - clock(), skip=skip, before_commit=before_commit,
        )  # fmt: skip

    def closing_page(
        self,
        form: Sequence[tuple[str, str]],
        orders: Orders,
        *,
        clock: Callable[[], float],
        skip: Iterable[Check] = (),
        before_commit: Callable[[], None] | None = None,
    ) -> Verdict:
        """The same for a form as a kit posts it: clear pairs and `TBK_MAC`, in any place."""
        signature = dict(form).get("TBK_MAC", "")
        found = tuple((name, value) for name, value in form if name != "TBK_MAC")
        result = ShopResult(found, signature)
        return self.closing_check(
            result, orders, clock=clock, skip=skip, before_commit=before_commit
        )

    def reply(self, verdict: Verdict) -> str:
        """Seal the answer to a notification."""
        return self.seal_message(b"ACK" if verdict.accepted else b"ERR")

    def seal_message(self, message: bytes) -> str:
        """Seal a message for Webpay. Raises: ShopError: all versions of a key have ended."""
        now_ns = self._wall_ns()
        own, webpay = self._own.used(now_ns), self._webpay.used(now_ns)
        if own is None or webpay is None:
            raise ShopError("KEY")
        key, iv = secrets.token_bytes(32), secrets.token_bytes(16)
        wire = seal.seal_wire(message, own.key, webpay.key, aes_key=key, iv=iv)
        return wire.decode("ascii")

    # ---- what is written

    def log_result(self, result: ShopResult, accepted: bool, reason: str = "") -> None:
        """Write the merchant's own Bitácora line and its event; on disk on return."""
        settings, prefix = self.settings, "ACK" if accepted else "ERR"
        line = bitacora.line(prefix, settings.merchant, result.pairs, result.mac, settings.style)
        name = bitacora.file_name(result.pairs)
        with self._writing:
            _append(self._folder() / name, line)
        values = result.values
        text = "tienda acepto transaccion" if accepted else f"{reason} (46)".lstrip()
        self.log_event(
            "resultado", values.get("TBK_ORDEN_COMPRA", ""), "OK" if accepted else "ERR", text,
            tx_id=values.get("TBK_ID_TRANSACCION", ""),
        )  # fmt: skip

    def log_event(
        self, module: str, detail: str, state: str, text: str, *, tx_id: str = ""
    ) -> None:
        """Write a line of the event log."""
        now = self._now()
        line = events.event_line(events.Event(
            tx_id=tx_id, pid=str(os.getpid()), module=module, detail=detail,
            date=f"{now:%d%m%Y}", time=f"{now:%H%M%S}", ip=self.settings.notify_ip, state=state,
            merchant=self.merchant, text=text,
        ))  # fmt: skip
        with self._writing:
            _append(self.settings.directory / f"TBK_EVN{now:%Y%m%d}.log", line)

    def files(self) -> list[Path]:
        """Return the merchant's Bitácora files, oldest first."""
        found = self.settings.directory.rglob("tbk_bitacora_*.log")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def log_rows(self) -> list[bitacora.Record]:
        """Return the newest records of the newest files, for people."""
        signers = [version.key for version in self._webpay.all]
        rows: list[bitacora.Record] = []
        for path in reversed(self.files()):
            data = path.read_bytes()[-FILE_BYTES_MAX:]
            rows = [*bitacora.parse(data, signers).records, *rows]
            if len(rows) >= ROWS_MAX:
                break
        return rows[-ROWS_MAX:][::-1]

    def _folder(self) -> Path:
        base = self.settings.directory
        if self.settings.layout == "flat":
            return base
        return base / self.merchant / f"{self._now():%Y}"

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_ns() / 1e9, self._zone)


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


# ---- served


def shop_app(kits: Iterable[MerchantKit], orders: Orders, *, clock: Callable[[], float]) -> App:
    """Return the ASGI app of the merchant side.

        POST /cgi-bin/tbk_bp_resultado.cgi   the kit: sealed result in, sealed ACK or ERR out
        POST /xt_compra                      the closing page alone: clear pairs in, a word out

    Args:
        kits: one per merchant.
        orders: the data base of those whose closing page is ours.
        clock: seconds, monotonic; also asked from worker threads.
    """
    served = _Served({kit.merchant: kit for kit in kits}, orders, clock)
    routes = [
        Route("/cgi-bin/tbk_bp_resultado.cgi", served.result, methods=["POST"]),
        Route("/xt_compra", served.closing, methods=["POST"]),
    ]
    return absolute_form(Starlette(routes=routes, exception_handlers={BadForm: served.bad_form}))


class _Served:
    def __init__(
        self, kits: Mapping[str, MerchantKit], orders: Orders, clock: Callable[[], float]
    ) -> None:
        self._kits = kits
        self._orders = orders
        self._clock = clock

    async def result(self, request: Request) -> Response:
        """Open, ask the closing page, write the line, reply."""
        form = await form_of(request, bytes_max=NOTIFICATION_BYTES_MAX)
        kit = self._kits.get(form.get("TBK_CODIGO_COMERCIO", ""))
        if kit is None:
            return _plain("", 404)
        result = await trio.to_thread.run_sync(kit.open_result, form.get("TBK_PARAM", ""))
        if result is None:
            # As kits do: a sealed refusal and no line, for what cannot be read.
            log = partial(kit.log_event, "resultado", "TBK_PARAM", "ERR", "447 no se pudo leer")
            await trio.to_thread.run_sync(log)
            return _plain(await trio.to_thread.run_sync(kit.seal_message, b"ERR"))
        verdict = await self._verdict(kit, result)
        await trio.to_thread.run_sync(kit.log_result, result, verdict.accepted, verdict.reason)
        return _plain(await trio.to_thread.run_sync(kit.reply, verdict))

    async def closing(self, request: Request) -> Response:
        """Our closing page for an old kit: HTTP/1.0, every byte percent-encoded."""
        body = await body_of(request, NOTIFICATION_BYTES_MAX)
        form = unique_pairs(body)
        for code in (dict(form).get("TBK_CODIGO_COMERCIO", ""), *self._kits):
            kit = self._kits.get(code)
            # Kits may leave the code out; then the shop that has the order is meant.
            if kit is not None and (len(self._kits) == 1 or await self._has(kit, form)):
                decide = partial(kit.closing_page, form, self._orders, clock=self._clock)
                return _plain((await trio.to_thread.run_sync(decide)).word)
        return _plain("RECHAZADO")

    async def bad_form(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, BadForm)
        return _plain("RECHAZADO", error.status)

    async def _has(self, kit: MerchantKit, form: Sequence[tuple[str, str]]) -> bool:
        number = dict(form).get("TBK_ORDEN_COMPRA", "")
        return await trio.to_thread.run_sync(self._orders.order, kit.merchant, number) is not None

    async def _verdict(self, kit: MerchantKit, result: ShopResult) -> Verdict:
        """Ours, or that of the shop's own page; whatever takes too long is a refusal."""
        if kit.settings.closing == "store":
            decide = partial(kit.closing_check, result, self._orders, clock=self._clock)
            return await trio.to_thread.run_sync(decide)
        return await ask_page(kit, result)


async def ask_page(kit: MerchantKit, result: ShopResult, budget_s: float = BUDGET_S) -> Verdict:
    """Ask the shop's own closing page, as the kit did; the strict rule reads its answer."""
    body = shopform.closing_body(result.pairs, result.mac, merchant=kit.merchant)
    try:
        with trio.fail_after(budget_s):
            async with httpx.AsyncClient(timeout=None, verify=kit.tls) as client, client.stream(
                "POST", kit.settings.closing, content=body,
                headers={"content-type": "application/x-www-form-urlencoded"},
            ) as answer:  # fmt: skip
                text = b""
                async for piece in answer.aiter_bytes():
                    text += piece
                    if len(text) > NOTIFICATION_BYTES_MAX:
                        return Verdict(False, "respuesta larga")
    except (httpx.HTTPError, trio.TooSlowError):
        return Verdict(False, "42 comercio no responde")
    if answer.status_code != 200:
        return Verdict(False, "46 estado HTTP")
    accepted = shopform.page_text(text) == shopform.ACCEPTED
    return Verdict(accepted, "pagada" if accepted else "46 sin ACEPTADO")


def _plain(text: str, status: int = 200) -> Response:
    return PlainTextResponse(text, status, {"connection": "close", "cache-control": "no-store"})


def reconcile(orders: Orders, merchant: str, records: Iterable[bitacora.Record]) -> list[str]:
    """Compare paid orders with the acquirer's Bitácora; returns those it has reversed, DISPUTED.

    Args:
        records: of `bitacora.parse`, with a good MAC where a key was given.
    """
    undone: list[tuple[str, str, str]] = []
    stands: set[str] = set()
    for record in records:
        number, code = record.value("order") or "", record.value("merchant")
        if code in (None, merchant) and record.outcome_name == "REVERSED":
            mac_text = dict(record.pairs).get("TBK_MAC", "")
            undone.append((number, record.value("tx_id") or "", mac_text))
        elif code in (None, merchant) and record.outcome_name == "CONFIRMED":
            stands.add(number)
    return orders.dispute(merchant, (sale for sale in undone if sale[0] not in stands))


__all__ = [
    "MerchantKit",
    "PaymentForm",
    "ShopError",
    "ShopResult",
    "ShopSettings",
    "ask_page",
    "reconcile",
    "shop_app",
]
