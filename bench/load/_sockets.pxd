"""What the native parts of the load share: system calls, clocks, and looking things up in JSON."""

from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport clock_gettime, timespec

from core_ext._cursor cimport Cursor, cursor, left, take_u8

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


cdef inline uint64_t clock_ns(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(<int> clock, &t)
    return <uint64_t> t.tv_sec * 1000000000 + <uint64_t> t.tv_nsec


cdef inline Cursor after(
    const unsigned char* p, Py_ssize_t n, const char* wanted, Py_ssize_t m
) noexcept nogil:
    """A cursor behind the first `wanted`; a short one where it is missing."""
    cdef const unsigned char* at = <const unsigned char*> memmem(p, n, wanted, m)
    if at == NULL:
        return cursor(p, -1)
    return cursor(at + m, p + n - at - m)


cdef inline int number_after(
    const unsigned char* p, Py_ssize_t n, const char* name, Py_ssize_t m, uint64_t* value
) noexcept nogil:
    """The number behind a field's name, up to 18 digits of it; how many digits it has."""
    cdef Cursor c = after(p, n, name, m)
    cdef int digits = 0
    cdef unsigned char digit
    value[0] = 0
    while left(&c) > 0 and digits < 18:
        digit = take_u8(&c)
        if digit < 0x30 or digit > 0x39:
            break
        value[0] = value[0] * 10 + (digit - 0x30)
        digits += 1
    return digits
