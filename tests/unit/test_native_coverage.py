"""Figures of the native core: C that Cython made is led back to the lines it was made of."""

import importlib.util
import subprocess
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

# As Cython writes it: a comment before the C of each line, then what it adds at the end.
MADE = """\
/* "core_ext/_x.pyx":1
 * cdef int sign(int x):             # <<<<<<<<<<<<<<
 *     if x < 0:
 */
static int __pyx_f_sign(int __pyx_v_x) {
  int __pyx_r;
  int __pyx_t_1;
  /* "core_ext/_x.pyx":2
 *     if x < 0:             # <<<<<<<<<<<<<<
 */
  __pyx_t_1 = (__pyx_v_x < 0);
  if (__pyx_t_1) {
    /* "core_ext/_x.pyx":3
 *         return -1             # <<<<<<<<<<<<<<
 */
    __pyx_r = -1;
    goto __pyx_L0;
  }
  /* "core_ext/_x.pyx":4
 *     return 1             # <<<<<<<<<<<<<<
 */
  __pyx_r = 1;
  if (__builtin_expect(__pyx_r == 7, 0)) goto __pyx_L0;
  /* function exit code */
  __pyx_L0:;
  return __pyx_r;
}
int main(void) { return __pyx_f_sign(5) - __pyx_f_sign(6); }
"""
SOURCE = "cdef int sign(int x):\n    if x < 0:\n        return -1\n    return 1\n"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("native", ROOT / "tools" / "native_coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_and_branches_of_what_has_run(
    tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    objects = tmp_path / "objects" / "core_ext"
    objects.mkdir(parents=True)
    (tmp_path / "core_ext").mkdir()
    (tmp_path / "core_ext" / "_x.pyx").write_text(SOURCE)
    (tmp_path / "_x.c").write_text(MADE)
    subprocess.run(["gcc", "--coverage", "-O0", "-c", "_x.c", "-o", objects / "_x.o"], check=True)
    subprocess.run(["gcc", "--coverage", objects / "_x.o", "-o", "x"], check=True)
    subprocess.run(["./x"], check=True)
    sources = defaultdict(dict)
    for notes in objects.glob("*.gcno"):
        tool.add_object(sources, notes)
    found = sources["core_ext/_x.pyx"]
    assert {number: line.count > 0 for number, line in found.items()} == {
        1: True, 2: True, 3: False, 4: True,
    }  # fmt: skip
    # One decision, with two ways out; the check that Cython adds in line 4 is none.
    assert sorted(found[2].branches.values()) == [0, 2]
    assert found[4].branches == {}
    tool.report(sources, missing=True)
    told = capsys.readouterr().out
    assert "75.0 %" in told
    assert "50.0 %" in told
    assert "\n    3\n" in told


def test_numbers_are_told_as_spans(tool: ModuleType) -> None:
    assert tool.spans([3, 4, 5, 9]) == "3-5, 9"
    assert tool.spans([]) == ""


def test_assertions_are_not_asked_for(
    tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pyx").write_text("assert x\nx = 1\n")
    source = {1: tool.Line(1, {(1, 0): 0}), 2: tool.Line(1)}
    assert list(tool.without_assertions("a.pyx", source)) == [2]
