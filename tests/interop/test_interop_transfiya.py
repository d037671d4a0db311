"""Interop with the network's published packages: theirs verify ours, and we verify theirs.

Needs Node 16 or newer with npm; the packages are installed once into a cache directory
(`TRONCAL_NPM_CACHE`, else below the user's cache). Where there is no Node or no network the tests
are skipped, unless `TRONCAL_INTEROP=1` demands them.
"""

import base64
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from protocols.transfiya import (
    SigningKey,
    check_iou,
    check_record,
    handle_of,
    iou_hash,
    js_iso,
    make_record,
    make_token,
    read_token,
    record_hash,
    sign_iou,
)
from protocols.transfiya.eddsa import SCHEME

PACKAGES = {"@webwallet/sdk": "1.1.1", "@minka/ledger-sdk": "2.2.5"}
SCRIPT = Path(__file__).with_name("transfiya.js")
DEMANDED = os.environ.get("TRONCAL_INTEROP") == "1"
CASES = 40
DRAW = random.Random(7)

pytestmark = pytest.mark.timeout(400)


def unavailable(reason: str) -> NoReturn:
    if DEMANDED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def packages() -> Path:
    """The directory where the packages are installed, each in its exact version."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        unavailable("no Node with npm")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(os.environ.get("TRONCAL_NPM_CACHE") or default / "troncal" / "npm-transfiya")
    manifest = json.dumps({"name": "interop", "private": True, "dependencies": PACKAGES})
    done = directory / "installed.json"
    if not done.exists() or done.read_text() != manifest:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text(manifest)
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        try:
            result = subprocess.run(
                install, cwd=directory, capture_output=True, text=True, timeout=300, check=False
            )
        except subprocess.TimeoutExpired:
            unavailable("npm install took too long")
        if result.returncode:
            unavailable(f"npm install failed: {result.stderr[-500:]}")
        done.write_text(manifest)
    return directory


def ours() -> list[dict[str, Any]]:
    """Signed IOUs of all sorts that a bank may have to make."""
    made = []
    for number in range(CASES):
        short = number % 5 == 0
        key = SigningKey(DRAW.randbytes(31 if short else 32), allow_short=True)
        target, symbol = handle_of(DRAW.randbytes(32)), handle_of(DRAW.randbytes(32))
        whole, cents = DRAW.randrange(1, 10**15), DRAW.randrange(100)
        data = {
            "domain": DRAW.choice(["tin", "achtin.minka.io", "ñandú 💸"]),
            "source": handle_of(key.public),
            "target": target,
            "amount": DRAW.choice([f"{whole}", f"{whole}.{cents:02d}", "0.5"]),
            "symbol": symbol,
            "expiry": js_iso(DRAW.randrange(1_600_000_000_000, 2_000_000_000_000)),
            "random": DRAW.randbytes(10).hex(),
        }
        made.append(sign_iou(data, key))
    return made


def intents() -> list[dict[str, Any]]:
    found = []
    for number in range(CASES):
        found.append(
            {
                "handle": f"intent-{number}",
                "schema": "transfer",
                "claims": [
                    {
                        "action": "transfer",
                        "amount": DRAW.randrange(2**53),
                        "source": {"handle": "svgs:1@rojo", "custom": {"name": "José <&'> 中💸"}},
                        "target": {"handle": "dbmo:3001234567@verde"},
                        "symbol": {"handle": "cop"},
                    }
                ],
                "config": {"rate": DRAW.uniform(1e-9, 1e25), "empty": {}, "list": [None, True]},
            }
        )
    return found


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    keys = [SigningKey(DRAW.randbytes(32)) for _ in range(5)]
    now = int(time.time())
    claims = {"domain": "tin", "amount": "100.00", "expiry": "2026-01-15T12:01:00Z"}
    kinds = [(SCHEME, False), ("ecdsa-ed25519", True), ("ecdsa-ed25519", False)]
    custom = {"moment": "2026-01-15T12:00:00.000Z", "status": "created"}
    tampered = ours()[0]
    tampered["meta"]["signatures"][0]["string"] = (
        "00" + tampered["meta"]["signatures"][0]["string"][2:]
    )
    return {
        "ious": [*ours(), tampered],
        "claims": [
            {"scheme": scheme, "compressed": compressed, "claims": {**claims, "amount": f"{n}.5"}}
            for n in range(1, CASES)
            for scheme, compressed in kinds
        ],
        "records": [make_record(data, custom, keys[0]) for data in intents()],
        "data": [{"data": data, "custom": custom} for data in intents()],
        "tokens": [
            {
                "token": make_token(
                    {"iss": "rojo", "sub": "x", "aud": "ledger", "iat": now, "exp": now + 3600},
                    "rojo",
                    key,
                ),
                "public": base64.b64encode(key.public).decode(),
            }
            for key in keys
        ],
    }


@pytest.fixture(scope="module")
def answer(packages: Path, asked: dict[str, Any]) -> dict[str, Any]:
    result = subprocess.run(
        ["node", str(SCRIPT), str(packages)],
        input=json.dumps(asked), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_their_package_accepts_our_ious(answer: dict[str, Any]) -> None:
    *good, tampered = answer["ious"]
    assert good == [{"hash": True, "signatures": [True]}] * CASES
    assert tampered == {"hash": True, "signatures": [False]}


def test_we_accept_ious_of_their_package(answer: dict[str, Any]) -> None:
    """Both schemes, both forms of a key, and secrets of any length it makes."""
    for made in answer["made_ious"]:
        iou, key = made["iou"], made["key"]
        assert check_iou(iou) == "ok", key["scheme"]
        assert check_iou({**iou, "data": {**iou["data"], "amount": "101"}}) == "iou-hash"
        if key["scheme"] == SCHEME:
            own = SigningKey(bytes.fromhex(key["secret"]), allow_short=True)
            assert own.public.hex() == key["public"].lower()
            again = sign_iou(iou["data"], own)["meta"]["signatures"]
            assert again[0]["string"] == iou["meta"]["signatures"][0]["string"].lower()
    assert len(answer["made_ious"]) == 3 * (CASES - 1)


def test_their_package_accepts_our_records(answer: dict[str, Any]) -> None:
    assert answer["records"] == [{"hash": True, "proofs": True, "client": True}] * CASES


def test_we_accept_records_of_their_package(answer: dict[str, Any]) -> None:
    for made in answer["made_records"]:
        record = made["record"]
        public = base64.b64decode(made["public"])
        assert check_record(record) == ("ok", [public])
        assert record_hash(record["data"]) == record["hash"]
        changed = {**record, "data": {**record["data"], "handle": "other"}}
        assert check_record(changed) == ("hash-invalid", [])
        assert read_token(made["token"], public, int(time.time())) is not None
    assert len(answer["made_records"]) == CASES


def test_their_package_accepts_our_tokens(asked: dict[str, Any], answer: dict[str, Any]) -> None:
    assert [claims["iss"] for claims in answer["tokens"]] == ["rojo"] * len(asked["tokens"])


def test_hashes_agree_on_every_value(asked: dict[str, Any]) -> None:
    """What both sides hashed above was one value each, so nothing was compared with itself."""
    assert len({iou_hash(iou["data"]) for iou in asked["ious"]}) == len(asked["ious"])
    assert len({record["hash"] for record in asked["records"]}) == CASES
