"""Commands for a ledger, put together by Python or by native code."""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core_ext._ledger_state cimport *

from core_ext.results import Outcome, Result

_WINDOW_NAMES = ("", "operation", "day", "night", "week", "month")
_SIDES = {"debit": 0, "credit": 1}
_WINDOWS = {"day": DAY, "night": NIGHT, "week": WEEK, "month": MONTH}
_RESULTS = {int(result): result for result in Result}


cdef inline int declare(Declared* d, bytes key, uint64_t digest, int64_t key_ns) except -1:
    d.key = NULL
    if key is not None:
        d.key = id_of(key)
    d.digest = digest
    d.key_ns = key_ns
    return 0


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
        self.restart()
        if self._profiles:
            self._profiles = []

    cdef Command* _begin(self, int op) except NULL:
        """Return the next command, its head zeroed; `_declare` or `_end_alone` make it count."""
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
        cdef Declared declared
        declare(&declared, key, digest, key_ns)
        return self._declare(c, &declared, linked)

    cdef int _end_alone(self, Command* c) except -1:
        if self._run:
            raise ValueError("this command cannot be part of a chain")
        self._count += 1
        return 0

    # -- the same from native code: ids and keys are 16 bytes each, and are copied

    cdef void restart(self) noexcept:
        self._count = 0
        self._run = 0

    cdef const Command* command(self, Py_ssize_t index) noexcept nogil:
        return &self._commands[index]

    cdef int _declare(self, Command* c, const Declared* declared, bint linked) except -1:
        """Close a command that may bring a key and be part of a chain."""
        cdef int64_t key_ns = 0
        if linked and self._run + 1 >= CHAIN_MAX:
            raise ValueError("a chain has at most 16 commands")
        if declared != NULL:
            key_ns = declared.key_ns
            if key_ns < 0:
                raise ValueError("key_ns must not be negative")
            if declared.key != NULL:
                memcpy(&c.key, declared.key, 16)
                c.has_key = 1
                c.digest = declared.digest
        c.key_ns = key_ns
        c.linked = linked
        self._run = self._run + 1 if linked else 0
        self._count += 1
        return 0

    cdef int add_transfer(
        self,
        const unsigned char* debit,
        const unsigned char* credit,
        int64_t amount,
        uint16_t code,
        bint forced,
        const Declared* declared,
        bint linked,
    ) except -1:
        cdef Command* c = self._begin(OP_TRANSFER)
        memcpy(&c.debit, debit, 16)
        memcpy(&c.credit, credit, 16)
        c.amount = amount
        c.code = code
        c.options = C_FORCED if forced else 0
        return self._declare(c, declared, linked)

    cdef int add_hold(
        self,
        const unsigned char* hold,
        const unsigned char* debit,
        const unsigned char* credit,
        int64_t amount,
        const HoldTerms* terms,
        const Declared* declared,
        bint linked,
    ) except -1:
        cdef Command* c
        cdef uint32_t i
        if not 0 <= terms.day <= 100_000 or terms.policy > POLICY_AUTO or terms.deadline_ns < 0:
            raise ValueError("day is 0..100000, policy 0..2, deadline_ns not negative")
        if terms.policy == POLICY_AUTO and terms.expires_after_s == 0:
            raise ValueError("AUTO_AFTER needs expires_after_s")
        if terms.meter_count > 4:
            raise ValueError("at most 4 meters")
        if terms.options & ~(H_NIGHT | H_METERED | H_METER_CREDIT):
            raise ValueError("unknown options")
        c = self._begin(OP_HOLD)
        memcpy(&c.id, hold, 16)
        memcpy(&c.debit, debit, 16)
        memcpy(&c.credit, credit, 16)
        for i in range(terms.meter_count):
            memcpy(&c.meters[i], terms.meters[i], 16)
        c.meter_count = terms.meter_count
        c.amount = amount
        c.day = terms.day
        c.code = terms.code
        c.policy = terms.policy
        c.seconds = terms.expires_after_s
        c.deadline_ns = terms.deadline_ns
        c.options = terms.options
        return self._declare(c, declared, linked)

    cdef int add_capture(
        self,
        const unsigned char* hold,
        int64_t amount,
        const CaptureTerms* terms,
        const Declared* declared,
        bint linked,
    ) except -1:
        cdef Command* c
        if terms.tolerance < 0 or (terms.debit == NULL) != (terms.credit == NULL):
            raise ValueError("tolerance must not be negative; debit and credit come together")
        c = self._begin(OP_CAPTURE)
        memcpy(&c.id, hold, 16)
        if terms.debit != NULL:
            memcpy(&c.debit, terms.debit, 16)
            memcpy(&c.credit, terms.credit, 16)
            c.options |= C_ACCOUNTS
        c.amount = amount
        c.low = terms.tolerance
        c.options |= (C_FORCED if terms.forced else 0) | (0 if terms.partial else C_FINAL)
        return self._declare(c, declared, linked)

    cdef int add_release(
        self, const unsigned char* hold, bint tombstone, const Declared* declared, bint linked
    ) except -1:
        cdef Command* c = self._begin(OP_RELEASE)
        memcpy(&c.id, hold, 16)
        c.options = C_TOMBSTONE if tombstone else 0
        return self._declare(c, declared, linked)

    cdef int add_annul(
        self, const unsigned char* hold, const Declared* declared, bint linked
    ) except -1:
        cdef Command* c = self._begin(OP_ANNUL)
        memcpy(&c.id, hold, 16)
        return self._declare(c, declared, linked)

    cdef int add_step(self, const unsigned char* key, int64_t step) except -1:
        cdef Command* c
        if step < 0:
            raise ValueError("a step is not negative")
        c = self._begin(OP_STEP)
        memcpy(&c.id, key, 16)
        c.amount = step
        return self._end_alone(c)

    cdef int add_attempt(
        self,
        const unsigned char* key,
        uint32_t limit,
        uint32_t window_s,
        uint32_t lock_s,
        uint32_t row_limit,
    ) except -1:
        cdef Command* c = self._begin(OP_ATTEMPT)
        memcpy(&c.id, key, 16)
        c.number = limit
        c.ledger = row_limit
        c.seconds = window_s
        c.low = lock_s
        return self._end_alone(c)

    cdef int add_clear(self, const unsigned char* key, bint row) except -1:
        cdef Command* c = self._begin(OP_CLEAR)
        memcpy(&c.id, key, 16)
        c.options = C_ROW if row else 0
        return self._end_alone(c)

    cdef int add_account(
        self, const unsigned char* id, uint32_t ledger, uint16_t code, uint16_t profile
    ) except -1:
        cdef Command* c = self._begin(OP_ACCOUNT)
        memcpy(&c.id, id, 16)
        c.ledger = ledger
        c.code = code
        c.flags = 0
        c.amount = 0
        c.profile = profile
        return self._declare(c, NULL, False)

    # -- from Python

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
        cdef Declared declared
        declare(&declared, key, digest, key_ns)
        self.add_transfer(id_of(debit), id_of(credit), amount, code, forced, &declared, linked)

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
        cdef HoldTerms terms
        cdef Declared declared
        declare(&declared, key, digest, key_ns)
        if not 0 <= policy <= 2:
            raise ValueError("policy is 0..2")
        terms.day = day
        terms.code = code
        terms.policy = policy
        terms.expires_after_s = expires_after_s
        terms.deadline_ns = deadline_ns
        terms.options = ((H_NIGHT if night else 0) | (H_METERED if metered else 0)
                         | (H_METER_CREDIT if meter_credit else 0))
        terms.meter_count = 0
        if meters:
            meters = tuple(meters)  # keeps the bytes that `terms` points into
            for meter in meters:
                if terms.meter_count == 4:
                    raise ValueError("at most 4 meters")
                terms.meters[terms.meter_count] = id_of(meter)
                terms.meter_count += 1
        self.add_hold(
            id_of(hold), id_of(debit), id_of(credit), amount, &terms, &declared, linked
        )

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
        cdef CaptureTerms terms
        cdef Declared declared
        declare(&declared, key, digest, key_ns)
        terms.debit = terms.credit = NULL
        if debit is not None:
            terms.debit = id_of(debit)
        if credit is not None:
            terms.credit = id_of(credit)
        terms.tolerance = tolerance
        terms.partial = not final
        terms.forced = forced
        self.add_capture(id_of(hold), amount, &terms, &declared, linked)

    def release(self, bytes hold not None, *, bint tombstone=True, bint linked=False,
                bytes key=None, uint64_t digest=0, int64_t key_ns=0):
        """Give back what is held. Unknown hold: `original_unknown` and a tombstone that refuses a
        later hold of that id, or `hold_unknown` without tombstone."""
        cdef Declared declared
        declare(&declared, key, digest, key_ns)
        self.add_release(id_of(hold), tombstone, &declared, linked)

    def annul(self, bytes hold not None, *, bint linked=False, bytes key=None, uint64_t digest=0,
              int64_t key_ns=0):
        """Take an operation back: release what is open, compensate what was captured. Limits are
        given back to the original date. `funds_short` where the credited side spent the money."""
        cdef Declared declared
        declare(&declared, key, digest, key_ns)
        self.add_annul(id_of(hold), &declared, linked)

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
        self.add_step(id_of(key), step)

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
        self.add_attempt(id_of(key), limit, window_s, lock_s, row_limit)

    def clear_attempts(self, bytes key not None, *, bint row=True):
        """Set the count to 0; with row also the count in a row, and lift any lock."""
        self.add_clear(id_of(key), row)

    def forget(self, int64_t before_ns):
        """Drop keys, closed holds and idle attempt counters older than that, at most 4096 of each
        (`partial`: more are left). Open holds, their keys, and locked counters stay. Keys older
        than the newest before_ns answer `key_expired` from now on."""
        if before_ns < 0:
            raise ValueError("before_ns must not be negative")
        cdef Command* c = self._begin(OP_FORGET)
        c.amount = before_ns
        self._end_alone(c)
