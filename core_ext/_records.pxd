from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core_ext._sink cimport Replica, Sink

cdef struct Entry:  # one record; its body is also its journal record
    Entry* newer
    Entry* older
    uint64_t order  # of the put, over all spaces
    uint32_t length  # of the body
    unsigned char body[0]  # space u8, open << 7 | key length u8, stamp u64, key, value

cdef struct Slot:  # the hash is kept here so that a probe rarely leaves the table
    uint64_t hash
    Entry* entry

cdef struct Chain:  # entries in the order of their last put
    Entry* oldest
    Entry* newest
    uint64_t count

cdef class Records(Replica):
    cdef Sink _sink
    cdef Slot* _table
    cdef uint64_t _mask  # slots - 1
    cdef uint64_t _count
    cdef uint64_t _order
    cdef uint64_t _version  # changes with every change, so iterators notice
    cdef uint64_t _digest
    cdef uint64_t _entry_bytes
    cdef uint64_t _key0
    cdef uint64_t _key1
    cdef Chain _closed[256]
    cdef Chain _opened[256]
    cdef readonly uint64_t bytes_max

    cdef Slot* _find(self, uint64_t hash, int space, const unsigned char* key, size_t n) noexcept
    cdef uint64_t _hash(self, int space, const unsigned char* key, size_t n) noexcept
    cdef int _reserve_slot(self) except -1
    cdef int _store(self, Entry* entry, uint64_t hash, Slot* place) noexcept
    cdef int _remove(self, Slot* place) noexcept
    cdef int _check_room(self, Entry* before, size_t n) except -1
    cdef uint64_t _bytes_used(self) noexcept
    cdef int _replay_put(self, const unsigned char* data, Py_ssize_t n) except -1
    cdef int _replay_delete(self, const unsigned char* data, Py_ssize_t n) except -1
    cdef int _replay_forget(self, const unsigned char* data, Py_ssize_t n) except -1
    cdef int _drop_oldest(self, int space, uint32_t count) noexcept
