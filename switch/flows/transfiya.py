"""TransfiYa: the bank's side. What comes in is decided, kept, and brought to its end.

Each call of the network becomes an item (`transfiya_records.Item`) that moves by a table; the
outside is reached by jobs (`transfiya_jobs.Job`) that the product's service carries out. This
module takes calls in; `transfiya_steps` moves items.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct

from core_ext import Records
from protocols.transfiya import (
    Action,
    AmountError,
    Create,
    Duplicate,
    Refuse,
    action_of,
    decide,
    encode,
    to_minor,
)
from protocols.transfiya.decide import MAIN_TYPES, REJECT, REQUEST, is_tx_ref, key_of
from protocols.transfiya.times import instant_ns
from switch.config import Config
from switch.flows.step import Step
from switch.flows.transfiya_jobs import (
    ROLE,
    BankSide,
    Job,
    KeyRing,
    Outcome,
    Passed,
    Shared,
    passed_of,
)
from switch.flows.transfiya_records import (
    ACCEPT,
    ACCEPTED,
    ANSWERED,
    BEFORE_SIGNED,
    BODIES,
    DOWNLOAD,
    ENTRIES,
    FAILED,
    FAILING,
    ITEMS,
    MARKS,
    OFFERED,
    PARKED,
    PREFIX,
    PROVEN,
    RECEIVED,
    SIGN,
    SIGNED,
    TRANSFER,
    UPLOAD,
    Directory,
    Entry,
    Item,
    Items,
    get_body,
    name_key,
    put_body,
)
from switch.flows.transfiya_steps import Machine
from switch.flows.transfiya_v2 import RETRY as V2_RETRY
from switch.flows.transfiya_v2 import Entries

SECOND_NS: Final = 1_000_000_000
REFERENCE_CHARS_MAX: Final = 64
ENDPOINTS: Final = ("debit", "credit", "action", "status")


class Answer(Struct, frozen=True):
    """What the network is told: HTTP status and body."""

    status: int
    body: bytes


class Wait(Struct, frozen=True):
    """The answer comes with the item's next moves.

    Fields:
        first: this caller brought it. job: the call that is due, once the step is durable.
    """

    item: str
    first: bool
    job: Job | None = None


class _View:
    """A bank as `decide` sees it."""

    def __init__(self, flow: "TransfiyaFlow", bank: BankSide) -> None:
        self._flow = flow
        self._bank = bank
        self.bank_signer = bank.settings.bank_signer

    def owns(self, handle: str) -> bool:
        return self._flow.directory.signer(self._bank.name, handle) is not None

    def exponent(self, symbol: str) -> int | None:
        row = self._bank.settings.symbols.get(symbol)
        return None if row is None else row.exponent

    def item(self, key: str) -> Item | None:
        found = self._flow.items.get(self._bank.name, key)
        return None if found is None or found.unmade else found


class TransfiyaFlow:
    """All banks of this process. Synchronous; see `ProductFlow`.

    Args:
        banks: each with its core. ring: signs. draw: random bytes, for IOUs and pauses.
    """

    role = ROLE
    spaces: Sequence[int] = (ITEMS, BODIES, MARKS, ENTRIES)

    def __init__(
        self,
        records: Records,
        banks: Iterable[BankSide],
        directory: Directory,
        ring: KeyRing,
        draw: Callable[[int], bytes],
        items: Items | None = None,
    ) -> None:
        self._records = records
        self.directory = directory
        self.items = items or Items(records)
        self.shared = Shared(banks, self.items, directory, ring, draw)
        self.machine = Machine(self.shared)
        self.entries = Entries(self.shared, records)
        self.differences: dict[str, int] = {}
        """By bank: of the newest comparison with the network's conciliation."""
        self.serving = True
        """False: no new work is taken, while the node stops."""
        self.closed: Callable[[], bool] = lambda: False
        """True: an operator has announced maintenance; what is under way goes on."""

    # ---- ProductFlow

    def unfinished(self) -> list[Item | Entry]:
        found: list[Item | Entry] = [*self.items.unfinished(), *self.entries.unfinished()]
        return [work for work in found if work.bank in self.shared.banks]

    def adopt(self, step: Step, work: Item | Entry) -> None:
        if isinstance(work, Entry):
            self.entries.adopt(step, work)
            return
        self.machine.adopt(step, work)
        if work.state != OFFERED:
            step.call(ROLE, "resume", work.id)

    def on_deadline(self, step: Step, kind: str, key: str) -> None:
        if kind == V2_RETRY:
            self.entries.on_deadline(step, key)
            return
        item = self.items.named(key)
        if item is not None and not item.ended:
            self.machine.on_deadline(step, kind, item)

    def flush(self) -> None:
        self.items.flush()
        self.entries.flush()

    def reconfigure(self, config: Config) -> None:
        """What a bank is takes a new start; codes and budgets of a bank change at once."""
        for settings in config.transfiya.bank:
            side = self.shared.banks.get(settings.id)
            if side is not None and settings.profile == side.settings.profile:
                side.settings = settings

    # ---- for the service

    def on_token(self, step: Step, bank: str) -> None:
        """The network gives no token: nothing of that bank goes on."""
        step.alarm("transfiya_token_failed", bank)

    def advance(self, step: Step, item_id: str) -> Job | None:
        """Go on with an item; the call that is due, to be made when the step is durable."""
        if item_id.startswith(PREFIX + "|"):
            return self.entries.advance(step, item_id)
        item = self.items.named(item_id)
        if item is None or item.ended:
            return None
        return self.machine.advance(step, item)

    def on_outcome(self, step: Step, job: Job, outcome: Outcome) -> Job | None:
        """Take the end of a call, and the next one."""
        if job.item.startswith(PREFIX + "|"):
            return self.entries.on_outcome(step, job, outcome)
        item = self.items.named(job.item)
        return None if item is None else self.machine.on_outcome(step, item, job.call, outcome)

    def answer(self, item_id: str) -> Answer | None:
        """The stored answer of an item; None: it has none yet."""
        item = self.items.named(item_id)
        assert item is not None, "items outlive those who wait for them"
        bank = self.shared.banks[item.bank]
        if item.kind == SIGN and bank.settings.action_mode == "sync":
            if item.state in PROVEN:
                return Answer(200, item.answer)
            if item.state in (FAILING, FAILED):
                return Answer(*bank.refusal(item.reason))
            return None
        if item.unmade or item.state == PARKED:
            return Answer(*bank.refusal(item.reason))
        return Answer(200, item.answer) if item.answer else None

    def tries(self, item_id: str) -> int:
        """How often its call was made in vain by now."""
        if item_id.startswith(PREFIX + "|"):
            return self.entries.tries(item_id)
        work = self.shared.work.get(item_id)
        return work.tries if work is not None else 0

    def standing(self, item_id: str) -> Passed | None:
        """The state of unfinished work, None where it has ended."""
        if item_id.startswith(PREFIX + "|"):
            return self.entries.standing(item_id)
        item = self.machine.unfinished(item_id)
        return None if item is None else passed_of(item)

    def release(self, item_id: str) -> None:
        """Its first caller has its answer, or is gone: the rest may begin."""
        work = self.shared.work.get(item_id)
        if work is not None:
            work.live = False

    def give_up(self, step: Step, item_id: str) -> Answer:
        """The caller's time is over: what has no answer by now ends without one."""
        answer = self.answer(item_id)
        if answer is not None:
            return answer
        item = self.items.named(item_id)
        assert item is not None, "items outlive those who wait for them"
        if item.kind == SIGN:
            return Answer(*self.shared.banks[item.bank].refusal("out-of-time"))
        self.machine.unmade(step, item, "out-of-time")
        return Answer(*self.shared.banks[item.bank].refusal("out-of-time"))

    # ---- taking in

    def take(
        self, step: Step, bank: str, endpoint: str, raw: bytes, value: Any, arrived_ns: int
    ) -> Answer | Wait:
        """Decide about one call of the network.

        Args:
            raw: the body as it came; kept. value: the same, decoded.
            arrived_ns: when it had arrived whole.

        Raises:
            ShapeError: a known field of the wrong type; nothing was changed.
        """
        side = self.shared.banks[bank]
        if not self._takes(step):
            return self._refuse(step, side, endpoint, "out-of-service")
        if side.settings.profile == "v2":
            reply = self.entries.take(step, side, endpoint, value, arrived_ns)
            return Answer(reply.status, reply.body)
        main = action_of(value)
        if endpoint == "status":
            return self._status(step, side, main, raw, value, arrived_ns)
        if endpoint == "action":
            return self._action(step, side, main, raw, arrived_ns)
        decision = decide(endpoint, main, _View(self, side))
        match decision:
            case Create():
                return self._create(step, side, endpoint, decision, main, raw, arrived_ns)
            case Duplicate():
                return self._again(side, endpoint, f"{bank}|{decision.key}")
            case Refuse():
                if decision.failing:
                    self._stop(step, bank, decision.failing, "main-changed")
                if decision.reason == "duplicate-mismatch":
                    step.alarm("transfiya_duplicate_mismatch", decision.key.split("/")[1])
                return self._refuse(step, side, endpoint, decision.reason, main)

    def _takes(self, step: Step) -> bool:
        return step.admitting and self.serving and not self.closed()

    def _refuse(
        self, step: Step, side: BankSide, endpoint: str, reason: str, main: Action | None = None
    ) -> Answer:
        self.shared.count("refusals", side.name, endpoint, reason)
        subject = (main.reference if main is not None else "") or ""
        if step.concluding:
            step.audit(f"transfiya:{side.name}", endpoint, subject[:64], "refused", reason)
        return Answer(*side.refusal(reason))

    def _again(self, side: BankSide, endpoint: str, item_id: str) -> Answer | Wait:
        self.shared.count("duplicates", side.name, endpoint)
        return self.answer(item_id) or Wait(item_id, first=False)

    def _create(
        self,
        step: Step,
        side: BankSide,
        endpoint: str,
        made: Create,
        main: Action,
        raw: bytes,
        arrived_ns: int,
    ) -> Answer | Wait:
        bank = side.name
        before = self.items.get(bank, made.key)
        item = Item(
            bank=bank, key=made.key, kind=made.kind, purpose=made.purpose, tx_ref=made.tx_ref,
            user=made.user, symbol=made.symbol, amount=made.amount, minor=made.minor,
            source=made.source, target=made.target, arrived_ns=arrived_ns,
            deadline_ns=self._deadline_ns(side, main, arrived_ns),
            main_id=main.action_id or "", main_status=main.labels.status or "",
        )  # fmt: skip
        signer = self.directory.signer(bank, made.user)
        assert signer is not None, "decided for a customer"
        reason = "" if signer.status == "active" else "account-inactive"
        if made.purpose == "credit" and self._is_marked(bank, made.tx_ref, made.user):
            reason = "reject-signed"
        reason = reason or side.core.refusal(item, signer)
        if reason:
            return self._refuse(step, side, endpoint, reason, main)
        put_body(self._records, item.id, raw, arrived_ns)
        self.machine.take(step, item)
        work = self.shared.work_of(item)
        work.live, work.probe = True, before is not None
        return Wait(item.id, first=True, job=self.machine.advance(step, item))

    def _deadline_ns(self, side: BankSide, main: Action, arrived_ns: int) -> int:
        settings = side.settings
        limit_ns = int(settings.continue_limit_s * SECOND_NS)
        begun_ns = arrived_ns
        initiated = main.labels.initiated
        if settings.deadline_base == "initiated" and initiated and main.labels.type != REQUEST:
            try:
                begun_ns = min(arrived_ns, instant_ns(initiated))
            except ValueError:
                begun_ns = arrived_ns
        return begun_ns + limit_ns

    def _stop(self, step: Step, bank: str, key: str, reason: str, *, silent: bool = False) -> None:
        """An item that must not go on, before its proof."""
        item = self.items.get(bank, key)
        if item is not None and item.state in BEFORE_SIGNED:
            self.machine.fail(step, item, reason, silent=silent)
            self.machine.go(step, item)

    # ---- /action

    def _action(
        self, step: Step, side: BankSide, main: Action, raw: bytes, arrived_ns: int
    ) -> Answer | Wait:
        bank, tx_ref = side.name, main.labels.tx_ref
        if tx_ref is None or not is_tx_ref(tx_ref) or not main.action_id:
            return self._refuse(step, side, "action", "tx-ref-invalid", main)
        key = key_of(SIGN, tx_ref, main.action_id)
        known = self.items.get(bank, key)
        if known is not None:
            return self._again(side, "action", known.id)
        reason, minor = self._unsignable(side, main)
        if reason:
            return self._refuse(step, side, "action", reason, main)
        user = main.signer("source") or ""
        if main.labels.type == REJECT:
            credit = self.items.get(bank, key_of(DOWNLOAD, tx_ref, user))
            if credit is not None and credit.state in PROVEN:
                step.alarm("transfiya_credit_final", tx_ref)
                return self._refuse(step, side, "action", "credit-already-final", main)
            if credit is not None and credit.state == SIGNED:
                self.shared.work_of(credit).look = True
                self.machine.go(step, credit)
                return self._refuse(step, side, "action", "out-of-time", main)
            if credit is not None and not credit.ended:
                # Without a word: it would be taken for one about the rejection.
                self._stop(step, bank, credit.key, "reject-signed", silent=True)
            self._mark(step, bank, tx_ref, user)
        item = Item(
            bank=bank, key=key, kind=SIGN, purpose="", tx_ref=tx_ref, user=user,
            symbol=main.symbol or "", amount=str(main.amount), minor=minor, source=user,
            target=main.signer("target") or "", arrived_ns=arrived_ns,
            deadline_ns=self._deadline_ns(side, main, arrived_ns), action_id=main.action_id,
            created=raw, answer=raw,
        )  # fmt: skip
        self.machine.take(step, item)
        self.shared.work_of(item).live = side.settings.action_mode == "async"
        self.machine.move(step, item, "answered")
        # Answered at once, it goes on when that is out.
        return self.answer(item.id) or Wait(
            item.id, first=True, job=self.machine.advance(step, item)
        )  # fmt: skip

    def _unsignable(self, side: BankSide, main: Action) -> tuple[str, int]:
        """Why an action is not signed, empty where it may be; and its amount."""
        user = main.signer("source")
        if user is None or main.signer("target") is None or main.signer("symbol") is None:
            return "snapshot-missing", 0
        row = side.settings.symbols.get(main.symbol or "")
        if row is None:
            return "symbol-unknown", 0
        try:
            minor = to_minor(main.amount, row.exponent)
        except AmountError:
            return "amount-invalid", 0
        if self.directory.signer(side.name, user) is None:
            return "customer-unknown", 0
        if main.labels.type == REJECT:
            return "", minor
        debit = self.items.get(side.name, key_of(UPLOAD, main.labels.tx_ref or "", user))
        stands = (
            main.labels.type in MAIN_TYPES
            and debit is not None
            and debit.state in PROVEN
            and (debit.minor, debit.symbol) == (minor, main.symbol)
        )
        return ("" if stands else "main-not-signable"), minor

    def _mark(self, step: Step, bank: str, tx_ref: str, user: str) -> None:
        """The rejection of a credit is signed: that credit is refused from now on."""
        self._records.put(MARKS, name_key(bank, tx_ref, user), b"\1", stamp=step.now_ns)

    def _is_marked(self, bank: str, tx_ref: str, user: str) -> bool:
        return self._records.get(MARKS, name_key(bank, tx_ref, user)) is not None

    # ---- /status, and what customers decide

    def _status(
        self, step: Step, side: BankSide, main: Action, raw: bytes, value: Any, arrived_ns: int
    ) -> Answer:
        bank, tx_ref = side.name, main.reference
        if tx_ref is None or not is_tx_ref(tx_ref):
            return self._refuse(step, side, "status", "tx-ref-invalid", main)
        status = main.labels.status or ""
        name = f"{bank}|status|{tx_ref}|{status}"
        if status == "ERROR" and not get_body(self._records, name):
            # The network goes no further: what was taken and not given back needs a person.
            step.alarm("transfiya_transfer_error", tx_ref, self._standing(bank, main, tx_ref))
        put_body(self._records, name, raw, arrived_ns)
        if status == "PENDING":
            self._offer(step, side, main, tx_ref, raw, arrived_ns)
        elif status in ("REJECTED", "ERROR"):
            for item in self.items.of_transfer(bank, tx_ref):
                self._on_end(step, item, status)
        return Answer(200, raw)

    def _standing(self, bank: str, main: Action, tx_ref: str) -> str:
        """Where our work on a transfer stands, for people."""
        found = []
        for kind, side in ((UPLOAD, "source"), (DOWNLOAD, "target"), (DOWNLOAD, "source")):
            item = self.items.get(bank, key_of(kind, tx_ref, main.signer(side) or ""))
            if item is not None:
                found.append(f"{item.purpose} {item.state} {item.reason}".strip())
        return ", ".join(found) or "nothing done here"

    def _on_end(self, step: Step, item: Item, status: str) -> None:
        """The network has given the transfer up; money on its way back stays on it."""
        if item.state == OFFERED:
            item.reason = "cancelled"
            self.machine.move(step, item, "failed")
        elif (
            item.purpose == "refund"
            or item.kind in (TRANSFER, ACCEPT)
            or (item.kind == SIGN and status == "REJECTED")
        ):
            return
        elif item.state in BEFORE_SIGNED:
            self.machine.fail(step, item, "transfer-ended", silent=True)
            self.machine.go(step, item)
        elif item.state == SIGNED:
            self.shared.work_of(item).look = item.sent
            self.machine.go(step, item)

    def _offer(
        self, step: Step, side: BankSide, main: Action, tx_ref: str, raw: bytes, arrived_ns: int
    ) -> None:
        """Accept or reject for our customer; a request for money only the customer accepts."""
        asked = "source" if main.labels.type == REQUEST else "target"
        user = self._asked(side, main, asked)
        if user is None or main.symbol is None:
            return
        key = key_of(ACCEPT, tx_ref, user)
        if self.items.get(side.name, key) is not None:
            return
        signer = self.directory.signer(side.name, user)
        assert signer is not None, "found among our signers"
        row = side.settings.symbols.get(main.symbol)
        item = Item(
            bank=side.name, key=key, kind=ACCEPT, purpose="", tx_ref=tx_ref, user=user,
            symbol=main.symbol, amount=str(main.amount), minor=0, source=main.source or "",
            target=main.target or "", arrived_ns=arrived_ns,
            deadline_ns=arrived_ns + int(side.settings.continue_limit_s * SECOND_NS), answer=raw,
        )  # fmt: skip
        if row is None or row.currency != signer.currency:
            item.reason = "symbol-unknown"
        elif signer.status != "active":
            item.reason = "account-inactive"
        else:
            item.reason = side.core.refusal(item, signer)
        self.machine.take(step, item)
        if asked == "source" and not item.reason:
            self.machine.move(step, item, "offered")
            self.machine.watch(step, item)
        else:
            self.machine.go(step, item)

    def _asked(self, side: BankSide, main: Action, asked: str) -> str | None:
        """Handle of our signer who is asked; None where it is none of ours to answer."""
        part = getattr(main.snapshot, asked, None)
        wallet = part.wallet if part is not None else None
        named: list[str | None] = [
            wallet.default if wallet is not None else None,
            getattr(main, asked),
            main.signer(asked),
        ]
        for handle in filter(None, named):
            if self.directory.signer(side.name, handle) is not None:
                return handle
        if side.settings.accept_policy == "any":
            for signer in self.directory.signers(side.name):
                if signer.alias and signer.alias in named:
                    return signer.handle
        return None

    def answer_request(self, step: Step, bank: str, tx_ref: str, *, accept: bool) -> bool:
        """The customer's word on a request for money; False: there is none to answer."""
        for item in self.items.of_transfer(bank, tx_ref):
            if item.kind == ACCEPT and item.state == OFFERED:
                item.reason = "" if accept else "declined-by-customer"
                self.machine.move(step, item, "decided")
                self.machine.go(step, item)
                return True
        return False

    def start_transfer(
        self,
        step: Step,
        bank: str,
        reference: str,
        *,
        source: str,
        target: str,
        symbol: str,
        amount: str,
        kind: str = "SEND",
        labels: dict[str, Any] | None = None,
    ) -> str | None:
        """Begin a customer's transfer; returns the item's id, None where it is refused.

        Args:
            reference: the customer channel's own; the same one begins one transfer only.
        """
        side = self.shared.banks[bank]
        row = side.settings.symbols.get(symbol)
        if not is_tx_ref(reference) or row is None or kind not in MAIN_TYPES:
            return None
        try:
            minor = to_minor(amount, row.exponent)
        except AmountError:
            return None
        key = key_of(TRANSFER, reference, source)
        known = self.items.get(bank, key)
        if known is not None:
            return known.id
        if not self._takes(step):
            return None
        body = {
            "source": source, "target": target, "symbol": symbol, "amount": amount,
            "labels": {
                "type": kind, "description": "", "sourceChannel": "APP", "reference": reference,
                **(labels or {}),
            },
        }  # fmt: skip
        item = Item(
            bank=bank, key=key, kind=TRANSFER, purpose="", tx_ref=reference, user=source,
            symbol=symbol, amount=amount, minor=minor, source=source, target=target,
            arrived_ns=step.now_ns,
            deadline_ns=step.now_ns + int(side.settings.continue_limit_s * SECOND_NS),
            created=encode(body),
        )  # fmt: skip
        self.machine.take(step, item)
        self.machine.go(step, item)
        return item.id


__all__ = ["ACCEPTED", "ANSWERED", "RECEIVED", "Answer", "TransfiyaFlow", "Wait"]
