"""Which message a simulator mistreats, and how: faults, and rules that choose them.

A rule file is TOML, the first rule that matches and strikes wins:

    seed = 7                      # of all that is left to chance
    [[rule]]
    operation = "capture"         # or mti = "0220"
    amount_min = 100_000
    every = 3                     # every third that matches
    fault = "delay"
    argument = 2.5
    [[rule]]
    document = "4567890"
    probability = 0.1
    fault = "decline"
    argument = "51"
"""

import random
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

FaultName = Literal[
    "decline",
    "drop",
    "refuse",
    "stop_before",
    "stop_after",
    "delay",
    "late",
    "duplicate",
    "out_of_order",
    "garble",
    "garbage",
    "wrong_mac",
    "half_frame",
    "close",
    "swallow",
]
FAULTS: Final[dict[str, str]] = {
    "decline": "the answer says no, with the code given (05)",
    "drop": "the request is read and forgotten: nothing is decided",
    "refuse": "every connection is closed, and none accepted for so many seconds (2)",
    "stop_before": "down for so many seconds (2) before anything was decided",
    "stop_after": "down for so many seconds (2) after the decision, without an answer",
    "delay": "the answer comes after so many seconds (1)",
    "late": "the answer comes after so many seconds (20): nobody should wait for it",
    "duplicate": "the answer comes twice",
    "out_of_order": "the answer comes after the next one",
    "garble": "one bit of the answer is flipped",
    "garbage": "random bytes in place of the answer",
    "wrong_mac": "the answer has a wrong MAC",
    "half_frame": "half of the answer, then the connection is closed",
    "close": "the connection is closed in place of the answer",
    "swallow": "decided, but never answered",
}
"""Every fault and what it does; the default of its argument in brackets."""

_DEFAULTS: Final = {
    "decline": "05",
    "refuse": "2",
    "stop_before": "2",
    "stop_after": "2",
    "delay": "1",
    "late": "20",
}
_SECONDS: Final = frozenset(("refuse", "stop_before", "stop_after", "delay", "late"))
UNDECIDED: Final = frozenset(("drop", "refuse", "stop_before"))
"""Faults that strike before anything is decided."""

RULES_MAX: Final = 256
SECONDS_MAX: Final = 86_400.0

Operation = Literal["hold", "capture", "release", "annulment", "status", "holder"]
assert set(FAULTS) == set(get_args(FaultName))


class RuleError(Exception):
    """A fault or a rule file that makes no sense; says where."""


class Fault(Struct, frozen=True):
    """One thing that goes wrong with one message."""

    name: FaultName
    argument: str = ""

    @property
    def code(self) -> str:
        """Response code of a `decline`."""
        return self.argument or _DEFAULTS["decline"]

    @property
    def seconds(self) -> float:
        return float(self.argument or _DEFAULTS.get(self.name, "0"))


class Facts(Struct, frozen=True):
    """What rules look at; nothing secret."""

    mti: str
    operation: str
    amount: int = 0
    document: str = ""


class Rule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a fault strikes. What is not given is met by every message.

    Fields:
        every: only every so many of those that match. first: only the first so many; 0: no end.
        probability: of those the share that is struck.
    """

    fault: FaultName
    argument: str | int | float = ""
    mti: Annotated[str, Meta(pattern=r"^([0-9]{4})?\Z")] = ""
    operation: Operation | Literal[""] = ""
    amount: Annotated[int, Meta(ge=0)] = 0
    amount_min: Annotated[int, Meta(ge=0)] = 0
    amount_max: Annotated[int, Meta(ge=0)] = 10**15
    document: Annotated[str, Meta(max_length=20)] = ""
    every: Annotated[int, Meta(ge=1)] = 1
    first: Annotated[int, Meta(ge=0)] = 0
    probability: Annotated[float, Meta(ge=0, le=1)] = 1.0

    def matches(self, facts: Facts) -> bool:
        return (
            self.mti in ("", facts.mti)
            and self.operation in ("", facts.operation)
            and self.document in ("", facts.document)
            and self.amount in (0, facts.amount)
            and self.amount_min <= facts.amount <= self.amount_max
        )


class _RuleFile(Struct, forbid_unknown_fields=True):
    seed: int = 1
    rule: Annotated[list[Rule], Meta(max_length=RULES_MAX)] = []


class Rules:
    """Faults in order of precedence: those for the whole run come after the rules.

    Args:
        seed: equal seeds and equal messages give equal faults.

    Attributes:
        struck: faults so far, by name.
    """

    def __init__(self, rules: list[Rule] | None = None, seed: int = 1) -> None:
        self._rules = [(rule, _fault(rule)) for rule in rules or []]
        self._chance = random.Random(seed)
        self._matched = [0] * len(self._rules)
        self._hits = [0] * len(self._rules)
        self.struck: dict[str, int] = {}

    @classmethod
    def read(cls, path: Path, extra: list[Rule] | None = None, seed: int | None = None) -> "Rules":
        """From a file, with more rules behind. Raises: RuleError, OSError."""
        try:
            text = tomllib.loads(path.read_text(encoding="utf-8"))
            found = msgspec.convert(text, _RuleFile)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            raise RuleError(f"{path}: {error}") from None
        return cls([*found.rule, *(extra or [])], found.seed if seed is None else seed)

    def strike(self, facts: Facts) -> Fault | None:
        """The fault for one message, or None."""
        for index, (rule, fault) in enumerate(self._rules):
            if not rule.matches(facts):
                continue
            self._matched[index] += 1
            if self._matched[index] % rule.every:
                continue
            if rule.first and self._hits[index] >= rule.first:
                continue
            if rule.probability < 1 and self._chance.random() >= rule.probability:
                continue
            self._hits[index] += 1
            return fault
        return None

    def count(self, fault: Fault | None) -> None:
        if fault is not None:
            self.struck[fault.name] = self.struck.get(fault.name, 0) + 1


def whole_run(text: str) -> Rule:
    """A rule for every message, from `NAME` or `NAME=ARGUMENT`. Raises: RuleError."""
    name, _, argument = text.partition("=")
    if name not in FAULTS:
        raise RuleError(f"{name!r} is none of {', '.join(FAULTS)}")
    rule = Rule(fault=name, argument=argument)  # type: ignore[arg-type]
    _fault(rule)
    return rule


def _fault(rule: Rule) -> Fault:
    argument = str(rule.argument)
    if argument and rule.fault in _SECONDS:
        try:
            good = 0 <= float(argument) <= SECONDS_MAX
        except ValueError:
            good = False
        if not good:
            raise RuleError(f"fault {rule.fault}: {argument!r} is no number of seconds")
    elif argument and rule.fault == "decline":
        if not (len(argument) == 2 and argument.isascii() and argument.isalnum()):
            raise RuleError(f"fault decline: {argument!r} is no response code")
    elif argument:
        raise RuleError(f"fault {rule.fault} takes no argument")
    return Fault(rule.fault, argument)
