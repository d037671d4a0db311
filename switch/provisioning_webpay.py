"""What operators change of Webpay: cards that our own ledger authorises."""

import hmac
import re
from typing import Any, Final

from switch.admin_socket import ProvisioningError
from switch.flows.step import Step
from switch.flows.webpay_authorisers import LedgerAuthoriser
from switch.node import Node
from switch.ops.masking import luhn

COMMANDS: Final = ("webpay_card_add",)
CURRENCIES: Final = ("CLP", "USD")
BALANCE_MAX: Final = 10**12

_PAN: Final = re.compile(r"[0-9]{13,19}", re.ASCII)


class WebpayCommands:
    """Commands of `troncal webpay card`, on a running node or a stopped one."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def webpay_card_add(
        self, step: Step, pan: str, currency: str = "CLP", balance: int = 0
    ) -> dict[str, Any]:
        """Open the account of a card; known already: its balance grows.

        Args:
            pan: the number; only its keyed hash is kept.
            balance: in minor units of the currency, out of the house's funds.
        """
        if not (_PAN.fullmatch(pan) and luhn(pan)):
            raise ProvisioningError("a card number has 13 to 19 digits, the last a check digit")
        if currency not in CURRENCIES or not 0 <= balance <= BALANCE_MAX:
            raise ProvisioningError(
                f"currency is one of {', '.join(CURRENCIES)}, balance 0 or more"
            )
        store = self._node.store
        key = pan_key(self._node.master.subkey("fingerprint"))
        ledger = LedgerAuthoriser(store.ledger, store.records)
        ledger.open_card(pan_hash(key, pan), currency, balance, step.now_ns)
        shown = f"{pan[:6]}******{pan[-4:]}"
        step.audit("operator", "webpay_card_add", f"card:{shown}", "00")
        return {"card": shown, "currency": currency, "balance": balance}


def pan_key(fingerprint_key: bytes) -> bytes:
    """The key of the hashes by which card numbers are known again."""
    return hmac.digest(fingerprint_key, b"webpay-pan", "sha256")


def pan_hash(key: bytes, pan: str) -> bytes:
    """What is kept of a card number for matching."""
    return hmac.digest(key, pan.encode(), "sha256")
