"""The bank that issued the cards of the Webpay demonstration, behind ISO 8583: an `IsoHost` that
knows cards. It declines the published test card for declines, and approves all others."""

from typing import Any, Final

from protocols.iso8583.dialect import Dialect, Framing, Message
from protocols.iso8583.keys import HostKeys
from switch.simulators.host import IsoHost, Request
from switch.simulators.rules import Rules

APPROVED_PAN: Final = "4051885600446623"
DECLINED_PAN: Final = "5186059559590568"
CVV: Final = "123"
DECLINE: Final = "05"


class CardIssuer(IsoHost):
    """A bank that decides by card.

    Args:
        declined: its DE39 by card number; cards not in it are approved.
    """

    def __init__(
        self, dialect: Dialect, keys: HostKeys, *, declined: dict[str, str] | None = None,
        **values: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            "bank", dialect, dialect.framing or Framing(), keys, Rules([], 1),
            check_clock=False, **values,
        )  # fmt: skip
        self._declined = {DECLINED_PAN: DECLINE} if declined is None else declined

    def _hold(self, message: Message, request: Request, refused: str) -> dict[str, object]:
        refused = refused or self._declined.get(message.get("2", ""), "")
        return super()._hold(message, request, refused)
