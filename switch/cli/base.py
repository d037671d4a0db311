"""What all commands share: `-c` and `--json`, output, and how a mistake is told.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 not done, 2 wrong usage. A
user's mistake is one line and a hint; a traceback is a mistake of ours.
"""

import errno
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec

from switch.config import Config, ConfigError, load

if TYPE_CHECKING:  # what draws is imported where something is drawn
    from rich.progress import Progress, ProgressColumn

PIPE_WIDTH: Final = 220
PLAIN_NUMBERS: Final = frozenset(("trace", "original", "version", "port", "attempts"))
"""Numbers that are names: no thousands in them."""

OS_HINTS: Final = {
    errno.ENOENT: "see whether the path is right",
    errno.ENOTDIR: "see whether the path is right",
    errno.EACCES: "run as the owner of the file, or change its owner or mode",
    errno.EPERM: "run as the owner of the file, or change its owner or mode",
    errno.EROFS: "name a place that may be written to",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
    errno.EADDRINUSE: "another program has this port: stop it, or take another one (--listen)",
    errno.EADDRNOTAVAIL: "the address is not one of this machine: see `ip address`",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ECONNREFUSED: "does `serve` run there?",
}


class CliError(click.ClickException):
    """A command that could not be carried out: what happened, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: Any = None) -> None:
        lines = self.message.splitlines() or [""]
        click.echo(click.style("error: ", fg="red") + lines[0], err=True)
        for line in lines[1:]:
            click.echo("       " + line, err=True)
        if self.hint:
            click.echo(click.style("hint:  ", fg="cyan") + self.hint, err=True)


class Call:
    """One run of the program: what was said before and after the name of the command.

    Attributes:
        config_path: the file of `-c`; None: TRONCAL_CONFIG or troncal.toml here.
        json: results as JSON, one line each.
    """

    def __init__(self) -> None:
        self.config_path: Path | None = None
        self.json = False

    def config(self, options: Mapping[str, str] | None = None) -> Config:
        """Read and check the configuration. Raises: ConfigError."""
        return load(self.config_path, options=options)

    def answer(self, value: Any, text: Callable[[], None]) -> None:
        """Print a result: as JSON, or the way `text` does it."""
        if self.json:
            print_json(value)
        else:
            text()

    def fields(self, value: Mapping[str, Any], note: str = "") -> None:
        """Print a result that is a few named values; `note` is for people only."""
        self.answer(value, lambda: print_fields(value, note))


def progress(*columns: "ProgressColumn | str") -> "Progress":
    """A bar on stderr, with the usual columns if none are given; nothing where no terminal is."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    click.echo(msgspec.json.encode(value).decode())


def print_fields(value: Mapping[str, Any], note: str = "") -> None:
    """A name and a value per line, unwrapped, so that keys can be copied."""
    width = max((len(name) for name in value), default=0)
    for name, entry in value.items():
        click.echo(f"{name:<{width}}  {cell(entry, name)}")
    if note:
        click.echo(note, err=True)


def print_table(rows: Sequence[Mapping[str, Any]], title: str = "", empty: str = "none") -> None:
    """Rows of equal keys as a table; numbers to the right."""
    if not rows:
        click.echo(empty, err=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    # Into a file or a pipe there is no width to keep to.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for name, value in rows[0].items():
        number = isinstance(value, int) and not isinstance(value, bool)
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(cell(value, name) for name, value in row.items()))
    console.print(table)


def cell(value: Any, name: str = "") -> str:
    """A value for people: amounts with thousands, instants (`…_ns`) as local time."""
    match value:
        case int() if name.endswith("_ns"):
            return local_time(value) if value else "–"
        case int() if name in PLAIN_NUMBERS:
            return str(value)
        case None | "" | () | []:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}".replace(",", ".")
        case list() | tuple():
            return ", ".join(map(cell, value))
        case dict():
            return ", ".join(f"{key} {cell(entry, key)}" for key, entry in value.items())
        case _:
            return str(value)


def local_time(ns: int) -> str:
    """An instant in the time zone of this machine, to the millisecond."""
    moment = datetime.fromtimestamp(ns // 1_000_000_000).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns // 1_000_000 % 1000:03d}"


# ---- commands that know -c and --json, and tell mistakes -----------------------------------------


def _keep_config(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Call).config_path = value


def _keep_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Call).json = True


def _common() -> list[click.Parameter]:
    """Options of every command and group, so that they may stand anywhere."""
    config = click.Option(
        ["-c", "--config"], type=click.Path(path_type=Path), metavar="FILE", expose_value=False,
        callback=_keep_config, help="Configuration; else TRONCAL_CONFIG, else ./troncal.toml.",
    )  # fmt: skip
    as_json = click.Option(
        ["--json"], is_flag=True, expose_value=False, callback=_keep_json,
        help="Results as JSON on stdout.",
    )  # fmt: skip
    return [config, as_json]


class _Telling(click.Command):
    """Tells a user's mistake in a line and a hint."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            told = told_as(error)
            if told is None:
                raise
            raise told from None


class Command(_Telling):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common()


class Group(_Telling, click.Group):
    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common()


class _Told(NamedTuple):
    message: str
    hint: str = ""


def told_as(error: BaseException) -> CliError | None:
    """The error as it is told to a user; None for what is our own mistake, or click's to tell."""
    leaves = list(_leaves(error))
    if isinstance(error, BaseExceptionGroup):
        for leaf in leaves:
            if isinstance(leaf, click.ClickException):
                raise leaf
    told = [_known(leaf) for leaf in leaves]
    if not told or None in told or told[0] is None:
        return None
    return CliError(*told[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _known(error: BaseException) -> _Told | None:
    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        return None
    if isinstance(error, BrokenPipeError):
        return None  # nobody reads our output any more: click ends us without a word
    if isinstance(error, ConfigError):
        return _Told("\n".join(error.lines()))
    if isinstance(error, BlockingIOError):
        return _Told(
            "another process uses this data directory",
            "a node that has just started answers in a moment; else see what holds its journal",
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return _Told(f"{error.strerror or error}{where}", OS_HINTS.get(error.errno or 0, ""))
    if isinstance(error, sqlite3.Error):
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return _Told(str(error), OS_HINTS[errno.ENOSPC])
        return _Told(f"read model: {error}", "delete read.sqlite*; it is made anew")
    for known, hint in _errors_of_state():
        if isinstance(error, known):
            return _Told(str(error), getattr(error, "hint", "") or hint)
    return None


def _errors_of_state() -> list[tuple[type[Exception], str]]:
    """Imported late: most of these come with native modules."""
    from core_ext._journal import Corruption, JournalFailed, JournalFull
    from switch.admin_socket import ProvisioningError
    from switch.journal.backup import BackupError
    from switch.journal.snapshot import SnapshotError
    from switch.journal.store import StateError
    from switch.ops.keys import MasterKeyError, UnsealError

    restore = "keep the directory as it is; `troncal restore` a backup into another one"
    return [
        (ProvisioningError, ""),
        (MasterKeyError, ""),
        (UnsealError, "the master key must be the one this state was made under"),
        (Corruption, restore),
        (SnapshotError, restore),
        (StateError, restore),
        (BackupError, ""),
        (JournalFull, "make room on the disk"),
        (JournalFailed, "see the disk's own errors; what was acknowledged is durable"),
    ]
