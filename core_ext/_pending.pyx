"""Requests in flight on a link: matched by key, expired by deadline, remembered when they end.

A request is known by named parts of its message (class of the MTI, DE11, DE41, ...). The matched
parts make its key; the checked ones are compared where the answer has them, so that an answer
which merely has the right key is still not taken for another request's. All is bounded: so many
in flight, so many remembered.

A key is refused while an answer to it may still come: while it is in flight, and for as long as
it is remembered as expired or lost. The same holds for its STAN; STANs are given out in turn, never
one that is busy, and never one twice in the same second (STAN and DE7 together are unique).

Memory: 192 bytes a request, in flight or remembered, and 4 MiB for the STANs.

The table is keyed by SipHash-2-4 under a random key, as answers come from peers.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

from core_ext._siphash cimport sip_key, siphash24

import os


cdef enum:
    PARTS_MAX = 8
    BODY_MAX = 101
    PART_MAX = 40
    REQUESTS_MIN = 64
    STANS = 999999
    STAN_WORDS = 15626
    NEAREST_MAX = 4096  # requests compared at most: an explanation is not worth a pause
    IN_FLIGHT = 0
    ANSWERED = 1
    EXPIRED = 2
    LOST = 3
    WITHDRAWN = 4

cdef uint32_t NONE = 0xFFFFFFFF
cdef uint8_t ABSENT = 0xFF  # in place of the length: the answer does not have this part

cdef tuple FATES = ("in flight", "answered", "expired", "lost", "withdrawn")


class PendingFull(Exception):
    """As many requests are in flight as there may be. Nothing has changed."""


cdef inline object part_at(const unsigned char* p):
    """The part that begins at p: a str, or None where it is absent."""
    return None if p[0] == ABSENT else p[1 : 1 + p[0]].decode()


cdef inline int width_of(const unsigned char* p) noexcept nogil:
    """Bytes that the part at p takes."""
    return 1 if p[0] == ABSENT else 1 + p[0]


@cython.final
cdef class Pending:
    """The in-flight table of one link. One owner thread; the clock is the caller's.

    Args:
        match: names of the parts that make the key, 1 to 8.
        check: names of further parts, compared only where the answer has them; with `match` at
            most 8.
        in_flight_max: requests in flight at most, 1..500,000.
        remembered_max: ended requests that late and second answers are told by, 0..1,000,000; the
            longest ended is forgotten first.
        first_stan: the STAN given out first, 1..999,999.
    """

    def __cinit__(
        self,
        tuple match not None,
        tuple check not None=(),
        *,
        uint32_t in_flight_max=256,
        uint32_t remembered_max=4096,
        uint32_t first_stan=1,
    ):
        names = match + check
        if not match or len(names) > PARTS_MAX or len(set(names)) != len(names):
            raise ValueError("a key has distinct parts, 1 to 8 of them")
        if not 1 <= in_flight_max <= 500_000 or remembered_max > 1_000_000:
            raise ValueError("in_flight_max is 1..500000, remembered_max 0..1000000")
        if not 1 <= first_stan <= STANS:
            raise ValueError("a STAN is 1..999999")
        self.names = names
        self.in_flight_max = in_flight_max
        self.remembered_max = remembered_max
        self._matched = <int> len(match)
        self._parts = <int> len(names)
        self._tokens = [None] * REQUESTS_MIN
        self._free = self._oldest = self._newest = NONE
        self._key = sip_key(os.urandom(16))
        self._requests = <Request*> calloc(REQUESTS_MIN, sizeof(Request))
        self._index = <uint32_t*> calloc(2 * REQUESTS_MIN, sizeof(uint32_t))
        self._heap = <uint32_t*> calloc(in_flight_max, sizeof(uint32_t))
        self._busy = <uint64_t*> calloc(STAN_WORDS, sizeof(uint64_t))
        self._used_s = <uint32_t*> calloc(STANS + 1, sizeof(uint32_t))
        if (
            self._requests is NULL or self._index is NULL or self._heap is NULL
            or self._busy is NULL or self._used_s is NULL
        ):
            raise MemoryError
        memset(self._index, 0xFF, 2 * REQUESTS_MIN * sizeof(uint32_t))
        self._index_mask = 2 * REQUESTS_MIN - 1
        self._capacity = REQUESTS_MIN
        self._last_stan = first_stan - 1

    def __dealloc__(self):
        free(self._requests)
        free(self._index)
        free(self._heap)
        free(self._busy)
        free(self._used_s)

    # -- parts

    cdef int _pack(self, Request* to, tuple parts) except -1:
        """Lay the parts out and hash the key; 0 where they are longer than any key in flight.

        Raises:
            ValueError: another number of parts.
        """
        cdef int i, at = 0
        cdef Py_ssize_t n
        cdef const char* text
        if len(parts) != self._parts:
            raise ValueError(f"a key has {self._parts} parts")
        for i in range(self._parts):
            if i == self._matched:
                to.key_bytes = <uint8_t> at
            part = parts[i]
            if part is None:
                n = 0
            elif isinstance(part, str):
                text = PyUnicode_AsUTF8AndSize(part, &n)
            else:
                raise TypeError("a part is a str, or None where there is none")
            if n > PART_MAX or at + 1 + n > BODY_MAX:
                return 0
            to.body[at] = ABSENT if part is None else <uint8_t> n
            if n:
                memcpy(to.body + at + 1, text, n)
            at += 1 + <int> n
        if self._parts == self._matched:
            to.key_bytes = <uint8_t> at
        to.body_bytes = <uint8_t> at
        to.hash = siphash24(self._key, to.body, to.key_bytes)
        return 1

    cdef bint _agrees(self, Request* sent, Request* heard) noexcept:
        """True where no checked part that both have differs."""
        cdef const unsigned char* a = sent.body + sent.key_bytes
        cdef const unsigned char* b = heard.body + heard.key_bytes
        cdef int i
        for i in range(self._parts - self._matched):
            if a[0] != ABSENT and b[0] != ABSENT and (a[0] != b[0] or memcmp(a, b, 1 + a[0])):
                return False
            a += width_of(a)
            b += width_of(b)
        return True

    # -- the table: open addressing, at most half full, deletion by shifting back

    cdef uint32_t* _place_of(self, Request* key) noexcept:
        """The place of that key, or the empty place where it belongs."""
        cdef uint32_t i = <uint32_t> key.hash & self._index_mask
        cdef Request* there
        while self._index[i] != NONE:
            there = &self._requests[self._index[i]]
            if (
                there.hash == key.hash
                and there.key_bytes == key.key_bytes
                and memcmp(there.body, key.body, key.key_bytes) == 0
            ):
                break
            i = (i + 1) & self._index_mask
        return &self._index[i]

    cdef void _erase(self, uint32_t* place) noexcept:
        cdef uint32_t hole = <uint32_t> (place - self._index), i = hole, home
        while True:
            i = (i + 1) & self._index_mask
            if self._index[i] == NONE:
                break
            home = <uint32_t> self._requests[self._index[i]].hash & self._index_mask
            if ((i - home) & self._index_mask) >= ((i - hole) & self._index_mask):
                self._index[hole] = self._index[i]
                hole = i
        self._index[hole] = NONE

    cdef int _grow(self) except -1:
        """Double requests and index."""
        cdef uint32_t capacity = 2 * self._capacity, mask = 2 * capacity - 1, i, k
        cdef Request* requests
        cdef uint32_t* index = <uint32_t*> calloc(2 * <size_t> capacity, sizeof(uint32_t))
        if index is NULL:
            raise MemoryError
        requests = <Request*> realloc(self._requests, <size_t> capacity * sizeof(Request))
        if requests is NULL:
            free(index)
            raise MemoryError
        memset(index, 0xFF, 2 * <size_t> capacity * sizeof(uint32_t))
        self._requests = requests
        for i in range(self._index_mask + 1):
            if self._index[i] != NONE:
                k = <uint32_t> requests[self._index[i]].hash & mask
                while index[k] != NONE:
                    k = (k + 1) & mask
                index[k] = self._index[i]
        free(self._index)
        self._index = index
        self._index_mask = mask
        self._tokens.extend([None] * self._capacity)
        self._capacity = capacity
        return 0

    # -- deadlines: a binary heap; equal ones in the order of their adds

    cdef bint _before(self, uint32_t a, uint32_t b) noexcept:
        cdef Request* x = &self._requests[a]
        cdef Request* y = &self._requests[b]
        return x.at_ns < y.at_ns or (x.at_ns == y.at_ns and x.order < y.order)

    cdef void _rise(self, uint32_t at) noexcept:
        cdef uint32_t request = self._heap[at], above
        while at:
            above = (at - 1) // 2
            if not self._before(request, self._heap[above]):
                break
            self._heap[at] = self._heap[above]
            self._requests[self._heap[at]].place = at
            at = above
        self._heap[at] = request
        self._requests[request].place = at

    cdef void _sink_down(self, uint32_t at) noexcept:
        cdef uint32_t request = self._heap[at], below
        while 2 * at + 1 < self._in_flight:
            below = 2 * at + 1
            if below + 1 < self._in_flight and self._before(
                self._heap[below + 1], self._heap[below]
            ):
                below += 1
            if not self._before(self._heap[below], request):
                break
            self._heap[at] = self._heap[below]
            self._requests[self._heap[at]].place = at
            at = below
        self._heap[at] = request
        self._requests[request].place = at

    cdef void _leave_heap(self, Request* request) noexcept:
        cdef uint32_t at = request.place
        self._in_flight -= 1
        if at != self._in_flight:
            self._heap[at] = self._heap[self._in_flight]
            self._requests[self._heap[at]].place = at
            self._rise(at)
            self._sink_down(self._requests[self._heap[at]].place)

    # -- STANs

    cdef void _release_stan(self, Request* request) noexcept:
        if request.stan:
            self._busy[request.stan >> 6] &= ~(<uint64_t> 1 << (request.stan & 63))
            self._stans_busy -= 1
            request.stan = 0

    def next_stan(self, int64_t second):
        """Return the next STAN that is free, 1..999,999, or 0 where there is none.

        Args:
            second: of the DE7 it goes with, in any count of seconds from 1 to 2**32 - 1; no STAN is
                given out twice in one.
        """
        cdef uint32_t stan = self._last_stan, tried
        cdef uint32_t now_s
        if not 1 <= second < 1 << 32:
            raise ValueError("a second is 1..2**32 - 1")
        now_s = <uint32_t> second
        if self._stans_busy >= STANS:
            return 0
        for tried in range(<uint32_t> STANS):
            stan = stan + 1 if stan < STANS else 1
            if self._used_s[stan] != now_s and not self._busy[stan >> 6] >> (stan & 63) & 1:
                self._last_stan = stan
                self._used_s[stan] = now_s
                return stan
        return 0

    # -- the life of a request

    def add(
        self,
        tuple parts not None,
        object token,
        *,
        int64_t sent_ns,
        int64_t deadline_ns,
        uint32_t stan=0,
        uint32_t group=0,
    ):
        """Put a request in flight; return False where an answer to its key may still come.

        Args:
            parts: a str for each of `names`, None for what the request does not have.
            token: handed back when it ends.
            sent_ns, deadline_ns: instants of one clock.
            stan: the STAN it goes with, as `next_stan` gave it; busy from here on. 0: none.
            group: the connection it goes over.

        Raises:
            PendingFull: `in_flight_max` are in flight. Nothing has changed.
            ValueError: parts that are too long, a STAN out of range or busy. Nothing has changed.
        """
        cdef Request made
        cdef uint32_t* place
        cdef uint32_t at
        if not self._pack(&made, parts):
            raise ValueError("the parts of a key are longer than they may be")
        if stan > STANS or self._busy[stan >> 6] >> (stan & 63) & 1:
            raise ValueError("no free STAN")
        place = self._place_of(&made)
        if place[0] != NONE:
            if self._requests[place[0]].fate in (IN_FLIGHT, EXPIRED, LOST):
                return False
        if self._in_flight >= self.in_flight_max:
            raise PendingFull(f"{self._in_flight} requests are in flight")
        if place[0] != NONE:
            self._forget(place[0])
        if self._free == NONE and self._fresh == self._capacity:
            self._grow()
        if self._free != NONE:
            at = self._free
            self._free = self._requests[at].newer
        else:
            at = self._fresh
            self._fresh += 1
        made.sent_ns = sent_ns
        made.at_ns = deadline_ns
        made.order = self._order
        made.fate = IN_FLIGHT
        made.stan = stan
        made.group = group
        made.newer = made.older = NONE
        self._order += 1
        self._requests[at] = made
        self._tokens[at] = token
        # Found again: growing and forgetting move places.
        self._place_of(&made)[0] = at
        self._count += 1
        if stan:
            self._busy[stan >> 6] |= <uint64_t> 1 << (stan & 63)
            self._stans_busy += 1
        self._heap[self._in_flight] = at
        self._in_flight += 1
        self._rise(self._in_flight - 1)
        return True

    cdef void _forget(self, uint32_t request) noexcept:
        """Drop a remembered request for good."""
        cdef Request* r = &self._requests[request]
        if r.older == NONE:
            self._oldest = r.newer
        else:
            self._requests[r.older].newer = r.newer
        if r.newer == NONE:
            self._newest = r.older
        else:
            self._requests[r.newer].older = r.older
        self._remembered -= 1
        self._count -= 1
        self._release_stan(r)
        self._erase(self._place_of(r))
        r.newer = self._free
        self._free = request

    cdef object _end(self, uint32_t request, uint8_t fate, int64_t now_ns):
        """Take a request out of flight and remember it; return (token, group, sent_ns)."""
        cdef Request* r = &self._requests[request]
        ended = (self._tokens[request], r.group, r.sent_ns)
        self._tokens[request] = None
        self._leave_heap(r)
        r.fate = fate
        r.at_ns = now_ns
        if fate == ANSWERED or fate == WITHDRAWN:
            self._release_stan(r)
        r.newer = NONE
        r.older = self._newest
        if self._newest == NONE:
            self._oldest = request
        else:
            self._requests[self._newest].newer = request
        self._newest = request
        self._remembered += 1
        if self._remembered > self.remembered_max:
            self._forget(self._oldest)
        return ended

    def take(self, tuple parts not None, int64_t now_ns):
        """End the request that an answer belongs to: (token, group, sent_ns), or None.

        None where nothing with its key is in flight, and where a checked part differs; then
        `fate` and `nearest` say more.

        Args:
            parts: a str for each of `names`, None for what the answer does not have.
        """
        cdef Request heard
        cdef uint32_t at
        if not self._pack(&heard, parts):
            return None
        at = self._place_of(&heard)[0]
        if at == NONE or self._requests[at].fate != IN_FLIGHT:
            return None
        if not self._agrees(&self._requests[at], &heard):
            return None
        return self._end(at, ANSWERED, now_ns)

    def withdraw(self, tuple parts not None, int64_t now_ns):
        """End a request that was not sent after all, so that its key is free; as `take`."""
        cdef Request key
        cdef uint32_t at
        if not self._pack(&key, parts):
            return None
        at = self._place_of(&key)[0]
        if at == NONE or self._requests[at].fate != IN_FLIGHT:
            return None
        return self._end(at, WITHDRAWN, now_ns)

    def fate(self, tuple parts not None):
        """Say what became of the request with this key and these checked parts.

        Returns:
            None: not known, or no longer. Else ("in flight" | "answered" | "expired" | "lost" |
            "withdrawn", sent_ns, instant it ended or its deadline).
        """
        cdef Request key
        cdef uint32_t at
        if not self._pack(&key, parts):
            return None
        at = self._place_of(&key)[0]
        if at == NONE or not self._agrees(&self._requests[at], &key):
            return None
        return (
            FATES[self._requests[at].fate], self._requests[at].sent_ns, self._requests[at].at_ns
        )

    def expire(self, int64_t now_ns, uint32_t max_count=0xFFFFFFFF):
        """End the requests with a deadline at or before `now_ns`: [(token, group, sent_ns)].

        In the order of their deadlines, equal ones in that of their adds; at most `max_count`.
        """
        cdef list ended = []
        while (
            self._in_flight
            and max_count
            and self._requests[self._heap[0]].at_ns <= now_ns
        ):
            ended.append(self._end(self._heap[0], EXPIRED, now_ns))
            max_count -= 1
        return ended

    def lose(self, uint32_t group, int64_t now_ns):
        """End all requests of a dead connection: [(token, group, sent_ns)], in order of adds."""
        cdef list lost = []
        cdef uint32_t i
        for i in range(self._in_flight):
            if self._requests[self._heap[i]].group == group:
                lost.append((self._requests[self._heap[i]].order, self._heap[i]))
        lost.sort()
        return [self._end(request, LOST, now_ns) for _, request in lost]

    # -- for people

    def nearest(self, tuple parts not None):
        """Find the request in flight that has most in common with an answer nobody waits for.

        Returns:
            None while nothing is in flight. Else (its parts, the names of those that differ, its
            sent_ns). An absent part of the answer does not differ. Among equals the latest; of very
            many requests only 4,096 are compared.
        """
        cdef Request heard
        cdef Request* sent
        cdef const unsigned char* a
        cdef const unsigned char* b
        cdef uint32_t i, best = NONE
        cdef int k, same, most = -1
        if not self._pack(&heard, parts):
            return None
        for i in range(min(self._in_flight, <uint32_t> NEAREST_MAX)):
            sent = &self._requests[self._heap[i]]
            a = sent.body
            b = heard.body
            same = 0
            for k in range(self._parts):
                if a[0] == b[0] and (a[0] == ABSENT or not memcmp(a, b, 1 + a[0])):
                    same += 1
                a += width_of(a)
                b += width_of(b)
            if same > most or (same == most and sent.order > self._requests[best].order):
                most = same
                best = self._heap[i]
        if best == NONE:
            return None
        found = self._shown(&self._requests[best])
        heard_parts = self._shown(&heard)
        differing = tuple(
            [
                name
                for name, ours, theirs in zip(self.names, found, heard_parts)
                if theirs is not None and ours != theirs
            ]
        )
        return found, differing, self._requests[best].sent_ns

    cdef tuple _shown(self, Request* request):
        cdef list found = []
        cdef const unsigned char* p = request.body
        cdef int i
        for i in range(self._parts):
            found.append(part_at(p))
            p += width_of(p)
        return tuple(found)

    @property
    def next_ns(self):
        """The earliest deadline, or None while nothing is in flight."""
        return self._requests[self._heap[0]].at_ns if self._in_flight else None

    @property
    def oldest_ns(self):
        """When the request longest in flight was sent, or None while there is none."""
        cdef uint32_t i, oldest
        if not self._in_flight:
            return None
        oldest = self._heap[0]
        for i in range(1, self._in_flight):
            if self._requests[self._heap[i]].order < self._requests[oldest].order:
                oldest = self._heap[i]
        return self._requests[oldest].sent_ns

    @property
    def remembered(self):
        """Ended requests that are remembered."""
        return self._remembered

    def __len__(self):
        """Requests in flight."""
        return self._in_flight
