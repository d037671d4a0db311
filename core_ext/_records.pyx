"""A keyed store of opaque values whose every change is a journal record.

The flows keep their operations here, and the registry its entries. A record lives in a space
(0..255), has a key of up to 32 bytes, a value of up to 65,535 bytes, a stamp of the caller's (a
time, say, for `forget`) and is open or not: an open record is work in progress and is never
forgotten.

Journal records, little-endian:

    64 put     space u8, open << 7 | key length u8, stamp u64, key, value
    65 delete  space u8, key length u8, key
    66 forget  space u8, count u32: the oldest `count` records of the space that are not open

Memory: an entry is one block of 28 bytes and the body of its put record; the table takes 16 bytes
a slot and is at most 3/4 full. `bytes_used` counts both, allocator overhead included. A record
with a 16-byte key and a 200-byte value takes 272 bytes, and 22 to 43 in the table.

The table is keyed by SipHash-1-3 under a random key, as keys may come from peers; the digest uses
the same function under a fixed key.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from core_ext._sink cimport Replica, Sink

import os


cdef enum:
    KIND_PUT = 64
    KIND_DELETE = 65
    KIND_FORGET = 66
    KEY_MAX = 32
    VALUE_MAX = 65535
    BODY_HEAD = 10
    BODY_MAX = BODY_HEAD + KEY_MAX + VALUE_MAX
    OPEN = 0x80
    SLOTS_MIN = 1024
    CHUNK = 1 << 20
    ENTRY_HEAD = 28  # offset of Entry.body
    HUGE = 2 << 20

cdef bytes DUMP_MAGIC = b"TRNCREC1"


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void**, size_t, size_t)


cdef extern from "<sys/mman.h>" nogil:
    int madvise(void*, size_t, int)
    int MADV_HUGEPAGE


class RecordsFull(Exception):
    """A put would take the store beyond `bytes_max`. Nothing has changed."""


cdef inline uint64_t rotl(uint64_t x, int n) noexcept nogil:
    return x << n | x >> (64 - n)


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotl(v[1], 13) ^ v[0]
    v[3] = rotl(v[3], 16) ^ v[2]
    v[0] = rotl(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotl(v[1], 17) ^ v[2]
    v[3] = rotl(v[3], 21) ^ v[0]
    v[2] = rotl(v[2], 32)


cdef uint64_t siphash13(
    uint64_t k0, uint64_t k1, uint64_t seed, const unsigned char* p, size_t n
) noexcept nogil:
    """SipHash-1-3 (Aumasson and Bernstein) of the 8 bytes of `seed`, then n bytes."""
    cdef uint64_t v[4]
    cdef uint64_t word = seed, last = <uint64_t> (n + 8) << 56
    cdef size_t whole = n // 8, i
    v[0] = k0 ^ <uint64_t> 0x736F6D6570736575
    v[1] = k1 ^ <uint64_t> 0x646F72616E646F6D
    v[2] = k0 ^ <uint64_t> 0x6C7967656E657261
    v[3] = k1 ^ <uint64_t> 0x7465646279746573
    v[3] ^= word
    sip_round(v)
    v[0] ^= word
    for i in range(whole):
        memcpy(&word, p + 8 * i, 8)
        v[3] ^= word
        sip_round(v)
        v[0] ^= word
    word = 0
    memcpy(&word, p + 8 * whole, n % 8)
    last |= word
    v[3] ^= last
    sip_round(v)
    v[0] ^= last
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline uint64_t digest_of(Entry* entry) noexcept nogil:
    return siphash13(
        <uint64_t> 0x74726F6E63616C31, <uint64_t> 0x7265636F72647331, 0, entry.body, entry.length
    )


cdef inline size_t cost(size_t body) noexcept nogil:
    """Bytes the allocator takes for an entry: 8 of its own, in steps of 16."""
    return (ENTRY_HEAD + body + 8 + 15) & ~<size_t> 15


cdef inline int space_of(Entry* entry) noexcept nogil:
    return entry.body[0]


cdef inline bint is_open(Entry* entry) noexcept nogil:
    return entry.body[1] & OPEN


cdef inline size_t key_length(Entry* entry) noexcept nogil:
    return entry.body[1] & ~OPEN


cdef inline uint64_t stamp_of(Entry* entry) noexcept nogil:
    cdef uint64_t stamp
    memcpy(&stamp, entry.body + 2, 8)
    return stamp


cdef inline bytes key_of(Entry* entry):
    return entry.body[BODY_HEAD : BODY_HEAD + key_length(entry)]


cdef inline bytes value_of(Entry* entry):
    return entry.body[BODY_HEAD + key_length(entry) : entry.length]


cdef inline void unlink(Chain* chain, Entry* entry) noexcept nogil:
    if entry.older is NULL:
        chain.oldest = entry.newer
    else:
        entry.older.newer = entry.newer
    if entry.newer is NULL:
        chain.newest = entry.older
    else:
        entry.newer.older = entry.older
    chain.count -= 1


cdef inline void push(Chain* chain, Entry* entry) noexcept nogil:
    entry.older = chain.newest
    entry.newer = NULL
    if chain.newest is NULL:
        chain.oldest = entry
    else:
        chain.newest.newer = entry
    chain.newest = entry
    chain.count += 1


cdef Slot* new_table(uint64_t slots) except NULL:
    """An empty table; a large one in huge pages, which halves the cost of a random access."""
    cdef void* table = NULL
    cdef size_t n = slots * sizeof(Slot)
    if posix_memalign(&table, HUGE if n >= 2 * HUGE else 64, n):
        raise MemoryError
    if n >= 2 * HUGE:
        madvise(table, n, MADV_HUGEPAGE)  # advice: if it is not taken, nothing is lost
    memset(table, 0, n)
    return <Slot*> table


cdef void free_chain(Chain* chain) noexcept nogil:
    cdef Entry* entry = chain.oldest
    cdef Entry* newer
    while entry is not NULL:
        newer = entry.newer
        free(entry)
        entry = newer


cdef inline Entry* older_of(Entry* a, Entry* b) noexcept nogil:
    """Whichever was put first; either may be missing."""
    if a is NULL or (b is not NULL and b.order < a.order):
        return b
    return a


cdef int check_space(int space) except -1:
    if not 0 <= space <= 255:
        raise ValueError("a space is 0..255")
    return 0


cdef int check_key(bytes key) except -1:
    if len(key) > KEY_MAX:
        raise ValueError(f"a key has at most {KEY_MAX} bytes")
    return 0


@cython.final
cdef class Records(Replica):
    """The store. One owner thread.

    Args:
        sink: takes a record of each change before it is made; None: changes are not recorded.
        bytes_max: `bytes_used` is kept at or below this by refusing puts. What replaces an open
            record is let through up to 1/16 more, so that accepted work can always be concluded.
            Replay and load are not refused: what was accepted once stays.
    """

    def __cinit__(self, Sink sink=None, uint64_t bytes_max=1 << 32):
        cdef Entry entry
        assert <unsigned char*> entry.body - <unsigned char*> &entry == ENTRY_HEAD
        if bytes_max < 1 << 16:
            raise ValueError("bytes_max must be at least 64 KiB")
        self._sink = sink
        self.bytes_max = bytes_max
        self._key0 = int.from_bytes(os.urandom(8), "little")
        self._key1 = int.from_bytes(os.urandom(8), "little")
        self._table = new_table(SLOTS_MIN)
        self._mask = SLOTS_MIN - 1

    def __dealloc__(self):
        cdef int space
        for space in range(256):
            free_chain(&self._closed[space])
            free_chain(&self._opened[space])
        free(self._table)

    # -- the table: open addressing, linear probing, deletion by shifting back

    cdef uint64_t _hash(self, int space, const unsigned char* key, size_t n) noexcept:
        return siphash13(self._key0, self._key1, <uint64_t> space, key, n)

    cdef Slot* _find(self, uint64_t hash, int space, const unsigned char* key, size_t n) noexcept:
        """The slot of that key, or the empty slot where it belongs."""
        cdef uint64_t i = hash & self._mask
        cdef Entry* entry
        while True:
            entry = self._table[i].entry
            if entry is NULL or (
                self._table[i].hash == hash
                and space_of(entry) == space
                and key_length(entry) == n
                and memcmp(entry.body + BODY_HEAD, key, n) == 0
            ):
                return &self._table[i]
            i = (i + 1) & self._mask

    cdef int _reserve_slot(self) except -1:
        """Make sure that one more entry leaves the table at most 3/4 full."""
        cdef uint64_t slots = self._mask + 1, mask = 2 * slots - 1, i, k
        cdef Slot* larger
        if 4 * (self._count + 1) <= 3 * slots:
            return 0
        larger = new_table(2 * slots)
        for i in range(slots):
            if self._table[i].entry is not NULL:
                k = self._table[i].hash & mask
                while larger[k].entry is not NULL:
                    k = (k + 1) & mask
                larger[k] = self._table[i]
        free(self._table)
        self._table = larger
        self._mask = mask
        return 0

    cdef int _remove(self, Slot* place) noexcept:
        """Take an entry out of table, chain and sums, and free it."""
        cdef uint64_t hole = place - self._table, i = hole, home
        cdef Entry* entry = place.entry
        unlink(
            &self._opened[space_of(entry)] if is_open(entry) else &self._closed[space_of(entry)],
            entry,
        )
        self._digest -= digest_of(entry)
        self._entry_bytes -= cost(entry.length)
        self._count -= 1
        self._version += 1
        free(entry)
        while True:
            i = (i + 1) & self._mask
            if self._table[i].entry is NULL:
                break
            home = self._table[i].hash & self._mask
            # It may move back to the hole unless its home lies behind the hole.
            if ((i - home) & self._mask) >= ((i - hole) & self._mask):
                self._table[hole] = self._table[i]
                hole = i
        self._table[hole].entry = NULL
        return 0

    cdef int _store(self, Entry* entry, uint64_t hash, Slot* place) noexcept:
        """Put a complete entry into its slot, replacing what is there. Cannot fail."""
        cdef Entry* before = place.entry
        cdef int space = space_of(entry)
        if before is not NULL:
            unlink(&self._opened[space] if is_open(before) else &self._closed[space], before)
            self._digest -= digest_of(before)
            self._entry_bytes -= cost(before.length)
            free(before)
        else:
            self._count += 1
        place.hash = hash
        place.entry = entry
        self._order += 1
        self._version += 1
        entry.order = self._order
        push(&self._opened[space] if is_open(entry) else &self._closed[space], entry)
        self._digest += digest_of(entry)
        self._entry_bytes += cost(entry.length)
        return 0

    # -- puts and gets

    def put(
        self,
        int space,
        bytes key not None,
        bytes value not None,
        *,
        bint open=False,
        uint64_t stamp=0,
    ):
        """Store a value under a key, as the newest of its space.

        Args:
            space: 0..255.
            key: 0..32 bytes.
            value: 0..65,535 bytes.
            open: work in progress; never forgotten.
            stamp: what `forget` compares.

        Raises:
            RecordsFull: it would take too much memory. Nothing has changed.
            JournalFull, JournalFailed: from the sink. Nothing has changed.
        """
        cdef size_t key_n = len(key), value_n = len(value)
        cdef size_t n = BODY_HEAD + key_n + value_n
        cdef const unsigned char* key_p = key
        cdef Entry* entry
        cdef Slot* place
        cdef uint64_t hash
        check_space(space)
        if key_n > KEY_MAX or value_n > VALUE_MAX:
            raise ValueError("a key has at most 32 bytes, a value at most 65535")
        self._reserve_slot()
        hash = self._hash(space, key_p, key_n)
        place = self._find(hash, space, key_p, key_n)
        if self._bytes_used() + cost(n) > self.bytes_max:
            self._check_room(place.entry, n)
        entry = <Entry*> malloc(ENTRY_HEAD + n)
        if entry is NULL:
            raise MemoryError
        entry.length = <uint32_t> n
        entry.body[0] = <uint8_t> space
        entry.body[1] = <uint8_t> ((OPEN if open else 0) | key_n)
        memcpy(entry.body + 2, &stamp, 8)
        memcpy(entry.body + BODY_HEAD, key_p, key_n)
        memcpy(entry.body + BODY_HEAD + key_n, <const unsigned char*> value, value_n)
        if self._sink is not None:
            try:
                self._sink.put(KIND_PUT, entry.body, <Py_ssize_t> n)
            except BaseException:
                free(entry)
                raise
        self._store(entry, hash, place)

    cdef int _check_room(self, Entry* before, size_t n) except -1:
        """Raise RecordsFull unless the put makes the store no larger than it may be."""
        cdef uint64_t after = self._bytes_used() + cost(n), most = self.bytes_max
        if before is not NULL:
            after -= cost(before.length)
            if is_open(before):
                most += most // 16
        if after > most:
            raise RecordsFull(f"the records take {self._bytes_used()} of {self.bytes_max} bytes")
        return 0

    def get(self, int space, bytes key not None):
        """Return the value under a key, or None."""
        cdef const unsigned char* key_p = key
        cdef Entry* entry
        check_space(space)
        check_key(key)
        entry = self._find(self._hash(space, key_p, len(key)), space, key_p, len(key)).entry
        return None if entry is NULL else value_of(entry)

    def meta(self, int space, bytes key not None):
        """Return (open, stamp) of the record under a key, or None."""
        cdef const unsigned char* key_p = key
        cdef Entry* entry
        check_space(space)
        check_key(key)
        entry = self._find(self._hash(space, key_p, len(key)), space, key_p, len(key)).entry
        return None if entry is NULL else (bool(is_open(entry)), stamp_of(entry))

    def delete(self, int space, bytes key not None):
        """Remove the record under a key, open or not; return whether there was one."""
        cdef const unsigned char* key_p = key
        cdef size_t n = len(key)
        cdef unsigned char body[2 + KEY_MAX]
        cdef Slot* place
        check_space(space)
        check_key(key)
        place = self._find(self._hash(space, key_p, n), space, key_p, n)
        if place.entry is NULL:
            return False
        if self._sink is not None:
            body[0] = <uint8_t> space
            body[1] = <uint8_t> n
            memcpy(body + 2, key_p, n)
            self._sink.put(KIND_DELETE, body, <Py_ssize_t> (2 + n))
        self._remove(place)
        return True

    def forget(self, int space, uint64_t before, uint32_t max_count=1000):
        """Drop records that are not open, oldest put first, while their stamp is below `before`.

        Stops at the first one whose stamp is not, and after `max_count`; returns how many went.
        """
        cdef Entry* entry
        cdef uint32_t count = 0
        cdef unsigned char body[5]
        check_space(space)
        entry = self._closed[space].oldest
        while entry is not NULL and count < max_count and stamp_of(entry) < before:
            count += 1
            entry = entry.newer
        if count == 0:
            return 0
        if self._sink is not None:
            body[0] = <uint8_t> space
            memcpy(body + 1, &count, 4)
            self._sink.put(KIND_FORGET, body, 5)
        self._drop_oldest(space, count)
        return count

    cdef int _drop_oldest(self, int space, uint32_t count) noexcept:
        cdef Entry* entry
        cdef const unsigned char* key
        cdef size_t n
        while count:
            entry = self._closed[space].oldest
            key, n = entry.body + BODY_HEAD, key_length(entry)
            self._remove(self._find(self._hash(space, key, n), space, key, n))
            count -= 1
        return 0

    # -- looking around

    def __len__(self):
        return self._count

    def count(self, int space):
        """Return how many records a space has."""
        check_space(space)
        return self._closed[space].count + self._opened[space].count

    def open_count(self, int space):
        """Return how many open records a space has."""
        check_space(space)
        return self._opened[space].count

    def items(self, int space):
        """Iterate over (key, value) of a space in the order of their last put.

        RuntimeError where the store changes meanwhile.
        """
        check_space(space)
        return self._items(space)

    def _items(self, int space):
        cdef Entry* closed = self._closed[space].oldest
        cdef Entry* opened = self._opened[space].oldest
        cdef Entry* entry
        cdef uint64_t version = self._version
        while closed is not NULL or opened is not NULL:
            entry = older_of(closed, opened)
            if entry is closed:
                closed = entry.newer
            else:
                opened = entry.newer
            yield key_of(entry), value_of(entry)
            if self._version != version:
                raise RuntimeError("the records changed during the iteration")

    def open_items(self, int space):
        """Return a list of (key, value) of the open records of a space, oldest put first."""
        cdef Entry* entry
        cdef list found = []
        check_space(space)
        entry = self._opened[space].oldest
        while entry is not NULL:
            found.append((key_of(entry), value_of(entry)))
            entry = entry.newer
        return found

    cdef uint64_t _bytes_used(self) noexcept:
        return self._entry_bytes + (self._mask + 1) * sizeof(Slot)

    @property
    def bytes_used(self):
        """Bytes of memory the records and their table take."""
        return self._bytes_used()

    # -- being a replica

    cdef int replay(self, int kind, const unsigned char* data, Py_ssize_t n) except -1:
        if kind == KIND_PUT:
            return self._replay_put(data, n)
        if kind == KIND_DELETE:
            return self._replay_delete(data, n)
        if kind == KIND_FORGET:
            return self._replay_forget(data, n)
        raise ValueError(f"{kind} is no kind of record of this store")

    cdef int _replay_put(self, const unsigned char* data, Py_ssize_t n) except -1:
        cdef size_t key_n
        cdef uint64_t hash
        cdef Entry* entry
        if n < BODY_HEAD or n > BODY_MAX:
            raise ValueError("a put record of impossible length")
        key_n = data[1] & ~OPEN
        if key_n > KEY_MAX or BODY_HEAD + key_n > <size_t> n or n - BODY_HEAD - key_n > VALUE_MAX:
            raise ValueError("a put record with an impossible key or value")
        self._reserve_slot()
        entry = <Entry*> malloc(ENTRY_HEAD + n)
        if entry is NULL:
            raise MemoryError
        entry.length = <uint32_t> n
        memcpy(entry.body, data, n)
        hash = self._hash(data[0], data + BODY_HEAD, key_n)
        self._store(entry, hash, self._find(hash, data[0], data + BODY_HEAD, key_n))
        return 0

    cdef int _replay_delete(self, const unsigned char* data, Py_ssize_t n) except -1:
        cdef Slot* place
        if n < 2 or data[1] > KEY_MAX or n != 2 + data[1]:
            raise ValueError("a delete record of impossible length")
        place = self._find(self._hash(data[0], data + 2, data[1]), data[0], data + 2, data[1])
        if place.entry is NULL:
            raise ValueError("a delete record for a record that is not there")
        self._remove(place)
        return 0

    cdef int _replay_forget(self, const unsigned char* data, Py_ssize_t n) except -1:
        cdef uint32_t count
        if n != 5:
            raise ValueError("a forget record of impossible length")
        memcpy(&count, data + 1, 4)
        if count > self._closed[data[0]].count:
            raise ValueError("a forget record for more records than there are")
        self._drop_oldest(data[0], count)
        return 0

    def digest(self):
        """Return 64 bits that depend on all records (not on their order) and on nothing else."""
        return self._digest

    def dump(self):
        """Iterate over the whole store as chunks of at most 1 MiB.

        A chunk is a run of (length u32, put record), in the order of the puts within a space; the
        first one begins with a head: "TRNCREC1", count u64, digest u64. RuntimeError where the
        store changes meanwhile.
        """
        cdef int space
        cdef uint64_t version = self._version
        cdef Entry* closed
        cdef Entry* opened
        cdef Entry* entry
        cdef bytearray chunk = bytearray(DUMP_MAGIC)
        chunk += self._count.to_bytes(8, "little") + self._digest.to_bytes(8, "little")
        for space in range(256):
            closed = self._closed[space].oldest
            opened = self._opened[space].oldest
            while closed is not NULL or opened is not NULL:
                entry = older_of(closed, opened)
                if entry is closed:
                    closed = entry.newer
                else:
                    opened = entry.newer
                if len(chunk) + 4 + entry.length > CHUNK:
                    yield bytes(chunk)
                    if self._version != version:
                        raise RuntimeError("the records changed during the dump")
                    chunk = bytearray()
                chunk += (<unsigned char*> &entry.length)[:4]
                chunk += entry.body[: entry.length]
        yield bytes(chunk)

    def load(self, chunks):
        """Fill an empty store from a dump.

        Raises:
            ValueError: it is no dump, whole and sound; the store is then to be thrown away.
        """
        cdef bytes chunk
        cdef const unsigned char* p
        cdef size_t at, end
        cdef uint32_t n
        if self._count:
            raise ValueError("the store is not empty")
        head = None
        for chunk in chunks:
            p = chunk
            at, end = 0, len(chunk)
            if head is None:
                if end < 24 or not chunk.startswith(DUMP_MAGIC):
                    raise ValueError("not a dump of records")
                head = chunk[8:24]
                at = 24
            while at < end:
                if end - at < 4:
                    raise ValueError("a dump with a record cut short")
                memcpy(&n, p + at, 4)
                if n > end - at - 4:
                    raise ValueError("a dump with a record cut short")
                self._replay_put(p + at + 4, n)
                at += 4 + n
        if head is None:
            raise ValueError("not a dump of records")
        if head != self._count.to_bytes(8, "little") + self._digest.to_bytes(8, "little"):
            raise ValueError("the dump does not hold what its head says")
