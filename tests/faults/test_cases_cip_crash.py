"""Crash cases G07 and G08 of the payment application, with processes that are killed."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from switch.cli.base import CliError
from switch.cli.cip_world import Prepared, World, prepare, running
from switch.flows import cip_records as rec
from switch.journal.store import State
from switch.simulators.cip_sof import SofSite

pytestmark = pytest.mark.timeout(240)
CARD = {"pan": "4111111111111111", "expiry": "12/30", "cvv": "123"}
ROUNDS = 10 if os.environ.get("TRONCAL_TORTURE") == "1" else 1


def books(prepared: Prepared) -> tuple[dict[str, Any], int]:
    """Payments by reference, and what the source took money for, from what is durable."""
    state = State(prepared.config, prepared.config.data)
    state.recover()
    payments = [rec.decode_payment(value) for _, value in state.records.items(rec.PAYMENTS)]
    taken = [rec.decode_simulated(value) for _, value in state.records.items(rec.SIMULATED)]
    return {p.client_ref: p for p in payments}, sum(s.state == "approved" for s in taken)


async def kill(process: trio.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()


@asynccontextmanager
async def doomed(prepared: Prepared) -> AsyncIterator[World]:
    """A world whose node is killed: that it did not end well is no news."""
    try:
        async with running(prepared) as world:
            yield world
    except* CliError:
        assert world.process.returncode == -signal.SIGKILL


async def until_known(site: SofSite, reference: str) -> str:
    """What a site does that got no answer: ask with its own reference, until it is decided."""
    order = site._order(0, reference)
    with trio.fail_after(90):
        while True:
            try:
                await site.look(order)
            except httpx.HTTPError:
                order.status = ""
            if order.status not in ("", "PENDING", "SUBMITTED"):
                return order.status
            await trio.sleep(0.1)


async def test_g07_killed_between_approval_and_update(tmp_path: Path) -> None:
    """The source has approved (ending 73), CIP dies before it hears of it."""
    settings = {  # on a busy machine the usual 6 s are over before the kill
        "cip.budget_auth_s": 20.0, "cip.budget_source_s": 60.0, "cip.budget_full_total_s": 60.0,
    }  # fmt: skip
    prepared = await trio.to_thread.run_sync(lambda: prepare(tmp_path / "node", settings))
    async with doomed(prepared) as world, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(httpx.HTTPError):
                await world.site.pay(150_073, CARD, "INV-1")

        nursery.start_soon(ask)
        with trio.fail_after(60):
            while await status_of(world.site, "INV-1") != "SUBMITTED":  # noqa: ASYNC110
                await trio.sleep(0.05)
        await kill(world.process)
    assert books(prepared)[0]["INV-1"].status == "SUBMITTED"
    async with running(prepared) as world:
        assert await until_known(world.site, "INV-1") == "CONFIRMED"
        order = world.site.orders["INV-1"]
        assert order.cip
        assert order.source
    payments, charges = books(prepared)
    assert len(payments) == charges == 1


async def status_of(site: SofSite, reference: str) -> str:
    order = site._order(0, reference)
    await site.look(order)
    return order.status


async def test_g08_killed_at_any_moment_nothing_is_paid_twice(tmp_path: Path) -> None:
    """Sites pay while the node is killed; each asks and repeats by its own reference only."""
    settings = {"cip.budget_auth_s": 20.0}
    prepared = await trio.to_thread.run_sync(lambda: prepare(tmp_path / "node", settings))
    told: dict[str, str] = {}
    numbers = iter(range(10_000))
    for _ in range(ROUNDS):
        async with doomed(prepared) as world, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(_pay_until_it_dies, world.site, numbers, told)
            await trio.sleep(1.0)
            await kill(world.process)
    async with running(prepared) as world:
        for reference in list(told):
            order = world.site._order(0, reference)
            await world.site.look(order)
            if order.http_status == 404:  # never accepted: repeated with the same reference
                order = await world.site.pay(150_000, CARD, reference)
            assert await until_known(world.site, reference) == "CONFIRMED"
            assert told[reference] in ("", order.cip), "a told confirmation never changes"
    payments, charges = books(prepared)
    assert sorted(payments) == sorted(told)
    assert charges == len(payments)
    assert len({p.code("CIP") for p in payments.values()}) == len(payments)


async def _pay_until_it_dies(site: SofSite, numbers: Any, told: dict[str, str]) -> None:
    while True:
        reference = f"INV-{next(numbers)}"
        told[reference] = ""
        try:
            order = await site.pay(150_000, CARD, reference)
        except httpx.HTTPError:
            return
        assert order.status == "CONFIRMED", order
        told[reference] = order.cip
