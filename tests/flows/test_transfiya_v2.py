"""TransfiYa, profile v2: prepare, commit, abort, repeats, what is not believed, and crashes."""

import base64
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from trio.testing import MockClock as Clock

from protocols.transfiya import SigningKey, check_record, make_record
from switch import config as configuration
from switch.simulators.transfiya_ledger import Ledger
from tests.transfiya_house import OPENING, BankHouse, House, _Wire

ANA, LUIS = "svgs:1001@rojo.co", "svgs:2002@verde.co"
AMOUNT = 12_345


class LedgerHouse(House):
    """Two banks that speak v2, and the ledger between them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        wires = {bank.bank: httpx.ASGITransport(_Wire(bank)) for bank in self.banks}
        clock = self.rojo.clock
        self.ledger = Ledger(clock.wall_ns, random.Random(2), wires)
        public = base64.b64encode(self.ledger.key.public).decode()
        self.rojo.add("ana2", ANA)
        self.verde.add("luis2", LUIS)
        for bank in self.banks:
            text = bank.text.replace("bank_signer =", "#").replace(
                'token_url = "http://127.0.0.1/oauth/token"', 'token_url = ""'
            )
            text += f'profile = "v2"\nledger = "demo"\nledger_public = "{public}"\n'
            text += 'symbols = { "cop" = { currency = "COP", exponent = 2 } }\n'
            path = bank.directory / "troncal.toml"
            path.write_text(text)
            bank.config = configuration.load(path, environ={})
            bank.network = _Either(self.ledger)  # type: ignore[assignment]
            self.ledger.banks[bank.bank] = bank.keys["settlement"].public

    async def send(self, amount: int = AMOUNT, source: str = ANA) -> str:
        result: str = await self.during(
            self.ledger.transfer(("rojo", source), ("verde", LUIS), amount)
        )
        return result

    def check(self, paid_minor: int) -> None:
        assert self.ledger.breaches == []
        assert self.rojo.balance("ana2") == OPENING - paid_minor
        assert self.verde.balance("luis2") == OPENING + paid_minor
        assert self.rojo.core.settlement("COP") == paid_minor
        assert self.verde.core.settlement("COP") == -paid_minor
        for bank in self.banks:
            assert bank.open_holds() == 0
            assert bank.node.money_check() == {"posted": 0, "pending": 0}
            assert not [e for e in bank.flow.entries.stored() if e.open]


class _Either:
    """The ledger as a network's application, whose drops look as on a wire."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._ledger(scope, receive, send)


# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


# Named by every test itself: only so the runner takes it as the clock.
@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def house(tmp_path: Path, clock: Clock) -> AsyncIterator[LedgerHouse]:
    async with LedgerHouse(tmp_path).running(clock) as running:
        yield running


async def test_ty_65_prepare_and_commit(house: LedgerHouse, clock: Clock) -> None:
    assert await house.send() == "completed"
    house.check(AMOUNT)
    statuses = sorted(status for _, status in house.ledger.words)
    assert statuses == ["committed", "committed", "prepared", "prepared"]
    [word] = [w for (n, s), w in house.ledger.words.items() if n[:3] == "deb" and s == "prepared"]
    hold = house.rojo.node.store.ledger.hold(bytes.fromhex(word["coreId"]))
    assert hold is not None
    assert hold.captured == AMOUNT


async def test_ty_65_repeats_book_once(house: LedgerHouse, clock: Clock) -> None:
    house.ledger.repeat = 3
    assert await house.send() == "completed"
    await house.pause(30.0)
    house.check(AMOUNT)
    assert house.rojo.flow.shared.counts["duplicates", "rojo", "debit"] == 3


async def test_ty_65_lost_calls_and_proofs(house: LedgerHouse, clock: Clock) -> None:
    house.ledger.drop.update({"debits": 1, "commit": 2, "proof": 3, "answer": 2})
    assert await house.send() == "completed"
    await house.pause(60.0)
    house.check(AMOUNT)


async def test_ty_65_no_funds_and_abort(house: LedgerHouse, clock: Clock) -> None:
    assert await house.send(OPENING + 1) == "rejected"
    await house.pause(5.0)
    house.check(0)
    [word] = [w for (_, status), w in house.ledger.words.items() if status == "failed"]
    assert word["reason"] == "bridge.account-insufficient-balance"


async def test_ty_65_an_unknown_account(house: LedgerHouse, clock: Clock) -> None:
    assert await house.send(source="svgs:nobody@rojo.co") == "rejected"
    [word] = [w for (_, status), w in house.ledger.words.items() if status == "failed"]
    assert word["reason"] == "bridge.account-not-found"
    house.check(0)


def record_of(house: LedgerHouse, *, act: str = "", key: SigningKey | None = None) -> Any:
    """A debit of its own intent, or its commit or abort."""
    key = key or house.ledger.key
    custom = {"moment": "2026-01-15T12:00:00.000Z"}
    party = {"source": {"handle": ANA}, "target": {"handle": LUIS}}
    claim = {"action": "transfer", "amount": AMOUNT, "symbol": {"handle": "cop"}, **party}
    intent = make_record({"handle": "int-1", "claims": [claim]}, custom, key)
    house.ledger.intents["int-1"] = intent
    if act:
        return make_record({"handle": "deb-1", "action": act, "intent": intent}, custom, key)
    data = {
        "handle": "deb-1", "schema": "debit", "amount": AMOUNT, "symbol": "cop", **party,
        "intent": intent,
    }  # fmt: skip
    return make_record(data, custom, key)


async def call(house: LedgerHouse, path: str, record: Any) -> int:
    found: int = await house.during(house.ledger.call("rojo", path, record))
    return found


async def test_ty_65_abort_before_prepare(house: LedgerHouse, clock: Clock) -> None:
    abort, prepare = record_of(house, act="abort"), record_of(house)
    assert await call(house, "debits/deb-1/abort", abort) == 202
    assert await call(house, "debits", prepare) == 202
    await house.pause(2.0)
    assert [status for _, status in house.ledger.words] == ["aborted"]
    house.check(0)


async def test_ty_65_commit_without_prepare_is_parked(house: LedgerHouse, clock: Clock) -> None:
    assert await call(house, "debits/deb-1/commit", record_of(house, act="commit")) == 202
    await house.pause(2.0)
    [entry] = house.rojo.flow.entries.stored()
    assert entry.state == "parked"
    assert house.rojo.node.alarms["transfiya_parked"] == 1
    assert not house.ledger.words
    house.check(0)


@pytest.mark.parametrize("wrong", ["hash", "proof", "intent", "key", "claim"])
async def test_ty_65_what_is_not_believed(house: LedgerHouse, wrong: str, clock: Clock) -> None:
    record = record_of(house)
    if wrong == "key":
        record = record_of(house, key=SigningKey(bytes(range(1, 33))))
    if wrong == "hash":
        record["data"]["amount"] += 1
    if wrong == "proof":
        record["meta"]["proofs"][0]["result"] = base64.b64encode(bytes(64)).decode()
    if wrong in ("intent", "claim"):
        data = {**record["data"]}
        if wrong == "intent":
            data["intent"] = {**data["intent"], "data": {"handle": "int-2", "claims": []}}
        else:
            data["amount"] = AMOUNT + 1
        record = make_record(data, {"moment": "2026-01-15T12:00:00.000Z"}, house.ledger.key)
    http = await call(house, "debits", record)
    await house.pause(2.0)
    assert http == (202 if wrong == "claim" else 400)
    if wrong == "claim":
        assert [status for _, status in house.ledger.words] == ["failed"]
        abort = record_of(house, act="abort")
        assert await call(house, "debits/deb-1/abort", abort) == 202
        await house.pause(2.0)
    else:
        assert not house.rojo.flow.entries.stored()
    house.check(0)


async def test_ty_65_another_record_under_the_same_handle(house: LedgerHouse, clock: Clock) -> None:
    assert await call(house, "debits", record_of(house)) == 202
    await house.pause(1.0)
    other = record_of(house)
    changed = make_record(
        {**other["data"], "amount": AMOUNT, "schema": "debit", "note": "x"},
        {"moment": "2026-01-15T12:00:01.000Z"}, house.ledger.key,
    )  # fmt: skip
    assert check_record(changed)[0] == "ok"
    assert await call(house, "debits", changed) == 202
    await house.pause(1.0)
    assert house.ledger.words["deb-1", "failed"]["reason"] == "bridge.entry-duplicated"
    assert await call(house, "debits/deb-1/abort", record_of(house, act="abort")) == 202
    await house.pause(1.0)
    house.check(0)


def bank_of(house: LedgerHouse, name: str) -> BankHouse:
    return house.rojo if name == "rojo" else house.verde


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["rojo", "verde"])
async def test_ty_65_a_crash_at_each_step(
    tmp_path: Path, clock: Clock, name: str, when: str
) -> None:
    async with LedgerHouse(tmp_path).running(clock) as house:
        bank = bank_of(house, name)
        for number in range(1, 8):
            bank.crash_at = (bank.steps + number, when)
            ended: list[str] = []

            async def transfer(ended: list[str] = ended) -> None:
                ended.append(await house.ledger.transfer(("rojo", ANA), ("verde", LUIS), AMOUNT))

            assert house._nursery is not None
            house._nursery.start_soon(transfer)
            await house.until(lambda ended=ended: bool(ended) or not bank.up)
            bank.crash_at = None
            if not bank.up:
                await bank.stopped()
                await house.pause(0.5)
                await house.restart(bank)
            await house.until(lambda ended=ended: bool(ended))
            assert ended == ["completed"]
            await house.pause(20.0)
            house.check(AMOUNT * number)
