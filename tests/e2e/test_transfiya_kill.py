"""TransfiYa over real sockets: bank processes are killed under traffic and started again."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from switch.cli import serving
from switch.cli.demo_transfiya import DemoBank, _judge, _make
from switch.simulators.transfiya import BankEntry, Network
from switch.web.edge import serve_http

TRANSFERS = 12
KILLS = 4
LIMIT_S = 300.0

pytestmark = pytest.mark.timeout(600)


class Process:
    """One bank's process, which can be killed and started again on the same data."""

    def __init__(self, directory: Path, bank: DemoBank, network: Network) -> None:
        self.bank = bank
        self._log = directory / f"{bank.name}.log"
        self._network = network
        self._process: trio.Process

    async def start(self) -> None:
        command = [sys.executable, "-m", "switch", "serve", "-c", str(self.bank.config.path)]
        with serving.log_file(self._log) as errors:
            self._process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        host, port = (await serving.ready_line(self._process, self._log))["http"]
        entry = self._network.banks[self.bank.name]
        entry.base_url = f"http://{host}:{port}/transfiya/{self.bank.name}"

    async def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        return await self._process.wait()


async def test_ty_58_ty_63_processes_killed_under_traffic(tmp_path: Path) -> None:
    draw = random.Random(58)
    network = Network(time.time_ns, random.Random(7))
    network.bank_tries = 60  # a bank that starts again on a busy machine takes its time
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    banks = [await _make(tmp_path, name, n, port) for n, name in enumerate(("rojo", "verde"), 1)]
    for bank in banks:
        network.add_bank(
            BankEntry(
                bank.name, bank.signer, "", auth="oauth2", client_id=f"{bank.name}-client",
                client_secret=bank.secret, own_client_id=f"{bank.name}-client",
                own_client_secret=bank.secret,
            )
        )  # fmt: skip
        for alias, handle in bank.customers.items():
            network.add_customer(bank.name, handle, alias)
    processes = [Process(tmp_path, bank, network) for bank in banks]
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)

        async def serve() -> None:
            await serve_http(network, listener, stop=stop)

        nursery.start_soon(serve)
        for process in processes:
            await process.start()
        for number in range(TRANSFERS):
            payer, payee = (draw.choice(list(bank.customers)[:9]) for bank in banks)
            network.begin(payer, payee, f"{number + 1}.50")
            await trio.sleep(draw.random() * 0.2)
            if number % (TRANSFERS // KILLS) == 1:
                victim = draw.choice(processes)
                assert await victim.end(signal.SIGKILL) == -signal.SIGKILL
                await victim.start()
        with trio.move_on_after(LIMIT_S):
            for transfer in list(network.transfers.values()):
                await transfer.ended.wait()
            await trio.sleep(1.0)
        for process in processes:
            assert await process.end(signal.SIGTERM) == 0
        stop.set()
        nursery.cancel_scope.cancel()
    result = await _judge(network, banks, 1.0)
    assert result.problems == []
    assert result.transfers.get("COMPLETED", 0) >= 1
    assert sum(result.transfers.values()) == TRANSFERS
