"""A cash_out or deposit in normal form, and what red and sicoop keep of it, as MessagePack.

The fields are those of `RedOperation` and `SicoopOperation`, the digests those of `Fingerprint`,
byte for byte. What the issuer keeps is `_issuer`'s.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from core_ext._cursor cimport Pen, pen, put_u8
from core_ext._issuer cimport Grant, HoldAsk, put_moment
from core_ext._ledger cimport Id
from core_ext._pack cimport (
    Text, nothing, put_array, put_bool, put_chars, put_str, put_struct, put_uint, text,
)
from core_ext._siphash cimport SipKey, siphash24
from core_ext._ticket cimport Symbol

cdef enum:
    BODY_MAX = 512
    RED_FIELDS = 34
    SICOOP_FIELDS = 30
    REFERENCE = 26
    VALUE_MAX = 1024       # bytes of an operation's record
    TEXTS_MAX = 224        # of normal forms that differ from what was sent

cdef struct Asked:         # with what its peers' records say
    HoldAsk hold
    bint deposit           # else a cash_out
    Text card              # of a deposit: the one chosen, empty where none was
    Text depositor         # of a deposit: who brings the cash, empty where it is the holder
    Text kind
    Text reference
    Text newest            # key of the terminal's newest operation
    Text business_date
    Text limits_version
    Id own                 # hold in sicoop's own book
    Id net
    Id issuer
    const Symbol* symbol
    Text cashier_name
    uint64_t debit_cap     # of its network; 0: no deposits
    bint ticket
    uint32_t trace
    unsigned char texts[224]


cdef inline void put_identity(Pen* w, const Asked* a) noexcept nogil:
    """Type and number, as two values."""
    if a.hold.document.p != NULL:
        put_str(w, a.hold.document_type)
        put_str(w, a.hold.document)
    else:
        put_chars(w, b"TEL", 3)
        put_str(w, a.hold.phone)


cdef inline void put_asked(Pen* w, const Asked* a, uint64_t digest, int64_t now_ns) noexcept nogil:
    """The fields of a `RedOperation` up to when it was created."""
    put_array(w, RED_FIELDS)
    put_str(w, a.reference)
    put_str(w, a.kind)
    put_str(w, a.hold.network)
    put_str(w, a.hold.terminal)
    put_str(w, a.hold.branch)
    put_str(w, a.hold.cashier)
    put_uint(w, a.trace)
    put_uint(w, <uint64_t> a.hold.amount)
    put_str(w, a.hold.currency)
    put_array(w, 2)
    put_identity(w, a)
    put_uint(w, digest)
    put_uint(w, <uint64_t> now_ns)


cdef inline void put_unowed(Pen* w, const Asked* a) noexcept nogil:
    """The fields of a `RedOperation` from what it owes up to its history: nothing yet."""
    put_str(w, nothing())  # owed
    put_str(w, nothing())  # reason
    put_uint(w, 0)  # attempts
    put_str(w, nothing())  # supervisor
    put_str(w, nothing())  # original
    put_str(w, a.depositor)
    put_u8(w, 0x80)  # declaration: an empty map
    put_str(w, nothing())  # field


cdef inline Py_ssize_t red_record(
    const Asked* a, const Grant* g, uint64_t digest, int64_t now_ns, unsigned char* out
) noexcept nogil:
    """A `RedOperation` that is registered; returns its length, 0 where it does not fit."""
    cdef Pen w = pen(out, VALUE_MAX)
    put_asked(&w, a, digest, now_ns)
    put_chars(&w, b"REGISTRADA", 10)
    put_chars(&w, b"00", 2)
    put_chars(&w, b"APROBADA", 8)
    put_str(&w, a.hold.operation)
    put_str(&w, text(g.authorization, 6))
    put_str(&w, a.business_date)
    put_uint(&w, 0)  # fee
    put_uint(&w, 0)  # commission
    put_str(&w, g.name)
    put_uint(&w, <uint64_t> now_ns)  # registered_ns
    put_uint(&w, 0)  # delivered_ns
    put_uint(&w, 0)  # annulled_ns
    put_unowed(&w, a)
    put_array(&w, 2)
    put_moment(&w, b"INICIADA", 8, now_ns)
    put_moment(&w, b"REGISTRADA", 10, now_ns)
    put_str(&w, nothing())  # annulment
    return 0 if w.short else w.at - out


cdef inline Py_ssize_t started_record(
    const Asked* a, uint64_t digest, int64_t now_ns, unsigned char* out
) noexcept nogil:
    """A `RedOperation` whose platform, in another process, is still to be asked; as `red_record`."""
    cdef Pen w = pen(out, VALUE_MAX)
    cdef int i
    put_asked(&w, a, digest, now_ns)
    put_chars(&w, b"INICIADA", 8)
    for i in range(5):  # code, key, operation, authorization, business date
        put_str(&w, nothing())
    put_uint(&w, 0)  # fee
    put_uint(&w, 0)  # commission
    put_str(&w, nothing())  # name
    for i in range(3):  # registered, delivered, annulled
        put_uint(&w, 0)
    put_unowed(&w, a)
    put_array(&w, 1)
    put_moment(&w, b"INICIADA", 8, now_ns)
    put_str(&w, nothing())  # annulment
    return 0 if w.short else w.at - out


cdef inline void put_hold(Pen* w, const Asked* a) noexcept nogil:
    """The fields of a `Hold` from its reference to its currency: what is known before it leaves."""
    put_chars(w, b"reference", 9)
    put_str(w, a.reference)
    put_chars(w, b"kind", 4)
    put_str(w, a.kind)
    put_chars(w, b"branch", 6)
    put_str(w, a.hold.branch)
    put_chars(w, b"cashier", 7)
    put_str(w, a.hold.cashier)
    if a.hold.document.p != NULL:
        put_chars(w, b"document", 8)
        put_str(w, a.hold.document)
    else:
        put_chars(w, b"phone", 5)
        put_str(w, a.hold.phone)
    if a.hold.token.n:
        put_chars(w, b"token", 5)
        put_str(w, a.hold.token)
    if a.card.n:
        put_chars(w, b"card", 4)
        put_str(w, a.card)
    if a.depositor.n:
        put_chars(w, b"depositor", 9)
        put_str(w, a.depositor)
    put_chars(w, b"amount", 6)
    put_uint(w, <uint64_t> a.hold.amount)
    put_chars(w, b"currency", 8)
    put_str(w, a.hold.currency)


cdef inline int hold_fields(const Asked* a) noexcept nogil:
    """How many fields a `Hold` has, its tag included."""
    return 10 + (a.hold.token.n > 0) + (a.card.n > 0) + (a.depositor.n > 0)


cdef inline Py_ssize_t sicoop_record(
    const Asked* a, const Grant* g, uint64_t digest, int64_t now_ns, unsigned char* out
) noexcept nogil:
    """A `SicoopOperation` that is captured; as `red_record`."""
    cdef Pen w = pen(out, VALUE_MAX)
    put_array(&w, SICOOP_FIELDS)
    put_str(&w, a.reference)
    put_str(&w, a.hold.network)
    put_str(&w, a.hold.operation)
    put_str(&w, a.kind)
    put_uint(&w, <uint64_t> a.hold.amount)
    put_str(&w, a.hold.currency)
    put_str(&w, a.hold.terminal)
    put_str(&w, a.hold.branch)
    put_str(&w, a.hold.cashier)
    put_uint(&w, digest)
    put_uint(&w, <uint64_t> now_ns)
    put_str(&w, a.business_date)
    put_uint(&w, <uint64_t> a.hold.day)
    put_chars(&w, b"CAPTURADA", 9)
    put_chars(&w, b"00", 2)
    put_chars(&w, b"APROBADA", 8)
    put_str(&w, text(g.authorization, 6))
    put_uint(&w, 0)  # fee
    put_uint(&w, 0)  # commission
    put_str(&w, g.name)
    put_str(&w, a.limits_version)
    put_str(&w, nothing())  # owed
    put_str(&w, nothing())  # reason
    put_uint(&w, 0)  # attempts
    put_bool(&w, False)  # annulled
    put_bool(&w, True)  # held
    put_str(&w, a.depositor)
    put_u8(&w, 0x80)  # declaration
    put_array(&w, 6)
    put_moment(&w, b"RECIBIDA", 8, now_ns)
    put_moment(&w, b"ENVIADA", 7, now_ns)
    put_moment(&w, b"RESERVADA", 9, now_ns)
    put_moment(&w, b"RESPONDIDA", 10, now_ns)
    put_moment(&w, b"CONFIRMADA", 10, now_ns)
    put_moment(&w, b"CAPTURADA", 9, now_ns)
    put_str(&w, nothing())  # issuer
    return 0 if w.short else w.at - out


cdef inline uint64_t digest_at_red(SipKey key, const Asked* a) noexcept nogil:
    """Digest of the declared fields, as `Red._opened` has them."""
    cdef unsigned char body[BODY_MAX]
    cdef Pen w = pen(body, sizeof(body))
    put_array(&w, 11)
    put_str(&w, a.kind)
    put_str(&w, a.hold.cashier)
    put_identity(&w, a)
    put_str(&w, a.hold.token)
    put_uint(&w, <uint64_t> a.hold.amount)
    put_str(&w, a.hold.currency)
    put_str(&w, a.hold.branch)
    put_str(&w, a.card)
    put_str(&w, a.depositor)
    put_u8(&w, 0x80)  # declaration
    return siphash24(key, body, w.at - body)


cdef inline uint64_t digest_at_sicoop(SipKey key, const Asked* a) noexcept nogil:
    """Digest of the request as a `Hold` in MessagePack; its type of document is the usual."""
    cdef unsigned char body[BODY_MAX]
    cdef Pen w = pen(body, sizeof(body))
    put_array(&w, 1)
    put_struct(&w, hold_fields(a))
    put_chars(&w, b"op", 2)
    put_chars(&w, b"hold", 4)
    put_chars(&w, b"id", 2)
    put_uint(&w, 0)
    put_hold(&w, a)
    put_chars(&w, b"sent_at", 7)
    put_str(&w, nothing())
    return siphash24(key, body, w.at - body)
