"""Acceptance cases WP-33, WP-55 and WP-56 of Webpay: full journals, secrets, one line each."""

import logging
import os
import random
import re
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
from switch.reports import bitacora as reports
from switch.reports.bitacora import CURSOR, BitacoraWriter
from switch.sections.webpay import Files
from switch.web.webpay_form import Card
from tests.faults.test_webpay_load import pan
from tests.webpay_house import (
    BAD_CARD,
    Acquirer,
    Bank,
    Page,
    Shop,
    acquiring,
    card,
    request_pairs,
    sealed_request,
    toml,
    until,
)


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


STARTS = 4
CODE = "0973"  # no number of ours is written with a zero ahead and alone
EXPIRY = "0012"  # likewise; and there is no month 00


async def test_WP_55_no_card_number_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Payments of all kinds, each with a card of its own, cut short by processes that are gone;
    then every byte there is, searched."""
    count = 1000 if int(os.environ.get("TRONCAL_TORTURE", "0") or 0) else 24
    each = count // STARTS
    chance = random.Random(55)
    caplog.set_level(logging.DEBUG)
    shop, bank = Shop("direct"), Bank()
    await shop.listen()
    shop.script = _random_answers(chance, [b"ACEPTADO", b"RECHAZADO", b"", None])
    pans = [pan(number) for number in range(count)]
    exposition, recovered = b"", 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.serve)
        for start in range(STARTS):
            text = toml(mode="direct", authoriser="bank", port=shop.port)
            acquirer = Acquirer(tmp_path, shop, bank, text)
            recovered += sum(acquirer.flow.recoveries.values())
            async with trio.open_nursery() as life:
                await life.start(acquirer.run)
                mine = pans[start * each : (start + 1) * each]
                bank.code = ""
                for number, one in enumerate(mine):
                    bank.code = chance.choice(["", "", "05"])
                    kind = chance.choice("CCD")
                    typed = Card(kind, one, EXPIRY, CODE, "VN", 0, "")  # type: ignore[arg-type]
                    if kind == "D":
                        typed = card(one, kind="D")
                    page = await acquirer.paid(f"OC{start}-{number}", with_card=typed)
                    if kind == "D" and chance.random() < 0.8:
                        await page.authenticate("TSY")
                    elif kind == "D":
                        await page.authenticate("TSN")
                    if number < each - 3:
                        await page.ended()
                last = start == STARTS - 1
                if last:
                    await until(lambda acquirer=acquirer: not acquirer.unfinished())
                    await until(lambda acquirer=acquirer: acquirer.keys_left() == 0)
                metrics = Metrics()
                acquirer.product.measure(metrics)
                exposition += metrics.exposition()
                life.cancel_scope.cancel()
            if last:
                acquirer.close()
            else:  # the process is gone, and what was not durable
                acquirer.node.store.journal.close(flush=False)
                acquirer.node.store.close()
                bank._unanswered.clear()
        nursery.cancel_scope.cancel()
    seen = capfd.readouterr()
    everything = _files(tmp_path)
    everything += [
        (Path("log"), caplog.text.encode()), (Path("output"), (seen.out + seen.err).encode()),
        (Path("metrics"), exposition),
    ]  # fmt: skip
    assert len(everything) > 5
    assert recovered > 0
    _searched(everything, pans)
    _searched_codes(everything)


def _searched(everything: list[tuple[Path, bytes]], pans: list[str]) -> None:
    """No number in any form: digits, two to a byte, two bytes to a digit."""
    forms = {text for number in pans for text in (number.encode(), bytes.fromhex(number))}
    lengths = sorted({len(text) for text in forms})
    for path, data in everything:
        for length in lengths:
            of_length = {text for text in forms if len(text) == length}
            # All of one size at once: every place where the first byte fits is looked up.
            begins = {text[:2] for text in of_length}
            for begin in begins:
                at = data.find(begin)
                while at >= 0:
                    assert data[at : at + length] not in of_length, path
                    at = data.find(begin, at + 1)
        for number in pans[:50]:
            assert number.encode("utf-16-le") not in data, path


def _searched_codes(everything: list[tuple[Path, bytes]]) -> None:
    """No verification value or expiry that stands alone, as text of our records or of a form."""
    for secret in (CODE, EXPIRY):
        alone = re.compile(rb"(?<![0-9a-f.-])" + secret.encode() + rb"(?![0-9a-f-])")
        packed = bytes((0xA0 | len(secret),)) + secret.encode()
        for path, data in everything:
            assert alone.search(data) is None, (path, secret)
            assert packed not in data, (path, secret)


def test_WP_55_the_search_of_files_finds_what_is_there() -> None:
    """A search is worth as much as what it finds when something is there."""
    pans = [pan(number) for number in range(40)]
    for hidden in (pans[7].encode(), bytes.fromhex(pans[39]), pans[3].encode("utf-16-le")):
        with pytest.raises(AssertionError):
            _searched([(Path("x"), b"405188" + hidden + b"-")], pans)
    for hidden in (b"=0973&", b"\xa40973", b'"0012"'):
        with pytest.raises(AssertionError):
            _searched_codes([(Path("x"), b"--" + hidden)])
    _searched([(Path("x"), b"405188******0007 4051880000000")], pans)


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
    "reversals_pending", "seal_failures_total",
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
        request = sealed_request(request_pairs("OC4", shop.port))
        for wire in ("AAAA", request["TBK_PARAM"][:-80]):
            await acquirer.service.enter(request | {"TBK_PARAM": wire}, "127.0.0.1")
        metrics = Metrics()
        acquirer.product.measure(metrics)
        text = metrics.exposition().decode()
        for name in METRICS:
            assert f"\ntroncal_webpay_{name}" in text, name
        assert 'troncal_webpay_reversals_pending{authoriser="bank:emisor1"} 1.0' in text
        assert 'troncal_webpay_payments_total{cause="REJECTED",outcome="REVERSED"} 1.0' in text
        assert 'troncal_webpay_seal_failures_total{peer="597026007976"} 2.0' in text
        assert 'troncal_webpay_requests_total{tag="SEAL"} 2.0' in text
        assert 'troncal_webpay_requests_total{tag="OK"} 3.0' in text
        assert 'troncal_webpay_bitacora_lines_total{prefix="ERR"} 1.0' in text
        assert 'troncal_webpay_rsa_seconds_count{bits="4096",op="sign"} 3.0' in text
        for secret in ("OC1", "OC3", page.page_id, card().pan[-4:]):
            assert f'"{secret}' not in text
    shop.listeners = []
    async with acquiring(
        tmp_path, mode="direct", authoriser="bank", bank=bank, shop=shop
    ) as acquirer:
        metrics = Metrics()
        acquirer.product.measure(metrics)
        text = metrics.exposition().decode()
        assert 'troncal_webpay_recovered_total{state="DECLINED"} 1.0' in text
        assert 'troncal_webpay_reversals_pending{authoriser="bank:emisor1"} 1.0' in text


async def test_a_file_with_strange_lines_is_made_again_from_the_journal(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        await (await acquirer.paid("OC1")).ended()
        top = acquirer.config.file(acquirer.config.webpay.bitacora.dir)
        (file,) = top.rglob("*.log")
        right = file.read_bytes()
        file.write_bytes(right.replace(b"OC1", b"OC9") + b"ACK; TBK_ORDEN_COMPRA=OC8\n")
        await (await acquirer.paid("OC2")).ended()
        await until(lambda: acquirer.node.alarms.get("webpay_bitacora_conflict"))
        now = file.read_bytes()
        assert now.startswith(right)
        assert [r.value("order") for r in bitacora.parse(now).records] == ["OC1", "OC2"]
        (aside,) = top.rglob("*.conflict-1")
        assert b"OC9" in aside.read_bytes()


def test_a_file_is_made_again_without_what_is_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal begins later than the file did, and has lines already that are not written."""
    whole = lines(8)
    writer = BitacoraWriter(tmp_path, tmp_path / "b", Files(layout="flat"))
    writer.write(whole[:6])
    before = content(tmp_path / "b")

    class Held:
        """What is left of the journal: lines 3 to 8, one group."""

        def __init__(self, path: str) -> None:
            self.groups = [self]

        def next(self) -> Any:
            return self.groups.pop() if self.groups else None

        def records(self) -> list[tuple[int, bytes]]:
            return [(64, bytes((rec.LINES,)) + rec.encode(line)) for line in whole[2:]]

        def close(self) -> None: ...

    monkeypatch.setattr(reports, "Reader", Held)
    monkeypatch.setattr(reports, "parse_put", lambda payload: (0, b"", payload[1:]))
    for path in (tmp_path / "b").glob("*.log"):
        path.unlink()
    writer.write(whole[6:])
    writer.close()
    after = content(tmp_path / "b")
    written = b"".join(after[name] for name in sorted(after))
    orders = sorted(int(r.value("order") or "") for r in bitacora.parse(written).records)
    assert orders == [2, 3, 4, 5, 6, 7]
    assert {told for told, _ in writer.told()} == {"webpay_bitacora_rebuilt"}
    assert before.keys() == after.keys()


def test_a_line_given_twice_is_written_once(tmp_path: Path) -> None:
    whole = lines(6)
    right = written(tmp_path / "right", whole)
    assert written(tmp_path / "twice", [*whole[3:], *whole, *whole[:2]]) == right
