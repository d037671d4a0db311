"""What a product (webpay, transfiya, cip) is to the node: a flow with durable work of its own.

The node plays products beside the cashier roles, with the same means: steps, records, ledger,
timers, effects held until they are durable.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from switch.config import Config
from switch.flows.step import Step


class ProductFlow(Protocol):
    """A product's flow. Synchronous; what it is asked beside this is between it and its service.

    Attributes:
        role: its name in `node.roles`, of its timers (`step.arm`) and of its calls (`step.call`).
        spaces: of the record store, whose finished records are forgotten after the retention.
    """

    @property
    def role(self) -> str: ...

    @property
    def spaces(self) -> Sequence[int]: ...

    def unfinished(self) -> Iterable[Any]:
        """All work a stop left open, asked for at the start only."""

    def adopt(self, step: Step, work: Any) -> None:
        """Take up one piece of it again: arm its timers, repeat or conclude what it owes.

        A step takes in several of them, as many as its group has room for.
        """

    def on_deadline(self, step: Step, kind: str, key: str) -> None:
        """The time of a timer that was armed under `role` has come."""

    def flush(self) -> None:
        """Write the records that the step has changed; called at its end."""

    def reconfigure(self, config: Config) -> None:
        """Judge by another configuration from the next step on."""


class BankWay(Protocol):
    """The way to a bank, as the node sees it at the end of each step."""

    def forward(self, step: Step) -> None:
        """Send what is owed and due."""
