"""Acceptance cases P02, P08, P10, P11 and P14 as the flows see them; the others need processes."""

from typing import Any

import pytest

from core_ext import Batch
from protocols.messages import Confirm
from switch.journal.store import Store
from switch.routing import Router
from tests.apart import Apart, only
from tests.flows.conftest import Build
from tests.house import House

A = 150_000


@pytest.mark.layouts("apart")
def test_P02_no_approval_without_ceibo(world: Apart) -> None:
    world.disconnect(world.holds)
    for trace in range(1, 6):
        told = world.cash_out(trace, A)
        assert (told.answer.code, told.answer.instruction) == ("91", "NO_ENTREGUE")
        assert world.states(trace) == ("RECHAZO_REGISTRADO", "RECHAZADA", "")
    assert (world.ceibo.available(), world.sicoop.position(), world.owed()) == (1_000_000, 0, 0)


def test_P04_a_slow_ceibo(world: Apart) -> None:
    """Declined at T_HOLD and released; approvals that come all the same are counted."""
    world.holds.policy = only("hold", "drop_answer")
    told = [world.deposit(trace, 1000) for trace in range(1, 6)]
    world.pass_time(15)
    assert {(t.answer.code, t.answer.instruction) for t in told} == {("91", "NO_RECIBA")}
    for late in world.holds.sent("hold"):
        world.holds.tell(late)
    assert world.late == 5
    world.run()
    assert [len(one.messages) for one in told] == [1] * 5  # no approval follows the decline
    for trace in range(1, 6):
        assert world.states(trace) == ("RECHAZO_REGISTRADO", "VENCIDA", "LIBERADA")
    world.holds.policy = only("", "")
    assert world.deposit(6, A).answer.code == "00"
    assert (world.ceibo.available(), world.owed()) == (world.holder.balance + A, 0)
    assert (world.sicoop.position(), world.sicoop.reserved()) == (A, 0)


@pytest.mark.layouts("apart")
def test_P06_answers_never_come(world: Apart) -> None:
    """Every hold that was made is released later."""
    world.holds.policy = only("hold", "drop_answer")
    for trace in range(1, 5):
        told = world.deposit(trace, A)
        world.pass_time(16)
        assert (told.answer.code, told.answer.instruction) == ("91", "NO_RECIBA")
        assert world.states(trace) == ("RECHAZO_REGISTRADO", "VENCIDA", "LIBERADA")
    assert "orphan_hold" in world.sicoop.alarms()
    assert (world.ceibo.available(), world.sicoop.position()) == (world.holder.balance, 0)
    assert (world.sicoop.reserved(), world.owed()) == (0, 0)


def test_P08_disk_full_at_sicoop(world: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    """New work is refused before RECIBIDA, reversals are served from reserved space."""
    world.sessions.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    world.cash_out(1, A)
    sicoop = world.sicoop.node.store
    full = property(lambda store: store is not sicoop)
    monkeypatch.setattr(Store, "admitting", full)
    world.pass_time(26)
    world.sessions.policy = only("", "")
    refused = world.deposit(2, A)
    assert (refused.answer.code, refused.answer.instruction) == ("96", "NO_RECIBA")
    assert world.sicoop.at_sicoop(world.sicoop.reference(2)) is None
    assert world.sicoop.reserved() == 0
    assert world.query(2, "deposit").instruction == "DEVUELVA"
    world.pass_time(60)
    assert world.states(1) == ("ERROR", "REVERSADA", "LIBERADA")
    monkeypatch.undo()
    world.expect_end(1, "E3", A)


@pytest.mark.layouts("apart")
def test_P10_partition_heals_after_two_hours(world: Apart) -> None:
    world.holds.policy = only("capture", "hold")
    for trace in (1, 2, 3):
        world.deposit(trace, A)
    world.sessions.policy = only("hold", "drop_answer")
    world.deposit(5, A)  # red never hears that it is held, and reverses it meanwhile: E3
    world.disconnect(world.holds)
    world.send(world.red.annulment(2, trace=4))
    world.pass_time(7200)
    assert world.ceibo.available() == 1_000_000
    world.holds.policy = only("", "")
    before = len(world.holds.history)
    world.connect()
    sent = [flight.what for flight in world.holds.history[before:]]
    # Of the annulled one the capture was lost with the connection: its annulment is what is owed.
    assert sorted(sent) == ["annul", "capture", "capture", "release"]
    assert world.ceibo.available() == 1_000_000 + 2 * A
    assert (world.sicoop.position(), world.sicoop.reserved()) == (2 * A, 0)
    assert world.owed() == 0
    ends = [world.states(trace)[0::2] for trace in (1, 2, 3, 5)]
    assert ends == [
        ("REGISTRADA", "CAPTURADA"), ("ANULADA", "LIBERADA"), ("REGISTRADA", "CAPTURADA"),
        ("ERROR", "LIBERADA"),
    ]  # fmt: skip


@pytest.mark.layouts("apart")
def test_P11_overload_is_shed_before_recibida_is_sent(world: Apart) -> None:
    """A link that takes no more refuses, and then nothing was held: never after the hold."""
    taken: list[Any] = []
    real = world.holds.request

    def crowded(mti: str, elements: Any, **options: Any) -> str:
        if mti == "0100" and len(taken) >= 3:
            return "full"
        taken.append(mti)
        return real(mti, elements, **options)

    world.holds.request = crowded  # type: ignore[method-assign]
    codes = [world.deposit(trace, 1000).answer.code for trace in range(1, 6)]
    assert codes.count("00") < len(codes)
    assert set(codes) == {"00", "91"}
    world.holds.request = real  # type: ignore[method-assign]
    world.pass_time(60)
    assert world.owed() == 0
    assert (world.sicoop.position(), world.sicoop.reserved()) == (1000 * codes.count("00"), 0)
    for trace, code in enumerate(codes, 1):
        held = "CAPTURADA" if code == "00" else ""
        assert world.states(trace)[2] == held


@pytest.mark.layouts("apart")
def test_P11_a_way_to_sicoop_that_takes_no_more(world: Apart) -> None:
    """Shed at red: nothing has left it, nothing is owed, and the next one is served."""
    real = world.sessions.request
    world.sessions.request = lambda *_, **__: "full"  # type: ignore[method-assign]
    told = world.deposit(1, A)
    world.sessions.request = real  # type: ignore[method-assign]
    assert (told.answer.code, told.answer.instruction) == ("91", "NO_RECIBA")
    assert world.sessions.history == []
    world.expect_end(1, "F0", A, kind="deposit")
    assert world.deposit(2, A).answer.code == "00"


def test_P11_a_full_ledger_sheds_before_anything_is_held(build: Build) -> None:
    """Bounds are reached: new work is refused at once, what was taken goes on to its end."""
    house = build(toml="[ledger]\nholds_max = 1000\n", net_debit_cap=1_000_000_000)
    held = house.network(house.hold(house.reference(9999), A, kind="deposit")).answer
    traces = iter(range(1, 9000))
    codes = []
    while "91" not in codes:
        requests = [house.request(next(traces), 1000, kind="deposit") for _ in range(20)]
        codes += [answer.code for answer in house.ask_all(requests)]
    count = house.node.store.ledger.counts()["holds"]
    refused = house.deposit(1000, trace=next(traces))
    assert (refused.code, refused.instruction) == ("91", "NO_RECIBA")
    assert house.node.store.ledger.counts()["holds"] == count
    assert house.network(Confirm(2, house.reference(9999), "")).answer.code == "00"
    assert house.at_ceibo(held.operation).state == "CAPTURADA"
    assert house.position() == A + 1000 * codes.count("00")


def test_P14_announced_maintenance(house: House) -> None:
    house.do("maintenance", on=True)
    for _ in range(2):
        answer = house.cash_out(A)
        assert (answer.code, answer.key, answer.instruction) == (
            "91", "MANTENIMIENTO", "NO_ENTREGUE",
        )  # fmt: skip
        assert "mantenimiento" in str(answer.text)
        house.expect_end(house.last_trace, "E0", A)
        assert [notice.text for notice in house.notices] == ["Servicio en mantenimiento."]
        house.notices.clear()
        house.reopen()  # it lasts
    house.do("maintenance", on=False)
    assert house.cash_out(A).code == "00"


@pytest.mark.layouts("apart")
def test_P14_with_the_roles_apart(world: Apart) -> None:
    world.cash_out(1, A)
    world.sicoop.do("maintenance", on=True)
    told = world.deposit(2, A)
    assert (told.answer.code, told.answer.key) == ("91", "MANTENIMIENTO")
    assert told.answer.instruction == "NO_RECIBA"
    assert [notice.text for notice in world.red.notices] == ["Servicio en mantenimiento."]
    assert world.send(world.red.annulment(1, trace=3)).answer.code == "00"
    assert world.states(2)[0] == "ERROR"
    assert world.owed() == 0


def test_X137_hold_that_the_core_has_lost(world: Apart) -> None:
    """Dropped by mistake, then captured: posted all the same, for the cash is out."""
    world.sessions.policy = only("confirm", "hold")
    world.cash_out(1, A)
    operation = world.sicoop.at_sicoop(world.sicoop.reference(1))
    assert operation is not None
    drop_hold(world.ceibo, operation.operation)
    assert world.ceibo.available() == 1_000_000
    world.sessions.policy = only("", "")
    world.pass_time(80)
    assert world.states(1) == ("REGISTRADA", "CAPTURADA", "CAPTURADA")
    assert "overdraft_exception" in world.ceibo.alarms()
    [(_, account, amount, _)] = world.ceibo.node.store.ledger.forced()
    assert (account, amount) == (world.ceibo.account(), A)
    world.expect_end(1, "E1", A)


def drop_hold(house: House, operation: str) -> None:
    with house.step() as step:
        batch = Batch()
        batch.release(f"0012{operation}".encode())
        assert house.node.store.ledger.apply(batch, step.now_ns) == [0]


def test_routes_choose_the_issuer(build: Build) -> None:
    """What no route claims stays with the ceibo of this process."""
    toml = '[[routes]]\nto = "far"\namount_min = 500_000\n'
    house = build(toml=toml)
    house.node.issuers.router = Router(house.config.routes)
    assert house.cash_out(A).code == "00"
    house.clock.advance(60)
    assert house.cash_out(600_000).code == "91"
    far = house.at_sicoop(house.reference(2))
    assert far is not None
    assert (far.issuer, far.state) == ("far", "RECHAZADA")
