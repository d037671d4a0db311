"""The journal: decisions on disk before anybody hears of them.

A journal is a directory of segments, `journal-000000000001.seg` and so on. A segment is a run of
groups, each at a multiple of 4096 bytes, followed by zeros. A group, little-endian throughout:

     0  magic       8 bytes  "TRNCJRN1"
     8  partition   u32
    12  crc32c      u32      of the bytes 0..11, then 16..end of the records
    16  epoch       u64      of the owner who wrote it; never falls
    24  first_seq   u64      sequence of the first record; groups follow each other without a gap
    32  time_ns     u64      when it was sealed, since 1970; informative
    40  count       u32      records, at least 1
    44  length      u32      bytes of records
    48  chain      32 bytes  SHA-256 of the previous group, header and records; zeros first
    80  records              each a u32, kind << 24 | length, and its payload
        padding              zeros up to a multiple of 4096

A group is one write and is atomic: it is there whole or not at all. Only the last one may be bad
(torn by a crash, never acknowledged); a good group beyond a bad one means that acknowledged
decisions are lost, and is `Corruption`.

Three parties share a `Journal`. The owner (any one thread with the GIL) encodes records into the
open group and seals it. The flusher, a native thread that never takes the GIL, writes sealed
groups in order and signals an eventfd. The zeroer, likewise native, writes zeros ahead of the
flusher, so that a group overwrites blocks which exist: then O_DIRECT|O_DSYNC costs one write to
the device and no journal commit of the file system. Where O_DIRECT is refused (tmpfs) the flusher
writes through the page cache and calls fdatasync.

Places are kept as one linear address, (segment - 1) * segment_bytes + offset.
"""

import collections
import fcntl
import os
import re

cimport cython
from libc.errno cimport EDQUOT, EINTR, EIO, ENOSPC, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strerror

from core_ext._sink cimport Replica, Sink


cdef extern from *:
    """
    #include <dlfcn.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/eventfd.h>
    #include <sys/statvfs.h>
    #include <time.h>
    #include <unistd.h>

    static uint32_t jr_crc_table[8][256];

    static void jr_crc_tables(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = i;
            for (int bit = 0; bit < 8; bit++)
                crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1u)));
            jr_crc_table[0][i] = crc;
        }
        for (int i = 0; i < 256; i++)
            for (int k = 1; k < 8; k++)
                jr_crc_table[k][i] = (jr_crc_table[k - 1][i] >> 8)
                    ^ jr_crc_table[0][jr_crc_table[k - 1][i] & 0xff];
    }

    static uint32_t jr_crc_portable(uint32_t crc, const unsigned char* p, size_t n) {
        for (; n >= 8; p += 8, n -= 8) {
            uint32_t low = crc ^ ((uint32_t) p[0] | (uint32_t) p[1] << 8
                                  | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24);
            crc = jr_crc_table[7][low & 0xff] ^ jr_crc_table[6][low >> 8 & 0xff]
                ^ jr_crc_table[5][low >> 16 & 0xff] ^ jr_crc_table[4][low >> 24]
                ^ jr_crc_table[3][p[4]] ^ jr_crc_table[2][p[5]]
                ^ jr_crc_table[1][p[6]] ^ jr_crc_table[0][p[7]];
        }
        for (; n; p++, n--)
            crc = (crc >> 8) ^ jr_crc_table[0][(crc ^ *p) & 0xff];
        return crc;
    }

    #if defined(__x86_64__)
    __attribute__((target("sse4.2")))
    static uint32_t jr_crc_sse42(uint32_t crc, const unsigned char* p, size_t n) {
        uint64_t wide = crc;
        for (; n >= 8; p += 8, n -= 8) {
            uint64_t word;
            memcpy(&word, p, 8);
            wide = __builtin_ia32_crc32di(wide, word);
        }
        crc = (uint32_t) wide;
        for (; n; p++, n--)
            crc = __builtin_ia32_crc32qi(crc, *p);
        return crc;
    }
    static int jr_has_sse42(void) { return __builtin_cpu_supports("sse4.2") != 0; }
    #else
    static uint32_t jr_crc_sse42(uint32_t crc, const unsigned char* p, size_t n) {
        return jr_crc_portable(crc, p, n);
    }
    static int jr_has_sse42(void) { return 0; }
    #endif

    static inline uint64_t jr_load(const uint64_t* p) {
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);
    }
    static inline void jr_store(uint64_t* p, uint64_t value) {
        __atomic_store_n(p, value, __ATOMIC_RELEASE);
    }

    /* A thread that leaves every signal to the interpreter's own threads. */
    static int jr_spawn(pthread_t* thread, void* (*main)(void*), void* arg) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int error = pthread_create(thread, NULL, main, arg);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return error;
    }

    static int jr_cond_init(pthread_cond_t* cond) {
        pthread_condattr_t attr;
        int error = pthread_condattr_init(&attr);
        if (!error) error = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        if (!error) error = pthread_cond_init(cond, &attr);
        return error;
    }

    static void jr_wait_us(pthread_cond_t* cond, pthread_mutex_t* lock, long us) {
        struct timespec at;
        clock_gettime(CLOCK_MONOTONIC, &at);
        at.tv_sec += us / 1000000;
        at.tv_nsec += us % 1000000 * 1000;
        if (at.tv_nsec >= 1000000000) { at.tv_sec++; at.tv_nsec -= 1000000000; }
        pthread_cond_timedwait(cond, lock, &at);
    }

    static uint64_t jr_now_ns(void) {
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        return (uint64_t) at.tv_sec * 1000000000u + (uint64_t) at.tv_nsec;
    }

    static uint64_t jr_free_bytes(int fd) {
        struct statvfs fs;
        if (fstatvfs(fd, &fs) != 0) return 0;
        return (uint64_t) fs.f_bavail * fs.f_frsize;
    }

    static int jr_open(int dir_fd, const char* name, int flags) {
        return openat(dir_fd, name, flags | O_WRONLY | O_CLOEXEC, 0600);
    }

    static int jr_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }

    typedef unsigned char* (*jr_sha256_t)(const unsigned char*, size_t, unsigned char*);
    static jr_sha256_t jr_find_sha256(void) {
        void* library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
        return library ? (jr_sha256_t) dlsym(library, "SHA256") : NULL;
    }
    """
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*) nogil
    int pthread_mutex_destroy(pthread_mutex_t*) nogil
    int pthread_mutex_lock(pthread_mutex_t*) nogil
    int pthread_mutex_unlock(pthread_mutex_t*) nogil
    int pthread_cond_destroy(pthread_cond_t*) nogil
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*) nogil
    int pthread_cond_signal(pthread_cond_t*) nogil
    int pthread_cond_broadcast(pthread_cond_t*) nogil
    int pthread_join(pthread_t, void**) nogil
    int posix_memalign(void**, size_t, size_t) nogil
    int fdatasync(int) nogil
    int fsync(int) nogil
    int close(int) nogil
    Py_ssize_t pwrite(int, const void*, size_t, int64_t) nogil
    Py_ssize_t pread(int, void*, size_t, int64_t) nogil
    Py_ssize_t c_read "read"(int, void*, size_t) nogil
    Py_ssize_t c_write "write"(int, const void*, size_t) nogil
    int O_CREAT, O_DIRECT, O_DSYNC

    void jr_crc_tables() nogil
    uint32_t jr_crc_portable(uint32_t, const unsigned char*, size_t) nogil
    uint32_t jr_crc_sse42(uint32_t, const unsigned char*, size_t) nogil
    int jr_has_sse42() nogil
    uint64_t jr_load(const uint64_t*) nogil
    void jr_store(uint64_t*, uint64_t) nogil
    int jr_spawn(pthread_t*, void* (*)(void*) noexcept nogil, void*) nogil
    int jr_cond_init(pthread_cond_t*) nogil
    void jr_wait_us(pthread_cond_t*, pthread_mutex_t*, long) nogil
    uint64_t jr_now_ns() nogil
    uint64_t jr_free_bytes(int) nogil
    int jr_open(int, const char*, int) nogil
    int jr_eventfd() nogil
    ctypedef unsigned char* (*jr_sha256_t)(
        const unsigned char*, size_t, unsigned char*
    ) noexcept nogil
    jr_sha256_t jr_find_sha256() nogil


cdef enum:
    BLOCK = 4096
    HEADER = 80
    RING = 8  # group buffers
    PAYLOAD_MAX = (1 << 24) - 1
    GROUP_MAX = 1 << 30
    ZERO_CHUNK = 256 * 1024  # one zero write: long enough to be cheap, short enough not to be felt
    ZERO_PAUSE_US = 4000  # between chunks when nobody is waiting for them: 64 MB/s
    IDLE_US = 500_000  # how stale the free space of the file system may be
    STARVED_US = 50_000  # between attempts on a full disk
    BUFFER_MIN = 1 << 18
    CHAINS = 1024  # recent groups whose chain hash can be asked for
    DROPPED = -1  # instead of an errno: told to stop without writing

cdef enum Stage:
    WRITE = 1
    SYNC = 2
    OPEN = 3
    ZERO = 4
    SPACE = 5
    CHAIN = 6

cdef enum Found:
    NOTHING = 0
    GOOD = 1
    BAD = 2

cdef enum Moved:
    NOT_YET = 0  # there is no group in the next segment
    MOVED = 1  # the group that follows is there, and so is the reader
    AGAIN = 2  # a group has come to the present segment
    BAD_THERE = 3  # the next segment begins with a bad group

cdef dict STAGES = {
    WRITE: "writing a group",
    SYNC: "making a group durable",
    OPEN: "opening a segment",
    ZERO: "preparing a segment",
    SPACE: "closing with groups that have no room",
    CHAIN: "hashing a group",
}

cdef const char* MAGIC = b"TRNCJRN1"
cdef bytes MAGIC_BYTES = b"TRNCJRN1"
cdef object SEGMENT_NAME = re.compile(r"journal-(\d{12})\.seg")

cdef jr_sha256_t sha256 = NULL
cdef bint has_sse42 = jr_has_sse42()
jr_crc_tables()


cdef inline uint32_t crc32c(uint32_t crc, const unsigned char* p, size_t n) noexcept nogil:
    return jr_crc_sse42(crc, p, n) if has_sse42 else jr_crc_portable(crc, p, n)


cdef inline uint64_t get64(const unsigned char* p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value


cdef inline uint32_t get32(const unsigned char* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef inline size_t whole_blocks(size_t n) noexcept nogil:
    return (n + BLOCK - 1) & ~<size_t> (BLOCK - 1)


cdef inline uint32_t group_crc(const unsigned char* group, size_t used) noexcept nogil:
    """The checksum of a group: all of it but the four bytes that hold the checksum."""
    return ~crc32c(crc32c(<uint32_t> 0xFFFFFFFF, group, 12), group + 16, used - 16)


cdef int need_sha256() except -1:
    global sha256
    if sha256 is NULL:
        sha256 = jr_find_sha256()
    if sha256 is NULL:
        raise ImportError("the journal needs SHA256 of libcrypto.so.3 (OpenSSL 3)")
    return 0


class JournalFull(Exception):
    """No room for a record: the disk is full or the open group is as large as it may be.

    Raised before anything has changed.
    """


class JournalFailed(Exception):
    """A write failed earlier, or the journal is not running; nothing more will be acknowledged."""


class Corruption(Exception):
    """The journal does not hold what it once acknowledged.

    Attributes:
        segment: number of the segment, 1 and up.
        offset: byte in the segment where what should be there is not.
        reason: what is wrong there.
    """

    def __init__(self, segment, offset, reason):
        super().__init__(f"segment {segment}, offset {offset}: {reason}")
        self.segment = segment
        self.offset = offset
        self.reason = reason


Position = collections.namedtuple("Position", ("seq", "chain", "segment", "offset"))
BEGINNING = Position(0, bytes(32), 1, 0)
Position.__doc__ = """A place between two groups.

Fields:
    seq: sequence of the last record before it; 0 at the very beginning.
    chain: SHA-256 of the group before it; 32 zero bytes at the beginning.
    segment, offset: where the next group goes if there is room for it.
"""


def checksum(data, *, bint portable=False):
    """Return the CRC-32C (RFC 3720, B.4) of `data`; `portable` takes the path without SSE 4.2."""
    cdef const unsigned char[::1] view = data
    cdef const unsigned char* p = &view[0] if view.shape[0] else NULL
    if portable:
        return (~jr_crc_portable(<uint32_t> 0xFFFFFFFF, p, view.shape[0])) & 0xFFFFFFFF
    return (~crc32c(<uint32_t> 0xFFFFFFFF, p, view.shape[0])) & 0xFFFFFFFF


def segment_path(str directory not None, uint64_t segment):
    """Return the path of a segment."""
    return os.path.join(directory, f"journal-{segment:012d}.seg")


def segment_numbers(str directory not None):
    """Return the numbers of the segments there are, in order; none where there is no directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(m.group(1)) for m in map(SEGMENT_NAME.fullmatch, names) if m)


def segment_first_seq(str directory not None, uint64_t segment):
    """Return the first sequence a segment claims to hold, or 0 where it holds no group yet."""
    with open(segment_path(directory, segment), "rb") as file:
        header = file.read(HEADER)
    if len(header) < HEADER or not header.startswith(MAGIC_BYTES):
        return 0
    return int.from_bytes(header[24:32], "little")


def prune(str directory not None, uint64_t before_seq, *, remove=os.unlink):
    """Delete the segments that hold only records below `before_seq`; return how many went.

    A reader started at a snapshot of `before_seq - 1` or later still finds the group before its
    place, or its place itself, and checks the snapshot's chain hash against it. The newest segment
    that holds anything always stays. Safe beside a running journal.

    Args:
        remove: called with the path of each, oldest first; to delete it, or take it elsewhere.
    """
    numbers = segment_numbers(directory)
    removed = 0
    for number, following in zip(numbers, numbers[1:]):
        first = segment_first_seq(directory, following)
        if first == 0 or first > before_seq:
            break
        remove(segment_path(directory, number))
        removed += 1
    if removed:
        sync_directory(directory)
    return removed


cdef object sync_directory(str directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- the native threads

cdef struct Core:
    # Constant while the threads run.
    int dir_fd
    int event_fd
    int direct
    uint32_t partition
    uint64_t epoch
    uint64_t segment_bytes
    uint64_t fail_after_bytes  # fault injection: zero writes end here with ENOSPC; 0: never
    uint64_t fail_sync_at  # fault injection: this sync fails with EIO; 0: never
    unsigned char* zeros
    Slot slots[RING]
    pthread_t flusher
    pthread_t zeroer

    # Under the lock; those read with jr_load are also stored with jr_store.
    pthread_mutex_t lock
    pthread_cond_t work  # owner -> flusher: a group was handed over, or stop
    pthread_cond_t need  # owner -> zeroer: the place moved on, or stop
    pthread_cond_t space  # zeroer -> flusher, owner: there are more zeros
    pthread_cond_t done  # flusher -> owner: a group is durable, or failure
    uint64_t head  # groups handed over
    uint64_t tail  # groups finished
    uint64_t placed  # address behind the last group handed over
    uint64_t zeroed  # address up to which zeros are durable
    uint64_t free_bytes  # of the file system, when last asked
    uint64_t durable_seq
    uint64_t groups
    uint64_t written_bytes
    uint64_t failure  # errno of what ended it; 0 while all is well
    int failure_stage
    uint64_t failure_address
    int stop
    int drop  # stop without writing what is queued
    int starved  # the last zero write found no space
    uint64_t last_seq
    uint64_t last_address
    unsigned char chain[32]  # of the last durable group
    uint64_t chain_seqs[CHAINS]
    unsigned char chains[CHAINS][32]

    # The flusher's own.
    int fd
    uint64_t fd_segment
    uint64_t syncs

    # The zeroer's own.
    int zero_fd
    uint64_t zero_address
    uint64_t zero_made
    uint64_t zero_sync_step


cdef void signal_event(Core* core) noexcept nogil:
    cdef uint64_t one = 1
    # EAGAIN would mean a counter at its maximum: the reader is awake already.
    c_write(core.event_fd, &one, 8)


cdef void fail(Core* core, int stage, int error, uint64_t address) noexcept nogil:
    """Record the first failure, which is final, and wake everybody."""
    pthread_mutex_lock(&core.lock)
    if core.failure == 0:
        core.failure_stage = stage
        core.failure_address = address
        jr_store(&core.failure, error)
    pthread_cond_broadcast(&core.work)
    pthread_cond_broadcast(&core.need)
    pthread_cond_broadcast(&core.space)
    pthread_cond_broadcast(&core.done)
    pthread_mutex_unlock(&core.lock)
    signal_event(core)


cdef void name_of(uint64_t segment, char* name, size_t n) noexcept nogil:
    snprintf(name, n, "journal-%012llu.seg", <unsigned long long> segment)


cdef int write_all(int fd, const unsigned char* p, size_t n, uint64_t offset) noexcept nogil:
    """Write the bytes; return 0 or the errno. A write cut short is continued at a whole block."""
    cdef Py_ssize_t got
    while n:
        got = pwrite(fd, p, n, <int64_t> offset)
        if got < 0:
            if errno == EINTR:
                continue
            return errno
        got &= ~<Py_ssize_t> (BLOCK - 1)
        if got == 0:
            return ENOSPC
        p += got
        n -= got
        offset += got
    return 0


cdef int await_zeros(Core* core, uint64_t end) noexcept nogil:
    """Wait until zeros are durable up to `end`; return 0, or the errno where they cannot be."""
    cdef int error = 0
    pthread_mutex_lock(&core.lock)
    while core.zeroed < end and core.failure == 0:
        if core.drop:
            error = DROPPED
            break
        if core.stop and core.starved:
            error = ENOSPC
            break
        pthread_cond_wait(&core.space, &core.lock)
    if core.failure:
        error = <int> core.failure
    pthread_mutex_unlock(&core.lock)
    return error


cdef int segment_for_write(Core* core, uint64_t segment) noexcept nogil:
    """Have the segment open for group writes; return 0 or the errno."""
    cdef char name[40]
    if core.fd >= 0 and core.fd_segment == segment:
        return 0
    if core.fd >= 0:
        close(core.fd)
    name_of(segment, name, sizeof(name))
    core.fd = jr_open(core.dir_fd, name, (O_DIRECT | O_DSYNC) if core.direct else 0)
    core.fd_segment = segment
    return 0 if core.fd >= 0 else errno


cdef void finish_group(Core* core, Slot* slot) noexcept nogil:
    """Fill in what only the flusher knows, the chain, and then the checksum and the padding."""
    cdef unsigned char* group = slot.data
    cdef uint32_t crc
    memcpy(group + 48, core.chain, 32)
    memset(group + slot.used, 0, whole_blocks(slot.used) - slot.used)
    crc = group_crc(group, slot.used)
    memcpy(group + 12, &crc, 4)


cdef int flush_group(Core* core, Slot* slot) noexcept nogil:
    """Make one group durable and say so; return 0, or -1 after a failure."""
    cdef size_t size = whole_blocks(slot.used)
    cdef uint64_t offset = slot.address % core.segment_bytes
    cdef int error, stage = SPACE
    finish_group(core, slot)
    error = await_zeros(core, slot.address + size)
    if not error:
        stage = OPEN
        error = segment_for_write(core, slot.address // core.segment_bytes + 1)
    if not error:
        stage = WRITE
        error = write_all(core.fd, slot.data, size, offset)
    if not error:
        stage = SYNC
        core.syncs += 1
        if not core.direct and fdatasync(core.fd) != 0:
            error = errno
        if core.syncs == core.fail_sync_at:
            error = EIO
    if error:
        if error != DROPPED:
            fail(core, stage, error, slot.address)
        return -1
    pthread_mutex_lock(&core.lock)
    jr_store(&core.groups, core.groups + 1)
    jr_store(&core.written_bytes, core.written_bytes + size)
    jr_store(&core.durable_seq, slot.first_seq + slot.count - 1)
    pthread_mutex_unlock(&core.lock)
    signal_event(core)
    return release_slot(core, slot, size)


cdef int release_slot(Core* core, Slot* slot, size_t size) noexcept nogil:
    """Take the chain hash of a durable group, which nobody waits for, and give its buffer back.

    Returns 0, or -1 after a failure.
    """
    cdef unsigned char digest[32]
    cdef uint64_t index
    if sha256(slot.data, slot.used, digest) is NULL:
        # OpenSSL is being taken down at the exit of a process that did not close its journal.
        fail(core, CHAIN, EIO, slot.address)
        return -1
    pthread_mutex_lock(&core.lock)
    memcpy(core.chain, digest, 32)
    core.last_seq = slot.first_seq + slot.count - 1
    core.last_address = slot.address + size
    index = (core.tail + 1) % CHAINS
    core.chain_seqs[index] = core.last_seq
    memcpy(core.chains[index], digest, 32)
    jr_store(&core.tail, core.tail + 1)
    pthread_cond_broadcast(&core.done)
    pthread_mutex_unlock(&core.lock)
    return 0


cdef void* flusher_main(void* arg) noexcept nogil:
    cdef Core* core = <Core*> arg
    cdef Slot* slot
    while True:
        pthread_mutex_lock(&core.lock)
        while core.head == core.tail and not core.stop and core.failure == 0:
            pthread_cond_wait(&core.work, &core.lock)
        if core.head == core.tail or core.drop or core.failure:
            pthread_mutex_unlock(&core.lock)
            return NULL
        slot = &core.slots[core.tail % RING]
        pthread_mutex_unlock(&core.lock)
        if flush_group(core, slot) != 0:
            return NULL


cdef int segment_for_zeros(Core* core, uint64_t segment) noexcept nogil:
    """Open the segment for zero writes, making it where it is new; return 0 or the errno."""
    cdef char name[40]
    name_of(segment, name, sizeof(name))
    core.zero_fd = jr_open(core.dir_fd, name, O_CREAT | (O_DIRECT if core.direct else 0))
    if core.zero_fd < 0:
        return errno
    # The name must be durable before a group in it can be.
    return 0 if fsync(core.dir_fd) == 0 else errno


cdef int publish_zeros(Core* core) noexcept nogil:
    """Make the zeros written so far durable and offer them to the flusher; 0, or -1: failed."""
    cdef uint64_t room
    if core.zero_address == core.zeroed:
        return 0
    if fdatasync(core.zero_fd) != 0:
        # Final, a full disk or not: nobody knows what a second attempt would say for.
        fail(core, ZERO, errno, core.zero_address)
        return -1
    room = free_bytes(core)
    pthread_mutex_lock(&core.lock)
    core.zeroed = core.zero_address
    core.starved = 0
    core.free_bytes = room
    pthread_cond_broadcast(&core.space)
    pthread_mutex_unlock(&core.lock)
    return 0


cdef uint64_t free_bytes(Core* core) noexcept nogil:
    cdef uint64_t room = jr_free_bytes(core.dir_fd)
    if core.fail_after_bytes and core.fail_after_bytes - core.zero_made < room:
        room = core.fail_after_bytes - core.zero_made
    return room & ~<uint64_t> (BLOCK - 1)


cdef int zero_step(Core* core) noexcept nogil:
    """Write one chunk of zeros at `zero_address`; return 0, the errno, or -1: failed and told."""
    cdef uint64_t offset = core.zero_address % core.segment_bytes
    cdef size_t n = min(<uint64_t> ZERO_CHUNK, core.segment_bytes - offset)
    cdef Py_ssize_t got
    cdef int error
    if core.zero_fd < 0:
        error = segment_for_zeros(core, core.zero_address // core.segment_bytes + 1)
        if error:
            return error
    if core.fail_after_bytes:
        n = min(n, (core.fail_after_bytes - core.zero_made) & ~<size_t> (BLOCK - 1))
        if n == 0:
            return ENOSPC
    got = pwrite(core.zero_fd, core.zeros, n, <int64_t> offset)
    if got < 0:
        return 0 if errno == EINTR else errno
    got &= ~<Py_ssize_t> (BLOCK - 1)
    if got == 0:
        return ENOSPC
    core.zero_address += got
    core.zero_made += got
    if core.zero_address % core.segment_bytes == 0:
        error = publish_zeros(core)
        close(core.zero_fd)
        core.zero_fd = -1
        return error
    if core.zero_address - core.zeroed >= core.zero_sync_step:
        return publish_zeros(core)
    return 0


cdef int note_full_disk(Core* core) noexcept nogil:
    """Offer what zeros there are, remember that no more can be had, wait a little; 0 or -1."""
    if publish_zeros(core) != 0:
        return -1
    pthread_mutex_lock(&core.lock)
    core.starved = 1
    core.free_bytes = 0
    pthread_cond_broadcast(&core.space)
    if not core.stop:
        jr_wait_us(&core.need, &core.lock, STARVED_US)
    pthread_mutex_unlock(&core.lock)
    return 0


cdef int await_need(Core* core) noexcept nogil:
    """Wait until more zeros are wanted; return 1 for a chunk, 0 to stop.

    One segment beyond the one in use is kept ready. As long as that is nearly so, chunks are
    spread out; a journal in full run is followed at its own pace.
    """
    cdef uint64_t target, ahead, room
    cdef bint paused = False, wanted
    pthread_mutex_lock(&core.lock)
    while True:
        target = (core.placed // core.segment_bytes + 2) * core.segment_bytes
        ahead = core.zero_address - core.placed if core.zero_address > core.placed else 0
        wanted = core.zero_address < target
        if core.failure or (core.stop and (core.drop or core.head == core.tail or core.starved)):
            pthread_mutex_unlock(&core.lock)
            return 0
        if wanted and (paused or ahead < core.segment_bytes - core.segment_bytes // 8):
            pthread_mutex_unlock(&core.lock)
            return 1
        jr_wait_us(&core.need, &core.lock, ZERO_PAUSE_US if wanted else IDLE_US)
        paused = True
        if not wanted:
            pthread_mutex_unlock(&core.lock)
            room = free_bytes(core)
            pthread_mutex_lock(&core.lock)
            core.free_bytes = room


cdef void* zeroer_main(void* arg) noexcept nogil:
    cdef Core* core = <Core*> arg
    cdef int error
    while await_need(core):
        error = zero_step(core)
        if error == ENOSPC or error == EDQUOT:
            error = note_full_disk(core)
        elif error > 0:
            fail(core, ZERO, error, core.zero_address)
        if error:
            break
    if core.zero_fd >= 0:
        close(core.zero_fd)
        core.zero_fd = -1
    return NULL


cdef Core* new_core() except NULL:
    cdef Core* core = <Core*> calloc(1, sizeof(Core))
    if core is NULL:
        raise MemoryError
    core.dir_fd = core.event_fd = core.fd = core.zero_fd = -1
    if (
        pthread_mutex_init(&core.lock, NULL)
        or jr_cond_init(&core.work)
        or jr_cond_init(&core.need)
        or jr_cond_init(&core.space)
        or jr_cond_init(&core.done)
    ):
        free(core)
        raise OSError("no mutex or condition for the journal")
    return core


cdef void free_core(Core* core) noexcept:
    """Give everything back. The threads must have ended."""
    cdef int i
    for i in range(RING):
        free(core.slots[i].data)
    free(core.zeros)
    for fd in (core.fd, core.zero_fd, core.event_fd, core.dir_fd):
        if fd >= 0:
            close(fd)
    pthread_mutex_destroy(&core.lock)
    pthread_cond_destroy(&core.work)
    pthread_cond_destroy(&core.need)
    pthread_cond_destroy(&core.space)
    pthread_cond_destroy(&core.done)
    free(core)


# ---------------------------------------------------------------- the owner's side

@cython.final
cdef class Journal(Sink):
    """Appends groups of records to a directory and tells when they are durable.

    One owner at a time calls it (a lock on the directory keeps other processes out). All records
    put between two successful `seal()` calls are one group, written whole or not at all. When all
    buffers are on their way to disk, `seal()` does nothing and the open group grows on; call it
    again when the eventfd becomes readable.

    A failed write or sync is final: `failure` says what it was, the eventfd is signalled, nothing
    more is acknowledged, `put` raises. A full disk is not a failure: `room_bytes` falls to 0 before
    work is accepted, and `put` raises `JournalFull` only once the reserve, too, is used up.

    Args:
        directory: where the segments are; made by `start` where it does not exist.
        segment_bytes: size of a segment, 64 KiB to 1 TiB, a multiple of 4096.
        group_bytes_max: largest group, header and padding included; at most a segment.
        direct: try O_DIRECT; afterwards, whether it is in use.
        partition, epoch: written into every group.
        reserve_bytes: zero-written space kept back from `room_bytes`, for the conclusion of work
            already accepted.
        fail_after_bytes: for tests: once this many bytes of zeros have been written ahead, the
            disk counts as full. 0: never.
        fail_sync_at: for tests: this sync of a group, counted from 1, fails. 0: never.
    """

    def __cinit__(
        self,
        str directory not None,
        *,
        uint64_t segment_bytes=64 << 20,
        uint64_t group_bytes_max=8 << 20,
        bint direct=True,
        uint32_t partition=0,
        uint64_t epoch=1,
        uint64_t reserve_bytes=1 << 20,
        uint64_t fail_after_bytes=0,
        uint64_t fail_sync_at=0,
    ):
        if segment_bytes < 1 << 16 or segment_bytes > 1 << 40 or segment_bytes % BLOCK:
            raise ValueError("segment_bytes must be a multiple of 4096 in 64 KiB..1 TiB")
        if group_bytes_max < BLOCK:
            raise ValueError("group_bytes_max must be at least 4096")
        need_sha256()
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.group_bytes_max = min(
            group_bytes_max, segment_bytes, <uint64_t> GROUP_MAX
        ) & ~(<uint64_t> BLOCK - 1)
        self.reserve_bytes = reserve_bytes
        self.partition = partition
        self.epoch = epoch
        self.direct = direct
        self._next_seq = 1
        self._core = new_core()
        self._core.fail_after_bytes = fail_after_bytes
        self._core.fail_sync_at = fail_sync_at

    def __dealloc__(self):
        if self._core is not NULL:
            self._stop(drop=True)
            free_core(self._core)

    # -- life

    def start(self, after=None):
        """Continue after the last good group and start the native threads.

        Whatever lies beyond that place is a torn group: it is zeroed, durably, so that it can
        never be mistaken for a later one. Returns once there is room for a group.

        Args:
            after: `Reader.position` at the end of the journal; None only for a new journal.

        Raises:
            BlockingIOError: another process writes this journal.
            Corruption: there are good groups beyond `after`, or it is not a place of this journal.
            OSError: the directory cannot be used.
        """
        cdef Core* core = self._core
        if self._started:
            raise JournalFailed("a journal is started once")
        self._started = True
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        core.dir_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._start(after)
        except BaseException:
            self._stop(drop=True)
            self._close_files()
            raise

    cdef int _start(self, object after) except -1:
        cdef Core* core = self._core
        fcntl.flock(core.dir_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if after is None:
            if segment_numbers(self.directory):
                raise ValueError("the journal exists: start after its last group")
            after = BEGINNING
        reader = Reader(self.directory, position=after)
        reader.verify_end()
        reader.close()
        _cut(self.directory, after.segment, after.offset)
        core.direct = self.direct = self.direct and _takes_direct(self.directory)
        self._set_place(after)
        core.event_fd = jr_eventfd()
        if core.event_fd < 0 or posix_memalign(<void**> &core.zeros, BLOCK, ZERO_CHUNK):
            raise OSError("no eventfd or memory for the journal")
        memset(core.zeros, 0, ZERO_CHUNK)
        self._open_slot()
        self._spawn()
        self._await_first_room()
        return 0

    cdef int _set_place(self, object end) except -1:
        """Set where the next group goes, from a verified Position."""
        cdef Core* core = self._core
        cdef uint64_t segment = end.segment, offset = end.offset, size = 0
        cdef bytes chain = end.chain
        path = segment_path(self.directory, segment)
        if os.path.exists(path):
            size = min(os.path.getsize(path), self.segment_bytes) & ~(<uint64_t> BLOCK - 1)
        if offset >= self.segment_bytes:
            segment, offset, size = segment + 1, 0, 0
        if len(chain) != 32 or segment < 1 or offset % BLOCK:
            raise ValueError("not a Position of a journal")
        core.segment_bytes = self.segment_bytes
        core.partition = self.partition
        core.epoch = self.epoch
        core.placed = core.last_address = (segment - 1) * self.segment_bytes + offset
        core.zeroed = core.zero_address = (segment - 1) * self.segment_bytes + max(size, offset)
        core.zero_sync_step = max(self.segment_bytes // 32, <uint64_t> ZERO_CHUNK)
        core.free_bytes = free_bytes(core)
        core.durable_seq = core.last_seq = end.seq
        memcpy(core.chain, <const unsigned char*> chain, 32)
        core.chain_seqs[0] = end.seq
        memcpy(core.chains[0], <const unsigned char*> chain, 32)
        self._next_seq = end.seq + 1
        self._handed_seq = end.seq
        return 0

    cdef int _spawn(self) except -1:
        cdef Core* core = self._core
        if jr_spawn(&core.flusher, flusher_main, core):
            raise OSError("no thread for the journal's flusher")
        if jr_spawn(&core.zeroer, zeroer_main, core):
            core.stop = core.drop = 1
            with nogil:
                pthread_mutex_lock(&core.lock)
                pthread_cond_broadcast(&core.work)
                pthread_mutex_unlock(&core.lock)
                pthread_join(core.flusher, NULL)
            raise OSError("no thread for the journal's zeroer")
        self._running = True
        return 0

    cdef int _await_first_room(self) except -1:
        cdef Core* core = self._core
        cdef uint64_t enough = core.placed + self.group_bytes_max + self.reserve_bytes
        cdef uint64_t target = (core.placed // self.segment_bytes + 2) * self.segment_bytes
        if enough > target:
            enough = target
        with nogil:
            pthread_mutex_lock(&core.lock)
            while core.zeroed < enough and not core.starved and core.failure == 0:
                pthread_cond_wait(&core.space, &core.lock)
            pthread_mutex_unlock(&core.lock)
        if jr_load(&core.failure):
            raise OSError(<int> core.failure, self.failure)
        return 0

    cdef int _stop(self, bint drop) noexcept:
        """End the threads; with `drop`, without writing what is queued."""
        cdef Core* core = self._core
        if not self._running:
            return 0
        self._running = False
        self._limit = 0
        with nogil:
            pthread_mutex_lock(&core.lock)
            core.stop = 1
            core.drop = drop
            pthread_cond_broadcast(&core.work)
            pthread_cond_broadcast(&core.need)
            pthread_cond_broadcast(&core.space)
            pthread_mutex_unlock(&core.lock)
            pthread_join(core.flusher, NULL)
            pthread_mutex_lock(&core.lock)
            core.drop = 1
            pthread_cond_broadcast(&core.need)
            pthread_mutex_unlock(&core.lock)
            pthread_join(core.zeroer, NULL)
        return 0

    def close(self, flush=True):
        """Stop the threads and close all files; what `failure` says is kept. May be repeated.

        Args:
            flush: seal the open group and make everything durable first; otherwise whatever is
                not yet on its way to disk is dropped. Without effect after a failure.
        """
        cdef Core* core = self._core
        if self._running and flush:
            while self._count and not jr_load(&core.failure):
                self.seal()
                if self._count:
                    self._await_slot()
        self._stop(drop=not flush)
        self._close_files()

    cdef int _close_files(self) noexcept:
        cdef Core* core = self._core
        if core.fd >= 0:
            close(core.fd)
        if core.event_fd >= 0:
            close(core.event_fd)
        if core.dir_fd >= 0:
            close(core.dir_fd)  # and with it the lock
        core.fd = core.event_fd = core.dir_fd = -1
        return 0

    cdef int _await_slot(self) noexcept:
        cdef Core* core = self._core
        with nogil:
            pthread_mutex_lock(&core.lock)
            while core.head - core.tail >= RING - 1 and core.failure == 0:
                pthread_cond_wait(&core.done, &core.lock)
            pthread_mutex_unlock(&core.lock)
        return 0

    # -- records

    cdef int put(self, int kind, const void* data, Py_ssize_t n) except -1:
        cdef size_t need = 4 + <size_t> n
        cdef unsigned char* to
        cdef uint32_t head
        assert 0 <= kind <= 255 and n >= 0
        if self._used + need > self._limit or jr_load(&self._core.failure):
            self._make_room(need)
        to = self._open.data + self._used
        head = <uint32_t> kind << 24 | <uint32_t> n
        memcpy(to, &head, 4)
        memcpy(to + 4, data, n)
        self._used += need
        self._count += 1
        self._next_seq += 1
        return 0

    cdef int _make_room(self, size_t need) except -1:
        """Let the open group grow by `need` bytes, or raise; nothing has changed then."""
        cdef Core* core = self._core
        cdef size_t wanted = self._used + need, most, capacity
        cdef void* larger = NULL
        if not self._running or jr_load(&core.failure):
            raise JournalFailed(f"journal: {self.failure or 'it is not running'}")
        if need > PAYLOAD_MAX or wanted > self.group_bytes_max:
            raise JournalFull(f"a group is at most {self.group_bytes_max} bytes")
        most = self._largest_group()
        if wanted > most:
            raise JournalFull("the disk is full, the reserve included")
        capacity = self._open.capacity
        if wanted > capacity:
            while capacity < wanted:
                capacity *= 2
            capacity = min(capacity, whole_blocks(self.group_bytes_max))
            if posix_memalign(&larger, BLOCK, capacity):
                raise MemoryError
            memcpy(larger, self._open.data, self._used)
            free(self._open.data)
            self._open.data = <unsigned char*> larger
            self._open.capacity = capacity
        self._limit = min(capacity, most)
        return 0

    cdef size_t _largest_group(self) noexcept:
        """The most bytes the open group may have, given the space there is on disk."""
        cdef Core* core = self._core
        cdef uint64_t end, following, most = 0, size = self.segment_bytes
        pthread_mutex_lock(&core.lock)
        end = core.zeroed + core.free_bytes
        pthread_mutex_unlock(&core.lock)
        following = (core.placed // size + 1) * size
        if end > core.placed:
            most = min(end, following) - core.placed
        if end > following:
            most = max(most, min(end - following, size))
        return min(most, self.group_bytes_max)

    cdef int _open_slot(self) except -1:
        """Begin an empty group in the next buffer of the ring."""
        cdef Core* core = self._core
        cdef Slot* slot = &core.slots[core.head % RING]
        if slot.data is NULL:
            slot.capacity = min(<size_t> BUFFER_MIN, self.group_bytes_max)
            if posix_memalign(<void**> &slot.data, BLOCK, slot.capacity):
                raise MemoryError
        self._open = slot
        self._used = HEADER
        self._count = 0
        self._limit = 0  # the first put looks at the disk
        return 0

    cdef uint64_t _place(self, size_t used) noexcept:
        """Where a group of that size goes: never across the end of a segment."""
        cdef uint64_t at = self._core.placed, size = self.segment_bytes
        if at % size + whole_blocks(used) > size:
            at = (at // size + 1) * size
        return at

    def append(self, int kind, bytes payload not None):
        """Put a record of the application into the open group; return its sequence.

        Args:
            kind: 200..255.
            payload: fewer than 2**24 bytes, and the group must hold it.

        Raises:
            JournalFull, JournalFailed: nothing has changed.
        """
        if not 200 <= kind <= 255:
            raise ValueError("the application's records are of kind 200..255")
        self.put(kind, <const unsigned char*> payload, len(payload))
        return self._next_seq - 1

    def seal(self, uint64_t now_ns=0):
        """Hand the open group to the flusher; return the last sequence handed over so far.

        Does nothing where the group is empty or all buffers are on their way (`open_count` tells).

        Args:
            now_ns: the time the group shall bear, since 1970; 0: the system's clock.
        """
        cdef Core* core = self._core
        cdef Slot* slot = self._open
        if self._count == 0 or core.head - jr_load(&core.tail) >= RING - 1:
            return self._handed_seq
        if not self._running or jr_load(&core.failure):
            return self._handed_seq
        slot.used = self._used
        slot.first_seq = self._handed_seq + 1
        slot.count = self._count
        slot.address = self._place(self._used)
        self._write_header(slot, now_ns if now_ns else jr_now_ns())
        assert slot.first_seq + slot.count == self._next_seq
        assert slot.used <= slot.capacity
        pthread_mutex_lock(&core.lock)
        core.placed = slot.address + whole_blocks(slot.used)
        core.head += 1
        pthread_cond_signal(&core.work)
        if core.placed + self.segment_bytes > core.zeroed:
            pthread_cond_signal(&core.need)
        pthread_mutex_unlock(&core.lock)
        self._handed_seq = self._next_seq - 1
        self._open_slot()
        return self._handed_seq

    cdef int _write_header(self, Slot* slot, uint64_t time_ns) noexcept:
        """All of the header but chain and checksum, which the flusher knows."""
        cdef unsigned char* to = slot.data
        cdef uint32_t count = <uint32_t> slot.count, length = <uint32_t> (slot.used - HEADER)
        memcpy(to, MAGIC, 8)
        memcpy(to + 8, &self._core.partition, 4)
        memset(to + 12, 0, 4)
        memcpy(to + 16, &self._core.epoch, 8)
        memcpy(to + 24, &slot.first_seq, 8)
        memcpy(to + 32, &time_ns, 8)
        memcpy(to + 40, &count, 4)
        memcpy(to + 44, &length, 4)
        return 0

    # -- what the owner may ask

    def fileno(self):
        """Return the eventfd that is readable after progress or failure; -1 when not running."""
        return self._core.event_fd

    def clear_event(self):
        """Make the eventfd unreadable again; return how many signals it had collected."""
        cdef uint64_t signals = 0
        if self._core.event_fd < 0 or c_read(self._core.event_fd, &signals, 8) != 8:
            return 0
        return signals

    def chain_at(self, uint64_t seq):
        """Return the chain hash behind the group that ended with `seq`, among the last 1024.

        None where there was no such group, it is not durable yet, or it is too long ago. With the
        sequence this is what a snapshot needs for its reader.
        """
        cdef Core* core = self._core
        cdef uint64_t i, finished
        found = None
        pthread_mutex_lock(&core.lock)
        finished = core.tail
        for i in range(min(finished + 1, <uint64_t> CHAINS)):
            if core.chain_seqs[(finished - i) % CHAINS] == seq:
                found = core.chains[(finished - i) % CHAINS][:32]
                break
        pthread_mutex_unlock(&core.lock)
        return found

    @property
    def position(self):
        """Position after the last durable group (it may trail `durable_seq` by microseconds)."""
        cdef Core* core = self._core
        cdef uint64_t seq, address
        cdef unsigned char chain[32]
        pthread_mutex_lock(&core.lock)
        seq = core.last_seq
        address = core.last_address
        memcpy(chain, core.chain, 32)
        pthread_mutex_unlock(&core.lock)
        # The end of a full segment is a place in that segment.
        segment = address // self.segment_bytes + 1
        offset = address % self.segment_bytes
        if offset == 0 and address and core.groups:
            segment, offset = segment - 1, self.segment_bytes
        return Position(seq, chain[:32], segment, offset)

    @property
    def durable_seq(self):
        """Sequence of the last durable record: whatever it decided may be told."""
        return jr_load(&self._core.durable_seq)

    @property
    def next_seq(self):
        """Sequence the next record will get."""
        return self._next_seq

    @property
    def open_count(self):
        """Records in the open group."""
        return self._count

    @property
    def open_bytes(self):
        """Bytes of the open group, header included; 0 while it is empty."""
        return self._used if self._count else 0

    @property
    def busy(self):
        """Whether the flusher has work."""
        return jr_load(&self._core.tail) != self._core.head

    @property
    def groups(self):
        """Groups made durable since the start."""
        return jr_load(&self._core.groups)

    @property
    def written_bytes(self):
        """Bytes of groups made durable since the start, padding included."""
        return jr_load(&self._core.written_bytes)

    @property
    def zeroed_bytes(self):
        """Zero-written bytes ready behind the last group handed over."""
        cdef Core* core = self._core
        pthread_mutex_lock(&core.lock)
        ready = core.zeroed - core.placed if core.zeroed > core.placed else 0
        pthread_mutex_unlock(&core.lock)
        return ready

    @property
    def room_bytes(self):
        """Bytes new work may still take: zeros ready and space to make more, less the reserve.

        The open group and what segments lose at their ends are counted as taken.
        """
        cdef Core* core = self._core
        cdef uint64_t end, taken
        if not self._running or jr_load(&core.failure):
            return 0
        taken = core.placed
        if self._count:
            taken = self._place(self._used) + whole_blocks(self._used)
        taken += self.reserve_bytes
        pthread_mutex_lock(&core.lock)
        end = core.zeroed + core.free_bytes
        pthread_mutex_unlock(&core.lock)
        return end - taken if end > taken else 0

    @property
    def failure(self):
        """What ended the journal, or None while all is well."""
        cdef Core* core = self._core
        cdef int error = <int> jr_load(&core.failure)
        if error == 0:
            return None
        segment = core.failure_address // self.segment_bytes + 1
        offset = core.failure_address % self.segment_bytes
        stage = STAGES[core.failure_stage]
        return f"{stage} (segment {segment}, offset {offset}): {os.strerror(error)}"


cdef object _takes_direct(str directory):
    """Whether the file system takes a direct, synchronous, aligned write."""
    cdef void* block = NULL
    cdef Py_ssize_t got
    cdef int fd
    if posix_memalign(&block, BLOCK, BLOCK):
        raise MemoryError
    memset(block, 0, BLOCK)
    path = os.path.join(directory, "probe.tmp")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | O_DIRECT | O_DSYNC, 0o600)
    except OSError:
        free(block)
        # Some file systems make the file and then refuse the flag.
        if os.path.exists(path):
            os.unlink(path)
        return False
    with nogil:
        got = pwrite(fd, block, BLOCK, 0)
        close(fd)
    free(block)
    os.unlink(path)
    return got == BLOCK


cdef object _cut(str directory, uint64_t segment, uint64_t offset):
    """Zero, durably, what is in `segment` from `offset` on, and delete the segments beyond it.

    Only what is not zero already is written. The segments beyond hold no good group: the caller
    has made sure.
    """
    beyond = [number for number in segment_numbers(directory) if number > segment]
    for number in reversed(beyond):
        os.unlink(segment_path(directory, number))
    if beyond:
        sync_directory(directory)
    path = segment_path(directory, segment)
    if not os.path.exists(path):
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    zeros = bytes(1 << 20)
    try:
        while True:
            data = os.pread(fd, len(zeros), offset)
            if not data:
                break
            if data != zeros[: len(data)]:
                os.pwrite(fd, zeros[: len(data)], offset)
            offset += len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- reading

cdef Found verify_group(
    const unsigned char* p, size_t have, size_t* used, const char** reason
) noexcept nogil:
    """Judge the bytes at a place where a group may begin, `have` of them to the segment's end.

    On GOOD, `used` is the length of header and records. It says nothing of chain and sequence.
    """
    cdef uint32_t length, count, seen = 0
    cdef size_t at = HEADER, size, i
    reason[0] = NULL
    if have < BLOCK:
        reason[0] = b"the segment ends inside a block"
        return NOTHING if is_zero(p, have) else BAD
    if memcmp(p, MAGIC, 8) != 0:
        reason[0] = b"no group begins here"
        return NOTHING if is_zero(p, BLOCK) else BAD
    count = get32(p + 40)
    length = get32(p + 44)
    used[0] = HEADER + <size_t> length
    size = whole_blocks(used[0])
    if size > have:
        reason[0] = b"the group is longer than the rest of its segment"
        return BAD
    if group_crc(p, used[0]) != get32(p + 12):
        reason[0] = b"the checksum does not match"
        return BAD
    if not is_zero(p + used[0], size - used[0]):
        reason[0] = b"the padding is not zero"
        return BAD
    while at + 4 <= used[0]:
        at += 4 + (get32(p + at) & PAYLOAD_MAX)
        seen += 1
    if at != used[0] or seen != count or count == 0:
        reason[0] = b"the records do not fill the group"
        return BAD
    return GOOD


cdef inline bint is_zero(const unsigned char* p, size_t n) noexcept nogil:
    return n == 0 or (p[0] == 0 and memcmp(p, p + 1, n - 1) == 0)


cdef bint good_group_at(int fd, uint64_t at, uint64_t above_seq):
    """Whether a whole, good group with records beyond `above_seq` begins there."""
    cdef const char* reason
    cdef size_t used = 0
    head = os.pread(fd, HEADER, at)
    if len(head) < HEADER or int.from_bytes(head[24:32], "little") <= above_seq:
        return False
    size = whole_blocks(HEADER + <size_t> int.from_bytes(head[44:48], "little"))
    if at + size > os.fstat(fd).st_size:
        return False
    data = os.pread(fd, size, at)
    return verify_group(<const unsigned char*> <bytes> data, len(data), &used, &reason) == GOOD


@cython.final
cdef class Group:
    """One group as it was read.

    Attributes:
        first_seq, count: its records.
        time_ns: when it was sealed.
        partition, epoch: as they were written.
        chain: SHA-256 of this group, as the next one must bear it.
        segment, offset: where it begins.
    """

    cdef readonly uint64_t first_seq
    cdef readonly uint64_t count
    cdef readonly uint64_t time_ns
    cdef readonly uint64_t epoch
    cdef readonly uint32_t partition
    cdef readonly uint64_t segment
    cdef readonly uint64_t offset
    cdef readonly bytes chain
    cdef bytes _data

    @property
    def last_seq(self):
        """Sequence of its last record."""
        return self.first_seq + self.count - 1

    def records(self):
        """Return its records as (kind, payload), in order."""
        cdef const unsigned char* p = self._data
        cdef size_t at = HEADER, end = len(self._data), n
        cdef uint32_t head
        cdef list found = []
        while at < end:
            head = get32(p + at)
            n = head & PAYLOAD_MAX
            found.append((head >> 24, p[at + 4 : at + 4 + n]))
            at += 4 + n
        return found


@cython.final
cdef class Reader:
    """Reads a journal group by group, checking everything.

    It may read beside a running journal: the end it meets is then "not yet", and the next call
    looks again. One thread at a time.

    Args:
        directory: of the journal; need not exist yet.
        after_seq: begin behind this record, which must be the last of its group.
        chain: the chain hash there (a snapshot keeps it); the journal must agree.
        position: begin at a place noted earlier, instead of the two above; trusted.
        gently: read no further ahead than asked, for who reads beside a running journal. What the
            kernel reads ahead by itself is mostly zeros there, up to 8 MiB of them at a time, and
            a group that is to be written meanwhile waits behind that in the disk's queue.

    Attributes:
        torn: what is wrong with the bytes at the end, None where they are zero.

    Raises:
        Corruption: the journal begins after that place, ends before it, or has another history.
        ValueError: after_seq lies inside a group.
    """

    def __cinit__(
        self, str directory not None, *, uint64_t after_seq=0, chain=None, position=None,
        bint gently=False,
    ):
        need_sha256()
        self.directory = directory
        self._gently = gently
        self._fd = -1
        self._chain_known = True
        self._segment = 1
        if position is not None:
            self._seq, chain, self._segment, self._offset = position
        if chain is not None:
            if len(chain) != 32:
                raise ValueError("a chain hash has 32 bytes")
            memcpy(self._chain, <const unsigned char*> <bytes> chain, 32)
        if position is not None:
            if self._segment < 1 or self._offset % BLOCK:
                raise ValueError("not a Position of a journal")
            numbers = segment_numbers(directory)
            # A place at the head of a segment may be noted before the segment is made.
            made = self._segment in numbers or (self._offset == 0 and (
                self._segment - 1 in numbers or (self._segment == 1 and not numbers)
            ))
            if not made:
                raise Corruption(self._segment, self._offset, "the segment is missing")
            path = segment_path(directory, self._segment)
            if self._offset and os.path.getsize(path) < self._offset:
                raise Corruption(self._segment, self._offset, "the segment is shorter")
        else:
            self._seek_seq(after_seq, chain)

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)
        free(self._buffer)

    def close(self):
        """Close the file in use; the reader must not be used any more."""
        if self._fd >= 0:
            close(self._fd)
        self._fd = -1

    cdef int _seek_seq(self, uint64_t after_seq, bytes chain) except -1:
        cdef list numbers = segment_numbers(self.directory)
        if numbers:
            self._segment = numbers[0]
        if after_seq == 0:
            return 0
        first = 0
        for number in reversed(numbers):
            first = segment_first_seq(self.directory, number)
            if 0 < first <= after_seq + 1:
                self._segment = number
                break
        else:
            raise Corruption(
                self._segment, 0, f"the journal does not reach back to record {after_seq}"
            )
        self._seq = first - 1
        self._chain_known = chain is not None and self._seq == after_seq
        while self._seq < after_seq:
            if not self._step():
                raise Corruption(
                    self._segment, self._offset, f"the journal ends before record {after_seq}"
                )
            self._take()
        if self._seq > after_seq:
            raise ValueError(f"record {after_seq} is not the last of its group")
        if chain is not None and self._chain[:32] != chain:
            raise Corruption(
                self._segment, self._offset, f"another history leads to record {after_seq}"
            )
        return 0

    # -- bytes

    cdef int _open_segment(self, uint64_t segment) except -1:
        """Make `segment` the one being read; return 1, or 0 where it does not exist (yet)."""
        if self._fd >= 0:
            close(self._fd)
        self._fd = -1
        self._held = 0
        self._segment = segment
        try:
            self._fd = os.open(segment_path(self.directory, segment), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        if self._gently:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        return 1

    cdef Py_ssize_t _load(self, uint64_t offset, size_t need, bint fresh) except -1:
        """Have the bytes at `offset` in the buffer; return how many there are, `need` if possible.

        A fresh load forgets what was read before and reads no more than needed: the end of a live
        journal changes under us.
        """
        cdef size_t want, got = 0
        cdef Py_ssize_t n
        cdef int error
        cdef unsigned char* larger
        if not fresh and self._held_at <= offset and offset + need <= self._held_at + self._held:
            return self._held_at + self._held - offset
        if self._fd < 0 and not self._open_segment(self._segment):
            return 0
        want = need if fresh else max(need, <size_t> BUFFER_MIN)
        if want > self._capacity:
            larger = <unsigned char*> malloc(want)
            if larger is NULL:
                raise MemoryError
            free(self._buffer)
            self._buffer = larger
            self._capacity = want
        self._held = 0
        while got < want:
            n = pread(self._fd, self._buffer + got, want - got, <int64_t> (offset + got))
            if n == 0:
                break
            if n < 0:
                error = errno  # before anything else can change it
                if error == EINTR:
                    continue
                path = segment_path(self.directory, self._segment)
                raise OSError(error, os.strerror(error), path)
            got += n
        self._held_at = offset
        self._held = got
        return got

    cdef int _examine(self, uint64_t offset, bint fresh) except -1:
        """Judge the place in the current segment; on GOOD, `_group` points to the group."""
        cdef size_t have, need
        cdef unsigned char* p
        have = self._load(offset, BLOCK, fresh)
        if have == 0:
            self._reason = b"the segment ends here"
            return NOTHING
        p = self._buffer + (offset - self._held_at)
        if have >= BLOCK and memcmp(p, MAGIC, 8) == 0:
            need = whole_blocks(HEADER + <size_t> get32(p + 44))
            if need > have:
                need = min(need, max(BLOCK, os.fstat(self._fd).st_size - offset))
                have = self._load(offset, need, False)
                p = self._buffer + (offset - self._held_at)
        self._group = p
        return verify_group(p, have, &self._group_used, &self._reason)

    cdef str _mismatch(self):
        """Why the good group found does not follow what was read, or None."""
        cdef const unsigned char* group = self._group
        if get64(group + 24) != self._seq + 1:
            return f"record {self._seq + 1} should follow, the group has {get64(group + 24)}"
        if self._chain_known and memcmp(group + 48, self._chain, 32) != 0:
            return "the chain is broken: the group names another predecessor"
        if self._partition_known and get32(group + 8) != self._partition:
            return "the group belongs to another partition"
        if get64(group + 16) < self._epoch:
            return "the epoch falls"
        return None

    # -- steps

    cdef int _step(self) except -1:
        """Find the next group; return 1 with `_group` set, 0 at the (present) end."""
        cdef int found, moved
        cdef bint looked_twice = False
        while True:
            found = self._examine(self._offset, fresh=False)
            if found != GOOD:
                found = self._examine(self._offset, fresh=True)
            if found == GOOD:
                break
            place, reason = (self._segment, self._offset), self._reason.decode()
            moved = self._step_to_next_segment(reason)
            if moved == MOVED:
                break
            if moved == AGAIN:
                continue
            if found == NOTHING and moved == NOT_YET:
                self.torn = None
                return 0
            if found == NOTHING:
                place, reason = (self._segment + 1, 0), self._reason.decode()
            beyond = self._find_beyond()
            if beyond is None:
                self.torn = f"segment {place[0]}, offset {place[1]}: {reason}"
                return 0
            if looked_twice:
                raise Corruption(*place, _with_beyond(reason, beyond))
            # Beside a running journal the bad group may have been on its way.
            looked_twice = True
        mismatch = self._mismatch()
        if mismatch is not None:
            raise Corruption(self._segment, self._offset, mismatch)
        self.torn = None
        return 1

    cdef int _step_to_next_segment(self, str reason) except -1:
        """Look at the next segment: are we in it now, or why not?"""
        cdef uint64_t segment = self._segment, offset = self._offset
        cdef int fd = self._fd, found = NOTHING
        if fd < 0 and offset == 0:
            return NOT_YET
        self._fd = -1  # kept open here
        if self._open_segment(segment + 1):
            found = self._examine(0, fresh=True)
        if found == GOOD and self._mismatch() is None:
            if fd >= 0:
                close(fd)
            self._offset = 0
            return MOVED
        if self._fd >= 0:
            close(self._fd)
        self._fd = fd
        self._segment = segment
        self._held = 0
        if found != GOOD:
            return BAD_THERE if found == BAD else NOT_YET
        if self._examine(offset, fresh=True) == GOOD:
            return AGAIN
        raise Corruption(segment, offset, _with_beyond(reason, (segment + 1, 0)))

    cdef int _take(self) except -1:
        """Go past the group found."""
        if sha256(self._group, self._group_used, self._chain) is NULL:
            raise MemoryError("SHA-256 of libcrypto failed")
        self._chain_known = True
        self._seq += get32(self._group + 40)
        self._partition = get32(self._group + 8)
        self._partition_known = True
        self._epoch = get64(self._group + 16)
        self._offset += whole_blocks(self._group_used)
        return 0

    cdef object _find_beyond(self):
        """Return (segment, offset) of a good group anywhere beyond the present place, or None."""
        for number in segment_numbers(self.directory):
            if number < self._segment:
                continue
            at = self._offset + BLOCK if number == self._segment else 0
            fd = os.open(segment_path(self.directory, number), os.O_RDONLY | os.O_CLOEXEC)
            try:
                while data := os.pread(fd, 4 << 20, at):
                    i = data.find(MAGIC_BYTES)
                    while i >= 0:
                        if i % BLOCK == 0 and good_group_at(fd, at + i, self._seq):
                            return number, at + i
                        i = data.find(MAGIC_BYTES, i + 1)
                    at += len(data)
            finally:
                os.close(fd)
        return None

    # -- what the owner calls

    @property
    def position(self):
        """Position behind the last group taken."""
        return Position(self._seq, self._chain[:32], self._segment, self._offset)

    def next(self):
        """Return the next group, or None where there is none (yet).

        Raises:
            Corruption: a bad group followed by a good one, or one that does not follow.
        """
        cdef Group group
        if self._busy:
            raise RuntimeError("the reader is replaying")
        if not self._step():
            return None
        group = Group.__new__(Group)
        group.first_seq = get64(self._group + 24)
        group.count = get32(self._group + 40)
        group.time_ns = get64(self._group + 32)
        group.epoch = get64(self._group + 16)
        group.partition = get32(self._group + 8)
        group.segment = self._segment
        group.offset = self._offset
        group._data = self._group[: self._group_used]
        self._take()
        group.chain = self._chain[:32]
        return group

    def verify_end(self):
        """Raise Corruption where any good group lies at or beyond the present place.

        Reads the rest of the segment and all later ones. Not for a running journal.
        """
        if self._step():
            raise Corruption(self._segment, self._offset, "a good group begins here")
        beyond = self._find_beyond()
        if beyond is not None:
            raise Corruption(self._segment, self._offset, _with_beyond("no group is here", beyond))

    def replay(self, replicas, on_record=None, upto_seq=None):
        """Give every further record to whom it concerns; return how many there were.

        Args:
            replicas: (lowest kind, highest kind, Replica); a kind in no range goes to `on_record`.
            on_record: called with (seq, kind, payload); None: such records are passed over.
            upto_seq: stop before a group that goes beyond this record; None: read to the end and
                make sure that it is the end (not for a running journal).

        Raises:
            Corruption: as `next`; also for good groups beyond the end.
            ValueError: from a replica, with a note of the record's place.
        """
        cdef void* table[256]
        cdef list kept = []
        cdef uint64_t given = 0, limit = <uint64_t> -1 if upto_seq is None else upto_seq
        if self._busy:
            raise RuntimeError("the reader is replaying")
        memset(table, 0, sizeof(table))
        for low, high, replica in replicas:
            if not isinstance(replica, Replica) or not 0 <= low <= high <= 255:
                raise ValueError("replicas are (lowest kind, highest kind, Replica)")
            kept.append(replica)
            for kind in range(low, high + 1):
                table[<int> kind] = <void*> replica
        while self._step():
            if get64(self._group + 24) + get32(self._group + 40) - 1 > limit:
                break
            self._busy = True
            try:
                given += replay_group(self, table, on_record)
            finally:
                self._busy = False
            self._take()
        if upto_seq is None:
            self.verify_end()
        return given


cdef uint64_t replay_group(Reader reader, void** table, object on_record) except? 0:
    cdef const unsigned char* group = reader._group
    cdef size_t at = HEADER, n
    cdef uint64_t seq = get64(group + 24)
    cdef uint32_t head
    cdef int kind
    while at < reader._group_used:
        head = get32(group + at)
        kind = head >> 24
        n = head & PAYLOAD_MAX
        try:
            if table[kind] is not NULL:
                (<Replica> table[kind]).replay(kind, group + at + 4, <Py_ssize_t> n)
            elif on_record is not None:
                on_record(seq, kind, group[at + 4 : at + 4 + n])
        except Exception as error:
            error.add_note(
                f"replaying record {seq} of kind {kind}, segment {reader._segment}, "
                f"group at offset {reader._offset}"
            )
            raise
        at += 4 + n
        seq += 1
    return seq - get64(group + 24)


cdef str _with_beyond(str reason, tuple beyond):
    return f"{reason}, yet a good group follows at segment {beyond[0]}, offset {beyond[1]}"
