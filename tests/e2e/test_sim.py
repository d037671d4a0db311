"""`troncal sim ceibo|bank|sicoop` as processes: the other side of a real switch."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.iso8583 import bank
from protocols.iso8583.connection import Connection, Received
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.times import transmission_time
from switch.cli.provision import opened
from switch.flows.states import CAPTURADA, RECHAZADA, REVERSADA, VENCIDA
from switch.provisioning import Provisioning
from tests.faults.apart import LINK, Three, three, through, till

READY_S = 120.0


class Sim:
    """A running simulator; `end` stops it and gives what it printed."""

    def __init__(self, process: trio.Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.told: dict[str, Any] = {}

    async def end(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        text = b""
        with trio.fail_after(READY_S):
            while data := await self.process.stdout.receive_some(65_536):
                text += data
            assert await self.process.wait() == 0
        self.told = json.loads(text)
        return self.told


@asynccontextmanager
async def sim(role: str, *arguments: str) -> AsyncIterator[Sim]:
    command = [sys.executable, "-m", "switch", "--json", "sim", role, *arguments]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = b""
        with trio.move_on_after(READY_S):
            while not line.endswith(b"\n") and (data := await process.stdout.receive_some(4096)):
                line += data
        assert line.startswith(b"ready "), line
        yield Sim(process, json.loads(line[6:]))
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()


def keys_file(directory: Path, keys: Mapping[str, str]) -> str:
    path = directory / "keys.json"
    path.write_text(json.dumps(keys))
    return str(path)


ENDS = (CAPTURADA, RECHAZADA, REVERSADA, VENCIDA)


async def settled(found: Three, operations: int) -> None:
    """Wait until so many operations have come to an end at sicoop, and nothing is owed."""
    with trio.fail_after(120):
        while True:
            at_sicoop = found.at_sicoop().values()
            ended = [o for o in at_sicoop if o.state in ENDS and not o.owed]
            if len(ended) == operations:
                return
            await trio.sleep(0.1)


async def test_sim_ceibo_behind_a_real_sicoop(tmp_path: Path, nursery: trio.Nursery) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\namount = 70_000\noperation = "hold"\nfault = "swallow"\n')
    async with three(tmp_path / "three", start=()) as found:
        host, port = found.apart.addresses["ceibo"]
        keys = keys_file(tmp_path, found.apart.host_keys)
        where = ("--listen", f"{host}:{port}", "--keys", keys, "--rules", str(rules))
        async with sim("ceibo", *where) as issuer:
            await found.start("sicoop", "red")
            one = await till(found, nursery)
            await through(one)
            assert (await one.cash_out(50_000)).instruction == "ENTREGUE"
            assert (await one.deposit(30_000)).instruction == "RECIBA"
            # The limits of a new node want multiples of 1000, so the amount can only approve;
            # a document declines as well.
            assert (await one.cash_out(50_000, "9000015")).code == "05"
            assert (await one.cash_out(70_000)).code == "91"
            await settled(found, 4)
            told = await issuer.end()
        await one.terminal.aclose()
    assert told["states"] == {"CAPTURADA": 2, "LIBERADA": 1, "RECHAZADA": 1}
    assert told["captured"] == {"cash_out": 50_000, "deposit": 30_000}
    assert told["faults"] == {"swallow": 1}
    assert one.cards[0].document not in json.dumps(told)


async def test_sim_ceibo_dials_the_switch(tmp_path: Path, nursery: trio.Nursery) -> None:
    """The host connects to us: sign-on and echo are its own to begin."""
    async with three(tmp_path / "three", start=(), toml={"sicoop": LINK}) as found:
        host, port = found.apart.addresses["ceibo"]
        async with opened(found.apart.configs["sicoop"]) as node:
            step = node.begin()
            values = {"name": "ceibo", "listen": f"{host}:{port}", "connect": ""}
            Provisioning(node).call(step, "host_change", values)
            node.end(step)
        await found.start("sicoop", "red")
        keys = keys_file(tmp_path, found.apart.host_keys)
        async with sim("ceibo", "--connect", f"{host}:{port}", "--keys", keys) as issuer:
            one = await till(found, nursery)
            await through(one)
            assert (await one.cash_out(50_000)).instruction == "ENTREGUE"
            await settled(found, 1)
            told = await issuer.end()
        await one.terminal.aclose()
    assert told["states"] == {"CAPTURADA": 1}


async def test_sim_sicoop_before_a_real_red(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with three(tmp_path / "three", start=()) as found:
        host, port = found.apart.addresses["sicoop"]
        key = {"peer": found.apart.network, "key": found.apart.network_key.key.hex()}
        where = ("--listen", f"{host}:{port}", "--keys", keys_file(tmp_path, key))
        async with sim("sicoop", *where, "--heartbeat", "1") as platform:
            await found.start("red")
            one = await till(found, nursery)
            await through(one)
            paid = await one.cash_out(50_000)
            assert (paid.code, paid.instruction) == ("00", "ENTREGUE")
            assert (await one.cash_out(50_051)).code == "51"
            late = one.request("cash_out", 40_000, "9000004")
            lost = await one.known(late, await one.ask(late))
            assert (lost.code, lost.state) == ("91", "ERROR")
            with trio.fail_after(120):
                while any(o.owed for o in found.at_red().values()):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            told = await platform.end()
        await one.terminal.aclose()
    assert told["states"] == {"CAPTURADA": 1, "LIBERADA": 1, "RECHAZADA": 1}
    assert told["faults"] == {"swallow": 1}


async def test_sim_bank(tmp_path: Path) -> None:
    keys = {"mac_key": bytes(16).hex(), "data_key": bytes(32).hex(), "zone_key": bytes(32).hex()}
    async with sim("bank", "--keys", keys_file(tmp_path, keys), "--fault", "duplicate") as host:
        stream = await trio.open_tcp_stream(*host.ready["bank"])
        host_keys = HostKeys.of("aes-cmac", [(1, bytes(16))], [(1, bytes(32))], [(1, bytes(32))])
        stans = iter(range(1, 1000))
        connection = Connection(
            Dialect.load("bank"), Framing(), host_keys, initiator=True,
            wall_ns=lambda: 1_795_359_600_000_000_000, next_stan=lambda: f"{next(stans):06}",
        )  # fmt: skip
        connection.sign_on()
        await stream.send_all(connection.output())
        events: list[Any] = []
        sent = False
        with trio.fail_after(120):
            while sum(isinstance(e, Received) for e in events) < 2:
                events += connection.receive(bytes(await stream.receive_some(65_536)))
                if connection.signed_on and not sent:
                    sent = True
                    card = bank.Card(pan="4507990000000010", expiry="2912")
                    purchase = bank.Purchase(
                        operation=f"{1:012}", amount=50_000, currency="PYG", card=card
                    )
                    mti, elements = bank.request_elements(purchase, institution="00000012")
                    stamp = {"7": transmission_time(1_795_359_600_000_000_000), "11": "000900"}
                    connection.request(mti, {**stamp, **elements})
                await stream.send_all(connection.output())
        await stream.aclose()
        told = await host.end()
    answers = [event.message for event in events if isinstance(event, Received)]
    assert [a["39"] for a in answers] == ["00", "00"]
    assert told["states"] == {"CAPTURADA": 1}
    assert told["faults"] == {"duplicate": 1}
    assert "4507990000000010" not in json.dumps(told)


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--fault", "explode"], 2, "explode"),
    (["--fault", "delay=soon"], 2, "seconds"),
    (["--rules", "{rules}"], 1, "rules.toml"),
    (["--dialect", "nothing"], 1, "nothing"),
    (["--dialect", "iso93-ascii"], 1, "39"),
    (["--mac", "rot13"], 1, "rot13"),
    (["--listen", "here"], 2, "HOST:PORT"),
])  # fmt: skip
def test_mistakes_are_told(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nfault = "drop"\nwhen = 1\n')
    secret = "5a" * 16
    keys = {"mac_key": secret, "data_key": "5b" * 32, "zone_key": "5c" * 32}
    shown = [argument.format(rules=rules) for argument in arguments]
    command = [sys.executable, "-m", "switch", "sim", "ceibo", "--keys", keys_file(tmp_path, keys)]
    done = subprocess.run([*command, *shown], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert secret not in done.stderr + done.stdout


def test_a_file_without_keys_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"mac_key": "zz"}')
    command = [sys.executable, "-m", "switch", "sim", "ceibo", "--keys", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "mac_key" in done.stderr
