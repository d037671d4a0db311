"""The customers' pages of partial and full mode.

Server-rendered, in the browser's language, and complete without scripts. Each form carries a token
of its session and the version of its page: an older one, of another tab or behind the back button,
is answered with a link to the present one. The first form that can be paid makes the payment, with
its instrument masked; what was typed for the source is kept in memory only, without the
verification value and the one-time code, until the customer pays.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocols.cip import shown_code
from protocols.cip.transaction import (
    REFERENCE,
    REQUIRED,
    SECRET_FIELDS,
    TAKEN,
    FieldFault,
    fits,
    masked_instrument,
)
from protocols.currencies import CURRENCIES
from switch.web.cip_api import CLIENT_REF, is_listed
from switch.web.cip_common import (
    CSRF_FIELD,
    PAGE_FIELD,
    Pages,
    Service,
    cookie_name,
    drop_cookie,
    error_page,
    money,
    redirect,
    secret_of,
    separators,
    set_cookie,
)
from switch.web.cip_texts import N_, language_of, told
from switch.web.requests import BadForm, address_of

DRAFTS_MAX: Final = 20_000
FORM_BYTES_MAX: Final = 32 << 10
FORM_FIELDS_MAX: Final = 128
REFRESH_S: Final = 5
INSTRUMENT_FIELDS: Final = {
    "card": ("pan", "expiry", "cvv", "name"),
    "account": ("bank", "number", "holder"),
    "dimo": ("document", "phone", "token"),
    "ledger": ("account",),
}
INSTRUMENT_TEXT: Final = {
    "card": N_("Card"), "account": N_("Bank account"), "dimo": N_("Dimo"),
    "ledger": N_("Local account"),
}  # fmt: skip


def routes(service: Service, pages: Pages) -> list[Route]:
    """Every page of customers."""
    site = _Site(service, pages)
    return [
        Route("/pay/s/{token}", site.answered(site.arrive_signed), methods=["GET"]),
        Route("/pay/{application_id}", site.answered(site.arrive), methods=["GET", "POST"]),
        Route("/cip/", site.answered(site.entry), methods=["GET"]),
        Route("/cip/login", site.answered(site.full_login), methods=["POST"]),
        Route("/cip/unlock/{secret}", site.answered(site.unlock_page), methods=["GET"]),
        Route("/cip/unlock", site.answered(site.unlock), methods=["POST"]),
        Route("/cip/s/login", site.answered(site.login_page), methods=["GET"]),
        Route("/cip/s/login", site.answered(site.login), methods=["POST"]),
        Route("/cip/s/payment", site.answered(site.form_page), methods=["GET"]),
        Route("/cip/s/payment", site.answered(site.form), methods=["POST"]),
        Route("/cip/s/review", site.answered(site.review), methods=["GET"]),
        Route("/cip/s/pay", site.answered(site.pay), methods=["POST"]),
        Route("/cip/s/result", site.answered(site.result), methods=["GET"]),
        Route("/cip/s/cancel", site.answered(site.cancel), methods=["POST"]),
        Route("/cip/s/exit", site.answered(site.leave), methods=["POST"]),
    ]


class PageError(Exception):
    """A page that says why another one is not shown."""

    def __init__(self, status: int, link: str = "", label: str = "", text: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.link = link
        self.label = label
        self.text = text


class Draft:
    """What a customer has typed and not paid yet; in memory only, and shown to nobody."""

    __slots__ = ("transaction", "typed")

    def __init__(self, typed: dict[str, str], transaction: Any = None) -> None:
        self.typed = typed
        self.transaction = transaction


class _Site:
    def __init__(self, service: Service, pages: Pages) -> None:
        self._service = service
        self._flow = service.flow
        self._pages = pages
        self._drafts: OrderedDict[str, Draft] = OrderedDict()

    def answered(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Turn refusals into pages; a neutral one names nothing."""

        async def page(request: Request) -> Response:
            try:
                answer: Response = await handler(request)
                return answer
            except PageError as error:
                return error_page(
                    self._pages, request, error.status,
                    link=error.link, label=error.label, text=error.text,
                )  # fmt: skip
            except BadForm as error:
                return error_page(self._pages, request, error.status)
            except self._service.refusal as error:
                return error_page(self._pages, request, error.status)
            except self._service.full:
                return error_page(self._pages, request, 503)

        return page

    # ---- arriving

    async def arrive(self, request: Request) -> Response:
        """Partial, P0: only the application's id travels; whatever else comes is not looked at, but
        who asks for a return to an address that is not listed is refused."""
        application = self._application(request.path_params["application_id"])
        if "partial" not in application.modes or "p0" not in application.variants:
            raise PageError(404)
        wanted = request.query_params.get("return_url")
        if wanted is not None and not is_listed(wanted, application.return_urls):
            self._flow.counts.refuse("return_url")
            raise PageError(403)
        _, secret = await self._service.perform(
            lambda step: self._flow.sessions.open_plain(step, application)
        )
        return self._entered(request, secret)

    async def arrive_signed(self, request: Request) -> Response:
        """Partial, P1: the address works once."""
        token = request.path_params["token"]
        _, secret = await self._service.perform(
            lambda step: self._flow.sessions.open_address(step, token)
        )
        return self._entered(request, secret)

    def _entered(self, request: Request, secret: str) -> Response:
        answer = redirect(request, "/cip/s/login")
        set_cookie(answer, request, cookie_name(request), secret)
        return answer

    def _application(self, application_id: str) -> Any:
        application = self._flow.book.application(application_id)
        if application is None or application.disabled:
            raise PageError(404)
        return application

    # ---- full: entry

    async def entry(self, request: Request) -> Response:
        """The three credentials. Nothing is stored for somebody who only looks."""
        secret = secret_of(request, cookie_name(request))
        if not secret or self._flow.sessions.by_cookie(secret) is not None:
            secret = os.urandom(16).hex()
        return self._entry(request, secret, {})

    def _entry(
        self, request: Request, secret: str, typed: Mapping[str, str], wrong: str = "",
        status: int = 200,
    ) -> Response:  # fmt: skip
        values = {
            "csrf": self._pages.token(secret), "wrong": wrong, "full": True,
            "application_id": typed.get("application_id", "")[:16], "application": None,
            "user_id": typed.get("user_id", "")[:64], "action": "/cip/login", "page_version": 0,
            "amount": "", "reference": "",
        }  # fmt: skip
        answer = self._pages.page(request, "login.html", values, status=status)
        set_cookie(answer, request, cookie_name(request), secret)
        return answer

    async def full_login(self, request: Request) -> Response:
        secret = secret_of(request, cookie_name(request))
        typed = await self._typed(request, secret)
        entered_ns = self._service.now_ns()
        try:
            user = await self._service.auth.person(
                typed.get("application_id", ""), typed.get("user_id", ""),
                typed.get("password", ""), address_of(request), ("customer",),
            )  # fmt: skip
        except self._service.refusal as error:
            return self._entry(request, secret, typed, _login_text(error.status), error.status)
        application = self._application(user.application)
        if "full" not in application.modes:
            raise PageError(403)
        _, fresh = await self._service.perform(
            lambda step: self._flow.sessions.open_user(step, "full", application, user, entered_ns)
        )
        answer = redirect(request, "/cip/s/payment")
        set_cookie(answer, request, cookie_name(request), fresh)
        return answer

    # ---- unlocking by a mailed link

    async def unlock_page(self, request: Request) -> Response:
        """What the link leads to. It changes nothing: readers of mail follow links too."""
        link = request.path_params["secret"]
        if not self._flow.book.is_unlock(link, self._service.now_ns()):
            raise PageError(404)
        secret = secret_of(request, cookie_name(request))
        if not secret or self._flow.sessions.by_cookie(secret) is not None:
            secret = os.urandom(16).hex()
        values = {"csrf": self._pages.token(secret), "link": link, "done": False}
        answer = self._pages.page(request, "unlock.html", values)
        set_cookie(answer, request, cookie_name(request), secret)
        return answer

    async def unlock(self, request: Request) -> Response:
        typed = await self._typed(request, secret_of(request, cookie_name(request)))
        link = typed.get("link", "")
        await self._service.perform(lambda step: self._flow.book.use_unlock(step, link))
        return self._pages.page(request, "unlock.html", {"csrf": "", "link": "", "done": True})

    # ---- partial: login

    async def login_page(self, request: Request) -> Response:
        session, secret = await self._session(request, "login")
        return self._login(request, session, secret)

    def _login(
        self, request: Request, session: Any, secret: str, typed: Mapping[str, str] | None = None,
        wrong: str = "", status: int = 200,
    ) -> Response:  # fmt: skip
        application = self._application(session.application)
        context = session.context
        values = {
            "csrf": self._pages.token(secret), "wrong": wrong, "full": False,
            "application_id": application.id, "application": application,
            "user_id": (typed or {}).get("user_id", "")[:64], "action": "/cip/s/login",
            "page_version": session.page, "reference": context.client_ref,
            "amount": self._money(request, context.amount, context.currency),
        }  # fmt: skip
        return self._pages.page(
            request, "login.html", values, status=status, returns=application.return_urls
        )

    async def login(self, request: Request) -> Response:
        session, secret = await self._session(request, "login")
        typed = await self._typed(request, secret, session)
        asked_ns = self._service.now_ns()
        try:
            user = await self._service.auth.person(
                session.application, typed.get("user_id", ""), typed.get("password", ""),
                address_of(request), ("customer",),
            )  # fmt: skip
        except self._service.refusal as error:
            return self._login(
                request, session, secret, typed, _login_text(error.status), error.status
            )
        fresh = await self._service.perform(
            lambda step: self._log_in(step, session.id, user, asked_ns)
        )
        answer = redirect(request, "/cip/s/payment")
        set_cookie(answer, request, cookie_name(request), fresh)
        return answer

    def _log_in(self, step: Any, session_id: str, user: Any, asked_ns: int) -> str:
        session = self._flow.sessions.get(session_id)
        if session is None or session.state != "login":
            raise self._service.refusal("not_found", 410)
        secret: str = self._flow.sessions.log_in(step, session, user, asked_ns)
        return secret

    # ---- the form

    async def form_page(self, request: Request) -> Response:
        session, secret = await self._session(request, "open")
        if self._is_paid(session):
            return redirect(request, "/cip/s/result")
        session = await self._turn(session)
        draft = self._drafts.get(session.id)
        return self._form(request, session, secret, draft.typed if draft else {}, [])

    def _form(
        self, request: Request, session: Any, secret: str, typed: Mapping[str, str],
        faults: list[FieldFault], status: int = 200,
    ) -> Response:  # fmt: skip
        application = self._application(session.application)
        context = session.context
        signed = dict(context.fields) if session.signed else {}
        known = {rule.name for rule in application.fields}
        values = {
            "csrf": self._pages.token(secret), "page_version": session.page,
            "application": application, "signed": signed,
            "extra": {n: v for n, v in signed.items() if n not in known},
            "amount": self._money(request, context.amount, context.currency),
            "amount_typed": typed.get("amount", ""), "reference": context.client_ref,
            "currency": application.amount.currency, "typed": typed,
            "exponent": _exponent(application.amount.currency),
            "instruments": self._service.instruments(application),
            "instrument_text": INSTRUMENT_TEXT,
            "faults": {fault.name: fault.reason for fault in faults},
            "reference_rule": _reference_rule(session, application),
        }  # fmt: skip
        return self._pages.page(
            request, "payment.html", values, status=status, returns=application.return_urls
        )

    async def form(self, request: Request) -> Response:
        session, secret = await self._session(request, "open")
        typed = await self._typed(request, secret, session)
        if self._is_paid(session):
            return redirect(request, "/cip/s/result")
        application = self._application(session.application)
        data = _transaction(typed, session, application, language_of(request))
        transaction, faults = self._service.check(application, data)
        if _is_hopeless(session, faults):
            await self._service.perform(lambda step: self._flow.fail_form(step, session))
            url = self._return_url(session, application)
            label = N_("Back to the site") if url else ""
            text = N_("What the site asked for is not accepted any more.")
            raise PageError(410, url, label, text)
        reference = typed.get(REFERENCE, "").strip()
        rule = _reference_rule(session, application)
        fault = None if rule is None else self._reference_fault(session, rule, reference)
        faults = [*faults, *filter(None, (fault,))]
        kept = {n: v for n, v in typed.items() if n.rpartition(".")[2] not in SECRET_FIELDS}
        self._keep(session.id, Draft(kept, None if faults else transaction))
        if faults:
            session = await self._turn(session)
            return self._form(request, session, secret, kept, faults, 422)

        def keep(step: Any) -> None:
            present = self._flow.sessions.get(session.id)
            if present is None or not present.is_open:
                raise self._service.refusal("not_found", 410)
            named = reference if rule is not None else ""
            self._flow.keep_form(step, present, application, transaction, named)

        await self._service.perform(keep)
        return redirect(request, "/cip/s/review")

    def _reference_fault(self, session: Any, rule: Any, reference: str) -> FieldFault | None:
        """What is wrong with a reference that a customer typed."""
        if not reference:
            return FieldFault(REFERENCE, REQUIRED) if rule.required else None
        if not CLIENT_REF.fullmatch(reference) or not fits(rule, reference):
            return FieldFault(REFERENCE, "invalid")
        if len(reference) > rule.max:
            return FieldFault(REFERENCE, "too_long")
        known = self._flow.by_reference(session.application, reference)
        if known is not None and known.id != session.payment:
            return FieldFault(REFERENCE, TAKEN)
        return None

    def _money(self, request: Request, amount: int, currency: str) -> str:
        """An amount in the browser's language; "" for none."""
        return money(amount, currency, language_of(request)) if amount else ""

    async def review(self, request: Request) -> Response:
        session, secret = await self._session(request, "open")
        if self._is_paid(session):
            return redirect(request, "/cip/s/result")
        draft = self._drafts.get(session.id)
        if draft is None or draft.transaction is None:
            return redirect(request, "/cip/s/payment")
        session = await self._turn(session)
        application = self._application(session.application)
        transaction = draft.transaction
        fee = application.fee.fee(transaction.amount)
        currency, language = transaction.currency, language_of(request)
        payment = self._service.payment(session.payment)
        shown = session.context.client_ref or _reference_rule(session, application) is not None
        values = {
            "csrf": self._pages.token(secret), "page_version": session.page,
            "application": application, "reference": payment.client_ref if shown else "",
            "amount": money(transaction.amount, currency, language),
            "fee": money(fee, currency, language),
            "total": money(transaction.amount + fee, currency, language),
            "instrument": masked_instrument(transaction.instrument),
            "instrument_type": INSTRUMENT_TEXT[transaction.instrument.type],
            "payer": transaction.payer, "custom": _labelled(application, transaction.custom),
        }  # fmt: skip
        return self._pages.page(request, "review.html", values, returns=application.return_urls)

    # ---- paying

    async def pay(self, request: Request) -> Response:
        """Submit once; whoever comes again, or twice at once, sees the same result."""
        session, secret = await self._session(request, "open")
        if self._is_paid(session):
            await self._typed(request, secret)
            return redirect(request, "/cip/s/result")
        await self._typed(request, secret, session)
        draft = self._drafts.get(session.id)
        if draft is None or draft.transaction is None:
            return redirect(request, "/cip/s/payment")
        application = self._application(session.application)
        steps = self._steps(session)
        submitted_ns = self._service.now_ns()

        def submit(step: Any) -> Any:
            present = self._flow.sessions.get(session.id)
            if present is None or not present.is_open:
                raise self._service.refusal("not_found", 410)
            return self._flow.submit_form(
                step, present, application, draft.transaction,
                {**steps, (4 if session.kind == "full" else 5): submitted_ns},
            )  # fmt: skip

        payment = await self._service.perform(submit)
        self._drafts.pop(session.id, None)  # only now: who was refused for want of room has it yet
        await self._service.decided(payment.id)
        return redirect(request, "/cip/s/result")

    def _steps(self, session: Any) -> dict[int, int]:
        """When the machine steps before the form were done, and how long they took."""
        if session.kind == "full":
            return {1: session.entered_ns, 2: session.authenticated_ns}
        return {3: session.entered_ns, 4: session.authenticated_ns}

    async def result(self, request: Request) -> Response:
        session, secret = await self._session(request, "open")
        if not self._is_paid(session):
            return redirect(request, "/cip/s/payment")
        payment = await self._service.perform(lambda step: self._flow.payment(session.payment))
        application = self._application(session.application)
        waiting = payment.status in ("SUBMITTED", "PENDING")
        currency, language = payment.currency, language_of(request)
        values = {
            "csrf": self._pages.token(secret), "page_version": session.page,
            "application": application, "payment": payment, "waiting": waiting,
            "code": shown_code(payment.code("CIP")) if payment.confirmed_ns else "",
            "source_code": payment.code("SOURCE"),
            "amount": money(payment.amount, currency, language),
            "fee": money(payment.fee, currency, language),
            "total": money(payment.total, currency, language),
            "returns": session.kind == "partial" and bool(self._return_url(session, application)),
            "mail": _mail(payment, language) if payment.confirmed_ns else "",
        }  # fmt: skip
        headers = {"refresh": f"{REFRESH_S}; url=/cip/s/result"} if waiting else {}
        answer = self._pages.page(
            request, "result.html", values, returns=application.return_urls, headers=headers
        )
        await self._service.told(payment)
        return answer

    # ---- leaving

    async def cancel(self, request: Request) -> Response:
        session, secret = await self._session(request, "login", "open")
        if self._is_paid(session):
            await self._typed(request, secret)
            return redirect(request, "/cip/s/result")
        await self._typed(request, secret, session)
        self._drafts.pop(session.id, None)

        def cancel(step: Any) -> None:
            present = self._flow.sessions.get(session.id)
            if present is not None and present.is_open:
                self._flow.cancel(step, present)

        await self._service.perform(cancel)
        return self._left(request, session, N_("The payment was cancelled. Nothing was charged."))

    async def leave(self, request: Request) -> Response:
        session, secret = await self._session(request, "login", "open")
        await self._typed(request, secret, session)
        self._drafts.pop(session.id, None)

        def close(step: Any) -> None:
            present = self._flow.sessions.get(session.id)
            if present is None or not present.is_open:
                return
            if self._is_paid(present):
                self._flow.sessions.close(step, present)
            else:
                self._flow.cancel(step, present)

        await self._service.perform(close)
        return self._left(request, session, N_("You can close this window."))

    def _left(self, request: Request, session: Any, text: str) -> Response:
        application = self._application(session.application)
        url = self._return_url(session, application) if session.kind == "partial" else ""
        if url:
            answer = redirect(request, url, application.return_urls)
        elif session.kind == "full":
            answer = redirect(request, "/cip/")
        else:
            answer = self._pages.page(
                request, "error.html",
                {"title": N_("Finished"), "text": text, "link": "", "label": ""},
            )  # fmt: skip
        drop_cookie(answer, request, cookie_name(request))
        return answer

    def _return_url(self, session: Any, application: Any) -> str:
        """Where the customer goes back to, with the session's public name; "" for nowhere."""
        url = session.context.return_url or application.default_return_url
        if not url or not is_listed(url, application.return_urls):
            return ""
        parts = urlsplit(url)
        pairs = [*parse_qsl(parts.query, keep_blank_values=True), ("session", session.id)]
        found: str = urlunsplit(parts._replace(query=urlencode(pairs)))
        return found

    # ---- common

    async def _session(self, request: Request, *states: str) -> tuple[Any, str]:
        """The browser's session in one of the states, seen now.

        Raises:
            PageError: none, over, or in another state: there is a link to the present page.
        """
        secret = secret_of(request, cookie_name(request))
        session = self._flow.sessions.by_cookie(secret) if secret else None
        if session is None:
            raise PageError(410, "/cip/", N_("Go to the start"))
        if self._flow.sessions.is_over(session, self._service.now_ns()):
            await self._service.perform(
                lambda step: self._flow.sessions.on_deadline(step, session.id)
            )
            raise self._over(session)
        if session.kind == "desk" or session.state not in states:
            where = "/cip/s/payment" if session.state == "open" else "/cip/s/login"
            raise PageError(409, where, N_("Go to the present page"))
        return session, secret

    def _over(self, session: Any) -> PageError:
        application = self._application(session.application)
        url = self._return_url(session, application) if session.kind == "partial" else ""
        if url:
            return PageError(410, url, N_("Back to the site"))
        return PageError(410, "/cip/", N_("Go to the start"))

    async def _turn(self, session: Any) -> Any:
        """A form is shown: the ones shown before are outdated."""

        def turn(step: Any) -> Any:
            present = self._flow.sessions.get(session.id)
            if present is None or not present.is_open:
                raise self._service.refusal("not_found", 410)
            self._flow.sessions.touch(step, present, page=True)
            return present

        return await self._service.perform(turn)

    async def _typed(self, request: Request, secret: str, session: Any = None) -> dict[str, str]:
        """What a form of ours sent; with `session`, also of the present version of its page.

        Raises:
            PageError: 403 for a form of somebody else, 409 for an outdated one.
            BadForm: no form at all.
        """
        typed = form_fields(await request.body(), request.headers.get("content-type", ""))
        if not self._pages.is_own(request, secret, typed.pop(CSRF_FIELD, "")):
            self._flow.counts.refuse("csrf")
            raise PageError(403)
        version = typed.pop(PAGE_FIELD, "")
        if session is not None and version != str(session.page):
            raise PageError(409, "/cip/s/payment", N_("Go to the present page"))
        return typed

    def _is_paid(self, session: Any) -> bool:
        """True once its payment was submitted, whatever came of it."""
        payment = self._flow.payment(session.payment) if session.payment else None
        return payment is not None and payment.status not in ("CREATED", "CANCELLED", "FAILED")

    def _keep(self, session_id: str, draft: Draft) -> None:
        self._drafts[session_id] = draft
        self._drafts.move_to_end(session_id)
        if len(self._drafts) > DRAFTS_MAX:
            self._drafts.popitem(last=False)


def form_fields(body: bytes, content_type: str) -> dict[str, str]:
    """The fields of a form, each at most once.

    Raises:
        BadForm: another type, too large, or a name given twice.
    """
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise BadForm("not a form", 415)
    if len(body) > FORM_BYTES_MAX:
        raise BadForm("too large", 413)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except ValueError:
        raise BadForm("not a form") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise BadForm("a field is given twice")
    return dict(pairs)


def _reference_rule(session: Any, application: Any) -> Any:
    """The schema's field for the reference, where the site has given none; else None."""
    if session.context.client_ref:
        return None
    return next((rule for rule in application.fields if rule.name == REFERENCE), None)


def _is_hopeless(session: Any, faults: Sequence[FieldFault]) -> bool:
    """True where something that the site signed cannot be taken: nobody here may change it."""
    if not session.signed:
        return False
    context = session.context
    signed = {"currency", *(("amount",) if context.amount else ())}
    signed |= {name if name.startswith("payer.") else f"custom.{name}" for name in context.fields}
    return any(fault.name in signed for fault in faults)


def _transaction(
    typed: Mapping[str, str], session: Any, application: Any, language: str
) -> dict[str, Any]:
    """What was typed, as the transaction of the API; what was signed goes before it."""
    context = session.context
    rule = application.amount
    amount: Any = context.amount or _amount(typed.get("amount", ""), rule.currency, language)
    signed = dict(context.fields) if session.signed else {}
    kind = typed.get("instrument.type", "")
    instrument = {
        name: typed.get(f"instrument.{kind}.{name}", "") for name in INSTRUMENT_FIELDS.get(kind, ())
    }
    payer = {
        name: signed.get(f"payer.{name}") or typed.get(f"payer.{name}", "")
        for name in ("name", "email", "phone", "document")
    }
    custom = {
        field.name: signed.get(field.name) or typed.get(f"custom.{field.name}", "")
        for field in application.fields
        if field.is_custom
    }
    return {
        "amount": amount, "currency": rule.currency, "payer": payer, "custom": custom,
        "instrument": {"type": kind or None, **instrument},
    }  # fmt: skip


def _amount(text: str, currency: str, language: str) -> int | str | None:
    """What a person typed, in minor units, with the separators of his language."""
    group, point = separators(language)
    text = text.strip().replace(" ", "").replace(group, "")
    whole, comma, cents = text.partition(point)
    places = _exponent(currency)
    if not text:
        return None
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 12) or (comma and not places):
        return text
    if cents and not (cents.isascii() and cents.isdigit() and len(cents) <= places):
        return text
    return int(whole + cents.ljust(places, "0"))


def _exponent(currency: str) -> int:
    row = CURRENCIES.get(currency)
    return row.exponent if row else 0


def _labelled(application: Any, custom: Mapping[str, str]) -> list[tuple[str, str]]:
    labels = {field.name: field.label or field.name for field in application.fields}
    return [(labels.get(name, name), value) for name, value in custom.items()]


def _mail(payment: Any, language: str) -> str:
    """An address that opens a message with the confirmations, to whomever the customer chooses."""
    subject = told(N_("Payment receipt"), language)
    text = (
        f"{subject} {shown_code(payment.code('CIP'))}\n"
        f"{told(N_('Authorisation of the source'), language)} {payment.code('SOURCE')}\n"
        f"{told(N_('Reference'), language)} {payment.client_ref}\n"
        f"{told(N_('Total'), language)} {money(payment.total, payment.currency, language)}\n"
    )
    query = urlencode({"subject": subject, "body": text}).replace("+", "%20")
    return f"mailto:?{query}"


def _login_text(status: int) -> str:
    return {
        429: N_("Too many attempts. Wait a minute."),
        503: N_("The service is busy. Try again in some seconds."),
    }.get(status, N_("The data are not correct. Check them and try again."))
