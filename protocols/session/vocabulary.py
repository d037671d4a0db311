"""The two vocabularies of the session protocol: who may say what to whom, and how it is decoded.

Decoders are built once for each (vocabulary, receiving side, encoding), at the first connection
that needs them, and shared by all: a msgspec decoder keeps no state between messages.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Any, Final, Literal, get_args

import msgspec

from protocols.messages import (
    Answer,
    CashOut,
    Deposit,
    Echo,
    EchoAnswer,
    Error,
    HolderAnswer,
    Message,
    NetworkAnswer,
    NetworkRequest,
    Notice,
    Status,
    StatusAnswer,
    TerminalRequest,
)

Encoding = Literal["json", "msgpack"]
Side = Literal["initiator", "acceptor"]

JSON_FIRST_BYTE: Final = 0x7B
"""A payload that begins with `{` is JSON; anything else is tried as one MessagePack map."""

# What a decoder may raise on a peer's bytes: msgspec's errors and bad UTF-8 are ValueErrors, deep
# nesting is a RecursionError, odd MessagePack keys are TypeErrors, long integers OverflowErrors.
DECODE_ERRORS: Final = (
    msgspec.MsgspecError,
    ValueError,
    RecursionError,
    TypeError,
    OverflowError,
)


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The messages of one hop.

    Attributes:
        name: "terminal" or "network".
        correlation: the field that ties an answer to its request.
        requests: per receiving side, what must be answered by it.
        others: per receiving side, what else it may receive.
    """

    name: str
    correlation: Literal["trace", "id"]
    requests: dict[Side, tuple[type[Message], ...]]
    others: dict[Side, tuple[type[Message], ...]]

    def received_by(self, side: Side) -> tuple[type[Message], ...]:
        """All message classes that `side` may receive after sign-on."""
        return self.requests[side] + self.others[side]


TERMINAL: Final = Vocabulary(
    name="terminal",
    correlation="trace",
    requests={"acceptor": (*get_args(TerminalRequest), Echo), "initiator": (Echo,)},
    others={
        "acceptor": (EchoAnswer, Error),
        "initiator": (Answer, HolderAnswer, Notice, EchoAnswer, Error),
    },
)
"""A terminal connects to `red`."""

NETWORK: Final = Vocabulary(
    name="network",
    correlation="id",
    requests={"acceptor": (*get_args(NetworkRequest), Echo), "initiator": (Status, Echo)},
    others={
        "acceptor": (StatusAnswer, EchoAnswer, Error),
        "initiator": (NetworkAnswer, HolderAnswer, StatusAnswer, EchoAnswer, Error),
    },
)
"""`red` connects to `sicoop`; both may ask for a status."""

ANSWERS: Final = frozenset((Answer, NetworkAnswer, HolderAnswer, StatusAnswer, EchoAnswer))
"""Messages that follow the encoding of the request they answer."""

REPLIES: Final = ANSWERS | {Error}
"""What a request may be owed: an error, too, where it has no number to be answered under."""

CASH_KINDS: Final = (CashOut, Deposit)


class Head(msgspec.Struct, gc=False):
    """What is still worth reading of a payload that is no good message, each not yet decoded."""

    op: msgspec.Raw = msgspec.Raw()
    trace: msgspec.Raw = msgspec.Raw()
    id: msgspec.Raw = msgspec.Raw()


class SignOnHead(msgspec.Struct, gc=False):
    """All that is read of a sign-on before its MAC is verified: whose key to verify it with."""

    peer: str
    key: int = 1


@cache
def decoder(vocabulary: Vocabulary, side: Side, encoding: Encoding) -> Callable[[bytes], Message]:
    """The decode function for what `side` receives. Raises what DECODE_ERRORS lists."""
    union = reduce(or_, vocabulary.received_by(side))
    return decoder_of(union, encoding)


@cache
def decoder_of(type_: Any, encoding: Encoding) -> Callable[[bytes], Any]:
    """The decode function of one msgspec type."""
    if encoding == "json":
        return msgspec.json.Decoder(type_).decode
    return msgspec.msgpack.Decoder(type_).decode


@cache
def encoder(encoding: Encoding) -> Callable[[Any], bytes]:
    """The encode function: message to payload. One encoder serves all connections."""
    if encoding == "json":
        return msgspec.json.Encoder().encode
    return msgspec.msgpack.Encoder().encode


@cache
def operations(vocabulary: Vocabulary, side: Side) -> dict[str, type[Message]]:
    """Message classes that `side` may receive, by the value of `op`."""
    return {str(message.__struct_config__.tag): message for message in vocabulary.received_by(side)}


def encoding_of(payload: bytes) -> Encoding:
    """The encoding a payload claims by its first byte."""
    return "json" if payload[:1] == b"{" else "msgpack"


def begins_map(payload: bytes) -> bool:
    """Whether the first byte is one that a payload may have at all."""
    first = payload[:1]
    return first == b"{" or b"\x80" <= first <= b"\x8f" or first in (b"\xde", b"\xdf")


# msgspec puts the path at the end, behind the offending value where it quotes one: the anchor at
# the end keeps a peer from forging a path inside a value.
_PATH = re.compile(r" - at (?:`key` in )?`\$(?:\.([A-Za-z_][A-Za-z0-9_]*))?[^`]*`\Z")
_MISSING = re.compile(r"\AObject missing required field `([A-Za-z_][A-Za-z0-9_]*)`\Z")


def field_of(error: Exception) -> str:
    """The top-level field a decoding error is about; "payload" where it is none of them.

    Never contains a byte of the peer's: the names come from the message classes.
    """
    if not isinstance(error, msgspec.ValidationError):
        return "payload"
    text = str(error)
    found = _PATH.search(text) or _MISSING.match(text)
    return (found.group(1) if found else None) or "payload"
