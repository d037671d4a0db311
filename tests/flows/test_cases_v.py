"""Group V: annulment of a registered operation (acceptance specification, section 6)."""

import pytest
from msgspec import UNSET

from protocols.messages import (
    AnnulRegistered,
    Confirm,
    IssuerCapture,
    IssuerRelease,
    Reverse,
    Status,
)
from switch.flows.registry import account_id
from tests.apart import Apart, deliver, only
from tests.flows.conftest import Build
from tests.house import BRANCH, NETWORK, OTHER_TERMINAL, TERMINAL, House
from tests.layouts import nodes_of

A = 150_000
DAY_S = 86_400


def cap_of(house: House) -> int:
    balance = house.node.store.ledger.balance(account_id(f"sicoop:PYG:net:{NETWORK}"))
    assert balance is not None
    return balance.credit_limit


def test_V01_annulment_of_cash_not_delivered(house: House) -> None:
    house.cash_out(A)
    answer = house.annul(1)
    assert (answer.code, answer.text, answer.state) == ("00", "Operación anulada.", "ANULADA")
    assert (answer.instruction, answer.original) == ("NO_ENTREGUE", 1)
    assert any("ANULACION" in line for line in answer.ticket)
    assert any(line.startswith("Anula operacion") for line in answer.ticket)
    assert answer.ticket[-1].endswith("ORIGINAL")
    house.expect_end(1, "E4", A)


def test_V01_cash_that_was_delivered_comes_back(house: House) -> None:
    house.cash_out(A)
    house.delivered(1)
    assert house.annul(1).instruction == "RECIBA"
    house.expect_end(1, "E4", A)


def test_V01_deposit_that_was_taken_is_given_back(house: House) -> None:
    house.deposit(A)
    house.delivered(1)
    assert house.annul(1).instruction == "DEVUELVA"
    house.expect_end(1, "F4", A)


def test_V01_gives_limits_back(build: Build) -> None:
    limits = '[limits.day]\nscope = "card"\nkind = "cash_out"\nwindow = "day"\nmax = "200000 PYG"\n'
    house = build(limits=limits)
    house.cash_out(A)
    house.annul(1)
    house.clock.advance(60)
    assert house.cash_out(A).code == "00"


def test_V01_is_owed_by_the_network_whatever_its_cap(build: Build) -> None:
    """A deposit used the room that a cash_out had made; undoing the cash_out passes the cap."""
    house = build(net_debit_cap=100_000)
    house.cash_out(A)
    assert house.deposit(250_000).code == "00"
    assert house.position() == 100_000
    assert house.annul(1).code == "00"
    assert house.position() == 250_000
    assert cap_of(house) == 100_000
    assert house.deposit(1_000).code == "62"
    house.expect_ends([(1, "E4", A), (2, "F1", 250_000)])


def test_V01_below_the_cap_touches_no_limit(house: House) -> None:
    house.cash_out(A)
    house.annul(1)
    assert cap_of(house) == 100_000_000
    assert house.node.store.ledger.forced() == []


def test_V02_after_the_cut_off(house: House) -> None:
    house.cash_out(A)
    house.clock.advance(DAY_S)
    answer = house.annul(1, business_date="2026-11-22")
    assert (answer.code, answer.text, answer.state) == ("A1", "Fuera de plazo.", "REGISTRADA")
    assert answer.instruction == "ENTREGUE"
    house.expect_end(1, "E1", A, date="20261122")


def test_V02_after_the_time_configured(build: Build) -> None:
    house = build(toml='[business]\nannul_until = "12:30"\n')
    house.cash_out(A)
    house.clock.advance(1799)
    house.cash_out(A)
    assert house.annul(1).code == "00"
    house.clock.advance(1)
    assert house.annul(2).code == "A1"
    house.expect_ends([(1, "E4", A), (2, "E1", A)])


def test_V02_settled_on_its_own_day(house: House) -> None:
    """In time by the clock, but conciliated: only people may still adjust it."""
    house.cash_out(A)
    sicoop = nodes_of(house)["sicoop"]
    with sicoop.step() as step:
        assert sicoop.node.sicoop.conciliate(step, house.reference(1)) == "CONCILIADA"
    answer = house.annul(1)
    assert (answer.code, answer.text, answer.state) == ("A1", "Fuera de plazo.", "REGISTRADA")
    assert answer.instruction == "ENTREGUE"
    assert house.states(1) == ("REGISTRADA", "CONCILIADA", "CAPTURADA")
    house.expect_end(1, "E1", A)


def test_V02_sicoop_keeps_the_day_for_networks_elsewhere(house: House) -> None:
    reference = house.reference(1)
    assert house.network(house.hold(reference, A)).answer.code == "00"
    house.network(Confirm(2, reference, "2026-11-22T15:00:00.000Z"))
    house.clock.advance(DAY_S)
    answer = house.network(AnnulRegistered(3, reference, A, "900")).answer
    assert (answer.code, answer.key) == ("A1", "FUERA_DE_PLAZO")
    assert house.available() == 1_000_000 - A


def test_V02_another_date_than_the_operations(house: House) -> None:
    house.cash_out(A)
    assert house.annul(1, business_date="2026-11-21").code == "12"
    assert house.annul(1, business_date="20261122").code == "00"
    house.expect_end(1, "E4", A)


def test_V03_repeated_annul_has_one_effect(house: House) -> None:
    house.cash_out(A)
    trace = house.trace()
    first = house.annul(1, trace=trace)
    again = house.annul(1, trace=trace)
    assert (first.code, again.code) == ("00", "00")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert (again.state, again.instruction) == (first.state, first.instruction)
    assert again.ticket[-1].endswith("DUPLICADO")
    assert house.annul(1).code == "00"  # typed anew, with a trace of its own
    house.expect_end(1, "E4", A)


def test_V03_same_trace_with_another_body(house: House) -> None:
    house.cash_out(A)
    house.clock.advance(60)
    house.cash_out(A)
    trace = house.trace()
    house.annul(1, trace=trace)
    assert house.annul(2, trace=trace).code == "94"
    assert house.cash_out(A, trace=trace).code == "94"
    house.expect_ends([(1, "E4", A), (2, "E1", A)])


def test_V03_survives_midnight(house: House) -> None:
    """Rule R7 holds for annulments as well: the repeat finds the key of the day before."""
    house.clock.advance(43_200 - 5)
    house.cash_out(A)
    trace = house.trace()
    date = "2026-11-22"
    house.annul(1, trace=trace, business_date=date)
    house.clock.advance(10)
    again = house.annul(1, trace=trace, business_date=date)
    assert (again.code, again.duplicate) == ("00", True)
    house.expect_end(1, "E4", A, date="20261122")


def test_V04_ack_lost_between_terminal_and_red(house: House) -> None:
    house.cash_out(A)
    trace = house.trace()
    house.send([(TERMINAL, house.annulment(1, trace=trace))])  # nobody reads the answer
    house.reopen()
    again = house.annul(1, trace=trace)
    assert (again.code, again.duplicate) == ("00", True)
    house.expect_end(1, "E4", A)


@pytest.mark.layouts("together")
def test_V04_annul_is_sent_again_until_acknowledged(house: House) -> None:
    house.cash_out(A)
    port = house.defer_platform(AnnulRegistered)
    told = house.send([(TERMINAL, house.annulment(1, trace=2))])[0]
    assert port.process().code == "00"  # and this ack is lost
    pending = house.query(1)
    assert (pending.code, pending.state, pending.instruction) == ("09", "REGISTRADA", "NO_ENTREGUE")
    for seconds in (1, 2, 4):
        house.pass_time(seconds)
    assert len(port.sent) == 4
    port.deliver()
    assert (told.answer.code, told.answer.state) == ("00", "ANULADA")
    house.pass_time(600)
    assert len(port.sent) == 4
    house.expect_end(1, "E4", A)


@pytest.mark.layouts("together")
def test_V04_terminal_hears_in_time_that_it_goes_on(house: House) -> None:
    house.cash_out(A)
    port = house.defer_platform(AnnulRegistered)
    told = house.send([(TERMINAL, house.annulment(1, trace=2))])[0]
    house.pass_time(25)
    assert (told.answer.code, told.answer.instruction) == ("09", "NO_ENTREGUE")
    assert house.annul(1, trace=2).code == "09"
    assert house.annul(1, trace=3).code == "09"
    assert house.delivered(1).code == "12"
    port.deliver()
    assert house.annul(1, trace=2).code == "00"
    house.expect_end(1, "E4", A)


def test_V04_survives_a_restart(house: House) -> None:
    house.cash_out(A)
    house.defer_platform(AnnulRegistered)
    house.send([(TERMINAL, house.annulment(1, trace=2))])
    house.crash()
    assert house.annul(1, trace=2).code == "00"
    house.expect_end(1, "E4", A)


def test_V04_confirmation_and_annulment_owed_over_a_restart(house: House) -> None:
    house.defer_platform(Confirm, AnnulRegistered)
    house.cash_out(A)
    house.send([(TERMINAL, house.annulment(1, trace=2))])
    house.crash()
    assert house.states(1)[:2] == ("ANULADA", "REVERSADA")
    assert house.register(1).owed == ""
    house.expect_end(1, "E4", A)


def test_V04_same_annulment_while_the_first_is_under_way(house: House) -> None:
    house.deposit(A)
    port = house.defer_platform(AnnulRegistered)
    message = house.annulment(1, trace=2)
    first, again = house.send([(TERMINAL, message), (TERMINAL, message)])
    port.deliver()
    assert [(t.answer.code, t.answer.duplicate) for t in (first, again)] == [
        ("00", False),
        ("00", True),
    ]
    house.expect_end(1, "F4", A)


def test_V04_refusal_that_comes_late_leaves_the_operation(house: House) -> None:
    house.deposit(A)
    house.cash_out(1_100_000)
    port = house.defer_platform(AnnulRegistered)
    told = house.send([(TERMINAL, house.annulment(1, trace=3))])[0]
    port.deliver()
    assert (told.answer.code, told.answer.state) == ("A2", "REGISTRADA")
    assert house.query(1, "deposit").instruction == "RECIBA"
    house.expect_ends([(1, "F1", A), (2, "E1", 1_100_000)])


@pytest.mark.layouts("together")
def test_V04_alarm_when_nobody_answers(house: House) -> None:
    house.cash_out(A)
    port = house.defer_platform(AnnulRegistered)
    house.send([(TERMINAL, house.annulment(1, trace=2))])
    for seconds in (1, 2, 4, 8, 16):
        house.pass_time(seconds)
    assert "owed_stuck" not in house.alarms()
    house.pass_time(32)
    assert "owed_stuck" in house.alarms()
    house.pass_time(60)
    house.pass_time(60)
    assert len(port.sent) == 9
    port.deliver()
    house.expect_end(1, "E4", A)


@pytest.mark.layouts("apart")
def test_V04_annul_and_its_acknowledgement_lost_on_the_way(world: Apart) -> None:
    """The terminal hears in time that it goes on; red sends it again, whatever is lost."""
    world.cash_out(1, A)
    for fate in ("hold", "drop_answer"):
        world.sessions.policy = only("annul", fate)
        told = world.send(world.red.annulment(1, trace=2))
        world.pass_time(26)
        assert (told.answer.code, told.answer.instruction) == ("09", "NO_ENTREGUE")
    assert "owed_stuck" not in world.red.alarms()
    world.pass_time(300)
    assert "owed_stuck" in world.red.alarms()
    assert world.states(1) == ("REGISTRADA", "REVERSADA", "CAPTURADA")
    world.sessions.policy = deliver
    world.pass_time(90)
    again = world.send(world.red.annulment(1, trace=2))
    assert (again.answer.code, again.answer.duplicate) == ("00", True)
    world.expect_end(1, "E4", A)


def test_V05_unknown_key(house: House) -> None:
    answer = house.annul(77)
    assert (answer.code, answer.instruction, answer.state) == ("25", "NO_ENTREGUE", "DESCONOCIDA")
    assert ("annul", "25") in house.security_events()


def test_V05_operation_of_another_terminal(house: House) -> None:
    house.do("terminal_add", number="00009999", network=NETWORK, branch="000018")
    house.cash_out(A)
    for terminal in (OTHER_TERMINAL, "00009999"):
        assert house.annul(1, terminal=terminal).code == "25"
    assert house.security_events() == [("annul", "25")] * 2
    house.expect_end(1, "E1", A)


def test_V05_operation_of_another_network(house: House) -> None:
    house.do("network_add", number="0099")
    house.cash_out(A)
    answer = house.network(AnnulRegistered(1, house.reference(1), A, "900"), "0099").answer
    assert answer.code == "63"
    assert house.security_events() == [("reference", "63")]
    house.expect_end(1, "E1", A)


def test_V05_unknown_key_at_sicoop(house: House) -> None:
    answer = house.network(AnnulRegistered(1, house.reference(9), A, "900")).answer
    assert answer.code == "25"
    assert house.security_events() == [("annul", "25")]


def test_V06_part_of_the_amount(house: House) -> None:
    house.cash_out(A)
    answer = house.network(AnnulRegistered(1, house.reference(1), A - 1_000, "900")).answer
    assert (answer.code, answer.key) == ("A2", "NO_ANULABLE")
    house.expect_end(1, "E1", A)


def test_V07_annul_before_the_confirmation_arrives(house: House) -> None:
    port = house.defer_platform(Confirm)
    house.cash_out(A)
    assert house.states(1) == ("REGISTRADA", "RESPONDIDA", "ACTIVA")
    assert house.annul(1).code == "00"
    assert house.states(1) == ("ANULADA", "REVERSADA", "LIBERADA")
    # The confirmation was only late: it is no contradiction, and captures nothing.
    assert port.deliver().code == "00"
    assert house.states(1) == ("ANULADA", "REVERSADA", "LIBERADA")
    house.pass_time(600)
    assert len(port.sent) == 1
    house.expect_end(1, "E4", A)


@pytest.mark.layouts("together")
def test_V07_annul_while_the_capture_is_in_flight(house: House) -> None:
    port = house.defer_issuer(IssuerCapture)
    house.cash_out(A)
    assert house.states(1) == ("REGISTRADA", "CONFIRMADA", "ACTIVA")
    assert house.annul(1).code == "00"
    assert house.states(1) == ("ANULADA", "REVERSADA", "LIBERADA")
    assert port.deliver().code == "21"
    house.pass_time(600)
    assert len(port.sent) == 1
    house.expect_end(1, "E4", A)


@pytest.mark.layouts("together")
def test_V07_capture_is_posted_and_its_ack_still_under_way(house: House) -> None:
    port = house.defer_issuer(IssuerCapture)
    house.cash_out(A)
    port.process()
    assert house.annul(1).code == "00"
    port.tell()
    assert house.states(1) == ("ANULADA", "REVERSADA", "CAPTURADA")
    house.expect_end(1, "E4", A)


@pytest.mark.layouts("together")
def test_V07_issuer_elsewhere_answers_later(house: House) -> None:
    house.cash_out(A)
    port = house.defer_issuer(IssuerRelease)
    told = house.send([(TERMINAL, house.annulment(1, trace=2))])[0]
    reference = house.reference(1)
    status = house.network(Status(1, reference)).answer
    assert (status.state, told.messages) == ("CAPTURADA", [])
    house.pass_time(1)  # both sides ask again, and are answered once
    assert [sent.message.reason for sent in port.sent] == ["annulment"] * 2
    port.deliver(0)
    assert told.answer.code == "00"
    port.deliver(1)
    house.pass_time(600)
    assert len(port.sent) == 2
    house.expect_end(1, "E4", A)


def test_V07_confirmation_while_the_annulment_is_at_the_issuer(house: House) -> None:
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    port = house.defer_issuer(IssuerRelease, IssuerCapture)
    told = house.network(AnnulRegistered(2, reference, A, "900"))
    assert house.network(Confirm(3, reference, "")).answer.code == "00"
    assert len(port.sent) == 1  # no capture may overtake it
    port.deliver()
    assert told.answer.code == "00"
    assert house.network(Confirm(4, reference, "")).answer.code == "00"
    assert house.network(Reverse(5, reference, A, "timeout")).answer.code == "21"
    assert house.available() == 1_000_000
    assert house.position() == 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_V08_deposit_already_spent(house: House, elsewhere: bool) -> None:
    house.deposit(A)
    house.cash_out(1_050_000)
    port = house.defer_issuer(IssuerRelease) if elsewhere else None
    told = house.send([(TERMINAL, house.annulment(1, trace=3))])[0]
    if port is not None:
        port.deliver()
    answer = told.answer
    assert (answer.code, answer.text) == ("A2", "No se puede anular.")
    assert (answer.state, answer.instruction) == ("REGISTRADA", "RECIBA")
    assert "dispute" in house.alarms()
    house.expect_ends([(1, "F1", A), (2, "E1", 1_050_000)])


def test_V09_supervisor_is_the_cashier(house: House) -> None:
    house.cash_out(A)
    answer = house.annul(1, supervisor="345")
    assert (answer.code, answer.state, answer.instruction) == ("58", "REGISTRADA", "ENTREGUE")
    assert house.security_events() == [("supervise", "58")]
    house.expect_end(1, "E1", A)


def test_V09_no_supervisor_permission(build: Build) -> None:
    house = build(toml='[node]\ncashiers = "listed"\n')
    seeds = {
        number: house.staff(number, supervisor=number == "000900")
        for number in ("000345", "000346", "000900")
    }
    house.open_shift("000345", seeds["000345"])
    house.cash_out(A)
    refused = house.annul(1, supervisor="346", supervisor_code=house.staff_code(seeds["000346"]))
    assert (refused.code, refused.state) == ("58", "REGISTRADA")
    unlisted = house.annul(1, supervisor="777", supervisor_code="123456")
    assert unlisted.code == "58"
    missing = house.annul(1)
    assert (missing.code, missing.field) == ("30", "supervisor_code")
    wrong = house.annul(1, supervisor_code="000000")
    assert (wrong.code, wrong.key) == ("55", "CODIGO")
    house.expect_end(1, "E1", A)
    code = house.staff_code(seeds["000900"])
    good = house.annul(1, supervisor_code=code)
    assert good.code == "00"
    house.clock.advance(60)
    house.cash_out(A)
    used = house.annul(house.last_trace, supervisor_code=code)
    assert (used.code, used.key) == ("55", "CODIGO_USADO")
    assert house.security_events() == [("supervise", "58")] * 2


def test_V09_disabled_supervisor(house: House) -> None:
    house.do("cashier_add", number="900", network=NETWORK, branch=BRANCH, supervisor=True)
    house.do("cashier_enable", number="900", network=NETWORK, enable=False)
    house.cash_out(A)
    assert house.annul(1).code == "58"
    house.expect_end(1, "E1", A)


@pytest.mark.parametrize("field", ["supervisor", "business_date"])
def test_V09_fields_of_an_annulment_are_required(house: House, field: str) -> None:
    house.cash_out(A)
    trace = house.trace()
    answer = house.annul(1, trace=trace, **{field: None})
    assert (answer.code, answer.field, answer.state) == ("30", field, UNSET)
    assert house.annul(1, trace=trace).code == "00"  # the trace was left free
