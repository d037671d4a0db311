"""Webpay in storms: shops that accept, refuse, hang, drop and babble, a bank that does not hear, is
not heard or is away, holders who press twice, and a process that is gone at any of its steps.

A seed decides what happens. Then all is well again, and what the authoriser has, what the shop was
told, the Bitácora and the payments themselves must say one thing. `TRONCAL_SEED` is the first of
the seeds; `TRONCAL_FUZZ=1` runs many more.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from switch.flows import webpay_records as rec
from switch.flows.webpay import WebpayFlow
from switch.journal.store import Store
from tests import webpay_house
from tests.conftest import FUZZ
from tests.faults.steady import Trace, everything, steady
from tests.webpay_house import BAD_CARD, Acquirer, Bank, Page, Shop, card, pause, toml, until

FIRST = int(os.environ.get("TRONCAL_SEED", "0"))
STORMS = 30 * FUZZ if FUZZ else 2
CANARY_SEEDS = 12
LIVES = 3  # of the process, all but the last cut short
PAYMENTS = 5  # of each life
AMOUNT = 10_000
LONG_S = 31.0  # longer than any wait of a payment
CHARGED = "CONFIRMED"
WAYS = ("ledger", "bank")


class Gone(Exception):
    """The process is gone."""


class StormBank(Bank):
    """Honest books; what it is asked and what it says may be lost.

    Attributes:
        taken, given_back: operations, by number. deaf: questions without an answer, by place.
    """

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.calm = False
        self.taken: set[str] = set()
        self.given_back: set[str] = set()
        self.deaf: list[int] = []

    def request(
        self, mti: str, elements: Mapping[str, object], *, token: Any, budget_s: float
    ) -> str:
        self.up = self.calm or self.chance.random() > 0.1
        return super().request(mti, elements, token=token, budget_s=budget_s)

    def flush(self) -> None:
        due, self._unanswered = self._unanswered, []
        for place in due:
            message = self.asked[place][0]
            fate = 1.0 if self.calm else self.chance.random()
            if fate < 0.15:  # it never came
                self.deaf.append(place)
                continue
            operation = message["37"]
            code = ""
            if message.mti != "0200":
                self.given_back.add(operation)
            elif operation in self.given_back:
                code = "05"
            elif message["2"] != BAD_CARD:
                self.taken.add(operation)
            if fate < 0.35:  # its answer is lost
                self.deaf.append(place)
            else:
                self.answer(place, code)

    def time_out(self) -> None:
        """Whoever waits for an answer that was lost waits no longer."""
        due, self.deaf = self.deaf, []
        for place in due:
            self.lose(place)

    def forget_lines(self) -> None:
        """All connections are gone, with what was under way."""
        self.deaf.clear()
        self._unanswered.clear()


class Storm:
    """An acquirer over several lives, its shop and its bank."""

    def __init__(self, directory: Path, way: str, seed: int, clock: MockClock) -> None:
        self.chance = random.Random(f"{way} {seed}")
        self.clock = clock
        self.way = way
        self.bank = StormBank(random.Random(f"{way} {seed} bank"))
        self.shop = Shop(self.chance.choice(("kcc60", "direct")))
        self.shop.script = self._any
        self.directory = directory
        self.ends: dict[str, str] = {}
        self.calm = False
        self.orders = 0
        self.acquirer: Acquirer

    def open(self) -> None:
        text = toml(mode=self.shop.mode, authoriser=self.way, port=self.shop.port)
        self.acquirer = Acquirer(self.directory, self.shop, self.bank, text)

    def kill(self) -> None:
        """What is not durable is lost, and all connections."""
        node = self.acquirer.node
        node.store.journal.close(flush=False)
        node.store.close()
        self.bank.forget_lines()

    async def _any(self, stream: trio.SocketStream, data: bytes) -> None:
        """What the shop does with one notification."""
        shop = self.shop
        fate = self.chance.random()
        if self.calm or fate < 0.4:
            await shop.accept(stream, data)
        elif fate < 0.6:
            await shop.answer("ERR")(stream, data)
        elif fate < 0.75:
            await shop.silent(stream, data)
        elif fate < 0.9:
            await stream.send_all(b"HTTP/1.1 500 Ay\\r\\nContent-Length: 3\\r\\n\\r\\nay!")

    async def life(self, doom: tuple[int, bool] | None) -> None:
        """Payments, until the process is gone or all are made."""
        self.open()
        if doom is not None:
            self._doom(*doom)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.acquirer.run)
                nursery.start_soon(self._time)
                async with trio.open_nursery() as holders:
                    for _ in range(PAYMENTS):
                        self.orders += 1
                        holders.start_soon(self._pay, f"OC{self.orders}", self.chance.random())
                await self._settled()
                nursery.cancel_scope.cancel()
        except* Gone:
            assert doom is not None

    def _doom(self, at: int, after: bool) -> None:
        """At this step of a payment the process ends: before it is durable, or after."""
        node = self.acquirer.node
        perform = node.perform
        left = at

        async def counted(do: Callable[[Any], Any]) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Gone
            value = await perform(do)
            if left == 0:
                raise Gone
            return value

        node.perform = counted  # type: ignore[method-assign,assignment]

    async def _pay(self, order: str, seed: float) -> None:
        chance = random.Random(seed)
        entered: Any = await self.acquirer.enter(order, TBK_ID_TRANSACCION=order[2:])
        page = Page(self.acquirer, entered.page_id, entered.cookie)
        await self.acquirer.service.shown(page.page_id)
        if chance.random() < 0.1:
            return  # the holder walks away
        nonce = page.view.nonce
        chosen = card(BAD_CARD) if chance.random() < 0.2 else card()
        async with trio.open_nursery() as presses:
            for _ in range(chance.choice((1, 1, 2))):
                presses.start_soon(self.acquirer.service.pay, page.page_id, nonce, chosen)

    async def _time(self) -> None:
        while True:
            for _ in range(5):
                await pause()
                self._look()
            if not self.calm or self.chance.random() < 0.5:
                self.bank.time_out()
            self.clock.jump(self.chance.choice((0.1, 1.0, LONG_S)))

    def _look(self) -> None:
        """What was once final, and durable, is never anything else."""
        node = self.acquirer.node
        if node.gate or not node.store.flushed:
            return
        for payment in self.acquirer.payments():
            if payment.state in rec.FINAL:
                assert self.ends.setdefault(payment.id, payment.state) == payment.state

    async def _settled(self) -> None:
        acquirer = self.acquirer
        await until(lambda: all(p.state in ("CREATED", "FORM") for p in acquirer.unfinished()))

    async def conclude(self) -> None:
        """All is well; everything comes to its end."""
        self.calm = self.bank.calm = True
        self.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.acquirer.run)
            nursery.start_soon(self._time)
            await self._settled()
            flow, service = self.acquirer.flow, self.acquirer.service
            await until(lambda: service._writer.number == flow.newest_line)
            nursery.cancel_scope.cancel()
        self.acquirer.node.store.commit()
        self.acquirer.node.settle()
        self._look()
        self.judge()
        self.acquirer.close()

    def judge(self) -> None:
        payments = [p for p in self.acquirer.payments() if p.state in rec.FINAL]
        assert {p.id: p.state for p in payments} == self.ends
        confirmed = [p for p in payments if p.state == CHARGED]
        lines = self.acquirer.lines()
        assert len([line for line in lines if line == ("ACK", "0")]) == len(confirmed)
        assert self.acquirer.held() == 0
        if self.way == "ledger":
            assert self.acquirer.charged() == AMOUNT * len(confirmed)
        else:
            assert len(self.bank.taken - self.bank.given_back) == len(confirmed)
        assert self.acquirer.node.store.ledger.check() == []


def seen(store: Store) -> Iterator[tuple[int, bytes, bytes]]:
    """All records but digests of what was sealed: the padding of RSA is the library's own."""
    for space, key, value in everything(store):
        if space == rec.PAYMENTS:
            payment = rec.decode_payment(value)
            payment.request_digest = payment.answer_digest = b""
            yield space, key, repr(msgspec.to_builtins(payment)).encode()
        elif space not in (rec.REQUESTS, rec.REPLIES):
            yield space, key, value


async def steady_storm(directory: Path, way: str, seed: int, clock: MockClock) -> Trace:
    """One storm in which only the seed decides; what happened."""
    webpay_house.stored_keys()  # made once in a process, and then the same
    with steady(f"{way} {seed}", seen) as trace:
        made = await storm(directory, way, seed, clock)
    assert len(made.ends) >= LIVES
    return trace


async def storm(directory: Path, way: str, seed: int, clock: MockClock) -> Storm:
    """One storm, judged."""
    made = Storm(directory, way, seed, clock)
    await made.shop.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.shop.serve)
        for life in range(LIVES):
            last = life == LIVES - 1
            doom = None if last else (made.chance.randrange(5, 40), made.chance.random() < 0.5)
            await made.life(doom)
            made.kill()
        await made.conclude()
        nursery.cancel_scope.cancel()
    return made


@pytest.mark.parametrize("seed", range(FIRST, FIRST + STORMS))
@pytest.mark.parametrize("way", WAYS)
async def test_a_storm_leaves_one_end_for_each_payment_and_all_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, seed: int, mock_clock: MockClock
) -> None:
    monkeypatch.setattr(webpay_house, "KEY_SECONDS_MAX", 60.0)  # real ones, beside other work
    await steady_storm(tmp_path, way, seed, mock_clock)


# What a mistake would look like, and where the money has to show it.
CANARIES: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "a restart forgets what was begun": ("ledger", "adopt", lambda *_: None),
    "a sale that is undone stays at the bank": ("bank", "owed", lambda *_: None),
}


@pytest.mark.parametrize("canary", sorted(CANARIES))
async def test_planted_bugs_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, canary: str
) -> None:
    way, name, mistake = CANARIES[canary]
    monkeypatch.setattr(WebpayFlow, name, mistake)
    monkeypatch.setattr(webpay_house, "KEY_SECONDS_MAX", 2.0)
    for seed in range(CANARY_SEEDS):
        directory = tmp_path / str(seed)
        directory.mkdir()
        try:
            await storm(directory, way, seed, mock_clock)
        except (AssertionError, ExceptionGroup):
            return
    raise RuntimeError("no storm has found it")
