"""`send`: one request as a cashier's terminal, for people and for scripts."""

import functools
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import trio
from msgspec import UNSET
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from protocols.messages import (
    ENTREGUE,
    RECIBA,
    Annul,
    Answer,
    CashOut,
    Delivered,
    Deposit,
    Holder,
    HolderAnswer,
    LastOperation,
    ShiftClose,
    ShiftOpen,
    TerminalRequest,
)
from protocols.session import PeerKey
from switch.cli.base import Call, CliError, Group, print_fields, print_json
from switch.cli.provision import ask_node, node_answers
from switch.config import Address, parse_address
from switch.flows.norms import AMOUNT_MAX, FORMS
from switch.simulators.terminal import (
    TRACE_MAX,
    Connect,
    OutcomeUnknown,
    SignOnFailed,
    Terminal,
    tcp,
)

KEY_BYTES = 32
MACS = ("hmac-sha256", "aes-cmac")
AMOUNT = click.IntRange(1, AMOUNT_MAX)
KIND = click.Choice(("cash_out", "deposit"))
TRACE = click.IntRange(1, TRACE_MAX)


class Credentials(msgspec.Struct):
    """What `terminal add --json` printed. Its repr does not show the key."""

    peer: str
    key: str
    mac: str = "hmac-sha256"
    version: int = 1

    def __repr__(self) -> str:
        return f"Credentials({self.peer})"

    def peer_key(self) -> PeerKey:
        """Raises: CliError, without the key."""
        try:
            key = bytes.fromhex(self.key)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES or self.mac not in MACS:
            hint = "`troncal terminal rotate NUMBER --json` prints a new one"
            raise CliError("a terminal's key is 64 hex digits", hint)
        return PeerKey(key, self.mac)


class Sender:
    """A terminal that signs on, sends one request and leaves.

    Attributes:
        credentials: number and key.
        address: of red.
        timeout_s: how long it waits for the answer.
    """

    def __init__(self, credentials: Credentials, address: Address, timeout_s: float) -> None:
        self.credentials = credentials
        self.address = address
        self.timeout_s = timeout_s

    def terminal(self, connect: Connect | None = None) -> Terminal:
        one = self.credentials
        return Terminal(
            one.peer, one.peer_key(), connect or tcp(*self.address), key_version=one.version,
            timeout_s=self.timeout_s,
        )  # fmt: skip

    def ask(self, message: TerminalRequest) -> Answer | HolderAnswer:
        """Raises: CliError, which says whether the outcome is known."""
        return trio.run(self._ask, message)

    async def _ask(self, message: TerminalRequest) -> Answer | HolderAnswer:
        terminal = self.terminal()
        answer: Answer | HolderAnswer
        async with trio.open_nursery() as nursery:
            try:
                await terminal.sign_on(nursery)
                answer = await terminal.request(message)
                await terminal.aclose()
            except SignOnFailed as error:
                raise CliError(f"no session: {error}", _sign_on_hint(error.code)) from None
            except OutcomeUnknown as error:
                told = f"NO MUEVA EFECTIVO: the outcome is not known ({error})"
                raise CliError(told, _query_hint(message)) from None
            except OSError as error:
                where = f"{self.address.host}:{self.address.port}"
                raise CliError(
                    f"no connection to {where}: {error.strerror or error}",
                    "does `serve` run there?",
                ) from None
        return answer


def read_credentials(
    terminal: Path | None, peer: str | None, key: str | None, mac: str, key_version: int
) -> Credentials:
    """From a file, or from options. Raises: click.UsageError, CliError."""
    if terminal is not None:
        if peer or key:
            raise click.UsageError("either --terminal, or --peer and --key")
        try:
            return msgspec.json.decode(terminal.read_bytes(), type=Credentials)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            hint = "it holds what `troncal terminal add NUMBER … --json` printed"
            raise CliError(f"{terminal} is not a terminal's key", hint) from None
    if not (peer and key):
        raise click.UsageError("who sends? --terminal FILE.json, or --peer and --key")
    return Credentials(peer, key, mac, key_version)


def address_of(call: Call, address: str | None) -> Address:
    """The address given; else where the node of the configuration listens, whatever its `serve`
    was told; else, where none runs here, the configured one. Raises: CliError, ConfigError."""
    if address:
        try:
            return parse_address(address)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--address") from None
    config = call.config()
    if node_answers(config):
        listening = ask_node(config, "addresses").get("terminals")
        if listening is None:
            raise CliError(
                f"the node on {config.data} plays no red, so no terminal connects to it",
                "--address HOST:PORT of the red to send to",
            )
        return Address(*listening)
    found = config.address("terminals")
    if not found.port:
        raise CliError("listen.terminals has port 0", "--address HOST:PORT, as `serve` printed it")
    return found


def as_terminal(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say who sends and where to; the command gets them as a `Sender`."""

    def command(
        call: Call, /, terminal: Path | None, peer: str | None, key: str | None, mac: str,
        key_version: int, address: str | None, timeout_s: float, **values: Any,
    ) -> None:  # fmt: skip
        credentials = read_credentials(terminal, peer, key, mac, key_version)
        credentials.peer_key()
        function(call, Sender(credentials, address_of(call, address), timeout_s), **values)

    wrapped: Callable[..., None] = functools.wraps(function)(command)
    wrapped = click.pass_obj(wrapped)
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option(
            "--timeout", "timeout_s", type=click.FloatRange(0.1, 300), default=30.0,
            show_default=True, help="Seconds to wait for the answer.",
        ),
        click.option("--address", metavar="HOST:PORT", help="Of red; else our own node's."),
        click.option("--key-version", type=click.IntRange(1, 255), default=1, help="Which key."),
        click.option("--mac", type=click.Choice(MACS), default=MACS[0], help="With --key."),
        click.option("--key", metavar="HEX", help="Its key, 64 hex digits."),
        click.option("--peer", metavar="NUMBER", help="The terminal's number, with --key."),
        click.option(
            "--terminal", type=file, metavar="FILE", help="What `terminal add --json` printed."
        ),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def holder_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name a person."""
    for option in (
        click.option("--phone", help="Telephone number instead of a document."),
        click.option("--document", help="Number of the document."),
        click.option("--document-type", type=click.Choice(("CI", "RUC", "PAS")), default="CI"),
    ):
        function = option(function)
    return function


class SendGroup(Group):
    """Requests have underscores on the wire; a hyphen is as good here."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name.replace("-", "_"))


@click.group(cls=SendGroup)
def send() -> None:
    """Send one request as a cashier's terminal and print the answer.

    An answer that declines is an answer: exit code 0. Exit code 1: no answer, the outcome is not
    known or nothing was sent.
    """


@send.command("cash_out")
@click.option("--cashier", required=True, help="One to six digits.")
@holder_options
@click.option("--token", required=True, help="The holder's one-time code.")
@click.option("--amount", type=AMOUNT, required=True)
@click.option("--currency", default="PYG", show_default=True)
@click.option("--branch", help="Else the terminal's.")
@click.option("--trace", type=TRACE, help="Of this operation; else a random one.")
@as_terminal
def cash_out(call: Call, sender: Sender, **values: Any) -> None:
    """Take cash out of a card."""
    ask(call, sender, CashOut, values)


@send.command("deposit")
@click.option("--cashier", required=True, help="One to six digits.")
@holder_options
@click.option("--card", help="One of those that `send holder` names.")
@click.option("--amount", type=AMOUNT, required=True)
@click.option("--currency", default="PYG", show_default=True)
@click.option("--depositor", help="Type and number, as CI4567890, where it is not the holder.")
@click.option(
    "--declaration", multiple=True, metavar="NAME=TEXT", help="Origin of funds. Repeatable."
)
@click.option("--branch", help="Else the terminal's.")
@click.option("--trace", type=TRACE, help="Of this operation; else a random one.")
@as_terminal
def deposit(call: Call, sender: Sender, declaration: tuple[str, ...], **values: Any) -> None:
    """Pay cash in to a card."""
    pairs = [entry.partition("=") for entry in declaration]
    if not all(equals for _, equals, _ in pairs):
        raise click.BadParameter("NAME=TEXT is expected", param_hint="--declaration")
    values["declaration"] = {name: text for name, _, text in pairs} or None
    ask(call, sender, Deposit, values)


@send.command("holder")
@holder_options
@as_terminal
def holder(call: Call, sender: Sender, **values: Any) -> None:
    """Ask who would receive a deposit."""
    ask(call, sender, Holder, values)


@send.command("annul")
@click.option("--cashier", required=True, help="One to six digits.")
@click.option("--original", type=TRACE, required=True, help="Trace of what is to be undone.")
@click.option("--supervisor", help="Another cashier; needed once it is registered.")
@click.option("--supervisor-code", help="The supervisor's own one-time code.")
@click.option("--business-date", metavar="YYYY-MM-DD", help="Of the original.")
@click.option("--trace", type=TRACE, help="Of this operation; else a random one.")
@as_terminal
def annul(call: Call, sender: Sender, **values: Any) -> None:
    """Undo an operation of today."""
    ask(call, sender, Annul, values)


@send.command("last_operation")
@click.option("--original", type=TRACE, help="Trace of the operation; else the newest.")
@click.option("--kind", type=KIND, default="cash_out", help="Where nothing is found.")
@as_terminal
def last_operation(call: Call, sender: Sender, **values: Any) -> None:
    """Ask what to do now about an operation."""
    ask(call, sender, LastOperation, values)


@send.command("delivered")
@click.option("--original", type=TRACE, required=True, help="Trace of the operation.")
@as_terminal
def delivered(call: Call, sender: Sender, **values: Any) -> None:
    """Mark that the cash has changed hands."""
    ask(call, sender, Delivered, values)


@send.command("shift_open")
@click.option("--cashier", required=True, help="One to six digits.")
@click.option("--cashier-code", required=True, help="The cashier's own one-time code.")
@click.option("--float", type=click.IntRange(min=0), help="Cash in the till.")
@as_terminal
def shift_open(call: Call, sender: Sender, **values: Any) -> None:
    """Begin a cashier's shift."""
    ask(call, sender, ShiftOpen, values)


@send.command("shift_close")
@click.option("--cashier", required=True, help="One to six digits.")
@click.option("--counted", type=click.IntRange(min=0), required=True, help="Cash in the till.")
@as_terminal
def shift_close(call: Call, sender: Sender, **values: Any) -> None:
    """End a cashier's shift; the answer tells what should be in the till."""
    ask(call, sender, ShiftClose, values)


# ---- request and answer


def ask(call: Call, sender: Sender, kind: type[TerminalRequest], values: dict[str, Any]) -> None:
    """Make the request of what was given, send it and print the answer."""
    given = {name: value for name, value in values.items() if value is not None}
    if kind in (CashOut, Deposit, Annul):
        given.setdefault("trace", secrets.randbelow(TRACE_MAX) + 1)
    if kind in (CashOut, Deposit, Holder) and ("document" in given) == ("phone" in given):
        raise click.UsageError("one of --document and --phone")
    try:
        message = msgspec.convert(given, type=kind)
    except msgspec.ValidationError as error:
        raise click.UsageError(_not_valid(str(error))) from None
    answer = sender.ask(message)
    if call.json:
        print_json(answer)
    else:
        print_answer(answer)


def _not_valid(reason: str) -> str:
    """The field of a codec's complaint; never the value, which may be a code."""
    field = re.search(r"\$\.([a-z_]+)", reason)
    if field is None:
        return "not valid"
    form = FORMS.get(field[1], "")
    return f"{field[1].replace('_', '-')} is not valid" + (f": {form}" if form else "")


def print_answer(answer: Answer | HolderAnswer) -> None:
    """The answer as a till would show it: what to do first, then the rest."""
    values = msgspec.to_builtins(answer)
    ticket = values.pop("ticket", [])
    for name in ("type", "op"):
        values.pop(name, None)
    console = Console(highlight=False)
    instruction = values.pop("instruction", "")
    if instruction:
        color = "green" if instruction in (ENTREGUE, RECIBA) else "red"
        said = Text(f"  {instruction.replace('_', ' ')}  ", style=f"bold reverse {color}")
        console.print(Panel(said, expand=False, padding=(1, 4), style=color))
    if "cards" in values:
        values["cards"] = [f"{card['card']} {card['label']}" for card in values["cards"]]
    print_fields(values)
    if ticket:
        click.echo()
        click.echo("\n".join(ticket))


def _sign_on_hint(code: str) -> str:
    if code == "63":
        return "is the terminal known and enabled there, and is this its present key?"
    return "is this the address of red's terminals, and does `serve` run there?"


def _query_hint(message: TerminalRequest) -> str:
    trace = getattr(message, "trace", UNSET)
    if isinstance(message, CashOut | Deposit | Annul) and trace is not UNSET:
        return f"ask with: troncal send last_operation --original {trace}"
    return "ask with: troncal send last_operation"
