"""Group D: deposit (acceptance specification, section 6)."""

import pytest
from msgspec import UNSET

from protocols.messages import Confirm, Holder, Reverse
from tests.flows.conftest import Build
from tests.house import BRANCH, TERMINAL, House

A = 150_000
NOT_APPROVED = "Operación no aprobada."


def pending(house: House) -> int:
    balance = house.node.store.ledger.balance(house.account())
    assert balance is not None
    return balance.credits_pending


def test_D01_normal_run(house: House) -> None:
    port = house.defer_platform()
    told = house.send([(TERMINAL, house.request(house.trace(), A, kind="deposit"))])[0]
    port.process()
    assert (house.available(), pending(house)) == (1_000_000, A)
    assert house.reserved() == A
    port.tell()
    answer = told.answer
    assert (answer.code, answer.instruction, answer.text) == ("00", "RECIBA", "Reciba el efectivo.")
    assert (house.available(), pending(house), house.reserved()) == (1_000_000 + A, 0, 0)
    assert house.app(house.holder.card) == [("approved", A, BRANCH)]
    assert any("DEPOSITO" in line for line in answer.ticket)
    assert any(line.startswith("Titular") for line in answer.ticket)
    house.expect_end(1, "F1", A)


def test_D01_mark_that_the_cash_was_taken(house: House) -> None:
    house.deposit(A)
    answer = house.delivered(1)
    assert (answer.instruction, answer.text) == ("NO_RECIBA", "Ya recibida.")
    house.expect_end(1, "F1", A)


@pytest.mark.parametrize("why", ["blocked", "closed", "kind", "expired"])
def test_D02_card_that_cannot_receive(house: House, why: str) -> None:
    values = {"expired": {"expires": "2026-11-21"}, "kind": {"kinds": ["cash_out"]}}.get(why, {})
    holder = house.add_card(**values)
    if why == "blocked":
        house.do("card_enable", card=holder.card, enable=False)
    elif why == "closed":
        house.do("card_close", card=holder.card)
    answer = house.deposit(A, holder=holder)
    assert answer.code == ("57" if why == "kind" else "05")
    assert (answer.text, answer.instruction) == (NOT_APPROVED, "NO_RECIBA")
    house.expect_end(1, "F2", A, holder=holder)


def test_D02_maximum_balance(house: House) -> None:
    holder = house.add_card(balance=0, max_balance=200_000)
    assert house.deposit(200_000, holder=holder).code == "00"
    answer = house.deposit(1_000, holder=holder)
    assert (answer.code, answer.text) == ("61", "Límite excedido.")
    house.expect_ends([(1, "F1", 200_000), (2, "F2", 1_000)], holder=holder)
    assert house.cash_out(100_000, holder=holder).code == "00"
    assert house.deposit(100_000, holder=holder).code == "00"


def test_D02_maximum_balance_counts_what_is_pending(house: House) -> None:
    holder = house.add_card(balance=0, max_balance=200_000)
    hold = house.hold(house.reference(1), A, kind="deposit", document=holder.document)
    assert house.network(hold).answer.code == "00"
    assert house.deposit(A, holder=holder, trace=2).code == "61"


@pytest.mark.parametrize(("rule", "code"), [('max = "300000 PYG"', "61"), ("max_count = 2", "65")])
def test_D02_monthly_cap(build: Build, rule: str, code: str) -> None:
    limits = '[limits.cap]\nscope = "card"\nkind = "deposit"\nwindow = "calendar_month"\n'
    house = build(limits=limits + rule + "\n")
    assert [house.deposit(A).code for _ in range(3)] == ["00", "00", code]
    assert house.cash_out(A).code == "00"
    house.expect_ends([(1, "F1", A), (2, "F1", A), (3, "F2", A), (4, "E1", A)])


def test_D03_unknown_document(house: House) -> None:
    answer = house.deposit(A, document="9999999")
    assert (answer.code, answer.key, answer.text) == ("05", "NO_APROBADA", NOT_APPROVED)
    assert answer.instruction == "NO_RECIBA"
    house.expect_end(1, "F2", A)


def test_D03_unknown_phone(house: House) -> None:
    answer = house.deposit(A, document=UNSET, phone="0981000001")
    assert (answer.code, answer.instruction) == ("05", "NO_RECIBA")
    house.expect_end(1, "F2", A)


def test_D04_several_cards_and_no_default(house: House) -> None:
    second = house.add_card(document=house.holder.document)
    assert house.deposit(A).code == "05"
    listed = house.ask(Holder(document=house.holder.document))
    assert (listed.code, [choice.card for choice in listed.cards]) == (
        "00", [house.holder.card, second.card],
    )  # fmt: skip
    assert all("****" in choice.label for choice in listed.cards)
    chosen = house.deposit(A, card=listed.cards[1].card)
    assert chosen.code == "00"
    house.expect_ends([(2, "F1", A)], holder=second)
    house.expect_end(1, "F2", A)


def test_D04_default_card(house: House) -> None:
    second = house.add_card(document=house.holder.document, default=True)
    assert house.deposit(A).code == "00"
    house.expect_end(1, "F1", A, holder=second)
    assert house.available() == 1_000_000


def test_D04_default_card_that_is_blocked_is_not_replaced_by_a_guess(house: House) -> None:
    second = house.add_card(document=house.holder.document, default=True)
    house.add_card(document=house.holder.document)
    house.do("card_enable", card=second.card, enable=False)
    assert house.deposit(A).code == "05"
    house.expect_end(1, "F2", A)


def test_D04_card_of_another_person(house: House) -> None:
    other = house.add_card()
    answer = house.deposit(A, card=other.card)
    assert (answer.code, answer.instruction) == ("05", "NO_RECIBA")
    house.expect_end(1, "F2", A)


def test_D05_registration_fails(house: House) -> None:
    port = house.defer_platform()
    told = house.send([(TERMINAL, house.request(house.trace(), A, kind="deposit"))])[0]
    assert port.process().code == "00"
    assert pending(house) == A
    house.crash()  # with the approval in hand, before it was registered
    assert told.messages == []
    answer = house.query(1, "deposit")
    assert (answer.code, answer.state, answer.instruction) == ("96", "ERROR", "DEVUELVA")
    assert (house.states(1), pending(house)) == (("ERROR", "REVERSADA", "LIBERADA"), 0)
    assert house.reserved() == 0
    house.expect_end(1, "F3", A)


def test_D05_answer_comes_too_late(house: House) -> None:
    port = house.defer_platform()
    told = house.send([(TERMINAL, house.request(house.trace(), A, kind="deposit"))])[0]
    port.process()
    house.pass_time(25)
    assert (told.answer.code, told.answer.instruction) == ("91", "NO_RECIBA")
    port.tell()
    assert "late_answer" in house.alarms()
    assert (pending(house), house.reserved()) == (0, 0)
    house.expect_end(1, "F3", A)


def test_D06_net_debit_cap(build: Build) -> None:
    house = build(net_debit_cap=300_000)
    assert house.deposit(300_000).code == "00"
    answer = house.deposit(1_000)
    assert (answer.code, answer.text) == ("62", "Límite de la red alcanzado.")
    assert answer.instruction == "NO_RECIBA"
    assert "network_cap" in house.alarms()
    assert house.cash_out(A).code == "00"  # which goes on, and makes room
    assert house.deposit(A).code == "00"
    house.expect_ends([(1, "F1", 300_000), (2, "F2", 1_000), (3, "E1", A), (4, "F1", A)])


def test_D06_network_without_a_cap_takes_no_deposits(build: Build) -> None:
    house = build(net_debit_cap=0)
    assert house.deposit(1_000).code == "62"
    assert "network_cap" in house.alarms()
    house.expect_end(1, "F2", 1_000)


def test_D15_pending_credit_cannot_be_spent(house: House) -> None:
    port = house.defer_platform()
    house.send([(TERMINAL, house.request(house.trace(), A, kind="deposit"))])
    port.process()
    reference = house.reference(2)
    assert house.network(house.hold(reference, 1_001_000)).answer.code == "51"
    house.expect_end(1, "F5", A)
    port.tell()
    house.clock.advance(60)
    assert house.network(house.hold(house.reference(3), 1_001_000)).answer.code == "00"


def test_D16_masked_holder_is_shown_before_acceptance(house: House) -> None:
    shown = house.ask(Holder(document=house.holder.document))
    assert shown.code == "00"
    assert "ROJAS" not in shown.name
    assert shown.name.startswith("A")
    assert house.ask(Holder(document="9999999")).code == "05"


def test_D16_wrong_person_is_annulled_while_the_funds_remain(house: House) -> None:
    house.deposit(A)
    house.delivered(1)
    assert house.annul(1).instruction == "DEVUELVA"
    house.expect_end(1, "F4", A)


def test_D17_wrong_amount_is_annulled_and_repeated(house: House) -> None:
    house.deposit(10 * A)
    assert house.annul(1).instruction == "NO_RECIBA"
    assert house.deposit(A).code == "00"
    house.expect_ends([(1, "F4", 10 * A), (3, "F1", A)])


def test_D18_submitted_twice(house: House) -> None:
    request = house.request(house.trace(), A, kind="deposit")
    first, again = house.ask_all([request, request])
    assert (first.duplicate, again.duplicate) == (False, True)
    assert (first.operation, again.operation) == (first.operation, first.operation)
    assert again.instruction == "RECIBA"
    house.delivered(1)
    assert house.ask(request).instruction == "NO_RECIBA"
    house.expect_end(1, "F1", A)


THRESHOLD = """
[units]
usd = [{{ from = "2026-01-01", pyg = 7000 }}]
[declarations.cash]
scope = "{scope}"
window = "{window}"
threshold = "100 usd"
"""
DECLARATION = {"name": "ANA ROJAS", "occupation": "comerciante", "origin": "ventas del mes"}


def test_D19_single_operation_reaches_the_threshold(build: Build) -> None:
    house = build(limits=THRESHOLD.format(scope="depositor", window="day"))
    assert house.deposit(699_999).code == "00"
    other = house.add_card()
    answer = house.deposit(700_000, holder=other)
    assert (answer.code, answer.key) == ("A4", "FALTA_DECLARACION")
    assert answer.text == "Complete la declaración de origen de fondos."
    assert answer.instruction == "NO_RECIBA"
    assert house.deposit(700_000, holder=other, declaration=DECLARATION).code == "00"
    house.expect_ends([(2, "F2", 700_000), (3, "F1", 700_000)], holder=other, others=699_999)


def test_D19_several_operations_of_the_period(build: Build) -> None:
    house = build(limits=THRESHOLD.format(scope="depositor", window="day"))
    assert [house.deposit(300_000).code for _ in range(3)] == ["00", "00", "A4"]
    assert house.deposit(99_999).code == "00"
    assert house.deposit(1).code == "A4"
    house.clock.advance(86_400)
    assert house.deposit(300_000).code == "00"


def test_D19_what_was_undone_does_not_count(build: Build) -> None:
    house = build(limits=THRESHOLD.format(scope="depositor", window="day"))
    house.deposit(500_000)
    house.annul(1)
    assert house.deposit(500_000).code == "00"


def test_D19_depositor_counts_whoever_the_holder_is(build: Build) -> None:
    house = build(limits=THRESHOLD.format(scope="depositor", window="day"))
    other = house.add_card()
    assert house.deposit(400_000, depositor="CI7777777").code == "00"
    assert house.deposit(400_000, holder=other, depositor="CI7777777").code == "A4"
    assert house.deposit(400_000, holder=other).code == "00"


def test_D19_calendar_month(build: Build) -> None:
    house = build(limits=THRESHOLD.format(scope="depositor", window="calendar_month"))
    assert house.deposit(400_000).code == "00"
    house.clock.advance(86_400)
    assert house.deposit(400_000).code == "A4"


@pytest.mark.parametrize("scope", ["terminal", "cashier", "branch", "network"])
def test_D19_other_scopes(build: Build, scope: str) -> None:
    house = build(limits=THRESHOLD.format(scope=scope, window="day"))
    other = house.add_card()
    assert house.deposit(400_000).code == "00"
    assert house.deposit(400_000, holder=other).code == "A4"


def test_D19_register_keeps_the_declaration(build: Build) -> None:
    house = build(limits=THRESHOLD.format(scope="depositor", window="day"))
    house.deposit(700_000, declaration=DECLARATION, depositor="CI7777777")
    red, sicoop = house.register(1), house.at_sicoop(house.reference(1))
    assert red is not None
    assert sicoop is not None
    assert red.declaration == sicoop.declaration == DECLARATION
    assert (red.depositor, sicoop.depositor) == ("CI7777777", "CI7777777")
    house.expect_end(1, "F1", 700_000)


def test_D19_declaration_without_origin_is_none(build: Build) -> None:
    house = build(limits=THRESHOLD.format(scope="depositor", window="day"))
    assert house.deposit(700_000, declaration={"name": "ANA ROJAS"}).code == "A4"
    house.expect_end(1, "F2", 700_000)


def test_D15_position_is_reserved_until_the_end_is_known(house: House) -> None:
    reference = house.reference(1)
    house.network(house.hold(reference, A, kind="deposit"))
    assert (house.position(), house.reserved()) == (0, A)
    house.network(Reverse(2, reference, A, "timeout"))
    assert (house.position(), house.reserved()) == (0, 0)
    reference = house.reference(2)
    house.network(house.hold(reference, A, kind="deposit"))
    house.network(Confirm(3, reference, ""))
    assert (house.position(), house.reserved()) == (A, 0)
