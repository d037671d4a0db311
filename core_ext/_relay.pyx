"""red's part of common cash_outs and deposits whose platform is another process.

A plain request is written as started where it is read, and passed on once that is durable; the
platform's plain approval is registered where it is read, told to the terminal once that is durable,
and confirmed to the platform. No Python runs for such a message. `switch.flows.red` with its port
and link is the reference: the records are its records, and the frames its frames, byte for byte.

Whatever is not plain stays with the flows. An operation that is on its way here is handed over as
it is (`of_terminal`, `of_id`, `aged`, `all_of`) before Python looks at it, and Python goes on with
it as if it had begun it: a request of its terminal, an answer that is not a plain approval, half a
second without an answer, the end of a session. So no time-out, no reversal and no repeat is ours.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from core_ext._counters cimport Counters, Histogram
from core_ext._cursor cimport Cursor, Pen, cursor, left, pen, put, put_u8, take_u8
from core_ext._frames cimport Channel
from core_ext._issuer cimport (
    COUNT, FORM, KNOWN, MINE, OFF, PAPER, SPACE_CASHIERS, SPACE_NEWEST, SPACE_RED, SPACE_SHIFTS,
    SPACE_TERMINALS, TIME, WHYS, put_moment,
)
from core_ext._lanes cimport ALL, FULL, LEFT, Forwarder, Lane, Lanes, TerminalLane
from core_ext._names cimport letter_at, mask_name, put_plain
from core_ext._operation cimport (
    RED_FIELDS, REFERENCE, TEXTS_MAX, VALUE_MAX, Asked, digest_at_red, hold_fields, put_hold,
    put_identity, started_record,
)
from core_ext._pack cimport (
    Text, field_is, is_text, nothing, put_array, put_chars, put_decimal, put_str, put_struct,
    put_uint, same, skip, split_array, take_array, take_bool, take_str, take_uint, text,
    text_at, uint_at,
)
from core_ext._payload cimport ANSWER_MAX, Request, Told
from core_ext._records cimport Records
from core_ext._straight cimport Straight
from core_ext._ticket cimport (
    SYMBOL_MAX, Printed, Symbol, Ticket, compose, fits_line,
)

from core_ext._straight import WHY as _WHY

cdef enum:
    PASSING_MAX = 8192     # operations on their way at once; more are left to Python
    MARK_BYTES = 8         # what waits for durability: which place, and which use of it
    FRAME_SPARE = 10
    MESSAGE_MAX = 512
    WORD_MAX = 40          # bytes of a number or date in an answer
    NAME_MAX = 64
    HOLDER_MAX = 64
    NO_REQUEST = -1
    SENT_AT = 24

cdef uint64_t AMOUNT_MAX = 999_999_999_999
cdef int64_t AGE_NS = 500_000_000  # half of the shortest budget: then Python watches over it


cdef bint is_word(Text t, Py_ssize_t n) noexcept nogil:
    """Whether a text has so many signs, and none of them is blank."""
    cdef Py_ssize_t i
    for i in range(t.n):
        if not 33 <= t.p[i] <= 126:
            return False
    return t.n == n


cdef inline uint32_t bucket_of(const unsigned char* reference) noexcept nogil:
    """By network and terminal, which are digits."""
    cdef uint64_t a
    memcpy(&a, reference + 4, 8)
    a = (a ^ a >> 4 ^ a >> 32) * <uint64_t> 0x9E3779B97F4A7C15
    return <uint32_t> (a >> 54)


cdef inline uint32_t bucket_of_id(uint64_t id) noexcept nogil:
    return <uint32_t> (id % BUCKETS)


cdef void put_instant(Pen* w, int64_t ns) noexcept nogil:
    """UTC with milliseconds, as `switch.clock.iso_ms` (Hinnant's civil_from_days)."""
    cdef int64_t ms = ns // 1_000_000
    cdef int64_t z = ms // 86_400_000 + 719468
    cdef int64_t of_day = ms % 86_400_000
    cdef int64_t era = z // 146097
    cdef int64_t doe = z - era * 146097
    cdef int64_t yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    cdef int64_t doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    cdef int64_t mp = (5 * doy + 2) // 153
    put_decimal(w, <uint64_t> (yoe + era * 400 + (1 if mp >= 10 else 0)), 4)
    put_u8(w, 45)
    put_decimal(w, <uint64_t> (mp + 3 if mp < 10 else mp - 9), 2)
    put_u8(w, 45)
    put_decimal(w, <uint64_t> (doy - (153 * mp + 2) // 5 + 1), 2)
    put_u8(w, 84)
    put_decimal(w, <uint64_t> (of_day // 3_600_000), 2)
    put_u8(w, 58)
    put_decimal(w, <uint64_t> (of_day // 60_000 % 60), 2)
    put_u8(w, 58)
    put_decimal(w, <uint64_t> (of_day // 1000 % 60), 2)
    put_u8(w, 46)
    put_decimal(w, <uint64_t> (of_day % 1000), 3)
    put_u8(w, 90)


cdef bint readable(Text t) noexcept nogil:
    """Whether a text is of letters that are the same in UTF-8 however they are read."""
    cdef Py_ssize_t at = 0, n
    while at < t.n:
        n = letter_at(t, at)
        if n == 0:
            return False
        at += n
    return True


cdef bint read_verdict(const unsigned char* p, Py_ssize_t n, Verdict* v) noexcept nogil:
    """Read the answer of a platform in its plain form; False: it is another message, or says more.

    Plain is a map in MessagePack with each field once: numbers that are not negative, texts of
    ASCII, a name of letters; a key that says what its code says; no `field`.
    """
    cdef Cursor c = cursor(p, n)
    cdef uint8_t head = take_u8(&c)
    cdef uint32_t seen = 0
    cdef int pairs, field
    cdef Text name, value
    memset(v, 0, sizeof(Verdict))
    if head & 0xF0 == 0x80:
        pairs = head & 0x0F
    elif head == 0xDE and take_u8(&c) == 0:
        pairs = take_u8(&c)
    else:
        return False
    while pairs and not c.short:
        pairs -= 1
        name = take_str(&c)
        field = field_of(name)
        if field < 0 or seen >> field & 1:
            return False
        seen |= <uint32_t> 1 << field
        if field == 1:
            v.id = take_uint(&c)
        elif field == 8:
            v.fee = take_uint(&c)
        elif field == 9:
            v.commission = take_uint(&c)
        elif field == 10:
            take_bool(&c)  # `duplicate`: what was decided is decided
        else:
            value = take_str(&c)
            if c.short or not set_word(v, field, value):
                return False
    return (
        not c.short and left(&c) == 0 and seen & 7 == 7
        and v.fee <= AMOUNT_MAX and v.commission <= AMOUNT_MAX
    )


cdef inline int field_of(Text name) noexcept nogil:
    if name.n == 2:
        return 0 if is_text(name, b"op", 2) else 1 if is_text(name, b"id", 2) else -1
    if name.n == 4:
        if is_text(name, b"code", 4):
            return 2
        return 11 if is_text(name, b"name", 4) else 12 if is_text(name, b"time", 4) else -1
    if name.n == 9:
        if is_text(name, b"reference", 9):
            return 3
        return 5 if is_text(name, b"operation", 9) else 10 if is_text(name, b"duplicate", 9) else -1
    if name.n == 13:
        if is_text(name, b"authorization", 13):
            return 6
        return 7 if is_text(name, b"business_date", 13) else -1
    if is_text(name, b"key", 3):
        return 4
    return 8 if is_text(name, b"fee", 3) else 9 if is_text(name, b"commission", 10) else -1


cdef inline bint set_word(Verdict* v, int field, Text value) noexcept nogil:
    if field == 11:
        v.name = value
        return value.n <= NAME_MAX and readable(value)
    if value.n > WORD_MAX or not fits_line(value):
        return False
    if field == 0:
        return is_text(value, b"answer", 6)
    if field == 2:
        v.code = value
    elif field == 3:
        v.reference = value
    elif field == 4:
        return is_text(value, b"APROBADA", 8)
    elif field == 5:
        v.operation = value
    elif field == 6:
        v.authorization = value
    elif field == 7:
        v.business_date = value
    return True  # `time`, too, of which nobody takes notice


@cython.final
cdef class PlatformLane(Lane):
    """One session with a platform: approvals are taken, and what waits is sent, without Python.

    Args:
        owner: told of what is left to be written; also the `session` that is named with what is
            handed over.
        channel: of the session.
        fd: its socket, or -1: then only numbers are given out here.
        relay: whose operations go this way.
        network: whose session it is, four digits.
        in_flight_max: requests without an answer; more wait.
        counters, requests, answers: which of these counts what was sent, and what was answered.
        latency: takes the time from one to the other.

    Attributes:
        last_id: the newest id given out.
        passing: operations of ours that go this way and are not at their end.
        others: requests of Python that are without answer here.
        resumes: of what is held, Python is to take one message: those behind it are ours again.
    """

    def __cinit__(
        self, owner, Channel channel not None, int fd, *, Relay relay not None,
        str network not None, int in_flight_max, Counters counters not None, int requests,
        int answers, Histogram latency not None,
    ):
        cdef bytes raw = network.encode()
        if len(raw) != 4 or in_flight_max < 1:
            raise ValueError("a network has four digits, and may have a request in flight")
        self.owner = self.session = owner
        self._channel = channel
        self.fd = fd
        self.direct = True
        self._relay = relay
        memcpy(self._network, <const char*> raw, 4)
        self._most = in_flight_max
        self._counters, self._requests, self._answers = counters, requests, answers
        self._latency = latency

    def new_id(self):
        """The next number for a request; unique in its session."""
        self.last_id += 1
        return self.last_id

    def open(self):
        """Operations may go this way from now on."""
        if self not in self._relay._ways:
            self._relay._ways.append(self)

    def shut(self):
        """No further operation goes this way."""
        if self in self._relay._ways:
            self._relay._ways.remove(self)

    def wake(self):
        """There may be room for what waits."""
        if self._first:
            self._relay._lanes.ripen(self)

    def of_id(self, uint64_t id):
        """Hand over the operation whose request has this id; None: there is none."""
        cdef uint32_t place = self._relay._sent_by(self, id)
        return self._relay._given_up(place) if place else None

    def all_of(self):
        """Hand over all operations that go this way, the oldest first."""
        cdef list found = []
        cdef uint32_t place = self._relay._oldest, following
        while place:
            following = self._relay._at[place].newer
            if self._relay._at[place].way == <void*> self:
                found.append(self._relay._given_up(place))
            place = following
        return found

    # ---- as the lanes see it

    cdef bint usable(self) noexcept:
        return self.fd >= 0

    cdef bint push(self, const unsigned char* p, Py_ssize_t n) except -1:
        return self._channel.take_in(p, n)

    cdef object left(self):
        return None  # it is in the channel

    cdef object surrender(self):
        self.resumes = False
        return None

    cdef int work(self, Lanes lanes, int64_t now_ns, int64_t mono_ns, int* room) except -1:
        cdef const unsigned char* p = NULL
        cdef Py_ssize_t n = 0
        cdef Verdict v
        self.resumes = True
        while self._channel.peek(&p, &n):
            if room[0] <= 0:
                return FULL
            if not read_verdict(p, n, &v) or not self._take(&v, now_ns, mono_ns):
                return LEFT
            self._channel.skip()
            lanes.heard += 1
            room[0] -= 1
        return LEFT if self._channel.more else ALL

    cdef bint _take(self, const Verdict* v, int64_t now_ns, int64_t mono_ns) except -1:
        """Take one answer; False, and nothing changed: it is for Python."""
        cdef Relay relay = self._relay
        cdef uint32_t place = relay._sent_by(self, v.id)
        cdef int64_t sent_ns
        if place == 0 or not is_text(v.code, b"00", 2) or not same(
            v.reference, text(relay._at[place].reference, REFERENCE)
        ):
            return False
        sent_ns = relay._at[place].sent_ns
        if relay._at[place].phase == HOLD:
            if not relay._register(place, v, now_ns, mono_ns):
                return False
        elif not relay._confirm(place):
            return False
        self._counters.bump(self._answers, 1)
        self._latency.put(max(mono_ns - sent_ns, 0))
        if self._first:
            relay._lanes.ripen(self)
        return True

    cdef int seal(self, const unsigned char* payload, Py_ssize_t n) except -1:
        """Send what is durable now, or have it wait for room behind what waits already."""
        cdef uint32_t mark[2]
        cdef Passing* p
        memcpy(mark, payload, MARK_BYTES)
        p = &self._relay._at[mark[0]]
        if p.phase == FREE or p.use != mark[1]:
            return 0  # it was handed over
        p.ready_ns = self._relay._lanes.mono_ns
        if self._first == 0 and self._sent + self.others < self._most:
            return self._leave(mark[0])
        p.behind = 0
        if self._first:
            self._relay._at[self._last].behind = mark[0]
        else:
            self._first = mark[0]
        self._last = mark[0]
        return 0

    cdef int refill(self) except -1:
        cdef uint32_t place
        while self._first and self._sent + self.others < self._most:
            place = self._first
            self._first = self._relay._at[place].behind
            self._leave(place)
        return 0

    cdef int _leave(self, uint32_t place) except -1:
        """Make the frame of a request."""
        cdef Passing* p = &self._relay._at[place]
        cdef unsigned char message[MESSAGE_MAX]
        cdef unsigned char sent_at[SENT_AT]
        cdef Pen w = pen(message, MESSAGE_MAX)
        cdef Pen instant = pen(sent_at, SENT_AT)
        cdef Pen frame
        cdef Py_ssize_t n
        cdef uint32_t* bucket
        self.last_id += 1
        p.id = self.last_id
        p.sent_ns = self._relay._lanes.mono_ns
        if p.phase == HOLD:
            put_instant(&instant, self._relay._lanes.wall_ns)
            write_hold(&w, p, text(sent_at, SENT_AT))
        else:
            write_confirm(&w, p)
        assert not w.short and not instant.short, "a plain request is short"
        n = w.at - message
        frame = pen(self.extend(n + FRAME_SPARE), n + FRAME_SPARE)
        self._channel.write_payload(&frame, message, n)
        bucket = &self._relay._ids[bucket_of_id(p.id)]
        p.by_id = bucket[0]
        bucket[0] = place
        self._sent += 1
        self._counters.bump(self._requests, 1)
        return 0

    cdef void _forget(self, uint32_t place) noexcept:
        """Take an operation out of what waits here, or is on its way."""
        cdef Passing* at = self._relay._at
        cdef uint32_t before = 0, here = self._first
        self.passing -= 1
        if at[place].sent_ns:
            self._sent -= 1
            return
        while here and here != place:
            before, here = here, at[here].behind
        if here:
            if before:
                at[before].behind = at[here].behind
            else:
                self._first = at[here].behind
            if self._last == here:
                self._last = before


cdef Py_ssize_t registered_record(
    const unsigned char** at, const Verdict* v, int64_t now_ns, unsigned char* out
) noexcept:
    """A `RedOperation` that was started, with these fields, registered as its platform says; its
    length, 0 where it does not fit."""
    cdef Pen w = pen(out, VALUE_MAX)
    cdef Cursor c = cursor(at[32], at[33] - at[32])
    put_array(&w, RED_FIELDS)
    put(&w, at[0], at[12] - at[0])
    put_chars(&w, b"REGISTRADA", 10)
    put_chars(&w, b"00", 2)
    put_chars(&w, b"APROBADA", 8)
    put_str(&w, v.operation)
    put_str(&w, v.authorization)
    put_str(&w, v.business_date)
    put_uint(&w, v.fee)
    put_uint(&w, v.commission)
    put_str(&w, v.name)
    put_uint(&w, <uint64_t> now_ns)
    put(&w, at[22], at[24] - at[22])
    put_chars(&w, b"confirm", 7)  # owed
    put(&w, at[25], at[31] - at[25])
    put_str(&w, nothing())  # field
    put_array(&w, take_array(&c) + 1)
    put(&w, c.at, at[33] - c.at)
    put_moment(&w, b"REGISTRADA", 10, now_ns)
    put(&w, at[33], at[RED_FIELDS] - at[33])
    return 0 if w.short else w.at - out


cdef void write_hold(Pen* w, const Passing* p, Text sent_at) noexcept:
    put_struct(w, p.fields)
    put_chars(w, b"op", 2)
    put_chars(w, b"hold", 4)
    put_chars(w, b"id", 2)
    put_uint(w, p.id)
    put(w, p.rest, p.rest_n)
    put_chars(w, b"sent_at", 7)
    put_str(w, sent_at)


cdef void write_confirm(Pen* w, const Passing* p) noexcept:
    put_u8(w, 0x84)  # a map of so few
    put_chars(w, b"op", 2)
    put_chars(w, b"confirm", 7)
    put_chars(w, b"id", 2)
    put_uint(w, p.id)
    put_chars(w, b"reference", 9)
    put_str(w, text(p.reference, REFERENCE))
    put_chars(w, b"registered_at", 13)
    put_str(w, nothing())


@cython.final
cdef class Relay(Forwarder):
    """The operations that red passes on natively. One owner thread.

    Args:
        lanes: whose terminals ask, and through which all answers leave.
        records: red's.
        token_digits: of a one-time code; one of 8 may be sent as well.

    Attributes:
        open: requests are passed on, as far as they are plain; see `Forwarder`.
        count: operations on their way.
        confirmed: operations that the platform has acknowledged so far: debts that were paid.
    """

    def __cinit__(self, Lanes lanes not None, Records records not None, int token_digits):
        self._lanes = lanes
        self._straight = lanes.straight
        self._records = records
        self._token_digits = token_digits
        self._ways = []
        self._grow()

    def __dealloc__(self):
        cdef uint32_t place = self._oldest
        while place:
            if self._at[place].origin != NULL:
                Py_DECREF(<TerminalLane> self._at[place].origin)
            Py_DECREF(<PlatformLane> self._at[place].way)
            place = self._at[place].newer
        free(self._at)

    def set_kinds(self, bint cash_out, bint deposit):
        """Which kinds are passed on natively."""
        self._kinds[0], self._kinds[1] = cash_out, deposit

    def add_symbol(self, str currency not None, str sign not None, int exponent):
        """How tickets write amounts of a currency."""
        cdef bytes code = currency.encode(), raw = sign.encode()
        cdef Written* written = &self._symbols[self._symbol_count]
        if self._symbol_count == SYMBOLS or len(code) != 3 or len(raw) > SYMBOL_MAX:
            raise ValueError("at most 64 currencies of three letters, with signs of 8 bytes")
        memcpy(written.currency, <const char*> code, 3)
        memcpy(written.symbol.sign, <const char*> raw, len(raw))
        written.symbol.n = len(raw)
        written.symbol.exponent = exponent
        self._symbol_count += 1

    @property
    def counts(self):
        """How many requests were passed on, and left to the flows for what reason; by kind."""
        cdef int i
        return {
            kind: {_WHY[i] or "passed": self._counts[k][i] for i in range(<int> WHYS)}
            for k, kind in enumerate(("cash_out", "deposit"))
        }

    # ---- what is handed over

    @property
    def next_ns(self):
        """When the oldest is handed over at the latest; None while there is none."""
        return self._at[self._oldest].asked_ns + AGE_NS if self._oldest else None

    def aged(self, int64_t now_ns):
        """Hand over what has been on its way for half a second: its times are Python's."""
        cdef list found = []
        while self._oldest and self._at[self._oldest].asked_ns + AGE_NS <= now_ns:
            found.append(self._given_up(self._oldest))
        return found

    def of_terminal(self, str number not None):
        """Hand over all operations of a terminal: Python is about to look at them."""
        cdef list found = []
        cdef bytes raw = number.encode()
        cdef unsigned char reference[12]
        cdef uint32_t place, following
        if self.count == 0 or len(raw) != 8:
            return found
        memcpy(reference + 4, <const char*> raw, 8)
        place = self._terminals[bucket_of(reference)]
        while place:
            following = self._at[place].by_terminal
            if memcmp(self._at[place].reference + 4, reference + 4, 8) == 0:
                found.append(self._given_up(place))
            place = following
        return found

    cdef tuple _given_up(self, uint32_t place):
        """(network, reference, confirms, origin, trace, hold, session, id, asked_ns, ready_ns,
        sent_ns), and it is ours no more. `hold`: the message, not numbered; b"" once registered."""
        cdef Passing* p = &self._at[place]
        cdef unsigned char message[MESSAGE_MAX]
        cdef Pen w = pen(message, MESSAGE_MAX)
        cdef bytes reference = PyBytes_FromStringAndSize(<const char*> p.reference, REFERENCE)
        cdef uint64_t id = p.id
        cdef TerminalLane origin
        owner = None
        if p.origin != NULL:
            origin = <TerminalLane> p.origin
            owner = origin.owner
        if p.phase == HOLD:
            p.id = 0
            write_hold(&w, p, nothing())
            p.id = id
        taken = (
            reference[:4].decode(), reference.decode(), p.phase == CONFIRM, owner, p.trace,
            PyBytes_FromStringAndSize(<const char*> message, w.at - message),
            (<PlatformLane> p.way).session, id, p.asked_ns, p.ready_ns, p.sent_ns,
        )
        self._end(place)
        return taken

    # ---- places

    cdef int _grow(self) except -1:
        cdef uint32_t capacity = max(2 * self._capacity, 64), place
        cdef void* larger = realloc(self._at, capacity * sizeof(Passing))
        if larger == NULL:
            raise MemoryError
        self._at = <Passing*> larger
        memset(self._at + self._capacity, 0, (capacity - self._capacity) * sizeof(Passing))
        for place in range(max(self._capacity, 1), capacity):  # place 0 stands for none
            self._at[place].newer = self._free
            self._free = place
        self._capacity = capacity
        return 0

    cdef uint32_t _new(self) except? 0:
        """A place; 0: there are too many."""
        cdef uint32_t place
        if self.count >= PASSING_MAX:
            return 0
        if self._free == 0:
            self._grow()
        place = self._free
        self._free = self._at[place].newer
        return place

    cdef void _append(self, uint32_t place) noexcept:
        """As the newest of all."""
        self._at[place].older = self._newest
        self._at[place].newer = 0
        if self._newest:
            self._at[self._newest].newer = place
        else:
            self._oldest = place
        self._newest = place

    cdef void _unlink(self, uint32_t place) noexcept:
        cdef Passing* p = &self._at[place]
        if p.older:
            self._at[p.older].newer = p.newer
        else:
            self._oldest = p.newer
        if p.newer:
            self._at[p.newer].older = p.older
        else:
            self._newest = p.older

    cdef void _drop_id(self, uint32_t place) noexcept:
        cdef uint32_t* at = &self._ids[bucket_of_id(self._at[place].id)]
        if self._at[place].id == 0:
            return
        while at[0] != place:
            at = &self._at[at[0]].by_id
        at[0] = self._at[place].by_id
        self._at[place].id = 0

    cdef void _end(self, uint32_t place) noexcept:
        """Give the place back, and with it all that belongs to it."""
        cdef Passing* p = &self._at[place]
        cdef uint32_t* at = &self._terminals[bucket_of(p.reference)]
        (<PlatformLane> p.way)._forget(place)
        self._drop_id(place)
        while at[0] != place:
            at = &self._at[at[0]].by_terminal
        at[0] = p.by_terminal
        self._unlink(place)
        if p.origin != NULL:
            Py_DECREF(<TerminalLane> p.origin)
        Py_DECREF(<PlatformLane> p.way)
        p.origin = p.way = NULL
        memset(p.rest, 0, REST_MAX)
        p.phase = FREE
        p.use += 1
        p.newer = self._free
        self._free = place
        self.count -= 1

    cdef uint32_t _sent_by(self, PlatformLane lane, uint64_t id) noexcept:
        """The operation whose request has this id in this session; 0: none of ours."""
        cdef uint32_t place = self._ids[bucket_of_id(id)]
        while place:
            if self._at[place].id == id and self._at[place].way == <void*> lane:
                return place
            place = self._at[place].by_id
        return 0

    cdef int _wait(self, uint32_t place) except -1:
        """Have the next message of an operation wait until what is written now is durable."""
        cdef Passing* p = &self._at[place]
        cdef PlatformLane way = <PlatformLane> p.way
        cdef uint32_t mark[2]
        mark[0], mark[1] = place, p.use
        p.ready_ns = p.sent_ns = 0
        self._lanes.keep(way, <unsigned char*> mark, MARK_BYTES, NO_REQUEST)
        (<Lane> way).in_flight += 1
        return 0

    # ---- a request

    cdef bint forward(
        self, TerminalLane lane, const Request* r, bint json, int64_t now_ns, int64_t mono_ns
    ) except -1:
        cdef int why = self._forward(lane, r, json, now_ns, mono_ns)
        self._counts[<int> r.operation.deposit][why] += 1
        return why == MINE

    cdef int _forward(
        self, TerminalLane lane, const Request* r, bint json, int64_t now_ns, int64_t mono_ns
    ) except -1:
        cdef Straight straight = self._straight
        cdef PlatformLane way
        cdef Asked a
        cdef Pen w = pen(a.texts, TEXTS_MAX)
        cdef int why
        if not straight._from_ns <= now_ns < straight._until_ns:
            return TIME
        if not self._kinds[<int> r.operation.deposit]:
            return OFF
        if json != lane._json or not (r.operation.deposit or r.operation.token.n in (
                self._token_digits, 8)):
            return FORM
        why = straight._identity(&r.operation, &a, &w)
        if why == MINE:
            why = straight._peers(text(lane._terminal, 8), &r.operation, &a, &w)
        if why != MINE:
            return why
        if a.ticket and not straight._printable(&a):
            return PAPER
        if not straight._refer(&r.operation, &a, now_ns, &w) or self._similar(&a):
            return KNOWN
        way = self._way(a.hold.network)
        return OFF if way is None else self._start(&a, lane, way, json, now_ns, mono_ns)

    cdef int _start(
        self, const Asked* a, TerminalLane lane, PlatformLane way, bint json, int64_t now_ns,
        int64_t mono_ns,
    ) except -1:
        """Write an operation as started, and pass it on. Values are made before anything changes,
        since texts lie in the record store."""
        cdef unsigned char record[VALUE_MAX]
        cdef unsigned char terminal[8]
        cdef Py_ssize_t n = started_record(
            a, digest_at_red(self._straight._fingerprint, a), now_ns, record
        )
        cdef uint32_t place = self._new()
        cdef uint32_t* bucket
        cdef Passing* p
        cdef Pen w
        if place == 0:
            return COUNT
        p = &self._at[place]
        w = pen(p.rest, REST_MAX)
        put_hold(&w, a)
        if w.short or n == 0:
            p.newer, self._free = self._free, place
            return FORM
        p.rest_n = w.at - p.rest
        p.fields = hold_fields(a)
        memcpy(p.reference, a.reference.p, REFERENCE)
        memcpy(terminal, a.newest.p, 8)
        p.phase, p.json, p.trace, p.asked_ns, p.id = HOLD, json, a.trace, mono_ns, 0
        self._records.store(SPACE_NEWEST, terminal, 8, p.reference, REFERENCE, False, now_ns)
        self._records.store(SPACE_RED, p.reference, REFERENCE, record, n, True, now_ns)
        p.origin, p.way = <void*> lane, <void*> way
        Py_INCREF(lane)
        Py_INCREF(way)
        way.passing += 1
        bucket = &self._terminals[bucket_of(p.reference)]
        p.by_terminal = bucket[0]
        bucket[0] = place
        self._append(place)
        self.count += 1
        self._wait(place)
        return MINE

    cdef bint _similar(self, const Asked* a) noexcept:
        """Whether the terminal's newest operation is the same again, and still open (I05)."""
        cdef const unsigned char* at[RED_FIELDS + 1]
        cdef const unsigned char* value = NULL
        cdef unsigned char body[64]
        cdef Pen w = pen(body, sizeof(body))
        cdef Py_ssize_t n = 0
        if not self._records.lookup(SPACE_NEWEST, a.newest.p, a.newest.n, &value, &n):
            return False
        if not self._records.lookup(SPACE_RED, value, n, &value, &n):
            return False
        if not split_array(value, n, at, RED_FIELDS):
            return True  # an older form of the record
        put_array(&w, 2)
        put_identity(&w, a)
        return (
            field_is(at, 12, b"\xa8INICIADA", 9)
            and uint_at(at, 7) == <uint64_t> a.hold.amount
            and same(text_at(at, 1), a.kind)
            and field_is(at, 9, <const char*> body, w.at - body)
        )

    cdef PlatformLane _way(self, Text network):
        """The session of a network with the fewest requests in flight, or None."""
        cdef PlatformLane lane, best = None
        for lane in self._ways:
            if (lane.fd >= 0 and lane.attended and same(network, text(lane._network, 4)) and (
                    best is None or lane.passing + lane.others < best.passing + best.others)):
                best = lane
        return best

    # ---- its answers

    cdef bint _register(
        self, uint32_t place, const Verdict* v, int64_t now_ns, int64_t mono_ns
    ) except -1:
        """Register what the platform has approved, as `Red._decide`; False, and nothing changed:
        not by us."""
        cdef Passing* p = &self._at[place]
        cdef unsigned char out[VALUE_MAX]
        cdef unsigned char answer[ANSWER_MAX]
        cdef const unsigned char* at[RED_FIELDS + 1]
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0, answer_n
        cdef Told told
        cdef Ticket ticket
        if not (v.operation.n and v.authorization.n and v.business_date.n):
            return False
        if not self._records.lookup(SPACE_RED, p.reference, REFERENCE, &value, &n):
            return False
        if not split_array(value, n, at, RED_FIELDS) or not (
            field_is(at, 12, b"\xa8INICIADA", 9) and field_is(at, 24, b"\xa0", 1)
            and field_is(at, 33, b"\xa0", 1)
        ):
            return False
        ticket.count = 0
        n = registered_record(at, v, now_ns, out)
        if n == 0 or self._counts_till(at) or not self._print(at, v, now_ns, &ticket):
            return False
        told.deposit = field_is(at, 1, b"\xa7deposit", 8)
        told.amount = <int64_t> uint_at(at, 7)
        told.trace, told.original, told.fee, told.delivered = p.trace, 0, <int64_t> v.fee, False
        told.operation, told.authorization = v.operation, v.authorization
        told.business_date = v.business_date
        answer_n = (<TerminalLane> p.origin)._encode(&told, &ticket, p.json, answer)
        self._records.store(SPACE_RED, p.reference, REFERENCE, out, n, True, uint_at(at, 11))
        self._lanes.keep(<TerminalLane> p.origin, answer, answer_n, mono_ns)
        Py_DECREF(<TerminalLane> p.origin)
        p.origin = NULL
        (<PlatformLane> p.way)._sent -= 1
        memset(p.rest, 0, REST_MAX)  # with the code, of which nobody has need any more
        self._drop_id(place)
        self._unlink(place)
        p.phase, p.asked_ns = CONFIRM, mono_ns
        self._append(place)
        self._wait(place)
        return True

    cdef bint _counts_till(self, const unsigned char** at) noexcept:
        """Whether the cash of an operation is counted by a shift, which is for the flows."""
        cdef const unsigned char* value = NULL
        cdef unsigned char key[10]
        cdef Text network = text_at(at, 2), cashier = text_at(at, 5)
        cdef Py_ssize_t n = 0
        if network.n != 4 or cashier.n != 6:
            return True
        memcpy(key, network.p, 4)
        memcpy(key + 4, cashier.p, 6)
        return self._records.lookup(SPACE_SHIFTS, key, 10, &value, &n)

    cdef bint _print(
        self, const unsigned char** at, const Verdict* v, int64_t now_ns, Ticket* ticket
    ) except -1:
        """The ticket of what is about to be registered, where its terminal wants one; False: it is
        for Python to compose. `at`: the fields of its record."""
        cdef Straight straight = self._straight
        cdef unsigned char holder[HOLDER_MAX]
        cdef unsigned char masked[HOLDER_MAX]
        cdef unsigned char key[10]
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0
        cdef const Symbol* symbol = self._symbol_of(text_at(at, 8))
        cdef Pen w = pen(holder, HOLDER_MAX)
        cdef Pen mask = pen(masked, HOLDER_MAX)
        cdef Printed p
        cdef Cursor c
        p.terminal = text_at(at, 3)
        if not self._records.lookup(SPACE_TERMINALS, p.terminal.p, p.terminal.n, &value, &n):
            return True
        c = cursor(value, n)
        if take_array(&c) < 6:
            return False
        skip(&c, 5)
        if not take_bool(&c):
            return not c.short
        p.branch, p.cashier = text_at(at, 4), text_at(at, 5)
        if not (straight._style.known and straight._from_ns <= now_ns < straight._until_ns):
            return False
        if symbol == NULL or p.branch.n != 6 or not (
            is_word(v.operation, 12) and is_word(v.authorization, 6)
            and is_word(v.business_date, 10)
        ):
            return False
        p.deposit = field_is(at, 1, b"\xa7deposit", 8)
        if p.deposit and not (mask_name(v.name, &mask) and put_plain(
            &w, text(masked, mask.at - masked)
        )):
            return False
        memcpy(key, text_at(at, 2).p, 4)
        memcpy(key + 4, p.cashier.p, 6)
        p.cashier_name = nothing()
        if self._records.lookup(SPACE_CASHIERS, key, 10, &value, &n):
            c = cursor(value, n)
            if take_array(&c) < 6:
                return False
            skip(&c, 3)
            p.cashier_name = take_str(&c)
            if c.short or not fits_line(p.cashier_name):
                return False
        p.holder = text(holder, w.at - holder)
        p.reference, p.currency = text_at(at, 0), text_at(at, 8)
        p.operation, p.authorization, p.business_date = v.operation, v.authorization, v.business_date
        c = cursor(at[9], at[10] - at[9])
        take_array(&c)
        p.document_type, p.identity = take_str(&c), take_str(&c)
        if is_text(p.document_type, b"TEL", 3):
            p.document_type = nothing()
        p.amount, p.fee = <int64_t> uint_at(at, 7), <int64_t> v.fee
        p.second = (now_ns + straight._offset_ns) // 1_000_000_000 % 86400
        p.trace = uint_at(at, 6)
        compose(&straight._style, symbol, straight._ticket_key, &p, ticket)
        return True

    cdef const Symbol* _symbol_of(self, Text currency) noexcept:
        cdef int i
        for i in range(self._symbol_count):
            if same(currency, text(self._symbols[i].currency, 3)):
                return &self._symbols[i].symbol
        return NULL

    cdef bint _confirm(self, uint32_t place) except -1:
        """The platform knows that it is registered: nothing is owed any more; as `Red._paid`."""
        cdef Passing* p = &self._at[place]
        cdef unsigned char out[VALUE_MAX]
        cdef const unsigned char* at[RED_FIELDS + 1]
        cdef const unsigned char* value = NULL
        cdef Py_ssize_t n = 0
        cdef Pen w = pen(out, VALUE_MAX)
        if not self._records.lookup(SPACE_RED, p.reference, REFERENCE, &value, &n):
            return False
        if not split_array(value, n, at, RED_FIELDS) or not (
            field_is(at, 24, b"\xa7confirm", 8) and field_is(at, 26, b"\0", 1)
        ):
            return False
        put(&w, value, at[24] - value)
        put_str(&w, nothing())
        put(&w, at[25], at[RED_FIELDS] - at[25])
        if w.short:
            return False
        self._records.store(
            SPACE_RED, p.reference, REFERENCE, out, w.at - out, False, uint_at(at, 11)
        )
        self.confirmed += 1
        self._end(place)
        return True


# ---- for tests: what flows and native core both make


def instant(int64_t ns):
    """A time as a hold tells it."""
    cdef unsigned char out[SENT_AT]
    cdef Pen w = pen(out, SENT_AT)
    put_instant(&w, ns)
    return (<const char*> out)[:w.at - out].decode()
