"""Lines and branches of the native core, from a build with `TRONCAL_TRACE=1` that tests have run.

Cython's own tracing cannot look into `nogil` functions and calls Python at every line; the C
compiler's counters can and do not, and see threads and processes too. So gcov counts the generated
C, and the comments that Cython writes into it lead each line back to its source.

A source line has run when any of its C has. Its branches are the decisions that it spells out
(`if`, `while`, `for`, `and`, `or`); what Cython adds to look for errors after calls is left out,
and so are assertions, whose other side must never be seen. An inline function of a `.pxd` counts
wherever it is compiled in.

    python tools/native_coverage.py [--missing] DIRECTORY

DIRECTORY is that of the objects (`build/temp…`); the run was made, and this is called, in the root
of the sources.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PART = "core_ext/"
ORIGIN = re.compile(r'\s*/\* "(?P<file>[^"]+)":(?P<line>\d+)$')
ENDS = ("/* function exit code */", "/* Late includes */")
VALUE = r"!?\(?!?(?:__pyx_[tv]_\w+)\)?"
DECISION = re.compile(
    rf"\s*(?:\}} else )?(?:if \((?:un)?(?:likely)?\(?{VALUE}\)?\) (?:\{{|break;)"
    r"|for \(__pyx_t_.*\{|switch \((?!__pyx_nargs).*\{|while \(__pyx.*\{|while \(\(.*\{)$"
)
UNASKED = ("__pyx_pw_", "__pyx_pymod_exec", "__Pyx_modinit")  # reading arguments; imports
ASSERTION = re.compile(r"\s*(assert\b|raise AssertionError)")


@dataclass
class Line:
    """Runs of one source line, and of each way out of each decision of it."""

    count: int = 0
    branches: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass
class Origin:
    """Where a line of C comes from; `decision` numbers those of one source line."""

    file: str
    line: int
    decision: int


Source = dict[int, Line]


def origins(c_lines: Iterable[str]) -> Iterator[Origin | None]:
    """For each line of C the line that it was made of; None for what Cython adds itself."""
    current: tuple[str, int] | None = None
    decisions: defaultdict[tuple[str, int], int] = defaultdict(int)
    in_comment = False
    for text in c_lines:
        if found := ORIGIN.match(text):
            current = (found["file"], int(found["line"]))
            in_comment = True
        elif in_comment:
            in_comment = not text.endswith("*/")
        elif text.strip() in ENDS or text == "}":
            current = None
        if current is None or in_comment or found or not current[0].startswith(PART):
            yield None
            continue
        number = 0
        if DECISION.match(text):
            decisions[current] += 1
            number = decisions[current]
        yield Origin(*current, number)


def counted(notes: Path) -> dict[str, Any]:
    """What gcov knows about one object file: file names with counts of their lines."""
    command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(notes)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return {file["file"]: file["lines"] for file in json.loads(done.stdout)["files"]}


def add_object(sources: defaultdict[str, Source], notes: Path) -> None:
    """Add the counts of one object file to those of the sources in it."""
    for name, lines in counted(notes).items():
        if not name.endswith(".c"):
            continue
        places = list(origins(Path(name).read_text().splitlines()))
        for counts in lines:
            place = places[counts["line_number"] - 1]
            if place is None:
                continue
            line = sources[place.file].setdefault(place.line, Line())
            line.count += counts["count"]
            if not place.decision or counts.get("function_name", "").startswith(UNASKED):
                continue
            for way, branch in enumerate(counts["branches"]):
                key = (place.decision, way)
                line.branches[key] = line.branches.get(key, 0) + branch["count"]


def without_assertions(name: str, source: Source) -> Source:
    """The lines that are to run."""
    text = Path(name).read_text().splitlines()
    return {number: line for number, line in source.items()
            if not ASSERTION.match(text[number - 1])}  # fmt: skip


def spans(numbers: Sequence[int]) -> str:
    """`3-5, 9` for 3, 4, 5, 9."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def row(name: str, lines: int, missed: int, branches: int, untaken: int) -> str:
    def share(of: int, less: int) -> str:
        return f"{100 * (of - less) / of:7.1f} %" if of else "       - "

    return (f"{name:32}{lines:7}{missed:8}{share(lines, missed)}"
            f"{branches:10}{untaken:8}{share(branches, untaken)}")  # fmt: skip


def report(sources: dict[str, Source], *, missing: bool) -> None:
    print(f"{'native core':32}{'lines':>7}{'missed':>8}{'':9}{'branches':>10}{'untaken':>8}")
    total = [0, 0, 0, 0]
    for name, whole in sorted(sources.items()):
        source = without_assertions(name, whole)
        missed = sorted(number for number, line in source.items() if not line.count)
        ways = [count for line in source.values() for count in line.branches.values()]
        figures = [len(source), len(missed), len(ways), ways.count(0)]
        total = [a + b for a, b in zip(total, figures, strict=True)]
        print(row(name, *figures))
        if missing and missed:
            print(f"    {spans(missed)}")
        partly = sorted(number for number, line in source.items()
                        if line.count and 0 in line.branches.values())  # fmt: skip
        if missing and partly:
            print(f"    partly {spans(partly)}")
    print(row("TOTAL", *total))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="name the lines")
    parser.add_argument("directory", type=Path, help="of the objects")
    asked = parser.parse_args()
    sources: defaultdict[str, Source] = defaultdict(dict)
    for notes in sorted(asked.directory.rglob("core_ext/*.gcno")):
        add_object(sources, notes)
    if not sources:
        print(f"no build with counters in {asked.directory}", file=sys.stderr)
        return 1
    report(sources, missing=asked.missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
