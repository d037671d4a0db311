"""The two things called TBK_MAC: the signature of a result, and the checksum of a payment.

The first is RSASSA-PKCS1-v1_5 with SHA-512 in lower-case hex: 1024 digits with a key of 4096 bits,
256 with one of 1024. The second is an MD5 that anybody can make: it finds mistakes, and proves
nothing; what proves is the seal.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA512

from protocols.webpay.pairs import signed_bytes

_HEX: Final = re.compile(r"[0-9A-Fa-f]*", re.ASCII)


def sign_mac(pairs: Iterable[tuple[str, str]], key: RSAPrivateKey) -> str:
    """Sign a result; lower-case hex. As slow as its key is long: 4 ms with 4096 bits."""
    return key.sign(signed_bytes(pairs), PKCS1v15(), SHA512()).hex()


def verify_mac(pairs: Iterable[tuple[str, str]], mac: str, key: RSAPublicKey) -> bool:
    """Tell whether `mac` is the signature of these pairs, in either case of its digits.

    Never raises: what is no signature at all is a wrong one.
    """
    if len(mac) != 2 * signature_bytes(key) or not _HEX.fullmatch(mac):
        return False
    try:
        key.verify(bytes.fromhex(mac), signed_bytes(pairs), PKCS1v15(), SHA512())
    except (InvalidSignature, UnicodeEncodeError):
        return False
    return True


def signature_bytes(key: RSAPrivateKey | RSAPublicKey) -> int:
    """How long a signature by a key is."""
    return (key.key_size + 7) // 8


def payment_mac(pairs: Iterable[tuple[str, str]], merchant: str) -> str:
    """The checksum of a payment message: MD5 of its pairs joined by `&`, the code, `webpay`."""
    text = "&".join(f"{name}={value}" for name, value in pairs if name != "TBK_MAC")
    data = f"{text}{merchant}webpay".encode("latin-1")
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
