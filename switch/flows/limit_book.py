"""The limits in force and the ledger accounts that count them.

Limits are dated configuration (`switch.limits`); the ledger knows profiles, caps per side and
window, and counts per account. This is the bridge: it keeps the ledger's profiles equal to what
the configuration says for the business date, and makes the accounts that a posting needs.
"""

import msgspec

from core_ext import Batch, Ledger, Records, Result
from switch.calendar import Calendar, day_date
from switch.config import Config
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.registry import account_id
from switch.limits import SUM_MAX, Limits, resolve

METERS = 1  # ledger of the accounts that only count
ACCOUNT_METER = 90

_SCOPES = ("card", "person", "depositor", "terminal", "cashier", "branch", "network")
_TIERS_MAX = 4096  # ever named: 7 scopes of so many are below the ledger's 65535 profiles
_TIERS = b"tiers"  # in the record store: the tiers in the order in which they were first named

# A network is counted by its position account, which a deposit debits; all others by accounts
# that a cash_out debits.
_DEBITED_BY = {"network": "deposit"}


class LimitBook:
    """Profiles and counting accounts; `refresh` once per business date, before its work."""

    def __init__(
        self, *, config: Config, calendar: Calendar, ledger: Ledger, records: Records
    ) -> None:
        self._config = config
        self._calendar = calendar
        self._ledger = ledger
        self._records = records
        self._day = -1
        self._tiers: list[str] = []
        self._accounts: dict[str, bytes] = {}
        self._counted_kinds: set[str] = set()
        self._night = False
        self._counted: set[tuple[str, str]] = set()
        self.limits: Limits

    def reconfigure(self, config: Config) -> None:
        """Go on with other limits: the next `refresh` brings profiles and version to them."""
        self._config = config
        self._day = -1

    @property
    def version(self) -> str:
        return self.limits.version

    def refresh(self, now_ns: int) -> None:
        """Bring limits and profiles to the business date of `now_ns`; cheap on the same date."""
        day = self._calendar.business(now_ns).number
        if day == self._day:
            return
        self._day = day
        self.limits = resolve(self._config, day_date(day))
        if self._config.node.simulator:
            self._allow_any_multiple()
        self._name_tiers()
        rules = [(r.scope, r.kind, r.window) for r in self.limits.windows]
        rules += [(r.scope, r.kind, r.window) for r in self.limits.declarations]
        self._counted = {(scope, kind) for scope, kind, _ in rules}
        self._night = any(window == "night" for _, _, window in rules)
        self._counted_kinds = {kind for scope, kind in self._counted if scope != "card"}
        self._set_profiles(now_ns)

    def _allow_any_multiple(self) -> None:
        """In the simulator profile the last digits of an amount choose the answer."""
        for rules in (self.limits.operation, self.limits.tiers):
            for name, rule in rules.items():
                rules[name] = msgspec.structs.replace(rule, multiple=1)  # type: ignore[index]

    @property
    def has_night(self) -> bool:
        """True where a rule has a night window, so that `is_night` may change within a day."""
        return self._night

    def is_night(self, now_ns: int) -> bool:
        """True where a night window counts this instant; never where no rule has one."""
        return self._night and self._calendar.is_night(now_ns)

    def profile(self, scope: str, tier: str = "") -> int:
        """Number of the ledger profile for accounts of a scope and tier."""
        index = self._tiers.index(tier) if tier in self._tiers else 0
        return 1 + _SCOPES.index(scope) * _TIERS_MAX + index

    def meters(self, *subjects: tuple[str, str, str], kind: str) -> tuple[bytes, ...] | None:
        """Accounts whose counters a posting of `kind` charges beside its own accounts.

        `subjects` are (scope, id, tier). Only scopes that a rule or a declaration speaks of have
        one, so that a fresh configuration pays nothing for the others. None: the ledger has no
        room for one more account.
        """
        found = []
        for scope, subject, tier in subjects:
            if subject and (scope, kind) in self._counted:
                meter = meter_id(scope, subject, kind)
                profile = self.profile(scope, tier)
                if self._create(meter, METERS, ACCOUNT_METER, profile, 0) != Result.DONE:
                    return None
                found.append(meter)
        return tuple(found)

    def counts(self, kind: str) -> bool:
        """False while no rule or declaration counts anything but cards for this kind."""
        return kind in self._counted_kinds

    def scopes(self, kind: str) -> set[str]:
        """Whose operations of this kind a rule or a declaration counts, cards included."""
        return {scope for scope, counted in self._counted if counted == kind}

    def usage(
        self, counter: bytes, scope: str, kind: str, window: str, day: int
    ) -> tuple[int, int]:
        """Sum and count of a window so far, for thresholds; `counter` is a meter or a network's
        account."""
        return self._ledger.usage(counter, side_of(scope, kind), window, day)

    def account(self, name: str, currency: str, book: int, code: int, now_ns: int) -> bytes:
        """Id of a book-keeping account, made on first use."""
        found = self._accounts.get(name)
        if found is None:
            found = account_id(name)
            result = self._create(found, ledger_number(currency, book), code, 0, now_ns)
            assert result == Result.DONE, f"account could not be made: {result.name}"
            self._accounts[name] = found
        return found

    def _create(self, account: bytes, ledger: int, code: int, profile: int, now_ns: int) -> Result:
        if self._ledger.balance(account) is not None:
            return Result.DONE
        batch = Batch()
        batch.create_account(account, ledger=ledger, code=code, profile=profile)
        return Result(self._ledger.apply(batch, now_ns)[0])

    def _name_tiers(self) -> None:
        """Give every tier a place that it keeps for ever: accounts name their profile by it."""
        if not self._tiers:
            found = self._records.get(ops.META, _TIERS)
            self._tiers = [""] if found is None else msgspec.msgpack.decode(found, type=list[str])
        named = (*self._config.business.tiers, *(rule.tier for rule in self.limits.windows))
        new = [tier for tier in dict.fromkeys(named) if tier not in self._tiers]
        if new:
            self._tiers += new
            assert len(self._tiers) <= _TIERS_MAX, "tiers are renamed without end"
            self._records.put(ops.META, _TIERS, ops.encode(self._tiers))

    def _set_profiles(self, now_ns: int) -> None:
        batch = Batch()
        for scope in _SCOPES:
            for tier in self._tiers:
                windows = self.limits.caps(scope, tier, _DEBITED_BY.get(scope, "cash_out"))
                for rule in self.limits.declarations:
                    if rule.scope == scope:
                        side = side_of(scope, rule.kind)
                        windows.setdefault((side, rule.window), (SUM_MAX, 0))
                batch.set_profile(
                    self.profile(scope, tier), windows=windows, version=int(self.version[:8], 16)
                )
        results = self._ledger.apply(batch, now_ns)
        assert all(r == Result.DONE for r in results), "profiles are always acceptable"


def side_of(scope: str, kind: str) -> str:
    """Side of a scope's accounts on which a kind of operation counts."""
    return "debit" if kind == _DEBITED_BY.get(scope, "cash_out") else "credit"


def meter_id(scope: str, subject: str, kind: str) -> bytes:
    """Account that counts the operations of one kind of a subject, such as a terminal."""
    return account_id(f"meter:{scope}:{kind}:{subject}")


def ledger_number(currency: str, book: int) -> int:
    """Ledger of a currency and book: postings never leave it."""
    return int(norms.currency(currency).number) * 10 + book
