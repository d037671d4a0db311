from collections.abc import Iterable
from typing import final

from core_ext._counters import Histogram
from core_ext._mac import MacKey

@final
class Report:
    latency: Histogram
    lag: Histogram
    in_time: int
    elapsed_ns: int
    cpu_ns: int
    worst_ns: int
    worst_at_ns: int
    due: int
    backlog_max: int
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
    def __new__(cls, seconds: float = 0.0) -> Report: ...
    @property
    def timeline(self) -> list[tuple[int, int]]: ...
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
    def run_open(
        self,
        payloads: list[bytes],
        rate_per_s: float,
        seconds: float,
        *,
        poisson: bool = False,
        seed: int = 1,
        repeat: bool = False,
        drain_s: float = 5.0,
    ) -> Report: ...

def echo_server(listen_fd: int, stop_fd: int) -> int: ...
