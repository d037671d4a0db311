"""MAC and PIN block vectors: NIST SP 800-38B, ISO/IEC 9797-1, FIPS 113, RFC 4231, packages."""

import json
import os
from pathlib import Path

import pytest

from core_ext._mac import MacKey
from protocols.iso8583.pin import clear_block, pin_of

VECTORS = Path(os.environ.get("TRONCAL_VECTORS", Path(__file__).parents[1] / "vectors"))
FILE = json.loads((VECTORS / "mac.json").read_text())
CASES = FILE["mac_vectors"]
PIN_BLOCKS = FILE.get("pin_block_vectors", [])


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


@pytest.mark.parametrize(
    "case", PIN_BLOCKS, ids=[f"{i}-{c['format']}" for i, c in enumerate(PIN_BLOCKS)]
)
def test_pin_block_vector(case: dict[str, str]) -> None:
    """`clear_block_prefix`: the rest of the block is random."""
    number = int(case["format"].rpartition(" ")[2])
    pan = case.get("pan") or ""
    block = clear_block(number, case["pin"], pan, bytes(range(7, 17)))
    if "clear_block" in case:
        assert block.hex().upper() == case["clear_block"].upper()
        assert pin_of(bytes.fromhex(case["clear_block"]), pan) == case["pin"]
    else:
        assert block.hex().upper().startswith(case["clear_block_prefix"].upper())
    assert pin_of(block, pan) == case["pin"]
