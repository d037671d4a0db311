"""The envelope of KCC 6.0: signed by its sender, encrypted for its receiver.

    sig  = RSASSA-PKCS1-v1_5, SHA-512, over the message, by the sender
    EK   = RSAES-OAEP, SHA-1, of a random AES-256 key, for the receiver
    CT   = AES-256-CBC, PKCS#7, of sig ‖ message
    wire = base64 of IV ‖ EK ‖ CT, 64 characters to a line

Old kits refuse lines of another length, so that is how it is written; read is any wrapping.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA1, SHA512
from cryptography.hazmat.primitives.padding import PKCS7

from protocols.webpay.mac import signature_bytes

WIRE_CHARACTERS_MAX: Final = 8192
KEY_BYTES: Final = 32
IV_BYTES: Final = 16
LINE_CHARACTERS: Final = 64

_BLOCK_BYTES: Final = 16
_OAEP: Final = OAEP(MGF1(SHA1()), SHA1(), None)
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


class SealError(ValueError):
    """The wire does not open, for whatever reason: none is told, to the peer least of all."""

    def __init__(self) -> None:
        super().__init__("the sealed message does not open")


class Opened(NamedTuple):
    """What was inside. `signature` is by the peer, over `message`, and holds."""

    message: bytes
    signature: bytes


def sign(message: bytes, own: RSAPrivateKey) -> bytes:
    """The signature of a message, as it stands in the envelope."""
    return own.sign(message, PKCS1v15(), SHA512())


def seal_wire(
    message: bytes, own: RSAPrivateKey, peer: RSAPublicKey, *, aes_key: bytes, iv: bytes
) -> bytes:
    """Sign and encrypt a message; one private operation.

    Args:
        aes_key, iv: 32 and 16 random bytes, never used before.
    """
    return envelope(message, sign(message, own), peer, aes_key=aes_key, iv=iv)


def envelope(
    message: bytes, signature: bytes, peer: RSAPublicKey, *, aes_key: bytes, iv: bytes
) -> bytes:
    """Encrypt a message that is signed already; `aes_key`, `iv` as of `seal_wire`."""
    if len(aes_key) != KEY_BYTES or len(iv) != IV_BYTES:
        raise ValueError("a key of 32 and a vector of 16 bytes are needed")
    raw = iv + peer.encrypt(aes_key, _OAEP) + ciphertext(message, signature, aes_key, iv)
    text = base64.b64encode(raw)
    lines = [text[at : at + LINE_CHARACTERS] for at in range(0, len(text), LINE_CHARACTERS)]
    return b"\n".join(lines) + b"\n"


def ciphertext(message: bytes, signature: bytes, aes_key: bytes, iv: bytes) -> bytes:
    """CT of an envelope: the part that no chance enters into."""
    padder = PKCS7(8 * _BLOCK_BYTES).padder()
    padded = padder.update(signature + message) + padder.finalize()
    encryptor = Cipher(AES(aes_key), CBC(iv)).encryptor()
    return encryptor.update(padded) + encryptor.finalize()


def open_wire(wire: bytes, own: RSAPrivateKey, peer: RSAPublicKey, *, spare_key: bytes) -> Opened:
    """Decrypt and verify; one private operation, whatever the wire is worth.

    Args:
        spare_key: 32 random bytes, used where there is no key in the wire, so that a wrong key
            takes as long as a wrong text.

    Raises:
        SealError: it is not by `peer` for `own`, or is damaged.
    """
    return open_with(wire, (own,), (peer,), spare_key=spare_key)[0]


def open_with(
    wire: bytes,
    owns: Sequence[RSAPrivateKey],
    peers: Sequence[RSAPublicKey],
    *,
    spare_key: bytes,
) -> tuple[Opened, int, int]:
    """The same while keys change: one private operation for each of ours, until one opens.

    Args:
        owns, peers: keys that may have been used, the likeliest first.

    Returns:
        What was inside, and the places of the keys that it was for and by.

    Raises:
        SealError: by none of `peers` for any of `owns`, or damaged.
    """
    if len(spare_key) != KEY_BYTES:
        raise ValueError("a spare key of 32 bytes is needed")
    raw = _raw(wire)
    for place, own in enumerate(owns):
        plain = _decrypted(raw, own, spare_key)
        for signer, peer in enumerate(peers):
            opened = _verified(plain, peer)
            if opened is not None:
                return opened, place, signer
    raise SealError


def _decrypted(raw: bytes, own: RSAPrivateKey, spare_key: bytes) -> bytes:
    """`sig` ‖ message; nothing, which no signature fits, where it is not for this key."""
    key_end = IV_BYTES + signature_bytes(own)
    iv, wrapped, text = raw[:IV_BYTES], raw[IV_BYTES:key_end], raw[key_end:]
    if not text or len(text) % _BLOCK_BYTES:
        return b""
    try:
        aes_key = own.decrypt(wrapped, _OAEP)
    except ValueError:
        aes_key = spare_key
    if len(aes_key) != KEY_BYTES:
        aes_key = spare_key
    decryptor = Cipher(AES(aes_key), CBC(iv)).decryptor()
    return _unpadded(decryptor.update(text) + decryptor.finalize())


def _verified(plain: bytes, peer: RSAPublicKey) -> Opened | None:
    signature, message = plain[: signature_bytes(peer)], plain[signature_bytes(peer) :]
    try:
        peer.verify(signature, message, PKCS1v15(), SHA512())
    except InvalidSignature:
        return None
    return Opened(message, signature) if message else None


def decoded(wire: bytes) -> bytes:
    """The bytes of a wire, by which a repeated one is known whatever its line ends.

    Raises:
        SealError: it is not base64, or too long.
    """
    return _raw(wire)


def _raw(wire: bytes) -> bytes:
    if len(wire) > WIRE_CHARACTERS_MAX:
        raise SealError
    text = wire.replace(b"\r", b"").replace(b"\n", b"")
    if not _BASE64.fullmatch(text):
        raise SealError
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise SealError from None
    if base64.b64encode(raw) != text:  # bits that decoding drops
        raise SealError
    return raw


def _unpadded(padded: bytes) -> bytes:
    """Without PKCS#7; wrong padding leaves nothing, which no signature fits."""
    unpadder = PKCS7(8 * _BLOCK_BYTES).unpadder()
    try:
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        return b""
