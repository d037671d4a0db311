"""`sim`: a peer that behaves, or misbehaves on demand, for tests by hand."""

import time
from collections import Counter
from dataclasses import fields
from typing import Any, Final

import click
import trio

from protocols.messages import Answer, Deposit, HolderAnswer, LastOperation
from switch.cli.base import Call, CliError, Group
from switch.cli.send import Sender, as_terminal
from switch.simulators.faults import SHARES, Faults, FaultyStream
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal

SIGN_ONS_MAX: Final = 50
QUERIES_MAX: Final = 50
PAUSE_S: Final = 0.2


@click.group(cls=Group)
def sim() -> None:
    """Simulate a peer."""


def _faults(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, float]:
    shares: dict[str, float] = {}
    names = tuple(field.name for field in fields(Faults))
    for value in values:
        name, _, share = value.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not NAME=NUMBER") from None
        if name not in names:
            raise click.BadParameter(f"{name!r} is none of {', '.join(names)}")
    try:
        Faults(**shares)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return shares


@sim.command("terminal")
@click.option("--cashier", default="1", show_default=True)
@click.option("--document", required=True, help="Whose card the deposits go to.")
@click.option("--amount", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--count", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--first-trace", type=click.IntRange(1, 900_000), default=1, show_default=True)
@click.option(
    "--fault", "faults", multiple=True, callback=_faults, metavar="NAME=SHARE",
    help=f"Of what is sent and received: {', '.join(SHARES)}; delay_s is in seconds. Repeatable.",
)  # fmt: skip
@click.option(
    "--fault-seed", type=int, default=1, show_default=True, help="Equal seeds, equal faults."
)
@as_terminal
def sim_terminal(
    call: Call, sender: Sender, cashier: str, document: str, amount: int, count: int,
    first_trace: int, faults: dict[str, float], fault_seed: int,
) -> None:  # fmt: skip
    """Make deposits as a terminal over a line with faults, and find out what became of each.

    An answer that is lost is asked for with last_operation until it is known, as a till must.
    """
    line = Line(sender, Faults(**faults), fault_seed)
    requests = [
        Deposit(
            trace=first_trace + number, cashier=cashier, document=document, amount=amount,
            currency="PYG",
        )
        for number in range(count)
    ]  # fmt: skip
    answer = trio.run(_deposits, line, requests)
    call.fields(answer)


class Line:
    """The way of a terminal to red, with faults; remembers what struck."""

    def __init__(self, sender: Sender, faults: Faults, seed: int) -> None:
        self._sender = sender
        self._faults = faults
        self._seed = seed
        self._streams: list[FaultyStream] = []
        self.terminal: Terminal = sender.terminal(self._connect)

    @property
    def struck(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for stream in self._streams:
            found.update(stream.struck)
        return found

    async def _connect(self) -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(*self._sender.address)
        seed = self._seed * 1_000_003 + len(self._streams)
        self._streams.append(
            FaultyStream(stream, seed=seed, sending=self._faults, receiving=self._faults)
        )
        return self._streams[-1]

    async def signed_on(self, nursery: trio.Nursery) -> None:
        """Sign on, if need be, as often as the faults make it necessary."""
        failure = ""
        for _ in range(SIGN_ONS_MAX):
            if self.terminal.signed_on:
                return
            try:
                await self.terminal.sign_on(nursery)
                return
            except (SignOnFailed, OSError) as error:
                failure = str(error)
            await trio.sleep(PAUSE_S)
        raise CliError(f"no session after {SIGN_ONS_MAX} tries: {failure}")


async def _deposits(line: Line, requests: list[Deposit]) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    unknown = 0
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        for request in requests:
            try:
                await line.signed_on(nursery)
                answer = await line.terminal.request(request)
            except OutcomeUnknown:
                unknown += 1
                answer = await _found_out(line, nursery, request.trace)
            assert isinstance(answer, Answer)
            codes[f"{answer.code} {answer.state or ''}".strip()] += 1
        await line.terminal.aclose()
        nursery.cancel_scope.cancel()
    return {
        "requests": len(requests),
        "answers": dict(sorted(codes.items())),
        "outcomes_found_out": unknown,
        "sessions": line.terminal.sessions,
        "faults": dict(sorted(line.struck.items())),
        "seconds": round(time.monotonic() - began, 3),
    }


async def _found_out(line: Line, nursery: trio.Nursery, trace: int) -> Answer | HolderAnswer:
    """Ask what became of a request until the answer gets through and is final."""
    for _ in range(QUERIES_MAX):
        try:
            await line.signed_on(nursery)
            answer = await line.terminal.request(LastOperation(original=trace, kind="deposit"))
        except OutcomeUnknown:
            continue
        if answer.code != "09":
            return answer
        await trio.sleep(PAUSE_S)
    raise CliError(f"the outcome of trace {trace} could not be found out")
