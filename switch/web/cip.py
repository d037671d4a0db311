"""The payment application on HTTP: the sites' API, the customers' pages, the service desk.

    /cip/v1/…            API of the sites (cip_api), with its OpenAPI document
    /pay/…  /cip/s/…     pages of customers (cip_pages)
    /cip/                entry of full mode
    /cip/desk/…          service desk (cip_desk)

What decides is the service, given from outside.
"""

from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from switch.web import cip_api, cip_desk, cip_pages
from switch.web.cip_common import Pages, Service, api_error, error_page
from switch.web.mounts import App

HERE: Final = Path(__file__).parent


def application(service: Service) -> App:
    """Return the ASGI application around a service."""
    pages = Pages(service)
    routes = [
        *cip_api.routes(service),
        *cip_desk.routes(service, pages),
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
