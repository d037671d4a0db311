"""An acquirer in a process of its own, to be killed: `born` makes it.

It plays one payment from the request on, against a shop in the test's process, and kills itself by
SIGKILL where it is told to: when an event of the journal is durable, before or after what that lets
out. Run again without, it recovers, waits until nothing is open, and prints what there is.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import trio

from switch.flows.step import Step
from tests.webpay_house import (
    Acquirer,
    Bank,
    Page,
    Shop,
    card,
    request_pairs,
    sealed_request,
    until,
)


class FileBank(Bank):
    """A bank that outlives the process: every message is in a file before it is answered."""

    def __init__(self, path: Path, silent: bool) -> None:
        super().__init__()
        self._path = path
        self._silent = silent

    def request(
        self, mti: str, elements: Mapping[str, object], *, token: Any, budget_s: float
    ) -> str:
        refused = super().request(mti, elements, token=token, budget_s=budget_s)
        with self._path.open("a") as file:
            json.dump({"mti": mti, "operation": elements["37"]}, file)
            file.write("\n")
        if self._silent and mti == "0200":
            self._unanswered.pop()
        return refused


class Killer:
    """Ends the process when an event of any payment is durable."""

    def __init__(self, acquirer: Acquirer, event: str, when: str) -> None:
        self._acquirer = acquirer
        self._event = event
        self._when = when
        self._seq: int | None = None
        node = acquirer.node
        self._end, self._release = node.end, node.gate.release
        node.end = self._ended  # type: ignore[method-assign]
        node.gate.release = self._released  # type: ignore[method-assign]

    def _ended(self, step: Step) -> None:
        self._end(step)
        if self._seq is None:
            events = [e for p in self._acquirer.payments() for e, _ in p.history]
            if self._event in events:
                self._seq = self._acquirer.node.store.journal.next_seq - 1

    def _released(self, durable_seq: int, *more: Any) -> int:
        due = self._seq is not None and durable_seq >= self._seq
        if due and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        count = self._release(durable_seq, *more)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return count


async def main(told: dict[str, Any]) -> None:
    directory = Path(told["directory"])
    shop = Shop(told["mode"])
    shop.port = told["port"]
    bank = FileBank(directory / "bank.jsonl", silent=told.get("silent", False))
    acquirer = Acquirer(directory, shop, bank, (directory / "troncal.toml").read_text())
    if told.get("event"):
        Killer(acquirer, told["event"], told["when"])
    async with trio.open_nursery() as nursery:
        await nursery.start(acquirer.run)
        if told.get("pay"):
            await pay(acquirer, told)
        await until(lambda: all(p.state in ("CREATED", "FORM") for p in acquirer.unfinished()))
        flow, service = acquirer.flow, acquirer.service
        await until(lambda: service._writer.number == flow.newest_line and not service._lines)
        await until(lambda: acquirer.keys_left() == 0)
        print(json.dumps(acquirer.summary()), flush=True)
        nursery.cancel_scope.cancel()
    acquirer.close()


async def pay(acquirer: Acquirer, told: dict[str, Any]) -> None:
    """Pay; the browser keeps its request, and brings it again where `resume` is told."""
    kept = acquirer.directory / "request.json"
    if told.get("resume"):
        fields = json.loads(kept.read_text())
    else:
        fields = sealed_request(request_pairs(told.get("order", "OC1"), acquirer.shop.port))
        kept.write_text(json.dumps(fields))
    entered: Any = await acquirer.service.enter(fields, "127.0.0.1")
    page = Page(acquirer, entered.page_id, entered.cookie)
    await acquirer.service.shown(page.page_id)
    await page.pay(card(told.get("card", "4051885600446623"), kind=told.get("kind", "C")))
    if told.get("kind") == "D":
        await page.authenticate("TSY")


def _life(told: dict[str, Any], said: str) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    trio.run(main, told)


def born(told: dict[str, Any], said: Path) -> BaseProcess:
    """Start one; what it prints goes to a file. All are forked off one that has imported this."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.webpay_child"])
    process = context.Process(target=_life, args=(told, str(said)))
    process.start()
    return process
