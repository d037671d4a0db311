from typing import final

from typing_extensions import disjoint_base

@disjoint_base
class Sink: ...

@final
class MemorySink(Sink):
    records: list[tuple[int, bytes]]
    def __new__(cls) -> MemorySink: ...

@disjoint_base
class Replica:
    def replay_record(self, kind: int, data: bytes) -> None: ...
