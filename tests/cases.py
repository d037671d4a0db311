"""The table of the acceptance cases, made from the tests themselves.

`python -m tests.cases` (`make cases`) collects every file with a test that names a case, and writes
docs/cases.md: for each case its trigger, its end state, the tests whose names hold its id, and the
layouts they run in. The layout of a test is the parameter that it is collected with, or its mark
`layouts`; nothing is written by hand but the reasons in `ONE_LAYOUT`.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "vectors" / "cashier_failures.json"
TABLE = ROOT / "docs" / "cases.md"
TOGETHER, APART = "together", "apart"
_ID = re.compile(r"(?<=[_\[-])(X\d{3}|[CDIKLPRSTV]\d{2})(?=[_\]-]|$)", re.ASCII)
_NAMED = re.compile(r"def test_(?:[A-Z0-9]+_)*(?:X\d{3}|[CDIKLPRSTV]\d{2})_", re.ASCII)
_WAY = "roles of one process call each other: there is no connection that could fail"
ONE_LAYOUT = {
    "X105": (APART, f"sicoop refuses the connection; {_WAY}"),
    "X109": (APART, f"ceibo refuses the connection; {_WAY}"),
    "P01": (APART, f"TCP is up and silent; {_WAY}"),
    "P02": (APART, f"the link to ceibo is down; {_WAY}"),
    "P03": (APART, f"the link flaps; {_WAY}"),
    "P05": (APART, f"one of several connections dies; {_WAY}"),
    "P06": (APART, "within a process an answer is the end of a call: it cannot be lost"),
    "P10": (APART, f"a partition between roles heals; {_WAY}"),
}
"""Cases that make sense in one layout only: which, and why."""

HEAD = """\
# Acceptance cases

Made by `make cases` from the vectors and from the tests that pytest collects; do not edit. The
trigger and the required end are those of `tests/vectors/cashier_failures.json`. *Together*: red,
sicoop and ceibo in one process; *apart*: each on its own. A number is how many tests of a name run
in that layout. Tests of a part by itself, such as a codec, have no layout.

"""


@dataclass
class Found:
    """What stands for one case: test names by file, with how often each is run in each layout."""

    tests: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)

    def count(self, layout: str) -> int:
        return sum(runs.get(layout, 0) for runs in self.tests.values())


def vectors() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(CASES.read_text())
    return found


def ids(name: str) -> list[str]:
    """The ids of cases in the name of a test or of one of its runs."""
    return list(dict.fromkeys(_ID.findall(name)))


def layouts(item: pytest.Item) -> tuple[str, ...]:
    """The layouts that an item runs in; none: it is about one part only."""
    call = getattr(item, "callspec", None)
    if call is not None and "layout" in call.params:
        return (str(call.params["layout"]),)
    mark = item.get_closest_marker("layouts")
    return () if mark is None else tuple(mark.args)


def tally(items: Iterable[pytest.Item]) -> dict[str, Found]:
    """What the collected items are to each case."""
    found: dict[str, Found] = {}
    for item in items:
        name = getattr(item, "originalname", item.name)
        file = item.path.relative_to(ROOT).as_posix()
        for case in ids(item.name):
            runs = found.setdefault(case, Found()).tests.setdefault((file, name), {})
            for layout in layouts(item) or ("",):
                runs[layout] = runs.get(layout, 0) + 1
    return found


class _Collector:
    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collect() -> dict[str, Found]:
    """Collect, in this process, every file with a test that names a case.

    Raises:
        SystemExit: it cannot be collected; with pytest's output.
    """
    collector = _Collector()
    files = (
        path for path in (ROOT / "tests").rglob("test_*.py") if _NAMED.search(path.read_text())
    )
    arguments = ["--collect-only", "-qq", "-p", "no:cacheprovider", *map(str, sorted(files))]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = pytest.main(arguments, plugins=[collector])
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"the suite cannot be collected:\n{output.getvalue()[-4000:]}")
    return tally(collector.items)


def problems(found: dict[str, Found]) -> list[str]:
    """Cases without a test, or without one in a layout in which they make sense."""
    told = []
    known = {case["id"] for case in vectors()}
    told += [f"{case}: no such case" for case in sorted(set(found) - known)]
    for case in sorted(known):
        one = found.get(case)
        if one is None:
            told.append(f"{case}: no test")
            continue
        only = ONE_LAYOUT.get(case, ("",))[0]
        for layout in (TOGETHER, APART):
            runs = one.count(layout)
            if not runs and only in ("", layout):
                told.append(f"{case}: no test {layout}")
            elif runs and only not in ("", layout):
                told.append(f"{case}: said to make no sense {layout}, but there is a test")
    return told


def table(found: dict[str, Found]) -> str:
    """The text of docs/cases.md."""
    lines = [HEAD, _summary(found), "\n"]
    group = ""
    for case in vectors():
        if case["group"] != group:
            group = case["group"]
            lines.append(f"\n## {group}\n\n| case | trigger | end | tests |\n|---|---|---|---|\n")
        trigger, end = case["trigger"].replace("|", "\\|"), case["end"]
        tests = "<br>".join(_tests(found.get(case["id"], Found())))
        lines.append(f"| {case['id']} | {trigger} | {end} | {tests} |\n")
    lines.append("\n## In one layout only\n\n| case | layout | why |\n|---|---|---|\n")
    lines += [f"| {case} | {only} | {why} |\n" for case, (only, why) in ONE_LAYOUT.items()]
    return "".join(lines)


def _summary(found: dict[str, Found]) -> str:
    cases = [found.get(case["id"], Found()) for case in vectors()]
    both = sum(bool(one.count(TOGETHER) and one.count(APART)) for one in cases)
    tests = {test for one in cases for test in one.tests}
    return (
        f"{len(cases)} cases, {len(tests)} tests; {both} cases run in both layouts, "
        f"{sum(bool(one.count(TOGETHER)) for one in cases)} together, "
        f"{sum(bool(one.count(APART)) for one in cases)} apart.\n"
    )


def _tests(found: Found) -> list[str]:
    told = []
    for (file, name), runs in sorted(found.tests.items()):
        where = ", ".join(f"{layout} {count}" for layout, count in sorted(runs.items()) if layout)
        place = file.removeprefix("tests/").removesuffix(".py")
        told.append(f"`{place}::{name}`" + (f" ({where})" if where else ""))
    return told


def main(arguments: list[str]) -> int:
    """Write the table, or with `--check` only compare it; 1 where something is missing."""
    found = collect()
    told = problems(found)
    if arguments == ["--check"]:
        if not TABLE.exists() or TABLE.read_text(encoding="utf-8") != table(found):
            told.append("docs/cases.md is not current: `make cases`")
    else:
        TABLE.write_text(table(found), encoding="utf-8")
    print(*told, sep="\n")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
