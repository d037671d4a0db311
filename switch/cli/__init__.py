"""The command line: `troncal COMMAND`, thin over the rest of the program.

One file per group of commands. What is common to all of them (`-c`, `--json`, how errors look) is
in `base`; how a command reaches a stopped or a running node is in `provision`.
"""

import importlib

import click

from switch.cli.base import Call, Group

# Commands by name, each with the module and attribute it lives in. Imported when asked for, so
# that `troncal card code` does not wait for HTTP and the native modules it has no use for.
COMMANDS = {
    "init": "switch.cli.setup:init",
    "serve": "switch.cli.serve:serve",
    "demo": "switch.cli.demo:demo",
    "check-config": "switch.cli.setup:check_config",
    "network": "switch.cli.peers:network",
    "branch": "switch.cli.peers:branch",
    "terminal": "switch.cli.peers:terminal",
    "cashier": "switch.cli.peers:cashier",
    "host": "switch.cli.peers:host",
    "card": "switch.cli.cards:card",
    "send": "switch.cli.send:send",
    "operations": "switch.cli.questions:operations",
    "operation": "switch.cli.questions:operation",
    "tills": "switch.cli.questions:tills",
    "saf": "switch.cli.questions:saf",
    "resolve": "switch.cli.conciliation:resolve",
    "conciliation": "switch.cli.conciliation:conciliation",
    "links": "switch.cli.links:links",
    "maintenance": "switch.cli.maintenance:maintenance",
    "routes": "switch.cli.links:routes",
    "reload": "switch.cli.links:reload",
    "key": "switch.cli.keys:key",
    "iso": "switch.cli.iso:iso",
    "webpay": "switch.cli.webpay:webpay",
    "cip": "switch.cli.cip:cip",
    "transfiya": "switch.cli.transfiya:transfiya",
    "verify": "switch.cli.data:verify",
    "backup": "switch.cli.data:backup",
    "restore": "switch.cli.data:restore",
    "export": "switch.cli.data:export",
    "snapshot": "switch.cli.data:snapshot",
    "replay": "switch.cli.data:replay",
    "sim": "switch.cli.sim:sim",
    "certify": "switch.cli.certify:certify",
    "bench": "switch.cli.bench:bench",
    "project": "switch.cli.follower:project",
}


class Root(Group):
    """The commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=Root)
@click.version_option(package_name="troncal", prog_name="troncal")
@click.pass_context
def root(ctx: click.Context) -> None:
    """Troncal: a switch for payments at cashiers.

    Start with `troncal demo`, or with `troncal init` and `troncal serve`.
    """
    ctx.ensure_object(Call)
