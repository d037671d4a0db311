from typing import final

from core_ext._ledger import Ledger

def masked_name(name: str) -> tuple[str, str | None] | None: ...
def account_id(name: bytes) -> bytes: ...

@final
class DepositRules:
    def __new__(cls, *, ledger: Ledger, told: bytearray) -> DepositRules: ...
    def set_rules(
        self,
        *,
        open: bool,
        profiles: dict[str, int],
        declarations: list[tuple[str, str, str, int]],
        structuring: bool,
        percent: int,
        count: int,
    ) -> None: ...
