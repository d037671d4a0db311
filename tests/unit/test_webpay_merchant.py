"""The simulated shop misbehaves exactly as asked: what goes over the wire, by fault and mode."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

from protocols.webpay import mac, messages, seal, shopform
from protocols.webpay.answer import parse_answer
from switch.simulators.raw_answers import Delay, render
from switch.simulators.webpay_merchant import (
    ALL,
    CLOSING_PATH,
    KIT_PATH,
    Faults,
    WebpayMerchant,
)
from switch.web.webpay_orders import Orders
from tests.webpay_shops import MERCHANT, kit, private, public

ORDER = "T1"


@pytest.fixture
async def shop(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[WebpayMerchant]:
    own = kit(tmp_path / "bitacora")
    other = type(own)(
        own.settings, private("sim_webpay_1024"), public("sim_webpay_4096"), wall_ns=time.time_ns
    )
    made = WebpayMerchant(
        own, Orders(tmp_path / "orders.sqlite"), acquirer_url="http://127.0.0.1:1/", other_kit=other
    )
    await nursery.start(made.run)
    await made.new_order("599000", ORDER)
    yield made
    nursery.cancel_scope.cancel()


def result(respuesta: int = 0, amount: str = "599000", tx: str = "1") -> tuple[Any, str]:
    found = messages.result_pairs(
        messages.ResultFields(
            order=ORDER, respuesta=respuesta, amount=amount, auth_code="154935", last4="6623",
            accounting_date="1122", tx_date="1122", tx_time="120000", session="S1", tx_id=tx,
            pay_type="VN", instalments=0, vci="TSY",
        )
    )  # fmt: skip
    return found, mac.sign_mac(found, private("sim_webpay_4096"))


def kit_body(**values: Any) -> bytes:
    found, _ = result(**values)
    text = "#".join(f"{name}={value}" for name, value in found).encode()
    wire = seal.seal_wire(
        text, private("sim_webpay_4096"), public("merchant_test_2048"),
        aes_key=bytes(32), iv=bytes(16),
    )  # fmt: skip
    return shopform.notification_body(wire, MERCHANT)


async def post(shop: WebpayMerchant, path: str, body: bytes, wait_s: float = 120) -> bytes | None:
    """Post as the acquirer does; all bytes of the answer; None: silence."""
    host, port = shop.notify_address
    head = (
        f"POST http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    found = b""
    with trio.move_on_after(wait_s) as waiting:
        async with await trio.open_tcp_stream(host, port) as stream:
            await stream.send_all(head.encode() + body)
            try:
                while piece := await stream.receive_some():
                    found += bytes(piece)
            except trio.BrokenResourceError:
                pass
    return None if waiting.cancelled_caught and not found else found


async def told(shop: WebpayMerchant, faults: Faults, **values: Any) -> bytes | None:
    """What a kit answers under faults."""
    shop.set_faults(ORDER, faults)
    return await post(shop, KIT_PATH, kit_body(**values))


def opened(raw: bytes | None) -> str:
    """What the acquirer makes of a kit's answer."""
    assert raw is not None
    if not raw:
        return "NONE"
    answer = parse_answer(raw)
    if not answer.whole:
        return "BAD"
    try:
        found = seal.open_wire(
            bytes(answer.body), private("sim_webpay_4096"), public("merchant_test_2048"),
            spare_key=bytes(32),
        )  # fmt: skip
    except seal.SealError:
        return "BAD"
    return messages.reply_text(found.message)


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(), "ACK"),
        (Faults(answer="rechazado"), "ERR"),
        (Faults(answer="no_aceptado"), "BAD"),
        (Faults(answer="lower"), "BAD"),
        (Faults(answer="both"), "BAD"),
        (Faults(answer="garbage"), "BAD"),
        (Faults(answer="empty"), "BAD"),
        (Faults(other_key=True), "BAD"),
        (Faults(close="before"), "NONE"),
        (Faults(close="in_headers"), "BAD"),
        (Faults(close="in_body"), "BAD"),
        (Faults(crash="before_commit"), "NONE"),
        (Faults(crash="after_commit"), "NONE"),
        (Faults(framing="chunked"), "ACK"),
        (Faults(framing="close"), "ACK"),
        (Faults(framing="lf_only"), "ACK"),
        (Faults(framing="none"), "ACK"),
        (Faults(twice=True), "ACK"),
        (Faults(answer="rechazado", twice=True), "ERR"),
        (Faults(status=500), "ACK"),
    ],
    ids=repr,
)
async def test_a_kit_answers_as_its_faults_say(
    shop: WebpayMerchant, faults: Faults, expected: str
) -> None:
    assert opened(await told(shop, faults)) == expected


async def test_silence_is_no_byte_at_all(shop: WebpayMerchant) -> None:
    shop.set_faults(ORDER, Faults(answer="none"))
    assert await post(shop, KIT_PATH, kit_body(), wait_s=0.5) is None


async def test_an_old_acknowledgement_is_the_same_bytes_again(shop: WebpayMerchant) -> None:
    first = await told(shop, Faults())
    again = await told(shop, Faults(old_ack=True), tx="2")
    assert first is not None
    assert first == again


async def test_delays_and_drips_come_where_they_are_asked_for(shop: WebpayMerchant) -> None:
    began = trio.current_time()
    assert opened(await told(shop, Faults(delay_ms=Delay(headers=100, last_byte=150)))) == "ACK"
    assert trio.current_time() - began >= 0.25


@pytest.mark.parametrize(
    ("faults", "strict", "kcc"),
    [
        (Faults(), "ACCEPTED", "ACCEPTED"),
        (Faults(answer="rechazado"), "REJECTED", "NOT_ACCEPTED"),
        (Faults(answer="lower"), "INVALID", "NOT_ACCEPTED"),
        (Faults(answer="no_aceptado"), "INVALID", "ACCEPTED"),
        (Faults(answer="both"), "INVALID", "ACCEPTED"),
        (Faults(answer="empty"), "INVALID", "NOT_ACCEPTED"),
        (Faults(status=500), "INVALID", "ACCEPTED"),
        (Faults(framing="lf_only"), "ACCEPTED", "ACCEPTED"),
        (Faults(framing="chunked"), "ACCEPTED", "ACCEPTED"),
        (Faults(answer="rechazado", twice=True), "REJECTED", "ACCEPTED"),
    ],
    ids=repr,
)
async def test_a_page_answers_as_its_faults_say(
    shop: WebpayMerchant, faults: Faults, strict: str, kcc: str
) -> None:
    shop.set_faults(ORDER, faults)
    found, signature = result()
    body = shopform.closing_body(found, signature, merchant=MERCHANT)
    raw = await post(shop, CLOSING_PATH, body)
    assert raw is not None
    assert shopform.classify(raw, "strict") == strict
    assert shopform.classify(raw, "kcc") == kcc


async def test_forgotten_validations_are_forgotten(shop: WebpayMerchant) -> None:
    found, signature = result(amount="100")
    body = shopform.closing_body(found, signature, merchant=MERCHANT)
    bad = shopform.closing_body(result()[0], "0" * 1024, merchant=MERCHANT)
    words = []
    for sent, faults in (
        (body, Faults()), (body, Faults(skip_amount=True, skip_duplicate=True)),
        (bad, Faults()), (bad, Faults(skip_mac=True, skip_duplicate=True)),
    ):  # fmt: skip
        shop.set_faults(ORDER, faults)
        raw = await post(shop, CLOSING_PATH, sent)
        assert raw is not None
        words.append(shopform.classify(raw))
    assert words == ["REJECTED", "ACCEPTED", "REJECTED", "ACCEPTED"]


async def test_nobody_listens_until_it_is_taken_back(shop: WebpayMerchant) -> None:
    shop.set_faults(ALL, Faults(no_listen=True))
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(OSError, match=r"refused|connect"):
        await post(shop, KIT_PATH, kit_body())
    shop.set_faults(ALL, Faults())
    await trio.testing.wait_all_tasks_blocked()
    assert opened(await post(shop, KIT_PATH, kit_body())) == "ACK"


async def test_faults_are_set_by_json(shop: WebpayMerchant) -> None:
    async with httpx.AsyncClient(base_url=shop.site_url, timeout=120) as client:
        faults = {ORDER: {"answer": "rechazado", "delay_ms": {"headers": 5}}}
        answer = await client.post("/sim/faults", json=faults)
        assert answer.json()[ORDER]["answer"] == "rechazado"
        assert opened(await post(shop, KIT_PATH, kit_body())) == "ERR"
        wrong = await client.post("/sim/faults", json={ORDER: {"answer": "maybe"}})
        assert wrong.status_code == 400
        left = (await client.delete("/sim/faults")).json()
        assert left == {ALL: msgspec.to_builtins(Faults())}
    assert shop.faults_of(ORDER) == Faults()


def test_every_framing_is_read_back() -> None:
    for framing in ("length", "chunked", "close", "lf_only", "none"):
        head, body = render(b"ACEPTADO", 200, framing)  # type: ignore[arg-type]
        answer = parse_answer(head + body)
        assert (bytes(answer.body), answer.whole) == (b"ACEPTADO", True), framing
