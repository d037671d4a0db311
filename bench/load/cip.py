"""The payment application under load: 100 customers pay at once, in each of the three modes.

Everything is real but the people: a node of its own with its default settings, passwords at their
full cost, a site, customers who walk the pages, and somebody at the service desk who looks all the
time. What people take to type does not count; what they wait because the service is occupied does.
"""

import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx
import trio
from argon2 import PasswordHasher
from msgspec import Struct

from bench.load.server import BenchError
from switch.cli.base import CliError
from switch.cli.cip_world import APP, CUSTOMER, Prepared, World, prepare, running
from switch.config import Config
from switch.flows import cip_records as rec
from switch.flows.cip_counts import HUMAN_STEP
from switch.flows.cip_records import Payment
from switch.journal.store import State
from switch.simulators.cip_people import AGAIN_S, TRIES, Astray, Customer, DeskUser

AMOUNT: Final = 150_000
CARD: Final = {"pan": "4111111111111111", "expiry": "12/30", "cvv": "123"}
BUDGET_S: Final = {"gateway": 10.0, "partial": 10.0, "full": 9.0}
MODES: Final = tuple(BUDGET_S)
HASHES: Final = 15
LOOK_EVERY_S: Final = 0.05
PROBE_EVERY_S: Final = 0.05
AFTER_S: Final = 1.2  # the desk goes on looking, so that the last payments are seen too
SOURCE_STEPS: Final = {"gateway": "6-7", "partial": "6-7", "full": "5-6"}


class Told(Struct, frozen=True):
    """One payment as its customer saw it. Seconds of machines; `busy`: tries again after a 503."""

    code: str
    machine_s: float
    busy: int = 0


async def full(world: World) -> Told:
    """Full mode, from the entry page to the confirmation."""
    async with Customer(world.url, CUSTOMER, world.password) as person:
        code = await person.full(APP, AMOUNT)
        return Told(code, person.machine_s, person.busy)


async def partial(world: World) -> Told:
    """Partial mode with a signed context, from the site's order to the confirmation."""
    began = time.monotonic()
    status, told = await world.site.open_session(AMOUNT)
    if status != 201:
        raise Astray(f"session: {status}")
    opened_s = time.monotonic() - began
    async with Customer(world.url, CUSTOMER, world.password) as person:
        code = await person.partial(told["url"], AMOUNT)
        return Told(code, opened_s + person.machine_s, person.busy)


async def gateway(world: World) -> Told:
    """Gateway mode, steps 3 to 10; what was shed is sent again under the same reference."""
    began, reference = time.monotonic(), ""
    for busy in range(TRIES):
        order = await world.site.pay(AMOUNT, CARD, reference)
        if order.http_status != 503:
            return Told(order.cip, time.monotonic() - began, busy)
        reference = order.reference
        await trio.sleep(AGAIN_S)
    raise Astray("gateway: 503")


WALKS: Final = {"gateway": gateway, "partial": partial, "full": full}


async def rush(world: World, mode: str, customers: int, spread_s: float) -> list[Told]:
    """All of them at once, their beginnings spread evenly; without those who gave up."""
    told: list[Told] = []

    async def customer(number: int) -> None:
        await trio.sleep(spread_s * number / customers)
        try:
            told.append(await WALKS[mode](world))
        except (Astray, httpx.HTTPError):
            return  # a machine that is far too busy: counted by who is missing

    async with trio.open_nursery() as nursery:
        for number in range(customers):
            nursery.start_soon(customer, number)
    return told


async def probe(world: World, times_s: list[float]) -> None:
    """How long a request takes that needs no password, again and again."""
    async with httpx.AsyncClient(base_url=world.url, timeout=30, trust_env=False) as client:
        while True:
            began = time.perf_counter()
            await client.get("/cip/v1/status")
            times_s.append(time.perf_counter() - began)
            await trio.sleep(PROBE_EVERY_S)


def percentiles(values: Sequence[float], unit: float = 1000.0) -> dict[str, float]:
    """p50, p99 and maximum in `unit`s of a second; none for no values."""
    if not values:
        return {}
    ranked = sorted(values)

    def at(share: float) -> float:
        return round(unit * ranked[min(int(share * len(ranked)), len(ranked) - 1)], 2)

    return {"p50": at(0.5), "p99": at(0.99), "max": round(unit * ranked[-1], 2)}


def hash_cost_ms(config: Config) -> float:
    """The median time of checking one password with nothing beside it."""
    auth = config.cip.auth
    hasher = PasswordHasher(
        time_cost=auth.time_cost, memory_cost=auth.memory_kib, parallelism=auth.parallelism
    )
    hashed = hasher.hash("correct horse battery")
    times = []
    for _ in range(HASHES):
        began = time.perf_counter()
        hasher.verify(hashed, "correct horse battery")
        times.append(time.perf_counter() - began)
    return round(1000 * statistics.median(times), 1)


def run(
    *, customers: int, spread_s: float, modes: Sequence[str], directory: Path | None,
    say: Callable[[str], None], settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure each mode by itself; returns the figures.

    Args:
        settings: of the node, where they are not the default ones.

    Raises:
        BenchError: a payment was not confirmed, or the node did not do as it should.
    """
    place = Path(tempfile.mkdtemp(prefix="troncal-cip-", dir=directory))
    try:
        say("making a node, an application and its users")
        prepared = prepare(place / "node", settings)
        cost_ms = hash_cost_ms(prepared.config)
        return trio.run(_measure, prepared, customers, spread_s, modes, cost_ms, say)
    except* (Astray, CliError, httpx.HTTPError) as errors:
        raise BenchError("; ".join(_told(errors))) from None
    finally:
        shutil.rmtree(place)


def _told(error: BaseException) -> list[str]:
    """What the errors inside groups say."""
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in _told(inner)]
    return [str(error) or type(error).__name__]


async def _measure(
    prepared: Prepared, customers: int, spread_s: float, modes: Sequence[str], cost_ms: float,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    told: dict[str, list[Told]] = {}
    probed: dict[str, list[float]] = {}
    warm: set[str] = set()
    async with (
        running(prepared) as world,
        DeskUser(world.url, APP, "aura", prepared.password) as desk,
        trio.open_nursery() as watching,
    ):
        for mode in modes:  # templates, connections, the read model
            warm.add((await WALKS[mode](world)).code.replace("-", ""))
        watching.start_soon(desk.watch, LOOK_EVERY_S)
        for mode in modes:
            say(f"{customers} customers pay in {mode} mode")
            async with trio.open_nursery() as probing:
                probing.start_soon(probe, world, probed.setdefault(mode, []))
                told[mode] = await rush(world, mode, customers, spread_s)
                probing.cancel_scope.cancel()
        await trio.sleep(AFTER_S)
        queue = await _histogram(world, "cip_auth")
        watching.cancel_scope.cancel()
    found = await trio.to_thread.run_sync(_payments, prepared.config)
    payments = [
        p for p in found if not any(p.code("CIP") == code.replace("-", "") for code in warm)
    ]
    return {
        "customers": customers, "spread_s": spread_s,
        "hash": {"alone_ms": cost_ms, **queue},
        "modes": {
            mode: _of_mode(mode, told[mode], payments)
            | {"gave_up": customers - len(told[mode]), "status_ms": percentiles(probed[mode])}
            for mode in modes
        },
        "seen_ms": _seen(desk, payments),
    }  # fmt: skip


def _payments(config: Config) -> list[Payment]:
    """Payments as they are on disk."""
    state = State(config, config.data)
    state.recover()
    return [rec.decode_payment(value) for _, value in state.records.items(rec.PAYMENTS)]


def _of_mode(mode: str, told: Sequence[Told], payments: Sequence[Payment]) -> dict[str, Any]:
    """Times of one mode: its customers', and each step of the node's own record. Raises:
    BenchError where a payment failed."""
    own = [payment for payment in payments if payment.mode == mode]
    codes = {one.code.replace("-", "") for one in told}
    if "" in codes or len(codes) != len(told) or not codes <= {p.code("CIP") for p in own}:
        raise BenchError(f"{mode}: not every customer has a confirmation of his own")
    steps: dict[str, list[float]] = defaultdict(list)
    without: list[float] = []
    for payment in own:
        machine_ns = 0
        for (first, began_ns), (last, at_ns) in pairwise(sorted(payment.steps.items())):
            if last != HUMAN_STEP.get(mode):
                name = f"{first}-{last}"
                steps[name].append((at_ns - began_ns) / 1e9)
                machine_ns += 0 if name == SOURCE_STEPS[mode] else at_ns - began_ns
        without.append(machine_ns / 1e9)
    times = [one.machine_s for one in told]
    return {
        "payments": len(told),
        "budget_s": BUDGET_S[mode],
        "customer_s": percentiles(times, 1.0),
        "over_budget": sum(took > BUDGET_S[mode] for took in times),
        "told_503": sum(one.busy for one in told),
        "steps_ms": {name: percentiles(values) for name, values in sorted(steps.items())},
        "without_source_ms": percentiles(without),
    }


def _seen(desk: DeskUser, payments: Sequence[Payment]) -> dict[str, Any]:
    """From the writing of the codes until the desk shows them, the desk's pause included."""
    late: dict[str, list[float]] = {"view": [], "csv": []}
    for payment in payments:
        for name, seen in (("view", desk.view), ("csv", desk.listed)):
            if payment.id in seen:
                late[name].append((seen[payment.id] - payment.confirmed_ns) / 1e9)
    missing = sum(payment.id not in desk.listed for payment in payments)
    return {name: percentiles(values) for name, values in late.items()} | {"missing": missing}


async def _histogram(world: World, name: str) -> dict[str, float]:
    """Mean times of password checks, in the queue and hashing, from the node's metrics."""
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        text = (await client.get(f"{world.ops}/metrics")).text
    values = {}
    for line in text.splitlines():
        if line.startswith(f"troncal_{name}_seconds_"):
            key, _, value = line.rpartition(" ")
            values[key] = float(value)
    found: dict[str, float] = {}
    for stage in ("queue", "hash"):
        count = values.get(f'troncal_{name}_seconds_count{{stage="{stage}"}}', 0.0)
        total = values.get(f'troncal_{name}_seconds_sum{{stage="{stage}"}}', 0.0)
        found[f"{stage}_mean_ms"] = round(1000 * total / count, 1) if count else 0.0
        found["checks"] = count
    return found
