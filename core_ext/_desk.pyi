from typing import Any, final

from core_ext._iso8583 import Layout
from core_ext._lanes import Lane
from core_ext._mac import MacKey
from core_ext._straight import Straight

@final
class HostLane(Lane):
    ready: bool
    @property
    def taken(self) -> int: ...
    def __new__(
        cls,
        owner: Any,
        fd: int,
        *,
        straight: Straight,
        layout: Layout,
        key: MacKey,
        data_key: bytes,
        fingerprint_key: bytes,
        link: str,
        clock_tolerance_s: int,
        in_flight_max: int,
        currencies: dict[str, str],
    ) -> HostLane: ...
    def rekey(self, key: MacKey, data_key: bytes) -> None: ...
    def retire(self) -> None: ...
