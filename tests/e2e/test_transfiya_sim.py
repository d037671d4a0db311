"""`troncal sim transfiya`: banks as processes of their own, set up by commands, with a network that
mistreats them."""

import json
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner

from protocols.transfiya.times import zone_of
from switch.cli import root
from switch.cli.apart import free_port
from switch.cli.demo_transfiya import DemoBank, _make
from switch.cli.provision import opened
from switch.cli.serving import serving
from switch.flows.transfiya_core import LedgerCore

pytestmark = pytest.mark.timeout(600)
LOOKS_MAX = 200
FAULTS = ("create:lose", "prove:lose,skip=1", "credit:duplicate", "continue:status=503,count=2")


async def troncal(*words: str, code: int = 0) -> Any:
    command = [sys.executable, "-m", "switch", *words, "--json"]
    done = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, done.stderr.decode()
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None


async def test_transfers_through_the_command(tmp_path: Path) -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        banks, words, _ = await joined(stack, tmp_path, port)
        words.append("--until-done")
        payer, payee = (next(iter(bank.customers)) for bank in banks)
        closed = list(banks[1].customers)[9]
        for fault in FAULTS:
            words += ["--fault", fault]
        for target, amount in ((payee, "10.50"), (closed, "7.00"), (payee, "1.25,SENDMOL")):
            words += ["--transfer", f"{payer},{target},{amount}"]
        report = await troncal(*words, "--count", "3", "--rate", "5", "--seed", "9")
        assert report["breaches"] == []
        assert report["sum"] == 0
        assert [t["ended"] for t in report["transfers_listed"]] == [True] * 6
        first, refused, third = report["transfers_listed"][:3]
        assert (first["status"], third["status"]) == ("COMPLETED", "COMPLETED")
        assert (refused["status"], refused["amount"]) == ("REJECTED", "7.00")
        assert sum(report["faults"].values()) == 5
        assert report["answers"]["credit"]["p99_ms"] > 0
    for bank in banks:
        async with opened(bank.config) as node:
            core = LedgerCore(bank.name, node.store.ledger, node.calendar)
            assert core.settlement("COP") == -report["balances"][bank.name]
            assert list(node.store.ledger.open_holds()) == []


async def eventually(rows: int, *words: str) -> list[dict[str, Any]]:
    """What a list shows once it has so many rows."""
    for _ in range(LOOKS_MAX):
        found: list[dict[str, Any]] = await troncal("transfiya", *words)
        if len(found) >= rows:
            return found
        await trio.sleep(0.2)
    raise AssertionError(f"{words[0]} shows {len(found)} of {rows}")


async def joined(
    stack: AsyncExitStack, directory: Path, port: int
) -> tuple[list[DemoBank], list[str], list[Any]]:
    """Two banks that serve, the words of `sim transfiya` for them, and their listeners."""
    banks = [await _make(directory, name, n, port) for n, name in enumerate(("rojo", "verde"), 1)]
    words, listeners = ["sim", "transfiya", "--listen", f"127.0.0.1:{port}"], []
    for bank in banks:
        command = [sys.executable, "-m", "switch", "serve", "-c", str(bank.config.path)]
        _, ready = await stack.enter_async_context(serving(command, directory / f"{bank.name}.log"))
        host, http = ready["http"]
        where = ("-c", str(bank.config.path), "--url", f"http://{host}:{http}")
        exported = await troncal("transfiya", "export", bank.name, *where)
        assert exported["url"] == f"http://{host}:{http}/transfiya/{bank.name}"
        assert len(exported["customers"]) == 10
        file = directory / f"{bank.name}.json"
        file.write_text(json.dumps(exported))
        words += ["--bank", str(file)]
        listeners.append(ready)
    return banks, words, listeners


async def test_what_customers_and_operators_do(tmp_path: Path) -> None:
    """Transfers begun and requests answered by commands; then the morning's comparison."""
    port = free_port()
    async with AsyncExitStack() as stack:
        banks, words, listeners = await joined(stack, tmp_path, port)
        rojo = ("-c", str(banks[0].config.path))
        payer, payee = (next(iter(bank.customers)) for bank in banks)
        words += ["--transfer", f"{payer},{payee},3.00,REQUEST"]
        await stack.enter_async_context(
            serving([sys.executable, "-m", "switch", *words, "--json"], tmp_path / "sim.log")
        )
        begin = ["transfer", "start", "rojo", "--from", "rojo-0", "--to", payee]
        begin += ["--amount", "5.00", "--reference", "app-1", *rojo]
        begun = await troncal("transfiya", *begin)
        assert (begun["state"], begun["reference"]) == ("DONE", "app-1")
        assert await troncal("transfiya", *begin) == begun
        asked = ["transfer", "state", "rojo", "app-1", "--from", payer, *rojo]
        assert await troncal("transfiya", *asked) == begun
        [offer] = await eventually(1, "request", "list", *rojo)
        assert (offer["amount"], offer["bank"]) == ("3.00", "rojo")
        answer = ["request", "answer", "rojo", offer["tx_ref"], "yes", *rojo]
        await troncal("transfiya", *answer)
        await troncal("transfiya", *answer, code=1)
        await eventually(6, "items", "--state", "done", *rojo)
        await troncal("transfiya", "key", "new", "eva", *rojo)
        add = ["signer", "add", "rojo", "eva-1", "--key", "eva", *rojo]
        signer = await troncal("transfiya", *add)
        assert signer["known"] is True, "the network took it"
        again = ["signer", "register", "rojo", signer["handle"], *rojo]
        assert await troncal("transfiya", *again) == signer, "and has it by now"
        work = await troncal("transfiya", "show", begun["tx_ref"], *rojo)
        assert [one["kind"] for one in work] == ["UPLOAD", "SIGN"]
        assert work[0]["history"][-1]["state"] == "DONE"
        assert payer not in json.dumps(work)

        today = datetime.now(zone_of("-05:00")).date().isoformat()
        compare = ["conciliation", "rojo", "--date", today, *rojo]
        found = await troncal("transfiya", *compare)
        assert (found["lines"], found["differences"]) == (2, [])
        other = [f"{w['action_id']};{w['tx_ref']};UPLOAD;5.01;{w['core']}" for w in work[:1]]
        other.append("another;tx-9;DOWNLOAD;1.00;77")
        text = tmp_path / "network.txt"
        text.write_text("\n".join(other))
        found = await troncal("transfiya", *compare, "--file", str(text), code=1)
        kinds = {one["kind"]: one["what"] for one in found["differences"]}
        assert kinds.items() >= {("differs", "amount"), ("missing_here", "")}
        host, ops = listeners[0]["ops"]
        async with httpx.AsyncClient(timeout=120) as client:
            page = (await client.get(f"http://{host}:{ops}/metrics")).text
        count = len(found["differences"])
        assert f'troncal_transfiya_conciliation_differences{{bank="rojo"}} {count}.0' in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--fault", "prove"), "is none of"),
        (("--fault", "nowhere:lose"), "'nowhere' is none of"),
        (("--fault", "credit:garbage"), "is none of"),
        (("--fault", "prove:status=x"), "no number"),
        (("--fault", "prove:lose,often=3"), "'often' is none of"),
        (("--transfer", "$1,$2"), "is not SOURCE,TARGET,AMOUNT"),
        (("--transfer", "$1,$2,1e3"), "is no amount"),
        (("--transfer", "$1,$2,1.00,GIFT"), "is not SOURCE,TARGET,AMOUNT"),
    ],
)
def test_what_is_no_fault_and_no_transfer(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    file = tmp_path / "bank.json"
    file.write_text("{}")
    result = CliRunner().invoke(root, ["sim", "transfiya", "--bank", str(file), *words])
    assert result.exit_code == 2
    assert told in result.output.replace("\n", " ")


def test_what_is_no_bank(tmp_path: Path) -> None:
    good = {"id": "rojo", "signer": "wfsGTaiZ7MpUZ45hcv8A9Wz2wQJP6RVkxk", "url": "http://127.0.0.1"}
    cases: list[Any] = [
        [], {}, {**good, "signer": "w1"},
        {**good, "customers": [{"handle": good["signer"], "alias": "$1", "link": "MAYBE"}]},
    ]  # fmt: skip
    for case in cases:
        file = tmp_path / "bank.json"
        file.write_text(json.dumps(case))
        result = CliRunner().invoke(root, ["sim", "transfiya", "--bank", str(file)])
        assert result.exit_code == 1
        assert "transfiya export" in result.output
    file.write_text(json.dumps(good))
    words = ["--transfer", "$1,$2,1.00"]
    result = CliRunner().invoke(root, ["sim", "transfiya", "--bank", str(file), *words])
    assert "no bank has a customer $1" in result.output
