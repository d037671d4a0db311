"""Where the text of a dialect comes from: files, what they extend, and the line of every key."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

KeyPath = tuple[str, ...]

DIRECTORY = Path(__file__).parent / "dialects"
SOURCE_BYTES_MAX = 1 << 20
EXTENDS_MAX = 8

_TABLE = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?$")
_STEP = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"\s*({_STEP}(?:\s*\.\s*{_STEP})*)\s*=")
_SYNTAX_LINE = re.compile(r"line (\d+)")


class Mistake(NamedTuple):
    """One thing wrong in a dialect.

    Fields:
        line: in the file, from 1; 0 where it was not read from one.
        where: the key: `elements.48.max`.
        what: what is wrong, and what is expected.
        source: the file's name; a dialect may extend others.
    """

    line: int
    where: str
    what: str
    source: str


class DialectError(ValueError):
    """A dialect that cannot be compiled, with every mistake in it.

    Attributes:
        mistakes: in the order of the file.
        line: of the first, 0 where it was not read from a file.
    """

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda m: (m.source, m.line))
        self.line = self.mistakes[0].line
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line of text per mistake: `file:line: key: what`."""
        return [
            f"{m.source}:{f'{m.line}:' if m.line else ''}{f' {m.where}:' if m.where else ''} "
            f"{m.what}"
            for m in self.mistakes
        ]


class Source:
    """The keys of a dialect with all it extends put under them, and where each one stands."""

    def __init__(self, spec: dict[str, Any], name: str) -> None:
        self.spec = spec
        self.name = name
        self.places: dict[KeyPath, tuple[str, int]] = {}

    def mistake(self, where: KeyPath, what: str) -> Mistake:
        """What is wrong at a key, with the line of the key, or of the table it is missing in."""
        for depth in range(len(where), 0, -1):
            if where[:depth] in self.places:
                source, line = self.places[where[:depth]]
                return Mistake(line, ".".join(where), what, source)
        return Mistake(0, ".".join(where), what, self.name)


def read(name: str | Path, relative_to: Path = DIRECTORY, depth: int = 0) -> Source:
    """Read a dialect shipped with us (a bare name) or a file, and what it extends.

    Raises:
        DialectError: no such dialect, no TOML, or too many that extend one another.
    """
    path = _path_of(name, relative_to)
    label = path.name
    try:
        data = path.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DialectError(
            [Mistake(0, "", f"cannot be read: {_cause(error)}", str(path))]
        ) from None
    if len(data) > SOURCE_BYTES_MAX:
        raise DialectError([Mistake(0, "", f"longer than {SOURCE_BYTES_MAX} bytes", label)])
    try:
        spec = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _SYNTAX_LINE.search(str(error))
        line = int(found[1]) if found else len(text.splitlines())
        raise DialectError([Mistake(line, "", f"no TOML: {error}", label)]) from None
    source = Source(spec, label)
    source.places = {where: (label, line) for where, line in lines_of(text).items()}
    return extended(source, path.parent, depth)


def extended(source: Source, directory: Path, depth: int = 0) -> Source:
    """Put a dialect over the one that it extends.

    Raises:
        DialectError: as `read`.
    """
    name = source.spec.get("extend")
    if name is None:
        return source
    if not isinstance(name, str):
        raise DialectError([source.mistake(("extend",), "expected the name of a dialect")])
    if depth >= EXTENDS_MAX:
        what = f"more than {EXTENDS_MAX} dialects extend one another"
        raise DialectError([source.mistake(("extend",), what)])
    try:
        below = read(name, directory, depth + 1)
    except DialectError as error:
        if any(m.line for m in error.mistakes):
            raise
        what = error.mistakes[0].what
        raise DialectError([source.mistake(("extend",), f"{name}: {what}")]) from None
    removed = source.spec.get("remove", [])
    elements = below.spec.get("elements", {})
    for number in removed if isinstance(removed, list) else []:
        if isinstance(elements, dict) and elements.pop(str(number), None) is None:
            what = f"{below.name} has no element {number}"
            raise DialectError([source.mistake(("remove",), what)])
    above = {key: value for key, value in source.spec.items() if key not in ("extend", "remove")}
    out = Source(_merged(below.spec, above), source.name)
    out.places = below.places | source.places
    return out


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables key by key, all else replaced; a fixed length and a prefix exclude each other."""
    out = dict(below)
    if "length" in above:
        for key in ("prefix", "max", "min"):
            out.pop(key, None)
    elif "max" in above or "prefix" in above:
        out.pop("length", None)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


def _path_of(name: str | Path, relative_to: Path) -> Path:
    text = str(name)
    if isinstance(name, Path) or text.endswith(".toml") or "/" in text:
        return relative_to / name if relative_to != DIRECTORY else Path(name)
    return DIRECTORY / f"{text}.toml"


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        shipped = ", ".join(sorted(path.stem for path in DIRECTORY.glob("*.toml")))
        return f"there is no such dialect (there are: {shipped})"
    return error.strerror or "?" if isinstance(error, OSError) else "it is not UTF-8"


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line of every table and key of a valid TOML text; keys of an inline table share its."""
    places: dict[KeyPath, int] = {}
    table: KeyPath = ()
    open_brackets = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if open_brackets > 0:
            open_brackets += _brackets(line)
            continue
        header = _TABLE.match(line)
        key = _KEY.match(line)
        if header:
            table = _steps(header[1])
            where = table
        elif key:
            where = table + _steps(key[1])
            open_brackets = _brackets(line[key.end() :])
        else:
            continue
        for depth in range(1, len(where) + 1):
            places.setdefault(where[:depth], number)
        places[where] = number
    return places


def _steps(dotted: str) -> KeyPath:
    nested: Any = tomllib.loads(f"{dotted} = 0")
    steps: list[str] = []
    while isinstance(nested, dict):
        step, nested = next(iter(nested.items()))
        steps.append(step)
    return tuple(steps)


def _brackets(text: str) -> int:
    """Brackets opened and not closed on a line, strings and comments aside."""
    bare = re.sub(r"\"(?:\\.|[^\"\\])*\"|'[^']*'|#.*", "", text)
    return sum(bare.count(c) for c in "[{") - sum(bare.count(c) for c in "]}")
