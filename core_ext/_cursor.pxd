"""Checked cursors over raw memory: the only way this project touches bytes from a wire or a file.

`boundscheck` does not cover raw pointers, so every read and write is checked here. A cursor that
was asked for more than there is turns `short`, stays so, and from then on reads zeros and writes
nothing: a decoder may take all its fields first and look at `short` once, at the end.
Everything is `noexcept nogil`; the caller owns the memory and keeps it alive.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset


cdef struct Cursor:
    const unsigned char* at   # the next byte to read
    const unsigned char* end  # one past the last
    bint short                # more was asked for than was there


cdef struct Pen:
    unsigned char* at         # where the next byte goes
    unsigned char* end
    bint short


cdef inline Cursor cursor(const void* data, Py_ssize_t n) noexcept nogil:
    """Read `n` bytes from `data`; a negative n counts as none, and as short."""
    cdef Cursor c
    c.at = <const unsigned char*> data
    c.end = c.at + (n if n > 0 else 0)
    c.short = n < 0
    return c


cdef inline Py_ssize_t left(const Cursor* c) noexcept nogil:
    return c.end - c.at


cdef inline const unsigned char* take(Cursor* c, Py_ssize_t n) noexcept nogil:
    """The next n bytes in place, or NULL where there are fewer."""
    cdef const unsigned char* p = c.at
    if c.short or n < 0 or n > c.end - c.at:
        c.short = True
        c.at = c.end
        return NULL
    c.at += n
    return p


cdef inline bint take_into(Cursor* c, void* out, Py_ssize_t n) noexcept nogil:
    """Copy the next n bytes to `out`; where there are fewer, zero it and return False."""
    cdef const unsigned char* p = take(c, n)
    if p == NULL:
        if n > 0:
            memset(out, 0, n)
        return False
    memcpy(out, p, n)
    return True


cdef inline bint take_exactly(Cursor* c, const void* wanted, Py_ssize_t n) noexcept nogil:
    """Take n bytes; True where they are the wanted ones. Not constant time: not for secrets."""
    cdef const unsigned char* p = take(c, n)
    return p != NULL and memcmp(p, wanted, n) == 0


cdef inline uint8_t take_u8(Cursor* c) noexcept nogil:
    cdef const unsigned char* p = take(c, 1)
    return p[0] if p != NULL else 0


cdef inline uint16_t take_u16be(Cursor* c) noexcept nogil:
    cdef const unsigned char* p = take(c, 2)
    if p == NULL:
        return 0
    return <uint16_t> ((<uint16_t> p[0] << 8) | p[1])


cdef inline uint32_t take_u32be(Cursor* c) noexcept nogil:
    cdef uint32_t high = take_u16be(c)
    return (high << 16) | take_u16be(c)


cdef inline uint64_t take_u64be(Cursor* c) noexcept nogil:
    cdef uint64_t high = take_u32be(c)
    return (high << 32) | take_u32be(c)


cdef inline uint16_t take_u16le(Cursor* c) noexcept nogil:
    cdef const unsigned char* p = take(c, 2)
    if p == NULL:
        return 0
    return <uint16_t> (p[0] | (<uint16_t> p[1] << 8))


cdef inline uint32_t take_u32le(Cursor* c) noexcept nogil:
    cdef uint32_t low = take_u16le(c)
    return low | (<uint32_t> take_u16le(c) << 16)


cdef inline uint64_t take_u64le(Cursor* c) noexcept nogil:
    cdef uint64_t low = take_u32le(c)
    return low | (<uint64_t> take_u32le(c) << 32)


cdef inline int64_t take_i64le(Cursor* c) noexcept nogil:
    return <int64_t> take_u64le(c)


cdef inline Pen pen(void* data, Py_ssize_t n) noexcept nogil:
    """Write at most `n` bytes to `data`."""
    cdef Pen w
    w.at = <unsigned char*> data
    w.end = w.at + (n if n > 0 else 0)
    w.short = n < 0
    return w


cdef inline Py_ssize_t room(const Pen* w) noexcept nogil:
    return w.end - w.at


cdef inline unsigned char* reserve(Pen* w, Py_ssize_t n) noexcept nogil:
    """Room for the next n bytes, or NULL where there is less."""
    cdef unsigned char* p = w.at
    if w.short or n < 0 or n > w.end - w.at:
        w.short = True
        w.end = w.at
        return NULL
    w.at += n
    return p


cdef inline void put(Pen* w, const void* data, Py_ssize_t n) noexcept nogil:
    cdef unsigned char* p = reserve(w, n)
    if p != NULL and n > 0:
        memcpy(p, data, n)


cdef inline void put_u8(Pen* w, uint8_t value) noexcept nogil:
    cdef unsigned char* p = reserve(w, 1)
    if p != NULL:
        p[0] = value


cdef inline void put_u16be(Pen* w, uint16_t value) noexcept nogil:
    cdef unsigned char* p = reserve(w, 2)
    if p != NULL:
        p[0] = <unsigned char> (value >> 8)
        p[1] = <unsigned char> value


cdef inline void put_u32be(Pen* w, uint32_t value) noexcept nogil:
    put_u16be(w, <uint16_t> (value >> 16))
    put_u16be(w, <uint16_t> value)


cdef inline void put_u64be(Pen* w, uint64_t value) noexcept nogil:
    put_u32be(w, <uint32_t> (value >> 32))
    put_u32be(w, <uint32_t> value)


cdef inline void put_u16le(Pen* w, uint16_t value) noexcept nogil:
    cdef unsigned char* p = reserve(w, 2)
    if p != NULL:
        p[0] = <unsigned char> value
        p[1] = <unsigned char> (value >> 8)


cdef inline void put_u32le(Pen* w, uint32_t value) noexcept nogil:
    put_u16le(w, <uint16_t> value)
    put_u16le(w, <uint16_t> (value >> 16))


cdef inline void put_u64le(Pen* w, uint64_t value) noexcept nogil:
    put_u32le(w, <uint32_t> value)
    put_u32le(w, <uint32_t> (value >> 32))
