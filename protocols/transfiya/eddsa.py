"""Scheme `eddsa-ed25519`: RFC 8032 Ed25519, also with the short secrets some keys have.

A key that the network's JavaScript package made may have fewer than 32 bytes; they go into SHA-512
as they are. Padding one gives another key.
"""

from hashlib import sha512

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

try:
    from nacl import bindings as sodium
except ModuleNotFoundError as error:  # pragma: no cover - said plainly, for a partial install
    raise ModuleNotFoundError(
        "protocols.transfiya needs PyNaCl (group arithmetic): pip install 'troncal[transfiya]'"
    ) from error

SCHEME = "eddsa-ed25519"
SECRET_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


class KeyFault(ValueError):
    """A key cannot be used. `reason` is stable text; the key is never quoted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SigningKey:
    """A private key that signs. The secret is not to be had back from it."""

    __slots__ = ("_key", "_prefix", "_scalar", "public")

    def __init__(self, secret: bytes, *, allow_short: bool = False) -> None:
        """
        Args:
            secret: 32 bytes, or 1 to 31 of them with `allow_short`.

        Raises:
            KeyFault: `key-secret-length`.
        """
        self._key: Ed25519PrivateKey | None = None
        self._scalar = self._prefix = b""
        if len(secret) == SECRET_BYTES:
            self._key = Ed25519PrivateKey.from_private_bytes(secret)
            self.public = self._key.public_key().public_bytes_raw()
            return
        if not (allow_short and 0 < len(secret) < SECRET_BYTES):
            raise KeyFault("key-secret-length")
        expanded = bytearray(sha512(secret).digest())
        expanded[0] &= 0xF8
        expanded[31] = expanded[31] & 0x7F | 0x40
        self._scalar, self._prefix = bytes(expanded[:32]), bytes(expanded[32:])
        self.public = sodium.crypto_scalarmult_ed25519_base_noclamp(self._scalar)

    def __repr__(self) -> str:
        return f"<SigningKey {self.public.hex()}>"

    def sign(self, message: bytes) -> bytes:
        """Return R‖S, 64 bytes. The same message always has the same signature."""
        if self._key is not None:
            return self._key.sign(message)
        reduce = sodium.crypto_core_ed25519_scalar_reduce
        nonce = reduce(sha512(self._prefix + message).digest())
        point = sodium.crypto_scalarmult_ed25519_base_noclamp(nonce)
        challenge = reduce(sha512(point + self.public + message).digest())
        product = sodium.crypto_core_ed25519_scalar_mul(challenge, self._scalar)
        return point + sodium.crypto_core_ed25519_scalar_add(nonce, product)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """True when the signature is that key's over the message; S beyond the group order never is."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    if int.from_bytes(signature[32:], "little") >= GROUP_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
