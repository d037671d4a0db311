"""Acceptance case WP-57: whatever strangers send, only the declared errors come of it.

With TRONCAL_FUZZ (`make fuzz`) each target is also tried for ten minutes, or TRONCAL_FUZZ_S
seconds, with damaged copies of good input; TRONCAL_SEED chooses them, and a failure names its seed
and input.
"""

import base64
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from hypothesis import given
from hypothesis import strategies as st

from protocols.webpay import bitacora, events, kcc51, seal, shopform
from protocols.webpay.answer import Answer
from protocols.webpay.fields import (
    ERRORS,
    Profile,
    Refusal,
    check_message,
    is_returnable,
    parse_url,
)
from protocols.webpay.mac import payment_mac, verify_mac
from protocols.webpay.messages import parse_token_reply, reply_text
from protocols.webpay.pairs import PairsError, join_pairs, parse_pairs, signed_bytes
from tests.webpay_house import key

FILE = json.loads((Path(__file__).parents[1] / "vectors" / "webpay.json").read_text())
# Sealed under a key whose private part is quick, so that thousands a second are really opened.
SEALED = next(
    c for c in FILE["seal_open"]
    if (c["open_with"], c["verify_with"]) == ("merchant_test_2048", "sim_webpay_1024")
)  # fmt: skip
WIRE = SEALED["wire"].encode()
RAW = base64.b64decode(WIRE)
IV = bytes.fromhex(SEALED["expect"]["iv"])
AES_KEY = bytes.fromhex(SEALED["expect"]["aes_key"])
MESSAGE = SEALED["expect"]["message"].encode("latin-1")
PLAIN = bytes.fromhex(SEALED["expect"]["signature"]) + MESSAGE
HEAD_BYTES = 16 + 256  # IV and the sealed key, of 2048 bits
TEXTS = [case["text"].encode("latin-1") for case in FILE["bitacora_parse"]]
ANSWERS = [case["raw"].encode("latin-1") for case in FILE["shop_answer"]]
REQUEST = FILE["payment_request"][0]["message"].encode("latin-1")
PROFILE = Profile(
    code="597026007976", currency="CLP", return_hosts=("example.cl",),
    notify_url="http://127.0.0.1:8081/cgi-bin/tbk_bp_resultado.cgi", notify_ip="127.0.0.1",
    notify_port=8081,
)  # fmt: skip
SPARE = bytes(32)
CERTIFIED = RSAPublicNumbers(
    int(FILE["keys"]["webpay_cert_101"]["e"], 16), int(FILE["keys"]["webpay_cert_101"]["n"], 16)
).public_key()
LONG = bool(int(os.environ.get("TRONCAL_FUZZ", "0") or 0))
SECONDS = float(os.environ.get("TRONCAL_FUZZ_S", "600" if LONG else "0.3"))
TRIES = 20_000
SEED = int(os.environ.get("TRONCAL_SEED", "0") or 0) or 57


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Something good with pieces taken out, put in, repeated."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at:at] = draw(st.binary(max_size=8))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at : at + 1] = bytes((draw(st.integers(0, 255)),))
            case _:
                data[at:at] = data[at : at + 60]
    return bytes(data)


@given(st.binary(max_size=300) | mutated(REQUEST))
def test_WP_57_pairs_and_requests(data: bytes) -> None:
    check_pairs(data)


def check_pairs(data: bytes) -> str:
    """What became of a request: `not pairs`, a tag of a check, or `OK`."""
    with contextlib.suppress(PairsError):
        pairs = parse_pairs(data)
        assert join_pairs(pairs) == data
        assert parse_pairs(signed_bytes(pairs) or b"A=") is not None
    clear = {"TBK_VERSION_KCC": "6.0", "TBK_CODIGO_COMERCIO": PROFILE.code, "TBK_KEY_ID": "101"}
    found = check_message(clear, data, PROFILE)
    if isinstance(found, Refusal):
        assert ERRORS[found.tag] == found.error
        return found.tag
    assert found.merchant == PROFILE.code
    assert 0 < found.hundredths < 10**12
    for url in (found.url_ok, found.url_fail):
        where = parse_url(url)
        assert where is not None
        assert is_returnable(where, PROFILE.return_hosts)
    return "OK"


@given(mutated(REQUEST))
def test_WP_57_requests_with_a_right_checksum(data: bytes) -> None:
    check_pairs(summed(data))


def summed(data: bytes) -> bytes:
    """A request with its checksum made right, so that what is in it comes to be looked at."""
    try:
        pairs = parse_pairs(data)
    except PairsError:
        return data
    mac = payment_mac(pairs, dict(pairs).get("TBK_CODIGO_COMERCIO", ""))
    return join_pairs((n, mac if n == "TBK_MAC" else v) for n, v in pairs)


@given(st.binary(max_size=400) | mutated(WIRE))
def test_WP_57_wires(wire: bytes) -> None:
    check_wire(wire)


def check_wire(wire: bytes) -> None:
    check_open(wire)
    for direction in ("merchant_to_webpay", "webpay_to_merchant"):
        with contextlib.suppress(seal.SealError):
            kcc51.open_archived(wire, key("merchant51_test_1024"), direction)  # type: ignore[arg-type]


@given(st.data())
def test_WP_57_answers_in_any_pieces(data: st.DataObject) -> None:
    """However an answer is cut into reads, it comes to the same."""
    good = data.draw(st.sampled_from(ANSWERS))
    raw = data.draw(st.one_of(st.just(good), mutated(good), st.binary(max_size=200)))
    check_answer(raw, lambda most: data.draw(st.integers(1, most)))


def check_answer(raw: bytes, cut: Callable[[int], int]) -> str:
    """What an answer is, however it is cut into reads."""
    at_once = shopform.classify(raw)
    answer = Answer()
    rest = raw
    while rest and not answer.ended:
        count = cut(len(rest))
        answer.feed(rest[:count])
        rest = rest[count:]
    answer.close()
    assert shopform.verdict(answer) == at_once
    assert at_once in ("ACCEPTED", "REJECTED", "INVALID")
    assert shopform.classify(raw, "kcc") in ("ACCEPTED", "NOT_ACCEPTED")
    reply_text(raw)
    parse_token_reply(raw)
    return at_once


@given(st.data())
def test_WP_57_files(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from(TEXTS))
    check_file(data.draw(st.one_of(mutated(good), st.binary(max_size=300))))


def check_file(raw: bytes) -> str:
    """The rarest thing that a file holds: a good signature, a record, or neither."""
    keys = [key("merchant_test_2048").public_key(), CERTIFIED]
    kinds = {"nothing"}
    for record in bitacora.parse(raw, keys).records:
        assert record.line >= 1
        assert record.outcome_name in (
            "CONFIRMED", "DECLINED", "DECLINED_UNACKED", "REVERSED", "UNREADABLE",
        )  # fmt: skip
        assert record.mac in ("absent", "not_checkable", "ok", "bad")
        kinds |= {record.mac, record.outcome_name}
    assert isinstance(bitacora.check_mac(raw, keys).good, bool)
    events.causes(raw)
    for line in raw.split(b"\n"):
        event = events.parse_event(line)
        if event is not None:
            assert len(events.event_line(event)) == events.LINE_CHARACTERS + 1
    return next(kind for kind in ("ok", "bad", "CONFIRMED", "UNREADABLE", *kinds) if kind in kinds)


@given(st.text(max_size=80), st.text(max_size=600))
def test_WP_57_texts(text: str, mac: str) -> None:
    parse_url(text)
    assert verify_mac([("A", text)], mac, key("merchant_test_2048").public_key()) is False


# ---- for minutes


def check_open(wire: bytes) -> str:
    """A wire opens to what was signed, or not at all."""
    own, peer = key("merchant_test_2048"), key("sim_webpay_1024").public_key()
    result = "refused"
    with contextlib.suppress(seal.SealError):
        opened, _, _ = seal.open_with(wire, [own], [peer], spare_key=SPARE)
        assert (opened.message, opened.signature + opened.message) == (MESSAGE, PLAIN)
        result = "opened"
    with contextlib.suppress(seal.SealError):
        kcc51.open_archived(wire, key("merchant51_test_1024"), "webpay_to_merchant")
    return result


def some_wire(chance: random.Random) -> bytes:
    """A wire damaged in its characters, in its bytes, or under its own seal; or not at all."""
    layer = chance.randrange(10)
    if layer < 3:
        return damaged([WIRE], chance)
    if layer == 3:
        return wrapped(RAW, chance)
    if layer < 7:
        return wrapped(damaged([RAW], chance), chance)
    plain = damaged([PLAIN, MESSAGE], chance)
    if layer < 9:  # padded as it must be; else by anything
        plain += bytes((16 - len(plain) % 16,)) * (16 - len(plain) % 16)
    plain += chance.randbytes(-len(plain) % 16)
    encryptor = Cipher(AES(AES_KEY), CBC(IV)).encryptor()
    return wrapped(RAW[:HEAD_BYTES] + encryptor.update(plain) + encryptor.finalize(), chance)


def wrapped(raw: bytes, chance: random.Random) -> bytes:
    """Base64 in lines of any length."""
    text, width = base64.b64encode(raw), chance.choice((64, 76, 1, 10_000))
    end = chance.choice((b"\n", b"\r\n"))
    return end.join(text[at : at + width] for at in range(0, len(text), width)) + end


def some_request(chance: random.Random) -> bytes:
    """A damaged request, mostly with the right checksum."""
    data = damaged([c["message"].encode("latin-1") for c in FILE["payment_request"]], chance)
    return data if chance.random() < 0.2 else summed(data)


# How an input is made, what is done with it, and what must come of some of them: a target that
# refuses everything tries nothing.
TARGETS: dict[
    str,
    tuple[Callable[[random.Random], bytes], Callable[[bytes, random.Random], str], tuple[str, ...]],
] = {
    "pairs": (
        some_request,
        lambda data, chance: check_pairs(data),
        ("PAIRS", "PAYMENT_MAC", "UNKNOWN_NAME", "OK"),
    ),
    "open": (some_wire, lambda data, chance: check_open(data), ("refused", "opened")),
    "answers": (
        lambda chance: damaged(ANSWERS, chance),
        lambda data, chance: check_answer(data, lambda most: chance.randint(1, most)),
        ("ACCEPTED", "REJECTED", "INVALID"),
    ),
    "parser": (
        lambda chance: damaged(TEXTS, chance),
        lambda data, chance: check_file(data),
        ("ok", "bad", "UNREADABLE"),
    ),
}


def damaged(good: list[bytes], chance: random.Random) -> bytes:
    """A good input with up to eight pieces taken out, put in, changed, or brought from another."""
    data = bytearray(chance.choice(good))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case 1:
                del data[at : at + chance.randint(1, 40)]
            case 2:
                data[at : at + 1] = bytes((chance.randrange(256),))
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 200)]
            case 4:
                other = chance.choice(good)
                begin = chance.randrange(len(other) + 1)
                data[at:at] = other[begin : begin + chance.randint(1, 80)]
            case _:
                data[at:at] = chance.choice((b"#", b"=", b";", b"%", b"&", b"\r\n", b"\n\n", b"\0"))
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.timeout(SECONDS + 120)
def test_WP_57_for_minutes(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, check, wanted = TARGETS[target]
    chance = random.Random(f"{SEED} {target}")
    found: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    # In a short run on a slow machine time is no measure of whether anything was tried.
    while time.monotonic() < until or (not found.keys() >= set(wanted) and found.total() < TRIES):
        data = make(chance)
        try:
            found[check(data, chance)] += 1
        except Exception as error:
            error.add_note(f"TRONCAL_SEED={SEED}, input {found.total()} of {target}: {data!r}")
            raise
    if LONG:
        with capsys.disabled():
            print(f"\nWP-57 {target}: {found.total()} inputs in {SECONDS:.0f} s, seed {SEED}")
            print(f"    {dict(found.most_common())}")
    assert found.keys() >= set(wanted)
