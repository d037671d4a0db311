"""An answer to a host's request between the one who decides it and the one who sends it."""

from collections.abc import Mapping

from msgspec import Struct

from protocols.codes import CODES, KEY_OF_CODE
from protocols.iso8583.connection import Received
from protocols.iso8583.dialect import Message


class HostReply(Struct, frozen=True, gc=False):
    """An answer to a request of the host's, on its way through the reply gate.

    Fields:
        received: the request.
        elements: of the answer, beside what it echoes.
        code: DE39 again, for the counters.
        until_ns: of the monotonic clock; after it nobody waits for this any more, and it is not
            sent. 0: it is always sent.
    """

    received: Received
    elements: Mapping[str, object]
    code: str = ""
    until_ns: int = 0


KEY_TAG = "48.13"
"""Our own tag of DE48 in answers: the key of the response-code table where a code has several,
such as CODIGO_VENCIDO for 55, so that a cashier reads the same with the roles apart."""


def with_key(elements: dict[str, object], code: str, key: str) -> dict[str, object]:
    """The elements of an answer, with the key where the code alone does not tell it."""
    if KEY_OF_CODE.get(code) == key or elements["39"] != code:
        return elements
    tags = elements.get("48")
    return elements | {"48": {**(tags if isinstance(tags, dict) else {}), "13": key}}


def key_told(message: Message, code: str) -> str:
    """The key that an answer tells for its code, "" where it tells none that we know."""
    key = str(message.get(KEY_TAG, ""))
    return key if key in CODES and CODES[key].code == code else ""


def reply(received: Received, elements: Mapping[str, object], until_ns: int = 0) -> HostReply:
    """The answer to a request, from its elements, DE39 among them."""
    return HostReply(received, elements, str(elements["39"]), until_ns)
