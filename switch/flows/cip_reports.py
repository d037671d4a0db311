"""Reports of the payment application: which events a run takes, and what it says about them.

Reported events (payments, voids, refunds) are numbered per application in the order in which they
became durable. A run is an interval of these numbers: every event is in exactly one, and the run's
record is at the same time the mark of all its events.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from core_ext import Records
from protocols.cip.records import ReportHead, ReportLine
from switch.flows import cip_records as rec
from switch.flows.cip_book import CipBook, CipRefusal
from switch.flows.cip_records import Application, Payment, Reportable, ReportRun
from switch.flows.step import Step

ROLE: Final = "cip"
TIMER: Final = "report"
SEND: Final = "report"
RETRIES_S: Final = (10, 60, 300, 900, 3600)
LIST_MAX: Final = 10_000


class Payments(Protocol):
    def payment(self, payment_id: str) -> Payment | None: ...


class CipReports:
    """Runs of every application, in order."""

    def __init__(self, records: Records, book: CipBook, payments: Payments) -> None:
        self._records = records
        self._book = book
        self._payments = payments
        self._runs: dict[str, list[str]] = {}
        for _, value in records.items(rec.RUNS):
            run = rec.decode_run(value)
            self._runs.setdefault(run.application, []).append(run.id)
        for names in self._runs.values():
            names.sort()
        self.states = dict.fromkeys(("BUILT", "SENT", "ACKED", "REJECTED"), 0)

    # ---- events

    def number(self, application: Application, payment: Payment, event: int, at_ns: int) -> int:
        """Give an event its place among the reported ones."""
        number = self._book.count(f"reportable:{application.id}")
        value = rec.encode(Reportable(payment.id, event, at_ns))
        self._records.put(rec.REPORTABLE, _place(application.id, number), value)
        return number

    def run_of(self, application_id: str, number: int) -> ReportRun | None:
        """The first run that took an event; None: none has yet."""
        for name in self._runs.get(application_id, ()):
            run = self.run(name)
            if run is not None and not run.repeats and run.first <= number <= run.last:
                return run
        return None

    def is_transmitted(self, application_id: str, number: int) -> bool:
        """True once a run with the event, or a repeat of it, was acknowledged."""
        run = self.run_of(application_id, number)
        if run is None:
            return False
        runs = [r for name in self._runs[application_id] if (r := self.run(name)) is not None]
        return any(r.state == "ACKED" and run.id in (r.id, r.repeats) for r in runs)

    # ---- runs

    def run(self, run_id: str) -> ReportRun | None:
        found = self._records.get(rec.RUNS, rec.name_key(run_id))
        return None if found is None else rec.decode_run(found)

    def runs(self, application_id: str) -> list[ReportRun]:
        names = self._runs.get(application_id, [])[-LIST_MAX:]
        return [run for name in names if (run := self.run(name)) is not None]

    def cut(self, step: Step, application: Application, cut_ns: int) -> ReportRun | None:
        """Take all events before `cut_ns` that no run has; None: that period has its run."""
        last = self._last(application.id)
        if last is not None and last.cut_ns >= cut_ns:
            return None
        first = 1 if last is None else last.last + 1
        upto = self._before(application.id, first, cut_ns)
        run = ReportRun(
            id=self._book.identifier("run_", step.now_ns),
            application=application.id,
            sequence=self._book.count(f"runs:{application.id}"),
            from_ns=application.created_ns if last is None else last.cut_ns,
            cut_ns=cut_ns,
            generated_ns=step.now_ns,
            first=first,
            last=upto,
            lines=upto - first + 1,
        )
        return self._add(step, run)

    def repeat(self, step: Step, run_id: str) -> ReportRun:
        """Send a run's lines again, under a new id.

        Raises:
            CipRefusal: there is no such run.
        """
        known = self.run(run_id)
        if known is None:
            raise CipRefusal("not_found", 404, f"no run {run_id}")
        run = ReportRun(
            id=self._book.identifier("run_", step.now_ns),
            application=known.application,
            sequence=self._book.count(f"runs:{known.application}"),
            from_ns=known.from_ns,
            cut_ns=known.cut_ns,
            generated_ns=step.now_ns,
            first=known.first,
            last=known.last,
            lines=known.lines,
            repeats=known.repeats or known.id,
        )
        return self._add(step, run)

    def _add(self, step: Step, run: ReportRun) -> ReportRun:
        self._runs.setdefault(run.application, []).append(run.id)
        self.put(step, run)
        self.states["BUILT"] += 1
        step.call(ROLE, SEND, run.id)
        return run

    def put(self, step: Step, run: ReportRun) -> None:
        self._records.put(
            rec.RUNS, run.id.encode(), rec.encode(run), open=run.is_open, stamp=step.now_ns
        )

    def told(self, step: Step, run_id: str, state: str, sha256: str, last_try: str) -> None:
        """What came of sending a run; not acknowledged yet, it is tried again."""
        run = self.run(run_id)
        if run is None or not run.is_open:
            return
        assert not run.sha256 or run.sha256 == sha256, "the lines of a run never change"
        if state != run.state:
            self.states[state] += 1
        run.state, run.sha256, run.last_try = state, sha256, last_try
        run.attempts += 1
        self.put(step, run)
        if run.is_open:
            after_s = RETRIES_S[min(run.attempts, len(RETRIES_S)) - 1]
            step.arm(ROLE, "report_again", run.id, after_s)
            if run.attempts == len(RETRIES_S):
                step.alarm("cip_report_stuck", f"{run.application}:{run.id}")

    def unfinished(self) -> Iterator[ReportRun]:
        for _, value in self._records.open_items(rec.RUNS):
            yield rec.decode_run(value)

    def _last(self, application_id: str) -> ReportRun | None:
        """The newest run that is no repeat."""
        for name in reversed(self._runs.get(application_id, ())):
            run = self.run(name)
            if run is not None and not run.repeats:
                return run
        return None

    def _before(self, application_id: str, first: int, cut_ns: int) -> int:
        """The last number from `first` on whose time is before the cut; `first - 1`: none."""
        low, high = first - 1, self._book.counted(f"reportable:{application_id}")
        while low < high:
            middle = (low + high + 1) // 2
            if self._reportable(application_id, middle).at_ns < cut_ns:
                low = middle
            else:
                high = middle - 1
        return low

    def _reportable(self, application_id: str, number: int) -> Reportable:
        found = self._records.get(rec.REPORTABLE, _place(application_id, number))
        assert found is not None, "numbers have no gaps"
        return rec.decode_reportable(found)

    # ---- what a run says

    def head(self, run: ReportRun) -> ReportHead:
        return ReportHead(
            run.application, utc_text(run.from_ns), utc_text(run.cut_ns), run.id, run.sequence,
            utc_text(run.generated_ns),
        )  # fmt: skip

    def line(self, run: ReportRun, number: int) -> ReportLine:
        """The line of one event, which never changes."""
        place = self._reportable(run.application, number)
        payment = self._payments.payment(place.payment)
        assert payment is not None, "a reported payment is kept"
        event = payment.events[place.event]
        subject = event.detail if event.what != "payment" else "payment"
        return ReportLine(
            event.what, payment.id, payment.client_ref,
            payment.code(rec.KIND_CIP, subject), payment.code(rec.KIND_SOURCE, subject),
            event.amount, payment.fee if event.what == "payment" else 0, payment.currency,
            utc_text(event.at_ns),
        )  # fmt: skip

    # ---- hours

    def next_cut_ns(self, application: Application, now_ns: int) -> int:
        """The next report hour in the application's zone; 0: it has none."""
        zone = self._book.zone(application)
        cuts = [cut for cut in _cuts(application, zone, now_ns) if cut > now_ns]
        return min(cuts, default=0)

    def missed_cut_ns(self, application: Application, now_ns: int) -> int:
        """The newest report hour that has passed without its run; 0: there is none."""
        last = self._last(application.id)
        since_ns = application.created_ns if last is None else last.cut_ns
        zone = self._book.zone(application)
        cuts = [cut for cut in _cuts(application, zone, now_ns) if since_ns < cut <= now_ns]
        return max(cuts, default=0)


def _cuts(application: Application, zone: ZoneInfo, now_ns: int) -> list[int]:
    """Report hours of yesterday, today and the next two days."""
    today = datetime.fromtimestamp(now_ns / 1e9, zone).date()
    found = []
    for days in (-1, 0, 1, 2):
        day = today + timedelta(days=days)
        for hour in application.report_hours:
            at = datetime(day.year, day.month, day.day, int(hour[:2]), int(hour[3:]), tzinfo=zone)
            found.append(int(at.timestamp()) * 1_000_000_000)
    return found


def utc_text(ns: int) -> str:
    """UTC, ISO 8601 with milliseconds; empty for 0."""
    if not ns:
        return ""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, ZoneInfo("UTC"))
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns // 1_000_000 % 1000:03d}Z"


def _place(application_id: str, number: int) -> bytes:
    return application_id.encode() + b"\n" + number.to_bytes(8, "big")
