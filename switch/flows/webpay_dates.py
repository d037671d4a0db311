"""Dates and times as results tell them: of the bank's zone, without a year."""

import datetime
from typing import Final

from switch.calendar import load_zone, minutes_of
from switch.sections.webpay import Webpay

_NS: Final = 1_000_000_000
_SATURDAY: Final = 5
HOLIDAYS_IN_A_ROW_MAX: Final = 60


class Dates:
    """Local dates, and the bank's business days."""

    def __init__(self, section: Webpay) -> None:
        self._zone = load_zone(section.timezone)
        self._cut_off = minutes_of(section.accounting_cutoff) if section.accounting_cutoff else 0
        self._holidays = frozenset(datetime.date.fromisoformat(d) for d in section.holidays)

    def local(self, now_ns: int) -> datetime.datetime:
        """Local date and time of an instant."""
        return datetime.datetime.fromtimestamp(now_ns // _NS, self._zone)

    def date_and_time(self, now_ns: int) -> tuple[str, str]:
        """MMDD and HHMMSS."""
        local = self.local(now_ns)
        return f"{local:%m%d}", f"{local:%H%M%S}"

    def accounting(self, now_ns: int) -> str:
        """MMDD of the day a payment counts for, where its authoriser has not told one.

        The local date; once the cut-off has passed, the next business day of banks.
        """
        local = self.local(now_ns)
        date = local.date()
        if self._cut_off and 60 * local.hour + local.minute >= self._cut_off:
            for _ in range(HOLIDAYS_IN_A_ROW_MAX):
                date += datetime.timedelta(days=1)
                if date.weekday() < _SATURDAY and date not in self._holidays:
                    break
        return f"{date:%m%d}"

    def year_of(self, month_day: str, now_ns: int) -> int:
        """The year of an MMDD: the one nearest to an instant. What is no date is of this year."""
        today = self.local(now_ns).date()
        try:
            near = [
                datetime.date(year, int(month_day[:2]), int(month_day[2:]))
                for year in (today.year - 1, today.year, today.year + 1)
                if month_day != "0229" or year % 4 == 0
            ]
        except ValueError:
            return today.year
        return min(near, key=lambda date: abs(date - today)).year if near else today.year
