from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from core_ext._siphash cimport SipKey


cdef struct Request:  # in flight, or remembered
    int64_t sent_ns
    int64_t at_ns  # in flight: the deadline; remembered: when it ended
    uint64_t order  # of the add
    uint64_t hash
    uint32_t newer  # remembered: the next to be forgotten after it; free: the next free one
    uint32_t older
    uint32_t place  # in flight: index into the heap
    uint32_t stan
    uint32_t group
    uint8_t fate
    uint8_t key_bytes  # of the matched parts
    uint8_t body_bytes  # of all parts
    unsigned char body[101]  # parts in order: length u8, bytes

cdef class Pending:
    cdef readonly tuple names
    cdef readonly uint32_t in_flight_max
    cdef readonly uint32_t remembered_max
    cdef int _matched  # leading parts that make the key
    cdef int _parts
    cdef Request* _requests
    cdef list _tokens  # by request
    cdef uint32_t _capacity
    cdef uint32_t _fresh  # requests never used begin here
    cdef uint32_t _free  # list of returned ones, by `newer`
    cdef uint32_t* _index  # hash table: key -> request
    cdef uint32_t _index_mask
    cdef uint32_t _count
    cdef uint32_t* _heap  # requests in flight, the earliest deadline first
    cdef uint32_t _in_flight
    cdef uint32_t _oldest  # remembered: list from here, by `newer`
    cdef uint32_t _newest
    cdef uint32_t _remembered
    cdef uint64_t _order
    cdef SipKey _key
    cdef uint64_t* _busy  # one bit a STAN
    cdef uint32_t* _used_s  # by STAN: the second in which it was last given out
    cdef uint32_t _last_stan
    cdef uint32_t _stans_busy

    cdef int _pack(self, Request* to, tuple parts) except -1
    cdef uint32_t* _place_of(self, Request* key) noexcept
    cdef void _erase(self, uint32_t* place) noexcept
    cdef int _grow(self) except -1
    cdef bint _before(self, uint32_t a, uint32_t b) noexcept
    cdef void _rise(self, uint32_t at) noexcept
    cdef void _sink_down(self, uint32_t at) noexcept
    cdef void _leave_heap(self, Request* request) noexcept
    cdef void _release_stan(self, Request* request) noexcept
    cdef void _forget(self, uint32_t request) noexcept
    cdef object _end(self, uint32_t request, uint8_t fate, int64_t now_ns)
    cdef bint _agrees(self, Request* sent, Request* heard) noexcept
    cdef tuple _shown(self, Request* request)
