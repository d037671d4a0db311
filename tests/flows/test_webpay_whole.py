"""Acceptance cases WP-33, WP-55 and WP-56 of Webpay: full journals, secrets, one line each."""

import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from core_ext._journal import JournalFull
from protocols.webpay import bitacora
from switch.flows import webpay_records as rec
from switch.flows.webpay_records import Line
from switch.journal.projector import Projector
from switch.ops.metrics import Metrics
from switch.reports.bitacora import CURSOR, BitacoraWriter
from switch.sections.webpay import Files
from tests.webpay_house import BAD_CARD, Bank, Page, Shop, acquiring, card, until


class Room:
    """A journal whose room a test takes away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, acquirer: Any) -> None:
        self.admitting = self.concluding = True
        store = type(acquirer.node.store)
        monkeypatch.setattr(store, "admitting", property(lambda _: self.admitting))
        monkeypatch.setattr(store, "concluding", property(lambda _: self.concluding))


@pytest.mark.parametrize("way", ["ledger", "bank"])
async def test_WP_33_no_room_for_AUTH_SENT(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with acquiring(tmp_path, authoriser=way) as acquirer:
        room = Room(monkeypatch, acquirer)
        page = await acquirer.form()
        room.admitting = False
        await page.pay(card())
        assert (page.state, page.payment.cause) == ("ABORTED", "no_room")
        assert (acquirer.bank.asked, acquirer.charged(), acquirer.lines()) == ([], 0, [])


async def test_WP_33_no_room_at_all_for_AUTH_SENT(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path, authoriser="bank") as acquirer:
        room = Room(monkeypatch, acquirer)
        page = await acquirer.form()
        room.admitting = room.concluding = False
        with pytest.raises(JournalFull):
            await page.pay(card())
        assert page.state == "FORM"
        room.admitting = room.concluding = True
        mock_clock.jump(1.0)
        await until(lambda: page.state == "ABORTED")
        await until(lambda: acquirer.keys_left() == 0)
        assert acquirer.bank.asked == []
        assert acquirer.lines() == []


async def test_WP_33_no_room_for_DECIDED(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    async with acquiring(tmp_path) as acquirer:
        room = Room(monkeypatch, acquirer)
        shop = acquirer.shop

        async def fills_up(stream: trio.SocketStream, data: bytes) -> None:
            room.admitting = room.concluding = False
            await shop.accept(stream, data)

        shop.script = fills_up
        page = await acquirer.paid()
        await until(lambda: shop.requests)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert page.state == "DECIDING"
        room.admitting = room.concluding = True
        mock_clock.jump(1.0)
        assert (await page.ended()).state == "CONFIRMED"
        assert acquirer.lines() == [("ACK", "0")]


# ---- WP-55


async def test_WP_55_no_card_number_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Payments of all kinds, some cut short by a stop; then every byte there is, searched."""
    count = 1000 if int(os.environ.get("TRONCAL_TORTURE", "0") or 0) else 24
    chance = random.Random(55)
    caplog.set_level(logging.DEBUG)
    shop = Shop("direct")
    answers = [b"ACEPTADO", b"RECHAZADO", b"", None]
    shop.script = _random_answers(chance, answers)
    exposition = b""
    for start in range(2):
        async with acquiring(tmp_path, mode="direct", authoriser="bank", shop=shop) as acquirer:
            for number in range(count // 2):
                pan = chance.choice([card().pan, BAD_CARD])
                page = await acquirer.paid(f"OC{start}-{number}", with_card=card(pan))
                if number < count // 2 - 3:
                    await page.ended()
            metrics = Metrics()
            acquirer.product.measure(metrics)
            exposition += metrics.exposition()
            if start:
                await until(lambda: not acquirer.unfinished())
                await until(lambda: acquirer.keys_left() == 0)
            else:
                shop.listeners = []
    seen = capfd.readouterr()
    everything = _files(tmp_path)
    everything += [
        (Path("log"), caplog.text.encode()), (Path("output"), (seen.out + seen.err).encode()),
        (Path("metrics"), exposition),
    ]  # fmt: skip
    assert len(everything) > 5
    for pan in (card().pan, BAD_CARD):
        for text in (pan.encode(), bytes.fromhex(pan), pan.encode("utf-16-le")):
            assert [path for path, data in everything if text in data] == []


def _files(top: Path) -> list[tuple[Path, bytes]]:
    return [(path, path.read_bytes()) for path in top.rglob("*") if path.is_file()]


def _random_answers(chance: random.Random, answers: list[bytes | None]) -> Any:
    async def script(stream: trio.SocketStream, data: bytes) -> None:
        word = chance.choice(answers)
        if word is not None:
            await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + word)

    return script


def test_WP_55_no_field_for_what_must_not_be_kept() -> None:
    """Records have no place for a verification value or an expiry."""
    names = {
        field for kind in (rec.Payment, rec.Line, rec.Order) for field in kind.__struct_fields__
    }
    assert not {name for name in names if "cvv" in name or "expiry" in name or name == "pan"}


async def test_WP_56_each_result_one_line_and_one_end(tmp_path: Path) -> None:
    chance = random.Random(56)
    shop = Shop("direct")
    shop.script = _random_answers(chance, [b"ACEPTADO", b"RECHAZADO", b"?", None])
    async with acquiring(tmp_path, mode="direct", shop=shop) as acquirer:
        pages: list[Page] = []
        for number in range(16):
            pan = chance.choice([card().pan, card().pan, BAD_CARD])
            pages.append(await acquirer.paid(f"OC{number}", with_card=card(pan)))
        for page in pages:
            await page.ended()
        results = [p for p in acquirer.payments() if "AUTH_RESULT" in dict(p.history)]
        assert len(results) == len(acquirer.lines()) == 16
        for payment in results:
            captured = payment.state == "CONFIRMED"
            undone = payment.state == "REVERSED"
            declined = payment.respuesta != 0
            assert captured + undone + declined == 1
        confirmed = sum(p.state == "CONFIRMED" for p in results)
        assert acquirer.charged() == 10_000 * confirmed


# ---- WP-56, the files: whatever a stop leaves of them

MESSAGES = [
    b"TBK_ORDEN_COMPRA=%d#TBK_TIPO_TRANSACCION=TR_NORMAL#TBK_RESPUESTA=0#TBK_FECHA_CONTABLE=%04d"
    % (number, 101 + number % 2)
    for number in range(30)
]


def lines(count: int) -> list[Line]:
    return [
        Line(
            number + 1,
            "597026007976",
            "ACK" if number % 3 else "ERR",
            MESSAGES[number],
            b"\1" * 8,
            2026,
        )
        for number in range(count)
    ]


def content(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*.log")}


def written(directory: Path, todo: list[Line], layout: str = "dated") -> dict[str, bytes]:
    directory.mkdir(exist_ok=True)
    writer = BitacoraWriter(directory, directory / "b", Files(layout=layout))  # type: ignore[arg-type]
    writer.write(todo)
    writer.close()
    return content(directory / "b")


@settings(max_examples=40)
@given(
    stops=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 400)), min_size=1, max_size=4),
    layout=st.sampled_from(["dated", "flat"]),
)
def test_WP_56_the_same_files_whatever_stops(
    tmp_path_factory: pytest.TempPathFactory, stops: list[tuple[int, int]], layout: str
) -> None:
    """A stop after the append and before the note, with any part of the append on disk."""
    top = tmp_path_factory.mktemp("bitacora")
    whole = lines(30)
    right = written(top / "right", whole, layout)
    done = 0
    directory = top / "cut"
    directory.mkdir()
    for count, kept in stops:
        upto = min(done + count, len(whole))
        before = {p.name: p.read_bytes() for p in directory.glob(f"{CURSOR}*")}
        sizes = {name: len(data) for name, data in content(directory / "b").items()}
        written(directory, whole[:upto], layout)
        for path in directory.glob(f"{CURSOR}*"):
            path.unlink()
        for name, data in before.items():
            (directory / name).write_bytes(data)
        for name, data in content(directory / "b").items():
            (directory / "b" / name).write_bytes(data[: sizes.get(name, 0) + kept])
        written(directory, whole[:upto], layout)
        done = upto
    assert written(directory, whole, layout) == right
    assert not list((directory / "b").rglob("*.conflict-*"))
    shutil.rmtree(top)


def test_lines_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    found = written(tmp_path / "x", lines(30))
    records = [r for data in found.values() for r in bitacora.parse(data).records]
    assert len(records) == 30
    assert {r.outcome_name for r in records} == {"CONFIRMED", "REVERSED"}
    assert sorted(int(r.value("order") or "") for r in records) == list(range(30))


async def test_the_read_model_has_every_payment(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        page = await acquirer.paid("OC1")
        await page.ended()
        acquirer.node.store.commit()
        projector = Projector(acquirer.config, acquirer.config.data)
        projector.catch_up()
        rows = projector._db.execute(
            "SELECT order_number, state, card, hundredths, length(id) FROM webpay_payments"
        ).fetchall()
        projector.close()
        assert rows == [("OC1", "CONFIRMED", "405188******6623", 1_000_000, 32)]


METRICS = (
    "requests_total", "payments_total", "state", "auth_seconds_count", "notify_seconds_count",
    "ack_margin_seconds_count", "late_ack_total", "reply_replay_total", "rsa_seconds_count",
    "rsa_queue", "bitacora_lines_total", "bitacora_lag_records", "reversal_oldest_seconds",
    "reversals_pending",
)  # fmt: skip


async def test_metrics_have_their_names(tmp_path: Path) -> None:
    bank, shop = Bank(), Shop("direct")
    shop.script = shop.answer("ERR")
    async with acquiring(
        tmp_path, mode="direct", authoriser="bank", bank=bank, shop=shop
    ) as acquirer:
        await (await acquirer.paid("OC1")).ended()
        shop.script = shop.accept
        await (await acquirer.paid("OC2")).ended()
        bank.auto = False
        page = await acquirer.paid("OC3")
        await until(lambda: len(bank.sent("0200")) == 3)
        bank.lose(-1)
        await page.ended()
        metrics = Metrics()
        acquirer.product.measure(metrics)
        text = metrics.exposition().decode()
        for name in METRICS:
            assert f"\ntroncal_webpay_{name}" in text, name
        assert 'troncal_webpay_reversals_pending{authoriser="bank:emisor1"} 1.0' in text
        assert 'troncal_webpay_payments_total{cause="REJECTED",outcome="REVERSED"} 1.0' in text


def test_a_line_given_twice_is_written_once(tmp_path: Path) -> None:
    whole = lines(6)
    right = written(tmp_path / "right", whole)
    assert written(tmp_path / "twice", [*whole[3:], *whole, *whole[:2]]) == right
