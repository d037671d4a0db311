"""An ISO 8583 host: an issuer (`ceibo`) or a bank, that decides by amount and document.

It speaks with the same codec and connection as the switch, in any dialect, and keeps its holds
honestly whatever goes wrong on the way. Codes are opened, to see that they can be, and all taken.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, Literal

from msgspec import Struct

from protocols.iso8583 import bank, ceibo
from protocols.iso8583.connection import Connection, Received, Refused, SignedOn
from protocols.iso8583.dialect import Dialect, Framing, Message
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.times import transmission_time
from protocols.iso8583.tokens import TokenOpener
from protocols.messages import (
    CardChoice,
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
    IssuerState,
    IssuerStatus,
)
from switch.simulators import magic
from switch.simulators.book import Book
from switch.simulators.outlet import Outlet
from switch.simulators.rules import UNDECIDED, Facts, Fault, Rules

Role = Literal["ceibo", "bank"]
CLOCK_TOLERANCE_NS: Final = 60 * 1_000_000_000
ECHO_S: Final = 30
_NS = 1_000_000_000
_STANS = 1_000_000


class Request(Struct, frozen=True):
    """What a message asks for, in the simulator's terms."""

    operation: str  # as in Facts, or "" for one that it has no idea of
    key: str = ""
    kind: str = ""
    amount: int = 0
    document: str = ""
    body: tuple[object, ...] = ()


class IsoHost:
    """One simulated host, all its connections together.

    Args:
        late_s: of a magic document's late answer. check_clock: refuse holds that are 60 s off.
        wall_ns: the host's own clock.

    Attributes:
        book: what it holds. counters: messages and what became of them.
        stop: called with seconds when a fault takes the whole host away.

    Raises:
        ValueError: the dialect has no room for network management as we speak it (0810).
    """

    def __init__(
        self,
        role: Role,
        dialect: Dialect,
        framing: Framing,
        keys: HostKeys,
        rules: Rules,
        *,
        seed: int = 1,
        late_s: float = magic.LATE_S,
        check_clock: bool = True,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        # Dialects of 1993 and 2003 have other MTIs and action codes than our links.
        dialect.encode(
            {"mti": "0810", "7": transmission_time(0), "11": "000001", "39": "00", "70": "001"}
        )
        self.role = role
        self.keys = keys
        self.rules = rules
        self.book = Book()
        self.counters: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.stop: Callable[[float], None] = lambda seconds: None
        self.late_s = late_s
        self._check_clock = check_clock
        self._dialect = dialect
        self._framing = framing
        self.wall_ns = wall_ns
        self._chance = random.Random(f"{seed} stan")
        self._stan = self._chance.randrange(_STANS)

    def converse(self, outlet: Outlet, initiator: bool) -> "_IsoConversation":
        """A new connection."""
        connection = Connection(
            self._dialect, self._framing, self.keys, initiator=initiator, wall_ns=self.wall_ns,
            next_stan=self._next_stan,
        )  # fmt: skip
        return _IsoConversation(self, connection, outlet, initiator)

    def snapshot(self) -> dict[str, Any]:
        """Counters, faults, and what is held."""
        return {
            "counters": dict(sorted(self.counters.items())),
            "codes": dict(sorted(self.codes.items())),
            "faults": dict(sorted(self.rules.struck.items())),
            **self.book.dump(),
        }

    # ---- one request

    def fault(self, message: Message, request: Request) -> Fault | None:
        """What goes wrong with this one: a rule's fault, or a magic document's."""
        facts = Facts(message.mti, request.operation, request.amount, request.document)
        tries = self.book.tried(request.key, request.operation)
        entry = self.book.get(request.key)
        document = request.document or (entry.document if entry is not None else "")
        found = self.rules.strike(facts) or magic.fault(
            document, request.operation, tries, late_s=self.late_s
        )
        self.rules.count(found)
        return found

    def understood(self, message: Message) -> tuple[Request, dict[str, object]]:
        """The request, or the elements of its refusal. Raises: ceibo.ElementFault."""
        if self.role == "bank" and message.mti != "0600":
            return self._bank_request(message), {}
        now_ns = self.wall_ns()
        opener = TokenOpener(self.keys.data_keys) if self.keys.data_keys else None
        asked = ceibo.issuer_request(message, now_ns=now_ns, opener=opener)
        off_ns = abs(ceibo.sent_ns(message, now_ns) - now_ns)
        if message.mti == "0100" and self._check_clock and off_ns > CLOCK_TOLERANCE_NS:
            return Request(""), {"39": "A5"}
        match asked:
            case IssuerHold():
                document = asked.document if isinstance(asked.document, str) else ""
                body = (asked.kind, asked.amount, asked.terminal, asked.branch, document,
                        asked.phone, asked.token, asked.card, asked.currency)  # fmt: skip
                key = asked.network + asked.operation
                return Request("hold", key, asked.kind, asked.amount, document, body), {}
            case IssuerCapture():
                key = asked.network + asked.operation
                return Request("capture", key, asked.kind, asked.amount), {}
            case IssuerRelease():
                operation = "annulment" if asked.reason == "annulment" else "release"
                key = asked.network + asked.operation
                return Request(operation, key, asked.kind, asked.amount), {}
            case IssuerHolder():
                document = asked.document if isinstance(asked.document, str) else ""
                return Request("holder", document=document), {}
            case IssuerStatus():
                return Request("status", asked.network + asked.operation), {}

    def decide(self, message: Message, request: Request, fault: Fault | None) -> dict[str, object]:
        """The elements of the answer; the book is what it is after this."""
        refused = fault.code if fault is not None and fault.name == "decline" else ""
        match request.operation:
            case "hold":
                return self._hold(message, request, refused)
            case "capture" | "release" | "annulment":
                code = refused or self._settle(request)
                return self._answer(message, IssuerAnswer(code, ""))
            case "status":
                entry = self.book.get(request.key)
                state = "" if entry is None else entry.state
                return ceibo.answer_elements(message, IssuerState("00", state))
            case "holder":
                return ceibo.answer_elements(message, _holder(request.document, refused))
            case _:
                return {"39": "12"}

    def _hold(self, message: Message, request: Request, refused: str) -> dict[str, object]:
        code = refused or magic.decision(request.document or None, request.kind, request.amount)
        authorization = _authorization(request.key)
        code = self.book.hold(
            request.key, kind=request.kind, amount=request.amount, document=request.document,
            body=request.body, code=code, authorization=authorization,
        )  # fmt: skip
        name = magic.HOLDER if request.kind == "deposit" and code == "00" else ""
        if self.role == "bank" and code == "00" and message.mti != "0100":
            self.book.capture(request.key, request.amount)  # a purchase is posted at once
        given = authorization if code == "00" else ""
        return self._answer(message, IssuerAnswer(code, "", given, name=name))

    def _settle(self, request: Request) -> str:
        entry = self.book.get(request.key)
        document = entry.document if entry is not None else ""
        match request.operation:
            case "capture":
                return self.book.capture(
                    request.key, request.amount, lost=magic.loses_hold(document),
                    suspense=request.kind == "deposit" and magic.never_posts(document),
                )  # fmt: skip
            case "annulment":
                return self.book.annul(request.key, request.kind, request.amount)
        if self.role == "bank" and entry is not None and entry.state == "CAPTURADA":
            entry.state = "ACTIVA"  # a purchase is undone by its reversal
        return self.book.release(request.key, request.kind, request.amount)

    def _answer(self, message: Message, answer: IssuerAnswer) -> dict[str, object]:
        if self.role == "bank":
            given = bank.BankAnswer(
                code=answer.code, key="", host_code=answer.code, authorization=answer.authorization,
                vci=message.get("48.25", ""),
            )  # fmt: skip
            return bank.answer_elements(given)
        return ceibo.answer_elements(message, answer)

    def _bank_request(self, message: Message) -> Request:
        asked = bank.bank_request(message)
        key = f"{message.get('32', '')}{asked.operation}"
        kind = "credit" if isinstance(asked, bank.Credit) else "purchase"
        if isinstance(asked, bank.Reversal):
            return Request("release", key, "credit" if asked.is_credit else "purchase",
                           asked.amount)  # fmt: skip
        body = (kind, asked.amount, asked.currency, asked.card.pan)
        operation = "capture" if message.mti in ("0220", "0221") else "hold"
        return Request(operation, key, kind, asked.amount, body=body)

    def _next_stan(self) -> str:
        self._stan = (self._stan + 1) % _STANS
        return f"{self._stan:06}"


class _IsoConversation:
    """One connection of the host."""

    def __init__(
        self, host: IsoHost, connection: Connection, outlet: Outlet, initiator: bool
    ) -> None:
        self._host = host
        self._connection = connection
        self._outlet = outlet
        self._initiator = initiator
        self._quiet_s = 0

    def begin(self) -> None:
        if self._initiator:
            self._connection.sign_on()
            self._outlet.write(self._connection.output())

    def receive(self, data: bytes) -> None:
        self._quiet_s = 0
        host, connection, outlet = self._host, self._connection, self._outlet
        for event in connection.receive(data):
            if isinstance(event, Refused):
                host.counters[f"refused {event.code}"] += 1
            elif isinstance(event, SignedOn):
                host.counters["sign_ons"] += 1
            elif isinstance(event, Received):
                # What the connection itself owes goes first, so that an output is one answer.
                outlet.write(connection.output())
                self._serve(event)
        outlet.write(connection.output())
        if connection.closing is not None:
            outlet.close()

    def tick(self) -> None:
        self._quiet_s += 1
        if self._initiator and self._connection.signed_on and self._quiet_s >= ECHO_S:
            self._quiet_s = 0
            self._connection.echo()
            self._outlet.write(self._connection.output())

    def _serve(self, event: Received) -> None:
        host, message = self._host, event.message
        host.counters[message.mti] += 1
        if not event.is_request:
            return
        try:
            request, elements = host.understood(message)
        except ceibo.ElementFault as bad:
            request, elements = Request(""), ceibo.fault_elements(bad)
        fault = host.fault(message, request) if request.operation else None
        if fault is not None and fault.name in UNDECIDED:
            if fault.name != "drop":
                host.stop(fault.seconds)
            return
        elements = elements or host.decide(message, request, fault)
        host.codes[str(elements["39"])] += 1

        def seal() -> bytes:
            self._connection.answer(event, elements)
            return self._connection.output()

        self._outlet.deliver(seal, fault)
        if fault is not None and fault.name == "stop_after":
            host.stop(fault.seconds)


def _holder(document: str, refused: str) -> HolderAnswer:
    if refused or magic.magic(document) is magic.Magic.UNKNOWN_PERSON:
        return HolderAnswer(refused or "05")
    cards = [CardChoice("card-000001", "DIMO ****0001")]
    if magic.magic(document) in (
        magic.Magic.TWO_CARDS_DIFFERENT_CODES, magic.Magic.TWO_CARDS_SAME_CODE
    ):  # fmt: skip
        cards.append(CardChoice("card-000002", "DIMO ****0002"))
    return HolderAnswer("00", name=magic.HOLDER, cards=cards)


def _authorization(key: str) -> str:
    return blake2b(key.encode(), digest_size=3).hexdigest().upper()
