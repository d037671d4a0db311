"""A data directory for a load scenario: configuration, master key, and what the load needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from switch import config as configs
from switch.clock import SystemClock
from switch.node import Node
from switch.ops.keys import MasterKey, from_base32
from switch.provisioning import Provisioning

NETWORK = "0012"
BRANCH = "000017"
CASHIER = "000345"
AMOUNT = 50_000
BALANCE = 1_000_000
DOCUMENT_FIRST = 10_000_000
CARDS_A_STEP = 1000  # cards made between two syncs of the journal

# The roles of the cashiers in one process. No run meets a bound of memory, and nobody is cut off
# for being idle while others are measured.
VALUES: Final[dict[str, Any]] = {
    "node_roles": ("red", "sicoop", "ceibo"),
    "session_heartbeat_s": 3600,
    "ledger_accounts_max": 10_000_000,
    "ledger_holds_max": 20_000_000,
    "ledger_keys_max": 20_000_000,
    "ledger_records_bytes_max": 16 << 30,
}

T = TypeVar("T")


def filled(directory: Path, fill: Callable[[Node], T], **values: Any) -> tuple[Path, T]:
    """Make a directory, let `fill` work on its stopped node; the configuration's path and what
    `fill` gave.

    Args:
        values: of the configuration, as `config.default_toml` takes them; they go before those of
            all scenarios.
    """
    file = directory / "troncal.toml"
    file.write_text(configs.default_toml(**(VALUES | values)), encoding="utf-8")
    config = configs.load(file, environ={})
    master = MasterKey.create(config.file(config.node.master_key_file))

    async def run() -> T:
        node = Node(config, master, SystemClock(), config.data)
        node.open()
        try:
            return fill(node)
        finally:
            node.close()

    return file, trio.run(run)


def add_cards(node: Node, count: int) -> list[tuple[str, bytes]]:
    """Funded cards, one a person: document of the holder and seed of each."""
    provisioning = Provisioning(node)
    cards = []
    for first in range(0, count, CARDS_A_STEP):
        step = node.begin()
        for index in range(first, min(first + CARDS_A_STEP, count)):
            document = str(DOCUMENT_FIRST + index)
            answer = provisioning.card_add(step, document, balance=BALANCE, token_mode="totp")
            cards.append((document, from_base32(answer["seed"])))
        node.end(step)
        node.store.commit()
    return cards
