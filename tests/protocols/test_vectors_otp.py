"""One-time password vectors: RFC 4226, 6238 and 6287, and those of the cashier domain."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core_ext._mac import MacKey, SeedVault, equal, hotp, ocra, totp

VECTORS = Path(os.environ.get("TRONCAL_VECTORS", Path(__file__).parents[1] / "vectors"))
OTP = json.loads((VECTORS / "otp.json").read_text())
KEYS = {name: bytes.fromhex(key["hex"]) for name, key in OTP["keys"].items()}
PROJECT = OTP["project"]
KINDS = {"wrong": 0, "accepted": 1, "used": 1, "expired": 2}


def test_keys_agree_with_their_text() -> None:
    assert {name: key["ascii"].encode() for name, key in OTP["keys"].items()} == KEYS


@pytest.mark.parametrize("case", OTP["rfc4226"])
def test_rfc4226(case: dict[str, Any]) -> None:
    key = KEYS[case["key"]]
    code = hotp(key, case["counter"], digits=case["digits"], algorithm=case["alg"])
    assert code == case["code"]
    mac = MacKey("hmac-" + case["alg"], key).mac(case["counter"].to_bytes(8, "big"))
    assert mac.hex() == case["mac"]


@pytest.mark.parametrize("case", OTP["rfc6238"] + PROJECT["totp"])
def test_totp(case: dict[str, Any]) -> None:
    key = KEYS[case["key"]]
    code = totp(
        key, case["time"], step_s=case["step_s"], digits=case["digits"],
        algorithm=case["alg"], t0=case["t0"],
    )  # fmt: skip
    counter = case["counter"] if "counter" in case else case["step"]
    assert code == case["code"]
    assert hotp(key, counter, digits=case["digits"], algorithm=case["alg"]) == code


@pytest.mark.parametrize("case", OTP["rfc6287"])
def test_rfc6287(case: dict[str, Any]) -> None:
    code = ocra(
        case["suite"], KEYS[case["key"]], question=case["question"], counter=case["counter"],
        pin=case["pin"], timestep=case["timestep"],
    )  # fmt: skip
    assert code == case["code"]


@pytest.mark.parametrize("case", PROJECT["ocra"])
def test_project_ocra(case: dict[str, Any]) -> None:
    """The question is one digit for the operation and nine for the amount."""
    operation = {"cash_out": "1", "deposit": "2"}[case["operation"]]
    assert case["question"] == f"{operation}{case['amount']:09d}"
    code = ocra(
        case["suite"], KEYS[case["key"]], question=case["question"], timestep=case["timestep"]
    )
    assert code == case["code"]


def judge(parameters: dict[str, Any], case: dict[str, Any], **mode: Any) -> tuple[str, int | None]:
    """What a verifier with the last accepted step says of a code: (result, step)."""
    vault = SeedVault(bytes(32))
    sealed = vault.seal(KEYS[parameters["key"]], b"card")
    try:
        [(kind, step)] = vault.match(
            [sealed], [b"card"], case["code"], now_s=case["now"], back=parameters["back"],
            forward=parameters["forward"], probe=parameters["probe"], **mode,
        )  # fmt: skip
    except ValueError:
        return "format", None
    last = case.get("last_step")
    if kind == 1 and last is not None and step <= last:
        return "used", step
    return {0: "wrong", 1: "accepted", 2: "expired"}[kind], step if kind else None


@pytest.mark.parametrize("case", PROJECT["totp_verify"]["vectors"], ids=lambda c: c["id"])
def test_totp_verify(case: dict[str, Any]) -> None:
    parameters = PROJECT["totp_verify"]
    assert parameters["t0"] == 0
    result, step = judge(
        parameters, case, mode="totp", digits=parameters["digits"], algorithm=parameters["alg"],
        step_s=parameters["step_s"],
    )  # fmt: skip
    assert (result, step) == (case["result"], case["step"])
    accepted = step if result == "accepted" else case["last_step"]
    assert accepted == case["last_step_after"]


@pytest.mark.parametrize("case", PROJECT["ocra_verify"]["vectors"], ids=lambda c: c["id"])
def test_ocra_verify(case: dict[str, Any]) -> None:
    parameters = PROJECT["ocra_verify"]
    result, _ = judge(
        parameters, case, mode="ocra", suite=parameters["suite"], question=case["question"]
    )
    assert result == case["result"]


@pytest.mark.parametrize("case", PROJECT["vale"])
def test_vale(case: dict[str, Any]) -> None:
    message = f"VALE1|{case['card_id']}|{case['code']}"
    assert message == case["message"]
    stored = MacKey("hmac-sha256", KEYS[case["key"]]).mac(message.encode())
    assert equal(stored, bytes.fromhex(case["stored"]))
