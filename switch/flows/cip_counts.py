"""What the payment application counts for its metrics; memory only."""

from itertools import pairwise
from typing import Final

from core_ext import Histogram
from switch.flows.cip_records import CREATED, SUBMITTED, Payment
from switch.sections.cip import Budget

KEYS_MAX: Final = 20_000

Key = tuple[str, ...]


class Times:
    """Histograms by labels, in nanoseconds."""

    def __init__(self) -> None:
        self.rows: dict[Key, Histogram] = {}

    def record(self, key: Key, took_ns: int) -> None:
        row = self.rows.get(key)
        if row is None:
            if len(self.rows) >= KEYS_MAX:
                return
            row = self.rows[key] = Histogram()
        row.record(max(took_ns, 0))


class CipCounts:
    """Counters and times, by the labels of the metrics."""

    def __init__(self) -> None:
        self.payments: dict[Key, int] = {}
        self.steps = Times()
        self.totals = Times()
        self.misses: dict[Key, int] = {}
        self.sources = Times()
        self.inquiries: dict[Key, int] = {}
        self.webhooks: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.pending: dict[str, int] = {}  # payment to when it became so
        self.owed: dict[str, int] = {"webhook": 0, "settle": 0}  # open entries of outboxes, by kind
        self.replays = 0
        self.conflicts = 0

    def moved(self, payment: Payment) -> None:
        if payment.status not in (CREATED, SUBMITTED):
            key = (payment.application, payment.mode, payment.status)
            self.payments[key] = self.payments.get(key, 0) + 1

    def source(self, source: str, outcome: str, took_ns: int) -> None:
        self.sources.record((source, outcome.lower()), took_ns)

    def inquired(self, source: str, outcome: object) -> None:
        key = (source, "later" if outcome is None else type(outcome).__name__.lower())
        self.inquiries[key] = self.inquiries.get(key, 0) + 1

    def refuse(self, reason: str) -> None:
        """A context, signature or address that was not taken."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def told(self, payment: Payment, budget: Budget) -> None:
        """The confirmation is on its way: how long each step took, people left out."""
        where = (payment.application, payment.mode)
        instants = sorted(payment.steps.items())
        for (_, before_ns), (step, at_ns) in pairwise(instants):
            if step != HUMAN_STEP.get(payment.mode):
                self.steps.record((*where, str(step)), at_ns - before_ns)
        total_ns = machine_ns(payment)
        self.totals.record(where, total_ns)
        limit_s = budget.full_total_s if payment.mode == "full" else budget.total_s
        if total_ns > limit_s * 1e9:
            self.misses[where] = self.misses.get(where, 0) + 1


# The step before which a person types: its time does not count.
HUMAN_STEP: Final = {"partial": 5, "full": 4}


def machine_ns(payment: Payment) -> int:
    """Time of a payment on machines: from the first step to the last, people left out."""
    instants = sorted(payment.steps.items())
    total = 0
    for (_, before_ns), (step, at_ns) in pairwise(instants):
        if step != HUMAN_STEP.get(payment.mode):
            total += max(at_ns - before_ns, 0)
    return total
