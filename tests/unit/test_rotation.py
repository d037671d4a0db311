"""Another master key: all secrets go with it, and a stop at any point is mended."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from core_ext._mac import MacKey
from switch.cli import root, setup
from switch.config import Config
from switch.flows.registry import Card, Cashier, Host, Network, Terminal
from switch.flows.shifts import staff_aad
from switch.journal.store import StateError
from switch.node import Node
from switch.ops import rotation
from switch.ops.keys import PURPOSES, RETAINED, MasterKey, MasterKeyError, UnsealError
from switch.provisioning import Provisioning
from tests.house import ManualClock

SMALL = {
    "journal_segment_bytes": 1 << 20,
    "journal_group_bytes_max": 1 << 16,
    "journal_reserve_bytes": 1 << 16,
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A directory with one of everything that has a secret."""
    monkeypatch.delenv("TRONCAL_MASTER_KEY", raising=False)
    config = setup.make(tmp_path / "n", **SMALL)
    for node in opened(config):
        for command, values in (
            ("network_add", {"number": "0012"}),
            ("terminal_add", {"number": "00000017", "network": "0012", "branch": "17"}),
            ("terminal_rotate", {"number": "00000017"}),
            ("cashier_add", {"number": "45", "network": "0012", "branch": "17"}),
            ("card_add", {"document": "4567890"}),
            ("host_add", {"name": "bank1", "dialect": "bank"}),
            ("host_rotate", {"name": "sicoop"}),
        ):
            step = node.begin()
            Provisioning(node).call(step, command, values)
            node.end(step)
            node.store.commit()
    return config


def opened(config: Config) -> Iterator[Node]:
    master = MasterKey.load(config.file(config.node.master_key_file))
    node = Node(config, master, ManualClock(), config.data)
    node.open()
    try:
        yield node
    finally:
        node.close()


def secrets(config: Config) -> dict[str, bytes]:
    """Every secret in clear, by its owner, and what the derived keys make of a text."""
    found: dict[str, bytes] = {}
    for node in opened(config):
        registry, master = node.registry, node.master
        for entity in (*registry.all(Network), *registry.all(Terminal)):
            role = "network" if isinstance(entity, Network) else "terminal"
            assert isinstance(entity, Network | Terminal)
            for record in entity.keys:
                owner = f"{role}:{entity.number}:{record.version}"
                found[owner] = master.open(record.sealed, purpose="peer-keys", owner=owner)
        for host in registry.all(Host):
            assert isinstance(host, Host)
            sets = {"mac": host.mac_keys, "data": host.data_keys, "zone": host.zone_keys}
            for purpose, records in sets.items():
                for record in records:
                    owner = f"host:{host.name}:{purpose}:{record.version}"
                    found[owner] = master.open(record.sealed, purpose="peer-keys", owner=owner)
        for cashier in registry.all(Cashier):
            assert isinstance(cashier, Cashier)
            found["cashier"] = node.vault.unseal(cashier.seed, staff_aad(cashier))
        for card in registry.all(Card):
            assert isinstance(card, Card)
            found["card"] = node.vault.unseal(card.seed, card.id.encode())
        for purpose in RETAINED:
            found[purpose] = MacKey("hmac-sha256", master.subkey(purpose)).mac(b"x")
        found["voucher"] = node.desk.voucher_key("card-000001", "12345678")
    return found


def test_everything_is_sealed_under_the_new_key_and_nothing_else_has_changed(
    config: Config,
) -> None:
    before = secrets(config)
    assert len(before) == 5 + 2 * 3 + 3 + 1 + len(RETAINED) - 1 + 1
    path = config.file(config.node.master_key_file)
    old_text = path.read_text()
    answer = rotation.rotate(config)
    assert path.read_text() != old_text
    assert Path(answer["kept"]).read_text() == old_text
    assert not rotation.new_key_path(config).exists()
    assert path.stat().st_mode & 0o777 == 0o600
    assert secrets(config) == before

    old = MasterKey.load(Path(answer["kept"]), {})
    for node in opened(config):
        assert node.master.check_value == answer["to"] != answer["from"] == old.check_value
        network = node.registry.network("0012")
        assert network is not None
        with pytest.raises(UnsealError):
            old.open(network.keys[0].sealed, purpose="peer-keys", owner="network:0012:1")
        fresh = MasterKey.load(path, {})
        for purpose in PURPOSES:
            kept = purpose in RETAINED
            assert (node.master.subkey(purpose) != fresh.subkey(purpose)) is kept


def test_a_second_rotation_keeps_them_too(config: Config) -> None:
    before = secrets(config)
    first = rotation.rotate(config)
    second = rotation.rotate(config)
    assert first["to"] == second["from"]
    assert first["kept"] != second["kept"]
    assert secrets(config) == before


class Stop(Exception):
    pass


@pytest.mark.parametrize("commits", range(1, 6))
def test_a_stop_anywhere_is_mended_by_the_same_command(
    config: Config, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    """Stopped before, between and after the groups; a node refuses to start in between."""
    before = secrets(config)
    monkeypatch.setattr(rotation, "COMMIT_EVERY", 3)
    left = commits

    original = rotation.Store.commit

    def commit(store: Any) -> None:
        nonlocal left
        original(store)
        left -= 1
        if left == 0:
            raise Stop

    monkeypatch.setattr(rotation.Store, "commit", commit)
    try:
        rotation.rotate(config)
    except Stop:
        monkeypatch.setattr(rotation.Store, "commit", original)
        with pytest.raises(StateError):
            secrets(config)
        rotation.rotate(config)
    assert secrets(config) == before


def test_a_stop_between_the_data_and_the_files_is_mended(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = secrets(config)

    def stop(*_: object) -> Path:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "_take_place", stop)
        with pytest.raises(Stop):
            rotation.rotate(config)
    with pytest.raises(StateError, match="is not the one of"):
        secrets(config)
    rotation.rotate(config)
    assert secrets(config) == before


def test_a_missing_new_key_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(rotation._Rotation, "_retain", stop)
        with pytest.raises(Stop):
            rotation.rotate(config)
    new_key = rotation.new_key_path(config)
    aside = new_key.rename(new_key.with_suffix(".aside"))
    with pytest.raises(MasterKeyError, match="is missing"):
        rotation.rotate(config)
    shutil.copy(aside, new_key)
    new_key.chmod(0o600)
    rotation.rotate(config)


def test_the_key_of_another_directory_is_refused(config: Config) -> None:
    path = config.file(config.node.master_key_file)
    path.unlink()
    MasterKey.create(path)
    with pytest.raises(StateError, match="neither the present one"):
        rotation.rotate(config)


def test_the_command_with_a_key_from_the_environment(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config.file(config.node.master_key_file)
    monkeypatch.setenv("TRONCAL_MASTER_KEY", path.read_text().strip())
    path.unlink()
    result = CliRunner().invoke(root, ["-c", str(config.path), "key", "rotate-master"])
    assert result.exit_code == 0, result.output
    new_key = rotation.new_key_path(config)
    assert str(new_key) in result.stderr
    with pytest.raises(StateError):
        secrets(config)
    monkeypatch.setenv("TRONCAL_MASTER_KEY", new_key.read_text().strip())
    assert secrets(config)
