cdef class Sink:
    cdef int put(self, int kind, const void* data, Py_ssize_t n) except -1

cdef class MemorySink(Sink):
    cdef readonly list records

cdef class Replica:
    cdef int replay(self, int kind, const unsigned char* data, Py_ssize_t n) except -1
