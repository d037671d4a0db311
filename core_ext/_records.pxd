from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core_ext._sink cimport Replica, Sink
from core_ext._slabs cimport Heap
from core_ext._table cimport Index

cdef struct Entry:  # one record; its body is also its journal record
    uint32_t newer  # references into the heap, 0 = none
    uint32_t older
    uint64_t order  # of the put, over all spaces
    uint64_t digest
    uint32_t length  # of the body
    unsigned char body[0]  # space u8, open << 7 | key length u8, stamp u64, key, value

cdef struct Chain:  # entries in the order of their last put
    uint32_t oldest
    uint32_t newest
    uint64_t count

cdef class Records(Replica):
    cdef Sink _sink
    cdef Heap _heap
    cdef Index _index
    cdef uint64_t _order
    cdef uint64_t _version  # changes with every change, so iterators notice
    cdef uint64_t _digest
    cdef uint64_t _entry_bytes
    cdef uint64_t _key0
    cdef uint64_t _key1
    cdef Chain _closed[256]
    cdef Chain _opened[256]
    cdef readonly uint64_t bytes_max

    # For native code: `get` and `put` without objects. A value is good until the next change.
    cdef int lookup(
        self, unsigned char space, const unsigned char* key, Py_ssize_t nkey,
        const unsigned char** value, Py_ssize_t* nvalue
    ) noexcept nogil
    cdef int store(
        self, unsigned char space, const unsigned char* key, Py_ssize_t nkey,
        const unsigned char* value, Py_ssize_t nvalue, bint open, uint64_t stamp
    ) except -1

    cdef Entry* _at(self, uint32_t ref) noexcept nogil
    cdef uint64_t _tag(self, int space, const unsigned char* key, size_t n) noexcept nogil
    cdef uint64_t* _find(
        self, uint64_t tag, int space, const unsigned char* key, size_t n
    ) noexcept nogil
    cdef Chain* _chain_of(self, const Entry* entry) noexcept nogil
    cdef void _push(self, Entry* entry) noexcept nogil
    cdef void _unlink(self, const Entry* entry) noexcept nogil
    cdef Entry* _new(self, size_t n) except NULL
    cdef void _take_out(self, Entry* entry) noexcept nogil
    cdef void _remove(self, uint64_t slot) noexcept nogil
    cdef void _place(self, Entry* entry, uint64_t tag, uint64_t* slot) noexcept nogil
    cdef int _check_room(self, const uint64_t* slot, size_t n) except -1
    cdef uint64_t _bytes_used(self) noexcept nogil
    cdef Entry* _older(self, uint32_t a, uint32_t b) noexcept nogil
    cdef int _replay_put(self, const unsigned char* data, Py_ssize_t n) except -1
    cdef int _replay_delete(self, const unsigned char* data, Py_ssize_t n) except -1
    cdef int _replay_forget(self, const unsigned char* data, Py_ssize_t n) except -1
    cdef void _drop_oldest(self, int space, uint32_t count) noexcept nogil
