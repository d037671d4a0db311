"""Normal forms of domain values: what is taken, what is refused, and that no value leaks."""

import datetime
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.flows import norms
from switch.flows.norms import FieldError

DIGITS = st.text("0123456789", min_size=1)


def refused(field, function, *args):
    """Assert that the call names `field` and that no argument shows in the error."""
    with pytest.raises(FieldError) as caught:
        function(*args)
    assert caught.value.field == field
    assert str(caught.value) == f"not a valid value for {norms.told_with_form(field)}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("value", "normal"), [("1", "000001"), ("345", "000345"), ("000345", "000345")]
)
def test_cashier_is_zero_filled(value, normal) -> None:
    assert norms.cashier(value) == norms.supervisor(value) == norms.branch(value) == normal


@pytest.mark.parametrize("value", ["", "1234567", "12a", " 12", "-1", "١٢", "²", 12, None])
def test_bad_cashier(value) -> None:
    refused("cashier", norms.cashier, value)
    refused("supervisor", norms.supervisor, value)
    refused("branch", norms.branch, value)


def test_peer_ids() -> None:
    assert norms.network("0012") == "0012"
    assert norms.terminal("00001234") == "00001234"
    assert norms.operation("260010000123") == "260010000123"
    refused("network", norms.network, "12")
    refused("terminal", norms.terminal, "1234")
    refused("operation", norms.operation, "26001000012X")


@pytest.mark.parametrize("value", [0, 1_000_000, -1, True, 1.0, "1", None])
def test_bad_trace(value) -> None:
    refused("trace", norms.trace, value)
    refused("original", norms.trace, value, "original")


def test_trace_bounds() -> None:
    assert norms.trace(1) == 1
    assert norms.trace(999_999) == 999_999


@pytest.mark.parametrize("value", ["004512", "0045127", "00451278"])
def test_t14_token_keeps_leading_zeros(value) -> None:
    assert norms.token(value) == value


@pytest.mark.parametrize("value", ["12345", "123456789", "12345a", "١٢٣٤٥٦", "12 456", 123456])
def test_t19_token_of_another_form(value) -> None:
    refused("token", norms.token, value)


@pytest.mark.parametrize(
    ("base", "check"),
    [
        ("80000000", 5),  # 8·9 = 72, remainder 6
        ("4567890", 1),  # 27 + 32 + 35 + 36 + 35 + 32 = 197, remainder 10
        ("100005", 5),  # 5·2 + 1·7 = 17, remainder 6
        ("000000", 0),  # remainder 0
        ("000006", 0),  # 6·2 = 12, remainder 1
    ],
)
def test_check_digits_worked_by_hand(base, check) -> None:
    assert norms.ruc_check_digit(base) == check


def by_definition(base: str) -> int:
    """The rule as it is published: a loop whose factor starts at 2 and returns to 2 after 11."""
    factor, total = 2, 0
    for digit in reversed(base):
        if factor > 11:
            factor = 2
        total += int(digit) * factor
        factor += 1
    rest = total % 11
    return 11 - rest if rest > 1 else 0


@given(st.text("0123456789", min_size=6, max_size=8))
def test_only_one_check_digit_is_right(base) -> None:
    right = by_definition(base)
    assert norms.ruc_check_digit(base) == right
    for digit in range(10):
        ruc = f"{base}-{digit}"
        if digit == right:
            assert norms.document("RUC", ruc) == ("RUC", ruc)
        else:
            refused("document", norms.document, "RUC", ruc)


def test_check_digit_of_long_base_starts_again_at_two() -> None:
    base = "12345678901234"
    assert norms.ruc_check_digit(base) == by_definition(base)


@pytest.mark.parametrize(
    ("kind", "value", "normal"),
    [
        (None, "4567890", ("CI", "4567890")),
        ("CI", "12345", ("CI", "12345")),
        ("CI", "12345678", ("CI", "12345678")),
        ("PAS", "ab12345", ("PAS", "AB12345")),
        ("PAS", "123456789012", ("PAS", "123456789012")),
    ],
)
def test_documents(kind, value, normal) -> None:
    assert norms.document(kind, value) == normal


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("CI", "1234"),
        ("CI", "123456789"),
        ("CI", "4.567.890"),
        ("CI", "٤٥٦٧٨٩٠"),
        ("CI", 4567890),
        ("RUC", "80000000"),
        ("RUC", "80000000-"),
        ("RUC", "80000000-55"),
        ("RUC", "80000000 5"),
        ("RUC", "12345-0"),
        ("RUC", "8000000x-5"),
        ("RUC", None),
        ("PAS", "AB12"),
        ("PAS", "AB12345678901"),
        ("PAS", "AB-1234"),
        ("PAS", "ÑB12345"),
        ("PAS", "AB12345\n"),
        ("PAS", None),
    ],
)
def test_bad_documents(kind, value) -> None:
    refused("document", norms.document, kind, value)


def test_unknown_document_type() -> None:
    refused("document_type", norms.document, "DNI", "4567890")
    refused("document_type", norms.document, "", "4567890")


@pytest.mark.parametrize(
    ("value", "normal"),
    [
        ("0981123456", "+595981123456"),
        ("+595981123456", "+595981123456"),
        ("+59521123456", "+59521123456"),
        ("+5491123456789", "+5491123456789"),
    ],
)
def test_phones(value, normal) -> None:
    assert norms.phone(value) == normal


@pytest.mark.parametrize(
    "value",
    [
        "",
        "098112345",
        "09811234567",
        "0211234567",
        "595981123456",
        "+095981123456",
        "+59598112345",
        "+5959811234567",
        "+1234567",
        "+1234567890123456",
        "+595 981123456",
        "0981123456\n",
        981123456,
    ],
)
def test_bad_phones(value) -> None:
    refused("phone", norms.phone, value)


def test_identity_is_exactly_one() -> None:
    assert norms.identity("CI", "4567890", None) == ("CI", "4567890")
    assert norms.identity("CI", None, "0981123456") == ("TEL", "+595981123456")
    refused("document", norms.identity, "CI", None, None)
    refused("document", norms.identity, "CI", "4567890", "0981123456")
    refused("phone", norms.identity, "CI", None, "12")


def test_depositor() -> None:
    assert norms.depositor("CI4567890") == ("CI", "4567890")
    assert norms.depositor("PASab12345") == ("PAS", "AB12345")
    assert norms.depositor("RUC80000000-5") == ("RUC", "80000000-5")
    for value in ("4567890", "CI", "CIAB12345", "RUC80000000-4", "DNI4567890", "", None):
        refused("depositor", norms.depositor, value)


def test_declaration_keeps_known_fields_in_order() -> None:
    given_fields = {"origin": " venta ", "x": "y", "name": "Ana", "phone": " "}
    assert list(norms.declaration(given_fields).items()) == [("name", "Ana"), ("origin", "venta")]
    assert norms.declaration({}) == {}


@pytest.mark.parametrize("value", [{"name": 1}, {"name": "x" * 201}, {"name": "a\x1bb"}, [], "x"])
def test_bad_declaration(value) -> None:
    refused("declaration", norms.declaration, value)


def test_currencies() -> None:
    assert norms.currency("PYG") == ("PYG", "600", 0, "Gs.")
    assert norms.currency_by_number("600").code == "PYG"
    assert norms.currency("USD").exponent == 2
    assert len({row.number for row in norms.CURRENCIES.values()}) == len(norms.CURRENCIES)
    for row in norms.CURRENCIES.values():
        assert len(row.code) == len(row.number) == 3
        assert row.symbol.isascii()
        assert norms.currency_by_number(row.number) is norms.currency(row.code)
    for value in ("pyg", "EUR", "", None, 600):
        refused("currency", norms.currency, value)
        refused("currency", norms.currency_by_number, value)


@pytest.mark.parametrize("value", [0, -1, 10**12, 1.5, True, "150000", None])
def test_x007_bad_amounts(value) -> None:
    refused("amount", norms.amount, value)


@given(st.integers(1, norms.AMOUNT_MAX))
def test_amount_text_reads_back(value) -> None:
    assert norms.amount(value) == value
    text = norms.amount_text(value)
    assert text.startswith("Gs. ")
    assert int(text[4:].replace(".", "")) == value
    assert all(len(group) == 3 for group in text[4:].split(".")[1:])
    dollars = norms.amount_text(value, "USD")[4:]
    assert int(dollars.replace(".", "").replace(",", "")) == value
    assert len(dollars.split(",")[1]) == 2


def test_negative_amounts_of_reports() -> None:
    assert norms.amount_text(-1_234_567) == "Gs. -1.234.567"
    assert norms.amount_text(-5, "USD") == "US$ -0,05"


@given(st.dates(datetime.date(1000, 1, 1)))
def test_dates_in_both_forms(day) -> None:
    assert norms.date(day.isoformat()) == day
    assert norms.date(day.strftime("%Y%m%d")) == day


@pytest.mark.parametrize(
    "value",
    [
        "",
        "2026-02-30",
        "20260230",
        "2026-1-01",
        "2026/01/01",
        "26-01-01",
        "2026-01-0١",
        "2026-W01-1",
        "00000101",
        None,
        20260101,
    ],
)
def test_bad_dates(value) -> None:
    refused("business_date", norms.date, value)


@given(st.integers(0, 253402300799999))
def test_instants_read_back(ms) -> None:
    assert norms.instant_ms(norms.instant_text(ms)) == ms


def test_instants() -> None:
    assert norms.instant_text(0) == "1970-01-01T00:00:00.000Z"
    assert norms.instant_ms("2026-11-22T13:00:00.000Z") == 1795352400000
    assert norms.instant_ms("2026-11-22T10:00:00-03:00") == 1795352400000
    assert norms.instant_ms("2026-11-22T13:00:00.000999Z") == 1795352400000


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-22T13:00:00",
        "2026-11-22",
        "2026-11-22 13:00:00Z",
        "2026-11-31T13:00:00Z",
        "2026-11-22T25:00:00Z",
        "2026-11-22T13:00:00+99:00",
        "20261122T130000Z",
        None,
    ],
)
def test_bad_instants(value) -> None:
    refused("sent_at", norms.instant_ms, value)


def test_reference_example() -> None:
    text = norms.compose_reference("0012", "00001234", "20260101", 123)
    assert text == "00120000123420260101000123"
    parsed = norms.parse_reference(text)
    assert parsed == ("0012", "00001234", "20260101", 123)
    assert str(parsed) == text


@given(
    st.integers(0, 9999),
    st.integers(0, 99_999_999),
    st.dates(datetime.date(1000, 1, 1)),
    st.integers(1, 999_999),
)
def test_references_read_back(network, terminal, day, trace) -> None:
    parts = (f"{network:04d}", f"{terminal:08d}", day.strftime("%Y%m%d"), trace)
    assert norms.parse_reference(norms.compose_reference(*parts)) == parts


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0012000012342026010100012",
        "001200001234202601010001234",
        "0012000012342026010100012x",
        "00120000123420261301000123",
        "00120000123420260101000000",
        None,
    ],
)
def test_bad_references(value) -> None:
    refused("reference", norms.parse_reference, value)


def test_a_reference_of_wrong_parts_is_our_fault() -> None:
    with pytest.raises(AssertionError):
        norms.compose_reference("12", "00001234", "20260101", 123)


def test_masks() -> None:
    assert norms.mask_document("4123456") == "****456"
    assert norms.mask_document("1234") == "****"
    assert norms.mask_phone("+595981123456") == "****456"
    assert norms.mask_identity(("CI", "4123456")) == "CI ****456"
    assert norms.mask_name("Ana María Núñez de Gómez Paz") == "A*** MA*** NÚ*** D***"
    assert norms.mask_name("  ") == ""
    assert norms.mask_pan("4539148803436467") == "453914******6467"
    assert norms.mask_pan("12345") == "****"


@given(st.text(string.ascii_letters + " ", max_size=40))
def test_a_masked_name_stays(name) -> None:
    masked = norms.mask_name(name)
    assert norms.mask_name(masked) == masked


@given(st.text("0123456789", min_size=13, max_size=19))
def test_a_masked_pan_shows_ten_digits(pan) -> None:
    masked = norms.mask_pan(pan)
    assert len(masked) == len(pan)
    assert sum(char.isdigit() for char in masked) == 10


@given(st.one_of(st.text(max_size=30), st.integers(), st.none(), st.binary(max_size=20)))
def test_anything_is_refused_or_normal(value) -> None:
    """No input makes anything but a FieldError, and a normal form is its own normal form."""
    for function in (
        norms.cashier,
        norms.network,
        norms.terminal,
        norms.operation,
        norms.token,
        norms.phone,
        norms.currency,
        norms.date,
        norms.instant_ms,
        norms.parse_reference,
        norms.depositor,
        norms.trace,
        norms.amount,
    ):
        try:
            normal = function(value)
        except FieldError:
            continue
        if function in (norms.cashier, norms.phone, norms.token, norms.amount):
            assert function(normal) == normal
    for kind in ("CI", "RUC", "PAS"):
        try:
            normal = norms.document(kind, value)
        except FieldError:
            continue
        assert norms.document(*normal) == normal
