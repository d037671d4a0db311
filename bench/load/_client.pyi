from collections.abc import Iterable
from typing import final

from core_ext._counters import Histogram
from core_ext._mac import MacKey

@final
class Report:
    latency: Histogram
    in_time: int
    elapsed_ns: int
    cpu_ns: int
    unanswered: int
    unmatched: int
    malformed: int
    unasked: int
    bad_frames: int
    bad_macs: int
    lost: int
    bytes_sent: int
    bytes_received: int
    exhausted: bool
    def __new__(cls) -> Report: ...
    @property
    def rate_per_s(self) -> float: ...
    @property
    def errors(self) -> int: ...
    @property
    def codes(self) -> dict[str, int]: ...
    @property
    def complaints(self) -> dict[str, int]: ...

@final
class Load:
    def __new__(
        cls,
        fds: Iterable[int],
        keys: Iterable[MacKey],
        *,
        sent: Iterable[int],
        received: Iterable[int],
        depth: int = 1,
        frame_bytes_max: int = 8192,
        verify: bool = False,
        echo: bool = False,
        iso: bool = False,
    ) -> Load: ...
    def run(
        self,
        payloads: list[bytes],
        seconds: float,
        *,
        repeat: bool = False,
        drain_s: float = 5.0,
    ) -> Report: ...

def echo_server(listen_fd: int, stop_fd: int) -> int: ...
