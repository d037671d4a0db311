"""The connecting side: terminals, and `red` towards `sicoop`."""

from core_ext._frames import session_key
from protocols.messages import Error
from protocols.session.connection import Connection
from protocols.session.keys import (
    NONCE_BYTES,
    VERSION,
    PeerKey,
    SignOn,
    SignOnAnswer,
    unauthenticated_key,
)
from protocols.session.vocabulary import (
    DECODE_ERRORS,
    Encoding,
    Vocabulary,
    decoder_of,
    encoding_of,
)

_MAC_BYTES = 8
_COUNTER_BYTES = 8
_FROM_ACCEPTOR = b"\x02"


class Initiator(Connection):
    """One connection that we opened. Send `sign_on()` first, then feed `receive`.

    Args:
        vocabulary: TERMINAL or NETWORK.
        peer: our own number, 8 digits for a terminal, 4 for a network.
        key: our secret key.
        nonce: 16 random bytes of ours, never used before.
        key_version: which of our keys, 1..255.
        encoding: of the sign-on and of all requests that do not say otherwise.
        frame_bytes_max: longest frame (payload and MAC), in bytes, 9..65535.

    Attributes:
        server_time: time of the peer at sign-on, ISO 8601; "" before.
        code: why the sign-on was refused (12, 30, 63), or "00" once signed on; "" before. A 63 is
            unproved, so it only explains to people why the connection ended.
    """

    __slots__ = ("_key", "_key_version", "_nonce", "_peer", "code", "server_time")

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        peer: str,
        key: PeerKey,
        nonce: bytes,
        key_version: int = 1,
        encoding: Encoding = "json",
        frame_bytes_max: int = 8192,
        heartbeat_s: int = 30,
    ) -> None:
        assert len(nonce) == NONCE_BYTES
        super().__init__(
            "initiator",
            vocabulary,
            encoding=encoding,
            frame_bytes_max=frame_bytes_max,
            heartbeat_s=heartbeat_s,
        )
        self._peer = peer
        self._key = key
        self._key_version = key_version
        self._nonce = nonce
        self.server_time = ""
        self.code = ""

    def sign_on(self) -> bytes:
        """The first frame of the connection. Call once."""
        assert self._channel.sent == 0, "sign_on is the first frame"
        message = SignOn(
            peer=self._peer, key=self._key_version, nonce=self._nonce.hex(), version=VERSION
        )
        return self._channel.seal_with(self._key.mac_key(), self._encode(message))

    def _sign_on(self) -> bool:
        frame = self._channel.first()
        if frame is None:
            if self._channel.fault:
                self._fail(self._channel.fault)
            return False
        payload = self._channel.accept_first(self._key.mac_key())
        if payload is None:
            self._explain(frame)
            return False
        answer = _read_answer(payload)
        if answer is None:
            self.closing = "no sign-on answer"
        elif isinstance(answer, Error):
            self.code = answer.code
            self.closing = f"sign-on refused with {answer.code[:2]}"
        elif answer.code != "00":
            self.code = answer.code
            self.closing = f"sign-on answered {answer.code[:2]}"
        elif answer.client_nonce.lower() != self._nonce.hex():
            # An answer recorded from another session: the other side has not proved itself.
            self.closing = "sign-on answer for another nonce"
        else:
            self._start(answer)
        return self.signed_on

    def _start(self, answer: SignOnAnswer) -> None:
        secret = session_key(self._key.key, self._nonce, bytes.fromhex(answer.nonce))
        self._channel.rekey(self._key.derived(secret))
        self.code = answer.code
        self.heartbeat_s = answer.heartbeat
        self.server_time = answer.time
        self.signed_on = True

    def _explain(self, frame: bytes) -> None:
        """Tell a refusal (63, which anybody can forge) from a broken answer, for people."""
        payload, mac = frame[:-_MAC_BYTES], frame[-_MAC_BYTES:]
        covered = _FROM_ACCEPTOR + bytes(_COUNTER_BYTES) + payload
        error = _read_answer(payload) if unauthenticated_key().verify(covered, mac) else None
        if isinstance(error, Error):
            self.code = error.code
            self.closing = f"sign-on refused with {error.code[:2]}: unknown peer, or wrong key"
        else:
            self.closing = "bad MAC on the sign-on answer"


def _read_answer(payload: bytes) -> SignOnAnswer | Error | None:
    try:
        answer: SignOnAnswer | Error = decoder_of(SignOnAnswer | Error, encoding_of(payload))(
            payload
        )
    except DECODE_ERRORS:
        return None
    return answer
