"""The issuers of a sicoop: which one an operation goes to, and the way there."""

from typing import Protocol

from protocols.messages import (
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
)
from switch.calendar import Calendar
from switch.config import Budgets
from switch.flows.ceibo import NEAR
from switch.flows.step import Step
from switch.routing import RouteKey, Router, week_minute

UNAVAILABLE = IssuerAnswer("91", "EMISOR_NO_DISPONIBLE")


MAINTENANCE = "maintenance"
"""Name of the durable switch that closes the ways to all issuers."""


class Port(Protocol):
    """The way to an issuer in another process."""

    recovering: bool
    stopping: bool

    @property
    def up(self) -> bool: ...

    def ask(
        self,
        step: Step,
        message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder,
        key: str,
    ) -> IssuerAnswer | HolderAnswer | None: ...

    def forward(self, step: Step) -> None: ...

    def reconfigure(self, budgets: Budgets, answer_s: float) -> None: ...


class Near(Protocol):
    """The way to the ceibo of this process; None: `Sicoop.on_issuer_answer` hears of it later."""

    def ask(
        self, step: Step, message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder
    ) -> IssuerAnswer | HolderAnswer | None: ...


class Issuers:
    """All issuers of a sicoop: the ceibo of this process, and those behind links.

    Args:
        near: the ceibo of this process; None: it is played elsewhere.
        default: link of operations that no route claims, where there is no near one.

    Attributes:
        closed: an operator has announced maintenance: new operations are refused (P14).
    """

    def __init__(self, near: Near | None, calendar: Calendar, default: str) -> None:
        self._near = near
        self._calendar = calendar
        self._default = NEAR if near is not None else default
        self.router: Router | None = None
        self.ports: dict[str, Port] = {}
        self.closed = False

    def reconfigure(self, default: str) -> None:
        """Another link for operations that no route claims; those under way stay where they are."""
        if self._near is None:
            self._default = default

    def choose(
        self, step: Step, operation: str, network: str, amount: int = 0, currency: str = ""
    ) -> str:
        if self.router is None:
            return self._default
        day = self._calendar.local(step.now_ns)
        minute = (step.now_ns - day.start_ns) // 60_000_000_000
        links = self.router.choose(
            RouteKey(
                operation, network, amount=amount, currency=currency,
                week_minute=week_minute(day.number, minute),
            )
        )  # fmt: skip
        up = (link for link in links if link in self.ports and self.ports[link].up)
        return next(up, links[0] if links else self._default)

    @property
    def only(self) -> Near | None:
        """The ceibo of this process, where all operations go to it."""
        return self._near if self.router is None and not self.closed else None

    def forwards(self, link: str) -> bool:
        return link != NEAR

    def ask(
        self,
        step: Step,
        message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder,
        key: str = "",
        link: str = NEAR,
    ) -> IssuerAnswer | HolderAnswer | None:
        """What is owed to an issuer that this process has no way to stays owed, and is said."""
        if link == NEAR and self._near is not None:
            return self._near.ask(step, message)
        port = self.ports.get(link)
        if port is not None:
            return port.ask(step, message, key)
        if isinstance(message, IssuerHold):
            return UNAVAILABLE
        if isinstance(message, IssuerHolder):
            return HolderAnswer("91")
        step.alarm("no_way_to_issuer", key, link)
        return None

    def forward(self, step: Step) -> None:
        for port in self.ports.values():
            port.forward(step)
