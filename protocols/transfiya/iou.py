"""IOUs: signed statements about a balance, the network's proof that a movement was made."""

import re
from typing import Any

from protocols.transfiya import ecdsa, eddsa
from protocols.transfiya.amount import is_amount
from protocols.transfiya.eddsa import SigningKey
from protocols.transfiya.handle import handle_of, has_shape
from protocols.transfiya.stable import BodyError, iou_hash
from protocols.transfiya.times import instant_ns, is_exact, utc_text

HASH_TYPES = "sha256:sha256"
HASH_STEPS = "stringify:data"
LINKER = "sha256:ripemd160"
RANDOM_BYTES = 10
SIGNATURES_MAX = 2
TTL_NS = 60 * 1_000_000_000
# Some other programs escape or order values with these differently, so no IOU of ours has them.
UNSAFE = frozenset("<>&='")

_REQUIRED = ("domain", "source", "target", "amount", "symbol", "expiry", "random")
_OPTIONAL = frozenset(("credit", "custom", "active", "locker", "solver"))
_HEX = re.compile(r"[0-9a-fA-F]+", re.ASCII)
_HASH = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_CUSTOM = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ECDSA_PUBLIC_HEX = (2 * ecdsa.COMPRESSED_BYTES, 2 * ecdsa.UNCOMPRESSED_BYTES)


class IouFault(ValueError):
    """An action does not hold what its IOU is made of; `reason` names the field."""


def _text(action: Any, *path: str) -> str:
    value = action
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str) or not value or not UNSAFE.isdisjoint(value):
        raise IouFault("action without a usable " + ".".join(path))
    return value


def party(action: Any, side: str) -> str | None:
    """The signer's handle of `source`, `target` or `symbol` in an action's snapshot."""
    try:
        return _text(action, "snapshot", side, "signer", "handle")
    except IouFault:
        return None


def iou_data(action: Any, now_ns: int, random10: bytes, ttl_ns: int = TTL_NS) -> dict[str, str]:
    """Return the data of the IOU about an action: its own texts, and when it ends.

    Args:
        action: the decoded action, as the network answered it.
        now_ns: UTC nanoseconds.
        random10: ten random bytes.
        ttl_ns: how long the IOU may be used.

    Raises:
        IouFault: the action lacks something.
    """
    assert len(random10) == RANDOM_BYTES, "ten random bytes"
    return {
        "domain": _text(action, "labels", "domain"),
        "source": _text(action, "snapshot", "source", "signer", "handle"),
        "target": _text(action, "snapshot", "target", "signer", "handle"),
        "amount": _text(action, "amount"),
        "symbol": _text(action, "snapshot", "symbol", "signer", "handle"),
        "expiry": utc_text(now_ns + ttl_ns),
        "random": random10.hex(),
    }


def sign_iou(data: dict[str, Any], signer: SigningKey) -> dict[str, Any]:
    """Return the whole IOU over that data, with one signature by its source's key."""
    value = iou_hash(data)
    public = signer.public
    return {
        "hash": {"types": HASH_TYPES, "steps": HASH_STEPS, "value": value},
        "data": data,
        "meta": {
            "signatures": [
                {
                    "scheme": eddsa.SCHEME,
                    "signer": handle_of(public),
                    "public": public.hex(),
                    "string": signer.sign(bytes.fromhex(value)).hex(),
                    "linker": LINKER,
                }
            ]
        },
    }


def build_iou(action: Any, now_ns: int, random10: bytes, signer: SigningKey) -> dict[str, Any]:
    """Return the signed IOU about an action; see `iou_data` and `sign_iou`."""
    return sign_iou(iou_data(action, now_ns, random10), signer)


def check_iou(
    obj: Any, action: Any = None, now_ns: int | None = None, *, accept_ecdsa: bool = True
) -> str:
    """Return `ok`, or the name of the first check that fails.

    Args:
        obj: the decoded IOU; its data is hashed as received, with all its fields.
        action: the decoded action it must be about, or None.
        now_ns: the instant at which it must still be usable, or None.
        accept_ecdsa: False refuses signatures of the old scheme.
    """
    if not _is_well_formed(obj):
        return "iou-schema"
    data, value = obj["data"], bytes.fromhex(obj["hash"]["value"])
    try:
        if bytes.fromhex(iou_hash(data)) != value:
            return "iou-hash"
    except (BodyError, TypeError):
        return "iou-schema"
    fault = _signature_fault(data, value, obj["meta"]["signatures"], accept_ecdsa)
    if fault:
        return fault
    if action is not None and not _is_about(data, action):
        return "iou-action-mismatch"
    if now_ns is not None and instant_ns(data["expiry"]) <= now_ns:
        return "iou-expired"
    return "ok"


def _signature_fault(
    data: Any, value: bytes, signatures: list[Any], accept_ecdsa: bool
) -> str | None:
    source = data["source"]
    if any(one["signer"] not in (source, data["target"]) for one in signatures):
        return "iou-signer"
    for one in signatures:
        if not _verifies(one, value, accept_ecdsa):
            return "iou-signature"
        if handle_of(bytes.fromhex(one["public"])) != one["signer"]:
            return "iou-key-handle"
    if sum(one["signer"] == source for one in signatures) != 1:
        return "iou-source-signature"
    return None


def _verifies(signature: Any, value: bytes, accept_ecdsa: bool) -> bool:
    public, made = bytes.fromhex(signature["public"]), bytes.fromhex(signature["string"])
    if _scheme(signature) == eddsa.SCHEME:
        return eddsa.verify(public, value, made)
    return accept_ecdsa and ecdsa.verify(public, value, made)


def _is_about(data: Any, action: Any) -> bool:
    try:
        return bool(
            data["source"] == _text(action, "snapshot", "source", "signer", "handle")
            and data["target"] == _text(action, "snapshot", "target", "signer", "handle")
            and data["symbol"] == _text(action, "snapshot", "symbol", "signer", "handle")
            and data["amount"] == _text(action, "amount")
            and data["domain"] == _text(action, "labels", "domain")
        )
    except IouFault:
        return False


def _is_well_formed(obj: Any) -> bool:
    if not isinstance(obj, dict) or obj.keys() != {"hash", "data", "meta"}:
        return False
    hashed, data, meta = obj["hash"], obj["data"], obj["meta"]
    if not (isinstance(hashed, dict) and isinstance(data, dict) and isinstance(meta, dict)):
        return False
    if hashed.get("types") != HASH_TYPES or hashed.get("steps") != HASH_STEPS:
        return False
    if not _matches(_HASH, hashed.get("value")) or not _is_data(data):
        return False
    signatures = meta.get("signatures")
    if not isinstance(signatures, list) or len(signatures) > SIGNATURES_MAX:
        return False
    if len(signatures) == 2 and signatures[0] == signatures[1]:
        return False
    return all(map(_is_signature, signatures))


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_data(data: dict[str, Any]) -> bool:
    if any(not isinstance(data.get(name), str) for name in _REQUIRED):
        return False
    if not (data.keys() - _OPTIONAL) <= set(_REQUIRED):
        return False
    credit = data.get("credit", "-1")
    return (
        1 <= len(data["domain"]) <= 100
        and 1 <= len(data["random"]) <= 100
        and has_shape(data["source"])
        and has_shape(data["target"])
        and has_shape(data["symbol"])
        and data["source"] != data["target"]
        and is_amount(data["amount"])
        and is_exact(data["expiry"])
        and isinstance(credit, str)
        and credit[:1] == "-"
        and is_amount(credit[1:])
        and ("custom" not in data or _matches(_CUSTOM, data["custom"]))
        and ("active" not in data or is_exact(data["active"]))
    )


def _scheme(signature: dict[str, Any]) -> Any:
    """The scheme, under either of its names; None where the two differ."""
    named, other = signature.get("scheme"), signature.get("schema")
    if named is not None and other is not None and named != other:
        return None
    return other if named is None else named


def _is_signature(one: Any) -> bool:
    if not isinstance(one, dict) or one.get("linker", LINKER) != LINKER:
        return False
    public, made = one.get("public"), one.get("string")
    if not (has_shape(one.get("signer")) and _matches(_HEX, public) and _matches(_HEX, made)):
        return False
    assert isinstance(public, str)
    assert isinstance(made, str)
    scheme = _scheme(one)
    if scheme == eddsa.SCHEME:
        return len(public) == 2 * eddsa.PUBLIC_BYTES and len(made) == 2 * eddsa.SIGNATURE_BYTES
    return (
        scheme == ecdsa.SCHEME
        and len(public) in _ECDSA_PUBLIC_HEX
        and len(made) % 2 == 0
        and len(made) <= 2 * ecdsa.SIGNATURE_BYTES_MAX
    )
