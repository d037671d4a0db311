"""The in-flight table as dictionaries and lists."""

Parts = tuple[str | None, ...]
OPEN = ("in flight", "expired", "lost")


class PlainRequest:
    """One request, in flight or remembered."""

    def __init__(
        self, parts: Parts, token: object, sent_ns: int, deadline_ns: int, stan: int, group: int
    ) -> None:
        self.parts = parts
        self.token = token
        self.sent_ns = sent_ns
        self.at_ns = deadline_ns
        self.stan = stan
        self.group = group
        self.fate = "in flight"

    @property
    def ended(self) -> tuple[object, int, int]:
        return self.token, self.group, self.sent_ns


class PlainPending:
    """Requests by key; what has ended is remembered, the oldest forgotten first."""

    def __init__(self, matched: int, in_flight_max: int, remembered_max: int, stans: int) -> None:
        self.matched = matched
        self.in_flight_max = in_flight_max
        self.remembered_max = remembered_max
        self.stans = stans
        self.flying: list[PlainRequest] = []  # in the order of adds
        self.remembered: list[PlainRequest] = []  # in the order of ends
        self.last_stan = 0
        self.used_s: dict[int, int] = {}

    # ---- STANs

    def busy(self) -> set[int]:
        kept = [r for r in self.remembered if r.fate in OPEN]
        return {r.stan for r in self.flying + kept if r.stan}

    def next_stan(self, second: int) -> int:
        busy = self.busy()
        for step in range(1, self.stans + 1):
            stan = (self.last_stan + step - 1) % self.stans + 1
            if stan not in busy and self.used_s.get(stan) != second:
                self.last_stan = stan
                self.used_s[stan] = second
                return stan
        return 0

    # ---- requests

    def find(self, parts: Parts) -> PlainRequest | None:
        key = parts[: self.matched]
        for request in self.flying + self.remembered:
            if request.parts[: self.matched] == key:
                return request
        return None

    def agrees(self, request: PlainRequest, parts: Parts) -> bool:
        pairs = list(zip(request.parts, parts, strict=True))[self.matched :]
        return all(ours is None or theirs is None or ours == theirs for ours, theirs in pairs)

    def add(
        self, parts: Parts, token: object, *, sent_ns: int, deadline_ns: int, stan: int, group: int
    ) -> bool | None:
        """None where the table is full."""
        known = self.find(parts)
        if known is not None and known.fate in OPEN:
            return False
        if len(self.flying) >= self.in_flight_max:
            return None
        if known is not None:
            self.remembered.remove(known)
        self.flying.append(PlainRequest(parts, token, sent_ns, deadline_ns, stan, group))
        return True

    def end(self, request: PlainRequest, fate: str, now_ns: int) -> tuple[object, int, int]:
        self.flying.remove(request)
        request.fate, request.at_ns = fate, now_ns
        self.remembered.append(request)
        del self.remembered[: max(len(self.remembered) - self.remembered_max, 0)]
        return request.ended

    def take(
        self, parts: Parts, now_ns: int, fate: str = "answered"
    ) -> tuple[object, int, int] | None:
        known = self.find(parts)
        if known is None or known.fate != "in flight":
            return None
        if fate == "answered" and not self.agrees(known, parts):
            return None
        return self.end(known, fate, now_ns)

    def fate(self, parts: Parts) -> tuple[str, int, int] | None:
        known = self.find(parts)
        if known is None or not self.agrees(known, parts):
            return None
        return known.fate, known.sent_ns, known.at_ns

    def expire(self, now_ns: int) -> list[tuple[object, int, int]]:
        due = sorted((r for r in self.flying if r.at_ns <= now_ns), key=lambda r: r.at_ns)
        return [self.end(request, "expired", now_ns) for request in due]

    def lose(self, group: int, now_ns: int) -> list[tuple[object, int, int]]:
        gone = [r for r in self.flying if r.group == group]
        return [self.end(request, "lost", now_ns) for request in gone]

    def nearest(self, parts: Parts) -> tuple[Parts, int] | None:
        """(parts, how many are equal) of the best; the latest among equals."""
        best: tuple[int, PlainRequest] | None = None
        for request in self.flying:
            same = sum(a == b for a, b in zip(request.parts, parts, strict=True))
            if best is None or same >= best[0]:
                best = same, request
        return None if best is None else (best[1].parts, best[0])
