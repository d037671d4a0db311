"""A node's whole life, and then: what is left of its secrets, for whom, and in whose memory.

Real processes and real files: provisioning by the command line, operations good and bad, garbage at
every listener, a kill, a restart, a snapshot, a backup, an export and all that commands print.
"""

import contextlib
import json
import os
import re
import resource
import secrets
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from switch.ops.keys import from_base32
from tests.e2e.wire_client import Node, run, totp
from tests.faults.secrets_left import codes_left, files, forms, keys_left, texts_left

PAN = "4507990000000010"
CVV = "7319"
NAME, PHONE = "ESPERANZA QUIÑONEZ", "+595981731905"
DEPOSITOR = "6543217"
NETWORK, TERMINAL = "0012", "00001234"
SMALL = {"segment_bytes": 1 << 20, "group_bytes_max": 1 << 18, "reserve_bytes": 1 << 16}
COMMANDS = (
    ("operations",), ("operations", "--json"), ("verify",),
)  # fmt: skip


class Life:
    """A node that has lived, with all that it knew and all that was said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "troncal.toml"
        self.said: list[str] = []  # by commands, metrics and HTTP
        self.keys: list[bytes] = []
        self.codes: list[str] = []
        self.told: list[str] = []  # to the terminal: response codes
        self.documents = ["4531907", "4531908"]
        assert run("init", directory).returncode == 0
        self.trace = 0
        text = self.config.read_text()  # small files: all of them are searched
        for name, value in SMALL.items():
            text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        self.config.write_text(text)
        for last in (False, True):
            self.node = Node(self.config)
            try:
                if not last:
                    self._provision()
                self._work()
                self._garbage()
                if last:
                    self._look()
            finally:
                code = self.node.stop(signal.SIGTERM if last else signal.SIGKILL)
        assert code == 0

    @property
    def master(self) -> bytes:
        return bytes.fromhex((self.directory / "master.key").read_text().strip())

    def _provision(self) -> None:
        made = self._admin("network_add", number=NETWORK, net_debit_cap=10**11)
        self.keys.append(bytes.fromhex(made["key"]))
        made = self._admin("terminal_add", number=TERMINAL, network=NETWORK, branch="17")
        self.terminal_key = made["key"]
        self.keys.append(bytes.fromhex(made["key"]))
        made = self._admin("host_rotate", name="sicoop")
        self.keys += [bytes.fromhex(made[k]) for k in ("mac_key", "data_key", "zone_key")]
        made = self._admin(
            "card_add", document=self.documents[0], phone=PHONE, name=NAME, balance=1_000_000
        )
        self.card, self.seed = made["card"], made["seed"]
        self.keys.append(from_base32(self.seed))

    def _admin(self, command: str, **values: Any) -> Any:
        """A provisioning command over the running node's socket, as the command line does it."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(120)
            wire.connect(str(self.directory / "data" / "admin.sock"))
            wire.sendall(json.dumps({"command": command, "values": values}).encode() + b"\n")
            answer = json.loads(wire.makefile().readline())
        assert "ok" in answer, answer
        return answer["ok"]

    # ---- what happens

    def _work(self) -> None:
        """Good, declined, repeated, differing, malformed and annulled operations."""
        with contextlib.closing(
            self.node.peer("terminals", TERMINAL, self.terminal_key)
        ) as terminal:
            terminal.sign_on()
            good = totp(self.seed) if not self.trace else self._code()
            paid = self._cash_out(terminal, good)
            self._cash_out(terminal, self._code())
            self._cash_out(terminal, self._code(), document=self.documents[1])
            self._cash_out(terminal, good)  # used
            self.trace -= 1
            self._cash_out(terminal, self._code(), amount=70_000)  # another body
            self._ask(terminal, {
                "op": "deposit", "document": self.documents[0], "amount": 40_000,
                "depositor": DEPOSITOR, "currency": "PYG", "cashier": "000345",
            })  # fmt: skip
            self._ask(terminal, {"op": "deposit", "document": PAN, "amount": 40_000,
                                 "currency": "PYG", "cashier": "000345"})  # fmt: skip
            self._ask(terminal, {"op": "holder", "phone": PHONE})
            self._ask(terminal, {
                "op": "annul", "original": paid, "cashier": "000345", "supervisor": "000900",
                "supervisor_code": self._code(),
            })  # fmt: skip

    def _code(self) -> str:
        return f"{secrets.randbelow(1_000_000):06}"

    def _cash_out(self, terminal: Any, code: str, **fields: Any) -> int:
        self.codes.append(code)
        self._ask(terminal, {
            "op": "cash_out", "document": self.documents[0], "amount": 50_000, "token": code,
            "currency": "PYG", "cashier": "000345",
        } | fields)  # fmt: skip
        return self.trace

    def _ask(self, terminal: Any, message: dict[str, Any]) -> None:
        self.trace += 1
        self.told.append(terminal.ask(message | {"trace": self.trace}).get("code", ""))

    def _garbage(self) -> None:
        """What nobody understands, and a peer whose MAC is wrong, with secrets inside."""
        texts = [
            json.dumps({"op": "cash_out", "pan": PAN, "cvv": CVV, "document": self.documents[0]}),
            f"GET /?card={PAN}&document={self.documents[0]} HTTP/1.1\r\nHost: {PAN}\r\n\r\n",
        ]
        for address in self.node.listeners.values():
            for text in texts:
                with socket.create_connection(address, timeout=60) as wire:
                    body = text.encode()
                    wire.sendall(body if text.startswith("GET") else
                                 len(body).to_bytes(2) + body)  # fmt: skip
                    wire.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ConnectionError, TimeoutError):
                        while data := wire.recv(65_536):
                            self.said.append(data.decode(errors="replace"))
        with contextlib.closing(
            self.node.peer("terminals", TERMINAL, secrets.token_bytes(32).hex())
        ) as stranger, contextlib.suppress(AssertionError, ConnectionError):  # fmt: skip
            stranger.sign_on()

    def _look(self) -> None:
        """Everything that can be asked for."""
        self.said.append(self.node.get("/metrics")[1])
        self._projected()
        for words in COMMANDS:
            self._command(*words)
        date = datetime.now(ZoneInfo("America/Asuncion")).strftime("%Y%m%d")
        self._command("operation", f"{NETWORK}{TERMINAL}{date}000001")
        self._command("card", "add", "--document", self.documents[0], "--name", NAME)  # refused
        self._command("snapshot")
        self._command("backup", str(self.directory / "backup"))
        self._command("export", "--output", str(self.directory / "export.csv"))

    def _projected(self) -> None:
        """Wait until the read model has come to the last operations."""
        path = self.directory / "data" / "read.sqlite"
        until, rows = time.monotonic() + 120, 0
        while rows < 6 and time.monotonic() < until:
            time.sleep(0.1)
            with contextlib.suppress(sqlite3.Error):
                db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
                with contextlib.closing(db):
                    rows = db.execute("SELECT count(*) FROM register").fetchone()[0]
        assert rows >= 6

    def _command(self, *words: str) -> None:
        done = run(*words, "-c", self.config)
        self.said.append(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(tmp_path_factory.mktemp("lives") / "node")


def test_S09_T21_keys_and_seeds_are_nowhere(life: Life) -> None:
    assert keys_left(life.directory, life.keys, [life.master]) == []
    text = "\n".join(life.said).encode()
    assert not any(form in text for key in [*life.keys, life.master] for form in forms(key))


def test_T21_codes_and_card_numbers_are_nowhere(life: Life) -> None:
    assert life.told[0] == "00", "the first code was good"
    assert {"55", "94"} <= set(life.told), "others were wrong, or not looked at"
    assert codes_left(life.directory, [*life.codes, CVV]) == []
    assert texts_left(life.directory, [PAN], []) == []
    said = "\n".join(life.said)
    assert PAN not in said
    assert not any(f'"{code}"' in said for code in life.codes)


def test_S06_nobody_is_named_where_people_read(life: Life) -> None:
    """Logs, read model, audit trail, metrics, backups' indexes: documents, phones and names."""
    personal = [*life.documents, PHONE, NAME, DEPOSITOR]
    assert texts_left(life.directory, [], personal) == []
    said = "\n".join(life.said)
    assert [text for text in personal if text in said] == []


def test_the_log_tells_of_it_without_tracebacks(life: Life) -> None:
    text = life.node.log.read_text()
    assert "sign_on" in text or "refused" in text, "what was tried is told"
    assert "Traceback" not in text


def test_S09_files_are_their_owners(life: Life) -> None:
    """Everything a node and its commands write, and the directories and sockets of it."""
    wrong = []
    for path in [life.directory, *life.directory.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & 0o077 and path != life.node.log:  # the log's file is the supervisor's
            wrong.append(f"{mode:04o} {path.relative_to(life.directory)}")
    assert wrong == []
    assert any(path.suffix == ".sqlite" for path in files(life.directory)), "and there is much"


# ---- memory --------------------------------------------------------------------------------------

DIES = """
import ctypes, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
if sys.argv[1:]:
    from switch.ops.hardening import forbid_core_dumps
    forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
os.abort()
"""


def dies(directory: Path, *words: str) -> tuple[str, bool]:
    """What a process said before it aborted, and whether it left a core."""
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, *words], stdout=subprocess.PIPE, cwd=directory,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.read().decode()
    process.stdout.close()
    _, status, _ = os.wait4(process.pid, 0)
    process.returncode = status
    assert os.WTERMSIG(status) == signal.SIGABRT
    return said, os.WCOREDUMP(status) or any(directory.glob("core*"))


def test_T21_a_hardened_process_leaves_no_core(tmp_path: Path) -> None:
    said, core = dies(tmp_path, "hardened")
    assert said == "(0, 0) 0\n"
    assert not core


def test_T21_a_serving_node_and_its_followers_leave_no_core(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    assert run("init", directory).returncode == 0
    node = Node(directory / "troncal.toml")
    limits = [limits_of(pid) for pid in (node.process.pid, *followers(node.process.pid))]
    assert len(limits) >= 2, "the projector is a process of its own"
    assert set(limits) == {("0", "0")}
    node.process.send_signal(signal.SIGABRT)
    _, status, _ = os.wait4(node.process.pid, 0)
    node.process.returncode = status
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    assert node.process.stdout is not None
    node.process.stdout.close()


def limits_of(pid: int) -> tuple[str, str]:
    """Soft and hard limit of core files."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Max core file size")]
    soft, hard = line.split()[4:6]
    return soft, hard


def followers(pid: int, within_s: float = 60.0) -> list[int]:
    """Processes that a node has started and that have come to run our program."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = Path(f"/proc/{pid}/task").iterdir()
        for thread in threads:
            children += (thread / "children").read_text().split()
        ready = [int(child) for child in set(children) if limits_of(int(child))[1] == "0"]
        if ready:
            return ready
        time.sleep(0.1)
    return []


def test_core_files_are_what_a_plain_process_leaves(tmp_path: Path) -> None:
    """What the tests above rule out happens otherwise, where the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("this system allows no core files at all")
    said, _ = dies(tmp_path)
    assert said.endswith(" 1\n"), "dumpable"


def test_http_errors_repeat_nothing(life: Life) -> None:
    node = Node(life.config)
    try:
        status, text = node.get(f"/{PAN}?document={life.documents[0]}")
    finally:
        node.stop()
    assert status == 404
    assert PAN not in text
    assert life.documents[0] not in text
