"""Keys that change while both sides go on: the versions of one key, each with its time.

A version is *accepted* from the day it is known until its end: the other side may change earlier or
later than we do. It is *used*, for what we begin, from its date on: the newest whose date has come.
An answer uses what the question used, as long as that is accepted: whoever asks with an old key
cannot read a new one yet.
"""

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")


class Version(NamedTuple, Generic[K]):
    """One version of a key.

    Attributes:
        from_ns: used from then on; 0: always. until_ns: accepted before then; 0: without an end.
    """

    name: str
    key: K
    from_ns: int = 0
    until_ns: int = 0

    def accepted(self, now_ns: int) -> bool:
        return not self.until_ns or now_ns < self.until_ns


class Ring(Generic[K]):
    """All versions of one key; none of them is ever shown.

    Raises:
        ValueError: there is none, or a name occurs twice.
    """

    def __init__(self, versions: Iterable[Version[K]]) -> None:
        self._versions = sorted(versions, key=lambda version: (version.from_ns, version.name))
        names = {version.name for version in self._versions}
        if not names or len(names) < len(self._versions):
            raise ValueError("a key has one version at least, each with a name of its own")

    @classmethod
    def of(cls, key: K, name: str = "") -> "Ring[K]":
        """A key that does not change."""
        return cls([Version(name, key)])

    def __repr__(self) -> str:
        return f"Ring({', '.join(version.name for version in self._versions)})"

    @property
    def all(self) -> tuple[Version[K], ...]:
        """Every version, ended ones too, the newest first: archives are signed by them."""
        return tuple(reversed(self._versions))

    def used(self, now_ns: int, name: str = "") -> Version[K] | None:
        """The version for what is to be signed or sealed now; None: all have ended.

        Args:
            name: that of the question, where this is an answer; used while it is accepted.
        """
        good = self.accepted(now_ns)
        return next(
            (version for version in good if version.name == name), good[0] if good else None
        )

    def accepted(self, now_ns: int) -> tuple[Version[K], ...]:
        """The versions the other side may use now, the likeliest first."""
        good = [version for version in reversed(self._versions) if version.accepted(now_ns)]
        return tuple(sorted(good, key=lambda version: version.from_ns > now_ns))
