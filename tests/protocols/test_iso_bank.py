"""Bank messages: through the bytes of the `bank` dialect and back; what must never be shown."""

from typing import Any

import msgspec
import pytest

from protocols.iso8583.bank import (
    BankAnswer,
    Card,
    Credit,
    Purchase,
    Reversal,
    Shop,
    amount_text,
    answer_elements,
    bank_answer,
    bank_request,
    request_elements,
)
from protocols.iso8583.ceibo import ElementFault, Original
from protocols.iso8583.dialect import Dialect, Message

BANK = Dialect.load("bank")
LINK: dict[str, object] = {"7": "0101120000", "11": "000042"}
OPERATION = "260010000123"

CARD = Card(
    pan="5412345678901234",
    expiry="2812",
    entry_mode="812",
    card_type="C",
    verification_value="123",
    vci="TSY",
)
SHOP = Shop(
    category="5411", terminal="00001234", merchant="597055555532", name_and_place="TIENDA ASUNCION"
)
PURCHASE = Purchase(
    operation=OPERATION,
    amount=150_000,
    currency="PYG",
    card=CARD,
    shop=SHOP,
    instalments=3,
    bank_code="001",
    order="ORD-17",
)
DEBIT = Purchase(operation=OPERATION, amount=1, currency="USD", account_from="001-22-333")
CREDIT = Credit(
    operation=OPERATION, amount=12_345, currency="CLP", account_to="998877", bank_code="012"
)
REVERSAL = Reversal(
    operation=OPERATION,
    amount=150_000,
    currency="PYG",
    is_credit=True,
    reason="21",
    original=Original("0200", "000041", "0101115959", "0777"),
    terminal="00001234",
)


def sent(m: Any, **more: Any) -> Message:
    mti, elements = request_elements(m, institution="0777", **more)
    return BANK.decode(BANK.encode({"mti": mti, **LINK, **elements}))


@pytest.mark.parametrize("m", [PURCHASE, DEBIT, CREDIT, REVERSAL], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("advice", [False, True])
@pytest.mark.parametrize("repeat", [False, True])
def test_every_request_comes_out_as_it_went_in(m: Any, advice: bool, repeat: bool) -> None:
    message = sent(m, advice=advice, repeat=repeat)
    assert bank_request(message) == m
    if isinstance(m, Reversal):
        assert message.mti == ("0421" if repeat else "0420")
    else:
        assert message.mti == (("0221" if repeat else "0220") if advice else "0200")


@pytest.mark.parametrize("m", [DEBIT, CREDIT], ids=lambda m: type(m).__name__)
def test_the_first_of_two_phases(m: Any) -> None:
    held = msgspec.structs.replace(m, hold=True)
    message = sent(held)
    assert message.mti == "0100"
    assert bank_request(message) == held
    booked = sent(held, advice=True)
    assert booked.mti == "0220"
    assert bank_request(booked) == m
    answer = BANK.decode(message.answer({"39": "51"}, mac=False))
    assert (answer.mti, bank_answer(answer).code) == ("0110", "51")


def test_a_purchase_on_the_wire() -> None:
    message = sent(PURCHASE)
    names = ("2", "3", "4", "14", "18", "22", "32", "37", "41", "49")
    assert [message[name] for name in names] == [
        "5412345678901234", "000000", "000000150000", "2812", "5411", "812", "0777", OPERATION,
        "00001234", "600",
    ]  # fmt: skip
    assert message["42"].rstrip() == "597055555532"
    assert message["43"].rstrip() == "TIENDA ASUNCION"
    tags = ("20", "21", "22", "23", "24", "25")
    assert [message["48." + tag] for tag in tags] == ["C", "03", "001", "ORD-17", "123", "TSY"]


def test_track_pin_block_and_chip_pass_untouched() -> None:
    card = Card(
        track2="5412345678901234=28121010000000000", pin_block=bytes(range(8)), chip=b"\x9f\x02\x00"
    )
    purchase = Purchase(operation=OPERATION, amount=1, currency="PYG", card=card)
    read = bank_request(sent(purchase))
    assert isinstance(read, Purchase)
    assert read.card == card


def test_nothing_of_a_card_is_shown() -> None:
    shown = repr(PURCHASE) + repr(DEBIT) + repr(CREDIT) + repr(CARD)
    for secret in ("5412345678901234", "2812", "123", "TSY", "001-22-333", "998877"):
        assert f"'{secret}'" not in shown
    assert "operation='260010000123'" in shown
    assert "000045" not in shown


@pytest.mark.parametrize(
    ("amount", "currency", "exponent", "text"),
    [
        (150_000, "PYG", None, "000000150000"),
        (150_000, "PYG", 2, "000015000000"),
        (12_345, "USD", None, "000000012345"),
        (12_300, "USD", 0, "000000000123"),
    ],
)
def test_decimal_places_of_the_host(
    amount: int, currency: str, exponent: int | None, text: str
) -> None:
    assert amount_text(amount, currency, exponent) == text
    purchase = Purchase(operation=OPERATION, amount=amount, currency=currency, account_from="1")
    message = sent(purchase, exponent=exponent)
    assert message["4"] == text
    assert bank_request(message, exponent=exponent) == purchase


def test_amounts_are_never_rounded() -> None:
    with pytest.raises(ValueError):
        amount_text(12_345, "USD", 0)
    with pytest.raises(ValueError):
        amount_text(10**11, "PYG", 2)
    odd = sent(Purchase(operation=OPERATION, amount=150, currency="PYG", account_from="1"))
    assert odd["4"] == "000000000150"
    assert bank_request(odd, exponent=1).amount == 15
    with pytest.raises(ElementFault) as fault:
        bank_request(odd, exponent=2)
    assert (fault.value.element, fault.value.code) == ("4", "13")


@pytest.mark.parametrize(
    ("change", "element", "code"),
    [
        ({"3": "990000"}, "3", "12"),
        ({"3": None}, "3", "30"),
        ({"4": "0" * 12}, "4", "13"),
        ({"37": None}, "37", "30"),
        ({"49": "999"}, "49", "30"),
        ({"2": None}, "2", "30"),
        ({"48": {"20": "X"}}, "48.20", "30"),
    ],
    ids=str,
)
def test_a_field_at_fault(change: dict[str, Any], element: str, code: str) -> None:
    elements = {**LINK, **request_elements(PURCHASE, institution="0777")[1], **change}
    body = {name: value for name, value in elements.items() if value is not None}
    message = BANK.decode(BANK.encode({"mti": "0200", **body}))
    with pytest.raises(ElementFault) as fault:
        bank_request(message)
    assert (fault.value.element, fault.value.code) == (element, code)
    assert "5412345678901234" not in str(fault.value)


def test_answers() -> None:
    request = sent(PURCHASE)
    given = BankAnswer(code="00", key="APROBADA", host_code="00", authorization="A7K2Q9", vci="TSY")
    message = BANK.decode(request.answer(answer_elements(given), mac=False))
    assert message.mti == "0210"
    assert "2" not in message, "a card number is not sent back"
    assert bank_answer(message) == given


@pytest.mark.parametrize(("host", "ours"), [("78", "05"), ("62", "05"), ("Z1", "05"), ("51", "51")])
def test_a_hosts_own_codes(host: str, ours: str) -> None:
    message = BANK.decode(sent(PURCHASE).answer({"39": host}, mac=False))
    answer = bank_answer(message)
    assert (answer.code, answer.host_code) == (ours, host)


def test_what_is_no_answer_decides_nothing() -> None:
    for message in (sent(PURCHASE), BANK.decode(sent(PURCHASE).answer({}, mac=False))):
        with pytest.raises(ElementFault):
            bank_answer(message)
