"""Session channels: a batch of 200-byte frames sealed, or pushed, verified and taken.

Divide by `extra_info["frames"]` for the cost of one frame. Run alone on a quiet machine:
`python -m pytest bench/micro --benchmark-enable`.
"""

from typing import Any

import pytest

from core_ext._frames import Channel, LengthPrefixed
from core_ext._mac import MacKey

BATCH = 64
PAYLOADS = [bytes([i]) * 190 for i in range(BATCH)]  # frames of 200 bytes, length and MAC included
KEYS = {"hmac-sha256": 32, "aes-cmac": 16}


def pair(algorithm: str) -> tuple[Channel, Channel]:
    key = MacKey(algorithm, bytes(range(KEYS[algorithm])))
    client, server = Channel(1), Channel(2)
    client.rekey(key)
    server.rekey(key)
    return client, server


@pytest.mark.benchmark(group="64 frames")
@pytest.mark.parametrize("algorithm", KEYS)
def test_seal(benchmark: Any, algorithm: str) -> None:
    benchmark.extra_info["frames"] = BATCH
    client, _ = pair(algorithm)
    assert len(benchmark(client.seal, PAYLOADS)) == BATCH * 200


@pytest.mark.benchmark(group="64 frames")
@pytest.mark.parametrize("algorithm", KEYS)
def test_seal_push_and_take(benchmark: Any, algorithm: str) -> None:
    """Sign and verify, since counters forbid to take one buffer twice."""
    benchmark.extra_info["frames"] = BATCH
    client, server = pair(algorithm)

    def turn() -> list[bytes]:
        server.push(client.seal(PAYLOADS))
        return server.take(BATCH)

    assert benchmark(turn) == PAYLOADS
    assert server.fault == 0


@pytest.mark.benchmark(group="1 frame")
@pytest.mark.parametrize("algorithm", KEYS)
def test_seal_push_and_take_one(benchmark: Any, algorithm: str) -> None:
    client, server = pair(algorithm)
    one = PAYLOADS[:1]

    def turn() -> list[bytes]:
        server.push(client.seal(one))
        return server.take()

    assert benchmark(turn) == one


@pytest.mark.benchmark(group="64 frames without MAC")
def test_length_prefixed(benchmark: Any) -> None:
    benchmark.extra_info["frames"] = BATCH
    framer = LengthPrefixed()
    wire = b"".join(framer.wrap(payload) for payload in PAYLOADS)
    assert benchmark(framer.feed, wire) == PAYLOADS
