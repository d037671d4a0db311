"""What pages, API and desk of the payment application share: templates, headers, cookies, CSRF."""

import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import json
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from protocols.cip.records import decimal
from protocols.cip.transaction import FieldFault
from protocols.currencies import CURRENCIES

Service = Any
"""`switch.products.cip_service.CipService`: given from outside, since pages know no flow."""

TEMPLATES: Final = Path(__file__).parent / "templates" / "cip"
CSRF_FIELD: Final = "csrf"
PAGE_FIELD: Final = "page"

STATUS_TEXT: Final = {
    "CREATED": "Iniciado",
    "SUBMITTED": "En proceso",
    "CONFIRMED": "Confirmado",
    "DECLINED": "Rechazado",
    "PENDING": "Pendiente",
    "VOIDED": "Anulado",
    "REFUNDED": "Devuelto",
    "CANCELLED": "Cancelado",
    "FAILED": "Sin efecto",
}
REASON_TEXT: Final = {
    "funds": "Fondos insuficientes.",
    "instrument": "El medio de pago no es válido.",
    "limit": "Se superó el límite del medio de pago.",
    "authentication": "No se pudo verificar el medio de pago.",
    "not_allowed": "El medio de pago no permite esta operación.",
    "technical": "No se pudo procesar el pago.",
    "expired": "La sesión venció antes de pagar.",
}
KIND_TEXT: Final = {"payment": "Pagos", "void": "Anulaciones", "refund": "Devoluciones"}
FAULT_TEXT: Final = {
    "required": "Complete este dato.",
    "invalid": "Revise este dato: no tiene la forma esperada.",
    "too_long": "El texto es demasiado largo.",
    "out_of_range": "El monto está fuera de lo permitido.",
    "expired": "La tarjeta está vencida.",
    "sum_differs": "Los ítems no suman el total.",
    "not_allowed": "Este valor no se acepta aquí.",
}
ERROR_TEXT: Final = {
    400: ("Solicitud no válida", "No pudimos entender la solicitud."),
    403: ("Solicitud rechazada", "Por seguridad, esta solicitud no se aceptó."),
    404: ("Página no encontrada", "La dirección no existe, ya se usó o venció."),
    409: ("Esta página ya no está vigente", "Abrió otra página más nueva de este pago."),
    410: ("La sesión terminó", "La sesión venció o ya se cerró. No se realizó ningún pago nuevo."),
    413: ("Solicitud demasiado larga", "Envió más datos de los que se aceptan."),
    429: ("Demasiados intentos", "Espere un minuto y vuelva a intentar."),
    503: ("Servicio ocupado", "Vuelva a intentar en unos segundos. No se realizó ningún pago."),
}


def money(amount: int, currency: str) -> str:
    """An amount for people: `150.000 PYG`, `1.500,00 USD`."""
    row = CURRENCIES.get(currency)
    text = decimal(amount, row.exponent if row else 0)
    whole, _, cents = text.partition(".")
    grouped = f"{int(whole):,}".replace(",", ".")
    return f"{grouped}{',' + cents if cents else ''} {currency}"


def utc(ns: int) -> str:
    """An instant in UTC, to the second; empty for 0."""
    if not ns:
        return ""
    return f"{datetime.fromtimestamp(ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S}"


class Pages:
    """Templates, and what every page carries."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._key = os.urandom(32)
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters["utc"] = utc
        self._environment.globals.update(
            money=money,
            status_text=STATUS_TEXT,
            reason_text=REASON_TEXT,
            fault_text=FAULT_TEXT,
            kind_text=KIND_TEXT,
        )

    def page(
        self, request: Request, template: str, values: Mapping[str, Any], *, status: int = 200,
        returns: tuple[str, ...] = (), headers: Mapping[str, str] | None = None,
    ) -> Response:  # fmt: skip
        """A page with its headers; `returns` are addresses its forms may lead to."""
        text = self._environment.get_template(template).render(**values)
        answer = HTMLResponse(text, status, headers=dict(headers or {}))
        secure_headers(answer, request, returns)
        return answer

    # ---- CSRF: a token per cookie, and so per session

    def token(self, secret: str) -> str:
        return hmac.digest(self._key, f"csrf\n{secret}".encode(), "sha256").hex()

    def is_own(self, request: Request, secret: str, token: str) -> bool:
        """True for a form that one of our own pages sent."""
        given = token.encode("utf-8", "replace")
        if not secret or not hmac.compare_digest(self.token(secret).encode(), given):
            return False
        site = request.headers.get("sec-fetch-site", "")
        if site:
            return site == "same-origin"
        origin = request.headers.get("origin", "")
        # A page without referrer says "null", and an old browser nothing: the token decides then.
        return origin in ("", "null") or urlsplit(origin).netloc == request.headers.get("host")


def is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def cookie_name(request: Request) -> str:
    return "__Host-cip" if is_secure(request) else "cip"


def desk_cookie_name(request: Request) -> str:
    return "__Host-cip-desk" if is_secure(request) else "cip-desk"


def secret_of(request: Request, name: str) -> str:
    """The secret that a browser has; "" for none, or for what cannot be one."""
    value = request.cookies.get(name, "")
    return value if len(value) == 32 and value.isascii() and value.isalnum() else ""


def set_cookie(answer: Response, request: Request, name: str, secret: str) -> None:
    answer.set_cookie(
        name, secret, path="/", secure=is_secure(request), httponly=True, samesite="lax"
    )


def drop_cookie(answer: Response, request: Request, name: str) -> None:
    answer.delete_cookie(name, path="/", secure=is_secure(request), httponly=True, samesite="lax")


def secure_headers(answer: Response, request: Request, returns: tuple[str, ...] = ()) -> None:
    """Nothing is cached, framed, sniffed or told to others; forms lead to us and to `returns`."""
    origins = sorted({f"{p.scheme}://{p.netloc}" for p in map(urlsplit, returns) if p.netloc})
    answer.headers["cache-control"] = "no-store"
    answer.headers["content-security-policy"] = (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
        f"form-action {' '.join([chr(39) + 'self' + chr(39), *origins])}; frame-ancestors 'none'"
    )
    answer.headers["x-content-type-options"] = "nosniff"
    answer.headers["x-frame-options"] = "DENY"
    answer.headers["referrer-policy"] = "no-referrer"
    if is_secure(request):
        answer.headers["strict-transport-security"] = "max-age=31536000"


def redirect(request: Request, url: str, returns: tuple[str, ...] = ()) -> Response:
    answer = RedirectResponse(url, 303)
    secure_headers(answer, request, returns)
    return answer


def error_page(
    pages: Pages, request: Request, status: int, *, link: str = "", label: str = "",
    text: str = "",
) -> Response:  # fmt: skip
    """A neutral page; `link` only ever leads to us, or to an address that was checked."""
    title, usual = ERROR_TEXT.get(status, ("Error", "No pudimos completar la solicitud."))
    values = {"title": title, "text": text or usual, "link": link, "label": label}
    return pages.page(request, "error.html", values, status=status)


# ---- answers of the API


def request_id(service: Service) -> str:
    return str(service.flow.book.identifier("req_", service.now_ns()))


def api_answer(
    service: Service, value: Mapping[str, Any], status: int,
    headers: Mapping[str, str] | None = None,
) -> Response:  # fmt: skip
    body = {**value}
    body.setdefault("request_id", request_id(service))
    answer = Response(
        json.encode(body), status, media_type="application/json", headers=dict(headers or {})
    )
    answer.headers["cache-control"] = "no-store"
    answer.headers["x-content-type-options"] = "nosniff"
    return answer


MESSAGES: Final = {
    "malformed": "the request cannot be read",
    "authentication_failed": "authentication failed",
    "not_allowed": "not allowed",
    "not_found": "not found",
    "client_ref_conflict": "client_ref is known with other data",
    "wrong_state": "not possible in the present state",
    "too_large": "the body is too large",
    "media_type": "the media type is not taken",
    "invalid_fields": "some fields are not valid",
    "rate_limited": "too many requests",
    "overloaded": "overloaded, nothing was stored",
}


def api_error(
    service: Service, code: str, status: int, faults: list[FieldFault] | None = None
) -> Response:
    fields = [{"name": fault.name[:100], "reason": fault.reason} for fault in faults or ()]
    error = {"code": code, "message": MESSAGES.get(code, code), "fields": fields}
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "CIP"
    return api_answer(service, {"error": error}, status, headers)
