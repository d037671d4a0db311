"""Requests of a network in another process: each field in the form that the flows work with."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from protocols.messages import AnnulRegistered, Hold, NetworkHolder, NetworkRequest
from switch.flows import norms
from switch.flows.norms import FieldError


def normalised(message: NetworkRequest) -> NetworkRequest:
    """The same request in normal form.

    Raises:
        FieldError: a field that no request can be made of; never with its value.
    """
    match message:
        case Hold():
            norms.parse_reference(message.reference)
            return msgspec.structs.replace(message, **_hold_fields(message))
        case NetworkHolder():
            return msgspec.structs.replace(message, **_identity(message))
        case AnnulRegistered():
            norms.parse_reference(message.reference)
            supervisor = norms.supervisor(message.supervisor)
            return msgspec.structs.replace(message, supervisor=supervisor)
        case _:
            norms.parse_reference(message.reference)
            return message


def _hold_fields(m: Hold) -> dict[str, Any]:
    norms.currency(m.currency)
    cash_out = m.kind == "cash_out"
    if isinstance(m.token, str) != cash_out:
        raise FieldError("token")  # a cash_out needs one, a deposit must not carry one
    if cash_out and isinstance(m.card, str):
        raise FieldError("card")
    fields: dict[str, Any] = {
        "branch": norms.branch(m.branch),
        "cashier": norms.cashier(m.cashier),
    } | _identity(m)
    if isinstance(m.depositor, str):
        fields["depositor"] = "".join(norms.depositor(m.depositor))
    if isinstance(m.declaration, dict):
        fields["declaration"] = norms.declaration(m.declaration)
    return fields


def _identity(m: Hold | NetworkHolder) -> dict[str, str | UnsetType]:
    document = m.document if isinstance(m.document, str) else None
    phone = m.phone if isinstance(m.phone, str) else None
    kind, number = norms.identity(m.document_type, document, phone)
    if kind == norms.PHONE:
        return {"document": UNSET, "phone": number}
    return {"document": number, "phone": UNSET}
