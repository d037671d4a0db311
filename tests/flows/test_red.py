"""red beyond the acceptance cases: questions, marks, refusals, and what it owes sicoop."""

import pytest
from msgspec import UNSET

from protocols.messages import (
    Confirm,
    Delivered,
    Hold,
    LastOperation,
    NetworkAnswer,
    Reverse,
    SignOff,
)
from switch.journal.store import Store
from tests.flows.conftest import Build
from tests.house import TERMINAL, House

A = 150_000


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No durable room for new work."""
    monkeypatch.setattr(Store, "admitting", property(lambda store: False))


def test_newest_operation_of_a_terminal(house: House) -> None:
    assert house.ask(LastOperation()).code == "25"
    house.cash_out(A)
    house.deposit(A)
    newest = house.ask(LastOperation(trace=900))
    assert (newest.original, newest.trace, newest.instruction) == (2, 900, "RECIBA")
    house.reopen()
    assert house.ask(LastOperation()).original == 2


def test_the_newest_is_no_annulment_but_under_its_trace(house: House) -> None:
    house.cash_out(A)
    house.annul(1, trace=2)
    newest = house.ask(LastOperation())
    assert (newest.original, newest.state, newest.code) == (2, "ANULADA", "00")
    by_its_trace = house.query(2)
    assert (by_its_trace.original, by_its_trace.state) == (1, "ANULADA")
    assert by_its_trace.instruction == "NO_ENTREGUE"


def test_query_while_the_request_is_on_its_way(house: House) -> None:
    port = house.defer_platform()
    house.send([(TERMINAL, house.request(house.trace(), A))])
    answer = house.query(1)
    assert (answer.code, answer.key, answer.instruction) == ("09", "EN_PROCESO", "ESPERE")
    port.deliver()
    assert house.query(1).instruction == "ENTREGUE"


def test_query_of_a_decline(house: House) -> None:
    house.deposit(A, document="9999999")
    answer = house.query(1, "deposit")
    assert (answer.code, answer.state, answer.instruction) == (
        "05", "RECHAZO_REGISTRADO", "DEVUELVA",
    )  # fmt: skip
    assert answer.original == 1


def test_query_goes_back_over_midnight(house: House) -> None:
    house.cash_out(A, trace=5)
    house.clock.advance(86_400)
    assert house.query(5).instruction == "ENTREGUE"
    assert house.cash_out(A, trace=5).duplicate is False
    house.delivered(5)
    assert house.register(5, date="20261122").state == "REGISTRADA"
    assert house.register(5).state == "ENTREGADA"


def test_mark_is_set_once_and_only_on_what_was_registered(house: House) -> None:
    house.cash_out(A)
    first, again = house.delivered(1), house.delivered(1)
    assert (first.code, again.code, again.duplicate) == ("00", "00", True)
    house.cash_out(A, token="000000")
    assert house.delivered(2).code == "12"
    unknown = house.ask(Delivered(original=77, trace=3))
    assert (unknown.code, unknown.trace, unknown.state) == ("25", 3, "DESCONOCIDA")
    house.annul(1)
    assert house.delivered(1).code == "12"


def test_sign_off_is_about_no_operation(house: House) -> None:
    answer = house.ask(SignOff(trace=4))
    assert (answer.code, answer.trace) == ("00", 4)
    assert (answer.instruction, answer.state) == (UNSET, UNSET)


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"phone": "0981000001"}, "document"),
        ({"document": UNSET}, "document"),
        ({"document": "12"}, "document"),
        ({"document": "4567890-9", "document_type": "RUC"}, "document"),
        ({"document": UNSET, "phone": "12345"}, "phone"),
        ({"currency": "XXX"}, "currency"),
    ],
)
def test_bad_field_leaves_the_trace_free(house: House, fields: dict[str, object], bad: str) -> None:
    answer = house.ask(house.request(1, A, **fields))
    assert (answer.code, answer.field, answer.instruction) == ("30", bad, "NO_ENTREGUE")
    assert house.ask(house.request(1, A)).code == "00"


def test_fields_are_compared_in_their_normal_form(house: House) -> None:
    holder = house.add_card(phone="0981222333")
    values = {"document": UNSET, "token": house.code(holder)}
    house.ask(house.request(1, A, phone="0981222333", cashier="345", **values))
    again = house.ask(house.request(1, A, phone="+595981222333", cashier="000345", **values))
    assert (again.code, again.duplicate) == ("00", True)
    assert house.register(1).branch == "000017"


def test_other_currency_than_the_networks(house: House) -> None:
    answer = house.ask(house.request(1, A, currency="USD"))
    assert (answer.code, answer.instruction) == ("12", "NO_ENTREGUE")
    house.expect_end(1, "E2", A)


def test_declines_print_only_if_configured(build: Build) -> None:
    house = build(toml="[red]\nticket_declines = true\n")
    assert house.cash_out(A, token="000000").ticket[-1].endswith("ORIGINAL")
    assert build().cash_out(A, token="000000").ticket is UNSET


def test_terminal_without_a_printer(house: House) -> None:
    house.do("terminal_add", number="00007777", network="0012", branch="17", ticket=False)
    assert house.cash_out(A, terminal="00007777").ticket is UNSET


@pytest.mark.usefixtures("full")
def test_no_room_for_new_work(build: Build) -> None:
    house = build()
    answer = house.cash_out(A)
    assert (answer.code, answer.key) == ("96", "ERROR")
    assert (answer.instruction, answer.state) == ("NO_ENTREGUE", "DESCONOCIDA")
    assert house.deposit(A).instruction == "NO_RECIBA"
    house.expect_end(1, "E0", A)


def test_what_is_owed_is_served_without_room(house: House, request: pytest.FixtureRequest) -> None:
    house.cash_out(A)
    port = house.defer_platform()
    house.clock.advance(60)
    in_flight = house.request(house.trace(), A)
    told = house.send([(TERMINAL, in_flight)])[0]
    request.getfixturevalue("full")
    refused = house.annul(1)
    assert (refused.code, refused.state, refused.instruction) == ("96", "REGISTRADA", "ENTREGUE")
    assert house.delivered(1).code == "00"
    assert house.annul(in_flight.trace, supervisor=None, business_date=None).state == "ERROR"
    assert told.answer.code == "96"
    assert house.ask(in_flight).duplicate is True
    assert port.process().code == "21"


@pytest.mark.parametrize("kind", [Confirm, Reverse])
def test_debts_are_sent_again_until_acknowledged(house: House, kind: type) -> None:
    port = house.defer_platform(Hold, kind)
    house.send([(TERMINAL, house.request(house.trace(), A))])
    port.process(0)
    if kind is Confirm:
        port.tell(0)
    else:
        house.pass_time(25)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        house.pass_time(seconds)
    assert [type(sent.message) for sent in port.sent[1:]] == [kind] * 9
    assert "owed_stuck" in house.alarms()
    assert house.register(1).owed == ("confirm" if kind is Confirm else "reverse")
    port.process(1)
    port.deliver()  # a later one: its answer is a repetition, and as good
    assert house.register(1).owed == ""
    house.pass_time(600)
    assert len(port.sent) == 10
    house.expect_end(1, "E1" if kind is Confirm else "E3", A)


@pytest.mark.parametrize("kind", [Confirm, Reverse])
def test_debts_survive_a_restart(house: House, kind: type) -> None:
    port = house.defer_platform(Hold, kind)
    house.send([(TERMINAL, house.request(house.trace(), A))])
    port.process(0)
    if kind is Confirm:
        port.tell(0)
    else:
        house.pass_time(25)
    house.crash()
    assert house.register(1).owed == ""
    house.expect_end(1, "E1" if kind is Confirm else "E3", A)


@pytest.mark.parametrize("code", ["91", "96", "68"])
def test_an_answer_that_decides_nothing_is_no_acknowledgement(house: House, code: str) -> None:
    port = house.defer_platform(Confirm)
    house.cash_out(A)
    port.sent[0].answer = NetworkAnswer(0, code, house.reference(1))
    port.tell(0)
    assert house.register(1).owed == "confirm"
    house.pass_time(2)
    port.deliver()
    house.expect_end(1, "E1", A)


def test_refused_debt_raises_an_alarm(house: House) -> None:
    port = house.defer_platform(Confirm)
    house.cash_out(A)
    port.sent[0].answer = NetworkAnswer(0, "A3", house.reference(1))
    port.tell(0)
    assert "owed_refused" in house.alarms()
    assert house.register(1).owed == ""
    assert port.deliver().code == "00"
    assert "late_answer" not in house.alarms()


def test_original_that_finds_its_own_tombstone(house: House) -> None:
    """Told to a till nowhere, 21 becomes an error of the system."""
    port = house.defer_platform()
    told = house.send([(TERMINAL, house.request(house.trace(), A))])[0]
    house.network(Reverse(1, house.reference(1), A, "timeout"))
    assert port.deliver().code == "21"
    assert (told.answer.code, told.answer.key) == ("96", "ERROR")
    house.expect_end(1, "E3", A)


def test_restart_with_a_request_on_its_way(house: House) -> None:
    house.defer_platform()
    told = house.send([(TERMINAL, house.request(house.trace(), A))])[0]
    house.crash()
    assert told.messages == []
    assert house.query(1).state == "ERROR"
    house.expect_end(1, "E3", A)
