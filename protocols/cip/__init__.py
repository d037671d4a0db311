"""The payment application: what its messages, signatures, numbers and files look like.

Sans-I/O: no socket, no clock, no store. Instants, random bytes and keys are given.
"""

from protocols.cip.confirmation import (
    SEQUENCE_MAX,
    check_code,
    day_number,
    is_code,
    make_code,
    normalise_code,
    shown_code,
)
from protocols.cip.identifiers import identifier, is_identifier
from protocols.cip.signing import (
    KIND_GATEWAY,
    KIND_QUERY,
    KIND_SESSION,
    Signed,
    canonical,
    flatten,
    header_parameters,
    sign,
    sign_webhook,
    verify,
    verify_webhook,
)
from protocols.cip.transaction import (
    AmountRule,
    FeeRule,
    FieldFault,
    FieldRule,
    Instrument,
    Item,
    Payer,
    Transaction,
    body_hash,
    masked_instrument,
    read_transaction,
    unflatten,
)

__all__ = [
    "KIND_GATEWAY",
    "KIND_QUERY",
    "KIND_SESSION",
    "SEQUENCE_MAX",
    "AmountRule",
    "FeeRule",
    "FieldFault",
    "FieldRule",
    "Instrument",
    "Item",
    "Payer",
    "Signed",
    "Transaction",
    "body_hash",
    "canonical",
    "check_code",
    "day_number",
    "flatten",
    "header_parameters",
    "identifier",
    "is_code",
    "is_identifier",
    "make_code",
    "masked_instrument",
    "normalise_code",
    "read_transaction",
    "shown_code",
    "sign",
    "sign_webhook",
    "unflatten",
    "verify",
    "verify_webhook",
]
