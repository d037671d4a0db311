"""The master key: its check value, and another one in its place."""

import click

from switch.cli.base import Call, CliError, Group
from switch.cli.provision import node_answers
from switch.ops import rotation
from switch.ops.keys import ENVIRONMENT, MasterKey


@click.group(cls=Group)
def key() -> None:
    """The master key, under which all other keys and seeds are stored."""


@key.command("check")
@click.pass_obj
def check(call: Call) -> None:
    """Print the check value of the master key: it tells one from another and may be shown."""
    config = call.config()
    master = MasterKey.load(config.file(config.node.master_key_file))
    call.fields({"check": master.check_value})


@key.command("rotate-master")
@click.pass_obj
def rotate_master(call: Call) -> None:
    """Make a new master key and seal everything under it, on a stopped data directory.

    The old key's file is kept under another name: older backups open with it only. Cut short, the
    same command goes on. Where the key comes by the environment, the new one is left in a file.
    """
    config = call.config()
    if node_answers(config):
        raise CliError(f"a node runs on {config.data}", "stop it first: SIGTERM drains")
    answer = rotation.rotate(config)
    note = f"Keep {answer['kept']} with the backups made until now, apart from the data."
    if not answer["kept"]:
        note = f"Set {ENVIRONMENT} to the content of {answer['key']}, then remove the file."
    call.fields(answer, note)
