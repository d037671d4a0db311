"""The limits in force and the ledger accounts that count them.

Limits are dated configuration (`switch.limits`); the ledger knows profiles, caps per side and
window, and counts per account. This is the bridge: it keeps the ledger's profiles equal to what
the configuration says for the business date, and makes the accounts that a posting needs.
"""

from core_ext import Batch, Ledger, Result
from switch.calendar import Calendar, day_date
from switch.config import Config
from switch.flows.registry import account_id
from switch.limits import SUM_MAX, Limits, WindowRule, resolve

CURRENCY_NUMBERS = {"PYG": 600, "USD": 840, "CLP": 152, "COP": 170}
ACCOUNT_METER = 90

_SCOPES = ("card", "person", "depositor", "terminal", "cashier", "branch", "network")
_TIERS_MAX = 64


class LimitBook:
    """Profiles and counting accounts; `refresh` once per business date, before work of that date."""

    def __init__(self, *, config: Config, calendar: Calendar, ledger: Ledger) -> None:
        self._config = config
        self._calendar = calendar
        self._ledger = ledger
        self._day = -1
        self._tiers: list[str] = []
        self._accounts: dict[str, bytes] = {}
        self._counted_kinds: set[str] = set()
        self._night = False
        self._counted: set[tuple[str, str]] = set()
        self.limits: Limits

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
        tiers = sorted({rule.tier for rule in self.limits.windows} | {"", "basic"})
        assert len(tiers) <= _TIERS_MAX, "the configuration bounds the number of tiers"
        self._tiers = tiers
        rules = (*self.limits.windows, *self.limits.declarations)
        self._counted = {(rule.scope, rule.kind) for rule in rules}
        self._night = any(rule.window == "night" for rule in rules)
        self._counted_kinds = {kind for scope, kind in self._counted if scope != "card"}
        self._set_profiles(now_ns)

    def is_night(self, now_ns: int) -> bool:
        """True where a night window counts this instant; never where no rule has one."""
        return self._night and self._calendar.is_night(now_ns)

    def profile(self, scope: str, tier: str = "") -> int:
        """Number of the ledger profile for accounts of a scope and tier."""
        index = self._tiers.index(tier) if tier in self._tiers else 0
        return 1 + _SCOPES.index(scope) * _TIERS_MAX + index

    def meters(self, *subjects: tuple[str, str, str], kind: str) -> tuple[bytes, ...]:
        """Accounts whose counters a posting of `kind` charges beside its own accounts.

        `subjects` are (scope, id, tier). Only scopes that a rule or a declaration speaks of have
        one, so that a fresh configuration pays nothing for the others.
        """
        return tuple(
            self._meter(scope, subject, tier, kind)
            for scope, subject, tier in subjects
            if subject and (scope, kind) in self._counted
        )

    def counts(self, kind: str) -> bool:
        """False while no rule or declaration counts anything but cards for this kind."""
        return kind in self._counted_kinds

    def usage(self, scope: str, subject: str, kind: str, window: str, day: int) -> int:
        """Sum of a window so far, for thresholds."""
        meter = account_id(f"meter:{scope}:{kind}:{subject}")
        side = "debit" if kind == "cash_out" else "credit"
        return self._ledger.usage(meter, side, window, day)[0]

    def account(self, name: str, currency: str, book: int, code: int, now_ns: int) -> bytes:
        """Id of a book-keeping account, made on first use."""
        found = self._accounts.get(name)
        if found is None:
            found = account_id(name)
            self._create(found, ledger_number(currency, book), code, 0, now_ns)
            self._accounts[name] = found
        return found

    def _meter(self, scope: str, subject: str, tier: str, kind: str) -> bytes:
        found = account_id(f"meter:{scope}:{kind}:{subject}")
        if self._ledger.balance(found) is None:
            self._create(found, 1, ACCOUNT_METER, self.profile(scope, tier), 0)
        return found

    def _create(self, account: bytes, ledger: int, code: int, profile: int, now_ns: int) -> None:
        if self._ledger.balance(account) is not None:
            return
        batch = Batch()
        batch.create_account(account, ledger=ledger, code=code, profile=profile)
        result = self._ledger.apply(batch, now_ns)[0]
        assert result == Result.DONE, f"account could not be made: {Result(result).name}"

    def _set_profiles(self, now_ns: int) -> None:
        batch = Batch()
        for scope in _SCOPES:
            for tier in self._tiers:
                windows = self.limits.caps(scope, tier)
                for declaration in self.limits.declarations:
                    if declaration.scope == scope:
                        side = "debit" if declaration.kind == "cash_out" else "credit"
                        windows.setdefault((side, declaration.window), (SUM_MAX, 0))
                batch.set_profile(
                    self.profile(scope, tier), windows=windows, version=int(self.version[:8], 16)
                )
        results = self._ledger.apply(batch, now_ns)
        assert all(r == Result.DONE for r in results), "profiles are always acceptable"


def ledger_number(currency: str, book: int) -> int:
    """Ledger of a currency and book: postings never leave it."""
    return CURRENCY_NUMBERS[currency] * 10 + book


__all__ = ["LimitBook", "WindowRule", "ledger_number"]
