"""`simulator = true`: amounts choose ceibo's code, documents 9000001 to 9000020 its behaviour.

In one process the whole switch is asked, as a terminal does; what differs where a host asks over
ISO 8583 goes through ceibo's desk, with the connection in memory. The native way is never taken.
"""

from typing import Any

import pytest

from protocols.iso8583.ceibo import request_elements
from protocols.iso8583.connection import Connection, Received
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.reply import HostReply
from protocols.iso8583.times import transmission_time
from protocols.iso8583.tokens import TokenSealer
from protocols.messages import Holder as HolderQuestion
from protocols.messages import IssuerCapture, IssuerHold, IssuerRelease, Reverse
from switch.config import LinkSettings
from switch.simulators.issuer import MagicDesk
from tests.flows.conftest import Build
from tests.house import BRANCH, NETWORK, TERMINAL, Holder, House, Told

A = 150_000
SIMULATOR = "[node]\nsimulator = true\n"
UNANSWERED_S = 16.0  # T_HOLD is 15


class Play:
    """A house in the simulator profile, with a card for each magic document on demand."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.holders: dict[int, Holder] = {}

    def holder(self, number: int) -> Holder:
        if number not in self.holders:
            self.holders[number] = self.house.add_card(document=str(9_000_000 + number))
        return self.holders[number]

    def send(self, number: int, amount: int = A, *, kind: str = "cash_out", trace: int = 0) -> Told:
        holder, trace = self.holder(number), trace or self.house.trace()
        fields: dict[str, Any] = {"document": holder.document}
        if kind == "cash_out":
            fields["token"] = self.house.code(holder)
        message = self.house.request(trace, amount, kind=kind, **fields)
        return self.house.send([(TERMINAL, message)])[0]

    def states(self) -> tuple[str, str, str]:
        return self.house.states(self.house.last_trace)

    def alarms(self, name: str) -> int:
        return self.house.node.alarms.get(name, 0)


@pytest.fixture
def play(build: Build) -> Play:
    return Play(build(toml=SIMULATOR))


# ---- amounts


@pytest.mark.parametrize(
    ("digits", "code"),
    [(0, "00"), (51, "51"), (55, "55"), (61, "61"), (65, "65"), (75, "75"), (91, "91"), (5, "05"),
     (57, "57"), (62, "62"), (96, "96"), (13, "13"), (1, "05"), (25, "05"), (94, "05"), (99, "05")],
)  # fmt: skip
def test_last_two_digits_choose_the_code(play: Play, digits: int, code: str) -> None:
    answer = play.house.cash_out(A + digits)
    assert answer.code == code
    if code == "00":
        assert play.states() == ("REGISTRADA", "CAPTURADA", "CAPTURADA")
        assert play.house.available() == 1_000_000 - A
    else:
        assert play.states()[0] == "RECHAZO_REGISTRADO"
        assert play.states()[2] == "RECHAZADA"
        assert play.house.available() == 1_000_000


def test_deposits_too(play: Play) -> None:
    assert play.house.deposit(A + 61).code == "61"
    assert play.house.deposit(A).code == "00"


def test_any_multiple_within_the_limits(play: Play) -> None:
    """100 is no multiple of 1000; the least and the most stay what they are."""
    assert play.house.cash_out(A + 100).code == "00"
    assert play.house.cash_out(900).code == "13"
    assert play.house.cash_out(5_000_100).code == "13"


def test_magic_amounts_mean_nothing_without_the_profile(house: House) -> None:
    assert house.cash_out(A + 51).code == "13"  # no multiple of 1000
    card = house.add_card(document="9000015")
    assert house.cash_out(A, holder=card).code == "00"


# ---- documents that are declined


@pytest.mark.parametrize(
    ("number", "code", "key"),
    [(12, "55", "CODIGO"), (14, "55", "CODIGO_AMBIGUO"), (15, "05", "NO_APROBADA"),
     (16, "75", "CODIGO_BLOQUEADO")],
)  # fmt: skip
def test_documents_that_are_declined(play: Play, number: int, code: str, key: str) -> None:
    answer = play.send(number).answer
    assert (answer.code, answer.key) == (code, key)
    assert play.house.available(play.holder(number)) == 1_000_000


def test_unknown_person_has_no_name(play: Play) -> None:
    play.holder(12)
    assert play.house.ask(HolderQuestion(document="9000012")).code == "05"
    assert play.send(12, kind="deposit").answer.code == "05"


def test_two_cards_with_codes_of_their_own(play: Play) -> None:
    """13: the code says which of the two is meant."""
    first, second = play.holder(13), play.house.add_card(document="9000013")
    assert play.house.cash_out(A, holder=second).code == "00"
    assert play.house.available(first) == 1_000_000
    assert play.house.available(second) == 1_000_000 - A


# ---- what goes wrong on the way


def test_slow(play: Play) -> None:
    told = play.send(1)
    play.house.pass_time(4.9)
    assert told.messages == []
    play.house.pass_time(0.2)
    assert told.answer.code == "00"
    assert play.states() == ("REGISTRADA", "CAPTURADA", "CAPTURADA")


@pytest.mark.parametrize("number", [2, 7])
def test_answer_after_its_time(play: Play, number: int) -> None:
    """Decided, but too late: declined, released, and the late answer changes nothing."""
    told = play.send(number)
    play.house.pass_time(UNANSWERED_S)
    assert told.answer.code == "91"
    assert play.states()[2] == ("LIBERADA" if number == 2 else "RECHAZADA")
    play.house.pass_time(5)
    assert play.alarms("late_answer") == 1
    assert play.states()[0] == "RECHAZO_REGISTRADO"
    assert play.house.available(play.holder(number)) == 1_000_000


@pytest.mark.parametrize(("number", "ceibo"), [(3, "TUMBA"), (4, "LIBERADA")])
def test_swallowed(play: Play, number: int, ceibo: str) -> None:
    told = play.send(number)
    play.house.pass_time(UNANSWERED_S)
    assert told.answer.code == "91"
    assert play.states() == ("RECHAZO_REGISTRADO", "VENCIDA", ceibo)
    assert play.house.available(play.holder(number)) == 1_000_000


@pytest.mark.parametrize(("number", "ceibo"), [(5, "TUMBA"), (6, "LIBERADA")])
def test_stops(play: Play, number: int, ceibo: str) -> None:
    """Away for two seconds: others are refused at once, the release follows by itself."""
    told = play.send(number)
    play.house.pass_time(0.1)
    assert told.answer.code == "91"
    assert play.alarms("orphan_hold") == 1
    assert play.house.cash_out(A).code == "91"
    play.house.pass_time(1)
    play.house.pass_time(2)
    assert play.house.states(1)[2] == ceibo
    assert play.house.cash_out(A).code == "00"


def test_refuses_connection(play: Play) -> None:
    assert play.send(8).answer.code == "91"
    assert play.states()[2] == ""
    assert play.house.cash_out(A).code == "91"
    play.house.pass_time(2.1)
    assert play.house.cash_out(A).code == "00"


def test_answers_twice(play: Play) -> None:
    told = play.send(9)
    play.house.pass_time(0.1)
    assert told.answer.code == "00"
    assert play.alarms("late_answer") == 1
    assert play.house.available(play.holder(9)) == 1_000_000 - A


def test_answers_out_of_order(play: Play) -> None:
    first = play.send(10)
    assert first.messages == []
    assert play.house.cash_out(A).code == "00"
    play.house.pass_time(0.1)
    assert first.answer.code == "00"
    play.house.pass_time(2)
    assert play.alarms("late_answer") == 0


def test_the_last_of_all_waits_a_second(play: Play) -> None:
    told = play.send(10)
    play.house.pass_time(1.1)
    assert told.answer.code == "00"


def test_garbage(play: Play) -> None:
    told = play.send(11)
    play.house.pass_time(0.1)
    assert told.answer.code == "91"
    assert play.states()[2] == "LIBERADA"
    assert play.house.available(play.holder(11)) == 1_000_000


# ---- captures, releases, credits


def test_three_captures_fail(play: Play) -> None:
    assert play.send(17).answer.code == "00"
    assert play.states() == ("REGISTRADA", "CONFIRMADA", "ACTIVA")
    for seconds in (1, 2):
        play.house.pass_time(seconds)
        assert play.states()[2] == "ACTIVA"
    play.house.pass_time(4)
    assert play.states() == ("REGISTRADA", "CAPTURADA", "CAPTURADA")


def test_eight_releases_fail(play: Play) -> None:
    """The quick tries are used up, an operator is told, and it ends all the same."""
    house, holder = play.house, play.holder(18)
    reference = house.reference(77)
    hold = house.hold(reference, document=holder.document, token=house.code(holder))
    assert house.network(hold).answer.code == "00"
    house.network(Reverse(id=2, reference=reference, amount=A, reason="timeout"))
    for seconds in (1, 2, 4, 8, 16, 32):
        house.pass_time(seconds)
    assert play.alarms("owed_stuck") == 1
    held = house.at_sicoop(reference)
    assert held is not None
    assert house.available(holder) == 1_000_000 - A
    house.pass_time(60)
    house.pass_time(60)
    assert house.available(holder) == 1_000_000


def test_hold_is_lost_before_its_capture(play: Play) -> None:
    """The cash is out: it is posted by force, and somebody is told."""
    assert play.send(19).answer.code == "00"
    assert play.states()[2] == "CAPTURADA"
    assert play.alarms("overdraft_exception") == 1
    assert play.house.available(play.holder(19)) == 1_000_000 - A


def test_credit_can_never_be_posted(play: Play) -> None:
    assert play.send(20, kind="deposit").answer.code == "00"
    assert play.alarms("suspense") == 1
    assert play.house.available(play.holder(20)) == 1_000_000
    assert play.house.position() == A


# ---- a host, over ISO 8583


class Processor:
    """A host at ceibo's desk; its connection is in memory, and stands in for its line."""

    def __init__(self, play: Play) -> None:
        self.play, self.house = play, play.house
        node = self.house.node
        keys = HostKeys.of("aes-cmac", [(1, bytes(16))], [(1, bytes(32))], [])
        self.desk = MagicDesk(
            node.later, link="sicoop", node=node, ceibo=node.ceibo, fingerprint=node.fingerprint,
            keys=keys, settings=LinkSettings(), events=lambda *_: None,
        )  # fmt: skip
        self.desk.work_s = node.config.budgets.ceibo_s
        self._sealer = TokenSealer(bytes(32), 1)
        self._stan = 0
        dialect = Dialect.load("ceibo")

        def connection(initiator: bool) -> Connection:
            return Connection(
                dialect, Framing.from_dict({}), keys, initiator=initiator,
                wall_ns=self.house.clock.wall_ns, next_stan=self._next_stan,
            )  # fmt: skip

        self._near, self._far = connection(True), connection(False)
        self._near.sign_on()
        self._far.receive(self._near.output())
        self._near.receive(self._far.output())
        self.codes: list[str | None] = []
        self.unanswered = 0
        self.cuts = 0

    def _next_stan(self) -> str:
        self._stan += 1
        return f"{self._stan:06}"

    # ---- as the line

    def ready(self, message: HostReply) -> None:
        self.unanswered -= 1
        if 0 < message.until_ns < self.house.clock.mono_ns():
            return
        self._far.answer(message.received, message.elements)
        for event in self._near.receive(self._far.output()):
            assert isinstance(event, Received)
            self.codes.append(event.message.get("39"))

    def flush(self) -> None:
        pass

    def dropped(self, count: int = 1) -> None:
        self.unanswered -= count

    def cut(self, reason: str) -> None:
        self.cuts += 1
        self.unanswered = 0

    # ---- as the host

    def ask(self, message: Any, **elements: str) -> None:
        token = getattr(message, "token", "")
        sealed = self._sealer.seal(token, message.operation) if token else ""
        mti, values = request_elements(message, token_hex=sealed)
        sent = transmission_time(self.house.clock.wall_ns())
        self._near.request(mti, {**values, "7": sent, "11": self._next_stan(), **elements})
        with self.house.step() as step:
            for event in self._far.receive(self._near.output()):
                assert isinstance(event, Received)
                self.unanswered += 1
                self.desk.on_request(step, event, self)

    def hold(self, number: int, operation: int = 1, amount: int = A, **elements: str) -> None:
        holder = self.play.holder(number) if number else self.house.holder
        day = self.house.node.calendar.business(self.house.clock.now_ns).number
        self.ask(
            IssuerHold(
                NETWORK, f"{operation:012}", "cash_out", amount, "PYG", TERMINAL, BRANCH, "000345",
                day, "CI", holder.document, token=self.house.code(holder),
            ),
            **elements,
        )  # fmt: skip

    def capture(self, operation: int = 1) -> None:
        self.ask(IssuerCapture(NETWORK, f"{operation:012}", "cash_out", A, "PYG"))

    def release(self, operation: int = 1) -> None:
        self.ask(IssuerRelease(NETWORK, f"{operation:012}", "cash_out", A, "timeout", "PYG"))

    def state(self, operation: int = 1) -> str:
        return self.house.node.ceibo.state(NETWORK, f"{operation:012}", "sicoop")


@pytest.fixture
def host(play: Play) -> Processor:
    return Processor(play)


def test_host_gets_the_code_of_the_amount(host: Processor) -> None:
    for operation, amount in enumerate((A + 51, A + 75, A + 99, A)):
        host.hold(0, operation, amount)
    assert host.codes == ["51", "75", "05", "00"]
    assert host.unanswered == 0


@pytest.mark.parametrize(("number", "code"), [(12, "55"), (14, "55"), (15, "05"), (16, "75")])
def test_host_gets_the_code_of_the_document(host: Processor, number: int, code: str) -> None:
    host.hold(number)
    assert host.codes == [code]


@pytest.mark.parametrize(
    ("number", "after_s", "code"), [(1, 5, "00"), (2, 20, "00"), (7, 20, "05")]
)
def test_host_is_answered_late(host: Processor, number: int, after_s: int, code: str) -> None:
    """Also later than ceibo would send an answer otherwise."""
    host.hold(number)
    host.house.pass_time(after_s - 0.1)
    assert host.codes == []
    host.house.pass_time(0.2)
    assert host.codes == [code]
    assert host.unanswered == 0


@pytest.mark.parametrize(("number", "state"), [(3, ""), (4, "ACTIVA")])
def test_host_is_not_answered(host: Processor, number: int, state: str) -> None:
    host.hold(number)
    host.house.pass_time(30)
    assert (host.codes, host.unanswered, host.state()) == ([], 0, state)
    host.release()
    assert host.codes == ["25" if number == 3 else "00"]


@pytest.mark.parametrize(("number", "state"), [(5, ""), (6, "ACTIVA"), (8, "")])
def test_host_is_cut_off(host: Processor, number: int, state: str) -> None:
    """Who comes again within two seconds is cut off again."""
    host.hold(number)
    host.house.pass_time(1.9)
    host.release()
    assert (host.codes, host.cuts, host.state()) == ([], 2, state)
    host.house.pass_time(0.2)
    host.release()
    assert host.codes == ["00" if number == 6 else "25"]


def test_host_is_answered_twice(host: Processor) -> None:
    host.hold(9)
    assert host.codes == ["00", "00"]
    assert host.unanswered == 0


def test_host_is_answered_out_of_order(host: Processor) -> None:
    host.hold(10)
    assert host.codes == []
    host.hold(0, 2, A + 51)
    assert host.codes == ["51", "00"]
    host.hold(10, 3, A)
    host.house.pass_time(1.1)
    assert len(host.codes) == 3
    assert host.unanswered == 0


def test_host_gets_garbage(host: Processor) -> None:
    host.hold(11)
    assert host.codes == [None]
    assert host.state() == "ACTIVA"


def test_host_has_captures_and_releases_fail(host: Processor) -> None:
    host.hold(17)
    for _ in range(4):
        host.capture()
    host.hold(18, 2)
    for _ in range(9):
        host.release(2)
    assert host.codes == ["00", *["96"] * 3, "00", "00", *["96"] * 8, "00"]
    assert (host.state(), host.state(2)) == ("CAPTURADA", "LIBERADA")


def test_host_captures_a_lost_hold(host: Processor) -> None:
    host.hold(19)
    host.capture()
    assert host.codes == ["00", "00"]
    assert host.play.alarms("overdraft_exception") == 1


def test_the_profile_is_part_of_the_whole_node(play: Play) -> None:
    """The native way would know nothing of all this: nothing goes through it."""
    node = play.house.node
    with play.house.step() as step:
        node.straight_ready(step)
    assert not node.straight.core.near
