"""How an item goes on: from what was taken in to its proof, its posting and its end.

`advance` makes all moves that need nobody and returns the next call to the network, `on_outcome`
takes the call's end; both within a step, so that a call leaves only when what led to it is durable.
Unknown is a state: what a call without an answer has done is looked up before it is repeated.
"""

from typing import Any, Final

from protocols.transfiya import (
    AmountError,
    IouFault,
    action_of,
    check_iou,
    decode,
    encode,
    iou_data,
    to_minor,
)
from protocols.transfiya.decide import key_of
from protocols.transfiya.errors import DUPLICATE
from protocols.transfiya.iou import RANDOM_BYTES, party, sign_iou
from protocols.transfiya.types import ShapeError
from switch.flows.states import move
from switch.flows.step import Step
from switch.flows.transfiya_jobs import (
    GO,
    OK,
    REFUSED,
    ROLE,
    UNAVAILABLE,
    BankSide,
    Job,
    Outcome,
    Shared,
    entities,
    has_labels,
    label,
    passed_of,
    segment,
)
from switch.flows.transfiya_offers import Offers
from switch.flows.transfiya_records import (
    ACCEPTED,
    ANSWERED,
    BEFORE_SIGNED,
    CORE_DONE,
    CREATED,
    DOWNLOAD,
    FAILED,
    FAILING,
    LATER,
    MOVES,
    OFFERED,
    PARKED,
    POSTED,
    POSTING,
    PROVEN,
    RECEIVED,
    RESERVED,
    SIGN,
    SIGNED,
    TAGGED,
    UPLOAD,
    Item,
)

RETRY: Final = "retry"
DEADLINE: Final = "deadline"
ALARM: Final = "alarm"

REFUND: Final = "refund"
SECOND_NS: Final = 1_000_000_000
FIRST_RETRY_S: Final = 0.25
RETRY_S_MAX: Final = 10.0
OWED_RETRY_S_MAX: Final = 60.0
STALE_NS: Final = 5 * SECOND_NS  # an IOU that ends sooner is not sent any more
UNTAKEN_NS: Final = 30 * SECOND_NS  # after its end an IOU that was not taken never will be
CONTINUE_REFUSALS_MAX: Final = 3
OFFER_NS: Final = 12 * 3600 * SECOND_NS  # a request for money that is not answered by then is over


class Machine:
    """Moves items; knows no HTTP and no clock."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._items = shared.items
        self.offers = Offers(shared, self)
        self._next = {
            RECEIVED: self._begin,
            CREATED: self._fetch,
            ANSWERED: self._reserve,
            RESERVED: self._tag,
            TAGGED: self._sign,
            SIGNED: self._prove,
            ACCEPTED: self._post,
            POSTED: self._continue,
            FAILING: self._fail,
        }
        self._heard = {
            "create": self._on_create,
            "find": self._on_find,
            "fetch": self._on_fetch,
            "main": self._on_main,
            "tag": self._on_tag,
            "check": self._on_check,
            "prove": self._on_prove,
            "look": self._on_look,
            "continue": self._on_continue,
        }

    # ---- moves

    def move(self, step: Step, item: Item, event: str) -> None:
        """Make one move of the table, and what each end brings with it."""
        item.state = move(MOVES, item.state, event)
        item.history.append((item.state, step.now_ns))
        self._items.put(item)
        self._shared.passed.append(passed_of(item))
        if not item.ended:
            return
        purpose = item.purpose or item.kind.lower()
        if item.state == PARKED:
            self._shared.count("parked", item.bank)
        self._shared.count("ended", item.bank, item.kind.lower(), purpose, item.state.lower())
        self._shared.work.pop(item.id, None)
        for kind in (RETRY, DEADLINE, ALARM):
            step.disarm(ROLE, kind, item.id)

    def take(self, step: Step, item: Item) -> None:
        """Begin with an item: durable before anything leaves."""
        settings = self._shared.banks[item.bank].settings
        self.move(step, item, "received")
        self.watch(step, item)
        step.arm(ROLE, ALARM, item.id, settings.alarm_after_s)

    def watch(self, step: Step, item: Item) -> None:
        """Arm the end of its time for new money work."""
        left_ns = self._limit_ns(item) - step.now_ns
        if item.state == OFFERED:
            left_ns = item.arrived_ns + OFFER_NS - step.now_ns
        if item.state in BEFORE_SIGNED or item.state == OFFERED:
            step.arm(ROLE, DEADLINE, item.id, max(left_ns / SECOND_NS, 0.001))

    def _bank(self, item: Item) -> BankSide:
        return self._shared.banks[item.bank]

    def _limit_ns(self, item: Item) -> int:
        margin_s = self._bank(item).settings.deadline_margin_s
        return item.deadline_ns - int(margin_s * SECOND_NS)

    def go(self, step: Step, item: Item) -> None:
        """Have the item looked at once this step is durable."""
        self._shared.work_of(item).waiting = False
        step.call(ROLE, GO, item.id)

    def advance(self, step: Step, item: Item) -> Job | None:
        """Make all moves that need nobody; return the next call, None: nothing to do now."""
        while not item.ended and not self._shared.work_of(item).waiting:
            before = item.state
            job = self._next[before](step, item) if before in self._next else None
            if job is not None or item.state == before:
                return job
        return None

    def on_outcome(self, step: Step, item: Item, call: str, outcome: Outcome) -> Job | None:
        """Take the end of a call, and go on."""
        self._shared.count("calls", item.bank, call, outcome.status)
        if outcome.code:
            self._shared.count("network_errors", item.bank, str(outcome.code))
        if item.ended:
            return None
        work = self._shared.work_of(item)
        if outcome.http and call != "continue":  # what a repeat of it tells is no news
            item.heard_ns = outcome.at_ns
        if outcome.status == UNAVAILABLE:
            return self._without_answer(step, item, call, outcome)
        work.tries = 0
        heard = self._heard.get(call) or self.offers.heard(call)
        heard(step, item, outcome)
        return self.advance(step, item)

    def _without_answer(self, step: Step, item: Item, call: str, outcome: Outcome) -> Job | None:
        work = self._shared.work_of(item)
        work.probe |= call == "create"
        work.check_tag |= call == "tag"
        work.look |= call == "prove"
        self.offers.without_answer(step, item, call)
        owed = item.state in (SIGNED, POSTED, FAILING)
        self.retry(step, item, OWED_RETRY_S_MAX if owed else RETRY_S_MAX, outcome.retry_after_s)
        return None

    def retry(
        self, step: Step, item: Item, longest_s: float = RETRY_S_MAX, wished_s: float = 0.0
    ) -> None:
        """Look at it again after a while that grows, within ± 20 % of it."""
        work = self._shared.work_of(item)
        grown_s = FIRST_RETRY_S * 2 ** min(work.tries, 16)
        work.tries += 1
        work.waiting = True
        spread = 0.8 + 0.4 * self._shared.draw(1)[0] / 255
        after_s = max(min(grown_s, longest_s) * spread, min(wished_s, OWED_RETRY_S_MAX))
        step.arm(ROLE, RETRY, item.id, after_s)

    # ---- 1, 2: the action

    def _begin(self, step: Step, item: Item) -> Job | None:
        if item.kind not in (UPLOAD, DOWNLOAD):
            return self.offers.begin(step, item)
        if step.now_ns >= self._limit_ns(item):
            self.unmade(step, item, "deadline-passed")
            return None
        if self._shared.work_of(item).probe:
            query = (("labels.tx_ref", item.tx_ref), ("labels.type", item.kind))
            return Job(item.bank, item.id, "find", "GET", "/action", query)
        bank = self._bank(item)
        labels = {
            "type": item.kind,
            "tx_ref": item.tx_ref,
            "received": bank.stamp(item.arrived_ns),
            "dispatched": bank.stamp(step.now_ns),
        }
        body = {
            "source": item.source, "target": item.target, "symbol": item.symbol,
            "amount": item.amount, "labels": labels,
        }  # fmt: skip
        return Job(item.bank, item.id, "create", "POST", "/action", (), encode(body))

    def _on_create(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != RECEIVED:
            return
        if outcome.status == OK:
            self._made(step, item, outcome.raw, outcome.value)
        elif outcome.code == DUPLICATE and not self._shared.work_of(item).probe:
            self._shared.work_of(item).probe = True  # one of ours whose answer was lost, perhaps
        else:
            self.unmade(step, item, "create-refused")

    def _on_find(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != RECEIVED:
            return
        if outcome.status != OK:
            self.unmade(step, item, "create-refused")
            return
        same = [one for one in entities(outcome.value) if self._is_ours(item, one)]
        if len(same) > 1:
            item.reason = "action-ambiguous"
            self.move(step, item, "parked")
            step.alarm("transfiya_parked", item.tx_ref, "several actions of ours")
        elif same:
            self._made(step, item, encode(same[0]), same[0])
        else:
            self._shared.work_of(item).probe = False

    def _is_ours(self, item: Item, value: Any) -> bool:
        return (
            label(value, "type") == item.kind
            and label(value, "tx_ref") == item.tx_ref
            and label(value, "status") not in ("REJECTED", "ERROR")
            and self._has(value, "source", item.source)
            and self._has(value, "target", item.target)
            and self._minor(item, value) == item.minor
        )

    @staticmethod
    def _has(value: Any, side: str, handle: str) -> bool:
        found = party(value, side)
        return handle == (value.get(side) if found is None else found)

    def _minor(self, item: Item, value: Any) -> int:
        exponent = self._bank(item).settings.symbols[item.symbol].exponent
        try:
            return to_minor(value.get("amount"), exponent)
        except AmountError:
            return -1

    def _made(self, step: Step, item: Item, raw: bytes, value: Any) -> None:
        """An action is there; see that it is what was asked for."""
        try:
            action = action_of(value)
        except ShapeError:
            self.unmade(step, item, "create-mismatch")
            return
        if not action.action_id:
            self.unmade(step, item, "create-mismatch")
            return
        item.action_id, item.created = action.action_id, raw
        if item.state == RECEIVED:
            self.move(step, item, "created")
        if self._lacks(value):
            return  # `_fetch` asks for the whole of it
        wrong = (
            (action.labels.type or item.kind) != item.kind
            or (action.labels.tx_ref or item.tx_ref) != item.tx_ref
            or action.signer("source") != item.source
            or action.signer("target") != item.target
            or self._minor(item, value) != item.minor
        )
        if wrong:
            self.unmade(step, item, "create-mismatch")
            return
        if not isinstance(value.get("error"), dict):
            value = {**value, "error": {"code": 0, "message": "Success"}}
        item.answer = encode(value)
        self.move(step, item, "answered")

    @staticmethod
    def _lacks(value: Any) -> bool:
        return any(party(value, side) is None for side in ("source", "target", "symbol"))

    def _fetch(self, step: Step, item: Item) -> Job | None:
        path = f"/action/{segment(item.action_id)}"
        return Job(item.bank, item.id, "fetch", "GET", path)

    def _on_fetch(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != CREATED:
            return
        if outcome.status != OK or self._lacks(outcome.value):
            self.unmade(step, item, "create-mismatch")
        else:
            self._made(step, item, outcome.raw, outcome.value)

    def unmade(self, step: Step, item: Item, reason: str) -> None:
        """It ends before its answer: refused to the caller, nothing touched, nothing owed."""
        item.reason, item.unmade = reason, True
        self.move(step, item, "failed")

    # ---- 3, 4: answered, and the core's first phase

    def _reserve(self, step: Step, item: Item) -> Job | None:
        work = self._shared.work_of(item)
        if work.live or item.core_state == LATER:
            return None
        if step.now_ns >= self._limit_ns(item):
            self.fail(step, item, "deadline-passed")
            return None
        if work.check_main and item.main_id:
            return Job(item.bank, item.id, "main", "GET", f"/action/{segment(item.main_id)}")
        if item.kind == SIGN:
            self._sign(step, item)
            return None
        if item.purpose == REFUND and not self._debit_stands(step, item):
            return None
        signer = self._shared.directory.signer(item.bank, item.user)
        reason = "account-inactive"
        if signer is not None and signer.status == "active":
            reason = self._bank(item).core.reserve(step, item, signer)
        self.reserved(step, item, reason)
        return None

    def reserved(self, step: Step, item: Item, result: str) -> None:
        """The core's first phase is over, or begun."""
        item.core_state = result if result in (CORE_DONE, LATER) else ""
        self._items.put(item)
        if result == CORE_DONE:
            self.move(step, item, "reserved")
        elif result != LATER:
            self.fail(step, item, result)

    def _debit_stands(self, step: Step, item: Item) -> bool:
        """True when what is given back was surely taken; else it waits, or fails."""
        debit = self._items.get(item.bank, key_of(UPLOAD, item.tx_ref, item.user))
        if debit is not None and debit.state in (SIGNED, ACCEPTED):
            return False  # its own next move has us looked at again
        if debit is None or debit.state not in PROVEN:
            self.fail(step, item, "no-matching-debit")
            return False
        return True

    def _on_main(self, step: Step, item: Item, outcome: Outcome) -> None:
        self._shared.work_of(item).check_main = False
        same = outcome.action_status == item.main_status
        if item.state == ANSWERED and not same:
            self.fail(step, item, "main-changed")

    # ---- 5: tx_id

    def _tag(self, step: Step, item: Item) -> Job | None:
        if step.now_ns >= self._limit_ns(item):
            self.fail(step, item, "deadline-passed")
            return None
        path = f"/action/{segment(item.action_id)}"
        if self._shared.work_of(item).check_tag:
            return Job(item.bank, item.id, "check", "GET", path)
        body = encode({"labels": {"tx_id": item.core}})
        return Job(item.bank, item.id, "tag", "PUT", path, (), body)

    def _on_tag(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != RESERVED:
            return
        work = self._shared.work_of(item)
        if outcome.status == OK:
            self.move(step, item, "tagged")
        else:
            work.check_tag = work.tag_refused = True

    def _on_check(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != RESERVED:
            return
        work = self._shared.work_of(item)
        work.check_tag = False
        if label(outcome.value, "tx_id") == item.core:
            self.move(step, item, "tagged")
        elif work.tag_refused or outcome.action_status != "PENDING":
            self.fail(step, item, "tag-refused")

    # ---- 6, 7: the proof

    def _sign(self, step: Step, item: Item) -> Job | None:
        if step.now_ns >= self._limit_ns(item):
            self.fail(step, item, "deadline-passed")
            return None
        settings = self._bank(item).settings
        ttl_ns = settings.iou_ttl_s * SECOND_NS
        try:
            draw = self._shared.draw(RANDOM_BYTES)
            data = iou_data(decode(item.created), step.now_ns, draw, ttl_ns)
        except IouFault:
            self.fail(step, item, "create-mismatch")
            return None
        key = self._shared.ring.key(item.bank, data["source"])
        if key is None:
            self.fail(step, item, "key-missing")
            return None
        item.iou = encode(sign_iou(data, key))
        item.expiry_ns = step.now_ns + ttl_ns
        self._shared.work_of(item).signed = True
        self.move(step, item, "signed")
        return None

    def _prove(self, step: Step, item: Item) -> Job | None:
        path = f"/action/{segment(item.action_id)}"
        if self._shared.work_of(item).look:
            return Job(item.bank, item.id, "look", "GET", path)
        if step.now_ns >= self._limit_ns(item):
            if item.sent:
                self.retry(step, item, OWED_RETRY_S_MAX, UNTAKEN_NS / SECOND_NS)
                self._shared.work_of(item).look = True
            else:
                self.fail(step, item, "deadline-passed")
            return None
        if item.expiry_ns - step.now_ns < STALE_NS or not self._holds(step, item):
            self._sign(step, item)
            if item.state != SIGNED:
                return None
        item.sent = True
        self._items.put(item)
        return Job(item.bank, item.id, "prove", "POST", f"{path}/sendit", (), item.iou)

    def _holds(self, step: Step, item: Item) -> bool:
        """An IOU of an earlier process is looked at before it leaves: nobody takes it back."""
        work = self._shared.work_of(item)
        if work.signed:
            return True
        work.signed = True
        verdict = check_iou(decode(item.iou), decode(item.created))
        self._shared.count("iou_check", verdict)
        if verdict != "ok":
            step.alarm("transfiya_iou_broken", item.tx_ref, verdict)
        return verdict == "ok"

    def _on_prove(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != SIGNED:
            return
        status = outcome.action_status
        if outcome.status == OK and status == "COMPLETED":
            self._proven(step, item, outcome)
        elif status in ("REJECTED", "ERROR"):
            self.fail(step, item, "proof-rejected")
        elif outcome.status == REFUSED:
            # Only while the action is pending is it about the IOU: see before another is signed.
            self._shared.work_of(item).look = self._shared.work_of(item).refused = True
        else:
            self._shared.work_of(item).look = True
            self.retry(step, item, OWED_RETRY_S_MAX)

    def _on_look(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != SIGNED:
            return
        work = self._shared.work_of(item)
        status, refused = outcome.action_status, work.refused
        work.refused = False
        if status == "COMPLETED":
            self._proven(step, item, outcome)
        elif status in ("REJECTED", "ERROR"):
            # A main action ends so with its transfer: a word now would be taken for its refund's.
            self.fail(step, item, "proof-rejected", silent=item.kind == SIGN)
        elif status != "PENDING":
            self.retry(step, item, OWED_RETRY_S_MAX)
        elif refused and item.fresh:
            self.fail(step, item, "proof-refused")
        elif refused:
            work.look, item.fresh = False, True
            self._sign(step, item)
        elif step.now_ns > item.expiry_ns + UNTAKEN_NS:
            self.fail(step, item, "proof-not-taken")
        elif item.expiry_ns - step.now_ns < STALE_NS and step.now_ns >= self._limit_ns(item):
            self.retry(step, item, OWED_RETRY_S_MAX, UNTAKEN_NS / SECOND_NS)
        else:
            work.look = False

    def _proven(self, step: Step, item: Item, outcome: Outcome) -> None:
        item.accepted_ns = outcome.at_ns
        self._shared.work_of(item).look = False
        self.move(step, item, "accepted")
        if item.kind == SIGN:
            item.answer = outcome.raw

    # ---- 8, 9: posted, and told

    def _post(self, step: Step, item: Item) -> Job | None:
        if item.kind == SIGN:
            more = self._bank(item).settings.continue_after_action
            self.move(step, item, "posted" if more else "done")
            return None
        if item.core_state == POSTING:
            return None
        if self._bank(item).core.post(step, item) == LATER:
            item.core_state = POSTING
            self._items.put(item)
        else:
            self.posted(step, item)
        return None

    def unfinished(self, item_id: str) -> Item | None:
        """An item that has not ended."""
        item = self._items.named(item_id)
        return None if item is None or item.ended else item

    def posted(self, step: Step, item: Item) -> None:
        """The core's second phase is over."""
        item.core_state = CORE_DONE
        bank = self._bank(item)
        currency = bank.settings.symbols[item.symbol].currency
        self._shared.counts["booked", item.bank, item.purpose, currency] += item.minor
        self.move(step, item, "posted")
        if item.kind == UPLOAD:
            self._wake_refund(step, item)

    def _wake_refund(self, step: Step, debit: Item) -> None:
        refund = self._items.get(debit.bank, key_of(DOWNLOAD, debit.tx_ref, debit.user))
        if refund is not None and refund.state == ANSWERED:
            self.go(step, refund)

    def _continue(self, step: Step, item: Item) -> Job | None:
        if step.now_ns > item.deadline_ns and not item.late:
            item.late = True
            self._items.put(item)
            self._shared.count("late", item.bank)
            step.alarm("transfiya_continue_late", item.tx_ref)
        return self._tell(step, item, item.accepted_ns, None)

    def _tell(self, step: Step, item: Item, received_ns: int, error: Any) -> Job:
        bank = self._bank(item)
        body = {"received": bank.stamp(received_ns), "dispatched": bank.stamp(step.now_ns)}
        path = f"/transfer/{segment(item.tx_ref)}/continue"
        whole = encode(body if error is None else {**body, "error": error})
        return Job(item.bank, item.id, "continue", "POST", path, (), whole)

    def _on_continue(self, step: Step, item: Item, outcome: Outcome) -> None:
        # The record of a transfer tells the transfer's own error; the word was taken all the same.
        taken = outcome.status == OK or (outcome.http < 300 and has_labels(outcome.value))
        if not taken:
            item.refusals += 1
            self._items.put(item)
            if item.refusals < CONTINUE_REFUSALS_MAX:
                self.retry(step, item)
                return
            item.flagged = True
            if item.state == POSTED:
                step.alarm("transfiya_continue_refused", item.tx_ref)
        if item.state == POSTED:
            self.move(step, item, "done")
        elif item.state == FAILING:
            item.told = True
            self._items.put(item)

    # ---- failing

    def fail(self, step: Step, item: Item, reason: str, *, silent: bool = False) -> None:
        """It ends without a proof: what the core did is undone, and the network is told."""
        assert item.state not in PROVEN, "what is proven never fails"
        item.reason, item.silent = reason, silent
        item.heard_ns = item.heard_ns or step.now_ns
        if item.state in (RECEIVED, CREATED):
            self.unmade(step, item, reason)
            return
        self.move(step, item, "failing")
        step.disarm(ROLE, DEADLINE, item.id)

    def _fail(self, step: Step, item: Item) -> Job | None:
        if not item.released:
            touched = item.kind in (UPLOAD, DOWNLOAD) and item.core_state != ""
            if not touched or self._bank(item).core.undo(step, item) == CORE_DONE:
                self.undone(step, item)
        if not item.told and not item.silent:
            error = self._bank(item).error(item.reason)
            return self._tell(step, item, item.accepted_ns or item.heard_ns, error)
        if item.released:
            self.move(step, item, "failed")
            if item.kind == UPLOAD:
                self._wake_refund(step, item)
        return None

    def undone(self, step: Step, item: Item) -> None:
        """The core has undone its first phase."""
        if item.core_state != "":
            self._shared.count("core_undo", item.bank, self._bank(item).settings.core)
        item.released = True
        self._items.put(item)

    # ---- time, and a new start

    def on_deadline(self, step: Step, kind: str, item: Item) -> None:
        """A timer of the item has come."""
        if kind == RETRY:
            self.go(step, item)
        elif kind == DEADLINE and item.state == OFFERED:
            item.reason = "cancelled"
            self.move(step, item, "failed")
        elif kind == DEADLINE and item.state in BEFORE_SIGNED:
            self.fail(step, item, "deadline-passed")
            self.go(step, item)
        elif kind == ALARM and not item.ended:
            step.alarm("transfiya_unresolved", item.tx_ref, f"{item.kind} {item.state}")

    def adopt(self, step: Step, item: Item) -> None:
        """Take it up after a start: whatever may have left is looked up first."""
        work = self._shared.work_of(item)
        work.probe = item.state == RECEIVED
        work.check_main = item.state in (CREATED, ANSWERED)
        work.check_tag = item.state == RESERVED
        work.look = item.state == SIGNED and item.sent
        self._shared.count("resumed", item.bank, item.state.lower())
        settings = self._bank(item).settings
        self.watch(step, item)
        step.arm(ROLE, ALARM, item.id, settings.alarm_after_s)
        reason = self._bank(item).core.adopt(step, item)
        if reason and item.state == ANSWERED:
            self.fail(step, item, reason)


__all__ = ["ALARM", "DEADLINE", "FAILED", "RETRY", "Machine"]
