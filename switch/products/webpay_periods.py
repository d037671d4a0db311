"""When the versions of a key are used and accepted: `<data>/keys/webpay.periods`, JSON.

A key of the configuration, such as `webpay-101`, is a name; its versions are keys of the key store,
`webpay-101` itself the first, then `webpay-101.2` and so on. A key that was never rotated is not in
the file. Public matters only: names and instants.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from protocols.webpay.keyring import Ring, Version
from switch.ops.key_store import KeyStore, KeyStoreError

FILE: Final = "webpay.periods"
VERSIONS_MAX: Final = 16

K = TypeVar("K")


class Period(msgspec.Struct, frozen=True):
    """The time of one version: its name in the key store, used from, accepted before; 0: open."""

    name: str
    from_ns: int = 0
    until_ns: int = 0

    def ended(self, now_ns: int) -> bool:
        """Whether it is accepted no longer."""
        return 0 < self.until_ns <= now_ns


class Periods:
    """The file of one key store, as it was when this was made.

    Raises:
        KeyStoreError: it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._of: dict[str, list[Period]] = {}
        try:
            self._of = msgspec.json.decode(self._path.read_bytes(), type=dict[str, list[Period]])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError):
            raise KeyStoreError(f"{FILE} cannot be read") from None

    def of(self, key: str) -> list[Period]:
        """The versions of a key, the oldest first."""
        return self._of.get(key, [Period(key)])

    def of_version(self, name: str) -> tuple[str, Period]:
        """The key that a version belongs to, and its time."""
        for key, periods in self._of.items():
            for period in periods:
                if period.name == name:
                    return key, period
        return name, Period(name)

    def ring(self, key: str, read: Callable[[str], K], *, now_ns: int = 0) -> Ring[K]:
        """All versions of a key, read from the store; those that had ended by `now_ns` may be gone.

        Raises: as `read`.
        """
        found = []
        for period in self.of(key):
            try:
                version = Version(period.name, read(period.name), period.from_ns, period.until_ns)
            except LookupError:
                if not period.ended(now_ns):
                    raise
            else:
                found.append(version)
        return Ring(found)

    def next_name(self, key: str, store: KeyStore) -> str:
        """The name for a new version.

        Raises:
            KeyStoreError: `key` is a version itself, or has too many.
        """
        if self.of_version(key)[0] != key:
            raise KeyStoreError(f"{key} is a version of {self.of_version(key)[0]}: rotate that")
        if len(self.of(key)) >= VERSIONS_MAX:
            raise KeyStoreError(f"{key} has {VERSIONS_MAX} versions: take a new name")
        taken = set(store.names())
        number = 2
        while f"{key}.{number}" in taken:
            number += 1
        return f"{key}.{number}"

    def rotate(self, key: str, name: str, *, from_ns: int, until_ns: int) -> None:
        """Use a version from an instant on; the others are accepted until another.

        An end that is earlier already stays. Durable on return.
        """
        ended = [
            msgspec.structs.replace(p, until_ns=min(p.until_ns or until_ns, until_ns))
            for p in self.of(key)
        ]
        self._write({**self._of, key: [*ended, Period(name, from_ns)]})

    def end(self, name: str, *, at_ns: int) -> None:
        """Accept a version no longer than this. Durable on return.

        Raises:
            KeyStoreError: nothing would be left.
        """
        key, _ = self.of_version(name)
        left = [
            msgspec.structs.replace(p, until_ns=at_ns) if p.name == name else p
            for p in self.of(key)
        ]
        if all(p.until_ns for p in left):
            raise KeyStoreError(f"{name} is the last version of {key}: rotate it first")
        self._write({**self._of, key: left})

    def _write(self, of: dict[str, list[Period]]) -> None:
        new = self._path.with_name(f"{FILE}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(of)))
            file.flush()
            os.fsync(descriptor)
        os.replace(new, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._of = of
