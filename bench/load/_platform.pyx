"""A remote platform that costs as little as one can: it approves what networks ask, natively.

For the forwarding hop: behind it stands the switch alone, not another node with a disk. Frames are
those of the session protocol in MessagePack, as between nodes, their MACs checked and made;
connections are signed on already.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove
from posix.unistd cimport close

from bench.load._sockets cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_DONTWAIT,
    MSG_NOSIGNAL, after, epoll_create1, epoll_ctl, epoll_event, epoll_wait, memmem, recv, send,
)
from core_ext._cursor cimport (
    Cursor, Pen, cursor, left, pen, put, put_u16be, put_u64be, reserve, room, take, take_u8,
    take_u16be,
)
from core_ext._mac cimport MacKey
from cpython.exc cimport PyErr_CheckSignals

cdef enum:
    EVENTS_MAX = 64
    TAG_BYTES = 8
    IN_BYTES = 1 << 17
    OUT_BYTES = 1 << 19
    ANSWER_BYTES_MAX = 512    # with length and MAC
    REFERENCE_BYTES = 26
    OPERATION_DIGITS = 12


cdef struct Session:
    int fd
    void* key                 # borrowed MacKey
    uint64_t received
    uint64_t sent
    unsigned char* inbound
    Py_ssize_t inbound_bytes
    unsigned char* outbound
    Py_ssize_t out_from
    Py_ssize_t out_to
    bint awaits_room


cdef struct Counts:
    uint64_t holds
    uint64_t others
    uint64_t strange          # frames that nobody understood
    uint64_t bad


cdef Py_ssize_t answer(const unsigned char* p, Py_ssize_t n, const unsigned char* date,
                       Counts* counts, unsigned char* out) noexcept nogil:
    """The payload that answers a request, or 0 where there is nothing to answer."""
    cdef Pen to = pen(out, ANSWER_BYTES_MAX)
    cdef uint64_t number
    cdef unsigned char* digits
    cdef Cursor reference
    cdef bint hold = memmem(p, n, b"\xa2op\xa4hold", 8) != NULL
    cdef int i
    if not id_of(p, n, &number):
        if memmem(p, n, b"\xa2op\xa4echo", 8) != NULL:
            put(&to, b"\x81\xa2op\xabecho_answer", 16)
            return ANSWER_BYTES_MAX - room(&to)
        counts.strange += 1
        return 0
    reference = after(p, n, b"\xa9reference\xba", 11)
    if left(&reference) < REFERENCE_BYTES:
        counts.strange += 1
        return 0
    put(&to, b"\x8a" if hold else b"\x84", 1)
    put(&to, b"\xa2op\xa6answer\xa2id\xcf", 14)
    put_u64be(&to, number)
    put(&to, b"\xa4code\xa200\xa9reference\xba", 19)
    put(&to, reference.at, REFERENCE_BYTES)
    if not hold:
        counts.others += 1
        return ANSWER_BYTES_MAX - room(&to)
    counts.holds += 1
    put(&to, b"\xa9operation\xac", 11)
    digits = reserve(&to, OPERATION_DIGITS)
    number = counts.holds
    for i in range(OPERATION_DIGITS):
        digits[OPERATION_DIGITS - 1 - i] = <unsigned char> (0x30 + number % 10)
        number //= 10
    put(&to, b"\xadauthorization\xa6A1B2C3\xadbusiness_date\xaa", 36)
    put(&to, date, 10)
    put(&to, b"\xa3fee\x00\xaacommission\x00\xa9duplicate\xc2", 28)
    return ANSWER_BYTES_MAX - room(&to)


cdef bint id_of(const unsigned char* p, Py_ssize_t n, uint64_t* number) noexcept nogil:
    """The whole number behind the key `id` of a MessagePack map; False where there is none."""
    cdef Cursor c = after(p, n, b"\xa2id", 3)
    cdef unsigned char kind = take_u8(&c)
    cdef int i, octets
    number[0] = kind
    if c.short:
        return False
    if kind < 0x80:
        return True
    if not 0xCC <= kind <= 0xCF:
        return False
    octets = 1 << (kind - 0xCC)
    number[0] = 0
    for i in range(octets):
        number[0] = number[0] << 8 | take_u8(&c)
    return not c.short


cdef int respond(Session* s, const unsigned char* date, Counts* counts) except -1 nogil:
    """Answer every whole frame that has come, as long as there is room for answers."""
    cdef Cursor rest = cursor(s.inbound, s.inbound_bytes)
    cdef Cursor frame
    cdef const unsigned char* body
    cdef Py_ssize_t body_bytes, n
    cdef unsigned char payload[ANSWER_BYTES_MAX]
    cdef Pen out = pen(s.outbound + s.out_to, OUT_BYTES - s.out_to)
    cdef unsigned char* place
    while room(&out) >= ANSWER_BYTES_MAX:
        frame = rest
        body_bytes = take_u16be(&frame)
        if frame.short:
            break
        body = take(&frame, body_bytes)
        if body == NULL:
            break
        rest = frame
        n = body_bytes - TAG_BYTES
        if n <= 0 or not (<MacKey> s.key).verify8(1, s.received, body, n, body + n):
            counts.bad += 1
            continue
        s.received += 1
        n = answer(body, n, date, counts, payload)
        if n:
            put_u16be(&out, <unsigned short> (n + TAG_BYTES))
            place = reserve(&out, n + TAG_BYTES)
            memcpy(place, payload, n)
            (<MacKey> s.key).mac8(2, s.sent, place, n, place + n)
            s.sent += 1
    s.inbound_bytes = left(&rest)
    memmove(s.inbound, rest.at, s.inbound_bytes)
    s.out_to = OUT_BYTES - room(&out)
    return 0


cdef bint flush(int epoll, Session* s) noexcept nogil:
    """Write what the socket takes; False where the connection is over."""
    cdef Py_ssize_t n
    cdef epoll_event event
    cdef bint wanted
    while s.out_from < s.out_to:
        n = send(s.fd, s.outbound + s.out_from, s.out_to - s.out_from,
                 MSG_DONTWAIT | MSG_NOSIGNAL)
        if n < 0 and errno == EINTR:
            continue
        if n < 0 and errno != EAGAIN:
            return False
        if n < 0:
            break
        s.out_from += n
    memmove(s.outbound, s.outbound + s.out_from, s.out_to - s.out_from)
    s.out_to -= s.out_from
    s.out_from = 0
    wanted = s.out_to > 0
    if wanted != s.awaits_room:
        event.events = EPOLLIN | EPOLLOUT if wanted else EPOLLIN
        event.data.ptr = s
        epoll_ctl(epoll, EPOLL_CTL_MOD, s.fd, &event)
        s.awaits_room = wanted
    return True


cdef bint ready(int epoll, Session* s, const unsigned char* date, Counts* counts
                ) except -1 nogil:
    """One turn of a connection; False where it is over."""
    cdef Py_ssize_t n
    if s.inbound_bytes < IN_BYTES:
        n = recv(s.fd, s.inbound + s.inbound_bytes, IN_BYTES - s.inbound_bytes, MSG_DONTWAIT)
        if n == 0 or (n < 0 and errno != EAGAIN and errno != EINTR):
            return False
        s.inbound_bytes += max(n, 0)
    respond(s, date, counts)
    return flush(epoll, s)


cdef int serve(int epoll, int stop_fd, Py_ssize_t count, const unsigned char* date, Counts* counts
               ) except -1 nogil:
    """Until `stop_fd` is readable or all connections are over."""
    cdef epoll_event events[EVENTS_MAX]
    cdef Session* s
    cdef int n, i
    while count:
        n = epoll_wait(epoll, events, EVENTS_MAX, 1000)
        if n < 0 and errno != EINTR:
            with gil:
                raise OSError(errno, "epoll_wait")
        if n <= 0:
            with gil:
                PyErr_CheckSignals()
        for i in range(n):
            s = <Session*> events[i].data.ptr
            if s == NULL:
                return 0
            if not ready(epoll, s, date, counts):
                epoll_ctl(epoll, EPOLL_CTL_DEL, s.fd, NULL)
                count -= 1
    return 0


def approve(list fds not None, list keys not None, int stop_fd, bytes business_date not None):
    """Approve every request of signed-on networks until `stop_fd` is readable.

    Args:
        fds: connected sockets whose sign-on is done, nothing behind it read.
        keys: the session key of each.
        stop_fd: ends it when it is readable or at its end.
        business_date: told with every hold, YYYY-MM-DD.

    Returns how many holds and other requests were approved, and how many frames were strange or had
    a bad MAC. Raises ValueError for arguments that do not fit, OSError where epoll fails.
    """
    cdef Session* sessions
    cdef Py_ssize_t i, count = len(fds)
    cdef epoll_event event
    cdef int epoll
    cdef Counts counts
    cdef const unsigned char* date = business_date
    if not fds or len(keys) != count or len(business_date) != 10:
        raise ValueError("a key for each of at least one connection, and a date of ten characters")
    if not all(isinstance(key, MacKey) for key in keys):
        raise TypeError("keys must be MacKey objects")
    counts.holds = counts.others = counts.strange = counts.bad = 0
    epoll = epoll_create1(EPOLL_CLOEXEC)
    if epoll < 0:
        raise OSError(errno, "epoll_create1")
    sessions = <Session*> calloc(count, sizeof(Session))
    try:
        if sessions == NULL:
            raise MemoryError
        for i in range(count):
            sessions[i].fd = fds[i]
            sessions[i].key = <void*> keys[i]
            sessions[i].received = sessions[i].sent = 1
            sessions[i].inbound = <unsigned char*> calloc(1, IN_BYTES)
            sessions[i].outbound = <unsigned char*> calloc(1, OUT_BYTES)
            if sessions[i].inbound == NULL or sessions[i].outbound == NULL:
                raise MemoryError
            event.events = EPOLLIN
            event.data.ptr = &sessions[i]
            if epoll_ctl(epoll, EPOLL_CTL_ADD, sessions[i].fd, &event) < 0:
                raise OSError(errno, "epoll_ctl")
        event.events = EPOLLIN
        event.data.ptr = NULL
        if epoll_ctl(epoll, EPOLL_CTL_ADD, stop_fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        with nogil:
            serve(epoll, stop_fd, count, date, &counts)
    finally:
        if sessions != NULL:
            for i in range(count):
                free(sessions[i].inbound)
                free(sessions[i].outbound)
        free(sessions)
        close(epoll)
    return {"holds": counts.holds, "others": counts.others, "strange": counts.strange,
            "bad": counts.bad}
