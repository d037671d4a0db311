"""Who may connect and work: networks, branches, terminals, cashiers, hosts."""

import json
from typing import Any, BinaryIO, Final

import click

from switch.cli.base import Call, CliError, Group, print_json, print_table
from switch.cli.provision import Refusal, provision, provision_all
from switch.flows import norms

ONCE = "The key is shown this once and stored sealed."
KEYS_ONCE = "The keys are shown this once and stored sealed."
MACS = click.Choice(("hmac-sha256", "aes-cmac"))
HOST_MACS = click.Choice(("aes-cmac", "retail", "retail-2", "hmac-sha256", "none"))
AMOUNT = click.IntRange(0, 10**15)  # as provisioning bounds a network's caps
FILE_BYTES_MAX: Final = 1 << 26
PIECE_ENTRIES: Final = 100
"""Entries of one import command: what surely fits into a line and into a group."""

key_file = click.option(
    "--key-file", type=click.File("rb"), metavar="FILE",
    help="A key the other side made, as its --json printed it; - reads stdin.",
)  # fmt: skip
keys_file = click.option(
    "--keys", type=click.File("rb"), metavar="FILE",
    help="Keys the other side made, as its --json printed them; - reads stdin.",
)  # fmt: skip


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "the input"))


def read_object(file: BinaryIO) -> dict[str, Any]:
    """A JSON object from a file. Raises: CliError, which never has any of it."""
    data = file.read(FILE_BYTES_MAX + 1)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(data) > FILE_BYTES_MAX:
        raise CliError(
            f"{_name(file)} does not hold one JSON object", "as --json printed it on the other side"
        )
    return found


def given_key(file: BinaryIO | None) -> dict[str, Any]:
    """Key and version of a file such as `network add --json` made; nothing without a file."""
    if file is None:
        return {}
    found = read_object(file)
    key, version = found.get("key"), found.get("version", 1)
    if not isinstance(key, str) or not key or type(version) is not int:
        raise CliError(f"{_name(file)} has no key", "as --json printed it on the other side")
    return {"key": key, "version": version}


def given_keys(file: BinaryIO | None) -> dict[str, Any]:
    """The keys of a host from a file such as `host add --json` made; nothing without a file."""
    if file is None:
        return {}
    found = read_object(file)
    names = ("mac_key", "data_key", "zone_key")
    return {"keys": {n: found[n] for n in names if isinstance(found.get(n), str)}}


of_network = click.option(
    "--network", type=norms.network, required=True, metavar="NNNN", help="Its network."
)
of_branch = click.option(
    "--branch", type=norms.branch, required=True, metavar="N", help="Its branch; made if new."
)


def listed(call: Call, kind: str) -> None:
    """Print all entities of a kind."""
    rows: list[dict[str, Any]] = provision(call.config(), "show", kind=kind)
    call.answer(rows, lambda: print_table(rows, empty=f"no {kind} yet"))


# ---- networks


@click.group(cls=Group)
def network() -> None:
    """Networks of cashiers, the peers of sicoop."""


@network.command("add")
@click.argument("number", type=norms.network)
@click.option("--name", default="", help="For people.")
@click.option(
    "--net-debit-cap", type=AMOUNT, default=0, show_default=True,
    help="How much the network may owe; 0: no deposits.",
)  # fmt: skip
@click.option(
    "--payable-cap", type=AMOUNT, default=0, show_default=True,
    help="How much the network may be owed; 0: no cap.",
)  # fmt: skip
@key_file
@click.pass_obj
def network_add(
    call: Call, number: str, name: str, net_debit_cap: int, payable_cap: int,
    key_file: BinaryIO | None,
) -> None:  # fmt: skip
    """Add a network; NUMBER has four digits. Prints its key, unless that was made elsewhere."""
    answer = provision(
        call.config(), "network_add", number=number, name=name, net_debit_cap=net_debit_cap,
        payable_cap=payable_cap, **given_key(key_file),
    )  # fmt: skip
    call.fields(answer, "" if key_file else ONCE)


@network.command("caps")
@click.argument("number", type=norms.network)
@click.option("--net-debit-cap", type=AMOUNT, required=True, help="0: no deposits.")
@click.option("--payable-cap", type=AMOUNT, help="0: no cap; left as it is where not given.")
@click.pass_obj
def network_caps(call: Call, number: str, net_debit_cap: int, payable_cap: int | None) -> None:
    """Change the caps of a network's position."""
    values = {"number": number, "net_debit_cap": net_debit_cap, "payable_cap": payable_cap}
    call.fields(provision(call.config(), "network_caps", **values))


@network.command("rotate")
@click.argument("number", type=norms.network)
@key_file
@click.pass_obj
def network_rotate(call: Call, number: str, key_file: BinaryIO | None) -> None:
    """Make a new key, or take one in; the present one stays valid for seven days."""
    answer = provision(call.config(), "network_rotate", number=number, **given_key(key_file))
    call.fields(answer, "" if key_file else ONCE)


@network.command("export")
@click.argument("number", type=norms.network)
@click.option("--secrets", is_flag=True, help="With keys and seeds in clear.")
@click.pass_obj
def network_export(call: Call, number: str, secrets: bool) -> None:
    """Print a network with its branches, terminals and cashiers, for `network import`."""
    print_json(provision(call.config(), "network_export", number=number, secrets=secrets))


@network.command("import")
@click.argument("file", type=click.File("rb"))
@click.pass_obj
def network_import(call: Call, file: BinaryIO) -> None:
    """Take in what `network export` printed on another node; - reads stdin.

    What is known already is brought up to date. Nobody is enabled by it who is disabled here, keys
    that are here stay, and caps are not touched. To do it twice changes nothing.
    """
    found = read_object(file)
    if found.get("format") != "troncal-network-1":
        raise CliError(
            f"{_name(file)} is no export of a network", "`troncal network export` makes it"
        )
    kinds = ("branches", "terminals", "cashiers")
    lists = {kind: found.get(kind) or [] for kind in kinds}
    if not all(isinstance(entries, list) for entries in lists.values()):
        raise CliError(f"{_name(file)} is no export of a network")
    pieces: list[tuple[str, dict[str, Any]]] = [
        ("network_import", {"network": found.get("network")})
    ]
    pieces += [
        (
            "network_import",
            {"network": found.get("network"), kind: lists[kind][at:][:PIECE_ENTRIES]},
        )
        for kind in kinds
        for at in range(0, len(lists[kind]), PIECE_ENTRIES)
    ]
    answers = provision_all(call.config(), pieces[:1])  # nothing more where the network is refused
    if not isinstance(answers[0], Refusal):
        answers += provision_all(call.config(), pieces[1:]) if pieces[1:] else []
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    if refused:
        raise CliError(refused[0].reason, refused[0].hint or "mend it, and import again")
    total = {kind: sum(answer[kind] for answer in answers) for kind in kinds}
    call.fields({"network": answers[0]["network"]} | total)


@network.command("enable")
@click.argument("number", type=norms.network)
@click.pass_obj
def network_enable(call: Call, number: str) -> None:
    """Let a network work again."""
    call.fields(provision(call.config(), "network_enable", number=number, enable=True))


@network.command("disable")
@click.argument("number", type=norms.network)
@click.pass_obj
def network_disable(call: Call, number: str) -> None:
    """Refuse a network's sign-ons and new operations (58), and end its sessions."""
    call.fields(provision(call.config(), "network_enable", number=number, enable=False))


@network.command("list")
@click.pass_obj
def network_list(call: Call) -> None:
    """List the networks."""
    listed(call, "network")


# ---- branches


@click.group(cls=Group)
def branch() -> None:
    """Branches (bocas) of a network; they are made with their first terminal or cashier."""


@branch.command("add")
@click.argument("number", type=norms.branch)
@of_network
@click.option("--name", default="", help="For people.")
@click.pass_obj
def branch_add(call: Call, number: str, network: str, name: str) -> None:
    """Add a branch; its first terminal or cashier would make it as well."""
    call.fields(provision(call.config(), "branch_add", number=number, network=network, name=name))


@branch.command("enable")
@click.argument("number", type=norms.branch)
@of_network
@click.pass_obj
def branch_enable(call: Call, number: str, network: str) -> None:
    """Let a branch work again."""
    values = {"number": number, "network": network, "enable": True}
    call.fields(provision(call.config(), "branch_enable", **values))


@branch.command("disable")
@click.argument("number", type=norms.branch)
@of_network
@click.pass_obj
def branch_disable(call: Call, number: str, network: str) -> None:
    """Refuse new operations of a branch (58)."""
    values = {"number": number, "network": network, "enable": False}
    call.fields(provision(call.config(), "branch_enable", **values))


@branch.command("list")
@click.pass_obj
def branch_list(call: Call) -> None:
    """List the branches."""
    listed(call, "branch")


# ---- terminals


@click.group(cls=Group)
def terminal() -> None:
    """Terminals of cashiers, the peers of red."""


@terminal.command("add")
@click.argument("number", type=norms.terminal)
@of_network
@of_branch
@click.option("--mac", type=MACS, default="hmac-sha256", show_default=True, help="MAC algorithm.")
@click.option("--no-ticket", is_flag=True, help="Answers carry no ticket.")
@click.option(
    "--no-key", is_flag=True,
    help="It signs on at another node, where its red is; here it is only known.",
)  # fmt: skip
@key_file
@click.pass_obj
def terminal_add(
    call: Call, number: str, network: str, branch: str, mac: str, no_ticket: bool, no_key: bool,
    key_file: BinaryIO | None,
) -> None:  # fmt: skip
    """Add a terminal; NUMBER has eight digits. Prints its key, for `troncal send --terminal`."""
    if no_key and key_file:
        raise click.UsageError("--no-key and --key-file exclude each other")
    answer = provision(
        call.config(), "terminal_add", number=number, network=network, branch=branch, mac=mac,
        ticket=not no_ticket, known_only=no_key, **given_key(key_file),
    )  # fmt: skip
    call.fields(answer, ONCE if "key" in answer else "")


@terminal.command("rotate")
@click.argument("number", type=norms.terminal)
@key_file
@click.pass_obj
def terminal_rotate(call: Call, number: str, key_file: BinaryIO | None) -> None:
    """Make a new key, or take one in; the present one stays valid for seven days."""
    answer = provision(call.config(), "terminal_rotate", number=number, **given_key(key_file))
    call.fields(answer, "" if key_file else ONCE)


@terminal.command("enable")
@click.argument("number", type=norms.terminal)
@click.pass_obj
def terminal_enable(call: Call, number: str) -> None:
    """Let a terminal work again."""
    call.fields(provision(call.config(), "terminal_enable", number=number, enable=True))


@terminal.command("disable")
@click.argument("number", type=norms.terminal)
@click.pass_obj
def terminal_disable(call: Call, number: str) -> None:
    """Refuse a terminal's sign-ons and new operations (58), and end its session."""
    call.fields(provision(call.config(), "terminal_enable", number=number, enable=False))


@terminal.command("list")
@click.pass_obj
def terminal_list(call: Call) -> None:
    """List the terminals."""
    listed(call, "terminal")


# ---- cashiers


@click.group(cls=Group)
def cashier() -> None:
    """Cashiers and supervisors of a network."""


@cashier.command("add")
@click.argument("number", type=norms.cashier)
@of_network
@of_branch
@click.option("--name", default="", help="As on tickets.")
@click.option("--supervisor", is_flag=True, help="May approve annulments of others.")
@click.pass_obj
def cashier_add(
    call: Call, number: str, network: str, branch: str, name: str, supervisor: bool
) -> None:
    """Add a cashier; NUMBER has one to six digits. Prints the seed of the cashier's own codes."""
    answer = provision(
        call.config(), "cashier_add", number=number, network=network, branch=branch, name=name,
        supervisor=supervisor,
    )  # fmt: skip
    call.fields(answer, "The seed is shown this once and stored sealed.")


@cashier.command("enable")
@click.argument("number", type=norms.cashier)
@of_network
@click.pass_obj
def cashier_enable(call: Call, number: str, network: str) -> None:
    """Let a cashier work again."""
    values = {"number": number, "network": network, "enable": True}
    call.fields(provision(call.config(), "cashier_enable", **values))


@cashier.command("disable")
@click.argument("number", type=norms.cashier)
@of_network
@click.pass_obj
def cashier_disable(call: Call, number: str, network: str) -> None:
    """Refuse new operations of a cashier (58)."""
    values = {"number": number, "network": network, "enable": False}
    call.fields(provision(call.config(), "cashier_enable", **values))


@cashier.command("list")
@click.pass_obj
def cashier_list(call: Call) -> None:
    """List the cashiers."""
    listed(call, "cashier")


# ---- hosts


@click.group(cls=Group)
def host() -> None:
    """ISO 8583 peers: the platform as ceibo's client, and banks."""


@host.command("add")
@click.argument("name")
@click.option("--dialect", required=True, help="A dialect by name, such as ceibo, or a file .toml.")
@click.option("--mac", type=HOST_MACS, default="aes-cmac", show_default=True, help="MAC of DE64.")
@click.option("--listen", default="", metavar="HOST:PORT", help="We accept its connections here.")
@click.option("--connect", default="", metavar="HOST:PORT", help="We connect to it.")
@keys_file
@click.pass_obj
def host_add(
    call: Call, name: str, dialect: str, mac: str, listen: str, connect: str, keys: BinaryIO | None
) -> None:
    """Add a host. Prints its MAC, data and zone keys, unless they were made elsewhere."""
    answer = provision(
        call.config(), "host_add", name=name, dialect=dialect, mac=mac, listen=listen,
        connect=connect, **given_keys(keys),
    )  # fmt: skip
    call.fields(answer, "" if keys else KEYS_ONCE)


@host.command("rotate")
@click.argument("name")
@keys_file
@click.pass_obj
def host_rotate(call: Call, name: str, keys: BinaryIO | None) -> None:
    """Make new keys, or take in those of the other side; the present ones stay for seven days.

    New ones made here are accepted at once, and used as soon as the host has used them.
    """
    answer = provision(call.config(), "host_rotate", name=name, **given_keys(keys))
    call.fields(answer, "" if keys else KEYS_ONCE)


@host.command("change")
@click.argument("name")
@click.option("--listen", metavar="HOST:PORT", help="We accept its connections here.")
@click.option("--connect", metavar="HOST:PORT", help="We connect to it; empty: it connects to us.")
@click.pass_obj
def host_change(call: Call, name: str, listen: str | None, connect: str | None) -> None:
    """Give a host another address, in force from the next start on."""
    values = {"name": name, "listen": listen, "connect": connect}
    call.fields(provision(call.config(), "host_change", **values))


@host.command("check")
@click.argument("name")
@click.pass_obj
def host_check(call: Call, name: str) -> None:
    """Show the check values of a host's keys, to compare with those of the other side."""
    rows = provision(call.config(), "host_check", name=name)
    call.answer(rows, lambda: print_table(rows))


@host.command("enable")
@click.argument("name")
@click.pass_obj
def host_enable(call: Call, name: str) -> None:
    """Let a host work again."""
    call.fields(provision(call.config(), "host_enable", name=name, enable=True))


@host.command("disable")
@click.argument("name")
@click.pass_obj
def host_disable(call: Call, name: str) -> None:
    """End a host's connections and take no new ones; what is owed to it stays owed."""
    call.fields(provision(call.config(), "host_enable", name=name, enable=False))


@host.command("list")
@click.pass_obj
def host_list(call: Call) -> None:
    """List the hosts."""
    listed(call, "host")
