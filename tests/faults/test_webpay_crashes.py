"""Acceptance cases WP-25 to WP-33 of Webpay: real processes, killed at every step of a payment.

By default each case runs in one notification mode with one authoriser; TRONCAL_TORTURE=1 runs all.
"""

import json
import os
import signal
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.webpay import bitacora
from switch.reports import bitacora as reports
from switch.web.webpay_orders import Orders
from switch.web.webpay_shop import reconcile
from tests.webpay_child import born
from tests.webpay_house import BAD_CARD, CODE, Shop, key, toml

ALL = bool(int(os.environ.get("TRONCAL_TORTURE", "0") or 0))
KINDS = ["kcc60-ledger", "direct-bank", "kcc60-bank", "direct-ledger"]
SECONDS_MAX = 120


def kinds(first: int) -> Any:
    """All combinations, or one of them."""
    return pytest.mark.parametrize("kind", KINDS if ALL else [KINDS[first % 4]])


class Place:
    """A data directory and its shop; processes come and go."""

    def __init__(self, directory: Path, kind: str, shop: Shop) -> None:
        self.directory, self.shop = directory, shop
        self.mode, self.way = kind.split("-")

    async def run(self, **told: Any) -> dict[str, Any] | None:
        """Run a process to its end; None where it killed itself."""
        words = {
            "directory": str(self.directory), "mode": self.mode, "port": self.shop.port,
        } | told  # fmt: skip
        said = self.directory / "said"
        process = await trio.to_thread.run_sync(born, words, said)
        if await ended(process) == -signal.SIGKILL:
            return None
        assert process.exitcode == 0, said.read_text()[-3000:]
        # It stands among what was logged meanwhile.
        (summary,) = (line for line in said.read_text().splitlines() if line.startswith('{"states'))
        found: dict[str, Any] = json.loads(summary)
        return found

    async def crash(self, event: str, when: str = "before", **told: Any) -> None:
        assert await self.run(pay=True, event=event, when=when, **told) is None

    async def recover(self) -> dict[str, Any]:
        """Start again; with all combinations twice: the second start must find nothing to do."""
        found = await self.run()
        assert found is not None
        assert found["held"] == 0
        assert found["keys"] == 0
        if ALL:
            again = await self.run()
            assert again is not None
            assert again | {"alarms": {}} == found | {"alarms": {}}
        return found

    def bank(self, *mtis: str) -> list[str]:
        """Operations of the messages that a bank has got."""
        path = self.directory / "bank.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [m["operation"] for m in map(json.loads, lines) if m["mti"] in mtis]

    @property
    def reversals(self) -> int:
        return len(set(self.bank("0420", "0421")))


async def ended(process: BaseProcess) -> int | None:
    """The exit code, once there is one."""
    await trio.to_thread.run_sync(process.join, SECONDS_MAX)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


@asynccontextmanager
async def placed(directory: Path, kind: str, section: str = "") -> Any:
    shop = Shop(kind.split("-")[0])
    await shop.listen()
    mode, way = kind.split("-")
    text = toml(mode=mode, authoriser=way, port=shop.port, section=section)
    (directory / "troncal.toml").write_text(text)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.serve)
        yield Place(directory, kind, shop)
        nursery.cancel_scope.cancel()


@kinds(0)
@pytest.mark.parametrize("event", ["CREATED", "SHOWN"])
async def test_WP_25_after_CREATED(tmp_path: Path, kind: str, event: str) -> None:
    async with placed(tmp_path, kind) as place:
        await place.crash(event, when="after" if event == "CREATED" else "before")
        found = await place.recover()
        assert found["states"] == ["CREATED" if event == "CREATED" else "FORM"]
        assert (found["lines"], found["charged"], place.bank("0200")) == ([], 0, [])
        paid = await place.run(pay=True, resume=True)  # it works on until it expires
        assert paid is not None
        assert (paid["states"], paid["lines"]) == (["CONFIRMED"], [["ACK", "0"]])


@kinds(1)
async def test_WP_25_after_PAY_SUBMITTED(tmp_path: Path, kind: str) -> None:
    async with placed(tmp_path, kind, 'holder_auth = "all"') as place:
        await place.crash("PAY_SUBMITTED", when="after")
        found = await place.recover()
        assert (found["states"], found["causes"]) == (["ABORTED"], ["recovery"])
        assert (found["lines"], found["charged"], place.bank("0200")) == ([], 0, [])
        assert place.shop.requests == []


@kinds(2)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_WP_26_after_AUTH_SENT(tmp_path: Path, kind: str, when: str) -> None:
    async with placed(tmp_path, kind) as place:
        await place.crash("AUTH_SENT", when=when, silent=True)
        found = await place.recover()
        assert (found["states"], found["causes"]) == (["DECLINED_UNACKED"], ["RECOVERY"])
        assert found["lines"] == [["ERR", "-3"]]
        assert found["charged"] == 0
        assert place.shop.requests == []
        if place.way == "bank":
            assert len(place.bank("0200")) == (when == "after")
            assert place.reversals == 1


@kinds(3)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_WP_27_after_AUTH_RESULT_approved(tmp_path: Path, kind: str, when: str) -> None:
    async with placed(tmp_path, kind) as place:
        place.shop.script = place.shop.silent
        await place.crash("AUTH_RESULT", when=when)
        told = len(place.shop.requests)
        found = await place.recover()
        assert (found["states"], found["causes"]) == (["REVERSED"], ["RECOVERY"])
        assert found["lines"] == [["ERR", "0"]]
        assert found["charged"] == 0
        assert len(place.shop.requests) == told <= 1
        assert place.reversals == (place.way == "bank")


@kinds(0)
async def test_WP_28_after_AUTH_RESULT_declined(tmp_path: Path, kind: str) -> None:
    async with placed(tmp_path, kind) as place:
        await place.crash("AUTH_RESULT", card=BAD_CARD)
        found = await place.recover()
        assert (found["states"], found["causes"]) == (["DECLINED_UNACKED"], ["RECOVERY"])
        assert found["lines"] == [["ERR", "-1"]]
        assert place.reversals == 0


@kinds(1)
async def test_WP_29_the_ACK_was_read_and_nothing_written(tmp_path: Path, kind: str) -> None:
    async with placed(tmp_path, kind) as place:
        words = {
            "directory": str(tmp_path), "mode": place.mode, "port": place.shop.port, "pay": True,
        }  # fmt: skip
        started: list[BaseProcess] = []

        async def accept_and_kill(stream: trio.SocketStream, data: bytes) -> None:
            """The process is stopped, gets its answer into its socket, and never runs again."""
            (process,) = started
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            await place.shop.accept(stream, data)
            process.kill()

        place.shop.script = accept_and_kill
        started.append(born(words, tmp_path / "said"))
        assert await ended(started[0]) == -signal.SIGKILL
        found = await place.recover()
        assert (found["states"], found["causes"]) == (["REVERSED"], ["RECOVERY"])
        assert found["lines"] == [["ERR", "0"]]
        assert found["charged"] == 0
        assert len(place.shop.requests) == 1
        assert await trio.to_thread.run_sync(reconciled, tmp_path) == ["OC1"]


def reconciled(directory: Path) -> list[str]:
    """What a shop that had marked its order paid finds in the acquirer's Bitácora."""
    (file,) = (directory / "bitacora").rglob("*.log")
    records = bitacora.parse(file.read_bytes(), key("sim_webpay_4096").public_key()).records
    orders = Orders(directory / "orders.sqlite")
    orders.create(CODE, "OC1", "1000000")
    for record in records:
        pairs = dict(record.pairs)
        told = orders.decide(
            CODE, pairs, pairs["TBK_MAC"], mac_good=record.mac == "ok", clock=lambda: 0.0
        )
        assert told.accepted
    return reconcile(orders, CODE, records)


@kinds(0)
async def test_WP_30_after_DECIDED_ACK(tmp_path: Path, kind: str) -> None:
    async with placed(tmp_path, kind) as place:
        await place.crash("CONFIRMED")
        found = await place.recover()
        assert found["states"] == ["CONFIRMED"]
        assert found["lines"] == [["ACK", "0"]]
        assert found["charged"] == (10_000 if place.way == "ledger" else 0)
        assert place.reversals == 0


@kinds(1)
async def test_WP_31_after_DECIDED_ERR(tmp_path: Path, kind: str) -> None:
    async with placed(tmp_path, kind) as place:
        place.shop.script = place.shop.answer("ERR")
        await place.crash("REVERSED")
        assert place.bank("0420", "0421") == []
        found = await place.recover()
        assert (found["states"], found["causes"]) == (["REVERSED"], ["REJECTED"])
        assert found["lines"] == [["ERR", "0"]]
        assert place.reversals == (place.way == "bank")


@kinds(0)
@pytest.mark.parametrize("damage", ["half a line", "line without cursor", "strange bytes", "gone"])
async def test_WP_32_a_Bitacora_that_is_not_as_it_was_noted(
    tmp_path: Path, kind: str, damage: str
) -> None:
    async with placed(tmp_path, kind) as place:
        found = await place.run(pay=True)
        assert found is not None
        assert found["lines"] == [["ACK", "0"]]
        (file,) = (tmp_path / "bitacora").rglob("*.log")
        whole = file.read_bytes()
        cursors = list((tmp_path / "data").glob(f"{reports.CURSOR}*"))
        if damage == "gone":
            file.unlink()
        else:
            for path in cursors:
                path.unlink()
            if damage == "half a line":
                file.write_bytes(whole[: len(whole) // 2])
            elif damage == "strange bytes":
                file.write_bytes(b"x" * 100)
        if damage == "gone":  # noticed when the next line goes there
            again = await place.run(pay=True, order="OC2")
            assert again is not None
            assert again["lines"] == [["ACK", "0"]] * 2
            assert file.read_bytes().startswith(whole)
            assert again["alarms"]["webpay_bitacora_rebuilt"] == 1
            return
        again = await place.run()
        assert again is not None
        assert again["lines"] == [["ACK", "0"]]
        assert file.read_bytes() == whole
        conflicts = list((tmp_path / "bitacora").rglob("*.conflict-*"))
        assert len(conflicts) == (damage == "strange bytes")
        assert ("webpay_bitacora_conflict" in again["alarms"]) is (damage == "strange bytes")
