from collections.abc import Iterable, Iterator
from typing import final

from core_ext._batch import Batch
from core_ext._sink import Replica, Sink
from core_ext.results import Balance, HoldView

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
