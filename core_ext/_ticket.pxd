"""The paper ticket of an approved operation, line by line, as `switch.flows.ticket` composes it.

Forty columns of printable ASCII without `"` and `\\`, so a line is its own JSON text; what is told
or found with other characters is left to the flows.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from core_ext._cursor cimport Pen, pen, put, put_u8
from core_ext._mac cimport MacKey
from core_ext._pack cimport Text, put_decimal, put_number, text

cdef enum:
    COLUMNS = 40
    LINES_MAX = 20
    HEAD_LINES = 4
    SYMBOL_MAX = 8

cdef struct Line:
    unsigned char at[40]
    Py_ssize_t n

cdef struct Ticket:
    Line lines[20]
    int count

cdef struct Style:            # what every ticket of this process has in common
    bint known
    Line head[4]              # company, RUC and branch, address, rule; empty ones are left out
    int head_count
    int branch_line           # which of them shows the branch, and where; -1: none
    int branch_at
    Line titles[2]            # of a cash_out, of a deposit

cdef struct Symbol:           # how amounts of a currency are written
    unsigned char sign[8]
    Py_ssize_t n
    int exponent

cdef struct Printed:          # what one ticket says
    bint deposit              # else a cash_out
    Text reference
    Text operation
    Text authorization
    Text terminal
    Text branch
    Text cashier
    Text cashier_name
    Text document_type        # nothing for a phone
    Text identity             # document or phone, in clear
    Text holder               # of the card of a deposit, masked and plain; nothing: no line
    Text currency
    Text business_date        # 2026-11-22
    int64_t amount
    int64_t fee
    int64_t second            # of the local day
    uint64_t trace


cdef inline bint fits_line(Text t) noexcept nogil:
    """Whether a text can stand in a line as it is."""
    cdef Py_ssize_t i
    for i in range(t.n):
        if not 32 <= t.p[i] <= 126 or t.p[i] in (34, 92):
            return False
    return True


cdef inline Line* next_line(Ticket* ticket) noexcept nogil:
    cdef Line* line = &ticket.lines[ticket.count]
    ticket.count += 1
    line.n = 0
    return line


cdef inline void add_line(Ticket* ticket, const void* p, Py_ssize_t n) noexcept nogil:
    cdef Line* line = next_line(ticket)
    line.n = n if n <= COLUMNS else COLUMNS
    memcpy(line.at, p, line.n)


cdef inline void add_row(
    Ticket* ticket, const char* label, Py_ssize_t label_n, Text value
) noexcept nogil:
    """Label at the left edge, value at the right; a value too long for the room is cut."""
    cdef Line* line = next_line(ticket)
    cdef Py_ssize_t space = COLUMNS - label_n
    cdef Py_ssize_t n = value.n if value.n <= space else space
    memset(line.at, 32, COLUMNS)
    memcpy(line.at, label, label_n)
    memcpy(line.at + COLUMNS - n, value.p, n)
    line.n = COLUMNS


cdef inline Text money_text(
    const Symbol* symbol, int64_t amount, unsigned char* out, Py_ssize_t out_n
) noexcept nogil:
    """`Gs. 150.000` or `US$ 1.234,05`."""
    cdef uint64_t minor = 1, units
    cdef uint64_t groups[8]
    cdef Pen w = pen(out, out_n)
    cdef int i, count = 0
    for i in range(symbol.exponent):
        minor *= 10
    units = <uint64_t> amount // minor
    put(&w, symbol.sign, symbol.n)
    put_u8(&w, 32)
    while True:
        groups[count] = units % 1000
        units //= 1000
        count += 1
        if units == 0 or count == 8:
            break
    count -= 1
    put_number(&w, groups[count])
    while count:
        count -= 1
        put_u8(&w, 46)
        put_decimal(&w, groups[count], 3)
    if symbol.exponent:
        put_u8(&w, 44)
        put_decimal(&w, <uint64_t> amount % minor, symbol.exponent)
    return text(out, w.at - out)


cdef inline void add_time(Ticket* ticket, const Printed* p) noexcept nogil:
    """`Fecha 22/11/2026           Hora 09:05:12`."""
    cdef Line* line = next_line(ticket)
    cdef Pen w = pen(line.at, COLUMNS)
    put(&w, b"Fecha ", 6)
    put(&w, p.business_date.p + 8, 2)
    put_u8(&w, 47)
    put(&w, p.business_date.p + 5, 2)
    put_u8(&w, 47)
    put(&w, p.business_date.p, 4)
    put(&w, b"           Hora ", 16)
    put_decimal(&w, <uint64_t> (p.second // 3600), 2)
    put_u8(&w, 58)
    put_decimal(&w, <uint64_t> (p.second // 60 % 60), 2)
    put_u8(&w, 58)
    put_decimal(&w, <uint64_t> (p.second % 60), 2)
    line.n = w.at - line.at


cdef inline void add_till(Ticket* ticket, const Printed* p) noexcept nogil:
    """`Terminal 00001234   Cajero 000045 ANA R.`, the name cut to the room left."""
    cdef unsigned char label[17]
    cdef unsigned char value[64]
    cdef Pen w = pen(label, sizeof(label))
    cdef Text name = p.cashier_name
    cdef Py_ssize_t n
    put(&w, b"Terminal ", 9)
    put(&w, p.terminal.p, p.terminal.n)
    w = pen(value, sizeof(value))
    put(&w, b"Cajero ", 7)
    put(&w, p.cashier.p, p.cashier.n)
    n = w.at - value
    if name.n:
        while name.n and name.p[0] == 32:
            name = text(name.p + 1, name.n - 1)
        while name.n and name.p[name.n - 1] == 32:
            name.n -= 1
        put_u8(&w, 32)
        put(&w, name.p, name.n if name.n <= 40 else 40)
        n = min(w.at - value, COLUMNS - 17 - 1)
        while n and value[n - 1] == 32:
            n -= 1
    add_row(ticket, <const char*> label, 17, text(value, n))


cdef inline int add_control(Ticket* ticket, const Printed* p, MacKey key) except -1:
    """`Control 1EABF11F                ORIGINAL`: an HMAC over what the ticket says."""
    cdef unsigned char body[256]
    cdef unsigned char tag[64]
    cdef unsigned char label[16]
    cdef Pen w = pen(body, sizeof(body))
    cdef int i
    put(&w, b"TK1|", 4)
    if p.deposit:
        put(&w, b"deposit|", 8)
    else:
        put(&w, b"cash_out|", 9)
    put(&w, p.reference.p, p.reference.n)
    put_u8(&w, 124)
    put(&w, p.operation.p, p.operation.n)
    put_u8(&w, 124)
    put(&w, p.authorization.p, p.authorization.n)
    put_u8(&w, 124)
    put_number(&w, <uint64_t> p.amount)
    put_u8(&w, 124)
    put(&w, p.currency.p, p.currency.n)
    put_u8(&w, 124)
    put(&w, p.business_date.p, p.business_date.n)
    put_u8(&w, 124)
    put_decimal(&w, <uint64_t> (p.second // 3600), 2)
    put_decimal(&w, <uint64_t> (p.second // 60 % 60), 2)
    put_decimal(&w, <uint64_t> (p.second % 60), 2)
    put(&w, b"|REGISTRADA", 11)
    key.compute(NULL, NULL, 0, body, w.at - body, tag)
    w = pen(label, sizeof(label))
    put(&w, b"Control ", 8)
    for i in range(4):
        put_u8(&w, b"0123456789ABCDEF"[tag[i] >> 4])
        put_u8(&w, b"0123456789ABCDEF"[tag[i] & 15])
    add_row(ticket, <const char*> label, 16, text(b"ORIGINAL", 8))
    return 0


cdef inline int compose(
    const Style* style, const Symbol* symbol, MacKey key, const Printed* p, Ticket* ticket
) except -1:
    """All lines of a ticket."""
    cdef unsigned char value[40]
    cdef Pen w
    cdef int i
    ticket.count = 0
    for i in range(style.head_count):
        add_line(ticket, style.head[i].at, style.head[i].n)
        if i == style.branch_line:
            memcpy(ticket.lines[i].at + style.branch_at, p.branch.p, 6)
    add_line(ticket, style.titles[<int> p.deposit].at, style.titles[<int> p.deposit].n)
    add_time(ticket, p)
    add_till(ticket, p)
    add_row(ticket, b"Nro. operacion", 14, p.operation)
    w = pen(value, sizeof(value))
    put_decimal(&w, p.trace, 6)
    add_row(ticket, b"Comprobante", 11, text(value, 6))
    add_row(ticket, b"Autorizacion", 12, p.authorization)
    w = pen(value, sizeof(value))
    if p.document_type.n:
        put(&w, p.document_type.p, p.document_type.n)
        put_u8(&w, 32)
    put(&w, b"****", 4)
    put(&w, p.identity.p + p.identity.n - 3, 3)
    if p.document_type.n:
        add_row(ticket, b"Documento", 9, text(value, w.at - value))
    else:
        add_row(ticket, b"Telefono", 8, text(value, w.at - value))
    if p.holder.n:
        add_row(ticket, b"Titular", 7, p.holder)
    add_row(ticket, b"MONTO", 5, money_text(symbol, p.amount, value, sizeof(value)))
    add_row(ticket, b"Comision", 8, money_text(symbol, p.fee, value, sizeof(value)))
    add_line(ticket, b"----------------------------------------", COLUMNS)
    if p.deposit:
        add_line(ticket, b"Efectivo recibido del depositante.", 34)
    else:
        add_line(ticket, b"Efectivo entregado al titular.", 30)
    add_line(ticket, b"Operacion por cuenta de la entidad", 34)
    add_line(ticket, b"emisora. Conserve este comprobante.", 35)
    add_control(ticket, p, key)
    return 0
