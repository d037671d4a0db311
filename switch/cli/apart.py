"""`red`, `sicoop` and `ceibo` as three nodes that share keys and nothing else.

Three directories are made with `init`, provisioned so that they know each other: the network's key
at red and sicoop, the keys of the ISO 8583 hop at sicoop and ceibo, terminals with keys at red and
known at sicoop, cards at ceibo only. Each runs as a process of its own, at addresses that stay the
same over its restarts.
"""

import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from protocols.session import PeerKey
from switch.cli import setup
from switch.cli.base import CliError
from switch.cli.provision import opened
from switch.config import LISTENERS, Config, load
from switch.ops.keys import from_base32
from switch.provisioning import Provisioning

ROLES: Final = ("red", "sicoop", "ceibo")
HOST: Final = "ceibo"
LISTENER: Final = {"red": "terminals", "sicoop": "sicoop", "ceibo": "ceibo"}
"""The listener by which the others know a role."""

CARDS_A_STEP: Final = 200
PORTS: Final = range(20_000, 32_000)
PORT_TRIES: Final = 100


@dataclass
class Terminal:
    """A terminal of red."""

    number: str
    key: PeerKey


@dataclass
class Card:
    """A card of ceibo, as its holder has it."""

    card: str
    document: str
    seed: bytes = field(repr=False)


@dataclass
class Apart:
    """Three provisioned directories.

    `host_keys` are those of the hop from sicoop to ceibo, as `host add` prints them.
    """

    configs: dict[str, Config]
    addresses: dict[str, tuple[str, int]]
    network: str
    network_key: PeerKey
    terminals: list[Terminal]
    cards: list[Card]
    host_keys: dict[str, str]

    def __repr__(self) -> str:
        return f"Apart({sorted(self.configs)}, {len(self.terminals)} terminals)"

    def command(self, role: str) -> list[str]:
        """The command line that runs a role."""
        config = self.configs[role]
        command = [sys.executable, "-m", "switch", "serve", "-c", str(config.path)]
        host, port = self.addresses[role]
        for name in LISTENERS:
            address = f"{host}:{port}" if name == LISTENER[role] else "127.0.0.1:0"
            command += ["--listen", f"{name}={address}"]
        return command

    def log(self, role: str) -> Path:
        """Where a role writes its log, one process behind the other."""
        return self.configs[role].path.parent / "serve.log"

    async def start(self, role: str) -> trio.Process:
        """Start a role; its `ready` line comes on stdout."""
        with _appending(self.log(role)) as errors:
            return await trio.lowlevel.open_process(
                self.command(role), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=errors, start_new_session=True,
            )  # fmt: skip


def _appending(path: Path) -> Any:
    return open(path, "ab")


def free_port() -> int:
    """A port of loopback that nobody listens at, kept from the next who asks for a minute.

    It lies below those that the kernel gives to connections of its own choice, so that nobody takes
    it while a role is down. What keeps it is a connection that its own side closed first: the
    kernel remembers that one, refuses the port to a plain `bind` as it is made here, in whatever
    process, and allows it to a listener (SO_REUSEADDR).
    """
    for port in random.sample(PORTS, PORT_TRIES):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after the plain `bind`
            probe.listen(1)
            with socket.create_connection(probe.getsockname()) as caller:
                probe.accept()[0].close()
                caller.recv(1)
            return port
    raise CliError("no free port on the loopback")


async def prepare(
    directory: Path,
    *,
    network: str,
    terminals: int,
    branches: int,
    cards: Mapping[str, int],
    net_debit_cap: int,
    values: Mapping[str, Any] | None = None,
    toml: Mapping[str, str] | None = None,
    sicoop_at: Sequence[tuple[str, int]] = (),
    ceibo_at: tuple[str, int] | None = None,
) -> Apart:
    """Make the three directories.

    Args:
        cards: balance by document.
        values: other values than the defaults of all three, as for `config.default_toml`.
        toml: more of the configuration file, by role.
        sicoop_at, ceibo_at: where red and sicoop connect to, if not to each other: a simulator, or
            a line with faults in between.

    Raises:
        CliError: a directory is in the way.
    """
    addresses = {role: ("127.0.0.1", free_port()) for role in ROLES}
    common = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS} | dict(values or {})
    to_sicoop = tuple(map(_text, sicoop_at or [addresses["sicoop"]]))
    to_ceibo = _text(ceibo_at or addresses["ceibo"])
    configs = {}
    for role in ROLES:
        own: dict[str, Any] = {"node_name": role, "node_roles": (role,)}
        if role == "red":
            own |= {"platform_connect": to_sicoop}
        # In a thread: `init` runs a loop of its own.
        config = await trio.to_thread.run_sync(_made, directory / role, common | own)
        if toml and role in toml:
            with _appending(config.path) as file:
                file.write(b"\n" + toml[role].encode())
            config = load(config.path)
        configs[role] = config
    made = Apart(configs, addresses, network, PeerKey(bytes(32)), [], [], {})
    await _provision_red(made, terminals, branches, net_debit_cap)
    await _provision_sicoop(made, branches, net_debit_cap, to_ceibo)
    await _provision_ceibo(made, cards)
    return made


def _made(directory: Path, values: dict[str, Any]) -> Config:
    return setup.make(directory, red_company="RED DEMO S.A.", **values)


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


async def _provision_red(made: Apart, terminals: int, branches: int, cap: int) -> None:
    async with opened(made.configs["red"]) as node:
        desk, step = Provisioning(node), node.begin()
        answer = desk.call(step, "network_add", {"number": made.network, "net_debit_cap": cap})
        made.network_key = PeerKey(bytes.fromhex(answer["key"]))
        for index in range(terminals):
            values = _terminal(made, index, branches)
            answer = desk.call(step, "terminal_add", values)
            key = PeerKey(bytes.fromhex(answer["key"]), answer["mac"])
            made.terminals.append(Terminal(values["number"], key))
        node.end(step)


def _terminal(made: Apart, index: int, branches: int) -> dict[str, Any]:
    branch = f"{17 + index % branches}"
    return {"number": f"{index + 1:08d}", "network": made.network, "branch": branch}


async def _provision_sicoop(made: Apart, branches: int, cap: int, to_ceibo: str) -> None:
    async with opened(made.configs["sicoop"]) as node:
        desk, step = Provisioning(node), node.begin()
        key = made.network_key.key.hex()
        desk.call(step, "network_add", {"number": made.network, "net_debit_cap": cap, "key": key})
        for index in range(len(made.terminals)):
            desk.call(step, "terminal_add", _terminal(made, index, branches) | {"known_only": True})
        answer = desk.call(
            step, "host_add", {"name": HOST, "dialect": "ceibo", "connect": to_ceibo}
        )
        node.end(step)
    made.host_keys = {name: answer[name] for name in ("mac_key", "data_key", "zone_key")}


async def _provision_ceibo(made: Apart, cards: Mapping[str, int]) -> None:
    async with opened(made.configs["ceibo"]) as node:
        desk, step = Provisioning(node), node.begin()
        # The host that `init` has made for a sicoop elsewhere, with the keys which that one made.
        desk.call(step, "host_rotate", {"name": setup.HOST, "keys": made.host_keys})
        for index, (document, balance) in enumerate(cards.items()):
            answer = desk.call(
                step, "card_add",
                {"document": document, "name": f"PERSONA {index}", "token_mode": "totp",
                 "balance": balance},
            )  # fmt: skip
            made.cards.append(Card(answer["card"], document, from_base32(answer["seed"])))
            if index % CARDS_A_STEP == CARDS_A_STEP - 1:
                node.end(step)
                node.store.commit()
                step = node.begin()
        node.end(step)
