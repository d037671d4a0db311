"""`maintenance`: announce that the issuer is away for a while."""

from typing import Any

import click

from switch.cli.base import Call, Command
from switch.cli.provision import provision


@click.command(cls=Command)
@click.argument("state", type=click.Choice(("on", "off")))
@click.pass_obj
def maintenance(call: Call, state: str) -> None:
    """Refuse new operations with "servicio en mantenimiento", or take them again.

    To be said to the node that plays sicoop. What is under way goes on: confirmations, reversals
    and annulments are never refused. It lasts over restarts until it is switched off.
    """
    answer: dict[str, Any] = provision(call.config(), "maintenance", on=state == "on")
    text = "new operations are refused (91)" if answer["maintenance"] else "operations are taken"
    call.answer(answer, lambda: click.echo(text))
