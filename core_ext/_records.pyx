"""A keyed store of opaque values whose every change is a journal record.

The flows keep their operations here, and the registry its entries. A record lives in a space
(0..255), has a key of up to 32 bytes, a value of up to 65,535 bytes, a stamp of the caller's (a
time, say, for `forget`) and is open or not: an open record is work in progress and is never
forgotten.

Journal records, little-endian:

    64 put     space u8, open << 7 | key length u8, stamp u64, key, value
    65 delete  space u8, key length u8, key
    66 forget  space u8, count u32: the oldest `count` records of the space that are not open

Memory: an entry is 28 bytes and the body of its put record, in a cell of the next
size (`_slabs`); its slot in the index is 13 to 26 bytes. `bytes_used` counts both. A
record with a 16-byte key and a 200-byte value takes 256 bytes, and its slot. No put pays for the
growth of anything: cells lie in slabs, the index doubles bit by bit (`_slabs`, `_table`).

The index is keyed by SipHash-1-3 under a random key, as keys may come from peers; the digest uses
the same function under a fixed key.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from core_ext._sink cimport Replica, Sink
from core_ext._slabs cimport (
    REGION, cell_at, cell_bytes, cell_ref, heap_close, heap_give, heap_open, heap_take,
)
from core_ext._table cimport (
    index_add, index_bytes, index_close, index_drop, index_home, index_open,
)

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
    CHUNK = 1 << 20
    ENTRY_HEAD = 28  # offset of Entry.body
    RECORDS_MAX = 5 << 27  # more than fit: 671 million

cdef bytes DUMP_MAGIC = b"TRNCREC1"


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


cdef inline uint64_t digest_of(const Entry* entry) noexcept nogil:
    return siphash13(
        <uint64_t> 0x74726F6E63616C31, <uint64_t> 0x7265636F72647331, 0, entry.body, entry.length
    )


cdef inline size_t cost(size_t body) noexcept nogil:
    """Bytes of the cell of an entry."""
    return cell_bytes(ENTRY_HEAD + body)


cdef inline int space_of(const Entry* entry) noexcept nogil:
    return entry.body[0]


cdef inline bint is_open(const Entry* entry) noexcept nogil:
    return entry.body[1] & OPEN


cdef inline size_t key_length(const Entry* entry) noexcept nogil:
    return entry.body[1] & ~OPEN


cdef inline uint64_t stamp_of(const Entry* entry) noexcept nogil:
    cdef uint64_t stamp
    memcpy(&stamp, entry.body + 2, 8)
    return stamp


cdef inline bytes key_of(Entry* entry):
    return entry.body[BODY_HEAD : BODY_HEAD + key_length(entry)]


cdef inline bytes value_of(Entry* entry):
    return entry.body[BODY_HEAD + key_length(entry) : entry.length]


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
        if not 1 << 16 <= bytes_max <= <uint64_t> 1 << REGION:
            raise ValueError("bytes_max is 64 KiB to 32 GiB")
        self._sink = sink
        self.bytes_max = bytes_max
        self._key0 = int.from_bytes(os.urandom(8), "little")
        self._key1 = int.from_bytes(os.urandom(8), "little")
        heap_open(&self._heap)
        index_open(&self._index, RECORDS_MAX)

    def __dealloc__(self):
        heap_close(&self._heap)
        index_close(&self._index)

    # -- entries, where they are found and how they hang together

    cdef inline Entry* _at(self, uint32_t ref) noexcept nogil:
        return <Entry*> cell_at(&self._heap, ref)

    cdef uint64_t _tag(self, int space, const unsigned char* key, size_t n) noexcept nogil:
        return siphash13(self._key0, self._key1, <uint64_t> space, key, n) >> 32

    cdef uint64_t* _find(
        self, uint64_t tag, int space, const unsigned char* key, size_t n
    ) noexcept nogil:
        """The slot of that key; one that is 0 where there is none."""
        cdef uint64_t* slot = &self._index.slots[index_home(&self._index, tag)]
        cdef const Entry* entry
        while slot[0]:
            if slot[0] >> 32 == tag:
                entry = self._at(<uint32_t> slot[0])
                if (
                    space_of(entry) == space
                    and key_length(entry) == n
                    and memcmp(entry.body + BODY_HEAD, key, n) == 0
                ):
                    break
            slot += 1
        return slot

    cdef inline Chain* _chain_of(self, const Entry* entry) noexcept nogil:
        cdef int space = space_of(entry)
        return &self._opened[space] if is_open(entry) else &self._closed[space]

    cdef void _push(self, Entry* entry) noexcept nogil:
        """As the newest of its chain."""
        cdef Chain* chain = self._chain_of(entry)
        cdef uint32_t ref = cell_ref(&self._heap, entry)
        entry.older = chain.newest
        entry.newer = 0
        if chain.newest:
            self._at(chain.newest).newer = ref
        else:
            chain.oldest = ref
        chain.newest = ref
        chain.count += 1

    cdef void _unlink(self, const Entry* entry) noexcept nogil:
        cdef Chain* chain = self._chain_of(entry)
        if entry.older:
            self._at(entry.older).newer = entry.newer
        else:
            chain.oldest = entry.newer
        if entry.newer:
            self._at(entry.newer).older = entry.older
        else:
            chain.newest = entry.older
        chain.count -= 1

    cdef Entry* _new(self, size_t n) except NULL:
        """A cell for an entry with a body of n bytes."""
        cdef Entry* entry = NULL
        if self._index.used < RECORDS_MAX:
            entry = <Entry*> heap_take(&self._heap, ENTRY_HEAD + n)
        if entry is NULL:
            raise MemoryError("no address space for another record")
        entry.length = <uint32_t> n
        return entry

    cdef void _take_out(self, Entry* entry) noexcept nogil:
        """Take an entry out of its chain and the sums, and free it; its slot is the caller's."""
        self._unlink(entry)
        self._digest -= entry.digest
        self._entry_bytes -= cost(entry.length)
        heap_give(&self._heap, entry)

    cdef void _remove(self, uint64_t slot) noexcept nogil:
        """Remove the entry that a slot names."""
        index_drop(&self._index, slot >> 32, <uint32_t> slot)
        self._take_out(self._at(<uint32_t> slot))
        self._version += 1

    cdef void _place(self, Entry* entry, uint64_t tag, uint64_t* slot) noexcept nogil:
        """Put a complete entry where `_find` said, replacing what is there. Cannot fail."""
        cdef uint32_t ref = cell_ref(&self._heap, entry)
        if slot[0]:
            self._take_out(self._at(<uint32_t> slot[0]))
            slot[0] = tag << 32 | ref
        else:
            index_add(&self._index, tag, ref)
        self._order += 1
        self._version += 1
        entry.order = self._order
        entry.digest = digest_of(entry)
        self._digest += entry.digest
        self._entry_bytes += cost(entry.length)
        self._push(entry)

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
        check_space(space)
        self.store(<unsigned char> space, key, len(key), value, len(value), open, stamp)

    cdef int store(
        self,
        unsigned char space,
        const unsigned char* key_p,
        Py_ssize_t nkey,
        const unsigned char* value_p,
        Py_ssize_t nvalue,
        bint open,
        uint64_t stamp,
    ) except -1:
        """`put` for native code; raises as it does."""
        cdef size_t key_n = nkey, value_n = nvalue
        cdef size_t n = BODY_HEAD + key_n + value_n
        cdef Entry* entry
        cdef uint64_t* slot
        cdef uint64_t tag
        if key_n > KEY_MAX or value_n > VALUE_MAX:
            raise ValueError("a key has at most 32 bytes, a value at most 65535")
        tag = self._tag(space, key_p, key_n)
        slot = self._find(tag, space, key_p, key_n)
        if self._bytes_used() + cost(n) > self.bytes_max:
            self._check_room(slot, n)
        entry = self._new(n)
        entry.body[0] = <uint8_t> space
        entry.body[1] = <uint8_t> ((OPEN if open else 0) | key_n)
        memcpy(entry.body + 2, &stamp, 8)
        memcpy(entry.body + BODY_HEAD, key_p, key_n)
        memcpy(entry.body + BODY_HEAD + key_n, value_p, value_n)
        if self._sink is not None:
            try:
                self._sink.put(KIND_PUT, entry.body, <Py_ssize_t> n)
            except BaseException:
                heap_give(&self._heap, entry)
                raise
        self._place(entry, tag, slot)
        return 0

    cdef int lookup(
        self,
        unsigned char space,
        const unsigned char* key,
        Py_ssize_t nkey,
        const unsigned char** value,
        Py_ssize_t* nvalue,
    ) noexcept nogil:
        """`get` for native code: 1 and where the value lies until the next change; 0: none."""
        cdef const uint64_t* slot
        cdef Entry* entry
        cdef size_t head
        if not 0 <= nkey <= KEY_MAX:
            return 0
        slot = self._find(self._tag(space, key, nkey), space, key, nkey)
        if slot[0] == 0:
            return 0
        entry = self._at(<uint32_t> slot[0])
        head = BODY_HEAD + key_length(entry)
        value[0] = entry.body + head
        nvalue[0] = <Py_ssize_t> (entry.length - head)
        return 1

    cdef int _check_room(self, const uint64_t* slot, size_t n) except -1:
        """Raise RecordsFull unless the put makes the store no larger than it may be."""
        cdef uint64_t after = self._bytes_used() + cost(n), most = self.bytes_max
        cdef const Entry* before
        if slot[0]:
            before = self._at(<uint32_t> slot[0])
            after -= cost(before.length)
            if is_open(before):
                most += most // 16
        if after > most:
            raise RecordsFull(f"the records take {self._bytes_used()} of {self.bytes_max} bytes")
        return 0

    def get(self, int space, bytes key not None):
        """Return the value under a key, or None."""
        cdef const unsigned char* value
        cdef Py_ssize_t n
        check_space(space)
        check_key(key)
        if not self.lookup(<unsigned char> space, key, len(key), &value, &n):
            return None
        return <bytes> value[:n]

    def meta(self, int space, bytes key not None):
        """Return (open, stamp) of the record under a key, or None."""
        cdef const unsigned char* key_p = key
        cdef const uint64_t* slot
        cdef const Entry* entry
        check_space(space)
        check_key(key)
        slot = self._find(self._tag(space, key_p, len(key)), space, key_p, len(key))
        if slot[0] == 0:
            return None
        entry = self._at(<uint32_t> slot[0])
        return bool(is_open(entry)), stamp_of(entry)

    def delete(self, int space, bytes key not None):
        """Remove the record under a key, open or not; return whether there was one."""
        cdef const unsigned char* key_p = key
        cdef size_t n = len(key)
        cdef unsigned char body[2 + KEY_MAX]
        cdef uint64_t slot
        check_space(space)
        check_key(key)
        slot = self._find(self._tag(space, key_p, n), space, key_p, n)[0]
        if slot == 0:
            return False
        if self._sink is not None:
            body[0] = <uint8_t> space
            body[1] = <uint8_t> n
            memcpy(body + 2, key_p, n)
            self._sink.put(KIND_DELETE, body, <Py_ssize_t> (2 + n))
        self._remove(slot)
        return True

    def forget(self, int space, uint64_t before, uint32_t max_count=1000):
        """Drop records that are not open, oldest put first, while their stamp is below `before`.

        Stops at the first one whose stamp is not, and after `max_count`; returns how many went.
        """
        cdef uint32_t ref, count = 0
        cdef unsigned char body[5]
        check_space(space)
        ref = self._closed[space].oldest
        while ref and count < max_count and stamp_of(self._at(ref)) < before:
            count += 1
            ref = self._at(ref).newer
        if count == 0:
            return 0
        if self._sink is not None:
            body[0] = <uint8_t> space
            memcpy(body + 1, &count, 4)
            self._sink.put(KIND_FORGET, body, 5)
        self._drop_oldest(space, count)
        return count

    cdef void _drop_oldest(self, int space, uint32_t count) noexcept nogil:
        cdef Entry* entry
        cdef const unsigned char* key
        cdef size_t n
        while count:
            entry = self._at(self._closed[space].oldest)
            key, n = entry.body + BODY_HEAD, key_length(entry)
            self._remove(self._find(self._tag(space, key, n), space, key, n)[0])
            count -= 1

    # -- looking around

    def __len__(self):
        return self._index.used

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
        cdef uint32_t closed = self._closed[space].oldest
        cdef uint32_t opened = self._opened[space].oldest
        cdef Entry* entry
        cdef uint64_t version = self._version
        while closed or opened:
            entry = self._older(closed, opened)
            if is_open(entry):
                opened = entry.newer
            else:
                closed = entry.newer
            yield key_of(entry), value_of(entry)
            if self._version != version:
                raise RuntimeError("the records changed during the iteration")

    def open_items(self, int space):
        """Return a list of (key, value) of the open records of a space, oldest put first."""
        cdef uint32_t ref
        cdef list found = []
        check_space(space)
        ref = self._opened[space].oldest
        while ref:
            found.append((key_of(self._at(ref)), value_of(self._at(ref))))
            ref = self._at(ref).newer
        return found

    cdef Entry* _older(self, uint32_t a, uint32_t b) noexcept nogil:
        """Whichever was put first; one of them may be missing."""
        if a == 0 or (b and self._at(b).order < self._at(a).order):
            return self._at(b)
        return self._at(a)

    cdef uint64_t _bytes_used(self) noexcept nogil:
        return self._entry_bytes + index_bytes(&self._index)

    @property
    def bytes_used(self):
        """Bytes of memory the records and their index take."""
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
        cdef uint64_t tag
        cdef Entry* entry
        if n < BODY_HEAD or n > BODY_MAX:
            raise ValueError("a put record of impossible length")
        key_n = data[1] & ~OPEN
        if key_n > KEY_MAX or BODY_HEAD + key_n > <size_t> n or n - BODY_HEAD - key_n > VALUE_MAX:
            raise ValueError("a put record with an impossible key or value")
        entry = self._new(n)
        memcpy(entry.body, data, n)
        tag = self._tag(data[0], data + BODY_HEAD, key_n)
        self._place(entry, tag, self._find(tag, data[0], data + BODY_HEAD, key_n))
        return 0

    cdef int _replay_delete(self, const unsigned char* data, Py_ssize_t n) except -1:
        cdef uint64_t slot
        if n < 2 or data[1] > KEY_MAX or n != 2 + data[1]:
            raise ValueError("a delete record of impossible length")
        slot = self._find(self._tag(data[0], data + 2, data[1]), data[0], data + 2, data[1])[0]
        if slot == 0:
            raise ValueError("a delete record for a record that is not there")
        self._remove(slot)
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
        cdef uint32_t closed, opened
        cdef Entry* entry
        cdef bytearray chunk = bytearray(DUMP_MAGIC)
        chunk += self._index.used.to_bytes(8, "little") + self._digest.to_bytes(8, "little")
        for space in range(256):
            closed = self._closed[space].oldest
            opened = self._opened[space].oldest
            while closed or opened:
                entry = self._older(closed, opened)
                if is_open(entry):
                    opened = entry.newer
                else:
                    closed = entry.newer
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
        if self._index.used:
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
        if head != self._index.used.to_bytes(8, "little") + self._digest.to_bytes(8, "little"):
            raise ValueError("the dump does not hold what its head says")
