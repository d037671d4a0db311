"""Native load client and bare echo server: what a user of the switch would get, and the ceiling.

`Load` drives connections that are already signed on. `run` is a closed loop: at most `depth`
requests of a connection are unanswered at any moment, and an answer is followed at once by the next
request. `run_open` is an open one: requests are due at instants fixed beforehand, and each latency
counts from the instant when its request was due, so an answer that keeps later requests waiting
shows in all of them.

Frames have two bytes of length. Those of the session protocol then hold a payload and eight bytes
of MAC over direction, counter and payload; those of the `ceibo` dialect of ISO 8583 hold a message
with its MAC at the end, made beforehand. Nothing here takes the GIL but a look at pending signals
every tenth of a second.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.math cimport log
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from posix.time cimport CLOCK_MONOTONIC, timespec
from posix.unistd cimport close

from bench.load._sockets cimport (
    CLOCK_THREAD_CPUTIME_ID, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR,
    EPOLLHUP, EPOLLIN, EPOLLOUT, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, TCP_NODELAY, accept4, after, clock_ns, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait, memmem, number_after, recv, send, setsockopt,
)
from core_ext._counters cimport Histogram
from core_ext._cursor cimport (
    Cursor, Pen, cursor, left, pen, put, put_u16be, reserve, room, take, take_exactly, take_u8,
    take_u16be,
)
from core_ext._mac cimport MacKey

cdef extern from "<sys/timerfd.h>" nogil:
    enum: TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* value, itimerspec* old)

cdef enum:
    EVENTS_MAX = 512          # taken from epoll at a time
    TAG_BYTES = 8
    HEAD_BYTES = 2
    DEPTH_MAX = 1024
    FRAME_BYTES_MAX = 65535
    CODES = 1296              # two characters of 0-9 A-Z
    SIGNALS_EVERY_NS = 100000000
    ECHO_BYTES = 65536
    DIGEST_BYTES_MAX = 64     # of any MAC
    DIGITS_MAX = 6            # of a trace that we give
    TRACE_MAX = 999999
    SLOT_NS = 100000000       # of the time line
    ARRIVALS_MAX = 50000000
    OPEN_LEAD_NS = 2000000    # from the call to the first instant

cdef uint64_t SPREAD = <uint64_t> 0x9E3779B97F4A7C15
cdef uint64_t NO_TRACE = <uint64_t> 0xFFFFFFFFFFFFFFFF


cdef struct Request:
    const char* payload
    Py_ssize_t payload_bytes
    uint64_t trace            # 0: the next number of its connection
    Py_ssize_t trace_at       # where the digit 0 of `"trace":0` stands, or -1
    Py_ssize_t original_at    # the same of `"original":0`
    bint moves_money          # a cash_out or a deposit: later requests may name it


cdef struct Waiting:
    uint64_t trace
    uint64_t since_ns         # when it was sent, or in an open loop when it was due
    bint moves_money


cdef struct Slot:
    uint64_t answers
    uint64_t worst_ns


cdef struct Connection:
    int fd                    # -1 once the connection is lost
    uint64_t sent             # counter of the next frame out
    uint64_t received         # counter of the next frame in
    void* key                 # borrowed MacKey, kept alive by Load
    unsigned char* inbound    # frame_bytes_max + 2, twice
    Py_ssize_t inbound_bytes
    unsigned char* outbound   # depth frames
    Py_ssize_t out_from
    Py_ssize_t out_to
    Waiting* waiting          # depth entries, the first in_flight of them used
    int in_flight
    bint awaits_room          # EPOLLOUT is armed
    uint64_t trace            # the last number given to a request that leaves it to us
    uint64_t newest           # the last cash_out or deposit that was approved
    Py_ssize_t due            # requests of an open loop that are due and not sent
    Py_ssize_t arrival        # its next one, as an index of all arrivals


cdef uint64_t trace_of(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """The number behind `"trace":`, or NO_TRACE."""
    cdef uint64_t trace
    return trace if number_after(p, n, b'"trace":', 8, &trace) else NO_TRACE


cdef Py_ssize_t zero_at(const unsigned char* p, Py_ssize_t n, const char* name, Py_ssize_t m
                        ) noexcept nogil:
    """Where the 0 of a field stands that is 0, or -1; `name` as it is before the number."""
    cdef Cursor c = after(p, n, name, m)
    cdef Py_ssize_t at = n - left(&c)
    if take_u8(&c) != 0x30 or c.short:
        return -1
    if 0x30 <= take_u8(&c) <= 0x39:
        return -1
    return at


cdef inline int decimal(uint64_t value, unsigned char* out) noexcept nogil:
    """Write a number of at most DIGITS_MAX digits; how many."""
    cdef unsigned char reversed[DIGITS_MAX]
    cdef int n = 0
    cdef int i
    while n == 0 or (value and n < DIGITS_MAX):
        reversed[n] = <unsigned char> (0x30 + value % 10)
        value //= 10
        n += 1
    for i in range(n):
        out[i] = reversed[n - 1 - i]
    return n


cdef Py_ssize_t written(const Request* r, uint64_t trace, uint64_t original, unsigned char* out
                        ) noexcept nogil:
    """Write a payload with its numbers filled in; `out` has DIGITS_MAX bytes more than it for
    each. Returns its bytes."""
    cdef Py_ssize_t done = 0
    cdef Py_ssize_t at, n = 0
    cdef int i
    for i in range(2):
        # Whichever stands first.
        at = min(r.trace_at, r.original_at) if i == 0 else max(r.trace_at, r.original_at)
        if at < 0:
            continue
        memcpy(out + n, r.payload + done, at - done)
        n += at - done
        n += decimal(trace if at == r.trace_at else original, out + n)
        done = at + 1
    memcpy(out + n, r.payload + done, r.payload_bytes - done)
    return n + r.payload_bytes - done


cdef inline int base36(unsigned char c) noexcept nogil:
    if 0x30 <= c <= 0x39:
        return c - 0x30
    if 0x41 <= c <= 0x5A:
        return c - 0x41 + 10
    return -1


cdef int code_of(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """The two characters behind `"code":` as a number below CODES, or -1."""
    cdef Cursor c = after(p, n, b'"code":"', 8)
    cdef int high = base36(take_u8(&c))
    cdef int low = base36(take_u8(&c))
    if c.short or high < 0 or low < 0 or not take_exactly(&c, b'"', 1):
        return -1
    return high * 36 + low


# ---- ISO 8583, `ceibo` dialect: as much of it as the answers to holds need

cdef enum:
    ISO_HEAD_BYTES = 12       # MTI, one binary bitmap
    STAN = 11
    NETWORK = 32              # the one element before 39 with a length of its own
    RESPONSE = 39
    LLVAR = -2
    ISO_ANSWER_DIGIT = 0x31   # third of the MTI: 0110 answers 0100

# Characters of elements 2 to 38; 0: those messages do not have it.
cdef signed char* ISO_CHARS = [
    0, 6, 12, 0, 0, 10, 0, 0, 0, 6, 6, 4, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 9, 0, 9, 0,
    LLVAR, 0, 0, 0, 0, 12, 6,
]


cdef inline bint has_bit(const unsigned char* bitmap, int element) noexcept nogil:
    return bitmap[(element - 1) // 8] >> (7 - (element - 1) % 8) & 1


cdef Cursor iso_element(const unsigned char* p, Py_ssize_t n, int wanted) noexcept nogil:
    """A cursor at the value of an element up to 39; a short one where it is missing."""
    cdef Cursor c = cursor(p, n)
    cdef const unsigned char* head = take(&c, ISO_HEAD_BYTES)
    cdef int element, chars
    if head == NULL or head[4] & 0x80 or not has_bit(head + 4, wanted):
        return cursor(p, -1)
    for element in range(2, wanted):
        if not has_bit(head + 4, element):
            continue
        chars = ISO_CHARS[element - 2]
        if chars == LLVAR:
            chars = (take_u8(&c) - 0x30) * 10
            chars += take_u8(&c) - 0x30
        if chars <= 0:
            return cursor(p, -1)
        take(&c, chars)
    return c


cdef uint64_t iso_stan(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """Element 11 as a number, or NO_TRACE."""
    cdef Cursor c = iso_element(p, n, STAN)
    cdef uint64_t stan = 0
    cdef int i
    cdef unsigned char digit
    for i in range(6):
        digit = take_u8(&c)
        if c.short or not 0x30 <= digit <= 0x39:
            return NO_TRACE
        stan = stan * 10 + (digit - 0x30)
    return stan


cdef int iso_code(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """Element 39 of an answer as a number below CODES, or -1."""
    cdef Cursor c = iso_element(p, n, RESPONSE)
    cdef int high = base36(take_u8(&c))
    cdef int low = base36(take_u8(&c))
    if c.short or high < 0 or low < 0 or p[2] != ISO_ANSWER_DIGIT:
        return -1
    return high * 36 + low


cdef dict by_code(const uint64_t* counts):
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return {digits[i // 36] + digits[i % 36]: counts[i] for i in range(CODES) if counts[i]}


@cython.final
cdef class Report:
    """What one run of `Load` saw. Times are nanoseconds, latencies from send to whole answer.

    Attributes:
        latency: of all answers that belong to a request, late ones included. In an open loop it
            counts from the instant when the request was due.
        lag: open loop: how long after its instant a request was handed to the socket.
        worst_ns, worst_at_ns: the longest latency, and when that request was sent or due, from the
            start of the run.
        due: requests of an open loop until its end, sent or not.
        backlog_max: open loop: most requests that were due and could not be sent yet.
        in_time: those of them that came before the run's time was up; the rate counts only these.
        elapsed_ns: from the first send to the deadline, or to the last answer if that came first;
            of an open loop its whole time, unless all connections were lost.
        unanswered: requests without an answer when the drain time was over or the connection lost.
        unmatched: answers with a trace that nobody waits for.
        malformed: answers without a readable code.
        unasked: frames without a trace (echo, notice, error); their codes are in `complaints`.
        bad_frames, bad_macs: each of them cost its connection.
        lost: connections that ended before the run did, for whatever reason.
        exhausted: the payloads ran out before the time did.
        cpu_ns: CPU time of this client; near `elapsed_ns` the client itself was the limit.
    """

    cdef readonly Histogram latency
    cdef readonly Histogram lag
    cdef readonly uint64_t in_time, elapsed_ns, cpu_ns, worst_ns, worst_at_ns, due, backlog_max
    cdef readonly uint64_t unanswered, unmatched, malformed, unasked, bad_frames, bad_macs, lost
    cdef readonly uint64_t bytes_sent, bytes_received
    cdef readonly bint exhausted
    cdef uint64_t _codes[CODES]
    cdef uint64_t _complaints[CODES]
    cdef Slot* _slots
    cdef Py_ssize_t _slot_count

    def __cinit__(self, double seconds=0.0):
        if not 0.0 <= seconds <= 3600.0:
            raise ValueError("seconds must be in 0..3600")
        self.latency = Histogram()
        self.lag = Histogram()
        self._slot_count = <Py_ssize_t> (seconds * 1e9) // SLOT_NS + 1
        self._slots = <Slot*> calloc(self._slot_count, sizeof(Slot))
        if self._slots == NULL:
            raise MemoryError
        memset(self._codes, 0, sizeof(self._codes))
        memset(self._complaints, 0, sizeof(self._complaints))

    def __dealloc__(self):
        free(self._slots)

    cdef void put(self, uint64_t latency_ns, uint64_t at_ns) noexcept nogil:
        """Record one answer to a request of that instant, from the start of the run."""
        cdef Slot* slot = &self._slots[min(<Py_ssize_t> (at_ns // SLOT_NS), self._slot_count - 1)]
        self.latency.put(<int64_t> latency_ns)
        slot.answers += 1
        if latency_ns > slot.worst_ns:
            slot.worst_ns = latency_ns
        if latency_ns > self.worst_ns:
            self.worst_ns = latency_ns
            self.worst_at_ns = at_ns

    @property
    def timeline(self):
        """Answers and the longest latency in ns of each tenth of a second, by when its requests
        were sent or due."""
        return [(self._slots[i].answers, self._slots[i].worst_ns) for i in range(self._slot_count)]

    @property
    def rate_per_s(self):
        """Answers in time, a second."""
        return self.in_time * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0

    @property
    def errors(self):
        """Everything that went wrong and is no decline: lost, bad or missing answers."""
        return (self.unanswered + self.unmatched + self.malformed + self.bad_frames
                + self.bad_macs)

    @property
    def codes(self):
        """Answers by response code."""
        return by_code(self._codes)

    @property
    def complaints(self):
        """Codes of frames that answer no request, such as `error`."""
        return by_code(self._complaints)


@cython.final
cdef class Load:
    """Connections under load. The caller opened, signed on and will close the sockets.

    Args:
        fds: connected TCP sockets, signed on.
        keys: the session key of each.
        sent, received: counters of the next frame each sends and gets; they grow from run to run.
        depth: requests each connection may have unanswered, 1..1024.
        frame_bytes_max: the largest value of a frame's length, 9..65535.
        verify: check the MAC of each answer.
        echo: the other side is `echo_server`: answers are our own frames, with our direction and
            without a code; `received` must then equal `sent`.
        iso: payloads are whole messages of the `ceibo` dialect, their MAC made beforehand, and told
            apart by element 11; `keys` verify the answers, and the counters do not matter.

    Used by one thread at a time. Raises ValueError where the arguments do not fit together.
    """

    cdef Connection* _connections
    cdef Py_ssize_t _count
    cdef list _keys
    cdef int _depth
    cdef Py_ssize_t _frame_bytes_max
    cdef bint _verify
    cdef bint _echo
    cdef bint _iso
    # one run
    cdef int _epoll
    cdef Request* _requests
    cdef Py_ssize_t _request_count
    cdef Py_ssize_t _next
    cdef bint _repeat
    cdef bint _stopping
    cdef Py_ssize_t _out_capacity
    cdef Py_ssize_t _open
    cdef uint64_t _in_flight
    cdef uint64_t _started_ns
    cdef uint64_t _deadline_ns
    # an open run
    cdef uint64_t* _arrivals  # from the start, rising; NULL: a closed loop
    cdef Py_ssize_t _arrival_count
    cdef Py_ssize_t _arrived
    cdef Py_ssize_t _backlog
    cdef int _timer

    def __cinit__(self, fds, keys, *, sent, received, int depth=1,
                  Py_ssize_t frame_bytes_max=8192, bint verify=False, bint echo=False,
                  bint iso=False):
        self._epoll = self._timer = -1
        if not 1 <= depth <= DEPTH_MAX:
            raise ValueError("depth must be in 1..1024")
        if not TAG_BYTES < frame_bytes_max <= FRAME_BYTES_MAX:
            raise ValueError("frame_bytes_max must be in 9..65535")
        rows = list(zip(fds, keys, sent, received, strict=True))
        if not rows:
            raise ValueError("a load needs a connection")
        self._depth = depth
        self._frame_bytes_max = frame_bytes_max
        self._verify = verify
        self._echo = echo
        self._iso = iso
        self._keys = [row[1] for row in rows]
        if not all(isinstance(key, MacKey) for key in self._keys):
            raise TypeError("keys must be MacKey objects")
        self._connections = <Connection*> calloc(len(rows), sizeof(Connection))
        if self._connections == NULL:
            raise MemoryError
        self._count = len(rows)
        cdef Connection* c
        for i, (fd, key, sent_next, received_next) in enumerate(rows):
            if echo and sent_next != received_next:
                raise ValueError("an echo answers with the counters it was sent")
            c = &self._connections[i]
            c.fd = fd
            c.key = <void*> self._keys[i]
            c.sent = sent_next
            c.received = received_next
            c.inbound = <unsigned char*> calloc(1, 2 * (frame_bytes_max + HEAD_BYTES))
            c.waiting = <Waiting*> calloc(depth, sizeof(Waiting))
            if c.inbound == NULL or c.waiting == NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self._connections == NULL:
            return
        for i in range(self._count):
            free(self._connections[i].inbound)
            free(self._connections[i].outbound)
            free(self._connections[i].waiting)
        free(self._connections)

    def run(self, list payloads not None, double seconds, *, bint repeat=False,
            double drain_s=5.0):
        """Send `payloads`, whichever connection is free taking the next, for `seconds`.

        Args:
            payloads: JSON objects with a `trace` each, or ISO 8583 messages with an element 11,
                ready to be sent as they are; but `"trace":0` becomes the next number of the
                connection, 1..999999, and `"original":0` its last cash_out or deposit that was
                approved (1 while there is none).
            seconds: no request leaves later, 0 < seconds <= 3600.
            repeat: begin again at the first payload when they run out.
            drain_s: how long to wait for the last answers afterwards.

        Returns a `Report`. Raises ValueError for a payload without trace or too long for a frame,
        RuntimeError where another thread is in `run` already, OSError where epoll fails.
        """
        if not 0.0 < seconds <= 3600.0 or not 0.0 <= drain_s <= 3600.0:
            raise ValueError("seconds must be in 0..3600")
        if self._epoll >= 0:
            raise RuntimeError("this load is running already")
        cdef Report report = Report(seconds)
        try:
            self._prepare(payloads, repeat)
            with nogil:
                self._loop(report, <uint64_t> (seconds * 1e9), <uint64_t> (drain_s * 1e9))
        finally:
            self._clean_up(report)
        return report

    def run_open(self, list payloads not None, double rate_per_s, double seconds, *,
                 bint poisson=False, uint64_t seed=1, bint repeat=False, double drain_s=5.0):
        """Send `payloads` at instants fixed beforehand, to the connections in turn.

        A request that is due while its connection has `depth` unanswered waits in the client, and
        its waiting is part of its latency.

        Args:
            payloads: as for `run`; as many as arrivals, or `repeat`.
            rate_per_s: over all connections, 0 < rate.
            seconds: from the first instant to the last, 0 < seconds <= 3600; at most 50 million
                arrivals.
            poisson: pauses are drawn from an exponential distribution of that mean with `seed`,
                as many as fit into the time, and never more than rate times seconds; otherwise
                they are all the same.
            drain_s: how long to wait for the last answers afterwards.

        Returns a `Report`. Raises as `run` does.
        """
        if not 0.0 < seconds <= 3600.0 or not 0.0 <= drain_s <= 3600.0:
            raise ValueError("seconds must be in 0..3600")
        if not 1.0 <= rate_per_s * seconds <= ARRIVALS_MAX:
            raise ValueError("rate times seconds must be in 1..50000000")
        if self._epoll >= 0:
            raise RuntimeError("this load is running already")
        cdef Report report = Report(seconds)
        try:
            self._plan(rate_per_s, seconds, poisson, seed)
            if not repeat and len(payloads) < self._arrival_count:
                raise ValueError("an open loop needs a payload for each arrival")
            self._prepare(payloads, repeat)
            self._open_timer()
            with nogil:
                self._open_loop(report, <uint64_t> (seconds * 1e9), <uint64_t> (drain_s * 1e9))
        finally:
            self._clean_up(report)
        return report

    cdef int _plan(self, double rate_per_s, double seconds, bint poisson, uint64_t seed) except -1:
        """The instants of all arrivals."""
        cdef Py_ssize_t i
        cdef Py_ssize_t count = <Py_ssize_t> (rate_per_s * seconds)
        cdef double at = 0.0
        cdef uint64_t state = seed * SPREAD + 1
        self._arrivals = <uint64_t*> calloc(count, sizeof(uint64_t))
        if self._arrivals == NULL:
            raise MemoryError
        for i in range(count):
            if poisson:
                if at >= seconds * 1e9:
                    count = i
                    break
                self._arrivals[i] = <uint64_t> at
                state ^= state << 13
                state ^= state >> 7
                state ^= state << 17
                # 53 bits, never 0
                at -= log(((state >> 11) + 1) / 9007199254740993.0) * 1e9 / rate_per_s
            else:
                self._arrivals[i] = <uint64_t> (i * 1e9 / rate_per_s)
        self._arrival_count = count
        self._arrived = 0
        self._backlog = 0
        for i in range(self._count):
            self._connections[i].due = 0
            self._connections[i].arrival = i
        return 0

    cdef int _open_timer(self) except -1:
        cdef epoll_event event
        self._timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._timer < 0:
            raise OSError(errno, "timerfd_create")
        event.events = EPOLLIN
        event.data.ptr = NULL
        if epoll_ctl(self._epoll, EPOLL_CTL_ADD, self._timer, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        return 0

    cdef int _prepare(self, list payloads, bint repeat) except -1:
        """Look at each payload once, size the send buffers, open the epoll."""
        cdef Py_ssize_t longest = 0
        cdef Py_ssize_t i
        cdef Request* r
        if not payloads:
            raise ValueError("nothing to send")
        self._requests = <Request*> calloc(len(payloads), sizeof(Request))
        if self._requests == NULL:
            raise MemoryError
        self._request_count = len(payloads)
        for i in range(self._request_count):
            payload = payloads[i]
            if not isinstance(payload, bytes):
                raise TypeError("payloads must be bytes")
            r = &self._requests[i]
            r.payload = PyBytes_AS_STRING(payload)
            r.payload_bytes = PyBytes_GET_SIZE(payload)
            self._look_at(r)
            if r.trace == NO_TRACE:
                raise ValueError(f"payload {i} has no trace")
            longest = max(longest, r.payload_bytes + DIGITS_MAX * (r.trace_at >= 0)
                          + DIGITS_MAX * (r.original_at >= 0))
        if longest + TAG_BYTES > self._frame_bytes_max:
            raise ValueError("a payload is longer than a frame may be")
        self._size_buffers(self._depth * (longest + HEAD_BYTES + TAG_BYTES))
        self._next = 0
        self._repeat = repeat
        self._stopping = False
        self._in_flight = 0
        self._open_epoll()
        return 0

    cdef void _look_at(self, Request* r) noexcept nogil:
        """Find the trace of a payload and what is to be filled in."""
        cdef const unsigned char* p = <const unsigned char*> r.payload
        r.trace = self._trace(p, r.payload_bytes)
        r.trace_at = r.original_at = -1
        r.moves_money = False
        if self._iso:
            return
        r.trace_at = zero_at(p, r.payload_bytes, b'"trace":', 8)
        r.original_at = zero_at(p, r.payload_bytes, b'"original":', 11)
        r.moves_money = (memmem(p, r.payload_bytes, b'"op":"cash_out"', 15) != NULL
                         or memmem(p, r.payload_bytes, b'"op":"deposit"', 14) != NULL)

    cdef int _size_buffers(self, Py_ssize_t capacity) except -1:
        """Room for `depth` of the longest frames; a connection never has more unsent."""
        cdef Py_ssize_t i
        cdef Connection* c
        self._out_capacity = capacity
        for i in range(self._count):
            c = &self._connections[i]
            free(c.outbound)
            c.outbound = <unsigned char*> calloc(1, capacity)
            c.out_from = c.out_to = 0
            if c.outbound == NULL:
                raise MemoryError
        return 0

    cdef int _open_epoll(self) except -1:
        cdef epoll_event event
        cdef Py_ssize_t i
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            raise OSError(errno, "epoll_create1")
        self._open = 0
        for i in range(self._count):
            if self._connections[i].fd < 0:
                continue
            event.events = EPOLLIN
            event.data.ptr = &self._connections[i]
            if epoll_ctl(self._epoll, EPOLL_CTL_ADD, self._connections[i].fd, &event) < 0:
                raise OSError(errno, "epoll_ctl")
            self._connections[i].awaits_room = False
            self._open += 1
        return 0

    cdef int _clean_up(self, Report report) except -1:
        """Whatever is in flight now stays unanswered, and its connection cannot be used again."""
        cdef Py_ssize_t i
        for i in range(self._count):
            if self._connections[i].in_flight:
                self._lose(report, &self._connections[i])
        free(self._requests)
        self._requests = NULL
        free(self._arrivals)
        self._arrivals = NULL
        if self._timer >= 0:
            close(self._timer)
        if self._epoll >= 0:
            close(self._epoll)
        self._epoll = self._timer = -1
        return 0

    cdef int _loop(self, Report report, uint64_t run_ns, uint64_t drain_ns) except -1 nogil:
        cdef epoll_event events[EVENTS_MAX]
        cdef Py_ssize_t i
        cdef int n
        cdef uint64_t cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        cdef uint64_t started_ns = clock_ns(CLOCK_MONOTONIC)
        cdef uint64_t signals_ns = started_ns + SIGNALS_EVERY_NS
        cdef uint64_t now_ns = started_ns
        self._started_ns = started_ns
        self._deadline_ns = started_ns + run_ns
        for i in range(self._count):
            self._advance(report, &self._connections[i])
        while self._open and (self._in_flight or not self._stopping):
            n = epoll_wait(self._epoll, events, EVENTS_MAX, 10)
            if n < 0 and errno != EINTR:
                with gil:
                    raise OSError(errno, "epoll_wait")
            for i in range(n):
                self._ready(report, <Connection*> events[i].data.ptr, events[i].events)
            now_ns = clock_ns(CLOCK_MONOTONIC)
            if now_ns >= self._deadline_ns:
                self._stopping = True
                if now_ns >= self._deadline_ns + drain_ns:
                    break
            if now_ns >= signals_ns or n < 0:
                signals_ns = now_ns + SIGNALS_EVERY_NS
                with gil:
                    PyErr_CheckSignals()
        report.elapsed_ns = min(now_ns, self._deadline_ns) - started_ns
        report.cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns
        return 0

    cdef int _open_loop(self, Report report, uint64_t run_ns, uint64_t drain_ns
                        ) except -1 nogil:
        cdef epoll_event events[EVENTS_MAX]
        cdef Py_ssize_t i
        cdef int n
        cdef uint64_t cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        cdef uint64_t now_ns = clock_ns(CLOCK_MONOTONIC)
        cdef uint64_t signals_ns = now_ns + SIGNALS_EVERY_NS
        self._started_ns = now_ns + OPEN_LEAD_NS
        self._deadline_ns = self._started_ns + run_ns
        while self._open and (self._in_flight or self._backlog or not self._stopping):
            self._arrive(report, now_ns)
            n = epoll_wait(self._epoll, events, EVENTS_MAX, 10)
            if n < 0 and errno != EINTR:
                with gil:
                    raise OSError(errno, "epoll_wait")
            for i in range(n):
                if events[i].data.ptr != NULL:
                    self._ready(report, <Connection*> events[i].data.ptr, events[i].events)
            now_ns = clock_ns(CLOCK_MONOTONIC)
            if now_ns >= self._deadline_ns + drain_ns:
                break
            if now_ns >= signals_ns or n < 0:
                signals_ns = now_ns + SIGNALS_EVERY_NS
                with gil:
                    PyErr_CheckSignals()
        report.due = self._arrived
        report.unanswered += self._backlog
        if self._stopping:  # the time ran to its end, whenever the last answer came
            report.elapsed_ns = run_ns
        elif now_ns > self._started_ns:
            report.elapsed_ns = min(now_ns, self._deadline_ns) - self._started_ns
        report.cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns
        return 0

    cdef int _arrive(self, Report report, uint64_t now_ns) except -1 nogil:
        """Send what is due by now, and set the timer to the next instant."""
        cdef Connection* c
        cdef itimerspec at
        cdef uint64_t next_ns
        if self._stopping:
            return 0
        while (self._arrived < self._arrival_count
               and self._started_ns + self._arrivals[self._arrived] <= now_ns):
            c = &self._connections[self._arrived % self._count]
            self._arrived += 1
            if c.fd < 0:
                report.unanswered += 1
                continue
            c.due += 1
            self._backlog += 1
            self._advance(report, c)
            report.backlog_max = max(report.backlog_max, <uint64_t> self._backlog)
        memset(&at, 0, sizeof(at))
        if self._arrived == self._arrival_count:
            self._stopping = True
        else:
            next_ns = self._started_ns + self._arrivals[self._arrived]
            at.it_value.tv_sec = next_ns // 1000000000
            at.it_value.tv_nsec = next_ns % 1000000000
        timerfd_settime(self._timer, TFD_TIMER_ABSTIME, &at, NULL)
        return 0

    cdef int _ready(self, Report report, Connection* c, uint32_t events) except -1 nogil:
        if c.fd < 0:
            return 0
        if events & (EPOLLIN | EPOLLERR | EPOLLHUP):
            self._receive(report, c)
        if c.fd >= 0:
            self._advance(report, c)
        return 0

    cdef int _receive(self, Report report, Connection* c) except -1 nogil:
        """Take what the socket has, as far as the buffer goes, and handle every whole frame."""
        cdef Py_ssize_t space = 2 * (self._frame_bytes_max + HEAD_BYTES) - c.inbound_bytes
        cdef Py_ssize_t n = recv(c.fd, c.inbound + c.inbound_bytes, space, MSG_DONTWAIT)
        cdef Cursor rest
        cdef Cursor frame
        cdef const unsigned char* body
        cdef Py_ssize_t body_bytes
        if n <= 0:
            if n == 0 or (errno != EAGAIN and errno != EINTR):
                self._lose(report, c)
            return 0
        report.bytes_received += n
        c.inbound_bytes += n
        rest = cursor(c.inbound, c.inbound_bytes)
        while c.fd >= 0:
            frame = rest
            body_bytes = take_u16be(&frame)
            if frame.short:
                break
            if body_bytes <= TAG_BYTES or body_bytes > self._frame_bytes_max:
                report.bad_frames += 1
                self._lose(report, c)
                return 0
            body = take(&frame, body_bytes)
            if body == NULL:
                break
            self._answer(report, c, body, body_bytes - TAG_BYTES)
            rest = frame
        c.inbound_bytes = left(&rest)
        memmove(c.inbound, rest.at, c.inbound_bytes)
        return 0

    cdef uint64_t _trace(self, const unsigned char* payload, Py_ssize_t n) noexcept nogil:
        """What ties an answer to its request, or NO_TRACE."""
        return iso_stan(payload, n) if self._iso else trace_of(payload, n)

    cdef bint _genuine(self, Connection* c, const unsigned char* payload, Py_ssize_t n
                       ) except -1 nogil:
        """True where the MAC behind the payload is its own."""
        cdef unsigned char tag[DIGEST_BYTES_MAX]
        cdef Cursor mac = cursor(payload + n, TAG_BYTES)
        if self._iso:
            (<MacKey> c.key).compute((<MacKey> c.key)._cipher, payload, 0, payload, n, tag)
        else:
            (<MacKey> c.key).mac8(1 if self._echo else 2, c.received, payload, n, tag)
        return take_exactly(&mac, tag, TAG_BYTES)

    cdef int _answer(self, Report report, Connection* c, const unsigned char* payload,
                     Py_ssize_t n) except -1 nogil:
        """Count one frame; `payload` is followed by its MAC."""
        cdef uint64_t trace
        cdef int code = -1
        if self._verify and not self._genuine(c, payload, n):
            report.bad_macs += 1
            self._lose(report, c)
            return 0
        c.received += 1
        trace = self._trace(payload, n)
        if not self._echo:
            code = iso_code(payload, n) if self._iso else code_of(payload, n)
        if trace == NO_TRACE:
            report.unasked += 1
            if code >= 0:
                report._complaints[code] += 1
            return 0
        if not self._settle(report, c, trace, code):
            report.unmatched += 1
        elif code >= 0:
            report._codes[code] += 1
        elif not self._echo:
            report.malformed += 1
        return 0

    cdef bint _settle(self, Report report, Connection* c, uint64_t trace, int code
                      ) noexcept nogil:
        """Answers come in any order: find the request by its trace and record its latency."""
        cdef uint64_t now_ns
        cdef int i
        for i in range(c.in_flight):
            if c.waiting[i].trace != trace:
                continue
            now_ns = clock_ns(CLOCK_MONOTONIC)
            report.put(now_ns - c.waiting[i].since_ns, c.waiting[i].since_ns - self._started_ns)
            if c.waiting[i].moves_money and code == 0:
                c.newest = trace
            if now_ns <= self._deadline_ns:
                report.in_time += 1
            c.in_flight -= 1
            c.waiting[i] = c.waiting[c.in_flight]
            self._in_flight -= 1
            return True
        return False

    cdef int _advance(self, Report report, Connection* c) except -1 nogil:
        """Fill the pipeline of one connection and send as much as its socket takes."""
        cdef Py_ssize_t n
        cdef bint wanted = not self._stopping if self._arrivals == NULL else c.due > 0
        if c.fd < 0:
            return 0
        if wanted and c.in_flight < self._depth:
            self._fill(report, c)
        while c.out_from < c.out_to:
            n = send(c.fd, c.outbound + c.out_from, c.out_to - c.out_from,
                     MSG_DONTWAIT | MSG_NOSIGNAL)
            if n < 0 and errno == EINTR:
                continue
            if n < 0 and errno != EAGAIN:
                self._lose(report, c)
                return 0
            if n < 0:
                break
            report.bytes_sent += n
            c.out_from += n
        if (c.out_from < c.out_to) != c.awaits_room:
            self._await_room(c, c.out_from < c.out_to)
        return 0

    cdef int _fill(self, Report report, Connection* c) except -1 nogil:
        """Append frames until `depth` are in flight; one clock reading for all of them."""
        cdef uint64_t now_ns = clock_ns(CLOCK_MONOTONIC)
        cdef uint64_t since_ns = now_ns
        cdef Py_ssize_t number
        cdef Pen out
        if self._arrivals == NULL and now_ns >= self._deadline_ns:
            self._stopping = True
            return 0
        if c.out_from:
            memmove(c.outbound, c.outbound + c.out_from, c.out_to - c.out_from)
            c.out_to -= c.out_from
            c.out_from = 0
        out = pen(c.outbound + c.out_to, self._out_capacity - c.out_to)
        while c.in_flight < self._depth:
            if self._arrivals != NULL:
                if not c.due:
                    break
                number = c.arrival % self._request_count
                since_ns = self._started_ns + self._arrivals[c.arrival]
                report.lag.put(<int64_t> (now_ns - since_ns))
                c.arrival += self._count
                c.due -= 1
                self._backlog -= 1
            else:
                if self._next == self._request_count:
                    if not self._repeat:
                        report.exhausted = True
                        self._stopping = True
                        break
                    self._next = 0
                number = self._next
                self._next += 1
            self._append(c, &self._requests[number], since_ns, &out)
        c.out_to = self._out_capacity - room(&out)
        return 0

    cdef int _append(self, Connection* c, const Request* r, uint64_t since_ns, Pen* out
                     ) except -1 nogil:
        """One frame, sealed; it counts as in flight from now on."""
        cdef Py_ssize_t tag_bytes = 0 if self._iso else TAG_BYTES
        cdef Py_ssize_t n = r.payload_bytes
        cdef uint64_t trace = r.trace
        cdef uint64_t original = c.newest if c.newest else 1
        cdef unsigned char digits[DIGITS_MAX]
        cdef unsigned char* body
        if r.trace_at >= 0:
            c.trace = c.trace % TRACE_MAX + 1
            trace = c.trace
            n += decimal(trace, digits) - 1
        if r.original_at >= 0:
            n += decimal(original, digits) - 1
        put_u16be(out, <unsigned short> (n + tag_bytes))
        body = reserve(out, n + tag_bytes)
        if body == NULL:
            with gil:
                raise AssertionError("the send buffer holds depth frames of any payload")
        if written(r, trace, original, body) != n:
            with gil:
                raise AssertionError("a payload is as long as its numbers make it")
        if not self._iso:
            (<MacKey> c.key).mac8(1, c.sent, body, n, body + n)
        c.sent += 1
        c.waiting[c.in_flight].trace = trace
        c.waiting[c.in_flight].since_ns = since_ns
        c.waiting[c.in_flight].moves_money = r.moves_money
        c.in_flight += 1
        self._in_flight += 1
        return 0

    cdef void _await_room(self, Connection* c, bint wanted) noexcept nogil:
        cdef epoll_event event
        event.events = EPOLLIN | EPOLLOUT if wanted else EPOLLIN
        event.data.ptr = c
        epoll_ctl(self._epoll, EPOLL_CTL_MOD, c.fd, &event)
        c.awaits_room = wanted

    cdef void _lose(self, Report report, Connection* c) noexcept nogil:
        """Give up a connection; its socket stays open for the caller to close."""
        if c.fd < 0:
            return
        epoll_ctl(self._epoll, EPOLL_CTL_DEL, c.fd, NULL)
        c.fd = -1
        report.lost += 1
        report.unanswered += c.in_flight
        self._in_flight -= c.in_flight
        c.in_flight = 0
        report.unanswered += c.due
        self._backlog -= c.due
        c.due = 0
        self._open -= 1


# ---- the ceiling ---------------------------------------------------------------------------------


cdef struct EchoConnection:
    int fd
    Py_ssize_t pending_from
    Py_ssize_t pending_to
    EchoConnection* previous
    EchoConnection* next
    unsigned char data[ECHO_BYTES]


cdef EchoConnection* echo_accept(int epoll, int listen_fd, EchoConnection** first) noexcept nogil:
    cdef int one = 1
    cdef epoll_event event
    cdef EchoConnection* c
    cdef int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        return NULL
    c = <EchoConnection*> calloc(1, sizeof(EchoConnection))
    if c == NULL:
        close(fd)
        return NULL
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    c.fd = fd
    c.next = first[0]
    if c.next != NULL:
        c.next.previous = c
    first[0] = c
    event.events = EPOLLIN
    event.data.ptr = c
    if epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0:
        echo_drop(c, first)
        return NULL
    return c


cdef void echo_drop(EchoConnection* c, EchoConnection** first) noexcept nogil:
    if c.previous != NULL:
        c.previous.next = c.next
    else:
        first[0] = c.next
    if c.next != NULL:
        c.next.previous = c.previous
    close(c.fd)
    free(c)


cdef bint echo_ready(int epoll, EchoConnection* c, uint64_t* echoed) noexcept nogil:
    """Read once and send it back; False when the connection is over.

    What the socket does not take stays in the buffer, and nothing more is read until it is gone.
    """
    cdef epoll_event event
    cdef bint was_pending = c.pending_from < c.pending_to
    cdef Py_ssize_t n
    if not was_pending:
        n = recv(c.fd, c.data, ECHO_BYTES, 0)
        if n <= 0:
            return n < 0 and (errno == EAGAIN or errno == EINTR)
        c.pending_from = 0
        c.pending_to = n
    n = send(c.fd, c.data + c.pending_from, c.pending_to - c.pending_from, MSG_NOSIGNAL)
    if n < 0 and errno != EAGAIN and errno != EINTR:
        return False
    if n > 0:
        c.pending_from += n
        echoed[0] += n
    if (c.pending_from < c.pending_to) != was_pending:
        event.events = EPOLLIN if was_pending else EPOLLOUT
        event.data.ptr = c
        epoll_ctl(epoll, EPOLL_CTL_MOD, c.fd, &event)
    return True


cdef int echo_loop(int epoll, int listen_fd, int stop_fd, EchoConnection** first,
                   uint64_t* echoed) except -1 nogil:
    cdef epoll_event events[EVENTS_MAX]
    cdef int n, i
    while True:
        n = epoll_wait(epoll, events, EVENTS_MAX, 1000)
        if n < 0 and errno != EINTR:
            with gil:
                raise OSError(errno, "epoll_wait")
        if n <= 0:
            with gil:
                PyErr_CheckSignals()
        for i in range(n):
            if events[i].data.ptr == NULL:
                echo_accept(epoll, listen_fd, first)
            elif events[i].data.u64 == 1:
                return 0
            elif not echo_ready(epoll, <EchoConnection*> events[i].data.ptr, echoed):
                echo_drop(<EchoConnection*> events[i].data.ptr, first)


def echo_server(int listen_fd, int stop_fd):
    """Send every byte back to whom it came from, until `stop_fd` is readable or at its end.

    One thread, one epoll, no GIL, no framing, no MAC: what two system calls a message cost on this
    machine, so the most any server could do. `listen_fd` must be listening and not blocking; both
    stay open. Returns the number of bytes echoed. Raises OSError where epoll fails.
    """
    cdef EchoConnection* first = NULL
    cdef uint64_t echoed = 0
    cdef epoll_event event
    cdef int epoll = epoll_create1(EPOLL_CLOEXEC)
    if epoll < 0:
        raise OSError(errno, "epoll_create1")
    try:
        event.events = EPOLLIN
        event.data.u64 = 0        # no connection has address 0 or 1
        if epoll_ctl(epoll, EPOLL_CTL_ADD, listen_fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        event.data.u64 = 1
        if epoll_ctl(epoll, EPOLL_CTL_ADD, stop_fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        with nogil:
            echo_loop(epoll, listen_fd, stop_fd, &first, &echoed)
    finally:
        while first != NULL:
            echo_drop(first, &first)
        close(epoll)
    return echoed
