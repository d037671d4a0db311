"""What other native modules may use of `_deposit`: sicoop's rules for deposits."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint16_t, uint64_t

from core_ext._ledger cimport Batch, HoldTerms, Id, Ledger
from core_ext._operation cimport Asked

cdef enum:
    SCOPES = 4             # terminal, cashier, branch, depositor: those that meters count
    NETWORK_SCOPE = 4      # counted on the network's position
    DECLARATIONS_MAX = 16
    METERS_MAX = 4

cdef struct Declaration:   # a threshold
    int scope
    int side
    int window
    int64_t threshold

cdef struct Meter:         # an account that counts one subject
    Id id
    bint fresh             # it is to be made
    uint16_t profile

cdef struct Meters:
    Meter at[METERS_MAX]
    int count
    int fresh

cdef class DepositRules:
    cdef Ledger _ledger
    cdef Py_buffer _told       # by number of network: highest percentage of its cap ever told
    cdef bint _has_told
    cdef bint _open
    cdef bint _counted[SCOPES]
    cdef uint16_t _profiles[SCOPES]
    cdef Declaration _declarations[DECLARATIONS_MAX]
    cdef int _declaration_count
    cdef bint _structuring
    cdef int _percent
    cdef int _count

    cdef int judge(self, const Asked* a, Meters* meters) noexcept
    cdef bint _cap_is_quiet(self, const Asked* a) noexcept
    cdef bint _find_meters(self, const Asked* a, Meters* meters) noexcept
    cdef bint _undeclared(self, const Asked* a) noexcept
    cdef int add_meters(self, const Meters* meters, Batch batch) except -1
    cdef int set_terms(self, const Meters* meters, bint known_only, HoldTerms* terms) noexcept
