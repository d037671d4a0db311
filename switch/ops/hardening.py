"""What keeps the memory and the files of every process of this program from other users.

A core holds every key. A limit of zero stops core files; where the system pipes cores to a program,
the kernel does not look at that limit, but at whether the process is dumpable (`core(5)`,
`PR_SET_DUMPABLE` in `prctl(2)`). The same flag keeps debuggers of the same user out.
"""

import ctypes
import os
import resource
from typing import Final

PR_SET_DUMPABLE: Final = 4
OWNER_ONLY: Final = 0o077
"""The umask: whatever a process of this program writes is for its own user."""


def forbid_core_dumps() -> None:
    """Forbid cores of this process, and core files of its children. Raises: OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def harden() -> None:
    """Both, for a process of its own; called once, where the program begins."""
    os.umask(OWNER_ONLY)
    forbid_core_dumps()
