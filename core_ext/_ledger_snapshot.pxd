"""What the ledger uses to check, dump and load its state."""

from libc.stdint cimport uint32_t

from core_ext._ledger_state cimport Core

cdef struct Place:  # how far a dump has come; all zero: the begin
    uint32_t section
    uint32_t ref

cdef list check_all(Core* core)
cdef bytes dump_next(Core* core, Place* place)
cdef int load_all(Core* core, chunks) except -1
