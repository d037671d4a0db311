"""The ledger: what one command costs from Python, and in a full batch.

Run alone on a quiet machine: `python -m pytest bench/micro --benchmark-enable`. Records go to a
native sink that drops them, so their encoding is part of every figure and the disk of none.
`python -m bench.micro.ledger_scale` has the figures by number of accounts.
"""

import itertools
from typing import Any

import pytest

from core_ext._batch import Batch
from core_ext._ledger import DEBITS_MUST_NOT_EXCEED_CREDITS, Ledger, NullSink
from core_ext._sink import MemorySink

BATCH = 8192
ROUNDS = 60
NOW = 1_790_000_000_000_000_000
DAY = NOW // 86_400_000_000_000
ACCOUNTS = [number.to_bytes(16, "little") for number in range(1000)]
IDS = [number.to_bytes(16, "big") for number in range(BATCH * (ROUNDS + 1))]


def ledger_of(*, profile: int = 0) -> Ledger:
    """A thousand accounts with money on them."""
    ledger, batch = Ledger(sink=NullSink()), Batch()
    bank = bytes(16)[:-1] + b"\xff"
    batch.create_account(bank, ledger=600, code=1)
    batch.set_profile(1, windows={("debit", "day"): (10**15, 0), ("debit", "month"): (10**15, 0)})
    for account in ACCOUNTS:
        flags = DEBITS_MUST_NOT_EXCEED_CREDITS
        batch.create_account(account, ledger=600, code=1, flags=flags, profile=profile)
        batch.transfer(bank, account, 10**15)
    assert not any(ledger.apply(batch, NOW))
    return ledger


def fill(batch: Batch, round_: int, *, key: bool = False) -> None:
    batch.clear()
    for at in range(BATCH):
        hold = IDS[round_ * BATCH + at]
        debit, credit = ACCOUNTS[at * 7919 % 1000], ACCOUNTS[(at * 104_729 + 1) % 1000]
        if debit == credit:
            credit = ACCOUNTS[(at * 104_729 + 2) % 1000]
        batch.hold(hold, debit, credit, 5, day=DAY, key=hold if key else None, digest=at)


@pytest.mark.benchmark(group="batch of 8192, ns are of the batch")
@pytest.mark.parametrize("kind", ["hold", "hold with key", "hold with limits"])
def test_holds(benchmark: Any, kind: str) -> None:
    ledger, batch = ledger_of(profile=kind == "hold with limits"), Batch()
    rounds = itertools.count()

    def setup() -> tuple[tuple[Batch, int], dict[str, Any]]:
        fill(batch, next(rounds), key=kind == "hold with key")
        return (batch, NOW), {}

    benchmark.extra_info["commands"] = BATCH
    assert not any(benchmark.pedantic(ledger.apply, setup=setup, rounds=ROUNDS))


@pytest.mark.benchmark(group="batch of 8192, ns are of the batch")
def test_captures(benchmark: Any) -> None:
    ledger, batch = ledger_of(), Batch()
    rounds = itertools.count()

    def setup() -> tuple[tuple[Batch, int], dict[str, Any]]:
        round_ = next(rounds)
        fill(batch, round_)
        assert not any(ledger.apply(batch, NOW))
        batch.clear()
        for at in range(BATCH):
            batch.capture(IDS[round_ * BATCH + at * 4099 % BATCH])
        return (batch, NOW), {}

    benchmark.extra_info["commands"] = BATCH
    assert not any(benchmark.pedantic(ledger.apply, setup=setup, rounds=ROUNDS))


@pytest.mark.benchmark(group="one command from Python")
@pytest.mark.parametrize("kind", ["hold", "repeat of a hold", "accept_step"])
def test_one_command(benchmark: Any, kind: str) -> None:
    """A kept batch: clear, one command, apply."""
    ledger, batch = ledger_of(), Batch()
    numbers = iter(range(10**9))
    debit, credit = ACCOUNTS[:2]
    key = IDS[0]

    def hold() -> list[int]:
        batch.clear()
        batch.hold(next(numbers).to_bytes(16, "big"), debit, credit, 5, day=DAY)
        return ledger.apply(batch, NOW)

    def repeat() -> list[int]:
        batch.clear()
        batch.hold(key, debit, credit, 5, day=DAY, key=key, digest=7)
        return ledger.apply(batch, NOW)

    def step() -> list[int]:
        batch.clear()
        batch.accept_step(key, next(numbers))
        return ledger.apply(batch, NOW)

    if kind == "repeat of a hold":
        repeat()
    benchmark({"hold": hold, "repeat of a hold": repeat, "accept_step": step}[kind])


@pytest.mark.benchmark(group="read")
def test_balance(benchmark: Any) -> None:
    balance = benchmark(ledger_of().balance, ACCOUNTS[5])
    assert balance is not None


@pytest.mark.benchmark(group="replay of 8192 records")
def test_replay(benchmark: Any) -> None:
    """Through Python, record by record; the journal's reader does it in a native loop."""
    sink = MemorySink()
    ledger, batch = Ledger(sink=sink), Batch()
    for account in ACCOUNTS:
        batch.create_account(account, ledger=600, code=1)
    assert not any(ledger.apply(batch, NOW))
    fill(batch, 0)
    assert not any(ledger.apply(batch, NOW))

    def replay() -> Ledger:
        replica = Ledger()
        for kind, data in sink.records:
            replica.replay_record(kind, data)
        return replica

    assert benchmark(replay).digest() == ledger.digest()
