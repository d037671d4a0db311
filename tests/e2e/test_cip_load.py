"""Cases F03 and Q01 by the measurement itself, and the command line.

Times are those of machines: what a person takes to type does not count.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.load.cip import BUDGET_S, run
from switch.cli.cip_world import APP

pytestmark = pytest.mark.timeout(300)
TORTURE = os.environ.get("TRONCAL_TORTURE") == "1"
MODES = [("full",), *([("partial",), ("gateway",)] if TORTURE else [])]


@pytest.mark.alone
@pytest.mark.parametrize("modes", MODES, ids=lambda modes: modes[0])
def test_f03_the_budget_is_met_while_many_customers_pay(
    tmp_path: Path, modes: tuple[str, ...]
) -> None:
    # With the usual second for a password a busy machine would answer 503, and people try again.
    figures = run(
        customers=100, spread_s=5.0, modes=modes, directory=tmp_path, say=print,
        settings={"cip.auth_rate_per_minute": 100_000, "cip.budget_auth_s": 5.0},
    )  # fmt: skip
    mode = figures["modes"][modes[0]]
    print(json.dumps(figures))
    assert (mode["payments"], mode["gave_up"]) == (100, 0)
    assert mode["customer_s"]["p99"] <= BUDGET_S[modes[0]]
    assert mode["over_budget"] == 0


@pytest.mark.alone
def test_q01_view_and_csv_show_a_payment_within_a_second(tmp_path: Path) -> None:
    """From the writing of the codes, with real processes, whatever the follower is doing."""
    figures = run(
        customers=20, spread_s=4.0, modes=("gateway",), directory=tmp_path, say=print,
        settings={"cip.budget_auth_s": 5.0},
    )  # fmt: skip
    seen = figures["seen_ms"]
    print(json.dumps(seen))
    assert seen["missing"] == 0
    assert seen["view"]["max"] <= 1000
    assert seen["csv"]["max"] <= 1000


def test_the_command_line_makes_applications_users_and_keys(tmp_path: Path) -> None:
    def troncal(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "switch", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout

    where = str(tmp_path / "n")
    troncal("init", where)
    config = ("-c", f"{where}/troncal.toml")
    made = json.loads(troncal("cip", "app", "add", APP, "--name", "Tax", "--json", *config))
    assert made == {"application": APP, "app_no": 1}
    other = troncal(
        "cip", "app", "add", "OTHER", "--name", "O", "--modes", "gateway", "--source", "ledger",
        "--json", *config,
    )  # fmt: skip
    assert json.loads(other) == {"application": "OTHER", "app_no": 2}
    troncal("cip", "app", "add", APP, "--name", "Tax", *config, code=1)
    user = json.loads(
        troncal("cip", "user", "add", APP, "portal", "--kind", "machine", "--generate", "--json",
                *config)
    )  # fmt: skip
    assert sorted(user) == ["application", "password", "user"]
    assert len(user["password"]) >= 12
    troncal("cip", "user", "add", APP, "portal", "--kind", "machine", "--generate", *config, code=1)
    key = json.loads(troncal("cip", "key", "add", APP, "--json", *config))
    assert (key["key_id"], len(key["key"])) == ("k1", 64)
    rotated = json.loads(troncal("cip", "key", "rotate", APP, "--json", *config))
    assert rotated["key_id"] == "k2"
    listed = json.loads(troncal("cip", "key", "list", APP, "--json", *config))
    assert [row["valid"] for row in listed] == [True, True]
    assert key["key"] not in json.dumps(listed)
    run = json.loads(troncal("cip", "report", "run", APP, "--json", *config))
    assert (run["state"], run["lines"]) == ("BUILT", 0)
    again = json.loads(troncal("cip", "report", "send", APP, "--json", *config))
    assert (again["repeats"], again["sequence"]) == (run["run"], 2)
    troncal("cip", "user", "email", APP, "portal", "portal@sof.example", *config)
    troncal("cip", "user", "email", APP, "portal", "a@b.c,d@e.f", *config, code=1)
    troncal("project", *config)
    assert json.loads(troncal("cip", "payments", "--json", *config)) == []
    assert json.loads(troncal("cip", "report", "year", APP, "2026", "--json", *config)) == []
    troncal("cip", "report", "year", "NOBODY", "2026", *config, code=1)
