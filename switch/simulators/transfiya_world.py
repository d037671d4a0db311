"""What the simulated network is told from outside: banks, their customers, faults, transfers."""

from typing import Any, Final

import msgspec

from protocols.transfiya import AmountError, to_minor
from protocols.transfiya.handle import has_shape
from switch.simulators.transfiya import BankEntry, Fault, Network

LINKS: Final = ("ASK", "TRUST", "BLOCK")
KINDS: Final = ("SEND", "SENDMOL", "REQUEST")
ENDPOINTS: Final = (
    "create", "find", "get", "tag", "prove", "continue", "accept", "reject", "signer", "transfer",
    "search", "conciliation", "token", "*", "debit", "credit", "action", "status",
)  # fmt: skip
_OURS: Final = ("debit", "credit", "action", "status")
_BANK_FAULTS: Final = frozenset(
    ("drop", "lose", "delay", "slow", "status", "refuse", "deny", "garbage", "forbidden", "expired",
     "amount", "bare", "restart")
)  # fmt: skip
_OUR_FAULTS: Final = frozenset(
    ("lose", "delay", "duplicate", "other", "swap", "mark", "stop", "undo")
)
_SECONDS: Final = frozenset(("delay", "slow", "restart"))
_WHOLE: Final = frozenset(("refuse", "deny"))


class WorldError(ValueError):
    """Text that tells no bank, no fault or no transfer."""


class Customer(msgspec.Struct, frozen=True):
    """A customer of a bank, as the network's users know it."""

    handle: str
    alias: str
    link: str = "ASK"


class BankFile(msgspec.Struct, frozen=True):
    """A bank as the network knows it; `troncal transfiya export` prints it.

    Fields:
        url: where it is called. auth: what it wants to be shown there, by `inbound_…`.
        client_id, client_secret, api_key: what it shows the network.
    """

    id: str
    signer: str
    url: str
    auth: str = "none"
    client_id: str = ""
    client_secret: str = ""
    api_key: str = ""
    inbound_client_id: str = ""
    inbound_client_secret: str = ""
    inbound_api_key: str = ""
    customers: list[Customer] = []


def read_bank(text: bytes) -> BankFile:
    """Raises: WorldError, which names what is wrong and no secret."""
    try:
        bank = msgspec.json.decode(text, type=BankFile)
    except msgspec.MsgspecError as error:
        raise WorldError(str(error)) from None
    for handle in (bank.signer, *(customer.handle for customer in bank.customers)):
        if not has_shape(handle):
            raise WorldError(f"{handle!r} is no handle")
    for customer in bank.customers:
        if customer.link not in LINKS:
            raise WorldError(f"a link is one of {', '.join(LINKS)}")
    return bank


def join(network: Network, bank: BankFile) -> None:
    """Make a bank and its customers known to the network."""
    network.add_bank(
        BankEntry(
            bank.id, bank.signer, bank.url, auth=bank.auth, client_id=bank.client_id,
            client_secret=bank.client_secret, api_key=bank.api_key,
            own_client_id=bank.inbound_client_id, own_client_secret=bank.inbound_client_secret,
            own_api_key=bank.inbound_api_key,
        )
    )  # fmt: skip
    for customer in bank.customers:
        network.add_customer(bank.id, customer.handle, customer.alias, customer.link)


def read_fault(text: str) -> Fault:
    """`ENDPOINT:KIND[=VALUE][,count=N][,skip=N][,after=SECONDS][,tx=REFERENCE]`.

    Raises:
        WorldError: no such endpoint or kind, or a value that is none.
    """
    head, *rest = text.split(",")
    endpoint, colon, what = head.partition(":")
    kind, _, value = what.partition("=")
    if endpoint not in ENDPOINTS or not colon:
        raise WorldError(f"{endpoint!r} is none of {', '.join(ENDPOINTS)}")
    known = _OUR_FAULTS if endpoint in _OURS else _BANK_FAULTS
    if kind not in known:
        raise WorldError(f"{kind!r} is none of {', '.join(sorted(known))}")
    more = {name: found for name, _, found in (one.partition("=") for one in rest)}
    try:
        fault = Fault(
            endpoint, kind, int(more.pop("count", "1")), int(more.pop("skip", "0")),
            _value(kind, endpoint, value), more.pop("tx", ""), float(more.pop("after", "0")),
        )  # fmt: skip
    except ValueError:
        raise WorldError(f"{text!r} has a value that is no number") from None
    if more:
        raise WorldError(f"{next(iter(more))!r} is none of count, skip, after, tx")
    return fault


def _value(kind: str, endpoint: str, text: str) -> Any:
    """Raises: ValueError."""
    if kind == "status":
        return int(text or "503")
    if kind in _WHOLE:
        return int(text or "123")
    if kind in _SECONDS:
        return float(text or "1")
    if kind in ("duplicate", "other", "swap"):
        return float(text) if text else None
    if kind == "amount":
        return text or "1.00"
    return text or "ERROR"


def read_transfer(text: str) -> tuple[str, str, str, str]:
    """`SOURCE,TARGET,AMOUNT[,KIND]`: who pays, who gets it, decimal text, SEND where none is said.

    Raises:
        WorldError: not of this form.
    """
    parts = text.split(",")
    if len(parts) == 3:
        parts.append("SEND")
    if len(parts) != 4 or parts[3] not in KINDS:
        raise WorldError(f"{text!r} is not SOURCE,TARGET,AMOUNT[,{'|'.join(KINDS)}]")
    try:
        to_minor(parts[2], 2)
    except AmountError:
        raise WorldError(f"{parts[2]!r} is no amount, such as 100.00") from None
    return parts[0], parts[1], parts[2], parts[3]
