"""Gateway cases with the bank source: a node and `troncal sim bank`, over a real ISO 8583 link.

The simulated bank keeps its book honestly whatever it does to its answers, so at the end it is the
judge: what CIP told its site is what the bank has posted, and nothing else is.
"""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from switch.cli.apart import free_port
from switch.cli.base import CliError
from switch.cli.cip_world import APP, Prepared, World, prepare, running
from switch.cli.provision import ask_node, provision
from switch.flows import cip_records as rec
from switch.journal.store import State
from switch.simulators.cip_sof import Order
from tests.e2e.test_sim import keys_file, sim

pytestmark = pytest.mark.timeout(240)
BANK = "banco1"
CARD = {"pan": "4111111111111111", "expiry": "12/30", "cvv": "123"}
SOURCE_S = 4.0
LINK = f"""
[links.{BANK}]
institution = "0011"
answer_s = 2.0
backoff_max_s = 0.5
"""
SWALLOWED, DROPPED, CLOSED, LATE, STUBBORN = 200_000, 300_000, 400_000, 500_000, 600_000
RULES = f"""
[[rule]]
operation = "hold"
amount = {SWALLOWED}
fault = "swallow"
[[rule]]
operation = "hold"
amount = {DROPPED}
fault = "drop"
[[rule]]
operation = "hold"
amount = {CLOSED}
fault = "close"
[[rule]]
operation = "hold"
amount = {LATE}
fault = "late"
argument = 9
[[rule]]
operation = "hold"
amount = {STUBBORN}
fault = "drop"
[[rule]]
operation = "release"
amount = {STUBBORN}
first = 2
fault = "drop"
"""


def bank_house(directory: Path, **values: Any) -> tuple[Prepared, list[str]]:
    """A provisioned node whose application asks a bank, and how to start that bank."""
    settings = {"cip.budget_auth_s": 20.0, "cip.budget_source_s": SOURCE_S}
    port = free_port()
    prepared = prepare(directory / "node", settings, source="bank", bank=BANK, **values)
    with prepared.config.path.open("a", encoding="utf-8") as toml:
        toml.write(LINK)
    keys = provision(
        prepared.config, "host_add", name=BANK, dialect="bank", connect=f"127.0.0.1:{port}"
    )
    rules = directory / "rules.toml"
    rules.write_text(RULES)
    where = ["--listen", f"127.0.0.1:{port}", "--keys", keys_file(directory, keys)]
    return prepared, [*where, "--rules", str(rules)]


async def link_is_up(world: World) -> None:
    with trio.fail_after(120):
        async with httpx.AsyncClient(timeout=120) as client:
            while True:
                told = (await client.get(f"{world.url}/cip/v1/status")).json()
                if told["sources"] == {"bank": "up"}:
                    return
                await trio.sleep(0.05)


def payments(prepared: Prepared) -> dict[str, Any]:
    """Payments by reference, from what is durable."""
    state = State(prepared.config, prepared.config.data)
    state.recover()
    found = [rec.decode_payment(value) for _, value in state.records.items(rec.PAYMENTS)]
    return {payment.client_ref: payment for payment in found}


def agree(prepared: Prepared, book: dict[str, Any]) -> dict[str, str]:
    """The bank has posted what is CONFIRMED and nothing else; statuses by reference."""
    found = payments(prepared)
    posted = {key: e["state"] == "CAPTURADA" for key, e in book["holds"].items()}
    for payment in found.values():
        is_posted = posted.pop(f"0011{payment.source_ref}", False)
        assert is_posted == (payment.status == "CONFIRMED"), payment
    assert not any(posted.values()), "posted at the bank, and known to nobody"
    return {reference: payment.status for reference, payment in found.items()}


async def settled(world: World, reference: str) -> Order:
    """Ask with the site's own reference until the payment is decided."""
    order = world.site._order(0, reference)
    with trio.fail_after(120):
        while True:
            try:
                await world.site.look(order)
            except httpx.HTTPError:
                order.status = ""
            if order.status not in ("", "PENDING", "SUBMITTED"):
                return order
            await trio.sleep(0.1)


async def test_g05_g06_every_way_an_answer_fails_to_come(tmp_path: Path) -> None:
    prepared, where = await trio.to_thread.run_sync(lambda: bank_house(tmp_path))
    amounts = {
        "approved": 150_000, "declined": 150_051, "swallowed": SWALLOWED, "dropped": DROPPED,
        "closed": CLOSED, "late": LATE, "stubborn": STUBBORN,
    }  # fmt: skip
    first: dict[str, httpx.Response] = {}

    async def pay(world: World, reference: str, amount: int) -> None:
        first[reference] = await world.site._post(
            "/cip/v1/gateway/payments",
            {
                "client_ref": reference,
                "transaction": {
                    "amount": amount, "currency": "PYG", "instrument": {"type": "card", **CARD},
                },
            },
        )  # fmt: skip

    async with sim("bank", *where) as bank, running(prepared) as world:
        await link_is_up(world)
        await pay(world, "approved", amounts["approved"])
        await pay(world, "declined", amounts["declined"])
        async with trio.open_nursery() as nursery:
            for reference in ("swallowed", "dropped", "late", "stubborn"):
                nursery.start_soon(pay, world, reference, amounts[reference])
        await pay(world, "closed", amounts["closed"])
        for reference in amounts:
            await settled(world, reference)
        voided = await world.site._post(
            f"/cip/v1/gateway/payments/{first['approved'].json()['payment_id']}/void",
            {"client_ref": "V-1"},
        )
        assert voided.status_code in (201, 202)
        with trio.fail_after(120):
            while (await settled(world, "approved")).status != "VOIDED":  # noqa: ASYNC110
                await trio.sleep(0.05)
        book = await bank.end()
    assert {reference: answer.status_code for reference, answer in first.items()} == {
        "approved": 201, "declined": 402, "swallowed": 202, "dropped": 202, "late": 202,
        "stubborn": 202, "closed": 202,
    }  # fmt: skip
    assert agree(prepared, book) == {
        "approved": "VOIDED", "declined": "DECLINED", "swallowed": "CONFIRMED",
        "dropped": "VOIDED", "late": "CONFIRMED", "closed": "CONFIRMED", "stubborn": "VOIDED",
    }  # fmt: skip
    assert payments(prepared)["declined"].reason == "funds"
    counters = book["counters"]
    assert counters["0200"] == len(amounts), "nothing is submitted twice"
    assert counters["0600"] >= 4
    assert counters["0420"] == 3
    assert counters["0421"] >= 2, "a reversal without an answer is repeated"


async def test_g00_a_bank_is_taken_into_use_without_a_restart(tmp_path: Path) -> None:
    """Host, link and application are told to a node that runs; the next payment goes there."""
    settings = {"cip.budget_auth_s": 20.0, "cip.budget_source_s": 60.0,
                "cip.budget_full_total_s": 60.0}  # fmt: skip
    prepared = await trio.to_thread.run_sync(lambda: prepare(tmp_path / "node", settings))
    config, port = prepared.config, free_port()

    def told() -> list[str]:
        keys = provision(config, "host_add", name=BANK, dialect="bank", connect=f"127.0.0.1:{port}")
        with config.path.open("a", encoding="utf-8") as toml:
            toml.write(LINK)
        ask_node(config, "reload")
        values = {"source": "bank", "bank": BANK}
        provision(config, "cip_app_set", id=APP, values=values)
        return ["--listen", f"127.0.0.1:{port}", "--keys", keys_file(tmp_path, keys)]

    async with running(prepared) as world:
        assert (await world.site.pay(150_000, CARD, "INV-1")).status == "CONFIRMED"
        where = await trio.to_thread.run_sync(told)
        async with sim("bank", *where) as bank:
            await link_is_up(world)
            assert (await world.site.pay(150_000, CARD, "INV-2")).status == "CONFIRMED"
            book = await bank.end()
    assert book["counters"]["0200"] == 1
    assert [e["state"] for e in book["holds"].values()] == ["CAPTURADA"]


WAYS = [True, *([False] if os.environ.get("TRONCAL_TORTURE") == "1" else [])]


@pytest.mark.parametrize("inquiry", WAYS, ids=["inquired", "reversed"][: len(WAYS)])
async def test_g07_killed_while_the_bank_decides(tmp_path: Path, inquiry: bool) -> None:
    """It has posted and its answer is lost with the node: asked about, or undone, at the start."""
    prepared, where = await trio.to_thread.run_sync(
        lambda: bank_house(tmp_path, bank_inquiry=inquiry)
    )
    async with sim("bank", *where) as bank:
        async with doomed(prepared) as world, trio.open_nursery() as nursery:
            await link_is_up(world)

            async def ask(world: World = world) -> None:
                with pytest.raises(httpx.HTTPError):
                    await world.site.pay(SWALLOWED, CARD, "INV-1")

            nursery.start_soon(ask)
            order = world.site._order(0, "INV-1")
            with trio.fail_after(120):
                while order.status not in ("SUBMITTED", "PENDING"):
                    await world.site.look(order)
            os.kill(world.process.pid, signal.SIGKILL)
            await world.process.wait()
        async with running(prepared) as world:
            await link_is_up(world)
            end = "CONFIRMED" if inquiry else "VOIDED"
            assert (await settled(world, "INV-1")).status == end
        book = await bank.end()
    assert agree(prepared, book) == {"INV-1": end}
    assert book["counters"]["0200"] == 1


@asynccontextmanager
async def doomed(prepared: Prepared) -> AsyncIterator[World]:
    """A world whose node is killed: that it did not end well is no news."""
    try:
        async with running(prepared) as world:
            yield world
    except* CliError:
        assert world.process.returncode == -signal.SIGKILL
