"""ISO 8583 messages for people: decode, encode, explain; what is secret is masked unless asked."""

import base64
import binascii
import re
import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocols.iso8583 import Dialect, DialectError, FormatError, Framing
from switch.cli.base import PIPE_WIDTH, Call, CliError, Group, print_json, print_table

INPUT_BYTES_MAX: Final = 1 << 22
VERSIONS: Final = {"0": "1987", "1": "1993", "2": "2003"}
CLASSES: Final = {
    "1": "authorisation", "2": "financial", "3": "file action", "4": "reversal",
    "5": "reconciliation", "6": "administrative", "7": "fee collection", "8": "network management",
}  # fmt: skip
FUNCTIONS: Final = {
    "0": "request", "1": "answer", "2": "advice", "3": "answer to an advice", "4": "notification",
    "5": "acknowledged notification",
}  # fmt: skip
ORIGINS: Final = {
    "0": "acquirer", "1": "acquirer, repeat", "2": "issuer", "3": "issuer, repeat", "4": "other",
    "5": "other, repeat",
}  # fmt: skip

dialect_option = click.option(
    "-d", "--dialect", "dialect_name", required=True, metavar="D",
    help="A dialect of ours (`troncal iso dialects`), or the path of a file.",
)  # fmt: skip
form_option = click.option(
    "--form", type=click.Choice(["auto", "hex", "base64", "binary"]), default="auto",
    help="How the message is written; auto tells hex from base64.",
)  # fmt: skip
file_option = click.option(
    "-f", "--file", type=click.Path(path_type=Path, dir_okay=False), help="Read it from a file."
)
framed_option = click.option(
    "--framed", is_flag=True, help="With the framing of the dialect (else two bytes of length)."
)
unmask_option = click.option(
    "--unmask", is_flag=True, help="Show card numbers, tokens and the like in full."
)


@click.group(cls=Group)
def iso() -> None:
    """Decode, encode and explain ISO 8583 messages of any dialect."""


@iso.command("dialects")
@click.pass_obj
def dialects(call: Call) -> None:
    """The dialects that come with us."""
    known = [Dialect.load(name) for name in Dialect.shipped()]
    rows = [
        {"dialect": d.name, "description": d.description, "elements": len(d.elements)}
        for d in known
    ]
    call.answer(rows, lambda: print_table(rows))


@iso.command("decode")
@dialect_option
@form_option
@file_option
@framed_option
@unmask_option
@click.argument("message", required=False)
@click.pass_obj
def decode(
    call: Call,
    dialect_name: str,
    form: str,
    file: Path | None,
    framed: bool,
    unmask: bool,
    message: str | None,
) -> None:
    """The elements of a message, given here, in a file, or on stdin.

    Exit code 1, with element, byte and reason, where it does not fit the dialect.
    """
    dialect = load(dialect_name)
    data = message_of(dialect, taken(message, file, form), framed)
    try:
        found = dialect.decode(data)
    except FormatError as error:
        raise refused(call, error) from None
    values = found.to_dict() if unmask else found.masked()
    answer = {
        "dialect": dialect.name,
        "bytes": len(data),
        "unknown_tags": found.unknown_tags,
        "mti": values["mti"],
        "elements": {key: jsonable(value) for key, value in values.items() if key != "mti"},
    }
    call.answer(answer, lambda: print_elements(dialect, values, unmask))


@iso.command("explain")
@dialect_option
@form_option
@file_option
@framed_option
@unmask_option
@click.argument("message", required=False)
@click.pass_obj
def explain(
    call: Call,
    dialect_name: str,
    form: str,
    file: Path | None,
    framed: bool,
    unmask: bool,
    message: str | None,
) -> None:
    """A message byte by byte: where each element is, how the dialect has it, what it says.

    Of a message that does not fit, everything up to the fault, and then exit code 1.
    """
    dialect = load(dialect_name)
    data = message_of(dialect, taken(message, file, form), framed)
    rows, fault = dialect.traced(data, unmask=unmask)
    if call.json:
        elements = [
            {
                "element": key,
                "offset": offset,
                "bytes": size,
                "name": title_of(dialect, key),
                "format": dialect.formats.get(key, ""),
                "value": jsonable(value),
            }
            for key, offset, size, value in rows
        ]
        print_json({"dialect": dialect.name, "elements": elements, "fault": fault_of(fault)})
    else:
        print_explained(dialect, rows, unmask)
    if fault is not None:
        if call.json:
            raise click.exceptions.Exit(1)
        raise refused(call, fault)


@iso.command("encode")
@dialect_option
@file_option
@framed_option
@click.option("--form", type=click.Choice(["hex", "base64", "binary"]), default="hex")
@click.argument("elements", required=False)
@click.pass_obj
def encode(
    call: Call,
    dialect_name: str,
    file: Path | None,
    framed: bool,
    form: str,
    elements: str | None,
) -> None:
    """A message from JSON: {"mti": "0800", "7": …, "48": {"01": …}}; bytes as hex digits.

    What `decode --unmask --json` says is taken too.

    Exit code 1, with element and reason, where an element does not fit the dialect.
    """
    dialect = load(dialect_name)
    try:
        given = msgspec.json.decode(raw_input(elements, file), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CliError(
            f"no JSON object: {error}", 'as in {"mti": "0800", "11": "000001"}'
        ) from None
    if isinstance(given.get("elements"), dict):
        given = {"mti": given.get("mti"), **given["elements"]}
    try:
        data = dialect.encode(given)
        if framed:
            data = framing_of(dialect).wrap(data)
    except FormatError as error:
        raise refused(call, error) from None
    except ValueError as error:
        raise CliError(str(error)) from None
    if call.json:
        print_json({"dialect": dialect.name, "bytes": len(data), "hex": data.hex()})
    elif form == "binary":
        sys.stdout.buffer.write(data)
    else:
        click.echo(data.hex() if form == "hex" else base64.b64encode(data).decode())


# ---- in


def load(name: str) -> Dialect:
    """Compile a dialect. Raises: CliError with every mistake and its line."""
    try:
        return Dialect.load(name)
    except DialectError as error:
        hint = "docs/dialects.md has every key; `troncal iso dialects` lists ours"
        raise CliError("\n".join(error.lines()), hint) from None


def raw_input(argument: str | None, file: Path | None) -> bytes:
    """What was given as an argument, in a file, or on stdin."""
    if argument is not None and argument != "-":
        if file is not None:
            raise click.UsageError("either a message or --file, not both")
        return argument.encode()
    if file is not None:
        with file.open("rb") as stream:
            data = stream.read(INPUT_BYTES_MAX + 1)
    else:
        if sys.stdin.isatty():
            click.echo("reading from the terminal; end with ctrl-d", err=True)
        data = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    if len(data) > INPUT_BYTES_MAX:
        raise CliError(f"more than {INPUT_BYTES_MAX} bytes")
    return data


def taken(argument: str | None, file: Path | None, form: str) -> bytes:
    """The bytes that were given, however they are written."""
    data = raw_input(argument, file)
    if form == "binary":
        return data
    bare = re.sub(rb"\s", b"", data)
    is_hex = re.fullmatch(rb"(?:[0-9A-Fa-f]{2})*", bare) is not None
    if form == "hex" or (form == "auto" and is_hex):
        if not is_hex:
            raise CliError("these are no pairs of hexadecimal digits", "--form says what they are")
        return bytes.fromhex(bare.decode())
    try:
        return base64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError):
        if form == "auto" and argument is None:
            return data
        hint = "bytes as they are come from a file or stdin, with --form binary"
        raise CliError("this is neither hexadecimal nor base64", hint) from None


def framing_of(dialect: Dialect) -> Framing:
    return dialect.framing or Framing()


def message_of(dialect: Dialect, data: bytes, framed: bool) -> bytes:
    """The message in what was given. Raises: CliError where it is not one whole frame."""
    if not framed:
        return data
    framing = framing_of(dialect)
    framer = framing.framer(layout=dialect)
    frames = framer.feed(data)
    if framer.broken is not None:
        raise CliError(f"no frame: {framer.broken}", "without --framed it is the message alone")
    if len(frames) != 1 or framer.pending_bytes:
        what = f"{len(frames)} whole frames and {framer.pending_bytes} bytes"
        raise CliError(f"expected one frame; there are {what}")
    return framing.split(frames[0])[1]


# ---- out


def refused(call: Call, error: FormatError) -> Exception:
    """How a message that does not fit is told: as JSON too where that was asked for."""
    if call.json:
        print_json({"fault": fault_of(error)})
        return click.exceptions.Exit(1)
    sound = ", ".join(f"{key} {value}" for key, value in error.partial.items())
    return CliError(str(error), f"sound are: {sound}" if sound else "")


def fault_of(error: FormatError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {
        "element": error.element,
        "offset": error.offset,
        "reason": error.reason,
        "partial": jsonable(error.partial),
    }


def jsonable(value: Any) -> Any:
    """A value with its bytes as hexadecimal digits."""
    match value:
        case bytes():
            return value.hex().upper()
        case dict():
            return {key: jsonable(part) for key, part in value.items()}
        case list() | tuple():
            return [jsonable(part) for part in value]
        case _:
            return value


def title_of(dialect: Dialect, key: str) -> str:
    return dialect.titles.get(key, {"mti": "message type", "bitmap": "bitmap"}.get(key, ""))


def meaning_of(mti: str) -> str:
    """A message type in words."""
    words = (
        f"ISO 8583:{VERSIONS[mti[0]]}" if mti[0] in VERSIONS else "private version",
        CLASSES.get(mti[1], "class unknown"),
        FUNCTIONS.get(mti[2], "function unknown"),
        ORIGINS.get(mti[3], "origin unknown"),
    )
    return ", ".join(words)


def flattened(key: str, value: Any) -> list[tuple[str, Any]]:
    """A value and all that is in it, a line each, by keys with dots."""
    if isinstance(value, dict):
        pairs: Any = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], tuple):
        pairs = value
    elif isinstance(value, list):
        return [(key, one) for one in value]
    else:
        return [(key, value)]
    lines: list[tuple[str, Any]] = [(key, "")]
    for part, inner in pairs:
        lines += flattened(f"{key}.{part}", inner)
    return lines


def shown(value: Any, unmask: bool) -> Text:
    """A value for the table: masked ones stand out, as do those shown although they are secret."""
    text = str(jsonable(value))
    printable = "".join(c if c.isprintable() else "·" for c in text)
    if not unmask and "**" in printable:
        return Text(printable, style="yellow")
    return Text(printable, style="bold" if printable else "")


def console() -> Console:
    """Into a file or a pipe there is no width to keep to."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_elements(dialect: Dialect, values: dict[str, Any], unmask: bool) -> None:
    table = Table(title=f"{values['mti']}: {meaning_of(values['mti'])}", title_justify="left")
    for name in ("element", "name", "format", "value"):
        table.add_column(name, style="cyan" if name == "element" else None)
    for element, value in values.items():
        for key, part in flattened(element, value):
            table.add_row(
                Text(key),
                title_of(dialect, key) or Text("unknown", style="red"),
                Text(dialect.formats.get(key, "")),
                shown(part, unmask),
            )
    console().print(table)
    if unmask:
        click.echo("not masked: keep this to yourself", err=True)


def print_explained(dialect: Dialect, rows: list[tuple[str, int, int, Any]], unmask: bool) -> None:
    table = Table(title=f"{dialect.name}: {dialect.description}", title_justify="left")
    for name in ("byte", "bytes"):
        table.add_column(name, justify="right")
    for name in ("element", "name", "format", "value"):
        table.add_column(name, style="cyan" if name == "element" else None)
    for element, offset, size, value in rows:
        place: tuple[str, str] = (str(offset), str(size))
        for key, part in flattened(element, value):
            table.add_row(
                *place,
                Text(key),
                title_of(dialect, key) or Text("unknown", style="red"),
                Text(dialect.formats.get(key, "")),
                shown(part, unmask),
            )
            place = ("", "")
        if element == "mti":
            table.add_row("", "", "", Text(meaning_of(value), style="dim"), "", "")
    console().print(table)
