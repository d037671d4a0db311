"""Vectors of Webpay: genuine records of 2013 to 2016, kit 6.0.2 as observed, published keys."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPrivateNumbers,
    RSAPublicKey,
    RSAPublicNumbers,
    rsa_crt_dmp1,
    rsa_crt_dmq1,
    rsa_crt_iqmp,
)

from protocols.iso8583.bank import amount_text
from protocols.webpay import bitacora, events, kcc51, mac, seal, shopform
from protocols.webpay.decision import decide
from protocols.webpay.fields import Profile, check_request, de4_amount, parse_amount
from protocols.webpay.messages import ResultFields, reply_text, result_pairs
from protocols.webpay.pairs import join_pairs, parse_pairs, signed_bytes

VECTORS = Path(os.environ.get("TRONCAL_VECTORS", Path(__file__).parents[1] / "vectors"))
FILE = json.loads((VECTORS / "webpay.json").read_text())
SPARE = bytes(range(32))
EXPONENTS = {"CLP": 0, "USD": 2}


def cases(group: str) -> Any:
    found = FILE.get(group, [])
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


def raw(text: str) -> bytes:
    return text.encode("latin-1")


@cache
def public(name: str) -> RSAPublicKey:
    key = FILE["keys"][name]
    return RSAPublicNumbers(int(key["e"], 16), int(key["n"], 16)).public_key()


@cache
def private(name: str) -> RSAPrivateKey:
    key = {part: int(text, 16) for part, text in FILE["keys"][name].items() if part in "nedpq"}
    p, q, d = key["p"], key["q"], key["d"]
    numbers = RSAPrivateNumbers(
        p, q, d, rsa_crt_dmp1(d, p), rsa_crt_dmq1(d, q), rsa_crt_iqmp(p, q),
        RSAPublicNumbers(key["e"], key["n"]),
    )  # fmt: skip
    return numbers.private_key()


def test_every_group_is_run() -> None:
    known = {
        "_about", "keys", "profiles", "mac_verify", "mac_sign", "seal_open", "seal_fixed",
        "reply_text", "payment_mac", "payment_request", "amount", "result_message",
        "kit_round_trip", "shop_answer", "decision", "outcome", "bitacora_line", "bitacora_parse",
        "check_mac", "event_log", "kcc51",
    }  # fmt: skip
    assert FILE.keys() <= known


@cases("mac_verify")
def test_mac_verify(case: dict[str, Any]) -> None:
    pairs = tuple((name, value) for name, value in case["pairs"])
    assert mac.verify_mac(pairs, case["tbk_mac"], public(case["key"])) is case["expect"]


@cases("mac_sign")
def test_mac_sign(case: dict[str, Any]) -> None:
    pairs = parse_pairs(raw(case["signed_text"]))
    assert signed_bytes(pairs) == raw(case["signed_text"])
    assert mac.sign_mac(pairs, private(case["key"])) == case["tbk_mac"]


@cases("seal_open")
def test_seal_open(case: dict[str, Any]) -> None:
    expect, wire = case["expect"], raw(case["wire"])
    own, peer = private(case["open_with"]), public(case["verify_with"])
    if not expect["ok"]:
        with pytest.raises(seal.SealError, match=r"^the sealed message does not open$"):
            seal.open_wire(wire, own, peer, spare_key=SPARE)
        return
    opened = seal.open_wire(wire, own, peer, spare_key=SPARE)
    assert opened.message == raw(expect["message"])
    assert opened.signature.hex() == expect["signature"]
    whole = seal.decoded(wire)
    assert len(whole) == expect["raw_len"]
    assert whole[:16].hex() == expect["iv"]
    text = seal.ciphertext(
        opened.message, opened.signature, bytes.fromhex(expect["aes_key"]), whole[:16]
    )
    assert whole.endswith(text)


@cases("seal_fixed")
def test_seal_fixed(case: dict[str, Any]) -> None:
    expect, message = case["expect"], raw(case["message"])
    aes_key, iv = bytes.fromhex(case["aes_key"]), bytes.fromhex(case["iv"])
    signature = seal.sign(message, private(case["sign_with"]))
    assert signature.hex() == expect["signature"]
    assert seal.ciphertext(message, signature, aes_key, iv).hex() == expect["ciphertext"]
    wire = seal.seal_wire(
        message, private(case["sign_with"]), public(case["seal_for"]), aes_key=aes_key, iv=iv
    )
    assert len(seal.decoded(wire)) == expect["raw_len"]
    assert len(wire) == expect["wire_len"]
    lines = wire.split(b"\n")
    assert len(lines) - 1 == expect["lines"]
    assert {len(line) for line in lines[:-2]} <= {64}
    assert lines[-1] == b""
    if "d" in FILE["keys"][case["seal_for"]]:
        opened = seal.open_wire(
            wire, private(case["seal_for"]), public(case["sign_with"]), spare_key=SPARE
        )
        assert opened == (message, signature)


@cases("reply_text")
def test_reply_text(case: dict[str, Any]) -> None:
    assert reply_text(raw(case["message"])) == case["expect"]


@cases("payment_mac")
def test_payment_mac(case: dict[str, Any]) -> None:
    pairs = parse_pairs(raw(case["message"]))
    assert mac.payment_mac(pairs, case["merchant"]) == case["md5"]
    assert (dict(pairs)["TBK_MAC"] == case["md5"]) is case["expect"]


def profiles() -> dict[str, Profile]:
    return {
        code: Profile(
            code=code,
            currency=p["currency"],
            active=p["active"],
            key_ids=tuple(p["key_ids"]),
            return_hosts=tuple(p["return_hosts"]),
            notify_url=p["notify_url"],
            notify_ip=p["notify_ip"],
            notify_port=p["notify_port"],
            fixed_instalments=p["fixed_instalments"],
        )
        for code, p in FILE["profiles"].items()
    }


@cases("payment_request")
def test_payment_request(case: dict[str, Any]) -> None:
    found = check_request(case["clear"], raw(case["message"]), profiles())
    tag, error = getattr(found, "tag", "OK"), getattr(found, "error", 0)
    assert {"tag": tag, "error": error} == case["expect"]


@cases("amount")
def test_amount(case: dict[str, Any]) -> None:
    hundredths = parse_amount(case["text"], case["currency"])
    assert (hundredths is not None) is case["expect"]["ok"]
    if hundredths is None:
        return
    assert hundredths == case["expect"]["hundredths"]
    de4 = de4_amount(hundredths, EXPONENTS[case["currency"]])
    assert de4 is not None
    assert amount_text(de4, case["currency"]) == case["expect"]["de4"]


@cases("result_message")
def test_result_message(case: dict[str, Any]) -> None:
    assert join_pairs(result_pairs(ResultFields(**case["input"]))) == raw(case["expect"])


@cases("kit_round_trip")
def test_kit_round_trip(case: dict[str, Any]) -> None:
    shop, webpay = case["open_with"], case["verify_with"]
    opened = seal.open_wire(
        raw(case["notification_wire"]), private(shop), public(webpay), spare_key=SPARE
    )
    assert opened.message == raw(case["message"])
    assert opened.signature.hex() == case["tbk_mac"]
    pairs = parse_pairs(opened.message)
    body = shopform.closing_body(pairs, case["tbk_mac"], encoding="kcc")
    assert body == raw(case["shop_request_body"])
    url = case["shop_request_head"].split()[1]
    request = shopform.closing_request(url, body, encoding="kcc")
    assert request == raw(case["shop_request_head"]) + b"\r\n\r\n" + body
    accepted = shopform.classify(raw(case["shop_answer"]), "kcc") == "ACCEPTED"
    assert accepted is (case["kit_reply_message"] == "ACK")
    reply = seal.open_wire(
        raw(case["kit_reply_wire"]), private(webpay), public(shop), spare_key=SPARE
    )
    assert reply.message == raw(case["kit_reply_message"])
    assert reply_text(reply.message) == case["kit_reply_message"]
    prefix = case["kit_reply_message"]
    line = bitacora.line(prefix, case["merchant"], pairs, case["tbk_mac"], "kcc602")
    assert line.rstrip(b"\n") == raw(case["bitacora_line"]).rstrip(b"\n")
    assert bitacora.file_name(pairs) == case["bitacora_file"]
    for text in raw(case["event_log"]).splitlines():
        event = events.parse_event(text)
        assert event is not None
        assert events.event_line(event) == text + b"\n"


@cases("shop_answer")
def test_shop_answer(case: dict[str, Any]) -> None:
    for rule in ("kcc", "strict"):
        assert shopform.classify(raw(case["raw"]), rule) == case["expect"][rule]  # type: ignore[arg-type]


@cases("decision")
def test_decision(case: dict[str, Any]) -> None:
    found = decide(case["respuesta"], case["answer"], case["elapsed_ms"])
    expect = case["expect"]
    assert found.prefix == expect["prefix"]
    assert found.outcome == expect["outcome"]
    assert (found.cause or None) == expect["cause"]
    assert (found.charged, found.reversal) == (expect["charged"], expect["reversal"])
    assert found.page == expect["page"]


@cases("outcome")
def test_outcome(case: dict[str, Any]) -> None:
    found = bitacora.outcome(case["prefix"], case["respuesta"])
    assert (found.name if found else "UNREADABLE") == case["expect"]["outcome"]
    if found:
        assert found.charged is case["expect"]["charged"]
        assert found.reversed is case["expect"]["reversed"]


@cases("bitacora_line")
def test_bitacora_line(case: dict[str, Any]) -> None:
    pairs = parse_pairs(raw(case["message"]))
    line = bitacora.line(case["prefix"], case["merchant"], pairs, case["tbk_mac"], case["style"])
    assert line == raw(case["expect"])


@cases("bitacora_parse")
def test_bitacora_parse(case: dict[str, Any]) -> None:
    key = public(case["key"]) if case["key"] else None
    parsed = bitacora.parse(raw(case["text"]), key)
    assert parsed.skipped == case["expect"]["skipped"]
    assert len(parsed.records) == len(case["expect"]["records"])
    for record, expect in zip(parsed.records, case["expect"]["records"], strict=True):
        shown = {
            "line": record.line,
            "prefix": record.prefix,
            "outcome": record.outcome_name,
            "charged": record.outcome.charged if record.outcome else None,
            "reversed": record.outcome.reversed if record.outcome else None,
            "mac": record.mac,
            "n_pairs": len(record.pairs),
        } | {column: record.value(column) for column, _ in bitacora.COLUMNS}
        assert {name: shown[name] for name in expect} == expect


@cases("check_mac")
def test_check_mac(case: dict[str, Any]) -> None:
    good = bitacora.check_mac(raw(case["file"]), public(case["key"])).good
    said = {True: ("CORRECTO\n", 0), False: ("INVALIDO\n", 255)}[good]
    assert said == (case["expect"]["stdout"], case["expect"]["exit"])


@cases("event_log")
def test_event_log(case: dict[str, Any]) -> None:
    event = events.parse_event(raw(case["line"]))
    assert event is not None
    assert {name: getattr(event, name) for name in case["expect"]} == case["expect"]
    if len(case["line"].rstrip("\n")) == events.LINE_CHARACTERS:
        assert events.event_line(event) == raw(case["line"].rstrip("\n")) + b"\n"


@cases("kcc51")
def test_kcc51(case: dict[str, Any]) -> None:
    wire, message = raw(case["wire"]), raw(case["message"])
    key = private(case["key"])
    assert kcc51.open_archived(wire, key, case["direction"]) == message
    if case.get("payment_mac_ok"):
        assert any(kcc51.verify(message, code) for code in ("597026016975", "1234567890"))
    if case["deterministic"]:
        again = b"".join(_type_1(message[at : at + 117], key) for at in range(0, len(message), 117))
        assert kcc51._raw(wire) == again


def _type_1(block: bytes, key: RSAPrivateKey) -> bytes:
    """PKCS#1 type 1 by the textbook."""
    numbers = key.private_numbers()
    size = (key.key_size + 7) // 8
    padded = b"\x00\x01" + b"\xff" * (size - 3 - len(block)) + b"\x00" + block
    value = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n)
    return value.to_bytes(size, "big")
