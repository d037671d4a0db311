"""Taking in a file: its pieces are carried to the node one after the other, its answer is written.

Beside the file are then `<name>.OK` or `<name>.ERR` (reason and line numbers) and, where it was
taken in, the report of all differences, `<name>.DIF.csv`. Cut short anywhere, the file is simply
taken in again: the node judges every piece by what it has now.
"""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from switch.admin_socket import ProvisioningError
from switch.flows.conciliation import LINES_MAX, Verdict
from switch.reports.comparison import Comparison, Difference, Item, difference
from switch.reports.daily_file import FileRefused, parse_name, sync_directory

Carry = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Carries out one command at the node; what it answers is durable."""

_DIFFERENCE = tuple(Difference.__struct_fields__)


async def take_in(
    carry: Carry, comparison: Comparison, *, issuer: str = "", ceibo: bool = False
) -> dict[str, Any]:
    """Take in a file that is balanced, and write its answer.

    Args:
        issuer: whose file it is, as for `Comparison`; empty: red's.
        ceibo: the issuer's books are in the read model too: all three are compared.

    Returns:
        `state` (`known`: it was taken in before, and nothing came of it), counts and differences.
    """
    path = comparison.file.path
    report = _Report(beside(path, ".DIF.csv"))
    done = False
    try:
        answer = await (
            _take_in_issuer(carry, comparison, report)
            if issuer
            else _take_in_red(carry, comparison, report, ceibo)
        )
        done = answer["state"] != "known"
    finally:
        report.close(keep=done)
    if not done and not beside(path, ".OK").exists():  # a stop came just before it was written
        write_lines(beside(path, ".OK"), [f"{name}: {value}" for name, value in answer.items()])
    if done:
        answer["counts"] = dict(report.counts)
        answer["differences"] = dict(report.differences)
        write_lines(beside(path, ".OK"), [f"{name}: {value}" for name, value in answer.items()])
        answer["report"] = str(report.path)
    return answer


async def refuse(carry: Carry, path: Path, refused: FileRefused) -> None:
    """Write the answer to a file that is refused whole; the node raises its alarm."""
    lines = [*map(str, refused.mistakes), f"mistakes: {refused.count}"]
    write_lines(beside(path, ".ERR"), lines)
    name = parse_name(path.name)
    if name is not None:
        await carry(
            "conciliation_refused",
            {
                "network": name.network, "business_date": name.business_date,
                "version": name.version, "reason": str(refused.mistakes[0]),
            },
        )  # fmt: skip


class _Report:
    """The difference report as it is written, and the counts for the answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.differences: Counter[str] = Counter()
        self._partial = path.with_name(f".{path.name}.part")
        self._stream = open(self._partial, "w", encoding="ascii", newline="\n")  # noqa: SIM115
        self._stream.write(";".join(_DIFFERENCE) + "\n")

    def add(self, found: Difference) -> None:
        if found.difference:
            self.differences[found.difference] += 1
        cells = (str(getattr(found, name)) for name in _DIFFERENCE)
        self._stream.write(";".join(cells) + "\n")

    def close(self, *, keep: bool) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        if keep:
            os.replace(self._partial, self.path)
            sync_directory(self.path.parent)
        else:
            self._partial.unlink(missing_ok=True)


async def _take_in_red(
    carry: Carry, comparison: Comparison, report: _Report, ceibo: bool
) -> dict[str, Any]:
    header, trailer, file = comparison.file.header, comparison.trailer, comparison.file
    which = {
        "network": header.network, "business_date": header.business_date, "version": header.version
    }  # fmt: skip
    begun = await carry(
        "conciliation_begin",
        which | {
            "sha256": file.sha256, "details": trailer.count, "cash_out": trailer.cash_out,
            "deposit": trailer.deposit, "commission": trailer.commission,
        },
    )  # fmt: skip
    answer: dict[str, Any] = which | {"state": begun["state"]}
    if begun["state"] == "known":
        return answer
    for found in comparison.repeated():
        report.add(found)
    for places in comparison.places():
        values = {"network": header.network, "places": places}
        known = await carry("conciliation_known", values)
        for place, is_known in zip(places, known, strict=True):
            for found in () if is_known else comparison.at_place(*place):
                report.add(found)
    await _carry_items(carry, "conciliation_lines", which, comparison.lines(), report)
    await _carry_items(carry, "conciliation_absent", which, comparison.absent(), report)
    if ceibo:
        await _resend(carry, comparison.at_ceibo(), report)
    corrected, more = 0, True
    while more:
        ended = await carry("conciliation_end", which | {"counts": dict(report.counts)})
        corrected, more = corrected + ended["corrected"], bool(ended["more"])
    return answer | {"corrected": corrected}


async def _take_in_issuer(carry: Carry, comparison: Comparison, report: _Report) -> dict[str, Any]:
    """ceibo's file decides nothing: what it misses is asked for again."""
    for found in comparison.repeated():
        report.add(found)
    await _resend(carry, comparison.at_ceibo(issuer_file=True), report)
    header = comparison.file.header
    return {"network": header.network, "business_date": header.business_date, "state": "compared"}


async def _carry_items(
    carry: Carry, command: str, which: dict[str, Any], items: Iterable[Item], report: _Report
) -> None:
    waiting = iter(items)
    while piece := list(islice(waiting, LINES_MAX)):
        values = which | {"lines": [i.line for i in piece], "views": [i.known for i in piece]}
        answers = msgspec.convert(await carry(command, values), list[Verdict])
        for item, verdict in zip(piece, answers, strict=True):
            report.counts[verdict.action] += 1
            found = difference(item, verdict)
            if found is not None:
                report.add(found)


async def _resend(
    carry: Carry, differences: Iterable[tuple[Difference, str]], report: _Report
) -> None:
    for found, wanted in differences:
        if wanted:
            try:
                values = {"reference": found.reference, "what": wanted}
                await carry("conciliation_resend", values)
            except ProvisioningError:  # older than the retention: people have to look at it
                found = msgspec.structs.replace(found, action="")
        report.add(found)


def unanswered(directory: Path) -> list[Path]:
    """Files of a directory without an answer, by network, date and version."""
    found = []
    for path in directory.iterdir():
        name = parse_name(path.name)
        answered = beside(path, ".OK").exists() or beside(path, ".ERR").exists()
        if name is not None and not answered:
            found.append((name, path))
    return [path for _, path in sorted(found)]


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    with open(partial, "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)
