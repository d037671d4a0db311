"""What the session answers by itself to a frame that is authentic but makes no sense."""

from typing import Any

from msgspec import UNSET, Struct

from protocols.codes import CODES, KEY_OF_CODE, answer_text
from protocols.messages import (
    NO_ENTREGUE,
    NO_RECIBA,
    Answer,
    CashOut,
    Deposit,
    Error,
    Message,
    NetworkAnswer,
    RequestId,
    Trace,
)
from protocols.session.vocabulary import (
    ANSWERS,
    DECODE_ERRORS,
    Encoding,
    Head,
    Side,
    Vocabulary,
    decoder_of,
    field_of,
    operations,
)

_NUMBER_TYPES: dict[str, Any] = {"trace": Trace, "id": RequestId}
_INSTRUCTIONS: dict[type[Message], str] = {CashOut: NO_ENTREGUE, Deposit: NO_RECIBA}


class BadRequest(Struct, frozen=True, gc=False):
    """An authentic frame that was refused; whatever it is owed is already in the output.

    Fields:
        field: the top-level field at fault; "payload" where the whole is not readable.
        code: "30" format error, "12" unknown operation.
        op: the operation where it is one of the vocabulary's, else "".
        trace, id: of the request, where they could be read; else None.
    """

    field: str
    code: str = "30"
    op: str = ""
    trace: int | None = None
    id: int | None = None


def refuse(
    vocabulary: Vocabulary, side: Side, encoding: Encoding, payload: bytes, error: Exception
) -> tuple[BadRequest, Message | None]:
    """Judge a payload that the decoder of `side` refused with `error`.

    Returns:
        The event for the caller and the message owed to the peer: an `answer` where the request's
        number is readable, an `error` where not, None where answering could start an endless
        exchange (a bad `error` frame; at the initiator everything but a request).
    """
    head: Head | None = _read(Head, encoding, payload)
    if head is None:
        bad = BadRequest(field="payload")
        return bad, Error(code="30", field=bad.field) if side == "acceptor" else None

    name = vocabulary.correlation
    number: int | None = _read(_NUMBER_TYPES[name], encoding, getattr(head, name))
    trace, id_ = (number, None) if name == "trace" else (None, number)
    op: str | None = _read(str, encoding, head.op)
    if op is None:
        bad = BadRequest(field="op", trace=trace, id=id_)
        return bad, _reply(vocabulary, bad, None, number) if side == "acceptor" else None

    message_class = operations(vocabulary, side).get(op)
    if message_class is None:
        bad = BadRequest(field="op", code="12", trace=trace, id=id_)
        return bad, _reply(vocabulary, bad, None, number) if side == "acceptor" else None

    bad = BadRequest(field=field_of(error), op=op, trace=trace, id=id_)
    if message_class in vocabulary.requests[side]:
        return bad, _reply(vocabulary, bad, message_class, number)
    if message_class in ANSWERS and side == "acceptor":
        # An `answer` to an answer would carry a number of the wrong direction.
        return bad, Error(code="30", field=bad.field)
    return bad, None


def _read(type_: Any, encoding: Encoding, data: Any) -> Any:
    """`data` decoded as one type, or None where it is missing or not of that type."""
    try:
        return decoder_of(type_, encoding)(data)
    except DECODE_ERRORS:
        return None


def _reply(
    vocabulary: Vocabulary,
    bad: BadRequest,
    message_class: type[Message] | None,
    number: int | None,
) -> Message:
    field = bad.field if bad.code == "30" else UNSET
    if number is None:
        return Error(code=bad.code, field=field)
    row = CODES[KEY_OF_CODE[bad.code]]
    if vocabulary.correlation == "id":
        return NetworkAnswer(id=number, code=row.code, key=row.key, field=field)
    instruction = None if message_class is None else _INSTRUCTIONS.get(message_class)
    return Answer(
        code=row.code,
        key=row.key,
        text=answer_text(row.key, field=bad.field if bad.code == "30" else None),
        trace=number,
        instruction=UNSET if instruction is None else instruction,
        field=field,
    )
