"""`demo --webpay`: a shop in the browser, Webpay, and the bank that issued the card.

Holders of our own buy for some seconds, shops end some of their orders badly, and then the books
are held together: what holders saw, the acquirer's Bitácora, the shops' own orders, and what the
issuer holds. With `--keep` the shop stays open for people until Ctrl-C.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import trio
from rich.console import Console
from rich.table import Table

from protocols.webpay import bitacora
from switch.cli.base import Call, cell
from switch.cli.serving import wait_for_interrupt
from switch.cli.webpay_world import Plan, World, new_keys, running
from switch.simulators.webpay_issuer import APPROVED_PAN, CVV, DECLINED_PAN
from switch.simulators.webpay_merchant import Faults
from switch.simulators.webpay_people import Holder, HolderError, credit_card

PLANS: Final = (
    Plan(name="Almacén El Puerto"),
    Plan(name="Librería Directa", mode="direct"),
)
AMOUNTS: Final = ("590000", "1250000", "2490000", "18990000")
AT_ONCE: Final = 4
LINES_S: Final = 20.0
SHOW_S: Final = 0.5

# What the payments are, in turn: the card, what the shop says, and what must come of it.
MIX: Final = (
    ("paid", APPROVED_PAN, Faults(), ("ACK", "0")),
    ("declined", DECLINED_PAN, Faults(), ("ACK", "-1")),
    ("paid", APPROVED_PAN, Faults(), ("ACK", "0")),
    ("rejected by the shop", APPROVED_PAN, Faults(answer="rechazado"), ("ERR", "0")),
    ("shop broke off", APPROVED_PAN, Faults(close="before"), ("ERR", "0")),
)


class Result(msgspec.Struct):
    """The result, as `--json` prints it. Amounts in pesos, times in milliseconds."""

    ok: bool
    shops: int
    seconds: float
    payments: int
    payments_per_s: float
    outcomes: dict[str, int]
    charged: int
    reversed: int
    lines: int
    payment_p50_ms: float
    payment_p99_ms: float
    problems: list[str]


class Tally(msgspec.Struct):
    """What holders saw, and what was to come of each order."""

    expected: dict[str, tuple[str, str]] = {}
    seconds: list[float] = []
    outcomes: dict[str, int] = {}
    problems: list[str] = []
    charged: int = 0


def run(call: Call, directory: Path, seconds: float, keep: bool, console: Console) -> bool:
    """Do all of it; True when everything was as it must be.

    Args:
        keep: people buy: wait for Ctrl-C, and show what they do.
    """
    with console.status("making keys of 4096 bits"):
        keys = new_keys()
    result = trio.run(_perform, directory / "node", keys, seconds, keep, console)
    call.answer(result, lambda: _print(result))
    return result.ok


async def _perform(
    directory: Path, keys: Any, seconds: float, keep: bool, console: Console
) -> Result:
    async with running(directory, PLANS, keys) as world:
        console.print(f"shop: {world.shops[0].merchant.site_url}", highlight=False)
        console.print(f"Bitácora: {world.shops[0].merchant.site_url}/bitacora", highlight=False)
        console.print(f"metrics: {world.ops}/metrics", highlight=False)
        tally = Tally()
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(_holder, world, tally, number, began + seconds)
        passed = time.monotonic() - began
        records = await _lines(world, len(tally.expected))
        result = _result(world, tally, records, passed)
        if keep:
            await _people(world, console)
        return result


async def _holder(world: World, tally: Tally, number: int, until: float) -> None:
    """Buy one thing after the other until the time is over; each holder does all of MIX."""
    turn = number
    while time.monotonic() < until or turn < number + len(MIX):
        shop = world.shops[turn % len(world.shops)]
        name, pan, faults, expected = MIX[turn % len(MIX)]
        amount = AMOUNTS[turn % len(AMOUNTS)]
        order = await shop.merchant.new_order(amount)
        shop.merchant.set_faults(order, faults)
        began = time.monotonic()
        try:
            async with Holder(world.url, shop.merchant) as holder:
                page = await holder.pay(order, credit_card(pan, CVV))
        except HolderError as error:
            tally.problems.append(f"order {order}: {error}")
            return
        tally.seconds.append(time.monotonic() - began)
        tally.outcomes[name] = tally.outcomes.get(name, 0) + 1
        key = f"{shop.code} {order}"
        tally.expected[key] = expected
        success = expected == ("ACK", "0")
        if success:
            tally.charged += int(amount) // 100
        if ("Pago aprobado" in page) != success:
            tally.problems.append(f"{key}: the holder saw another end than {expected}")
        turn += 1


async def _lines(world: World, count: int) -> dict[str, list[bitacora.Record]]:
    """Read the acquirer's Bitácora by shop and order, once it has `count` lines."""
    directory = world.config.file(world.config.webpay.bitacora.dir)
    until = trio.current_time() + LINES_S
    while True:
        found: dict[str, list[bitacora.Record]] = {}
        for path in sorted(directory.rglob("tbk_bitacora_*.log")):
            for record in bitacora.parse(path.read_bytes()).records:
                key = f"{record.value('merchant')} {record.value('order')}"
                found.setdefault(key, []).append(record)
        if sum(map(len, found.values())) >= count or trio.current_time() > until:
            return found
        await trio.sleep(0.1)


def _result(
    world: World, tally: Tally, records: dict[str, list[bitacora.Record]], seconds: float
) -> Result:
    problems = [*tally.problems, *_problems(world, tally, records)]
    ends = Counter(r.outcome_name for found in records.values() for r in found)
    ranked = sorted(tally.seconds) or [0.0]
    return Result(
        ok=not problems,
        shops=len(world.shops),
        seconds=round(seconds, 2),
        payments=len(tally.expected),
        payments_per_s=round(len(tally.expected) / seconds, 2),
        outcomes=dict(sorted(tally.outcomes.items())),
        charged=tally.charged,
        reversed=ends["REVERSED"],
        lines=sum(map(len, records.values())),
        payment_p50_ms=round(1000 * ranked[len(ranked) // 2], 1),
        payment_p99_ms=round(1000 * ranked[min(int(0.99 * len(ranked)), len(ranked) - 1)], 1),
        problems=problems,
    )


def _problems(world: World, tally: Tally, records: dict[str, list[bitacora.Record]]) -> list[str]:
    """Everything that is not as it must be."""
    problems = []
    for key, expected in tally.expected.items():
        ends = [(r.prefix, r.value("respuesta")) for r in records.get(key, [])]
        if ends != [expected]:
            problems.append(f"{key}: lines {ends}, not {[expected]}")
        code, _, number = key.partition(" ")
        shop = next(s for s in world.shops if s.code == code)
        order = shop.merchant.orders.order(code, number)
        paid = order is not None and order.state == "PAID"
        # A shop that breaks off after its commit has a paid order of a reversed sale: the two
        # Bitácoras tell. One that paid nothing here would be our mistake.
        if expected == ("ACK", "0") and not paid:
            problems.append(f"{key}: charged, but the shop's order is not paid")
    captured = world.issuer.book.dump()["captured"].get("purchase", 0)
    if captured != tally.charged:
        problems.append(f"the issuer holds {captured}, {tally.charged} were charged")
    if not tally.expected:
        problems.append("no payment was made")
    return problems


async def _people(world: World, console: Console) -> None:
    """Let people buy until Ctrl-C; tell what the shop is told."""
    shop = world.shops[0].merchant
    console.print(f"\nbuy at {shop.site_url}", style="bold", highlight=False)
    console.print(
        f"cards: {APPROVED_PAN} is approved, {DECLINED_PAN} declined; any date to come, "
        f"code {CVV}; debit: RUT 11.111.111-1, password 123",
        highlight=False,
    )
    console.print("Ctrl-C ends it", highlight=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show, world, console)
        await wait_for_interrupt()
        nursery.cancel_scope.cancel()


async def _show(world: World, console: Console) -> None:
    """A line for each notification, as it comes."""
    shown = {shop.code: len(shop.merchant.seen) for shop in world.shops}
    while True:
        for shop in world.shops:
            for seen in shop.merchant.seen[shown[shop.code] :]:
                console.print(
                    f"{shop.plan.name}: order {seen.order}, TBK_RESPUESTA {seen.respuesta}: "
                    f"{seen.verdict}",
                    highlight=False,
                )
            shown[shop.code] = len(shop.merchant.seen)
        await trio.sleep(SHOW_S)


def _print(result: Result) -> None:
    table = Table(title="Result", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    rows = [
        ("shops", cell(result.shops)),
        ("payments", f"{cell(result.payments)} in {result.seconds:.1f} s"),
        *((name, cell(count)) for name, count in result.outcomes.items()),
        ("charged", f"$ {cell(result.charged)}"),
        ("reversed", cell(result.reversed)),
        ("lines of the Bitácora", cell(result.lines)),
        ("p50 / p99", f"{result.payment_p50_ms:.0f} / {result.payment_p99_ms:.0f} ms"),
    ]
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    for problem in result.problems:
        click.echo(click.style("wrong: ", fg="red") + problem, err=True)
    if result.ok:
        click.echo(click.style("all good", fg="green", bold=True))
