"""What an application signs: session parameters, API calls by headers, and webhooks.

The canonical string is `CIP1`, a line with the kind, then every present parameter but `sig` as
`name=value`, percent-encoded after RFC 3986 and sorted by encoded name, lines joined by LF. The
signature is the lower-case hex HMAC-SHA-256 under one of the application's keys.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

KIND_SESSION: Final = "partial.session"
KIND_QUERY: Final = "partial.query"
KIND_GATEWAY: Final = "gateway.payment"
Kind = Literal["partial.session", "partial.query", "gateway.payment"]

DEPTH_MAX: Final = 8
PARAMETERS_MAX: Final = 1000
_NONE: Final = b"0" * 64


class Signed(NamedTuple):
    """The four headers of a signed call."""

    key_id: str
    ts: int
    nonce: str
    sig: str


def canonical(kind: str, parameters: Mapping[str, Any]) -> bytes:
    """The string that is signed; nested parameters get dotted names, null counts as absent."""
    lines = sorted(
        (quote(name, safe="", errors="replace"), quote(value, safe="", errors="replace"))
        for name, value in flatten(parameters).items()
        if name != "sig"
    )
    text = ["CIP1", kind, *(f"{name}={value}" for name, value in lines)]
    return "\n".join(text).encode()


def flatten(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Parameters by dotted names, each value as text: true and false in lower case, as in JSON.

    Raises:
        ValueError: more than PARAMETERS_MAX, or nested deeper than DEPTH_MAX.
    """
    found: dict[str, str] = {}
    pending: list[tuple[str, Any]] = [(str(name), value) for name, value in parameters.items()]
    while pending:
        name, value = pending.pop()
        if name.count(".") > DEPTH_MAX or len(found) + len(pending) > PARAMETERS_MAX:
            raise ValueError("too many parameters, or too deep")
        if isinstance(value, Mapping):
            pending += ((f"{name}.{inner}", entry) for inner, entry in value.items())
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            pending += ((f"{name}.{place}", entry) for place, entry in enumerate(value))
        elif isinstance(value, bool):
            found[name] = "true" if value else "false"
        elif value is not None:
            found[name] = str(value)
    return found


def header_parameters(
    method: str, path: str, body: bytes, *, key_id: str, ts: int, nonce: str
) -> dict[str, str]:
    """What a call with signature headers signs; `path` with its query, as it was sent."""
    return {
        "method": method.upper(),
        "path": path,
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "key_id": key_id,
        "ts": str(ts),
        "nonce": nonce,
    }


def sign(key: bytes, kind: str, parameters: Mapping[str, Any]) -> str:
    return hmac.new(key, canonical(kind, parameters), hashlib.sha256).hexdigest()


def verify(key: bytes | None, kind: str, parameters: Mapping[str, Any], sig: str) -> bool:
    """Compare in constant time. `key` None: no such key, at the same cost."""
    expected = sign(key or b"\0" * 32, kind, parameters).encode()
    given = sig.encode(errors="replace") if len(sig) == 64 else _NONE
    return hmac.compare_digest(expected, given) and key is not None


def sign_webhook(key: bytes, event_id: str, timestamp_s: int, body: bytes) -> str:
    """The signature of a webhook or a report on its way to the site."""
    head = f"CIPW1\n{event_id}\n{timestamp_s}\n".encode()
    return hmac.new(key, head + body, hashlib.sha256).hexdigest()


def verify_webhook(key: bytes, event_id: str, timestamp_s: int, body: bytes, sig: str) -> bool:
    expected = sign_webhook(key, event_id, timestamp_s, body).encode()
    return hmac.compare_digest(expected, sig.encode(errors="replace"))
