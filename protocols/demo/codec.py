"""Codec of the demo protocol.

    length  2  unsigned, big-endian: bytes that follow, 2..64
    mti     2  0x0100 request, 0x0110 reply

    request (0x0100)               reply (0x0110)
    stan          4  unsigned      stan  4  unsigned
    card          8  unsigned      code  1  ASCII digit
    amount_minor  8  unsigned
    currency      2  unsigned
    terminal      8  ASCII

All integers are big-endian.
"""

import struct
from collections import deque

from core_ext._frames import LengthPrefixed
from protocols.codec import ProtocolError
from protocols.demo.messages import (
    AuthorizationReply,
    AuthorizationRequest,
    Message,
    ResponseCode,
)

FRAME_BYTES_MIN = 2
FRAME_BYTES_MAX = 64
STAN_MAX = 999_999
AMOUNT_MAX = 999_999_999_999
CURRENCY_MAX = 999
TERMINAL_BYTES = 8

_MTI_REQUEST = 0x0100
_MTI_REPLY = 0x0110
_REQUEST = struct.Struct(">HIQQH8s")
_REPLY = struct.Struct(">HIc")
_CODES = {code.value.encode(): code for code in ResponseCode}


class DemoCodec:
    """One instance per connection; keeps the half-received frame and what one `feed` brought."""

    name = "demo"

    def __init__(self) -> None:
        self._framer = LengthPrefixed(FRAME_BYTES_MAX, FRAME_BYTES_MIN)
        self._waiting: deque[Message | ProtocolError] = deque()

    def feed(self, data: bytes, /) -> list[Message]:
        """Take bytes in whatever pieces the network made; return the messages now complete.

        Raises:
            ProtocolError: the next frame broke the format. Not fatal: that frame is skipped. Fatal:
                the stream has lost step, and every further call raises it again.
        """
        waiting = self._waiting
        if data:
            waiting.extend(map(_decode, self._framer.feed(data)))
        broken = self._framer.broken
        if broken is not None and not _is_fatal(waiting):
            waiting.append(ProtocolError(broken, fatal=True))
        messages: list[Message] = []
        while waiting:
            first = waiting[0]
            if isinstance(first, ProtocolError):
                if messages:
                    break  # what came before the bad frame goes first
                if not first.fatal:
                    waiting.popleft()
                raise first
            messages.append(first)
            waiting.popleft()
        return messages

    def encode(self, message: Message, /) -> bytes:
        """Return one whole frame, header included.

        Raises:
            ValueError: a field is out of its range: our fault, so nothing goes out.
        """
        if isinstance(message, AuthorizationRequest):
            terminal = message.terminal.encode("ascii")
            reason = _request_fault(message.stan, message.amount_minor, message.currency, terminal)
            if reason is not None or not 0 <= message.card < 2**64:
                raise ValueError(reason or "card out of range")
            body = _REQUEST.pack(
                _MTI_REQUEST,
                message.stan,
                message.card,
                message.amount_minor,
                message.currency,
                terminal,
            )
        else:
            if not 1 <= message.stan <= STAN_MAX:
                raise ValueError("stan out of range")
            body = _REPLY.pack(_MTI_REPLY, message.stan, message.code.value.encode())
        return self._framer.wrap(body)


def _is_fatal(waiting: deque[Message | ProtocolError]) -> bool:
    last = waiting[-1] if waiting else None
    return isinstance(last, ProtocolError) and last.fatal


def _decode(body: bytes) -> Message | ProtocolError:
    """One message, or what is wrong with the frame. The reason never quotes the frame."""
    mti = int.from_bytes(body[:2], "big")
    if mti == _MTI_REQUEST:
        return _decode_request(body)
    if mti == _MTI_REPLY:
        return _decode_reply(body)
    return ProtocolError("unknown MTI", fatal=False)


def _decode_request(body: bytes) -> Message | ProtocolError:
    if len(body) != _REQUEST.size:
        return ProtocolError("request of the wrong length", fatal=False)
    _, stan, card, amount_minor, currency, terminal = _REQUEST.unpack(body)
    reason = _request_fault(stan, amount_minor, currency, terminal)
    if reason is not None:
        return ProtocolError(reason, fatal=False)
    return AuthorizationRequest(stan, card, amount_minor, currency, terminal.decode("ascii"))


def _decode_reply(body: bytes) -> Message | ProtocolError:
    if len(body) != _REPLY.size:
        return ProtocolError("reply of the wrong length", fatal=False)
    _, stan, digit = _REPLY.unpack(body)
    code = _CODES.get(digit)
    if not 1 <= stan <= STAN_MAX:
        return ProtocolError("stan out of range", fatal=False)
    if code is None:
        return ProtocolError("unknown response code", fatal=False)
    return AuthorizationReply(stan, code)


def _request_fault(stan: int, amount_minor: int, currency: int, terminal: bytes) -> str | None:
    """The first field out of its range, checked alike before writing and after reading."""
    if not 1 <= stan <= STAN_MAX:
        return "stan out of range"
    if not 1 <= amount_minor <= AMOUNT_MAX:
        return "amount_minor out of range"
    if not 1 <= currency <= CURRENCY_MAX:
        return "currency out of range"
    if len(terminal) != TERMINAL_BYTES or not all(0x20 <= byte <= 0x7E for byte in terminal):
        return "terminal is not eight printable characters"
    return None
