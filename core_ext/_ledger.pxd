"""What other native modules may use of the ledger, and the names that come with it."""

from libc.stdint cimport int64_t, uint32_t

from core_ext._batch cimport Batch, CaptureTerms, Declared, HoldTerms
from core_ext._ledger_state cimport (
    Account, Attempt, Command, Core, Hold, Id, ACCOUNT_CLOSED, ACCOUNT_FROZEN_CREDIT,
    ACCOUNT_FROZEN_DEBIT, ACCOUNT_FROZEN_HOLD, ACCOUNT_UNKNOWN, ALREADY_REVERSED,
    AMOUNT_NOT_POSITIVE, AMOUNT_OVER_RANGE, ANNULLED, A_CAP, A_CLOSED, A_CREDITS, A_DEBITS,
    A_EXPOSED, A_FLOOR, A_FROZEN_CREDIT, A_FROZEN_DEBIT, A_FROZEN_HOLD, A_POSITION, A_PUBLIC,
    BALANCE_CAP_REACHED, CAPTURED, CHAIN_FAILED, CREDIT_LIMIT_REACHED, CURRENCY_DIFFERS, DONE,
    EXPIRED, FREE, FUNDS_SHORT, HOLD_CAPTURED, HOLD_EXPIRED, HOLD_RELEASED, HOLD_UNKNOWN,
    H_FORCED, H_INCREMENTED, H_METERED, H_METER_CREDIT, H_NIGHT, H_QUEUED, JOURNAL_FULL,
    KEY_EXPIRED, LIMIT_AMOUNT, LIMIT_COUNT, LIQUIDITY_SHORT, OPEN, ORIGINAL_UNKNOWN, OVERLOADED,
    OVER_HOLD, PARTIAL, POLICY_ASK, POLICY_AUTO, POLICY_NEVER, RELEASED, REPEATED,
    REPEATED_WITH_DIFFERENCE, SAME_ACCOUNT, TOMBSTONE, TOMBSTONED, TOO_LATE, WOULD_OVERFLOW,
)
from core_ext._sink cimport Replica, Sink

cdef class Ledger(Replica):
    cdef Core* _core
    cdef Sink _sink

    # For native code. Ids are 16 bytes. What is pointed to is good until the next change.
    cdef int apply_batch(self, Batch batch, int64_t now_ns, unsigned char* results) except -1
    cdef bint has_room(self, uint32_t holds, uint32_t keys, uint32_t attempts) noexcept nogil
    cdef int would_hold(self, Batch batch, Py_ssize_t index, int64_t now_ns) noexcept nogil
    cdef const Account* account_of(self, const unsigned char* id) noexcept nogil  # NULL: unknown
    cdef bint balance_of(
        self, const unsigned char* id, int64_t* available, int64_t* posted
    ) noexcept nogil
    cdef const Hold* hold_of(self, const unsigned char* hold) noexcept nogil
    cdef const Attempt* attempt_of(self, const unsigned char* key) noexcept nogil
    cdef int64_t lock_ends_s(self, const unsigned char* key) noexcept nogil  # 0: not locked ever
    cdef int64_t step_of(self, const unsigned char* key) noexcept nogil  # last accepted; -1: none

