"""Acceptance cases of the acquirer, WP-01 to WP-23, on a clock moved by hand.

Each runs in both notification modes and with both authorisers, where these make a difference.
"""

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.webpay_house import (
    BAD_CARD,
    Acquirer,
    Bank,
    Page,
    Shop,
    acquiring,
    card,
    framed,
    until,
)

LIMIT_S = 30.0
Kind = dict[str, str]


@pytest.fixture(params=["kcc60-ledger", "kcc60-bank", "direct-ledger", "direct-bank"])
def kind(request: pytest.FixtureRequest) -> Kind:
    mode, way = request.param.split("-")
    return {"mode": mode, "authoriser": way}


@pytest.fixture(params=["kcc60", "direct"])
def mode(request: pytest.FixtureRequest) -> Kind:
    """Both notification modes, where the authoriser must be a bank."""
    return {"mode": request.param, "authoriser": "bank"}


def is_charged(acquirer: Acquirer) -> bool:
    """By whoever authorises: is the amount taken in the end, and nothing held?"""
    if acquirer.config.webpay.merchant["597026007976"].authoriser == "ledger":
        assert acquirer.charged() in (0, 10_000)
        return acquirer.charged() == 10_000
    return bool(approved(acquirer)) and not acquirer.bank.sent("0420", "0421")


def approved(acquirer: Acquirer) -> list[Any]:
    return [m for m in acquirer.bank.sent("0200") if m["2"] != BAD_CARD]


def reversals(acquirer: Acquirer) -> int:
    """Operations that were undone at the authoriser."""
    return len({m["37"] for m in acquirer.bank.sent("0420", "0421")})


async def told(acquirer: Acquirer) -> None:
    """The shop has the whole request."""
    await until(lambda: acquirer.shop.requests)


async def settle(acquirer: Acquirer, page: Page, *states: str) -> Any:
    """Wait for the end: then what is charged are the sales that stand, and the page says so."""
    payment = await page.ended(*states)
    assert acquirer.held() == 0
    confirmed = sum(p.state == "CONFIRMED" for p in acquirer.payments())
    if acquirer.config.webpay.merchant["597026007976"].authoriser == "ledger":
        assert acquirer.charged() == 10_000 * confirmed
    elif not acquirer.bank.code:  # which declines whatever the card
        undone = {m["37"] for m in acquirer.bank.sent("0420", "0421")}
        assert len({m["37"] for m in approved(acquirer)} - undone) == confirmed
    success = payment.state == "CONFIRMED"
    wanted = "http://example.cl/exito?a=1" if success else "http://example.cl/fracaso"
    assert page.view.return_url == wanted
    return payment


async def test_WP_01_approved_and_accepted(
    tmp_path: Path, kind: Kind, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ACK", after_s=1.0)
        page = await acquirer.paid()
        await told(acquirer)
        mock_clock.jump(1.0)
        payment = await settle(acquirer, page)
        assert payment.state == "CONFIRMED"
        assert acquirer.lines() == [("ACK", "0")]
        assert page.view.return_url == "http://example.cl/exito?a=1"
        assert is_charged(acquirer)
        assert payment.elapsed_ms == 1000


async def test_WP_02_declined_and_accepted(tmp_path: Path, kind: Kind) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        page = await acquirer.paid(with_card=card(BAD_CARD))
        payment = await settle(acquirer, page)
        assert (payment.state, payment.respuesta) == ("DECLINED", -1)
        assert acquirer.lines() == [("ACK", "-1")]
        assert page.view.return_url == "http://example.cl/fracaso"
        assert not is_charged(acquirer)
        assert b"TBK_PARAM" in acquirer.shop.requests[0] or b"TBK_MAC" in acquirer.shop.requests[0]


@pytest.mark.parametrize("word", ["ERR", "silence"])
async def test_WP_03_declined_and_not_accepted(
    tmp_path: Path, kind: Kind, word: str, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        shop = acquirer.shop
        shop.script = shop.silent if word == "silence" else shop.answer("ERR")
        page = await acquirer.paid(with_card=card(BAD_CARD))
        await told(acquirer)
        if word == "silence":
            mock_clock.jump(LIMIT_S + 0.01)
        payment = await settle(acquirer, page)
        assert payment.state == "DECLINED_UNACKED"
        assert payment.cause == ("NO_ANSWER" if word == "silence" else "REJECTED")
        assert acquirer.lines() == [("ERR", "-1")]
        assert not is_charged(acquirer)


async def test_WP_04_the_shop_rejects(tmp_path: Path, kind: Kind) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ERR")
        page = await acquirer.paid()
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "REJECTED")
        assert acquirer.lines() == [("ERR", "0")]
        assert page.view.respuesta == "0"  # what the page of 72 hours goes by
        assert page.view.return_url == "http://example.cl/fracaso"
        assert not is_charged(acquirer)
        if kind["authoriser"] == "bank":
            (reversal,) = acquirer.bank.sent("0420")
            (purchase,) = acquirer.bank.sent("0200")
            assert reversal["37"] == purchase["37"]
            assert reversal["25"] == "22"
            assert reversal["90"].startswith("0200")
            assert reversal["2"] == purchase["2"]


async def test_WP_05_the_shop_is_silent(tmp_path: Path, kind: Kind, mock_clock: MockClock) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        acquirer.shop.script = acquirer.shop.silent
        page = await acquirer.paid()
        await told(acquirer)
        mock_clock.jump(LIMIT_S - 0.01)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert page.state == "DECIDING"
        mock_clock.jump(0.02)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "NO_ANSWER")
        assert acquirer.lines() == [("ERR", "0")]
        if kind["authoriser"] == "bank":
            assert acquirer.bank.sent("0420")[0]["25"] == "21"


@pytest.mark.parametrize("after_s", [29.9, 30.0])
async def test_WP_06_accepted_at_the_last_moment(
    tmp_path: Path, kind: Kind, after_s: float, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ACK", after_s=after_s)
        page = await acquirer.paid()
        await told(acquirer)
        mock_clock.jump(after_s)
        payment = await settle(acquirer, page)
        assert payment.state == "CONFIRMED"
        assert payment.elapsed_ms == int(after_s * 1000)
        assert acquirer.lines() == [("ACK", "0")]
        assert is_charged(acquirer)


async def test_WP_07_accepted_too_late(tmp_path: Path, kind: Kind, mock_clock: MockClock) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ACK", after_s=30.1)
        page = await acquirer.paid()
        await told(acquirer)
        mock_clock.jump(30.05)
        await page.ended()
        mock_clock.jump(0.05)
        await until(lambda: page.payment.late_ack)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "NO_ANSWER")
        assert acquirer.lines() == [("ERR", "0")]
        assert not is_charged(acquirer)


@pytest.mark.parametrize("how", ["last byte late", "one byte a second"])
async def test_WP_08_an_answer_in_pieces(
    tmp_path: Path, kind: Kind, how: str, mock_clock: MockClock
) -> None:
    shop = Shop(kind["mode"])

    async def pieces(stream: trio.SocketStream, data: bytes) -> None:
        whole = framed(shop.body("ACK"))
        if how == "last byte late":
            await trio.sleep(29.9)
            await stream.send_all(whole[:-1])
            await trio.sleep(0.2)
            await stream.send_all(whole[-1:])
            return
        for byte in whole:
            await stream.send_all(bytes((byte,)))
            await trio.sleep(1.0)

    shop.script = pieces
    async with acquiring(tmp_path, shop=shop, **kind) as acquirer:
        page = await acquirer.paid()
        await told(acquirer)
        for _ in range(31):
            mock_clock.jump(29.9 if how == "last byte late" and _ == 0 else 1.0)
            await trio.testing.wait_all_tasks_blocked(0.001)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "NO_ANSWER")
        assert acquirer.lines() == [("ERR", "0")]


async def test_WP_09_the_clock_runs_from_the_answer_of_the_authoriser(
    tmp_path: Path, mode: Kind, mock_clock: MockClock
) -> None:
    bank = Bank()
    bank.auto = False
    async with acquiring(tmp_path, bank=bank, **mode) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ACK", after_s=29.9)
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        mock_clock.jump(15.0)
        bank.answer()
        await told(acquirer)
        mock_clock.jump(29.9)
        payment = await settle(acquirer, page)
        assert payment.state == "CONFIRMED"
        assert acquirer.lines() == [("ACK", "0")]


async def test_WP_10_a_late_ACK_changes_nothing(
    tmp_path: Path, kind: Kind, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        acquirer.shop.script = acquirer.shop.answer("ACK", after_s=45.0)
        page = await acquirer.paid()
        await told(acquirer)
        mock_clock.jump(LIMIT_S + 0.01)
        await page.ended("REVERSED")
        mock_clock.jump(15.0)
        await until(lambda: page.payment.late_ack)
        assert page.state == "REVERSED"
        assert acquirer.lines() == [("ERR", "0")]
        assert acquirer.flow.late_acks == 1
        (told_shop,) = acquirer.service.status("la-clave", "OC1")
        assert told_shop["late_ack"] is True
        assert reversals(acquirer) == (kind["authoriser"] == "bank")


@pytest.mark.parametrize(
    ("first", "second", "state"), [("ERR", "ACK", "REVERSED"), ("ACK", "ERR", "CONFIRMED")]
)
async def test_WP_11_WP_12_the_first_of_two_answers_counts(
    tmp_path: Path, kind: Kind, first: str, second: str, state: str
) -> None:
    shop = Shop(kind["mode"])

    async def both(stream: trio.SocketStream, data: bytes) -> None:
        await stream.send_all(framed(shop.body(first)) + framed(shop.body(second)))

    shop.script = both
    async with acquiring(tmp_path, shop=shop, **kind) as acquirer:
        page = await acquirer.paid()
        payment = await settle(acquirer, page)
        assert payment.state == state
        assert acquirer.lines() == [("ACK" if state == "CONFIRMED" else "ERR", "0")]


async def test_WP_13_two_answers_in_one_body(tmp_path: Path, kind: Kind) -> None:
    shop = Shop(kind["mode"])

    async def both(stream: trio.SocketStream, data: bytes) -> None:
        body = shop.body("ACK") + b" " + shop.body("ERR")
        await stream.send_all(b"HTTP/1.0 200 OK\n\n" + body)

    shop.script = both
    async with acquiring(tmp_path, shop=shop, **kind) as acquirer:
        page = await acquirer.paid()
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "BAD_ANSWER")
        assert acquirer.lines() == [("ERR", "0")]


@pytest.mark.parametrize(
    "raw",
    [
        framed(b"aceptado"),
        framed(b"NO ACEPTADO"),
        framed(b"ACEPTADO", "500 Oops"),
        framed(b""),
        b"HTTP/1.1 302 Found\r\nLocation: http://example.cl/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nACEPTADO",
    ],
    ids=["lower", "no", "500", "empty", "redirect", "cut"],
)
@pytest.mark.parametrize("way", ["ledger", "bank"])
async def test_WP_14_strict_answers_only(tmp_path: Path, raw: bytes, way: str) -> None:
    shop = Shop("direct")

    async def script(stream: trio.SocketStream, data: bytes) -> None:
        await stream.send_all(raw)

    shop.script = script
    async with acquiring(tmp_path, mode="direct", authoriser=way, shop=shop) as acquirer:
        page = await acquirer.paid()
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "BAD_ANSWER")
        assert acquirer.lines() == [("ERR", "0")]


@pytest.mark.parametrize("what", ["other key", "damaged", "OK"])
@pytest.mark.parametrize("way", ["ledger", "bank"])
async def test_WP_15_sealed_replies_that_are_none(tmp_path: Path, what: str, way: str) -> None:
    shop = Shop("kcc60")

    async def script(stream: trio.SocketStream, data: bytes) -> None:
        body = shop.body(
            "OK" if what == "OK" else "ACK", signer="sim_webpay_1024" * (what == "other key")
        )
        if what == "damaged":
            body = body[:40] + (b"A" if body[40:41] != b"A" else b"B") + body[41:]
        await stream.send_all(framed(body))

    shop.script = script
    async with acquiring(tmp_path, authoriser=way, shop=shop) as acquirer:
        page = await acquirer.paid()
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "BAD_ANSWER")
        assert acquirer.lines() == [("ERR", "0")]
        failures = acquirer.service.notifier.seal_failures
        assert failures == ({} if what == "OK" else {"597026007976": 1})


@pytest.mark.parametrize("way", ["ledger", "bank"])
async def test_WP_16_a_reply_of_before_is_replayed(tmp_path: Path, way: str) -> None:
    shop = Shop("kcc60")
    replies: list[bytes] = []

    async def script(stream: trio.SocketStream, data: bytes) -> None:
        replies.append(replies[0] if replies else shop.body("ACK"))
        await stream.send_all(framed(replies[-1]))

    shop.script = script
    async with acquiring(tmp_path, authoriser=way, shop=shop) as acquirer:
        first = await acquirer.paid("OC1")
        assert (await settle(acquirer, first)).state == "CONFIRMED"
        second = await acquirer.paid("OC2")
        payment = await settle(acquirer, second)
        assert (payment.state, payment.cause) == ("REVERSED", "BAD_ANSWER")
        assert acquirer.flow.replays == 1
        assert acquirer.node.alarms["webpay_reply_replayed"] == 1
        assert acquirer.lines() == [("ACK", "0"), ("ERR", "0")]


@pytest.mark.parametrize("how", ["no listener", "reset"])
async def test_WP_17_nobody_takes_the_result(
    tmp_path: Path, kind: Kind, how: str, mock_clock: MockClock
) -> None:
    shop = Shop(kind["mode"])

    async def reset(stream: trio.SocketStream, data: bytes) -> None:
        stream.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # SO_LINGER 0: RST

    shop.script = reset
    async with acquiring(tmp_path, shop=shop, **kind) as acquirer:
        if how == "no listener":
            for listener in shop.listeners:
                await listener.aclose()
        page = await acquirer.paid()
        if how == "no listener":
            await until(lambda: page.state == "DECIDING")
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked(0.02)
                mock_clock.jump(1.0)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "NO_ANSWER")
        assert len(shop.requests) == (0 if how == "no listener" else 1)
        assert acquirer.lines() == [("ERR", "0")]


async def test_WP_18_the_link_is_down(tmp_path: Path, mode: Kind) -> None:
    bank = Bank()
    bank.up = False
    async with acquiring(tmp_path, bank=bank, **mode) as acquirer:
        page = await acquirer.paid()
        payment = await settle(acquirer, page)
        assert (payment.state, payment.respuesta, payment.reversal) == ("DECLINED", -2, "")
        assert acquirer.lines() == [("ACK", "-2")]
        assert not bank.asked


async def test_WP_19_no_answer_of_the_bank(tmp_path: Path, mode: Kind) -> None:
    bank = Bank()
    bank.auto = False
    async with acquiring(tmp_path, bank=bank, **mode) as acquirer:
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.lose(0, "timeout")
        await until(lambda: bank.sent("0420"))
        bank.answer(1)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.respuesta) == ("DECLINED", -2)
        await until(lambda: page.payment.reversal == "done")
        assert bank.sent("0420")[0]["25"] == "21"
        assert acquirer.lines() == [("ACK", "-2")]
        assert await until(lambda: acquirer.keys_left() == 0)


async def test_WP_20_a_reversal_is_repeated_over_a_restart(tmp_path: Path, mode: Kind) -> None:
    bank = Bank()
    shop = Shop(mode["mode"])
    shop.script = shop.answer("ERR")
    async with acquiring(tmp_path, bank=bank, shop=shop, **mode) as acquirer:
        bank.auto = False
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.answer(0)
        await page.ended("REVERSING")
        await until(lambda: bank.sent("0420"))
        bank.lose(1)
    shop.listeners = []
    async with acquiring(tmp_path, bank=bank, shop=shop, **mode) as acquirer:
        page.acquirer = acquirer
        await until(lambda: bank.sent("0421"))
        assert page.state == "REVERSING"
        bank.answer()
        payment = await settle(acquirer, page)
        assert payment.state == "REVERSED"
        assert len({m["37"] for m in bank.sent("0200", "0420", "0421")}) == 1
        assert acquirer.lines() == [("ERR", "0")]
        assert len(shop.requests) == 1


async def test_WP_21_the_bank_does_not_know_the_original(tmp_path: Path, mode: Kind) -> None:
    bank = Bank()
    shop = Shop(mode["mode"])
    shop.script = shop.answer("ERR")
    async with acquiring(tmp_path, bank=bank, shop=shop, **mode) as acquirer:
        bank.auto = False
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.answer(0)
        await until(lambda: bank.sent("0420"))
        bank.answer(1, "25")
        payment = await settle(acquirer, page)
        assert (payment.state, payment.reversal_note) == ("REVERSED", "original_not_found")
        assert acquirer.node.alarms["webpay_reversal_original_not_found"] == 1


@pytest.mark.parametrize(("outcome", "vci"), [("TSN", "TSN"), ("ABO", "ABO"), ("U3", "U3")])
async def test_WP_22_the_holder_is_not_who_he_says(
    tmp_path: Path, kind: Kind, outcome: str, vci: str
) -> None:
    async with acquiring(tmp_path, section='holder_auth = "all"', **kind) as acquirer:
        page = await acquirer.paid()
        assert page.view.authenticating
        assert not acquirer.bank.asked
        await page.authenticate(outcome)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.respuesta, payment.vci) == ("DECLINED", -1, vci)
        assert acquirer.lines() == [("ACK", "-1")]
        assert not acquirer.bank.asked
        assert acquirer.charged() == 0


async def test_WP_22_the_holder_takes_too_long(
    tmp_path: Path, kind: Kind, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path, section='holder_auth = "all"', **kind) as acquirer:
        page = await acquirer.paid()
        mock_clock.jump(301)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.vci) == ("DECLINED", "TO")


async def test_WP_23_debit_and_instalments(tmp_path: Path, kind: Kind) -> None:
    async with acquiring(tmp_path, **kind) as acquirer:
        page = await acquirer.paid("OC1", with_card=card(kind="D", bank="bci"))
        await page.authenticate("TSY")
        payment = await settle(acquirer, page)
        assert payment.state == "CONFIRMED"
        assert b"TBK_TIPO_PAGO=VD#TBK_NUMERO_CUOTAS=0#TBK_VCI=TSY" in payment.message
        page = await acquirer.paid("OC2", with_card=card(choice=("VC", 6)))
        payment = await settle(acquirer, page)
        assert b"TBK_TIPO_PAGO=VC#TBK_NUMERO_CUOTAS=6" in payment.message
        assert acquirer.lines() == [("ACK", "0")] * 2
        if kind["authoriser"] == "bank":
            debit, credit = acquirer.bank.sent("0200")
            assert (debit["48.20"], debit["48.22"], debit["48.25"]) == ("D", "bci", "TSY")
            assert (credit["48.20"], credit["48.21"]) == ("C", "06")
            assert credit["48.24"] == "123"
            assert (credit["18"], credit["42"].strip()) == ("5999", "597026007976")
            assert (credit["22"], credit["49"], credit["4"]) == ("812", "152", "000000010000")


@pytest.mark.parametrize(
    ("code", "respuesta", "reversed_"),
    [("61", -7, 0), ("03", -8, 0), ("91", -2, 0), ("30", -3, 0), ("51", -1, 0), ("10", -1, 1)],
)
async def test_results_by_the_code_of_the_host(
    tmp_path: Path, code: str, respuesta: int, reversed_: int
) -> None:
    bank = Bank()
    bank.code = code
    async with acquiring(tmp_path, authoriser="bank", bank=bank) as acquirer:
        page = await acquirer.paid()
        payment = await settle(acquirer, page)
        assert (payment.state, payment.respuesta) == ("DECLINED", respuesta)
        assert reversals(acquirer) == reversed_


async def test_an_approval_of_another_amount_is_undone(tmp_path: Path) -> None:
    bank = Bank()
    bank.auto = False
    async with acquiring(tmp_path, authoriser="bank", bank=bank) as acquirer:
        page = await acquirer.paid()
        await until(lambda: bank.asked)
        bank.auto = True
        bank._unanswered.clear()
        bank.answer(0, **{"4": "000000000001"})
        payment = await settle(acquirer, page)
        assert (payment.state, payment.respuesta) == ("DECLINED", -3)
        assert reversals(acquirer) == 1


async def test_a_result_that_could_not_be_signed_in_time(
    tmp_path: Path, kind: Kind, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is signed later, its shop is not told, and the sale does not stand."""
    async with acquiring(tmp_path, **kind) as acquirer:
        sign, tries = acquirer.service._rsa.sign, []

        async def once_broken(key_id: str, message: bytes, name: str) -> bytes:
            tries.append(key_id)
            if len(tries) == 1:
                raise OSError("no key just now")
            return await sign(key_id, message, name)

        monkeypatch.setattr(acquirer.service._rsa, "sign", once_broken)
        page = await acquirer.paid()
        await until(lambda: tries)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(LIMIT_S + 11)
        payment = await settle(acquirer, page)
        assert (payment.state, payment.cause) == ("REVERSED", "NO_ANSWER")
        assert len(tries) == 2
        assert acquirer.lines() == [("ERR", "0")]
        assert acquirer.shop.requests == []
