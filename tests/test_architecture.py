"""The plan of the house, kept by looking at every source file.

Imports go one way, ``switch`` → ``protocols`` → ``core_ext``; what decides knows neither sockets
nor clocks; the list of native modules equals the files on disk. A failure here names the file and
the line, and the rule stands beside it.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core_ext", "protocols", "switch", "bench")
FUNCTION_LINES_MAX = 70

# What must be given from outside: a clock, a wire, chance, another thread.
OUTSIDE = ("socket", "time", "threading", "random", "select", "selectors", "asyncio", "trio", "ssl")
CLOCK_CALLS = ("now", "utcnow", "today", "uuid1", "uuid4")

# Room → what it may not import; the longest name wins nothing, all that match apply.
FORBIDDEN = {
    "core_ext": ("protocols", "switch", "bench", "tests", *OUTSIDE),
    "protocols": ("switch", "bench", "tests", *OUTSIDE),
    "switch": ("bench.micro", "tests"),
    "switch.flows": ("switch.net", "switch.web", "switch.app", "switch.cli", "http", *OUTSIDE),
    "switch.net": ("switch.flows", "switch.app", "switch.cli"),
    "switch.calendar": OUTSIDE,
    "switch.limits": OUTSIDE,
}
CLOCKLESS = ("core_ext", "protocols", "switch.flows", "switch.calendar", "switch.limits")


def files(*suffixes: str, rooms: tuple[str, ...] = ROOMS) -> list[Path]:
    """Every source file of the rooms, relative to the root."""
    found = [
        path.relative_to(ROOT)
        for room in rooms
        for path in (ROOT / room).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    ]
    assert found, f"no {suffixes} in {rooms}"
    return sorted(found)


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def python_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, those inside functions included."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse((ROOT / path).read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


NATIVE_IMPORT = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w., ]+?)(?:\s+as\s+\w+)?\s*(?:#.*)?$)"
)


def native_imports(path: Path) -> Iterator[tuple[int, str]]:
    """The same of a Cython file, line by line: its grammar is not Python's."""
    for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1):
        found = NATIVE_IMPORT.match(line)
        if found:
            for name in (found[1] or found[2]).split(","):
                yield number, name.strip()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    native = path.suffix in (".pyx", ".pxd")
    yield from native_imports(path) if native else python_imports(path)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{path}:{line}: {room} may not import {name}"
        for path in files(".py", ".pyi", ".pyx", ".pxd")
        for room, forbidden in FORBIDDEN.items()
        if within(module_of(path), room)
        for line, name in imports(path)
        if any(within(name, other) for other in forbidden)
    ]
    assert wrong == []


def test_nothing_that_decides_reads_a_clock() -> None:
    """Instants are given: nobody calls datetime.now() or date.today() on the way."""
    wrong = [
        f"{path}:{node.lineno}: .{node.func.attr}() in {module_of(path)}"
        for path in files(".py")
        if any(within(module_of(path), room) for room in CLOCKLESS)
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCK_CALLS
    ]
    assert wrong == []


def test_the_import_reader_sees_what_it_must() -> None:
    """The rules above are worth as much as the reader under them."""
    samples = {
        "from libc.time cimport time": ["libc.time"],
        "import time, random": ["time", "random"],
        "    import socket as s  # late": ["socket"],
        "from switch.config import load": ["switch.config"],
        "cimport cython": ["cython"],
        "important = 1": [],
    }
    for line, expected in samples.items():
        found = NATIVE_IMPORT.match(line)
        names = [n.strip() for n in (found[1] or found[2]).split(",")] if found else []
        assert names == expected, line
    assert any(name.startswith("switch.limits.") for _, name in imports(Path("switch/config.py")))


def native_sources() -> list[Path]:
    return files(".pyx", rooms=("core_ext", "bench"))


def test_the_list_of_native_modules_equals_the_files() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "MODULES"
    )
    assert sorted(listed) == sorted(module_of(path) for path in native_sources())


@pytest.mark.parametrize("source", native_sources(), ids=str)
def test_every_native_module_has_its_stub(source: Path) -> None:
    assert (ROOT / source.with_suffix(".pyi")).is_file()


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


def test_functions_fit_on_a_page() -> None:
    long = [
        f"{path}:{line}: {name} has {count} lines"
        for path in files(".py")
        for name, line, count in functions(path)
        if count > FUNCTION_LINES_MAX
    ]
    assert long == []


def tracked() -> list[Path]:
    """The files of the project: what git knows or would add, else all but what is built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if done.returncode == 0 and done.stdout:
            names = done.stdout.decode().split("\0")
            return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    built = re.compile(r"(^|/)(\.[^/]+|build|dist|__pycache__|[^/]+\.egg-info)/")
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not built.search(path.relative_to(ROOT).as_posix())
    ]


def test_no_file_names_the_machine_it_was_written_on() -> None:
    """Paths of somebody's machine help nobody else, and go stale at once."""
    places = [rb"/(?:wor" + rb"k|far" + rb"m)/", rb"\.\./" + rb"shared\b", rb"/root/" + rb"\."]
    pattern = re.compile(b"|".join(places))
    wrong = []
    for path in tracked():
        if path.suffix in (".so", ".pyc", ".png", ".c"):
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if pattern.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}")
    assert wrong == []
