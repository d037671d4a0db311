"""What other native modules may use of `_iso8583`.

A native reader of messages does, all without the GIL and without a Python object:

    cdef Index index
    if scan(layout.program, data, n, &index) == SOUND:
        p = value_at(&index, 37, &bytes)                  # the wire form of the value
        p = tag_at(layout.program, &index, 48, pack_tag(b"03", 2), &bytes)
        bytes = splice(layout.program, &index, True, patches, count, True, out, room)

An `Index` points into the message it was made of and lives no longer than it.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from core_ext._cursor cimport Cursor, Pen


cdef enum:
    ELEMENTS = 193                # numbers 1 to 192; number 0 is not used
    WORDS = 3                     # bitmaps of 64
    PATH_MAX = 8                  # parts within parts, and templates within templates
    SOUND = 0


cdef struct Alphabet:
    uint8_t latin[256]            # wire byte -> ISO 8859-1 character
    uint8_t wire[256]             # and back
    uint8_t classes[256]          # wire byte -> the classes its character belongs to
    uint8_t digits[256]           # wire byte -> value of a decimal digit, 255: none
    uint8_t hexes[256]            # likewise of a hexadecimal one, capitals (or what is tolerated)


cdef struct Field:
    uint8_t shape                 # 0: not defined
    uint8_t encoding
    uint8_t classes               # of characters allowed
    uint8_t quick                 # how its characters are looked at in eights, 0: they are not
    uint8_t signed_
    uint8_t prefix_bytes          # 0: fixed, or the rest of what holds it
    uint8_t prefix_encoding
    uint8_t counts                # what a prefix counts
    uint8_t odd                   # filler nibble of an odd number of digits
    uint8_t pad
    uint8_t strip
    uint8_t fill                  # on the wire
    uint8_t fixed
    uint8_t optional
    uint8_t repeatable
    uint8_t keep_unknown
    uint8_t tag_bytes             # of the tags inside
    uint8_t length_bytes          # of the lengths inside
    uint8_t length_encoding
    uint8_t bitmap_encoding
    uint8_t bitmap_bytes
    uint8_t mask
    uint8_t own_tag_bytes         # of the tag that leads to this part
    uint16_t number               # of an element or a part; 0 for a tag
    uint16_t children_count
    uint32_t own_tag              # packed
    uint32_t least                # digits, characters or bytes of the value
    uint32_t most
    Field* children
    void* key                     # borrowed str, kept by the layout


cdef struct Program:
    Field root[ELEMENTS]
    Alphabet ascii
    Alphabet ebcdic
    uint8_t mti_encoding
    uint8_t bitmap_encoding
    uint8_t bitmap_words_fixed    # 0: as many as their first bits say
    uint8_t tertiary              # 0 none, 1 the third bitmap follows the second, 2 stands at 65
    uint8_t tolerate_filler
    uint8_t tolerate_lengths
    uint16_t mac_primary          # 64, or 0
    uint16_t mac_secondary        # 128, or 0
    uint32_t message_bytes_max
    uint64_t defined[WORDS]
    uint64_t echo[WORDS]
    uint8_t signs[256]            # characters (ISO 8859-1) that may stand before x+n
    uint8_t bcd[256]              # byte -> bit 0 both nibbles digits, bit 1 digits or D
    uint8_t pairs[512]            # byte -> its two digits as characters


cdef struct Entry:
    uint32_t start                # of the value, behind its prefix
    uint32_t end
    uint32_t units                # digits, characters or bytes


cdef struct Index:
    const unsigned char* data
    Py_ssize_t n
    uint64_t bits[WORDS]          # highest bit first, as sent: element 1 is the top of bits[0]
    uint32_t body                 # where the first element begins
    uint32_t unknown              # tags that the layout does not know
    uint16_t count
    char mti[4]                   # ASCII, whatever the wire has
    uint8_t words                 # bitmaps present
    int reason                    # SOUND, or why not
    uint32_t offset               # of the fault
    int depth                     # of its path
    uint32_t path[PATH_MAX]
    uint8_t path_tag_bytes[PATH_MAX]   # 0: the component is a number
    Entry entries[ELEMENTS]


cdef struct Tagged:
    uint32_t tag                  # packed
    int tag_bytes
    bint constructed
    const unsigned char* value
    Py_ssize_t n


cdef struct Patch:
    int number
    const unsigned char* value    # its wire form, without prefix
    Py_ssize_t n


cdef class Layout:
    cdef Program* program
    cdef readonly str name
    cdef list _kept               # keeps the keys of the fields alive
    cdef tuple _keys              # of the elements, by number

    cdef object refusal(self, const Index* index)
    cdef object decoded(self, bytes data, Index* index)
    cdef int gather(self, dict given, PyObject** values, uint64_t* bits, char* mti) except -1
    cdef bytes assembled(self, object mapping, Message source, int mode, object drop)
    cdef int compose(
        self, Index* plan, const uint64_t* given, PyObject** values, const Index* source,
        int mac, Pen* w,
    ) except -1
    cdef bytes written(
        self, Index* plan, const uint64_t* given, PyObject** values, const Index* source, int mac,
    )
    cdef int put_field(self, const Field* f, object value, int depth, Pen* w) except -1
    cdef int put_plain(self, const Field* f, object value, Pen* w) except -1
    cdef int put_inside(self, const Field* f, object value, int depth, Pen* w) except -1
    cdef int put_tags(self, const Field* f, object value, int depth, Pen* w) except -1
    cdef int put_tag(self, const Field* f, object key, object value, int depth, Pen* w) except -1
    cdef int put_tlv_value(
        self, const Field* f, const Field* kid, object value, int depth, Pen* w,
    ) except -1
    cdef int put_ber_value(self, const Field* kid, object value, int depth, Pen* w) except -1
    cdef object value_object(
        self, const Field* f, const unsigned char* p, Py_ssize_t n, uint32_t units,
    )
    cdef object tagged_object(self, const Field* f, const Tagged* t)
    cdef object inside(self, const Field* f, const unsigned char* p, Py_ssize_t n)
    cdef object tags(self, const Field* f, const unsigned char* p, Py_ssize_t n)
    cdef str tag_key(self, const Field* f, const Tagged* t)


cdef class Message:
    cdef readonly Layout layout
    cdef readonly bytes raw
    cdef readonly uint32_t unknown_tags
    cdef uint64_t bits[WORDS]
    cdef uint32_t body
    cdef uint16_t count
    cdef uint8_t words
    cdef char _mti[4]
    cdef Entry* entries
    cdef Entry inline[28]

    cdef void view(self, Index* out) noexcept
    cdef int locate(self, int number) noexcept
    cdef object element(self, int number, int at)
    cdef object lookup(self, str key)
    cdef dict filled(self, dict out)
    cdef bint announces(self, int word) noexcept
    cdef int mac_number(self) noexcept


cdef class SelfDelimited:
    cdef readonly Py_ssize_t frame_bytes_max
    cdef readonly str broken
    cdef Layout _layout
    cdef Py_ssize_t _header_bytes
    cdef bytes _held

    cdef bint pass_over(self, Cursor* c) except -1


cdef int scan(const Program* g, const unsigned char* p, Py_ssize_t n, Index* out) noexcept nogil
cdef const unsigned char* value_at(const Index* index, int number, Py_ssize_t* n) noexcept nogil
cdef const unsigned char* tag_at(
    const Program* g, const Index* index, int number, uint32_t tag, Py_ssize_t* n,
) noexcept nogil
cdef const unsigned char* mac_at(
    const Program* g, const Index* index, Py_ssize_t* covered, Py_ssize_t* n,
) noexcept nogil
cdef Py_ssize_t splice(
    const Program* g, const Index* index, bint answer, const Patch* patches, int count, bint mac,
    unsigned char* out, Py_ssize_t room,
) noexcept nogil


cdef inline bint has(const Index* index, int number) noexcept nogil:
    return index.bits[(number - 1) >> 6] >> (63 - ((number - 1) & 63)) & 1


cdef inline uint32_t pack_tag(const unsigned char* tag, int n) noexcept nogil:
    """A tag of up to four bytes as one number."""
    cdef uint32_t packed = 0
    cdef int i
    for i in range(n):
        packed = packed << 8 | tag[i]
    return packed
