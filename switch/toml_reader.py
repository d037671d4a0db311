"""Read a TOML text into msgspec Structs, and tell every mistake with its line, all at once.

An operator who corrects one mistake per start is an operator who starts a payments switch ten
times. So nothing here stops at the first mistake: a bad value is noted, its default takes its
place, and reading goes on. The schema is the Structs themselves: types, ranges and descriptions
stand in ``msgspec.Meta`` and nowhere else.
"""

import datetime
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

KeyPath = tuple[str, ...]

# The unit is the last word of a key's name.
UNITS = {
    "_s": "seconds",
    "_h": "hours",
    "_hours": "hours",
    "_bytes": "bytes",
    "_bytes_max": "bytes",
}


class Mistake(msgspec.Struct, frozen=True):
    """One thing wrong in the configuration.

    Fields:
        line: line in the file, from 1; 0 when it stands in the environment or in an option.
        where: the key (``session.heartbeat_s``), or the name of the environment variable.
        what: what is wrong, and what is expected.
        hint: what to do about it; may be empty.
    """

    line: int
    where: str
    what: str
    hint: str = ""


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        path: the file read.
        mistakes: all of them, in the order of the file.
    """

    def __init__(self, path: Path, mistakes: Iterable[Mistake]) -> None:
        self.path = path
        self.mistakes = sorted(mistakes, key=lambda m: m.line)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return one line of text per mistake, ``file:line: key: what (hint)``."""
        return [
            (f"{self.path}:{m.line}: " if m.line else "")
            + (f"{m.where}: {m.what}" if m.where else m.what)
            + (f" ({m.hint})" if m.hint else "")
            for m in self.mistakes
        ]


class Override(NamedTuple):
    """A value given outside the file: its text, and the name its giver knows it by."""

    text: str
    origin: str


def line_index(text: str) -> dict[KeyPath, int]:
    """Return the line of every table header and key of a *valid* TOML text.

    Of a list each entry has a line, under the name ``[0]``, ``[1]`` …, whether it stands in
    brackets or as ``[[table]]``; the keys inside an inline table are not listed, they share its
    line.
    """
    index: dict[KeyPath, int] = {}
    lists: dict[KeyPath, int] = {}
    table: KeyPath = ()
    key: KeyPath = ()
    state = _Scan()
    for number, line in enumerate(text.split("\n"), start=1):
        if state.inside:
            for row in state.take(line):
                index[table + key + (f"[{row}]",)] = number
            continue
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.startswith("["):
            table = _table_path(tomllib.loads(stripped), stripped.startswith("[["), lists)
            for depth in range(1, len(table) + 1):
                index.setdefault(table[:depth], number)
            continue
        equals = _first_equals(line)
        key = _path_of(tomllib.loads(line[:equals] + "= 0"))
        for depth in range(1, len(key) + 1):
            index.setdefault(table + key[:depth], number)
        state.begin_value()
        for row in state.take(line[equals + 1 :]):
            index[table + key + (f"[{row}]",)] = number
    return index


def line_of(index: Mapping[KeyPath, int], where: KeyPath) -> int:
    """Return the line of a key, or of the innermost table around it that has one; else 0."""
    for depth in range(len(where), 0, -1):
        if where[:depth] in index:
            return index[where[:depth]]
    return 0


def named(where: KeyPath) -> str:
    """Return a key's path as people write it: ``routes[2].to``."""
    return ".".join(where).replace(".[", "[")


def _table_path(nested: Any, is_list: bool, lists: dict[KeyPath, int]) -> KeyPath:
    """Return the path of a table header; inside a list of tables, its newest entry's."""
    *outer, last = _path_of(nested)
    path: KeyPath = ()
    for name in outer:
        path += (name,)
        if path in lists:
            path += (f"[{lists[path] - 1}]",)
    path += (last,)
    if is_list:
        lists[path] = lists.get(path, 0) + 1
    return (*path, f"[{lists[path] - 1}]") if path in lists else path


class _Scan:
    """Follow brackets and strings over lines, to know where a value and a list's entries are."""

    def __init__(self) -> None:
        self.depth = 0
        self.quote = ""
        self.rows = 0  # entries seen so far in the list of the present key
        self._list = False  # the value is a list, and no inline table
        self._awaited = False  # the next character that means something begins an entry

    @property
    def inside(self) -> bool:
        return self.depth > 0 or bool(self.quote)

    def begin_value(self) -> None:
        self.rows, self._awaited = 0, False

    def take(self, line: str) -> range:
        """Take a line; return the numbers of the list's entries that begin on it."""
        at, before = 0, self.rows
        while at < len(line):
            at += self._step(line, at)
        return range(before, self.rows)

    def _step(self, line: str, at: int) -> int:
        """Take what stands at ``at`` and return how many characters that was."""
        if self.quote:
            return self._in_string(line, at)
        character = line[at]
        if character == "#":
            return len(line) - at
        if self._awaited and not character.isspace():
            self._awaited = False
            self.rows += character != "]"
        if character in "\"'":
            self.quote = character * 3 if line.startswith(character * 3, at) else character
            return len(self.quote)
        if character in "[{":
            self.depth += 1
            if self.depth == 1:
                self._awaited = self._list = character == "["
        elif character in "]}":
            self.depth -= 1
        elif character == "," and self.depth == 1 and self._list:
            self._awaited = True
        return 1

    def _in_string(self, line: str, at: int) -> int:
        if line[at] == "\\" and self.quote[0] == '"':
            return 2
        if not line.startswith(self.quote, at):
            return 1
        taken, self.quote = len(self.quote), ""
        return taken


_KEY = re.compile(r"""(?:[^"'=]|"(?:[^"\\]|\\.)*"|'[^']*')*""")


def _first_equals(line: str) -> int:
    """Return where the key ends: the first ``=`` outside quotes."""
    found = _KEY.match(line)
    assert found is not None
    assert line[found.end()] == "=", "a key line without '=' in a valid TOML text"
    return found.end()


def _path_of(nested: Any) -> KeyPath:
    path: list[str] = []
    while isinstance(nested, list) or (isinstance(nested, dict) and nested):
        if isinstance(nested, list):
            nested = nested[0]
            continue
        key, nested = next(iter(nested.items()))
        path.append(key)
    return tuple(path)


class Plain(NamedTuple):
    """A type without its annotations, and what those say (``Meta`` of nested ones joined)."""

    base: Any
    low: Any = None
    high: Any = None
    length_min: int = 0
    length_max: int | None = None
    form: str = ""
    description: str = ""
    single: bool = False  # of a list: one entry may stand without brackets


def plain(hint: Any) -> Plain:
    """Take ``Annotated[T, Meta…]`` apart; an outer ``Meta`` goes before an inner one."""
    if typing.get_origin(hint) is not typing.Annotated:
        return Plain(hint)
    base, *extra = typing.get_args(hint)
    found = Plain(base)
    for meta in extra:
        if isinstance(meta, msgspec.Meta):
            found = Plain(
                base,
                meta.ge if meta.ge is not None else found.low,
                meta.le if meta.le is not None else found.high,
                meta.min_length or found.length_min,
                meta.max_length or found.length_max,
                (meta.extra or {}).get("form", found.form),
                meta.description or found.description,
                (meta.extra or {}).get("single", found.single),
            )
    return found


def without_none(hint: Any) -> Any:
    """Return ``T`` of ``T | None``, and any other type as it is."""
    if typing.get_origin(hint) is not types.UnionType:
        return hint
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else hint


def item_struct(hint: Any) -> type[Any] | None:
    """Return the Struct of a list of tables; None for any other type."""
    if typing.get_origin(hint) is not tuple:
        return None
    item = typing.get_args(hint)[0]
    return item if _is_struct(item) else None


def expected(hint: Any, key: str) -> str:
    """Say in words what a value of this type may be, with range and unit."""
    kind = plain(hint)
    base = without_none(kind.base)
    origin, args = typing.get_origin(base), typing.get_args(base)
    if origin is typing.Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in args)
    if origin in (tuple, list):
        most = f" of at most {kind.length_max}" if kind.length_max else ""
        one = expected(args[0], key)
        return f"{one}; or a list{most}" if kind.single else f"a list{most}, each {one}"
    if base is bool:
        return "true or false"
    if base in (int, float):
        unit = next((word for end, word in UNITS.items() if key.endswith(end)), "")
        span = "" if kind.low is None else f" from {kind.low:_} to {kind.high:_}"
        number = "a whole number" if base is int else "a number"
        return f"{number}{span}" + (f" ({unit})" if unit else "")
    if base is str:
        if kind.form:
            return kind.form
        if kind.length_max is None:
            return "a text"
        return f"a text of {kind.length_min} to {kind.length_max} characters"
    if base is datetime.date:
        return 'a date, as "2026-01-31"'
    short = getattr(base, "short", "")
    if short:
        types_of = {field.encode_name: field.type for field in msgspec.structs.fields(base)}
        return f"{expected(types_of[short], short)}; or a table"
    return "a table"


def suggestion(key: str, known: Iterable[str]) -> str:
    """Return a hint for a name nobody knows."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else "known: " + ", ".join(names)


class Reader:
    """One pass over one file. Not reusable.

    Args:
        path: the file's name, for messages.
        text: its content.
        overrides: values from outside the file by key path; they replace what the file says.
        sections: the keys of every section, to tell where a misplaced key belongs.

    Raises:
        ConfigError: the text is not TOML; there is nothing to go on with.
    """

    def __init__(
        self,
        path: Path,
        text: str,
        overrides: Mapping[KeyPath, Override],
        sections: Mapping[str, Iterable[str]],
    ) -> None:
        self.path = path
        self.mistakes: list[Mistake] = []
        self._noted: set[KeyPath] = set()
        self._overrides = overrides
        self._sections = sections
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
            line = int(found[1]) if found else len(text.splitlines())
            what = re.sub(r" \(at .*\)$", "", str(error))
            raise ConfigError(path, [Mistake(line, "", f"not TOML: {what}")]) from None
        self._lines = line_index(text)

    def line(self, where: KeyPath) -> int:
        """Return the line of a key, or of the innermost table around it that has one."""
        return line_of(self._lines, where) or 1

    def note(self, where: KeyPath, what: str, hint: str = "") -> None:
        """Note a mistake at a key; a key given from outside is named by its outside name."""
        self._noted.add(where)
        given = self._overrides.get(where)
        if given is not None:
            self.mistakes.append(Mistake(0, given.origin, what, hint))
        else:
            self.mistakes.append(Mistake(self.line(where), named(where), what, hint))

    def noted(self, where: KeyPath) -> bool:
        """Tell whether a key, or one inside it, has a mistake already: a default stands there."""
        return any(path[: len(where)] == where for path in self._noted)

    def struct(self, kind: type[Any], data: Any, where: KeyPath = ()) -> Any:
        """Fill one Struct; None when a mistake leaves no usable value for a required field."""
        if not isinstance(data, dict):
            self.note(where, f"expected a table, not {_shown(data)}")
            data = {}
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for key in data:
            if key not in fields:
                self.note((*where, key), "unknown key", self._unknown_hint(key, fields, where))
        values: dict[str, Any] = {}
        whole = True
        for key, field in fields.items():
            here = (*where, key)
            if key not in data and not self._given(here):
                if field.required:
                    self.note(here, "is missing", f"expected {expected(field.type, key)}")
                    whole = False
                continue
            value, good = self._value(field.type, data.get(key), here)
            if good:
                values[field.name] = value
            elif field.required:
                whole = False
        return kind(**values) if whole else None

    def _given(self, where: KeyPath) -> bool:
        return any(path[: len(where)] == where for path in self._overrides)

    def _unknown_hint(self, key: str, fields: Iterable[str], where: KeyPath) -> str:
        names = list(fields)
        if len(where) == 1 and not difflib.get_close_matches(key, names, n=1, cutoff=0.6):
            homes = [s for s, keys in self._sections.items() if key in keys]
            if homes:
                return f"it belongs into [{homes[0]}]"
        return suggestion(key, names)

    def _value(self, hint: Any, value: Any, where: KeyPath) -> tuple[Any, bool]:
        base = without_none(plain(hint).base)
        origin, args = typing.get_origin(base), typing.get_args(base)
        if isinstance(base, type) and issubclass(base, msgspec.Struct):
            filled = self.struct(base, {} if value is None else value, where)
            return filled, filled is not None
        if origin is dict:
            return self._table(args, {} if value is None else value, where)
        item = item_struct(base)
        if item is not None:
            return self._rows(item, value, where, plain(hint).length_max)
        return self._leaf(hint, value, where)

    def _table(self, hints: tuple[Any, ...], value: Any, where: KeyPath) -> tuple[Any, bool]:
        """Fill a table of like entries; ``hints`` are the types of its names and of its entries."""
        if not isinstance(value, dict):
            self.note(where, f"expected a table, not {_shown(value)}")
            return None, False
        known = typing.get_args(hints[0]) if typing.get_origin(hints[0]) is typing.Literal else ()
        outside = [path[len(where)] for path in self._overrides if path[: len(where)] == where]
        filled: dict[str, Any] = {}
        for name in dict.fromkeys([*value, *outside]):
            here = (*where, name)
            if known and name not in known:
                self.note(here, "unknown name", suggestion(name, known))
                continue
            if not known and not _fits(hints[0], name):
                self.note(here, "cannot be a name", f"expected {expected(hints[0], '')}")
                continue
            entry, good = self._value(hints[1], value.get(name), here)
            if good:
                filled[name] = entry
        return filled, True

    def _rows(
        self, item: Any, value: Any, where: KeyPath, length_max: int | None
    ) -> tuple[Any, bool]:
        if not isinstance(value, list):
            self.note(where, f"expected a list of tables, not {_shown(value)}")
            return None, False
        if length_max is not None and len(value) > length_max:
            self.note(where, f"has {len(value)} entries; at most {length_max} are taken")
            return None, False
        short = getattr(item, "short", "")
        filled = [
            self._value(
                item,
                {short: row} if short and not isinstance(row, dict) else row,
                (*where, f"[{i}]"),
            )
            for i, row in enumerate(value)
        ]
        return tuple(entry for entry, good in filled if good), True

    def _leaf(self, hint: Any, value: Any, where: KeyPath) -> tuple[Any, bool]:
        given = self._overrides.get(where)
        if given is not None:
            value = _from_text(hint, given.text)
        elif plain(hint).single and not isinstance(value, list):
            value = [value]
        try:
            return msgspec.convert(value, hint, strict=given is None), True
        except msgspec.ValidationError:
            self.note(where, f"is {_shown(value)}; expected {expected(hint, where[-1])}")
            return None, False


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _fits(hint: Any, name: str) -> bool:
    try:
        msgspec.convert(name, hint)
    except msgspec.ValidationError:
        return False
    return True


def _from_text(hint: Any, text: str) -> Any:
    """Read an environment value: lists are split at commas, the rest msgspec converts."""
    base = plain(hint).base
    if typing.get_origin(base) in (tuple, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text.replace("_", "") if base is int else text.lower() if base is bool else text


def _shown(value: Any) -> str:
    """Return a value as the operator wrote it, cut to a readable length."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value[:40]}…"' if len(value) > 40 else f'"{value}"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(entry) for entry in value[:8]) + "]"
    return str(value)[:40]


def environment(
    variables: Mapping[str, str], resolve: Callable[[str], KeyPath | None], prefix: str
) -> dict[KeyPath, Override]:
    """Collect the variables that name a key; ``resolve`` makes a path of a name less its prefix."""
    found: dict[KeyPath, Override] = {}
    for name in sorted(variables):
        path = resolve(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if path is not None:
            found[path] = Override(variables[name], name)
    return found
