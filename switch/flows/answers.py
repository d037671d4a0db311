"""Answers to terminals: code, key, text, and the one instruction that decides about cash.

Source: the table of what a query tells the cashier (acceptance specification, section 4).
"""

from msgspec import UNSET, UnsetType

from protocols.codes import CODES, KEY_OF_CODE, answer_text, shown_key
from protocols.messages import (
    DEVUELVA,
    ENTREGUE,
    ESPERE,
    NO_ENTREGUE,
    NO_RECIBA,
    RECIBA,
    Annul,
    Answer,
    Deposit,
    Error,
    Holder,
    NetworkAnswer,
    ShiftClose,
    ShiftOpen,
    TerminalRequest,
)
from switch.flows.operations import RedOperation
from switch.flows.states import ANULADA, ENTREGADA, ERROR, REGISTRADA

_APPROVED_FIELDS = (REGISTRADA, ENTREGADA, ANULADA)
_CANCELLED = "Operación cancelada."  # the request was still on its way (X014)


def instruction(operation: RedOperation, *, later: bool) -> str:
    """What the cashier must do now. `later`: asked again, so cash may have been taken meanwhile."""
    cash_out = operation.kind == "cash_out"
    if operation.annulment:  # undecided: nothing moves in either direction
        return NO_ENTREGUE if cash_out else NO_RECIBA
    match operation.state:
        case "INICIADA":
            return ESPERE
        case "REGISTRADA":
            return ENTREGUE if cash_out else RECIBA
        case "ENTREGADA":
            return NO_ENTREGUE if cash_out else NO_RECIBA
        case "ANULADA" if operation.delivered_ns:
            return RECIBA if cash_out else DEVUELVA
        case "ANULADA":
            return NO_ENTREGUE if cash_out else NO_RECIBA
        case _:
            if cash_out:
                return NO_ENTREGUE
            return DEVUELVA if later else NO_RECIBA


def about(
    operation: RedOperation,
    key: str,
    *,
    trace: int | UnsetType,
    duplicate: bool = False,
    later: bool = True,
    original: int | None = None,
    ticket: list[str] | None = None,
) -> Answer:
    """An answer about an operation, with its state and instruction of now."""
    kind = operation.kind
    shown = shown_key(key, kind)
    asked_by_itself = trace == operation.trace and original is None
    text = answer_text(shown, kind, operation.field or None, operation.state)
    if shown == "APROBADA" and operation.state == ERROR:
        text = _CANCELLED
    approved = operation.state in _APPROVED_FIELDS
    return Answer(
        CODES[shown].code,
        shown,
        text,
        trace,
        instruction(operation, later=later),
        operation.state,
        UNSET if asked_by_itself else (original or operation.trace),
        operation.operation or UNSET,
        operation.authorization if approved else UNSET,
        operation.business_date or UNSET,
        operation.amount,
        operation.fee if approved else UNSET,
        duplicate,
        UNSET if ticket is None else ticket,
        operation.field if operation.field and shown == "FORMATO" else UNSET,
    )


def plain(key: str, *, trace: int | UnsetType) -> Answer:
    """An answer that is about no operation, such as that of a shift."""
    return Answer(CODES[key].code, key, answer_text(key), trace=trace)


def refused(
    key: str,
    kind: str,
    *,
    trace: int | UnsetType,
    original: int | UnsetType = UNSET,
    state: str | UnsetType = UNSET,
) -> Answer:
    """A refusal that leaves no operation behind: no cash moves because of it."""
    told = NO_RECIBA if kind == "deposit" else NO_ENTREGUE
    return Answer(
        CODES[key].code, key, answer_text(key), trace=trace, instruction=told, original=original,
        state=state,
    )  # fmt: skip


def bad_field(message: TerminalRequest, field: str) -> Answer | Error:
    """Code 30: the field that no operation can be made of. The trace stays free."""
    if message.trace is UNSET:
        return Error("30", field)
    told: str | UnsetType = NO_RECIBA if isinstance(message, Deposit) else NO_ENTREGUE
    if isinstance(message, (Holder, ShiftOpen, ShiftClose)):
        told = UNSET
    return Answer(
        "30",
        "FORMATO",
        answer_text("FORMATO", field=field),
        trace=message.trace,
        instruction=told,
        original=message.original if isinstance(message, Annul) else UNSET,
        field=field,
    )


def key_of(answer: NetworkAnswer, kind: str) -> str:
    """Key of a platform's answer, from the key it gave or else from its code, fit for a till."""
    key = answer.key if isinstance(answer.key, str) else ""
    if key not in CODES or CODES[key].code != answer.code:
        key = KEY_OF_CODE.get(answer.code, "NO_APROBADA")
    return shown_key(key, kind)


def identity_fields(identity: tuple[str, str]) -> dict[str, str]:
    """Fields of a network request for a normalised (type, number)."""
    kind, number = identity
    return {"phone": number} if kind == "TEL" else {"document": number}


def optional(value: str | UnsetType) -> str | None:
    return value if isinstance(value, str) else None
