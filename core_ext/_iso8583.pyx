"""ISO 8583 messages: compiled layouts, one checked pass to an index of offsets, lazy values.

    MTI | bitmap, 8 bytes | second bitmap, where bit 1 of the first is set | elements in order

A `Layout` is the compiled form of a dialect. `decode` walks the whole message once, without making
an object per element, and leaves a `Message`: the received bytes and where each element begins and
ends in them. Values are made when asked for. An answer, or a message passed on, is spliced from the
received bytes and the elements that change.

Nothing is believed of a peer's lengths: every one is compared with the layout and with the bytes
that are there before it is used, nothing is allocated by it, and nesting ends at `PATH_MAX`.

Objects belong to one thread at a time. `scan`, `value_at`, `tag_at` and `splice` of the C interface
need neither the GIL nor an object.
"""

from collections.abc import Mapping

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next, PyDict_SetItem
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from core_ext._cursor cimport Cursor, Pen, cursor, left, pen, put, put_u8, reserve, take

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    int PyUnicode_KIND(object text)
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    object PyUnicode_DecodeLatin1(const char* p, Py_ssize_t n, const char* errors)

cdef extern from *:
    object __Pyx_PyDict_NewPresized(Py_ssize_t n)  # Cython's own, plain where CPython has it not


cdef extern from *:
    """
    #define leading_zeros(x) __builtin_clzll(x)
    #define ones(x) __builtin_popcountll(x)
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define big_endian(x) __builtin_bswap64(x)
    #else
    #define big_endian(x) (x)
    #endif
    """
    int leading_zeros(uint64_t x) nogil
    int ones(uint64_t x) nogil
    uint64_t big_endian(uint64_t x) nogil


# ------------------------------------------------------------------------------------------ words

cdef enum Shape:
    UNDEFINED = 0
    PLAIN = 1
    POSITIONAL = 2
    TLV = 3                       # tag and length as characters
    BER = 4
    BITMAPPED = 5

cdef enum Encoding:
    ASCII = 0
    EBCDIC = 1
    BCD = 2
    BINARY = 3
    HEX = 4
    EBCDIC_HEX = 5

cdef enum Class:                  # what a character belongs to
    DIGIT = 1
    LETTER = 2
    SPACE = 4
    SPECIAL = 8                   # the rest of printable ASCII
    TRACK = 16                    # digits and what separates them: : ; < = > ? D
    LATIN = 32                    # printable, beyond ASCII
    OTHER = 64                    # all that is left
    PRINTABLE = 15                # of ASCII

cdef enum Quick:                  # values that are looked at eight characters at a time
    NOT_QUICK = 0
    ASCII_DIGITS = 1
    ASCII_PRINTABLE = 2
    EBCDIC_DIGITS = 3

cdef enum Counts:                 # what a prefix counts
    UNITS = 0                     # digits of BCD, characters of text, bytes of the rest
    BYTES = 1                     # of BCD
    NIBBLES = 2                   # of bytes: two to each

cdef enum Odd:
    LEFT_0 = 0
    RIGHT_0 = 1
    LEFT_F = 2
    RIGHT_F = 3

cdef enum Pad:
    PAD_NONE = 0
    PAD_LEFT = 1
    PAD_RIGHT = 2

cdef enum Mask:
    SHOWN = 0
    HIDDEN = 1
    PAN = 2
    TAIL = 3

cdef enum Mode:
    WHOLE = 0                     # a message with its MAC element, if any is given
    FOR_MAC = 1                   # up to the MAC element, its bit set
    ANSWER = 2
    FORWARD = 4

cdef enum Reason:
    CUT = 1
    TRAILING = 2
    TOO_LONG = 3
    BAD_MTI = 4
    BAD_BITMAP = 5
    NOT_DEFINED = 6
    BAD_LENGTH = 7
    LENGTH_TOO_GREAT = 8
    LENGTH_TOO_SMALL = 9
    LENGTH_NOT_SHORTEST = 10
    BAD_CHARACTER = 11
    BAD_DIGIT = 12
    BAD_FILLER = 13
    BAD_SIGN = 14
    LEFT_OVER = 15
    BAD_TAG = 16
    UNKNOWN_TAG = 17
    REPEATED_TAG = 18
    TOO_DEEP = 19
    NESTED_CUT = 20

REASONS = {
    CUT: "the message ends inside it",
    TRAILING: "bytes follow the last element",
    TOO_LONG: "the message is too long",
    BAD_MTI: "the message type is not four digits",
    BAD_BITMAP: "the bitmap is not hexadecimal",
    NOT_DEFINED: "the dialect does not define it",
    BAD_LENGTH: "its length is not a number",
    LENGTH_TOO_GREAT: "its length is above the most",
    LENGTH_TOO_SMALL: "its length is below the least",
    LENGTH_NOT_SHORTEST: "its length is not in the shortest form",
    BAD_CHARACTER: "wrong character",
    BAD_DIGIT: "wrong digit",
    BAD_FILLER: "wrong filler",
    BAD_SIGN: "wrong sign",
    LEFT_OVER: "bytes follow its last part",
    BAD_TAG: "wrong tag",
    UNKNOWN_TAG: "the dialect does not define this tag",
    REPEATED_TAG: "the tag is repeated",
    TOO_DEEP: "nested too deep",
    NESTED_CUT: "it ends inside a part",
}

_SHAPES = {
    "plain": PLAIN, "positional": POSITIONAL, "tlv": TLV, "ber-tlv": BER, "bitmapped": BITMAPPED,
}
_ENCODINGS = {
    "ascii": ASCII, "ebcdic": EBCDIC, "bcd": BCD, "binary": BINARY, "hex": HEX,
    "ebcdic-hex": EBCDIC_HEX,
}
_CONTENTS = {
    "n": DIGIT, "a": LETTER, "an": DIGIT | LETTER, "ans": DIGIT | LETTER | SPACE | SPECIAL,
    "z": DIGIT | TRACK, "x+n": DIGIT, "b": 0, "any": 127,
}
_COUNTS = {"units": UNITS, "bytes": BYTES, "nibbles": NIBBLES}
_ODDS = {"left-0": LEFT_0, "right-0": RIGHT_0, "left-f": LEFT_F, "right-f": RIGHT_F}
_PADS = {"none": PAD_NONE, "left": PAD_LEFT, "right": PAD_RIGHT}
_MASKS = {"shown": SHOWN, "hidden": HIDDEN, "pan": PAN, "tail": TAIL}

cdef enum:
    STACK_BYTES = 4096            # a message is built here first, in more room only if it must be
    VALUE_BYTES = 1024            # values up to here are translated on the stack
    EBCDIC_ZONE = 0xC0            # between digits of ASCII and of every EBCDIC code page
    NOT_AN_ELEMENT = -1
    DOTTED = -2

cdef const char* DECIMAL = "0123456789ABCDEF"


# ------------------------------------------------------------------------------------- the checks

cdef inline uint64_t load(const unsigned char* p) noexcept nogil:
    cdef uint64_t w
    memcpy(&w, p, 8)
    return w


cdef inline bint all_digits(const unsigned char* p, Py_ssize_t n, uint8_t zone) noexcept nogil:
    """True where n bytes are digits, in ASCII (zone 0) or EBCDIC (zone 0xC0); eight at a time."""
    cdef uint64_t zones = zone * <uint64_t> 0x0101010101010101
    cdef uint64_t bad = 0, w
    cdef Py_ssize_t i = 0
    while i + 8 <= n:
        w = load(p + i) ^ zones
        # A digit plus 0x46 stays below 0x80, less 0x30 does not borrow; nothing else does both.
        bad |= (w + <uint64_t> 0x4646464646464646) | (w - <uint64_t> 0x3030303030303030)
        bad |= w
        i += 8
    bad &= <uint64_t> 0x8080808080808080
    while i < n:
        bad |= not 48 <= p[i] ^ zone <= 57
        i += 1
    return bad == 0


cdef inline bint all_printable(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """True where n bytes are printable ASCII, 0x20 to 0x7E; eight at a time."""
    cdef uint64_t bad = 0, w
    cdef Py_ssize_t i = 0
    while i + 8 <= n:
        w = load(p + i)
        bad |= w | (w + <uint64_t> 0x0101010101010101) | (w - <uint64_t> 0x2020202020202020)
        i += 8
    bad &= <uint64_t> 0x8080808080808080
    while i < n:
        bad |= not 32 <= p[i] <= 126
        i += 1
    return bad == 0


cdef inline bint quickly(const Field* f, const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """True where a value is surely right; where not, `check_value` knows."""
    if f.quick == ASCII_DIGITS:
        return all_digits(p, n, 0)
    if f.quick == ASCII_PRINTABLE:
        return all_printable(p, n)
    return f.quick == EBCDIC_DIGITS and all_digits(p, n, EBCDIC_ZONE)


cdef Py_ssize_t wrong_character(
    const Alphabet* a, uint8_t classes, const unsigned char* p, Py_ssize_t n,
) noexcept nogil:
    """Where the first character stands that the classes do not allow; n: nowhere."""
    cdef Py_ssize_t i
    for i in range(n):
        if not a.classes[p[i]] & classes:
            return i
    return n


cdef inline const Alphabet* alphabet(const Program* g, uint8_t encoding) noexcept nogil:
    return &g.ebcdic if encoding == EBCDIC or encoding == EBCDIC_HEX else &g.ascii


cdef inline Py_ssize_t wire_bytes(const Field* f, Py_ssize_t units) noexcept nogil:
    """Bytes that a value of so many units has on the wire."""
    if f.encoding <= EBCDIC or f.encoding == BINARY:
        return units
    if f.encoding == BCD:
        return 1 + (units >> 1) if f.signed_ else (units + 1) >> 1
    return 2 * units


cdef inline Py_ssize_t text_bytes(
    const Field* f, const unsigned char** p, Py_ssize_t n,
) noexcept nogil:
    """Bytes of a value without its padding; moves `p` behind that of the left side."""
    if f.pad == PAD_RIGHT:
        while n > 0 and p[0][n - 1] == f.fill:
            n -= 1
    elif f.pad == PAD_LEFT:
        while n > 0 and p[0][0] == f.fill:
            p[0] += 1
            n -= 1
    return n


cdef inline int fault(Index* x, int reason, const unsigned char* at) noexcept nogil:
    x.offset = <uint32_t> (at - x.data)
    return reason


cdef int check_text(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, Index* x,
) noexcept nogil:
    cdef const Alphabet* a = alphabet(g, f.encoding)
    cdef Py_ssize_t at
    if quickly(f, p, n):
        return SOUND
    if f.pad:
        n = text_bytes(f, &p, n)
    if f.signed_:
        if n == 0 or not g.signs[a.latin[p[0]]]:
            return fault(x, BAD_SIGN, p)
        p += 1
        n -= 1
    at = wrong_character(a, f.classes, p, n)
    return SOUND if at == n else fault(x, BAD_CHARACTER, p + at)


cdef int check_bcd(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, uint32_t digits,
    Index* x,
) noexcept nogil:
    """Digits in nibbles, and the filler where their number is odd."""
    cdef uint8_t wanted = 2 if f.classes & TRACK else 1
    cdef uint8_t filler, byte
    cdef Py_ssize_t i
    cdef bint on_left = f.odd == LEFT_0 or f.odd == LEFT_F
    if f.signed_:
        if not g.signs[p[0]]:
            return fault(x, BAD_SIGN, p)
        p += 1
        n -= 1
        digits -= 1
    if digits & 1:
        i = 0 if on_left else n - 1
        filler = p[i] >> 4 if on_left else p[i] & 15
        byte = p[i] & 15 if on_left else p[i] & 240
        if filler != (0 if f.odd <= RIGHT_0 else 15) and not g.tolerate_filler:
            return fault(x, BAD_FILLER, p + i)
        if not g.bcd[byte] & wanted:
            return fault(x, BAD_DIGIT, p + i)
        if on_left:
            p += 1
        n -= 1
    for i in range(n):
        if not g.bcd[p[i]] & wanted:
            return fault(x, BAD_DIGIT, p + i)
    return SOUND


cdef int check_hex(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, Index* x,
) noexcept nogil:
    cdef const Alphabet* a = alphabet(g, f.encoding)
    cdef Py_ssize_t i
    for i in range(n):
        if a.hexes[p[i]] == 255:
            return fault(x, BAD_CHARACTER, p + i)
    return SOUND


cdef inline Py_ssize_t number_in(
    const Program* g, uint8_t encoding, const unsigned char* p, int n,
) noexcept nogil:
    """A length of n bytes; -1 where it is not a number."""
    cdef const Alphabet* a = alphabet(g, encoding)
    cdef Py_ssize_t value = 0
    cdef int i
    for i in range(n):
        if encoding == BINARY:
            value = value << 8 | p[i]
        elif encoding == BCD:
            if not g.bcd[p[i]] & 1:
                return -1
            value = value * 100 + (p[i] >> 4) * 10 + (p[i] & 15)
        else:
            if a.digits[p[i]] > 9:
                return -1
            value = value * 10 + a.digits[p[i]]
    return value


cdef inline Py_ssize_t digits_of(
    const Field* f, const unsigned char* p, Py_ssize_t n,
) noexcept nogil:
    """Digits of a BCD value of n bytes: a filler F tells an odd number, and nothing a filler 0."""
    if n > 0 and f.odd == LEFT_F and p[0] >> 4 == 15:
        return 2 * n - 1
    if n > 0 and f.odd == RIGHT_F and p[n - 1] & 15 == 15:
        return 2 * n - 1
    return 2 * n


cdef inline Py_ssize_t units_of(
    const Field* f, Py_ssize_t counted, const unsigned char* p, Py_ssize_t n,
) noexcept nogil:
    """Units of a value whose prefix says `counted`, n bytes being there; -1: it cannot be that."""
    if f.counts == UNITS:
        return counted
    if f.counts == NIBBLES:
        return counted >> 1 if not counted & 1 else -1
    return digits_of(f, p, counted) if counted <= n else 2 * counted


cdef inline int take_field(
    const Program* g, const Field* f, Cursor* c, Index* x, const unsigned char** value,
    uint32_t* units,
) noexcept nogil:
    """Read a prefix and pass over the value, whatever is in it."""
    cdef const unsigned char* p
    cdef Py_ssize_t n
    if f.fixed:
        n = f.most
    elif f.prefix_bytes:
        value[0] = c.at
        p = take(c, f.prefix_bytes)
        if p == NULL:
            return fault(x, CUT, value[0])
        n = number_in(g, f.prefix_encoding, p, f.prefix_bytes)
        if n < 0:
            return fault(x, BAD_LENGTH, p)
        n = units_of(f, n, c.at, left(c))
        if n < 0:
            return fault(x, BAD_LENGTH, p)
        if n > f.most:
            return fault(x, LENGTH_TOO_GREAT, p)
        if n < f.least:
            return fault(x, LENGTH_TOO_SMALL, p)
    else:                         # the last part: all that is left
        n = left(c)
        if f.encoding == BCD:
            n = digits_of(f, c.at, n)
        elif f.encoding >= HEX:
            n = n >> 1 if not n & 1 else -1
        if n < <Py_ssize_t> f.least:
            return fault(x, LENGTH_TOO_SMALL, c.at)
        if n > f.most:
            return fault(x, LENGTH_TOO_GREAT, c.at)
    units[0] = <uint32_t> n
    value[0] = c.at
    if take(c, wire_bytes(f, n)) == NULL:
        return fault(x, CUT, value[0])
    return SOUND


cdef int check_value(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, uint32_t units,
    int depth, Index* x,
) noexcept nogil:
    """Look at every byte of a value. `depth` components of the path lead to it."""
    if f.shape == PLAIN:
        if f.encoding <= EBCDIC:
            return check_text(g, f, p, n, x)
        if f.encoding == BCD:
            return check_bcd(g, f, p, n, units, x)
        if f.encoding == BINARY:
            return SOUND
        return check_hex(g, f, p, n, x)
    if depth >= PATH_MAX:
        return fault(x, TOO_DEEP, p)
    if f.shape == TLV:
        return check_tlv(g, f, p, n, depth, x)
    if f.shape == BER:
        return check_ber(g, f, p, n, depth, x)
    return check_parts(g, f, p, n, depth, x)


cdef inline void enter(Index* x, int depth, uint32_t component, int tag_bytes) noexcept nogil:
    x.path[depth] = component
    x.path_tag_bytes[depth] = <uint8_t> tag_bytes
    x.depth = depth + 1


cdef int check_part(
    const Program* g, const Field* f, Cursor* c, int depth, Index* x,
) noexcept nogil:
    """One part that stands by position, under the cursor."""
    cdef const unsigned char* p = NULL
    cdef uint32_t units = 0
    cdef int reason
    enter(x, depth, f.number, 0)
    reason = take_field(g, f, c, x, &p, &units)
    if reason == SOUND:
        reason = check_value(g, f, p, c.at - p, units, depth + 1, x)
    elif reason == CUT:
        reason = NESTED_CUT
    if reason == SOUND:
        x.depth = depth
    return reason


cdef int check_parts(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, int depth, Index* x,
) noexcept nogil:
    """Positional parts, or those that a bitmap announces."""
    cdef Cursor c = cursor(p, n)
    cdef uint64_t bits = ~(<uint64_t> 0)
    cdef int i, reason
    if f.shape == BITMAPPED and not take_bitmap(g, f.bitmap_encoding, f.bitmap_bytes, &c, &bits):
        return fault(x, NESTED_CUT if c.short else BAD_BITMAP, p)
    for i in range(f.children_count):
        if f.shape == BITMAPPED:
            if not bits >> (64 - f.children[i].number) & 1:
                continue
            bits &= ~((<uint64_t> 1) << (64 - f.children[i].number))
        elif f.children[i].optional and left(&c) == 0:
            return SOUND
        reason = check_part(g, &f.children[i], &c, depth, x)
        if reason != SOUND:
            return reason
    if f.shape == BITMAPPED and bits:
        enter(x, depth, leading_zeros(bits) + 1, 0)
        return fault(x, NOT_DEFINED, c.at)
    return SOUND if left(&c) == 0 else fault(x, LEFT_OVER, c.at)


cdef inline bint take_bitmap(
    const Program* g, uint8_t encoding, int n, Cursor* c, uint64_t* bits,
) noexcept nogil:
    """Read a bitmap of n bytes, highest bit first; False where it is cut or not hexadecimal."""
    cdef const unsigned char* p = take(c, n if encoding == BINARY else 2 * n)
    cdef const Alphabet* a
    cdef uint64_t w = 0
    cdef int i
    if p == NULL:
        return False
    if encoding == BINARY:
        if n == 8:
            bits[0] = big_endian(load(p))
            return True
        for i in range(n):
            w = w << 8 | p[i]
    else:
        a = alphabet(g, encoding)
        for i in range(2 * n):
            if a.hexes[p[i]] == 255:
                return False
            w = w << 4 | a.hexes[p[i]]
    bits[0] = w << (64 - 8 * n)
    return True


cdef const Field* child_of(const Field* f, uint32_t tag, int tag_bytes) noexcept nogil:
    cdef int i
    for i in range(f.children_count):
        if f.children[i].own_tag == tag and f.children[i].own_tag_bytes == tag_bytes:
            return &f.children[i]
    return NULL


cdef inline int next_tlv(const Program* g, const Field* f, Cursor* c, Index* x,
                         Tagged* t) noexcept nogil:
    """Read a tag and length in characters, and pass over the value."""
    cdef const unsigned char* first = c.at
    cdef const unsigned char* p = take(c, f.tag_bytes)
    cdef int i
    if p == NULL:
        return fault(x, NESTED_CUT, first)
    for i in range(f.tag_bytes):
        if not alphabet(g, f.encoding).classes[p[i]] & (DIGIT | LETTER):
            return fault(x, BAD_TAG, p)
    t.tag = pack_tag(p, f.tag_bytes)
    t.tag_bytes = f.tag_bytes
    t.constructed = False
    p = take(c, f.length_bytes)
    if p == NULL:
        return fault(x, NESTED_CUT, first)
    t.n = number_in(g, f.length_encoding, p, f.length_bytes)
    if t.n < 0:
        return fault(x, BAD_LENGTH, p)
    t.value = take(c, t.n)
    return SOUND if t.value != NULL else fault(x, NESTED_CUT, p)


cdef inline int next_ber(const Program* g, const Field* f, Cursor* c, Index* x,
                         Tagged* t) noexcept nogil:
    """Read a BER tag of up to four bytes and a definite length, and pass over the value."""
    cdef const unsigned char* first = take(c, 1)
    cdef const unsigned char* p
    cdef int n
    if first == NULL:
        return fault(x, NESTED_CUT, c.at)
    t.tag = first[0]
    t.tag_bytes = 1
    t.constructed = first[0] >> 5 & 1
    if first[0] == 0 or first[0] == 255:
        return fault(x, BAD_TAG, first)
    if first[0] & 31 == 31:
        while True:
            p = take(c, 1)
            if p == NULL:
                return fault(x, NESTED_CUT, first)
            if t.tag_bytes == 4 or (t.tag_bytes == 1 and p[0] == 128):
                return fault(x, BAD_TAG, first)
            t.tag = t.tag << 8 | p[0]
            t.tag_bytes += 1
            if p[0] < 128:
                break
    p = take(c, 1)
    if p == NULL:
        return fault(x, NESTED_CUT, first)
    t.n = p[0]
    if p[0] > 127:
        n = p[0] & 127
        if n == 0 or n > 3:
            return fault(x, BAD_LENGTH, p)
        first = p
        p = take(c, n)
        if p == NULL:
            return fault(x, NESTED_CUT, first)
        t.n = number_in(g, BINARY, p, n)
        if not g.tolerate_lengths and (t.n < 128 or p[0] == 0):
            return fault(x, LENGTH_NOT_SHORTEST, first)
    t.value = take(c, t.n)
    return SOUND if t.value != NULL else fault(x, NESTED_CUT, p)


cdef inline Py_ssize_t tagged_units(const Field* f, const unsigned char* p,
                                    Py_ssize_t n) noexcept nogil:
    """Units of a tagged value of n bytes; -1: none has so many."""
    if f.encoding <= EBCDIC or f.encoding == BINARY or f.shape != PLAIN:
        return n
    if f.encoding == BCD:
        return digits_of(f, p, n)
    return n >> 1 if not n & 1 else -1


cdef int check_tagged(
    const Program* g, const Field* f, const Tagged* t, int depth, Index* x, uint64_t* seen,
) noexcept nogil:
    """A value by its tag: known, or kept as it is and counted."""
    cdef const Field* kid = child_of(f, t.tag, t.tag_bytes)
    cdef Py_ssize_t units, which
    enter(x, depth, t.tag, t.tag_bytes)
    if kid == NULL:
        if not f.keep_unknown:
            return fault(x, UNKNOWN_TAG, t.value)
        x.unknown += 1
        if t.constructed:
            return check_ber(g, f, t.value, t.n, depth + 1, x)
        return SOUND
    which = kid - f.children
    if not kid.repeatable and seen[which >> 6] >> (which & 63) & 1:
        return fault(x, REPEATED_TAG, t.value)
    seen[which >> 6] |= (<uint64_t> 1) << (which & 63)
    units = tagged_units(kid, t.value, t.n)
    if units < <Py_ssize_t> kid.least:
        return fault(x, LENGTH_TOO_SMALL, t.value)
    if units > kid.most:
        return fault(x, LENGTH_TOO_GREAT, t.value)
    return check_value(g, kid, t.value, t.n, <uint32_t> units, depth + 1, x)


cdef int check_tlv(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, int depth, Index* x,
) noexcept nogil:
    cdef Cursor c = cursor(p, n)
    cdef uint64_t seen[4]
    cdef Tagged t
    cdef int reason = SOUND
    memset(seen, 0, sizeof(seen))
    while left(&c) and reason == SOUND:
        reason = next_tlv(g, f, &c, x, &t)
        if reason == SOUND:
            reason = check_tagged(g, f, &t, depth, x, seen)
            x.depth = depth if reason == SOUND else x.depth
    return reason


cdef int check_ber(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, int depth, Index* x,
) noexcept nogil:
    cdef Cursor c = cursor(p, n)
    cdef uint64_t seen[4]
    cdef Tagged t
    cdef int reason = SOUND
    if depth >= PATH_MAX:
        return fault(x, TOO_DEEP, p)
    memset(seen, 0, sizeof(seen))
    while left(&c) and reason == SOUND:
        reason = next_ber(g, f, &c, x, &t)
        if reason == SOUND:
            reason = check_tagged(g, f, &t, depth, x, seen)
            x.depth = depth if reason == SOUND else x.depth
    return reason


# --------------------------------------------------------------------------------------- the pass

cdef inline int take_mti(const Program* g, Cursor* c, Index* x) noexcept nogil:
    cdef const Alphabet* a = alphabet(g, g.mti_encoding)
    cdef const unsigned char* p
    cdef int i
    if g.mti_encoding == BCD:
        p = take(c, 2)
        if p == NULL:
            return fault(x, CUT, x.data)
        if not g.bcd[p[0]] & g.bcd[p[1]] & 1:
            return fault(x, BAD_MTI, p)
        for i in range(4):
            x.mti[i] = <char> (48 + (p[i >> 1] >> (4 if not i & 1 else 0) & 15))
        return SOUND
    p = take(c, 4)
    if p == NULL:
        return fault(x, CUT, x.data)
    for i in range(4):
        if a.digits[p[i]] > 9:
            return fault(x, BAD_MTI, p + i)
        x.mti[i] = <char> (48 + a.digits[p[i]])
    return SOUND


cdef inline int take_bitmaps(const Program* g, Cursor* c, Index* x) noexcept nogil:
    """The bitmaps in front of the elements."""
    cdef const unsigned char* p
    cdef int most = g.bitmap_words_fixed
    cdef int wire = 8 if g.bitmap_encoding == BINARY else 16
    if most == 0:
        most = 3 if g.tertiary == 1 else 2
    x.words = 0
    while x.words < most:
        p = c.at
        if not take_bitmap(g, g.bitmap_encoding, 8, c, &x.bits[x.words]):
            return fault(x, CUT if c.short else BAD_BITMAP, p)
        x.words += 1
        if not g.bitmap_words_fixed and not x.bits[x.words - 1] >> 63:
            break
    return SOUND


cdef inline uint64_t announced(const Program* g, const Index* x, int word) noexcept nogil:
    """The elements of one bitmap, without the bit that announces the next."""
    cdef uint64_t bits = x.bits[word]
    if not g.bitmap_words_fixed and (word == 0 or (word == 1 and g.tertiary)):
        bits &= ~((<uint64_t> 1) << 63)
    return bits


cdef int walk(const Program* g, Cursor* c, Index* x, bint deep) noexcept nogil:
    """The elements after the bitmaps. Not `deep`: only where they are, not what is in them."""
    cdef const unsigned char* p = NULL
    cdef const Field* f
    cdef uint64_t bits
    cdef uint32_t units = 0
    cdef int word = 0, number, reason
    while word < x.words:
        if word == 1 and g.tertiary == 2 and x.bits[1] >> 63:
            enter(x, 0, 65, 0)
            p = c.at
            if not take_bitmap(g, g.bitmap_encoding, 8, c, &x.bits[2]):
                return fault(x, CUT if c.short else BAD_BITMAP, p)
            x.words = 3
        bits = x.bits[word] = announced(g, x, word)
        while bits:
            number = leading_zeros(bits)
            bits &= ~((<uint64_t> 1) << (63 - number))
            number += 64 * word + 1
            f = &g.root[number]
            enter(x, 0, number, 0)
            if f.shape == UNDEFINED:
                return fault(x, NOT_DEFINED, c.at)
            reason = take_field(g, f, c, x, &p, &units)
            if reason != SOUND:
                return reason
            if deep and not quickly(f, p, c.at - p):
                reason = check_value(g, f, p, c.at - p, units, 1, x)
                if reason != SOUND:
                    return reason
            x.entries[x.count].start = <uint32_t> (p - x.data)
            x.entries[x.count].end = <uint32_t> (c.at - x.data)
            x.entries[x.count].units = units
            x.count += 1
        word += 1
    x.depth = 0
    return SOUND


cdef int scan_from(
    const Program* g, Cursor* c, Index* x, bint deep, bint to_the_end,
) noexcept nogil:
    cdef int reason
    x.data = c.at
    x.n = left(c)
    x.bits[0] = x.bits[1] = x.bits[2] = 0
    x.count = 0
    x.words = 0
    x.unknown = 0
    x.body = 0
    x.depth = 0
    x.mti[0] = 0
    reason = take_mti(g, c, x)
    if reason != SOUND:
        x.mti[0] = 0
        return reason
    reason = take_bitmaps(g, c, x)
    if reason != SOUND:
        x.bits[0] = x.bits[1] = x.bits[2] = 0
        return reason
    x.body = <uint32_t> (c.at - x.data)
    reason = walk(g, c, x, deep)
    if reason == SOUND and to_the_end and left(c):
        return fault(x, TRAILING, c.at)
    return reason


cdef int scan(const Program* g, const unsigned char* p, Py_ssize_t n, Index* out) noexcept nogil:
    """Check a whole message and index it; SOUND, or the reason why not (see `out`)."""
    cdef Cursor c = cursor(p, n)
    if n > g.message_bytes_max:
        c = cursor(p, 0)
        scan_from(g, &c, out, True, True)
        out.offset = g.message_bytes_max
        out.reason = TOO_LONG
        return TOO_LONG
    out.reason = scan_from(g, &c, out, True, True)
    return out.reason


cdef inline int rank(const Index* x, int number) noexcept nogil:
    """How many elements stand before this one."""
    cdef int word = (number - 1) >> 6
    cdef int shift = (number - 1) & 63
    cdef int before = 0
    cdef int i
    for i in range(word):
        before += ones(x.bits[i])
    if shift:
        before += ones(x.bits[word] >> (64 - shift))
    return before


cdef const unsigned char* value_at(const Index* x, int number, Py_ssize_t* n) noexcept nogil:
    """The wire form of an element without its prefix, or NULL; valid as long as the message."""
    cdef int at
    if not 0 < number < ELEMENTS or not has(x, number):
        return NULL
    at = rank(x, number)
    if at >= x.count:             # behind the fault of a message that is not sound
        return NULL
    n[0] = x.entries[at].end - x.entries[at].start
    return x.data + x.entries[at].start


cdef const unsigned char* tag_at(
    const Program* g, const Index* x, int number, uint32_t tag, Py_ssize_t* n,
) noexcept nogil:
    """The first value of a tag (`pack_tag`) in an element of TLV, or NULL."""
    cdef const Field* f = &g.root[number]
    cdef const unsigned char* p = value_at(x, number, n)
    cdef Index unused
    cdef Tagged t
    cdef Cursor c
    if p == NULL or (f.shape != TLV and f.shape != BER):
        return NULL
    unused.data = x.data
    c = cursor(p, n[0])
    while left(&c):
        if (next_ber if f.shape == BER else next_tlv)(g, f, &c, &unused, &t) != SOUND:
            return NULL
        if t.tag == tag:
            n[0] = t.n
            return t.value
    return NULL


# ----------------------------------------------------------------------------------- the splicing

cdef inline bint answer_mti(const char* request, char* answer) noexcept nogil:
    """0100 -> 0110, 0421 -> 0430; False where it is not a request."""
    memcpy(answer, request, 4)
    if (request[2] - 48) & 1:
        return False
    answer[2] += 1
    answer[3] = <char> (48 + (request[3] - 48 & ~1))  # a repeat is answered as its original
    return True


cdef void put_digits(
    const Program* g, uint8_t encoding, Py_ssize_t value, int n, Pen* w,
) noexcept nogil:
    """A number in n bytes; it fits, since the layout's most does."""
    cdef unsigned char* p = reserve(w, n)
    cdef int i
    if p == NULL:
        return
    for i in range(n - 1, -1, -1):
        if encoding == BINARY:
            p[i] = <unsigned char> value
            value >>= 8
        elif encoding == BCD:
            p[i] = <unsigned char> (value // 10 % 10 << 4 | value % 10)
            value //= 100
        else:
            p[i] = alphabet(g, encoding).wire[48 + value % 10]
            value //= 10


cdef void put_prefix(const Program* g, const Field* f, Py_ssize_t units, Pen* w) noexcept nogil:
    if f.counts == BYTES:
        units = (units + 1) >> 1
    elif f.counts == NIBBLES:
        units *= 2
    put_digits(g, f.prefix_encoding, units, f.prefix_bytes, w)


cdef void put_mti(const Program* g, const char* mti, Pen* w) noexcept nogil:
    cdef int i
    if g.mti_encoding == BCD:
        put_u8(w, <uint8_t> (mti[0] - 48 << 4 | mti[1] - 48))
        put_u8(w, <uint8_t> (mti[2] - 48 << 4 | mti[3] - 48))
        return
    for i in range(4):
        put_u8(w, alphabet(g, g.mti_encoding).wire[<uint8_t> mti[i]])


cdef void put_bitmap(
    const Program* g, uint8_t encoding, uint64_t bits, int n, Pen* w,
) noexcept nogil:
    cdef const Alphabet* a = alphabet(g, encoding)
    cdef int i
    if encoding == BINARY and n == 8:
        bits = big_endian(bits)
        put(w, &bits, 8)
        return
    for i in range(n if encoding == BINARY else 2 * n):
        if encoding == BINARY:
            put_u8(w, <uint8_t> (bits >> (56 - 8 * i)))
        else:
            put_u8(w, a.wire[<uint8_t> DECIMAL[bits >> (60 - 4 * i) & 15]])


cdef int bitmaps_of(const Program* g, Index* x) noexcept nogil:
    """How many bitmaps the elements of `x` need: `words`, or more where it asks for more."""
    cdef int words = max(x.words, 1)
    if g.bitmap_words_fixed:
        words = g.bitmap_words_fixed
    elif x.bits[2]:
        words = 3
    elif x.bits[1] and words < 2:
        words = 2
    x.words = <uint8_t> words
    return words


cdef void put_bitmaps(const Program* g, const Index* x, Pen* w) noexcept nogil:
    """The bitmaps in front of the elements, each announcing the next."""
    cdef int i, last = x.words - 1
    cdef uint64_t bits
    for i in range(x.words):
        bits = x.bits[i]
        if not g.bitmap_words_fixed and i < last:
            bits |= (<uint64_t> 1) << 63
        if i == 2 and g.tertiary == 2:
            break
        put_bitmap(g, g.bitmap_encoding, bits, 8, w)


cdef inline void set_bit(uint64_t* bits, int number) noexcept nogil:
    bits[(number - 1) >> 6] |= (<uint64_t> 1) << (63 - ((number - 1) & 63))


cdef inline void clear_bit(uint64_t* bits, int number) noexcept nogil:
    bits[(number - 1) >> 6] &= ~((<uint64_t> 1) << (63 - ((number - 1) & 63)))


cdef int mac_of(const Program* g, Index* x) noexcept nogil:
    """Settle where the MAC stands, the last of the elements, and set its bit; 0: nowhere."""
    cdef int number
    if g.mac_primary:
        clear_bit(x.bits, g.mac_primary)
    if g.mac_secondary:
        clear_bit(x.bits, g.mac_secondary)
    bitmaps_of(g, x)
    number = g.mac_primary if x.words == 1 else g.mac_secondary
    if number == 0 or x.words > 2:
        return 0
    set_bit(x.bits, number)
    return number


cdef inline const unsigned char* piece(
    const Program* g, const Index* x, int number, Py_ssize_t* n,
) noexcept nogil:
    """An element as it was received, with its prefix."""
    cdef const Entry* e = &x.entries[rank(x, number)]
    n[0] = e.end - e.start + g.root[number].prefix_bytes
    return x.data + e.start - g.root[number].prefix_bytes


cdef Py_ssize_t splice(
    const Program* g, const Index* index, bint answer, const Patch* patches, int count, bint mac,
    unsigned char* out, Py_ssize_t space,
) noexcept nogil:
    """Write an answer to a message (or the message changed) to `out`; its length, or -1.

    Args:
        answer: the MTI of the answer, and of the elements only those that the dialect echoes; else
            all of them, for passing it on.
        patches: elements that are new or changed, plain ones, as wire values of the right length
            for a fixed element; their characters are the caller's affair.
        mac: end before the MAC element, its bit set.

    It is -1 where there is no room, no answer to such a message, no such element, or no place for
    a MAC. Of messages with a third bitmap: always.
    """
    cdef Pen w = pen(out, space)
    cdef Index x
    cdef const Patch* patch
    cdef const unsigned char* p
    cdef uint64_t bits
    cdef Py_ssize_t n = 0
    cdef int i, word, number, mac_at = 0
    x.words = 0 if answer else index.words
    for i in range(WORDS):
        x.bits[i] = index.bits[i] & (g.echo[i] if answer else ~(<uint64_t> 0))
    for i in range(count):
        number = patches[i].number
        if not 0 < number < ELEMENTS or g.root[number].shape == UNDEFINED:
            return -1
        set_bit(x.bits, number)
    if x.bits[2]:
        return -1
    memcpy(x.mti, index.mti, 4)
    if answer and not answer_mti(index.mti, x.mti):
        return -1
    if mac:
        mac_at = mac_of(g, &x)
        if mac_at == 0:
            return -1
    bitmaps_of(g, &x)
    put_mti(g, x.mti, &w)
    put_bitmaps(g, &x, &w)
    for word in range(2):
        bits = x.bits[word]
        while bits:
            number = leading_zeros(bits)
            bits &= ~((<uint64_t> 1) << (63 - number))
            number += 64 * word + 1
            if number == mac_at:
                break
            patch = NULL
            for i in range(count):
                if patches[i].number == number:
                    patch = &patches[i]
            if patch == NULL:
                p = piece(g, index, number, &n)
                put(&w, p, n)
            elif put_patch(g, &g.root[number], patch, &w) < 0:
                return -1
    return -1 if w.short else w.at - out


cdef int put_patch(const Program* g, const Field* f, const Patch* patch, Pen* w) noexcept nogil:
    """A wire value with its prefix; -1 where it does not have the length of the element."""
    cdef Py_ssize_t units
    if f.fixed:
        if patch.n != wire_bytes(f, f.most):
            return -1
    else:
        units = tagged_units(f, patch.value, patch.n)
        if units < <Py_ssize_t> f.least or units > f.most:
            return -1
        put_prefix(g, f, units, w)
    put(w, patch.value, patch.n)
    return 0


cdef const unsigned char* mac_at(
    const Program* g, const Index* x, Py_ssize_t* covered, Py_ssize_t* n,
) noexcept nogil:
    """The MAC as it stands on the wire, and how many bytes of the message it covers; or NULL."""
    cdef int number = g.mac_primary if x.words == 1 else g.mac_secondary
    cdef const unsigned char* p
    if x.words > 2 or number == 0:
        return NULL
    p = value_at(x, number, n)
    if p != NULL:
        covered[0] = p - x.data
    return p


# -------------------------------------------------------------------------------------- the errors

class FormatError(ValueError):
    """A message that does not fit its dialect; the only error of decoding and of encoding.

    It never quotes a value.

    Attributes:
        element: data element, with its part after a dot: "48.03"; "mti"; "bitmap"; "" where it is
            the message as a whole.
        offset: byte of the message at which it was noticed.
        reason: in plain words.
        partial: of a message received, those of "mti", "7", "11", "37" and "41" that are sound,
            so that it can be answered.
    """

    def __init__(self, element, offset, reason, partial=None):
        super().__init__(element, offset, reason)
        self.element = element
        self.offset = offset
        self.reason = reason
        self.partial = {} if partial is None else partial

    def __str__(self):
        if self.element in ("mti", "bitmap"):
            where = f"the {'message type' if self.element == 'mti' else 'bitmap'}"
        else:
            where = f"element {self.element}" if self.element else "message"
        return f"{where}, byte {self.offset}: {self.reason}"


cdef object misfit(const Field* f, str reason, str part=None):
    """An element given for encoding, or a part of it, that does not fit."""
    return FormatError(f"{<str> f.key}.{part}" if part else <str> f.key, 0, reason)


cdef str component(uint32_t value, int tag_bytes, const Field* parent):
    """A step of a path as people write it."""
    cdef const Field* kid
    cdef bytes tag
    if tag_bytes == 0:
        return str(value)
    if parent != NULL:
        kid = child_of(parent, value, tag_bytes)
        if kid != NULL:
            return <str> kid.key
    tag = (<object> value).to_bytes(tag_bytes, "big")
    if parent != NULL and parent.shape == TLV:
        return "?"                # a tag unknown to us may hold anything
    return tag.hex().upper()


cdef str path_of(const Program* g, const Index* x):
    cdef const Field* f = NULL
    cdef list names = []
    cdef int i
    for i in range(x.depth):
        names.append(component(x.path[i], x.path_tag_bytes[i], f))
        if i == 0:
            f = &g.root[x.path[0]]
        elif f != NULL:
            if x.path_tag_bytes[i]:
                # A template that the layout does not know holds tags of the same dictionary.
                if child_of(f, x.path[i], x.path_tag_bytes[i]) != NULL:
                    f = child_of(f, x.path[i], x.path_tag_bytes[i])
            else:
                f = numbered(f, x.path[i])
    if names:
        return ".".join(names)
    if x.mti[0] == 0:
        return "mti"
    return "bitmap" if x.reason == BAD_BITMAP or x.body == 0 else ""


cdef const Field* numbered(const Field* f, uint32_t number) noexcept:
    cdef int i
    for i in range(f.children_count):
        if f.children[i].number == number and f.children[i].own_tag_bytes == 0:
            return &f.children[i]
    return NULL


# -------------------------------------------------------------------------------------- the values

cdef object text_object(const Alphabet* a, uint8_t classes, const unsigned char* p, Py_ssize_t n):
    """Checked characters as a str."""
    cdef object text
    cdef unsigned char* out
    cdef unsigned char small[VALUE_BYTES]
    cdef unsigned char* large
    cdef Py_ssize_t i
    if not classes & (LATIN | OTHER):
        text = PyUnicode_New(n, 127)
        out = <unsigned char*> PyUnicode_DATA(text)
        for i in range(n):
            out[i] = a.latin[p[i]]
        return text
    if n <= VALUE_BYTES:
        for i in range(n):
            small[i] = a.latin[p[i]]
        return PyUnicode_DecodeLatin1(<const char*> small, n, NULL)
    large = <unsigned char*> malloc(n)
    if large == NULL:
        raise MemoryError
    try:
        for i in range(n):
            large[i] = a.latin[p[i]]
        return PyUnicode_DecodeLatin1(<const char*> large, n, NULL)
    finally:
        free(large)


cdef object bcd_object(
    const Program* g, const Field* f, const unsigned char* p, uint32_t units,
):
    """Digits in nibbles as a str, a separator as D."""
    cdef object text = PyUnicode_New(units, 127)
    cdef unsigned char* out = <unsigned char*> PyUnicode_DATA(text)
    cdef uint32_t i
    if f.signed_:
        out[0] = p[0]
        p += 1
        out += 1
        units -= 1
    if units & 1 and (f.odd == LEFT_0 or f.odd == LEFT_F):
        out[0] = g.pairs[2 * p[0] + 1]
        p += 1
        out += 1
        units -= 1
    for i in range(units >> 1):
        memcpy(out + 2 * i, &g.pairs[2 * p[i]], 2)
    if units & 1:
        out[units - 1] = g.pairs[2 * p[units >> 1]]
    return text


cdef object hex_object(const Alphabet* a, const unsigned char* p, uint32_t n):
    """The bytes that hexadecimal digits stand for."""
    cdef bytes data = PyBytes_FromStringAndSize(NULL, n)
    cdef unsigned char* out = <unsigned char*> PyBytes_AS_STRING(data)
    cdef uint32_t i
    for i in range(n):
        out[i] = a.hexes[p[2 * i]] << 4 | a.hexes[p[2 * i + 1]]
    return data


cdef inline void copy_short(
    unsigned char* out, const unsigned char* p, Py_ssize_t n,
) noexcept nogil:
    """memcpy without its call for 2 to 16 bytes, by two copies that overlap."""
    if n > 16 or n < 2:
        memcpy(out, p, n)
    elif n >= 8:
        memcpy(out, p, 8)
        memcpy(out + n - 8, p + n - 8, 8)
    elif n >= 4:
        memcpy(out, p, 4)
        memcpy(out + n - 4, p + n - 4, 4)
    else:
        memcpy(out, p, 2)
        memcpy(out + n - 2, p + n - 2, 2)


cdef inline object ascii_object(const unsigned char* p, Py_ssize_t n):
    cdef object text = PyUnicode_New(n, 127)
    copy_short(<unsigned char*> PyUnicode_DATA(text), p, n)
    return text


cdef inline object plain_object(
    const Program* g, const Field* f, const unsigned char* p, Py_ssize_t n, uint32_t units,
):
    if f.strip:
        n = text_bytes(f, &p, n)
    if f.encoding == ASCII and not f.classes & (LATIN | OTHER):
        return ascii_object(p, n)
    if f.encoding <= EBCDIC:
        return text_object(alphabet(g, f.encoding), f.classes, p, n)
    if f.encoding == BCD:
        return bcd_object(g, f, p, units)
    if f.encoding == BINARY:
        return PyBytes_FromStringAndSize(<const char*> p, n)
    return hex_object(alphabet(g, f.encoding), p, units)


cdef str masked_text(int mask, object value):
    """What may be shown of a value."""
    cdef str text
    if type(value) is bytes:
        text = (<bytes> value).hex().upper()
    else:
        text = value
    if mask == SHOWN:
        return text
    if mask == TAIL and len(text) >= 6:
        return "***" + text[len(text) - 3:]
    if mask == PAN:
        return masked_pan(text)
    return "***"


cdef str masked_pan(str text):
    """First six and last four digits of the number that a card or a track begins with."""
    cdef Py_ssize_t start = 0, end
    while start < len(text) and not "0" <= text[start] <= "9":
        start += 1
    end = start
    while end < len(text) and "0" <= text[end] <= "9":
        end += 1
    if start > 1 or end - start < 12:
        return "***"
    return (
        text[start:start + 6] + "*" * (end - start - 10) + text[end - 4:end]
        + ("" if end == len(text) else "***")
    )


# -------------------------------------------------------------------------------------- the layout

cdef void build_alphabet(
    Alphabet* a, bytes latin, set known, bint latin_allowed, bint any_case,
) except *:
    """From the ISO 8859-1 character of every wire byte; what is not in `known` is never valid."""
    cdef int byte, c
    for byte in range(256):
        c = latin[byte]
        a.latin[byte] = <uint8_t> c
        a.digits[byte] = a.hexes[byte] = 255
        a.classes[byte] = 0
        if byte not in known:
            continue
        a.wire[c] = <uint8_t> byte
        if 48 <= c <= 57:
            a.digits[byte] = a.hexes[byte] = <uint8_t> (c - 48)
            a.classes[byte] = DIGIT
        elif 65 <= c <= 90 or 97 <= c <= 122:
            a.classes[byte] = LETTER | (TRACK if c == 68 else 0)
            if c <= 70 or (any_case and 97 <= c <= 102):
                a.hexes[byte] = <uint8_t> ((c | 32) - 87)
        elif c == 32:
            a.classes[byte] = SPACE
        elif 33 <= c <= 126:
            a.classes[byte] = SPECIAL | (TRACK if 58 <= c <= 63 else 0)
        elif c >= 160 and latin_allowed:
            a.classes[byte] = LATIN
        else:
            a.classes[byte] = OTHER


cdef void release(Field* f) noexcept:
    cdef int i
    if f.children != NULL:
        for i in range(f.children_count):
            release(&f.children[i])
        free(f.children)
        f.children = NULL


@cython.no_gc_clear
cdef class Layout:
    """A dialect's compiled form. Immutable; messages keep the one they were decoded with.

    Args:
        name: for messages' repr and for people.
        spec: every choice made, in plain words, as `protocols.iso8583.dialect` compiles it from a
            file. It is checked there; here only what memory depends on is.
    """

    def __cinit__(self, str name not None, dict spec not None):
        cdef int number
        self.name = name
        self._kept = []
        self.program = <Program*> calloc(1, sizeof(Program))
        if self.program == NULL:
            raise MemoryError
        self._keys = tuple([str(number) for number in range(ELEMENTS)])
        settle(self.program, spec)
        for number, field in spec["elements"].items():
            if not 0 < number < ELEMENTS:
                raise ValueError("an element has a number from 1 to 192")
            build(self.program, &self.program.root[number], field, self._kept, 0)
            self.program.root[number].key = <void*> (<object> self._keys[number])
            self.program.root[number].number = <uint16_t> number
            set_bit(self.program.defined, number)
        check_macs(self.program)

    def __dealloc__(self):
        cdef int number
        if self.program != NULL:
            for number in range(ELEMENTS):
                release(&self.program.root[number])
            free(self.program)

    @property
    def elements(self):
        """Numbers of the elements defined, ascending."""
        return [number for number in range(1, ELEMENTS) if self.program.root[number].shape]

    @property
    def message_bytes_max(self):
        return self.program.message_bytes_max

    # ---- in

    cdef object decoded(self, bytes data, Index* index):
        """A message, or the FormatError that it is."""
        cdef Message m
        cdef int reason = scan(
            self.program, <const unsigned char*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
            index,
        )
        if reason != SOUND:
            return self.refusal(index)
        m = Message.__new__(Message)
        m.layout = self
        m.raw = data
        m.unknown_tags = index.unknown
        m.bits[0] = index.bits[0]
        m.bits[1] = index.bits[1]
        m.bits[2] = index.bits[2]
        m.body = index.body
        m.count = index.count
        m.words = index.words
        memcpy(m._mti, index.mti, 4)
        if index.count > 28:
            m.entries = <Entry*> malloc(index.count * sizeof(Entry))
            if m.entries == NULL:
                raise MemoryError
        memcpy(m.entries, index.entries, index.count * sizeof(Entry))
        return m

    cdef object refusal(self, const Index* index):
        """The error of a message that is not sound, with what of it is."""
        cdef Index again
        cdef Cursor c = cursor(index.data, index.n)
        cdef const Field* f
        cdef const Entry* e
        cdef dict partial = {}
        cdef int number, at
        scan_from(self.program, &c, &again, False, False)
        if again.mti[0] and index.reason != TOO_LONG:
            partial["mti"] = ascii_object(<const unsigned char*> again.mti, 4)
            for number in (7, 11, 37, 41):
                at = rank(&again, number) if has(&again, number) else ELEMENTS
                if at >= again.count:
                    continue
                f = &self.program.root[number]
                e = &again.entries[at]
                if f.shape == PLAIN and check_value(
                    self.program, f, again.data + e.start, e.end - e.start, e.units, 1, &again,
                ) == SOUND:
                    partial[self._keys[number]] = plain_object(
                        self.program, f, again.data + e.start, e.end - e.start, e.units
                    )
        reason = REASONS[index.reason]
        return FormatError(path_of(self.program, index), index.offset, reason, partial)

    def decode(self, data):
        """Check a whole message and index it.

        Raises:
            FormatError: it does not fit the dialect; nothing else is raised of any bytes.
        """
        cdef Index index
        cdef object out = self.decoded(data if type(data) is bytes else bytes(data), &index)
        if type(out) is not Message:
            raise out
        return out

    def decode_many(self, list frames not None):
        """Decode the messages of one read; in the place of a bad one stands its FormatError."""
        cdef Index index
        cdef list out = []
        for data in frames:
            out.append(self.decoded(data if type(data) is bytes else bytes(data), &index))
        return out

    def traced(self, data, *, bint unmask=False):
        """Where the elements of a message are, for people: rows, and the FormatError or None.

        A row is key, offset, length (with the prefix) and value: masked text, as `Message.masked`
        has it, unless `unmask`. Of a message that does not fit, the rows up to the fault.
        """
        cdef bytes held = data if type(data) is bytes else bytes(data)
        cdef const unsigned char* p = <const unsigned char*> PyBytes_AS_STRING(held)
        cdef const Program* g = self.program
        cdef Index index
        cdef const Entry* e
        cdef const Field* f
        cdef list rows = []
        cdef int reason = scan(g, p, PyBytes_GET_SIZE(held), &index)
        cdef int number = 0, at
        cdef int mti = 2 if g.mti_encoding == BCD else 4
        if index.mti[0]:
            rows.append(("mti", 0, mti, ascii_object(<const unsigned char*> index.mti, 4)))
        if index.body:
            rows.append(("bitmap", mti, index.body - mti, held[mti:index.body]))
        for at in range(index.count):
            number += 1
            while not has(&index, number):
                number += 1
            e = &index.entries[at]
            f = &g.root[number]
            value = self.value_object(f, p + e.start, e.end - e.start, e.units)
            if not unmask:
                value = masked_value(f, value)
            size = e.end - e.start + f.prefix_bytes
            rows.append((self._keys[number], e.start - f.prefix_bytes, size, value))
        return rows, None if reason == SOUND else self.refusal(&index)

    # ---- out

    def encode(self, mapping not None):
        """A message from its elements.

        Args:
            mapping: "mti" and the elements by number; parts nested, or after a dot ("48.03"); a
                repeated tag as a list. Text is str; bytes are bytes, or hexadecimal digits as str.
                What is None is not there.

        Raises:
            FormatError: an element does not fit.
        """
        return self.assembled(mapping, None, WHOLE, None)

    def encode_for_mac(self, mapping not None):
        """A message up to its MAC element, whose bit is set; the caller appends `mac_field`.

        Raises:
            FormatError: an element does not fit, or the dialect has no place for a MAC.
        """
        return self.assembled(mapping, None, FOR_MAC, None)

    def mac_field(self, bytes mac not None):
        """A MAC as it stands on the wire.

        Raises:
            FormatError: it does not have the length of the element.
        """
        cdef unsigned char small[64]
        cdef Pen w = pen(small, sizeof(small))
        cdef int number = self.program.mac_primary or self.program.mac_secondary
        if number == 0:
            raise FormatError("", 0, "the dialect has no MAC element")
        self.put_field(&self.program.root[number], mac, 1, &w)
        return PyBytes_FromStringAndSize(<const char*> small, w.at - small)

    def sealed(self, list bodies not None, list macs not None):
        """Messages made for a MAC, each with its own behind it; one native call for a turn's."""
        cdef Py_ssize_t i
        if len(bodies) != len(macs):
            raise ValueError("as many MACs as messages")
        if self.program.root[self.program.mac_primary].encoding == BINARY:
            return [<bytes> bodies[i] + <bytes> macs[i] for i in range(len(bodies))]
        return [<bytes> bodies[i] + self.mac_field(macs[i]) for i in range(len(bodies))]

    cdef int gather(self, dict given, PyObject** values, uint64_t* bits, char* mti) except -1:
        """Sort the elements given by number, each held by a reference; True: some have dots."""
        cdef PyObject* key = NULL
        cdef PyObject* value = NULL
        cdef Py_ssize_t at = 0
        cdef int number
        while PyDict_Next(given, &at, &key, &value):
            number = element_number(<object> key)
            if number == DOTTED:
                return True
            if value == <PyObject*> None:
                continue
            if number > 0:
                Py_INCREF(<object> value)
                values[number] = value
                set_bit(bits, number)
            elif number == 0:
                take_type(<object> value, mti)
            else:
                raise FormatError(shown_key(<object> key), 0, REASONS[NOT_DEFINED])
        return False

    cdef bytes assembled(self, object mapping, Message source, int mode, object drop):
        """A message from elements given, and those of `source` that are kept."""
        cdef const Program* g = self.program
        cdef PyObject* values[ELEMENTS]
        cdef uint64_t held[WORDS]
        cdef Index plan, received
        cdef dict given = plain_dict(mapping)
        cdef int mac = 0
        memset(held, 0, sizeof(held))
        memset(plan.bits, 0, sizeof(plan.bits))
        plan.words = 0
        plan.mti[0] = 0
        if source is not None:
            source.view(&received)
            plan_from(g, &received, &plan, mode, drop)
        try:
            if self.gather(given, values, held, plan.mti):
                let_go(values, held)
                given = nested(given, source if mode & FORWARD else None)
                self.gather(given, values, held, plan.mti)
            if plan.mti[0] == 0:
                raise FormatError("mti", 0, "it is missing")
            take_given(g, &plan, held, values)
            if mode & FOR_MAC:
                mac = mac_of(g, &plan)
                if mac == 0:
                    raise FormatError("", 0, "there is no place for a MAC")
            return self.written(&plan, held, values, &received, mac)
        finally:
            let_go(values, held)

    cdef bytes written(
        self, Index* plan, const uint64_t* given, PyObject** values, const Index* source, int mac,
    ):
        """Compose on the stack; in as much room as a message may have only where it is short."""
        cdef unsigned char small[STACK_BYTES]
        cdef unsigned char* large
        cdef Py_ssize_t most = self.program.message_bytes_max
        cdef Pen w = pen(small, min(<Py_ssize_t> STACK_BYTES, most))
        self.compose(plan, given, values, source, mac, &w)
        if not w.short:
            return PyBytes_FromStringAndSize(<const char*> small, w.at - small)
        large = <unsigned char*> malloc(most)
        if large == NULL:
            raise MemoryError
        try:
            w = pen(large, most)
            self.compose(plan, given, values, source, mac, &w)
            if w.short:
                raise FormatError("", most, REASONS[TOO_LONG])
            return PyBytes_FromStringAndSize(<const char*> large, w.at - large)
        finally:
            free(large)

    cdef int compose(
        self, Index* plan, const uint64_t* given, PyObject** values, const Index* source,
        int mac, Pen* w,
    ) except -1:
        """Write what `plan` says: the elements given, and those of `source`."""
        cdef const Program* g = self.program
        cdef const Field* f
        cdef const unsigned char* p
        cdef unsigned char* first = w.at
        cdef Py_ssize_t n = 0
        cdef uint64_t bits
        cdef int word, number
        put_mti(g, plan.mti, w)
        put_bitmaps(g, plan, w)
        for word in range(plan.words):
            bits = plan.bits[word]
            if word == 1 and g.tertiary == 2 and plan.words == 3:
                put_bitmap(g, g.bitmap_encoding, plan.bits[2], 8, w)
            while bits:
                number = leading_zeros(bits)
                bits &= ~((<uint64_t> 1) << (63 - number))
                number += 64 * word + 1
                if number == mac:
                    return 0
                f = &g.root[number]
                if f.shape == UNDEFINED:
                    raise FormatError(str(number), w.at - first, REASONS[NOT_DEFINED])
                if not given[word] >> (63 - ((number - 1) & 63)) & 1:
                    p = piece(g, source, number, &n)
                    put(w, p, n)
                    continue
                try:
                    self.put_field(f, <object> values[number], 1, w)
                except FormatError as error:
                    error.offset = w.at - first
                    raise
        return 0

    cdef int put_field(self, const Field* f, object value, int depth, Pen* w) except -1:
        """An element or a part, with its prefix. `depth` steps of a path lead to it."""
        cdef unsigned char* prefix
        cdef Py_ssize_t n
        cdef Index x
        cdef Pen back
        if f.shape == PLAIN:
            return self.put_plain(f, value, w)
        if depth >= PATH_MAX:
            raise misfit(f, REASONS[TOO_DEEP])
        prefix = reserve(w, f.prefix_bytes)
        self.put_inside(f, value, depth, w)
        if w.short:
            return 0
        n = w.at - prefix - f.prefix_bytes
        if n > f.most:
            raise misfit(f, REASONS[LENGTH_TOO_GREAT])
        if n < f.least:
            raise misfit(f, REASONS[LENGTH_TOO_SMALL])
        back = pen(prefix, f.prefix_bytes)
        if f.prefix_bytes:
            put_prefix(self.program, f, n, &back)
        if depth == 1:            # what is sent must pass the check of what is received
            x.data = prefix
            x.mti[0] = 48
            x.unknown = 0
            enter(&x, 0, f.number, 0)
            x.reason = check_value(self.program, f, w.at - n, n, <uint32_t> n, 1, &x)
            if x.reason != SOUND:
                raise FormatError(path_of(self.program, &x), 0, REASONS[x.reason])
        return 0

    cdef int put_plain(self, const Field* f, object value, Pen* w) except -1:
        """A value of text or bytes: prefix, padding, and the same check as of a received one."""
        cdef const Program* g = self.program
        cdef const unsigned char* text
        cdef unsigned char* out
        cdef Py_ssize_t n, units
        cdef Index x
        cdef int reason
        if f.encoding >= BINARY:
            return put_binary(g, f, value, w)
        if type(value) is not str or PyUnicode_KIND(value) != 1:
            raise misfit(f, "it is not text of its character set")
        text = <const unsigned char*> PyUnicode_DATA(value)
        n = PyUnicode_GET_LENGTH(value)
        units = f.most if f.fixed and f.pad and n < f.most else n
        if units > f.most:
            raise misfit(f, REASONS[LENGTH_TOO_GREAT])
        if units < f.least:
            raise misfit(f, REASONS[LENGTH_TOO_SMALL])
        if f.counts == BYTES and units & 1 and f.odd < LEFT_F:
            raise misfit(f, "it has an odd number of digits")
        if f.prefix_bytes:
            put_prefix(g, f, units, w)
        out = reserve(w, wire_bytes(f, units))
        if out == NULL:
            return 0
        if f.encoding == BCD:
            if not bcd_into(g, f, text, n, units, out):
                raise misfit(f, REASONS[BAD_DIGIT])
            return 0
        x.data = out
        reason = SOUND if text_into(g, f, text, n, units, out) else BAD_CHARACTER
        if reason == SOUND:
            reason = check_text(g, f, out, units, &x)
        if reason != SOUND:
            raise misfit(f, REASONS[reason])
        return 0

    cdef int put_inside(self, const Field* f, object value, int depth, Pen* w) except -1:
        """The parts of a composite, without its prefix; or what they make up, given as one."""
        cdef const Field* kid
        cdef uint64_t bits = 0
        cdef dict parts
        cdef bint ended = False
        cdef int i
        if type(value) is str or type(value) is bytes:
            return put_whole(self.program, f, value, w)
        if f.shape == TLV or f.shape == BER:
            return self.put_tags(f, value, depth, w)
        parts = as_dict(f, value)
        check_keys(f, parts)
        if f.shape == BITMAPPED:
            for i in range(f.children_count):
                if parts.get(<str> f.children[i].key) is not None:
                    bits |= (<uint64_t> 1) << (64 - f.children[i].number)
            put_bitmap(self.program, f.bitmap_encoding, bits, f.bitmap_bytes, w)
        for i in range(f.children_count):
            kid = &f.children[i]
            part = parts.get(<str> kid.key)
            if part is None:
                ended = f.shape == POSITIONAL
                if ended and not kid.optional:
                    raise misfit(f, "it is missing", <str> kid.key)
                continue
            if ended:
                raise misfit(f, "a part before it is missing", <str> kid.key)
            try:
                self.put_field(kid, part, depth + 1, w)
            except FormatError as error:
                error.element = f"{<str> f.key}.{error.element}"
                raise
        return 0

    cdef int put_tags(self, const Field* f, object value, int depth, Pen* w) except -1:
        """Tags in the order given: a dict, or pairs where repeated ones stand apart."""
        if type(value) is list:
            for pair in value:
                if type(pair) is not tuple or len(pair) != 2:
                    raise misfit(f, "it is not a mapping of tags")
                self.put_tag(f, pair[0], pair[1], depth, w)
            return 0
        for key, part in as_dict(f, value).items():
            if type(part) is list and not (part and type(part[0]) is tuple):
                for one in part:
                    self.put_tag(f, key, one, depth, w)
            elif part is not None:
                self.put_tag(f, key, part, depth, w)
        return 0

    cdef int put_tag(self, const Field* f, object key, object value, int depth, Pen* w) except -1:
        """One tag, its length and its value."""
        cdef Tagged t
        cdef const Field* kid
        cdef Field bare
        if type(key) is not str or not tag_of(self.program, f, key, &t):
            raise misfit(f, REASONS[BAD_TAG])
        kid = child_of(f, t.tag, t.tag_bytes)
        if kid == NULL:
            if not f.keep_unknown:
                raise misfit(f, REASONS[UNKNOWN_TAG], key)
            bare = unknown_field(f, &t, value)
            bare.key = <void*> key
            kid = &bare
        put_tag_name(&t, w)
        try:
            if f.shape == BER:
                self.put_ber_value(kid, value, depth + 1, w)
            else:
                self.put_tlv_value(f, kid, value, depth + 1, w)
        except FormatError as error:
            error.element = f"{<str> f.key}.{error.element}"
            raise
        return 0

    cdef int put_tlv_value(
        self, const Field* f, const Field* kid, object value, int depth, Pen* w,
    ) except -1:
        """A length in characters, and the value."""
        cdef unsigned char* length = reserve(w, f.length_bytes)
        cdef Py_ssize_t n
        cdef Pen back
        self.put_field(kid, value, depth, w)
        if w.short:
            return 0
        n = w.at - length - f.length_bytes
        if n > length_most(f):
            raise misfit(kid, REASONS[LENGTH_TOO_GREAT])
        back = pen(length, f.length_bytes)
        put_digits(self.program, f.length_encoding, n, f.length_bytes, &back)
        return 0

    cdef int put_ber_value(self, const Field* kid, object value, int depth, Pen* w) except -1:
        """A length in its shortest form, and the value."""
        cdef unsigned char* length = reserve(w, 4)
        cdef Py_ssize_t n
        cdef int more = 0
        cdef Pen back
        self.put_field(kid, value, depth, w)
        if w.short:
            return 0
        n = w.at - length - 4
        if n >= 1 << 24:
            raise misfit(kid, REASONS[LENGTH_TOO_GREAT])
        if n > 127:
            more = 1 if n < 1 << 8 else 2 if n < 1 << 16 else 3
        back = pen(length, 1 + more)
        put_u8(&back, <uint8_t> (128 | more if more else n))
        if more:
            put_digits(self.program, BINARY, n, more, &back)
        memmove(length + 1 + more, length + 4, n)
        w.at -= 3 - more
        return 0

    # ---- values

    cdef object value_object(
        self, const Field* f, const unsigned char* p, Py_ssize_t n, uint32_t units,
    ):
        if f.shape == PLAIN:
            return plain_object(self.program, f, p, n, units)
        if f.shape == TLV or f.shape == BER:
            return self.tags(f, p, n)
        return self.inside(f, p, n)

    cdef object inside(self, const Field* f, const unsigned char* p, Py_ssize_t n):
        """Positional parts, or those of a bitmap, by their keys; all is checked already."""
        cdef Cursor c = cursor(p, n)
        cdef Index unused
        cdef uint64_t bits = ~(<uint64_t> 0)
        cdef const Field* kid
        cdef uint32_t units = 0
        cdef dict out = {}
        cdef int i
        unused.data = p
        if f.shape == BITMAPPED:
            take_bitmap(self.program, f.bitmap_encoding, f.bitmap_bytes, &c, &bits)
        for i in range(f.children_count):
            kid = &f.children[i]
            if f.shape == BITMAPPED and not bits >> (64 - kid.number) & 1:
                continue
            if kid.optional and f.shape == POSITIONAL and left(&c) == 0:
                break
            if take_field(self.program, kid, &c, &unused, &p, &units) != SOUND:
                break
            out[<str> kid.key] = self.value_object(kid, p, c.at - p, units)
        return out

    cdef object tags(self, const Field* f, const unsigned char* p, Py_ssize_t n):
        """Tags by their keys, repeated ones as lists; pairs where they do not stand together."""
        cdef Cursor c = cursor(p, n)
        cdef Index unused
        cdef Tagged t
        cdef const Field* kid
        cdef dict out = {}
        cdef list pairs = []
        cdef str key, last = None
        cdef bint apart = False
        cdef int reason
        unused.data = p
        while left(&c):
            if f.shape == BER:
                reason = next_ber(self.program, f, &c, &unused, &t)
            else:
                reason = next_tlv(self.program, f, &c, &unused, &t)
            if reason != SOUND:
                break
            key = self.tag_key(f, &t)
            value = self.tagged_object(f, &t)
            pairs.append((key, value))
            kid = child_of(f, t.tag, t.tag_bytes)
            if key in out:
                apart = apart or key != last
                if type(out[key]) is not list:
                    out[key] = [out[key]]
                (<list> out[key]).append(value)
            else:
                out[key] = [value] if kid != NULL and kid.repeatable else value
            last = key
        return pairs if apart else out

    cdef str tag_key(self, const Field* f, const Tagged* t):
        cdef const Field* kid = child_of(f, t.tag, t.tag_bytes)
        cdef unsigned char wire[4]
        cdef int i
        if kid != NULL:
            return <str> kid.key
        for i in range(t.tag_bytes):
            wire[i] = <unsigned char> (t.tag >> (8 * (t.tag_bytes - 1 - i)))
        if f.shape == BER:
            return (<bytes> wire[:t.tag_bytes]).hex().upper()
        return text_object(alphabet(self.program, f.encoding), 0, wire, t.tag_bytes)

    cdef object tagged_object(self, const Field* f, const Tagged* t):
        """The value of a tag; of an unknown one text where it is printable, else bytes."""
        cdef const Field* kid = child_of(f, t.tag, t.tag_bytes)
        cdef const Alphabet* a
        if kid != NULL:
            return self.value_object(
                kid, t.value, t.n, <uint32_t> tagged_units(kid, t.value, t.n)
            )
        if t.constructed:
            return self.tags(f, t.value, t.n)
        if f.shape == TLV:
            a = alphabet(self.program, f.encoding)
            if wrong_character(a, PRINTABLE, t.value, t.n) == t.n:
                return text_object(a, PRINTABLE, t.value, t.n)
        return PyBytes_FromStringAndSize(<const char*> t.value, t.n)


# ---------------------------------------------------------------------------- what is to be written

cdef inline int element_number(object key) noexcept:
    """1 to 192; 0 of "mti"; DOTTED: of a part; NOT_AN_ELEMENT."""
    cdef const unsigned char* p
    cdef Py_ssize_t n, i
    cdef int number = 0
    if type(key) is not str or not PyUnicode_IS_ASCII(key):
        return NOT_AN_ELEMENT
    p = <const unsigned char*> PyUnicode_DATA(key)
    n = PyUnicode_GET_LENGTH(key)
    if 0 < n <= 3 and p[0] != 48:
        for i in range(n):
            if not 48 <= p[i] <= 57:
                break
            number = number * 10 + p[i] - 48
        else:
            return number if number < ELEMENTS else NOT_AN_ELEMENT
        if n == 3 and memcmp(p, b"mti", 3) == 0:
            return 0
    return DOTTED if memchr(p, 46, n) != NULL else NOT_AN_ELEMENT


cdef str shown_key(object key):
    """A key given by our own caller, short enough for an error."""
    return (<str> key)[:16] if type(key) is str else type(key).__name__


cdef int take_type(object value, char* mti) except -1:
    if type(value) is str and PyUnicode_IS_ASCII(value) and PyUnicode_GET_LENGTH(value) == 4:
        if all_digits(<const unsigned char*> PyUnicode_DATA(value), 4, 0):
            memcpy(mti, PyUnicode_DATA(value), 4)
            return 0
    raise FormatError("mti", 0, REASONS[BAD_MTI])


cdef void let_go(PyObject** values, uint64_t* bits) noexcept:
    """Give up the references that `gather` took."""
    cdef int word, number
    for word in range(WORDS):
        while bits[word]:
            number = leading_zeros(bits[word])
            bits[word] &= ~((<uint64_t> 1) << (63 - number))
            Py_DECREF(<object> values[64 * word + number + 1])


cdef int take_given(
    const Program* g, Index* plan, const uint64_t* given, PyObject** values,
) except -1:
    """Add the elements given to the plan; "1" (and "65") given as True ask for a bitmap."""
    cdef int i
    for i in range(WORDS):
        plan.bits[i] |= given[i]
    if not g.bitmap_words_fixed:
        if given[0] >> 63:
            if <object> values[1] is not True:
                raise FormatError("1", 0, "it may only be True: there is a second bitmap")
            clear_bit(plan.bits, 1)
            plan.words = max(plan.words, <uint8_t> 2)
        if g.tertiary and given[1] >> 63:
            if <object> values[65] is not True:
                raise FormatError("65", 0, "it may only be True: there is a third bitmap")
            clear_bit(plan.bits, 65)
            plan.words = 3
    if bitmaps_of(g, plan) < 3 and plan.bits[2]:
        raise FormatError(str(leading_zeros(plan.bits[2]) + 129), 0, REASONS[NOT_DEFINED])
    return 0


cdef int plan_from(
    const Program* g, const Index* received, Index* plan, int mode, object drop,
) except -1:
    """What of a received message is kept."""
    cdef int i, number
    memcpy(plan.mti, received.mti, 4)
    if mode & ANSWER:
        if not answer_mti(received.mti, plan.mti):
            raise FormatError("mti", 0, "it is not that of a request")
    else:
        plan.words = received.words
    for i in range(WORDS):
        plan.bits[i] = received.bits[i]
        if mode & ANSWER:
            plan.bits[i] &= g.echo[i]
    for key in drop or ():
        number = element_number(key)
        if number <= 0:
            raise FormatError(shown_key(key), 0, REASONS[NOT_DEFINED])
        clear_bit(plan.bits, number)
    return 0


cdef dict nested(dict given, Message source):
    """The mapping with its dotted keys put into the composites they belong to.

    Of a message passed on (`source`), what a composite held and is not changed stays.
    """
    cdef dict out = {}
    cdef dict inner
    cdef list steps
    cdef Py_ssize_t i
    for key, value in given.items():
        if element_number(key) != DOTTED:
            out[key] = value
            continue
        steps = (<str> key).split(".")
        inner = out
        for i in range(len(steps) - 1):
            have = inner.get(steps[i])
            if have is None and i == 0 and source is not None:
                have = source.get(steps[0])
            if type(have) is list:
                raise FormatError(key, 0, "tags repeated apart are changed as a whole")
            have = dict(have) if isinstance(have, Mapping) else {}
            inner[steps[i]] = have
            inner = have
        inner[steps[len(steps) - 1]] = value
    return out


cdef dict as_dict(const Field* f, object value):
    if type(value) is dict:
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise misfit(f, "it is not a mapping of its parts")


cdef dict plain_dict(object mapping):
    if type(mapping) is dict:
        return mapping
    return (<Message> mapping).to_dict() if type(mapping) is Message else dict(mapping)


cdef int check_keys(const Field* f, dict parts) except -1:
    """All parts given must be defined."""
    cdef int i
    for key, value in parts.items():
        for i in range(f.children_count):
            if key == <str> f.children[i].key:
                break
        else:
            if value is not None:
                raise misfit(f, REASONS[NOT_DEFINED], shown_key(key))
    return 0


cdef int put_whole(const Program* g, const Field* f, object value, Pen* w) except -1:
    """A composite given as what it is on the wire; the caller checks it."""
    cdef const unsigned char* text
    cdef unsigned char* out
    cdef Py_ssize_t n
    if type(value) is bytes:
        put(w, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        return 0
    if f.encoding == BINARY:
        return put_whole(g, f, from_hex(f, value), w)
    if PyUnicode_KIND(value) != 1:
        raise misfit(f, "it is not text of its character set")
    text = <const unsigned char*> PyUnicode_DATA(value)
    n = PyUnicode_GET_LENGTH(value)
    out = reserve(w, n)
    if out != NULL and not translate(alphabet(g, f.encoding), text, n, out):
        raise misfit(f, REASONS[BAD_CHARACTER])
    return 0


cdef bytes from_hex(const Field* f, object value):
    """Bytes, or the hexadecimal digits that stand for them."""
    if type(value) is bytes:
        return value
    if type(value) is str:
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise misfit(f, "it is neither bytes nor hexadecimal digits")


cdef int put_binary(const Program* g, const Field* f, object value, Pen* w) except -1:
    cdef bytes data = from_hex(f, value)
    cdef const unsigned char* p = <const unsigned char*> PyBytes_AS_STRING(data)
    cdef const Alphabet* a = alphabet(g, f.encoding)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t i
    if n > f.most:
        raise misfit(f, REASONS[LENGTH_TOO_GREAT])
    if n < f.least:
        raise misfit(f, REASONS[LENGTH_TOO_SMALL])
    if f.prefix_bytes:
        put_prefix(g, f, n, w)
    if f.encoding == BINARY:
        put(w, p, n)
        return 0
    for i in range(n):
        put_u8(w, a.wire[<uint8_t> DECIMAL[p[i] >> 4]])
        put_u8(w, a.wire[<uint8_t> DECIMAL[p[i] & 15]])
    return 0


cdef inline bint translate(
    const Alphabet* a, const unsigned char* text, Py_ssize_t n, unsigned char* out,
) noexcept nogil:
    """ISO 8859-1 to the wire; False where a character is not in the code page."""
    cdef Py_ssize_t i
    cdef bint known = True
    for i in range(n):
        out[i] = a.wire[text[i]]
        known &= a.latin[out[i]] == text[i]
    return known


cdef inline bint text_into(
    const Program* g, const Field* f, const unsigned char* text, Py_ssize_t n, Py_ssize_t units,
    unsigned char* out,
) noexcept nogil:
    if n < units:                 # only of a fixed one that says how
        if f.pad == PAD_LEFT:
            memset(out, f.fill, units - n)
            out += units - n
        else:
            memset(out + n, f.fill, units - n)
    if f.encoding == ASCII:
        memcpy(out, text, n)
        return True
    return translate(&g.ebcdic, text, n, out)


cdef bint bcd_into(
    const Program* g, const Field* f, const unsigned char* text, Py_ssize_t n, Py_ssize_t units,
    unsigned char* out,
) noexcept nogil:
    """Digits into nibbles; False where one is none, or the sign is wrong."""
    cdef bint on_left = f.odd == LEFT_0 or f.odd == LEFT_F
    cdef Py_ssize_t i, at, wire
    cdef uint8_t digit
    if f.signed_:
        if n == 0 or not g.signs[text[0]]:
            return False
        out[0] = text[0]
        text += 1
        out += 1
        n -= 1
        units -= 1
    wire = (units + 1) >> 1
    memset(out, 0, wire)
    if units & 1 and f.odd >= LEFT_F:
        out[0 if on_left else wire - 1] = 0xF0 if on_left else 0x0F
    at = (units & 1 if on_left else 0) + units - n
    for i in range(n):
        digit = <uint8_t> (text[i] - 48)
        if digit > 9:
            if not f.classes & TRACK or (text[i] != 68 and text[i] != 61):
                return False
            digit = 13
        out[(at + i) >> 1] |= digit if (at + i) & 1 else <uint8_t> (digit << 4)
    return True


cdef bint tag_of(const Program* g, const Field* f, str key, Tagged* t) noexcept:
    """A tag as people write it; False where it cannot be one."""
    cdef const unsigned char* text
    cdef unsigned char wire[8]
    cdef Py_ssize_t n = PyUnicode_GET_LENGTH(key)
    cdef Py_ssize_t i
    t.constructed = False
    if not PyUnicode_IS_ASCII(key) or n > 8:
        return False
    text = <const unsigned char*> PyUnicode_DATA(key)
    if f.shape == TLV:
        if n != f.tag_bytes or not translate(alphabet(g, f.encoding), text, n, wire):
            return False
        t.tag = pack_tag(wire, <int> n)
        t.tag_bytes = <int> n
        return True
    if n == 0 or n & 1:
        return False
    t.tag = 0
    t.tag_bytes = <int> (n >> 1)
    for i in range(n):
        if g.ascii.hexes[text[i]] == 255 or 97 <= text[i]:
            return False
        t.tag = t.tag << 4 | g.ascii.hexes[text[i]]
    t.constructed = t.tag >> (8 * t.tag_bytes - 3) & 1
    return True


cdef void put_tag_name(const Tagged* t, Pen* w) noexcept nogil:
    cdef int i
    for i in range(t.tag_bytes - 1, -1, -1):
        put_u8(w, <uint8_t> (t.tag >> (8 * i)))


cdef Field unknown_field(const Field* f, const Tagged* t, object value):
    """How a tag is written that the layout does not know: its value as it is."""
    cdef Field bare
    if t.constructed:
        bare = f[0]
        bare.prefix_bytes = 0
        bare.fixed = 0
    else:
        memset(&bare, 0, sizeof(bare))
        bare.shape = PLAIN
        bare.encoding = BINARY
        if f.shape == TLV and type(value) is str:
            bare.encoding = f.encoding
            bare.classes = PRINTABLE
    bare.least = 0
    bare.most = 1 << 24
    return bare


cdef Py_ssize_t length_most(const Field* f) noexcept nogil:
    cdef Py_ssize_t most = 1
    cdef int i
    for i in range(f.length_bytes):
        most *= 256 if f.length_encoding == BINARY else 100 if f.length_encoding == BCD else 10
    return most - 1


# ------------------------------------------------------------------------------------- compilation

cdef int settle(Program* g, dict spec) except -1:
    """What holds for the whole message."""
    cdef bint any_case = "hex_case" in spec["tolerate"]
    cdef int byte
    build_alphabet(&g.ascii, bytes(range(256)), set(range(256)), spec["latin"], any_case)
    build_alphabet(&g.ebcdic, spec["ebcdic"], spec["known"], spec["latin"], any_case)
    g.mti_encoding = _ENCODINGS[spec["mti"]]
    g.bitmap_encoding = _ENCODINGS[spec["bitmap"]]
    g.bitmap_words_fixed = spec["bitmap_words_fixed"]
    g.tertiary = spec["tertiary"]
    g.tolerate_filler = "filler" in spec["tolerate"]
    g.tolerate_lengths = "lengths" in spec["tolerate"]
    g.message_bytes_max = spec["message_bytes_max"]
    if g.mti_encoding > BCD or g.bitmap_encoding < BINARY or g.bitmap_words_fixed > WORDS:
        raise ValueError("no such encoding of the message type or the bitmap")
    if g.message_bytes_max > 1 << 24 or (g.bitmap_words_fixed and g.tertiary):
        raise ValueError("no such message")
    for number in spec["mac"]:
        if number == 64:
            g.mac_primary = 64
        elif number == 128:
            g.mac_secondary = 128
        else:
            raise ValueError("a MAC stands in element 64 or 128")
    for number in spec["echo"]:
        if not 0 < number < ELEMENTS:
            raise ValueError("an element has a number from 1 to 192")
        set_bit(g.echo, number)
    for sign in spec["signs"]:
        g.signs[<uint8_t> ord(sign)] = 1
    for byte in range(256):
        if byte >> 4 <= 9 and byte & 15 <= 9:
            g.bcd[byte] = 3
        elif (byte >> 4 <= 9 or byte >> 4 == 13) and (byte & 15 <= 9 or byte & 15 == 13):
            g.bcd[byte] = 2
        g.pairs[2 * byte] = <uint8_t> DECIMAL[byte >> 4]
        g.pairs[2 * byte + 1] = <uint8_t> DECIMAL[byte & 15]
    return 0


cdef int build(Program* g, Field* f, dict spec, list kept, int depth) except -1:
    """One field and what is in it, from plain words."""
    cdef bytes tag = spec["tag"]
    cdef list children = spec["children"]
    cdef int i
    if depth >= PATH_MAX:
        raise ValueError("nested too deep")
    f.shape = _SHAPES[spec["shape"]]
    f.encoding = _ENCODINGS[spec["encoding"]]
    f.classes = _CONTENTS[spec["content"]]
    if spec["content"] == "ans" and spec["latin"]:
        f.classes |= LATIN
    f.signed_ = spec["content"] == "x+n"
    f.prefix_bytes = spec["prefix_bytes"]
    f.prefix_encoding = _ENCODINGS[spec["prefix_encoding"]]
    f.counts = _COUNTS[spec["counts"]]
    f.odd = _ODDS[spec["odd"]]
    f.pad = _PADS[spec["pad"]]
    f.strip = spec["strip"]
    f.fill = alphabet(g, f.encoding).wire[<uint8_t> ord(spec["fill"])]
    f.fixed = spec["fixed"]
    f.optional = spec["optional"]
    f.repeatable = spec["repeatable"]
    f.keep_unknown = spec["keep_unknown"]
    f.tag_bytes = spec["tag_bytes"]
    f.length_bytes = spec["length_bytes"]
    f.length_encoding = _ENCODINGS[spec["length_encoding"]]
    f.bitmap_encoding = _ENCODINGS[spec["bitmap_encoding"]]
    f.bitmap_bytes = spec["bitmap_bytes"]
    f.mask = _MASKS[spec["mask"]]
    f.number = spec["number"]
    f.least = spec["least"]
    f.most = spec["most"]
    check_field(f, len(children), len(tag))
    f.own_tag_bytes = <uint8_t> len(tag)
    f.own_tag = pack_tag(<const unsigned char*> PyBytes_AS_STRING(tag), <int> len(tag))
    kept.append(spec["key"])
    f.key = <void*> (<PyObject*> kept[len(kept) - 1])
    if f.shape == PLAIN and not f.signed_:  # whatever the padding, these characters are right
        if f.encoding == ASCII and f.classes == PRINTABLE:
            f.quick = ASCII_PRINTABLE
        elif f.encoding <= EBCDIC and f.classes == DIGIT:
            f.quick = ASCII_DIGITS if f.encoding == ASCII else EBCDIC_DIGITS
    if children:
        f.children = <Field*> calloc(len(children), sizeof(Field))
        if f.children == NULL:
            raise MemoryError
        f.children_count = <uint16_t> len(children)
        for i in range(f.children_count):
            build(g, &f.children[i], children[i], kept, depth + 1)
    return 0


cdef int check_field(const Field* f, Py_ssize_t children, Py_ssize_t tag) except -1:
    """What the memory of a pass depends on; the dialect's compiler says it better, and before."""
    cdef bint text = f.encoding <= EBCDIC
    if (
        f.prefix_bytes > 8 or f.length_bytes > 8 or f.tag_bytes > 4 or tag > 4
        or children > 256 or f.most > 1 << 24 or f.least > f.most or f.bitmap_bytes > 8
        or (f.fixed and f.least != f.most) or (f.signed_ and f.least < 1)
        or (f.shape == PLAIN and children) or (f.shape == BITMAPPED and f.bitmap_bytes == 0)
        or (f.shape == TLV and not (text and f.tag_bytes and f.length_bytes))
        or (f.shape != PLAIN and not text and f.encoding != BINARY)
        or (f.strip and not text)
    ):
        raise ValueError("a field that cannot be")
    return 0


cdef int check_macs(const Program* g) except -1:
    cdef const Field* f
    cdef int number
    for number in (64, 128):
        f = &g.root[number]
        if number != g.mac_primary and number != g.mac_secondary:
            continue
        if f.shape != PLAIN or not f.fixed or f.encoding < BINARY or f.most > 32:
            raise ValueError("a MAC element is of bytes, and fixed")
    if g.mac_primary and g.mac_secondary and g.root[64].encoding != g.root[128].encoding:
        raise ValueError("both MAC elements are written in the same way")
    return 0


# ------------------------------------------------------------------------------------- the message

cdef object ABSENT = object()


cdef object step_into(object value, str step):
    """The part of a composite's value, or ABSENT."""
    cdef list found
    if type(value) is dict:
        return (<dict> value).get(step, ABSENT)
    if type(value) is list and value and type((<list> value)[0]) is tuple:
        found = [one for key, one in value if key == step]
        if found:
            return found
    return ABSENT


cdef object masked_value(const Field* f, object value):
    """As text, masked by the field's rule; parts by their own."""
    if f.shape == PLAIN:
        return masked_text(f.mask, value)
    if f.mask != SHOWN:
        return "***"
    if type(value) is list:
        return [(key, masked_part(f, key, part)) for key, part in value]
    return {key: masked_part(f, key, part) for key, part in (<dict> value).items()}


cdef object masked_part(const Field* f, str key, object value):
    """A part by its key; what the dialect does not know might be anything, so it is not shown."""
    cdef const Field* kid = NULL
    cdef int i
    for i in range(f.children_count):
        if <str> f.children[i].key == key:
            kid = &f.children[i]
    if kid == NULL:
        return "***"
    if type(value) is list and kid.repeatable:
        return [masked_value(kid, one) for one in value]
    return masked_value(kid, value)


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Message:
    """A message received: its bytes, and where its elements are in them. Immutable.

    `m["11"]`, `m.get("48.03")`, `"11" in m`, `m.items()`: values are made when they are asked for.
    Text is str, binary elements are bytes, composites are dicts of their parts in the order
    received; a tag that may be repeated is a list.

    Attributes:
        raw: the bytes received.
        layout: the dialect it was decoded with.
        unknown_tags: tags in it that the dialect does not define.
    """

    def __cinit__(self):
        self.entries = self.inline

    def __init__(self):
        raise TypeError("messages come from a dialect's decode")

    def __dealloc__(self):
        if self.entries != self.inline:
            free(self.entries)

    cdef void view(self, Index* out) noexcept:
        """An index of it, as `scan` makes one."""
        out.data = <const unsigned char*> PyBytes_AS_STRING(self.raw)
        out.n = PyBytes_GET_SIZE(self.raw)
        memcpy(out.bits, self.bits, sizeof(self.bits))
        out.body = self.body
        out.unknown = self.unknown_tags
        out.count = self.count
        out.words = self.words
        out.reason = SOUND
        out.depth = 0
        memcpy(out.mti, self._mti, 4)
        memcpy(out.entries, self.entries, self.count * sizeof(Entry))

    cdef int locate(self, int number) noexcept:
        """Where the entry of an element is, or -1."""
        cdef int word = (number - 1) >> 6
        cdef int shift = (number - 1) & 63
        cdef int before = 0
        cdef int i
        if not self.bits[word] >> (63 - shift) & 1:
            return -1
        for i in range(word):
            before += ones(self.bits[i])
        return before + (ones(self.bits[word] >> (64 - shift)) if shift else 0)

    cdef object element(self, int number, int at):
        cdef const Entry* e = &self.entries[at]
        cdef const unsigned char* p = <const unsigned char*> PyBytes_AS_STRING(self.raw)
        return self.layout.value_object(
            &self.layout.program.root[number], p + e.start, e.end - e.start, e.units
        )

    cdef object lookup(self, str key):
        """The value by a key, or ABSENT."""
        cdef int number = element_number(key)
        cdef int at
        if number > 0:
            at = self.locate(number)
            if at >= 0:
                return self.element(number, at)
            if (number == 1 and self.announces(0)) or (number == 65 and self.announces(1)):
                return True
            return ABSENT
        if number == 0:
            return self.mti
        if number != DOTTED:
            return ABSENT
        steps = key.split(".")
        value = self.lookup(steps[0])
        for step in steps[1:]:
            value = step_into(value, step)
        return value

    cdef bint announces(self, int word) noexcept:
        """True where a bitmap announces another."""
        cdef const Program* g = self.layout.program
        return not g.bitmap_words_fixed and self.words > word + 1 and (word == 0 or g.tertiary)

    cdef int mac_number(self) noexcept:
        """The element that holds its MAC, the last of the message; 0: none."""
        cdef const Program* g = self.layout.program
        cdef int number = g.mac_primary if self.words == 1 else g.mac_secondary
        if self.words > 2 or number == 0 or self.locate(number) < 0:
            return 0
        return number

    @property
    def mti(self):
        """The message type: four digits."""
        return ascii_object(<const unsigned char*> self._mti, 4)

    @property
    def mac(self):
        """The MAC, or None: element 64, or 128 where there is a second bitmap."""
        cdef int number = self.mac_number()
        return self.element(number, self.locate(number)) if number else None

    @property
    def mac_input(self):
        """What the MAC is computed over: the bytes before its element (all, if there is none)."""
        cdef int number = self.mac_number()
        if number == 0:
            return self.raw
        return PyBytes_FromStringAndSize(
            PyBytes_AS_STRING(self.raw), self.entries[self.locate(number)].start
        )

    def __getitem__(self, str key not None):
        value = self.lookup(key)
        if value is ABSENT:
            raise KeyError(key)
        return value

    def get(self, str key not None, default=None):
        """The value of an element or a part ("48.03"), or the default where it is not there."""
        value = self.lookup(key)
        return default if value is ABSENT else value

    def __contains__(self, key):
        return type(key) is str and self.lookup(key) is not ABSENT

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(self.filled({}))

    def keys(self):
        """Numbers of all elements, in order."""
        return self.filled({}).keys()

    def items(self):
        """All elements in order, decoded; the message type is no element."""
        return self.filled({}).items()

    def to_dict(self):
        """"mti" and all elements: what `encode` takes, and makes the same bytes of."""
        cdef dict out = __Pyx_PyDict_NewPresized(self.count + 1)
        PyDict_SetItem(out, "mti", self.mti)
        return self.filled(out)

    cdef dict filled(self, dict out):
        """`out` with all elements, decoded. A second bitmap without any stands as "1": True."""
        cdef tuple keys = self.layout._keys
        cdef const unsigned char* p = <const unsigned char*> PyBytes_AS_STRING(self.raw)
        cdef const Program* g = self.layout.program
        cdef const Entry* e = self.entries
        cdef const Field* f
        cdef uint64_t bits
        cdef int word, number
        if self.announces(0) and not (self.bits[1] | self.bits[2]):
            out["1"] = True
        if self.announces(1) and not self.bits[2]:
            out["65"] = True
        for word in range(WORDS):
            bits = self.bits[word]
            while bits:
                number = leading_zeros(bits)
                bits &= ~((<uint64_t> 1) << (63 - number))
                number += 64 * word + 1
                f = &g.root[number]
                if (f.quick == ASCII_DIGITS or f.quick == ASCII_PRINTABLE) and not f.strip:
                    value = ascii_object(p + e.start, e.end - e.start)
                elif f.shape == PLAIN:
                    value = plain_object(g, f, p + e.start, e.end - e.start, e.units)
                else:
                    value = self.layout.value_object(f, p + e.start, e.end - e.start, e.units)
                PyDict_SetItem(out, keys[number], value)
                e += 1
        return out

    def masked(self):
        """All of it as text that may be printed and logged, masked as the dialect says."""
        cdef dict out = {}
        cdef int number
        for key, value in self.to_dict().items():
            number = element_number(key)
            if number == 0 or value is True:
                out[key] = value
            else:
                out[key] = masked_value(&self.layout.program.root[number], value)
        return out

    def answer(self, changes not None, *, drop=(), bint mac=False):
        """The answer: elements that the dialect echoes byte for byte, and those given.

        Args:
            changes: elements set, as for `encode`; "mti" only where it is not the usual one.
            drop: numbers of elements not echoed.
            mac: end before the MAC element, its bit set; the caller appends `mac_field`.

        Raises:
            FormatError: an element does not fit, or this is not a request.
        """
        return self.layout.assembled(changes, self, ANSWER | (FOR_MAC if mac else 0), drop)

    def replaced(self, changes not None, *, drop=(), bint mac=False):
        """The message passed on: everything byte for byte but the elements given.

        Args:
            changes, drop, mac: as of `answer`; a part ("48.03") is changed within its composite.

        Raises:
            FormatError: an element does not fit.
        """
        return self.layout.assembled(changes, self, FORWARD | (FOR_MAC if mac else 0), drop)

    def wire(self, str key not None):
        """The bytes of an element without its prefix, of a tag in one, or of the "mac".

        Raises:
            KeyError: it is not there, or a part that only `get` finds.
        """
        cdef Index index
        cdef Tagged t
        cdef const unsigned char* p = NULL
        cdef Py_ssize_t n = 0, covered = 0
        cdef str tag
        cdef int number
        number_text, _, tag = key.partition(".")
        number = element_number(number_text)
        self.view(&index)
        if key == "mac":
            p = mac_at(self.layout.program, &index, &covered, &n)
        elif number > 0 and not tag:
            p = value_at(&index, number, &n)
        elif number > 0 and tag_of(
            self.layout.program, &self.layout.program.root[number], tag, &t
        ):
            p = tag_at(self.layout.program, &index, number, t.tag, &n)
        if p == NULL:
            raise KeyError(key)
        return PyBytes_FromStringAndSize(<const char*> p, n)

    def spliced(self, dict patches not None, *, bint answer=True, bint mac=False):
        """As `answer` (or `replaced`), of values that are as on the wire, without their prefixes.

        This is how native code does it. Only the lengths of the values are checked.

        Raises:
            ValueError: no answer to this message, no such element, or a wrong length.
        """
        cdef Index index
        cdef Patch wanted[ELEMENTS]
        cdef unsigned char small[STACK_BYTES]
        cdef Py_ssize_t n
        cdef int count = 0
        for key, value in patches.items():
            if count == ELEMENTS:
                break
            wanted[count].number = element_number(key)
            wanted[count].value = <const unsigned char*> PyBytes_AS_STRING(value)
            wanted[count].n = PyBytes_GET_SIZE(value)
            count += 1
        self.view(&index)
        n = splice(
            self.layout.program, &index, answer, wanted, count, mac, small, STACK_BYTES
        )
        if n < 0:
            raise ValueError("it cannot be spliced")
        return PyBytes_FromStringAndSize(<const char*> small, n)

    def __repr__(self):
        return f"<Message {self.mti} of {self.layout.name}, {self.count} elements>"


# ------------------------------------------------------------------------------------- the framing

@cython.final
cdef class SelfDelimited:
    """Split a stream that has neither lengths nor trailers: the layout itself ends a message.

    As `core_ext._frames.LengthPrefixed`, a frame is header and message. A message that is wrong in
    a place that does not hide its end is given out as any other, for its receiver to refuse.

    Args:
        layout: the dialect.
        frame_bytes_max: longest header and message.
        header_bytes: opaque bytes before each message.
    """

    def __cinit__(
        self, Layout layout not None, Py_ssize_t frame_bytes_max=8192, Py_ssize_t header_bytes=0,
    ):
        if not 0 <= header_bytes < frame_bytes_max <= 1 << 24:
            raise ValueError("expected 0 <= header_bytes < frame_bytes_max <= 2**24")
        self._layout = layout
        self.frame_bytes_max = frame_bytes_max
        self._header_bytes = header_bytes
        self._held = b""

    @property
    def pending_bytes(self):
        """Bytes of the message that is not whole yet; less than `frame_bytes_max`."""
        return PyBytes_GET_SIZE(self._held)

    def feed(self, data):
        """Take bytes in whatever pieces they come; return the frames now whole, in order.

        Once no end of a message can be found, `broken` says why, and nothing more is returned.
        """
        cdef bytes held = self._held + bytes(data)
        cdef const unsigned char* p = <const unsigned char*> PyBytes_AS_STRING(held)
        cdef Cursor c = cursor(p, PyBytes_GET_SIZE(held))
        cdef const unsigned char* start
        cdef list frames = []
        if self.broken is not None:
            return frames
        while left(&c):
            start = c.at
            if not self.pass_over(&c):
                break
            frames.append(PyBytes_FromStringAndSize(<const char*> start, c.at - start))
        self._held = b"" if self.broken is not None else held[c.at - p:]
        return frames

    cdef bint pass_over(self, Cursor* c) except -1:
        """Move behind the next frame; False where it is not whole, or `broken`."""
        cdef Py_ssize_t n = min(left(c), self.frame_bytes_max)
        cdef Cursor d = cursor(c.at, n)
        cdef Index index
        if take(&d, self._header_bytes) == NULL:
            return False
        index.reason = scan_from(self._layout.program, &d, &index, False, False)
        if index.reason == CUT and n < self.frame_bytes_max:
            return False
        if index.reason != SOUND:
            self.broken = "the frame is too long" if index.reason == CUT else (
                f"no end of the message: {self._layout.refusal(&index)}"
            )
            return False
        take(c, d.at - c.at)
        return True
