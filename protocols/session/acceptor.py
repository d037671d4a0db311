"""The accepting side: `red` towards terminals, `sicoop` towards networks."""

from collections.abc import Callable

from core_ext._frames import session_key
from protocols.messages import Error
from protocols.session.connection import Connection
from protocols.session.keys import (
    NOBODY,
    NONCE_BYTES,
    SIGN_ON_BYTES_MAX,
    VERSION,
    PeerKey,
    SignOn,
    SignOnAnswer,
    SignOnOutline,
)
from protocols.session.vocabulary import (
    DECODE_ERRORS,
    Encoding,
    SignOnHead,
    Vocabulary,
    begins_map,
    decoder_of,
    encoder,
    encoding_of,
    field_of,
)

_MAC_BYTES = 8

Authenticate = Callable[[str, int], PeerKey | None]


class Acceptor(Connection):
    """One accepted connection.

    Args:
        vocabulary: TERMINAL or NETWORK.
        authenticate: (peer, key version) → its key; None for an unknown peer, a disabled one, a
            key version it has not, or a sign-on that is locked out. Called once.
        nonce: 16 random bytes of ours, never used before.
        now_iso: the time for the answer to a sign-on, UTC, ISO 8601 with milliseconds and `Z`.
        frame_bytes_max: longest frame (payload and MAC), in bytes, 9..65535.
        heartbeat_s: told to the peer; see `silence`.

    Attributes:
        peer: number of the peer, proved by its MAC; "" before.
        key_version: the version of the key it signed on with.
        claimed_peer: what an unproved sign-on said, for counting failures; "" if unreadable.
        refused: the sign-on was answered with the unauthenticated error.
    """

    __slots__ = (
        "_authenticate",
        "_nonce",
        "_now_iso",
        "claimed_peer",
        "key_version",
        "peer",
        "refused",
    )

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        authenticate: Authenticate,
        nonce: bytes,
        now_iso: Callable[[], str],
        frame_bytes_max: int = 8192,
        heartbeat_s: int = 30,
    ) -> None:
        assert len(nonce) == NONCE_BYTES
        super().__init__(
            "acceptor",
            vocabulary,
            encoding="json",
            frame_bytes_max=frame_bytes_max,
            heartbeat_s=heartbeat_s,
        )
        # Of the sign-on only; forgotten after it.
        self._authenticate: Authenticate | None = authenticate
        self._nonce = nonce
        self._now_iso: Callable[[], str] | None = now_iso
        self.peer = ""
        self.key_version = 0
        self.claimed_peer = ""
        self.refused = False

    def _sign_on(self) -> bool:
        frame = self._channel.first()
        if frame is None:
            if self._channel.fault:
                self._fail(self._channel.fault)
            return False
        if begins_map(frame):
            self._set_encoding(encoding_of(frame))
        head = None
        if len(frame) <= SIGN_ON_BYTES_MAX + _MAC_BYTES:
            head = _read_head(frame[:-_MAC_BYTES], encoding_of(frame))
        self.claimed_peer = head.peer[:8] if head is not None else ""
        assert self._authenticate is not None, "a connection signs on once"
        known = None if head is None else self._authenticate(head.peer, head.key)
        peer_key = known or NOBODY
        mac_key = peer_key.mac_key()
        payload = self._channel.accept_first(mac_key)
        # The key of NOBODY is no secret, so a good MAC under it counts for nothing.
        if payload is None or known is None or head is None:
            self.refused = True
            self._refuse_peer("sign-on refused")
            return False
        answer = self._judge(payload, head)
        if isinstance(answer, Error):
            self.closing = f"sign-on refused with {answer.code}"
            self._out += self._channel.seal_with(mac_key, encoder(self.encoding)(answer))
            return False
        client_nonce = bytes.fromhex(answer.client_nonce)
        self._out += self._channel.seal_with(mac_key, encoder(self.encoding)(answer))
        secret = session_key(known.key, client_nonce, self._nonce)
        self._channel.rekey(known.derived(secret))
        self.peer, self.key_version = head.peer, head.key
        self.signed_on = True
        self._authenticate, self._now_iso, self._nonce = None, None, b""
        return True

    def _judge(self, payload: bytes, head: SignOnHead) -> SignOnAnswer | Error:
        """The answer to a first frame whose MAC is good."""
        try:
            outline: SignOnOutline = decoder_of(SignOnOutline, self.encoding)(payload)
        except DECODE_ERRORS as error:
            return Error(code="30", field=field_of(error))
        if outline.op != "sign_on" or outline.version not in (0, VERSION):
            return Error(code="12")
        try:
            sign_on: SignOn = decoder_of(SignOn, self.encoding)(payload)
        except DECODE_ERRORS as error:
            return Error(code="30", field=field_of(error))
        if sign_on.version != VERSION:
            return Error(code="12")
        assert (sign_on.peer, sign_on.key) == (head.peer, head.key), "read the same twice"
        assert self._now_iso is not None
        return SignOnAnswer(
            code="00",
            nonce=self._nonce.hex(),
            client_nonce=sign_on.nonce,
            heartbeat=self.heartbeat_s,
            time=self._now_iso(),
        )


def _read_head(payload: bytes, encoding: Encoding) -> SignOnHead | None:
    try:
        head: SignOnHead = decoder_of(SignOnHead, encoding)(payload)
    except DECODE_ERRORS:
        return None
    return head
