from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef struct Timer:
    uint64_t id
    int64_t deadline_ns
    uint32_t next
    uint32_t previous
    uint32_t slot  # level * 64 + place

cdef class Wheel:
    cdef readonly int64_t tick_ns
    cdef readonly uint32_t timers_max
    cdef int64_t _tick  # where the wheel stands
    cdef Timer* _timers
    cdef uint32_t _capacity
    cdef uint32_t _fresh  # timers never used begin here
    cdef uint32_t _free  # list of returned timers, by `next`
    cdef uint32_t _count
    cdef uint32_t* _index  # hash table id -> timer
    cdef uint32_t _index_mask
    cdef uint64_t _occupied[11]  # one bit a slot, by level
    cdef uint32_t _slots[704]
    cdef int64_t _earliest[704]  # no timer in the slot is due before

    cdef int set(self, uint64_t id, int64_t deadline_ns) except -1
    cdef bint unset(self, uint64_t id) noexcept
    cdef uint32_t* _place_of(self, uint64_t id) noexcept
    cdef int _grow(self) except -1
    cdef void _erase(self, uint32_t* place) noexcept
    cdef void _link(self, uint32_t timer) noexcept
    cdef void _unlink(self, uint32_t timer) noexcept
    cdef uint32_t _take_slot(self, uint32_t slot) noexcept
    cdef int _expire_slot(self, uint32_t slot, int64_t now_ns, list due) except -1
    cdef int _first_slot(self) noexcept
