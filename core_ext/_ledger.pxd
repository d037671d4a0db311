"""Layouts of the ledger: what is in memory, and in a batch. All tables refer to each other by
32-bit references (index into an arena, 0 = none), never by pointer."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    typedef __int128 tr_i128;
    """
    ctypedef long long tr_i128  # really 128 bits: never let Cython convert one to Python

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

cdef struct Arena:
    char* base
    size_t stride
    size_t bytes
    uint32_t top  # first reference never used yet
    uint32_t free  # last given back
    uint32_t live
    uint32_t most

cdef struct Index:
    uint64_t* slots
    size_t bytes
    uint32_t bits
    uint32_t used

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
