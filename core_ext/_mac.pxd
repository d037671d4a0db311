"""What other native modules may use of `_mac`: keys, MACs of session frames, codes of seeds."""

from libc.stdint cimport int64_t, uint64_t


cdef class MacKey:
    cdef readonly str algorithm
    cdef readonly int mac_bytes       # length of the full tag
    cdef int _kind
    cdef int _key_bytes
    cdef unsigned char* _secret       # in locked memory: states, schedules, subkeys
    cdef void* _cipher                # EVP_CIPHER_CTX, AES-CMAC only

    cdef bytes tags(self, tuple messages)
    cdef int compute(
        self, void* cipher, const unsigned char* prefix, Py_ssize_t prefix_bytes,
        const unsigned char* p, Py_ssize_t n, unsigned char* out,
    ) except -1 nogil
    cdef int mac8(
        self, unsigned char direction, uint64_t counter,
        const unsigned char* p, Py_ssize_t n, unsigned char* out8,
    ) except -1 nogil
    cdef bint verify8(
        self, unsigned char direction, uint64_t counter,
        const unsigned char* p, Py_ssize_t n, const unsigned char* mac8,
    ) except -1 nogil


cdef struct Sealed:               # a seed as `SeedVault.seal` made it, and what it is tied to
    const unsigned char* p
    Py_ssize_t n
    const unsigned char* aad
    Py_ssize_t aad_bytes


cdef struct TotpRule:             # how codes are made, and how many steps they may be off
    int hash                      # 0 SHA-1, 1 SHA-256, 2 SHA-512
    int digits
    int64_t step_s
    int back
    int forward


cdef class SeedVault:
    cdef unsigned char* _kek      # in locked memory
    cdef void* _context           # EVP_CIPHER_CTX that has the key; used under the GIL only
    cdef bytes _dummy

    cdef Sealed _sealed(self, bytes sealed, bytes aad) except *
    cdef Py_ssize_t open_text(
        self, const unsigned char* sealed, Py_ssize_t n, const unsigned char* aad,
        Py_ssize_t aad_bytes, unsigned char* out,
    ) except -1
    cdef int window(
        self, const TotpRule* rule, uint64_t code, int64_t now_s, const Sealed* seeds,
        Py_ssize_t n, Py_ssize_t tried, int64_t* found,
    ) except -2
