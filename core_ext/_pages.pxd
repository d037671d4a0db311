"""Address space for tables that grow and never move."""

# NULL where there is none left. All zero; memory is taken page by page as it is touched, in huge
# pages from PAGES_SMALL on.
cdef void* pages_reserve(size_t bytes) noexcept nogil
# Small pages only in that part of it.
cdef void pages_plain(void* p, size_t bytes) noexcept nogil
cdef void pages_release(void* p, size_t bytes) noexcept nogil
# Have a part of such space backed with memory soon, by another thread. Changes no byte.
cdef void pages_ahead(void* p, size_t bytes) noexcept nogil

cdef enum:
    PAGE_HUGE = 2 << 20
    PAGES_SMALL = 4 << 20
    PART_MAX = 16 << 20


cdef inline size_t pages_part(size_t ready) noexcept nogil:
    """How much to ask for at once, and how far ahead, where so many bytes are ready: a quarter.

    Each time the helper has to be woken, which may cost 50 us on a virtual machine.
    """
    cdef size_t part = ready // 4 & ~<size_t> (PAGE_HUGE - 1)
    if part < PAGE_HUGE:
        return PAGE_HUGE
    return part if part < PART_MAX else PART_MAX
