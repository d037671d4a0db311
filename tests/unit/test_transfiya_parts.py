"""TransfiYa in small: the self-test at the start, JSON of any value, signatures of any bytes."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.transfiya import (
    BodyError,
    SigningKey,
    check_iou,
    decode,
    ecdsa,
    eddsa,
    handle,
    self_test,
    stable,
)
from protocols.transfiya.stable import DEPTH_MAX, es_number
from switch.flows.transfiya_records import ENTRIES, Entry
from switch.journal.projections.transfiya import PROJECTION
from switch.sections.transfiya import Bank, Transfiya, findings

HANDLE = "wfsGTaiZ7MpUZ45hcv8A9Wz2wQJP6RVkxk"


def test_the_digest_tests_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    self_test()
    monkeypatch.setattr(handle, "ripemd160", lambda data: bytes(20))
    with pytest.raises(RuntimeError, match="RIPEMD"):
        self_test()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(value: float) -> None:
    text = es_number(value)
    assert float(text) == value
    assert not text.endswith(".0")


@given(st.recursive(st.none() | st.booleans() | st.text() | st.integers(-(2**53) + 1, 2**53 - 1),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_stable_json_says_the_same(value: object) -> None:
    assert json.loads(stable(value)) == value
    assert stable(json.loads(stable(value))) == stable(value)


def test_depth_and_surrogates() -> None:
    good = b"[" * DEPTH_MAX + b"]" * DEPTH_MAX
    assert decode(good)
    for body in (b"[" + good + b"]", b'"\\ud800"', b"\xff", b"{", b"[" * 100_000):
        with pytest.raises(BodyError):
            decode(body)


@given(st.binary(min_size=1, max_size=32), st.binary(max_size=100))
def test_short_secrets_sign_as_verified(secret: bytes, message: bytes) -> None:
    key = SigningKey(secret, allow_short=True)
    assert eddsa.verify(key.public, message, key.sign(message))
    assert not eddsa.verify(key.public, message + b"x", key.sign(message))


@given(st.binary(max_size=80), st.binary(max_size=70), st.binary(min_size=32, max_size=32))
def test_any_bytes_are_no_signature(signature: bytes, public: bytes, digest: bytes) -> None:
    assert not ecdsa.verify(public, digest, signature)
    assert not eddsa.verify(public, digest, signature)


JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)


@given(st.fixed_dictionaries({}, optional={"hash": JSON, "data": JSON, "meta": JSON}))
def test_any_value_is_judged(value: object) -> None:
    assert check_iou(value) == "iou-schema"


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_names_of_profiles_are_no_banks(name: str) -> None:
    section = Transfiya(bank=(Bank(id=name, inbound_auth="none", bank_signer=HANDLE),))
    [finding] = findings(section)
    assert finding[0][-1] == "id"
    assert not list(
        findings(Transfiya(bank=(msgspec.structs.replace(section.bank[0], id="rojo"),)))
    )


def test_entries_of_the_second_profile_are_shown_beside_items() -> None:
    """Who must look at a parked one finds it; its account is masked."""
    entry = Entry(
        bank="rojo", handle="deb-1", schema="debit", state="parked", intent="int-1",
        intent_hash="00", arrived_ns=7, account="1001001212", currency="COP", minor=12_345,
        core="ab", reason="", history=[("parked", 8)],
    )  # fmt: skip
    [(table, name, row)] = PROJECTION.rows(ENTRIES, b"key", msgspec.msgpack.encode(entry))
    assert (table, name, len(row)) == ("transfiya_items", b"key".hex(), PROJECTION.columns[table])
    assert row[1:6] == ("rojo", "DEBIT", "v2", "int-1", "…1212")
    assert row[9] == "PARKED"
    assert row[12:14] == ("deb-1", "ab")
    assert "1001001212" not in repr(row)
    [(_, _, later)] = PROJECTION.rows(
        ENTRIES, b"key", msgspec.msgpack.encode(msgspec.structs.replace(entry, state="prepared"))
    )  # fmt: skip
    assert later[9] == "PREPARED"
    assert entry.open is False
