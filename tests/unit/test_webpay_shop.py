"""The merchant side: payment requests, results, the closing page, its files (WP-49 to WP-53)."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocols.webpay import bitacora, fields, mac, messages, seal, shopform
from switch.web.webpay_orders import OrderError, Orders, Verdict
from switch.web.webpay_shop import MerchantKit, ShopError, ShopResult, reconcile, shop_app
from tests.webpay_shops import MERCHANT, kit, private, public

URLS = (
    ("TBK_URL_EXITO", "http://shop.example.cl/exito?a=1"),
    ("TBK_URL_FRACASO", "http://shop.example.cl/fracaso"),
)
NORMAL = ("TBK_TIPO_TRANSACCION", "TR_NORMAL")


@pytest.fixture
def shop(tmp_path: Path) -> MerchantKit:
    return kit(tmp_path / "bitacora")


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path / "orders.sqlite")


def result(
    order: str = "T1", respuesta: int = 0, amount: str = "599000", tx: str = "77"
) -> ShopResult:
    """A genuine result, signed by Webpay."""
    found = messages.result_pairs(
        messages.ResultFields(
            order=order, respuesta=respuesta, amount=amount, auth_code="154935", last4="6623",
            accounting_date="1122", tx_date="1122", tx_time="120000", session="S1", tx_id=tx,
            pay_type="VN", instalments=0, vci="TSY",
        )
    )  # fmt: skip
    key = private("sim_webpay_4096")
    return ShopResult(found, mac.sign_mac(found, key))


def clock() -> float:
    return 100.0


def check(shop: MerchantKit, orders: Orders, what: ShopResult, **values: Any) -> Verdict:
    return shop.closing_check(what, orders, clock=clock, **values)


def state(orders: Orders, number: str = "T1") -> str:
    order = orders.order(MERCHANT, number)
    assert order is not None
    return order.state


# ---- payment requests


def test_a_request_is_what_the_acquirer_accepts_in_the_kits_order(shop: MerchantKit) -> None:
    form = shop.start([NORMAL, ("TBK_MONTO", "599000"), ("TBK_ORDEN_COMPRA", "T1"), *URLS])
    clear = dict(form.fields)
    assert list(clear) == ["TBK_PARAM", "TBK_VERSION_KCC", "TBK_CODIGO_COMERCIO", "TBK_KEY_ID"]
    opened = seal.open_wire(
        clear["TBK_PARAM"].encode(), private("sim_webpay_4096"), public("merchant_test_2048"),
        spare_key=bytes(32),
    )  # fmt: skip
    names = [pair.partition("=")[0] for pair in opened.message.decode().split("#")]
    assert names[:10] == [
        "TBK_TIPO_TRANSACCION", "TBK_CODIGO_COMERCIO", "TBK_ID_TRANSACCION",
        "TBK_URL_CGI_COMERCIO", "TBK_SERVIDOR_COMERCIO", "TBK_PUERTO_COMERCIO",
        "TBK_VERSION_KCC", "TBK_KEY_ID", "PARAMVERIFCOM", "TBK_MAC",
    ]  # fmt: skip
    profile = fields.Profile(
        code=MERCHANT, currency="CLP", return_hosts=("shop.example.cl",),
        notify_url=shop.settings.notify_url, notify_ip="127.0.0.1", notify_port=8081,
    )  # fmt: skip
    checked = fields.check_request(clear, opened.message, {MERCHANT: profile})
    assert isinstance(checked, fields.PaymentRequest)
    assert (checked.order, checked.hundredths, checked.tx_id) == ("T1", 599000, form.tx_id)
    assert len(shop.start([NORMAL, *_rest()]).tx_id) <= 10


def _rest(**changed: str) -> list[tuple[str, str]]:
    values = {"TBK_MONTO": "599000", "TBK_ORDEN_COMPRA": "T1", **dict(URLS), **changed}
    return list(values.items())


@pytest.mark.parametrize(
    ("changed", "tag"),
    [
        ({"TBK_ORDEN_COMPRA": "T1#TBK_MONTO=100"}, "PAIRS"),
        ({"TBK_ID_SESION": "a#TBK_NUMERO_CUOTAS=2"}, "PAIRS"),
        ({"TBK_MONTO": "10050"}, "AMOUNT"),
        ({"TBK_ORDEN_COMPRA": "año"}, "PAIRS"),
        ({"TBK_ORDEN_COMPRA": "a+b"}, "ORDER"),
        ({"TBK_URL_EXITO": "ftp://shop.example.cl/"}, "URL_OK"),
        ({"TBK_MAC": "0" * 32}, "UNKNOWN_NAME"),
        ({"TBK_NUMERO_CUOTAS": "3"}, "INSTALMENTS"),
    ],
)
def test_what_webpay_would_refuse_never_leaves(
    shop: MerchantKit, changed: dict[str, str], tag: str
) -> None:
    with pytest.raises(ShopError) as caught:
        shop.start([NORMAL, *_rest(**changed)])
    assert caught.value.tag == tag
    assert all(value not in str(caught.value) for value in changed.values())


def test_transaction_ids_of_one_process_never_repeat(shop: MerchantKit) -> None:
    ids = [shop._next_tx_id() for _ in range(50)]
    assert len(set(ids)) == 50


def test_a_refused_request_marks_its_order(shop: MerchantKit, orders: Orders) -> None:
    orders.create(MERCHANT, "T1", "10050")
    with pytest.raises(ShopError):
        shop.start_order(orders, "T1", success=URLS[0][1], failure=URLS[1][1])
    assert state(orders) == "REFUSED"


# ---- the closing page


def test_a_paid_order_is_paid_once_and_says_so(shop: MerchantKit, orders: Orders) -> None:
    orders.create(MERCHANT, "T1", "599000")
    shop.start_order(orders, "T1", success=URLS[0][1], failure=URLS[1][1])
    assert state(orders) == "SENT"
    assert check(shop, orders, result()).word == "ACEPTADO"
    assert state(orders) == "PAID"
    with pytest.raises(OrderError):
        shop.start_order(orders, "T1", success=URLS[0][1], failure=URLS[1][1])


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("mac", lambda r: ShopResult(r.pairs, ("0" if r.mac[0] != "0" else "1") + r.mac[1:])),
        ("amount", lambda r: result(amount="599100")),
        ("amount text", lambda r: result(amount="5990.00")),
        ("order", lambda r: result(order="T2")),
        ("pairs", lambda r: ShopResult((*r.pairs[1:], r.pairs[0]), r.mac)),
    ],
)
def test_wp_49_what_does_not_check_is_rejected_and_nothing_changes(
    shop: MerchantKit, orders: Orders, name: str, spoil: Callable[[ShopResult], ShopResult]
) -> None:
    orders.create(MERCHANT, "T1", "599000")
    orders.send(MERCHANT, "T1", "77")
    assert check(shop, orders, spoil(result())).word == "RECHAZADO"
    assert state(orders) == "SENT"


def test_wp_49_a_code_of_another_merchant_is_rejected(shop: MerchantKit, orders: Orders) -> None:
    orders.create(MERCHANT, "T1", "599000")
    good = result()
    form = [*good.pairs, ("TBK_CODIGO_COMERCIO", "597026007984"), ("TBK_MAC", good.mac)]
    assert shop.closing_page(form, orders, clock=clock).word == "RECHAZADO"
    assert state(orders) == "NEW"


def test_wp_50_a_second_approval_of_a_paid_order_is_rejected(
    shop: MerchantKit, orders: Orders
) -> None:
    orders.create(MERCHANT, "T1", "599000")
    assert check(shop, orders, result(tx="77")).word == "ACEPTADO"
    assert check(shop, orders, result(tx="78")).word == "RECHAZADO"
    assert check(shop, orders, result(tx="77")).word == "ACEPTADO"
    assert state(orders) == "PAID"


def test_wp_51_the_same_result_twice_has_the_same_answer(shop: MerchantKit, orders: Orders) -> None:
    orders.create(MERCHANT, "T1", "599000")
    first = check(shop, orders, result())
    again = check(shop, orders, result())
    assert (first.word, again.word, again.repeated) == ("ACEPTADO", "ACEPTADO", True)
    wrong = result(amount="100000", tx="79")
    assert [check(shop, orders, wrong).word for _ in range(2)] == ["RECHAZADO", "RECHAZADO"]


def test_a_decline_is_accepted_and_leaves_a_paid_order_paid(
    shop: MerchantKit, orders: Orders
) -> None:
    orders.create(MERCHANT, "T1", "599000")
    assert check(shop, orders, result(respuesta=-1, tx="1")).word == "ACEPTADO"
    assert state(orders) == "DECLINED"
    assert check(shop, orders, result(tx="2")).word == "ACEPTADO"
    assert check(shop, orders, result(respuesta=-1, tx="3")).word == "ACEPTADO"
    assert state(orders) == "PAID"


def test_a_shop_that_takes_too_long_takes_nothing(shop: MerchantKit, orders: Orders) -> None:
    orders.create(MERCHANT, "T1", "599000")
    now = [0.0]

    def slow() -> None:
        now[0] = 25.0

    verdict = shop.closing_check(result(), orders, clock=lambda: now[0], before_commit=slow)
    assert (verdict.word, state(orders)) == ("RECHAZADO", "NEW")


def test_wp_52_a_crash_before_the_commit_leaves_the_order_unpaid(
    shop: MerchantKit, orders: Orders
) -> None:
    orders.create(MERCHANT, "T1", "599000")

    def crash() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(shop, orders, result(), before_commit=crash)
    assert state(orders) == "NEW"


def test_wp_52_a_crash_after_the_commit_is_found_by_reconciliation(
    shop: MerchantKit, orders: Orders
) -> None:
    for number in ("T1", "T2"):
        orders.create(MERCHANT, number, "599000")
        check(shop, orders, result(order=number))
    acquirer = b"".join(
        bitacora.line(prefix, MERCHANT, result(order=number).pairs, result(order=number).mac)
        for prefix, number in (("ERR", "T1"), ("ACK", "T2"))
    )
    records = bitacora.parse(acquirer, public("sim_webpay_4096")).records
    assert reconcile(orders, MERCHANT, records) == ["T1"]
    assert (state(orders, "T1"), state(orders, "T2")) == ("DISPUTED", "PAID")
    assert reconcile(orders, MERCHANT, records) == []


def test_orders_survive_in_the_file_and_states_are_only_those(tmp_path: Path) -> None:
    first = Orders(tmp_path / "o.sqlite")
    first.create(MERCHANT, "T1", "100")
    assert Orders(tmp_path / "o.sqlite").order(MERCHANT, "T1") is not None
    with pytest.raises(OrderError):
        first.create(MERCHANT, "T1", "200")
    with sqlite3.connect(tmp_path / "o.sqlite") as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()


# ---- served


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")


def notification(message: bytes, key: str = "sim_webpay_4096") -> bytes:
    """A sealed result as Webpay posts it."""
    wire = seal.seal_wire(
        message, private(key), public("merchant_test_2048"), aes_key=bytes(32), iv=bytes(16)
    )
    return shopform.notification_body(wire, MERCHANT)


FORM = {"content-type": "application/x-www-form-urlencoded"}


async def test_the_kit_opens_decides_writes_and_replies_sealed(
    shop: MerchantKit, orders: Orders
) -> None:
    orders.create(MERCHANT, "T1", "599000")
    text = "#".join(f"{name}={value}" for name, value in result().pairs).encode()
    async with client(shop_app([shop], orders, clock=time.monotonic)) as browser:
        answer = await browser.post(
            "/cgi-bin/tbk_bp_resultado.cgi", content=notification(text), headers=FORM
        )
    opened = seal.open_wire(
        answer.content, private("sim_webpay_4096"), public("merchant_test_2048"),
        spare_key=bytes(32),
    )  # fmt: skip
    assert (opened.message, state(orders)) == (b"ACK", "PAID")
    (file,) = shop.files()
    assert file.name == "tbk_bitacora_TR_NORMAL_1122.log"
    assert file.read_bytes() == bitacora.line("ACK", MERCHANT, result().pairs, result().mac)
    (row,) = shop.log_rows()
    assert (row.outcome_name, row.mac) == ("CONFIRMED", "ok")
    assert len(list(shop.settings.directory.glob("TBK_EVN*.log"))) == 1


async def test_the_line_is_on_disk_before_the_reply_is_made(
    shop: MerchantKit, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.create(MERCHANT, "T1", "599000")
    on_disk: list[int] = []
    seal_message = shop.seal_message

    def sealed(message: bytes) -> str:
        on_disk.append(sum(path.stat().st_size for path in shop.files()))
        return seal_message(message)

    monkeypatch.setattr(shop, "seal_message", sealed)
    text = "#".join(f"{name}={value}" for name, value in result().pairs).encode()
    async with client(shop_app([shop], orders, clock=time.monotonic)) as browser:
        for amount in ("599000", "100"):
            changed = text.replace(b"TBK_MONTO=599000", b"TBK_MONTO=" + amount.encode())
            await browser.post(
                "/cgi-bin/tbk_bp_resultado.cgi", content=notification(changed), headers=FORM
            )
    lines = shop.files()[0].read_bytes().splitlines(keepends=True)
    assert [line[:3] for line in lines] == [b"ACK", b"ERR"]
    assert on_disk == [len(lines[0]), len(lines[0]) + len(lines[1])]


async def test_one_process_serves_many_shops_each_with_its_own_orders(
    shop: MerchantKit, orders: Orders, tmp_path: Path
) -> None:
    other = kit(tmp_path / "other", merchant="597026007984", currency="USD")
    orders.create(MERCHANT, "T1", "599000")
    orders.create("597026007984", "T1", "599000")
    text = "#".join(f"{name}={value}" for name, value in result().pairs).encode()
    body = notification(text).replace(MERCHANT.encode(), b"597026007984")
    async with client(shop_app([shop, other], orders, clock=time.monotonic)) as browser:
        await browser.post("/cgi-bin/tbk_bp_resultado.cgi", content=body, headers=FORM)
    states = [
        found.state for code in (MERCHANT, "597026007984")
        if (found := orders.order(code, "T1")) is not None
    ]  # fmt: skip
    assert states == ["NEW", "PAID"]
    assert (len(shop.files()), len(other.files())) == (0, 1)


def test_a_sale_that_was_rejected_here_disputes_nothing(shop: MerchantKit, orders: Orders) -> None:
    """Of two approvals of an order the second is rejected, and its reversal is as it must be."""
    orders.create(MERCHANT, "T1", "599000")
    assert check(shop, orders, result(tx="77")).word == "ACEPTADO"
    assert check(shop, orders, result(tx="78")).word == "RECHAZADO"
    second = result(tx="78")
    text = bitacora.line("ERR", MERCHANT, second.pairs, second.mac)
    records = bitacora.parse(text, public("sim_webpay_4096")).records
    assert reconcile(orders, MERCHANT, records) == []  # whichever day's file is looked at
    assert state(orders) == "PAID"


async def test_what_the_kit_cannot_open_gets_a_sealed_refusal_and_no_line(
    shop: MerchantKit, orders: Orders
) -> None:
    text = "#".join(f"{name}={value}" for name, value in result().pairs).encode()
    bad = notification(text, key="merchant_test_2048")
    async with client(shop_app([shop], orders, clock=time.monotonic)) as browser:
        answer = await browser.post("/cgi-bin/tbk_bp_resultado.cgi", content=bad, headers=FORM)
        unknown = await browser.post(
            "/cgi-bin/tbk_bp_resultado.cgi", content=b"TBK_CODIGO_COMERCIO=1", headers=FORM
        )
    opened = seal.open_wire(
        answer.content, private("sim_webpay_4096"), public("merchant_test_2048"),
        spare_key=bytes(32),
    )  # fmt: skip
    assert (opened.message, shop.files(), unknown.status_code) == (b"ERR", [], 404)


async def test_the_closing_page_takes_what_old_kits_send(shop: MerchantKit, orders: Orders) -> None:
    orders.create(MERCHANT, "T1", "599000")
    good = result()
    body = shopform.closing_body(good.pairs, good.mac, encoding="kcc")
    async with client(shop_app([shop], orders, clock=time.monotonic)) as browser:
        answer = await browser.post("/xt_compra", content=body)
    assert (answer.text, answer.headers["connection"]) == ("ACEPTADO", "close")
    assert (int(answer.headers["content-length"]), state(orders)) == (8, "PAID")


async def test_wp_53_the_success_page_proves_nothing(shop: MerchantKit, orders: Orders) -> None:
    """An order is paid by its signed result and by nothing a browser can call."""
    orders.create(MERCHANT, "T1", "599000")
    orders.send(MERCHANT, "T1", "1")
    async with client(shop_app([shop], orders, clock=time.monotonic)) as browser:
        await browser.post("/exito", data={"TBK_ORDEN_COMPRA": "T1"})
        answer = await browser.post(
            "/xt_compra", data={"TBK_ORDEN_COMPRA": "T1", "TBK_RESPUESTA": "0"}
        )
    assert (answer.text, state(orders)) == ("RECHAZADO", "SENT")
