"""What the tables of the core are made of: arenas of equal entries, and indexes of hashes.

Both lie in address space taken once for the largest they may become (`_pages`), so nothing is
copied when they grow, and no single change pays for a growth: that is spread over the changes that
cause it. Entries are named by 32-bit references, 0 = none.

An index is open addressing with linear probing over slots of 8 bytes: 32 bits of the hash (the tag)
above a reference. The home of an entry is the low bits of its tag. It doubles in place once it is
5/8 full: `frontier` walks over the old half, 16 slots with each entry added, and moves those whose
next bit is set to the same place of the new half. Homes below the frontier are found with one bit
more than the others, so every entry has one place to be looked for at all times. The walk stops
only at an empty slot; as nothing wraps around, that is always near: what a search passes over lies
between its home and the next empty slot, and moves as one.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core_ext._pages cimport (
    PAGE_HUGE, PAGES_SMALL, pages_ahead, pages_part, pages_release, pages_reserve,
)

cdef extern from *:
    """
    /* A function that only prefetches looks useless to gcc, which drops its calls: so the asm. */
    static inline void tb_prefetch(const void *p) {
        __builtin_prefetch(p);
        __asm__ volatile("" : : "r"(p));
    }
    static inline void tb_prefetch_write(const void *p) {
        __builtin_prefetch(p, 1);
        __asm__ volatile("" : : "r"(p));
    }
    #define tb_unlikely(x) __builtin_expect(!!(x), 0)
    """
    void tb_prefetch(const void* p) nogil
    void tb_prefetch_write(const void* p) nogil
    bint tb_unlikely(bint x) nogil

cdef enum:
    INDEX_BITS_MIN = 6
    TAKEN_AHEAD = 8  # how many `arena_take` before its own an entry is brought into the cache
    INDEX_STEP = 16  # slots the frontier passes for each entry added

# --- Arenas ---------------------------------------------------------------------------------------

cdef struct Arena:
    char* base
    size_t stride
    size_t bytes
    uint32_t top  # first reference never used yet
    uint32_t* spare  # entries given back; the last one is taken first
    uint32_t spares
    uint32_t live
    uint32_t most
    uint32_t notice  # when this reference is taken, more memory is asked for
    size_t ready  # bytes that are in memory or asked for


cdef inline uint32_t arena_notice(const Arena* a) noexcept nogil:
    """The reference that has only one part ready behind it."""
    return <uint32_t> ((a.ready - pages_part(a.ready)) // a.stride)


cdef inline int arena_open(Arena* a, size_t stride, uint32_t most) except -1:
    a.stride = stride
    a.bytes = stride * (<size_t> most + 1)
    a.base = <char*> pages_reserve(a.bytes)
    a.spare = <uint32_t*> pages_reserve(<size_t> most * sizeof(uint32_t))
    if a.base == NULL or a.spare == NULL:
        raise MemoryError("no address space for a table")
    a.top = 1
    a.spares = 0
    a.live = 0
    a.most = most
    a.ready = PAGES_SMALL
    a.notice = arena_notice(a)
    return 0


cdef inline void arena_close(Arena* a) noexcept:
    pages_release(a.base, a.bytes)
    pages_release(a.spare, <size_t> a.most * sizeof(uint32_t))


cdef inline void arena_ahead(Arena* a) noexcept nogil:
    """Ask for the next part."""
    cdef size_t part = pages_part(a.ready)
    if a.ready < a.bytes:
        pages_ahead(a.base + a.ready, part if part < a.bytes - a.ready else a.bytes - a.ready)
    a.ready += part
    a.notice = arena_notice(a)


cdef inline void arena_filled(Arena* a) noexcept nogil:
    """After entries were written in bulk: what lies before `top` is in memory already."""
    while a.notice <= a.top:
        a.ready += pages_part(a.ready)
        a.notice = arena_notice(a)


cdef inline uint32_t arena_free(const Arena* a) noexcept nogil:
    """The entry given back last; 0: none."""
    return a.spare[a.spares - 1] if a.spares else 0


cdef inline uint32_t arena_take(Arena* a, bint* reused) noexcept nogil:
    """Return a zeroed entry; the caller has seen that there is room (live < most).

    Entries given back lie anywhere: one that is due soon is asked for from memory meanwhile.
    """
    cdef uint32_t ref
    cdef char* next_
    reused[0] = a.spares != 0
    if a.spares:
        a.spares -= 1
        ref = a.spare[a.spares]
        if a.spares >= TAKEN_AHEAD:
            next_ = a.base + a.spare[a.spares - TAKEN_AHEAD] * a.stride
            tb_prefetch_write(next_)
            tb_prefetch_write(next_ + a.stride - 1)
        memset(a.base + ref * a.stride, 0, a.stride)
    else:
        ref = a.top
        a.top += 1
        if tb_unlikely(ref >= a.notice):
            arena_ahead(a)
    a.live += 1
    return ref


cdef inline void arena_give(Arena* a, uint32_t ref) noexcept nogil:
    """Take an entry back. It is left with the reference of the one given back before it at its end,
    which is how dumps know it."""
    cdef char* p = a.base + ref * a.stride
    cdef uint32_t before = arena_free(a)
    memset(p, 0, a.stride)
    memcpy(p + a.stride - 4, &before, 4)
    a.spare[a.spares] = ref
    a.spares += 1
    a.live -= 1


cdef inline bint arena_relink(Arena* a, uint32_t free, uint32_t live) noexcept nogil:
    """After entries were written in bulk: find those given back; False where that cannot be."""
    cdef uint32_t count = a.top - 1 - live
    if live >= a.top:
        return False
    a.live = live
    a.spares = count
    while count:
        if free == 0 or free >= a.top:
            return False
        count -= 1
        a.spare[count] = free
        memcpy(&free, a.base + free * a.stride + a.stride - 4, 4)
    return free == 0


cdef inline void arena_undo(Arena* a, uint32_t ref, bint reused) noexcept nogil:
    """Take back the latest `arena_take`."""
    if reused:
        arena_give(a, ref)
    else:
        memset(a.base + ref * a.stride, 0, a.stride)
        a.top -= 1
        a.live -= 1


cdef inline void arena_wipe(Arena* a) noexcept nogil:
    memset(a.base, 0, a.top * a.stride)
    a.top = 1
    a.spares = a.live = 0


# --- Indexes --------------------------------------------------------------------------------------

cdef struct Index:
    uint64_t* slots
    uint64_t low  # slots - 1 before the doubling now under way; without one, as `high`
    uint64_t high
    uint64_t frontier  # homes below it are found with `high`, the others with `low`
    uint64_t used
    uint64_t event  # at so many entries there is something to do before the next one
    uint64_t bits_max
    size_t ready  # bytes that are in memory or asked for
    size_t bytes  # of the address space


cdef inline int index_open(Index* t, uint64_t most) except -1:
    """For up to `most` entries."""
    t.bits_max = INDEX_BITS_MIN
    while most * 8 > <uint64_t> 5 << t.bits_max:
        t.bits_max += 1
    if t.bits_max > 32:
        raise ValueError("an index has at most 2**32 slots")
    # As much again behind the last home: the longest row of entries ends there at the latest.
    t.bytes = sizeof(uint64_t) << (t.bits_max + 1)
    t.slots = <uint64_t*> pages_reserve(t.bytes)
    if t.slots == NULL:
        raise MemoryError("no address space for an index")
    index_reset(t)
    return 0


cdef inline void index_reset(Index* t) noexcept nogil:
    t.low = t.high = (<uint64_t> 1 << INDEX_BITS_MIN) - 1
    t.frontier = 0
    t.used = 0
    t.ready = PAGES_SMALL
    index_plan(t)


cdef inline void index_close(Index* t) noexcept:
    pages_release(t.slots, t.bytes)


cdef inline void index_wipe(Index* t) noexcept:
    """Empty it, back to its smallest size."""
    memset(t.slots, 0, (2 * t.high + 2) * sizeof(uint64_t))
    index_reset(t)


cdef inline size_t index_bytes(const Index* t) noexcept nogil:
    """Bytes of the slots that entries have their homes in."""
    return (t.high + 1) * sizeof(uint64_t)


cdef inline uint64_t index_home(const Index* t, uint64_t tag) noexcept nogil:
    cdef uint64_t at = tag & t.low
    return tag & t.high if at < t.frontier else at


cdef inline void index_fetch(const Index* t, uint64_t tag) noexcept nogil:
    """Have the slots of this tag in the cache soon."""
    tb_prefetch(&t.slots[index_home(t, tag)])


cdef inline uint32_t index_guess(const Index* t, uint64_t tag) noexcept nogil:
    """Return the first reference with this tag, without touching its entry; or 0."""
    cdef uint64_t at = index_home(t, tag)
    while t.slots[at]:
        if t.slots[at] >> 32 == tag:
            return <uint32_t> t.slots[at]
        at += 1
    return 0


cdef inline void index_put(Index* t, uint64_t slot) noexcept nogil:
    """Into the first empty slot from its home on."""
    cdef uint64_t at = index_home(t, slot >> 32)
    while t.slots[at]:
        at += 1
    t.slots[at] = slot


cdef inline void index_walk(Index* t, uint64_t count) noexcept nogil:
    """Pass `count` slots of the old half, and on to the next empty one."""
    cdef uint64_t at = t.frontier
    cdef uint64_t stop = at + count
    cdef uint64_t slot, home
    if stop > t.low + 1:
        stop = t.low + 1
    while True:
        slot = t.slots[at]
        if slot:
            t.slots[at] = 0
            home = (slot >> 32) & t.high
            while t.slots[home]:
                home += 1
            t.slots[home] = slot
        elif at >= stop:
            break
        at += 1
    t.frontier = at
    if at > t.low:
        t.low = t.high
        t.frontier = 0
        index_plan(t)


cdef inline void index_plan(Index* t) noexcept nogil:
    """Say at how many entries the next thing is to be done: ask for memory, or double."""
    cdef uint64_t slots = t.high + 1
    cdef uint64_t parts
    if slots >= <uint64_t> 1 << t.bits_max:
        t.event = <uint64_t> -1  # made for no more entries
        return
    t.event = slots // 8 * 5
    if slots * 16 > t.ready:
        # Between 3/8 and 1/2, one huge page of the coming half after the other.
        parts = (slots * 16 - t.ready + PAGE_HUGE - 1) // PAGE_HUGE
        t.event = slots // 2 - slots // 8 * parts // (slots * 8 // PAGE_HUGE + 1)


cdef inline void index_event(Index* t) noexcept nogil:
    """Do what is due before an entry is added."""
    if t.low != t.high:
        index_walk(t, INDEX_STEP)
        return
    if t.used < (t.high + 1) // 8 * 5:
        if t.ready < (t.high + 1) * 16:
            pages_ahead(<char*> t.slots + t.ready, PAGE_HUGE)
            t.ready += PAGE_HUGE
        index_plan(t)
        return
    t.high = 2 * t.high + 1
    t.event = 0
    index_walk(t, INDEX_STEP)


cdef inline void index_add(Index* t, uint64_t tag, uint32_t ref) noexcept nogil:
    if tb_unlikely(t.used >= t.event):
        index_event(t)
    index_put(t, tag << 32 | ref)
    t.used += 1


cdef inline void index_drop(Index* t, uint64_t tag, uint32_t ref) noexcept nogil:
    """Remove and close the gap by moving back, so that no search meets a dead slot."""
    cdef uint64_t at = index_home(t, tag)
    cdef uint64_t probe, slot
    while <uint32_t> t.slots[at] != ref:
        at += 1
    probe = at
    while True:
        probe += 1
        slot = t.slots[probe]
        if slot == 0:
            break
        if index_home(t, slot >> 32) <= at:
            t.slots[at] = slot
            at = probe
    t.slots[at] = 0
    t.used -= 1


cdef inline void index_reserve(Index* t, uint64_t more) noexcept nogil:
    """Double at once until so many more entries need no doubling; for times nobody waits."""
    while True:
        if t.low != t.high:
            index_walk(t, t.low + 1)
        if (t.used + more) * 8 <= 5 * (t.high + 1) or (t.high + 1) >> t.bits_max:
            return
        t.high = 2 * t.high + 1
        t.event = 0
