"""Group X0: cash_out, normal run and business declines (acceptance specification, section 6)."""

import json

import pytest
from msgspec import UNSET, ValidationError

from protocols.session import NETWORK as NETWORK_VOCABULARY
from protocols.session import TERMINAL as TERMINAL_VOCABULARY
from protocols.session.vocabulary import decoder
from switch.flows.tokens import lock_key
from tests.flows.conftest import Build
from tests.house import BRANCH, NETWORK, TERMINAL, House
from tests.layouts import nodes_of

REFUSED = "Documento o código no válido."
NOT_APPROVED = "Operación no aprobada."
A = 150_000


def test_X001_normal_run_pays_and_tells_the_app(house: House) -> None:
    answer = house.cash_out(A)
    assert (answer.code, answer.key, answer.instruction) == ("00", "APROBADA", "ENTREGUE")
    assert (answer.text, answer.state) == ("Entregue el efectivo.", "REGISTRADA")
    assert (answer.amount, answer.fee, answer.duplicate) == (A, 0, False)
    assert (len(answer.operation), len(answer.authorization)) == (12, 6)
    assert answer.business_date == "2026-11-22"
    assert house.states(1) == ("REGISTRADA", "CAPTURADA", "CAPTURADA")
    assert house.app(house.holder.card) == [("approved", A, BRANCH)]
    house.expect_end(1, "E1", A)


def test_X001_ticket_carries_a_control_code(house: House) -> None:
    ticket = house.cash_out(A).ticket
    assert all(len(line) <= 40 for line in ticket)
    assert "       EXTRACCION - TARJETA DIMO" in ticket
    assert (ticket[-1][:8], ticket[-1][-8:]) == ("Control ", "ORIGINAL")


def test_X001_delivery_mark_ends_the_instruction(house: House) -> None:
    house.cash_out(A)
    assert house.delivered(1).instruction == "NO_ENTREGUE"
    assert house.query(1).text == "Ya entregada."
    house.expect_end(1, "E1", A)


def test_X002_funds_short_shows_no_figure_at_the_till(house: House) -> None:
    answer = house.cash_out(1_001_000)
    assert (answer.code, answer.text, answer.instruction) == ("51", NOT_APPROVED, "NO_ENTREGUE")
    assert answer.ticket is UNSET
    assert "1000000" not in json.dumps([answer.text, answer.key])
    assert house.app(house.holder.card) == [("declined", 1_001_000, BRANCH)]
    house.expect_end(1, "E2", 1_001_000)


def test_X003_unknown_document_is_refused_like_a_wrong_code(house: House) -> None:
    unknown = [house.cash_out(A, document="9999999", token="123456") for _ in range(4)]
    code = house.wrong_code()
    known = [house.cash_out(A, token=code) for _ in range(4)]
    shown = [(a.code, a.key, a.text, a.instruction, a.state) for a in unknown]
    assert shown == [(a.code, a.key, a.text, a.instruction, a.state) for a in known]
    assert [a.code for a in unknown] == ["55", "55", "75", "75"]
    house.expect_ends([(trace, "E2", A) for trace in range(1, 9)])


def test_X003_unknown_phone_is_refused_like_a_wrong_code(house: House) -> None:
    answer = house.cash_out(A, document=UNSET, phone="0981000001", token="123456")
    assert (answer.code, answer.key, answer.text) == ("55", "CODIGO", REFUSED)
    house.expect_end(1, "E2", A)


def test_X004_several_cards_one_match(house: House) -> None:
    second = house.add_card(document=house.holder.document, balance=500_000)
    answer = house.cash_out(A, token=house.code(second))
    assert answer.code == "00"
    house.expect_end(1, "E1", A, holder=second)
    assert house.available() == 1_000_000


def test_X004_several_cards_no_match(house: House) -> None:
    second = house.add_card(document=house.holder.document)
    code = next(c for c in ("731905", "104729") if c not in (house.code(), house.code(second)))
    answer = house.cash_out(A, token=code)
    assert (answer.code, answer.key, answer.text) == ("55", "CODIGO", REFUSED)
    house.expect_end(1, "E2", A)


def test_X004_several_cards_two_matches_ask_for_another_code(house: House) -> None:
    seed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZA===="
    first = house.add_card(document="5000001", seed=seed)
    second = house.add_card(document="5000001", seed=seed)
    answer = house.cash_out(A, holder=first)
    assert (answer.code, answer.key) == ("55", "CODIGO_AMBIGUO")
    assert answer.text == "Código no único: genere otro."
    house.expect_end(1, "E2", A, holder=first)
    assert house.available(second) == 1_000_000
    assert house.node.store.ledger.attempts(lock_key("card", first.card))[0] == 0


@pytest.mark.parametrize("why", ["blocked", "closed", "expired", "kind"])
def test_X005_card_that_may_not_pay_out(house: House, why: str) -> None:
    values = {"expired": {"expires": "2026-11-21"}, "kind": {"kinds": ["deposit"]}}.get(why, {})
    holder = house.add_card(**values)
    if why == "blocked":
        house.do("card_enable", card=holder.card, enable=False)
    elif why == "closed":
        house.do("card_close", card=holder.card)
    answer = house.cash_out(A, holder=holder)
    assert answer.code == ("57" if why == "kind" else "05")
    assert (answer.text, answer.instruction) == (NOT_APPROVED, "NO_ENTREGUE")
    house.expect_end(1, "E2", A, holder=holder)


def test_X006_wrong_code(house: House) -> None:
    answer = house.cash_out(A, token=house.wrong_code())
    assert (answer.code, answer.key, answer.text) == ("55", "CODIGO", REFUSED)
    ledger = nodes_of(house)["ceibo"].node.store.ledger
    assert ledger.attempts(lock_key("card", house.holder.card))[0] == 1
    house.expect_end(1, "E2", A)


@pytest.mark.parametrize(
    "amount", ["0", "-150000", "1500.5", '"150000"', "1e3", "1000000000000", "null", "true", "[1]"]
)
def test_X007_malformed_amount_is_no_message(amount: str) -> None:
    cash_out = (
        '{"op":"cash_out","trace":1,"cashier":"000345","document":"4567890","token":"004512",'
        f'"amount":{amount},"currency":"PYG"}}'
    )
    with pytest.raises(ValidationError, match="amount"):
        decoder(TERMINAL_VOCABULARY, "acceptor", "json")(cash_out.encode())
    hold = (
        '{"op":"hold","id":1,"reference":"00120000123420261122000001","kind":"cash_out",'
        '"branch":"000017","cashier":"000345","document":"4567890","token":"004512",'
        f'"amount":{amount},"currency":"PYG","sent_at":"2026-11-22T15:00:00.000Z"}}'
    )
    with pytest.raises(ValidationError, match="amount"):
        decoder(NETWORK_VOCABULARY, "acceptor", "json")(hold.encode())


@pytest.mark.parametrize("amount", [0, -150_000])
def test_X007_amount_that_still_reaches_sicoop_makes_no_hold(house: House, amount: int) -> None:
    answer = house.network(house.hold(house.reference(1), amount)).answer
    assert answer.code == "13"
    assert house.node.store.ledger.counts()["holds"] == 0
    house.expect_end(1, "E0", A)


@pytest.mark.parametrize("amount", [500, 1_500, 5_001_000])
def test_X008_amount_off_the_rule_makes_no_hold(house: House, amount: int) -> None:
    answer = house.cash_out(amount)
    assert (answer.code, answer.text) == ("13", "Monto no permitido.")
    assert house.node.store.ledger.counts()["holds"] == 0
    house.expect_end(1, "E2", amount)
    # The code was not looked at: it is good for the next operation.
    assert house.cash_out(A).code == "00"


LIMITED = """
[limits.{name}]
scope = "card"
kind = "cash_out"
window = "{window}"
{rule}
"""


@pytest.mark.parametrize(
    ("window", "rule", "code"),
    [
        ("day", 'max = "300000 PYG"', "61"),
        ("calendar_month", 'max = "300000 PYG"', "61"),
        ("day", "max_count = 2", "65"),
        ("calendar_month", "max_count = 2", "65"),
    ],
)
def test_X009_card_limit(build: Build, window: str, rule: str, code: str) -> None:
    house = build(limits=LIMITED.format(name="cap", window=window, rule=rule))
    for _ in range(2):
        assert house.cash_out(A).code == "00"
        house.clock.advance(60)
    answer = house.cash_out(1_000 if code == "61" else A)
    assert (answer.code, answer.text) == (code, "Límite excedido.")
    house.expect_ends([(1, "E1", A), (2, "E1", A), (3, "E2", 1_000 if code == "61" else A)])
    assert house.app(house.holder.card)[-1][0] == "declined"


def test_X009_limit_met_exactly_is_allowed(build: Build) -> None:
    house = build(limits=LIMITED.format(name="cap", window="day", rule='max = "150000 PYG"'))
    assert house.cash_out(A).code == "00"
    house.expect_end(1, "E1", A)


@pytest.mark.parametrize("what", ["network", "branch", "terminal", "cashier"])
def test_X010_disabled_at_sicoop(house: House, what: str) -> None:
    house.do("cashier_add", number="345", network=NETWORK, branch=BRANCH)
    number = {"network": NETWORK, "branch": BRANCH, "terminal": TERMINAL, "cashier": "345"}[what]
    extra = {"network": NETWORK} if what in ("branch", "cashier") else {}
    house.do(f"{what}_enable", number=number, enable=False, **extra)
    answer = house.cash_out(A)
    assert (answer.code, answer.text) == ("58", "Servicio no habilitado en esta boca.")
    assert house.security_events() == [("hold", "58")]
    house.expect_end(1, "E2", A)
    house.do(f"{what}_enable", number=number, enable=True, **extra)
    assert house.cash_out(A).code == "00"


def test_X011_payable_cap_of_the_network(build: Build) -> None:
    house = build(payable_cap=300_000)
    assert house.cash_out(300_000).code == "00"
    house.clock.advance(60)
    answer = house.cash_out(1_000)
    assert (answer.code, answer.text) == ("62", "Límite de la red alcanzado.")
    assert "network_cap" in house.alarms()
    house.expect_ends([(1, "E1", 300_000), (2, "E2", 1_000)])


def test_X011_a_deposit_makes_room_again(build: Build) -> None:
    house = build(payable_cap=300_000)
    house.cash_out(300_000)
    house.deposit(100_000)
    house.clock.advance(60)
    assert house.cash_out(100_000).code == "00"
    house.clock.advance(60)
    assert house.cash_out(1_000).code == "62"


def test_X012_decline_that_red_could_not_store_is_registered_later(house: House) -> None:
    port = house.defer_platform()
    trace = house.trace()
    told = house.send([(TERMINAL, house.request(trace, 1_001_000))])[0]
    assert house.query(trace).instruction == "ESPERE"
    assert port.process().code == "51"
    house.crash()  # before red could store it
    assert told.messages == []
    assert house.query(trace).instruction == "NO_ENTREGUE"
    assert (house.query(trace).code, house.states(trace)[1]) == ("51", "RECHAZADA")
    house.expect_end(trace, "E2", 1_001_000)


def test_X013_withdrawal_before_sending_consumes_nothing(house: House) -> None:
    code = house.code()  # made in the app, shown to the cashier, and then the user walks away
    house.expect_end(1, "E0", A)
    assert house.cash_out(A, token=code).code == "00"


def test_X014_cancel_in_flight_reverses(house: House) -> None:
    port = house.defer_platform()
    trace = house.trace()
    told = house.send([(TERMINAL, house.request(trace, A))])[0]
    cancel = house.annul(trace, supervisor=None, business_date=None)
    assert (cancel.code, cancel.text, cancel.state) == ("00", "Operación cancelada.", "ERROR")
    assert cancel.instruction == "NO_ENTREGUE"
    assert (told.answer.code, told.answer.instruction) == ("96", "NO_ENTREGUE")
    # The original reaches sicoop after its reversal, and finds the tombstone.
    assert port.process().code == "21"
    port.tell()
    assert "late_answer" in house.alarms()
    house.expect_end(trace, "E3", A)


def test_X014_cancel_drops_an_approval_that_comes_later(house: House) -> None:
    port = house.defer_platform()
    trace = house.trace()
    told = house.send([(TERMINAL, house.request(trace, A))])[0]
    assert port.process().code == "00"
    house.annul(trace, supervisor=None, business_date=None)
    port.tell()
    assert [answer.code for answer in told.messages] == ["96"]
    assert house.states(trace) == ("ERROR", "REVERSADA", "LIBERADA")
    house.expect_end(trace, "E3", A)


def test_X014_cancel_of_a_registered_operation_is_an_annulment(house: House) -> None:
    house.cash_out(A)
    refused = house.annul(1, supervisor=None, business_date=None)
    assert (refused.code, refused.field, refused.instruction) == ("30", "supervisor", "NO_ENTREGUE")
    assert house.states(1)[0] == "REGISTRADA"
    assert house.annul(1).code == "00"
    house.expect_end(1, "E4", A)


def test_X014_cancel_of_a_deposit_gives_the_cash_back(house: House) -> None:
    port = house.defer_platform()
    trace = house.trace()
    house.send([(TERMINAL, house.request(trace, A, kind="deposit"))])
    port.process()
    answer = house.annul(trace, supervisor=None, business_date=None)
    assert answer.instruction == "DEVUELVA"
    house.expect_end(trace, "F3", A)
