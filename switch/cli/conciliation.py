"""`conciliation` and `resolve`: daily files, settlement, and what two persons decide."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import trio

from switch.admin_socket import ProvisioningError
from switch.calendar import day_number
from switch.cli.base import Call, CliError, Command, Group, print_fields, print_table
from switch.cli.provision import commands, provision
from switch.cli.questions import read_model
from switch.config import Config
from switch.flows import norms
from switch.flows.norms import FieldError
from switch.flows.persons import Signed, signed
from switch.flows.resolutions import OUTCOMES
from switch.journal import queries
from switch.journal.projector import projected_seq
from switch.reports import making
from switch.reports.comparison import Comparison, Difference, preview
from switch.reports.daily_file import (
    VERSION_MAX,
    DailyFile,
    FileRefused,
    Header,
    file_name,
    parse_name,
    sync_directory,
    write,
)
from switch.reports.exchange import refuse, take_in, unanswered
from switch.reports.statements import write_statements

EVIDENCE: Final = "evidence"
EVIDENCE_BYTES_MAX: Final = 64 << 20
SHOWN_MAX: Final = 50


@click.group(cls=Group)
def conciliation() -> None:
    """Daily files of networks and issuer, their comparison, and settlement."""


# ---- make


@conciliation.command("make")
@click.option("--network", required=True, metavar="NNNN")
@click.option("--date", metavar="DATE", help="Business date; else that of yesterday.")
@click.option("--role", type=click.Choice(("red", "sicoop", "ceibo")), help="Whose books.")
@click.option("--format", "form", type=click.Choice(("csv", "fixed")))
@click.option("--line-end", type=click.Choice(("lf", "crlf")))
@click.option("--version", type=click.IntRange(1, VERSION_MAX), help="Else the next one.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path))
@click.pass_obj
def make(
    call: Call, network: str, date: str | None, role: Any, form: Any, line_end: Any,
    version: int | None, directory: Path | None,
) -> None:  # fmt: skip
    """Write the file of a network and business date as this node's role has it.

    Into a directory with the role's name under `conciliation.directory`.
    """
    config = call.config()
    number = _checked(norms.network, network)
    role = role or next(r for r in ("red", "sicoop", "ceibo") if r in config.node.roles)
    if role not in config.node.roles:
        raise CliError(f"this node does not play {role}", "see node.roles")
    calendar = config.calendar()
    today = calendar.business(time.time_ns()).number
    day = calendar.business_of(today - 1 if date is None else _day(date))
    if day.number >= today:
        raise CliError(f"business date {day.iso} has not ended", "more operations may come")
    settings = config.conciliation
    form, line_end = form or settings.format, line_end or settings.line_end
    where = directory or config.file(settings.directory) / role
    where.mkdir(parents=True, exist_ok=True)
    version = version or _next_version(where, number, day.compact)
    path = where / file_name(number, day.compact, version, form)
    if path.exists():
        raise CliError(f"{path} is there already", "a corrected file has a higher version")
    generated = time.strftime("%Y%m%d%H%M%S", time.gmtime())
    rows = making.details(_books(config), role, number, day, calendar)
    try:
        trailer = write(path, Header(number, day.compact, version, generated), rows, form, line_end)
    except making.NotReady as error:
        raise CliError(str(error), "remove read.sqlite*; it is made anew") from None
    call.fields({"file": str(path)} | msgspec.structs.asdict(trailer))


def _books(config: Config) -> Path:
    """The read model, complete: a line that is missing for want of it would undo an operation."""
    durable_seq = provision(config, "status")["durable_seq"]
    path = read_model(config)
    if (seq := projected_seq(config.data)) < durable_seq:
        raise CliError(
            f"the read model is at record {seq} of {durable_seq}", "try again when it has caught up"
        )
    return path


def _next_version(where: Path, network: str, date: str) -> int:
    names = filter(None, (parse_name(path.name) for path in where.iterdir()))
    last = max((n.version for n in names if n[:2] == (network, date)), default=0)
    if last == VERSION_MAX:
        raise CliError(f"there is no version after {VERSION_MAX}")
    return last + 1


# ---- read and compare


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--issuer", default="", metavar="NAME", help="The file is that of this issuer, not red's."
    )(command)
    return click.argument("path", type=click.Path(exists=True, path_type=Path))(command)


@conciliation.command("compare")
@_file_options
@click.pass_obj
def compare(call: Call, path: Path, issuer: str) -> None:
    """Show how a file differs from the books, without doing anything.

    Exit code 1 where it does.
    """
    config = call.config()
    if not path.is_file():
        raise click.UsageError(f"{path} is no file")
    try:
        comparison = _comparison(config, path, issuer)
    except FileRefused as refused:
        raise _refusal(path, refused) from None
    try:
        found = list(islice(_previewed(comparison, config, issuer), queries.ROWS_MAX))
    finally:
        comparison.close()
    call.answer(found, lambda: _print_differences(found))
    if found:
        raise click.exceptions.Exit(1)


@conciliation.command("read")
@_file_options
@click.pass_obj
def read(call: Call, path: Path, issuer: str) -> None:
    """Take in a file, or all of a directory that have no answer yet, in their order.

    What was open is decided by it, what differs becomes a case. Beside the file are then its answer
    (.OK or .ERR) and the report of all differences (.DIF.csv). The same file again has no effect; a
    higher version replaces a lower one.
    """
    config = call.config()
    if path.is_file():
        call.fields(_read(config, path, issuer))
        return
    answers, refused = [], False
    for file in unanswered(path):
        try:
            answers.append({"file": file.name} | _read(config, file, issuer))
        except CliError as error:
            refused = True
            answers.append({"file": file.name, "state": "refused", "reason": error.message})
    shown = [
        {k: a.get(k) for k in ("file", "state", "counts", "differences", "reason")} for a in answers
    ]
    call.answer(answers, lambda: print_table(shown, empty="every file has its answer"))
    if refused:
        raise click.exceptions.Exit(1)


def _read(config: Config, path: Path, issuer: str) -> dict[str, Any]:
    """Take in one file. Raises: CliError: it is refused, and its answer is written."""
    try:
        comparison = _comparison(config, path, issuer)
    except FileRefused as refused:
        trio.run(_refuse, config, path, refused)
        raise _refusal(path, refused) from None
    try:
        return trio.run(_take_in, config, comparison, issuer)
    except ProvisioningError as error:
        raise CliError(f"{path.name}: {error}", error.hint) from None
    finally:
        comparison.close()


async def _refuse(config: Config, path: Path, refused: FileRefused) -> None:
    async with commands(config) as carry:
        await refuse(carry, path, refused)


async def _take_in(config: Config, comparison: Comparison, issuer: str) -> dict[str, Any]:
    async with commands(config) as carry:
        return await take_in(
            carry, comparison, issuer=issuer, ceibo="ceibo" in config.node.roles
        )  # fmt: skip


def _comparison(config: Config, path: Path, issuer: str) -> Comparison:
    """Raises: FileRefused."""
    file = DailyFile(path)
    return Comparison(
        _books(config), file, config.calendar(), issuer=issuer,
        network_closes=config.conciliation.network_closes,
    )  # fmt: skip


def _previewed(comparison: Comparison, config: Config, issuer: str) -> Iterator[Difference]:
    yield from comparison.repeated()
    if issuer:
        yield from (found for found, _ in comparison.at_ceibo(issuer_file=True))
        return
    network = comparison.file.header.network
    for places in comparison.places():
        known = provision(config, "conciliation_known", network=network, places=places)
        for place, is_known in zip(places, known, strict=True):
            if not is_known:
                yield from comparison.at_place(*place)
    yield from preview(comparison)
    if "ceibo" in config.node.roles:
        yield from (found for found, _ in comparison.at_ceibo())


def _refusal(path: Path, refused: FileRefused) -> CliError:
    more = refused.count - len(refused.mistakes[:SHOWN_MAX])
    lines = [f"{path.name} is refused whole", *map(str, refused.mistakes[:SHOWN_MAX])]
    if more > 0:
        lines.append(f"… and {more} more")
    return CliError("\n".join(lines), "ask for a corrected file with a higher version")


def _print_differences(found: list[Difference]) -> None:
    rows = [msgspec.structs.asdict(d) for d in found[:SHOWN_MAX]]
    print_table(rows, empty="no differences")
    if len(found) > len(rows):
        click.echo(f"… and {len(found) - len(rows)} more", err=True)


# ---- settlement


@conciliation.group("settle")
def settle() -> None:
    """Settlement windows: close, issue statements, post what was paid."""


_currency = click.option("--currency", default="PYG", show_default=True)


@settle.command("close")
@_currency
@click.pass_obj
def settle_close(call: Call, currency: str) -> None:
    """Close the open window: its positions are fixed, the next one opens."""
    _print_window(call, provision(call.config(), "window_close", currency=currency))


@settle.command("show")
@click.argument("number", type=int)
@_currency
@click.pass_obj
def settle_show(call: Call, number: int, currency: str) -> None:
    """Show a window with its positions; they sum to zero."""
    _print_window(
        call, provision(call.config(), "window_show", number=number, currency=currency)
    )  # fmt: skip


@settle.command("issue")
@click.argument("number", type=int)
@_currency
@click.pass_obj
def settle_issue(call: Call, number: int, currency: str) -> None:
    """Write one statement per network; the window then waits for the money."""
    config = call.config()
    window = provision(config, "window_show", number=number, currency=currency)
    where = config.file(config.conciliation.directory) / "statements"
    where.mkdir(parents=True, exist_ok=True)
    files = write_statements(where, window)
    window = provision(config, "window_issue", number=number, currency=currency)
    _print_window(call, window | {"files": [str(path) for path in files]})


def _signature(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--reason", required=True),
        click.option("--second", required=True, metavar="NAME", help="The other person."),
        click.option("--author", required=True, metavar="NAME", help="Who answers for it."),
    ):
        command = option(command)
    return command


@settle.command("pay")
@click.argument("number", type=int)
@click.option("--network", metavar="NNNN")
@click.option("--issuer", metavar="NAME")
@click.option("--bank", required=True, help="Over which it was paid.")
@_currency
@_signature
@click.pass_obj
def settle_pay(
    call: Call, number: int, network: str | None, issuer: str | None, bank: str, currency: str,
    author: str, second: str, reason: str,
) -> None:  # fmt: skip
    """Post that a position of a window was paid. Two persons."""
    if (network is None) == (issuer is None):
        raise click.UsageError("give --network or --issuer")
    name = f"net:{network}" if network is not None else f"issuer:{issuer}"
    values = {"number": number, "name": name, "bank": bank, "currency": currency}
    signature = _signed(author, second, reason)
    _print_window(call, provision(call.config(), "window_settle", signature=signature, **values))


def _print_window(call: Call, window: dict[str, Any]) -> None:
    def text() -> None:
        print_fields({k: v for k, v in window.items() if k != "positions"})
        print_table(window["positions"], "Positions", empty="nothing was posted")

    call.answer(window, text)


# ---- what two persons do


@conciliation.command("adjust")
@click.option("--account", required=True, metavar="net:NNNN|card:ID")
@click.option("--amount", required=True, type=click.IntRange(1, 10**15))
@click.option("--direction", required=True, type=click.Choice(("credit", "debit")))
@click.option("--reference", default="", help="Operation that it is about.")
@click.option(
    "--evidence", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@_signature
@click.pass_obj
def adjust(
    call: Call, account: str, amount: int, direction: str, reference: str, evidence: Path,
    author: str, second: str, reason: str,
) -> None:  # fmt: skip
    """Correct a balance by a new entry. Two persons, a reason, evidence attached."""
    config = call.config()
    signature = _signed(author, second, reason, config, evidence)
    call.fields(
        provision(
            config, "conciliation_adjust", account=account, amount=amount, direction=direction,
            reference=reference, signature=signature,
        )
    )  # fmt: skip


@conciliation.command("dispute")
@click.argument("reference")
@click.option("--author", required=True, metavar="NAME")
@click.option("--reason", required=True)
@click.pass_obj
def dispute(call: Call, reference: str, author: str, reason: str) -> None:
    """Open a case about an operation that somebody contests; nothing moves by it."""
    values = {"reference": reference, "author": author, "reason": reason}
    call.fields(provision(call.config(), "case_dispute", **values))


@click.command(cls=Command)
@click.argument("reference")
@click.option("--as", "outcome", required=True, type=click.Choice(OUTCOMES))
@click.option("--network", default="", metavar="NNNN", help="For a hold known to ceibo only.")
@click.option("--link", default="", metavar="HOST", help="Host that hold came from.")
@click.option("--evidence", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_signature
@click.pass_obj
def resolve(
    call: Call, reference: str, outcome: str, network: str, link: str, evidence: Path | None,
    author: str, second: str, reason: str,
) -> None:  # fmt: skip
    """Decide about an operation in doubt. Two persons.

    \b
    capture   open: capture it; posted: it stands; undone: capture it anew
    release   open: release it
    annul     posted: compensate it
    charge    undone, or unknown here: it stays so, and the network bears it

    REFERENCE has 26 digits; for a hold that only ceibo knows, the 12 of the operation.
    """
    config = call.config()
    if not (reference.isascii() and reference.isdigit() and len(reference) in (12, 26)):
        raise click.UsageError("REFERENCE has 26 digits, the number of an operation has 12")
    answer = provision(
        config, "resolve", reference=reference, outcome=outcome, network=network, link=link,
        signature=_signed(author, second, reason, config, evidence),
    )  # fmt: skip
    call.fields(answer)


def _signed(
    author: str, second: str, reason: str, config: Config | None = None,
    evidence: Path | None = None,
) -> dict[str, str]:  # fmt: skip
    """A signature as the node takes it; what is enclosed is kept beside the data first."""
    name = sha256 = ""
    if config is not None and evidence is not None:
        name, sha256 = evidence.name, _sha256(evidence)
    try:
        checked = signed(Signed(author, second, reason, name, sha256))
    except ValueError as error:
        raise CliError(str(error)) from None
    if config is not None and evidence is not None:
        _keep(config, evidence, sha256)
    return msgspec.structs.asdict(checked)


def _sha256(path: Path) -> str:
    if path.stat().st_size > EVIDENCE_BYTES_MAX:
        raise CliError(f"{path} is larger than {EVIDENCE_BYTES_MAX} bytes")
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _keep(config: Config, evidence: Path, sha256: str) -> None:
    """Keep a copy under its own hash, so that what was enclosed can be proved later."""
    where = config.data / EVIDENCE
    where.mkdir(mode=0o700, exist_ok=True)
    kept = where / sha256
    if kept.exists():
        return
    partial = where / f".{sha256}.part"
    shutil.copyfile(evidence, partial)
    if _sha256(partial) != sha256:
        partial.unlink()
        raise CliError(f"{evidence} was changed while it was read")
    with open(partial, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, kept)
    sync_directory(where)


# ---- status


@conciliation.command("status")
@click.option("--all", "everything", is_flag=True, help="Closed cases as well.")
@click.option("--limit", type=click.IntRange(1, queries.ROWS_MAX), default=50, show_default=True)
@click.pass_obj
def status(call: Call, everything: bool, limit: int) -> None:
    """Show files, cases, windows and adjustments, the newest first."""
    path = read_model(call.config())
    found = {
        "files": queries.files(path, limit),
        "cases": queries.cases(path, limit, everything=everything),
        "windows": queries.windows(path, limit),
        "adjustments": queries.adjustments(path, limit),
    }
    call.answer(found, lambda: _print_status(found))


def _print_status(found: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in found.items():
        shown = [{k: v for k, v in row.items() if k != "positions"} for row in rows]
        print_table(shown, name.capitalize(), empty=f"no {name}")


def _day(date: str) -> int:
    return day_number(_checked(norms.date, date))


def _checked(check: Callable[[str], Any], value: str) -> Any:
    try:
        return check(value)
    except FieldError as bad:
        raise click.UsageError(norms.told_with_form(bad.field, " is not valid: ")) from None
