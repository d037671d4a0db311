"""Keyed digests of request bodies: the same request is known again without keeping its secrets."""

from msgspec import UNSET, msgpack

from core_ext._mac import siphash


def _absent(value: object) -> None:
    """An optional field that is UNSET counts as absent."""
    assert value is UNSET, "fingerprints are made of plain fields"


_encode = msgpack.Encoder(enc_hook=_absent).encode


class Fingerprint:
    """Callable: declared fields in, 64-bit keyed digest out.

    Keyed, because a token or document among the fields could be guessed from a plain digest. The
    native core makes the same ones (`core_ext._straight`, `core_ext._issuer`).

    Args:
        key: a secret, of which the first 16 bytes are used.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key[:16]

    def __call__(self, *fields: object) -> int:
        """Digest of a message, absent fields left out, or of some plain fields."""
        return siphash(self._key, _encode(fields))
