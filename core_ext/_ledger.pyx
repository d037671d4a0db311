"""The ledger: double-entry accounts with two-phase transfers, limits and idempotency, in memory.

A pure function of (state, command, injected time): no clock, no randomness, no I/O but the `Sink`
that takes one record for each change. All amounts are 64-bit minor units; sums that might pass
64 bits are taken in 128, and an overflow is a result.

How one command (or one linked chain) runs:

1. *decide and change*: the command is checked in the order of `results.PRECEDENCE` and applied.
   Every struct is copied to the undo log before its first change (two accounts, one hold: about
   300 bytes, all in the first-level cache).
2. *assert*: the invariants of everything in the undo log are checked. A breach is our fault:
   the change is undone, `AssertionError` is raised and the ledger takes no further command.
3. *put*: one record holding the decision goes to the sink, where there is one. If the sink refuses
   (raises), the undo log is played back, so the state is bit for bit what it was: for `JournalFull`
   this command and the rest of the batch answer `journal_full`, any other exception propagates.
   `tick` is one such transaction for each hold it expires; `set_profile` and `forget`, which cannot
   fail, put first and change afterwards.

A refused command that brings no idempotency key changed nothing and writes no record. A chain is
one record. Replay runs the same change functions from the records and none of the checks.

Rules that the specification leaves open:

- available = credits_posted - debits_posted - debits_pending + credit_limit; it is checked against
  `min_balance` (default 0) on accounts flagged DEBITS_MUST_NOT_EXCEED_CREDITS only.
- The cap of an account: credits_posted + credits_pending - debits_posted + amount <= max_balance.
  On accounts flagged POSITION a shortage or a cap answers `liquidity_short`: with credit_limit as
  net debit cap and max_balance as payable cap these are the two network checks.
- Lowering a credit limit below what is used, and forced postings, may leave available negative;
  such an account is marked, takes no more debits, and is exempt from the assertion.
- A freeze or a close stops new holds and transfers. What is held already may be captured, but for
  one case: a capture that credits a closed account answers `account_closed` (failure case D24).
  Forced postings and adjustments pass freezes and closes; adjustments still need the funds.
- A capture that leaves nothing is final by itself. A released or expired hold of which a part was
  captured counts as captured, so that it can be annulled.
- An annulled deposit needs available >= amount on the credited account, also on a POSITION.
- Counters of limits are kept for the current and the previous period of each window. A hold dated
  before both is refused by a profile that limits that window, as its period is closed.
- Fees are holds with `metered=False`: no limit is checked or counted for them.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport (
    INT32_MIN,
    INT64_MAX,
    UINT32_MAX,
    int32_t,
    int64_t,
    uint8_t,
    uint16_t,
    uint32_t,
    uint64_t,
)
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from core_ext._sink cimport Replica, Sink

import sys

from core_ext.results import Balance, HoldView, Outcome, Result

assert sys.byteorder == "little", "records and snapshots are written as the memory has them"

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <sys/mman.h>

    #define TR_HUGE ((size_t)2 << 20)
    #define TR_SMALL ((size_t)4 << 20)

    /* Address space for a whole table, committed page by page as it is touched: tables never move,
       so growing costs no copy and no pointer goes stale. Beyond the first 4 MiB huge pages are
       asked for, which is what keeps millions of random accounts off the page walker. */
    static void *tr_reserve(size_t bytes) {
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return NULL;
        if (bytes > TR_SMALL + TR_HUGE) {
            uintptr_t from = ((uintptr_t)p + TR_SMALL) & ~(uintptr_t)(TR_HUGE - 1);
            madvise((void *)from, (uintptr_t)p + bytes - from, MADV_HUGEPAGE);
        }
        return p;
    }
    static void tr_release(void *p, size_t bytes) {
        if (p)
            munmap(p, bytes);
    }

    /* 64 x 64 -> 128 bit multiplication, folded, twice: the mixing step of wyhash (public domain). */
    static inline uint64_t tr_fold(uint64_t a, uint64_t b) {
        unsigned __int128 m = (unsigned __int128)a * b;
        return (uint64_t)m ^ (uint64_t)(m >> 64);
    }
    static inline uint64_t tr_mix(uint64_t a, uint64_t b) {
        return tr_fold(tr_fold(a ^ 0xa0761d6478bd642fULL, b ^ 0xe7037ed1a0b428dbULL)
                           ^ 0x8ebc6af09c88c6e3ULL,
                       0x589965cc75374cc3ULL);
    }
    #define tr_prefetch(p) __builtin_prefetch(p)
    """
    void* tr_reserve(size_t bytes) nogil
    void tr_release(void* p, size_t bytes) nogil
    uint64_t tr_mix(uint64_t a, uint64_t b) nogil
    void tr_prefetch(const void* p) nogil

# Flags of an account.
DEBITS_MUST_NOT_EXCEED_CREDITS = 1
CREDITS_MUST_NOT_EXCEED_DEBITS = 2
FROZEN_DEBIT = 4
FROZEN_CREDIT = 8
FROZEN_HOLD = 16
CLOSED = 32
POSITION = 64

# Policies of a hold's expiry.
NEVER_AUTO = 0
ASK_NETWORK = 1
AUTO_AFTER = 2

NO_LIMIT = INT64_MAX  # a max_balance that caps nothing
UNTIL_UNLOCKED = 1 << 62  # a `locked_until` that no time reaches
LINK_MAX = CHAIN_MAX  # commands in one chain
BATCH_MAX = BATCH_COMMANDS_MAX  # commands in one batch
ACCOUNT_BYTES = sizeof(Account) + sizeof(Cold)
USAGE_BYTES = sizeof(Usage)  # of an account that has, or had, a limit profile
HOLD_BYTES = sizeof(Hold)
KEY_BYTES = sizeof(Key)
ATTEMPT_BYTES = sizeof(Attempt)
TICK_MAX = STEP_MAX  # holds one tick expires, and entries one forget drops, before `partial`

cdef enum:
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

cdef enum:
    FREE = 0
    OPEN = 1
    CAPTURED = 2
    RELEASED = 3
    EXPIRED = 4
    TOMBSTONE = 5
    ANNULLED = 6

cdef enum:
    H_NIGHT = 1
    H_METERED = 2
    H_METER_CREDIT = 4  # meters are charged on their credit side
    H_INCREMENTED = 8
    H_FORCED = 16
    H_QUEUED = 32  # in the queue of closed holds

cdef enum:
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

cdef enum:
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

cdef enum:
    U_ACCOUNT = 1
    U_COLD = 2
    U_USAGE = 3
    U_BOOK = 4
    U_HOLD = 5
    U_ACCOUNT_NEW = 7
    U_HOLD_NEW = 8
    U_KEY_NEW = 9
    U_USAGE_NEW = 10
    U_FORCED_NEW = 11
    U_HEAP_ADD = 12
    U_HEAP_DROP = 13
    U_QUEUE = 14
    U_BOOK_NEW = 15

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

cdef enum:
    BATCH_COMMANDS_MAX = 65536
    LOCKED_FOR_EVER_BITS = 62

cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t DAY_NS = 86_400_000_000_000
cdef int64_t LOCKED_FOR_EVER = <int64_t> 1 << LOCKED_FOR_EVER_BITS

# Multipliers of the digest, random and odd or even so that their differences have few low zeros.
cdef uint64_t M1 = 0x9E3779B97F4A7C15
cdef uint64_t M2 = 0xD1B54A32D192ED03 + 1
cdef uint64_t M3 = 0x8CB92BA72F3D8DD7
cdef uint64_t M4 = 0xAEF17502108EF2D9 + 1
cdef uint64_t M5 = 0xF1357AEA2E62A9C5

_WINDOW_NAMES = ("", "operation", "day", "night", "week", "month")
_STATE_NAMES = ("", "open", "captured", "released", "expired", "tombstone", "annulled")
_SIDES = {"debit": 0, "credit": 1}
_WINDOWS = {"day": DAY, "night": NIGHT, "week": WEEK, "month": MONTH}
_RESULTS = {int(result): result for result in Result}


# --- Small pure helpers ---------------------------------------------------------------------------

cdef inline uint64_t id_mix(const Id* id) noexcept nogil:
    return tr_mix(id.lo, id.hi)


cdef inline bint same_id(const Id* a, const Id* b) noexcept nogil:
    return a.lo == b.lo and a.hi == b.hi


cdef inline bytes id_bytes(const Id* id):
    return (<const char*> id)[:16]


cdef inline int id_from(bytes text, Id* id) except -1:
    if text is None or len(text) != 16:
        raise ValueError("an id is 16 bytes")
    memcpy(id, <const char*> text, 16)
    return 0


cdef int32_t month_of(int32_t day) noexcept nogil:
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


cdef int32_t period_of(int window, int32_t day) noexcept nogil:
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


# --- Arenas and indexes ---------------------------------------------------------------------------

cdef int arena_open(Arena* a, size_t stride, uint32_t most) except -1:
    a.stride = stride
    a.bytes = stride * (<size_t> most + 1)
    a.base = <char*> tr_reserve(a.bytes)
    if a.base == NULL:
        raise MemoryError("no address space for a table of the ledger")
    a.top = 1
    a.free = 0
    a.live = 0
    a.most = most
    return 0


cdef void arena_close(Arena* a) noexcept:
    tr_release(a.base, a.bytes)


cdef inline uint32_t arena_take(Arena* a, bint* reused) noexcept nogil:
    """Return a zeroed entry; the caller has seen that there is room (live < most)."""
    cdef uint32_t ref = a.free
    cdef char* p
    reused[0] = ref != 0
    if ref:
        p = a.base + ref * a.stride
        memcpy(&a.free, p + a.stride - 4, 4)
        memset(p, 0, a.stride)
    else:
        ref = a.top
        a.top += 1
    a.live += 1
    return ref


cdef inline void arena_give(Arena* a, uint32_t ref) noexcept nogil:
    cdef char* p = a.base + ref * a.stride
    memset(p, 0, a.stride)
    memcpy(p + a.stride - 4, &a.free, 4)
    a.free = ref
    a.live -= 1


cdef inline void arena_undo(Arena* a, uint32_t ref, bint reused) noexcept nogil:
    """Take back the latest `arena_take`."""
    if reused:
        arena_give(a, ref)
    else:
        memset(a.base + ref * a.stride, 0, a.stride)
        a.top -= 1
        a.live -= 1


cdef int index_open(Index* t) except -1:
    t.bits = 6
    t.bytes = sizeof(uint64_t) << t.bits
    t.used = 0
    t.slots = <uint64_t*> tr_reserve(t.bytes)
    if t.slots == NULL:
        raise MemoryError("no address space for an index of the ledger")
    return 0


cdef void index_close(Index* t) noexcept:
    tr_release(t.slots, t.bytes)


cdef void index_wipe(Index* t) noexcept:
    memset(t.slots, 0, t.bytes)
    t.used = 0


cdef inline uint32_t index_home(const Index* t, uint64_t h) noexcept nogil:
    return (<uint32_t> (h >> 32)) >> (32 - t.bits)


cdef inline uint32_t index_find(
    const Index* t, const Arena* a, const Id* id, uint64_t h
) noexcept nogil:
    """Return the reference of the entry with this id, or 0. Every entry begins with its Id.

    A slot holds the upper half of the hash beside the reference, so an entry is touched only when
    32 bits agree already.
    """
    cdef uint32_t mask = (<uint32_t> 1 << t.bits) - 1
    cdef uint32_t at = index_home(t, h)
    cdef uint32_t tag = <uint32_t> (h >> 32)
    cdef uint64_t slot
    while True:
        slot = t.slots[at]
        if slot == 0:
            return 0
        if <uint32_t> (slot >> 32) == tag and same_id(
            <const Id*> (a.base + <uint32_t> slot * a.stride), id
        ):
            return <uint32_t> slot
        at = (at + 1) & mask


cdef inline void slots_add(uint64_t* slots, uint32_t bits, uint64_t slot) noexcept nogil:
    cdef uint32_t mask = (<uint32_t> 1 << bits) - 1
    cdef uint32_t at = (<uint32_t> (slot >> 32)) >> (32 - bits)
    while slots[at]:
        at = (at + 1) & mask
    slots[at] = slot


cdef inline void index_add(Index* t, uint64_t h, uint32_t ref) noexcept nogil:
    """Room was made before by `index_reserve`."""
    slots_add(t.slots, t.bits, (h >> 32 << 32) | ref)
    t.used += 1


cdef void index_drop(Index* t, uint64_t h, uint32_t ref) noexcept nogil:
    """Remove and close the gap by shifting back, so that no search meets a dead slot."""
    cdef uint32_t mask = (<uint32_t> 1 << t.bits) - 1
    cdef uint32_t at = index_home(t, h)
    cdef uint32_t probe, home
    cdef uint64_t slot
    while <uint32_t> t.slots[at] != ref:
        at = (at + 1) & mask
    probe = at
    while True:
        probe = (probe + 1) & mask
        slot = t.slots[probe]
        if slot == 0:
            break
        home = (<uint32_t> (slot >> 32)) >> (32 - t.bits)
        if ((probe - home) & mask) >= ((probe - at) & mask):
            t.slots[at] = slot
            at = probe
    t.slots[at] = 0
    t.used -= 1


cdef inline void index_fetch(const Index* t, uint64_t h) noexcept nogil:
    tr_prefetch(&t.slots[index_home(t, h)])


cdef inline uint32_t index_guess(const Index* t, uint64_t h) noexcept nogil:
    """Return the first reference whose 32 stored bits agree, without touching its entry; or 0."""
    cdef uint32_t mask = (<uint32_t> 1 << t.bits) - 1
    cdef uint32_t at = index_home(t, h)
    while t.slots[at]:
        if <uint32_t> (t.slots[at] >> 32) == <uint32_t> (h >> 32):
            return <uint32_t> t.slots[at]
        at = (at + 1) & mask
    return 0


cdef int index_reserve(Index* t, uint32_t more) noexcept nogil:
    """Make room for `more` entries; -1 without memory.

    The home of an entry is the top bits of its hash, so doubling keeps their order and walks both
    tables once from front to back, without a cache miss an entry. `Ledger.reserve` does it ahead.
    """
    cdef uint64_t need = <uint64_t> t.used + more
    cdef uint32_t bits = t.bits
    cdef uint64_t* slots
    cdef size_t i, size
    while need * 8 > (<uint64_t> 5 << bits):
        bits += 1
    if bits == t.bits:
        return 0
    slots = <uint64_t*> tr_reserve(sizeof(uint64_t) << bits)
    if slots == NULL:
        return -1
    size = <size_t> 1 << t.bits
    for i in range(size):
        if t.slots[i]:
            slots_add(slots, bits, t.slots[i])
    tr_release(t.slots, t.bytes)
    t.slots = slots
    t.bits = bits
    t.bytes = sizeof(uint64_t) << bits
    return 0


# --- What a batch holds ---------------------------------------------------------------------------

@cython.final
cdef class Batch:
    """Commands for one `Ledger.apply`, in order. Keep one and `clear()` it: that costs nothing.

    Every method appends one command. Ids and keys are 16 bytes, amounts minor units, times
    nanoseconds since 1970, days days since 1970-01-01 of the business date. Common arguments:

        linked: this command and the NEXT one succeed or fail together; at most 16 in a chain. Holds
            placed in one chain are captured, released and annulled as one, by the first one's id
            (but for a chain that itself closes its first hold again: the next one begins anew).
        key: idempotency key. The first decision under a key is remembered, refusals too, and given
            again as `repeated`; `overloaded` and `journal_full` are no decisions.
        digest: keyed 64-bit digest of the declared body; a repeat with another one answers
            `repeated_with_difference`.
        key_ns: when the key was made, where the sender declares it: below the horizon of `forget`
            an unknown key answers `key_expired`. 0: a hold counts as made two days after its
            business date began, any other command as made now.

    Raises ValueError for what no sender could have meant (id of a wrong length, unknown flag bits,
    a chain of more than 16) and OverflowError where a number does not fit its field; the batch is
    then as before the call.
    """

    cdef Command* _commands
    cdef Py_ssize_t _count
    cdef Py_ssize_t _capacity
    cdef list _profiles
    cdef uint32_t _accounts
    cdef uint32_t _holds
    cdef uint32_t _keys
    cdef uint32_t _attempts
    cdef int _run  # commands in the chain now open

    def __cinit__(self):
        self._capacity = 16
        self._commands = <Command*> PyMem_Malloc(self._capacity * sizeof(Command))
        if self._commands == NULL:
            raise MemoryError
        self._profiles = []

    def __dealloc__(self):
        PyMem_Free(self._commands)

    def __len__(self):
        return self._count

    def clear(self):
        """Forget all commands and their results."""
        self._count = 0
        self._accounts = self._holds = self._keys = self._attempts = 0
        self._run = 0
        if self._profiles:
            self._profiles = []

    cdef Command* _begin(self, int op) except NULL:
        """Return the next command with its head zeroed; it counts once `_end` is called."""
        cdef Py_ssize_t capacity
        cdef Command* grown
        cdef Command* c
        if self._count == self._capacity:
            if self._count >= BATCH_COMMANDS_MAX:
                raise ValueError("a batch holds at most 65536 commands")
            capacity = self._capacity * 2
            grown = <Command*> PyMem_Realloc(self._commands, capacity * sizeof(Command))
            if grown == NULL:
                raise MemoryError
            self._commands = grown
            self._capacity = capacity
        c = &self._commands[self._count]
        memset(c, 0, <size_t> (<char*> &c.key - <char*> c))
        c.op = op
        return c

    cdef int _end(
        self, Command* c, bint linked, bytes key, uint64_t digest, int64_t key_ns
    ) except -1:
        if key is not None:
            id_from(key, &c.key)
            c.has_key = 1
            c.digest = digest
        if key_ns < 0:
            raise ValueError("key_ns must not be negative")
        if linked and self._run + 1 >= CHAIN_MAX:
            raise ValueError("a chain has at most 16 commands")
        c.key_ns = key_ns
        c.linked = linked
        self._run = self._run + 1 if linked else 0
        self._keys += c.has_key
        self._count += 1
        return 0

    cdef int _end_alone(self, Command* c) except -1:
        if self._run:
            raise ValueError("this command cannot be part of a chain")
        self._count += 1
        return 0

    def outcome(self, Py_ssize_t index):
        """Return the `Outcome` of a command after `apply`: first result, window, decision time."""
        if not 0 <= index < self._count:
            raise IndexError("no such command in the batch")
        cdef Command* c = &self._commands[index]
        return Outcome(
            _RESULTS[c.result], _RESULTS[c.first], _WINDOW_NAMES[c.window], c.account, c.decided_ns
        )

    def create_account(
        self,
        bytes id not None,
        *,
        uint32_t ledger,
        uint16_t code,
        uint16_t flags=0,
        int64_t credit_limit=0,
        uint16_t profile=0,
        bint linked=False,
        bytes key=None,
        uint64_t digest=0,
        int64_t key_ns=0,
    ):
        """Open an account. The same again is `repeated`, or `repeated_with_difference` with other
        terms; a profile that was never set is `account_unknown`."""
        if flags & ~A_PUBLIC or flags & A_CLOSED:
            raise ValueError("unknown flags")
        if credit_limit < 0:
            raise ValueError("credit_limit must not be negative")
        cdef Command* c = self._begin(OP_ACCOUNT)
        id_from(id, &c.id)
        c.ledger = ledger
        c.code = code
        c.flags = flags
        c.amount = credit_limit
        c.profile = profile
        self._end(c, linked, key, digest, key_ns)
        self._accounts += 1

    def set_limits(
        self,
        bytes id not None,
        *,
        credit_limit=None,
        profile=None,
        min_balance=None,
        max_balance=None,
        bint linked=False,
        bytes key=None,
        uint64_t digest=0,
        int64_t key_ns=0,
    ):
        """Change what is given. min_balance: what must stay available (default 0); max_balance:
        NO_LIMIT takes the cap away; profile 0 takes the limits away and keeps the counters."""
        cdef Command* c = self._begin(OP_LIMITS)
        id_from(id, &c.id)
        if credit_limit is not None:
            c.amount = credit_limit
            c.options |= L_CREDIT
        if profile is not None:
            c.profile = profile
            c.options |= L_PROFILE
        if min_balance is not None:
            c.low = min_balance
            c.options |= L_FLOOR
        if max_balance is not None:
            c.high = max_balance
            c.options |= L_CAP
        if c.amount < 0 or c.low < 0 or c.high < 0:
            raise ValueError("limits must not be negative")
        self._end(c, linked, key, digest, key_ns)

    def set_profile(
        self,
        uint16_t profile,
        *,
        int64_t operation_min=0,
        int64_t operation_max=0,
        int64_t multiple=1,
        windows=None,
        uint32_t version=0,
    ):
        """Define limit profile 1..65535, or replace it for all accounts that have it.

        operation_min, operation_max, multiple: of one hold (a hold off them is
        `amount_over_range`); 0 = none.
        windows: {(side, window): (amount, count)}; side 'debit' or 'credit', window 'day', 'night',
        'week' or 'month'; 0 = none.
        """
        cdef int at
        cdef Profile p
        if profile == 0 or operation_min < 0 or operation_max < 0 or multiple < 1:
            raise ValueError("profile is 1..65535, multiple at least 1, the others not negative")
        memset(&p, 0, sizeof(p))
        p.operation_min = operation_min
        p.operation_max = operation_max
        p.multiple = multiple
        p.version = version
        p.known = 1
        for (side, window), (amount, count) in (windows or {}).items():
            at = _SIDES[side] * WINDOWS + _WINDOWS[window]
            p.amount[at] = amount
            p.count[at] = count
            if p.amount[at] < 0:
                raise ValueError("limits must not be negative")
        cdef Command* c = self._begin(OP_PROFILE)
        c.profile = profile
        image = (<const char*> &p)[: sizeof(p)]
        c.low = <int64_t> <size_t> <const char*> image  # alive as long as the command is
        self._end_alone(c)
        self._profiles.append(image)

    cdef int _flags(self, bytes id, int flags, bint set, bint linked, bytes key, uint64_t digest,
                    int64_t key_ns) except -1:
        cdef Command* c = self._begin(OP_FLAGS)
        id_from(id, &c.id)
        c.flags = flags if set else 0
        c.code = 0 if set else flags
        self._end(c, linked, key, digest, key_ns)
        return 0

    def freeze(self, bytes id not None, int flags, *, bint linked=False, bytes key=None,
               uint64_t digest=0, int64_t key_ns=0):
        """Set FROZEN_DEBIT, FROZEN_CREDIT, FROZEN_HOLD as given; new holds and transfers stop."""
        if flags & ~(A_FROZEN_DEBIT | A_FROZEN_CREDIT | A_FROZEN_HOLD):
            raise ValueError("only the FROZEN flags may be set")
        self._flags(id, flags, True, linked, key, digest, key_ns)

    def unfreeze(self, bytes id not None, int flags, *, bint linked=False, bytes key=None,
                 uint64_t digest=0, int64_t key_ns=0):
        """Take the given FROZEN flags off."""
        if flags & ~(A_FROZEN_DEBIT | A_FROZEN_CREDIT | A_FROZEN_HOLD):
            raise ValueError("only the FROZEN flags may be taken off")
        self._flags(id, flags, False, linked, key, digest, key_ns)

    def close(self, bytes id not None, *, bint linked=False, bytes key=None, uint64_t digest=0,
              int64_t key_ns=0):
        """Close an account for good; what it holds stays and can be moved by `adjust`."""
        self._flags(id, A_CLOSED, True, linked, key, digest, key_ns)

    def transfer(
        self,
        bytes debit not None,
        bytes credit not None,
        int64_t amount,
        *,
        uint16_t code=0,
        bint forced=False,
        bint linked=False,
        bytes key=None,
        uint64_t digest=0,
        int64_t key_ns=0,
    ):
        """Post at once. forced: past funds, caps, freezes and closes, and listed in `forced()`."""
        cdef Command* c = self._begin(OP_TRANSFER)
        id_from(debit, &c.debit)
        id_from(credit, &c.credit)
        c.amount = amount
        c.code = code
        c.options = C_FORCED if forced else 0
        self._end(c, linked, key, digest, key_ns)

    def hold(
        self,
        bytes hold not None,
        bytes debit not None,
        bytes credit not None,
        int64_t amount,
        *,
        int32_t day,
        bint night=False,
        uint16_t code=0,
        int policy=0,
        uint32_t expires_after_s=0,
        int64_t deadline_ns=0,
        meters=(),
        bint meter_credit=False,
        bint metered=True,
        bint linked=False,
        bytes key=None,
        uint64_t digest=0,
        int64_t key_ns=0,
    ):
        """Reserve an amount: pending on both sides, gone from the debit account's available.

        day, night: business date, and whether the night counters count it.
        policy, expires_after_s: NEVER_AUTO, ASK_NETWORK, or AUTO_AFTER that many seconds by `tick`.
        deadline_ns: `too_late` when now is past it; 0 = none.
        meters: up to 4 further accounts whose limits are checked and charged, without money, on
            their debit side or, with meter_credit, on their credit side.
        metered: False for a fee: no limits, neither of the accounts nor of meters.
        The same hold id again is `repeated` (or `.._with_difference`), also without a key.
        """
        cdef Command* c = self._begin(OP_HOLD)
        id_from(hold, &c.id)
        id_from(debit, &c.debit)
        id_from(credit, &c.credit)
        if not 0 <= day <= 100_000 or not 0 <= policy <= 2 or deadline_ns < 0:
            raise ValueError("day is 0..100000, policy 0..2, deadline_ns not negative")
        if policy == POLICY_AUTO and expires_after_s == 0:
            raise ValueError("AUTO_AFTER needs expires_after_s")
        if meters:
            for meter in meters:
                if c.meter_count == 4:
                    raise ValueError("at most 4 meters")
                id_from(meter, &c.meters[c.meter_count])
                c.meter_count += 1
        c.amount = amount
        c.day = day
        c.code = code
        c.policy = policy
        c.seconds = expires_after_s
        c.deadline_ns = deadline_ns
        c.options = ((H_NIGHT if night else 0) | (H_METERED if metered else 0)
                     | (H_METER_CREDIT if meter_credit else 0))
        self._end(c, linked, key, digest, key_ns)
        self._holds += 1

    def increment(self, bytes hold not None, int64_t amount, *, bint linked=False, bytes key=None,
                  uint64_t digest=0, int64_t key_ns=0):
        """Add to an open hold; checked like a hold, counted by value and not as another one."""
        cdef Command* c = self._begin(OP_INCREMENT)
        id_from(hold, &c.id)
        c.amount = amount
        self._end(c, linked, key, digest, key_ns)

    def capture(
        self,
        bytes hold not None,
        int64_t amount=0,
        *,
        bint final=True,
        int64_t tolerance=0,
        bint forced=False,
        bytes debit=None,
        bytes credit=None,
        bint linked=False,
        bytes key=None,
        uint64_t digest=0,
        int64_t key_ns=0,
    ):
        """Post what is held: all that remains (amount 0), or a part, once or several times.

        final: the rest is released, and holds linked to it are captured whole; they stay open
            otherwise.
        tolerance: how far above the held amount the captures together may go, given the funds.
        forced: the money is out. Captures also what is released, expired, tombstoned or unknown
            (debit, credit and amount needed), may overdraw, and is listed in `forced()`.
        """
        cdef Command* c = self._begin(OP_CAPTURE)
        id_from(hold, &c.id)
        if tolerance < 0 or (debit is None) != (credit is None):
            raise ValueError("tolerance must not be negative; debit and credit come together")
        if debit is not None:
            id_from(debit, &c.debit)
            id_from(credit, &c.credit)
            c.options |= C_ACCOUNTS
        c.amount = amount
        c.low = tolerance
        c.options |= (C_FORCED if forced else 0) | (C_FINAL if final else 0)
        self._end(c, linked, key, digest, key_ns)
        self._holds += 1

    def release(self, bytes hold not None, *, bint tombstone=True, bint linked=False,
                bytes key=None, uint64_t digest=0, int64_t key_ns=0):
        """Give back what is held. Unknown hold: `original_unknown` and a tombstone that refuses a
        later hold of that id, or `hold_unknown` without tombstone."""
        cdef Command* c = self._begin(OP_RELEASE)
        id_from(hold, &c.id)
        c.options = C_TOMBSTONE if tombstone else 0
        self._end(c, linked, key, digest, key_ns)
        self._holds += 1

    def annul(self, bytes hold not None, *, bint linked=False, bytes key=None, uint64_t digest=0,
              int64_t key_ns=0):
        """Take an operation back: release what is open, compensate what was captured. Limits are
        given back to the original date. `funds_short` where the credited side spent the money."""
        cdef Command* c = self._begin(OP_ANNUL)
        id_from(hold, &c.id)
        self._end(c, linked, key, digest, key_ns)

    def adjust(
        self,
        bytes debit not None,
        bytes credit not None,
        int64_t amount,
        *,
        uint32_t reason,
        bytes author not None,
        bytes second not None,
        bint linked=False,
        bytes key=None,
        uint64_t digest=0,
        int64_t key_ns=0,
    ):
        """Correct by hand, past freezes and closes; by two different persons (ids, journaled)."""
        if author == second:
            raise ValueError("an adjustment needs two different persons")
        cdef Command* c = self._begin(OP_ADJUST)
        id_from(debit, &c.debit)
        id_from(credit, &c.credit)
        id_from(author, &c.meters[0])
        id_from(second, &c.meters[1])
        c.amount = amount
        c.number = reason
        self._end(c, linked, key, digest, key_ns)

    def tick(self):
        """Expire the AUTO_AFTER holds that are due, at most 4096: `partial` means more are due."""
        self._end_alone(self._begin(OP_TICK))

    def accept_step(self, bytes key not None, int64_t step):
        """Accept a one-time-code step: `done`, or `repeated` when it is not above the last one."""
        if step < 0:
            raise ValueError("a step is not negative")
        cdef Command* c = self._begin(OP_STEP)
        id_from(key, &c.id)
        c.amount = step
        self._end_alone(c)
        self._attempts += 1

    def attempt(
        self,
        bytes key not None,
        *,
        uint32_t limit,
        uint32_t window_s,
        uint32_t lock_s,
        uint32_t row_limit,
    ):
        """Count one wrong code: `done`, or `limit_count` when the key is now (or was) locked.

        limit wrong ones within window_s of the first (0: no window) lock for lock_s and count from
        0 again; row_limit in a row, over locks, lock until `clear_attempts`. A try while locked is
        not counted. 0 = no such limit.
        """
        cdef Command* c = self._begin(OP_ATTEMPT)
        id_from(key, &c.id)
        c.number = limit
        c.ledger = row_limit
        c.seconds = window_s
        c.low = lock_s
        self._end_alone(c)
        self._attempts += 1

    def clear_attempts(self, bytes key not None, *, bint row=True):
        """Set the count to 0; with row also the count in a row, and lift any lock."""
        cdef Command* c = self._begin(OP_CLEAR)
        id_from(key, &c.id)
        c.options = C_ROW if row else 0
        self._end_alone(c)

    def forget(self, int64_t before_ns):
        """Drop keys, closed holds and idle attempt counters older than that, at most 4096 of each
        (`partial`: more are left). Open holds, their keys, and locked counters stay. Keys older
        than the newest before_ns answer `key_expired` from now on."""
        if before_ns < 0:
            raise ValueError("before_ns must not be negative")
        cdef Command* c = self._begin(OP_FORGET)
        c.amount = before_ns
        self._end_alone(c)


@cython.final
cdef class NullSink(Sink):
    """Counts its records and drops them: for a state without history, and for measurements."""

    cdef readonly uint64_t records
    cdef readonly uint64_t bytes_taken

    cdef int put(self, int kind, const void* data, Py_ssize_t n) except -1:
        self.records += 1
        self.bytes_taken += <uint64_t> n
        return 0


# --- Reading a record -----------------------------------------------------------------------------

cdef struct Reader:
    const unsigned char* at
    const unsigned char* end


cdef inline bint take(Reader* r, void* out, Py_ssize_t n) noexcept nogil:
    """Copy the next n bytes out, or False when there are not so many."""
    if r.end - r.at < n:
        return False
    memcpy(out, r.at, n)
    r.at += n
    return True


cdef object wide(tr_i128 value):
    """A 128-bit sum as a Python integer."""
    cdef uint64_t low = <uint64_t> value
    cdef int64_t high = <int64_t> (value >> 64)
    return (int(high) << 64) + int(low)


# --- Snapshots ------------------------------------------------------------------------------------

cdef enum:
    S_HEAD = 0
    S_BOOK = 1
    S_PROFILE = 2
    S_ACCOUNTS = 3
    S_COLDS = 4
    S_USAGES = 5
    S_HOLDS = 6
    S_KEYS = 7
    S_ATTEMPTS = 8
    S_FORCED = 9
    ARENAS = 7
    CHUNK_BYTES = 1 << 20


cdef struct Head:
    char magic[8]
    uint64_t digest
    int64_t horizon_ns
    uint32_t closed_first
    uint32_t closed_last
    uint32_t key_first
    uint32_t key_last
    uint32_t attempt_first
    uint32_t attempt_last
    uint32_t books
    uint32_t top[7]
    uint32_t free[7]
    uint32_t live[7]
    uint32_t spare


cdef bytes chunk(uint32_t section, uint32_t first, uint32_t count, const char* data, size_t n):
    """One piece of a dump."""
    cdef uint32_t word[3]
    word[0] = section
    word[1] = first
    word[2] = count
    return (<const char*> word)[:12] + data[:n]


# --- The ledger -----------------------------------------------------------------------------------

cdef struct Trail:  # closes one entry of the undo log, which is read from its end
    uint32_t type
    uint32_t ref
    uint32_t size
    uint32_t extra


cdef struct Two:
    uint32_t last
    uint32_t reused


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


cdef uint64_t attempt_digest(const Attempt* a) noexcept nogil:
    cdef uint64_t s = tr_mix(a.id.lo ^ M3, a.id.hi)
    s = tr_mix(s ^ <uint64_t> a.last_step, <uint64_t> a.window_ns)
    s = tr_mix(s ^ <uint64_t> a.touched_ns, <uint64_t> a.locked_until_s)
    return tr_mix(s ^ a.count, a.row)


cdef uint64_t forced_digest(const Forced* f) noexcept nogil:
    cdef uint64_t s = tr_mix(f.hold.lo ^ M4, f.hold.hi)
    s = tr_mix(s ^ f.debit.lo, f.debit.hi)
    return tr_mix(s ^ <uint64_t> f.amount, <uint64_t> f.time_ns)


cdef uint64_t profile_digest(uint32_t number, const Profile* p) noexcept nogil:
    cdef uint64_t s = tr_mix(number, p.version ^ M1)
    cdef int i
    s = tr_mix(s ^ <uint64_t> p.operation_min, <uint64_t> p.operation_max)
    s = tr_mix(s ^ <uint64_t> p.multiple, p.known)
    for i in range(2 * WINDOWS):
        s = tr_mix(s ^ <uint64_t> p.amount[i], p.count[i])
    return s if p.known else 0


@cython.final
cdef class Ledger(Replica):
    """All accounts, holds, keys and counters of one partition; see the module's text.

    One owner: no method may run while another one of the same ledger or of its batch does (`apply`
    without a sink lets other threads run meanwhile).

    Args:
        accounts_max, holds_max, keys_max, attempts_max: sizes at which `overloaded` is answered.
            Address space is taken for all of it, memory only for what is used.
        sink: takes one record for each change, or None.

    Memory: 96 bytes an account, 256 more once it has a limit profile, 128 a hold, 48 a key, 64 an
    attempt counter, and 13 to 26 bytes of index for each of these. `counts()["bytes"]` says how
    much is in use.
    """

    cdef Sink _sink
    cdef Arena _accounts
    cdef Arena _colds
    cdef Arena _usages
    cdef Arena _holds
    cdef Arena _keys
    cdef Arena _attempts
    cdef Arena _forced
    cdef Index _account_index
    cdef Index _hold_index
    cdef Index _key_index
    cdef Index _attempt_index
    cdef Profile* _profiles
    cdef uint32_t _profile_top  # highest profile ever set, plus 1
    cdef Book* _books
    cdef uint32_t _book_count
    cdef uint32_t* _heap
    cdef uint32_t _heap_count
    cdef uint32_t _closed_first
    cdef uint32_t _closed_last
    cdef uint32_t _closed_count
    cdef uint32_t _key_first
    cdef uint32_t _key_last
    cdef uint32_t _attempt_first
    cdef uint32_t _attempt_last
    cdef int64_t _horizon_ns
    cdef uint64_t _digest
    cdef uint64_t _changes
    cdef char* _undo
    cdef size_t _undo_used
    cdef unsigned char* _record
    cdef size_t _record_used
    cdef uint32_t _book_logged
    cdef uint32_t _placed
    cdef uint32_t _chain_head
    cdef uint32_t _chain_tail
    cdef bint _in_chain
    cdef bint _effect
    cdef uint64_t _digest_before
    cdef Attempt _counted
    cdef const char* _fault
    cdef bint _stopped

    def __cinit__(self, *, uint32_t accounts_max=1_000_000, uint32_t holds_max=2_000_000,
                  uint32_t keys_max=2_000_000, uint32_t attempts_max=1_000_000, Sink sink=None):
        if not (0 < accounts_max < 1 << 31 and 0 < holds_max < 1 << 31
                and 0 < keys_max < 1 << 31 and 0 < attempts_max < 1 << 31):
            raise ValueError("table sizes are 1..2**31-1")
        self._sink = sink
        arena_open(&self._accounts, sizeof(Account), accounts_max)
        arena_open(&self._colds, sizeof(Cold), accounts_max)
        arena_open(&self._usages, sizeof(Usage), accounts_max)
        arena_open(&self._holds, sizeof(Hold), holds_max)
        arena_open(&self._keys, sizeof(Key), keys_max)
        arena_open(&self._attempts, sizeof(Attempt), attempts_max)
        arena_open(&self._forced, sizeof(Forced), FORCED_MAX)
        index_open(&self._account_index)
        index_open(&self._hold_index)
        index_open(&self._key_index)
        index_open(&self._attempt_index)
        self._profiles = <Profile*> tr_reserve(PROFILES_MAX * sizeof(Profile))
        self._books = <Book*> tr_reserve(BOOKS_MAX * sizeof(Book))
        self._heap = <uint32_t*> tr_reserve((<size_t> holds_max + 2) * sizeof(uint32_t))
        self._undo = <char*> tr_reserve(UNDO_BYTES)
        self._record = <unsigned char*> tr_reserve(RECORD_BYTES)
        if (self._profiles == NULL or self._books == NULL or self._heap == NULL
                or self._undo == NULL or self._record == NULL):
            raise MemoryError("no address space for the ledger")

    def __dealloc__(self):
        arena_close(&self._accounts)
        arena_close(&self._colds)
        arena_close(&self._usages)
        arena_close(&self._holds)
        arena_close(&self._keys)
        arena_close(&self._attempts)
        arena_close(&self._forced)
        index_close(&self._account_index)
        index_close(&self._hold_index)
        index_close(&self._key_index)
        index_close(&self._attempt_index)
        tr_release(self._profiles, PROFILES_MAX * sizeof(Profile))
        tr_release(self._books, BOOKS_MAX * sizeof(Book))
        tr_release(self._heap, (<size_t> self._holds.most + 2) * sizeof(uint32_t))
        tr_release(self._undo, UNDO_BYTES)
        tr_release(self._record, RECORD_BYTES)

    def reserve(self, *, uint32_t accounts=0, uint32_t holds=0, uint32_t keys=0,
                uint32_t attempts=0):
        """Make room in the indexes for so many more entries, so that no later command waits while
        one doubles (some 20 ms at a million entries). Changes no state.

        Raises MemoryError where there is none, ValueError above the sizes of this ledger.
        """
        if (accounts > self._accounts.most or holds > self._holds.most
                or keys > self._keys.most or attempts > self._attempts.most):
            raise ValueError("more than this ledger can ever hold")
        if (index_reserve(&self._account_index, accounts)
                or index_reserve(&self._hold_index, holds)
                or index_reserve(&self._key_index, keys)
                or index_reserve(&self._attempt_index, attempts)):
            raise MemoryError("no memory for an index of the ledger")

    # --- References to structs ---

    cdef inline Account* _account(self, uint32_t ref) noexcept nogil:
        return <Account*> self._accounts.base + ref

    cdef inline Cold* _cold(self, uint32_t ref) noexcept nogil:
        return <Cold*> self._colds.base + ref

    cdef inline Usage* _usage(self, uint32_t ref) noexcept nogil:
        return <Usage*> self._usages.base + ref

    cdef inline Hold* _hold(self, uint32_t ref) noexcept nogil:
        return <Hold*> self._holds.base + ref

    cdef inline Key* _key(self, uint32_t ref) noexcept nogil:
        return <Key*> self._keys.base + ref

    cdef inline Attempt* _attempt(self, uint32_t ref) noexcept nogil:
        return <Attempt*> self._attempts.base + ref

    cdef inline uint32_t _find_account(self, const Id* id) noexcept nogil:
        return index_find(&self._account_index, &self._accounts, id, id_mix(id))

    cdef inline uint32_t _find_hold(self, const Id* id) noexcept nogil:
        return index_find(&self._hold_index, &self._holds, id, id_mix(id))

    # --- Undo log ---

    cdef inline void _log(
        self, uint32_t type, uint32_t ref, const void* data, uint32_t size
    ) noexcept nogil:
        cdef char* p = self._undo + self._undo_used
        cdef Trail* t = <Trail*> (p + size)
        memcpy(p, data, size)
        t.type = type
        t.ref = ref
        t.size = size
        t.extra = 0
        self._undo_used += size + sizeof(Trail)

    cdef inline void _log_two(
        self, uint32_t type, uint32_t ref, uint32_t last, bint reused
    ) noexcept nogil:
        cdef Two two
        two.last = last
        two.reused = reused
        self._log(type, ref, &two, sizeof(two))

    cdef void _roll_back(self, size_t mark, uint64_t digest) noexcept nogil:
        """Undo everything logged since `mark`, latest first."""
        cdef Trail* t
        cdef char* data
        while self._undo_used > mark:
            t = <Trail*> (self._undo + self._undo_used - sizeof(Trail))
            data = <char*> t - t.size
            self._undo_used -= t.size + sizeof(Trail)
            if t.type == U_ACCOUNT:
                memcpy(self._account(t.ref), data, sizeof(Account))
            elif t.type == U_COLD:
                memcpy(self._cold(t.ref), data, sizeof(Cold))
            elif t.type == U_USAGE:
                memcpy(&self._usage(t.ref >> 1).side[t.ref & 1], data, sizeof(UsageSide))
            elif t.type == U_BOOK:
                memcpy(&self._books[t.ref], data, sizeof(Book))
            elif t.type == U_FORCED_NEW:
                arena_undo(&self._forced, t.ref, False)
            elif t.type == U_BOOK_NEW:
                self._book_count -= 1
                memset(&self._books[self._book_count], 0, sizeof(Book))
            elif t.type == U_USAGE_NEW:
                arena_undo(&self._usages, t.ref, False)
            elif t.type == U_ACCOUNT_NEW:
                index_drop(&self._account_index, id_mix(&self._account(t.ref).id), t.ref)
                arena_undo(&self._colds, t.ref, False)
                arena_undo(&self._accounts, t.ref, False)
            else:
                self._roll_back_hold(t, <Two*> data)
        self._digest = digest
        self._book_logged = 0

    cdef void _roll_back_hold(self, const Trail* t, const Two* two) noexcept nogil:
        """Undo one change of the tables that link to each other: holds, keys, heap, queue."""
        cdef Hold* h
        cdef Key* k
        cdef uint32_t heap_at
        if t.type == U_HOLD:
            h = self._hold(t.ref)
            heap_at = h.heap_at  # kept up by the heap itself, in both directions
            memcpy(h, two, sizeof(Hold))
            h.heap_at = heap_at
        elif t.type == U_HOLD_NEW:
            index_drop(&self._hold_index, id_mix(&self._hold(t.ref).id), t.ref)
            arena_undo(&self._holds, t.ref, two.reused)
        elif t.type == U_HEAP_ADD:
            self._heap_drop(t.ref)
        elif t.type == U_HEAP_DROP:
            self._heap_add(t.ref)
        elif t.type == U_QUEUE:
            self._closed_last = two.last
            self._closed_count -= 1
            if two.last:
                self._hold(two.last).queue_next = 0
            else:
                self._closed_first = 0
        elif t.type == U_KEY_NEW:
            k = self._key(t.ref)
            if k.hold:
                self._hold(k.hold).key = 0
            index_drop(&self._key_index, id_mix(&k.id), t.ref)
            self._key_last = two.last
            if two.last:
                self._key(two.last).next = 0
            else:
                self._key_first = 0
            arena_undo(&self._keys, t.ref, two.reused)

    cdef int _assert_sound(self) noexcept nogil:
        """Check the invariants of all that the undo log names; sets `_fault` and returns -1."""
        cdef size_t at = self._undo_used
        cdef Trail* t
        cdef Account* a
        cdef Hold* h
        cdef Book* b
        while at:
            t = <Trail*> (self._undo + at - sizeof(Trail))
            at -= t.size + sizeof(Trail)
            if t.type == U_ACCOUNT:
                a = self._account(t.ref)
                if (a.debits_pending < 0 or a.debits_posted < 0 or a.credits_pending < 0
                        or a.credits_posted < 0):
                    self._fault = "a balance fell below zero"
                elif (a.flags & (A_DEBITS | A_EXPOSED)) == A_DEBITS and available_of(a) < 0:
                    self._fault = "available fell below zero"
            elif t.type == U_BOOK:
                b = &self._books[t.ref]
                if b.debits_pending != b.credits_pending or b.debits_posted != b.credits_posted:
                    self._fault = "debits and credits of a ledger differ"
            elif t.type == U_HOLD:
                h = self._hold(t.ref)
                if (<Hold*> (<char*> t - sizeof(Hold))).state == ANNULLED:
                    self._fault = "a terminal state was left"
                elif h.captured < 0 or h.released < 0 or h.amount < 0:
                    self._fault = "a hold fell below zero"
        return -1 if self._fault != NULL else 0

    # --- Changes of accounts ---

    cdef uint64_t _account_fixed(self, uint32_t ref) noexcept nogil:
        """The part of an account's digest that its postings do not change."""
        cdef Account* a = self._account(ref)
        cdef Cold* c = self._cold(ref)
        cdef uint64_t s = id_mix(&a.id)
        s = tr_mix(s ^ self._books[a.book].ledger, a.code | (<uint64_t> a.flags << 16)
                   | (<uint64_t> a.profile << 32) | (<uint64_t> (c.usage != 0) << 48))
        s = tr_mix(s ^ <uint64_t> a.credit_limit, <uint64_t> c.floor)
        return tr_mix(s ^ <uint64_t> c.cap, <uint64_t> c.created_ns)

    cdef inline uint64_t _account_moving(self, uint32_t ref) noexcept nogil:
        cdef Account* a = self._account(ref)
        return id_mix(&a.id) * (
            <uint64_t> a.debits_pending * M1 + <uint64_t> a.debits_posted * M2
            + <uint64_t> a.credits_pending * M3 + <uint64_t> a.credits_posted * M4
        )

    cdef void _move_debits(self, uint32_t ref, int64_t pending, int64_t posted) noexcept nogil:
        cdef Account* a = self._account(ref)
        cdef Book* b = &self._books[a.book]
        self._log(U_ACCOUNT, ref, a, sizeof(Account))
        if self._book_logged != a.book + 1u:
            self._log(U_BOOK, a.book, b, sizeof(Book))
            self._book_logged = a.book + 1u
        a.debits_pending += pending
        a.debits_posted += posted
        b.debits_pending += pending
        b.debits_posted += posted
        self._digest += id_mix(&a.id) * (<uint64_t> pending * M1 + <uint64_t> posted * M2)

    cdef void _move_credits(self, uint32_t ref, int64_t pending, int64_t posted) noexcept nogil:
        cdef Account* a = self._account(ref)
        cdef Book* b = &self._books[a.book]
        self._log(U_ACCOUNT, ref, a, sizeof(Account))
        if self._book_logged != a.book + 1u:
            self._log(U_BOOK, a.book, b, sizeof(Book))
            self._book_logged = a.book + 1u
        a.credits_pending += pending
        a.credits_posted += posted
        b.credits_pending += pending
        b.credits_posted += posted
        self._digest += id_mix(&a.id) * (<uint64_t> pending * M3 + <uint64_t> posted * M4)

    cdef void _move_back(self, uint32_t debit, uint32_t credit, int64_t amount) noexcept nogil:
        """Take a pending amount off both sides."""
        if amount:
            self._move_debits(debit, -amount, 0)
            self._move_credits(credit, -amount, 0)

    cdef void _expose(self, uint32_t ref) noexcept nogil:
        """Mark an account whose available is below zero for a known reason."""
        cdef Account* a = self._account(ref)
        if (a.flags & (A_DEBITS | A_EXPOSED)) != A_DEBITS or available_of(a) >= 0:
            return
        self._log(U_ACCOUNT, ref, a, sizeof(Account))
        self._digest -= self._account_fixed(ref)
        a.flags |= A_EXPOSED
        self._digest += self._account_fixed(ref)

    cdef void _list_forced(
        self, const Id* hold, uint32_t debit, int64_t amount, int64_t now
    ) noexcept nogil:
        cdef bint reused = False
        cdef uint32_t ref = arena_take(&self._forced, &reused)
        cdef Forced* f = <Forced*> self._forced.base + ref
        if hold != NULL:
            f.hold = hold[0]
        f.debit = self._account(debit).id
        f.amount = amount
        f.time_ns = now
        self._digest += forced_digest(f)
        self._log_two(U_FORCED_NEW, ref, 0, False)
        self._expose(debit)

    # --- Limits ---

    cdef const Bucket* _bucket_for(
        self, const UsageSide* u, int window, int32_t day, const Bucket* fresh
    ) noexcept nogil:
        """The counters of the window's period that holds `day`; NULL when it is closed."""
        cdef int32_t period = period_of(window, day)
        if period == u.current[window].period:
            return &u.current[window]
        if period == u.previous[window].period:
            return &u.previous[window]
        return fresh if period > u.previous[window].period else NULL

    cdef bint _amount_allowed(
        self, uint32_t ref, int side, int64_t amount, int32_t day, bint night, Command* c
    ) noexcept nogil:
        """Check the limits by value of one account; leaves the window in c where one is reached."""
        cdef Profile* p = &self._profiles[self._account(ref).profile]
        cdef const UsageSide* u
        cdef const Bucket* b
        cdef Bucket fresh
        cdef int window
        cdef int64_t most
        if self._account(ref).profile == 0:
            return True
        u = &self._usage(self._cold(ref).usage).side[side]
        fresh.amount = 0
        for window in range(WINDOWS):
            most = p.amount[side * WINDOWS + window]
            if most == 0 or (window == NIGHT and not night):
                continue
            b = self._bucket_for(u, window, day, &fresh)
            if b == NULL or amount > most or b.amount > most - amount:
                c.window = 2 + window
                return False
        return True

    cdef bint _count_allowed(
        self, uint32_t ref, int side, int32_t day, bint night, Command* c
    ) noexcept nogil:
        """Check the limits by count of one account for one more hold."""
        cdef Profile* p = &self._profiles[self._account(ref).profile]
        cdef const UsageSide* u
        cdef const Bucket* b
        cdef Bucket fresh
        cdef int window
        cdef uint32_t most
        if self._account(ref).profile == 0:
            return True
        u = &self._usage(self._cold(ref).usage).side[side]
        fresh.count = 0
        for window in range(WINDOWS):
            most = p.count[side * WINDOWS + window]
            if most == 0 or (window == NIGHT and not night):
                continue
            b = self._bucket_for(u, window, day, &fresh)
            if b == NULL or b.count >= most:
                c.window = 2 + window
                return False
        return True

    cdef bint _charge(
        self, uint32_t ref, int side, int64_t amount, uint32_t count, int32_t day, bint night
    ) noexcept nogil:
        """Count a hold; True when the account is limited, so that it is given back later.

        An increment (count 0) of a counted hold is counted even where the profile is gone since,
        or more would be given back than was taken.
        """
        cdef Account* a = self._account(ref)
        cdef uint32_t usage = self._cold(ref).usage
        cdef UsageSide* u
        cdef Bucket* b
        cdef uint64_t base
        cdef int window
        cdef int32_t period
        if a.profile == 0 and count:
            return False
        u = &self._usage(usage).side[side]
        base = usage_base(&a.id, side)
        self._log(U_USAGE, usage << 1 | side, u, sizeof(UsageSide))
        for window in range(WINDOWS):
            if window == NIGHT and not night:
                continue
            period = period_of(window, day)
            b = &u.current[window]
            if period > b.period:
                self._digest -= bucket_digest(base, window, &u.previous[window])
                u.previous[window] = b[0]
                b.period = period
                b.amount = 0
                b.count = 0
            elif period != b.period:
                b = &u.previous[window]
                if period < b.period:
                    continue  # closed, and no limit of this window: nothing to count
                if period > b.period:
                    self._digest -= bucket_digest(base, window, b)
                    b.period = period
                    b.amount = 0
                    b.count = 0
                else:
                    self._digest -= bucket_digest(base, window, b)
            else:
                self._digest -= bucket_digest(base, window, b)
            b.amount = saturated_add(b.amount, amount)
            b.count += count
            self._digest += bucket_digest(base, window, b)
        return True

    cdef void _give_back(
        self, uint32_t ref, int side, int64_t amount, uint32_t count, int32_t day, bint night
    ) noexcept nogil:
        """Take a charge off the periods it was made in, as far as they are kept."""
        cdef Account* a = self._account(ref)
        cdef uint32_t usage = self._cold(ref).usage
        cdef UsageSide* u = &self._usage(usage).side[side]
        cdef Bucket* b
        cdef uint64_t base = usage_base(&a.id, side)
        cdef int window
        cdef int32_t period
        self._log(U_USAGE, usage << 1 | side, u, sizeof(UsageSide))
        for window in range(WINDOWS):
            if window == NIGHT and not night:
                continue
            period = period_of(window, day)
            if period == u.current[window].period:
                b = &u.current[window]
            elif period == u.previous[window].period:
                b = &u.previous[window]
            else:
                continue
            self._digest -= bucket_digest(base, window, b)
            b.amount -= amount
            b.count -= count
            if b.amount < 0 or <int32_t> b.count < 0:
                self._fault = "more was given back than was charged"
            self._digest += bucket_digest(base, window, b)

    cdef void _hold_charge(self, Hold* h, int64_t amount, uint32_t count) noexcept nogil:
        """Charge a new hold (count 1) or an increment (count 0) to all that are limited by it."""
        cdef bint night = h.flags & H_NIGHT
        cdef int side = 1 if h.flags & H_METER_CREDIT else 0
        cdef uint32_t i
        cdef uint8_t mask = 0
        if count or h.charged & 1:
            mask |= self._charge(h.debit, 0, amount, count, h.day, night)
        if count or h.charged & 2:
            mask |= self._charge(h.credit, 1, amount, count, h.day, night) << 1
        for i in range(h.meter_count):
            if count or h.charged & (4 << i):
                mask |= self._charge(h.meters[i], side, amount, count, h.day, night) << (i + 2)
        if count:
            h.charged = mask

    cdef void _hold_give_back(self, Hold* h, int64_t amount, uint32_t count) noexcept nogil:
        cdef bint night = h.flags & H_NIGHT
        cdef int side = 1 if h.flags & H_METER_CREDIT else 0
        cdef uint32_t i
        if h.charged & 1:
            self._give_back(h.debit, 0, amount, count, h.day, night)
        if h.charged & 2:
            self._give_back(h.credit, 1, amount, count, h.day, night)
        for i in range(h.meter_count):
            if h.charged & (4 << i):
                self._give_back(h.meters[i], side, amount, count, h.day, night)

    # --- Checks: none of these changes anything ---

    cdef int _has_room(self, uint32_t ref, int64_t amount) noexcept nogil:
        """DONE, or why the account cannot be debited this much."""
        cdef Account* a = self._account(ref)
        cdef tr_i128 room
        if not a.flags & A_DEBITS:
            return DONE
        room = available_of(a)
        if a.flags & A_FLOOR:
            room = room - self._cold(ref).floor
        if room >= amount:
            return DONE
        if a.flags & A_POSITION:
            return LIQUIDITY_SHORT
        return CREDIT_LIMIT_REACHED if a.credit_limit else FUNDS_SHORT

    cdef int _under_cap(self, uint32_t ref, int64_t amount) noexcept nogil:
        """DONE, or why the account cannot be credited this much."""
        cdef Account* a = self._account(ref)
        cdef tr_i128 total
        if not a.flags & (A_CREDITS | A_CAP):
            return DONE
        total = a.credits_posted
        total = total + a.credits_pending - a.debits_posted + amount
        if (a.flags & A_CREDITS and total > 0) or (
            a.flags & A_CAP and total > self._cold(ref).cap
        ):
            return LIQUIDITY_SHORT if a.flags & A_POSITION else BALANCE_CAP_REACHED
        return DONE

    cdef int _fits(self, uint32_t debit, uint32_t credit, int64_t amount) noexcept nogil:
        """WOULD_OVERFLOW when a later posting of this amount could pass 64 bits."""
        cdef Account* d = self._account(debit)
        cdef Account* c = self._account(credit)
        cdef tr_i128 debits = d.debits_posted
        cdef tr_i128 credits = c.credits_posted
        debits = debits + d.debits_pending + amount
        credits = credits + c.credits_pending + amount
        return WOULD_OVERFLOW if debits > INT64_MAX or credits > INT64_MAX else DONE

    cdef int _find_all(self, Command* c) noexcept nogil:
        """Find debit, credit and meters: the same twice, unknown, of two ledgers are refused."""
        cdef bint unknown = False
        cdef uint32_t i, j
        if same_id(&c.debit, &c.credit):
            return SAME_ACCOUNT
        for i in range(c.meter_count):
            for j in range(i):
                if same_id(&c.meters[i], &c.meters[j]):
                    return SAME_ACCOUNT
            c.meters_at[i] = self._find_account(&c.meters[i])
            unknown |= c.meters_at[i] == 0
        if c.debit_at == 0:
            c.debit_at = self._find_account(&c.debit)
        if c.credit_at == 0:
            c.credit_at = self._find_account(&c.credit)
        if unknown or c.debit_at == 0 or c.credit_at == 0:
            return ACCOUNT_UNKNOWN
        if self._account(c.debit_at).book != self._account(c.credit_at).book:
            return CURRENCY_DIFFERS
        return DONE

    cdef int _all_open(
        self, uint32_t debit, uint32_t credit, int meter_flags, bint hold
    ) noexcept nogil:
        cdef int debit_flags = self._account(debit).flags
        cdef int credit_flags = self._account(credit).flags
        cdef int flags = debit_flags | credit_flags | meter_flags
        if flags & A_CLOSED:
            return ACCOUNT_CLOSED
        if debit_flags & A_FROZEN_DEBIT:
            return ACCOUNT_FROZEN_DEBIT
        if credit_flags & A_FROZEN_CREDIT:
            return ACCOUNT_FROZEN_CREDIT
        return ACCOUNT_FROZEN_HOLD if hold and flags & A_FROZEN_HOLD else DONE

    cdef int _meter_flags(self, const uint32_t* meters, uint32_t n) noexcept nogil:
        cdef int flags = 0
        cdef uint32_t i
        for i in range(n):
            flags |= self._account(meters[i]).flags
        return flags

    cdef int _in_range(self, uint32_t ref, int64_t amount) noexcept nogil:
        cdef Profile* p = &self._profiles[self._account(ref).profile]
        if self._account(ref).profile == 0:
            return DONE
        if (amount < p.operation_min or (p.operation_max and amount > p.operation_max)
                or (p.multiple > 1 and amount % p.multiple)):
            return AMOUNT_OVER_RANGE
        return DONE

    cdef int _operation_allowed(self, Command* c) noexcept nogil:
        """Operation minimum, maximum and multiple of all accounts that limit this hold."""
        cdef uint32_t i
        cdef int r = self._in_range(c.debit_at, c.amount)
        if r == DONE:
            r = self._in_range(c.credit_at, c.amount)
        for i in range(c.meter_count):
            if r == DONE:
                r = self._in_range(c.meters_at[i], c.amount)
        if r:
            c.window = 1
        return r

    cdef int _counters_allow(self, Command* c) noexcept nogil:
        """Limits by window: all by value, then all by count; debit, credit, meters each time."""
        cdef bint night = c.options & H_NIGHT
        cdef int side = 1 if c.options & H_METER_CREDIT else 0
        cdef uint32_t i
        if not self._amount_allowed(c.debit_at, 0, c.amount, c.day, night, c):
            return LIMIT_AMOUNT
        if not self._amount_allowed(c.credit_at, 1, c.amount, c.day, night, c):
            c.account = 1
            return LIMIT_AMOUNT
        for i in range(c.meter_count):
            if not self._amount_allowed(c.meters_at[i], side, c.amount, c.day, night, c):
                c.account = 2 + i
                return LIMIT_AMOUNT
        if not self._count_allowed(c.debit_at, 0, c.day, night, c):
            return LIMIT_COUNT
        if not self._count_allowed(c.credit_at, 1, c.day, night, c):
            c.account = 1
            return LIMIT_COUNT
        for i in range(c.meter_count):
            if not self._count_allowed(c.meters_at[i], side, c.day, night, c):
                c.account = 2 + i
                return LIMIT_COUNT
        return DONE

    cdef int _check_hold(self, Command* c, int64_t now) noexcept nogil:
        cdef uint32_t ref = self._find_hold(&c.id)
        cdef Hold* h
        cdef int r, flags
        if ref:
            h = self._hold(ref)
            if h.state == TOMBSTONE:
                return TOMBSTONED
            c.decided_ns = h.created_ns
            c.first = DONE
            if (h.debit == self._find_account(&c.debit)
                    and h.credit == self._find_account(&c.credit)
                    and (h.amount == c.amount or h.flags & (H_INCREMENTED | H_FORCED))):
                return REPEATED
            return REPEATED_WITH_DIFFERENCE
        if self._holds.live >= self._holds.most:
            return OVERLOADED
        if c.deadline_ns and now > c.deadline_ns:
            return TOO_LATE
        if c.amount <= 0:
            return AMOUNT_NOT_POSITIVE
        r = self._find_all(c)
        if r == DONE:
            flags = self._meter_flags(c.meters_at, c.meter_count)
            r = self._all_open(c.debit_at, c.credit_at, flags, True)
        if r == DONE and c.options & H_METERED:
            r = self._operation_allowed(c)
        if r == DONE:
            r = self._has_room(c.debit_at, c.amount)
        if r == DONE:
            r = self._under_cap(c.credit_at, c.amount)
        if r == DONE:
            r = self._fits(c.debit_at, c.credit_at, c.amount)
        if r == DONE and c.options & H_METERED:
            r = self._counters_allow(c)
        return r

    cdef int _check_increment(self, Command* c, Hold* h) noexcept nogil:
        cdef int64_t total = saturated_add(h.amount, c.amount if c.amount > 0 else 0)
        cdef uint32_t i
        cdef int r = DONE
        if h.state != OPEN:
            return self._state_result(h)
        if c.amount <= 0:
            return AMOUNT_NOT_POSITIVE
        r = self._all_open(h.debit, h.credit, self._meter_flags(h.meters, h.meter_count), True)
        if r == DONE and h.charged & 1:
            r = self._in_range(h.debit, total)
        if r == DONE and h.charged & 2:
            r = self._in_range(h.credit, total)
        for i in range(h.meter_count):
            if r == DONE and h.charged & (4 << i):
                r = self._in_range(h.meters[i], total)
        c.window = 1 if r == AMOUNT_OVER_RANGE else 0
        if r == DONE:
            r = self._has_room(h.debit, c.amount)
        if r == DONE:
            r = self._under_cap(h.credit, c.amount)
        if r == DONE:
            r = self._fits(h.debit, h.credit, c.amount)
        if r == DONE:  # posted and pending together hold h.amount: `total` did not saturate
            r = self._counters_allow_more(h, c)
        return r

    cdef int _counters_allow_more(self, const Hold* h, Command* c) noexcept nogil:
        """Limits by window of all that the hold was counted for; the count stays."""
        cdef bint night = h.flags & H_NIGHT
        cdef int side = 1 if h.flags & H_METER_CREDIT else 0
        cdef uint32_t i
        if h.charged & 1 and not self._amount_allowed(h.debit, 0, c.amount, h.day, night, c):
            return LIMIT_AMOUNT
        if h.charged & 2 and not self._amount_allowed(h.credit, 1, c.amount, h.day, night, c):
            c.account = 1
            return LIMIT_AMOUNT
        for i in range(h.meter_count):
            if h.charged & (4 << i) and not self._amount_allowed(
                h.meters[i], side, c.amount, h.day, night, c
            ):
                c.account = 2 + i
                return LIMIT_AMOUNT
        return DONE

    cdef int _state_result(self, const Hold* h) noexcept nogil:
        """What a command for an open hold answers to one that is not open."""
        if h.state == CAPTURED:
            return HOLD_CAPTURED
        if h.state == RELEASED:
            return HOLD_RELEASED
        if h.state == EXPIRED:
            return HOLD_EXPIRED
        if h.state == TOMBSTONE:
            return TOMBSTONED
        return ALREADY_REVERSED

    # --- Holds: the structure around them ---

    cdef void _heap_put(self, uint32_t at, uint32_t ref) noexcept nogil:
        self._heap[at] = ref
        self._hold(ref).heap_at = at

    cdef inline bint _heap_before(self, uint32_t a, uint32_t b) noexcept nogil:
        """Order of expiry; ids break ties, as they are the same on every replica."""
        cdef Hold* x = self._hold(a)
        cdef Hold* y = self._hold(b)
        if x.expires_ns != y.expires_ns:
            return x.expires_ns < y.expires_ns
        return x.id.hi < y.id.hi or (x.id.hi == y.id.hi and x.id.lo < y.id.lo)

    cdef void _heap_up(self, uint32_t at, uint32_t ref) noexcept nogil:
        while at > 1 and self._heap_before(ref, self._heap[at >> 1]):
            self._heap_put(at, self._heap[at >> 1])
            at >>= 1
        self._heap_put(at, ref)

    cdef void _heap_add(self, uint32_t ref) noexcept nogil:
        self._heap_count += 1
        self._heap_up(self._heap_count, ref)

    cdef void _heap_drop(self, uint32_t ref) noexcept nogil:
        cdef uint32_t at = self._hold(ref).heap_at
        cdef uint32_t last = self._heap[self._heap_count]
        cdef uint32_t child
        self._heap_count -= 1
        self._hold(ref).heap_at = 0
        if last == ref:
            return
        while True:
            child = at * 2
            if child > self._heap_count:
                break
            if child < self._heap_count and self._heap_before(
                self._heap[child + 1], self._heap[child]
            ):
                child += 1
            if not self._heap_before(self._heap[child], last):
                break
            self._heap_put(at, self._heap[child])
            at = child
        self._heap_up(at, last)

    cdef uint64_t _hold_fixed(self, const Hold* h) noexcept nogil:
        """The part of a hold's digest that never changes."""
        cdef uint64_t s = id_mix(&h.id)
        cdef uint32_t i
        if h.debit:
            s = tr_mix(s ^ id_mix(&self._account(h.debit).id), id_mix(&self._account(h.credit).id))
        s = tr_mix(s ^ <uint64_t> h.created_ns, <uint64_t> h.expires_ns)
        s = tr_mix(s ^ <uint64_t> h.day, h.code | (<uint64_t> h.policy << 16))
        for i in range(h.meter_count):
            s = tr_mix(s, id_mix(&self._account(h.meters[i]).id))
        if h.head and not same_id(&self._hold(h.head).id, &h.id):
            s = tr_mix(s, id_mix(&self._hold(h.head).id))
        return s

    cdef Hold* _hold_change(self, uint32_t ref) noexcept nogil:
        """Begin a change of a hold; `_hold_changed` ends it."""
        cdef Hold* h = self._hold(ref)
        self._log(U_HOLD, ref, h, sizeof(Hold))
        self._digest -= hold_moving(h)
        return h

    cdef inline void _hold_changed(self, const Hold* h) noexcept nogil:
        self._digest += hold_moving(h)

    cdef uint32_t _hold_new(self, const Id* id, int64_t now) noexcept nogil:
        """Return a new hold; the caller fills it in and adds its digest."""
        cdef bint reused = False
        cdef uint32_t ref = arena_take(&self._holds, &reused)
        cdef Hold* h = self._hold(ref)
        h.id = id[0]
        h.head = ref
        h.created_ns = now
        index_add(&self._hold_index, id_mix(id), ref)
        self._log_two(U_HOLD_NEW, ref, 0, reused)
        return ref

    cdef void _hold_close(self, uint32_t ref, int64_t now) noexcept nogil:
        """Inside a change: leave the heap, join the queue that `forget` empties."""
        cdef Hold* h = self._hold(ref)
        if h.heap_at:
            self._log_two(U_HEAP_DROP, ref, 0, False)
            self._heap_drop(ref)
        if h.flags & H_QUEUED:
            return
        h.flags |= H_QUEUED
        h.closed_ns = now
        self._log_two(U_QUEUE, ref, self._closed_last, False)
        if self._closed_last:
            self._hold(self._closed_last).queue_next = ref
        else:
            self._closed_first = ref
        self._closed_last = ref
        self._closed_count += 1

    # --- Effects: what live commands and replayed records both run ---

    cdef void _place(self, Command* c, int64_t now) noexcept nogil:
        cdef uint32_t ref = self._hold_new(&c.id, now)
        cdef Hold* h = self._hold(ref)
        h.amount = c.amount
        h.debit = c.debit_at
        h.credit = c.credit_at
        h.day = c.day
        h.code = c.code
        h.policy = c.policy
        h.state = OPEN
        h.flags = c.options & (H_NIGHT | H_METERED | H_METER_CREDIT)
        h.meter_count = c.meter_count
        memcpy(h.meters, c.meters_at, sizeof(h.meters))
        if c.seconds:
            h.expires_ns = saturated_add(now, <int64_t> c.seconds * SECOND_NS)
        if self._in_chain and self._chain_head and self._hold(self._chain_head).state == OPEN:
            h.head = self._chain_head
            self._log(U_HOLD, self._chain_tail, self._hold(self._chain_tail), sizeof(Hold))
            self._hold(self._chain_tail).next = ref
        else:
            self._chain_head = ref
            if c.policy == POLICY_AUTO:
                self._log_two(U_HEAP_ADD, ref, 0, False)
                self._heap_add(ref)
        self._chain_tail = ref
        self._move_debits(c.debit_at, c.amount, 0)
        self._move_credits(c.credit_at, c.amount, 0)
        if c.options & H_METERED:
            self._hold_charge(h, c.amount, 1)
        self._digest += self._hold_fixed(h) + hold_moving(h)
        self._placed = ref

    cdef void _place_tombstone(self, const Id* id, int64_t now) noexcept nogil:
        cdef uint32_t ref = self._hold_new(id, now)
        cdef Hold* h = self._hold(ref)
        h.state = TOMBSTONE
        self._hold_close(ref, now)
        self._digest += self._hold_fixed(h) + hold_moving(h)

    cdef void _raise_hold(self, uint32_t ref, int64_t amount) noexcept nogil:
        cdef Hold* h = self._hold_change(ref)
        h.amount += amount
        h.flags |= H_INCREMENTED
        self._move_debits(h.debit, amount, 0)
        self._move_credits(h.credit, amount, 0)
        self._hold_charge(h, amount, 0)
        self._hold_changed(h)

    cdef bint _capture_one(
        self, uint32_t ref, int64_t take, bint final, bint forced, int64_t now
    ) noexcept nogil:
        """Capture an open hold; True when that closed it."""
        cdef Hold* h = self._hold_change(ref)
        cdef int64_t rest = h.amount - h.captured if h.amount > h.captured else 0
        cdef int64_t held = take if take < rest else rest
        cdef int64_t left = rest - held
        cdef bint closes = final or left == 0
        h.captured += take
        self._move_debits(h.debit, -held, take)
        self._move_credits(h.credit, -held, take)
        if closes:
            self._move_back(h.debit, h.credit, left)
            h.released = left
            if left:
                self._hold_give_back(h, left, 0)
            h.state = CAPTURED
            self._hold_close(ref, now)
        if forced and take > held:
            h.flags |= H_FORCED
            self._list_forced(&h.id, h.debit, take - held, now)
        self._hold_changed(h)
        return closes

    cdef void _capture_gone(self, uint32_t ref, int64_t take, int64_t now) noexcept nogil:
        """Post for a hold that no longer holds anything: the money is out (failure case X137)."""
        cdef Hold* h = self._hold_change(ref)
        h.captured += take
        h.released = h.amount - h.captured if h.amount > h.captured else 0
        h.state = CAPTURED
        h.flags |= H_FORCED
        self._move_debits(h.debit, 0, take)
        self._move_credits(h.credit, 0, take)
        self._hold_close(ref, now)
        self._list_forced(&h.id, h.debit, take, now)
        self._hold_changed(h)

    cdef void _release_one(self, uint32_t ref, uint8_t state, int64_t now) noexcept nogil:
        cdef Hold* h = self._hold_change(ref)
        cdef int64_t rest = h.amount - h.captured if h.amount > h.captured else 0
        self._move_back(h.debit, h.credit, rest)
        h.released = rest
        self._hold_give_back(h, rest, 0 if h.captured else 1)
        if h.captured == 0:
            h.charged = 0
        h.state = CAPTURED if h.captured else state
        self._hold_close(ref, now)
        self._hold_changed(h)

    cdef void _release_group(self, uint32_t ref, uint8_t state, int64_t now) noexcept nogil:
        while ref:
            self._release_one(ref, state, now)
            ref = self._hold(ref).next

    cdef int _compensate(self, uint32_t ref, bint live) noexcept nogil:
        """Post a captured hold back; refused (live only) where that would break a rule."""
        cdef Hold* h = self._hold(ref)
        cdef int64_t charged
        cdef int r
        if live:
            r = ACCOUNT_CLOSED if self._account(h.debit).flags & A_CLOSED else DONE
            if r == DONE:
                r = self._has_room(h.credit, h.captured)
                r = FUNDS_SHORT if r == CREDIT_LIMIT_REACHED else r
            if r == DONE and self._account(h.debit).flags & A_CREDITS:
                r = self._under_cap(h.debit, h.captured)
            if r == DONE:
                r = self._fits(h.credit, h.debit, h.captured)
            if r:
                return r
        h = self._hold_change(ref)
        self._move_debits(h.credit, 0, h.captured)
        self._move_credits(h.debit, 0, h.captured)
        charged = h.captured if h.captured < h.amount else h.amount
        self._hold_give_back(h, charged, 1)
        h.charged = 0
        h.state = ANNULLED
        self._hold_changed(h)
        return DONE

    cdef int _annul(self, uint32_t ref, int64_t now, bint live) noexcept nogil:
        """Release all that is open, then compensate in reverse order: fees come back first."""
        cdef uint32_t refs[CHAIN_MAX]
        cdef int n = 0
        cdef int r
        if self._hold(ref).state == OPEN:
            self._release_group(ref, RELEASED, now)
        while ref and n < CHAIN_MAX:
            refs[n] = ref
            n += 1
            ref = self._hold(ref).next
        while n:
            n -= 1
            if self._hold(refs[n]).state == CAPTURED:
                r = self._compensate(refs[n], live)
                if r:
                    return r
        return DONE

    # --- Commands ---

    cdef int _run_account(self, Command* c, int64_t now) noexcept nogil:
        cdef uint32_t ref = self._find_account(&c.id)
        cdef Account* a
        if ref:
            a = self._account(ref)
            c.decided_ns = self._cold(ref).created_ns
            c.first = DONE
            if (self._books[a.book].ledger == c.ledger and a.code == c.code
                    and a.flags & A_PUBLIC == c.flags and a.credit_limit == c.amount
                    and a.profile == c.profile):
                return REPEATED
            return REPEATED_WITH_DIFFERENCE
        if self._accounts.live >= self._accounts.most:
            return OVERLOADED
        if self._book_of(c.ledger) >= BOOKS_MAX:
            return OVERLOADED
        if c.profile and not self._profiles[c.profile].known:
            return ACCOUNT_UNKNOWN
        self._open_account(c, now)
        self._effect = True
        return DONE

    cdef uint32_t _book_of(self, uint32_t ledger) noexcept nogil:
        """Return the place of a ledger's sums, which may be the next free one."""
        cdef uint32_t i
        for i in range(self._book_count):
            if self._books[i].ledger == ledger:
                return i
        return self._book_count

    cdef void _open_account(self, Command* c, int64_t now) noexcept nogil:
        cdef uint32_t book = self._book_of(c.ledger)
        cdef bint reused = False
        cdef uint32_t ref
        cdef Account* a
        cdef Cold* cold
        if book == self._book_count:
            self._log_two(U_BOOK_NEW, book, 0, False)
            self._books[book].ledger = c.ledger
            self._book_count += 1
        ref = arena_take(&self._accounts, &reused)
        arena_take(&self._colds, &reused)
        a = self._account(ref)
        a.id = c.id
        a.book = book
        a.code = c.code
        a.flags = c.flags
        a.credit_limit = c.amount
        cold = self._cold(ref)
        cold.cap = INT64_MAX
        cold.created_ns = now
        index_add(&self._account_index, id_mix(&c.id), ref)
        self._log_two(U_ACCOUNT_NEW, ref, 0, False)
        self._digest += self._account_fixed(ref)
        if c.profile:
            self._log(U_ACCOUNT, ref, a, sizeof(Account))
            self._take_profile(ref, c.profile)

    cdef void _take_profile(self, uint32_t ref, uint16_t profile) noexcept nogil:
        """Give an account a limit profile, and counters with its first one; `a` is logged."""
        cdef Account* a = self._account(ref)
        cdef Cold* cold = self._cold(ref)
        cdef Usage* u
        cdef bint reused = False
        cdef int side, window
        self._digest -= self._account_fixed(ref)
        a.profile = profile
        if profile and cold.usage == 0:
            self._log(U_COLD, ref, cold, sizeof(Cold))
            cold.usage = arena_take(&self._usages, &reused)
            self._log_two(U_USAGE_NEW, cold.usage, 0, False)
            u = self._usage(cold.usage)
            for side in range(2):
                for window in range(WINDOWS):
                    u.side[side].current[window].period = INT32_MIN
                    u.side[side].previous[window].period = INT32_MIN
        self._digest += self._account_fixed(ref)

    cdef int _run_limits(self, Command* c) noexcept nogil:
        cdef uint32_t ref = self._find_account(&c.id)
        if ref == 0:
            return ACCOUNT_UNKNOWN
        if c.options & L_PROFILE and c.profile and not self._profiles[c.profile].known:
            return ACCOUNT_UNKNOWN
        self._change_limits(c, ref)
        self._effect = True
        return DONE

    cdef void _change_limits(self, Command* c, uint32_t ref) noexcept nogil:
        cdef Account* a = self._account(ref)
        cdef Cold* cold = self._cold(ref)
        self._log(U_ACCOUNT, ref, a, sizeof(Account))
        self._log(U_COLD, ref, cold, sizeof(Cold))
        self._digest -= self._account_fixed(ref)
        if c.options & L_CREDIT:
            a.credit_limit = c.amount
        if c.options & L_FLOOR:
            cold.floor = c.low
            a.flags = (a.flags & ~A_FLOOR) | (A_FLOOR if c.low else 0)
        if c.options & L_CAP:
            cold.cap = c.high
            a.flags = (a.flags & ~A_CAP) | (A_CAP if c.high != INT64_MAX else 0)
        a.flags &= ~A_EXPOSED
        if a.flags & A_DEBITS and available_of(a) < 0:
            a.flags |= A_EXPOSED
        self._digest += self._account_fixed(ref)
        if c.options & L_PROFILE:
            self._take_profile(ref, c.profile)

    cdef int _run_flags(self, Command* c) noexcept nogil:
        cdef uint32_t ref = self._find_account(&c.id)
        if ref == 0:
            return ACCOUNT_UNKNOWN
        self._change_flags(c, ref)
        self._effect = True
        return DONE

    cdef void _change_flags(self, Command* c, uint32_t ref) noexcept nogil:
        cdef Account* a = self._account(ref)
        self._log(U_ACCOUNT, ref, a, sizeof(Account))
        self._digest -= self._account_fixed(ref)
        a.flags = (a.flags | c.flags) & ~c.code
        self._digest += self._account_fixed(ref)

    cdef int _run_transfer(self, Command* c, int64_t now) noexcept nogil:
        cdef bint forced = c.op == OP_TRANSFER and c.options & C_FORCED
        cdef int r
        if forced and self._forced.live >= self._forced.most:
            return OVERLOADED
        if c.amount <= 0:
            return AMOUNT_NOT_POSITIVE
        r = self._find_all(c)
        if r == DONE and c.op == OP_TRANSFER and not forced:
            r = self._all_open(c.debit_at, c.credit_at, 0, False)
        if r == DONE and not forced:
            r = self._has_room(c.debit_at, c.amount)
        if r == DONE and c.op == OP_TRANSFER and not forced:
            r = self._under_cap(c.credit_at, c.amount)
        if r == DONE:
            r = self._fits(c.debit_at, c.credit_at, c.amount)
        if r == DONE:
            self._post(c, now)
            self._effect = True
        return r

    cdef void _post(self, Command* c, int64_t now) noexcept nogil:
        self._move_debits(c.debit_at, 0, c.amount)
        self._move_credits(c.credit_at, 0, c.amount)
        if c.op == OP_TRANSFER and c.options & C_FORCED:
            self._list_forced(NULL, c.debit_at, c.amount, now)

    cdef int _run_hold(self, Command* c, int64_t now) noexcept nogil:
        cdef int r = self._check_hold(c, now)
        if r == DONE:
            self._place(c, now)
            self._effect = True
        return r

    cdef uint32_t _find_head(self, Command* c) noexcept nogil:
        """Return the hold, if it is the first of its chain: the only name a chain answers to."""
        cdef uint32_t ref = c.hold_at
        if ref == 0 or self._hold(ref).state == FREE or not same_id(&self._hold(ref).id, &c.id):
            ref = self._find_hold(&c.id)
        if ref and self._hold(ref).head != ref:
            return 0
        return ref

    cdef int _run_increment(self, Command* c) noexcept nogil:
        cdef uint32_t ref = self._find_head(c)
        cdef int r
        if ref == 0:
            return HOLD_UNKNOWN
        r = self._check_increment(c, self._hold(ref))
        if r == DONE:
            self._raise_hold(ref, c.amount)
            self._effect = True
        return r

    cdef int _run_capture(self, Command* c, int64_t now) noexcept nogil:
        cdef uint32_t ref = self._find_head(c)
        cdef bint forced = c.options & C_FORCED
        cdef Hold* h
        cdef int r
        if forced and self._forced.live + CHAIN_MAX > self._forced.most:
            return OVERLOADED
        if ref == 0 and (not forced or self._find_hold(&c.id)):
            return HOLD_UNKNOWN
        h = self._hold(ref)
        if ref == 0 or h.state == TOMBSTONE:
            r = self._check_unheld(c, ref)
        elif h.state == OPEN:
            r = self._check_capture(c, h, forced)
        elif forced and (h.state == RELEASED or h.state == EXPIRED):
            r = AMOUNT_NOT_POSITIVE if c.amount < 0 else self._gone_fits(c, ref)
        else:
            r = self._state_result(h)
        if r == DONE:
            self._capture(c, ref, now)
            self._effect = True
        return r

    cdef int _check_unheld(self, Command* c, uint32_t ref) noexcept nogil:
        """A capture for a tombstone or an unknown hold: only forced, and with both accounts."""
        cdef int r
        if not c.options & C_FORCED or not c.options & C_ACCOUNTS:
            return TOMBSTONED if ref else HOLD_UNKNOWN
        if ref == 0 and self._holds.live >= self._holds.most:
            return OVERLOADED
        if c.amount <= 0:
            return AMOUNT_NOT_POSITIVE
        r = self._find_all(c)
        return self._fits(c.debit_at, c.credit_at, c.amount) if r == DONE else r

    cdef int _check_capture(self, Command* c, Hold* h, bint forced) noexcept nogil:
        cdef int64_t rest = h.amount - h.captured if h.amount > h.captured else 0
        cdef int64_t over = c.amount - rest
        cdef tr_i128 total = h.captured
        cdef uint32_t ref
        cdef int r = DONE
        total = total + c.amount - h.amount
        if c.amount < 0:
            return AMOUNT_NOT_POSITIVE
        if c.amount == 0:
            over = 0
        if over > 0 and not forced and total > c.low:
            return OVER_HOLD
        ref = h.head
        while ref and not forced:
            if self._account(self._hold(ref).credit).flags & A_CLOSED:
                return ACCOUNT_CLOSED
            ref = self._hold(ref).next
        if over > 0:
            if not forced:
                r = self._has_room(h.debit, over)
            if r == DONE and not forced:
                r = self._under_cap(h.credit, over)
            if r == DONE:
                r = self._fits(h.debit, h.credit, over)
        return r

    cdef int _gone_fits(self, Command* c, uint32_t ref) noexcept nogil:
        """Overflow check of a forced capture of a chain; at worst its holds share accounts."""
        cdef tr_i128 total = c.amount if c.amount else self._hold(ref).amount
        cdef uint32_t member = self._hold(ref).next
        while member:
            total = total + self._hold(member).amount
            member = self._hold(member).next
        if total > INT64_MAX:
            return WOULD_OVERFLOW
        while ref:
            if self._fits(self._hold(ref).debit, self._hold(ref).credit, <int64_t> total):
                return WOULD_OVERFLOW
            ref = self._hold(ref).next
        return DONE

    cdef void _capture(self, Command* c, uint32_t ref, int64_t now) noexcept nogil:
        """Capture in whatever state; leaves the amount taken at the head in c.amount."""
        cdef Hold* h = self._hold(ref)
        cdef bint forced = c.options & C_FORCED
        if ref == 0 or h.state == TOMBSTONE:
            self._capture_unheld(c, ref, now)
            return
        if h.state == OPEN:
            if c.amount == 0:
                c.amount = h.amount - h.captured if h.amount > h.captured else 0
            if not self._capture_one(ref, c.amount, c.options & C_FINAL, forced, now):
                return
            ref = h.next
            while ref:
                h = self._hold(ref)
                self._capture_one(
                    ref, h.amount - h.captured if h.amount > h.captured else 0, True, False, now
                )
                ref = h.next
            return
        if c.amount == 0:
            c.amount = h.amount
        self._capture_gone(ref, c.amount, now)
        ref = h.next
        while ref:
            self._capture_gone(ref, self._hold(ref).amount, now)
            ref = self._hold(ref).next

    cdef void _capture_unheld(self, Command* c, uint32_t ref, int64_t now) noexcept nogil:
        """Give a tombstone, or a hold made for this, its accounts, and post."""
        cdef Hold* h
        if ref == 0:
            ref = self._hold_new(&c.id, now)
            h = self._hold(ref)
        else:
            h = self._hold(ref)
            self._log(U_HOLD, ref, h, sizeof(Hold))
            self._digest -= self._hold_fixed(h) + hold_moving(h)
        h.debit = c.debit_at
        h.credit = c.credit_at
        h.amount = c.amount
        h.state = RELEASED
        self._digest += self._hold_fixed(h) + hold_moving(h)
        self._capture_gone(ref, c.amount, now)

    cdef int _run_release(self, Command* c, int64_t now) noexcept nogil:
        cdef uint32_t ref = self._find_head(c)
        cdef Hold* h
        if ref == 0:
            if not c.options & C_TOMBSTONE or self._find_hold(&c.id):
                return HOLD_UNKNOWN
            if self._holds.live >= self._holds.most:
                return OVERLOADED
            self._place_tombstone(&c.id, now)
            self._effect = True
            return ORIGINAL_UNKNOWN
        h = self._hold(ref)
        if h.state != OPEN:
            return self._state_result(h)
        self._release_group(ref, RELEASED, now)
        self._effect = True
        return DONE

    cdef int _run_annul(self, Command* c, int64_t now) noexcept nogil:
        cdef uint32_t ref = self._find_head(c)
        cdef Hold* h
        cdef int r
        if ref == 0:
            return HOLD_UNKNOWN
        h = self._hold(ref)
        if h.state != OPEN and h.state != CAPTURED:
            return self._state_result(h)
        r = self._annul(ref, now, True)
        self._effect = r == DONE
        return r

    # --- One-time-code steps and attempts ---

    cdef uint32_t _attempt_for(self, const Id* id) noexcept nogil:
        """Find the counters of a key, or make them; moves them to the end of the queue."""
        cdef uint64_t h = id_mix(id)
        cdef uint32_t ref = index_find(&self._attempt_index, &self._attempts, id, h)
        cdef bint reused = False
        cdef Attempt* a
        if ref:
            a = self._attempt(ref)
            self._digest -= attempt_digest(a)
            self._attempt_unlink(ref)
        else:
            ref = arena_take(&self._attempts, &reused)
            a = self._attempt(ref)
            a.id = id[0]
            a.last_step = -1
            index_add(&self._attempt_index, h, ref)
        a.prev = self._attempt_last
        a.next = 0
        if a.prev:
            self._attempt(a.prev).next = ref
        else:
            self._attempt_first = ref
        self._attempt_last = ref
        return ref

    cdef void _attempt_unlink(self, uint32_t ref) noexcept nogil:
        cdef Attempt* a = self._attempt(ref)
        if a.prev:
            self._attempt(a.prev).next = a.next
        else:
            self._attempt_first = a.next
        if a.next:
            self._attempt(a.next).prev = a.prev
        else:
            self._attempt_last = a.prev

    cdef int _decide_attempt(self, Command* c, Attempt* now_is, int64_t now) noexcept nogil:
        """Decide a step, a try or a clearing on a copy of the counters. Changes nothing else.

        The record holds the whole outcome, so it is put before the counters are changed.
        """
        cdef uint32_t ref = index_find(
            &self._attempt_index, &self._attempts, &c.id, id_mix(&c.id)
        )
        cdef int64_t now_s = now // SECOND_NS
        if ref:
            now_is[0] = self._attempt(ref)[0]
        else:
            memset(now_is, 0, sizeof(Attempt))
            now_is.id = c.id
            now_is.last_step = -1
        self._effect = False
        if c.op == OP_CLEAR:
            if ref == 0:
                return DONE
            now_is.count = 0
            if c.options & C_ROW:
                now_is.row = 0
                now_is.locked_until_s = 0
        elif ref == 0 and self._attempts.live >= self._attempts.most:
            return OVERLOADED
        elif c.op == OP_STEP:
            if c.amount <= now_is.last_step:
                return REPEATED
            now_is.last_step = c.amount
        elif now_s < now_is.locked_until_s:
            return LIMIT_COUNT
        else:
            self._effect = True
            return self._count_attempt(c, now_is, now)
        now_is.touched_ns = now
        self._effect = True
        return DONE

    cdef int _count_attempt(self, Command* c, Attempt* a, int64_t now) noexcept nogil:
        cdef int64_t window_ns = <int64_t> c.seconds * SECOND_NS
        a.touched_ns = now
        a.locked_until_s = 0
        if a.count == 0 or (window_ns and now - a.window_ns >= window_ns):
            a.count = 0
            a.window_ns = now
        if a.count < UINT32_MAX:
            a.count += 1
        if a.row < UINT32_MAX:
            a.row += 1
        if c.ledger and a.row >= c.ledger:
            a.count = 0
            a.locked_until_s = LOCKED_FOR_EVER
            return LIMIT_COUNT
        if c.number and a.count >= c.number:
            a.count = 0
            # Rounded up: a lock is never shorter than asked for.
            a.locked_until_s = (now + SECOND_NS - 1) // SECOND_NS + c.low
            return LIMIT_COUNT
        return DONE

    cdef void _set_attempt(self, const Attempt* become) noexcept nogil:
        cdef uint32_t ref = self._attempt_for(&become.id)
        cdef Attempt* a = self._attempt(ref)
        a.last_step = become.last_step
        a.window_ns = become.window_ns
        a.touched_ns = become.touched_ns
        a.locked_until_s = become.locked_until_s
        a.count = become.count
        a.row = become.row
        self._digest += attempt_digest(a)

    # --- Forgetting ---

    cdef bint _forget(self, int64_t before) noexcept nogil:
        """Drop what is older; True when more than a bounded number were due."""
        if before > self._horizon_ns:
            self._digest -= tr_mix(<uint64_t> self._horizon_ns, M5)
            self._horizon_ns = before
            self._digest += tr_mix(<uint64_t> before, M5)
        # Holds point to their keys: those go first, all of them, or the holds wait.
        if self._forget_keys(before):
            return True
        if self._forget_holds(before):
            return True
        return self._forget_attempts(before)

    cdef bint _forget_keys(self, int64_t before) noexcept nogil:
        cdef uint32_t ref = self._key_first
        cdef uint32_t prev = 0
        cdef uint32_t next_
        cdef int dropped = 0
        cdef Key* k
        while ref:
            k = self._key(ref)
            if k.time_ns >= before:
                break
            if dropped == STEP_MAX:
                return True
            next_ = k.next
            if k.hold and self._hold(k.hold).state == OPEN:
                prev = ref
            else:
                if prev:
                    self._key(prev).next = next_
                else:
                    self._key_first = next_
                if self._key_last == ref:
                    self._key_last = prev
                if k.hold:
                    self._hold(k.hold).key = 0
                self._digest -= key_digest(k)
                index_drop(&self._key_index, id_mix(&k.id), ref)
                arena_give(&self._keys, ref)
                dropped += 1
            ref = next_
        return False

    cdef bint _forget_holds(self, int64_t before) noexcept nogil:
        """Chains close as one, so the queue holds them whole, first hold first."""
        cdef uint32_t head, ref, next_
        cdef int dropped = 0
        while self._closed_first:
            head = self._closed_first
            if self._hold(head).closed_ns >= before:
                break
            if dropped >= STEP_MAX:
                return True
            ref = head
            while ref:
                self._digest -= self._hold_fixed(self._hold(ref)) + hold_moving(self._hold(ref))
                self._closed_first = self._hold(ref).queue_next
                ref = self._hold(ref).next
            # The digest of a member names its head, so they are freed only now.
            ref = head
            while ref:
                next_ = self._hold(ref).next
                self._hold_free(ref)
                self._closed_count -= 1
                dropped += 1
                ref = next_
        if self._closed_first == 0:
            self._closed_last = 0
        return False

    cdef void _hold_free(self, uint32_t ref) noexcept nogil:
        cdef Hold* h = self._hold(ref)
        if h.key:
            self._key(h.key).hold = 0
        index_drop(&self._hold_index, id_mix(&h.id), ref)
        arena_give(&self._holds, ref)

    cdef bint _forget_attempts(self, int64_t before) noexcept nogil:
        cdef uint32_t ref = self._attempt_first
        cdef uint32_t next_
        cdef int dropped = 0
        cdef Attempt* a
        while ref:
            a = self._attempt(ref)
            if a.touched_ns >= before:
                break
            if dropped == STEP_MAX:
                return True
            next_ = a.next
            if a.locked_until_s <= before // SECOND_NS:
                self._attempt_unlink(ref)
                self._digest -= attempt_digest(a)
                index_drop(&self._attempt_index, id_mix(&a.id), ref)
                arena_give(&self._attempts, ref)
                dropped += 1
            ref = next_
        return False

    # --- Deciding ---

    cdef int _run(self, Command* c, int64_t now) noexcept nogil:
        if c.op == OP_HOLD:
            return self._run_hold(c, now)
        if c.op == OP_CAPTURE:
            return self._run_capture(c, now)
        if c.op == OP_RELEASE:
            return self._run_release(c, now)
        if c.op == OP_TRANSFER or c.op == OP_ADJUST:
            return self._run_transfer(c, now)
        if c.op == OP_ANNUL:
            return self._run_annul(c, now)
        if c.op == OP_INCREMENT:
            return self._run_increment(c)
        if c.op == OP_ACCOUNT:
            return self._run_account(c, now)
        if c.op == OP_LIMITS:
            return self._run_limits(c)
        return self._run_flags(c)

    cdef bint _answer_by_key(self, Command* c, int64_t now) noexcept nogil:
        """True when the key alone decides: known, expired, or no room to remember it."""
        cdef uint32_t ref = 0
        cdef Key* k
        cdef int64_t made = c.key_ns
        c.decided_ns = now
        c.window = 0
        c.account = 0
        if c.has_key:
            ref = index_find(&self._key_index, &self._keys, &c.key, c.key_hash)
        if ref:
            k = self._key(ref)
            c.result = REPEATED if k.digest == c.digest else REPEATED_WITH_DIFFERENCE
            c.first = k.result
            c.window = k.window
            c.account = k.account
            c.decided_ns = k.time_ns
            return True
        if made == 0:
            made = (c.day + 2) * DAY_NS if c.op == OP_HOLD else now
        if made < self._horizon_ns and (c.has_key or c.op == OP_HOLD):
            c.result = c.first = KEY_EXPIRED
            return True
        if c.has_key and self._keys.live >= self._keys.most:
            c.result = c.first = OVERLOADED
            return True
        return False

    cdef void _remember(self, Command* c, int64_t now) noexcept nogil:
        """Keep the decision under its key, at the end of the queue that `forget` empties."""
        cdef bint reused = False
        cdef uint32_t ref = arena_take(&self._keys, &reused)
        cdef Key* k = self._key(ref)
        k.id = c.key
        k.digest = c.digest
        k.time_ns = now
        k.result = c.result
        k.window = c.window
        k.account = c.account
        index_add(&self._key_index, id_mix(&c.key), ref)
        self._log_two(U_KEY_NEW, ref, self._key_last, reused)
        if self._key_last:
            self._key(self._key_last).next = ref
        else:
            self._key_first = ref
        self._key_last = ref
        if self._placed:
            k.hold = self._placed
            self._hold(self._placed).key = ref
        self._digest += key_digest(k)

    cdef bint _decide(self, Command* c, int64_t now) noexcept nogil:
        """Decide and apply one command; True when there is something to journal."""
        cdef size_t mark = self._undo_used
        cdef uint64_t digest = self._digest
        if mark > UNDO_BYTES - UNDO_ONE:
            self._fault = "a chain outgrew the undo log"
            return False
        if self._answer_by_key(c, now):
            return False
        self._book_logged = 0
        self._placed = 0
        self._effect = False
        c.result = self._run(c, now)
        if not self._effect and self._undo_used > mark:
            self._roll_back(mark, digest)
        if c.result == REPEATED or c.result == REPEATED_WITH_DIFFERENCE:
            return False
        c.first = c.result
        if c.result != LIMIT_AMOUNT and c.result != LIMIT_COUNT and c.result != AMOUNT_OVER_RANGE:
            c.window = 0
        if c.has_key and c.result != OVERLOADED:
            self._remember(c, now)
            return True
        return self._effect

    cdef bint _held_in_chain(self, const Command* c) noexcept nogil:
        """Whether a command of a chain is no reason for the others to fail."""
        cdef int r = c.first if c.result == REPEATED else c.result
        return r == DONE or r == ORIGINAL_UNKNOWN

    cdef bint _decide_chain(self, Command* c, Py_ssize_t n, int64_t now) noexcept nogil:
        """Decide linked commands: all are applied, or none and each one's key remembers why."""
        cdef uint64_t digest = self._digest
        cdef Py_ssize_t i
        cdef Py_ssize_t failed = -1
        self._chain_head = 0
        self._in_chain = True
        for i in range(n):
            if self._decide(&c[i], now):
                self._encode(&c[i], now)
            if self._fault != NULL or not self._held_in_chain(&c[i]):
                failed = i
                break
        self._in_chain = False
        if failed < 0 or self._fault != NULL:
            return self._record_used > 0
        self._roll_back(0, digest)
        self._record_used = 0
        self._placed = 0
        self._effect = False
        for i in range(n):
            if i == failed:
                if c[i].result in (REPEATED, REPEATED_WITH_DIFFERENCE, KEY_EXPIRED, OVERLOADED):
                    continue
            elif i < failed and c[i].result == REPEATED:
                continue
            elif i > failed and self._answer_by_key(&c[i], now):
                continue
            else:
                c[i].result = c[i].first = CHAIN_FAILED
                c[i].decided_ns = now
                c[i].window = 0
                c[i].account = 0
            if c[i].has_key and c[failed].result != OVERLOADED:
                self._remember_refusal(&c[i], now)
        return self._record_used > 0

    cdef void _remember_refusal(self, Command* c, int64_t now) noexcept nogil:
        """The key may have come twice in one chain, or just have filled the table."""
        cdef uint8_t result = c.result
        cdef uint8_t window = c.window
        cdef uint8_t account = c.account
        if self._answer_by_key(c, now):
            return
        c.result = c.first = result
        c.window = window
        c.account = account
        self._remember(c, now)
        self._encode(c, now)

    # --- Records ---
    #
    # A record: time i64, result, flags (1: has a key), window, account; with a key its 16 bytes and
    # the digest u64; then, where the command changed anything, the fields of its kind as `_encode`
    # writes them. Little-endian, not aligned. The kind is the operation; a layout that changes gets
    # a new kind. A chain is a row of (kind u8, length u16, record).

    cdef inline void _write(self, const void* data, size_t n) noexcept nogil:
        memcpy(self._record + self._record_used, data, n)
        self._record_used += n

    cdef void _encode(self, Command* c, int64_t now) noexcept nogil:
        """Append one record, headed by its kind and length, to the record buffer."""
        cdef size_t start = self._record_used
        cdef unsigned char* head = self._record + start
        cdef uint16_t length
        self._record_used += 3
        self._write(&now, 8)
        self._write(&c.result, 1)
        self._write(&c.has_key, 1)
        self._write(&c.window, 1)
        self._write(&c.account, 1)
        if c.has_key:
            self._write(&c.key, 16)
            self._write(&c.digest, 8)
        head[0] = c.op if self._effect else OP_DECISION
        if self._effect:
            self._encode_fields(c)
        length = self._record_used - start - 3
        memcpy(head + 1, &length, 2)

    cdef void _encode_fields(self, Command* c) noexcept nogil:
        if c.op == OP_TRANSFER or c.op == OP_ADJUST:
            self._write(&c.debit, 32)  # debit and credit lie side by side
            self._write(&c.amount, 8)
            if c.op == OP_TRANSFER:
                self._write(&c.code, 2)
                self._write(&c.options, 1)
            else:
                self._write(&c.number, 4)
                self._write(&c.meters, 32)  # author and second
            return
        if c.op == OP_PROFILE or c.op == OP_FORGET:
            return
        self._write(&c.id, 16)
        if c.op == OP_HOLD:
            self._write(&c.debit, 32)
            self._write(&c.amount, 8)
            self._write(&c.day, 4)
            self._write(&c.seconds, 4)
            self._write(&c.code, 2)
            self._write(&c.policy, 1)
            self._write(&c.options, 1)
            self._write(&c.meter_count, 1)
            self._write(&c.meters, 16 * c.meter_count)
        elif c.op == OP_CAPTURE:
            self._write(&c.amount, 8)
            self._write(&c.options, 1)
            if c.options & C_ACCOUNTS:
                self._write(&c.debit, 32)
        elif c.op == OP_INCREMENT:
            self._write(&c.amount, 8)
        elif c.op == OP_ACCOUNT:
            self._write(&c.ledger, 4)
            self._write(&c.code, 2)
            self._write(&c.flags, 2)
            self._write(&c.profile, 2)
            self._write(&c.amount, 8)
        elif c.op == OP_LIMITS:
            self._write(&c.options, 1)
            self._write(&c.profile, 2)
            self._write(&c.amount, 24)  # amount, low, high
        elif c.op == OP_FLAGS:
            self._write(&c.flags, 2)
            self._write(&c.code, 2)

    cdef int _put(self) except -1:
        """Hand the record buffer to the sink, as one record."""
        cdef uint16_t length
        memcpy(&length, self._record + 1, 2)
        if <size_t> length + 3 == self._record_used:
            return self._sink.put(self._record[0], self._record + 3, length)
        return self._sink.put(OP_CHAIN, self._record, self._record_used)

    # --- Applying a batch ---

    cdef int _reserve(self, Batch b) noexcept nogil:
        """Make room in the indexes for all that this batch could add."""
        if (index_reserve(&self._account_index, b._accounts)
                or index_reserve(&self._hold_index, b._holds)
                or index_reserve(&self._key_index, b._keys)
                or index_reserve(&self._attempt_index, b._attempts)):
            return -1
        return 0

    cdef void _prepare(self, Command* c, Py_ssize_t n) noexcept nogil:
        """Resolve ids of the next commands, with all their cache misses under way at once.

        Pass 1 hashes and asks for the index slots, pass 2 finds the slots and asks for the entries,
        pass 3 asks for what those point to.
        """
        cdef uint64_t debit[BLOCK]
        cdef uint64_t credit[BLOCK]
        cdef Py_ssize_t i
        for i in range(n):
            c[i].hold_at = c[i].debit_at = c[i].credit_at = 0
            memset(c[i].meters_at, 0, sizeof(c[i].meters_at))
            if c[i].has_key:
                c[i].key_hash = id_mix(&c[i].key)
                index_fetch(&self._key_index, c[i].key_hash)
            if c[i].op == OP_HOLD or c[i].op == OP_TRANSFER:
                debit[i] = id_mix(&c[i].debit)
                credit[i] = id_mix(&c[i].credit)
                index_fetch(&self._account_index, debit[i])
                index_fetch(&self._account_index, credit[i])
            if OP_HOLD <= c[i].op <= OP_ANNUL:
                c[i].id_hash = id_mix(&c[i].id)
                index_fetch(&self._hold_index, c[i].id_hash)
        for i in range(n):
            if c[i].op == OP_HOLD or c[i].op == OP_TRANSFER:
                c[i].debit_at = index_guess(&self._account_index, debit[i])
                c[i].credit_at = index_guess(&self._account_index, credit[i])
                tr_prefetch(self._account(c[i].debit_at))
                tr_prefetch(self._account(c[i].credit_at))
            elif OP_HOLD < c[i].op <= OP_ANNUL:
                c[i].hold_at = index_guess(&self._hold_index, c[i].id_hash)
                tr_prefetch(self._hold(c[i].hold_at))
                tr_prefetch(<char*> self._hold(c[i].hold_at) + 64)
        for i in range(n):
            if c[i].op == OP_HOLD or c[i].op == OP_TRANSFER:
                self._confirm_guess(&c[i].debit_at, &c[i].debit)
                self._confirm_guess(&c[i].credit_at, &c[i].credit)
            elif c[i].hold_at and self._hold(c[i].hold_at).debit:
                tr_prefetch(self._account(self._hold(c[i].hold_at).debit))
                tr_prefetch(self._account(self._hold(c[i].hold_at).credit))

    cdef inline void _confirm_guess(self, uint32_t* at, const Id* id) noexcept nogil:
        """Keep a reference only if its entry is the one meant; ask for its counters' address."""
        cdef Account* a = self._account(at[0])
        if at[0] == 0:
            return
        if not same_id(&a.id, id):
            at[0] = 0
        elif a.profile or a.flags & (A_FLOOR | A_CAP):
            tr_prefetch(self._cold(at[0]))

    cdef Py_ssize_t _stage(self, Command* c, int64_t now) noexcept nogil:
        """Decide the command at c, or the chain that begins there; returns how many that were.

        Leaves what to undo in the undo log and what to journal in the record buffer. `_finish` must
        follow once the record is put.
        """
        cdef Py_ssize_t n = 1
        self._undo_used = 0
        self._record_used = 0
        self._digest_before = self._digest
        if c.op >= OP_STEP:
            self._stage_put_first(c, now)
        elif c.linked or c.op == OP_PROFILE:
            if c.op == OP_PROFILE:
                self._stage_put_first(c, now)
                return 1
            while c[n - 1].linked:
                n += 1
            self._decide_chain(c, n, now)
        elif self._decide(c, now) and self._sink is not None:
            self._encode(c, now)
        if self._fault == NULL:
            self._assert_sound()
        return n

    cdef void _stage_put_first(self, Command* c, int64_t now) noexcept nogil:
        """Decide a command that changes the state only in `_finish`."""
        cdef uint16_t length
        c.decided_ns = now
        c.window = c.account = 0
        c.result = DONE
        self._effect = True
        if c.op == OP_STEP or c.op == OP_ATTEMPT or c.op == OP_CLEAR:
            c.result = self._decide_attempt(c, &self._counted, now)
        c.first = c.result
        if not self._effect:
            return
        self._encode(c, now)
        if c.op == OP_PROFILE:
            self._write(&c.profile, 2)
            self._write(<const void*> <size_t> c.low, sizeof(Profile))
        elif c.op == OP_FORGET:
            self._write(&c.amount, 8)
        else:
            self._write(&self._counted.last_step, 32)  # last_step .. locked_until_s
            self._write(&self._counted.count, 8)  # count, row
        length = self._record_used - 3
        memcpy(self._record + 1, &length, 2)

    cdef void _finish(self, Command* c) noexcept nogil:
        """Make the change of a command that puts first; nothing can refuse it any more."""
        if c.op == OP_PROFILE:
            self._set_profile(c.profile, <const Profile*> <size_t> c.low)
        elif c.op == OP_FORGET:
            c.result = c.first = PARTIAL if self._forget(c.amount) else DONE
        elif (c.op == OP_STEP or c.op == OP_ATTEMPT or c.op == OP_CLEAR) and self._effect:
            self._set_attempt(&self._counted)

    cdef void _set_profile(self, uint32_t number, const Profile* become) noexcept nogil:
        self._digest -= profile_digest(number, &self._profiles[number])
        self._profiles[number] = become[0]
        if number >= self._profile_top:
            self._profile_top = number + 1
        self._digest += profile_digest(number, become)

    cdef bint _stage_expiry(self, int64_t now) noexcept nogil:
        """Expire the next hold that is due, with its chain; False when none is."""
        cdef uint32_t ref = self._heap[1]
        cdef Command c
        if self._heap_count == 0 or self._hold(ref).expires_ns > now:
            return False
        self._undo_used = 0
        self._record_used = 0
        self._digest_before = self._digest
        memset(&c, 0, sizeof(c))
        c.op = OP_EXPIRE
        c.id = self._hold(ref).id
        self._book_logged = 0
        self._release_group(ref, EXPIRED, now)
        self._effect = True
        self._encode(&c, now)
        self._assert_sound()
        return True

    cdef Py_ssize_t _look_ahead(
        self, Command* c, Py_ssize_t at, Py_ssize_t ready, Py_ssize_t n
    ) noexcept nogil:
        """Prepare a further block whenever the longest chain might leave what is prepared."""
        cdef Py_ssize_t block = BLOCK if n - ready > BLOCK else n - ready
        if ready - at >= CHAIN_MAX or block == 0:
            return ready
        self._prepare(c + ready, block)
        return ready + block

    cdef void _apply_quiet(self, Command* c, Py_ssize_t n, int64_t now) noexcept nogil:
        """Apply without a sink."""
        cdef Py_ssize_t i = 0
        cdef Py_ssize_t ready = 0
        cdef Py_ssize_t took
        cdef int expired
        while i < n and self._fault == NULL:
            ready = self._look_ahead(c, i, ready, n)
            if c[i].op == OP_TICK:
                expired = 0
                while expired < STEP_MAX and self._stage_expiry(now) and self._fault == NULL:
                    expired += 1
                self._end_tick(&c[i], now)
                took = 1
            else:
                took = self._stage(&c[i], now)
                if self._fault == NULL:
                    self._finish(&c[i])
            i += took

    cdef void _end_tick(self, Command* c, int64_t now) noexcept nogil:
        c.decided_ns = now
        c.window = c.account = 0
        c.result = DONE
        if self._heap_count and self._hold(self._heap[1]).expires_ns <= now:
            c.result = PARTIAL
        c.first = c.result

    cdef int _put_or_undo(self) except -1:
        """Journal what was staged; whatever goes wrong, the state is then as it was before."""
        if self._fault != NULL:
            return 0
        if self._record_used:
            try:
                self._put()
            except BaseException:
                self._roll_back(0, self._digest_before)
                raise
        return 0

    cdef int _apply_recorded(self, Command* c, Py_ssize_t n, int64_t now) except -1:
        """Apply with a sink: no change outlives a record that was not taken."""
        cdef Py_ssize_t i = 0
        cdef Py_ssize_t ready = 0
        cdef Py_ssize_t took
        cdef int expired
        try:
            while i < n and self._fault == NULL:
                ready = self._look_ahead(c, i, ready, n)
                if c[i].op == OP_TICK:
                    expired = 0
                    while expired < STEP_MAX and self._stage_expiry(now):
                        self._put_or_undo()
                        if self._fault != NULL:
                            break
                        expired += 1
                    self._end_tick(&c[i], now)
                    took = 1
                else:
                    took = self._stage(&c[i], now)
                    self._put_or_undo()
                    if self._fault == NULL:
                        self._finish(&c[i])
                i += took
        except BaseException as error:
            for i in range(i, n):
                c[i].result = c[i].first = JOURNAL_FULL
                c[i].window = c[i].account = 0
                c[i].decided_ns = now
            # By name: the core's rooms below the journal must not import it.
            if type(error).__name__ != "JournalFull":
                raise
        return 0

    def apply(self, Batch batch not None, int64_t now_ns):
        """Run all commands of a batch in order; return their `Result` numbers.

        Args:
            now_ns: the time of the turn, nanoseconds since 1970; may step back.

        Raises:
            AssertionError: an invariant broke, which is our fault; the ledger stops for good.
            MemoryError: nothing was applied.
            whatever the sink raises but JournalFull: the command it concerns was not applied, nor
                any after it.
        """
        cdef Py_ssize_t i
        if self._stopped:
            raise AssertionError("the ledger stopped at a broken invariant")
        if now_ns < 0 or now_ns >= LOCKED_FOR_EVER:
            raise ValueError("now_ns is out of range")
        if batch._run:
            raise ValueError("the last command is linked to nothing")
        if self._reserve(batch):
            raise MemoryError("no memory for an index of the ledger")
        self._changes += 1
        if self._sink is None:
            with nogil:
                self._apply_quiet(batch._commands, batch._count, now_ns)
        else:
            self._apply_recorded(batch._commands, batch._count, now_ns)
        if self._fault != NULL:
            self._stop()
        return [batch._commands[i].result for i in range(batch._count)]

    cdef int _stop(self) except -1:
        """Undo what broke the invariant and take nothing any more."""
        self._roll_back(0, self._digest_before)
        self._stopped = True
        raise AssertionError("ledger: " + (<bytes> self._fault).decode())

    # --- Replay ---

    cdef int replay(self, int kind, const unsigned char* data, Py_ssize_t n) except -1:
        """Apply one journaled decision, checking only that it can be one of ours."""
        cdef const char* wrong
        cdef Reader r
        if self._stopped:
            raise AssertionError("the ledger stopped at a broken invariant")
        if (index_reserve(&self._account_index, CHAIN_MAX)
                or index_reserve(&self._hold_index, CHAIN_MAX)
                or index_reserve(&self._key_index, CHAIN_MAX)
                or index_reserve(&self._attempt_index, 1)):
            raise MemoryError("no memory for an index of the ledger")
        self._changes += 1
        self._undo_used = 0
        self._digest_before = self._digest
        self._in_chain = False
        r.at = data
        r.end = data + n
        if kind == OP_CHAIN:
            wrong = self._replay_chain(&r)
        else:
            wrong = self._replay_one(kind, &r)
        if wrong == NULL and r.at != r.end:
            wrong = "bytes are left over"
        if wrong != NULL:
            self._roll_back(0, self._digest_before)
            raise ValueError("ledger record: " + (<bytes> wrong).decode())
        if self._fault != NULL or self._assert_sound():
            self._stop()
        return 0

    cdef const char* _replay_chain(self, Reader* r) noexcept nogil:
        cdef const char* wrong = NULL
        cdef uint8_t kind
        cdef uint16_t length
        cdef Reader part
        cdef int n = 0
        self._in_chain = True
        self._chain_head = 0
        while r.at < r.end and wrong == NULL:
            if not take(r, &kind, 1) or not take(r, &length, 2) or r.end - r.at < length:
                wrong = "a chain is cut short"
                break
            n += 1
            part.at = r.at
            part.end = r.at + length
            r.at = part.end
            if n > CHAIN_MAX or kind >= OP_STEP and kind != OP_DECISION or kind == OP_PROFILE:
                wrong = "a chain holds what it cannot"
            else:
                wrong = self._replay_one(kind, &part)
                if wrong == NULL and part.at != part.end:
                    wrong = "bytes are left over in a chain"
        self._in_chain = False
        return wrong

    cdef const char* _replay_one(self, int kind, Reader* r) noexcept nogil:
        """Decode one record into a Command and run its effect; returns what is wrong, or NULL."""
        cdef Command c
        cdef int64_t now
        cdef const char* wrong = NULL
        memset(&c, 0, sizeof(c))
        c.op = kind
        if not (take(r, &now, 8) and take(r, &c.result, 1) and take(r, &c.has_key, 1)
                and take(r, &c.window, 1) and take(r, &c.account, 1)):
            return "cut short"
        if (c.has_key > 1 or c.result > TOO_LATE or c.window > 5 or c.account > 5
                or not 0 <= now < LOCKED_FOR_EVER):
            return "not a decision"
        if c.has_key and not (take(r, &c.key, 16) and take(r, &c.digest, 8)):
            return "cut short"
        self._book_logged = 0
        self._placed = 0
        if kind == OP_HOLD:
            wrong = self._replay_hold(&c, r, now)
        elif OP_INCREMENT <= kind <= OP_ANNUL or kind == OP_EXPIRE:
            wrong = self._replay_held(&c, r, now)
        elif kind == OP_TRANSFER or kind == OP_ADJUST:
            wrong = self._replay_post(&c, r, now)
        elif kind == OP_ACCOUNT or kind == OP_LIMITS or kind == OP_FLAGS:
            wrong = self._replay_account(&c, r, now)
        elif kind != OP_DECISION:
            wrong = self._replay_other(&c, r, now)
        if wrong != NULL or not c.has_key:
            return wrong
        if index_find(&self._key_index, &self._keys, &c.key, id_mix(&c.key)):
            return "a key is decided twice"
        if self._keys.live >= self._keys.most:
            return "more keys than the table holds"
        self._remember(&c, now)
        return NULL

    cdef const char* _replay_hold(self, Command* c, Reader* r, int64_t now) noexcept nogil:
        if not (take(r, &c.id, 16) and take(r, &c.debit, 32) and take(r, &c.amount, 8)
                and take(r, &c.day, 4) and take(r, &c.seconds, 4) and take(r, &c.code, 2)
                and take(r, &c.policy, 1) and take(r, &c.options, 1)
                and take(r, &c.meter_count, 1) and c.meter_count <= 4
                and take(r, &c.meters, 16 * c.meter_count)):
            return "cut short"
        if c.amount <= 0 or not 0 <= c.day <= 100_000 or c.policy > POLICY_AUTO:
            return "not a hold"
        if self._find_all(c):
            return "a hold names an unknown account"
        if self._fits(c.debit_at, c.credit_at, c.amount):
            return "a hold overflows"
        if self._find_hold(&c.id):
            return "a hold is placed twice"
        if self._holds.live >= self._holds.most:
            return "more holds than the table holds"
        self._place(c, now)
        return NULL

    cdef const char* _replay_held(self, Command* c, Reader* r, int64_t now) noexcept nogil:
        """Increment, capture, release, annul, expire."""
        cdef uint32_t ref
        cdef Hold* h
        if not take(r, &c.id, 16):
            return "cut short"
        ref = self._find_head(c)
        h = self._hold(ref)
        if c.op == OP_CAPTURE:
            return self._replay_capture(c, ref, r, now)
        if c.op == OP_RELEASE and c.result == ORIGINAL_UNKNOWN:
            if self._find_hold(&c.id) or self._holds.live >= self._holds.most:
                return "a tombstone without a place"
            self._place_tombstone(&c.id, now)
            return NULL
        if c.op == OP_INCREMENT and not take(r, &c.amount, 8):
            return "cut short"
        if c.op == OP_ANNUL:
            if ref == 0 or (h.state != OPEN and h.state != CAPTURED):
                return "there is nothing to annul"
            self._annul(ref, now, False)
            return NULL
        if ref == 0 or h.state != OPEN:
            return "the hold is not open"
        if c.op == OP_INCREMENT:
            if (c.amount <= 0 or c.amount > INT64_MAX - h.amount
                    or self._fits(h.debit, h.credit, c.amount)):
                return "an increment out of range"
            self._raise_hold(ref, c.amount)
        else:
            self._release_group(ref, EXPIRED if c.op == OP_EXPIRE else RELEASED, now)
        return NULL

    cdef const char* _replay_capture(
        self, Command* c, uint32_t ref, Reader* r, int64_t now
    ) noexcept nogil:
        cdef Hold* h = self._hold(ref)
        cdef int64_t rest = h.amount - h.captured if h.amount > h.captured else 0
        if not (take(r, &c.amount, 8) and take(r, &c.options, 1)):
            return "cut short"
        if c.options & C_ACCOUNTS and not take(r, &c.debit, 32):
            return "cut short"
        if c.amount < 0 or self._forced.live + CHAIN_MAX > self._forced.most:
            return "a capture out of range"
        if ref == 0 or h.state == TOMBSTONE:
            if (ref == 0 and self._find_hold(&c.id)) or self._check_unheld(c, ref):
                return "a forced capture without its accounts"
        elif h.state == OPEN:
            if c.amount > rest and self._fits(h.debit, h.credit, c.amount - rest):
                return "a capture overflows"
        elif (h.state != RELEASED and h.state != EXPIRED) or not c.options & C_FORCED:
            return "there is nothing to capture"
        elif self._gone_fits(c, ref):
            return "a capture overflows"
        self._capture(c, ref, now)
        return NULL

    cdef const char* _replay_post(self, Command* c, Reader* r, int64_t now) noexcept nogil:
        if not (take(r, &c.debit, 32) and take(r, &c.amount, 8)):
            return "cut short"
        if c.op == OP_TRANSFER and not (take(r, &c.code, 2) and take(r, &c.options, 1)):
            return "cut short"
        if c.op == OP_ADJUST and not (take(r, &c.number, 4) and take(r, &c.meters, 32)):
            return "cut short"
        if (c.amount <= 0 or self._find_all(c)
                or self._fits(c.debit_at, c.credit_at, c.amount)
                or self._forced.live >= self._forced.most):
            return "not a transfer"
        self._post(c, now)
        return NULL

    cdef const char* _replay_account(self, Command* c, Reader* r, int64_t now) noexcept nogil:
        cdef uint32_t ref
        if not take(r, &c.id, 16):
            return "cut short"
        ref = self._find_account(&c.id)
        if c.op == OP_ACCOUNT:
            if not (take(r, &c.ledger, 4) and take(r, &c.code, 2) and take(r, &c.flags, 2)
                    and take(r, &c.profile, 2) and take(r, &c.amount, 8)):
                return "cut short"
            if (ref or self._accounts.live >= self._accounts.most or c.flags & ~A_PUBLIC
                    or c.amount < 0 or (c.profile and not self._profiles[c.profile].known)):
                return "an account without a place"
            if self._book_of(c.ledger) >= BOOKS_MAX:
                return "more ledgers than there may be"
            self._open_account(c, now)
            return NULL
        if ref == 0:
            return "an unknown account"
        if c.op == OP_LIMITS:
            if not (take(r, &c.options, 1) and take(r, &c.profile, 2) and take(r, &c.amount, 24)):
                return "cut short"
            if (c.amount < 0 or c.low < 0 or c.high < 0
                    or (c.profile and not self._profiles[c.profile].known)):
                return "not limits"
            self._change_limits(c, ref)
            return NULL
        if not (take(r, &c.flags, 2) and take(r, &c.code, 2)):
            return "cut short"
        if (c.flags | c.code) & ~A_PUBLIC:
            return "unknown flags"
        self._change_flags(c, ref)
        return NULL

    cdef const char* _replay_other(self, Command* c, Reader* r, int64_t now) noexcept nogil:
        """Profiles, attempt counters, forgetting: what is put before it is done."""
        cdef Profile p
        cdef Attempt a
        if c.op == OP_PROFILE:
            if not (take(r, &c.profile, 2) and take(r, &p, sizeof(p))):
                return "cut short"
            if c.profile == 0 or p.known != 1:
                return "not a profile"
            self._set_profile(c.profile, &p)
            return NULL
        if c.op == OP_FORGET:
            if not take(r, &c.amount, 8) or c.amount < 0:
                return "cut short"
            self._forget(c.amount)
            return NULL
        if c.op != OP_STEP and c.op != OP_ATTEMPT and c.op != OP_CLEAR:
            return "unknown kind"
        if not (take(r, &a.id, 16) and take(r, &a.last_step, 32) and take(r, &a.count, 8)):
            return "cut short"
        if a.last_step < -1 or a.window_ns < 0 or a.touched_ns < 0 or a.locked_until_s < 0:
            return "not a counter"
        if (index_find(&self._attempt_index, &self._attempts, &a.id, id_mix(&a.id)) == 0
                and self._attempts.live >= self._attempts.most):
            return "more attempt counters than the table holds"
        self._set_attempt(&a)
        return NULL

    # --- Views ---

    def balance(self, bytes id not None):
        """Return the `Balance` of an account, or None when there is none."""
        cdef Id wanted
        id_from(id, &wanted)
        cdef uint32_t ref = self._find_account(&wanted)
        return self._balance_of(ref) if ref else None

    cdef object _balance_of(self, uint32_t ref):
        cdef Account* a = self._account(ref)
        cdef Cold* c = self._cold(ref)
        cdef object available = a.credits_posted
        available = available - a.debits_posted - a.debits_pending + a.credit_limit
        return Balance(
            a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted,
            a.credit_limit, available, self._books[a.book].ledger, a.code, a.flags & A_PUBLIC,
            a.profile, c.floor, c.cap,
        )

    def hold(self, bytes hold not None):
        """Return the `HoldView` of a hold or tombstone, or None when there is none."""
        cdef Id wanted
        id_from(hold, &wanted)
        cdef uint32_t ref = self._find_hold(&wanted)
        return self._view_of(ref) if ref else None

    cdef object _view_of(self, uint32_t ref):
        cdef Hold* h = self._hold(ref)
        return HoldView(
            _STATE_NAMES[h.state], h.amount, h.captured, h.released,
            id_bytes(&self._account(h.debit).id) if h.debit else b"",
            id_bytes(&self._account(h.credit).id) if h.credit else b"",
            h.day, h.policy, h.code, h.created_ns, h.expires_ns, h.closed_ns,
            id_bytes(&self._hold(h.head).id), bool(h.flags & H_FORCED),
        )

    def usage(self, bytes id not None, str side not None, str window not None, int32_t day):
        """Return (amount, count) counted on that side of an account in the window holding `day`;
        (0, 0) where nothing is, or no longer, kept."""
        cdef Id wanted
        cdef int at = _WINDOWS[window]
        cdef int which = _SIDES[side]
        cdef UsageSide* u
        id_from(id, &wanted)
        cdef uint32_t ref = self._find_account(&wanted)
        cdef int32_t period = period_of(at, day)
        if ref == 0 or self._cold(ref).usage == 0:
            return 0, 0
        u = &self._usage(self._cold(ref).usage).side[which]
        if u.current[at].period == period:
            return u.current[at].amount, u.current[at].count
        if u.previous[at].period == period:
            return u.previous[at].amount, u.previous[at].count
        return 0, 0

    cdef Attempt* _find_attempt(self, bytes key) except? NULL:
        cdef Id wanted
        id_from(key, &wanted)
        cdef uint32_t ref = index_find(
            &self._attempt_index, &self._attempts, &wanted, id_mix(&wanted)
        )
        return self._attempt(ref) if ref else NULL

    def locked_until(self, bytes key not None):
        """Return the second a key's lock ends; 0 = not locked ever, UNTIL_UNLOCKED = for good."""
        cdef Attempt* a = self._find_attempt(key)
        return a.locked_until_s if a != NULL else 0

    def last_step(self, bytes key not None):
        """Return the last accepted one-time-code step of a key, or None."""
        cdef Attempt* a = self._find_attempt(key)
        return a.last_step if a != NULL and a.last_step >= 0 else None

    def attempts(self, bytes key not None):
        """Return (count in the window, count in a row) of wrong codes of a key."""
        cdef Attempt* a = self._find_attempt(key)
        if a == NULL:
            return 0, 0
        return a.count, a.row

    def totals(self):
        """Return {ledger: (debits_pending, debits_posted, credits_pending, credits_posted)}."""
        cdef Book* b
        cdef uint32_t i
        out = {}
        for i in range(self._book_count):
            b = &self._books[i]
            out[b.ledger] = (
                wide(b.debits_pending), wide(b.debits_posted),
                wide(b.credits_pending), wide(b.credits_posted),
            )
        return out

    def counts(self):
        """Return how many entries each table holds, and the bytes in use by all of them."""
        cdef size_t used = (
            self._accounts.top * (sizeof(Account) + sizeof(Cold))
            + self._usages.top * sizeof(Usage) + self._holds.top * sizeof(Hold)
            + self._keys.top * sizeof(Key) + self._attempts.top * sizeof(Attempt)
            + self._forced.top * sizeof(Forced) + self._account_index.bytes
            + self._hold_index.bytes + self._key_index.bytes + self._attempt_index.bytes
        )
        return {
            "accounts": self._accounts.live,
            "holds_open": self._holds.live - self._closed_count,
            "holds": self._holds.live,
            "keys": self._keys.live,
            "attempts": self._attempts.live,
            "forced": self._forced.live,
            "bytes": used,
        }

    def forced(self):
        """Return every forced posting as (hold id or b"", debit id, amount, time_ns), in order."""
        cdef uint32_t ref
        cdef Forced* f
        out = []
        for ref in range(1, self._forced.top):
            f = <Forced*> self._forced.base + ref
            out.append((
                id_bytes(&f.hold) if f.hold.lo or f.hold.hi else b"",
                id_bytes(&f.debit), f.amount, f.time_ns,
            ))
        return out

    def accounts(self):
        """Yield (id, Balance) of every account, in the order they were made."""
        cdef uint32_t ref
        for ref in range(1, self._accounts.top):
            yield id_bytes(&self._account(ref).id), self._balance_of(ref)

    def open_holds(self):
        """Yield (hold id, HoldView) of every open hold."""
        cdef uint32_t ref
        for ref in range(1, self._holds.top):
            if self._hold(ref).state == OPEN:
                yield id_bytes(&self._hold(ref).id), self._view_of(ref)

    def digest(self):
        """Return the 64-bit digest of the whole state: equal states, equal digests. Kept up by
        every change; an error that keeps it has a chance of about 2**-60."""
        return self._digest

    @property
    def horizon_ns(self):
        """Keys made before this are unknown for good: the newest `forget`."""
        return self._horizon_ns

    # --- Checking everything ---

    cdef uint64_t _digest_anew(self) noexcept nogil:
        """The digest, computed from the whole state."""
        cdef uint64_t s = tr_mix(<uint64_t> self._horizon_ns, M5) - tr_mix(0, M5)
        cdef uint32_t ref
        cdef uint64_t base
        cdef int side, window
        cdef UsageSide* u
        for ref in range(1, self._profile_top):
            s += profile_digest(ref, &self._profiles[ref])
        for ref in range(1, self._accounts.top):
            s += self._account_fixed(ref) + self._account_moving(ref)
            for side in range(2 if self._cold(ref).usage else 0):
                u = &self._usage(self._cold(ref).usage).side[side]
                base = usage_base(&self._account(ref).id, side)
                for window in range(WINDOWS):
                    s += bucket_digest(base, window, &u.current[window])
                    s += bucket_digest(base, window, &u.previous[window])
        for ref in range(1, self._holds.top):
            if self._hold(ref).state != FREE:
                s += self._hold_fixed(self._hold(ref)) + hold_moving(self._hold(ref))
        ref = self._key_first
        while ref:
            s += key_digest(self._key(ref))
            ref = self._key(ref).next
        ref = self._attempt_first
        while ref:
            s += attempt_digest(self._attempt(ref))
            ref = self._attempt(ref).next
        for ref in range(1, self._forced.top):
            s += forced_digest(<Forced*> self._forced.base + ref)
        return s

    def check(self):
        """Recompute every invariant from scratch; return what is broken, one text each; [] = sound.

        Sums of ledgers, pending amounts from open holds, available, links, indexes, the digest.
        Walks everything; needs 16 bytes an account meanwhile.
        """
        found = []
        if self._stopped:
            found.append("the ledger stopped at a broken invariant")
        self._check_sums(found)
        self._check_pending(found)
        self._check_holds(found)
        self._check_lists(found)
        self._check_indexes(found)
        if self._digest_anew() != self._digest:
            found.append("the digest differs from the state")
        return found

    cdef int _check_sums(self, list found) except -1:
        cdef Book* sums = <Book*> calloc(self._book_count + 1, sizeof(Book))
        cdef uint32_t ref, i
        cdef Account* a
        cdef Book* b
        if sums == NULL:
            raise MemoryError
        try:
            for ref in range(1, self._accounts.top):
                a = self._account(ref)
                if a.book >= self._book_count:
                    found.append(f"account {id_bytes(&a.id).hex()}: no such ledger")
                    continue
                b = &sums[a.book]
                b.debits_pending = b.debits_pending + a.debits_pending
                b.debits_posted = b.debits_posted + a.debits_posted
                b.credits_pending = b.credits_pending + a.credits_pending
                b.credits_posted = b.credits_posted + a.credits_posted
                if (a.debits_pending < 0 or a.debits_posted < 0 or a.credits_pending < 0
                        or a.credits_posted < 0):
                    found.append(f"account {id_bytes(&a.id).hex()}: a balance below zero")
                if (a.flags & (A_DEBITS | A_EXPOSED)) == A_DEBITS and available_of(a) < 0:
                    found.append(f"account {id_bytes(&a.id).hex()}: available below zero")
            for i in range(self._book_count):
                b = &self._books[i]
                if memcmp(b, &sums[i], 4 * sizeof(tr_i128)):
                    found.append(f"ledger {b.ledger}: sums differ from its accounts")
                if b.debits_pending != b.credits_pending or b.debits_posted != b.credits_posted:
                    found.append(f"ledger {b.ledger}: debits and credits differ")
        finally:
            free(sums)
        return 0

    cdef int _check_pending(self, list found) except -1:
        """Pending amounts of every account against its open holds, wrapping alike on both sides."""
        cdef uint64_t* pending = <uint64_t*> calloc(self._accounts.top, 16)
        cdef uint32_t ref
        cdef uint64_t rest
        cdef Hold* h
        cdef Account* a
        if pending == NULL:
            raise MemoryError
        try:
            for ref in range(1, self._holds.top):
                h = self._hold(ref)
                if h.state != OPEN:
                    continue
                if (h.debit == 0 or h.credit == 0 or h.debit >= self._accounts.top
                        or h.credit >= self._accounts.top):
                    found.append(f"hold {id_bytes(&h.id).hex()}: no such account")
                    continue
                rest = h.amount - h.captured if h.amount > h.captured else 0
                pending[h.debit * 2] += rest
                pending[h.credit * 2 + 1] += rest
            for ref in range(1, self._accounts.top):
                a = self._account(ref)
                if (<uint64_t> a.debits_pending != pending[ref * 2]
                        or <uint64_t> a.credits_pending != pending[ref * 2 + 1]):
                    found.append(
                        f"account {id_bytes(&a.id).hex()}: pending differs from its open holds"
                    )
        finally:
            free(pending)
        return 0

    cdef int _check_holds(self, list found) except -1:
        cdef uint32_t ref, i, member
        cdef uint32_t live = 0
        cdef uint32_t timed = 0
        cdef Hold* h
        cdef bint open_
        for ref in range(1, self._holds.top):
            h = self._hold(ref)
            if h.state == FREE:
                continue
            live += 1
            open_ = h.state == OPEN
            name = f"hold {id_bytes(&h.id).hex()}"
            if h.state > ANNULLED or h.amount < 0 or h.captured < 0 or h.released < 0:
                found.append(f"{name}: a state or amount that cannot be")
            if open_ == bool(h.flags & H_QUEUED) or (open_ and h.closed_ns):
                found.append(f"{name}: open and closed at once")
            if not open_ and h.amount != h.released + (
                h.captured if h.captured < h.amount else h.amount
            ):
                found.append(f"{name}: captured and released do not make up its amount")
            if self._hold(h.head).state == FREE or (
                open_ != (self._hold(h.head).state == OPEN)
            ):
                found.append(f"{name}: out of step with its chain")
            member = h.next
            i = 1
            while h.head == ref and member and i <= CHAIN_MAX:
                i += self._hold(member).head == ref
                member = self._hold(member).next if self._hold(member).head == ref else 0
            if i > CHAIN_MAX or (h.head == ref and h.next and i == 1):
                found.append(f"{name}: its chain is broken")
            if (h.heap_at != 0) != (open_ and h.head == ref and h.policy == POLICY_AUTO):
                found.append(f"{name}: wrongly in or out of the expiry heap")
            if h.heap_at:
                timed += 1
                if h.heap_at > self._heap_count or self._heap[h.heap_at] != ref:
                    found.append(f"{name}: lost in the expiry heap")
            if h.key and self._key(h.key).hold != ref:
                found.append(f"{name}: its key belongs to another hold")
        if live != self._holds.live or timed != self._heap_count:
            found.append("holds: the number in use differs")
        for i in range(2, self._heap_count + 1):
            if self._heap_before(self._heap[i], self._heap[i >> 1]):
                found.append("holds: the expiry heap is out of order")
        return 0

    cdef int _check_lists(self, list found) except -1:
        """Walk the queues; a walk longer than the table is a cycle."""
        cdef uint32_t ref = self._closed_first
        cdef uint32_t last = 0
        cdef uint32_t n = 0
        cdef uint32_t closed = 0
        cdef uint32_t i
        for i in range(1, self._holds.top):
            closed += self._hold(i).state > OPEN
        while ref and n <= self._holds.top:
            n += 1
            last = ref
            ref = self._hold(ref).queue_next
        if n != closed or n != self._closed_count or last != self._closed_last:
            found.append("holds: the queue of closed holds is broken")
        n = last = 0
        ref = self._key_first
        while ref and n <= self._keys.top:
            n += 1
            last = ref
            ref = self._key(ref).next
        if n != self._keys.live or last != self._key_last:
            found.append("keys: their queue is broken")
        n = last = 0
        ref = self._attempt_first
        while ref and n <= self._attempts.top:
            n += 1
            if self._attempt(ref).prev != last:
                found.append("attempts: a link back is broken")
            last = ref
            ref = self._attempt(ref).next
        if n != self._attempts.live or last != self._attempt_last:
            found.append("attempts: their queue is broken")
        return 0

    cdef int _check_indexes(self, list found) except -1:
        cdef uint32_t ref
        for ref in range(1, self._accounts.top):
            if self._find_account(&self._account(ref).id) != ref:
                found.append(f"account {id_bytes(&self._account(ref).id).hex()}: not in the index")
        for ref in range(1, self._holds.top):
            if self._hold(ref).state and self._find_hold(&self._hold(ref).id) != ref:
                found.append(f"hold {id_bytes(&self._hold(ref).id).hex()}: not in the index")
        ref = self._key_first
        while ref:
            if index_find(&self._key_index, &self._keys, &self._key(ref).id,
                          id_mix(&self._key(ref).id)) != ref:
                found.append("keys: one is not in the index")
            ref = self._key(ref).next
        ref = self._attempt_first
        while ref:
            if index_find(&self._attempt_index, &self._attempts, &self._attempt(ref).id,
                          id_mix(&self._attempt(ref).id)) != ref:
                found.append("attempts: one is not in the index")
            ref = self._attempt(ref).next
        if (self._account_index.used != self._accounts.live
                or self._hold_index.used != self._holds.live
                or self._key_index.used != self._keys.live
                or self._attempt_index.used != self._attempts.live):
            found.append("an index holds more or less than its table")
        return 0

    # --- Snapshots ---
    #
    # A chunk: section u32, first reference u32, count u32, then that many entries as they are in
    # memory. References stay what they are, so a loaded ledger goes on exactly as the dumped one;
    # the indexes, the sums of ledgers and the expiry heap are made anew. Section 0 is the head, and
    # the only place where a layout version stands.

    cdef Arena* _arena_of(self, int section) noexcept:
        if section == S_ACCOUNTS:
            return &self._accounts
        if section == S_COLDS:
            return &self._colds
        if section == S_USAGES:
            return &self._usages
        if section == S_HOLDS:
            return &self._holds
        if section == S_KEYS:
            return &self._keys
        if section == S_ATTEMPTS:
            return &self._attempts
        return &self._forced

    def dump(self):
        """Yield the whole state in chunks of at most 1 MiB, for `load`.

        Raises RuntimeError where the ledger changes while this runs.
        """
        cdef uint64_t changes = self._changes
        cdef uint32_t ref, count
        yield self._dump_head()
        for ref in range(self._book_count):
            yield chunk(S_BOOK, ref, 1, <const char*> &self._books[ref].ledger, 4)
        for ref in range(1, self._profile_top):
            if self._profiles[ref].known:
                yield chunk(S_PROFILE, ref, 1, <const char*> &self._profiles[ref], sizeof(Profile))
        for section in range(S_ACCOUNTS, S_FORCED + 1):
            ref = 1
            while True:
                if self._changes != changes:
                    raise RuntimeError("the ledger changed while it was dumped")
                if ref >= self._arena_of(section).top:
                    break
                count = self._chunk_count(section, ref)
                yield self._dump_part(section, ref, count)
                ref += count

    cdef uint32_t _chunk_count(self, int section, uint32_t ref):
        cdef Arena* a = self._arena_of(section)
        cdef uint32_t most = <uint32_t> ((CHUNK_BYTES - 12) // a.stride)
        return a.top - ref if a.top - ref < most else most

    cdef bytes _dump_part(self, int section, uint32_t ref, uint32_t count):
        cdef Arena* a = self._arena_of(section)
        cdef bytes data = chunk(section, ref, count, a.base + ref * a.stride, count * a.stride)
        cdef Hold* h = self._hold(0)
        cdef char* heap_at = <char*> <const char*> data + 12 + (<char*> &h.heap_at - <char*> h)
        cdef uint32_t in_heap, i
        if section == S_HOLDS:  # how the heap happens to lie is not state: only who is in it
            for i in range(count):
                in_heap = self._hold(ref + i).heap_at != 0
                memcpy(heap_at + i * sizeof(Hold), &in_heap, 4)  # in our own fresh copy
        return data

    cdef bytes _dump_head(self):
        cdef Head head
        cdef int i
        cdef Arena* a
        memset(&head, 0, sizeof(head))
        memcpy(head.magic, <const char*> b"TRLEDGR1", 8)
        head.digest = self._digest
        head.horizon_ns = self._horizon_ns
        head.closed_first = self._closed_first
        head.closed_last = self._closed_last
        head.key_first = self._key_first
        head.key_last = self._key_last
        head.attempt_first = self._attempt_first
        head.attempt_last = self._attempt_last
        head.books = self._book_count
        for i in range(ARENAS):
            a = self._arena_of(S_ACCOUNTS + i)
            head.top[i] = a.top
            head.free[i] = a.free
            head.live[i] = a.live
        return chunk(S_HEAD, 0, 1, <const char*> &head, sizeof(head))

    def load(self, chunks):
        """Take the state of a `dump` into this empty ledger.

        Raises ValueError for data that is not a whole and sound dump, or does not fit the sizes of
        this ledger, which is then empty again.
        """
        if self._changes:
            raise ValueError("only a new ledger can be loaded")
        try:
            self._load_all(iter(chunks))
            wrong = self._links_wrong()
            if wrong is None:
                self._load_rebuild()
                if self._digest_anew() != self._digest:
                    wrong = "its digest differs"
                else:
                    wrong = next(iter(self.check()), None)
            if wrong is not None:
                raise ValueError(f"ledger snapshot: {wrong}")
        except BaseException:
            self._wipe()
            raise
        self._changes = 1

    cdef int _load_all(self, chunks) except -1:
        cdef Head head
        cdef bytes data = next(chunks, b"")
        cdef int i
        cdef Arena* a
        if len(data) != 12 + sizeof(Head):
            raise ValueError("ledger snapshot: no head")
        memcpy(&head, <const char*> data + 12, sizeof(head))
        if memcmp(head.magic, <const char*> b"TRLEDGR1", 8):
            raise ValueError("ledger snapshot: not one of this version")
        self._digest = head.digest
        self._horizon_ns = head.horizon_ns
        self._closed_first = head.closed_first
        self._closed_last = head.closed_last
        self._key_first = head.key_first
        self._key_last = head.key_last
        self._attempt_first = head.attempt_first
        self._attempt_last = head.attempt_last
        for data in chunks:
            self._load_chunk(data)
        for i in range(ARENAS):
            a = self._arena_of(S_ACCOUNTS + i)
            if a.top != head.top[i] or head.free[i] >= a.top or head.live[i] >= a.top:
                raise ValueError("ledger snapshot: cut short")
            a.free = head.free[i]
            a.live = head.live[i]
        if self._book_count != head.books or self._accounts.top != self._colds.top:
            raise ValueError("ledger snapshot: cut short")
        return 0

    cdef int _load_chunk(self, bytes data) except -1:
        cdef uint32_t word[3]
        cdef const char* p = <const char*> data
        cdef Arena* a
        if len(data) < 12:
            raise ValueError("ledger snapshot: a chunk is cut short")
        memcpy(word, p, 12)
        p += 12
        if word[0] == S_BOOK and len(data) == 16 and word[1] == self._book_count < BOOKS_MAX:
            memcpy(&self._books[self._book_count].ledger, p, 4)
            self._book_count += 1
            return 0
        if word[0] == S_PROFILE and len(data) == 12 + sizeof(Profile) and (
            0 < word[1] < PROFILES_MAX and word[1] >= self._profile_top
        ):
            memcpy(&self._profiles[word[1]], p, sizeof(Profile))
            self._profile_top = word[1] + 1
            return 0
        if not S_ACCOUNTS <= word[0] <= S_FORCED:
            raise ValueError("ledger snapshot: an unknown chunk")
        a = self._arena_of(word[0])
        if (word[1] != a.top or word[2] > a.most - (a.top - 1)
                or <size_t> len(data) != 12 + word[2] * a.stride):
            raise ValueError("ledger snapshot: a chunk out of order, or too much for this ledger")
        memcpy(a.base + a.top * a.stride, p, word[2] * a.stride)
        a.top += word[2]
        return 0

    cdef object _links_wrong(self):
        """Return what makes the loaded references unsafe to follow, or None."""
        cdef uint32_t ref, i
        cdef Account* a
        cdef Hold* h
        if (self._closed_first >= self._holds.top or self._closed_last >= self._holds.top
                or self._key_first >= self._keys.top or self._key_last >= self._keys.top
                or self._attempt_first >= self._attempts.top
                or self._attempt_last >= self._attempts.top):
            return "a list begins nowhere"
        for ref in range(1, self._accounts.top):
            a = self._account(ref)
            if a.book >= self._book_count or self._cold(ref).usage >= self._usages.top:
                return "an account points nowhere"
            if a.profile and (not self._profiles[a.profile].known or not self._cold(ref).usage):
                return "an account has no such profile"
        for ref in range(1, self._holds.top):
            h = self._hold(ref)
            if h.state == FREE:
                continue
            if (h.debit >= self._accounts.top or h.credit >= self._accounts.top
                    or h.next >= self._holds.top or h.head == 0 or h.head >= self._holds.top
                    or h.queue_next >= self._holds.top or h.key >= self._keys.top
                    or h.meter_count > 4 or h.state > ANNULLED):
                return "a hold points nowhere"
            if (h.debit == 0 or h.credit == 0) and h.state != TOMBSTONE:
                return "a hold has no accounts"
            for i in range(h.meter_count):
                if h.meters[i] == 0 or h.meters[i] >= self._accounts.top:
                    return "a hold has no such meter"
        return self._lists_wrong()

    cdef object _lists_wrong(self):
        """Walk the queues of keys and attempts, whose entries nothing else names."""
        cdef uint32_t ref = self._key_first
        cdef uint32_t n = 0
        while ref:
            n += 1
            if (n > self._keys.live or self._key(ref).hold >= self._holds.top
                    or self._key(ref).next >= self._keys.top):
                return "a key points nowhere"
            ref = self._key(ref).next
        if n != self._keys.live:
            return "keys are missing"
        n = 0
        ref = self._attempt_first
        while ref:
            n += 1
            if (n > self._attempts.live or self._attempt(ref).prev >= self._attempts.top
                    or self._attempt(ref).next >= self._attempts.top):
                return "an attempt counter points nowhere"
            ref = self._attempt(ref).next
        return None if n == self._attempts.live else "attempt counters are missing"

    cdef int _load_rebuild(self) except -1:
        """Make what is not dumped: indexes, sums of ledgers, expiry heap."""
        cdef uint32_t ref
        cdef Account* a
        cdef Book* b
        cdef Hold* h
        if (index_reserve(&self._account_index, self._accounts.live)
                or index_reserve(&self._hold_index, self._holds.live)
                or index_reserve(&self._key_index, self._keys.live)
                or index_reserve(&self._attempt_index, self._attempts.live)):
            raise MemoryError("no memory for an index of the ledger")
        for ref in range(1, self._accounts.top):
            a = self._account(ref)
            b = &self._books[a.book]
            b.debits_pending = b.debits_pending + a.debits_pending
            b.debits_posted = b.debits_posted + a.debits_posted
            b.credits_pending = b.credits_pending + a.credits_pending
            b.credits_posted = b.credits_posted + a.credits_posted
            index_add(&self._account_index, id_mix(&a.id), ref)
        self._heap_count = 0
        for ref in range(1, self._holds.top):
            h = self._hold(ref)
            if h.state == FREE:
                continue
            if self._hold_index.used == self._holds.live:
                raise ValueError("ledger snapshot: more holds than it says")
            index_add(&self._hold_index, id_mix(&h.id), ref)
            self._closed_count += h.state != OPEN
            if h.heap_at:
                self._heap_add(ref)
        ref = self._key_first
        while ref:
            index_add(&self._key_index, id_mix(&self._key(ref).id), ref)
            ref = self._key(ref).next
        ref = self._attempt_first
        while ref:
            index_add(&self._attempt_index, id_mix(&self._attempt(ref).id), ref)
            ref = self._attempt(ref).next
        return 0

    cdef int _wipe(self) except -1:
        """Make the ledger empty."""
        cdef int i
        cdef Arena* a
        for i in range(ARENAS):
            a = self._arena_of(S_ACCOUNTS + i)
            memset(a.base, 0, a.top * a.stride)
            a.top = 1
            a.free = a.live = 0
        memset(self._profiles, 0, self._profile_top * sizeof(Profile))
        memset(self._books, 0, self._book_count * sizeof(Book))
        self._profile_top = 0
        index_wipe(&self._account_index)
        index_wipe(&self._hold_index)
        index_wipe(&self._key_index)
        index_wipe(&self._attempt_index)
        self._book_count = self._heap_count = 0
        self._closed_first = self._closed_last = self._closed_count = 0
        self._key_first = self._key_last = 0
        self._attempt_first = self._attempt_last = 0
        self._horizon_ns = 0
        self._digest = 0
        return 0
