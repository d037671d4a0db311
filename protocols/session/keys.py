"""Keys of the session protocol: a peer's key, the key of nobody, and the sign-on messages."""

from functools import cache
from typing import Annotated, Final

from msgspec import Meta, Struct

from core_ext._mac import MacKey
from protocols.messages import Message

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16
VERSION: Final = 1
SIGN_ON_BYTES_MAX: Final = 512
"""Longest payload of a sign-on; a longer first frame is refused unread."""

ALGORITHMS: Final = ("hmac-sha256", "aes-cmac")


class PeerKey:
    """A peer's secret key `K` and the MAC algorithm that stands in its record.

    Args:
        key: 32 bytes; of these `aes-cmac` uses the first 16.
        algorithm: "hmac-sha256" or "aes-cmac".
    """

    __slots__ = ("algorithm", "key")

    def __init__(self, key: bytes, algorithm: str = "hmac-sha256") -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a peer's key has {KEY_BYTES} bytes")
        if algorithm not in ALGORITHMS:
            raise ValueError(f"unknown MAC algorithm {algorithm!r}")
        self.key = key
        self.algorithm = algorithm

    def __repr__(self) -> str:
        return f"PeerKey(***, {self.algorithm!r})"

    def mac_key(self) -> MacKey:
        """The key under which a sign-on and its answer are MACed."""
        return self.derived(self.key)

    def derived(self, key: bytes) -> MacKey:
        """`key` (a session key, or K itself) under this peer's algorithm."""
        return MacKey(self.algorithm, key[:16] if self.algorithm == "aes-cmac" else key)


NOBODY: Final = PeerKey(bytes.fromhex("6b" * KEY_BYTES))
"""Stands in for the key of an unknown peer, so that refusing one takes the same path and time.

It is no secret: a frame that verifies under it is refused all the same.
"""


@cache
def unauthenticated_key() -> MacKey:
    """32 zero bytes: MACs the error frames of a peer whose key is not known or not proved."""
    return MacKey("hmac-sha256", bytes(KEY_BYTES))


NonceHex = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{32}\Z")]
KeyVersion = Annotated[int, Meta(ge=1, le=255)]


class SignOn(Message, frozen=True, tag="sign_on", kw_only=True, omit_defaults=False):
    """First frame of the side that connected, MACed with K."""

    peer: Annotated[str, Meta(pattern=r"^(?:[0-9]{4}|[0-9]{8})\Z")]
    key: KeyVersion = 1
    nonce: NonceHex
    version: int


class SignOnAnswer(Message, frozen=True, tag="sign_on_answer"):
    """First frame of the side that accepted, MACed with K. `heartbeat` in seconds."""

    code: str
    nonce: NonceHex
    client_nonce: str
    heartbeat: Annotated[int, Meta(ge=1, le=86_400)]
    time: str


class SignOnOutline(Struct, gc=False):
    """What a verified first frame must say before its other fields matter (any version)."""

    op: str = ""
    version: int = 0
