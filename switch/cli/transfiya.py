"""TransfiYa: check IOUs, make keys, add signers, see what is under way."""

from pathlib import Path
from typing import Any, BinaryIO

import click

from switch.cli.base import Call, CliError, Group, print_table
from switch.cli.provision import provision


@click.group(cls=Group)
def transfiya() -> None:
    """TransfiYa: instant transfers, as a bank."""


@transfiya.command("verify")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--action", type=click.Path(path_type=Path, dir_okay=False), help="The action it is about."
)
@click.option("--at", "at", default="", metavar="INSTANT", help="It must still be usable then.")
@click.option("--no-ecdsa", is_flag=True, help="Refuse signatures of the old scheme.")
@click.pass_context
def verify(
    ctx: click.Context, file: BinaryIO, action: Path | None, at: str, no_ecdsa: bool
) -> None:
    """Check an IOU (v1) or a ledger record (v2); `-` reads it from stdin.

    Prints `ok`, or the first check that fails, and exits 1.
    """
    from protocols.transfiya import BodyError, check_iou, check_record, decode
    from protocols.transfiya.times import instant_ns

    call: Call = ctx.obj
    try:
        value = decode(file.read())
        about = decode(action.read_bytes()) if action is not None else None
        now_ns = instant_ns(at) if at else None
    except (BodyError, ValueError) as error:
        raise CliError(f"not readable: {error}", "an IOU is JSON, an instant ISO 8601") from None
    if isinstance(value, dict) and isinstance(value.get("hash"), str):
        result, keys = check_record(value)
        answer: dict[str, Any] = {"result": result, "keys": [key.hex() for key in keys]}
    else:
        result = check_iou(value, about, now_ns, accept_ecdsa=not no_ecdsa)
        answer = {"result": result}
    call.answer(answer, lambda: click.echo(result))
    if result != "ok":
        ctx.exit(1)


@transfiya.group(cls=Group)
def key() -> None:
    """Signing keys, sealed under the master key."""


@key.command("new")
@click.argument("name")
@click.pass_obj
def key_new(call: Call, name: str) -> None:
    """Make a key; prints its public part and its handle."""
    call.fields(provision(call.config(), "transfiya_key_new", name=name))


@key.command("add")
@click.argument("name")
@click.option(
    "--secret-file", type=click.File("r"), required=True, help="Hex digits; `-` is stdin."
)
@click.option("--allow-short", is_flag=True, help="Take a secret of fewer than 32 bytes.")
@click.pass_obj
def key_add(call: Call, name: str, secret_file: Any, allow_short: bool) -> None:
    """Take over a key that was made elsewhere."""
    answer = provision(
        call.config(), "transfiya_key_add", name=name, secret=secret_file.read().strip(),
        allow_short=allow_short,
    )  # fmt: skip
    call.fields(answer)


@key.command("list")
@click.pass_obj
def key_list(call: Call) -> None:
    """All keys: names, public parts, handles."""
    rows = provision(call.config(), "transfiya_key_list")
    call.answer(rows, lambda: print_table(rows, empty="no key"))


@transfiya.group(cls=Group)
def signer() -> None:
    """Signers of customers, and the accounts behind them."""


@signer.command("add")
@click.argument("bank")
@click.argument("account")
@click.option("--key", "key_name", required=True, help="A key of `transfiya key`.")
@click.option("--currency", default="COP", show_default=True)
@click.option("--alias", default="", help="How the network's users know the customer.")
@click.option("--balance", type=click.IntRange(0), default=0, help="Opening, in minor units.")
@click.option(
    "--offline", is_flag=True,
    help="The network has it already: it is not told of it at the first transfer.",
)  # fmt: skip
@click.pass_obj
def signer_add(
    call: Call, bank: str, account: str, key_name: str, currency: str, alias: str, balance: int,
    offline: bool,
) -> None:  # fmt: skip
    """Make a signer for a customer's account."""
    answer = provision(
        call.config(), "transfiya_signer_add", bank=bank, account=account, key=key_name,
        currency=currency, alias=alias, balance=balance, known=offline,
    )  # fmt: skip
    call.fields(answer)


@signer.command("set")
@click.argument("bank")
@click.argument("handle")
@click.argument("status", type=click.Choice(("active", "inactive", "closed")))
@click.pass_obj
def signer_set(call: Call, bank: str, handle: str, status: str) -> None:
    """Let an account take movements, or not."""
    answer = provision(
        call.config(), "transfiya_signer_set", bank=bank, handle=handle, status=status
    )
    call.fields(answer)


@signer.command("list")
@click.option("--bank", default="")
@click.pass_obj
def signer_list(call: Call, bank: str) -> None:
    """All signers."""
    rows = provision(call.config(), "transfiya_signer_list", bank=bank)
    call.answer(rows, lambda: print_table(rows, empty="no signer"))


@transfiya.command("items")
@click.option("--state", default="", help="Only those in a state, such as parked.")
@click.pass_obj
def items(call: Call, state: str) -> None:
    """Pieces of work towards the network, the newest first."""
    rows = provision(call.config(), "transfiya_items", state=state)
    call.answer(rows, lambda: print_table(rows, empty="none"))
