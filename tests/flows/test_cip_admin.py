"""Acts of two administrators, the access log, unlocking, and the yearly summary."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from protocols.cip import KIND_GATEWAY
from switch.journal import cip_queries as queries
from tests.cip_house import APP, BACK, HASHER, PASSWORD, Browser, CipHouse

ADMIN = "/cip/desk/admin"
CHANGES = f"{ADMIN}/changes"
NEW = "https://sof.example/nuevo"
PEOPLE = {"ada": "admin", "abel": "admin"}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(tmp_path, timezone="America/Asuncion")
    for name, kind in PEOPLE.items():
        found.command(
            "cip_user_add", application=APP, user=name, kind=kind, hash=HASHER.hash(PASSWORD)
        )
    found.project()
    yield found
    found.close()


async def desk(client: httpx.AsyncClient, user: str) -> Browser:
    browser = Browser(client)
    await browser.get("/cip/desk/")
    values = {"application_id": APP, "user_id": user, "password": PASSWORD}
    answer = await browser.send("/cip/desk/login", values)
    assert answer.status_code == 200, answer.text
    return browser


def token(browser: Browser) -> dict[str, str]:
    """The session's own token, from whatever form of the page."""
    return {"csrf": browser.hidden("/cip/desk/exit")["csrf"]}


def waiting(house: CipHouse) -> str:
    (change,) = house.flow.changes.of(APP)
    return str(change.id)


async def ask(browser: Browser, **values: str) -> httpx.Response:
    return await browser.client.post(CHANGES, data={**token(browser), **values})


async def decide(browser: Browser, change: str, verdict: str = "approve") -> httpx.Response:
    return await browser.client.post(f"{CHANGES}/{change}/{verdict}", data=token(browser))


async def test_a_key_is_made_by_two(house: CipHouse) -> None:
    async with house.running() as first, house.client() as second:
        ada, abel = await desk(first, "ada"), await desk(second, "abel")
        keys = len(house.flow.book.application(APP).keys)
        assert (await ask(ada, what="key_add")).status_code == 303
        assert len(house.flow.book.application(APP).keys) == keys
        page = await first.get(ADMIN)
        assert "espera a otra persona" in page.text
        change = waiting(house)
        made = await decide(abel, change)
        assert made.status_code == 200
        assert made.headers["cache-control"] == "no-store"
        house.key_id, house.key = _shown(made.text)
        assert [key.id for key in house.flow.book.application(APP).keys][-1] == house.key_id
        # The key signs; its secret is on that one page only.
        path = "/cip/v1/gateway/payments?client_ref=X"
        headers = house.headers(KIND_GATEWAY, "GET", path)
        body = {"application_id": APP, "user_id": "portal"}
        signed = await first.request("GET", path, headers=headers | _who(body))
        assert signed.status_code == 404
        for user in (first, second):
            assert house.key not in (await user.get(ADMIN)).text
        assert (await decide(abel, change)).status_code == 409


def _shown(text: str) -> tuple[str, str]:
    import re

    found = re.search(r'id="key-id">(\w+)<.*id="key"[^>]*>([0-9a-f]{64})<', text, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def _who(body: dict[str, str]) -> dict[str, str]:
    import base64

    text = f"{body['application_id']}:{body['user_id']}:"
    return {"authorization": f"CIP {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize(
    ("values", "after"),
    [
        pytest.param({"what": "key_end", "key_id": "k1"}, lambda h, a: not a.keys[0].holds(
            h.clock.now_ns), id="end"),
        pytest.param({"what": "key_rotate"}, lambda h, a: len(a.keys) == 2 and a.keys[0].until_ns,
                     id="rotate"),
        pytest.param(
            {"what": "return_urls", "return_urls": f"{NEW}\r\n{BACK}\r\n",
             "default_return_url": NEW},
            lambda h, a: a.return_urls == (NEW, BACK) and a.default_return_url == NEW,
            id="addresses",
        ),
    ],
)  # fmt: skip
async def test_what_two_agree_on_happens_once_they_have(
    house: CipHouse, values: dict[str, str], after: Callable[..., object]
) -> None:
    async with house.running() as first, house.client() as second:
        ada, abel = await desk(first, "ada"), await desk(second, "abel")
        await ask(ada, **values)
        assert not after(house, house.flow.book.application(APP))
        assert (await decide(abel, waiting(house))).status_code in (200, 303)
        assert after(house, house.flow.book.application(APP))
        assert house.flow.changes.of(APP) == []


async def test_the_same_person_cannot_be_both(house: CipHouse) -> None:
    async with house.running() as client:
        ada = await desk(client, "ada")
        await ask(ada, what="return_urls", return_urls=NEW)
        change = waiting(house)
        for verdict in ("approve", "reject"):
            answer = await decide(ada, change, verdict)
            assert answer.status_code == 403
            assert "Hace falta otra persona" in answer.text
        assert house.flow.book.application(APP).return_urls == (BACK,)
        seen = queries.access(house.project(), APP, house.service.zone(
            house.flow.book.application(APP)), {"what": "cip_change"})  # fmt: skip
        assert ("refused", "same person") in {(row.outcome, row.reason) for row in seen}


async def test_what_nobody_decides_lapses_after_a_day(house: CipHouse) -> None:
    async with house.running() as first:
        await ask(await desk(first, "ada"), what="key_add")
        change = waiting(house)
    house.restart()
    house.clock.advance(86_401)
    async with house.running() as second:
        answer = await decide(await desk(second, "abel"), change)
        assert answer.status_code == 409
        assert "venció" in answer.text
        house.advance(1)
    assert house.flow.changes.get(change).state == "EXPIRED"
    assert house.flow.changes.of(APP) == []
    assert len(house.flow.book.application(APP).keys) == 1


@pytest.mark.parametrize("user", ["clara", "aldo", "aura"])
async def test_other_roles_neither_ask_nor_approve(house: CipHouse, user: str) -> None:
    async with house.running() as first, house.client() as second:
        await ask(await desk(first, "ada"), what="key_add")
        other = await desk(second, user)
        assert (await second.get(ADMIN)).status_code == 403
        assert (await ask(other, what="key_add")).status_code == 403
        assert (await decide(other, waiting(house))).status_code == 403
        unlock = await second.post(f"{ADMIN}/users/ana/unlock", data=token(other))
        assert unlock.status_code == 403
        assert len(house.flow.book.application(APP).keys) == 1


async def test_who_is_no_administrator_any_more_has_asked_in_vain(house: CipHouse) -> None:
    async with house.running() as first, house.client() as second:
        await ask(await desk(first, "ada"), what="key_add")
        house.command("cip_user_state", application=APP, user="ada", what="disable")
        assert (await decide(await desk(second, "abel"), waiting(house))).status_code == 409
        assert (await first.get(ADMIN)).status_code == 410


async def test_an_administrator_of_another_application_sees_and_decides_nothing(
    house: CipHouse,
) -> None:
    house.command("cip_app_add", id="OTHER", name="Otra")
    house.command(
        "cip_user_add", application="OTHER", user="otto", kind="admin", hash=HASHER.hash(PASSWORD)
    )
    async with house.running() as first, house.client() as second:
        await ask(await desk(first, "ada"), what="key_add")
        browser = Browser(second)
        await browser.get("/cip/desk/")
        values = {"application_id": "OTHER", "user_id": "otto", "password": PASSWORD}
        await browser.send("/cip/desk/login", values)
        assert (await decide(browser, waiting(house))).status_code == 404
        assert waiting(house)[-8:] not in (await second.get(ADMIN)).text


@pytest.mark.parametrize(
    "values",
    [
        {"what": "return_urls", "return_urls": "http://sof.example/back"},
        {"what": "return_urls", "return_urls": "javascript:alert(1)"},
        {"what": "return_urls", "return_urls": "https://user@sof.example/back"},
        {"what": "return_urls", "return_urls": f"{BACK}#x"},
        {"what": "return_urls", "return_urls": ""},
        {"what": "return_urls", "return_urls": BACK, "default_return_url": NEW},
        {"what": "key_end", "key_id": "k9"},
    ],
    ids=str,
)
async def test_changes_that_cannot_be_are_refused_at_once(
    house: CipHouse, values: dict[str, str]
) -> None:
    async with house.running() as client:
        ada = await desk(client, "ada")
        assert (await ask(ada, **values)).status_code == 422
        assert (await client.post(CHANGES, data={"what": "key_add"})).status_code == 403  # no token
        assert (await ask(ada, what="everything")).status_code == 404
        assert house.flow.changes.of(APP) == []


async def test_an_administrator_unlocks(house: CipHouse) -> None:
    async with house.running() as client, house.client() as second:
        for _ in range(10):
            await house.pay(client, password="not the right one")
        assert (await house.pay(client)).status_code == 401
        ada = await desk(second, "ada")
        page = await second.get(ADMIN)
        assert "Desbloquear portal" in page.text
        unlock = f"{ADMIN}/users/portal/unlock"
        assert (await second.post(unlock, data=token(ada))).status_code == 303
        assert (await house.pay(client)).status_code == 201
        nobody = await second.post(f"{ADMIN}/users/nobody/unlock", data=token(ada))
        assert nobody.status_code == 404


# ---- the auditor's log


async def test_the_auditor_reads_who_saw_and_did_what(house: CipHouse) -> None:
    async with house.running() as client, house.client() as second, house.client() as third:
        name = (await house.pay(client)).json()["payment_id"]
        house.project()
        clara = await desk(second, "clara")
        await clara.get(f"/cip/desk/payments/{name}")
        await house.pay(client, password="not the right one")
        await house.pay(client, user_id="s3cret typed as a name")
        house.project()
        await desk(third, "aura")
        page = await third.get("/cip/desk/access")
        assert page.status_code == 200
        for text in (f"{APP}:clara", "cip_view", name, "cip.user.add", f"{APP}:?", "refused"):
            assert text in page.text, text
        assert "s3cret" not in page.text
        mine = await third.get("/cip/desk/access", params={"user": "clara", "what": "cip_view"})
        assert f"{APP}:portal" not in mine.text
        assert f"{APP}:clara" in mine.text
        later = await third.get("/cip/desk/access", params={"from": "2030-01-01"})
        assert "clara" not in later.text.split("</form>")[1]
        assert (await third.get("/cip/desk/access", params={"from": "x"})).status_code == 400
        house.project()  # looking at the log is in the log
        again = await third.get("/cip/desk/access", params={"what": "cip_access"})
        assert f"{APP}:aura" in again.text
        assert (await second.get("/cip/desk/access")).status_code == 403


async def test_the_log_of_one_application_is_not_anothers(house: CipHouse) -> None:
    house.command("cip_app_add", id="TAXPAY2", name="Otra")
    house.command(
        "cip_user_add", application="TAXPAY2", user="eva", kind="auditor",
        hash=HASHER.hash(PASSWORD),
    )  # fmt: skip
    async with house.running() as client, house.client() as second:
        await house.pay(client, password="not the right one")
        house.project()
        browser = Browser(second)
        await browser.get("/cip/desk/")
        values = {"application_id": "TAXPAY2", "user_id": "eva", "password": PASSWORD}
        await browser.send("/cip/desk/login", values)
        text = (await second.get("/cip/desk/access")).text
        assert "TAXPAY2:eva" in text
        assert "TAXPAY:" not in text


# ---- a year


async def test_a_year_by_kind(house: CipHouse) -> None:
    """Counts, amounts and fees agree with the lines of the reports."""
    house.command("cip_app_set", id=APP, values={"fee": {"fixed": 100, "basis_points": 100}})
    async with house.running() as client:
        names = []
        for number in range(4):
            answer = await house.pay(client, f"INV-{number}", 150_000 + number * 1000)
            names.append(answer.json()["payment_id"])
        await house.pay(client, "INV-9", 150_051)
        auth, base = house.basic(), "/cip/v1/gateway/payments"
        await client.post(f"{base}/{names[0]}/void", json={"client_ref": "V-1"}, headers=auth)
        refund = {"client_ref": "R-1", "amount": 50_000}
        await client.post(f"{base}/{names[1]}/refund", json=refund, headers=auth)
        house.clock.advance(86_400 * 60)  # into the next year
        await house.pay(client, "INV-10", 200_000)
        zone = house.service.zone(house.flow.book.application(APP))
        path = house.project()
        fees = 4 * 100 + sum(150_000 + n * 1000 for n in range(4)) // 100
        assert [tuple(_values(row)) for row in queries.yearly(path, APP, zone, 2026)] == [
            ("payment", "PYG", 4, 606_000, fees), ("void", "PYG", 1, 150_000, 0),
            ("refund", "PYG", 1, 50_000, 0),
        ]  # fmt: skip
        (after,) = queries.yearly(path, APP, zone, 2027)
        assert (after.kind, after.count, after.amount) == ("payment", 1, 200_000)
        assert queries.yearly(path, APP, zone, 2025) == []
        await desk(client, "clara")
        page = await client.get("/cip/desk/reports/year/2026")
        for text in ("606.000 PYG", "150.000 PYG", "50.000 PYG"):
            assert text in page.text
        assert (await client.get("/cip/desk/reports/year/1")).status_code == 404


def _values(row: queries.YearRow) -> list[object]:
    return [row.kind, row.currency, row.count, row.amount, row.fees]
