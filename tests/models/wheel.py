"""A timer wheel as a heap."""

import heapq


class PlainWheel:
    """Timers by id, due in the order of (deadline, id)."""

    def __init__(self) -> None:
        self.armed: dict[int, int] = {}
        self.heap: list[tuple[int, int]] = []

    def arm(self, timer: int, deadline_ns: int) -> None:
        self.armed[timer] = deadline_ns
        heapq.heappush(self.heap, (deadline_ns, timer))

    def cancel(self, timer: int) -> bool:
        return self.armed.pop(timer, None) is not None

    def advance(self, now_ns: int) -> list[int]:
        due = []
        while self.heap and self.heap[0][0] <= now_ns:
            deadline_ns, timer = heapq.heappop(self.heap)
            if self.armed.get(timer) == deadline_ns:
                del self.armed[timer]
                due.append(timer)
        return due
