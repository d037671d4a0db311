"""The command line with real processes and real sockets: serve, and everything beside it."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from switch.cli import root, setup

ROOT = Path(__file__).resolve().parents[2]
LISTENERS = ("terminals", "sicoop", "ceibo", "http", "ops")
SMALL = {
    "journal_segment_bytes": 4 << 20,
    "journal_group_bytes_max": 1 << 20,
    "journal_digest_every_groups": 8,
} | {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS}
READY_S = 120.0

Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TRONCAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A node's directory as `init` makes it, with small segments and free ports."""
    setup.make(tmp_path / "node", **SMALL)
    return tmp_path / "node"


@pytest.fixture
def cli(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The program in this process, which is quicker; the node is always another one."""
    monkeypatch.setenv("TRONCAL_CONFIG", str(directory / "troncal.toml"))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(root, [str(a) for a in arguments], prog_name="troncal")

    return run


def answer_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class Serving:
    """A `troncal serve` in a process of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.log = directory / "serve.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "switch", "serve", "-c", directory / "troncal.toml",
                 *arguments],
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.ready: dict[str, list[Any]] = {}

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_S)
        line = self.process.stdout.readline() if readable else b""
        assert line.startswith(b"ready "), self.log.read_text()
        self.ready = json.loads(line[6:])

    def address(self, name: str) -> str:
        host, port = self.ready[name]
        return f"{host}:{port}"

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, bytes]:
        """Send a signal; returns the exit code and what else was said on stdout."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        return self.process.wait(120), rest

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(120)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(directory: Path, *arguments: str) -> Iterator[Serving]:
    node = Serving(directory, *arguments)
    try:
        node.wait_ready()
        yield node
    finally:
        node.end()


@pytest.fixture
def node(directory: Path) -> Iterator[Serving]:
    with serving(directory) as node:
        yield node


class Shop:
    """A network, a terminal and a card, provisioned over the command line."""

    def __init__(self, cli: Cli, tmp_path: Path) -> None:
        self.cli = cli
        answer_of(cli("network", "add", "0012", "--net-debit-cap", 10**9, "--json"))
        made = cli("terminal", "add", "00000017", "--network", "0012", "--branch", 17, "--json")
        self.file = tmp_path / "terminal.json"
        self.file.write_text(made.stdout)
        card = answer_of(
            cli(
                "card", "add", "--document", "4567890", "--name", "Ana Ruiz", "--balance",
                1_000_000, "--json",
            )
        )  # fmt: skip
        self.card: str = card["card"]
        self.seed: str = card["seed"]

    def code(self) -> str:
        return self.cli("card", "code", "--seed", self.seed).stdout.strip()

    def send(self, node: Serving, request: str, *arguments: object) -> Any:
        return answer_of(
            self.cli(
                "send", request, "--terminal", self.file, "--address", node.address("terminals"),
                "--json", *arguments,
            )
        )  # fmt: skip

    def cash_out(self, node: Serving, trace: int, amount: int = 150_000, code: str = "") -> Any:
        return self.send(
            node, "cash_out", "--cashier", 45, "--document", "4567890", "--token",
            code or self.code(), "--amount", amount, "--trace", trace,
        )  # fmt: skip


def test_a_day_at_the_till(cli: Cli, node: Serving, tmp_path: Path) -> None:
    """Provisioned on a running node, every kind of request, and what the tools say afterwards."""
    shop = Shop(cli, tmp_path)
    paid = shop.cash_out(node, 1)
    assert (paid["code"], paid["instruction"], paid["state"]) == ("00", "ENTREGUE", "REGISTRADA")
    assert paid["ticket"]
    assert shop.send(node, "delivered", "--original", 1)["state"] == "ENTREGADA"
    asked = shop.send(node, "last_operation")
    assert (asked["original"], asked["instruction"]) == (1, "NO_ENTREGUE")
    found = cli("send", "last_operation", "--terminal", shop.file, "--json")
    assert answer_of(found) == asked, "the node tells its address, whatever port it has"
    used = shop.cash_out(node, 2)
    assert (used["code"], used["key"], used["instruction"]) == ("55", "CODIGO_USADO", "NO_ENTREGUE")
    holder = shop.send(node, "holder", "--document", "4567890")
    assert holder["code"] == "00"
    assert "Ruiz" not in holder["name"]
    paid_in = shop.send(
        node, "deposit", "--cashier", 45, "--document", "4567890", "--amount", 80_000,
        "--card", holder["cards"][0]["card"], "--trace", 3,
    )  # fmt: skip
    assert (paid_in["code"], paid_in["instruction"]) == ("00", "RECIBA")
    annulled = shop.send(
        node, "annul", "--cashier", 45, "--original", 3, "--supervisor", 7,
        "--business-date", paid_in["business_date"],
    )  # fmt: skip
    assert (annulled["code"], annulled["state"]) == ("00", "ANULADA")
    assert answer_of(cli("card", "show", shop.card, "--json"))["available"] == 850_000
    _look_at_it_live(cli, paid, annulled, tmp_path)
    assert node.stop() == (0, b"")
    assert answer_of(cli("verify", "--json"))["operations"] == {
        "ANULADA": 1, "ENTREGADA": 1, "RECHAZO_REGISTRADO": 1,
    }  # fmt: skip
    assert len(answer_of(cli("operations", "--json"))) == 4


def _look_at_it_live(
    cli: Cli, paid: dict[str, Any], annulled: dict[str, Any], tmp_path: Path
) -> None:  # fmt: skip
    """The tools beside the running node."""
    report = answer_of(cli("verify", "--json"))
    assert (report["ok"], report["registered_amount"]["cash_out"]) == (True, 150_000)
    found = answer_of(cli("operation", paid["operation"], "--json"))
    assert found["state"] == "ENTREGADA"
    assert {entry["role"] for entry in found["timeline"]} == {"red", "sicoop", "ceibo"}
    control = paid["ticket"][-1].split()[1]
    assert found["control"] == control
    same = cli("operation", paid["operation"], "--control", f" {control.lower()} ")
    assert (same.exit_code, control in same.stdout) == (0, True)
    other = cli("operation", paid["operation"], "--control", f"{int(control, 16) ^ 1:08X}")
    assert (other.exit_code, other.stdout) == (1, "")
    assert "is not that of operation" in other.stderr
    # An annulment has a ticket and a control of its own.
    control = annulled["ticket"][-1].split()[1]
    whole = answer_of(cli("operation", annulled["operation"], "--json"))
    (undo,) = whole["annulments"]
    assert answer_of(cli("operation", undo["reference"], "--json"))["control"] == control
    assert control != whole["control"] != ""
    assert answer_of(cli("snapshot", "--json"))["bytes"] > 0
    copy = answer_of(cli("backup", tmp_path / "copy", "--json"))
    assert copy["last_seq"] >= report["last_seq"]


def test_a_number_that_nothing_holds_is_refused_and_no_more(
    cli: Cli, node: Serving, directory: Path
) -> None:
    """Who may open the admin socket may do everything, but not end the node by a slip."""
    for command, values in (
        ("network_add", {"number": "0012", "net_debit_cap": 10**23}),
        ("card_add", {"document": "4567890", "balance": 10**23}),
        ("card_add", {"document": "4567890", "max_balance": 2**64}),
        ("transfiya_answer", {"bank": "x", "tx_ref": "x", "accept": 10**23}),
    ):
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            line.connect(str(directory / "data" / "admin.sock"))
            line.sendall(json.dumps({"command": command, "values": values}).encode() + b"\n")
            assert "error" in json.loads(line.makefile().readline()), command
    assert node.process.poll() is None
    assert cli("network", "add", "0012").exit_code == 0


def test_for_people(cli: Cli, node: Serving, tmp_path: Path) -> None:
    shop = Shop(cli, tmp_path)
    result = cli(
        "send", "cash-out", "--terminal", shop.file, "--address", node.address("terminals"),
        "--cashier", 45, "--document", "4567890", "--token", shop.code(), "--amount", 150_000,
    )  # fmt: skip
    assert result.exit_code == 0
    assert "  ENTREGUE  " in result.stdout
    assert "Gs. 150.000" in result.stdout
    assert shop.code() not in result.stdout


def test_what_was_answered_survives_kill_9(cli: Cli, directory: Path, tmp_path: Path) -> None:
    with serving(directory) as node:
        shop = Shop(cli, tmp_path)
        paid = shop.cash_out(node, 1)
        node.process.kill()
        node.process.wait(120)
    # Its admin socket is still there, with nobody behind it: the directory is worked on directly.
    assert (directory / "data" / "admin.sock").exists()
    assert answer_of(cli("card", "show", shop.card, "--json"))["available"] == 850_000
    with serving(directory) as node:
        asked = shop.send(node, "last_operation")
        assert asked["operation"] == paid["operation"]
        assert (asked["state"], asked["instruction"]) == ("REGISTRADA", "ENTREGUE")
        assert node.stop() == (0, b"")
    assert answer_of(cli("verify", "--json"))["ok"] is True


def test_a_rotated_key_and_a_disabled_terminal(cli: Cli, node: Serving, tmp_path: Path) -> None:
    shop = Shop(cli, tmp_path)
    shop.file.write_text(cli("terminal", "rotate", "00000017", "--json").stdout)
    assert shop.cash_out(node, 1)["code"] == "00"
    cli("terminal", "disable", "00000017")
    result = cli(
        "send", "last_operation", "--terminal", shop.file, "--address", node.address("terminals")
    )
    assert result.exit_code == 1
    assert "63" in result.stderr


def test_ready_tells_the_addresses(directory: Path) -> None:
    with serving(directory, "--listen", "terminals=127.0.0.1:0", "--roles", "red") as node:
        assert "terminals" in node.ready
        assert "ops" in node.ready
        for host, port in node.ready.values():
            socket.create_connection((host, port), timeout=60).close()
        assert node.stop(signal.SIGINT) == (0, b"")


def test_a_second_signal_exits_at_once(directory: Path) -> None:
    with serving(directory) as node:
        os.kill(node.process.pid, signal.SIGSTOP)
        node.process.send_signal(signal.SIGTERM)
        node.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        os.kill(node.process.pid, signal.SIGCONT)
        # Both are waiting: whichever is seen first drains, the other ends it.
        assert node.process.wait(120) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        assert time.monotonic() - began < 60


def test_one_node_per_directory(directory: Path, node: Serving) -> None:
    other = Serving(directory)
    try:
        assert other.process.wait(120) == 1
        told = other.log.read_text()
        assert "another process" in told
        assert "Traceback" not in told
    finally:
        other.end()


def test_a_port_in_use_is_told(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = Serving(directory, "--listen", f"terminals={address}")
        try:
            assert node.process.wait(120) == 1
            told = node.log.read_text()
            assert f"terminals at {address}" in told
            assert "Traceback" not in told
        finally:
            node.end()


def test_many_provision_at_once(cli: Cli, node: Serving, tmp_path: Path) -> None:
    """Commands on a running node run side by side, and each answer is its own."""
    Shop(cli, tmp_path)
    rows = "\n".join(f"{1_000_000 + n},1000" for n in range(300))
    (tmp_path / "cards.csv").write_text(f"document,balance\n{rows}\n")
    found: list[Any] = []

    def add() -> None:
        command = [sys.executable, "-m", "switch", "card", "add", "--document", "7777777", "--json"]
        found.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))

    beside = threading.Thread(target=add)
    beside.start()
    answer = answer_of(cli("card", "import", tmp_path / "cards.csv", "--json"))
    beside.join()
    assert answer == {"imported": 300, "failed": []}
    listed = answer_of(cli("card", "list", "--json"))
    assert len(listed) == 302
    assert found[0]["card"] in {card["id"] for card in listed}
    assert node.stop() == (0, b"")
    assert answer_of(cli("verify", "--json"))["ok"] is True


def test_a_terminal_on_a_bad_line(cli: Cli, node: Serving, tmp_path: Path) -> None:
    """Whatever the line does, every outcome is found out, and nothing is done twice."""
    shop = Shop(cli, tmp_path)
    result = answer_of(
        cli(
            "sim", "terminal", "--terminal", shop.file, "--address", node.address("terminals"),
            "--document", "4567890", "--count", 40, "--timeout", 0.5, "--fault", "close=0.05",
            "--fault", "half=0.05", "--fault", "duplicate=0.02", "--json",
        )
    )  # fmt: skip
    assert sum(result["answers"].values()) == 40
    assert result["faults"]
    report = answer_of(cli("verify", "--json"))
    assert report["ok"] is True
    registered = result["answers"].get("00 REGISTRADA", 0)
    assert report["registered_amount"]["deposit"] == 1000 * registered
    balance = answer_of(cli("card", "show", shop.card, "--json"))["available"]
    assert balance == 1_000_000 + 1000 * registered


def test_the_followers_end_with_the_node(directory: Path, cli: Cli, tmp_path: Path) -> None:
    with serving(directory) as node:
        Shop(cli, tmp_path)
        assert answer_of(cli("operations", "--json")) == []  # the follower has made the read model
        node.process.kill()
        node.process.wait(120)
    give_up_at = time.monotonic() + 120
    while _followers(directory) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert _followers(directory) == []


def _followers(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "project" in command and str(directory) in command:
            found.append(command)
    return found


def test_demo(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "switch", "demo", "--seconds", "1", "--terminals", "3", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=240, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["ok"] is True
    assert result["operations"] > 0
    assert result["approved"] > 0
    assert result["money_check"] == {"posted": 0, "pending": 0}
    assert "metrics: http://127.0.0.1:" in done.stderr
    assert list(tmp_path.iterdir()) == []
