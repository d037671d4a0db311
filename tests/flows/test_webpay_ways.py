"""How results reach shops, and what of it may go wrong beside them: wires, TLS, disks, logs."""

import io
import json
import logging
import re
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
import structlog
import trio
from trio.testing import MockClock

from protocols.webpay import seal
from protocols.webpay.pairs import parse_pairs
from switch.flows import webpay_records as rec
from switch.ops import logs
from switch.ops.key_store import fingerprint
from tests.e2e.test_webpay_http import certificate
from tests.webpay_house import (
    BAD_CARD,
    CODE,
    GOOD_CARD,
    Bank,
    Shop,
    acquiring,
    card,
    framed,
    key,
    until,
)

# ---- what goes over the wire


def head_of(request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Request line, headers by their names in lower case, and body."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *headers = head.decode("ascii").split("\r\n")
    found = {name.lower(): value for name, _, value in (h.partition(": ") for h in headers)}
    assert len(found) == len(headers)
    return line, found, body


@pytest.mark.parametrize("target", ["absolute", "origin"])
async def test_what_a_kit_is_sent(tmp_path: Path, target: str) -> None:
    async with acquiring(tmp_path, merchant=f'target = "{target}"') as acquirer:
        page = await acquirer.paid()
        payment = await page.ended()
        (request,) = acquirer.shop.requests
        port = acquirer.shop.port
    line, headers, body = head_of(request)
    path = "/cgi-bin/tbk_bp_resultado.cgi"
    where = f"http://127.0.0.1:{port}{path}" if target == "absolute" else path
    assert line == f"POST {where} HTTP/1.1"
    assert headers == {
        "host": f"127.0.0.1:{port}", "user-agent": "troncal", "content-length": str(len(body)),
        "content-type": "application/x-www-form-urlencoded", "connection": "close",
    }  # fmt: skip
    name, _, rest = body.partition(b"=")
    wire, _, code = rest.partition(b"&")
    assert (name, code) == (b"TBK_PARAM", b"TBK_CODIGO_COMERCIO=" + CODE.encode())
    assert b"%0a" in wire
    assert not {b"\n", b"+", b"/"} & {bytes((byte,)) for byte in wire}
    opened = seal.open_wire(
        unquote_to_bytes(wire), key("merchant_test_2048"), key("sim_webpay_4096").public_key(),
        spare_key=bytes(32),
    )  # fmt: skip
    assert opened == (payment.message, payment.signature)


@pytest.mark.parametrize("encoding", ["plain", "kcc"])
@pytest.mark.parametrize("send_code", [True, False])
async def test_what_a_closing_page_is_sent(tmp_path: Path, encoding: str, send_code: bool) -> None:
    more = f', encoding = "{encoding}", send_code = {str(send_code).lower()}'
    async with acquiring(tmp_path, mode="direct", direct=more) as acquirer:
        payment = await (await acquirer.paid()).ended()
        assert payment.state == "CONFIRMED"
        (request,) = acquirer.shop.requests
        port = acquirer.shop.port
    line, headers, body = head_of(request)
    if encoding == "plain":
        assert line == "POST /xt_compra HTTP/1.1"
        assert (headers["host"], headers["content-length"]) == (f"127.0.0.1:{port}", str(len(body)))
    else:
        assert line == f"POST http://127.0.0.1:{port}/xt_compra HTTP/1.0"
        assert "host" not in headers
        assert int(headers["content-length"]) == len(body.rstrip(b"\r\n"))
        assert all(
            len(part) % 3 == 0 for part in body.rstrip(b"\r\n").replace(b"=", b"&").split(b"&")
        )
    text = unquote_to_bytes(body.rstrip(b"\r\n").replace(b"+", b" ")).decode("latin-1")
    pairs = [tuple(pair.split("=", 1)) for pair in text.split("&")]
    code = [("TBK_CODIGO_COMERCIO", CODE)] if send_code else []
    assert pairs == [*parse_pairs(payment.message), *code, ("TBK_MAC", payment.signature.hex())]


@pytest.mark.parametrize(
    ("raw", "state", "cause"),
    [
        (framed(b"NO ACEPTADO"), "CONFIRMED", ""),
        (framed(b"<b>ACEPTADO</b>", "500 Oops"), "CONFIRMED", ""),
        (b"HTTP/1.1 200 OK\r\nX: ACEPTADO\r\nContent-Length: 1\r\n\r\n", "CONFIRMED", ""),
        (framed(b"aceptado"), "REVERSED", "REJECTED"),
        (framed(b"RECHAZADO"), "REVERSED", "REJECTED"),
        (b"", "REVERSED", "NO_ANSWER"),
    ],
)
async def test_the_old_rule_for_old_pages(
    tmp_path: Path, raw: bytes, state: str, cause: str
) -> None:
    shop = Shop("direct")

    async def script(stream: trio.SocketStream, data: bytes) -> None:
        await stream.send_all(raw)

    shop.script = script
    old = ', answer_match = "kcc"'
    async with acquiring(tmp_path, mode="direct", shop=shop, direct=old) as acquirer:
        payment = await (await acquirer.paid()).ended()
        assert (payment.state, payment.cause) == (state, cause)


@pytest.mark.parametrize("known", [True, False])
async def test_a_closing_page_by_TLS_is_asked_only_if_it_is_who_it_says(
    tmp_path: Path, known: bool, mock_clock: MockClock
) -> None:
    cert, private = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, private)
    shop = Shop("direct")
    await shop.listen()
    plain = shop._one

    async def secure(stream: trio.SocketStream) -> None:
        tls: Any = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await plain(tls)

    shop._one = secure  # type: ignore[method-assign]
    closing = f"https://localhost:{shop.port}/xt_compra"
    more = f', ca = "{cert}"' if known else ""
    async with acquiring(
        tmp_path, mode="direct", shop=shop, closing=closing, direct=more
    ) as acquirer:
        page = await acquirer.paid()
        if not known:  # it is tried three times, a second apart
            await until(lambda: mock_clock.jump(0.05) or page.state in rec.FINAL)
        payment = await page.ended()
        assert payment.state == ("CONFIRMED" if known else "REVERSED")
        assert payment.cause == ("" if known else "NO_ANSWER")
        assert len(shop.requests) == known


# ---- beside it


async def test_nobody_waits_for_anothers_RSA(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a signature takes for ever, pages are shown and other payments come to their ends."""
    held, sign = threading.Event(), seal.sign
    begun = threading.Event()

    def slow(message: bytes, own: Any) -> bytes:
        if message.startswith(b"TBK_ORDEN_COMPRA=SLOW"):  # the result; a request begins otherwise
            begun.set()
            assert held.wait(60)
        return sign(message, own)

    monkeypatch.setattr(seal, "sign", slow)
    async with acquiring(tmp_path) as acquirer:
        slow_one = await acquirer.paid("SLOW")
        await until(begun.is_set)
        try:
            for number in range(6):  # more than there are threads
                page = await acquirer.form(f"OC{number}")
                assert page.view.state == "FORM"
                await page.pay(card())
                assert (await page.ended()).state == "CONFIRMED"
            assert slow_one.state == "AUTHORISING"
        finally:
            held.set()
        assert (await slow_one.ended()).state == "CONFIRMED"


async def test_RSA_never_runs_where_the_event_loop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, used = threading.get_ident(), []
    for name in ("sign", "envelope", "open_with"):
        whole = getattr(seal, name)

        def watched(*values: Any, whole: Any = whole, name: str = name, **more: Any) -> Any:
            used.append((name, threading.get_ident() == loop))
            return whole(*values, **more)

        monkeypatch.setattr("switch.products.webpay_keys.seal." + name, watched)
    async with acquiring(tmp_path) as acquirer:
        shop_side = len(used)
        page = await acquirer.paid()
        await page.ended()
    ours = [entry for entry in used[shop_side:] if not entry[1]]
    assert {name for name, _ in ours} == {"sign", "envelope", "open_with"}
    # On the loop's thread ran what the test itself sealed: the request, and the shop's answer.
    assert sum(on_loop for _, on_loop in used) == 2 * 2


async def test_a_full_disk_delays_lines_and_no_payment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path) as acquirer:
        writer, write = acquirer.service._writer, acquirer.service._writer.write
        full = True

        def wrote(lines: Any) -> None:
            if full:
                raise OSError(28, "No space left on device")
            write(lines)

        await until(lambda: rec.LINES in acquirer.flow.spaces)
        monkeypatch.setattr(writer, "write", wrote)
        pages = [await acquirer.paid(f"OC{number}") for number in range(3)]
        for page in pages:
            await until(lambda page=page: page.state == "CONFIRMED")
        await until(lambda: acquirer.flow.lines_wait)
        assert rec.LINES not in acquirer.flow.spaces  # however long the disk stays full
        assert acquirer.lines() == []
        full = False
        await until(lambda: mock_clock.jump(1.0) or writer.number == acquirer.flow.newest_line)
        await until(lambda: not acquirer.flow.lines_wait)
        assert acquirer.lines() == [("ACK", "0")] * 3
        assert rec.LINES in acquirer.flow.spaces


# ---- logs


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What is logged; logging is put back as it was."""
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    yield stream
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, logs._StandardFormatter):
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)


async def test_every_change_of_a_payment_is_logged_and_nothing_secret(
    tmp_path: Path, out: io.StringIO
) -> None:
    bank, shop = Bank(), Shop("kcc60")

    async def unwilling(stream: trio.SocketStream, data: bytes) -> None:
        await stream.send_all(b"HTTP/1.0 500 \x1b[31m" + GOOD_CARD.encode() + b"\n\n")

    shop.script = unwilling
    async with acquiring(tmp_path, authoriser="bank", bank=bank, shop=shop) as acquirer:
        page = await acquirer.paid()
        payment = await page.ended()
        declined = await acquirer.paid("OC2", with_card=card(BAD_CARD))
        await declined.ended()
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    mine = [r for r in records if r.get("payment") == payment.shown and r["event"] == "payment"]
    assert [(r["what"], r["state"]) for r in mine] == [
        ("CREATED", "CREATED"), ("SHOWN", "FORM"), ("PAY_SUBMITTED", "PAYING"),
        ("AUTH_SENT", "AUTHORISING"), ("AUTH_RESULT", "DECIDING"), ("REVERSED", "REVERSING"),
        ("REVERSAL_DONE", "REVERSED"),
    ]  # fmt: skip
    last = mine[-1]
    assert (last["merchant"], last["order"], last["cause"]) == (CODE, "OC1", "BAD_ANSWER")
    assert last["first6_last4"] == "405188******6623"
    assert last["elapsed_ms"] >= 0
    (failed,) = [
        r for r in records
        if r["event"] == "notification_failed" and r["payment"] == payment.shown
    ]  # fmt: skip
    assert (failed["answer"], failed["phase"], failed["status"]) == ("BAD", "done", 500)
    assert failed["address"] == f"127.0.0.1:{shop.port}"
    assert failed["begins"].startswith("HTTP/1.0 500 ")
    assert failed["elapsed_ms"] >= 0
    prints = [
        fingerprint(key(name).public_key()) for name in ("sim_webpay_4096", "merchant_test_2048")
    ]
    assert [failed["signed_by"], failed["sealed_for"]] == [text[:16] for text in prints]
    text = out.getvalue()
    secrets = [
        GOOD_CARD, BAD_CARD, page.page_id, page.cookie, "\x1b", payment.signature.hex()[:32],
        page.view.nonce, "la-clave",
    ]  # fmt: skip
    assert [secret for secret in secrets if secret in text] == []
    assert re.search(r"(?<![0-9a-f.:-])3012(?![0-9a-f:-])", text) is None
