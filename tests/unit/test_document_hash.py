"""How daily files name persons: one hash for ever, whatever becomes of master key or read model."""

import sqlite3
from pathlib import Path

import pytest

from switch.cli import setup
from switch.config import Config
from switch.flows import operations as ops
from switch.flows.operations import RedOperation
from switch.journal.projector import FILE_NAME, Projector
from switch.node import Node
from switch.ops import rotation
from switch.ops.keys import MasterKey
from switch.reports.daily_file import document_hash, network_key
from switch.reports.making import NotReady, details
from tests.house import ManualClock

SMALL = {
    "journal_segment_bytes": 1 << 20,
    "journal_group_bytes_max": 1 << 16,
    "journal_reserve_bytes": 1 << 16,
}
DOCUMENT = ("CI", "4567890")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv("TRONCAL_MASTER_KEY", raising=False)
    config = setup.make(tmp_path / "n", **SMALL)
    register(config, 1)
    return config


def master(config: Config) -> MasterKey:
    return MasterKey.load(config.file(config.node.master_key_file))


def register(config: Config, trace: int) -> None:
    clock = ManualClock()
    node = Node(config, master(config), clock, config.data)
    node.open()
    operation = RedOperation(
        f"00120000001720261122{trace:06d}", "cash_out", "0012", "00000017", "000017", "000045",
        trace, 1000, "PYG", DOCUMENT, 1, clock.now_ns, "REGISTRADA",
        business_date="2026-11-22", operation="263260000001",
    )  # fmt: skip
    step = node.begin()
    node.store.records.put(
        ops.RED_OPERATIONS, operation.reference.encode(), ops.encode(operation)
    )  # fmt: skip
    node.end(step)
    node.store.commit()
    node.close()


def hashes(config: Config, *, with_key: bool = True) -> list[str]:
    projector = Projector(config, config.data, master(config) if with_key else None)
    projector.catch_up()
    projector.close()
    db = sqlite3.connect(config.data / FILE_NAME)
    found = [row[0] for row in db.execute("SELECT document_hash FROM register ORDER BY reference")]
    db.close()
    return found


def forget(config: Config) -> None:
    for path in config.data.glob(FILE_NAME + "*"):
        path.unlink()


def test_hash_is_that_of_the_networks_key(config: Config) -> None:
    key = network_key(master(config).subkey("conciliation"), "0012")
    assert hashes(config) == [document_hash(key, *DOCUMENT)]


def test_documents_are_not_in_the_read_model(config: Config) -> None:
    hashes(config)
    data = b"".join(path.read_bytes() for path in config.data.glob(FILE_NAME + "*"))
    assert b"4567890" not in data


def test_one_hash_over_rotations_and_rebuilding(config: Config) -> None:
    (first,) = hashes(config)
    for trace in (2, 3):
        rotation.rotate(config)
        register(config, trace)
        assert hashes(config) == [first] * trace
    forget(config)
    assert hashes(config) == [first] * 3


def test_without_the_key_there_is_no_file(config: Config) -> None:
    assert hashes(config, with_key=False) == [""]
    calendar = config.calendar()
    day = calendar.business(ManualClock().now_ns)
    with pytest.raises(NotReady):
        list(details(config.data / FILE_NAME, "red", "0012", day, calendar))
