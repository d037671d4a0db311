"""Profile v2: records of the network's ledger, their proofs, and its bearer tokens.

A record is {hash, data, meta: {proofs}}. Its hash is one SHA-256 pass over the stable JSON of the
data; a proof signs a digest of that hash's text and of its own `custom` object.
"""

import base64
import binascii
from hashlib import sha256
from typing import Any

import msgspec

from protocols.transfiya import eddsa
from protocols.transfiya.eddsa import SigningKey
from protocols.transfiya.stable import BodyError, stable

METHOD = "ed25519-v2"
INTEGER_MAX = 2**53 - 1
PREPARED = "prepared"
FAILED = "failed"
COMMITTED = "committed"
ABORTED = "aborted"

REASONS = {
    "account-unknown": "bridge.account-not-found",
    "customer-unknown": "bridge.account-not-found",
    "account-inactive": "bridge.account-inactive",
    "funds-insufficient": "bridge.account-insufficient-balance",
    "limit-exceeded": "bridge.account-limit-exceeded",
    "duplicate-mismatch": "bridge.entry-duplicated",
    "hash-invalid": "bridge.entry-hash-invalid",
    "proof-invalid": "bridge.entry-signature-invalid",
    "core-unreachable": "bridge.core-unreachable",
}


def has_wide_integer(value: Any) -> bool:
    """True where an integer stands that a double cannot hold exactly."""
    if isinstance(value, dict):
        return any(map(has_wide_integer, value.values()))
    if isinstance(value, list):
        return any(map(has_wide_integer, value))
    return isinstance(value, int) and abs(value) > INTEGER_MAX


def record_hash(data: Any) -> str:
    """The hash of a record's data, lower-case hex."""
    return sha256(stable(data)).hexdigest()


def proof_digest(hash_text: str, custom: Any = None) -> bytes:
    """What a proof signs: 32 bytes."""
    return sha256(hash_text.encode() + (b"" if custom is None else stable(custom))).digest()


def make_proof(hash_text: str, custom: dict[str, Any] | None, signer: SigningKey) -> dict[str, Any]:
    """Return a proof over a record's hash; `custom` should say its moment."""
    digest = proof_digest(hash_text, custom)
    proof: dict[str, Any] = {
        "method": METHOD,
        "public": base64.b64encode(signer.public).decode(),
        "digest": digest.hex(),
        "result": base64.b64encode(signer.sign(digest)).decode(),
    }
    if custom is not None:
        proof["custom"] = custom
    return proof


def public_of(text: object) -> bytes | None:
    """The 32 bytes of a key in base64, None for anything else."""
    return _base64(text, eddsa.PUBLIC_BYTES)


def _base64(text: object, size: int) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == size else None


def check_proof(hash_text: str, proof: Any) -> bytes | None:
    """Return the public key whose proof this is, None where anything about it is wrong.

    Whether the key may say so is the caller's question.
    """
    if not isinstance(proof, dict) or proof.get("method") != METHOD:
        return None
    public = public_of(proof.get("public"))
    result = _base64(proof.get("result"), eddsa.SIGNATURE_BYTES)
    if public is None or result is None:
        return None
    try:
        digest = proof_digest(hash_text, proof.get("custom"))
    except (BodyError, TypeError):
        return None
    if proof.get("digest") != digest.hex() or not eddsa.verify(public, digest, result):
        return None
    return public


def make_record(data: Any, custom: dict[str, Any], signer: SigningKey) -> dict[str, Any]:
    """Return a record with one proof."""
    value = record_hash(data)
    return {"hash": value, "data": data, "meta": {"proofs": [make_proof(value, custom, signer)]}}


def check_record(record: Any) -> tuple[str, list[bytes]]:
    """Return `ok` and the keys of its proofs, or what is wrong and none.

    `hash-invalid`: no record, an integer that is too wide, or another hash than that of its data.
    `proof-invalid`: no proof, or one that does not hold; their order means nothing.
    """
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        return "hash-invalid", []
    try:
        wrong = has_wide_integer(record["data"]) or record_hash(record["data"]) != record["hash"]
    except (BodyError, KeyError, TypeError):
        wrong = True
    if wrong:
        return "hash-invalid", []
    meta = record.get("meta")
    proofs = meta.get("proofs") if isinstance(meta, dict) else None
    if not isinstance(proofs, list) or not proofs:
        return "proof-invalid", []
    keys = [check_proof(record["hash"], proof) for proof in proofs]
    valid = [key for key in keys if key is not None]
    return ("ok", valid) if len(valid) == len(keys) else ("proof-invalid", [])


def _segment(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _unsegment(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def make_token(payload: dict[str, Any], kid: str, signer: SigningKey) -> str:
    """Return a bearer token over the claims, in the order given."""
    header = _segment(msgspec.json.encode({"alg": "EdDSA", "kid": kid}))
    signed = header + b"." + _segment(msgspec.json.encode(payload))
    return (signed + b"." + _segment(signer.sign(signed))).decode()


def read_token(token: str, public: bytes, now_s: int, leeway_s: int = 30) -> dict[str, Any] | None:
    """Return the claims of a token of that key, None unless it is whole and in its time."""
    try:
        signed, _, signature = token.encode("ascii").rpartition(b".")
        head, _, body = signed.partition(b".")
        header = msgspec.json.decode(_unsegment(head))
        claims = msgspec.json.decode(_unsegment(body))
        made = _unsegment(signature)
    except (ValueError, binascii.Error):
        return None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        return None
    if header.get("alg") != "EdDSA" or not eddsa.verify(public, signed, made):
        return None
    expires, issued = claims.get("exp"), claims.get("iat", 0)
    if not isinstance(expires, int | float) or not isinstance(issued, int | float):
        return None
    return claims if issued - leeway_s <= now_s < expires + leeway_s else None


def request_hash(
    method: str, url: str, body: Any = None, headers: dict[str, str] | None = None
) -> str:
    """The claim `hsh`: a hash of one request, and the names of the headers in it.

    Args:
        headers: those that are protected, by their names in lower case.
    """
    value = sha256(
        stable({"method": method, "url": url, "body": body, "headers": headers or None})
    ).hexdigest()
    return f"{value}:{','.join(headers)}" if headers else value
