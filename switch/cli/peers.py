"""Who may connect and work: networks, branches, terminals, cashiers, hosts."""

from typing import Any

import click

from switch.cli.base import Call, Group, print_table
from switch.cli.provision import provision
from switch.flows import norms

ONCE = "The key is shown this once and stored sealed."
MACS = click.Choice(("hmac-sha256", "aes-cmac"))
HOST_MACS = click.Choice(("aes-cmac", "retail", "hmac-sha256", "none"))
AMOUNT = click.IntRange(min=0)


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
@click.pass_obj
def network_add(call: Call, number: str, name: str, net_debit_cap: int, payable_cap: int) -> None:
    """Add a network; NUMBER has four digits. Prints its key."""
    answer = provision(
        call.config(), "network_add", number=number, name=name, net_debit_cap=net_debit_cap,
        payable_cap=payable_cap,
    )  # fmt: skip
    call.fields(answer, ONCE)


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
@click.pass_obj
def network_rotate(call: Call, number: str) -> None:
    """Make a new key; the present one stays valid for seven days."""
    call.fields(provision(call.config(), "network_rotate", number=number), ONCE)


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
    """Refuse a network's sign-ons and new operations (58)."""
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
@click.pass_obj
def terminal_add(
    call: Call, number: str, network: str, branch: str, mac: str, no_ticket: bool
) -> None:
    """Add a terminal; NUMBER has eight digits. Prints its key, for `troncal send --terminal`."""
    answer = provision(
        call.config(), "terminal_add", number=number, network=network, branch=branch, mac=mac,
        ticket=not no_ticket,
    )  # fmt: skip
    call.fields(answer, ONCE)


@terminal.command("rotate")
@click.argument("number", type=norms.terminal)
@click.pass_obj
def terminal_rotate(call: Call, number: str) -> None:
    """Make a new key; the present one stays valid for seven days."""
    call.fields(provision(call.config(), "terminal_rotate", number=number), ONCE)


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
    """Refuse a terminal's sign-ons and new operations (58)."""
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
@click.option("--dialect", required=True, help="Name of a dialect, such as ceibo.")
@click.option("--mac", type=HOST_MACS, default="aes-cmac", show_default=True, help="MAC of DE64.")
@click.option("--listen", default="", metavar="HOST:PORT", help="We accept its connections here.")
@click.option("--connect", default="", metavar="HOST:PORT", help="We connect to it.")
@click.pass_obj
def host_add(call: Call, name: str, dialect: str, mac: str, listen: str, connect: str) -> None:
    """Add a host. Prints its MAC, data and zone keys."""
    answer = provision(
        call.config(), "host_add", name=name, dialect=dialect, mac=mac, listen=listen,
        connect=connect,
    )  # fmt: skip
    call.fields(answer, "The keys are shown this once and stored sealed.")


@host.command("rotate")
@click.argument("name")
@click.pass_obj
def host_rotate(call: Call, name: str) -> None:
    """Make new keys; the present ones stay valid for seven days."""
    answer = provision(call.config(), "host_rotate", name=name)
    call.fields(answer, "The keys are shown this once and stored sealed.")


@host.command("list")
@click.pass_obj
def host_list(call: Call) -> None:
    """List the hosts."""
    listed(call, "host")
