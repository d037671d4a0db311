"""Dialects: how one network or host writes ISO 8583, as data, compiled for the native codec.

A dialect is a TOML file (docs/dialects.md explains every key). `Dialect.load` reads one, with what
it extends, checks it, and compiles it; every mistake is told at once, with its line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from core_ext._iso8583 import FormatError, Layout, Message
from protocols.iso8583.compiler import Compiler
from protocols.iso8583.framing import Framing
from protocols.iso8583.source import DIRECTORY, DialectError, Mistake, Source, extended, read

__all__ = ["Dialect", "DialectError", "FormatError", "Framing", "Message", "Mistake"]


class Dialect(Layout):
    """A compiled dialect: `decode`, `decode_many`, `encode` and the rest are native (`Layout`).

    Attributes:
        name: of the file, or the key `name`.
        description: for people.
        framing: how the host frames messages, where the dialect says so; else None.
        titles: names of elements and parts for people, by key ("48.03").
        formats: what they hold, for people: `n ..19 LL`.
    """

    description: str
    framing: Framing | None
    titles: dict[str, str]
    formats: dict[str, str]

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Read and compile a dialect: one of ours by its name, or a file by its path.

        Raises:
            DialectError: no such dialect, or one that cannot be compiled, with the lines.
        """
        return cls._compiled(read(name))

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Self:
        """Compile a dialect given as its file would be read; `extend` works here too.

        Raises:
            DialectError: as `load`, without lines.
        """
        source = Source(dict(spec), str(spec.get("name", "dialect")))
        return cls._compiled(extended(source, DIRECTORY))

    @classmethod
    def _compiled(cls, source: Source) -> Self:
        compiler = Compiler(source)
        spec = compiler.compiled()
        self = cls(compiler.name, spec)
        self.description = compiler.description
        self.framing = compiler.framing
        self.titles = compiler.titles
        self.formats = compiler.formats
        return self

    @staticmethod
    def shipped() -> list[str]:
        """Names of the dialects that come with us."""
        return sorted(path.stem for path in DIRECTORY.glob("*.toml"))

    def __repr__(self) -> str:
        return f"<Dialect {self.name}>"
