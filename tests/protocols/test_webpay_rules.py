"""Rules of Webpay that no single vector shows: orders of fields and of checks, one error."""

import base64
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols.webpay import fields, seal
from protocols.webpay.mac import payment_mac
from protocols.webpay.pairs import join_pairs, parse_pairs
from tests.webpay_shops import private, public

FILE = json.loads((Path(__file__).parents[1] / "vectors" / "webpay.json").read_text())
CODE = "597026007976"
PROFILE = fields.Profile(
    code=CODE, currency="CLP", return_hosts=("example.cl",),
    notify_url="http://127.0.0.1:8081/cgi-bin/tbk_bp_resultado.cgi", notify_ip="127.0.0.1",
    notify_port=8081,
)  # fmt: skip
CLEAR = {"TBK_VERSION_KCC": "6.0", "TBK_CODIGO_COMERCIO": CODE, "TBK_KEY_ID": "101"}
GOOD = dict(parse_pairs(FILE["payment_request"][0]["message"].encode("latin-1")))
Change = Callable[[dict[str, str], dict[str, str]], object]


def summed(values: dict[str, str]) -> bytes:
    """The message with a right checksum."""
    mac = payment_mac(values.items(), values["TBK_CODIGO_COMERCIO"])
    return join_pairs((values | {"TBK_MAC": mac}).items())


def checked(clear: dict[str, str], message: bytes) -> str:
    found = fields.check_request(clear, message, {CODE: PROFILE})
    return getattr(found, "tag", "OK")


def test_fields_may_come_in_any_order() -> None:
    chance = random.Random(33)
    for _ in range(40):
        names = list(GOOD)
        chance.shuffle(names)
        found = fields.check_request(
            CLEAR, summed({name: GOOD[name] for name in names}), {CODE: PROFILE}
        )
        assert isinstance(found, fields.PaymentRequest)
        assert (found.order, found.amount) == (GOOD["TBK_ORDEN_COMPRA"], GOOD["TBK_MONTO"])


# What makes each check fail, in the order in which the first one decides. The checksum is the last
# thing made, and wrong only from PAYMENT_MAC back.
IN_ORDER: list[tuple[str, Change]] = [
    ("VERSION", lambda clear, m: clear.update(TBK_VERSION_KCC="5.1")),
    ("MERCHANT", lambda clear, m: clear.update(TBK_CODIGO_COMERCIO="597000000000")),
    ("KEY", lambda clear, m: clear.update(TBK_KEY_ID="100")),
    ("PAIRS", lambda clear, m: m.update({"minusculas": "x"})),
    ("CODE_MISMATCH", lambda clear, m: m.update(TBK_CODIGO_COMERCIO="597000000001")),
    ("VERSION", lambda clear, m: m.update(TBK_VERSION_KCC="5.1")),
    ("KEY", lambda clear, m: m.update(TBK_KEY_ID="100")),
    ("PAYMENT_MAC", lambda clear, m: m.update(TBK_MAC="0" * 32)),
    ("TYPE", lambda clear, m: m.update(TBK_TIPO_TRANSACCION="TR_MALL")),
    ("UNKNOWN_NAME", lambda clear, m: m.update(TBK_DESCUENTO="1")),
    ("TX_ID", lambda clear, m: m.update(TBK_ID_TRANSACCION="12345678901")),
    ("AMOUNT", lambda clear, m: m.update(TBK_MONTO="10050")),
    ("ORDER", lambda clear, m: m.update(TBK_ORDEN_COMPRA="a+b")),
    ("SESSION", lambda clear, m: m.update(TBK_ID_SESION="x" * 62)),
    ("URL_OK", lambda clear, m: m.update(TBK_URL_EXITO="http://evil.example/")),
    ("URL_FAIL", lambda clear, m: m.update(TBK_URL_FRACASO="ftp://example.cl/")),
    ("CGI_URL", lambda clear, m: m.update(TBK_URL_CGI_COMERCIO="http://10.0.0.9/")),
    ("CGI_SERVER", lambda clear, m: m.update(TBK_SERVIDOR_COMERCIO="10.0.0.9")),
    ("CGI_PORT", lambda clear, m: m.update(TBK_PUERTO_COMERCIO="9")),
    ("INSTALMENTS", lambda clear, m: m.update(TBK_NUMERO_CUOTAS="3")),
]
ERRORS = {
    "VERSION": 12, "MERCHANT": 14, "KEY": 1, "PAIRS": 1, "CODE_MISMATCH": 14, "PAYMENT_MAC": 1,
    "TYPE": 16, "UNKNOWN_NAME": 1, "TX_ID": 30, "AMOUNT": 33, "ORDER": 29, "SESSION": 94,
    "URL_OK": 31, "URL_FAIL": 32, "CGI_URL": 17, "CGI_SERVER": 18, "CGI_PORT": 19,
    "INSTALMENTS": 91, "INACTIVE": 22, "SEAL": 1, "DUPLICATE_NAME": 1, "DUPLICATE_ORDER": 21,
}  # fmt: skip


@pytest.mark.parametrize("first", range(len(IN_ORDER)))
def test_the_first_check_that_fails_decides(first: int) -> None:
    """All checks from one on fail, and it is that one that is told."""
    clear, message = dict(CLEAR), dict(GOOD)
    for _, spoil in IN_ORDER[first:]:
        spoil(clear, message)
    wrong_sum = any(tag == "PAYMENT_MAC" for tag, _ in IN_ORDER[first:])
    sealed = join_pairs(message.items()) if wrong_sum else summed(message)
    found = fields.check_request(clear, sealed, {CODE: PROFILE})
    tag = IN_ORDER[first][0]
    assert found == fields.Refusal(tag, ERRORS[tag])


def test_every_refusal_has_its_number() -> None:
    assert dict(fields.ERRORS) == ERRORS


@pytest.mark.parametrize("name", fields.REQUIRED)
def test_no_required_field_may_be_missing(name: str) -> None:
    left = {key: value for key, value in GOOD.items() if key != name}
    mac = payment_mac(left.items(), CODE)
    message = join_pairs((left | ({} if name == "TBK_MAC" else {"TBK_MAC": mac})).items())
    assert checked(CLEAR, message) != "OK"


def test_a_key_that_does_not_unwrap_costs_the_same_steps() -> None:
    """Where OAEP fails the opener decrypts and verifies with the spare key, which here is right."""
    case = next(c for c in FILE["seal_open"] if c["open_with"] == "merchant_test_2048")
    raw = bytearray(base64.b64decode(case["wire"]))
    raw[16 + 100] ^= 1  # in the wrapped key
    wire = base64.b64encode(bytes(raw))
    own, peer = private("merchant_test_2048"), public(case["verify_with"])
    spare = bytes.fromhex(case["expect"]["aes_key"])
    opened = seal.open_wire(wire, own, peer, spare_key=spare)
    assert opened.message == case["expect"]["message"].encode("latin-1")
    with pytest.raises(seal.SealError):
        seal.open_wire(wire, own, peer, spare_key=bytes(32))


def test_messages_of_KCC_51_are_read_by_one_offline_command_only() -> None:
    """Anybody with a merchant's public key can forge them: no listener and no flow knows how."""
    top = Path(__file__).parents[2]
    users = [
        str(path.relative_to(top))
        for room in ("switch", "protocols", "core_ext")
        for path in (top / room).rglob("*.py")
        if "kcc51" in path.read_text() and path.name != "kcc51.py"
        and re.search(r"(import|from)[^\n]*\bkcc51\b", path.read_text())
    ]  # fmt: skip
    assert users == ["switch/cli/webpay.py"]


def test_wires_longer_than_8192_characters_are_none() -> None:
    own, peer = private("merchant_test_2048"), public("sim_webpay_1024")
    for length, opens in ((3000, True), (6300, False)):
        wire = seal.seal_wire(
            b"x" * length, private("sim_webpay_1024"), own.public_key(), aes_key=bytes(32),
            iv=bytes(16),
        )  # fmt: skip
        assert (len(wire) <= seal.WIRE_CHARACTERS_MAX) is opens
        try:
            seal.open_wire(wire, own, peer, spare_key=bytes(32))
        except seal.SealError:
            assert not opens
        else:
            assert opens
