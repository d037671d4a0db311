"""What a changed file changes under traffic, what it may not, and that it is all or nothing."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from switch import config as configuration
from switch import reload
from switch.config import Config, ConfigError, LinkSettings, Settings
from switch.toml_reader import plain, without_none

HOSTS = {"ceibo": "127.0.0.1:1", "bank1": "127.0.0.1:2"}
BEFORE = """\
[node]                                                      # 1
log_level = "info"
[fees]
cash_out = 100
[links.ceibo]                                               # 5
connect = ["127.0.0.1:1"]
max_in_flight = 10
[links.bank1]
[[routes]]                                                  # 9
to = "bank1"
operations = ["purchase"]
[limits]
day = { scope = "card", window = "day", max = "10 PYG" }    # 13
"""

Reload = Callable[..., tuple[Config, reload.Plan]]


@pytest.fixture
def again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reload:
    """Load BEFORE, write another text in its place, and check it."""
    for name in ("TRONCAL_CONFIG", "TRONCAL_NODE_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "troncal.toml"
    path.write_text(BEFORE)
    present = configuration.load(path, options={"listen.ops": "127.0.0.1:0"})

    def run(
        text: str = BEFORE, hosts: dict[str, str] = HOSTS, running: tuple[str, ...] = ("ceibo",)
    ) -> tuple[Config, reload.Plan]:
        path.write_text(text)
        return reload.check(present, hosts, running)

    return run


def test_the_same_file_changes_nothing(again: Reload) -> None:
    new, plan = again()
    assert plan.changes == plan.restart == []
    assert new.address("ops").port == 0, "the command line goes before the file again"


@pytest.mark.parametrize(
    ("old", "new", "key", "values"),
    [
        ("cash_out = 100", "cash_out = 250", "fees.cash_out", (100, 250)),
        ('"info"', '"debug"', "node.log_level", ("info", "debug")),
        ("[fees]", "[budgets]\nred_s = 24\n[fees]", "budgets.red_s", (25, 24)),
        ("max_in_flight = 10", "max_in_flight = 20", "links.ceibo.max_in_flight", (10, 20)),
        (
            "in_flight = 10",
            "in_flight = 10\nbackoff_max_s = 1",
            "links.ceibo.backoff_max_s",
            (30, 1),
        ),
        ("[links.bank1]\n", "", "links.bank1", None),
        ("[fees]", "[links.bank2]\n[fees]", "links.bank2", None),
        ('"10 PYG"', '"20 PYG"', "limits.day", None),
        ('["purchase"]', '["debit"]', "routes", None),
        ("[fees]", '[red]\ncompany = "X"\n[fees]', "red.company", ("RED DEMO S.A.", "X")),
    ],
)
def test_one_change_under_traffic(
    again: Reload, old: str, new: str, key: str, values: tuple[object, object] | None
) -> None:
    assert old in BEFORE
    _, plan = again(BEFORE.replace(old, new), HOSTS | {"bank2": ""})
    (change,) = plan.changes
    assert change.key == key
    assert values is None or (change.old, change.new) == values
    assert plan.restart == []


def test_links_that_come_go_and_change(again: Reload) -> None:
    text = BEFORE.replace("[links.bank1]", "[links.bank2]").replace("flight = 10", "flight = 9")
    _, plan = again(text, HOSTS | {"bank2": ""})
    assert (plan.links_added, plan.links_removed, plan.links_changed) == (
        ["bank2"],
        ["bank1"],
        ["ceibo"],
    )


def test_what_does_not_run_may_change_in_any_way(again: Reload) -> None:
    text = BEFORE.replace("[links.bank1]", '[links.bank1]\nmatch = ["37"]\nconnections = 9')
    _, plan = again(text)
    assert [c.key for c in plan.changes] == ["links.bank1.connections", "links.bank1.match"]
    assert plan.restart == []


def test_a_section_that_comes_or_goes_changes_a_link_that_runs(again: Reload) -> None:
    section = BEFORE[BEFORE.index("[links.ceibo]") : BEFORE.index("[[routes]]")]
    text = BEFORE.replace(section, "[links.bank2]\nqueue_max = 5\n")
    hosts = HOSTS | {"bank2": ""}
    _, plan = again(text, hosts, ("bank1", "bank2"))
    assert [c.key for c in plan.changes] == ["links.ceibo", "links.bank2.queue_max"]
    assert plan.links_changed == ["bank2"]
    with pytest.raises(ConfigError) as caught:
        again(text, hosts, ("ceibo",))
    assert [m.where for m in caught.value.mistakes] == ["links.ceibo.connect"]


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ("[fees]", '[listen]\nterminals = "127.0.0.1:7009"\n[fees]', 4, "listen.terminals"),
        ("[fees]", "[ledger]\nkeys_max = 1000\n[fees]", 4, "ledger.keys_max"),
        ("[fees]", '[business]\ncut_off = "20:00"\n[fees]', 4, "business.cut_off"),
        ("[fees]", "[tokens]\nback = 1\n[fees]", 4, "tokens.back"),
        ("[fees]", '[node]\nroles = ["red"]\n[fees]', 0, ""),
        ('["127.0.0.1:1"]', '["127.0.0.1:9"]', 6, "links.ceibo.connect"),
        ("in_flight = 10", 'in_flight = 10\nmatch = ["37"]', 8, "links.ceibo.match"),
        ("[links.bank1]\n", '[links.bank3]\nmatch = ["37"]\n', 9, "links.bank3.match"),
    ],
)
def test_a_change_that_needs_a_restart_is_refused_with_its_line(
    again: Reload, old: str, new: str, line: int, key: str
) -> None:
    # Beside it stands a good change: it is not applied either.
    text = BEFORE.replace(old, new).replace("cash_out = 100", "cash_out = 1")
    with pytest.raises(ConfigError) as caught:
        again(text, HOSTS | {"bank3": ""}, ("ceibo", "bank3"))
    if key:
        (mistake,) = caught.value.mistakes
        assert (mistake.line, mistake.where) == (line, key)
        assert "restart" in mistake.hint


def test_mistakes_are_told_all_at_once(again: Reload) -> None:
    with pytest.raises(ConfigError) as caught:
        again(BEFORE.replace("100", "-1").replace('"info"', '"all"'))
    assert [m.line for m in caught.value.mistakes] == [2, 4]


def test_a_link_without_its_host_is_refused(again: Reload) -> None:
    with pytest.raises(ConfigError) as caught:
        again(BEFORE, {"ceibo": ""})
    assert [(m.line, m.where) for m in caught.value.mistakes] == [
        (8, "links.bank1"),
        (10, "routes[0].to"),
    ]


def test_the_file_must_be_there(again: Reload, tmp_path: Path) -> None:
    present = configuration.load(tmp_path / "troncal.toml")
    (tmp_path / "troncal.toml").unlink()
    with pytest.raises(ConfigError):
        reload.check(present, HOSTS)


def test_every_key_named_exists() -> None:
    """A renamed key must not silently become one that needs a restart."""
    fields = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    assert set(fields) >= reload.LIVE_SECTIONS
    for key in reload.LIVE:
        section, name = key.split(".")
        kind = without_none(plain(fields[section]).base)
        assert name in kind.__struct_fields__, key
    assert set(LinkSettings.__struct_fields__) >= reload.LIVE_OF_LINK
