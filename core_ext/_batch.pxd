"""Commands for a ledger, as Python and native code put them together."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from core_ext._ledger_state cimport Command

cdef struct HoldTerms:  # of Batch.add_hold; see Batch.hold for their meaning
    int32_t day
    uint16_t code
    uint8_t policy  # NEVER_AUTO 0, ASK_NETWORK 1, AUTO_AFTER 2
    uint8_t options  # NIGHT | METERED | METER_CREDIT
    uint32_t expires_after_s
    uint32_t meter_count
    int64_t deadline_ns
    const unsigned char* meters[4]

cdef struct CaptureTerms:  # of Batch.add_capture; all zero: the rest, final
    const unsigned char* debit  # both or neither
    const unsigned char* credit
    int64_t tolerance
    uint8_t partial  # the rest stays held
    uint8_t forced

cdef struct Declared:  # how the sender names a command; NULL for one without key and time
    const unsigned char* key  # 16 bytes, or NULL
    uint64_t digest
    int64_t key_ns

cdef class Batch:
    cdef Command* _commands
    cdef Py_ssize_t _count
    cdef Py_ssize_t _capacity
    cdef list _profiles
    cdef int _run  # commands in the chain now open

    # For native code. Ids and keys are 16 bytes, read before the call returns; ValueError as from
    # the methods of the same names. `linked`: with the next command, as there.
    cdef void restart(self) noexcept  # clear()
    cdef const Command* command(self, Py_ssize_t index) noexcept nogil  # result, first, decided_ns
    cdef int add_transfer(
        self, const unsigned char* debit, const unsigned char* credit, int64_t amount,
        uint16_t code, bint forced, const Declared* declared, bint linked
    ) except -1
    cdef int add_hold(
        self, const unsigned char* hold, const unsigned char* debit, const unsigned char* credit,
        int64_t amount, const HoldTerms* terms, const Declared* declared, bint linked
    ) except -1
    cdef int add_capture(
        self, const unsigned char* hold, int64_t amount, const CaptureTerms* terms,
        const Declared* declared, bint linked
    ) except -1
    cdef int add_release(
        self, const unsigned char* hold, bint tombstone, const Declared* declared, bint linked
    ) except -1
    cdef int add_annul(
        self, const unsigned char* hold, const Declared* declared, bint linked
    ) except -1
    cdef int add_step(self, const unsigned char* key, int64_t step) except -1
    cdef int add_attempt(
        self, const unsigned char* key, uint32_t limit, uint32_t window_s, uint32_t lock_s,
        uint32_t row_limit
    ) except -1
    cdef int add_clear(self, const unsigned char* key, bint row) except -1
    cdef int add_account(
        self, const unsigned char* id, uint32_t ledger, uint16_t code, uint16_t profile
    ) except -1  # without flags and credit

    cdef int _declare(self, Command* c, const Declared* declared, bint linked) except -1
    cdef Command* _begin(self, int op) except NULL
    cdef int _end(
        self, Command* c, bint linked, bytes key, uint64_t digest, int64_t key_ns
    ) except -1
    cdef int _end_alone(self, Command* c) except -1
    cdef int _flags(
        self, bytes id, int flags, bint set, bint linked, bytes key, uint64_t digest,
        int64_t key_ns
    ) except -1
