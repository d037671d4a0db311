"""The API of the sites: Gateway payments, signed sessions, status, and its own description."""

import base64
import binascii
import functools
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocols.cip import KIND_GATEWAY, KIND_QUERY, KIND_SESSION, header_parameters, verify
from protocols.cip.transaction import FieldFault, fits, unflatten
from protocols.messages import AMOUNT_MAX
from switch.web.cip_common import Service, api_answer, api_error, request_id
from switch.web.cip_openapi import document
from switch.web.requests import address_of, certificate_of

BODY_BYTES_MAX: Final = 64 << 10
CLIENT_REF: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
NONCE: Final = re.compile(r"[!-~]{16,64}")
FIELDS_CHARS_MAX: Final = 4096
FORM: Final = "application/x-www-form-urlencoded"

Body = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]


class ApiError(Exception):
    """What a call is answered instead of a result."""

    def __init__(self, code: str, status: int, faults: list[FieldFault] | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.status = status
        self.faults = faults


def routes(service: Service) -> list[Route]:
    """Every path of the API."""
    api = _Api(service)
    told = functools.partial(_told, service)
    return [
        Route("/cip/v1/gateway/payments", told(api.pay), methods=["POST"]),
        Route("/cip/v1/gateway/payments", told(api.find), methods=["GET"]),
        Route("/cip/v1/gateway/payments/{payment_id}", told(api.show), methods=["GET"]),
        Route("/cip/v1/gateway/payments/{payment_id}/void", told(api.void), methods=["POST"]),
        Route("/cip/v1/gateway/payments/{payment_id}/refund", told(api.refund), methods=["POST"]),
        Route("/cip/v1/partial/sessions", told(api.open_session), methods=["POST"]),
        Route("/cip/v1/partial/sessions/{session}", told(api.show_session), methods=["GET"]),
        Route("/cip/v1/status", told(api.status), methods=["GET"]),
        Route("/cip/v1/openapi.json", told(api.describe), methods=["GET"]),
    ]


def _told(service: Service, handler: Handler) -> Handler:
    """Turn refusals into their answers."""

    @functools.wraps(handler)
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return api_error(service, error.code, error.status, error.faults)
        except service.refusal as error:
            faults = getattr(error, "faults", None)
            if error.code == "invalid_fields" and faults is None:
                faults = [FieldFault(str(error), "out_of_range")]
            return api_error(service, error.code, error.status, faults)
        except service.full:
            return api_error(service, "overloaded", 503)

    return answered


class _Api:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._flow = service.flow
        self._document = document()

    # ---- gateway

    async def pay(self, request: Request) -> Response:
        service = self._service
        steps = {4: service.now_ns()}
        name = request_id(service)
        body = await _body(request)
        application, user = await self._authenticate(request, body, KIND_GATEWAY)
        _mode(application, "gateway")
        steps[5] = service.now_ns()
        payment, repeated = await service.pay(
            application, user, _client_ref(body), body.get("transaction"),
            steps=steps, request_id=name,
        )  # fmt: skip
        answer = self._payment(payment, request_id=payment.request_id)
        if repeated:
            answer.headers["cip-replayed"] = "true"
        await service.told(payment)
        return answer

    async def find(self, request: Request) -> Response:
        application, _ = await self._authenticate(request, {}, KIND_GATEWAY)
        _mode(application, "gateway")
        client_ref = request.query_params.get("client_ref", "")
        if not CLIENT_REF.fullmatch(client_ref):
            raise ApiError("invalid_fields", 422, [FieldFault("client_ref", "invalid")])
        payment = await self._service.perform(
            lambda step: self._flow.by_reference(application.id, client_ref)
        )
        return self._shown(application, payment)

    async def show(self, request: Request) -> Response:
        application, _ = await self._authenticate(request, {}, KIND_GATEWAY)
        _mode(application, "gateway")
        name = request.path_params["payment_id"]
        payment = await self._service.perform(lambda step: self._flow.payment(name))
        return self._shown(application, payment)

    def _shown(self, application: Any, payment: Any) -> Response:
        if payment is None or payment.application != application.id:
            raise ApiError("not_found", 404)
        return api_answer(self._service, self._value(payment), 200)

    async def void(self, request: Request) -> Response:
        return await self._adjust(request, "void")

    async def refund(self, request: Request) -> Response:
        return await self._adjust(request, "refund")

    async def _adjust(self, request: Request, kind: str) -> Response:
        service, flow = self._service, self._flow
        body = await _body(request)
        application, user = await self._authenticate(request, body, KIND_GATEWAY)
        _mode(application, "gateway")
        client_ref = _client_ref(body)
        amount = body.get("amount", 0) if kind == "refund" else 0
        if kind == "refund" and (type(amount) is not int or not 0 < amount <= AMOUNT_MAX):
            raise ApiError("invalid_fields", 422, [FieldFault("amount", "invalid")])
        name = request.path_params["payment_id"]

        def ask(step: Any) -> Any:
            payment = flow.payment(name)
            if payment is None or payment.application != application.id:
                return None
            return flow.adjustments.ask(
                step, application, payment, kind, client_ref, amount, user.id, approved=True
            )

        found = await service.perform(ask)
        if found is None:
            raise ApiError("not_found", 404)
        adjustment, repeated = found
        if adjustment.status == "REFUSED":
            raise ApiError("wrong_state", 409)
        answer = api_answer(
            service, service.shown_adjustment(adjustment), _adjusted_status(adjustment)
        )
        if repeated:
            answer.headers["cip-replayed"] = "true"
        return answer

    def _value(self, payment: Any) -> dict[str, Any]:
        value: dict[str, Any] = self._service.shown(payment)
        if payment.status in ("SUBMITTED", "PENDING"):
            value["poll"] = f"/cip/v1/gateway/payments/{payment.id}"
            value["retry_after"] = 2
        return value

    def _payment(self, payment: Any, *, request_id: str) -> Response:
        """The result of a POST: 201, 402, or 202 while it is not known."""
        value = self._value(payment)
        headers = {}
        if payment.status in ("SUBMITTED", "PENDING"):
            status, value["status"] = 202, "PENDING"
            headers = {"location": value["poll"], "retry-after": "2"}
        else:
            status = 201 if payment.confirmed_ns else 402
            value["request_id"] = request_id
            if status == 201:  # as first given, whatever was given back since: GET tells that
                value |= {"status": "CONFIRMED", "refunded": 0}
            if status == 402:
                value.setdefault("reason", "technical")
        return api_answer(self._service, value, status, headers)

    # ---- partial

    async def open_session(self, request: Request) -> Response:
        service, flow = self._service, self._flow
        body = await _body(request)
        application = flow.book.application(str(body.get("application_id", "")))
        self._check_signature(application, KIND_SESSION, body, body)
        _mode(application, "partial")
        if "p1" not in application.variants:
            raise ApiError("not_allowed", 403)
        self._check_origin(request, application)
        context, faults = self._context(application, body)
        if faults:
            raise ApiError("invalid_fields", 422, faults)
        service.check_room()
        hashed = service.hash_of({name: body.get(name) for name in CONTEXT_FIELDS})

        def open_(step: Any) -> Any:
            self._take_nonce(step, application, body)
            return flow.open_context(step, application, context, hashed)

        session, address = await service.perform(open_)
        value = {
            "session": session.id,
            "url": f"{request.url.scheme}://{request.headers.get('host', '')}/pay/s/{address}",
            "expires_in": service.section.session.context_ttl_s,
        }
        return api_answer(service, value, 201)

    def _context(self, application: Any, body: Body) -> tuple[Any, list[FieldFault]]:
        faults = []
        client_ref = body.get("client_ref")
        if not isinstance(client_ref, str) or not CLIENT_REF.fullmatch(client_ref):
            faults.append(FieldFault("client_ref", "required" if not client_ref else "invalid"))
        rule, amount = application.amount, body.get("amount")
        if amount is not None and type(amount) is not int:
            faults.append(FieldFault("amount", "invalid"))
        elif amount is not None and not rule.min <= amount <= rule.max:
            faults.append(FieldFault("amount", "out_of_range"))
        if body.get("currency") not in (None, rule.currency):
            faults.append(FieldFault("currency", "not_allowed"))
        return_url = body.get("return_url")
        if not isinstance(return_url, str) or not is_listed(return_url, application.return_urls):
            self._flow.counts.refuse("return_url")
            faults.append(FieldFault("return_url", "not_allowed"))
        fields, wrong = _fields(application, body.get("fields"))
        faults += wrong
        if faults:
            return None, faults
        return self._service.context(client_ref, amount or 0, rule.currency, fields, return_url), []

    async def show_session(self, request: Request) -> Response:
        service, flow = self._service, self._flow
        session = flow.sessions.get(request.path_params["session"])
        application = None if session is None else flow.book.application(session.application)
        head = await self._check_headers(request, application, KIND_QUERY)
        self._check_origin(request, application)
        assert session is not None, "a signature is only right for a known session"

        def look(step: Any) -> Any:
            self._take_nonce(step, application, head)
            return flow.sessions.get(session.id), flow.payment(session.payment)

        session, payment = await service.perform(look)
        value: dict[str, Any] = {"session": session.id, "state": session.state}
        if payment is not None:
            value["payment"] = self._value(payment)
        return api_answer(service, value, 200)

    # ---- status

    async def status(self, request: Request) -> Response:
        return api_answer(self._service, self._service.status(), 200)

    async def describe(self, request: Request) -> Response:
        return api_answer(self._service, self._document, 200)

    # ---- who calls

    async def _authenticate(self, request: Request, body: Body, kind: str) -> tuple[Any, Any]:
        """Application and user of a call, by password or by signature.

        Raises:
            ApiError: 401, whatever is wrong.
        """
        service = self._service
        application_id, user_id, password = _credentials(request, body)
        if "cip-signature" in request.headers:
            application = self._flow.book.application(application_id)
            head = await self._check_headers(request, application, kind)
            user = self._flow.book.user(application_id, user_id)
            if user is None or user.disabled or user.kind != "machine":
                raise ApiError("authentication_failed", 401)
            await service.perform(lambda step: self._take_nonce(step, application, head))
        else:
            user = await service.auth.machine(
                application_id, user_id, password, address_of(request)
            )
            application = self._flow.book.application(application_id)
            if not application.machine_passwords:
                raise ApiError("authentication_failed", 401)
        self._check_origin(request, application)
        return application, user

    async def _check_headers(self, request: Request, application: Any, kind: str) -> dict[str, Any]:
        head = {
            "key_id": request.headers.get("cip-key", ""),
            "ts": request.headers.get("cip-timestamp", ""),
            "nonce": request.headers.get("cip-nonce", ""),
            "sig": request.headers.get("cip-signature", ""),
        }
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        ts = int(head["ts"]) if re.fullmatch(r"[0-9]{1,12}", head["ts"]) else 0
        parameters = header_parameters(
            request.method, path, await request.body(),
            key_id=head["key_id"], ts=ts, nonce=head["nonce"],
        )  # fmt: skip
        self._check_signature(application, kind, {**head, "ts": ts}, parameters)
        return {**head, "ts": ts}

    def _check_signature(
        self, application: Any, kind: str, head: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> None:
        """Key, signature and time; the nonce is taken in the step that acts on it.

        Raises:
            ApiError: 401.
        """
        service, counts = self._service, self._flow.counts
        key_id, ts, nonce, sig = (head.get(n) for n in ("key_id", "ts", "nonce", "sig"))
        now_ns = service.now_ns()
        key = None
        if application is not None and not application.disabled and isinstance(key_id, str):
            key = self._flow.book.signing_secret(application, key_id, now_ns)
        try:
            right = verify(key, kind, parameters, sig if isinstance(sig, str) else "")
        except ValueError:
            raise ApiError("malformed", 400) from None
        if not right:
            counts.refuse("signature")
            raise ApiError("authentication_failed", 401)
        tolerance_s = service.section.session.ts_tolerance_s
        stamped = isinstance(ts, int) or (isinstance(ts, str) and ts.isdigit() and len(ts) < 13)
        if not stamped or abs(int(ts or 0) - now_ns // 1_000_000_000) > tolerance_s:
            counts.refuse("time")
            raise ApiError("authentication_failed", 401)
        if not isinstance(nonce, str) or not NONCE.fullmatch(nonce):
            counts.refuse("nonce")
            raise ApiError("authentication_failed", 401)

    def _take_nonce(self, step: Any, application: Any, head: Mapping[str, Any]) -> None:
        keep_s = 2 * self._service.section.session.ts_tolerance_s + 1
        if not self._flow.book.take_nonce(step, application.id, head["nonce"], keep_s):
            self._flow.counts.refuse("replay")
            raise self._service.refusal("authentication_failed", 401)

    def _check_origin(self, request: Request, application: Any) -> None:
        """Some applications call with known certificates only, or from known networks."""
        known = application.certificates
        if known and certificate_of(request) not in known:
            raise ApiError("authentication_failed", 401)
        if not application.addresses:
            return
        try:
            address = ipaddress.ip_address(address_of(request))
            inside = any(address in ipaddress.ip_network(a) for a in application.addresses)
        except ValueError:
            inside = False
        if not inside:
            raise ApiError("authentication_failed", 401)


CONTEXT_FIELDS: Final = (
    "application_id", "client_ref", "amount", "currency", "fields", "return_url",
)  # fmt: skip


def is_listed(url: str, listed: tuple[str, ...]) -> bool:
    """True where scheme, host, port and path are those of a listed address; the query is free."""
    if not url.isascii() or any(c <= " " or c in '\\"<>' for c in url) or len(url) > 1024:
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if parts.fragment or "#" in url or "@" in parts.netloc:
        return False
    own = (parts.scheme, parts.hostname, port, parts.path)
    for entry in listed:
        known = urlsplit(entry)
        if own == (known.scheme, known.hostname, known.port, known.path):
            return True
    return False


def _fields(application: Any, given: Any) -> tuple[dict[str, str], list[FieldFault]]:
    """Signed fields: those of the schema; others are shown too, as they are signed."""
    if given is None:
        return {}, []
    if not isinstance(given, dict) or len(given) > 64:
        return {}, [FieldFault("fields", "invalid")]
    rules = {rule.name: rule for rule in application.fields}
    found, faults = {}, []
    if sum(len(str(name)) + len(str(value)) for name, value in given.items()) > FIELDS_CHARS_MAX:
        return {}, [FieldFault("fields", "too_long")]
    for name, value in given.items():
        rule = rules.get(name)
        most = rule.max if rule is not None else 100
        if (
            not isinstance(value, str)
            or len(value) > most
            or not value.isprintable()
            or (rule is not None and not fits(rule, value))
        ):
            faults.append(FieldFault(f"fields.{name}", "invalid"))
        elif value:
            found[name] = value
    return found, faults


async def _body(request: Request) -> Body:
    """The object that a call sends, as JSON or as a form.

    Raises:
        ApiError: 400, 413 or 415.
    """
    raw = await request.body()
    if len(raw) > BODY_BYTES_MAX:
        raise ApiError("too_large", 413)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == FORM:
        try:
            text = raw.decode()
            return unflatten(parse_qsl(text, keep_blank_values=True, max_num_fields=1000))
        except ValueError:
            raise ApiError("malformed", 400) from None
    if media_type != "application/json":
        raise ApiError("media_type", 415)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError("malformed", 400) from None
    if not isinstance(value, dict):
        raise ApiError("malformed", 400)
    return value


def _credentials(request: Request, body: Body) -> tuple[str, str, str]:
    """Application, user and password: from the header, else from the body; never from the URL."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.upper() == "CIP":
        try:
            clear = base64.b64decode(text.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return "", "", ""
        application_id, _, rest = clear.partition(":")
        user_id, _, password = rest.partition(":")
        return application_id, user_id, password
    found = [body.get(name) for name in ("application_id", "user_id", "password")]
    application_id, user_id, password = (v if isinstance(v, str) else "" for v in found)
    return application_id[:64], user_id[:128], password


def _mode(application: Any, mode: str) -> None:
    if mode not in application.modes:
        raise ApiError("not_allowed", 403)


def _client_ref(body: Body) -> str:
    client_ref = body.get("client_ref")
    if not isinstance(client_ref, str) or not CLIENT_REF.fullmatch(client_ref):
        reason = "required" if client_ref in (None, "") else "invalid"
        raise ApiError("invalid_fields", 422, [FieldFault("client_ref", reason)])
    return client_ref


def _adjusted_status(adjustment: Any) -> int:
    return 201 if adjustment.status == "DONE" else 202
