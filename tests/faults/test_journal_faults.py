"""The disk fails or is full under a live node: nothing is acknowledged that is not durable."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from switch.journal.verify import verify
from tests.faults.process import SMALL, NodeProcess, Site, provision
from tests.faults.wire import Wire

DISK_BYTES = 12 << 20
LEFT_BYTES = 300_000  # of the disk, once it is all but full
MANY = 3000  # more operations than fit on what is left

# The same node on a journal that fails as told.
FAULTY = """
from functools import partial
from switch.journal import store
from switch.__main__ import main
store.Journal = partial(store.Journal, {fault})
main()
"""
FILES_TOO_LARGE = """
import resource
from switch.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
main()
"""

pytestmark = pytest.mark.disk


class Till:
    """A cashier of few words: deposits, and what became of them."""

    def __init__(self, site: Site, node: NodeProcess, index: int = 0) -> None:
        terminal = site.terminals[index]
        self.wire = Wire(node.terminals, terminal.number, terminal.key.key)
        self._document = site.cards[index].document
        self._trace = 0
        answer = self.wire.sign_on()
        if answer is None:
            self.wire.socket.close()
            raise ConnectionError("the node went away")
        assert answer["code"] == "00"

    def deposit(self, trace: int = 0) -> dict[str, Any]:
        if not trace:
            self._trace += 1
        return {
            "op": "deposit", "trace": trace or self._trace, "cashier": "345", "currency": "PYG",
            "document": self._document, "amount": 1000,
        }  # fmt: skip

    def fill(self) -> list[int]:
        """Deposit until that is refused; the traces of all that were taken."""
        taken = []
        for _ in range(MANY):
            message = self.deposit()
            answer = self.wire.ask(message)
            if answer["code"] != "00":
                assert (answer["code"], answer["instruction"]) == ("96", "NO_RECIBA")
                return taken
            taken.append(message["trace"])
        raise AssertionError("the disk never was full")

    def ask(self, op: str, trace: int) -> dict[str, Any]:
        return self.wire.ask({"op": op, "original": trace, "kind": "deposit"})

    def close(self) -> None:
        self.wire.socket.close()


@contextmanager
def tmpfs(path: Path) -> Iterator[Path]:
    """A small file system of its own. Skips the test where there may be none."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def squeeze(disk: Path) -> Path:
    """Fill a disk up to LEFT_BYTES with something else."""
    stat = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(stat.f_bavail * stat.f_frsize - LEFT_BYTES))
    return filler


@contextmanager
def running(site: Site, program: tuple[str, ...] = ()) -> Iterator[NodeProcess]:
    node = site.start(program=program) if program else site.start()
    try:
        node.ready()
        yield node
    finally:
        node.end()


def test_a_full_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk") as disk:
        site = provision(
            tmp_path, terminals=1, cards=1, toml=SMALL + '[node]\ndata = "disk/data"\n'
        )
        with running(site) as node:
            till = Till(site, node)
            filler = squeeze(disk)
            taken = till.fill()
            _open_work_goes_on(till, taken)
            marked = _use_up_the_reserve(till, taken)
            assert node.returncode is None, "a full disk is no failure"
            assert any(line["event"] == "disk_full" for line in site.log_lines())
            # Room again: work goes on by itself.
            filler.unlink()
            deadline = time.monotonic() + 120
            while till.wire.ask(till.deposit())["code"] != "00":
                assert time.monotonic() < deadline, node.tail()
                time.sleep(0.1)
            till.close()
            assert node.stop() == 0
        with running(site) as node:
            till = Till(site, node)
            for trace in taken:
                state = "ENTREGADA" if trace in marked else "REGISTRADA"
                assert till.ask("last_operation", trace)["state"] == state
            till.close()
            assert node.stop() == 0
        assert verify(site.config, site.config.data).ok


def _open_work_goes_on(till: Till, taken: list[int]) -> None:
    """While new work is refused, questions are answered and open work is concluded."""
    refused = taken[-1] + 1
    assert till.ask("last_operation", refused)["code"] == "25", "its trace stays free"
    first = till.wire.ask(till.deposit(taken[0]))
    assert (first["duplicate"], first["state"]) == (True, "REGISTRADA")
    assert till.ask("delivered", taken[0])["state"] == "ENTREGADA"
    assert till.wire.ask(till.deposit())["code"] == "96", "still"


def _use_up_the_reserve(till: Till, taken: list[int]) -> set[int]:
    """Marks until even these find no room: refused, not lost. Returns what was marked."""
    marked = {taken[0]}
    for trace in taken[1:]:
        answer = till.ask("delivered", trace)
        if answer["code"] == "96":
            break
        assert answer["state"] == "ENTREGADA"
        marked.add(trace)
    else:
        raise AssertionError("the reserve never ended")
    assert len(marked) > 10
    for _ in range(50):  # whatever else they try then
        annul = {"op": "annul", "trace": 900_000, "cashier": "345", "original": 777_777}
        assert till.wire.ask(annul)["code"] == "96"
        assert till.ask("last_operation", trace)["state"] == "REGISTRADA"
    return marked


def test_a_disk_that_is_full_by_its_own_word(tmp_path: Path) -> None:
    """The same without a disk of our own, up to the end of the room for new work."""
    site = provision(tmp_path, terminals=1, cards=1)
    program = ("-c", FAULTY.format(fault=f"fail_after_bytes={3 << 20}"))
    with running(site, program) as node:
        till = Till(site, node)
        _open_work_goes_on(till, till.fill())
        till.close()
        assert node.stop() == 0
    assert verify(site.config, site.config.data).ok


@pytest.mark.parametrize("at", [1, 30])
def test_a_sync_that_fails(tmp_path: Path, at: int) -> None:
    site = provision(tmp_path, terminals=4, cards=4)
    program = ("-c", FAULTY.format(fault=f"fail_sync_at={at}"))
    _fails_and_loses_nothing(site, program, "making a group durable")


def test_a_write_that_fails(tmp_path: Path) -> None:
    """A real one: files must not become as large as a segment."""
    site = provision(tmp_path, terminals=4, cards=4)
    program = ("-c", FILES_TOO_LARGE.format(limit=600 << 10))
    _fails_and_loses_nothing(site, program, "File too large")


def _fails_and_loses_nothing(site: Site, program: tuple[str, ...], why: str) -> None:
    """The node stops and says why; what it told before is there, and all books balance."""
    told: list[tuple[int, int, str]] = []
    node = site.start(program=program)
    try:
        told = _work_until_it_fails(site, node)
        assert node.wait() == 1
    finally:
        node.end()
    last = node.tail().strip().splitlines()
    assert any(line.startswith("error: journal") and why in line for line in last), last
    assert "Traceback" not in node.tail()
    with running(site) as node:
        tills = [Till(site, node, index) for index in range(4)]
        for index, trace, operation in told:
            answer = tills[index].ask("last_operation", trace)
            assert (answer["state"], answer["operation"]) == ("REGISTRADA", operation)
        for till in tills:
            till.close()
        assert node.stop() == 0
    assert verify(site.config, site.config.data).ok


def _work_until_it_fails(site: Site, node: NodeProcess) -> list[tuple[int, int, str]]:
    """(till, trace, operation) of every deposit that was acknowledged."""
    told: list[tuple[int, int, str]] = []
    tills: list[Till] = []
    try:
        node.ready()
        tills += (Till(site, node, index) for index in range(4))
        for _ in range(MANY):
            for till in tills:
                till.wire.send(till.deposit())
            for index, till in enumerate(tills):
                answer = till.wire.receive()
                if answer is None:
                    return told
                told.append((index, answer["trace"], answer["operation"]))
    except (EOFError, ConnectionError):
        return told  # EOFError: even before it was ready
    finally:
        for till in tills:
            till.close()
    raise AssertionError("it never failed")
