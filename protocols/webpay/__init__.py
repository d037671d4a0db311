"""Webpay of the KCC generation: crypto, messages and records of version 6.0, sans-I/O.

pairs, fields      pair lists, grammar and checks of a payment request
mac, seal          signatures and the envelope
messages           results, token replies, acknowledgements
answer, shopform   what is posted to shops, and what they answer
decision           what a payment's result and the shop's answer come to
bitacora, events   the logs of that time, written and read
kcc51              archived messages of version 5.1; imported by nothing else here
"""

from protocols.webpay.bitacora import OUTCOMES, Outcome, Parsed, Record, check_mac, outcome, parse
from protocols.webpay.decision import Decision, decide
from protocols.webpay.fields import (
    PaymentRequest,
    Profile,
    Refusal,
    check_request,
    parse_amount,
)
from protocols.webpay.mac import payment_mac, sign_mac, verify_mac
from protocols.webpay.messages import ResultFields, reply_text, result_pairs, token_reply
from protocols.webpay.pairs import Pairs, PairsError, join_pairs, parse_pairs, signed_bytes
from protocols.webpay.seal import Opened, SealError, open_wire, seal_wire

__all__ = [
    "OUTCOMES",
    "Decision",
    "Opened",
    "Outcome",
    "Pairs",
    "PairsError",
    "Parsed",
    "PaymentRequest",
    "Profile",
    "Record",
    "Refusal",
    "ResultFields",
    "SealError",
    "check_mac",
    "check_request",
    "decide",
    "join_pairs",
    "open_wire",
    "outcome",
    "parse",
    "parse_amount",
    "parse_pairs",
    "payment_mac",
    "reply_text",
    "result_pairs",
    "seal_wire",
    "sign_mac",
    "signed_bytes",
    "token_reply",
    "verify_mac",
]
