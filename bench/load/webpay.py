"""Webpay under load: many cardholders at once, at shops that answer, refuse, hang, drop or babble.

`pay_all` is for tests: holders follow pages as people do, shops are whole simulators. `run`
measures: the node is the same, its issuer too, but holders and shops cost next to nothing
(`webpay_peers`). A payment costs the node three private operations with 4096 bits where the shop
has a kit and two where its closing page is asked, so beside the figures stands what
`openssl speed rsa4096` says of this machine in the same minute.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import trio
from msgspec import Struct

from bench.load.server import BenchError
from bench.load.webpay_peers import Bought, QuickHolder, QuickShop, sealed_acks
from protocols.webpay import bitacora
from switch.cli.webpay_world import Keys, Plan, Shop, World, new_keys, running
from switch.simulators.raw_answers import Delay
from switch.simulators.webpay_issuer import APPROVED_PAN, CVV
from switch.simulators.webpay_merchant import ALL, Faults
from switch.simulators.webpay_people import Holder, credit_card

PAYMENT_S: Final = 120.0
OPERATIONS: Final = {"kcc60": 3, "direct": 2}
"""Private ones with 4096 bits: the request is opened, the result signed, a kit's reply opened."""

AMOUNT: Final = "590000"
RATES: Final = {
    "address_per_min = 600": "address_per_min = 1_000_000",
    "merchant_per_min = 3_000": "merchant_per_min = 1_000_000",
}
"""All holders have one address here, and one shop."""

FAULTS: Final[dict[str, Faults]] = {
    "answer": Faults(),
    "refuse": Faults(answer="rechazado"),
    "hang": Faults(answer="none"),
    "drop": Faults(close="before"),
    "cut": Faults(close="in_body"),
    "garbage": Faults(answer="garbage"),
    "late": Faults(delay_ms=Delay(last_byte=60_000)),
}
"""How a shop treats the notification of one order. Only `answer` ends in a sale."""


class Paid(Struct):
    """One payment as its holder saw it. Times in seconds."""

    order: str
    shop: str
    fault: str
    final: str = ""
    pages_s: list[float] = []
    whole_s: float = 0.0

    @property
    def success(self) -> bool:
        return "Pago aprobado" in self.final


async def pay_all(
    world: World,
    wanted: Sequence[tuple[Shop, str]],
    *,
    at_once: int,
    pans: Sequence[str] = (APPROVED_PAN,),
    cvv: str = CVV,
    expiry: str = "12/30",
    timeout_s: float = PAYMENT_S,
) -> list[Paid]:
    """Make payments, `at_once` at most under way; one per (shop, fault).

    A fault that is none of `FAULTS` changes nothing at the shop. Cards are used in turn.
    """
    paid: list[Paid] = []
    limiter = trio.CapacityLimiter(at_once)

    async def one(number: int, shop: Shop, fault: str) -> None:
        order = await shop.merchant.new_order(AMOUNT)
        if fault in FAULTS:
            shop.merchant.set_faults(order, FAULTS[fault])
        fields = credit_card(pans[number % len(pans)], cvv) | {"vencimiento": expiry}
        made = Paid(order, shop.code, fault)
        # A client each: the pool of a shared one looks at all its connections at every request.
        async with limiter, Holder(world.url, shop.merchant, timeout_s=timeout_s) as holder:
            began = time.perf_counter()
            made.final = await holder.pay(order, fields)
            made.whole_s = time.perf_counter() - began
            made.pages_s = holder.pages_s
        paid.append(made)

    async with trio.open_nursery() as nursery:
        for number, (shop, fault) in enumerate(wanted):
            nursery.start_soon(one, number, shop, fault)
    return paid


async def lines_of(world: World, count: int, limit_s: float = 20.0) -> dict[str, list[Any]]:
    """Return the acquirer's Bitácora by order, once it has `count` lines."""
    directory = world.config.file(world.config.webpay.bitacora.dir)
    records: list[Any] = []
    with trio.move_on_after(limit_s):
        while len(records) < count:
            await trio.sleep(0.1)
            records = [
                record
                for path in sorted(directory.rglob("tbk_bitacora_*.log"))
                for record in bitacora.parse(path.read_bytes()).records
            ]
    found: dict[str, list[Any]] = {}
    for record in records:
        key = f"{record.value('merchant')} {record.value('order')}"
        found.setdefault(key, []).append(record)
    return found


def rsa_ceiling() -> float:
    """Return private operations with 4096 bits a second on one core, by `openssl speed`.

    Raises:
        BenchError: there is no `openssl`.
    """
    if shutil.which("openssl") is None:
        raise BenchError("openssl is needed for the ceiling")
    done = subprocess.run(
        ["openssl", "speed", "-seconds", "2", "rsa4096"], capture_output=True, text=True, check=True
    )
    found = re.search(r"rsa\s*4096 bits\s+\S+\s+\S+\s+([0-9.]+)", done.stdout)
    if found is None:
        raise BenchError("openssl speed says nothing of rsa4096")
    return float(found[1])


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile in milliseconds; 0 where there are no values."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return round(1000 * ranked[min(int(share * len(ranked)), len(ranked) - 1)], 1)


def run(
    *, payments: int, at_once: int, directory: Path | None, say: Callable[[str], None],
    mode: str = "kcc60", keys: Keys | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure; returns the figures. Raises: BenchError."""
    say("making keys of 4096 bits")
    pairs = keys or new_keys()
    say("openssl speed rsa4096")
    ceiling = rsa_ceiling()
    place = Path(tempfile.mkdtemp(prefix="troncal-webpay-", dir=directory))
    wanted = Wanted(payments, at_once, "direct" if mode == "direct" else "kcc60")
    try:
        return trio.run(_measure, place / "node", pairs, wanted, ceiling, say)
    finally:
        shutil.rmtree(place)


class Wanted(NamedTuple):
    """A run: how many payments, how many of them under way, and what the shop has."""

    payments: int
    at_once: int
    mode: Literal["kcc60", "direct"]


async def _measure(
    place: Path, keys: Keys, wanted: Wanted, ceiling: float, say: Callable[[str], None]
) -> dict[str, Any]:
    async with running(place, [Plan(mode=wanted.mode)], keys, RATES) as world:
        shop, warm_up = world.shops[0], min(wanted.at_once, 20)
        say("sealing orders and answers")
        count = wanted.payments + warm_up
        sealed = [
            (await shop.merchant.payment(await shop.merchant.new_order(AMOUNT))).fields
            for _ in range(count)
        ]
        acks = await trio.to_thread.run_sync(sealed_acks, shop.merchant.kit, count)
        shop.merchant.set_faults(ALL, Faults(no_listen=True))
        async with trio.open_nursery() as nursery:
            await nursery.start(QuickShop(acks).serve, shop.notify_port)
            await _buy(world, sealed[:warm_up], wanted.at_once)
            before = await trio.to_thread.run_sync(world.metrics)
            say(f"{wanted.payments} payments, {wanted.at_once} at once, {wanted.mode}")
            cpu_s, own_s = _cpu_s(world.process.pid), time.process_time()
            began = time.perf_counter()
            bought = await _buy(world, sealed[warm_up:], wanted.at_once)
            seconds = time.perf_counter() - began
            cpu_s = _cpu_s(world.process.pid) - cpu_s
            own_s = time.process_time() - own_s
            after = await trio.to_thread.run_sync(world.metrics)
            nursery.cancel_scope.cancel()
        lines = await lines_of(world, count)
    _check(bought, lines, count)
    return _figures(wanted, bought, seconds, (cpu_s, own_s), ceiling) | {
        "notify_mean_ms": _mean_ms(before, after, "troncal_webpay_notify_seconds"),
        "notify_p99_ms": _bucket_ms(before, after, "troncal_webpay_notify_seconds", 0.99),
        "sign_mean_ms": _mean_ms(before, after, "troncal_webpay_rsa_seconds", 'op="sign"'),
        "open_mean_ms": _mean_ms(before, after, "troncal_webpay_rsa_seconds", 'op="open"'),
    }


async def _buy(
    world: World, sealed: Sequence[tuple[tuple[str, str], ...]], at_once: int
) -> list[Bought]:
    """Pay all of them on as many connections as there are payments at once."""
    left, bought = iter(sealed), []
    card = credit_card(APPROVED_PAN, CVV)

    async def one() -> None:
        holder = QuickHolder(world.url)
        try:
            for fields in left:
                bought.append(await holder.pay(fields, card))
        finally:
            await holder.aclose()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(one)
    return bought


def _check(bought: Sequence[Bought], lines: Mapping[str, Sequence[Any]], count: int) -> None:
    """A figure counts only if every payment stood, for its holder and in the Bitácora."""
    bad = sum(not each.success for each in bought)
    if bad:
        raise BenchError(f"{bad} of {len(bought)} payments did not end in success")
    ends = [record.outcome_name for records in lines.values() for record in records]
    if ends != ["CONFIRMED"] * count:
        raise BenchError(f"the Bitácora has {len(ends)} lines, and {count} were paid")


def _figures(
    wanted: Wanted, bought: Sequence[Bought], seconds: float, cpu_s: tuple[float, float],
    ceiling: float,
) -> dict[str, Any]:  # fmt: skip
    payments, cores = wanted.payments, len(os.sched_getaffinity(0))
    operations = OPERATIONS[wanted.mode]
    node_s, peers_s = (each / payments for each in cpu_s)
    pages = [each for b in bought for each in b.pages_s]
    return {
        "mode": wanted.mode,
        "payments": payments,
        "at_once": wanted.at_once,
        "seconds": round(seconds, 2),
        "payments_per_s": round(payments / seconds, 1),
        "node_cpu_ms_per_payment": round(1000 * node_s, 1),
        "peers_cpu_ms_per_payment": round(1000 * peers_s, 1),
        "payments_per_s_and_core_of_the_node": round(1 / node_s, 1) if node_s else 0.0,
        "openssl_rsa4096_private_per_s_core": ceiling,
        "private_operations_per_payment": operations,
        "rsa_share_of_node_cpu": round(operations / ceiling / node_s, 3) if node_s else 0.0,
        "ceiling_payments_per_s": round(ceiling * cores / operations, 1),
        "share_of_ceiling": round(payments / seconds / (ceiling * cores / operations), 3),
        "page_p50_ms": percentile(pages, 0.5),
        "page_p99_ms": percentile(pages, 0.99),
        "payment_p50_ms": percentile([b.whole_s for b in bought], 0.5),
        "payment_p99_ms": percentile([b.whole_s for b in bought], 0.99),
        "cores": cores,
    }


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mean_ms(
    before: Mapping[str, float], after: Mapping[str, float], name: str, label: str = ""
) -> float:
    """Return the mean of what a histogram took in between."""
    total = _gained(before, after, f"{name}_sum", label)
    count = _gained(before, after, f"{name}_count", label)
    return round(1000 * total / count, 1) if count else 0.0


def _gained(
    before: Mapping[str, float], after: Mapping[str, float], name: str, label: str
) -> float:
    keys = [key for key in after if key.partition("{")[0] == name and label in key]
    return sum(after[key] - before.get(key, 0.0) for key in keys)


def _bucket_ms(
    before: Mapping[str, float], after: Mapping[str, float], name: str, share: float
) -> float:
    """Return the upper bound of the bucket that holds a percentile."""
    buckets: Counter[float] = Counter()
    for key in after:
        found = re.match(rf'{name}_bucket\{{.*le="([^"]+)"', key)
        if found:
            buckets[float(found[1])] += int(after[key] - before.get(key, 0.0))
    ranked = sorted(buckets.items())
    if not ranked:
        return 0.0
    wanted = share * ranked[-1][1]
    return round(1000 * next(bound for bound, count in ranked if count >= wanted), 1)
