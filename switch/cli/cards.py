"""Cards of persons, and the one-time codes that prove them."""

import csv
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from switch.cli.base import Call, CliError, Group, progress
from switch.cli.peers import listed
from switch.cli.provision import Refusal, provision, provision_all
from switch.config import FILE_NAME, Tokens
from switch.flows import norms

SEED_ONCE = "The seed is shown this once and stored sealed."
MODES = click.Choice(("totp", "ocra", "vale"))
KINDS = click.Choice(("cash_out", "deposit"))
AMOUNT = click.IntRange(1, norms.AMOUNT_MAX)
BALANCE = click.IntRange(0, norms.AMOUNT_MAX)
CODE_STEPS_MAX: Final = 1 << 40

REQUIRED = ("document",)
TEXTS = (
    "document_type", "document", "name", "phone", "token_mode", "tier", "seed", "label", "expires",
    "currency",
)  # fmt: skip
COLUMNS = (*TEXTS, "balance", "default")
YES = ("1", "true", "yes")
NO = ("", "0", "false", "no")


@click.group(cls=Group)
def card() -> None:
    """Prepaid cards, their funds and their codes."""


@card.command("add")
@click.option("--document", required=True, help="Number of the holder's document.")
@click.option(
    "--document-type", type=click.Choice(("CI", "RUC", "PAS")), default="CI", show_default=True,
    help="Its type.",
)  # fmt: skip
@click.option("--phone", default="", help="The holder's telephone number.")
@click.option("--name", default="", help="The holder's name.")
@click.option("--balance", type=BALANCE, default=0, help="Funds to begin with.")
@click.option("--max-balance", type=BALANCE, default=0, help="0: no cap.")
@click.option("--token-mode", type=MODES, help="Kind of code; else tokens.mode.")
@click.option("--tier", default="", help="Customer tier; else the first of business.tiers.")
@click.option("--default", is_flag=True, help="Deposits that name no card go here.")
@click.option("--label", default="", help="What the cashier sees of it.")
@click.option("--expires", default="", metavar="YYYY-MM-DD", help="Last good day.")
@click.pass_obj
def card_add(call: Call, /, token_mode: str | None, **values: Any) -> None:
    """Add a card; the person is made if new. Prints the seed of its codes."""
    _check_date(values["expires"])
    _check_person(values)
    answer = provision(call.config(), "card_add", token_mode=token_mode or "", **values)
    call.fields(answer, SEED_ONCE)


@card.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="Write line, card, seed and otpauth URI of each to this new file (mode 0600).",
)  # fmt: skip
@click.pass_obj
def card_import(call: Call, file: Path, output: Path | None) -> None:
    """Add a card for each line of a CSV file.

    Columns: document, and optionally document_type, name, phone, balance, token_mode, tier,
    default, seed, label, expires, currency. A file with a mistake in it is refused whole; a line
    that the node refuses is told, and the others stay.
    """
    rows = list(read_cards(file))
    config = call.config()
    kept = _private_file(output) if output else None
    with progress() as bar:
        task = bar.add_task("cards", total=len(rows))
        commands = [("card_add", values) for _, values in rows]
        answers = provision_all(config, commands, lambda n: bar.advance(task, n))
    failed = []
    with open(kept, "w", newline="", encoding="utf-8") if kept else open(os.devnull, "w") as out:
        writer = csv.writer(out)
        writer.writerow(("line", "card", "seed", "otpauth"))
        for (line, _), answer in zip(rows, answers, strict=True):
            if isinstance(answer, Refusal):
                failed.append({"line": line, "error": answer.reason})
            else:
                writer.writerow((line, answer["card"], answer["seed"], answer["otpauth"]))
    imported = len(rows) - len(failed)

    def text() -> None:
        click.echo(f"{imported} cards added")
        for refused in failed:
            click.echo(f"{file}:{refused['line']}: {refused['error']}", err=True)

    call.answer({"imported": imported, "failed": failed}, text)
    if failed:
        raise click.exceptions.Exit(1)


def read_cards(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines of a card file as (line, values of `card_add`). Raises: CliError."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source, strict=True)
            _check_columns(file, reader.fieldnames)
            for row in reader:
                yield reader.line_num, _card_values(f"{file}:{reader.line_num}", row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise CliError(f"{file}: not a CSV file in UTF-8: {error}") from None


def _check_columns(file: Path, names: Any) -> None:
    columns = list(names or ())
    hint = f"columns: {', '.join(COLUMNS)}"
    for name in REQUIRED:
        if name not in columns:
            raise CliError(f"{file}: the first line names no column {name!r}", hint)
    for name in columns:
        if name not in COLUMNS:
            raise CliError(f"{file}: unknown column {name!r}", hint)


def _card_values(where: str, row: dict[str, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise CliError(f"{where}: not as many values as columns")
    values: dict[str, Any] = {name: row[name].strip() for name in TEXTS if row.get(name)}
    balance = (row.get("balance") or "0").strip()
    if not re.fullmatch(r"[0-9]{1,12}", balance):
        raise CliError(f"{where}: balance is a whole number of minor units")
    default = (row.get("default") or "").strip().lower()
    if default not in YES + NO:
        raise CliError(f"{where}: default is yes or no")
    return values | {"balance": int(balance), "default": default in YES}


def _private_file(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CliError(f"{path} exists", "seeds are never written over anything") from None


# ---- codes


@card.command("code")
@click.option("--seed", required=True, metavar="BASE32", help="As `card add` printed it.")
@click.option("--mode", type=click.Choice(("totp", "ocra")), default="totp", show_default=True)
@click.option("--kind", type=KINDS, default="cash_out", show_default=True, help="For ocra.")
@click.option("--amount", type=click.IntRange(1, 999_999_999), help="For ocra.")
@click.option("--at", metavar="TIME", help="ISO 8601 or seconds since 1970; else now.")
@click.pass_obj
def card_code(
    call: Call, seed: str, mode: str, kind: str, amount: int | None, at: str | None
) -> None:
    """Print the one-time code of a seed, as the holder's app shows it."""
    if mode == "ocra" and amount is None:
        raise click.UsageError("--mode ocra needs --amount: its codes are bound to it")
    now_s = time.time() if at is None else _instant(at)
    tokens = _tokens(call)
    code = code_of(seed, tokens, mode=mode, kind=kind, amount=amount or 0, now_s=int(now_s))
    left_s = tokens.step_s - int(now_s) % tokens.step_s
    call.answer({"code": code, "seconds_left": left_s}, lambda: click.echo(code))


def code_of(
    seed: str, tokens: Tokens, *, mode: str = "totp", kind: str = "cash_out", amount: int = 0,
    now_s: int,
) -> str:  # fmt: skip
    """The code of a base32 seed at a time. Raises: CliError for a seed that is none."""
    from core_ext._mac import ocra, totp
    from switch.flows.tokens import OCRA_SUITE, ocra_question
    from switch.ops.keys import from_base32

    try:
        key = from_base32(seed)
    except ValueError:
        raise CliError("the seed is not base32", "copy it as `card add` printed it") from None
    step = now_s // tokens.step_s
    if not 0 <= step < CODE_STEPS_MAX:
        raise CliError("there are no codes for that time")
    if mode == "ocra":
        return ocra(OCRA_SUITE, key, question=ocra_question(kind, amount), timestep=step)
    return totp(key, now_s, step_s=tokens.step_s, digits=tokens.digits, algorithm=tokens.algorithm)


def _tokens(call: Call) -> Tokens:
    """How codes are made here; the defaults where there is no configuration."""
    named = call.config_path or os.environ.get("TRONCAL_CONFIG")
    return call.config().tokens if named or Path(FILE_NAME).exists() else Tokens()


def _instant(text: str) -> float:
    try:
        return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]*)?", text) else _iso(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time", param_hint="--at") from None


def _iso(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _check_person(values: dict[str, Any]) -> None:
    try:
        norms.document(values["document_type"], values["document"])
        if values["phone"]:
            norms.phone(values["phone"])
    except norms.FieldError as bad:
        raise click.UsageError(norms.told_with_form(bad.field, " is not valid: ")) from None


def _check_date(text: str) -> None:
    if text and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise click.BadParameter(f"{text!r} is no date", param_hint="--expires")


# ---- one card


@card.command("enable")
@click.argument("card")
@click.pass_obj
def card_enable(call: Call, card: str) -> None:
    """Unblock a card."""
    call.fields(provision(call.config(), "card_enable", card=card, enable=True))


@card.command("disable")
@click.argument("card")
@click.pass_obj
def card_disable(call: Call, card: str) -> None:
    """Block a card."""
    call.fields(provision(call.config(), "card_enable", card=card, enable=False))


@card.command("close")
@click.argument("card")
@click.pass_obj
def card_close(call: Call, card: str) -> None:
    """Close a card for good."""
    call.fields(provision(call.config(), "card_close", card=card))


@card.command("unlock")
@click.argument("card")
@click.pass_obj
def card_unlock(call: Call, card: str) -> None:
    """Forget the wrong codes, as the holder does in the app."""
    call.fields(provision(call.config(), "card_unlock", card=card))


@card.command("enrol")
@click.argument("card")
@click.pass_obj
def card_enrol(call: Call, card: str) -> None:
    """Make a new seed; codes of the old one are dead at once."""
    call.fields(provision(call.config(), "card_enrol", card=card), SEED_ONCE)


@card.command("show")
@click.argument("card")
@click.pass_obj
def card_show(call: Call, card: str) -> None:
    """Show state and balance of a card."""
    call.fields(provision(call.config(), "card_show", card=card))


@card.command("fund")
@click.argument("card")
@click.argument("amount", type=AMOUNT)
@click.pass_obj
def card_fund(call: Call, card: str, amount: int) -> None:
    """Put money on a card."""
    call.fields(provision(call.config(), "card_fund", card=card, amount=amount))


@card.command("voucher")
@click.argument("card")
@click.option("--amount", type=AMOUNT, required=True)
@click.option("--seconds", type=click.IntRange(1, 30 * 86_400), default=600, show_default=True)
@click.option("--maximum", is_flag=True, help="Good for less than the amount, too.")
@click.option("--channel", "channels", type=KINDS, multiple=True, help="Else cash_out.")
@click.option("--hold", is_flag=True, help="Hold the amount until it is redeemed or expires.")
@click.pass_obj
def card_voucher(call: Call, /, channels: tuple[str, ...], **values: Any) -> None:
    """Issue a voucher; prints its code."""
    answer = provision(call.config(), "card_voucher", channels=list(channels) or None, **values)
    call.fields(answer, "The code is shown this once; only its HMAC is stored.")


@card.command("cancel-voucher")
@click.argument("card")
@click.argument("code")
@click.pass_obj
def card_cancel_voucher(call: Call, card: str, code: str) -> None:
    """Cancel a voucher that has not been redeemed."""
    call.fields(provision(call.config(), "card_voucher_cancel", card=card, code=code))


@card.command("list")
@click.pass_obj
def card_list(call: Call) -> None:
    """List the cards."""
    listed(call, "card")
