"""Keyed digests of request bodies: the same request is known again without keeping its secrets."""

from hashlib import blake2b

from msgspec import UNSET, msgpack


def _absent(value: object) -> None:
    """An optional field that is UNSET counts as absent."""
    assert value is UNSET, "fingerprints are made of plain fields"


_encode = msgpack.Encoder(enc_hook=_absent).encode


class Fingerprint:
    """Callable: declared fields in, 64-bit keyed digest out.

    Keyed, because a token or document among the fields could be guessed from a plain digest.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, *fields: object) -> int:
        """Digest of a message, absent fields left out, or of some plain fields."""
        return int.from_bytes(blake2b(_encode(fields), digest_size=8, key=self._key).digest())
