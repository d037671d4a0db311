"""The payment application's data: numbers, identifiers, transactions, form twin, CSV, reports."""

import csv
import hashlib
import io
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.cip import (
    AmountRule,
    FeeRule,
    FieldFault,
    FieldRule,
    Instrument,
    body_hash,
    canonical,
    check_code,
    identifier,
    is_code,
    is_identifier,
    make_code,
    masked_instrument,
    normalise_code,
    read_transaction,
    unflatten,
)
from protocols.cip.identifiers import ALPHABET
from protocols.cip.records import (
    ReportHead,
    ReportLine,
    csv_lines,
    decimal,
    report,
    safe_cell,
)

KEY = b"k" * 32
CARD = {"type": "card", "pan": "4111 1111 1111 1111", "expiry": "12/30", "cvv": "123"}
RULES = {
    "amount": AmountRule("PYG", 1, 5_000_000),
    "fields": (FieldRule("account", required=True, max=20, pattern="[0-9-]+"),),
    "instruments": ("card", "account", "dimo"),
    "year_month": (2026, 11),
}


def good() -> dict:
    return {
        "amount": 150_000,
        "currency": "PYG",
        "items": [{"code": "TAX", "amount": 150_000, "account": "77-1"}],
        "payer": {"name": "Ana", "email": "ana@example.org"},
        "instrument": dict(CARD),
        "custom": {"account": "77-1", "unknown": "ignored"},
    }


def faults(data: object) -> list[FieldFault]:
    found, wrong = read_transaction(data, **RULES)
    assert (found is None) is bool(wrong)
    return wrong


# ---- numbers


@given(st.integers(0, 1023), st.integers(0, 32767), st.integers(1, (1 << 30) - 1))
def test_numbers_are_one_to_one_and_readable(app_no: int, day: int, sequence: int) -> None:
    code = make_code(KEY, app_no, day, sequence)
    assert len(code) == 12
    assert is_code(code)
    assert normalise_code(f" {code[:4]}-{code[4:].lower()} ") == code


def test_sequences_of_a_day_give_different_numbers() -> None:
    assert len({make_code(KEY, 7, 2500, sequence) for sequence in range(1, 20_001)}) == 20_000


@given(st.integers(1, (1 << 30) - 1), st.integers(0, 11), st.sampled_from(ALPHABET))
def test_every_wrong_character_is_seen(sequence: int, place: int, other: str) -> None:
    code = make_code(KEY, 3, 2500, sequence)
    wrong = code[:place] + other + code[place + 1 :]
    assert is_code(wrong) is (wrong == code)


@given(st.integers(1, (1 << 30) - 1))
def test_every_swap_of_two_is_seen(sequence: int) -> None:
    code = make_code(KEY, 3, 2500, sequence)
    for a, b in combinations(range(12), 2):
        swapped = list(code)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        assert is_code("".join(swapped)) is (code[a] == code[b])


def test_letters_that_look_like_digits_are_read_as_digits() -> None:
    body = "01111000000"
    code = body + check_code(body)
    assert normalise_code("oIlL1-OoO-" + code[8:]) == code


@pytest.mark.parametrize("place", [(1024, 1, 1), (1, 32768, 1), (1, 1, 0), (1, 1, 1 << 30)])
def test_numbers_out_of_range_are_refused(place: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        make_code(KEY, *place)


def test_identifiers_sort_by_time() -> None:
    early = identifier("pay_", 1_767_268_800_000_000_000, b"\xff" * 10)
    late = identifier("pay_", 1_767_268_800_001_000_000, b"\x00" * 10)
    assert early < late
    assert is_identifier(early, "pay_")
    assert not is_identifier(early, "ses_")
    assert not is_identifier(early + "0", "pay_")


# ---- transactions


def test_a_good_transaction_is_read() -> None:
    found, wrong = read_transaction(good(), **RULES)
    assert wrong == []
    assert found is not None
    assert found.amount == 150_000
    assert found.instrument.pan == "4111111111111111"
    assert found.custom == {"account": "77-1"}
    assert found.payer.email == "ana@example.org"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"amount": None}, ("amount", "required")),
        ({"amount": "150000"}, ("amount", "invalid")),
        ({"amount": True}, ("amount", "invalid")),
        ({"amount": 1.5}, ("amount", "invalid")),
        ({"amount": 0}, ("amount", "out_of_range")),
        ({"amount": 5_000_001}, ("amount", "out_of_range")),
        ({"currency": "USD"}, ("currency", "not_allowed")),
        ({"currency": None}, ("currency", "required")),
        ({"items": [{"code": "TAX", "amount": 1}]}, ("items", "sum_differs")),
        ({"items": "TAX"}, ("items", "invalid")),
        ({"items": [7]}, ("items.0", "invalid")),
        ({"payer": {"email": "nobody"}}, ("payer.email", "invalid")),
        ({"payer": {"name": "a\x00b"}}, ("payer.name", "invalid")),
        ({"payer": {"name": "\ud800"}}, ("payer.name", "invalid")),
        ({"payer": {"name": "x" * 101}}, ("payer.name", "too_long")),
        ({"custom": {"account": "77;1"}}, ("custom.account", "invalid")),
        ({"custom": {}}, ("custom.account", "required")),
        ({"custom": []}, ("custom", "invalid")),
        ({"instrument": None}, ("instrument", "required")),
        ({"instrument": {"type": "cheque"}}, ("instrument.type", "invalid")),
        ({"instrument": {"type": "ledger"}}, ("instrument.type", "not_allowed")),
        ({"instrument": {**CARD, "pan": "4111111111111112"}}, ("instrument.pan", "invalid")),
        ({"instrument": {**CARD, "expiry": "10/26"}}, ("instrument.expiry", "expired")),
        ({"instrument": {**CARD, "expiry": "13/30"}}, ("instrument.expiry", "invalid")),
        ({"instrument": {**CARD, "cvv": "12"}}, ("instrument.cvv", "invalid")),
        ({"instrument": {"type": "dimo", "token": "123456"}}, ("instrument.document", "required")),
        (
            {"instrument": {"type": "account", "bank": "X", "holder": "A"}},
            ("instrument.number", "required"),
        ),
    ],
)
def test_each_mistake_is_named(change: dict, fault: tuple[str, str]) -> None:
    assert FieldFault(*fault) in faults({**good(), **change})


def test_all_mistakes_are_told_at_once() -> None:
    data = {**good(), "amount": 0, "currency": "USD", "instrument": {**CARD, "cvv": "x"}}
    names = {fault.name for fault in faults(data)}
    assert {"amount", "currency", "instrument.cvv", "items"} <= names


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("amount", "currency", "items", "payer", "instrument", "custom"), json_values
        ),
    )
)
def test_whatever_is_sent_is_read_or_refused(data: dict) -> None:
    found, wrong = read_transaction(data, **RULES)
    assert (found is None) is bool(wrong)


def test_nothing_secret_is_shown() -> None:
    found, _ = read_transaction(good(), **RULES)
    assert found is not None
    for secret in ("4111111111111111", "123", "ana@example.org"):
        assert secret not in repr(found).replace("150000", "")
    assert masked_instrument(found.instrument) == "411111******1111"
    assert masked_instrument(Instrument("account", number="0011223344")) == "******3344"
    assert masked_instrument(Instrument("dimo", document="1234")) == "**34"


def test_the_hash_is_of_the_data_and_of_no_secret() -> None:
    first = body_hash(KEY, good())
    other_cvv = {**good(), "instrument": {**CARD, "cvv": "999", "token": "000000"}}
    assert body_hash(KEY, other_cvv) == first
    assert body_hash(KEY, dict(reversed(good().items()))) == first
    assert body_hash(KEY, {**good(), "amount": 150_001}) != first
    assert body_hash(b"o" * 32, good()) != first


def test_a_form_says_the_same_as_the_json_body() -> None:
    pairs = [
        ("application_id", "TAXPAY"),
        ("transaction.amount", "150000"),
        ("transaction.items.0.code", "TAX"),
        ("transaction.items.0.amount", "150000"),
        ("transaction.items.0.account", "77-1"),
        ("transaction.custom.account", "77-1"),
    ]
    transaction = unflatten(pairs)["transaction"]
    assert transaction == {
        "amount": 150_000,
        "items": [{"code": "TAX", "amount": 150_000, "account": "77-1"}],
        "custom": {"account": "77-1"},
    }


@pytest.mark.parametrize(
    "pairs",
    [
        [("a", "1"), ("a.b", "2")],
        [("a", "1"), ("a", "2")],
        [("a..b", "1")],
        [("a." * 7 + "b", "1")],
    ],
)
def test_a_form_that_contradicts_itself_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError):
        unflatten(pairs)


def test_fees_are_integers() -> None:
    assert FeeRule(500, 150).fee(10_000) == 650
    assert FeeRule(0, 1).fee(5_000) == 1
    assert FeeRule(0, 1).fee(4_999) == 0
    assert FeeRule().fee(150_000) == 0


def test_names_and_values_cannot_be_confused() -> None:
    assert canonical("k", {"a": "1\nb=2"}) != canonical("k", {"a": "1", "b": "2"})
    assert canonical("k", {"a=1": ""}) != canonical("k", {"a": "1="})
    assert canonical("k", {"a": None, "sig": "x"}) == canonical("k", {})


# ---- files


@given(st.lists(st.tuples(st.text(), st.integers()), max_size=5))
def test_csv_comes_back_as_it_went(rows: list[tuple[str, int]]) -> None:
    rows = [(text.encode("utf-8", "replace").decode(), number) for text, number in rows]
    raw = b"".join(csv_lines(("payer_name", "amount_minor"), rows))
    assert raw.endswith(b"\r\n")
    read = list(csv.reader(io.StringIO(raw.decode(), newline="")))[1:]
    assert read == [[safe_cell(text), str(number)] for text, number in rows]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_neutral_and_numbers_stay_numbers(text: str) -> None:
    raw = b"".join(csv_lines(("payer_name", "amount_minor"), [(text, -5)]))
    row = list(csv.reader(io.StringIO(raw.decode(), newline="")))[1]
    assert row == ["'" + text, "-5"]


def test_amounts_have_their_decimal_places() -> None:
    assert decimal(150_000, 0) == "150000"
    assert decimal(150_000, 2) == "1500.00"
    assert decimal(5, 2) == "0.05"
    assert decimal(-5, 2) == "-0.05"


def test_a_report_has_head_details_and_totals() -> None:
    line = ReportLine(
        "payment", "pay_1", "R1", "0124G12JK7JF", "A7", 150_000, 10, "PYG", "2026-01-01T12:00:00Z"
    )
    refund = line._replace(kind="refund", amount_minor=5, fee_minor=0)
    head = ReportHead("TAXPAY", "a", "b", "run_1", 3, "c")
    raw, digest = report(head, [line, refund])
    rows = list(csv.reader(io.StringIO(raw.decode(), newline="")))
    assert rows[0] == ["H", "1", "TAXPAY", "a", "b", "run_1", "3", "c"]
    assert [row[0] for row in rows] == ["H", "D", "D", "T"]
    assert rows[-1] == ["T", "2", "1", "0", "1", "10", digest]
    details = b"".join(raw.splitlines(keepends=True)[1:-1])
    assert hashlib.sha256(details).hexdigest() == digest
    again, same = report(head._replace(run="run_2", sequence=4), [line, refund])
    assert again != raw
    assert same == digest
