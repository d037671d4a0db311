"""Golden tickets, the control vector of cashier-domain §5, and the bounds of the paper."""

import timeit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ext._mac import MacKey
from switch.flows.ticket import (
    COLUMNS,
    Heading,
    TicketData,
    ascii_text,
    compose,
    control,
    control_matches,
    heading,
)

HEADING = heading(
    company="RED DEMO S.A.",
    ruc="80000000-0",
    address="Avda. Ejemplo 123, Asunción",
    branch="000017",
    terminal="00001234",
)
CONTROL_FIELDS = {
    "kind": "cash_out",
    "reference": "00120000123420260101000123",
    "operation": "260010000123",
    "authorization": "A7K2Q9",
    "amount": 150000,
    "currency": "PYG",
    "business_date": "2026-01-01",
    "hhmmss": "090512",
    "state": "REGISTRADA",
}
KEY = MacKey("hmac-sha256", b"12345678901234567890123456789012")
OTHER_KEY = MacKey("hmac-sha256", b"21098765432109876543210987654321")
CASH_OUT = TicketData(
    heading=HEADING,
    kind="cash_out",
    business_date="2026-01-01",
    hhmmss="090512",
    cashier="000045",
    cashier_name="ANA R.",
    trace=123,
    amount=150_000,
    operation="260010000123",
    authorization="A7K2Q9",
    document=("CI", "4123456"),
    control="1EABF11F",
)
GOLDEN_CASH_OUT = """\
             RED DEMO S.A.
      RUC 80000000-0   Boca 000017
      Avda. Ejemplo 123, Asuncion
----------------------------------------
       EXTRACCION - TARJETA DIMO
Fecha 01/01/2026           Hora 09:05:12
Terminal 00001234   Cajero 000045 ANA R.
Nro. operacion              260010000123
Comprobante                       000123
Autorizacion                      A7K2Q9
Documento                     CI ****456
MONTO                        Gs. 150.000
Comision                           Gs. 0
----------------------------------------
Efectivo entregado al titular.
Operacion por cuenta de la entidad
emisora. Conserve este comprobante.
Control 1EABF11F                ORIGINAL"""
GOLDEN_DEPOSIT = """\
             RED DEMO S.A.
      RUC 80000000-0   Boca 000017
      Avda. Ejemplo 123, Asuncion
----------------------------------------
        DEPOSITO - TARJETA DIMO
Fecha 01/01/2026           Hora 09:05:12
Terminal 00001234          Cajero 000045
Nro. operacion              260010000124
Comprobante                       000124
Autorizacion                      B7K2Q9
Telefono                         ****456
Titular                     MA*** NU***
MONTO                      Gs. 1.250.500
Comision                       Gs. 2.000
----------------------------------------
Efectivo recibido del depositante.
Operacion por cuenta de la entidad
emisora. Conserve este comprobante.
Control 0011AABB               DUPLICADO""".replace(
    "Titular                     MA*** NU***", "Titular                      MA*** NU***"
)
GOLDEN_ANNULMENT = """\
             RED DEMO S.A.
      RUC 80000000-0   Boca 000017
      Avda. Ejemplo 123, Asuncion
----------------------------------------
  ANULACION EXTRACCION - TARJETA DIMO
Fecha 01/01/2026           Hora 09:05:12
Terminal 00001234   Cajero 000045 ANA R.
Anula operacion             260010000123
Comprobante                       000125
Autorizacion                      A7K2Q9
Documento                     CI ****456
MONTO                        Gs. 150.000
Comision                           Gs. 0
----------------------------------------
Efectivo no entregado o devuelto.
Operacion por cuenta de la entidad
emisora. Conserve este comprobante.
Control 1EABF11F                ORIGINAL"""
GOLDEN_REFUSED = """\
             RED DEMO S.A.
      RUC 80000000-0   Boca 000017
      Avda. Ejemplo 123, Asuncion
----------------------------------------
       EXTRACCION - TARJETA DIMO
Fecha 01/01/2026           Hora 09:05:12
Terminal 00001234   Cajero 000045 ANA R.
Comprobante                       000123
Documento                     CI ****456
MONTO                        Gs. 150.000
Comision                           Gs. 0
----------------------------------------
Operacion no aprobada.
No se movio efectivo.
Operacion por cuenta de la entidad
emisora. Conserve este comprobante.
                                ORIGINAL"""


def changed(**fields: object) -> TicketData:
    return msgspec.structs.replace(CASH_OUT, **fields)


GOLDEN = [
    ("cash_out", CASH_OUT, GOLDEN_CASH_OUT),
    (
        "reprinted deposit by phone",
        changed(
            kind="deposit",
            trace=124,
            operation="260010000124",
            authorization="B7K2Q9",
            document=("TEL", "+595981123456"),
            holder="María Núñez",
            cashier_name="",
            amount=1_250_500,
            fee=2_000,
            control="0011AABB",
            duplicate=True,
        ),
        GOLDEN_DEPOSIT,
    ),
    (
        "annulment",
        changed(state="ANULADA", trace=125, operation="", annuls="260010000123"),
        GOLDEN_ANNULMENT,
    ),
    (
        "refused",
        changed(state="RECHAZO_REGISTRADO", operation="", authorization="", control=""),
        GOLDEN_REFUSED,
    ),
]


@pytest.mark.parametrize(("name", "data", "expected"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_golden(name: str, data: TicketData, expected: str) -> None:
    assert "\n".join(compose(data)) == expected


def test_deposit_annulment_has_its_own_title_and_words() -> None:
    lines = compose(changed(kind="deposit", state="ANULADA", annuls="260010000123"))
    assert "   ANULACION DEPOSITO - TARJETA DIMO" in lines
    assert "Efectivo no recibido o devuelto." in lines


def test_holder_is_named_on_deposits_only() -> None:
    assert not [line for line in compose(changed(holder="Ana")) if line.startswith("Titular")]


def test_missing_fields_leave_their_lines_out() -> None:
    bare = heading(company="RED", ruc="", address="", branch="000001", terminal="00000001")
    lines = compose(
        TicketData(
            heading=bare,
            kind="deposit",
            business_date="2026-01-01",
            hhmmss="000000",
            cashier="000001",
            trace=1,
            amount=1,
        )
    )
    starts = [line.split()[0] for line in lines]
    assert starts[:4] == ["RED", "Boca", "-" * COLUMNS, "DEPOSITO"]
    assert {"Nro.", "Anula", "Autorizacion", "Documento", "Telefono", "Titular"}.isdisjoint(starts)


def test_other_currency_has_decimals() -> None:
    lines = compose(changed(amount=123_405, fee=5, currency="USD"))
    assert "MONTO                       US$ 1.234,05" in lines
    assert "Comision                        US$ 0,05" in lines


def test_control_vector() -> None:
    assert control(KEY, **CONTROL_FIELDS) == "1EABF11F"


@pytest.mark.parametrize("field", sorted(CONTROL_FIELDS))
def test_control_covers_every_field(field: str) -> None:
    other = 150001 if field == "amount" else f"{CONTROL_FIELDS[field]}x"
    assert control(KEY, **{**CONTROL_FIELDS, field: other}) != "1EABF11F"


def test_control_of_another_key_differs() -> None:
    assert control(OTHER_KEY, **CONTROL_FIELDS) != "1EABF11F"


@pytest.mark.parametrize(
    ("typed", "right"),
    [("1EABF11F", True), (" 1eabf11f\n", True), ("1EABF11E", False), ("", False), ("ñ", False)],
)
def test_typed_control(typed: str, right: bool) -> None:
    assert control_matches(typed, "1EABF11F") is right


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Ñandú – “Ka’aguy” ₲", 'Nandu - "Ka\'aguy" Gs.'),
        ("José Pérez Ibáñez", "Jose Perez Ibanez"),
        ("Straße ¿Qué?", "Strasse Que?"),
        ("日本", "??"),
        ("a\x1b[2Jb\u202ec\nd", "a [2Jb c d"),
    ],
)
def test_folding(text: str, folded: str) -> None:
    assert ascii_text(text) == folded


wild_text = st.text(max_size=60)


@given(
    company=wild_text,
    address=wild_text,
    product=wild_text,
    cashier_name=wild_text,
    holder=wild_text,
    number=st.text(max_size=20, alphabet="0123456789AZ+-"),
    amount=st.integers(1, 10**12 - 1),
    fee=st.integers(0, 10**12 - 1),
    kind=st.sampled_from(["cash_out", "deposit"]),
    state=st.sampled_from(["REGISTRADA", "ANULADA", "RECHAZO_REGISTRADO", "ERROR"]),
)
def test_always_fits_the_paper(
    company, address, product, cashier_name, holder, number, amount, fee, kind, state
) -> None:
    head = heading(
        company=company,
        ruc="80000000-0",
        address=address,
        branch="000017",
        terminal="00001234",
        product=product,
    )
    data = changed(
        heading=head,
        cashier_name=cashier_name,
        holder=holder,
        document=("CI", number),
        amount=amount,
        fee=fee,
        kind=kind,
        state=state,
        annuls="260010000123",
    )
    for line in compose(data):
        assert line == line.rstrip()
        assert 0 < len(line) <= COLUMNS
        assert line.isascii()
        assert line.isprintable()
        if line.startswith("Documento ") and len(number) > 4:
            assert number not in line


def test_heading_is_shared_not_copied() -> None:
    assert isinstance(HEADING, Heading)
    assert compose(CASH_OUT)[0] is HEADING.lines[0]


def test_fast_enough_for_every_operation() -> None:
    """Typically 4 µs; the bound is wide, for it only guards against a change of order."""
    best = min(timeit.repeat(lambda: compose(CASH_OUT), number=1000, repeat=5)) / 1000
    assert best < 50e-6
