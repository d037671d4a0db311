"""The service desk: payments in real time, as pages and as CSV, and acts of two persons.

View and CSV ask the same question of the read model, so the same filter gives the same rows. Every
view of personal data is written to the audit trail before it is shown.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import trio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from protocols.cip import shown_code
from protocols.cip.records import COLUMNS, csv_lines
from switch.journal import cip_queries as queries
from switch.web.cip_common import (
    CSRF_FIELD,
    STATUS_TEXT,
    Pages,
    Service,
    desk_cookie_name,
    drop_cookie,
    error_page,
    money,
    redirect,
    secret_of,
    secure_headers,
    set_cookie,
)
from switch.web.cip_pages import PageError, form_fields
from switch.web.requests import BadForm, address_of

KINDS: Final = ("clerk", "approver", "auditor", "admin")
MAY_REQUEST: Final = ("clerk", "approver")
MAY_APPROVE: Final = ("approver",)
QUERIES_MAX: Final = 4


def routes(service: Service, pages: Pages) -> list[Route]:
    """Every page of the service desk."""
    desk = _Desk(service, pages)
    return [
        Route("/cip/desk/", desk.answered(desk.list), methods=["GET"]),
        Route("/cip/desk/login", desk.answered(desk.login), methods=["POST"]),
        Route("/cip/desk/exit", desk.answered(desk.leave), methods=["POST"]),
        Route("/cip/desk/payments.csv", desk.answered(desk.csv), methods=["GET"]),
        Route("/cip/desk/reports", desk.answered(desk.reports), methods=["GET"]),
        Route("/cip/desk/reports/{run}.csv", desk.answered(desk.report), methods=["GET"]),
        Route("/cip/desk/times", desk.answered(desk.times), methods=["GET"]),
        Route("/cip/desk/pending", desk.answered(desk.requests), methods=["GET"]),
        Route("/cip/desk/payments/{payment_id}", desk.answered(desk.show), methods=["GET"]),
        Route(
            "/cip/desk/payments/{payment_id}/{kind:str}", desk.answered(desk.ask), methods=["POST"]
        ),
        Route(
            "/cip/desk/adjustments/{name}/{verdict:str}", desk.answered(desk.decide),
            methods=["POST"],
        ),
    ]  # fmt: skip


class _Desk:
    def __init__(self, service: Service, pages: Pages) -> None:
        self._service = service
        self._flow = service.flow
        self._pages = pages
        self._limiter = trio.CapacityLimiter(QUERIES_MAX)

    def answered(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def page(request: Request) -> Response:
            try:
                answer: Response = await handler(request)
                return answer
            except PageError as error:
                return error_page(
                    self._pages, request, error.status, link="/cip/desk/", label="Ir a la mesa",
                    text=error.text,
                )  # fmt: skip
            except BadForm as error:
                return error_page(self._pages, request, error.status)
            except queries.FilterError as error:
                return error_page(
                    self._pages, request, 400, link="/cip/desk/", label="Ir a la mesa",
                    text=f"Revise el filtro «{error}».",
                )  # fmt: skip
            except self._service.refusal as error:
                return error_page(
                    self._pages, request, error.status, link="/cip/desk/", label="Ir a la mesa",
                    text=_REFUSED.get(error.code, ""),
                )  # fmt: skip
            except self._service.full:
                return error_page(self._pages, request, 503)

        return page

    # ---- in and out

    def _login_page(self, request: Request, wrong: str = "", status: int = 200) -> Response:
        secret = secret_of(request, desk_cookie_name(request))
        if not secret or self._flow.sessions.by_cookie(secret) is not None:
            secret = self._flow.book.secret().hex()
        values = {"csrf": self._pages.token(secret), "wrong": wrong}
        answer = self._pages.page(request, "desk_login.html", values, status=status)
        set_cookie(answer, request, desk_cookie_name(request), secret)
        return answer

    async def login(self, request: Request) -> Response:
        secret = secret_of(request, desk_cookie_name(request))
        typed = await self._typed(request, secret)
        entered_ns = self._service.now_ns()
        try:
            user = await self._service.auth.person(
                typed.get("application_id", ""), typed.get("user_id", ""),
                typed.get("password", ""), address_of(request), KINDS,
            )  # fmt: skip
        except self._service.refusal as error:
            text = "Los datos no son correctos."
            if error.status in (429, 503):
                text = "Espere un momento e intente otra vez."
            return self._login_page(request, text, error.status)
        application = self._flow.book.application(user.application)

        def open_(step: Any) -> tuple[Any, str]:
            step.audit(f"{user.application}:{user.id}", "cip_desk", address_of(request), "00")
            opened: tuple[Any, str] = self._flow.sessions.open_user(
                step, "desk", application, user, entered_ns
            )
            return opened

        _, fresh = await self._service.perform(open_)
        answer = redirect(request, "/cip/desk/")
        set_cookie(answer, request, desk_cookie_name(request), fresh)
        return answer

    async def leave(self, request: Request) -> Response:
        session, secret = await self._session(request)
        await self._typed(request, secret)
        await self._service.perform(lambda step: self._close(step, session.id))
        answer = redirect(request, "/cip/desk/")
        drop_cookie(answer, request, desk_cookie_name(request))
        return answer

    def _close(self, step: Any, session_id: str) -> None:
        session = self._flow.sessions.get(session_id)
        if session is not None:
            self._flow.sessions.close(step, session)

    async def _session(self, request: Request) -> tuple[Any, str]:
        """The desk session of the browser, its user's role as it is now.

        Raises:
            PageError: 410, without one.
        """
        secret = secret_of(request, desk_cookie_name(request))
        session = self._flow.sessions.by_cookie(secret) if secret else None
        if (
            session is None
            or session.kind != "desk"
            or self._flow.sessions.is_over(session, self._service.now_ns())
        ):
            raise PageError(410)
        user = self._flow.book.user(session.application, session.user)
        if user is None or user.disabled or user.kind != session.user_kind:
            await self._service.perform(lambda step: self._close(step, session.id))
            raise PageError(410)
        return session, secret

    async def _typed(self, request: Request, secret: str) -> dict[str, str]:
        typed = form_fields(await request.body(), request.headers.get("content-type", ""))
        if not self._pages.is_own(request, secret, typed.pop(CSRF_FIELD, "")):
            self._flow.counts.refuse("csrf")
            raise PageError(403)
        return typed

    async def _seen(self, session: Any, what: str, subject: str) -> None:
        """Somebody looks at payers' data: written before it is shown."""

        def note(step: Any) -> None:
            step.audit(f"{session.application}:{session.user}", what, subject[:200], "00")
            present = self._flow.sessions.get(session.id)
            if present is not None and present.is_open:
                self._flow.sessions.touch(step, present)

        await self._service.perform(note)

    # ---- looking

    async def list(self, request: Request) -> Response:
        try:
            session, secret = await self._session(request)
        except PageError:
            return self._login_page(request)
        filters = _filters(request)
        page = min(_number(request.query_params.get("page", "")), 1000)
        await self._seen(session, "cip_view", urlencode(filters))
        application = self._flow.book.application(session.application)
        zone = self._service.zone(application)
        rows, totals = await self._ask_model(
            queries.payments, application.id, zone, filters, offset=page * queries.PAGE_ROWS
        )
        values = {
            "csrf": self._pages.token(secret), "user": session.user, "role": session.user_kind,
            "application": application, "rows": rows, "totals": totals, "filters": filters,
            "query": urlencode(filters), "page": page, "zone": application.timezone,
            "more": (page + 1) * queries.PAGE_ROWS < totals.count,
            "currency": application.amount.currency, "statuses": STATUS_TEXT,
            "local": partial(queries.local_text, zone=zone), "code": _code,
        }  # fmt: skip
        return self._pages.page(request, "desk.html", values)

    async def csv(self, request: Request) -> Response:
        session, _ = await self._session(request)
        filters = _filters(request)
        await self._seen(session, "cip_csv", urlencode(filters))
        application = self._flow.book.application(session.application)
        zone = self._service.zone(application)
        rows, totals = await self._ask_model(
            queries.payments, application.id, zone, filters, limit=queries.ROWS_MAX
        )
        fields = tuple(rule.name for rule in application.fields if rule.is_custom)
        lines = csv_lines(
            (*COLUMNS, *fields),
            (queries.csv_row(row, zone, fields) for row in rows),
            queries.csv_totals(totals, fields) if application.csv_totals else None,
        )
        answer = StreamingResponse(_pieces(lines), media_type="text/csv; charset=utf-8")
        secure_headers(answer, request)
        answer.headers["content-disposition"] = 'attachment; filename="payments.csv"'
        return answer

    async def show(self, request: Request) -> Response:
        session, secret = await self._session(request)
        payment = self._payment(request, session)
        await self._seen(session, "cip_view", payment.id)
        application = self._flow.book.application(session.application)
        currency = payment.currency
        number = next((e.number for e in payment.events if e.what == "payment"), 0)
        run = self._flow.reports.run_of(application.id, number) if number else None
        values = {
            "csrf": self._pages.token(secret), "payment": payment, "application": application,
            "role": session.user_kind, "may_request": session.user_kind in MAY_REQUEST,
            "may_approve": session.user_kind in MAY_APPROVE, "user": session.user,
            "adjustments": self._flow.adjustments.of(payment), "code": _code,
            "run": run.id if run is not None else "", "zone": application.timezone,
            "local": partial(queries.local_text, zone=self._service.zone(application)),
            "amount": money(payment.amount, currency), "fee": money(payment.fee, currency),
            "refunded": money(payment.refunded, currency),
        }  # fmt: skip
        return self._pages.page(request, "desk_payment.html", values)

    async def requests(self, request: Request) -> Response:
        session, secret = await self._session(request)
        found = await self._ask_model(
            lambda path: queries.adjustments(path, session.application, "REQUESTED")
        )
        await self._seen(session, "cip_view", "requests")
        values = {
            "csrf": self._pages.token(secret), "rows": found, "user": session.user,
            "may_approve": session.user_kind in MAY_APPROVE,
            "application": self._flow.book.application(session.application),
        }  # fmt: skip
        return self._pages.page(request, "desk_requests.html", values)

    async def reports(self, request: Request) -> Response:
        session, _ = await self._session(request)
        application = self._flow.book.application(session.application)
        runs = list(reversed(self._flow.reports.runs(application.id)))[: queries.PAGE_ROWS]
        values = {"runs": runs, "application": application}
        return self._pages.page(request, "desk_reports.html", values)

    async def report(self, request: Request) -> Response:
        session, _ = await self._session(request)
        run = self._flow.reports.run(request.path_params["run"])
        if run is None or run.application != session.application:
            raise PageError(404)
        await self._seen(session, "cip_report", run.id)
        content, _ = await self._service.report_file(run)
        answer = Response(content, media_type="text/csv; charset=utf-8")
        secure_headers(answer, request)
        answer.headers["content-disposition"] = f'attachment; filename="{run.id}.csv"'
        return answer

    async def times(self, request: Request) -> Response:
        session, _ = await self._session(request)
        counts = self._flow.counts
        totals = [
            (key[1], row.count, *(row.percentile(q) / 1e6 for q in (0.5, 0.95, 0.99)),
             counts.misses.get(key, 0))
            for key, row in sorted(counts.totals.rows.items()) if key[0] == session.application
        ]  # fmt: skip
        steps = [
            (key[1], key[2], row.count, *(row.percentile(q) / 1e6 for q in (0.5, 0.95, 0.99)))
            for key, row in sorted(counts.steps.rows.items()) if key[0] == session.application
        ]  # fmt: skip
        application = self._flow.book.application(session.application)
        values = {"totals": totals, "steps": steps, "application": application}
        return self._pages.page(request, "desk_times.html", values)

    def _payment(self, request: Request, session: Any) -> Any:
        payment = self._flow.payment(request.path_params["payment_id"])
        if payment is None or payment.application != session.application:
            raise PageError(404)
        return payment

    async def _ask_model(self, ask: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        path = self._service.node.store.directory / "read.sqlite"
        try:
            return await trio.to_thread.run_sync(
                partial(ask, path, *arguments, **more), limiter=self._limiter
            )
        except sqlite3.OperationalError:
            raise PageError(503, text="El modelo de consulta todavía no está listo.") from None

    # ---- acting

    async def ask(self, request: Request) -> Response:
        """A void or refund is asked for; somebody else approves it."""
        session, secret = await self._session(request)
        typed = await self._typed(request, secret)
        kind = request.path_params["kind"]
        if kind not in ("void", "refund"):
            raise PageError(404)
        if session.user_kind not in MAY_REQUEST:
            raise PageError(403)
        name = self._payment(request, session).id
        amount = _number(typed.get("amount", "")) if kind == "refund" else 0
        application = self._flow.book.application(session.application)

        def do(step: Any) -> None:
            payment = self._flow.payment(name)
            reference = self._flow.book.identifier("desk_", step.now_ns)
            self._flow.adjustments.ask(
                step, application, payment, kind, reference, amount, session.user, approved=False
            )

        await self._service.perform(do)
        return redirect(request, f"/cip/desk/payments/{name}")

    async def decide(self, request: Request) -> Response:
        session, secret = await self._session(request)
        await self._typed(request, secret)
        verdict = request.path_params["verdict"]
        if verdict not in ("approve", "reject"):
            raise PageError(404)
        if session.user_kind not in MAY_APPROVE:
            raise PageError(403)

        def do(step: Any) -> str:
            adjustments = self._flow.adjustments
            adjustment = adjustments.get(request.path_params["name"])
            if adjustment is None or adjustment.application != session.application:
                raise self._service.refusal("not_found", 404)
            act = adjustments.approve if verdict == "approve" else adjustments.reject
            act(step, adjustment, session.user)
            payment_id: str = adjustment.payment_id
            return payment_id

        payment_id = await self._service.perform(do)
        return redirect(request, f"/cip/desk/payments/{payment_id}")


_REFUSED: Final = {
    "wrong_state": "El pago no está en un estado que lo permita.",
    "not_allowed": "Quien lo pidió no puede aprobarlo: hace falta otra persona.",
    "invalid_fields": "El monto supera lo que queda por devolver.",
}


def _filters(request: Request) -> dict[str, str]:
    given: Mapping[str, str] = request.query_params
    return {
        name: given[name].strip()[:100] for name in queries.FILTERS if given.get(name, "").strip()
    }


def _number(text: str) -> int:
    text = text.strip().replace(".", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 15 else 0


def _code(code: str) -> str:
    return shown_code(code) if len(code) == 12 else code


async def _pieces(lines: Iterator[bytes]) -> Any:
    """CSV lines in pieces of some size, with a breath after each."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) > 32_768:
            yield bytes(piece)
            piece.clear()
            await trio.lowlevel.checkpoint()
    yield bytes(piece)
