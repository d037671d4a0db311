"""The back offices of a house: they make daily files, take them in, settle, and decide in twos."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import trio

from switch.flows.operations import Case
from switch.provisioning import Provisioning
from switch.reports import making
from switch.reports.comparison import Comparison, Difference, preview
from switch.reports.daily_file import DailyFile, Detail, FileRefused, Form, Header, file_name, write
from switch.reports.exchange import refuse, take_in
from tests.house import BRANCH, NETWORK, House

DATE = "20261122"  # of the clock of a new house
DAY_S = 86_400
SIGNED = {"author": "ana", "second": "beto", "reason": "checked with the branch"}
ENCLOSED = SIGNED | {"evidence": "acta.pdf", "evidence_sha256": "ab" * 32}


class Stopped(Exception):
    """The command that takes a file in was killed."""


class Office:
    """Conciliation of one house with one network."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.directory = house.directory / "files"
        self.directory.mkdir(exist_ok=True)
        self.stop_after: int | None = None  # so many commands, then `Stopped`

    # ---- files

    def make(
        self, role: making.Role = "red", *, version: int = 1, form: Form = "csv", date: str = DATE
    ) -> Path:  # fmt: skip
        """The file as a role of the house has it."""
        house = self.house
        calendar = house.node.calendar
        number = next(
            n for n in range(20_700, 20_900) if calendar.business_of(n).compact == date
        )  # fmt: skip
        rows = making.details(
            house.read_model(), role, NETWORK, calendar.business_of(number), calendar
        )
        return self.write(rows, version=version, form=form, date=date)

    def write(
        self, rows: Iterable[Detail], *, version: int = 1, form: Form = "csv", date: str = DATE
    ) -> Path:  # fmt: skip
        """A file of these details."""
        path = self.directory / file_name(NETWORK, date, version, form)
        write(path, Header(NETWORK, date, version, "20261123031500"), rows, form)
        return path

    def line(self, reference: str, amount: int = 150_000, state: str = "R", **fields: Any
             ) -> Detail:  # fmt: skip
        """A line about an operation, as red would write it."""
        known = self.house.at_sicoop(reference)
        values: dict[str, Any] = {
            "kind": "C", "operation": known.operation if known else "", "document_hash": "0" * 16,
            "authorization": "", "business_date": DATE, "hhmmss": "120000", "branch": BRANCH,
            "cashier": "000345", "fee": 0, "commission": known.commission if known else 0,
        } | fields  # fmt: skip
        return Detail(reference=reference, amount=amount, state=state, **values)

    def comparison(self, path: Path, issuer: str = "") -> Comparison:
        house = self.house
        return Comparison(
            house.read_model(), DailyFile(path), house.node.calendar, issuer=issuer,
            network_closes=house.node.config.conciliation.network_closes,
        )  # fmt: skip

    def read(self, path: Path, *, issuer: str = "", ceibo: bool = False) -> dict[str, Any]:
        """Take a file in. Raises: FileRefused, once its answer is written."""
        try:
            comparison = self.comparison(path, issuer)
        except FileRefused as refused:
            trio.run(refuse, self._carry, path, refused)
            raise
        try:

            async def run() -> dict[str, Any]:
                return await take_in(self._carry, comparison, issuer=issuer, ceibo=ceibo)

            return trio.run(run)
        finally:
            comparison.close()

    def preview(self, path: Path) -> list[Difference]:
        """Every difference, without doing anything."""
        comparison = self.comparison(path)
        try:
            return [*comparison.repeated(), *preview(comparison)]
        finally:
            comparison.close()

    async def _carry(self, command: str, values: dict[str, Any]) -> Any:
        await trio.lowlevel.checkpoint()
        if self.stop_after is not None:
            if self.stop_after == 0:
                raise Stopped
            self.stop_after -= 1
        with self.house.step() as step:
            desk = Provisioning(self.house.node)
            answer = desk.call(step, command, msgspec.to_builtins(values))
        return msgspec.to_builtins(answer)

    # ---- eyes

    def state(self, reference: str) -> str:
        found = self.house.at_sicoop(reference)
        return "" if found is None else found.state

    def case(self, reference: str) -> Case | None:
        return self.house.node.conciliation.case(reference)

    def open_cases(self) -> dict[str, str]:
        """Differences of open cases by reference."""
        return {c.reference: c.difference for c in self.house.node.conciliation.open_cases()}

    def resolve(self, reference: str, outcome: str, **fields: Any) -> Any:
        values = {"reference": reference, "outcome": outcome, "signature": SIGNED} | fields
        return self.house.do("resolve", **values)


def next_morning(house: House) -> None:
    """One o'clock of the day after, well before the grace time is over."""
    house.pass_time(13 * 3600)


def after_grace(house: House) -> None:
    house.pass_time(12 * 3600)
