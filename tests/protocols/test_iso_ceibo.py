"""Issuer messages as `ceibo` messages: through the bytes of the dialect and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from protocols.iso8583.ceibo import (
    Balances,
    ElementFault,
    Original,
    answer_elements,
    ascii_text,
    asks_balances,
    balances_text,
    capture_elements,
    fault_elements,
    hold_elements,
    holder_elements,
    is_repeat,
    issuer_answer,
    issuer_request,
    original,
    original_data,
    read_balances,
    release_elements,
    request_elements,
    sent_ns,
    state_elements,
    status_elements,
)
from protocols.iso8583.dialect import Dialect, Message
from protocols.iso8583.tokens import TokenOpener, TokenSealer
from protocols.messages import (
    CardChoice,
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
    IssuerState,
    IssuerStatus,
)

CEIBO = Dialect.load("ceibo")
DATA = b"d" * 32
OPERATION = "260010000123"
NOW_NS = 1_767_268_800_000_000_000  # 2026-01-01T12:00:00Z
TODAY = 20_454  # days from 1970-01-01 to it
LINK: dict[str, object] = {"7": "0101120000", "11": "000042"}
OPENER = TokenOpener([DATA])
SEALED = TokenSealer(DATA, 0).seal("012345", OPERATION)

CASH_OUT = IssuerHold(
    network="0012",
    operation=OPERATION,
    kind="cash_out",
    amount=150_000,
    currency="PYG",
    terminal="00001234",
    branch="000017",
    cashier="000045",
    day=TODAY,
    document_type="CI",
    document="4567890",
    token="012345",
)
DEPOSIT = IssuerHold(
    network="0012",
    operation=OPERATION,
    kind="deposit",
    amount=999_999_999_999,
    currency="USD",
    terminal="00001234",
    branch="000017",
    cashier="000045",
    day=TODAY,
    document_type="CI",
    phone="+595981123456",
    card="C0000017",
    depositor="PASAB12345",
)
CAPTURE = IssuerCapture("0012", OPERATION, "cash_out", 150_000, "PYG")
RELEASE = IssuerRelease("0012", OPERATION, "deposit", 1, "timeout", "USD")


def sent(mti: str, elements: dict[str, Any]) -> Message:
    """The message as the other end reads it."""
    return CEIBO.decode(CEIBO.encode({"mti": mti, **LINK, **elements}))


def hold(m: IssuerHold = CASH_OUT, **more: Any) -> dict[str, Any]:
    token = SEALED if m.kind == "cash_out" else ""
    return hold_elements(m, token_hex=token, **more)[1]


def names(message: Message) -> set[str]:
    return set(message.keys()) - {"mti"}


def read(message: Message) -> Any:
    return issuer_request(message, now_ns=NOW_NS, opener=OPENER)


def answered(request: Message, elements: dict[str, Any]) -> Message:
    return CEIBO.decode(request.answer(elements, mac=False))


# ---- requests


@pytest.mark.parametrize(
    "m",
    [
        CASH_OUT,
        DEPOSIT,
        CAPTURE,
        RELEASE,
        IssuerRelease("0012", OPERATION, "cash_out", 5, "annulment", "PYG"),
        IssuerRelease("0012", OPERATION, "cash_out", 5, "registration_failed", "PYG"),
        IssuerRelease("0012", OPERATION, "cash_out", 5, "cancelled", "PYG"),
        IssuerHolder("RUC", "80000000-0", network="0012"),
        IssuerHolder("CI", phone="+595981123456", network="0012"),
        IssuerStatus("0012", OPERATION),
    ],
    ids=lambda m: f"{type(m).__name__}-{getattr(m, 'kind', '')}-{getattr(m, 'reason', '')}",
)
@pytest.mark.parametrize("repeat", [False, True])
def test_every_request_comes_out_as_it_went_in(m: Any, repeat: bool) -> None:
    token = SEALED if isinstance(m, IssuerHold) and m.kind == "cash_out" else ""
    mti, elements = request_elements(m, token_hex=token, repeat=repeat)
    message = sent(mti, elements)
    assert read(message) == m
    assert is_repeat(message) == (repeat and mti in ("0221", "0421"))


def test_a_cash_out_on_the_wire() -> None:
    mti, elements = hold_elements(CASH_OUT, token_hex=SEALED, local="0101090000", balances=True)
    message = sent(mti, elements)
    shown = {k: message[k] for k in ("3", "4", "7", "11", "12", "13", "15", "32", "37", "41", "49")}
    assert message.mti == "0100"
    assert shown == {
        "3": "010000", "4": "000000150000", "7": "0101120000", "11": "000042", "12": "090000",
        "13": "0101", "15": "0101", "32": "0012", "37": OPERATION, "41": "00001234", "49": "600",
    }  # fmt: skip
    assert message["42"].rstrip(" ") == "000017"
    assert message["48.01"] == "CI4567890"
    assert message["48.03"] == SEALED
    assert message["48.04"] == "000045"
    assert asks_balances(message)
    assert "48.02" not in message
    assert b"000017         " in message.raw, "fifteen characters, left-justified"
    assert b"012345" not in message.raw.replace(b"0101", b""), "the code is not in the clear"


def test_a_deposit_has_no_code() -> None:
    message = sent(*hold_elements(DEPOSIT))
    assert "48.03" not in message
    assert message["3"] == "210000"
    assert message["4"] == "999999999999"
    assert message["49"] == "840"
    assert (message["48.02"], message["48.05"], message["48.06"]) == (
        "+595981123456",
        "C0000017",
        "PASAB12345",
    )
    assert not asks_balances(message)


def test_decisions_on_the_wire() -> None:
    before = Original("0100", "000041", "0101115959", "0012")
    capture = sent(*capture_elements(CAPTURE, original=before))
    assert (capture.mti, capture["25"], capture["3"]) == ("0220", "00", "010000")
    assert capture["90"] == "010000004101011159590000000001200000000000"
    assert original(capture) == before
    release = sent(*release_elements(RELEASE, repeat=True))
    assert (release.mti, release["25"]) == ("0421", "21")
    assert release["90"] == "0100" + "0" * 16 + "00000000012" + "0" * 11
    assert original(release) == Original(network="0012")
    annul = IssuerRelease("0012", OPERATION, "cash_out", 5, "annulment", "PYG")
    assert sent(*release_elements(annul))["25"] == "17"


def test_status_and_holder_on_the_wire() -> None:
    status = sent(*status_elements(IssuerStatus("0012", OPERATION)))
    assert names(status) == {"7", "11", "32", "37"}
    holder = sent(*holder_elements(IssuerHolder("CI", "4567890", network="0012")))
    assert holder["3"] == "330000"
    assert "37" not in holder
    assert holder["48.01"] == "CI4567890"


def test_reserved_words_of_a_third_party_are_taken_as_meant() -> None:
    """A release without DE25 is a normal one; a branch of one digit is that branch."""
    elements = release_elements(RELEASE)[1]
    del elements["25"]
    del elements["90"]
    assert read(sent("0420", elements)).reason == ""
    assert read(sent("0100", {**hold(), "42": "17".ljust(15)})).branch == "000017"


def test_the_business_date_is_the_nearest() -> None:
    for text, day in (("1231", TODAY - 1), ("0102", TODAY + 1), ("0101", TODAY)):
        assert read(sent("0100", {**hold(), "15": text})).day == day
    new_year_eve = {**LINK, "7": "1231235959"}
    message = CEIBO.decode(CEIBO.encode({"mti": "0100", **hold(), **new_year_eve}))
    assert sent_ns(message, NOW_NS) == (TODAY * 86_400 - 1) * 1_000_000_000


@pytest.mark.parametrize(
    ("change", "element", "code"),
    [
        ({"3": None}, "3", "30"),
        ({"3": "990000"}, "3", "12"),
        ({"4": None}, "4", "30"),
        ({"4": "0" * 12}, "4", "13"),
        ({"7": None}, "7", "30"),
        ({"7": "1301000000"}, "7", "30"),
        ({"7": "0101250000"}, "7", "30"),
        ({"15": None}, "15", "30"),
        ({"15": "0230"}, "15", "30"),
        ({"32": None}, "32", "30"),
        ({"32": "123"}, "32", "30"),
        ({"37": None}, "37", "30"),
        ({"41": None}, "41", "30"),
        ({"42": None}, "42", "30"),
        ({"42": "0000017".ljust(15)}, "42", "30"),
        ({"42": "17A".ljust(15)}, "42", "30"),
        ({"49": None}, "49", "30"),
        ({"49": "999"}, "49", "30"),
        ({"48": None}, "48.01", "30"),
        ({"48": {"01": None}}, "48.01", "30"),
        ({"48": {"02": "+595981123456"}}, "48.01", "30"),
        ({"48": {"01": "CI123"}}, "48.01", "30"),
        ({"48": {"01": "XX1234567"}}, "48.01", "30"),
        ({"48": {"01": "RUC80000000"}}, "48.01", "30"),
        ({"48": {"01": None, "02": "0981123456"}}, "48.02", "30"),
        ({"48": {"03": None}}, "48.03", "30"),
        ({"48": {"03": "AB"}}, "48.03", "30"),
        ({"48": {"03": SEALED[:-2] + "00"}}, "48.03", "63"),
        ({"37": "260010000124"}, "48.03", "63"),
        ({"48": {"04": None}}, "48.04", "30"),
        ({"48": {"05": "C0000017"}}, "48.05", "30"),
        ({"48": {"06": "CI4567890"}}, "48.06", "30"),
    ],
    ids=str,
)
def test_a_field_at_fault(change: dict[str, Any], element: str, code: str) -> None:
    elements: dict[str, Any] = {**LINK, **hold()}
    for name, value in change.items():
        if isinstance(value, dict):
            tags = {**elements["48"], **value}
            elements["48"] = {tag: text for tag, text in tags.items() if text is not None}
        elif value is None:
            del elements[name]
        else:
            elements[name] = value
    message = CEIBO.decode(CEIBO.encode({"mti": "0100", **elements}))
    with pytest.raises(ElementFault) as fault:
        read(message)
    assert (fault.value.element, fault.value.code) == (element, code)
    assert fault_elements(fault.value) == {"39": code}
    for value in ("4567890", "012345", SEALED):
        assert value not in str(fault.value)


@pytest.mark.parametrize(
    ("mti", "change", "element", "code"),
    [
        ("0200", {}, "mti", "12"),
        ("0220", {"25": "17"}, "25", "30"),
        ("0420", {"25": "99"}, "25", "30"),
        ("0420", {"49": "999"}, "49", "30"),
        ("0600", {"3": "010000"}, "3", "12"),
    ],
)
def test_a_decision_at_fault(mti: str, change: dict[str, Any], element: str, code: str) -> None:
    elements = capture_elements(CAPTURE)[1]
    with pytest.raises(ElementFault) as fault:
        read(sent(mti, {**elements, **change}))
    assert (fault.value.element, fault.value.code) == (element, code)


def test_a_deposit_with_a_code_is_refused() -> None:
    elements = hold(DEPOSIT)
    with pytest.raises(ElementFault) as fault:
        read(sent("0100", {**elements, "48": {**elements["48"], "03": SEALED}}))
    assert fault.value.element == "48.03"


def test_without_an_opener_there_is_no_cash_out() -> None:
    with pytest.raises(ElementFault) as fault:
        issuer_request(sent("0100", hold()), now_ns=NOW_NS)
    assert fault.value.code == "63"


# ---- answers


def test_an_approval() -> None:
    request = sent("0100", hold())
    given = IssuerAnswer("00", "APROBADA", "A7K2Q9", 1500, 99_999_999)
    message = answered(request, answer_elements(request, given))
    assert message.mti == "0110"
    assert message.to_dict() == {
        "mti": "0110", "3": "010000", "4": "000000150000", "7": "0101120000", "11": "000042",
        "15": "0101", "28": "D00001500", "30": "D99999999", "37": OPERATION, "38": "A7K2Q9",
        "39": "00", "41": "00001234", "49": "600",
    }  # fmt: skip
    assert issuer_answer(message) == given


def test_no_fee_is_no_element() -> None:
    request = sent("0100", hold())
    message = answered(request, answer_elements(request, IssuerAnswer("00", "APROBADA", "A7K2Q9")))
    assert "28" not in message
    assert "30" not in message
    assert "48" not in message
    assert "54" not in message


def test_the_name_of_a_deposit_goes_back_in_ascii() -> None:
    request = sent("0100", hold(DEPOSIT))
    given = IssuerAnswer("00", "APROBADA", "A7K2Q9", name="ÑU*** PÉ***")
    message = answered(request, answer_elements(request, given))
    assert message["48.11"] == "NU*** PE***"
    told = issuer_answer(message)
    assert isinstance(told, IssuerAnswer)
    assert told.name == "NU*** PE***"
    assert ascii_text("a€b") == "a.b"


@pytest.mark.parametrize(
    ("code", "key"),
    [
        ("51", "FONDOS"),
        ("75", "CODIGO_BLOQUEADO"),
        ("A5", "HORA_NO_VALIDA"),
        ("21", "YA_REVERSADA"),
    ],
)
def test_a_decline_keeps_its_code(code: str, key: str) -> None:
    request = sent("0100", hold())
    message = answered(request, answer_elements(request, IssuerAnswer(code, key)))
    assert "38" not in message
    assert issuer_answer(message) == IssuerAnswer(code, key)


@pytest.mark.parametrize("code", ["62", "78", "99", "Z9"])
def test_a_code_of_no_table_is_a_decline(code: str) -> None:
    request = sent("0100", hold())
    assert issuer_answer(answered(request, {"39": code})) == IssuerAnswer("05", "NO_APROBADA")


def test_answers_to_decisions() -> None:
    capture = sent(*capture_elements(CAPTURE, repeat=True))
    given = IssuerAnswer("00", "APROBADA", "A7K2Q9", 1500, 10)
    message = answered(capture, answer_elements(capture, given))
    assert message.mti == "0230"
    assert names(message) == {"3", "4", "7", "11", "37", "38", "39", "49"}
    release = sent(*release_elements(RELEASE))
    message = answered(release, answer_elements(release, IssuerAnswer("25", "x", "A7K2Q9")))
    assert message.mti == "0430"
    assert names(message) == {"3", "4", "7", "11", "37", "39", "49"}
    assert issuer_answer(message) == IssuerAnswer("25", "ORIGINAL_NO_ENCONTRADO")


@pytest.mark.parametrize("state", ["ACTIVA", "CAPTURADA", "LIBERADA", "TUMBA", "RESPONDIDA"])
def test_states(state: str) -> None:
    request = sent(*status_elements(IssuerStatus("0012", OPERATION)))
    message = answered(request, answer_elements(request, IssuerState("00", state)))
    assert message.mti == "0610"
    assert message["37"] == OPERATION
    assert issuer_answer(message) == IssuerState("00", state)


@pytest.mark.parametrize("state", ["", "DESCONOCIDA"])
def test_an_unknown_operation_has_no_state(state: str) -> None:
    request = sent(*status_elements(IssuerStatus("0012", OPERATION)))
    message = answered(request, state_elements(state))
    assert "48" not in message
    assert issuer_answer(message) == IssuerState("25")


def test_a_holder_with_several_cards() -> None:
    request = sent(*holder_elements(IssuerHolder("CI", "4567890", network="0012")))
    cards = [CardChoice("C1", "Dimo ****1234"), CardChoice("C2", "Crédito, oro ****5678")]
    given = HolderAnswer("00", name="AN*** GO***", cards=cards)
    message = answered(request, answer_elements(request, given))
    assert message["48.12"] == ["C1,Dimo ****1234", "C2,Credito, oro ****5678"]
    told = issuer_answer(message)
    assert told == HolderAnswer(
        "00", name="AN*** GO***", cards=[cards[0], CardChoice("C2", "Credito, oro ****5678")]
    )


def test_a_holder_with_one_card_and_with_none() -> None:
    request = sent(*holder_elements(IssuerHolder("CI", "4567890", network="0012")))
    one = HolderAnswer("00", name="AN***", cards=[CardChoice("C1", "x")])
    assert issuer_answer(answered(request, answer_elements(request, one))) == one
    nobody = answered(request, answer_elements(request, HolderAnswer("05")))
    assert "48" not in nobody
    assert issuer_answer(nobody) == HolderAnswer("05", cards=UNSET)


def test_more_cards_than_the_element_holds() -> None:
    request = sent(*holder_elements(IssuerHolder("CI", "4567890", network="0012")))
    cards = [CardChoice(f"C{i:031}", "x" * 32) for i in range(40)]
    given = HolderAnswer("00", name="AN***", cards=cards)
    told = issuer_answer(answered(request, answer_elements(request, given)))
    assert isinstance(told, HolderAnswer)
    assert told.cards == cards[:14], "14 of 70 characters fit beside the name"


def test_balances() -> None:
    request = sent("0100", hold(balances=True))
    balances = Balances(-5, 1_234_567, "PYG")
    assert balances_text(balances) == "0001600D0000000000050002600C000001234567"
    message = answered(
        request, answer_elements(request, IssuerAnswer("51", "FONDOS"), balances=balances)
    )
    assert read_balances(message) == balances
    assert read_balances(answered(request, {"39": "51"})) is None


@pytest.mark.parametrize(
    "text",
    ["0001600C00000000000", "0001600X000000000005" "0002600C000001234567",
     "0001600C000000000005", "0001600C000000000005" "0002840C000001234567"],
)  # fmt: skip
def test_balances_that_make_no_sense(text: str) -> None:
    request = sent("0100", hold())
    with pytest.raises(ElementFault) as fault:
        read_balances(answered(request, {"39": "00", "54": text}))
    assert fault.value.element == "54"


@pytest.mark.parametrize(
    ("elements", "element"),
    [
        ({}, "39"),
        ({"39": "00", "28": "C00000001"}, "28"),
        ({"39": "00", "30": "D0000000A"}, "30"),
    ],
)
def test_an_answer_that_decides_nothing(elements: dict[str, Any], element: str) -> None:
    body = {"mti": "0110", **LINK, "37": OPERATION, **elements}
    try:
        message = CEIBO.decode(CEIBO.encode(body))
    except ValueError:
        return  # the dialect itself refuses it
    with pytest.raises(ElementFault) as fault:
        issuer_answer(message)
    assert fault.value.element == element


def test_a_state_answer_without_state() -> None:
    request = sent(*status_elements(IssuerStatus("0012", OPERATION)))
    with pytest.raises(ElementFault):
        issuer_answer(answered(request, {"39": "00"}))


def test_original_data_has_its_length() -> None:
    assert len(original_data(Original())) == 42
    with pytest.raises(AssertionError):
        original_data(Original(stan="1"))


# ---- any hold at all

documents = (
    st.tuples(st.just("CI"), st.from_regex(r"[0-9]{5,8}", fullmatch=True))
    | st.tuples(st.just("RUC"), st.from_regex(r"[0-9]{6,8}-[0-9]", fullmatch=True))
    | st.tuples(st.just("PAS"), st.from_regex(r"[0-9A-Z]{5,12}", fullmatch=True))
)


@given(
    kind=st.sampled_from(["cash_out", "deposit"]),
    amount=st.integers(1, 999_999_999_999),
    currency=st.sampled_from(["PYG", "USD", "ARS", "CLP"]),
    person=documents,
    depositor=st.none() | documents,
    token=st.from_regex(r"[0-9]{6,8}", fullmatch=True),
    day=st.integers(TODAY - 180, TODAY + 180),
    number=st.integers(0, 999_999),
)
def test_any_hold_comes_out_as_it_went_in(
    kind: Any, amount: int, currency: str, person: tuple[str, str],
    depositor: tuple[str, str] | None, token: str, day: int, number: int,
) -> None:  # fmt: skip
    m = IssuerHold(
        network=f"{number % 10_000:04}",
        operation=f"{number:012}",
        kind=kind,
        amount=amount,
        currency=currency,
        terminal=f"{number:08}",
        branch=f"{number:06}",
        cashier=f"{number:06}",
        day=day,
        document_type=person[0],
        document=person[1],
        token=token if kind == "cash_out" else UNSET,
        depositor="".join(depositor) if depositor and kind == "deposit" else UNSET,
    )
    sealed = TokenSealer(DATA, number).seal(token, m.operation) if kind == "cash_out" else ""
    mti, elements = hold_elements(m, token_hex=sealed)
    assert read(sent(mti, elements)) == m
