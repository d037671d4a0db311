"""TransfiYa: check IOUs, make keys, add signers, see what is under way."""

import time
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from switch.cli.base import Call, CliError, Group, print_fields, print_json, print_table
from switch.cli.provision import ask_node, provision

LOOK_S: Final = 0.1
STATES: Final = (
    "received", "created", "answered", "reserved", "tagged", "signed", "accepted", "posted",
    "done", "failing", "failed", "parked", "offered",
    # of entries, v2
    "preparing", "prepared", "committing", "committed", "aborting", "aborted",
)  # fmt: skip


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
    help="The network has it already, or is told otherwise: nothing is sent.",
)  # fmt: skip
@click.pass_obj
def signer_add(
    call: Call, bank: str, account: str, key_name: str, currency: str, alias: str, balance: int,
    offline: bool,
) -> None:  # fmt: skip
    """Make a signer for a customer's account, and tell the network of it.

    What the network does not take stays here: `signer register` tells it again.
    """
    config = call.config()
    answer = provision(
        config, "transfiya_signer_add", bank=bank, account=account, key=key_name,
        currency=currency, alias=alias, balance=balance, known=offline,
    )  # fmt: skip
    named = next((one for one in config.transfiya.bank if one.id == bank), None)
    if not offline and named is not None and named.profile == "v1":
        from switch.cli.transfiya_network import register

        answer = register(config, bank, answer["handle"])
    call.fields(answer)


@signer.command("register")
@click.argument("bank")
@click.argument("handle")
@click.pass_obj
def signer_register(call: Call, bank: str, handle: str) -> None:
    """Tell the network of a signer that it does not know yet."""
    from switch.cli.transfiya_network import register

    call.fields(register(call.config(), bank, handle))


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


@transfiya.command("export")
@click.argument("bank")
@click.option("--url", default="", help="Where the network reaches it; else the listener `http`.")
@click.option("--link", type=click.Choice(("ASK", "TRUST", "BLOCK")), default="ASK",
              show_default=True, help="How transfers to its customers are accepted.")  # fmt: skip
@click.pass_obj
def export(call: Call, bank: str, url: str, link: str) -> None:
    """Print a bank as the simulated network is told of it: JSON with its secrets, and customers.

    `troncal sim transfiya --bank FILE` reads it.
    """
    from switch.products.transfiya import secret_of

    config = call.config()
    found = next((one for one in config.transfiya.bank if one.id == bank), None)
    if found is None or found.profile != "v1":
        raise CliError(f"there is no bank {bank} of profile v1 in {config.path}")
    names = ("client_id", "client_secret", "api_key", "inbound_client_id",
             "inbound_client_secret", "inbound_api_key")  # fmt: skip
    where = f"transfiya.bank.{bank}"
    shown = {name: secret_of(config, getattr(found, name), f"{where}.{name}") for name in names}
    base = url or f"http{'s' if 'http' in config.tls else ''}://{config.listen.http}"
    signers = provision(config, "transfiya_signer_list", bank=bank)
    customers = [
        {"handle": one["handle"], "alias": one["alias"] or one["handle"], "link": link}
        for one in signers
    ]
    print_json(
        {
            "id": bank, "signer": found.bank_signer, "url": f"{base.rstrip('/')}{found.mount}",
            "auth": found.inbound_auth, **shown, "customers": customers,
        }
    )  # fmt: skip


def _model(call: Call) -> Path:
    from switch.cli.questions import read_model

    config = call.config()
    if not config.transfiya.enabled:
        raise CliError(f"no bank is configured in {config.path}", "see [[transfiya.bank]]")
    return read_model(config)


@transfiya.command("items")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), default=None,
              help="Only those in a state.")  # fmt: skip
@click.option("--bank", default="", help="Of this bank only.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.pass_obj
def items(call: Call, state: str | None, bank: str, limit: int) -> None:
    """Pieces of work towards the network, the newest first."""
    from switch.journal import transfiya_queries as queries

    rows = queries.items(_model(call), bank=bank, state=state or "", limit=limit)
    call.answer(rows, lambda: print_table(rows, empty="none"))


@transfiya.command("show")
@click.argument("tx_ref")
@click.option("--bank", default="", help="Of this bank only.")
@click.pass_obj
def show(call: Call, tx_ref: str, bank: str) -> None:
    """All work on one transfer, with its time line."""
    from switch.journal import transfiya_queries as queries

    found = queries.transfer(_model(call), bank, tx_ref)
    if not found:
        raise CliError(f"there is nothing about {tx_ref}", "`troncal transfiya items` lists")

    def text() -> None:
        for one in found:
            print_fields({name: value for name, value in one.items() if name != "history"})
            print_table(one["history"], f"{one['kind']}, time line")

    call.answer(found, text)


@transfiya.group(cls=Group)
def transfer() -> None:
    """Transfers that our customers begin; on a running node."""


@transfer.command("start")
@click.argument("bank")
@click.option("--from", "source", required=True, help="Our customer: account, alias or handle.")
@click.option("--to", "target", required=True, help="Alias, handle or TYPE:NUMBER@BANK.")
@click.option("--amount", required=True, help="Decimal text, as 100.00.")
@click.option("--reference", required=True, help="The channel's own; the same begins one only.")
@click.option("--kind", type=click.Choice(("SEND", "SENDMOL", "REQUEST")), default="SEND",
              show_default=True)  # fmt: skip
@click.option("--symbol", default="$tin", show_default=True)
@click.option("--description", default="")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 60), default=10.0, show_default=True,
              help="Seconds for the network's answer.")  # fmt: skip
@click.pass_context
def transfer_start(ctx: click.Context, /, wait_s: float, **values: Any) -> None:
    """Begin a transfer and tell the network's reference of it.

    An outcome that is not known is looked for, and never begun again by itself. Exit code 1 where
    it was refused, or where nobody knows yet.
    """
    call: Call = ctx.obj
    config = call.config()
    found = ask_node(config, "transfiya_transfer_start", **values)
    asked = {name: values[name] for name in ("bank", "reference", "source")}
    give_up_at = time.monotonic() + wait_s
    while found["state"] == "RECEIVED" and time.monotonic() < give_up_at:
        time.sleep(LOOK_S)
        found = ask_node(config, "transfiya_transfer_state", **asked)
    call.fields(found)
    if found["state"] != "DONE":
        ctx.exit(1)


@transfer.command("state")
@click.argument("bank")
@click.argument("reference")
@click.option("--from", "source", required=True, help="Our customer: account, alias or handle.")
@click.pass_obj
def transfer_state(call: Call, bank: str, reference: str, source: str) -> None:
    """What became of a transfer that was begun here."""
    values = {"bank": bank, "reference": reference, "source": source}
    call.fields(ask_node(call.config(), "transfiya_transfer_state", **values))


@transfiya.group(cls=Group)
def request() -> None:
    """Requests for money that wait for our customers' word; on a running node."""


@request.command("list")
@click.option("--bank", default="")
@click.pass_obj
def request_list(call: Call, bank: str) -> None:
    """Open requests, the oldest first."""
    rows = ask_node(call.config(), "transfiya_offers", bank=bank)
    call.answer(rows, lambda: print_table(rows, empty="none"))


@request.command("answer")
@click.argument("bank")
@click.argument("tx_ref")
@click.argument("word", type=click.Choice(("yes", "no")))
@click.pass_obj
def request_answer(call: Call, bank: str, tx_ref: str, word: str) -> None:
    """Give the customer's word on a request."""
    values = {"bank": bank, "tx_ref": tx_ref, "accept": word == "yes"}
    call.fields(ask_node(call.config(), "transfiya_answer", **values))


@transfiya.command("conciliation")
@click.argument("bank")
@click.option("--date", "date", default="", metavar="YYYY-MM-DD", help="Else: yesterday.")
@click.option("--file", "file", type=click.File("rb"),
              help="The network's text, instead of asking for it; - reads stdin.")  # fmt: skip
@click.pass_context
def conciliation(ctx: click.Context, bank: str, date: str, file: BinaryIO | None) -> None:
    """Compare a day with the network's conciliation; exit code 1 where they differ.

    A day is one of the bank's `label_timezone`. What is proven within an hour of midnight may be
    of the day before or after at the network. A difference is an alarm of the node.
    """
    from switch.cli.transfiya_morning import compared

    call: Call = ctx.obj
    found = compared(call.config(), _model(call), bank, date, file.read() if file else None)

    def text() -> None:
        print_table(found["differences"], empty="no differences")
        print_fields({name: value for name, value in found.items() if name != "differences"})

    call.answer(found, text)
    if found["differences"]:
        ctx.exit(1)
