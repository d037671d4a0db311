"""Vectors of TransfiYa: every case in every group of the file, both profiles."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from protocols.transfiya import (
    AmountError,
    Create,
    Duplicate,
    Refuse,
    SigningKey,
    action_of,
    check_iou,
    check_proof,
    check_record,
    classify,
    decide,
    decode,
    ecdsa,
    eddsa,
    handle_of,
    hash160_of,
    iou_hash,
    js_iso,
    make_proof,
    make_token,
    read_token,
    record_hash,
    request_hash,
    sign_iou,
    stable,
    to_minor,
)
from protocols.transfiya.handle import ripemd160
from protocols.transfiya.ledger import proof_digest, public_of
from protocols.transfiya.times import instant_ns

_OWN = Path(__file__).parents[1] / "vectors"
_GIVEN = Path(os.environ.get("TRONCAL_VECTORS") or _OWN)
_FILE = (_GIVEN if (_GIVEN / "transfiya.json").exists() else _OWN) / "transfiya.json"
VECTORS: dict[str, Any] = json.loads(_FILE.read_text())
V1, V2 = VECTORS["v1"], VECTORS["v2"]
KEYS = {key["id"]: key for key in V1["keys"]}
KEYS_V2 = {key["id"]: key for key in V2["keys"]}


def each(group: list[Any]) -> Any:
    def name(case: Any) -> str:
        label = next((case[n] for n in ("name", "id", "case", "text", "handle") if n in case), "")
        return str(label)

    return pytest.mark.parametrize("case", group, ids=name)


def signing_key(key: dict[str, Any]) -> SigningKey:
    return SigningKey(bytes.fromhex(key["secret_hex"]), allow_short=True)


def test_ty_64_no_group_is_left_out() -> None:
    assert set(V1) == {
        "symbol_handle", "keys", "foreign_keys", "handles", "times", "stable_json", "ious",
        "published_ious", "leading_zero", "schema", "verify", "match", "amounts", "answers",
        "decisions",
    }  # fmt: skip
    assert set(V2) == {"keys", "hashes", "proofs", "jwt", "published_intents"}


@each(V1["keys"])
def test_ty_64_keys(case: dict[str, Any]) -> None:
    public = bytes.fromhex(case["public"])
    assert sha256(public).hexdigest() == case["sha256_of_public"]
    assert ripemd160(sha256(public).digest()).hex() == case["ripemd160"]
    assert handle_of(public) == case["handle"]
    assert hash160_of(case["handle"]) == bytes.fromhex(case["ripemd160"])
    if case["scheme"] == eddsa.SCHEME:
        assert signing_key(case).public == public
    else:
        forms = [case[form] for form in ("public_compressed", "public_uncompressed")]
        points = {ecdsa._point(bytes.fromhex(form)) for form in forms}
        secret = int(case["secret_hex"], 16) % eddsa.GROUP_ORDER
        assert points == {ecdsa._scaled(secret, None)}


@each(V1["foreign_keys"])
def test_ty_64_foreign_keys(case: dict[str, Any]) -> None:
    assert handle_of(bytes.fromhex(case["public"])) == case["handle"]


@each(V1["handles"])
def test_ty_64_handles(case: dict[str, Any]) -> None:
    found = hash160_of(case["handle"])
    assert (found is not None) is case["valid"]
    assert (found.hex() if found else None) == case["hash160"] or not case["valid"]


@each(V1["times"])
def test_ty_64_times(case: dict[str, Any]) -> None:
    assert js_iso(case["text"]) == case["js_iso"]
    assert js_iso(instant_ns(case["text"]) // 1_000_000) == case["js_iso"]


@each(V1["stable_json"])
def test_ty_64_stable_json(case: dict[str, Any]) -> None:
    text = stable(case["value"])
    assert text.hex() == case["utf8_hex"]
    assert text.decode() == case["text"]
    assert sha256(text).hexdigest() == case["sha256"]
    assert iou_hash(case["value"]) == case["double_sha256"]


@each(V1["ious"])
def test_ty_64_ious(case: dict[str, Any]) -> None:
    iou, key = case["iou"], KEYS[case["key"]]
    claims = dict(case["claims"])
    for moment in ("expiry", "active"):
        if moment in claims:
            claims[moment] = js_iso(claims[moment])
    assert stable(claims).decode() == stable(iou["data"]).decode() == case["canonical"]
    assert sha256(stable(claims)).hexdigest() == case["sha256_first_hex"]
    assert iou_hash(claims) == case["hash"] == iou["hash"]["value"]
    assert iou_hash(claims) != case["tampered_amount_hash"]
    assert check_iou(iou) == case["strict"]
    assert check_iou(decode(json.dumps(iou).encode())) == case["strict"]
    [theirs] = iou["meta"]["signatures"]
    if key["scheme"] == eddsa.SCHEME:
        [ours] = sign_iou(claims, signing_key(key))["meta"]["signatures"]
        assert {name: text.lower() for name, text in ours.items()} == {
            name: text.lower() for name, text in theirs.items()
        }
        assert ours["string"] == ours["string"].lower()
    else:
        digest = bytes.fromhex(case["hash"])
        public, made = bytes.fromhex(theirs["public"]), bytes.fromhex(theirs["string"])
        assert ecdsa.verify(public, digest, made)
        assert not ecdsa.verify(public, sha256(digest).digest(), made)
        assert check_iou(iou, accept_ecdsa=False) == "iou-signature"


@each(V1["published_ious"])
def test_ty_64_published_ious(case: dict[str, Any]) -> None:
    iou = case["iou"]
    value = iou_hash(iou["data"])
    assert value == iou["hash"]["value"]
    for one in iou["meta"]["signatures"]:
        digest, made = bytes.fromhex(value), bytes.fromhex(one["string"])
        assert ecdsa.verify(bytes.fromhex(one["public"]), digest, made)
    assert check_iou(iou) == case.get("strict", "ok")


@each(V1["leading_zero"])
def test_ty_64_leading_zero(case: dict[str, Any]) -> None:
    digest, public = bytes.fromhex(case["hash"]), bytes.fromhex(case["public"])
    assert digest[0] == 0
    assert iou_hash(case["data"]) == case["hash"]
    for form in ("signature_unshifted", "signature_shifted"):
        assert ecdsa.verify(public, digest, bytes.fromhex(case[form]))


@each(V1["schema"])
def test_ty_64_schema(case: dict[str, Any]) -> None:
    """With a signature each by both parties' keys where the data names ours."""
    by_handle = {key["handle"]: key for key in V1["keys"]}
    data = case["data"]
    key = by_handle.get(data.get("source"), KEYS["ed:bank-verde"])
    verdict = check_iou(sign_iou(data, signing_key(key)))
    assert (verdict == "ok") is (case["strict"] == "accept")
    assert verdict in ("ok", "iou-schema")


@each(V1["verify"])
def test_ty_64_verify(case: dict[str, Any]) -> None:
    assert check_iou(case["iou"]) == case["expect"]


@each(V1["match"])
def test_ty_64_match(case: dict[str, Any]) -> None:
    now_ns = instant_ns(case["now"])
    assert check_iou(case["iou"], case["action"], now_ns) == case["expect"]


@each(V1["amounts"])
def test_ty_64_amounts(case: dict[str, Any]) -> None:
    if case["minor"] is None:
        with pytest.raises(AmountError):
            to_minor(case["text"], case["exponent"])
    else:
        assert to_minor(case["text"], case["exponent"]) == case["minor"]


@each(V1["answers"])
def test_ty_64_answers(case: dict[str, Any]) -> None:
    assert classify(case["http"], case["body"]) == (case["ok"], case["code"])


class _Item:
    def __init__(self, amount: str, symbol: str, state: str) -> None:
        self.amount, self.symbol, self.state = amount, symbol, state


class _Bank:
    """The bank of one case of `decisions`."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.bank_signer: str = case["bank_signer"]
        self._own = case["own_signers"]
        self._symbols = case["symbols"]
        self._items = {
            item["key"]: _Item(item["amount"], item["symbol"], item["state"])
            for item in case["journal_items"]
        }

    def owns(self, handle: str) -> bool:
        return handle in self._own

    def exponent(self, symbol: str) -> int | None:
        found: int | None = self._symbols.get(symbol)
        return found

    def item(self, key: str) -> _Item | None:
        return self._items.get(key)


@each(V1["decisions"])
def test_ty_64_decisions(case: dict[str, Any]) -> None:
    decision = decide(case["endpoint"], action_of(case["main_action"]), _Bank(case))
    expect = case["expect"]
    match decision:
        case Create():
            body = {"create_body": decision.body()} if "create_body" in expect else {}
            found = {
                "outcome": "create", "side": decision.side, "purpose": decision.purpose,
                "key": decision.key, "minor": decision.minor, **body,
            }  # fmt: skip
            assert {name: found[name] for name in expect} == expect
        case Duplicate():
            assert expect == {"outcome": "duplicate", "key": decision.key}
        case Refuse():
            assert expect == {"outcome": "refuse", "reason": decision.reason}


@each(V2["keys"])
def test_ty_64_v2_keys(case: dict[str, Any]) -> None:
    public = public_of(case["public"])
    assert public is not None
    assert public.hex() == case["public_hex"]
    assert signing_key(case).public == public


@each(V2["hashes"])
def test_ty_64_v2_hashes(case: dict[str, Any]) -> None:
    assert stable(case["data"]).hex() == case["canonical_utf8_hex"]
    assert stable(case["data"]).decode() == case["canonical"]
    assert record_hash(case["data"]) == case["hash"]


@each(V2["proofs"])
def test_ty_64_v2_proofs(case: dict[str, Any]) -> None:
    proof, custom = case["proof"], case["custom"]
    assert make_proof(case["hash"], custom, signing_key(KEYS_V2[case["key"]])) == proof
    preimage = case["digest_preimage"].encode()
    assert proof_digest(case["hash"], custom) == sha256(preimage).digest()
    assert check_proof(case["hash"], proof) == bytes.fromhex(KEYS_V2[case["key"]]["public_hex"])
    other = "0" * 64
    assert check_proof(other, proof) is None
    assert check_proof(case["hash"], {**proof, "custom": {"moment": "other"}}) is None


@each(V2["jwt"])
def test_ty_64_v2_jwt(case: dict[str, Any]) -> None:
    key = signing_key(KEYS_V2[case["key"]])
    assert make_token(case["payload"], case["kid"], key) == case["token"]
    payload = case["payload"]
    assert read_token(case["token"], key.public, payload["iat"]) == payload
    assert read_token(case["token"], key.public, payload["exp"] + 3600) is None
    assert read_token(case["token"][:-4] + "AAAA", key.public, payload["iat"]) is None
    if "hsh_input" in case:
        given = case["hsh_input"]
        made = request_hash(given["method"], given["url"], given["body"], given["headers"])
        assert made == payload["hsh"]


@each(V2["published_intents"])
def test_ty_64_v2_published_intents(case: dict[str, Any]) -> None:
    assert record_hash(case["data"]) == case["hash"]
    record = {"hash": case["hash"], "data": case["data"], "meta": {"proofs": case["proofs"]}}
    verdict, keys = check_record(record)
    assert verdict == "ok"
    assert [public_of(proof["public"]) for proof in case["proofs"]] == keys
