"""TransfiYa: a bank's process is killed at a step of its journal, and all comes to the same end.

One step of each profile always; TRONCAL_TORTURE=1 takes each step of a transfer, before it is
written and after.
"""

import base64
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from switch.cli import serving
from switch.cli.demo_transfiya import OPENING, DemoBank, _judge, _make
from switch.cli.provision import opened
from switch.config import load
from switch.flows.transfiya_core import LedgerCore
from switch.flows.transfiya_records import Directory
from switch.simulators.transfiya import BankEntry, Network
from switch.simulators.transfiya_ledger import Ledger
from switch.web.edge import serve_http
from switch.web.wire import PooledTransport

pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).parents[2]
WHOLE = bool(os.environ.get("TRONCAL_TORTURE"))
AMOUNT = 1_050
LIMIT_S = 240.0

# A debit has six steps and the signature behind it four, a credit six; entries of v2 have four.
STEPS = [(bank, n, when) for bank in ("rojo", "verde") for n in range(1, 13)
         for when in ("before", "after")] if WHOLE else [("rojo", 4, "after")]  # fmt: skip
STEPS_2 = [(bank, n, when) for bank in ("rojo", "verde") for n in range(1, 6)
           for when in ("before", "after")] if WHOLE else [("rojo", 1, "after")]  # fmt: skip


class Process:
    """One bank's process."""

    def __init__(self, directory: Path, bank: DemoBank) -> None:
        self.bank = bank
        self._log = directory / f"{bank.name}.log"
        self._process: Any = None
        self.port = 0

    async def start(self, kill_at: str = "") -> None:
        command = [
            sys.executable, "-m", "tests.transfiya_killed", "serve", "-c",
            str(self.bank.config.path), "--listen", f"http=127.0.0.1:{self.port}",
        ]  # fmt: skip
        with serving.log_file(self._log) as errors:
            self._process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT,
                env={**os.environ, "TRONCAL_KILL_AT": kill_at},
            )  # fmt: skip
        _, self.port = (await serving.ready_line(self._process, self._log))["http"]

    async def again(self, kill_at: str) -> None:
        """Stop it in good order and start it to die at a step."""
        await self.end()
        await self.start(kill_at)

    async def revived(self) -> bool:
        """Wait for its death and start it once more; False: it was told to live on."""
        code = await self._process.wait()
        if code == -signal.SIGKILL:
            with trio.CancelScope(shield=True):  # the transfer's end does not wait for it
                await self.start()
        return code == -signal.SIGKILL

    async def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert await self._process.wait() in (0, -signal.SIGKILL)

    def kill(self) -> None:
        """Whatever has gone wrong, it does not outlive the test."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def kill_at(name: str, steps: list[tuple[str, int, str]]) -> str:
    """What a bank is started with: the first step's victim does not live long."""
    victim, number, when = steps[0]
    return f"{number}:{when}" if name == victim else ""


@asynccontextmanager
async def served(
    app: object, listener: trio.SocketListener, processes: dict[str, Process]
) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_http(app, listener, stop=trio.Event())  # type: ignore[arg-type]

        nursery.start_soon(serve)
        try:
            yield nursery
        finally:
            for process in processes.values():
                process.kill()
        nursery.cancel_scope.cancel()


async def test_ty_17_to_ty_25_killed_at_each_step(tmp_path: Path) -> None:
    network = Network(time.time_ns, random.Random(7))
    network.bank_tries = 60  # a bank that starts again on a busy machine takes its time
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    banks = [await _make(tmp_path, name, n, port) for n, name in enumerate(("rojo", "verde"), 1)]
    processes = {bank.name: Process(tmp_path, bank) for bank in banks}
    payer, payee = (next(iter(bank.customers)) for bank in banks)
    async with served(network, listener, processes) as nursery:
        await nursery.start(network.run)
        for bank in banks:
            process = processes[bank.name]
            await process.start(kill_at(bank.name, STEPS))
            url = f"http://127.0.0.1:{process.port}/transfiya/{bank.name}"
            network.add_bank(
                BankEntry(
                    bank.name, bank.signer, url, auth="oauth2",
                    client_id=f"{bank.name}-client", client_secret=bank.secret,
                    own_client_id=f"{bank.name}-client", own_client_secret=bank.secret,
                )
            )  # fmt: skip
            for alias, handle in bank.customers.items():
                network.add_customer(bank.name, handle, alias)
        killed = 0
        for name, number, when in STEPS:
            victim = processes[name]
            if (name, number, when) != STEPS[0]:
                await victim.again(f"{number}:{when}")
            transfer = network.begin(payer, payee, "10.50")
            with trio.fail_after(LIMIT_S):
                async with trio.open_nursery() as watching:

                    async def watch(victim: Process = victim) -> None:
                        nonlocal killed
                        killed += await victim.revived()

                    watching.start_soon(watch)
                    await transfer.ended.wait()
                    watching.cancel_scope.cancel()
            assert transfer.status == "COMPLETED", (name, number, when, transfer.error)
        await trio.sleep(1.0)  # the last steps, which no transfer waits for
        for process in processes.values():
            await process.end()
    assert killed >= len(STEPS) * 3 // 4
    result = await _judge(network, banks, 1.0)
    assert result.problems == []
    assert result.transfers == {"COMPLETED": len(STEPS)}


class _At(httpx.AsyncBaseTransport):
    """The way to a bank's process, wherever it listens."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._wire = PooledTransport(connections_max=8, idle_s=1.0, body_bytes_max=1 << 20)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(port=self._process.port)
        return await self._wire.handle_async_request(request)

    async def end(self) -> None:
        """Not `aclose`: the ledger's clients, one for each call, share this way."""
        await self._wire.aclose()


def to_v2(bank: DemoBank, ledger: Ledger, port: int) -> None:
    """Make a demo bank one of the second profile."""
    public = base64.b64encode(ledger.key.public).decode()
    path = bank.config.path
    text = path.read_text().replace('inbound_auth = "oauth2"', 'inbound_auth = "none"')
    text = text.replace(f'"http://127.0.0.1:{port}/oauth/token"', '""').replace("bank_signer", "#")
    text += f'profile = "v2"\nledger = "demo"\nledger_public = "{public}"\n'
    text += 'symbols = { "cop" = { currency = "COP", exponent = 2 } }\n'
    path.write_text(text)
    bank.config = load(path)


async def test_ty_65_killed_at_each_step(tmp_path: Path) -> None:
    ways: dict[str, _At] = {}
    ledger = Ledger(time.time_ns, random.Random(2), ways)  # type: ignore[arg-type]
    ledger.tries_max = 60  # likewise
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    banks = [await _make(tmp_path, name, n, port) for n, name in enumerate(("rojo", "verde"), 1)]
    processes = {bank.name: Process(tmp_path, bank) for bank in banks}
    for bank in banks:
        async with opened(bank.config) as node:
            key = Directory(node.store.records).key("settlement")
            assert key is not None
            ledger.banks[bank.name] = key.public
        to_v2(bank, ledger, port)
        ways[bank.name] = _At(processes[bank.name])
    payer, payee = (next(iter(bank.customers)) for bank in banks)
    async with served(ledger, listener, processes):
        for bank in banks:
            await processes[bank.name].start(kill_at(bank.name, STEPS_2))
        killed = 0
        for name, number, when in STEPS_2:
            victim = processes[name]
            if (name, number, when) != STEPS_2[0]:
                await victim.again(f"{number}:{when}")
            with trio.fail_after(LIMIT_S):
                async with trio.open_nursery() as watching:

                    async def watch(victim: Process = victim) -> None:
                        nonlocal killed
                        killed += await victim.revived()

                    watching.start_soon(watch)
                    ended = await ledger.transfer(("rojo", payer), ("verde", payee), AMOUNT)
                    watching.cancel_scope.cancel()
            assert ended == "completed", (name, number, when)
        await trio.sleep(1.0)
        for process in processes.values():
            await process.end()
        for way in ways.values():
            await way.end()
    assert killed >= len(STEPS_2) * 3 // 4
    assert ledger.breaches == []
    paid = AMOUNT * len(STEPS_2)
    for bank, moved in zip(banks, (-paid, paid), strict=True):
        async with opened(bank.config) as node:
            core = LedgerCore(bank.name, node.store.ledger, node.calendar)
            assert core.balance(f"{bank.name}-0") == OPENING + moved
            assert core.settlement("COP") == -moved
            assert list(node.store.ledger.open_holds()) == []
