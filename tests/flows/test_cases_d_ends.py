"""Group D, second part: what happens to a deposit after its registration, and what is watched."""

import pytest

from protocols.messages import Confirm, ShiftClose
from tests.flows.conftest import Build
from tests.house import BRANCH, NETWORK, TERMINAL, House

A = 150_000
TILL = 1_000_000
CASHIER = "000345"
THRESHOLD = """
[units]
usd = [{ from = "2026-01-01", pyg = 7000 }]
[declarations.cash]
scope = "depositor"
window = "day"
threshold = "100 usd"
"""
LOOP = "[watch]\nloop_minutes = 10\n"
DECLARATION = {"name": "ANA ROJAS", "occupation": "comerciante", "origin": "ventas del mes"}


def test_D08_answer_to_the_terminal_lost(house: House) -> None:
    house.send([(TERMINAL, house.request(1, A, kind="deposit"))])  # nobody reads it
    found = house.query(1, "deposit")
    assert (found.state, found.instruction) == ("REGISTRADA", "RECIBA")
    assert house.delivered(1).instruction == "NO_RECIBA"
    house.expect_end(1, "F1", A)


@pytest.mark.parametrize("why", ["no cash", "false note"])
def test_D09_registered_and_no_good_cash(house: House, why: str) -> None:
    """Both end in an annulment; a false note that was taken first goes back to who gave it."""
    house.deposit(A)
    if why == "false note":
        house.delivered(1)
    answer = house.annul(1)
    assert (answer.code, answer.state) == ("00", "ANULADA")
    assert answer.instruction == ("DEVUELVA" if why == "false note" else "NO_RECIBA")
    assert (house.position(), house.reserved()) == (0, 0)
    house.expect_end(1, "F4", A)


@pytest.mark.parametrize("gives_back", [True, False])
def test_D10_cash_taken_before_the_registration_failed(house: House, gives_back: bool) -> None:
    """DEVUELVA; a drawer with too much in it tells of who did not."""
    house.open_shift(CASHIER, house.staff(CASHIER), float=TILL)
    port = house.defer_platform()
    told = house.send([(TERMINAL, house.request(1, A, kind="deposit"))])[0]
    port.process()
    house.crash()
    assert told.messages == []
    answer = house.query(1, "deposit")
    assert (answer.code, answer.instruction) == ("96", "DEVUELVA")
    kept = 0 if gives_back else A
    closed = house.ask(ShiftClose(cashier=CASHIER, counted=TILL + kept, trace=2))
    assert (closed.expected, closed.difference) == (TILL, kept)
    assert ("till_difference" in house.alarms()) is not gives_back
    assert house.reserved() == 0
    house.expect_end(1, "F3", A)


@pytest.mark.parametrize("then", ["receipt", "annul"])
def test_D11_error_on_the_screen_but_registered(house: House, then: str) -> None:
    """The cashier holds the cash and saw an error: one question tells what is true."""
    house.send([(TERMINAL, house.request(1, A, kind="deposit"))])  # lost on the way back
    house.crash()
    found = house.query(1, "deposit")
    assert (found.state, found.instruction) == ("REGISTRADA", "RECIBA")
    house.delivered(1)
    if then == "receipt":
        again = house.ask(house.request(1, A, kind="deposit"))
        assert (again.duplicate, again.instruction) == (True, "NO_RECIBA")
        assert again.ticket[-1].endswith("DUPLICADO")
        assert any("DEPOSITO" in line for line in again.ticket)
        house.expect_end(1, "F1", A)
    else:
        answer = house.annul(1, trace=2)
        assert (answer.code, answer.instruction) == ("00", "DEVUELVA")
        house.expect_end(1, "F4", A)


@pytest.mark.parametrize("lost", ["confirm", "ack"])
def test_D12_confirmation_or_its_ack_lost(house: House, lost: str) -> None:
    """The credit is made spendable once, however often it is confirmed."""
    port = house.defer_platform(Confirm)
    house.deposit(A)
    assert house.available() == house.holder.balance
    if lost == "ack":
        assert port.process().code == "00"
        assert house.available() == house.holder.balance + A
    house.crash()
    house.pass_time(60)
    assert house.states(1) == ("REGISTRADA", "CAPTURADA", "CAPTURADA")
    house.expect_end(1, "F1", A)


def test_D20_many_deposits_just_below_the_threshold(build: Build) -> None:
    """Three that come near the threshold are told; they go on, and what passes it is declared."""
    house = build(limits=THRESHOLD)
    for amount in (200_000, 200_000):
        assert house.deposit(amount).code == "00"
    assert "structuring" not in house.alarms()
    assert house.deposit(200_000).code == "00"  # 600.000 of 700.000, the third
    assert house.node.alarms["structuring"] == 1
    assert house.deposit(100_000).code == "A4"
    house.expect_ends(
        [(1, "F1", 200_000), (2, "F1", 200_000), (3, "F1", 200_000), (4, "F2", 100_000)]
    )


def test_D20_few_or_small_deposits_are_nothing_to_tell(build: Build) -> None:
    house = build(limits=THRESHOLD)
    other = house.add_card()
    assert [house.deposit(10_000).code for _ in range(10)] == ["00"] * 10
    assert [house.deposit(340_000, holder=other).code for _ in range(2)] == ["00"] * 2
    assert "structuring" not in house.alarms()
    assert house.position() == 780_000


def test_D20_policy_may_demand_the_declaration(build: Build) -> None:
    house = build(limits=THRESHOLD, toml='[watch]\nstructuring = "declare"\n')
    assert [house.deposit(200_000).code for _ in range(3)] == ["00", "00", "A4"]
    assert house.node.alarms["structuring"] == 1
    assert house.deposit(200_000, declaration=DECLARATION).code == "00"
    house.expect_ends(
        [(1, "F1", 200_000), (2, "F1", 200_000), (3, "F2", 200_000), (4, "F1", 200_000)]
    )


def test_D21_depositor_is_not_the_holder(house: House) -> None:
    answer = house.deposit(A, depositor="CI7777777")
    assert answer.code == "00"
    red, sicoop = house.register(1), house.at_sicoop(house.reference(1))
    assert red is not None
    assert sicoop is not None
    assert (red.depositor, sicoop.depositor) == ("CI7777777", "CI7777777")
    assert red.document == ("CI", house.holder.document)
    assert house.deposit(A, depositor="no document").code == "30"
    house.expect_end(1, "F1", A)


@pytest.mark.parametrize("first", ["deposit", "cash_out"])
def test_D22_the_same_money_in_and_out(build: Build, first: str) -> None:
    house = build(toml=LOOP)
    both = [house.deposit, house.cash_out]
    for move in both if first == "deposit" else both[::-1]:
        assert "cash_loop" not in house.alarms()
        assert move(A).code == "00"
        house.clock.advance(300)
    assert house.node.alarms["cash_loop"] == 1
    ends = [(1, "F1", A), (2, "E1", A)] if first == "deposit" else [(1, "E1", A), (2, "F1", A)]
    house.expect_ends(ends)


def test_D22_elsewhere_later_or_of_others_is_no_loop(build: Build) -> None:
    house = build(toml=LOOP)
    house.do("terminal_add", number="00009999", network=NETWORK, branch="000018")
    other = house.add_card()
    assert house.deposit(A).code == "00"
    assert house.cash_out(A, holder=other).code == "00"
    assert house.cash_out(A, terminal="00009999").code == "00"  # at another branch
    house.clock.advance(601)
    assert house.cash_out(A).code == "00"  # later
    assert house.cash_out(A, token="000000").code == "55"
    assert "cash_loop" not in house.alarms()
    assert house.position() == -2 * A


def test_D22_what_was_declined_is_no_loop(build: Build) -> None:
    house = build(toml=LOOP)
    assert house.cash_out(A, token=house.wrong_code()).code == "55"
    assert house.deposit(A).code == "00"
    assert "cash_loop" not in house.alarms()
    house.expect_ends([(1, "E2", A), (2, "F1", A)])


def test_many_persons_at_one_terminal_are_told(build: Build) -> None:
    """Whatever becomes of their operations; once told, they are counted anew."""
    house = build(toml="[watch]\nterminal_persons = 3\nterminal_minutes = 10\n")
    people = [None, house.add_card(), house.add_card()]
    for holder in people[:2] * 2:  # two, however often
        house.cash_out(A, holder=holder)
        house.clock.advance(70)
    assert "many_persons" not in house.alarms()
    house.clock.advance(601)
    for holder in people[1:]:  # the first came too long ago
        house.cash_out(A, holder=holder)
    assert "many_persons" not in house.alarms()
    house.deposit(A)
    assert house.node.alarms["many_persons"] == 1
    house.deposit(A)
    assert house.node.alarms["many_persons"] == 1


def test_much_money_at_night_is_told(build: Build) -> None:
    house = build(
        toml="[watch]\nnight_amount = 100000\n[business]\nnight_from = '22:00'\n"
        "night_until = '06:00'\n"
    )
    calendar = house.node.calendar
    while calendar.is_night(house.clock.wall_ns()):
        house.clock.advance(3600)
    house.cash_out(A)
    assert "night_use" not in house.alarms()
    while not calendar.is_night(house.clock.wall_ns()):
        house.clock.advance(1800)
    house.cash_out(99_000)
    assert "night_use" not in house.alarms()
    house.clock.advance(120)
    house.cash_out(A)
    house.deposit(A)
    assert house.node.alarms["night_use"] == 2


def test_D23_network_at_80_90_and_100_percent(build: Build) -> None:
    house = build(net_debit_cap=1_000_000)
    told = []
    for amount in (790_000, 10_000, 90_000, 10_000, 100_000):
        assert house.deposit(amount).code == "00"
        told.append(house.node.alarms.get("position", 0))
    assert told == [0, 1, 1, 2, 3]
    assert house.position() == 1_000_000
    assert house.deposit(1_000).code == "62"
    assert house.cash_out(A).code == "00"  # which goes on
    assert house.position() == 1_000_000 - A
    assert house.deposit(1_000).code == "00"
    assert house.app(house.holder.card)[0] == ("approved", 790_000, BRANCH)


def test_D25_annulment_of_what_is_available_and_unspent(build: Build) -> None:
    """A compensating debit; the room in the network's cap is free again."""
    house = build(net_debit_cap=A)
    assert house.deposit(A).code == "00"
    assert house.available() == house.holder.balance + A
    assert house.deposit(1_000).code == "62"
    assert house.annul(1).code == "00"
    assert (house.available(), house.position()) == (house.holder.balance, 0)
    operation = house.at_sicoop(house.reference(1))
    assert operation is not None
    hold = house.at_ceibo(operation.operation)
    assert hold is not None
    assert [state for state, _ in hold.history] == ["ACTIVA", "CAPTURADA", "COMPENSADA"]
    assert house.deposit(A).code == "00"
    house.expect_ends([(1, "F4", A), (2, "F2", 1_000), (4, "F1", A)])
