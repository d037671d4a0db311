"""Random days with differences of every kind: all are found, all end, and no money is made."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.messages import Confirm, Reverse
from tests.conftest import FUZZ
from tests.house import House
from tests.models.conciliation import FATES, HELD, LINES, Planned, position
from tests.offices import SIGNED, Office, after_grace, next_morning

days = st.lists(
    st.builds(
        Planned,
        fate=st.sampled_from(FATES),
        kind=st.sampled_from(("cash_out", "deposit")),
        amount=st.integers(1, 20).map(lambda n: n * 1000),
        line=st.sampled_from(LINES),
        decision=st.integers(0, 1),
    ),
    min_size=1,
    max_size=7,
)
_STATES = {"captured": ("CAPTURADA", "CONCILIADA"), "undone": ("REVERSADA",), HELD: ("RESPONDIDA",)}


def play(house: House, trace: int, planned: Planned) -> str:
    reference = house.reference(trace)
    hold = house.hold(reference, planned.amount, kind=planned.kind)
    assert house.network(hold).answer.code == "00"
    if planned.fate == "confirmed":
        assert house.network(Confirm(2, reference, "")).answer.code == "00"
    elif planned.fate == "reversed":
        undo = Reverse(3, reference, planned.amount, "timeout")
        assert house.network(undo).answer.code == "00"
    house.clock.advance(60)
    return reference


def line_of(office: Office, reference: str, planned: Planned) -> list[object]:
    if planned.line == "none":
        return []
    kind = "C" if planned.kind == "cash_out" else "D"
    match planned.line:
        case "amount":
            return [office.line(reference, planned.amount + 1, kind=kind)]
        case "kind":
            return [office.line(reference, planned.amount, kind="D" if kind == "C" else "C")]
        case "commission":
            known = office.house.at_sicoop(reference)
            assert known is not None
            return [office.line(reference, planned.amount, kind=kind, commission=999)]
        case state:
            return [office.line(reference, planned.amount, state, kind=kind)]


@settings(max_examples=200 * FUZZ or 12)
@given(days, st.sampled_from(("csv", "fixed")), st.lists(st.integers(0, 6), max_size=3))
def test_every_difference_of_a_day_is_found(
    day: list[Planned], form: str, twice: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        house = House(Path(directory))
        check(house, day, form, twice)
        house.sound()
        house.close()


def check(house: House, day: list[Planned], form: str, twice: list[int]) -> None:
    office = Office(house)
    references = [play(house, trace, planned) for trace, planned in enumerate(day, 1)]
    lines = [line_of(office, r, planned) for r, planned in zip(references, day, strict=True)]
    repeated = [lines[i % len(lines)] for i in twice]
    rows = [line for found in (*lines, *repeated) for line in found]
    path = office.write(rows, form=form)  # type: ignore[arg-type]
    next_morning(house)

    cases = {r: p.after_file[1] for r, p in zip(references, day, strict=True) if p.after_file[1]}
    previewed = {d.reference for d in office.preview(path) if d.difference in set(cases.values())}
    assert previewed == set(cases)
    told = office.read(path)
    assert office.open_cases() == cases
    assert told["differences"].get("linea repetida", 0) == sum(map(len, repeated))
    after_grace(house)
    house.pass_time(120)

    for reference, planned in zip(references, day, strict=True):
        assert office.state(reference) in _STATES[planned.after_file[0]], (planned, reference)
    assert office.open_cases() == cases
    assert house.position() == position(day, [p.after_file[0] for p in day])
    for reference, planned in zip(references, day, strict=True):
        if planned.outcome:
            office.resolve(reference, planned.outcome)
    expected = position(day, [p.end for p in day])
    assert office.open_cases() == {}
    assert (house.position(), house.reserved()) == (expected, 0)
    assert house.available() == house.holder.balance + expected
    settle(house, expected)


def settle(house: House, owed: int) -> None:
    """The window comes to what is owed, all positions sum to zero, and after it nobody owes."""
    window = house.do("window_close")
    positions = {p["name"]: p["position"] for p in window["positions"]}
    assert window["sum"] == 0
    assert positions.get("net:0012", 0) == owed
    house.do("window_issue", number=1)
    for name, amount in positions.items():
        if amount:
            house.do("window_settle", number=1, name=name, bank="bcp", signature=SIGNED)
    assert house.position() == 0
    assert house.do("window_show", number=1)["state"] == "SETTLED"
    assert house.node.money_check() == {"posted": 0, "pending": 0}
