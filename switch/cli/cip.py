"""The payment application: applications, users, keys, payments, reports."""

import json
import secrets
import sqlite3
import sys
from typing import Any, Final

import click
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from switch.cli.base import Call, CliError, Group, print_table
from switch.cli.provision import provision
from switch.config import Config

KINDS = click.Choice(("machine", "customer", "clerk", "approver", "auditor", "admin"))
SOURCES = click.Choice(("simulator", "bank", "dimo", "ledger"))
MODES: Final = ("gateway", "partial", "full")
PASSWORD_LENGTH: Final = (12, 256)
GENERATED_BYTES: Final = 18
HASHES_CHECKED: Final = 5  # the present password and the last four
ONCE: Final = "Shown this once."
NEEDED: Final = {"bank": "bank", "dimo": "terminal"}
"""What else an application has to name, by its source."""


@click.group(cls=Group)
def cip() -> None:
    """The payment application: Gateway, Partial and Full mode."""


# ---- applications


@cip.group(cls=Group)
def app() -> None:
    """Applications of sites that take payments."""


@app.command("add")
@click.argument("id")
@click.option("--name", default="", help="Shown on pages.")
@click.option("--modes", default=",".join(MODES), show_default=True, metavar="LIST")
@click.option("--source", type=SOURCES, default="simulator", show_default=True)
@click.option("--set", "sets", multiple=True, metavar="KEY=JSON", help="Any key of its section.")
@click.pass_obj
def app_add(call: Call, id: str, name: str, modes: str, source: str, sets: tuple[str, ...]) -> None:
    """Make an application."""
    answer = provision(
        call.config(), "cip_app_add", id=id, name=name, source=source,
        modes=[mode.strip() for mode in modes.split(",") if mode.strip()], values=_values(sets),
    )  # fmt: skip
    needed = NEEDED.get(source, "")
    missing = needed and not any(entry.startswith(f"{needed}=") for entry in sets)
    note = f"Source {source} is down until `troncal cip app set {id} {needed}=…`."
    call.fields(answer, note if missing else "")


@app.command("set")
@click.argument("id")
@click.argument("sets", nargs=-1, required=True, metavar="KEY=JSON…")
@click.pass_obj
def app_set(call: Call, id: str, sets: tuple[str, ...]) -> None:
    """Change keys of an application, as in [cip.application.ID]."""
    call.fields(provision(call.config(), "cip_app_set", id=id, values=_values(sets)))


@app.command("list")
@click.pass_obj
def app_list(call: Call) -> None:
    """All applications."""
    rows = provision(call.config(), "cip_app_list")
    call.answer(rows, lambda: print_table(rows, empty="no application"))


# ---- users


@cip.group(cls=Group)
def user() -> None:
    """Machines, customers and people of the service desk."""


@user.command("add")
@click.argument("application")
@click.argument("user")
@click.option("--kind", type=KINDS, required=True)
@click.option("--email", default="", help="Where the link goes that unlocks this user.")
@click.option("--generate", is_flag=True, help="Make a password; else it is read from stdin.")
@click.pass_obj
def user_add(
    call: Call, application: str, user: str, kind: str, generate: bool, email: str
) -> None:
    """Make a user with a password."""
    config = call.config()
    password = _password(generate)
    answer = provision(
        config, "cip_user_add", application=application, user=user, kind=kind,
        hash=_hash(config, password), email=email,
    )  # fmt: skip
    _tell(call, answer, password if generate else "")


@user.command("password")
@click.argument("application")
@click.argument("user")
@click.option("--generate", is_flag=True, help="Make a password; else it is read from stdin.")
@click.pass_obj
def user_password(call: Call, application: str, user: str, generate: bool) -> None:
    """Give a user another password, and unlock him."""
    config = call.config()
    password = _password(generate)
    hasher = _hasher(config)
    known = provision(config, "cip_user_hashes", application=application, user=user)
    if any(_is_of(hasher, hashed, password) for hashed in known[:HASHES_CHECKED]):
        raise CliError("this password was used before", "choose one that is not among the last 4")
    answer = provision(
        config, "cip_user_password", application=application, user=user,
        hash=_hash(config, password),
    )  # fmt: skip
    _tell(call, answer, password if generate else "")


@user.command("email")
@click.argument("application")
@click.argument("user")
@click.argument("email")
@click.pass_obj
def user_email(call: Call, application: str, user: str, email: str) -> None:
    """Tell where the link goes that unlocks a user; "" for nowhere."""
    call.fields(
        provision(
            call.config(), "cip_user_email", application=application, user=user, email=email
        )
    )  # fmt: skip


def _state(what: str, text: str) -> None:
    @user.command(what, help=text)
    @click.argument("application")
    @click.argument("user")
    @click.pass_obj
    def command(call: Call, application: str, user: str) -> None:
        call.fields(
            provision(
                call.config(), "cip_user_state", application=application, user=user, what=what
            )
        )


_state("unlock", "Let a locked user try again.")
_state("disable", "Let a user do nothing more.")
_state("enable", "Undo disable.")


@user.command("list")
@click.argument("application")
@click.pass_obj
def user_list(call: Call, application: str) -> None:
    """Users of an application."""
    rows = provision(call.config(), "cip_user_list", application=application)
    call.answer(rows, lambda: print_table(rows, empty="no user"))


# ---- keys


@cip.group(cls=Group)
def key() -> None:
    """Signing keys of applications."""


@key.command("add")
@click.argument("application")
@click.pass_obj
def key_add(call: Call, application: str) -> None:
    """Make one more signing key."""
    call.fields(provision(call.config(), "cip_key_add", application=application), ONCE)


@key.command("rotate")
@click.argument("application")
@click.pass_obj
def key_rotate(call: Call, application: str) -> None:
    """Make a new signing key; those in force end after seven days."""
    call.fields(provision(call.config(), "cip_key_rotate", application=application), ONCE)


@key.command("end")
@click.argument("application")
@click.argument("key_id")
@click.pass_obj
def key_end(call: Call, application: str, key_id: str) -> None:
    """End a key now."""
    call.fields(provision(call.config(), "cip_key_end", application=application, key_id=key_id))


@key.command("list")
@click.argument("application")
@click.pass_obj
def key_list(call: Call, application: str) -> None:
    """Signing keys of an application; never their secrets."""
    rows = provision(call.config(), "cip_key_list", application=application)
    call.answer(rows, lambda: print_table(rows, empty="no key"))


# ---- payments


@cip.command()
@click.option("--application", "-a", default="", help="Only this one's.")
@click.option("--status")
@click.option("--mode", type=click.Choice(MODES))
@click.option("--client-ref")
@click.option("--confirmation")
@click.option("--payer")
@click.option("--amount-min", metavar="AMOUNT", help="Minor units.")
@click.option("--amount-max", metavar="AMOUNT")
@click.option("--source", type=SOURCES)
@click.option("--user", help="Who made the payment, or did something about it.")
@click.option("--run", help="The report it is in.")
@click.option("--from", "from_", metavar="DATE", help="In the application's zone; of all: UTC.")
@click.option("--until", metavar="DATE")
@click.option("--limit", type=click.IntRange(1, 50_000), default=50, show_default=True)
@click.pass_obj
def payments(call: Call, /, application: str, limit: int, **filters: str | None) -> None:
    """Payments of the read model, newest first."""
    from switch.journal import cip_queries as queries
    from switch.journal.projector import FILE_NAME
    from switch.provisioning_cip import shown_payment

    config = call.config()
    asked = {name.rstrip("_"): value for name, value in filters.items() if value}
    zone = _zone(config, application)
    try:
        rows, _ = queries.payments(config.data / FILE_NAME, application, zone, asked, limit=limit)
    except queries.FilterError as error:
        raise CliError(f"the filter {error} cannot be read") from None
    except sqlite3.OperationalError:
        raise CliError("there is no read model yet", "`troncal project` makes it") from None
    shown = [shown_payment(row) for row in rows]
    call.answer(shown, lambda: print_table(shown, empty="no payment"))


def _zone(config: Config, application: str) -> Any:
    from zoneinfo import ZoneInfo

    if not application:
        return ZoneInfo("UTC")
    found = provision(config, "cip_app_list")
    zones = [row["timezone"] for row in found if row["application"] == application]
    if not zones:
        raise CliError(f"there is no application {application}", "troncal cip app list")
    return ZoneInfo(zones[0])


# ---- reports


@cip.group(cls=Group)
def report() -> None:
    """Reports of confirmed payments, voids and refunds."""


@report.command("run")
@click.argument("application")
@click.pass_obj
def report_run(call: Call, application: str) -> None:
    """Make a report of everything up to now."""
    call.fields(provision(call.config(), "cip_report_run", application=application))


@report.command("send")
@click.argument("run", metavar="RUN|APPLICATION")
@click.pass_obj
def report_send(call: Call, run: str) -> None:
    """Send a report again, of an application its newest: a new run with the same lines."""
    call.fields(provision(call.config(), "cip_report_send", run=run))


@report.command("list")
@click.argument("application")
@click.pass_obj
def report_list(call: Call, application: str) -> None:
    """Report runs of an application."""
    rows = provision(call.config(), "cip_report_list", application=application)
    call.answer(rows, lambda: print_table(rows, empty="no report"))


@report.command("year")
@click.argument("application")
@click.argument("year", type=click.IntRange(2000, 2200))
@click.pass_obj
def report_year(call: Call, application: str, year: int) -> None:
    """Count, amount and fees of a year's payments, voids and refunds, from the read model."""
    import msgspec

    from switch.journal import cip_queries as queries
    from switch.journal.projector import FILE_NAME

    config = call.config()
    zone = _zone(config, application)
    try:
        found = queries.yearly(config.data / FILE_NAME, application, zone, year)
    except sqlite3.OperationalError:
        raise CliError("there is no read model yet", "`troncal project` makes it") from None
    rows = [msgspec.to_builtins(row) for row in found]
    call.answer(rows, lambda: print_table(rows, empty="nothing in that year"))


# ---- common


def _values(sets: tuple[str, ...]) -> dict[str, Any]:
    """KEY=JSON; what is no JSON is a text."""
    found: dict[str, Any] = {}
    for entry in sets:
        name, equals, text = entry.partition("=")
        if not equals:
            raise CliError(f"{entry} is not KEY=VALUE")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _password(generate: bool) -> str:
    if generate:
        return secrets.token_urlsafe(GENERATED_BYTES)
    if sys.stdin.isatty():
        password: str = click.prompt("password", hide_input=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    low, high = PASSWORD_LENGTH
    if not low <= len(password) <= high:
        raise CliError(
            f"a password has {low} to {high} characters", "or let one be made: --generate"
        )
    return password


def _tell(call: Call, answer: dict[str, Any], generated: str) -> None:
    """What was done; a password only where it was made here."""
    call.fields({**answer, "password": generated} if generated else answer, ONCE * bool(generated))


def _hasher(config: Config) -> PasswordHasher:
    auth = config.cip.auth
    return PasswordHasher(
        time_cost=auth.time_cost, memory_cost=auth.memory_kib, parallelism=auth.parallelism
    )


def _hash(config: Config, password: str) -> str:
    return _hasher(config).hash(password)


def _is_of(hasher: PasswordHasher, hashed: str, password: str) -> bool:
    try:
        return hasher.verify(hashed, password)
    except VerificationError:
        return False
