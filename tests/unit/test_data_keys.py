"""Erasable keys: durable before use, gone when erased, alone in their file."""

import stat
from pathlib import Path

from switch.ops.data_keys import SLOT_BYTES, DataKeys

NODE_KEY = bytes(range(32))
PAN = b"4051885600446623"


def test_seal_open_erase(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys = DataKeys(path, NODE_KEY)
    sealed = keys.seal("p1", PAN)
    assert PAN not in sealed
    assert keys.open("p1", sealed) == PAN
    assert keys.open("p2", sealed) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys.close()
    keys = DataKeys(path, NODE_KEY)
    assert keys.open("p1", sealed) == PAN
    keys.erase("p1")
    keys.erase("p1")
    assert keys.open("p1", sealed) is None
    assert path.read_bytes() == bytes(SLOT_BYTES)
    keys.close()


def test_slots_are_used_again(tmp_path: Path) -> None:
    keys = DataKeys(tmp_path / "keys", NODE_KEY)
    for round_ in range(3):
        for number in range(4):
            keys.seal(f"{round_}-{number}", PAN)
        assert len(keys) == 4
        assert keys.keep_only({f"{round_}-0"}) == 3
        keys.erase(f"{round_}-0")
    assert (tmp_path / "keys").stat().st_size == 4 * SLOT_BYTES
    keys.close()


def test_another_node_opens_nothing(tmp_path: Path) -> None:
    keys = DataKeys(tmp_path / "keys", NODE_KEY)
    sealed = keys.seal("p1", PAN)
    keys.close()
    other = DataKeys(tmp_path / "keys", bytes(32))
    assert other.open("p1", sealed) is None
    assert other.open("p1", sealed[:-1]) is None
    assert other.open("p1", b"") is None
    other.close()
