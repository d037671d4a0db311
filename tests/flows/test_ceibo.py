"""ceibo beyond the acceptance cases: its own messages, asked directly."""

from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from core_ext import Batch
from core_ext._ledger import FROZEN_DEBIT
from protocols.messages import (
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
)
from switch.flows.registry import account_id
from tests.flows.conftest import Build
from tests.house import BRANCH, NETWORK, TERMINAL, House

A = 150_000
OPERATION = "260010000123"


def ask(house: House, message: Any) -> Any:
    with house.step() as step:
        return house.node.ceibo.ask(step, message)


def hold(house: House, **fields: Any) -> IssuerHold:
    values: dict[str, Any] = {
        "network": NETWORK, "operation": OPERATION, "kind": "cash_out", "amount": A,
        "currency": "PYG", "terminal": TERMINAL, "branch": BRANCH, "cashier": "000345",
        "day": house.node.calendar.business(house.clock.now_ns).number, "document_type": "CI",
        "document": house.holder.document, "token": house.code(),
    }  # fmt: skip
    return IssuerHold(**(values | fields))


def capture(amount: int = A, **fields: Any) -> IssuerCapture:
    return IssuerCapture(**({"network": NETWORK, "operation": OPERATION, "kind": "cash_out",
                             "amount": amount} | fields))  # fmt: skip


def release(amount: int = A, reason: str = "timeout") -> IssuerRelease:
    return IssuerRelease(NETWORK, OPERATION, "cash_out", amount, reason)


def test_hold_again_gets_the_first_answer(house: House) -> None:
    message = hold(house)
    first, again = ask(house, message), ask(house, message)
    assert (first.code, first.duplicate, again.duplicate) == ("00", False, True)
    assert first.authorization == again.authorization
    assert ask(house, replace(message, amount=A + 1_000)).code == "94"
    assert house.available() == 1_000_000 - A


def test_declines_are_remembered_too(house: House) -> None:
    message = hold(house, amount=1_001_000)
    assert ask(house, message).code == "51"
    house.do("card_fund", card=house.holder.card, amount=1_000_000)
    assert ask(house, message).code == "51"


def test_authorizations_differ_and_cannot_be_foretold(house: House) -> None:
    given = set()
    for i in range(20):
        house.clock.advance(60)
        given.add(ask(house, hold(house, operation=f"{i:012d}", amount=1_000)).authorization)
    assert len(given) == 20
    assert all(len(a) == 6 and a.isalnum() and a == a.upper() for a in given)


def test_capture(house: House) -> None:
    assert ask(house, capture()).code == "25"
    assert "capture_without_hold" in house.alarms()
    ask(house, hold(house))
    assert ask(house, capture(A + 1)).code == "94"
    first, again = ask(house, capture()), ask(house, capture())
    assert (first.code, first.duplicate, again.code, again.duplicate) == ("00", False, "00", True)
    assert house.available() == 1_000_000 - A


def test_capture_of_a_decline(house: House) -> None:
    ask(house, hold(house, amount=1_001_000))
    assert ask(house, capture(1_001_000)).code == "25"


def test_release(house: House) -> None:
    ask(house, hold(house))
    assert ask(house, release(A + 1)).code == "94"
    assert "release_amount_differs" in house.alarms()
    assert [ask(house, release()).code for _ in range(2)] == ["00", "21"]
    assert ask(house, capture()).code == "21"
    assert house.available() == 1_000_000


def test_release_of_nothing_leaves_a_tombstone(house: House) -> None:
    assert [ask(house, release()).code for _ in range(2)] == ["25", "21"]
    answer = ask(house, hold(house))
    assert (answer.code, answer.duplicate) == ("21", True)
    assert house.node.store.ledger.hold((NETWORK + OPERATION).encode()).state == "tombstone"
    assert house.available() == 1_000_000


def test_release_after_capture_is_a_contradiction(house: House) -> None:
    ask(house, hold(house))
    ask(house, capture())
    assert ask(house, release()).code == "A3"
    assert "release_after_capture" in house.alarms()
    assert [ask(house, release(reason="annulment")).code for _ in range(2)] == ["00", "21"]
    assert house.available() == 1_000_000


def test_annulment_of_a_hold_releases_it(house: House) -> None:
    ask(house, hold(house))
    assert ask(house, release(reason="annulment")).code == "00"
    assert ask(house, capture()).code == "21"
    assert house.available() == 1_000_000


def test_account_frozen_by_the_issuer(house: House) -> None:
    batch = Batch()
    batch.freeze(house.account(), FROZEN_DEBIT)
    with house.step() as step:
        house.node.store.ledger.apply(batch, step.now_ns)
    answer = ask(house, hold(house))
    assert (answer.code, answer.key) == ("05", "NO_APROBADA")
    kept = house.at_ceibo(OPERATION)
    assert kept is not None
    assert kept.internal == "account_frozen_debit"


def test_annulment_into_a_closed_account_is_refused(house: House) -> None:
    ask(house, hold(house))
    ask(house, capture())
    batch = Batch()
    batch.transfer(house.account(), account_id("ceibo:PYG:clearing:sicoop"), 850_000)
    batch.close(house.account())
    with house.step() as step:
        assert house.node.store.ledger.apply(batch, step.now_ns) == [0, 0]
    assert ask(house, release(reason="annulment")) == IssuerAnswer("05", "NO_APROBADA")


def test_other_currency_than_the_cards(house: House) -> None:
    assert ask(house, hold(house, currency="USD")).code == "12"


def test_holder(house: House) -> None:
    second = house.add_card(document=house.holder.document, kinds=["cash_out"])
    answer = ask(house, IssuerHolder("CI", house.holder.document))
    assert answer.code == "00"
    assert [choice.card for choice in answer.cards] == [house.holder.card]
    assert second.card not in str(answer)
    house.do("card_enable", card=house.holder.card, enable=False)
    assert ask(house, IssuerHolder("CI", house.holder.document)) == HolderAnswer("05")
    assert ask(house, IssuerHolder("CI", "9999999")) == HolderAnswer("05")


def test_holder_by_phone(house: House) -> None:
    house.add_card(document="6000001", phone="0981222333")
    by_phone = IssuerHolder("CI", phone="+595981222333")
    assert ask(house, by_phone).code == "00"
    house.add_card(document="6000002", phone="0981222333")
    assert ask(house, by_phone) == HolderAnswer("05")


def test_cash_out_by_phone(house: House) -> None:
    holder = house.add_card(document="6000001", phone="0981222333")
    answer = house.cash_out(A, holder=holder, document=UNSET, phone="0981222333")
    assert answer.code == "00"
    assert any("****" in line for line in answer.ticket if line.startswith("Telefono"))
    house.expect_end(1, "E1", A, holder=holder)


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_state_of_a_hold(house: House, kind: str) -> None:
    ceibo = house.node.ceibo
    assert ceibo.state(NETWORK, OPERATION) == ""
    ask(house, hold(house, kind=kind, token=house.code() if kind == "cash_out" else UNSET))
    assert ceibo.state(NETWORK, OPERATION) == "ACTIVA"
    ask(house, capture(kind=kind))
    assert ceibo.state(NETWORK, OPERATION) == "CAPTURADA"


def test_operation_open_over_a_restart_is_still_held(house: House) -> None:
    ask(house, hold(house))
    house.reopen()
    assert house.available() == 1_000_000 - A
    assert ask(house, capture()).code == "00"


def test_holds_that_are_forgotten_and_those_that_stay(build: Build) -> None:
    """After the retention time closed holds go; one that is still open stays, whatever its age."""
    house = build()
    ask(house, hold(house))
    house.clock.advance(60)
    ask(house, hold(house, operation="260010000124"))
    ask(house, IssuerCapture(NETWORK, "260010000124", "cash_out", A))
    for _ in range(5):
        house.pass_time(86_400)
    assert house.at_ceibo("260010000124") is None
    assert house.at_ceibo(OPERATION) is not None
    assert ask(house, capture()).code == "00"
    assert house.available() == 1_000_000 - 2 * A
