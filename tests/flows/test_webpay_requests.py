"""Acceptance cases WP-34 to WP-48: requests, orders, repeats, and what a holder does twice."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocols.webpay import seal
from protocols.webpay.mac import payment_mac
from protocols.webpay.messages import NO_TOKEN, parse_token_reply
from switch.flows import webpay_records as rec
from switch.web.webpay import Entered, Refused
from tests import webpay_house
from tests.webpay_house import (
    BAD_CARD,
    CODE,
    Acquirer,
    Bank,
    Page,
    Shop,
    acquiring,
    card,
    key,
    request_pairs,
    sealed_request,
    until,
)


def payments(acquirer: Acquirer) -> int:
    return acquirer.node.store.records.count(rec.PAYMENTS)


async def refusal(acquirer: Acquirer, fields: dict[str, str]) -> Refused:
    found = await acquirer.service.enter(fields, "127.0.0.1")
    assert isinstance(found, Refused), found
    return found


async def test_WP_34_tampered_checksum_or_amount(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        pairs = request_pairs("OC1", acquirer.shop.port)
        assert await refusal(acquirer, sealed_request(pairs, mac="0" * 32)) == ("PAYMENT_MAC", 1)
        right = dict(pairs) | {"TBK_MONTO": "2000000"}
        mac = payment_mac(pairs, CODE)
        assert await refusal(acquirer, sealed_request(list(right.items()), mac=mac)) == (
            "PAYMENT_MAC", 1,
        )  # fmt: skip
        assert payments(acquirer) == 0


async def test_WP_35_a_damaged_wire_is_answered_alike(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        good = sealed_request(request_pairs("OC1", acquirer.shop.port))
        wire = good["TBK_PARAM"]
        damaged = [
            wire[:at] + ("A" if wire[at] != "A" else "B") + wire[at + 1 :]
            for at in (0, 30, 700, 900, len(wire) - 30)
        ]
        damaged += ["", "%%%", wire[: len(wire) // 2], wire * 8, "ñ€"]
        stranger = sealed_request(
            request_pairs("OC1", acquirer.shop.port), signer="sim_webpay_4096"
        )
        answers = set()
        for text in (*damaged, stranger["TBK_PARAM"]):
            fields = good | {"TBK_PARAM": text}
            assert await refusal(acquirer, fields) == ("SEAL", 1)
            answers.add((await acquirer.service.validate(fields, "127.0.0.1"))[0])
        assert len(answers) == 1
        assert b"ERROR=1\nTOKEN=" + NO_TOKEN.encode() in answers.pop()
        assert payments(acquirer) == 0
        assert acquirer.service.seal_failures[CODE] == 2 * (len(damaged) + 1)


async def test_WP_36_injected_pairs(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        port = acquirer.shop.port
        repeats = sealed_request(request_pairs("OC1#TBK_MONTO=100", port))
        assert await refusal(acquirer, repeats) == ("DUPLICATE_NAME", 1)
        adds = sealed_request([*request_pairs("OC1", port), ("TBK_DESCUENTO", "1")])
        assert await refusal(acquirer, adds) == ("UNKNOWN_NAME", 1)


@pytest.mark.parametrize("amount", ["10050", "0", "010000", "10000000000"])
async def test_WP_37_amounts_that_are_none(tmp_path: Path, amount: str) -> None:
    async with acquiring(tmp_path) as acquirer:
        pairs = request_pairs("OC1", acquirer.shop.port, TBK_MONTO=amount)
        assert await refusal(acquirer, sealed_request(pairs)) == ("AMOUNT", 33)


async def test_WP_38_versions_keys_and_merchants(tmp_path: Path) -> None:
    async with acquiring(tmp_path, merchant="active = true") as acquirer:
        good = sealed_request(request_pairs("OC1", acquirer.shop.port))
        assert (await refusal(acquirer, good | {"TBK_VERSION_KCC": "5.1"})) == ("VERSION", 12)
        assert (await refusal(acquirer, good | {"TBK_KEY_ID": "100"})) == ("KEY", 1)
        unknown = good | {"TBK_CODIGO_COMERCIO": "597000000000"}
        assert (await refusal(acquirer, unknown)) == ("MERCHANT", 14)


async def test_WP_38_an_inactive_merchant(tmp_path: Path) -> None:
    async with acquiring(tmp_path, merchant="active = false") as acquirer:
        good = sealed_request(request_pairs("OC1", acquirer.shop.port))
        assert (await refusal(acquirer, good)) == ("INACTIVE", 22)


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("TBK_URL_EXITO", "http://evil.example/x", ("URL_OK", 31)),
        ("TBK_URL_FRACASO", "http://example.cl.evil.example/", ("URL_FAIL", 32)),
        ("TBK_URL_CGI_COMERCIO", "http://10.0.0.9/cgi", ("CGI_URL", 17)),
        ("TBK_SERVIDOR_COMERCIO", "10.0.0.9", ("CGI_SERVER", 18)),
        ("TBK_PUERTO_COMERCIO", "1", ("CGI_PORT", 19)),
    ],
)
async def test_WP_39_addresses_that_are_not_configured(
    tmp_path: Path, name: str, value: str, answer: tuple[str, int]
) -> None:
    async with acquiring(tmp_path) as acquirer:
        pairs = request_pairs("OC1", acquirer.shop.port, **{name: value})
        assert await refusal(acquirer, sealed_request(pairs)) == answer
        assert acquirer.shop.requests == []


async def test_WP_40_an_order_that_is_paid_or_under_way(tmp_path: Path) -> None:
    bank = Bank()
    bank.auto = False
    async with acquiring(tmp_path, authoriser="bank", bank=bank) as acquirer:
        page = await acquirer.form("OC1")
        await page.pay(card())
        assert page.state == "AUTHORISING"
        assert await acquirer.enter("OC1") == Refused("DUPLICATE_ORDER", 21)
        await until(lambda: bank.asked)
        acquirer.shop.script = acquirer.shop.silent
        bank.answer(0)
        await until(lambda: page.state == "DECIDING")
        assert await acquirer.enter("OC1") == Refused("DUPLICATE_ORDER", 21)
    async with acquiring(_fresh(tmp_path)) as acquirer:
        page = await acquirer.paid("OC1")
        assert (await page.ended()).state == "CONFIRMED"
        assert await acquirer.enter("OC1") == Refused("DUPLICATE_ORDER", 21)
        assert acquirer.lines() == [("ACK", "0")]


def _fresh(path: Path) -> Path:
    fresh = path / "fresh"
    fresh.mkdir()
    return fresh


@pytest.mark.parametrize("way", ["ledger", "bank"])
async def test_WP_41_an_order_again_after_a_failure(tmp_path: Path, way: str) -> None:
    async with acquiring(tmp_path, authoriser=way) as acquirer:
        first = await acquirer.paid("OC1", with_card=card(BAD_CARD))
        assert (await first.ended()).state == "DECLINED"
        acquirer.shop.script = acquirer.shop.answer("ERR")
        second = await acquirer.paid("OC1")
        assert (await second.ended()).state == "REVERSED"
        acquirer.shop.script = acquirer.shop.accept
        third = await acquirer.paid("OC1")
        assert (await third.ended()).state == "CONFIRMED"
        assert acquirer.lines() == [("ACK", "-1"), ("ERR", "0"), ("ACK", "0")]
        told = acquirer.service.status("la-clave", "OC1")
        assert told is not None
        assert [t["state"] for t in told] == ["CONFIRMED", "REVERSED", "DECLINED"]


async def test_WP_42_the_same_order_twice_at_the_form(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        first = await acquirer.form("OC1")
        second = await acquirer.form("OC1")
        assert (first.state, first.payment.cause) == ("ABORTED", "superseded")
        await first.pay(card())
        assert first.state == "ABORTED"
        await second.pay(card())
        assert (await second.ended()).state == "CONFIRMED"
        assert acquirer.lines() == [("ACK", "0")]


async def test_WP_43_the_same_request_again(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        fields = sealed_request(request_pairs("OC1", acquirer.shop.port))
        first = await acquirer.service.enter(fields, "127.0.0.1")
        again = await acquirer.service.enter(fields, "127.0.0.1")
        assert isinstance(first, Entered)
        assert isinstance(again, Entered)
        assert first.page_id == again.page_id
        assert first.cookie != again.cookie
        assert again.payable
        page = Page(acquirer, again.page_id, again.cookie)
        await acquirer.service.shown(page.page_id)
        await page.pay(card())
        await page.ended()
        late = await acquirer.service.enter(fields, "127.0.0.1")
        assert late == Entered(page.page_id, "", False)
        assert acquirer.service.view(page.page_id, "") is None
        assert acquirer.service.view(page.page_id, "1." + "0" * 64) is None
        assert page.view.state == "CONFIRMED"
        assert payments(acquirer) == 1


@pytest.mark.parametrize("way", ["ledger", "bank"])
async def test_WP_44_two_clicks_at_once(tmp_path: Path, way: str) -> None:
    async with acquiring(tmp_path, authoriser=way) as acquirer:
        page = await acquirer.form()
        nonce = page.view.nonce
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(acquirer.service.pay, page.page_id, nonce, card())
        assert (await page.ended()).state == "CONFIRMED"
        assert len(acquirer.bank.sent("0200")) == (way == "bank")
        assert len(acquirer.shop.requests) == 1
        assert acquirer.lines() == [("ACK", "0")]


async def test_WP_45_back_and_pay_again(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        page = await acquirer.form()
        nonce = page.view.nonce
        await acquirer.service.pay(page.page_id, nonce, card())
        await page.ended()
        await acquirer.service.pay(page.page_id, nonce, card())
        await acquirer.service.cancel(page.page_id, nonce)
        assert page.state == "CONFIRMED"
        assert acquirer.lines() == [("ACK", "0")]
        assert acquirer.charged() == 10_000


@pytest.mark.parametrize("how", ["cancelled", "expired", "bad_input"])
async def test_WP_46_a_form_that_is_left(tmp_path: Path, how: str, mock_clock: MockClock) -> None:
    async with acquiring(tmp_path) as acquirer:
        page = await acquirer.form()
        if how == "cancelled":
            await acquirer.service.cancel(page.page_id, page.view.nonce)
        elif how == "expired":
            mock_clock.jump(601)
            await until(lambda: page.state == "ABORTED")
        else:
            for tries in range(3):
                assert page.view.tries == tries
                await acquirer.service.bad_input(page.page_id, page.view.nonce)
        assert (page.state, page.payment.cause) == ("ABORTED", how)
        assert page.view.return_url == "http://example.cl/fracaso"
        await page.pay(card())
        assert page.state == "ABORTED"
        assert acquirer.shop.requests == []
        assert acquirer.lines() == []
        assert acquirer.keys_left() == 0


async def test_WP_47_the_browser_is_closed(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        page = await acquirer.paid()
        await page.ended()
        told = acquirer.service.status("la-clave", "OC1")
        assert told is not None
        assert told[0]["state"] == "CONFIRMED"
        assert told[0]["result"]["TBK_RESPUESTA"] == "0"
        assert acquirer.service.status("otra", "OC1") is None


async def test_WP_48_a_token_counts_once(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        fields = sealed_request(request_pairs("OC1", acquirer.shop.port))
        body, tag = await acquirer.service.validate(fields, "127.0.0.1")
        assert tag == ""
        opened = seal.open_wire(
            body, key("merchant_test_2048"), key("sim_webpay_4096").public_key(),
            spare_key=os.urandom(32),
        )  # fmt: skip
        reply = parse_token_reply(opened.message)
        assert reply is not None
        error, token = reply
        assert (error, len(token)) == (0, 64)
        assert isinstance(await acquirer.service.redeem(token, "5.1"), Refused)
        entered = await acquirer.service.redeem(token, "6.0")
        assert isinstance(entered, Entered)
        assert await acquirer.service.redeem(token, "6.0") == Refused("DUPLICATE_ORDER", 21)
        assert await acquirer.service.redeem("0" * 64, "6.0") == Refused("SEAL", 1)
        page = Page(acquirer, entered.page_id, entered.cookie)
        await acquirer.service.shown(page.page_id)
        await page.pay(card())
        assert (await page.ended()).state == "CONFIRMED"


async def test_WP_48_a_token_is_good_as_long_as_its_form(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path) as acquirer:
        fields = sealed_request(request_pairs("OC1", acquirer.shop.port))
        tokens = []
        for _ in range(2):  # its kit has not got the first reply
            body, _ = await acquirer.service.validate(fields, "127.0.0.1")
            opened = seal.open_wire(
                body, key("merchant_test_2048"), key("sim_webpay_4096").public_key(),
                spare_key=os.urandom(32),
            )  # fmt: skip
            tokens.append(parse_token_reply(opened.message))
        assert tokens[0] == tokens[1]
        assert payments(acquirer) == 1
        assert tokens[0] is not None
        mock_clock.jump(600.0)
        await until(lambda: acquirer.payments()[0].state == "ABORTED")
        late = await acquirer.service.redeem(tokens[0][1], "6.0")
        assert late == Refused("DUPLICATE_ORDER", 21)


async def test_later_refusals_of_a_kit_are_sealed(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        pairs = request_pairs("OC1", acquirer.shop.port, TBK_MONTO="10050")
        body, tag = await acquirer.service.validate(sealed_request(pairs), "127.0.0.1")
        opened = seal.open_wire(
            body, key("merchant_test_2048"), key("sim_webpay_4096").public_key(),
            spare_key=os.urandom(32),
        )  # fmt: skip
        assert (parse_token_reply(opened.message), tag) == ((33, NO_TOKEN), "AMOUNT")


async def test_policies_of_orders(tmp_path: Path) -> None:
    async with acquiring(tmp_path, merchant='order_policy = "unique"') as acquirer:
        page = await acquirer.form("OC1")
        await acquirer.service.cancel(page.page_id, page.view.nonce)
        assert await acquirer.enter("OC1") == Refused("DUPLICATE_ORDER", 21)
    async with acquiring(_fresh(tmp_path), merchant='order_policy = "any"') as acquirer:
        for _ in range(2):
            page = await acquirer.paid("OC1")
            assert (await page.ended()).state == "CONFIRMED"
        assert acquirer.charged() == 20_000


async def test_two_hundred_payments_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shops that answer, refuse, drop and talk nonsense: each payment ends by the matrix."""
    monkeypatch.setattr(webpay_house, "KEY_SECONDS_MAX", 120.0)  # they wait for each other's keys
    count = 200
    shop = Shop("direct")
    answers = (b"ACEPTADO", b"RECHAZADO", b"nada", None)
    seen: list[int] = []

    async def script(stream: trio.SocketStream, data: bytes) -> None:
        number = int(data.partition(b"TBK_ORDEN_COMPRA=OC")[2].split(b"&")[0])
        seen.append(number)
        word = answers[number % 4]
        if word is not None:
            await stream.send_all(b"HTTP/1.0 200 OK\n\n" + word)

    shop.script = script
    async with acquiring(tmp_path, mode="direct", shop=shop) as acquirer:
        pages: dict[int, Page] = {}

        async def one(number: int) -> None:
            pages[number] = await acquirer.paid(f"OC{number}")
            await pages[number].ended()

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)
        wanted = {0: "CONFIRMED", 1: "REVERSED", 2: "REVERSED", 3: "REVERSED"}
        assert {n: p.state for n, p in pages.items()} == {n: wanted[n % 4] for n in range(count)}
        assert sorted(seen) == list(range(count))
        assert sorted(acquirer.lines()) == sorted(
            [("ACK" if n % 4 == 0 else "ERR", "0") for n in range(count)]
        )
        assert acquirer.charged() == 10_000 * (count // 4)
        assert acquirer.held() == 0
        await until(lambda: acquirer.keys_left() == 0)


@pytest.mark.parametrize("form", ["2G", "1G"])
async def test_WP_24_no_debit_in_old_forms(tmp_path: Path, form: str) -> None:
    async with acquiring(tmp_path, merchant=f'form = "{form}"') as acquirer:
        page = await acquirer.form()
        assert page.view.kinds == ("C",)
        await page.pay(card(kind="D"))
        assert (page.state, page.view.tries) == ("FORM", 1)
        assert (acquirer.lines(), acquirer.charged(), acquirer.held()) == ([], 0, 0)
        await page.pay(card())
        assert (await page.ended()).state == "CONFIRMED"


async def test_instalments_that_are_not_offered(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        page = await acquirer.form()
        await page.pay(card(choice=("VC", 24)))
        assert (page.state, page.view.tries) == ("FORM", 1)


async def test_instalments_that_the_shop_fixed(tmp_path: Path) -> None:
    async with acquiring(tmp_path, merchant="fixed_instalments = true") as acquirer:
        page = await acquirer.form(TBK_NUMERO_CUOTAS="6", TBK_MONTO_CUOTA="200000")
        assert (page.view.kinds, page.view.choices) == (("C",), ("CI-6",))
        await page.pay(card(choice=("CI", 6)))
        payment = await page.ended()
        assert b"TBK_TIPO_PAGO=CI#TBK_NUMERO_CUOTAS=6" in payment.message
