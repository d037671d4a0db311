"""Regressions of what is native, by ratios: each beside plain Python that does the same, in turn.

Both meet the same machine in the same moment, and what counts is the thread's CPU time of the best
round, so a busy runner does not matter. Bounds leave a factor of two or more to what was measured.
"""

import hashlib
import hmac
import os
import struct
import time
from collections.abc import Callable

import pytest

from bench.micro import iso8583
from core_ext import Batch, Ledger, Records
from core_ext._frames import Channel
from core_ext._ledger import NullSink
from core_ext._mac import MacKey
from protocols.iso8583 import Dialect

# Builds for sanitizers and for coverage are slow on purpose.
SLOW_BUILD = ("ASAN_OPTIONS", "TRONCAL_TRACE", "COVERAGE_RUN")
pytestmark = [
    pytest.mark.timed,
    pytest.mark.skipif(
        any(name in os.environ for name in SLOW_BUILD), reason="not the build that is shipped"
    ),
]
ROUNDS = 9
NOW = 1_790_000_000_000_000_000
DAY = NOW // 86_400_000_000_000


def best_ratio(ours: Callable[[], object], plain: Callable[[], object]) -> float:
    """How many times as long plain Python takes."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for index, run in enumerate((ours, plain)):
            began = time.thread_time_ns()
            run()
            best[index] = min(best[index], time.thread_time_ns() - began)
    return best[1] / best[0]


@pytest.mark.parametrize(
    ("case", "bound"), [("index", 40), ("all", 10), ("encode", 16), ("answer", 40), ("turn", 40)]
)
def test_codec_beside_pyiso8583(case: str, bound: float) -> None:
    ours = iso8583.ours(Dialect.load("iso87-ascii"))[case]
    plain = iso8583.pyiso8583()[case]
    ratio = best_ratio(lambda: [ours() for _ in range(50)], plain) * 50
    assert ratio > bound, f"{case}: {ratio:.1f} times as fast as pyiso8583, not {bound}"


def test_frames_beside_hmac() -> None:
    payloads = [bytes([i]) * 190 for i in range(64)]
    key = bytes(range(32))
    client, server = Channel(1), Channel(2)
    for channel in (client, server):
        channel.rekey(MacKey("hmac-sha256", key))
    counter = 0

    def ours() -> None:
        server.push(client.seal(payloads))
        assert len(server.take(64)) == 64

    def plain() -> None:
        nonlocal counter
        wire = b""
        for payload in payloads:
            prefix = struct.pack(">BQ", 1, counter)
            counter += 1
            wire += struct.pack(">H", 198) + payload
            wire += hmac.digest(key, prefix + payload, hashlib.sha256)[:8]
        taken = []
        for at in range(0, len(wire), 200):
            payload, tag = wire[at + 2 : at + 192], wire[at + 192 : at + 200]
            wanted = hmac.digest(key, struct.pack(">BQ", 1, at) + payload, hashlib.sha256)[:8]
            hmac.compare_digest(wanted, tag)
            taken.append(payload)
        assert len(taken) == 64

    ratio = best_ratio(ours, plain)
    assert ratio > 4, f"{ratio:.2f} times as fast as hmac"


def test_holds_beside_dicts() -> None:
    """A hold with its checks, record and index beside three updates of dicts, which do less."""
    count, accounts = 4096, 1000
    names = [number.to_bytes(16, "little") for number in range(accounts)]
    ledger = Ledger(accounts_max=accounts, holds_max=count * ROUNDS, sink=NullSink())
    batch = Batch()
    for name in names:
        batch.create_account(name, ledger=600, code=1)
    assert not any(ledger.apply(batch, NOW))
    rounds = []
    for turn in range(ROUNDS):
        batch = Batch()
        for at in range(count):
            number = (turn * count + at).to_bytes(16, "big")
            batch.hold(number, names[at % accounts], names[(at + 7) % accounts], 5, day=DAY)
        rounds.append(batch)
    left = iter(rounds)
    debits, credits = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    held: dict[bytes, tuple[bytes, bytes, int]] = {}

    def ours() -> None:
        assert not any(ledger.apply(next(left), NOW))

    def plain() -> None:
        for at in range(count):
            debit, credit = names[at % accounts], names[(at + 7) % accounts]
            debits[debit] += 5
            credits[credit] += 5
            held[at.to_bytes(16, "big")] = (debit, credit, 5)

    ratio = best_ratio(ours, plain)
    assert ratio > 0.6, f"a hold costs {1 / ratio:.2f} times what dicts cost"


def test_records_beside_a_dict() -> None:
    """A put with its copy, its record and its digest beside one in a dict, which copies nothing."""
    value = bytes(200)
    keys = [number.to_bytes(16, "little") for number in range(4096)]
    records, table = Records(bytes_max=1 << 26), {}

    def ours() -> None:
        put = records.put
        for key in keys:
            put(1, key, value)

    def plain() -> None:
        for key in keys:
            table[key] = bytes(bytearray(value))

    ratio = best_ratio(ours, plain)
    assert ratio > 0.4, f"a put costs {1 / ratio:.2f} times what a dict costs"
