"""What other native modules may use of `_lanes`: connections that are read and written natively.

A kind of connection is a subclass of `Lane`: it says how its frames are taken, decided and sealed.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from core_ext._counters cimport Histogram
from core_ext._frames cimport Channel
from core_ext._journal cimport Journal
from core_ext._payload cimport Request, Told
from core_ext._straight cimport Straight
from core_ext._ticket cimport Ticket

cdef struct Output:               # frames of one connection that are about to be written
    unsigned char* data
    Py_ssize_t capacity
    Py_ssize_t n

cdef struct Held:                 # an answer that waits for its decision to be durable
    uint64_t seq
    int64_t at_ns
    void* lane                    # one reference is ours
    Py_ssize_t n                  # of its payload; payloads lie in the order of the queue

cdef enum Taken:                  # what became of what a lane holds
    ALL = 0
    LEFT = 1                      # `left` is for Python
    FULL = 2                      # the step is; there may be more for the next one

cdef class Lanes

cdef class Lane

cdef class TerminalLane(Lane)

cdef class Forwarder:             # takes requests whose platform is another process
    cdef public bint open

    cdef bint forward(
        self, TerminalLane lane, const Request* r, bint json, int64_t now_ns, int64_t mono_ns
    ) except -1

cdef class Lane:
    cdef readonly object owner
    cdef public int fd
    cdef public int in_flight
    cdef public double heard_s
    cdef public bint direct
    cdef public bint attended
    cdef public bint reports
    cdef Output _out
    cdef int _answered
    cdef bint _listed             # among those that the release under way writes for
    cdef bint _ripe               # has something to write that waits for nothing

    # What a kind of connection says. `push`: bytes that were read; False, and nothing is taken,
    # where Python should have them. `work`: decide what is held, as much as `room` says. `left`:
    # what `work` left to Python. `surrender`: all that is held, for Python.
    cdef bint usable(self) noexcept
    cdef bint push(self, const unsigned char* p, Py_ssize_t n) except -1
    cdef int work(self, Lanes lanes, int64_t now_ns, int64_t mono_ns, int* room) except -1
    cdef object left(self)
    cdef object surrender(self)
    cdef int seal(self, const unsigned char* payload, Py_ssize_t n) except -1
    cdef int refill(self) except -1

    cdef unsigned char* extend(self, Py_ssize_t n) except NULL

cdef class TerminalLane(Lane):
    cdef Channel _channel
    cdef int _in_flight_max
    cdef unsigned char _terminal[8]
    cdef bint _named
    cdef bint _json               # what its session speaks

    cdef bint _decide(
        self, Straight straight, const Request* r, int64_t now_ns, unsigned char* texts, Told* told,
        Ticket* ticket,
    ) except -1
    cdef Py_ssize_t _echo(self, const Request* r, bint json, unsigned char* out) noexcept
    cdef Py_ssize_t _encode(
        self, const Told* told, const Ticket* ticket, bint json, unsigned char* out
    ) except -1

cdef class Lanes:
    cdef readonly uint64_t taken
    cdef readonly uint64_t heard
    cdef readonly Straight straight
    cdef readonly Forwarder forwarder
    cdef int64_t mono_ns          # of the release under way
    cdef int64_t wall_ns
    cdef list _ripe
    cdef Journal _journal
    cdef Histogram _latency
    cdef int _epoll
    cdef void* _events
    cdef int _ready
    cdef int _next
    cdef list _sources            # by socket; None: it is not attended to
    cdef list _lanes
    cdef double* _look            # when to name it in `due`
    cdef Lane _current            # has more for the next step
    cdef object _current_source
    cdef unsigned char* _scratch
    cdef Held* _held
    cdef Py_ssize_t _held_first
    cdef Py_ssize_t _held_count
    cdef Py_ssize_t _held_capacity
    cdef unsigned char* _payloads
    cdef Py_ssize_t _payload_first
    cdef Py_ssize_t _payload_end
    cdef Py_ssize_t _payload_capacity

    cdef int hold(
        self, Lane lane, const unsigned char* payload, Py_ssize_t n, int64_t mono_ns
    ) except -1
    cdef int keep(
        self, Lane lane, const unsigned char* payload, Py_ssize_t n, int64_t mono_ns
    ) except -1
    cdef int ripen(self, Lane lane) except -1
    cdef int _list(self, Lane lane, list lanes) except -1
    cdef int _reach(self, int fd) except -1
    cdef int _make_room(self, Py_ssize_t n) except -1
    cdef void _drop_first(self) noexcept
    cdef int _write(self, Lane lane, list left) except -1
