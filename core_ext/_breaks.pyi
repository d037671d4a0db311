from types import TracebackType
from typing import Self, final

@final
class Breaks:
    @property
    def work_us(self) -> int: ...
    @property
    def rest_us(self) -> int: ...
    def __new__(cls, work_us: int = 400, rest_us: int = 60) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

def taken() -> int: ...
