"""One connection of the session protocol after its sign-on, the same for both sides.

    length   2  unsigned, big-endian: bytes that follow, 9..frame_bytes_max
    payload  n  one JSON object (first byte 0x7B) or one MessagePack map
    MAC      8  HMAC-SHA-256 or AES-CMAC over direction, counter and payload, truncated

Framing, counters and MAC are native (`core_ext._frames.Channel`) and come first: no payload is
decoded before its MAC is good. Here is what a good payload means to the session itself.
"""

from typing import Any

from core_ext._frames import Channel
from protocols.messages import Echo, EchoAnswer, Error, Message
from protocols.session.keys import unauthenticated_key
from protocols.session.refusals import refuse
from protocols.session.vocabulary import (
    DECODE_ERRORS,
    JSON_FIRST_BYTE,
    REPLIES,
    Encoding,
    Side,
    Vocabulary,
    begins_map,
    decoder,
    encoder,
    encoding_of,
)

FAULT_TOO_LONG = 1
FAULT_TOO_SHORT = 2
FAULT_MAC = 3

BAD_MAC = "bad MAC"
"""Why a session ends in which a frame was not its peer's."""

_FAULTS = {
    FAULT_TOO_LONG: "frame too long",
    FAULT_TOO_SHORT: "frame length below 9",
    FAULT_MAC: BAD_MAC,
}
_TAKE_MAX = 64
_READ_BYTES_MAX = 65_536  # the channel takes as much as long as no whole frame waits in it
_DEVIATIONS_MAX = 256  # four times the usual max_in_flight; beyond it the oldest is forgotten
_INTERNAL = frozenset((Echo, EchoAnswer, Error))


class Connection:
    """Base of Acceptor and Initiator. Not thread-safe; owned by the task that owns the socket.

    The peer's mistakes never raise: what can be answered is answered, and what ends the connection
    sets `closing`. Whoever drives this sends `output()` after every `receive`, and closes the
    socket after that when `closing` is set.

    Attributes:
        closing: why the connection must be closed, or None. For logs; quotes nothing of the peer.
        signed_on: both sides have the session key.
        confirmed: a good frame under the session key has come, so the peer is no replay.
        encoding: of the sign-on; used for all that is not an answer.
        heartbeat_s: seconds of silence after which an echo is due.
        bad_frames: authentic frames that were refused (codes 30 and 12).
        errors_received: `error` frames of the peer.
    """

    __slots__ = (
        "_channel",
        "_decode_json",
        "_decode_msgpack",
        "_deviating",
        "_echo_sent",
        "_encode",
        "_is_json",
        "_last_id",
        "_out",
        "_side",
        "_vocabulary",
        "bad_frames",
        "closing",
        "confirmed",
        "encoding",
        "errors_received",
        "heartbeat_s",
        "signed_on",
    )

    def __init__(
        self,
        side: Side,
        vocabulary: Vocabulary,
        *,
        encoding: Encoding,
        frame_bytes_max: int,
        heartbeat_s: int,
    ) -> None:
        self._side: Side = side
        self._vocabulary = vocabulary
        self._channel = Channel(1 if side == "initiator" else 2, frame_bytes_max)
        self._decode_json = decoder(vocabulary, side, "json")
        self._decode_msgpack = decoder(vocabulary, side, "msgpack")
        self._out = b""
        # Requests whose encoding is not the session's, by their number; nearly always none.
        self._deviating: dict[int | None, list[Encoding]] | None = None
        self._echo_sent = False
        self._last_id = 0
        self.closing: str | None = None
        self.signed_on = False
        self.confirmed = False
        self.heartbeat_s = heartbeat_s
        self.bad_frames = 0
        self.errors_received = 0
        self._set_encoding(encoding)

    def receive(self, data: bytes = b"", limit: int | None = None) -> list[Any]:
        """Take bytes from the network; return the messages now complete, in order of arrival.

        Args:
            data: what one read brought, in whatever pieces; at most 65,536 bytes with a `limit`.
            limit: at most so many messages; the rest stays until the next call (see `more`). With
                `max_in_flight` minus what is in flight here, and no reading while `more`, a
                pipelining peer is held back by its own socket.

        Returns:
            Messages of the vocabulary, and a BadRequest for every refused frame (already answered
            by `output()`). Echoes and errors are handled inside.
        """
        room = self._channel.room
        if len(data) <= room:
            return self._receive(data, limit)
        assert limit is None, "read no more while `more`"
        messages = self._receive(data[:room], None)
        for start in range(room, len(data), _READ_BYTES_MAX):
            messages += self._receive(data[start : start + _READ_BYTES_MAX], None)
        return messages

    def _receive(self, data: bytes, limit: int | None) -> list[Any]:
        if self.closing is not None:
            return []
        channel = self._channel
        if data:
            self._echo_sent = False
            channel.push(data)
        if not self.signed_on and not self._sign_on():
            return []
        messages: list[Any] = []
        owed: list[bytes] = []
        while limit is None or len(messages) < limit:
            count = _TAKE_MAX if limit is None else min(_TAKE_MAX, limit - len(messages))
            payloads = channel.take(count)
            if not payloads:
                break
            self.confirmed = True
            self._decode(payloads, messages, owed)
            if self.closing is not None:
                break
        if owed:
            self._out += channel.seal(owed)
        if channel.fault and self.closing is None:
            self._fail(channel.fault)
        return messages

    def encode(self, messages: list[Message], encoding: Encoding | None = None) -> bytes:
        """Frames for `messages`, in one buffer, behind whatever `output()` still owed.

        Each answer goes out in the encoding of its request, all else in that of the sign-on. Frames
        are counted as they are made: buffers must be sent in the order in which they were made.

        Args:
            encoding: force one, for a client that mixes encodings.

        Returns:
            Nothing but what `output()` owed once `closing` is set: the peer would not take it.

        Raises:
            ValueError: a message makes a frame longer than `frame_bytes_max`: our fault.
        """
        assert self.signed_on or self.closing is not None, "no message before sign-on"
        if self.closing is not None:
            return self.output()
        if encoding is not None:
            payloads = list(map(encoder(encoding), messages))
        elif self._deviating:
            payloads = [self._encode_deviating(message) for message in messages]
        else:
            payloads = list(map(self._encode, messages))
        frames = self._channel.seal(payloads)
        return self.output() + frames if self._out else frames

    def output(self) -> bytes:
        """Bytes that the session itself owes the peer (sign-on, echo answers, errors); once."""
        out, self._out = self._out, b""
        return out

    @property
    def more(self) -> bool:
        """Whole frames (or a fault) wait behind the last `limit`: call `receive()` again."""
        return self.closing is None and self._channel.more

    @property
    def channel(self) -> Channel:
        """Frames, counters and MACs, for who reads and answers natively beside this object."""
        return self._channel

    def new_id(self) -> int:
        """The next number for a request of ours; unique per connection and direction."""
        self._last_id += 1
        return self._last_id

    def silence(self, silent_s: float) -> bytes:
        """What to send after `silent_s` seconds without a byte from the peer.

        One echo after `heartbeat_s`; after twice that the connection is dead and `closing` is set.
        """
        if self.closing is not None or not self.signed_on:
            return b""
        if silent_s >= 2 * self.heartbeat_s:
            self.closing = "silent for two heartbeats"
        elif silent_s >= self.heartbeat_s and not self._echo_sent:
            self._echo_sent = True
            return self.encode([Echo()])
        elif silent_s < self.heartbeat_s:
            self._echo_sent = False  # it was heard of, if not by us
        return b""

    def _sign_on(self) -> bool:
        """Handle the first frame if it is there; True once signed on."""
        raise NotImplementedError

    def _decode(self, payloads: list[bytes], messages: list[Any], owed: list[bytes]) -> None:
        decode_json, decode_msgpack, own = self._decode_json, self._decode_msgpack, self._is_json
        for payload in payloads:
            is_json = payload[0] == JSON_FIRST_BYTE
            try:
                message = decode_json(payload) if is_json else decode_msgpack(payload)
            except DECODE_ERRORS as error:
                self._refuse(payload, error, messages, owed)
                continue
            if type(message) in _INTERNAL:
                self._internal(message, is_json, messages, owed)
                if self.closing is not None:
                    return
                continue
            if is_json is not own or self._deviating:
                self._remember(message, "json" if is_json else "msgpack")
            messages.append(message)

    def _internal(
        self, message: Message, is_json: bool, messages: list[Any], owed: list[bytes]
    ) -> None:
        if isinstance(message, Echo):
            answer = EchoAnswer(trace=message.trace, id=message.id)
            owed.append(encoder("json" if is_json else "msgpack")(answer))
        elif isinstance(message, Error):
            self.errors_received += 1
            if message.code == "63":
                self.closing = "the peer refused this session (63)"
            elif self._side == "initiator":
                messages.append(message)

    def _refuse(
        self, payload: bytes, error: Exception, messages: list[Any], owed: list[bytes]
    ) -> None:
        encoding = encoding_of(payload)
        bad, reply = refuse(self._vocabulary, self._side, encoding, payload, error)
        self.bad_frames += 1
        messages.append(bad)
        if reply is not None:
            # What is in neither encoding is answered in that of the sign-on.
            make = encoder(encoding) if begins_map(payload) else self._encode
            owed.append(make(reply))

    def _remember(self, message: Message, encoding: Encoding) -> None:
        """Note the encoding of a request that differs, or that shares its number with one."""
        if type(message) not in self._vocabulary.requests[self._side]:
            return
        number = _number(message, self._vocabulary)
        deviating = self._deviating or {}
        noted = deviating.get(number)
        if noted is not None:
            noted.append(encoding)
            del noted[:-_DEVIATIONS_MAX]
        elif encoding != self.encoding:
            if len(deviating) >= _DEVIATIONS_MAX:
                del deviating[next(iter(deviating))]
            deviating[number] = [encoding]
            self._deviating = deviating

    def _encode_deviating(self, message: Message) -> bytes:
        if type(message) in REPLIES and self._deviating:
            number = _number(message, self._vocabulary)
            noted = self._deviating.get(number)
            if noted is not None:
                encoding = noted.pop(0)
                if not noted:
                    del self._deviating[number]
                return encoder(encoding)(message)
        return self._encode(message)

    def _set_encoding(self, encoding: Encoding) -> None:
        self.encoding: Encoding = encoding
        self._is_json = encoding == "json"
        self._encode = encoder(encoding)

    def _fail(self, fault: int) -> None:
        """End the connection over a broken frame, after the error frame that is due."""
        if fault == FAULT_MAC:
            self._refuse_peer(_FAULTS[fault])
            return
        self.closing = _FAULTS[fault]
        payload = self._encode(Error(code="30", field="length"))
        if self.signed_on:
            self._out += self._channel.seal([payload])
        elif self._side == "acceptor":
            self._out += self._channel.seal_with(unauthenticated_key(), payload)

    def _refuse_peer(self, reason: str) -> None:
        """The one answer to an unknown peer, a disabled one and a bad MAC, whatever the reason."""
        self.closing = reason
        if self._side == "acceptor":
            payload = self._encode(Error(code="63"))
            self._out += self._channel.seal_with(unauthenticated_key(), payload)


def _number(message: Message, vocabulary: Vocabulary) -> int | None:
    number = getattr(message, vocabulary.correlation, None)
    return number if isinstance(number, int) else None
