"""Scheme `ecdsa-ed25519`: ECDSA over the twisted Edwards curve of Ed25519. Verified, never made.

Old keys of the network use it. A public key is X big-endian with the parity of Y (02, 03), or X and
Y (04): not the encoding of Ed25519, which is Y with the parity of X. Group arithmetic is
libsodium's.
"""

from nacl import bindings as sodium

from protocols.transfiya.eddsa import GROUP_ORDER

SCHEME = "ecdsa-ed25519"
SIGNATURE_BYTES_MAX = 72
COMPRESSED_BYTES = 33
UNCOMPRESSED_BYTES = 65

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_MINUS_ONE = pow(2, (_P - 1) // 4, _P)


def _root(u: int, v: int) -> int | None:
    """A square root of u/v modulo p, or None (RFC 8032, 5.1.3)."""
    root = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    check = v * root * root % _P
    if check == u % _P:
        return root
    if check == -u % _P:
        return root * _SQRT_MINUS_ONE % _P
    return None


def _point(public: bytes) -> bytes | None:
    """The point of a public key in Ed25519's encoding; None where it is no key."""
    x = int.from_bytes(public[1:33], "big")
    if x == 0 or x >= _P:
        return None
    if len(public) == COMPRESSED_BYTES and public[0] in (2, 3):
        root = _root(1 + x * x, 1 - _D * x * x)
        if root is None:
            return None
        y = root if root & 1 == public[0] & 1 else _P - root
    elif len(public) == UNCOMPRESSED_BYTES and public[0] == 4:
        y = int.from_bytes(public[33:], "big")
        if y >= _P or (y * y - x * x - 1 - _D * x * x * y * y) % _P:
            return None
    else:
        return None
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _abscissa(point: bytes) -> int | None:
    """X of a point in Ed25519's encoding."""
    number = int.from_bytes(point, "little")
    y = number & (1 << 255) - 1
    x = _root(y * y - 1, _D * y * y + 1)
    if x is None:
        return None
    return x if x & 1 == number >> 255 else -x % _P


def _integer(der: bytes, at: int) -> tuple[int, int] | None:
    """A positive integer in DER at `at`, and where it ends; None unless in its shortest form."""
    if len(der) < at + 3 or der[at] != 0x02:
        return None
    size = der[at + 1]
    body = der[at + 2 : at + 2 + size]
    if not 1 <= size <= 33 or len(body) != size or body[0] & 0x80:
        return None
    if size > 1 and body[0] == 0 and not body[1] & 0x80:
        return None
    return int.from_bytes(body, "big"), at + 2 + size


def _pair(der: bytes) -> tuple[int, int] | None:
    """r and s of SEQUENCE(r, s), strictly parsed and in 1..n-1."""
    if not 8 <= len(der) <= SIGNATURE_BYTES_MAX or der[0] != 0x30 or der[1] != len(der) - 2:
        return None
    first = _integer(der, 2)
    second = _integer(der, first[1]) if first else None
    if first is None or second is None or second[1] != len(der):
        return None
    r, s = first[0], second[0]
    return (r, s) if 0 < r < GROUP_ORDER and 0 < s < GROUP_ORDER else None


def _scaled(scalar: int, point: bytes | None) -> bytes | None:
    """scalar·point, the base point for None; None for the neutral element."""
    if scalar == 0:
        return None
    data = scalar.to_bytes(32, "little")
    if point is None:
        return sodium.crypto_scalarmult_ed25519_base_noclamp(data)
    return sodium.crypto_scalarmult_ed25519_noclamp(data, point)


def _accepts(key: bytes, z: int, r: int, inverse: int) -> bool:
    base = _scaled(z * inverse % GROUP_ORDER, None)
    own = _scaled(r * inverse % GROUP_ORDER, key)
    if own is None:
        return False
    total = own if base is None else sodium.crypto_core_ed25519_add(base, own)
    x = _abscissa(total)
    return x is not None and x % GROUP_ORDER == r


def verify(public: bytes, digest: bytes, signature: bytes) -> bool:
    """True when the DER signature is that key's over the 32 bytes of the digest.

    z is the digest without its last three bits. Where the digest begins with a zero byte, z may
    also be the whole digest: the signer's library did not shift then, before its version 6.6.0.
    """
    pair, key = _pair(signature), _point(public)
    if pair is None or key is None or len(digest) != 32:
        return False
    r, s = pair
    inverse = pow(s, -1, GROUP_ORDER)
    whole = int.from_bytes(digest, "big")
    shifted = whole >> 3
    if shifted >= GROUP_ORDER:
        shifted -= GROUP_ORDER
    candidates = [shifted, whole] if digest[0] == 0 else [shifted]
    try:
        return any(_accepts(key, z, r, inverse) for z in candidates)
    except (RuntimeError, ValueError):  # libsodium: outside of the main subgroup
        return False
