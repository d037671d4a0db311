"""red's daily file on its way: made at red, taken in at sicoop, and what it settles at ceibo.

Three directories, the commands that their operators give, both forms of the file. The operations
are of yesterday, so that the day is over; the lines between the roles are in the test's hands.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from switch.cli import root
from switch.journal.agreement import agreement
from tests.apart import Apart, deliver, only
from tests.house import ManualClock

A = 150_000
DAY_NS = 86_400 * 10**9
BOTH = ("--author", "ana", "--second", "beto", "--reason", "seen on the tape")
Cli = Callable[..., Result]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    """The three, in the middle of yesterday."""
    day = time.time_ns() // DAY_NS - 1
    start_ns = day * DAY_NS + 16 * 3600 * 10**9
    monkeypatch.setattr("tests.apart.ManualClock", lambda: ManualClock(start_ns))
    monkeypatch.setenv("TRONCAL_MASTER_KEY", bytes(range(32)).hex())
    monkeypatch.delenv("TRONCAL_CONFIG", raising=False)
    found = Apart(tmp_path)
    yield found
    found.close()


@pytest.fixture
def cli() -> Cli:
    def run(role: str, world: Apart, *arguments: object) -> Result:
        config = world.houses[role].config.path
        words = [*map(str, arguments), "-c", str(config), "--json"]
        return CliRunner().invoke(root, words, prog_name="troncal")

    return run


def answer_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def play(world: Apart) -> dict[str, str]:
    """A confirmed cash_out; one whose confirmation never arrives; a deposit that red gave up and
    cannot say so. Returns their references."""
    names = {}
    assert world.cash_out(1, A).answer.code == "00"
    names["confirmed"] = world.red.reference(1)
    world.clock.advance(60)
    world.status.policy = only("status", "hold")
    world.sessions.policy = only("confirm", "hold")
    assert world.cash_out(2, A).answer.instruction == "ENTREGUE"
    names["unconfirmed"] = world.red.reference(2)
    world.sessions.policy = lambda f: "drop_answer" if f.what == "hold" else "hold"
    world.deposit(3, 2 * A)
    names["given up"] = world.red.reference(3)
    world.pass_time(26)
    held = {name: world.sicoop.at_sicoop(r) for name, r in names.items()}
    assert [o.state for o in held.values() if o] == ["CAPTURADA", "RESPONDIDA", "RESPONDIDA"]
    return names


@pytest.mark.parametrize(
    ("form", "line_end", "suffix"),
    [("csv", "lf", ".csv"), ("fixed", "crlf", ".txt"), ("csv", "crlf", ".csv")],
)
def test_a_file_settles_what_is_open(
    world: Apart, cli: Cli, tmp_path: Path, form: str, line_end: str, suffix: str
) -> None:
    references = play(world)
    date = world.red.node.calendar.business(world.clock.now_ns).compact
    for role in ("red", "sicoop", "ceibo"):
        world.kill(role)

    # Before the file: what nobody has decided is listed at each role that knows of it.
    stuck = answer_of(cli("sicoop", world, "operations", "--stuck"))
    open_ = {references["unconfirmed"], references["given up"]}
    assert {row["reference"] for row in stuck if row["why"] == "unconfirmed"} == open_
    orphans = answer_of(cli("ceibo", world, "operations", "--stuck"))
    assert [row["why"] for row in orphans] == ["orphan hold"] * 2
    owed = answer_of(cli("red", world, "operations", "--stuck"))
    assert {row["why"] for row in owed} == {"owes confirm", "owes reverse"}

    # red makes it, the operators carry it over, sicoop takes it in.
    make = ("conciliation", "make", "--network", "0012", "--date", date)
    made = answer_of(cli("red", world, *make, "--format", form, "--line-end", line_end))
    assert (made["count"], made["cash_out"], made["deposit"]) == (3, 2 * A, 0)
    assert made["file"].endswith(suffix)
    carried = Path(shutil.copy(made["file"], tmp_path))
    previewed = cli("sicoop", world, "conciliation", "compare", carried)
    assert previewed.exit_code == 1
    actions = {row["reference"]: row["action"] for row in json.loads(previewed.stdout)}
    assert actions == {
        references["unconfirmed"]: "capture", references["given up"]: "release"
    }  # fmt: skip
    told = answer_of(cli("sicoop", world, "conciliation", "read", carried))
    assert told["counts"] == {"conciliate": 1, "capture": 1, "release": 1}
    assert told["differences"] == {}
    assert carried.with_name(carried.name + ".OK").exists()
    again = answer_of(cli("sicoop", world, "conciliation", "read", carried))
    assert again["state"] in ("known", "again")

    # What it decided is owed to ceibo, and paid as soon as the line is there.
    owed = answer_of(cli("sicoop", world, "saf", "list"))
    assert {(row["reference"], row["owed"]) for row in owed} == {
        (references["unconfirmed"], "capture"), (references["given up"], "release"),
    }  # fmt: skip
    world.sessions.policy = world.status.policy = deliver
    for role in ("ceibo", "sicoop", "red"):
        world.start(role)
    world.connect()
    world.pass_time(130)
    assert world.states(1) == ("REGISTRADA", "CONCILIADA", "CAPTURADA")
    assert world.states(2)[0] == "REGISTRADA"
    assert world.states(2)[1:] in (("CAPTURADA", "CAPTURADA"), ("CONCILIADA", "CAPTURADA"))
    assert world.states(3) == ("ERROR", "REVERSADA", "LIBERADA")
    for role in ("red", "sicoop", "ceibo"):
        world.kill(role)
        assert answer_of(cli(role, world, "operations", "--stuck")) == []
    found = agreement(**{role: world.houses[role].config for role in ("red", "sicoop", "ceibo")})
    assert (found.problems, found.finished) == ([], True)
    assert found.position == (-2 * A, -2 * A)


def test_a_file_that_was_changed_on_the_way(world: Apart, cli: Cli, tmp_path: Path) -> None:
    """Refused whole at sicoop: its answer says why, and nothing has moved."""
    references = play(world)
    date = world.red.node.calendar.business(world.clock.now_ns).compact
    for role in ("red", "sicoop", "ceibo"):
        world.kill(role)
    made = answer_of(cli("red", world, "conciliation", "make", "--network", "0012", "--date", date))
    carried = Path(shutil.copy(made["file"], tmp_path))
    carried.write_bytes(carried.read_bytes().replace(b";150000;R;", b";150001;R;", 1))
    refused = cli("sicoop", world, "conciliation", "read", carried)
    assert refused.exit_code == 1
    assert "does not agree" in carried.with_name(carried.name + ".ERR").read_text()
    shown = answer_of(cli("sicoop", world, "operation", references["unconfirmed"]))
    assert shown["sicoop"] == "RESPONDIDA"

    # Two persons may decide without a file; one alone may not.
    alone = ("--author", "ana", "--second", "ana", "--reason", "seen on the tape")
    words = ("resolve", references["unconfirmed"], "--as", "capture")
    assert cli("sicoop", world, *words, *alone).exit_code == 1
    assert answer_of(cli("sicoop", world, *words, *BOTH))["state"] in ("CONFIRMADA", "CAPTURADA")
    case = answer_of(cli("sicoop", world, "operation", references["unconfirmed"]))["case"]
    assert (case["author"], case["second"], case["outcome"]) == ("ana", "beto", "capture")


@pytest.mark.parametrize("at_red", ["REGISTRADA", "ERROR"])
def test_status_ends_what_was_not_confirmed(world: Apart, at_red: str) -> None:
    """No file is needed where red can be asked: sicoop asks after T_CONFIRM (X138)."""
    hold = "deliver" if at_red == "REGISTRADA" else "drop_answer"
    world.sessions.policy = lambda f: hold if f.what == "hold" else "hold"
    world.cash_out(1, A)
    world.pass_time(26)
    found = world.sicoop.at_sicoop(world.sicoop.reference(1))
    assert found is not None
    assert found.state == "RESPONDIDA"
    world.pass_time(70)  # T_CONFIRM is 60
    state = {"REGISTRADA": "CAPTURADA", "ERROR": "LIBERADA"}[at_red]
    assert world.states(1)[0] == at_red
    assert world.states(1)[2] == state
    assert [f.what for f in world.status.history] == ["status"]


def test_status_ends_what_red_had_begun(world: Apart) -> None:
    """The other way round: a red that was killed asks what became of its request (X104)."""
    world.sessions.policy = lambda f: "drop_answer" if f.what == "hold" else "hold"
    world.cash_out(1, A)
    world.kill("red")
    world.sessions.policy = deliver
    world.start("red")
    world.connect()
    world.pass_time(70)
    assert world.sessions.sent("status")
    assert world.states(1) == ("ERROR", "REVERSADA", "LIBERADA")
    assert world.query(1).instruction == "NO_ENTREGUE"


def test_holds_age_without_ending(world: Apart, cli: Cli) -> None:
    """ask-network: days later the hold is there, listed as an orphan, and two persons end it."""
    world.status.policy = only("status", "hold")
    world.sessions.policy = lambda f: "deliver" if f.what == "hold" else "hold"
    world.cash_out(1, A)
    operation = world.sicoop.at_sicoop(world.sicoop.reference(1))
    assert operation is not None
    for role in ("red", "sicoop"):
        world.kill(role)
    world.pass_time(20 * 3600, 600)
    world.kill("ceibo")
    rows = answer_of(cli("ceibo", world, "operations", "--stuck"))
    assert [(row["operation"], row["why"]) for row in rows] == [
        (operation.operation, "orphan hold")
    ]
    held = answer_of(cli("ceibo", world, "operation", operation.operation))
    assert held["ceibo"] == "ACTIVA"
    words = ("resolve", operation.operation, "--as", "release", "--network", "0012")
    assert cli("ceibo", world, *words, "--link", "sicoop", *BOTH[:4], "--reason", "").exit_code != 0
    told = answer_of(cli("ceibo", world, *words, "--link", "sicoop", *BOTH))
    assert told["state"] == "LIBERADA"
    assert answer_of(cli("ceibo", world, "operations", "--stuck")) == []
