"""What cases against a platform work with: our sessions as its network, references, codes."""

import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from msgspec import UNSET

from protocols.codes import CODES
from protocols.messages import (
    AnnulRegistered,
    Confirm,
    Hold,
    NetworkAnswer,
    NetworkHolder,
    Reverse,
    Status,
    StatusAnswer,
)
from protocols.session import NETWORK, PeerKey
from switch.calendar import Calendar
from switch.certification import kit
from switch.certification.line import Connect, Line, NoAnswer
from switch.certification.stand import Case, Lane, Stand
from switch.clock import iso_ms

TRACES: Final = 1_000
SUCCESS: Final = ("00", "21", "25")
"""Answers to a reversal that count as success for its sender."""

POSTED: Final = ("CAPTURADA", "CONCILIADA")
UNDONE: Final = ("REVERSANDO", "REVERSADA", "VENCIDA", "RECHAZADA", "TUMBA")
POLL_S: Final = 0.1

Read = Callable[[Path], Awaitable[dict[str, Any]]]


class Side:
    """The network that we are.

    Args:
        register: what we say of our operations when the platform asks.
        yesterday: reference of a captured operation of a day before, and its amount, if there is
            one.
        read: has the platform take in a daily file of ours; None: it cannot be had.
    """

    def __init__(
        self, network: str, terminals: list[str], branch: str, calendar: Calendar,
        yesterday: dict[str, tuple[str, int]] | None = None, read: Read | None = None,
        files: Path | None = None,
    ) -> None:  # fmt: skip
        self.network = network
        self.terminals = terminals
        self.branch = branch
        self.calendar = calendar
        self.register: dict[str, str] = {}
        self.yesterday = yesterday or {}
        if "unconfirmed" in self.yesterday:
            # Not decided here: so it is neither captured nor released when we are asked.
            self.register[self.yesterday["unconfirmed"][0]] = "INICIADA"
        self.read = read
        self.files = files
        self.told: dict[str, Any] | None = None  # of the daily file, once it was taken in
        self._card = 0
        self._trace = secrets.randbelow(999_999 - TRACES)

    def state_of(self, reference: str) -> str:
        return self.register.get(reference, "DESCONOCIDA")

    def new_reference(self, terminal: int = 0) -> str:
        self._trace += 1
        date = self.calendar.local(time.time_ns()).compact
        return f"{self.network}{self.terminals[terminal]}{date}{self._trace:06}"

    def new_document(self) -> str:
        """A person whose card was not used in this run."""
        self._card += 1
        assert self._card <= kit.CARDS, "the kit has a card for every operation"
        return str(kit.CARD_FIRST + self._card - 1)


class PlatformCase(Case):
    """One case against a platform."""

    side: Side

    def __init__(self, report: Any, lane: Lane, side: Side) -> None:
        super().__init__(report, lane)
        self.side = side
        self.line: Line = lane.lines[0]

    async def open(self) -> None:
        await self.line.open(self.stand.nursery)

    # ---- requests

    def hold(
        self, kind: str = "cash_out", *, amount: int = 50_000, document: str = "",
        token: str | None = None, terminal: int = 0, **more: Any,
    ) -> Hold:  # fmt: skip
        code: Any = token if token is not None else kit.code(time.time())
        values: dict[str, Any] = {
            "id": self.line.new_id(), "reference": self.side.new_reference(terminal), "kind": kind,
            "branch": self.side.branch, "cashier": "000001",
            "document": document or self.side.new_document(),
            "token": code if kind == "cash_out" else UNSET, "amount": amount, "currency": "PYG",
            "sent_at": iso_ms(time.time_ns()),
        }  # fmt: skip
        return Hold(**(values | more))

    def repeated(self, hold: Hold, **changes: Any) -> Hold:
        """The same request in another frame."""
        fresh = {"id": self.line.new_id(), "sent_at": iso_ms(time.time_ns())}
        return msgspec.structs.replace(hold, **(fresh | changes))

    async def ask(self, message: Any) -> Any:  # type: ignore[override]
        """Raises: Failed: no answer in its time, or one of another kind."""
        try:
            answer = await self.line.ask(message, self.times.platform + self.times.slack)
        except NoAnswer as none:
            self._check("answer", "an answer", str(none), False)
        wanted = StatusAnswer if isinstance(message, Status) else NetworkAnswer
        if not isinstance(message, NetworkHolder):
            self.form("the answer is of the kind asked for", isinstance(answer, wanted))
            told = getattr(answer, "reference", UNSET)
            self.form("the answer has the reference asked for", told in (UNSET, message.reference))
        return answer

    async def confirm(self, hold: Hold) -> NetworkAnswer:
        now = iso_ms(time.time_ns())
        answer: NetworkAnswer = await self.ask(Confirm(self.line.new_id(), hold.reference, now))
        return answer

    async def reverse(
        self, hold: Hold, reason: str = "timeout", amount: int = 0
    ) -> NetworkAnswer:  # fmt: skip
        answer: NetworkAnswer = await self.ask(
            Reverse(self.line.new_id(), hold.reference, amount or hold.amount, reason)  # type: ignore[arg-type]
        )
        return answer

    async def reversed(self, hold: Hold, **more: Any) -> None:
        """Reverse it; the answer is a success."""
        answer = await self.reverse(hold, **more)
        self.holds("`reverse` succeeds (00, 21, 25)", answer.code in SUCCESS, answer.code)

    async def annul_at(self, reference: str, amount: int) -> NetworkAnswer:
        answer: NetworkAnswer = await self.ask(
            AnnulRegistered(self.line.new_id(), reference, amount, "000009")
        )
        return answer

    async def state(self, reference: str) -> str:
        answer: StatusAnswer = await self.ask(Status(self.line.new_id(), reference))
        return answer.state

    async def becomes(self, reference: str, states: tuple[str, ...], wait_s: float = 0) -> str:
        """Its state is one of these in time. Raises: Failed."""
        found = ""
        with trio.move_on_after(wait_s or self.times.undone):
            while True:
                found = await self.state(reference)
                if found in states:
                    break
                await trio.sleep(POLL_S)
        self.holds(f"state is {' or '.join(states)}", found in states, found)
        return found

    # ---- answers

    def approved(
        self, hold: Hold, answer: NetworkAnswer, *, duplicate: bool = False
    ) -> NetworkAnswer:  # fmt: skip
        self.expect("code", "00", answer.code)
        number, authorization = str(answer.operation), str(answer.authorization)
        self.holds("operation: 12 digits", number.isdigit() and len(number) == 12, number)
        self.holds("authorization: 6", len(authorization) == 6, authorization)
        self.holds("business date", isinstance(answer.business_date, str))
        self.expect("duplicate", duplicate, answer.duplicate is True)
        self.side.register.setdefault(hold.reference, "INICIADA")
        return answer

    async def captured(self, hold: Hold) -> None:
        """Register and confirm it; it is captured."""
        self.side.register[hold.reference] = "REGISTRADA"
        answer = await self.confirm(hold)
        self.expect("`confirm`: code", "00", answer.code)
        await self.becomes(hold.reference, POSTED)

    async def carried_out(self, hold: Hold) -> NetworkAnswer:
        """Hold, register, confirm."""
        answer = self.approved(hold, await self.ask(hold))
        await self.captured(hold)
        return answer

    async def refused(self, hold: Hold, code: str, key: str) -> None:
        """A decline, and nothing held."""
        answer: NetworkAnswer = await self.ask(hold)
        self.expect("code", code, answer.code)
        self.expect("key", key, answer.key)
        assert key in CODES
        self.expect("state", "RECHAZADA", await self.state(hold.reference))
        await self.reversed(hold)

    async def unavailable(self, hold: Hold) -> None:
        """91 in its time, and whatever was held is given back."""
        began_s = trio.current_time()
        answer: NetworkAnswer = await self.ask(hold)
        took_s = trio.current_time() - began_s
        self.expect("code", "91", answer.code)
        limit_s = self.times.issuer + self.times.slack
        self.holds(f"answered within {limit_s:g} s", took_s <= limit_s, f"{took_s:.1f} s")
        await self.becomes(hold.reference, UNDONE)
        await self.reversed(hold)
        await self.becomes(hold.reference, UNDONE)


class PlatformLane(Lane):
    """One session of ours, or more."""

    def __init__(self, stand: "PlatformStand", lines: tuple[Line, ...]) -> None:
        super().__init__(stand, lines)


class PlatformStand(Stand):
    """What all cases against one platform share; four lanes, as many sessions."""

    def __init__(
        self, *, side: Side, key: PeerKey, connect: Connect, version: int = 1, lanes: int = 4,
        **values: Any,
    ) -> None:  # fmt: skip
        super().__init__(connect=connect, terminals=(), platform=None, **values)
        self.side = side
        for number in range(1, lanes + 1):
            line = Line(
                f"network {side.network}.{number}", NETWORK, side.network, key, connect,
                key_version=version, state_of=side.state_of,
            )  # fmt: skip
            self.lanes.append(PlatformLane(self, (line,)))

    def case(self, report: Any, lane: Lane) -> Case:
        return PlatformCase(report, lane, self.side)
