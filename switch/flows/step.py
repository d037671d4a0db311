"""One step of the flows: when it happens, and the effects the runtime has to carry out after it.

A flow changes the durable state (ledger and record store) as it goes; both write into the open
journal group, so all changes of one step are durable together or not at all. What must leave the
flows is collected here in order. Nothing of it happens before the group is durable.
"""

from typing import Protocol

from msgspec import Struct

AUDIT_RECORD = 200
DIGEST_RECORD = 201
ALARM_RECORD = 202
NOTICE_RECORD = 203


class Origin(Protocol):
    """Who asked: a connection, or another role. Flows only keep it and hand it back."""


class Reply(Struct, frozen=True, gc=False):
    """An answer; its sender gets it once the step is durable."""

    origin: Origin
    message: object


class Send(Struct, frozen=True, gc=False):
    """A request to a role in another process: `to` takes it once the step is durable (rule R5)."""

    to: Origin
    message: object


class Call(Struct, frozen=True, gc=False):
    """Something the service of a product does outside, once the step is durable.

    `kind` and `key` only name it: what is said stands in the durable records. A call may get lost
    with the process; what the product's rules allow to be repeated, its `adopt` repeats.
    """

    product: str
    kind: str
    key: str


class Arm(Struct, frozen=True, gc=False):
    """Call `on_deadline(kind, key)` of `role` at `at_ns` of the monotonic clock."""

    role: str
    kind: str
    key: str
    at_ns: int


class Disarm(Struct, frozen=True, gc=False):
    """That deadline is no longer of interest."""

    role: str
    kind: str
    key: str


class Audit(Struct, frozen=True, gc=False):
    """A fact for the audit trail: who did what to which subject, and how it ended."""

    who: str
    what: str
    subject: str
    outcome: str
    reason: str = ""
    security: bool = False
    second: str = ""  # the other person of an act that needs two


class Alarm(Struct, frozen=True, gc=False):
    """Something an operator must see. `name` is stable and counted; `subject` is masked."""

    name: str
    subject: str
    detail: str = ""


class AppNotice(Struct, frozen=True, gc=False):
    """What the card holder's app is to be told outside of an operation (locks, unlocks)."""

    card: str
    what: str
    branch: str = ""


Effect = Reply | Send | Call | Arm | Disarm | Audit | Alarm | AppNotice


class Refusal(Exception):
    """Base of what a flow refuses to one who waits for it (`Node.perform`).

    Raised before anything of the step was changed: the step ends, and the refusal is told like any
    other answer. Its text names no secret.
    """


class Step:
    """The time of one step and its effects, in order.

    Attributes:
        now_ns: wall clock, nanoseconds since 1970, UTC; never behind an earlier step's.
        mono_ns: monotonic clock, nanoseconds; for deadlines only.
        admitting: False while there is no durable room for new work; what is owed goes on.
        concluding: False while there is no room at all: nothing may be written.
    """

    __slots__ = ("admitting", "concluding", "effects", "mono_ns", "now_ns")

    def __init__(
        self, now_ns: int, mono_ns: int, admitting: bool = True, concluding: bool = True
    ) -> None:
        self.now_ns = now_ns
        self.mono_ns = mono_ns
        self.admitting = admitting
        self.concluding = concluding
        self.effects: list[Effect] = []

    def reply(self, origin: Origin, message: object) -> None:
        self.effects.append(Reply(origin, message))

    def send(self, to: Origin, message: object) -> None:
        self.effects.append(Send(to, message))

    def call(self, product: str, kind: str, key: str) -> None:
        self.effects.append(Call(product, kind, key))

    def arm(self, role: str, kind: str, key: str, after_s: float) -> None:
        self.effects.append(Arm(role, kind, key, self.mono_ns + int(after_s * 1_000_000_000)))

    def disarm(self, role: str, kind: str, key: str) -> None:
        self.effects.append(Disarm(role, kind, key))

    def audit(
        self,
        who: str,
        what: str,
        subject: str,
        outcome: str,
        reason: str = "",
        security: bool = False,
        second: str = "",
    ) -> None:
        self.effects.append(Audit(who, what, subject, outcome, reason, security, second))

    def alarm(self, name: str, subject: str, detail: str = "") -> None:
        self.effects.append(Alarm(name, subject, detail))

    def notice(self, card: str, what: str, branch: str = "") -> None:
        self.effects.append(AppNotice(card, what, branch))
