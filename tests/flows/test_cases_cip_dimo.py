"""Gateway cases with the Dimo source: sicoop and ceibo of the same process, real codes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core_ext._mac import totp
from switch.flows import operations as ops
from switch.ops.keys import from_base32
from tests.cip_house import APP, CipHouse

PAYMENTS = "/cip/v1/gateway/payments"
NETWORK, TERMINAL, BRANCH = "0077", "00007701", "1"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(
        tmp_path, toml=f'[cip]\nnetwork = "{NETWORK}"\nbranch = "1"', source="dimo",
        terminal=TERMINAL,
    )  # fmt: skip
    found.command("network_add", number=NETWORK, name="CIP")
    found.command("terminal_add", number=TERMINAL, network=NETWORK, branch=BRANCH)
    yield found
    assert found.node.money_check() == {"posted": 0, "pending": 0}
    found.close()


@pytest.fixture
def card(house: CipHouse) -> dict:
    return house.command("card_add", document="4567890", balance=500_000)


def available(house: CipHouse, card: dict) -> int:
    found = house.node.registry.card(card["card"])
    return house.node.store.ledger.balance(found.account).available


def body(house: CipHouse, card: dict, client_ref: str = "INV-1", amount: int = 150_000) -> dict:
    token = totp(from_base32(card["seed"]), house.clock.now_ns // 1_000_000_000)
    value = house.body(client_ref, amount)
    value["transaction"]["instrument"] = {"type": "dimo", "document": "4567890", "token": token}
    return value


async def test_g00_dimo_holds_registers_and_confirms(house: CipHouse, card: dict) -> None:
    async with house.running() as client:
        answer = await client.post(PAYMENTS, json=body(house, card))
        assert answer.status_code == 201, answer.text
        (payment,) = house.payments()
        assert len(payment.source_ref) == 26
        assert payment.source_ref.startswith(NETWORK + TERMINAL)
        assert [o.kind for o in payment.outbox if o.done_ns] == ["settle"]
        found = house.node.store.records.get(ops.SICOOP_OPERATIONS, payment.source_ref.encode())
        operation = ops.decode_sicoop(found)
        assert operation.state == "CAPTURADA"
        assert operation.authorization == answer.json()["confirmations"]["source"]
        assert available(house, card) == 350_000
        again = await client.post(PAYMENTS, json=body(house, card))
        assert again.content == answer.content  # the code is no part of the request's hash
        assert available(house, card) == 350_000


async def test_g05_dimo_declines_a_wrong_code_and_missing_funds(
    house: CipHouse, card: dict
) -> None:
    async with house.running() as client:
        wrong = body(house, card)
        wrong["transaction"]["instrument"]["token"] = "000000"
        answer = await client.post(PAYMENTS, json=wrong)
        assert (answer.status_code, answer.json()["reason"]) == (402, "authentication")
        poor = await client.post(PAYMENTS, json=body(house, card, "INV-2", 600_000))
        assert (poor.status_code, poor.json()["reason"]) == (402, "funds")
        assert available(house, card) == 500_000


async def test_g07_dimo_after_a_crash_is_reversed(house: CipHouse, card: dict) -> None:
    """SUBMITTED and nothing more is durable: R4, a time-out is always a reversal."""
    async with house.running() as client:
        assert (await client.post(PAYMENTS, json=body(house, card))).status_code == 201
    with house.step() as step:
        application = house.flow.book.application(APP)
        source = house.flow.sources["dimo"]
        (first,) = house.payments()
        lost = type(first)("pay_01M7Z0R800LOSTLOSTLOSTLOST", APP, "gateway", "INV-9", "SUBMITTED")
        lost.amount, lost.currency, lost.source = 100_000, "PYG", "dimo"
        lost.created_ns = step.now_ns
        lost.source_ref = source.reference(step, lost, application)
        house.flow.event(step, lost, "submitted", "portal")
        house.flow.put(step, lost)
    house.commit()
    house.restart()
    house.advance(1)
    statuses = {p.client_ref: p.status for p in house.payments()}
    assert statuses == {"INV-1": "CONFIRMED", "INV-9": "VOIDED"}
    assert available(house, card) == 350_000
    tomb = house.node.store.records.get(ops.SICOOP_OPERATIONS, lost.source_ref.encode())
    assert ops.decode_sicoop(tomb).state == "TUMBA"


async def test_g06_dimo_that_is_not_provisioned_is_declined(house: CipHouse, card: dict) -> None:
    house.command("cip_app_set", id=APP, values={"terminal": "00009999"})
    async with house.running() as client:
        answer = await client.post(PAYMENTS, json=body(house, card))
        assert (answer.status_code, answer.json()["reason"]) == (402, "technical")
        status = (await client.get("/cip/v1/status")).json()
        assert status["sources"] == {"dimo": "down"}
