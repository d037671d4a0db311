"""What a simulated issuer or platform holds: one entry a hold, in memory, and honestly kept.

Whatever goes wrong on the way of its answers, the book says what was decided, so that a test can
ask it at the end: it is the judge. The same request again gets the first answer, a release that
finds nothing leaves a tombstone.
"""

from collections import Counter
from typing import Any, Final

from msgspec import Struct

ENTRIES_MAX: Final = 1_000_000
ACTIVA: Final = "ACTIVA"
CAPTURADA: Final = "CAPTURADA"
LIBERADA: Final = "LIBERADA"
TUMBA: Final = "TUMBA"
RECHAZADA: Final = "RECHAZADA"


class Entry(Struct):
    """One hold.

    Fields:
        body: what repeats of the hold must agree in. tries: messages about it, by operation.
        compensated: captured, then annulled. forced: captured without a hold. suspense: captured,
            but not to the card.
    """

    state: str
    kind: str = ""
    amount: int = 0
    code: str = ""
    authorization: str = ""
    document: str = ""
    body: tuple[object, ...] = ()
    tries: dict[str, int] = {}
    compensated: bool = False
    forced: bool = False
    suspense: bool = False

    def shown(self) -> dict[str, Any]:
        """For the state dump: no document, no code of a card."""
        found: dict[str, Any] = {"state": self.state, "kind": self.kind, "amount": self.amount}
        for name in ("compensated", "forced", "suspense"):
            if getattr(self, name):
                found[name] = True
        return found | {"tries": self.tries}


class Book:
    """All holds by their key: network and number, or reference.

    Every method returns a response code: what an honest issuer answers.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def get(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def tried(self, key: str, operation: str) -> int:
        """Count a message about a hold; how many of its kind came before."""
        entry = self.entries.get(key)
        if entry is None:
            return 0
        before = entry.tries.get(operation, 0)
        entry.tries = {**entry.tries, operation: before + 1}
        return before

    def hold(
        self, key: str, *, kind: str, amount: int, document: str, body: tuple[object, ...],
        code: str, authorization: str = "",
    ) -> str:  # fmt: skip
        """Decide a hold with `code`, unless it was decided before."""
        known = self.entries.get(key)
        if known is not None:
            if known.state == TUMBA:
                return "21"
            return known.code if known.body == body else "94"
        if len(self.entries) >= ENTRIES_MAX:
            return "91"
        state = ACTIVA if code == "00" else RECHAZADA
        self.entries[key] = Entry(
            state, kind, amount, code, authorization if code == "00" else "", document, body
        )
        return code

    def capture(self, key: str, amount: int, *, lost: bool = False, suspense: bool = False) -> str:
        """Post a hold. `lost`: by force, the hold is gone; `suspense`: not to the card."""
        entry = self.entries.get(key)
        if entry is None or entry.state == RECHAZADA:
            return "25"
        if entry.amount != amount:
            return "94"
        if entry.state == CAPTURADA:
            return "00"
        if entry.state != ACTIVA:
            return "21"
        entry.state, entry.forced, entry.suspense = CAPTURADA, lost, suspense
        return "00"

    def release(self, key: str, kind: str, amount: int) -> str:
        """Give a hold back; where there is none, none will be."""
        entry = self.entries.get(key)
        if entry is None:
            self.entries[key] = Entry(TUMBA, kind, amount)
            return "25"
        if entry.state in (TUMBA, RECHAZADA):
            return "25"
        if entry.amount != amount:
            return "94"
        if entry.state == CAPTURADA:
            return "A3"
        entry.state = LIBERADA
        return "00"

    def annul(self, key: str, kind: str, amount: int) -> str:
        """Undo by human decision: release, or compensate what was captured."""
        entry = self.entries.get(key)
        if entry is not None and entry.state == CAPTURADA and entry.amount == amount:
            entry.compensated = True
            return "00"
        return self.release(key, kind, amount)

    def dump(self) -> dict[str, Any]:
        """All entries, how many are in which state, and the amounts captured by kind."""
        states = Counter(entry.state for entry in self.entries.values())
        captured: Counter[str] = Counter()
        for entry in self.entries.values():
            if entry.state == CAPTURADA and not entry.compensated:
                captured[entry.kind] += entry.amount
        return {
            "states": dict(sorted(states.items())),
            "captured": dict(sorted(captured.items())),
            "holds": {key: entry.shown() for key, entry in self.entries.items()},
        }
