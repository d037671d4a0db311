"""What pages, API and desk of the payment application share: templates, headers, cookies, CSRF."""

import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
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
from switch.web.cip_texts import CATALOGUES, ENGLISH, N_, language_of, told

Service = Any
"""`switch.products.cip_service.CipService`: given from outside, since pages know no flow."""

TEMPLATES: Final = Path(__file__).parent / "templates" / "cip"
CSRF_FIELD: Final = "csrf"
PAGE_FIELD: Final = "page"

STATUS_TEXT: Final = {
    "CREATED": N_("Started"),
    "SUBMITTED": N_("In progress"),
    "CONFIRMED": N_("Confirmed"),
    "DECLINED": N_("Declined"),
    "PENDING": N_("Pending"),
    "VOIDED": N_("Voided"),
    "REFUNDED": N_("Refunded"),
    "CANCELLED": N_("Cancelled"),
    "FAILED": N_("Without effect"),
}
REASON_TEXT: Final = {
    "funds": N_("Insufficient funds."),
    "instrument": N_("What you pay with is not valid."),
    "limit": N_("The limit of what you pay with was exceeded."),
    "authentication": N_("What you pay with could not be verified."),
    "not_allowed": N_("What you pay with does not allow this."),
    "technical": N_("The payment could not be processed."),
    "expired": N_("The session ended before the payment."),
    "invalid": N_("What the site asked for is not accepted any more."),
}
KIND_TEXT: Final = {"payment": N_("Payments"), "void": N_("Voids"), "refund": N_("Refunds")}
FAULT_TEXT: Final = {
    "required": N_("Fill this in."),
    "invalid": N_("Check this: it has not the expected form."),
    "too_long": N_("The text is too long."),
    "out_of_range": N_("The amount is out of what is allowed."),
    "expired": N_("The card has expired."),
    "sum_differs": N_("The items do not make up the total."),
    "not_allowed": N_("This is not accepted here."),
    "taken": N_("This reference was used before."),
}
ERROR_TEXT: Final = {
    400: (N_("Not a valid request"), N_("We could not understand the request.")),
    403: (N_("Request refused"), N_("For your safety this request was not accepted.")),
    404: (N_("Page not found"), N_("The address does not exist, was used before, or is too old.")),
    409: (N_("This page is out of date"), N_("You opened a newer page of this payment.")),
    410: (
        N_("The session has ended"),
        N_("The session ran out or was closed. No new payment was made."),
    ),
    413: (N_("Request too long"), N_("You sent more data than is accepted.")),
    429: (N_("Too many attempts"), N_("Wait a minute and try again.")),
    503: (N_("The service is busy"), N_("Try again in some seconds. No payment was made.")),
}


def money(amount: int, currency: str, language: str = ENGLISH) -> str:
    """An amount for people: `1,500.00 USD`, in Spanish `1.500,00 USD`."""
    row = CURRENCIES.get(currency)
    text = decimal(amount, row.exponent if row else 0)
    whole, _, cents = text.partition(".")
    group, point = separators(language)
    grouped = f"{int(whole):,}".replace(",", group)
    return f"{grouped}{point + cents if cents else ''} {currency}"


def separators(language: str) -> tuple[str, str]:
    """What groups thousands, and what separates decimals."""
    return (",", ".") if language == ENGLISH else (".", ",")


def utc(ns: int) -> str:
    """An instant in UTC, to the second; empty for 0."""
    if not ns:
        return ""
    return f"{datetime.fromtimestamp(ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def environment(language: str) -> Environment:
    """Templates in one language."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.i18n"],
    )  # fmt: skip
    say = partial(told, language=language)
    made.install_gettext_callables(  # type: ignore[attr-defined]
        say, lambda one, many, count: say(one if count == 1 else many), newstyle=True
    )
    made.filters["utc"] = utc
    made.globals.update(
        language=language,
        money=partial(money, language=language),
        status_text=STATUS_TEXT,
        reason_text=REASON_TEXT,
        fault_text=FAULT_TEXT,
        kind_text=KIND_TEXT,
    )
    return made


class Pages:
    """Templates, and what every page carries."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._key = os.urandom(32)
        self._environments = {language: environment(language) for language in CATALOGUES}

    def page(
        self, request: Request, template: str, values: Mapping[str, Any], *, status: int = 200,
        returns: tuple[str, ...] = (), headers: Mapping[str, str] | None = None,
    ) -> Response:  # fmt: skip
        """A page with its headers; `returns` are addresses its forms may lead to."""
        language = language_of(request)
        text = self._environments[language].get_template(template).render(**values)
        answer = HTMLResponse(text, status, headers=dict(headers or {}))
        answer.headers["content-language"] = language
        answer.headers["vary"] = "accept-language"
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
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
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
    """A neutral page; `link` only ever leads to us, or to an address that was checked. Texts are
    those of `N_`, and translated here."""
    usual = (N_("Error"), N_("We could not complete the request."))
    title, usual_text = ERROR_TEXT.get(status, usual)
    values = {"title": title, "text": text or usual_text, "link": link, "label": label}
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
