"""What simulators decide, and what they do to answers: magic values, rules, book, platform."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from protocols.messages import (
    AnnulRegistered,
    Confirm,
    Hold,
    NetworkAnswer,
    NetworkHolder,
    Reverse,
    Status,
    StatusAnswer,
)
from protocols.session import NETWORK, Initiator, PeerKey
from switch.clock import iso_ms
from switch.simulators import magic
from switch.simulators.book import Book
from switch.simulators.rules import FAULTS, UNDECIDED, Facts, Fault, Rule, RuleError, Rules
from switch.simulators.rules import whole_run as parsed
from switch.simulators.server import Server
from switch.simulators.sicoop import SicoopSimulator

KEY = PeerKey(bytes(range(32)))
NUMBER = "0012"
NOW_NS = 1_795_359_600_000_000_000

# ---- magic values --------------------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "code"), [
    (150_000, "00"), (100, "00"), (151, "51"), (1_055, "55"), (61, "61"), (65, "65"), (75, "75"),
    (91, "91"), (1, "05"), (99, "05"), (105, "05"), (21, "05"), (25, "05"), (30, "05"), (94, "05"),
])  # fmt: skip
def test_the_last_two_digits_of_an_amount_choose_the_code(amount: int, code: str) -> None:
    assert magic.code_of_amount(amount) == code


@pytest.mark.parametrize("document", [None, "", "4567890", "9000000", "9000021", "90000012", "X1"])
def test_other_documents_are_not_magic(document: str | None) -> None:
    assert magic.magic(document) is None
    assert magic.decision(document, "cash_out", 150_000) == "00"
    assert magic.fault(document, "hold") is None


@pytest.mark.parametrize(("last", "fault"), [
    (1, Fault("delay", "5")), (2, Fault("late", "17")), (3, Fault("drop")), (4, Fault("swallow")),
    (5, Fault("stop_before", "2")), (6, Fault("stop_after", "2")), (7, Fault("late", "17")),
    (8, Fault("refuse", "2")), (9, Fault("duplicate")), (10, Fault("out_of_order")),
    (11, Fault("garbage")), (12, None), (13, None), (14, None), (15, None), (16, None), (17, None),
    (18, None), (19, None), (20, None),
])  # fmt: skip
def test_documents_choose_what_goes_wrong_with_a_hold(last: int, fault: Fault | None) -> None:
    assert magic.fault(f"90000{last:02}", "hold", late_s=17) == fault


@pytest.mark.parametrize(("last", "cash_out", "deposit"), [
    (7, "05", "05"), (12, "55", "05"), (13, "00", "00"), (14, "55", "55"), (15, "05", "05"),
    (16, "75", "75"), (20, "00", "00"),
])  # fmt: skip
def test_documents_that_are_declined(last: int, cash_out: str, deposit: str) -> None:
    document = f"90000{last:02}"
    assert magic.decision(document, "cash_out", 150_000) == cash_out
    assert magic.decision(document, "deposit", 150_000) == deposit


@pytest.mark.parametrize(("last", "operation", "times"), [(17, "capture", 3), (18, "release", 8)])
def test_so_many_tries_fail(last: int, operation: str, times: int) -> None:
    document = f"90000{last:02}"
    failures = [magic.fault(document, operation, tries) for tries in range(times + 2)]
    assert failures == [Fault("decline", "96")] * times + [None] * 2
    assert magic.fault(document, "hold") is None


def test_holds_that_are_lost_and_credits_that_cannot_be_posted() -> None:
    assert magic.loses_hold("9000019")
    assert not magic.loses_hold("9000018")
    assert magic.never_posts("9000020")


# ---- rules ---------------------------------------------------------------------------------------

HOLD = Facts("0100", "hold", 150_000, "4567890")
CAPTURE = Facts("0220", "capture", 150_000)


def test_rules_match_what_they_say() -> None:
    rules = Rules([
        Rule(fault="drop", mti="0420"),
        Rule(fault="delay", argument=2.5, operation="capture"),
        Rule(fault="decline", argument="51", document="4567890", amount_min=100_000),
    ])  # fmt: skip
    assert rules.strike(HOLD) == Fault("decline", "51")
    assert rules.strike(Facts("0100", "hold", 99_999, "4567890")) is None
    found = rules.strike(CAPTURE)
    assert found is not None
    assert found.seconds == 2.5
    assert rules.strike(Facts("0420", "release", 1)) == Fault("drop")


def test_every_third_and_only_the_first_two() -> None:
    rules = Rules([Rule(fault="drop", every=3, first=2)])
    struck = [rules.strike(HOLD) is not None for _ in range(12)]
    assert struck == [False, False, True, False, False, True, *[False] * 6]


def test_chance_is_reproducible_and_about_right() -> None:
    def struck(seed: int) -> list[bool]:
        rules = Rules([Rule(fault="drop", probability=0.3)], seed)
        return [rules.strike(HOLD) is not None for _ in range(1000)]

    assert struck(5) == struck(5) != struck(6)
    assert 230 < sum(struck(5)) < 370


def test_a_rule_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        'seed = 3\n[[rule]]\noperation = "hold"\nfault = "late"\nargument = 4\n'
        '[[rule]]\nfault = "decline"\nargument = "61"\n'
    )
    rules = Rules.read(path, [parsed("drop")])
    assert rules.strike(HOLD) == Fault("late", "4")
    assert rules.strike(CAPTURE) == Fault("decline", "61")


@pytest.mark.parametrize("text", [
    "[[rule]]\n", '[[rule]]\nfault = "explode"\n', '[[rule]]\nfault = "drop"\nwhen = 3\n',
    '[[rule]]\nfault = "drop"\nevery = 0\n', '[[rule]]\nfault = "drop"\nprobability = 1.5\n',
    '[[rule]]\nfault = "delay"\nargument = "soon"\n', '[[rule]]\nfault = "delay"\nargument = -1\n',
    '[[rule]]\nfault = "decline"\nargument = "5"\n', '[[rule]]\nfault = "drop"\nargument = 1\n',
    '[[rule]]\nfault = "drop"\nmti = "100"\n', "rule = 3\n", "[[rule\n", "\xff",
])  # fmt: skip
def test_rule_files_that_make_no_sense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RuleError):
        Rules.read(path)


@pytest.mark.parametrize("text", ["explode", "delay=x", "delay=-1", "decline=123", "drop=1", ""])
def test_faults_of_the_command_line_that_make_no_sense(text: str) -> None:
    with pytest.raises(RuleError):
        parsed(text)


# ---- the book ------------------------------------------------------------------------------------

K = "0012260010000001"


def held(book: Book, code: str = "00", key: str = K, amount: int = 1000) -> str:
    return book.hold(
        key, kind="cash_out", amount=amount, document="4567890", body=(amount,), code=code
    )


def test_a_hold_is_decided_once() -> None:
    book = Book()
    assert (held(book), held(book, "51"), held(book, amount=2000)) == ("00", "00", "94")
    assert (book.capture(K, 999), book.capture(K, 1000), book.capture(K, 1000)) == (
        "94", "00", "00"
    )  # fmt: skip
    assert book.release(K, "cash_out", 1000) == "A3"
    assert book.annul(K, "cash_out", 1000) == "00"
    assert book.dump()["states"] == {"CAPTURADA": 1}
    assert book.dump()["captured"] == {}


def test_a_release_without_original_blocks_it() -> None:
    book = Book()
    assert (book.release(K, "cash_out", 1000), held(book)) == ("25", "21")
    assert book.capture(K, 1000) == "21"
    assert book.release(K, "cash_out", 1000) == "25"
    assert book.dump()["states"] == {"TUMBA": 1}


def test_declines_and_releases() -> None:
    book = Book()
    assert (held(book, "51"), book.capture(K, 1000)) == ("51", "25")
    assert book.release(K, "cash_out", 1000) == "25"
    other = "0012260010000002"
    assert (held(book, key=other), book.release(other, "cash_out", 1000)) == ("00", "00")
    assert book.release(other, "cash_out", 1000) == "00"
    assert book.capture(other, 1000) == "21"
    assert book.dump()["states"] == {"LIBERADA": 1, "RECHAZADA": 1}
    assert "4567890" not in str(book.dump())


# ---- the platform --------------------------------------------------------------------------------


class Network:
    """A red of the simplest kind: one session, and what came over it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.session = Initiator(vocabulary=NETWORK, peer=NUMBER, key=KEY, nonce=bytes(16))
        self.heard: list[Any] = []
        self.ended = False

    async def run(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_all(self.session.sign_on())
            while self.session.closing is None:
                data = bytes(await self.stream.receive_some(65_536))
                if not data:
                    break
                self.heard += self.session.receive(data)
                await self.stream.send_all(self.session.output())
        self.ended = True
        await trio.aclose_forcefully(self.stream)

    async def say(self, *messages: Any) -> None:
        await self.stream.send_all(self.session.encode(list(messages)))

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(100):
            while not done():  # noqa: ASYNC110 (nothing signals it)
                await trio.sleep(0.01)

    async def ask(self, message: Any) -> Any:
        count = len(self.heard)
        await self.say(message)
        await self.until(lambda: len(self.heard) > count or self.ended)
        return self.heard[-1] if len(self.heard) > count else None


class Bench:
    def __init__(self, nursery: trio.Nursery, *rules: Rule) -> None:
        self.nursery = nursery
        self.platform = SicoopSimulator({NUMBER: KEY}, Rules(list(rules)), wall_ns=lambda: NOW_NS)
        self.stopped: list[float] = []
        self.server = Server(self.platform.converse)
        self.platform.stop = self.stopped.append

    async def network(self) -> Network:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.server._accept, theirs)
        network = Network(ours)
        self.nursery.start_soon(network.run)
        await network.until(lambda: network.session.signed_on)
        return network


def reference(trace: int) -> str:
    return f"{NUMBER}0000000120261122{trace:06d}"


def hold(trace: int, amount: int = 150_000, document: str = "4567890", **fields: Any) -> Hold:
    values: dict[str, Any] = {"kind": "cash_out", "token": "004512", "currency": "PYG"} | fields
    return Hold(
        id=trace, reference=reference(trace), branch="17", cashier="345", document=document,
        amount=amount, sent_at=iso_ms(NOW_NS), **values,
    )  # fmt: skip


@pytest.fixture
def make(nursery: trio.Nursery) -> Callable[..., Bench]:
    return lambda *rules: Bench(nursery, *rules)


async def test_a_platform_as_it_should_be(autojump_clock: Any, make: Any) -> None:
    bench = make()
    network = await bench.network()
    answer = await network.ask(hold(1))
    assert (answer.id, answer.code, answer.key, answer.duplicate) == (1, "00", "APROBADA", False)
    assert (len(answer.operation), len(answer.authorization)) == (12, 6)
    again = await network.ask(hold(1))
    assert (again.code, again.operation, again.duplicate) == ("00", answer.operation, True)
    assert (await network.ask(hold(1, amount=150_100))).code == "94"
    assert (await network.ask(Status(5, reference(1)))).state == "RESPONDIDA"
    assert (await network.ask(Confirm(6, reference(1), ""))).code == "00"
    assert (await network.ask(Status(7, reference(1)))).state == "CAPTURADA"
    assert (await network.ask(AnnulRegistered(8, reference(1), 150_000, "900"))).code == "00"
    assert (await network.ask(Reverse(9, reference(2), 1000, "timeout"))).code == "25"
    assert (await network.ask(hold(2, amount=1000))).code == "21"
    assert (await network.ask(Confirm(10, reference(2), ""))).code == "A3"
    assert (await network.ask(Status(11, reference(3)))).state == "DESCONOCIDA"
    assert (await network.ask(NetworkHolder(12, "CI", "4567890"))).code == "00"
    assert (await network.ask(NetworkHolder(13, "CI", "9000012"))).code == "05"
    other = "0013" + reference(4)[4:]
    assert (await network.ask(Status(14, other))).code == "63"
    assert (await network.ask(hold(15, amount=150_051))).code == "51"
    dump = bench.platform.snapshot()
    assert dump["states"] == {"CAPTURADA": 1, "RECHAZADA": 1, "TUMBA": 1}
    assert dump["counters"]["hold"] == 5


async def test_a_clock_that_is_off_is_told_so(autojump_clock: Any, make: Any) -> None:
    bench = make()
    network = await bench.network()
    off = msgspec.structs.replace(hold(1), sent_at=iso_ms(NOW_NS - 61_000_000_000))
    answer = await network.ask(off)
    assert (answer.code, answer.time) == ("A5", iso_ms(NOW_NS))
    assert bench.platform.book.entries == {}


async def test_the_platform_asks(autojump_clock: Any, make: Any) -> None:
    bench = make()
    assert not bench.platform.ask(reference(1)), "nobody to ask"
    network = await bench.network()
    assert bench.platform.ask(reference(1))
    await network.until(lambda: bool(network.heard))
    (question,) = network.heard
    await network.say(StatusAnswer(question.id, "REGISTRADA", question.reference))
    await network.until(lambda: bool(bench.platform.states))
    assert bench.platform.states == {reference(1): "REGISTRADA"}


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"decline"}))
async def test_faults_of_answers(autojump_clock: Any, make: Any, name: Any) -> None:
    """Whatever happens on the way, the book says what was decided; other answers come."""
    bench = make(Rule(fault=name, document="4000000"))
    network = await bench.network()
    began = trio.current_time()
    await network.say(hold(1, document="4000000"))
    await network.say(hold(2))
    await network.until(lambda: bool(network.heard) or network.ended)
    await trio.sleep(30)
    ids = [answer.id for answer in network.heard if isinstance(answer, NetworkAnswer)]
    expected = {
        "delay": [2, 1], "late": [2, 1], "duplicate": [1, 1, 2], "out_of_order": [2, 1],
        "swallow": [2], "drop": [2], "close": [], "half_frame": [], "garble": [], "garbage": [],
        "wrong_mac": [], "stop_after": [],
    }  # fmt: skip
    assert ids == expected.get(name, ids)
    assert network.ended == (not expected.get(name, [1]))
    decided = reference(1) in bench.platform.book.entries
    assert decided == (name not in UNDECIDED)
    assert bool(bench.stopped) == (name in ("refuse", "stop_before", "stop_after"))
    assert bench.platform.rules.struck == {name: 1}
    assert trio.current_time() - began >= 30


async def test_a_decline_is_kept_like_any_decision(autojump_clock: Any, make: Any) -> None:
    bench = make(Rule(fault="decline", argument="61", first=1))
    network = await bench.network()
    assert (await network.ask(hold(1))).code == "61"
    assert (await network.ask(hold(1))).code == "61"
    assert (await network.ask(hold(2))).code == "00"


async def test_failing_captures_are_declined_so_often(autojump_clock: Any, make: Any) -> None:
    bench = make()
    network = await bench.network()
    await network.ask(hold(1, document="9000017"))
    codes = [(await network.ask(Confirm(n, reference(1), ""))).code for n in range(2, 7)]
    assert codes == ["96", "96", "96", "00", "00"]
    assert bench.platform.book.entries[reference(1)].state == "CAPTURADA"


async def test_a_peer_that_stops_comes_back_with_its_memory(nursery: trio.Nursery) -> None:
    """On a socket: all connections end, none is accepted for a while, the port stays."""
    platform = SicoopSimulator({NUMBER: KEY}, Rules([Rule(fault="stop_after", argument=1.5)]))
    server = Server(platform.converse)
    platform.stop = server.stop
    host, port = await nursery.start(server.listen, "127.0.0.1", 0)
    platform.wall_ns = lambda: NOW_NS
    network = Network(await trio.open_tcp_stream(host, port))
    nursery.start_soon(network.run)
    await network.until(lambda: network.session.signed_on)
    assert await network.ask(hold(1)) is None
    assert network.ended
    with pytest.raises(OSError, match=r"."):
        await trio.open_tcp_stream(host, port)
    stream = None
    while stream is None:
        with contextlib.suppress(OSError):
            stream = await trio.open_tcp_stream(host, port)
        await trio.sleep(0.05)
    again = Network(stream)
    nursery.start_soon(again.run)
    await again.until(lambda: again.session.signed_on)
    assert (await again.ask(Status(1, reference(1)))) is None, "each message stops it"
    assert platform.book.entries[reference(1)].state == "ACTIVA"
    assert (server.absences, server.accepted) == (2, 2)
    nursery.cancel_scope.cancel()


def test_shares_of_chance_do_not_depend_on_other_rules() -> None:
    chance = random.Random(1)
    facts = [chance.choice([HOLD, CAPTURE]) for _ in range(100)]
    rules = Rules([Rule(fault="drop", operation="capture"), Rule(fault="delay", every=2)])
    struck = [rules.strike(f) for f in facts]
    assert sum(s == Fault("drop") for s in struck) == facts.count(CAPTURE)
