"""The native ledger against its plain-Python model: same commands, same everything, every step.

`TRONCAL_FUZZ=1` runs many more and longer histories.
"""

import contextlib
import random
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core_ext._batch import Batch
from core_ext._ledger import (
    CREDITS_MUST_NOT_EXCEED_DEBITS,
    DEBITS_MUST_NOT_EXCEED_CREDITS,
    NO_LIMIT,
    POSITION,
    Ledger,
)
from core_ext._sink import MemorySink, Sink
from tests.models.ledger import WINDOWS, Command, Model, period

TABLES = {"accounts": 7, "holds": 18, "keys": 30, "attempts": 3}
HOLD_NAMES = 26
SECOND_NS = 1_000_000_000
FIRST_DAY = 20_480  # Tuesday 2026-01-27: a week and a month end within the days used
DAYS = [FIRST_DAY + n for n in (0, 1, 2, 3, 6, 7, 30)]
ACCOUNT_FLAGS = (
    0,
    DEBITS_MUST_NOT_EXCEED_CREDITS,
    DEBITS_MUST_NOT_EXCEED_CREDITS,
    DEBITS_MUST_NOT_EXCEED_CREDITS | POSITION,
    CREDITS_MUST_NOT_EXCEED_DEBITS,
)


def name(kind: int, number: int) -> bytes:
    return bytes([kind, number]) + bytes(14)


class Generator:
    """Draws commands that mostly make sense for the state of the model, and some that never do."""

    def __init__(self, seed: int, model: Model) -> None:
        self.random = random.Random(seed)
        self.model = model

    def chance(self, part: float) -> bool:
        return self.random.random() < part

    def pick(self, *values: Any) -> Any:
        return self.random.choice(values)

    def account(self) -> bytes:
        known = list(self.model.state.accounts)
        if known and self.chance(0.95):
            return self.random.choice(known)
        return name(1, self.random.randrange(8))

    def sides(self) -> dict[str, bytes]:
        debit, credit = self.account(), self.account()
        while debit == credit and self.chance(0.9):
            credit = self.account()
        return {"debit": debit, "credit": credit}

    def amount(self) -> int:
        if self.chance(0.04):
            return self.pick(0, -1, 1000, 2**62, 2**63 - 1)
        return self.random.randrange(1, 120)

    def new_hold(self) -> bytes:
        free = [n for n in range(HOLD_NAMES) if name(2, n) not in self.model.state.holds]
        if free and self.chance(0.9):
            return name(2, self.random.choice(free))
        return name(2, self.random.randrange(HOLD_NAMES))

    def old_hold(self, *states: str) -> bytes:
        holds = self.model.state.holds
        wanted = [id for id, h in holds.items() if h.state in states and h.head == id]
        if wanted and self.chance(0.8):
            return self.random.choice(wanted)
        return name(2, self.random.randrange(HOLD_NAMES))

    def hold(self) -> dict[str, Any]:
        policy = self.pick(0, 1, 2)
        out = {
            "hold": self.new_hold(),
            **self.sides(),
            "amount": self.amount(),
            "day": self.pick(*DAYS[:2], *DAYS),
            "night": self.chance(0.3),
            "policy": policy,
            "expires_after_s": self.random.randrange(1, 20) if policy == 2 else 0,
            "metered": self.chance(0.8),
            "meter_credit": self.chance(0.3),
        }
        if self.chance(0.3):
            out["meters"] = tuple(self.account() for _ in range(self.random.randrange(1, 5)))
        if self.chance(0.03):
            out["deadline_ns"] = 1
        return out

    def capture(self) -> dict[str, Any]:
        out: dict[str, Any] = {"hold": self.old_hold("open")}
        if self.chance(0.5):
            out |= {"amount": self.amount(), "final": self.chance(0.4)}
        if self.chance(0.3):
            out["tolerance"] = 30
        return out

    def forced(self) -> dict[str, Any]:
        out = {"hold": self.old_hold("open", "released", "expired", "tombstone"), "forced": True}
        if self.chance(0.7):
            out |= {**self.sides(), "amount": self.amount()}
        return out

    def profile(self) -> dict[str, Any]:
        limits = {}
        for _ in range(self.random.randrange(4)):
            side, window = self.pick("debit", "credit"), self.random.choice(WINDOWS)
            limits[side, window] = (self.pick(0, 100, 250, 600), self.pick(0, 0, 2, 4))
        return {
            "profile": self.pick(1, 1, 2, 3),
            "windows": limits,
            "operation_min": self.pick(0, 0, 10),
            "operation_max": self.pick(0, 0, 100),
            "multiple": self.pick(1, 1, 1, 5),
        }

    def limits(self) -> dict[str, Any]:
        out: dict[str, Any] = {"id": self.account()}
        if self.chance(0.4):
            out["credit_limit"] = self.pick(0, 50, 300)
        if self.chance(0.5):
            out["profile"] = self.pick(0, 1, 1, 2, 2, 3)
        if self.chance(0.2):
            out["min_balance"] = self.pick(0, 0, 20)
        if self.chance(0.4):
            out["max_balance"] = self.pick(NO_LIMIT, NO_LIMIT, 0, 500)
        return out

    def opened(self) -> dict[str, Any]:
        return {
            "id": name(1, self.random.randrange(8)),
            "ledger": self.pick(600, 600, 600, 600, 840),
            "code": 1,
            "flags": self.pick(*ACCOUNT_FLAGS),
            "credit_limit": self.pick(0, 0, 100),
            "profile": self.pick(0, 0, 1, 2),
        }

    def frozen(self) -> dict[str, Any]:
        return {"id": self.account(), "flags": self.pick(4, 8, 16, 20)}

    def code(self) -> bytes:
        return name(4, self.random.randrange(4))

    def linkable(self) -> Command:
        make: list[tuple[int, str, Callable[[], dict[str, Any]]]] = [
            (60, "hold", self.hold),
            (24, "capture", self.capture),
            (6, "capture", self.forced),
            (8, "release", lambda: {"hold": self.old_hold("open"), "tombstone": self.chance(0.5)}),
            (16, "annul", lambda: {"hold": self.old_hold("captured", "captured", "open")}),
            (10, "increment", lambda: {"hold": self.old_hold("open"), "amount": self.amount()}),
            (12, "transfer", lambda: {**self.sides(), "amount": self.amount()}),
            (2, "transfer", lambda: {**self.sides(), "amount": self.amount(), "forced": True}),
            (4, "adjust", lambda: {**self.sides(), "amount": self.amount(), "reason": 7,
                                   "author": name(9, 1), "second": name(9, 2)}),
            (4, "create_account", self.opened),
            (6, "set_limits", self.limits),
            (2, "freeze", self.frozen),
            (6, "unfreeze", self.frozen),
            (1, "close", lambda: {"id": name(1, self.pick(5, 6))}),
        ]  # fmt: skip
        _, method, arguments = self.random.choices(make, [weight for weight, _, _ in make])[0]
        out = arguments()
        if self.chance(0.25):
            out |= {"key": name(3, self.random.randrange(40)), "digest": int(self.chance(0.2))}
            if self.chance(0.1):
                out["key_ns"] = self.random.randrange(1, 40 * SECOND_NS)
        return method, out

    def alone(self, now: int) -> Command:
        kind = self.random.randrange(12)
        if kind < 3:
            return "tick", {}
        if kind < 5:
            return "accept_step", {"key": self.code(), "step": self.random.randrange(6)}
        if kind < 8:
            return "attempt", {
                "key": self.code(),
                "limit": self.pick(0, 2, 3),
                "window_s": self.pick(0, 5),
                "lock_s": 4,
                "row_limit": self.pick(0, 4),
            }
        if kind < 9:
            return "clear_attempts", {"key": self.code(), "row": self.chance(0.5)}
        if kind < 10:
            return "set_profile", self.profile()
        return "forget", {"before_ns": max(0, now - self.random.randrange(30) * SECOND_NS)}

    def commands(self, parts: int, now: int) -> list[Command]:
        """So many parts, each a command alone or a chain."""
        out: list[Command] = []
        for _ in range(parts):
            if self.chance(0.15):
                out.append(self.alone(now))
                continue
            length = self.random.randrange(2, 5) if self.chance(0.25) else 1
            part = [self.linkable() for _ in range(length)]
            for _, arguments in part[:-1]:
                arguments["linked"] = True
            out += part
        return out


seeds = st.integers(0, 2**32 - 1)


def new(sink: Sink | None) -> Ledger:
    return Ledger(**{f"{k}_max": v for k, v in TABLES.items()}, sink=sink)


def fill(batch: Batch, commands: list[Command]) -> None:
    batch.clear()
    for method, arguments in commands:
        getattr(batch, method)(**arguments)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sink = MemorySink()
        self.ledger = new(self.sink)
        self.replica = new(None)
        self.model = Model(**TABLES)
        self.batch = Batch()
        self.now = SECOND_NS
        self.replayed = 0

    def run(self, commands: list[Command]) -> None:
        fill(self.batch, commands)
        results = self.ledger.apply(self.batch, self.now)
        mine = [tuple(self.batch.outcome(i)) for i in range(len(commands))]
        assert results == [outcome[0] for outcome in mine]
        for given, native, plain in zip(
            commands, mine, self.model.apply(commands, self.now), strict=True
        ):
            assert native == plain, (given, native, plain)

    @initialize()
    def begin(self) -> None:
        """Something to work with: four accounts with money, one limited, in one ledger."""
        self.run(
            [
                ("set_profile", {"profile": 1, "windows": {("debit", "day"): (150, 3)}}),
                *(
                    ("create_account", {"id": name(1, n), "ledger": 600, "code": 1, "flags": n & 1,
                                        "profile": n == 1})
                    for n in range(4)
                ),
                ("transfer", {"debit": name(1, 0), "credit": name(1, 1), "amount": 300}),
                ("transfer", {"debit": name(1, 0), "credit": name(1, 3), "amount": 300}),
            ]
        )  # fmt: skip

    @rule(seed=seeds, parts=st.integers(1, 8), passed=st.sampled_from([0, 0, 1, 3, 10, -2]))
    def apply(self, seed: int, parts: int, passed: int) -> None:
        self.now = max(SECOND_NS, self.now + passed * SECOND_NS)
        self.run(Generator(seed, self.model).commands(parts, self.now))

    @rule(seed=seeds, parts=st.integers(1, 4))
    def refuse_to_journal(self, seed: int, parts: int) -> None:
        """A sink that takes nothing leaves the state as it was."""
        stuck = new(Sink())
        stuck.load(self.ledger.dump())
        fill(self.batch, Generator(seed, self.model).commands(parts, self.now))
        with contextlib.suppress(NotImplementedError):
            stuck.apply(self.batch, self.now)
        assert stuck.digest() == self.ledger.digest()
        assert list(stuck.dump()) == list(self.ledger.dump())
        assert stuck.check() == []

    @rule()
    def restart_from_snapshot(self) -> None:
        """Go on with a loaded copy; records follow from there."""
        loaded = new(self.sink)
        loaded.load(self.ledger.dump())
        assert list(loaded.dump()) == list(self.ledger.dump())
        self.ledger = loaded

    @invariant()
    def sound(self) -> None:
        assert self.ledger.check() == []

    @invariant()
    def replayed_alike(self) -> None:
        records = self.sink.records
        for kind, data in records[self.replayed :]:
            self.replica.replay_record(kind, data)
        self.replayed = len(records)
        assert self.replica.digest() == self.ledger.digest()
        assert self.replica.totals() == self.ledger.totals()
        assert self.replica.check() == []

    @invariant()
    def accounts_alike(self) -> None:
        state = self.model.state
        assert dict(self.ledger.accounts()).keys() == state.accounts.keys()
        for id, account in state.accounts.items():
            assert tuple(self.ledger.balance(id) or ()) == (
                account.debits_pending, account.debits_posted, account.credits_pending,
                account.credits_posted, account.credit_limit, account.available, account.ledger,
                account.code, account.flags, account.profile, account.floor, account.cap,
            )  # fmt: skip
            for side in ("debit", "credit"):
                for window in WINDOWS:
                    kept = account.usage.get((side, window), {})
                    for day in DAYS:
                        assert self.ledger.usage(id, side, window, day) == tuple(
                            kept.get(period(window, day), (0, 0))
                        )

    @invariant()
    def holds_alike(self) -> None:
        state = self.model.state
        for number in range(HOLD_NAMES):
            view = self.ledger.hold(name(2, number))
            hold = state.holds.get(name(2, number))
            if hold is None:
                assert view is None
                continue
            assert view is not None
            assert tuple(view) == (
                hold.state, hold.amount, hold.captured, hold.released, hold.debit, hold.credit,
                hold.day, hold.policy, hold.code, hold.created_ns, hold.expires_ns,
                hold.closed_ns, hold.head, hold.forced,
            )  # fmt: skip
        assert {id for id, _ in self.ledger.open_holds()} == {
            id for id, hold in state.holds.items() if hold.state == "open"
        }

    @invariant()
    def lists_alike(self) -> None:
        state = self.model.state
        counts = self.ledger.counts()
        assert counts["keys"] == len(state.keys)
        assert counts["holds"] == len(state.holds)
        assert counts["attempts"] == len(state.attempts)
        assert self.ledger.forced() == state.forced
        assert self.ledger.horizon_ns == state.horizon_ns
        for number in range(4):
            attempt = state.attempts.get(name(4, number))
            step = attempt.step if attempt and attempt.step >= 0 else None
            assert self.ledger.last_step(name(4, number)) == step
            assert self.ledger.locked_until(name(4, number)) == (
                attempt.locked_until_s if attempt else 0
            )
            assert self.ledger.attempts(name(4, number)) == (
                (attempt.count, attempt.row) if attempt else (0, 0)
            )


TestLedgerMachine = LedgerMachine.TestCase
# A step here is up to 30 commands and compares everything: a quarter of the usual histories.
TestLedgerMachine.settings = settings(max_examples=max(60, settings.default.max_examples // 4))
