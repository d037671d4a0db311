"""`python -m switch.follower`: our commands, as a node runs them beside itself.

Making a Python process ready takes the better part of a second of CPU; with breaks in it, nobody
who shares that CPU waits for more than a fraction of a millisecond. The commands for followers
(`project --follow`, `snapshot`) then take breaks of their own.
"""

import importlib
import sys

from core_ext._breaks import Breaks
from switch.cli import COMMANDS


def main() -> None:
    """As `python -m switch COMMAND …`."""
    with Breaks():
        module, _, _ = COMMANDS[sys.argv[1]].partition(":")
        importlib.import_module(module)  # with it comes nearly all that it needs
        from switch.__main__ import main as run
    run()


if __name__ == "__main__":
    main()
