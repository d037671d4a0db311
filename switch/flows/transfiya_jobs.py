"""What an item wants of the network, and what came of it: plain values between flow and service."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import timezone
from typing import Any, Final, Protocol
from urllib.parse import quote

from msgspec import Struct

from protocols.transfiya import SigningKey, encode, error_body, label_text
from protocols.transfiya.errors import bank_code
from protocols.transfiya.times import zone_of
from switch.flows.transfiya_core import Core
from switch.flows.transfiya_records import Directory, Item, Items
from switch.sections.transfiya import Bank as Settings

OK: Final = "ok"
REFUSED: Final = "refused"
UNAVAILABLE: Final = "unavailable"

ROLE: Final = "transfiya"
GO: Final = "go"

_MESSAGES: Final = {
    "account-inactive": "the account takes no movements",
    "amount-invalid": "the amount is none of this currency",
    "body-invalid": "the body is not what was expected",
    "create-mismatch": "the created action is not what was asked for",
    "credit-already-final": "the credit is final",
    "customer-unknown": "no customer of this bank",
    "deadline-passed": "not done in time",
    "duplicate-mismatch": "asked before with another amount or symbol",
    "funds-insufficient": "the balance does not cover it",
    "limit-exceeded": "beyond a limit of the account",
    "main-not-signable": "no proven debit stands behind it",
    "no-matching-debit": "no such debit was made here",
    "out-of-service": "no new work at present",
    "out-of-time": "the network did not answer in time",
    "reject-signed": "its rejection is signed already",
    "snapshot-missing": "no signer in the snapshot",
    "state-not-creditable": "no credit in this state",
    "state-not-debitable": "no debit in this state",
    "symbol-unknown": "no currency of this bank",
    "tx-ref-invalid": "no reference of a transfer",
}
UNSERVED: Final = frozenset(("out-of-service", "out-of-time"))
"""Reasons that are told as 503."""


class Job(Struct, frozen=True):
    """One call to the network, whole.

    Fields:
        item: id of the item it is for. call: its name. path: below the network's base, encoded.
    """

    bank: str
    item: str
    call: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


class Outcome(Struct, frozen=True):
    """What became of a call.

    Fields:
        status: ok, refused (final) or unavailable (nothing is known). code: the network's, if any.
        value: the decoded body, None where there is none. raw: the body.
        at_ns: when it came, wall clock. retry_after_s: as the network wished.
        took_ns: from the call to its end.
    """

    status: str
    at_ns: int
    http: int = 0
    code: int | None = None
    value: Any = None
    raw: bytes = b""
    retry_after_s: float = 0.0
    took_ns: int = 0

    @property
    def action_status(self) -> str:
        """`labels.status` of the body, where it is one of a good answer."""
        return label(self.value, "status") if 0 < self.http < 400 else ""


class KeyRing(Protocol):
    """Signs for a bank and its customers; no private key is ever seen."""

    def key(self, bank: str, handle: str) -> SigningKey | None: ...


class Work:
    """What is known of an unfinished item in this process only.

    Attributes:
        live: a caller waits for its answer, or is being written to.
        probe: an action may have been created already: look before another is.
        check_main: nobody may have got our answer: look whether the main action still stands.
        look: the proof may have arrived: look before it is sent again.
        check_tag: likewise for tx_id. refused: the proof was; the look tells why.
        signed: its IOU was made in this process.
        tries: calls in a row without an answer.
        waiting: a timer says when to go on.
    """

    __slots__ = (
        "check_main", "check_tag", "live", "look", "probe", "refused", "signed", "tag_refused",
        "tries", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.live = self.probe = self.check_main = self.look = False
        self.check_tag = self.tag_refused = self.refused = self.waiting = self.signed = False
        self.tries = 0


class Passed(Struct, frozen=True):
    """A state that some work has come to, for who tells of it."""

    work: str
    bank: str
    kind: str
    purpose: str
    tx_ref: str
    action_id: str
    state: str
    reason: str


def passed_of(item: Item) -> Passed:
    """Where an item is now."""
    return Passed(
        item.id, item.bank, item.kind, item.purpose, item.tx_ref, item.action_id, item.state,
        item.reason,
    )  # fmt: skip


class BankSide:
    """One bank: its settings and what follows from them.

    Args:
        router: what the network is told with signers, so that it can show itself to the bank.
    """

    def __init__(
        self, settings: Settings, core: Core, router: Mapping[str, str] | None = None
    ) -> None:
        self.settings = settings
        self.core = core
        self.router = dict(router or {})
        self.zone: timezone = zone_of(settings.label_timezone)

    @property
    def name(self) -> str:
        return self.settings.id

    def code(self, reason: str) -> int:
        return bank_code(reason, self.settings.error_codes)

    def stamp(self, at_ns: int) -> str:
        return label_text(at_ns, self.zone)

    def refusal(self, reason: str) -> tuple[int, bytes]:
        """HTTP status and body that tell a reason."""
        text = f"{reason}: {_MESSAGES.get(reason, 'not possible')}"
        status = 503 if reason in UNSERVED else 400
        return status, encode(error_body(self.code(reason), text))

    def error(self, reason: str) -> dict[str, Any]:
        """The error member of a call."""
        text = f"{reason}: {_MESSAGES.get(reason, 'not possible')}"
        return {"code": self.code(reason), "message": text}


class Shared:
    """What all parts of the flow work on."""

    def __init__(
        self,
        banks: Iterable[BankSide],
        items: Items,
        directory: Directory,
        ring: KeyRing,
        draw: Callable[[int], bytes],
    ) -> None:
        self.banks = {bank.name: bank for bank in banks}
        self.items = items
        self.directory = directory
        self.ring = ring
        self.draw = draw
        self.work: dict[str, Work] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()
        """Counted facts: the first text names the metric, the others are its labels."""
        self.passed: list[Passed] = []
        """States come to since `drain`."""

    def work_of(self, item: Item) -> Work:
        found = self.work.get(item.id)
        if found is None:
            found = self.work[item.id] = Work()
        return found

    def count(self, *fact: str) -> None:
        self.counts[fact] += 1

    def drain(self) -> list[Passed]:
        """What has been noted, once."""
        if not self.passed:
            return []
        passed, self.passed = self.passed, []
        return passed


def label(value: Any, name: str) -> str:
    """A label of a decoded action, empty where it is missing or no text."""
    labels = value.get("labels") if isinstance(value, dict) else None
    found = labels.get(name) if isinstance(labels, dict) else None
    return found if isinstance(found, str) else ""


def has_labels(value: Any) -> bool:
    """True for a record, as against a bare error: its error, if any, is its own."""
    return isinstance(value, dict) and isinstance(value.get("labels"), dict)


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")


def entities(value: Any) -> list[Any]:
    """The records of an answer that lists some."""
    found = value.get("entities") if isinstance(value, dict) else value
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
