"""`conciliation`, `resolve`, `operations --stuck` as commands: on stopped data, and on a node."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from protocols.messages import Confirm, Reverse
from switch.cli import root
from tests.e2e.test_commands import LISTENERS, ROOT, serving
from tests.house import SMALL_JOURNAL, House, ManualClock
from tests.offices import Office

A = 150_000
DAY_NS = 86_400 * 10**9
BOTH = ("--author", "ana", "--second", "beto", "--reason", "seen on the tape")
Cli = Callable[..., Result]


class Past:
    """A node's directory with the operations of the day before yesterday."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listen = "".join(f'{name} = "127.0.0.1:0"\n' for name in LISTENERS)
        day = time.time_ns() // DAY_NS - 2
        # Four in the afternoon UTC: at noon, local time, whatever the season.
        clock = ManualClock(day * DAY_NS + 16 * 3600 * 10**9)
        self.house = House(directory, toml=f"[listen]\n{listen}{SMALL_JOURNAL}", clock=clock)
        key = directory / "master.key"
        key.touch(mode=0o600)
        key.write_text(bytes(range(32)).hex() + "\n")
        self.date = self.house.node.calendar.business(clock.now_ns).compact
        self.office = Office(self.house)
        self.references: dict[str, str] = {}
        self.house.cash_out(A)
        self.house.clock.advance(60)
        self.house.deposit(A)
        for trace, name in enumerate(("unconfirmed", "reversed", "conflict"), 3):
            self.references[name] = self._play(trace, name)

    def _play(self, trace: int, name: str) -> str:
        self.house.clock.advance(60)
        reference = self.house.reference(trace)
        self.house.network(self.house.hold(reference, A))
        if name == "reversed":
            self.house.network(Reverse(2, reference, A, "timeout"))
        if name == "conflict":
            self.house.network(Confirm(2, reference, ""))
            self.house.network(Reverse(3, reference, A, "timeout"))
        return reference

    def close(self) -> None:
        self.house.close()


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TRONCAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(params=["stopped", "running"])
def past(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Past]:
    """The directory; its node is stopped, or runs in another process."""
    found = Past(tmp_path)
    monkeypatch.setenv("TRONCAL_CONFIG", str(tmp_path / "troncal.toml"))
    with ExitStack() as stack:
        found.lines = [  # type: ignore[attr-defined]
            found.office.line(found.references[name], business_date=found.date)
            for name in ("unconfirmed", "reversed")
        ]
        found.close()
        if request.param == "running":
            stack.enter_context(serving(tmp_path))
        yield found


@pytest.fixture
def cli() -> Cli:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(root, [str(a) for a in arguments], prog_name="troncal")

    return run


def answer_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_day_from_file_to_settlement(past: Past, cli: Cli) -> None:
    made = answer_of(
        cli("conciliation", "make", "--network", "0012", "--date", past.date, "--json")
    )
    path = Path(made["file"])
    assert path == past.directory / "conciliation" / "red" / f"CONC_0012_{past.date}_1.csv"
    assert (made["count"], made["cash_out"], made["deposit"]) == (2, A, A)

    # red's own file has no line of what only its network's session asked for.
    assert cli("conciliation", "compare", path).exit_code == 1
    told = answer_of(cli("conciliation", "read", path, "--json"))
    assert told["counts"] == {"conciliate": 2, "release": 1, "agrees": 1, "differs": 1}
    assert told["differences"] == {"en conflicto": 1}
    assert path.with_name(path.name + ".OK").exists()
    assert "en conflicto" in Path(told["report"]).read_text()
    again = cli("conciliation", "read", path, "--json")
    assert json.loads(again.stdout)["state"] in ("known", "again")

    stuck = answer_of(cli("operations", "--stuck", "--json"))
    conflict = past.references["conflict"]
    assert {(row["role"], row["reference"]) for row in stuck} == {
        ("sicoop", conflict), ("case", conflict),
    }  # fmt: skip
    assert cli("resolve", conflict, "--as", "annul", "--author", "ana", "--second", "Ana",
               "--reason", "x").exit_code == 1  # fmt: skip
    answer_of(cli("resolve", conflict, "--as", "annul", *BOTH, "--json"))
    shown = answer_of(cli("operation", conflict, "--json"))
    assert (shown["sicoop"], shown["case"]["second"]) == ("REVERSADA", "beto")
    assert answer_of(cli("operations", "--stuck", "--json")) == []

    closed = answer_of(cli("conciliation", "settle", "close", "--json"))
    assert (closed["sum"], closed["window"]) == (0, 1)
    issued = answer_of(cli("conciliation", "settle", "issue", 1, "--json"))
    (statement,) = issued["files"]
    assert Path(statement).read_text().startswith("S;1;0012;1;PYG;")
    status = answer_of(cli("conciliation", "status", "--all", "--json"))
    assert [f["state"] for f in status["files"]] == ["done"]
    assert [c["outcome"] for c in status["cases"]] == ["annul"]
    assert answer_of(cli("verify", "--json"))["ok"]


def test_two_persons_pay_and_adjust(past: Past, cli: Cli, tmp_path: Path) -> None:
    answer_of(cli("resolve", past.references["unconfirmed"], "--as", "capture", *BOTH, "--json"))
    answer_of(cli("conciliation", "settle", "close", "--json"))
    answer_of(cli("conciliation", "settle", "issue", 1, "--json"))
    pay = ("conciliation", "settle", "pay", 1, "--network", "0012", "--bank", "bcp")
    paid = answer_of(cli(*pay, *BOTH, "--json"))
    assert [p["bank"] for p in paid["positions"] if p["name"] == "net:0012"] == ["bcp"]
    assert cli(*pay, *BOTH).exit_code == 1
    evidence = tmp_path / "acta.pdf"
    evidence.write_bytes(b"%PDF")
    adjust = ("conciliation", "adjust", "--account", "net:0012", "--amount", 1000,
              "--direction", "debit", "--evidence", evidence)  # fmt: skip
    assert answer_of(cli(*adjust, *BOTH, "--json"))["adjustment"] == 1
    kept = list((tmp_path / "data" / "evidence").iterdir())
    assert [path.read_bytes() for path in kept] == [b"%PDF"]
    (row,) = answer_of(cli("conciliation", "status", "--json"))["adjustments"]
    assert (row["author"], row["second"], row["evidence"]) == ("ana", "beto", "acta.pdf")


def test_all_files_of_a_directory(past: Past, cli: Cli, tmp_path: Path) -> None:
    make = ("conciliation", "make", "--network", "0012", "--date", past.date, "--json")
    made = [Path(answer_of(cli(*make))["file"]) for _ in range(2)]
    assert [path.name[-5:] for path in made] == ["1.csv", "2.csv"]
    bad = made[0].with_name(f"CONC_0012_{past.date}_3.csv")
    bad.write_text("H;1\n")
    told = cli("conciliation", "read", bad.parent, "--json")
    assert (told.exit_code, [a["state"] for a in json.loads(told.stdout)]) == (
        1, ["new", "replaces", "refused"],
    )  # fmt: skip
    assert answer_of(cli("conciliation", "read", bad.parent, "--json")) == []


def test_file_of_ceibo(past: Past, cli: Cli) -> None:
    make = ("conciliation", "make", "--network", "0012", "--date", past.date, "--json")
    made = answer_of(cli(*make, "--role", "ceibo", "--format", "fixed"))
    assert (made["count"], made["file"][-6:]) == (4, "_1.txt")
    assert cli("conciliation", "compare", made["file"], "--issuer", "ceibo").exit_code == 0
    told = answer_of(cli("conciliation", "read", made["file"], "--issuer", "ceibo", "--json"))
    assert (told["state"], told["differences"]) == ("compared", {})
    contested = past.references["reversed"]
    disputed = ("conciliation", "dispute", contested, "--author", "ana", "--reason", "not paid")
    assert answer_of(cli(*disputed, "--json"))["case"] == "disputa"
    assert cli(*disputed).exit_code == 1
    assert "disputa" in cli("operations", "--stuck").output


def test_mistakes_are_told(past: Past, cli: Cli, tmp_path: Path) -> None:
    today = time.strftime("%Y%m%d", time.localtime(time.time() + 86_400))
    early = cli("conciliation", "make", "--network", "0012", "--date", today)
    assert (early.exit_code, "has not ended" in early.output) == (1, True)
    bad = tmp_path / f"CONC_0012_{past.date}_1.csv"
    bad.write_text(f"H;1;0012;{past.date};1;20260102031500\nD;x\n")
    refused = cli("conciliation", "read", bad)
    assert refused.exit_code == 1
    assert "line 2: has 2 fields, not 14" in refused.output
    assert "line 2: has 2 fields" in bad.with_name(bad.name + ".ERR").read_text()
    assert cli("resolve", "1", "--as", "capture", *BOTH).exit_code == 2
    assert cli("resolve", "9" * 26, "--as", "capture", *BOTH).exit_code == 1
    status = answer_of(cli("conciliation", "status", "--json"))
    assert status == {"files": [], "cases": [], "windows": [], "adjustments": []}
