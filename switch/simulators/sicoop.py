"""A platform (`sicoop`) for networks: the framed session as acceptor, deciding as a simulated host.

Answers are sealed when they leave, so that faults of an answer (late, twice, never, out of order)
leave the session in step; garbled ones do not, as on a real line.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from msgspec import UNSET

from protocols.codes import KEY_OF_CODE
from protocols.messages import (
    AnnulRegistered,
    CardChoice,
    Confirm,
    Hold,
    HolderAnswer,
    Message,
    NetworkAnswer,
    NetworkHolder,
    NetworkRequest,
    Reverse,
    Status,
    StatusAnswer,
)
from protocols.session import NETWORK, Acceptor, BadRequest, PeerKey
from switch.clock import iso_ms
from switch.simulators import magic
from switch.simulators.book import Book
from switch.simulators.outlet import Outlet
from switch.simulators.rules import UNDECIDED, Facts, Fault, Rules

CLOCK_TOLERANCE_S: Final = 60
HEARTBEAT_S: Final = 30

_OPERATIONS: Final[dict[type[Message], str]] = {
    Hold: "hold",
    Confirm: "capture",
    Reverse: "release",
    AnnulRegistered: "annulment",
    Status: "status",
    NetworkHolder: "holder",
}
_STATES: Final = {  # of the book, as `status_answer` tells them
    "ACTIVA": "RESPONDIDA",
    "CAPTURADA": "CAPTURADA",
    "LIBERADA": "REVERSADA",
    "TUMBA": "TUMBA",
    "RECHAZADA": "RECHAZADA",
}


class SicoopSimulator:
    """One simulated platform, all its sessions together.

    Args:
        keys: K of each network, by number.
        heartbeat_s: told to the networks at sign-on.
        wall_ns: its own clock.

    Attributes:
        book, counters, stop: as of `IsoHost`. answers: `status_answer`s of networks, by state.
    """

    def __init__(
        self, keys: Mapping[str, PeerKey], rules: Rules, *, heartbeat_s: int = HEARTBEAT_S,
        late_s: float = magic.LATE_S, wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        self._keys = keys
        self.rules = rules
        self.heartbeat_s = heartbeat_s
        self.late_s = late_s
        self.wall_ns = wall_ns
        self.book = Book()
        self.counters: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.stop: Callable[[float], None] = lambda seconds: None
        self.states: dict[str, str] = {}
        self._sessions: list[_NetworkConversation] = []
        self._operations: dict[str, str] = {}

    def converse(self, outlet: Outlet, initiator: bool) -> "_NetworkConversation":
        """A new connection."""
        assert not initiator, "networks connect to their platform"
        conversation = _NetworkConversation(self, outlet)
        self._sessions = [s for s in self._sessions if not s.over] + [conversation]
        return conversation

    def authenticate(self, peer: str, version: int) -> PeerKey | None:
        return self._keys.get(peer) if version == 1 else None

    def ask(self, reference: str) -> bool:
        """Ask the network of a reference for its state; the answer comes into `states`."""
        return any(session.ask(reference) for session in self._sessions)

    def snapshot(self) -> dict[str, Any]:
        """Counters, faults, and what is held."""
        return {
            "counters": dict(sorted(self.counters.items())),
            "codes": dict(sorted(self.codes.items())),
            "faults": dict(sorted(self.rules.struck.items())),
            **self.book.dump(),
        }

    # ---- one request

    def fault(self, m: NetworkRequest) -> Fault | None:
        """What goes wrong with this one: a rule's fault, or a magic document's."""
        operation = _OPERATIONS[type(m)]
        document = getattr(m, "document", UNSET)
        document = document if isinstance(document, str) else ""
        amount = getattr(m, "amount", 0)
        key = getattr(m, "reference", "")
        tries = self.book.tried(key, operation)
        entry = self.book.get(key)
        known = document or (entry.document if entry is not None else "")
        found = self.rules.strike(Facts("", operation, amount, document)) or magic.fault(
            known, operation, tries, late_s=self.late_s
        )
        self.rules.count(found)
        return found

    def decide(self, m: NetworkRequest, peer: str, fault: Fault | None) -> Message:
        """The answer; the book is what it is after this."""
        refused = fault.code if fault is not None and fault.name == "decline" else ""
        if isinstance(m, NetworkHolder):
            unknown = magic.magic(_text(m.document)) is magic.Magic.UNKNOWN_PERSON
            if refused or unknown:
                return HolderAnswer(refused or "05", id=m.id)
            return HolderAnswer(
                "00", id=m.id, name=magic.HOLDER, cards=[CardChoice("card-1", "DIMO")]
            )
        if m.reference[:4] != peer:
            return NetworkAnswer(m.id, "63", m.reference, "SEGURIDAD")
        match m:
            case Hold():
                return self._hold(m, refused)
            case Confirm():
                entry = self.book.get(m.reference)
                amount = 0 if entry is None else entry.amount
                code = refused or _confirmed(self.book.capture(m.reference, amount))
            case Reverse():
                entry = self.book.get(m.reference)
                kind = "cash_out" if entry is None else entry.kind
                code = refused or self.book.release(m.reference, kind, m.amount)
            case AnnulRegistered():
                code = refused or self.book.annul(m.reference, "cash_out", m.amount)
            case Status():
                entry = self.book.get(m.reference)
                state = "DESCONOCIDA" if entry is None else _STATES[entry.state]
                given = UNSET if entry is None or not entry.code else entry.code
                return StatusAnswer(m.id, state, m.reference, given)
        return NetworkAnswer(m.id, code, m.reference, KEY_OF_CODE.get(code, "NO_APROBADA"))

    def _hold(self, m: Hold, refused: str) -> NetworkAnswer:
        now = iso_ms(self.wall_ns())
        if _seconds_off(m.sent_at, self.wall_ns()) > CLOCK_TOLERANCE_S:
            return NetworkAnswer(m.id, "A5", m.reference, "HORA_NO_VALIDA", time=now)
        document = m.document if isinstance(m.document, str) else ""
        body = (m.kind, m.amount, m.branch, m.cashier, document, m.phone, m.token, m.card)
        number = self._operations.setdefault(
            m.reference, f"{now[2:4]}{len(self._operations) + 1:010}"
        )
        known = self.book.get(m.reference) is not None
        code = refused or magic.decision(document or None, m.kind, m.amount)
        code = self.book.hold(
            m.reference, kind=m.kind, amount=m.amount, document=document, body=body, code=code,
            authorization=number[-6:],
        )  # fmt: skip
        key = KEY_OF_CODE.get(code, "NO_APROBADA")
        if code != "00":
            return NetworkAnswer(
                m.id, code, m.reference, key, number, business_date=now[:10], duplicate=known
            )
        return NetworkAnswer(
            m.id, code, m.reference, key, number, number[-6:], now[:10], 0, 0, known,
            magic.HOLDER if m.kind == "deposit" else UNSET,
        )  # fmt: skip


class _NetworkConversation:
    """One session of a network."""

    def __init__(self, sicoop: SicoopSimulator, outlet: Outlet) -> None:
        self._sicoop = sicoop
        self._outlet = outlet
        self._session = Acceptor(
            vocabulary=NETWORK, authenticate=sicoop.authenticate, nonce=secrets.token_bytes(16),
            now_iso=lambda: iso_ms(sicoop.wall_ns()), heartbeat_s=sicoop.heartbeat_s,
        )  # fmt: skip
        self._quiet_s = 0.0
        self._asked: dict[int, str] = {}

    @property
    def over(self) -> bool:
        return self._outlet.closing or self._session.closing is not None

    def begin(self) -> None:
        pass

    def ask(self, reference: str) -> bool:
        session = self._session
        if self.over or not session.signed_on or session.peer != reference[:4]:
            return False
        id_ = session.new_id()
        self._asked[id_] = reference
        self._outlet.write(session.encode([Status(id_, reference)]))
        return True

    def receive(self, data: bytes) -> None:
        self._quiet_s = 0.0
        was_signed_on = self._session.signed_on
        messages = self._session.receive(data)
        if self._session.signed_on and not was_signed_on:
            self._sicoop.counters["sign_ons"] += 1
        self._outlet.write(self._session.output())
        for message in messages:
            if type(message) in _OPERATIONS:
                self._serve(message)
            elif isinstance(message, StatusAnswer):
                reference = self._asked.pop(message.id, "")
                if reference:
                    self._sicoop.states[reference] = message.state
            elif isinstance(message, BadRequest):
                self._sicoop.counters[f"refused {message.code}"] += 1
        if self._session.closing is not None:
            self._outlet.close()

    def tick(self) -> None:
        self._quiet_s += 1
        self._outlet.write(self._session.silence(self._quiet_s))
        if self._session.closing is not None:
            self._outlet.close()

    def _serve(self, message: Any) -> None:
        sicoop = self._sicoop
        sicoop.counters[_OPERATIONS[type(message)]] += 1
        fault = sicoop.fault(message)
        if fault is not None and fault.name in UNDECIDED:
            if fault.name != "drop":
                sicoop.stop(fault.seconds)
            return
        answer = sicoop.decide(message, self._session.peer, fault)
        sicoop.codes[str(getattr(answer, "code", ""))] += 1
        self._outlet.deliver(lambda: self._session.encode([answer]), fault)
        if fault is not None and fault.name == "stop_after":
            sicoop.stop(fault.seconds)


def _confirmed(code: str) -> str:
    """A confirmation of what was reversed is a contradiction, not a success."""
    return "A3" if code in ("21", "25") else code


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _seconds_off(sent_at: str, now_ns: int) -> float:
    try:
        return abs(datetime.fromisoformat(sent_at).timestamp() - now_ns / 1e9)
    except ValueError:
        return float("inf")
