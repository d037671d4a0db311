"""Group C: conciliation and settlement (acceptance specification, section 6)."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from protocols.messages import Confirm, IssuerAnswer, Reverse, ShiftClose
from switch.admin_socket import ProvisioningError
from switch.flows.conciliation import LINES_MAX
from switch.flows.registry import account_id
from switch.journal import queries
from switch.journal.verify import verify
from switch.reports.daily_file import FileRefused
from switch.reports.statements import write_statements
from tests.apart import Apart, only
from tests.flows.conftest import Build
from tests.house import BRANCH, NETWORK, House
from tests.layouts import Spread, all_of, nodes_of, office_of, silence
from tests.models.journal import crc32c, parse_segment
from tests.offices import (
    DATE,
    ENCLOSED,
    SIGNED,
    Office,
    Stopped,
    after_grace,
    next_morning,
)

A = 150_000


def unconfirmed(house: House, trace: int, kind: str = "cash_out") -> str:
    """An operation that its network neither confirms nor reverses: E5, or F5."""
    silence(house)
    reference = house.reference(trace)
    assert house.network(house.hold(reference, A, kind=kind)).answer.code == "00"
    house.clock.advance(60)
    return reference


def confirmed(house: House, trace: int, kind: str = "cash_out") -> str:
    reference = unconfirmed(house, trace, kind)
    assert house.network(Confirm(2, reference, "")).answer.code == "00"
    return reference


def reversed_(house: House, trace: int) -> str:
    reference = unconfirmed(house, trace)
    assert house.network(Reverse(2, reference, A, "timeout")).answer.code == "00"
    return reference


# ---- files that agree


def test_C01_all_three_agree(house: House, office: Office) -> None:
    house.cash_out(A, trace=1)
    house.delivered(1)
    house.deposit(A, trace=2)
    house.clock.advance(60)
    house.cash_out(A, trace=3, token=house.wrong_code())
    next_morning(house)
    told = office.read(office.make(), ceibo=True)
    assert (told["state"], told["differences"]) == ("new", {})
    assert told["counts"] == {"conciliate": 2, "agrees": 1}
    assert [house.states(t, date=DATE)[1] for t in (1, 2)] == ["CONCILIADA"] * 2
    assert office.open_cases() == {}
    file = office.make("ceibo", version=2)
    assert office.read(file, issuer="ceibo")["differences"] == {}
    house.expect_ends([(1, "E1", A), (2, "F1", A)], date=DATE)


@pytest.mark.parametrize("form", ["csv", "fixed"])
def test_C01_in_both_forms(house: House, office: Office, form: str) -> None:
    house.cash_out(A, trace=1)
    next_morning(house)
    told = office.read(office.make(form=form))  # type: ignore[arg-type]
    assert told["counts"] == {"conciliate": 1}


def test_C01_in_many_pieces(house: House, office: Office) -> None:
    count = 3 * LINES_MAX + 1
    for start in range(1, count + 1, 20):
        traces = range(start, min(start + 20, count + 1))
        house.ask_all([house.request(t, 1000, kind="deposit") for t in traces])
    next_morning(house)
    assert office.read(office.make())["counts"] == {"conciliate": count}
    assert {house.states(t, date=DATE)[1] for t in range(1, count + 1)} == {"CONCILIADA"}


def test_C01_conciliated_is_out_of_reach_of_an_annulment(house: House, office: Office) -> None:
    house.cash_out(A, trace=1)
    next_morning(house)
    office.read(office.make())
    answer = house.annul(1, business_date="2026-11-22")
    assert (answer.code, answer.state) == ("A1", "REGISTRADA")
    assert house.states(1, date=DATE)[1] == "CONCILIADA"


# ---- differences that become cases


def test_C02_paid_by_red_but_reversed_here(house: House, office: Office) -> None:
    reference = reversed_(house, 1)
    before = house.available(), house.position()
    next_morning(house)
    told = office.read(office.write([office.line(reference)]))
    assert told["differences"] == {"pagada por red": 1}
    assert office.open_cases() == {reference: "pagada por red"}
    assert office.state(reference) == "REVERSADA"
    assert (house.available(), house.position()) == before
    assert "conciliation_case" in house.alarms()


def anew_at_ceibo(house: House, reference: str) -> None:
    """Apart from sicoop, ceibo's own two persons capture first what was released there."""
    if len(all_of(house)) > 1:
        operation = house.at_sicoop(reference)
        assert operation is not None
        ceibo = Office(nodes_of(house)["ceibo"])
        ceibo.resolve(operation.operation, "capture", network=NETWORK)


def test_C02_captured_anew_by_two_persons(house: House, office: Office) -> None:
    reference = reversed_(house, 1)
    next_morning(house)
    office.read(office.write([office.line(reference)]))
    anew_at_ceibo(house, reference)
    office.resolve(reference, "capture")
    assert office.state(reference) == "CAPTURADA"
    assert (house.available(), house.position()) == (house.holder.balance - A, -A)
    assert office.open_cases() == {}
    house.sound()


def test_C02_charged_to_the_network(house: House, office: Office) -> None:
    reference = reversed_(house, 1)
    next_morning(house)
    office.read(office.write([office.line(reference)]))
    office.resolve(reference, "charge")
    assert (house.available(), house.position()) == (house.holder.balance, 0)
    assert office.open_cases() == {}


def test_C02_what_two_persons_decided_stays_decided(house: House, office: Office) -> None:
    reference = reversed_(house, 1)
    next_morning(house)
    lines = [office.line(reference)]
    office.read(office.write(lines))
    office.resolve(reference, "charge")
    told = office.read(office.write(lines, version=2))
    assert told["differences"] == {"pagada por red": 1}
    assert office.open_cases() == {}
    office.read(office.write([office.line(reference, A + 1000)], version=3))
    assert office.open_cases() == {reference: "pagada por red"}


def test_C03_captured_here_without_a_line(house: House, office: Office) -> None:
    reference = confirmed(house, 1)
    next_morning(house)
    told = office.read(office.write([]))
    assert told["differences"] == {"sin respaldo de red": 1}
    assert office.open_cases() == {reference: "sin respaldo de red"}
    assert office.state(reference) == "CAPTURADA"
    assert (house.available(), house.position()) == (house.holder.balance - A, -A)


@pytest.mark.parametrize(("outcome", "position"), [("annul", 0), ("capture", -A)])
def test_C03_two_persons_decide(
    house: House, office: Office, outcome: str, position: int
) -> None:  # fmt: skip
    reference = confirmed(house, 1)
    next_morning(house)
    office.read(office.write([]))
    office.resolve(reference, outcome)
    assert house.position() == position
    assert house.available() == house.holder.balance + position
    assert office.open_cases() == {}


@pytest.mark.parametrize("state", ["N", "X"])
def test_C03_refused_there_captured_here(house: House, office: Office, state: str) -> None:
    reference = confirmed(house, 1)
    next_morning(house)
    office.read(office.write([office.line(reference, state=state)]))
    assert office.open_cases() == {reference: "sin respaldo de red"}
    assert office.state(reference) == "CAPTURADA"
    assert (house.available(), house.position()) == (house.holder.balance - A, -A)


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_C04_amounts_differ(house: House, office: Office, kind: str) -> None:
    open_, closed = unconfirmed(house, 1, kind), confirmed(house, 2, kind)
    before = house.available(), house.position(), house.reserved()
    next_morning(house)
    letter = "C" if kind == "cash_out" else "D"
    office.read(office.write([office.line(r, A + 1000, kind=letter) for r in (open_, closed)]))
    assert office.open_cases() == dict.fromkeys((open_, closed), "monto distinto")
    assert (office.state(open_), office.state(closed)) == ("RESPONDIDA", "CAPTURADA")
    after_grace(house)  # what a case is open about is not released by the clock
    house.pass_time(120)
    assert office.state(open_) == "RESPONDIDA"
    assert (house.available(), house.position(), house.reserved()) == before


# ---- the file itself


def test_C05_line_twice(house: House, office: Office) -> None:
    references = known, open_ = confirmed(house, 1), unconfirmed(house, 2)
    next_morning(house)
    lines = [office.line(reference) for reference in references for _ in range(2)]
    told = office.read(office.write(lines))
    assert told["counts"] == {"conciliate": 1, "capture": 1}
    assert told["differences"] == {"linea repetida": 2}
    assert (office.state(known), office.state(open_)) == ("CONCILIADA", captured_by_file(house))
    moved = -2 * A
    assert (house.available(), house.position()) == (house.holder.balance + moved, moved)


def test_C06_file_missing_at_the_deadline(house: House, office: Office) -> None:
    house.pass_time(60)
    out, in_ = unconfirmed(house, 1), unconfirmed(house, 2, "deposit")
    next_morning(house)
    assert "file_late" not in house.alarms()
    after_grace(house)
    house.pass_time(3 * 86_400)
    assert house.node.alarms["file_late"] >= 1
    assert (office.state(out), office.state(in_)) == ("RESPONDIDA", "RESPONDIDA")
    assert house.reserved() == A
    house.expect_ends([(1, "E5", A), (2, "F5", A)], date=DATE)


def test_C06_no_alarm_where_the_file_is_here(house: House, office: Office) -> None:
    house.pass_time(60)
    house.cash_out(A, trace=1)
    next_morning(house)
    office.read(office.make())
    after_grace(house)
    assert "file_late" not in house.alarms()


def _broken(path: Path, what: str) -> None:
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    match what:
        case "count":
            lines[-1] = lines[-1].replace(b"T;1;", b"T;2;")
        case "total":
            lines[-1] = lines[-1].replace(b";150000;", b";150001;")
        case "hash":
            lines[-1] = lines[-1][:-9] + b"00000000\n"
        case "detail":
            lines[1] = lines[1].replace(b";150000;", b";150001;")
        case "short":
            lines = lines[:-1]
        case "cut":
            lines = [data[:-70]]
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("what", ["count", "total", "hash", "detail", "short", "cut"])
def test_C07_file_that_is_not_balanced(house: House, office: Office, what: str) -> None:
    reference = unconfirmed(house, 1)
    next_morning(house)
    path = office.write([office.line(reference)])
    _broken(path, what)
    with pytest.raises(FileRefused):
        office.read(path)
    assert "mistakes: " in path.with_name(path.name + ".ERR").read_text()
    assert not path.with_name(path.name + ".OK").exists()
    assert "file_refused" in house.alarms()
    after_grace(house)
    house.pass_time(3600)
    assert office.state(reference) == "RESPONDIDA"
    assert house.node.conciliation.file(NETWORK, DATE) is None


def test_C08_same_file_again(house: House, office: Office) -> None:
    house.cash_out(A, trace=1)
    next_morning(house)
    path = office.make()
    office.read(path)
    store = house.node.store
    digests = store.records.digest(), store.ledger.digest()
    assert office.read(path)["state"] == "known"
    store = house.node.store
    assert (store.records.digest(), store.ledger.digest()) == digests


@pytest.mark.parametrize("after", range(4))
def test_C08_cut_short_and_taken_in_again(house: House, office: Office, after: int) -> None:
    """A stop between any two pieces is mended by reading the file again."""
    references = [confirmed(house, 1), unconfirmed(house, 2), reversed_(house, 3)]
    next_morning(house)
    path = office.write([office.line(r) for r in references])
    office.stop_after = after
    with pytest.raises(Stopped):
        office.read(path)
    assert not path.with_name(path.name + ".OK").exists()
    office.stop_after = None
    house.crash()
    assert office.read(path)["state"] in ("new", "again")
    decided = {"CONCILIADA", captured_by_file(house)}
    assert office.state(references[0]) == "CONCILIADA"
    assert office.state(references[1]) in decided
    assert office.state(references[2]) == "REVERSADA"
    assert house.states(2, date=DATE)[2] == "CAPTURADA"
    assert office.open_cases() == {references[2]: "pagada por red"}
    assert house.position() == -2 * A
    assert office.read(path)["state"] == "known"


def test_C08_higher_version_replaces(house: House, office: Office) -> None:
    first, second = confirmed(house, 1), confirmed(house, 2)
    next_morning(house)
    office.read(office.write([office.line(first)]))
    assert office.open_cases() == {second: "sin respaldo de red"}
    lines = [office.line(first), office.line(second)]
    told = office.read(office.write(lines, version=2))
    assert told["state"] == "replaces"
    assert office.open_cases() == {}
    assert office.state(second) == "CONCILIADA"
    assert "conciliation.replace" in {event.what for event in house.audit()}
    with pytest.raises(ProvisioningError, match="version 2"):
        office.read(office.directory / f"CONC_{NETWORK}_{DATE}_1.csv")


def test_C08_same_version_with_other_content(house: House, office: Office) -> None:
    reference = confirmed(house, 1)
    next_morning(house)
    office.read(office.write([]))
    with pytest.raises(ProvisioningError, match="higher version"):
        office.read(office.write([office.line(reference)]))
    assert office.open_cases() == {reference: "sin respaldo de red"}


# ---- unknown outcomes end


def captured_by_file(house: House) -> str:
    """State of what a line captures: the answer of an issuer elsewhere comes after the file."""
    return "CAPTURADA" if len(all_of(house)) > 1 else "CONCILIADA"


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_C09_unknown_outcome_in_the_file(house: House, office: Office, kind: str) -> None:
    reference = unconfirmed(house, 1, kind)
    next_morning(house)
    line = office.line(reference, kind="C" if kind == "cash_out" else "D", state="E")
    told = office.read(office.write([line]))
    assert told["counts"] == {"capture": 1}
    assert house.states(1, date=DATE)[1:] == (captured_by_file(house), "CAPTURADA")
    sign = -1 if kind == "cash_out" else 1
    assert (house.available(), house.position()) == (house.holder.balance + sign * A, sign * A)
    assert house.reserved() == 0
    assert house.app(house.holder.card) == [("approved", A, BRANCH)]


def test_C09_annulled_line_annuls(house: House, office: Office) -> None:
    reference = unconfirmed(house, 1)
    next_morning(house)
    told = office.read(office.write([office.line(reference, state="A")]))
    assert told["counts"] == {"annul": 1}
    assert house.states(1, date=DATE)[1:] == ("REVERSADA", "LIBERADA")
    assert (house.available(), house.position()) == (house.holder.balance, 0)


def test_C09_roles_apart(tmp_path: Path) -> None:
    """red has it registered, sicoop never hears of it again: the file tells."""
    world = Apart(tmp_path)
    world.sessions.policy = only("confirm", "hold")
    world.status.policy = only("status", "hold")
    world.cash_out(1, A)
    assert world.states(1) == ("REGISTRADA", "RESPONDIDA", "ACTIVA")
    reference = world.red.reference(1)
    world.clock.step(13 * 3600)
    made = Office(world.red).make()
    office = Office(world.sicoop)
    shutil.copy(made, office.directory)
    told = office.read(office.directory / made.name)
    world.run()
    assert told["counts"] == {"capture": 1}
    assert office.state(reference) == "CAPTURADA"
    world.sessions.policy = world.status.policy = only("", "")
    world.pass_time(120)
    assert world.owed() == 0
    assert world.ceibo.available() == world.holder.balance - A
    assert world.sicoop.position() == -A
    world.close()


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
@pytest.mark.parametrize("read_at", ["before", "after"])
def test_X139_D13_C10_unknown_outcome_without_a_line(
    house: House, office: Office, kind: str, read_at: str
) -> None:
    reference = unconfirmed(house, 1, kind)
    next_morning(house)
    if read_at == "after":
        after_grace(house)
    told = office.read(office.write([]))
    if read_at == "before":
        assert told["differences"] == {"sin linea, en espera": 1}
        assert office.state(reference) == "RESPONDIDA"
        house.pass_time(10 * 3600)
        assert office.state(reference) == "RESPONDIDA"
        house.pass_time(2 * 3600)
    assert house.states(1, date=DATE)[1:] == ("REVERSADA", "LIBERADA")
    assert (house.available(), house.position(), house.reserved()) == (house.holder.balance, 0, 0)
    assert house.app(house.holder.card) == [("released", A, BRANCH)]


@pytest.mark.layouts("together")
def test_C10_many_without_a_line_in_bounded_pieces(house: House, office: Office) -> None:
    references = [house.reference(trace) for trace in range(1, 2 * LINES_MAX)]
    for reference in references:
        house.network(house.hold(reference, 1000, kind="deposit"))
    next_morning(house)
    office.read(office.write([]))
    after_grace(house)
    assert sum(office.state(r) == "REVERSADA" for r in references) == LINES_MAX
    house.pass_time(61)
    assert {office.state(r) for r in references} == {"REVERSADA"}
    file = house.node.conciliation.file(NETWORK, DATE)
    assert file is not None
    assert (file.graced, file.counts["release"], file.counts["wait"]) == (True, len(references), 0)


@pytest.mark.parametrize("state", ["N", "X"])
def test_C10_line_that_refuses(house: House, office: Office, state: str) -> None:
    reference = unconfirmed(house, 1)
    next_morning(house)
    office.read(office.write([office.line(reference, state=state)]))
    assert house.states(1, date=DATE)[1:] == ("REVERSADA", "LIBERADA")
    assert (house.available(), house.position()) == (house.holder.balance, 0)


def test_C10_not_without_a_file_and_not_of_another_date(house: House, office: Office) -> None:
    next_morning(house)  # the operation belongs to the 23rd
    reference = unconfirmed(house, 1)
    office.read(office.write([]))  # the file of the 22nd
    after_grace(house)
    house.pass_time(3600)
    assert office.state(reference) == "RESPONDIDA"


def test_C10_K03_carried_over_the_evening(build: Build) -> None:
    """A network that closes at 20:00 has the evening in the file of the next date (K03)."""
    house = build(toml='[conciliation]\nnetwork_closes = "20:00"\n')
    office = office_of(house)
    house.pass_time(9 * 3600)  # 21:00
    reference = unconfirmed(house, 1)
    assert house.cash_out(A, trace=2).code == "00"  # and one that was paid
    paid = house.reference(2)
    house.pass_time(4 * 3600)
    assert office.read(office.write([]))["differences"] == {}
    assert office.state(paid) == "CAPTURADA"
    house.pass_time(12 * 3600)
    assert office.state(reference) == "RESPONDIDA"
    house.pass_time(12 * 3600)
    lines = [office.line(reference), office.line(paid)]
    told = office.read(office.write(lines, date="20261123"))
    assert told["counts"] == {"capture": 1, "conciliate": 1}
    assert office.open_cases() == {}
    assert office.state(reference) == captured_by_file(house)
    assert house.states(1, date=DATE)[2] == "CAPTURADA"
    assert house.states(2, date=DATE) == ("REGISTRADA", "CONCILIADA", "CAPTURADA")
    assert (house.available(), house.position()) == (house.holder.balance - 2 * A, -2 * A)


# ---- ceibo


@pytest.mark.layouts("together")
def test_C11_ceibo_differs(house: House, office: Office) -> None:
    """ceibo never saw the capture: the report has all three, and sicoop asks again."""
    reference = unconfirmed(house, 1)
    house.node.sicoop.attach(house.node.red.on_platform_answer, issuer=_Liar(house))
    house.network(Confirm(2, reference, ""))
    assert house.states(1)[1:] == ("CAPTURADA", "ACTIVA")
    house.node.sicoop.attach(house.node.red.on_platform_answer, issuer=house.node.issuers)
    next_morning(house)
    told = office.read(office.write([office.line(reference)]), ceibo=True)
    assert told["differences"] == {"ceibo distinto": 1}
    report = Path(told["report"]).read_text().splitlines()
    row = dict(zip(report[0].split(";"), report[1].split(";"), strict=True))
    assert (row["sicoop_state"], row["ceibo_state"]) == ("CAPTURADA", "ACTIVA")
    assert row["action"] == "capture again"
    assert house.states(1, date=DATE)[2] == "CAPTURADA"


class _Liar:
    """A way to the issuer that says yes and does nothing."""

    closed = False

    def __init__(self, house: House) -> None:
        self._house = house

    def choose(self, *_: Any, **__: Any) -> str:
        return ""

    def forwards(self, link: str) -> bool:
        return False

    def ask(self, *_: Any, **__: Any) -> Any:
        return IssuerAnswer("00", "APROBADA")


def test_C11_file_of_ceibo(house: House, office: Office) -> None:
    confirmed(house, 1)
    reversed_(house, 2)
    next_morning(house)
    path = office.make("ceibo")
    assert office.read(path, issuer="ceibo")["differences"] == {}
    empty = office.write([], version=2)
    assert office.read(empty, issuer="ceibo")["differences"] == {"ceibo distinto": 1}
    if isinstance(house, Spread):
        assert len(house.world.holds.sent("capture")) == 2
    assert house.states(1, date=DATE)[1:] == ("CAPTURADA", "CAPTURADA")
    assert house.position() == -A  # asked again, it has no second effect


@pytest.mark.parametrize("what", ["release", "annul", "void"])
def test_C11_only_what_was_decided_is_asked_for_again(
    house: House, office: Office, what: str
) -> None:  # fmt: skip
    reference = confirmed(house, 1)
    with pytest.raises(ProvisioningError, match="decided"):
        house.do("conciliation_resend", reference=reference, what=what)
    assert house.position() == -A


# ---- settlement


def test_C12_net_settlement(build: Build) -> None:
    house = build(balance=3_000_000)
    house.do("network_add", number="0013", net_debit_cap=10_000_000)
    house.do("terminal_add", number="00009999", network="0013", branch="1")
    house.cash_out(A)
    house.deposit(3 * A)
    house.clock.advance(60)
    house.cash_out(2 * A, terminal="00009999")
    window = house.do("window_close")
    assert window["sum"] == 0
    positions = {p["name"]: p["position"] for p in window["positions"]}
    assert positions == {"net:0012": 2 * A, "net:0013": -2 * A, "issuer:ceibo": 0}
    house.clock.advance(60)
    house.cash_out(A)  # of the next window already
    with pytest.raises(ProvisioningError, match="not issued"):
        house.do("window_settle", number=1, name="net:0012", bank="bcp", signature=SIGNED)
    issued = house.do("window_issue", number=1)
    statements = write_statements(house.directory, issued)
    assert [path.name for path in statements] == ["LIQ_0012_PYG_1.csv", "LIQ_0013_PYG_1.csv"]
    amounts = [int(path.read_text().split(";")[-1]) for path in statements]
    assert amounts == [2 * A, -2 * A]
    values = {"number": 1, "bank": "bcp", "signature": SIGNED}
    house.do("window_settle", name="net:0012", **values)
    assert house.position() == -A
    with pytest.raises(ProvisioningError, match="already"):
        house.do("window_settle", name="net:0012", **values)
    assert house.do("window_settle", name="net:0013", **values)["state"] == "SETTLED"
    later = house.do("window_close")
    assert {p["name"]: p["position"] for p in later["positions"]} == {
        "net:0012": -A, "issuer:ceibo": A,
    }  # fmt: skip
    assert later["sum"] == 0


def test_C12_windows_of_one_instant(house: House) -> None:
    """Closing and paying need no clock between them: nothing is counted twice or lost."""
    values = {"bank": "bcp", "signature": SIGNED}
    for number in range(1, 4):
        house.cash_out(A, token=house.code(at_s=house.clock.now_ns // 10**9 + 60 * (number - 3)))
        window = house.do("window_close")
        assert {p["name"]: p["position"] for p in window["positions"]} == {
            "net:0012": -A, "issuer:ceibo": A,
        }  # fmt: skip
        house.do("window_issue", number=number)
        for name in ("net:0012", "issuer:ceibo"):
            house.do("window_settle", number=number, name=name, **values)
        assert house.position() == 0
    assert house.do("window_close")["positions"] == []


def test_C12_settlement_passes_the_caps(build: Build) -> None:
    """What was agreed upon is posted whatever has come since; afterwards the caps hold again."""
    house = build(net_debit_cap=2 * A, payable_cap=2 * A)
    house.cash_out(2 * A)
    house.do("window_close")
    house.do("window_issue", number=1)
    house.deposit(3 * A)
    house.deposit(A)
    assert house.position() == 2 * A
    house.do("window_settle", number=1, name="net:0012", bank="bcp", signature=SIGNED)
    assert house.position() == 4 * A
    assert house.deposit(A).code == "62"


# ---- two persons


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"second": "ANA"}, "two persons"),
        ({"second": ""}, "named"),
        ({"reason": " "}, "reason"),
        ({"evidence": "", "evidence_sha256": ""}, "evidence"),
    ],
)
def test_C13_manual_adjustment_needs(house: House, changes: dict[str, str], why: str) -> None:
    house.cash_out(A)
    with pytest.raises(ProvisioningError, match=why):
        house.do(
            "conciliation_adjust", account="net:0012", amount=5000, direction="credit",
            signature=ENCLOSED | changes,
        )  # fmt: skip
    assert house.position() == -A


def test_C13_manual_adjustment(house: House) -> None:
    house.cash_out(A)
    values = {"amount": 5000, "direction": "credit", "signature": ENCLOSED}
    house.do("conciliation_adjust", account="net:0012", **values)
    assert house.position() == -A - 5000
    house.do("conciliation_adjust", account=f"card:{house.holder.card}", **values)
    assert house.available() == house.holder.balance - A + 5000
    event = next(e for e in house.audit() if e.what == "adjust")
    assert (event.who, event.second) == ("operator:ana", "operator:beto")
    newest = queries.adjustments(house.read_model())[0]
    signed = [newest[name] for name in ("author", "second", "reason", "evidence_sha256")]
    assert signed == ["ana", "beto", "checked with the branch", "ab" * 32]


@pytest.mark.parametrize(("outcome", "ceibo"), [("capture", "CAPTURADA"), ("release", "LIBERADA")])
def test_C13_two_persons_end_an_unknown_outcome(
    house: House, office: Office, outcome: str, ceibo: str
) -> None:  # fmt: skip
    reference = unconfirmed(house, 1)
    with pytest.raises(ProvisioningError, match="two persons"):
        office.resolve(reference, outcome, signature=SIGNED | {"second": "ana"})
    with pytest.raises(ProvisioningError, match="in doubt"):
        office.resolve(reference, "charge")
    office.resolve(reference, outcome)
    assert house.states(1)[2] == ceibo
    moved = -A if outcome == "capture" else 0
    assert (house.available(), house.position()) == (house.holder.balance + moved, moved)
    found = queries.operation(house.read_model(), reference)
    assert found is not None
    assert (found["case"]["author"], found["case"]["second"]) == ("ana", "beto")
    assert found["case"]["outcome"] == outcome
    with pytest.raises(ProvisioningError, match="in doubt"):
        office.resolve(reference, "capture")


@pytest.mark.parametrize("first", ["confirm", "reverse"])
@pytest.mark.parametrize("outcome", ["capture", "annul", "charge", "release"])
def test_C13_two_persons_end_a_conflict(
    house: House, office: Office, first: str, outcome: str
) -> None:  # fmt: skip
    reference = unconfirmed(house, 1)
    confirm, reverse = Confirm(2, reference, ""), Reverse(3, reference, A, "timeout")
    for message in (confirm, reverse) if first == "confirm" else (reverse, confirm):
        house.network(message)
    assert office.state(reference) == "CONFLICTO"
    open_to = {"confirm": ("capture", "annul"), "reverse": ("capture", "charge")}[first]
    if outcome not in open_to:
        with pytest.raises(ProvisioningError, match=outcome):
            office.resolve(reference, outcome)
        assert office.state(reference) == "CONFLICTO"
        return
    paid = outcome == "capture"
    if paid and first == "reverse":
        anew_at_ceibo(house, reference)
    office.resolve(reference, outcome)
    assert office.state(reference) == ("CAPTURADA" if paid else "REVERSADA")
    moved = -A if paid else 0
    assert (house.available(), house.position()) == (house.holder.balance + moved, moved)
    assert house.network(confirm).answer.code in ("00", "A3")
    assert (house.available(), house.position()) == (house.holder.balance + moved, moved)
    house.crash()
    assert house.position() == moved


def test_C13_conflict_outlives_the_retention(house: House, office: Office) -> None:
    reference = confirmed(house, 1)
    house.network(Reverse(3, reference, A, "timeout"))
    house.pass_time(10 * 86_400)
    house.pass_time(120)
    assert office.state(reference) == "CONFLICTO"
    house.crash()
    with pytest.raises(ProvisioningError, match="adjust"):
        office.resolve(reference, "annul")
    assert office.state(reference) == "CONFLICTO"


def test_C13_roles_apart_ceibo_decides_first(tmp_path: Path) -> None:
    """What sicoop undid is captured anew once ceibo's two persons have done so."""
    world = Apart(tmp_path)
    world.sessions.policy = only("confirm", "hold")
    world.cash_out(1, A)
    reference = world.sicoop.reference(1)
    world.sicoop.network(Reverse(2, reference, A, "timeout"))
    world.run()
    assert world.states(1)[1:] == ("REVERSADA", "LIBERADA")
    world.sicoop.network(Confirm(3, reference, ""))
    sicoop, ceibo = Office(world.sicoop), Office(world.ceibo)
    operation = world.sicoop.at_sicoop(reference)
    assert operation is not None
    ceibo.resolve(operation.operation, "capture", network=NETWORK)
    sicoop.resolve(reference, "capture")
    world.run()
    assert world.states(1)[1:] == ("CAPTURADA", "CAPTURADA")
    assert world.ceibo.available() == world.holder.balance - A
    assert world.sicoop.position() == -A
    for house in (world.sicoop, world.ceibo):
        house.sound()
    world.close()


# ---- cases of other groups that end here


def test_X142_another_amount_was_handed_out(house: House, office: Office) -> None:
    """The till's count shows it, a dispute is recorded, nothing is changed by itself."""
    till = 1_000_000
    house.open_shift("000345", house.staff("000345"), float=till)
    house.cash_out(A, trace=1)
    reference = house.reference(1)
    closed = house.ask(ShiftClose(cashier="000345", counted=till - A - 10_000, trace=2))
    assert closed.difference == -10_000
    assert "till_difference" in house.alarms()
    house.do("case_dispute", reference=reference, author="ana", reason="10.000 too much")
    house.expect_end(1, "E1", A)
    assert office.open_cases() == {reference: "disputa"}


@pytest.mark.parametrize(("outcome", "moved"), [("annul", 0), ("capture", -A)])
def test_X143_not_received_says_the_user(
    house: House, office: Office, outcome: str, moved: int
) -> None:  # fmt: skip
    house.cash_out(A, trace=1)
    house.delivered(1)
    reference = house.reference(1)
    values = {"reference": reference, "author": "ana", "reason": "nothing received"}
    house.do("case_dispute", **values)
    with pytest.raises(ProvisioningError, match="open"):
        house.do("case_dispute", **values)
    # E5: all stands as it was found, and the cashier is told what he was told before.
    assert house.states(1) == ("ENTREGADA", "CAPTURADA", "CAPTURADA")
    assert (house.position(), house.available()) == (-A, house.holder.balance - A)
    assert house.query(1).instruction == "NO_ENTREGUE"
    assert office.open_cases() == {reference: "disputa"}
    evidence = queries.operation(house.read_model(), reference)
    at_red = queries.operation(nodes_of(house)["red"].read_model(), reference)
    assert evidence is not None
    assert at_red is not None
    assert evidence["cashier"] == "000345"
    assert "ENTREGADA" in {entry["state"] for entry in at_red["timeline"]}
    assert evidence["case"]["difference"] == "disputa"
    with pytest.raises(ProvisioningError, match="two persons"):
        office.resolve(reference, outcome, signature=SIGNED | {"second": "Ana"})
    office.resolve(reference, outcome)
    assert (house.position(), house.available()) == (moved, house.holder.balance + moved)
    found = queries.operation(house.read_model(), reference)
    assert found is not None
    assert (found["case"]["author"], found["case"]["second"]) == ("ana", "beto")
    assert all(verify(h.config, h.directory / "data").ok for h in all_of(house))


def test_X130_user_gone_and_the_day_over(house: House, office: Office) -> None:
    """The next day it cannot be annulled any more: a dispute keeps it in sight (E5)."""
    house.cash_out(A, trace=1)
    reference = house.reference(1)
    house.clock.advance(86_400)
    late = house.annul(1, trace=2, business_date="2026-11-22")
    assert (late.code, late.state) == ("A1", "REGISTRADA")
    house.do("case_dispute", reference=reference, author="ana", reason="cash left behind")
    assert office.open_cases() == {reference: "disputa"}
    assert (house.position(), house.available()) == (-A, house.holder.balance - A)
    office.resolve(reference, "annul")
    assert (house.position(), house.available()) == (0, house.holder.balance)
    assert office.open_cases() == {}


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_X139_D13_the_daily_file_decides(house: House, office: Office, kind: str) -> None:
    """red cannot be reached: alarms, and the hold is kept until its file is here."""
    reference = unconfirmed(house, 1, kind)
    for _ in range(75):
        house.pass_time(60)
    assert house.node.alarms["unconfirmed"] == 2
    next_morning(house)
    assert office.state(reference) == "RESPONDIDA"
    out, balance = kind == "cash_out", house.holder.balance
    assert house.available() == balance - (A if out else 0)  # held; a credit is not spendable yet
    assert (house.position(), house.reserved()) == (0, 0 if out else A)
    office.read(office.write([office.line(reference, kind="C" if out else "D")]))
    assert house.states(1, date=DATE)[1:] == (captured_by_file(house), "CAPTURADA")
    sign = -1 if out else 1
    assert (house.available(), house.position()) == (balance + sign * A, sign * A)
    assert house.reserved() == 0


@pytest.mark.parametrize(("kind", "end"), [("cash_out", "E5"), ("deposit", "F5")])
def test_K08_D14_no_hold_ends_by_time_alone(house: House, kind: str, end: str) -> None:
    unconfirmed(house, 1, kind)
    for _ in range(75):
        house.pass_time(60)
    assert house.node.alarms["unconfirmed"] == 2  # somebody is told, and that is all
    for _ in range(20):
        house.pass_time(86_400)
    assert house.states(1, date=DATE) == ("", "RESPONDIDA", "ACTIVA")
    house.crash()
    silence(house)
    house.pass_time(120)
    assert house.node.alarms["unconfirmed"] == 2  # told again: nobody may have heard it before
    assert house.reserved() == (A if kind == "deposit" else 0)
    house.expect_end(1, end, A, date=DATE)


def in_suspense(house: House) -> int:
    balance = house.node.store.ledger.balance(account_id("ceibo:PYG:suspense"))
    return 0 if balance is None else int(balance.credits_posted - balance.debits_posted)


def told_in_the_app(house: House) -> set[str]:
    return {what for what, _, _ in house.app(house.holder.card)}


@pytest.mark.parametrize("outcome", ["capture", "charge"])
def test_D24_card_closed_before_the_credit(
    house: House, office: Office, outcome: str
) -> None:  # fmt: skip
    """The money goes into suspense, a case is opened, and red owes it all the same."""
    reference = unconfirmed(house, 1, "deposit")
    house.do("card_close", card=house.holder.card)
    house.network(Confirm(2, reference, ""))
    assert house.states(1)[1:] == ("CAPTURADA", "CAPTURADA")
    assert (house.position(), house.available()) == (A, house.holder.balance)
    assert (in_suspense(house), house.reserved()) == (A, 0)
    operation = house.at_sicoop(reference).operation  # type: ignore[union-attr]
    assert office.open_cases() == {NETWORK + operation: "en suspenso"}
    assert "suspense" in house.alarms()
    assert "approved" not in told_in_the_app(house), "it is not his yet"
    assert all(verify(h.config, h.directory / "data").ok for h in all_of(house))
    with pytest.raises(ProvisioningError, match="closed"):
        office.resolve(operation, "capture", network=NETWORK)
    if outcome == "capture":
        house.do("card_enable", card=house.holder.card, enable=True)
        holder = house.holder
    else:
        holder = house.add_card(document="5555555", balance=0)
        values = {"amount": A, "direction": "credit", "signature": ENCLOSED}
        house.do("conciliation_adjust", account=f"card:{holder.card}", **values)
    office.resolve(operation, outcome, network=NETWORK)
    assert house.available(holder) == holder.balance + A
    assert (in_suspense(house), house.position()) == (0, A)  # which the network owes all the same
    assert ("approved" in told_in_the_app(house)) is (outcome == "capture")
    assert office.open_cases() == {}
    with pytest.raises(ProvisioningError):
        office.resolve(operation, "capture", network=NETWORK)


def test_stuck_lists_what_needs_people(house: House, office: Office) -> None:
    unconfirmed(house, 1)
    conflict = confirmed(house, 2)
    house.network(Reverse(3, conflict, A, "timeout"))
    difference = reversed_(house, 3)
    next_morning(house)
    office.read(office.write([office.line(difference), office.line(house.reference(1))]))
    found = queries.stuck(house.read_model(), house.clock.now_ns - 300 * 10**9)
    whys = {(row["role"], row["why"]) for row in found}
    assert ("sicoop", "conflict") in whys
    assert ("case", "pagada por red") in whys


@pytest.mark.parametrize("resealed", [False, True])
def test_C14_altered_journal_is_named(house: House, resealed: bool) -> None:
    """Also where its checksum was made right again: then the next group does not follow it."""
    house.cash_out(A)
    house.clock.advance(60)
    house.cash_out(A)  # a bad group with a good one behind it is no torn end
    house.settle()
    for role, state in (("red", "REGISTRADA"), ("sicoop", "RESPONDIDA"), ("ceibo", "ACTIVA")):
        node = nodes_of(house)[role]
        copy = house.directory / f"copy of {role}"
        shutil.copytree(node.directory / "data", copy)
        segment = sorted((copy / "journal").iterdir())[0]
        data = bytearray(segment.read_bytes())
        groups = parse_segment(bytes(data))
        at = data.index(state.encode())
        number = max(n for n, group in enumerate(groups) if group.offset <= at)
        bad = groups[number]
        data[at] ^= 1
        if resealed:
            body = data[bad.offset : bad.offset + bad.used]
            body[12:16] = crc32c(bytes(body[:12] + body[16:])).to_bytes(4, "little")
            data[bad.offset : bad.offset + bad.used] = body
            bad = groups[number + 1]
        segment.write_bytes(data)
        report = verify(node.config, copy)
        assert not report.ok, role
        assert report.problems[0].startswith(f"journal: segment 1, offset {bad.offset}: "), role


def test_C15_unknown_terminal_or_branch(house: House, office: Office) -> None:
    reference = confirmed(house, 1)
    stranger = f"{NETWORK}77777777{DATE}000001"
    next_morning(house)
    lines = [office.line(reference), office.line(stranger, state="N")]
    told = office.read(office.write([*lines, office.line(house.reference(9), branch="000099")]))
    assert told["differences"]["terminal o boca desconocida"] == 2
    assert office.state(reference) == "CONCILIADA"
