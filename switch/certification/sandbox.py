"""Our own side of the line as a candidate: nodes in a directory of their own, for one run.

Nothing of a configured node is touched. Budgets are short and in their order, so that what takes
half a minute in service takes seconds here.
"""

import csv
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from protocols.messages import Confirm, Hold, Reverse
from protocols.session import PeerKey
from switch.certification import kit
from switch.certification.platform_day import YESTERDAY
from switch.certification.stand import Terminal, Times
from switch.cli import setup
from switch.cli.provision import opened
from switch.cli.serving import serving
from switch.clock import iso_ms
from switch.config import LISTENERS, Config
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.provisioning import Provisioning

TIMES: Final = Times(terminal=4, platform=3, issuer=2, confirm=3, slack=5)
CAP: Final = 10**12
MAKE_S: Final = 60.0
BRANCH: Final = "17"
PLATFORM_TERMINALS: Final = ("00000001", "00000002")
DAY_NS: Final = 86_400 * 10**9
PROGRAM: Final = (sys.executable, "-m", "switch")
"""How the candidate's program is run."""

_VALUES: Final[dict[str, Any]] = {
    "budgets_terminal_s": 4,
    "budgets_red_s": 3,
    "budgets_sicoop_s": 2,
    "budgets_ceibo_s": 1,
    "budgets_confirm_s": 3,
    "session_heartbeat_s": 5,
    "session_drain_s": 2,
    "platform_backoff_min_s": 0.05,
    "platform_backoff_max_s": 0.3,
    "journal_segment_bytes": 1 << 21,
    "journal_group_bytes_max": 1 << 19,
    "journal_reserve_bytes": 1 << 16,
    "tokens_attempts_terminal": 10_000,
    "tokens_attempts_cashier": 10_000,
}


@dataclass
class Sandbox:
    """One node, as the run reaches it."""

    config: Config
    network: str
    program: Sequence[str]
    terminals: list[Terminal] = field(default_factory=list)
    addresses: dict[str, tuple[str, int]] = field(default_factory=dict)
    yesterday: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def files(self) -> Path:
        """Where `make_file` puts the daily files."""
        return self.config.path.parent / "files"

    async def read_file(self, path: Path) -> dict[str, Any]:
        """Take in a network's file, as its operator does; `rows`: the difference report."""
        command = [
            *self.program, "conciliation", "read", str(path), "-c", str(self.config.path), "--json"
        ]  # fmt: skip
        with trio.fail_after(MAKE_S):
            done = await trio.run_process(
                command, check=False, stdin=subprocess.DEVNULL, capture_stdout=True,
                capture_stderr=True,
            )  # fmt: skip
        if done.returncode:
            return {"state": "refused"}
        told: dict[str, Any] = msgspec.json.decode(done.stdout)
        report = told.get("report")
        return told | {"rows": _rows(Path(report)) if report else []}

    async def make_file(self, date: str) -> None:
        """Make the network's file of a business date, yyyymmdd, as its operator does."""
        command = [
            *self.program, "conciliation", "make", "-c", str(self.config.path),
            "--network", self.network, "--date", date, "--role", "red",
            "--directory", str(self.files),
        ]  # fmt: skip
        with trio.move_on_after(MAKE_S):
            await trio.run_process(
                command, check=False, stdin=subprocess.DEVNULL, capture_stdout=True,
                capture_stderr=True,
            )  # fmt: skip


@asynccontextmanager
async def network_node(
    directory: Path, network: str, key: PeerKey, platform: tuple[str, int], terminals: int,
    program: Sequence[str] = PROGRAM, toml: str = "",
) -> AsyncIterator[Sandbox]:  # fmt: skip
    """A `red` of ours with so many terminals, whose platform is elsewhere; `toml`: more of its
    configuration."""
    where = f"{platform[0]}:{platform[1]}"
    sandbox = await _made(
        directory, network, program, node_roles=("red",), platform_connect=(where,)
    )
    with sandbox.config.path.open("a") as file:
        file.write(toml)
    async with opened(sandbox.config) as node:
        desk, step = Provisioning(node), node.begin()
        desk.call(
            step, "network_add", {"number": network, "net_debit_cap": CAP, "key": key.key.hex()}
        )
        for number in range(1, terminals + 1):
            values = {"number": f"{number:08d}", "network": network, "branch": BRANCH}
            answer = desk.call(step, "terminal_add", values)
            sandbox.terminals.append(
                Terminal(answer["peer"], PeerKey(bytes.fromhex(answer["key"]), answer["mac"]))
            )
        node.end(step)
    async with _serving(sandbox):
        yield sandbox


async def _made(
    directory: Path, network: str, program: Sequence[str], **values: Any
) -> Sandbox:  # fmt: skip
    listening = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS}
    # In a thread: `init` runs a loop of its own.
    config = await trio.to_thread.run_sync(
        lambda: setup.make(directory, **(_VALUES | listening | values))
    )
    return Sandbox(config, network, program)


@asynccontextmanager
async def platform_node(
    directory: Path, network: str, key: PeerKey, program: Sequence[str] = PROGRAM, toml: str = "",
) -> AsyncIterator[Sandbox]:  # fmt: skip
    """All roles of ours in the simulator profile, with the kit and operations of yesterday; `toml`:
    more of its configuration."""
    sandbox = await _made(
        directory, network, program, node_simulator=True, node_roles=("red", "sicoop", "ceibo")
    )
    with sandbox.config.path.open("a") as file:
        file.write(toml)
    config = sandbox.config
    master = MasterKey.load(config.file(config.node.master_key_file))
    node = Node(config, master, _Yesterday(), config.data)
    node.open(conclude=False)
    try:
        _provision(node, sandbox, key)
        _play_yesterday(node, sandbox)
    finally:
        node.close()
    async with _serving(sandbox):
        yield sandbox


def _rows(report: Path) -> list[dict[str, str]]:
    with open(report, newline="", encoding="ascii") as file:
        return list(csv.DictReader(file, delimiter=";"))


class _Yesterday:
    """The clock of a day ago."""

    def wall_ns(self) -> int:
        return time.time_ns() - DAY_NS

    def mono_ns(self) -> int:
        return int(trio.current_time() * 1_000_000_000)


class _Heard:
    """Keeps the one answer to a request."""

    def __init__(self) -> None:
        self.answer: Any = None

    def ready(self, message: Any) -> None:
        self.answer = message

    def flush(self) -> None:
        pass


def _provision(node: Node, sandbox: Sandbox, key: PeerKey) -> None:
    desk, step, network = Provisioning(node), node.begin(), sandbox.network
    desk.call(step, "network_add", {"number": network, "net_debit_cap": CAP, "key": key.key.hex()})
    for number in PLATFORM_TERMINALS:
        desk.call(step, "terminal_add", {"number": number, "network": network, "branch": BRANCH})
    for values in kit.cards():
        desk.call(step, "card_add", values)
    node.end(step)
    node.store.commit()


def _play_yesterday(node: Node, sandbox: Sandbox) -> None:
    """Operations that a daily file can be about, each as `YESTERDAY` says."""
    day = node.calendar.local(node.clock.wall_ns()).compact
    person = kit.CARD_FIRST + kit.CARDS
    for trace, (name, end) in enumerate(YESTERDAY.items(), 1):
        reference = f"{sandbox.network}{PLATFORM_TERMINALS[0]}{day}{trace:06}"
        now_ns = node.clock.wall_ns()
        amount = 10_000 * trace
        hold = Hold(
            id=1, reference=reference, kind="cash_out", branch=BRANCH, cashier="000001",
            document=str(person - trace), token=kit.code(now_ns / 1e9), amount=amount,
            currency="PYG", sent_at=iso_ms(now_ns),
        )  # fmt: skip
        messages: list[Any] = [hold]
        if end == "captured":
            messages.append(Confirm(2, reference, iso_ms(now_ns)))
        elif end == "reversed":
            messages.append(Reverse(2, reference, amount, "timeout"))
        for message in messages:
            heard, step = _Heard(), node.begin()
            node.network_request(step, sandbox.network, message, heard)
            node.end(step)
            node.store.commit()
            assert heard.answer is None or heard.answer.code == "00", heard.answer
        sandbox.yesterday[name] = (reference, amount)


@asynccontextmanager
async def _serving(sandbox: Sandbox) -> AsyncIterator[None]:
    path = sandbox.config.path
    command = [*sandbox.program, "serve", "-c", str(path)]
    async with serving(command, path.parent / "serve.log") as (_, ready):
        sandbox.addresses = {name: (host, port) for name, (host, port) in ready.items()}
        yield
