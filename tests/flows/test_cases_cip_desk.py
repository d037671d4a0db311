"""Cases Q01 to Q05: the service desk, its CSV, reports; webhooks; acts of two persons."""

import csv
import hashlib
import io
import json
import re
import sqlite3
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path

import httpx
import pytest
import trio

from protocols.cip import verify_webhook
from protocols.cip.records import COLUMNS
from tests.cip_house import APP, PASSWORD, Browser, CipHouse


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(tmp_path, report_folder="reports")
    yield found
    found.close()


async def desk(house: CipHouse, client: httpx.AsyncClient, user: str) -> Browser:
    """Somebody of the service desk, logged in."""
    browser = Browser(client)
    await browser.get("/cip/desk/")
    values = {"application_id": APP, "user_id": user, "password": PASSWORD}
    answer = await browser.send("/cip/desk/login", values)
    assert answer.status_code == 200, answer.text
    return browser


def view_rows(text: str) -> list[list[str]]:
    """Cells of the table of payments."""
    rows = re.findall(r'<tr data-payment="([^"]+)">(.*?)</tr>', text, re.DOTALL)
    return [
        [name, *(unescape(re.sub(r"<[^>]+>", "", cell)).strip()
                 for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL))]
        for name, row in rows
    ]  # fmt: skip


async def csv_rows(browser: Browser, query: str = "") -> list[list[str]]:
    answer = await browser.client.get(f"/cip/desk/payments.csv?{query}")
    assert answer.status_code == 200
    assert answer.content.endswith(b"\r\n")
    return list(csv.reader(io.StringIO(answer.text, newline="")))


async def test_q01_a_confirmed_payment_is_in_view_and_csv(house: CipHouse) -> None:
    async with house.running() as client:
        told = (await house.pay(client)).json()
        house.project()
        browser = await desk(house, client, "clara")
        (row,) = view_rows(browser.page.text)
        assert row[0] == told["payment_id"]
        assert told["confirmations"]["cip"] in row
        lines = await csv_rows(browser)
        assert lines[0] == list(COLUMNS)
        assert lines[1][COLUMNS.index("cip_confirmation")] == told["confirmations"]["cip"]


async def test_q02_csv_is_the_view_and_formulas_are_neutral(house: CipHouse) -> None:
    evil = '=HYPERLINK("http://evil.example")'
    async with house.running() as client:
        for number in range(12):
            body = house.body(f"INV-{number}", 150_000 + number * 1000 + (51 if number % 3 else 0))
            body["transaction"]["payer"] = {"name": evil if number == 6 else f"Ana {number}"}
            await client.post("/cip/v1/gateway/payments", json=body)
            house.clock.advance(1)
        house.project()
        browser = await desk(house, client, "clara")
        for query in ("", "status=CONFIRMED", "amount_min=155000&amount_max=160000", "payer=ana",
                      "client_ref=INV-3", "mode=full", "from=2026-11-22&until=2026-11-22",
                      "until=2026-11-21"):  # fmt: skip
            page = await browser.get(f"/cip/desk/?{query}")
            lines = (await csv_rows(browser, query))[1:]
            assert [row[0] for row in view_rows(page.text)] == [line[0] for line in lines], query
            sums = re.search(r'id="totals">(\d+) pagos, (\d+) confirmados por ([\d.]+)', page.text)
            assert sums is not None
            confirmed = [line for line in lines if line[4] == "CONFIRMED"]
            assert (int(sums[1]), int(sums[2])) == (len(lines), len(confirmed))
            assert int(sums[3].replace(".", "")) == sum(int(line[5]) for line in confirmed)
        lines = await csv_rows(browser, "client_ref=INV-6")
        assert lines[1][COLUMNS.index("payer_name")] == "'" + evil
        everything = await csv_rows(browser)
        risky = [cell for line in everything for cell in line if cell[:1] in "=+-@\t\r" and cell]
        assert risky == []
        wrong = await client.get("/cip/desk/?amount_min=x")
        assert wrong.status_code == 400


async def test_q03_one_report_per_period_and_a_repeat_says_the_same(house: CipHouse) -> None:
    house.command("cip_app_set", id=APP, values={"report_hours": ["16:00"]})
    async with house.running() as client:
        await house.pay(client, "INV-1")
        await house.pay(client, "INV-2")
        house.advance(3601)  # noon in Asunción is 15:00 UTC
        runs = house.command("cip_report_list", application=APP)
        assert len(runs) == 1
        files = await wait_for_files(house, 1)
        first = files[0].read_bytes()
        await acknowledged(house, runs[0]["run"])
        house.advance(3600)
        assert len(house.command("cip_report_list", application=APP)) == 1
        assert house.flow.reports.run(runs[0]["run"]).state == "ACKED"
        repeat = house.command("cip_report_send", run=runs[0]["run"])
        assert repeat["run"] != runs[0]["run"]
        second = (await wait_for_files(house, 2))[1].read_bytes()
    assert details(first) == details(second)
    assert first != second
    assert first.splitlines()[-1] == second.splitlines()[-1]
    digest = hashlib.sha256(b"".join(details(first))).hexdigest()
    assert first.splitlines()[-1] == f"T,2,2,0,0,0,{digest}".encode()


async def test_q04_confirmed_after_the_cut(house: CipHouse) -> None:
    """Over many cuts and restarts: none lost, none twice."""
    async with house.running() as client:
        await house.pay(client, "INV-0")
        house.clock.advance(1)
        house.command("cip_report_run", application=APP)
        await house.pay(client, "INV-1")
        house.clock.advance(1)
        house.command("cip_report_run", application=APP)
        house.clock.advance(1)
        house.command("cip_report_run", application=APP)
    house.restart()
    async with house.running() as client:
        await house.pay(client, "INV-2")
        house.clock.advance(1)
        house.command("cip_report_run", application=APP)
        files = await wait_for_files(house, 4)
        references = [
            line.split(b",")[3].decode() for file in files for line in details(file.read_bytes())
        ]
        assert references == ["INV-0", "INV-1", "INV-2"]
        assert [len(details(file.read_bytes())) for file in files] == [1, 1, 0, 1]


async def test_q04_a_crash_between_cut_and_delivery(house: CipHouse) -> None:
    """The run is durable, nobody has its file yet: the next start hands it over, once."""
    async with house.running() as client:
        await house.pay(client, "INV-0")
    house.clock.advance(1)
    run = house.command("cip_report_run", application=APP)
    folder = house.config.data / "reports"
    assert not folder.exists()
    for _ in range(2):
        house.restart()
        async with house.running() as client:
            await acknowledged(house, run["run"])
            (file,) = folder.glob("*.csv")
            assert [line.split(b",")[3] for line in details(file.read_bytes())] == [b"INV-0"]
    house.clock.advance(1)
    assert house.command("cip_report_run", application=APP)["lines"] == 0


async def test_q05_void_or_refund_after_transmission(house: CipHouse) -> None:
    async with house.running() as client:
        name = (await house.pay(client)).json()["payment_id"]
        house.clock.advance(1)
        run = house.command("cip_report_run", application=APP)
        await acknowledged(house, run["run"])
        url = f"/cip/v1/gateway/payments/{name}"
        late = await client.post(f"{url}/void", json={"client_ref": "V-1"}, headers=house.basic())
        assert late.status_code == 409  # transmitted: only a refund is left
        refund = {"client_ref": "R-1", "amount": 50_000}
        done = await client.post(f"{url}/refund", json=refund, headers=house.basic())
        assert done.status_code == 201
        house.clock.advance(1)
        house.command("cip_report_run", application=APP)
        files = await wait_for_files(house, 2)
        (line,) = details(files[1].read_bytes())
        cells = line.decode().strip().split(",")
        assert cells[:3] == ["D", "refund", name]
        assert cells[6:8] == ["50000", "0"]
        assert cells[4] == done.json()["confirmations"]["cip"].replace("-", "")


async def wait_for_files(house: CipHouse, count: int) -> list[Path]:
    folder = house.config.data / "reports"
    with trio.fail_after(120):
        while True:
            found = sorted(folder.glob("*.csv")) if folder.exists() else []
            if len(found) >= count:
                return found
            await trio.sleep(0.01)


async def acknowledged(house: CipHouse, run: str) -> None:
    """The file is there before its step is."""
    with trio.fail_after(120):
        while house.flow.reports.run(run).state != "ACKED":  # noqa: ASYNC110
            await trio.sleep(0.01)


def details(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines(keepends=True) if line.startswith(b"D,")]


# ---- acts of two persons, and who may do what


async def test_a_refund_needs_a_second_person(house: CipHouse) -> None:
    async with house.running() as client:
        name = (await house.pay(client)).json()["payment_id"]
        house.project()
        page = f"/cip/desk/payments/{name}"
        async with house.client() as first, house.client() as second, house.client() as third:
            aldo, clara = await desk(house, first, "aldo"), await desk(house, second, "clara")
            alma = await desk(house, third, "alma")
            await aldo.get(page)
            await aldo.send(f"{page}/refund", {"amount": "50.000"})
            (asked,) = house.flow.adjustments.of(house.flow.payment(name))
            assert asked.status == "REQUESTED"
            assert "Aprobar" not in aldo.page.text  # not his own
            own = aldo.hidden(f"{page}/refund")
            approve = f"/cip/desk/adjustments/{asked.id}/approve"
            assert (await first.post(approve, data=own)).status_code == 403
            await clara.get(page)
            clerk = clara.hidden(f"{page}/refund")
            assert (await second.post(approve, data=clerk)).status_code == 403
            assert house.flow.payment(name).refunded == 0
            await alma.get(page)
            await alma.send(approve)
            assert house.flow.payment(name).refunded == 50_000
            again = await third.post(approve, data=alma.hidden(f"{page}/refund"))
            assert again.status_code == 409


async def test_an_auditor_only_looks_and_looking_is_noted(house: CipHouse) -> None:
    async with house.running() as client:
        name = (await house.pay(client)).json()["payment_id"]
        path = house.project()
        browser = await desk(house, client, "aura")
        page = await browser.get(f"/cip/desk/payments/{name}")
        assert "Pedir" not in page.text
        front = (await client.get("/cip/desk/")).text
        csrf = {"csrf": re.findall(r'name="csrf" value="(\w+)"', front)[0]}
        refused = await client.post(f"/cip/desk/payments/{name}/void", data=csrf)
        assert refused.status_code == 403
        house.project()
        with sqlite3.connect(path) as db:
            seen = db.execute("SELECT who, subject FROM audit WHERE what = 'cip_view'").fetchall()
        assert (f"{APP}:aura", name) in seen


async def test_a_desk_sees_its_own_application_only(house: CipHouse) -> None:
    house.command("cip_app_add", id="OTHER", name="Otra")
    house.command(
        "cip_user_add", application="OTHER", user="otto", kind="clerk",
        hash=house.flow.book.user(APP, "clara").hashes[0],
    )  # fmt: skip
    async with house.running() as client:
        name = (await house.pay(client)).json()["payment_id"]
        house.project()
        browser = Browser(client)
        await browser.get("/cip/desk/")
        values = {"application_id": "OTHER", "user_id": "otto", "password": PASSWORD}
        page = await browser.send("/cip/desk/login", values)
        assert view_rows(page.text) == []
        assert (await client.get(f"/cip/desk/payments/{name}")).status_code == 404


# ---- webhooks


async def test_a_webhook_is_signed_and_tried_until_it_is_taken(tmp_path: Path) -> None:
    taken: list[tuple[dict[str, str], bytes]] = []
    answers = [500, 200]

    async def site(stream: trio.SocketStream) -> None:
        raw = b""
        while b"\r\n\r\n" not in raw:
            raw += await stream.receive_some()
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = (line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:])
        headers = {name.lower(): value for name, value in lines}
        while len(body) < int(headers["content-length"]):
            body += await stream.receive_some()
        taken.append((headers, body))
        status = answers[min(len(taken), len(answers)) - 1]
        await stream.send_all(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, site, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        house = CipHouse(
            tmp_path, toml="[cip]\nprivate_webhooks = true",
            webhook_url=f"http://127.0.0.1:{port}/hook",
        )  # fmt: skip
        async with house.running() as client:
            told = (await house.pay(client)).json()
            with trio.fail_after(120):
                while house.payments()[0].outbox[0].attempts < 1:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                house.advance(3)
                while not house.payments()[0].outbox[0].done_ns:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        house.close()
        nursery.cancel_scope.cancel()
    assert len(taken) == 2
    (headers, body), (again, same) = taken
    assert body == same
    assert again["cip-event"] == headers["cip-event"]
    value = json.loads(body)
    assert value["event"] == "payment.confirmed"
    assert value["payment"]["payment_id"] == told["payment_id"]
    assert verify_webhook(
        bytes.fromhex(house.key), headers["cip-event"], int(headers["cip-timestamp"]), body,
        headers["cip-signature"],
    )  # fmt: skip


async def test_a_second_house_pays_from_the_local_ledger(tmp_path: Path) -> None:
    """Held, captured with the codes; a refund gives back, a void all of it."""
    house = CipHouse(tmp_path, source="ledger")
    card = house.command("card_add", document="4567890", balance=400_000)["card"]
    account = house.node.registry.card(card).account

    def available() -> int:
        return house.node.store.ledger.balance(account).available

    async with house.running() as client:
        body = house.body()
        body["transaction"]["instrument"] = {"type": "ledger", "account": card}
        first = await client.post("/cip/v1/gateway/payments", json=body)
        assert first.status_code == 201, first.text
        assert available() == 250_000
        (payment,) = house.payments()
        assert [o.kind for o in payment.outbox if o.done_ns] == ["settle"]
        hold = list(house.node.store.ledger.open_holds())
        assert hold == []
        refund = {"client_ref": "R-1", "amount": 50_000}
        url = f"/cip/v1/gateway/payments/{payment.id}/refund"
        assert (await client.post(url, json=refund, headers=house.basic())).status_code == 201
        assert available() == 300_000
        short = house.body("INV-2", 300_001)
        short["transaction"]["instrument"] = {"type": "ledger", "account": card}
        poor = await client.post("/cip/v1/gateway/payments", json=short)
        assert (poor.status_code, poor.json()["reason"]) == (402, "funds")
        nobody = house.body("INV-3")
        nobody["transaction"]["instrument"] = {"type": "ledger", "account": "card-999999"}
        assert (await client.post("/cip/v1/gateway/payments", json=nobody)).json()[
            "reason"
        ] == "instrument"
    assert house.node.money_check() == {"posted": 0, "pending": 0}
    house.close()
