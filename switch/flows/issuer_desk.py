"""ceibo as a host meets it: ISO 8583 requests of one link, answered.

Fields are checked element by element (30 names none of them on the wire, the log does), a hold
whose transmission time is off is refused (A5), repeats are compared in what the dialect says and
answered alike. A hold that nobody decides is asked about (0600) after a time, and the other side's
word decides; without one it stays.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from protocols.iso8583.ceibo import (
    Balances,
    ElementFault,
    answer_elements,
    asks_balances,
    issuer_answer,
    issuer_request,
    sent_ns,
    state_elements,
    status_elements,
)
from protocols.iso8583.connection import Event, Received, SignedOn
from protocols.iso8583.dialect import Message
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.reply import HostReply, reply, with_key
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
from switch.config import LinkSettings
from switch.flows.ceibo import NEAR, SICOOP, Ceibo
from switch.flows.fingerprint import Fingerprint
from switch.flows.operations import CeiboHold
from switch.flows.remote import Outgoing, Turns, Wire
from switch.flows.states import ACTIVA, DESCONOCIDA
from switch.flows.step import Origin, Step

STATE = "state"
LABEL_CHARS = 60  # of a card: with its reference it makes one tag
ANSWERED = "02"  # third digit of an MTI to which an answer is due
_TOLD = frozenset((ACTIVA, "CAPTURADA", "LIBERADA", "TUMBA"))
_COMPARED = ("3", "4", "41", "42", "49")
_TAGS = ("01", "02", "04", "05", "06", "07", "08", "09")
_KNOWN = frozenset((*_TAGS, "03"))  # sealed anew each time: the code inside 03 is compared
NS = 1_000_000_000
ADOPTED_MAX = 1000  # holds taken up in one step

Undecided = Callable[[int, int, int], list[tuple[bytes, int]]]
"""(after, before, limit): holds granted between two instants that nobody has decided yet."""


def _short(answer: HolderAnswer) -> HolderAnswer:
    """Labels as long as the dialect has room for."""
    if not isinstance(answer.cards, list):
        return answer
    cards = [CardChoice(choice.card, choice.label[:LABEL_CHARS]) for choice in answer.cards]
    return msgspec.structs.replace(answer, cards=cards)


class IssuerDesk:
    """Handler of one host's link, and a destination of the gate for what ceibo asks it.

    Args:
        link: name of the host; holds are kept apart by it.

    Attributes:
        work_s: a hold is answered within this, or not at all; 0: whenever it is durable.
    """

    def __init__(
        self,
        *,
        link: str,
        node: Turns,
        ceibo: Ceibo,
        fingerprint: Fingerprint,
        keys: HostKeys,
        settings: LinkSettings,
        events: Callable[[Step, str, Event], None],
    ) -> None:
        self.link = link
        self._events = events
        self._node = node
        self._ceibo = ceibo
        self._fingerprint = fingerprint
        self._keys = keys
        self._settings = settings
        self._opener = TokenOpener(keys.data_keys)
        self._opens = keys.data_keys
        self._newest_key = 0
        self._adopted_ns = 0
        self.stopping = False
        self.work_s = 0
        self._wire: Wire | None = None

    def reconfigure(self, settings: LinkSettings) -> None:
        """Go on with other times; holds that are watched keep theirs."""
        self._settings = settings

    def attach(self, wire: Wire) -> None:
        self._wire = wire

    # ---- requests of the host

    def on_request(self, step: Step, received: Received, origin: Origin) -> None:
        """One request with a good MAC, of a host that has signed on."""
        answer = self.decided(step, received)
        if answer is not None:
            step.reply(origin, answer)

    def decided(self, step: Step, received: Received) -> HostReply | None:
        """The answer to a request; None where none is due."""
        self._node.taken(request=True)
        message = received.message
        if received.key_version > self._newest_key:  # it has our newest key, so we may use it
            self._newest_key = received.key_version
            self._keys.promote("mac", received.key_version)
        if message.mti[2] not in ANSWERED:
            return None
        try:
            elements = self._answer(step, message)
        except ElementFault as fault:
            if fault.code == "63":
                operation = message.get("37", "")
                step.audit(f"host:{self.link}", "token", operation, "63", "wrong key", True)
            elements = {"39": fault.code}
        # A hold that took too long is given up by now, and its release is on its way (T_WORK).
        works = message.mti == "0100" and self.work_s > 0
        until_ns = step.mono_ns + self.work_s * NS if works else 0
        return reply(received, elements, until_ns)

    def _answer(self, step: Step, message: Message) -> dict[str, object]:
        off_clock = message.mti == "0100" and self._off_clock(step, message)
        if off_clock:
            step.alarm("clock_of_host", self.link)
        try:
            request = issuer_request(message, now_ns=step.now_ns, opener=self._current_opener())
        except ElementFault:
            if not off_clock:
                raise
            return {"39": "A5"}
        if off_clock:
            if isinstance(request, IssuerHold):
                self._ceibo.refuse(step, self.link, request, self._declared(message, request), "A5")
            return {"39": "A5"}
        match request:
            case IssuerStatus():
                state = self._ceibo.state(request.network, request.operation, self.link)
                return state_elements(state if state in _TOLD else "")
            case IssuerHolder():
                told = self._ceibo.serve(step, self.link, request, 0)
                assert isinstance(told, HolderAnswer)
                return answer_elements(message, _short(told))
        if not step.concluding:
            return {"39": "96"}
        answer = self._ceibo.serve(step, self.link, request, self._declared(message, request))
        assert isinstance(answer, IssuerAnswer)
        self._watch(step, request, answer)
        balances = self._balances(message, request, answer)
        elements = answer_elements(
            message, answer, balances=balances, day=self._first_day(request, answer)
        )
        return with_key(elements, answer.code, answer.key)

    def _off_clock(self, step: Step, message: Message) -> bool:
        off_ns = abs(sent_ns(message, step.now_ns) - step.now_ns)
        # The time on the wire has whole seconds: what follows them is not the sender's fault.
        return off_ns >= (self._settings.clock_tolerance_s + 1) * NS

    def _current_opener(self) -> TokenOpener:
        if self._keys.data_keys != self._opens:
            self._opens = self._keys.data_keys
            self._opener = TokenOpener(self._opens)
        return self._opener

    def _declared(
        self, message: Message, request: IssuerHold | IssuerCapture | IssuerRelease
    ) -> int:
        """Digest of what a repeat of this message is compared in; of the code what is sealed."""
        fields = [message.get(element, "") for element in _COMPARED]
        given = message.get("48", {})
        tags = [given.get(tag, "") for tag in _TAGS]
        tags += [[tag, given[tag]] for tag in sorted(given) if tag not in _KNOWN]
        token = request.token if isinstance(request, IssuerHold) else ""
        reason = "" if isinstance(request, IssuerRelease) else message.get("25", "")
        return self._fingerprint(*fields, tags, token if isinstance(token, str) else "", reason)

    def _balances(
        self, message: Message, request: IssuerHold | IssuerCapture | IssuerRelease,
        answer: IssuerAnswer,
    ) -> Balances | None:  # fmt: skip
        if not isinstance(request, IssuerHold) or answer.code != "00":
            return None
        if not asks_balances(message):
            return None
        found = self._ceibo.balances(self.link, request.network, request.operation)
        return None if found is None else Balances(*found, request.currency)

    def _first_day(
        self, request: IssuerHold | IssuerCapture | IssuerRelease, answer: IssuerAnswer
    ) -> int:
        """Business date of a hold that was decided before; 0: the request's own counts."""
        if not answer.duplicate or not isinstance(request, IssuerHold):
            return 0
        hold = self._ceibo.hold_of(request, self.link)
        return 0 if hold is None else hold.day

    # ---- holds that nobody decides (policy ask-network)

    def _watch(
        self, step: Step, request: IssuerHold | IssuerCapture | IssuerRelease, answer: IssuerAnswer
    ) -> None:
        key = f"{self.link}|{request.network}|{request.operation}"
        if not isinstance(request, IssuerHold):
            step.disarm("ceibo", STATE, key)
        elif answer.code == "00" and not answer.duplicate and self._asks:
            step.arm("ceibo", STATE, key, self._settings.hold_ask_after_s)

    @property
    def _asks(self) -> bool:
        return self._settings.hold_policy == "ask-network"

    def watch(self, step: Step, hold: CeiboHold) -> None:
        """Take up again what an earlier process watched."""
        if not self._asks:
            return
        age_s = max(step.now_ns - hold.created_ns, 0) / NS
        key = f"{self.link}|{hold.network}|{hold.operation}"
        step.arm("ceibo", STATE, key, max(self._settings.hold_ask_after_s - age_s, 0.0))

    def adopt(
        self, step: Step, undecided: Undecided, is_armed: Callable[[str, str, str], bool]
    ) -> None:
        """Take up holds that were granted natively, once they are old enough to be asked about."""
        if self.link != SICOOP or not self._asks:
            return
        before_ns = step.now_ns - int(self._settings.hold_ask_after_s * NS)
        found = undecided(self._adopted_ns, before_ns, ADOPTED_MAX)
        for name, at_ns in found:
            key = f"{self.link}|{name[:4].decode()}|{name[4:].decode()}"
            if not is_armed("ceibo", STATE, key):
                step.arm("ceibo", STATE, key, 0.0)
            # What the bound cut off may be of the same instant.
            self._adopted_ns = at_ns - (len(found) == ADOPTED_MAX)

    def watches(self, hold: CeiboHold) -> bool:
        """True for the holds of this host; sicoop's are the same, near or far."""
        return hold.link == self.link or (hold.link == NEAR and self.link == SICOOP)

    def on_deadline(self, step: Step, network: str, operation: str) -> None:
        """Ask for the state of a hold that is still undecided, and again after the same time."""
        if self._ceibo.state(network, operation, self.link) != ACTIVA or not self._asks:
            return
        key = f"{self.link}|{network}|{operation}"
        if self._wire is not None and self._wire.up:
            asked = status_elements(IssuerStatus(network, operation))
            step.send(self, Outgoing(STATE, key, *asked))
        step.arm("ceibo", STATE, key, self._settings.hold_ask_after_s)

    def ready(self, message: Outgoing) -> None:
        assert self._wire is not None, "only a link that is up is asked"
        # A refused question is asked again by its timer.
        self._wire.request(
            message.mti, message.elements, token=message.key, budget_s=self._settings.answer_s
        )

    def flush(self) -> None:
        assert self._wire is not None
        self._wire.flush()

    def on_answer(self, step: Step, token: str, received: Received) -> None:
        """The state of an operation at the other side."""
        self._node.taken(request=False)
        _, network, operation = token.split("|")
        try:
            answer = issuer_answer(received.message)
        except ElementFault:
            return
        if not isinstance(answer, IssuerState) or answer.code not in ("00", "25"):
            return
        state = answer.state if answer.code == "00" else DESCONOCIDA
        if self._ceibo.on_platform_state(step, self.link, network, operation, state):
            step.disarm("ceibo", STATE, token)

    def on_lost(self, step: Step, token: Any, reason: str) -> None:
        """No answer about a hold: it stays as it is, and is asked about again."""

    def on_event(self, step: Step, event: Event) -> None:
        """Network management that is more than a sign of life."""
        self._events(step, self.link, event)

    def on_up(self, step: Step) -> None:
        self._events(step, self.link, SignedOn())

    def on_down(self, step: Step) -> None:
        """The host's last connection is gone, or has signed off."""
        if not self.stopping:
            step.alarm("host_gone", self.link)
