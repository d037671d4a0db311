"""Native load client and bare echo server: what a user of the switch would get, and the ceiling.

`Load` drives connections that are already signed on, each in a closed loop: at most `depth`
requests are unanswered at any moment, and an answer is followed at once by the next request.

Frames have two bytes of length. Those of the session protocol then hold a payload and eight bytes
of MAC over direction, counter and payload; those of the `ceibo` dialect of ISO 8583 hold a message
with its MAC at the end, made beforehand. Nothing here takes the GIL but a look at pending signals
every tenth of a second.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

from core_ext._counters cimport Histogram
from core_ext._cursor cimport (
    Cursor, Pen, cursor, left, pen, put, put_u16be, reserve, room, take, take_exactly, take_u8,
    take_u16be,
)
from core_ext._mac cimport MacKey

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    enum: EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        void* ptr
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout_ms)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_NONBLOCK, SOCK_CLOEXEC
    int accept4(int fd, void* address, void* address_bytes, int flags)
    Py_ssize_t recv(int fd, void* data, size_t n, int flags)
    Py_ssize_t send(int fd, const void* data, size_t n, int flags)
    int setsockopt(int fd, int level, int name, const void* value, unsigned int n)

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY

cdef extern from "<time.h>" nogil:
    enum: CLOCK_THREAD_CPUTIME_ID

cdef extern from "<string.h>" nogil:
    void* memmem(const void* data, size_t n, const void* wanted, size_t m)

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

cdef uint64_t NO_TRACE = <uint64_t> 0xFFFFFFFFFFFFFFFF


cdef struct Request:
    const char* payload
    Py_ssize_t payload_bytes
    uint64_t trace


cdef struct Waiting:
    uint64_t trace
    uint64_t sent_ns


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


cdef inline uint64_t clock_ns(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <uint64_t> t.tv_sec * 1000000000 + <uint64_t> t.tv_nsec


cdef inline Cursor after(
    const unsigned char* p, Py_ssize_t n, const char* wanted, Py_ssize_t m
) noexcept nogil:
    """A cursor behind the first `wanted`; a short one where it is missing."""
    cdef const unsigned char* at = <const unsigned char*> memmem(p, n, wanted, m)
    if at == NULL:
        return cursor(p, -1)
    return cursor(at + m, p + n - at - m)


cdef uint64_t trace_of(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """The number behind `"trace":`, or NO_TRACE."""
    cdef Cursor c = after(p, n, b'"trace":', 8)
    cdef uint64_t trace = 0
    cdef int digits = 0
    cdef unsigned char digit
    while left(&c) > 0 and digits < 10:
        digit = take_u8(&c)
        if digit < 0x30 or digit > 0x39:
            break
        trace = trace * 10 + (digit - 0x30)
        digits += 1
    return trace if digits else NO_TRACE


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
        latency: of all answers that belong to a request, late ones included.
        in_time: those of them that came before the run's time was up; the rate counts only these.
        elapsed_ns: from the first send to the deadline, or to the last answer if that came first.
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
    cdef readonly uint64_t in_time, elapsed_ns, cpu_ns
    cdef readonly uint64_t unanswered, unmatched, malformed, unasked, bad_frames, bad_macs, lost
    cdef readonly uint64_t bytes_sent, bytes_received
    cdef readonly bint exhausted
    cdef uint64_t _codes[CODES]
    cdef uint64_t _complaints[CODES]

    def __cinit__(self):
        self.latency = Histogram()
        memset(self._codes, 0, sizeof(self._codes))
        memset(self._complaints, 0, sizeof(self._complaints))

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
    cdef uint64_t _deadline_ns

    def __cinit__(self, fds, keys, *, sent, received, int depth=1,
                  Py_ssize_t frame_bytes_max=8192, bint verify=False, bint echo=False,
                  bint iso=False):
        self._epoll = -1
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
                ready to be sent as they are.
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
        cdef Report report = Report()
        try:
            self._prepare(payloads, repeat)
            with nogil:
                self._loop(report, <uint64_t> (seconds * 1e9), <uint64_t> (drain_s * 1e9))
        finally:
            self._clean_up(report)
        return report

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
            r.trace = self._trace(<const unsigned char*> r.payload, r.payload_bytes)
            if r.trace == NO_TRACE:
                raise ValueError(f"payload {i} has no trace")
            longest = max(longest, r.payload_bytes)
        if longest + TAG_BYTES > self._frame_bytes_max:
            raise ValueError("a payload is longer than a frame may be")
        self._size_buffers(self._depth * (longest + HEAD_BYTES + TAG_BYTES))
        self._next = 0
        self._repeat = repeat
        self._stopping = False
        self._in_flight = 0
        self._open_epoll()
        return 0

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
        if self._epoll >= 0:
            close(self._epoll)
        self._epoll = -1
        return 0

    cdef int _loop(self, Report report, uint64_t run_ns, uint64_t drain_ns) except -1 nogil:
        cdef epoll_event events[EVENTS_MAX]
        cdef Py_ssize_t i
        cdef int n
        cdef uint64_t cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        cdef uint64_t started_ns = clock_ns(CLOCK_MONOTONIC)
        cdef uint64_t signals_ns = started_ns + SIGNALS_EVERY_NS
        cdef uint64_t now_ns = started_ns
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
        if not self._settle(report, c, trace):
            report.unmatched += 1
        elif code >= 0:
            report._codes[code] += 1
        elif not self._echo:
            report.malformed += 1
        return 0

    cdef bint _settle(self, Report report, Connection* c, uint64_t trace) noexcept nogil:
        """Answers come in any order: find the request by its trace and record its latency."""
        cdef uint64_t now_ns
        cdef int i
        for i in range(c.in_flight):
            if c.waiting[i].trace != trace:
                continue
            now_ns = clock_ns(CLOCK_MONOTONIC)
            report.latency.put(<int64_t> (now_ns - c.waiting[i].sent_ns))
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
        if c.fd < 0:
            return 0
        if c.in_flight < self._depth and not self._stopping:
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
        cdef Request* r
        cdef Pen out
        cdef unsigned char* body
        cdef Py_ssize_t tag_bytes
        if now_ns >= self._deadline_ns:
            self._stopping = True
            return 0
        if c.out_from:
            memmove(c.outbound, c.outbound + c.out_from, c.out_to - c.out_from)
            c.out_to -= c.out_from
            c.out_from = 0
        out = pen(c.outbound + c.out_to, self._out_capacity - c.out_to)
        while c.in_flight < self._depth:
            if self._next == self._request_count:
                if not self._repeat:
                    report.exhausted = True
                    self._stopping = True
                    break
                self._next = 0
            r = &self._requests[self._next]
            self._next += 1
            tag_bytes = 0 if self._iso else TAG_BYTES
            put_u16be(&out, <unsigned short> (r.payload_bytes + tag_bytes))
            body = reserve(&out, r.payload_bytes + tag_bytes)
            if body == NULL:
                with gil:
                    raise AssertionError("the send buffer holds depth frames of any payload")
            memcpy(body, r.payload, r.payload_bytes)
            if not self._iso:
                (<MacKey> c.key).mac8(1, c.sent, body, r.payload_bytes, body + r.payload_bytes)
            c.sent += 1
            c.waiting[c.in_flight].trace = r.trace
            c.waiting[c.in_flight].sent_ns = now_ns
            c.in_flight += 1
            self._in_flight += 1
        c.out_to = self._out_capacity - room(&out)
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
