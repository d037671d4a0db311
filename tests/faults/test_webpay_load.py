"""Many payments at once at shops that answer, refuse, hang, drop and babble.

Each ends by the matrix, once, and the same in the Bitácora, at the issuer and for its holder; and
no card is left behind.

TRONCAL_TORTURE=1 makes 200 of them; else there are fewer.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import trio

from bench.load.webpay import AMOUNT, FAULTS, Paid, lines_of, pay_all
from protocols.webpay import bitacora
from switch.cli.webpay_world import Plan, World, running
from switch.simulators.webpay_merchant import ALL, Faults
from tests.e2e.webpay_world import keys
from tests.webpay_shops import APPROVED_PAN

TORTURE = bool(os.environ.get("TRONCAL_TORTURE"))
PAYMENTS = 200 if TORTURE else 28
CVV = "7391"
EXPIRY = "3009"
PLANS = (Plan(name="Con kit"), Plan(name="Directa", mode="direct"), Plan(name="Cerrada"))
CLOSED = 2
VALUES = {"ack_timeout_ms = 30_000": f"ack_timeout_ms = {30_000 if TORTURE else 12_000}"}


def pan(number: int) -> str:
    """A card number of its own for each payment, with a right check digit."""
    body = f"405188{number:09d}"
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return f"{body}{-total % 10}"


async def test_many_payments_at_once_end_by_the_matrix_and_leave_no_card(tmp_path: Path) -> None:
    faults = list(FAULTS)
    async with running(tmp_path / "node", PLANS, keys(), VALUES) as world:
        shops = world.shops
        shops[CLOSED].merchant.set_faults(ALL, Faults(no_listen=True))
        wanted = [
            (shops[number % 3], "closed" if number % 3 == CLOSED else faults[number % len(faults)])
            for number in range(PAYMENTS)
        ]
        cards = [pan(number) for number in range(PAYMENTS)]
        paid = await pay_all(
            world, wanted, at_once=PAYMENTS, pans=cards, cvv=CVV, expiry="09/30", timeout_s=240
        )
        records = await lines_of(world, PAYMENTS)
        await issuer_at_rest(world)
        metrics = await trio.to_thread.run_sync(_text, f"{world.ops}/metrics")
        limits = await trio.Path(f"/proc/{world.process.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits), "a core would hold every card"
        _agree(world, paid, records)
    leaves_no_card(tmp_path / "node", cards, metrics)


def _agree(world: World, paid: list[Paid], records: dict[str, list[bitacora.Record]]) -> None:
    """Holder, Bitácora, shop and issuer tell the same of each payment."""
    ends: Counter[str] = Counter()
    for made in paid:
        found = records.get(f"{made.shop} {made.order}", [])
        assert len(found) == 1, (made.fault, [r.outcome_name for r in found])
        (record,) = found
        ends[record.outcome_name] += 1
        expected = "CONFIRMED" if made.fault == "answer" else "REVERSED"
        assert record.outcome_name == expected, made.fault
        assert made.success == (expected == "CONFIRMED")
        assert ("72 horas" in made.final) == (expected == "REVERSED")
        shop = next(s for s in world.shops if s.code == made.shop)
        told = sum(seen.order == made.order for seen in shop.merchant.seen)
        assert told == (0 if made.fault == "closed" else 1), made.fault
    book = world.issuer.book.dump()
    assert book["states"] == {
        state: count
        for state, count in (("CAPTURADA", ends["CONFIRMED"]), ("LIBERADA", ends["REVERSED"]))
        if count
    }
    assert book["captured"].get("purchase", 0) == ends["CONFIRMED"] * int(AMOUNT) // 100


async def issuer_at_rest(world: World) -> None:
    """Until every reversal has been acknowledged."""
    with trio.move_on_after(120):
        while True:
            metrics = await trio.to_thread.run_sync(world.metrics)
            pending = [v for n, v in metrics.items() if "webpay_reversals_pending" in n]
            if not any(pending):
                return
            await trio.sleep(0.1)


def _text(url: str) -> str:
    return httpx.get(url, timeout=120).text


def leaves_no_card(directory: Path, cards: list[str], metrics: str) -> None:
    """No number, code or expiry of a card in any file, log or metric (WP-55)."""
    found: list[Any] = []
    needles = {card.encode() for card in cards} | {APPROVED_PAN.encode()}
    secrets = [
        wrapped
        for text in (CVV, EXPIRY, "0930", "09/30")
        for wrapped in (bytes((0xA0 | len(text),)) + text.encode(), b'"%s"' % text.encode(),
                        b"=%s&" % text.encode())
    ]  # fmt: skip
    for path in directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found += [(path.name, n[:6]) for n in needles if n in data]
            found += [(path.name, "code or expiry") for s in secrets if s in data]
    found += [("metrics", n[:6]) for n in needles if n.decode() in metrics]
    assert found == []


def test_wp_55_the_search_finds_what_it_must(tmp_path: Path) -> None:
    """A search is worth as much as what it finds when something is there."""
    (tmp_path / "clean").write_text("405188******0000")
    leaves_no_card(tmp_path, [pan(1)], "")
    for text in (pan(1), f'{{"cvv":"{CVV}"}}', f"x=1&codigo={CVV}&"):
        (tmp_path / "log").write_text(text)
        try:
            leaves_no_card(tmp_path, [pan(1)], "")
        except AssertionError:
            continue
        raise RuntimeError("not found")
