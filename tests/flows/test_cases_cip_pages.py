"""Cases H01 to H10, F01 and F02 on pages without a browser, and what pages refuse."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from protocols.cip import KIND_QUERY, is_code, normalise_code
from tests.cip_house import APP, BACK, PASSWORD, Browser, CipHouse

SESSIONS = "/cip/v1/partial/sessions"
both = pytest.mark.parametrize("variant", ["p0", "p1"])
every = pytest.mark.parametrize("variant", ["p0", "p1", "full"])


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(tmp_path)
    yield found
    found.close()


async def enter(house: CipHouse, browser: Browser, variant: str, **context: object) -> str:
    """Go to the login page the way of a variant; returns the session's public name."""
    if variant == "full":
        await browser.get("/cip/")
        return ""
    if variant == "p0":
        await browser.get(f"/pay/{APP}")
    else:
        answer = await browser.client.post(SESSIONS, json=house.context(**context))
        assert answer.status_code == 201, answer.text
        url = answer.json()["url"]
        await browser.get(url.removeprefix("http://127.0.0.1:8080"))
    assert browser.title == "Ingresar para pagar"
    session = house.flow.sessions.by_cookie(browser.cookie)
    assert session is not None
    return session.id


async def to_review(house: CipHouse, browser: Browser, variant: str) -> str:
    session = await enter(house, browser, variant)
    if variant == "full":
        await browser.log_in_full()
    else:
        await browser.log_in()
    await browser.fill()
    assert browser.title == "Revise antes de pagar"
    return session


@both
async def test_h00_partial_from_first_page_to_confirmation_and_back(
    house: CipHouse, variant: str
) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await to_review(house, browser, variant)
        assert "150.000 PYG" in browser.page.text
        await browser.pay()
        assert browser.title == "Pago confirmado"
        code = re.search(r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}", browser.page.text)
        assert code is not None
        assert is_code(normalise_code(code[0]))
        left = await browser.send("/cip/s/exit")
        assert left.status_code == 303
        assert left.headers["location"] == f"{BACK}?session={session}"
        (payment,) = house.payments()
        assert payment.status == "CONFIRMED"
        assert (payment.mode, payment.created_by) == ("partial", "ana")
        assert sorted(payment.steps) == [3, 4, 5, 6, 7, 8, 9]
        assert house.charges() == 1


async def test_f00_full_from_first_page_to_confirmation(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await browser.log_in_full()
        assert browser.title == "Datos del pago"
        await browser.fill()
        await browser.pay()
        assert browser.title == "Pago confirmado"
        (payment,) = house.payments()
        assert (payment.status, payment.mode) == ("CONFIRMED", "full")
        assert sorted(payment.steps) == [1, 2, 4, 5, 6, 7, 8]
        await browser.send("/cip/s/exit")
        assert browser.title == "Ingresar para pagar"


@pytest.mark.parametrize("path", ["/pay/NOBODY", "/pay/s/00000000", "/pay/..%2f..%2fetc"])
async def test_h01_unknown_application(house: CipHouse, path: str) -> None:
    async with house.running() as client:
        answer = await client.get(path)
        assert answer.status_code == 404
        assert "set-cookie" not in answer.headers
        assert "http" not in re.sub(r"https?://127\.0\.0\.1", "", answer.text.split("<body>")[1])
        assert sum(house.flow.sessions.open_by_kind.values()) == 0


async def test_h02_a_context_altered_replayed_or_too_old(house: CipHouse) -> None:
    async with house.running() as client:
        good = house.context()
        for change in ({"amount": 1}, {"client_ref": "INV-2"}, {"sig": "0" * 64}, {"key_id": "k9"}):
            answer = await client.post(SESSIONS, json={**good, **change})
            assert answer.status_code == 401, change
        for seconds in (-301, 301):
            stamp = house.clock.now_ns // 10**9 + seconds
            assert (await client.post(SESSIONS, json=house.context(ts=stamp))).status_code == 401
        assert (await client.post(SESSIONS, json=house.context(nonce="short"))).status_code == 401
        assert house.payments() == []
        opened = await client.post(SESSIONS, json=good)
        assert opened.status_code == 201
        assert (await client.post(SESSIONS, json=good)).status_code == 401
        path = opened.json()["url"].removeprefix("http://127.0.0.1:8080")
        assert (await client.get(path)).status_code == 303
        assert (await client.get(path)).status_code == 404  # an address works once
        assert house.charges() == 0


async def test_h02_an_address_does_not_live_for_ever(house: CipHouse) -> None:
    async with house.running() as client:
        opened = (await client.post(SESSIONS, json=house.context())).json()
        house.advance(opened["expires_in"] + 1)
        path = opened["url"].removeprefix("http://127.0.0.1:8080")
        assert (await client.get(path)).status_code == 404
        assert house.payments()[0].status == "FAILED"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/back", "http://sof.example/back", "https://sof.example:444/back",
        "https://sof.example/back/../evil", "https://sof.example@evil.example/back",
        "https://user@sof.example/back", "https://sof.example/back#x", "//evil.example/back",
        "javascript:alert(1)", "https://sof.example\\@evil.example/back", "", "https://[::1/back",
    ],
)  # fmt: skip
async def test_h03_a_return_address_that_is_not_listed(house: CipHouse, url: str) -> None:
    async with house.running() as client:
        answer = await client.post(SESSIONS, json=house.context(return_url=url))
        assert answer.status_code == 422
        page = await client.get(f"/pay/{APP}", params={"return_url": url or "x"})
        assert page.status_code == 403
        assert "evil" not in page.text
        assert "set-cookie" not in page.headers
        assert house.payments() == []


async def test_h03_p0_returns_to_the_default_address_whatever_travels(house: CipHouse) -> None:
    house.command("cip_app_set", id=APP, values={"return_urls": [BACK, f"{BACK}/2"]})
    async with house.running() as client:
        browser = Browser(client)
        await browser.get(f"/pay/{APP}?return_url={BACK}/2&amount=1&client_ref=X")
        await browser.log_in()
        assert 'name="amount"' in browser.page.text
        left = await browser.send("/cip/s/cancel")
        assert left.headers["location"].startswith(f"{BACK}?session=")


async def test_h03_the_query_of_a_return_address_is_free(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await enter(house, browser, "p1", return_url=f"{BACK}?order=7&x=%C3%B1")
        left = await browser.send("/cip/s/cancel")
        assert left.headers["location"] == f"{BACK}?order=7&x=%C3%B1&session={session}"


@both
async def test_h04_wrong_password_is_told_counted_and_locks(house: CipHouse, variant: str) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await enter(house, browser, variant)
        for _ in range(10):
            answer = await browser.log_in(password="not the right one")
            assert answer.status_code == 401
            assert "Los datos no son correctos" in answer.text
        locked = await browser.log_in()
        assert locked.status_code == 401
        assert "Los datos no son correctos" in locked.text
        unknown = await browser.log_in("nobody")
        assert unknown.status_code == 401
        assert not any(p.status != "CREATED" for p in house.payments())
        house.command("cip_user_state", application=APP, user="ana", what="unlock")
        await browser.log_in()
        assert browser.title == "Datos del pago"


@every
@pytest.mark.parametrize(("seconds", "times"), [(901, 1), (800, 7)], ids=["idle", "too-old"])
async def test_h05_a_session_idle_or_too_old(
    house: CipHouse, variant: str, seconds: int, times: int
) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await to_review(house, browser, variant)
        for _ in range(times):
            house.advance(seconds)
            await browser.get("/cip/s/review")
        assert browser.page.status_code == 410
        assert "La sesión terminó" in browser.page.text
        back = "/cip/" if variant == "full" else f"{BACK}?session={session}"
        assert f'href="{back}"' in browser.page.text
        assert "411111" not in browser.page.text
        (payment,) = house.payments()
        assert (payment.status, payment.reason) == ("FAILED", "expired")
        assert house.charges() == 0


async def test_h05_a_signed_session_ends_when_it_is_idle_not_with_its_address(
    house: CipHouse,
) -> None:
    async with house.running() as client:
        await to_review(house, Browser(client), "p1")
        house.advance(902)  # and nobody has asked since
        assert [(p.status, p.reason) for p in house.payments()] == [("FAILED", "expired")]


@every
async def test_h06_back_refresh_and_double_click(house: CipHouse, variant: str) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await to_review(house, browser, variant)
        form = browser.hidden("/cip/s/pay")
        answers = []

        async def click() -> None:
            answers.append(await client.post("/cip/s/pay", data=form))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(click)
        assert {answer.status_code for answer in answers} == {303}
        for path in ("/cip/s/result", "/cip/s/review", "/cip/s/payment", "/cip/s/result"):
            await browser.get(path)
            assert browser.title == "Pago confirmado"
        assert (await client.post("/cip/s/pay", data=form)).headers["location"] == "/cip/s/result"
        assert house.charges() == len(house.payments()) == 1


@both
async def test_h07_the_tab_is_closed_after_paying(house: CipHouse, variant: str) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await to_review(house, browser, variant)
        await client.post("/cip/s/pay", data=browser.hidden("/cip/s/pay"))
        path = f"{SESSIONS}/{session}"
        found = await client.get(path, headers=house.headers(KIND_QUERY, "GET", path))
        assert found.status_code == 200
        assert found.json()["payment"]["status"] == "CONFIRMED"
        unsigned = await client.get(path)
        assert unsigned.status_code == 401
        house.advance(1)
        run = house.command("cip_report_run", application=APP)
        assert run["lines"] == 1


@every
async def test_h08_the_customer_cancels(house: CipHouse, variant: str) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await to_review(house, browser, variant)
        left = await browser.send("/cip/s/cancel")
        if variant == "full":
            assert browser.title == "Ingresar para pagar"
        else:
            assert left.headers["location"] == f"{BACK}?session={session}"
        assert [p.status for p in house.payments()] == ["CANCELLED"]
        assert (await browser.get("/cip/s/review")).status_code == 410
        assert house.charges() == 0


@every
async def test_h09_two_tabs_of_one_session(house: CipHouse, variant: str) -> None:
    async with house.running() as client:
        first, second = Browser(client), Browser(client)
        await to_review(house, first, variant)
        await second.get("/cip/s/review")
        for action in ("pay", "cancel"):
            form = first.hidden(f"/cip/s/{action}")
            stale = await client.post(f"/cip/s/{action}", data=form)
            assert stale.status_code == 409
            assert "ya no está vigente" in stale.text
            assert 'href="/cip/s/payment"' in stale.text
        assert house.charges() == 0
        await second.pay()
        assert second.title == "Pago confirmado"
        assert house.charges() == 1


@both
async def test_h10_the_customer_never_leaves(house: CipHouse, variant: str) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await to_review(house, browser, variant)
        await browser.pay()
        house.advance(4000)
        (payment,) = house.payments()
        assert payment.status == "CONFIRMED"
        path = f"{SESSIONS}/{session}"
        found = await client.get(path, headers=house.headers(KIND_QUERY, "GET", path))
        assert found.json()["payment"]["status"] == "CONFIRMED"
        assert found.json()["state"] == "expired"


@pytest.mark.parametrize(
    "wrong", [{"app": "NOBODY"}, {"user": "nobody"}, {"password": "not the right one"}], ids=str
)
async def test_f01_one_of_three_credentials_wrong(house: CipHouse, wrong: dict) -> None:
    async with house.running() as client:
        browser = Browser(client)
        answer = await browser.log_in_full(**wrong)
        assert answer.status_code == 401
        assert "Los datos no son correctos. Revise e intente otra vez." in answer.text
        assert house.payments() == []


async def test_f02_exit_then_back(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await browser.log_in_full()
        await browser.fill()
        cookie = browser.cookie
        await browser.pay()
        assert browser.page.headers["cache-control"] == "no-store"
        await browser.send("/cip/s/exit")
        client.cookies.clear()
        client.cookies.set("cip", cookie)
        for path in ("/cip/s/result", "/cip/s/review", "/cip/s/payment"):
            answer = await client.get(path)
            assert answer.status_code == 410
            assert "411111" not in answer.text
            assert answer.headers["cache-control"] == "no-store"


# ---- pages that wait, and pages that complain


@both
async def test_a_pending_page_says_not_to_pay_again(house: CipHouse, variant: str) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await enter(house, browser, variant, **({"amount": 150_073} if variant == "p1" else {}))
        await browser.log_in()
        await browser.fill(amount="150.073")
        page = await house.while_pending(browser.pay)
        assert "No vuelva a pagar" in page.text
        assert page.headers["refresh"].startswith("5")
        house.advance(3)
        await browser.get("/cip/s/result")
        assert browser.title == "Pago confirmado"
        assert "refresh" not in browser.page.headers


async def test_mistakes_stand_beside_their_fields_and_typed_data_stay(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await browser.log_in_full()
        page = await browser.fill(amount="0", instrument__card__pan="4111111111111112")
        assert page.status_code == 422
        assert 'id="card-pan-fault"' in page.text
        assert 'id="amount-fault"' in page.text
        assert 'value="4111111111111112"' in page.text
        assert 'value="123"' not in page.text  # the verification value is never given back
        await browser.fill()
        assert browser.title == "Revise antes de pagar"
        assert "4111111111111111" not in browser.page.text


async def test_signed_values_are_shown_and_cannot_be_changed(house: CipHouse) -> None:
    house.command("cip_app_set", id=APP, values={"fields": [{"name": "account", "required": True}]})
    async with house.running() as client:
        browser = Browser(client)
        await enter(house, browser, "p1", fields={"account": "77-1"})
        await browser.log_in()
        assert "77-1" in browser.page.text
        assert 'name="amount"' not in browser.page.text
        await browser.fill(amount="1", custom__account="evil")
        await browser.pay()
        (payment,) = house.payments()
        assert (payment.amount, payment.custom) == (150_000, {"account": "77-1"})


@every
async def test_a_payment_begins_with_the_first_form_that_can_be_paid(
    house: CipHouse, variant: str
) -> None:
    """And follows the forms after it; a wrong one makes none."""
    async with house.running() as client:
        browser = Browser(client)
        await enter(house, browser, variant)
        await (browser.log_in_full() if variant == "full" else browser.log_in())
        await browser.fill(instrument__card__pan="4111111111111112")
        assert len(house.payments()) == (variant == "p1")  # it was made with its session
        await browser.fill(payer__name="Ana")
        (first,) = house.payments()
        assert (first.status, first.amount, first.payer.name) == ("CREATED", 150_000, "Ana")
        assert first.instrument == "411111******1111"
        await browser.get("/cip/s/payment")
        await browser.fill(payer__name="Eva")
        (second,) = house.payments()
        assert (second.id, second.payer.name) == (first.id, "Eva")
        await browser.pay()
        assert [p.status for p in house.payments()] == ["CONFIRMED"]
        assert house.charges() == 1


async def test_a_schema_may_ask_for_the_reference(house: CipHouse) -> None:
    """P0 and full: typed at CIP, one payment's only, and free again until it is paid with."""
    fields = [{"name": "client_ref", "label": "Boleta", "required": True, "max": 20}]
    house.command("cip_app_set", id=APP, values={"fields": fields})
    async with house.running() as client:
        await house.pay(client, "INV-1")
        browser = Browser(client)
        await browser.log_in_full()
        assert "Boleta" in browser.page.text
        for wrong, text in (("", "Complete este dato"), ("no spaces", "Revise este dato"),
                            ("INV-1", "ya se usó")):  # fmt: skip
            page = await browser.fill(client_ref=wrong)
            assert page.status_code == 422
            assert text in page.text
        for reference in ("INV-2", "INV-3"):
            await browser.get("/cip/s/payment")
            page = await browser.fill(client_ref=reference)
            assert reference in page.text
        await browser.pay()
        assert house.flow.by_reference(APP, "INV-3").status == "CONFIRMED"
        assert house.flow.by_reference(APP, "INV-2") is None
        again = await house.pay(client, "INV-3")
        assert again.status_code == 409
        # Signed or sent by the site, it is not typed.
        async with house.client() as other:
            partial = Browser(other)
            await enter(house, partial, "p1", client_ref="INV-4")
            await partial.log_in()
            assert 'name="client_ref"' not in partial.page.text


async def test_what_was_signed_and_is_not_accepted_any_more_fails(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await enter(house, browser, "p1")
        await browser.log_in()
        house.command("cip_app_set", id=APP, values={"amount": {"max": 100_000}})
        page = await browser.fill()
        assert page.status_code == 410
        assert "ya no se acepta" in page.text
        assert f'href="{BACK}?session={session}"' in page.text
        (payment,) = house.payments()
        assert (payment.status, payment.reason) == ("FAILED", "invalid")


@pytest.mark.parametrize(
    ("wanted", "language", "title", "amount"),
    [
        ("", "en", "Check before you pay", "150,000 PYG"),
        ("de-DE, fr;q=0.9", "en", "Check before you pay", "150,000 PYG"),
        ("es-PY", "es", "Revise antes de pagar", "150.000 PYG"),
        ("de, es;q=0.4, en;q=0.2", "es", "Revise antes de pagar", "150.000 PYG"),
        ("es;q=0, en", "en", "Check before you pay", "150,000 PYG"),
        ("es;q=x", "en", "Check before you pay", "150,000 PYG"),
    ],
)
async def test_pages_are_english_first_and_in_the_browsers_language(
    house: CipHouse, wanted: str, language: str, title: str, amount: str
) -> None:
    async with house.running() as client:
        client.headers["accept-language"] = wanted
        browser = Browser(client)
        await browser.log_in_full()
        await browser.fill(amount="150,000" if language == "en" else "150.000")
        assert browser.title == title
        assert amount in browser.page.text
        assert f'<html lang="{language}">' in browser.page.text
        assert browser.page.headers["content-language"] == language
        # The other language's separators are no amount: nobody pays a thousandth by mistake.
        await browser.get("/cip/s/payment")
        other = await browser.fill(amount="150.000" if language == "en" else "150,000")
        assert other.status_code == 422


async def test_a_declined_payment_says_why_and_nothing_was_charged(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await browser.log_in_full()
        await browser.fill(amount="150.051")
        await browser.pay()
        assert browser.title == "El pago no se realizó"
        assert "Fondos insuficientes" in browser.page.text
        assert house.charges() == 0


# ---- attacks


async def test_the_cookie_changes_at_login(house: CipHouse) -> None:
    """Session fixation: a secret that was planted before opens nothing after."""
    async with house.running() as client:
        browser = Browser(client)
        await enter(house, browser, "p1")
        planted = browser.cookie
        await browser.log_in()
        assert browser.cookie != planted
        async with house.client() as thief:
            thief.cookies.set("cip", planted)
            assert (await thief.get("/cip/s/payment")).status_code == 410
            assert (await thief.get("/cip/s/login")).status_code == 410


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
     {"origin": "https://evil.example"},
     {"origin": "https://evil.example", "sec-fetch-site": "same-origin"}],
    ids=str,
)  # fmt: skip
async def test_forms_of_other_sites_are_refused(house: CipHouse, headers: dict) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await to_review(house, browser, "p1")
        form = browser.hidden("/cip/s/pay")
        answer = await client.post("/cip/s/pay", data=form, headers=headers)
        assert answer.status_code == 403
        assert house.charges() == 0


@pytest.mark.parametrize("action", ["login", "s/payment", "s/pay", "s/cancel", "s/exit"])
async def test_forms_without_our_token_are_refused(house: CipHouse, action: str) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await to_review(house, browser, "p1")
        for token in ({}, {"csrf": "0" * 64}, {"csrf": ""}):
            answer = await client.post(f"/cip/{action}", data={"page": "1", **token})
            assert answer.status_code == 403
        async with house.client() as other:
            mallory = Browser(other)
            await enter(house, mallory, "p0")
            foreign = mallory.hidden("/cip/s/login")["csrf"]
            answer = await client.post(f"/cip/{action}", data={"page": "1", "csrf": foreign})
            assert answer.status_code == 403
        assert house.charges() == 0
        assert house.payments()[0].status == "CREATED"


async def test_pages_cannot_be_framed_cached_or_scripted(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await to_review(house, browser, "p1")
        for path in ("/cip/", "/cip/s/review", "/cip/s/payment", "/cip/desk/", "/pay/NOBODY"):
            headers = (await client.get(path)).headers
            policy = headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            assert "default-src 'none'" in policy
            assert "script-src" not in policy
            assert headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"


async def test_what_is_typed_is_text_on_pages(house: CipHouse) -> None:
    evil = "<script>alert(1)</script>\"'>"
    async with house.running() as client:
        browser = Browser(client)
        await browser.log_in_full()
        await browser.fill(payer__name=evil)
        assert "<script>" not in browser.page.text
        assert "&lt;script&gt;" in browser.page.text
        assert "<script>" not in (await client.post("/cip/login", data={"user_id": evil})).text


async def test_a_cookie_over_tls_is_bound_to_the_host(house: CipHouse) -> None:
    import httpx

    transport = httpx.ASGITransport(app=house.product.mounts[0])
    async with (
        house.running(),
        httpx.AsyncClient(transport=transport, base_url="https://cip.example") as client,
    ):
        answer = await client.get("/cip/")
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-cip=")
        for word in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
            assert word in cookie
        assert "Domain" not in cookie
        assert "max-age" in answer.headers["strict-transport-security"]


async def test_a_public_session_name_opens_nothing(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        session = await to_review(house, browser, "p1")
        async with house.client() as thief:
            for secret in (session, session[4:], "0" * 32, "' OR 1=1 --"):
                thief.cookies.set("cip", secret)
                assert (await thief.get("/cip/s/review")).status_code == 410


async def test_the_same_reference_is_the_same_session_with_a_new_address(house: CipHouse) -> None:
    async with house.running() as client:
        first = (await client.post(SESSIONS, json=house.context())).json()
        second = (await client.post(SESSIONS, json=house.context())).json()
        assert second["session"] == first["session"]
        assert second["url"] != first["url"]
        old = first["url"].removeprefix("http://127.0.0.1:8080")
        assert (await client.get(old)).status_code == 404
        other = await client.post(SESSIONS, json=house.context(amount=150_001))
        assert other.status_code == 409
        assert len(house.payments()) == 1


async def test_a_session_survives_a_restart(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await enter(house, browser, "p1")
        await browser.log_in()
        cookie = browser.cookie
    house.restart()
    async with house.running() as client:
        client.cookies.set("cip", cookie)
        browser = Browser(client)
        await browser.get("/cip/s/payment")
        assert browser.title == "Datos del pago"
        await browser.fill()
        await browser.pay()
        assert browser.title == "Pago confirmado"


async def test_a_customer_is_no_clerk(house: CipHouse) -> None:
    async with house.running() as client:
        browser = Browser(client)
        await browser.get("/cip/desk/")
        values = {"application_id": APP, "user_id": "ana", "password": PASSWORD}
        assert (await browser.send("/cip/desk/login", values)).status_code == 401
