"""Storage that is not there, or less of it than there was: no node begins on it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from core_ext._journal import segment_path
from switch.cli import root, setup
from switch.config import load
from switch.journal import queries
from switch.journal.store import StateError, Store

SMALL = {
    "journal_segment_bytes": 1 << 20,
    "journal_group_bytes_max": 1 << 16,
    "journal_reserve_bytes": 1 << 16,
}

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    setup.make(directory, **SMALL)
    return directory


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    """A node's directory after three changes, each in a group of its own."""
    directory = tmp_path / "node"
    shutil.copytree(template, directory)
    for number in ("0012", "0013", "0014"):
        assert run(directory, "network", "add", number).exit_code == 0
    return directory


def run(directory: Path, *arguments: object) -> Result:
    command = ["-c", str(directory / "troncal.toml"), *map(str, arguments)]
    return CliRunner().invoke(root, command, prog_name="troncal")


def first_segment(directory: Path) -> Path:
    return Path(segment_path(str(directory / "data" / "journal"), 1))


@pytest.mark.parametrize("command", ["serve", "verify", "snapshot", "card"])
@pytest.mark.parametrize("gone", ["data", "data/journal"])
def test_missing_storage_is_told_and_not_made(place: Path, command: str, gone: str) -> None:
    shutil.rmtree(place / gone)
    words = ("card", "list") if command == "card" else (command,)
    result = run(place, *words)
    assert result.exit_code == 1
    assert "there is no journal in" in result.output
    assert not (place / gone).exists()


def test_a_node_does_not_begin_without_its_segments(place: Path) -> None:
    for segment in (place / "data" / "journal").iterdir():
        segment.unlink()
    result = run(place, "serve")
    assert result.exit_code == 1
    assert "holds nothing" in result.output
    assert "segments are missing" in result.output


@pytest.mark.parametrize("loss", ["missing", "short"])
def test_less_than_was_durable_is_refused(place: Path, loss: str) -> None:
    """What the read model has seen was acknowledged: a journal that ends before it is no torn
    one."""
    assert run(place, "operations").exit_code == 0  # brings the read model up to the end
    seen = queries.seen_seq(place / "data")
    assert seen > 0
    if loss == "missing":
        first_segment(place).unlink()
    else:
        os.truncate(first_segment(place), 5000)
    for command in (("verify",), ("card", "list"), ("network", "add", "0015")):
        result = run(place, *command)
        assert result.exit_code == 1, command
        assert f"but record {seen} was durable" in result.output
    config = load(place / "troncal.toml", environ={})
    store = Store(config, config.data)
    with pytest.raises(StateError, match="segments are missing") as refused:
        store.open()
    assert "restore" in refused.value.hint
    assert not [p for p in (place / "data" / "journal").iterdir() if p.stat().st_size > 1 << 20]


def test_who_gives_up_what_is_lost_goes_on(place: Path) -> None:
    run(place, "operations")
    os.truncate(first_segment(place), 5000)
    for file in (place / "data").glob(f"{queries.FILE_NAME}*"):
        file.unlink()
    assert run(place, "network", "list").exit_code == 0


def test_the_newest_group_need_not_have_been_durable(place: Path) -> None:
    """A follower may read a group that is being written, and power may fail then: that end is
    torn, and cut as any other."""
    run(place, "operations")
    data = place / "data"
    journal = first_segment(place)
    content = bytearray(journal.read_bytes())
    used = len(bytes(content).rstrip(b"\0"))
    begins = content.rfind(b"TRNCJRN1", 0, used)
    content[begins:used] = bytes(used - begins)
    journal.write_bytes(content)
    report = run(place, "verify", "--json")
    assert report.exit_code == 0, report.output
    assert run(place, "network", "list", "--json").output.count("0014") == 0
    assert queries.seen_seq(data) > 0


def test_a_read_model_that_is_damaged_proves_nothing(place: Path) -> None:
    run(place, "operations")
    for file in (place / "data").glob(f"{queries.FILE_NAME}*"):
        file.unlink()
    (place / "data" / queries.FILE_NAME).write_bytes(b"garbage" * 1000)
    assert queries.seen_seq(place / "data") == 0
    assert run(place, "network", "list").exit_code == 0


def test_another_master_key_is_told_as_such(place: Path) -> None:
    (place / "master.key").write_text("5a" * 32)
    result = run(place, "card", "list")
    assert result.exit_code == 1
    assert "the master key is not the one of" in result.output
    assert "put the right key there" in result.output
