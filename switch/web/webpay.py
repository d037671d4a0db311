"""The pages of the acquirer: what shops and their cardholders meet of Webpay, as an ASGI app.

Server-rendered, in Spanish, and complete without scripts. A page shows the state of the journal and
nothing else, so back, refresh and a second tab are harmless: a page that is not the payment's
present one leads there. What decides is the `Acquirer`, given from outside.

    {prefix}/bp_validacion.cgi   POST       a kit asks for a token
    {prefix}/bp_revision.cgi     POST, GET  the browser arrives: cookie, 303 to the form
    /webpay/pago/{id}            GET, POST  payment form
    /webpay/banco/{id}           GET, POST  the holder's bank
    /webpay/anular/{id}          POST       cancel
    /webpay/espera/{id}          GET        until it is decided
    /webpay/final/{id}           GET        success or failure, and back to the shop
    /api/webpay/v1/transactions  GET        what became of an order, for shops
"""

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol
from urllib.parse import urlencode, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from switch.web.mounts import App
from switch.web.requests import BadForm, Rate, absolute_form, address_of, form_of
from switch.web.webpay_form import (
    Card,
    choice_text,
    hide,
    instalment_choice,
    pesos,
    read_card,
    read_rut,
)

HERE: Final = Path(__file__).parent
ID_LENGTH_MAX: Final = 64
QUERY_VALUE_MAX: Final = 64
PASSWORD_MAX: Final = 64
REFRESH_S: Final = 2
FIELDS: Final = ("TBK_PARAM", "TBK_VERSION_KCC", "TBK_CODIGO_COMERCIO", "TBK_KEY_ID", "TBK_TOKEN")
PAYABLE: Final = ("CREATED", "FORM")
UNDER_WAY: Final = ("PAYING", "AUTHORISING", "DECIDING")
MISTAKES: Final = {
    "tipo": "Elija tarjeta de crédito o de débito.",
    "banco": "Elija el banco de su tarjeta.",
    "numero": "Revise el número de tarjeta.",
    "vencimiento": "Revise el vencimiento (MM/AA).",
    "codigo": "Revise el código de seguridad.",
    "cuotas": "Elija la cantidad de cuotas.",
}

log = logging.getLogger("troncal.webpay")

Outcome = Literal["TSY", "TSN", "TO", "ABO", "U3", "NP", "A"]
"""What became of a holder's authentication; TBK_VCI."""


class Entered(NamedTuple):
    """A payment request was taken, or was known already.

    Attributes:
        page_id: 256 random bits, as the addresses of its pages have them.
        cookie: value of the payment's own cookie; empty: the browser must have it already.
        payable: still before payment, so the form comes next.
    """

    page_id: str
    cookie: str
    payable: bool


class Refused(NamedTuple):
    """A payment request was refused: the rule that did, and its number in the kit's table."""

    tag: str
    error: int


class View(Struct, frozen=True, kw_only=True):
    """What the pages show of one payment: its state in the journal, and no secret of the card."""

    state: str
    shop: str
    merchant: str
    order: str
    amount_hundredths: int
    currency: str
    nonce: str
    kinds: tuple[str, ...]
    choices: tuple[str, ...]
    banks: tuple[tuple[str, str], ...]
    tries: int = 0
    authenticating: bool = False
    bank: str = ""
    cause: str = ""
    respuesta: str = ""
    return_url: str = ""
    session: str = ""
    expires_in_s: int = 0
    pay_type: str = ""
    instalments: int = 0
    auth_code: str = ""
    last4: str = ""
    paid_at: str = ""
    today: date = date.min


class Acquirer(Protocol):
    """What the pages need of the flow. All that changes something returns once it is durable."""

    async def enter(self, fields: Mapping[str, str], source: str) -> Entered | Refused: ...

    async def validate(self, fields: Mapping[str, str], source: str) -> tuple[bytes, str]: ...

    async def redeem(self, token: str, version: str) -> Entered | Refused: ...

    def view(self, page_id: str, cookie: str) -> View | None: ...

    async def shown(self, page_id: str) -> None: ...

    async def pay(self, page_id: str, nonce: str, card: Card) -> None: ...

    async def bad_input(self, page_id: str, nonce: str) -> None: ...

    async def identify(self, page_id: str, nonce: str, rut: str, password: str) -> None: ...

    async def leave_bank(self, page_id: str, nonce: str) -> None: ...

    async def cancel(self, page_id: str, nonce: str) -> None: ...

    def status(self, api_key: str, order: str) -> list[dict[str, Any]] | None: ...


class WebLimits(NamedTuple):
    """How often one may ask. A shop's kits come from one address, hence the two."""

    address_per_min: int = 600
    merchant_per_min: int = 3000
    seal_fail_per_min: int = 20


def webpay_app(
    acquirer: Acquirer,
    *,
    prefixes: Sequence[str],
    clock: Callable[[], float],
    limits: WebLimits | None = None,
) -> App:
    """Return the ASGI application.

    Args:
        acquirer: decides and remembers.
        prefixes: under which `bp_validacion.cgi` and `bp_revision.cgi` are found.
        clock: seconds, monotonic; of the rate limits.
        limits: rates and lock-out.
    """
    pages = _Pages(acquirer, limits or WebLimits(), clock)
    routes: list[Route | Mount] = []
    for prefix in prefixes:
        routes += [
            Route(f"{prefix}/bp_validacion.cgi", pages.validation, methods=["POST"]),
            Route(f"{prefix}/bp_revision.cgi", pages.revision, methods=["POST", "GET"]),
        ]
    routes += [
        Route("/webpay/pago/{id}", pages.form, methods=["GET"]),
        Route("/webpay/pago/{id}", pages.pay, methods=["POST"]),
        Route("/webpay/banco/{id}", pages.bank_form, methods=["GET"]),
        Route("/webpay/banco/{id}", pages.bank_answer, methods=["POST"]),
        Route("/webpay/anular/{id}", pages.cancel, methods=["POST"]),
        Route("/webpay/espera/{id}", pages.waiting, methods=["GET"]),
        Route("/webpay/final/{id}", pages.final, methods=["GET"]),
        Route("/api/webpay/v1/transactions", pages.transactions, methods=["GET"]),
        Mount("/webpay/static", StaticFiles(directory=HERE / "static" / "webpay")),
    ]
    handlers = {BadForm: pages.bad_form, HTTPException: pages.http_error, Exception: pages.failure}
    return absolute_form(Starlette(routes=routes, exception_handlers=handlers))


def templates() -> Environment:
    """Return the templates of all Webpay pages, with what they call."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates" / "webpay"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,  # or each page asks the disk about each of its templates
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"choice": choice_text}
    environment.globals |= {"pesos": pesos}
    return environment


class _Pages:
    """The handlers. Each reads its request, asks the acquirer, and answers by what is so then."""

    def __init__(self, acquirer: Acquirer, limits: WebLimits, clock: Callable[[], float]) -> None:
        self._acquirer = acquirer
        self._templates = templates()
        self._addresses = Rate(limits.address_per_min, clock)
        self._merchants = Rate(limits.merchant_per_min, clock)
        self._seals = Rate(limits.seal_fail_per_min, clock)

    # ---- from the shop

    async def validation(self, request: Request) -> Response:
        """A kit (MEDCOM=1) sends its request and gets a token for the browser."""
        late = self._too_many(request)
        if late is not None:
            return late
        fields = _known(await form_of(request))
        if self._is_crowded(fields):
            return _slow_down()
        body, tag = await self._acquirer.validate(fields, address_of(request))
        self._note_seal(request, tag)
        return _safe(Response(body, media_type="text/plain"), request)

    async def revision(self, request: Request) -> Response:
        """The browser arrives with the request itself, or with the token of its kit."""
        late = self._too_many(request)
        if late is not None:
            return late
        given = await form_of(request) if request.method == "POST" else request.query_params
        fields = _known(given)
        if request.method == "GET" and "TBK_TOKEN" not in fields:
            raise HTTPException(405)
        if self._is_crowded(fields):
            return _slow_down()
        if "TBK_TOKEN" in fields:
            version = fields.get("TBK_VERSION_KCC", "")
            entered = await self._acquirer.redeem(fields["TBK_TOKEN"], version)
        else:
            entered = await self._acquirer.enter(fields, address_of(request))
        if isinstance(entered, Refused):
            self._note_seal(request, entered.tag)
            return self._error(request, entered.error)
        page = "pago" if entered.payable else "espera"
        answer = _see(f"/webpay/{page}/{entered.page_id}", request)
        if entered.cookie:
            answer.set_cookie(
                cookie_name(entered.page_id),
                entered.cookie,
                path="/webpay",
                httponly=True,
                secure=request.url.scheme == "https",
                samesite="lax",
            )
        return answer

    def _too_many(self, request: Request) -> Response | None:
        address = address_of(request)
        if self._seals.empty(address) or not self._addresses.take(address):
            return _slow_down()
        return None

    def _is_crowded(self, fields: Mapping[str, str]) -> bool:
        """Tell whether a merchant is at its limit; tokens counted when their kit asked for them."""
        code = fields.get("TBK_CODIGO_COMERCIO", "")
        return bool(code) and not self._merchants.take(code)

    def _note_seal(self, request: Request, tag: str) -> None:
        """Count wires that did not open, by address: a merchant's code anybody can write."""
        if tag == "SEAL":
            self._seals.take(address_of(request))

    # ---- the cardholder

    async def form(self, request: Request) -> Response:
        """Show the payment form."""
        page_id, view = self._view(request)
        if view is None:
            return self._error(request, 21)
        if view.state == "CREATED":
            await self._acquirer.shown(page_id)
            page_id, view = self._view(request)
            assert view is not None, "it was there a moment ago"
        elsewhere = _elsewhere("pago", page_id, view, request)
        if elsewhere is not None:
            return elsewhere
        query = request.query_params
        wrong = [MISTAKES[name] for name in query.get("revise", "").split() if name in MISTAKES]
        # Fixed instalments leave nothing to choose; one kind of card neither.
        kind = query.get("tipo", "")
        kind = kind if kind in view.kinds else ("C" if "C" in view.kinds else view.kinds[0])
        return self._page(
            request, "pago.html", view, page_id=page_id, wrong=wrong, kind=kind,
            bank=query.get("banco", ""), chosen=query.get("cuotas", view.choices[0]),
            wrong_names=query.get("revise", "").split(),
        )  # fmt: skip

    async def pay(self, request: Request) -> Response:
        """Take the form: pay, or show it again without what is secret."""
        page_id, view = self._view(request)
        if view is None:
            return self._error(request, 21)
        form = await form_of(request)
        nonce = form.get("nonce", "")
        if view.state != "FORM" or not _equal(nonce, view.nonce):
            return _see(_place(page_id, view), request)
        card = read_card(
            form,
            kinds=view.kinds,
            choices=view.choices,
            banks=[name for name, _ in view.banks],
            today=view.today,
        )
        if isinstance(card, Card):
            await self._acquirer.pay(page_id, nonce, card)
            return self._onward(request)
        await self._acquirer.bad_input(page_id, nonce)
        _, view = self._view(request)
        assert view is not None, "it was there a moment ago"
        if view.state != "FORM":
            return _see(_place(page_id, view), request)
        kept = {name: value[:QUERY_VALUE_MAX] for name, value in hide(form).items()}
        return _see(
            f"/webpay/pago/{page_id}?{urlencode({'revise': ' '.join(card), **kept})}", request
        )

    async def cancel(self, request: Request) -> Response:
        """The holder does not want to pay."""
        page_id, view = self._view(request)
        if view is None:
            return self._error(request, 21)
        form = await form_of(request)
        if view.state in PAYABLE and _equal(form.get("nonce", ""), view.nonce):
            await self._acquirer.cancel(page_id, form["nonce"])
        return self._onward(request)

    async def bank_form(self, request: Request) -> Response:
        """Show the page of the holder's bank."""
        page_id, view = self._view(request)
        if view is None:
            return self._error(request, 21)
        elsewhere = _elsewhere("banco", page_id, view, request)
        wrong = "revise" in request.query_params
        return elsewhere or self._page(request, "banco.html", view, page_id=page_id, wrong=wrong)

    async def bank_answer(self, request: Request) -> Response:
        """The holder says who it is, and its bank whether that is so."""
        page_id, view = self._view(request)
        if view is None:
            return self._error(request, 21)
        form = await form_of(request)
        nonce = form.get("nonce", "")
        if view.authenticating and _equal(nonce, view.nonce):
            rut = read_rut(form.get("rut", ""))
            if "volver" in form:
                await self._acquirer.leave_bank(page_id, nonce)
            elif rut is None:
                return _see(f"/webpay/banco/{page_id}?revise=rut", request)
            else:
                password = form.get("clave", "")[:PASSWORD_MAX]
                await self._acquirer.identify(page_id, nonce, rut, password)
        return self._onward(request)

    async def waiting(self, request: Request) -> Response:
        """Until it is decided, come again every two seconds."""
        page_id, view = self._view(request)
        if view is None:
            return self._error(request, 21)
        elsewhere = _elsewhere("espera", page_id, view, request)
        return elsewhere or self._page(request, "espera.html", view, page_id=page_id)

    async def final(self, request: Request) -> Response:
        """Say how it ended, and lead back to the shop."""
        page_id, view = self._view(request)
        if view is None:
            return self._error(request, 21)
        elsewhere = _elsewhere("final", page_id, view, request)
        if elsewhere is not None:
            return elsewhere
        answer = self._page(
            request, "final.html", view, page_id=page_id, paid=view.state == "CONFIRMED",
            freed=view.respuesta == "0" and view.state != "CONFIRMED",
        )  # fmt: skip
        answer.headers["content-security-policy"] = _policy(_origin(view.return_url))
        return answer

    # ---- for shops

    async def transactions(self, request: Request) -> Response:
        """What became of an order."""
        late = self._too_many(request)
        if late is not None:
            return late
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        order = request.query_params.get("order", "")
        known = self._acquirer.status(key, order) if scheme.lower() == "bearer" and key else None
        if known is None:
            answer: Response = JSONResponse({"error": "unauthorised"}, 401)
            answer.headers["www-authenticate"] = "Bearer"
        else:
            answer = JSONResponse({"transactions": known})
        return _safe(answer, request)

    # ---- when it goes wrong

    async def bad_form(self, request: Request, error: Exception) -> Response:
        """A body that is no form of ours."""
        assert isinstance(error, BadForm)
        return self._error(request, 1, error.status)

    async def http_error(self, request: Request, error: Exception) -> Response:
        """Unknown addresses and methods."""
        assert isinstance(error, HTTPException)
        answer = self._error(request, 0, error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    async def failure(self, request: Request, error: Exception) -> Response:
        """Ours: what failed is logged by the server, without what the request carried."""
        return self._error(request, 0, 503)

    # ---- making answers

    def _view(self, request: Request) -> tuple[str, View | None]:
        page_id = request.path_params["id"]
        if len(page_id) > ID_LENGTH_MAX:
            return "", None
        return page_id, self._acquirer.view(page_id, request.cookies.get(cookie_name(page_id), ""))

    def _onward(self, request: Request) -> Response:
        """Lead to where the payment stands now."""
        page_id, view = self._view(request)
        assert view is not None, "it was there a moment ago"
        return _see(_place(page_id, view), request)

    def _page(self, request: Request, name: str, view: View, **values: Any) -> Response:
        text = self._templates.get_template(name).render(view=view, refresh_s=REFRESH_S, **values)
        return _safe(HTMLResponse(text), request)

    def _error(self, request: Request, error: int, status: int = 400) -> Response:
        text = self._templates.get_template("error.html").render(error=error, status=status)
        return _safe(HTMLResponse(text, status), request)


def cookie_name(page_id: str) -> str:
    """Return the name of a payment's own cookie, so that payments in two tabs keep apart."""
    return "wp-" + page_id[:16]


def _known(fields: Mapping[str, str]) -> dict[str, str]:
    return {name: fields[name] for name in FIELDS if name in fields}


def _place(page_id: str, view: View) -> str:
    """Return the address of a payment's present page."""
    if view.state in PAYABLE:
        page = "pago"
    elif view.state == "PAYING" and view.authenticating:
        page = "banco"
    else:
        page = "espera" if view.state in UNDER_WAY else "final"
    return f"/webpay/{page}/{page_id}"


def _elsewhere(page: str, page_id: str, view: View, request: Request) -> Response | None:
    """Lead to the payment's present page, unless this is it."""
    place = _place(page_id, view)
    return None if place == f"/webpay/{page}/{page_id}" else _see(place, request)


def _see(place: str, request: Request) -> Response:
    """303: the next request is a GET, whatever this one was."""
    return _safe(Response(status_code=303, headers={"location": place}), request)


def _safe(answer: Response, request: Request) -> Response:
    headers = answer.headers
    headers["cache-control"] = "no-store"
    headers["referrer-policy"] = "no-referrer"
    headers["x-frame-options"] = "DENY"
    headers["x-content-type-options"] = "nosniff"
    headers.setdefault("content-security-policy", _policy())
    if request.url.scheme == "https":
        headers["strict-transport-security"] = "max-age=31536000"
    return answer


def _policy(form_origin: str = "") -> str:
    return (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        f"form-action {' '.join(filter(None, (chr(39) + 'self' + chr(39), form_origin)))}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


def _slow_down() -> Response:
    return PlainTextResponse("Demasiadas solicitudes\n", 429, {"retry-after": "60"})


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


__all__ = [
    "Acquirer",
    "Card",
    "Entered",
    "Outcome",
    "Refused",
    "View",
    "WebLimits",
    "instalment_choice",
    "webpay_app",
]
