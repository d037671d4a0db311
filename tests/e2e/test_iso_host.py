"""ceibo as a processor of another make meets it: ISO 8583 over a socket, and the command line.

What is demanded here was read out of the description of the dialect and of the acceptance cases;
the client is `iso_client`, which shares no line with the switch. One ceibo by itself serves most of
the file, one with all roles in its process the rest. Every test takes holders and numbers of its
own.
"""

import contextlib
import csv
import datetime
import ipaddress
import itertools
import os
import re
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.iso_client import (
    ANNULMENT,
    CANCELLED,
    CASH_OUT,
    CUTOVER,
    DEPOSIT,
    ECHO,
    FAILED,
    HOLDER,
    KEY_EXCHANGE,
    NETWORK,
    SECONDS,
    SIGN_OFF,
    SIGN_ON,
    TIMEOUT,
    Elements,
    Ended,
    IsoClient,
    Keys,
    balances,
    changed,
    check,
    decision,
    framed,
    key_tags,
    mac,
    original,
    sealed,
    signed_on,
    tlv,
    utc,
)
from tests.e2e.wire_client import Node, told, totp, wrong

A = 150_000
BALANCE = 1_000_000
FEE, COMMISSION = 2_000, 1_500
FRESH = 260
OTHER_NETWORK = "0013"


class Person(NamedTuple):
    document: str
    phone: str
    card: str
    seed: str

    @property
    def code(self) -> str:
        return totp(self.seed)


class Place:
    """A provisioned directory with a processor's keys and holders of cards, and its node."""

    def __init__(
        self,
        directory: Path,
        roles: str,
        changes: tuple[tuple[str, str], ...] = (),
        people: int = FRESH,
    ) -> None:
        told("init", directory)
        self.config = directory / "troncal.toml"
        text = self.config.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        self.config.write_text(text)
        self.made = told("host", "rotate", "sicoop", config=self.config)
        self.keys = Keys(self.made)
        self.hosts: dict[str, Keys] = {}
        self.words = ["--roles", roles] if roles else []
        self._numbers = itertools.count(1)
        self._fresh = iter(self._people(directory, people) if people else ())
        self.node: Node

    def documents(self, count: int) -> list[str]:
        return [str(4_000_000 + n) for n in range(count)]

    def _people(self, directory: Path, count: int) -> list[Person]:
        path = directory / "people.csv"
        rows = [
            (document, "ANA MARÍA ROJAS", f"09810{n:05}", BALANCE, "Visa")
            for n, document in enumerate(self.documents(count))
        ]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("document", "name", "phone", "balance", "label"), *rows])
        told("card", "import", path, "--output", path.with_suffix(".out"), config=self.config)
        with path.with_suffix(".out").open(newline="") as file:
            made = list(csv.DictReader(file))
        path.with_suffix(".out").unlink()
        return [
            Person(row[0], f"+595{row[2][1:]}", m["card"], m["seed"])
            for row, m in zip(rows, made, strict=True)
        ]

    def start(self) -> None:
        self.node = Node(self.config, *self.words)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.node.stop(number) == (0 if number == signal.SIGTERM else -number)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    @property
    def address(self) -> tuple[str, int]:
        return self.node.listeners["ceibo"]

    def address_of(self, host: str) -> tuple[str, int]:
        """Where a host dials that has a listener of its own."""
        (found,) = [at for name, at in self.node.listeners.items() if name.startswith("hosts at")]
        assert host == "asks"
        return found

    def raw(self, keys: Keys | None = None, **options: Any) -> IsoClient:
        return IsoClient(self.address, keys or self.keys, **options)

    def person(self) -> Person:
        return next(self._fresh)

    def number(self) -> str:
        return f"2632{next(self._numbers):08}"

    def available(self, client: IsoClient, person: Person, number: str = "") -> int:
        """What the card can spend, as the answer to a hold tells; the hold is released again."""
        number = number or self.number()
        hold = client.hold(number, person.document, 1000, tag09="1")
        answer = client.ask("0100", hold)
        assert answer["39"] == "00"
        assert client.code("0420", decision(number, DEPOSIT, 1000, CANCELLED)) == "00"
        return balances(answer["54"])["02"]

    def serves(self) -> None:
        """Whatever was done to it, a new connection is served."""
        with signed_on(self.address, self.keys) as client:
            assert client.manage(ECHO) == "00"


@pytest.fixture(scope="module")
def only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A node that plays ceibo and nothing else, as `init` makes it."""
    place = Place(tmp_path_factory.mktemp("only") / "node", "ceibo")
    place.start()
    yield place
    place.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """All roles in one process, with fees, and hosts beside the one that `init` makes.

    `keyed` dials the same listener as sicoop; `asks` has one of its own, and is asked about holds
    that it leaves open for a second.
    """
    changes = (
        ("# fee of a cash_out; from 0 to 1_000_000_000\ncash_out = 0", f"cash_out = {FEE}"),
        (
            "# commission of a cash_out; from 0 to 1_000_000_000\ncash_out = 0",
            f"cash_out = {COMMISSION}",
        ),
        ("[business]", "[links.asks]\nhold_ask_after_s = 1\n[business]"),
    )
    place = Place(tmp_path_factory.mktemp("whole") / "node", "", changes)
    for name, *more in (("asks", "--listen", "127.0.0.1:0"), ("keyed",)):
        words = ["host", "add", name, "--dialect", "ceibo", *more]
        place.hosts[name] = Keys(told(*words, config=place.config))
    place.start()
    yield place
    place.stop()


@pytest.fixture(params=["only", "whole"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


@pytest.fixture
def client(only: Place) -> Iterator[IsoClient]:
    with signed_on(only.address, only.keys) as found:
        yield found


def held(place: Place, client: IsoClient, kind: str = DEPOSIT) -> tuple[Person, str]:
    """An approved hold of A: whose, and its number."""
    person, number = place.person(), place.number()
    code = person.code if kind == CASH_OUT else ""
    assert client.code("0100", client.hold(number, person.document, A, code)) == "00"
    return person, number


# --- network management --------------------------------------------------------------------------


def test_sign_on_echo_cutover_and_sign_off(place: Place) -> None:
    with place.raw() as client:
        assert client.manage(ECHO) == "00"
        assert client.manage(SIGN_ON) == "00"
        assert client.manage(SIGN_ON) == "00"
        assert client.manage(ECHO) == "00"
        assert client.manage(CUTOVER, de15=utc()[:4]) == "00"
        assert client.state(place.number()) == ""
        assert client.manage(SIGN_OFF) == "00"
        assert client.code("0600", {"32": NETWORK, "37": place.number()}) == "12"
        assert client.manage(SIGN_ON) == "00"
        assert client.state(place.number()) == ""


def test_network_management_that_is_not_understood(client: IsoClient) -> None:
    assert client.manage("999") == "12"
    assert client.manage(CUTOVER, de15="1340") == "30"
    assert client.code("0800", {}) == "30"
    assert client.manage(ECHO) == "00"


def test_before_sign_on_everything_gets_12_and_does_nothing(place: Place) -> None:
    person, number = place.person(), place.number()
    with place.raw() as client:
        hold = client.hold(number, person.document, A, person.code)
        assert client.code("0100", hold) == "12"
        for mti, reason in (("0220", "00"), ("0221", "00"), ("0420", "21"), ("0421", "17")):
            assert client.code(mti, decision(number, CASH_OUT, A, reason)) == "12"
        assert client.code("0600", {"32": NETWORK, "37": number}) == "12"
        assert client.code("0600", {"3": HOLDER, "32": NETWORK, "48": {"01": "CI1"}}) == "12"
        client.sign_on()
        assert client.state(number) == ""
        assert client.code("0100", hold) == "00"


def test_sign_on_is_of_one_connection(only: Place, client: IsoClient) -> None:
    with only.raw() as other:
        assert other.code("0600", {"32": NETWORK, "37": only.number()}) == "12"
    assert client.state(only.number()) == ""


# --- holds and what becomes of them --------------------------------------------------------------


def test_X001_cash_out_from_hold_to_capture(place: Place) -> None:
    person, number = place.person(), place.number()
    with signed_on(place.address, place.keys) as client:
        hold = client.hold(number, person.document, A, person.code)
        answer = client.ask("0100", hold)
        assert answer["39"] == "00"
        assert "48" not in answer  # a cashier who pays out is not told whose card it is
        assert "54" not in answer
        assert client.state(number) == "ACTIVA"
        first = client.ask("0220", decision(number, CASH_OUT, A))
        assert (first["39"], first["38"]) == ("00", answer["38"])
        assert client.state(number) == "CAPTURADA"
        fee = FEE if place.words == [] else 0
        assert place.available(client, person) == BALANCE - A - fee


def test_D01_deposit_from_hold_to_capture(only: Place, client: IsoClient) -> None:
    person, number = only.person(), only.number()
    answer = client.ask("0100", client.hold(number, person.document, A))
    assert answer["39"] == "00"
    (name,) = answer["48"]["11"]
    assert "*" in name
    assert "ROJAS" not in name
    assert only.available(client, person) == BALANCE  # D15: not spendable yet
    assert client.code("0220", decision(number, DEPOSIT, A)) == "00"
    assert only.available(client, person) == BALANCE + A


@pytest.mark.parametrize("reason", [TIMEOUT, FAILED, CANCELLED])
@pytest.mark.parametrize("kind", [CASH_OUT, DEPOSIT])
def test_X112_releases_for_any_reason(
    only: Place, client: IsoClient, kind: str, reason: str
) -> None:
    person, number = held(only, client, kind)
    assert client.code("0420", decision(number, kind, A, reason)) == "00"
    assert client.state(number) == "LIBERADA"
    assert client.code("0220", decision(number, kind, A)) == "21"
    assert client.state(number) == "LIBERADA"
    assert only.available(client, person) == BALANCE


def test_R02_repeats_of_a_decision_get_the_first_answer(only: Place, client: IsoClient) -> None:
    # Approved, and refused because of what was decided before, in both orders.
    _, captured = held(only, client)
    _, released = held(only, client)
    unknown = only.number()
    plan = [
        ("0220", captured, "00", "00"),
        ("0420", captured, TIMEOUT, "A3"),
        ("0420", released, TIMEOUT, "00"),
        ("0220", released, "00", "21"),
        ("0420", unknown, TIMEOUT, "25"),
        ("0220", unknown, "00", "21"),
    ]
    for mti, number, reason, code in plan:
        elements = decision(number, DEPOSIT, A, reason)
        first = client.ask(mti, elements)
        assert first["39"] == code, (mti, number)
        for again in (mti, mti[:3] + "1", mti):
            repeat = client.ask(again, elements)
            assert _alike(repeat, first), (again, code)
    for mti, number, _, code in plan:  # the reason of a release is not compared
        if mti == "0420":
            assert client.code("0421", decision(number, DEPOSIT, A, CANCELLED)) == code


def _alike(one: Elements, other: Elements) -> bool:
    return {k: v for k, v in one.items() if k not in ("7", "11")} == {
        k: v for k, v in other.items() if k not in ("7", "11")
    }


def test_R04_R07_release_without_original_leaves_a_tombstone(place: Place) -> None:
    person, number = place.person(), place.number()
    with signed_on(place.address, place.keys) as client:
        assert client.code("0420", decision(number, CASH_OUT, A, TIMEOUT)) == "25"
        assert client.state(number) == "TUMBA"
        hold = client.hold(number, person.document, A, person.code)
        for _ in range(2):
            assert client.code("0100", hold) == "21"
        assert client.state(number) == "TUMBA"
        assert client.code("0220", decision(number, CASH_OUT, A)) == "21"
        # The code was not consumed: its holder can still use it.
        again = client.hold(place.number(), person.document, A, person.code)
        assert client.code("0100", again) == "00"


def test_capture_without_original(only: Place, client: IsoClient) -> None:
    number = only.number()
    assert client.code("0220", decision(number, CASH_OUT, A)) == "25"
    assert client.state(number) == ""


def test_R09_release_after_capture_is_a_conflict(only: Place, client: IsoClient) -> None:
    person, number = held(only, client)
    assert client.code("0220", decision(number, DEPOSIT, A)) == "00"
    for reason in (TIMEOUT, FAILED, CANCELLED):
        assert client.code("0420", decision(number, DEPOSIT, A, reason)) == "A3"
    assert client.state(number) == "CAPTURADA"
    assert only.available(client, person) == BALANCE + A


@pytest.mark.parametrize("kind", [CASH_OUT, DEPOSIT])
def test_V07_annulment_of_open_captured_and_unknown(
    only: Place, client: IsoClient, kind: str
) -> None:
    open_person, still_open = held(only, client, kind)
    person, captured = held(only, client, kind)
    unknown = only.number()
    assert client.code("0220", decision(captured, kind, A)) == "00"
    for number, code in ((still_open, "00"), (captured, "00"), (unknown, "25")):
        for mti in ("0420", "0421"):
            assert client.code(mti, decision(number, kind, A, ANNULMENT)) == code
    assert client.state(still_open) == "LIBERADA"
    assert client.state(captured) == "CAPTURADA"
    assert client.state(unknown) == "TUMBA"
    assert only.available(client, person) == BALANCE
    assert only.available(client, open_person) == BALANCE


def test_V08_deposit_that_is_spent_is_not_annulled(only: Place, client: IsoClient) -> None:
    person, number = held(only, client)
    assert client.code("0220", decision(number, DEPOSIT, A)) == "00"
    spent = only.number()
    hold = client.hold(spent, person.document, BALANCE + A, person.code)
    assert client.code("0100", hold) == "00"
    assert client.code("0220", decision(spent, CASH_OUT, BALANCE + A)) == "00"
    assert client.code("0420", decision(number, DEPOSIT, A, ANNULMENT)) == "51"
    assert client.state(number) == "CAPTURADA"


@pytest.mark.parametrize("mti", ["0220", "0420"])
def test_R08_decision_about_something_else(only: Place, client: IsoClient, mti: str) -> None:
    _, number = held(only, client)
    right = decision(number, DEPOSIT, A, TIMEOUT if mti == "0420" else "00")
    changes: list[dict[str, Any]] = [{"4": f"{A + 1000:012}"}, {"3": CASH_OUT}, {"49": "840"}]
    for change in changes:
        assert client.code(mti, right | change) == "94", change
    assert client.state(number) == "ACTIVA"
    assert client.code(mti, right) == "00"
    for change in changes:
        assert client.code(mti, right | change) == "94", change
    assert client.code(mti[:3] + "1", right) == "00"


@pytest.mark.parametrize("asked", [None, "1"])  # for balances, which is not what most do
def test_I02_I03_repeated_holds_are_compared(place: Place, asked: str | None) -> None:
    person, number = place.person(), place.number()
    code = person.code
    with signed_on(place.address, place.keys) as client:
        hold = client.hold(number, person.document, A, code, tag09=asked)
        first = client.ask("0100", hold)
        assert first["39"] == "00"
        # Another nonce, another clock: still the same request.
        again = client.hold(
            number, person.document, A, code, tag09=asked, de12="010203", de13="0102"
        )
        assert again["48"]["03"] != hold["48"]["03"]
        assert _alike(client.ask("0100", again), first)
        assert _alike(client.ask("0100", hold | {"7": utc(-50)}), first)
        others: dict[str, Elements] = {
            "amount": hold | {"4": f"{A + 1000:012}"},
            "kind": client.hold(number, person.document, A, tag09=asked),
            "terminal": hold | {"41": "00001235"},
            "branch": hold | {"42": "000018".ljust(15)},
            "currency": hold | {"49": "840"},
            "document": client.hold(number, "3999999", A, code, tag09=asked),
            "type": client.hold(number, "", A, code, tag01=f"PAS{person.document}", tag09=asked),
            "cashier": client.hold(number, person.document, A, code, tag04="000346", tag09=asked),
            "balances": client.hold(number, person.document, A, code, tag09="0"),
            "code": client.hold(number, person.document, A, wrong(code), tag09=asked),
        }
        for what, elements in others.items():
            assert client.ask("0100", elements)["39"] == "94", what
        assert _alike(client.ask("0100", hold), first)
        assert client.code("0220", decision(number, CASH_OUT, A)) == "00"
        assert _alike(client.ask("0100", hold), first)


def test_original_data_and_unknown_tags(only: Place, client: IsoClient) -> None:
    """DE37 decides, so DE90 may be told or not; tags that we do not know are part of DE48."""
    person, number = only.person(), only.number()
    elements = client.hold(number, person.document, A, tag99="their own")
    hold = client.message("0100", elements)
    client.send(hold)
    assert client.answer_to(hold)["39"] == "00"
    assert client.code("0100", elements) == "00"
    for other in ("another", None):
        assert client.code("0100", changed(elements, {"tag99": other})) == "94"
    capture = decision(number, DEPOSIT, A, de90=original(hold["11"], hold["7"]))
    assert client.code("0220", capture) == "00"
    assert client.code("0221", capture | {"90": original()}) == "00"


def test_messages_of_one_write_are_decided_in_their_order(only: Place, client: IsoClient) -> None:
    """R06: what undoes a hold may be right behind it, and must not pass it."""
    persons = [only.person() for _ in range(8)]
    plan: list[tuple[str, Elements, str]] = []
    for person, kind in itertools.product(persons, (CASH_OUT, DEPOSIT)):
        after, before = only.number(), only.number()
        code = person.code if kind == CASH_OUT else ""
        plan += [
            ("0420", decision(before, kind, 1000, TIMEOUT), "25"),
            ("0100", client.hold(before, person.document, 1000, code), "21"),
            ("0100", client.hold(after, person.document, 1000, code), "00"),
            ("0420", decision(after, kind, 1000, TIMEOUT), "00"),
            ("0220", decision(after, kind, 1000), "21"),
        ]
    messages = [client.message(mti, elements) for mti, elements, _ in plan]
    client.send_bytes(b"".join(framed(client.body(message)) for message in messages))
    answers = client.answers_to(messages)
    assert [answer["39"] for answer in answers] == [code for _, _, code in plan]
    for person in persons:
        assert only.available(client, person) == BALANCE


def test_I06_repeats_and_used_codes_of_one_write(only: Place, client: IsoClient) -> None:
    """What one read brings is decided in order, each on what the one before has left."""
    persons = [only.person() for _ in range(8)]
    plan: list[tuple[Elements, str]] = []
    for person in persons:
        hold = client.hold(only.number(), person.document, A, person.code)
        other = client.hold(only.number(), person.document, A, person.code)
        again = client.hold(hold["37"], person.document, A, person.code)
        differs = client.hold(hold["37"], person.document, A + 1000, person.code)
        plan += [(hold, "00"), (hold, "00"), (other, "55"), (again, "00"), (differs, "94")]
    messages = [client.message("0100", elements) for elements, _ in plan]
    client.send_bytes(b"".join(framed(client.body(message)) for message in messages))
    answers = client.answers_to(messages)
    assert [answer["39"] for answer in answers] == [code for _, code in plan]
    for first in range(0, len(answers), 5):
        assert _alike(answers[first], answers[first + 1])
        assert _alike(answers[first], answers[first + 3])
    for person in persons:
        assert only.available(client, person) == BALANCE - A


def test_declines_are_repeated_too(only: Place, client: IsoClient) -> None:
    person = only.person()
    no_funds = client.hold(only.number(), person.document, BALANCE + 1000, person.code)
    for _ in range(3):
        assert client.code("0100", no_funds) == "51"
    assert client.state(no_funds["37"]) == ""  # nothing is held
    assert client.code("0420", decision(no_funds["37"], CASH_OUT, BALANCE + 1000, TIMEOUT)) in (
        "21", "25",
    )  # fmt: skip
    used = client.hold(only.number(), person.document, A, person.code)
    assert client.code("0100", used) == "55"  # T15: the code is consumed
    assert only.available(client, person) == BALANCE


def test_two_networks_have_numbers_of_their_own(only: Place, client: IsoClient) -> None:
    person, number = held(only, client)
    theirs = client.hold(number, only.person().document, 2 * A, de32=OTHER_NETWORK)
    assert client.code("0100", theirs) == "00"
    theirs_captured = decision(number, DEPOSIT, 2 * A, de32=OTHER_NETWORK)
    assert client.code("0220", theirs_captured) == "00"
    assert client.state(number) == "ACTIVA"
    assert client.state(number, OTHER_NETWORK) == "CAPTURADA"
    assert client.code("0420", decision(number, DEPOSIT, A, TIMEOUT)) == "00"
    assert client.state(number, OTHER_NETWORK) == "CAPTURADA"
    assert only.available(client, person) == BALANCE


def test_two_links_have_numbers_of_their_own(whole: Place) -> None:
    number, person, other = whole.number(), whole.person(), whole.person()
    with (
        signed_on(whole.address, whole.keys) as one,
        signed_on(whole.address, whole.hosts["keyed"]) as two,
    ):
        assert one.code("0100", one.hold(number, person.document, A)) == "00"
        assert two.state(number) == ""
        assert two.code("0220", decision(number, DEPOSIT, A)) == "25"
        assert two.code("0100", two.hold(number, other.document, 2 * A)) == "00"
        assert two.code("0420", decision(number, DEPOSIT, 2 * A, TIMEOUT)) == "00"
        assert (one.state(number), two.state(number)) == ("ACTIVA", "LIBERADA")
        # A code that was sealed for one link says nothing on the other.
        hold = two.hold(whole.number(), other.document, A, other.code)
        hold["48"]["03"] = sealed(whole.keys.data, other.code, hold["37"])
        assert two.code("0100", hold) == "63"


def test_X008_amounts(only: Place, client: IsoClient) -> None:
    person = only.person()
    for amount, code in ((0, "13"), (500, "13"), (1500, "13"), (5_001_000, "13"), (1000, "00")):
        hold = client.hold(only.number(), person.document, amount)
        assert client.code("0100", hold) == code, amount


def test_persons_and_cards(only: Place, client: IsoClient) -> None:
    person, other = only.person(), only.person()

    def code(token: str = "", **changes: Any) -> str:
        hold = client.hold(only.number(), person.document, 1000, token, **changes)
        return client.code("0100", hold)

    assert code(tag01=None, tag02=person.phone) == "00"
    assert code(tag05=person.card) == "00"
    assert code(tag05=other.card) == "05"
    assert code(tag06="CI5555555") == "00"
    assert code(tag01="CI3999999") == "05"
    assert code(person.code, tag01="CI3999999") == "55"
    assert code(other.code) == "55"  # T13
    assert code(person.code, tag01=None, tag02=person.phone) == "00"
    for bad in (
        {"tag02": person.phone}, {"tag01": None}, {"tag01": "XX123"}, {"tag01": "CI12"},
        {"tag01": None, "tag02": "0981000001"}, {"tag06": "ANA"}, {"tag04": None},
        {"tag04": "ABC"}, {"tag03": sealed(only.keys.data, "123456", "0" * 12)},
    ):  # fmt: skip
        assert code(**bad) == "30", bad


# --- one-time codes ------------------------------------------------------------------------------


def test_T06_T07_wrong_codes_lock(only: Place, client: IsoClient) -> None:
    person = only.person()
    bad = wrong(*(totp(person.seed, away=n) for n in range(-20, 21)))
    holds = [client.hold(only.number(), person.document, A, bad) for _ in range(3)]
    # A repeat is no attempt.
    codes = [client.code("0100", hold) for hold in (holds[0], holds[0], holds[1], holds[2])]
    assert codes == ["55", "55", "55", "75"]
    right = client.hold(only.number(), person.document, A, person.code)
    assert client.code("0100", right) == "75"
    assert client.code("0100", client.hold(only.number(), person.document, A)) == "00"


def test_T04_T19_codes_that_say_nothing(only: Place, client: IsoClient) -> None:
    person = only.person()
    code, key = person.code, only.keys.data

    def answered(text: str | None) -> str:
        hold = client.hold(only.number(), person.document, 1000, code)
        if text is not None and "%" in text:
            text = sealed(key, text[1:], hold["37"])
        if text is not None and text.startswith("@"):
            text = sealed(os.urandom(32), code, hold["37"])
        return client.code("0100", hold | {"48": hold["48"] | {"03": text}})

    assert answered("%12ab56") == "30"
    assert answered("%12345") == "30"
    assert answered("%123456789") == "30"
    assert answered("nothexadecimal") == "30"
    assert answered("00" * 12) == "30"
    assert answered("@") == "63"
    # Sealed for another operation.
    assert answered(sealed(key, code, "9" * 12)) == "63"
    for _ in range(4):  # none of them is an attempt
        assert answered("%1234x6") == "30"
    assert answered("%" + code) == "00"
    assert answered("%" + code) == "55"


def test_sealed_codes_in_either_case_and_without_one(only: Place, client: IsoClient) -> None:
    person = only.person()
    hold = client.hold(only.number(), person.document, A, person.code)
    lower = hold["48"] | {"03": hold["48"]["03"].lower()}
    assert client.code("0100", hold | {"48": lower}) == "00"
    without = client.hold(only.number(), person.document, A, "123456", tag03=None)
    assert client.code("0100", without) == "30"


# --- what answers tell ---------------------------------------------------------------------------


def test_balances_where_they_are_asked_for(place: Place) -> None:
    fee = FEE if place.words == [] else 0
    with signed_on(place.address, place.keys) as client:
        person = place.person()
        hold = client.hold(place.number(), person.document, A, person.code, tag09="1")
        first = client.ask("0100", hold)
        told_now = balances(first["54"])
        assert told_now == {"01": BALANCE, "02": BALANCE - A - fee}
        assert client.code("0420", decision(hold["37"], CASH_OUT, A, TIMEOUT)) == "00"
        assert balances(client.ask("0100", hold)["54"]) == told_now
        for asked in (None, "0"):
            hold = client.hold(place.number(), person.document, 1000, tag09=asked)
            assert "54" not in client.ask("0100", hold)
        poor = client.hold(place.number(), person.document, 5_000_000, tag09="1", tag05="nobody's")
        declined = client.ask("0100", poor)
        assert declined["39"] == "05"
        assert "54" not in declined


def test_L09_fees_are_told_with_the_hold_and_only_there(whole: Place) -> None:
    with signed_on(whole.address, whole.keys) as client:
        person, number = whole.person(), whole.number()
        hold = client.hold(number, person.document, A, person.code)
        for _ in range(2):
            answer = client.ask("0100", hold)
            assert answer["39"] == "00"
            assert (answer["28"], answer["30"]) == (f"D{FEE:08}", f"D{COMMISSION:08}")
        captured = client.ask("0220", decision(number, CASH_OUT, A))
        assert captured["39"] == "00"
        deposit = client.ask("0100", client.hold(whole.number(), person.document, A))
        assert not {"28", "30"} & set(deposit)
        assert client.code("0420", decision(number, CASH_OUT, A, ANNULMENT)) == "00"
        assert whole.available(client, person) == BALANCE
        poor = client.hold(whole.number(), whole.person().document, A, "000000")
        assert not {"28", "30"} & set(client.ask("0100", poor))


def test_L10_fees_of_nothing_are_not_told(only: Place, client: IsoClient) -> None:
    person = only.person()
    answer = client.ask("0100", client.hold(only.number(), person.document, A, person.code))
    assert answer["39"] == "00"
    assert not {"28", "30"} & set(answer)


def test_holder(only: Place, client: IsoClient) -> None:
    person = only.person()
    asked = {"3": HOLDER, "32": NETWORK, "48": {"01": f"CI{person.document}"}}
    for who in ({"01": f"CI{person.document}"}, {"02": person.phone}):
        answer = client.ask("0600", asked | {"48": who})
        assert answer["39"] == "00"
        assert answer["48"]["12"] == [f"{person.card},Visa"]
        (name,) = answer["48"]["11"]
        assert name.isascii()
        assert name.startswith("A***")
        assert "ROJAS" not in name
    nobody = client.ask("0600", asked | {"48": {"01": "CI3999999"}})
    assert nobody["39"] == "05"
    assert "48" not in nobody
    both = {"01": f"CI{person.document}", "02": person.phone}
    assert client.code("0600", asked | {"48": both}) == "30"
    assert client.code("0600", asked | {"3": CASH_OUT}) == "12"


@pytest.mark.parametrize("kind", [CASH_OUT, DEPOSIT])
def test_K05_transmission_time_that_is_off(only: Place, client: IsoClient, kind: str) -> None:
    person, number = only.person(), only.number()
    code = person.code if kind == CASH_OUT else ""
    for away_s in (-62, 62, -3600, 3600, -86_400, 86_400 * 180):
        hold = client.hold(number, person.document, 1000, code, de7=utc(away_s))
        assert client.code("0100", hold) == "A5", away_s
    assert client.state(number) == ""
    # The operation stays refused, also for a copy that comes when it would be in time; the code
    # is good.
    assert client.code("0100", client.hold(number, person.document, 1000, code)) == "A5"
    number = only.number()
    assert client.code("0100", client.hold(number, person.document, 1000, code)) == "00"
    for away_s in (-58, 58):
        other = only.person()
        code = other.code if kind == CASH_OUT else ""
        hold = client.hold(only.number(), other.document, 1000, code, de7=utc(away_s))
        assert client.code("0100", hold) == "00", away_s
    # What decides about a hold is never refused for its time.
    late = decision(number, kind, 1000, TIMEOUT)
    assert client.code("0420", late | {"7": utc(-7200)}) == "00"
    assert client.ask("0600", {"7": utc(-7200), "32": NETWORK, "37": number})["39"] == "00"


def test_K02_business_date_is_the_nearest_and_comes_back(only: Place, client: IsoClient) -> None:
    """The date has no year: it may be in the next one; days that never were are refused."""
    person = only.person()
    today = datetime.datetime.now(datetime.UTC).date()
    for days in (-1, 0, 1, 40, 170):
        day = today + datetime.timedelta(days=days)
        if (day.month, day.day) == (2, 29):
            continue
        hold = client.hold(only.number(), person.document, 1000, de15=f"{day:%m%d}")
        assert client.code("0100", hold) == "00", day
    for text in ("0000", "1301", "0431", "0230"):
        hold = client.hold(only.number(), person.document, 1000, de15=text)
        assert client.code("0100", hold) == "30", text


# --- keys and MACs -------------------------------------------------------------------------------


def test_S02_wrong_mac_is_answered_63_and_does_nothing(place: Place) -> None:
    person, number = place.person(), place.number()
    with signed_on(place.address, place.keys) as client:
        _, known = held(place, client)
        forged: list[tuple[str, Elements]] = [
            ("0100", client.hold(number, person.document, A, person.code)),
            ("0220", decision(known, DEPOSIT, A)),
            ("0420", decision(known, DEPOSIT, A, TIMEOUT)),
            ("0420", decision(number, DEPOSIT, A, TIMEOUT)),
            ("0600", {"32": NETWORK, "37": known}),
            ("0800", {"70": SIGN_OFF}),
        ]
        for mti, elements in forged:
            message = client.message(mti, elements)
            client.send(message, key=bytes(16))
            assert client.answer_to(message)["39"] == "63", mti
        # To an answer, and to a notification, nothing is said.
        answer = client.message("0610", {"37": number, "39": "00", "48": {"10": "REVERSADA"}})
        client.send(answer, key=bytes(16))
        assert client.silent()
        assert client.state(known) == "ACTIVA"
        assert client.state(number) == ""


def test_macs_that_are_missing_short_or_elsewhere(only: Place, client: IsoClient) -> None:
    """A message without its MAC in the last element is not acted on, whatever else is good."""
    person, number = only.person(), only.number()
    good = client.body(client.message("0100", client.hold(number, person.document, A)))
    bare = good[:4] + bytes([*good[4:11], good[11] & 0xFE]) + good[12:-8]
    for body in (bare, good[:-8] + bytes(8), good[:-1] + bytes([good[-1] ^ 1]), good[:-4]):
        client.send_bytes(framed(body))
        assert client.receive()["39"] in ("30", "63")
    # 64 has a good MAC, but there is a secondary bitmap: it should stand in 128.
    release = client.message("0420", decision(number, DEPOSIT, A, TIMEOUT))
    body = client.body(release)
    covered = body[:4] + bytes([*body[4:11], body[11] | 1]) + body[12:-8]
    covered = covered[:19] + bytes([covered[19] & 0xFE]) + covered[20:]
    at = covered.index(b"0100000000") + 0  # DE90, behind which 64 does not belong
    moved = covered[:at] + mac(client.keys.mac, covered[:at]) + covered[at:]
    client.send_bytes(framed(moved))
    assert client.receive()["39"] in ("30", "63")
    assert client.state(number) == ""


def test_two_hosts_are_told_apart_by_their_keys(whole: Place) -> None:
    stranger = Keys({k: os.urandom(n).hex() for k, n in
                     (("mac_key", 16), ("data_key", 32), ("zone_key", 32))})  # fmt: skip
    with whole.raw(stranger) as client:
        client.send(client.message("0800", {"70": SIGN_ON}))
        with pytest.raises((Ended, AssertionError)):  # whatever is said, it is under another key
            client.receive()
    with signed_on(whole.address, whole.hosts["keyed"]) as two:
        # The other host's key is worth nothing on a connection that is this one's.
        message = two.message("0600", {"32": NETWORK, "37": whole.number()})
        two.send(message, key=whole.keys.mac)
        assert two.answer_to(message)["39"] == "63"
        assert two.manage(ECHO) == "00"
    with IsoClient(whole.address_of("asks"), whole.hosts["asks"]) as client:
        # Alone on its listener: a host whose key is another one's is told so, and then dropped.
        message = client.message("0800", {"70": SIGN_ON})
        client.send(message, key=whole.keys.mac)
        assert client.answer_to(message)["39"] == "63"
        assert client.ends()


def exchange(client: IsoClient, kind: str, key: bytes, **changes: Any) -> str:
    """Offer a key by 0800, DE70 = 101."""
    tags = key_tags(client.keys.zone, kind, key) | changes
    return client.code("0800", {"70": KEY_EXCHANGE, "48": tags})


def test_P13_keys_that_are_refused(only: Place, client: IsoClient) -> None:
    key = os.urandom(16)
    other = key_tags(os.urandom(32), "mac", key)
    known = told("host", "check", "sicoop", config=only.config)
    assert exchange(client, "mac", key, **{"32": "000000"}) == "63"
    assert exchange(client, "mac", key, **{"31": other["31"]}) == "63"
    assert exchange(client, "zone", os.urandom(32)) == "12"
    assert exchange(client, "mac", key, **{"31": "no hex"}) == "30"
    assert exchange(client, "mac", os.urandom(32)) == "30"
    assert exchange(client, "data", key) == "30"
    assert client.code("0800", {"70": KEY_EXCHANGE}) in ("12", "30")
    message = client.message("0800", {"70": ECHO})
    client.send(message, key=key)
    assert client.answer_to(message)["39"] == "63"
    assert client.manage(ECHO) == "00"
    assert told("host", "check", "sicoop", config=only.config) == known


def test_P13_keys_are_exchanged_under_traffic(whole: Place) -> None:
    """What is under the old keys is still good, and all of them outlive a restart."""
    keys = whole.hosts["keyed"]
    macs, datas = [keys.mac, os.urandom(16)], [keys.data, os.urandom(32)]
    with signed_on(whole.address, keys) as client, signed_on(whole.address, keys) as other:
        _, number = held(whole, client)
        assert exchange(client, "mac", macs[1]) == "00"
        asked = {"32": NETWORK, "37": number}
        for mac_key in (macs[1], macs[0], macs[1]):  # answered under the key of the request
            for one in (client, other):
                assert one.ask("0600", asked, key=mac_key)["39"] == "00"
        assert exchange(client, "data", datas[1]) == "00"
        for keys.data in reversed(datas):
            held(whole, client, CASH_OUT)
        known = told("host", "check", "keyed", config=whole.config)
        for keys.mac in macs:  # the same keys again, as if their answers had been lost
            assert exchange(client, "mac", macs[1]) == "00"
            assert exchange(client, "data", datas[1]) == "00"
        assert told("host", "check", "keyed", config=whole.config) == known
        macs.append(os.urandom(16))
        assert exchange(client, "mac", macs[2]) == "00"
    whole.restart(signal.SIGKILL)
    for keys.mac in macs:
        with signed_on(whole.address, keys) as client:
            assert client.state(number) == "ACTIVA"
            for keys.data in reversed(datas):
                held(whole, client, CASH_OUT)


# --- bytes ---------------------------------------------------------------------------------------


def test_S04_malformed_messages_get_30_with_what_is_sound(only: Place, client: IsoClient) -> None:
    person = only.person()
    message = client.message("0100", client.hold(only.number(), person.document, A))
    good = client.body(message)
    cut = good[:-8]

    def replaced(old: bytes, new: bytes) -> bytes:
        assert cut.count(old) >= 1
        at = cut.rindex(old)
        body = cut[:at] + new + cut[at + len(old) :]
        return body + mac(client.keys.mac, body)

    tags = tlv(message["48"]).encode()
    bitmap = bytearray(good[4:12])
    bitmap[1] |= 0x04  # DE14, which the dialect does not have
    broken = {
        "amount of letters": replaced(message["4"].encode(), b"00000015000A"),
        "no ASCII": replaced(tags, b"\xff" * len(tags)),
        "tag that reaches beyond": replaced(tags[:5], b"01099"),
        "length that is none": replaced(b"04" + NETWORK.encode(), b"XX" + NETWORK.encode()),
        "over-long": replaced(b"04" + NETWORK.encode(), b"99" + NETWORK.encode()),
        "element without a definition": good[:4] + bytes(bitmap) + good[12:],
        "bytes behind": good + b"\0",
        "cut short": good[:-9],
    }
    for what, body in broken.items():
        client.send_bytes(framed(body))
        answer = client.receive()
        assert (answer["t"], answer["39"], answer["11"]) == ("0110", "30", message["11"]), what
        for element in ("7", "37", "41"):
            assert answer.get(element, message[element]) == message[element], what
        assert set(answer) <= {"t", "39", "7", "11", "37", "41"}, what
    assert client.state(message["37"]) == ""


def test_malformed_beyond_answering(only: Place, client: IsoClient) -> None:
    """Without a sound MTI and STAN, and to answers, nothing is said; the connection stays."""
    body = client.body(client.message("0600", {"32": NETWORK, "37": only.number()}))
    stan = body.index(client.message("0600", {})["7"][:4].encode()) + 10
    for bad in (
        b"06X0" + body[4:], b"0600", b"", b"06", body[:stan] + b"ABCDEF" + body[stan + 6 :],
        b"0610" + body[4:-9],
    ):  # fmt: skip
        client.send_bytes(framed(bad))
        assert client.silent(0.02), bad
    assert client.manage(ECHO) == "00"


FIELDS: list[tuple[str, Elements, str]] = [
    ("0100", {"de3": None}, "30"), ("0100", {"de3": "999999"}, "12"), ("0100", {"de4": None}, "30"),
    ("0100", {"de15": None}, "30"), ("0100", {"de32": None}, "30"), ("0100", {"de32": "12"}, "30"),
    ("0100", {"de37": None}, "30"), ("0100", {"de41": None}, "30"), ("0100", {"de42": None}, "30"),
    ("0100", {"de42": "BOCA".ljust(15)}, "30"), ("0100", {"de48": None}, "30"),
    ("0100", {"de49": None}, "30"), ("0100", {"de49": "999"}, "30"),
    ("0220", {"de25": TIMEOUT}, "30"), ("0220", {"de4": None}, "30"), ("0220", {"de3": None}, "30"),
    ("0220", {"de37": None}, "30"), ("0220", {"de32": None}, "30"),
    ("0420", {"de25": "99"}, "30"), ("0420", {"de37": None}, "30"), ("0420", {"de4": None}, "30"),
    ("0600", {"de37": None}, "30"), ("0600", {"de32": None}, "30"),
    ("0200", {}, "12"), ("0400", {}, "12"),
]  # fmt: skip


def test_elements_that_are_missing_or_say_nothing(only: Place, client: IsoClient) -> None:
    for mti, changes, code in FIELDS:
        person, number = only.number(), only.number()
        elements: Elements = {
            "0100": client.hold(number, "4000000", A),
            "0600": {"32": NETWORK, "37": number},
        }.get(mti, decision(number, DEPOSIT, A, "00" if mti == "0220" else TIMEOUT))
        for name, value in changes.items():
            elements[name[2:]] = value
        elements = {name: value for name, value in elements.items() if value is not None}
        message = client.message(mti, elements)
        client.send(message)
        answer = client.receive()
        assert (answer["t"][2], answer["39"]) == ("1" if mti != "0220" else "3", code) or (
            answer["39"] == code
        ), (mti, changes)
        assert answer["11"] == message["11"]
        if "37" in elements and "32" in elements and len(elements["32"]) == 4:
            assert client.state(number) == "", (mti, changes, person)


def test_half_a_message_at_every_byte(only: Place) -> None:
    """P-cases of a host that sends half a frame and is gone; nothing of it is done."""
    person, number = only.person(), only.number()
    with signed_on(only.address, only.keys) as client:
        message = client.message("0100", client.hold(number, person.document, A))
        data = framed(client.body(message))
    sign_on = framed(IsoClient.body(client, client.message("0800", {"70": SIGN_ON})))
    for cut in range(len(data)):
        with socket.create_connection(only.address, SECONDS) as stream:
            stream.sendall(sign_on + data[:cut])
    with signed_on(only.address, only.keys) as client:
        assert client.state(number) == ""
        for cut in (1, 2, 3, 17, len(data) - 1):  # and in two pieces, all of it
            client.send_bytes(data[:cut])
            assert client.silent(0.02)
            client.send_bytes(data[cut:])
            assert client.answer_to(message)["39"] == "00"


def test_bytes_one_by_one_and_many_messages_at_once(only: Place, client: IsoClient) -> None:
    message = client.message("0800", {"70": ECHO})
    for byte in framed(client.body(message)):
        client.send_bytes(bytes([byte]))
    assert client.answer_to(message)["39"] == "00"
    person = only.person()
    messages = [
        client.message("0100", client.hold(only.number(), person.document, 1000))
        for _ in range(300)
    ]
    client.send_bytes(b"".join(framed(client.body(message)) for message in messages))
    answers = {answer["11"]: answer for answer in (client.receive() for _ in messages)}
    for message in messages:
        check(message, answers[message["11"]])
        assert answers[message["11"]]["39"] == "00"


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xff" + bytes(300), b"GET / HTTP/1.1\r\nHost: ceibo\r\n\r\n" * 20, b"\0" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), os.urandom(20_000),
        struct.pack(">H", 8193) + bytes(8193),
    ],
    ids=["long", "http", "zeros", "tls", "noise", "oversize"],
)  # fmt: skip
def test_P02_garbage_and_oversize(only: Place, junk: bytes) -> None:
    for before in (b"", None):
        with only.raw() as stranger:
            if before is None:
                stranger.sign_on()
            stranger.send_bytes(junk)
            try:
                stranger.socket.shutdown(socket.SHUT_WR)
                while stranger.socket.recv(65_536):
                    pass
            except OSError:  # cut off already
                pass
    only.serves()


def test_P11_host_that_does_not_read(only: Place, client: IsoClient) -> None:
    """Its answers are kept within bounds; everybody else is served meanwhile."""
    with signed_on(only.address, only.keys) as slow:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        echo = framed(slow.body(slow.message("0800", {"70": ECHO})))
        slow.socket.settimeout(2)

        def flood() -> bool:
            """Ask and never read; True once the other side has had enough of it."""
            try:
                for _ in range(400):
                    slow.send_bytes(echo * 500)
            except OSError:  # cut off, or not read any more
                return True
            return False

        with ThreadPoolExecutor(1) as pool:
            bounded = pool.submit(flood)
            for _ in range(20):
                assert client.manage(ECHO) == "00"
            assert bounded.result(120)
    assert client.manage(ECHO) == "00"


def test_P03_a_hundred_connections_opened_and_dropped(only: Place) -> None:
    for _ in range(100):
        socket.create_connection(only.address, SECONDS).close()
    idle = [socket.create_connection(only.address, SECONDS) for _ in range(100)]
    try:
        only.serves()  # those who have proved nothing keep nobody out
    finally:
        for stream in idle:
            stream.close()
    only.serves()


def test_I01_the_same_request_over_several_connections(only: Place) -> None:
    person, number = only.person(), only.number()
    code = person.code
    start = threading.Barrier(8)

    def one(_: int) -> Elements:
        with signed_on(only.address, only.keys) as client:
            hold = client.hold(number, person.document, A, code)
            start.wait(60)
            return client.ask("0100", hold)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    assert {answer["39"] for answer in answers} == {"00"}
    assert len({answer["38"] for answer in answers}) == 1
    with signed_on(only.address, only.keys) as client:
        assert only.available(client, person) == BALANCE - A


def test_answers_go_to_the_connection_that_asked(only: Place) -> None:
    """Two connections with the same STANs and the same DE7 never receive each other's answers."""
    sent = utc()
    with (
        signed_on(only.address, only.keys) as one,
        signed_on(only.address, only.keys) as two,
    ):
        messages = []
        for n in range(50):
            for client in (one, two):
                person_free = {"32": NETWORK, "37": only.number(), "11": f"{n:06}", "7": sent}
                message = client.message("0600", person_free)
                client.send(message)
                messages.append((client, message))
        for client, message in messages:
            assert client.answer_to(message)["39"] == "25"


# --- the 0600 of ceibo ---------------------------------------------------------------------------


def test_X138_ceibo_asks_for_what_nobody_decides(whole: Place) -> None:
    told_states = {
        "CONFIRMADA": "CAPTURADA", "CAPTURADA": "CAPTURADA", "REVERSADA": "LIBERADA",
        "VENCIDA": "LIBERADA", "": "LIBERADA", "RESPONDIDA": "ACTIVA", "CONFLICTO": "ACTIVA",
    }  # fmt: skip
    with signed_on(whole.address_of("asks"), whole.hosts["asks"]) as client:
        numbers = dict(zip((whole.number() for _ in told_states), told_states, strict=True))
        for number in numbers:
            hold = client.hold(number, whole.person().document, A)
            assert client.code("0100", hold) == "00"
        waiting = set(numbers)
        while waiting:
            question = client.aside.pop(0) if client.aside else client.receive()
            assert question["t"] == "0600"
            assert set(question) == {"t", "7", "11", "32", "37"}
            number = question["37"]
            state = numbers[number]
            answer = {"t": "0610", "7": question["7"], "11": question["11"], "37": number}
            known = {"39": "00", "48": {"10": state}} if state else {"39": "25"}
            client.send(answer | known)
            waiting.discard(number)
        found = {number: client.state(number) for number in numbers}
        assert found == {number: told_states[state] for number, state in numbers.items()}
        for number in numbers:
            client.code("0420", decision(number, DEPOSIT, A, TIMEOUT))


# --- stops ---------------------------------------------------------------------------------------


def test_X140_R12_kill_between_hold_and_capture(only: Place) -> None:
    """What was answered is there after a kill, and whatever was in the air can be asked again."""
    person, other, number = only.person(), only.person(), only.number()
    undone, captured, tomb = only.number(), only.number(), only.number()
    release, capture = decision(undone, DEPOSIT, A, TIMEOUT), decision(captured, DEPOSIT, A)
    with signed_on(only.address, only.keys) as client:
        hold = client.hold(number, person.document, A, person.code, tag09="1")
        first = client.ask("0100", hold)
        assert first["39"] == "00"
        for one in (undone, captured):
            assert client.code("0100", client.hold(one, only.person().document, A)) == "00"
        assert client.code("0420", release) == "00"
        assert client.code("0420", decision(tomb, DEPOSIT, A, TIMEOUT)) == "25"
        answer = client.ask("0220", capture)
        holds = [client.hold(only.number(), other.document, 1000) for _ in range(200)]
        messages = [client.message("0100", elements) for elements in holds]
        client.send_bytes(b"".join(framed(client.body(message)) for message in messages))
        answered = {client.receive()["37"] for _ in range(20)}
        only.stop(signal.SIGKILL)
        with contextlib.suppress(Ended, AssertionError):
            while True:
                answered.add(client.receive()["37"])
    only.start()
    with signed_on(only.address, only.keys) as client:
        states = [client.state(one) for one in (number, undone, captured, tomb)]
        assert states == ["ACTIVA", "LIBERADA", "CAPTURADA", "TUMBA"]
        assert _alike(client.ask("0100", hold), first)
        assert client.code("0421", release) == "00"
        assert _alike(client.ask("0221", capture), answer)
        assert client.code("0100", client.hold(tomb, person.document, A)) == "21"
        assert client.code("0221", decision(number, CASH_OUT, A + 1000)) == "94"
        done = client.ask("0221", decision(number, CASH_OUT, A))
        assert (done["39"], done["38"]) == ("00", first["38"])
        assert only.available(client, person) == BALANCE - A
        assert {client.state(one) for one in answered} == {"ACTIVA"}
        for elements in holds:
            assert client.code("0100", elements) == "00"
            undo = decision(elements["37"], DEPOSIT, 1000, TIMEOUT)
            assert client.code("0421", undo) == "00"
        assert only.available(client, other) == BALANCE


def test_P12_sigterm_drains(only: Place) -> None:
    person = only.person()
    with signed_on(only.address, only.keys) as client:
        messages = [
            client.message("0100", client.hold(only.number(), person.document, 1000))
            for _ in range(100)
        ]
        client.send_bytes(b"".join(framed(client.body(message)) for message in messages))
        first = client.receive()
        only.node.process.send_signal(signal.SIGTERM)
        answers = [first]
        try:
            while True:
                answers.append(client.receive())
        except Ended:
            pass
    assert only.node.process.wait(60) == 0
    only.stop()
    only.start()
    answered = {answer["37"]: answer["39"] for answer in answers}
    with signed_on(only.address, only.keys) as client:
        for message in messages:  # no hold that its host was not told of
            code = answered.get(message["37"])
            assert client.state(message["37"]) == ("ACTIVA" if code == "00" else "")
    assert list(answered.values()).count("00") == len(messages)


# --- secrets -------------------------------------------------------------------------------------


def test_T21_S06_secrets_are_nowhere(only: Place) -> None:
    person = only.person()
    pan = "4507990000000010"
    with signed_on(only.address, only.keys) as client:
        hold = client.hold(only.number(), person.document, A, person.code)
        assert client.code("0100", hold) == "00"
        repeated = client.hold(hold["37"], person.document, A + 1000, person.code)
        assert client.code("0100", repeated) == "94"
        bad = client.message("0100", client.hold(only.number(), person.document, A, "123456"))
        body = client.body(bad)
        client.send_bytes(framed(body.replace(b"040012", b"04001X", 1)))
        assert client.receive()["39"] == "30"
        client.send(client.message("0100", hold), key=bytes(16))
        assert client.receive()["39"] == "63"
        tagged = client.hold(only.number(), person.document, A, tag05=pan)
        assert client.code("0100", tagged) == "05"
        new = os.urandom(16)
        tags = key_tags(only.keys.zone, "mac", new)
        assert exchange(client, "mac", new, **{"32": "000000"}) == "63"
    keys = [bytes.fromhex(only.made[name]) for name in ("mac_key", "data_key", "zone_key")]
    texts = [hold["48"]["03"], bad["48"]["03"], tags["31"], *(key.hex() for key in [*keys, new])]
    logs = [person.document, person.phone, pan, "ROJAS", *texts]
    everywhere = [*keys, new, *(bytes.fromhex(text) for text in texts)]
    everywhere += [case(text).encode() for text in texts for case in (str.lower, str.upper)]
    log = only.node.log.read_text()
    for text in logs:
        assert text not in log
        assert text.lower() not in log
    assert not re.search(r"Traceback|Error\b", log)
    for path in only.config.parent.rglob("*"):
        if path.is_file() and path.name != "people.csv":
            data = path.read_bytes()
            for secret in everywhere:
                assert secret not in data, path.name
    _, metrics = only.node.get("/metrics")
    assert not [text for text in logs if text in metrics]


# --- other hosts ---------------------------------------------------------------------------------


def test_host_that_is_disabled_and_enabled(whole: Place) -> None:
    """A host that is disabled loses its connections; its holds stay."""
    keys, number = whole.hosts["keyed"], whole.number()
    with signed_on(whole.address, keys) as client:
        assert client.code("0100", client.hold(number, whole.person().document, A)) == "00"
        assert told("host", "disable", "keyed", config=whole.config)["disabled"]
        assert client.ends()
    with whole.raw(keys) as client:
        client.send(client.message("0800", {"70": SIGN_ON}))
        with pytest.raises((Ended, AssertionError)):
            client.receive()
    assert not told("host", "enable", "keyed", config=whole.config)["disabled"]
    with signed_on(whole.address, keys) as client:
        assert client.state(number) == "ACTIVA"


def test_P09_hosts_over_tls_with_certificates(tmp_path: Path) -> None:
    """Where the listener has TLS and demands certificates, nothing else is spoken with."""
    certificate(tmp_path)
    tls = '[tls.ceibo]\ncert = "../cert.pem"\nkey = "../key.pem"\nclient_ca = "../cert.pem"\n'
    place = Place(tmp_path / "node", "ceibo", (("[session]", tls + "[session]"),), people=0)
    place.start()
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        with (
            pytest.raises((ssl.SSLError, ConnectionError, Ended)),  # shows no certificate
            signed_on(place.address, place.keys, tls=context),
        ):
            pass
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        with signed_on(place.address, place.keys, tls=context) as client:
            messages = [client.message("0800", {"70": ECHO}) for _ in range(50)]
            client.send_bytes(b"".join(framed(client.body(message)) for message in messages))
            for message in messages:
                assert client.answer_to(message)["39"] == "00"
            assert client.code("0420", decision(place.number(), DEPOSIT, A, TIMEOUT)) == "25"
            with place.raw() as plain:
                plain.send(plain.message("0800", {"70": SIGN_ON}))
                with pytest.raises((Ended, AssertionError)):
                    plain.receive()
            assert client.manage(ECHO) == "00"
    finally:
        place.stop()


def certificate(directory: Path) -> None:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "host")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
