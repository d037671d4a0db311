"""Commands on the data directory itself: check, copy, export, replay."""

import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click
import msgspec
from rich.progress import BarColumn, DownloadColumn, TextColumn

from core_ext import Reader
from switch.cli.base import Call, CliError, Command, cell, print_fields, print_json, progress
from switch.cli.follower import existing_directory
from switch.cli.questions import read_model
from switch.config import Config
from switch.flows import operations as ops
from switch.journal import backup as backups
from switch.journal import queries, store
from switch.journal import verify as checks
from switch.journal.projector import projected_seq

# ---- verify


@click.command(cls=Command)
@click.pass_obj
def verify(call: Call) -> None:
    """Check journal, snapshots, ledger and register; works beside a running node.

    Exit code 1 and what is wrong, where something is.
    """
    config = call.config()
    report = checks.verify(config, existing_directory(config))
    call.answer(report, lambda: print_report(report))
    if not report.ok:
        raise click.exceptions.Exit(1)


def print_report(report: checks.Report) -> None:
    """A report for people: figures on stdout, what is wrong on stderr."""
    print_fields(
        {
            "journal": f"records {report.first_seq} to {report.last_seq} in "
            f"{report.segments} segments",
            "replayed": f"{cell(report.records)} records in {report.seconds:.3f} s, "
            f"{cell(report.records_per_s)} a second",
            "state": f"{report.digests_checked} digests and {report.snapshots} snapshots agree",
            "accounts": report.accounts,
            "open holds": report.holds_open,
            "operations": report.operations,
            "registered": report.registered_amount,
            "money check": report.money_check,
        }
    )
    if report.torn:
        click.echo(f"torn end, cut at the next start: {report.torn}", err=True)
    for problem in report.problems:
        click.echo(click.style("wrong: ", fg="red") + problem, err=True)
    if report.problem_count > len(report.problems):
        click.echo(f"… and {report.problem_count - len(report.problems)} more", err=True)
    if report.ok:
        click.echo(click.style("sound", fg="green", bold=True))


# ---- backup, restore, snapshot, replay


def _bytes_bar(work: Callable[[backups.Progress], Any]) -> Any:
    columns = (TextColumn("copying"), BarColumn(), DownloadColumn())
    with progress(*columns) as bar:
        task = bar.add_task("copying", total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))


@click.command(cls=Command)
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.pass_obj
def backup(call: Call, target: Path) -> None:
    """Copy the data directory into TARGET, a new or empty directory; a node may be running.

    The master key is not part of it.
    """
    config = call.config()
    source = existing_directory(config)
    manifest: backups.Manifest = _bytes_bar(
        lambda told: backups.backup(source, target, now_ns=time.time_ns(), progress=told)
    )
    call.fields(_summary(manifest, target), f"Keep {config.node.master_key_file} elsewhere.")


@click.command(cls=Command)
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_obj
def restore(call: Call, source: Path) -> None:
    """Copy the backup SOURCE into the configured data directory, which must be empty or new.

    Every file is checked against the manifest, and the result as `verify` does.
    """
    config = call.config()
    directory = config.data
    manifest: backups.Manifest = _bytes_bar(
        lambda told: backups.restore(source, directory, progress=told)
    )
    report = checks.verify(config, directory)
    if report.last_seq != manifest.last_seq:
        report.problem(f"the journal ends at {report.last_seq}, not at {manifest.last_seq}")
    if report.problem_count:
        raise CliError(f"restored, but not sound: {report.problems[0]}", "troncal verify")
    call.fields(_summary(manifest, directory))


def _summary(manifest: backups.Manifest, directory: Path) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "last_seq": manifest.last_seq,
        "chain": manifest.chain,
    }


@click.command(cls=Command)
@click.pass_obj
def snapshot(call: Call) -> None:
    """Write a snapshot of what is durable now; recovery then starts there."""
    config = call.config()
    began = time.perf_counter()
    directory = existing_directory(config)
    path = store.make_snapshot(config, directory)
    pruned = store.prune_segments(config, directory, projected_seq(directory))
    seconds = round(time.perf_counter() - began, 3)
    size = path.stat().st_size
    call.fields(
        {"snapshot": str(path), "bytes": size, "seconds": seconds, "segments_pruned": pruned}
    )


@click.command(cls=Command)
@click.option("--upto", type=click.IntRange(min=0), metavar="SEQ", help="Stop after this record.")
@click.pass_obj
def replay(call: Call, upto: int | None) -> None:
    """Replay the journal from its first record into empty state and tell what came of it.

    Stops at the last group that ends at SEQ or before.
    """
    config = call.config()
    directory = existing_directory(config)
    state = store.State(config, directory)
    reader = Reader(str(directory / backups.JOURNAL))
    began = time.perf_counter()
    records = state.follow(reader, store.SEQ_MAX if upto is None else upto)
    seconds = time.perf_counter() - began
    reader.close()
    answer = {
        "records": records,
        "last_seq": state.position.seq,
        "seconds": round(seconds, 6),
        "records_per_s": int(records / seconds) if seconds else 0,
        "digests_checked": state.digests_checked,
        "ledger": state.ledger.counts(),
        "records_kept": len(state.records),
        "ledger_digest": f"{state.ledger.digest():016x}",
        "records_digest": f"{state.records.digest():016x}",
    }
    call.fields(answer)


# ---- export


@click.command(cls=Command)
@click.option(
    "--what", type=click.Choice(("operations", "holds", "accounts")), default="operations",
    show_default=True,
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(("csv", "jsonl")), help="Else csv; with --json jsonl."
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; else stdout."
)
@click.pass_obj
def export(call: Call, what: str, form: str | None, output: Path | None) -> None:
    """Write operations, open holds or accounts as CSV or as JSON, one line each.

    Operations come from the read model, the newest first, at most 100000; holds and accounts from
    a replay of what is durable now. Documents are masked. With --output and --json, how many rows
    the file has is told on stdout.
    """
    config = call.config()
    directory = existing_directory(config)
    rows = _operations(config) if what == "operations" else _state_rows(config, directory, what)
    form = form or ("jsonl" if call.json else "csv")
    if output is None:
        _write_rows(sys.stdout, rows, form)
        return
    with open(output, "w", newline="", encoding="utf-8") as file:
        count = _write_rows(file, rows, form)
    if call.json:
        print_json({"file": str(output), "rows": count})


def _operations(config: Config) -> Iterator[dict[str, Any]]:
    yield from queries.operations(read_model(config), limit=queries.ROWS_MAX)


def _state_rows(config: Config, directory: Path, what: str) -> Iterator[dict[str, Any]]:
    state = store.State(config, directory)
    state.recover(live=True)
    if what == "accounts":
        for account, balance in state.ledger.accounts():
            yield {"account": account.hex()} | balance._asdict()
        return
    for _, value in state.records.open_items(ops.CEIBO_HOLDS):
        hold = ops.decode_ceibo(value)
        yield {
            "network": hold.network,
            "operation": hold.operation,
            "kind": hold.kind,
            "card": hold.card,
            "amount": hold.amount,
            "currency": hold.currency,
            "fee": hold.fee,
            "state": hold.state,
            "authorization": hold.authorization,
            "created_ns": hold.created_ns,
            "terminal": hold.terminal,
            "branch": hold.branch,
        }


def _write_rows(file: TextIO, rows: Iterator[dict[str, Any]], form: str) -> int:
    """Write them; returns how many there were."""
    count = 0
    writer: Any = None
    for row in rows:
        count += 1
        if form == "jsonl":
            file.write(msgspec.json.encode(row).decode() + "\n")
            continue
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return count
