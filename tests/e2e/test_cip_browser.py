"""Cases marked B in headless Chromium, against a running node and the SOF site.

TRONCAL_SCREENSHOTS=1 renews the pictures of the documentation.
"""

import csv
import http.client
import io
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocols.cip import KIND_QUERY, header_parameters, is_code, normalise_code, sign
from switch.cli.cip_world import APP, World
from switch.cli.provision import provision
from switch.simulators.cip_sof import SESSIONS, Faults
from switch.web.cip_common import environment
from tests.e2e import axe
from tests.e2e.cip_threaded import threaded

pytestmark = pytest.mark.timeout(300)
IMAGES = Path(__file__).parents[2] / "docs" / "images" / "cip"
PICTURES = os.environ.get("TRONCAL_SCREENSHOTS") == "1"
WAIT_MS = 60_000
IDLE_S = 20
PAN = "4111111111111111"
both = pytest.mark.parametrize("variant", ["p0", "p1"])
every = pytest.mark.parametrize("variant", ["p0", "p1", "full"])
SITE_LINK = "a:not([href^='/']):not([href^='#'])"
Rows = dict[str, dict[str, str]]
Books = Callable[[], Rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = {"cip.auth_rate_per_minute": 100_000, "cip.budget_auth_s": 20.0,
                "cip.budget_source_s": 3.0}  # fmt: skip
    with threaded(tmp_path_factory.mktemp("cip") / "node", settings) as found:
        yield found


# Our pages have no scripts: with them switched on nothing differs, so every case runs without, and
# with them where there is time.
SCRIPTS = ["no-scripts", *(["scripts"] if os.environ.get("TRONCAL_TORTURE") == "1" else [])]


@pytest.fixture(params=SCRIPTS)
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(
        java_script_enabled=request.param == "scripts", locale="es-PY",
        viewport={"width": 900, "height": 900},
    )  # fmt: skip
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def plain(browser: Any) -> Iterator[Any]:
    """One page with scripts, which axe needs, though ours have none."""
    context = browser.new_context(
        locale="es-PY", bypass_csp=True, viewport={"width": 900, "height": 900}
    )
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


class Auditor:
    """Somebody at the service desk, by plain HTTP: what there is, as the CSV tells it."""

    def __init__(self, world: World) -> None:
        self._client = httpx.Client(base_url=world.url, timeout=60, trust_env=False)
        page = self._client.get("/cip/desk/")
        values = {
            "csrf": re.findall(r'name="csrf" value="(\w+)"', page.text)[0], "application_id": APP,
            "user_id": "aura", "password": world.password,
        }  # fmt: skip
        assert self._client.post("/cip/desk/login", data=values).status_code == 303

    def rows(self) -> Rows:
        """All payments by their names."""
        text = self._client.get("/cip/desk/payments.csv").raise_for_status().text
        return {row["payment_id"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}

    def report(self, run: str) -> str:
        return self._client.get(f"/cip/desk/reports/{run}.csv").raise_for_status().text

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def auditor(world: World) -> Iterator[Auditor]:
    found = Auditor(world)
    yield found
    found.close()


@pytest.fixture
def made(auditor: Auditor) -> Books:
    """Payments that were made since the test began."""
    before = set(auditor.rows())
    return lambda: {name: row for name, row in auditor.rows().items() if name not in before}


def picture(page: Any, name: str) -> None:
    if PICTURES and (IMAGES / f"{name}.png").exists():
        page.screenshot(path=IMAGES / f"{name}.png", full_page=True)


# ---- what a customer does


def go(page: Any, world: World, variant: str) -> None:
    """From the site's front page to the login page of CIP; full mode begins there."""
    if variant == "full":
        page.goto(f"{world.url}/cip/")
        page.get_by_label("Aplicación").fill(APP)
        return
    page.goto(world.site.url)
    name = "Ir a CIP" if variant == "p0" else "Pagar en CIP"
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_url("**/cip/s/login")


def log_in(page: Any, world: World, password: str = "", user: str = "ana") -> None:
    page.get_by_label("Usuario").fill(user)
    page.get_by_label("Contraseña").fill(password or world.password)
    page.get_by_role("button", name="Ingresar").click()


def fill(page: Any, amount: str = "150000", payer: str = "") -> None:
    page.wait_for_url("**/cip/s/payment")  # and until all of it is there
    field = page.get_by_label("Monto en PYG")
    if field.count():
        field.fill(amount)
    page.get_by_label("Nombre", exact=True).fill(payer)
    page.get_by_label("Número de tarjeta").fill(PAN)
    page.get_by_label("Vencimiento").fill("12/30")
    page.get_by_label("Código de seguridad").fill("123")
    page.get_by_role("button", name="Continuar").click()
    page.wait_for_url("**/cip/s/review")


def pay(page: Any) -> str:
    """Pay; returns the confirmation number shown."""
    page.get_by_role("button", name=re.compile("^Pagar ")).click()
    page.wait_for_url("**/cip/s/result")
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    page.wait_for_load_state()
    code: str = page.locator(".number").first.inner_text()
    assert is_code(normalise_code(code))
    return code


def to_review(page: Any, world: World, variant: str) -> None:
    go(page, world, variant)
    log_in(page, world)
    fill(page)


# ---- the three modes


@both
def test_h00_partial_and_back(page: Any, world: World, variant: str) -> None:
    to_review(page, world, variant)
    code = pay(page)
    page.get_by_role("button", name="Volver al sitio").click()
    page.wait_for_url("**/back?session=ses_*")
    assert page.get_by_role("heading", name="Gracias por su pago").is_visible()
    assert code in page.content()
    assert "CONFIRMED" not in page.url


def test_f00_full(page: Any, world: World) -> None:
    page.goto(f"{world.url}/cip/")
    page.get_by_label("Aplicación").fill(APP)
    log_in(page, world)
    fill(page)
    pay(page)
    page.get_by_role("button", name="Salir").click()
    page.wait_for_url("**/cip/")


def test_g00_gateway_through_the_site(page: Any, world: World) -> None:
    page.goto(world.site.url)
    page.get_by_role("button", name="Pagar en este sitio").click()
    page.get_by_role("heading", name="Gracias por su pago").wait_for()


# ---- cases


def test_h01_unknown_application(page: Any, world: World, made: Books) -> None:
    answer = page.goto(f"{world.url}/pay/NOBODY")
    assert answer.status == 404
    assert page.url.endswith("/pay/NOBODY")
    assert page.context.cookies() == []
    assert page.locator(SITE_LINK).count() == 0
    assert made() == {}


@pytest.mark.parametrize("fault", ["alter", "replay", "old"])
def test_h02_context_altered_replayed_or_too_old(
    page: Any, world: World, made: Books, fault: str
) -> None:
    world.site.faults = Faults(**{fault: True})
    try:
        page.goto(world.site.url)
        page.get_by_role("button", name="Pagar en CIP", exact=True).click()
        page.get_by_text("authentication_failed").wait_for()
    finally:
        world.site.faults = Faults()
    # What was replayed had made a session once, and nothing was submitted of it.
    assert [row["status"] for row in made().values()] == ["CREATED"] * (fault == "replay")


def test_h02_the_address_of_a_context_works_once(page: Any, world: World, browser: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    go(page, world, "p1")
    (address,) = [url for url in asked if "/pay/s/" in url]
    thief = browser.new_context(locale="es-PY").new_page()
    assert thief.goto(address).status == 404
    assert thief.context.cookies() == []
    thief.context.close()


def test_h03_return_url_not_listed(page: Any, world: World, made: Books) -> None:
    answer = page.goto(f"{world.url}/pay/{APP}?return_url=https://evil.example/back")
    assert answer.status == 403
    assert page.locator(SITE_LINK).count() == 0
    assert "evil" not in page.content()
    assert page.context.cookies() == []
    world.site.faults = Faults(return_url="https://evil.example/back")
    try:
        page.goto(world.site.url)
        page.get_by_role("button", name="Pagar en CIP", exact=True).click()
        page.get_by_text("invalid_fields").wait_for()
    finally:
        world.site.faults = Faults()
    assert made() == {}


@every
def test_h06_back_refresh_and_double_click(
    page: Any, world: World, made: Books, variant: str
) -> None:
    to_review(page, world, variant)
    page.get_by_role("button", name=re.compile("^Pagar ")).dblclick(no_wait_after=True)
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    page.wait_for_load_state()
    code = page.locator(".number").first.inner_text()
    page.reload()
    assert page.locator(".number").first.inner_text() == code
    page.go_back()
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    assert page.locator(".number").first.inner_text() == code
    (row,) = made().values()
    assert (row["status"], row["cip_confirmation"]) == ("CONFIRMED", code)


@every
def test_h08_the_customer_cancels(page: Any, world: World, made: Books, variant: str) -> None:
    to_review(page, world, variant)
    page.get_by_role("button", name="Cancelar y volver").click()
    if variant == "full":
        page.wait_for_url("**/cip/")
    else:
        page.wait_for_url("**/back?session=ses_*")
        assert page.get_by_role("heading", name="No se pagó").is_visible()
    assert [row["status"] for row in made().values()] == ["CANCELLED"]


@every
def test_h09_two_tabs_of_one_session(page: Any, world: World, made: Books, variant: str) -> None:
    to_review(page, world, variant)
    second = page.context.new_page()
    second.goto(f"{world.url}/cip/s/review")
    page.get_by_role("button", name=re.compile("^Pagar ")).click()
    page.get_by_role("heading", name="Esta página ya no está vigente").wait_for()
    assert [row["status"] for row in made().values()] == ["CREATED"]
    code = pay(second)
    page.get_by_role("link", name="Ir a la página actual").click()
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    page.wait_for_load_state()
    assert page.locator(".number").first.inner_text() == code
    assert [row["status"] for row in made().values()] == ["CONFIRMED"]


@both
@pytest.mark.parametrize("left", ["h07-closed-after-paying", "h10-never-exits"])
def test_the_outcome_reaches_the_site_without_the_customer(
    page: Any, world: World, auditor: Auditor, made: Books, variant: str, left: str
) -> None:
    """By webhook, report and, where the site has the session's name, query."""
    to_review(page, world, variant)
    if left.startswith("h07"):
        pay_and_leave(page)
    else:
        pay(page)  # and the page stays as it is
    until = time.monotonic() + 60
    while [row["status"] for row in made().values()] != ["CONFIRMED"]:
        assert time.monotonic() < until, "not confirmed"
        time.sleep(0.05)
    ((name, row),) = made().items()
    while not any(
        hook["event"] == "payment.confirmed" and hook["payment"]["payment_id"] == name
        and hook["payment"]["confirmations"]["cip"] == row["cip_confirmation"]
        for hook in list(world.site.webhooks)
    ):  # fmt: skip
        assert time.monotonic() < until, "no webhook"
        time.sleep(0.05)
    run = provision(world.config, "cip_report_run", application=APP)
    assert f"D,payment,{name}," in auditor.report(run["run"])
    if variant == "p1":
        (session,) = [s for s, ref in world.site.sessions.items() if ref == row["client_ref"]]
        assert query(world, session)["payment"]["status"] == "CONFIRMED"


def pay_and_leave(page: Any) -> None:
    """What the browser sends arrives whole, and its connection is gone before any answer.

    Closing a page amid its navigation would leave to chance whether the request gets out.
    """

    def send(route: Any, request: Any) -> None:
        url = httpx.URL(request.url)
        cookies = "; ".join(f"{c['name']}={c['value']}" for c in page.context.cookies(request.url))
        with closing(http.client.HTTPConnection(url.host, url.port, timeout=60)) as connection:
            headers = {**request.headers, "cookie": cookies}
            connection.request("POST", url.path, request.post_data, headers)
        route.abort()

    page.route("**/cip/s/pay", send)
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name=re.compile("^Pagar ")).click(no_wait_after=True)
    page.close()


def query(world: World, session: str) -> dict[str, Any]:
    """The site's signed question about a session."""
    account, path = world.site.account, f"{SESSIONS}/{session}"
    ts, nonce = int(time.time()), secrets.token_hex(16)
    parameters = header_parameters("GET", path, b"", key_id=account.key_id, ts=ts, nonce=nonce)
    headers = {
        "cip-key": account.key_id, "cip-timestamp": str(ts), "cip-nonce": nonce,
        "cip-signature": sign(bytes.fromhex(account.key), KIND_QUERY, parameters),
    }  # fmt: skip
    answer = httpx.get(f"{world.url}{path}", headers=headers, timeout=60, trust_env=False)
    told: dict[str, Any] = answer.raise_for_status().json()
    return told


def test_f02_exit_then_back(page: Any, world: World) -> None:
    page.goto(f"{world.url}/cip/")
    page.get_by_label("Aplicación").fill(APP)
    log_in(page, world)
    fill(page)
    code = pay(page)
    page.get_by_role("button", name="Salir").click()
    page.wait_for_url("**/cip/")
    page.go_back()
    page.get_by_role("heading", name="La sesión terminó").wait_for()
    assert code not in page.content()
    assert "411111" not in page.content()


WRONG = "Los datos no son correctos. Revise e intente otra vez."


def is_told_wrong(page: Any) -> bool:
    page.get_by_role("alert").wait_for()
    page.wait_for_load_state()
    return bool(page.get_by_role("alert").inner_text() == WRONG)


def test_h04_and_f01_wrong_credentials_then_locked(tmp_path: Path, browser: Any) -> None:
    """Retry, counted, then locked: the lock is told like any other mistake, in every mode."""
    settings = {"cip.auth_max_failures": 3, "cip.budget_auth_s": 20.0}
    with threaded(tmp_path / "node", settings) as world:
        page = browser.new_context(locale="es-PY").new_page()
        page.set_default_timeout(WAIT_MS)
        for application, user in (("NOBODY", "ana"), (APP, "nobody"), (APP, "portal")):
            page.goto(f"{world.url}/cip/")
            page.get_by_label("Aplicación").fill(application)
            log_in(page, world, user=user)
            assert is_told_wrong(page)
        for variant in ("p0", "p1", "full"):  # ana has one try before the lock in each
            go(page, world, variant)
            log_in(page, world, "not the right one")
            assert is_told_wrong(page)
        for variant in ("p0", "p1", "full"):
            go(page, world, variant)
            log_in(page, world)
            assert is_told_wrong(page)
        with closing(Auditor(world)) as auditor:
            assert {row["status"] for row in auditor.rows().values()} == {"CREATED"}  # of p1
        provision(world.config, "cip_user_state", application=APP, user="ana", what="unlock")
        log_in(page, world)
        page.get_by_role("heading", name="Datos del pago").wait_for()
        page.context.close()


def test_h05_sessions_that_were_left_alone(tmp_path: Path, browser: Any) -> None:
    """A message, a link back, and FAILED (expired); in every mode at once."""
    settings = {"cip.session_idle_s": IDLE_S, "cip.budget_auth_s": 20.0}
    with threaded(tmp_path / "node", settings) as world:
        pages = {}
        for variant in ("p0", "p1", "full"):
            page = pages[variant] = browser.new_context(locale="es-PY").new_page()
            page.set_default_timeout(WAIT_MS)
            to_review(page, world, variant)
        with closing(Auditor(world)) as auditor:
            until = time.monotonic() + 90
            while {row["status"] for row in auditor.rows().values()} != {"FAILED"}:
                assert time.monotonic() < until, "they do not end"
                time.sleep(0.2)
            assert len(auditor.rows()) == 3
            for variant, page in pages.items():
                page.get_by_role("button", name=re.compile("^Pagar ")).click()
                page.get_by_role("heading", name="La sesión terminó").wait_for()
                assert page.locator(".number").count() == 0
                page.locator("a.button").click()
                page.wait_for_url("**/cip/" if variant == "full" else "**/back?session=ses_*")
                page.context.close()
            assert {row["status"] for row in auditor.rows().values()} == {"FAILED"}


# ---- by keyboard, for screen readers, for the documentation


@pytest.mark.parametrize("variant", ["p0", "full"])
def test_the_keyboard_is_enough(plain: Any, world: World, variant: str) -> None:
    page = plain
    page.goto(f"{world.url}/cip/" if variant == "full" else f"{world.url}/pay/{APP}")
    keys = page.keyboard

    def tab_to(label: str) -> None:
        for _ in range(40):
            keys.press("Tab")
            found = page.evaluate(
                "() => { const e = document.activeElement;"
                " return (e.labels && e.labels[0] || e).textContent.trim(); }"
            )
            if found.startswith(label):
                return
        raise AssertionError(f"Tab does not come to {label}")

    who = (("Aplicación", APP), ("Usuario", "ana"), ("Contraseña", world.password))
    for label, text in who[variant != "full" :]:
        tab_to(label)
        keys.type(text)
    keys.press("Enter")
    page.wait_for_url("**/cip/s/payment")
    for label, text in (("Monto en PYG", "150000"), ("Número de tarjeta", PAN),
                        ("Vencimiento", "12/30"), ("Código de seguridad", "123")):  # fmt: skip
        tab_to(label)
        keys.type(text)
    keys.press("Enter")
    page.wait_for_url("**/cip/s/review")
    tab_to("Pagar ")
    keys.press("Enter")
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    tab_to("Salir" if variant == "full" else "Volver al sitio")
    keys.press("Enter")
    page.wait_for_url("**/cip/" if variant == "full" else "**/back?session=ses_*")


def test_axe_finds_nothing_serious(plain: Any, world: World) -> None:
    page = plain
    found: dict[str, list[str]] = {}

    def look(name: str) -> None:
        page.wait_for_load_state()  # half a page has findings of its own
        found[name] = axe.serious(page)
        picture(page, name)

    page.goto(f"{world.url}/cip/")
    look("full-login")
    page.get_by_label("Aplicación").fill(APP)
    log_in(page, world, "not the right one")
    assert is_told_wrong(page)
    look("full-login-wrong")
    page.goto(f"{world.url}/pay/NOBODY")
    look("error")
    page.set_content(environment("es").get_template("unlock.html").render(
        csrf="x", link="x", done=False))  # fmt: skip
    look("unlock")
    go(page, world, "p1")
    look("partial-login")
    log_in(page, world)
    page.get_by_role("heading", name="Datos del pago").wait_for()
    look("payment")
    page.get_by_role("button", name="Continuar").click()
    page.get_by_text("Hay datos para corregir").wait_for()
    look("payment-faults")
    fill(page)
    look("review")
    second = page.context.new_page()
    second.goto(f"{world.url}/cip/s/review")
    page.get_by_role("button", name=re.compile("^Pagar ")).click()
    page.get_by_role("heading", name="Esta página ya no está vigente").wait_for()
    look("stale")
    page.goto(f"{world.url}/cip/s/review")
    second.close()
    pay(page)
    look("result")
    page.get_by_role("button", name="Volver al sitio").click()
    page.wait_for_url("**/back?session=ses_*")
    page.goto(f"{world.url}/cip/s/result")
    look("over")
    go(page, world, "full")
    log_in(page, world)
    fill(page, "150051")
    page.get_by_role("button", name=re.compile("^Pagar ")).click()
    page.get_by_text("Fondos insuficientes").wait_for()
    look("declined")
    look_at_desk(page, world, look)
    assert {name: findings for name, findings in found.items() if findings} == {}


def look_at_desk(page: Any, world: World, look: Callable[[str], None]) -> None:
    """Every page of the service desk, by its roles."""
    page.goto(f"{world.url}/cip/desk/")
    look("desk-login")
    page.get_by_label("Aplicación").fill(APP)
    page.get_by_label("Usuario").fill("clara")
    page.get_by_label("Contraseña").fill(world.password)
    page.get_by_role("button", name="Ingresar").click()
    page.locator("#payments tbody tr").first.wait_for()
    look("desk")
    page.locator("#payments tbody a").first.click()
    page.get_by_role("heading", name="Historia").wait_for()
    look("desk-payment")
    for name in ("times", "pending", "payments/pay_0", "reports"):
        page.goto(f"{world.url}/cip/desk/{name}")
        look(f"desk-{name.partition('/')[0]}")
    page.get_by_role("link", name=re.compile("^20[0-9]{2}$")).first.click()
    page.locator("#year").wait_for()
    look("desk-year")
    to_desk(page, world, "ada")
    page.get_by_role("link", name="Administración").click()
    page.get_by_role("button", name="Pedir una clave más").click()
    page.get_by_text("espera a otra persona").wait_for()
    look("desk-admin")
    to_desk(page, world, "abel")
    page.get_by_role("link", name="Administración").click()
    look("desk-admin-approve")
    page.get_by_role("button", name=re.compile("^Aprobar ")).click()
    page.locator("#key").wait_for()
    look("desk-key")
    to_desk(page, world, "aura")
    page.get_by_role("link", name="Accesos").click()
    page.locator("#access").wait_for()
    look("desk-access")


def to_desk(page: Any, world: World, user: str) -> None:
    """Somebody else sits down at the service desk."""
    page.goto(f"{world.url}/cip/desk/")
    page.get_by_role("button", name="Salir").click()
    page.get_by_label("Aplicación").fill(APP)
    page.get_by_label("Usuario").fill(user)
    page.get_by_label("Contraseña").fill(world.password)
    page.get_by_role("button", name="Ingresar").click()
    page.get_by_role("heading", name="Pagos").wait_for()


def test_a_pending_page_refreshes_itself(page: Any, world: World) -> None:
    page.goto(f"{world.url}/cip/")
    page.get_by_label("Aplicación").fill(APP)
    log_in(page, world)
    fill(page, "150072")  # pending after 3 s, known after 8 s
    page.get_by_role("button", name=re.compile("^Pagar ")).click()
    page.get_by_text("No vuelva a pagar").wait_for()
    page.get_by_text("Referencia").wait_for()
    picture(page, "pending")
    page.get_by_role("heading", name="Pago confirmado").wait_for()


def test_q01_and_q02_view_and_csv(plain: Any, world: World, auditor: Auditor) -> None:
    """The first look after the confirmation has it: nobody waits, not even for a second."""
    page = plain
    evil = '=HYPERLINK("http://evil.example")'
    go(page, world, "full")
    log_in(page, world)
    fill(page, payer=evil)
    desk = page.context.new_page()
    desk.goto(f"{world.url}/cip/desk/")
    desk.get_by_label("Aplicación").fill(APP)
    desk.get_by_label("Usuario").fill("aura")
    desk.get_by_label("Contraseña").fill(world.password)
    desk.get_by_role("button", name="Ingresar").click()
    desk.get_by_role("heading", name="Pagos").wait_for()
    code = pay(page)
    desk.reload()
    listed = {row["cip_confirmation"]: row for row in auditor.rows().values()}
    assert code in desk.locator("#payments").inner_text()
    assert listed[code]["payer_name"] == "'" + evil
    desk.get_by_label("Estado").select_option("CONFIRMED")
    desk.get_by_role("button", name="Buscar").click()
    desk.wait_for_url("**status=CONFIRMED**")
    names = desk.locator("#payments tbody tr").evaluate_all(
        "rows => rows.map(row => row.dataset.payment)"
    )
    link = desk.get_by_role("link", name="CSV de este filtro").get_attribute("href")
    text = desk.request.get(f"{world.url}{link}").text()
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [line["payment_id"] for line in lines][: len(names)] == names
    assert {line["status"] for line in lines} == {"CONFIRMED"}
    totals = re.match(
        r"(\d+) pagos, (\d+) confirmados por ([\d.]+)", desk.locator("#totals").inner_text()
    )
    assert totals is not None
    sums = [int(text.replace(".", "")) for text in totals.groups()]
    assert sums == [len(lines), len(lines), sum(int(line["amount_minor"]) for line in lines)]


def test_pages_are_english_for_who_reads_no_spanish(browser: Any, world: World) -> None:
    page = browser.new_context(locale="en-GB").new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{world.url}/cip/")
    page.get_by_label("Application").fill(APP)
    page.get_by_label("User").fill("ana")
    page.get_by_label("Password").fill(world.password)
    page.get_by_role("button", name="Log in").click()
    page.get_by_label("Amount in PYG").fill("150,000")
    page.get_by_label("Card number").fill(PAN)
    page.get_by_label("Expiry").fill("12/30")
    page.get_by_label("Security code").fill("123")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Pay 150,000 PYG").click()
    page.get_by_role("heading", name="Payment confirmed").wait_for()
    page.context.close()
