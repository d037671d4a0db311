from typing import Any, final

from core_ext._deposit import DepositRules
from core_ext._issuer import Issuer
from core_ext._ledger import Ledger
from core_ext._mac import MacKey
from core_ext._records import Records

WHY: tuple[str, ...]

@final
class Straight:
    near: bool
    @property
    def issuer(self) -> Issuer: ...
    @property
    def deposits(self) -> DepositRules: ...
    def __new__(
        cls,
        *,
        issuer: Issuer,
        records: Records,
        ledger: Ledger,
        fingerprint_key: bytes,
        told: bytearray,
    ) -> Straight: ...
    def set_times(
        self,
        *,
        from_ns: int,
        until_ns: int,
        day_start_ns: int,
        today: str,
        yesterday: str,
        business_date: str,
        day: int,
        first_operation: int,
        limits_version: str,
        night: bool,
        utc_offset_ns: int,
    ) -> None: ...
    def set_ticket(
        self,
        heading: list[str],
        titles: tuple[str, str],
        branch_line: int,
        branch_at: int,
        key: MacKey,
    ) -> None: ...
    def expire(self) -> None: ...
    def covers(self, now_ns: int) -> bool: ...
    def forget_ticket(self) -> None: ...
    def add_money(
        self, currency: str, clearing: bytes, issuer: bytes, sign: str, exponent: int
    ) -> None: ...
    def add_position(self, network: str, currency: str, account: bytes) -> None: ...
    @property
    def counts(self) -> dict[str, int]: ...
    @property
    def deposit_counts(self) -> dict[str, int]: ...
    def cash_out(self, terminal: str, message: Any, now_ns: int) -> tuple[str, str] | str: ...
    def deposit(self, terminal: str, message: Any, now_ns: int) -> tuple[str, str] | str: ...
