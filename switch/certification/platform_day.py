"""The daily file that we send to a platform: what it makes of lines that agree, and of those that
do not.

The operations are of a day that has ended, so they are there before the run begins (`YESTERDAY`).
One file has a line that agrees, twice; one about what was reversed; one with another amount; one
about what nobody has confirmed; and none about an operation that was captured.
"""

import time
from pathlib import Path
from typing import Any, Final

from switch.calendar import Day
from switch.certification.platform_stand import POSTED, UNDONE, PlatformCase, Side
from switch.certification.stand import Failed, NotPlayed
from switch.reports.daily_file import Detail, Header, file_name, write

YESTERDAY: Final = {
    "agrees": "captured", "reversed": "reversed", "no line": "captured",
    "other amount": "captured", "unconfirmed": "held", "annulled late": "captured",
}  # fmt: skip
"""Operations of the day before, and what became of them."""

BROKEN_VERSION: Final = 9


class PlatformDay:
    """The file, in one case of its group; what it came to is kept at the side."""

    def __init__(self, c: PlatformCase) -> None:
        self._c = c
        self._side: Side = c.side

    async def _once(self) -> dict[str, Any]:
        """Play the day, once: what the platform says of the file."""
        c, side = self._c, self._side
        if side.read is None or side.files is None or not side.yesterday:
            raise NotPlayed("it needs operations of a day before, and somebody who takes files in")
        if side.told is None:
            side.told = {"failure": "the file could not be taken in"}
            before = await c.state(self._reference("unconfirmed"))
            broken = self._write(BROKEN_VERSION, [self._line("agrees")])
            broken.write_bytes(broken.read_bytes().replace(b"T;1;", b"T;2;"))
            told: dict[str, Any] = {"before": before, "broken": await side.read(broken)}
            told["after broken"] = await c.state(self._reference("unconfirmed"))
            lines = self._lines()
            first = self._write(1, lines)
            told["first"] = await side.read(first)
            told["again"] = await side.read(first)
            missing = self._line("no line")
            told["second"] = await side.read(self._write(2, [*lines, missing]))
            side.told = told
        if "failure" in side.told:
            raise Failed(side.told["failure"])
        return side.told

    def _reference(self, name: str) -> str:
        return self._side.yesterday[name][0]

    def _day(self) -> Day:
        calendar = self._side.calendar
        return calendar.business_of(calendar.business(time.time_ns()).number - 1)

    def _line(self, name: str, state: str = "R", more: int = 0) -> Detail:
        reference, amount = self._side.yesterday[name]
        return Detail(
            reference, "C", "", "0" * 16, amount + more, state, "", self._day().compact, "120000",
            self._side.branch.zfill(6), "000001", 0, 0,
        )  # fmt: skip

    def _lines(self) -> list[Detail]:
        agrees = self._line("agrees")
        return [
            agrees, agrees, self._line("reversed"), self._line("other amount", more=1),
            self._line("unconfirmed"), self._line("annulled late"),
        ]  # fmt: skip

    def _write(self, version: int, lines: list[Detail]) -> Path:
        side, day = self._side, self._day()
        assert side.files is not None
        side.files.mkdir(parents=True, exist_ok=True)
        path = side.files / file_name(side.network, day.compact, version, "csv")
        generated = time.strftime("%Y%m%d%H%M%S", time.gmtime())
        header = Header(side.network, day.compact, version, generated)
        write(path, header, lines, "csv", "lf")
        return path

    def _differs(self, told: dict[str, Any], name: str, difference: str) -> None:
        rows = [r for r in told["first"]["rows"] if r["reference"] == self._reference(name)]
        found = [row["difference"] for row in rows]
        self._c.holds(f"{name}: told as {difference!r}", difference in found, found)

    async def c01(self) -> None:
        """The three agree: CONCILIADA."""
        await self._once()
        self._c.expect("state", "CONCILIADA", await self._c.state(self._reference("agrees")))

    async def c02(self) -> None:
        """Told as paid, but reversed: a difference, and nothing is posted."""
        self._differs(await self._once(), "reversed", "pagada por red")
        await self._c.becomes(self._reference("reversed"), UNDONE)

    async def c03(self) -> None:
        """Captured, and no line of it."""
        self._differs(await self._once(), "no line", "sin respaldo de red")
        await self._c.becomes(self._reference("no line"), POSTED)

    async def c04(self) -> None:
        self._differs(await self._once(), "other amount", "monto distinto")
        await self._c.becomes(self._reference("other amount"), POSTED)

    async def c05(self) -> None:
        told = await self._once()
        self._differs(told, "agrees", "linea repetida")
        counted = told["first"]["counts"].get("conciliate", 0)
        self._c.expect("lines that agree, counted once", 2, counted)

    async def c06(self) -> None:
        """Without the file nothing is released or captured by itself; with it, it ends."""
        told = await self._once()
        self._c.expect("state before the file", "RESPONDIDA", told["before"])
        await self._c.becomes(self._reference("unconfirmed"), POSTED)

    async def c07(self) -> None:
        """Not balanced: refused whole, nothing applied."""
        told = await self._once()
        self._c.expect("answer", "refused", told["broken"]["state"])
        self._c.expect("state after it", "RESPONDIDA", told["after broken"])

    async def c08(self) -> None:
        """The same file again has no effect; a higher version takes its place."""
        told = await self._once()
        again = told["again"]["state"]
        self._c.holds("the same file again: known", again in ("known", "again"), again)
        self._c.expect("a higher version", "replaces", told["second"]["state"])
        await self._c.becomes(self._reference("no line"), ("CONCILIADA",))
