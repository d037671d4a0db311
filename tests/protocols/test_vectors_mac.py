"""MAC vectors: NIST SP 800-38B, ISO/IEC 9797-1, FIPS 113, RFC 4231 and published packages."""

import json
import os
from pathlib import Path

import pytest

from core_ext._mac import MacKey

VECTORS = Path(os.environ.get("TRONCAL_VECTORS", Path(__file__).parents[1] / "vectors"))
CASES = json.loads((VECTORS / "mac.json").read_text())["mac_vectors"]


def algorithm_of(name: str) -> str:
    """Our name for the algorithm that a vector describes in the words of its source."""
    words = name.lower()
    padding = "2" if "padding 2" in words else "1"
    if words.startswith("hmac-sha"):
        return "hmac-sha" + words.rpartition("-")[2]
    if "cmac" in words:
        return "aes-cmac" if words.startswith("aes") else "tdes-cmac"
    if "alg3" in words or "retail" in words:
        return f"retail-{padding}"
    if "2tdes" in words:
        return f"tdes-mac-{padding}"
    if "x9.9" in words:
        return f"x9.9-{padding}"
    raise AssertionError(f"a vector of an algorithm that we do not know: {name}")


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c['alg']}" for i, c in enumerate(CASES)])
def test_vector(case: dict[str, str]) -> None:
    key = MacKey(algorithm_of(case["alg"]), bytes.fromhex(case["key"]))
    data, mac = bytes.fromhex(case["data"]), bytes.fromhex(case["mac"])
    assert key.mac(data)[: len(mac)] == mac
    assert key.verify(data, mac)
    assert key.mac_many([data, data], length=len(mac)) == [mac, mac]
    assert key.verify_many([data], [mac]) == [True]
    assert not key.verify(data, bytes([mac[0] ^ 1]) + mac[1:])
