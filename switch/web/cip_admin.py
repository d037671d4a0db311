"""Administration of one application at the service desk, and the auditor's log of who did what.

Keys and return addresses are changed by two administrators: one asks, another one approves. The
secret of a new key is on the page that answers the approval, and nowhere else.
"""

from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from switch.journal import cip_queries as queries
from switch.web.cip_common import Pages, Service, redirect
from switch.web.cip_desk import Desk, page_number
from switch.web.cip_pages import PageError
from switch.web.cip_texts import N_

ADMINS: Final = ("admin",)
AUDITORS: Final = ("auditor",)
KINDS: Final = ("key_add", "key_rotate", "key_end", "return_urls")
CHANGE_TEXT: Final = {
    "key_add": N_("One more key"), "key_rotate": N_("New key, end of the others"),
    "key_end": N_("End of a key"), "return_urls": N_("Return addresses"),
}  # fmt: skip
_REFUSED: Final = {
    "wrong_state": N_("That request was decided, has lapsed, or cannot be done any more."),
    "not_allowed": N_("It takes another person, and an administrator."),
    "invalid_fields": N_("Check the data: whole https addresses, without query, one a line."),
    "full": N_("Too many requests wait, or there are too many keys."),
}


def routes(service: Service, pages: Pages) -> list[Route]:
    """Every page of the administration, and the access log."""
    admin = _Admin(service, pages)
    told = partial(admin.desk.answered, texts=_REFUSED)
    base = "/cip/desk/admin"
    return [
        Route(base, told(admin.show), methods=["GET"]),
        Route(f"{base}/changes", told(admin.ask), methods=["POST"]),
        Route(f"{base}/changes/{{name}}/{{verdict:str}}", told(admin.decide), methods=["POST"]),
        Route(f"{base}/users/{{user}}/unlock", told(admin.unlock), methods=["POST"]),
        Route("/cip/desk/access", told(admin.access), methods=["GET"]),
    ]


class _Admin:
    def __init__(self, service: Service, pages: Pages) -> None:
        self._service = service
        self._flow = service.flow
        self._pages = pages
        self.desk = Desk(service, pages)

    async def _person(self, request: Request, kinds: tuple[str, ...]) -> tuple[Any, str]:
        """The desk session of somebody of these kinds. Raises: PageError, 410 or 403."""
        session, secret = await self.desk.session(request)
        if session.user_kind not in kinds:
            raise PageError(403)
        return session, secret

    # ---- administration

    async def show(self, request: Request) -> Response:
        session, secret = await self._person(request, ADMINS)
        book, now_ns = self._flow.book, self._service.now_ns()
        await self.desk.seen(session, "cip_view", "admin")
        application = book.application(session.application)
        users = sorted(book.users(application.id), key=lambda user: user.id)
        values = {
            "csrf": self._pages.token(secret), "application": application, "user": session.user,
            "changes": self._flow.changes.of(application.id), "change_text": CHANGE_TEXT,
            "keys": [key for key in application.keys if key.holds(now_ns)],
            "users": [(user, book.is_locked_anywhere(user, now_ns)) for user in users],
        }  # fmt: skip
        return self._pages.page(request, "desk_admin.html", values)

    async def ask(self, request: Request) -> Response:
        session, secret = await self._person(request, ADMINS)
        typed = await self.desk.typed(request, secret)
        what = typed.pop("what", "")
        if what not in KINDS:
            raise PageError(404)
        application = self._flow.book.application(session.application)
        await self._service.perform(
            lambda step: self._flow.changes.ask(step, application, what, typed, session.user)
        )
        return redirect(request, "/cip/desk/admin")

    async def decide(self, request: Request) -> Response:
        session, secret = await self._person(request, ADMINS)
        await self.desk.typed(request, secret)
        verdict = request.path_params["verdict"]
        if verdict not in ("approve", "reject"):
            raise PageError(404)

        def do(step: Any) -> Any:
            changes = self._flow.changes
            change = changes.get(request.path_params["name"])
            if change is None or change.application != session.application:
                raise self._service.refusal("not_found", 404)
            act = changes.approve if verdict == "approve" else changes.reject
            return act(step, change, session.user)

        made = await self._service.perform(do)
        if made is None:
            return redirect(request, "/cip/desk/admin")
        key_id, key = made
        application = self._flow.book.application(session.application)
        values = {"application": application, "key_id": key_id, "key": key.hex()}
        return self._pages.page(request, "desk_key.html", values)

    async def unlock(self, request: Request) -> Response:
        session, secret = await self._person(request, ADMINS)
        await self.desk.typed(request, secret)
        name = request.path_params["user"]

        def do(step: Any) -> None:
            user = self._flow.book.user(session.application, name)
            if user is None:
                raise self._service.refusal("not_found", 404)
            self._flow.book.unlock(user)
            who = f"{session.application}:{session.user}"
            subject = f"{user.application}:{user.id}"
            step.audit(who, "cip_unlock", subject, "00", security=True)

        await self._service.perform(do)
        return redirect(request, "/cip/desk/admin")

    # ---- the auditor's log

    async def access(self, request: Request) -> Response:
        session, _ = await self._person(request, AUDITORS)
        given = request.query_params
        filters = {
            name: given[name].strip()[:100]
            for name in queries.ACCESS_FILTERS
            if given.get(name, "").strip()
        }
        page = page_number(request)
        await self.desk.seen(session, "cip_access", urlencode(filters))
        application = self._flow.book.application(session.application)
        zone = self._service.zone(application)
        rows = await self.desk.ask_model(
            queries.access, application.id, zone, filters, offset=page * queries.PAGE_ROWS
        )
        values = {
            "application": application, "rows": rows[: queries.PAGE_ROWS], "filters": filters,
            "query": urlencode(filters), "page": page, "zone": application.timezone,
            "more": len(rows) > queries.PAGE_ROWS,
            "local": partial(queries.local_text, zone=zone),
        }  # fmt: skip
        return self._pages.page(request, "desk_access.html", values)
