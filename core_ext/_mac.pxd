"""What other native modules may use of `_mac`: a key, and the MAC of a session frame."""

from libc.stdint cimport uint64_t


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
