"""Acceptance case WP-57: whatever strangers send, only the declared errors come of it."""

import contextlib
import json
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
    at_once = shopform.classify(raw)
    answer = Answer()
    rest = raw
    while rest and not answer.ended:
        count = data.draw(st.integers(1, len(rest)))
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
    raw = data.draw(st.one_of(mutated(good), st.binary(max_size=300)))
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
