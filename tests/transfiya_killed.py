"""A node that kills itself, hard, before or after one of its steps: `python -m` runs it.

TRONCAL_KILL_AT is `NUMBER:before` or `NUMBER:after`; a step is over when it is durable.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

from switch.node import Node


def _arm(number: int, when: str) -> None:
    """Have the process end at that step."""
    perform = Node.perform
    steps = 0

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def counted(node: Node, do: Callable[[Any], Any]) -> Any:
        nonlocal steps
        steps += 1
        mine = steps == number
        if mine and when == "before":
            end()
        value = await perform(node, do)
        if mine:
            end()
        return value

    Node.perform = counted  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    from switch.__main__ import main

    place, _, which = os.environ.get("TRONCAL_KILL_AT", "").partition(":")
    if place:
        _arm(int(place), which)
    main()
