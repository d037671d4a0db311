"""What other native modules may use of `_desk`."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from core_ext._iso8583 cimport Index, Layout
from core_ext._issuer cimport DecisionAsk, HoldAsk
from core_ext._lanes cimport Lane, Lanes
from core_ext._mac cimport MacKey, SeedVault
from core_ext._pack cimport Text
from core_ext._siphash cimport SipKey
from core_ext._straight cimport Straight

cdef struct Number:            # of a currency
    unsigned char digits[3]
    unsigned char letters[3]

cdef class HostLane(Lane):
    cdef public bint ready
    cdef readonly uint64_t taken
    cdef Straight _straight
    cdef Layout _layout
    cdef MacKey _key
    cdef SeedVault _opener
    cdef SipKey _fingerprint
    cdef bytes _link
    cdef int64_t _tolerance_ns
    cdef int _in_flight_max
    cdef Number _currencies[64]
    cdef int _currency_count
    cdef unsigned char* _data
    cdef Py_ssize_t _start
    cdef Py_ssize_t _stop
    cdef bint _all_left
    cdef bint _retired
    cdef bytes _data_key

    cdef Py_ssize_t _whole(self) noexcept
    cdef Py_ssize_t _decide(
        self, const unsigned char* p, Py_ssize_t n, int64_t now_ns, unsigned char* out
    ) except -1
    cdef Py_ssize_t _hold(self, const Index* index, int64_t now_ns, unsigned char* out) except -1
    cdef Py_ssize_t _conclude(
        self, const Index* index, int64_t now_ns, unsigned char* out
    ) except -1
    cdef Text _letters(self, Text number) noexcept
    cdef bint _read_decision(self, const Index* index, int64_t now_ns, DecisionAsk* m) noexcept
    cdef uint64_t _decision_declared(self, const Index* index, bint captures) noexcept
    cdef bint _verified(self, const Index* index) except -1
    cdef bint _read(
        self, const Index* index, int64_t now_ns, HoldAsk* m, unsigned char* texts
    ) except -1
    cdef bint _read_tags(
        self, const Index* index, HoldAsk* m, unsigned char* texts, Text* cashier
    ) except -1
    cdef uint64_t _declared(self, const Index* index, const HoldAsk* m, Text cashier) noexcept
    cdef Py_ssize_t _answer(
        self, const Index* index, const unsigned char* authorization, bint dated,
        unsigned char* out,
    ) except -1
