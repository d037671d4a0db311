"""The response-code table: what a till may read, and how other tables are mapped to ours."""

import pytest

from protocols.codes import (
    CODES,
    FIELD_LABELS,
    HTTP_STATUS_SHED,
    KEY_OF_CODE,
    answer_text,
    http_status,
    key_of_host_code,
    shown_key,
)

KEYS_OF_CODE = {
    "00": {"APROBADA"},
    "05": {"NO_APROBADA"},
    "09": {"EN_PROCESO"},
    "12": {"OPERACION_NO_VALIDA"},
    "13": {"MONTO_NO_VALIDO"},
    "14": {"SIN_TITULAR"},
    "21": {"YA_REVERSADA"},
    "25": {"ORIGINAL_NO_ENCONTRADO"},
    "30": {"FORMATO"},
    "51": {"FONDOS"},
    "55": {"CODIGO", "CODIGO_VENCIDO", "CODIGO_USADO", "CODIGO_AMBIGUO", "USE_DOCUMENTO"},
    "57": {"TARJETA_NO_HABILITADA"},
    "58": {"NO_HABILITADO"},
    "61": {"LIMITE_MONTO"},
    "62": {"LIMITE_RED"},
    "63": {"SEGURIDAD"},
    "65": {"LIMITE_CANTIDAD"},
    "68": {"TARDIA"},
    "75": {"CODIGO_BLOQUEADO"},
    "91": {"EMISOR_NO_DISPONIBLE", "MANTENIMIENTO"},
    "94": {"DUPLICADO_DISTINTO"},
    "96": {"ERROR"},
    "A1": {"FUERA_DE_PLAZO"},
    "A2": {"NO_ANULABLE"},
    "A3": {"CONFLICTO"},
    "A4": {"FALTA_DECLARACION"},
    "A5": {"HORA_NO_VALIDA"},
}


def test_the_table_is_complete() -> None:
    found: dict[str, set[str]] = {}
    for key, row in CODES.items():
        assert row.key == key
        assert len(row.code) == 2
        found.setdefault(row.code, set()).add(key)
    assert found == KEYS_OF_CODE


def test_a_code_has_one_general_key() -> None:
    assert KEY_OF_CODE.keys() == KEYS_OF_CODE.keys()
    assert KEY_OF_CODE["55"] == "CODIGO"
    assert KEY_OF_CODE["91"] == "EMISOR_NO_DISPONIBLE"


def test_approvals_say_what_to_do_with_the_cash() -> None:
    assert answer_text("APROBADA", "cash_out") == "Entregue el efectivo."
    assert answer_text("APROBADA", "deposit") == "Reciba el efectivo."
    assert answer_text("APROBADA", "cash_out", state="REGISTRADA") == "Entregue el efectivo."
    assert answer_text("APROBADA", "cash_out", state="ENTREGADA") == "Ya entregada."
    assert answer_text("APROBADA", "deposit", state="ENTREGADA") == "Ya recibida."
    assert answer_text("APROBADA") == "Operación registrada."


@pytest.mark.parametrize("kind", ["cash_out", "deposit", None])
@pytest.mark.parametrize("state", [None, "ENTREGADA", "ANULADA", "ERROR"])
@pytest.mark.parametrize("key", sorted(CODES))
def test_only_a_registered_approval_asks_to_move_cash(
    key: str, kind: str | None, state: str | None
) -> None:
    text = answer_text(key, kind, state=state)
    moves = text in ("Entregue el efectivo.", "Reciba el efectivo.")
    assert moves is (key == "APROBADA" and kind is not None and state is None)
    assert len(text) <= 60


def test_what_a_till_must_not_tell_apart_reads_the_same() -> None:
    for key in ("NO_APROBADA", "FONDOS", "TARJETA_NO_HABILITADA"):
        assert answer_text(key) == "Operación no aprobada."
    assert answer_text("LIMITE_MONTO") == answer_text("LIMITE_CANTIDAD") == "Límite excedido."
    assert shown_key("SIN_TITULAR", "cash_out") == "CODIGO"
    assert shown_key("SIN_TITULAR", "deposit") == "NO_APROBADA"
    assert shown_key("FONDOS", "deposit") == "FONDOS"


def test_format_errors_name_the_field_in_the_words_of_the_cashier() -> None:
    assert answer_text("FORMATO", field="amount") == "Dato no válido: monto."
    assert answer_text("FORMATO", field="new_field") == "Dato no válido: new_field."
    assert answer_text("FORMATO") == "Dato no válido."
    assert all(label == label.lower() for label in FIELD_LABELS.values())


def test_unknown_keys_are_our_fault() -> None:
    with pytest.raises(KeyError):
        answer_text("NO_SUCH_KEY")


@pytest.mark.parametrize(
    ("de39", "key"),
    [
        ("00", "APROBADA"),
        ("51", "FONDOS"),
        ("55", "CODIGO"),
        ("62", "NO_APROBADA"),
        ("78", "NO_APROBADA"),
        ("05", "NO_APROBADA"),
        ("91", "EMISOR_NO_DISPONIBLE"),
        ("XX", "NO_APROBADA"),
        ("", "NO_APROBADA"),
    ],
)
def test_codes_of_other_hosts(de39: str, key: str) -> None:
    assert key_of_host_code(de39) == key


def test_http_status() -> None:
    assert [http_status(code) for code in ("00", "51", "94", "30", "63")] == [
        200,
        200,
        409,
        400,
        401,
    ]
    assert http_status("91", shed=True) == HTTP_STATUS_SHED == 503
