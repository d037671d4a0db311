"""The simulated issuer and bank, over their real codec: what they decide, and do to answers."""

import contextlib
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from protocols.iso8583 import bank
from protocols.iso8583.ceibo import request_elements
from protocols.iso8583.connection import Connection, Received, Refused
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.times import transmission_time
from protocols.iso8583.tokens import TokenSealer
from protocols.messages import (
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
    IssuerStatus,
)
from switch.simulators.host import IsoHost, Role
from switch.simulators.rules import FAULTS, UNDECIDED, Rule, Rules
from switch.simulators.server import Server

NOW_NS = 1_795_359_600_000_000_000
MAC_KEY, DATA_KEY, ZONE_KEY = bytes(range(16)), bytes(range(1, 33)), bytes(range(2, 34))
NETWORK = "0012"


def keys() -> HostKeys:
    return HostKeys.of("aes-cmac", [(1, MAC_KEY)], [(1, DATA_KEY)], [(1, ZONE_KEY)])


class Switch:
    """The other side: one connection, and what came over it."""

    def __init__(
        self, stream: trio.abc.Stream, dialect: Dialect, host_keys: HostKeys,
        framing: Framing | None = None,
    ) -> None:  # fmt: skip
        self.stream = stream
        self._stans = itertools.count(1)
        self.connection = Connection(
            dialect, framing or Framing(), host_keys, initiator=True, wall_ns=lambda: NOW_NS,
            next_stan=lambda: f"{next(self._stans):06}",
        )  # fmt: skip
        self.sealer = TokenSealer(DATA_KEY, 0)
        self.events: list[Any] = []
        self.ended = False

    async def run(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self.connection.sign_on()
            await self.stream.send_all(self.connection.output())
            while self.connection.closing is None:
                data = bytes(await self.stream.receive_some(65_536))
                if not data:
                    break
                self.events += self.connection.receive(data)
                await self.stream.send_all(self.connection.output())
        self.ended = True
        await trio.aclose_forcefully(self.stream)

    @property
    def answers(self) -> list[Any]:
        return [event.message for event in self.events if isinstance(event, Received)]

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(100):
            while not done():  # noqa: ASYNC110 (nothing signals it)
                await trio.sleep(0.01)

    async def send(self, mti: str, elements: Mapping[str, object]) -> None:
        stamped = {"7": transmission_time(NOW_NS), "11": f"{next(self._stans):06}"}
        self.connection.request(mti, {**stamped, **elements})
        await self.stream.send_all(self.connection.output())

    async def ask(self, message: Any, *, repeat: bool = False) -> Any:
        count = len(self.answers)
        token = getattr(message, "token", None)
        sealed = self.sealer.seal(token, message.operation) if isinstance(token, str) else ""
        await self.send(*request_elements(message, token_hex=sealed, repeat=repeat))
        await self.until(lambda: len(self.answers) > count or self.ended)
        return self.answers[-1] if len(self.answers) > count else None


class Bench:
    def __init__(self, nursery: trio.Nursery, role: Role, rules: tuple[Rule, ...]) -> None:
        self.nursery = nursery
        self.dialect = Dialect.load(role)
        self.host = IsoHost(
            role, self.dialect, Framing(), keys(), Rules(list(rules)), late_s=17,
            wall_ns=lambda: NOW_NS,
        )  # fmt: skip
        self.server = Server(self.host.converse)
        self.stopped: list[float] = []
        self.host.stop = self.stopped.append

    async def switch(self) -> Switch:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.server._accept, theirs)
        switch = Switch(ours, self.dialect, keys())
        self.nursery.start_soon(switch.run)
        await switch.until(lambda: switch.connection.signed_on)
        return switch


@pytest.fixture
def make(nursery: trio.Nursery) -> Callable[..., Bench]:
    return lambda *rules, role="ceibo": Bench(nursery, role, rules)


def hold(number: int, amount: int = 150_000, document: str = "4567890", **fields: Any
         ) -> IssuerHold:  # fmt: skip
    values: dict[str, Any] = {"kind": "cash_out", "token": "004512"} | fields
    return IssuerHold(
        network=NETWORK, operation=f"{number:012}", amount=amount, currency="PYG",
        terminal="00000017", branch="000017", cashier="000345", day=20_779, document_type="CI",
        document=document, **values,
    )  # fmt: skip


def capture(number: int, amount: int = 150_000, kind: Any = "cash_out") -> IssuerCapture:
    return IssuerCapture(NETWORK, f"{number:012}", kind, amount, "PYG")


def release(number: int, reason: str = "timeout", amount: int = 150_000) -> IssuerRelease:
    return IssuerRelease(NETWORK, f"{number:012}", "cash_out", amount, reason, "PYG")


def status(number: int) -> IssuerStatus:
    return IssuerStatus(NETWORK, f"{number:012}")


# ---- an issuer as it should be -------------------------------------------------------------------


async def test_an_issuer_holds_captures_and_releases(autojump_clock: Any, make: Any) -> None:
    bench = make()
    switch = await bench.switch()
    first = await switch.ask(hold(1))
    assert (first.mti, first["39"], len(first["38"])) == ("0110", "00", 6)
    assert (first["37"], first["4"]) == (f"{1:012}", "000000150000")
    again = await switch.ask(hold(1))
    assert (again["39"], again["38"]) == ("00", first["38"])
    assert (await switch.ask(hold(1, amount=150_100)))["39"] == "94"
    assert (await switch.ask(capture(1)))["39"] == "00"
    assert (await switch.ask(capture(1), repeat=True))["39"] == "00"
    assert (await switch.ask(release(1)))["39"] == "A3"
    assert (await switch.ask(release(1, "annulment")))["39"] == "00"
    assert (await switch.ask(hold(2)))["39"] == "00"
    assert (await switch.ask(release(2), repeat=True))["39"] == "00"
    assert (await switch.ask(capture(2)))["39"] == "21"
    assert (await switch.ask(release(3)))["39"] == "25"
    assert (await switch.ask(hold(3)))["39"] == "21"
    assert (await switch.ask(hold(4, amount=150_061)))["39"] == "61"
    assert (await switch.ask(capture(5)))["39"] == "25"
    entries = bench.host.book.entries
    states = [entries[f"{NETWORK}{n:012}"].state for n in (1, 2, 3, 4)]
    assert states == ["CAPTURADA", "LIBERADA", "TUMBA", "RECHAZADA"]
    assert entries[f"{NETWORK}{1:012}"].compensated


async def test_an_issuer_tells_states_and_holders(autojump_clock: Any, make: Any) -> None:
    bench = make()
    switch = await bench.switch()
    assert (await switch.ask(status(1)))["39"] == "25"
    await switch.ask(hold(1))
    told = await switch.ask(status(1))
    assert (told.mti, told["39"], told["48.10"]) == ("0610", "00", "ACTIVA")
    holder = await switch.ask(IssuerHolder("CI", "4567890", network=NETWORK))
    assert (holder["39"], holder["48.11"]) == ("00", "A*** M*** ROJAS")
    unknown = await switch.ask(IssuerHolder("CI", "9000012", network=NETWORK))
    assert unknown["39"] == "05"


async def test_an_issuer_refuses_what_is_not_sound(autojump_clock: Any, make: Any) -> None:
    bench = make()
    switch = await bench.switch()
    other = hold(1)
    mti, elements = request_elements(other, token_hex=switch.sealer.seal("004512", f"{2:012}"))
    await switch.send(mti, elements)  # the code of another operation
    await switch.until(lambda: len(switch.answers) == 1)
    assert switch.answers[0]["39"] == "63"
    sealed = switch.sealer.seal("004512", f"{1:012}")
    mti, elements = request_elements(other, token_hex=sealed)
    await switch.send(mti, {**elements, "7": transmission_time(NOW_NS - 62_000_000_000)})
    await switch.until(lambda: len(switch.answers) == 2)
    assert switch.answers[1]["39"] == "A5"
    del elements["48"]
    await switch.send(mti, elements)
    await switch.until(lambda: len(switch.answers) == 3)
    assert switch.answers[2]["39"] == "30"
    assert bench.host.book.entries == {}


async def test_magic_documents_of_captures_and_deposits(autojump_clock: Any, make: Any) -> None:
    bench = make()
    switch = await bench.switch()
    await switch.ask(hold(1, document="9000017"))
    codes = [(await switch.ask(capture(1), repeat=True))["39"] for _ in range(5)]
    assert codes == ["96", "96", "96", "00", "00"]
    await switch.ask(hold(2, document="9000018"))
    codes = [(await switch.ask(release(2), repeat=True))["39"] for _ in range(9)]
    assert codes == ["96"] * 8 + ["00"]
    await switch.ask(hold(3, document="9000019"))
    assert (await switch.ask(capture(3)))["39"] == "00"
    assert bench.host.book.entries[f"{NETWORK}{3:012}"].forced
    deposit: dict[str, Any] = {"kind": "deposit", "token": _ABSENT}
    credit = await switch.ask(hold(4, document="9000020", **deposit))
    assert (credit["39"], credit["48.11"]) == ("00", "A*** M*** ROJAS")
    assert (await switch.ask(capture(4, kind="deposit")))["39"] == "00"
    assert bench.host.book.entries[f"{NETWORK}{4:012}"].suspense


_ABSENT = IssuerHold.__struct_defaults__[-1]


# ---- and as it should not be ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"decline"}))
async def test_faults_of_answers(autojump_clock: Any, make: Any, name: Any) -> None:
    """Whatever happens on the way, the book says what was decided."""
    bench = make(Rule(fault=name, document="4000000"))
    switch = await bench.switch()
    first, second = hold(1, document="4000000"), hold(2)
    for message in (first, second):
        sealed = switch.sealer.seal(message.token, message.operation)
        await switch.send(*request_elements(message, token_hex=sealed))
    await trio.sleep(30)
    came = [int(answer["37"]) for answer in switch.answers]
    expected = {
        "delay": [2, 1], "late": [2, 1], "duplicate": [1, 1, 2], "out_of_order": [2, 1],
        "swallow": [2], "drop": [2], "close": [], "half_frame": [], "stop_after": [],
    }  # fmt: skip
    if name in ("garble", "garbage", "wrong_mac"):
        assert 1 not in came
        refused = [event.code for event in switch.events if isinstance(event, Refused)]
        assert refused[:1] in ([], ["63"], ["30"])
    else:
        assert came == expected.get(name, came)
    decided = f"{NETWORK}{1:012}" in bench.host.book.entries
    assert decided == (name not in UNDECIDED)
    assert bool(bench.stopped) == (name in ("refuse", "stop_before", "stop_after"))
    assert bench.host.rules.struck == {name: 1}


@pytest.mark.parametrize("seed", range(5))
async def test_any_bytes_are_survived(autojump_clock: Any, make: Any, seed: int) -> None:
    chance = random.Random(seed)
    bench = make()
    switch = await bench.switch()
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for _ in range(20):
            size = chance.randrange(1, 300)
            await switch.stream.send_all(size.to_bytes(2, "big") + chance.randbytes(size))
    other = await bench.switch()
    assert (await other.ask(hold(1)))["39"] == "00"


async def test_a_host_that_dials(nursery: trio.Nursery) -> None:
    """On sockets: it connects to us, signs on, and comes back after an absence."""
    dialect = Dialect.load("ceibo")
    host = IsoHost("ceibo", dialect, Framing(), keys(), Rules([Rule(fault="stop_after",
                   argument=0.05)]), wall_ns=lambda: NOW_NS)  # fmt: skip
    server = Server(host.converse)
    host.stop = server.stop
    stans = itertools.count(1)
    signed_on: list[Connection] = []

    async def accept(stream: trio.abc.Stream) -> None:
        connection = Connection(
            dialect, Framing(), keys(), initiator=False, wall_ns=lambda: NOW_NS,
            next_stan=lambda: f"{next(stans):06}",
        )  # fmt: skip
        with contextlib.suppress(trio.BrokenResourceError):
            while data := bytes(await stream.receive_some(65_536)):
                connection.receive(data)
                await stream.send_all(connection.output())
                if connection.signed_on and connection not in signed_on:
                    signed_on.append(connection)
                    sealed = TokenSealer(DATA_KEY, len(signed_on)).seal("004512", f"{1:012}")
                    mti, elements = request_elements(hold(1), token_hex=sealed)
                    stamp = {"7": transmission_time(NOW_NS), "11": f"{next(stans):06}"}
                    connection.request(mti, {**stamp, **elements})
                    await stream.send_all(connection.output())
        await trio.aclose_forcefully(stream)

    listeners = await nursery.start(trio.serve_tcp, accept, 0)
    port = listeners[0].socket.getsockname()[1]
    await nursery.start(server.dial, "127.0.0.1", port)
    with trio.fail_after(120):
        while len(signed_on) < 3:  # noqa: ASYNC110 (nothing signals it)
            await trio.sleep(0.01)
    assert host.book.dump()["states"] == {"ACTIVA": 1}
    assert host.book.entries[f"{NETWORK}{1:012}"].tries["hold"] >= 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["iso87-ascii", "iso87-binary", "iso87-ebcdic"])
async def test_other_dialects_are_spoken(
    autojump_clock: Any, nursery: trio.Nursery, name: str
) -> None:
    """A bank in any dialect of 1987, without MACs."""
    dialect = Dialect.load(name)
    framing = dialect.framing or Framing()
    no_keys = HostKeys.of("none", [])
    host = IsoHost("bank", dialect, framing, no_keys, Rules(), wall_ns=lambda: NOW_NS)
    server = Server(host.converse)
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(server._accept, theirs)
    switch = Switch(ours, dialect, no_keys, framing)
    nursery.start_soon(switch.run)
    await switch.until(lambda: switch.connection.signed_on)
    await switch.send("0200", {
        "2": "4507990000000010", "3": "000000", "4": "000000050051", "37": "000000000001",
        "41": "00000001", "49": "600",
    })  # fmt: skip
    await switch.until(lambda: bool(switch.answers))
    (answer,) = switch.answers
    assert (answer.mti, answer["39"], answer["11"]) == ("0210", "51", "000002")
    nursery.cancel_scope.cancel()


# ---- a bank --------------------------------------------------------------------------------------


async def test_a_bank_posts_purchases_and_undoes_them(autojump_clock: Any, make: Any) -> None:
    bench = make(role="bank")
    switch = await bench.switch()

    async def ask(message: Any, **options: Any) -> Any:
        count = len(switch.answers)
        await switch.send(*bank.request_elements(message, institution="00000012", **options))
        await switch.until(lambda: len(switch.answers) > count)
        return switch.answers[-1]

    card = bank.Card(pan="4507990000000010", expiry="2912", vci="TSY")
    purchase = bank.Purchase(operation=f"{1:012}", amount=50_000, currency="PYG", card=card)
    answer = await ask(purchase)
    assert (answer.mti, answer["39"], len(answer["38"])) == ("0210", "00", 6)
    undo = bank.Reversal(operation=f"{1:012}", amount=50_000, currency="PYG")
    assert (await ask(undo))["39"] == "00"
    assert (await ask(undo, repeat=True))["39"] == "00"
    assert (await ask(purchase))["39"] == "00", "the first answer again"
    other = bank.Reversal(operation=f"{2:012}", amount=50_000, currency="PYG")
    assert (await ask(other))["39"] == "25"
    poor = bank.Purchase(operation=f"{3:012}", amount=50_051, currency="PYG", card=card)
    assert (await ask(poor))["39"] == "51"
    states = bench.host.book.dump()["states"]
    assert states == {"LIBERADA": 1, "RECHAZADA": 1, "TUMBA": 1}
    assert "4507990000000010" not in str(bench.host.snapshot())


async def test_a_bank_holds_and_then_posts_or_lets_go(autojump_clock: Any, make: Any) -> None:
    bench = make(role="bank")
    switch = await bench.switch()

    async def ask(message: Any, **options: Any) -> tuple[str, str]:
        count = len(switch.answers)
        await switch.send(*bank.request_elements(message, institution="00000012", **options))
        await switch.until(lambda: len(switch.answers) > count)
        return switch.answers[-1].mti, switch.answers[-1]["39"]

    def debit(number: int) -> bank.Purchase:
        return bank.Purchase(
            operation=f"{number:012}", amount=50_000, currency="COP", account_from="1", hold=True
        )

    assert await ask(debit(1)) == ("0110", "00")
    assert await ask(debit(2)) == ("0110", "00")
    assert bench.host.book.dump()["states"] == {"ACTIVA": 2}
    assert await ask(debit(1), advice=True) == ("0230", "00")
    assert await ask(debit(1), advice=True, repeat=True) == ("0230", "00")
    undo = bank.Reversal(operation=f"{2:012}", amount=50_000, currency="COP")
    assert await ask(undo) == ("0430", "00")
    assert await ask(debit(2), advice=True) == ("0230", "21")
    assert bench.host.book.dump()["states"] == {"CAPTURADA": 1, "LIBERADA": 1}
