"""Webpay in a real browser: every way through the pages, with and without scripts or a mouse.

TRONCAL_SCREENSHOTS=1 renews the pictures of the documentation.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.webpay import bitacora
from switch.cli.webpay_world import Plan, Shop
from switch.sections.webpay import DEBIT_BANKS
from switch.simulators.webpay_merchant import Faults
from tests.e2e.webpay_world import Threaded, threaded
from tests.webpay_shops import APPROVED_PAN, CVV, DECLINED_PAN

pytestmark = pytest.mark.timeout(300)

IMAGES = Path(__file__).parents[2] / "docs" / "images" / "webpay"
PICTURES = os.environ.get("TRONCAL_SCREENSHOTS") == "1"
PAY_MS = 60_000
KIT, DIRECT, SECOND, FIRST, FIXED = range(5)
PLANS = (
    Plan(name="Librería del Puerto"),
    Plan(name="Tienda directa", mode="direct"),
    Plan(name="Comercio 2G", form="2G"),
    Plan(name="Comercio 1G", form="1G"),
    Plan(name="Cuotas del comercio", fixed=(6, 98_333)),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threaded]:
    with threaded(tmp_path_factory.mktemp("webpay") / "node", PLANS) as found:
        yield found


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threaded]:
    """The same with little patience: shops have 12 s, in which a browser shows the waiting page."""
    values = {"ack_timeout_ms = 30_000": "ack_timeout_ms = 12_000"}
    with threaded(tmp_path_factory.mktemp("hasty") / "node", PLANS[:1], values) as found:
        yield found


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threaded]:
    """The same with forms that are good for as short as may be."""
    values = {"form_ttl_s = 600": "form_ttl_s = 10"}
    with threaded(tmp_path_factory.mktemp("brief") / "node", PLANS[:1], values) as found:
        yield found


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threaded]:
    """The same where banks are asked about holders of credit cards too."""
    values = {'holder_auth = "debit"': 'holder_auth = "all"'}
    with threaded(tmp_path_factory.mktemp("asking") / "node", PLANS[:4], values) as found:
        yield found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 900, "height": 860}, locale="es-CL")
    context.set_default_timeout(PAY_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def plain(browser: Any) -> Iterator[Any]:
    """A browser without scripts."""
    context = browser.new_context(java_script_enabled=False, viewport={"width": 900, "height": 860})
    context.set_default_timeout(PAY_MS)
    yield context.new_page()
    context.close()


def picture(page: Any, name: str) -> None:
    if PICTURES:
        IMAGES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=IMAGES / f"{name}.png", full_page=True)


# ---- what a holder does


def shop_of(world: Threaded, number: int = KIT) -> Shop:
    return world.world.shops[number]


def basket(page: Any, world: Threaded, number: int = KIT) -> str:
    """Put something in the basket; returns the order's number, once its page is whole."""
    page.goto(f"http://127.0.0.1:{shop_of(world, number).site_port}/")
    page.get_by_role("button", name="Yerba mate").click()
    page.wait_for_url("**/orden/**")
    order: str = page.url.rpartition("/")[2]
    return order


def buy(
    page: Any, world: Threaded, number: int = KIT, faults: Faults | None = None,
    place: str = "pago",
) -> str:  # fmt: skip
    """Put something in the basket and go to Webpay; returns the order's number."""
    order = basket(page, world, number)
    if faults is not None:
        world.call_sync(shop_of(world, number).merchant.set_faults, order, faults)
    page.get_by_role("button", name="Pagar con Webpay").click()
    page.wait_for_url(f"**/webpay/{place}/**")
    return order


def fill(page: Any, pan: str = APPROVED_PAN, cuotas: str = "VN-0") -> None:
    """Type a credit card."""
    page.get_by_label("Número de tarjeta").fill(pan)
    page.get_by_label("Vencimiento").fill("12/30")
    page.get_by_label("Código de seguridad").fill(CVV)
    page.get_by_label("Cuotas").select_option(cuotas)


def pay(page: Any) -> None:
    page.get_by_role("button", name="Pagar", exact=True).click()


def corrected(page: Any, text: str = "escriba de nuevo") -> None:
    """The form has come back, whole, and says what is wrong."""
    page.get_by_role("alert").filter(has_text=text).wait_for()
    page.wait_for_load_state()


def refresh(page: Any) -> None:
    """As a holder does; a page that renews itself may do so at the same moment, and then one of
    the two is broken off."""
    from playwright.sync_api import Error

    for _ in range(5):
        try:
            page.reload()
        except Error:
            page.wait_for_load_state()
        else:
            return
    raise AssertionError("the page cannot be renewed")


def home(page: Any, *, paid: bool) -> None:
    """The shop's own page after the return; only what its closing page stored counts."""
    title = "Gracias por su compra" if paid else "La orden no está pagada"
    # Not first by the address: a navigation that is broken off on the way would end that wait.
    page.get_by_role("heading", name=title).wait_for()
    page.wait_for_url("**/exito**" if paid else "**/fracaso**")


def line(world: Threaded, order: str, number: int = KIT) -> bitacora.Record:
    """The acquirer's one Bitácora line of an order; waits for the projection."""
    records = lines(world, order, number)
    assert len(records) == 1
    return records[0]


def lines(
    world: Threaded, order: str, number: int = KIT, wait_s: float = 60.0
) -> list[bitacora.Record]:
    config = world.world.config
    directory = config.file(config.webpay.bitacora.dir) / shop_of(world, number).code
    until = time.monotonic() + wait_s
    while True:
        found = [
            record
            for path in directory.rglob("*.log")
            for record in bitacora.parse(path.read_bytes()).records
            if record.value("order") == order
        ]
        if found or time.monotonic() >= until:
            return found
        time.sleep(0.05)


@contextmanager
def thinking(world: Threaded, number: int = KIT) -> Iterator[None]:
    """A shop that has been told keeps its answer to itself until the end of the block."""
    merchant, speak = shop_of(world, number).merchant, trio.Event()
    answer = merchant._notification

    async def later(request: Any) -> Any:
        found = await answer(request)
        await speak.wait()
        return found

    world.call_sync(setattr, merchant, "_notification", later)
    try:
        yield
    finally:
        world.call_sync(setattr, merchant, "_notification", answer)
        world.call_sync(speak.set)


def told(world: Threaded, order: str, number: int = KIT) -> int:
    """How often the shop was told of an order."""
    return sum(seen.order == order for seen in shop_of(world, number).merchant.seen)


def purchases(world: Threaded) -> int:
    """How many purchases the issuer has seen."""
    return len(world.world.issuer.book.entries)


def ended(record: bitacora.Record) -> tuple[str, str | None]:
    return record.prefix, record.value("respuesta")


# ---- success


def test_wp_01_credit_is_paid_and_both_sides_say_so(page: Any, world: Threaded) -> None:
    shop = shop_of(world)
    page.goto(f"http://127.0.0.1:{shop.site_port}/")
    picture(page, "01-tienda")
    order = buy(page, world)
    page.get_by_text("Librería del Puerto").wait_for()
    page.get_by_text("$ 5.900").wait_for()
    picture(page, "02-formulario-credito")
    fill(page)
    pay(page)
    home(page, paid=True)
    picture(page, "08-vuelta-exito")
    record = line(world, order)
    assert (*ended(record), record.value("pay_type")) == ("ACK", "0", "VN")
    page.goto(f"http://127.0.0.1:{shop.site_port}/bitacora")
    row = page.get_by_role("row").filter(has_text=order)
    row.filter(has_text="CONFIRMED").filter(has_text="ok").wait_for()
    picture(page, "09-bitacora")


def test_wp_01_a_closing_page_that_webpay_asks_itself(page: Any, world: Threaded) -> None:
    order = buy(page, world, DIRECT)
    fill(page)
    pay(page)
    home(page, paid=True)
    assert ended(line(world, order, DIRECT)) == ("ACK", "0")


@pytest.mark.parametrize("bank", DEBIT_BANKS, ids=lambda bank: bank.id)
def test_wp_23_debit_of_each_bank(page: Any, world: Threaded, bank: Any) -> None:
    order = buy(page, world)
    page.get_by_text("Tarjeta de débito").click()
    assert not page.get_by_label("Código de seguridad").is_visible()
    page.get_by_label("Banco", exact=True).select_option(label=bank.name)
    page.get_by_label("Número de tarjeta").fill(APPROVED_PAN)
    if bank.id == "bci":
        picture(page, "03-formulario-debito")
    pay(page)
    page.wait_for_url("**/webpay/banco/**")
    page.get_by_role("heading", name=bank.name).wait_for()
    if bank.id == "bci":
        picture(page, "04-banco")
    page.get_by_label("RUT").fill("11.111.111-1")
    page.get_by_label("Clave").fill("123")
    page.get_by_role("button", name="Continuar").click()
    home(page, paid=True)
    record = line(world, order)
    assert ended(record) == ("ACK", "0")
    assert (record.value("pay_type"), record.value("instalments")) == ("VD", "0")
    assert dict(record.pairs)["TBK_VCI"] == "TSY"


@pytest.mark.parametrize(("cuotas", "kind", "count"), [("VC-6", "VC", "6"), ("SI-3", "SI", "3")])
def test_wp_23_instalments(page: Any, world: Threaded, cuotas: str, kind: str, count: str) -> None:
    order = buy(page, world)
    fill(page, cuotas=cuotas)
    pay(page)
    home(page, paid=True)
    record = line(world, order)
    assert (record.value("pay_type"), record.value("instalments")) == (kind, count)


# ---- no success


def test_wp_02_a_decline_leads_to_failure(page: Any, world: Threaded) -> None:
    order = buy(page, world)
    fill(page, DECLINED_PAN)
    pay(page)
    home(page, paid=False)
    assert ended(line(world, order)) == ("ACK", "-1")


def test_wp_04_a_shop_that_rejects_has_its_sale_reversed(plain: Any, world: Threaded) -> None:
    order = buy(plain, world, faults=Faults(answer="rechazado"))
    fill(plain)
    pay(plain)
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_text("72 horas").wait_for()
    picture(plain, "07-reversada")
    plain.get_by_role("button", name="Volver al comercio").click()
    plain.wait_for_url("**/fracaso**")
    assert ended(line(world, order)) == ("ERR", "0")


def test_wp_22_a_bank_that_does_not_know_its_holder(page: Any, world: Threaded) -> None:
    before = purchases(world)
    order = buy(page, world)
    page.get_by_text("Tarjeta de débito").click()
    page.get_by_label("Banco", exact=True).select_option("bbva")
    page.get_by_label("Número de tarjeta").fill(APPROVED_PAN)
    pay(page)
    page.get_by_label("RUT").fill("11.111.111-1")
    page.get_by_label("Clave").fill("124")
    page.get_by_role("button", name="Continuar").click()
    home(page, paid=False)
    record = line(world, order)
    assert (*ended(record), dict(record.pairs)["TBK_VCI"]) == ("ACK", "-1", "TSN")
    assert purchases(world) == before


def test_wp_24_a_2g_form_has_credit_only(page: Any, world: Threaded) -> None:
    order = buy(page, world, SECOND)
    assert page.get_by_text("Tarjeta de débito").count() == 0
    picture(page, "10-formulario-2g")
    page.evaluate("document.querySelector('[name=tipo]').value = 'D'")
    page.get_by_label("Número de tarjeta").fill(APPROVED_PAN)
    pay(page)
    page.get_by_role("alert").wait_for()
    assert (told(world, order, SECOND), lines(world, order, SECOND, 0)) == (0, [])


def test_wp_24_a_1g_form_has_credit_only(page: Any, world: Threaded) -> None:
    order = buy(page, world, FIRST)
    assert page.get_by_text("Tarjeta de débito").count() == 0
    assert page.get_by_label("Banco").count() == 0
    picture(page, "12-formulario-1g")
    page.evaluate("document.querySelector('[name=tipo]').value = 'D'")
    page.get_by_label("Número de tarjeta").fill(APPROVED_PAN)
    pay(page)
    page.get_by_role("alert").wait_for()
    assert (told(world, order, FIRST), lines(world, order, FIRST, 0)) == (0, [])
    fill(page)
    pay(page)
    home(page, paid=True)
    record = line(world, order, FIRST)
    assert (*ended(record), dict(record.pairs)["TBK_VCI"]) == ("ACK", "0", "NP")


def test_a_1g_form_asks_no_bank_and_a_2g_form_does(page: Any, asking: Threaded) -> None:
    """Where holders of credit cards are asked, those of 1G are not."""
    asked = len(asking.world.bank.asked)
    order = buy(page, asking, FIRST)
    fill(page)
    pay(page)
    home(page, paid=True)
    assert dict(line(asking, order, FIRST).pairs)["TBK_VCI"] == "NP"
    assert len(asking.world.bank.asked) == asked
    order = buy(page, asking, SECOND)
    fill(page)
    pay(page)
    page.wait_for_url("**/webpay/banco/**")
    page.get_by_label("RUT").fill("11.111.111-2")
    page.get_by_label("Clave").fill("123")
    page.get_by_role("button", name="Continuar").click()
    page.get_by_role("alert").wait_for()
    assert page.get_by_label("Clave").input_value() == ""
    picture(page, "14-banco-rut-malo")
    page.get_by_label("RUT").fill("11.111.111-1")
    page.get_by_label("Clave").fill("123")
    page.get_by_role("button", name="Continuar").click()
    home(page, paid=True)
    assert dict(line(asking, order, SECOND).pairs)["TBK_VCI"] == "TSY"
    assert asking.world.bank.asked[asked:] == [("", "C")]


def test_wp_22_the_holder_leaves_its_bank_in_the_browser(plain: Any, asking: Threaded) -> None:
    order = buy(plain, asking, KIT)
    fill(plain)
    pay(plain)
    plain.wait_for_url("**/webpay/banco/**")
    plain.get_by_role("button", name="Abandonar").click()
    plain.wait_for_url("**/webpay/final/**")
    record = line(asking, order)
    assert (*ended(record), dict(record.pairs)["TBK_VCI"]) == ("ACK", "-1", "ABO")


def test_instalments_that_the_shop_has_fixed(page: Any, world: Threaded) -> None:
    order = buy(page, world, FIXED)
    assert page.get_by_text("Tarjeta de débito").count() == 0
    choices = page.get_by_label("Cuotas").locator("option").all_inner_texts()
    assert choices == ["6 cuotas fijas"]
    picture(page, "13-cuotas-del-comercio")
    page.evaluate("document.querySelector('#cuotas option').value = 'VC-12'")
    fill(page, cuotas="VC-12")
    pay(page)
    corrected(page, "Elija la cantidad de cuotas")
    assert told(world, order, FIXED) == 0
    fill(page, cuotas="CI-6")
    pay(page)
    home(page, paid=True)
    record = line(world, order, FIXED)
    kind = (record.value("pay_type"), record.value("instalments"))
    assert (*ended(record), *kind) == ("ACK", "0", "CI", "6")


def test_wrong_input_is_told_and_nothing_secret_comes_back(page: Any, world: Threaded) -> None:
    buy(page, world)
    fill(page, "4051885600446624", "VC-12")
    pay(page)
    corrected(page, "Revise el número de tarjeta")
    assert page.get_by_label("Número de tarjeta").input_value() == ""
    assert page.get_by_label("Código de seguridad").input_value() == ""
    assert page.get_by_label("Cuotas").input_value() == "VC-12"
    # Six digits: addresses and nonces are hexadecimal, and have any four of them now and then.
    assert not re.search("405188|446624", page.content() + page.url)
    picture(page, "05-datos-malos")
    fill(page)
    pay(page)
    home(page, paid=True)


def test_wp_46_the_third_bad_number_ends_it(page: Any, world: Threaded) -> None:
    order = buy(page, world)
    for tries in (1, 2, 3):
        fill(page, "4051885600446624")
        pay(page)
        if tries < 3:
            corrected(page, f"{tries} de 3 intentos")
    home(page, paid=False)
    assert (told(world, order), lines(world, order, wait_s=0)) == (0, [])


def test_wp_46_cancel(page: Any, world: Threaded) -> None:
    order = buy(page, world)
    page.get_by_role("button", name="Anular").click()
    home(page, paid=False)
    assert (told(world, order), lines(world, order, wait_s=0)) == (0, [])


def test_wp_46_a_form_that_waits_too_long_expires_by_itself(plain: Any, brief: Threaded) -> None:
    order = buy(plain, brief, place="*")  # on a slow machine the form is gone already
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_text("El tiempo para pagar terminó").wait_for()
    plain.get_by_role("button", name="Volver al comercio").click()
    plain.wait_for_url("**/fracaso**")
    assert (told(brief, order), lines(brief, order, wait_s=0)) == (0, [])


def test_wp_05_the_waiting_page_until_a_silent_shop_has_lost_its_sale(
    plain: Any, hasty: Threaded
) -> None:
    order = buy(plain, hasty, faults=Faults(answer="none"))
    fill(plain)
    pay(plain)
    plain.wait_for_url("**/webpay/espera/**")
    plain.get_by_role("heading", name="Estamos procesando").wait_for()
    picture(plain, "06-espera")
    refresh(plain)
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_text("72 horas").wait_for()
    assert ended(line(hasty, order)) == ("ERR", "0")


# ---- browsers do what they like


def test_wp_44_a_double_click_pays_once(page: Any, world: Threaded) -> None:
    before = purchases(world)
    order = buy(page, world)
    fill(page)
    page.get_by_role("button", name="Pagar", exact=True).dblclick()
    home(page, paid=True)
    assert (told(world, order), purchases(world) - before) == (1, 1)
    assert ended(line(world, order)) == ("ACK", "0")


def test_wp_44_two_tabs_pay_once(page: Any, world: Threaded) -> None:
    before = purchases(world)
    order = buy(page, world)
    second = page.context.new_page()
    second.goto(page.url)
    fill(page)
    fill(second)
    with thinking(world):
        pay(page)
        page.wait_for_url("**/webpay/espera/**")
        pay(second)
        second.wait_for_url("**/webpay/espera/**")
    home(page, paid=True)
    home(second, paid=True)
    assert (told(world, order), purchases(world) - before) == (1, 1)


def test_wp_45_back_and_refresh_pay_nothing_again(plain: Any, world: Threaded) -> None:
    before = purchases(world)
    order = buy(plain, world)
    form = plain.url
    fill(plain)
    with thinking(world):
        pay(plain)
        plain.wait_for_url("**/webpay/espera/**")
        refresh(plain)
    plain.wait_for_url("**/webpay/final/**")
    final = plain.url
    plain.reload()
    plain.get_by_role("heading", name="Pago aprobado").wait_for()
    picture(plain, "07-aprobada")
    plain.goto(form)
    assert plain.url == final
    plain.go_back()
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_role("button", name="Volver al comercio").click()
    home(plain, paid=True)
    assert (told(world, order), purchases(world) - before) == (1, 1)


def test_wp_43_the_same_request_again(page: Any, world: Threaded, browser: Any) -> None:
    """With the cookie to the present page, without it to an error; never to a second payment."""
    shop = shop_of(world)
    order = basket(page, world)
    fields = {
        field.get_attribute("name"): field.get_attribute("value")
        for field in page.locator("input[type=hidden]").all()
    }
    assert "TBK_PARAM" in fields
    page.get_by_role("button", name="Pagar con Webpay").click()
    fill(page)
    pay(page)
    home(page, paid=True)
    url = shop.merchant.acquirer_url
    again = page.context.request.post(url, form=fields)
    assert "Pago aprobado" in again.text()
    stranger = browser.new_context()
    refused = stranger.request.post(url, form=fields)
    assert refused.status == 400
    assert "<!-- Codigo Error: 21 -->" in refused.text()
    stranger.close()
    assert told(world, order) == 1
    assert ended(line(world, order)) == ("ACK", "0")


def test_wp_42_an_order_started_again_ends_its_first_page(plain: Any, world: Threaded) -> None:
    order = buy(plain, world)
    second = plain.context.new_page()
    second.goto(f"http://127.0.0.1:{shop_of(world).site_port}/orden/{order}")
    second.get_by_role("button", name="Pagar con Webpay").click()
    second.wait_for_url("**/webpay/pago/**")
    fill(plain)
    pay(plain)
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_text("inició otro pago").wait_for()
    fill(second)
    pay(second)
    second.wait_for_url("**/webpay/final/**")
    second.get_by_role("heading", name="Pago aprobado").wait_for()
    assert (told(world, order), ended(line(world, order))) == (1, ("ACK", "0"))


def test_wp_47_a_browser_that_is_closed_changes_nothing(browser: Any, world: Threaded) -> None:
    context = browser.new_context()
    context.set_default_timeout(PAY_MS)
    page = context.new_page()
    order = buy(page, world)
    fill(page)
    with thinking(world):
        pay(page)
        page.wait_for_url("**/webpay/espera/**")
        context.close()
    assert ended(line(world, order)) == ("ACK", "0")
    stored = shop_of(world).merchant.orders.order(shop_of(world).code, order)
    assert stored is not None
    assert stored.state == "PAID"


def test_wp_53_the_success_page_alone_pays_nothing(page: Any, world: Threaded) -> None:
    shop = shop_of(world)
    order = basket(page, world)
    page.goto(f"http://127.0.0.1:{shop.site_port}/exito?TBK_ORDEN_COMPRA={order}")
    page.get_by_role("heading", name="La orden no está pagada").wait_for()
    stored = shop.merchant.orders.order(shop.code, order)
    assert stored is not None
    assert stored.state == "SENT"


# ---- everybody can pay


def test_keyboard_only(page: Any, world: Threaded) -> None:
    order = buy(page, world)
    keyboard = page.keyboard
    page.locator("body").press("Tab")  # skip link
    reached: list[str] = []
    typed = {"numero": APPROVED_PAN, "vencimiento": "12/30", "codigo": CVV}
    for _ in range(12):
        keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        reached.append(name)
        outline = page.evaluate(
            "(e => [e, e.nextElementSibling || e].some(x => getComputedStyle(x).outlineStyle"
            " !== 'none'))(document.activeElement)"
        )
        assert outline, f"focus on {name} cannot be seen"
        if name in typed:
            keyboard.type(typed[name])
        if name == "cuotas":
            keyboard.press("ArrowDown")
        if name == "Pagar":
            keyboard.press("Enter")
            break
    assert reached == ["credito", "numero", "vencimiento", "codigo", "cuotas", "Pagar"]
    home(page, paid=True)
    assert line(world, order).value("pay_type") == "SI"


@pytest.mark.parametrize(
    ("number", "choice"), [(FIRST, "VN"), (SECOND, "VN"), (FIXED, "CI")], ids=["1g", "2g", "cic"]
)
def test_credit_forms_by_keyboard(page: Any, world: Threaded, number: int, choice: str) -> None:
    """From the top of the page with Tab and Enter alone."""
    order = buy(page, world, number)
    keyboard = page.keyboard
    page.locator("body").press("Tab")  # skip link
    reached: list[str] = []
    typed = {"numero": APPROVED_PAN, "vencimiento": "12/30", "codigo": CVV}
    for _ in range(8):
        keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        reached.append(name)
        keyboard.type(typed.get(name, ""))
        if name == "Pagar":
            keyboard.press("Enter")
            break
    assert reached == ["numero", "vencimiento", "codigo", "cuotas", "Pagar"]
    home(page, paid=True)
    record = line(world, order, number)
    assert (*ended(record), record.value("pay_type")) == ("ACK", "0", choice)


@pytest.mark.parametrize(
    ("number", "cuotas"), [(FIRST, "VC-6"), (SECOND, "VC-6"), (FIXED, "CI-6")],
    ids=["1g", "2g", "cic"],
)  # fmt: skip
def test_credit_forms_without_scripts(
    plain: Any, world: Threaded, number: int, cuotas: str
) -> None:
    order = buy(plain, world, number)
    fill(plain, "4051885600446624", cuotas)
    pay(plain)
    corrected(plain)
    assert plain.get_by_label("Cuotas").input_value() == cuotas
    fill(plain, cuotas=cuotas)
    pay(plain)
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_role("button", name="Volver al comercio").click()
    home(plain, paid=True)
    record = line(world, order, number)
    assert (*ended(record), record.value("pay_type")) == ("ACK", "0", cuotas[:2])


def test_debit_without_scripts(plain: Any, world: Threaded) -> None:
    order = buy(plain, world)
    plain.get_by_text("Tarjeta de débito").click()
    plain.get_by_label("Banco", exact=True).select_option("estado")
    plain.get_by_label("Número de tarjeta").fill(APPROVED_PAN)
    pay(plain)
    plain.wait_for_url("**/webpay/banco/**")
    plain.get_by_label("RUT").fill("11111111-1")
    plain.get_by_label("Clave").fill("123")
    plain.get_by_role("button", name="Continuar").click()
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_role("button", name="Volver al comercio").click()
    home(plain, paid=True)
    assert line(world, order).value("pay_type") == "VD"


def test_debit_by_keyboard(page: Any, world: Threaded) -> None:
    buy(page, world)
    page.locator("#credito").press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.type("BBVA")
    page.keyboard.press("Tab")
    page.keyboard.type(APPROVED_PAN)
    page.keyboard.press("Enter")
    page.wait_for_url("**/webpay/banco/**")
    page.get_by_label("RUT").press("Tab")
    page.keyboard.type("123")
    page.get_by_label("RUT").focus()
    page.keyboard.type("11111111-1")
    page.keyboard.press("Enter")
    home(page, paid=True)


def test_no_script_at_all(plain: Any, world: Threaded) -> None:
    order = buy(plain, world)
    fill(plain)
    pay(plain)
    plain.wait_for_url("**/webpay/final/**")
    plain.get_by_role("button", name="Volver al comercio").click()
    home(plain, paid=True)
    assert ended(line(world, order)) == ("ACK", "0")


def test_every_field_has_a_name_and_pages_break_no_policy(page: Any, world: Threaded) -> None:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    buy(page, world)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), select')]"
        ".filter(e => !e.labels.length).map(e => e.name)"
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "es-CL"
    fill(page)
    pay(page)
    home(page, paid=True)
    assert [text for text in complaints if re.search("Content Security Policy|Error", text)] == []
    page.set_viewport_size({"width": 360, "height": 740})
    buy(page, world)
    wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    assert not wide
    picture(page, "11-formulario-movil")
