"""What other native modules may use of `_straight`: operations decided without Python."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from core_ext._cursor cimport Pen
from core_ext._deposit cimport DepositRules, Meters
from core_ext._issuer cimport Grant, Issuer
from core_ext._ledger cimport Batch, Id, Ledger
from core_ext._mac cimport MacKey
from core_ext._operation cimport Asked
from core_ext._pack cimport Text
from core_ext._payload cimport Operation
from core_ext._records cimport Records
from core_ext._siphash cimport SipKey
from core_ext._ticket cimport Style, Symbol, Ticket

cdef enum:
    NETWORKS_MAX = 10000   # their numbers have four digits
    CURRENCIES = 32

cdef struct Done:          # an approved operation, registered and captured; copies, good for ever
    unsigned char reference[26]
    unsigned char operation[12]
    unsigned char authorization[6]
    unsigned char business_date[10]
    uint32_t trace
    int64_t amount
    bint ticket            # the terminal wants one

cdef struct Marked:        # a registered operation whose delivery was marked; copies
    unsigned char operation[12]
    unsigned char authorization[6]
    unsigned char business_date[10]
    uint32_t trace         # of the operation
    int64_t amount
    int64_t fee
    bint deposit           # else a cash_out

cdef struct Position:      # account of a network at sicoop
    bint known
    unsigned char currency[3]
    Id account

cdef struct Money:         # of one currency at sicoop
    unsigned char currency[3]
    Id issuer
    Symbol symbol

cdef class Straight:
    cdef readonly Issuer issuer
    cdef readonly DepositRules deposits
    cdef Records _records
    cdef Ledger _ledger
    cdef Batch _batch
    cdef Batch _probe      # holds as the ledger is asked about them
    cdef Batch _fresh      # accounts that a deposit needs
    cdef SipKey _fingerprint
    cdef Position _positions[10000]
    cdef Money _money[32]
    cdef int _money_count
    cdef int64_t _from_ns
    cdef int64_t _until_ns
    cdef int64_t _day_start_ns
    cdef int32_t _day
    cdef uint64_t _first_operation
    cdef unsigned char _today[8]
    cdef unsigned char _yesterday[8]
    cdef unsigned char _business[10]
    cdef unsigned char _version[32]
    cdef Py_ssize_t _version_n
    cdef bint _night
    cdef public bint near
    cdef int64_t _offset_ns
    cdef Style _style
    cdef MacKey _ticket_key
    cdef uint64_t _counts[2][18]   # of cash_outs, of deposits; by Why
    cdef int64_t _refused_ns    # of the latest that was left to the flows
    cdef uint32_t _refused_trace
    cdef unsigned char _refused_terminal[8]
    cdef int _refused_why

    cdef object _result(self, str terminal, const Operation* m, int64_t now_ns)
    cdef int decide(
        self, Text terminal, const Operation* m, int64_t now_ns, Done* done, Ticket* ticket
    ) except -1
    cdef int _decide(
        self, Text terminal, const Operation* m, int64_t now_ns, Done* done, Ticket* ticket
    ) except -1
    cdef int mark(
        self, Text terminal, uint32_t original, int64_t now_ns, Marked* marked
    ) except -1
    cdef int _identity(self, const Operation* m, Asked* a, Pen* w) noexcept
    cdef int _peers(self, Text terminal, const Operation* m, Asked* a, Pen* w) noexcept
    cdef int _name(self, const Operation* m, Asked* a, int64_t now_ns, Pen* w) noexcept
    cdef bint _refer(self, const Operation* m, Asked* a, int64_t now_ns, Pen* w) noexcept
    cdef int _accounts(self, Asked* a) noexcept
    cdef bint _printable(self, const Asked* a) noexcept
    cdef uint64_t _next_operation(self) noexcept
    cdef bint _known(self, Asked* a, int64_t now_ns) noexcept
    cdef int _judge(
        self, Asked* a, Grant* g, Meters* meters, int64_t now_ns, Pen* w
    ) except -1
    cdef bint _grantable(self, const Asked* a, const Grant* g, int64_t now_ns) except -1
    cdef bint _deposit_grantable(
        self, const Asked* a, const Grant* g, const Meters* meters, int64_t now_ns
    ) except -1
    cdef int _print(
        self, const Asked* a, const Grant* g, int64_t now_ns, Ticket* ticket
    ) except -1
    cdef int _store(self, const Asked* a, const Grant* g, int64_t now_ns) except -1
