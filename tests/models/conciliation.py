"""What a daily file must come to, in plain Python: one operation at a time, from a table.

Written from the acceptance specification (group C) and the file's description, not from the code.
"""

from dataclasses import dataclass

FATES = ("confirmed", "reversed", "unconfirmed")
LINES = ("R", "E", "A", "N", "X", "none", "amount", "kind", "commission")

CAPTURED, UNDONE, HELD = "captured", "undone", "held"

# (what sicoop had, what the file says) -> (what it has after the grace time, difference or "")
_TABLE = {
    ("confirmed", "R"): (CAPTURED, ""),
    ("confirmed", "E"): (CAPTURED, ""),
    ("confirmed", "A"): (CAPTURED, "sin respaldo de red"),
    ("confirmed", "N"): (CAPTURED, "sin respaldo de red"),
    ("confirmed", "X"): (CAPTURED, "sin respaldo de red"),
    ("confirmed", "none"): (CAPTURED, "sin respaldo de red"),
    ("confirmed", "amount"): (CAPTURED, "monto distinto"),
    ("confirmed", "kind"): (CAPTURED, "operacion distinta"),
    ("confirmed", "commission"): (CAPTURED, "comision distinta"),
    ("reversed", "R"): (UNDONE, "pagada por red"),
    ("reversed", "E"): (UNDONE, "pagada por red"),
    ("reversed", "A"): (UNDONE, ""),
    ("reversed", "N"): (UNDONE, ""),
    ("reversed", "X"): (UNDONE, ""),
    ("reversed", "none"): (UNDONE, ""),
    ("reversed", "amount"): (UNDONE, "pagada por red"),
    ("reversed", "kind"): (UNDONE, "pagada por red"),
    ("reversed", "commission"): (UNDONE, "pagada por red"),
    ("unconfirmed", "R"): (CAPTURED, ""),
    ("unconfirmed", "E"): (CAPTURED, ""),
    ("unconfirmed", "A"): (UNDONE, ""),
    ("unconfirmed", "N"): (UNDONE, ""),
    ("unconfirmed", "X"): (UNDONE, ""),
    ("unconfirmed", "none"): (UNDONE, ""),
    ("unconfirmed", "amount"): (HELD, "monto distinto"),
    ("unconfirmed", "kind"): (HELD, "operacion distinta"),
    ("unconfirmed", "commission"): (CAPTURED, "comision distinta"),
}
# What two persons may decide about a case, and what that comes to.
DECISIONS = {
    CAPTURED: {"capture": CAPTURED, "annul": UNDONE},
    UNDONE: {"capture": CAPTURED, "charge": UNDONE},
    HELD: {"capture": CAPTURED, "release": UNDONE},
}


@dataclass
class Planned:
    """One operation of a day, what became of it, and what the file says about it."""

    fate: str
    kind: str
    amount: int
    line: str
    decision: int  # which of the decisions open to its case

    @property
    def after_file(self) -> tuple[str, str]:
        return _TABLE[self.fate, self.line]

    @property
    def outcome(self) -> str:
        """What two persons decide; '' where there is no case."""
        state, difference = self.after_file
        if not difference:
            return ""
        choices = sorted(DECISIONS[state])
        return choices[self.decision % len(choices)]

    @property
    def end(self) -> str:
        state, _ = self.after_file
        return DECISIONS[state][self.outcome] if self.outcome else state


def position(day: list[Planned], states: list[str]) -> int:
    """P of the network: positive, it owes."""
    return sum(
        o.amount if o.kind == "deposit" else -o.amount
        for o, state in zip(day, states, strict=True)
        if state == CAPTURED
    )
