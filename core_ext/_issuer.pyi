from typing import final

from core_ext._ledger import Ledger
from core_ext._mac import SeedVault
from core_ext._records import Records

@final
class Issuer:
    wants_clearing: bool
    def __new__(
        cls,
        *,
        records: Records,
        ledger: Ledger,
        vault: SeedVault,
        digits: int,
        algorithm: str,
        step_s: int,
        back: int,
        forward: int,
        max_cards: int,
        ocra_above: int,
        fingerprint_key: bytes,
        authorization_key: bytes,
    ) -> Issuer: ...
    def set_rules(
        self,
        kind: str,
        open: bool,
        bounds: tuple[int, int, int],
        tiers: dict[str, tuple[int, int, int]],
        night: bool,
    ) -> None: ...
    def undecided(self, after_ns: int, before_ns: int, limit: int) -> list[tuple[bytes, int]]: ...
    def add_clearing(self, currency: str, account: bytes) -> None: ...
