"""A SOF site: a small real site that takes payments through the payment application in each mode.

It keeps its own orders, signs sessions, asks for outcomes when a customer comes back, and takes
webhooks. `Faults` makes it misbehave the way sites do.
"""

import base64
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import trio
from jinja2 import Environment, FileSystemLoader
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from protocols.cip import (
    KIND_QUERY,
    KIND_SESSION,
    header_parameters,
    sign,
    verify_webhook,
)
from switch.web.cip_pages import form_fields
from switch.web.edge import serve_http

TEMPLATES: Final = Path(__file__).parent.parent / "web" / "templates" / "cip"
GATEWAY: Final = "/cip/v1/gateway/payments"
SESSIONS: Final = "/cip/v1/partial/sessions"
CALL_S: Final = 15.0
BEHIND_S: Final = 3600
ORDERS_MAX: Final = 100_000


class Faults(Struct, kw_only=True):
    """What the site does wrong.

    Attributes:
        lose_answer: it calls, forgets what it was told, and calls again with the same reference.
        parallel: it calls twice at once.
        alter: it changes the amount after signing.
        replay: it sends the same signed context twice.
        old: its clock is an hour behind.
        return_url: it asks for another address to return to.
    """

    lose_answer: bool = False
    parallel: bool = False
    alter: bool = False
    replay: bool = False
    old: bool = False
    return_url: str = ""


class SofAccount(Struct, frozen=True, kw_only=True):
    """What the application's owner was given."""

    application: str
    user: str
    password: str
    key_id: str
    key: str

    def __repr__(self) -> str:
        return f"SofAccount({self.application!r})"


class Order(Struct, kw_only=True):
    """One purchase at the site. `steps`: 3 and 10 of the text, seconds of the monotonic clock."""

    reference: str
    amount: int
    status: str = ""
    cip: str = ""
    source: str = ""
    http_status: int = 0
    steps: dict[int, float] = {}


class SofSite:
    """One site. `cip_url` is the base of the payment application."""

    def __init__(self, account: SofAccount, cip_url: str, faults: Faults | None = None) -> None:
        self.account = account
        self.cip_url = cip_url
        self.url = ""
        self.faults = faults or Faults()
        self.orders: dict[str, Order] = {}
        self.sessions: dict[str, str] = {}  # session to the order's reference
        self.webhooks: list[dict[str, Any]] = []
        self.refused_webhooks = 0
        self._page = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template(
            "sof.html"
        )
        self._client = httpx.AsyncClient(timeout=CALL_S, trust_env=False)

    async def run(
        self, port: int, *, stop: trio.Event | None = None,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Serve on a port of loopback until `stop`, or cancelled."""
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        app = Starlette(
            routes=[
                Route("/", self._front, methods=["GET"]),
                Route("/gateway", self._told(self._gateway), methods=["POST"]),
                Route("/partial", self._told(self._partial), methods=["POST"]),
                Route("/back", self._told(self._back), methods=["GET"]),
                Route("/hook", self._hook, methods=["POST"]),
            ]
        )
        async with self._client:
            await serve_http(
                app, listener, stop=trio.Event() if stop is None else stop, task_status=task_status
            )

    # ---- what it asks of CIP

    async def pay(self, amount: int, card: Mapping[str, str], reference: str = "") -> Order:
        """Gateway: steps 3, 4 and 10."""
        order = self._order(amount, reference)
        order.steps = {3: time.monotonic()}
        body = {
            "client_ref": order.reference,
            "transaction": {
                "amount": amount, "currency": "PYG", "instrument": {"type": "card", **card},
            },
        }  # fmt: skip
        if self.faults.lose_answer:
            await self._post(GATEWAY, body)
        if self.faults.parallel:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._post, GATEWAY, body)
                answer = await self._post(GATEWAY, body)
        else:
            answer = await self._post(GATEWAY, body)
        self._take(order, answer.json(), answer.status_code)
        while order.status == "PENDING":
            await trio.sleep(answer.json().get("retry_after", 2))
            await self.look(order)
        order.steps[10] = time.monotonic()
        return order

    async def look(self, order: Order) -> None:
        """Gateway: the present state, by our own reference."""
        answer = await self._client.get(
            f"{self.cip_url}{GATEWAY}", params={"client_ref": order.reference},
            auth=_Credentials(self.account),
        )  # fmt: skip
        self._take(order, answer.json(), answer.status_code)

    async def open_session(self, amount: int, reference: str = "") -> tuple[int, dict[str, Any]]:
        """Partial, P1: a signed context; status and answer."""
        order = self._order(amount, reference)
        order.steps = {3: time.monotonic()}
        account = self.account
        values: dict[str, Any] = {
            "application_id": account.application, "client_ref": order.reference,
            "amount": amount, "currency": "PYG",
            "return_url": self.faults.return_url or f"{self.url}/back",
            "ts": int(time.time()) - (BEHIND_S if self.faults.old else 0),
            "nonce": secrets.token_hex(16), "key_id": account.key_id,
        }  # fmt: skip
        values["sig"] = sign(bytes.fromhex(account.key), KIND_SESSION, values)
        if self.faults.alter:
            values["amount"] = 1
        if self.faults.replay:
            await self._client.post(f"{self.cip_url}{SESSIONS}", json=values)
        answer = await self._client.post(f"{self.cip_url}{SESSIONS}", json=values)
        told: dict[str, Any] = answer.json()
        if answer.status_code == 201:
            self.sessions[told["session"]] = order.reference
        return answer.status_code, told

    async def outcome(self, session: str) -> dict[str, Any]:
        """Partial: what became of a session, signed."""
        path = f"{SESSIONS}/{session}"
        ts, nonce, account = int(time.time()), secrets.token_hex(16), self.account
        parameters = header_parameters("GET", path, b"", key_id=account.key_id, ts=ts, nonce=nonce)
        headers = {
            "cip-key": account.key_id, "cip-timestamp": str(ts), "cip-nonce": nonce,
            "cip-signature": sign(bytes.fromhex(account.key), KIND_QUERY, parameters),
        }  # fmt: skip
        answer = await self._client.get(f"{self.cip_url}{path}", headers=headers)
        told: dict[str, Any] = answer.json()
        return told

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self._client.post(
            f"{self.cip_url}{path}", json=body, auth=_Credentials(self.account)
        )

    def _order(self, amount: int, reference: str) -> Order:
        assert len(self.orders) < ORDERS_MAX, "a simulator does not run for ever"
        name = reference or f"INV-{secrets.token_hex(6)}"
        return self.orders.setdefault(name, Order(reference=name, amount=amount))

    def _take(self, order: Order, told: Mapping[str, Any], http_status: int) -> None:
        codes = told.get("confirmations", {})
        order.status = told.get("status", told.get("error", {}).get("code", ""))
        order.cip, order.source = codes.get("cip", ""), codes.get("source", "")
        order.http_status = http_status

    # ---- pages

    def _shown(self, title: str, lines: list[tuple[str, str]], status: int = 200) -> Response:
        text = self._page.render(
            title=title, lines=lines, cip=self.cip_url, application=self.account.application
        )
        return HTMLResponse(text, status)

    def _told(self, page: Callable[[Request], Awaitable[Response]]) -> Any:
        """A page that needs CIP says so where it does not answer: the outcome is unknown."""

        async def answered(request: Request) -> Response:
            try:
                return await page(request)
            except httpx.HTTPError as error:
                lines = [("error", type(error).__name__)]
                return self._shown("CIP no responde: no vuelva a pagar todavía", lines, 502)

        return answered

    async def _front(self, request: Request) -> Response:
        return self._shown("Oficina de impuestos", [])

    async def _gateway(self, request: Request) -> Response:
        typed = form_fields(await request.body(), request.headers.get("content-type", ""))
        card = {name: typed.get(name, "") for name in ("pan", "expiry", "cvv")}
        order = await self.pay(_amount(typed), card)
        return self._shown(_title(order.status), _lines(order))

    async def _partial(self, request: Request) -> Response:
        typed = form_fields(await request.body(), request.headers.get("content-type", ""))
        status, told = await self.open_session(_amount(typed))
        if status != 201:
            code = told.get("error", {}).get("code", "")
            return self._shown("CIP no aceptó el pedido", [("error", code)], 502)
        return RedirectResponse(told["url"], 303)

    async def _back(self, request: Request) -> Response:
        session = request.query_params.get("session", "")
        told = await self.outcome(session)
        payment = told.get("payment", {})
        reference = self.sessions.get(session, payment.get("client_ref", ""))
        order = self._order(payment.get("amount", 0), reference)
        self._take(order, payment, 200)
        order.steps[10] = time.monotonic()
        return self._shown(_title(order.status), _lines(order))

    async def _hook(self, request: Request) -> Response:
        body = await request.body()
        head = request.headers
        stamp = head.get("cip-timestamp", "")
        good = stamp.isdigit() and verify_webhook(
            bytes.fromhex(self.account.key), head.get("cip-event", ""), int(stamp), body,
            head.get("cip-signature", ""),
        )  # fmt: skip
        if not good:
            self.refused_webhooks += 1
            return Response(status_code=401)
        self.webhooks.append(json.loads(body))
        return Response(status_code=204)


class _Credentials(httpx.Auth):
    """The three credentials, in the header."""

    def __init__(self, account: SofAccount) -> None:
        self._account = account

    def auth_flow(self, request: httpx.Request) -> Any:
        text = f"{self._account.application}:{self._account.user}:{self._account.password}"
        request.headers["authorization"] = f"CIP {base64.b64encode(text.encode()).decode()}"
        yield request


def _amount(typed: Mapping[str, str]) -> int:
    text = typed.get("amount", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 13 else 0


def _title(status: str) -> str:
    return {"CONFIRMED": "Gracias por su pago", "PENDING": "Su pago está pendiente"}.get(
        status, "No se pagó"
    )


def _lines(order: Order) -> list[tuple[str, str]]:
    return [
        ("referencia", order.reference), ("estado", order.status or "sin pago"),
        ("confirmación", order.cip or "–"), ("fuente", order.source or "–"),
    ]  # fmt: skip
