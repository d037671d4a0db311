from typing import final

class Sink: ...

@final
class MemorySink(Sink):
    records: list[tuple[int, bytes]]
    def __new__(cls) -> MemorySink: ...

class Replica:
    def replay_record(self, kind: int, data: bytes) -> None: ...
