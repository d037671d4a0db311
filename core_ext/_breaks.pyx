"""Breaks for work that may wait, so that whoever shares CPU or disk with it never waits long.

A follower asks for CPU time that nobody else wants. But once it runs, the scheduler of Linux may
let it go on to the next tick, 4 ms at 250 Hz, while the thread that answers terminals stands behind
it: not often, yet often enough to be one answer in a hundred. No policy or priority that a process
may choose for itself prevents that; a process that sleeps does. So a timer's signal comes after
`work_us`, also in the midst of SQLite or of a replay, and its handler sleeps for `rest_us`: another
thread has the CPU after a fraction of a millisecond. `nanosleep`, `clock_gettime` and
`timer_settime` are what POSIX lets a handler call.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef sigev_notify_thread_id
    #define sigev_notify_thread_id _sigev_un._tid
    #endif
    #define BR_SIGNAL (SIGRTMIN + 5)

    static struct {
        volatile sig_atomic_t on;
        int64_t work_ns, rest_ns;
        int64_t since_ns;        /* CPU time of the thread at the end of its last break */
        uint64_t taken;
        timer_t timer;
    } br;

    static int64_t br_cpu_ns(void) {
        struct timespec at;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
        return (int64_t) at.tv_sec * 1000000000 + at.tv_nsec;
    }

    static int br_arm(int64_t ns) {
        struct itimerspec at = {{0, 0}, {ns / 1000000000, ns % 1000000000}};
        return timer_settime(br.timer, 0, &at, NULL);
    }

    /* Time that the thread only waited for a CPU does not count, so it gets on however busy the
       machine is. */
    static void br_signalled(int number) {
        int before = errno;
        int64_t left;
        if (br.on) {
            left = br.work_ns - (br_cpu_ns() - br.since_ns);
            if (left < br.work_ns / 8) {
                struct timespec rest = {br.rest_ns / 1000000000, br.rest_ns % 1000000000};
                nanosleep(&rest, NULL);
                br.taken++;
                br.since_ns = br_cpu_ns();
                left = br.work_ns;
            }
            br_arm(left);
        }
        errno = before;
    }

    static int br_begin(int64_t work_ns, int64_t rest_ns) {
        struct sigaction action;
        struct sigevent event;
        memset(&action, 0, sizeof(action));
        action.sa_handler = br_signalled;
        action.sa_flags = SA_RESTART;
        sigemptyset(&action.sa_mask);
        memset(&event, 0, sizeof(event));
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = BR_SIGNAL;
        event.sigev_notify_thread_id = (pid_t) syscall(SYS_gettid);
        if (sigaction(BR_SIGNAL, &action, NULL))
            return errno;
        if (timer_create(CLOCK_MONOTONIC, &event, &br.timer))
            return errno;
        br.work_ns = work_ns;
        br.rest_ns = rest_ns;
        br.since_ns = br_cpu_ns();
        br.on = 1;
        if (br_arm(work_ns)) {
            int error = errno;
            br.on = 0;
            timer_delete(br.timer);
            return error;
        }
        return 0;
    }

    /* A signal that is still on its way finds it off. */
    static void br_end(void) {
        br.on = 0;
        timer_delete(br.timer);
    }

    /* Where a file system has no such call, fdatasync does it all. */
    static void br_write_piece(int fd, int64_t offset, int64_t count) {
    #ifdef SYNC_FILE_RANGE_WRITE
        sync_file_range(fd, offset, count, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE
                                               | SYNC_FILE_RANGE_WAIT_AFTER);
    #endif
    }

    static int br_on(void) { return br.on; }
    static uint64_t br_taken(void) { return br.taken; }
    """
    int br_begin(int64_t work_ns, int64_t rest_ns) nogil
    void br_end() nogil
    void br_write_piece(int fd, int64_t offset, int64_t count) nogil
    int br_on() nogil
    uint64_t br_taken() nogil


@cython.final
cdef class Breaks:
    """While entered, the thread sleeps `rest_us` after each `work_us` of CPU time, whatever it does.

    One thread of a process at a time: entered while another is, it does nothing. Where the system
    has no timer left, there are no breaks: the work is done all the same.

    Args:
        work_us: 50 to 1 000 000, microseconds of CPU time from one break to the next.
        rest_us: 1 to 1 000 000, microseconds; the system adds some 50.
    """

    cdef readonly int work_us
    cdef readonly int rest_us
    cdef bint _entered

    def __cinit__(self, int work_us=400, int rest_us=60):
        if not 50 <= work_us <= 1_000_000 or not 1 <= rest_us <= 1_000_000:
            raise ValueError("work_us is 50..1000000, rest_us 1..1000000")
        self.work_us = work_us
        self.rest_us = rest_us

    def __enter__(self):
        if not br_on():  # who is there already goes on with its own
            work_ns = <int64_t> self.work_us * 1000
            self._entered = br_begin(work_ns, <int64_t> self.rest_us * 1000) == 0
        return self

    def __exit__(self, *error):
        if self._entered:
            br_end()
        self._entered = False


def taken():
    """Return how many breaks this process has taken so far."""
    return br_taken()


cdef extern from "<unistd.h>":
    int fdatasync(int fd) nogil


def write_out(int fd, int64_t size, int64_t piece_bytes=256 * 1024):
    """Make the first `size` bytes of a file durable, piece by piece.

    One `fdatasync` hands all that is dirty to the disk at once, and whoever writes next waits
    behind it. Here that is one piece.

    Raises:
        OSError: of the `fdatasync` at the end, which finds little left.
        ValueError: piece_bytes is not positive.
    """
    if piece_bytes < 1:
        raise ValueError("piece_bytes must be positive")
    cdef int64_t offset = 0
    cdef int failed
    while offset < size:
        with nogil:
            br_write_piece(fd, offset, piece_bytes)
        offset += piece_bytes
        PyErr_CheckSignals()
    with nogil:
        failed = fdatasync(fd)
    if failed:
        raise OSError(errno, "fdatasync")
