"""TransfiYa: the network's codec, hashes, keys, IOUs (profile v1), records and proofs (v2).

Nothing here does input or output, reads a clock or draws random bytes: they are arguments.
"""

from protocols.transfiya.amount import AmountError, to_minor
from protocols.transfiya.decide import Create, Decision, Duplicate, Refuse, decide
from protocols.transfiya.eddsa import KeyFault, SigningKey
from protocols.transfiya.errors import bank_code, classify, error_body
from protocols.transfiya.handle import handle_of, hash160_of, self_test
from protocols.transfiya.iou import IouFault, build_iou, check_iou, iou_data, sign_iou
from protocols.transfiya.ledger import (
    check_proof,
    check_record,
    make_proof,
    make_record,
    make_token,
    read_token,
    record_hash,
    request_hash,
)
from protocols.transfiya.stable import BodyError, decode, encode, iou_hash, stable
from protocols.transfiya.times import js_iso, label_text
from protocols.transfiya.types import Action, ShapeError, action_of

__all__ = [
    "Action", "AmountError", "BodyError", "Create", "Decision", "Duplicate", "IouFault", "KeyFault",
    "Refuse", "ShapeError", "SigningKey", "action_of", "bank_code", "build_iou", "check_iou",
    "check_proof", "check_record", "classify", "decide", "decode", "encode", "error_body",
    "handle_of", "hash160_of", "iou_data", "iou_hash", "js_iso", "label_text", "make_proof",
    "make_record", "make_token", "read_token", "record_hash", "request_hash", "self_test",
    "sign_iou", "stable", "to_minor",
]  # fmt: skip
