"""The service desk: payments in real time, as pages and as CSV, and acts of two persons.

View and CSV ask the same question of the read model, so the same filter gives the same rows; what
has changed since the model was written is laid over it, so both show what is durable now. Every
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
from switch.journal.projections.cip import PROJECTION, payment_row
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
from switch.web.cip_texts import N_, language_of, told
from switch.web.requests import BadForm, address_of

KINDS: Final = ("clerk", "approver", "auditor", "admin")
MAY_REQUEST: Final = ("clerk", "approver")
MAY_APPROVE: Final = ("approver",)
QUERIES_MAX: Final = 4
YEARS_SHOWN: Final = 5
PAGES_MAX: Final = 1000
FRESH_PER_PAUSE: Final = 64
STATE_ROWS_MAX: Final = 20_000  # shown without a read model
PIECE_BYTES: Final = 32_768
_DESK: Final = N_("Go to the desk")


def routes(service: Service, pages: Pages) -> list[Route]:
    """Every page of the service desk."""
    desk = Desk(service, pages)
    return [
        Route("/cip/desk/", desk.answered(desk.payments), methods=["GET"]),
        Route("/cip/desk/login", desk.answered(desk.login), methods=["POST"]),
        Route("/cip/desk/exit", desk.answered(desk.leave), methods=["POST"]),
        Route("/cip/desk/payments.csv", desk.answered(desk.csv), methods=["GET"]),
        Route("/cip/desk/reports", desk.answered(desk.reports), methods=["GET"]),
        Route("/cip/desk/reports/year/{year:int}", desk.answered(desk.year), methods=["GET"]),
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


class Desk:
    """The desk's pages, and what those of its administration share with them."""

    def __init__(self, service: Service, pages: Pages) -> None:
        self._service = service
        self._flow = service.flow
        self._pages = pages
        self._limiter = trio.CapacityLimiter(QUERIES_MAX)

    def answered(
        self, handler: Callable[[Request], Any], texts: Mapping[str, str] | None = None
    ) -> Callable[[Request], Any]:
        """Turn refusals into pages; `texts`: what to say by the word of the refusal."""
        texts = _REFUSED if texts is None else texts

        async def page(request: Request) -> Response:
            try:
                answer: Response = await handler(request)
                return answer
            except PageError as error:
                return error_page(
                    self._pages, request, error.status, link="/cip/desk/", label=_DESK,
                    text=error.text,
                )  # fmt: skip
            except BadForm as error:
                return error_page(self._pages, request, error.status)
            except queries.FilterError as error:
                return error_page(
                    self._pages, request, 400, link="/cip/desk/", label=_DESK,
                    text=told(N_("Check the filter: %(name)s."), language_of(request)).replace(
                        "%(name)s", str(error)
                    ),
                )  # fmt: skip
            except self._service.refusal as error:
                return error_page(
                    self._pages, request, error.status, link="/cip/desk/", label=_DESK,
                    text=texts.get(error.code, ""),
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
        typed = await self.typed(request, secret)
        entered_ns = self._service.now_ns()
        try:
            user = await self._service.auth.person(
                typed.get("application_id", ""), typed.get("user_id", ""),
                typed.get("password", ""), address_of(request), KINDS,
            )  # fmt: skip
        except self._service.refusal as error:
            text = N_("The data are not correct.")
            if error.status in (429, 503):
                text = N_("Wait a moment and try again.")
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
        session, secret = await self.session(request)
        await self.typed(request, secret)
        await self._service.perform(lambda step: self._close(step, session.id))
        answer = redirect(request, "/cip/desk/")
        drop_cookie(answer, request, desk_cookie_name(request))
        return answer

    def _close(self, step: Any, session_id: str) -> None:
        session = self._flow.sessions.get(session_id)
        if session is not None:
            self._flow.sessions.close(step, session)

    async def session(self, request: Request) -> tuple[Any, str]:
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

    async def typed(self, request: Request, secret: str) -> dict[str, str]:
        typed = form_fields(await request.body(), request.headers.get("content-type", ""))
        if not self._pages.is_own(request, secret, typed.pop(CSRF_FIELD, "")):
            self._flow.counts.refuse("csrf")
            raise PageError(403)
        return typed

    async def seen(self, session: Any, what: str, subject: str) -> None:
        """Somebody looks at payers' data: written before it is shown."""

        def note(step: Any) -> None:
            step.audit(f"{session.application}:{session.user}", what, subject[:200], "00")
            present = self._flow.sessions.get(session.id)
            if present is not None and present.is_open:
                self._flow.sessions.touch(step, present)

        await self._service.perform(note)

    # ---- looking

    async def payments(self, request: Request) -> Response:
        try:
            session, secret = await self.session(request)
        except PageError:
            return self._login_page(request)
        filters = _filters(request)
        page = page_number(request)
        fresh, instead = await self._fresh(session)
        await self.seen(session, "cip_view", urlencode(filters))
        application = self._flow.book.application(session.application)
        zone = self._service.zone(application)
        rows, totals = await self.ask_model(
            queries.payments, application.id, zone, filters, offset=page * queries.PAGE_ROWS,
            fresh=fresh, instead=instead,
        )  # fmt: skip
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
        session, _ = await self.session(request)
        filters = _filters(request)
        fresh, instead = await self._fresh(session)
        await self.seen(session, "cip_csv", urlencode(filters))
        application = self._flow.book.application(session.application)
        zone = self._service.zone(application)
        rows, totals = await self.ask_model(
            queries.payments, application.id, zone, filters, limit=queries.ROWS_MAX,
            fresh=fresh, instead=instead,
        )  # fmt: skip
        fields = tuple(rule.name for rule in application.fields if rule.is_custom)
        lines = csv_lines(
            (*COLUMNS, *fields),
            (queries.csv_row(row, zone, fields) for row in rows),
            queries.csv_totals(totals, fields) if application.csv_totals else None,
        )
        answer = StreamingResponse(_Pieces(lines), media_type="text/csv; charset=utf-8")
        secure_headers(answer, request)
        answer.headers["content-disposition"] = 'attachment; filename="payments.csv"'
        return answer

    async def show(self, request: Request) -> Response:
        session, secret = await self.session(request)
        payment = self._payment(request, session)
        await self.seen(session, "cip_view", payment.id)
        application = self._flow.book.application(session.application)
        currency, language = payment.currency, language_of(request)
        number = next((e.number for e in payment.events if e.what == "payment"), 0)
        run = self._flow.reports.run_of(application.id, number) if number else None
        values = {
            "csrf": self._pages.token(secret), "payment": payment, "application": application,
            "role": session.user_kind, "may_request": session.user_kind in MAY_REQUEST,
            "may_approve": session.user_kind in MAY_APPROVE, "user": session.user,
            "adjustments": self._flow.adjustments.of(payment), "code": _code,
            "run": run.id if run is not None else "", "zone": application.timezone,
            "local": partial(queries.local_text, zone=self._service.zone(application)),
            "amount": money(payment.amount, currency, language),
            "fee": money(payment.fee, currency, language),
            "refunded": money(payment.refunded, currency, language),
        }  # fmt: skip
        return self._pages.page(request, "desk_payment.html", values)

    async def requests(self, request: Request) -> Response:
        session, secret = await self.session(request)
        found = await self.ask_model(queries.adjustments, session.application, "REQUESTED")
        await self.seen(session, "cip_view", "requests")
        values = {
            "csrf": self._pages.token(secret), "rows": found, "user": session.user,
            "may_approve": session.user_kind in MAY_APPROVE,
            "application": self._flow.book.application(session.application),
        }  # fmt: skip
        return self._pages.page(request, "desk_requests.html", values)

    async def reports(self, request: Request) -> Response:
        session, _ = await self.session(request)
        application = self._flow.book.application(session.application)
        runs = list(reversed(self._flow.reports.runs(application.id)))[: queries.PAGE_ROWS]
        year = queries.local_year(self._service.now_ns(), self._service.zone(application))
        values = {
            "runs": runs, "application": application, "zone": application.timezone,
            "local": partial(queries.local_text, zone=self._service.zone(application)),
            "years": range(year, year - YEARS_SHOWN, -1),
        }  # fmt: skip
        return self._pages.page(request, "desk_reports.html", values)

    async def report(self, request: Request) -> Response:
        session, _ = await self.session(request)
        run = self._flow.reports.run(request.path_params["run"])
        if run is None or run.application != session.application:
            raise PageError(404)
        await self.seen(session, "cip_report", run.id)
        content, _ = await self._service.report_file(run)
        answer = Response(content, media_type="text/csv; charset=utf-8")
        secure_headers(answer, request)
        answer.headers["content-disposition"] = f'attachment; filename="{run.id}.csv"'
        return answer

    async def year(self, request: Request) -> Response:
        """What was paid, voided and refunded in a year of the application's zone."""
        session, _ = await self.session(request)
        application = self._flow.book.application(session.application)
        year = request.path_params["year"]
        if not queries.YEAR_FIRST <= year <= queries.YEAR_LAST:
            raise PageError(404)
        rows = await self.ask_model(
            queries.yearly, application.id, self._service.zone(application), year
        )
        values = {
            "rows": rows, "year": year, "application": application, "zone": application.timezone,
        }  # fmt: skip
        return self._pages.page(request, "desk_year.html", values)

    async def times(self, request: Request) -> Response:
        session, _ = await self.session(request)
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

    async def _fresh(
        self, session: Any
    ) -> tuple[list[tuple[Any, ...]], dict[str, list[tuple[Any, ...]]] | None]:
        """Rows of what the read model may not have yet, which need not be durable before the next
        step of whoever asks is; where there is no model, rows of all there is in its place."""
        try:
            model_seq = await self._asked(queries.position)
        except sqlite3.OperationalError as error:
            return [], await self._instead(error)
        last_seq = self._service.node.store.journal.next_seq - 1
        rows = []
        for place, name in enumerate(self._flow.fresh.beyond(model_seq, last_seq)):
            payment = self._flow.payment(name)
            if payment is not None and payment.application == session.application:
                rows.append(payment_row(payment))
            if place % FRESH_PER_PAUSE == FRESH_PER_PAUSE - 1:
                await trio.lowlevel.checkpoint()
        return rows, None

    async def _instead(self, error: sqlite3.OperationalError) -> dict[str, list[tuple[Any, ...]]]:
        """The state itself, where there is no read model yet and it is not too large for that.

        Raises:
            PageError: 503.
        """
        stored = self._flow.stored(STATE_ROWS_MAX) if queries.is_missing(error) else None
        if stored is None:
            raise PageError(503, text=N_("The list is still being prepared.")) from None
        tables: dict[str, list[tuple[Any, ...]]] = {}
        for place, (space, value) in enumerate(stored):
            for table, _, row in PROJECTION.rows(space, b"", value):
                tables.setdefault(table, []).append(row)
            if place % FRESH_PER_PAUSE == FRESH_PER_PAUSE - 1:
                await trio.lowlevel.checkpoint()
        return tables

    def _payment(self, request: Request, session: Any) -> Any:
        payment = self._flow.payment(request.path_params["payment_id"])
        if payment is None or payment.application != session.application:
            raise PageError(404)
        return payment

    async def ask_model(self, ask: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Ask the read model, or the state where there is none yet. Raises: PageError, 503."""
        try:
            return await self._asked(ask, *arguments, **more)
        except sqlite3.OperationalError as error:
            more["instead"] = await self._instead(error)
            return await self._asked(ask, *arguments, **more)

    async def _asked(self, ask: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        path = self._service.node.store.directory / "read.sqlite"
        return await trio.to_thread.run_sync(
            partial(ask, path, *arguments, **more), limiter=self._limiter
        )

    # ---- acting

    async def ask(self, request: Request) -> Response:
        """A void or refund is asked for; somebody else approves it."""
        session, secret = await self.session(request)
        typed = await self.typed(request, secret)
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
        session, secret = await self.session(request)
        await self.typed(request, secret)
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
    "wrong_state": N_("The payment is not in a state that allows it."),
    "not_allowed": N_("Who asked for it may not approve it: it takes another person."),
    "invalid_fields": N_("The amount is more than what is left to refund."),
}


def _filters(request: Request) -> dict[str, str]:
    given: Mapping[str, str] = request.query_params
    return {
        name: given[name].strip()[:100] for name in queries.FILTERS if given.get(name, "").strip()
    }


def page_number(request: Request) -> int:
    """The page of a list that is asked for, from 0."""
    return min(_number(request.query_params.get("page", "")), PAGES_MAX)


def _number(text: str) -> int:
    text = text.strip().replace(".", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 15 else 0


def _code(code: str) -> str:
    return shown_code(code) if len(code) == 12 else code


class _Pieces:
    """CSV lines in pieces of some size, with a breath after each.

    No generator: one that a client leaves halfway would be closed by the garbage collector.
    """

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def __aiter__(self) -> "_Pieces":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        piece = bytearray()
        for line in self._lines:
            piece += line
            if len(piece) > PIECE_BYTES:
                break
        if not piece:
            raise StopAsyncIteration
        return bytes(piece)
