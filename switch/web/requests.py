"""What all public pages share: targets in absolute form, form bodies, and how often one may ask."""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import aclosing
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from switch.web.edge import TLS_STREAM
from switch.web.mounts import App, Receive, Scope, Send, path_of

FORM_FIELDS_MAX: Final = 64
BODY_BYTES_MAX: Final = 32 << 10
SOURCES_MAX: Final = 65_536
FORM_TYPE: Final = "application/x-www-form-urlencoded"

Clock = Callable[[], float]


class BadForm(ValueError):
    """A body that is no form, is too large, or names a field twice. Tells nothing of its content.

    Attributes:
        status: the HTTP status that says so.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


def absolute_form(app: App) -> App:
    """Return `app` behind a step that reduces a request target in absolute form to its path.

    Old kits and our own notification client write `POST http://host/path HTTP/1.1`; servers must
    take it (RFC 9112 §3.2.2).
    """

    async def reduced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": path_of(scope["path"])}
        await app(scope, receive, send)

    return reduced


async def form_of(request: Request, bytes_max: int = BODY_BYTES_MAX) -> dict[str, str]:
    """Read a form body: names and values as Latin-1, so that every byte stays what it was.

    Raises:
        BadForm: another content type, more than `bytes_max` bytes or `FORM_FIELDS_MAX` fields, or
            a name given twice.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise BadForm("not a form", 415)
    return dict(unique_pairs(await body_of(request, bytes_max)))


async def body_of(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """Read a body. Raises: BadForm: it is longer than `bytes_max`."""
    body = bytearray()
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > bytes_max:
                raise BadForm("body too large", 413)
    return bytes(body)


def unique_pairs(body: bytes) -> list[tuple[str, str]]:
    """Return the pairs of a form body in their order.

    A CR LF behind the last pair is dropped: kit 6.0.2 writes one outside its Content-Length.

    Raises:
        BadForm: too many fields, or a name given twice.
    """
    text = body.decode("latin-1").rstrip("\r\n")
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, encoding="latin-1", max_num_fields=FORM_FIELDS_MAX
        )
    except ValueError:
        raise BadForm("too many fields") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise BadForm("a field is given twice")
    return pairs


class Rate:
    """How often each of many sources may do something: a bucket that fills evenly.

    Bounded: beyond `sources_max` the one that has been quiet for longest is forgotten.

    Args:
        per_minute: refill, and what a full bucket holds.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: int, clock: Clock, sources_max: int = SOURCES_MAX) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._sources_max = sources_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, source: str) -> bool:
        """Take one; False: the bucket is empty."""
        level = self._level(source)
        taken = level >= 1
        self._keep(source, level - 1 if taken else level)
        return taken

    def empty(self, source: str) -> bool:
        """Tell whether nothing is left, taking nothing."""
        return self._level(source) < 1

    def _level(self, source: str) -> float:
        level, since_s = self._buckets.get(source, (float(self._per_minute), self._clock()))
        gained = (self._clock() - since_s) * self._per_minute / 60
        return min(level + gained, float(self._per_minute))

    def _keep(self, source: str, level: float) -> None:
        self._buckets[source] = (level, self._clock())
        self._buckets.move_to_end(source)
        if len(self._buckets) > self._sources_max:
            self._buckets.popitem(last=False)


def certificate_of(request: Request) -> str:
    """The SHA-256 of the certificate that the client has proved to own, in hex; "" without one."""
    stream = request.scope.get("state", {}).get(TLS_STREAM)
    raw = None if stream is None else stream.getpeercert(binary_form=True)
    return sha256(raw).hexdigest() if raw else ""


def address_of(request: Request) -> str:
    """Return the address a request came from; empty where the server does not know it."""
    return request.client.host if request.client else ""
