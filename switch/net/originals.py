"""DE90 of what follows a request: the STAN and DE7 that its original went out with.

DE37 says which operation is meant, so a DE90 of zeros is right as well, and is what is sent where
the original went out before this process began. Hosts that look for the original by its STAN find
it by this.

    DE90 = MTI(4) STAN(6) DE7(10) acquirer(11) forwarder(11)
"""

from collections.abc import Mapping
from typing import Any, Final

ORIGINALS_MAX: Final = 16_384
"""Of one link; the oldest is forgotten."""

_UNKNOWN: Final = "0" * 16


class Originals:
    """What a link has sent, by network and operation."""

    def __init__(self) -> None:
        self._sent: dict[tuple[Any, Any], str] = {}

    def complete(self, elements: Mapping[str, Any]) -> Mapping[str, Any]:
        """The elements of a message about an earlier one, with its STAN and DE7 in DE90."""
        told = elements.get("90")
        if not isinstance(told, str) or told[4:20] != _UNKNOWN:
            return elements
        sent = self._sent.get((elements.get("32"), elements.get("37")))
        return elements if sent is None else {**elements, "90": sent + told[20:]}

    def note(self, mti: str, elements: Mapping[str, Any]) -> None:
        """Keep that of a request that may be captured or reversed later (0100, 0200)."""
        operation = elements.get("37")
        if operation is None or mti not in ("0100", "0200"):
            return
        if len(self._sent) >= ORIGINALS_MAX:
            del self._sent[next(iter(self._sent))]
        self._sent[elements.get("32"), operation] = f"{mti}{elements['11']}{elements['7']}"
