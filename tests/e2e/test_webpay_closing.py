"""Webpay with everything real but the people: closing pages that reject, a bank that is late.

Acceptance cases whose one half is the shop's validation and whose other half is the reversal.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from bench.load.webpay import lines_of
from protocols.webpay.bitacora import parse
from switch.cli.webpay_world import Plan, Shop, World, running
from switch.simulators.rules import Rule, Rules
from switch.simulators.webpay_merchant import Faults
from switch.simulators.webpay_people import Holder, credit_card
from switch.web.webpay_shop import MerchantKit, reconcile
from tests.e2e.webpay_world import keys
from tests.faults.test_webpay_load import issuer_at_rest
from tests.webpay_shops import APPROVED_PAN, CVV, private

pytestmark = pytest.mark.timeout(240)
ANY = 'order_policy = "any"'
PLANS = (
    Plan(name="Con kit", more=ANY), Plan(name="Directa", mode="direct", more=ANY),
    Plan(name="Con otra llave", mode="direct"),
)  # fmt: skip
CARD = credit_card(APPROVED_PAN, CVV)


async def pay(world: World, shop: Shop, order: str, before: Callable[[], object] = bool) -> str:
    """Pay an order; `before` is what happens at the shop while its holder fills in the form."""
    async with Holder(world.url, shop.merchant) as holder:
        page = await holder.arrive(order)
        await trio.to_thread.run_sync(before)
        return await holder.end(await holder.submit(page, CARD))


def state(shop: Shop, order: str) -> str:
    found = shop.merchant.orders.order(shop.code, order)
    assert found is not None
    return found.state


async def ends(world: World, count: int) -> dict[str, list[tuple[str, str | None]]]:
    """Prefix and TBK_RESPUESTA of the lines, by shop and order."""
    found = await lines_of(world, count)
    return {
        key: [(record.prefix, record.value("respuesta")) for record in records]
        for key, records in found.items()
    }


def amend(shop: Shop, order: str, statement: str) -> Callable[[], None]:
    """Change the shop's data base behind its back."""

    def change() -> None:
        base = sqlite3.connect(shop.merchant.orders._path, timeout=20)
        with base:
            assert base.execute(statement, (order,)).rowcount == 1
        base.close()

    return change


async def test_WP_49_WP_50_WP_52_what_the_closing_page_says_is_done(tmp_path: Path) -> None:
    async with running(tmp_path / "node", PLANS, keys()) as world:
        *shops, stranger = world.shops
        async with trio.open_nursery() as nursery:
            for shop in shops:
                nursery.start_soon(_each, world, shop)
            nursery.start_soon(_another_key, world, stranger)
        found = await ends(world, 13)
        await issuer_at_rest(world)
        for shop in shops:
            lines = {key.split()[1]: line for key, line in found.items() if shop.code in key}
            assert lines == {
                "AMOUNT": [("ERR", "0")], "GONE": [("ERR", "0")],
                "TWICE": [("ACK", "0"), ("ERR", "0")],
                "BEFORE": [("ERR", "0")], "AFTER": [("ERR", "0")],
            }  # fmt: skip
            orders = [state(shop, order) for order in ("AMOUNT", "TWICE", "BEFORE", "AFTER")]
            assert orders == ["SENT", "PAID", "SENT", "PAID"]
            public = keys().webpay.public_key()
            records = [record for files in _read(world) for record in parse(files, public).records]
            # Of TWICE the second sale was undone, which its shop had rejected.
            assert reconcile(shop.merchant.orders, shop.code, records) == ["AFTER"]
            assert (state(shop, "AFTER"), state(shop, "TWICE")) == ("DISPUTED", "PAID")
        assert found[f"{stranger.code} MAC"] == [("ERR", "0")]
        assert state(stranger, "MAC") == "SENT"
        book = world.issuer.book.dump()
        assert book["states"] == {"CAPTURADA": 2, "LIBERADA": 11}


def _read(world: World) -> list[bytes]:
    directory = world.config.file(world.config.webpay.bitacora.dir)
    return [path.read_bytes() for path in sorted(directory.rglob("tbk_bitacora_*.log"))]


async def _each(world: World, shop: Shop) -> None:
    """All cases at one shop."""
    for order in ("AMOUNT", "GONE", "TWICE", "BEFORE", "AFTER"):
        await shop.merchant.new_order("590000", order)
    for order, statement in (
        ("AMOUNT", "UPDATE orders SET amount = '590100' WHERE number = ?"),
        ("GONE", "DELETE FROM orders WHERE number = ?"),
    ):  # WP-49: the order is not what is paid; or there is none
        assert "72 horas" in await pay(world, shop, order, amend(shop, order, statement))
    assert "Pago aprobado" in await pay(world, shop, "TWICE")  # WP-50
    again = amend(shop, "TWICE", "UPDATE orders SET state = 'SENT' WHERE number = ?")
    paid = amend(shop, "TWICE", "UPDATE orders SET state = 'PAID' WHERE number = ?")
    await trio.to_thread.run_sync(again)  # the holder had two windows open
    assert "72 horas" in await pay(world, shop, "TWICE", paid)
    for order, crash in (("BEFORE", "before_commit"), ("AFTER", "after_commit")):  # WP-52
        shop.merchant.set_faults(order, Faults(crash=crash))  # type: ignore[arg-type]
        assert "72 horas" in await pay(world, shop, order)


async def _another_key(world: World, shop: Shop) -> None:
    """WP-49: a closing page that knows another key, so that nothing is signed by Webpay."""
    kit = shop.merchant.kit
    other = private("sim_webpay_1024").public_key()
    shop.merchant.kit = MerchantKit(kit.settings, keys().shop, other, wall_ns=time.time_ns)
    shop.merchant.payment = _sealed_by(shop, kit)  # type: ignore[method-assign]
    await shop.merchant.new_order("590000", "MAC")
    assert "72 horas" in await pay(world, shop, "MAC")


def _sealed_by(shop: Shop, kit: MerchantKit) -> object:
    async def payment(number: str, **other: str) -> object:
        site = shop.merchant.site_url
        return kit.start_order(
            shop.merchant.orders, number, success=f"{site}/exito", failure=f"{site}/fracaso"
        )

    return payment


async def counted(world: World, name: str, count: int) -> None:
    """Until a counter has counted so many."""
    with trio.fail_after(30):
        while True:
            if (await trio.to_thread.run_sync(world.metrics)).get(name) == count:
                return
            await trio.sleep(0.1)


async def test_WP_19_an_approval_that_comes_late(tmp_path: Path) -> None:
    """Its reversal is ordered by then; the late 0210 is counted, and changes nothing."""
    values = {"auth_timeout_ms = 20_000": "auth_timeout_ms = 400"}
    async with running(tmp_path / "node", PLANS[:2], keys(), values) as world:
        world.issuer.rules = Rules([Rule(fault="delay", argument=2, mti="0200")])

        async def late(shop: Shop) -> None:
            await shop.merchant.new_order("590000", "LATE")
            page = await pay(world, shop, "LATE")
            assert "Pago aprobado" not in page
            assert "72 horas" in page

        async with trio.open_nursery() as nursery:
            for shop in world.shops:
                nursery.start_soon(late, shop)
        await issuer_at_rest(world)
        await counted(world, 'troncal_link_events_total{link="emisor1",what="late"}', 2)
        assert world.issuer.book.dump()["states"] == {"LIBERADA": 2}
        wanted = {f"{shop.code} LATE": [("ACK", "-2")] for shop in world.shops}
        assert await ends(world, 2) == wanted
        assert [state(shop, "LATE") for shop in world.shops] == ["DECLINED"] * 2
