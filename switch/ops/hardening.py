"""What keeps the memory and the files of every process of this program from other users.

A core holds every key. A limit of zero stops core files; where the system pipes cores to a program,
the kernel does not look at that limit, but at whether the process is dumpable (`core(5)`,
`PR_SET_DUMPABLE` in `prctl(2)`). The same flag keeps debuggers of the same user out.
"""

import ctypes
import os
import resource
import sys
from typing import Final

PR_SET_DUMPABLE: Final = 4
OWNER_ONLY: Final = 0o077
"""The umask: whatever a process of this program writes is for its own user."""


WIPING: Final = {
    "PYTHONMALLOC": "malloc",
    "GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0",
}
"""Every object from the C library's allocator, which overwrites what is freed, and keeps no cache
of pieces that it does not. Read when a process begins."""


def forbid_core_dumps() -> None:
    """Forbid cores of this process, and core files of its children. Raises: OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def wipe_freed_memory() -> None:
    """Begin this process anew with an allocator that overwrites what is freed; once only.

    Objects of the interpreter are copied and dropped without end, so to wipe one buffer or another
    leaves most of what a secret was in; what is freed is wiped here, whoever had it. Same process
    id, same open files.
    """
    if any(os.environ.get(name) != value for name, value in WIPING.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **WIPING})


def harden() -> None:
    """Both, for a process of its own; called once, where the program begins."""
    os.umask(OWNER_ONLY)
    forbid_core_dumps()
