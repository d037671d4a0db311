"""`links`, `routes`, `saf`, `key`, and what check-config finds with the registry at hand."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from core_ext import Counters
from switch.cli import links, root, setup
from switch.flows import operations as ops
from switch.flows.operations import SicoopOperation
from switch.net import link as net_link
from switch.net import platform
from switch.node import Node
from switch.ops.keys import MasterKey
from tests.house import ManualClock

SMALL = {
    "journal_segment_bytes": 1 << 20,
    "journal_group_bytes_max": 1 << 16,
    "journal_reserve_bytes": 1 << 16,
}
ROUTES = """
[[routes]]
to = "bank1"
operations = ["purchase"]
bins = ["4507"]

[[routes]]
to = ["ceibo", "bank1"]
amount_min = 1000
from = "22:00"
until = "06:00"
"""

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    setup.make(directory, **SMALL)
    return directory


@pytest.fixture
def path(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("TRONCAL_")]:
        monkeypatch.delenv(name)
    shutil.copytree(template, tmp_path / "n")
    return tmp_path / "n" / "troncal.toml"


@pytest.fixture
def cli(path: Path) -> Cli:
    def run(*arguments: object) -> Result:
        command = ["-c", str(path), *map(str, arguments)]
        return CliRunner().invoke(root, command, prog_name="troncal")

    return run


def answer_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# ---- links


def host_link() -> dict[str, Any]:
    """A snapshot as the switch makes it: its counters are the real ones."""
    return {
        "link": "ceibo",
        "state": "UP",
        "in_flight": 3,
        "queue": 0,
        "latency_ms": {"count": 1, "p50": 1.25, "p99": 7.5, "max": 8.0},
        "connections": [{"connection": 1, "address": "127.0.0.1:7003", "state": "UP"}],
        "counters": Counters(net_link.COUNTERS).as_dict() | {"late": 4},
        "saf": {"depth": 17, "oldest_s": 61.7, "stuck": 2},
    }


def platform_link() -> dict[str, Any]:
    return host_link() | {
        "link": "platform-0012",
        "state": "DOWN",
        "counters": Counters(platform.COUNTERS).as_dict(),
        "saf": {},
    }


def test_both_kinds_of_links_are_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = [host_link(), platform_link()]
    monkeypatch.setattr(links, "ask_node", lambda config, command: snapshots)
    text = cli("links").stdout
    for shown in ("ceibo", "platform-0012", "1.2", "7.5", "17", "62", "127.0.0.1:7003"):
        assert shown in text
    assert answer_of(cli("links", "--json")) == snapshots


def test_strays_of_both_kinds_are_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    strays = [
        {
            "kind": "unmatched", "at_ns": 1, "connection": 1, "mti": "0110", "code": "00",
            "answer": {"class": "1", "11": "000007", "41": "00000017"},
            "nearest": {"class": "1", "11": "000008", "41": "00000017"}, "differs": ["11"],
            "nearest_after_s": 0.25,
        },
        {
            "at": "2026-11-22T15:00:00.000Z", "what": "late", "answer": "network_answer", "id": 7,
            "reference": "00120000001720261122000001", "differs": "",
        },
    ]  # fmt: skip
    monkeypatch.setattr(links, "ask_node", lambda config, command, name: strays)
    text = cli("links", "explain", "ceibo").stdout
    for shown in ("unmatched", "11 000007", "11 000008", "0.250", "late", "00120000001720261122"):
        assert shown in text


def test_strays_of_all_links(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(config: object, command: str, name: str = "") -> list[dict[str, Any]]:
        if command == "links":
            return [{"link": "ceibo"}, {"link": "bank1"}]
        return [{"kind": "late", "at_ns": 1, "answer": {"11": "000007"}, "code": name}]

    monkeypatch.setattr(links, "ask_node", ask)
    told = answer_of(cli("links", "explain", "--json"))
    assert [(stray["link"], stray["code"]) for stray in told] == [
        ("ceibo", "ceibo"), ("bank1", "bank1"),
    ]  # fmt: skip


@pytest.mark.parametrize("command", [("links",), ("links", "explain", "x"), ("reload",)])
def test_only_a_running_node_knows(cli: Cli, command: tuple[str, ...]) -> None:
    result = cli(*command)
    assert result.exit_code == 1
    assert "no node runs on" in result.stderr
    assert "troncal serve" in result.stderr


# ---- routes


def test_routes_are_shown_and_tried(cli: Cli, path: Path) -> None:
    path.write_text(path.read_text() + ROUTES)
    rows = answer_of(cli("routes", "--json"))
    assert [row["when"] for row in rows] == [
        "operations purchase, bins 4507",
        "amount_min 1000, from 22:00, until 06:00",
        "no rule ([issuer])",
    ]
    asked = ("routes", "test", "--operation", "cash_out", "--at", "2026-11-20T23:00", "--json")
    found = answer_of(cli(*asked, "--amount", 1000))
    assert (found["to"], found["rule"]) == (["ceibo", "bank1"], 2)
    assert found["tried"][0]["not met"] == ["operations", "bins"]
    found = answer_of(cli(*asked, "--amount", 999))
    assert (found["to"], found["rule"]) == (["ceibo"], None)
    assert found["tried"][1]["not met"] == ["amount_min"]
    by_card = ("routes", "test", "--operation", "purchase", "--bin", "45070011")
    assert "purchase goes to bank1 (rule 1)" in cli(*by_card).stdout


@pytest.mark.parametrize(
    "arguments", [("--bin", "4507"), ("--at", "now"), ("--amount", "-1"), ("--operation", "x")]
)
def test_wrong_usage(cli: Cli, arguments: tuple[str, str]) -> None:
    assert cli("routes", "test", "--operation", "debit", *arguments).exit_code == 2


def test_check_config_knows_the_hosts(cli: Cli, path: Path) -> None:
    line = path.read_text().count("\n") + 3
    path.write_text(path.read_text() + ROUTES)
    before = {p: p.stat().st_mtime_ns for p in (path.parent / "data").rglob("*")}
    result = cli("check-config")
    assert {p: p.stat().st_mtime_ns for p in (path.parent / "data").rglob("*")} == before
    assert result.exit_code == 1
    assert f"troncal.toml:{line}: routes[0].to: there is no host bank1" in result.stderr
    assert "troncal host add bank1" in result.stderr
    cli("host", "add", "bank1", "--dialect", "bank", "--connect", "127.0.0.1:1")
    cli("host", "add", "ceibo", "--dialect", "ceibo", "--connect", "10.0.0.1:1")
    result = cli("check-config")
    assert "host ceibo: 10.0.0.1 is outside loopback" in result.stderr
    cli("host", "change", "ceibo", "--connect", "127.0.0.1:1")
    assert cli("check-config").exit_code == 0


def test_an_unknown_dialect_is_refused(cli: Cli, path: Path) -> None:
    result = cli("host", "add", "b", "--dialect", "nosuch")
    assert result.exit_code == 1
    assert "dialect nosuch" in result.stderr
    (path.parent / "own.toml").write_text('extend = "bank"\nname = "own"\n')
    assert cli("host", "add", "b", "--dialect", "own.toml").exit_code == 0


# ---- debts and keys


def test_what_is_owed_is_listed(cli: Cli, path: Path) -> None:
    config = setup.load(path)
    master = MasterKey.load(config.file(config.node.master_key_file), {})
    node = Node(config, master, ManualClock(), config.data)
    node.open()
    step = node.begin()
    operation = SicoopOperation(
        reference="00120000001720261122000001", network="0012", operation="263260000001",
        kind="cash_out", amount=1000, currency="PYG", terminal="00000017", branch="000017",
        cashier="000045", fingerprint=1, received_ns=1, business_date="2026-11-22", day=20_779,
        state="REVERSANDO", owed="release", reason="timeout", issuer="ceibo",
    )  # fmt: skip
    key = operation.reference.encode()
    node.store.records.put(ops.SICOOP_OPERATIONS, key, ops.encode(operation))
    node.end(step)
    node.store.commit()
    node.close()
    (row,) = answer_of(cli("saf", "list", "--json"))
    assert (row["role"], row["owed"], row["issuer"]) == ("sicoop", "release", "ceibo")
    assert "263260000001" in cli("saf", "list").stdout


def test_the_check_value(cli: Cli, path: Path) -> None:
    config = setup.load(path)
    master = MasterKey.load(config.file(config.node.master_key_file), {})
    assert answer_of(cli("key", "check", "--json")) == {"check": master.check_value}
