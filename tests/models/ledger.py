"""The ledger once more, in plain Python: slow, obvious, and written from the specification's rules.

The stateful test gives the same commands to this model and to `core_ext.Ledger` and compares every
result, balance, hold, counter and list. Nothing here is bounded but what the rules bound.
"""

import copy
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core_ext.results import Result

I64_MAX = 2**63 - 1
DAY_NS = 86_400_000_000_000
SECOND_NS = 1_000_000_000
DEBITS, CREDITS, FROZEN_DEBIT, FROZEN_CREDIT, FROZEN_HOLD, CLOSED, POSITION = (
    1 << i for i in range(7)
)
UNTIL_UNLOCKED = 1 << 62
WINDOWS = ("day", "night", "week", "month")
OPEN = "open"
_BY_STATE = {
    "captured": Result.HOLD_CAPTURED,
    "released": Result.HOLD_RELEASED,
    "expired": Result.HOLD_EXPIRED,
    "tombstone": Result.TOMBSTONED,
    "annulled": Result.ALREADY_REVERSED,
}
KEYLESS = {"set_profile", "tick", "accept_step", "attempt", "clear_attempts", "forget"}
_NOT_REMEMBERED = {Result.OVERLOADED, Result.REPEATED, Result.REPEATED_WITH_DIFFERENCE}


class Refused(Exception):
    """A command is refused; the state it leaves is the one before it."""

    def __init__(self, result: Result, window: str = "", account: int = 0) -> None:
        super().__init__(result)
        self.result = result
        self.window = window
        self.account = account


class Known(Exception):
    """A command has been decided before."""

    def __init__(
        self, result: Result, first: Result, time_ns: int, window: str = "", account: int = 0
    ) -> None:
        super().__init__(result)
        self.outcome = (result, first, window, account, time_ns)


@dataclass
class Account:
    ledger: int
    code: int
    flags: int
    credit_limit: int
    profile: int
    created_ns: int
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0
    floor: int = 0
    cap: int = I64_MAX
    # (side, window) -> {period: [amount, count]}, the two newest periods only
    usage: dict[tuple[str, str], dict[int, list[int]]] = field(default_factory=dict)

    @property
    def available(self) -> int:
        return self.credits_posted - self.debits_posted - self.debits_pending + self.credit_limit


@dataclass
class Hold:
    debit: bytes
    credit: bytes
    amount: int
    day: int
    night: bool
    policy: int
    code: int
    created_ns: int
    meters: tuple[bytes, ...] = ()
    meter_side: str = "debit"
    expires_ns: int = 0
    closed_ns: int = 0
    state: str = OPEN
    captured: int = 0
    released: int = 0
    forced: bool = False
    incremented: bool = False
    queued: bool = False
    charged: list[tuple[bytes, str]] = field(default_factory=list)
    head: bytes = b""
    members: list[bytes] = field(default_factory=list)  # of a head: itself and the linked ones
    key: bytes | None = None

    @property
    def rest(self) -> int:
        return max(0, self.amount - self.captured)


@dataclass
class Attempt:
    step: int = -1
    count: int = 0
    row: int = 0
    window_ns: int = 0
    touched_ns: int = 0
    locked_until_s: int = 0


@dataclass
class State:
    accounts: dict[bytes, Account] = field(default_factory=dict)
    holds: dict[bytes, Hold] = field(default_factory=dict)
    closed: list[bytes] = field(default_factory=list)
    keys: dict[bytes, tuple[int, Result, str, int, int, bytes | None]] = field(default_factory=dict)
    attempts: dict[bytes, Attempt] = field(default_factory=dict)
    profiles: dict[int, dict[str, Any]] = field(default_factory=dict)
    forced: list[tuple[bytes, bytes, int, int]] = field(default_factory=list)
    horizon_ns: int = 0


Command = tuple[str, dict[str, Any]]
Outcome = tuple[Result, Result, str, int, int]


def period(window: str, day: int) -> int:
    if window == "week":
        date = datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
        return (date - datetime.timedelta(days=date.weekday())).toordinal()
    if window == "month":
        date = datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
        return date.year * 12 + date.month
    return day


class Model:
    """The oracle. `tables` are the maxima of accounts, holds, keys and attempts."""

    def __init__(self, *, accounts: int, holds: int, keys: int, attempts: int) -> None:
        self.state = State()
        self.tables = {"accounts": accounts, "holds": holds, "keys": keys, "attempts": attempts}
        self.chain: bytes | None = None
        self.in_chain = False
        self.placed: bytes | None = None

    # --- Running commands ---

    def apply(self, commands: list[Command], now: int) -> list[Outcome]:
        out: list[Outcome] = []
        at = 0
        while at < len(commands):
            end = at
            while commands[end][1].get("linked"):
                end += 1
            if end > at:
                out += self._chain(commands[at : end + 1], now)
            else:
                out.append(self._single(commands[at], now))
            at = end + 1
        return out

    def _single(self, command: Command, now: int) -> Outcome:
        name, arguments = command
        self.placed = None
        keyed = name not in KEYLESS
        try:
            if keyed:
                self._by_key(name, arguments, now)
        except Known as known:
            return known.outcome
        before = copy.deepcopy(self.state)
        window, account, result = "", 0, Result.DONE
        try:
            result = getattr(self, f"_{name}")(now, **_plain(name, arguments)) or Result.DONE
        except Refused as refused:
            self.state = before
            result, window, account = refused.result, refused.window, refused.account
        except Known as known:
            self.state = before
            return known.outcome
        outcome = (result, result, window, account, now)
        if keyed and result not in _NOT_REMEMBERED:
            self._remember(arguments, outcome)
        return outcome

    def _chain(self, commands: list[Command], now: int) -> list[Outcome]:
        before = copy.deepcopy(self.state)
        self.chain, self.in_chain = None, True
        out = []
        for command in commands:
            outcome = self._single(command, now)
            out.append(outcome)
            meaning = outcome[1] if outcome[0] == Result.REPEATED else outcome[0]
            if meaning not in (Result.DONE, Result.ORIGINAL_UNKNOWN):
                break
        else:
            self.in_chain = False
            return out
        self.in_chain = False
        self.state = before
        self.placed = None
        failed = len(out) - 1
        cause = out[failed][0]
        for at, (name, arguments) in enumerate(commands):
            if at == failed:
                if cause in _NOT_REMEMBERED or cause == Result.KEY_EXPIRED:
                    continue
            elif at < failed and out[at][0] == Result.REPEATED:
                continue
            else:
                failed_with = (Result.CHAIN_FAILED, Result.CHAIN_FAILED, "", 0, now)
                if at > failed:
                    try:
                        self._by_key(name, arguments, now)
                        out.append(failed_with)
                    except Known as known:
                        out.append(known.outcome)
                        continue
                else:
                    out[at] = failed_with
            if cause != Result.OVERLOADED and arguments.get("key"):
                try:
                    self._by_key(name, arguments, now)
                    self._remember(arguments, out[at])
                except Known as known:
                    out[at] = known.outcome
        return out

    def _by_key(self, name: str, arguments: dict[str, Any], now: int) -> None:
        key = arguments.get("key")
        if key in self.state.keys:
            digest, result, window, account, time_ns, _ = self.state.keys[key]
            same = digest == arguments.get("digest", 0)
            kind = Result.REPEATED if same else Result.REPEATED_WITH_DIFFERENCE
            raise Known(kind, result, time_ns, window, account)
        made = arguments.get("key_ns", 0)
        if made == 0:
            made = (arguments["day"] + 2) * DAY_NS if name == "hold" else now
        if made < self.state.horizon_ns and (key or name == "hold"):
            raise Known(Result.KEY_EXPIRED, Result.KEY_EXPIRED, now)
        if key and len(self.state.keys) >= self.tables["keys"]:
            raise Known(Result.OVERLOADED, Result.OVERLOADED, now)

    def _remember(self, arguments: dict[str, Any], outcome: Outcome) -> None:
        key = arguments.get("key")
        if key is None:
            return
        result, _, window, account, now = outcome
        self.state.keys[key] = (
            arguments.get("digest", 0), result, window, account, now, self.placed
        )  # fmt: skip
        if self.placed is not None:
            self.state.holds[self.placed].key = key

    # --- Accounts ---

    def _create_account(
        self, now: int, id: bytes, ledger: int, code: int, flags: int = 0,
        credit_limit: int = 0, profile: int = 0,
    ) -> None:  # fmt: skip
        old = self.state.accounts.get(id)
        if old is not None:
            mine = (ledger, code, flags, credit_limit, profile)
            same = mine == (old.ledger, old.code, old.flags, old.credit_limit, old.profile)
            kind = Result.REPEATED if same else Result.REPEATED_WITH_DIFFERENCE
            raise Known(kind, Result.DONE, old.created_ns)
        if len(self.state.accounts) >= self.tables["accounts"]:
            raise Refused(Result.OVERLOADED)
        if profile and profile not in self.state.profiles:
            raise Refused(Result.ACCOUNT_UNKNOWN)
        self.state.accounts[id] = Account(ledger, code, flags, credit_limit, profile, now)

    def _set_limits(
        self, now: int, id: bytes, credit_limit: int | None = None, profile: int | None = None,
        min_balance: int | None = None, max_balance: int | None = None,
    ) -> None:  # fmt: skip
        account = self._find(id)
        if profile and profile not in self.state.profiles:
            raise Refused(Result.ACCOUNT_UNKNOWN)
        if credit_limit is not None:
            account.credit_limit = credit_limit
        if profile is not None:
            account.profile = profile
        if min_balance is not None:
            account.floor = min_balance
        if max_balance is not None:
            account.cap = max_balance

    def _set_profile(
        self, now: int, profile: int, operation_min: int = 0, operation_max: int = 0,
        multiple: int = 1, windows: Mapping[tuple[str, str], tuple[int, int]] | None = None,
        version: int = 0,
    ) -> None:  # fmt: skip
        self.state.profiles[profile] = {
            "min": operation_min,
            "max": operation_max,
            "multiple": multiple,
            "windows": dict(windows or {}),
        }

    def _freeze(self, now: int, id: bytes, flags: int) -> None:
        self._find(id).flags |= flags

    def _unfreeze(self, now: int, id: bytes, flags: int) -> None:
        self._find(id).flags &= ~flags

    def _close(self, now: int, id: bytes) -> None:
        self._find(id).flags |= CLOSED

    def _find(self, id: bytes) -> Account:
        if id not in self.state.accounts:
            raise Refused(Result.ACCOUNT_UNKNOWN)
        return self.state.accounts[id]

    def _sides(self, debit: bytes, credit: bytes) -> tuple[Account, Account]:
        if debit == credit:
            raise Refused(Result.SAME_ACCOUNT_BOTH_SIDES)
        d, c = self._find(debit), self._find(credit)
        if d.ledger != c.ledger:
            raise Refused(Result.CURRENCY_DIFFERS)
        return d, c

    # --- Rules ---

    def _usable(self, d: Account, c: Account, hold: bool, meters: list[Account]) -> None:
        if any(a.flags & CLOSED for a in (d, c, *meters)):
            raise Refused(Result.ACCOUNT_CLOSED)
        if d.flags & FROZEN_DEBIT:
            raise Refused(Result.ACCOUNT_FROZEN_DEBIT)
        if c.flags & FROZEN_CREDIT:
            raise Refused(Result.ACCOUNT_FROZEN_CREDIT)
        if hold and any(a.flags & FROZEN_HOLD for a in (d, c, *meters)):
            raise Refused(Result.ACCOUNT_FROZEN_HOLD)

    def _room(self, a: Account, amount: int, *, annul: bool = False) -> None:
        if a.flags & DEBITS and a.available - a.floor < amount:
            if a.flags & POSITION:
                raise Refused(Result.LIQUIDITY_SHORT)
            if a.credit_limit and not annul:
                raise Refused(Result.CREDIT_LIMIT_REACHED)
            raise Refused(Result.FUNDS_SHORT)

    def _cap(self, a: Account, amount: int) -> None:
        total = a.credits_posted + a.credits_pending - a.debits_posted + amount
        if (a.flags & CREDITS and total > 0) or (a.cap != I64_MAX and total > a.cap):
            short = a.flags & POSITION
            raise Refused(Result.LIQUIDITY_SHORT if short else Result.BALANCE_CAP_REACHED)

    def _fits(self, d: Account, c: Account, amount: int) -> None:
        if (
            d.debits_posted + d.debits_pending + amount > I64_MAX
            or c.credits_posted + c.credits_pending + amount > I64_MAX
        ):
            raise Refused(Result.WOULD_OVERFLOW)

    def _in_range(self, ids: list[bytes], amount: int) -> None:
        for id in ids:
            profile = self.state.profiles.get(self.state.accounts[id].profile)
            if profile and (
                amount < profile["min"]
                or (profile["max"] and amount > profile["max"])
                or amount % profile["multiple"]
            ):
                raise Refused(Result.AMOUNT_OVER_RANGE, "operation")

    def _limits(
        self, which: int, place: int, id: bytes, side: str, amount: int, day: int, night: bool
    ) -> None:
        """Limits by value (which 0) or by count (1) of one account."""
        account = self.state.accounts[id]
        profile = self.state.profiles.get(account.profile)
        result = (Result.LIMIT_AMOUNT, Result.LIMIT_COUNT)[which]
        for window in WINDOWS if profile else ():
            most = profile["windows"].get((side, window), (0, 0))[which]
            if not most or (window == "night" and not night):
                continue
            kept = account.usage.get((side, window), {})
            now = period(window, day)
            if now not in kept and len(kept) == 2 and now < min(kept):
                raise Refused(result, window, place)
            if kept.get(now, [0, 0])[which] + (amount, 1)[which] > most:
                raise Refused(result, window, place)

    def _charge(self, id: bytes, side: str, amount: int, count: int, day: int, night: bool) -> bool:
        account = self.state.accounts[id]
        if not account.profile and count:  # an increment is counted with its hold
            return False
        for window in WINDOWS:
            if window == "night" and not night:
                continue
            kept = account.usage.setdefault((side, window), {})
            now = period(window, day)
            if now not in kept:
                if len(kept) == 2:
                    if now < min(kept):
                        continue
                    del kept[min(kept)]
                kept[now] = [0, 0]
            kept[now][0] = min(I64_MAX, kept[now][0] + amount)
            kept[now][1] += count
        return True

    def _give_back(self, hold: Hold, amount: int, count: int) -> None:
        for id, side in hold.charged:
            for window in WINDOWS:
                kept = self.state.accounts[id].usage.get((side, window), {})
                now = period(window, hold.day)
                if now in kept and (hold.night or window != "night"):
                    kept[now][0] -= amount
                    kept[now][1] -= count

    def _move(self, hold: Hold, pending: int, posted: int) -> None:
        d, c = self.state.accounts[hold.debit], self.state.accounts[hold.credit]
        d.debits_pending += pending
        d.debits_posted += posted
        c.credits_pending += pending
        c.credits_posted += posted

    # --- Postings ---

    def _transfer(
        self, now: int, debit: bytes, credit: bytes, amount: int, code: int = 0,
        forced: bool = False,
    ) -> None:  # fmt: skip
        if amount <= 0:
            raise Refused(Result.AMOUNT_NOT_POSITIVE)
        d, c = self._sides(debit, credit)
        if not forced:
            self._usable(d, c, False, [])
            self._room(d, amount)
            self._cap(c, amount)
        self._fits(d, c, amount)
        d.debits_posted += amount
        c.credits_posted += amount
        if forced:
            self.state.forced.append((b"", debit, amount, now))

    def _adjust(
        self, now: int, debit: bytes, credit: bytes, amount: int, reason: int, author: bytes,
        second: bytes,
    ) -> None:  # fmt: skip
        if amount <= 0:
            raise Refused(Result.AMOUNT_NOT_POSITIVE)
        d, c = self._sides(debit, credit)
        self._room(d, amount)
        self._fits(d, c, amount)
        d.debits_posted += amount
        c.credits_posted += amount

    # --- Holds ---

    def _hold(
        self, now: int, hold: bytes, debit: bytes, credit: bytes, amount: int, day: int,
        night: bool = False, code: int = 0, policy: int = 0, expires_after_s: int = 0,
        deadline_ns: int = 0, meters: tuple[bytes, ...] = (), meter_credit: bool = False,
        metered: bool = True,
    ) -> None:  # fmt: skip
        old = self.state.holds.get(hold)
        if old is not None:
            if old.state == "tombstone":
                raise Refused(Result.TOMBSTONED)
            same = (old.debit, old.credit) == (debit, credit) and (
                old.amount == amount or old.incremented or old.forced
            )
            kind = Result.REPEATED if same else Result.REPEATED_WITH_DIFFERENCE
            raise Known(kind, Result.DONE, old.created_ns)
        if len(self.state.holds) >= self.tables["holds"]:
            raise Refused(Result.OVERLOADED)
        if deadline_ns and now > deadline_ns:
            raise Refused(Result.TOO_LATE)
        if amount <= 0:
            raise Refused(Result.AMOUNT_NOT_POSITIVE)
        if len(set(meters)) < len(meters) or debit == credit:
            raise Refused(Result.SAME_ACCOUNT_BOTH_SIDES)
        for meter in meters:
            self._find(meter)
        d, c = self._sides(debit, credit)
        self._usable(d, c, True, [self.state.accounts[m] for m in meters])
        if metered:
            self._in_range([debit, credit, *meters], amount)
        self._room(d, amount)
        self._cap(c, amount)
        self._fits(d, c, amount)
        side = "credit" if meter_credit else "debit"
        limited = [(debit, "debit"), (credit, "credit"), *((m, side) for m in meters)]
        new = Hold(debit, credit, amount, day, night, policy, code, now, meters, side)
        if metered:
            for which in (0, 1):
                for place, (id, of) in enumerate(limited):
                    self._limits(which, place, id, of, amount, day, night)
            new.charged = [x for x in limited if self._charge(*x, amount, 1, day, night)]
        if expires_after_s:
            new.expires_ns = now + expires_after_s * SECOND_NS
        if self.in_chain and self.chain and self.state.holds[self.chain].state == OPEN:
            new.head = self.chain
            self.state.holds[self.chain].members.append(hold)
        else:
            self.chain = new.head = hold
            new.members = [hold]
        self.state.holds[hold] = new
        self._move(new, amount, 0)
        self.placed = hold

    def _head(self, id: bytes) -> Hold | None:
        hold = self.state.holds.get(id)
        return hold if hold is not None and hold.head == id else None

    def _members(self, hold: Hold) -> list[Hold]:
        return [self.state.holds[id] for id in hold.members]

    def _shut(self, id: bytes, hold: Hold, state: str, now: int) -> None:
        hold.state = state
        if not hold.queued:
            hold.queued = True
            hold.closed_ns = now
            self.state.closed.append(id)

    def _increment(self, now: int, hold: bytes, amount: int) -> None:
        h = self._head(hold)
        if h is None:
            raise Refused(Result.HOLD_UNKNOWN)
        if h.state != OPEN:
            raise Refused(_BY_STATE[h.state])
        if amount <= 0:
            raise Refused(Result.AMOUNT_NOT_POSITIVE)
        d, c = self.state.accounts[h.debit], self.state.accounts[h.credit]
        self._usable(d, c, True, [self.state.accounts[m] for m in h.meters])
        self._in_range([id for id, _ in h.charged], min(I64_MAX, h.amount + amount))
        self._room(d, amount)
        self._cap(c, amount)
        self._fits(d, c, amount)
        places = [(h.debit, "debit"), (h.credit, "credit")]
        places += [(m, h.meter_side) for m in h.meters]
        charged = list(h.charged)
        for place, limited in enumerate(places):
            if limited in charged:
                charged.remove(limited)
                self._limits(0, place, *limited, amount, h.day, h.night)
        h.amount += amount
        h.incremented = True
        self._move(h, amount, 0)
        for id, side in h.charged:
            self._charge(id, side, amount, 0, h.day, h.night)

    def _capture(
        self, now: int, hold: bytes, amount: int = 0, final: bool = True, tolerance: int = 0,
        forced: bool = False, debit: bytes | None = None, credit: bytes | None = None,
    ) -> None:  # fmt: skip
        h = self._head(hold)
        if h is None and (not forced or hold in self.state.holds):
            raise Refused(Result.HOLD_UNKNOWN)
        if h is None or h.state == "tombstone":
            self._capture_unheld(now, hold, h, amount, forced, debit, credit)
        elif h.state == OPEN:
            self._capture_open(now, hold, h, amount, final, tolerance, forced)
        elif forced and h.state in ("released", "expired"):
            if amount < 0:
                raise Refused(Result.AMOUNT_NOT_POSITIVE)
            members = self._members(h)
            total = (amount or h.amount) + sum(m.amount for m in members[1:])
            for m in members:
                self._fits(self.state.accounts[m.debit], self.state.accounts[m.credit], total)
            for id, m in zip(h.members, members, strict=True):
                self._capture_gone(now, id, m, amount if m is h and amount else m.amount)
        else:
            raise Refused(_BY_STATE[h.state])

    def _capture_gone(self, now: int, id: bytes, h: Hold, take: int) -> None:
        h.captured += take
        h.released = h.rest
        h.forced = True
        self._move(h, 0, take)
        self._shut(id, h, "captured", now)
        self.state.forced.append((id, h.debit, take, now))

    def _capture_unheld(
        self, now: int, id: bytes, h: Hold | None, amount: int, forced: bool,
        debit: bytes | None, credit: bytes | None,
    ) -> None:  # fmt: skip
        if not forced or debit is None or credit is None:
            raise Refused(Result.HOLD_UNKNOWN if h is None else Result.TOMBSTONED)
        if h is None and len(self.state.holds) >= self.tables["holds"]:
            raise Refused(Result.OVERLOADED)
        if amount <= 0:
            raise Refused(Result.AMOUNT_NOT_POSITIVE)
        d, c = self._sides(debit, credit)
        self._fits(d, c, amount)
        if h is None:
            h = Hold(debit, credit, amount, 0, False, 0, 0, now, head=id, members=[id])
            self.state.holds[id] = h
        h.debit, h.credit, h.amount = debit, credit, amount
        self._capture_gone(now, id, h, amount)

    def _capture_open(
        self, now: int, id: bytes, h: Hold, amount: int, final: bool, tolerance: int, forced: bool
    ) -> None:
        over = amount - h.rest if amount else 0
        if amount < 0:
            raise Refused(Result.AMOUNT_NOT_POSITIVE)
        if over > 0 and not forced and h.captured + amount - h.amount > tolerance:
            raise Refused(Result.OVER_HOLD)
        credits = [self.state.accounts[m.credit] for m in self._members(h)]
        if not forced and any(a.flags & CLOSED for a in credits):
            raise Refused(Result.ACCOUNT_CLOSED)
        if over > 0:
            d, c = self.state.accounts[h.debit], self.state.accounts[h.credit]
            if not forced:
                self._room(d, over)
                self._cap(c, over)
            self._fits(d, c, over)
        take = amount or h.rest
        final = final or take >= h.rest
        for at, (name, m) in enumerate(zip(h.members, self._members(h), strict=True)):
            if at and not final:
                break
            part = take if at == 0 else m.rest
            held = min(part, m.rest)
            left = m.rest - held if final else 0
            m.captured += part
            self._move(m, -held - left, part)
            if final:
                m.released = left
                if left:
                    self._give_back(m, left, 0)
                self._shut(name, m, "captured", now)
            if forced and part > held:
                m.forced = True
                self.state.forced.append((name, m.debit, part - held, now))

    def _release_all(self, now: int, h: Hold, state: str) -> None:
        for id, m in zip(h.members, self._members(h), strict=True):
            rest = m.rest
            self._move(m, -rest, 0)
            m.released = rest
            self._give_back(m, rest, 0 if m.captured else 1)
            if not m.captured:
                m.charged = []
            self._shut(id, m, "captured" if m.captured else state, now)

    def _release(self, now: int, hold: bytes, tombstone: bool = True) -> Result | None:
        h = self._head(hold)
        if h is None:
            if not tombstone or hold in self.state.holds:
                raise Refused(Result.HOLD_UNKNOWN)
            if len(self.state.holds) >= self.tables["holds"]:
                raise Refused(Result.OVERLOADED)
            new = Hold(b"", b"", 0, 0, False, 0, 0, now, head=hold, members=[hold])
            self.state.holds[hold] = new
            self._shut(hold, new, "tombstone", now)
            return Result.ORIGINAL_UNKNOWN
        if h.state != OPEN:
            raise Refused(_BY_STATE[h.state])
        self._release_all(now, h, "released")
        return None

    def _annul(self, now: int, hold: bytes) -> None:
        h = self._head(hold)
        if h is None:
            raise Refused(Result.HOLD_UNKNOWN)
        if h.state not in (OPEN, "captured"):
            raise Refused(_BY_STATE[h.state])
        if h.state == OPEN:
            self._release_all(now, h, "released")
        for m in reversed(self._members(h)):
            if m.state != "captured":
                continue
            d, c = self.state.accounts[m.debit], self.state.accounts[m.credit]
            if d.flags & CLOSED:
                raise Refused(Result.ACCOUNT_CLOSED)
            self._room(c, m.captured, annul=True)
            if d.flags & CREDITS:
                self._cap(d, m.captured)
            self._fits(c, d, m.captured)
            c.debits_posted += m.captured
            d.credits_posted += m.captured
            self._give_back(m, min(m.captured, m.amount), 1)
            m.charged = []
            m.state = "annulled"

    def _tick(self, now: int) -> None:
        due = [
            (h.expires_ns, id)
            for id, h in self.state.holds.items()
            if h.state == OPEN and h.policy == 2 and h.head == id and h.expires_ns <= now
        ]
        for _, id in sorted(due, key=lambda x: (x[0], x[1][::-1])):
            self._release_all(now, self.state.holds[id], "expired")

    # --- Codes ---

    def _accept_step(self, now: int, key: bytes, step: int) -> Result | None:
        a = self.state.attempts.get(key)
        if a is None and len(self.state.attempts) >= self.tables["attempts"]:
            raise Refused(Result.OVERLOADED)
        a = a or Attempt()
        if step <= a.step:
            return Result.REPEATED
        a.step = step
        self._touch(key, a, now)
        return None

    def _touch(self, key: bytes, a: Attempt, now: int) -> None:
        """Move the entry to the end: `forget` looks at the longest idle first."""
        self.state.attempts.pop(key, None)
        self.state.attempts[key] = a
        a.touched_ns = now

    def _attempt(
        self, now: int, key: bytes, limit: int, window_s: int, lock_s: int, row_limit: int
    ) -> Result | None:
        a = self.state.attempts.get(key)
        if a is None and len(self.state.attempts) >= self.tables["attempts"]:
            raise Refused(Result.OVERLOADED)
        a = a or Attempt()
        if now // SECOND_NS < a.locked_until_s:
            return Result.LIMIT_COUNT
        self._touch(key, a, now)
        a.locked_until_s = 0
        if a.count == 0 or (window_s and now - a.window_ns >= window_s * SECOND_NS):
            a.count, a.window_ns = 0, now
        a.count += 1
        a.row += 1
        if row_limit and a.row >= row_limit:
            a.count, a.locked_until_s = 0, UNTIL_UNLOCKED
            return Result.LIMIT_COUNT
        if limit and a.count >= limit:
            a.count, a.locked_until_s = 0, -(-now // SECOND_NS) + lock_s
            return Result.LIMIT_COUNT
        return None

    def _clear_attempts(self, now: int, key: bytes, row: bool = True) -> None:
        a = self.state.attempts.get(key)
        if a is None:
            return
        a.count = 0
        if row:
            a.row = a.locked_until_s = 0
        self._touch(key, a, now)

    # --- Forgetting ---

    def _forget(self, now: int, before_ns: int) -> None:
        state = self.state
        state.horizon_ns = max(state.horizon_ns, before_ns)
        for key, (_, _, _, _, time_ns, placed) in list(state.keys.items()):
            if time_ns >= before_ns:
                break
            held = state.holds.get(placed) if placed else None
            if held is not None and held.key == key and held.state == OPEN:
                continue
            if held is not None and held.key == key:
                held.key = None
            del state.keys[key]
        while state.closed and state.holds[state.closed[0]].closed_ns < before_ns:
            for id in state.holds[state.closed[0]].members:
                state.closed.remove(id)
                del state.holds[id]
        for key, a in list(state.attempts.items()):
            if a.touched_ns >= before_ns:
                break
            if a.locked_until_s <= before_ns // SECOND_NS:
                del state.attempts[key]


def _plain(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments a command has of its own."""
    common = {"linked", "digest", "key_ns"} | (set() if name in KEYLESS else {"key"})
    return {k: v for k, v in arguments.items() if k not in common}
