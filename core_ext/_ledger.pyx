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
from libc.stdint cimport (
    INT32_MIN, INT64_MAX, INT64_MIN, UINT32_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t,
    uint64_t,
)
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from core_ext._batch cimport Batch
from core_ext._ledger_snapshot cimport Place, check_all, dump_next, load_all
from core_ext._ledger_state cimport *
from core_ext._pages cimport pages_release, pages_reserve
from core_ext._sink cimport Replica, Sink
from core_ext._table cimport (
    arena_close, arena_give, arena_open, arena_take, arena_undo, index_add, index_bytes,
    index_close, index_drop, index_fetch, index_guess, index_open, index_reserve, tb_prefetch,
)

import sys

from core_ext._batch import _SIDES, _WINDOWS
from core_ext.results import Balance, HoldView

assert sys.byteorder == "little", "records and snapshots are written as the memory has them"

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

_STATE_NAMES = ("", "open", "captured", "released", "expired", "tombstone", "annulled")

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

cdef struct Trail:  # closes one entry of the undo log, which is read from its end
    uint32_t type
    uint32_t ref
    uint32_t size
    uint32_t extra

cdef struct Two:
    uint32_t last
    uint32_t reused


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


# --- Undo log -------------------------------------------------------------------------------------

cdef inline void log_old(
    Core* core, uint32_t type, uint32_t ref, const void* data, uint32_t size
) noexcept nogil:
    cdef char* p = core.undo + core.undo_used
    cdef Trail* t = <Trail*> (p + size)
    memcpy(p, data, size)
    t.type = type
    t.ref = ref
    t.size = size
    t.extra = 0
    core.undo_used += size + sizeof(Trail)


cdef inline void log_two(
    Core* core, uint32_t type, uint32_t ref, uint32_t last, bint reused
) noexcept nogil:
    cdef Two two
    two.last = last
    two.reused = reused
    log_old(core, type, ref, &two, sizeof(two))


cdef void roll_back(Core* core, size_t mark, uint64_t digest) noexcept nogil:
    """Undo everything logged since `mark`, latest first."""
    cdef Trail* t
    cdef char* data
    while core.undo_used > mark:
        t = <Trail*> (core.undo + core.undo_used - sizeof(Trail))
        data = <char*> t - t.size
        core.undo_used -= t.size + sizeof(Trail)
        if t.type == U_ACCOUNT:
            memcpy(account_at(core, t.ref), data, sizeof(Account))
        elif t.type == U_COLD:
            memcpy(cold_at(core, t.ref), data, sizeof(Cold))
        elif t.type == U_USAGE:
            memcpy(&usage_at(core, t.ref >> 1).side[t.ref & 1], data, sizeof(UsageSide))
        elif t.type == U_BOOK:
            memcpy(&core.books[t.ref], data, sizeof(Book))
        elif t.type == U_FORCED_NEW:
            arena_undo(&core.forced, t.ref, False)
        elif t.type == U_BOOK_NEW:
            core.book_count -= 1
            memset(&core.books[core.book_count], 0, sizeof(Book))
        elif t.type == U_USAGE_NEW:
            arena_undo(&core.usages, t.ref, False)
        elif t.type == U_ACCOUNT_NEW:
            index_drop(&core.account_index, tag_of(id_mix(&account_at(core, t.ref).id)), t.ref)
            arena_undo(&core.colds, t.ref, False)
            arena_undo(&core.accounts, t.ref, False)
        else:
            roll_back_hold(core, t, <Two*> data)
    core.digest = digest
    core.book_logged = 0


cdef void roll_back_hold(Core* core, const Trail* t, const Two* two) noexcept nogil:
    """Undo one change of the tables that link to each other: holds, keys, heap, queue."""
    cdef Hold* h
    cdef Key* k
    cdef uint32_t heap_at
    if t.type == U_HOLD:
        h = hold_at(core, t.ref)
        heap_at = h.heap_at  # kept up by the heap itself, in both directions
        memcpy(h, two, sizeof(Hold))
        h.heap_at = heap_at
    elif t.type == U_HOLD_NEW:
        index_drop(&core.hold_index, tag_of(id_mix(&hold_at(core, t.ref).id)), t.ref)
        arena_undo(&core.holds, t.ref, two.reused)
    elif t.type == U_HEAP_ADD:
        heap_drop(core, t.ref)
    elif t.type == U_HEAP_DROP:
        heap_add(core, t.ref)
    elif t.type == U_QUEUE:
        core.closed_last = two.last
        core.closed_count -= 1
        if two.last:
            hold_at(core, two.last).queue_next = 0
        else:
            core.closed_first = 0
    elif t.type == U_KEY_NEW:
        k = key_at(core, t.ref)
        if k.hold:
            hold_at(core, k.hold).key = 0
        index_drop(&core.key_index, tag_of(id_mix(&k.id)), t.ref)
        core.key_last = two.last
        if two.last:
            key_at(core, two.last).next = 0
        else:
            core.key_first = 0
        arena_undo(&core.keys, t.ref, two.reused)


cdef int assert_sound(Core* core) noexcept nogil:
    """Check the invariants of all that the undo log names; sets `fault` and returns -1."""
    cdef size_t at = core.undo_used
    cdef Trail* t
    cdef Account* a
    cdef Hold* h
    cdef Book* b
    while at:
        t = <Trail*> (core.undo + at - sizeof(Trail))
        at -= t.size + sizeof(Trail)
        if t.type == U_ACCOUNT:
            a = account_at(core, t.ref)
            if (a.debits_pending < 0 or a.debits_posted < 0 or a.credits_pending < 0
                    or a.credits_posted < 0):
                core.fault = "a balance fell below zero"
            elif (a.flags & (A_DEBITS | A_EXPOSED)) == A_DEBITS and available_of(a) < 0:
                core.fault = "available fell below zero"
        elif t.type == U_BOOK:
            b = &core.books[t.ref]
            if b.debits_pending != b.credits_pending or b.debits_posted != b.credits_posted:
                core.fault = "debits and credits of a ledger differ"
        elif t.type == U_HOLD:
            h = hold_at(core, t.ref)
            if (<Hold*> (<char*> t - sizeof(Hold))).state == ANNULLED:
                core.fault = "a terminal state was left"
            elif h.captured < 0 or h.released < 0 or h.amount < 0:
                core.fault = "a hold fell below zero"
    return -1 if core.fault != NULL else 0


# --- Changes of accounts --------------------------------------------------------------------------

cdef void move_debits(Core* core, uint32_t ref, int64_t pending, int64_t posted) noexcept nogil:
    cdef Account* a = account_at(core, ref)
    cdef Book* b = &core.books[a.book]
    log_old(core, U_ACCOUNT, ref, a, sizeof(Account))
    if core.book_logged != a.book + 1u:
        log_old(core, U_BOOK, a.book, b, sizeof(Book))
        core.book_logged = a.book + 1u
    a.debits_pending += pending
    a.debits_posted += posted
    b.debits_pending += pending
    b.debits_posted += posted
    core.digest += id_mix(&a.id) * (<uint64_t> pending * M1 + <uint64_t> posted * M2)


cdef void move_credits(Core* core, uint32_t ref, int64_t pending, int64_t posted) noexcept nogil:
    cdef Account* a = account_at(core, ref)
    cdef Book* b = &core.books[a.book]
    log_old(core, U_ACCOUNT, ref, a, sizeof(Account))
    if core.book_logged != a.book + 1u:
        log_old(core, U_BOOK, a.book, b, sizeof(Book))
        core.book_logged = a.book + 1u
    a.credits_pending += pending
    a.credits_posted += posted
    b.credits_pending += pending
    b.credits_posted += posted
    core.digest += id_mix(&a.id) * (<uint64_t> pending * M3 + <uint64_t> posted * M4)


cdef void move_back(Core* core, uint32_t debit, uint32_t credit, int64_t amount) noexcept nogil:
    """Take a pending amount off both sides."""
    if amount:
        move_debits(core, debit, -amount, 0)
        move_credits(core, credit, -amount, 0)


cdef void expose(Core* core, uint32_t ref) noexcept nogil:
    """Mark an account whose available is below zero for a known reason."""
    cdef Account* a = account_at(core, ref)
    if (a.flags & (A_DEBITS | A_EXPOSED)) != A_DEBITS or available_of(a) >= 0:
        return
    log_old(core, U_ACCOUNT, ref, a, sizeof(Account))
    core.digest -= account_fixed(core, ref)
    a.flags |= A_EXPOSED
    core.digest += account_fixed(core, ref)


cdef void list_forced(
    Core* core, const Id* hold, uint32_t debit, int64_t amount, int64_t now
) noexcept nogil:
    cdef bint reused = False
    cdef uint32_t ref = arena_take(&core.forced, &reused)
    cdef Forced* f = <Forced*> core.forced.base + ref
    if hold != NULL:
        f.hold = hold[0]
    f.debit = account_at(core, debit).id
    f.amount = amount
    f.time_ns = now
    core.digest += forced_digest(f)
    log_two(core, U_FORCED_NEW, ref, 0, False)
    expose(core, debit)


# --- Limits ---------------------------------------------------------------------------------------

cdef const Bucket* bucket_for(
    Core* core, const UsageSide* u, int window, int32_t day, const Bucket* fresh
) noexcept nogil:
    """The counters of the window's period that holds `day`; NULL when it is closed."""
    cdef int32_t period = period_of(window, day)
    if period == u.current[window].period:
        return &u.current[window]
    if period == u.previous[window].period:
        return &u.previous[window]
    return fresh if period > u.previous[window].period else NULL


cdef bint amount_allowed(
    Core* core, uint32_t ref, int side, int64_t amount, int32_t day, bint night, Command* c
) noexcept nogil:
    """Check the limits by value of one account; leaves the window in c where one is reached."""
    cdef Profile* p = &core.profiles[account_at(core, ref).profile]
    cdef const UsageSide* u
    cdef const Bucket* b
    cdef Bucket fresh
    cdef int window
    cdef int64_t most
    if account_at(core, ref).profile == 0:
        return True
    u = &usage_at(core, cold_at(core, ref).usage).side[side]
    fresh.amount = 0
    for window in range(WINDOWS):
        most = p.amount[side * WINDOWS + window]
        if most == 0 or (window == NIGHT and not night):
            continue
        b = bucket_for(core, u, window, day, &fresh)
        if b == NULL or amount > most or b.amount > most - amount:
            c.window = 2 + window
            return False
    return True


cdef bint count_allowed(
    Core* core, uint32_t ref, int side, int32_t day, bint night, Command* c
) noexcept nogil:
    """Check the limits by count of one account for one more hold."""
    cdef Profile* p = &core.profiles[account_at(core, ref).profile]
    cdef const UsageSide* u
    cdef const Bucket* b
    cdef Bucket fresh
    cdef int window
    cdef uint32_t most
    if account_at(core, ref).profile == 0:
        return True
    u = &usage_at(core, cold_at(core, ref).usage).side[side]
    fresh.count = 0
    for window in range(WINDOWS):
        most = p.count[side * WINDOWS + window]
        if most == 0 or (window == NIGHT and not night):
            continue
        b = bucket_for(core, u, window, day, &fresh)
        if b == NULL or b.count >= most:
            c.window = 2 + window
            return False
    return True


cdef bint charge(
    Core* core, uint32_t ref, int side, int64_t amount, uint32_t count, int32_t day, bint night
) noexcept nogil:
    """Count a hold; True when the account is limited, so that it is given back later.

    An increment (count 0) of a counted hold is counted even where the profile is gone since,
    or more would be given back than was taken.
    """
    cdef Account* a = account_at(core, ref)
    cdef uint32_t usage = cold_at(core, ref).usage
    cdef UsageSide* u
    cdef Bucket* b
    cdef uint64_t base
    cdef int window
    cdef int32_t period
    if a.profile == 0 and count:
        return False
    u = &usage_at(core, usage).side[side]
    base = usage_base(&a.id, side)
    log_old(core, U_USAGE, usage << 1 | side, u, sizeof(UsageSide))
    for window in range(WINDOWS):
        if window == NIGHT and not night:
            continue
        period = period_of(window, day)
        b = &u.current[window]
        if period > b.period:
            core.digest -= bucket_digest(base, window, &u.previous[window])
            u.previous[window] = b[0]
            b.period = period
            b.amount = 0
            b.count = 0
        elif period != b.period:
            b = &u.previous[window]
            if period < b.period:
                continue  # closed, and no limit of this window: nothing to count
            if period > b.period:
                core.digest -= bucket_digest(base, window, b)
                b.period = period
                b.amount = 0
                b.count = 0
            else:
                core.digest -= bucket_digest(base, window, b)
        else:
            core.digest -= bucket_digest(base, window, b)
        b.amount = saturated_add(b.amount, amount)
        b.count += count
        core.digest += bucket_digest(base, window, b)
    return True


cdef void give_back(
    Core* core, uint32_t ref, int side, int64_t amount, uint32_t count, int32_t day, bint night
) noexcept nogil:
    """Take a charge off the periods it was made in, as far as they are kept."""
    cdef Account* a = account_at(core, ref)
    cdef uint32_t usage = cold_at(core, ref).usage
    cdef UsageSide* u = &usage_at(core, usage).side[side]
    cdef Bucket* b
    cdef uint64_t base = usage_base(&a.id, side)
    cdef int window
    cdef int32_t period
    log_old(core, U_USAGE, usage << 1 | side, u, sizeof(UsageSide))
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
        core.digest -= bucket_digest(base, window, b)
        b.amount -= amount
        b.count -= count
        if b.amount < 0 or <int32_t> b.count < 0:
            core.fault = "more was given back than was charged"
        core.digest += bucket_digest(base, window, b)


cdef void hold_charge(Core* core, Hold* h, int64_t amount, uint32_t count) noexcept nogil:
    """Charge a new hold (count 1) or an increment (count 0) to all that are limited by it."""
    cdef bint night = h.flags & H_NIGHT
    cdef int side = 1 if h.flags & H_METER_CREDIT else 0
    cdef uint32_t i
    cdef uint8_t mask = 0
    if count or h.charged & 1:
        mask |= charge(core, h.debit, 0, amount, count, h.day, night)
    if count or h.charged & 2:
        mask |= charge(core, h.credit, 1, amount, count, h.day, night) << 1
    for i in range(h.meter_count):
        if count or h.charged & (4 << i):
            mask |= charge(core, h.meters[i], side, amount, count, h.day, night) << (i + 2)
    if count:
        h.charged = mask


cdef void hold_give_back(Core* core, Hold* h, int64_t amount, uint32_t count) noexcept nogil:
    cdef bint night = h.flags & H_NIGHT
    cdef int side = 1 if h.flags & H_METER_CREDIT else 0
    cdef uint32_t i
    if h.charged & 1:
        give_back(core, h.debit, 0, amount, count, h.day, night)
    if h.charged & 2:
        give_back(core, h.credit, 1, amount, count, h.day, night)
    for i in range(h.meter_count):
        if h.charged & (4 << i):
            give_back(core, h.meters[i], side, amount, count, h.day, night)


# --- Checks: none of these changes anything -------------------------------------------------------

cdef int has_room(Core* core, uint32_t ref, int64_t amount) noexcept nogil:
    """DONE, or why the account cannot be debited this much."""
    cdef Account* a = account_at(core, ref)
    cdef tr_i128 room
    if not a.flags & A_DEBITS:
        return DONE
    room = available_of(a)
    if a.flags & A_FLOOR:
        room = room - cold_at(core, ref).floor
    if room >= amount:
        return DONE
    if a.flags & A_POSITION:
        return LIQUIDITY_SHORT
    return CREDIT_LIMIT_REACHED if a.credit_limit else FUNDS_SHORT


cdef int under_cap(Core* core, uint32_t ref, int64_t amount) noexcept nogil:
    """DONE, or why the account cannot be credited this much."""
    cdef Account* a = account_at(core, ref)
    cdef tr_i128 total
    if not a.flags & (A_CREDITS | A_CAP):
        return DONE
    total = a.credits_posted
    total = total + a.credits_pending - a.debits_posted + amount
    if (a.flags & A_CREDITS and total > 0) or (
        a.flags & A_CAP and total > cold_at(core, ref).cap
    ):
        return LIQUIDITY_SHORT if a.flags & A_POSITION else BALANCE_CAP_REACHED
    return DONE


cdef int fits(Core* core, uint32_t debit, uint32_t credit, int64_t amount) noexcept nogil:
    """WOULD_OVERFLOW when a later posting of this amount could pass 64 bits."""
    cdef Account* d = account_at(core, debit)
    cdef Account* c = account_at(core, credit)
    cdef tr_i128 debits = d.debits_posted
    cdef tr_i128 credits = c.credits_posted
    debits = debits + d.debits_pending + amount
    credits = credits + c.credits_pending + amount
    return WOULD_OVERFLOW if debits > INT64_MAX or credits > INT64_MAX else DONE


cdef int find_all(Core* core, Command* c) noexcept nogil:
    """Find debit, credit and meters: the same twice, unknown, of two ledgers are refused."""
    cdef bint unknown = False
    cdef uint32_t i, j
    if same_id(&c.debit, &c.credit):
        return SAME_ACCOUNT
    for i in range(c.meter_count):
        for j in range(i):
            if same_id(&c.meters[i], &c.meters[j]):
                return SAME_ACCOUNT
        c.meters_at[i] = find_account(core, &c.meters[i])
        unknown |= c.meters_at[i] == 0
    if c.debit_at == 0:
        c.debit_at = find_account(core, &c.debit)
    if c.credit_at == 0:
        c.credit_at = find_account(core, &c.credit)
    if unknown or c.debit_at == 0 or c.credit_at == 0:
        return ACCOUNT_UNKNOWN
    if account_at(core, c.debit_at).book != account_at(core, c.credit_at).book:
        return CURRENCY_DIFFERS
    return DONE


cdef int all_open(
    Core* core, uint32_t debit, uint32_t credit, int meter_flags, bint hold
) noexcept nogil:
    cdef int debit_flags = account_at(core, debit).flags
    cdef int credit_flags = account_at(core, credit).flags
    cdef int flags = debit_flags | credit_flags | meter_flags
    if flags & A_CLOSED:
        return ACCOUNT_CLOSED
    if debit_flags & A_FROZEN_DEBIT:
        return ACCOUNT_FROZEN_DEBIT
    if credit_flags & A_FROZEN_CREDIT:
        return ACCOUNT_FROZEN_CREDIT
    return ACCOUNT_FROZEN_HOLD if hold and flags & A_FROZEN_HOLD else DONE


cdef int flags_of_meters(Core* core, const uint32_t* meters, uint32_t n) noexcept nogil:
    cdef int flags = 0
    cdef uint32_t i
    for i in range(n):
        flags |= account_at(core, meters[i]).flags
    return flags


cdef int in_range(Core* core, uint32_t ref, int64_t amount) noexcept nogil:
    cdef Profile* p = &core.profiles[account_at(core, ref).profile]
    if account_at(core, ref).profile == 0:
        return DONE
    if (amount < p.operation_min or (p.operation_max and amount > p.operation_max)
            or (p.multiple > 1 and amount % p.multiple)):
        return AMOUNT_OVER_RANGE
    return DONE


cdef int operation_allowed(Core* core, Command* c) noexcept nogil:
    """Operation minimum, maximum and multiple of all accounts that limit this hold."""
    cdef uint32_t i
    cdef int r = in_range(core, c.debit_at, c.amount)
    if r == DONE:
        r = in_range(core, c.credit_at, c.amount)
    for i in range(c.meter_count):
        if r == DONE:
            r = in_range(core, c.meters_at[i], c.amount)
    if r:
        c.window = 1
    return r


cdef int counters_allow(Core* core, Command* c) noexcept nogil:
    """Limits by window: all by value, then all by count; debit, credit, meters each time."""
    cdef bint night = c.options & H_NIGHT
    cdef int side = 1 if c.options & H_METER_CREDIT else 0
    cdef uint32_t i
    if not amount_allowed(core, c.debit_at, 0, c.amount, c.day, night, c):
        return LIMIT_AMOUNT
    if not amount_allowed(core, c.credit_at, 1, c.amount, c.day, night, c):
        c.account = 1
        return LIMIT_AMOUNT
    for i in range(c.meter_count):
        if not amount_allowed(core, c.meters_at[i], side, c.amount, c.day, night, c):
            c.account = 2 + i
            return LIMIT_AMOUNT
    if not count_allowed(core, c.debit_at, 0, c.day, night, c):
        return LIMIT_COUNT
    if not count_allowed(core, c.credit_at, 1, c.day, night, c):
        c.account = 1
        return LIMIT_COUNT
    for i in range(c.meter_count):
        if not count_allowed(core, c.meters_at[i], side, c.day, night, c):
            c.account = 2 + i
            return LIMIT_COUNT
    return DONE


cdef inline uint32_t find_placed(const Core* core, const Command* c) noexcept nogil:
    """Find the hold that a command names; its hash is known."""
    return index_find(&core.hold_index, &core.holds, &c.id, c.id_hash)


cdef int check_hold(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef uint32_t ref = find_placed(core, c)
    cdef Hold* h
    cdef int r, flags
    if ref:
        h = hold_at(core, ref)
        if h.state == TOMBSTONE:
            return TOMBSTONED
        c.decided_ns = h.created_ns
        c.first = DONE
        if (h.debit == find_account(core, &c.debit)
                and h.credit == find_account(core, &c.credit)
                and (h.amount == c.amount or h.flags & (H_INCREMENTED | H_FORCED))):
            return REPEATED
        return REPEATED_WITH_DIFFERENCE
    if core.holds.live >= core.holds.most:
        return OVERLOADED
    if c.deadline_ns and now > c.deadline_ns:
        return TOO_LATE
    if c.amount <= 0:
        return AMOUNT_NOT_POSITIVE
    r = find_all(core, c)
    if r == DONE:
        flags = flags_of_meters(core, c.meters_at, c.meter_count)
        r = all_open(core, c.debit_at, c.credit_at, flags, True)
    if r == DONE and c.options & H_METERED:
        r = operation_allowed(core, c)
    if r == DONE:
        r = has_room(core, c.debit_at, c.amount)
    if r == DONE:
        r = under_cap(core, c.credit_at, c.amount)
    if r == DONE:
        r = fits(core, c.debit_at, c.credit_at, c.amount)
    if r == DONE and c.options & H_METERED:
        r = counters_allow(core, c)
    return r


cdef int check_increment(Core* core, Command* c, Hold* h) noexcept nogil:
    cdef int64_t total = saturated_add(h.amount, c.amount if c.amount > 0 else 0)
    cdef uint32_t i
    cdef int r = DONE
    if h.state != OPEN:
        return state_result(core, h)
    if c.amount <= 0:
        return AMOUNT_NOT_POSITIVE
    r = all_open(core, h.debit, h.credit, flags_of_meters(core, h.meters, h.meter_count), True)
    if r == DONE and h.charged & 1:
        r = in_range(core, h.debit, total)
    if r == DONE and h.charged & 2:
        r = in_range(core, h.credit, total)
    for i in range(h.meter_count):
        if r == DONE and h.charged & (4 << i):
            r = in_range(core, h.meters[i], total)
    c.window = 1 if r == AMOUNT_OVER_RANGE else 0
    if r == DONE:
        r = has_room(core, h.debit, c.amount)
    if r == DONE:
        r = under_cap(core, h.credit, c.amount)
    if r == DONE:
        r = fits(core, h.debit, h.credit, c.amount)
    if r == DONE:  # posted and pending together hold h.amount: `total` did not saturate
        r = counters_allow_more(core, h, c)
    return r


cdef int counters_allow_more(Core* core, const Hold* h, Command* c) noexcept nogil:
    """Limits by window of all that the hold was counted for; the count stays."""
    cdef bint night = h.flags & H_NIGHT
    cdef int side = 1 if h.flags & H_METER_CREDIT else 0
    cdef uint32_t i
    if h.charged & 1 and not amount_allowed(core, h.debit, 0, c.amount, h.day, night, c):
        return LIMIT_AMOUNT
    if h.charged & 2 and not amount_allowed(core, h.credit, 1, c.amount, h.day, night, c):
        c.account = 1
        return LIMIT_AMOUNT
    for i in range(h.meter_count):
        if h.charged & (4 << i) and not amount_allowed(
            core, h.meters[i], side, c.amount, h.day, night, c
        ):
            c.account = 2 + i
            return LIMIT_AMOUNT
    return DONE


cdef int state_result(Core* core, const Hold* h) noexcept nogil:
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


# --- Holds: the structure around them -------------------------------------------------------------

cdef Hold* hold_change(Core* core, uint32_t ref) noexcept nogil:
    """Begin a change of a hold; `hold_changed` ends it."""
    cdef Hold* h = hold_at(core, ref)
    log_old(core, U_HOLD, ref, h, sizeof(Hold))
    core.digest -= hold_moving(h)
    return h


cdef inline void hold_changed(Core* core, const Hold* h) noexcept nogil:
    core.digest += hold_moving(h)


cdef uint32_t hold_new(Core* core, const Id* id, uint64_t hash, int64_t now) noexcept nogil:
    """Return a new hold; the caller fills it in and adds its digest."""
    cdef bint reused = False
    cdef uint32_t ref = arena_take(&core.holds, &reused)
    cdef Hold* h = hold_at(core, ref)
    h.id = id[0]
    h.head = ref
    h.created_ns = now
    index_add(&core.hold_index, tag_of(hash), ref)
    log_two(core, U_HOLD_NEW, ref, 0, reused)
    return ref


cdef void hold_close(Core* core, uint32_t ref, int64_t now) noexcept nogil:
    """Inside a change: leave the heap, join the queue that `forget` empties."""
    cdef Hold* h = hold_at(core, ref)
    if h.heap_at:
        log_two(core, U_HEAP_DROP, ref, 0, False)
        heap_drop(core, ref)
    if h.flags & H_QUEUED:
        return
    h.flags |= H_QUEUED
    h.closed_ns = now
    log_two(core, U_QUEUE, ref, core.closed_last, False)
    if core.closed_last:
        hold_at(core, core.closed_last).queue_next = ref
    else:
        core.closed_first = ref
    core.closed_last = ref
    core.closed_count += 1


# --- Effects: what live commands and replayed records both run ------------------------------------

cdef void place(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef uint32_t ref = hold_new(core, &c.id, c.id_hash, now)
    cdef Hold* h = hold_at(core, ref)
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
    if core.in_chain and core.chain_head and hold_at(core, core.chain_head).state == OPEN:
        h.head = core.chain_head
        log_old(core, U_HOLD, core.chain_tail, hold_at(core, core.chain_tail), sizeof(Hold))
        hold_at(core, core.chain_tail).next = ref
    else:
        core.chain_head = ref
        if c.policy == POLICY_AUTO:
            log_two(core, U_HEAP_ADD, ref, 0, False)
            heap_add(core, ref)
    core.chain_tail = ref
    move_debits(core, c.debit_at, c.amount, 0)
    move_credits(core, c.credit_at, c.amount, 0)
    if c.options & H_METERED:
        hold_charge(core, h, c.amount, 1)
    core.digest += hold_fixed(core, h) + hold_moving(h)
    core.placed = ref


cdef void place_tombstone(Core* core, const Id* id, int64_t now) noexcept nogil:
    cdef uint32_t ref = hold_new(core, id, id_mix(id), now)
    cdef Hold* h = hold_at(core, ref)
    h.state = TOMBSTONE
    hold_close(core, ref, now)
    core.digest += hold_fixed(core, h) + hold_moving(h)


cdef void raise_hold(Core* core, uint32_t ref, int64_t amount) noexcept nogil:
    cdef Hold* h = hold_change(core, ref)
    h.amount += amount
    h.flags |= H_INCREMENTED
    move_debits(core, h.debit, amount, 0)
    move_credits(core, h.credit, amount, 0)
    hold_charge(core, h, amount, 0)
    hold_changed(core, h)


cdef bint capture_one(
    Core* core, uint32_t ref, int64_t take, bint final, bint forced, int64_t now
) noexcept nogil:
    """Capture an open hold; True when that closed it."""
    cdef Hold* h = hold_change(core, ref)
    cdef int64_t rest = h.amount - h.captured if h.amount > h.captured else 0
    cdef int64_t held = take if take < rest else rest
    cdef int64_t left = rest - held
    cdef bint closes = final or left == 0
    h.captured += take
    move_debits(core, h.debit, -held, take)
    move_credits(core, h.credit, -held, take)
    if closes:
        move_back(core, h.debit, h.credit, left)
        h.released = left
        if left:
            hold_give_back(core, h, left, 0)
        h.state = CAPTURED
        hold_close(core, ref, now)
    if forced and take > held:
        h.flags |= H_FORCED
        list_forced(core, &h.id, h.debit, take - held, now)
    hold_changed(core, h)
    return closes


cdef void capture_gone(Core* core, uint32_t ref, int64_t take, int64_t now) noexcept nogil:
    """Post for a hold that no longer holds anything: the money is out (failure case X137)."""
    cdef Hold* h = hold_change(core, ref)
    h.captured += take
    h.released = h.amount - h.captured if h.amount > h.captured else 0
    h.state = CAPTURED
    h.flags |= H_FORCED
    move_debits(core, h.debit, 0, take)
    move_credits(core, h.credit, 0, take)
    hold_close(core, ref, now)
    list_forced(core, &h.id, h.debit, take, now)
    hold_changed(core, h)


cdef void release_one(Core* core, uint32_t ref, uint8_t state, int64_t now) noexcept nogil:
    cdef Hold* h = hold_change(core, ref)
    cdef int64_t rest = h.amount - h.captured if h.amount > h.captured else 0
    move_back(core, h.debit, h.credit, rest)
    h.released = rest
    hold_give_back(core, h, rest, 0 if h.captured else 1)
    if h.captured == 0:
        h.charged = 0
    h.state = CAPTURED if h.captured else state
    hold_close(core, ref, now)
    hold_changed(core, h)


cdef void release_group(Core* core, uint32_t ref, uint8_t state, int64_t now) noexcept nogil:
    while ref:
        release_one(core, ref, state, now)
        ref = hold_at(core, ref).next


cdef int compensate(Core* core, uint32_t ref, bint live) noexcept nogil:
    """Post a captured hold back; refused (live only) where that would break a rule."""
    cdef Hold* h = hold_at(core, ref)
    cdef int64_t charged
    cdef int r
    if live:
        r = ACCOUNT_CLOSED if account_at(core, h.debit).flags & A_CLOSED else DONE
        if r == DONE:
            r = has_room(core, h.credit, h.captured)
            r = FUNDS_SHORT if r == CREDIT_LIMIT_REACHED else r
        if r == DONE and account_at(core, h.debit).flags & A_CREDITS:
            r = under_cap(core, h.debit, h.captured)
        if r == DONE:
            r = fits(core, h.credit, h.debit, h.captured)
        if r:
            return r
    h = hold_change(core, ref)
    move_debits(core, h.credit, 0, h.captured)
    move_credits(core, h.debit, 0, h.captured)
    charged = h.captured if h.captured < h.amount else h.amount
    hold_give_back(core, h, charged, 1)
    h.charged = 0
    h.state = ANNULLED
    hold_changed(core, h)
    return DONE


cdef int annul(Core* core, uint32_t ref, int64_t now, bint live) noexcept nogil:
    """Release all that is open, then compensate in reverse order: fees come back first."""
    cdef uint32_t refs[CHAIN_MAX]
    cdef int n = 0
    cdef int r
    if hold_at(core, ref).state == OPEN:
        release_group(core, ref, RELEASED, now)
    while ref and n < CHAIN_MAX:
        refs[n] = ref
        n += 1
        ref = hold_at(core, ref).next
    while n:
        n -= 1
        if hold_at(core, refs[n]).state == CAPTURED:
            r = compensate(core, refs[n], live)
            if r:
                return r
    return DONE


# --- Commands -------------------------------------------------------------------------------------

cdef int run_account(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef uint32_t ref = find_account(core, &c.id)
    cdef Account* a
    if ref:
        a = account_at(core, ref)
        c.decided_ns = cold_at(core, ref).created_ns
        c.first = DONE
        if (core.books[a.book].ledger == c.ledger and a.code == c.code
                and a.flags & A_PUBLIC == c.flags and a.credit_limit == c.amount
                and a.profile == c.profile):
            return REPEATED
        return REPEATED_WITH_DIFFERENCE
    if core.accounts.live >= core.accounts.most:
        return OVERLOADED
    if book_of(core, c.ledger) >= BOOKS_MAX:
        return OVERLOADED
    if c.profile and not core.profiles[c.profile].known:
        return ACCOUNT_UNKNOWN
    open_account(core, c, now)
    core.effect = True
    return DONE


cdef uint32_t book_of(Core* core, uint32_t ledger) noexcept nogil:
    """Return the place of a ledger's sums, which may be the next free one."""
    cdef uint32_t i
    for i in range(core.book_count):
        if core.books[i].ledger == ledger:
            return i
    return core.book_count


cdef void open_account(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef uint32_t book = book_of(core, c.ledger)
    cdef bint reused = False
    cdef uint32_t ref
    cdef Account* a
    cdef Cold* cold
    if book == core.book_count:
        log_two(core, U_BOOK_NEW, book, 0, False)
        core.books[book].ledger = c.ledger
        core.book_count += 1
    ref = arena_take(&core.accounts, &reused)
    arena_take(&core.colds, &reused)
    a = account_at(core, ref)
    a.id = c.id
    a.book = book
    a.code = c.code
    a.flags = c.flags
    a.credit_limit = c.amount
    cold = cold_at(core, ref)
    cold.cap = INT64_MAX
    cold.created_ns = now
    index_add(&core.account_index, tag_of(id_mix(&c.id)), ref)
    log_two(core, U_ACCOUNT_NEW, ref, 0, False)
    core.digest += account_fixed(core, ref)
    if c.profile:
        log_old(core, U_ACCOUNT, ref, a, sizeof(Account))
        take_profile(core, ref, c.profile)


cdef void take_profile(Core* core, uint32_t ref, uint16_t profile) noexcept nogil:
    """Give an account a limit profile, and counters with its first one; `a` is logged."""
    cdef Account* a = account_at(core, ref)
    cdef Cold* cold = cold_at(core, ref)
    cdef Usage* u
    cdef bint reused = False
    cdef int side, window
    core.digest -= account_fixed(core, ref)
    a.profile = profile
    if profile and cold.usage == 0:
        log_old(core, U_COLD, ref, cold, sizeof(Cold))
        cold.usage = arena_take(&core.usages, &reused)
        log_two(core, U_USAGE_NEW, cold.usage, 0, False)
        u = usage_at(core, cold.usage)
        for side in range(2):
            for window in range(WINDOWS):
                u.side[side].current[window].period = INT32_MIN
                u.side[side].previous[window].period = INT32_MIN
    core.digest += account_fixed(core, ref)


cdef int run_limits(Core* core, Command* c) noexcept nogil:
    cdef uint32_t ref = find_account(core, &c.id)
    if ref == 0:
        return ACCOUNT_UNKNOWN
    if c.options & L_PROFILE and c.profile and not core.profiles[c.profile].known:
        return ACCOUNT_UNKNOWN
    change_limits(core, c, ref)
    core.effect = True
    return DONE


cdef void change_limits(Core* core, Command* c, uint32_t ref) noexcept nogil:
    cdef Account* a = account_at(core, ref)
    cdef Cold* cold = cold_at(core, ref)
    log_old(core, U_ACCOUNT, ref, a, sizeof(Account))
    log_old(core, U_COLD, ref, cold, sizeof(Cold))
    core.digest -= account_fixed(core, ref)
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
    core.digest += account_fixed(core, ref)
    if c.options & L_PROFILE:
        take_profile(core, ref, c.profile)


cdef int run_flags(Core* core, Command* c) noexcept nogil:
    cdef uint32_t ref = find_account(core, &c.id)
    if ref == 0:
        return ACCOUNT_UNKNOWN
    change_flags(core, c, ref)
    core.effect = True
    return DONE


cdef void change_flags(Core* core, Command* c, uint32_t ref) noexcept nogil:
    cdef Account* a = account_at(core, ref)
    log_old(core, U_ACCOUNT, ref, a, sizeof(Account))
    core.digest -= account_fixed(core, ref)
    a.flags = (a.flags | c.flags) & ~c.code
    core.digest += account_fixed(core, ref)


cdef int run_transfer(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef bint forced = c.op == OP_TRANSFER and c.options & C_FORCED
    cdef int r
    if forced and core.forced.live >= core.forced.most:
        return OVERLOADED
    if c.amount <= 0:
        return AMOUNT_NOT_POSITIVE
    r = find_all(core, c)
    if r == DONE and c.op == OP_TRANSFER and not forced:
        r = all_open(core, c.debit_at, c.credit_at, 0, False)
    if r == DONE and not forced:
        r = has_room(core, c.debit_at, c.amount)
    if r == DONE and c.op == OP_TRANSFER and not forced:
        r = under_cap(core, c.credit_at, c.amount)
    if r == DONE:
        r = fits(core, c.debit_at, c.credit_at, c.amount)
    if r == DONE:
        post_transfer(core, c, now)
        core.effect = True
    return r


cdef void post_transfer(Core* core, Command* c, int64_t now) noexcept nogil:
    move_debits(core, c.debit_at, 0, c.amount)
    move_credits(core, c.credit_at, 0, c.amount)
    if c.op == OP_TRANSFER and c.options & C_FORCED:
        list_forced(core, NULL, c.debit_at, c.amount, now)


cdef int run_hold(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef int r = check_hold(core, c, now)
    if r == DONE:
        place(core, c, now)
        core.effect = True
    return r


cdef uint32_t find_head(Core* core, Command* c) noexcept nogil:
    """Return the hold, if it is the first of its chain: the only name a chain answers to."""
    cdef uint32_t ref = c.hold_at
    if ref == 0 or hold_at(core, ref).state == FREE or not same_id(&hold_at(core, ref).id, &c.id):
        ref = find_placed(core, c)
    if ref and hold_at(core, ref).head != ref:
        return 0
    return ref


cdef int run_increment(Core* core, Command* c) noexcept nogil:
    cdef uint32_t ref = find_head(core, c)
    cdef int r
    if ref == 0:
        return HOLD_UNKNOWN
    r = check_increment(core, c, hold_at(core, ref))
    if r == DONE:
        raise_hold(core, ref, c.amount)
        core.effect = True
    return r


cdef int run_capture(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef uint32_t ref = find_head(core, c)
    cdef bint forced = c.options & C_FORCED
    cdef Hold* h
    cdef int r
    if forced and core.forced.live + CHAIN_MAX > core.forced.most:
        return OVERLOADED
    if ref == 0 and (not forced or find_placed(core, c)):
        return HOLD_UNKNOWN
    h = hold_at(core, ref)
    if ref == 0 or h.state == TOMBSTONE:
        r = check_unheld(core, c, ref)
    elif h.state == OPEN:
        r = check_capture(core, c, h, forced)
    elif forced and (h.state == RELEASED or h.state == EXPIRED):
        r = AMOUNT_NOT_POSITIVE if c.amount < 0 else gone_fits(core, c, ref)
    else:
        r = state_result(core, h)
    if r == DONE:
        capture(core, c, ref, now)
        core.effect = True
    return r


cdef int check_unheld(Core* core, Command* c, uint32_t ref) noexcept nogil:
    """A capture for a tombstone or an unknown hold: only forced, and with both accounts."""
    cdef int r
    if not c.options & C_FORCED or not c.options & C_ACCOUNTS:
        return TOMBSTONED if ref else HOLD_UNKNOWN
    if ref == 0 and core.holds.live >= core.holds.most:
        return OVERLOADED
    if c.amount <= 0:
        return AMOUNT_NOT_POSITIVE
    r = find_all(core, c)
    return fits(core, c.debit_at, c.credit_at, c.amount) if r == DONE else r


cdef int check_capture(Core* core, Command* c, Hold* h, bint forced) noexcept nogil:
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
        if account_at(core, hold_at(core, ref).credit).flags & A_CLOSED:
            return ACCOUNT_CLOSED
        ref = hold_at(core, ref).next
    if over > 0:
        if not forced:
            r = has_room(core, h.debit, over)
        if r == DONE and not forced:
            r = under_cap(core, h.credit, over)
        if r == DONE:
            r = fits(core, h.debit, h.credit, over)
    return r


cdef int gone_fits(Core* core, Command* c, uint32_t ref) noexcept nogil:
    """Overflow check of a forced capture of a chain; at worst its holds share accounts."""
    cdef tr_i128 total = c.amount if c.amount else hold_at(core, ref).amount
    cdef uint32_t member = hold_at(core, ref).next
    while member:
        total = total + hold_at(core, member).amount
        member = hold_at(core, member).next
    if total > INT64_MAX:
        return WOULD_OVERFLOW
    while ref:
        if fits(core, hold_at(core, ref).debit, hold_at(core, ref).credit, <int64_t> total):
            return WOULD_OVERFLOW
        ref = hold_at(core, ref).next
    return DONE


cdef void capture(Core* core, Command* c, uint32_t ref, int64_t now) noexcept nogil:
    """Capture in whatever state; leaves the amount taken at the head in c.amount."""
    cdef Hold* h = hold_at(core, ref)
    cdef bint forced = c.options & C_FORCED
    if ref == 0 or h.state == TOMBSTONE:
        capture_unheld(core, c, ref, now)
        return
    if h.state == OPEN:
        if c.amount == 0:
            c.amount = h.amount - h.captured if h.amount > h.captured else 0
        if not capture_one(core, ref, c.amount, c.options & C_FINAL, forced, now):
            return
        ref = h.next
        while ref:
            h = hold_at(core, ref)
            capture_one(
                core, ref, h.amount - h.captured if h.amount > h.captured else 0, True, False, now
            )
            ref = h.next
        return
    if c.amount == 0:
        c.amount = h.amount
    capture_gone(core, ref, c.amount, now)
    ref = h.next
    while ref:
        capture_gone(core, ref, hold_at(core, ref).amount, now)
        ref = hold_at(core, ref).next


cdef void capture_unheld(Core* core, Command* c, uint32_t ref, int64_t now) noexcept nogil:
    """Give a tombstone, or a hold made for this, its accounts, and post."""
    cdef Hold* h
    if ref == 0:
        ref = hold_new(core, &c.id, c.id_hash, now)
        h = hold_at(core, ref)
    else:
        h = hold_at(core, ref)
        log_old(core, U_HOLD, ref, h, sizeof(Hold))
        core.digest -= hold_fixed(core, h) + hold_moving(h)
    h.debit = c.debit_at
    h.credit = c.credit_at
    h.amount = c.amount
    h.state = RELEASED
    core.digest += hold_fixed(core, h) + hold_moving(h)
    capture_gone(core, ref, c.amount, now)


cdef int run_release(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef uint32_t ref = find_head(core, c)
    cdef Hold* h
    if ref == 0:
        if not c.options & C_TOMBSTONE or find_placed(core, c):
            return HOLD_UNKNOWN
        if core.holds.live >= core.holds.most:
            return OVERLOADED
        place_tombstone(core, &c.id, now)
        core.effect = True
        return ORIGINAL_UNKNOWN
    h = hold_at(core, ref)
    if h.state != OPEN:
        return state_result(core, h)
    release_group(core, ref, RELEASED, now)
    core.effect = True
    return DONE


cdef int run_annul(Core* core, Command* c, int64_t now) noexcept nogil:
    cdef uint32_t ref = find_head(core, c)
    cdef Hold* h
    cdef int r
    if ref == 0:
        return HOLD_UNKNOWN
    h = hold_at(core, ref)
    if h.state != OPEN and h.state != CAPTURED:
        return state_result(core, h)
    r = annul(core, ref, now, True)
    core.effect = r == DONE
    return r


# --- One-time-code steps and attempts -------------------------------------------------------------

cdef uint32_t attempt_for(Core* core, const Id* id) noexcept nogil:
    """Find the counters of a key, or make them; moves them to the end of the queue."""
    cdef uint64_t h = id_mix(id)
    cdef uint32_t ref = index_find(&core.attempt_index, &core.attempts, id, h)
    cdef bint reused = False
    cdef Attempt* a
    if ref:
        a = attempt_at(core, ref)
        core.digest -= attempt_digest(a)
        attempt_unlink(core, ref)
    else:
        ref = arena_take(&core.attempts, &reused)
        a = attempt_at(core, ref)
        a.id = id[0]
        a.last_step = -1
        index_add(&core.attempt_index, tag_of(h), ref)
    a.prev = core.attempt_last
    a.next = 0
    if a.prev:
        attempt_at(core, a.prev).next = ref
    else:
        core.attempt_first = ref
    core.attempt_last = ref
    return ref


cdef void attempt_unlink(Core* core, uint32_t ref) noexcept nogil:
    cdef Attempt* a = attempt_at(core, ref)
    if a.prev:
        attempt_at(core, a.prev).next = a.next
    else:
        core.attempt_first = a.next
    if a.next:
        attempt_at(core, a.next).prev = a.prev
    else:
        core.attempt_last = a.prev


cdef int decide_attempt(Core* core, Command* c, Attempt* now_is, int64_t now) noexcept nogil:
    """Decide a step, a try or a clearing on a copy of the counters. Changes nothing else.

    The record holds the whole outcome, so it is put before the counters are changed.
    """
    cdef uint32_t ref = index_find(
        &core.attempt_index, &core.attempts, &c.id, id_mix(&c.id)
    )
    cdef int64_t now_s = now // SECOND_NS
    if ref:
        now_is[0] = attempt_at(core, ref)[0]
    else:
        memset(now_is, 0, sizeof(Attempt))
        now_is.id = c.id
        now_is.last_step = -1
    core.effect = False
    if c.op == OP_CLEAR:
        if ref == 0:
            return DONE
        now_is.count = 0
        if c.options & C_ROW:
            now_is.row = 0
            now_is.locked_until_s = 0
    elif ref == 0 and core.attempts.live >= core.attempts.most:
        return OVERLOADED
    elif c.op == OP_STEP:
        if c.amount <= now_is.last_step:
            return REPEATED
        now_is.last_step = c.amount
    elif now_s < now_is.locked_until_s:
        return LIMIT_COUNT
    else:
        core.effect = True
        return count_attempt(core, c, now_is, now)
    now_is.touched_ns = now
    core.effect = True
    return DONE


cdef int count_attempt(Core* core, Command* c, Attempt* a, int64_t now) noexcept nogil:
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


cdef void set_attempt(Core* core, const Attempt* become) noexcept nogil:
    cdef uint32_t ref = attempt_for(core, &become.id)
    cdef Attempt* a = attempt_at(core, ref)
    a.last_step = become.last_step
    a.window_ns = become.window_ns
    a.touched_ns = become.touched_ns
    a.locked_until_s = become.locked_until_s
    a.count = become.count
    a.row = become.row
    core.digest += attempt_digest(a)


# --- Forgetting -----------------------------------------------------------------------------------

cdef bint forget_before(Core* core, int64_t before) noexcept nogil:
    """Drop what is older; True when more than a bounded number were due."""
    if before > core.horizon_ns:
        core.digest -= tr_mix(<uint64_t> core.horizon_ns, M5)
        core.horizon_ns = before
        core.digest += tr_mix(<uint64_t> before, M5)
    # Holds point to their keys: those go first, all of them, or the holds wait.
    if forget_keys(core, before):
        return True
    if forget_holds(core, before):
        return True
    return forget_attempts(core, before)


cdef inline uint32_t scout_key(Core* core, uint32_t ref) noexcept nogil:
    """Have what dropping this key touches in the cache soon; return the next key."""
    cdef const Key* k = key_at(core, ref)
    if ref == 0:
        return core.key_first
    index_fetch(&core.key_index, tag_of(id_mix(&k.id)))
    tb_prefetch(&hold_at(core, k.hold).state)
    tb_prefetch(key_at(core, k.next))
    return k.next


cdef bint forget_keys(Core* core, int64_t before) noexcept nogil:
    cdef uint32_t ref = core.key_first
    cdef uint32_t prev = 0
    cdef uint32_t next_, scout = 0
    cdef int dropped = 0
    cdef int i
    cdef Key* k
    for i in range(SCOUTED):
        scout = scout_key(core, scout)
    while ref:
        scout = scout_key(core, scout)
        k = key_at(core, ref)
        if k.time_ns >= before:
            break
        if dropped == STEP_MAX:
            return True
        next_ = k.next
        if k.hold and hold_at(core, k.hold).state == OPEN:
            prev = ref
        else:
            if prev:
                key_at(core, prev).next = next_
            else:
                core.key_first = next_
            if core.key_last == ref:
                core.key_last = prev
            if k.hold:
                hold_at(core, k.hold).key = 0
            core.digest -= key_digest(k)
            index_drop(&core.key_index, tag_of(id_mix(&k.id)), ref)
            arena_give(&core.keys, ref)
            dropped += 1
        ref = next_
    return False


cdef inline uint32_t scout_hold(Core* core, uint32_t ref) noexcept nogil:
    """Have what dropping this hold touches in the cache soon; return the next one to be dropped.

    It may be gone already, with a chain that was dropped whole: then this starts anew.
    """
    cdef const Hold* h = hold_at(core, ref)
    if ref == 0:
        return core.closed_first
    index_fetch(&core.hold_index, tag_of(id_mix(&h.id)))
    tb_prefetch(account_at(core, h.debit))
    tb_prefetch(account_at(core, h.credit))
    tb_prefetch(hold_at(core, h.queue_next))
    tb_prefetch(&hold_at(core, h.queue_next).state)
    return h.queue_next


cdef bint forget_holds(Core* core, int64_t before) noexcept nogil:
    """Chains close as one, so the queue holds them whole, first hold first."""
    cdef uint32_t head, ref, next_, scout = 0
    cdef int dropped = 0
    cdef int i
    for i in range(SCOUTED):
        scout = scout_hold(core, scout)
    while core.closed_first:
        scout = scout_hold(core, scout)
        head = core.closed_first
        if hold_at(core, head).closed_ns >= before:
            break
        if dropped >= STEP_MAX:
            return True
        ref = head
        while ref:
            core.digest -= hold_fixed(core, hold_at(core, ref)) + hold_moving(hold_at(core, ref))
            core.closed_first = hold_at(core, ref).queue_next
            ref = hold_at(core, ref).next
        # The digest of a member names its head, so they are freed only now.
        ref = head
        while ref:
            next_ = hold_at(core, ref).next
            hold_free(core, ref)
            core.closed_count -= 1
            dropped += 1
            ref = next_
    if core.closed_first == 0:
        core.closed_last = 0
    return False


cdef void hold_free(Core* core, uint32_t ref) noexcept nogil:
    cdef Hold* h = hold_at(core, ref)
    if h.key:
        key_at(core, h.key).hold = 0
    index_drop(&core.hold_index, tag_of(id_mix(&h.id)), ref)
    arena_give(&core.holds, ref)


cdef bint forget_attempts(Core* core, int64_t before) noexcept nogil:
    cdef uint32_t ref = core.attempt_first
    cdef uint32_t next_
    cdef int dropped = 0
    cdef Attempt* a
    while ref:
        a = attempt_at(core, ref)
        if a.touched_ns >= before:
            break
        if dropped == STEP_MAX:
            return True
        next_ = a.next
        if a.locked_until_s <= before // SECOND_NS:
            attempt_unlink(core, ref)
            core.digest -= attempt_digest(a)
            index_drop(&core.attempt_index, tag_of(id_mix(&a.id)), ref)
            arena_give(&core.attempts, ref)
            dropped += 1
        ref = next_
    return False


# --- Deciding -------------------------------------------------------------------------------------

cdef int run_command(Core* core, Command* c, int64_t now) noexcept nogil:
    if c.op == OP_HOLD:
        return run_hold(core, c, now)
    if c.op == OP_CAPTURE:
        return run_capture(core, c, now)
    if c.op == OP_RELEASE:
        return run_release(core, c, now)
    if c.op == OP_TRANSFER or c.op == OP_ADJUST:
        return run_transfer(core, c, now)
    if c.op == OP_ANNUL:
        return run_annul(core, c, now)
    if c.op == OP_INCREMENT:
        return run_increment(core, c)
    if c.op == OP_ACCOUNT:
        return run_account(core, c, now)
    if c.op == OP_LIMITS:
        return run_limits(core, c)
    return run_flags(core, c)


cdef bint answer_by_key(Core* core, Command* c, int64_t now) noexcept nogil:
    """True when the key alone decides: known, expired, or no room to remember it."""
    cdef uint32_t ref = 0
    cdef Key* k
    cdef int64_t made = c.key_ns
    c.decided_ns = now
    c.window = 0
    c.account = 0
    if c.has_key:
        ref = index_find(&core.key_index, &core.keys, &c.key, c.key_hash)
    if ref:
        k = key_at(core, ref)
        c.result = REPEATED if k.digest == c.digest else REPEATED_WITH_DIFFERENCE
        c.first = k.result
        c.window = k.window
        c.account = k.account
        c.decided_ns = k.time_ns
        return True
    if made == 0:
        made = (c.day + 2) * DAY_NS if c.op == OP_HOLD else now
    if made < core.horizon_ns and (c.has_key or c.op == OP_HOLD):
        c.result = c.first = KEY_EXPIRED
        return True
    if c.has_key and core.keys.live >= core.keys.most:
        c.result = c.first = OVERLOADED
        return True
    return False


cdef void remember(Core* core, Command* c, int64_t now) noexcept nogil:
    """Keep the decision under its key, at the end of the queue that `forget` empties."""
    cdef bint reused = False
    cdef uint32_t ref = arena_take(&core.keys, &reused)
    cdef Key* k = key_at(core, ref)
    k.id = c.key
    k.digest = c.digest
    k.time_ns = now
    k.result = c.result
    k.window = c.window
    k.account = c.account
    index_add(&core.key_index, tag_of(id_mix(&c.key)), ref)
    log_two(core, U_KEY_NEW, ref, core.key_last, reused)
    if core.key_last:
        key_at(core, core.key_last).next = ref
    else:
        core.key_first = ref
    core.key_last = ref
    if core.placed:
        k.hold = core.placed
        hold_at(core, core.placed).key = ref
    core.digest += key_digest(k)


cdef bint decide(Core* core, Command* c, int64_t now) noexcept nogil:
    """Decide and apply one command; True when there is something to journal."""
    cdef size_t mark = core.undo_used
    cdef uint64_t digest = core.digest
    if mark > UNDO_BYTES - UNDO_ONE:
        core.fault = "a chain outgrew the undo log"
        return False
    if answer_by_key(core, c, now):
        return False
    core.book_logged = 0
    core.placed = 0
    core.effect = False
    c.result = run_command(core, c, now)
    if not core.effect and core.undo_used > mark:
        roll_back(core, mark, digest)
    if c.result == REPEATED or c.result == REPEATED_WITH_DIFFERENCE:
        return False
    c.first = c.result
    if c.result != LIMIT_AMOUNT and c.result != LIMIT_COUNT and c.result != AMOUNT_OVER_RANGE:
        c.window = 0
    if c.has_key and c.result != OVERLOADED:
        remember(core, c, now)
        return True
    return core.effect


cdef bint held_in_chain(Core* core, const Command* c) noexcept nogil:
    """Whether a command of a chain is no reason for the others to fail."""
    cdef int r = c.first if c.result == REPEATED else c.result
    return r == DONE or r == ORIGINAL_UNKNOWN


cdef bint decide_chain(Core* core, Command* c, Py_ssize_t n, int64_t now) noexcept nogil:
    """Decide linked commands: all are applied, or none and each one's key remembers why."""
    cdef uint64_t digest = core.digest
    cdef Py_ssize_t i
    cdef Py_ssize_t failed = -1
    core.chain_head = 0
    core.in_chain = True
    for i in range(n):
        if decide(core, &c[i], now):
            encode(core, &c[i], now)
        if core.fault != NULL or not held_in_chain(core, &c[i]):
            failed = i
            break
    core.in_chain = False
    if failed < 0 or core.fault != NULL:
        return core.record_used > 0
    roll_back(core, 0, digest)
    core.record_used = 0
    core.placed = 0
    core.effect = False
    for i in range(n):
        if i == failed:
            if c[i].result in (REPEATED, REPEATED_WITH_DIFFERENCE, KEY_EXPIRED, OVERLOADED):
                continue
        elif i < failed and c[i].result == REPEATED:
            continue
        elif i > failed and answer_by_key(core, &c[i], now):
            continue
        else:
            c[i].result = c[i].first = CHAIN_FAILED
            c[i].decided_ns = now
            c[i].window = 0
            c[i].account = 0
        if c[i].has_key and c[failed].result != OVERLOADED:
            remember_refusal(core, &c[i], now)
    return core.record_used > 0


cdef void remember_refusal(Core* core, Command* c, int64_t now) noexcept nogil:
    """The key may have come twice in one chain, or just have filled the table."""
    cdef uint8_t result = c.result
    cdef uint8_t window = c.window
    cdef uint8_t account = c.account
    if answer_by_key(core, c, now):
        return
    c.result = c.first = result
    c.window = window
    c.account = account
    remember(core, c, now)
    encode(core, c, now)


# --- Records --------------------------------------------------------------------------------------
#
# A record: time i64, result, flags (1: has a key), window, account; with a key its 16 bytes and
# the digest u64; then, where the command changed anything, the fields of its kind as `encode`
# writes them. Little-endian, not aligned. The kind is the operation; a layout that changes gets
# a new kind. A chain is a row of (kind u8, length u16, record).

cdef inline unsigned char* copied(unsigned char* at, const void* data, size_t n) noexcept nogil:
    """Copy n bytes to `at`; return where the next ones go."""
    memcpy(at, data, n)
    return at + n


cdef void encode(Core* core, const Command* c, int64_t now) noexcept nogil:
    """Append one record, headed by its kind and length, to the record buffer."""
    cdef unsigned char* head = core.record + core.record_used
    cdef unsigned char* at = copied(head + 3, &now, 8)
    cdef uint16_t length
    at[0] = c.result
    at[1] = c.has_key
    at[2] = c.window
    at[3] = c.account
    at += 4
    if c.has_key:
        at = copied(at, &c.key, 16)
        at = copied(at, &c.digest, 8)
    head[0] = c.op if core.effect else OP_DECISION
    if core.effect:
        at = encode_fields(at, c)
    length = at - head - 3
    memcpy(head + 1, &length, 2)
    core.record_used += length + 3


cdef inline unsigned char* encode_hold(unsigned char* at, const Command* c) noexcept nogil:
    at = copied(at, &c.id, 48)  # id, debit and credit lie side by side
    at = copied(at, &c.amount, 8)
    at = copied(at, &c.day, 4)
    at = copied(at, &c.seconds, 4)
    at = copied(at, &c.code, 2)
    at[0] = c.policy
    at[1] = c.options
    at[2] = c.meter_count
    return copied(at + 3, &c.meters, 16 * c.meter_count) if c.meter_count else at + 3


cdef unsigned char* encode_fields(unsigned char* at, const Command* c) noexcept nogil:
    if c.op == OP_HOLD:
        return encode_hold(at, c)
    if c.op == OP_TRANSFER or c.op == OP_ADJUST:
        at = copied(at, &c.debit, 32)  # debit and credit
        at = copied(at, &c.amount, 8)
        if c.op == OP_TRANSFER:
            at = copied(at, &c.code, 2)
            return copied(at, &c.options, 1)
        at = copied(at, &c.number, 4)
        return copied(at, &c.meters, 32)  # author and second
    if c.op == OP_PROFILE or c.op == OP_FORGET:
        return at
    at = copied(at, &c.id, 16)
    if c.op == OP_CAPTURE:
        at = copied(at, &c.amount, 8)
        at = copied(at, &c.options, 1)
        return copied(at, &c.debit, 32) if c.options & C_ACCOUNTS else at
    if c.op == OP_INCREMENT:
        return copied(at, &c.amount, 8)
    if c.op == OP_ACCOUNT:
        at = copied(at, &c.ledger, 4)
        at = copied(at, &c.code, 2)
        at = copied(at, &c.flags, 2)
        at = copied(at, &c.profile, 2)
        return copied(at, &c.amount, 8)
    if c.op == OP_LIMITS:
        at = copied(at, &c.options, 1)
        at = copied(at, &c.profile, 2)
        return copied(at, &c.amount, 24)  # amount, low, high
    if c.op == OP_FLAGS:
        at = copied(at, &c.flags, 2)
        return copied(at, &c.code, 2)
    return at


cdef inline void write(Core* core, const void* data, size_t n) noexcept nogil:
    """Append to the record just encoded."""
    memcpy(core.record + core.record_used, data, n)
    core.record_used += n


# --- Applying a batch -----------------------------------------------------------------------------

cdef void prepare(Core* core, Command* c, Py_ssize_t n) noexcept nogil:
    """Resolve ids of the next n commands, with all their cache misses under way at once.

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
            index_fetch(&core.key_index, tag_of(c[i].key_hash))
        if c[i].op == OP_HOLD or c[i].op == OP_TRANSFER:
            debit[i] = id_mix(&c[i].debit)
            credit[i] = id_mix(&c[i].credit)
            index_fetch(&core.account_index, tag_of(debit[i]))
            index_fetch(&core.account_index, tag_of(credit[i]))
        if OP_HOLD <= c[i].op <= OP_ANNUL:
            c[i].id_hash = id_mix(&c[i].id)
            index_fetch(&core.hold_index, tag_of(c[i].id_hash))
    for i in range(n):
        if c[i].op == OP_HOLD or c[i].op == OP_TRANSFER:
            c[i].debit_at = index_guess(&core.account_index, tag_of(debit[i]))
            c[i].credit_at = index_guess(&core.account_index, tag_of(credit[i]))
            tb_prefetch(account_at(core, c[i].debit_at))
            tb_prefetch(account_at(core, c[i].credit_at))
        elif OP_HOLD < c[i].op <= OP_ANNUL:
            c[i].hold_at = index_guess(&core.hold_index, tag_of(c[i].id_hash))
            tb_prefetch(hold_at(core, c[i].hold_at))
            tb_prefetch(<char*> hold_at(core, c[i].hold_at) + 64)
    for i in range(n):
        if c[i].op == OP_HOLD or c[i].op == OP_TRANSFER:
            confirm_guess(core, &c[i].debit_at, &c[i].debit)
            confirm_guess(core, &c[i].credit_at, &c[i].credit)
        elif c[i].hold_at and hold_at(core, c[i].hold_at).debit:
            tb_prefetch(account_at(core, hold_at(core, c[i].hold_at).debit))
            tb_prefetch(account_at(core, hold_at(core, c[i].hold_at).credit))


cdef inline void confirm_guess(Core* core, uint32_t* at, const Id* id) noexcept nogil:
    """Keep a reference only if its entry is the one meant; ask for its counters' address."""
    cdef Account* a = account_at(core, at[0])
    if at[0] == 0:
        return
    if not same_id(&a.id, id):
        at[0] = 0
    elif a.profile or a.flags & (A_FLOOR | A_CAP):
        tb_prefetch(cold_at(core, at[0]))


cdef Py_ssize_t stage(Core* core, Command* c, int64_t now) noexcept nogil:
    """Decide the command at c, or the chain that begins there; returns how many that were.

    Leaves what to undo in the undo log and what to journal in the record buffer. `finish` must
    follow once the record is put.
    """
    cdef Py_ssize_t n = 1
    core.undo_used = 0
    core.record_used = 0
    core.digest_before = core.digest
    if c.op >= OP_STEP:
        stage_put_first(core, c, now)
    elif c.linked or c.op == OP_PROFILE:
        if c.op == OP_PROFILE:
            stage_put_first(core, c, now)
            return 1
        while c[n - 1].linked:
            n += 1
        decide_chain(core, c, n, now)
    elif decide(core, c, now) and core.recorded:
        encode(core, c, now)
    if core.fault == NULL:
        assert_sound(core)
    return n


cdef void stage_put_first(Core* core, Command* c, int64_t now) noexcept nogil:
    """Decide a command that changes the state only in `finish`."""
    cdef uint16_t length
    c.decided_ns = now
    c.window = c.account = 0
    c.result = DONE
    core.effect = True
    if c.op == OP_STEP or c.op == OP_ATTEMPT or c.op == OP_CLEAR:
        c.result = decide_attempt(core, c, &core.counted, now)
    c.first = c.result
    if not core.effect:
        return
    encode(core, c, now)
    if c.op == OP_PROFILE:
        write(core, &c.profile, 2)
        write(core, <const void*> <size_t> c.low, sizeof(Profile))
    elif c.op == OP_FORGET:
        write(core, &c.amount, 8)
    else:
        write(core, &core.counted.last_step, 32)  # last_step .. locked_until_s
        write(core, &core.counted.count, 8)  # count, row
    length = core.record_used - 3
    memcpy(core.record + 1, &length, 2)


cdef void finish(Core* core, Command* c) noexcept nogil:
    """Make the change of a command that puts first; nothing can refuse it any more."""
    if c.op == OP_PROFILE:
        set_profile(core, c.profile, <const Profile*> <size_t> c.low)
    elif c.op == OP_FORGET:
        c.result = c.first = PARTIAL if forget_before(core, c.amount) else DONE
    elif (c.op == OP_STEP or c.op == OP_ATTEMPT or c.op == OP_CLEAR) and core.effect:
        set_attempt(core, &core.counted)


cdef void set_profile(Core* core, uint32_t number, const Profile* become) noexcept nogil:
    core.digest -= profile_digest(number, &core.profiles[number])
    core.profiles[number] = become[0]
    if number >= core.profile_top:
        core.profile_top = number + 1
    core.digest += profile_digest(number, become)


cdef bint stage_expiry(Core* core, int64_t now) noexcept nogil:
    """Expire the next hold that is due, with its chain; False when none is."""
    cdef uint32_t ref = core.heap[1]
    cdef Command c
    if core.heap_count == 0 or hold_at(core, ref).expires_ns > now:
        return False
    core.undo_used = 0
    core.record_used = 0
    core.digest_before = core.digest
    memset(&c, 0, sizeof(c))
    c.op = OP_EXPIRE
    c.id = hold_at(core, ref).id
    core.book_logged = 0
    release_group(core, ref, EXPIRED, now)
    core.effect = True
    encode(core, &c, now)
    assert_sound(core)
    return True


cdef Py_ssize_t look_ahead(
    Core* core, Command* c, Py_ssize_t at, Py_ssize_t ready, Py_ssize_t n
) noexcept nogil:
    """Prepare a further block whenever the longest chain might leave what is prepared."""
    cdef Py_ssize_t block = BLOCK if n - ready > BLOCK else n - ready
    if ready - at >= CHAIN_MAX or block == 0:
        return ready
    prepare(core, c + ready, block)
    return ready + block


cdef void apply_quiet(Core* core, Command* c, Py_ssize_t n, int64_t now) noexcept nogil:
    """Apply without a sink."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t ready = 0
    cdef Py_ssize_t took
    cdef int expired
    while i < n and core.fault == NULL:
        ready = look_ahead(core, c, i, ready, n)
        if c[i].op == OP_TICK:
            expired = 0
            while expired < STEP_MAX and stage_expiry(core, now) and core.fault == NULL:
                expired += 1
            end_tick(core, &c[i], now)
            took = 1
        else:
            took = stage(core, &c[i], now)
            if core.fault == NULL:
                finish(core, &c[i])
        i += took


cdef void end_tick(Core* core, Command* c, int64_t now) noexcept nogil:
    c.decided_ns = now
    c.window = c.account = 0
    c.result = DONE
    if core.heap_count and hold_at(core, core.heap[1]).expires_ns <= now:
        c.result = PARTIAL
    c.first = c.result


cdef inline int put_record(Core* core, Sink sink) except -1:
    """Hand what was staged to the sink, as one record; where it raises, the caller undoes it."""
    cdef uint16_t length
    if core.record_used == 0 or core.fault != NULL:
        return 0
    memcpy(&length, core.record + 1, 2)
    if <size_t> length + 3 == core.record_used:
        return sink.put(core.record[0], core.record + 3, length)
    return sink.put(OP_CHAIN, core.record, core.record_used)


cdef int apply_recorded(
    Core* core, Sink sink, Command* c, Py_ssize_t n, int64_t now
) except -1:
    """Apply with a sink: no change outlives a record that was not taken."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t ready = 0
    cdef Py_ssize_t took
    cdef int expired
    try:
        while i < n and core.fault == NULL:
            ready = look_ahead(core, c, i, ready, n)
            if c[i].op == OP_TICK:
                expired = 0
                while expired < STEP_MAX and stage_expiry(core, now):
                    put_record(core, sink)
                    if core.fault != NULL:
                        break
                    expired += 1
                end_tick(core, &c[i], now)
                took = 1
            else:
                took = stage(core, &c[i], now)
                put_record(core, sink)
                if core.fault == NULL:
                    finish(core, &c[i])
            i += took
    except BaseException as error:  # from the sink: nothing else here raises
        roll_back(core, 0, core.digest_before)
        for i in range(i, n):
            c[i].result = c[i].first = JOURNAL_FULL
            c[i].window = c[i].account = 0
            c[i].decided_ns = now
        # By name: the core's rooms below the journal must not import it.
        if type(error).__name__ != "JournalFull":
            raise
    return 0


cdef int stop_at_fault(Core* core) except -1:
    """Undo what broke the invariant and take nothing any more."""
    roll_back(core, 0, core.digest_before)
    core.stopped = True
    raise AssertionError("ledger: " + (<bytes> core.fault).decode())


# --- Replay ---------------------------------------------------------------------------------------

cdef const char* replay_chain(Core* core, Reader* r) noexcept nogil:
    cdef const char* wrong = NULL
    cdef uint8_t kind
    cdef uint16_t length
    cdef Reader part
    cdef int n = 0
    core.in_chain = True
    core.chain_head = 0
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
            wrong = replay_one(core, kind, &part)
            if wrong == NULL and part.at != part.end:
                wrong = "bytes are left over in a chain"
    core.in_chain = False
    return wrong


cdef const char* replay_one(Core* core, int kind, Reader* r) noexcept nogil:
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
    core.book_logged = 0
    core.placed = 0
    if kind == OP_HOLD:
        wrong = replay_hold(core, &c, r, now)
    elif OP_INCREMENT <= kind <= OP_ANNUL or kind == OP_EXPIRE:
        wrong = replay_held(core, &c, r, now)
    elif kind == OP_TRANSFER or kind == OP_ADJUST:
        wrong = replay_post(core, &c, r, now)
    elif kind == OP_ACCOUNT or kind == OP_LIMITS or kind == OP_FLAGS:
        wrong = replay_account(core, &c, r, now)
    elif kind != OP_DECISION:
        wrong = replay_other(core, &c, r, now)
    if wrong != NULL or not c.has_key:
        return wrong
    if index_find(&core.key_index, &core.keys, &c.key, id_mix(&c.key)):
        return "a key is decided twice"
    if core.keys.live >= core.keys.most:
        return "more keys than the table holds"
    remember(core, &c, now)
    return NULL


cdef const char* replay_hold(Core* core, Command* c, Reader* r, int64_t now) noexcept nogil:
    if not (take(r, &c.id, 16) and take(r, &c.debit, 32) and take(r, &c.amount, 8)
            and take(r, &c.day, 4) and take(r, &c.seconds, 4) and take(r, &c.code, 2)
            and take(r, &c.policy, 1) and take(r, &c.options, 1)
            and take(r, &c.meter_count, 1) and c.meter_count <= 4
            and take(r, &c.meters, 16 * c.meter_count)):
        return "cut short"
    c.id_hash = id_mix(&c.id)
    if c.amount <= 0 or not 0 <= c.day <= 100_000 or c.policy > POLICY_AUTO:
        return "not a hold"
    if find_all(core, c):
        return "a hold names an unknown account"
    if fits(core, c.debit_at, c.credit_at, c.amount):
        return "a hold overflows"
    if find_placed(core, c):
        return "a hold is placed twice"
    if core.holds.live >= core.holds.most:
        return "more holds than the table holds"
    place(core, c, now)
    return NULL


cdef const char* replay_held(Core* core, Command* c, Reader* r, int64_t now) noexcept nogil:
    """Increment, capture, release, annul, expire."""
    cdef uint32_t ref
    cdef Hold* h
    if not take(r, &c.id, 16):
        return "cut short"
    c.id_hash = id_mix(&c.id)
    ref = find_head(core, c)
    h = hold_at(core, ref)
    if c.op == OP_CAPTURE:
        return replay_capture(core, c, ref, r, now)
    if c.op == OP_RELEASE and c.result == ORIGINAL_UNKNOWN:
        if find_placed(core, c) or core.holds.live >= core.holds.most:
            return "a tombstone without a place"
        place_tombstone(core, &c.id, now)
        return NULL
    if c.op == OP_INCREMENT and not take(r, &c.amount, 8):
        return "cut short"
    if c.op == OP_ANNUL:
        if ref == 0 or (h.state != OPEN and h.state != CAPTURED):
            return "there is nothing to annul"
        annul(core, ref, now, False)
        return NULL
    if ref == 0 or h.state != OPEN:
        return "the hold is not open"
    if c.op == OP_INCREMENT:
        if (c.amount <= 0 or c.amount > INT64_MAX - h.amount
                or fits(core, h.debit, h.credit, c.amount)):
            return "an increment out of range"
        raise_hold(core, ref, c.amount)
    else:
        release_group(core, ref, EXPIRED if c.op == OP_EXPIRE else RELEASED, now)
    return NULL


cdef const char* replay_capture(
    Core* core, Command* c, uint32_t ref, Reader* r, int64_t now
) noexcept nogil:
    cdef Hold* h = hold_at(core, ref)
    cdef int64_t rest = h.amount - h.captured if h.amount > h.captured else 0
    if not (take(r, &c.amount, 8) and take(r, &c.options, 1)):
        return "cut short"
    if c.options & C_ACCOUNTS and not take(r, &c.debit, 32):
        return "cut short"
    if c.amount < 0 or core.forced.live + CHAIN_MAX > core.forced.most:
        return "a capture out of range"
    if ref == 0 or h.state == TOMBSTONE:
        if (ref == 0 and find_placed(core, c)) or check_unheld(core, c, ref):
            return "a forced capture without its accounts"
    elif h.state == OPEN:
        if c.amount > rest and fits(core, h.debit, h.credit, c.amount - rest):
            return "a capture overflows"
    elif (h.state != RELEASED and h.state != EXPIRED) or not c.options & C_FORCED:
        return "there is nothing to capture"
    elif gone_fits(core, c, ref):
        return "a capture overflows"
    capture(core, c, ref, now)
    return NULL


cdef const char* replay_post(Core* core, Command* c, Reader* r, int64_t now) noexcept nogil:
    if not (take(r, &c.debit, 32) and take(r, &c.amount, 8)):
        return "cut short"
    if c.op == OP_TRANSFER and not (take(r, &c.code, 2) and take(r, &c.options, 1)):
        return "cut short"
    if c.op == OP_ADJUST and not (take(r, &c.number, 4) and take(r, &c.meters, 32)):
        return "cut short"
    if (c.amount <= 0 or find_all(core, c)
            or fits(core, c.debit_at, c.credit_at, c.amount)
            or core.forced.live >= core.forced.most):
        return "not a transfer"
    post_transfer(core, c, now)
    return NULL


cdef const char* replay_account(Core* core, Command* c, Reader* r, int64_t now) noexcept nogil:
    cdef uint32_t ref
    if not take(r, &c.id, 16):
        return "cut short"
    ref = find_account(core, &c.id)
    if c.op == OP_ACCOUNT:
        if not (take(r, &c.ledger, 4) and take(r, &c.code, 2) and take(r, &c.flags, 2)
                and take(r, &c.profile, 2) and take(r, &c.amount, 8)):
            return "cut short"
        if (ref or core.accounts.live >= core.accounts.most or c.flags & ~A_PUBLIC
                or c.amount < 0 or (c.profile and not core.profiles[c.profile].known)):
            return "an account without a place"
        if book_of(core, c.ledger) >= BOOKS_MAX:
            return "more ledgers than there may be"
        open_account(core, c, now)
        return NULL
    if ref == 0:
        return "an unknown account"
    if c.op == OP_LIMITS:
        if not (take(r, &c.options, 1) and take(r, &c.profile, 2) and take(r, &c.amount, 24)):
            return "cut short"
        if (c.amount < 0 or c.low < 0 or c.high < 0
                or (c.profile and not core.profiles[c.profile].known)):
            return "not limits"
        change_limits(core, c, ref)
        return NULL
    if not (take(r, &c.flags, 2) and take(r, &c.code, 2)):
        return "cut short"
    if (c.flags | c.code) & ~A_PUBLIC:
        return "unknown flags"
    change_flags(core, c, ref)
    return NULL


cdef const char* replay_other(Core* core, Command* c, Reader* r, int64_t now) noexcept nogil:
    """Profiles, attempt counters, forgetting: what is put before it is done."""
    cdef Profile p
    cdef Attempt a
    if c.op == OP_PROFILE:
        if not (take(r, &c.profile, 2) and take(r, &p, sizeof(p))):
            return "cut short"
        if c.profile == 0 or p.known != 1:
            return "not a profile"
        set_profile(core, c.profile, &p)
        return NULL
    if c.op == OP_FORGET:
        if not take(r, &c.amount, 8) or c.amount < 0:
            return "cut short"
        forget_before(core, c.amount)
        return NULL
    if c.op != OP_STEP and c.op != OP_ATTEMPT and c.op != OP_CLEAR:
        return "unknown kind"
    if not (take(r, &a.id, 16) and take(r, &a.last_step, 32) and take(r, &a.count, 8)):
        return "cut short"
    if a.last_step < -1 or a.window_ns < 0 or a.touched_ns < 0 or a.locked_until_s < 0:
        return "not a counter"
    if (index_find(&core.attempt_index, &core.attempts, &a.id, id_mix(&a.id)) == 0
            and core.attempts.live >= core.attempts.most):
        return "more attempt counters than the table holds"
    set_attempt(core, &a)
    return NULL


cdef object balance_of(Core* core, uint32_t ref):
    cdef Account* a = account_at(core, ref)
    cdef Cold* c = cold_at(core, ref)
    cdef object available = a.credits_posted
    available = available - a.debits_posted - a.debits_pending + a.credit_limit
    return Balance(
        a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted,
        a.credit_limit, available, core.books[a.book].ledger, a.code, a.flags & A_PUBLIC,
        a.profile, c.floor, c.cap,
    )


cdef object view_of(Core* core, uint32_t ref):
    cdef Hold* h = hold_at(core, ref)
    return HoldView(
        _STATE_NAMES[h.state], h.amount, h.captured, h.released,
        id_bytes(&account_at(core, h.debit).id) if h.debit else b"",
        id_bytes(&account_at(core, h.credit).id) if h.credit else b"",
        h.day, h.policy, h.code, h.created_ns, h.expires_ns, h.closed_ns,
        id_bytes(&hold_at(core, h.head).id), bool(h.flags & H_FORCED),
    )


# --- The ledger -----------------------------------------------------------------------------------

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

    def __cinit__(self, *, uint32_t accounts_max=1_000_000, uint32_t holds_max=2_000_000,
                  uint32_t keys_max=2_000_000, uint32_t attempts_max=1_000_000, Sink sink=None):
        cdef Core* core
        if not (0 < accounts_max < 1 << 31 and 0 < holds_max < 1 << 31
                and 0 < keys_max < 1 << 31 and 0 < attempts_max < 1 << 31):
            raise ValueError("table sizes are 1..2**31-1")
        self._sink = sink
        core = self._core = <Core*> calloc(1, sizeof(Core))
        if core == NULL:
            raise MemoryError
        core.recorded = sink is not None
        arena_open(&core.accounts, sizeof(Account), accounts_max)
        arena_open(&core.colds, sizeof(Cold), accounts_max)
        arena_open(&core.usages, sizeof(Usage), accounts_max)
        arena_open(&core.holds, sizeof(Hold), holds_max)
        arena_open(&core.keys, sizeof(Key), keys_max)
        arena_open(&core.attempts, sizeof(Attempt), attempts_max)
        arena_open(&core.forced, sizeof(Forced), FORCED_MAX)
        index_open(&core.account_index, accounts_max)
        index_open(&core.hold_index, holds_max)
        index_open(&core.key_index, keys_max)
        index_open(&core.attempt_index, attempts_max)
        core.profiles = <Profile*> pages_reserve(PROFILES_MAX * sizeof(Profile))
        core.books = <Book*> pages_reserve(BOOKS_MAX * sizeof(Book))
        core.heap = <uint32_t*> pages_reserve((<size_t> holds_max + 2) * sizeof(uint32_t))
        core.undo = <char*> pages_reserve(UNDO_BYTES)
        core.record = <unsigned char*> pages_reserve(RECORD_BYTES)
        if (core.profiles == NULL or core.books == NULL or core.heap == NULL
                or core.undo == NULL or core.record == NULL):
            raise MemoryError("no address space for the ledger")

    def __dealloc__(self):
        cdef Core* core = self._core
        if core == NULL:
            return
        arena_close(&core.accounts)
        arena_close(&core.colds)
        arena_close(&core.usages)
        arena_close(&core.holds)
        arena_close(&core.keys)
        arena_close(&core.attempts)
        arena_close(&core.forced)
        index_close(&core.account_index)
        index_close(&core.hold_index)
        index_close(&core.key_index)
        index_close(&core.attempt_index)
        pages_release(core.profiles, PROFILES_MAX * sizeof(Profile))
        pages_release(core.books, BOOKS_MAX * sizeof(Book))
        pages_release(core.heap, (<size_t> core.holds.most + 2) * sizeof(uint32_t))
        pages_release(core.undo, UNDO_BYTES)
        pages_release(core.record, RECORD_BYTES)
        free(core)

    def reserve(self, *, uint32_t accounts=0, uint32_t holds=0, uint32_t keys=0,
                uint32_t attempts=0):
        """Make room in the indexes for so many more entries at once, where nobody waits: otherwise
        they grow bit by bit with what is added. Changes no state.

        Raises ValueError above the sizes of this ledger.
        """
        cdef Core* core = self._core
        if (accounts > core.accounts.most or holds > core.holds.most
                or keys > core.keys.most or attempts > core.attempts.most):
            raise ValueError("more than this ledger can ever hold")
        index_reserve(&core.account_index, accounts)
        index_reserve(&core.hold_index, holds)
        index_reserve(&core.key_index, keys)
        index_reserve(&core.attempt_index, attempts)

    def apply(self, Batch batch not None, int64_t now_ns):
        """Run all commands of a batch in order; return their `Result` numbers.

        Args:
            now_ns: the time of the turn, nanoseconds since 1970; may step back.

        Raises:
            AssertionError: an invariant broke, which is our fault; the ledger stops for good.
            whatever the sink raises but JournalFull: the command it concerns was not applied, nor
                any after it.
        """
        cdef Py_ssize_t i
        self.apply_batch(batch, now_ns, NULL)
        return [batch._commands[i].result for i in range(batch._count)]

    cdef int apply_batch(self, Batch batch, int64_t now_ns, unsigned char* results) except -1:
        """`apply` for native code. results: room for one byte a command, or NULL."""
        cdef Core* core = self._core
        cdef Py_ssize_t i
        if core.stopped:
            raise AssertionError("the ledger stopped at a broken invariant")
        if now_ns < 0 or now_ns >= LOCKED_FOR_EVER:
            raise ValueError("now_ns is out of range")
        if batch._run:
            raise ValueError("the last command is linked to nothing")
        core.changes += 1
        if self._sink is None:
            with nogil:
                apply_quiet(core, batch._commands, batch._count, now_ns)
        else:
            apply_recorded(core, self._sink, batch._commands, batch._count, now_ns)
        if core.fault != NULL:
            stop_at_fault(core)
        if results != NULL:
            for i in range(batch._count):
                results[i] = batch._commands[i].result
        return 0

    cdef bint has_room(self, uint32_t holds, uint32_t keys, uint32_t attempts) noexcept nogil:
        """Whether so many more entries would not be answered `overloaded`."""
        cdef Core* core = self._core
        return (
            holds <= core.holds.most - core.holds.live
            and keys <= core.keys.most - core.keys.live
            and attempts <= core.attempts.most - core.attempts.live
        )

    cdef int would_hold(self, Batch batch, Py_ssize_t index, int64_t now_ns) noexcept nogil:
        """The result that a hold of the batch would have now, keys and chains apart."""
        cdef Command c = batch._commands[index]
        cdef int64_t made = c.key_ns if c.key_ns else (c.day + 2) * DAY_NS
        if made < self._core.horizon_ns:
            return KEY_EXPIRED
        c.id_hash = id_mix(&c.id)
        c.debit_at = c.credit_at = 0
        return check_hold(self._core, &c, now_ns)

    # --- Replay ---

    cdef int replay(self, int kind, const unsigned char* data, Py_ssize_t n) except -1:
        """Apply one journaled decision, checking only that it can be one of ours."""
        cdef Core* core = self._core
        cdef const char* wrong
        cdef Reader r
        if core.stopped:
            raise AssertionError("the ledger stopped at a broken invariant")
        core.changes += 1
        core.undo_used = 0
        core.digest_before = core.digest
        core.in_chain = False
        r.at = data
        r.end = data + n
        if kind == OP_CHAIN:
            wrong = replay_chain(core, &r)
        else:
            wrong = replay_one(core, kind, &r)
        if wrong == NULL and r.at != r.end:
            wrong = "bytes are left over"
        if wrong != NULL:
            roll_back(core, 0, core.digest_before)
            raise ValueError("ledger record: " + (<bytes> wrong).decode())
        if core.fault != NULL or assert_sound(core):
            stop_at_fault(core)
        return 0

    # --- Views ---

    cdef const Account* account_of(self, const unsigned char* id) noexcept nogil:
        cdef Core* core = self._core
        cdef Id wanted
        memcpy(&wanted, id, 16)
        cdef uint32_t ref = find_account(core, &wanted)
        return account_at(core, ref) if ref else NULL

    cdef bint balance_of(
        self, const unsigned char* id, int64_t* available, int64_t* posted
    ) noexcept nogil:
        """Available (saturated to 64 bits) and credits less debits posted; False: unknown."""
        cdef const Account* a = self.account_of(id)
        cdef tr_i128 room
        if a == NULL:
            return False
        room = available_of(a)
        if room > INT64_MAX:
            room = INT64_MAX
        elif room < INT64_MIN:
            room = INT64_MIN
        available[0] = <int64_t> room
        posted[0] = a.credits_posted - a.debits_posted
        return True

    cdef const Hold* hold_of(self, const unsigned char* hold) noexcept nogil:
        cdef Core* core = self._core
        cdef Id wanted
        memcpy(&wanted, hold, 16)
        cdef uint32_t ref = find_hold(core, &wanted)
        return hold_at(core, ref) if ref else NULL

    cdef const Attempt* attempt_of(self, const unsigned char* key) noexcept nogil:
        cdef Core* core = self._core
        cdef Id wanted
        memcpy(&wanted, key, 16)
        cdef uint32_t ref = index_find(
            &core.attempt_index, &core.attempts, &wanted, id_mix(&wanted)
        )
        return attempt_at(core, ref) if ref else NULL

    cdef int64_t lock_ends_s(self, const unsigned char* key) noexcept nogil:
        cdef const Attempt* a = self.attempt_of(key)
        return a.locked_until_s if a != NULL else 0

    cdef int64_t step_of(self, const unsigned char* key) noexcept nogil:
        cdef const Attempt* a = self.attempt_of(key)
        return a.last_step if a != NULL else -1

    def balance(self, bytes id not None):
        """Return the `Balance` of an account, or None when there is none."""
        cdef Core* core = self._core
        cdef Id wanted
        id_from(id, &wanted)
        cdef uint32_t ref = find_account(core, &wanted)
        return balance_of(core, ref) if ref else None

    def hold(self, bytes hold not None):
        """Return the `HoldView` of a hold or tombstone, or None when there is none."""
        cdef Core* core = self._core
        cdef Id wanted
        id_from(hold, &wanted)
        cdef uint32_t ref = find_hold(core, &wanted)
        return view_of(core, ref) if ref else None

    def usage(self, bytes id not None, str side not None, str window not None, int32_t day):
        """Return (amount, count) counted on that side of an account in the window holding `day`;
        (0, 0) where nothing is, or no longer, kept."""
        cdef Core* core = self._core
        cdef Id wanted
        cdef int at = _WINDOWS[window]
        cdef int which = _SIDES[side]
        cdef UsageSide* u
        id_from(id, &wanted)
        cdef uint32_t ref = find_account(core, &wanted)
        cdef int32_t period = period_of(at, day)
        if ref == 0 or cold_at(core, ref).usage == 0:
            return 0, 0
        u = &usage_at(core, cold_at(core, ref).usage).side[which]
        if u.current[at].period == period:
            return u.current[at].amount, u.current[at].count
        if u.previous[at].period == period:
            return u.previous[at].amount, u.previous[at].count
        return 0, 0

    def locked_until(self, bytes key not None):
        """Return the second a key's lock ends; 0 = not locked ever, UNTIL_UNLOCKED = for good."""
        return self.lock_ends_s(id_of(key))

    def last_step(self, bytes key not None):
        """Return the last accepted one-time-code step of a key, or None."""
        cdef int64_t step = self.step_of(id_of(key))
        return None if step < 0 else step

    def attempts(self, bytes key not None):
        """Return (count in the window, count in a row) of wrong codes of a key."""
        cdef const Attempt* a = self.attempt_of(id_of(key))
        if a == NULL:
            return 0, 0
        return a.count, a.row

    def totals(self):
        """Return {ledger: (debits_pending, debits_posted, credits_pending, credits_posted)}."""
        cdef Core* core = self._core
        cdef Book* b
        cdef uint32_t i
        out = {}
        for i in range(core.book_count):
            b = &core.books[i]
            out[b.ledger] = (
                wide(b.debits_pending), wide(b.debits_posted),
                wide(b.credits_pending), wide(b.credits_posted),
            )
        return out

    def counts(self):
        """Return how many entries each table holds, and the bytes in use by all of them."""
        cdef Core* core = self._core
        cdef size_t used = (
            core.accounts.top * (sizeof(Account) + sizeof(Cold))
            + core.usages.top * sizeof(Usage) + core.holds.top * sizeof(Hold)
            + core.keys.top * sizeof(Key) + core.attempts.top * sizeof(Attempt)
            + core.forced.top * sizeof(Forced) + index_bytes(&core.account_index)
            + index_bytes(&core.hold_index) + index_bytes(&core.key_index)
            + index_bytes(&core.attempt_index)
        )
        return {
            "accounts": core.accounts.live,
            "holds_open": core.holds.live - core.closed_count,
            "holds": core.holds.live,
            "keys": core.keys.live,
            "attempts": core.attempts.live,
            "forced": core.forced.live,
            "bytes": used,
        }

    def forced(self):
        """Return every forced posting as (hold id or b"", debit id, amount, time_ns), in order."""
        cdef Core* core = self._core
        cdef uint32_t ref
        cdef Forced* f
        out = []
        for ref in range(1, core.forced.top):
            f = <Forced*> core.forced.base + ref
            out.append((
                id_bytes(&f.hold) if f.hold.lo or f.hold.hi else b"",
                id_bytes(&f.debit), f.amount, f.time_ns,
            ))
        return out

    def accounts(self):
        """Yield (id, Balance) of every account, in the order they were made."""
        cdef Core* core = self._core
        cdef uint32_t ref
        for ref in range(1, core.accounts.top):
            yield id_bytes(&account_at(core, ref).id), balance_of(core, ref)

    def open_holds(self):
        """Yield (hold id, HoldView) of every open hold."""
        cdef Core* core = self._core
        cdef uint32_t ref
        for ref in range(1, core.holds.top):
            if hold_at(core, ref).state == OPEN:
                yield id_bytes(&hold_at(core, ref).id), view_of(core, ref)

    def digest(self):
        """Return the 64-bit digest of the whole state: equal states, equal digests. Kept up by
        every change; an error that keeps it has a chance of about 2**-60."""
        cdef Core* core = self._core
        return core.digest

    @property
    def horizon_ns(self):
        """Keys made before this are unknown for good: the newest `forget`."""
        cdef Core* core = self._core
        return core.horizon_ns

    def check(self):
        """Recompute every invariant from scratch; return what is broken, one text each; [] = sound.

        Sums of ledgers, pending amounts from open holds, available, links, indexes, the digest.
        Walks everything; needs 16 bytes an account meanwhile.
        """
        cdef Core* core = self._core
        return check_all(core)

    def dump(self):
        """Yield the whole state in chunks of at most 1 MiB, for `load`.

        Raises RuntimeError where the ledger changes while this runs.
        """
        cdef Core* core = self._core
        cdef uint64_t changes = core.changes
        cdef Place place
        place.section = place.ref = 0
        while True:
            part = dump_next(core, &place)
            if part is None:
                return
            yield part
            if core.changes != changes:
                raise RuntimeError("the ledger changed while it was dumped")

    def load(self, chunks):
        """Take the state of a `dump` into this empty ledger.

        Raises ValueError for data that is not a whole and sound dump, or does not fit the sizes of
        this ledger, which is then empty again.
        """
        cdef Core* core = self._core
        if core.changes:
            raise ValueError("only a new ledger can be loaded")
        load_all(core, iter(chunks))
        core.changes = 1
