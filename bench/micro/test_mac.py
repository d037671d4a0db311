"""MACs, one-time passwords and sealed seeds: what one call costs.

Run alone on a quiet machine: `python -m pytest bench/micro --benchmark-enable`.
"""

from typing import Any

import pytest

from core_ext._mac import MacKey, SeedVault, totp

FRAME = bytes(range(200))
BATCH = 64
NOW = 1_767_268_800
KEYS = {
    "hmac-sha256": 32, "hmac-sha512": 64, "hmac-sha1": 20, "aes-cmac": 16, "tdes-cmac": 16,
    "retail-1": 16,
}  # fmt: skip


@pytest.mark.benchmark(group="mac of 200 bytes")
@pytest.mark.parametrize("algorithm", KEYS)
def test_mac(benchmark: Any, algorithm: str) -> None:
    key = MacKey(algorithm, bytes(range(KEYS[algorithm])))
    assert len(benchmark(key.mac, FRAME)) == key.mac_bytes


@pytest.mark.benchmark(group="verify of 64 messages of 200 bytes")
@pytest.mark.parametrize("algorithm", ["hmac-sha256", "aes-cmac"])
def test_verify_many(benchmark: Any, algorithm: str) -> None:
    key = MacKey(algorithm, bytes(range(KEYS[algorithm])))
    messages = [FRAME] * BATCH
    assert all(benchmark(key.verify_many, messages, key.mac_many(messages)))


@pytest.mark.benchmark(group="new key")
@pytest.mark.parametrize("algorithm", KEYS)
def test_new_key(benchmark: Any, algorithm: str) -> None:
    benchmark(MacKey, algorithm, bytes(range(KEYS[algorithm])))


@pytest.mark.benchmark(group="one-time password")
@pytest.mark.parametrize("case", ["right, one seed", "wrong, one seed", "wrong, nobody known"])
def test_match(benchmark: Any, case: str) -> None:
    """A right code: one seed, its window of four. A wrong one: four seeds, 31 steps each."""
    vault = SeedVault(bytes(32))
    seed = bytes(range(32))
    sealed = [vault.seal(seed, b"")] if "one" in case.split() else []
    code = totp(seed, NOW)
    if case.startswith("wrong"):
        code = f"{(int(code) + 1) % 10**6:06d}"
    aads = [b""] * len(sealed)

    def match() -> list[tuple[int, int]]:
        return vault.match(sealed, aads, code, mode="totp", now_s=NOW)

    kinds = [kind for kind, _ in benchmark(match)]
    assert kinds == [int(case.startswith("right"))] * len(sealed)
