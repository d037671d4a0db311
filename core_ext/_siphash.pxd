"""SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed 64-bit digest of short texts.

A pseudo-random function under a secret key, so a digest tells nothing of a code or a document that
went into it. 64 bits: for telling two bodies under one name apart, not for naming things.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy


cdef struct SipKey:
    uint64_t k0
    uint64_t k1


cdef inline SipKey sip_key(const unsigned char* key) noexcept nogil:
    """From 16 bytes."""
    cdef SipKey k
    memcpy(&k.k0, key, 8)
    memcpy(&k.k1, key + 8, 8)
    return k


cdef inline uint64_t sip_rotated(uint64_t x, int n) noexcept nogil:
    return x << n | x >> (64 - n)


cdef inline void sip_round_of(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = sip_rotated(v[1], 13) ^ v[0]
    v[3] = sip_rotated(v[3], 16) ^ v[2]
    v[0] = sip_rotated(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = sip_rotated(v[1], 17) ^ v[2]
    v[3] = sip_rotated(v[3], 21) ^ v[0]
    v[2] = sip_rotated(v[2], 32)


cdef inline uint64_t siphash24(SipKey k, const unsigned char* p, size_t n) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t word, last = <uint64_t> n << 56
    cdef size_t i
    v[0] = k.k0 ^ <uint64_t> 0x736F6D6570736575
    v[1] = k.k1 ^ <uint64_t> 0x646F72616E646F6D
    v[2] = k.k0 ^ <uint64_t> 0x6C7967656E657261
    v[3] = k.k1 ^ <uint64_t> 0x7465646279746573
    for i in range(n // 8):
        memcpy(&word, p + 8 * i, 8)
        v[3] ^= word
        sip_round_of(v)
        sip_round_of(v)
        v[0] ^= word
    word = 0
    memcpy(&word, p + n // 8 * 8, n % 8)
    last |= word
    v[3] ^= last
    sip_round_of(v)
    sip_round_of(v)
    v[0] ^= last
    v[2] ^= 0xFF
    for i in range(4):
        sip_round_of(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
