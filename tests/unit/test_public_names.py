"""The names that are promised to those who embed a part, used as a stranger would."""

import pytest

import core_ext
from core_ext import Batch, Ledger, Result, mac
from protocols import cip, transfiya, webpay
from protocols.codec import Codec
from protocols.iso8583 import Dialect, FormatError


def test_dialect() -> None:
    dialect = Dialect.load("ceibo")
    elements = {"11": "000001", "37": "000000000042", "48": {"01": "CI4567890", "03": "aabb"}}
    data = dialect.encode({"mti": "0100", **elements})
    message = dialect.decode(data)
    assert (message.mti, message["11"], message.get("48.03")) == ("0100", "000001", "aabb")
    assert message.get("39") is None
    assert dict(message.items()) == elements
    assert dialect.encode(dict(message.items()) | {"mti": message.mti}) == data
    with pytest.raises(FormatError):
        dialect.decode(data[:-1])


def test_ledger() -> None:
    ledger = Ledger()
    card, till = bytes(15) + b"\x01", bytes(15) + b"\x02"
    batch = Batch()
    batch.create_account(card, ledger=1, code=1)
    batch.create_account(till, ledger=1, code=2)
    batch.transfer(till, card, 1000)
    assert ledger.apply(batch, 1) == [Result.DONE] * 3
    balance = ledger.balance(card)
    assert balance is not None
    assert balance.available == 1000


def test_mac() -> None:
    assert core_ext.mac is mac
    key = mac.MacKey("aes-cmac", bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))
    assert key.mac(b"").hex() == "bb1d6929e95937287fa37d129b756746"  # RFC 4493, example 1
    assert key.verify(b"", key.mac(b"")[:8])
    assert (
        mac.totp(b"12345678901234567890", 59, digits=8, step_s=30, algorithm="sha1") == "94287082"
    )


def test_codec_and_products() -> None:
    assert hasattr(Codec, "feed")
    for module in (webpay, transfiya, cip):
        assert module.__doc__
