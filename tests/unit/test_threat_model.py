"""Every test that the threat model names exists, so that no control rests on a name."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = re.compile(r"_(?:[A-Z][0-9]{1,3}_)+")  # ids of cases in front of what a name says
NAMED = re.compile(r"`([a-z0-9_]+/test_[a-z0-9_]+\.py)::([A-Za-z0-9_]+)`")


def collected(path: Path) -> set[str]:
    """What pytest would collect of a file, by names without the ids of cases."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {CASES.sub("_", name) for name in found}


def test_every_named_test_exists() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = NAMED.findall(text)
    assert len(named) > 50
    missing = []
    for file, test in named:
        path = ROOT / "tests" / file
        if not path.exists() or CASES.sub("_", test) not in collected(path):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_every_threat_has_a_control_and_a_test() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    section = text.split("## Threats, controls, tests")[1].split("\n## What is left\n")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row[0].startswith("| threat")]
    assert len(rows) > 25
    for threat, control, tests in rows:
        assert len(control) > 10, threat
        assert NAMED.search(tests), threat
