"""`sim cip-sof`: a site that takes payments through CIP, as a process of its own.

Its front page offers the modes; what it does wrong is chosen by `--fault`. At the end it tells its
orders.
"""

import signal
from collections import Counter
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import click
import msgspec
import trio

from switch.cli.base import Call, CliError, Command, print_fields, print_json
from switch.cli.peers import read_object
from switch.config import Address, parse_address

SWITCHES: Final = ("lose_answer", "parallel", "alter", "replay", "old")


def _address(_ctx: click.Context, _parameter: click.Parameter, value: str) -> Address:
    try:
        found = parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not found.loopback:
        raise click.BadParameter("a simulated site listens on loopback only")
    return found


def _url(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise click.BadParameter(f"{value} is no address such as http://127.0.0.1:8080")
    return value.rstrip("/")


def _faults(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in values:
        name, _, argument = value.partition("=")
        if name == "return_url" and argument:
            found[name] = argument
        elif name in SWITCHES and not argument:
            found[name] = True
        else:
            raise click.BadParameter(f"{value}: {', '.join(SWITCHES)} or return_url=URL")
    return found


@click.command("cip-sof", cls=Command)
@click.option(
    "--cip",
    "cip_url",
    required=True,
    metavar="URL",
    callback=_url,
    help="Of the node, as http://127.0.0.1:8080.",
)
@click.option(
    "--account", "files", type=click.File("rb"), multiple=True, required=True, metavar="FILE",
    help="What `cip user add` (a machine) and `cip key add` printed with --json; both are needed.",
)  # fmt: skip
@click.option(
    "--listen", callback=_address, default="127.0.0.1:0", show_default=True,
    metavar="HOST:PORT", help="Of the site; port 0: a free one.",
)  # fmt: skip
@click.option(
    "--fault", "faults", multiple=True, callback=_faults, metavar="NAME",
    help=f"What the site does wrong: {', '.join(SWITCHES)}, return_url=URL. Repeatable.",
)  # fmt: skip
@click.pass_obj
def sim_cip_sof(
    call: Call, cip_url: str, files: tuple[BinaryIO, ...], listen: Address, faults: dict[str, Any]
) -> None:
    """Be a site that takes payments in the three modes until SIGTERM or Ctrl-C."""
    known: dict[str, Any] = {}
    for file in files:
        known |= read_object(file)
    missing = [n for n in ("application", "user", "password", "key_id", "key") if n not in known]
    if missing:
        hint = "give the output of `cip user add` and of `cip key add`"
        raise CliError(f"the files of --account have no {', '.join(missing)}", hint)
    told = trio.run(_serve, known, cip_url, listen.port, faults)
    if call.json:
        print_json(told)
    else:
        print_fields(told)


async def _serve(
    known: dict[str, Any], cip_url: str, port: int, faults: dict[str, Any]
) -> dict[str, Any]:
    from switch.simulators.cip_sof import Faults, SofAccount, SofSite

    names = ("application", "user", "password", "key_id", "key")
    account = SofAccount(**{name: str(known[name]) for name in names})
    site = SofSite(account, cip_url, Faults(**faults))
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def serve(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                await site.run(port, stop=stop, task_status=task_status)

            await nursery.start(serve)
            host, _, own_port = site.url.removeprefix("http://").partition(":")
            ready = {"cip-sof": [host, int(own_port)]}
            click.echo(f"ready {msgspec.json.encode(ready).decode()}")
            async for _ in signals:
                break
            stop.set()
    statuses = Counter(order.status or "open" for order in site.orders.values())
    return {
        "orders": dict(sorted(statuses.items())),
        "webhooks": len(site.webhooks),
        "refused_webhooks": site.refused_webhooks,
        "confirmations": {o.reference: o.cip for o in site.orders.values() if o.cip},
    }
