"""The response codes of the cashier domain: code, key and the text that the cashier reads.

A till sees a text of this table and nothing else; why the issuer refused stays at the issuer and in
the audit trail. A code may have several keys (55, 91); a key has exactly one code, so the key is
what flows work with and the code is what a peer with two characters of room gets.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class ResponseCode(NamedTuple):
    """One row: `code` as in DE39, `key` an identifier, `text` for the cashier ('': not shown)."""

    code: str
    key: str
    text: str


_ROWS = (
    ResponseCode("00", "APROBADA", "Operación registrada."),  # by kind: _APPROVED
    ResponseCode("05", "NO_APROBADA", "Operación no aprobada."),
    ResponseCode("09", "EN_PROCESO", "En proceso. Espere."),
    ResponseCode("12", "OPERACION_NO_VALIDA", "Operación no válida."),
    ResponseCode("13", "MONTO_NO_VALIDO", "Monto no permitido."),
    ResponseCode("14", "SIN_TITULAR", ""),
    ResponseCode("21", "YA_REVERSADA", ""),
    ResponseCode("25", "ORIGINAL_NO_ENCONTRADO", "No existe."),
    ResponseCode("30", "FORMATO", "Dato no válido."),  # with a field: _bad_field
    ResponseCode("51", "FONDOS", "Operación no aprobada."),
    ResponseCode("55", "CODIGO", "Documento o código no válido."),
    ResponseCode("55", "CODIGO_VENCIDO", "Código vencido: genere otro."),
    ResponseCode("55", "CODIGO_USADO", "Código ya usado: genere otro."),
    ResponseCode("55", "CODIGO_AMBIGUO", "Código no único: genere otro."),
    ResponseCode("55", "USE_DOCUMENTO", "Use el documento."),
    ResponseCode("57", "TARJETA_NO_HABILITADA", "Operación no aprobada."),
    ResponseCode("58", "NO_HABILITADO", "Servicio no habilitado en esta boca."),
    ResponseCode("61", "LIMITE_MONTO", "Límite excedido."),
    ResponseCode("62", "LIMITE_RED", "Límite de la red alcanzado."),
    ResponseCode("63", "SEGURIDAD", "Error de seguridad. NO mueva efectivo."),
    ResponseCode("65", "LIMITE_CANTIDAD", "Límite excedido."),
    ResponseCode("68", "TARDIA", ""),
    ResponseCode("75", "CODIGO_BLOQUEADO", "Canal bloqueado: use la app."),
    ResponseCode("91", "EMISOR_NO_DISPONIBLE", "Servicio no disponible. NO mueva efectivo."),
    ResponseCode("91", "MANTENIMIENTO", "Servicio en mantenimiento. NO mueva efectivo."),
    ResponseCode("94", "DUPLICADO_DISTINTO", "Operación duplicada con otros datos."),
    ResponseCode("96", "ERROR", "Error del sistema. NO mueva efectivo."),
    ResponseCode("A1", "FUERA_DE_PLAZO", "Fuera de plazo."),
    ResponseCode("A2", "NO_ANULABLE", "No se puede anular."),
    ResponseCode("A3", "CONFLICTO", "En verificación. Llame a la mesa de ayuda."),
    ResponseCode("A4", "FALTA_DECLARACION", "Complete la declaración de origen de fondos."),
    ResponseCode("A5", "HORA_NO_VALIDA", "Hora del equipo fuera de tolerancia."),
)

CODES: Final[Mapping[str, ResponseCode]] = MappingProxyType({row.key: row for row in _ROWS})
"""Every row by its key."""

KEY_OF_CODE: Final[Mapping[str, str]] = MappingProxyType(
    # The first row of a code is its general one: CODIGO for 55, EMISOR_NO_DISPONIBLE for 91.
    {row.code: row.key for row in reversed(_ROWS)}
)
"""The general key of a two-character code."""

# 00 about an operation says what to do with the cash, so its text follows kind and state. A text
# that contradicts `instruction` would make the cashier guess, hence the rows for what is over.
_APPROVED: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("cash_out", "REGISTRADA"): "Entregue el efectivo.",
        ("deposit", "REGISTRADA"): "Reciba el efectivo.",
        ("cash_out", "ENTREGADA"): "Ya entregada.",
        ("deposit", "ENTREGADA"): "Ya recibida.",
        ("cash_out", "ANULADA"): "Operación anulada.",
        ("deposit", "ANULADA"): "Operación anulada.",
    }
)

# What the cashier calls a field of the wire; a field that is not here keeps its wire name.
FIELD_LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "amount": "monto",
        "branch": "boca",
        "business_date": "fecha",
        "card": "tarjeta",
        "cashier": "cajero",
        "cashier_code": "código del cajero",
        "counted": "efectivo contado",
        "currency": "moneda",
        "declaration": "declaración",
        "depositor": "depositante",
        "document": "documento",
        "document_type": "tipo de documento",
        "float": "fondo de caja",
        "kind": "tipo de operación",
        "local_time": "hora local",
        "op": "operación",
        "original": "operación original",
        "payload": "mensaje",
        "phone": "teléfono",
        "supervisor": "supervisor",
        "supervisor_code": "código del supervisor",
        "token": "código",
        "trace": "comprobante",
    }
)

# DE39 of a host that has its own table, as far as it differs from ours (78 and 62 are what hosts
# say for closed and frozen accounts). What is in neither table becomes 05.
_HOST_KEYS: Final[Mapping[str, str]] = MappingProxyType({"62": "NO_APROBADA", "78": "NO_APROBADA"})

_HTTP_STATUS: Final[Mapping[str, int]] = MappingProxyType({"94": 409, "30": 400, "63": 401})
HTTP_STATUS_SHED: Final = 503


def answer_text(
    key: str, kind: str | None = None, field: str | None = None, state: str | None = None
) -> str:
    """The text for the cashier, in Spanish; '' for a key that is never shown.

    Args:
        key: of the table, for instance "FONDOS".
        kind: "cash_out" or "deposit" where the answer is about such an operation.
        field: wire name of the bad field, for FORMATO.
        state: of the operation at red; decides the text of APROBADA (default REGISTRADA).

    Raises:
        KeyError: `key` is not in the table.
    """
    if key == "APROBADA" and kind is not None:
        return _APPROVED.get((kind, state or "REGISTRADA"), CODES[key].text)
    if key == "FORMATO" and field:
        return f"Dato no válido: {FIELD_LABELS.get(field, field)}."
    return CODES[key].text


def shown_key(key: str, kind: str) -> str:
    """The key that may leave the switch: SIN_TITULAR hides behind 55 (cash_out) or 05 (deposit).

    Nobody must be able to learn at a till who is a customer.
    """
    if key != "SIN_TITULAR":
        return key
    return "CODIGO" if kind == "cash_out" else "NO_APROBADA"


def key_of_host_code(de39: str) -> str:
    """Our key for the DE39 of another host: its own 62 and 78, and all unlisted, mean 05."""
    return _HOST_KEYS.get(de39) or KEY_OF_CODE.get(de39, "NO_APROBADA")


def http_status(code: str, *, shed: bool = False) -> int:
    """HTTP status of a business answer for test and partner APIs; `shed`: refused by overload."""
    return HTTP_STATUS_SHED if shed else _HTTP_STATUS.get(code, 200)
