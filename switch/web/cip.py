"""The payment application on HTTP: the sites' API, the customers' pages, the service desk.

    /cip/v1/…            API of the sites (cip_api), with its OpenAPI document
    /pay/…  /cip/s/…     pages of customers (cip_pages)
    /cip/                entry of full mode
    /cip/desk/…          service desk (cip_desk), its administration and access log (cip_admin)

What decides is the service, given from outside.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from switch.web import cip_admin, cip_api, cip_desk, cip_pages
from switch.web.cip_common import ERROR_TEXT, Pages, Service, api_error, error_page
from switch.web.mounts import App, Scope

HERE: Final = Path(__file__).parent


def refused(service: Service) -> Callable[[Scope, int], tuple[bytes, bytes]]:
    """What is answered where the listener's bounds are reached: the API in its own form."""

    def answer(scope: Scope, status: int) -> tuple[bytes, bytes]:
        if scope["path"].startswith("/cip/v1/"):
            code = "too_large" if status == 413 else "overloaded"
            return b"application/json", bytes(api_error(service, code, status).body)
        title, text = ERROR_TEXT.get(status, ERROR_TEXT[503])
        return b"text/plain; charset=utf-8", f"{title}. {text}\n".encode()

    return answer


def application(service: Service) -> App:
    """Return the ASGI application around a service."""
    pages = Pages(service)
    routes = [
        *cip_api.routes(service),
        *cip_desk.routes(service, pages),
        *cip_admin.routes(service, pages),
        Mount("/cip/static", StaticFiles(directory=HERE / "static" / "cip")),
        *cip_pages.routes(service, pages),
    ]

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if request.url.path.startswith("/cip/v1/"):
            code = {404: "not_found", 405: "malformed"}.get(error.status_code, "malformed")
            return api_error(service, code, error.status_code)
        return error_page(pages, request, error.status_code)

    return Starlette(routes=routes, exception_handlers={HTTPException: refused})
