"""The messages of TR_NORMAL: result, token reply, and the words of an acknowledgement."""

import re
from typing import Final, Literal

from msgspec import Struct

from protocols.webpay.pairs import Pairs

ACK: Final = b"ACK"
ERR: Final = b"ERR"
TOKEN_DIGITS: Final = 64
NO_TOKEN: Final = "0" * TOKEN_DIGITS
NO_SESSION: Final = "null"
NOT_AUTHORISED: Final = "000000"

_TOKEN_REPLY: Final = re.compile(rb"ERROR=([0-9]{1,3})\r?\nTOKEN=([0-9A-Fa-f]{64})\r?\n?")


class ResultFields(Struct, frozen=True, kw_only=True):
    """What a result says; texts as the shop gave them.

    Attributes:
        respuesta: 0, or -1 to -8.
        auth_code: six letters or digits; not shown where it is declined.
        accounting_date, tx_date: MMDD. tx_time: HHMMSS; both of the bank's zone.
        session: empty where the shop gave none.
    """

    order: str
    respuesta: int
    amount: str
    auth_code: str
    last4: str
    accounting_date: str
    tx_date: str
    tx_time: str
    session: str
    tx_id: str
    pay_type: str
    instalments: int
    vci: str
    tx_type: str = "TR_NORMAL"


def result_pairs(fields: ResultFields) -> Pairs:
    """The result in the order in which it is signed."""
    approved = fields.respuesta == 0
    return (
        ("TBK_ORDEN_COMPRA", fields.order),
        ("TBK_TIPO_TRANSACCION", fields.tx_type),
        ("TBK_RESPUESTA", str(fields.respuesta)),
        ("TBK_MONTO", fields.amount),
        ("TBK_CODIGO_AUTORIZACION", fields.auth_code if approved else NOT_AUTHORISED),
        ("TBK_FINAL_NUMERO_TARJETA", fields.last4),
        ("TBK_FECHA_CONTABLE", fields.accounting_date),
        ("TBK_FECHA_TRANSACCION", fields.tx_date),
        ("TBK_HORA_TRANSACCION", fields.tx_time),
        ("TBK_ID_SESION", fields.session or NO_SESSION),
        ("TBK_ID_TRANSACCION", fields.tx_id),
        ("TBK_TIPO_PAGO", fields.pay_type),
        ("TBK_NUMERO_CUOTAS", str(fields.instalments)),
        ("TBK_VCI", fields.vci),
    )


def reply_text(message: bytes) -> Literal["ACK", "ERR", "BAD"]:
    """What a kit's opened reply says; anything but the two words is bad."""
    if message == ACK:
        return "ACK"
    return "ERR" if message == ERR else "BAD"


def token_reply(error: int, token: str = NO_TOKEN) -> bytes:
    """The answer to `bp_validacion`, clear.

    Args:
        error: 0 where `token` counts.
        token: 64 hex digits.
    """
    return f"ERROR={error}\nTOKEN={token}\n".encode("ascii")


def parse_token_reply(message: bytes) -> tuple[int, str] | None:
    """Error number and token of an opened reply; None where it is none."""
    found = _TOKEN_REPLY.fullmatch(message)
    return None if found is None else (int(found[1]), found[2].decode("ascii").lower())
