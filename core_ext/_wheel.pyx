"""A hierarchical timer wheel: arm, cancel and expire in constant time, whatever the number.

Time is cut into ticks. A timer lies at the level of the highest group of six bits in which its
tick differs from the wheel's own, in the slot its tick has in that group; so every timer of a
level is due before every timer of a higher one, and slots of a level are due in order. Entering a
slot of a higher level spreads its timers over the levels below: at most ten times in the life of
a timer, once for most.

A timer is never due early: those of the tick in progress are compared with the deadline itself.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset


cdef enum:
    LEVELS = 11  # 66 bits: any int64 of ticks
    SLOTS = 64
    TIMERS_MIN = 256

cdef uint32_t NONE = 0xFFFFFFFF


cdef extern from *:
    """
    static inline int wh_lowest_bit(uint64_t v) { return __builtin_ctzll(v); }
    static inline int wh_highest_bit(uint64_t v) { return 63 - __builtin_clzll(v); }
    """
    int wh_lowest_bit(uint64_t) nogil
    int wh_highest_bit(uint64_t) nogil


class WheelFull(Exception):
    """As many timers are armed as there may be. Nothing has changed."""


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """The finalizer of SplitMix64: ids are often consecutive."""
    x = (x ^ (x >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t> 0x94D049BB133111EB
    return x ^ (x >> 31)


@cython.final
cdef class Wheel:
    """Timers by id. One owner thread; the clock is the caller's.

    Args:
        tick_ns: width of the finest slot in nanoseconds, 1 or more. It is no rounding: only how
            much is compared at once.
        timers_max: armed timers at most, 1..2**31.
    """

    def __cinit__(self, int64_t tick_ns=1_000_000, uint32_t timers_max=1 << 22):
        if tick_ns < 1:
            raise ValueError("tick_ns must be positive")
        if not 1 <= timers_max <= 1 << 31:
            raise ValueError("timers_max must be in 1..2**31")
        self.tick_ns = tick_ns
        self.timers_max = timers_max
        self._free = NONE
        memset(self._slots, 0xFF, sizeof(self._slots))
        self._index = <uint32_t*> calloc(2 * TIMERS_MIN, sizeof(uint32_t))
        self._timers = <Timer*> calloc(TIMERS_MIN, sizeof(Timer))
        if self._index is NULL or self._timers is NULL:
            raise MemoryError
        memset(self._index, 0xFF, 2 * TIMERS_MIN * sizeof(uint32_t))
        self._index_mask = 2 * TIMERS_MIN - 1
        self._capacity = TIMERS_MIN

    def __dealloc__(self):
        free(self._index)
        free(self._timers)

    # -- id -> timer: open addressing, at most half full, deletion by shifting back

    cdef uint32_t* _place_of(self, uint64_t id) noexcept:
        """The place of that id, or the empty place where it belongs."""
        cdef uint32_t i = <uint32_t> mix(id) & self._index_mask
        while self._index[i] != NONE and self._timers[self._index[i]].id != id:
            i = (i + 1) & self._index_mask
        return &self._index[i]

    cdef void _erase(self, uint32_t* place) noexcept:
        cdef uint32_t hole = <uint32_t> (place - self._index), i = hole, home
        while True:
            i = (i + 1) & self._index_mask
            if self._index[i] == NONE:
                break
            home = <uint32_t> mix(self._timers[self._index[i]].id) & self._index_mask
            if ((i - home) & self._index_mask) >= ((i - hole) & self._index_mask):
                self._index[hole] = self._index[i]
                hole = i
        self._index[hole] = NONE

    cdef int _grow(self) except -1:
        """Double timers and index."""
        cdef uint32_t capacity = 2 * self._capacity, i, k
        cdef Timer* timers
        cdef uint32_t* index = <uint32_t*> calloc(2 * <size_t> capacity, sizeof(uint32_t))
        if index is NULL:
            raise MemoryError
        timers = <Timer*> realloc(self._timers, <size_t> capacity * sizeof(Timer))
        if timers is NULL:
            free(index)
            raise MemoryError
        memset(index, 0xFF, 2 * <size_t> capacity * sizeof(uint32_t))
        self._timers = timers
        for i in range(self._index_mask + 1):
            if self._index[i] != NONE:
                k = <uint32_t> mix(timers[self._index[i]].id) & (2 * capacity - 1)
                while index[k] != NONE:
                    k = (k + 1) & (2 * capacity - 1)
                index[k] = self._index[i]
        free(self._index)
        self._index = index
        self._index_mask = 2 * capacity - 1
        self._capacity = capacity
        return 0

    # -- slots

    cdef void _link(self, uint32_t timer) noexcept:
        """Put a timer into the slot of its deadline; what is past goes into the present tick."""
        cdef Timer* t = &self._timers[timer]
        cdef int64_t tick = t.deadline_ns // self.tick_ns
        cdef uint64_t differing
        cdef uint32_t level = 0, slot
        if tick < self._tick:
            tick = self._tick
        differing = <uint64_t> tick ^ <uint64_t> self._tick
        if differing:
            level = wh_highest_bit(differing) // 6
        slot = level * SLOTS + <uint32_t> (<uint64_t> tick >> (6 * level) & (SLOTS - 1))
        t.slot = slot
        t.previous = NONE
        t.next = self._slots[slot]
        if t.next == NONE:
            self._occupied[level] |= <uint64_t> 1 << (slot % SLOTS)
            self._earliest[slot] = t.deadline_ns
        else:
            self._timers[t.next].previous = timer
            self._earliest[slot] = min(self._earliest[slot], t.deadline_ns)
        self._slots[slot] = timer

    cdef void _unlink(self, uint32_t timer) noexcept:
        cdef Timer* t = &self._timers[timer]
        if t.previous == NONE:
            self._slots[t.slot] = t.next
            if t.next == NONE:
                self._occupied[t.slot // SLOTS] &= ~(<uint64_t> 1 << (t.slot % SLOTS))
        else:
            self._timers[t.previous].next = t.next
        if t.next != NONE:
            self._timers[t.next].previous = t.previous

    cdef uint32_t _take_slot(self, uint32_t slot) noexcept:
        """Empty a slot; return its first timer."""
        cdef uint32_t first = self._slots[slot]
        self._slots[slot] = NONE
        self._occupied[slot // SLOTS] &= ~(<uint64_t> 1 << (slot % SLOTS))
        return first

    cdef int _first_slot(self) noexcept:
        """The slot whose timers are due first, or -1."""
        cdef int level
        for level in range(LEVELS):
            if self._occupied[level]:
                return level * SLOTS + wh_lowest_bit(self._occupied[level])
        return -1

    # -- the API

    cdef int set(self, uint64_t id, int64_t deadline_ns) except -1:
        cdef uint32_t* place
        cdef uint32_t timer
        if deadline_ns < 0:
            raise ValueError("a deadline is not negative")
        place = self._place_of(id)
        if place[0] != NONE:
            timer = place[0]
            self._unlink(timer)
        else:
            if self._count >= self.timers_max:
                raise WheelFull(f"{self._count} timers are armed")
            if self._free == NONE and self._fresh == self._capacity:
                self._grow()
                place = self._place_of(id)
            if self._free != NONE:
                timer = self._free
                self._free = self._timers[timer].next
            else:
                timer = self._fresh
                self._fresh += 1
            self._timers[timer].id = id
            place[0] = timer
            self._count += 1
        self._timers[timer].deadline_ns = deadline_ns
        self._link(timer)
        return 0

    cdef bint unset(self, uint64_t id) noexcept:
        cdef uint32_t* place = self._place_of(id)
        cdef uint32_t timer = place[0]
        if timer == NONE:
            return False
        self._unlink(timer)
        self._erase(place)
        self._timers[timer].next = self._free
        self._free = timer
        self._count -= 1
        return True

    def arm(self, uint64_t id, int64_t deadline_ns):
        """Set the deadline of a timer, armed already or not.

        Args:
            id: 0..2**64 - 1.
            deadline_ns: 0..2**63 - 1, on the clock that `advance` is given.

        Raises:
            WheelFull: `timers_max` are armed. Nothing has changed.
        """
        self.set(id, deadline_ns)

    def cancel(self, uint64_t id):
        """Disarm a timer; return whether it was armed."""
        return self.unset(id)

    def advance(self, int64_t now_ns):
        """Disarm all timers with a deadline at or before `now_ns` and return their ids.

        In the order of deadlines, equal ones by id. A clock that stands still or falls back is no
        error; nothing is due early.
        """
        cdef list due = []
        cdef int64_t target = now_ns // self.tick_ns, start
        cdef int slot, level, shift
        cdef uint32_t timer, following
        if now_ns < 0:
            return []
        while True:
            slot = self._first_slot()
            if slot < 0:
                break
            level = slot // SLOTS
            shift = 6 * level
            # The tick at which the slot begins: the wheel's own above its group, zeros below.
            start = 0 if level >= LEVELS - 1 else (self._tick >> (shift + 6)) << (shift + 6)
            start |= <int64_t> (slot % SLOTS) << shift
            if start > target:
                break
            self._tick = max(self._tick, start)
            if level == 0:
                if start == target:
                    break
                self._expire_slot(slot, now_ns, due)
            else:
                timer = self._take_slot(slot)
                while timer != NONE:
                    following = self._timers[timer].next
                    self._link(timer)
                    timer = following
        if target > self._tick:
            self._tick = target
        slot = <int> (self._tick & (SLOTS - 1))
        if self._slots[slot] != NONE:
            self._expire_slot(slot, now_ns, due)
        due.sort()
        return [id for _, id in due]

    cdef int _expire_slot(self, uint32_t slot, int64_t now_ns, list due) except -1:
        """Move the timers of a slot of the lowest level that are due to `due`."""
        cdef uint32_t timer = self._take_slot(slot), following
        while timer != NONE:
            following = self._timers[timer].next
            if self._timers[timer].deadline_ns <= now_ns:
                due.append((self._timers[timer].deadline_ns, self._timers[timer].id))
                self._erase(self._place_of(self._timers[timer].id))
                self._timers[timer].next = self._free
                self._free = timer
                self._count -= 1
            else:
                self._link(timer)
            timer = following
        return 0

    @property
    def next_ns(self):
        """When to call `advance` next, or None while nothing is armed.

        The earliest deadline, or a little before it where the earliest timer has been cancelled.
        """
        cdef int slot = self._first_slot()
        return None if slot < 0 else self._earliest[slot]

    def __len__(self):
        return self._count
