"""The native ledger against its plain-Python model: same commands, same everything, every step.

`TRONCAL_FUZZ=1` runs many more and longer histories.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core_ext._ledger import (
    CLOSED,
    CREDITS_MUST_NOT_EXCEED_DEBITS,
    DEBITS_MUST_NOT_EXCEED_CREDITS,
    FROZEN_CREDIT,
    FROZEN_DEBIT,
    FROZEN_HOLD,
    NO_LIMIT,
    POSITION,
    Batch,
    Ledger,
)
from core_ext._sink import MemorySink, Sink
from tests.models.ledger import DAY_NS, WINDOWS, Model, period

FUZZ = os.environ.get("TRONCAL_FUZZ") == "1"
TABLES = {"accounts": 7, "holds": 12, "keys": 14, "attempts": 3}
SECOND_NS = 1_000_000_000
FIRST_DAY = 20_480  # Sunday 2026-01-27 is near: a month and a week end within the days used


def name(kind: int, number: int) -> bytes:
    return bytes([kind, number]) + bytes(14)


accounts = st.integers(0, 7).map(lambda n: name(1, n))
holds = st.integers(0, 13).map(lambda n: name(2, n))
meters = st.lists(accounts, max_size=2).map(tuple)
days = st.sampled_from([FIRST_DAY + n for n in (0, 1, 2, 3, 4, 5, 6, 30)])
amounts = st.one_of(
    st.sampled_from([0, -1, 1, 5, 10, 20, 50, 100, 1000, 2**62, 2**63 - 1]),
    st.integers(1, 200),
)
freezes = st.sampled_from([FROZEN_DEBIT, FROZEN_CREDIT, FROZEN_HOLD, FROZEN_DEBIT | FROZEN_HOLD])
account_flags = st.sampled_from(
    [
        0,
        0,
        DEBITS_MUST_NOT_EXCEED_CREDITS,
        DEBITS_MUST_NOT_EXCEED_CREDITS,
        DEBITS_MUST_NOT_EXCEED_CREDITS | POSITION,
        CREDITS_MUST_NOT_EXCEED_DEBITS,
    ]
)
windows = st.dictionaries(
    st.tuples(st.sampled_from(["debit", "credit"]), st.sampled_from(WINDOWS)),
    st.tuples(st.sampled_from([0, 60, 150, 400]), st.integers(0, 3)),
    max_size=3,
)


def command(method: str, chance_of_key: float = 0.3, **arguments: st.SearchStrategy[Any]):
    """One command with its common arguments."""
    keyed = st.fixed_dictionaries(
        {"key": st.integers(0, 15).map(lambda n: name(3, n)), "digest": st.integers(0, 1)},
        optional={"key_ns": st.integers(1, 60 * SECOND_NS)},
    )
    common = st.one_of(st.just({}), st.just({}), keyed) if chance_of_key else st.just({})
    return st.tuples(
        st.just(method),
        st.builds(lambda a, b: {**a, **b}, st.fixed_dictionaries(arguments), common),
    )


HOLD = command(
    "hold", hold=holds, debit=accounts, credit=accounts, amount=amounts, day=days,
    night=st.booleans(), policy=st.sampled_from([0, 1, 2]),
    expires_after_s=st.integers(1, 30), deadline_ns=st.sampled_from([0, 0, 0, 1]),
    meters=meters, meter_credit=st.booleans(), metered=st.sampled_from([True, True, False]),
)  # fmt: skip
CAPTURE = command(
    "capture", hold=holds, amount=st.one_of(st.just(0), amounts), final=st.booleans(),
    tolerance=st.sampled_from([0, 0, 10]),
)  # fmt: skip
FORCED = command(
    "capture", hold=holds, amount=st.one_of(st.just(0), amounts), forced=st.just(True),
    debit=accounts, credit=accounts,
)  # fmt: skip
LINKABLE = st.one_of(
    HOLD, HOLD, HOLD, CAPTURE, CAPTURE, FORCED,
    command("release", hold=holds, tombstone=st.booleans()),
    command("annul", hold=holds),
    command("annul", hold=holds),
    command("increment", hold=holds, amount=amounts),
    command("transfer", debit=accounts, credit=accounts, amount=amounts,
            forced=st.sampled_from([False, False, False, True])),
    command("transfer", debit=accounts, credit=accounts, amount=st.integers(100, 500)),
    command("adjust", debit=accounts, credit=accounts, amount=amounts, reason=st.just(7),
            author=st.just(name(9, 1)), second=st.just(name(9, 2))),
    command("create_account", id=accounts, ledger=st.sampled_from([600, 600, 600, 840]),
            code=st.just(1), flags=account_flags, credit_limit=st.sampled_from([0, 0, 100]),
            profile=st.integers(0, 2)),
    command("set_limits", id=accounts, credit_limit=st.sampled_from([None, 0, 300]),
            profile=st.sampled_from([None, 0, 1, 2]), min_balance=st.sampled_from([None, 0, 20]),
            max_balance=st.sampled_from([None, 0, 500, NO_LIMIT])),
    command("freeze", id=accounts, flags=freezes),
    command("unfreeze", id=accounts, flags=freezes),
    command("unfreeze", id=accounts, flags=freezes),
    command("close", id=st.just(name(1, 6))),
)  # fmt: skip
codes = st.integers(0, 3).map(lambda n: name(4, n))
ALONE = st.one_of(
    command("tick", 0),
    command("accept_step", 0, key=codes, step=st.integers(0, 5)),
    command("attempt", 0, key=codes, limit=st.integers(0, 3), window_s=st.sampled_from([0, 5]),
            lock_s=st.integers(0, 9), row_limit=st.sampled_from([0, 4])),
    command("clear_attempts", 0, key=codes, row=st.booleans()),
    command("set_profile", 0, profile=st.integers(1, 3), windows=windows,
            operation_max=st.sampled_from([0, 0, 300]), multiple=st.sampled_from([1, 1, 5])),
    command("forget", 0, before_ns=st.integers(0, 60 * SECOND_NS)),
)  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[str, dict[str, Any]]]:
    """One to five parts, each a command alone or a chain."""
    out = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.integers(0, 9))
        if kind < 2:
            out.append(draw(ALONE))
            continue
        part = [draw(LINKABLE) for _ in range(1 if kind < 7 else draw(st.integers(2, 4)))]
        for _, arguments in part[:-1]:
            arguments["linked"] = True
        out += part
    return out


def new(sink: Sink | None) -> Ledger:
    return Ledger(**{f"{k}_max": v for k, v in TABLES.items()}, sink=sink)


def fill(batch: Batch, commands: list[tuple[str, dict[str, Any]]]) -> None:
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

    def run(self, commands: list[tuple[str, dict[str, Any]]]) -> None:
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

    @rule(commands=batches(), passed=st.sampled_from([0, 0, 1, 3, 10, -2]))
    def apply(self, commands: list[tuple[str, dict[str, Any]]], passed: int) -> None:
        self.now = max(SECOND_NS, self.now + passed * SECOND_NS)
        self.run(commands)

    @rule(commands=batches())
    def refuse_to_journal(self, commands: list[tuple[str, dict[str, Any]]]) -> None:
        """A sink that takes nothing leaves the state as it was."""
        stuck = new(Sink())
        stuck.load(self.ledger.dump())
        fill(self.batch, commands)
        try:
            stuck.apply(self.batch, self.now)
        except NotImplementedError:
            pass
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
                    for day in range(FIRST_DAY - 1, FIRST_DAY + 32):
                        assert self.ledger.usage(id, side, window, day) == tuple(
                            kept.get(period(window, day), (0, 0))
                        )

    @invariant()
    def holds_alike(self) -> None:
        state = self.model.state
        for number in range(14):
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


assert CLOSED & 0x7F and DAY_NS  # the model's constants are the ledger's
TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=2000 if FUZZ else 40,
    stateful_step_count=60 if FUZZ else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
