"""`operations` and `operation`: questions to the read model."""

import contextlib
import sqlite3
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from switch.cli.base import Call, CliError, Command, Group, local_time, print_fields, print_table
from switch.cli.provision import node_answers, provision
from switch.config import Config
from switch.flows import ticket
from switch.flows.states import ANULADA, RED, REGISTRADA
from switch.journal import queries

if TYPE_CHECKING:
    from switch.ops.keys import MasterKey

FOLLOWER_WAIT_S: Final = 30.0
FOLLOWER_PAUSE_S: Final = 0.02
STUCK_NS: Final = 300 * 1_000_000_000
SINCE_NS_MAX: Final = 2**63 - 1
STATES = tuple(sorted({state for (_, _), state in RED.items()}))
SHOWN = (
    "received_ns", "reference", "operation", "kind", "cashier", "document", "amount", "currency",
    "state", "code", "sicoop", "ceibo",
)  # fmt: skip


def read_model(config: Config) -> Path:
    """Path of the read model, which holds all that was durable when this was called.

    On a running node its follower brings it there; else it is done here.
    """
    directory = config.data
    if not directory.is_dir():
        raise CliError(f"there is no data directory {directory}", "`troncal init` makes one")
    path = directory / queries.FILE_NAME
    if not node_answers(config):
        from switch.journal.projector import Projector  # a node's follower has it loaded

        follower = Projector(config, directory, master_key(config))
        try:
            follower.catch_up()
        finally:
            follower.close()
        return path
    durable_seq: int = provision(config, "status")["durable_seq"]
    give_up_at = time.monotonic() + FOLLOWER_WAIT_S
    while (seq := _progress(path)) < durable_seq and time.monotonic() < give_up_at:
        time.sleep(FOLLOWER_PAUSE_S)
    if not seq:
        raise CliError("the node has not made its read model yet", "try again in a moment")
    if seq < durable_seq:
        message = f"the read model is at record {seq} of {durable_seq}: newer ones are missing"
        click.echo(message, err=True)
    return path


def master_key(config: Config) -> "MasterKey | None":
    """For the hashes that daily files have; None where it cannot be read here."""
    from switch.ops.keys import MasterKey, MasterKeyError

    try:
        return MasterKey.load(config.file(config.node.master_key_file))
    except MasterKeyError:
        return None


def _progress(path: Path) -> int:
    """The record up to which the read model goes; 0 while there is none."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT seq FROM progress").fetchone()
    except sqlite3.OperationalError:
        return 0
    return 0 if row is None else int(row[0])


def _since(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int:
    """Nanoseconds since 1970 of an ISO 8601 time, or of a span back from now such as 90m."""
    if value is None:
        return 0
    spans = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if value[-1:] in spans and value[:-1].isdigit():
        return max(time.time_ns() - int(value[:-1]) * spans[value[-1]] * 1_000_000_000, 0)
    try:
        return min(int(datetime.fromisoformat(value).timestamp()) * 1_000_000_000, SINCE_NS_MAX)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is neither 30m, 2h, 1d nor ISO 8601") from None


@click.command(cls=Command)
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Of red.")
@click.option("--terminal", metavar="NNNNNNNN", help="Of this terminal only.")
@click.option("--limit", type=click.IntRange(1, queries.ROWS_MAX), default=50, show_default=True)
@click.option("--since", callback=_since, metavar="TIME", help="As 30m, 2h, 1d, or ISO 8601.")
@click.option("--stuck", is_flag=True, help="What does not end by itself, the oldest first.")
@click.pass_obj
def operations(
    call: Call, state: str | None, terminal: str | None, limit: int, since: int, stuck: bool
) -> None:  # fmt: skip
    """List the newest operations; documents are masked.

    With --stuck: what has been owed, in doubt or held for five minutes, conflicts, open cases.
    """
    path = read_model(call.config())
    if stuck:
        found = queries.stuck(path, time.time_ns() - STUCK_NS, limit)
        call.answer(found, lambda: print_table(found, empty="nothing is stuck"))
        return
    rows = queries.operations(path, state=state, terminal=terminal, limit=limit, since_ns=since)
    shown = [{name: row[name] for name in SHOWN if name in row} for row in rows]
    call.answer(rows, lambda: print_table(shown, empty="no operations"))


@click.command(cls=Command)
@click.argument("number", metavar="REFERENCE")
@click.option("--unmask", is_flag=True, help="Show documents and declaration in full; audited.")
@click.option("--by", "author", default="", metavar="NAME", help="Who asks, with --unmask.")
@click.option("--reason", default="", metavar="TEXT", help="Why, with --unmask.")
@click.option("--control", "shown", metavar="XXXXXXXX", help="Control on a ticket to be checked.")
@click.pass_obj
def operation(
    call: Call, number: str, unmask: bool, author: str, reason: str, shown: str | None
) -> None:  # fmt: skip
    """Show one operation with its whole time line and its ticket's control.

    REFERENCE has 26 digits; the 12 digits of the operation's number do as well. With --unmask, who
    asked and why goes into the audit trail before anything is shown. With --control, a ticket that
    somebody shows is compared first: exit 1 where it is not this operation's.
    """
    if unmask != bool(author and reason):
        raise click.UsageError("--unmask needs --by and --reason, and they need it")
    if not (number.isascii() and number.isdigit() and len(number) in (12, 26)):
        raise click.UsageError("REFERENCE has 26 digits, the number of an operation has 12")
    path = read_model(call.config())
    found = queries.operation(path, number)
    if found is None:
        raise CliError(f"there is no operation {number}", "`troncal operations` lists the newest")
    found["control"] = _ticket_control(call.config(), path, found)
    if shown is not None:
        _compare(shown, found["control"], number)
    if unmask:
        values = {"reference": found["reference"], "author": author, "reason": reason}
        found |= provision(call.config(), "operation_unmask", **values)
    call.answer(found, lambda: _print_operation(found))


def _ticket_control(config: Config, path: Path, found: dict[str, Any]) -> str:
    """What the ticket of a registered operation, or of its annulment, proves itself with; "" where
    there is none, or the master key cannot be read here."""
    registered = ("red", REGISTRADA)
    at_ns = [e["at_ns"] for e in found["timeline"] if (e["role"], e["state"]) == registered]
    annuls = found["kind"] == "annul"  # its ticket is about what it annuls
    about = queries.operation(path, found["original"]) if annuls else found
    master = master_key(config)
    if not at_ns or about is None or master is None or (annuls and about["state"] != ANULADA):
        return ""
    return ticket.control(
        ticket.control_key(master.subkey("ticket")),
        kind=about["kind"],
        reference=about["reference"],
        operation=about["operation"],
        authorization=about["authorization"],
        amount=about["amount"],
        currency=about["currency"],
        business_date=about["business_date"],
        hhmmss=config.calendar().local_time(at_ns[0]),
        state=ANULADA if annuls else REGISTRADA,
    )


def _compare(shown: str, expected: str, number: str) -> None:
    """Raises: CliError: a ticket that shows this control is not the operation's."""
    if not expected:
        raise CliError(
            f"operation {number} has no control to compare with",
            "red's node has it, with its master key, of what was registered",
        )
    if not ticket.control_matches(shown, expected):
        raise CliError(
            f"a ticket with control {shown.strip()[:8]!r} is not that of operation {number}",
            "read it again: eight digits or letters A to F; that of an annulment goes with the"
            " annulment's own reference",
        )


@click.command(cls=Command)
@click.option("--differing", is_flag=True, help="Only where too little or too much was counted.")
@click.option("--limit", type=click.IntRange(1, queries.ROWS_MAX), default=50, show_default=True)
@click.option("--since", callback=_since, metavar="TIME", help="As 30m, 2h, 1d, or ISO 8601.")
@click.pass_obj
def tills(call: Call, differing: bool, limit: int, since: int) -> None:
    """List what cashiers counted at the end of their shifts, the newest first.

    The difference is what was counted less what should have been there: below 0, cash is missing.
    """
    path = read_model(call.config())
    rows = queries.till_counts(path, differing=differing, limit=limit, since_ns=since)
    call.answer(rows, lambda: print_table(rows, empty="no till was counted"))


@click.group(cls=Group)
def saf() -> None:
    """Store and forward: what is owed to another role until it has acknowledged it."""


@saf.command("list")
@click.option("--limit", type=click.IntRange(1, queries.ROWS_MAX), default=1000, show_default=True)
@click.pass_obj
def saf_list(call: Call, limit: int) -> None:
    """List confirmations, reversals and annulments that are owed, the oldest first.

    `troncal links` shows how often a running node has tried.
    """
    rows = queries.owed(read_model(call.config()), limit)
    call.answer(rows, lambda: print_table(rows, empty="nothing is owed"))


def _print_operation(found: dict[str, Any]) -> None:
    timeline, annulments = found["timeline"], found["annulments"]
    apart = ("timeline", "annulments", "case")
    print_fields({k: v for k, v in found.items() if k not in apart})
    began_ns = timeline[0]["at_ns"] if timeline else 0
    rows = [
        {
            "at": local_time(entry["at_ns"]),
            "after ms": f"{(entry['at_ns'] - began_ns) / 1e6:.3f}",
            "role": entry["role"],
            "state": entry["state"],
        }
        for entry in timeline
    ]
    print_table(rows, "Time line")
    if annulments:
        print_table([{n: a.get(n) for n in SHOWN} for a in annulments], "Annulments")
    if "case" in found:
        print_fields({f"case {name}": value for name, value in found["case"].items()})
