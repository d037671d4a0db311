"""BLAKE2b (RFC 7693), unkeyed, of one block, to 16 bytes: ids of ledger accounts from their names.

`switch.flows.registry.account_id` makes the same with hashlib; names are far shorter than a block.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stdint.h>

    static const uint64_t tr_blake2_iv[8] = {
        0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
        0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL
    };
    static const uint8_t tr_blake2_sigma[10][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
        {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
        {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
        {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
        {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
        {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
        {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
        {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
        {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}
    };
    """
    const uint64_t BLAKE2_IV "tr_blake2_iv"[8]
    const uint8_t BLAKE2_SIGMA "tr_blake2_sigma"[10][16]

cdef enum:
    BLAKE2_BLOCK = 128


cdef inline uint64_t blake2_rotated(uint64_t x, int n) noexcept nogil:
    return x >> n | x << (64 - n)


cdef inline void blake2_mixed(
    uint64_t* v, int a, int b, int c, int d, uint64_t x, uint64_t y
) noexcept nogil:
    v[a] += v[b] + x
    v[d] = blake2_rotated(v[d] ^ v[a], 32)
    v[c] += v[d]
    v[b] = blake2_rotated(v[b] ^ v[c], 24)
    v[a] += v[b] + y
    v[d] = blake2_rotated(v[d] ^ v[a], 16)
    v[c] += v[d]
    v[b] = blake2_rotated(v[b] ^ v[c], 63)


cdef inline bint blake2b_128(
    const unsigned char* p, Py_ssize_t n, unsigned char* out
) noexcept nogil:
    """Sixteen bytes of a text of at most 128; False, and nothing, of a longer one."""
    cdef uint64_t h[8]
    cdef uint64_t v[16]
    cdef uint64_t m[16]
    cdef const uint8_t* s
    cdef int i
    if not 0 <= n <= BLAKE2_BLOCK:
        return False
    memset(m, 0, sizeof(m))
    memcpy(m, p, n)
    for i in range(8):
        h[i] = BLAKE2_IV[i]
    h[0] ^= 0x01010000 ^ 16  # no key, 16 bytes of digest
    for i in range(8):
        v[i] = h[i]
        v[i + 8] = BLAKE2_IV[i]
    v[12] ^= <uint64_t> n
    v[14] = ~v[14]  # the last block
    for i in range(12):
        s = BLAKE2_SIGMA[i % 10]
        blake2_mixed(v, 0, 4, 8, 12, m[s[0]], m[s[1]])
        blake2_mixed(v, 1, 5, 9, 13, m[s[2]], m[s[3]])
        blake2_mixed(v, 2, 6, 10, 14, m[s[4]], m[s[5]])
        blake2_mixed(v, 3, 7, 11, 15, m[s[6]], m[s[7]])
        blake2_mixed(v, 0, 5, 10, 15, m[s[8]], m[s[9]])
        blake2_mixed(v, 1, 6, 11, 12, m[s[10]], m[s[11]])
        blake2_mixed(v, 2, 7, 8, 13, m[s[12]], m[s[13]])
        blake2_mixed(v, 3, 4, 9, 14, m[s[14]], m[s[15]])
    for i in range(2):
        h[i] ^= v[i] ^ v[i + 8]
    memcpy(out, h, 16)
    return True
