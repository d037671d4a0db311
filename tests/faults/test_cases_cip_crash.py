"""Crash cases G07, G08 and Q04 of the payment application, with processes that are killed."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from switch.admin_socket import ProvisioningError
from switch.cli.base import CliError
from switch.cli.cip_world import APP, Prepared, World, prepare, running
from switch.cli.provision import ask_node, provision
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
    with trio.fail_after(120):
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
        with trio.fail_after(120):
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


async def test_q04_killed_between_cuts_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """Reports are cut all the time while sites pay and the node is killed: every confirmed payment
    is in one run, every run has its file, and what is sent again says the same."""
    settings = {"cip.budget_auth_s": 20.0}
    prepared = await trio.to_thread.run_sync(
        lambda: prepare(tmp_path / "node", settings, report_folder="reports")
    )
    told: dict[str, str] = {}
    numbers = iter(range(10_000))
    cuts: list[str] = []
    for life in range(1, ROUNDS + 2):
        async with doomed(prepared) as world, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(_pay_until_it_dies, world.site, numbers, told)
            nursery.start_soon(_cut_until_it_dies, prepared, cuts)
            with trio.fail_after(120):
                while len(cuts) < 3 * life or sum(map(bool, told.values())) < 6 * life:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            await kill(world.process)
    async with running(prepared) as world:
        for reference in list(told):
            order = world.site._order(0, reference)
            await world.site.look(order)
            if order.http_status == 404:
                await world.site.pay(150_000, CARD, reference)
            assert await until_known(world.site, reference) == "CONFIRMED"
        for command, values in (("cip_report_run", {"application": APP}),
                                ("cip_report_send", {"run": APP})):  # fmt: skip
            await trio.to_thread.run_sync(lambda c=command, v=values: _command(prepared, c, **v))
        with trio.fail_after(120):
            while {run["state"] for run in await _runs(prepared)} != {"ACKED"}:  # noqa: ASYNC110
                await trio.sleep(0.05)
        runs = await _runs(prepared)
    payments, _ = books(prepared)
    lines = {run["run"]: _details(prepared, run["run"]) for run in runs}
    own = [run["run"] for run in runs if not run["repeats"]]
    assert sorted(line.split(b",")[3].decode() for name in own for line in lines[name]) == sorted(
        payments
    )
    assert set(cuts) <= set(own), "what was told to be cut is there"
    (repeat,) = [run for run in runs if run["repeats"]]
    assert lines[repeat["run"]] == lines[repeat["repeats"]]
    assert {repeat["sha256"]} == {r["sha256"] for r in runs if r["run"] == repeat["repeats"]}


def _command(prepared: Prepared, command: str, **values: Any) -> Any:
    return provision(prepared.config, command, **values)


async def _runs(prepared: Prepared) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await trio.to_thread.run_sync(
        lambda: _command(prepared, "cip_report_list", application=APP)
    )
    return found


def _details(prepared: Prepared, run: str) -> list[bytes]:
    """The lines of the one file of a run."""
    (file,) = (prepared.config.data / "reports").glob(f"*-{run}.csv")
    return [line for line in file.read_bytes().splitlines() if line.startswith(b"D,")]


async def _cut_until_it_dies(prepared: Prepared, cuts: list[str]) -> None:
    """Only through a running node: a command on a stopped directory would open it itself."""
    while True:
        try:
            run = await trio.to_thread.run_sync(
                lambda: ask_node(prepared.config, "cip_report_run", application=APP)
            )
        except (ProvisioningError, CliError, OSError):
            return
        cuts.append(run["run"])
        await trio.sleep(0.05)
