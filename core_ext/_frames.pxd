"""What other native modules may use of `_frames`."""

from libc.stdint cimport uint64_t

from core_ext._cursor cimport Cursor, Pen
from core_ext._mac cimport MacKey


cdef struct Buffer:
    unsigned char* data
    Py_ssize_t capacity
    Py_ssize_t start              # bytes before it are consumed
    Py_ssize_t stop               # bytes from it on are free


cdef class LengthPrefixed:
    cdef readonly Py_ssize_t frame_bytes_max
    cdef readonly Py_ssize_t frame_bytes_min
    cdef readonly str broken
    cdef int _kind
    cdef int _length_bytes
    cdef bint _little_endian
    cdef bint _counts_self
    cdef bint _counts_trailer
    cdef Py_ssize_t _header_bytes
    cdef bytes _before
    cdef bytes _after
    cdef bytes _trailer
    cdef Buffer _buffer
    cdef Py_ssize_t _searched     # bytes of the open frame known to hold no whole trailer

    cdef Py_ssize_t wire_length(self, Py_ssize_t n) noexcept
    cdef bytes length_field(self, object length)
    cdef bytes fail(self, str reason)
    cdef bint expect(self, Cursor* c, bytes wanted, str reason) except -1
    cdef bytes next_prefixed(self, Cursor* c)
    cdef bytes next_trailed(self, Cursor* c)


cdef class Channel:
    cdef readonly int direction
    cdef readonly int fault
    cdef readonly uint64_t sent
    cdef readonly uint64_t received
    cdef readonly Py_ssize_t buffer_bytes_max
    cdef Py_ssize_t _frame_bytes_max
    cdef MacKey _key
    cdef Buffer _buffer

    cdef int look(self, Cursor* c) noexcept
    cdef void stop(self, int fault) noexcept
    cdef bytes verified(self, Cursor* c, MacKey key)
    cdef Py_ssize_t checked(self, object payload) except -1
    cdef int write(self, Pen* w, MacKey key, bytes payload) except -1
    cdef bytes sealed(self, MacKey key, tuple payloads)
    cdef bint take_in(self, const unsigned char* p, Py_ssize_t n) except -1
    cdef bint peek(self, const unsigned char** payload, Py_ssize_t* n) except -1
    cdef void skip(self) noexcept
    cdef int write_payload(self, Pen* w, const unsigned char* p, Py_ssize_t n) except -1
