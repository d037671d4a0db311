"""What other native modules may use of `_relay`: operations passed on to a platform elsewhere."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from core_ext._counters cimport Counters, Histogram
from core_ext._frames cimport Channel
from core_ext._lanes cimport Forwarder, Lane, Lanes, TerminalLane
from core_ext._operation cimport Asked
from core_ext._pack cimport Text
from core_ext._payload cimport Request
from core_ext._records cimport Records
from core_ext._straight cimport Straight
from core_ext._ticket cimport Symbol, Ticket

cdef enum:
    BUCKETS = 1024
    SYMBOLS = 64
    REST_MAX = 320

cdef enum Phase:
    FREE = 0
    HOLD = 1               # the platform is to be asked, or has been
    CONFIRM = 2            # it has approved; it is to be told that we have registered, or has been

cdef struct Passing:       # an operation on its way; places are used again
    Phase phase
    uint32_t use           # how often the place was used
    uint32_t older         # in the order of `asked_ns`; of a free place: the next free one is newer
    uint32_t newer
    uint32_t by_terminal   # the next one in its bucket
    uint32_t by_id         # the next one in its bucket, once it has an id
    uint32_t behind        # the next one that waits for room in its session
    uint32_t trace
    bint json              # what its terminal speaks
    int64_t asked_ns       # when its step was
    int64_t ready_ns       # when it was durable; 0: not yet
    int64_t sent_ns        # when it left; 0: not yet
    uint64_t id
    void* origin           # lane of its terminal, of which a reference is ours; NULL once answered
    void* way              # lane of its platform, of which a reference is ours
    int fields
    Py_ssize_t rest_n
    unsigned char reference[26]
    unsigned char rest[REST_MAX]  # of a hold: its fields from the reference to the currency

cdef struct Verdict:       # the plain answer of a platform; texts in the caller's memory
    uint64_t id
    Text code
    Text reference
    Text operation
    Text authorization
    Text business_date
    Text name
    uint64_t fee
    uint64_t commission

cdef struct Written:       # how amounts of a currency are written
    unsigned char currency[3]
    Symbol symbol

cdef class Relay(Forwarder)

cdef class PlatformLane(Lane):
    cdef readonly object session
    cdef readonly uint64_t last_id
    cdef readonly int passing
    cdef public int others
    cdef readonly bint resumes
    cdef Channel _channel
    cdef Relay _relay
    cdef Counters _counters
    cdef Histogram _latency
    cdef Py_ssize_t _requests
    cdef Py_ssize_t _answers
    cdef int _most
    cdef int _sent
    cdef uint32_t _first          # waits for room
    cdef uint32_t _last
    cdef unsigned char _network[4]

    cdef int _leave(self, uint32_t place) except -1
    cdef void _forget(self, uint32_t place) noexcept
    cdef bint _take(self, const Verdict* v, int64_t now_ns, int64_t mono_ns) except -1

cdef class Relay(Forwarder):
    cdef Straight _straight
    cdef Records _records
    cdef Lanes _lanes
    cdef list _ways
    cdef Passing* _at
    cdef uint32_t _capacity
    cdef uint32_t _free
    cdef uint32_t _oldest
    cdef uint32_t _newest
    cdef readonly uint32_t count
    cdef readonly uint64_t confirmed
    cdef uint32_t _terminals[BUCKETS]
    cdef uint32_t _ids[BUCKETS]
    cdef int _token_digits
    cdef bint _kinds[2]
    cdef Written _symbols[SYMBOLS]
    cdef int _symbol_count
    cdef uint64_t _counts[2][18]

    cdef int _forward(
        self, TerminalLane lane, const Request* r, bint json, int64_t now_ns, int64_t mono_ns
    ) except -1
    cdef int _start(
        self, const Asked* a, TerminalLane lane, PlatformLane way, bint json, int64_t now_ns,
        int64_t mono_ns,
    ) except -1
    cdef bint _similar(self, const Asked* a) noexcept
    cdef PlatformLane _way(self, Text network)
    cdef uint32_t _new(self) except? 0
    cdef int _grow(self) except -1
    cdef void _append(self, uint32_t place) noexcept
    cdef void _unlink(self, uint32_t place) noexcept
    cdef void _drop_id(self, uint32_t place) noexcept
    cdef void _end(self, uint32_t place) noexcept
    cdef int _wait(self, uint32_t place) except -1
    cdef uint32_t _sent_by(self, PlatformLane lane, uint64_t id) noexcept
    cdef bint _register(
        self, uint32_t place, const Verdict* v, int64_t now_ns, int64_t mono_ns
    ) except -1
    cdef bint _counts_till(self, const unsigned char** at) noexcept
    cdef bint _print(
        self, const unsigned char** at, const Verdict* v, int64_t now_ns, Ticket* ticket
    ) except -1
    cdef const Symbol* _symbol_of(self, Text currency) noexcept
    cdef bint _confirm(self, uint32_t place) except -1
    cdef tuple _given_up(self, uint32_t place)
