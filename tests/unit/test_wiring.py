"""What operators are told to watch is really shown, and tells the truth."""

import re
from pathlib import Path

import pytest

from switch.net.pump import Pump
from switch.ops.metrics import LoopClock, Metrics
from switch.ops.wiring import add_link_metrics, add_node_metrics
from switch.remotes import Remotes
from tests.house import House

ROOT = Path(__file__).parents[2]


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The metrics of a node with one approved and one declined cash_out."""
    house = House(tmp_path)
    house.cash_out(50_000)
    house.cash_out(50_000, token="000000")
    metrics = Metrics()
    metrics.add_process()
    metrics.add_loop(LoopClock())
    add_node_metrics(metrics, house.node, {})
    add_link_metrics(metrics, Remotes(house.node, Pump(house.node)), {})
    shown = metrics.exposition().decode()
    house.close()
    return shown


def test_alert_rules_and_handbook_name_metrics_that_exist(text: str) -> None:
    known = set(re.findall(r"^# TYPE (troncal_\w+)", text, re.M))
    known |= {f"{name}_bucket" for name in known}
    rules = (ROOT / "deploy/alerts.yml").read_text()
    named = set(re.findall(r"\btroncal_\w+", rules))
    handbook = (ROOT / "docs/operations.md").read_text()
    for row in re.findall(r"^\| ((?:`\w+(?:\{\w+\})?`(?:, )?)+) \|", handbook, re.M):
        named |= {f"troncal_{name}" for name in re.findall(r"`(\w+?)(?:\{\w+\})?`", row)}
    missing = {
        name
        for name in named
        if name not in known
        and name.removesuffix("_total") not in known
        and f"{name}_seconds" not in known
        and name.removeprefix("troncal_") not in handbook_alarms()
    }
    assert not missing


def handbook_alarms() -> set[str]:
    """Names of alarms, which stand in a table of the same form."""
    after = (ROOT / "docs/operations.md").read_text().partition("| alarm |")[2]
    return set(re.findall(r"`(\w+)`", after.partition("\n\n")[0]))


def test_figures_of_a_node(text: str) -> None:
    assert 'troncal_answers_total{code="00"} 1.0' in text
    assert 'troncal_answers_total{code="55"} 1.0' in text
    assert 'troncal_ledger_imbalance{ledger="posted"} 0.0' in text
    assert 'troncal_operations_open{role="ceibo"} 0.0' in text
    assert "troncal_metrics_failures_total 0.0" in text
    assert "troncal_answer_seconds_count 2.0" in text
