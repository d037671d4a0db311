"""The seam between state and journal: a `Sink` takes records, a `Replica` is rebuilt from them."""

cimport cython


cdef class Sink:
    """Takes one record for each change of state. Subclasses: the journal, and `MemorySink`."""

    cdef int put(self, int kind, const void* data, Py_ssize_t n) except -1:
        raise NotImplementedError("a Sink must say where its records go")


@cython.final
cdef class MemorySink(Sink):
    """Keeps its records in a list of (kind, payload), in order; for tests and tools."""

    def __cinit__(self):
        self.records = []

    cdef int put(self, int kind, const void* data, Py_ssize_t n) except -1:
        self.records.append((kind, (<const unsigned char*> data)[:n]))
        return 0


cdef class Replica:
    """State that is a pure function of its records: replaying them all gives it back."""

    cdef int replay(self, int kind, const unsigned char* data, Py_ssize_t n) except -1:
        raise NotImplementedError("a Replica must say how a record is applied")

    def replay_record(self, int kind, bytes data not None):
        """Apply one record as it was journaled; ValueError where it cannot be one of ours."""
        self.replay(kind, <const unsigned char*> <const char*> data, len(data))
