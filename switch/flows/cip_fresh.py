"""Payments that have changed lately, so that the service desk sees them before the read model does.

The read model follows in a process that makes way for everything else: on a busy machine it is
late. What it may not have yet is remembered here by name, in memory, and bounded.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

FRESH_MAX: Final = 2048


class Fresh:
    """Names of changed payments, each with the journal's position behind its newest change."""

    def __init__(self) -> None:
        self._behind: OrderedDict[str, int | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._behind)

    def note(self, names: Iterable[str]) -> None:
        """They have changed in this step, whose position nobody knows yet; the oldest make room."""
        for name in names:
            self._behind[name] = None
            self._behind.move_to_end(name)
        while len(self._behind) > FRESH_MAX:
            self._behind.popitem(last=False)

    def beyond(self, model_seq: int, last_seq: int) -> list[str]:
        """Names that a read model at `model_seq` may not have as they are; the others are dropped.

        Args:
            last_seq: of the journal now, at or behind every change that was noted.
        """
        for name, seq in list(self._behind.items()):
            if seq is None:
                self._behind[name] = last_seq
            elif seq <= model_seq:
                del self._behind[name]
        return list(self._behind)
