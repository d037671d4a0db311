from libc.stdint cimport uint32_t, uint64_t

from core_ext._sink cimport Sink

cdef struct Slot:  # one group buffer of the ring
    unsigned char* data
    size_t capacity  # bytes allocated, a multiple of 4096
    size_t used  # header and records
    uint64_t first_seq
    uint64_t count
    uint64_t address  # where the group goes, see Core.placed

cdef struct Core  # what the native threads share; opaque outside _journal.pyx

cdef class Journal(Sink):
    cdef Core* _core
    cdef Slot* _open
    cdef size_t _used  # of the open group, header included
    cdef size_t _limit  # _used may grow to this without a further check
    cdef uint64_t _count  # records in the open group
    cdef uint64_t _next_seq
    cdef uint64_t _handed_seq
    cdef bint _started
    cdef bint _running
    cdef readonly str directory
    cdef readonly uint64_t segment_bytes
    cdef readonly uint64_t group_bytes_max
    cdef readonly uint64_t reserve_bytes
    cdef readonly uint32_t partition
    cdef readonly uint64_t epoch
    cdef readonly bint direct

    cdef int put(self, int kind, const void* data, Py_ssize_t n) except -1
    cdef int _make_room(self, size_t need) except -1
    cdef size_t _largest_group(self) noexcept
    cdef int _open_slot(self) except -1
    cdef uint64_t _place(self, size_t used) noexcept
    cdef int _write_header(self, Slot* slot, uint64_t time_ns) noexcept
    cdef int _start(self, object after) except -1
    cdef int _set_place(self, object end) except -1
    cdef int _spawn(self) except -1
    cdef int _await_first_room(self) except -1
    cdef int _await_slot(self) noexcept
    cdef int _stop(self, bint drop) noexcept
    cdef int _close_files(self) noexcept

cdef class Reader:
    cdef readonly str directory
    cdef readonly str torn
    cdef int _fd
    cdef bint _gently
    cdef bint _busy
    cdef uint64_t _segment
    cdef uint64_t _offset  # of the next group in the segment
    cdef uint64_t _seq  # of the last record taken
    cdef unsigned char _chain[32]
    cdef bint _chain_known
    cdef bint _partition_known
    cdef uint32_t _partition
    cdef uint64_t _epoch
    cdef unsigned char* _buffer
    cdef size_t _capacity
    cdef size_t _held  # bytes in _buffer
    cdef uint64_t _held_at  # file offset of _buffer[0]
    cdef const unsigned char* _group  # the group found, inside _buffer
    cdef size_t _group_used
    cdef const char* _reason  # why the last place examined holds no good group

    cdef Py_ssize_t _load(self, uint64_t offset, size_t need, bint fresh) except -1
    cdef int _open_segment(self, uint64_t segment) except -1
    cdef int _examine(self, uint64_t offset, bint fresh) except -1
    cdef str _mismatch(self)
    cdef int _step(self) except -1
    cdef int _step_to_next_segment(self, str reason) except -1
    cdef int _seek_seq(self, uint64_t after_seq, bytes chain) except -1
    cdef int _take(self) except -1
    cdef object _find_beyond(self)
