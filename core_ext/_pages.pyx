"""Address space for tables that grow and never move, and a thread that backs it with memory ahead.

A table takes address space for the largest it may become and lets the kernel commit it as it is
touched: growing copies nothing and no pointer goes stale. Beyond the first 4 MiB huge pages are
asked for, which keeps millions of random entries off the page walker. But the first touch of a huge
page is a pause: 0.2 ms to clear it, 4 to 6 ms on a virtual machine whose host has to find memory as
well (measured). So a table says a few MiB ahead what it will need (`pages_ahead`), and one helper
thread of the process touches that, changing no byte. Where the helper comes late the owner touches
the page itself: slower, never wrong.

The helper never takes the GIL, leaves all signals to others, and is started by the first table that
outgrows the small pages. A forked child has none until it asks for one.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <sys/mman.h>

    #define PG_HUGE ((size_t)2 << 20)
    #define PG_SMALL ((size_t)4 << 20)
    #define PG_STEP ((size_t)4096)
    #define PG_QUEUE 64

    typedef struct { char *from; size_t bytes; } pg_part;

    static struct {
        pthread_mutex_t lock;
        pthread_cond_t work, idle;
        int started, hooked;
        unsigned count;          /* parts waiting */
        pg_part waiting[PG_QUEUE];
        pg_part busy;            /* being touched; bytes = 0: none */
        int cancel;              /* the part being touched is about to go */
        uint64_t touched;        /* pages, for tests and metrics */
    } pg = {.lock = PTHREAD_MUTEX_INITIALIZER,
            .work = PTHREAD_COND_INITIALIZER,
            .idle = PTHREAD_COND_INITIALIZER};

    /* Writes a zero over a zero in each page: no concurrent writer can lose anything by it.
       Checkers may have been told that a part is not in use yet. */
    __attribute__((no_sanitize_address)) static uint64_t pg_touch(pg_part part) {
        uint64_t pages = 0;
        for (size_t at = 0; at < part.bytes; at += PG_STEP, pages++) {
            char zero = 0;
            if (__atomic_load_n(&pg.cancel, __ATOMIC_RELAXED))
                break;
            __atomic_compare_exchange_n(part.from + at, &zero, 0, 0, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED);
        }
        return pages;
    }

    static void *pg_main(void *none) {
        struct sched_param plain = {0};
        pthread_setschedparam(pthread_self(), SCHED_IDLE, &plain);  /* makes way at once */
        pthread_mutex_lock(&pg.lock);
        for (;;) {
            while (!pg.count)
                pthread_cond_wait(&pg.work, &pg.lock);
            pg.busy = pg.waiting[0];
            pg.count--;
            for (unsigned i = 0; i < pg.count; i++)
                pg.waiting[i] = pg.waiting[i + 1];
            pthread_mutex_unlock(&pg.lock);
            uint64_t pages = pg_touch(pg.busy);
            pthread_mutex_lock(&pg.lock);
            pg.touched += pages;
            pg.busy.bytes = 0;
            pthread_cond_broadcast(&pg.idle);
        }
        return none;
    }

    /* The thread is not in the child, and the lock is as it happened to be. */
    static void pg_forked(void) {
        pthread_mutex_init(&pg.lock, NULL);
        pthread_cond_init(&pg.work, NULL);
        pthread_cond_init(&pg.idle, NULL);
        pg.started = 0;
        pg.count = 0;
        pg.busy.bytes = 0;
        pg.cancel = 0;
    }

    static int pg_start(void) {
        pthread_t thread;
        pthread_attr_t attr;
        sigset_t all, before;
        int error;
        if (!pg.hooked) {
            if (pthread_atfork(NULL, NULL, pg_forked))
                return -1;
            pg.hooked = 1;
        }
        if (pthread_attr_init(&attr))
            return -1;
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&thread, &attr, pg_main, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attr);
        pg.started = error ? -1 : 1;  /* a process that may have no thread goes without */
        return pg.started;
    }

    static void pg_ahead(char *from, size_t bytes) {
        pthread_mutex_lock(&pg.lock);
        if (pg.started || pg_start() > 0)
            if (pg.started > 0 && pg.count < PG_QUEUE) {
                pg.waiting[pg.count].from = from;
                pg.waiting[pg.count].bytes = bytes;
                pg.count++;
                pthread_cond_signal(&pg.work);
            }
        pthread_mutex_unlock(&pg.lock);
    }

    static int pg_meets(pg_part part, char *from, size_t bytes) {
        return part.bytes && part.from < from + bytes && from < part.from + part.bytes;
    }

    /* No part of the space is waiting or being touched when this returns. */
    static void pg_forget(char *from, size_t bytes) {
        unsigned kept = 0;
        pthread_mutex_lock(&pg.lock);
        for (unsigned i = 0; i < pg.count; i++)
            if (!pg_meets(pg.waiting[i], from, bytes))
                pg.waiting[kept++] = pg.waiting[i];
        pg.count = kept;
        while (pg_meets(pg.busy, from, bytes)) {
            __atomic_store_n(&pg.cancel, 1, __ATOMIC_RELAXED);
            pthread_cond_wait(&pg.idle, &pg.lock);
        }
        __atomic_store_n(&pg.cancel, 0, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&pg.lock);
    }

    /* Aligned to a huge page, so that the first huge one begins where it is said to. */
    static void *pg_reserve(size_t bytes) {
        size_t all = bytes + PG_HUGE, before;
        char *p = mmap(NULL, all, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return NULL;
        before = -(uintptr_t)p & (PG_HUGE - 1);
        bytes = (bytes + 4095) & ~(size_t)4095;
        if (before)
            munmap(p, before);
        p += before;
        if (all > before + bytes)
            munmap(p + bytes, all - before - bytes);
        if (bytes > PG_SMALL)
            madvise(p + PG_SMALL, bytes - PG_SMALL, MADV_HUGEPAGE);  /* advice: may be ignored */
        return p;
    }

    static void pg_plain(void *p, size_t bytes) {
        madvise(p, bytes, MADV_NOHUGEPAGE);
    }

    static void pg_release(void *p, size_t bytes) {
        if (!p)
            return;
        if (bytes > PG_SMALL)
            pg_forget(p, bytes);
        munmap(p, (bytes + 4095) & ~(size_t)4095);
    }

    static uint64_t pg_touched(void) {
        uint64_t pages;
        pthread_mutex_lock(&pg.lock);
        pages = pg.touched;
        pthread_mutex_unlock(&pg.lock);
        return pages;
    }
    """
    void* pg_reserve(size_t bytes) nogil
    void pg_plain(void* p, size_t bytes) nogil
    void pg_release(void* p, size_t bytes) nogil
    void pg_ahead(char* p, size_t bytes) nogil
    uint64_t pg_touched() nogil


cdef void* pages_reserve(size_t bytes) noexcept nogil:
    return pg_reserve(bytes)


cdef void pages_plain(void* p, size_t bytes) noexcept nogil:
    pg_plain(p, bytes)


cdef void pages_release(void* p, size_t bytes) noexcept nogil:
    pg_release(p, bytes)


cdef void pages_ahead(void* p, size_t bytes) noexcept nogil:
    pg_ahead(<char*> p, bytes)


def touched():
    """Return how many small pages the helper thread has gone over in this process."""
    return pg_touched()
