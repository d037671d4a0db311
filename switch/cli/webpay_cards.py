"""`troncal webpay card`: cards that our own ledger authorises (`authoriser = "ledger"`)."""

import sys
from typing import Final

import click

from switch.cli.base import Call, Group
from switch.cli.provision import provision
from switch.provisioning_webpay import BALANCE_MAX, CURRENCIES

NUMBER_CHARACTERS_MAX: Final = 64


@click.group("card", cls=Group)
def card() -> None:
    """Cards whose accounts are in our own ledger."""


@card.command("add")
@click.option("--currency", type=click.Choice(CURRENCIES), default="CLP", show_default=True)
@click.option(
    "--balance", type=click.IntRange(0, BALANCE_MAX), default=0, show_default=True,
    help="To be had from it, out of the house's funds; in pesos, or cents of a dollar.",
)  # fmt: skip
@click.pass_obj
def card_add(call: Call, currency: str, balance: int) -> None:
    """Open the account of a card, or add to the balance of one that is known.

    Its number is read from standard input, and asked for without an echo at a terminal: what
    stands in a command line is seen by every user of the machine. Only its keyed hash is kept.
    """
    if sys.stdin.isatty():
        text = click.prompt("Card number", hide_input=True, err=True)
    else:
        text = sys.stdin.readline(NUMBER_CHARACTERS_MAX)
    pan = "".join(text.split())
    answer = provision(
        call.config(), "webpay_card_add", pan=pan, currency=currency, balance=balance
    )
    call.fields(answer)
