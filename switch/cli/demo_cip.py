"""`demo --cip`: a SOF site and its customers pay in the three modes, for a while.

At the end what the site was told, what customers saw and what the read model and the report hold
must be the same payments.
"""

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
import trio
from rich.console import Console

from switch.cli.base import Call, print_fields, print_table
from switch.cli.cip_world import APP, CUSTOMER, World, prepare, running
from switch.cli.provision import provision
from switch.config import Config
from switch.journal import cip_queries as queries
from switch.journal.projector import FILE_NAME, Projector
from switch.ops.keys import MasterKey
from switch.simulators.cip_people import Astray, Customer

AT_ONCE: Final = 12
CARD: Final = {"pan": "4111111111111111", "expiry": "12/30", "cvv": "123"}
ENDINGS: Final = (0, 0, 0, 0, 0, 51, 61, 71)
SETTLE_S: Final = 15.0
MODES: Final = ("gateway", "partial", "full")


class Result(msgspec.Struct):
    """What the demonstration came to; times in milliseconds, people left out."""

    ok: bool
    url: str
    seconds: float
    payments: dict[str, int]
    table: list[dict[str, Any]]
    webhooks: int
    report_lines: int
    problems: list[str]


class _Run:
    """Payments under way, and what everybody was told about them."""

    def __init__(self, world: World, until: float) -> None:
        self.world = world
        self.until = until
        self.told: dict[str, str] = {}  # reference or code to mode
        self.times: dict[str, list[float]] = {mode: [] for mode in MODES}
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []

    async def customer(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.until:
            mode = MODES[chance.randrange(3)]
            amount = chance.randrange(10, 4000) * 1000 + chance.choice(ENDINGS)
            try:
                code, took = await getattr(self, f"_{mode}")(amount)
            except (Astray, OSError) as error:
                self.problems.append(f"{mode}: {error}")
                continue
            self.times[mode].append(took)
            self.outcomes["CONFIRMED" if code else "DECLINED"] += 1
            if code:
                self.told[code] = mode

    async def _gateway(self, amount: int) -> tuple[str, float]:
        began = time.monotonic()
        order = await self.world.site.pay(amount, CARD)
        return order.cip, time.monotonic() - began

    async def _partial(self, amount: int) -> tuple[str, float]:
        began = time.monotonic()
        status, told = await self.world.site.open_session(amount)
        if status != 201:
            raise Astray(f"session: {status}")
        opened_s = time.monotonic() - began
        async with Customer(self.world.url, CUSTOMER, self.world.password) as person:
            code = await person.partial(told["url"], amount)
            where = await person.leave()
        if f"session={told['session']}" not in where:
            raise Astray(f"sent back to {where}")
        return code, opened_s + person.machine_s

    async def _full(self, amount: int) -> tuple[str, float]:
        async with Customer(self.world.url, CUSTOMER, self.world.password) as person:
            code = await person.full(APP, amount)
            await person.leave()
        return code, person.machine_s


def run(call: Call, directory: Path, seconds: float, keep: bool, console: Console) -> bool:
    """Run it; True where all agrees."""
    result: Result = trio.run(_perform, directory / "node", seconds, keep, console)
    call.answer(msgspec.to_builtins(result), lambda: _print(result))
    return result.ok


async def _perform(directory: Path, seconds: float, keep: bool, console: Console) -> Result:
    with console.status("making a node, an application and its users"):
        # Sites come from anywhere: all these customers come from one address.
        settings = {"cip.auth_rate_per_minute": 100_000}
        prepared = await trio.to_thread.run_sync(prepare, directory, settings)
    async with running(prepared) as world:
        console.print(f"CIP {world.url}/cip/   site {world.site.url}", highlight=False)
        console.print(
            f"application {APP}, customer {CUSTOMER}, desk clara, password {world.password}",
            highlight=False,
        )
        payments = _Run(world, time.monotonic() + seconds)
        with console.status(f"customers pay for {seconds:.0f} s"):
            async with trio.open_nursery() as nursery:
                for number in range(AT_ONCE):
                    nursery.start_soon(payments.customer, number)
        with console.status("comparing"):
            result = await _compare(world, payments, seconds)
        if keep:
            console.print("Ctrl-C ends it", highlight=False)
            await trio.sleep_forever()
    return result


async def _compare(world: World, payments: _Run, seconds: float) -> Result:
    problems = list(payments.problems)
    rows: list[queries.Row] = []
    with trio.move_on_after(SETTLE_S):
        while True:
            rows = await trio.to_thread.run_sync(_rows, world.config)
            paid = [row for row in rows if row.status == "CONFIRMED"]
            events = {hook["event_id"] for hook in world.site.webhooks}
            if len(paid) == len(payments.told) and len(events) >= len(rows):
                break
            await trio.sleep(0.2)
    shown = {f"{row.cip[:4]}-{row.cip[4:8]}-{row.cip[8:]}": row.mode for row in paid}
    if shown != payments.told:
        problems.append(f"{len(shown)} confirmed here, {len(payments.told)} told")
    report = await trio.to_thread.run_sync(
        lambda: provision(world.config, "cip_report_run", application=APP)
    )
    if report["lines"] != len(paid):
        problems.append(f"the report has {report['lines']} lines for {len(paid)} payments")
    if world.site.refused_webhooks:
        problems.append(f"{world.site.refused_webhooks} webhooks with a wrong signature")
    return Result(
        ok=not problems and bool(paid), url=world.url, seconds=seconds,
        payments=dict(payments.outcomes), table=_table(payments), webhooks=len(events),
        report_lines=report["lines"], problems=problems[:20],
    )  # fmt: skip


def _rows(config: Config) -> list[queries.Row]:
    """All payments of the read model, brought up to now: the node's own follower makes way to all
    else, and here the machine is busy."""
    master = MasterKey.load(config.file(config.node.master_key_file))
    projector = Projector(config, config.data, master)
    projector.catch_up()
    projector.close()
    found, _ = queries.payments(
        config.data / FILE_NAME, APP, ZoneInfo("UTC"), {}, limit=queries.ROWS_MAX
    )
    return found


def _table(payments: _Run) -> list[dict[str, Any]]:
    rows = []
    for mode, times in payments.times.items():
        found = sorted(times)
        if found:
            rows.append(
                {
                    "mode": mode, "payments": len(found),
                    "p50_ms": round(found[len(found) // 2] * 1000),
                    "p99_ms": round(found[min(len(found) * 99 // 100, len(found) - 1)] * 1000),
                }
            )  # fmt: skip
    return rows


def _print(result: Result) -> None:
    print_table(result.table, "payments, people left out")
    print_fields(
        {
            "payments": result.payments, "webhooks": result.webhooks,
            "report lines": result.report_lines, "agree": result.ok, "problems": result.problems,
        }
    )  # fmt: skip
