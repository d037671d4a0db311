"""A real node for the tests that need one: a provisioned directory, and `serve` as a process.

`Site` is the directory with its terminals and cards; it starts `NodeProcess`es one after another.
Nothing here hides what a process does: whoever uses it kills it, reads its log and exit code.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from core_ext._mac import totp
from protocols.session import PeerKey
from switch.config import Config
from switch.flows.registry import account_id
from switch.node import Node
from switch.ops.keys import MasterKey, base32, from_base32
from switch.provisioning import Provisioning
from tests.house import BRANCH, NETWORK, configuration

READY_S = 120.0
STOP_S = 120.0
BALANCE = 1_000_000
STEP_S = 60
CARDS_A_STEP = 500
SERVE = ("-m", "switch")

# Small segments, so that a short run crosses many of their borders; no lock gets in the way.
SMALL = """
[journal]
segment_bytes = 1048576
group_bytes_max = 262144
reserve_bytes = 65536
digest_every_groups = 16
[tokens]
attempts_terminal = 10000
attempts_cashier = 10000
"""


class PlainClock:
    """The machine's clocks, without a trio loop."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def mono_ns(self) -> int:
        return time.monotonic_ns()


@dataclass
class PeerEntry:
    """A provisioned terminal, or the network."""

    number: str
    key: PeerKey


@dataclass
class Card:
    """A provisioned card, and the newest step whose code was used."""

    card: str
    document: str
    seed: bytes
    last_step: int = 0

    def next_code(self, now_s: float) -> str | None:
        """A code that was never used and will be taken for 20 s more, or None for now."""
        # The node takes two steps back and one forward; the older ones first.
        step = int(now_s) // STEP_S
        oldest = step - 2 if now_s % STEP_S < STEP_S - 20 else step - 1
        wanted = max(self.last_step + 1, oldest)
        if wanted > step:
            return None
        self.last_step = wanted
        return totp(self.seed, wanted * STEP_S)


@dataclass
class Site:
    """A data directory with its configuration."""

    config: Config
    master: MasterKey
    network: PeerEntry = field(init=False)
    terminals: list[PeerEntry] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)

    @property
    def file(self) -> Path:
        assert self.config.path is not None
        return self.config.path

    @property
    def log(self) -> Path:
        """Where every process of this site writes its log, one behind the other."""
        return self.file.parent / "serve.log"

    def start(
        self, *, arguments: Sequence[str] = (), program: Sequence[str] = SERVE
    ) -> "NodeProcess":
        """Start a node; it is not ready yet."""
        return NodeProcess(self.file, self.log, arguments, program)

    def open(self) -> Node:
        """Recover the directory within this process; the caller closes it."""
        node = Node(self.config, self.master, PlainClock(), self.config.data)
        node.open()
        node.store.commit()
        return node

    def check_log(self, tokens: Sequence[str] = ()) -> None:
        """No code, key, seed or document in any log, and no traceback."""
        text = self.log.read_text(encoding="utf-8")
        words = [card.document for card in self.cards]
        for secret in self._secrets():
            words += [secret.hex(), base32(secret)]
        for word in words:
            assert word.lower() not in text.lower()
        for token in tokens:  # six digits alone may also be part of a time
            assert f'"{token}"' not in text
        assert "Traceback" not in text, text

    def check_files(self) -> None:
        """No key and no seed in anything that was written, in any form."""
        files = [path for path in self.file.parent.rglob("*") if path.is_file()]
        assert self.config.data / "journal" in {path.parent for path in files}
        for path in files:
            data = path.read_bytes()
            for secret in self._secrets():
                for form in (secret, secret.hex().encode(), base32(secret).encode()):
                    assert form not in data, path.name

    def _secrets(self) -> list[bytes]:
        """Keys and seeds, as they came out at provisioning."""
        peers = [*self.terminals, self.network]
        return [peer.key.key for peer in peers] + [card.seed for card in self.cards]

    def log_lines(self) -> list[dict[str, Any]]:
        """Every line of the log that is JSON."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def provision(
    directory: Path,
    *,
    terminals: int,
    cards: int,
    toml: str = SMALL,
    macs: Mapping[int, str] | None = None,
    net_debit_cap: int = 900_000_000_000,
) -> Site:
    """Make a site: one network, terminals from 00000001 on, cards with BALANCE each.

    Args:
        macs: MAC algorithm of terminals by number, where it is not HMAC.
    """
    config = configuration(directory, toml)
    site = Site(config, MasterKey.create(config.file(config.node.master_key_file)))
    node = site.open()
    provisioning = Provisioning(node)
    step = node.begin()
    made = provisioning.network_add(step, NETWORK, net_debit_cap=net_debit_cap)
    site.network = PeerEntry(NETWORK, PeerKey(bytes.fromhex(made["key"])))
    for number in range(1, terminals + 1):
        mac = (macs or {}).get(number, "hmac-sha256")
        made = provisioning.terminal_add(step, f"{number:08d}", NETWORK, BRANCH, mac=mac)
        key = PeerKey(bytes.fromhex(made["key"]), mac)
        site.terminals.append(PeerEntry(made["peer"], key))
    for index in range(cards):
        if index % CARDS_A_STEP == 0:
            node.end(step)
            node.store.commit()
            step = node.begin()
        document = str(4_000_000 + index)
        made = provisioning.card_add(step, document, balance=BALANCE, name="ANA MARIA ROJAS")
        site.cards.append(Card(made["card"], document, from_base32(made["seed"])))
    node.end(step)
    node.store.commit()
    node.close()
    return site


def available(node: Node, card: str) -> int:
    """What the holder of a card may spend, straight from the books."""
    balance = node.store.ledger.balance(account_id(f"card:{card}"))
    assert balance is not None
    return balance.available


def position(node: Node) -> int:
    """P of the network: positive means that it owes."""
    balance = node.store.ledger.balance(account_id(f"sicoop:PYG:net:{NETWORK}"))
    assert balance is not None
    return balance.debits_posted - balance.credits_posted


class NodeProcess:
    """A started `serve`. `ready` waits until it listens; then kill it or stop it."""

    def __init__(
        self, config: Path, log: Path, arguments: Sequence[str], program: Sequence[str]
    ) -> None:
        command = [sys.executable, *program, "serve", "-c", str(config)]
        for listener in ("terminals", "sicoop", "ceibo", "http", "ops"):
            command += ["--listen", f"{listener}=127.0.0.1:0"]
        self._log = log
        self.began_s = time.monotonic()
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*command, *arguments], stdout=subprocess.PIPE, stderr=stderr
            )
        self.addresses: dict[str, tuple[str, int]] = {}

    @property
    def terminals(self) -> tuple[str, int]:
        return self.addresses["terminals"]

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def ready(self) -> float:
        """Wait for the `ready` line; seconds since the start. For a thread, or a test without trio.

        Raises:
            EOFError: the process ended before; its log says why.
        """
        stdout = self._process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], READY_S)
        line = stdout.readline() if readable else b""
        word, _, text = line.partition(b" ")
        if word != b"ready":
            raise EOFError(f"said {line[:100]!r}; log:\n{self.tail()}")
        self.addresses = {name: (host, port) for name, (host, port) in json.loads(text).items()}
        return time.monotonic() - self.began_s

    async def wait_ready(self) -> float:
        """`ready` within trio. Raises: EOFError."""
        return await trio.to_thread.run_sync(self.ready)

    def kill(self) -> None:
        """SIGKILL, and nothing else."""
        self._process.kill()
        self._reap()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code it ends with."""
        self.signal()
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {STOP_S:g} s\n{self.tail()}") from None
        finally:
            self.end()

    def end(self) -> None:
        """Make sure that it is gone, however the test went."""
        if self._process.poll() is None:
            self._process.kill()
        self._reap()

    def memory_bytes(self) -> int:
        """Resident memory now."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def tail(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def _reap(self) -> None:
        self._process.wait(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
