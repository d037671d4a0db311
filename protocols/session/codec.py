"""The session as a `Codec`, for whoever embeds one side of it behind the common interface."""

from collections.abc import Callable
from typing import Any, Self

from protocols.codec import ProtocolError
from protocols.messages import Message
from protocols.session.acceptor import Acceptor, Authenticate
from protocols.session.initiator import Initiator
from protocols.session.keys import PeerKey
from protocols.session.vocabulary import Encoding, Vocabulary


class SessionCodec:
    """One connection of the framed session protocol, either side.

    `feed` returns what `Acceptor.receive` and `Initiator.receive` return; what the session itself
    owes the peer comes out of `output`, to be sent after every `feed`, also after one that raised.

    Args:
        session: the side to drive; see `accept` and `connect`.
    """

    name = "session"

    def __init__(self, session: Acceptor | Initiator) -> None:
        self.session = session

    @classmethod
    def accept(
        cls,
        vocabulary: Vocabulary,
        authenticate: Authenticate,
        nonce: bytes,
        now_iso: Callable[[], str],
    ) -> Self:
        """The accepting side, with default limits."""
        return cls(
            Acceptor(vocabulary=vocabulary, authenticate=authenticate, nonce=nonce, now_iso=now_iso)
        )

    @classmethod
    def connect(
        cls,
        vocabulary: Vocabulary,
        peer: str,
        key: PeerKey,
        nonce: bytes,
        encoding: Encoding = "json",
    ) -> Self:
        """The connecting side, with default limits; send `session.sign_on()` first."""
        return cls(
            Initiator(vocabulary=vocabulary, peer=peer, key=key, nonce=nonce, encoding=encoding)
        )

    def feed(self, data: bytes, /) -> list[Any]:
        """Take bytes; return the messages now complete.

        Raises:
            ProtocolError: always fatal: the session has ended, and no message came with this call.
        """
        messages = self.session.receive(data)
        if self.session.closing is not None and not messages:
            raise ProtocolError(self.session.closing, fatal=True)
        return messages

    def encode(self, message: Message, /) -> bytes:
        """One frame, behind whatever the session owed."""
        return self.session.encode([message])

    def output(self) -> bytes:
        """Bytes that the session owes by itself."""
        return self.session.output()
