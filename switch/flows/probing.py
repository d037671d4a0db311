"""How many persons that nobody knows a till may ask about before it is told nothing more (S07).

A `holder` question needs no code and moves no money, so it would be the cheapest way to find out
who is a customer. Those asked in vain are counted like wrong codes, with the same limits and under
keys of their own: a till is locked for a while, a network only raises an alarm, because a lock
would stop a country for one attacker.
"""

from core_ext import Batch, Ledger, Result
from switch.config import Config
from switch.flows.registry import Terminal
from switch.flows.step import Step
from switch.flows.tokens import lock_key


class Probing:
    """Counts in the ledger, so that a restart forgives nothing.

    Attributes:
        refused: questions of locked tills since the start, for metrics.
    """

    def __init__(self, *, config: Config, ledger: Ledger) -> None:
        self._config = config
        self._ledger = ledger
        self.refused = 0

    def reconfigure(self, config: Config) -> None:
        """Go on with other limits; locks stay as long as they were set for."""
        self._config = config

    def is_locked(self, step: Step, terminal: Terminal) -> bool:
        """True while the till is told nothing; the question is then counted as refused."""
        until_s = self._ledger.locked_until(_till_key(terminal))
        if until_s <= step.now_ns // 1_000_000_000:
            return False
        self.refused += 1
        return True

    def asked_in_vain(self, step: Step, terminal: Terminal) -> None:
        """Count a person that nobody knows; raise the alarm where that is one too many."""
        c = self._config.tokens
        batch = Batch()
        batch.attempt(
            _till_key(terminal), limit=c.attempts_terminal, window_s=c.attempts_window_s,
            lock_s=c.lock_s, row_limit=0,
        )  # fmt: skip
        batch.attempt(
            lock_key("holders-network", terminal.network), limit=c.attempts_network_alarm,
            window_s=c.attempts_window_s, lock_s=0, row_limit=0,
        )  # fmt: skip
        till, network = (Result(r) != Result.DONE for r in self._ledger.apply(batch, step.now_ns))
        if till:
            step.alarm("document_probing", terminal.number, "holder questions")
        if network:
            step.alarm("document_probing_network", terminal.network, "holder questions")


def _till_key(terminal: Terminal) -> bytes:
    return lock_key("holders-terminal", terminal.number)
