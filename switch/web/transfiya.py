"""TransfiYa's HTTP side: the paths a bank offers the network (v1: four; v2: entries, their commit
and abort), and the token it asks there.

Only limits, credentials and routing; what a call means is the flow's. Plain ASGI, because an
answer's bytes must be handed over before what follows from it may begin.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import trio

from core_ext import Histogram
from protocols.transfiya import BodyError, decode, encode, error_body

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

ENDPOINTS: Final = ("debit", "credit", "action", "status")
LEDGER_CALLS: Final = ("debits", "credits", "commit", "abort", "intents")
TOKEN_TEXT_MAX: Final = 256
FORM_FIELDS_MAX: Final = 16
_MAC_BYTES: Final = 32


class Reply(Protocol):
    """An answer of the flow."""

    @property
    def status(self) -> int: ...

    @property
    def body(self) -> bytes: ...


class Desk(Protocol):
    """Who decides about calls, behind the HTTP side."""

    async def take(self, bank: str, endpoint: str, raw: bytes, value: Any) -> tuple[Reply, str]:
        """The answer, durable, and a name for `sent`; waits at most the bank's budget."""

    def sent(self, name: str) -> None:
        """The answer's bytes are handed over, or nobody is there to take them."""

    def refusal(self, bank: str, reason: str) -> Reply: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the network must show at one bank. Its repr shows no secret."""

    mode: str
    api_key: str = field(default="", repr=False)
    client_id: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token_s: int = 3600
    expired_status: int = 401


def _same(shown: str, known: str) -> bool:
    """Compared in constant time; nothing known is shown by nobody."""
    one, two = sha256(shown.encode("utf-8", "replace")), sha256(known.encode("utf-8"))
    return bool(known) and hmac.compare_digest(one.digest(), two.digest())


class Tokens:
    """Bearer tokens for the network: opaque to it, to us their bank and end under a MAC.

    They need no store, so they outlive a restart, and giving one needs neither journal nor ledger.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, bank: str, until_s: int) -> str:
        """A token of a bank, good until then (seconds since 1970)."""
        text = f"{bank}.{until_s}.{secrets.token_hex(8)}"
        return f"{text}.{self._mac(text)}"

    def is_good(self, token: str, bank: str, now_s: int) -> bool:
        text, _, mac = token.rpartition(".")
        if len(token) > TOKEN_TEXT_MAX or not token.isascii():
            return False
        if not hmac.compare_digest(mac, self._mac(text)):
            return False
        name, until, _ = text.split(".")
        return name == bank and now_s < int(until)

    def _mac(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), "sha256")[:_MAC_BYTES].hex()


class TransfiyaSite:
    """The ASGI application of one bank.

    Args:
        mount: the path before the four. wall_ns: the node's wall clock, for tokens.
    """

    def __init__(
        self,
        bank: str,
        mount: str,
        desk: Desk,
        credentials: Credentials,
        tokens: Tokens,
        wall_ns: Callable[[], int],
        profile: str = "v1",
    ) -> None:
        self._profile = profile
        self._bank = bank
        self._mount = mount
        self._desk = desk
        self._credentials = credentials
        self._tokens = tokens
        self._wall_ns = wall_ns
        self.requests: dict[tuple[str, str], int] = {}
        self.seconds: dict[str, Histogram] = {
            name: Histogram() for name in (ENDPOINTS if profile == "v1" else LEDGER_CALLS)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = trio.current_time()
        path: str = scope["path"]
        endpoint = path[len(self._mount) + 1 :]
        call = self._call_of(endpoint, scope["method"])
        if not call and endpoint != "oauth/token":
            await self._answer(send, 404, encode(error_body(314, "not found")))
            return
        if scope["method"] != "POST" and call != "intents":
            allowed = ((b"allow", b"POST"),)
            await self._answer(send, 405, encode(error_body(314, "only POST")), allowed)
            return
        if endpoint == "oauth/token":
            await self._token(scope, receive, send)
            return
        status = await self._call(scope, receive, send, endpoint)
        self.seconds[call].record(int((trio.current_time() - began_s) * 1e9))
        fact = (call, str(status))
        self.requests[fact] = self.requests.get(fact, 0) + 1

    def _call_of(self, endpoint: str, method: str) -> str:
        """The name of a call, for metrics; empty: there is none such."""
        if self._profile == "v1":
            return endpoint if endpoint in ENDPOINTS else ""
        match endpoint.split("/"):
            case ["v2", "debits" | "credits" as kind]:
                return kind
            case ["v2", "debits" | "credits", handle, "commit" | "abort" as act] if handle:
                return act
            case ["v2", "intents", handle] if handle and method == "PUT":
                return "intents"
        return ""

    async def _call(self, scope: Scope, receive: Receive, send: Send, endpoint: str) -> int:
        if not self._is_known(_headers(scope)):
            status = self._credentials.expired_status
            body = encode(error_body(314, "credentials are missing, wrong or expired"))
            await self._answer(send, status, body, ((b"www-authenticate", b"Bearer"),))
            return status
        raw = await _body(receive)
        name = ""
        try:
            value = decode(raw)
        except BodyError:
            value = None
        if isinstance(value, dict):
            call = endpoint.removeprefix("v2/")
            reply, name = await self._desk.take(self._bank, call, raw, value)
        else:
            reply = self._desk.refusal(self._bank, "body-invalid")
        try:
            await self._answer(send, reply.status, reply.body)
        finally:
            if name:
                self._desk.sent(name)
        return reply.status

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        credentials, mode = self._credentials, self._credentials.mode
        key = headers.get(b"x-api-key", b"").decode("latin-1")
        good = True
        if "api_key" in mode:
            good = _same(key, credentials.api_key)
        if "oauth2" in mode:
            scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            now_s = self._wall_ns() // 1_000_000_000
            good &= scheme.lower() == "bearer" and self._tokens.is_good(
                token.strip(), self._bank, now_s
            )
        return good

    async def _token(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give a token for right credentials: from memory only, whatever else is down."""
        fields = _form(await _body(receive))
        credentials = self._credentials
        client = _same(fields.get("client_id", ""), credentials.client_id) & _same(
            fields.get("client_secret", ""), credentials.client_secret
        )
        grant = fields.get("grant_type", "")
        if grant == "password":
            client &= _same(fields.get("username", ""), credentials.username) & _same(
                fields.get("password", ""), credentials.password
            )
        if not client or grant not in ("client_credentials", "password"):
            wrong = {**error_body(314, "credentials are wrong"), "message": "invalid_client"}
            await self._answer(send, 401, encode(wrong))
            return
        life_s = credentials.token_s
        token = self._tokens.issue(self._bank, self._wall_ns() // 1_000_000_000 + life_s)
        body = {"access_token": token, "expires_in": life_s, "token_type": "Bearer"}
        await self._answer(send, 200, encode(body), ((b"cache-control", b"no-store"),))

    async def _answer(
        self, send: Send, status: int, body: bytes, more: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *more,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


async def _body(receive: Receive) -> bytes:
    """The body; its length is bounded by the mount."""
    parts: list[bytes] = []
    while True:
        event = await receive()
        if event["type"] != "http.request":
            return b"".join(parts)
        parts.append(event.get("body", b""))
        if not event.get("more_body", False):
            return b"".join(parts)


def _form(body: bytes) -> dict[str, str]:
    """Fields of a form, or of a JSON object of texts, which some clients send."""
    try:
        if body[:1] == b"{":
            found = decode(body)
            return {name: text for name, text in found.items() if isinstance(text, str)}
        pairs = parse_qs(body.decode("ascii"), max_num_fields=FORM_FIELDS_MAX)
        return {name: values[0] for name, values in pairs.items()}
    except (BodyError, ValueError):
        return {}
