"""Acceptance case WP-55, the processes: after real payments nothing of a card is left anywhere.

Payments of all kinds go through a real node; then its files, logs, metrics, its own memory and the
core that somebody forces are searched for every card number, verification value and password. The
node wipes freed memory (`webpay.wipe_memory`): what is found there is what the program itself still
holds.
"""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest
import trio

from bench.load.webpay import AMOUNT, FAULTS, lines_of
from switch.cli.base import CliError
from switch.cli.webpay_world import Plan, World, running
from switch.simulators.webpay_issuer import DECLINED_PAN
from switch.simulators.webpay_people import Holder, credit_card
from tests.e2e.webpay_world import keys
from tests.faults.test_webpay_load import issuer_at_rest, leaves_no_card, pan

# No number of ours is written with a zero ahead and alone, and there is no day 73: whatever this
# is found as, it is the code that a holder typed.
CVV = "0973"
PASSWORD = "clave-que-nadie-mas-usa"
ALONE = re.compile(rb"(?<![0-9a-f.-])" + CVV.encode() + rb"(?![0-9a-f-])")
PAGE = 4096
THERE = re.compile(rb"[\x40-\xff]+")
KINDS = ("answer", "refuse", "drop", "declined", "mistyped", "debit", "garbage")


async def _one(world: World, number: int, kind: str, card: str) -> None:
    """One holder, with a connection of its own that ends with the payment."""
    shop = world.shops[number % 2]
    order = await shop.merchant.new_order(AMOUNT)
    if kind in FAULTS:
        shop.merchant.set_faults(order, FAULTS[kind])
    fields = credit_card(DECLINED_PAN if kind == "declined" else card, CVV)
    if kind == "mistyped":
        fields["numero"] = card[:-1] + str((int(card[-1]) + 1) % 10)
    if kind == "debit":
        fields = {"tipo": "D", "numero": card, "banco": "bci"}
    async with Holder(world.url, shop.merchant) as holder:
        page = await holder.submit(await holder.arrive(order), fields)
        if kind == "debit":
            page = await holder.submit(page, {"rut": "11111111-1", "clave": PASSWORD})
        await holder.end(page)


@pytest.mark.timeout(300)
async def test_WP_55_nothing_of_a_card_in_files_logs_memory_or_a_core(tmp_path: Path) -> None:
    plans = (Plan(name="Con kit"), Plan(name="Directa", mode="direct"))
    values = {
        "ack_timeout_ms = 30_000": "ack_timeout_ms = 10_000",
        "wipe_memory = false": "wipe_memory = true",
    }
    cards = [pan(number) for number in range(2 * len(KINDS))]
    with pytest.RaisesGroup(CliError, flatten_subgroups=True) as ended:
        async with running(tmp_path / "node", plans, keys(), values) as world:
            metrics = await _played(world, cards)
            environ = trio.Path(f"/proc/{world.process.pid}/environ")
            if os.geteuid() == 0:
                assert b"glibc.malloc.perturb=165" in await environ.read_bytes()
            await _forced_core(world)
    assert f"the node ended with {-signal.SIGABRT}" in str(ended.value.exceptions[0])
    assert [path for path in (*cores(tmp_path), *cores(Path())) if path.is_file()] == []
    leaves_no_card(tmp_path / "node", cards, metrics)
    assert _left_in(tmp_path / "node") == []


def cores(top: Path) -> list[Path]:
    """Core files of a process that ran there."""
    return [*top.glob("core"), *top.glob("core.*")]


def _left_in(directory: Path) -> list[str]:
    """Files with the code in any form that is not a part of a number, or with the password."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [
        path.name
        for path in files
        if ALONE.search(data := path.read_bytes()) or PASSWORD.encode() in data
    ]


async def _played(world: World, cards: list[str]) -> str:
    """All the payments, and a search of the node's memory. Return its metrics."""
    async with trio.open_nursery() as nursery:
        for number, card in enumerate(cards):
            nursery.start_soon(_one, world, number, KINDS[number // 2], card)
    await lines_of(world, 2 * (len(KINDS) - 1))
    await issuer_at_rest(world)
    metrics = await trio.to_thread.run_sync(_text, f"{world.ops}/metrics")
    if os.geteuid() == 0:
        search = partial(_in_memory, world.process.pid, [*cards, DECLINED_PAN])
        assert await trio.to_thread.run_sync(search) == []
    return metrics


async def _forced_core(world: World) -> None:
    """Let somebody with all rights raise the limit, and ask for a core."""
    process = world.process
    if os.geteuid() == 0:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        with contextlib.suppress(PermissionError):  # not even root, where it may not do all
            resource.prlimit(process.pid, resource.RLIMIT_CORE, unlimited)
    process.send_signal(signal.SIGABRT)
    await process.wait()


def _text(url: str) -> str:
    return httpx.get(url, timeout=120).text


def _in_memory(pid: int, cards: list[str]) -> list[str]:
    """What of them can be read in a process's memory; whoever makes a core by hand gets no more."""
    needles = [card.encode() for card in cards] + [bytes.fromhex(card) for card in cards]
    needles += [f"codigo={CVV}".encode(), f'"{CVV}"'.encode(), PASSWORD.encode()]
    found = []
    for piece in _resident(pid):
        found += [f"{needle[:6]!r}…" for needle in needles if needle in piece]
    return found


def _resident(pid: int) -> Iterator[bytes]:
    """The memory that a process can write, as far as there is any: most of it is only reserved."""
    with (
        open(f"/proc/{pid}/mem", "rb", 0) as memory,
        open(f"/proc/{pid}/pagemap", "rb", 0) as pages,
    ):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights, *_ = line.split()
            begin, end = (int(part, 16) for part in where.split("-"))
            if "w" in rights:
                for start, stop in _runs(pages, begin // PAGE, end // PAGE):
                    memory.seek(start * PAGE)
                    yield memory.read((stop - start) * PAGE)


def _runs(pages: BinaryIO, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Runs of pages that are there."""
    for part in range(first, last, 1 << 16):
        count = min(last - part, 1 << 16)
        pages.seek(part * 8)
        # Of each page eight bytes, the last of which tells whether it is present, or swapped out.
        for run in THERE.finditer(pages.read(count * 8)[7::8]):
            yield part + run.start(), part + run.end()


HOLDS = """
import sys
kept = sys.stdin.readline()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another process's memory is for root")
def test_WP_55_the_search_of_memory_finds_what_is_there() -> None:
    """A search is worth as much as what it finds when something is there."""
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(f"x{pan(3)}y\n".encode())
        holder.stdin.flush()
        assert holder.stdout.readline() == b"held\n"
        assert any("405188" in found for found in _in_memory(holder.pid, [pan(3)]))
        assert _in_memory(holder.pid, [pan(4)]) == []
