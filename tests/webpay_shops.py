"""Keys, kits and shops of the Webpay tests: published test keys of the vectors, simulated shops."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPrivateNumbers,
    RSAPublicKey,
    RSAPublicNumbers,
    rsa_crt_dmp1,
    rsa_crt_dmq1,
    rsa_crt_iqmp,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from switch.web.webpay_shop import MerchantKit, ShopSettings

HERE = Path(__file__).parent
MERCHANT = "597026007976"
APPROVED_PAN = "4051885600446623"
DECLINED_PAN = "5186059559590568"
CVV = "123"
PARTS = ("n", "e", "d", "p", "q")
NOW_NS = 1_795_359_600 * 1_000_000_000  # 2026-11-22 15:00:00 UTC


@cache
def vectors() -> dict[str, Any]:
    """The file of vectors, or the one of that name in the directory TRONCAL_VECTORS."""
    given = os.environ.get("TRONCAL_VECTORS")
    path = Path(given, "webpay.json") if given else HERE / "vectors" / "webpay.json"
    if not path.exists():
        path = HERE / "vectors" / "webpay.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@cache
def public(name: str) -> RSAPublicKey:
    """A public key of the vectors."""
    key = vectors()["keys"][name]
    return RSAPublicNumbers(int(key["e"], 16), int(key["n"], 16)).public_key()


@cache
def private(name: str) -> RSAPrivateKey:
    """A private key of the vectors: published test keys, or made for them."""
    key = {k: int(v, 16) for k, v in vectors()["keys"][name].items() if k in PARTS}
    p, q, d = key["p"], key["q"], key["d"]
    return RSAPrivateNumbers(
        p, q, d, rsa_crt_dmp1(d, p), rsa_crt_dmq1(d, q), rsa_crt_iqmp(p, q),
        RSAPublicNumbers(key["e"], key["n"]),
    ).private_key()  # fmt: skip


def private_pem(name: str) -> bytes:
    """A private key as a file holds it."""
    return private(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(name: str) -> bytes:
    """A public key as a file holds it."""
    return public(name).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def kit(directory: Path, **changed: Any) -> MerchantKit:
    """The kit of the test merchant; Webpay is `sim_webpay_4096`."""
    values: dict[str, Any] = {
        "merchant": MERCHANT,
        "name": "Tienda de prueba",
        "notify_url": "http://127.0.0.1:8081/cgi-bin/tbk_bp_resultado.cgi",
        "notify_ip": "127.0.0.1",
        "notify_port": 8081,
        "directory": directory,
    }
    return MerchantKit(
        ShopSettings(**{**values, **changed}),
        private("merchant_test_2048"),
        public("sim_webpay_4096"),
        wall_ns=lambda: NOW_NS,
    )
