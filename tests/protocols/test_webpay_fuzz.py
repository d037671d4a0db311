"""Acceptance case WP-57: whatever strangers send, only the declared errors come of it.

With TRONCAL_FUZZ (`make fuzz`) each target is also tried for ten minutes, or TRONCAL_FUZZ_S
seconds, with damaged copies of good input; TRONCAL_SEED chooses them, and a failure names its seed
and input.
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.webpay import bitacora, events, kcc51, seal, shopform
from protocols.webpay.answer import Answer
from protocols.webpay.fields import Profile, Refusal, check_message, parse_url
from protocols.webpay.mac import payment_mac, verify_mac
from protocols.webpay.messages import parse_token_reply, reply_text
from protocols.webpay.pairs import PairsError, join_pairs, parse_pairs, signed_bytes
from tests.webpay_house import key

FILE = json.loads((Path(__file__).parents[1] / "vectors" / "webpay.json").read_text())
WIRE = FILE["seal_open"][0]["wire"].encode()
TEXTS = [case["text"].encode("latin-1") for case in FILE["bitacora_parse"]]
ANSWERS = [case["raw"].encode("latin-1") for case in FILE["shop_answer"]]
REQUEST = FILE["payment_request"][0]["message"].encode("latin-1")
PROFILE = Profile(
    code="597026007976", currency="CLP", return_hosts=("example.cl",),
    notify_url="http://127.0.0.1:8081/cgi-bin/tbk_bp_resultado.cgi", notify_ip="127.0.0.1",
    notify_port=8081,
)  # fmt: skip
SPARE = bytes(32)
LONG = bool(int(os.environ.get("TRONCAL_FUZZ", "0") or 0))
SECONDS = float(os.environ.get("TRONCAL_FUZZ_S", "600" if LONG else "0.3"))
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


def check_pairs(data: bytes) -> None:
    with contextlib.suppress(PairsError):
        pairs = parse_pairs(data)
        assert join_pairs(pairs) == data
        assert parse_pairs(signed_bytes(pairs) or b"A=") is not None
    clear = {"TBK_VERSION_KCC": "6.0", "TBK_CODIGO_COMERCIO": PROFILE.code, "TBK_KEY_ID": "101"}
    found = check_message(clear, data, PROFILE)
    assert isinstance(found, Refusal) or found.merchant == PROFILE.code


@given(mutated(REQUEST))
def test_WP_57_requests_with_a_right_checksum(data: bytes) -> None:
    try:
        pairs = parse_pairs(data)
    except PairsError:
        return
    fields = dict(pairs)
    mac = payment_mac(pairs, fields.get("TBK_CODIGO_COMERCIO", ""))
    whole = [(n, mac if n == "TBK_MAC" else v) for n, v in pairs]
    clear = {n: fields.get(n, "") for n in ("TBK_VERSION_KCC", "TBK_CODIGO_COMERCIO", "TBK_KEY_ID")}
    found = check_message(clear, join_pairs(whole), PROFILE)
    assert isinstance(found, Refusal) or found.hundredths > 0


@given(st.binary(max_size=400) | mutated(WIRE))
def test_WP_57_wires(wire: bytes) -> None:
    check_wire(wire)


def check_wire(wire: bytes) -> None:
    own, peer = key("sim_webpay_1024"), key("merchant_test_2048").public_key()
    with pytest.raises(seal.SealError):
        seal.open_wire(wire, own, peer, spare_key=SPARE)
    for direction in ("merchant_to_webpay", "webpay_to_merchant"):
        with contextlib.suppress(seal.SealError):
            kcc51.open_archived(wire, key("merchant51_test_1024"), direction)  # type: ignore[arg-type]


@given(st.data())
def test_WP_57_answers_in_any_pieces(data: st.DataObject) -> None:
    """However an answer is cut into reads, it comes to the same."""
    good = data.draw(st.sampled_from(ANSWERS))
    raw = data.draw(st.one_of(st.just(good), mutated(good), st.binary(max_size=200)))
    check_answer(raw, lambda most: data.draw(st.integers(1, most)))


def check_answer(raw: bytes, cut: Callable[[int], int]) -> None:
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


@given(st.data())
def test_WP_57_files(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from(TEXTS))
    check_file(data.draw(st.one_of(mutated(good), st.binary(max_size=300))))


def check_file(raw: bytes) -> None:
    public = key("merchant_test_2048").public_key()
    for record in bitacora.parse(raw, public).records:
        assert record.line >= 1
        assert record.outcome_name in (
            "CONFIRMED", "DECLINED", "DECLINED_UNACKED", "REVERSED", "UNREADABLE",
        )  # fmt: skip
    assert bitacora.check_mac(raw, public).good is False
    events.causes(raw)
    for line in raw.split(b"\n"):
        event = events.parse_event(line)
        if event is not None:
            assert len(events.event_line(event)) == events.LINE_CHARACTERS + 1


@given(st.text(max_size=80), st.text(max_size=600))
def test_WP_57_texts(text: str, mac: str) -> None:
    parse_url(text)
    assert verify_mac([("A", text)], mac, key("merchant_test_2048").public_key()) is False


# ---- for minutes

TARGETS: dict[str, tuple[list[bytes], Callable[[bytes, random.Random], None]]] = {
    "pairs": (
        [c["message"].encode("latin-1") for c in FILE["payment_request"]],
        lambda data, chance: check_pairs(data),
    ),
    "open": (
        [c["wire"].encode("latin-1") for c in FILE["seal_open"]],
        lambda data, chance: check_open(data),
    ),
    "answers": (
        ANSWERS,
        lambda data, chance: check_answer(data, lambda most: chance.randint(1, most)),
    ),
    "parser": (TEXTS, lambda data, chance: check_file(data)),
}


def check_open(wire: bytes) -> None:
    """A damaged wire opens only if nothing was damaged but its line ends."""
    own, peer = key("sim_webpay_1024"), key("merchant_test_2048").public_key()
    with contextlib.suppress(seal.SealError):
        opened, _, _ = seal.open_with(wire, [own, own], [peer, peer], spare_key=SPARE)
        assert wire.split() == WIRE.split(), opened.message
    with contextlib.suppress(seal.SealError):
        kcc51.open_archived(wire, key("merchant51_test_1024"), "webpay_to_merchant")


def damaged(good: list[bytes], chance: random.Random) -> bytes:
    """A good input with up to eight pieces taken out, put in, changed, or brought from another."""
    data = bytearray(chance.choice(good))
    for _ in range(chance.randint(1, 8)):
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
    good, check = TARGETS[target]
    chance = random.Random(f"{SEED} {target}")
    tried, until = 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        data = damaged(good, chance)
        tried += 1
        try:
            check(data, chance)
        except Exception as error:
            error.add_note(f"TRONCAL_SEED={SEED}, input {tried} of {target}: {data!r}")
            raise
    if LONG:
        with capsys.disabled():
            print(f"\nWP-57 {target}: {tried} inputs in {SECONDS:.0f} s, seed {SEED}")
    assert tried
