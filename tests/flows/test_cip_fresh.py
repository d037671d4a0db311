"""The desk shows what is durable, however late the read model is."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from protocols.cip.records import COLUMNS
from switch.flows.cip_fresh import FRESH_MAX, Fresh
from tests.cip_house import APP, PASSWORD, Browser, CipHouse


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(tmp_path)
    found.project()
    yield found
    found.close()


async def rows(client: httpx.AsyncClient, query: str = "") -> dict[str, str]:
    """Statuses by reference, which view and CSV tell alike."""
    answer = await client.get(f"/cip/desk/payments.csv?{query}")
    lines = list(csv.reader(io.StringIO(answer.text, newline="")))[1:]
    page = (await client.get(f"/cip/desk/?{query}")).text
    assert [f'data-payment="{line[0]}"' in page for line in lines] == [True] * len(lines)
    assert page.count("data-payment=") == len(lines)
    assert f'id="totals">{len(lines)} pagos' in page
    return {line[1]: line[COLUMNS.index("status")] for line in lines}


async def log_in(client: httpx.AsyncClient) -> None:
    browser = Browser(client)
    await browser.get("/cip/desk/")
    values = {"application_id": APP, "user_id": "clara", "password": PASSWORD}
    await browser.send("/cip/desk/login", values)


async def test_q01_view_and_csv_do_not_wait_for_the_read_model(house: CipHouse) -> None:
    async with house.running() as client, house.client() as desk:
        await log_in(desk)
        await house.pay(client, "INV-1")
        assert await rows(desk) == {"INV-1": "CONFIRMED"}
        house.project()
        await house.pay(client, "INV-2")
        await house.pay(client, "INV-3", 150_051)
        assert await rows(desk) == {
            "INV-1": "CONFIRMED", "INV-2": "CONFIRMED", "INV-3": "DECLINED",
        }  # fmt: skip
        assert await rows(desk, "status=CONFIRMED&client_ref=INV-2") == {"INV-2": "CONFIRMED"}
        # A row of the model that has changed since is there once, as it is now.
        (first,) = [p for p in house.payments() if p.client_ref == "INV-1"]
        await client.post(
            f"/cip/v1/gateway/payments/{first.id}/void", json={"client_ref": "V-1"},
            headers=house.basic(),
        )  # fmt: skip
        assert (await rows(desk))["INV-1"] == "VOIDED"
        assert await rows(desk, "status=CONFIRMED") == {"INV-2": "CONFIRMED"}
        house.project()
        await rows(desk)
        assert len(house.flow.fresh) == 0
        assert (await rows(desk))["INV-1"] == "VOIDED"


async def test_the_desk_needs_no_read_model_to_begin_with(tmp_path: Path) -> None:
    """Before there is one for the first time it is an empty list, then all there is."""
    new = CipHouse(tmp_path)
    async with new.running() as client, new.client() as desk:
        await log_in(desk)
        assert await rows(desk) == {}
        first = (await new.pay(client, "INV-1")).json()["payment_id"]
        await new.pay(client, "INV-2", 150_051)
        assert await rows(desk) == {"INV-1": "CONFIRMED", "INV-2": "DECLINED"}
        assert await rows(desk, "status=CONFIRMED") == {"INV-1": "CONFIRMED"}
        page = f"/cip/desk/payments/{first}"
        browser = Browser(desk)
        await browser.get(page)
        await browser.send(f"{page}/refund", {"amount": "50000"})
        for path in ("pending", "reports", "times", "reports/year/2026"):
            answer = await desk.get(f"/cip/desk/{path}")
            assert answer.status_code == 200
        assert first[-8:] in (await desk.get("/cip/desk/pending")).text
        assert "150.000 PYG" in (await desk.get("/cip/desk/reports/year/2026")).text
        new.project()
        assert await rows(desk) == {"INV-1": "CONFIRMED", "INV-2": "DECLINED"}
    new.close()


async def test_the_desk_finds_what_a_clerk_did(house: CipHouse) -> None:
    async with house.running() as client, house.client() as desk:
        await log_in(desk)
        names = [(await house.pay(client, f"INV-{n}")).json()["payment_id"] for n in range(3)]
        browser = Browser(desk)
        await browser.get(f"/cip/desk/payments/{names[1]}")
        await browser.send(f"/cip/desk/payments/{names[1]}/refund", {"amount": "50000"})
        for _ in range(2):
            assert set(await rows(desk, "user=clara")) == {"INV-1"}
            assert set(await rows(desk, "user=portal")) == {"INV-0", "INV-1", "INV-2"}
            assert set(await rows(desk, f"application={APP}")) == {"INV-0", "INV-1", "INV-2"}
            assert await rows(desk, "application=OTHER") == {}
            house.project()


async def test_fresh_rows_of_one_application_are_not_anothers(house: CipHouse) -> None:
    house.command("cip_app_add", id="OTHER", name="Otra")
    hashed = house.flow.book.user(APP, "clara").hashes[0]
    house.command("cip_user_add", application="OTHER", user="clara", kind="clerk", hash=hashed)
    async with house.running() as client, house.client() as desk:
        await house.pay(client, "INV-1")
        browser = Browser(desk)
        await browser.get("/cip/desk/")
        values = {"application_id": "OTHER", "user_id": "clara", "password": PASSWORD}
        await browser.send("/cip/desk/login", values)
        assert await rows(desk) == {}


def test_what_is_remembered_is_bounded_and_dropped_once_the_model_has_it() -> None:
    fresh = Fresh()
    fresh.note(str(number) for number in range(FRESH_MAX + 5))
    assert len(fresh) == FRESH_MAX
    assert fresh.beyond(model_seq=10, last_seq=20)[0] == "5"
    fresh.note(["7"])
    assert fresh.beyond(model_seq=20, last_seq=30) == ["7"]
    assert fresh.beyond(model_seq=29, last_seq=31) == ["7"]
    assert fresh.beyond(model_seq=30, last_seq=31) == []
