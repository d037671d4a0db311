"""What the payment application does outside of steps: waits, webhooks, reports.

Pages and API call it; it runs the flow's steps and gives back what is durable.
"""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from core_ext._journal import JournalFull
from protocols.cip import body_hash, read_transaction, shown_code, sign_webhook
from protocols.cip.records import report
from protocols.cip.transaction import FieldFault, Transaction
from switch.flows.cip import STEP_AUTHENTICATED, CipFlow
from switch.flows.cip_book import CipRefusal
from switch.flows.cip_records import (
    SUBMITTED,
    Adjustment,
    Application,
    Context,
    Payment,
    ReportRun,
    User,
    encode,
)
from switch.flows.cip_reports import utc_text
from switch.flows.step import Step
from switch.net.calls import Calls, Order
from switch.node import Node
from switch.products.cip_auth import Authenticator, Passwords
from switch.products.cip_mail import TEXT, Mailer
from switch.sections.cip import Cip

WEBHOOK_S: Final = 10.0
LINES_PER_PAUSE: Final = 500
TRANSACTION_BYTES_MAX: Final = 8192  # of what is kept of it; a record has room for more

T = TypeVar("T")


class InvalidFields(CipRefusal):
    """Fields that cannot be taken, each with its reason."""

    def __init__(self, faults: list[FieldFault]) -> None:
        super().__init__("invalid_fields", 422)
        self.faults = faults


class CipService:
    """The payment application around its flow; also the service that takes its calls."""

    refusal = CipRefusal
    full = JournalFull

    def __init__(self, node: Node, flow: CipFlow, idempotency_key: bytes) -> None:
        self.node = node
        self.flow = flow
        self._idempotency_key = idempotency_key
        self.auth = Authenticator(node, flow, Passwords(flow.section.auth))
        self._mailer = Mailer()
        self._waiting: dict[str, list[trio.Event]] = {}
        self._client: httpx.AsyncClient
        self._calls = Calls(
            {"webhook": self._webhook, "report": self._report, "unlock": self._unlock},
            concurrent_max=flow.section.webhook_concurrent,
        )

    # ---- service of the node

    def ready(self, order: Order) -> None:
        if order.kind == "settled":
            for event in self._waiting.pop(order.key, ()):
                event.set()
        else:
            self._calls.ready(order)

    def flush(self) -> None:
        self._calls.flush()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        # One client: making its TLS context takes tens of milliseconds.
        async with httpx.AsyncClient(timeout=WEBHOOK_S, trust_env=False) as self._client:
            await self._calls.run(task_status=task_status)

    def stop(self) -> None:
        self._calls.stop()

    @property
    def calls_waiting(self) -> int:
        return self._calls.waiting + self._calls.running

    # ---- for pages and API

    @property
    def section(self) -> Cip:
        return self.flow.section

    def now_ns(self) -> int:
        return self.node.clock.wall_ns()

    async def perform(self, do: Callable[[Step], T]) -> T:
        """Run a step; its value once it is durable."""
        return await self.node.perform(do)

    def hash_of(self, transaction: Any) -> bytes:
        return body_hash(self._idempotency_key, transaction)

    def read(self, application: Application, data: Any) -> Transaction:
        """Check a transaction by the application's rules. Raises: InvalidFields."""
        transaction, faults = self.check(application, data)
        if transaction is None:
            raise InvalidFields(faults)
        return transaction

    def check(
        self, application: Application, data: Any
    ) -> tuple[Transaction | None, list[FieldFault]]:
        """A transaction, or what is wrong with it; one that is too large for a record is, too."""
        today = datetime.fromtimestamp(self.now_ns() // 1_000_000_000, self.zone(application))
        transaction, faults = read_transaction(
            data,
            amount=application.amount,
            fields=application.fields,
            instruments=self.instruments(application),
            year_month=(today.year, today.month),
        )
        if transaction is not None and len(encode(transaction)) > TRANSACTION_BYTES_MAX:
            return None, [FieldFault("transaction", "too_long")]
        return transaction, faults

    def zone(self, application: Application) -> Any:
        return self.flow.book.zone(application)

    def instruments(self, application: Application) -> tuple[str, ...]:
        return self.flow.source_of(application).instruments

    async def pay(
        self, application: Application, user: User, client_ref: str, data: Any,
        *, steps: dict[int, int], request_id: str,
    ) -> tuple[Payment, bool]:  # fmt: skip
        """Gateway: the payment as it stands at the end of the budget; True: it was known.

        Raises:
            CipRefusal: conflict, invalid fields, no room.
        """
        try:
            hashed = self.hash_of(data if isinstance(data, dict) else {})
        except ValueError:
            raise InvalidFields([FieldFault("transaction", "invalid")]) from None
        known = self.flow.by_reference(application.id, client_ref)
        # A repeat is the first one's result, even where today it would not be valid any more.
        transaction = None if known is not None else self.read(application, data)

        def submit(step: Step) -> tuple[Payment, bool]:
            if transaction is None or self.flow.by_reference(application.id, client_ref):
                return self.flow.repeat(application, client_ref, hashed)
            return self.flow.pay(
                step, application, client_ref, transaction, hashed,
                user=user, steps=steps, request_id=request_id,
            )  # fmt: skip

        payment, repeated = await self.perform(submit)
        return await self.decided(payment.id), repeated

    async def decided(self, payment_id: str, within_s: float | None = None) -> Payment:
        """Wait until a payment is no longer SUBMITTED; at most the source's budget and a little."""
        limit_s = self.section.budget.source_s + 1.0 if within_s is None else within_s
        with trio.move_on_after(limit_s):
            while self.payment(payment_id).status == SUBMITTED:
                event = trio.Event()
                self._waiting.setdefault(payment_id, []).append(event)
                await event.wait()
        # What is read now may be newer than what is durable: an empty step orders it.
        return await self.perform(lambda step: self.payment(payment_id))

    def payment(self, payment_id: str) -> Payment:
        found = self.flow.payment(payment_id)
        if found is None:
            raise CipRefusal("not_found", 404)
        return found

    async def told(self, payment: Payment) -> None:
        """The confirmation goes on its way now; nobody waits for this to be written."""
        if payment.status == SUBMITTED:
            return
        step = self.node.begin()
        self.node.taken(request=False)
        if step.admitting:
            self.flow.note_told(step, payment.id, step.now_ns)
        self.node.end(step)

    def shown(self, payment: Payment) -> dict[str, Any]:
        """A payment as the API tells it."""
        value: dict[str, Any] = {
            "payment_id": payment.id,
            "client_ref": payment.client_ref,
            "status": payment.status,
            "amount": payment.amount,
            "fee": payment.fee,
            "currency": payment.currency,
            "instrument": payment.instrument,
            "at": utc_text(payment.confirmed_ns or payment.events[-1].at_ns),
        }
        if payment.confirmed_ns:
            value["confirmations"] = {
                "cip": shown_code(payment.code("CIP")), "source": payment.code("SOURCE"),
            }  # fmt: skip
            value["refunded"] = payment.refunded
        if payment.reason:
            value["reason"] = payment.reason
        return value

    def shown_adjustment(self, adjustment: Adjustment) -> dict[str, Any]:
        """A void or refund as the API tells it."""
        payment = self.payment(adjustment.payment_id)
        value: dict[str, Any] = {
            "adjustment_id": adjustment.id,
            "payment_id": adjustment.payment_id,
            "client_ref": adjustment.client_ref,
            "kind": adjustment.kind,
            "amount": adjustment.amount,
            "currency": payment.currency,
            "status": adjustment.status,
            "at": utc_text(adjustment.done_ns or adjustment.requested_ns),
        }
        if adjustment.cip:
            value["confirmations"] = {
                "cip": shown_code(adjustment.cip), "source": adjustment.source,
            }  # fmt: skip
        if adjustment.reason:
            value["reason"] = adjustment.reason
        return value

    def status(self) -> dict[str, Any]:
        """Service and sources, for everybody: no names, no numbers of anybody's business."""
        draining = not self.node.store.admitting
        up: dict[str, bool] = {}
        for application in self.flow.book.applications():
            source = self.flow.sources.get(application.source)
            ready = source is not None and source.ready(application)
            up[application.source] = up.get(application.source, False) or ready
        return {
            "service": "busy" if draining else "up",
            "sources": {name: "up" if ready else "down" for name, ready in sorted(up.items())},
            "at": utc_text(self.now_ns()),
        }

    def context(
        self, client_ref: str, amount: int, currency: str, fields: dict[str, str], return_url: str
    ) -> Context:
        return Context(client_ref, amount, currency, fields, return_url)

    def check_room(self) -> None:
        """Raises: CipRefusal 503, while too many sessions are open."""
        sessions = self.flow.sessions
        if sum(sessions.open_by_kind.values()) >= sessions.times.open_max:
            raise CipRefusal("overloaded", 503)

    # ---- calls

    async def _webhook(self, key: str) -> None:
        """Tell the site of one change of a payment."""
        found = self.flow.owed(key)
        if found is None:
            return
        payment, owed = found
        application = self.flow.application_of(payment)
        event = f"payment.{owed.subject.lower()}"
        told = {**self.shown(payment), "status": owed.subject}
        body = msgspec.json.encode({"event": event, "event_id": owed.id, "payment": told})
        done, outcome = await self._post(application, application.webhook_url, owed.id, body)
        await self.perform(lambda step: self.flow.on_webhook(step, key, done, outcome))

    async def _unlock(self, key: str) -> None:
        """Send a locked user the link that unlocks him. Not tried again: the lock ends by itself,
        and an administrator can end it too."""
        application_id, _, user_id = key.partition("|")
        application = self.flow.book.application(application_id)
        user = self.flow.book.user(application_id, user_id)
        mail = self.section.mail
        if application is None or user is None or not user.email or not mail.host:
            return
        secret = await self.perform(
            lambda step: self.flow.book.issue_unlock(step, user, mail.link_s)
        )
        text = TEXT.format(
            user=user.id, name=application.name, minutes=self.section.auth.lock_s // 60,
            link=f"{mail.base_url.rstrip('/')}/cip/unlock/{secret}",
        )  # fmt: skip
        sent = await self._mailer.send(mail, user.email, text)

        def note(step: Step) -> None:
            who = f"{application_id}:{user_id}"
            step.audit(who, "cip_unlock_mail", who, "00" if sent else "refused", security=True)
            if not sent:
                step.alarm("cip_mail_failed", who)

        await self.perform(note)

    async def _post(
        self, application: Application, url: str, event_id: str, body: bytes,
        media_type: str = "application/json",
    ) -> tuple[bool, str]:  # fmt: skip
        """POST, signed with the newest key; whether it was acknowledged, and what came."""
        now_ns = self.now_ns()
        key = self.flow.book.newest_key(application, now_ns)
        if not url or key is None:
            return False, "no address" if not url else "no key"
        parts = urlsplit(url)
        if parts.scheme != "https" and not self.section.private_webhooks:
            return False, "not https"
        seconds = now_ns // 1_000_000_000
        headers = {
            "content-type": media_type, "cip-event": event_id, "cip-key": key[0],
            "cip-timestamp": str(seconds),
            "cip-signature": sign_webhook(key[1], event_id, seconds, body),
        }  # fmt: skip
        try:
            with trio.fail_after(WEBHOOK_S):
                async with self._client.stream(
                    "POST", url, content=body, headers=headers
                ) as answer:
                    return 200 <= answer.status_code < 300, str(answer.status_code)
        except trio.TooSlowError:
            return False, "timeout"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return False, type(error).__name__

    async def _report(self, key: str) -> None:
        """Make the file of a run and hand it over."""
        run = self.flow.reports.run(key)
        if run is None or not run.is_open:
            return
        application = self.flow.book.application(run.application)
        assert application is not None, "runs name applications"
        content, digest = await self.report_file(run)
        state, told = "BUILT", "no address"
        if application.report_folder:
            state, told = await self._put_file(application, run, content)
        elif application.report_url:
            done, told = await self._post(
                application, application.report_url, run.id, content, "text/csv; charset=utf-8"
            )
            state = "ACKED" if done else "REJECTED" if told in ("410", "422") else "SENT"
        else:
            return  # nobody is to get it by itself: it waits for `report send`
        await self.perform(lambda step: self.flow.reports.told(step, key, state, digest, told))

    async def report_file(self, run: ReportRun) -> tuple[bytes, str]:
        """The file of a run and its content hash; others get their turn in between."""
        lines = []
        for number in range(run.first, run.last + 1):
            lines.append(self.flow.reports.line(run, number))
            if len(lines) % LINES_PER_PAUSE == 0:
                await trio.lowlevel.checkpoint()
        return report(self.flow.reports.head(run), lines)

    async def _put_file(
        self, application: Application, run: ReportRun, content: bytes
    ) -> tuple[str, str]:
        folder = self.node.store.directory / application.report_folder
        name = f"{application.id}-{run.sequence:06}-{run.id}.csv"
        try:
            await trio.to_thread.run_sync(_put_file, folder, name, content)
        except OSError as error:
            return "SENT", error.strerror or type(error).__name__
        return "ACKED", name

    def steps_at_login(self, mode: str, at_ns: int) -> dict[int, int]:
        return {STEP_AUTHENTICATED[mode]: at_ns}


def _put_file(folder: Path, name: str, content: bytes) -> None:
    """All of it under its name, or nothing."""
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    made = folder / f".{name}.part"
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    made.replace(folder / name)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # transmitted means that its name is durable too
    finally:
        os.close(handle)
