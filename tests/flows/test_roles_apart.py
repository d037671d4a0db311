"""Roles apart: requests leave when they are durable, answers come back, what is owed is sent again.

The nodes are those of `tests.apart`; the acceptance cases for this layout stand beside it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import UNSET

from core_ext import Batch
from protocols.iso8583.tokens import TokenOpener
from protocols.messages import Confirm, Holder, NetworkHolder, Reverse
from switch.config import LinkSettings
from switch.node import Node
from tests.apart import LINK, Apart, only
from tests.house import MASTER, NETWORK, TERMINAL, Told

A = 150_000
LAYOUTS = {
    "apart": (),
    "red with sicoop": ("red", "sicoop"),
    "sicoop with ceibo": ("sicoop", "ceibo"),
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Apart]:
    found = Apart(tmp_path)
    yield found
    found.close()


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Apart]:
    found = Apart(tmp_path, LAYOUTS[request.param])
    yield found
    found.close()


@pytest.mark.parametrize(("kind", "end"), [("cash_out", "E1"), ("deposit", "F1")])
def test_normal_run(layout: Apart, kind: str, end: str) -> None:
    told = layout.operation(kind, 1, A)
    assert told.answer.code == "00"
    assert told.answer.instruction == ("ENTREGUE" if kind == "cash_out" else "RECIBA")
    assert layout.states(1) == ("REGISTRADA", "CAPTURADA", "CAPTURADA")
    layout.expect_end(1, end, A, kind=kind)


def test_annulment(layout: Apart) -> None:
    layout.cash_out(1, A)
    told = layout.send(layout.red.annulment(1, trace=2))
    assert (told.answer.code, told.answer.state) == ("00", "ANULADA")
    layout.expect_end(1, "E4", A)


def test_decline_keeps_its_wording(layout: Apart) -> None:
    """DE39 has two characters, the cashier reads which of the reasons it was."""
    now_s = layout.clock.now_ns // 1_000_000_000
    old = layout.ceibo.code(at_s=now_s - 600)
    told = layout.cash_out(1, A, token=old)
    assert (told.answer.code, told.answer.key) == ("55", "CODIGO_VENCIDO")
    wrong = layout.cash_out(2, A, token=layout.ceibo.wrong_code())
    assert (wrong.answer.code, wrong.answer.key) == ("55", "CODIGO")
    layout.expect_end(1, "E2", A)


def test_masked_name_and_fees_come_back(tmp_path: Path) -> None:
    toml = "[fees]\ncash_out = 500\n[commissions]\ncash_out = 200\ndeposit = 300\n"
    world = Apart(tmp_path, toml=toml)
    out, credit = world.cash_out(1, A).answer, world.deposit(2, A).answer
    assert (out.fee, credit.fee) == (500, 0)
    assert any("A*** MA*** RO***" in line for line in credit.ticket)
    operations = [world.sicoop.at_sicoop(world.sicoop.reference(t)) for t in (1, 2)]
    assert [o.commission for o in operations if o] == [200, 300]
    world.close()


def test_repeat_on_another_date_tells_the_first_one(world: Apart) -> None:
    """A hold asked for again gets its first answer, and DE15 is part of that."""
    world.cash_out(1, A)
    hop = world.holds
    first = hop.sent("hold")[0]
    asked = hop.dialect.decode(first.message[2:])
    elements = {k: v for k, v in asked.items() if k not in ("mti", "7", "11", "64")}
    assert hop.request("0100", elements | {"15": "1121"}, token=first.token, budget_s=8.0) == ""
    world.run()
    again = hop.sent("hold")[1].answer.elements
    assert (again["39"], again["38"]) == ("00", first.answer.elements["38"])
    assert again["15"] == first.answer.elements["15"] == "1122"


# ---- what leaves, and when


def test_nothing_leaves_before_it_is_durable(world: Apart) -> None:
    red = world.red.node
    terminal = red.registry.terminal(TERMINAL)
    assert terminal is not None
    step = red.begin()
    red.terminal_request(step, terminal, world.red.request(1, A, token=world.ceibo.code()), Told())
    red.end(step)
    red.settle()
    if red.gate:  # the flusher may be that fast
        assert world.sessions.history == []
    world.settle()
    assert [flight.what for flight in world.sessions.history] == ["hold"]
    register = world.red.register(1)
    assert register is not None
    assert register.state == "INICIADA"


def test_codes_leave_sealed_and_are_kept_nowhere(world: Apart) -> None:
    code = world.ceibo.code()
    world.cash_out(1, A, token=code)
    (hold,) = world.holds.sent("hold")
    assert code.encode() not in hold.message
    message = world.holds.dialect.decode(hold.message[2:])
    keys = world.holds.keys()
    assert TokenOpener(keys.data_keys).open(message["48.03"], message["37"]) == code
    for house in world.houses.values():
        house.settle()
        for path in house.directory.rglob("*"):
            if path.is_file():
                assert code.encode() not in path.read_bytes(), path
                assert bytes.fromhex(message["48.03"]) not in path.read_bytes(), path


def test_nonces_never_come_again(world: Apart) -> None:
    seen: list[str] = []
    for trace in range(1, 4):
        world.cash_out(trace, 1000)
        message = world.holds.dialect.decode(world.holds.sent("hold")[-1].message[2:])
        seen.append(message["48.03"][:24])
        world.clock.advance(61)
        if trace == 2:
            world.clock.step(-3600)  # the clock is set back, and the node starts again
            world.restart("sicoop")
    assert len(set(seen)) == 3
    assert seen == sorted(seen)


def test_a_card_that_no_dialect_can_carry(world: Apart) -> None:
    told = world.deposit(1, A, card="ñandú")
    assert told.answer.code == "91"
    world.expect_end(1, "F2", A, kind="deposit")
    assert world.deposit(2, A).answer.code == "00"


def test_a_link_without_a_data_key_takes_no_cash_out(world: Apart) -> None:
    assert world.holds.port is not None
    world.holds.port._nonces._keys = world.holds.keys()
    world.holds.port._nonces._keys._data.clear()
    assert world.cash_out(1, A).answer.code == "91"
    assert "no_data_key" in world.sicoop.alarms()
    assert world.deposit(2, A).answer.code == "00"


# ---- questions


def test_holder_over_both_hops(layout: Apart) -> None:
    told = layout.send(Holder(trace=7, document=layout.holder.document))
    assert (told.answer.code, told.answer.trace) == ("00", 7)
    assert told.answer.name == "A*** MA*** RO***"
    assert [choice.card for choice in told.answer.cards] == [layout.holder.card]
    assert layout.send(Holder(document="9999999")).answer.code == "05"


@pytest.mark.parametrize("silent", ["sessions", "holds"])
def test_holder_that_nobody_answers(world: Apart, silent: str) -> None:
    hop = world.sessions if silent == "sessions" else world.holds
    hop.policy = only("holder", "drop_answer")
    told = world.send(Holder(document=world.holder.document))
    world.pass_time(14)
    assert told.messages == []
    world.pass_time(12)
    assert told.answer.code == "91"
    hop.tell(hop.sent("holder")[0])  # late
    assert len(told.messages) == 1


@pytest.mark.parametrize("down", ["sessions", "holds"])
def test_holder_while_a_link_is_down(world: Apart, down: str) -> None:
    world.disconnect(world.sessions if down == "sessions" else world.holds)
    assert world.send(Holder(document=world.holder.document)).answer.code == "91"


def test_holder_of_a_network_elsewhere(world: Apart) -> None:
    told = world.sicoop.network(NetworkHolder(9, document=world.holder.document))
    world.run()
    assert (told.answer.id, told.answer.code) == (9, "00")


# ---- inquiries of ceibo


def test_hold_that_nobody_decides_is_asked_about(world: Apart) -> None:
    """sicoop gave it up, and its release never arrives: its word decides."""
    world.holds.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    world.cash_out(1, A)
    world.pass_time(590)
    assert world.states(1)[1:] == ("VENCIDA", "ACTIVA")
    world.pass_time(15)
    assert world.states(1)[1:] == ("VENCIDA", "LIBERADA")
    assert "hold_decided_by_inquiry" in world.ceibo.alarms()
    world.holds.policy = only("", "")
    world.pass_time(80)
    world.expect_end(1, "E2", A)


def test_hold_that_sicoop_does_not_decide_either_stays(world: Apart) -> None:
    world.sessions.policy = only("confirm", "hold")
    world.status.policy = only("status", "hold")
    world.cash_out(1, A)
    world.pass_time(1300)
    assert len(world.inquiries.history) == 2
    assert world.states(1)[1:] == ("RESPONDIDA", "ACTIVA")


def test_inquiries_go_on_after_a_restart(world: Apart) -> None:
    world.holds.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    world.cash_out(1, A)
    world.pass_time(300)
    world.restart("ceibo")
    world.pass_time(310)
    assert world.states(1)[2] == "LIBERADA"


# ---- contradictions


@pytest.mark.parametrize("layout", ["apart"], indirect=True)
def test_a_contradiction_leaves_what_is_owed_as_it_was(layout: Apart) -> None:
    """A network reverses and then confirms while the issuer has not released yet: no node stops,
    and the release goes out again as the issuer knows it."""
    layout.sessions.policy = only("confirm", "hold")
    layout.holds.policy = only("release", "drop_answer")
    layout.cash_out(1, A)
    reference = layout.sicoop.reference(1)
    assert layout.sicoop.network(Reverse(1, reference, A, "cancelled")).answer.code == "00"
    layout.run()
    assert layout.sicoop.network(Confirm(2, reference, "")).answer.code == "A3"
    layout.restart("sicoop")
    layout.holds.policy = only("", "")
    layout.pass_time(20)
    assert layout.states(1)[1:] == ("CONFLICTO", "LIBERADA")
    operation = layout.sicoop.at_sicoop(reference)
    assert operation is not None
    assert (operation.owed, operation.reason) == ("", "cancelled")
    assert "release_refused" not in layout.sicoop.alarms()


def test_a_reversal_while_the_capture_is_under_way(world: Apart) -> None:
    """People decide about the contradiction; the issuer's answer does not, and is taken."""
    world.holds.policy = only("capture", "drop_answer")
    world.cash_out(1, A)
    reference = world.sicoop.reference(1)
    assert world.sicoop.network(Reverse(1, reference, A, "timeout")).answer.code == "A3"
    world.holds.policy = only("", "")
    world.pass_time(20)
    assert world.states(1) == ("REGISTRADA", "CONFLICTO", "CAPTURADA")
    operation = world.sicoop.at_sicoop(reference)
    assert operation is not None
    assert operation.owed == ""
    assert world.sicoop.position() == -A
    with world.sicoop.step() as step:
        assert world.sicoop.node.sicoop.resolve(step, reference, "uphold") == "CAPTURADA"
    world.expect_end(1, "E1", A)


def test_a_confirmation_of_what_was_not_answered_yet(world: Apart) -> None:
    """It decides nothing, and no node stops: a network cannot know what it confirms."""
    world.holds.policy = only("hold", "hold")
    told = world.cash_out(1, A)
    early = world.sicoop.network(Confirm(2, world.sicoop.reference(1), ""))
    assert early.answer.code == "09"
    assert world.states(1)[1] == "ENVIADA"
    world.holds.policy = only("", "")
    world.run()
    assert told.answer.code == "00"
    world.expect_end(1, "E1", A)


# ---- lives


def test_tools_leave_open_work_as_it_is(world: Apart) -> None:
    """A command on a stopped directory plays no role, whatever its configuration says."""
    world.holds.policy = only("capture", "hold")
    world.cash_out(1, A)
    world.kill("sicoop")
    node = Node(world.sicoop.config, MASTER, world.clock, world.sicoop.directory / "data")
    node.open(conclude=False)
    assert node.store.records.open_count(30) == 1
    node.store.commit()
    node.close()
    world.holds.policy = only("", "")
    world.start("sicoop")
    world.connect()
    world.expect_end(1, "E1", A)


def test_an_issuer_that_is_configured_no_more_is_still_owed(world: Apart) -> None:
    """No other issuer is ever told about a hold that is not its own."""
    world.holds.policy = only("capture", "hold")
    world.cash_out(1, A)
    port = world.sicoop.node.issuers.ports.pop(LINK)
    world.kill("sicoop")
    world.holds.port = None
    world._down.discard("sicoop")
    node = world.sicoop.node = Node(
        world.sicoop.config, MASTER, world.clock, world.sicoop.directory / "data"
    )
    node.open()
    assert "no_way_to_issuer" in node.alarms
    operation = world.sicoop.at_sicoop(world.sicoop.reference(1))
    assert operation is not None
    assert (operation.owed, operation.issuer) == ("capture", LINK)
    world.holds.port = port  # type: ignore[assignment]


def test_a_repeat_while_the_first_is_under_way_gets_the_same_answer(world: Apart) -> None:
    world.sessions.policy = only("hold", "hold")
    request = world.red.request(1, A, token=world.ceibo.code())
    first, second = world.send(request), world.send(request)
    world.sessions.policy = only("", "")
    world.run()
    assert (first.answer.code, first.answer.duplicate) == ("00", False)
    assert (second.answer.code, second.answer.duplicate) == ("00", True)
    assert first.answer.ticket is not UNSET
    world.expect_end(1, "E1", A)


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_I02_a_repeat_while_a_restarted_red_still_asks(world: Apart, kind: str) -> None:
    """Who waits then is not the first who asked: he is told what anybody is told later."""
    code = {"token": world.ceibo.code()} if kind == "cash_out" else {}
    request = world.red.request(1, A, kind=kind, document=world.holder.document, **code)
    world.sessions.policy = only("hold", "hold")
    world.send(request)
    world.kill("red")
    world.disconnect(world.sessions)
    world.start("red")
    again = world.send(request)
    assert again.messages == []
    world.connect()
    assert (again.answer.state, again.answer.duplicate) == ("ERROR", True)
    assert again.answer.instruction == {"cash_out": "NO_ENTREGUE", "deposit": "DEVUELVA"}[kind]


def test_hold_that_is_never_decided_by_itself(world: Apart) -> None:
    """Policy never-auto: only a capture or a release decides."""
    assert world.holds.desk is not None
    world.holds.desk.reconfigure(LinkSettings(hold_policy="never-auto"))
    world.holds.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    world.cash_out(1, A)
    world.pass_time(2000)
    assert world.inquiries.history == []
    assert world.states(1)[2] == "ACTIVA"
    world.restart("ceibo")
    assert world.holds.desk is not None
    world.holds.desk.reconfigure(LinkSettings(hold_policy="never-auto"))
    world.pass_time(700)
    assert world.states(1)[2] == "ACTIVA"


def test_hold_that_the_ledger_has_lost_stops_nothing(world: Apart) -> None:
    """An inquiry that finds the books in disagreement is told to people."""
    world.holds.policy = lambda flight: "drop_answer" if flight.what == "hold" else "hold"
    world.cash_out(1, A)
    operation = world.sicoop.at_sicoop(world.sicoop.reference(1))
    assert operation is not None
    with world.ceibo.step() as step:
        batch = Batch()
        batch.release(f"{NETWORK}{operation.operation}".encode())
        assert world.ceibo.node.store.ledger.apply(batch, step.now_ns) == [0]
    world.pass_time(610)
    assert "hold_inconsistent" in world.ceibo.alarms()
