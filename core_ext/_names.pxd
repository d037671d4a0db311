"""Masked names, as `switch.flows.norms.mask_name` and `switch.flows.ticket.ascii_text` make them.

Done here are names of ASCII and of the accented letters of Latin-1, with single words between
blanks; any other is left to the flows. Texts are UTF-8, so such a letter is C3 and one more byte.
"""

from core_ext._cursor cimport Pen, put, put_u8
from core_ext._pack cimport Text

cdef enum:
    WORDS_MAX = 4
    STAR = 42

# What each letter from U+00C0 to U+00FF is printed as; a blank: not by us.
cdef extern from *:
    """
    static const char tr_plain_letters[] =
        "AAAAAA CEEEEIIII NOOOOO OUUUUY  aaaaaa ceeeeiiii nooooo ouuuuy y";
    """
    const char* PLAIN_LETTERS "tr_plain_letters"


cdef inline Py_ssize_t letter_at(Text t, Py_ssize_t at) noexcept nogil:
    """Bytes of the letter at this place; 0 for one that is not done here."""
    cdef unsigned char second
    if 32 <= t.p[at] <= 126:
        return 1
    if t.p[at] != 0xC3 or at + 1 >= t.n:
        return 0
    second = t.p[at + 1]
    # sharp s and y with diaeresis have capitals of another length, or elsewhere
    return 2 if 0x80 <= second <= 0xBE and second != 0x9F else 0


cdef inline void put_capital(Pen* w, const unsigned char* p, Py_ssize_t n) noexcept nogil:
    if n == 1:
        put_u8(w, p[0] - 32 if 97 <= p[0] <= 122 else p[0])
    else:
        put_u8(w, p[0])
        put_u8(w, p[1] - 32 if 0xA0 <= p[1] <= 0xBE and p[1] != 0xB7 else p[1])


cdef inline void put_masked_word(Pen* w, Text word, int letters) noexcept nogil:
    """Two letters of a word of four or more, one of a shorter one; a masked one as it is."""
    cdef Py_ssize_t first, second
    if (letters <= 5 and letters >= 3 and word.p[word.n - 1] == STAR
            and word.p[word.n - 2] == STAR and word.p[word.n - 3] == STAR):
        put(w, word.p, word.n)
        return
    first = letter_at(word, 0)
    put_capital(w, word.p, first)
    if letters > 3:
        second = letter_at(word, first)
        put_capital(w, word.p + first, second)
    put(w, b"***", 3)


cdef inline bint mask_name(Text name, Pen* w) noexcept nogil:
    """Write a name that its bearer recognises and a stranger does not learn; False: not by us."""
    cdef Py_ssize_t at = 0, start, n
    cdef int words = 0, letters
    cdef Text word
    while at < name.n:  # all of it: what is not masked may hold anything else than plain signs
        n = letter_at(name, at)
        if n == 0:
            return False
        at += n
    at = 0
    while words < WORDS_MAX:
        while at < name.n and name.p[at] == 32:
            at += 1
        if at >= name.n:
            break
        start, letters = at, 0
        while at < name.n and name.p[at] != 32:
            at += letter_at(name, at)
            letters += 1
        if words:
            put_u8(w, 32)
        word.p, word.n = name.p + start, at - start
        put_masked_word(w, word, letters)
        words += 1
    return not w.short


cdef inline bint put_plain(Pen* w, Text name) noexcept nogil:
    """A name for paper, without its accents; False where it has signs that JSON would escape, or
    that are not letters."""
    cdef Py_ssize_t at = 0, n
    cdef unsigned char letter
    while at < name.n:
        n = letter_at(name, at)
        if n == 0:
            return False
        letter = name.p[at] if n == 1 else <unsigned char> PLAIN_LETTERS[name.p[at + 1] - 0x80]
        if letter in (34, 92) or (n == 2 and letter == 32):
            return False
        put_u8(w, letter)
        at += n
    return not w.short
