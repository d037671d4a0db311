"""Message authentication and one-time codes, by the names that are kept stable.

    key = MacKey("hmac-sha256", secret)
    tag = key.mac(message)[:8]                # key.verify(message, tag), in constant time
    code = totp(seed, now_s)                  # also hotp, ocra

Keys are `bytes`; once in a `MacKey` they lie in locked memory and cannot be read back. `SeedVault`
keeps seeds sealed under a key-encryption key and compares codes in constant time, all candidates
of a window alike. Times are seconds since 1970. Source: RFC 2104, RFC 4493, ISO/IEC 9797-1, RFC
4226, RFC 6238, RFC 6287.
"""

from core_ext._mac import MacKey, SeedVault, equal, hotp, ocra, totp

__all__ = ["MacKey", "SeedVault", "equal", "hotp", "ocra", "totp"]
