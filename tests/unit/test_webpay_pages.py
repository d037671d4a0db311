"""The acquirer's pages as HTTP: headers, cookies, nonces, limits, and where each state leads.

The acquirer here is a table of states; the real one stands behind the same pages in
tests/e2e/test_webpay_browser.py.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

import httpx
import msgspec
import pytest

from core_ext._journal import JournalFull
from switch.web.mounts import App
from switch.web.requests import BadForm, Rate, unique_pairs
from switch.web.webpay import (
    Entered,
    Refused,
    View,
    WebLimits,
    cookie_name,
    webpay_app,
)
from switch.web.webpay_form import Card, choice_text, luhn, pesos, read_card, read_rut

ID = "a" * 43
COOKIE = "c" * 43
PAN = "4051885600446623"
TODAY = date(2026, 11, 22)
GOOD = {
    "nonce": "n1", "tipo": "C", "numero": PAN, "vencimiento": "12/29", "codigo": "123",
    "cuotas": "VN-0",
}  # fmt: skip


class Table:
    """An acquirer that remembers one payment and what it was told."""

    def __init__(self) -> None:
        self.now = View(
            state="FORM", shop="Librería <b>Ñ</b>", merchant="597026007976", order="T1",
            amount_hundredths=599000, currency="CLP", nonce="n1", kinds=("C", "D"),
            choices=("VN-0", "SI-3", "VC-6"), banks=(("bbva", "BBVA"), ("itau", "Banco Itaú")),
            return_url="https://shop.example.cl:8443/exito?a=1", session="S1", expires_in_s=600,
            today=TODAY,
        )  # fmt: skip
        self.told: list[Any] = []
        self.answer: Entered | Refused = Entered(ID, COOKIE, payable=True)

    def change(self, **values: Any) -> None:
        self.now = msgspec.structs.replace(self.now, **values)

    async def enter(self, fields: Mapping[str, str], source: str) -> Entered | Refused:
        self.told.append(("enter", dict(fields), source))
        return self.answer

    async def validate(self, fields: Mapping[str, str], source: str) -> tuple[bytes, str]:
        self.told.append(("validate", dict(fields)))
        return b"sealed\n", ""

    async def redeem(self, token: str, version: str) -> Entered | Refused:
        self.told.append(("redeem", token, version))
        return self.answer

    def view(self, page_id: str, cookie: str) -> View | None:
        return self.now if (page_id, cookie) == (ID, COOKIE) else None

    async def shown(self, page_id: str) -> None:
        self.change(state="FORM")

    async def pay(self, page_id: str, nonce: str, card: Card) -> None:
        self.told.append(card)
        self.change(state="AUTHORISING", nonce="n2")

    async def bad_input(self, page_id: str, nonce: str) -> None:
        tries = self.now.tries + 1
        self.change(tries=tries, nonce=f"n{tries + 1}", state="FORM" if tries < 3 else "ABORTED")

    async def identify(self, page_id: str, nonce: str, rut: str, password: str) -> None:
        self.told.append((rut, password))
        self.change(state="AUTHORISING", authenticating=False)

    async def leave_bank(self, page_id: str, nonce: str) -> None:
        self.told.append("ABO")
        self.change(state="DECIDING", authenticating=False)

    async def cancel(self, page_id: str, nonce: str) -> None:
        self.change(state="ABORTED", cause="cancelled")

    def status(self, api_key: str, order: str) -> list[dict[str, Any]] | None:
        return [{"order": order, "state": self.now.state}] if api_key == "secret" else None


@pytest.fixture
def table() -> Table:
    return Table()


def app_of(table: Table, **values: Any) -> App:
    return webpay_app(table, prefixes=("/filtroUnificado", "/cgi-bin"), clock=lambda: 0.0, **values)


def browser(app: App, *, cookie: bool = True, scheme: str = "https") -> httpx.AsyncClient:
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=f"{scheme}://webpay.example"
    )
    if cookie:
        client.cookies.set(cookie_name(ID), COOKIE, path="/webpay")
    return client


async def test_the_entry_sets_the_payments_own_cookie_and_leads_to_the_form(table: Table) -> None:
    fields = {"TBK_PARAM": "x\n", "TBK_VERSION_KCC": "6.0", "TBK_CODIGO_COMERCIO": "597026007976",
              "TBK_KEY_ID": "101", "OTHER": "1"}  # fmt: skip
    async with browser(app_of(table), cookie=False) as shop:
        answer = await shop.post("/filtroUnificado/bp_revision.cgi", data=fields)
        plain = await browser(app_of(table), scheme="http").post(
            "/cgi-bin/bp_revision.cgi", data=fields
        )
    assert (answer.status_code, answer.headers["location"]) == (303, f"/webpay/pago/{ID}")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{cookie_name(ID)}={COOKIE};")
    for part in ("HttpOnly", "Secure", "SameSite=lax", "Path=/webpay"):
        assert part in cookie
    assert "Secure" not in plain.headers["set-cookie"]
    assert "OTHER" not in table.told[0][1]
    assert table.told[0][1]["TBK_PARAM"] == "x\n"


async def test_a_token_is_taken_by_post_and_get_a_request_by_post_only(table: Table) -> None:
    async with browser(app_of(table), cookie=False) as shop:
        path = "/filtroUnificado/bp_revision.cgi"
        fields = {"TBK_TOKEN": "f" * 64, "TBK_VERSION_KCC": "6.0"}
        assert (await shop.post(path, data=fields)).status_code == 303
        assert (await shop.get(path, params=fields)).status_code == 303
        assert (await shop.get(path, params={"TBK_PARAM": "x"})).status_code == 405
    assert table.told == [("redeem", "f" * 64, "6.0")] * 2


async def test_a_refused_request_is_a_page_with_its_number_and_no_way_on(table: Table) -> None:
    table.answer = Refused("URL_OK", 31)
    async with browser(app_of(table), cookie=False) as shop:
        answer = await shop.post("/cgi-bin/bp_revision.cgi", data={"TBK_PARAM": "x"})
    assert answer.status_code == 400
    assert "<!-- Codigo Error: 31 -->" in answer.text
    assert "location" not in answer.headers
    assert "set-cookie" not in answer.headers


async def test_validation_answers_with_nothing_but_the_body(table: Table) -> None:
    async with browser(app_of(table), cookie=False) as kit:
        answer = await kit.post("/cgi-bin/bp_validacion.cgi", data={"TBK_PARAM": "x"})
        assert (await kit.get("/cgi-bin/bp_validacion.cgi")).status_code == 405
    assert (answer.status_code, answer.content) == (200, b"sealed\n")
    assert answer.headers["content-type"].startswith("text/plain")


async def test_every_page_has_its_headers(table: Table) -> None:
    async with browser(app_of(table)) as holder:
        answer = await holder.get(f"/webpay/pago/{ID}")
    headers = answer.headers
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert headers["x-frame-options"] == "DENY"
    assert "max-age" in headers["strict-transport-security"]
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "form-action 'self';" in policy
    assert not re.search(r"<script(?![^>]*src=)|\son[a-z]+=|style=", answer.text)
    assert "Librería &lt;b&gt;Ñ&lt;/b&gt;" in answer.text
    for label in ("Tarjeta de crédito", "Tarjeta de débito", "Banco", "Número de tarjeta",
                  "Vencimiento", "Código de seguridad", "Cuotas", "Pagar", "Anular"):  # fmt: skip
        assert label in answer.text
    assert "$ 5.990" in answer.text


async def test_the_final_page_may_post_to_the_merchants_origin_only(table: Table) -> None:
    table.change(state="CONFIRMED", respuesta="0")
    async with browser(app_of(table)) as holder:
        answer = await holder.get(f"/webpay/final/{ID}")
    policy = answer.headers["content-security-policy"]
    assert "form-action 'self' https://shop.example.cl:8443;" in policy
    fields = re.findall(r'name="(TBK_[A-Z_]+)" value="([^"]*)"', answer.text)
    assert fields == [("TBK_ID_SESION", "S1"), ("TBK_ORDEN_COMPRA", "T1")]
    assert 'action="https://shop.example.cl:8443/exito?a=1"' in answer.text
    assert "Volver al comercio" in answer.text


@pytest.mark.parametrize("page", ["pago", "banco", "espera", "final"])
async def test_without_the_cookie_no_page_says_anything(table: Table, page: str) -> None:
    async with browser(app_of(table), cookie=False) as stranger:
        own = await stranger.get(f"/webpay/{page}/{ID}")
        none = await stranger.get(f"/webpay/{page}/{'b' * 43}")
        long = await stranger.get(f"/webpay/{page}/{'b' * 500}")
    assert own.status_code == 400
    assert "<!-- Codigo Error: 21 -->" in own.text
    assert own.text == none.text == long.text


@pytest.mark.parametrize(
    ("state", "authenticating", "page"),
    [
        ("CREATED", False, "pago"), ("FORM", False, "pago"), ("PAYING", True, "banco"),
        ("PAYING", False, "espera"), ("AUTHORISING", False, "espera"),
        ("DECIDING", False, "espera"), ("CONFIRMED", False, "final"), ("DECLINED", False, "final"),
        ("DECLINED_UNACKED", False, "final"), ("REVERSING", False, "final"),
        ("REVERSED", False, "final"), ("ABORTED", False, "final"),
    ],
)  # fmt: skip
async def test_wp_45_each_state_has_one_page_and_all_others_lead_there(
    table: Table, state: str, authenticating: bool, page: str
) -> None:
    table.change(state=state, authenticating=authenticating)
    async with browser(app_of(table)) as holder:
        for asked in ("pago", "banco", "espera", "final"):
            answer = await holder.get(f"/webpay/{asked}/{ID}")
            if asked == page:
                assert answer.status_code == 200
            else:
                assert answer.status_code == 303
                assert answer.headers["location"] == f"/webpay/{page}/{ID}"


async def test_the_waiting_page_comes_again_and_the_form_when_it_has_expired(table: Table) -> None:
    async with browser(app_of(table)) as holder:
        form = (await holder.get(f"/webpay/pago/{ID}")).text
        table.change(state="DECIDING")
        waiting = (await holder.get(f"/webpay/espera/{ID}")).text
    assert '<meta http-equiv="refresh" content="2">' in waiting
    assert '<meta http-equiv="refresh" content="601">' in form


async def test_only_confirmed_shows_success(table: Table) -> None:
    async with browser(app_of(table)) as holder:
        for state in ("DECLINED", "DECLINED_UNACKED", "REVERSING", "REVERSED", "ABORTED"):
            table.change(state=state, respuesta="0" if "REVERS" in state else "-1")
            text = (await holder.get(f"/webpay/final/{ID}")).text
            assert "Pago aprobado" not in text
            assert ("72 horas" in text) == ("REVERS" in state)
        table.change(state="CONFIRMED", respuesta="0")
        assert "Pago aprobado" in (await holder.get(f"/webpay/final/{ID}")).text


async def test_wp_44_a_nonce_pays_once(table: Table) -> None:
    async with browser(app_of(table)) as holder:
        first = await holder.post(f"/webpay/pago/{ID}", data=GOOD)
        second = await holder.post(f"/webpay/pago/{ID}", data=GOOD)
    for answer in (first, second):
        assert (answer.status_code, answer.headers["location"]) == (303, f"/webpay/espera/{ID}")
    assert len(table.told) == 1


async def test_a_foreign_nonce_pays_nothing(table: Table) -> None:
    async with browser(app_of(table)) as holder:
        answer = await holder.post(f"/webpay/pago/{ID}", data={**GOOD, "nonce": "other"})
        await holder.post(f"/webpay/anular/{ID}", data={"nonce": "other"})
    assert answer.headers["location"] == f"/webpay/pago/{ID}"
    assert (table.told, table.now.state) == ([], "FORM")


async def test_wrong_input_shows_the_form_without_number_or_code(table: Table) -> None:
    wrong = {**GOOD, "numero": "4051885600446624", "codigo": "12", "cuotas": "SI-3"}
    async with browser(app_of(table)) as holder:
        answer = await holder.post(f"/webpay/pago/{ID}", data=wrong)
        assert answer.status_code == 303
        assert "4051" not in answer.headers["location"]
        page = (await holder.get(answer.headers["location"])).text
    assert "Revise el número de tarjeta" in page
    assert "Revise el código de seguridad" in page
    assert "4051" not in page
    assert '<option value="SI-3" selected>' in page
    assert page.count('aria-invalid="true"') == 2


async def test_wp_33_a_payment_that_cannot_be_written_down_shows_an_error(table: Table) -> None:
    async def full(page_id: str, nonce: str, card: Card) -> None:
        raise JournalFull("no room for another step")

    table.pay = full  # type: ignore[method-assign]
    transport = httpx.ASGITransport(app_of(table), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="https://w") as holder:
        holder.cookies.set(cookie_name(ID), COOKIE, path="/webpay")
        answer = await holder.post(f"/webpay/pago/{ID}", data=GOOD)
    assert answer.status_code == 503
    assert "no está disponible" in answer.text
    assert PAN not in answer.text
    assert answer.headers["cache-control"] == "no-store"


async def test_wp_46_the_third_wrong_input_ends_it(table: Table) -> None:
    async with browser(app_of(table)) as holder:
        for place in range(1, 4):
            wrong = {**GOOD, "nonce": f"n{place}", "numero": "1"}
            answer = await holder.post(f"/webpay/pago/{ID}", data=wrong)
    assert answer.headers["location"] == f"/webpay/final/{ID}"


async def test_wp_24_a_form_for_credit_takes_no_debit(table: Table) -> None:
    table.change(kinds=("C",))
    debit = {"nonce": "n1", "tipo": "D", "numero": PAN, "banco": "bbva"}
    async with browser(app_of(table)) as holder:
        answer = await holder.post(f"/webpay/pago/{ID}", data=debit)
        page = (await holder.get(answer.headers["location"])).text
    assert "tipo" in answer.headers["location"]
    assert "Tarjeta de débito" not in page
    assert table.told == []


async def test_the_holder_says_who_it_is(table: Table) -> None:
    table.change(state="PAYING", authenticating=True)
    async with browser(app_of(table)) as holder:
        form = {"nonce": "n1", "rut": "11.111.111-1", "clave": "123"}
        answer = await holder.post(f"/webpay/banco/{ID}", data=form)
        await holder.post(f"/webpay/banco/{ID}", data=form)
    assert answer.headers["location"] == f"/webpay/espera/{ID}"
    assert table.told == [("11111111-1", "123")]


async def test_a_holder_leaves_its_bank(table: Table) -> None:
    table.change(state="PAYING", authenticating=True)
    async with browser(app_of(table)) as holder:
        form = {"nonce": "n1", "rut": "", "clave": "", "volver": "1"}
        answer = await holder.post(f"/webpay/banco/{ID}", data=form)
    assert answer.headers["location"] == f"/webpay/espera/{ID}"
    assert table.told == ["ABO"]


async def test_a_mistyped_identity_number_is_asked_for_again(table: Table) -> None:
    table.change(state="PAYING", authenticating=True)
    async with browser(app_of(table)) as holder:
        for rut in ("", "11.111.111-2", "x", "1" * 60):
            form = {"nonce": "n1", "rut": rut, "clave": "secreta"}
            answer = await holder.post(f"/webpay/banco/{ID}", data=form)
            assert answer.headers["location"] == f"/webpay/banco/{ID}?revise=rut"
        page = await holder.get(answer.headers["location"])
    assert 'role="alert"' in page.text
    assert "secreta" not in page.text
    assert table.told == []


def test_identity_numbers() -> None:
    good = ("11.111.111-1", "12345678-5", "12.345.678-5", " 6-K ", "10.000.013-k", "1-9")
    assert [read_rut(rut) for rut in good] == [
        "11111111-1", "12345678-5", "12345678-5", "6-K", "10000013-K", "1-9",
    ]  # fmt: skip
    for wrong in ("", "-", "0-0", "11111111-2", "12345678", "１-9", "1234567890-1", "6-k6"):
        assert read_rut(wrong) is None


async def test_status_needs_the_key(table: Table) -> None:
    async with browser(app_of(table), cookie=False) as shop:
        path = "/api/webpay/v1/transactions"
        good = await shop.get(
            path, params={"order": "T1"}, headers={"authorization": "Bearer secret"}
        )
        bad = await shop.get(path, params={"order": "T1"}, headers={"authorization": "Bearer x"})
        none = await shop.get(path, params={"order": "T1"})
    assert good.json() == {"transactions": [{"order": "T1", "state": "FORM"}]}
    assert (bad.status_code, none.status_code) == (401, 401)


async def test_too_many_unreadable_wires_lock_out_the_address_not_the_merchant(
    table: Table,
) -> None:
    table.answer = Refused("SEAL", 1)
    app = app_of(table, limits=WebLimits(seal_fail_per_min=3))
    fields = {"TBK_PARAM": "x", "TBK_CODIGO_COMERCIO": "597026007976"}
    path = "/cgi-bin/bp_revision.cgi"
    async with browser(app, cookie=False) as bad:
        codes = [(await bad.post(path, data=fields)).status_code for _ in range(5)]
    assert codes == [400, 400, 400, 429, 429]
    other = httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=("192.0.2.7", 1)), base_url="https://w"
    )
    async with other:
        assert (await other.post(path, data=fields)).status_code == 400


async def test_addresses_and_merchants_have_rates(table: Table) -> None:
    app = app_of(table, limits=WebLimits(address_per_min=2))
    async with browser(app, cookie=False) as one:
        path = "/cgi-bin/bp_revision.cgi"
        codes = [(await one.post(path, data={"TBK_PARAM": "x"})).status_code for _ in range(3)]
    assert codes == [303, 303, 429]
    app = app_of(table, limits=WebLimits(merchant_per_min=1))
    async with browser(app, cookie=False) as one:
        codes = [
            (await one.post(path, data={"TBK_CODIGO_COMERCIO": code})).status_code
            for code in ("1", "1", "2")
        ]
    assert codes == [303, 429, 303]


def test_a_bucket_fills_evenly_and_forgets_the_quiet() -> None:
    now = [0.0]
    rate = Rate(60, lambda: now[0], sources_max=2)
    assert all(rate.take("a") for _ in range(60))
    assert not rate.take("a")
    now[0] = 2.0
    assert [rate.take("a") for _ in range(3)] == [True, True, False]
    assert rate.empty("a")
    rate.take("b")
    rate.take("c")
    assert not rate.empty("a")


@pytest.mark.parametrize(
    "body", [b"a=1&a=2", b"&".join(b"a%d=1" % n for n in range(65))], ids=["twice", "many"]
)
def test_bad_forms_are_refused(body: bytes) -> None:
    with pytest.raises(BadForm):
        unique_pairs(body)


def test_form_bytes_stay_what_they_were() -> None:
    assert unique_pairs(b"%54=%e1&b=\xe1+c\r\n") == [("T", "á"), ("b", "á c")]


async def test_other_bodies_are_refused(table: Table) -> None:
    async with browser(app_of(table), cookie=False) as shop:
        path = "/cgi-bin/bp_revision.cgi"
        assert (await shop.post(path, json={})).status_code == 415
        assert (await shop.get("/webpay/nothing")).status_code == 404


async def raw(app: App, path: str, body: bytes) -> int:
    """One POST without a client of HTTP in between; the status."""
    got: list[Any] = []

    async def send(event: Any) -> None:
        got.append(event)

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "headers": [(b"content-type", b"application/x-www-form-urlencoded")], "scheme": "https",
        "client": ("192.0.2.1", 5), "server": ("webpay.example", 443), "http_version": "1.1",
        "root_path": "", "query_string": b"",
    }  # fmt: skip
    await app(scope, receive, send)
    status: int = got[0]["status"]
    return status


async def test_a_target_in_absolute_form_is_reduced_to_its_path(table: Table) -> None:
    target = "http://webpay.example/cgi-bin/bp_revision.cgi"
    assert await raw(app_of(table), target, b"TBK_PARAM=x") == 303


async def test_a_body_above_32_kib_is_refused(table: Table) -> None:
    body = b"TBK_PARAM=" + b"x" * 40_000
    assert await raw(app_of(table), "/cgi-bin/bp_revision.cgi", body) == 413


# ---- the form itself


def test_a_card_shows_nothing() -> None:
    card = read_card(GOOD, kinds=("C",), choices=("VN-0",), banks=(), today=TODAY)
    assert isinstance(card, Card)
    assert (card.pan, card.expiry, card.pay_type, card.instalments) == (PAN, "2912", "VN", 0)
    assert all(secret not in repr(card) for secret in (PAN, "2912", "123"))


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"numero": "4051 8856 0044 6623"}, ()),
        ({"numero": "4051885600446632"}, ("numero",)),
        ({"numero": "٤٠٥١٨٨٥٦٠٠٤٤٦٦٢٣"}, ("numero",)),
        ({"vencimiento": "11/26"}, ()),
        ({"vencimiento": "1226"}, ()),
        ({"vencimiento": "10/26"}, ("vencimiento",)),
        ({"vencimiento": "13/29"}, ("vencimiento",)),
        ({"vencimiento": "12/59"}, ("vencimiento",)),
        ({"codigo": "1234"}, ()),
        ({"codigo": "12a"}, ("codigo",)),
        ({"cuotas": "VC-7"}, ("cuotas",)),
        ({"tipo": "X"}, ("tipo",)),
        ({"tipo": "D"}, ("banco",)),
        ({"tipo": "D", "banco": "bbva"}, ()),
    ],
)
def test_each_field_is_checked(changed: dict[str, str], wrong: tuple[str, ...]) -> None:
    found = read_card(
        {**GOOD, **changed},
        kinds=("C", "D"),
        choices=("VN-0", "VC-6"),
        banks=("bbva",),
        today=TODAY,
    )
    assert (() if isinstance(found, Card) else found) == wrong


def test_amounts_and_choices_in_words() -> None:
    assert pesos(1_899_900_00, "CLP") == "$ 1.899.900"
    assert pesos(50005, "USD") == "US$ 500,05"
    assert [choice_text(c) for c in ("VN-0", "SI-3", "VC-12")] == [
        "Sin cuotas", "3 cuotas sin interés", "12 cuotas",
    ]  # fmt: skip
    assert luhn("5186059559590568")
