"""Which host an operation goes to: the rules of the file, compiled into one lookup.

The first rule that matches counts. Each condition cuts its dimension (operation, network, bank,
currency, card prefix, amount, minute of the week) into classes, and each class has one integer with
a bit for every rule that takes it; the rules that match are the AND of seven integers, the first of
them is the lowest bit. Choosing costs the same, about a microsecond, for one rule and for 256.

The same classes tell at load which rules never match: what is left of a rule after all earlier ones
have been taken out of it is empty. Pure: no clock, no file; the instant comes with the key.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from switch.calendar import minutes_of
from switch.limits import AMOUNT_MAX

ROUTES_MAX: Final = 256
TARGETS_MAX: Final = 8
BIN_DIGITS: Final = 8  # ISO/IEC 7812-1:2017; shorter prefixes stand for all that begin with them
DAY_MINUTES: Final = 1440
WEEK_MINUTES: Final = 7 * DAY_MINUTES
PIECES_MAX: Final = 4096
"""Pieces that taking earlier rules out of one may leave; beyond it, it counts as reachable."""

Operation = Literal["cash_out", "deposit", "holder", "purchase", "debit", "credit"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
OPERATIONS: Final[tuple[str, ...]] = get_args(Operation)
WEEKDAYS: Final[tuple[str, ...]] = get_args(Weekday)

HostName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z",
        extra={"form": "the name of a host: 1 to 32 letters, digits, '_' or '-'"},
    ),
]
NetworkNumber = Annotated[
    str, Meta(pattern=r"^[0-9]{4}\Z", extra={"form": "the four digits of a network"})
]
BankCode = Annotated[
    str, Meta(pattern=r"^[0-9A-Za-z]{1,11}\Z", extra={"form": "1 to 11 letters or digits"})
]
BinRange = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,8}(-[0-9]{1,8})?\Z",
        extra={"form": 'a prefix or a range of prefixes, as "4507" or "510000-559999"'},
    ),
]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z", extra={"form": 'three letters, as "PYG"'})]
TimeOfDay = Annotated[
    str,
    Meta(
        pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)\Z",
        extra={"form": "a time from 00:00 to 24:00"},
    ),
]
Where = tuple[str, ...]
Finding = tuple[Where, str, str]  # key path, what is wrong, hint


def _list(text: str, most: int, **extra: Any) -> Meta:
    # Not given is the empty list; given and empty reads like a rule that nothing meets.
    return Meta(min_length=1, max_length=most, description=text, extra=extra or None)


class Route(msgspec.Struct, frozen=True):
    """One rule of the way: operations that meet all its conditions go to its hosts.

    The first rule that matches counts. A condition that is not given (an empty list) is met by
    everything.
    """

    to: Annotated[
        tuple[HostName, ...],
        _list("the host, or several: the first that is up is used", TARGETS_MAX, single=True),
    ]
    operations: Annotated[tuple[Operation, ...], _list("kinds of operation", 16)] = ()
    networks: Annotated[tuple[NetworkNumber, ...], _list("networks", 256)] = ()
    bins: Annotated[
        tuple[BinRange, ...], _list("first digits of the card number, or ranges", 1024)
    ] = ()
    banks: Annotated[tuple[BankCode, ...], _list("bank codes", 256)] = ()
    amount_min: Annotated[
        int, Meta(ge=0, le=AMOUNT_MAX, description="from this amount on, minor units")
    ] = 0
    amount_max: Annotated[
        int, Meta(ge=0, le=AMOUNT_MAX, description="up to this amount, minor units")
    ] = AMOUNT_MAX
    currencies: Annotated[tuple[Currency, ...], _list("currencies, ISO 4217", 32)] = ()
    from_: Annotated[TimeOfDay, Meta(description="from this local time on")] = msgspec.field(
        name="from", default="00:00"
    )
    until: Annotated[
        TimeOfDay,
        Meta(description="until before this local time; less than `from`: over midnight"),
    ] = "24:00"
    days: Annotated[tuple[Weekday, ...], _list("days of the week; the local date counts", 7)] = ()


class RouteKey(msgspec.Struct, frozen=True, gc=False):
    """What is known of an operation when its way is chosen.

    Fields:
        operation: `cash_out`, `deposit`, `holder`, `purchase`, `debit`, `credit`.
        bin: the first eight digits of the card number; empty where there is no card.
        bank: code of the bank; empty where none is named.
        amount: minor units, 0 where there is none.
        week_minute: `week_minute` of the instant; only rules with a time look at it.
    """

    operation: str
    network: str = ""
    bin: str = ""
    bank: str = ""
    amount: int = 0
    currency: str = ""
    week_minute: int = 0


def week_minute(day_number: int, day_minute: int) -> int:
    """Return minutes since Monday 00:00 of a local day (days since 1970-01-01, a Thursday)."""
    return (day_number + 3) % 7 * DAY_MINUTES + day_minute


class Router:
    """The compiled rules. Immutable; a reload makes a new one.

    Args:
        routes: the rules in their order, without findings (see `findings`).
        default: where an operation of a cashier goes that no rule claims; empty: nowhere.
    """

    def __init__(self, routes: Sequence[Route] = (), default: tuple[str, ...] = ()) -> None:
        self.routes = tuple(routes)
        self.default = default
        self._targets = [route.to for route in self.routes]
        every = (1 << len(self.routes)) - 1
        self._operations, self._any_operation = _takers(r.operations for r in self.routes)
        self._networks, self._any_network = _takers(r.networks for r in self.routes)
        self._banks, self._any_bank = _takers(r.banks for r in self.routes)
        self._currencies, self._any_currency = _takers(r.currencies for r in self.routes)
        spans = [_bins(route) for route in self.routes]
        self._bin_starts, self._bin_rules = _cut(spans, 10**BIN_DIGITS)
        self._no_card = sum(1 << i for i, r in enumerate(self.routes) if not r.bins)
        self._amount_starts, self._amount_rules = _cut(map(_amounts, self.routes), AMOUNT_MAX + 1)
        self._minute_starts, self._minute_rules = _cut(map(_minutes, self.routes), WEEK_MINUTES)
        self._by_bin = self._no_card != every
        self._by_amount = len(self._amount_starts) > 1
        self.timed = len(self._minute_starts) > 1
        """False where no rule has a time: the key's `week_minute` may then be left out."""

    def choose(self, key: RouteKey) -> tuple[str, ...]:
        """Return the hosts of the first rule that matches, in their order; empty: refuse."""
        number = self.match(key)
        return self.default if number < 0 else self._targets[number]

    def match(self, key: RouteKey) -> int:
        """Return the number of the first rule that matches, from 0; -1: none does."""
        rules = (
            self._operations.get(key.operation, self._any_operation)
            & self._networks.get(key.network, self._any_network)
            & self._banks.get(key.bank, self._any_bank)
            & self._currencies.get(key.currency, self._any_currency)
        )
        if self._by_bin:
            rules &= self._of_bin(key.bin)
        if self._by_amount:
            rules &= self._amount_rules[bisect_right(self._amount_starts, key.amount) - 1]
        if self.timed:
            rules &= self._minute_rules[bisect_right(self._minute_starts, key.week_minute) - 1]
        return (rules & -rules).bit_length() - 1

    def explain(self, key: RouteKey) -> list[tuple[int, tuple[str, ...]]]:
        """Return for each rule, up to the one that matches, which of its conditions are not met.

        The one that matches is the last, with none; without it, no rule matches.
        """
        told = []
        for number, route in enumerate(self.routes):
            unmet = tuple(_unmet(route, key))
            told.append((number, unmet))
            if not unmet:
                break
        return told

    def _of_bin(self, digits: str) -> int:
        if not digits:
            return self._no_card
        assert len(digits) == BIN_DIGITS, "a key has eight digits of the card, or none"
        return self._bin_rules[bisect_right(self._bin_starts, int(digits)) - 1]


def findings(routes: Sequence[Route], line: Callable[[int], int]) -> Iterator[Finding]:
    """Tell rules that contradict themselves, and rules that never match.

    Args:
        line: the line in the file of a rule by its number, for what is told of another rule.
    """
    sound: list[int] = []
    for number, route in enumerate(routes):
        told = [
            (("routes", f"[{number}]", key), what, hint)
            for key, what, hint in _contradictions(route)
        ]
        yield from told
        if not told:
            sound.append(number)
    yield from _unreachable(routes, sound, line)


def missing_hosts(routes: Sequence[Route], hosts: Iterable[str]) -> Iterator[Finding]:
    """Tell targets that are not in the registry."""
    known = set(hosts)
    for number, route in enumerate(routes):
        for target in route.to:
            if target not in known:
                hint = f"`troncal host add {target}` makes it"
                yield ("routes", f"[{number}]", "to"), f"there is no host {target}", hint


def described(route: Route) -> str:
    """Return the conditions of a rule in words, for people."""
    told = []
    for field in msgspec.structs.fields(Route):
        value = getattr(route, field.name)
        if field.name != "to" and value != field.default:
            shown = " ".join(value) if isinstance(value, tuple) else str(value)
            told.append(f"{field.encode_name} {shown}")
    return ", ".join(told) or "always"


# ---- what a rule takes


def _amounts(route: Route) -> list[tuple[int, int]]:
    return [(route.amount_min, route.amount_max + 1)]


def _bins(route: Route) -> list[tuple[int, int]]:
    if not route.bins:
        return [(0, 10**BIN_DIGITS)]
    return [_bin_span(text) for text in route.bins]


def _bin_span(text: str) -> tuple[int, int]:
    """Return the half-open interval of eight-digit prefixes of `4507` or `510000-559999`."""
    low, _, high = text.partition("-")
    high = high or low
    scale = 10 ** (BIN_DIGITS - len(low)), 10 ** (BIN_DIGITS - len(high))
    return int(low) * scale[0], (int(high) + 1) * scale[1]


def _minutes(route: Route) -> list[tuple[int, int]]:
    """Return the intervals of the week; a rule over midnight takes both ends of each of its days.

    The days are those of the local date: Friday 22:00 to 06:00 on `fri` takes Friday before 06:00
    and from 22:00 on, and nothing of Saturday.
    """
    start, end = minutes_of(route.from_), minutes_of(route.until)
    spans = [(start, end)] if start < end else [(0, end), (start, DAY_MINUTES)]
    days = route.days or WEEKDAYS
    return [
        (WEEKDAYS.index(day) * DAY_MINUTES + low, WEEKDAYS.index(day) * DAY_MINUTES + high)
        for day in days
        for low, high in spans
        if low < high
    ]


def _unmet(route: Route, key: RouteKey) -> Iterator[str]:
    """Yield the conditions of one rule that a key does not meet, one by one: the plain reading."""
    for name, values, value in (
        ("operations", route.operations, key.operation),
        ("networks", route.networks, key.network),
        ("banks", route.banks, key.bank),
        ("currencies", route.currencies, key.currency),
    ):
        if values and value not in values:
            yield name
    if route.bins and not (key.bin and _inside(int(key.bin), _bins(route))):
        yield "bins"
    if key.amount < route.amount_min:
        yield "amount_min"
    if key.amount > route.amount_max:
        yield "amount_max"
    if route.days and WEEKDAYS[key.week_minute // DAY_MINUTES] not in route.days:
        yield "days"
    elif not _inside(key.week_minute, _minutes(route)):
        yield "from, until"


def _inside(value: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(low <= value < high for low, high in spans)


# ---- compiling


def _takers(
    conditions: Iterable[tuple[str, ...]],
) -> tuple[Mapping[str, int], int]:
    """Return the rules that take each value some rule names, and those that take all others."""
    listed = list(conditions)
    rest = sum(1 << number for number, values in enumerate(listed) if not values)
    named: dict[str, int] = {}
    for number, values in enumerate(listed):
        for value in values:
            named[value] = named.get(value, rest) | 1 << number
    return named, rest


def _cut(spans: Iterable[Sequence[tuple[int, int]]], end: int) -> tuple[list[int], list[int]]:
    """Cut [0, end) at all borders; return where each piece starts, and the rules that take it."""
    listed = list(spans)
    borders = {0} | {edge for rule in listed for span in rule for edge in span if edge < end}
    starts = sorted(borders)
    place = {start: index for index, start in enumerate(starts)} | {end: len(starts)}
    rules = [0] * len(starts)
    for number, rule in enumerate(listed):
        for low, high in rule:
            for index in range(place[low], place[high]):
                rules[index] |= 1 << number
    return starts, rules


# ---- what can be wrong


def _contradictions(route: Route) -> Iterator[tuple[str, str, str]]:
    """Tell what makes one rule impossible by itself."""
    if len(set(route.to)) < len(route.to):
        yield "to", "names a host twice", ""
    if route.amount_min > route.amount_max:
        what = f"is {route.amount_min}, above amount_max = {route.amount_max}"
        yield "amount_min", what, "no amount meets both"
    if route.from_ == "24:00":
        yield "from", "is the end of the day", 'the next day begins at "00:00"'
    elif route.from_ == route.until:
        hint = "leave both out for the whole day"
        yield "until", f"is {route.until}, the same as from: no time at all", hint
    for text in route.bins:
        low, _, high = text.partition("-")
        if high and len(low) != len(high):
            yield "bins", f'"{text}" has ends of different length', 'as "510000-559999"'
        elif high and low > high:
            yield "bins", f'"{text}" ends before it begins', ""


def _unreachable(
    routes: Sequence[Route], sound: Sequence[int], line: Callable[[int], int]
) -> Iterator[Finding]:
    boxes = _boxes([routes[number] for number in sound])
    for place, number in enumerate(sound):
        covering = _covering(boxes, place)
        if not covering:
            continue
        earlier = [sound[i] for i in covering]
        where = ("routes", f"[{number}]")
        lines = ", ".join(str(line(i)) for i in earlier)
        if len(earlier) > 1:
            what = f"can never match: the rules at lines {lines} take all of it together"
            yield where, what, "put it before them, or drop it"
        elif boxes[covering[0]] != boxes[place]:
            what = f"can never match: the rule at line {lines} takes all of it"
            yield where, what, "put it before that one, or drop it"
        elif routes[earlier[0]].to == routes[number].to:
            yield where, f"is the rule at line {lines} again", "drop one"
        else:
            what = f"contradicts the rule at line {lines}: the same conditions, another host"
            yield where, what, "keep one; the first would always be used"


Box = tuple[int, ...]  # of one rule, per dimension, the classes it takes, one bit each


def _boxes(routes: Sequence[Route]) -> list[Box]:
    """Return every rule as a box over classes, so that inclusion is a matter of bits."""
    dimensions: list[list[int]] = []
    for name in ("operations", "networks", "banks", "currencies"):
        named, rest = _takers(getattr(route, name) for route in routes)
        classes = list(named.values())
        if name != "operations" or len(named) < len(OPERATIONS):
            classes.append(rest)
        dimensions.append(classes)
    no_card = sum(1 << i for i, route in enumerate(routes) if not route.bins)
    dimensions.append([*_cut(map(_bins, routes), 10**BIN_DIGITS)[1], no_card])
    dimensions.append(_cut(map(_amounts, routes), AMOUNT_MAX + 1)[1])
    dimensions.append(_cut(map(_minutes, routes), WEEK_MINUTES)[1])
    return [
        tuple(
            sum(1 << place for place, takers in enumerate(classes) if takers >> number & 1)
            for classes in dimensions
        )
        for number in range(len(routes))
    ]


def _covering(boxes: Sequence[Box], place: int) -> list[int]:
    """Return the fewest earlier boxes found that cover one together; empty: it can match."""
    box = boxes[place]
    for i in range(place):
        if all(own & ~other == 0 for own, other in _pairs(box, boxes[i])):
            return [i]
    used = [i for i in range(place) if all(own & other for own, other in _pairs(box, boxes[i]))]
    if not _is_covered(box, [boxes[i] for i in used]):
        return []
    for i in list(used):  # none is named that is not needed
        rest = [other for other in used if other != i]
        if _is_covered(box, [boxes[other] for other in rest]):
            used = rest
    return used


def _is_covered(box: Box, others: Iterable[Box]) -> bool:
    """Tell whether other boxes take all of one; False as well where that is too much work."""
    left = [box]
    for other in others:
        left = [piece for old in left for piece in _minus(old, other)]
        if not left:
            return True
        if len(left) > PIECES_MAX:
            return False
    return False


def _pairs(box: Box, other: Box) -> Iterator[tuple[int, int]]:
    return zip(box, other, strict=True)


def _minus(box: Box, other: Box) -> list[Box]:
    """Return what is left of a box when another is taken out, as boxes that do not overlap."""
    common = tuple(own & theirs for own, theirs in _pairs(box, other))
    if not all(common):
        return [box]
    pieces = []
    for axis, (own, theirs) in enumerate(_pairs(box, other)):
        rest = own & ~theirs
        if rest:
            pieces.append((*common[:axis], rest, *box[axis + 1 :]))
    return pieces
