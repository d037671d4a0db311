"""Counters and latency histograms as plain integers: nanoseconds to touch, read at scrape time.

A histogram is log-linear (as HDR's): a value below 128 has a bucket of its own; above, every
power of two is cut into 128 equal buckets, so a bucket is never wider than 1/128 of its values.
The range is 0..2**42 - 1 ns (73 minutes); larger values count in the last bucket, and exactly in
`max` and `sum`. 4,608 buckets of 8 bytes, always.

One owner thread each.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset


cdef enum:
    SUB_BITS = 7
    SUB = 1 << SUB_BITS
    RANGE_BITS = 42
    BUCKETS = SUB * (RANGE_BITS - SUB_BITS + 1)
    BOUND_FIRST = 10  # the bounds for scrapes: 2**10, 1.5 * 2**10, ... 2**37 ns
    BOUND_LAST = 37


cdef extern from *:
    """
    static inline int cn_highest_bit(uint64_t v) { return 63 - __builtin_clzll(v); }
    """
    int cn_highest_bit(uint64_t) nogil


@cython.final
cdef class Counters:
    """A fixed set of named counters that only rise (modulo 2**64).

    Args:
        names: distinct; the index of a name in it is how it is counted.
    """

    def __cinit__(self, tuple names not None):
        if not names or len(set(names)) != len(names):
            raise ValueError("counters need distinct names, at least one")
        for name in names:
            if not isinstance(name, str):
                raise TypeError("a counter's name is a str")
        self.names = names
        self._n = len(names)
        self._values = <uint64_t*> calloc(self._n, sizeof(uint64_t))
        if self._values is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._values)

    cdef int bump(self, Py_ssize_t index, uint64_t n) except -1:
        if not 0 <= index < self._n:
            raise IndexError("no such counter")
        self._values[index] += n
        return 0

    def add(self, Py_ssize_t index, uint64_t n=1):
        """Add n >= 0 to the counter of that index; IndexError where there is none."""
        self.bump(index, n)

    def get(self, Py_ssize_t index):
        """Return the value of the counter of that index."""
        if not 0 <= index < self._n:
            raise IndexError("no such counter")
        return self._values[index]

    def as_dict(self):
        """Return all values by name."""
        cdef Py_ssize_t i
        return {self.names[i]: self._values[i] for i in range(self._n)}


cdef inline Py_ssize_t bucket_of(uint64_t value) noexcept nogil:
    cdef int shift
    if value < SUB:
        return <Py_ssize_t> value
    if value >> RANGE_BITS:
        return BUCKETS - 1
    shift = cn_highest_bit(value) - SUB_BITS
    return SUB * (shift + 1) + <Py_ssize_t> ((value >> shift) - SUB)


cdef inline uint64_t upper_of(Py_ssize_t bucket) noexcept nogil:
    """The largest value that falls into the bucket."""
    cdef int shift
    if bucket < SUB:
        return <uint64_t> bucket
    shift = <int> (bucket // SUB) - 1
    return ((<uint64_t> (SUB + bucket % SUB + 1)) << shift) - 1


@cython.final
cdef class Histogram:
    """Latencies in nanoseconds.

    Attributes:
        count: values recorded.
        sum: of them, modulo 2**64.
    """

    def __cinit__(self):
        self._buckets = <uint64_t*> calloc(BUCKETS, sizeof(uint64_t))
        if self._buckets is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._buckets)

    cdef void put(self, int64_t value_ns) noexcept nogil:
        # A clock that was set back makes a negative latency: it counts as none.
        cdef uint64_t value = <uint64_t> value_ns if value_ns > 0 else 0
        self._buckets[bucket_of(value)] += 1
        self.count += 1
        self.sum += value
        if value > self._max:
            self._max = value

    def record(self, int64_t value_ns):
        """Record one value; a negative one counts as 0."""
        self.put(value_ns)

    def record_many(self, values_ns):
        """Record all values of an iterable; those before a bad one (TypeError) stay recorded."""
        cdef int64_t value
        for value in values_ns:
            self.put(value)

    @property
    def max(self):
        """The largest value, exactly; 0 while there is none."""
        return self._max

    def percentile(self, double q):
        """Return a value that q percent of the recorded ones do not exceed; 0 while there is none.

        Never below the exact percentile (nearest rank), and less than 1/128 above it.

        Args:
            q: 0..100.
        """
        cdef uint64_t rank, seen = 0
        cdef Py_ssize_t i
        if not 0.0 <= q <= 100.0:
            raise ValueError("a percentile is 0..100")
        if self.count == 0:
            return 0
        rank = <uint64_t> (q / 100.0 * <double> self.count)
        # Nearest rank: the smallest whole number that is not below q/100 * count, at least 1.
        if <double> rank < q / 100.0 * <double> self.count:
            rank += 1
        rank = min(max(rank, <uint64_t> 1), self.count)
        for i in range(BUCKETS - 1):
            seen += self._buckets[i]
            if seen >= rank:
                return min(upper_of(i), self._max)
        return self._max

    def buckets(self):
        """Return (upper_ns, how many values are not above it), for a scrape: exact, always 56.

        The bounds are 2**k - 1 and 1.5 * 2**k - 1, from about 1 microsecond to 206 seconds.
        """
        cdef list found = []
        cdef uint64_t seen = 0, edge
        cdef Py_ssize_t at = 0, end
        cdef int k, half
        for k in range(BOUND_FIRST, BOUND_LAST + 1):
            for half in range(2):
                edge = ((<uint64_t> 2 + half) << k) >> 1
                end = bucket_of(edge)  # an edge begins a bucket
                while at < end:
                    seen += self._buckets[at]
                    at += 1
                found.append((edge - 1, seen))
        return found

    def merge(self, Histogram other not None):
        """Add all that another histogram holds."""
        cdef Py_ssize_t i
        for i in range(BUCKETS):
            self._buckets[i] += other._buckets[i]
        self.count += other.count
        self.sum += other.sum
        self._max = max(self._max, other._max)

    def reset(self):
        """Forget everything."""
        memset(self._buckets, 0, BUCKETS * sizeof(uint64_t))
        self.count = self.sum = self._max = 0
