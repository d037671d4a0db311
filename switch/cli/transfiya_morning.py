"""The morning's comparison with the network's conciliation: asked for, compared, told."""

from datetime import date as Date
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from protocols.transfiya import BodyError, decode
from protocols.transfiya.conciliation import ConciliationError, compare, lines_of
from protocols.transfiya.times import label_text, zone_of
from switch.cli.base import CliError
from switch.cli.provision import provision
from switch.cli.transfiya_network import asked, bank_of, word_of
from switch.config import Config
from switch.flows.transfiya_jobs import OK, Job
from switch.journal import transfiya_queries as queries
from switch.sections.transfiya import Bank

SECOND_NS: Final = 1_000_000_000
DAY_NS: Final = 86_400 * SECOND_NS
MIDNIGHT_NS: Final = 3600 * SECOND_NS  # so near to it a movement may be of either day


def compared(config: Config, model: Path, bank: str, date: str, given: bytes | None) -> Any:
    """Compare one day of one bank, and have the node keep the result.

    Args:
        model: the read model. date: ISO 8601; empty: yesterday. given: the network's answer, where
            it is known already.

    Raises:
        CliError: no such bank or date, or the network's answer cannot be had or read.
    """
    settings = bank_of(config, bank)
    zone = zone_of(settings.label_timezone)
    try:
        day = Date.fromisoformat(date) if date else datetime.now(zone).date() - timedelta(days=1)
        from_ns = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * SECOND_NS
    except (ValueError, OverflowError):
        raise CliError(f"{date!r} is no date", "as 2026-01-31") from None
    try:
        value = _value(given) if given is not None else _asked(config, settings, from_ns)
        there = lines_of(value)
    except ConciliationError as error:
        raise CliError(f"the network's conciliation: {error}") from None
    near = queries.proven(model, bank, from_ns - MIDNIGHT_NS, from_ns + DAY_NS + MIDNIGHT_NS)
    here = {line.action_id: line for line, _ in near}
    known = {line.action_id for line in there}
    for line in queries.proven_actions(model, bank, known - here.keys()):
        here[line.action_id] = line
    inner = (from_ns + MIDNIGHT_NS, from_ns + DAY_NS - MIDNIGHT_NS)
    ours = [
        here[line.action_id]
        for line, at_ns in near
        if line.action_id in known or inner[0] <= at_ns < inner[1]
    ]
    exponent = next(iter(settings.symbols.values())).exponent
    differences = compare({*ours, *(here[n] for n in known & here.keys())}, there, exponent)
    values = {"bank": bank, "date": day.isoformat(), "lines": len(there)}
    provision(config, "transfiya_conciliated", **values, differences=len(differences))
    return {**values, "ours": len(ours), "differences": msgspec.to_builtins(differences)}


def _value(given: bytes) -> Any:
    """Lines as they are, or JSON. Raises: ConciliationError."""
    if given.lstrip()[:1] in (b"{", b"["):
        try:
            return decode(given)
        except BodyError:
            raise ConciliationError("no JSON") from None
    try:
        return given.decode("ascii")
    except UnicodeDecodeError:
        raise ConciliationError("neither lines nor JSON") from None


def _asked(config: Config, settings: Bank, from_ns: int) -> Any:
    """The network's answer for a day. Raises: CliError."""
    zone = zone_of(settings.label_timezone)
    query = (
        ("bankId", settings.id), ("startDate", label_text(from_ns, zone)),
        ("endDate", label_text(from_ns + DAY_NS, zone)),
    )  # fmt: skip
    job = Job(settings.id, "", "conciliation", "GET", "/conciliation", query)

    outcome = asked(config, settings, job)
    if outcome.status != OK:
        word = word_of(outcome)
        raise CliError(f"the network does not tell its conciliation: {word}", "--file takes it")
    return outcome.value
