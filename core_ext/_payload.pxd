"""What a terminal sends most, and the answers to it, as payloads of session frames.

Read, in place, is the plain form of a `CashOut`, `Deposit`, `Delivered` or `Echo`, in JSON or
MessagePack: every field once, texts of printable ASCII without escapes, whole numbers. Whatever
else may also be meant (unknown fields, escapes, `1e3`) is for the general decoder: `read` says no,
and never judges. Written is what msgspec writes.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from core_ext._cursor cimport Cursor, Pen, cursor, left, put, put_u8, take_u8
from core_ext._pack cimport (
    Text, is_text, nothing, put_array, put_bool, put_chars, put_number, put_str, put_struct,
    put_uint, spoil, take_str, take_uint, text,
)

cdef enum:
    LOCAL_TIME_MAX = 40
    TRACE_MAX = 999_999
    ANSWER_MAX = 2048      # bytes of an answer, ticket included

cdef enum Op:
    NO_OP = 0
    CASH_OUT = 1
    DELIVERED = 2
    DEPOSIT = 3
    ECHO = 4
    ECHO_ANSWER = 5

cdef struct Operation:     # as the terminal sent it; texts in the caller's memory, not looked at
    bint deposit           # else a cash_out
    Text cashier
    Text document_type
    Text document          # p is NULL where it was not sent; so for phone and branch
    Text phone
    Text token             # of a cash_out
    Text card              # of a deposit, as depositor
    Text depositor
    Text currency
    Text branch
    int64_t amount
    uint32_t trace

cdef struct Request:
    Op op
    Operation operation
    uint32_t original      # of a mark of delivery
    uint32_t trace         # 0: not sent; of any request
    bint has_id            # of an echo
    uint64_t id

cdef struct Told:          # what an answer says about an approved operation
    Text operation
    Text authorization
    Text business_date
    int64_t amount
    int64_t fee
    uint32_t trace         # 0: none
    uint32_t original      # 0: not told
    bint delivered         # it was just marked, else it was just registered
    bint deposit           # else a cash_out

cdef enum Field:
    OP = 0
    TRACE = 1
    CASHIER = 2
    DOCUMENT_TYPE = 3
    DOCUMENT = 4
    PHONE = 5
    TOKEN = 6
    AMOUNT_FIELD = 7
    CURRENCY = 8
    BRANCH = 9
    LOCAL_TIME = 10
    ORIGINAL = 11
    CARD = 12
    DEPOSITOR = 13
    ID = 14
    NO_FIELD = 15


cdef inline Field field_named(Text name) noexcept nogil:
    if name.n == 2:
        return OP if is_text(name, b"op", 2) else ID if is_text(name, b"id", 2) else NO_FIELD
    if name.n == 5:
        if is_text(name, b"trace", 5):
            return TRACE
        if is_text(name, b"token", 5):
            return TOKEN
        if is_text(name, b"phone", 5):
            return PHONE
    elif name.n == 6:
        if is_text(name, b"amount", 6):
            return AMOUNT_FIELD
        if is_text(name, b"branch", 6):
            return BRANCH
    elif name.n == 8:
        if is_text(name, b"document", 8):
            return DOCUMENT
        if is_text(name, b"original", 8):
            return ORIGINAL
        if is_text(name, b"currency", 8):
            return CURRENCY
    elif is_text(name, b"cashier", 7):
        return CASHIER
    elif is_text(name, b"card", 4):
        return CARD
    elif is_text(name, b"depositor", 9):
        return DEPOSITOR
    elif is_text(name, b"document_type", 13):
        return DOCUMENT_TYPE
    elif is_text(name, b"local_time", 10):
        return LOCAL_TIME
    return NO_FIELD


cdef inline void begin(Request* r) noexcept nogil:
    cdef Operation* m = &r.operation
    m.cashier = m.document = m.phone = m.token = m.currency = m.branch = nothing()
    m.card = m.depositor = nothing()
    m.document_type = text(b"CI", 2)
    m.amount = 0
    m.trace = r.trace = r.original = 0
    m.deposit = r.has_id = False
    r.id = 0
    r.op = NO_OP


cdef inline bint set_text(Request* r, Field field, Text value) noexcept nogil:
    cdef Operation* m = &r.operation
    if field == CASHIER:
        m.cashier = value
    elif field == DOCUMENT_TYPE:
        m.document_type = value
    elif field == DOCUMENT:
        m.document = value
    elif field == PHONE:
        m.phone = value
    elif field == TOKEN:
        m.token = value
    elif field == CURRENCY:
        m.currency = value
    elif field == BRANCH:
        m.branch = value
    elif field == CARD:
        m.card = value
    elif field == DEPOSITOR:
        m.depositor = value
    elif field == LOCAL_TIME:
        return value.n <= LOCAL_TIME_MAX
    else:
        r.op = op_named(value)
        return r.op != NO_OP
    return True


cdef inline Op op_named(Text name) noexcept nogil:
    if is_text(name, b"cash_out", 8):
        return CASH_OUT
    if is_text(name, b"delivered", 9):
        return DELIVERED
    if is_text(name, b"deposit", 7):
        return DEPOSIT
    if is_text(name, b"echo", 4):
        return ECHO
    if is_text(name, b"echo_answer", 11):
        return ECHO_ANSWER
    return NO_OP


cdef inline bint is_number(Field field) noexcept nogil:
    return field == AMOUNT_FIELD or field == TRACE or field == ORIGINAL or field == ID


cdef inline bint whole(Request* r, uint32_t seen) noexcept nogil:
    """Whether what must be there is there, nothing strange beside it, and numbers in range."""
    cdef uint32_t needed = 1 << OP | 1 << TRACE | 1 << CASHIER | 1 << AMOUNT_FIELD | 1 << CURRENCY
    cdef uint32_t strange = 1 << ORIGINAL | 1 << ID
    cdef Operation* m = &r.operation
    if seen >> <int> TRACE & 1 and not 1 <= r.trace <= TRACE_MAX:
        return False
    if r.op == DELIVERED:
        return (seen | 1 << TRACE) == (1 << OP | 1 << TRACE | 1 << ORIGINAL) and r.original >= 1
    if r.op == ECHO or r.op == ECHO_ANSWER:
        r.has_id = seen >> <int> ID & 1
        return (seen | 1 << TRACE | 1 << ID) == (1 << OP | 1 << TRACE | 1 << ID)
    if r.op == CASH_OUT:
        needed |= 1 << TOKEN
        strange |= 1 << CARD | 1 << DEPOSITOR
    else:
        strange |= 1 << TOKEN
    m.deposit = r.op == DEPOSIT
    m.trace = r.trace
    return (
        r.op != NO_OP and (seen & needed) == needed and not seen & strange
        and 1 <= m.amount <= <int64_t> 999_999_999_999
    )


# ---- reading


cdef inline uint8_t peek(const Cursor* c) noexcept nogil:
    """The next byte, left where it is; 0 at the end."""
    return c.at[0] if left(c) > 0 else 0


cdef inline void blanks(Cursor* c) noexcept nogil:
    while peek(c) in (32, 9, 10, 13):
        take_u8(c)


cdef inline bint sign(Cursor* c, uint8_t wanted) noexcept nogil:
    """Take one character of JSON's own, with blanks around it; False where it is another."""
    blanks(c)
    if peek(c) != wanted:
        spoil(c)
        return False
    take_u8(c)
    blanks(c)
    return True


cdef inline Text json_text(Cursor* c) noexcept nogil:
    """A string of printable ASCII without escapes."""
    cdef const unsigned char* start
    cdef uint8_t byte
    if take_u8(c) != 34:
        spoil(c)
        return nothing()
    start = c.at
    while True:
        byte = take_u8(c)
        if byte == 34:
            return text(start, c.at - 1 - start)
        if not 32 <= byte <= 126 or byte == 92:
            spoil(c)
            return nothing()


cdef inline uint64_t json_number(Cursor* c) noexcept nogil:
    """A whole number of at most 12 digits, without sign and leading zeros."""
    cdef uint64_t value = 0
    cdef int digits = 0
    while 48 <= peek(c) <= 57:
        value = 10 * value + take_u8(c) - 48
        digits += 1
        if digits > 12 or (value == 0 and digits > 1):
            spoil(c)
            return 0
    if digits == 0:
        spoil(c)
    return value


cdef inline void set_number(Request* r, Field field, uint64_t value, Cursor* c) noexcept nogil:
    if field == AMOUNT_FIELD and value <= <uint64_t> 999_999_999_999:
        r.operation.amount = <int64_t> value
    elif field == TRACE and value <= TRACE_MAX:
        r.trace = <uint32_t> value
    elif field == ORIGINAL and value <= TRACE_MAX:
        r.original = <uint32_t> value
    elif field == ID and value >> 63 == 0:
        r.id = value
    else:
        spoil(c)


cdef inline bint read_json(Cursor* c, Request* r) noexcept nogil:
    cdef uint32_t seen = 0
    cdef Field field
    if not sign(c, 123):
        return False
    while not c.short:
        field = field_named(json_text(c))
        if field == NO_FIELD or seen >> <int> field & 1 or not sign(c, 58):
            return False
        seen |= <uint32_t> 1 << <int> field
        if is_number(field):
            set_number(r, field, json_number(c), c)
        elif not set_text(r, field, json_text(c)):
            return False
        blanks(c)
        if peek(c) == 125:
            break
        sign(c, 44)
    take_u8(c)
    blanks(c)
    return not c.short and left(c) == 0 and whole(r, seen)


cdef inline bint printable(Text t) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(t.n):
        if not 32 <= t.p[i] <= 126:
            return False
    return True


cdef inline bint read_msgpack(Cursor* c, Request* r) noexcept nogil:
    cdef uint32_t seen = 0
    cdef uint8_t head = take_u8(c)
    cdef int pairs
    cdef Field field
    cdef Text value
    if head & 0xF0 == 0x80:
        pairs = head & 0x0F
    elif head == 0xDE and take_u8(c) == 0:
        pairs = take_u8(c)
    else:
        return False
    while pairs and not c.short:
        pairs -= 1
        field = field_named(take_str(c))
        if field == NO_FIELD or seen >> <int> field & 1:
            return False
        seen |= <uint32_t> 1 << <int> field
        if is_number(field):
            set_number(r, field, take_uint(c), c)
        else:
            value = take_str(c)
            if not printable(value) or not set_text(r, field, value):
                return False
    return not c.short and left(c) == 0 and whole(r, seen)


cdef inline bint read(const unsigned char* p, Py_ssize_t n, Request* r) noexcept nogil:
    """Read a payload; False: it is no request of the plain form, and may be anything."""
    cdef Cursor c = cursor(p, n)
    begin(r)
    if peek(&c) == 123:
        return read_json(&c, r)
    return read_msgpack(&c, r)


# ---- writing


cdef inline Text words_of(const Told* t) noexcept nogil:
    """The text for the cashier."""
    if t.delivered:
        return text(b"Ya recibida.", 12) if t.deposit else text(b"Ya entregada.", 13)
    return text(b"Reciba el efectivo.", 19) if t.deposit else text(b"Entregue el efectivo.", 21)


cdef inline Text instruction_of(const Told* t) noexcept nogil:
    if t.delivered:
        return text(b"NO_RECIBA", 9) if t.deposit else text(b"NO_ENTREGUE", 11)
    return text(b"RECIBA", 6) if t.deposit else text(b"ENTREGUE", 8)


cdef inline Text state_of(const Told* t) noexcept nogil:
    return text(b"ENTREGADA", 9) if t.delivered else text(b"REGISTRADA", 10)


cdef inline void put_quoted(Pen* w, Text t) noexcept nogil:
    """A text of JSON that needs no escapes."""
    put_u8(w, 34)
    put(w, t.p, t.n)
    put_u8(w, 34)


cdef inline void write_json(Pen* w, const Told* t) noexcept nogil:
    """The answer about an operation, but for its end: ticket and brace."""
    put(w, b'{"op":"answer","code":"00","key":"APROBADA","text":', 51)
    put_quoted(w, words_of(t))
    if t.trace:
        put(w, b',"trace":', 9)
        put_number(w, t.trace)
    put(w, b',"instruction":', 15)
    put_quoted(w, instruction_of(t))
    put(w, b',"state":', 9)
    put_quoted(w, state_of(t))
    if t.original:
        put(w, b',"original":', 12)
        put_number(w, t.original)
    put(w, b',"operation":"', 14)
    put(w, t.operation.p, t.operation.n)
    put(w, b'","authorization":"', 19)
    put(w, t.authorization.p, t.authorization.n)
    put(w, b'","business_date":"', 19)
    put(w, t.business_date.p, t.business_date.n)
    put(w, b'","amount":', 11)
    put_number(w, <uint64_t> t.amount)
    put(w, b',"fee":', 7)
    put_number(w, <uint64_t> t.fee)
    put(w, b',"duplicate":false', 18)


cdef inline void write_msgpack(Pen* w, const Told* t, bint ticket) noexcept nogil:
    """The same in MessagePack, up to the lines of the ticket where there is one."""
    put_struct(w, 12 + (t.trace != 0) + (t.original != 0) + ticket)
    put_chars(w, b"op", 2)
    put_chars(w, b"answer", 6)
    put_chars(w, b"code", 4)
    put_chars(w, b"00", 2)
    put_chars(w, b"key", 3)
    put_chars(w, b"APROBADA", 8)
    put_chars(w, b"text", 4)
    put_str(w, words_of(t))
    if t.trace:
        put_chars(w, b"trace", 5)
        put_uint(w, t.trace)
    put_chars(w, b"instruction", 11)
    put_str(w, instruction_of(t))
    put_chars(w, b"state", 5)
    put_str(w, state_of(t))
    if t.original:
        put_chars(w, b"original", 8)
        put_uint(w, t.original)
    put_chars(w, b"operation", 9)
    put_str(w, t.operation)
    put_chars(w, b"authorization", 13)
    put_str(w, t.authorization)
    put_chars(w, b"business_date", 13)
    put_str(w, t.business_date)
    put_chars(w, b"amount", 6)
    put_uint(w, <uint64_t> t.amount)
    put_chars(w, b"fee", 3)
    put_uint(w, <uint64_t> t.fee)
    put_chars(w, b"duplicate", 9)
    put_bool(w, False)
    if ticket:
        put_chars(w, b"ticket", 6)


cdef inline void write_echo(Pen* w, const Request* r, bint json) noexcept nogil:
    """The answer to an echo, in the encoding of its request."""
    if json:
        put(w, b'{"op":"echo_answer"', 19)
        if r.trace:
            put(w, b',"trace":', 9)
            put_number(w, r.trace)
        if r.has_id:
            put(w, b',"id":', 6)
            put_number(w, r.id)
        put_u8(w, 125)
        return
    put_u8(w, <uint8_t> (0x81 + (r.trace != 0) + r.has_id))  # a map of so few
    put_chars(w, b"op", 2)
    put_chars(w, b"echo_answer", 11)
    if r.trace:
        put_chars(w, b"trace", 5)
        put_uint(w, r.trace)
    if r.has_id:
        put_chars(w, b"id", 2)
        put_uint(w, r.id)
