"""What past operations cost: `python -m bench.micro.history_scale --past 0 --past 1000000`.

The node's state in this process, without network: between two measurements deposits fill it,
decided as the node decides them, with all their records, holds and journal, so they stand in memory
as any others. Then cash_outs and deposits are decided again, and their CPU time is taken: no
socket, no frame and no waiting for the disk, which cost the same whatever the past is, and would
hide what does not. Journal segments are deleted as soon as they are full, so that only memory
bounds the past; `--directory /dev/shm` leaves the disk out altogether. Memory is told for each past
operation.
"""

import argparse
import gc
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import trio

from bench.load import traffic
from bench.load.cash_out import TRACE_MAX, provision
from bench.load.directory import AMOUNT, CASHIER
from bench.load.server import BenchError, Say
from core_ext._journal import prune
from core_ext._mac import totp
from protocols.messages import CashOut, Deposit
from switch import config as configs
from switch.clock import SystemClock
from switch.flows.registry import Terminal
from switch.node import Node
from switch.ops.keys import MasterKey

PAST = (0, 100_000, 1_000_000)
PAST_MAX = 50_000_000
TERMINALS = 80  # 80 million traces
MEASURED = 10_000  # operations of each kind, at each mark
STEP = 48  # requests a step, as one read of many connections brings them
PRUNE_STEPS = 2_000
TOLD_EVERY = 500_000
BYTES_EACH = 1_500  # of memory, by this scenario itself
FREE_SHARE = 0.85  # of the memory that is free may be taken

Request = tuple[Terminal, CashOut | Deposit]


def run(
    past: Sequence[int] = PAST,
    measured: int = MEASURED,
    *,
    directory: Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure; the answer is what `--json` prints.

    Args:
        past: operations of the past at each measurement, rising, at most 50 million.
        measured: operations of each kind at each of them.
        directory: where the temporary data directory is made.
        say: told about progress.

    What the machine has no memory for is left out and told in the answer.

    Raises:
        BenchError: an operation was not decided natively, or refused.
        ValueError: there are too many, or no room for any.
    """
    most = int(_free_bytes() * FREE_SHARE / BYTES_EACH)
    marks = sorted(mark for mark in past if mark <= most)
    if not marks or marks[0] < 0 or marks[-1] > PAST_MAX or measured < STEP:
        raise ValueError(f"past operations are 0..{PAST_MAX}, measured ones at least {STEP}")
    with tempfile.TemporaryDirectory("-bench", "troncal-", directory) as root:
        cards = measured * len(marks)
        say(f"making {cards} cards")
        made = provision(
            Path(root), TERMINALS, cards,
            ledger_holds_max=100_000_000, ledger_keys_max=100_000_000,
            ledger_records_bytes_max=32 << 30,
        )  # fmt: skip
        config = configs.load(made.config, environ={})
        master = MasterKey.load(config.file(config.node.master_key_file))
        rows: list[dict[str, float]] = []

        async def work() -> None:
            node = Node(config, master, SystemClock(), config.data)
            node.open()
            try:
                filling = _Filling(node, made.cards, [number for number, _ in made.terminals])
                for index, mark in enumerate(marks):
                    filling.until(mark, say)
                    say(f"measuring after {filling.past}")
                    own = made.cards[index * measured : (index + 1) * measured]
                    rows.append(filling.measured(own))
            finally:
                node.close()

        trio.run(work)
    first, last = rows[0], rows[-1]
    return {
        "rows": rows,
        "left_out": sorted(set(past) - set(marks)),
        "cash_out_ratio": round(last["cash_out_us"] / first["cash_out_us"], 3),
        "deposit_ratio": round(last["deposit_us"] / first["deposit_us"], 3),
    }


class _Filling:
    """A node that is given a past."""

    def __init__(self, node: Node, cards: list[traffic.Card], terminals: list[str]) -> None:
        self._node = node
        self._terminals = terminals
        self._documents = cycle(document for document, _ in cards)
        self._asked = 0
        self._steps = 0
        self._journal = str(node.store.directory / "journal")
        self.past = 0
        # The first of each network is the flows': it makes the accounts.
        step = node.begin()
        terminal, message = self._deposit()
        node.terminal_request(step, terminal, message, _Nowhere())
        node.end(step)
        self._node.store.commit()
        self._empty_bytes = _memory_bytes()

    def until(self, mark: int, say: Say) -> None:
        """Fill up to so many past operations."""
        told = self.past
        while self.past < mark:
            count = min(STEP, mark - self.past)
            self._decided([self._deposit() for _ in range(count)])
            self.past += count
            if self.past - told >= TOLD_EVERY:
                told = self.past
                say(f"{told} of {mark} operations, {_memory_bytes() / 1e9:.1f} GB")

    def measured(self, cards: list[traffic.Card]) -> dict[str, float]:
        """CPU time of an operation of each kind, in microseconds, after the present past."""
        grown = _memory_bytes() - self._empty_bytes
        found = {
            "past": float(self.past),
            "bytes_each": round(grown / self.past, 1) if self.past else 0.0,
        }
        now_s = int(time.time())
        found["cash_out_us"] = self._cost([self._cash_out(card, now_s) for card in cards])
        found["deposit_us"] = self._cost([self._deposit() for _ in cards])
        self.past += 2 * len(cards)
        return found

    def _cost(self, requests: list[Request]) -> float:
        """Median over the steps, so that what others do to the caches counts little."""
        spent = [
            self._decided(requests[first : first + STEP]) / len(requests[first : first + STEP])
            for first in range(0, len(requests), STEP)
        ]
        return round(statistics.median(spent) * 1e6, 3)

    def _decided(self, requests: list[Request]) -> float:
        """Decide some in one step, and make them durable; CPU seconds of the first."""
        node = self._node
        began_s = time.thread_time()
        step = node.begin()
        for terminal, message in requests:
            if node.straight.ask(step, terminal, message) is None:
                core = node.straight.core
                raise BenchError(f"left to the flows: {core.counts}, {core.deposit_counts}")
        node.end(step)
        spent_s = time.thread_time() - began_s
        node.store.commit()
        self._steps += 1
        if self._steps % PRUNE_STEPS == 0:
            prune(self._journal, node.store.journal.durable_seq)
        return spent_s

    def _next(self) -> tuple[Terminal, int]:
        """Who asks next, and with which trace."""
        round_, place = divmod(self._asked, len(self._terminals))
        self._asked += 1
        terminal = self._node.registry.terminal(self._terminals[place])
        assert terminal is not None, "it was provisioned"
        assert round_ < TRACE_MAX, "there are more traces than past operations"
        return terminal, round_ + 1

    def _deposit(self) -> Request:
        terminal, trace = self._next()
        return terminal, Deposit(
            trace=trace, cashier=CASHIER, document=next(self._documents),
            amount=traffic.DEPOSIT_AMOUNT, currency="PYG",
        )  # fmt: skip

    def _cash_out(self, card: traffic.Card, now_s: int) -> Request:
        terminal, trace = self._next()
        document, seed = card
        return terminal, CashOut(
            trace=trace, cashier=CASHIER, document=document, token=totp(seed, now_s),
            amount=AMOUNT, currency="PYG",
        )  # fmt: skip


class _Nowhere:
    """Where the answers go that nobody waits for."""

    def ready(self, message: object) -> None:
        """Nobody waits for it."""

    def flush(self) -> None:
        """There is nothing to write."""


def _free_bytes() -> int:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    assert found, "any Linux since 3.14 tells it"
    return int(found[1]) * 1024


def _memory_bytes() -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE)
    assert found, "the status of any Linux since 4.5 tells it"
    return int(found[1]) * 1024


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--past", type=int, action="append", help="at each measurement")
    parser.add_argument("--measured", type=int, default=MEASURED, help="operations of each kind")
    parser.add_argument("--directory", type=Path, help="where data is written")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    gc.disable()
    found = run(
        chosen.past or PAST, chosen.measured, directory=chosen.directory,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    if chosen.json:
        print(json.dumps(found))
        return 0
    print(f"{'past':>12} {'cash_out us':>12} {'deposit us':>12} {'bytes each':>11}")
    for row in found["rows"]:
        print(
            f"{row['past']:>12.0f} {row['cash_out_us']:>12} {row['deposit_us']:>12} "
            f"{row['bytes_each']:>11}"
        )
    for mark in found["left_out"]:
        print(f"{mark:>12} left out: no memory for so many")
    print(f"last against first: {found['cash_out_ratio']} x and {found['deposit_ratio']} x")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
