"""Calls to TransfiYa's network: a bank's connections, its token, and what an answer means.

Nothing is repeated here but one call after a new token: whether and when a call goes out again is
decided by the flow, which knows what the call may have done already.
"""

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import httpx
import msgspec
import trio

from core_ext import Counters, Histogram
from protocols.transfiya import BodyError, classify, decode
from protocols.transfiya.errors import SERVER_ERROR
from switch.flows.transfiya_jobs import (
    OK,
    REFUSED,
    UNAVAILABLE,
    Job,
    Outcome,
    has_labels,
)
from switch.ops.logs import logger
from switch.web.wire import Answer, Headers, Origin, OverHttpx, Pool, Wire

log = logger("transfiya")

ANSWER_BYTES_MAX: Final = 1 << 20
KEPT_S: Final = 10.0  # before a server closes what it thinks idle
RENEW_BEFORE_S: Final = 60.0
TOKEN_PAUSE_S: Final = 1.0  # between two tries to get a token, however many calls wait for it
RETRY_AFTER_S_MAX: Final = 3600.0
_PLAIN: Final = (("accept", "application/json"), ("accept-encoding", "identity"))
_JSON: Final = ("content-type", "application/json")
_UNAVAILABLE: Final = frozenset((401, 403, 408, 425, 429))

COUNTERS = ("fetched", "failed")
FETCHED, FAILED = range(len(COUNTERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a bank shows itself to the network. Its repr shows no secret."""

    network_url: str
    token_url: str = ""
    token_style: str = "form"
    client_id: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    call_timeout_s: float = 5.0
    connections_max: int = 64
    ledger: str = ""
    bearer: Callable[[Job, str], str] | None = field(default=None, repr=False)
    """Makes a token for one call of the v2 profile, from the job and its whole address."""


class Token:
    """The bearer token, in memory only: fetched by one task at a time, renewed before its end."""

    def __init__(self, access: Access, wire: Wire, failed: Callable[[], None]) -> None:
        self._access = access
        self._wire = wire
        self._tell = failed
        self._told = False
        self._lock = trio.Lock()
        self._value = ""
        self._until_s = 0.0
        self._failed_s = -TOKEN_PAUSE_S
        self.generation = 0
        self.counters = Counters(COUNTERS)

    async def get(self) -> str | None:
        """The token, fetched where there is none; None: there is none to be had now."""
        if not self._access.token_url:
            return ""
        if trio.current_time() < self._until_s:
            return self._value
        async with self._lock:
            if trio.current_time() < self._until_s:  # another task has fetched it meanwhile
                return self._value
            if trio.current_time() < self._failed_s + TOKEN_PAUSE_S:
                return None
            return await self._fetch()

    def refused(self, generation: int) -> None:
        """The token of that generation was not taken: it is not shown again."""
        if generation == self.generation:
            self._until_s = 0.0

    async def _fetch(self) -> str | None:
        value, life_s = None, 0.0
        try:
            with trio.move_on_after(self._access.call_timeout_s):
                answer = await self._ask()
                found = decode(answer.body) if answer.status == 200 else None
                if isinstance(found, dict):
                    value, life_s = found.get("access_token"), found.get("expires_in", 3600)
        except (httpx.HTTPError, BodyError):
            value = None
        if not isinstance(value, str) or not isinstance(life_s, int | float):
            value = None
        if value is None:
            self.counters.add(FAILED)
            self._failed_s = trio.current_time()
            log.warning("token_failed")
            if not self._told:  # once, until there is one again
                self._told = True
                self._tell()
            return None
        self.counters.add(FETCHED)
        self._told = False
        self.generation += 1
        self._value = value
        margin_s = min(RENEW_BEFORE_S, life_s / 2)
        self._until_s = trio.current_time() + life_s - margin_s
        return value

    async def _ask(self) -> Answer:
        access = self._access
        headers: list[tuple[str, str]] = list(_PLAIN)
        body = b""
        if access.token_style == "tinapi":
            pair = base64.b64encode(f"{access.client_id}{access.client_secret}".encode()).decode()
            headers.append(("authorization", f"Basic {pair}"))
        else:
            form = {
                "grant_type": "client_credentials",
                "client_id": access.client_id,
                "client_secret": access.client_secret,
            }
            headers.append(("content-type", "application/x-www-form-urlencoded"))
            body = urlencode(form).encode()
        origin, target = _split(access.token_url)
        return await self._wire.exchange(origin, "POST", target, headers, body)


class NetworkCalls:
    """Carries out the jobs of one bank.

    Args:
        wall_ns: the node's wall clock, for nonces and for the instant of answers.
        transport: another one than the network's, for tests in one process.
        no_token: called when there is no token to be had, once until there is one again.
    """

    def __init__(
        self,
        access: Access,
        wall_ns: Callable[[], int],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        no_token: Callable[[], None] = lambda: None,
    ) -> None:
        self._access = access
        self._wall_ns = wall_ns
        self._wire: Wire = Pool(
            connections_max=access.connections_max, idle_s=KEPT_S, body_bytes_max=ANSWER_BYTES_MAX
        ) if transport is None else OverHttpx(transport)  # fmt: skip
        self._base = access.network_url.rstrip("/")
        self._origin, self._path = _split(self._base)
        self._headers: tuple[tuple[str, str], ...] = (_JSON, *_PLAIN)
        if access.ledger:
            self._headers += (("x-ledger", access.ledger),)
        if access.api_key:
            self._headers += (("x-api-key", access.api_key),)
        self.token = Token(access, self._wire, no_token)
        self.seconds: dict[str, Histogram] = {}

    async def aclose(self) -> None:
        await self._wire.aclose()

    async def run(self, job: Job) -> Outcome:
        """Make one call; never raises for anything the network does."""
        began_s = trio.current_time()
        outcome = await self._once(job)
        if outcome.http in (401, 403) and self._access.token_url:
            outcome = await self._once(job)
        took_ns = int((trio.current_time() - began_s) * 1e9)
        seconds = self.seconds.get(job.call)
        if seconds is None:
            seconds = self.seconds[job.call] = Histogram()
        seconds.record(took_ns)
        return msgspec.structs.replace(outcome, took_ns=took_ns)

    async def _once(self, job: Job) -> Outcome:
        token = await self.token.get()
        generation = self.token.generation
        if token is None:
            return Outcome(UNAVAILABLE, self._wall_ns())
        try:
            with trio.move_on_after(self._access.call_timeout_s) as budget:
                answer = await self._exchange(job, token)
        except Exception as error:  # an item must not be forgotten for what a wire does
            if not isinstance(error, httpx.HTTPError):
                log.error("call_broke", bank=job.bank, call=job.call, error=type(error).__name__)
            return Outcome(UNAVAILABLE, self._wall_ns())
        if budget.cancelled_caught:
            return Outcome(UNAVAILABLE, self._wall_ns())
        if answer.status in (401, 403):
            self.token.refused(generation)
        warning = answer.headers.get(b"x-minka-warning")
        if warning:
            text = warning[:200].decode("latin-1")
            log.warning("network_warning", bank=job.bank, call=job.call, text=text)
        return self._outcome(answer)

    async def _exchange(self, job: Job, token: str) -> Answer:
        target = self._path + job.path
        if job.query:
            target = f"{target}?{urlencode(job.query, quote_via=quote)}"
        headers: Headers = (
            ("x-nonce", f"{self._wall_ns() // 1_000_000}-{_uuid4()}"), *self._headers,
        )  # fmt: skip
        if token:
            headers = (*headers, ("authorization", f"Bearer {token}"))
        elif self._access.bearer is not None:
            bearer = self._access.bearer(job, self._base + job.path)
            headers = (*headers, ("authorization", f"Bearer {bearer}"))
        return await self._wire.exchange(
            self._origin, job.method, target, headers, job.body or b""
        )  # fmt: skip

    def _outcome(self, answer: Answer) -> Outcome:
        http, at_ns, raw = answer.status, self._wall_ns(), answer.body
        value: Any = None
        try:
            value = decode(raw) if raw else None
        except BodyError:
            value = None
        ok, code = classify(http, value)
        wished_s = _seconds(answer.headers.get(b"retry-after", b""))
        silent = 300 <= http < 400 or http in _UNAVAILABLE or http >= 500
        nonsense = http < 300 and not isinstance(value, dict | list)
        broken = code == SERVER_ERROR and not (http < 300 and has_labels(value))
        if silent or nonsense or broken:
            status = UNAVAILABLE
        else:
            status = OK if ok or (http < 300 and isinstance(value, list)) else REFUSED
        return Outcome(status, at_ns, http, code, value, raw, wished_s)


def _split(address: str) -> tuple[Origin, str]:
    """Server and path of an address."""
    return Origin.of(address), urlsplit(address).path


def _uuid4() -> str:
    """A random UUID, as nonces want it."""
    text = secrets.token_hex(16)
    variant = "89ab"[int(text[16], 16) % 4]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


def _seconds(text: bytes) -> float:
    """Retry-After in seconds; 0 for none, for a date, for nonsense."""
    return min(float(text), RETRY_AFTER_S_MAX) if text.isdigit() else 0.0
