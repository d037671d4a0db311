"""Messages of KCC 5.1, to be read in archives and nowhere else.

Both directions use the merchant's own pair, 1024 bits with exponent 3, so whoever has its public
key can forge a result. No listener and no flow imports this module.
"""

import base64
import binascii
import re
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from protocols.webpay.mac import payment_mac
from protocols.webpay.pairs import Pairs, PairsError, parse_pairs
from protocols.webpay.seal import WIRE_CHARACTERS_MAX, SealError

Direction = Literal["merchant_to_webpay", "webpay_to_merchant"]

_WIRE: Final = re.compile(rb"[A-Za-z0-9.-]*_{0,2}")
_TO_STANDARD: Final = bytes.maketrans(b"-._", b"+/=")


def open_archived(wire: bytes, key: RSAPrivateKey | RSAPublicKey, direction: Direction) -> bytes:
    """Decode a message.

    Args:
        key: the merchant's; the private one where Webpay wrote.

    Raises:
        SealError: it does not open.
        TypeError: the direction needs the private key.
    """
    raw = _raw(wire)
    size = (key.key_size + 7) // 8
    if not raw or len(raw) % size:
        raise SealError
    blocks = [raw[at : at + size] for at in range(0, len(raw), size)]
    if direction == "merchant_to_webpay":
        public = key.public_key() if isinstance(key, RSAPrivateKey) else key
        return b"".join(_recovered(block, public) for block in blocks)
    if not isinstance(key, RSAPrivateKey):
        raise TypeError("what Webpay wrote opens with the private key only")
    return b"".join(_decrypted(block, key) for block in blocks)


def verify(message: bytes, merchant: str) -> bool:
    """Tell whether the checksum of an opened message is right, which proves nothing."""
    try:
        pairs: Pairs = parse_pairs(message)
    except PairsError:
        return False
    return dict(pairs).get("TBK_MAC") == payment_mac(pairs, merchant)


def _recovered(block: bytes, key: RSAPublicKey) -> bytes:
    """PKCS#1 type 1: what a private operation made."""
    numbers = key.public_numbers()
    value = pow(int.from_bytes(block, "big"), numbers.e, numbers.n)
    padded = value.to_bytes(len(block), "big")
    head, end, content = padded[2:].partition(b"\0")
    if padded[:2] != b"\x00\x01" or not end or len(head) < 8 or head.strip(b"\xff"):
        raise SealError
    return content


def _decrypted(block: bytes, key: RSAPrivateKey) -> bytes:
    """PKCS#1 type 2; a wrong one gives noise or an error, by the library's choice."""
    try:
        return key.decrypt(block, PKCS1v15())
    except ValueError:
        raise SealError from None


def _raw(wire: bytes) -> bytes:
    text = wire.replace(b"\r", b"").replace(b"\n", b"")
    if len(wire) > WIRE_CHARACTERS_MAX or not _WIRE.fullmatch(text):
        raise SealError
    try:
        return base64.b64decode(text.translate(_TO_STANDARD), validate=True)
    except binascii.Error:
        raise SealError from None
