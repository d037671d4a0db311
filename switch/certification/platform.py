"""Our platform, as a candidate network finds it: honest, but for what a case wants done to it.

A case writes a `Script` for its operation before it sends it; the messages about that operation are
answered by it, one fault for each try. Whatever goes wrong on the way, the `Entry` of an operation
says what came and what was decided.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from msgspec import UNSET, Struct, field

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
    Reverse,
    Status,
    StatusAnswer,
)
from protocols.session import NETWORK, Acceptor, BadRequest, PeerKey
from switch.certification.line import Record, shown
from switch.clock import iso_ms
from switch.simulators.outlet import Outlet
from switch.simulators.rules import UNDECIDED, Fault

HEARTBEAT_S: Final = 5
ENTRIES_MAX: Final = 100_000
AGAIN_S: Final = 0.2
"""A second answer comes so long after the first."""

CARDS: Final = (("cert-1", "DIMO *0001"), ("cert-2", "DIMO *0002"))
HOLDER: Final = "C*** T***"

SWALLOW: Final = Fault("swallow")
DROP: Final = Fault("drop")
STOP_BEFORE: Final = Fault("stop_before")
STOP_AFTER: Final = Fault("stop_after")
"""All connections end without an answer: before anything was decided, or after it."""


def delay(seconds: float) -> Fault:
    """The answer comes after so many seconds."""
    return Fault("delay", f"{seconds:g}")


def busy() -> Fault:
    """Answered 96: nothing is decided, to be asked again."""
    return Fault("decline", "96")


class Script(Struct, kw_only=True):
    """What our platform does to one operation.

    Fields:
        code, key: of the answer to the hold; `key` empty: the general one of the code.
        hold, confirm, reverse, annul: what goes wrong with the first, second, … of them; after
            those all is well.
        annul_code: of a refused annulment.
        again: code of a second answer to the hold, behind the first: a late one.
        business_date: ISO; empty: today's.
    """

    code: str = "00"
    key: str = ""
    hold: tuple[Fault | None, ...] = ()
    confirm: tuple[Fault | None, ...] = ()
    reverse: tuple[Fault | None, ...] = ()
    annul: tuple[Fault | None, ...] = ()
    annul_code: str = "00"
    again: str = ""
    fee: int = 0
    commission: int = 0
    business_date: str = ""


class Entry(Struct):
    """One operation at our platform.

    Fields:
        state: as `status_answer` tells it; "" while no hold was decided.
        came: trio time of each message, by kind (`hold`, `confirm`, `reverse`, `annul`).
        told: states that the network gave when it was asked.
    """

    reference: str
    script: Script
    record: Record
    state: str = ""
    operation: str = ""
    authorization: str = ""
    hold: Hold | None = None
    amount: int = 0
    came: dict[str, list[float]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return len(self.came.get(kind, ()))


_WHAT: Final[dict[type[Message], str]] = {
    Hold: "hold", Confirm: "confirm", Reverse: "reverse", AnnulRegistered: "annul"
}  # fmt: skip
_POSTED: Final = "CAPTURADA"


def nowhere(way: str, message: dict[str, Any]) -> None:
    """Records nothing."""


class Platform:
    """All sessions of the candidate with us.

    Attributes:
        today: business date of new operations, ISO.
        strays: holds of nobody's case.
    """

    def __init__(
        self, keys: Mapping[str, PeerKey], *, today: str, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._keys = keys
        self._wall_ns = wall_ns
        self._scripts: dict[tuple[str, int], tuple[Script, Record]] = {}
        self._entries: dict[str, Entry] = {}
        self._sessions: list[_Conversation] = []
        self._news = trio.Event()
        self._number = 0
        self.holder_record: Record = nowhere
        self.today = today
        self.strays = 0
        self.sign_ons = 0

    def converse(self, outlet: Outlet, initiator: bool) -> "_Conversation":
        assert not initiator, "networks connect to their platform"
        conversation = _Conversation(self, outlet)
        self._sessions = [s for s in self._sessions if not s.over] + [conversation]
        return conversation

    @property
    def up(self) -> bool:
        """The candidate has signed on."""
        return any(session.ready for session in self._sessions)

    def authenticate(self, peer: str, version: int) -> PeerKey | None:
        return self._keys.get(peer)

    def now_iso(self) -> str:
        return iso_ms(self._wall_ns())

    # ---- for cases

    def write(self, terminal: str, trace: int, script: Script, record: Record) -> None:
        """What to do to the operation that this terminal sends next under this trace."""
        self._scripts[terminal, trace] = (script, record)

    def entry(self, terminal: str, trace: int) -> Entry | None:
        """What came of it, if anything did."""
        return next(
            (e for e in reversed(self._entries.values())
             if e.reference[4:12] == terminal and int(e.reference[20:]) == trace), None
        )  # fmt: skip

    async def until(self, true: Callable[[], bool], wait_s: float) -> bool:
        """Wait until something is so, at most so long; whether it is."""
        with trio.move_on_after(wait_s):
            while not true():
                await self._news.wait()
        return true()

    def ask(self, reference: str) -> bool:
        """Ask the network for the state of an operation; False: it is not connected."""
        return any(session.ask(reference) for session in reversed(self._sessions))

    def cut(self) -> None:
        """End all sessions."""
        for session in self._sessions:
            session.cut()
        self.tell()

    def tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # ---- one request

    def entry_of(self, message: Any) -> Entry | None:
        """The entry of a request, made with the first; None: it is of nobody's case."""
        reference: str = message.reference
        known = self._entries.get(reference)
        if known is None and len(self._entries) < ENTRIES_MAX:
            terminal, trace = reference[4:12], int(reference[20:])
            found = self._scripts.get((terminal, trace))
            if found is None:
                self.strays += 1
                return None
            self._number += 1
            known = self._entries[reference] = Entry(reference, *found)
            known.operation = f"{self.today[2:4]}{self._number:010}"
            known.authorization = f"C{self._number % 100_000:05}"
        return known

    def decide(self, entry: Entry, m: Any) -> tuple[NetworkAnswer, Fault | None]:
        """The answer to a request, and what goes wrong with it."""
        what = _WHAT[type(m)]
        times = entry.came.setdefault(what, [])
        times.append(trio.current_time())
        faults: tuple[Fault | None, ...] = getattr(entry.script, what)
        fault = faults[len(times) - 1] if len(times) <= len(faults) else None
        if fault is not None and fault.name in UNDECIDED:
            return _answer(m, "96"), fault
        if fault is not None and fault.name == "decline":
            return _answer(m, fault.code), None
        match m:
            case Hold():
                answer = self._hold(entry, m)
            case Confirm():
                answer = _answer(m, _confirmed(entry))
            case Reverse():
                entry.reasons.append(m.reason)
                answer = _answer(m, _reversed(entry, m.amount))
            case _:
                answer = _answer(m, _annulled(entry, m))
        return answer, fault

    def _hold(self, entry: Entry, m: Hold) -> NetworkAnswer:
        script = entry.script
        if entry.state == "TUMBA":
            return _answer(m, "21")
        repeated = entry.hold is not None
        if not repeated:
            entry.hold, entry.amount = m, m.amount
            entry.state = "RESPONDIDA" if script.code == "00" else "RECHAZADA"
        return self.answer(entry, m, script.code, script.key, repeated)

    def answer(
        self, entry: Entry, m: Hold, code: str, key: str = "", repeated: bool = False
    ) -> NetworkAnswer:
        date = entry.script.business_date or self.today
        key = key or KEY_OF_CODE.get(code, "NO_APROBADA")
        if code != "00":
            return NetworkAnswer(
                m.id, code, m.reference, key, entry.operation, business_date=date,
                duplicate=repeated,
            )  # fmt: skip
        name = HOLDER if m.kind == "deposit" else UNSET
        return NetworkAnswer(
            m.id, code, m.reference, key, entry.operation, entry.authorization, date,
            entry.script.fee, entry.script.commission, repeated, name,
        )  # fmt: skip


def _answer(m: Any, code: str) -> NetworkAnswer:
    return NetworkAnswer(m.id, code, m.reference, KEY_OF_CODE.get(code, "NO_APROBADA"))


def _confirmed(entry: Entry) -> str:
    if entry.state in ("RESPONDIDA", _POSTED):
        entry.state = _POSTED
        return "00"
    return "A3"


def _reversed(entry: Entry, amount: int) -> str:
    if entry.state == "":
        entry.state, entry.amount = "TUMBA", amount
        return "25"
    if entry.state == "TUMBA":
        return "25"
    if entry.state in ("REVERSADA", "RECHAZADA"):
        return "21"
    if entry.state == _POSTED:
        return "A3"
    if amount != entry.amount:
        return "94"
    entry.state = "REVERSADA"
    return "00"


def _annulled(entry: Entry, m: AnnulRegistered) -> str:
    if entry.script.annul_code != "00":
        return entry.script.annul_code
    if entry.state == "":
        return "25"
    if m.amount != entry.amount:
        return "A2"
    entry.state = "REVERSADA"
    return "00"


class _Conversation:
    """One session."""

    def __init__(self, platform: Platform, outlet: Outlet) -> None:
        self._platform = platform
        self._outlet = outlet
        self._session = Acceptor(
            vocabulary=NETWORK, authenticate=platform.authenticate, nonce=secrets.token_bytes(16),
            now_iso=platform.now_iso, heartbeat_s=HEARTBEAT_S,
        )  # fmt: skip
        self._quiet_s = 0.0
        self._asked: dict[int, str] = {}

    @property
    def over(self) -> bool:
        return self._outlet.closing or self._session.closing is not None

    @property
    def ready(self) -> bool:
        return self._session.signed_on and not self.over

    def begin(self) -> None:
        pass

    def cut(self) -> None:
        self._outlet.close()

    def ask(self, reference: str) -> bool:
        entry = self._platform._entries.get(reference)
        if not self.ready or entry is None:
            return False
        message = Status(self._session.new_id(), reference)
        self._asked[message.id] = reference
        entry.record("platform → candidate", shown(message))
        self._outlet.write(self._session.encode([message]))
        return True

    def receive(self, data: bytes) -> None:
        self._quiet_s = 0.0
        was_signed_on = self._session.signed_on
        messages = self._session.receive(data)
        self._platform.sign_ons += self._session.signed_on and not was_signed_on
        self._outlet.write(self._session.output())
        for message in messages:
            if not isinstance(message, BadRequest):
                self._serve(message)
        if self._session.closing is not None:
            self._outlet.close()
        self._platform.tell()

    def tick(self) -> None:
        self._quiet_s += 1
        self._outlet.write(self._session.silence(self._quiet_s))
        if self._session.closing is not None:
            self._outlet.close()

    def _serve(self, m: Any) -> None:
        platform = self._platform
        if isinstance(m, NetworkHolder):
            self._holder(m)
            return
        if isinstance(m, StatusAnswer):
            entry = platform._entries.get(self._asked.pop(m.id, ""))
            if entry is not None:
                entry.record("candidate → platform", shown(m))
                entry.told.append(m.state)
            return
        if type(m) not in (*_WHAT, Status):
            return
        if m.reference[:4] != self._session.peer:
            self._outlet.write(self._session.encode([_answer(m, "63")]))
            return
        entry = platform.entry_of(m)
        if entry is None:
            self._outlet.write(self._session.encode([_stray(m)]))
            return
        entry.record("candidate → platform", shown(m))
        if isinstance(m, Status):
            code = entry.script.code if entry.hold is not None else UNSET
            self._send(entry, StatusAnswer(m.id, entry.state or "DESCONOCIDA", m.reference, code))
            return
        answer, fault = platform.decide(entry, m)
        if fault is not None and fault.name in UNDECIDED:
            entry.record("platform", {"fault": f"{fault.name}: lost before anything was decided"})
            if fault.name == "stop_before":
                platform.cut()
            return
        self._send(entry, answer, fault)
        if fault is not None and fault.name == "stop_after":
            platform.cut()
        if isinstance(m, Hold) and entry.script.again:
            behind = delay(AGAIN_S + (0 if fault is None else fault.seconds))
            self._send(entry, platform.answer(entry, m, entry.script.again), behind)

    def _send(self, entry: Entry, answer: Message, fault: Fault | None = None) -> None:
        told = shown(answer)
        if fault is not None:
            told = {"fault": f"{fault.name} {fault.argument}".strip()} | told
        entry.record("platform → candidate", told)
        self._outlet.deliver(lambda: self._session.encode([answer]), fault)

    def _holder(self, m: NetworkHolder) -> None:
        record = self._platform.holder_record
        record("candidate → platform", shown(m))
        choices = [CardChoice(*card) for card in CARDS]
        answer = HolderAnswer("00", id=m.id, name=HOLDER, cards=choices)
        record("platform → candidate", shown(answer))
        self._outlet.write(self._session.encode([answer]))


def _stray(m: Any) -> Message:
    """What is asked about operations of no case: nothing is known of them, nothing new begins."""
    if isinstance(m, Status):
        return StatusAnswer(m.id, "DESCONOCIDA", m.reference)
    if isinstance(m, Hold):
        return _answer(m, "58")
    return _answer(m, "00" if isinstance(m, Confirm) else "25")
