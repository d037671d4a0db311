"""The day whose file a network makes for us: its operations, and the file as it comes.

The day is one that has ended, so that its file can be made at once: our platform gives the
operations of these cases that business date, as a platform may whose day ends before ours.
"""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from switch.certification.platform import SWALLOW, Entry
from switch.certification.stand import Case, Failed, NotPlayed, Operation
from switch.reports.daily_file import DailyFile, Detail, FileRefused, Trailer, parse_name
from switch.reports.exchange import beside, write_lines

LOOK_S: Final = 0.2
LINES_MAX: Final = 1_000_000


class Day:
    """One network's operations of one business date, and their file.

    Args:
        date: yyyymmdd. iso: the same, with hyphens.
        directory: where the network puts its file; None: it does not.
        wait_s: how long it has.
        make: asks our own node to make it; for others it is waited for.
        announce: told when a file is waited for.
    """

    def __init__(
        self, network: str, iso: str, directory: Path | None, wait_s: float,
        make: Callable[[], Awaitable[None]] | None = None,
        announce: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        self.network = network
        self.iso = iso
        self.date = iso.replace("-", "")
        self._directory = directory
        self._wait_s = wait_s
        self._make = make
        self._announce = announce
        self._played = False
        self._failure = ""
        self.entries: dict[str, Entry] = {}
        self.first: Path | None = None
        self.missing = ""
        self.trailer: Trailer | None = None
        self.second: list[Detail] = []
        self._details: list[Detail] = []
        self._refused = ""

    async def play(self, c: Case) -> None:
        """Make the operations and wait for the file, once; what failed then fails every case."""
        if self._directory is None:
            raise NotPlayed("no directory was given in which the network puts its daily file")
        if not self._played:
            self._played = True
            self._failure = "the operations of the day could not be made"
            await self._operations(c)
            self._failure = ""
            self.first = await self._next(0)
            self._read()
        if self._failure:
            raise Failed(self._failure)

    async def _operations(self, c: Case) -> None:
        date = {"business_date": self.iso}

        async def paid(name: str, op: Operation, **script: Any) -> None:
            c.paid(op, await c.send(op, commission=100, **script, **date))
            if script:
                await c.comes(op, "confirm", 2)
            await self._keep(c, name, op, "CAPTURADA")

        async def declined() -> None:
            op = c.cash_out()
            await c.send(op, code="51", key="FONDOS", **date)
            await self._keep(c, "declined", op, "RECHAZADA")

        async def undone() -> None:
            op = c.cash_out()
            c.failed(op, await c.send(op, hold=(SWALLOW,), **date))
            await self._keep(c, "reversed", op, "REVERSADA")

        await c.beside(
            lambda: paid("cash_out", c.cash_out()),
            lambda: paid("deposit", c.deposit(amount=30_000)),
            lambda: paid("confirmed late", c.cash_out(amount=20_000), confirm=(SWALLOW,)),
            declined,
            undone,
        )

    async def _keep(self, c: Case, name: str, op: Operation, state: str) -> None:
        self.entries[name] = await c.reaches(op, state)

    # ---- the file

    async def _next(self, version: int) -> Path | None:
        """The newest file of the day with a version above this, waited for."""
        if self._make is not None:
            await self._make()
        else:
            which = f"a version above {version}" if version else "the file"
            self._announce(
                f"waiting {self._wait_s:g} s for the network to make its daily file of "
                f"{self.date} in {self._directory}: {which}"
            )
        with trio.move_on_after(self._wait_s):
            while True:
                found = self._newest(version)
                if found is not None:
                    return found
                await trio.sleep(LOOK_S)
        self.missing = f"no CONC_{self.network}_{self.date}_*.csv or .txt in {self._wait_s:g} s"
        return None

    def _newest(self, version: int) -> Path | None:
        assert self._directory is not None
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                name = parse_name(path.name)
                if name is not None and name[:2] == (self.network, self.date):
                    found.append((name.version, path))
        newest = max(found, default=(0, None))
        return newest[1] if newest[0] > version else None

    def _read(self) -> None:
        if self.first is None:
            return
        try:
            file = DailyFile(self.first)
            self._details = [detail for _, detail in file.details()]
            self.trailer = file.trailer
            write_lines(beside(self.first, ".OK"), ["state: certified"])
        except FileRefused as refused:
            self._refused = str(refused)
            write_lines(beside(self.first, ".ERR"), [*map(str, refused.mistakes)])

    def details(self, c: Case) -> list[Detail]:
        """All lines. Raises: Failed: there is no file, or it is refused whole."""
        c.holds("there is a file", self.first is not None, self.missing or "yes")
        c.expect("mistakes in it", "none", self._refused or "none")
        return self._details

    def find(self, name: str) -> Detail | None:
        reference = self.entries[name].reference
        return next((d for d in self._details if d.reference == reference), None)

    def line(self, c: Case, name: str) -> Detail:
        """The line of one of the operations. Raises: Failed."""
        self.details(c)
        found = self.find(name)
        c.holds(f"{name}: a line", found is not None)
        assert found is not None
        return found

    async def again(self, c: Case) -> None:
        """Wait for a higher version, and read it. Raises: Failed."""
        assert self.first is not None
        name = parse_name(self.first.name)
        assert name is not None
        before = self.first.read_bytes()
        second = await self._next(name.version)
        c.holds("a higher version came", second is not None, self.missing or "yes")
        assert second is not None
        try:
            self.second = [detail for _, detail in DailyFile(second).details()]
        except FileRefused as refused:
            c.expect("mistakes in the second version", "none", str(refused))
        c.holds("the first version is as it was", self.first.read_bytes() == before)
