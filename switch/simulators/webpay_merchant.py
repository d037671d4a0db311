"""A shop of the KCC generation: pages to buy in, a kit or a closing page, and faults on demand.

Two listeners, as such shops had: the site, where people buy and come back to, and the place that
Webpay notifies. Orders, verdicts and the Bitácora are those of the real merchant side
(`switch.web.webpay_shop`); what is simulated is how it misbehaves, per order or for all (`*`), set
by JSON over `/sim/faults`.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import trio
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from switch.simulators.raw_answers import Delay, Framing, Manner, RawAnswer, RawRequest, converse
from switch.web import edge
from switch.web.requests import BadForm, absolute_form, form_of, unique_pairs
from switch.web.webpay_form import pesos
from switch.web.webpay_orders import Check, Orders, Verdict
from switch.web.webpay_shop import MerchantKit, PaymentForm, ShopError

ALL: Final = "*"
FAULTS_MAX: Final = 100_000
KIT_PATH: Final = "/cgi-bin/tbk_bp_resultado.cgi"
CLOSING_PATH: Final = "/xt_compra"
STATIC: Final = Path(edge.__file__).parent / "static" / "webpay"
TEMPLATES: Final = Path(edge.__file__).parent / "templates" / "webpay_shop"
FIXED: Final = ("TBK_NUMERO_CUOTAS", "TBK_MONTO_CUOTA")
GOODS: Final = (
    ("yerba", "Yerba mate, 1 kg", 5_900),
    ("termo", "Termo de acero, 1 litro", 24_900),
    ("mate", "Mate de calabaza", 12_500),
    ("bicicleta", "Bicicleta urbana", 189_900),
)

Word = Literal["aceptado", "rechazado", "none", "both", "lower", "no_aceptado", "empty", "garbage"]
WORDS: Final = {
    "aceptado": b"ACEPTADO",
    "rechazado": b"RECHAZADO",
    "lower": b"aceptado",
    "no_aceptado": b"NO ACEPTADO",
    "empty": b"",
}
REPLIES: Final = {
    "aceptado": b"ACK",
    "rechazado": b"ERR",
    "lower": b"ack",
    "no_aceptado": b"OK",
}


class Faults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong with the answer to one notification. Without any, the shop is honest.

    Attributes:
        answer: what is said in place of the verdict; empty: the verdict.
        delay_ms: before the headers, or before each part.
        drip_ms: pause after each byte.
        close: the connection ends there.
        twice: the opposite answer follows the first on the same connection.
        old_ack: kit only: the sealed ACK of an earlier payment.
        other_key: kit only: sealed by another key.
        skip_mac, skip_amount, skip_duplicate: validations the shop forgot.
        crash: the shop dies before or after its commit, without an answer.
        no_listen: for all orders only: nobody listens for notifications.
    """

    answer: Word | Literal[""] = ""
    delay_ms: int | Delay = 0
    drip_ms: int = 0
    close: Literal["", "before", "in_headers", "in_body"] = ""
    status: int = 200
    framing: Framing = "length"
    twice: bool = False
    old_ack: bool = False
    other_key: bool = False
    skip_mac: bool = False
    skip_amount: bool = False
    skip_duplicate: bool = False
    crash: Literal["", "before_commit", "after_commit"] = ""
    no_listen: bool = False

    def manner(self) -> Manner:
        """How the answer is sent."""
        delay = self.delay_ms
        return Manner(
            delay=delay if isinstance(delay, Delay) else Delay(headers=delay),
            drip_ms=self.drip_ms,
            close=self.close,
            status=self.status,
            framing=self.framing,
        )

    def skipped(self) -> tuple[Check, ...]:
        """Validations that are left out."""
        checks: tuple[Check, ...] = ("mac", "amount", "duplicate")
        return tuple(check for check in checks if getattr(self, f"skip_{check}"))


class _Crash(Exception):
    """The shop dies here."""


class Seen(Struct):
    """One notification the shop got, and what it made of it."""

    order: str
    respuesta: str
    verdict: str


class WebpayMerchant:
    """One simulated shop.

    Args:
        kit: its merchant side, with the keys.
        orders: its data base.
        acquirer_url: where a browser brings a payment request, `…/bp_revision.cgi`.
        other_kit: seals with a key Webpay does not know, for `other_key`.
        clock: seconds, monotonic; also asked from worker threads.
        fixed: count and amount of the instalments that the shop fixes; None: the holder chooses.

    Attributes:
        seen: every notification, in order.
        notify_address: where Webpay is to notify, once `run` has started; `site` likewise.
    """

    def __init__(
        self,
        kit: MerchantKit,
        orders: Orders,
        *,
        acquirer_url: str,
        other_kit: MerchantKit | None = None,
        clock: Callable[[], float] = time.monotonic,
        site_url: str = "",
        tls: Any = None,
        fixed: tuple[int, int] | None = None,
    ) -> None:
        self.kit = kit
        self.orders = orders
        self.acquirer_url = acquirer_url
        self.faults: dict[str, Faults] = {}
        self.seen: list[Seen] = []
        self.site_url = site_url
        self.notify_address: tuple[str, int] = ("", 0)
        self.site: tuple[str, int] = ("", 0)
        self._other_kit = other_kit
        self._clock = clock
        self._tls = tls
        self._fixed = {} if fixed is None else dict(zip(FIXED, map(str, fixed), strict=True))
        self._old_acks: list[bytes] = []
        self._listening: trio.CancelScope | None = None
        self._back = trio.Event()
        self._number = 0
        self._pages = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.globals |= {"pesos": pesos, "goods": GOODS}

    # ---- running

    async def run(
        self, *, host: str = "127.0.0.1", site_port: int = 0, notify_port: int = 0,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Serve site and notifications until cancelled. Raises: OSError: no such address."""
        async with trio.open_nursery() as nursery:
            listener = (await trio.open_tcp_listeners(site_port, host=host))[0]
            self.site = listener.socket.getsockname()[:2]
            self.site_url = self.site_url or f"http://{self.site[0]}:{self.site[1]}"
            await nursery.start(partial(edge.serve_http, self.app(), listener, stop=trio.Event()))
            await nursery.start(self._notified, host, notify_port)
            task_status.started()

    async def _notified(self, host: str, port: int, task_status: Any) -> None:
        """Listen for notifications, except while `no_listen` holds."""
        started = False
        while True:
            listeners: list[Any] = list(await trio.open_tcp_listeners(port, host=host))
            name = listeners[0].socket.getsockname()
            self.notify_address, port = (name[0], name[1]), name[1]
            if not started:
                task_status.started()
                started = True
            with trio.CancelScope() as self._listening:
                await trio.serve_listeners(self._connection, listeners)
            await self._back.wait()

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            transport: Any = stream
            if self._tls is not None:
                transport = trio.SSLStream(
                    stream, self._tls, server_side=True, https_compatible=True
                )
            await converse(transport, self._notification)
        except (OSError, trio.BrokenResourceError):
            pass

    def set_faults(self, order: str, faults: Faults) -> None:
        """Let an order, or all (`*`), go wrong from now on."""
        if len(self.faults) < FAULTS_MAX or order in self.faults:
            self.faults[order] = faults
        if order == ALL and faults.no_listen and self._listening is not None:
            self._back = trio.Event()
            self._listening.cancel()
        elif order == ALL:
            self._back.set()

    def faults_of(self, order: str) -> Faults:
        """Return what goes wrong with an order."""
        return self.faults.get(order) or self.faults.get(ALL) or Faults()

    # ---- what Webpay sends

    async def _notification(self, request: RawRequest) -> RawAnswer:
        if request.method != "POST":
            return RawAnswer((b"",), Manner(status=405))
        try:
            form = unique_pairs(request.body)
        except BadForm:
            return RawAnswer((b"",), Manner(status=400))
        if request.path == KIT_PATH:
            return await self._as_kit(dict(form))
        if request.path == CLOSING_PATH:
            return await self._as_page(form)
        return RawAnswer((b"",), Manner(status=404))

    async def _as_kit(self, form: Mapping[str, str]) -> RawAnswer:
        """The whole kit: open, ask the closing page, write the Bitácora, reply sealed."""
        result = await trio.to_thread.run_sync(self.kit.open_result, form.get("TBK_PARAM", ""))
        if result is None:
            return RawAnswer((await self._sealed(self.kit, b"ERR"),))
        order = result.order
        faults = self.faults_of(order)
        try:
            verdict = await self._decide(order, partial(
                self.kit.closing_check, result, self.orders, clock=self._clock,
                skip=faults.skipped(), before_commit=_crash_of(faults),
            ))  # fmt: skip
        except _Crash:
            return RawAnswer((b"",), Manner(close="before"))
        self.seen.append(Seen(order, result.values.get("TBK_RESPUESTA", ""), verdict.word))
        if faults.crash == "after_commit":
            return RawAnswer((b"",), Manner(close="before"))
        word = faults.answer or ("aceptado" if verdict.accepted else "rechazado")
        accepted = word in ("aceptado", "both")
        # The kit's own line says what its closing page said, whatever becomes of the reply.
        await trio.to_thread.run_sync(self.kit.log_result, result, accepted)
        if word == "none":
            return RawAnswer(None)
        bodies = await self._replies(word, faults)
        if word == "aceptado" and not (faults.old_ack or faults.other_key):
            self._old_acks = [bodies[0], *self._old_acks[:99]]
        return RawAnswer(bodies, faults.manner())

    async def _replies(self, word: str, faults: Faults) -> tuple[bytes, ...]:
        kit = self._other_kit if faults.other_key and self._other_kit else self.kit
        if faults.old_ack and self._old_acks:
            return (self._old_acks[0],)
        if word == "garbage":
            return (os.urandom(600),)
        if word == "empty":
            return (b"",)
        if word == "both":
            both = [await self._sealed(kit, b"ERR"), await self._sealed(kit, b"ACK")]
            return (b"".join(both),)
        first = await self._sealed(kit, REPLIES[word])
        if not faults.twice:
            return (first,)
        return first, await self._sealed(kit, b"ERR" if word == "aceptado" else b"ACK")

    async def _sealed(self, kit: MerchantKit, message: bytes) -> bytes:
        return (await trio.to_thread.run_sync(kit.seal_message, message)).encode()

    async def _as_page(self, form: list[tuple[str, str]]) -> RawAnswer:
        """Only the closing page: Webpay has done the kit's part."""
        order = dict(form).get("TBK_ORDEN_COMPRA", "")
        faults = self.faults_of(order)
        try:
            verdict = await self._decide(order, partial(
                self.kit.closing_page, form, self.orders, clock=self._clock,
                skip=faults.skipped(), before_commit=_crash_of(faults),
            ))  # fmt: skip
        except _Crash:
            return RawAnswer((b"",), Manner(close="before"))
        self.seen.append(Seen(order, dict(form).get("TBK_RESPUESTA", ""), verdict.word))
        if faults.crash == "after_commit":
            return RawAnswer((b"",), Manner(close="before"))
        word = faults.answer or ("aceptado" if verdict.accepted else "rechazado")
        if word == "none":
            return RawAnswer(None)
        if word == "garbage":
            return RawAnswer((os.urandom(600),), faults.manner())
        if word == "both":
            return RawAnswer((b"RECHAZADO ACEPTADO",), faults.manner())
        first = WORDS[word]
        other = WORDS["rechazado" if word == "aceptado" else "aceptado"]
        return RawAnswer((first, other) if faults.twice else (first,), faults.manner())

    async def _decide(self, order: str, decide: Callable[[], Verdict]) -> Verdict:
        return await trio.to_thread.run_sync(decide)

    # ---- what people see

    def app(self) -> Any:
        """Return the shop's site."""
        routes = [
            Route("/", self._catalogue, methods=["GET"]),
            Route("/comprar", self._buy, methods=["POST"]),
            Route("/orden/{number}", self._order, methods=["GET"]),
            Route("/exito", self._back_page, methods=["GET", "POST"]),
            Route("/fracaso", self._back_page, methods=["GET", "POST"]),
            Route("/bitacora", self._bitacora, methods=["GET"]),
            Route("/sim/faults", self._faults_page, methods=["GET", "POST", "DELETE"]),
            Mount("/webpay/static", StaticFiles(directory=STATIC)),
        ]
        return absolute_form(Starlette(routes=routes, exception_handlers={BadForm: _bad_form}))

    async def _catalogue(self, request: Request) -> Response:
        return self._page("tienda.html")

    async def _buy(self, request: Request) -> Response:
        """Make an order and lead to its page, from which the browser goes to Webpay."""
        form = await form_of(request)
        amounts = {name: amount for name, _, amount in GOODS}
        amount = amounts.get(form.get("producto", ""))
        if amount is None:
            return RedirectResponse("/", 303)
        number = await self.new_order(f"{amount}00")
        return RedirectResponse(f"/orden/{number}", 303)

    async def new_order(self, amount: str, number: str = "") -> str:
        """Store a new order of an amount in hundredths; returns its number."""
        while True:
            self._number += 1
            wanted = number or f"T{self._number:06d}"
            try:
                await trio.to_thread.run_sync(
                    self.orders.create, self.kit.merchant, wanted, amount, f"S{wanted}"
                )
            except ValueError:
                if number:
                    raise
                continue
            return wanted

    async def payment(self, number: str, **other: str) -> PaymentForm:
        """Return the form that brings an order to Webpay; the order is SENT then."""
        return await trio.to_thread.run_sync(
            partial(
                self.kit.start_order, self.orders, number, success=f"{self.site_url}/exito",
                failure=f"{self.site_url}/fracaso", other={**self._fixed, **other},
            )
        )  # fmt: skip

    async def _order(self, request: Request) -> Response:
        number = request.path_params["number"]
        order = await trio.to_thread.run_sync(self.orders.order, self.kit.merchant, number)
        if order is None:
            return self._page("orden.html", status=404, order=None, form=None, action="")
        form = None
        if order.state in ("NEW", "SENT", "DECLINED", "REFUSED"):
            try:
                form = await self.payment(number)
            except ShopError:
                form = None
        return self._page("orden.html", order=order, form=form, action=self.acquirer_url)

    async def _back_page(self, request: Request) -> Response:
        """EXITO and FRACASO: no proof of anything, they show what the closing page stored."""
        given: Mapping[str, str] = request.query_params
        if request.method == "POST":
            given = {**request.query_params, **await form_of(request)}
        number = given.get("TBK_ORDEN_COMPRA", "")
        order = await trio.to_thread.run_sync(self.orders.order, self.kit.merchant, number)
        return self._page("vuelta.html", order=order, arrived=request.url.path == "/exito")

    async def _bitacora(self, request: Request) -> Response:
        rows = await trio.to_thread.run_sync(self.kit.log_rows)
        return self._page("bitacora.html", rows=rows)

    async def _faults_page(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.faults.clear()
            self.set_faults(ALL, Faults())
        elif request.method == "POST":
            try:
                wanted = msgspec.json.decode(await request.body(), type=dict[str, Faults])
            except msgspec.DecodeError as error:
                return JSONResponse({"error": str(error)}, 400)
            for order, faults in wanted.items():
                self.set_faults(order, faults)
        known = {order: msgspec.to_builtins(faults) for order, faults in self.faults.items()}
        return JSONResponse(known)

    def _page(self, name: str, status: int = 200, **values: Any) -> Response:
        text = self._pages.get_template(name).render(shop=self.kit.name, **values)
        return HTMLResponse(text, status, {"cache-control": "no-store"})


def _crash_of(faults: Faults) -> Callable[[], None] | None:
    def crash() -> None:
        raise _Crash

    return crash if faults.crash == "before_commit" else None


async def _bad_form(request: Request, error: Exception) -> Response:
    return HTMLResponse("<p>Solicitud inválida</p>", 400)
