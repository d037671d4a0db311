"""Webpay with all that belongs to it, on loopback: a node, an issuer's host, and shops.

The node is a process of its own made with `init`; issuer and shops run here. What is simulated is
the other side only: shops talk to the node by HTTP, the node to the issuer by ISO 8583. Used by
the demonstration, the browser tests and the measurements.
"""

import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec import Struct

from protocols.iso8583.dialect import Dialect
from protocols.iso8583.keys import HostKeys
from switch.cli import setup
from switch.cli.apart import free_port
from switch.cli.base import CliError
from switch.cli.provision import provision
from switch.cli.serving import serving
from switch.config import LISTENERS, Config, load
from switch.ops.key_store import KeyStore
from switch.ops.keys import MasterKey
from switch.simulators.server import Server
from switch.simulators.webpay_bank import PATH as BANK_PATH
from switch.simulators.webpay_bank import HolderBank
from switch.simulators.webpay_issuer import CardIssuer
from switch.simulators.webpay_merchant import CLOSING_PATH, KIT_PATH, WebpayMerchant
from switch.web.webpay_orders import Orders
from switch.web.webpay_shop import MerchantKit, ShopSettings

ISSUER: Final = "emisor1"
INSTITUTION: Final = "0042"
CODE_FIRST: Final = 597026007976
UP_S: Final = 30.0
POLL_S: Final = 0.1
BITS_OWN: Final = 4096
BITS_SHOP: Final = 2048


class Plan(Struct, frozen=True, kw_only=True):
    """A shop to be made. `more`: further lines of its section. `fixed`: its instalments (CIC)."""

    mode: Literal["kcc60", "direct"] = "kcc60"
    form: str = "3G"
    name: str = "Tienda de prueba"
    instalments: tuple[str, ...] = ("VN-0", "SI-3", "VC-6", "VC-12")
    fixed: tuple[int, int] | None = None
    more: str = ""


class Shop(Struct, kw_only=True):
    """A shop that has been made: its code, its place, its simulator."""

    code: str
    plan: Plan
    site_port: int
    notify_port: int
    merchant: WebpayMerchant


class Keys(Struct, frozen=True):
    """The pairs in play; `other` is one that nobody knows."""

    webpay: RSAPrivateKey
    shop: RSAPrivateKey
    other: RSAPrivateKey

    def __repr__(self) -> str:
        return "Keys(***)"


class Ports(NamedTuple):
    """Where the simulated others listen."""

    issuer: int
    bank: int


class World(Struct, kw_only=True):
    """All of it while it runs.

    Attributes:
        url: of the acquirer. ops: of its metrics and health.
        server: the issuer's sockets; `stop` takes it away for a while.
        bank: asks holders who they are.
    """

    config: Config
    shops: list[Shop]
    issuer: CardIssuer
    server: Server
    bank: HolderBank
    process: trio.Process
    url: str
    ops: str

    def metrics(self) -> dict[str, float]:
        """Return the metrics of Webpay by name with labels. Blocks."""
        import httpx

        found: dict[str, float] = {}
        for line in httpx.get(f"{self.ops}/metrics", timeout=10).text.splitlines():
            if line.startswith("troncal_"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found


def new_keys(bits: int = BITS_OWN) -> Keys:
    """Make all pairs. Takes seconds."""
    return Keys(
        generate_private_key(65537, bits),
        generate_private_key(65537, BITS_SHOP),
        generate_private_key(65537, BITS_SHOP),
    )


def prepare(
    directory: Path,
    plans: Sequence[Plan],
    keys: Keys,
    values: Mapping[str, str] | None = None,
    amend: Callable[[str], str] = str,
) -> tuple[Config, list[Shop], dict[str, str], Ports]:
    """Make the node's directory, its keys and its shops.

    Args:
        values: lines of the file and what stands there instead.
        amend: has the last word about the file.

    Returns:
        Configuration, shops, the keys of the issuer's link, and where the others listen.
    """
    issuer_port, http_port, bank_port = free_port(), free_port(), free_port()
    listeners = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS if name != "http"}
    config = setup.make(
        directory, node_name="webpay", node_roles=("webpay",),
        listen_http=f"127.0.0.1:{http_port}", **listeners,
    )  # fmt: skip
    store = KeyStore(config.data / "keys", MasterKey.load(config.path.parent / "master.key"))
    store.add("webpay-101", _pem(keys.webpay))
    store.add("merchant-shops", _pem(keys.shop))
    shops = [_shop(directory, n, plan, keys, http_port) for n, plan in enumerate(plans)]
    provisioned = provision(
        config, "host_add", name=ISSUER, dialect="bank", connect=f"127.0.0.1:{issuer_port}"
    )
    text = config.path.read_text()
    ours = {
        "private = false": "private = true",
        'bank_url = ""': f'bank_url = "http://127.0.0.1:{bank_port}{BANK_PATH}"',
    }
    for line, new in {**ours, **(values or {})}.items():
        assert f"\n{line}\n" in text, line
        text = text.replace(f"\n{line}\n", f"\n{new}\n")
    sections = [f'[links.{ISSUER}]\ninstitution = "{INSTITUTION}"\n', *map(_section, shops)]
    config.path.write_text(amend("\n".join([text, *sections])))
    return load(config.path), shops, provisioned, Ports(issuer_port, bank_port)


def _shop(directory: Path, number: int, plan: Plan, keys: Keys, http_port: int) -> Shop:
    code = str(CODE_FIRST + number)
    site, notify = free_port(), free_port()
    place = directory / "tiendas" / code
    place.mkdir(parents=True)
    settings = ShopSettings(
        merchant=code, name=plan.name, notify_url=f"http://127.0.0.1:{notify}{KIT_PATH}",
        notify_ip="127.0.0.1", notify_port=notify, directory=place / "bitacora",
    )  # fmt: skip
    webpay_key = keys.webpay.public_key()
    merchant = WebpayMerchant(
        MerchantKit(settings, keys.shop, webpay_key, wall_ns=time.time_ns),
        Orders(place / "orders.sqlite"),
        acquirer_url=f"http://127.0.0.1:{http_port}/filtroUnificado/bp_revision.cgi",
        other_kit=MerchantKit(settings, keys.other, webpay_key, wall_ns=time.time_ns),
        fixed=plan.fixed,
    )
    return Shop(code=code, plan=plan, site_port=site, notify_port=notify, merchant=merchant)


def _section(shop: Shop) -> str:
    plan, base = shop.plan, f"http://127.0.0.1:{shop.notify_port}"
    choices = ", ".join(f'"{choice}"' for choice in plan.instalments)
    return "\n".join((
        f'[webpay.merchant."{shop.code}"]',
        f'name = "{plan.name}"',
        'key = "merchant-shops"',
        f'form = "{plan.form}"',
        f"instalments = [{choices}]",
        f"fixed_instalments = {'false' if plan.fixed is None else 'true'}",
        f'authoriser = "bank:{ISSUER}"',
        f'notify_mode = "{plan.mode}"',
        f'notify_url = "{base}{KIT_PATH}"',
        'notify_ip = "127.0.0.1"',
        f"notify_port = {shop.notify_port}",
        f'direct = {{ closing_url = "{base}{CLOSING_PATH}" }}' if plan.mode == "direct" else "",
        f'return_hosts = ["127.0.0.1:{shop.site_port}"]',
        plan.more,
        "",
    ))  # fmt: skip


def _pem(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@asynccontextmanager
async def running(
    directory: Path,
    plans: Sequence[Plan],
    keys: Keys,
    values: Mapping[str, str] | None = None,
    amend: Callable[[str], str] = str,
) -> AsyncIterator[World]:
    """Make all of it in a new directory and run it until the end of the block.

    Raises:
        CliError: the node did not start, or did not end with 0; with the end of its log.
    """
    config, shops, given, ports = await trio.to_thread.run_sync(
        prepare, directory, plans, keys, values, amend
    )
    host_keys = HostKeys.of(
        "aes-cmac",
        [(1, bytes.fromhex(given["mac_key"]))],
        [(1, bytes.fromhex(given["data_key"]))],
        [(1, bytes.fromhex(given["zone_key"]))],
    )
    issuer = CardIssuer(Dialect.load("bank"), host_keys)
    server = Server(issuer.converse)
    issuer.stop = server.stop
    async with trio.open_nursery() as nursery:
        await nursery.start(server.listen, "127.0.0.1", ports.issuer)
        holder_bank = HolderBank()
        await nursery.start(holder_bank.run, ports.bank)
        for shop in shops:
            await nursery.start(_run_shop, shop)
        async with node(config) as (process, ready):
            world = World(
                config=config, shops=shops, issuer=issuer, server=server, bank=holder_bank,
                process=process, url=_url(ready["http"]), ops=_url(ready["ops"]),
            )  # fmt: skip
            await _link_up(world)
            yield world
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def node(config: Config) -> AsyncIterator[tuple[trio.Process, dict[str, list[Any]]]]:
    """Run the node until the end of the block."""
    command = [sys.executable, "-m", "switch", "serve", "-c", str(config.path)]
    async with serving(command, config.path.parent / "serve.log") as (process, ready):
        yield process, ready


async def _run_shop(shop: Shop, task_status: Any) -> None:
    await shop.merchant.run(
        site_port=shop.site_port, notify_port=shop.notify_port, task_status=task_status
    )


async def _link_up(world: World) -> None:
    """Wait until the issuer has signed on; before that every payment ends in -2."""
    name = f'troncal_link_up{{link="{ISSUER}"}}'
    for _ in range(int(UP_S / POLL_S)):
        if (await trio.to_thread.run_sync(world.metrics)).get(name):
            return
        await trio.sleep(POLL_S)
    raise CliError("the issuer's link does not come up", f"see {world.config.path.parent}")


def _url(address: Sequence[Any]) -> str:
    return f"http://{address[0]}:{address[1]}"
