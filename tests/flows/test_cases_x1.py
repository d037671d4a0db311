"""Acceptance cases X101 to X141: one failure at each hop and each step, in both layouts.

Each runs as a cash_out and as a deposit; as deposits they are D07, D08, D12 and D13. The nodes and
the hops between them are those of `tests.apart` and `tests.layouts`; the ends are those of section
5 of the acceptance specification. Where the roles share a process all stop together: nobody is
told, and whoever asks later is told what red's register says.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from core_ext import Journal
from protocols.messages import (
    Answer,
    Confirm,
    Delivered,
    Deposit,
    LastOperation,
    Reverse,
    ShiftClose,
)
from protocols.session import TERMINAL as VOCABULARY
from protocols.session import Acceptor, PeerKey
from switch.flows import operations as ops
from switch.journal import queries, store
from switch.simulators.terminal import Terminal
from tests.apart import Apart, Flight, only
from tests.house import BRANCH, NETWORK, TERMINAL, House, Told
from tests.layouts import APART, Joined, nodes_of

A = 150_000
PAYS = {"cash_out": "ENTREGUE", "deposit": "RECIBA"}
REFUSES = {"cash_out": "NO_ENTREGUE", "deposit": "NO_RECIBA"}
LATER = {"cash_out": "NO_ENTREGUE", "deposit": "DEVUELVA"}


DEPOSITS = {
    **{f"X{number}": "D07" for number in range(101, 125)},
    "X125": "D08",
    **{f"X{number}": "D12" for number in range(131, 137)},
    "X138": "D13",
    "X139": "D13",
}
"""Cases of deposits that are those of cash_out run as a deposit."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        case = DEPOSITS.get(metafunc.function.__name__.split("_")[1], "")
        names = ["cash_out", f"{case}_deposit" if case else "deposit"]
        metafunc.parametrize("kind", ["cash_out", "deposit"], ids=names)


def end(world: Apart, kind: str, number: int) -> None:
    """Check the E or F end of this number for the one operation there is."""
    world.expect_end(1, f"{'E' if kind == 'cash_out' else 'F'}{number}", A, kind=kind)


def undurable(world: Apart, role: str, do: Callable[[Any], object]) -> None:
    """A step that a role has ended and not made durable yet: nothing of it may have left."""
    node = world.houses[role].node
    step = node.begin()
    do(step)
    node.end(step)


def dropped(house: House, hop: Any) -> None:
    """The answer to the hold comes past the link's own watch as well: it is counted, no more."""
    (late,) = hop.sent("hold")
    before = house.node.alarms.get("late_answer", 0)
    with house.step() as step:
        hop._answered(step, late)
    assert house.node.alarms["late_answer"] == before + 1


def refused(world: Apart, told: Any, kind: str, code: str = "91") -> None:
    """The terminal was told not to move cash, and is told so again."""
    assert (told.answer.code, told.answer.instruction) == (code, REFUSES[kind])
    assert world.query(1, kind).instruction == LATER[kind]


def refused_after_a_stop(world: Apart, layout: str, told: Any, kind: str) -> None:
    """A stop of another process is answered as "not now"; one of red's own leaves no answer."""
    if layout == APART:
        refused(world, told, kind)
    else:
        assert told.messages == []
        assert world.query(1, kind).instruction == LATER[kind]


# ---- terminal and red


def test_X101_X102_X103_nothing_arrived(world: Apart, layout: str, kind: str) -> None:
    """Whatever never became durable at red never existed: the same trace may be sent again."""
    answer = world.red.ask(LastOperation(original=1, kind=kind))
    told = (answer.code, answer.text, answer.instruction)
    assert told == ("25", "No existe.", LATER[kind])
    assert world.sessions.history == []
    step = world.red.node.begin()  # X103: taken, and red stops before it is durable
    terminal = world.red.node.registry.terminal(TERMINAL)
    assert terminal is not None
    world.red.node.terminal_request(step, terminal, world.red.request(1, A, kind=kind), Told())
    world.red.node.end(step)
    if layout == APART:  # in one process it is a call, and lost with its step
        assert world.sessions.history == []
    world.restart("red")
    assert world.red.register(1) is None
    end(world, kind, 0)
    assert world.operation(kind, 1, A).answer.code == "00"
    end(world, kind, 1)


@pytest.mark.parametrize("arrived", [False, True])
def test_X104_red_stops_after_iniciada(world: Apart, layout: str, kind: str, arrived: bool) -> None:
    """Unknown, never "not sent": sicoop is asked, and what it holds is undone."""
    world.sessions.policy = only("hold", "drop_answer" if arrived else "hold")
    told = world.operation(kind, 1, A)
    far = ("RESPONDIDA", "ACTIVA") if arrived else ("", "")
    assert world.states(1) == ("INICIADA", *far)
    world.kill("red")
    world.sessions.policy = only("hold", "hold")
    world.start("red")
    if layout == APART:  # in one process sicoop is asked before the first question is taken
        assert world.query(1, kind).instruction == "ESPERE"
    world.connect()
    assert told.messages == []
    assert world.query(1, kind).instruction == LATER[kind]
    assert len(world.sessions.sent("status")) == 1
    if not arrived:
        assert world.states(1) == ("ERROR", "TUMBA", "")
        end(world, kind, 0)
    else:
        assert world.states(1) == ("ERROR", "REVERSADA", "LIBERADA")
    end(world, kind, 3)


@pytest.mark.layouts("apart")
def test_X104_sicoop_does_not_say(world: Apart, kind: str) -> None:
    """ESPERE does not last: without an answer it is an error, and reversed as soon as possible."""
    world.sessions.policy = only("hold", "drop_answer")
    world.operation(kind, 1, A)
    world.kill("red")
    world.disconnect(world.sessions)
    world.start("red")
    world.pass_time(26)
    assert world.query(1, kind).instruction == LATER[kind]
    assert world.states(1)[1] == "RESPONDIDA"
    world.connect()
    end(world, kind, 3)


def test_X012_decline_that_was_not_registered(world: Apart) -> None:
    """sicoop declined, red stopped before it could store that: it is registered afterwards."""
    world.sessions.policy = only("hold", "drop_answer")
    world.cash_out(1, A, token=world.ceibo.wrong_code())
    world.restart("red")
    assert world.states(1) == ("RECHAZO_REGISTRADO", "RECHAZADA", "RECHAZADA")
    end(world, "cash_out", 2)


@pytest.mark.layouts("apart")
def test_X105_sicoop_refuses_the_connection(world: Apart, kind: str) -> None:
    world.disconnect(world.sessions)
    told = world.operation(kind, 1, A)
    refused(world, told, kind)
    assert str(told.answer.text).startswith("Servicio no disponible.")
    assert world.operation(kind, 2, A).answer.code == "91"  # the next one is not even tried
    world.connect()
    assert world.sessions.history == []
    end(world, kind, 0)


@pytest.mark.layouts("apart")
def test_X105_refused_after_it_was_durable(world: Apart, kind: str) -> None:
    """The link went down between the decision to send and the sending."""
    real = world.sessions.request
    world.sessions.request = lambda *_, **__: "full"  # type: ignore[method-assign]
    told = world.operation(kind, 1, A)
    world.sessions.request = real  # type: ignore[method-assign]
    refused(world, told, kind)
    end(world, kind, 0)


def test_X106_request_lost_between_red_and_sicoop(world: Apart, kind: str) -> None:
    world.sessions.policy = only("hold", "hold")
    told = world.operation(kind, 1, A)
    world.pass_time(24)
    assert told.messages == []
    world.pass_time(1)
    refused(world, told, kind)
    assert world.states(1) == ("ERROR", "TUMBA", "")
    # It was only late: its tombstone is there already.
    (late,) = world.sessions.sent("hold")
    assert world.sessions.process(late).code == "21"
    dropped(world.red, world.sessions)
    refused(world, told, kind)
    end(world, kind, 3)


def test_X107_sicoop_stops_before_recibida_is_durable(world: Apart, layout: str, kind: str) -> None:
    world.sessions.policy = only("hold", "hold")
    told = world.operation(kind, 1, A)
    (hold,) = world.sessions.sent("hold")
    undurable(world, "sicoop", lambda step: world.sessions._hear(step, hold, Told()))
    assert world.states(1)[1] != ""
    if layout == APART:
        assert world.holds.history == []
    world.restart("sicoop")
    refused_after_a_stop(world, layout, told, kind)
    assert world.states(1) == ("ERROR", "TUMBA", "")
    end(world, kind, 3)


# ---- sicoop and ceibo


def test_X108_sicoop_stops_before_the_hold_is_sent(world: Apart, layout: str, kind: str) -> None:
    """After a restart it is never sent; the release is for safety."""
    world.sessions.policy = world.holds.policy = only("hold", "hold")
    told = world.operation(kind, 1, A)
    (hold,) = world.sessions.sent("hold")
    undurable(world, "sicoop", lambda step: world.sessions._hear(step, hold, Told()))
    world.sicoop.node.store.commit()  # durable, and still in the gate
    assert world.states(1)[1:] == ("ENVIADA", "")
    before = len(world.holds.sent("hold"))
    assert before == (0 if layout == APART else 1)  # in one process a call that has no answer
    world.restart("sicoop")
    assert world.states(1)[1] == ("VENCIDA" if layout == APART else "REVERSADA")
    assert len(world.holds.sent("hold")) == before
    assert len(world.holds.sent("release")) == 1
    refused_after_a_stop(world, layout, told, kind)
    assert world.states(1)[2] == "TUMBA"
    end(world, kind, 3)


@pytest.mark.layouts("apart")
def test_X109_ceibo_refuses_the_connection(world: Apart, kind: str) -> None:
    world.disconnect(world.holds)
    told = world.operation(kind, 1, A)
    refused(world, told, kind)
    assert world.states(1) == ("RECHAZO_REGISTRADO", "RECHAZADA", "")
    world.connect()
    assert world.holds.sent("release") == []
    end(world, kind, 2)


@pytest.mark.layouts("apart")
def test_X109_refused_after_it_was_durable(world: Apart, kind: str) -> None:
    real = world.holds.request
    world.holds.request = lambda *_, **__: "full"  # type: ignore[method-assign]
    told = world.operation(kind, 1, A)
    world.holds.request = real  # type: ignore[method-assign]
    refused(world, told, kind)
    assert world.holds.sent("release") == []
    end(world, kind, 2)


def test_X110_hold_lost_between_sicoop_and_ceibo(world: Apart, kind: str) -> None:
    world.holds.policy = only("hold", "hold")
    told = world.operation(kind, 1, A)
    world.pass_time(14)
    assert told.messages == []
    world.pass_time(1)
    refused(world, told, kind)
    assert world.states(1) == ("RECHAZO_REGISTRADO", "VENCIDA", "TUMBA")
    end(world, kind, 2)


def test_X111_ceibo_stops_before_the_hold_is_durable(world: Apart, layout: str, kind: str) -> None:
    world.holds.policy = only("hold", "hold")
    told = world.operation(kind, 1, A)
    (hold,) = world.holds.sent("hold")
    undurable(world, "ceibo", lambda step: world.holds._hear(step, hold, Told()))
    assert world.states(1)[1:] == ("ENVIADA", "ACTIVA")
    world.restart("ceibo")
    refused_after_a_stop(world, layout, told, kind)
    assert world.states(1)[2] == "TUMBA"
    end(world, kind, 2 if layout == APART else 3)


def test_X112_ceibo_stops_after_the_hold_is_durable(world: Apart, layout: str, kind: str) -> None:
    world.holds.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    world.restart("ceibo")
    refused_after_a_stop(world, layout, told, kind)
    assert world.states(1)[2] == "LIBERADA"
    assert ("released", A, BRANCH) in world.ceibo.app(world.holder.card)
    end(world, kind, 2 if layout == APART else 3)


def test_X113_approval_of_ceibo_lost(world: Apart, kind: str) -> None:
    world.holds.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    world.pass_time(15)
    refused(world, told, kind)
    assert world.states(1)[2] == "LIBERADA"
    assert ("released", A, BRANCH) in world.ceibo.app(world.holder.card)
    end(world, kind, 2)


def test_X114_approval_of_ceibo_comes_late(world: Apart, kind: str) -> None:
    world.holds.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    world.pass_time(15)
    assert [flight.what for flight in world.holds.history] == ["hold", "release"]
    dropped(world.sicoop, world.holds)
    assert world.states(1) == ("RECHAZO_REGISTRADO", "VENCIDA", "LIBERADA")
    refused(world, told, kind)
    end(world, kind, 2)


@pytest.mark.parametrize("late", [False, True])
def test_X115_decline_of_ceibo_lost_or_late(world: Apart, kind: str, late: bool) -> None:
    world.holds.policy = only("hold", "drop_answer")
    if kind == "cash_out":
        told = world.cash_out(1, A, token=world.ceibo.wrong_code())
    else:
        told = world.deposit(1, A, document="9999999")
    assert world.states(1)[1:] == ("ENVIADA", "RECHAZADA")
    world.pass_time(15)
    if late:
        dropped(world.sicoop, world.holds)
    refused(world, told, kind)
    (release,) = world.holds.sent("release")
    assert release.answer.code == "21"  # there is nothing to release
    assert world.states(1) == ("RECHAZO_REGISTRADO", "VENCIDA", "RECHAZADA")
    end(world, kind, 2)


def test_X116_sicoop_stops_before_reservada_is_durable(
    world: Apart, layout: str, kind: str
) -> None:
    world.holds.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    (approval,) = world.holds.sent("hold")
    undurable(world, "sicoop", lambda step: world.holds._answered(step, approval))
    assert world.states(1)[1] == ("RESPONDIDA" if layout == APART else "CAPTURADA")  # in memory
    assert (world.sessions.sent("hold")[0].answer, told.messages) == (None, [])
    world.restart("sicoop")
    refused_after_a_stop(world, layout, told, kind)
    assert world.states(1)[2] == "LIBERADA"
    end(world, kind, 3)


def history(world: Apart) -> list[str]:
    operation = world.sicoop.at_sicoop(world.sicoop.reference(1))
    assert operation is not None
    return [state for state, _ in operation.history]


@pytest.mark.parametrize("durable", [False, True])
def test_X117_reservada_without_respondida_is_released_at_the_restart(
    world: Apart, layout: str, kind: str, durable: bool
) -> None:
    """Both are one durable group, so a stop between them is one before both. A RESERVADA that
    stands alone all the same, as a program with two groups would leave it, is released as well."""
    world.holds.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    (approval,) = world.holds.sent("hold")
    node = world.sicoop.node
    if durable:
        operation = world.sicoop.at_sicoop(world.sicoop.reference(1))
        assert operation is not None
        operation.state, operation.code, operation.key = "RESERVADA", "00", "APROBADA"
        operation.history.append(("RESERVADA", world.clock.now_ns))
        with world.sicoop.step():
            node.store.records.put(
                ops.SICOOP_OPERATIONS, operation.reference.encode(), ops.encode(operation),
                open=True, stamp=operation.received_ns,
            )  # fmt: skip
    else:
        undurable(world, "sicoop", lambda step: world.holds._answered(step, approval))
        assert {"RESERVADA", "RESPONDIDA"} <= set(history(world))
    assert [flight.answer for flight in world.sessions.sent("hold")] == [None]
    assert told.messages == []
    world.restart("sicoop")
    refused_after_a_stop(world, layout, told, kind)
    assert "RESPONDIDA" not in history(world)
    assert ("RESERVADA" in history(world)) is durable
    assert world.states(1)[2] == "LIBERADA"
    end(world, kind, 3)


@pytest.mark.parametrize("registered", [False, True])
def test_X118_sicoop_stops_after_respondida(
    world: Apart, layout: str, kind: str, registered: bool
) -> None:
    """It must not release alone: it waits for red, and asks it after T_CONFIRM."""
    world.sessions.policy = only("confirm", "hold") if registered else only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
    world.kill("sicoop")
    world.start("sicoop")
    if layout == APART:  # else red's register is at hand, and has decided already
        assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
        world.sessions.policy = lambda _: "hold"  # red's own word does not arrive
        world.connect()
        world.pass_time(59)
        assert world.status.history == []
        assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
        world.pass_time(2)  # T_CONFIRM: red is asked, and its register decides
        assert [flight.what for flight in world.status.history] == ["status"]
        ends = ("CAPTURADA", "CAPTURADA") if registered else ("REVERSADA", "LIBERADA")
        assert world.states(1)[1:] == ends
    world.sessions.policy = only("", "")
    world.connect()
    if registered:
        assert told.answer.code == "00"
        end(world, kind, 1)
    else:
        refused_after_a_stop(world, layout, told, kind)
        end(world, kind, 3)


@pytest.mark.layouts("apart")
def test_X118_red_is_unreachable(world: Apart, kind: str) -> None:
    world.sessions.policy = only("hold", "drop_answer")
    world.operation(kind, 1, A)
    world.kill("red")
    world.restart("sicoop")
    world.pass_time(3700)
    assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
    assert world.sicoop.node.alarms["unconfirmed"] == 2
    end(world, kind, 5)
    world.start("red")
    world.connect()
    end(world, kind, 3)


# ---- back at red


def test_X119_approval_lost_between_sicoop_and_red(world: Apart, kind: str) -> None:
    world.sessions.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    world.pass_time(25)
    refused(world, told, kind)
    end(world, kind, 3)


def test_X120_approval_reaches_red_late(world: Apart, kind: str) -> None:
    world.sessions.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    world.pass_time(25)
    dropped(world.red, world.sessions)
    assert len(told.messages) == 1
    assert world.sessions.sent("confirm") == []
    refused(world, told, kind)
    end(world, kind, 3)


async def test_X121_a_terminal_drops_success_after_an_error(nursery: trio.Nursery) -> None:
    """It knows by key and state that the operation has ended for it."""
    client, server = trio.testing.memory_stream_pair()

    async def connect() -> trio.abc.Stream:
        return client

    key = PeerKey(bytes(range(32)))
    acceptor = Acceptor(
        vocabulary=VOCABULARY, authenticate=lambda *_: key, nonce=b"\xbb" * 16, now_iso=lambda: "",
    )  # fmt: skip
    terminal = Terminal(TERMINAL, key, connect)
    told: list[Answer] = []

    async def ask() -> None:
        request = Deposit(trace=7, cashier="345", document="4567890", amount=A, currency="PYG")
        answer = await terminal.request(request)
        assert isinstance(answer, Answer)
        told.append(answer)

    async def sign_on() -> None:
        acceptor.receive(bytes(await server.receive_some(4096)))
        await server.send_all(acceptor.output())

    async with trio.open_nursery() as both:
        both.start_soon(sign_on)
        both.start_soon(terminal.sign_on, nursery)
    nursery.start_soon(ask)
    acceptor.receive(bytes(await server.receive_some(4096)))
    error = Answer("91", "EMISOR_NO_DISPONIBLE", "", 7, "NO_RECIBA", "ERROR")
    success = Answer("00", "APROBADA", "", 7, "RECIBA", "REGISTRADA")
    await server.send_all(acceptor.encode([error]))
    await trio.testing.wait_all_tasks_blocked()
    await server.send_all(acceptor.encode([success]))
    await trio.testing.wait_all_tasks_blocked()
    assert [(a.code, a.instruction) for a in told] == [("91", "NO_RECIBA")]
    assert terminal.late == 1
    await terminal.aclose()


def test_X121_success_that_comes_after_the_error(world: Apart, kind: str) -> None:
    """red itself sends none: one question has one answer, and later ones say the same."""
    world.sessions.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    world.pass_time(25)
    refused(world, told, kind)
    dropped(world.red, world.sessions)
    world.run()
    assert [answer.code for answer in told.messages] == ["91"]
    refused(world, told, kind)
    end(world, kind, 3)


def test_X122_red_stops_with_the_approval_in_hand(world: Apart, kind: str) -> None:
    world.sessions.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    (approval,) = world.sessions.sent("hold")
    undurable(world, "red", lambda step: world.sessions._answered(step, approval))
    assert world.states(1)[0] == "REGISTRADA"  # in memory
    world.restart("red")
    assert told.messages == []
    assert world.query(1, kind).instruction == LATER[kind]
    end(world, kind, 3)


def test_X123_registration_fails_openly(
    tmp_path: Path, layout: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of red fails: the node stops before it tells anybody that cash may move, and comes
    back with an error for the cashier and a reversal for sicoop."""

    def approved(name: str) -> tuple[Apart, Told]:
        made = (Apart if layout == APART else Joined)(tmp_path / name)
        made.sessions.policy = only("hold", "drop_answer")
        return made, made.operation(kind, 1, A)

    probe, _ = approved("probe")
    groups = probe.red.node.store.journal.groups
    probe.close()

    def failing(directory: str, **options: Any) -> Journal:
        at_red = "red" in Path(directory).parts[-3]
        return Journal(directory, fail_sync_at=groups + 1 if at_red else 0, **options)

    monkeypatch.setattr(store, "Journal", failing)
    world, told = approved("world")
    assert world.states(1)[0] == "INICIADA"
    data = world.red.directory / "data"
    shutil.copytree(data, tmp_path / "before")
    with pytest.raises(OSError, match="journal"):
        world.sessions.tell(world.sessions.sent("hold")[0])
    assert told.messages == []
    monkeypatch.undo()
    world.kill("red")
    shutil.rmtree(data)  # what could not be made durable is lost
    shutil.copytree(tmp_path / "before", data)
    world.sessions.policy = only("hold", "hold")
    world.start("red")
    world.connect()
    answer = world.query(1, kind)
    assert (answer.code, answer.state, answer.instruction) == ("96", "ERROR", LATER[kind])
    assert "NO mueva efectivo" in str(answer.text)
    assert world.states(1) == ("ERROR", "REVERSADA", "LIBERADA")
    end(world, kind, 3)
    world.close()


@pytest.mark.parametrize("durable", [True, False])
def test_X124_outcome_of_the_registration_unknown(world: Apart, kind: str, durable: bool) -> None:
    """red stops between the write and its acknowledgement, and reads back before it tells anyone;
    what is not there is fenced by an error under the same key."""
    world.sessions.policy = only("hold", "drop_answer")
    told = world.operation(kind, 1, A)
    (approval,) = world.sessions.sent("hold")
    node = world.red.node
    step = node.begin()
    world.sessions._answered(step, approval)
    node.end(step)
    if durable:
        node.store.commit()
    assert told.messages == []
    world.restart("red")
    found = world.query(1, kind)
    assert (found.state, found.instruction) == (
        ("REGISTRADA", PAYS[kind]) if durable else ("ERROR", LATER[kind])
    )
    with world.red.step() as step:  # the approval once more: the row that is there stands
        world.sessions._answered(step, approval)
    assert world.query(1, kind).state == found.state
    assert told.messages == []
    end(world, kind, 1 if durable else 3)


def test_X125_X126_answer_to_the_terminal_lost(world: Apart, kind: str) -> None:
    world.operation(kind, 1, A)  # nobody reads what it was told
    again = world.query(1, kind)
    assert (again.state, again.instruction) == ("REGISTRADA", PAYS[kind])
    world.restart("red")
    assert world.query(1, kind).instruction == PAYS[kind]
    end(world, kind, 1)


def test_X127_X130_annulment_after_all(world: Apart, kind: str) -> None:
    world.operation(kind, 1, A)
    answer = world.send(world.red.annulment(1, trace=2)).answer
    assert (answer.code, answer.state, answer.instruction) == ("00", "ANULADA", REFUSES[kind])
    assert any("ANULACION" in line for line in answer.ticket)
    assert world.query(1, kind).instruction == REFUSES[kind]
    assert world.states(1) == ("ANULADA", "REVERSADA", "CAPTURADA")
    end(world, kind, 4)


def test_X129_delivered_before_its_mark(world: Apart, kind: str) -> None:
    world.operation(kind, 1, A)
    world.restart("red")
    assert world.states(1) == ("REGISTRADA", "CAPTURADA", "CAPTURADA")  # it counts as delivered
    marked, again = (world.red.ask(Delivered(original=1)) for _ in range(2))
    assert (marked.code, again.code, again.duplicate) == ("00", "00", True)
    assert world.query(1, kind).instruction == REFUSES[kind]
    assert world.states(1) == ("ENTREGADA", "CAPTURADA", "CAPTURADA")
    moved = -A if kind == "cash_out" else A
    assert world.ceibo.available() == world.holder.balance + moved
    assert (world.sicoop.position(), world.owed()) == (moved, 0)


# ---- confirmation and capture


@pytest.mark.parametrize("user", ["present", "gone"])
def test_X126_terminal_lists_what_waits_for_delivery(world: Apart, user: str) -> None:
    """At its restart the terminal asks for its last operation; then it is delivered or annulled."""
    world.operation("cash_out", 7, A)
    world.restart("red")
    pending = world.red.ask(LastOperation())
    assert (pending.original, pending.state, pending.instruction) == (7, "REGISTRADA", "ENTREGUE")
    if user == "present":
        assert world.red.ask(Delivered(original=7)).state == "ENTREGADA"
        world.run()
        assert world.states(7) == ("ENTREGADA", "CAPTURADA", "CAPTURADA")
        assert world.ceibo.available() == world.holder.balance - A
        assert (world.sicoop.position(), world.owed()) == (-A, 0)
        assert world.red.ask(LastOperation()).instruction == "NO_ENTREGUE"
    else:
        assert world.send(world.red.annulment(7, trace=8)).answer.instruction == "NO_ENTREGUE"
        world.expect_end(7, "E4", A)


def test_X128_ticket_that_did_not_print(house: House, kind: str) -> None:
    """The cash moves all the same; whatever is printed later says that it is a duplicate."""
    request = house.request(1, A, kind=kind)
    first = house.ask(request)
    assert (first.instruction, first.ticket[-1][-8:]) == (PAYS[kind], "ORIGINAL")
    again = house.ask(request)
    assert (again.duplicate, again.ticket[-1].endswith("DUPLICADO")) == (True, True)
    control, others = first.ticket[-1].split()[1], list(first.ticket[:-1])
    assert again.ticket[-1].split()[1] == control
    assert list(again.ticket[:-1]) == others
    house.delivered(1)
    later = house.ask(request)
    assert (later.duplicate, later.instruction) == (True, REFUSES[kind])
    assert later.ticket[-1].split()[1:] == [control, "DUPLICADO"]
    house.expect_end(1, "E1" if kind == "cash_out" else "F1", A)


@pytest.mark.parametrize("answers", [False, True])
def test_X131_X132_confirm_or_its_ack_lost(world: Apart, kind: str, answers: bool) -> None:
    fate = "drop_answer" if answers else "hold"
    world.sessions.policy = only("confirm", fate)
    assert world.operation(kind, 1, A).answer.instruction == PAYS[kind]
    assert world.states(1)[1:] == (
        ("CAPTURADA", "CAPTURADA") if answers else ("RESPONDIDA", "ACTIVA")
    )
    before = world.states(1)
    world.pass_time(40)  # longer than the platform's budget, less than T_CONFIRM
    assert world.states(1) == before  # lost: the hold stays
    world.sessions.policy = only("", "")
    world.pass_time(60)
    assert len(world.sessions.sent("confirm")) >= 2
    assert world.status.history == []  # it was sent again, not asked for
    end(world, kind, 1)
    assert len(world.holds.sent("capture")) == 1
    if answers:
        acks = [flight.answer for flight in world.sessions.sent("confirm")]
        same = {(ack.code, ack.operation, ack.authorization) for ack in acks}
        assert (len(same), acks[0].code, acks[-1].duplicate) == (1, "00", True)


def test_X133_sicoop_stops_before_confirmada_is_durable(
    world: Apart, layout: str, kind: str
) -> None:
    """Nothing leaves it before that: no acknowledgement, and no capture."""
    world.sessions.policy = only("confirm", "hold")
    world.operation(kind, 1, A)
    (confirm,) = world.sessions.sent("confirm")
    ack: Any = Told()
    undurable(world, "sicoop", lambda step: world.sessions._hear(step, confirm, ack))
    assert world.states(1)[1] in ("CONFIRMADA", "CAPTURADA")
    assert ack.messages == []
    if layout == APART:
        assert world.holds.sent("capture") == []
    world.sessions.policy = only("", "")
    world.kill("sicoop")
    world.start("sicoop")
    if layout == APART:  # else red's register is at hand, and has decided already
        assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
    world.connect()
    end(world, kind, 1)


def test_X134_sicoop_stops_before_the_capture_is_sent(world: Apart, layout: str, kind: str) -> None:
    world.holds.policy = only("capture", "hold")
    world.operation(kind, 1, A)
    assert world.states(1) == ("REGISTRADA", "CONFIRMADA", "ACTIVA")
    world.holds.policy = only("", "")
    world.restart("sicoop")
    if layout == APART:
        assert mti(world, world.holds.sent("capture")[-1]) == "0221"
    end(world, kind, 1)


@pytest.mark.parametrize("down", [False, True])
def test_X135_capture_lost_or_ceibo_down(world: Apart, layout: str, kind: str, down: bool) -> None:
    """Sent again until it is acknowledged; a confirmed hold does not expire meanwhile."""
    world.holds.policy = only("capture", "hold")
    world.operation(kind, 1, A)
    assert world.states(1) == ("REGISTRADA", "CONFIRMADA", "ACTIVA")
    if down:
        world.kill("ceibo")
    world.pass_time(300)
    if not down:
        assert world.states(1) == ("REGISTRADA", "CONFIRMADA", "ACTIVA")
    elif layout == APART:
        assert world.states(1)[1] == "CONFIRMADA"
    world.holds.policy = only("", "")
    if down:
        world.start("ceibo")
        world.connect()
    else:
        world.pass_time(80)
    assert len(world.holds.sent("capture")) > 1
    if layout == APART:
        first, *others = [mti(world, flight) for flight in world.holds.sent("capture")]
        assert first == "0220"
        assert set(others) == {"0221"}
    end(world, kind, 1)


def test_X136_ack_of_the_capture_lost(world: Apart, layout: str, kind: str) -> None:
    """ceibo has posted it and stops; what is sent again finds it captured already."""
    world.holds.policy = only("capture", "drop_answer")
    world.operation(kind, 1, A)
    assert world.states(1) == ("REGISTRADA", "CONFIRMADA", "CAPTURADA")
    world.restart("ceibo")
    world.holds.policy = only("", "")
    world.pass_time(80)
    first, *again = world.holds.sent("capture")
    assert again
    assert {flight.answer.code for flight in (first, *again)} == {"00"}
    if layout == APART:
        assert (mti(world, first), {mti(world, flight) for flight in again}) == ("0220", {"0221"})
    end(world, kind, 1)


@pytest.mark.layouts("apart")
@pytest.mark.parametrize("registered", [False, True])
def test_X138_neither_confirm_nor_reversal(world: Apart, kind: str, registered: bool) -> None:
    """T_CONFIRM: sicoop asks red, whose register decides."""
    if registered:
        world.sessions.policy = only("confirm", "hold")
    else:
        lost = frozenset(("hold", "reverse"))
        world.sessions.policy = lambda flight: (
            "drop_answer"
            if flight.what == "hold"
            else ("hold" if flight.what in lost else "deliver")
        )
    world.operation(kind, 1, A)
    world.pass_time(59)
    assert world.status.history == []
    assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
    world.pass_time(2)
    assert [f.what for f in world.status.history] == ["status"]
    ends = ("CAPTURADA", "CAPTURADA") if registered else ("REVERSADA", "LIBERADA")
    assert world.states(1)[1:] == ends  # decided by that, not by what red sends afterwards
    world.sessions.policy = only("", "")
    world.pass_time(80)
    end(world, kind, 1 if registered else 3)


@pytest.mark.layouts("together")
@pytest.mark.parametrize(
    ("state", "number"), [("REGISTRADA", 1), ("ENTREGADA", 1), ("ERROR", 3), ("DESCONOCIDA", 3)]
)
def test_X138_a_network_elsewhere_is_asked(
    world: Apart, kind: str, state: str, number: int
) -> None:
    """Its own register decides, also where sicoop shares a process with another red."""
    sicoop, reference = world.sicoop, world.sicoop.reference(1)
    assert sicoop.network(sicoop.hold(reference, A, kind=kind)).answer.code == "00"
    world.pass_time(59)
    assert world.status.history == []
    world.pass_time(2)
    assert [flight.message.reference for flight in world.status.history] == [reference]
    assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")
    with sicoop.step() as step:
        sicoop.node.sicoop.on_network_state(step, NETWORK, reference, state)
    sign = {"cash_out": -1, "deposit": 1}[kind] if number == 1 else 0
    ends = {1: ("CAPTURADA", "CAPTURADA"), 3: ("REVERSADA", "LIBERADA")}
    assert world.states(1)[1:] == ends[number]
    assert world.ceibo.available() == world.holder.balance + sign * A
    assert (sicoop.position(), sicoop.reserved(), world.owed()) == (sign * A, 0, 0)
    sicoop.sound()


@pytest.mark.layouts("apart")
def test_X139_red_unreachable(world: Apart, kind: str) -> None:
    """The hold is kept, with alarms after five minutes and an hour."""
    world.sessions.policy = only("confirm", "hold")
    world.operation(kind, 1, A)
    world.disconnect(world.sessions)
    world.pass_time(290)
    assert "unconfirmed" not in world.sicoop.alarms()
    world.pass_time(60)
    assert world.sicoop.node.alarms["unconfirmed"] == 1
    world.pass_time(3600)
    assert world.sicoop.node.alarms["unconfirmed"] == 2
    assert world.states(1) == ("REGISTRADA", "RESPONDIDA", "ACTIVA")
    end(world, kind, 5)
    world.sessions.policy = only("", "")
    world.connect()
    end(world, kind, 1)


@pytest.mark.layouts("apart")
def test_X140_ceibo_without_power_for_hours(world: Apart, kind: str) -> None:
    world.sessions.policy = only("confirm", "hold")
    world.operation(kind, 1, A)
    world.kill("ceibo")
    world.clock.advance(6 * 3600)
    world.start("ceibo")
    sicoop = world.sicoop.at_sicoop(world.sicoop.reference(1))
    assert sicoop is not None
    hold = world.ceibo.at_ceibo(sicoop.operation)
    assert hold is not None
    assert (hold.state, hold.amount, hold.operation) == ("ACTIVA", A, sicoop.operation)
    world.connect()
    world.sessions.policy = only("", "")
    world.pass_time(80)
    end(world, kind, 1)


@pytest.mark.parametrize("moved", [True, False])
def test_X140_everything_without_power_for_hours(house: House, kind: str, moved: bool) -> None:
    """Of a network elsewhere, which says afterwards whether the cash has moved."""
    reference = house.reference(1)
    answer = house.network(house.hold(reference, A, kind=kind)).answer
    before = house.at_ceibo(answer.operation)
    house.clock.advance(6 * 3600)
    house.crash()
    hold = house.at_ceibo(answer.operation)
    assert (hold.state, hold.operation, hold.amount) == ("ACTIVA", answer.operation, A)
    assert hold == before
    word = Confirm(2, reference, "") if moved else Reverse(2, reference, A, "timeout")
    assert house.network(word).answer.code == "00"
    ends = ("CAPTURADA", "CAPTURADA") if moved else ("REVERSADA", "LIBERADA")
    assert house.states(1)[1:] == ends
    amount = {"cash_out": -A, "deposit": A}[kind] if moved else 0
    assert (house.available(), house.position()) == (house.holder.balance + amount, amount)
    assert house.reserved() == 0


def test_X141_cash_handed_out_against_the_instruction(house: House) -> None:
    """The books do not change; the drawer is short, and that is told to people."""
    till = 1_000_000
    house.open_shift("000345", house.staff("000345"), float=till)
    port = house.defer_platform()
    told = house.send([(TERMINAL, house.request(1, A))])[0]
    port.process()
    house.pass_time(25)
    assert told.answer.instruction == "NO_ENTREGUE"
    assert house.delivered(1).code == "12"  # there is nothing that could be marked
    before = house.available(), house.position()
    closed = house.ask(ShiftClose(cashier="000345", counted=till - A, trace=2))
    assert (closed.expected, closed.difference) == (till, -A)
    assert "till_difference" in house.alarms()
    (event,) = [event for event in house.audit() if event.what == "shift_close"]
    assert (event.subject, event.reason) == (TERMINAL, f"difference {-A}")
    model = nodes_of(house)["red"].read_model()
    for differing in (False, True):
        (row,) = queries.till_counts(model, differing=differing)
        assert (row["terminal"], row["cashier"], row["difference"]) == (TERMINAL, "000345", -A)
    assert queries.till_counts(model, since_ns=house.clock.now_ns + 1) == []
    assert (house.available(), house.position()) == before
    house.expect_end(1, "E3", A)


def mti(world: Apart, flight: Flight) -> str:
    return str(world.holds.dialect.decode(flight.message[2:]).mti)
