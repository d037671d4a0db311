"""A whole switch in one process for tests: real core, journal and flows; only the clock is ours.

`House` provisions a network with terminals and cards, plays terminals without sockets, and checks
the end states of the acceptance specification (section 5): cash told, available balance, hold at
the issuer, the network's position, red's register, all books balanced.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from core_ext import Batch, Reader
from core_ext._mac import totp
from protocols.messages import (
    Annul,
    Answer,
    CashOut,
    Delivered,
    Deposit,
    Hold,
    LastOperation,
    Notice,
    ShiftOpen,
)
from switch.clock import iso_ms
from switch.config import Config, load
from switch.flows import operations as ops
from switch.flows.operations import CeiboHold, RedOperation, SicoopOperation
from switch.flows.registry import account_id
from switch.flows.step import AUDIT_RECORD, Step
from switch.journal.projector import Projector
from switch.journal.store import State
from switch.node import Node
from switch.ops.audit import AuditEvent, decode
from switch.ops.keys import MasterKey, from_base32
from switch.provisioning import Provisioning

NOON_NS = 1_795_359_600 * 1_000_000_000  # 2026-11-22 15:00:00 UTC, noon in Asunción
NETWORK = "0012"
TERMINAL = "00001234"
OTHER_TERMINAL = "00001235"
BRANCH = "000017"
DOCUMENT = "4567890"
MASTER = MasterKey(bytes(range(32)))


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_ns: int = NOON_NS) -> None:
        self.now_ns = now_ns
        self.up_ns = 1_000_000_000

    def wall_ns(self) -> int:
        return self.now_ns

    def mono_ns(self) -> int:
        return self.up_ns

    def advance(self, seconds: float) -> None:
        """Both clocks go on."""
        self.now_ns += int(seconds * 1e9)
        self.up_ns += int(seconds * 1e9)

    def step(self, seconds: float) -> None:
        """Only the wall clock jumps."""
        self.now_ns += int(seconds * 1e9)


@dataclass
class Holder:
    """One provisioned card and what its holder knows."""

    card: str
    seed: bytes
    document: str
    balance: int = 0


class Told:
    """A destination of the reply gate that keeps what it was told; notices go to their own list."""

    def __init__(self, notices: list[Notice] | None = None) -> None:
        self.messages: list[Any] = []
        self._notices = [] if notices is None else notices

    def ready(self, message: Any) -> None:
        (self._notices if isinstance(message, Notice) else self.messages).append(message)

    @property
    def answer(self) -> Any:
        """The one answer."""
        assert len(self.messages) == 1, f"{len(self.messages)} answers"
        return self.messages[0]

    def flush(self) -> None:
        pass


@dataclass
class Sent:
    """A request that a deferred port holds back, and what became of it."""

    network: str
    message: Any
    answer: Any = None
    key: str = ""


class DeferredPlatform:
    """sicoop as red sees one in another process: chosen requests are answered later, or never.

    `sent` holds what red asked; `process` lets sicoop work on one, `deliver` brings its answer.
    """

    forwards = False

    def __init__(self, house: "House", kinds: tuple[type, ...]) -> None:
        self._house = house
        self._kinds = kinds
        self.sent: list[Sent] = []

    def ask(self, step: Any, network: str, message: Any, *, key: str = "") -> Any:
        if not isinstance(message, self._kinds):
            return self._house.node.sicoop.ask(step, network, message, key=key)
        self.sent.append(Sent(network, message, key=key))
        return None

    def process(self, index: int = -1) -> Any:
        """sicoop takes the request and decides; red is not told yet."""
        sent = self.sent[index]
        with self._house.step() as step:
            sent.answer = self._house.node.sicoop.ask(step, sent.network, sent.message)
        return sent.answer

    def tell(self, index: int = -1) -> None:
        """The answer that `process` got reaches red."""
        sent = self.sent[index]
        with self._house.step() as step:
            self._house.node.red.on_platform_answer(
                step, sent.message.reference, sent.answer, _what(sent.message)
            )

    def deliver(self, index: int = -1) -> Any:
        """Both, the usual way."""
        answer = self.process(index)
        self.tell(index)
        return answer


class DeferredIssuer:
    """ceibo as sicoop sees one in another process; as `DeferredPlatform`."""

    def __init__(self, house: "House", kinds: tuple[type, ...]) -> None:
        self._house = house
        self._kinds = kinds
        self.sent: list[Sent] = []

    closed = False

    def choose(self, *_: Any) -> str:
        return ""

    def forwards(self, link: str) -> bool:
        return False

    def ask(self, step: Any, message: Any, key: str = "", link: str = "") -> Any:
        if not isinstance(message, self._kinds):
            return self._house.node.ceibo.ask(step, message)
        self.sent.append(Sent("", message, key=key))
        return None

    def process(self, index: int = -1) -> Any:
        sent = self.sent[index]
        with self._house.step() as step:
            sent.answer = self._house.node.ceibo.ask(step, sent.message)
        return sent.answer

    def tell(self, index: int = -1) -> None:
        sent, sicoop = self.sent[index], self._house.node.sicoop
        reference = sicoop.reference_of(sent.message.operation)
        assert reference is not None
        with self._house.step() as step:
            sicoop.on_issuer_answer(step, reference, sent.answer, _what(sent.message))

    def deliver(self, index: int = -1) -> Any:
        answer = self.process(index)
        self.tell(index)
        return answer


def _what(message: Any) -> str:
    """Name of a request as `on_platform_answer` and `on_issuer_answer` take it."""
    if getattr(message, "reason", "") == "annulment":
        return "annul"
    tag = str(type(message).__struct_config__.tag)
    return tag.removeprefix("issuer_")


@dataclass
class End:
    """One row of the table of end states (acceptance specification, section 5).

    `red` and `ceibo` hold the states allowed; `user` and `position` are multiples of the amount
    (and of fee and commission) by which the available balance and P differ from the start.
    """

    red: tuple[str, ...]
    ceibo: tuple[str, ...]
    user: int = 0
    position: int = 0
    app: tuple[str, ...] = ()


_NO_HOLD = ("", "RECHAZADA", "TUMBA")
ENDS = {
    "E0": End(("", "ERROR"), _NO_HOLD),
    "E1": End(("REGISTRADA", "ENTREGADA"), ("CAPTURADA",), -1, -1, ("approved",)),
    "E2": End(("RECHAZO_REGISTRADO",), (*_NO_HOLD, "LIBERADA")),
    "E3": End(("ERROR",), ("LIBERADA", "TUMBA")),
    "E4": End(("ANULADA",), ("LIBERADA", "compensated"), app=("annulled", "released")),
    "E5": End(("INICIADA", "REGISTRADA", "ENTREGADA", ""), ("ACTIVA",), -1),
    "F0": End(("", "ERROR"), _NO_HOLD),
    "F1": End(("REGISTRADA", "ENTREGADA"), ("CAPTURADA",), 1, 1, ("approved",)),
    "F2": End(("RECHAZO_REGISTRADO",), (*_NO_HOLD, "LIBERADA")),
    "F3": End(("ERROR",), ("LIBERADA", "TUMBA")),
    "F4": End(("ANULADA",), ("LIBERADA", "compensated"), app=("annulled", "released")),
    "F5": End(("INICIADA", "REGISTRADA", "ENTREGADA", ""), ("ACTIVA",)),
}
_LEDGER_HOLDS = {
    "": (None,),
    "RECHAZADA": (None,),
    "TUMBA": ("tombstone",),
    "ACTIVA": ("open",),
    "CAPTURADA": ("captured",),
    "LIBERADA": ("released",),
    "compensated": ("annulled",),
}
# Section 4: what a query tells the cashier, by red's state, for cash_out and deposit.
_TOLD = {
    "": ("NO_ENTREGUE", "DEVUELVA"),
    "INICIADA": ("ESPERE", "ESPERE"),
    "RECHAZO_REGISTRADO": ("NO_ENTREGUE", "DEVUELVA"),
    "ERROR": ("NO_ENTREGUE", "DEVUELVA"),
    "REGISTRADA": ("ENTREGUE", "RECIBA"),
    "ENTREGADA": ("NO_ENTREGUE", "NO_RECIBA"),
}


def configuration(directory: Path, toml: str = "", limits: str = "") -> Config:
    """The configuration of a fresh init, with changes on top; small journal segments."""
    text = toml
    if "[journal]" not in text:
        text += SMALL_JOURNAL
    path = directory / "troncal.toml"
    path.write_text((limits or DEFAULT_LIMITS) + text)
    return load(path, environ={})


SMALL_JOURNAL = """
[journal]
segment_bytes = 2097152
group_bytes_max = 524288
reserve_bytes = 65536
"""
DEFAULT_LIMITS = """
[units]
py_daily_wage = [{ from = "2024-07-01", pyg = 107627 }]
usd = [{ from = "2026-01-01", pyg = 7000 }]
[limits.card_month]
scope = "card"
kind = "cash_out"
window = "calendar_month"
max = "40 py_daily_wage"
tier = "basic"
[limits.operation]
scope = "card"
kind = "any"
window = "operation"
min = "1000 PYG"
max = "5000000 PYG"
multiple = "1000 PYG"
[declarations.cash]
scope = "depositor"
window = "day"
threshold = "10000 usd"
"""


class Turn:
    """One step of the node as a context: ended and made durable on leaving."""

    def __init__(self, house: "House") -> None:
        self._house = house

    def __enter__(self) -> Step:
        self.step = self._house.node.begin()
        return self.step

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._house.node.end(self.step)
            self._house.settle()


class House:
    """A running node with one network, two terminals and one card, and hands to work it."""

    def __init__(self, directory: Path, *, toml: str = "", limits: str = "",
                 net_debit_cap: int = 100_000_000, payable_cap: int = 0,
                 balance: int = 1_000_000, clock: ManualClock | None = None) -> None:  # fmt: skip
        """`limits` replaces the limits of a fresh init, `toml` adds other sections."""
        self.directory = directory
        self.clock = clock or ManualClock()
        self.config = configuration(directory, toml, limits)
        self.notices: list[Notice] = []
        self._projector: Projector | None = None
        self._start: dict[str, int] = {}
        self._start_position = 0
        self.open()
        self._trace = 0
        self._documents = 4_567_890
        self.do("network_add", number=NETWORK, net_debit_cap=net_debit_cap, payable_cap=payable_cap)
        for terminal in (TERMINAL, OTHER_TERMINAL):
            self.do("terminal_add", number=terminal, network=NETWORK, branch=BRANCH)
        self.holder = self.add_card(document=DOCUMENT, balance=balance)

    def open(self) -> None:
        """Start the node: recovery is the only way in."""
        self.node = Node(self.config, MASTER, self.clock, self.directory / "data")
        self.node.open()

    def close(self) -> None:
        if self._projector is not None:
            self._projector.close()
            self._projector = None
        self.node.store.commit()
        self.node.close()

    def reopen(self, toml: str | None = None, limits: str = "") -> None:
        """Stop in good order and start again."""
        self.close()
        if toml is not None or limits:
            self.config = configuration(self.directory, toml or "", limits)
        self.open()

    def crash(self) -> None:
        """Lose what is not durable, then recover."""
        self.kill()
        self.open()

    def kill(self) -> None:
        """Lose what is not durable, and stay down."""
        if self._projector is not None:
            self._projector.close()
            self._projector = None
        self.node.store.journal.close(flush=False)
        self.node.store.close()

    # ---- hands

    def step(self) -> "Turn":
        """A turn of the node: `with house.step() as step`; all is durable after it."""
        return Turn(self)

    def do(self, command: str, **values: Any) -> Any:
        """Run a provisioning command, durable on return."""
        return self.do_all([(command, values)])[0]

    def do_all(self, commands: Iterable[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Several provisioning commands in one turn."""
        with self.step() as step:
            desk = Provisioning(self.node)
            return [desk.call(step, command, values) for command, values in commands]

    def add_card(self, *, document: str = "", balance: int = 1_000_000, **values: Any) -> Holder:
        if not document:
            self._documents += 1
            document = str(self._documents)
        made = self.do(
            "card_add", document=document, name="ANA MARIA ROJAS", balance=balance, **values
        )
        self._start[made["card"]] = balance
        return Holder(made["card"], from_base32(made["seed"]), document, balance)

    def code(self, holder: Holder | None = None, *, at_s: int | None = None) -> str:
        """The holder's present code, as his app shows it."""
        moment = self.clock.now_ns // 1_000_000_000 if at_s is None else at_s
        return totp((holder or self.holder).seed, moment)

    def wrong_code(self, holder: Holder | None = None) -> str:
        """A code that is none of the holder's, near or far."""
        holder = holder or self.holder
        now_s = self.clock.now_ns // 1_000_000_000
        taken = {self.code(holder, at_s=now_s + 60 * away) for away in range(-40, 41)}
        return next(code for code in map(str, range(731_905, 732_905)) if code not in taken)

    def trace(self) -> int:
        self._trace += 1
        return self._trace

    def ask(self, message: Any, terminal: str = TERMINAL) -> Any:
        """Send one request of a terminal and return its answer once that is durable."""
        return self.ask_all([message], terminal)[0]

    def ask_all(self, messages: list[Any], terminal: str = TERMINAL) -> list[Any]:
        """Requests of one read: one turn, one group. Answers in the order of the gate."""
        return [answer for told in self.turn([(terminal, m) for m in messages]) for answer in told]

    def turn(self, requests: list[tuple[str, Any]]) -> list[list[Any]]:
        """Requests of several terminals that arrive together; what each one was told."""
        return [told.messages for told in self.send(requests)]

    def send(self, requests: list[tuple[str, Any]]) -> list[Told]:
        """The same for requests that may be answered later. Notices are kept apart."""
        tolds = [Told(self.notices) for _ in requests]
        with self.step() as step:
            for (terminal, message), told in zip(requests, tolds, strict=True):
                record = self.node.registry.terminal(terminal)
                assert record is not None
                self.node.terminal_request(step, record, message, told)
        return tolds

    def network(self, message: Any, number: str = NETWORK) -> Told:
        """Send a request over a network's own session."""
        told = Told(self.notices)
        with self.step() as step:
            self.node.network_request(step, number, message, told)
        return told

    def hold(self, reference: str, amount: int = 150_000, *, kind: str = "cash_out", **fields: Any
             ) -> Hold:  # fmt: skip
        """A hold as the network's own back-end would send it."""
        values: dict[str, Any] = {"document": self.holder.document, "cashier": "000345"}
        if kind == "cash_out":
            values["token"] = self.code()
        sent_at = iso_ms(self.clock.now_ns)
        values |= {"id": 1, "branch": BRANCH, "currency": "PYG", "sent_at": sent_at} | fields
        return Hold(reference=reference, amount=amount, kind=kind, **values)  # type: ignore[arg-type]

    def reference(self, trace: int, terminal: str = TERMINAL, date: str = "") -> str:
        day = date or self.node.calendar.local(self.clock.now_ns).compact
        return f"{NETWORK}{terminal}{day}{trace:06d}"

    def defer_platform(self, *kinds: type) -> DeferredPlatform:
        """From now on red's requests of these kinds (default: holds) are answered later."""
        port = DeferredPlatform(self, kinds or (Hold,))
        self.node.red.attach(port)
        return port

    def defer_issuer(self, *kinds: type) -> DeferredIssuer:
        """The same between sicoop and ceibo."""
        port = DeferredIssuer(self, kinds)
        self.node.sicoop.attach(self.node.red.on_platform_answer, issuer=port)
        return port

    def pass_time(self, seconds: float) -> None:
        """Let time go by and run what has become due."""
        self.clock.advance(seconds)
        self.node.run_timers()
        self.settle()

    def accept_step(self, key: bytes, step: int) -> None:
        """Make a step of a card the last one that was accepted."""
        with self.step() as turn:
            batch = Batch()
            batch.accept_step(key, step)
            assert self.node.store.ledger.apply(batch, turn.now_ns) == [0]

    def settle(self) -> None:
        """Let everything become durable and every answer out."""
        self.node.store.commit()
        self.node.on_durable()

    def request(self, trace: int, amount: int, *, kind: str = "cash_out", **fields: Any) -> Any:
        """The message of a cash_out or deposit of the house's own holder."""
        values: dict[str, Any] = {"document": self.holder.document, "cashier": "000345"}
        values |= {"trace": trace, "amount": amount, "currency": "PYG"} | fields
        if kind == "deposit":
            return Deposit(**values)
        return CashOut(**({"token": self.code()} | values))

    def cash_out(self, amount: int = 150_000, *, holder: Holder | None = None, token: str = "",
                 trace: int = 0, terminal: str = TERMINAL, **fields: Any) -> Answer:  # fmt: skip
        holder = holder or self.holder
        values: dict[str, Any] = {"document": holder.document, "cashier": "000345"} | fields
        message = CashOut(
            trace=trace or self.trace(), token=token or self.code(holder), amount=amount,
            currency="PYG", **values,
        )  # fmt: skip
        answer = self.ask(message, terminal)
        assert isinstance(answer, Answer)
        return answer

    def deposit(self, amount: int = 150_000, *, holder: Holder | None = None, trace: int = 0,
                terminal: str = TERMINAL, **fields: Any) -> Answer:  # fmt: skip
        holder = holder or self.holder
        values: dict[str, Any] = {"document": holder.document, "cashier": "000345"} | fields
        message = Deposit(trace=trace or self.trace(), amount=amount, currency="PYG", **values)
        answer = self.ask(message, terminal)
        assert isinstance(answer, Answer)
        return answer

    @property
    def last_trace(self) -> int:
        return self._trace

    def staff(self, number: str, *, supervisor: bool = False, branch: str = BRANCH) -> bytes:
        """List a cashier; returns the seed of his own codes."""
        made = self.do(
            "cashier_add", number=number, network=NETWORK, branch=branch, supervisor=supervisor
        )
        return from_base32(made["seed"])

    def staff_code(self, seed: bytes) -> str:
        return totp(seed, self.clock.now_ns // 1_000_000_000)

    def open_shift(
        self, cashier: str, seed: bytes, *, terminal: str = TERMINAL, **fields: Any
    ) -> Answer:
        message = ShiftOpen(cashier=cashier, cashier_code=self.staff_code(seed), **fields)
        answer = self.ask(message, terminal)
        assert isinstance(answer, Answer)
        return answer

    def delivered(self, trace: int, terminal: str = TERMINAL) -> Answer:
        answer = self.ask(Delivered(original=trace), terminal)
        assert isinstance(answer, Answer)
        return answer

    def query(self, trace: int, kind: str = "cash_out", terminal: str = TERMINAL) -> Answer:
        """What the cashier is told about an operation now."""
        answer = self.ask(LastOperation(original=trace, kind=kind), terminal)  # type: ignore[arg-type]
        assert isinstance(answer, Answer)
        return answer

    def annul(self, original: int, *, trace: int = 0, terminal: str = TERMINAL, **fields: Any
              ) -> Answer:  # fmt: skip
        """Annul as cashier and supervisor do; fields set to None are left out."""
        answer = self.ask(self.annulment(original, trace=trace, **fields), terminal)
        assert isinstance(answer, Answer)
        return answer

    def annulment(self, original: int, *, trace: int = 0, **fields: Any) -> Annul:
        date = self.node.calendar.business(self.clock.now_ns).iso
        values: dict[str, Any] = {"cashier": "000345", "supervisor": "000900"}
        values |= {"business_date": date} | fields
        present = {name: value for name, value in values.items() if value is not None}
        return Annul(trace=trace or self.trace(), original=original, **present)

    # ---- eyes

    def available(self, holder: Holder | None = None) -> int:
        return int(self.do("card_show", card=(holder or self.holder).card)["available"])

    def account(self, holder: Holder | None = None) -> bytes:
        """Ledger account of a card."""
        card = self.node.registry.card((holder or self.holder).card)
        assert card is not None
        return card.account

    def position(self) -> int:
        """P: positive means that the network owes."""
        balance = self.node.store.ledger.balance(account_id(f"sicoop:PYG:net:{NETWORK}"))
        assert balance is not None
        return balance.debits_posted - balance.credits_posted

    def reserved(self) -> int:
        """What pending deposits have taken of the network's cap."""
        balance = self.node.store.ledger.balance(account_id(f"sicoop:PYG:net:{NETWORK}"))
        assert balance is not None
        return balance.debits_pending

    def register(self, trace: int, terminal: str = TERMINAL, date: str = "") -> RedOperation | None:
        """red's record of a trace of today."""
        found = self.node.store.records.get(
            ops.RED_OPERATIONS, self.reference(trace, terminal, date).encode()
        )
        return None if found is None else ops.decode_red(found)

    def at_sicoop(self, reference: str) -> SicoopOperation | None:
        found = self.node.store.records.get(ops.SICOOP_OPERATIONS, reference.encode())
        return None if found is None else ops.decode_sicoop(found)

    def at_ceibo(self, operation: str) -> CeiboHold | None:
        found = self.node.store.records.get(ops.CEIBO_HOLDS, (NETWORK + operation).encode())
        return None if found is None else ops.decode_ceibo(found)

    def states(self, trace: int, terminal: str = TERMINAL, date: str = "") -> tuple[str, str, str]:
        """States of an operation at red, sicoop and ceibo; '' where there is nothing."""
        red = self.register(trace, terminal, date)
        sicoop = self.at_sicoop(self.reference(trace, terminal, date))
        operation = "" if sicoop is None else sicoop.operation
        ceibo = self.at_ceibo(operation) if operation else None
        return (
            "" if red is None else red.state,
            "" if sicoop is None else sicoop.state,
            "" if ceibo is None else ceibo.state,
        )

    def app(self, card: str) -> list[tuple[str, int, str]]:
        """What a holder's app was told, oldest first: what, amount, branch."""
        db = sqlite3.connect(self.read_model())
        try:
            rows = db.execute(
                "SELECT what, amount, branch FROM notices WHERE card = ? ORDER BY at_ns", (card,)
            )
            return rows.fetchall()
        finally:
            db.close()

    def read_model(self) -> Path:
        """Path of the read model, brought up to what is durable."""
        self.settle()
        if self._projector is None:
            self._projector = Projector(self.config, self.directory / "data", MASTER)
        self._projector.catch_up()
        return self._projector.path

    def alarms(self) -> set[str]:
        return set(self.node.alarms)

    def security_events(self) -> list[tuple[str, str]]:
        """What the audit trail has of security, oldest first: (what, outcome)."""
        return [(e.what, e.outcome) for e in self.audit() if e.security]

    def audit(self) -> list[AuditEvent]:
        """The audit trail of the journal, oldest first."""
        self.settle()
        reader = Reader(str(self.directory / "data" / "journal"))
        events = []
        while (group := reader.next()) is not None:
            events += [decode(p) for kind, p in group.records() if kind == AUDIT_RECORD]
        reader.close()
        return events

    def expect_end(self, trace: int, end: str, amount: int, **where: Any) -> None:
        """Check one operation's end state; see `expect_ends`."""
        self.expect_ends([(trace, end, amount)], **where)

    def expect_ends(
        self, ends: list[tuple[int, str, int]], *, holder: Holder | None = None,
        terminal: str = TERMINAL, date: str = "", others: int = 0,
    ) -> None:  # fmt: skip
        """Check the end states of operations on one card since the last check, or the start.

        Each is (trace, end, amount). Checked are red's register, the hold at the issuer and in its
        ledger, what a query tells the cashier, what the app was told; then, over all of them,
        the available balance and the network's position; `others` is what operations on other
        cards have moved it by.
        """
        holder = holder or self.holder
        user, position = 0, others
        for trace, end, amount in ends:
            expected = ENDS[end]
            red = self._check_end(trace, end, expected, holder, terminal, date)
            fee, commission = (0, 0) if red is None else (red.fee, red.commission)
            out = expected.user < 0
            user += expected.user * (amount + (fee if out else 0))
            position += expected.position * (amount + (commission if out else -commission))
        available, now = self.available(holder), self.position()
        assert available - self._start[holder.card] == user, "available balance"
        assert now - self._start_position == position, "position of the network"
        self._start[holder.card], self._start_position = available, now
        self.sound()

    def _check_end(
        self, trace: int, end: str, expected: End, holder: Holder, terminal: str, date: str
    ) -> RedOperation | None:
        red = self.register(trace, terminal, date)
        red_state = "" if red is None else red.state
        assert red_state in expected.red, f"{end}: red has {red_state}"
        sicoop = self.at_sicoop(self.reference(trace, terminal, date))
        number = "" if sicoop is None else sicoop.operation
        hold = self.at_ceibo(number) if number else None
        state = "" if hold is None else ("compensated" if hold.compensated else hold.state)
        core = self.node.store.ledger.hold((NETWORK + number).encode()) if number else None
        core_state = None if core is None else core.state
        assert core_state in _LEDGER_HOLDS[state], f"{end}: the ledger's hold is {core_state}"
        if not state and sicoop is not None and sicoop.state == "TUMBA":
            state = "TUMBA"  # it never got as far as the issuer
        assert state in expected.ceibo, f"{end}: ceibo has {state}"
        self._check_told(red, trace, end, terminal)
        if expected.app:
            whats = {what for what, _, _ in self.app(holder.card)}
            assert whats & set(expected.app), f"{end}: the app was told {whats}"
        return red

    def _check_told(self, red: RedOperation | None, trace: int, end: str, terminal: str) -> None:
        deposit = end.startswith("F")
        told = self.query(trace, "deposit" if deposit else "cash_out", terminal)
        if red is None:
            expected, code = _TOLD[""][deposit], "25"
        elif red.state == "ANULADA":
            marked = ("RECIBA", "DEVUELVA") if red.delivered_ns else ("NO_ENTREGUE", "NO_RECIBA")
            expected, code = marked[deposit], "00"
        else:
            expected = _TOLD[red.state][deposit]
            code = "09" if red.state == "INICIADA" else red.code
        assert (told.instruction, told.code) == (expected, code), f"{end}: told {told}"

    def sound(self) -> None:
        """All books balance, and a replay of the journal gives this very state."""
        self.settle()
        store = self.node.store
        assert self.node.money_check() == {"posted": 0, "pending": 0}
        assert store.ledger.check() == []
        again = State(self.config, self.directory / "data")
        again.recover()
        assert again.ledger.digest() == store.ledger.digest(), "replay of the ledger differs"
        assert again.records.digest() == store.records.digest(), "replay of the records differs"

    def kinds_of_records(self) -> list[int]:
        """Kinds of all records written so far, for the absence of some."""
        reader = Reader(str(self.directory / "data" / "journal"))
        kinds: list[int] = []
        while (group := reader.next()) is not None:
            kinds += [kind for kind, _ in group.records()]
        reader.close()
        return kinds


def builtins(message: Any) -> dict[str, Any]:
    """A message as a mapping without absent fields."""
    found = msgspec.to_builtins(message)
    assert isinstance(found, dict)
    return found
