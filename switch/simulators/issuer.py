"""The simulator profile of this node's own ceibo (`simulator = true`): magic decides.

Three pieces, each where the usual one stands. `MagicCeibo` decides: amounts choose the code,
documents what becomes of captures, releases and credits. `MagicWay` is the way to it from the
sicoop of this process, `MagicDesk` that of a host: there answers are late, lost, told twice or
unreadable.
What a document approves needs a card of that person like any other (cashier domain, section 10).
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import msgspec
from msgspec import UNSET, UnsetType

from core_ext import Batch
from protocols.codes import KEY_OF_CODE
from protocols.iso8583.connection import Received
from protocols.iso8583.reply import HostReply
from protocols.messages import (
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
)
from switch.flows.ceibo import Ceibo, hold_key
from switch.flows.issuer_desk import IssuerDesk
from switch.flows.issuers import UNAVAILABLE
from switch.flows.operations import CeiboHold
from switch.flows.sicoop import Sicoop
from switch.flows.states import ACTIVA
from switch.flows.step import Origin, Step
from switch.simulators import magic
from switch.simulators.rules import UNDECIDED, Fault

ROLE: Final = "simulator"
"""Of the timers of this profile."""

LATER_MAX: Final = 4096
NEXT_S: Final = 1.0
"""An answer that waits for the next one goes without it after this."""

_AT_ONCE: Final = 0.0
_PAST_NS: Final = 1  # of an answer that nobody waits for any more: the line drops it

Act = Callable[[Step], None]
Asked = IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder


class Later:
    """What happens in a later step. Bounded: beyond `LATER_MAX` it does not happen at all, and
    a restart forgets it, as a simulated issuer may."""

    def __init__(self) -> None:
        self._due: dict[str, Act] = {}
        self._number = 0

    def arm(self, step: Step, after_s: float, act: Act) -> None:
        if len(self._due) < LATER_MAX:
            self._number += 1
            key = str(self._number)
            self._due[key] = act
            step.arm(ROLE, "later", key, after_s)

    def on_deadline(self, step: Step, kind: str, key: str) -> None:
        act = self._due.pop(key, None)
        if act is not None:
            act(step)


class MagicCeibo(Ceibo):
    """ceibo with the codes and the failures that amounts and documents choose."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._tries: Counter[tuple[str, bytes]] = Counter()

    def _decide(self, step: Step, m: IssuerHold, hold: CeiboHold) -> tuple[str, str]:
        code = magic.decision(_text(m.document), m.kind, m.amount)
        if code == "00":
            return super()._decide(step, m, hold)
        hold.internal = "magic"
        if magic.magic(_text(m.document)) is magic.Magic.TWO_CARDS_SAME_CODE:
            return code, "CODIGO_AMBIGUO"
        return code, KEY_OF_CODE[code]

    def _capture(self, step: Step, m: IssuerCapture, link: str) -> IssuerAnswer:
        hold = self.hold_of(m, link)
        if hold is not None and self._fails("capture", hold):
            return IssuerAnswer("96", "ERROR")
        if hold is not None and hold.state == ACTIVA and magic.loses_hold(self._document(hold)):
            batch = Batch()
            batch.release(hold_key(hold))
            self._ledger.apply(batch, step.now_ns)
        return super()._capture(step, m, link)

    def _release(self, step: Step, m: IssuerRelease, link: str) -> IssuerAnswer:
        hold = self.hold_of(m, link)
        if hold is not None and m.reason != "annulment" and self._fails("release", hold):
            return IssuerAnswer("96", "ERROR")
        return super()._release(step, m, link)

    def _post(self, step: Step, hold: CeiboHold, hold_id: bytes) -> None:
        credit = hold.kind == "deposit" and hold.state == ACTIVA
        if credit and magic.never_posts(self._document(hold)):
            self._suspend(step, hold, hold_id)
        else:
            super()._post(step, hold, hold_id)

    def _holder(self, m: IssuerHolder) -> HolderAnswer:
        if magic.magic(_text(m.document)) is magic.Magic.UNKNOWN_PERSON:
            return HolderAnswer("05")
        return super()._holder(m)

    def _fails(self, what: str, hold: CeiboHold) -> bool:
        """True for the first tries of what a document makes fail."""
        if hold.state != ACTIVA:
            return False
        document, key = self._document(hold), (what, hold_key(hold))
        if len(self._tries) >= LATER_MAX:
            self._tries.clear()
        if magic.fault(document, what, self._tries[key]) is None:
            return False
        self._tries[key] += 1
        return True

    def _document(self, hold: CeiboHold) -> str | None:
        person = self._registry.person(hold.person)
        return None if person is None else person.document


class MagicWay:
    """The way from the sicoop of this process to its ceibo, with what goes wrong on it."""

    def __init__(self, ceibo: MagicCeibo, later: Later) -> None:
        self._ceibo = ceibo
        self._later = later
        self._sicoop: Sicoop
        self._down_until_ns = 0
        self._kept: list[Act] = []

    def attach(self, sicoop: Sicoop) -> None:
        self._sicoop = sicoop

    def ask(self, step: Step, message: Asked) -> IssuerAnswer | HolderAnswer | None:
        """Answer at once, or later through `Sicoop.on_issuer_answer` (None)."""
        if step.mono_ns < self._down_until_ns:
            return _unavailable(message)
        if not isinstance(message, IssuerHold):
            return self._ceibo.ask(step, message)
        kept, self._kept = self._kept, []
        for act in kept:
            self._later.arm(step, _AT_ONCE, act)
        fault = magic.fault(_text(message.document), "hold")
        if fault is None:
            return self._ceibo.ask(step, message)
        if fault.name == "refuse":
            self._go_down(step, fault)
            return UNAVAILABLE
        answer = None
        if fault.name not in UNDECIDED:
            answer = cast(IssuerAnswer, self._ceibo.ask(step, message))
        self._mistreat(step, message, answer, fault)
        return None

    def _mistreat(
        self, step: Step, m: IssuerHold, answer: IssuerAnswer | None, fault: Fault
    ) -> None:
        reference = self._sicoop.reference_of(m.operation)
        assert reference is not None, "sicoop asks for what it has numbered"

        def answered(step: Step) -> None:
            assert answer is not None
            self._sicoop.on_issuer_answer(step, reference, answer)

        def lost(step: Step) -> None:
            step.alarm("orphan_hold", reference, fault.name)
            self._sicoop.on_deadline(step, "hold", reference)

        match fault.name:
            case "delay" | "late":
                self._later.arm(step, fault.seconds, answered)
            case "duplicate":
                self._later.arm(step, _AT_ONCE, answered)
                self._later.arm(step, _AT_ONCE, answered)
            case "out_of_order":
                once = _once(answered)
                self._kept.append(once)
                self._later.arm(step, NEXT_S, once)
            case "stop_before" | "stop_after":
                self._go_down(step, fault)
                self._later.arm(step, _AT_ONCE, lost)
            case "garbage":
                self._later.arm(step, _AT_ONCE, lost)
            case _:
                assert fault.name in ("drop", "swallow"), "sicoop's own deadline ends these"

    def _go_down(self, step: Step, fault: Fault) -> None:
        self._down_until_ns = step.mono_ns + int(fault.seconds * 1e9)


class Away(Protocol):
    """A connection, as one may mistreat it."""

    def dropped(self, count: int = 1) -> None: ...

    def cut(self, reason: str) -> None: ...


class MagicDesk(IssuerDesk):
    """ceibo as a host meets it, with what goes wrong on the way back."""

    def __init__(self, later: Later, **values: Any) -> None:
        super().__init__(**values)
        self._later = later
        self._down_until_ns = 0
        self._kept: list[Act] = []

    def on_request(self, step: Step, received: Received, origin: Origin) -> None:
        line = cast(Away, origin)
        if step.mono_ns < self._down_until_ns:
            self._node.taken(request=True)
            line.cut("simulated: away")
            return
        message = received.message
        fault = None
        if message.mti == "0100":
            fault = magic.fault(str(message.get("48.01", "")).removeprefix("CI"), "hold")
        if fault is not None and fault.name in UNDECIDED:
            self._node.taken(request=True)
            if fault.name == "drop":
                step.reply(origin, HostReply(received, {}, "", _PAST_NS))
            else:
                self._go_down(step, line, fault)
            return
        reply = self.decided(step, received)
        if reply is None:
            return
        if fault is None:
            step.reply(origin, reply)
            kept, self._kept = self._kept, []
            for act in kept:
                act(step)
            return
        self._mistreat(step, origin, reply, fault)

    def _mistreat(self, step: Step, origin: Origin, reply: HostReply, fault: Fault) -> None:
        line = cast(Away, origin)

        def answered(step: Step) -> None:
            step.reply(origin, msgspec.structs.replace(reply, until_ns=0))

        match fault.name:
            case "delay" | "late":
                self._later.arm(step, fault.seconds, answered)
            case "duplicate":
                answered(step)
                line.dropped(-1)  # one answer more is to come than was asked for
                answered(step)
            case "out_of_order":
                once = _once(answered)
                self._kept.append(once)
                self._later.arm(step, NEXT_S, once)
            case "swallow":
                step.reply(origin, msgspec.structs.replace(reply, until_ns=_PAST_NS))
            case "garbage":  # an answer that answers nothing
                step.reply(origin, msgspec.structs.replace(reply, elements={}, until_ns=0))
            case _:
                self._go_down(step, line, fault)

    def _go_down(self, step: Step, line: Away, fault: Fault) -> None:
        self._down_until_ns = step.mono_ns + int(fault.seconds * 1e9)
        line.cut(f"simulated: {fault.name}")


def _once(act: Act) -> Act:
    """The act, the first time only."""
    left = [act]

    def once(step: Step) -> None:
        if left:
            left.pop()(step)

    return once


def _text(document: str | UnsetType) -> str | None:
    return None if document is UNSET else document


def _unavailable(message: Asked) -> IssuerAnswer | HolderAnswer | None:
    if isinstance(message, IssuerHold):
        return UNAVAILABLE
    return HolderAnswer("91") if isinstance(message, IssuerHolder) else None
