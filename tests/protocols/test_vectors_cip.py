"""Vectors of the payment application: confirmation numbers and signatures."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from protocols.cip import (
    KIND_SESSION,
    header_parameters,
    make_code,
    normalise_code,
    shown_code,
    sign,
    sign_webhook,
    verify,
    verify_webhook,
)

NAME = "cip.json"
OWN = Path(__file__).parent.parent / "vectors" / NAME
GIVEN = Path(os.environ.get("TRONCAL_VECTORS", OWN.parent)) / NAME
VECTORS: dict[str, Any] = json.loads((GIVEN if GIVEN.is_file() else OWN).read_text())
KEY = VECTORS["key"].encode()


@pytest.mark.parametrize("case", VECTORS["confirmations"], ids=lambda case: case["code"])
def test_confirmation(case: dict[str, Any]) -> None:
    code = make_code(KEY, case["app_no"], case["day"], case["sequence"])
    assert shown_code(code) == case["code"]
    assert normalise_code(case["code"]) == code


@pytest.mark.parametrize("case", VECTORS["sessions"])
def test_session(case: dict[str, Any]) -> None:
    assert sign(KEY, KIND_SESSION, case["parameters"]) == case["sig"]
    assert verify(KEY, KIND_SESSION, {**case["parameters"], "sig": case["sig"]}, case["sig"])
    assert not verify(KEY, KIND_SESSION, {**case["parameters"], "amount": 1}, case["sig"])
    assert not verify(None, KIND_SESSION, case["parameters"], case["sig"])


@pytest.mark.parametrize("case", VECTORS["headers"])
def test_headers(case: dict[str, Any]) -> None:
    parameters = header_parameters(
        case["method"], case["path"], case["body"].encode(),
        key_id=case["key_id"], ts=case["ts"], nonce=case["nonce"],
    )  # fmt: skip
    assert sign(KEY, case["kind"], parameters) == case["sig"]


@pytest.mark.parametrize("case", VECTORS["webhooks"])
def test_webhook(case: dict[str, Any]) -> None:
    body = case["body"].encode()
    assert sign_webhook(KEY, case["event_id"], case["timestamp"], body) == case["sig"]
    assert verify_webhook(KEY, case["event_id"], case["timestamp"], body, case["sig"])
    assert not verify_webhook(KEY, case["event_id"], case["timestamp"] + 1, body, case["sig"])
