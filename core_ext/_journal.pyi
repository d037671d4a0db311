from collections.abc import Callable, Iterable
from typing import NamedTuple, final

from typing_extensions import Buffer

from core_ext._sink import Replica, Sink

class JournalFull(Exception): ...
class JournalFailed(Exception): ...

class Corruption(Exception):
    segment: int
    offset: int
    reason: str
    def __init__(self, segment: int, offset: int, reason: str) -> None: ...

class Position(NamedTuple):
    seq: int
    chain: bytes
    segment: int
    offset: int

BEGINNING: Position

def checksum(data: Buffer, *, portable: bool = False) -> int: ...
def segment_path(directory: str, segment: int) -> str: ...
def segment_numbers(directory: str) -> list[int]: ...
def segment_first_seq(directory: str, segment: int) -> int: ...
def prune(directory: str, before_seq: int, *, remove: Callable[[str], object] = ...) -> int: ...

@final
class Journal(Sink):
    directory: str
    segment_bytes: int
    group_bytes_max: int
    reserve_bytes: int
    partition: int
    epoch: int
    direct: bool
    def __new__(
        cls,
        directory: str,
        *,
        segment_bytes: int = ...,
        group_bytes_max: int = ...,
        direct: bool = True,
        partition: int = 0,
        epoch: int = 1,
        reserve_bytes: int = ...,
        fail_after_bytes: int = 0,
        fail_sync_at: int = 0,
    ) -> Journal: ...
    def start(self, after: Position | None = None) -> None: ...
    def close(self, flush: bool = True) -> None: ...
    def append(self, kind: int, payload: bytes) -> int: ...
    def seal(self, now_ns: int = 0) -> int: ...
    def fileno(self) -> int: ...
    def clear_event(self) -> int: ...
    def chain_at(self, seq: int) -> bytes | None: ...
    @property
    def position(self) -> Position: ...
    @property
    def durable_seq(self) -> int: ...
    @property
    def next_seq(self) -> int: ...
    @property
    def open_count(self) -> int: ...
    @property
    def open_bytes(self) -> int: ...
    @property
    def busy(self) -> bool: ...
    @property
    def groups(self) -> int: ...
    @property
    def written_bytes(self) -> int: ...
    @property
    def zeroed_bytes(self) -> int: ...
    @property
    def room_bytes(self) -> int: ...
    @property
    def failure(self) -> str | None: ...

@final
class Group:
    first_seq: int
    count: int
    time_ns: int
    epoch: int
    partition: int
    segment: int
    offset: int
    chain: bytes
    @property
    def last_seq(self) -> int: ...
    def records(self) -> list[tuple[int, bytes]]: ...

@final
class Reader:
    directory: str
    torn: str | None
    def __new__(
        cls,
        directory: str,
        *,
        after_seq: int = 0,
        chain: bytes | None = None,
        position: Position | None = None,
        gently: bool = False,
    ) -> Reader: ...
    @property
    def position(self) -> Position: ...
    def next(self) -> Group | None: ...
    def replay(
        self,
        replicas: Iterable[tuple[int, int, Replica]],
        on_record: Callable[[int, int, bytes], object] | None = None,
        upto_seq: int | None = None,
    ) -> int: ...
    def verify_end(self) -> None: ...
    def close(self) -> None: ...
