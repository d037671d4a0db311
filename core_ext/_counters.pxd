from libc.stdint cimport int64_t, uint64_t

cdef class Counters:
    cdef readonly tuple names
    cdef uint64_t* _values
    cdef Py_ssize_t _n
    cdef int bump(self, Py_ssize_t index, uint64_t n) except -1

cdef class Histogram:
    cdef uint64_t* _buckets
    cdef readonly uint64_t count
    cdef readonly uint64_t sum
    cdef uint64_t _max
    cdef void put(self, int64_t value_ns) noexcept nogil
