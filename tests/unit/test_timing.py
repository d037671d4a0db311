"""Nobody learns by a clock whether a MAC, a code, a person or a peer was nearly right.

Each question is put in several ways, in turn and in random order within one process, so that
whatever else the machine does falls on all of them alike. A way counts as slower only where Welch's
t over the samples without their upper tail says so *and* the medians differ by more than a share
that a network could ever show, in each of several tries. That this finds what leaks is shown first,
with comparisons that do.
"""

import gc
import math
import os
import random
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count, cycle
from pathlib import Path

import pytest

from core_ext._mac import MacKey, SeedVault, equal, totp
from protocols.messages import CashOut
from protocols.session import TERMINAL as VOCABULARY
from protocols.session import Acceptor, Initiator, PeerKey
from switch.app import App
from tests.house import MASTER, OTHER_TERMINAL, TERMINAL, House, Told

pytestmark = pytest.mark.alone

SAMPLES = 20_000 if os.environ.get("TRONCAL_FUZZ") else 1500
TRIES = 4
T_MIN = 5.0
SHARE_MIN = 0.06  # of the median
DIFFERENCE_MIN_NS = 500  # a network is a thousand times coarser, and a slow machine slows all alike
KEPT = 0.8  # of the samples of each way: the upper tail is the machine's

Way = Callable[[], object]


def sampled(ways: Mapping[str, Way], samples: int) -> dict[str, list[int]]:
    """Nanoseconds of each way, asked in random order, one after another."""
    taken: dict[str, list[int]] = {name: [] for name in ways}
    order = list(ways)
    clock = time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        for _ in range(samples):
            random.shuffle(order)
            for name in order:
                way = ways[name]
                began = clock()
                way()
                taken[name].append(clock() - began)
    finally:
        gc.enable()
    return taken


def slower(one: list[int], other: list[int]) -> tuple[float, float, float]:
    """Welch's t of the cropped samples; the medians' difference as a share and in nanoseconds."""
    a, b = (sorted(found)[: int(len(found) * KEPT)] for found in (one, other))
    spread = statistics.variance(a) / len(a) + statistics.variance(b) / len(b)
    t = (statistics.fmean(a) - statistics.fmean(b)) / math.sqrt(spread or 1.0)
    median = statistics.median(b)
    difference_ns = statistics.median(a) - median
    return t, difference_ns / median, difference_ns


def told_apart(
    ways: Mapping[str, Way],
    samples: int = SAMPLES,
    take: Callable[[Mapping[str, Way], int], dict[str, list[int]]] = sampled,
) -> dict[str, tuple[float, float, float]]:
    """Pairs of ways that each try finds apart in the same direction, with the last figures."""
    found: dict[str, tuple[float, float, float]] = {}
    for attempt in range(TRIES):
        taken = take(ways, samples)
        names = list(ways)
        now = {}
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                t, share, difference_ns = slower(taken[one], taken[other])
                apart = abs(share) > SHARE_MIN and abs(difference_ns) > DIFFERENCE_MIN_NS
                if apart and abs(t) > T_MIN:
                    now[f"{one} / {other}"] = (t, share, difference_ns)
        if attempt:
            now = {k: v for k, v in now.items() if k in found and found[k][0] * v[0] > 0}
        found = now
        if not found:
            break
    return found


# ---- the measure itself --------------------------------------------------------------------------


def naive(one: bytes, other: bytes) -> bool:
    return all(a == b for a, b in zip(one, other, strict=True))


def test_a_comparison_that_stops_early_is_found_out() -> None:
    right = secrets.token_bytes(32)
    wrong = {"first": bytes([right[0] ^ 1]) + right[1:], "last": right[:-1] + b"\x00"}
    ways = {name: lambda value=value: naive(right, value) for name, value in wrong.items()}
    assert told_apart(ways), "the measure would find nothing"


def test_the_same_question_is_not_told_apart_from_itself() -> None:
    key, message = MacKey("hmac-sha256", bytes(32)), bytes(200)
    assert not told_apart({"one": lambda: key.mac(message), "other": lambda: key.mac(message)})


# ---- MACs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["hmac-sha256", "aes-cmac", "retail-2"])
def test_a_mac_that_is_nearly_right(algorithm: str) -> None:
    key_bytes = {"hmac-sha256": 32, "aes-cmac": 16, "retail-2": 16}[algorithm]
    key, message = MacKey(algorithm, secrets.token_bytes(key_bytes)), secrets.token_bytes(180)
    right = key.mac(message)[:8]
    wrong = {
        "right": right,
        "first byte": bytes([right[0] ^ 1]) + right[1:],
        "last byte": right[:-1] + bytes([right[-1] ^ 1]),
        "every byte": bytes(b ^ 0xFF for b in right),
    }
    ways = {name: lambda value=value: key.verify(message, value) for name, value in wrong.items()}
    assert not told_apart(ways)


def test_equal_looks_at_everything() -> None:
    right = secrets.token_bytes(4096)
    first, last = bytes([right[0] ^ 1]) + right[1:], right[:-1] + bytes([right[-1] ^ 1])
    ways: dict[str, Way] = {
        "right": lambda: equal(right, right[:]),
        "first": lambda: equal(right, first),
        "last": lambda: equal(right, last),
    }
    assert not told_apart(ways)


# ---- codes ---------------------------------------------------------------------------------------


def test_a_wrong_code_and_a_person_nobody_knows() -> None:
    """The native search: as many seeds, whatever is there. The right code may be quicker."""
    vault, now_s = SeedVault(bytes(32)), 1_795_359_600
    seeds = [secrets.token_bytes(20) for _ in range(2)]
    sealed = [vault.seal(seed, b"card") for seed in seeds]
    near = totp(seeds[0], now_s)
    nearly = near[:-1] + str((int(near[-1]) + 1) % 10)

    def search(cards: int, code: str) -> Way:
        return lambda: vault.match(
            sealed[:cards], [b"card"] * cards, code, mode="totp", now_s=now_s, pad_to=4
        )

    ways = {
        "nobody": search(0, nearly), "one card": search(1, nearly), "two cards": search(2, nearly),
        "all digits wrong": search(1, "".join(str(9 - int(d)) for d in near)),
    }  # fmt: skip
    assert not told_apart(ways, SAMPLES // 4)


TOML = """
[tokens]
attempts_card = 10
row_max = 20
attempts_terminal = 10000
attempts_cashier = 10000
"""
PERSONS = 240
ASKED_MAX = 9  # one less than locks a card
ROUND = 50  # samples between two groups of the journal


class Declines:
    """The whole decision about a terminal's request, but for the disk."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._traces = count(1)
        self._told = Told([])
        record = house.node.registry.terminal(TERMINAL)
        assert record is not None
        self._terminal = record

    def way(self, documents: Iterator[str]) -> Way:
        """Ask with a wrong code, about one person after another."""
        node = self._house.node

        def ask() -> None:
            message = CashOut(
                trace=next(self._traces), cashier="000345", document=next(documents),
                token="731905", amount=150_000, currency="PYG",
            )  # fmt: skip
            step = node.begin()
            node.terminal_request(step, self._terminal, message, self._told)
            node.end(step)

        return ask

    def sampled(self, ways: Mapping[str, Way], samples: int) -> dict[str, list[int]]:
        taken: dict[str, list[int]] = {name: [] for name in ways}
        for _ in range(samples // ROUND):
            for name, found in sampled(ways, ROUND).items():
                taken[name] += found
            self._house.settle()
        return taken

    @property
    def codes(self) -> set[str]:
        return {answer.code for answer in self._told.messages}


@pytest.mark.parametrize("way", ["native", "flows"])
def test_declines_of_persons_known_and_unknown(tmp_path: Path, way: str) -> None:
    """A stranger's document takes as long as a customer's with a wrong code (X003, X006, S07)."""
    off = "" if way == "native" else "[node]\nstraight_through = false\n"
    house = House(tmp_path, toml=off + TOML)
    known = [str(5_000_000 + index) for index in range(PERSONS)]
    house.do_all(
        [("card_add", {"document": d, "name": "ANA ROJAS", "balance": 1_000_000}) for d in known]
    )
    unknown = [str(7_000_000 + index) for index in range(PERSONS)]
    declines = Declines(house)
    ways = {"known": declines.way(cycle(known)), "unknown": declines.way(cycle(unknown))}
    asked = PERSONS * ASKED_MAX // TRIES
    assert not told_apart(ways, asked, declines.sampled)
    assert declines.codes == {"55"}
    house.close()


# ---- sign-ons ------------------------------------------------------------------------------------


def sign_ons(app: App, known: PeerKey, number: str) -> dict[str, Way]:
    """Sign-ons that are refused, for every reason there is."""

    def refused(peer: str, key: PeerKey, version: int = 1) -> Way:
        nonce = secrets.token_bytes(16)
        frame = Initiator(
            vocabulary=VOCABULARY, peer=peer, key=key, nonce=nonce, key_version=version
        ).sign_on()

        def ask() -> None:
            acceptor = Acceptor(
                vocabulary=VOCABULARY, authenticate=app._terminal_key, nonce=nonce,
                now_iso=lambda: "",
            )  # fmt: skip
            acceptor.receive(frame)
            assert acceptor.refused

        return ask

    other = PeerKey(secrets.token_bytes(32))
    return {
        "wrong key": refused(number, other),
        "unknown peer": refused("99999999", other),
        "unknown version": refused(number, other, 7),
        "disabled peer": refused(OTHER_TERMINAL, known),
    }


def test_sign_ons_that_are_refused(tmp_path: Path) -> None:
    """Whoever is not let in does not learn which numbers and key versions there are (S01)."""
    house = House(tmp_path)
    house.do("terminal_enable", number=OTHER_TERMINAL, enable=False)
    house.close()
    app = App(house.config, MASTER, clock=house.clock, followers=False)
    app.node.open()
    ways = sign_ons(app, PeerKey(secrets.token_bytes(32)), TERMINAL)
    assert not told_apart(ways)
    app.node.close()
