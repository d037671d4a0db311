"""terminal → red → sicoop → ceibo, each a process of its own, over real sockets.

What one process does for all roles must hold over three: the same answers, the same instructions,
and money that agrees to the last guaraní. Whoever is killed whenever: `tests.faults.torture`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import trio

from switch import admin
from switch.journal.agreement import agreement
from switch.journal.verify import verify
from tests.faults.apart import BALANCE, Three, Till, three, through, till


async def test_operations_from_end_to_end(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A cash_out, a deposit, marks, declines, annulments, repeats; then what they leave behind."""
    async with three(tmp_path) as found:
        one = await till(found, nursery)
        await through(one)
        await _holder(one)
        await _operations(one)
        await _repeats(one)
        agreed = await found.agreed()
        assert agreed.amounts["ceibo"] == one.paid == {"cash_out": 50_000, "deposit": 70_000}
        assert agreed.operations == {
            "ANULADA": 2, "ENTREGADA": 1, "RECHAZO_REGISTRADO": 2, "REGISTRADA": 2
        }  # fmt: skip
        assert agreed.position == (20_000, 20_000)
        await one.terminal.aclose()
        for role in ("red", "sicoop", "ceibo"):
            await _leaves_no_secret(found, one, role)


async def _holder(one: Till) -> None:
    assert await one.holder(one.cards[0].document) == "00"
    assert await one.holder("9999999") == "05"


async def _operations(one: Till) -> None:
    paid = await one.cash_out(50_000)
    assert (paid.code, paid.instruction, paid.state) == ("00", "ENTREGUE", "REGISTRADA")
    assert paid.ticket
    assert (await one.delivered()).state == "ENTREGADA"
    taken = await one.deposit(30_000)
    assert (taken.code, taken.instruction) == ("00", "RECIBA")
    poor = await one.cash_out(BALANCE + 500_000)
    assert (poor.code, poor.instruction, poor.state) == ("51", "NO_ENTREGUE", "RECHAZO_REGISTRADO")
    wrong = one.request("cash_out", 10_000, "9999999")
    answer = await one.known(wrong, await one.ask(wrong))
    assert (answer.code, answer.key) == ("55", "CODIGO")
    second = await one.cash_out(20_000)
    assert second.code == "00"
    undone = await one.annul(one.trace)
    assert (undone.code, undone.state, undone.instruction) == ("00", "ANULADA", "NO_ENTREGUE")
    credit = await one.deposit(40_000)
    assert credit.code == "00"
    await one.delivered()
    undone = await one.annul(one.trace)
    assert (undone.code, undone.state, undone.instruction) == ("00", "ANULADA", "DEVUELVA")


async def _repeats(one: Till) -> None:
    """The same request again gets its answer again, another body under its trace none."""
    request = one.request("deposit", 40_000)
    first = await one.known(request, await one.ask(request))
    again = await one.ask(request)
    assert (again.duplicate, again.operation) == (True, first.operation)
    assert (await one.ask(msgspec.structs.replace(request, amount=31_000))).code == "94"


async def _leaves_no_secret(found: Three, one: Till, role: str) -> None:
    """Exit code 0, a log without a document or a key, and a directory that verifies."""
    assert await found.stop(role) == 0, found.tail(role)
    text = found.apart.log(role).read_text()
    assert "Traceback" not in text
    for card in one.cards:
        assert card.document not in text
    config = found.apart.configs[role]
    report = await trio.to_thread.run_sync(verify, config, config.data)
    assert report.ok, report.problems
    for path in config.path.parent.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for value in found.apart.host_keys.values():
            assert bytes.fromhex(value) not in data
            assert value.encode() not in data


async def test_idle_links_stay_up(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Echoes are signs of life on both sides of a hop, also for the side that does not ask."""
    quick = "[links.sicoop]\necho_interval_s = 0.4\n"
    async with three(tmp_path, toml={"ceibo": quick}) as found:
        one = await till(found, nursery)
        await through(one)
        await trio.sleep(3)
        for role in ("red", "sicoop", "ceibo"):
            rows = await admin.call(found.apart.configs[role].data, "links", {})
            assert [row["state"] for row in rows] == ["UP"], rows
            assert [c["echoes_missed"] for row in rows for c in row["connections"]] == [0]
            assert not found.events(role, "connection_degraded")
        await one.terminal.aclose()


async def test_a_story_that_does_not_agree_is_told(tmp_path: Path, nursery: trio.Nursery) -> None:
    """The comparison that everything here rests on finds what is missing at one of the three."""
    async with three(tmp_path / "one") as found:
        one = await till(found, nursery)
        await through(one)
        await one.cash_out(50_000)
        await found.agreed()
        await one.terminal.aclose()
        configs = found.apart.configs
    async with three(tmp_path / "two", start=()) as other:
        empty = other.apart.configs
    for role in ("red", "sicoop", "ceibo"):
        mixed = configs | {role: empty[role]}
        assert not agreement(**mixed).ok, f"nothing at {role}"
    assert agreement(**configs).ok
    assert agreement(**empty).ok


def test_demo_apart(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "switch", "--json", "demo", "--apart", "--seconds", "2"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--terminals", "4"], capture_output=True, text=True, timeout=240,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ok"]
    assert told["approved"] > 0
    assert [p["role"] for p in told["processes"]] == ["red", "sicoop", "ceibo"]
    assert told["amounts"]["red"] == told["amounts"]["sicoop"] == told["amounts"]["ceibo"]
    assert (told["holds_open"], sum(told["unfinished"].values())) == (0, 0)
    assert list(tmp_path.iterdir()) == [], "a good demo leaves nothing behind"
