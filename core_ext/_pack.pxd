"""MessagePack over checked cursors: the records of the flows, read and written without objects.

Written is what msgspec writes, byte for byte: the shortest form of every number and length. Read
is what it may have written, and nothing else: a value of another type turns the cursor `short`, so
a reader takes all its fields and looks once. Texts stay where they are, in the caller's memory.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from core_ext._cursor cimport (
    Cursor, Pen, cursor, left, put, put_u8, put_u16be, put_u32be, put_u64be, take, take_u8,
    take_u16be, take_u32be, take_u64be,
)


cdef struct Text:  # bytes in somebody else's memory; p is NULL where there is no text
    const unsigned char* p
    Py_ssize_t n


cdef inline Text text(const void* p, Py_ssize_t n) noexcept nogil:
    cdef Text t
    t.p = <const unsigned char*> p
    t.n = n
    return t


cdef inline Text nothing() noexcept nogil:
    return text(NULL, 0)


cdef inline bint same(Text a, Text b) noexcept nogil:
    """Not constant time: not for secrets."""
    return a.n == b.n and (a.n == 0 or memcmp(a.p, b.p, a.n) == 0)


cdef inline bint is_text(Text a, const char* b, Py_ssize_t n) noexcept nogil:
    return a.n == n and memcmp(a.p, b, n) == 0


# ---- reading


cdef inline void spoil(Cursor* c) noexcept nogil:
    c.at = c.end
    c.short = True


cdef inline Py_ssize_t take_array(Cursor* c) noexcept nogil:
    """Head of an array: how many values follow."""
    cdef uint8_t head = take_u8(c)
    if head & 0xF0 == 0x90:
        return head & 0x0F
    if head == 0xDC:
        return take_u16be(c)
    spoil(c)
    return 0


cdef inline Py_ssize_t take_map(Cursor* c) noexcept nogil:
    """Head of a map: how many pairs follow."""
    cdef uint8_t head = take_u8(c)
    if head & 0xF0 == 0x80:
        return head & 0x0F
    if head == 0xDE:
        return take_u16be(c)
    spoil(c)
    return 0


cdef inline Text take_bytes_of(Cursor* c, Py_ssize_t n) noexcept nogil:
    cdef const unsigned char* p = take(c, n)
    return text(p, n if p != NULL else 0)


cdef inline Text take_str(Cursor* c) noexcept nogil:
    cdef uint8_t head = take_u8(c)
    if head & 0xE0 == 0xA0:
        return take_bytes_of(c, head & 0x1F)
    if head == 0xD9:
        return take_bytes_of(c, take_u8(c))
    if head == 0xDA:
        return take_bytes_of(c, take_u16be(c))
    spoil(c)
    return nothing()


cdef inline Text take_bin(Cursor* c) noexcept nogil:
    cdef uint8_t head = take_u8(c)
    if head == 0xC4:
        return take_bytes_of(c, take_u8(c))
    if head == 0xC5:
        return take_bytes_of(c, take_u16be(c))
    spoil(c)
    return nothing()


cdef inline uint64_t take_uint(Cursor* c) noexcept nogil:
    """A number that is not negative."""
    cdef uint8_t head = take_u8(c)
    if head < 0x80:
        return head
    if head == 0xCC:
        return take_u8(c)
    if head == 0xCD:
        return take_u16be(c)
    if head == 0xCE:
        return take_u32be(c)
    if head == 0xCF:
        return take_u64be(c)
    spoil(c)
    return 0


cdef inline bint take_bool(Cursor* c) noexcept nogil:
    cdef uint8_t head = take_u8(c)
    if head & 0xFE != 0xC2:
        spoil(c)
    return head == 0xC3


cdef inline void skip(Cursor* c, int values) noexcept nogil:
    """Pass over so many values of any kind, with what they hold."""
    cdef uint64_t open = values
    cdef uint8_t head
    while open and not c.short:
        open -= 1
        head = take_u8(c)
        if head < 0x80 or head >= 0xE0 or head in (0xC0, 0xC2, 0xC3):
            continue
        if head < 0x90:
            open += 2 * (head & 0x0F)
        elif head < 0xA0:
            open += head & 0x0F
        elif head < 0xC0:
            take(c, head & 0x1F)
        elif head in (0xC4, 0xD9):
            take(c, take_u8(c))
        elif head in (0xC5, 0xDA):
            take(c, take_u16be(c))
        elif head in (0xC6, 0xDB):
            take(c, take_u32be(c))
        elif head in (0xCC, 0xD0):
            take(c, 1)
        elif head in (0xCD, 0xD1):
            take(c, 2)
        elif head in (0xCE, 0xD2, 0xCA):
            take(c, 4)
        elif head in (0xCF, 0xD3, 0xCB):
            take(c, 8)
        elif head == 0xDC:
            open += take_u16be(c)
        elif head == 0xDE:
            open += 2 * <uint64_t> take_u16be(c)
        else:  # extensions and 32-bit lengths: nothing of ours
            spoil(c)


# ---- writing


cdef inline void put_array(Pen* w, Py_ssize_t n) noexcept nogil:
    """Head of an array of at most 65,535 values."""
    if n < 16:
        put_u8(w, <uint8_t> (0x90 | n))
    else:
        put_u8(w, 0xDC)
        put_u16be(w, <uint16_t> n)


cdef inline void put_struct(Pen* w, Py_ssize_t fields) noexcept nogil:
    """Head of the map of a message: msgspec counts in two bytes where fields may be left out."""
    put_u8(w, 0xDE)
    put_u16be(w, <uint16_t> fields)


cdef inline void put_str(Pen* w, Text t) noexcept nogil:
    """A text of at most 65,535 bytes."""
    if t.n < 32:
        put_u8(w, <uint8_t> (0xA0 | t.n))
    elif t.n < 256:
        put_u8(w, 0xD9)
        put_u8(w, <uint8_t> t.n)
    else:
        put_u8(w, 0xDA)
        put_u16be(w, <uint16_t> t.n)
    put(w, t.p, t.n)


cdef inline void put_chars(Pen* w, const char* p, Py_ssize_t n) noexcept nogil:
    put_str(w, text(p, n))


cdef inline void put_uint(Pen* w, uint64_t value) noexcept nogil:
    if value < 0x80:
        put_u8(w, <uint8_t> value)
    elif value <= 0xFF:
        put_u8(w, 0xCC)
        put_u8(w, <uint8_t> value)
    elif value <= 0xFFFF:
        put_u8(w, 0xCD)
        put_u16be(w, <uint16_t> value)
    elif value >> 32 == 0:
        put_u8(w, 0xCE)
        put_u32be(w, <uint32_t> value)
    else:
        put_u8(w, 0xCF)
        put_u64be(w, value)


cdef inline void put_bool(Pen* w, bint value) noexcept nogil:
    put_u8(w, 0xC3 if value else 0xC2)


cdef inline void put_decimal(Pen* w, uint64_t value, int digits) noexcept nogil:
    """Not MessagePack: so many ASCII digits, zeros in front; what does not fit is cut off."""
    cdef unsigned char out[20]
    cdef int i = digits
    while i > 0:
        i -= 1
        out[i] = <unsigned char> (48 + value % 10)
        value //= 10
    put(w, out, digits)


cdef inline void put_number(Pen* w, uint64_t value) noexcept nogil:
    """Not MessagePack: ASCII digits, as few as there are."""
    cdef int digits = 1
    cdef uint64_t rest = value // 10
    while rest:
        digits += 1
        rest //= 10
    put_decimal(w, value, digits)


# ---- a record, an array whose fields begin at known places; the last place is its end

cdef inline bint split_array(
    const unsigned char* value, Py_ssize_t n, const unsigned char** at, int fields
) noexcept nogil:
    """Find the places of an array with exactly so many fields: `fields` + 1 of them."""
    cdef Cursor c = cursor(value, n)
    cdef int i
    if take_array(&c) != fields:
        return False
    for i in range(fields):
        at[i] = c.at
        skip(&c, 1)
    at[fields] = c.at
    return not c.short


cdef inline bint field_is(
    const unsigned char** at, int i, const char* wanted, Py_ssize_t n
) noexcept nogil:
    """Whether a field is these bytes."""
    return is_text(text(at[i], at[i + 1] - at[i]), wanted, n)


cdef inline Text text_at(const unsigned char** at, int i) noexcept nogil:
    cdef Cursor c = cursor(at[i], at[i + 1] - at[i])
    return take_str(&c)


cdef inline uint64_t uint_at(const unsigned char** at, int i) noexcept nogil:
    cdef Cursor c = cursor(at[i], at[i + 1] - at[i])
    return take_uint(&c)
