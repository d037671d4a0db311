"""`sim`: a peer that behaves, or misbehaves on demand, for tests by hand.

`sim terminal` sends deposits over a line with faults. `sim ceibo`, `sim bank` and `sim sicoop` are
the other side of a switch: they listen (or dial), decide by amount and document, do to their
answers what rules and faults say, and tell at the end what they hold. `sim transfiya` is a network
of banks, and `sim cip-sof` a site that takes payments, in modules of their own.
"""

import functools
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from protocols.iso8583.dialect import Dialect, DialectError, Framing
from protocols.iso8583.keys import HostKeys
from protocols.messages import Answer, Deposit, HolderAnswer, LastOperation
from protocols.session import PeerKey
from switch.cli.base import Call, CliError, Group, cell, print_json
from switch.cli.peers import read_object
from switch.cli.send import Sender, as_terminal
from switch.cli.sim_cip import sim_cip_sof
from switch.cli.sim_transfiya import sim_transfiya
from switch.config import Address, parse_address
from switch.simulators.faults import SHARES, Faults, FaultyStream
from switch.simulators.host import IsoHost, Role
from switch.simulators.rules import FAULTS, Rule, RuleError, Rules, whole_run
from switch.simulators.server import Server
from switch.simulators.sicoop import HEARTBEAT_S, SicoopSimulator
from switch.simulators.terminal import OutcomeUnknown, SignOnFailed, Terminal

SIGN_ONS_MAX: Final = 50
QUERIES_MAX: Final = 50
PAUSE_S: Final = 0.2
SHOW_S: Final = 0.5


@click.group(cls=Group)
def sim() -> None:
    """Simulate a peer."""


sim.add_command(sim_transfiya)
sim.add_command(sim_cip_sof)


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


# ---- the other side of a switch


def _address(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> Address | None:
    if not value:
        return None
    try:
        return parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _whole_run(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> list[Rule]:
    try:
        return [whole_run(value) for value in values]
    except RuleError as error:
        raise click.BadParameter(str(error)) from None


def _of_a_simulator(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all simulated peers share; gives the command its `rules`."""

    @click.option(
        "--listen",
        callback=_address,
        default="127.0.0.1:0",
        show_default=True,
        metavar="HOST:PORT",
        help="Where to wait for the switch; port 0: a free one.",
    )
    @click.option(
        "--keys",
        type=click.File("rb"),
        required=True,
        metavar="FILE",
        help="What `host add --json` or `network add --json` printed; - reads stdin.",
    )
    @click.option(
        "--rules",
        "rule_file",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Which messages are mistreated, and how (TOML).",
    )
    @click.option(
        "--fault",
        "faults",
        multiple=True,
        callback=_whole_run,
        metavar="NAME[=ARG]",
        help=f"For every message of the run: {', '.join(FAULTS)}. Repeatable.",
    )
    @click.option(
        "--seed", type=int, default=1, show_default=True, help="Of what is left to chance."
    )
    @click.option(
        "--late",
        "late_s",
        type=click.FloatRange(0.05, 3600),
        default=20.0,
        show_default=True,
        help="Seconds by which a magic document's answer is late.",
    )
    @functools.wraps(command)
    def with_options(
        *args: Any, rule_file: Path | None, faults: list[Rule], seed: int, **values: Any
    ) -> None:
        try:
            rules = Rules(faults, seed) if rule_file is None else Rules.read(rule_file, faults)
        except RuleError as error:
            raise CliError(str(error)) from None
        command(*args, rules=rules, seed=seed, **values)

    return with_options


def _iso_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--connect", callback=_address, metavar="HOST:PORT",
                     help="Dial the switch instead of listening."),
        click.option("--mac", default="aes-cmac", show_default=True, help="MAC algorithm."),
        click.option("--framing", metavar="FILE", type=click.File("rb"),
                     help="Framing where it is not the dialect's own, as JSON."),
        click.option("--any-clock", is_flag=True, help="Take holds whose DE7 is off (no A5)."),
    ):  # fmt: skip
        command = option(command)
    return command


@sim.command("ceibo")
@click.option("--dialect", default="ceibo", show_default=True, help="By name, or a file .toml.")
@_iso_options
@_of_a_simulator
@click.pass_obj
def sim_ceibo(call: Call, /, **values: Any) -> None:
    """Be an issuer over ISO 8583 until SIGTERM or Ctrl-C; then tell what it holds.

    The last two digits of an amount choose the response code, documents 9000001 to 9000020 a
    behaviour (slow, late, silent, twice, garbage, …).
    """
    _iso_host(call, "ceibo", **values)


@sim.command("bank")
@click.option("--dialect", default="bank", show_default=True, help="By name, or a file .toml.")
@_iso_options
@_of_a_simulator
@click.pass_obj
def sim_bank(call: Call, /, **values: Any) -> None:
    """Be a bank's host over ISO 8583 until SIGTERM or Ctrl-C; then tell what it posted."""
    _iso_host(call, "bank", **values)


@sim.command("sicoop")
@click.option("--heartbeat", "heartbeat_s", type=click.IntRange(1, 3600), default=HEARTBEAT_S,
              show_default=True, help="Told to the networks; echo after this silence.")  # fmt: skip
@_of_a_simulator
@click.pass_obj
def sim_sicoop(
    call: Call, listen: Address, keys: BinaryIO, rules: Rules, seed: int, late_s: float,
    heartbeat_s: int,
) -> None:  # fmt: skip
    """Be a platform for a network over the framed session until SIGTERM or Ctrl-C."""
    found = read_object(keys)
    peer = str(found.get("peer", ""))
    key = PeerKey(_key_bytes(found, "key", (32,)))
    platform = SicoopSimulator({peer: key}, rules, heartbeat_s=heartbeat_s, late_s=late_s)
    server = Server(platform.converse, seed=seed)
    platform.stop = server.stop
    trio.run(_serve, call, "sicoop", platform, server, listen, None)


def _iso_host(
    call: Call, role: Role, *, listen: Address, connect: Address | None, keys: BinaryIO,
    rules: Rules, seed: int, late_s: float, dialect: str, mac: str, framing: BinaryIO | None,
    any_clock: bool,
) -> None:  # fmt: skip
    try:
        loaded = Dialect.load(dialect)
        host = IsoHost(
            role, loaded, _framing(loaded, framing), _host_keys(keys, mac), rules, seed=seed,
            late_s=late_s, check_clock=not any_clock,
        )  # fmt: skip
    except (DialectError, ValueError, OSError) as error:
        raise CliError(str(error)) from None
    server = Server(host.converse, seed=seed)
    host.stop = server.stop
    trio.run(_serve, call, role, host, server, listen, connect)


def _framing(dialect: Dialect, file: BinaryIO | None) -> Framing:
    if file is not None:
        return Framing.from_dict(read_object(file))
    return dialect.framing or Framing()


def _host_keys(file: BinaryIO, mac: str) -> HostKeys:
    found = read_object(file)
    given: dict[str, list[tuple[int, bytes]]] = {}
    for name in ("mac_key", "data_key", "zone_key"):
        given[name] = [(1, _key_bytes(found, name, (8, 16, 32)))] if found.get(name) else []
    if mac == "none":
        given["mac_key"] = []
    elif not given["mac_key"]:
        raise CliError("the file of --keys has no mac_key", "as --json printed it")
    return HostKeys.of(mac, given["mac_key"], given["data_key"], given["zone_key"])


def _key_bytes(found: dict[str, Any], name: str, sizes: tuple[int, ...]) -> bytes:
    try:
        key = bytes.fromhex(found.get(name, ""))
    except (ValueError, TypeError):
        key = b""
    if len(key) not in sizes:
        raise CliError(f"the file of --keys has no {name}", "as --json printed it")
    return key


async def _serve(
    call: Call, role: str, peer: IsoHost | SicoopSimulator, server: Server, listen: Address,
    connect: Address | None,
) -> None:  # fmt: skip
    """Run a simulated peer until it is told to stop, then print what it knows."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if connect is None:
                found = await nursery.start(server.listen, listen.host, listen.port)
                ready = {role: list(found)}
            else:
                await nursery.start(server.dial, connect.host, connect.port)
                ready = {role: []}
            click.echo(f"ready {msgspec.json.encode(ready).decode()}")
            if not call.json:
                nursery.start_soon(_show, role, peer, server)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    snapshot = peer.snapshot() | {"connections": server.accepted, "absences": server.absences}
    if call.json:
        print_json(snapshot)
    else:
        Console(stderr=True).print(_table(role, peer, server))


async def _show(role: str, peer: IsoHost | SicoopSimulator, server: Server) -> None:
    with Live(_table(role, peer, server), console=Console(stderr=True), auto_refresh=False) as live:
        while True:
            await trio.sleep(SHOW_S)
            live.update(_table(role, peer, server), refresh=True)


def _table(role: str, peer: IsoHost | SicoopSimulator, server: Server) -> Table:
    """Counters, codes, faults and holds, as they are now."""
    states = Counter(entry.state for entry in peer.book.entries.values())
    table = Table(title=f"{role} simulator", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_row("connections", f"{server.connections} of {server.accepted}")
    groups = (("", peer.counters), ("answered ", peer.codes), ("fault ", peer.rules.struck))
    for prefix, counts in (*groups, ("holds ", states)):
        for name, count in sorted(counts.items()):
            table.add_row(prefix + name, cell(count))
    return table
