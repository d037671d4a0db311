"""Webpay under load: many cardholders at once, at shops that answer, refuse, hang, drop or babble.

Everything is real but the people: holders speak HTTP with the node's pages, the node ISO 8583 with
an issuer's host and HTTP with the shops' kits. A payment costs the node three private operations
with 4096 bits, so two ceilings are given beside the figures: what `openssl speed` says the machine
can do, and a third of it.
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
from typing import Any, Final

import httpx
import trio
from msgspec import Struct

from bench.load.server import BenchError
from protocols.webpay import bitacora
from switch.cli.webpay_world import Keys, Plan, Shop, World, new_keys, running
from switch.simulators.raw_answers import Delay
from switch.simulators.webpay_issuer import APPROVED_PAN, CVV
from switch.simulators.webpay_merchant import Faults
from switch.simulators.webpay_people import Holder, credit_card

PAYMENT_S: Final = 120.0
OPS_A_PAYMENT: Final = 3
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
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(timeout=timeout_s, limits=limits) as client:

        async def one(number: int, shop: Shop, fault: str) -> None:
            order = await shop.merchant.new_order(AMOUNT)
            if fault in FAULTS:
                shop.merchant.set_faults(order, FAULTS[fault])
            holder = Holder(world.url, shop.merchant, client)
            fields = credit_card(pans[number % len(pans)], cvv) | {"vencimiento": expiry}
            made = Paid(order, shop.code, fault)
            async with limiter:
                began = time.perf_counter()
                made.final = await holder.pay(order, fields)
                made.whole_s = time.perf_counter() - began
            made.pages_s = holder.pages_s
            client.cookies.clear()
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
    keys: Keys | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure; returns the figures. Raises: BenchError."""
    say("making keys of 4096 bits")
    pairs = keys or new_keys()
    ceiling = rsa_ceiling()
    place = Path(tempfile.mkdtemp(prefix="troncal-webpay-", dir=directory))
    try:
        return trio.run(_measure, place / "node", pairs, payments, at_once, ceiling, say)
    finally:
        shutil.rmtree(place)


async def _measure(
    place: Path, keys: Keys, payments: int, at_once: int, ceiling: float,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    async with running(place, [Plan()], keys, RATES) as world:
        shop = world.shops[0]
        await pay_all(world, [(shop, "answer")] * min(at_once, 20), at_once=at_once)
        before = await trio.to_thread.run_sync(world.metrics)
        cpu_before = _cpu_s(world.process.pid)
        say(f"{payments} payments, {at_once} at once")
        began = time.perf_counter()
        paid = await pay_all(world, [(shop, "answer")] * payments, at_once=at_once)
        seconds = time.perf_counter() - began
        cpu_s = _cpu_s(world.process.pid) - cpu_before
        after = await trio.to_thread.run_sync(world.metrics)
    bad = [p for p in paid if not p.success]
    if bad:
        raise BenchError(f"{len(bad)} of {payments} payments did not end in success")
    pages = [each for p in paid for each in p.pages_s]
    cores = len(os.sched_getaffinity(0))
    return {
        "payments": payments,
        "at_once": at_once,
        "seconds": round(seconds, 2),
        "payments_per_s": round(payments / seconds, 1),
        "node_cpu_ms_per_payment": round(1000 * cpu_s / payments, 1),
        "rsa_share_of_node_cpu": round(OPS_A_PAYMENT / ceiling / (cpu_s / payments), 3),
        "rsa4096_private_per_s_core": ceiling,
        "ceiling_payments_per_s": round(ceiling * cores / OPS_A_PAYMENT, 1),
        "share_of_ceiling": round(payments / seconds / (ceiling * cores / OPS_A_PAYMENT), 3),
        "page_p50_ms": percentile(pages, 0.5),
        "page_p99_ms": percentile(pages, 0.99),
        "payment_p50_ms": percentile([p.whole_s for p in paid], 0.5),
        "payment_p99_ms": percentile([p.whole_s for p in paid], 0.99),
        "notify_mean_ms": _mean_ms(before, after, "troncal_webpay_notify_seconds"),
        "notify_p99_ms": _bucket_ms(before, after, "troncal_webpay_notify_seconds", 0.99),
        "cores": cores,
    }


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mean_ms(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    """Return the mean of what a histogram took in between."""
    total = _gained(before, after, f"{name}_sum")
    count = _gained(before, after, f"{name}_count")
    return round(1000 * total / count, 1) if count else 0.0


def _gained(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    keys = [key for key in after if key == name or key.startswith(name + "{")]
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
