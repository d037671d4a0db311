"""`certify`: our own node passes, one with a planted fault fails where it must, reports hold.

`TRONCAL_TORTURE=1`: the whole pack against our own platform too, every planted fault, and peers
elsewhere in full.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from click.testing import CliRunner, Result

from protocols.messages import Answer, LastOperation
from protocols.session import TERMINAL, Acceptor, PeerKey
from switch.calendar import Calendar
from switch.certification import network_cases, report, run, sandbox
from switch.certification.platform_stand import Side
from switch.certification.report import CaseReport, Report
from switch.certification.stand import Pack, Stand, Till, Times
from switch.cli import root, setup
from switch.cli.apart import free_port
from switch.ops.keys import MasterKey
from switch.simulators.rules import Rule, Rules
from switch.simulators.server import Server
from switch.simulators.sicoop import SicoopSimulator
from tests.e2e.test_iso_host import certificate

ROOT = Path(__file__).parents[2]
NETWORK = "0012"
PACK = [pack.id for pack in network_cases.PACK]
LARGE = bool(os.environ.get("TRONCAL_TORTURE"))
QUICK = Times(terminal=2, platform=1, issuer=1, confirm=1, slack=1)
Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TRONCAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def cli() -> Cli:
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(root, [str(a) for a in arguments], prog_name="troncal")

    return invoke


def test_the_pack_is_that_of_the_domain() -> None:
    """The 65 cases by name: X001–X011, X106, X113–X120, X125, V, R, I, T, D and C."""
    wanted = [f"X{n:03}" for n in (*range(1, 12), 106, *range(113, 121), 125)]
    for letter, numbers in (
        ("V", range(1, 6)), ("R", range(1, 8)), ("I", range(1, 8)), ("T", (*range(1, 8), 17)),
        ("D", (*range(1, 9), 12)), ("C", range(1, 9)),
    ):  # fmt: skip
        wanted += [f"{letter}{number:02}" for number in numbers]
    assert wanted == PACK
    assert len(PACK) == 65


def test_our_own_node_passes_every_case(cli: Cli, tmp_path: Path) -> None:
    setup.make(tmp_path)
    done = cli("certify", "--network", NETWORK, "--json")
    told = json.loads(done.stdout.splitlines()[-1])
    left = [(c["id"], c["reason"]) for c in told["cases"] if c["verdict"] != "passed"]
    assert (left, told["verdict"], told["passed"], done.exit_code) == ([], "passed", 65, 0)
    assert [case["id"] for case in told["cases"]] == PACK
    files = {Path(file).suffix: Path(file) for file in told["files"]}
    _tells_everything(files[".json"], files[".html"])
    checked = cli("certify", "--check", files[".html"], "--json")
    assert json.loads(checked.stdout)["signature"] == "good"
    by_key = ("certify", "--check", files[".sig"], "--public-key")
    assert cli(*by_key, told["public_key"]).exit_code == 0
    assert cli(*by_key, "00" * 32).exit_code == 1
    assert told["public_key"] in cli("certify", "--show-key").stdout


def _tells_everything(path: Path, page: Path) -> None:
    """What was sent, expected and came, with times, and nothing of a person or a code."""
    found = msgspec.json.decode(path.read_bytes(), type=Report)
    assert found.ok
    for case in found.cases:
        assert case.checks, case.id
        assert all(check.ok for check in case.checks), case.id
        if not case.id.startswith("C"):
            assert case.exchanges, case.id
        assert case.seconds >= 0
    text = path.read_text() + page.read_text()
    for secret in ("4567890", "004512", "482915", "00451234"):
        assert secret not in text
    assert all(f'id="{case.id}"' in page.read_text() for case in found.cases)
    assert "<script" not in page.read_text()


# ---- candidates with a fault

# Each is planted into the program of the candidate; what it breaks is named beside it.
FAULTS = {
    "reverses nothing": (
        "Red._fail = lambda self, step, o, key, reason: (setattr(o, 'code', '91'),"
        " setattr(o, 'key', key), self._move(o, 'failed', step))",
        ("X106", "R01", "R04", "D05") if LARGE else ("R04",),
        ("X001", "X002", "V01", "I02"),
    ),
    "takes a decline for an approval": (
        "decide = Red._decide\n"
        "Red._decide = lambda self, step, o, a: decide(self, step, o,"
        " msgspec.structs.replace(a, code='00', key='APROBADA') if a.code == '51' else a)",
        ("X002", "I07"),
        ("X001", "X003", "T03", "D01"),
    ),
    "tells the cashier to pay twice": (
        "answers.instruction = lambda o, later: 'ENTREGUE' if o.kind == 'cash_out' else 'RECIBA'",
        ("X001", "X002", "V01", "I02", "D01", "D02"),
        ("X007",),
    ),
    "drops the zeros of codes": (
        "token = Red._token\n"
        "Red._token = lambda self, text: token(self, text)\n"
        "ask = PlatformPort.ask\n"
        "PlatformPort.ask = lambda self, step, m, key: ask(self, step, msgspec.structs.replace(m,"
        " token='1' + m.token[1:]) if isinstance(getattr(m, 'token', None), str) else m, key)",
        ("X001", "T02", "T17"),
        ("X002", "D01", "T03"),
    ),
}  # fmt: skip
# What is decided natively would not meet the fault.
PLANTED = """
import os
import sys
os.environ["TRONCAL_NODE_STRAIGHT_THROUGH"] = "false"
import msgspec
import switch.flows.answers as answers
from switch.flows.platform_port import PlatformPort
from switch.flows.red import Red
from switch.__main__ import main
{fault}
sys.argv[0] = "troncal"
main()
"""


async def certified(directory: Path, only: list[str], fault: str) -> dict[str, CaseReport]:
    """A run against a node of ours whose program has a fault."""
    calendar = Calendar("America/Asuncion")
    key = PeerKey(secrets.token_bytes(32))
    platform = run.new_platform(NETWORK, key, calendar)
    program = (sys.executable, "-c", PLANTED.format(fault=fault))
    told: list[CaseReport] = []
    async with (
        run.listening(platform, "127.0.0.1", 0) as at,
        sandbox.network_node(directory / "red", NETWORK, key, at, 2 * len(only), program) as box,
    ):
        candidate = run.Network(NETWORK, box.terminals, box.addresses["terminals"])
        times = sandbox.TIMES if LARGE else Times(terminal=4, platform=1, slack=1)
        found = await run.certify_network(
            candidate, platform, times=times, calendar=calendar, progress=told.append,
            only=only,
        )  # fmt: skip
    assert {case.id for case in told} == set(only)
    assert found.verdict == "failed"
    return {case.id: case for case in found.cases}


@pytest.mark.parametrize("name", FAULTS if LARGE else list(FAULTS)[2:3])
async def test_a_fault_fails_the_right_cases(tmp_path: Path, name: str) -> None:
    fault, failing, passing = FAULTS[name]
    found = await certified(tmp_path, [*failing, *passing], fault)
    verdicts = {case: found[case].verdict for case in (*failing, *passing)}
    assert verdicts == dict.fromkeys(failing, "failed") | dict.fromkeys(passing, "passed")
    for case in failing:
        assert found[case].reason
        assert not found[case].checks[-1].ok
    left = [case for case in found.values() if case.id not in verdicts]
    assert {case.verdict for case in left} == {"not played"}


# ---- platforms


def test_our_own_platform_passes(cli: Cli, tmp_path: Path) -> None:
    """All 65 in the large profile; else all but those that take files in or wait for times."""
    setup.make(tmp_path)
    slow = {"X113", "X114", "X115", "X116", "X117", "X118", "R05", "R06", "D07"}
    chosen = [id_ for id_ in PACK if LARGE or (id_ not in slow and id_[0] != "C")]
    only = [] if LARGE else [word for id_ in chosen for word in ("--case", id_)]
    done = cli("certify", "--network", NETWORK, "--side", "platform", "--json", *only)
    told = json.loads(done.stdout.splitlines()[-1])
    left = [(c["id"], c["reason"]) for c in told["cases"] if c["verdict"] == "failed"]
    assert (left, told["passed"]) == ([], len(chosen))
    assert told["verdict"] == ("passed" if LARGE else "incomplete")
    assert done.exit_code == (0 if LARGE else 1)
    found = msgspec.json.decode(Path(told["files"][0]).read_bytes(), type=Report)
    assert (found.side, found.network) == ("platform", NETWORK)


HONEST = ("X001", "X002", "X003", "X005", "X009", "X106", "R01", "R04", "I02", "I03", "D01", "D12")
RULES: dict[str, tuple[list[Rule], tuple[str, ...]]] = {
    "honest": ([], ()),
    "no captures": (
        [Rule(fault="decline", argument="96", operation="capture")],
        ("X001", "I02", "I03", "D01", "D12"),
    ),
    "no releases": (
        [Rule(fault="decline", argument="96", operation="release")],
        ("X002", "X003", "X005", "X009", "X106", "R01", "R04"),
    ),
    "approves nothing": (
        [Rule(fault="decline", argument="05", operation="hold")],
        tuple(id_ for id_ in HONEST if id_ not in ("X005", "X106", "R04")),
    ),
    "answers holds with garbage": ([Rule(fault="garbage", operation="hold", every=1)], HONEST[:-3]),
    "never says its state": (
        [Rule(fault="swallow", operation="status")],
        tuple(id_ for id_ in HONEST if id_ != "R04"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES if LARGE else list(RULES)[:4])
async def test_a_simulator_with_fault_switches(name: str, nursery: trio.Nursery) -> None:
    rules, failing = RULES[name]
    key = PeerKey(secrets.token_bytes(32))
    simulator = SicoopSimulator({NETWORK: key}, Rules(rules))
    server = Server(simulator.converse)
    simulator.stop = server.stop
    address = await nursery.start(server.listen, "127.0.0.1", 0)
    side = Side(NETWORK, ["00000001", "00000002"], "17", Calendar("America/Asuncion"))
    found = await run.certify_platform(
        run.PlatformPeer(side, key, address), times=QUICK, progress=lambda case: None, only=HONEST
    )
    nursery.cancel_scope.cancel()
    verdicts = {case.id: case.verdict for case in found.cases if case.id in HONEST}
    if name.startswith(("answers", "never")):  # what else fails depends on what runs beside it
        assert {id_ for id_ in verdicts if verdicts[id_] == "failed"} >= {"X001", "X002"}
        return
    assert {id_ for id_, verdict in verdicts.items() if verdict == "failed"} == set(failing)
    for case in found.cases:
        assert case.verdict != "failed" or case.reason


async def test_what_a_platform_cannot_show_is_not_played(nursery: trio.Nursery) -> None:
    key = PeerKey(secrets.token_bytes(32))
    server = Server(SicoopSimulator({NETWORK: key}, Rules()).converse)
    address = await nursery.start(server.listen, "127.0.0.1", 0)
    side = Side(NETWORK, ["00000001", "00000002"], "17", Calendar("America/Asuncion"))
    found = await run.certify_platform(
        run.PlatformPeer(side, key, address), times=QUICK, progress=lambda case: None,
        only=("V02", "C01", "C08"),
    )  # fmt: skip
    nursery.cancel_scope.cancel()
    assert (found.verdict, found.not_played) == ("incomplete", 65)
    reasons = {case.id: case.reason for case in found.cases}
    assert "a day before" in reasons["V02"]
    assert "a day before" in reasons["C08"]
    assert reasons["X001"] == "left out by --case"


# ---- peers elsewhere, as their operators have them certified


async def certify(
    directory: Path, *words: object, asked: Callable[[], Awaitable[None]] | None = None
) -> tuple[int, dict[str, Any]]:
    """Run the command as a process of its own; its exit code and its result.

    `asked`: what is done when it says that it waits for a file.
    """
    command = [sys.executable, "-m", "switch", "certify", "--network", NETWORK, "--json"]
    process = await trio.lowlevel.open_process(
        [*command, *map(str, words)], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    out, errors = b"", b""

    async def listen() -> None:
        nonlocal errors
        times = 0
        async for data in process.stderr:
            errors += data
            if asked is not None and errors.count(b"daily file") > times:
                times += 1
                await asked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        async for data in process.stdout:
            out += data
    return await process.wait(), json.loads(out.splitlines()[-1])


def keys_of(box: sandbox.Sandbox, key: PeerKey) -> dict[str, Any]:
    terminals = [
        {"peer": one.number, "key": one.key.key.hex(), "mac": one.key.algorithm}
        for one in box.terminals
    ]
    return {"network": {"peer": NETWORK, "key": key.key.hex()}, "terminals": terminals}


async def test_a_network_elsewhere(tmp_path: Path) -> None:
    """Its keys in a file, its budgets given, its daily file made when its operator is asked."""
    await trio.to_thread.run_sync(setup.make, tmp_path)
    key, port = PeerKey(secrets.token_bytes(32)), free_port()
    only = ("X001", "V01", "R04", *(("C01", "C05", "C07", "C08") if LARGE else ()))
    async with sandbox.network_node(tmp_path / "red", NETWORK, key, ("127.0.0.1", port), 4) as box:
        path = keys_file(tmp_path, **keys_of(box, key))
        host, address = box.addresses["terminals"]
        calendar = box.config.calendar()
        date = calendar.business_of(calendar.business(time.time_ns()).number - 1).compact
        code, told = await certify(
            tmp_path, "--address", f"{host}:{address}", "--keys", path,
            "--listen", f"127.0.0.1:{port}", "--files", box.files, "--files-wait", 30,
            "--terminal-s", 4, "--platform-s", 3, "--issuer-s", 2,
            *(word for id_ in only for word in ("--case", id_)),
            asked=lambda: box.make_file(date),
        )  # fmt: skip
    reasons = {c["id"]: c["reason"] for c in told["cases"] if c["verdict"] == "failed"}
    assert (reasons, told["passed"], code) == ({}, len(only), 1)  # incomplete: the rest is left out


async def test_a_network_over_tls(tmp_path: Path) -> None:
    """Tills reach it with TLS and show a certificate, and it reaches our platform so. An authority
    that it does not trust ends in a report that says so."""
    await trio.to_thread.run_sync(setup.make, tmp_path)
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        certificate(tmp_path / name)
    key, port = PeerKey(secrets.token_bytes(32)), free_port()
    toml = f"""
[tls.terminals]
cert = "{tmp_path}/theirs/cert.pem"
key = "{tmp_path}/theirs/key.pem"
client_ca = "{tmp_path}/ours/cert.pem"
[platform.tls]
ca = "{tmp_path}/ours/cert.pem"
"""
    red = sandbox.network_node(tmp_path / "red", NETWORK, key, ("127.0.0.1", port), 4, toml=toml)
    async with red as box:
        host, address = box.addresses["terminals"]
        words = (
            "--address", f"{host}:{address}", "--keys", keys_file(tmp_path, **keys_of(box, key)),
            "--listen", f"127.0.0.1:{port}", "--tls", "--cert", "ours/cert.pem",
            "--cert-key", "ours/key.pem", "--terminal-s", 4, "--platform-s", 3, "--issuer-s", 2,
            "--case", "X001", "--case", "V01", "--case", "R04",
        )  # fmt: skip
        code, told = await certify(tmp_path, *words, "--ca", "theirs/cert.pem")
        reasons = {c["id"]: c["reason"] for c in told["cases"] if c["verdict"] == "failed"}
        assert (reasons, told["passed"], code) == ({}, 3, 1)  # incomplete: the rest is left out
        code, told = await certify(tmp_path, *words, "--ca", "ours/cert.pem", "--output", "second")
        assert (told["passed"], told["failed"], code) == (0, 3, 1)
        first = next(c for c in told["cases"] if c["id"] == "X001")
        assert "no connection: certificate: self-signed certificate" in first["reason"]


@pytest.mark.skipif(not LARGE, reason="with TRONCAL_TORTURE=1")
async def test_a_platform_elsewhere(tmp_path: Path) -> None:
    await trio.to_thread.run_sync(setup.make, tmp_path)
    key = PeerKey(secrets.token_bytes(32))
    async with sandbox.platform_node(tmp_path / "platform", NETWORK, key) as box:
        host, port = box.addresses["sicoop"]
        path = keys_file(tmp_path, network={"peer": NETWORK, "key": key.key.hex()})
        code, told = await certify(
            tmp_path, "--side", "platform", "--address", f"{host}:{port}", "--keys", path,
            "--case", "X001", "--case", "I06", "--case", "D04", "--case", "V02",
        )  # fmt: skip
    verdicts = {c["id"]: c["verdict"] for c in told["cases"] if c["reason"] != "left out by --case"}
    assert verdicts == {"X001": "passed", "I06": "passed", "D04": "passed", "V02": "not played"}
    assert code == 1


async def test_a_platform_over_tls(tmp_path: Path) -> None:
    """It is reached with TLS and shown our certificate; one that it does not know gets nowhere."""
    await trio.to_thread.run_sync(setup.make, tmp_path)
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        certificate(tmp_path / name)
    key = PeerKey(secrets.token_bytes(32))
    toml = f"""
[tls.sicoop]
cert = "{tmp_path}/theirs/cert.pem"
key = "{tmp_path}/theirs/key.pem"
client_ca = "{tmp_path}/ours/cert.pem"
"""
    platform = sandbox.platform_node(tmp_path / "platform", NETWORK, key, toml=toml)
    async with platform as box:
        host, port = box.addresses["sicoop"]
        words = (
            "--side", "platform", "--address", f"{host}:{port}", "--tls", "--ca", "theirs/cert.pem",
            "--keys", keys_file(tmp_path, network={"peer": NETWORK, "key": key.key.hex()}),
            "--case", "X001", "--case", "X007", "--case", "D01",
        )  # fmt: skip
        ours = ("--cert", "ours/cert.pem", "--cert-key", "ours/key.pem")
        code, told = await certify(tmp_path, *words, *ours)
        reasons = {c["id"]: c["reason"] for c in told["cases"] if c["verdict"] == "failed"}
        assert (reasons, told["passed"], code) == ({}, 3, 1)  # incomplete: the rest is left out
        code, told = await certify(tmp_path, *words, "--output", "second")
        assert (told["passed"], told["failed"], code) == (0, 3, 1)


# ---- candidates that are none


@contextmanager
def peer_that(says: bytes) -> Iterator[tuple[str, int]]:
    """A listener that says so to whoever connects, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    if says:
                        connection.sendall(says)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(60)


def keys_file(directory: Path, **changes: Any) -> Path:
    path = directory / "keys.json"
    keys: dict[str, Any] = {
        "network": {"peer": NETWORK, "key": "11" * 32},
        "terminals": [{"peer": f"{n:08}", "key": "22" * 32} for n in (1, 2)],
    } | changes  # fmt: skip
    path.write_text(json.dumps(keys))
    return path


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x09" + bytes(9)])
def test_a_peer_that_speaks_something_else(cli: Cli, tmp_path: Path, says: bytes) -> None:
    setup.make(tmp_path)
    with peer_that(says) as (host, port):
        done = cli("certify", "--network", NETWORK, "--address", f"{host}:{port}",
                   "--keys", keys_file(tmp_path), "--json")  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, told["verdict"], told["failed"]) == (1, "failed", 65)
    assert all(c["reason"].startswith(f"no session with {host}:{port}: ") for c in told["cases"])


def test_nobody_listens(cli: Cli, tmp_path: Path) -> None:
    setup.make(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = cli("certify", "--network", NETWORK, "--address", f"127.0.0.1:{port}", "--keys",
               keys_file(tmp_path), "--case", "X001", "--json")  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, told["verdict"]) == (1, "failed")
    assert (told["failed"], told["not_played"]) == (1, 64)
    assert "no connection" in told["cases"][0]["reason"]


# ---- reports


def made(directory: Path) -> tuple[Path, Any]:
    key = report.signing_key(MasterKey(bytes(range(32))))
    cases = [CaseReport("X001", "<b>title</b>", "failed", "why & how")]
    found = Report(
        1, "troncal", NETWORK, "network", "127.0.0.1:1", "2026-01-01T00:00:00.000Z",
        "2026-01-01T00:00:01.000Z", 1.0, "failed", 0, 1, 0, {}, cases,
    )  # fmt: skip
    paths = report.write(directory, run.file_name(found), found, key)
    return paths[0], key


def test_a_report_that_was_changed(tmp_path: Path) -> None:
    path, key = made(tmp_path)
    assert path.name == "certification_network_0012_20260101T000000Z.json"
    assert report.check(path, key.public_key()).failed == 1
    with pytest.raises(FileExistsError):
        made(tmp_path)
    for suffix in (".json", ".html", ".sig"):
        changed = path.with_suffix(suffix)
        good = changed.read_bytes()
        for at in range(0, len(good), max(len(good) // 50, 1)):
            changed.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(report.CheckFailed):
                report.check(path, key.public_key())
        changed.write_bytes(good)
    assert report.check(path.with_suffix(".html"), key.public_key()).failed == 1
    other = path.with_name("certification_network_0013_20260101T000000Z.json")
    for suffix in (".json", ".html", ".sig"):
        path.with_suffix(suffix).rename(other.with_suffix(suffix))
    with pytest.raises(report.CheckFailed, match="not of this report"):
        report.check(other, key.public_key())


def test_a_page_shows_what_a_peer_said_as_text(tmp_path: Path) -> None:
    page = made(tmp_path)[0].with_suffix(".html").read_text()
    assert "&lt;b&gt;title&lt;/b&gt;" in page
    assert "why &amp; how" in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--network", "12"), "Invalid value"),
        ((), "one of --network, --check and --show-key"),
        (("--network", NETWORK, "--show-key"), "one of --network"),
        (("--network", NETWORK, "--address", "127.0.0.1:1"), "--address and --keys go together"),
        (("--network", NETWORK, "--case", "X999"), "Invalid value"),
        (("--network", NETWORK, "--listen", "0.0.0.0:0"), "outside loopback"),
        (("--network", NETWORK, "--listen", "nowhere"), "Invalid value"),
        (("--show-key", "--public-key", "00"), "goes with --check"),
        (("--network", NETWORK, "--tls"), "go with --address"),
        (("--network", NETWORK, "--ca", "troncal.toml"), "go with --tls"),
        (("--network", NETWORK, "--cert", "troncal.toml"), "--cert-key go together"),
    ],
)
def test_mistakes_are_told(cli: Cli, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    setup.make(tmp_path)
    done = cli("certify", *words)
    assert done.exit_code in (1, 2)
    assert told in done.output
    assert not (tmp_path / "certification").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": {"peer": "0013", "key": "11" * 32}}, "is not of network 0012"),
        ({"terminals": [{"peer": "00000001", "key": "22" * 32}]}, "two terminals"),
        ({"terminals": [{"peer": "00000001", "key": "22" * 32}] * 2}, "twice"),
        ({"terminals": [{"peer": "1", "key": "secret"}, {"peer": "2", "key": "x"}]}, "64 hex"),
        ({"terminals": 7}, "no network and terminals"),
    ],
)
def test_bad_keys_are_told_without_a_word_of_them(
    cli: Cli, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    setup.make(tmp_path)
    done = cli("certify", "--network", NETWORK, "--address", "127.0.0.1:1", "--keys",
               keys_file(tmp_path, **changes))  # fmt: skip
    assert done.exit_code == 1
    assert told in done.output
    assert "secret" not in done.output
    assert "22" * 32 not in done.output


def test_a_signature_that_is_none(cli: Cli, tmp_path: Path) -> None:
    setup.make(tmp_path)
    path, _ = made(tmp_path / "reports")
    assert "not by that key" in cli("certify", "--check", path).output
    path.with_suffix(".sig").write_text("{}")
    assert "not readable" in cli("certify", "--check", path).output
    path.with_suffix(".sig").unlink()
    assert cli("certify", "--check", path).exit_code == 1
    assert cli("certify", "--check", path, "--public-key", "x").exit_code == 2


async def test_every_wait_has_a_budget(autojump_clock: object) -> None:
    """A candidate that takes connections and says nothing: every case ends, with its reason."""

    async def nobody() -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        kept.append(theirs)
        return ours

    async def hangs(case: object) -> None:
        await trio.sleep_forever()

    kept: list[trio.abc.Stream] = []
    told: list[CaseReport] = []
    platform = run.new_platform(NETWORK, PeerKey(bytes(32)), Calendar("America/Asuncion"))
    terminals = [sandbox.Terminal(f"{n:08}", PeerKey(bytes(32))) for n in (1, 2)]
    stand = Stand(
        times=run.Times(), connect=nobody, terminals=terminals, platform=platform,
        progress=told.append,
    )  # fmt: skip
    packs = [Pack("X001", "normal", network_cases.x001), Pack("X002", "hangs", hangs)]
    reports = [CaseReport(pack.id, pack.title) for pack in packs]
    with trio.fail_after(3600):
        await stand.run(packs, reports)
    assert [case.verdict for case in reports] == ["failed", "failed"]
    assert all("no answer to the sign-on within" in case.reason for case in reports)
    assert len(told) == 2


async def test_a_question_at_the_moment_of_an_echo(autojump_clock: object) -> None:
    """Both leave in the order in which they were sealed, whoever of the two comes first."""
    key = PeerKey(bytes(32))
    faults: list[str] = []

    async def accept(stream: trio.abc.Stream) -> None:
        session = Acceptor(
            vocabulary=TERMINAL, authenticate=lambda peer, version: key, nonce=bytes(16),
            now_iso=lambda: "", heartbeat_s=2,
        )  # fmt: skip
        async for data in stream:
            messages = session.receive(bytes(data))
            answers = [Answer("25", "X", "", m.trace) for m in messages]
            await stream.send_all(session.encode(answers) if answers else session.output())
            if session.closing is not None:
                faults.append(session.closing)
                return

    async def ask(number: int) -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        pairs = iter([ours])

        async def connect() -> trio.abc.Stream:
            return next(pairs)

        nursery.start_soon(accept, theirs)
        till = Till(sandbox.Terminal(f"{number:08}", key), connect)
        await till.open(nursery)
        for moment in range(1, 6):
            await trio.sleep_until(start_s + 2 * moment)
            await till.ask(LastOperation(till.next_question()), 1)

    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as tills:
            for number in range(1, 31):
                tills.start_soon(ask, number)
        nursery.cancel_scope.cancel()
    assert faults == []
