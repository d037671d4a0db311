from collections.abc import Mapping, Sequence
from typing import final

from core_ext.results import Outcome

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
