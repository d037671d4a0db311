"""Cells of many sizes, in address space that never moves: what `malloc` is, without its pauses.

A slab is 64 KiB of cells of one size (1 MiB for cells above 8 KiB). Sizes go by 16 bytes up to
2 KiB, then sixteen to a doubling, so a cell is hardly larger than what it was asked for. Taking and
giving back touch one cell and its slab's entry, and never look for anything: no merging, no
trimming, no walk over what is free. An empty slab serves any other size next.

More than the cells' own bytes is in use by up to one slab for each size that occurs, and where many
slabs stay partly filled because the sizes asked for drift.

Cells are named by 32-bit references, their place in units of 16 bytes; 0 = none.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from core_ext._pages cimport (
    PAGES_SMALL, pages_ahead, pages_part, pages_plain, pages_release, pages_reserve,
)

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define sl_hide(p, n) __asan_poison_memory_region((p), (n))
    #define sl_show(p, n) __asan_unpoison_memory_region((p), (n))
    #else
    #define sl_hide(p, n) ((void)0)
    #define sl_show(p, n) ((void)0)
    #endif
    #define sl_log2(x) (63 - __builtin_clzll(x))
    #define sl_unlikely(x) __builtin_expect(!!(x), 0)
    """
    void sl_hide(void* p, size_t n) nogil  # only what is in use may be touched, checkers say
    void sl_show(void* p, size_t n) nogil
    uint64_t sl_log2(uint64_t x) nogil
    bint sl_unlikely(bint x) nogil

cdef enum:
    CELL_MAX = 69632  # bytes of the largest size
    CELL_FINE = 2048  # sizes go by 16 bytes up to here
    CELL_SMALL = 8192  # larger ones lie in large slabs
    SIZES = 210
    SLAB_SMALL = 16  # log2 of the bytes of a slab
    SLAB_LARGE = 20
    REGION = 35  # log2 of the bytes of each of the two regions: 32 GiB
    SLABS_SMALL = 1 << (REGION - SLAB_SMALL)
    SLABS_LARGE = 1 << (REGION - SLAB_LARGE)

cdef struct Slab:
    uint32_t free  # the cell last given back
    uint32_t bump  # bytes taken from its begin, ever
    uint32_t live
    uint32_t cells
    uint32_t next  # slabs of this size with a free cell; or empty slabs
    uint32_t prev
    uint32_t size  # bytes of a cell
    uint32_t sort

cdef struct Region:  # slabs of one length; numbers go on from those of the region before
    uint32_t first  # number of its first slab
    uint32_t top  # first number never used
    uint32_t end
    uint32_t empty  # slabs to be used again
    uint64_t shift

cdef struct Heap:
    char* base
    Slab* slabs
    Region small
    Region large
    size_t ready  # bytes of the small slabs that are in memory or asked for
    uint32_t partial[SIZES]  # a slab of that size with a free cell


cdef inline uint32_t sort_of(size_t n) noexcept nogil:
    """Number of the smallest size that n bytes fit in; 1 <= n <= CELL_MAX."""
    cdef uint64_t power
    if n <= CELL_FINE:
        return <uint32_t> ((n + 15) >> 4)
    power = sl_log2(n - 1)
    return <uint32_t> (113 + ((power - 11) << 4) + ((n - 1) >> (power - 4)))


cdef inline size_t sort_bytes(uint32_t sort) noexcept nogil:
    cdef uint64_t power
    if sort <= CELL_FINE >> 4:
        return <size_t> sort << 4
    power = 11 + ((sort - 129) >> 4)
    return (<size_t> 1 << power) + (((<size_t> sort - 129) & 15) + 1 << (power - 4))


cdef inline size_t cell_bytes(size_t n) noexcept nogil:
    """Bytes of the cell that n bytes are given."""
    return sort_bytes(sort_of(n))


cdef inline void region_open(Region* r, uint32_t first, uint32_t count, uint64_t shift) noexcept:
    r.first = r.top = first
    r.end = first + count
    r.empty = 0
    r.shift = shift


cdef inline int heap_open(Heap* h) except -1:
    cdef size_t slabs = (SLABS_SMALL + SLABS_LARGE) * sizeof(Slab)
    h.base = <char*> pages_reserve(<size_t> 2 << REGION)
    h.slabs = <Slab*> pages_reserve(slabs)
    if h.base == NULL or h.slabs == NULL:
        heap_close(h)
        raise MemoryError("no address space for cells")
    region_open(&h.small, 0, SLABS_SMALL, SLAB_SMALL)
    region_open(&h.large, SLABS_SMALL, SLABS_LARGE, SLAB_LARGE)
    h.small.top = 1  # reference 0 is none
    h.ready = PAGES_SMALL
    # A huge page comes with a pause where the helper is late, and most of a cell is read in a row.
    pages_plain(h.base, <size_t> 2 << REGION)
    return 0


cdef inline void heap_close(Heap* h) noexcept:
    if h.base != NULL:
        sl_show(h.base, <size_t> h.small.top << SLAB_SMALL)
        sl_show(
            h.base + (<size_t> 1 << REGION),
            <size_t> (h.large.top - h.large.first) << SLAB_LARGE,
        )
        pages_release(h.base, <size_t> 2 << REGION)
    if h.slabs != NULL:
        pages_release(h.slabs, (SLABS_SMALL + SLABS_LARGE) * sizeof(Slab))


cdef inline void* cell_at(const Heap* h, uint32_t ref) noexcept nogil:
    return h.base + (<size_t> ref << 4)


cdef inline uint32_t cell_ref(const Heap* h, const void* cell) noexcept nogil:
    return <uint32_t> (<size_t> (<char*> cell - h.base) >> 4)


cdef inline char* slab_begin(const Heap* h, uint32_t number) noexcept nogil:
    if number < SLABS_SMALL:
        return h.base + (<size_t> number << SLAB_SMALL)
    return h.base + (<size_t> 1 << REGION) + (<size_t> (number - SLABS_SMALL) << SLAB_LARGE)


cdef inline uint32_t slab_of(const Heap* h, const void* cell) noexcept nogil:
    cdef size_t at = <char*> cell - h.base
    if at >> REGION:
        return <uint32_t> (SLABS_SMALL + ((at - (<size_t> 1 << REGION)) >> SLAB_LARGE))
    return <uint32_t> (at >> SLAB_SMALL)


cdef inline void slab_list(Heap* h, uint32_t number, uint32_t* first) noexcept nogil:
    cdef Slab* slab = &h.slabs[number]
    slab.prev = 0
    slab.next = first[0]
    if slab.next:
        h.slabs[slab.next].prev = number
    first[0] = number


cdef inline void slab_unlist(Heap* h, uint32_t number, uint32_t* first) noexcept nogil:
    cdef Slab* slab = &h.slabs[number]
    if slab.prev:
        h.slabs[slab.prev].next = slab.next
    else:
        first[0] = slab.next
    if slab.next:
        h.slabs[slab.next].prev = slab.prev


cdef inline uint32_t slab_new(Heap* h, uint32_t sort) noexcept nogil:
    """Return a slab of that size in the list of those with free cells; 0: no address space."""
    cdef size_t size = sort_bytes(sort)
    cdef Region* r = &h.small if size <= CELL_SMALL else &h.large
    cdef uint32_t number = r.empty
    cdef size_t part
    cdef Slab* slab
    if number:
        slab_unlist(h, number, &r.empty)
    elif r.top == r.end:
        return 0
    else:
        number = r.top
        r.top += 1
        if number < SLABS_SMALL:
            part = pages_part(h.ready)
            if (<size_t> r.top << SLAB_SMALL) + part > h.ready:
                pages_ahead(h.base + h.ready, part)
                h.ready += part
    slab = &h.slabs[number]
    slab.free = slab.bump = slab.live = 0
    slab.sort = sort
    slab.size = <uint32_t> size
    slab.cells = <uint32_t> ((<size_t> 1 << r.shift) // size)
    sl_hide(slab_begin(h, number), <size_t> 1 << r.shift)
    slab_list(h, number, &h.partial[sort])
    return number


cdef inline void* heap_take(Heap* h, size_t n) noexcept nogil:
    """Return a cell for n bytes, with anything in it; NULL: no address space."""
    cdef uint32_t sort = sort_of(n)
    cdef uint32_t number = h.partial[sort]
    cdef Slab* slab
    cdef void* cell
    if sl_unlikely(number == 0):
        number = slab_new(h, sort)
        if number == 0:
            return NULL
    slab = &h.slabs[number]
    if slab.free:
        cell = cell_at(h, slab.free)
        sl_show(cell, n)
        memcpy(&slab.free, cell, 4)
    else:
        cell = slab_begin(h, number) + slab.bump
        slab.bump += slab.size
        sl_show(cell, n)
    slab.live += 1
    if slab.live == slab.cells:
        slab_unlist(h, number, &h.partial[sort])
    return cell


cdef inline void heap_give(Heap* h, void* cell) noexcept nogil:
    cdef uint32_t number = slab_of(h, cell)
    cdef Slab* slab = &h.slabs[number]
    memcpy(cell, &slab.free, 4)
    slab.free = cell_ref(h, cell)
    sl_hide(cell, slab.size)
    if slab.live == slab.cells:
        slab_list(h, number, &h.partial[slab.sort])
    slab.live -= 1
    if sl_unlikely(slab.live == 0):
        slab_unlist(h, number, &h.partial[slab.sort])
        slab_list(h, number, &h.small.empty if number < SLABS_SMALL else &h.large.empty)
