"""Cases marked B in headless Chromium, against a running node and the SOF site.

TRONCAL_SCREENSHOTS=1 renews the pictures of the documentation.
"""

import csv
import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols.cip import is_code, normalise_code
from switch.cli.cip_world import APP, World
from switch.simulators.cip_sof import Faults
from tests.e2e import axe
from tests.e2e.cip_threaded import project, threaded

pytestmark = pytest.mark.timeout(300)
IMAGES = Path(__file__).parents[2] / "docs" / "images" / "cip"
PICTURES = os.environ.get("TRONCAL_SCREENSHOTS") == "1"
WAIT_MS = 60_000
PAN = "4111111111111111"
both = pytest.mark.parametrize("variant", ["p0", "p1"])


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


def picture(page: Any, name: str) -> None:
    if PICTURES:
        IMAGES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=IMAGES / f"{name}.png", full_page=True)


# ---- what a customer does


def go(page: Any, world: World, variant: str) -> None:
    """From the site's front page to the login page of CIP."""
    page.goto(world.site.url)
    name = "Ir a CIP" if variant == "p0" else "Pagar en CIP"
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_url("**/cip/s/login")


def log_in(page: Any, world: World, password: str = "") -> None:
    page.get_by_label("Usuario").fill("ana")
    page.get_by_label("Contraseña").fill(password or world.password)
    page.get_by_role("button", name="Ingresar").click()


def fill(page: Any, amount: str = "150000") -> None:
    field = page.get_by_label("Monto en PYG")
    if field.count():
        field.fill(amount)
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


def test_h01_unknown_application(page: Any, world: World) -> None:
    answer = page.goto(f"{world.url}/pay/NOBODY")
    assert answer.status == 404
    assert page.url.endswith("/pay/NOBODY")
    assert page.context.cookies() == []
    assert page.locator("a[href^=http]").count() == 0


@pytest.mark.parametrize("fault", ["alter", "replay"])
def test_h02_context_altered_or_replayed(page: Any, world: World, fault: str) -> None:
    world.site.faults = Faults(**{fault: True})
    try:
        page.goto(world.site.url)
        page.get_by_role("button", name="Pagar en CIP", exact=True).click()
        page.get_by_text("authentication_failed").wait_for()
    finally:
        world.site.faults = Faults()


def test_h03_return_url_not_listed(page: Any, world: World) -> None:
    answer = page.goto(f"{world.url}/pay/{APP}?return_url=https://evil.example/back")
    assert answer.status == 403
    assert page.locator("a").filter(has_not_text="Ir al contenido").count() == 0
    assert "evil" not in page.content()


@both
def test_h06_back_refresh_and_double_click(page: Any, world: World, variant: str) -> None:
    to_review(page, world, variant)
    page.get_by_role("button", name=re.compile("^Pagar ")).dblclick(no_wait_after=True)
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    code = page.locator(".number").first.inner_text()
    page.reload()
    assert page.locator(".number").first.inner_text() == code
    page.go_back()
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    assert page.locator(".number").first.inner_text() == code


@both
def test_h08_the_customer_cancels(page: Any, world: World, variant: str) -> None:
    to_review(page, world, variant)
    page.get_by_role("button", name="Cancelar y volver").click()
    page.wait_for_url("**/back?session=ses_*")
    assert page.get_by_role("heading", name="No se pagó").is_visible()


@both
def test_h09_two_tabs_of_one_session(page: Any, world: World, variant: str) -> None:
    to_review(page, world, variant)
    second = page.context.new_page()
    second.goto(f"{world.url}/cip/s/review")
    page.get_by_role("button", name=re.compile("^Pagar ")).click()
    page.get_by_role("heading", name="Esta página ya no está vigente").wait_for()
    code = pay(second)
    page.get_by_role("link", name="Ir a la página actual").click()
    page.get_by_role("heading", name="Pago confirmado").wait_for()
    assert page.locator(".number").first.inner_text() == code


@both
def test_h10_and_h07_the_outcome_reaches_the_site_without_the_customer(
    page: Any, world: World, variant: str
) -> None:
    to_review(page, world, variant)
    code = pay(page)
    page.close()
    until = time.monotonic() + 30
    while not any(
        hook["event"] == "payment.confirmed" and hook["payment"]["confirmations"]["cip"] == code
        for hook in list(world.site.webhooks)
    ):
        assert time.monotonic() < until, "no webhook"
        time.sleep(0.05)


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


def test_h04_and_f01_wrong_password_then_locked(tmp_path: Path, browser: Any) -> None:
    settings = {"cip.auth_max_failures": 3, "cip.budget_auth_s": 20.0}
    with threaded(tmp_path / "node", settings) as world:
        page = browser.new_context(locale="es-PY").new_page()
        page.set_default_timeout(WAIT_MS)
        go(page, world, "p1")
        for _ in range(3):
            log_in(page, world, "not the right one")
            page.get_by_text("Los datos no son correctos").wait_for()
        log_in(page, world)
        page.get_by_text("Los datos no son correctos").wait_for()
        page.goto(f"{world.url}/cip/")
        page.get_by_label("Aplicación").fill(APP)
        log_in(page, world)  # F01: the same answer in full mode
        page.get_by_text("Los datos no son correctos").wait_for()
        page.context.close()


def test_h05_a_session_that_was_left_alone(tmp_path: Path, browser: Any) -> None:
    settings = {"cip.session_idle_s": 12, "cip.budget_auth_s": 20.0}
    with threaded(tmp_path / "node", settings) as world:
        page = browser.new_context(locale="es-PY").new_page()
        page.set_default_timeout(WAIT_MS)
        go(page, world, "p1")
        log_in(page, world)
        page.get_by_role("heading", name="Datos del pago").wait_for()
        time.sleep(13)
        page.get_by_role("button", name="Continuar").click()
        page.get_by_role("heading", name="La sesión terminó").wait_for()
        assert page.locator("a.button").count() == 1
        page.context.close()


# ---- by keyboard, for screen readers, for the documentation


def test_the_keyboard_is_enough(plain: Any, world: World) -> None:
    page = plain
    page.goto(f"{world.url}/cip/")
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

    for label, text in (("Aplicación", APP), ("Usuario", "ana"), ("Contraseña", world.password)):
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
    tab_to("Salir")
    keys.press("Enter")
    page.wait_for_url("**/cip/")


def test_axe_finds_nothing_serious(plain: Any, world: World) -> None:
    page = plain
    found: dict[str, list[str]] = {}

    def look(name: str) -> None:
        found[name] = axe.serious(page)
        picture(page, name)

    page.goto(f"{world.url}/cip/")
    look("full-login")
    page.goto(f"{world.url}/pay/NOBODY")
    look("error")
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
    pay(page)
    look("result")
    page.goto(f"{world.url}/cip/desk/")
    look("desk-login")
    page.get_by_label("Aplicación").fill(APP)
    page.get_by_label("Usuario").fill("clara")
    page.get_by_label("Contraseña").fill(world.password)
    project(world)
    page.get_by_role("button", name="Ingresar").click()
    page.locator("#payments tbody tr").first.wait_for()
    look("desk")
    page.locator("#payments tbody a").first.click()
    page.get_by_role("heading", name="Historia").wait_for()
    look("desk-payment")
    page.goto(f"{world.url}/cip/desk/reports")
    look("desk-reports")
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
    assert {name: findings for name, findings in found.items() if findings} == {}


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
    fill(page, "150073")
    page.get_by_role("button", name=re.compile("^Pagar ")).click()
    page.get_by_text("No vuelva a pagar").wait_for()
    picture(page, "pending")
    page.get_by_role("heading", name="Pago confirmado").wait_for()


def test_q01_and_q02_view_and_csv(plain: Any, world: World) -> None:
    page = plain
    project(world)  # there is a model; what is paid from here on may not be in it
    page.goto(f"{world.url}/cip/")
    page.get_by_label("Aplicación").fill(APP)
    log_in(page, world)
    fill(page)
    code = pay(page)
    page.goto(f"{world.url}/cip/desk/")
    page.get_by_label("Aplicación").fill(APP)
    page.get_by_label("Usuario").fill("aura")
    page.get_by_label("Contraseña").fill(world.password)
    page.get_by_role("button", name="Ingresar").click()
    page.get_by_role("heading", name="Pagos").wait_for()
    page.get_by_label("Estado").select_option("CONFIRMED")
    page.get_by_role("button", name="Buscar").click()
    page.wait_for_url("**status=CONFIRMED**")
    assert code in page.locator("#payments").inner_text()
    names = page.locator("#payments tbody tr").evaluate_all(
        "rows => rows.map(row => row.dataset.payment)"
    )
    link = page.get_by_role("link", name="CSV de este filtro").get_attribute("href")
    text = page.request.get(f"{world.url}{link}").text()
    lines = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert [line[0] for line in lines][: len(names)] == names
    assert {line[4] for line in lines} == {"CONFIRMED"}
