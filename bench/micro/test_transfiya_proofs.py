"""TransfiYa's proofs, one at a time: `make micro`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from protocols.transfiya import SigningKey, check_iou, iou_hash, sign_iou

VECTORS = Path(__file__).parents[2] / "tests" / "vectors" / "transfiya.json"
V1: dict[str, Any] = json.loads(VECTORS.read_text())["v1"]
EDDSA = next(one["iou"] for one in V1["verify"] if one["name"] == "signature-lower-case")
ECDSA = next(one["iou"] for one in V1["match"] if one["name"] == "legacy-ecdsa-ok")
KEY = SigningKey(hashlib.sha256(b"bench").digest())


def test_hash_of_an_iou(benchmark: Any) -> None:
    assert benchmark(iou_hash, EDDSA["data"]) == EDDSA["hash"]["value"]


def test_sign_an_iou(benchmark: Any) -> None:
    assert benchmark(sign_iou, EDDSA["data"], KEY)["meta"]["signatures"]


def test_check_an_iou(benchmark: Any) -> None:
    assert benchmark(check_iou, EDDSA) == "ok"


def test_check_an_iou_of_the_old_scheme(benchmark: Any) -> None:
    assert benchmark(check_iou, ECDSA) == "ok"
