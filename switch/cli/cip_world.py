"""The payment application with a SOF site, on loopback: for the demonstration and for tests.

The node is a process of its own made with `init`; the site runs here and talks to it by HTTP only.
"""

import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from argon2 import PasswordHasher
from msgspec import Struct

from switch.cli import setup
from switch.cli.apart import free_port
from switch.cli.provision import provision
from switch.cli.serving import serving
from switch.config import LISTENERS, Config
from switch.simulators.cip_sof import SofAccount, SofSite

APP: Final = "TAXPAY"
CUSTOMER: Final = "ana"
DESK: Final = {
    "clara": "clerk", "aldo": "approver", "alma": "approver", "aura": "auditor", "ada": "admin",
    "abel": "admin",
}  # fmt: skip


class World(Struct, kw_only=True):
    """All of it while it runs. `password`: of the customer and of everybody at the desk."""

    config: Config
    process: trio.Process
    url: str
    ops: str
    site: SofSite
    password: str

    def __repr__(self) -> str:
        return f"World({self.url!r})"


class Prepared(Struct, kw_only=True):
    """A provisioned directory."""

    config: Config
    account: SofAccount
    password: str
    site_port: int
    url: str

    def __repr__(self) -> str:
        return f"Prepared({self.url!r})"


def prepare(directory: Path, settings: Mapping[str, Any] | None = None, **values: Any) -> Prepared:
    """Make a node's directory with an application, its machine, a customer and a desk.

    Args:
        settings: of `config.default_toml`, as `cip.auth_queue_max`. values: keys of the
            application.
    """
    site_port, http_port = free_port(), free_port()
    listeners = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS if name != "http"}
    config = setup.make(
        directory, node_name="cip", listen_http=f"127.0.0.1:{http_port}",
        cip_private_webhooks=True, **listeners, **(settings or {}),
    )  # fmt: skip
    back = f"http://127.0.0.1:{site_port}/back"
    provision(
        config, "cip_app_add", id=APP, name="Oficina de impuestos",
        source=values.pop("source", "simulator"),
        values={
            "return_urls": [back], "default_return_url": back,
            "webhook_url": f"http://127.0.0.1:{site_port}/hook", **values,
        },
    )  # fmt: skip
    password, machine = secrets.token_urlsafe(15), secrets.token_urlsafe(15)
    auth = config.cip.auth
    hasher = PasswordHasher(
        time_cost=auth.time_cost, memory_cost=auth.memory_kib, parallelism=auth.parallelism
    )
    hashed = hasher.hash(password)
    people = {"portal": ("machine", hasher.hash(machine)), CUSTOMER: ("customer", hashed)}
    people |= {name: (kind, hashed) for name, kind in DESK.items()}
    for name, (kind, found) in people.items():
        provision(config, "cip_user_add", application=APP, user=name, kind=kind, hash=found)
    key = provision(config, "cip_key_add", application=APP)
    account = SofAccount(
        application=APP, user="portal", password=machine, key_id=key["key_id"], key=key["key"]
    )
    return Prepared(
        config=config, account=account, password=password, site_port=site_port,
        url=f"http://127.0.0.1:{http_port}",
    )  # fmt: skip


@asynccontextmanager
async def running(prepared: Prepared) -> AsyncIterator[World]:
    """Run site and node until the end of the block.

    Raises:
        CliError: the node did not start, or did not end with 0; with the end of its log.
    """
    site = SofSite(prepared.account, prepared.url)
    config = prepared.config
    command = [sys.executable, "-m", "switch", "serve", "-c", str(config.path)]
    async with trio.open_nursery() as nursery:

        async def serve(task_status: Any) -> None:
            await site.run(prepared.site_port, task_status=task_status)

        await nursery.start(serve)
        async with serving(command, config.path.parent / "serve.log") as (process, ready):
            ops = ready["ops"]
            yield World(
                config=config, process=process, url=prepared.url, site=site,
                ops=f"http://{ops[0]}:{ops[1]}", password=prepared.password,
            )  # fmt: skip
        nursery.cancel_scope.cancel()
