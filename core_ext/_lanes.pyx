"""Plain-TCP connections that are read, and answered where a request is common, without Python.

`Lanes` is the epoll of the pump (`switch.net.pump`) with a shortcut in it. Whatever is ready is
read here. A session frame whose MAC is good and whose payload is a plain request is decided in
place (`_straight`), and its answer waits here until the journal's group is durable; then all
answers of a connection leave in one write. Everything else is handed back to Python with nothing
consumed: another message, a bad frame, what `_straight` leaves to the flows, an end of a stream.

Other kinds of connection decide their common requests likewise (`_desk`). One owner thread.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove

from core_ext._counters cimport Histogram
from core_ext._cursor cimport Pen, pen, put, put_u8
from core_ext._frames cimport Channel
from core_ext._issuer cimport MINE
from core_ext._journal cimport Journal
from core_ext._pack cimport Text, put_array, put_str, text
from core_ext._payload cimport (
    ANSWER_MAX, CASH_OUT, DELIVERED, DEPOSIT, ECHO, ECHO_ANSWER, Request, Told, read, write_echo, write_json,
    write_msgpack,
)
from core_ext._straight cimport Done, Marked, Straight
from core_ext._ticket cimport Ticket

import os

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd

    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLIN

cdef extern from "<sys/socket.h>" nogil:
    Py_ssize_t recv(int fd, void* buffer, size_t n, int flags)
    Py_ssize_t send(int fd, const void* buffer, size_t n, int flags)
    int MSG_DONTWAIT, MSG_NOSIGNAL

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    EVENTS_MAX = 1024          # sockets served in one pass; the rest is still readable in the next
    READ_BYTES_MAX = 32768
    FRAME_SPARE = 10           # length and MAC around a payload
    NO_REQUEST = -1            # in place of the time at which a request came

cdef double NEVER_S = float("inf")


cdef class Forwarder:
    """Takes requests whose platform is played by another process; see `_relay`.

    Attributes:
        open: it takes them all, or leaves them to Python; else they are decided here.
    """

    cdef bint forward(
        self, TerminalLane lane, const Request* r, bint json, int64_t now_ns, int64_t mono_ns
    ) except -1:
        """Pass on one cash_out or deposit; False, and nothing changed: not ours."""
        raise NotImplementedError


cdef class Lane:
    """One connection whose common requests are decided natively; see the subclasses.

    Attributes:
        fd: its socket; -1 where only Python may touch it.
        in_flight: requests taken that have no answer yet.
        heard_s: time of the last byte received, on trio's clock.
        direct: answers may be written to the socket at once: nothing of ours waits before them.
        attended: it is read here now.
        reports: its owner is told whenever answers have left; else only while not `attended`.
    """

    def __dealloc__(self):
        free(self._out.data)

    def close(self):
        """Write nothing more; what is still held is dropped when its time comes."""
        self.fd = -1
        self.owner = None

    cdef bint usable(self) noexcept:
        return False

    cdef bint push(self, const unsigned char* p, Py_ssize_t n) except -1:
        raise NotImplementedError

    cdef int work(self, Lanes lanes, int64_t now_ns, int64_t mono_ns, int* room) except -1:
        raise NotImplementedError

    cdef object left(self):
        raise NotImplementedError

    cdef object surrender(self):
        raise NotImplementedError

    cdef int seal(self, const unsigned char* payload, Py_ssize_t n) except -1:
        raise NotImplementedError

    cdef int refill(self) except -1:
        """Make frames of what has waited for something else than durability (`Lanes.ripen`)."""
        return 0

    cdef unsigned char* extend(self, Py_ssize_t n) except NULL:
        """Room for n more bytes behind what is to be written."""
        cdef Py_ssize_t need = self._out.n + n, capacity
        cdef void* larger
        if need > self._out.capacity:
            capacity = max(2 * self._out.capacity, need, 1024)
            larger = realloc(self._out.data, capacity)
            if larger == NULL:
                raise MemoryError
            self._out.data = <unsigned char*> larger
            self._out.capacity = capacity
        self._out.n = need
        return self._out.data + need - n


@cython.final
cdef class TerminalLane(Lane):
    """One session of a terminal: its plain cash_outs and deposits, and marks of their delivery, are
    decided, and its echoes answered.

    The counters of its MACs are those of the session's channel, so that both ways may take turns.

    Args:
        owner: told of what is left to be written.
        channel: of its session.
        fd: its socket, or -1.
    """

    def __cinit__(self, owner, Channel channel not None, int fd):
        self.owner = owner
        self._channel = channel
        self.fd = fd
        self.direct = True

    def name(self, str terminal not None, int in_flight_max, bint json=True):
        """Take the straight way from now on: the session is confirmed as this terminal's. `json`:
        what it speaks."""
        cdef bytes raw = terminal.encode()
        if len(raw) != 8 or in_flight_max < 1:
            raise ValueError("a terminal has 8 digits")
        memcpy(self._terminal, <const char*> raw, 8)
        self._in_flight_max = in_flight_max
        self._json = json
        self._named = True

    def hand_back(self):
        """Leave every request to Python from now on."""
        self._named = False

    cdef bint usable(self) noexcept:
        return self._named and self.fd >= 0

    cdef bint push(self, const unsigned char* p, Py_ssize_t n) except -1:
        return self._channel.take_in(p, n)

    cdef object left(self):
        return None  # it is in the channel

    cdef object surrender(self):
        return None

    cdef int seal(self, const unsigned char* payload, Py_ssize_t n) except -1:
        cdef Pen w = pen(self.extend(n + FRAME_SPARE), n + FRAME_SPARE)
        return self._channel.write_payload(&w, payload, n)

    cdef int work(self, Lanes lanes, int64_t now_ns, int64_t mono_ns, int* room) except -1:
        cdef const unsigned char* p = NULL
        cdef Py_ssize_t n = 0
        cdef unsigned char answer[ANSWER_MAX]
        cdef unsigned char texts[28]
        cdef Request r
        cdef Told told
        cdef Ticket ticket
        cdef bint json
        while self.in_flight < self._in_flight_max and self._channel.peek(&p, &n):
            if not read(p, n, &r):
                return LEFT
            if room[0] <= 0:
                return FULL
            json = p[0] == 123
            if r.op == ECHO or r.op == ECHO_ANSWER:
                self._channel.skip()
                room[0] -= 1
                if r.op == ECHO:
                    n = self._echo(&r, json, answer)
                    lanes.hold(self, answer, n, NO_REQUEST)
                continue
            if (r.op == CASH_OUT or r.op == DEPOSIT) and lanes.forwarder is not None and (
                lanes.forwarder.open
            ):
                if not lanes.forwarder.forward(self, &r, json, now_ns, mono_ns):
                    return LEFT
                self._channel.skip()
                self.in_flight += 1
                lanes.taken += 1
                room[0] -= 1
                continue
            if not self._decide(lanes.straight, &r, now_ns, texts, &told, &ticket):
                return LEFT
            self._channel.skip()
            n = self._encode(&told, &ticket, json, answer)
            lanes.hold(self, answer, n, mono_ns)
            room[0] -= 1
        return LEFT if self._channel.more else ALL

    cdef bint _decide(
        self, Straight straight, const Request* r, int64_t now_ns, unsigned char* texts, Told* told,
        Ticket* ticket,
    ) except -1:
        """Decide one request; `told` is its answer, whose texts lie in `texts`. False: not ours."""
        cdef Text terminal = text(self._terminal, 8)
        cdef Done done
        cdef Marked marked
        ticket.count = 0
        told.trace, told.original, told.fee = r.trace, 0, 0
        told.delivered = r.op == DELIVERED
        if told.delivered:
            if straight.mark(terminal, r.original, now_ns, &marked) != MINE:
                return False
            memcpy(texts, marked.operation, 28)  # they lie side by side
            told.amount, told.fee = marked.amount, marked.fee
            told.original = 0 if r.trace == marked.trace else marked.trace
            told.deposit = marked.deposit
        else:
            told.deposit = r.operation.deposit
            if straight.decide(terminal, &r.operation, now_ns, &done, ticket) != MINE:
                return False
            memcpy(texts, done.operation, 28)
            told.amount = done.amount
        told.operation = text(texts, 12)
        told.authorization = text(texts + 12, 6)
        told.business_date = text(texts + 18, 10)
        return True

    cdef Py_ssize_t _echo(self, const Request* r, bint json, unsigned char* out) noexcept:
        cdef Pen w = pen(out, ANSWER_MAX)
        write_echo(&w, r, json)
        return w.at - out

    cdef Py_ssize_t _encode(
        self, const Told* told, const Ticket* ticket, bint json, unsigned char* out
    ) except -1:
        cdef Pen w = pen(out, ANSWER_MAX)
        cdef int i
        if json:
            write_json(&w, told)
            if ticket.count:
                put(&w, b',"ticket":', 10)
                for i in range(ticket.count):
                    put(&w, b',"' if i else b'["', 2)
                    put(&w, ticket.lines[i].at, ticket.lines[i].n)
                    put_u8(&w, 34)
                put_u8(&w, 93)
            put_u8(&w, 125)
        else:
            write_msgpack(&w, told, ticket.count > 0)
            if ticket.count:
                put_array(&w, ticket.count)
                for i in range(ticket.count):
                    put_str(&w, text(ticket.lines[i].at, ticket.lines[i].n))
        assert not w.short, "an answer has 20 lines of 40 signs at most"
        return w.at - out


@cython.final
cdef class Lanes:
    """The pump's sockets.

    Args:
        straight: decides.
        journal: whose records the answers reveal.
        latency: takes how long each answer was on its way.

    Attributes:
        taken: requests decided, or passed on, here so far.
        heard: answers of platforms taken here so far.
        forwarder: who takes requests for platforms elsewhere, or None.
    """

    def __cinit__(
        self, Straight straight not None, Journal journal not None, Histogram latency not None
    ):
        self.straight = straight
        self._journal = journal
        self._latency = latency
        self._ripe = []
        self._sources = []
        self._lanes = []
        self._events = malloc(EVENTS_MAX * sizeof(epoll_event))
        self._scratch = <unsigned char*> malloc(READ_BYTES_MAX)
        self._epoll = -1
        if self._events == NULL or self._scratch == NULL:
            raise MemoryError
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self._epoll >= 0:
            close(self._epoll)
        while self._held_count:
            self._drop_first()
        free(self._events)
        free(self._scratch)
        free(self._held)
        free(self._payloads)
        free(self._look)

    def set_forwarder(self, Forwarder forwarder not None):
        """Have requests for platforms in other processes taken by it."""
        self.forwarder = forwarder

    def fileno(self):
        """Readable where a source is."""
        return self._epoll

    def add(self, int fd, source not None, Lane lane=None):
        """Attend to a socket. `source` is named by `next`; `lane`: it may be decided here."""
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.fd = fd
        self._reach(fd)
        if epoll_ctl(self._epoll, EPOLL_CTL_ADD, fd, &event):
            raise OSError(errno, os.strerror(errno))
        self._sources[fd] = source
        self._lanes[fd] = lane
        self._look[fd] = NEVER_S
        if lane is not None:
            lane.attended = True

    cdef int _reach(self, int fd) except -1:
        """Have a place for a socket of this number: 24 bytes for each that is open."""
        cdef Py_ssize_t size = len(self._sources), larger
        cdef void* look
        if fd < 0:
            raise ValueError("a socket's number is not negative")
        if fd >= size:
            larger = max(fd + 1, 64, size + size // 4)
            look = realloc(self._look, larger * sizeof(double))
            if look == NULL:
                raise MemoryError
            self._look = <double*> look
            self._sources.extend([None] * (larger - size))
            self._lanes.extend([None] * (larger - size))
        return 0

    def remove(self, int fd):
        """Attend to it no more. Returns what was read but not decided, for Python (b"": nothing);
        None where it was not attended to."""
        cdef Lane lane
        cdef object rest = b""
        if not 0 <= fd < len(self._sources) or self._sources[fd] is None:
            return None
        self._sources[fd] = None
        epoll_ctl(self._epoll, EPOLL_CTL_DEL, fd, NULL)
        lane = self._lanes[fd]
        self._lanes[fd] = None
        if lane is not None:
            lane.attended = False
            rest = lane.surrender() or b""
            if lane is self._current:
                self._current = self._current_source = None
        return rest

    # ---- who is to be looked at

    def look_at(self, int fd, source not None, double at_s):
        """Name a source in `due` once, from `at_s` on; nothing where it is not attended to."""
        if 0 <= fd < len(self._sources) and self._sources[fd] is source:
            self._look[fd] = at_s

    def due(self, double now_s):
        """[(socket, source)] of those whose time to be looked at has come."""
        cdef list found = []
        cdef Py_ssize_t fd
        for fd in range(len(self._sources)):
            if self._look[fd] <= now_s and self._sources[fd] is not None:
                self._look[fd] = NEVER_S
                found.append((fd, self._sources[fd]))
        return found

    # ---- a pass

    def begin(self):
        """Find out which sources are ready, at most 1024; `next` serves them. Goes on with the
        last pass where that has `more`."""
        cdef int n
        if not self.more:
            n = epoll_wait(self._epoll, <epoll_event*> self._events, EVENTS_MAX, 0)
            self._ready = max(n, 0)
            self._next = 0

    @property
    def more(self):
        """Whether this pass is not over."""
        return self._current is not None or self._next < self._ready

    def next(self, bint decide, int64_t now_ns, int64_t mono_ns, double now_s, int room):
        """Go on with the pass up to what Python has to do, and return it, or None.

        Args:
            decide: False: nothing may be decided here now.
            now_ns, mono_ns: the step's clocks. now_s: trio's time.
            room: how many more requests this step may take.

        Returns:
            (source, data), where data is what was read; b"": the stream has ended; None: it is in
            the session's channel already. None: the pass is over, or without `room` (see `more`).
        """
        cdef int fd, taken
        cdef Py_ssize_t n
        cdef Lane lane
        while room > 0:
            if self._current is not None:
                lane, source = self._current, self._current_source
                self._current = self._current_source = None
                if not decide or not lane.usable():
                    data = lane.surrender()
                    if data == b"":
                        continue
                    return source, data
            elif self._next < self._ready:
                fd = (<epoll_event*> self._events)[self._next].data.fd
                self._next += 1
                source = self._sources[fd]
                if source is None:
                    continue
                n = recv(fd, self._scratch, READ_BYTES_MAX, MSG_DONTWAIT)
                if n < 0:
                    if errno == EAGAIN or errno == EINTR:
                        continue
                    n = 0
                lane = self._lanes[fd]
                if lane is not None:
                    lane.heard_s = now_s
                if (n == 0 or lane is None or not decide or not lane.usable()
                        or not lane.push(self._scratch, n)):
                    data = PyBytes_FromStringAndSize(<const char*> self._scratch, n)
                    rest = None if lane is None or n == 0 else lane.surrender()
                    return source, data if rest is None else rest + data
            else:
                break
            taken = lane.work(self, now_ns, mono_ns, &room)
            if taken != ALL:  # what is behind comes next, once Python has done its part
                self._current, self._current_source = lane, source
            if taken == LEFT:
                return source, lane.left()
        return None

    # ---- answers that wait

    @property
    def held(self):
        """How many messages wait for `release`."""
        return self._held_count + len(self._ripe)

    cdef int hold(
        self, Lane lane, const unsigned char* payload, Py_ssize_t n, int64_t mono_ns
    ) except -1:
        """Keep the answer of a request that was decided here until all that is in the journal now
        is durable. `mono_ns`: when it came; NO_REQUEST: it is an echo's, which nobody counts."""
        self.keep(lane, payload, n, mono_ns)
        lane.in_flight += 1
        if mono_ns != NO_REQUEST:
            self.taken += 1
        return 0

    cdef int keep(
        self, Lane lane, const unsigned char* payload, Py_ssize_t n, int64_t mono_ns
    ) except -1:
        """`hold` for what is counted in flight already."""
        cdef Held* held
        self._make_room(n)
        memcpy(self._payloads + self._payload_end, payload, n)
        self._payload_end += n
        held = &self._held[self._held_first + self._held_count]
        held.seq = self._journal._next_seq - 1
        held.at_ns = mono_ns
        held.lane = <void*> lane
        held.n = n
        Py_INCREF(lane)
        self._held_count += 1
        return 0

    cdef int ripen(self, Lane lane) except -1:
        """Have a lane asked for more (`refill`) by the next `release`."""
        if not lane._ripe:
            lane._ripe = True
            self._ripe.append(lane)
        return 0

    cdef int _list(self, Lane lane, list lanes) except -1:
        if not lane._listed:
            lane._listed = True
            lanes.append(lane)
        return 0

    cdef int _make_room(self, Py_ssize_t n) except -1:
        """Room for one more answer, behind the last: move down what is held, or take more."""
        cdef Py_ssize_t used = self._payload_end - self._payload_first, capacity
        cdef void* larger
        if self._payload_end + n > self._payload_capacity:
            if used:
                memmove(self._payloads, self._payloads + self._payload_first, used)
            self._payload_first, self._payload_end = 0, used
            if used + n > self._payload_capacity // 2:
                capacity = max(2 * self._payload_capacity, 65536, used + n)
                larger = realloc(self._payloads, capacity)
                if larger == NULL:
                    raise MemoryError
                self._payloads = <unsigned char*> larger
                self._payload_capacity = capacity
        if self._held_first + self._held_count == self._held_capacity:
            if self._held_count:
                memmove(
                    self._held, self._held + self._held_first, self._held_count * sizeof(Held)
                )
            self._held_first = 0
            if self._held_count >= self._held_capacity // 2:
                capacity = max(2 * self._held_capacity, 1024)
                larger = realloc(self._held, capacity * sizeof(Held))
                if larger == NULL:
                    raise MemoryError
                self._held = <Held*> larger
                self._held_capacity = capacity
        return 0

    cdef void _drop_first(self) noexcept:
        cdef Held* held = &self._held[self._held_first]
        self._payload_first += held.n
        self._held_first += 1
        self._held_count -= 1
        Py_DECREF(<Lane> held.lane)

    def release(self, uint64_t durable_seq, int64_t now_ns, int64_t wall_ns):
        """Write every message whose decision is durable, one write for each connection.

        Args:
            now_ns, wall_ns: of the monotonic clock, and of the other.

        Returns:
            (number of answers, [(owner, data)]): what their owners have to do: data is left to be
            written; b"": nothing, but answers have left that it may wait for; None: the connection
            is lost.
        """
        cdef list lanes = [], left = [], ripe
        cdef Held* held
        cdef Lane lane
        cdef Py_ssize_t count = 0
        self.mono_ns, self.wall_ns = now_ns, wall_ns
        if self._ripe:  # before what is new: it has waited longer
            ripe, self._ripe = self._ripe, []
            for lane in ripe:
                lane._ripe = False
                self._list(lane, lanes)
                if lane.fd >= 0:
                    lane.refill()
        while self._held_count and self._held[self._held_first].seq <= durable_seq:
            held = &self._held[self._held_first]
            lane = <Lane> held.lane
            self._list(lane, lanes)
            lane._answered += 1
            if lane.fd >= 0:
                lane.seal(self._payloads + self._payload_first, held.n)
            if held.at_ns != NO_REQUEST:
                self._latency.put(now_ns - held.at_ns)
                count += 1
            self._drop_first()
        for lane in lanes:
            self._write(lane, left)
        return count, left

    cdef int _write(self, Lane lane, list left) except -1:
        cdef Py_ssize_t sent = 0
        lane.in_flight -= lane._answered
        lane._answered = 0
        lane._listed = False
        if lane.fd >= 0 and lane.direct and lane._out.n:
            sent = send(lane.fd, lane._out.data, lane._out.n, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent < 0 and (errno == EAGAIN or errno == EINTR):
                sent = 0
        if sent < 0:
            left.append((lane.owner, None))
        elif lane.fd >= 0 and sent < lane._out.n:
            left.append((lane.owner, PyBytes_FromStringAndSize(
                <const char*> lane._out.data + sent, lane._out.n - sent)))
        elif lane.owner is not None and (lane.reports or not lane.attended):
            left.append((lane.owner, b""))
        lane._out.n = 0
        # An idle connection keeps no buffer; of this size it is found again at once.
        free(lane._out.data)
        lane._out.data = NULL
        lane._out.capacity = 0
        return 0
