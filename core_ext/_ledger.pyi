from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import final

from core_ext._sink import Replica, Sink
from core_ext.results import Balance, HoldView, Outcome

DEBITS_MUST_NOT_EXCEED_CREDITS: int
CREDITS_MUST_NOT_EXCEED_DEBITS: int
FROZEN_DEBIT: int
FROZEN_CREDIT: int
FROZEN_HOLD: int
CLOSED: int
POSITION: int
NEVER_AUTO: int
ASK_NETWORK: int
AUTO_AFTER: int
NO_LIMIT: int
UNTIL_UNLOCKED: int
LINK_MAX: int
BATCH_MAX: int
TICK_MAX: int
ACCOUNT_BYTES: int
USAGE_BYTES: int
HOLD_BYTES: int
KEY_BYTES: int
ATTEMPT_BYTES: int

@final
class Batch:
    def __new__(cls) -> Batch: ...
    def __len__(self) -> int: ...
    def clear(self) -> None: ...
    def outcome(self, index: int) -> Outcome: ...
    def create_account(
        self,
        id: bytes,
        *,
        ledger: int,
        code: int,
        flags: int = 0,
        credit_limit: int = 0,
        profile: int = 0,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def set_limits(
        self,
        id: bytes,
        *,
        credit_limit: int | None = None,
        profile: int | None = None,
        min_balance: int | None = None,
        max_balance: int | None = None,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def set_profile(
        self,
        profile: int,
        *,
        operation_min: int = 0,
        operation_max: int = 0,
        multiple: int = 1,
        windows: Mapping[tuple[str, str], tuple[int, int]] | None = None,
        version: int = 0,
    ) -> None: ...
    def freeze(
        self,
        id: bytes,
        flags: int,
        *,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def unfreeze(
        self,
        id: bytes,
        flags: int,
        *,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def close(
        self,
        id: bytes,
        *,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def transfer(
        self,
        debit: bytes,
        credit: bytes,
        amount: int,
        *,
        code: int = 0,
        forced: bool = False,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def hold(
        self,
        hold: bytes,
        debit: bytes,
        credit: bytes,
        amount: int,
        *,
        day: int,
        night: bool = False,
        code: int = 0,
        policy: int = 0,
        expires_after_s: int = 0,
        deadline_ns: int = 0,
        meters: Sequence[bytes] = (),
        meter_credit: bool = False,
        metered: bool = True,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def increment(
        self,
        hold: bytes,
        amount: int,
        *,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def capture(
        self,
        hold: bytes,
        amount: int = 0,
        *,
        final: bool = True,
        tolerance: int = 0,
        forced: bool = False,
        debit: bytes | None = None,
        credit: bytes | None = None,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def release(
        self,
        hold: bytes,
        *,
        tombstone: bool = True,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def annul(
        self,
        hold: bytes,
        *,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def adjust(
        self,
        debit: bytes,
        credit: bytes,
        amount: int,
        *,
        reason: int,
        author: bytes,
        second: bytes,
        linked: bool = False,
        key: bytes | None = None,
        digest: int = 0,
        key_ns: int = 0,
    ) -> None: ...
    def tick(self) -> None: ...
    def accept_step(self, key: bytes, step: int) -> None: ...
    def attempt(
        self, key: bytes, *, limit: int, window_s: int, lock_s: int, row_limit: int
    ) -> None: ...
    def clear_attempts(self, key: bytes, *, row: bool = True) -> None: ...
    def forget(self, before_ns: int) -> None: ...

@final
class NullSink(Sink):
    records: int
    bytes_taken: int

@final
class Ledger(Replica):
    def __new__(
        cls,
        *,
        accounts_max: int = 1_000_000,
        holds_max: int = 2_000_000,
        keys_max: int = 2_000_000,
        attempts_max: int = 1_000_000,
        sink: Sink | None = None,
    ) -> Ledger: ...
    def reserve(
        self, *, accounts: int = 0, holds: int = 0, keys: int = 0, attempts: int = 0
    ) -> None: ...
    def apply(self, batch: Batch, now_ns: int) -> list[int]: ...
    def balance(self, id: bytes) -> Balance | None: ...
    def hold(self, hold: bytes) -> HoldView | None: ...
    def usage(self, id: bytes, side: str, window: str, day: int) -> tuple[int, int]: ...
    def locked_until(self, key: bytes) -> int: ...
    def last_step(self, key: bytes) -> int | None: ...
    def attempts(self, key: bytes) -> tuple[int, int]: ...
    def totals(self) -> dict[int, tuple[int, int, int, int]]: ...
    def counts(self) -> dict[str, int]: ...
    def forced(self) -> list[tuple[bytes, bytes, int, int]]: ...
    def accounts(self) -> Iterator[tuple[bytes, Balance]]: ...
    def open_holds(self) -> Iterator[tuple[bytes, HoldView]]: ...
    def digest(self) -> int: ...
    @property
    def horizon_ns(self) -> int: ...
    def check(self) -> list[str]: ...
    def dump(self) -> Iterator[bytes]: ...
    def load(self, chunks: Iterable[bytes]) -> None: ...
