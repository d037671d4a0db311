"""Deposits on the straight way and in the flows come to the same; so do names and meters."""

import random
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from core_ext import Ledger
from core_ext._deposit import DepositRules, account_id, masked_name
from protocols.messages import Delivered, Deposit
from switch.flows.norms import mask_name
from switch.flows.ticket import ascii_text
from switch.ops.keys import from_base32
from tests.conftest import FUZZ
from tests.house import BRANCH, DEFAULT_LIMITS, NETWORK, TERMINAL, Holder, House
from tests.twins import PHONE, PLAIN_TERMINAL, SHARED_PHONE, Pair, Traffic, built, drive

SEEDS = range(4 * FUZZ if FUZZ else 2)
TURNS = 400 if FUZZ else 60
NAMES = (
    "José Ñandutí Ávalos", "Ana", "Li Wu", "  Éva   von der Recke zu Horst ", "AN*** GO***",
    "Ørsted Þór", "Weiß Ola", "Ğül Ö", "DʼAngelo X", 'A"B Q\\', "", "Ana\u00a0María", "***",
)  # fmt: skip


class Counter(Pair):
    """Twins with holders of many names."""

    def _provision(self, house: House) -> list[Holder]:
        holders = super()._provision(house)
        for number, name in enumerate(NAMES):
            document = str(7_000_000 + number)
            made = house.do("card_add", document=document, name=name, balance=100_000)
            house._start[made["card"]] = 100_000
            holders.append(Holder(made["card"], from_base32(made["seed"]), document, 100_000))
        # A person with a card of choice among three, and a card that may not hold much.
        several = "7100001"
        for values in ({}, {"default": True}, {"kinds": ["deposit"]}):
            made_one = house.add_card(document=several, balance=1_000, **values)
            holders.insert(-len(NAMES), made_one)
        self.capped = house.add_card(document="7100002", balance=1_000, max_balance=300_000)
        return holders

    def deposit(self, holder: Holder, **fields: Any) -> Deposit:
        values: dict[str, Any] = {
            "trace": self.straight.trace(), "cashier": "345", "document": holder.document,
            "amount": 50_000, "currency": "PYG",
        } | fields  # fmt: skip
        return Deposit(**{name: value for name, value in values.items() if value is not None})

    @property
    def deposits(self) -> int:
        """How many were decided natively."""
        assert self.flows.node.straight.core.deposit_counts["decided"] == 0
        return self.straight.node.straight.core.deposit_counts["decided"]

    @property
    def counts(self) -> dict[str, int]:
        """What became of all others."""
        counts = self.straight.node.straight.core.deposit_counts
        return {why: count for why, count in counts.items() if count}

    def compare(self) -> None:
        super().compare()
        one, other = (house.node.sicoop for house in self.houses)
        assert one.alarmed == other.alarmed


class DepositTraffic(Traffic):
    """Mostly deposits, with all their fields, good and bad."""

    pair: Counter

    def request(self) -> tuple[str, Any]:
        if self.random.random() < 0.7:
            made = self.random.choice(self.TERMINALS), self.deposit()
            self.sent.append(made)
            return made
        return super().request()

    def deposit(self) -> Deposit:
        pick, pair = self.random, self.pair
        holder = pick.choice([*pair.holders, pair.capped])
        fields: dict[str, Any] = {"amount": pick.choice(self.AMOUNTS)}
        person = pick.random()
        if holder in pair.holders[9:12] and person < 0.8:
            phone = PHONE if holder is pair.holders[9] else SHARED_PHONE
            fields |= {"document": None, "phone": phone.replace("+595", pick.choice(("0", "+595")))}
        elif person < 0.04:
            fields["document"] = pick.choice(("12345", "9999999", "AB12345", "4567-90"))
        elif person < 0.07:
            fields |= {"document_type": pick.choice(("CI", "RUC", "PAS"))}
        elif person < 0.09:
            fields |= {"phone": PHONE}
        way = pick.random()
        if way < 0.15:
            fields["card"] = pick.choice((holder.card, pick.choice(pair.holders).card, "no", "é"))
        elif way < 0.3:
            fields["depositor"] = pick.choice(
                (
                    "CI4567890",
                    "CI1234567",
                    "CI7000001",
                    "RUC800000-1",
                    "PASX123456",
                    "CI12",
                    "XX123456",
                )
            )
        elif way < 0.34:
            fields["declaration"] = pick.choice(({"origin": "venta"}, {"name": "x"}, {}))
        elif way < 0.36:
            fields["token"] = "123456"
        place = pick.random()
        if place < 0.1:
            fields["cashier"] = pick.choice(("1", "000777", "777", "000000", "345678"))
        elif place < 0.16:
            fields["branch"] = pick.choice(("17", BRANCH, "21", "000099"))
        elif place < 0.18:
            fields["currency"] = pick.choice(("USD", "XXX"))
        return pair.deposit(holder, **fields)

    def requests(self) -> list[tuple[str, Any]]:
        """Now and then the cap moves close to the position, or away from it."""
        if self.random.random() < 0.1:
            network = self.pair.straight.node.registry.network(NETWORK)
            assert network is not None
            balance = self.pair.straight.node.sicoop.position(network)
            if balance is not None:
                used = max(balance.debits_posted - balance.credits_posted, 0)
                cap = self.random.choice((100_000_000, 200_000, used * 100 // 79 + 300_000))
                self.pair.do("network_caps", number=NETWORK, net_debit_cap=cap)
        return super().requests()


Build = Callable[..., Counter]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    yield from built(tmp_path, Counter)


def declared(scope: str, window: str, threshold: str) -> str:
    return f"""
[declarations.{scope}_{window}]
scope = "{scope}"
window = "{window}"
threshold = "{threshold} PYG"
"""


def counted(scope: str, window: str, most: str, count: int) -> str:
    return f"""
[limits.{scope}_{window}]
scope = "{scope}"
kind = "deposit"
window = "{window}"
max = "{most} PYG"
max_count = {count}
"""


NIGHT = '[business]\nnight_from = "11:00"\nnight_until = "12:30"\n'
SETTINGS: dict[str, dict[str, str]] = {
    "usual": {},
    "nothing counted": {"limits": DEFAULT_LIMITS[: DEFAULT_LIMITS.index("[declarations")]},
    "declarations": {
        "limits": DEFAULT_LIMITS + declared("branch", "day", "3000000")
        + declared("depositor", "calendar_week", "900000")
        + declared("network", "calendar_month", "9000000"),
    },
    "to be declared": {
        "limits": DEFAULT_LIMITS + declared("depositor", "calendar_month", "700000"),
        "toml": '[watch]\nstructuring = "declare"\nstructuring_percent = 50\n',
    },
    "not told": {
        "limits": DEFAULT_LIMITS + declared("depositor", "calendar_month", "700000"),
        "toml": '[watch]\nstructuring = "off"\n',
    },
    "counted": {
        "limits": DEFAULT_LIMITS + counted("terminal", "day", "4000000", 20)
        + counted("cashier", "calendar_week", "6000000", 0)
        + counted("branch", "calendar_month", "8000000", 0)
        + counted("depositor", "day", "600000", 4) + counted("network", "day", "20000000", 0)
        + counted("card", "day", "900000", 5),
    },
    "night": {
        "limits": DEFAULT_LIMITS + counted("depositor", "night", "150000", 2), "toml": NIGHT,
    },
    "tiers": {
        "limits": DEFAULT_LIMITS + """
[limits.gold]
scope = "card"
kind = "deposit"
window = "operation"
max = "100000 PYG"
tier = "gold"
""",
        "toml": '[business]\ntiers = ["basic", "gold"]\n',
    },
    "cut_off": {"toml": '[business]\ncut_off = "18:00"\n'},
}  # fmt: skip
LEFT_ALONE: dict[str, dict[str, str]] = {
    "loops": {"toml": "[watch]\nloop_minutes = 10\n"},
    "commission": {"toml": "[commissions]\ndeposit = 700\n"},
    "listed": {"toml": '[node]\ncashiers = "listed"\n'},
    "persons": {"limits": DEFAULT_LIMITS + counted("person", "day", "9000000", 0)},
    "thresholds": {
        "limits": DEFAULT_LIMITS + "".join(
            declared(scope, window, "9000000")
            for scope in ("depositor", "terminal", "cashier", "branch", "network")
            for window in ("day", "night", "calendar_week", "calendar_month")
        ),
        "toml": NIGHT,
    },
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_random_deposits_come_to_the_same(build: Build, name: str, seed: int) -> None:
    pair = build(**SETTINGS[name])
    drive(pair, seed, TURNS, DepositTraffic(pair, seed))
    assert pair.deposits > min(TURNS / 12, 15), pair.counts  # thresholds of a month fill up


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_the_configuration_makes_unusual_is_left_to_the_flows(build: Build, name: str) -> None:
    pair = build(**LEFT_ALONE[name])
    drive(pair, 1, TURNS // 3, DepositTraffic(pair, 1))
    assert pair.deposits == 0


def warm(pair: Counter) -> None:
    """The flows make the accounts of a network with its first operation."""
    pair.turn([(PLAIN_TERMINAL, pair.deposit(pair.holders[3]))])
    assert pair.deposits == 0


def told(pair: Counter, message: Any, terminal: str = PLAIN_TERMINAL) -> Any:
    [[answer]] = pair.turn([(terminal, message)])
    return answer


def test_the_common_one_takes_the_straight_way(build: Build) -> None:
    pair = build()
    warm(pair)
    for holder in pair.holders[3:6]:
        for terminal in (TERMINAL, PLAIN_TERMINAL):
            for fields in ({}, {"depositor": "CI3000111"}, {"card": holder.card}):
                assert told(pair, pair.deposit(holder, **fields), terminal).code == "00"
    assert told(pair, pair.deposit(pair.holders[9], document=None, phone=PHONE)).code == "00"
    assert pair.deposits == 19, pair.counts


def test_a_mark_of_receipt_is_the_same(build: Build) -> None:
    pair = build()
    warm(pair)
    message = pair.deposit(pair.holders[4])
    assert told(pair, message).instruction == "RECIBA"
    assert told(pair, Delivered(original=message.trace)).text == "Ya recibida."


def test_an_alarm_about_the_cap_is_given_by_the_flows(build: Build) -> None:
    """79 % and 80 % of the cap, and once more where the cap has moved."""
    pair = build()
    warm(pair)
    pair.do("network_caps", number=NETWORK, net_debit_cap=1_000_000)
    alarms = pair.straight.node.alarms
    expected = [(740_000, 0, 1), (9_000, 0, 2), (1_000, 1, 2), (1_000, 1, 3), (98_000, 1, 4)]
    for amount, told_so_far, decided in expected:
        assert told(pair, pair.deposit(pair.holders[5], amount=amount)).code == "00"
        assert alarms.get("position", 0) == told_so_far, amount
        assert pair.deposits == decided, (amount, pair.counts)
    assert told(pair, pair.deposit(pair.holders[5], amount=1_000)).code == "00"  # 900,000
    assert (alarms["position"], pair.deposits) == (2, 4)
    assert pair.counts["cap"] == 2


def test_a_threshold_is_left_to_the_flows(build: Build) -> None:
    pair = build(limits=DEFAULT_LIMITS.replace("10000 usd", "1000000 PYG"))
    warm(pair)
    holder = pair.holders[5]
    for amount, decided in ((300_000, 1), (500_000, 2), (10_000, 2), (189_000, 2), (1_000, 2)):
        answer = told(pair, pair.deposit(holder, amount=amount))
        assert answer.code == ("A4" if amount == 1_000 else "00")
        assert pair.deposits == decided, amount
    assert pair.straight.node.alarms["structuring"] == 2
    assert pair.counts["count"] == 3


def test_a_repeat_within_one_turn_is_found(build: Build) -> None:
    pair = build()
    warm(pair)
    message = pair.deposit(pair.holders[4])
    answers = pair.turn([(PLAIN_TERMINAL, message), (PLAIN_TERMINAL, message)])
    assert [answer.duplicate for [answer] in answers] == [False, True]
    assert pair.deposits == 1


def test_a_ledger_without_room_for_an_account_is_left_to_the_flows(build: Build) -> None:
    pair = build(toml="[ledger]\naccounts_max = 1000\n")
    warm(pair)
    codes: list[str] = []
    for turn in range(11):
        messages = [
            pair.deposit(
                pair.holders[3 + n % 4], amount=1_000, depositor=f"CI{50_000 + 100 * turn + n}"
            )
            for n in range(100)
        ]
        answers = pair.turn([(PLAIN_TERMINAL, message) for message in messages])
        codes += [answer.code for [answer] in answers]
    assert codes == ["00"] * pair.deposits + ["91"] * (1100 - pair.deposits)
    assert 900 < pair.deposits < 1000


def test_a_crash_after_straight_ones_loses_nothing_that_was_told(build: Build) -> None:
    pair = build()
    warm(pair)
    last = pair.deposit(pair.holders[6], depositor="CI3000111")
    first = told(pair, last)
    for house in pair.houses:
        house.crash()
    pair.compare()
    again = told(pair, last)
    assert (again.operation, again.authorization) == (first.operation, first.authorization)
    assert again.duplicate


def test_every_name_is_masked_as_in_the_flows(build: Build) -> None:
    pair = build()
    warm(pair)
    for holder in pair.holders[-len(NAMES) :]:
        for terminal in (TERMINAL, PLAIN_TERMINAL):
            assert told(pair, pair.deposit(holder), terminal).code == "00"
    assert pair.counts["name"] >= 4
    assert pair.deposits >= 12


DIGITS = st.text("0123456789", min_size=1, max_size=9)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "cashier": st.sampled_from(("000777", "1")) | DIGITS,
    "amount": st.sampled_from((50_000, 5_000_000)) | st.integers(1, 10**12 - 1),
    "currency": st.sampled_from(("USD", "ZZZ")),
    "document": st.sampled_from((None, "4567893", "7100001", "7000000")) | DIGITS,
    "phone": st.sampled_from((PHONE, "0981000001", SHARED_PHONE))
    | st.text("+0123456789", min_size=6, max_size=20),
    "document_type": st.sampled_from(("CI", "RUC", "PAS")),
    "card": st.sampled_from(("card-000001", "card-000005")) | st.text(min_size=1, max_size=32),
    "depositor": DIGITS.map("CI{}".format) | st.text(min_size=7, max_size=15),
    "branch": st.sampled_from((BRANCH, "17")) | DIGITS,
    "declaration": st.dictionaries(st.sampled_from(("origin", "name")), st.text(max_size=9)),
    "token": st.just("123456"),
}
SOME = st.lists(
    st.sampled_from(sorted(CHANGES)).flatmap(lambda name: st.tuples(st.just(name), CHANGES[name])),
    max_size=3,
)


def test_whatever_is_asked_both_say_the_same(build: Build) -> None:
    """Any deposit that a session would let through, from terminals with tickets and without."""
    pair = build()
    warm(pair)

    @given(SOME, st.sampled_from(Traffic.TERMINALS))
    def both_say_the_same(changes: list[tuple[str, Any]], terminal: str) -> None:
        fields = {
            "trace": pair.straight.trace(), "cashier": "345", "document": "4567890",
            "amount": 1_000, "currency": "PYG",
        } | dict(changes)  # fmt: skip
        fields = {name: value for name, value in fields.items() if value is not None}
        try:
            message = msgspec.convert(fields, Deposit)
        except msgspec.ValidationError:
            reject()
        pair.turn([(terminal, message)])

    both_say_the_same()
    assert pair.deposits >= 3, pair.counts


LETTERS = st.characters(codec="utf-8", max_codepoint=0x17F) | st.sampled_from("  **ñÑáÁüÜ")


@given(st.text(LETTERS | st.characters(codec="utf-8"), max_size=60))
@example("José Ñandutí Ávalos")
@example("*** a*** Ana*** ÁÉ*** ñ***")
@example("ÿa ßs ﬁx")
@example("a\x1fb c\x85d e\xa0f")
def test_masked_names(name: str) -> None:
    found = masked_name(name)
    if found is None:
        return
    masked, plain = found
    assert masked == mask_name(name)
    if plain is not None:
        assert plain == ascii_text(mask_name(masked))[:32]


def test_names_of_the_country_are_masked_natively() -> None:
    pick = random.Random(1)
    letters = "abcdefghijklmnñopqrstuvwxyzáéíóúüÑÁ'-."
    for _ in range(300 if not FUZZ else 20_000):
        name = " ".join(
            "".join(pick.choice(letters) for _ in range(pick.randrange(1, 9)))
            for _ in range(pick.randrange(1, 7))
        )
        masked = mask_name(name)
        assert masked_name(name) == (masked, ascii_text(mask_name(masked))[:32])


@given(st.binary(max_size=128))
def test_ids_of_accounts(name: bytes) -> None:
    assert account_id(name) == blake2b(name, digest_size=16).digest()


def test_limits_of_the_native_part() -> None:
    with pytest.raises(ValueError, match="128"):
        account_id(bytes(129))
    ledger = Ledger(accounts_max=16, holds_max=16, keys_max=16, attempts_max=16)
    with pytest.raises(ValueError, match="four digits"):
        DepositRules(ledger=ledger, told=bytearray(10))
    rules = DepositRules(ledger=ledger, told=bytearray(10_000))
    more = [("depositor", "credit", "day", 1)] * 17
    values: dict[str, Any] = {"open": True, "structuring": False, "percent": 80, "count": 3}
    with pytest.raises(ValueError, match="16 thresholds"):
        rules.set_rules(profiles={}, declarations=more, **values)
    with pytest.raises(ValueError, match="known"):
        rules.set_rules(profiles={"person": 1}, declarations=[], **values)
