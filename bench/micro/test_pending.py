"""The in-flight table: what a request and its answer cost beside codec and socket."""

import itertools
from typing import Any

import pytest

from core_ext._pending import Pending

BATCH = 1000


@pytest.mark.benchmark(group="pending")
@pytest.mark.parametrize("flying", [0, 100_000])
def test_a_request_and_its_answer(benchmark: Any, flying: int) -> None:
    """STAN, key and deadline, then the match; with others in flight all the while."""
    benchmark.extra_info["requests"] = BATCH
    table = Pending(("class", "11", "41"), ("7", "37"), in_flight_max=200_000)
    for n in range(flying):
        stan = table.next_stan(1)
        parts = ("1", f"{stan:06}", f"{n:08}", "1122150000", f"{n:012}")
        assert table.add(parts, n, sent_ns=0, deadline_ns=n, stan=stan)
    seconds = itertools.count(2)

    def turn() -> int:
        second, taken = next(seconds), 0
        sent = []
        for n in range(BATCH):
            stan = table.next_stan(second)
            parts = ("1", f"{stan:06}", "00000001", "1122150000", "000000000001")
            table.add(parts, n, sent_ns=second, deadline_ns=second + 10**10, stan=stan)
            sent.append(parts)
        for parts in sent:
            taken += table.take(parts, second) is not None
        return taken

    assert benchmark(turn) == BATCH
