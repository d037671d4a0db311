"""What goes wrong, drawn from the seed: fates of messages, stalls of disks, disturbances."""

import random
from dataclasses import dataclass, field, replace

NS = 1_000_000_000
STORM_S = 120  # faults begin within this time of the start, and end with it
HOLDERS = 4
ROLES = ("red", "sicoop", "ceibo")
LINKS = ("session", "issuer")
BANK = "bank"  # a second issuer, and sicoop's link with it
BANK_FROM = 701_000  # amounts from here on go there
KINDS = ("hold", "confirm", "confirm", "reverse", "annul", "capture", "release", "status")
# Weighted: the roles apart have the most messages to lose.
LAYOUTS: tuple[tuple[str, ...], ...] = (
    (), (), (), (), ("red", "sicoop"), ("sicoop", "ceibo"), ROLES,
)  # fmt: skip


@dataclass(frozen=True)
class Disturbance:
    """One thing that goes wrong at a moment: what it hits, how long, and how."""

    at_s: float
    what: str  # crash, partition, half_open, cut, stall, clock, mute
    target: str
    for_s: float = 0.0
    how: str = ""
    amount: float = 0.0


@dataclass(frozen=True)
class Errand:
    """One operation of a cashier, and what else he does about it."""

    at_s: float
    trace: int
    terminal: int
    kind: str
    holder: int
    amount: int
    wrong_code: bool = False
    clicks: int = 1
    marks: bool = True
    repeats: bool = False
    annuls_after_s: float = 0.0  # 0: never
    patience_s: float = 30.0  # T_TERM, of somebody who keeps to it
    asks: str = "query"  # what he does when no answer comes: query or repeat


@dataclass(frozen=True)
class Meddling:
    """A message of a network that does not keep to the rules: it contradicts what it said."""

    at_s: float
    what: str  # confirm, reverse, annul
    trace: int
    wrong_amount: bool = False


@dataclass(frozen=True)
class Plan:
    """A schedule as data, so that a shorter one can be made of it."""

    seed: int
    layout: tuple[str, ...]
    errands: tuple[Errand, ...]
    disturbances: tuple[Disturbance, ...]
    rates: dict[str, float] = field(default_factory=dict)  # of lose, twice, late, slow_disk
    meddling: tuple[Meddling, ...] = ()
    bank: bool = False


def plan(seed: int) -> Plan:
    """The schedule of a seed."""
    chance = random.Random(seed)
    layout = chance.choice(LAYOUTS)
    calm = chance.random() < 0.25  # only disturbances, or only unreliable wires
    rates = {
        "lose": 0.0 if calm else chance.choice((0.0, 0.02, 0.1, 0.3)),
        "twice": 0.0 if calm else chance.choice((0.0, 0.05, 0.2, 0.5)),
        "late": 0.0 if calm else chance.choice((0.0, 0.05, 0.2)),
        "slow_disk": chance.choice((0.0, 0.0, 0.05, 0.2)),
    }
    errands = tuple(_errand(chance, trace) for trace in range(1, chance.randint(3, 8)))
    count = chance.choice((0, 1, 2, 3, 4, 6))
    disturbances = [d for _ in range(count) for d in _disturbance(chance, errands)]
    disturbances.sort(key=lambda d: d.at_s)
    meddling: tuple[Meddling, ...] = ()
    if chance.random() < 0.15:
        meddling = tuple(_meddling(chance, errands) for _ in range(chance.randint(1, 4)))
    made = Plan(seed, layout, errands, tuple(disturbances), rates, meddling)
    luck = random.Random(f"{seed} bank")
    return _with_bank(luck, made) if luck.random() < 0.3 else made


def _with_bank(chance: random.Random, made: Plan) -> Plan:
    """The same with a second issuer, which some errands go to, and with faults of its own."""
    errands = tuple(
        replace(errand, amount=BANK_FROM + 1000 * chance.randrange(100))
        if chance.random() < 0.6
        else errand
        for errand in made.errands
    )
    count = chance.choice((0, 1, 2, 3))
    own = [
        disturbance
        for _ in range(count)
        for disturbance in _disturbance(chance, errands, (BANK,), (BANK,))
    ]
    disturbances = sorted((*made.disturbances, *own), key=lambda d: d.at_s)
    return replace(made, errands=errands, disturbances=tuple(disturbances), bank=True)


def _errand(chance: random.Random, trace: int) -> Errand:
    return Errand(
        at_s=2.0 + chance.random() * chance.choice((0.01, 1.0, 5.0, 70.0)),
        trace=trace,
        terminal=chance.randrange(3),
        kind=chance.choice(("cash_out", "cash_out", "deposit")),
        holder=chance.randrange(HOLDERS),
        amount=1000 * chance.choice((chance.randint(1, 100), chance.randint(200, 700))),
        wrong_code=chance.random() < 0.08,
        clicks=chance.choice((1, 1, 1, 2)),
        marks=chance.random() < 0.7,
        repeats=chance.random() < 0.25,
        annuls_after_s=chance.choice((0, 0, 0, 0, 0, 0, 0.02, 0.03, 8.0, 26.0, 60.0)),
        patience_s=chance.choice((30.0, 30.0, 7.0)),
        asks=chance.choice(("query", "repeat")),
    )


def _meddling(chance: random.Random, errands: tuple[Errand, ...]) -> Meddling:
    errand = chance.choice(errands)
    return Meddling(
        at_s=errand.at_s + chance.choice((0.0, 0.02, 0.1, 30.0)) + chance.random() * 0.05,
        what=chance.choice(("confirm", "reverse", "annul")),
        trace=errand.trace,
        wrong_amount=chance.random() < 0.1,
    )


def _disturbance(
    chance: random.Random, errands: tuple[Errand, ...], roles: tuple[str, ...] = ROLES,
    links: tuple[str, ...] = LINKS,
) -> list[Disturbance]:  # fmt: skip
    """Most of them hit close to where something is going on."""
    near = chance.choice(errands).at_s + chance.choice((0.0, 0.02, 0.02, 0.02, 0.05, 14.9, 25.0))
    at_s = near + chance.random() * chance.choice((0.02, 0.02, 0.02, 0.5, 5.0))
    what = chance.choices(
        ("crash", "partition", "half_open", "cut", "stall", "clock", "mute"),
        (8, 2, 2, 3, 2, 1, 4),
    )[0]
    at_s = min(at_s, STORM_S - 1.0)
    for_s = chance.choice((0.05, 1.0, 10.0, 30.0, 80.0, 100.0))
    target = chance.choice(roles if what in ("crash", "clock", "stall") else links)
    match what:
        case "crash":
            how = chance.choice(("lost", "lost", "torn", "written"))
            crash = Disturbance(at_s, what, target, for_s, how)
            if chance.random() < 0.5:
                return [crash]
            # With the disk behind, more is decided than is durable.
            before_s = chance.choice((0.005, 0.02, 0.1, 1.0))
            return [Disturbance(max(at_s - before_s, 0.0), "stall", target, 20.0), crash]
        case "clock":
            step_s = chance.choice((-3600.0, -70.0, -5.0, -1.0, 1.0, 5.0, 70.0, 3600.0))
            return [Disturbance(at_s, what, target, amount=step_s)]
        case "stall":
            return [Disturbance(at_s, what, target, chance.choice((2.0, 12.0, 28.0)))]
        case "mute":
            kind, direction = chance.choice(KINDS), chance.choice(("there", "there", "back"))
            return [Disturbance(max(at_s - 1.0, 0.0), what, kind, for_s, direction)]
        case "half_open":
            return [Disturbance(at_s, what, target, for_s, chance.choice(("there", "back")))]
    return [Disturbance(at_s, what, target, for_s)]


class Weather:
    """Decides about each message and each flush. Silent once the storm is over."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counts: dict[str, int] = {}
        self.over = False

    def chance(self, name: str) -> random.Random:
        """Luck of the next event of this name: of the seed, the name and its number only."""
        number = self._counts[name] = self._counts.get(name, 0) + 1
        return random.Random(f"{self._plan.seed}/{name}/{number}")

    def fates(self, name: str) -> list[int]:
        """Delays, in nanoseconds, after which a message arrives: none, one, or several."""
        chance = self.chance(name)
        base_ns = 1_000_000 + int(chance.random() * 4_000_000)
        if self.over:
            return [base_ns]
        rates = self._plan.rates
        if chance.random() < rates["lose"]:
            return []
        found = [self._delay(chance, base_ns)]
        if chance.random() < rates["twice"]:
            found.append(self._delay(chance, base_ns) + int(chance.random() * 40 * NS))
        return found

    def _delay(self, chance: random.Random, base_ns: int) -> int:
        if chance.random() < self._plan.rates["late"]:
            return base_ns + int(chance.choice((0.05, 5.0, 16.0, 26.0, 45.0)) * NS)
        return base_ns

    def flush_ns(self, name: str) -> int:
        """How long the disk takes for the next group."""
        chance = self.chance(name)
        if not self.over and chance.random() < self._plan.rates["slow_disk"]:
            return int(chance.choice((0.1, 3.0, 9.0, 17.0)) * NS)
        return 100_000 + int(chance.random() * 2_000_000)
