"""The state of a ledger: layouts, where entries are found, and what they add to the digest.

All tables refer to each other by 32-bit references (index into an arena, 0 = none), never by
pointer. `_ledger` changes the state, `_ledger_snapshot` checks, dumps and loads it.
"""

from libc.stdint cimport (
    INT32_MIN, INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy

from core_ext._table cimport Arena, Index, index_home

cdef extern from *:
    """
    #include <stdint.h>

    typedef __int128 tr_i128;

    /* 64 x 64 -> 128 bit multiplication, folded, twice: the mixing of wyhash (public domain). */
    static inline uint64_t tr_fold(uint64_t a, uint64_t b) {
        unsigned __int128 m = (unsigned __int128)a * b;
        return (uint64_t)m ^ (uint64_t)(m >> 64);
    }
    static inline uint64_t tr_mix(uint64_t a, uint64_t b) {
        return tr_fold(tr_fold(a ^ 0xa0761d6478bd642fULL, b ^ 0xe7037ed1a0b428dbULL)
                           ^ 0x8ebc6af09c88c6e3ULL,
                       0x589965cc75374cc3ULL);
    }

    /* Multipliers of the digest: random, odd or even so that differences have few low zeros. */
    #define TR_M1 0x9E3779B97F4A7C15ULL
    #define TR_M2 0xD1B54A32D192ED04ULL
    #define TR_M3 0x8CB92BA72F3D8DD7ULL
    #define TR_M4 0xAEF17502108EF2DAULL
    #define TR_M5 0xF1357AEA2E62A9C5ULL

    #define TR_SECOND_NS INT64_C(1000000000)
    #define TR_DAY_NS INT64_C(86400000000000)
    #define TR_LOCKED_FOR_EVER (INT64_C(1) << 62)
    """
    ctypedef long long tr_i128  # really 128 bits: never let Cython convert one to Python
    uint64_t tr_mix(uint64_t a, uint64_t b) nogil
    uint64_t M1 "TR_M1"
    uint64_t M2 "TR_M2"
    uint64_t M3 "TR_M3"
    uint64_t M4 "TR_M4"
    uint64_t M5 "TR_M5"
    int64_t SECOND_NS "TR_SECOND_NS"
    int64_t DAY_NS "TR_DAY_NS"
    int64_t LOCKED_FOR_EVER "TR_LOCKED_FOR_EVER"

cdef enum:  # flags of an account
    A_DEBITS = 1
    A_CREDITS = 2
    A_FROZEN_DEBIT = 4
    A_FROZEN_CREDIT = 8
    A_FROZEN_HOLD = 16
    A_CLOSED = 32
    A_POSITION = 64
    A_PUBLIC = 127
    A_FLOOR = 0x1000  # a min_balance is set
    A_CAP = 0x2000  # a max_balance is set
    A_EXPOSED = 0x4000  # available may be negative: forced posting or lowered limit

cdef enum:  # states of a hold
    FREE = 0
    OPEN = 1
    CAPTURED = 2
    RELEASED = 3
    EXPIRED = 4
    TOMBSTONE = 5
    ANNULLED = 6

cdef enum:  # options and flags of a hold
    H_NIGHT = 1
    H_METERED = 2
    H_METER_CREDIT = 4  # meters are charged on their credit side
    H_INCREMENTED = 8
    H_FORCED = 16
    H_QUEUED = 32  # in the queue of closed holds

cdef enum:
    POLICY_NEVER = 0
    POLICY_ASK = 1
    POLICY_AUTO = 2

cdef enum:
    OP_ACCOUNT = 1
    OP_LIMITS = 2
    OP_PROFILE = 3
    OP_FLAGS = 4
    OP_TRANSFER = 5
    OP_HOLD = 6
    OP_INCREMENT = 7
    OP_CAPTURE = 8
    OP_RELEASE = 9
    OP_ANNUL = 10
    OP_ADJUST = 11
    OP_EXPIRE = 12  # in records only
    OP_STEP = 13
    OP_ATTEMPT = 14
    OP_CLEAR = 15
    OP_FORGET = 16
    OP_DECISION = 17  # in records only: a refusal that its key remembers
    OP_CHAIN = 18  # in records only
    OP_TICK = 19  # in batches only

cdef enum:
    C_FORCED = 1  # capture, transfer
    C_FINAL = 2  # capture
    C_ACCOUNTS = 4  # capture: debit and credit are given
    C_TOMBSTONE = 1  # release
    C_ROW = 1  # clear_attempts
    L_CREDIT = 1  # set_limits: which fields are given
    L_PROFILE = 2
    L_FLOOR = 4
    L_CAP = 8

cdef enum:  # results, as core_ext.results.Result numbers them
    DONE = 0
    REPEATED = 1
    PARTIAL = 2
    REPEATED_WITH_DIFFERENCE = 3
    KEY_EXPIRED = 4
    AMOUNT_NOT_POSITIVE = 6
    AMOUNT_OVER_RANGE = 7
    CURRENCY_DIFFERS = 8
    SAME_ACCOUNT = 9
    ACCOUNT_UNKNOWN = 10
    ACCOUNT_CLOSED = 11
    ACCOUNT_FROZEN_DEBIT = 12
    ACCOUNT_FROZEN_CREDIT = 13
    ACCOUNT_FROZEN_HOLD = 14
    FUNDS_SHORT = 15
    CREDIT_LIMIT_REACHED = 16
    BALANCE_CAP_REACHED = 17
    LIQUIDITY_SHORT = 18
    WOULD_OVERFLOW = 19
    LIMIT_AMOUNT = 20
    LIMIT_COUNT = 21
    HOLD_UNKNOWN = 22
    HOLD_CAPTURED = 23
    HOLD_RELEASED = 24
    HOLD_EXPIRED = 25
    OVER_HOLD = 26
    TOMBSTONED = 27
    ORIGINAL_UNKNOWN = 28
    ALREADY_REVERSED = 29
    CHAIN_FAILED = 31
    JOURNAL_FULL = 34
    OVERLOADED = 35
    TOO_LATE = 36

cdef struct Id:
    uint64_t lo
    uint64_t hi

cdef struct Account:  # 64 bytes, one cache line: all that a hold without limits reads
    Id id
    int64_t debits_pending
    int64_t debits_posted
    int64_t credits_pending
    int64_t credits_posted
    int64_t credit_limit
    uint16_t book
    uint16_t code
    uint16_t flags
    uint16_t profile

cdef struct Cold:  # 32 bytes, same reference as its Account
    int64_t floor
    int64_t cap
    int64_t created_ns
    uint32_t usage
    uint32_t spare

cdef struct Bucket:
    int32_t period
    uint32_t count
    int64_t amount

cdef struct UsageSide:
    Bucket current[4]
    Bucket previous[4]

cdef struct Usage:
    UsageSide side[2]

cdef struct Profile:
    int64_t operation_min
    int64_t operation_max
    int64_t multiple
    int64_t amount[8]
    uint32_t count[8]
    uint32_t version
    uint32_t known

cdef struct Book:
    tr_i128 debits_pending
    tr_i128 debits_posted
    tr_i128 credits_pending
    tr_i128 credits_posted
    uint32_t ledger
    uint32_t spare[3]

cdef struct Hold:  # 128 bytes
    Id id
    int64_t amount
    int64_t captured
    int64_t released
    uint32_t debit
    uint32_t credit
    uint32_t next
    uint32_t head
    int64_t created_ns
    int64_t expires_ns
    int64_t closed_ns
    uint32_t meters[4]
    int32_t day
    uint16_t code
    uint8_t state
    uint8_t policy
    uint8_t flags
    uint8_t meter_count
    uint8_t charged
    uint8_t spare
    uint32_t heap_at
    uint32_t queue_next
    uint32_t key
    uint32_t spare2

cdef struct Key:  # 48 bytes
    Id id
    uint64_t digest
    int64_t time_ns
    uint32_t hold
    uint32_t next
    uint8_t result
    uint8_t window
    uint8_t account
    uint8_t spare[5]

cdef struct Attempt:  # 64 bytes
    Id id
    int64_t last_step
    int64_t window_ns
    int64_t touched_ns
    int64_t locked_until_s
    uint32_t count
    uint32_t row
    uint32_t prev
    uint32_t next

cdef struct Forced:
    Id hold
    Id debit
    int64_t amount
    int64_t time_ns

cdef struct Command:
    uint8_t op
    uint8_t linked
    uint8_t has_key
    uint8_t policy
    uint8_t options
    uint8_t meter_count
    uint16_t code
    uint16_t flags
    uint16_t profile
    int32_t day
    uint32_t ledger
    uint32_t seconds
    uint32_t number
    uint8_t result
    uint8_t first
    uint8_t window
    uint8_t account
    int64_t decided_ns
    int64_t amount
    int64_t low
    int64_t high
    int64_t deadline_ns
    int64_t key_ns
    uint64_t digest
    uint64_t id_hash
    uint64_t key_hash
    uint32_t hold_at
    uint32_t debit_at
    uint32_t credit_at
    uint32_t meters_at[4]
    uint32_t spare
    Id key
    Id id
    Id debit
    Id credit
    Id meters[4]

cdef enum:
    WINDOWS = 4
    DAY = 0
    NIGHT = 1
    WEEK = 2
    MONTH = 3
    BOOKS_MAX = 4096
    PROFILES_MAX = 65536
    FORCED_MAX = 1 << 20
    CHAIN_MAX = 16
    STEP_MAX = 4096
    UNDO_BYTES = 8 << 20
    UNDO_ONE = 128 << 10  # an annulled chain of 16 limited holds with 4 meters each needs 45 KB
    RECORD_BYTES = 64 << 10
    BLOCK = 32  # commands prefetched together
    SCOUTED = 6  # entries looked at before their turn to be forgotten

cdef enum:
    BATCH_COMMANDS_MAX = 65536
    LOCKED_FOR_EVER_BITS = 62

cdef struct Core:  # the whole state of one ledger, and what one command leaves in the meantime
    Arena accounts
    Arena colds
    Arena usages
    Arena holds
    Arena keys
    Arena attempts
    Arena forced
    Index account_index
    Index hold_index
    Index key_index
    Index attempt_index
    Profile* profiles
    uint32_t profile_top  # highest profile ever set, plus 1
    Book* books
    uint32_t book_count
    uint32_t* heap
    uint32_t heap_count
    uint32_t closed_first
    uint32_t closed_last
    uint32_t closed_count
    uint32_t key_first
    uint32_t key_last
    uint32_t attempt_first
    uint32_t attempt_last
    int64_t horizon_ns
    uint64_t digest
    uint64_t changes
    bint recorded  # whether there is a sink
    char* undo
    size_t undo_used
    unsigned char* record
    size_t record_used
    uint32_t book_logged
    uint32_t placed
    uint32_t chain_head
    uint32_t chain_tail
    bint in_chain
    bint effect
    uint64_t digest_before
    Attempt counted
    const char* fault
    bint stopped


# --- Small pure helpers ---------------------------------------------------------------------------

cdef inline uint64_t id_mix(const Id* id) noexcept nogil:
    return tr_mix(id.lo, id.hi)


cdef inline bint same_id(const Id* a, const Id* b) noexcept nogil:
    return a.lo == b.lo and a.hi == b.hi


cdef inline bytes id_bytes(const Id* id):
    return (<const char*> id)[:16]


cdef inline int32_t month_of(int32_t day) noexcept nogil:
    """Months since year 0 of a day since 1970-01-01 (Hinnant's civil_from_days)."""
    cdef int32_t z = day + 719468
    cdef int32_t era = z // 146097
    cdef int32_t doe = z - era * 146097
    cdef int32_t yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    cdef int32_t doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    cdef int32_t mp = (5 * doy + 2) // 153
    cdef int32_t month = mp + 3 if mp < 10 else mp - 9
    cdef int32_t year = yoe + era * 400 + (1 if month <= 2 else 0)
    return year * 12 + month - 1


cdef inline int32_t period_of(int window, int32_t day) noexcept nogil:
    """Number of the window that a business date is in; weeks begin on Monday."""
    if window == WEEK:
        return (day + 3) // 7
    if window == MONTH:
        return month_of(day)
    return day


cdef inline tr_i128 available_of(const Account* a) noexcept nogil:
    cdef tr_i128 room = a.credits_posted
    room = room - a.debits_posted - a.debits_pending + a.credit_limit
    return room


cdef inline int64_t saturated_add(int64_t a, int64_t b) noexcept nogil:
    """a + b for two values that are not negative."""
    return INT64_MAX if a > INT64_MAX - b else a + b


cdef inline int id_from(bytes text, Id* id) except -1:
    if text is None or len(text) != 16:
        raise ValueError("an id is 16 bytes")
    memcpy(id, <const char*> text, 16)
    return 0


cdef inline const unsigned char* id_of(bytes text) except NULL:
    """The 16 bytes of an id, as long as `text` lives."""
    if text is None or len(text) != 16:
        raise ValueError("an id is 16 bytes")
    return <const unsigned char*> text


# --- Finding entries ------------------------------------------------------------------------------

cdef inline uint64_t tag_of(uint64_t h) noexcept nogil:
    """What an index knows of a hash."""
    return h >> 32


cdef inline uint32_t index_find(
    const Index* t, const Arena* a, const Id* id, uint64_t h
) noexcept nogil:
    """Return the reference of the entry with this id, or 0. Every entry begins with its Id.

    An entry is touched only when 32 bits of the hash agree already.
    """
    cdef uint64_t at = index_home(t, tag_of(h))
    cdef uint64_t slot
    while True:
        slot = t.slots[at]
        if slot == 0:
            return 0
        if slot >> 32 == tag_of(h) and same_id(
            <const Id*> (a.base + <uint32_t> slot * a.stride), id
        ):
            return <uint32_t> slot
        at += 1


cdef inline Account* account_at(Core* core, uint32_t ref) noexcept nogil:
    return <Account*> core.accounts.base + ref


cdef inline Cold* cold_at(Core* core, uint32_t ref) noexcept nogil:
    return <Cold*> core.colds.base + ref


cdef inline Usage* usage_at(Core* core, uint32_t ref) noexcept nogil:
    return <Usage*> core.usages.base + ref


cdef inline Hold* hold_at(Core* core, uint32_t ref) noexcept nogil:
    return <Hold*> core.holds.base + ref


cdef inline Key* key_at(Core* core, uint32_t ref) noexcept nogil:
    return <Key*> core.keys.base + ref


cdef inline Attempt* attempt_at(Core* core, uint32_t ref) noexcept nogil:
    return <Attempt*> core.attempts.base + ref


cdef inline uint32_t find_account(Core* core, const Id* id) noexcept nogil:
    return index_find(&core.account_index, &core.accounts, id, id_mix(id))


cdef inline uint32_t find_hold(Core* core, const Id* id) noexcept nogil:
    return index_find(&core.hold_index, &core.holds, id, id_mix(id))


# --- Digests --------------------------------------------------------------------------------------

cdef inline uint64_t bucket_digest(uint64_t base, int window, const Bucket* b) noexcept nogil:
    if b.period == INT32_MIN:
        return 0
    return tr_mix(base + <uint64_t> window, <uint64_t> <int64_t> b.period) * (
        <uint64_t> b.amount * M1 + <uint64_t> b.count * M2 + M3
    )


cdef inline uint64_t usage_base(const Id* id, int side) noexcept nogil:
    return tr_mix(id.lo ^ M5, id.hi + <uint64_t> side)


cdef inline uint64_t hold_moving(const Hold* h) noexcept nogil:
    """The part of a hold's digest that changes in its life."""
    cdef uint64_t state = h.state | (<uint64_t> h.flags << 8) | (<uint64_t> h.charged << 16)
    return id_mix(&h.id) * (
        <uint64_t> h.amount * M1 + <uint64_t> h.captured * M2 + <uint64_t> h.released * M3
        + state * M4 + <uint64_t> h.closed_ns * M5
    )


cdef inline uint64_t key_digest(const Key* k) noexcept nogil:
    cdef uint64_t answer = k.result | (<uint64_t> k.window << 8) | (<uint64_t> k.account << 16)
    return tr_mix(tr_mix(k.id.lo ^ M2, k.id.hi) ^ k.digest, tr_mix(<uint64_t> k.time_ns, answer))


cdef inline uint64_t attempt_digest(const Attempt* a) noexcept nogil:
    cdef uint64_t s = tr_mix(a.id.lo ^ M3, a.id.hi)
    s = tr_mix(s ^ <uint64_t> a.last_step, <uint64_t> a.window_ns)
    s = tr_mix(s ^ <uint64_t> a.touched_ns, <uint64_t> a.locked_until_s)
    return tr_mix(s ^ a.count, a.row)


cdef inline uint64_t forced_digest(const Forced* f) noexcept nogil:
    cdef uint64_t s = tr_mix(f.hold.lo ^ M4, f.hold.hi)
    s = tr_mix(s ^ f.debit.lo, f.debit.hi)
    return tr_mix(s ^ <uint64_t> f.amount, <uint64_t> f.time_ns)


cdef inline uint64_t profile_digest(uint32_t number, const Profile* p) noexcept nogil:
    cdef uint64_t s = tr_mix(number, p.version ^ M1)
    cdef int i
    s = tr_mix(s ^ <uint64_t> p.operation_min, <uint64_t> p.operation_max)
    s = tr_mix(s ^ <uint64_t> p.multiple, p.known)
    for i in range(2 * WINDOWS):
        s = tr_mix(s ^ <uint64_t> p.amount[i], p.count[i])
    return s if p.known else 0


cdef inline uint64_t account_fixed(Core* core, uint32_t ref) noexcept nogil:
    """The part of an account's digest that its postings do not change."""
    cdef Account* a = account_at(core, ref)
    cdef Cold* c = cold_at(core, ref)
    cdef uint64_t s = id_mix(&a.id)
    s = tr_mix(s ^ core.books[a.book].ledger, a.code | (<uint64_t> a.flags << 16)
               | (<uint64_t> a.profile << 32) | (<uint64_t> (c.usage != 0) << 48))
    s = tr_mix(s ^ <uint64_t> a.credit_limit, <uint64_t> c.floor)
    return tr_mix(s ^ <uint64_t> c.cap, <uint64_t> c.created_ns)


cdef inline uint64_t account_moving(Core* core, uint32_t ref) noexcept nogil:
    cdef Account* a = account_at(core, ref)
    return id_mix(&a.id) * (
        <uint64_t> a.debits_pending * M1 + <uint64_t> a.debits_posted * M2
        + <uint64_t> a.credits_pending * M3 + <uint64_t> a.credits_posted * M4
    )


cdef inline uint64_t hold_fixed(Core* core, const Hold* h) noexcept nogil:
    """The part of a hold's digest that never changes."""
    cdef uint64_t s = id_mix(&h.id)
    cdef uint32_t i
    if h.debit:
        s = tr_mix(
            s ^ id_mix(&account_at(core, h.debit).id), id_mix(&account_at(core, h.credit).id)
        )
    s = tr_mix(s ^ <uint64_t> h.created_ns, <uint64_t> h.expires_ns)
    s = tr_mix(s ^ <uint64_t> h.day, h.code | (<uint64_t> h.policy << 16))
    for i in range(h.meter_count):
        s = tr_mix(s, id_mix(&account_at(core, h.meters[i]).id))
    if h.head and not same_id(&hold_at(core, h.head).id, &h.id):
        s = tr_mix(s, id_mix(&hold_at(core, h.head).id))
    return s


# --- The heap of holds that expire ----------------------------------------------------------------

cdef inline void heap_put(Core* core, uint32_t at, uint32_t ref) noexcept nogil:
    core.heap[at] = ref
    hold_at(core, ref).heap_at = at


cdef inline bint heap_before(Core* core, uint32_t a, uint32_t b) noexcept nogil:
    """Order of expiry; ids break ties, as they are the same on every replica."""
    cdef Hold* x = hold_at(core, a)
    cdef Hold* y = hold_at(core, b)
    if x.expires_ns != y.expires_ns:
        return x.expires_ns < y.expires_ns
    return x.id.hi < y.id.hi or (x.id.hi == y.id.hi and x.id.lo < y.id.lo)


cdef inline void heap_up(Core* core, uint32_t at, uint32_t ref) noexcept nogil:
    while at > 1 and heap_before(core, ref, core.heap[at >> 1]):
        heap_put(core, at, core.heap[at >> 1])
        at >>= 1
    heap_put(core, at, ref)


cdef inline void heap_add(Core* core, uint32_t ref) noexcept nogil:
    core.heap_count += 1
    heap_up(core, core.heap_count, ref)


cdef inline void heap_drop(Core* core, uint32_t ref) noexcept nogil:
    cdef uint32_t at = hold_at(core, ref).heap_at
    cdef uint32_t last = core.heap[core.heap_count]
    cdef uint32_t child
    core.heap_count -= 1
    hold_at(core, ref).heap_at = 0
    if last == ref:
        return
    while True:
        child = at * 2
        if child > core.heap_count:
            break
        if child < core.heap_count and heap_before(
            core, core.heap[child + 1], core.heap[child]
        ):
            child += 1
        if not heap_before(core, core.heap[child], last):
            break
        heap_put(core, at, core.heap[child])
        at = child
    heap_up(core, at, last)
